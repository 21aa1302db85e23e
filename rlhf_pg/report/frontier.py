"""The page of a frontier: reward against KL, what to compare with, where the proxy breaks, which run to take."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_pg.report.data import FrontierReport, Point
from rlhf_pg.report.page import (
    Dot,
    Figure,
    Line,
    Page,
    Section,
    Tip,
    View,
    interval,
    number,
    plus_minus,
    setting,
)
from rlhf_pg.report.series import COLOURS, KL_LABEL, best_of_n_dots, groups, measured, run_lines
from rlhf_pg.report.tables import fits_table, points_table, references_tables
from rlhf_pg.report.tuning import audit_figures, gold_figure

_NO_GOLD = (
    "No gold reward was given, so what the reward is worth beyond itself was not measured. What follows is an audit of "
    "what else changed with KL."
)


def frontier_page(data: FrontierReport) -> Page:
    """Lay a frontier out as a page."""
    return Page(
        title=data.title,
        headline=data.headline,
        about=list(data.about.items()),
        sections=[_frontier(data), _tuning(data), _choosing(data), _runs(data), _comparisons(data)],
        tips=[_tip(point, data) for point in data.points],
        samples=data.samples,
        samples_note=""
        if data.samples
        else data.absent.get("samples", "No samples were kept with these results, so none can be shown."),
    )


def _frontier(data: FrontierReport) -> Section:
    absent = [
        data.absent.get(part, words)
        for part, words in (
            ("points", "There are no runs yet: the figure shows only what they will be compared with."),
            ("optimum", "The optimum is absent: it needs many scored samples of the reference for each prompt."),
            ("best_of_n", "Best of n is absent: it needs several scored samples of the reference for each prompt."),
        )
        if not getattr(data, part)
    ]
    notes = [
        f"Not drawn: the optimum at β = {row['beta']:g} ({number(row['kl'], 2)} nats): {row.get('reason') or 'no reason given'}."
        for row in data.optimum
        if not row.get("drawn", True)
    ]
    views = [view for view in _views(data) if view.lines]
    figure = Figure("frontier", "Reward against KL", KL_LABEL, views, _caption(data), roots=True)
    return Section("frontier", "Reward against KL", absent=absent, figures=[figure] if views else [], notes=notes)


def _views(data: FrontierReport) -> Iterator[View]:
    for measure, label in (
        ("reward", data.reward_name),
        ("gold", data.gold_name),
        ("win_rate", "win rate against the reference"),
        ("efficiency", "efficiency"),
    ):
        runs = run_lines(data.points, measure)
        best = best_of_n_dots(data.best_of_n, measure)
        others: list[Line] = []
        optimum: list[Line] = []
        if measure == "reward":
            drawn = sorted((row for row in data.optimum if row.get("drawn", True)), key=lambda row: row["kl"])
            band = [Dot(row["kl"], low=row.get("low"), high=row.get("high")) for row in drawn]
            ceiling = [Dot(row["kl"], row["reward"], label="optimum" if row is drawn[-1] else "") for row in drawn]
            if any(dot.low is not None for dot in band):
                optimum.append(Line("optimum, interval", band, "ink", group="optimum", style="area"))
            if ceiling:
                optimum.append(Line("optimum", ceiling, "ink", group="optimum"))
            others = [
                Line(
                    other["name"],
                    [Dot(one["kl"], one["reward"], label=one.get("label", "")) for one in other["points"]],
                    COLOURS[(groups(data.points) + index) % len(COLOURS)],
                    style="dots",
                    mark="ring" if index % 2 == 0 else "cross",
                )
                for index, other in enumerate(data.others)
            ]
        reference = [Line("best of n, KL at most", best, "muted", style="dashed", mark="diamond")] if best else []
        if runs or (measure == "reward" and (optimum or reference or others)):
            yield View(label, [*optimum, *reference, *others, *runs])


def _tip(point: Point, data: FrontierReport) -> Tip:
    step = point.get("step")
    rows = [(key, setting(value)) for key, value in point.get("settings", {}).items()]
    found = (
        ("seed", str(point["seed"]) if point.get("seed") is not None else None),
        ("KL, nats", plus_minus(point["kl"], point.get("kl_stderr"))),
        (data.reward_name, plus_minus(point["reward"], point.get("reward_stderr"))),
        (
            data.gold_name,
            plus_minus(point.get("gold"), point.get("gold_stderr")) if point.get("gold") is not None else None,
        ),
        ("efficiency", _efficiency(point)),
        (
            "KL by k1, nats",
            plus_minus(k1, point.get("kl_k1_stderr")) if (k1 := point.get("kl_k1")) is not None else None,
        ),
        ("KL a token, nats", _some(point, "kl_token", 4)),
        ("win rate", _some(point, "win_rate")),
        ("length, tokens", _some(point, "length", 1)),
    )
    rows += [(name, text) for name, text in found if text is not None]
    title = point["run"] if step is None else f"{point['run']}, step {step}"
    config = [(key, setting(value)) for key, value in point.get("config", {}).items()]
    return Tip(title, rows, point["run"], step, point.get("command", ""), config)


def _some(point: Point, name: str, digits: int = 3) -> str | None:
    value = measured(point, name)
    return None if value is None else number(value, digits)


def _efficiency(point: Point) -> str | None:
    value = point.get("efficiency")
    if value is None:
        return point.get("efficiency_reason") or None
    return interval(value, point.get("efficiency_low"), point.get("efficiency_high"), 2)


def _caption(data: FrontierReport) -> str:
    parts = []
    if data.points:
        parts.append(
            "A line is a run through its evaluated checkpoints, in the order of their steps; its last is large, with bars "
            "of one standard error clustered by prompt text."
        )
    if data.optimum:
        parts.append("The optimum is the most reward that any policy has at that KL, its band the interval.")
    if data.best_of_n:
        parts.append(
            "Best of n is drawn at log n − (n−1)/n, which its KL does not exceed: it lies there or further left."
        )
    return " ".join(parts)


def _tuning(data: FrontierReport) -> Section:
    gold = any(point.get("gold") is not None for point in data.points)
    audit = audit_figures(data)
    text = [words for words in (data.verdict, f"Audit. {data.audit}" if data.audit else "") if words]
    absent = []
    if not gold:
        # What is missing is said before what can be said without it.
        text.insert(0, data.absent.get("gold", _NO_GOLD))
    if gold and not data.fits:
        absent.append(data.absent.get("fits", "No fit was made: the runs have too few points, or none was asked for."))
    if not audit:
        absent.append(data.absent.get("audit", "Length, repetition and diversity were not measured."))
    figures = [*([gold_figure(data)] if gold else []), *audit]
    return Section("tuning", "Over-optimisation", text, absent, figures=figures, tables=fits_table(data.fits))


def _choosing(data: FrontierReport) -> Section:
    pairs: list[tuple[str, str]] = []
    absent = []
    if data.pareto:
        pairs.append(("Pareto set: no other run has more reward for less KL", ", ".join(data.pareto)))
    else:
        absent.append(data.absent.get("pareto", "The Pareto set was not computed: it needs two runs or more."))
    if data.hypervolume is not None:
        pairs.append(("Hypervolume, reward · nats", number(data.hypervolume)))
    closest, code = data.closest, ""
    if closest is not None:
        step = "" if closest.get("step") is None else f", step {closest['step']}"
        reward = "" if closest.get("reward") is None else f", {data.reward_name} {number(closest['reward'])}"
        found = f"{closest['run']}{step}: {number(closest['kl'])} nats{reward}"
        pairs.append((f"Closest to {closest['target_kl']:g} nats", found))
        code = closest.get("command", "")
    else:
        absent.append(data.absent.get("closest", "No target KL was asked for, so no run is singled out for one."))
    return Section("choosing", "Which run to take", absent=absent, pairs=pairs, code=code)


def _runs(data: FrontierReport) -> Section:
    absent = [] if data.points else [data.absent.get("points", "There are no runs.")]
    text = ["A run's name shows it in full, with the command that reproduces it."] if data.points else []
    return Section("runs", "Runs", text, absent, tables=points_table(data) if data.points else [])


def _comparisons(data: FrontierReport) -> Section:
    tables = references_tables(data)
    absent = [] if tables else ["There is nothing to compare with: neither best of n nor the optimum was computed."]
    return Section("comparisons", "What the runs are compared with", absent=absent, tables=tables)
