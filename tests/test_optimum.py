"""The optimum and the efficiency: by hand, the jackknife sample by sample, and against a world that can be summed over."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from sequence_world import Floats, World, draw, world

from rlhf_pg.errors import DataError
from rlhf_pg.evaluate import efficiency, optimal_frontier
from rlhf_pg.evaluate.tilting import ReferenceSamples

NAN = math.nan


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=shape)


# One beta.


def test_by_hand() -> None:
    """Rewards 0 and beta log 3 weigh 1/4 and 3/4: KL 1/4 log 1/2 + 3/4 log 3/2, effective size 1 / (1/16 + 9/16)."""
    top = 0.2 * math.log(3)
    found = ReferenceSamples.of([[0.0, top]]).tilt(0.2)
    assert found.plain_reward[0] == pytest.approx(0.75 * top)
    assert found.plain_kl[0] == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert found.ess[0] == pytest.approx(1.6)


@pytest.mark.parametrize("beta", [1e-3, 0.3, 5.0])
def test_the_jackknife_leaves_out_each_sample_in_turn(beta: float) -> None:
    scores = normal(3, 7)
    scores[1, 2] = scores[2, 0] = scores[2, 5] = NAN
    scores[0, 4] = scores[0].max()  # two samples tie for the best
    found = ReferenceSamples.of(scores).tilt(beta)
    for row, mine in enumerate(scores):
        known = mine[~np.isnan(mine)]
        m = len(known)
        whole = ReferenceSamples.of([known]).tilt(beta)
        without = [ReferenceSamples.of([np.delete(known, i)]).tilt(beta) for i in range(m)]
        for name in ("reward", "kl"):
            plain = getattr(whole, f"plain_{name}")[0]
            left = np.mean([getattr(one, f"plain_{name}")[0] for one in without])
            assert getattr(found, name)[row] == pytest.approx(m * plain - (m - 1) * left, rel=1e-9, abs=1e-9)
            assert getattr(found, f"plain_{name}")[row] == pytest.approx(plain)


def test_extreme_betas_are_safe() -> None:
    """Near 0 all weight is on the best sample, whose KL is log N; a large beta is the reference."""
    scores = normal(3, 50)
    with np.errstate(divide="raise", over="raise", invalid="raise"):
        cold, hot = (ReferenceSamples.of(scores).tilt(beta) for beta in (1e-300, 1e12))
    assert cold.plain_reward == pytest.approx(scores.max(1))
    assert cold.plain_kl == pytest.approx(np.full(3, math.log(50)))
    assert cold.ess == pytest.approx(np.ones(3))
    assert hot.reward == pytest.approx(scores.mean(1))
    assert hot.kl == pytest.approx(np.zeros(3), abs=1e-12)


def test_only_differences_of_reward_over_beta_count() -> None:
    scores = normal(3, 50)
    found, moved = ReferenceSamples.of(scores).tilt(0.5), ReferenceSamples.of(10 * scores - 1e6).tilt(5.0)
    assert moved.kl == pytest.approx(found.kl, rel=1e-6)
    assert moved.reward == pytest.approx(10 * found.reward - 1e6)


def test_the_correction_takes_most_of_the_bias_out() -> None:
    """With 64 samples a prompt, 24 of them effective, reward and KL are 5% low; corrected, by less than a quarter of that."""
    truth = world("wide")
    reward, kl = truth.optimum(0.45)
    found = [ReferenceSamples.of(draw(truth, 200, 64, 1, seed).scores).tilt(0.45) for seed in range(40)]
    for name, true in (("reward", reward), ("kl", kl)):
        plain = np.mean([getattr(one, f"plain_{name}") for one in found]) - true
        better = np.mean([getattr(one, name) for one in found]) - true
        assert plain < -0.02 * true
        assert abs(better) < abs(plain) / 4, (name, plain, better)


def test_equal_completions_share_their_mean_and_count_as_draws() -> None:
    """Noise between equal completions is nothing that a policy can choose."""
    texts = [["a", "b", "a", "c", "a"]]
    noisy = ReferenceSamples.of([[1.0, 0, 2, 0, 3]], completions=texts).tilt(0.5)
    exact = ReferenceSamples.of([[2.0, 0, 2, 0, 2]]).tilt(0.5)
    assert noisy.reward == pytest.approx(exact.reward)
    assert noisy.ess == pytest.approx(exact.ess)
    assert ReferenceSamples.of([[2.0, 0, 2, 0, 2]], completions=texts).tilt(0.5).kl == pytest.approx(exact.kl)
    unknown = ReferenceSamples.of([[1.0, 0, NAN, 0, 3]], completions=texts)
    assert unknown.scores[0, [0, 1, 3, 4]].tolist() == [2, 0, 0, 2]
    assert math.isnan(unknown.scores[0, 2])


# The frontier.


def test_a_point_at_a_kl_is_the_point_of_its_beta() -> None:
    scores = normal(20, 200)
    (point,) = optimal_frontier(scores, kls=[0.7])
    assert point.kl == pytest.approx(0.7)
    (same,) = optimal_frontier(scores, [point.beta])
    assert (same.reward, same.kl) == pytest.approx((point.reward, point.kl))
    assert point.drawn
    assert point.low < point.reward < point.high


def test_a_prompt_with_more_to_gain_gets_more_of_the_kl() -> None:
    """One beta for all: where half of the prompts have nothing to gain, the mean KL goes to the others."""
    scores = np.vstack([normal(10, 400), np.zeros((10, 400))])
    (point,), (alone,) = optimal_frontier(scores, kls=[0.3]), optimal_frontier(scores[:10], kls=[0.6])
    assert point.beta == pytest.approx(alone.beta)
    assert point.reward == pytest.approx(alone.reward / 2)


def test_what_cannot_be_told_says_why() -> None:
    scores = normal(5, 40)
    near, far = optimal_frontier(scores, [1.0, 0.1])
    assert near.drawn
    assert near.reason == ""
    assert not far.drawn
    assert "below 10" in far.reason
    assert f"{far.ess:.1f}" in far.reason
    (beyond,) = optimal_frontier(scores, kls=[50.0])
    assert not beyond.drawn
    assert "no optimum at 50 nats" in beyond.reason
    (flat,) = optimal_frontier(np.full((3, 5), 0.1), kls=[0.5])
    assert "no optimum" in flat.reason


def test_the_corrected_reward_stays_below_the_best_seen() -> None:
    scores = np.zeros((4, 30))
    scores[:, 3] = 1.0
    (point,) = optimal_frontier(scores, [0.02])
    assert ReferenceSamples.of(scores).tilt(0.02).reward.mean() > 1.5
    assert point.reward == 1.0


def test_the_resamples_stay_below_it_too() -> None:
    """Equal prompts differ in no resample: the interval is the value."""
    scores = np.zeros((4, 30))
    scores[:, 3] = 1.0
    found = efficiency(np.ones(4), np.full(4, 4.0), scores, floor=0.0)
    assert found.optimum == 1.0
    assert (found.value, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0), abs=1e-3)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "either betas or kls"),
        ({"betas": [1.0], "kls": [1.0]}, "either betas or kls"),
        ({"betas": [0.0]}, "beta is 0.0"),
        ({"betas": [1.0], "prompts": ["a"]}, "one text a row"),
        ({"betas": [1.0], "completions": [["a"], ["b"]]}, "2 rows of 3"),
    ],
)
def test_bad_calls_are_refused(given: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        optimal_frontier([[1.0, 2, 3], [0, 1, 2]], **given)  # type: ignore[arg-type]


def test_scores_without_two_samples_are_refused() -> None:
    with pytest.raises(DataError, match="two scorable samples"):
        optimal_frontier([[1.0, NAN], [NAN, NAN]], [1.0])


# Efficiency.


def test_the_optimum_itself_has_an_efficiency_of_1() -> None:
    scores = normal(40, 300)
    tilt = ReferenceSamples.of(scores).tilt(0.9)
    found = efficiency(tilt.reward, tilt.kl, scores)
    assert found.value == pytest.approx(1.0)
    assert found.low == pytest.approx(1.0, abs=2e-3)
    assert found.high == pytest.approx(1.0, abs=2e-3)
    half = efficiency(scores.mean(1) + 0.5 * (tilt.reward - scores.mean(1)), tilt.kl, scores)
    assert half.value == pytest.approx(0.5)
    assert half.optimum == pytest.approx(tilt.reward.mean())


def test_where_there_is_no_value_there_is_a_reason() -> None:
    scores = normal(40, 30)
    rewards = normal(40, 4, seed=1)
    no_kl = efficiency(rewards, np.zeros(40), scores)
    assert (no_kl.value, no_kl.low, no_kl.reason) == (None, None, "its KL is not above 0")
    noise = efficiency(rewards, 0.5 * normal(40, seed=4) + 0.01, scores)
    assert noise.value is None
    assert noise.reason
    far = efficiency(rewards + 2, np.full(40, 2.5), scores)
    assert far.value is None
    assert "effective sample size" in far.reason
    beyond = efficiency(rewards + 2, np.full(40, 50.0), scores)
    assert "no optimum at 50 nats" in beyond.reason
    alone = efficiency(rewards, np.full(40, 0.1), scores, prompts=["one"] * 40)
    assert "one prompt text" in alone.reason


def test_copies_of_the_prompts_do_not_narrow_the_interval() -> None:
    scores, rewards, kls = normal(20, 200), normal(20, 8, seed=1) + 0.5, np.full(20, 0.4)
    texts = [f"prompt {i}" for i in range(20)]
    once = efficiency(rewards, kls, scores, prompts=texts)
    thrice = efficiency(np.tile(rewards, (3, 1)), np.tile(kls, 3), np.tile(scores, (3, 1)), prompts=texts * 3)
    assert (thrice.value, thrice.low, thrice.high) == pytest.approx((once.value, once.low, once.high))


def test_prompts_without_a_reward_are_left_out_of_both() -> None:
    scores, rewards, kls = normal(20, 200), normal(20, 8, seed=1) + 0.5, np.full((20, 8), 0.4)
    rewards[4] = NAN
    scores[7, 1:] = NAN
    rewards[2, 3] = NAN
    found = efficiency(rewards, kls, scores)
    keep = [i for i in range(20) if i not in (4, 7)]
    assert found == efficiency(np.nanmean(rewards[keep], 1), kls[keep], scores[keep])
    assert found.prompts == 18
    with pytest.raises(DataError, match="19 rows for 20 prompts"):
        efficiency(rewards[1:], kls[1:], scores)


# Against enumeration.


@cache
def true_curve(rewards: str) -> tuple[Floats, Floats]:
    """KL and reward of the world's optimum, by rising KL."""
    truth = world(rewards)
    points = [truth.optimum(beta) for beta in np.exp(np.linspace(np.log(4.0), np.log(0.05), 60))]
    return np.array([kl for _, kl in points]), np.array([reward for reward, _ in points])


