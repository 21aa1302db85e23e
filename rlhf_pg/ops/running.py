"""Mean and deviation of values that come in parts."""

from __future__ import annotations

from torch import Tensor

Moments = tuple[float, float, float]  # count, mean, sum of squared deviations
NONE: Moments = (0.0, 0.0, 0.0)


def merge(moments: Moments, values: Tensor) -> Moments:
    """The moments of all values seen, these included.

    ``M2 = M2_a + M2_b + delta^2 * n_a * n_b / (n_a + n_b)`` with ``delta = mean_b - mean_a``

    Args:
        moments: of the values before.
        values: (N,) any float; N may be 0.

    Source: Chan, Golub & LeVeque (1983), "Algorithms for computing the sample variance", eq. 2.1.
    """
    if not len(values):
        return moments
    values = values.double()
    before, mean_before, m2_before = moments
    count, mean = float(len(values)), float(values.mean())
    m2 = float((values - mean).square().sum())
    delta = mean - mean_before
    whole = before + count
    return whole, mean_before + delta * count / whole, m2_before + m2 + delta**2 * before * count / whole


def mean_and_deviation(moments: Moments) -> tuple[float, float]:
    """The mean, and the deviation (by n) to divide by: 1 where all values were equal, or there were none."""
    count, mean, m2 = moments
    return mean, (m2 / count) ** 0.5 or 1.0 if count else 1.0
