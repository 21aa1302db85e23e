"""Rewards of an answer that can be checked against a column of the data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from reward_models.functions.text import Completion, column_of, text_of

# The lookbehind keeps "5-3" from being read as 5 and -3, and the 2 of "H2O" from being a number.
_NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>[-+]?)\$?(?P<sign_after>-?)"
    r"(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?P<exponent>[eE][-+]?[0-9]{1,3}(?![0-9]))?"
)


def _number(text: str, marker: str | None) -> Decimal | None:
    """The first number after the last marker, or without a marker the last number; ``None`` where there is none."""
    text = text.replace("\N{MINUS SIGN}", "-")
    if marker is not None:
        _, found, rest = text.rpartition(marker)
        match = _NUMBER.search(rest) if found else None
    else:
        match = max(_NUMBER.finditer(text), key=re.Match.start, default=None)
    if match is None:
        return None
    sign = "-" if "-" in (match["sign"], match["sign_after"]) else ""
    return Decimal(sign + match["digits"].replace(",", "") + (match["exponent"] or ""))


def numeric_answer(
    completions: Sequence[Completion],
    *,
    column: str = "answer",
    marker: str | None = None,
    column_marker: str = "####",
    tolerance: float = 0.0,
    **columns: Any,
) -> list[float | None]:
    """Whether the completion's number is the column's: 1 if ``|number - right| <= tolerance``, else 0.

    Numbers may have thousands separators, a dollar sign, a sign and an exponent: ``1,234``, ``-$5.50``, ``2e3``. They
    are compared exactly, as decimals.

    Args:
        completions: strings, or chat messages whose last one is read.
        column: the column that holds the right answers, as text or as numbers.
        marker: the answer is the first number after the last marker in the completion; a completion without the
            marker is wrong. ``None``: the answer is the completion's last number.
        column_marker: the same for the column, where its value has the marker (gsm8k writes ``#### 42``); a value
            without it is read to its last number.
        tolerance: the largest difference that is still right, in the answer's unit.
        columns: the data's columns, each a list with one value per completion.

    Returns:
        1.0, or 0.0, or ``None`` where the column's value has no number.

    Raises:
        ValueError: the data has no such column.
    """
    allowed = Decimal(str(tolerance))
    rewards: list[float | None] = []
    for completion, value in zip(completions, column_of(columns, column), strict=True):
        right = _number(str(value), column_marker if column_marker in str(value) else None)
        given = _number(text_of(completion), marker)
        if right is None:
            rewards.append(None)
        else:
            rewards.append(float(given is not None and abs(given - right) <= allowed))
    return rewards
