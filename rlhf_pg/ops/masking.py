"""Sums, means and whitening over the True positions of a mask."""

from __future__ import annotations

import torch
from torch import Tensor

Dim = int | tuple[int, ...] | None

WHITEN_EPS = 1e-8


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32, or as it is where it is float64 already."""
    return x if x.dtype == torch.float64 else x.float()


def zero_outside(x: Tensor, mask: Tensor) -> Tensor:
    """``x`` in float32 at least, with 0 where the mask is False.

    Applied before any arithmetic: a NaN that is multiplied by 0 afterwards stays NaN, in the gradient too.

    Args:
        x: any shape; positions outside the mask may hold anything, NaN and infinity included.
        mask: bool, broadcastable to ``x``.
    """
    return torch.where(mask, at_least_float32(x), 0.0)


def masked_sum(x: Tensor, mask: Tensor, dim: Dim = None) -> Tensor:
    """Σ x over the positions where the mask is True; 0 where there are none.

    Args:
        x: any shape; positions outside the mask may hold anything.
        mask: bool, broadcastable to ``x``.
        dim: the dimensions to sum over; None sums over all.
    """
    return torch.sum(zero_outside(x, mask), dim=dim)


def masked_mean(x: Tensor, mask: Tensor, dim: Dim = None) -> Tensor:
    """Σ x / n over the n positions where the mask is True; 0, never NaN, where there are none.

    Args:
        x: any shape; positions outside the mask may hold anything.
        mask: bool, broadcastable to ``x``.
        dim: the dimensions to average over; None averages over all.
    """
    count = torch.sum(mask.expand_as(x), dim=dim).clamp(min=1)
    return masked_sum(x, mask, dim) / count


def masked_whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """(x − mean) / sqrt(variance + 1e-8) over the True positions, with the biased variance (divided by n).

    All-equal input gives exact zeros: the rounding of a mean would otherwise be blown up to a signal. Dividing
    advantages by a deviation that they themselves set biases the policy gradient.

    Args:
        x: any shape; positions outside the mask may hold anything.
        mask: bool, the shape of ``x``.
        shift_mean: False adds the mean back, so that only the scale changes.

    Returns:
        The shape of ``x``, 0 outside the mask.
    """
    x = at_least_float32(x)
    mean = masked_mean(x, mask)
    centred = zero_outside(x - mean, mask)
    spread = torch.where(mask, x, -torch.inf).amax() > torch.where(mask, x, torch.inf).amin()
    white = torch.where(spread, centred * torch.rsqrt(masked_mean(centred.square(), mask) + WHITEN_EPS), 0.0)
    return white if shift_mean else zero_outside(white + mean, mask)
