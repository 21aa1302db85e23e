"""Figures of over-optimisation: proxy and gold against KL with their fits, and the audit of what else changed."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_pg.report.data import Fit, FrontierReport
from rlhf_pg.report.page import Dot, Figure, Line, Mark, Shape, View, bars
from rlhf_pg.report.series import KL_LABEL, best_of_n_dots, measured, run_lines

_AUDITED = (
    ("length", "length, tokens"),
    ("repetition", "repetition"),
    ("distinct", "distinct n-grams"),
    ("disagreement", "disagreement of the ensemble"),
)


def gold_figure(data: FrontierReport) -> Figure:
    """Proxy and gold against KL with the fitted curves, and where gold peaks."""
    lines = [
        _cloud(data, "reward", data.reward_name, "c0", "circle"),
        _cloud(data, "gold", data.gold_name, "c4", "diamond"),
    ]
    shapes: tuple[tuple[str, str, Shape], ...] = (
        ("reward", data.reward_name, "circle"),
        ("gold", data.gold_name, "diamond"),
    )
    best = {
        measure: [Line(f"best of n, {name}", dots, "muted", style="dashed", mark=shape)]
        for measure, name, shape in shapes
        if (dots := best_of_n_dots(data.best_of_n, measure))
    }
    curves = {
        measure: [_curve(fit) for fit in data.fits if fit.get("measure", "gold") == measure]
        for measure in ("reward", "gold")
    }
    peaks = _peaks(data.fits)
    proxy, gold = (
        [*best.get(measure, []), line, *curves[measure]]
        for measure, line in zip(("reward", "gold"), lines, strict=True)
    )
    views = [View("proxy and gold", [*proxy, *gold], peaks), View(f"{data.gold_name} alone", gold, peaks)]
    caption = "Each point is a run's checkpoint, each line a fit. The band marks the KL at which the fitted gold reward peaks."
    if not peaks:
        caption = "Each point is a run's checkpoint. No fit places a peak within what was measured."
    return Figure("gold", "Proxy and gold against KL", KL_LABEL, views, caption, roots=True)


def audit_figures(data: FrontierReport) -> list[Figure]:
    """What changed with KL besides the reward: a small figure for each thing measured."""
    found = [(name, label, run_lines(data.points, name)) for name, label in _AUDITED]
    return [
        Figure(f"audit-{name}", label[0].upper() + label[1:], KL_LABEL, [View(label, lines)], roots=True, small=True)
        for name, label, lines in found
        if lines
    ]


def _cloud(data: FrontierReport, measure: str, name: str, colour: str, mark: Shape) -> Line:
    dots = []
    for index, point in enumerate(data.points):
        value = measured(point, measure)
        if value is not None:
            ends = bars(value, measured(point, f"{measure}_stderr"))
            dots.append(Dot(point["kl"], value, *ends, tip=index))
    return Line(name, dots, colour, style="dots", mark=mark)


def _curve(fit: Fit) -> Line:
    colour = "c4" if fit.get("measure", "gold") == "gold" else "c0"
    dots = [Dot(one["kl"], one["value"], label=fit["name"] if one is fit["curve"][-1] else "") for one in fit["curve"]]
    return Line(fit["name"], dots, colour)


def _peaks(fits: Sequence[Fit]) -> list[Mark]:
    return [
        Mark(peak, f"{fit['name']} peaks at {peak:.2g}", fit.get("peak_low"), fit.get("peak_high"))
        for fit in fits
        if fit.get("measure", "gold") == "gold" and (peak := fit.get("peak_kl")) is not None
    ]
