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
