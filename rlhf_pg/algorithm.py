"""``ScoredRollout + ModelPasses -> TrainBatch``: where the KL goes, the baseline, the advantages.

Every function here is pure and works on the table of all processes, on the CPU, so that means and moving averages cannot
differ between processes. State goes in and comes out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rlhf_pg.config.rewards import RewardConfig
from rlhf_pg.config.tree import Config
from rlhf_pg.ops import baselines
from rlhf_pg.ops.kl import adapt_coefficient, kl_estimate
from rlhf_pg.ops.losses import truncated_importance
from rlhf_pg.ops.masking import masked_mean, masked_sum, masked_whiten
from rlhf_pg.ops.returns import gae, rewards_to_go
from rlhf_pg.ops.running import NONE, Moments, mean_and_deviation, merge
from rlhf_pg.types import ModelPasses, ScoredRollout, TrainBatch


@dataclass(frozen=True, slots=True)
class AlgorithmState:
    """What an algorithm remembers between steps; saved in checkpoints."""

    kl_coef: float
    average: float | None = None  # of the totals, for the moving-average baseline
    scores: Moments = NONE  # running normalisation of the sum
    rewards: dict[str, Moments] = field(default_factory=dict)  # running normalisation of single rewards


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What a baseline may look at; all (B,) but ``greedy_scores`` (P,)."""

    totals: Tensor
    group_size: int
    valid: Tensor
    lengths: Tensor
    average: float | None
    constant: float
    sq_norms: Tensor | None
    greedy_scores: Tensor | None


BASELINES: dict[str, Callable[[_Inputs], Tensor]] = {
    "none": lambda x: baselines.none(x.totals, x.group_size, x.valid),
    "constant": lambda x: baselines.constant(x.totals, x.group_size, x.valid, value=x.constant),
    "batch_mean": lambda x: baselines.batch_mean(x.totals, x.group_size, x.valid),
    "moving_average": lambda x: baselines.moving_average(x.totals, x.group_size, x.valid, average=x.average),
    "group_mean": lambda x: baselines.group_mean(x.totals, x.group_size, x.valid),
    "leave_one_out": lambda x: baselines.leave_one_out(x.totals, x.group_size, x.valid),
    "greedy": lambda x: baselines.greedy(x.totals, x.group_size, x.valid, greedy_scores=_given(x.greedy_scores)),
    "optimal": lambda x: baselines.optimal(x.totals, x.group_size, x.valid, sq_norms=_given(x.sq_norms)),
    "optimal_length": lambda x: baselines.optimal_length(x.totals, x.group_size, x.valid, lengths=x.lengths),
}


# Those that average other rows' returns do so position by position.
POSITIONAL = ("batch_mean", "group_mean", "leave_one_out", "optimal", "optimal_length")


def _baseline(name: str, inputs: _Inputs, to_go: Tensor) -> Tensor:
    """(B, T) or (B, 1).

    A row's return from t on is compared with the other rows' from t on: by then each has paid a part of its KL, and a
    baseline of the whole returns would favour late tokens. What a baseline's docstring says of bias holds at each position.

    Args:
        name: the baseline.
        inputs: what it may look at.
        to_go: (B, T) returns from t on; a response that has ended counts with its score.
    """
    choose = BASELINES[name]
    if name not in POSITIONAL:
        return choose(inputs)[:, None]
    columns: Tensor = torch.vmap(lambda totals: choose(replace(inputs, totals=totals)), in_dims=1, out_dims=1)(to_go)
    return columns


def _given(table: Tensor | None) -> Tensor:
    assert table is not None, "the trainer must provide what this baseline reads"
    return table


def shape_scores(
    scored: ScoredRollout, config: RewardConfig, state: AlgorithmState
) -> tuple[Callable[[Tensor], Tensor], AlgorithmState]:
    """The clipping and normalisation of this batch's scores, as a function, and the state after it.

    ``batch``: (s - mean) / std over the batch. ``running``: mean and deviation of all scores so far, this batch's
    included. A deviation of 0 divides by 1.
    """

    def clip(scores: Tensor) -> Tensor:
        return scores if config.clip is None else scores.clamp(*config.clip)

    clipped = clip(scored.scores[scored.valid].double())
    if config.normalize == "none" or not len(clipped):
        return clip, state
    moments = merge(state.scores if config.normalize == "running" else NONE, clipped)
    if config.normalize == "running":
        state = replace(state, scores=moments)
    mean, deviation = mean_and_deviation(moments)
    return lambda scores: (clip(scores) - mean) / deviation, state


