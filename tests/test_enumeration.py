"""Every estimator against the exact gradient, summed over all responses of a small world (see enumeration_world)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from enumeration_world import (
    IDS,
    LAST,
    LENGTHS,
    LOGITS,
    MASK,
    OLD_LOGITS,
    REF_LOGITS,
    RESPONSES,
    SCORES,
    STATE,
    STATES,
    TOKEN_REWARDS,
    TRUNCATED,
    VALUES,
    N,
    assert_differs,
    assert_same,
    at_last,
    at_states,
    gradient,
    pad_nan,
    policy,
    probabilities,
    relative_error,
    squared_gradient_norms,
    token_logprobs,
    total,
    truth,
    tuples,
    visit_probabilities,
)
from torch import Tensor

from rlhf_pg.ops import baselines, kl, losses, returns

BETA = 0.3
F64 = torch.float64


def expected_gradient(
    advantages: Tensor,
    *,
    mask: Tensor = MASK,
    sampled_from: Tensor = LOGITS,
    loss: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None = None,
    kind: losses.Aggregation = "sequence_sum",
) -> Tensor:
    """Minus the loss's gradient, expected over batches of one response.

    ``loss(logprobs, advantages, mask, weights)`` has the denominator 1; what it divides by is linear.
    """
    table = policy()
    weights, _ = losses.aggregate_weights(mask, kind, 3, dtype=F64)
    weights = weights * probabilities(sampled_from)[:, None]
    if loss is None:
        value, _ = losses.reinforce_loss(token_logprobs(table), advantages, mask, 1.0, weights)
    else:
        value = loss(token_logprobs(table), advantages, mask, weights)
    return -gradient(value, table)


def expected_group_gradient(
    group_size: int,
    baseline: Callable[..., Tensor],
    *,
    scores: Tensor = SCORES,
    rewards: Tensor | None = None,
    scale: Callable[..., Tensor] | None = None,
    per_response: dict[str, Tensor] | None = None,
) -> Tensor:
    """Minus the loss's gradient, expected over every group of responses, each group a prompt of its own."""
    members = tuples(group_size)
    chance = probabilities(LOGITS)[members].prod(1)
    rows = members.flatten()
    extra = {name: values[rows] for name, values in (per_response or {}).items()}
    b = baseline(scores[rows], group_size, **extra)
    to_go = returns.rewards_to_go(at_last(scores) if rewards is None else rewards, MASK, 1.0)[rows]
    advantages = to_go - b[:, None]
    if scale is not None:
        deviation = scale(scores[rows], group_size)
        advantages = torch.where(deviation > 0, 1 / deviation, 0.0)[:, None] * advantages
    table = policy()
    weights = chance.repeat_interleave(group_size)[:, None]
    loss, _ = losses.reinforce_loss(token_logprobs(table)[rows], advantages, MASK[rows], float(group_size), weights)
    return -gradient(loss, table)


