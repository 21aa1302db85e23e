"""Where the proxy stops meaning what it says: the fits of Gao et al. to gold reward against KL, and a verdict in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from scipy.special import xlogy

from rlhf_pg.errors import DataError
from rlhf_pg.evaluate.clusters import (
    MANY,
    Floats,
    Whole,
    as_table,
    cluster_numbers,
    mean_and_error,
    percentile_interval,
    renumbered,
    resampled_means,
)

Kind = Literal["bon", "rl"]
Outcome = Literal["peak", "rises", "falls", "unclear"]

FEWEST_RUNS = 6  # to be resampled; fewer show too little of how runs differ


@dataclass(frozen=True, slots=True)
class Overoptimisation:
    """A fit of gold reward to d = sqrt(KL), with what it says and what it cannot say.

    Attributes:
        kind: "bon": ``d * (alpha - beta * d)``; "rl": ``d * (alpha - beta * log d)``.
        alpha: gold units a root of a nat; at small d what a step away is worth.
        alpha_low: of its interval.
        alpha_high: of the same.
        beta: how fast that is lost; above 0 gold has a peak.
        beta_low: of its interval.
        beta_high: of the same.
        peak_kl: nats, where the fit is highest; None where it has no peak.
        peak_low: of its interval, in which a resample without a peak counts as infinity, or as 0 where it has fallen below the
            reference at the largest KL.
        peak_high: of the same; may be infinite.
        peak_gold: the fit's gold at the peak, the reference's included; None with it.
        smallest_kl: of the points above 0, nats.
        largest_kl: of the points.
        chi_square: of the residuals by their errors; NaN where no errors were given.
        misfit: the chance of a larger chi-square if the form were true; NaN with it.
        reference: the gold reward at d = 0.
        level: of the intervals.
    """

    kind: Kind
    alpha: float
    alpha_low: float
    alpha_high: float
    beta: float
    beta_low: float
    beta_high: float
    peak_kl: float | None
    peak_low: float
    peak_high: float
    peak_gold: float | None
    smallest_kl: float
    largest_kl: float
    chi_square: float
    misfit: float
    reference: float
    level: float

    @property
    def outcome(self) -> Outcome:
        """What the interval of the peak says of the KLs that were measured."""
        if self.peak_high < self.smallest_kl:
            return "falls"
        if self.peak_low > self.largest_kl:
            return "rises"
        return "peak" if self.peak_high <= self.largest_kl else "unclear"

    @property
    def verdict(self) -> str:
        """The same in words, with the reason where the data cannot tell."""
        largest = f"{self.largest_kl:.3g} nats, the largest KL measured"
        interval = f"{self.level:.0%} interval {self.peak_low:.3g} to {self.peak_high:.3g}"
        if self.outcome == "falls":
            said = f"Gold falls from the first: the fit has its peak below {self.smallest_kl:.3g} nats, the smallest KL measured"
        elif self.outcome == "rises":
            said = f"Gold still rises at {largest}: where it peaks, the data cannot tell"
        elif self.outcome == "peak":
            assert self.peak_kl is not None
            assert self.peak_gold is not None
            end = float(self.gold_at([self.largest_kl])[0])
            said = (
                f"Gold peaks at a KL of {self.peak_kl:.3g} nats ({interval}), {self.peak_gold - self.reference:+.3g} from the "
                f"reference; at {largest}, the fit is {self.peak_gold - end:.3g} below its peak"
            )
        elif self.beta_low <= 0 <= self.beta_high:
            said = (
                f"The data cannot tell whether gold peaks: beta is not told apart from 0 ({self.level:.0%} interval "
                f"{self.beta_low:.3g} to {self.beta_high:.3g})"
            )
        else:
            said = f"The data cannot tell where gold peaks: the {interval} nats reaches beyond {largest}"
        if self.misfit < 0.01:
            badly = (
                f"The form fits the points badly (chi-square {self.chi_square:.3g}): trust the points before the curve"
            )
            said = f"{badly}. By the fit: {said[0].lower()}{said[1:]}"
        return said + "."

    def gold_at(self, kls: ArrayLike) -> Floats:
        """The fitted gold reward at these KLs (nats), the reference's included."""
        return np.asarray(
            self.reference + _columns(np.asarray(kls, dtype=np.float64), self.kind) @ [self.alpha, self.beta]
        )


