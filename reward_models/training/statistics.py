"""How good a reward model is, as pure functions of its scores: accuracy with an interval, calibration, correlation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_pg.ops.statistics import wilson


def share_interval(correct: Tensor, clusters: Sequence[str]) -> tuple[float, float, float]:
    """A share with its Wilson interval of 95%, for rows that are independent between clusters alone.

    ``m = n sum_i (x_i - p)^2 / sum_c (sum_{i in c} (x_i - p))^2``, at most n, is the effective number of rows: with one
    row a cluster it is n. Where all rows are alike the data do not show their dependence, and m is the number of
    clusters.

    Args:
        correct: (N,) 0 or 1, or 0.5 for a tie.
        clusters: N names: rows of a prompt are one cluster.

    Returns:
        Share, lower and upper end; NaN without a row.

    Source: the effective number: Korn & Graubard (1998).
    """
    n = len(correct)
    if not n:
        return math.nan, math.nan, math.nan
    x = correct.double()
    p = float(x.mean())
    numbers = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    index = torch.tensor([numbers[name] for name in clusters])
    between = float(torch.zeros(len(numbers), dtype=x.dtype).index_add(0, index, x - p).square().sum())
    m = min(float(n), n * float((x - p).square().sum()) / between) if between > 0 else float(len(numbers))
    return p, *wilson(p, m)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Stated confidence against the share that was right, by bins of equal width.

    ``error = sum_b n_b / N |share right in b - mean confidence in b|``

    Source: Naeini et al. (2015); Guo et al., arXiv 1706.04599, eq. 3.
    """

    low: float  # where the first bin begins; the last ends at 1
    counts: tuple[int, ...]
    confidence: tuple[float, ...]  # the bins' means; NaN where empty
    right: tuple[float, ...]

    @property
    def error(self) -> float:
        """The expected calibration error; NaN without a row."""
        total = sum(self.counts)
        bins = zip(self.counts, self.confidence, self.right, strict=True)
        return sum(n * abs(right - said) for n, said, right in bins if n) / total if total else math.nan


def calibration(confidence: Tensor, right: Tensor, low: float, bins: int = 10) -> Calibration:
    """Sort rows into bins by their confidence.

    Args:
        confidence: (N,) in [low, 1], of what the model says.
        right: (N,) whether that was so; 0.5 where the data say neither.
        low: the least confidence there can be: 0.5 between two, 1/K between K.
        bins: of equal width.
    """
    place = ((confidence.double() - low) / (1 - low) * bins).long().clamp(0, bins - 1)
    inside = [place == number for number in range(bins)]
    means = [
        tuple(float(values[rows].double().mean()) if rows.any() else math.nan for rows in inside)
        for values in (confidence, right)
    ]
    return Calibration(low, tuple(int(rows.sum()) for rows in inside), means[0], means[1])


def spread(x: Tensor) -> dict[str, float]:
    """Mean, standard deviation (of the rows, not of the mean), and the quantiles 5%, 50% and 95% of (N,)."""
    values = x.double()
    low, middle, high = values.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)).tolist()
    return {
        "mean": float(values.mean()),
        "sd": float(values.std(correction=0)),
        "q05": low,
        "median": middle,
        "q95": high,
    }
