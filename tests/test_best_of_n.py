"""Best of n: all subsets counted one by one, the exact distribution, and how often the intervals hold the truth."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats
from sequence_world import draw, world

from rlhf_pg.errors import DataError
from rlhf_pg.evaluate import best_of_n, exact_best_of_n, kl_bound

NAN = math.nan


def counted(scores: list[float], gold: list[float], n: int) -> tuple[float, float, float]:
    """Reward, gold and win rate, a subset at a time; the winners of a tie are averaged."""
    rewards, golds, wins = [], [], []
    for chosen in combinations(range(len(scores)), n):
        best = max(scores[i] for i in chosen)
        rewards.append(best)
        golds.append(np.mean([gold[i] for i in chosen if scores[i] == best]))
        wins += [(best > scores[i]) + 0.5 * (best == scores[i]) for i in range(len(scores)) if i not in chosen]
    return float(np.mean(rewards)), float(np.mean(golds)), float(np.mean(wins)) if wins else NAN


def test_by_hand() -> None:
    """The pairs of [1, 2, 3] have 2, 3 and 3 as their best: 8/3. Their opponents 3, 2, 1 lose twice of three times."""
    found = best_of_n([[3.0, 1, 2]], 2, gold=[[30.0, 10, 20]])
    assert found.reward == pytest.approx(8 / 3)
    assert found.gold == pytest.approx(80 / 3)
    assert found.win_rate == pytest.approx(2 / 3)
    assert found.kl == pytest.approx(math.log(2) - 0.5)
    assert found.kl_bound == pytest.approx(math.log(2) - 0.5)


@pytest.mark.parametrize("n", range(1, 8))
@pytest.mark.parametrize(
    "scores", [[4.0, 1, 3, 2, 7, 5, 6], [1.0, 1, 0, 1, 0, 0, 0], [2.0, 2, 2, 2, 2, 2, 2], [3.0, 1, 3, 2, 2, 3, 0]]
)
def test_every_subset_counted(scores: list[float], n: int) -> None:
    gold = [0.3, -1.0, 2.0, 0.7, 5.0, -2.0, 1.1]
    found = best_of_n([scores], n, gold=[gold])
    assert (found.reward, found.gold, found.win_rate) == pytest.approx(counted(scores, gold, n), nan_ok=True)


def test_one_sample_is_the_reference() -> None:
    scores = np.random.default_rng(0).normal(size=(4, 9))
    found = best_of_n(scores, 1)
    assert found.reward == pytest.approx(scores.mean())
    assert found.win_rate == pytest.approx(0.5)
    assert (found.kl, found.kl_bound) == (0.0, 0.0)


def test_unscorable_samples_take_no_part() -> None:
    found = best_of_n([[3.0, NAN, 1, 2], [NAN, 5, NAN, NAN]], 2, gold=[[1.0, 9, 2, 3], [1, 1, 1, 1]])
    alone = best_of_n([[3.0, 1, 2]], 2, gold=[[1.0, 2, 3]])
    assert (found.reward, found.gold, found.win_rate, found.kl) == (alone.reward, alone.gold, alone.win_rate, alone.kl)
    assert (found.prompts, found.left_out) == (1, 1)
    assert math.isnan(found.reward_stderr), "one prompt shows no error"


def test_an_unknown_gold_is_spoken_for_by_its_ties_and_else_by_the_other_samples() -> None:
    assert best_of_n([[1.0, 1, 0]], 3, gold=[[4.0, NAN, 9]]).gold == pytest.approx(4.0)
    # Weights 2/3 and 1/3 for the best two: without the first, the second alone speaks.
    assert best_of_n([[3.0, 2, 1]], 2, gold=[[NAN, 6.0, 9]]).gold == pytest.approx(6.0)
    assert math.isnan(best_of_n([[3.0, 2, 1]], 2, gold=[[NAN, NAN, 9]]).gold)


def test_errors_are_clustered_by_prompt_text() -> None:
    scores = np.random.default_rng(0).normal(size=(6, 9))
    texts = list("abcdef")
    found = best_of_n(scores, 4, prompts=texts)
    assert found.reward_stderr == pytest.approx(best_of_n(np.tile(scores, (3, 1)), 4, prompts=texts * 3).reward_stderr)
    each = [best_of_n(scores[i : i + 1], 4).reward for i in range(6)]
    assert found.reward_stderr == pytest.approx(np.std(each, ddof=1) / 6**0.5)


def test_the_interval_is_longer_on_the_side_of_the_tail() -> None:
    """Of symmetric values it is Student's t interval; a tail above stretches it upwards."""
    even = best_of_n([[1.0], [2], [3], [4], [5]], 1)
    reach = stats.t.ppf(0.975, 4) * even.reward_stderr
    assert even.reward_interval == pytest.approx((3 - reach, 3 + reach))
    low, high = best_of_n([[1.0], [1.1], [1.2], [1.3], [5]], 1).reward_interval
    assert high - 1.92 > 1.5 * (1.92 - low)
    down = best_of_n([[-1.0], [-1.1], [-1.2], [-1.3], [-5]], 1).reward_interval
    assert down == pytest.approx((-high, -low))
    assert best_of_n([[0.1]] * 7, 1).reward_interval == pytest.approx((0.1, 0.1))


