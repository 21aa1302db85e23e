"""A run's log: one line of metrics a step, a progress bar, tables of samples, alerts, trackers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from rlhf_pg.tracking.alerts import Alerts
from rlhf_pg.tracking.records import cut_tables, metrics_line, open_metrics, write_table
from rlhf_pg.tracking.samples import SampleRow, safe_text, samples_table


class RunLog:
    """What a run writes to its folder and to the terminal. Only the main process writes or prints.

    Args:
        run_dir: the run's folder; made if absent.
        total_steps: steps of the whole run, those before a resume included.
        start_step: steps already done. Later lines of ``metrics.jsonl`` and later rollouts are removed, so a checkpoint
            must be saved after its step was logged. 0 begins anew.
        main: whether this is the main process; any other writes and prints nothing.
        quiet: print nothing; files are written all the same.
        trackers: is given each step's finite metrics and the step, for accelerate's trackers.
        console: where to print; standard output by default. A bar is drawn on a terminal only; anywhere else a plain
            line appears for each tenth of the steps.

    Attributes:
        alerts: the alerts' memory; its state belongs in a checkpoint.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        total_steps: int,
        start_step: int = 0,
        main: bool = True,
        quiet: bool = False,
        trackers: Callable[[dict[str, float], int], None] | None = None,
        console: Console | None = None,
    ) -> None:
        self.alerts = Alerts()
        self._run_dir, self._total, self._trackers = run_dir, total_steps, trackers
        self._console = (console or Console()) if main and not quiet else Console(quiet=True)
        self._file: TextIO | None = None
        self._bar: Progress | None = None
        if not main:
            return
        run_dir.mkdir(parents=True, exist_ok=True)
        cut_tables(run_dir, start_step)
        self._file = open_metrics(run_dir, start_step)
        if not quiet and self._console.is_interactive and self._console.file.isatty():
            self._bar = _progress(self._console)
            self._task = self._bar.add_task("train", total=total_steps, completed=start_step, status="")
            self._bar.start()

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log a step: a line in ``metrics.jsonl``, progress, alerts, trackers.

        Args:
            step: steps done; step 0 is the evaluation before the first one.
            metrics: names to numbers, an evaluation's ``eval/...`` among its step's; values that are not finite are
                written as null.
        """
        if self._file is None:
            return
        numbers = {name: value if isinstance(value, int) else float(value) for name, value in metrics.items()}
        self._file.write(metrics_line(step, numbers))
        self._file.flush()
        self._show(step, numbers)
        for alert in self.alerts.check(step, numbers):
            self._line(f"Alert at step {step}: {alert}", style="bold yellow")
        if self._trackers is not None:
            self._trackers({name: value for name, value in numbers.items() if math.isfinite(value)}, step)

    def say(self, text: str) -> None:
        """Print a text above the bar; characters that could steer the terminal are shown escaped."""
        self._line("\n".join(safe_text(line) for line in text.split("\n")))

    def samples(self, step: int, rows: Sequence[SampleRow]) -> None:
        """Print a table of samples above the bar."""
        self._console.print(samples_table(step, rows))

    def rollout(self, step: int, columns: Mapping[str, Sequence[Any]]) -> None:
        """Keep a step's samples in ``rollouts/step-NNNNNN.parquet``: one row a completion, columns of equal length."""
        if self._file is not None:
            write_table(self._run_dir / "rollouts", step, columns)

    def evaluation(self, step: int, columns: Mapping[str, Sequence[Any]]) -> None:
        """Keep the samples of an evaluation in ``evaluations/step-NNNNNN.parquet``."""
        if self._file is not None:
            write_table(self._run_dir / "evaluations", step, columns)

    def close(self) -> None:
        """End the bar and close the file; a second call does nothing."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _line(self, text: str, style: str = "") -> None:
        """Print without markup, and without breaking lines, so that a log can be searched."""
        self._console.print(Text(text, style=style), soft_wrap=True)

    def _show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Move the bar, or print a line in its place; an evaluation has a line of its own."""
        status = _status(metrics)
        if self._bar is not None:
            self._bar.update(self._task, completed=step)
            if status:
                self._bar.update(self._task, status=status)
        elif status and (step * 10 // self._total != (step - 1) * 10 // self._total or step == self._total):
            self._line(f"step {step}/{self._total}  {status}")
        if "eval/reward" in metrics:
            self._line(f"step {step}/{self._total}  held-out: {_evaluation(metrics)}")


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[status]}", markup=False),
        TimeRemainingColumn(),
        console=console,
        expand=True,
    )


def _status(metrics: Mapping[str, float]) -> str:
    """Reward, KL and speed in a few words; empty where the step had none of them."""
    parts = {"reward": "reward {:.3f}", "kl/sequence": "KL {:.2f} nats", "samples_per_second": "{:.0f} samples/s"}
    return "  ".join(form.format(metrics[name]) for name, form in parts.items() if name in metrics)


def _evaluation(metrics: Mapping[str, float]) -> str:
    """An evaluation in a few words, each mean with its standard error where there is one."""
    reward = f"reward {metrics['eval/reward']:.3f}" + _error(metrics, "eval/reward_stderr", 3)
    kl, win = metrics.get("eval/kl/sequence"), metrics.get("eval/win_rate")
    parts = [
        reward,
        "" if kl is None else f"KL {kl:.2f}{_error(metrics, 'eval/kl/sequence_stderr', 2)} nats",
        "" if win is None else f"wins {win:.0%} against the reference",
    ]
    return ", ".join(part for part in parts if part)


def _error(metrics: Mapping[str, float], name: str, digits: int) -> str:
    return f" ± {metrics[name]:.{digits}f}" if name in metrics else ""
