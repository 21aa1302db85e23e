"""Correlations, and the interval of a share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Z = 1.959964  # the normal quantile of a two-sided interval of 95%


def wilson(share: float, count: float) -> tuple[float, float]:
    """Wilson's interval of 95% for a share p of m independent rows; NaN without a row.

    ``(p + z^2/2m ± z sqrt(p (1 - p) / m + z^2 / 4m^2)) / (1 + z^2/m)``

    Source: Wilson (1927).
    """
    if not count:
        return math.nan, math.nan
    middle, width = share + Z**2 / (2 * count), Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return (middle - width) / (1 + Z**2 / count), (middle + width) / (1 + Z**2 / count)


def pearson(x: Tensor, y: Tensor) -> float:
    """Pearson's correlation of the rows in which neither is NaN; NaN where one does not vary.

    Args:
        x: (N,).
        y: (N,).
    """
    both = ~(x.isnan() | y.isnan())
    a, b = (values[both].double() - values[both].double().mean() for values in (x, y))
    scale = float((a.square().sum() * b.square().sum()).sqrt()) if both.any() else 0.0
    return float((a * b).sum()) / scale if scale > 0 else math.nan


def spearman(x: Tensor, y: Tensor) -> float:
    """Spearman's correlation: Pearson's of the ranks, equal values sharing the mean of theirs; else as :func:`pearson`."""
    both = ~(x.isnan() | y.isnan())
    return pearson(_ranks(x[both]), _ranks(y[both]))


def _ranks(x: Tensor) -> Tensor:
    """(N,) ranks from 1; equal values share the mean of theirs."""
    ordered = x.sort().values
    first, last = (torch.searchsorted(ordered, x, right=right).double() for right in (False, True))
    return (first + 1 + last) / 2