def advantages(
    config: Config,
    scored: ScoredRollout,
    passes: ModelPasses,
    state: AlgorithmState,
    greedy_scores: Tensor | None = None,
) -> tuple[TrainBatch, AlgorithmState]:
    """Turn scores into advantages.

    The reward of token t is its per-token reward, the score on the last token, and - beta * k1_t where the KL is in the
    reward. With ``kl.estimator=exact`` it is - beta * KL_{t+1} instead: the token pays for the state it leads to, and
    the loss differentiates the KL of each state. A_t = (sum of rewards from t on) - baseline, or GAE.

    Args:
        config: the run's.
        scored: global.
        passes: global; ``ref_logprobs`` or ``exact_kl`` where the KL is in the reward.
        state: before the step.
        greedy_scores: (P,) scores of the greedy completions, for ReMax.

    Returns:
        What the learner needs, and the state after the step.
    """
    rollout, kind = scored.rollout, config.advantage
    mask = rollout.response_mask & scored.valid[:, None]
    shape, after = shape_scores(scored, config.reward, state)
    scores = shape(scored.scores) - config.reward.missing_eos_penalty * rollout.truncated
    rewards = _token_rewards(config, scored, passes, scores, mask, state.kl_coef)

    if kind.baseline == "value":
        values = _given(passes.values)
        found, returns = gae(rewards, values, mask, kind.gamma, kind.lam, passes.bootstrap)
    else:
        to_go = rewards_to_go(rewards, mask, kind.gamma)
        totals = to_go[:, 0]
        inputs = _Inputs(
            totals,
            rollout.group_size,
            scored.valid,
            rollout.lengths,
            state.average,
            kind.constant,
            passes.grad_sq_norms,
            None if greedy_scores is None else shape(greedy_scores),
        )
        found, returns = to_go - _baseline(kind.baseline, inputs, torch.where(mask, to_go, scores[:, None])), None
        if kind.baseline == "moving_average":
            after = replace(after, average=baselines.update_average(state.average, totals, scored.valid, kind.decay))
        if kind.normalize == "group_std":
            deviation = baselines.group_std(totals, rollout.group_size, scored.valid)[:, None]
            found = torch.where(deviation > 0, found / deviation, found)
    if kind.normalize == "batch_std":
        found = masked_whiten(found, mask)
    weights = None
    if config.loss.truncated_is is not None:
        old = _given(passes.old_logprobs)
        weights = truncated_importance(old, rollout.logprobs, mask, config.loss.truncated_is)
    batch = TrainBatch(
        rollout,
        torch.where(mask, found, 0.0),
        mask,
        passes.old_logprobs,
        passes.ref_logprobs if config.kl.placement == "loss" else None,
        passes.values,
        returns,
        weights,
    )
    return batch, _adapted(config, scored, passes, after)


def _token_rewards(
    config: Config, scored: ScoredRollout, passes: ModelPasses, scores: Tensor, mask: Tensor, coef: float
) -> Tensor:
    """(B, T) the reward of each token: the environment's and the KL's."""
    rollout = scored.rollout
    rewards = scored.token_rewards.to(torch.promote_types(rollout.logprobs.dtype, torch.float32)).clone()
    last = (rollout.lengths - 1)[:, None]
    rewards.scatter_add_(1, last, scores[:, None].to(rewards.dtype))
    if coef and config.kl.placement == "reward":
        rewards -= coef * kl_estimate(_behaviour(scored, passes), _given(passes.ref_logprobs), "k1", mask)
    elif coef and config.kl.placement == "both":
        later = torch.where(mask, _given(passes.exact_kl), 0.0)[:, 1:]
        rewards[:, :-1] -= coef * later
    return torch.where(mask, rewards, 0.0)


def _behaviour(scored: ScoredRollout, passes: ModelPasses) -> Tensor:
    """The policy's log-probabilities: of the training forward where it was run, else as sampled."""
    return scored.rollout.logprobs if passes.old_logprobs is None else passes.old_logprobs


def sequence_kl(scored: ScoredRollout, passes: ModelPasses) -> Tensor | None:
    """(B,) KL(policy || reference) of each response, nats: exact where it was computed, else k1; None without either."""
    mask = scored.rollout.response_mask
    if passes.exact_kl is not None:
        return masked_sum(passes.exact_kl, mask, 1)
    if passes.ref_logprobs is not None:
        return masked_sum(kl_estimate(_behaviour(scored, passes), passes.ref_logprobs, "k1", mask), mask, 1)
    return None


def _adapted(config: Config, scored: ScoredRollout, passes: ModelPasses, state: AlgorithmState) -> AlgorithmState:
    """The state with the KL coefficient of the next step."""
    found = sequence_kl(scored, passes)
    if config.kl.controller == "fixed" or found is None:
        return state
    coef = adapt_coefficient(state.kl_coef, float(found.mean()), len(found), config.kl.target, config.kl.horizon)
    return replace(state, kl_coef=coef)


def rollout_metrics(scored: ScoredRollout, passes: ModelPasses, state: AlgorithmState) -> dict[str, float]:
    """The metrics of a step's samples, under the names that dashboards know."""
    rollout, valid = scored.rollout, scored.valid
    totals = scored.totals
    rewards = totals[valid].double()
    lengths = rollout.lengths.double()
    metrics = {
        "reward": float(rewards.mean()) if len(rewards) else 0.0,
        "reward_std": float(rewards.std()) if len(rewards) > 1 else 0.0,
        "rewards/unscorable": float((~valid).double().mean()),
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float(rollout.truncated.double().mean()),
        "kl/coef": state.kl_coef,
    }
    for name, values in scored.components.items():
        known = values[~values.isnan()].double()
        metrics[f"rewards/{name}/unscorable"] = 1.0 - len(known) / len(values)
        if len(known):
            metrics[f"rewards/{name}/mean"] = float(known.mean())
            metrics[f"rewards/{name}/std"] = float(known.std()) if len(known) > 1 else 0.0
    if rollout.group_size > 1:
        spread = baselines.group_std(totals, rollout.group_size, valid).view(-1, rollout.group_size)[:, 0]
        metrics["frac_reward_zero_std"] = float((spread == 0).double().mean())
    found = sequence_kl(scored, passes)
    if found is not None:
        metrics["kl/sequence"] = float(found.double().mean())
        metrics["kl/token"] = float(found.double().sum() / lengths.sum())
    if passes.old_logprobs is not None:
        gap = (passes.old_logprobs - rollout.logprobs).abs()
        metrics["logprob_gap"] = float(masked_mean(gap, rollout.response_mask))
    return metrics