def visited_state_gradient(divergence: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The gradient of Σ_s d(s) D(s) with the visits d(s) held fixed; D from log π and log π_ref, (7, 3) each."""
    table = policy()
    values = divergence(torch.log_softmax(table, 1), torch.log_softmax(REF_LOGITS, 1)).sum(1)
    return gradient((visit_probabilities() * values).sum(), table)


def test_the_world_is_whole() -> None:
    assert N == len(set(RESPONSES)) == 15
    assert int(TRUNCATED.sum()) == 8
    torch.testing.assert_close(probabilities(LOGITS).sum(), torch.tensor(1.0, dtype=F64))
    assert torch.isnan(token_logprobs(LOGITS)[~MASK]).all()


# Unbiased: baselines.


@pytest.mark.parametrize("constant", [0.0, 1.7, -40.0])
def test_reinforce_with_a_constant_is_unbiased(constant: float) -> None:
    b = baselines.constant(SCORES, 1, value=constant)
    assert_same(expected_gradient(pad_nan((SCORES - b)[:, None].expand(N, 3))), truth(SCORES))


def test_no_baseline_is_unbiased() -> None:
    assert_same(expected_group_gradient(1, baselines.none), truth(SCORES))


@pytest.mark.parametrize("group_size", [2, 3])
def test_leave_one_out_is_unbiased(group_size: int) -> None:
    assert_same(expected_group_gradient(group_size, baselines.leave_one_out), truth(SCORES))


@pytest.mark.parametrize("group_size", [2, 3])
def test_optimal_baselines_without_ones_own_row_are_unbiased(group_size: int) -> None:
    norms = {"sq_norms": squared_gradient_norms()}
    assert_same(expected_group_gradient(group_size, baselines.optimal, per_response=norms), truth(SCORES))
    lengths = {"lengths": LENGTHS}
    assert_same(expected_group_gradient(group_size, baselines.optimal_length, per_response=lengths), truth(SCORES))


def test_the_optimal_baseline_has_the_least_variance() -> None:
    p, norms = probabilities(LOGITS), squared_gradient_norms()
    best = float((p * norms * SCORES).sum() / (p * norms).sum())

    def second_moment(b: float) -> float:
        return float((p * norms * (SCORES - b) ** 2).sum())

    assert all(second_moment(best) < second_moment(other) for other in (best - 0.01, best + 0.01, 0.0))


def test_moving_average_is_unbiased_over_two_batches() -> None:
    """The second batch's baseline is random, made by the first batch; the expectation over both is exact."""
    p = probabilities(LOGITS)
    gradients = []
    for first in range(N):
        average = baselines.update_average(None, SCORES[first : first + 1], None, 0.9)
        b = baselines.moving_average(SCORES, 1, average=average)
        gradients.append(p[first] * expected_gradient((SCORES - b)[:, None].expand(N, 3)))
    assert_same(torch.stack(gradients).sum(0), truth(SCORES))


def test_greedy_is_unbiased() -> None:
    state: tuple[int, ...] = ()
    while state not in RESPONSES:
        state = (*state, int(LOGITS[STATES.index(state)].argmax()))
    score = SCORES[RESPONSES.index(state)].reshape(1)
    members = tuples(2)
    greedy_scores = score.expand(len(members))
    assert_same(
        expected_group_gradient(2, lambda s, g: baselines.greedy(s, g, greedy_scores=greedy_scores)), truth(SCORES)
    )


# Biased: baselines.


@pytest.mark.parametrize("group_size", [2, 3])
def test_group_mean_is_exactly_g_minus_1_over_g(group_size: int) -> None:
    factor = (group_size - 1) / group_size
    assert_same(expected_group_gradient(group_size, baselines.group_mean), factor * truth(SCORES))


@pytest.mark.parametrize("prompts", [1, 2])
def test_batch_mean_is_exactly_b_minus_1_over_b(prompts: int) -> None:
    """B = 2: one prompt twice, or two prompts once; the batch is then the whole argument."""
    group_size = 2 // prompts
    members = tuples(2)
    b = torch.stack([baselines.batch_mean(SCORES[pair], group_size) for pair in members]).flatten()
    assert_same(expected_group_gradient(2, lambda scores, g: b), 0.5 * truth(SCORES))


@pytest.mark.parametrize("baseline", [baselines.group_mean, baselines.leave_one_out])
def test_dividing_by_the_group_deviation_is_biased_in_direction(baseline: Callable[..., Tensor]) -> None:
    estimate = expected_group_gradient(3, baseline, scale=baselines.group_std)
    exact = truth(SCORES)
    best_factor = (estimate * exact).sum() / exact.square().sum()
    assert_differs(estimate, best_factor * exact)


# Aggregation, and what must not be left out.


def test_fixed_length_is_the_unbiased_gradient_over_max_new_tokens() -> None:
    exact = truth(SCORES)
    table = policy()
    total_gradient = torch.zeros_like(exact)
    p = probabilities(LOGITS)
    for row in range(N):
        weights, denominator = losses.aggregate_weights(MASK[row : row + 1], "fixed", 3, dtype=F64)
        row_advantages = SCORES[row].expand(1, 3)
        loss, _ = losses.reinforce_loss(
            token_logprobs(table)[row : row + 1], row_advantages, MASK[row : row + 1], denominator, weights
        )
        total_gradient -= p[row] * gradient(loss, table)
    assert_same(total_gradient, exact / 3)


def test_sequence_mean_is_the_gradient_of_the_score_per_token() -> None:
    b = 0.4
    estimate = expected_gradient((SCORES - b)[:, None].expand(N, 3), kind="sequence_mean")
    assert_same(estimate, truth((SCORES - b) / LENGTHS))
    exact = truth(SCORES)
    assert_differs(estimate, (estimate * exact).sum() / exact.square().sum() * exact)


def test_token_mean_is_biased_in_direction() -> None:
    members = tuples(2)
    chance = probabilities(LOGITS)[members].prod(1)
    rows = members.flatten()
    denominators = torch.tensor([losses.aggregate_weights(MASK[pair], "token_mean", 3)[1] for pair in members])
    assert set(denominators.tolist()) == {2.0, 3.0, 4.0, 5.0, 6.0}
    b = baselines.leave_one_out(SCORES[rows], 2)
    weights = (chance / denominators).repeat_interleave(2)[:, None]
    table = policy()
    advantages = (SCORES[rows] - b)[:, None].expand(-1, 3)
    loss, _ = losses.reinforce_loss(token_logprobs(table)[rows], advantages, MASK[rows], 1.0, weights)
    estimate, exact = -gradient(loss, table), truth(SCORES)
    assert_differs(estimate, (estimate * exact).sum() / exact.square().sum() * exact)


def test_dropping_the_eos_token_is_biased() -> None:
    without = MASK & ~(LAST & (IDS == 0))
    assert_differs(expected_gradient(SCORES[:, None].expand(N, 3), mask=without), truth(SCORES))


def test_dropping_truncated_responses_is_biased() -> None:
    without = MASK & ~TRUNCATED[:, None]
    assert_differs(expected_gradient(SCORES[:, None].expand(N, 3), mask=without), truth(SCORES))


# Returns.


def token_rewards() -> Tensor:
    return pad_nan(TOKEN_REWARDS[STATE, IDS] + torch.where(LAST, SCORES[:, None], 0.0))


def test_rewards_to_go_with_token_rewards_are_unbiased() -> None:
    rewards = token_rewards()
    assert_same(expected_gradient(returns.rewards_to_go(rewards, MASK, 1.0)), truth(total(rewards)))


@pytest.mark.parametrize("values", [VALUES, 0 * VALUES, 100 * VALUES])
def test_gae_with_lambda_1_is_unbiased_whatever_the_values(values: Tensor) -> None:
    rewards = token_rewards()
    advantages, _ = returns.gae(rewards, at_states(values), MASK, 1.0, 1.0)
    assert_same(expected_gradient(advantages), truth(total(rewards)))


def true_values(gamma: float) -> tuple[Tensor, Tensor]:
    """V (7,) and Q (7, 3) of the token rewards with the score at the end, by recursion over the states."""
    values, action_values = torch.zeros(7, dtype=F64), torch.zeros(7, 3, dtype=F64)
    probs = torch.softmax(LOGITS, 1)
    for index in reversed(range(7)):
        for action in range(3):
            after = (*STATES[index], action)
            tail = SCORES[RESPONSES.index(after)] if after in RESPONSES else gamma * values[STATES.index(after)]
            action_values[index, action] = TOKEN_REWARDS[index, action] + tail
        values[index] = (probs[index] * action_values[index]).sum()
    return values, action_values


@pytest.mark.parametrize("lam", [0.0, 0.5])
def test_gae_with_lambda_below_1_is_as_biased_as_the_values(lam: float) -> None:
    rewards = token_rewards()
    exact = truth(total(rewards))
    wrong, _ = returns.gae(rewards, at_states(VALUES), MASK, 1.0, lam)
    assert_differs(expected_gradient(wrong), exact)
    right, _ = returns.gae(rewards, at_states(true_values(1.0)[0]), MASK, 1.0, lam)
    assert_same(expected_gradient(right), exact)


def test_bootstrapping_a_response_that_was_paid_is_biased() -> None:
    bootstrap = torch.where(TRUNCATED, 0.8 * SCORES, 0.0)
    rewards = token_rewards()
    advantages, _ = returns.gae(rewards, at_states(VALUES), MASK, 1.0, 1.0, bootstrap)
    assert_differs(expected_gradient(advantages), truth(total(rewards)))


def test_discounting_follows_the_discounted_action_values_at_undiscounted_visits() -> None:
    gamma = 0.6
    rewards = token_rewards()
    estimate = expected_gradient(returns.rewards_to_go(rewards, MASK, gamma))

    table = policy()
    _, action_values = true_values(gamma)
    per_state = (torch.softmax(table, 1) * action_values).sum(1)
    assert_same(estimate, gradient((visit_probabilities() * per_state).sum(), table))

    powers = torch.tensor([1.0, gamma, gamma**2], dtype=F64)
    assert_differs(estimate, truth(total(rewards * powers)))
    assert_differs(estimate, truth(total(rewards)))
    weighed = returns.rewards_to_go(rewards, MASK, gamma) * powers
    assert_same(expected_gradient(weighed), truth(total(rewards * powers)))


# The KL.


def kl_rewards(estimator: kl.KlEstimator) -> Tensor:
    estimate = kl.kl_estimate(token_logprobs(LOGITS), token_logprobs(REF_LOGITS), estimator)
    return at_last(SCORES) - BETA * estimate


def test_k1_in_the_reward_is_exact() -> None:
    to_go = returns.rewards_to_go(kl_rewards("k1"), MASK, 1.0)
    assert_same(expected_gradient(to_go), truth(SCORES, BETA))


@pytest.mark.parametrize("group_size", [2, 3])
def test_k1_in_the_reward_with_leave_one_out_of_the_penalised_score_is_exact(group_size: int) -> None:
    rewards = kl_rewards("k1")
    estimate = expected_group_gradient(group_size, baselines.leave_one_out, scores=total(rewards), rewards=rewards)
    assert_same(estimate, truth(SCORES, BETA))


def test_only_rewards_from_t_on_matter_in_expectation() -> None:
    """The whole return at every token has the same mean: the past is noise, not bias."""
    whole = total(kl_rewards("k1"))[:, None].expand(N, 3)
    assert_same(expected_gradient(whole), truth(SCORES, BETA))


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_k2_and_k3_in_the_reward_are_biased(estimator: kl.KlEstimator) -> None:
    to_go = returns.rewards_to_go(kl_rewards(estimator), MASK, 1.0)
    score, exact = truth(SCORES), truth(SCORES, BETA)
    assert_differs(expected_gradient(to_go) - score, exact - score, at_least=0.1)


def kl_loss_gradient(estimator: kl.KlEstimator) -> Tensor:
    table = policy()
    estimate = kl.kl_estimate(token_logprobs(table), token_logprobs(REF_LOGITS), estimator, MASK)
    loss, _ = losses.kl_loss(estimate, MASK, 1.0, probabilities(LOGITS)[:, None])
    return gradient(loss, table)


def test_k1_in_the_loss_has_no_gradient() -> None:
    assert float(kl_loss_gradient("k1").norm()) < 1e-14


def test_k2_in_the_loss_is_the_kl_at_the_visited_states() -> None:
    reverse = visited_state_gradient(lambda logp, ref: logp.exp() * (logp - ref))
    assert_same(kl_loss_gradient("k2"), reverse)
    assert_differs(kl_loss_gradient("k2"), -(truth(SCORES, 1.0) - truth(SCORES)), at_least=0.1)


def test_k3_in_the_loss_is_the_forward_kl_at_the_visited_states() -> None:
    forward = visited_state_gradient(lambda logp, ref: ref.exp() * (ref - logp))
    assert_same(kl_loss_gradient("k3"), forward)
    assert_differs(kl_loss_gradient("k3"), kl_loss_gradient("k2"), at_least=0.1)


def exact_terms() -> tuple[Tensor, Tensor]:
    """The gradient of −KL from the loss term alone, and from the reward term alone."""
    table = policy()
    per_state = kl.exact_kl(table, REF_LOGITS)
    loss, _ = losses.kl_loss(at_states(per_state), MASK, 1.0, probabilities(LOGITS)[:, None])
    in_loss = -gradient(loss, table)
    to_go = returns.rewards_to_go(-at_states(per_state.detach()), MASK, 1.0)
    return in_loss, expected_gradient(to_go)


def test_exact_kl_needs_both_terms() -> None:
    in_loss, in_reward = exact_terms()
    penalty = truth(SCORES, 1.0) - truth(SCORES)
    assert_same(in_loss + in_reward, penalty)
    assert_differs(in_loss, penalty, at_least=0.3)
    assert_differs(in_reward, penalty, at_least=0.3)


def test_the_kl_of_the_state_itself_may_be_left_out_of_the_reward_to_go() -> None:
    """It does not depend on the token taken there; the later states' KL is what counts."""
    state_kl = at_states(kl.exact_kl(LOGITS, REF_LOGITS))
    to_go = returns.rewards_to_go(-state_kl, MASK, 1.0)
    assert_same(expected_gradient(to_go + torch.where(MASK, state_kl, 0.0)), exact_terms()[1])


def test_the_sum_of_exact_kl_over_visits_is_the_sequence_kl() -> None:
    p, ref = probabilities(LOGITS), probabilities(REF_LOGITS)
    by_states = (visit_probabilities() * kl.exact_kl(LOGITS, REF_LOGITS)).sum()
    torch.testing.assert_close(by_states, (p * (p.log() - ref.log())).sum(), rtol=1e-12, atol=0)


# Off-policy.


def off_policy(ratio: losses.RatioLevel) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    def loss(logprobs: Tensor, advantages: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
        old = token_logprobs(OLD_LOGITS)
        return losses.importance_weighted_loss(logprobs, old, advantages, mask, 1.0, weights, ratio=ratio)[0]

    return loss


@pytest.mark.parametrize("constant", [0.0, 2.0])
def test_the_sequence_ratio_is_exact_off_policy(constant: float) -> None:
    advantages = returns.rewards_to_go(token_rewards(), MASK, 1.0) - constant
    estimate = expected_gradient(advantages, sampled_from=OLD_LOGITS, loss=off_policy("sequence"))
    assert_same(estimate, truth(total(token_rewards())))


def test_the_token_ratio_is_biased_off_policy() -> None:
    advantages = returns.rewards_to_go(token_rewards(), MASK, 1.0)
    exact = truth(total(token_rewards()))
    weighed = expected_gradient(advantages, sampled_from=OLD_LOGITS, loss=off_policy("token"))
    assert_differs(weighed, exact)
    unweighed = expected_gradient(advantages, sampled_from=OLD_LOGITS)
    assert relative_error(weighed, exact) < relative_error(unweighed, exact)


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_ppo_clip_is_unbiased_on_policy_and_biased_off_policy(ratio: losses.RatioLevel) -> None:
    def clipped(old: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        def loss(logprobs: Tensor, advantages: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
            return losses.ppo_clip_loss(
                logprobs, old, advantages, mask, 1.0, weights, clip_low=0.2, clip_high=0.2, ratio=ratio
            )[0]

        return loss

    advantages, exact = SCORES[:, None].expand(N, 3), truth(SCORES)
    assert_same(expected_gradient(advantages, loss=clipped(token_logprobs(LOGITS))), exact)
    old = clipped(token_logprobs(OLD_LOGITS))
    assert_differs(expected_gradient(advantages, sampled_from=OLD_LOGITS, loss=old), exact)


def test_truncated_importance_is_biased_off_policy_and_1_on_policy() -> None:
    old, new = token_logprobs(OLD_LOGITS), token_logprobs(LOGITS)
    advantages, exact = SCORES[:, None].expand(N, 3), truth(SCORES)

    def weighed(sampling: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        def loss(logprobs: Tensor, advantages: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
            correction = losses.truncated_importance(logprobs, sampling, mask, 2.0)
            return losses.reinforce_loss(logprobs, advantages, mask, 1.0, weights * correction)[0]

        return loss

    assert_same(expected_gradient(advantages, loss=weighed(new)), exact)
    assert_differs(expected_gradient(advantages, sampled_from=OLD_LOGITS, loss=weighed(old)), exact)


def test_entropy_bonus_follows_the_entropy_at_the_visited_states() -> None:
    table = policy()
    entropies = torch.special.entr(torch.softmax(table, 1)).sum(1)
    loss, _ = losses.entropy_bonus(at_states(entropies), MASK, 1.0, probabilities(LOGITS)[:, None])
    fixed_visits = visited_state_gradient(lambda logp, ref: -logp.exp() * logp)
    assert_same(-gradient(loss, table), fixed_visits)

    table = policy()
    p = probabilities(table)
    assert_differs(fixed_visits, gradient(-(p * p.log()).sum(), table), at_least=0.1)