def frontier_coverage(rewards: str, kl: float, times: int, samples: int) -> float:
    """How often the 95% interval at this KL holds the true optimum, where it is drawn; 40 prompts."""
    best = float(np.interp(kl, *true_curve(rewards)))
    found = [optimal_frontier(draw(world(rewards), 40, samples, 1, seed).scores, kls=[kl])[0] for seed in range(times)]
    drawn = [point for point in found if point.drawn]
    assert len(drawn) > 0.8 * times
    return float(np.mean([point.low <= best <= point.high for point in drawn]))


def efficiency_coverage(truth: World, times: int, samples: int) -> float:
    """How often the 95% interval holds the policy's true efficiency; 40 prompts, 16 completions of the policy."""
    true, hits = truth.efficiency(), 0
    for seed in range(times):
        seen = draw(truth, 40, samples, 16, seed)
        found = efficiency(seen.rewards, seen.kls, seen.scores, resamples=1000, seed=seed)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= true <= found.high
    return hits / times


def test_the_curve_of_a_large_sample_is_the_true_one() -> None:
    seen = draw(world("bounded"), 400, 512, 1, seed=3)
    for point in optimal_frontier(seen.scores, kls=[0.1, 0.4, 0.8]):
        assert point.reward == pytest.approx(float(np.interp(point.kl, *true_curve("bounded"))), abs=0.03)
        assert point.low <= float(np.interp(point.kl, *true_curve("bounded"))) <= point.high


