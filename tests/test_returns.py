from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf_pg.ops.returns import gae, rewards_to_go

MASK = torch.tensor([[True, True, False, False]])
AT_EOS = torch.tensor([[0.0, 1.0, torch.nan, torch.nan]])
NO_VALUE = torch.tensor([[0.0, 0.0, torch.nan, torch.inf]])


def random_tables(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 6, (7, 1), generator=generator)
    mask = torch.arange(5) < lengths
    return (
        torch.randn(7, 5, generator=generator, dtype=torch.float64),
        torch.randn(7, 5, generator=generator, dtype=torch.float64),
        mask,
    )


def test_rewards_to_go_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0, torch.nan], [3.0, 5.0, 7.0, 9.0]])
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    assert rewards_to_go(rewards, mask, 1.0).tolist() == [[7.0, 6.0, 4.0, 0.0], [3.0, 0.0, 0.0, 0.0]]
    # 1 + .5 * 2 + .25 * 4 = 3, 2 + .5 * 4 = 4
    assert rewards_to_go(rewards, mask, 0.5).tolist() == [[3.0, 4.0, 4.0, 0.0], [3.0, 0.0, 0.0, 0.0]]


def test_gae_puts_the_reward_on_the_eos_token() -> None:
    """lambda .5, reward 1 at position 1: delta = (0, 1), so (.5, 1); one position later would be (.25, .5, 1)."""
    advantages, returns = gae(AT_EOS, NO_VALUE, MASK, 1.0, 0.5)
    assert advantages.tolist() == [[0.5, 1.0, 0.0, 0.0]]
    assert returns.tolist() == [[0.5, 1.0, 0.0, 0.0]]


def test_gae_at_a_truncation() -> None:
    """V (.3, .2), lambda 1: ended at 0, 0 - V; bootstrapped with .4, .4 - V."""
    values = torch.tensor([[0.3, 0.2, torch.nan]], dtype=torch.float64)
    rewards = torch.zeros(1, 3, dtype=torch.float64)
    mask = torch.tensor([[True, True, False]])
    for bootstrap, expected in ((None, [-0.3, -0.2]), (0.0, [-0.3, -0.2]), (0.4, [0.1, 0.2])):
        given_bootstrap = None if bootstrap is None else torch.tensor([bootstrap], dtype=torch.float64)
        advantages, returns = gae(rewards, values, mask, 1.0, 1.0, given_bootstrap)
        assert advantages[0].tolist() == pytest.approx([*expected, 0.0])
        assert returns[0].tolist() == pytest.approx([expected[0] + 0.3, expected[1] + 0.2, 0.0])


def test_gae_by_hand_with_gamma_and_lambda() -> None:
    """gamma .9, lambda .5: delta_1 = 2 - .4 = 1.6, delta_0 = 1 + .9 * .4 - .5 = .86; A_0 = .86 + .45 * 1.6 = 1.58."""
    rewards, values = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 0.4]])
    advantages, returns = gae(rewards, values, torch.ones(1, 2, dtype=torch.bool), 0.9, 0.5)
    assert advantages[0].tolist() == pytest.approx([1.58, 1.6])
    assert returns[0].tolist() == pytest.approx([2.08, 2.0])


def test_bootstrap_reaches_full_rows_and_not_empty_ones() -> None:
    mask = torch.tensor([[True, True], [False, False]])
    zeros = torch.zeros(2, 2)
    advantages, returns = gae(zeros, zeros, mask, 1.0, 1.0, torch.tensor([3.0, torch.nan]))
    assert advantages.tolist() == returns.tolist() == [[3.0, 3.0], [0.0, 0.0]]


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_lambda_1_is_the_return_less_the_value_and_lambda_0_the_one_step_error(gamma: float) -> None:
    rewards, values, mask = random_tables(0)
    advantages, returns = gae(rewards, values, mask, gamma, 1.0)
    to_go = rewards_to_go(rewards, mask, gamma)
    torch.testing.assert_close(returns, to_go)
    torch.testing.assert_close(advantages, to_go - torch.where(mask, values, 0.0))

    kept = torch.where(mask, values, 0.0)
    following = torch.cat([kept[:, 1:], torch.zeros(7, 1, dtype=torch.float64)], 1)
    expected = torch.where(mask, rewards + gamma * following - values, 0.0)
    torch.testing.assert_close(gae(rewards, values, mask, gamma, 0.0)[0], expected)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.95), (0.9, 0.7)])
def test_padding_rows_and_columns_change_nothing(gamma: float, lam: float) -> None:
    rewards, values, mask = random_tables(1)
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    to_go = rewards_to_go(rewards, mask, gamma)

    for garbage in (torch.nan, torch.inf, -1e30):
        dirty_rewards, dirty_values = (torch.where(mask, x, garbage) for x in (rewards, values))
        assert torch.equal(gae(dirty_rewards, dirty_values, mask, gamma, lam)[0], advantages)
        assert torch.equal(gae(dirty_rewards, dirty_values, mask, gamma, lam)[1], returns)
        assert torch.equal(rewards_to_go(dirty_rewards, mask, gamma), to_go)

    wide_rewards, wide_values = (torch.nn.functional.pad(x, (0, 3), value=torch.nan) for x in (rewards, values))
    wide_mask = torch.nn.functional.pad(mask, (0, 3))
    assert torch.equal(gae(wide_rewards, wide_values, wide_mask, gamma, lam)[0][:, :5], advantages)
    assert torch.equal(rewards_to_go(wide_rewards, wide_mask, gamma)[:, :5], to_go)

    order = torch.randperm(7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(gae(rewards[order], values[order], mask[order], gamma, lam)[0], advantages[order])


def test_dtypes_and_no_mutation() -> None:
    rewards, values, mask = random_tables(2)
    before = rewards.clone(), values.clone(), mask.clone()
    bootstrap = torch.ones(7, dtype=torch.float64)
    advantages, returns = gae(rewards, values, mask, 0.9, 0.9, bootstrap)
    assert advantages.dtype == returns.dtype == rewards_to_go(rewards, mask, 0.9).dtype == torch.float64
    for now, then in zip((rewards, values, mask), before, strict=True):
        assert torch.equal(now, then)
    low = gae(rewards.bfloat16(), values.bfloat16(), mask, 1.0, 0.9)
    assert low[0].dtype == low[1].dtype == rewards_to_go(rewards.bfloat16(), mask, 1.0).dtype == torch.float32


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=8), st.floats(0.1, 1.0))
def test_rewards_to_go_is_the_definition(rewards: list[float], gamma: float) -> None:
    expected = [sum(gamma ** (k - t) * rewards[k] for k in range(t, len(rewards))) for t in range(len(rewards))]
    table = torch.tensor([rewards], dtype=torch.float64)
    mask = torch.ones_like(table, dtype=torch.bool)
    assert rewards_to_go(table, mask, gamma)[0].tolist() == pytest.approx(expected, abs=1e-9)
