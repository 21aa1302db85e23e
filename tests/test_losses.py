from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rlhf_pg.ops.losses import (
    Metrics,
    RatioLevel,
    aggregate_weights,
    entropy_bonus,
    importance_weighted_loss,
    kl_loss,
    ppo_clip_loss,
    reinforce_loss,
    truncated_importance,
    value_loss,
)

LEVELS: list[RatioLevel] = ["token", "sequence"]
PolicyLoss = Callable[..., tuple[Tensor, Metrics]]


def clip(*args: object, **options: object) -> tuple[Tensor, Metrics]:
    return ppo_clip_loss(*args, **{"clip_low": 0.2, "clip_high": 0.3} | options)  # type: ignore[arg-type]


def logs(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64).log()


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def all_true(x: Tensor) -> Tensor:
    return torch.ones_like(x, dtype=torch.bool)


def tables(rows: int = 5, columns: int = 6, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """logprobs, old logprobs, advantages, mask: prefix rows of length 1 to ``columns``; the last row is empty."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, columns + 1, (rows, 1), generator=generator)
    lengths[-1] = 0
    mask = torch.arange(columns) < lengths
    logprobs = -torch.rand(rows, columns, generator=generator).to(dtype) * 3
    old = logprobs + 0.4 * torch.randn(rows, columns, generator=generator).to(dtype)
    advantages = torch.randn(rows, columns, generator=generator).to(dtype)
    return logprobs, old, advantages, mask


def pair(metrics: Metrics, name: str) -> tuple[float, float]:
    total, count = metrics[name]
    return float(total), float(count)


# Aggregation.


def two_rows() -> tuple[Tensor, Tensor]:
    """Token losses that sum to 14 over 5 tokens and to 19 over 10."""
    token_losses = torch.zeros(2, 10, dtype=torch.float64)
    token_losses[0, :5], token_losses[1] = 14 / 5, 19 / 10
    mask = torch.arange(10) < torch.tensor([[5], [10]])
    return token_losses, mask


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("sequence_sum", (14 + 19) / 2),
        ("token_mean", 33 / 15),
        ("fixed", 33 / 20),
        ("sequence_mean", (14 / 5 + 19 / 10) / 2),
    ],
)
def test_aggregation_by_hand(kind: str, expected: float) -> None:
    """2.35 per sequence, 2.2 per token, 1.65 over the fixed length 10."""
    token_losses, mask = two_rows()
    for extra in (0, 1):  # a row that no function could score counts nowhere
        wide = torch.nn.functional.pad(mask, (0, 0, 0, extra))
        dirty = torch.nn.functional.pad(token_losses, (0, 0, 0, extra), value=torch.nan)
        weights, denominator = aggregate_weights(wide, kind, 10, dtype=torch.float64)  # type: ignore[arg-type]
        assert weights.shape == (2 + extra, 1)
        loss, _ = kl_loss(dirty, wide, denominator, weights)
        assert loss.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["sequence_sum", "token_mean", "fixed", "sequence_mean"])
def test_an_empty_batch_has_the_denominator_1_and_no_loss(kind: str) -> None:
    mask = torch.zeros(2, 3, dtype=torch.bool)
    weights, denominator = aggregate_weights(mask, kind, 3)  # type: ignore[arg-type]
    assert denominator == 1.0
    assert torch.isfinite(weights).all()
    assert kl_loss(torch.full((2, 3), torch.nan), mask, denominator, weights)[0].item() == 0.0


def test_unknown_names() -> None:
    mask = torch.ones(1, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="batch_mean"):
        aggregate_weights(mask, "batch_mean", 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="word"):
        importance_weighted_loss(row(0.0), row(0.0), row(1.0), mask, 1.0, ratio="word")  # type: ignore[arg-type]


def test_a_denominator_passed_in_makes_micro_batches_add_up() -> None:
    """[1, 1, 1, 1] and [5]: 9 / 5 = 1.8, where the mean of the means would be 3."""
    parts = [torch.ones(1, 4), torch.full((1, 1), 5.0)]
    total = sum(float(kl_loss(part, all_true(part), 5.0)[0]) for part in parts)
    assert total == pytest.approx(1.8)


# Policy losses.


def test_reinforce_by_hand() -> None:
    """-(2 ln .5 - 1 ln .25) / 2 = -(-2 + 2) ln 2 / 2 = 0; weights (1, 3): -(-2 + 6) ln 2 / 2 = -2 ln 2."""
    logprobs, advantages = logs(0.5, 0.25), row(2.0, -1.0)
    mask = all_true(logprobs)
    assert reinforce_loss(logprobs, advantages, mask, 2.0)[0].item() == pytest.approx(0.0)
    weighted, metrics = reinforce_loss(logprobs, advantages, mask, 2.0, row(1.0, 3.0))
    assert weighted.item() == pytest.approx(-2 * math.log(2))
    assert metrics == {}


def test_token_and_sequence_ratio_by_hand() -> None:
    """Ratios 2 and .75: A (1, 2) gives 2 + 1.5 per token; the response's ratio 1.5 on both gives 1.5 + 3."""
    new, old, advantages = logs(0.5, 0.3), logs(0.25, 0.4), row(1.0, 2.0)
    mask = all_true(new)
    token, metrics = importance_weighted_loss(new, old, advantages, mask, 1.0)
    assert token.item() == pytest.approx(-3.5)
    assert pair(metrics, "ratio") == pytest.approx((2.75, 2))
    # k3 of old against new: ratio - 1 - ln ratio
    assert pair(metrics, "approx_kl") == pytest.approx((2 - 1 - math.log(2) + 0.75 - 1 - math.log(0.75), 2))
    sequence, metrics = importance_weighted_loss(new, old, advantages, mask, 1.0, ratio="sequence")
    assert sequence.item() == pytest.approx(-4.5)
    assert pair(metrics, "ratio") == pytest.approx((3.0, 2))


def test_the_sequence_ratio_weighs_each_tokens_own_gradient() -> None:
    new, old, advantages = logs(0.5, 0.3).requires_grad_(), logs(0.25, 0.4), row(1.0, 2.0)
    importance_weighted_loss(new, old, advantages, all_true(old), 1.0, ratio="sequence")[0].backward()
    assert new.grad is not None
    assert new.grad[0].tolist() == pytest.approx([-1.5, -3.0])


@pytest.mark.parametrize(
    ("ratio", "advantage", "dual", "term", "slope", "clipped"),
    [
        (1.5, 2.0, None, 1.3 * 2, 0.0, "high"),
        (1.5, -2.0, None, -3.0, -2.0, None),
        (0.5, 2.0, None, 1.0, 2.0, None),
        (0.5, -2.0, None, 0.8 * -2, 0.0, "low"),
        (1.1, 2.0, None, 2.2, 2.0, None),
        (0.9, -2.0, None, -1.8, -2.0, None),
        (5.0, -2.0, 3.0, 3 * -2, 0.0, "dual"),
        (2.0, -2.0, 3.0, -4.0, -2.0, None),
        (5.0, 2.0, 3.0, 1.3 * 2, 0.0, "high"),
        (9.0, 0.0, 3.0, 0.0, 0.0, None),
    ],
)
def test_ppo_clip_by_hand(
    ratio: float, advantage: float, dual: float | None, term: float, slope: float, clipped: str | None
) -> None:
    """min(r A, clip(r, .8, 1.3) A), and with c = 3 and A < 0 the maximum of that and 3 A; the slope is by ln pi / r."""
    new = logs(0.1 * ratio).requires_grad_()
    loss, metrics = clip(new, logs(0.1), row(advantage), all_true(new), 1.0, dual_clip=dual)
    assert loss.item() == pytest.approx(-term)
    loss.backward()
    assert new.grad is not None
    assert new.grad.item() == pytest.approx(-slope * ratio)
    assert pair(metrics, "clip_ratio") == (float(clipped is not None), 1.0)
    assert pair(metrics, "clip_ratio/low") == (float(clipped == "low"), 1.0)
    assert pair(metrics, "clip_ratio/high") == (float(clipped == "high"), 1.0)


def test_ppo_clip_is_the_minimum_of_the_two_surrogates() -> None:
    new, old, advantages, mask = tables()
    ratios = (new - old).exp()
    surrogate = torch.minimum(ratios * advantages, ratios.clamp(0.8, 1.3) * advantages)
    dual = torch.where(advantages < 0, torch.maximum(surrogate, 1.4 * advantages), surrogate)
    for bound, expected in ((None, surrogate), (1.4, dual)):
        loss, _ = clip(new, old, advantages, mask, 7.0, dual_clip=bound)
        torch.testing.assert_close(loss, -expected[mask].sum() / 7)


def test_the_sequence_ratio_is_clipped_as_a_whole() -> None:
    """Token ratios 2 and .75, the response's 1.5: above 1.3, so both tokens are cut."""
    new, old = logs(0.5, 0.3).requires_grad_(), logs(0.25, 0.4)
    loss, metrics = clip(new, old, row(1.0, 1.0), all_true(old), 1.0, ratio="sequence")
    assert loss.item() == pytest.approx(-2.6)
    assert pair(metrics, "clip_ratio/high") == (2.0, 2.0)
    loss.backward()
    assert new.grad is not None
    assert new.grad.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss", [importance_weighted_loss, clip])
def test_on_policy_the_ratio_is_1_and_the_gradient_reinforces_to_the_bit(
    loss: PolicyLoss, level: RatioLevel, dtype: torch.dtype
) -> None:
    start, _, advantages, mask = tables(dtype=dtype)
    weights = torch.rand(5, 6, generator=torch.Generator().manual_seed(1)).to(dtype)

    def gradient(of: PolicyLoss, *old: Tensor, **options: object) -> tuple[Tensor, Metrics]:
        logprobs = start.clone().requires_grad_()
        value, metrics = of(logprobs, *old, advantages, mask, 7.0, weights, **options)
        return torch.autograd.grad(value, logprobs)[0], metrics

    expected, _ = gradient(reinforce_loss)
    got, metrics = gradient(loss, start.clone(), ratio=level)
    assert torch.equal(got, expected)
    total, count = metrics["ratio"]
    assert torch.equal(total, count.to(dtype))
    assert pair(metrics, "approx_kl")[0] == 0.0
    assert pair(metrics, "clip_ratio" if loss is clip else "approx_kl")[0] == 0.0


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss", [importance_weighted_loss, clip])
def test_a_huge_log_ratio_stays_finite(loss: PolicyLoss, level: RatioLevel) -> None:
    """exp(89) is inf in float32."""
    for new, old in ((-0.1, -200.0), (-200.0, -0.1)):
        logprobs = torch.tensor([[new, -1.0]], requires_grad=True)
        value, metrics = loss(
            logprobs, torch.tensor([[old, -1.0]]), torch.tensor([[1.0, -1.0]]), all_true(logprobs), 1.0, ratio=level
        )
        value.backward()
        assert logprobs.grad is not None
        assert torch.isfinite(value)
        assert torch.isfinite(logprobs.grad).all()
        assert all(torch.isfinite(total) for total, _ in metrics.values())


# The others.


def test_value_clip_by_hand() -> None:
    """Old 0, new 1, return 1.5, clip .2: max(.5^2, (.2 - 1.5)^2) / 2 = 1.69 / 2 = .845, and no gradient."""
    values = row(1.0).requires_grad_()
    loss, metrics = value_loss(values, row(0.0), row(1.5), all_true(values), 1.0, clip=0.2)
    assert loss.item() == pytest.approx(0.845)
    loss.backward()
    assert values.grad is not None
    assert values.grad.item() == 0.0
    assert pair(metrics, "value_clip_ratio") == (1.0, 1.0)


@pytest.mark.parametrize(("clip_range", "expected"), [(None, 0.125), (2.0, 0.125), (0.9, 0.18)])
def test_value_loss_by_hand(clip_range: float | None, expected: float) -> None:
    """(1 - 1.5)^2 / 2 = .125; clipped to .9, (.9 - 1.5)^2 / 2 = .18."""
    values = row(1.0).requires_grad_()
    loss, _ = value_loss(values, row(0.0), row(1.5), all_true(values), 1.0, clip=clip_range)
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert values.grad is not None
    assert values.grad.item() == pytest.approx(-0.5 if expected == 0.125 else 0.0)


def test_a_value_that_moves_away_from_the_return_is_not_clipped() -> None:
    """Old 0, new -1, return 1.5: the unclipped error is the larger and pulls back."""
    values = row(-1.0).requires_grad_()
    loss, metrics = value_loss(values, row(0.0), row(1.5), all_true(values), 1.0, clip=0.2)
    assert loss.item() == pytest.approx(2.5**2 / 2)
    loss.backward()
    assert values.grad is not None
    assert values.grad.item() == pytest.approx(-2.5)
    assert pair(metrics, "value_clip_ratio") == (0.0, 1.0)


def test_entropy_bonus_and_kl_loss_by_hand() -> None:
    x, mask = row(1.0, 3.0, torch.nan), torch.tensor([[True, True, False]])
    loss, metrics = entropy_bonus(x, mask, 2.0, row(1.0, 2.0, torch.nan))
    assert loss.item() == -3.5
    assert pair(metrics, "entropy") == (4.0, 2.0)
    loss, metrics = kl_loss(x, mask, 2.0, torch.tensor([[3.0]]))
    assert loss.item() == 6.0
    assert pair(metrics, "kl_loss") == (4.0, 2.0)


def test_truncated_importance_by_hand() -> None:
    """exp([ln .25, ln 1, ln 4]) capped at 2 is [.25, 1, 2], detached."""
    train = torch.cat([logs(0.25, 1.0, 4.0), row(torch.nan)], 1).requires_grad_()
    sampling = torch.cat([logs(1.0, 1.0, 1.0), row(torch.nan)], 1)
    mask = torch.tensor([[True, True, True, False]])
    weights = truncated_importance(train, sampling, mask, 2.0)
    assert weights[0].tolist() == pytest.approx([0.25, 1.0, 2.0, 0.0])
    assert not weights.requires_grad
    assert torch.isfinite(truncated_importance(row(0.0), row(-800.0), torch.tensor([[True]]), 1e30)).all()


# What holds for all.


ALL: dict[str, PolicyLoss] = {
    "reinforce": lambda new, old, adv, mask, n, w: reinforce_loss(new, adv, mask, n, w),
    "weighted/token": importance_weighted_loss,
    "weighted/sequence": lambda *args: importance_weighted_loss(*args, ratio="sequence"),
    "clip/token": lambda *args: clip(*args, dual_clip=3.0),
    "clip/sequence": lambda *args: clip(*args, ratio="sequence"),
    "value": lambda *args: value_loss(*args, clip=0.1),
    "entropy": lambda new, old, adv, mask, n, w: entropy_bonus(new, mask, n, w),
    "kl": lambda new, old, adv, mask, n, w: kl_loss(new, mask, n, w),
}


def run(name: str, arguments: tuple[Tensor, ...], weights: Tensor) -> tuple[Tensor, Tensor, Metrics]:
    first, *others, mask = arguments
    leaf = first.clone().requires_grad_()
    loss, metrics = ALL[name](leaf, *others, mask, 7.0, weights)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0], metrics


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_padding_reaches_neither_result_nor_gradient(name: str, garbage: float) -> None:
    arguments = tables(dtype=torch.float32)
    mask = arguments[-1]
    weights = torch.rand(5, 6, generator=torch.Generator().manual_seed(1))
    loss, gradient, metrics = run(name, arguments, weights)
    dirty = (*(torch.where(mask, x, garbage) for x in arguments[:-1]), mask)
    dirty_loss, dirty_gradient, dirty_metrics = run(name, dirty, torch.where(mask, weights, garbage))
    assert torch.isfinite(loss)
    assert torch.equal(loss, dirty_loss)
    assert torch.equal(gradient, dirty_gradient)
    assert (gradient[~mask] == 0).all()
    for key in metrics:
        assert pair(metrics, key) == pair(dirty_metrics, key)
        assert not metrics[key][0].requires_grad


