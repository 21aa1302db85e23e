"""Losses: Σ weights · loss over the mask, divided by a denominator that the caller gives.

Arguments that all losses share:

- ``mask`` (B, T) bool, the response mask, False on rows that no function could score;
- ``denominator``, the *global* count of the optimizer step, over all micro-batches and processes: that alone makes the
  gradient independent of how a batch was split;
- ``weights`` (B, T) or (B, 1), constant, default 1.

Advantages, old log-probabilities, old values and returns are constants: no gradient flows into them. Each loss returns
``(loss, metrics)``; a metric is a pair (sum, count), detached, so that micro-batches and processes can be added up.

"Unbiased" here means: with sequence-sum aggregation and advantages of an unbiased baseline, the expected gradient of
the loss is minus the gradient of the expected return.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rlhf_pg.ops.kl import MAX_LOG_RATIO, kl_estimate
from rlhf_pg.ops.masking import masked_sum, zero_outside

Aggregation = Literal["sequence_sum", "token_mean", "fixed", "sequence_mean"]
RatioLevel = Literal["token", "sequence"]
Metrics = dict[str, tuple[Tensor, Tensor]]


def aggregate_weights(
    mask: Tensor, kind: Aggregation, max_new_tokens: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, float]:
    """The weights and the denominator that make a sum over tokens into one of the usual aggregations.

    - ``sequence_sum``: 1, sequences. Unbiased.
    - ``fixed``: 1, sequences · max_new_tokens. The unbiased gradient ÷ max_new_tokens (Liu et al., arXiv 2503.20783).
    - ``sequence_mean``: 1/length, sequences. Biased: with a constant baseline b it is the gradient of
      E[(R − b) / length], which favours short good responses and long bad ones (Shao et al., arXiv 2402.03300).
    - ``token_mean``: 1, tokens. Biased: one's own length moves the denominator (Yu et al., arXiv 2503.14476).

    Args:
        mask: (B, T) bool. A row without a True position counts in no denominator.
        kind: one of the four.
        max_new_tokens: the most tokens that a response may have.
        dtype: of the weights.

    Returns:
        weights (B, 1), and the denominator, at least 1.

    Raises:
        ValueError: unknown kind.
    """
    lengths = mask.sum(1, keepdim=True)
    sequences, tokens = int((lengths > 0).sum()), int(lengths.sum())
    ones = torch.ones_like(lengths, dtype=dtype)
    match kind:
        case "sequence_sum":
            return ones, float(max(sequences, 1))
        case "token_mean":
            return ones, float(max(tokens, 1))
        case "fixed":
            return ones, float(max(sequences * max_new_tokens, 1))
        case "sequence_mean":
            return ones / lengths.clamp(min=1), float(max(sequences, 1))
        case _:
            raise ValueError(f"aggregation {kind!r} is unknown; take sequence_sum, token_mean, fixed or sequence_mean")


def reinforce_loss(
    logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    denominator: Tensor | float,
    weights: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """−Σ w · A · log π ÷ denominator. Unbiased, for the first update on a batch alone.

    Args:
        logprobs: (B, T), of the sampled tokens, nats, with gradient.
        advantages: (B, T), reward units.

    Source:
        Williams 1992.
    """
    terms = zero_outside(advantages, mask).detach() * zero_outside(logprobs, mask)
    return -_total(terms, mask, denominator, weights), {}


def importance_weighted_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    denominator: Tensor | float,
    weights: Tensor | None = None,
    *,
    ratio: RatioLevel = "token",
) -> tuple[Tensor, Metrics]:
    """−Σ w · ρ · A ÷ denominator, with ρ the ratio of π to the policy that sampled.

    ``sequence``: ρ_t = sg(π(y)/π_old(y)) · π_t / sg(π_t), sg stopping the gradient: the whole response's ratio (the
    *sum* of its log-ratios, not their mean) weighs each token's own gradient. Unbiased off-policy, with high variance.
    ``token``: ρ_t = π_t / π_old,t. Biased off-policy: it leaves out that the states themselves are visited with other
    probabilities. On-policy both are 1 and the gradient is ``reinforce_loss``'s.

    Log-ratios are clamped to ±20 before exp; beyond, a token ratio has no gradient.

    Args:
        logprobs: (B, T), nats, with gradient.
        old_logprobs: (B, T), nats, constant.
        advantages: (B, T), reward units.
        ratio: "token" or "sequence".

    Returns:
        The loss and ``ratio``, ``approx_kl`` (k3 of the old policy against this one, token KL in nats).

    Raises:
        ValueError: unknown ratio.

    Source:
        Zheng et al., arXiv 2507.18071, section 4.3 (GSPO-token), which takes the mean of the log-ratios.
    """
    ratios = _ratios(logprobs, old_logprobs, mask, ratio)
    terms = zero_outside(advantages, mask).detach() * ratios
    return -_total(terms, mask, denominator, weights), _ratio_metrics(ratios, logprobs, old_logprobs, mask)


def ppo_clip_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    denominator: Tensor | float,
    weights: Tensor | None = None,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    ratio: RatioLevel = "token",
) -> tuple[Tensor, Metrics]:
    """−Σ w · min(ρ A, clip(ρ, 1 − clip_low, 1 + clip_high) A) ÷ denominator.

    With ``dual_clip`` c > 1, where A < 0 the term is max(that, c A). On-policy ρ is exactly 1 and the gradient is
    ``reinforce_loss``'s; off-policy it is biased: a clipped token has no gradient.

    Args:
        logprobs: (B, T), nats, with gradient.
        old_logprobs: (B, T), nats, constant.
        advantages: (B, T), reward units.
        clip_low: in (0, 1).
        clip_high: above 0.
        dual_clip: above 1; None: off.
        ratio: "token" or "sequence", as in ``importance_weighted_loss``.

    Returns:
        The loss and ``ratio``, ``approx_kl``, ``clip_ratio/low`` (A < 0 and ρ < 1 − clip_low), ``clip_ratio/high``
        (A > 0 and ρ > 1 + clip_high) and ``clip_ratio`` (both, and the dual clip's).

    Raises:
        ValueError: unknown ratio.

    Source:
        Schulman et al., arXiv 1707.06347, equation 7; dual clip: Ye et al., arXiv 1912.09729; two clips: Yu et al.,
        arXiv 2503.14476, section 3.1.
    """
    advantages = zero_outside(advantages, mask).detach()
    ratios = _ratios(logprobs, old_logprobs, mask, ratio)
    # The minimum of the two surrogates is a bound on the ratio from one side, which side the advantage's sign says.
    below = torch.zeros_like(ratios).masked_fill(advantages < 0, 1.0 - clip_low)
    above = torch.full_like(ratios, torch.inf if dual_clip is None else dual_clip)
    above = above.masked_fill(advantages > 0, 1.0 + clip_high)
    terms = advantages * ratios.clamp(below, above)

    metrics = _ratio_metrics(ratios, logprobs, old_logprobs, mask)
    flat = {
        "clip_ratio": (advantages != 0) & ((ratios < below) | (ratios > above)),
        "clip_ratio/low": (advantages < 0) & (ratios < below),
        "clip_ratio/high": (advantages > 0) & (ratios > above),
    }
    metrics |= {name: (masked_sum(where, mask), mask.sum()) for name, where in flat.items()}
    return -_total(terms, mask, denominator, weights), metrics


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    denominator: Tensor | float,
    weights: Tensor | None = None,
    *,
    clip: float | None = None,
) -> tuple[Tensor, Metrics]:
    """Σ w · ½ max((V − R)², (clip(V, V_old ± c) − R)²) ÷ denominator; without a clip, Σ w · ½ (V − R)².

    Args:
        values: (B, T), reward units, with gradient.
        old_values: (B, T), the values that the advantages were made with, constant.
        returns: (B, T), R, constant.
        clip: c, reward units; None: no clipping, and ``old_values`` is not used.

    Returns:
        The loss and ``value_clip_ratio``, the tokens whose clipped term is the larger one: they have no gradient.

    Source:
        Schulman et al., arXiv 1707.06347, as its reference implementation (openai/baselines, ppo2) has it.
    """
    values, returns = zero_outside(values, mask), zero_outside(returns, mask).detach()
    errors = (values - returns).square()
    clipped = torch.zeros_like(mask)
    if clip is not None:
        old = zero_outside(old_values, mask).detach()
        clipped_errors = (values.clamp(old - clip, old + clip) - returns).square()
        clipped = clipped_errors > errors
        errors = torch.maximum(errors, clipped_errors)
    return _total(errors / 2, mask, denominator, weights), {"value_clip_ratio": (masked_sum(clipped, mask), mask.sum())}


def entropy_bonus(
    entropies: Tensor, mask: Tensor, denominator: Tensor | float, weights: Tensor | None = None
) -> tuple[Tensor, Metrics]:
    """−Σ w · H ÷ denominator: a loss that falls as entropy rises.

    Its gradient is the entropy's at the visited states held fixed; how the policy moves between states is left out.

    Args:
        entropies: (B, T), H = logsumexp − Σ p · logit at each state, nats, with gradient.

    Returns:
        The loss and ``entropy``.
    """
    return -_total(zero_outside(entropies, mask), mask, denominator, weights), _mean_metric("entropy", entropies, mask)


def kl_loss(
    kl: Tensor, mask: Tensor, denominator: Tensor | float, weights: Tensor | None = None
) -> tuple[Tensor, Metrics]:
    """Σ w · KL ÷ denominator: the penalty in the loss, before its coefficient.

    What its gradient is depends on the estimator: see ``kl.kl_estimate`` and ``kl.exact_kl``.

    Args:
        kl: (B, T), nats, with gradient.

    Returns:
        The loss and ``kl_loss``, the estimate's mean over tokens, nats.
    """
    return _total(zero_outside(kl, mask), mask, denominator, weights), _mean_metric("kl_loss", kl, mask)


def truncated_importance(train_logprobs: Tensor, sampling_logprobs: Tensor, mask: Tensor, cap: float) -> Tensor:
    """min(π_train / π_sample, cap) per token: weights against the rounding between sampling and training.

    Biased: per token only, and capped; exactly 1 where the two agree.

    Args:
        train_logprobs: (B, T), as the training forward gives them, nats.
        sampling_logprobs: (B, T), as they were sampled, nats.
        cap: the largest weight.

    Returns:
        (B, T), detached, 0 outside the mask.

    Source:
        Ionides 2008, "Truncated importance sampling".
    """
    ratios = _ratios(train_logprobs, sampling_logprobs, mask, "token").detach()
    return zero_outside(ratios.clamp(max=cap), mask)


def _total(terms: Tensor, mask: Tensor, denominator: Tensor | float, weights: Tensor | None) -> Tensor:
    """Σ weights · terms ÷ denominator; ``terms`` are 0 outside the mask."""
    weighted = terms if weights is None else zero_outside(weights, mask).detach() * terms
    return weighted.sum() / denominator


def _ratios(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, level: RatioLevel) -> Tensor:
    """π / π_old per token, or of the whole response on each of its tokens; 1 outside the mask at token level."""
    new, old = zero_outside(logprobs, mask), zero_outside(old_logprobs, mask).detach()
    match level:
        case "token":
            return (new - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        case "sequence":
            whole = (new.detach() - old).sum(1, keepdim=True).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
            return whole * (new - new.detach()).exp()
        case _:
            raise ValueError(f"ratio={level!r} is unknown; take token or sequence")


def _mean_metric(name: str, x: Tensor, mask: Tensor) -> Metrics:
    return {name: (masked_sum(x.detach(), mask), mask.sum())}


def _ratio_metrics(ratios: Tensor, logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Metrics:
    drift = kl_estimate(old_logprobs.detach(), logprobs.detach(), "k3", mask)
    return _mean_metric("ratio", ratios, mask) | _mean_metric("approx_kl", drift, mask)
