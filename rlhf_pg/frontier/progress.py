"""What a run has reached, read from its folder while it goes on, and a table of all of them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rlhf_pg.frontier.grid import Cell

State = Literal["waiting", "running", "done", "done before", "failed"]
_TAIL = 1 << 17  # bytes of metrics.jsonl: dozens of lines
_STYLES = {"running": "bold", "done": "green", "done before": "dim", "failed": "bold red"}
_ORDER = ("running", "failed", "waiting", "done", "done before")


@dataclass(slots=True)
class Progress:
    """How far a run is.

    Attributes:
        step: steps done, of ``cell.config.run.steps``.
        reward: of the last measurement on held-out prompts, reward units.
        kl: sequence KL of that measurement, nats.
        measured: the step of that measurement.
    """

    cell: Cell
    state: State = "waiting"
    step: int = 0
    reward: float | None = None
    kl: float | None = None
    measured: int | None = None
    _size: int = -1
    _began: tuple[float, int] | None = field(default=None)  # when this process started it, and its first step seen

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.cell.config.run.steps

    def update(self) -> None:
        """Read the end of ``metrics.jsonl``, if it has changed; a resumed run cuts its last lines off."""
        path = self.cell.run_dir / "metrics.jsonl"
        size = path.stat().st_size if path.exists() else 0
        if size == self._size:
            return
        self._size, self.step = size, 0
        for line in _last_lines(path) if size else ():
            self.step = line["step"]
            if line.get("eval/reward") is not None:
                self.reward, self.kl, self.measured = line["eval/reward"], line.get("eval/kl/sequence"), line["step"]
        if self.state == "running" and self._began is None and self.step:
            self._began = time.monotonic(), self.step

    @property
    def seconds_left(self) -> float | None:
        """Until its last step, at the speed seen so far; None while that is not known."""
        if self.state != "running" or self._began is None or self.step <= self._began[1]:
            return None
        start, first = self._began
        return (time.monotonic() - start) / (self.step - first) * (self.steps - self.step)

    def said(self) -> str:
        """The last measurement in a few words."""
        reward = "" if self.reward is None else f", held-out reward {self.reward:.3f}"
        return f"step {self.step}/{self.steps}{reward}" + ("" if self.kl is None else f", KL {self.kl:.2f} nats")


class Board:
    """Shows all runs: a table that is drawn anew on a terminal, a line for each event anywhere else."""

    def __init__(self, runs: Sequence[Progress], console: Console) -> None:
        self._runs, self._console = runs, console
        self._seen = {run.cell.name: (run.state, run.measured) for run in runs}
        drawn = console.is_interactive and console.is_terminal
        self._live = Live(console=console, auto_refresh=False, get_renderable=self._table) if drawn else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def refresh(self) -> None:
        """Draw the table, or tell what has changed since the last time."""
        if self._live is not None:
            self._live.refresh()
            return
        for run in self._runs:
            now = (run.state, run.measured)
            if now != self._seen[run.cell.name]:
                text = Text(f"{run.cell.name}: {run.state}, {run.said()}")
                self._console.print(text, soft_wrap=True)
            self._seen[run.cell.name] = now

    def _table(self) -> Table:
        done = sum(run.state in ("done", "done before") for run in self._runs)
        table = Table(title=f"{done} of {len(self._runs)} runs are done", title_justify="left")
        table.add_column("run", overflow="fold")
        for name in ("state", "step", "held-out reward", "KL, nats", "left"):
            table.add_column(name, justify="right", no_wrap=True)
        for run in sorted(self._runs, key=lambda run: _ORDER.index(run.state)):
            left = run.seconds_left
            cells = (
                run.cell.name,
                run.state,
                f"{run.step}/{run.steps}",
                "–" if run.reward is None else f"{run.reward:.3f}",
                "–" if run.kl is None else f"{run.kl:.2f}",
                "" if left is None else f"{left / 60:.0f} min" if left > 90 else f"{left:.0f} s",
            )
            table.add_row(*(Text(cell) for cell in cells), style=_STYLES.get(run.state, ""))
        return table


def _last_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines within the last part of the file; a torn one is left for the next time."""
    with path.open("rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - _TAIL)
        file.seek(start)
        lines = file.read().split(b"\n")[1 if start else 0 : -1]
    return [json.loads(line) for line in lines]
