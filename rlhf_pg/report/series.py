"""Runs and best of n as series of a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from rlhf_pg.report.data import BestOfN, Point
from rlhf_pg.report.page import Dot, Line, Shape, bars

KL_LABEL = "sequence KL to the reference, nats"
COLOURS = ("c0", "c1", "c2", "c3", "c4", "c5")
MARKS: tuple[Shape, ...] = ("circle", "square", "triangle", "diamond")


def run_lines(points: Sequence[Point], measure: str) -> list[Line]:
    """A line a run through its checkpoints, the last one large, named where it is the first run of its settings.

    Runs whose settings in words (a recipe's name) agree share a colour and a switch; settings in numbers are written
    beside the last checkpoint.
    """
    rows = [(index, point) for index, point in enumerate(points) if measured(point, measure) is not None]
    order = list(dict.fromkeys(group_of(point) for point in points))
    runs = {point["run"]: [pair for pair in rows if pair[1]["run"] == point["run"]] for _, point in rows}
    lines, named = [], set()
    for name, run in runs.items():
        group, label = group_of(run[-1][1]), _short(run[-1][1])
        # One label for the seeds of a setting: they lie side by side.
        shown = "" if (group, label) in named else label
        named.add((group, label))
        dots = [
            _dot(point, measure, index, shown if index == run[-1][0] else "", index != run[-1][0])
            for index, point in run
        ]
        place = order.index(group)
        lines.append(Line(name, dots, COLOURS[place % len(COLOURS)], group=group, mark=MARKS[place % len(MARKS)]))
    return lines


def _dot(point: Point, measure: str, tip: int, label: str, small: bool) -> Dot:
    value = measured(point, measure)
    assert value is not None
    if measure == "efficiency":
        low, high = point.get("efficiency_low"), point.get("efficiency_high")
    else:
        low, high = bars(value, measured(point, f"{measure}_stderr"))
    return Dot(point["kl"], value, low, high, *bars(point["kl"], point.get("kl_stderr")), label, tip, small)


def measured(row: Mapping[str, Any], name: str) -> float | None:
    """A number of a row, None where it is absent or not finite."""
    value: float | None = row.get(name)
    return None if value is None or not math.isfinite(value) else value


def best_of_n_dots(rows: Sequence[BestOfN], measure: str) -> list[Dot]:
    """Best of n at the bound of its KL."""
    found = [(row, measured(row, measure), measured(row, f"{measure}_stderr")) for row in rows]
    return [
        Dot(row["kl_bound"], value, *bars(value, error), label=f"n={row['n']}")
        for row, value, error in found
        if value is not None
    ]


def group_of(point: Point) -> str:
    """The settings in words."""
    words = [str(value) for value in point.get("settings", {}).values() if not isinstance(value, Real)]
    return ", ".join(words) or "runs"


def groups(points: Sequence[Point]) -> int:
    """How many colours the runs take."""
    return len({group_of(point) for point in points})


def _short(point: Point) -> str:
    """The settings in numbers, by the last part of their names; the run's name where nothing was varied."""
    settings = point.get("settings", {})
    numbers = [f"{key.rpartition('.')[2]} {value:g}" for key, value in settings.items() if isinstance(value, Real)]
    return ", ".join(numbers) if settings else point["run"]
