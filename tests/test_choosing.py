"""Choosing: Pareto sets by hand, areas by counting, and searches that end."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf_pg.errors import ConfigError, DataError
from rlhf_pg.evaluate import closest, hypervolume, next_coefficient, pareto

NAN = math.nan


def test_pareto_by_hand() -> None:
    kls = [0.0, 1, 1, 2, 3, 3, 4, NAN, 0.5]
    rewards = [0.0, 2, 1, 2, 5, 4, 4.5, 9, NAN]
    assert pareto(kls, rewards) == [0, 1, 4]
    assert pareto([], []) == []
    assert pareto([1.0, 1.0], [2.0, 2.0]) == [0, 1]


def test_pareto_is_what_no_point_passes() -> None:
    chance = np.random.default_rng(0)
    kl, reward = chance.integers(6, size=40), chance.integers(6, size=40)

    def passed(i: int) -> bool:
        better = (kl <= kl[i]) & (reward >= reward[i]) & ((kl < kl[i]) | (reward > reward[i]))
        return bool(better.any())

    assert sorted(pareto(kl, reward)) == [i for i in range(40) if not passed(i)]


def test_hypervolume_by_hand() -> None:
    """From KL 1 to 3 one unit above the corner, from 3 to 5 four: 2 + 8."""
    assert hypervolume([1.0, 3, 4], [1.0, 4, 2], kl=5, reward=0) == pytest.approx(10)
    assert hypervolume([1.0, 6], [1.0, 9], kl=5, reward=0) == pytest.approx(4), "beyond the corner nothing counts"
    assert hypervolume([1.0], [-1.0], kl=5, reward=0) == 0
    assert hypervolume([], [], kl=5, reward=0) == 0


def test_hypervolume_by_counting() -> None:
    chance = np.random.default_rng(1)
    kl, reward = chance.random(12), chance.random(12)
    x, y = chance.random(100_000), chance.random(100_000)
    inside = ((kl[:, None] <= x) & (reward[:, None] >= y)).any(0).mean()
    assert hypervolume(kl, reward, kl=1, reward=0) == pytest.approx(inside, abs=0.01)


def test_closest() -> None:
    assert closest([1.0, 3, 5, 2.9], [1.0, 2, 3, NAN], 2.9) == 1
    assert closest([2.0, 4, 2], [1.0, 2, 3], 3.0) == 2, "of equals, the one of most reward"
    with pytest.raises(DataError, match="nothing to choose from"):
        closest([NAN], [1.0], 3.0)


def test_shapes_and_corners_are_checked() -> None:
    with pytest.raises(DataError, match="one of each a point"):
        pareto([1.0, 2], [1.0])
    with pytest.raises(DataError, match="corner"):
        hypervolume([1.0], [1.0], kl=math.inf, reward=0)


# The search.


def search(
    kl_of: dict[float, float] | object, target: float, **settings: float
) -> tuple[list[tuple[float, float]], str]:
    tried: list[tuple[float, float]] = []
    for _ in range(50):
        step = next_coefficient(tried, target, **settings)  # type: ignore[arg-type]
        if step.done:
            return tried, step.reason
        assert step.beta is not None
        tried.append((step.beta, kl_of(step.beta)))  # type: ignore[operator]
    raise AssertionError("the search does not end")


@pytest.mark.parametrize("target", [0.02, 0.5, 3.0, 12.0])
def test_it_finds_the_coefficient(target: float) -> None:
    tried, reason = search(lambda beta: 0.3 / beta**0.9, target)
    beta, kl = tried[-1]
    assert kl == pytest.approx(target, rel=0.1)
    assert len(tried) <= 9
    assert reason == f"beta {beta:.3g} gives {kl:.3g} nats"


def test_the_steps_by_hand() -> None:
    """KL = 1 / beta for a target of 1: up by 4 from 0.1, up to 1.6, then the middle of 0.4 and 1.6 in log: 0.8; 1.13; 0.95."""
    tried, _ = search(lambda beta: 1 / beta, 1.0)
    assert [beta for beta, _ in tried] == pytest.approx(
        [0.1, 0.4, 1.6, 0.8, 1.6**0.5 * 0.8**0.5, 0.8**0.75 * 1.6**0.25]
    )


def test_noise_does_not_trap_it() -> None:
    for seed in range(50):
        chance = np.random.default_rng(seed)
        tried, _ = search(lambda beta, c=chance: 0.3 / beta * math.exp(0.15 * c.normal()), 2.0)
        assert min(abs(kl / 2.0 - 1) for _, kl in tried) < 0.35
        assert len(tried) <= 12


def test_a_run_that_broke_down_counts_as_too_much_kl() -> None:
    tried, _ = search(lambda beta: NAN if beta < 0.3 else 1 / beta, 1.0)
    assert tried[-1][1] == pytest.approx(1.0, rel=0.1)
    tried, reason = search(lambda beta: NAN, 1.0)
    assert "every run broke down" in reason
    assert next_coefficient(tried, 1.0).beta is None


def test_it_gives_up_with_a_reason() -> None:
    tried, reason = search(lambda beta: 0.5, 3.0)
    assert tried[-1][0] == 1e-5
    assert "beta 1e-05 is the limit" in reason
    tried, reason = search(lambda beta: 50.0, 3.0)
    assert tried[-1][0] == 1e3
    assert "the limit of the search; the nearest is 50 nats" in reason
    _, reason = search(lambda beta: 8.0 if beta < 0.77 else 0.5, 3.0, most=40)
    assert "the KL jumps between beta 0.7" in reason
    tried, reason = search(lambda beta: 8.0 if beta < 0.77 else 0.5, 3.0, most=5)
    assert len(tried) == 5
    assert "5 coefficients were tried; the nearest is 0.5 nats" in reason


def test_the_order_of_what_was_tried_does_not_count() -> None:
    tried = [(0.1, 9.0), (0.4, 2.0), (1.6, 0.4)]
    assert next_coefficient(tried[::-1], 1.0) == next_coefficient(tried, 1.0)


@pytest.mark.parametrize(
    "wrong",
    [{"target": 0.0}, {"target": NAN}, {"tolerance": -1.0}, {"growth": 1.0}, {"start": 1e4}, {"tried": [(0.0, 1.0)]}],
)
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="give"):
        next_coefficient(**({"tried": [], "target": 1.0} | wrong))  # type: ignore[arg-type]