@pytest.mark.parametrize("name", ALL)
def test_padding_columns_row_order_and_splits_change_nothing(name: str) -> None:
    arguments = tables()
    weights = torch.rand(5, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss, gradient, metrics = run(name, arguments, weights)
    assert loss.dtype == gradient.dtype == torch.float64

    wide = tuple(torch.nn.functional.pad(x, (0, 3)) for x in arguments)
    wide_loss, wide_gradient, _ = run(name, wide, weights)
    torch.testing.assert_close(wide_loss, loss)
    torch.testing.assert_close(wide_gradient[:, :6], gradient)

    order = torch.tensor([3, 0, 4, 2, 1])
    moved_loss, moved_gradient, _ = run(name, tuple(x[order] for x in arguments), weights[order])
    torch.testing.assert_close(moved_loss, loss)
    torch.testing.assert_close(moved_gradient, gradient[order])

    parts = [run(name, tuple(x[rows] for x in arguments), weights[rows]) for rows in (slice(0, 2), slice(2, 5))]
    torch.testing.assert_close(parts[0][0] + parts[1][0], loss)
    torch.testing.assert_close(torch.cat([parts[0][1], parts[1][1]]), gradient)
    for key in metrics:
        summed = [sum(pair(part[2], key)[side] for part in parts) for side in (0, 1)]
        assert summed == pytest.approx(list(pair(metrics, key)))


@pytest.mark.parametrize("name", ALL)
def test_arguments_are_not_mutated_and_low_precision_is_raised(name: str) -> None:
    arguments = tables()
    copies = tuple(x.clone() for x in arguments)
    run(name, arguments, torch.ones(5, 1, dtype=torch.float64))
    for now, then in zip(arguments, copies, strict=True):
        assert torch.equal(now, then)
    low = (*(x.bfloat16() for x in arguments[:-1]), arguments[-1])
    assert run(name, low, torch.ones(5, 1))[0].dtype == torch.float32


@pytest.mark.parametrize("name", ["weighted/token", "clip/token", "value", "clip/sequence"])
def test_no_gradient_flows_into_the_constants(name: str) -> None:
    new, *constants, mask = tables()
    leaves = [x.clone().requires_grad_() for x in constants]
    leaf = new.clone().requires_grad_()
    loss, _ = ALL[name](leaf, *leaves, mask, 7.0, torch.ones(5, 1))
    assert all(grad is None for grad in torch.autograd.grad(loss, leaves, allow_unused=True))
