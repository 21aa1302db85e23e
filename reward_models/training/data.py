"""The training and held-out rows of a reward model: read, checked, and parted by prompt."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reward_models.functions.text import Completion, text_of
from reward_models.training.columns import column_of
from reward_models.training.fitting import Example
from reward_models.training.rows import BadRows, RowReader
from rlhf_pg.errors import DataError
from rlhf_pg.sources import Say, Table, read_table, table_from
from rlhf_pg.types import Prompt


@dataclass(frozen=True, slots=True)
class DataOptions:
    """What the rows mean and which are held out.

    Args:
        columns: our names to the data's, where they differ: prompt, chosen, rejected, text, label, margin, weight,
            reference (completions of the reference policy, whose mean score becomes 0).
        held_out: share of the rows that is kept from training and measured, whole prompts at a time; 0: none. Not used
            with rows of their own to measure.
        max_tokens: longer texts lose their beginning; at most what the model can take.
        append_eos: end each text with the end-of-sequence token.
        bad_rows: stop at the first row that cannot be used, or drop such rows and say how many.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    held_out: float = 0.1
    max_tokens: int = 512
    append_eos: bool = False
    bad_rows: BadRows = "stop"


def read(data: object, name: str, say: Say) -> Table:
    """The table behind a file's name or a dataset in memory; ``name`` is data or eval_data."""
    if isinstance(data, (str, Path)):
        return read_table(str(data), "train" if name == "data" else "test", name, say)
    return table_from(data, "train", name)


def reference_of(table: Table, columns: Mapping[str, str]) -> list[tuple[Prompt, Completion]]:
    """The completions of the reference policy that stand in a column, with their rows' prompts."""
    column = column_of(table, "reference", columns)
    if column is None:
        return []
    prompt = column_of(table, "prompt", columns)
    prompts = table.columns[prompt] if prompt else [""] * len(table)
    found = [pair for pair in zip(prompts, table.columns[column], strict=True) if pair[1]]
    if not found:
        raise DataError(f"the column {column!r} of {table.name} has no completion; leave reference out of columns")
    return found


def texts_of(table: Table, columns: Mapping[str, str]) -> list[str]:
    """What a new tokenizer is trained on."""
    names = [column_of(table, name, columns) for name in ("prompt", "chosen", "rejected", "text")]
    return [text_of(value) for name in names if name for value in table.columns[name] if value]


def parts(
    reader: RowReader,
    table: Table,
    eval_data: object,
    labels: Sequence[str],
    share: float,
    seed: int,
    say: Say,
) -> tuple[list[Example], list[Example]]:
    """Training and held-out rows, no prompt on both sides."""
    rows = reader.read(table, labels, say)
    if eval_data is None:
        return split_by_group(rows, share, seed)
    others = reader.read(read(eval_data, "eval_data", say), labels, say)
    known = {row.group for row in rows if row.group}
    fresh = [row for row in others if row.group not in known]
    if not fresh:
        raise DataError(f"all {len(others)} rows of eval_data have prompts that are trained on; give other rows")
    if dropped := len(others) - len(fresh):
        say(f"{dropped} of {len(others)} rows of eval_data have prompts that are trained on and were left out.")
    return random.Random(seed).sample(rows, len(rows)), fresh


def split_by_group(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Part the examples into training and held-out ones, never a group on both sides.

    Groups go to the held-out side in an order that ``seed`` decides, until it has ``share`` of the rows or more.

    Raises:
        DataError: nothing would be left on a side.
    """
    groups: dict[str, list[Example]] = {}
    for number, example in enumerate(examples):
        groups.setdefault(example.group or f"\0{number}", []).append(example)
    held: list[Example] = []
    names = random.Random(seed).sample(list(groups), len(groups))
    while names and len(held) < round(share * len(examples)):
        held += groups[names.pop()]
    if not names or (share and not held):
        raise DataError(
            f"held_out={share:g} of {len(examples)} rows with {len(groups)} prompts leaves none to "
            f"{'measure' if names else 'train on'}; give more rows, another share, or a file of held-out rows"
        )
    return [example for name in names for example in groups[name]], held
