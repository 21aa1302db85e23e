"""Means with errors that respect what was drawn together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def clustered_mean(values: Tensor, clusters: Sequence[str]) -> tuple[float, float]:
    """The mean, and its standard error when rows of a cluster are not independent.

    ``se^2 = C / (C - 1) * sum_c (sum_{i in c} (x_i - mean))^2 / n^2``: all completions of one prompt text are one cluster.

    Args:
        values: (N,); NaN rows are left out.
        clusters: N names.

    Returns:
        Mean and standard error; the error is NaN with fewer than two clusters, both are without a value.

    Source:
        Liang & Zeger 1986; Cameron & Miller 2015, equation 11, for a mean.
    """
    known = ~values.isnan()
    x = values[known].double()
    if not len(x):
        return float("nan"), float("nan")
    names = [name for name, keep in zip(clusters, known.tolist(), strict=True) if keep]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    index = torch.tensor([numbers[name] for name in names])
    mean = x.mean()
    sums = torch.zeros(len(numbers), dtype=torch.float64).index_add(0, index, x - mean)
    count = len(numbers)
    if count < 2:
        return float(mean), float("nan")
    variance = count / (count - 1) * sums.square().sum() / len(x) ** 2
    return float(mean), float(variance.sqrt())


def win_rates(scores: Tensor, reference_scores: Tensor) -> Tensor:
    """(P,) share of the pairs (policy's completion, reference's) of a prompt that the policy wins; ties count half.

    Args:
        scores: (P, G), NaN where unscorable.
        reference_scores: (P, H), the reference's own completions of the same prompts, drawn with other numbers.

    Returns:
        NaN where a prompt has no pair.
    """
    ours, theirs = scores[:, :, None].double(), reference_scores[:, None, :].double()
    wins = torch.where((ours - theirs).isnan(), torch.nan, (ours > theirs).double() + 0.5 * (ours == theirs).double())
    return wins.flatten(1).nanmean(1)
