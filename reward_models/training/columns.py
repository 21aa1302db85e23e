"""Which columns of a table hold what a reward model is trained on, and what that is."""

from __future__ import annotations

from collections.abc import Mapping

from reward_models.training.objectives import Objective
from rlhf_pg.errors import ConfigError, DataError
from rlhf_pg.sources import Table

USUAL: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt",),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "text": ("text", "completion", "messages"),
    "label": ("label",),
    "margin": ("margin",),
    "weight": ("weight",),
    "reference": (),
}


def objective_of(table: Table, asked: Objective | None, columns: Mapping[str, str]) -> Objective:
    """The objective asked for, or Bradley-Terry for data with chosen and rejected texts.

    Raises:
        ConfigError: none is asked for and the data are no pairs; ``columns`` has a name that is not ours.
    """
    if unknown := sorted(columns.keys() - USUAL.keys()):
        raise ConfigError(f"columns: {unknown[0]!r} is no name of a column here; there are {', '.join(USUAL)}")
    if asked is not None:
        return asked
    if all(columns.get(side, side) in table.columns for side in ("chosen", "rejected")):
        return "bradley_terry"
    raise ConfigError(
        f"{table.name} has no columns chosen and rejected, so say what its labels are: objective=regression for numbers, "
        f"objective=classification for classes; its columns: {', '.join(table.columns)}"
    )


def column_of(table: Table, name: str, columns: Mapping[str, str]) -> str | None:
    """The table's column for one of our names: the one that ``columns`` says, or the usual one if it is there.

    Raises:
        DataError: ``columns`` says one that is not there.
    """
    column = columns.get(name)
    if column is None:
        return next((usual for usual in USUAL[name] if usual in table.columns), None)
    if column not in table.columns:
        raise DataError(f"{name}={column} is no column of {table.name}; its columns: {', '.join(table.columns)}")
    return column


def label_names(table: Table, columns: Mapping[str, str]) -> tuple[str, ...]:
    """The classes of a table, in the order of numbers or of the alphabet; rows without a usable label add none."""
    column = column_of(table, "label", columns)
    names = {}
    for index, label in enumerate(table.columns[column] if column else ()):
        try:
            names[label_name(label, table.row(index))] = label
        except DataError:
            continue  # told with the row, where rows are read
    if len(names) < 2:
        raise DataError(f"{table.name} has the labels {sorted(names)}; a classification needs two or more")
    return tuple(sorted(names, key=lambda name: (isinstance(names[name], str), names[name])))


def label_name(label: object, where: str) -> str:
    """A class's name: text as it is, whole numbers and booleans as written."""
    if isinstance(label, (str, int)) and str(label).strip():
        return str(label)
    raise DataError(f"{where} has the label {label!r}; a class is a text or a whole number")
