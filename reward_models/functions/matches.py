"""Rewards of text that is the same as, or near to, a column of the data."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

from reward_models.functions.text import Completion, column_of, text_of


def exact_match(
    completions: Sequence[Completion],
    *,
    column: str = "answer",
    ignore_case: bool = False,
    ignore_space: bool = True,
    ignore_punctuation: bool = False,
    **columns: Any,
) -> list[float | None]:
    """1 where the completion is the column's text, or one of its texts, else 0.

    Args:
        completions: strings, or chat messages whose last one is read.
        column: the column that holds the right text, or a list of right ones. Characters that Unicode writes in two ways are
            the same.
        ignore_case: capitals and small letters are the same.
        ignore_space: white space at the ends does not count, and within the text any amount of it is one space.
        ignore_punctuation: characters that Unicode calls punctuation do not count.
        columns: the data's columns, each a list with one value per completion.

    Returns:
        1.0, or 0.0, or ``None`` where the column has nothing.

    Raises:
        ValueError: the data has no such column.
    """
    rewards: list[float | None] = []
    for completion, value in zip(completions, column_of(columns, column), strict=True):
        given, *right = (
            _normal(text, ignore_case, ignore_space, ignore_punctuation)
            for text in (text_of(completion), *_accepted(value))
        )
        rewards.append(float(given in right) if right else None)
    return rewards


def fuzzy_match(
    completions: Sequence[Completion],
    *,
    column: str = "answer",
    threshold: float | None = None,
    ignore_case: bool = False,
    ignore_space: bool = True,
    ignore_punctuation: bool = False,
    max_chars: int = 1000,
    **columns: Any,
) -> list[float | None]:
    """How much of the completion and of the column's text is the same: ``2 * matching / (length + length)``.

    Matching characters are those of the longest common piece, and in the same way left and right of it (difflib's ratio,
    without its rule that leaves out frequent characters). Of several right texts the nearest counts.

    Args:
        completions: strings, or chat messages whose last one is read.
        column: as in :func:`exact_match`, as are the three options on what does not count.
        threshold: 1 where the ratio is at least this, else 0, in place of the ratio.
        ignore_case: see there.
        ignore_space: see there.
        ignore_punctuation: see there.
        max_chars: pieces are looked for in this many first characters of each text, and the rest counts as not matching:
            the time grows with the square.
        columns: the data's columns, each a list with one value per completion.

    Returns:
        From 0 to 1, or ``None`` where the column has nothing.

    Raises:
        ValueError: the data has no such column, ``max_chars`` is below 1, or the threshold is not from 0 to 1.
    """
    if max_chars < 1 or not 0 <= (threshold or 0.0) <= 1:
        raise ValueError(
            f"max_chars must be at least 1 and threshold from 0 to 1, got max_chars={max_chars}, threshold={threshold}"
        )
    rewards: list[float | None] = []
    for completion, value in zip(completions, column_of(columns, column), strict=True):
        given, *right = (
            _normal(text, ignore_case, ignore_space, ignore_punctuation)
            for text in (text_of(completion), *_accepted(value))
        )
        best = max((_ratio(given, text, max_chars) for text in right), default=None)
        rewards.append(best if best is None or threshold is None else float(best >= threshold))
    return rewards


def _accepted(value: Any) -> list[str]:
    """The right texts of a row."""
    values = value if isinstance(value, list | tuple) else [value]
    return [str(item) for item in values if item is not None]


def _normal(text: str, ignore_case: bool, ignore_space: bool, ignore_punctuation: bool) -> str:
    text = unicodedata.normalize("NFC", text.casefold() if ignore_case else text)
    if ignore_punctuation:
        text = "".join(character for character in text if not unicodedata.category(character).startswith("P"))
    return " ".join(text.split()) if ignore_space else text


def _ratio(given: str, right: str, max_chars: int) -> float:
    if given == right:
        return 1.0
    matcher = SequenceMatcher(None, given[:max_chars], right[:max_chars], autojunk=False)
    return 2.0 * sum(block.size for block in matcher.get_matching_blocks()) / (len(given) + len(right))