@pytest.mark.parametrize(
    ("scores", "n", "words"),
    [
        ([[1.0, 2]], 3, "give 1 to 2"),
        ([[1.0, 2]], 0, "give 1 to 2"),
        ([[1.0, math.inf]], 1, "row 0, column 1 is inf"),
        ([[[1.0]]], 1, "shape"),
    ],
)
def test_what_cannot_be_used_is_refused(scores: list[list[float]], n: int, words: str) -> None:
    with pytest.raises(DataError, match=words):
        best_of_n(scores, n)


def test_gold_of_another_shape_is_refused() -> None:
    with pytest.raises(DataError, match="one gold score a sample"):
        best_of_n([[1.0, 2]], 1, gold=[[1.0]])
    with pytest.raises(DataError, match="one text a row"):
        best_of_n([[1.0, 2]], 1, prompts=["a", "b"])


def test_the_functions_on_arrays_need_no_torch() -> None:
    code = "import sys; from rlhf_pg.evaluate import best_of_n, efficiency, pareto; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# The exact distribution.


@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_exact_distribution_is_that_of_all_tuples(n: int) -> None:
    p, scores = np.array([0.1, 0.4, 0.2, 0.3]), [1.0, 0.0, 1.0, 2.0]
    best = np.zeros(4)
    for drawn in product(range(4), repeat=n):
        top = max(scores[i] for i in drawn)
        winners = [i for i in drawn if scores[i] == top]
        for i in winners:
            best[i] += np.prod(p[list(drawn)]) / len(winners)
    reward, kl = exact_best_of_n(p, scores, n)
    assert reward == pytest.approx(best @ scores)
    assert kl == pytest.approx((best * np.log(np.maximum(best, 1e-300) / p)).sum())
    assert kl <= kl_bound(n) + 1e-12


def test_scores_that_tie_cost_less_than_the_bound() -> None:
    """With a share of 1/4 at 1, the best of any number costs log 4 at most."""
    found = best_of_n([[0.0, 0, 1, 1, 0, 0, 0, 0] * 2], 8)
    assert found.kl == pytest.approx(exact_best_of_n([0.75, 0.25], [0, 1], 8)[1])
    assert found.kl < 1.0 < found.kl_bound - 0.2


def test_the_kl_is_corrected_by_what_halves_of_the_samples_say() -> None:
    """A quarter of all score 1, but a half and none of the samples at even and odd places."""
    found = best_of_n([[0.0, 0, 1, 0, 0, 0, 1, 0]], 3)
    whole, half = (exact_best_of_n([1 - p, p], [0, 1], 3)[1] for p in (0.25, 0.5))
    assert found.kl == pytest.approx(2 * whole - (half + 0) / 2)


def test_the_kl_of_a_large_sample_is_the_true_one() -> None:
    truth = world("binary")
    exact = np.mean([exact_best_of_n(p, r, 16)[1] for p, r in zip(truth.reference, truth.rewards, strict=True)])
    found = best_of_n(draw(truth, 400, 512, 1, seed=1).scores, 16)
    assert found.kl == pytest.approx(exact, abs=2 * found.kl_stderr)
    assert found.kl < found.kl_bound - 0.3


@pytest.mark.parametrize("rewards", ["bounded", "binary"])
def test_the_intervals_hold_the_truth(rewards: str) -> None:
    coverage = covered(rewards, n=8, times=60, prompts=60)
    assert min(coverage.values()) >= 0.88, coverage


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 8, 32])
@pytest.mark.parametrize("rewards", ["bounded", "binary", "wide"])
def test_the_intervals_of_200_prompts_hold_the_truth(rewards: str, n: int) -> None:
    coverage = covered(rewards, n, times=1000, prompts=200)
    print(f"best of {n}, {rewards}: {coverage}")
    assert min(coverage.values()) >= 0.92, coverage


def covered(rewards: str, n: int, times: int, prompts: int) -> dict[str, float]:
    """How often the 95% intervals from 128 samples a prompt hold the true value and KL."""
    truth = world(rewards)
    exact = [exact_best_of_n(p, r, n) for p, r in zip(truth.reference, truth.rewards, strict=True)]
    reward, kl = np.mean(exact, axis=0)
    hits = {"reward": 0, "kl": 0}
    for seed in range(times):
        found = best_of_n(draw(truth, prompts, 128, 1, seed).scores, n)
        hits["reward"] += found.reward_interval[0] <= reward <= found.reward_interval[1]
        hits["kl"] += found.kl_interval[0] <= kl <= found.kl_interval[1]
    return {name: float(count / times) for name, count in hits.items()}
