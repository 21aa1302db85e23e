"""One call of a reward function, in whatever process: what it wants to be given, and what came of it.

Nothing here needs torch, because worker processes import it.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import numbers
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_pg.errors import RewardError

LOGGERS = ("log_metric", "log_extra")  # TRL's, given to functions that name them


@dataclass(frozen=True, slots=True)
class Needs:
    """Which keywords a function takes."""

    named: tuple[str, ...]
    required: tuple[str, ...]
    any: bool  # it has **kwargs, or Python cannot say
    options: frozenset[str] = frozenset()  # those that a column of the same name must not fill

    def missing(self, given: Sequence[str]) -> list[str]:
        """Required keywords that nothing provides."""
        return [name for name in self.required if name not in given and name not in LOGGERS]

    def chosen(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The keywords to call it with."""
        return dict(given) if self.any else {name: value for name, value in given.items() if name in self.named}


def needs_of(function: Callable[..., Any], options_of: Mapping[str, Any] | None = None) -> Needs:
    """Read a function's signature.

    Args:
        function: the reward function.
        options_of: the arguments of a function of ours, whose keyword-only parameters are options. A column that one of
            the arguments names is given to it all the same.
    """
    parameters = parameters_of(function)
    if parameters is None:
        return Needs((), (), True)
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    plain = {name: parameter for name, parameter in parameters.items() if parameter.kind not in variadic}
    required = tuple(name for name, parameter in plain.items() if parameter.default is parameter.empty)
    only = {name for name, parameter in plain.items() if parameter.kind == parameter.KEYWORD_ONLY}
    options = set() if options_of is None else only - {str(value) for value in options_of.values()}
    return Needs(tuple(plain), required, takes_any(parameters), frozenset(options))


def parameters_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    """The parameters; ``None`` where Python cannot say, as with some functions written in C."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None


def takes_any(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether there is a ``**kwargs``."""
    return any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a call gave no result."""

    kind: str  # "raised", "timeout" or "died"
    reason: str
    renew: bool = False  # the process that ran it is gone, or not to be trusted
    error: Exception | None = None  # in this process


@dataclass(slots=True)
class Answer:
    """What came of a call."""

    result: Any = None  # plain Python: numbers, None, strings, lists, RewardError, Unreadable
    failure: Failure | None = None
    seconds: float = 0.0
    metrics: list[tuple[str, float]] = field(default_factory=list)
    extras: list[tuple[str, list[Any]]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A value that is no reward, as it may be shown and sent between processes."""

    kind: str
    text: str

    def __repr__(self) -> str:
        """As the value itself was shown."""
        return self.text


def perform(function: Callable[..., Any], keywords: dict[str, Any], needs: Needs) -> Callable[[], Answer]:
    """Call a function. One that is asynchronous goes on by itself; calling what is returned waits for it.

    Args:
        function: the reward function.
        keywords: what it is called with; TRL's loggers are added where it names them.
        needs: its parameters.
    """
    answer, start = Answer(), time.perf_counter()
    loggers: dict[str, Callable[..., None]] = {
        "log_metric": lambda name, value: answer.metrics.append((str(name), float(value))),
        "log_extra": lambda name, values: answer.extras.append((str(name), [_shown(value) for value in values])),
    }
    keywords |= {name: logger for name, logger in loggers.items() if name in needs.named}

    def finish(outcome: Callable[[], Any]) -> Answer:
        try:
            answer.result = plain(outcome())
        except Exception as error:
            answer.failure = _failure(error)
        answer.seconds = time.perf_counter() - start
        return answer

    try:
        result = function(**keywords)
    except Exception as error:
        answer.failure, answer.seconds = _failure(error), time.perf_counter() - start
        return lambda: answer
    if inspect.isawaitable(result):
        waiting = _Waiting(result)
        return lambda: finish(waiting.outcome)
    done = finish(lambda: result)
    return lambda: done


def plain(value: Any) -> Any:
    """A result as plain Python, so that it can be sent from a worker without its classes."""
    value = value.tolist() if hasattr(value, "tolist") else value  # tensors and arrays
    if isinstance(value, RewardError):
        return RewardError(str(value))
    if value is None or isinstance(value, bool | int | float | str | Unreadable):
        return value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, numbers.Real):
        return float(value)
    return Unreadable(type(value).__name__, repr(value)[:200])


def _shown(value: Any) -> Any:
    """An entry of ``log_extra`` as plain Python, or as its text."""
    known = plain(value)
    return str(value) if isinstance(known, Unreadable) else known


def _failure(error: Exception) -> Failure:
    renew = isinstance(error, MemoryError | OSError)
    return Failure("raised", f"raised {type(error).__name__}: {error}", renew, error)


class _Waiting:
    """An awaitable that runs on the event loop of this process."""

    def __init__(self, awaitable: Awaitable[Any]) -> None:
        async def run() -> Any:
            return await awaitable

        self._future = asyncio.run_coroutine_threadsafe(run(), _event_loop())

    def outcome(self) -> Any:
        """What it gave or raised."""
        try:
            return self._future.result()
        except BaseException:
            self._future.cancel()
            raise


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """One loop, kept in a thread.

    In a notebook the main thread's loop runs already, and a client that a function keeps between calls stays bound to
    the loop of its first.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="reward-functions", daemon=True).start()
    return loop
