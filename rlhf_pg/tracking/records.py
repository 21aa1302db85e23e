"""The files of a run that grow with it: ``metrics.jsonl`` and tables of samples, written, read, and cut for a resume."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import pyarrow
import pyarrow.parquet

from rlhf_pg.errors import DataError

TABLES = ("rollouts", "evaluations")  # folders of a run: each step's training samples; each evaluation's samples
_TABLE = re.compile(r"step-(\d+)\.parquet")


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``, in order; empty if there is none yet.

    A value that was not finite is None. The last line may be torn, as a kill leaves it, and is then left out.

    Raises:
        DataError: any other line is not a JSON object with a step.
    """
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            row["step"]
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break
            raise DataError(
                f"{path}, line {number}: not a JSON object with a step ({error}); remove the line."
            ) from error
        rows.append(row)
    return rows


def metrics_line(step: int, metrics: Mapping[str, float]) -> str:
    """One line of ``metrics.jsonl``; what is not finite becomes null, since JSON has neither NaN nor infinity."""
    values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    return json.dumps({"step": step, **values}, allow_nan=False) + "\n"


def open_metrics(run_dir: Path, start_step: int) -> TextIO:
    """Open ``metrics.jsonl`` for appending after ``start_step``; lines of later steps are cut off, in one rename.

    At ``start_step`` 0 the run begins anew and nothing of the file stays.
    """
    path = run_dir / "metrics.jsonl"
    kept = [row for row in read_metrics(run_dir) if row["step"] <= start_step] if start_step > 0 else []
    partial = path.with_name(".metrics.jsonl.tmp")
    with partial.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, allow_nan=False) + "\n" for row in kept)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return path.open("a", encoding="utf-8")


def cut_tables(run_dir: Path, start_step: int) -> None:
    """Make the folders of tables, and remove files of steps after ``start_step`` and unfinished ones."""
    for folder in (run_dir / name for name in TABLES):
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            match = _TABLE.fullmatch(path.name)
            if (match and int(match[1]) > start_step) or path.name.endswith(".parquet.tmp"):
                path.unlink()


def write_table(folder: Path, step: int, columns: Mapping[str, Sequence[Any]]) -> Path:
    """Write samples, one row a completion, to ``step-NNNNNN.parquet`` (zstd) of a folder, in one rename."""
    path = folder / f"step-{step:06d}.parquet"
    partial = path.with_name(f".{path.name}.tmp")
    table = pyarrow.table({name: list(values) for name, values in columns.items()})
    pyarrow.parquet.write_table(table, partial, compression="zstd")
    partial.replace(path)
    return path


def read_table(folder: Path, step: int) -> dict[str, list[Any]]:
    """The columns that ``write_table`` wrote."""
    columns: dict[str, list[Any]] = pyarrow.parquet.read_table(folder / f"step-{step:06d}.parquet").to_pydict()
    return columns
