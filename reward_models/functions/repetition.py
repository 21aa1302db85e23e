"""A penalty of text that says the same thing again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from reward_models.functions.text import Completion, text_of


def repetition_penalty(
    completions: Sequence[Completion],
    completion_ids: Sequence[Sequence[int]],
    *,
    n: int = 3,
    max_penalty: float = 1.0,
    unit: Literal["tokens", "words"] = "tokens",
    **_columns: Any,
) -> list[float]:
    """The share of n-grams that stood before: ``-(1 - unique / total) * max_penalty``.

    A completion with fewer than ``n`` tokens has no n-gram and gets 0.

    Args:
        completions: strings, or chat messages whose last one is read where the unit is words.
        completion_ids: sampled ids of each completion.
        n: tokens or words of an n-gram, at least 1.
        max_penalty: what a completion without end of one n-gram would lose, at least 0.
        unit: n-grams of tokens, or of the words that white space separates.

    Returns:
        One reward per completion, from ``-max_penalty`` to 0.

    Raises:
        ValueError: an argument is out of its range.

    Source: Yeo et al., Demystifying Long Chain-of-Thought Reasoning, arXiv 2502.03373, appendix C.2.
    """
    if n < 1 or max_penalty < 0:
        raise ValueError(f"n must be at least 1 and max_penalty at least 0, got n={n}, max_penalty={max_penalty}")
    if unit not in ("tokens", "words"):
        raise ValueError(f"unit must be tokens or words, got {unit!r}")
    rows: Sequence[Sequence[int | str]] = (
        completion_ids if unit == "tokens" else [text_of(completion).split() for completion in completions]
    )
    return [max_penalty * (_unique_share(row, n) - 1.0) for row in rows]


def _unique_share(items: Sequence[int | str], n: int) -> float:
    grams = list(zip(*(items[start:] for start in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else 1.0