def fit_overoptimisation(
    kl: ArrayLike,
    gold: ArrayLike,
    stderr: ArrayLike | None = None,
    kind: Kind = "rl",
    *,
    reference: float = 0.0,
    by_prompt: ArrayLike | None = None,
    prompts: Sequence[str] | None = None,
    runs: Sequence[str] | None = None,
    level: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> Overoptimisation:
    """Fit gold reward to the root of the KL, by weighted least squares, and find where it is highest.

    With d = sqrt(KL), ``R(d) = d * (alpha - beta * d)`` for best of n, and ``R(d) = d * (alpha - beta * log d)`` for RL; both
    are linear in alpha and beta, and highest at ``d = alpha / (2 beta)`` and ``d = exp(alpha / beta - 1)``. Points measured
    on the same prompts share their luck, and so do the checkpoints of a run: the intervals resample prompt texts where
    ``by_prompt`` is given, and runs where there are six or more; with neither, they take the points as independent. Without
    resampled runs the errors are scaled up by the root of chi-square a degree of freedom, where that is above 1.

    Args:
        kl: (M,) sequence KL of each point, nats, at least 0, taken as known.
        gold: (M,) mean gold reward of each.
        stderr: (M,) its standard error, which gives the weights; left out, it comes from ``by_prompt``, or all weigh alike and
            the scatter gives the error.
        kind: "bon" or "rl".
        reference: the reference's mean gold, the value at d = 0.
        by_prompt: (P, M) mean gold of each prompt at each point, less the reference's on that prompt; a prompt with a NaN is
            left out.
        prompts: P texts; rows of the same text are one cluster.
        runs: M names.
        level: of the intervals.
        resamples: how many.
        seed: of the resamples.

    Raises:
        DataError: fewer than three different KLs above 0, a negative KL, an error that is not positive, or shapes that disagree.

    Source:
        Gao, Schulman, Hilton 2022 (arXiv 2210.10760).
    """
    x, y = _column(kl, "kl"), _column(gold, "gold", len(np.asarray(kl))) - reference
    if (x < 0).any() or len(np.unique(x[x > 0])) < 3:
        raise DataError(f"kl is {x.tolist()}; two coefficients need three different KLs above 0, and none below")
    if kind not in ("bon", "rl"):
        raise DataError(f'kind is {kind!r}; give "bon" or "rl"')
    paired = None if by_prompt is None else _paired(by_prompt, prompts, len(x))
    errors = _errors(stderr, paired, len(x))
    design, target = _columns(x, kind) / errors[:, None], y / errors
    best = np.linalg.pinv(design) @ target
    freedom, chi_square = len(x) - 2, float(np.square(target - design @ best).sum())
    known = stderr is not None or paired is not None
    ratio = max(chi_square / freedom, 1.0) if known else chi_square / freedom
    if paired is not None:
        spread, units = _over_prompts(design, errors, *paired, resamples, seed)
    else:
        covariance = np.linalg.inv(design.T @ design)
        spread = np.random.default_rng(seed).multivariate_normal(np.zeros(2), covariance, resamples)
        units = MANY if known else freedom + 1
    names = None if runs is None else cluster_numbers(runs, len(x))
    if names is None or names.max() + 1 < FEWEST_RUNS:
        spread = spread * math.sqrt(ratio)
    else:
        over_runs = _over_runs(design, target, names, resamples, seed + 1) - best
        spread, units = over_runs + (spread if paired is not None else 0.0), min(units, int(names.max()) + 1)
    draws = best + spread
    alpha, beta = (percentile_interval(column, level, units) for column in draws.T)
    peaks, peak = _peaks(draws, kind, float(x.max())), float(_peaks(best[None], kind, float(x.max()))[0])
    low, high = percentile_interval(peaks, level, units)
    peak_gold = float((_columns(np.array([peak]), kind) @ best)[0]) + reference if math.isfinite(peak) else None
    return Overoptimisation(
        kind=kind,
        alpha=float(best[0]),
        alpha_low=alpha[0],
        alpha_high=alpha[1],
        beta=float(best[1]),
        beta_low=beta[0],
        beta_high=beta[1],
        peak_kl=peak if math.isfinite(peak) else None,
        peak_low=low,
        peak_high=high,
        peak_gold=peak_gold,
        smallest_kl=float(x[x > 0].min()),
        largest_kl=float(x.max()),
        chi_square=chi_square if known else math.nan,
        misfit=float(stats.chi2.sf(chi_square, freedom)) if known else math.nan,
        reference=reference,
        level=level,
    )


def _column(values: ArrayLike, name: str, rows: int | None = None) -> Floats:
    table = as_table(values, name, rows)
    if table.shape[1] != 1 or np.isnan(table).any():
        raise DataError(f"{name} has the shape {table.shape} or a NaN; give one known number a point")
    return table[:, 0]


def _columns(kl: Floats, kind: Kind) -> Floats:
    """(M, 2): what alpha and beta are multiplied with."""
    d = np.sqrt(kl)
    return np.column_stack([d, -d * d if kind == "bon" else -xlogy(d, d)])


def _paired(by_prompt: ArrayLike, prompts: Sequence[str] | None, points: int) -> tuple[Floats, Whole]:
    """The prompts that have a value at each point, and their clusters."""
    table = as_table(by_prompt, "by_prompt")
    if table.shape[1] != points:
        raise DataError(f"by_prompt has {table.shape[1]} columns for {points} points; give one a point")
    whole = ~np.isnan(table).any(1)
    numbers = renumbered(cluster_numbers(prompts, len(table))[whole])
    if not whole.any() or numbers.max() < 1:
        raise DataError("by_prompt has fewer than two prompt texts with a value at each point; give more prompts")
    return table[whole], numbers


def _errors(stderr: ArrayLike | None, paired: tuple[Floats, Whole] | None, points: int) -> Floats:
    """(M,) standard errors, which weigh the points."""
    if stderr is not None:
        errors = _column(stderr, "stderr", points)
    elif paired is not None:
        errors = np.array([mean_and_error(column, paired[1])[1] for column in paired[0].T])
    else:
        return np.ones(points)
    if not (errors > 0).all():
        raise DataError(f"the standard errors of gold are {errors.tolist()}; leave out points without one above 0")
    return errors


def _over_prompts(
    design: Floats, errors: Floats, table: Floats, numbers: Whole, resamples: int, seed: int
) -> tuple[Floats, int]:
    """(B, 2) how far the coefficients move when prompt texts are resampled, and how many texts there are.

    The fit is linear in gold, so each prompt has its own coefficients, and theirs is their mean.
    """
    each = table / errors @ np.linalg.pinv(design).T
    return resampled_means(each - each.mean(0), numbers, resamples, seed), int(numbers.max()) + 1


def _over_runs(design: Floats, target: Floats, names: Whole, resamples: int, seed: int) -> Floats:
    """(B, 2) the coefficients when whole runs are drawn with replacement."""
    count = int(names.max()) + 1
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)[:, names]
    left = np.einsum("bm,mi,mj->bij", times, design, design)
    right = np.einsum("bm,mi,m->bi", times, design, target)
    return np.asarray(np.einsum("bij,bj->bi", np.linalg.pinv(left), right))


def _peaks(coefficients: Floats, kind: Kind, top: float) -> Floats:
    """(B,) KL at which each fit is highest: infinite where it rises for ever, 0 where it is below the reference at ``top``."""
    alpha, beta = coefficients.T
    safe = np.where(beta > 0, beta, 1.0)
    with np.errstate(over="ignore"):
        d = np.maximum(alpha / (2 * safe), 0.0) if kind == "bon" else np.exp(alpha / safe - 1)
        bent = np.square(d)
    open_ended = np.where(_columns(np.array([top]), kind)[0] @ coefficients.T > 0, np.inf, 0.0)
    return np.where(beta > 0, bent, open_ended)
