"""The frontier as a figure: reward against KL, beside best of n and the best that is possible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_pg.report.data import FrontierReport
from rlhf_pg.tracking.figures import INK, dress, root_axis

_OPTIMUM, _BEST, _OTHERS = "#333333", "#8a8a8a", ("#7c6f9f", "#a07855", "#5f8f6b")


def frontier_figure(report: FrontierReport, out: Path) -> list[Path]:
    """Draw ``frontier.png`` and ``frontier.svg``: a panel of the reward and, where it is known, one of the gold reward.

    KL is on an axis of its square root. The optimum is a line with its interval, best of n is drawn at the KL that it has at
    most, runs are lines over their evaluations with bars of one standard error.
    """
    measures = ["reward", *(["gold"] if any(point.get("gold") is not None for point in report.points) else [])]
    figure = Figure(figsize=(7.2 * len(measures), 5.2), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    for axes, measure in zip(panels, measures, strict=True):
        _panel(axes, report, measure)
    paths = [out / "frontier.png", out / "frontier.svg"]
    for path in paths:
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths


def _panel(axes: Axes, report: FrontierReport, measure: str) -> None:
    name = report.reward_name if measure == "reward" else report.gold_name
    dress(axes, "sequence KL to the reference, nats (square-root axis)", name)
    points: Sequence[Mapping[str, Any]] = report.points
    shown = [point for point in points if point.get(measure) is not None]
    if measure == "reward":
        drawn: Sequence[Mapping[str, Any]] = [point for point in report.optimum if point.get("drawn")]
        kl = [point["kl"] for point in drawn]
        if drawn:
            axes.plot(kl, [point["reward"] for point in drawn], color=_OPTIMUM, linewidth=1.6, label="best possible")
        low, high = (
            [point["reward"] if point.get(end) is None else point[end] for point in drawn] for end in ("low", "high")
        )
        axes.fill_between(kl, low, high, color=_OPTIMUM, alpha=0.12, linewidth=0)
        for other, color in zip(report.others, _OTHERS * len(report.others), strict=False):
            rows = other["points"]
            axes.plot(
                [row["kl"] for row in rows],
                [row["reward"] for row in rows],
                color=color,
                linewidth=0,
                marker="s",
                markersize=5,
                label=other["name"],
            )
    best: Sequence[Mapping[str, Any]] = [row for row in report.best_of_n if row.get(measure) is not None]
    if best:
        axes.plot(
            [row["kl_bound"] for row in best],
            [row[measure] for row in best],
            color=_BEST,
            linewidth=1.0,
            linestyle="--",
            marker=".",
            label="best of n, at its KL bound",
        )
    _runs(axes, shown, measure)
    for fit in report.fits if measure == "gold" else ():
        axes.plot(
            [point["kl"] for point in fit["curve"]],
            [point["value"] for point in fit["curve"]],
            color=INK,
            linewidth=0.8,
            linestyle=":",
        )
    kls = [point["kl"] for point in shown] or [row["kl_bound"] for row in best]
    if measure == "reward":
        kls += [row["kl"] for other in report.others for row in other["points"]]
    if kls:
        root_axis(axes, np.array(kls))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, loc="lower right")


def _runs(axes: Axes, points: Sequence[Mapping[str, Any]], measure: str) -> None:
    """Each run as a line, in the colour of what was varied; its seeds share it."""
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for point in points:
        runs.setdefault(point["run"], []).append(point)
    kinds = list(dict.fromkeys(_kind(rows[0]) for rows in runs.values()))
    colors = dict(zip(kinds, colormaps["viridis"](np.linspace(0.05, 0.85, len(kinds))), strict=True))
    for rows in runs.values():
        kind = _kind(rows[0])
        axes.errorbar(
            [row["kl"] for row in rows],
            [row[measure] for row in rows],
            yerr=[row.get(f"{measure}_stderr") or 0.0 for row in rows],
            color=colors[kind],
            linewidth=1.0,
            elinewidth=0.8,
            marker="o",
            markersize=3,
            label=kind if rows is next(r for r in runs.values() if _kind(r[0]) == kind) else None,
        )


def _kind(point: Mapping[str, Any]) -> str:
    """A run's varied settings in a few words."""
    settings: Mapping[str, Any] = point.get("settings") or {}
    return ", ".join(str(value) if name == "recipe" else f"{name}={value}" for name, value in settings.items()) or str(
        point["run"]
    )
