"""Errors and resamples that respect what was drawn together: all rows of one prompt text are one cluster.

Legend: P prompts (rows), C distinct prompt texts (clusters), K columns, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from rlhf_pg.errors import DataError

Floats = NDArray[np.float64]
Whole = NDArray[np.intp]

MANY = 10**6  # clusters, where the errors are known: Student's t is the normal law


def as_table(values: ArrayLike, name: str, rows: int | None = None) -> Floats:
    """(P, N) in float64; (P,) becomes one column.

    Args:
        values: numbers, NaN where one is not known.
        name: what an error calls them.
        rows: the P that is expected.

    Raises:
        DataError: not one or two axes, another number of rows, or an infinite value.
    """
    table = np.asarray(values, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or not table.size:
        raise DataError(f"{name} has the shape {np.shape(values)}; give a row a prompt and a column a sample")
    if rows is not None and len(table) != rows:
        raise DataError(f"{name} has {len(table)} rows for {rows} prompts; give one row a prompt, in the same order")
    if np.isinf(table).any():
        row, column = np.argwhere(np.isinf(table))[0]
        raise DataError(
            f"{name}, row {row}, column {column} is {table[row, column]}; give finite numbers, or NaN for unknown"
        )
    return table


def cluster_numbers(prompts: Sequence[str] | None, rows: int) -> Whole:
    """(P,) the number of each row's cluster, from 0; without prompt texts each row is its own.

    Raises:
        DataError: another number of prompts than of rows.
    """
    if prompts is None:
        return np.arange(rows)
    if len(prompts) != rows:
        raise DataError(f"prompts has {len(prompts)} texts for {rows} rows of scores; give one text a row")
    numbers = {text: number for number, text in enumerate(dict.fromkeys(prompts))}
    return np.array([numbers[text] for text in prompts], dtype=np.intp)


def renumbered(numbers: Whole) -> Whole:
    """The cluster numbers of the rows that are left, again from 0 without gaps."""
    return np.unique(numbers, return_inverse=True)[1]


def cluster_sums(values: Floats, numbers: Whole) -> Floats:
    """(C, ...) the sum of the rows of each cluster."""
    sums = np.zeros((int(numbers.max()) + 1, *values.shape[1:]))
    np.add.at(sums, numbers, values)
    return sums


def mean_and_error(values: Floats, numbers: Whole) -> tuple[float, float]:
    """The mean of known values (P,) and its clustered standard error; NaN with fewer than two clusters.

    ``se^2 = C / (C - 1) * sum_c (sum_{i in c} (x_i - mean))^2 / P^2``.

    Source:
        Liang & Zeger 1986; Cameron & Miller 2015, equation 11, for a mean.
    """
    mean = float(values.mean())
    sums = cluster_sums(values - mean, numbers)
    if len(sums) < 2:
        return mean, float("nan")
    return mean, float(np.sqrt(len(sums) / (len(sums) - 1) * np.square(sums).sum()) / len(values))


def t_quantile(level: float, clusters: int) -> float:
    """How many standard errors the two-sided interval reaches: Student's t with C - 1 degrees of freedom."""
    return float(stats.t.ppf(0.5 + level / 2, max(clusters - 1, 1)))


def mean_interval(values: Floats, numbers: Whole, level: float) -> tuple[float, float]:
    """The interval of a mean of known values (P,) over clusters, longer on the side of the longer tail.

    The studentised mean T of a skewed sample is skewed; ``W + g W^2 / 3 + g^2 W^3 / 27 + g / (6 C)`` with W = T / sqrt(C) and the
    skewness g is not, and its quantiles are turned back. With g = 0 it is Student's t interval.

    Args:
        values: (P,).
        numbers: (P,) clusters; C of them.
        level: such as 0.95.

    Returns:
        Its ends; NaN with fewer than two clusters.

    Source:
        Hall 1992, On the removal of skewness by transformation.
    """
    mean, error = mean_and_error(values, numbers)
    sums = cluster_sums(values - mean, numbers)
    count = len(sums)
    reach = t_quantile(level, count) / np.sqrt(count)
    skewness = 0.0
    # The sums are rounding errors where all values are equal.
    if count > 2 and error > 1e-12 * max(abs(mean), 1.0):
        skewness = float(stats.skew(sums, bias=False))
    if abs(skewness) < 1e-6:
        return mean - reach * np.sqrt(count) * error, mean + reach * np.sqrt(count) * error
    quantiles = np.array([reach, -reach]) - skewness / (6 * count)
    low, high = mean - error * np.sqrt(count) * 3 / skewness * (np.cbrt(1 + skewness * quantiles) - 1)
    return float(low), float(high)


def resampled_means(values: Floats, numbers: Whole, resamples: int, seed: int) -> Floats:
    """(B, K) means over the rows of C clusters drawn with replacement, the same draws for each column.

    Args:
        values: (P, K).
        numbers: (P,) the rows' clusters.
        resamples: B.
        seed: of the draws; the same seed draws the same clusters.
    """
    sums, sizes = cluster_sums(values, numbers), np.bincount(numbers)
    count = len(sizes)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return np.asarray((draws @ sums) / (draws @ sizes)[:, None])


def percentile_interval(draws: Floats, level: float, clusters: int) -> tuple[float, float]:
    """The interval between two quantiles of the resamples, widened for a small number of clusters.

    The tails are cut where ``t * sqrt(C / (C - 1))`` standard errors of a normal law would cut them.

    Source:
        Hesterberg 2015, What Teachers Should Know about the Bootstrap: the expanded percentile interval.
    """
    reach = t_quantile(level, clusters) * np.sqrt(clusters / max(clusters - 1, 1))
    tail = float(stats.norm.sf(reach))
    low, high = np.quantile(draws, [tail, 1 - tail], method="inverted_cdf")  # no mean of a number and infinity
    return float(low), float(high)
