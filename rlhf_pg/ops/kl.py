"""KL(policy || reference) in nats: per-token estimators, the exact sum, and the adaptive coefficient."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from rlhf_pg.ops.masking import at_least_float32, zero_outside

KlEstimator = Literal["k1", "k2", "k3"]

# exp of a log-ratio overflows float32 at 89, and 0 * inf in a masked sum is NaN; exp(20) = 4.9e8 is far beyond any
# ratio that still means something.
MAX_LOG_RATIO = 20.0


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KlEstimator, mask: Tensor | None = None) -> Tensor:
    """Estimate KL(π‖π_ref) at each token from the sampled token alone.

    With d = logprobs − ref_logprobs: ``k1`` = d, ``k2`` = d²/2, ``k3`` = exp(−d) − 1 + d. Under samples of π, k1 and k3
    average to the KL and k2 does not; k2 and k3 are never negative.

    As gradients (sequence KL, J = E[R] − β·KL):

    - in the reward, k1 in the reward-to-go gives exactly the gradient of J; k2 and k3 do not;
    - in the loss, k1 has no gradient in expectation; k2 has that of KL(π‖π_ref) and k3 that of the forward
      KL(π_ref‖π), both at the visited states held fixed: how the policy moves between states is left out.

    k3 takes d no lower than −20, so that it stays finite; beyond, its gradient is 0.

    Args:
        logprobs: (B, T), of the sampled tokens under the policy, nats.
        ref_logprobs: (B, T), the same under the reference, nats.
        estimator: "k1", "k2" or "k3".
        mask: (B, T) bool; given, positions where it is False are 0 with a gradient of 0, whatever they hold. Without it
            a NaN in padding stays in its position, and a gradient of 0 that comes to it becomes NaN.

    Returns:
        (B, T), nats.

    Raises:
        ValueError: unknown estimator.

    Source:
        J. Schulman, "Approximating KL divergence", joschu.net/blog/kl-approx.html.
    """
    if mask is not None:
        logprobs, ref_logprobs = zero_outside(logprobs, mask), zero_outside(ref_logprobs, mask)
    d = at_least_float32(logprobs) - at_least_float32(ref_logprobs)
    match estimator:
        case "k1":
            return d
        case "k2":
            return d.square() / 2
        case "k3":
            # d itself is clamped, not only the exponent: d alone would leave a gradient of the wrong sign.
            d = d.clamp(min=-MAX_LOG_RATIO)
            return torch.expm1(-d) + d
        case _:
            raise ValueError(f"estimator={estimator!r} is unknown; take k1, k2 or k3")


def exact_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """KL(π‖π_ref) = Σ_v π(v) (log π(v) − log π_ref(v)), summed over the vocabulary.

    The estimator k1, Rao-Blackwellised: the same mean, no noise from the sampled token. Differentiable in both. Its
    gradient is that of the KL at the given states; J = E[R] − β·KL needs also the later states' KL in the
    reward-to-go. Either alone is biased, the two together are exact.

    A token that the policy cannot emit (logit −inf) adds 0. One that the reference alone cannot emit makes it inf.

    Args:
        logits: (..., V), the policy's, at the temperature of sampling. Pass the response's positions only: padding that
            holds NaN gives NaN there.
        ref_logits: (..., V), the reference's, at the same temperature.

    Returns:
        (...), nats.
    """
    logp = torch.log_softmax(at_least_float32(logits), dim=-1)
    ref_logp = torch.log_softmax(at_least_float32(ref_logits), dim=-1)
    impossible = torch.isneginf(logp)  # both logs become 0 there: the term is 0, and not 0 * inf
    logp, ref_logp = logp.masked_fill(impossible, 0.0), ref_logp.masked_fill(impossible, 0.0)
    return (logp.exp() * (logp - ref_logp)).sum(dim=-1)


def adapt_coefficient(coef: float, kl: float, n: int, target: float, horizon: float) -> float:
    """Steer the KL coefficient towards a target: coef · (1 + clip(kl / target − 1, ±0.2) · n / horizon).

    Args:
        coef: the coefficient used in this step, reward units per nat.
        kl: the step's mean sequence KL, nats. NaN tells nothing and leaves the coefficient as it is.
        n: completions of the global batch.
        target: the sequence KL wanted, nats.
        horizon: completions over which the controller acts.

    Returns:
        The coefficient of the next step.

    Source:
        Ziegler et al., arXiv 1909.08593, section 2.2.
    """
    if math.isnan(kl):
        return coef
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return coef * (1.0 + error * n / horizon)
