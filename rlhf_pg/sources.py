"""From a file, a folder, a hub dataset or Python objects to a table: columns of plain Python values."""

from __future__ import annotations

import difflib
import importlib
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import datasets

from rlhf_pg.errors import DataError

READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}
SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Table:
    """A dataset as lists, one a column, each with a value a row."""

    name: str  # what errors and messages call it
    columns: dict[str, list[Any]]

    def __len__(self) -> int:
        """Rows."""
        return len(next(iter(self.columns.values()), []))

    def row(self, index: int) -> str:
        """How a message names a row."""
        return f"row {index} of {self.name} (the first is row 0)"


def read_table(source: str, split: str, key: str, say: Say) -> Table:
    """Read a file, a folder, a built-in world, a reasoning-gym task or a hub dataset.

    A path that exists is read from disk; what looks like a path and does not exist is an error, never a download.
    A hub dataset is ``owner/name``, ``owner/name:config`` or ``owner/name:config:split``. A task is
    ``reasoning_gym:TASK?size=500&seed=0``, with more of the task's options after further ``&``, as JSON or plain text.

    Args:
        source: the value of ``data.source`` or ``data.eval_source``.
        split: the split taken of a hub dataset or of a folder with files named by split.
        key: the configuration key that ``source`` came from, for the errors.
        say: receives one sentence where rows are left out.

    Raises:
        DataError: nothing there, nothing readable there, or no rows.
    """
    if not source:
        raise DataError(f"{key} is empty: give a json, jsonl, csv, parquet or txt file, a folder of them, or a hub id")
    if source.startswith("builtin:"):
        return _builtin(source, key)
    if source.startswith("reasoning_gym:"):
        return _reasoning_gym(source, key)
    path = Path(source).expanduser()
    if path.exists():
        return _local(source, path, split, key, say)
    if source.startswith(("./", "../", "/", "~")) or path.suffix.lower() in READERS or source.count("/") > 1:
        raise DataError(f"{key}={source} looks like a path, and there is no such file or folder from {Path.cwd()}")
    return _hub(source, split, key)


def table_from(dataset: object, split: str, name: str) -> Table:
    """Take a table from Python: a ``datasets.Dataset`` or a list of strings, of message lists, or of dicts."""
    if isinstance(dataset, datasets.DatasetDict):
        dataset = _of_split(dataset, split, name)
    if isinstance(dataset, datasets.Dataset):
        plain = dataset.with_format(None)
        return Table(name, {column: list(plain[column]) for column in plain.column_names})
    if not isinstance(dataset, (list, tuple)):
        raise DataError(
            f"{name} is a {type(dataset).__name__}; give a datasets.Dataset or a list of strings, of message lists "
            "or of dicts"
        )
    if not any(isinstance(row, Mapping) for row in dataset):
        return Table(name, {"prompt": list(dataset)})
    for index, row in enumerate(dataset):
        if not isinstance(row, Mapping):
            raise DataError(f"row {index} of {name} is a {type(row).__name__} among dicts; make every row a dict")
    names = dict.fromkeys(column for row in dataset for column in row)
    return Table(name, {column: [row.get(column) for row in dataset] for column in names})


def _builtin(source: str, key: str) -> Table:
    if source != "builtin:reviews":
        raise DataError(f"{key}={source} is unknown; the built-in prompts are builtin:reviews")
    grammar = importlib.import_module("rlhf_pg.quickstart.grammar")
    return table_from(grammar.held_out_prompts() if key == "data.eval_source" else grammar.prompts(), "", source)


