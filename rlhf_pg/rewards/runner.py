"""Run reward functions over a rollout and combine what they say: ``Rollout -> ScoredRollout``.

A reward function is ``fn(prompts, completions, completion_ids, **columns)``, called with keywords, once per rollout.
Clipping and normalising the sum, and the penalty for a missing end, are applied later, to the table of all processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlhf_pg.config.rewards import RewardConfig, RewardFunctionConfig
from rlhf_pg.errors import ConfigError, RewardError
from rlhf_pg.rewards.call import FunctionCall
from rlhf_pg.rewards.combine import Reward, Scale, combine
from rlhf_pg.rewards.functions import Here, RewardFunction, place
from rlhf_pg.rewards.values import LARGEST, show_row
from rlhf_pg.types import Rollout, ScoredRollout

Log = Callable[[str, float], None]


class RewardRunner:
    """Calls every reward function on a rollout and combines their values into one score per row.

    ``score_i = sum of weight_f * value_f(i)`` over the rewards f that could score row i. A reward of weight 0 is
    measured and decides nothing. Per-token rewards are summed in the same way into ``token_rewards`` and are not in
    ``scores``: a row's total is ``scores[i] + token_rewards[i].sum()``.

    Functions with a name run in worker processes, models and functions from Python in this one.

    Args:
        config: the section ``reward``.
        functions: callables, names or configurations that replace ``config.functions``.
        device: where reward models run.

    Attributes:
        names: of all rewards, each before its members.
        notes: what functions have to say before they are used.

    Raises:
        ConfigError: there is no function, none has a weight, or one cannot be found.
    """

    def __init__(
        self,
        config: RewardConfig,
        functions: Sequence[Callable[..., Any] | str | RewardFunctionConfig] | None = None,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config
        entries = [
            RewardFunctionConfig(function=entry) if isinstance(entry, str) else entry
            for entry in (config.functions if functions is None else functions)
        ]
        if not any(entry.weight if isinstance(entry, RewardFunctionConfig) else 1.0 for entry in entries):
            problem = "every function has weight 0" if entries else "there is no reward function"
            raise ConfigError(f"reward.functions: {problem}, so nothing would be maximised; give one a weight")
        tree = [node for entry in entries for node in _nodes(entry)]
        placed = [None if _has_members(node) else place(node, config, str(device)) for node in tree]
        found = [None if function is None else function.ready() for function in placed]
        self.names: tuple[str, ...] = _unique(
            [
                (node.name if isinstance(node, RewardFunctionConfig) else None)
                or (node.combine if ready is None else ready.name)
                for node, ready in zip(tree, found, strict=True)
            ]
        )
        self.notes = [note for ready in found if ready is not None for note in ready.notes]
        names = iter(self.names)
        self.rewards = [
            Reward.of(entry, names) if isinstance(entry, RewardFunctionConfig) else Reward(next(names))
            for entry in entries
        ]
        self._functions: dict[str, tuple[RewardFunction, Mapping[str, Any]]] = {
            name: (function, ready.args)
            for name, function, ready in zip(self.names, placed, found, strict=True)
            if function is not None and ready is not None
        }

    def __call__(self, rollout: Rollout, log: Log | None = None) -> ScoredRollout:
        """Score each row, and wait for it; see :meth:`start`."""
        return self.start(rollout).result(log)

    def start(self, rollout: Rollout) -> Scoring:
        """Begin to score each row: workers and asynchronous functions go on while the caller does something else.

        Args:
            rollout: B completions.

        Raises:
            RewardError: a function needs a column that the data lacks.
        """
        given = columns_of(rollout)
        for name, (function, args) in self._functions.items():
            missing = function.needs.missing([*given, *args])
            if missing:
                raise RewardError(
                    f"reward function {name!r} needs {missing[0]!r}, which is neither a column of the data "
                    f"({sorted(rollout.prompts.columns)}) nor in its args ({sorted(args)}); rename the column or give "
                    "the argument"
                )
        calls = {
            name: FunctionCall(name, function, args, given, rollout, self.config)
            for name, (function, args) in self._functions.items()
        }
        for call in sorted(calls.values(), key=lambda call: isinstance(call.function, Here)):
            call.start()  # those in this process last: the others run meanwhile
        return Scoring(self, rollout, calls)

    def check_per_token(self, name: str) -> None:
        """Refuse rewards per token where only one value a response can be used."""
        root = next((reward for reward in self.rewards if reward.name == name), None)
        if root is None:
            raise RewardError(
                f"reward function {name!r} gave rewards per token, and a member must give one per response"
            )
        if root.clip is not None or root.normalize != "none":
            raise RewardError(
                f"reward function {name!r} gave rewards per token, which clip and normalize cannot take; remove them"
            )

    def reads(self, column: str) -> bool:
        """Whether a function names a column among its parameters."""
        return any(column in function.needs.named for function, _ in self._functions.values())

    @property
    def normalises(self) -> bool:
        """Whether a reward's values are to be normalised in training, which :meth:`normalised` does."""
        return any(reward.normalize != "none" for root in self.rewards for reward in root.tree())

    def normalised(self, scored: ScoredRollout, scale: Scale) -> ScoredRollout:
        """The same values, combined again with those normalised that ask for it.

        Args:
            scored: of all processes.
            scale: a :class:`Normaliser`, or its ``again``.
        """
        leaves = {name: scored.components[name].double().cpu() for name in self._functions}
        made = self.combined(scored.rollout, leaves, scored.token_rewards, scored.per_token, scale)
        return replace(made, extras=scored.extras)

    def combined(
        self,
        rollout: Rollout,
        leaves: Mapping[str, Tensor],
        token_rewards: Tensor,
        per_token: frozenset[str],
        scale: Scale | None = None,
    ) -> ScoredRollout:
        """Combine each function's values (B,), NaN where unscorable, into scores."""
        whole = {name: torch.where(x.isnan(), x, 0.0) if name in per_token else x for name, x in leaves.items()}
        made = combine(self.rewards, whole, scale)
        too_large = ~((made.scores.abs() + token_rewards.double().cpu().abs().sum(1)) <= LARGEST)
        if too_large.any():
            row = int(too_large.int().argmax())
            raise RewardError(f"the sum of the rewards is too large for float32 in {show_row(rollout, row)}")
        device = rollout.response_mask.device
        components = {name: values.float().to(device) for name, values in {**leaves, **made.components}.items()}
        return ScoredRollout(
            rollout,
            made.scores.float().to(device),
            components,
            made.valid.to(device),
            token_rewards.float().to(device),
            per_token,
        )

    def close(self) -> None:
        """End all worker processes. They end by themselves, too, once nothing refers to this object."""
        for function, _ in self._functions.values():
            function.close()


