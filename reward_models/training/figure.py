"""The figure of a trained reward model: its scores, how far its confidence can be believed, and length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from reward_models.training.fitting import Example
from rlhf_pg.ops.statistics import wilson

COLOURS = ("#c2410c", "#6b93b8", "#4d7c0f", "#7c3aed", "#b45309", "#0f766e")
INK, FAINT = "#333333", "#e8e8e8"
Floats = NDArray[np.float64]


def report_figure(found: Mapping[str, Any], rows: Sequence[Example], scores: Tensor, path: Path) -> None:
    """Draw held-out scores as a PNG of three panels.

    Left: the scores' distributions, of chosen and rejected texts or of each class's rows; for a regression, the score
    against the label. Middle: how often the model was right at each confidence, a point a bin with its Wilson interval
    of 95% where the rows of a bin were independent; for a regression, its errors. Right: score against length.

    Args:
        found: of ``report``.
        rows: the held-out rows.
        scores: their (N, 2) or (N, labels) scores.
        path: the PNG to write.
    """
    figure = Figure(figsize=(13.5, 4.3), dpi=150, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.08)  # type: ignore[union-attr,call-arg]
    left, middle, right = figure.subplots(1, 3)
    table: Floats = scores.double().numpy()
    target = np.array([row.target for row in rows])
    what = "score"
    if found["objective"] == "bradley_terry":
        groups = {"chosen": table[:, 0], "rejected": table[:, 1]}
    elif found["objective"] == "classification":
        what = f"log-odds of {found['log_odds_of']!r}"
        odds = table[:, -1] - np.logaddexp.reduce(table[:, :-1], axis=1)
        groups = {name: odds[target == number] for number, name in enumerate(found["classes"])}
    else:
        _scatter(left, target, table[:, 0], "label", "score")
        _diagonal(left, target)
        _histograms(middle, {"score - label": table[:, 0] - target}, "error")
        _scatter(right, _tokens(rows, 0), table[:, 0], "tokens", "score")
        figure.savefig(path, format="png")
        return
    _histograms(left, groups, what)
    _reliability(middle, found["calibration"])
    _dress(right, "tokens", what)
    for side, (name, values) in enumerate(groups.items()):
        mine = rows if found["objective"] == "bradley_terry" else [row for row in rows if row.target == side]
        lengths = _tokens(mine, side if found["objective"] == "bradley_terry" else 0)
        right.plot(lengths, values, **_dots(side), label=name)
    _key(right, list(groups))
    figure.savefig(path, format="png")


def _histograms(axes: Axes, groups: Mapping[str, Floats], label: str) -> None:
    _dress(axes, label, "share of rows")
    everything = np.concatenate(list(groups.values()))
    edges = np.histogram_bin_edges(everything, bins=24).tolist()
    for number, values in enumerate(groups.values()):
        weights = np.full(len(values), 1 / max(len(values), 1))
        colour = COLOURS[number % len(COLOURS)]
        axes.hist(values, edges, weights=weights, histtype="stepfilled", color=colour, alpha=0.18)
        axes.hist(values, edges, weights=weights, histtype="step", color=colour, linewidth=1.2)
    _key(axes, list(groups))


def _reliability(axes: Axes, found: Mapping[str, Any]) -> None:
    """A point a bin; the diagonal is a model whose confidence can be believed."""
    _dress(axes, "confidence of the model", "share that was right")
    axes.plot([found["low"], 1], [found["low"], 1], color="#999999", linewidth=0.9, linestyle=(0, (4, 3)))
    for count, said, right in zip(found["counts"], found["confidence"], found["right"], strict=True):
        if count:
            low, high = wilson(right, count)
            axes.plot([said, said], [low, high], color=COLOURS[0], linewidth=1.0)
            axes.plot([said], [right], color=COLOURS[0], marker="o", markersize=4.5)
    axes.set(xlim=(found["low"] - 0.02, 1.02), ylim=(-0.03, 1.03))
    said = f"expected calibration error {found['error']:.3f}, {found['bins']} bins"
    axes.text(0.0, 1.02, said, color=COLOURS[0], fontsize=9, transform=axes.transAxes)


def _scatter(axes: Axes, x: Floats, y: Floats, x_label: str, y_label: str) -> None:
    _dress(axes, x_label, y_label)
    axes.plot(x, y, **_dots(0))


def _diagonal(axes: Axes, values: Floats) -> None:
    ends = [float(values.min()), float(values.max())]
    axes.plot(ends, ends, color="#999999", linewidth=0.9, linestyle=(0, (4, 3)))


def _tokens(rows: Sequence[Example], side: int) -> Floats:
    return np.array([float(len(row.texts[side])) for row in rows])


def _dots(number: int) -> dict[str, Any]:
    colour = COLOURS[number % len(COLOURS)]
    return {
        "color": colour,
        "linewidth": 0,
        "marker": "o",
        "markersize": 3.5,
        "alpha": 0.5,
        "markeredgewidth": 0,
    }


def _dress(axes: Axes, x_label: str, y_label: str) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#999999")
    axes.tick_params(color="#999999", labelcolor=INK, labelsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)


def _key(axes: Axes, names: Sequence[str]) -> None:
    """What the colours are, in those colours, above the panel."""
    at = 0.0
    for number, name in enumerate(names[: len(COLOURS)]):
        axes.text(at, 1.02, name, color=COLOURS[number], fontsize=9, transform=axes.transAxes, parse_math=False)
        at += 0.04 + 0.022 * len(name)
