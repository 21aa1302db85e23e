"""The parts of a page: what Python says once, and the page's script draws."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from numbers import Integral, Real
from typing import Any, Literal

from rlhf_pg.report.data import SampleSet
from rlhf_pg.tracking.samples import safe_text

Pairs = Sequence[tuple[str, str]]
Shape = Literal["", "circle", "square", "triangle", "diamond", "ring", "cross"]


@dataclass(frozen=True, slots=True)
class Dot:
    """A place on a figure; an area has ``low`` and ``high`` alone."""

    x: float
    y: float | None = None
    low: float | None = None
    high: float | None = None
    x_low: float | None = None
    x_high: float | None = None
    label: str = ""  # written beside it, where there is room
    tip: int | None = None  # which of the page's tips it shows; none: its own numbers
    small: bool = False  # its bars are left out


@dataclass(frozen=True, slots=True)
class Line:
    """A series. Lines of one group share a colour, a mark and a switch."""

    name: str
    dots: Sequence[Dot]
    colour: str  # a class of the style sheet: "c0" ... "c5", "ink", "muted"
    group: str = ""  # the name of its switch; none: its own
    style: Literal["line", "dashed", "dots", "area"] = "line"
    mark: Shape = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place on the x axis, with its interval."""

    x: float
    label: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class View:
    """One choice of what a figure's y axis shows."""

    label: str
    lines: Sequence[Line]
    marks: Sequence[Mark] = ()
    zero: bool = False  # the y axis begins at 0


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure; ``roots`` offers the square root of x as an axis and begins with it."""

    id: str
    title: str
    x_label: str
    views: Sequence[View]
    caption: str = ""
    roots: bool = False
    small: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table: its text, and what it is sorted by."""

    text: str
    value: float | str | None = None

    @property
    def key(self) -> float | str | None:
        """What it is sorted by, none if that is no number."""
        return None if isinstance(self.value, float) and not math.isfinite(self.value) else self.value


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table. Rows that are not ``last`` of their run are hidden until asked for."""

    cells: Sequence[Cell]
    tip: int | None = None
    last: bool = True


@dataclass(frozen=True, slots=True)
class Table:
    """A table that sorts; the columns named in ``texts`` are words, all others numbers."""

    id: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Row]
    texts: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Tip:
    """What a point is, in full: shown in short on hover, whole when picked."""

    title: str
    rows: Pairs
    run: str = ""
    step: int | None = None
    command: str = ""
    config: Pairs = ()


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page, in the order text, code, figures, tables, notes."""

    id: str
    title: str
    text: Sequence[str] = ()
    absent: Sequence[str] = ()
    code: str = ""
    pairs: Pairs = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """A whole page."""

    title: str
    headline: str
    about: Pairs
    sections: Sequence[Section]
    tips: Sequence[Tip] = ()
    samples: Sequence[SampleSet] = ()
    samples_note: str = ""  # which samples these are, or why there are none
    config: Pairs = ()


def setting(value: Any) -> str:
    """A configuration's value as YAML's flow style has it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def visible(text: str) -> str:
    """Text in which only line breaks act: each control, bidirectional or invisible character is an escape."""
    return "\n".join(safe_text(line) for line in text.split("\n"))


def plain(value: Any) -> Any:
    """A value as JSON takes it: records as objects without their empty fields, 7 digits, no NaN, text made visible.

    A dictionary becomes a list of pairs, in which a name such as ``__proto__`` is only a name.
    """
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, (bool, Integral)):
        return value if isinstance(value, bool) else int(value)
    if isinstance(value, Real):
        return float(f"{float(value):.7g}") if math.isfinite(value) else None
    if is_dataclass(value):
        found = {one.name: getattr(value, one.name) for one in fields(value)}
        return {
            name: plain(item)
            for name, item in found.items()
            if not (item is None or item is False or (isinstance(item, str | tuple) and not item))
        }
    if isinstance(value, dict):
        return [[visible(str(name)), plain(item)] for name, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def number(value: float | None, digits: int = 3) -> str:
    """A number with this many decimals, a dash for none, few digits for the large and the tiny."""
    if value is None or not math.isfinite(value):
        return "–"
    if value and (abs(value) >= 10**5 or abs(value) < 10**-digits):
        return f"{value:.2g}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.{digits}f}"


def plus_minus(value: float | None, error: float | None, digits: int = 3) -> str:
    """A number and its standard error."""
    if value is None or error is None or not math.isfinite(error):
        return number(value, digits)
    return f"{number(value, digits)} ± {number(error, digits) if error else '0'}"


def interval(value: float | None, low: float | None, high: float | None, digits: int = 3) -> str:
    """A number and its interval."""
    if value is None or low is None or high is None:
        return number(value, digits)
    return f"{number(value, digits)} [{number(low, digits)}, {number(high, digits)}]"


def bars(value: float, error: float | None) -> tuple[float | None, float | None]:
    """The ends of a bar of one standard error each way."""
    return (None, None) if error is None or not math.isfinite(error) else (value - error, value + error)
