"""From each function's values to one score per row: weights, clipping, normalisation, gates, products, ensembles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_pg.config.rewards import Combine, Normalize, RewardFunctionConfig
from rlhf_pg.ops.running import NONE, Moments, mean_and_deviation, merge

ENSEMBLES = ("mean", "min", "mean_minus_std")


@dataclass(frozen=True, slots=True)
class Reward:
    """A reward: a function, or members that are combined."""

    name: str
    weight: float = 1.0
    clip: tuple[float, float] | None = None
    normalize: Normalize = "none"
    members: tuple[Reward, ...] = ()
    combine: Combine = "sum"
    std_coef: float = 1.0
    otherwise: float = 0.0

    @classmethod
    def of(cls, entry: RewardFunctionConfig, names: Iterator[str]) -> Reward:
        """The reward of a configuration; ``names`` are those of the tree, each before its members'."""
        name = next(names)
        members = tuple(cls.of(member, names) for member in entry.members)
        return cls(
            name, entry.weight, entry.clip, entry.normalize, members, entry.combine, entry.std_coef, entry.otherwise
        )

    def tree(self) -> Iterator[Reward]:
        """This reward and all below it."""
        yield self
        for member in self.members:
            yield from member.tree()


class Normaliser:
    """Shifts and scales values to mean 0 and deviation 1, by the moments of a batch or of all batches so far.

    Args:
        state: the moments so far by reward, as a checkpoint keeps them.

    Attributes:
        state: the moments, these batches' included.
        used: each reward's mean and deviation in the last batch.
    """

    def __init__(self, state: Mapping[str, Moments]) -> None:
        self.state = dict(state)
        self.used: dict[str, tuple[float, float]] = {}

    def __call__(self, reward: Reward, values: Tensor) -> Tensor:
        """Normalise (B,) values of which NaN is unscorable, and remember their moments."""
        known = values[~values.isnan()]
        moments = merge(self.state.get(reward.name, NONE) if reward.normalize == "running" else NONE, known)
        if reward.normalize == "running":
            self.state[reward.name] = moments
        self.used[reward.name] = mean_and_deviation(moments)
        return self.again(reward, values)

    def again(self, reward: Reward, values: Tensor) -> Tensor:
        """Normalise other values by the same mean and deviation."""
        mean, deviation = self.used[reward.name]
        return (values - mean) / deviation


Scale = Callable[[Reward, Tensor], Tensor]


@dataclass(slots=True)
class Combined:
    """The rewards of B rows together, float64."""

    scores: Tensor  # (B,) 0 where invalid
    valid: Tensor  # (B,) bool: some reward with a weight could score the row
    components: dict[str, Tensor]  # (B,) of those with members: their value, and an ensemble's ``NAME/disagreement``


def combine(rewards: Sequence[Reward], leaves: Mapping[str, Tensor], scale: Scale | None = None) -> Combined:
    """Add up rewards: ``score = sum of weight * value`` over those that could score the row.

    Args:
        rewards: the trees.
        leaves: (B,) each function's values, NaN where it could not score the row; 0 where it gave rewards per token, which
            are added elsewhere.
        scale: normalises the values of rewards that ask for it; None leaves them as they are.
    """
    components: dict[str, Tensor] = {}
    total = _sum([reward.weight * value_of(reward, leaves, components, scale) for reward in rewards if reward.weight])
    for reward in rewards:
        if not reward.weight:
            value_of(reward, leaves, components, scale)
    return Combined(total.nan_to_num(), ~total.isnan(), components)


def value_of(
    reward: Reward, leaves: Mapping[str, Tensor], components: dict[str, Tensor], scale: Scale | None
) -> Tensor:
    """(B,) a reward's value, clipped and normalised; NaN where unscorable. What members make is put in ``components``."""
    if reward.members:
        values = [member.weight * value_of(member, leaves, components, scale) for member in reward.members]
        counted = [value for value, member in zip(values, reward.members, strict=True) if member.weight]
        value = _COMBINE[reward.combine](counted, reward)
        components[reward.name] = value
        if reward.combine in ENSEMBLES:
            components[f"{reward.name}/disagreement"] = deviation_of(counted)
    else:
        value = leaves[reward.name]
    if reward.clip is not None:
        value = value.clamp(*reward.clip)
    return value if scale is None or reward.normalize == "none" else scale(reward, value)


def _sum(values: Sequence[Tensor]) -> Tensor:
    """Over those that could score the row; NaN where none could."""
    table = torch.stack(list(values))
    return torch.where(table.isnan().all(0), torch.nan, table.nansum(0))


def deviation_of(values: Sequence[Tensor]) -> Tensor:
    """(B,) the members' standard deviation (by n) over those that could score the row; NaN where none could."""
    table = torch.stack(list(values))
    return (table - table.nanmean(0)).square().nanmean(0).sqrt()


def _gate(values: Sequence[Tensor], reward: Reward) -> Tensor:
    table = torch.stack(list(values))
    gates = table[:-1]
    passed = torch.where((gates > 0).all(0), table[-1], reward.otherwise)
    # A gate that cannot be judged is neither open nor closed, unless another one is closed anyway.
    closed = (gates <= 0).any(0)
    return torch.where(gates.isnan().any(0) & ~closed, torch.nan, passed)


_COMBINE: dict[str, Callable[[Sequence[Tensor], Reward], Tensor]] = {
    "sum": lambda values, _: _sum(values),
    "mean": lambda values, _: torch.stack(list(values)).nanmean(0),
    "min": lambda values, _: (
        torch.stack(list(values)).nan_to_num(torch.inf).amin(0) + 0 * _sum(values)
    ),  # NaN + 0 is NaN
    "mean_minus_std": lambda values, reward: (
        torch.stack(list(values)).nanmean(0) - reward.std_coef * deviation_of(values)
    ),
    "product": lambda values, _: torch.stack(list(values)).prod(0),
    "gate": _gate,
}
