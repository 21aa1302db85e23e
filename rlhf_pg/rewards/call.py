"""One function over the rows of a rollout: its shares, and, where a call fails, the rows that are to blame."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_pg.config.rewards import RewardConfig
from rlhf_pg.errors import RewardError
from rlhf_pg.rewards.calls import Answer, Failure
from rlhf_pg.rewards.functions import Call, RewardFunction, keywords_for
from rlhf_pg.rewards.values import read_result, rows_of, show_row
from rlhf_pg.types import Rollout

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Rows:
    """What a function said of each row."""

    values: list[float]  # NaN where unscorable
    tokens: dict[int, list[float]] = field(default_factory=dict)  # rewards per token, where they are such
    extras: dict[str, list[Any]] = field(default_factory=dict)  # further columns, through TRL's log_extra
    failed: list[int] = field(default_factory=list)
    nans: int = 0
    seconds: float = 0.0
    logged: dict[str, list[tuple[float, int]]] = field(default_factory=dict)  # values and the rows that each is of

    def metrics(self, name: str) -> dict[str, float]:
        """What is logged of the function ``name``."""
        own = {name: sum(x * n for x, n in values) / sum(n for _, n in values) for name, values in self.logged.items()}
        own[f"time/rewards/{name}"] = self.seconds
        own[f"rewards/{name}/failed"] = float(len(self.failed))
        own[f"rewards/{name}/nan"] = float(self.nans)
        return own


class FunctionCall:
    """A function called on all rows of a rollout."""

    def __init__(
        self,
        name: str,
        function: RewardFunction,
        args: Mapping[str, Any],
        given: Mapping[str, Sequence[Any]],
        rollout: Rollout,
        config: RewardConfig,
    ) -> None:
        self.name, self.function, self._args, self._given = name, function, args, given
        self._rollout, self._config = rollout, config
        self._lengths: list[int] = rollout.lengths.tolist()
        self._rows = Rows([math.nan] * len(rollout))
        self._calls: list[tuple[Sequence[int], Call]] = []

    def start(self) -> None:
        """Begin: each share of the function gets whole groups."""
        group, shares = self._rollout.group_size, self.function.shares
        prompts = len(self._rollout.prompts)
        for share in range(shares):
            rows = range(prompts * share // shares * group, prompts * (share + 1) // shares * group)
            if rows:
                self._calls.append((rows, self._begin(share, rows)))

    def _begin(self, share: int, rows: Sequence[int]) -> Call:
        return self.function.start(share, keywords_for(self.function, self._given, self._args, rows))

    def result(self) -> Rows:
        """Wait, and find the rows that it failed on.

        Raises:
            RewardError: there are such rows, and ``reward.on_error`` is ``stop``, or they are too many.
        """
        for rows, call in self._calls:
            answer = call()
            if answer.failure is None or len(rows) == 1:
                self._take(rows, answer)
            else:
                self._one_by_one(rows, answer.failure)
        return self._rows

    def _one_by_one(self, rows: Sequence[int], failure: Failure) -> None:
        """A call on many rows failed: call it on each alone, so that only those are lost that it fails on."""
        before = len(self._rows.failed)
        for row in rows:
            self._take([row], self._begin(0, [row])())
        if len(self._rows.failed) == before and self._config.on_error == "stop":
            mend = "raise reward.timeout" if failure.kind == "timeout" else "mend it"
            raise RewardError(
                f"reward function {self.name!r} {failure.reason} when it was called with {rows_of(len(rows))}, and can score "
                f"each of them alone; {mend}, or set reward.on_error=unscorable to go on row by row; the first is "
                f"{show_row(self._rollout, rows[0])}"
            ) from failure.error

    def _take(self, rows: Sequence[int], answer: Answer) -> None:
        """Keep what an answer says of its rows."""
        own = self._rows
        own.seconds += answer.seconds
        if answer.failure is not None:
            self._fail(rows[0], answer.failure.reason, answer.failure.error)
            return
        read = read_result(answer.result, [self._lengths[row] for row in rows])
        own.nans += read.nans
        for place, row in enumerate(rows):
            own.values[row] = read.values[place]
            if read.tokens is not None and read.tokens[place]:
                own.tokens[row] = read.tokens[place]
        for name, value in answer.metrics:
            own.logged.setdefault(name, []).append((value, len(rows)))
        for name, values in answer.extras:
            if len(values) != len(rows):
                raise RewardError(
                    f"reward function {self.name!r} gave log_extra({name!r}, ...) {rows_of(len(values), 'value')} for "
                    f"{rows_of(len(rows))}; it must give one per row"
                )
            column = own.extras.setdefault(name, [None] * len(own.values))
            for row, value in zip(rows, values, strict=True):
                column[row] = value
        whole = len(rows) > 1 and len(read.problems) == len(rows) and len(set(read.problems.values())) == 1
        for place, problem in read.problems.items():
            self._fail(rows[place], problem, whole=whole)

    def _fail(self, row: int, reason: str, error: Exception | None = None, *, whole: bool = False) -> None:
        """A row on which the function failed; ``whole``: as on each of the call."""
        place = "; the first row is" if whole else ", in"
        said = f"reward function {self.name!r} {reason}{place} {show_row(self._rollout, row)}"
        if self._config.on_error == "stop":
            raise RewardError(said) from error
        _logger.warning("%s: it counts as unscorable", said)
        failed, rows = self._rows.failed, len(self._rows.values)
        failed.append(row)
        if len(failed) > max(1, int(self._config.max_unscorable * rows)):
            raise RewardError(
                f"{said}; that is row {len(failed)} of {rows} that it fails on, more than "
                f"reward.max_unscorable={self._config.max_unscorable:g} allows: mend the function, or raise the share"
            ) from error
