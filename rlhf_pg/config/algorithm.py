"""The sections that choose the algorithm: kl, advantage, loss, value, update."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from rlhf_pg.config.base import Section, key

Baseline = Literal[
    "none",
    "constant",
    "batch_mean",
    "moving_average",
    "group_mean",
    "leave_one_out",
    "greedy",
    "optimal",
    "optimal_length",
    "value",
]


class KlConfig(Section):
    """The penalty on KL(policy || reference), in nats."""

    coef: float = key(
        0.05, "beta: reward units per nat of sequence KL; the starting value if adaptive. 0: no penalty.", ge=0
    )
    placement: Literal["reward", "loss", "both"] = key(
        "reward",
        "reward: k1 in the token rewards. loss: k2 or k3 as a loss term. both: exact, which has terms in both.",
    )
    estimator: Literal["k1", "k2", "k3", "exact"] = key(
        "k1", "k1 = d, k2 = d^2/2, k3 = exp(-d)-1+d; exact sums the vocabulary."
    )
    controller: Literal["fixed", "adaptive"] = key(
        "fixed", "adaptive steers coef towards kl.target (arXiv 1909.08593, 2.2)."
    )
    target: float = key(6.0, "Sequence KL wanted by the adaptive controller, nats.", gt=0)
    horizon: float = key(10000.0, "Completions over which the adaptive controller acts.", gt=0)


class AdvantageConfig(Section):
    """How a return becomes an advantage."""

    baseline: Baseline = key("leave_one_out", "What is subtracted from the return; value: a learned one, through GAE.")
    constant: float = key(0.0, "The constant baseline, reward units.")
    decay: float = key(0.9, "Weight of the past in the moving average.", ge=0, lt=1)
    gamma: float = key(1.0, "Discount per token.", gt=0, le=1)
    lam: float = key(
        1.0, "lambda of GAE: 1 is the Monte Carlo return, 0 one-step TD. For the value baseline only.", ge=0, le=1
    )
    normalize: Literal["none", "group_std", "batch_std"] = key(
        "none",
        "Divide by the scores' deviation within the group, or whiten the advantages over the batch's tokens. Biased.",
    )


class LossConfig(Section):
    """The surrogate whose gradient is followed."""

    policy: Literal["reinforce", "importance_weighted", "ppo_clip"] = key("reinforce", "The policy loss.")
    ratio: Literal["token", "sequence"] = key("token", "pi/pi_old per token, or of the whole response.")
    clip_low: float = key(0.2, "ppo_clip: the ratio is clipped below at 1 - clip_low.", gt=0, lt=1)
    clip_high: float = key(0.2, "ppo_clip: the ratio is clipped above at 1 + clip_high.", gt=0)
    dual_clip: float | None = key(
        None, "ppo_clip: bound c > 1 of the loss where the advantage is negative (arXiv 1912.09729).", gt=1
    )
    aggregate: Literal["sequence_sum", "token_mean", "fixed", "sequence_mean"] = key(
        "sequence_sum", "Sum over tokens and mean over responses (unbiased); the other three weigh tokens otherwise."
    )
    entropy_coef: float = key(0.0, "Weight of the entropy bonus, reward units per nat.", ge=0)
    entropy_schedule: Literal["constant", "linear"] = key(
        "constant", "linear lets the bonus fall to 0 at the last step."
    )
    truncated_is: float | None = key(
        None,
        "Cap of the weights pi_train/pi_sample that correct for rounding between sampling and training; None: off.",
        gt=0,
    )


class ValueConfig(Section):
    """The learned value function; used with advantage.baseline=value."""

    model: str | None = key(
        None, "Folder or hub id of the backbone (a reward model's will do); None: the policy's weights."
    )
    learning_rate: float | None = key(None, "Its peak learning rate; None: ten times update.learning_rate.", gt=0)
    clip: float | None = key(
        0.2, "Values move at most this far from the old ones in the loss; None: no clipping.", gt=0
    )
    coef: float = key(0.5, "Weight of the value loss.", gt=0)


class UpdateConfig(Section):
    """How the optimizer uses a step's samples."""

    epochs: int = key(1, "Passes over a step's samples.", ge=1)
    minibatches: int = key(1, "Optimizer steps per pass; must divide the rows of a step.", ge=1)
    micro_batch_tokens: int = key(
        8192, "The most padded tokens of a forward pass; changes memory and speed, not the result.", ge=1
    )
    learning_rate: float = key(1e-5, "AdamW's peak learning rate.", ge=0)
    schedule: Literal["constant", "linear", "cosine"] = key("constant", "linear and cosine fall to 0 at the last step.")
    warmup_steps: int = key(0, "Steps over which the learning rate rises from 0.", ge=0)
    betas: tuple[float, float] = key((0.9, 0.999), "AdamW's betas.")
    eps: float = key(1e-8, "AdamW's epsilon.", gt=0)
    weight_decay: float = key(0.0, "AdamW's weight decay.", ge=0)
    max_grad_norm: float | None = key(1.0, "The gradient's norm is clipped to this; None: never.", gt=0)
    target_kl: float | None = key(
        None, "Later epochs are left out once the token KL from the old policy (k3) passes this, nats.", gt=0
    )
    max_nonfinite: int = key(5, "The run stops after so many updates in a row with a non-finite gradient.", ge=1)

    @field_validator("betas")
    @classmethod
    def _betas(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"both must be in [0, 1), got {list(betas)}")
        return betas
