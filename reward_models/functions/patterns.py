"""Rewards of what a completion's text contains."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from reward_models.functions.text import Completion, text_of


def regex_match(
    completions: Sequence[Completion], *, pattern: str, whole: bool = False, **_columns: Any
) -> list[float]:
    """1 where a regular expression matches, else 0.

    Args:
        completions: strings, or chat messages whose last one is read.
        pattern: in Python's syntax; flags are written inside it: ``(?is)``.
        whole: the pattern must match the whole text, not only a part of it.

    Returns:
        1.0 or 0.0 per completion.

    Raises:
        re.error: the pattern is malformed.
    """
    compiled = re.compile(pattern)
    find = compiled.fullmatch if whole else compiled.search
    return [float(find(text_of(completion)) is not None) for completion in completions]


def keyword(
    completions: Sequence[Completion],
    *,
    words: str | Sequence[str] = (),
    absent: str | Sequence[str] = (),
    ignore_case: bool = True,
    **_columns: Any,
) -> list[float]:
    """The share of wanted words that occur, minus the share of unwanted words that occur.

    Args:
        completions: strings, or chat messages whose last one is read.
        words: wanted words or phrases; each counts once however often it occurs, and only as a whole word.
        absent: unwanted ones, counted in the same way.
        ignore_case: capitals and small letters are the same.

    Returns:
        One reward per completion, from -1 to 1.

    Raises:
        ValueError: neither ``words`` nor ``absent`` has a word, or a word is empty.
    """
    wanted, unwanted = (_word_patterns(group, ignore_case) for group in (words, absent))
    if not wanted and not unwanted:
        raise ValueError("no words to look for: give args.words, args.absent, or both")
    texts = [text_of(completion) for completion in completions]
    return [_share_found(wanted, text) - _share_found(unwanted, text) for text in texts]


def _word_patterns(words: str | Sequence[str], ignore_case: bool) -> list[re.Pattern[str]]:
    words = [words] if isinstance(words, str) else words
    if "" in words:
        raise ValueError("an empty word would be found in every text; remove it from args.words and args.absent")
    flags = re.IGNORECASE if ignore_case else re.NOFLAG
    return [re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", flags) for word in words]


def _share_found(patterns: Sequence[re.Pattern[str]], text: str) -> float:
    return sum(pattern.search(text) is not None for pattern in patterns) / len(patterns) if patterns else 0.0
