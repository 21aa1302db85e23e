"""What was measured of each policy and of the reference, from runs' folders or from anyone's table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from numpy.typing import NDArray

from rlhf_pg.config.load import load_config
from rlhf_pg.errors import DataError
from rlhf_pg.frontier.reference import read_reference
from rlhf_pg.report.run import flat
from rlhf_pg.tracking import read_metrics, read_table

Floats = NDArray[np.float64]
GOLD = "rewards/gold"
REFERENCE = "reference"
_NUMBERS = ("reward", "kl", "gold", "step", "seed")
_NONE = ["", "NA", "N/A", "NaN", "nan", "None", "null"]
# Texts stay as they are: a prompt that reads NA is no missing value, and 01 is not 1.
_READERS: Mapping[str, Callable[[Path], pandas.DataFrame]] = {
    ".csv": lambda path: pandas.read_csv(
        path, dtype={"prompt": str, "policy": str}, keep_default_na=False, na_values=dict.fromkeys(_NUMBERS, _NONE)
    ),
    ".parquet": pandas.read_parquet,
    ".jsonl": lambda path: pandas.read_json(path, lines=True, dtype=False),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """A policy at a step, measured on P prompts with G completions each."""

    run: str
    keys: tuple[str, ...]  # P, one a prompt
    prompts: tuple[str, ...]  # P texts
    reward: Floats  # (P, G), NaN where unscorable
    kl: Floats  # (P, G) sequence KL, nats
    gold: Floats | None = None  # (P, G)
    kl_k1: Floats | None = None  # (P, G) nats
    ids: Sequence[Sequence[int]] | None = None  # P * G completions, by token
    disagreement: float | None = None
    win_rate: float | None = None
    step: int | None = None
    seed: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class ReferenceTable:
    """The reference's samples: P prompts, N each."""

    keys: tuple[str, ...]
    prompts: tuple[str, ...]
    reward: Floats  # (P, N), NaN where unscorable or absent
    gold: Floats | None = None
    ids: NDArray[Any] | None = None  # (P, N) the same number for the same completion
    texts: NDArray[Any] | None = None  # (P, N)

    def rows(self, keys: Sequence[str]) -> list[int]:
        """The rows of these prompts.

        Raises:
            DataError: one is not among the reference's.
        """
        place = {key: row for row, key in enumerate(self.keys)}
        missing = [key for key in keys if key not in place]
        if missing:
            raise DataError(
                f"the reference has no samples of {len(missing)} prompts that a policy was measured on, the first is "
                f"{missing[0]!r}; measure both on the same prompts"
            )
        return [place[key] for key in keys]


def read_run_points(run_dir: Path, settings: Mapping[str, Any], command: str) -> list[Measured]:
    """A run at each of its evaluations but the one before the first step.

    Raises:
        DataError: the folder holds no run, or none that kept its evaluations' samples.
    """
    if not (run_dir / "config.yaml").is_file():
        raise DataError(f"{run_dir} is no run: it has no config.yaml")
    config = load_config(run_dir / "config.yaml")
    steps = sorted(int(path.stem.removeprefix("step-")) for path in (run_dir / "evaluations").glob("step-*.parquet"))
    if not any(steps):
        raise DataError(
            f"{run_dir} has no samples of evaluations after step 0; was data.eval_size 0, or has it just begun?"
        )
    lines = {line["step"]: line for line in read_metrics(run_dir)}
    tree = flat(config.model_dump(mode="json"))
    found = []
    for step in steps[1:] if steps[0] == 0 else steps:
        table = read_table(run_dir / "evaluations", step)
        each = config.evaluation.samples_per_prompt
        line = lines.get(step, {})
        disagreements = [
            line[name] for name in line if name.startswith("eval/") and name.endswith("/disagreement/mean")
        ]
        found.append(
            Measured(
                config.run.name,
                tuple(str(index) for index in table["prompt_index"][::each]),
                tuple(table["prompt"][::each]),
                _square(table["reward"], each),
                _square(table["kl"], each),
                _square(table[GOLD], each) if GOLD in table else None,
                _square(table["kl_k1"], each),
                table["response_ids"],
                disagreements[0] if disagreements else None,
                line.get("eval/win_rate"),
                step,
                config.run.seed,
                settings,
                tree,
                command,
                run_dir,
            )
        )
    return found


