"""What adapters share: calling a foreign function on a row, and reading what it returned."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlhf_pg.errors import RewardError

LogMetric = Callable[[str, float], None]
LogExtra = Callable[[str, list[Any]], None]
Value = float | RewardError | None
Row = tuple[Value, Mapping[str, Any]]  # a row's reward, and what else was said of it


def name_of(function: Callable[..., Any]) -> str:
    """What a function calls itself."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives something to wait for."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def tried(call: Callable[[], Any]) -> Any:
    """What a call returns, or the exception that it raised, so that the other rows keep their rewards."""
    try:
        return call()
    except MemoryError:
        raise  # the process is not to be trusted any more
    except Exception as error:
        return error


def value_of(answer: Any) -> Value:
    """A row's reward, or why there is none."""
    if answer is None or isinstance(answer, RewardError):
        return answer
    if isinstance(answer, BaseException):
        return RewardError(f"raised {type(answer).__name__}: {answer}")
    number = _number(answer)
    return RewardError(f"returned {repr(answer)[:60]}, which is no number") if number is None else number


def listed(values: Any, rows: int) -> list[Any]:
    """One value per row of a tensor or sequence; a single row's may stand alone.

    Raises:
        RewardError: there are more or fewer.
    """
    given = values.tolist() if hasattr(values, "tolist") else values
    if rows == 1 and not isinstance(given, list | tuple):
        given = [given]
    if not isinstance(given, list | tuple) or len(given) != rows:
        count = f"{len(given)} values" if isinstance(given, list | tuple) else f"{type(given).__name__}"
        raise RewardError(f"returned {count} for {rows} rows; it must return a tensor or a list with one value per row")
    return list(given)


def rewards_of(
    rows: Sequence[Row], function: str, log_metric: LogMetric | None, log_extra: LogExtra | None
) -> list[Value]:
    """The rewards of rows; what else was said of them is logged, as ``<function>/<entry>``.

    Args:
        rows: of each, its reward and further entries.
        function: its name, since many functions call an entry ``acc``.
        log_metric: takes the mean of each entry that is a finite number wherever it is given.
        log_extra: takes each other entry, as text, one per row.
    """
    for name in dict.fromkeys(name for _, entries in rows for name in entries):
        column = [entries.get(name) for _, entries in rows]
        given = [value for value in column if value is not None]
        known = [number for number in map(_number, given) if number is not None]
        if len(known) == len(given):
            finite = [number for number in known if math.isfinite(number)]
            if finite and log_metric is not None:
                log_metric(f"{function}/{name}", math.fsum(finite) / len(finite))
        elif log_extra is not None:
            log_extra(f"{function}/{name}", [None if value is None else str(value) for value in column])
    return [value for value, _ in rows]


def _number(value: Any) -> float | None:
    """A number, or a tensor or list of one number, as a float; ``None`` if it is none."""
    value = value.tolist() if hasattr(value, "tolist") else value
    while isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
