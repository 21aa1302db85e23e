"""Rewards of how a completion is laid out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from reward_models.functions.text import Completion, text_of


def format_tags(
    completions: Sequence[Completion],
    *,
    tags: str | Sequence[str] = ("think", "answer"),
    partial: bool = False,
    outside: bool = False,
    **_columns: Any,
) -> list[float]:
    """1 where a text is ``<think>...</think> <answer>...</answer>``: each tag once, closed, and in this order; else 0.

    A tag is right if it opens once, closes once after that, and opens after all the tags named before it that occur have
    closed. What stands between an opening and its closing is not looked at, except that none of the tags may.

    Args:
        completions: strings, or chat messages whose last one is read.
        tags: their names, in order, without brackets. Where the prompt ends with the first opening tag, leave that one out.
        partial: the share of what is right, in place of all or nothing: ``right / tags``; with text outside refused
            ``(right + clean) / (tags + 1)``, where clean is 1 if all tags are right and nothing is outside.
        outside: text before, between and after the tags is allowed; else only white space is.

    Returns:
        One reward per completion, from 0 to 1.

    Raises:
        ValueError: no tag, one twice, or a name that cannot stand in brackets.
    """
    names = [tags] if isinstance(tags, str) else list(tags)
    if not names or len(set(names)) < len(names) or not all(re.fullmatch(r"[^\s<>/]+", name) for name in names):
        raise ValueError(f"tags must be different names without spaces, slashes and brackets, got {names}")
    marks = re.compile("|".join(rf"</?{re.escape(name)}>" for name in names))
    rewards = []
    for completion in completions:
        text = text_of(completion)
        found = [(match.group(0), match.start(), match.end()) for match in marks.finditer(text)]
        right = _right(names, [mark for mark, _, _ in found])
        whole = right == len(names)
        if whole and not outside:
            edges = [0, *(edge for _, start, end in found for edge in (start, end)), len(text)]
            # Edges alternate outside, mark, inside, mark: every fourth gap, from the first, is outside.
            whole = not any(text[edges[i] : edges[i + 1]].strip() for i in range(0, len(edges), 4))
        if partial:
            rewards.append(right / len(names) if outside else (right + whole) / (len(names) + 1))
        else:
            rewards.append(float(whole))
    return rewards


def _right(names: Sequence[str], marks: Sequence[str]) -> int:
    """How many tags stand right, of the marks in a text."""
    count, free = 0, 0
    for name in names:
        opens = [place for place, mark in enumerate(marks) if mark == f"<{name}>"]
        closes = [place for place, mark in enumerate(marks) if mark == f"</{name}>"]
        # Nothing but its own closing may come next: another mark would be nested.
        count += len(opens) == len(closes) == 1 and opens[0] >= free and closes[0] == opens[0] + 1
        free = max([free, *(place + 1 for place in opens + closes)])
    return count
