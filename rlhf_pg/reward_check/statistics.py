"""What is asked of a table of rewards, as pure functions of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlhf_pg.ops.statistics import wilson

QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}
# Two float32 values of one row that differ by less are the same number, summed in another order.
ROUNDING = 1e-5


def distribution(rewards: Tensor) -> dict[str, float]:
    """Mean, standard deviation, extremes, quantiles, the shares of rows at either extreme, and the distinct values.

    Args:
        rewards: (N,) reward units; NaN rows are left out.

    Returns:
        ``rows``, ``mean``, ``sd`` (of the rows, not of the mean), ``min``, ``q05`` to ``q95``, ``max``, ``at_min``,
        ``at_max``, ``distinct``; everything but the counts is NaN without a row.
    """
    x = _known(rewards)
    count = len(x)
    if not count:
        names = ("mean", "sd", "min", *QUANTILES, "max", "at_min", "at_max")
        return {"rows": 0, **dict.fromkeys(names, math.nan), "distinct": 0}
    low, high = x.min(), x.max()
    levels = torch.tensor(list(QUANTILES.values()), dtype=x.dtype)
    return {
        "rows": count,
        "mean": float(x.mean()),
        "sd": float(x.std(correction=0)),
        "min": float(low),
        **dict(zip(QUANTILES, x.quantile(levels).tolist(), strict=True)),
        "max": float(high),
        "at_min": float((x == low).double().mean()),
        "at_max": float((x == high).double().mean()),
        "distinct": len(set(x.tolist())),
    }


def centred(table: Tensor) -> Tensor:
    """(P * G,) each value less the mean of its group; NaN where it is NaN.

    Args:
        table: (P, G).
    """
    return (table - table.nanmean(1, keepdim=True)).flatten()


def tied(table: Tensor) -> tuple[float, int]:
    """The share of groups whose values are all the same, so that a baseline over the group leaves nothing to learn.

    Args:
        table: (P, G) rewards; NaN is left out, and a group with fewer than two known values is not counted.

    Returns:
        The share, NaN without a group, and the number of groups.
    """
    counted = table[(~table.isnan()).sum(1) >= 2].double()
    if not len(counted):
        return math.nan, 0
    high = counted.nan_to_num(nan=-math.inf).amax(1)
    low = counted.nan_to_num(nan=math.inf).amin(1)
    same = high - low <= ROUNDING * (1 + high.abs())
    return float(same.double().mean()), len(counted)


def changes(first: Tensor, second: Tensor) -> dict[str, float]:
    """How far two scorings of the same rows are apart.

    Args:
        first: (N,) rewards; NaN where unscorable.
        second: (N,) likewise.

    Returns:
        ``largest``, the largest absolute difference; ``share`` of the rows that differ by more than rounding
        (``1e-5 * (1 + |first|)``), or that only one of the two could score.
    """
    if not len(first):
        return {"largest": 0.0, "share": 0.0}
    gap = (first.double() - second.double()).abs()
    one_only = first.isnan() != second.isnan()
    differ = (gap > ROUNDING * (1 + first.double().abs())) | one_only
    return {"largest": float(gap.nan_to_num(nan=0.0).max()), "share": float(differ.double().mean())}


def accuracy(pairs: Tensor) -> dict[str, float]:
    """How often the chosen text scores higher than the rejected one; equal scores count half.

    Args:
        pairs: (N, 2) scores of chosen and rejected texts; a pair with a NaN is left out.

    Returns:
        ``pairs``, ``accuracy`` with ``low`` and ``high`` of its interval (Wilson, 95%), and the share of ``ties``.
    """
    known = pairs[~pairs.isnan().any(1)].double()
    margin = known[:, 0] - known[:, 1]
    even = margin.abs() <= ROUNDING * (1 + known[:, 0].abs())
    right = torch.where(even, 0.5, (margin > 0).double())
    share = float(right.mean()) if len(known) else math.nan
    low, high = wilson(share, len(known))
    ties = float(even.double().mean()) if len(known) else math.nan
    return {"pairs": len(known), "accuracy": share, "low": low, "high": high, "ties": ties}


def _known(x: Tensor) -> Tensor:
    return x[~x.isnan()].double()
