"""The figure of a run: reward and KL over steps, and what the reward cost in KL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

TRAIN, HELD_OUT, INK, FAINT = "#6b93b8", "#c2410c", "#333333", "#e8e8e8"
REWARD, KL = "reward", "kl/sequence"
_NATS = [0.0, 0.1, 0.5, *(digit * 10.0**power for power in range(5) for digit in (1, 2, 3, 4, 5, 6, 8))]
Floats = NDArray[np.float64]


def training_figure(metrics: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw a run's reward and KL as a PNG of three panels, and a further one for each ensemble of rewards.

    Left and middle: reward and sequence KL over the steps, of each step's own samples and of the held-out prompts.
    Right: held-out reward against held-out KL in the order of the steps (each step's samples where nothing was held
    out), on an axis of the square root of the KL, in which the reward of a policy near its reference is about a
    straight line (Gao et al., arXiv 2210.10760, section 3). Bars are one standard error each way. Further to the right:
    how much the members of an ensemble disagree, against the KL. Where it grows, they no longer know.

    Args:
        metrics: lines of ``metrics.jsonl``; any name may be absent, and any value None.
        path: the PNG to write.
    """
    names = dict.fromkeys(name.removeprefix("eval/") for line in metrics for name in line)
    ensembles = [name for name in names if name.endswith("/disagreement/mean")]
    figure = Figure(figsize=(4.5 * (3 + len(ensembles)), 4.3), dpi=150, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.08)  # type: ignore[union-attr,call-arg]
    left, middle, right, *further = figure.subplots(1, 3 + len(ensembles))
    _over_steps(left, metrics, REWARD, "reward")
    _over_steps(middle, metrics, KL, "KL to the reference, nats a response")
    _against_kl(right, metrics, REWARD, "reward")
    for axes, name in zip(further, ensembles, strict=True):
        _against_kl(axes, metrics, name, f"disagreement in {name.split('/')[1]} (standard deviation)")
    figure.savefig(path, format="png")


def _over_steps(axes: Axes, metrics: Sequence[dict[str, Any]], name: str, label: str) -> None:
    """A metric of the training samples as a line, and the held-out one as points with bars."""
    dress(axes, "step", label)
    train, held = _columns(metrics, "step", name), _columns(metrics, "step", f"eval/{name}", f"eval/{name}_stderr")
    last = max((row[0][-1] for row in (train, held) if row[0].size), default=0.0)
    if train[0].size:
        axes.plot(
            *train[:2], color=TRAIN, linewidth=0.9, alpha=0.85, marker="o" if train[0].size == 1 else None, markersize=4
        )
    if held[0].size:
        _points(axes, held[0], held[1], y_error=held[2])
    if not train[0].size and not held[0].size:
        _absent(axes)
        return
    axes.set_xlim(-0.03 * max(last, 1), 1.04 * max(last, 1))
    axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10], integer=True))
    _key(axes, train="each step's samples" if train[0].size else "", held=_held_label(held[2]) if held[0].size else "")


def _against_kl(axes: Axes, metrics: Sequence[dict[str, Any]], name: str, label: str) -> None:
    """A metric against KL in the order of the steps, the first and the last evaluation labelled."""
    dress(axes, "KL to the reference, nats (square-root axis)", label)
    errors = (f"eval/{KL}_stderr", f"eval/{name}_stderr")
    kl, value, step, kl_error, value_error = _columns(metrics, f"eval/{KL}", f"eval/{name}", "step", *errors, needed=3)
    held = bool(kl.size)
    if held:
        _points(axes, kl, value, x_error=kl_error, y_error=value_error)
    else:
        kl, value, step = _columns(metrics, KL, name, "step", needed=3)
        axes.plot(kl, value, color=TRAIN, linewidth=0, marker="o", markersize=3.5, alpha=0.6, markeredgewidth=0)
    if not kl.size:
        _absent(axes)
        return
    root_axis(axes, kl)
    # KL mostly grows, so there is room below the first point and to the right of the last. The samples of one step are
    # too noisy to stand for it, and get no label.
    for index, offset in {0: (9, -13), kl.size - 1: (9, -3)}.items() if held else ():
        text = axes.annotate(
            f"step {step[index]:.0f}",
            (kl[index], value[index]),
            xytext=offset,
            textcoords="offset points",
            color=INK,
            fontsize=9,
        )
        text.set_path_effects([withStroke(linewidth=3, foreground="white")])
    axes.margins(y=0.14)
    _key(axes, train="" if held else "each step's samples", held=_held_label(value_error) if held else "")


def _columns(metrics: Sequence[dict[str, Any]], *names: str, needed: int = 2) -> list[Floats]:
    """Columns over the lines that have the first ``needed`` names; NaN where a further one is absent."""
    table = [[line.get(name) for name in names] for line in metrics]
    whole = [row for row in table if None not in row[:needed]]
    return list(np.array(whole, dtype=np.float64).reshape(len(whole), len(names)).T)


def _points(axes: Axes, x: Floats, y: Floats, *, y_error: Floats, x_error: Floats | None = None) -> None:
    axes.errorbar(
        x,
        y,
        xerr=x_error,
        yerr=y_error,
        color=HELD_OUT,
        marker="o",
        markersize=4.5,
        linewidth=1.0,
        elinewidth=1.0,
        capsize=0,
        zorder=3,
    )


def root_axis(axes: Axes, kl: Floats) -> None:
    """A square-root axis in nats; estimates a little below 0 stay on it."""
    axes.set_xscale("function", functions=(lambda x: np.sign(x) * np.sqrt(np.abs(x)), lambda x: np.sign(x) * x**2))
    low, high = (np.sign(x) * np.sqrt(abs(x)) for x in (min(kl.min(), 0.0), max(kl.max(), 0.1)))
    left, right = low - 0.04 * high, 1.2 * high
    axes.set_xlim(np.sign(left) * left**2, right**2)
    ticks = [0.0]
    for nats in _NATS:
        # Each tick's number needs about an eleventh of the axis.
        if np.sqrt(nats) < right and np.sqrt(nats) - np.sqrt(ticks[-1]) >= (right - left) / 11:
            ticks.append(nats)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def dress(axes: Axes, x_label: str, y_label: str) -> None:
    """Give a panel the look of all of ours, and its labels."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#999999")
    axes.tick_params(color="#999999", labelcolor=INK, labelsize=9)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)


def _held_label(errors: Floats) -> str:
    return "held-out prompts, ± standard error" if np.isfinite(errors).any() else "held-out prompts"


def _key(axes: Axes, *, train: str, held: str) -> None:
    """What the colours are, in those colours, above the panel."""
    shown = [(text, color) for text, color in ((train, TRAIN), (held, HELD_OUT)) if text]
    for line, (text, color) in enumerate(shown):
        axes.text(0.0, 1.02 + 0.06 * line, text, color=color, fontsize=9, transform=axes.transAxes)


def _absent(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, "not measured in this run", color="#888888", ha="center", transform=axes.transAxes)
