"""Get a grid done: start what is missing, go on with what was begun, leave alone what is there."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from filelock import FileLock, Timeout
from rich.console import Console
from rich.text import Text

from rlhf_pg.errors import ConfigError
from rlhf_pg.frontier.grid import Cell
from rlhf_pg.frontier.progress import Board, Progress
from rlhf_pg.tracking import read_metrics, safe_text

_LOOK_SECONDS = 0.5
_LOG_LINES = 8  # of a failed run, shown


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a run."""

    cell: Cell
    state: Literal["done", "done before", "failed"]
    seconds: float  # that it took now; 0 if it was done before
    log_file: Path
    problem: str = ""  # of a failed one: its exit, and the end of its log


def is_done(cell: Cell) -> bool:
    """Whether the run has reached its last step and saved its model."""
    if not (cell.run_dir / "final").is_dir():
        return False
    lines = read_metrics(cell.run_dir)
    return bool(lines) and int(lines[-1]["step"]) >= cell.config.run.steps


def run_cells(cells: Sequence[Cell], jobs: int, console: Console | None = None) -> list[Outcome]:
    """Get every run done, several at a time, each in a process of its own.

    A run that is done is left alone, one that was begun goes on from its newest checkpoint, the others start. When this
    process ends, however it ends, its runs end too; calling again goes on. A run that fails stops no other one.

    Each process takes ``cores // jobs`` threads unless ``OMP_NUM_THREADS`` is set, and with several GPUs each of the
    ``jobs`` places has its own of ``CUDA_VISIBLE_DEVICES`` in turn. What a run prints is in ``OUT/logs/NAME.log``.

    Args:
        cells: of one frontier.
        jobs: processes at a time, at least 1.
        console: where progress is shown; standard output by default. A table on a terminal, lines elsewhere.

    Returns:
        What became of each, in the order given.

    Raises:
        ConfigError: ``jobs`` is below 1, or another command is at work on the same runs.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs {jobs}: at least one run at a time is needed")
    if not cells:
        return []
    logs = cells[0].config_file.parents[1] / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    console = console or Console()
    try:
        with FileLock(logs / ".lock", timeout=0), _ended_by_signals():
            return _Work(cells, jobs, logs, console).run()
    except Timeout:
        raise ConfigError(f"another command is at work on the runs in {logs.parent}; wait for it, or end it") from None


@dataclass(slots=True)
class _Running:
    """A run in a process."""

    progress: Progress
    process: subprocess.Popen[bytes]
    place: int
    started: float = field(default_factory=time.monotonic)


class _Work:
    """The loop over runs that wait, runs that go on, and runs that have ended."""

    def __init__(self, cells: Sequence[Cell], jobs: int, logs: Path, console: Console) -> None:
        self.runs = {cell.name: Progress(cell) for cell in cells}
        self.logs, self.console = logs, console
        self.threads = str(max(1, _cores() // jobs))
        self.places = list(range(jobs))
        self.devices = _devices()
        self.outcomes: dict[str, Outcome] = {}
        self.going: list[_Running] = []

    def run(self) -> list[Outcome]:
        """All of them."""
        for run in self.runs.values():
            run.update()
            if is_done(run.cell):
                self._end(run, "done before", 0.0)
        waiting = [run for run in self.runs.values() if run.state == "waiting"]
        alive, closes_with_us = os.pipe()
        with Board(list(self.runs.values()), self.console) as board:
            try:
                while waiting or self.going:
                    while waiting and self.places:
                        self._start(waiting.pop(0), self.places.pop(0), alive)
                    board.refresh()
                    time.sleep(_LOOK_SECONDS)
                    self._look()
                board.refresh()
            finally:
                for running in self.going:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(running.process.pid, signal.SIGKILL)
                    running.process.wait()
                os.close(closes_with_us)
                os.close(alive)
        return [self.outcomes[name] for name in self.runs]

    def _start(self, run: Progress, place: int, alive: int) -> None:
        cell = run.cell
        begun = (cell.run_dir / "config.yaml").is_file()
        what = ["--resume", str(cell.run_dir)] if begun else [str(cell.config_file)]
        environment = {"OMP_NUM_THREADS": self.threads, **os.environ, "PYTHONUNBUFFERED": "1"}
        if len(self.devices) > 1:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices[place % len(self.devices)]
        with self._log(cell).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "rlhf_pg.frontier.child", str(alive), "train", *what],
                pass_fds=(alive,),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is this process's to handle, and the whole group can be killed.
                start_new_session=True,
                env=environment,
            )
        run.state = "running"
        self.going.append(_Running(run, process, place))

    def _look(self) -> None:
        """See how far each is, and which have ended."""
        for running in list(self.going):
            code = running.process.poll()
            running.progress.update()
            if code is None:
                continue
            self.going.remove(running)
            self.places.append(running.place)
            seconds = time.monotonic() - running.started
            if code == 0 and is_done(running.progress.cell):
                self._end(running.progress, "done", seconds)
                continue
            log = self._log(running.progress.cell)
            end = [safe_text(line) for line in _last_lines(log)]
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            problem = "\n".join([f"{how}; the end of {log}:", *end])
            self._end(running.progress, "failed", seconds, problem)
            self.console.print(Text(f"{running.progress.cell.name} {problem}"), soft_wrap=True)

    def _end(
        self, run: Progress, state: Literal["done", "done before", "failed"], seconds: float, problem: str = ""
    ) -> None:
        run.state = state
        self.outcomes[run.cell.name] = Outcome(run.cell, state, seconds, self._log(run.cell), problem)

    def _log(self, cell: Cell) -> Path:
        return self.logs / f"{cell.name}.log"


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that runs are ended and the terminal is left in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _devices() -> list[str]:
    """The GPUs as ``CUDA_VISIBLE_DEVICES`` names them; none are touched."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [device for device in named.split(",") if device]
    return [str(device) for device in range(torch.cuda.device_count())]


def _last_lines(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()[-_LOG_LINES:]
