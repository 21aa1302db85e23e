"""Best of n: what taking the best of n samples of the reference is worth, and what it costs in KL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import xlogy

from rlhf_pg.errors import DataError
from rlhf_pg.evaluate.clusters import (
    Floats,
    Whole,
    as_table,
    cluster_numbers,
    mean_and_error,
    mean_interval,
    renumbered,
)


@dataclass(frozen=True, slots=True)
class BestOfN:
    """The best of n by the proxy, averaged over prompts; errors and intervals are clustered by prompt text.

    Attributes:
        n: how many samples the best was taken of.
        reward: the winner's proxy score, reward units.
        gold: the winner's gold score, gold's units; NaN where no gold was given.
        win_rate: against one more sample of the reference, ties half; NaN where no prompt has a sample to spare.
        kl: of the distribution of winners against the reference, nats.
        kl_bound: log n - (n - 1) / n, nats: what the KL is at most, and is where no two samples score alike.
        prompts: rows with n scorable samples, over which all is averaged.
        left_out: rows with fewer.
    """

    n: int
    reward: float
    reward_stderr: float
    reward_interval: tuple[float, float]
    gold: float
    gold_stderr: float
    gold_interval: tuple[float, float]
    win_rate: float
    win_rate_stderr: float
    win_rate_interval: tuple[float, float]
    kl: float
    kl_stderr: float
    kl_interval: tuple[float, float]
    kl_bound: float
    prompts: int
    left_out: int


def best_of_n(
    scores: ArrayLike,
    n: int,
    gold: ArrayLike | None = None,
    prompts: Sequence[str] | None = None,
    *,
    level: float = 0.95,
) -> BestOfN:
    """The best of n samples of the reference, without bias, from all n-subsets of N samples a prompt.

    With a prompt's m scorable samples in rising order, ``E[best] = sum_i C(i-1, n-1) / C(m, n) * x_i``: of all n-subsets,
    that share has sample i as its best. Samples that tie share their weight. The opponent of the win rate is one of the m - n
    samples outside the subset. The KL takes scores that occur more than once as atoms of their observed frequency, and the
    others as a continuum, in which it is the bound; what half of the samples say corrects its bias.

    Args:
        scores: (P, N) the proxy's scores of samples of the reference, NaN where unscorable: such samples take no part.
        n: at least 1; at most N.
        gold: (P, N) what the winner is worth; where it is NaN, the other samples of a prompt speak for it.
        prompts: P texts; rows of the same text are one cluster.
        level: of the intervals.

    Returns:
        Means over the prompts with at least n scorable samples.

    Raises:
        DataError: n is below 1, or no prompt has n scorable samples; or the shapes disagree.

    Source:
        Nakano et al. 2021 (arXiv 2112.09332) for the estimator; Beirami et al. 2024 (arXiv 2401.01879) for the
        KL and its bound.
    """
    table = as_table(scores, "scores")
    golden = None if gold is None else as_table(gold, "gold", len(table))
    if golden is not None and golden.shape != table.shape:
        raise DataError(f"gold has the shape {golden.shape} and scores {table.shape}; give one gold score a sample")
    numbers, counts = cluster_numbers(prompts, len(table)), (~np.isnan(table)).sum(1)
    keep = counts >= n
    if n < 1 or not keep.any():
        raise DataError(f"n is {n}; give 1 to {counts.max()}, the most scorable samples that a prompt has")
    rows = np.array(
        [_of_prompt(table[row], None if golden is None else golden[row], n) for row in np.flatnonzero(keep)]
    )
    reward, golds, wins, kl = (_summary(column, numbers[keep], level) for column in rows.T)
    kl = min(kl[0], kl_bound(n)), *kl[1:]
    return BestOfN(n, *reward, *golds, *wins, *kl, kl_bound(n), int(keep.sum()), int((~keep).sum()))


def kl_bound(n: int) -> float:
    """log n - (n - 1) / n, nats: the most that best of n can cost."""
    return math.log(n) - (n - 1) / n


def exact_best_of_n(probabilities: ArrayLike, scores: ArrayLike, n: int) -> tuple[float, float]:
    """Reward and KL of best of n where the whole distribution is known; samples that tie win alike.

    ``P(best = v) = F(v)^n - F(v-)^n`` for each score v, and the winner's probability is shared as the reference shares it,
    so that ``KL = sum_v P(best = v) log(P(best = v) / P(v))``.

    Args:
        probabilities: (K,) of the reference, summing to 1.
        scores: (K,), reward units.
        n: at least 1.

    Returns:
        The expected reward, and the KL in nats.
    """
    values, group = np.unique(np.asarray(scores, dtype=np.float64), return_inverse=True)
    mass = np.bincount(group, np.asarray(probabilities, dtype=np.float64))
    top = np.minimum(np.cumsum(mass), 1.0)
    best = np.diff(top**n, prepend=0.0)
    return float(best @ values), float((xlogy(best, best) - xlogy(best, mass)).sum())


def _summary(column: Floats, numbers: Whole, level: float) -> tuple[float, float, tuple[float, float]]:
    """Mean, standard error and interval of what is known."""
    known = ~np.isnan(column)
    if not known.any():
        return math.nan, math.nan, (math.nan, math.nan)
    values, kept = column[known], renumbered(numbers[known])
    return *mean_and_error(values, kept), mean_interval(values, kept, level)


def _of_prompt(scores: Floats, gold: Floats | None, n: int) -> tuple[float, float, float, float]:
    """Reward, gold, win rate and KL of one prompt."""
    known = ~np.isnan(scores)
    order = np.argsort(scores[known], kind="stable")
    x, m = scores[known][order], len(order)
    rank = np.arange(1, m + 1)
    # From the top down: n / m for the best sample, and (i - n) / (i - 1) times that of sample i for the one below it.
    steps = np.concatenate([[n / m], np.maximum(rank[:0:-1] - n, 0) / (rank[:0:-1] - 1)])
    weight = np.cumprod(steps)[::-1]
    _, group, sizes = np.unique(x, return_inverse=True, return_counts=True)
    shared = (np.bincount(group, weight) / sizes)[group]
    value = math.nan
    if gold is not None:
        g = gold[known][order]
        spoken = ~np.isnan(g)
        told = np.bincount(group, spoken, len(sizes))[group]
        # A score's weight goes to those of its samples that have a gold score.
        share = np.where(spoken, shared * sizes[group] / np.maximum(told, 1), 0.0)
        value = float(share @ np.where(spoken, g, 0.0) / share.sum()) if share.sum() > 0 else math.nan
    # The plain KL is low by the order of 1 / m, and by twice that from half of the samples.
    halves = [np.unique(part, return_counts=True)[1] for part in (scores[known][::2], scores[known][1::2]) if len(part)]
    kl = 2 * _kl(sizes, n) - float(np.mean([_kl(half, n) for half in halves]))
    return float(weight @ x), value, _wins(weight, group, sizes, n), kl


def _wins(weight: Floats, group: Whole, sizes: Whole, n: int) -> float:
    """How often the best of an n-subset beats a sample outside of it, ties half."""
    m, position = len(weight), np.arange(len(weight))
    if m == n:
        return math.nan
    below = (np.cumsum(sizes) - sizes)[group]
    tied_below, tied_above = position - below, sizes[group] - 1 - (position - below)
    # Of the samples sorted below the winner, n - 1 are in its subset: the others are left as opponents.
    left = np.maximum(position - (n - 1), 0) / np.maximum(position, 1)
    return float(weight @ (left * (below + 0.5 * tied_below) + 0.5 * tied_above) / (m - n))


def _kl(sizes: Whole, n: int) -> float:
    """The KL of best of n, from how many samples have each score, in rising order."""
    top = np.cumsum(sizes) / sizes.sum()
    bottom = top - sizes / sizes.sum()
    bottom[0] = 0.0
    best = top**n - bottom**n
    atoms = xlogy(best, best) - xlogy(best, sizes / sizes.sum())
    # The integral of n u^(n-1) log(n u^(n-1)) between the two.
    spread = _log_density(top, n) - _log_density(bottom, n)
    return float(np.where(sizes > 1, atoms, spread).sum())


def _log_density(u: Floats, n: int) -> Floats:
    power = u**n
    return np.asarray(power * math.log(n) + (n - 1) * (xlogy(power, u) - power / n))
