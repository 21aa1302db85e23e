"""The best reward that any policy can have at a KL, and what share of it a run has reached."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rlhf_pg.errors import DataError
from rlhf_pg.evaluate.clusters import (
    Floats,
    as_table,
    mean_and_error,
    mean_interval,
    percentile_interval,
    renumbered,
    resampled_means,
)
from rlhf_pg.evaluate.tilting import ReferenceSamples

# Above it the intervals of the curve hold the truth (tests/test_optimum.py); below, the bias that is left outgrows the error.
ESS_FLOOR = 10.0


@dataclass(frozen=True, slots=True)
class OptimumPoint:
    """A point of the frontier that no policy can pass.

    Attributes:
        beta: the coefficient, reward units a nat; NaN where no beta reaches the KL that was asked for.
        kl: mean sequence KL, nats, with its clustered standard error.
        reward: mean reward of the optimal policy, corrected for bias, with its clustered standard error.
        low: of the interval for the best reward *at this KL* (errors of the KL included).
        high: of the same.
        plain_reward: before the correction.
        plain_kl: before the correction.
        ess: effective number of samples a prompt, (sum w)^2 / sum w^2, as the harmonic mean over prompts.
        drawn: whether the effective sample size reaches the floor.
        reason: why it is not drawn; empty where it is.
    """

    beta: float
    kl: float
    kl_stderr: float
    reward: float
    reward_stderr: float
    low: float
    high: float
    plain_reward: float
    plain_kl: float
    ess: float
    drawn: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Efficiency:
    """What share of the best possible gain in reward a policy has, at the KL that it spent.

    Attributes:
        value: (reward - reference) / (optimum - reference); None where it cannot be told.
        low: of its interval; None with it.
        high: of the same.
        reward: the policy's mean reward.
        kl: its mean sequence KL, nats.
        reference: the reference's mean reward.
        optimum: the best mean reward at this KL; NaN where the samples of the reference do not reach it.
        ess: the optimum's effective number of samples a prompt there; NaN with it.
        prompts: rows that have a reward of the policy and two of the reference.
        reason: why there is no value; empty where there is one.
    """

    value: float | None
    low: float | None
    high: float | None
    reward: float
    kl: float
    reference: float
    optimum: float
    ess: float
    prompts: int
    reason: str


def optimal_frontier(
    scores: ArrayLike,
    betas: Sequence[float] | None = None,
    *,
    kls: Sequence[float] | None = None,
    prompts: Sequence[str] | None = None,
    completions: Sequence[Sequence[object]] | None = None,
    floor: float = ESS_FLOOR,
    level: float = 0.95,
) -> list[OptimumPoint]:
    """The best mean reward at each mean KL, from scores of the reference's samples alone.

    Args:
        scores: (P, N) rewards of N samples of the reference a prompt, NaN where unscorable.
        betas: coefficients, reward units a nat, above 0. Either these or ``kls``.
        kls: mean sequence KLs, nats; the beta of each is solved for.
        prompts: P texts; rows of the same text are one cluster.
        completions: (P, N) texts or ids: equal ones of a prompt share the mean of their scores.
        floor: the least effective sample size a prompt at which a point is drawn.
        level: of the intervals.

    Returns:
        One point a beta or KL, in the order given; those below the floor say so.

    Raises:
        DataError: both or neither of ``betas`` and ``kls``; a beta that is not positive; scores that cannot be used.

    Source:
        The optimal policy: Korbak et al. 2022 (arXiv 2205.11275). Self-normalised weights: Owen 2013, chapter 9.
    """
    if (betas is None) == (kls is None):
        raise DataError("give either betas or kls, and not both")
    samples = ReferenceSamples.of(scores, prompts, completions)
    if kls is not None:
        return [_point_at(samples, kl, floor, level) for kl in kls]
    assert betas is not None
    return [_point(samples, beta, floor, level) for beta in betas]


def _point_at(samples: ReferenceSamples, kl: float, floor: float, level: float) -> OptimumPoint:
    beta = samples.beta_of(kl)
    if beta is not None:
        return _point(samples, beta, floor, level)
    unknown = math.nan
    reason = f"the samples of the reference reach no optimum at {kl:.3g} nats: more samples a prompt reach further"
    return OptimumPoint(unknown, kl, *(unknown,) * 7, 0.0, False, reason)


def _point(samples: ReferenceSamples, beta: float, floor: float, level: float) -> OptimumPoint:
    tilt = samples.tilt(beta)
    reward, reward_error = mean_and_error(tilt.reward, samples.numbers)
    # Where nearly all weight is on a prompt's single best sample, the correction goes beyond what is possible. It is cut
    # for the mean, not by prompt, which would bias the mean.
    reward = min(reward, float(samples.bests.mean()))
    kl, kl_error = mean_and_error(tilt.kl, samples.numbers)
    # The best reward at KL k is min over beta of beta * (k + log Z): by the envelope theorem, an error in beta does not count.
    height = tilt.reward - beta * tilt.kl
    low, high = (reward + end - float(height.mean()) for end in mean_interval(height, samples.numbers, level))
    ess = tilt.pooled_ess
    reason = "" if ess >= floor else _too_few(ess, floor)
    plain = float(tilt.plain_reward.mean()), float(tilt.plain_kl.mean())
    return OptimumPoint(beta, kl, kl_error, reward, reward_error, low, high, *plain, ess, not reason, reason)


def _too_few(ess: float, floor: float) -> str:
    return (
        f"the effective sample size of the optimum is {ess:.1f} a prompt, below {floor:g}: more samples of the reference "
        "a prompt reach further"
    )


def efficiency(
    rewards: ArrayLike,
    kls: ArrayLike,
    reference_scores: ArrayLike,
    *,
    prompts: Sequence[str] | None = None,
    completions: Sequence[Sequence[object]] | None = None,
    floor: float = ESS_FLOOR,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Efficiency:
    """What share of the best possible gain in reward a policy has, at the KL that it spent.

    ``(R - R_ref) / (R_opt(KL) - R_ref)``. The interval resamples prompt texts, each with the policy's rewards and KLs and
    with the reference's samples, and finds the optimum of each resample at its own KL: the optimum's error is in it.

    Args:
        rewards: (P,) or (P, G) of the policy's completions, NaN where unscorable.
        kls: (P,) or (P, G) their sequence KLs, nats.
        reference_scores: (P, N) rewards of the reference's samples of the same prompts, NaN where unscorable.
        prompts: P texts; rows of the same text are one cluster.
        completions: (P, N) of the reference: equal ones of a prompt share the mean of their scores.
        floor: the least effective sample size a prompt of the optimum.
        level: of the interval.
        resamples: how many.
        seed: of the resamples.

    Returns:
        The efficiency, or why it cannot be told: the KL is not above 0, the optimum is out of reach, or one prompt text.

    Raises:
        DataError: shapes that disagree, or scores that cannot be used.
    """
    reference = ReferenceSamples.of(reference_scores, prompts, completions)
    rows = len(np.asarray(reference_scores))
    reward, kl = _row_means(as_table(rewards, "rewards", rows)), _row_means(as_table(kls, "kls", rows))
    known = ~np.isnan(reward[reference.rows]) & ~np.isnan(kl[reference.rows])
    if not known.any():
        raise DataError("no prompt has both a reward and a KL of the policy and two samples of the reference")
    kept = reference.rows[known]
    samples = ReferenceSamples(reference.scores[known], renumbered(reference.numbers[known]), kept)
    table = np.column_stack([reward[kept], kl[kept], samples.means, samples.bests])
    mean_reward, mean_kl, start, ceiling = (float(x) for x in table.mean(0))
    beta = samples.beta_of(mean_kl)

    def told(optimum: float, ess: float, reason: str, interval: tuple[float, float] | None = None) -> Efficiency:
        low, high = interval or (None, None)
        value = (mean_reward - start) / (optimum - start) if interval else None
        return Efficiency(value, low, high, mean_reward, mean_kl, start, optimum, ess, len(kept), reason)

    if beta is None:
        reason = "its KL is not above 0" if mean_kl <= 0 else f"the samples reach no optimum at {mean_kl:.3g} nats"
        return told(math.nan, math.nan, reason)
    tilt = samples.tilt(beta)
    best, ess = min(float(tilt.reward.mean()), ceiling), tilt.pooled_ess
    clusters = int(samples.numbers.max()) + 1
    if ess < floor:
        return told(best, ess, _too_few(ess, floor))
    if clusters < 2:
        return told(best, ess, "one prompt text shows no error: give more")
    draws = resampled_means(_with_curve(samples, table, beta), samples.numbers, resamples, seed)
    gains = draws[:, 0] - draws[:, 2], _optimum_of_each(draws) - draws[:, 2]
    if min(np.quantile(x, (1 - level) / 2) for x in (draws[:, 1], gains[1])) <= 0:
        return told(best, ess, f"its KL of {mean_kl:.3g} nats, or the gain possible there, is not told apart from 0")
    return told(best, ess, "", percentile_interval(gains[0] / gains[1], level, clusters))


def _row_means(table: Floats) -> Floats:
    """(P,) of what is known in each row, NaN where nothing is."""
    known = ~np.isnan(table)
    count = known.sum(1)
    return np.asarray(np.where(count, np.where(known, table, 0.0).sum(1) / np.maximum(count, 1), np.nan))


GRID = np.exp(np.linspace(np.log(5.0), np.log(0.2), 41))  # KL goes as 1 / beta^2: 1/25 to 25 times the KL of the middle


def _with_curve(samples: ReferenceSamples, table: Floats, beta: float) -> Floats:
    """(P, 4 + 2 * 41): the table, then KL and reward of the optimum at betas around this one."""
    tilts = [samples.tilt(beta * step) for step in GRID]
    return np.column_stack([table, *(tilt.kl for tilt in tilts), *(tilt.reward for tilt in tilts)])


def _optimum_of_each(draws: Floats) -> Floats:
    """(B,) the best reward at each resample's KL, between the points of its own curve.

    The curve is nearly straight over the root of the KL, and starts at the reference, at 0.
    """
    size = len(GRID)
    origin = np.zeros((len(draws), 1))
    depth = np.sqrt(np.maximum(np.column_stack([origin, draws[:, 4 : 4 + size]]), 0.0))
    # Far below the floor the corrected KL can turn back; the curve ends there.
    depth = np.maximum.accumulate(depth, axis=1)
    best = np.column_stack([draws[:, 2], np.minimum(draws[:, 4 + size :], draws[:, 3:4])])
    wanted = np.sqrt(np.maximum(draws[:, 1], 0.0))
    return np.array([np.interp(x, d, b) for x, d, b in zip(wanted, depth, best, strict=True)])
