"""Rewards of a completion's length in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def length(completion_ids: Sequence[Sequence[int]], *, target: int, **_columns: Any) -> list[float]:
    """How near a completion's length is to a target: ``-|tokens - target| / target``.

    0 at the target, -1 at no token and at twice the target, and below that further out. The end-of-sequence token
    counts as one, since it was sampled.

    Args:
        completion_ids: sampled ids of each completion.
        target: the wanted length, tokens, at least 1.

    Returns:
        One reward per completion, at most 0.

    Raises:
        ValueError: the target is below 1.
    """
    if target < 1:
        raise ValueError(f"target is the wanted number of tokens and must be at least 1, got {target}")
    return [-abs(len(ids) - target) / target for ids in completion_ids]


def soft_overlong(
    completion_ids: Sequence[Sequence[int]], *, max_tokens: int, cache: int, **_columns: Any
) -> list[float]:
    """DAPO's penalty of a completion that comes near to a limit, or passes it.

    With L the length, ``0`` up to ``max_tokens - cache``, then ``((max_tokens - cache) - L) / cache``, which falls to -1 at
    ``max_tokens``, and ``-1`` beyond.

    Args:
        completion_ids: sampled ids of each completion, the end-of-sequence token included.
        max_tokens: the limit, tokens; sensibly at most ``rollout.max_new_tokens``, since no completion is longer.
        cache: tokens before the limit in which the penalty grows; 0: only what is beyond the limit is punished.

    Returns:
        One reward per completion, from -1 to 0.

    Raises:
        ValueError: the limit is below 1, or ``cache`` is not from 0 to ``max_tokens``.

    Source: Yu et al., DAPO, arXiv 2503.14476, equation 13.
    """
    if max_tokens < 1 or not 0 <= cache <= max_tokens:
        raise ValueError(
            f"max_tokens must be at least 1 and cache from 0 to max_tokens, got max_tokens={max_tokens}, cache={cache}"
        )
    over = [len(ids) - (max_tokens - cache) for ids in completion_ids]
    return [0.0 if excess <= 0 else -1.0 if excess > cache else -excess / cache for excess in over]
