"""Scores to advantages: hand-worked values, and the exact gradient through the same function that a run calls."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy
import pytest
import torch
from enumeration_world import (
    IDS,
    LOGITS,
    MASK,
    REF_LOGITS,
    SCORES,
    TRUNCATED,
    assert_differs,
    assert_same,
    at_states,
    gradient,
    policy,
    probabilities,
    token_logprobs,
    truth,
    tuples,
)
from torch import Tensor

from rlhf_pg.algorithm import AlgorithmState, advantages, rollout_metrics, sequence_kl
from rlhf_pg.config.tree import Config
from rlhf_pg.ops.kl import exact_kl
from rlhf_pg.ops.losses import kl_loss, reinforce_loss
from rlhf_pg.types import ModelPasses, PromptBatch, Rollout, ScoredRollout, TrainBatch

F64 = torch.float64
START = AlgorithmState(kl_coef=0.0)


def configured(baseline: str = "none", **sections: dict[str, Any]) -> Config:
    advantage = {"baseline": baseline, **sections.pop("advantage", {})}
    return Config.model_validate({"kl": {"coef": 0.0}, "advantage": advantage, **sections})


def make(
    scores: list[float],
    lengths: list[int] | None = None,
    group: int = 1,
    *,
    truncated: list[bool] | None = None,
    valid: list[bool] | None = None,
    token_rewards: list[list[float]] | None = None,
    logprobs: list[list[float]] | None = None,
) -> ScoredRollout:
    """A scored rollout of responses of the given lengths (1 each if left out); padding holds NaN."""
    lengths = lengths or [1] * len(scores)
    rows, width, count = len(scores), max(lengths), len(scores) // group
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]

    def table(given: list[list[float]] | None, padding: float) -> Tensor:
        found = torch.zeros(rows, width, dtype=F64)
        for row, values in enumerate(given or []):
            found[row, : len(values)] = torch.tensor(values, dtype=F64)
        return torch.where(mask, found, padding)

    ones = torch.ones(count, 1)
    prompts = PromptBatch(torch.arange(count), ("p",) * count, ones.long(), ones.bool())
    reasons = tuple("length" if cut else "eos" for cut in truncated or [False] * rows)
    rollout = Rollout(
        prompts,
        group,
        torch.zeros_like(mask, dtype=torch.int64),
        mask,
        table(logprobs, math.nan),
        reasons,
        ("t",) * rows,
    )
    scored = torch.tensor(scores, dtype=F64)
    known = torch.ones(rows, dtype=torch.bool) if valid is None else torch.tensor(valid)
    component = torch.where(known, scored, torch.nan)
    return ScoredRollout(rollout, scored, {"f": component}, known, table(token_rewards, 0.0))


def table(values: list[list[float]]) -> Tensor:
    return torch.tensor(values, dtype=F64)


def close(found: Tensor, wanted: list[Any], tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found.double(), torch.tensor(wanted, dtype=F64), rtol=0, atol=tolerance)


def first(batch: TrainBatch) -> Tensor:
    return batch.advantages[:, 0]


# Baselines.


@pytest.mark.parametrize(
    ("baseline", "more", "average", "wanted"),
    [
        ("none", {}, None, [1, 2, 3, 6]),
        ("constant", {"constant": 1.0}, None, [0, 1, 2, 5]),
        ("batch_mean", {}, None, [-2, -1, 0, 3]),
        ("moving_average", {}, None, [1, 2, 3, 6]),
        ("moving_average", {}, 2.0, [-1, 0, 1, 4]),
        ("group_mean", {}, None, [-0.5, 0.5, -1.5, 1.5]),
        ("leave_one_out", {}, None, [-1, 1, -3, 3]),
        ("greedy", {}, None, [1, 2, -1, 2]),
    ],
)
def test_each_baseline_by_hand(baseline: str, more: dict[str, Any], average: float | None, wanted: list[float]) -> None:
    config = configured(baseline, advantage=more)
    state = replace(START, average=average)
    greedy = torch.tensor([0.0, 4.0], dtype=F64)
    batch, _ = advantages(config, make([1, 2, 3, 6], group=2), ModelPasses(), state, greedy)
    close(first(batch), wanted)


@pytest.mark.parametrize("baseline", ["optimal", "optimal_length"])
def test_the_optimal_baselines_weigh_the_others(baseline: str) -> None:
    scored = make([1, 2, 6], [1, 2, 3], group=3)
    norms = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    batch, _ = advantages(configured(baseline), scored, ModelPasses(grad_sq_norms=norms), START)
    close(first(batch), [1 - (2 * 2 + 6 * 3) / 5, 2 - (1 * 1 + 6 * 3) / 4, 6 - (1 * 1 + 2 * 2) / 3])


def test_the_learned_value_goes_through_gae() -> None:
    """The figures of trap 23: a reward of 1 on the last of two tokens, V = 0, lambda 0.5."""
    config = configured("value", advantage={"lam": 0.5})
    zeros = torch.zeros(1, 2, dtype=F64)
    batch, _ = advantages(config, make([1], [2]), ModelPasses(values=zeros), START)
    close(batch.advantages, [[0.5, 1]])
    assert batch.returns is not None
    close(batch.returns, [[0.5, 1]])

    values = table([[0.3, 0.2]])
    batch, _ = advantages(configured("value"), make([0], [2]), ModelPasses(values=values), START)
    close(batch.advantages, [[-0.3, -0.2]])
    more = ModelPasses(values=values, bootstrap=torch.tensor([0.4], dtype=F64))
    batch, _ = advantages(configured("value"), make([0], [2], truncated=[True]), more, START)
    close(batch.advantages, [[0.1, 0.2]])


def test_leave_one_out_and_grpo_of_trap_18() -> None:
    scored = make([1, 1, 1, 0, 0, 0, 0, 0], group=8)
    batch, _ = advantages(configured("leave_one_out"), scored, ModelPasses(), START)
    close(first(batch), [0.7143] * 3 + [-0.4286] * 5, 1e-4)
    grpo = configured("group_mean", advantage={"normalize": "group_std"})
    batch, _ = advantages(grpo, scored, ModelPasses(), START)
    close(first(batch), [1.2076] * 3 + [-0.7246] * 5, 1e-4)


def test_group_std_leaves_groups_without_spread_at_zero() -> None:
    config = configured("group_mean", advantage={"normalize": "group_std"})
    batch, _ = advantages(config, make([1, 3, 0.1, 0.1], group=2), ModelPasses(), START)
    close(first(batch), [-(0.5**0.5), 0.5**0.5, 0, 0])


def test_batch_std_whitens_over_the_tokens_of_the_mask() -> None:
    config = configured("none", advantage={"normalize": "batch_std"})
    scored = make([1, 2, 99, 4], [2, 3, 3, 1], valid=[True, True, False, True])
    batch, _ = advantages(config, scored, ModelPasses(), START)
    tokens = numpy.array([1, 1, 2, 2, 2, 4])
    white = (tokens - tokens.mean()) / numpy.sqrt(tokens.var() + 1e-8)
    close(batch.advantages[batch.mask], white.tolist())
    close(batch.advantages[~batch.mask], [0] * 6)


# The KL.


def penalised(coef: float = 0.5, **more: Any) -> tuple[Config, AlgorithmState]:
    config = configured(more.pop("baseline", "none"), kl={"coef": coef, **more})
    return config, AlgorithmState(kl_coef=coef)


def test_kl_in_the_reward_has_the_sign_that_punishes_drift() -> None:
    """Trap 19. The rewards are -0.5 * [0.5, -1] + [0, 1]; each token gets those from it on."""
    config, state = penalised()
    scored = make([1], [2], logprobs=[[-1, -2]])
    batch, _ = advantages(config, scored, ModelPasses(ref_logprobs=table([[-1.5, -1]])), state)
    close(batch.advantages, [[1.25, 1.5]])
    more_likely = make([1], [2], logprobs=[[-0.5, -2]])
    batch, _ = advantages(config, more_likely, ModelPasses(ref_logprobs=table([[-1.5, -1]])), state)
    assert float(batch.advantages[0, 0]) < 1.25


def test_the_coefficient_is_the_states_not_the_configs() -> None:
    config, _ = penalised()
    scored = make([1], [1], logprobs=[[-1]])
    batch, _ = advantages(config, scored, ModelPasses(ref_logprobs=table([[-2]])), AlgorithmState(kl_coef=2.0))
    close(batch.advantages, [[-1]])


def test_kl_is_measured_on_the_training_forward_where_there_is_one() -> None:
    config, state = penalised()
    passes = ModelPasses(old_logprobs=table([[-3]]), ref_logprobs=table([[-2]]))
    batch, _ = advantages(config, make([1], [1], logprobs=[[-1]]), passes, state)
    close(batch.advantages, [[1.5]])


def test_kl_is_taken_before_the_baseline() -> None:
    """Trap 18: scores [1, 3] less 0.5 * [2, -2] are [0, 4], and leave-one-out of those is [-4, 4]."""
    config, state = penalised(baseline="leave_one_out")
    scored = make([1, 3], group=2, logprobs=[[-1], [-3]])
    batch, _ = advantages(config, scored, ModelPasses(ref_logprobs=table([[-3], [-1]])), state)
    close(first(batch), [-4, 4])


def test_the_moving_average_is_of_penalised_rewards() -> None:
    config, state = penalised(baseline="moving_average")
    scored = make([1, 3], logprobs=[[-1], [-1]])
    _, after = advantages(config, scored, ModelPasses(ref_logprobs=table([[-3], [-3]])), state)
    assert after.average == pytest.approx(1.0)


def test_with_the_exact_kl_a_token_pays_for_the_state_it_leads_to() -> None:
    config, state = penalised(1.0, placement="both", estimator="exact")
    kl = table([[0.3, 0.2, 0.1], [0.4, math.nan, math.nan]])
    scored = make([1, 1], [3, 1], logprobs=[[-1, -1, -1], [-1]])
    batch, _ = advantages(config, scored, ModelPasses(exact_kl=kl), state)
    close(batch.advantages, [[0.7, 0.9, 1.0], [1.0, 0, 0]])
    assert batch.ref_logprobs is None
    found = sequence_kl(scored, ModelPasses(exact_kl=kl))
    assert found is not None
    close(found, [0.6, 0.4])


def test_kl_in_the_loss_leaves_the_reward_alone() -> None:
    config, state = penalised(0.5, placement="loss", estimator="k3")
    ref = table([[-3]])
    batch, _ = advantages(config, make([1], logprobs=[[-1]]), ModelPasses(ref_logprobs=ref), state)
    close(batch.advantages, [[1]])
    assert batch.ref_logprobs is ref


def test_the_adaptive_coefficient_is_the_next_steps() -> None:
    """Trap 25."""
    for kl, wanted in ((12.0, 0.151536), (0.0, 0.148464), (6.6, 0.150768)):
        config, state = penalised(0.15, controller="adaptive", target=6.0, horizon=1e4)
        scored = make([0.0] * 512, logprobs=[[-1.0]] * 512)
        passes = ModelPasses(ref_logprobs=torch.full((512, 1), -1.0 - kl, dtype=F64))
        batch, after = advantages(config, scored, passes, state)
        assert after.kl_coef == pytest.approx(wanted, abs=1e-12)
        close(first(batch), [-0.15 * kl] * 512)


# Rewards.


def test_only_rewards_from_a_token_on_count() -> None:
    scored = make([10, 0], [3, 2], token_rewards=[[1, 2, 3], [0, 5]])
    batch, _ = advantages(configured(), scored, ModelPasses(), START)
    close(batch.advantages, [[16, 15, 13], [5, 5, 0]])
    discounted = configured(advantage={"gamma": 0.5})
    batch, _ = advantages(discounted, scored, ModelPasses(), START)
    close(batch.advantages, [[1 + 1 + 13 / 4, 2 + 6.5, 13], [2.5, 5, 0]])


def test_returns_from_a_token_on_are_compared_with_the_others_from_there_on() -> None:
    """The returns are [4, 3] and [6, 6, 5]; past its end a response counts with its score, here 1."""
    scored = make([1, 0], [2, 3], group=2, token_rewards=[[1, 2], [0, 1, 5]])
    batch, _ = advantages(configured("leave_one_out"), scored, ModelPasses(), START)
    close(batch.advantages, [[4 - 6, 3 - 6, 0], [6 - 4, 6 - 3, 5 - 1]])


def test_the_missing_end_is_subtracted() -> None:
    """Trap 12: [2, 2] with the second unfinished and a penalty of 1 is [2, 1]."""
    config = configured(reward={"missing_eos_penalty": 1.0})
    batch, _ = advantages(config, make([2, 2], truncated=[False, True]), ModelPasses(), START)
    close(first(batch), [2, 1])


def test_clipping_comes_before_the_penalty() -> None:
    config = configured(reward={"clip": [-1.0, 1.0], "missing_eos_penalty": 0.5})
    batch, _ = advantages(config, make([5, -5, 0.3], truncated=[False, True, False]), ModelPasses(), START)
    close(first(batch), [1, -1.5, 0.3])


def test_the_greedy_scores_are_shaped_like_the_others() -> None:
    config = configured("greedy", reward={"clip": [-1.0, 1.0]})
    batch, _ = advantages(config, make([5, 0.25]), ModelPasses(), START, torch.tensor([7.0, -9.0], dtype=F64))
    close(first(batch), [0, 1.25])


def test_batch_normalisation() -> None:
    scores = [1.0, 2.0, 4.0, 9.0]
    config = configured(reward={"normalize": "batch"})
    batch, after = advantages(config, make(scores), ModelPasses(), START)
    wanted = (numpy.array(scores) - numpy.mean(scores)) / numpy.std(scores)
    close(first(batch), wanted.tolist())
    assert after == START
    batch, _ = advantages(config, make([3.0, 3.0]), ModelPasses(), START)
    close(first(batch), [0, 0])


def test_running_normalisation_is_that_of_all_scores_so_far() -> None:
    config = configured(reward={"normalize": "running"})
    draws, state, seen = numpy.random.default_rng(0), START, numpy.zeros(0)
    for size in (3, 5, 2):
        scores = draws.normal(7.0, 3.0, size)
        seen = numpy.concatenate([seen, scores])
        batch, state = advantages(
            config, make([*scores.tolist(), 1e6], valid=[True] * size + [False]), ModelPasses(), state
        )
        close(first(batch), [*((scores - seen.mean()) / seen.std()).tolist(), 0])
    count, mean, m2 = state.scores
    assert count == 10
    assert mean == pytest.approx(seen.mean(), abs=1e-12)
    assert m2 / 10 == pytest.approx(seen.var(), abs=1e-11)


def test_a_row_without_a_score_is_in_no_baseline_and_learns_nothing() -> None:
    """Trap 14."""
    scored = make([1, 0, 3, 5], group=2, valid=[True, False, True, True])
    batch, _ = advantages(configured("leave_one_out"), scored, ModelPasses(), START)
    close(first(batch), [0, 0, -2, 2])
    assert batch.mask[:, 0].tolist() == [True, False, True, True]
    batch, _ = advantages(configured("batch_mean"), scored, ModelPasses(), START)
    close(first(batch), [-2, 0, 0, 2])
    _, after = advantages(configured("moving_average"), scored, ModelPasses(), START)
    assert after.average == 3.0


def test_a_batch_without_any_score_leaves_the_state() -> None:
    state = AlgorithmState(0.0, average=2.0, scores=(4.0, 1.0, 8.0))
    config = configured("moving_average", reward={"normalize": "running"})
    batch, after = advantages(config, make([0, 0], valid=[False, False]), ModelPasses(), state)
    assert after == state
    assert not batch.mask.any()
    assert not batch.advantages.any()


def test_the_moving_average_through_the_state() -> None:
    config = configured("moving_average", advantage={"decay": 0.9})
    _, state = advantages(config, make([1, 5]), ModelPasses(), START)
    assert state.average == 3.0
    batch, state = advantages(config, make([4, 6]), ModelPasses(), state)
    close(first(batch), [1, 3])
    assert state.average == pytest.approx(0.9 * 3 + 0.1 * 5)


def test_truncated_importance_weights() -> None:
    """Trap 6: ratios of 1/4, 1 and 4, capped at 2."""
    old = torch.tensor([[0.25, 1.0, 4.0]], dtype=F64).log() - 2.0
    config = configured(loss={"truncated_is": 2.0})
    passes = ModelPasses(old_logprobs=old.requires_grad_())
    batch, _ = advantages(config, make([1], [3], logprobs=[[-2, -2, -2]]), passes, START)
    assert batch.weights is not None
    close(batch.weights, [[0.25, 1, 2]])
    assert not batch.weights.requires_grad


# Metrics.


def test_rollout_metrics() -> None:
    scored = make(
        [1, 2, 3, 3, 0, 9],
        [1, 2, 3, 1, 2, 3],
        group=2,
        truncated=[False, False, True, False, False, False],
        valid=[True, True, True, True, False, True],
        token_rewards=[[0.5]],
        logprobs=[[-1], [-1, -1], [-1] * 3, [-1], [-1] * 2, [-1] * 3],
    )
    passes = ModelPasses(
        old_logprobs=torch.full((6, 3), -1.25, dtype=F64), ref_logprobs=torch.full((6, 3), -1.5, dtype=F64)
    )
    rewards, lengths = numpy.array([1.5, 2, 3, 3, 9]), numpy.array([1, 2, 3, 1, 2, 3])
    wanted = {
        "reward": rewards.mean(),
        "reward_std": rewards.std(ddof=1),
        "rewards/unscorable": 1 / 6,
        "rewards/f/unscorable": 1 / 6,
        "rewards/f/mean": 3.6,
        "rewards/f/std": numpy.std([1, 2, 3, 3, 9], ddof=1),
        "completions/mean_length": 2.0,
        "completions/min_length": 1.0,
        "completions/max_length": 3.0,
        "completions/clipped_ratio": 1 / 6,
        "frac_reward_zero_std": 2 / 3,
        "kl/coef": 0.07,
        "kl/sequence": 0.25 * lengths.mean(),
        "kl/token": 0.25,
        "logprob_gap": 0.25,
    }
    found = rollout_metrics(scored, passes, AlgorithmState(kl_coef=0.07))
    assert found == pytest.approx(wanted, abs=1e-12)


def test_rollout_metrics_without_groups_scores_or_passes() -> None:
    found = rollout_metrics(make([0, 0], valid=[False, False]), ModelPasses(), START)
    assert "frac_reward_zero_std" not in found
    assert "kl/sequence" not in found
    assert "rewards/f/mean" not in found
    assert (found["reward"], found["rewards/unscorable"]) == (0.0, 1.0)
    assert all(math.isfinite(value) for value in found.values())


# The exact gradient, through the function that a run calls.

BETA = 0.3


def every_pair() -> tuple[ScoredRollout, Tensor, Tensor]:
    """All pairs of responses as groups of 2, their rows, and each pair's probability, a row each."""
    members = tuples(2)
    rows, chance = members.flatten(), probabilities(LOGITS)[members].prod(1).repeat_interleave(2)
    ones = torch.ones(len(members), 1)
    prompts = PromptBatch(torch.arange(len(members)), ("p",) * len(members), ones.long(), ones.bool())
    reasons = tuple("length" if cut else "eos" for cut in TRUNCATED[rows].tolist())
    rollout = Rollout(prompts, 2, IDS[rows], MASK[rows], token_logprobs(LOGITS)[rows], reasons, ("",) * len(rows))
    everyone = torch.ones(len(rows), dtype=torch.bool)
    nothing = torch.zeros(MASK[rows].shape, dtype=F64)
    return ScoredRollout(rollout, SCORES[rows], {}, everyone, nothing), rows, chance