def _reasoning_gym(source: str, key: str) -> Table:
    """The questions of a task. The column ``entry`` is what its reward needs to generate a question again, as JSON."""
    try:
        factory = importlib.import_module("reasoning_gym.factory")
    except ImportError as error:
        raise DataError(
            f"{key}={source} needs the package reasoning-gym; install the extra: pip install 'rlhf-pg[gym]'"
        ) from error
    task, _, options = source.removeprefix("reasoning_gym:").partition("?")
    if task not in factory.DATASETS:
        near = difflib.get_close_matches(task, factory.DATASETS, n=1)
        raise DataError(f"{key}={source}: {task!r} is no task{f' (nearest: {near[0]})' if near else ''}")
    # Without a seed the questions would be others in each process and after each restart.
    config = {"size": 500, "seed": 0} | dict(
        _option(option, f"{key}={source}") for option in options.split("&") if option
    )
    try:
        dataset = factory.create_dataset(task, **config)
        entries = [dataset[index] for index in range(len(dataset))]
    except Exception as error:
        known = ", ".join(sorted(factory.DATASETS[task][1].__dataclass_fields__))
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{key}={source} cannot be generated: {reason}; the task's options are {known}") from error
    places = [
        {"task": task, "config": config, "index": i, "question": row["question"]} for i, row in enumerate(entries)
    ]
    columns = {name: [row[name] for row in entries] for name in ("question", "answer")}
    return Table(
        source,
        {"prompt": columns["question"], "answer": columns["answer"], "entry": [json.dumps(place) for place in places]},
    )


def _option(text: str, where: str) -> tuple[str, Any]:
    """``name=value``, the value as JSON if it is such."""
    name, equals, value = text.partition("=")
    if not equals:
        raise DataError(f"{where}: {text!r} is no option; write name=value")
    try:
        return name, json.loads(unquote(value))
    except ValueError:
        return name, unquote(value)


def _local(source: str, path: Path, split: str, key: str, say: Say) -> Table:
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        return table_from(datasets.load_from_disk(str(path)), split, source)
    files = _files_of(path, split, key) if path.is_dir() else [path]
    readers = {READERS.get(file.suffix.lower()) for file in files}
    if len(readers) > 1:
        kinds = ", ".join(sorted({file.suffix for file in files}))
        raise DataError(f"{key}={source} holds files of several kinds ({kinds}); keep one kind, or name one file")
    reader = readers.pop()
    if reader is None:
        raise DataError(f"{key}={source} is no file that can be read here; it must end in {', '.join(READERS)}")
    # An empty file makes the reader raise StopIteration; it adds no rows anyway.
    names = [str(file) for file in files if file.stat().st_size]
    table = Table(source, _read(reader, names, f"{key}={source}") if names else {})
    if reader != "text" or not names:
        return table
    lines = [line for line in table.columns["text"] if line.strip()]
    if blank := len(table) - len(lines):
        say(f"{source}: {blank} blank lines of {len(table)} were skipped; each other line is a prompt.")
    return Table(source, {"prompt": lines})


def _read(reader: str, names: list[str], where: str) -> dict[str, list[Any]]:
    """Read files of one kind, in order, through ``datasets``, leaving nothing in its cache."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory() as cache:
            loaded = datasets.load_dataset(
                reader, data_files=names, split="train", cache_dir=cache, keep_in_memory=True
            )
            return table_from(loaded, "", where).columns
    except Exception as error:
        if "corresponds to no data" in str(error):
            return {}
        raise DataError(f"{where} could not be read: {error.__cause__ or error}") from error
    finally:
        if shown:
            datasets.enable_progress_bars()


def _files_of(folder: Path, split: str, key: str) -> list[Path]:
    """The data files of a folder: those named by the split if there are such, else all."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in READERS and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        raise DataError(f"{key}={folder} has no file that ends in {', '.join(READERS)}")
    words = {file: re.split(r"[^A-Za-z0-9]+", str(file.relative_to(folder).with_suffix(""))) for file in files}
    if chosen := [file for file in files if split in words[file]]:
        return chosen
    others = sorted({word for file in files for word in words[file] if word in SPLITS})
    if others:
        raise DataError(f"data.split={split} names no file of {key}={folder}; set it to one of {', '.join(others)}")
    return files


def _of_split(found: Mapping[str, Any], split: str, name: str) -> Any:
    if split not in found:
        raise DataError(f"data.split={split} is no split of {name}; there are {', '.join(found)}")
    return found[split]


def _hub(source: str, split: str, key: str) -> Table:
    name, config, wanted = (*source.split(":", 2), "", "")[:3]
    try:
        loaded = datasets.load_dataset(name, *filter(None, [config]), split=wanted or split)
    except Exception as error:
        raise DataError(
            f"{key}={source} is no file or folder here, and as a hub dataset it could not be loaded: {error}"
        ) from error
    return table_from(loaded, split, source)
