"""Random numbers that belong to a place, and sampling by inverse CDF."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor

_BLOCK = 256
_CACHED = 131_072  # elements whose float64 copy stays in the processor's cache


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator of its own for each (seed, purpose...), so that no result depends on what was drawn elsewhere.

    Args:
        seed: the run's seed.
        purpose: what the numbers are for, such as ``("sample", step, row)``.
    """
    digest = hashlib.sha256(json.dumps([seed, *purpose]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def row_uniforms(seed: int, *purpose: str | int, rows: range, columns: int) -> Tensor:
    """One uniform number per (global row, position).

    Row ``i`` has a generator of its own, so its numbers depend neither on how many rows there are, nor on the process
    that draws them, nor (for the first ones) on ``columns``.

    Args:
        seed: the run's seed.
        purpose: what the numbers are for; the row is appended.
        rows: global row numbers.
        columns: T.

    Returns:
        (len(rows), T) float64 in [0, 1), on the CPU.
    """
    table = torch.empty(len(rows), columns, dtype=torch.float64)
    for line, row in zip(table, rows, strict=True):
        line.uniform_(generator=generator(seed, *purpose, row))
    return table


def inverse_cdf(logits: Tensor, uniforms: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Sample each row from softmax(logits / temperature): the first token whose cumulative probability exceeds u.

    Blocks of 256 tokens are summed first, then cumulated in float64, then the tokens of the one block that holds u: a
    float32 ``cumsum`` over 150,000 tokens leaves thousands of them unreachable.
    The answer depends on nothing but the row's logits and its own number.

    Args:
        logits: (N, V), any float type; -inf excludes a token.
        uniforms: (N,) float64 in [0, 1). NaN takes the most likely token instead.
        temperature: above 0.

    Returns:
        ids (N,) int64, and their logprobs (N,) under that distribution, nats, in float32 at least.
    """
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1.0:
        scaled = scaled / temperature
    rows, vocabulary = scaled.shape
    top = scaled.amax(1, keepdim=True)
    weights = (scaled - top).exp_()
    if vocabulary % _BLOCK:
        weights = torch.nn.functional.pad(weights, (0, -vocabulary % _BLOCK))
    blocks = weights.view(rows, -1, _BLOCK)
    ends = torch.cat(
        [some.sum(2, dtype=torch.float64) for some in torch.split(blocks, max(1, _CACHED // vocabulary))]
    ).cumsum(1)
    total = ends[:, -1:]
    target = uniforms.to(ends.device).nan_to_num(0.0)[:, None] * total
    block = _first_above(ends, target)
    before = torch.where(block > 0, ends.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks.gather(1, block[:, :, None].expand(-1, 1, _BLOCK))[:, 0].double().cumsum(1)
    # A block's own sum is summed anew in float64, so the way into it is measured as a share of it.
    share = (target - before) / (ends.gather(1, block) - before)
    ids = (block * _BLOCK + _first_above(inside, share * inside[:, -1:])).squeeze(1)
    if bool(uniforms.isnan().any()):
        ids = torch.where(uniforms.to(ids.device).isnan(), scaled.argmax(1), ids)
    logprobs = scaled.gather(1, ids[:, None]) - top - total.log().to(scaled.dtype)
    return ids, logprobs.squeeze(1)


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    """(N, 1): the first position whose sum exceeds the target; rounding never goes past the last with any weight."""
    last = (cumulative < cumulative[:, -1:]).sum(1, keepdim=True)
    return (cumulative <= target).sum(1, keepdim=True).minimum(last)


def keep_nucleus(logits: Tensor, top_p: float, temperature: float = 1.0) -> Tensor:
    """The logits with -inf outside the nucleus: the fewest tokens whose probability reaches ``top_p``.

    For evaluation alone: the logprobs of a truncated distribution are not the policy's.

    Source:
        Holtzman et al., arXiv 1904.09751, section 3.1.
    """
    if top_p >= 1.0:
        return logits
    ordered, order = (logits.double() / temperature).softmax(1).sort(dim=1, descending=True, stable=True)
    outside = ordered.cumsum(1) - ordered >= top_p
    return logits.masked_fill(torch.zeros_like(outside).scatter(1, order, outside), -torch.inf)
