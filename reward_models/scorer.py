"""The one thread that a reward server scores in, and the requests that wait for it."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from reward_models.wire import Refused, Rows
from rlhf_pg.errors import RewardError

Ids = list[list[int]]
Score = Callable[[list[Any], list[str], list[Any] | None, Ids | None], Sequence[float | RewardError | None]]
Values = list[float | RewardError | None]
_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Waiting:
    """Rows in the queue."""

    rows: Rows
    answer: asyncio.Future[Values]
    loop: asyncio.AbstractEventLoop
    given_up: bool = False

    def kind(self) -> tuple[bool, ...]:
        """What one call can have only one of: labels or none, ids or none, texts or messages."""
        rows = self.rows
        return rows.labels is None, rows.ids is None, all(isinstance(prompt, str) for prompt in rows.prompts)

    def give(self, values: Values | RewardError) -> None:
        """Hand the result to the request, unless it has gone."""

        def settle() -> None:
            if self.answer.done():
                return
            if isinstance(values, RewardError):
                self.answer.set_exception(values)
            else:
                self.answer.set_result(values)

        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(settle)


class Scorer:
    """Scores requests one call at a time, in one thread; those that wait meanwhile are scored together.

    A thread cannot be ended, so a call that hangs blocks it: ``busy_since`` shows that.

    Args:
        score: gives a value for each row.
        max_rows: rows that are scored in one call, unless a single request has more.

    Attributes:
        busy_since: when the call that goes on began, in seconds of ``time.monotonic()``; None between calls.
        calls: how often ``score`` has been called.
        seconds: how long that took together.
    """

    def __init__(self, score: Score, max_rows: int) -> None:
        self._score, self._max_rows = score, max_rows
        self._queue: queue.SimpleQueue[_Waiting] = queue.SimpleQueue()
        self.busy_since: float | None = None
        self.calls, self.seconds = 0, 0.0
        threading.Thread(target=self._run, name="scoring", daemon=True).start()

    async def __call__(self, rows: Rows, timeout: float) -> Values:
        """Score rows.

        Raises:
            Refused: 504, it took too long.
            RewardError: the call failed.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(rows, loop.create_future(), loop)
        self._queue.put(waiting)
        try:
            async with asyncio.timeout(timeout):
                return await waiting.answer
        except TimeoutError:
            raise Refused(504, f"the reward took longer than {timeout:g} s") from None
        finally:
            waiting.given_up = True

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self._queue.qsize()

    def _run(self) -> None:
        left: _Waiting | None = None
        while True:
            together, left = [left or self._queue.get()], None
            total = len(together[0].rows)
            while not self._queue.empty():
                left = self._queue.get()
                total += len(left.rows)
                if total > self._max_rows or left.kind() != together[0].kind():
                    break
                together.append(left)
                left = None
            self._answer([one for one in together if not one.given_up])

    def _answer(self, requests: Sequence[_Waiting]) -> None:
        """Score several requests together, and each by itself where that fails: none suffers from another's rows."""
        try:
            if requests:
                self._score_together(requests)
        except RewardError as error:
            if len(requests) == 1:
                requests[0].give(error)
            else:
                for one in requests:
                    self._answer([one])

    def _score_together(self, requests: Sequence[_Waiting]) -> None:
        """Score the rows of several requests in one call."""
        prompts = [prompt for one in requests for prompt in one.rows.prompts]
        completions = [completion for one in requests for completion in one.rows.completions]
        first = requests[0].rows
        labels = None if first.labels is None else [label for one in requests for label in one.rows.labels or ()]
        ids = None if first.ids is None else [row for one in requests for row in one.rows.ids or ()]
        self.busy_since = started = time.monotonic()
        try:
            values = list(self._score(prompts, completions, labels, ids))
        except RewardError:
            raise
        except Exception as error:
            _logger.exception("the reward failed")
            raise RewardError(f"the reward raised {type(error).__name__}; the server's log says more") from error
        finally:
            self.busy_since = None
            self.calls, self.seconds = self.calls + 1, self.seconds + time.monotonic() - started
        if len(values) != len(completions):
            raise RewardError(f"the reward gave {len(values)} values for {len(completions)} rows")
        start = 0
        for one in requests:
            one.give(values[start : start + len(one.rows)])
            start += len(one.rows)