class Scoring:
    """A rollout that is being scored."""

    def __init__(self, runner: RewardRunner, rollout: Rollout, columns: Mapping[str, FunctionCall]) -> None:
        self._runner, self._rollout, self._columns = runner, rollout, columns

    def result(self, log: Log | None = None) -> ScoredRollout:
        """Wait for every function and combine their values.

        Args:
            log: takes ``time/rewards/<name>`` (seconds), ``rewards/<name>/failed`` (rows that it failed on),
                ``rewards/<name>/nan`` (rows scored NaN), and what functions report through TRL's ``log_metric``.

        Returns:
            The scores, on the rollout's device.

        Raises:
            RewardError: a function failed on more rows than ``reward.on_error`` and ``reward.max_unscorable`` allow.
        """
        rollout = self._rollout
        token_rewards = torch.zeros(rollout.response_mask.shape, dtype=torch.float64)
        leaves, per_token, extras = {}, set(), dict[str, list[Any]]()
        weights = {reward.name: reward.weight for reward in self._runner.rewards}
        for name, call in self._columns.items():
            rows = call.result()
            leaves[name] = torch.tensor(rows.values, dtype=torch.float64)
            extras |= rows.extras
            if rows.tokens:
                self._runner.check_per_token(name)
                per_token.add(name)
            for row, tokens in rows.tokens.items():
                token_rewards[row, : len(tokens)] += weights[name] * torch.tensor(tokens, dtype=torch.float64)
            if log is not None:
                for metric, value in rows.metrics(name).items():
                    log(metric, value)
        scored = self._runner.combined(rollout, leaves, token_rewards, frozenset(per_token))
        return replace(scored, extras=extras)


def columns_of(rollout: Rollout) -> dict[str, list[Any]]:
    """What a function may ask for, a value per row."""
    batch, size = rollout.prompts, rollout.group_size
    chat = [isinstance(prompt, list) for prompt in batch.prompts]
    given: dict[str, Any] = {key: [v for v in values for _ in range(size)] for key, values in batch.columns.items()}
    given["prompts"] = [prompt for prompt in batch.prompts for _ in range(size)]
    given["completions"] = [
        [{"role": "assistant", "content": text}] if chat[row // size] else text
        for row, text in enumerate(rollout.texts)
    ]
    lengths = rollout.lengths.tolist()
    given["completion_ids"] = [ids[:length] for ids, length in zip(rollout.response_ids.tolist(), lengths, strict=True)]
    return given


def _nodes(entry: Any) -> Iterator[Any]:
    """An entry and all below it, each before its members."""
    yield entry
    if _has_members(entry):
        for member in entry.members:
            yield from _nodes(member)


def _has_members(entry: Any) -> bool:
    return isinstance(entry, RewardFunctionConfig) and bool(entry.members)


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    """The same names, the second ``vader`` as ``vader_2``."""
    taken: list[str] = []
    for name in names:
        number = 2
        free = name
        while free in taken:
            free = f"{name}_{number}"
            number += 1
        taken.append(free)
    return tuple(taken)