def row_means(table: Floats) -> Floats:
    """(P,) the mean of what is known in each row, NaN where nothing is."""
    known = ~np.isnan(table)
    count = known.sum(1)
    return np.asarray(np.where(count, np.where(known, table, 0.0).sum(1) / np.maximum(count, 1), np.nan))


def _square(values: Sequence[float | None], each: int) -> Floats:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64).reshape(-1, each)


def read_reference_table(out: Path) -> ReferenceTable:
    """The samples that ``sample_reference`` made."""
    found = read_reference(out)
    return ReferenceTable(
        tuple(str(index) for index in found["prompt_index"][:, 0]),
        tuple(found["prompt"][:, 0]),
        found["reward"].astype(np.float64),
        found[GOLD].astype(np.float64) if GOLD in found else None,
        found["completion_id"],
        found["completion"],
    )


def read_anyone_s(path: Path) -> tuple[list[Measured], ReferenceTable | None]:
    """Policies and reference from a table: a row a completion, with ``prompt``, ``policy``, ``kl`` and ``reward``.

    ``kl`` is the sequence KL of the completion, nats (exact, or log pi - log pi_ref of the sampled tokens). Further columns are
    read where they are there: ``gold``, ``step``, ``seed``; a policy of several seeds is a run a seed. Rows whose policy is
    ``reference`` are the reference's samples.

    Args:
        path: csv, jsonl or parquet.

    Raises:
        DataError: the file cannot be read, has no rows, or a column is missing or holds something else than numbers.
    """
    if path.suffix not in _READERS:
        raise DataError(f"--table {path} must end in {', '.join(_READERS)}")
    try:
        table = _READERS[path.suffix](path)
    except (OSError, ValueError) as error:
        raise DataError(f"--table {path} cannot be read: {error}") from error
    missing = [name for name in ("prompt", "policy", "kl", "reward") if name not in table]
    if missing:
        raise DataError(f"--table {path} has no column {missing[0]}; it has {sorted(table.columns)}")
    if table.empty:
        raise DataError(f"--table {path} has no rows; give a row a completion")
    for name in _NUMBERS:
        table[name] = _numbers(table[name], path) if name in table else np.nan
    table["policy"] = table["policy"].astype(str)
    own = table["policy"] == REFERENCE
    measured = []
    for policy, rows in table[~own].groupby("policy", sort=False):
        for seed, of_seed in rows.groupby("seed", dropna=False):
            name = str(policy) if rows["seed"].nunique(dropna=False) == 1 else f"{policy},seed={seed:g}"
            for step, of_step in of_seed.groupby("step", dropna=False):
                texts, tables = _by_prompt(of_step)
                measured.append(
                    Measured(
                        name,
                        texts,
                        texts,
                        tables["reward"],
                        tables["kl"],
                        tables.get("gold"),
                        step=None if np.isnan(step) else int(step),
                        seed=None if np.isnan(seed) else int(seed),
                    )
                )
    if not own.any():
        return measured, None
    texts, tables = _by_prompt(table[own])
    return measured, ReferenceTable(texts, texts, tables["reward"], tables.get("gold"))


def _numbers(column: Any, path: Path) -> Any:
    """The column in float64, NaN where nothing stands."""
    try:
        numbers = pandas.to_numeric(column).astype(np.float64)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"--table {path}, column {column.name}: {error}; give numbers, or nothing for unknown"
        ) from error
    if np.isinf(numbers).any():
        raise DataError(f"--table {path}, column {column.name}, row {int(np.isinf(numbers).argmax())} is infinite")
    return numbers


def _by_prompt(rows: pandas.DataFrame) -> tuple[tuple[str, ...], dict[str, Floats]]:
    """The prompts, and a table (P, most) of each measure that has a number."""
    groups = list(rows.groupby(rows["prompt"].astype(str), sort=False))
    names = [name for name in ("reward", "kl", "gold") if name != "gold" or rows[name].notna().any()]
    return tuple(str(text) for text, _ in groups), {
        name: _ragged([group[name] for _, group in groups]) for name in names
    }


def _ragged(rows: Sequence[Any]) -> Floats:
    """(P, most) NaN where a prompt has fewer."""
    table = np.full((len(rows), max(len(row) for row in rows)), np.nan)
    for place, row in enumerate(rows):
        table[place, : len(row)] = row
    return table
