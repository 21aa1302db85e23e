"""Baselines: what is subtracted from a completion's score, one number per row.

Each takes ``(scores, group_size, valid=None, ...)`` and returns (B,) in the scores' unit. ``scores`` is (B,), the G
rows of a prompt adjacent; a KL penalty is taken from it before. ``valid`` is (B,) bool: rows that no function could
score are in no mean, and their own baseline means nothing. A mean over no row is 0.

A baseline that does not see the row's own completion leaves the policy gradient unbiased (with sequence-sum
aggregation), whatever its value; it changes the variance alone. A learned value enters through ``returns.gae``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_pg.ops.masking import at_least_float32, masked_mean, zero_outside


def none(scores: Tensor, group_size: int, valid: Tensor | None = None) -> Tensor:  # noqa: ARG001 (one signature)
    """b = 0: plain REINFORCE. Unbiased.

    Source:
        Williams 1992.
    """
    return torch.zeros_like(at_least_float32(scores))


def constant(scores: Tensor, group_size: int, valid: Tensor | None = None, *, value: float) -> Tensor:  # noqa: ARG001
    """b = ``value``, reward units. Unbiased."""
    return torch.full_like(at_least_float32(scores), value)


def batch_mean(scores: Tensor, group_size: int, valid: Tensor | None = None) -> Tensor:  # noqa: ARG001
    """The mean score of the batch's valid rows, one's own included: exactly (B−1)/B of the unbiased gradient.

    B counts the valid rows of the batch, whatever their prompts.
    """
    scores = at_least_float32(scores)
    everyone = _validity(scores, valid)
    return _mean(scores[None], everyone[None]).expand_as(scores).clone()


def moving_average(
    scores: Tensor,
    group_size: int,  # noqa: ARG001
    valid: Tensor | None = None,  # noqa: ARG001
    *,
    average: float | None,
) -> Tensor:
    """The mean score of earlier batches, as ``update_average`` keeps it; 0 in the first batch. Unbiased.

    Args:
        scores: (B,); gives the shape alone.
        group_size: unused.
        valid: unused.
        average: the state from before this batch; None before the first one.
    """
    return torch.full_like(at_least_float32(scores), average or 0.0)


def update_average(average: float | None, scores: Tensor, valid: Tensor | None, decay: float) -> float | None:
    """The moving average after a batch: decay · average + (1 − decay) · mean; the first batch's mean starts it.

    Args:
        average: the state before the batch, reward units; None before the first one.
        scores: (B,), reward units.
        valid: (B,) bool; a batch without a valid row leaves the state as it is.
        decay: weight of the past, in [0, 1).

    Returns:
        The state after the batch; None only while no valid row has been seen.
    """
    everyone = _validity(scores, valid)
    if not bool(everyone.any()):
        return average
    mean = float(masked_mean(scores, everyone))
    return mean if average is None else decay * average + (1.0 - decay) * mean


def group_mean(scores: Tensor, group_size: int, valid: Tensor | None = None) -> Tensor:
    """The mean score of the prompt's valid rows, one's own included: exactly (G−1)/G of the unbiased gradient.

    Source:
        Shao et al., arXiv 2402.03300, section 4.1 (GRPO, without its division; for that see ``group_std``).
    """
    grouped, everyone = _grouped(scores, group_size), _grouped(_validity(scores, valid), group_size)
    return _mean(grouped, everyone)[:, None].expand_as(grouped).flatten()


def group_std(scores: Tensor, group_size: int, valid: Tensor | None = None) -> Tensor:
    """The standard deviation of the prompt's valid scores, with n − 1 below the sum of squares.

    Dividing advantages by it, as GRPO does, is biased: it weighs prompts by how much their completions disagree, and
    one's own score moves one's own divisor. Exactly 0 where all scores are equal or fewer than two are valid: the
    advantage there is 0 and must not be divided.

    Args:
        scores: (B,), reward units.
        group_size: G.
        valid: (B,) bool.

    Returns:
        (B,), reward units.

    Source:
        Shao et al., arXiv 2402.03300, section 4.1.
    """
    grouped, everyone = _grouped(scores, group_size), _grouped(_validity(scores, valid), group_size)
    deviations = zero_outside(grouped - _mean(grouped, everyone)[:, None], everyone)
    variance = deviations.square().sum(1) / (everyone.sum(1) - 1).clamp(min=1)
    return variance.sqrt()[:, None].expand_as(grouped).flatten()


def leave_one_out(scores: Tensor, group_size: int, valid: Tensor | None = None) -> Tensor:
    """The mean score of the prompt's other valid rows: b_i = Σ_{j≠i} R_j / (G−1). Unbiased.

    Summed over the others, not as the total less one's own, so that one's own score cannot reach it by rounding. Where
    no other row is valid it is the row's own score, and the advantage 0.

    Source:
        Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!"; Ahmadian et al., arXiv 2402.14740.
    """
    return _mean_of_others(scores, group_size, valid, None)


def greedy(
    scores: Tensor,
    group_size: int,
    valid: Tensor | None = None,  # noqa: ARG001
    *,
    greedy_scores: Tensor,
) -> Tensor:
    """ReMax: the score of the prompt's greedy completion. Unbiased.

    Args:
        scores: (B,); gives shape and dtype alone.
        group_size: G.
        valid: unused.
        greedy_scores: (P,), reward units; 0 where the greedy completion could not be scored, which stays unbiased.

    Source:
        Li et al., arXiv 2310.10505, algorithm 1.
    """
    return greedy_scores.to(at_least_float32(scores).dtype).repeat_interleave(group_size)


def optimal(scores: Tensor, group_size: int, valid: Tensor | None = None, *, sq_norms: Tensor) -> Tensor:
    """The baseline of least variance, from the prompt's other rows: b_i = Σ_{j≠i} w_j R_j / Σ_{j≠i} w_j. Unbiased.

    With w_j = ‖∇ log π(y_j)‖² it estimates E[‖g‖²R] / E[‖g‖²]; leaving out one's own row keeps it unbiased. Where the
    others' weights are all 0 it is their plain mean; where no other row is valid, the row's own score.

    Args:
        scores: (B,), reward units.
        group_size: G.
        valid: (B,) bool.
        sq_norms: (B,), w, not negative.

    Source:
        Weaver and Tao 2001; Greensmith et al. 2004.
    """
    return _mean_of_others(scores, group_size, valid, sq_norms)


def optimal_length(scores: Tensor, group_size: int, valid: Tensor | None = None, *, lengths: Tensor) -> Tensor:
    """``optimal`` with a response's length in tokens standing for ‖∇ log π‖². Unbiased.

    Source:
        Hao et al., arXiv 2505.23585 (OPO), there with one's own row, which is biased.
    """
    return optimal(scores, group_size, valid, sq_norms=lengths)


def _validity(scores: Tensor, valid: Tensor | None) -> Tensor:
    return torch.ones_like(scores, dtype=torch.bool) if valid is None else valid


def _grouped(x: Tensor, group_size: int) -> Tensor:
    """(B,) as (P, G)."""
    if x.shape[0] % group_size:
        raise ValueError(f"{x.shape[0]} rows are no multiple of group_size={group_size}; pass whole groups")
    return (x if x.dtype == torch.bool else at_least_float32(x)).view(-1, group_size)


def _mean(scores: Tensor, include: Tensor, weights: Tensor | None = None) -> Tensor:
    """The (weighted) mean over the last dimension where ``include``; 0 where nothing is included.

    Clamped to the range of what it averages: equal scores then give exactly that score, and their advantages are
    exactly 0, which is what "nothing to learn" is recognised by.
    """
    plain = include.to(scores.dtype)
    if weights is None:
        weights = plain
    else:
        weights = zero_outside(weights, include).to(scores.dtype)
        weights = torch.where(weights.sum(-1, keepdim=True) > 0, weights, plain)
    shares = weights / weights.sum(-1, keepdim=True)
    low = torch.where(include, scores, torch.inf).amin(-1)
    high = torch.where(include, scores, -torch.inf).amax(-1)
    mean = (shares * zero_outside(scores, include)).sum(-1).clamp(low, high)
    return torch.where(include.any(-1), mean, 0.0)


def _mean_of_others(scores: Tensor, group_size: int, valid: Tensor | None, weights: Tensor | None) -> Tensor:
    """For each row the mean over its group's other valid rows; its own score where there are none."""
    grouped, everyone = _grouped(scores, group_size), _grouped(_validity(scores, valid), group_size)
    own = torch.eye(group_size, dtype=torch.bool, device=scores.device)
    others = everyone[:, None, :] & ~own
    row_weights = None if weights is None else _grouped(weights, group_size)[:, None, :]
    means = _mean(grouped[:, None, :], others, row_weights)
    return torch.where(others.any(-1), means, zero_outside(grouped, everyone)).flatten()