@pytest.mark.parametrize("rewards", ["bounded", "binary"])
def test_the_intervals_of_the_optimum_hold_the_truth(rewards: str) -> None:
    assert frontier_coverage(rewards, 0.5, times=60, samples=128) >= 0.9


def test_the_intervals_of_the_efficiency_hold_the_truth() -> None:
    assert efficiency_coverage(world("bounded"), times=60, samples=128) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("kl", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("rewards", ["bounded", "binary", "wide"])
def test_the_intervals_of_the_optimum_hold_the_truth_95_times_in_100(rewards: str, kl: float) -> None:
    coverage = frontier_coverage(rewards, kl, times=1000, samples=256)
    print(f"optimum at {kl} nats, {rewards}: {coverage}")
    assert coverage >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rewards", "kl", "samples"), [("bounded", 1.0, 64), ("binary", 1.0, 64), ("wide", 1.0, 64), ("wide", 2.0, 256)]
)
def test_just_above_the_floor_the_intervals_still_hold(rewards: str, kl: float, samples: int) -> None:
    """The effective sample size is 12 to 15 a prompt."""
    coverage = frontier_coverage(rewards, kl, times=500, samples=samples)
    print(f"optimum at {kl} nats from {samples} samples, {rewards}: {coverage}")
    assert coverage >= 0.92


@pytest.mark.slow
@pytest.mark.parametrize("rewards", ["bounded", "binary", "wide"])
def test_the_intervals_of_the_efficiency_hold_the_truth_95_times_in_100(rewards: str) -> None:
    truth = world(rewards)
    coverage = efficiency_coverage(truth, times=1000, samples=256)
    print(f"efficiency {truth.efficiency():.3f} at {truth.kl(truth.policy):.2f} nats, {rewards}: {coverage}")
    assert coverage >= 0.93
