"""Read what a reward function returned, and say which row is wrong."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any

import torch

from rlhf_pg.errors import RewardError
from rlhf_pg.types import Rollout

LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True, slots=True)
class Read:
    """One function's rewards."""

    values: list[float]  # B; NaN where unscorable; the sum where the rewards are per token
    tokens: list[list[float]] | None  # B rows, [] where unscorable; None: rewards are per response
    nans: int  # rows that were NaN, not None


def read_result(result: Any, name: str, rollout: Rollout) -> Read:
    """Check one function's result: a value per row, or for each row a value per token."""
    result = result.tolist() if hasattr(result, "tolist") else result  # tensors and arrays
    rows = len(rollout)
    if not isinstance(result, list | tuple):
        raise RewardError(
            f"reward function {name!r} returned {type(result).__name__} ({_short(repr(result))}); it must return a "
            f"list with one value for each of the {rows} rows"
        )
    if len(result) != rows:
        raise RewardError(
            f"reward function {name!r} returned {len(result)} values for {rows} rows; it must return one per row, None "
            "for a row that it cannot score"
        )
    items = [item.tolist() if hasattr(item, "tolist") else item for item in result]
    per_token = any(isinstance(item, list | tuple) for item in items)
    values, tokens, nans = [], [], 0
    for row, (item, length) in enumerate(zip(items, rollout.lengths.tolist(), strict=True)):
        entries = item if isinstance(item, list | tuple) else [] if item is None else [item]
        given = [_number(entry) for entry in entries]
        wrong = None
        if per_token and item is not None and entries is not item:
            wrong = f"{_short(repr(item))} beside rows with a list of rewards per token"
        elif None in given:
            wrong = (
                f"{_short(repr(item))}, where every value must be a finite number, or None for a row it cannot score"
            )
        elif per_token and item is not None and len(given) != length:
            wrong = f"{len(given)} rewards for the {length} tokens of the response"
        if wrong is not None:
            raise RewardError(f"reward function {name!r} returned {wrong}, in {show_row(rollout, row)}")
        numbers_given = [number for number in given if number is not None]
        value = math.nan if item is None else sum(numbers_given)
        nans += item is not None and math.isnan(value)
        values.append(value)
        tokens.append([] if math.isnan(value) else numbers_given)
    return Read(values, tokens if per_token else None, nans)


def _number(value: Any) -> float | None:
    """The value as a float, NaN included; ``None`` if it is no number, or too large for float32."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, numbers.Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return None if abs(number) > LARGEST else number


def raised(name: str, error: BaseException, rollout: Rollout) -> RewardError:
    """The error for a function that raised."""
    return RewardError(
        f"reward function {name!r} raised {type(error).__name__}: {error}; it was called with {len(rollout)} rows, the "
        f"first is {show_row(rollout, 0)}"
    )


def show_row(rollout: Rollout, row: int) -> str:
    """A row, by its number, prompt and completion."""
    prompt = rollout.prompts.prompts[row // rollout.group_size]
    text = prompt if isinstance(prompt, str) else str(prompt[-1].get("content")) if prompt else ""
    return f"row {row} (prompt {_short(text)!r}, completion {_short(rollout.texts[row])!r})"


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
