"""Log-probabilities of given tokens from hidden states, without ever holding the logits of all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_CHUNK_ELEMENTS = 8_000_000  # logits held at once; fewer cost matrix-product speed, more cost memory

Head = Callable[[Tensor], Tensor]


def token_logprobs(hidden: Tensor, lm_head: Head, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(lm_head(hidden) / temperature)[ids].

    Args:
        hidden: (N, H) the states that predict the tokens.
        lm_head: the output layer; an ``nn.Linear`` takes the fast path.
        ids: (N,) int64.
        temperature: above 0.

    Returns:
        (N,) nats, float32 at least, differentiable.
    """
    return token_statistics(hidden, lm_head, ids, temperature)[0]


def token_statistics(hidden: Tensor, lm_head: Head, ids: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the tokens, and the entropy of the distribution each was drawn from.

    ``logprob = z[id] - logsumexp(z)`` and ``H = logsumexp(z) - sum softmax(z) * z`` with z = lm_head(hidden) /
    temperature. The logits are computed in chunks of tokens, upcast before any sum, and computed again in the backward
    pass.

    Args:
        hidden: (N, H).
        lm_head: the output layer, or a function of states.
        ids: (N,) int64.
        temperature: above 0.

    Returns:
        logprobs (N,) and entropies (N,), nats, float32 at least; both differentiable.
    """
    if type(lm_head) is nn.Linear:
        device = hidden.device.type
        if torch.is_autocast_enabled(device):
            hidden = hidden.to(torch.get_autocast_dtype(device))
        apply: Callable[..., tuple[Tensor, Tensor]] = _LinearStatistics.apply
        return apply(hidden, lm_head.weight, lm_head.bias, ids, temperature)

    def chunk(states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        logits = upcast(lm_head(states)) / temperature
        logprobs = logits.log_softmax(1)
        total = logits.logsumexp(1)
        finite = logits.masked_fill(logits == -torch.inf, 0.0)
        return logprobs.gather(1, tokens[:, None]).squeeze(1), total - (logprobs.exp() * finite).sum(1)

    parts = [checkpoint(chunk, *part, use_reentrant=False) for part in _chunks(hidden, ids)]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def upcast(x: Tensor) -> Tensor:
    """Float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def chunk_rows(width: int) -> int:
    """Rows of a chunk whose logits have ``width`` columns."""
    return max(1, _CHUNK_ELEMENTS // width)


def _chunks(hidden: Tensor, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    # The vocabulary of a function is unknown before it is called; 32,000 is a common one.
    size = chunk_rows(32_000)
    return list(zip(torch.split(hidden, size), torch.split(ids, size), strict=True))


class _LinearStatistics(torch.autograd.Function):
    """``token_statistics`` of a linear head, with a backward pass that computes each chunk's logits again."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        kind = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = torch.empty(len(ids), dtype=kind, device=hidden.device)
        totals, entropies = torch.empty_like(logprobs), torch.empty_like(logprobs)
        for part in _slices(len(ids), len(weight)):
            logits = _logits(hidden[part], weight, bias, temperature)
            top = logits.amax(1, keepdim=True)
            picked = logits.gather(1, ids[part, None]).squeeze(1)
            weights = (logits - top).exp_()
            mass = weights.sum(1)
            totals[part] = top.squeeze(1) + mass.log()
            logprobs[part] = picked - totals[part]
            entropies[part] = totals[part] - torch.linalg.vecdot(weights, logits) / mass
        ctx.save_for_backward(hidden, weight, bias, ids, totals, entropies)
        ctx.temperature = temperature
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, totals, entropies = ctx.saved_tensors
        by_logprob, by_entropy = grads
        through_entropy = bool(by_entropy.any())
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        cast = weight.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(cast) if need_weight else None
        grad_bias = torch.zeros_like(bias) if need_bias else None
        for part in _slices(len(ids), len(weight)):
            logits = _logits(hidden[part], weight, bias, ctx.temperature)
            logits -= totals[part, None]
            down = by_logprob[part, None]
            if through_entropy:
                factor = (logits + entropies[part, None]).mul_(by_entropy[part, None]).add_(down)
                slope = logits.exp_().mul_(factor).neg_()
            else:
                slope = logits.exp_().mul_(-down)
            slope.scatter_add_(1, ids[part, None], down)
            if ctx.temperature != 1.0:
                slope /= ctx.temperature
            if grad_bias is not None:
                grad_bias += slope.sum(0).to(grad_bias.dtype)
            slope = slope.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(slope, cast, out=grad_hidden[part])
            if grad_weight is not None:
                grad_weight.addmm_(slope.t(), hidden[part])
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), grad_bias, None, None


def _slices(rows: int, width: int) -> list[slice]:
    size = chunk_rows(width)
    return [slice(start, start + size) for start in range(0, rows, size)]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """(rows, V) upcast; the autocast type is already the hidden states'."""
    logits = hidden @ weight.to(hidden.dtype).t()
    if bias is not None:
        logits += bias.to(hidden.dtype)
    logits = upcast(logits)
    return logits if temperature == 1.0 else logits.div_(temperature)
