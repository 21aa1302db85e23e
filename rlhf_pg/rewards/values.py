"""Read what a reward function returned, and say which row is wrong."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, field
from typing import Any

import torch

from rlhf_pg.errors import RewardError
from rlhf_pg.rewards.calls import Unreadable
from rlhf_pg.types import Rollout

LARGEST = torch.finfo(torch.float32).max


@dataclass(slots=True)
class Read:
    """One call's rewards, a value for each of its rows."""

    values: list[float]  # NaN where unscorable; the sum where the rewards are per token
    tokens: list[list[float]] | None = None  # [] where unscorable; None: rewards are per response
    nans: int = 0  # rows that were NaN, not None
    problems: dict[int, str] = field(default_factory=dict)  # why a row has no value, by its place in the call


def read_result(result: Any, lengths: list[int]) -> Read:
    """Check one call's result: a value per row, or for each row a value per token.

    Args:
        result: as ``calls.plain`` gives it.
        lengths: tokens of each row's response.
    """
    rows = len(lengths)
    if not isinstance(result, list) or len(result) != rows:
        if isinstance(result, list):
            problem = (
                f"returned {rows_of(len(result), 'value')} for {rows_of(rows)}; it must return one per row, None for "
            )
            problem += "a row that it cannot score"
        else:
            problem = (
                f"returned {_kind(result)} ({short(repr(result))}); it must return a list with one value for each of "
            )
            problem += f"the {rows_of(rows)}"
        return Read([math.nan] * rows, problems=dict.fromkeys(range(rows), problem))
    per_token = any(isinstance(item, list) for item in result)
    read = Read([], [] if per_token else None)
    for row, (item, length) in enumerate(zip(result, lengths, strict=True)):
        entries = item if isinstance(item, list) else [] if item is None else [item]
        given = [_number(entry) for entry in entries]
        known = [number for number in given if number is not None]
        value = math.nan if item is None else math.fsum(known)
        problem = _problem(item, given, per_token, length)
        if problem:
            read.problems[row] = problem
            value = math.nan
        else:
            read.nans += item is not None and math.isnan(value)
        read.values.append(value)
        if read.tokens is not None:
            read.tokens.append([] if math.isnan(value) else known)
    return read


def _problem(item: Any, given: list[float | None], per_token: bool, length: int) -> str:
    """What is wrong with a row's value; "" if nothing is."""
    if item is None:
        return ""
    if isinstance(item, RewardError):
        return f"failed: {item}"
    if per_token and not isinstance(item, list):
        return f"returned {short(repr(item))} beside rows with a list of rewards per token"
    if None in given:
        return f"returned {short(repr(item))}, where every value must be a finite number, or None for a row it cannot score"
    if per_token and len(given) != length:
        return f"returned {len(given)} rewards for the {length} tokens of the response"
    return ""


def _number(value: Any) -> float | None:
    """The value as a float, NaN included; ``None`` if it is no number, or too large for float32."""
    if not isinstance(value, numbers.Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return None if abs(number) > LARGEST else number


def _kind(value: Any) -> str:
    return value.kind if isinstance(value, Unreadable) else type(value).__name__


def rows_of(count: int, word: str = "row") -> str:
    """A count and its word: ``1 row``, ``2 rows``."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def show_row(rollout: Rollout, row: int) -> str:
    """A row, by its number, prompt and completion."""
    prompt = rollout.prompts.prompts[row // rollout.group_size]
    text = prompt if isinstance(prompt, str) else str(prompt[-1].get("content")) if prompt else ""
    return f"row {row} (prompt {short(text)!r}, completion {short(rollout.texts[row])!r})"


def short(text: str) -> str:
    """The beginning of a long text."""
    return text if len(text) <= 60 else text[:57] + "..."
