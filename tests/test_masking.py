from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf_pg.ops.masking import masked_mean, masked_sum, masked_whiten, zero_outside

X = torch.tensor([[1.0, 2.0, 3.0], [4.0, torch.nan, torch.inf]])
MASK = torch.tensor([[True, True, False], [True, False, False]])
NOTHING = torch.zeros(2, 3, dtype=torch.bool)
NINE = torch.tensor([1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0])


def test_masked_sum_and_mean_by_hand() -> None:
    assert masked_sum(X, MASK).item() == 1 + 2 + 4
    assert masked_sum(X, MASK, dim=1).tolist() == [3.0, 4.0]
    assert masked_sum(X, MASK, dim=0).tolist() == [5.0, 2.0, 0.0]
    assert masked_sum(X, MASK, dim=(0, 1)).item() == 7.0
    assert masked_mean(X, MASK).item() == pytest.approx(7 / 3)
    assert masked_mean(X, MASK, dim=1).tolist() == [1.5, 4.0]
    assert masked_mean(X, MASK, dim=0).tolist() == [2.5, 2.0, 0.0]


def test_an_empty_mask_gives_zero() -> None:
    assert masked_sum(X, NOTHING).item() == 0.0
    assert masked_mean(X, NOTHING).item() == 0.0
    assert masked_mean(X, NOTHING, dim=1).tolist() == [0.0, 0.0]
    assert masked_whiten(X, NOTHING).tolist() == [[0.0] * 3] * 2


def test_a_mask_of_one_column_is_broadcast() -> None:
    rows = torch.tensor([[True], [False]])
    assert masked_sum(X, rows).item() == 6.0
    assert masked_mean(X, rows).item() == 2.0
    assert masked_mean(X, rows, dim=1).tolist() == [2.0, 0.0]


def test_whitening_with_the_biased_variance_by_hand() -> None:
    """Mean 1.6, variance (.16 + .09 + .04 + .01) * 2 / 9 = .0667, deviation .2582: -.4 / .2582 + 1.6 = .0508."""
    ones = torch.ones(9, dtype=torch.bool)
    assert masked_whiten(NINE, ones, shift_mean=False)[0].item() == pytest.approx(0.0508, abs=5e-5)
    assert masked_whiten(NINE, ones)[0].item() == pytest.approx(-0.4 / math.sqrt(0.6 / 9), rel=1e-5)


def test_whitening_leaves_padding_out() -> None:
    padded = torch.cat([NINE, torch.tensor([torch.nan, 1e9])])
    mask = torch.arange(11) < 9
    for shift_mean in (True, False):
        expected = masked_whiten(NINE, mask[:9], shift_mean)
        torch.testing.assert_close(masked_whiten(padded, mask, shift_mean)[:9], expected)
        assert masked_whiten(padded, mask, shift_mean)[9:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whitening_equal_values_gives_exact_zeros(dtype: torch.dtype) -> None:
    equal = torch.full((2, 3), 0.1, dtype=dtype)
    assert torch.equal(masked_whiten(equal, MASK), torch.zeros(2, 3, dtype=dtype))
    kept = masked_whiten(equal, MASK, shift_mean=False)
    torch.testing.assert_close(kept, torch.where(MASK, equal, 0.0))


def test_dtypes() -> None:
    for function in (masked_sum, masked_mean, masked_whiten):
        assert function(X.bfloat16(), MASK).dtype == torch.float32
        assert function(X.double(), MASK).dtype == torch.float64
    assert masked_sum(torch.tensor([1, 2]), torch.tensor([True, True])).item() == 3.0
    many = torch.ones(1000, dtype=torch.bfloat16)
    assert masked_sum(many, torch.ones(1000, dtype=torch.bool)).item() == 1000.0


@pytest.mark.parametrize("function", [masked_sum, masked_mean, masked_whiten, zero_outside])
def test_gradients_are_finite_and_nothing_is_mutated(function: object) -> None:
    assert callable(function)
    x, mask = X.clone().requires_grad_(), MASK.clone()
    result: Tensor = function(x, mask)
    result.square().sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert (x.grad[~MASK] == 0).all()
    assert torch.equal(x.detach().nan_to_num(), X.nan_to_num())
    assert torch.equal(mask, MASK)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-100, 100), st.booleans()), min_size=1, max_size=12))
def test_whitened_values_have_mean_0_and_variance_1(pairs: list[tuple[float, bool]]) -> None:
    x = torch.tensor([value for value, _ in pairs], dtype=torch.float64)
    mask = torch.tensor([inside for _, inside in pairs])
    white = masked_whiten(x, mask)
    kept = x[mask]
    assert abs(masked_mean(white, mask).item()) < 1e-6
    if kept.numel() and kept.var(unbiased=False) > 1e-2:
        assert masked_mean(white.square(), mask).item() == pytest.approx(1.0, abs=1e-5)
