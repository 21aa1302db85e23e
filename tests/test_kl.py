from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_pg.ops.kl import KlEstimator, adapt_coefficient, exact_kl, kl_estimate

P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
Q = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
ESTIMATORS: list[KlEstimator] = ["k1", "k2", "k3"]


def test_averages_by_hand() -> None:
    """KL = .5 ln 2.5 + .3 ln 1 + .2 ln .4 = .3 ln 2.5 = .2749; k2: .7 (ln 2.5)^2 / 2 = .2939."""
    d = math.log(2.5)
    expected = {"k1": 0.3 * d, "k2": 0.7 * d**2 / 2, "k3": 0.3 * d}
    assert expected["k1"] == pytest.approx(0.2749, abs=5e-5)
    assert expected["k2"] == pytest.approx(0.2939, abs=5e-5)
    for name in ESTIMATORS:
        average = (P * kl_estimate(P.log()[None], Q.log()[None], name)[0]).sum().item()
        assert average == pytest.approx(expected[name], rel=1e-12)
    assert exact_kl(P.log(), Q.log()).item() == pytest.approx(0.3 * d, rel=1e-12)


def test_the_sign_is_policy_against_reference() -> None:
    """A token that the policy makes likelier than the reference costs: d = ln .5 - ln .2 > 0."""
    assert kl_estimate(P.log()[None], Q.log()[None], "k1")[0, 0].item() == pytest.approx(math.log(2.5))
    d = math.log(2.5)
    assert kl_estimate(P.log()[None], Q.log()[None], "k3")[0, 0].item() == pytest.approx(0.4 - 1 + d)


def test_unknown_estimator() -> None:
    with pytest.raises(ValueError, match="k4"):
        kl_estimate(P, Q, "k4")  # type: ignore[arg-type]


def test_k3_stays_finite_where_exp_overflows() -> None:
    logprobs = torch.tensor([[-90.0, -0.5]], requires_grad=True)
    values = kl_estimate(logprobs, torch.tensor([[-0.1, -0.5]]), "k3")
    assert torch.isfinite(values).all()
    assert values[0, 0].item() == pytest.approx(math.exp(20) - 1 - 20, rel=1e-5)
    values.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[0.0, 0.0]]


def test_k3_keeps_its_gradient_below_the_clamp() -> None:
    """The derivative of exp(-d) - 1 + d is 1 - exp(-d)."""
    d = torch.tensor([[-19.0, -1.0, 0.5, 30.0]], dtype=torch.float64, requires_grad=True)
    kl_estimate(d, torch.zeros(1, 4, dtype=torch.float64), "k3").sum().backward()
    assert d.grad is not None
    torch.testing.assert_close(d.grad, 1 - torch.exp(-d.detach()))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_the_mask_keeps_padding_out_of_result_and_gradient(estimator: KlEstimator, garbage: float) -> None:
    mask = torch.tensor([[True, True, False]])
    logprobs = torch.tensor([[-1.0, -2.0, garbage]], requires_grad=True)
    ref = torch.tensor([[-1.5, -1.0, garbage]])
    values = kl_estimate(logprobs, ref, estimator, mask)
    torch.testing.assert_close(values[:, :2], kl_estimate(logprobs.detach(), ref, estimator)[:, :2])
    assert values[0, 2].item() == 0.0
    values.sum().backward()
    assert logprobs.grad is not None
    assert torch.isfinite(logprobs.grad).all()
    assert logprobs.grad[0, 2].item() == 0.0


def test_dtypes_are_raised_to_float32() -> None:
    for name in ESTIMATORS:
        assert kl_estimate(P.bfloat16(), Q.bfloat16(), name).dtype == torch.float32
        assert kl_estimate(P, Q, name).dtype == torch.float64
    assert exact_kl(P.bfloat16(), Q.bfloat16()).dtype == torch.float32
    assert exact_kl(P, Q).dtype == torch.float64


def test_exact_kl_of_many_positions_and_its_invariances() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    ref = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    p, q = torch.softmax(logits, -1), torch.softmax(ref, -1)
    expected = (p * (p / q).log()).sum(-1)
    torch.testing.assert_close(exact_kl(logits, ref), expected)
    torch.testing.assert_close(exact_kl(logits + 7, ref - 3), expected)
    order = torch.randperm(5, generator=generator)
    torch.testing.assert_close(exact_kl(logits[..., order], ref[..., order]), expected)
    assert torch.equal(exact_kl(logits, logits), torch.zeros(2, 3, dtype=torch.float64))


def test_exact_kl_gradient_matches_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    ref = torch.randn(2, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(exact_kl, (logits, ref))


def test_exact_kl_of_a_token_that_neither_can_emit() -> None:
    """A fourth token of logit -inf in both changes nothing, in value and in gradient."""
    impossible = torch.tensor([-torch.inf], dtype=torch.float64)
    short, ref = P.log().requires_grad_(), Q.log()
    exact_kl(short, ref).backward()
    wide = torch.cat([P.log(), impossible]).requires_grad_()
    value = exact_kl(wide, torch.cat([ref, impossible]))
    assert value.item() == pytest.approx(0.3 * math.log(2.5), rel=1e-12)
    value.backward()
    assert wide.grad is not None
    assert short.grad is not None
    torch.testing.assert_close(wide.grad[:3], short.grad)
    assert wide.grad[3].item() == 0.0


def test_exact_kl_where_one_cannot_emit_a_token() -> None:
    """Only the policy cannot: 0 ln 0 = 0, and KL((.5, .5, 0) || (.25, .25, .5)) = ln 2. Only the reference: inf."""
    half = torch.tensor([0.5, 0.5, 0.0]).log()
    other = torch.tensor([0.25, 0.25, 0.5]).log()
    assert exact_kl(half, other).item() == pytest.approx(math.log(2), rel=1e-6)
    assert exact_kl(other, half).item() == math.inf


@pytest.mark.parametrize(("kl", "expected"), [(12.0, 0.151536), (0.0, 0.148464), (6.6, 0.150768), (6.0, 0.15)])
def test_adaptive_coefficient_by_hand(kl: float, expected: float) -> None:
    """12: .15 (1 + .2 * .0512); 0: .15 (1 - .2 * .0512); 6.6: .15 (1 + .1 * .0512)."""
    assert adapt_coefficient(0.15, kl, 512, 6.0, 1e4) == pytest.approx(expected, rel=1e-9)


def test_adaptive_coefficient_of_what_is_no_number() -> None:
    assert adapt_coefficient(0.15, math.inf, 512, 6.0, 1e4) == pytest.approx(0.151536)
    assert adapt_coefficient(0.15, math.nan, 512, 6.0, 1e4) == 0.15


def test_arguments_are_not_mutated() -> None:
    p, q = P.clone(), Q.clone()
    for name in ESTIMATORS:
        kl_estimate(p, q, name, torch.tensor([True, False, True]))
    exact_kl(p, q)
    assert torch.equal(p, P)
    assert torch.equal(q, Q)


@settings(max_examples=50, deadline=None)
@given(st.floats(-30, 0), st.floats(-30, 0))
def test_k2_and_k3_are_never_negative(a: float, b: float) -> None:
    for name in ("k2", "k3"):
        assert kl_estimate(torch.tensor([a]), torch.tensor([b]), name).item() >= -1e-6