@pytest.mark.parametrize("baseline", ["leave_one_out", "none"])
@pytest.mark.parametrize("estimator", ["k1", "exact"])
def test_the_gradient_is_exactly_that_of_reward_less_beta_kl(estimator: str, baseline: str) -> None:
    scored, rows, chance = every_pair()
    placement = "reward" if estimator == "k1" else "both"
    config = configured(baseline, kl={"coef": BETA, "placement": placement, "estimator": estimator})
    passes = (
        ModelPasses(ref_logprobs=token_logprobs(REF_LOGITS)[rows])
        if estimator == "k1"
        else ModelPasses(exact_kl=at_states(exact_kl(LOGITS, REF_LOGITS))[rows])
    )
    batch, _ = advantages(config, scored, passes, AlgorithmState(kl_coef=BETA))

    def found(with_loss_term: bool) -> Tensor:
        table = policy()
        loss, _ = reinforce_loss(token_logprobs(table)[rows], batch.advantages, batch.mask, 2.0, chance[:, None])
        in_loss, _ = kl_loss(at_states(exact_kl(table, REF_LOGITS))[rows], batch.mask, 2.0, chance[:, None])
        return -gradient(loss + BETA * in_loss if with_loss_term else loss, table)

    assert_same(found(estimator == "exact"), truth(SCORES, BETA))
    assert_differs(found(estimator == "k1"), truth(SCORES, BETA))
