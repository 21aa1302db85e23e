"""Choosing among points of reward and KL: which are worth having, how good a set is, and the coefficient for a wanted KL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rlhf_pg.errors import ConfigError, DataError
from rlhf_pg.evaluate.clusters import Floats


def pareto(kls: ArrayLike, rewards: ArrayLike) -> list[int]:
    """The points that no other passes: none has at least its reward for at most its KL, and is better in one of them.

    Args:
        kls: (M,) nats.
        rewards: (M,) reward units. A point with a NaN in either is not one of them.

    Returns:
        Their indices, by rising KL; of points that are equal in both, all.
    """
    kl, reward = _points(kls, rewards)
    known = [i for i in range(len(kl)) if not math.isnan(kl[i] + reward[i])]
    found: list[int] = []
    for i in sorted(known, key=lambda i: (kl[i], -reward[i])):
        last = found[-1] if found else None
        if last is None or reward[i] > reward[last] or (reward[i] == reward[last] and kl[i] == kl[last]):
            found.append(i)
    return found


def hypervolume(kls: ArrayLike, rewards: ArrayLike, *, kl: float, reward: float) -> float:
    """The area, nats times reward units, of what the points pass: KL up to ``kl``, reward from ``reward``.

    ``integral over k from 0 to kl of max(0, best reward of a point with KL <= k - reward)``. Sets are comparable only with the
    same corner.

    Args:
        kls: (M,) nats.
        rewards: (M,) reward units.
        kl: of the corner, nats: the largest that is of interest.
        reward: of the corner: the reference's.

    Raises:
        DataError: shapes that disagree, or a corner that is not finite.
    """
    if not (math.isfinite(kl) and math.isfinite(reward)):
        raise DataError(f"the corner is at {kl} nats and a reward of {reward}; give finite numbers")
    x, y = _points(kls, rewards)
    steps = [i for i in pareto(x, y) if x[i] < kl and y[i] > reward]
    ends = [*(float(x[i]) for i in steps[1:]), kl]
    return sum((end - float(x[i])) * (float(y[i]) - reward) for i, end in zip(steps, ends, strict=False))


def closest(kls: ArrayLike, rewards: ArrayLike, target: float) -> int:
    """The index of the point whose KL is nearest to ``target`` nats; of several, the one of most reward.

    Raises:
        DataError: no point has both a KL and a reward.
    """
    kl, reward = _points(kls, rewards)
    known = [i for i in range(len(kl)) if not math.isnan(kl[i] + reward[i])]
    if not known:
        raise DataError("no point has both a KL and a reward; there is nothing to choose from")
    return min(known, key=lambda i: (abs(kl[i] - target), -reward[i]))


@dataclass(frozen=True, slots=True)
class Search:
    """Where the search for a coefficient stands.

    Attributes:
        beta: what to try next; once it is done, the best that was tried; None where none can serve.
        done: nothing more is to be tried.
        reason: why it is done; empty while it is not.
    """

    beta: float | None
    done: bool
    reason: str


def next_coefficient(
    tried: Sequence[tuple[float, float]],
    target: float,
    *,
    start: float = 0.1,
    tolerance: float = 0.1,
    growth: float = 4.0,
    smallest: float = 1e-5,
    largest: float = 1e3,
    most: int = 12,
) -> Search:
    """The coefficient to try next, for a run whose KL is to be ``target``: bisection in log beta, since KL falls as beta rises.

    Until the target lies between two KLs, beta grows or shrinks by ``growth``. A run's KL carries noise, so that a larger
    beta can show a larger KL; the largest beta that is still above the target is the lower end, which moves the search on.

    Args:
        tried: pairs of coefficient and the KL that it gave, nats, in any order; NaN or infinity (a run that broke down) counts as
            too much KL.
        target: nats, above 0.
        start: the first coefficient.
        tolerance: done when a KL is within this share of the target.
        growth: above 1.
        smallest: coefficients below are not tried.
        largest: nor those above.
        most: how many may be tried.

    Returns:
        What to try next, or that the search is done.

    Raises:
        ConfigError: a target, tolerance or coefficient that is not positive, a growth of 1 or less, limits in the wrong order.
    """
    positive = {"target": target, "tolerance": tolerance, "start": start, "smallest": smallest}
    for name, value in (positive | {f"beta {i}": beta for i, (beta, _) in enumerate(tried)}).items():
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name} is {value}; give a number above 0")
    if growth <= 1 or not smallest <= start <= largest:
        raise ConfigError(
            f"growth is {growth} and start {start}; give one above 1, and one from {smallest:g} to {largest:g}"
        )
    if not tried:
        return Search(start, False, "")
    points = [(beta, kl if math.isfinite(kl) else math.inf) for beta, kl in tried]
    nearest, found = min(points, key=lambda point: abs(point[1] - target))
    if abs(found - target) <= tolerance * target:
        return Search(nearest, True, f"beta {nearest:.3g} gives {found:.3g} nats")
    best = nearest if math.isfinite(found) else None
    said = f"the nearest is {found:.3g} nats, at beta {nearest:.3g}" if best else "every run broke down"
    if len(points) >= most:
        return Search(best, True, f"{most} coefficients were tried; {said}")
    low = max((beta for beta, kl in points if kl > target), default=None)
    above = [beta for beta, kl in points if kl <= target and (low is None or beta > low)]
    if low is not None and above:
        high = min(above)
        if high <= low * 1.001:
            return Search(best, True, f"the KL jumps between beta {low:.5g} and {high:.5g}; {said}")
        return Search(math.sqrt(low * high), False, "")
    end = largest if low is not None else smallest
    edge = low if low is not None else min(above)
    beta = min(edge * growth, end) if low is not None else max(edge / growth, end)
    if beta == edge:
        return Search(best, True, f"beta {edge:g} is the limit of the search; {said}: train for more or fewer steps")
    return Search(beta, False, "")


def _points(kls: ArrayLike, rewards: ArrayLike) -> tuple[Floats, Floats]:
    kl, reward = np.asarray(kls, dtype=np.float64), np.asarray(rewards, dtype=np.float64)
    if kl.ndim != 1 or kl.shape != reward.shape:
        raise DataError(f"kls has the shape {kl.shape} and rewards {reward.shape}; give one of each a point")
    return kl, reward
