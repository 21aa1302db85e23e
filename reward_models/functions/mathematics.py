"""Mathematical equivalence; importing this module needs the extra ``math``."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

from reward_models.functions.text import Completion, column_of, text_of

try:
    from math_verify import parse, verify
except ImportError as error:
    raise ImportError(
        "the reward 'math_equal' needs the package math-verify; install the extra: pip install 'rlhf-pg[math]'"
    ) from error

# It warns of every row that runs out of time, with the row's whole text, and of every time limit that is off.
logging.getLogger("math_verify").setLevel(logging.ERROR)
_DELIMITED = re.compile(r"\$|\\boxed|\\\[|\\\(")
_WORD = re.compile(r"(?<!\\)\b[A-Za-z]{2,}")


def math_equal(
    completions: Sequence[Completion],
    *,
    column: str = "answer",
    column_marker: str = "####",
    seconds: int = 5,
    **columns: Any,
) -> list[float | None]:
    """1 where the completion's answer is mathematically the column's, else 0: ``\\boxed{1/2}`` is ``0.5``.

    The completion's answer is what math-verify finds: LaTeX in ``\\boxed{}``, ``$``, ``\\(`` or ``\\[`` first, then a
    plain expression or number. The column's value may be LaTeX without delimiters: ``\\frac{1}{2}``, ``x^2 + 1``.

    The time limits are signals and work in a process's main thread, where a worker runs the function; in another thread
    there are none, and ``reward.timeout`` ends a call in a worker, as it does where a computation cannot be interrupted.

    Args:
        completions: strings, or chat messages whose last one is read.
        column: the column that holds the right answers.
        column_marker: only what follows its last occurrence in the column's value is read (gsm8k writes ``#### 42``).
        seconds: to read a completion, and to compare it; a row that takes longer is wrong.
        columns: the data's columns, each a list with one value per completion.

    Returns:
        1.0, or 0.0, or ``None`` where no mathematics is found in the column's value.

    Raises:
        ValueError: the data has no such column, or a limit is below 1 second.

    Source: package math-verify.
    """
    if seconds < 1:
        raise ValueError(f"seconds must be a whole number of at least 1, got {seconds}")
    limit = seconds if threading.current_thread() is threading.main_thread() else None
    rewards: list[float | None] = []
    for completion, value in zip(completions, column_of(columns, column), strict=True):
        right = [] if value is None else _right(str(value).rpartition(column_marker)[2].strip(), limit)
        if not right:
            rewards.append(None)
            continue
        given = parse(text_of(completion), parsing_timeout=limit)
        rewards.append(float(verify(list(right), given, timeout_seconds=limit)))
    return rewards


@lru_cache(maxsize=1024)
def _right(text: str, limit: int | None) -> tuple[Any, ...]:
    """What a column's value means; () where it is no mathematics."""
    try:
        return tuple(parse(f"${Decimal(text.replace(',', '')):f}$", parsing_timeout=limit))  # 1e-05 is no e times x
    except InvalidOperation:
        pass
    # In words each letter would be a variable.
    bare = not _DELIMITED.search(text) and not _WORD.search(text)
    found = parse(f"${text}$", parsing_timeout=limit) if bare and text else []
    return tuple(found or parse(text, parsing_timeout=limit))
