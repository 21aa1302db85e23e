"""Returns and advantages from per-token rewards."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_pg.ops.masking import at_least_float32, zero_outside


def _discounted_suffix_sum(x: Tensor, factor: float) -> Tensor:
    """Σ_{k≥t} factor^{k−t} x_k along the columns of ``x`` (B, T)."""
    if factor == 1.0:
        return x.flip(1).cumsum(1).flip(1)
    running = torch.zeros_like(x[:, 0])
    columns: list[Tensor] = []
    for column in reversed(x.unbind(1)):
        running = column + factor * running
        columns.append(running)
    return torch.stack(columns[::-1], dim=1)


def rewards_to_go(token_rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """The discounted rewards from each token on: Σ_{k≥t} γ^{k−t} r_k.

    With γ = 1 and sequence-sum aggregation, REINFORCE on it is the unbiased gradient of E[Σ r]. With γ < 1 it is
    Σ_t E_{s_t} Σ_a ∇π(a|s_t) Q_γ(s_t, a): the discounted action values, improved at each visited state alike. That is
    not the gradient of E[Σ γ^t r_t], which would weigh position t by γ^t, nor in general that of any function
    (Nota and Thomas, arXiv 1906.07073).

    Args:
        token_rewards: (B, T), reward units; a score of the whole response stands on its last token.
        mask: (B, T) bool, the response mask: a prefix of each row.
        gamma: discount per token, in (0, 1].

    Returns:
        (B, T), reward units, 0 outside the mask.

    Source:
        Williams 1992; Sutton et al. 2000, theorem 1.
    """
    return zero_outside(_discounted_suffix_sum(zero_outside(token_rewards, mask), gamma), mask)


def gae(
    token_rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    lam: float,
    bootstrap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: A_t = Σ_{k≥t} (γλ)^{k−t} δ_k with δ_k = r_k + γ V_{k+1} − V_k.

    V after a response's last token is 0, or ``bootstrap``. With γ = λ = 1 the advantage is the reward-to-go less V_t:
    unbiased with any values, since V_t does not see token t. With λ < 1 it is biased as far as the values are wrong;
    the true values leave it unbiased.

    Args:
        token_rewards: (B, T), reward units.
        values: (B, T), reward units; ``values[:, t]`` is V of the state before token t is taken.
        mask: (B, T) bool, the response mask: a prefix of each row.
        gamma: discount per token, in (0, 1].
        lam: λ, 1 the Monte Carlo return, 0 one-step temporal differences.
        bootstrap: (B,), V after a truncated response, 0 for those that ended. Only for rewards that go on after the
            cut: a response that was scored as it stands has been paid, and adding V would count it twice.

    Returns:
        advantages (B, T) and returns (B, T) = advantages + values, reward units, both 0 outside the mask.

    Source:
        Schulman et al., arXiv 1506.02438, equation 16.
    """
    rewards, values = zero_outside(token_rewards, mask), zero_outside(values, mask)
    next_values = torch.nn.functional.pad(values[:, 1:], (0, 1))
    if bootstrap is not None:
        last = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))
        next_values = torch.where(last, at_least_float32(bootstrap)[:, None], next_values)
    deltas = rewards + gamma * next_values - values
    advantages = zero_outside(_discounted_suffix_sum(deltas, gamma * lam), mask)
    return advantages, zero_outside(advantages + values, mask)
