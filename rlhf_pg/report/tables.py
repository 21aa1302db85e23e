"""The tables of a frontier's page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real

from rlhf_pg.report.data import Fit, FrontierReport, Point
from rlhf_pg.report.page import Cell, Row, Table, interval, number, plus_minus

_Column = tuple[str, Callable[[Point], Cell]]


def points_table(data: FrontierReport) -> list[Table]:
    """Every evaluated checkpoint of every run, a column for each thing that any of them has."""
    columns = [(label, cell) for label, cell in _columns(data) if any(cell(point).text != "–" for point in data.points)]
    last = {point["run"]: index for index, point in enumerate(data.points)}
    rows = [
        Row([cell(point) for _, cell in columns], tip=index, last=last[point["run"]] == index)
        for index, point in enumerate(data.points)
    ]
    caption = "Runs, ± one standard error clustered by prompt text; intervals in brackets"
    return [Table("points", caption, [label for label, _ in columns], rows, texts=_words(data.points))]


def _words(points: Sequence[Point]) -> list[str]:
    """The columns of words: the run, and settings that are not numbers."""
    pairs = [pair for point in points for pair in point.get("settings", {}).items()]
    return ["run", *dict.fromkeys(key for key, value in pairs if not isinstance(value, Real))]


def _columns(data: FrontierReport) -> list[_Column]:
    settings = list(dict.fromkeys(key for point in data.points for key in point.get("settings", {})))

    def plain(name: str, digits: int) -> Callable[[Point], Cell]:
        def cell(point: Point) -> Cell:
            value: float | None = point.get(name)  # type: ignore[assignment]
            return Cell(number(value, digits), value)

        return cell

    def with_error(name: str) -> Callable[[Point], Cell]:
        def cell(point: Point) -> Cell:
            value: float | None = point.get(name)  # type: ignore[assignment]
            error: float | None = point.get(f"{name}_stderr")  # type: ignore[assignment]
            return Cell(plus_minus(value, error), value)

        return cell

    def setting(key: str) -> Callable[[Point], Cell]:
        def cell(point: Point) -> Cell:
            value = point.get("settings", {}).get(key)
            if value is None:
                return Cell("–")
            return Cell(str(value), float(value) if isinstance(value, Real) else str(value))

        return cell

    def efficiency(point: Point) -> Cell:
        value = point.get("efficiency")
        return Cell(interval(value, point.get("efficiency_low"), point.get("efficiency_high"), 2), value)

    return [
        ("run", lambda point: Cell(point["run"], point["run"])),
        *((key, setting(key)) for key in settings),
        ("seed", plain("seed", 0)),
        ("step", plain("step", 0)),
        ("KL, nats", with_error("kl")),
        ("KL by k1", plain("kl_k1", 3)),
        (data.reward_name, with_error("reward")),
        (data.gold_name, with_error("gold")),
        ("efficiency", efficiency),
        ("win rate", plain("win_rate", 3)),
        ("length", plain("length", 1)),
        ("repetition", plain("repetition", 3)),
        ("distinct", plain("distinct", 3)),
        ("disagreement", plain("disagreement", 3)),
    ]


def references_tables(data: FrontierReport) -> list[Table]:
    """The optimum's and best of n's points as they were computed."""
    tables = []
    if data.optimum:
        rows = [
            Row(
                [
                    Cell(f"{row['beta']:g}", row["beta"]),
                    Cell(number(row["kl"]), row["kl"]),
                    Cell(interval(row["reward"], row.get("low"), row.get("high")), row["reward"]),
                    Cell(number(row.get("ess"), 1), row.get("ess")),
                    Cell("yes" if row.get("drawn", True) else f"no: {row.get('reason') or 'no reason given'}"),
                ]
            )
            for row in data.optimum
        ]
        columns = ["β", "KL, nats", data.reward_name, "effective samples", "drawn"]
        tables.append(Table("optimum", "The optimum, by its KL coefficient β", columns, rows, texts=("drawn",)))
    if data.best_of_n:
        gold = any(row.get("gold") is not None for row in data.best_of_n)
        rows = [
            Row(
                [
                    Cell(str(row["n"]), row["n"]),
                    Cell(number(row["kl_bound"]), row["kl_bound"]),
                    Cell(plus_minus(row["reward"], row.get("reward_stderr")), row["reward"]),
                    *([Cell(plus_minus(row.get("gold"), row.get("gold_stderr")), row.get("gold"))] if gold else []),
                    Cell(number(row.get("win_rate")), row.get("win_rate")),
                ]
            )
            for row in data.best_of_n
        ]
        columns = ["n", "KL at most, nats", data.reward_name, *([data.gold_name] if gold else []), "win rate"]
        tables.append(Table("best", "Best of n completions of the reference", columns, rows))
    return tables


def fits_table(fits: Sequence[Fit]) -> list[Table]:
    """The fits' parameters and the KL at which each peaks, with intervals."""
    if not fits:
        return []
    rows = [
        Row(
            [
                Cell(fit["name"], fit["name"]),
                Cell(fit["formula"], fit["formula"]),
                Cell(
                    "; ".join(
                        f"{one['name']} = {interval(one['value'], one.get('low'), one.get('high'))}"
                        for one in fit["parameters"]
                    )
                ),
                Cell(interval(fit.get("peak_kl"), fit.get("peak_low"), fit.get("peak_high"), 2), fit.get("peak_kl")),
            ]
        )
        for fit in fits
    ]
    columns = ["fit", "formula, d = √KL", "parameters", "peaks at, nats"]
    return [Table("fits", "Fits of over-optimisation", columns, rows, texts=("fit", "formula, d = √KL", "parameters"))]
