"""The figure of a reward: its distribution, what it makes of length, and its groups or pairs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from rlhf_pg.reward_check.completions import Completions
from rlhf_pg.tracking.figures import HELD_OUT, INK, TRAIN, dress

_CHOSEN, _REJECTED = HELD_OUT, TRAIN
_FEW_VALUES = 12  # distinct values up to which each gets a bar of its own
Floats = NDArray[np.float64]


def check_figure(found: Mapping[str, Any], totals: Tensor, completions: Completions, path: Path) -> None:
    """Draw a reward as a PNG of two or three panels.

    Left: the share of rows at each reward. Middle: reward against length, with the mean of each tenth of the lengths.
    Right: for groups, the range of rewards in each, in the order of their means (a dot is a group that ties); for pairs,
    the accuracy by which of the texts is longer, with its interval of 95%.

    Args:
        found: of :func:`rlhf_pg.reward_check.findings.findings`.
        totals: (B,) rewards; NaN where unscorable.
        completions: what was scored.
        path: the PNG to write.
    """
    rewards: Floats = totals.double().numpy()
    lengths: Floats = completions.rollout.lengths.double().numpy()
    third = completions.pairs or completions.rollout.group_size > 1
    figure = Figure(figsize=(13.5 if third else 9.2, 4.3), dpi=150, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.08)  # type: ignore[union-attr,call-arg]
    left, middle, *right = figure.subplots(1, 3 if third else 2)
    sides = {"all completions": (rewards, TRAIN)}
    if completions.pairs:
        sides = {"chosen": (rewards[::2], _CHOSEN), "rejected": (rewards[1::2], _REJECTED)}
    _distribution(left, sides)
    _against_length(middle, rewards, lengths, found["tokens"])
    if completions.pairs:
        _by_length(right[0], found["pairs"])
    elif third:
        _groups(right[0], rewards.reshape(-1, completions.rollout.group_size), found["groups"])
    figure.savefig(path, format="png")


def _distribution(axes: Axes, sides: Mapping[str, tuple[Floats, str]]) -> None:
    dress(axes, "reward", "share of rows")
    known = np.concatenate([values[~np.isnan(values)] for values, _ in sides.values()])
    distinct = np.unique(known)
    if not known.size:
        _nothing(axes)
        return
    for number, (values, color) in enumerate(sides.values()):
        mine = values[~np.isnan(values)]
        share = np.full(mine.size, 1 / max(mine.size, 1))
        if distinct.size <= _FEW_VALUES:
            gap = float(np.diff(distinct).min()) if distinct.size > 1 else 1.0
            width = 0.6 * gap / len(sides)
            heights = [float((mine == value).mean()) if mine.size else 0.0 for value in distinct]
            axes.bar(distinct + (number - (len(sides) - 1) / 2) * width, heights, width, color=color, alpha=0.8)
        else:
            edges = np.histogram_bin_edges(known, bins=30).tolist()
            axes.hist(mine, edges, weights=share, histtype="stepfilled", color=color, alpha=0.2)
            axes.hist(mine, edges, weights=share, histtype="step", color=color, linewidth=1.2)
    if distinct.size <= _FEW_VALUES:
        axes.set_xticks(distinct, [f"{value:.3g}" for value in distinct])
    if distinct.size == 1:
        axes.set_xlim(distinct[0] - 2, distinct[0] + 2)
    if len(sides) > 1:
        for line, (name, (_, color)) in enumerate(reversed(list(sides.items()))):
            axes.text(0.0, 1.02 + 0.06 * line, name, color=color, fontsize=9, transform=axes.transAxes)


def _against_length(axes: Axes, rewards: Floats, lengths: Floats, tokens: str) -> None:
    dress(axes, "length in tokens" if tokens.startswith("tokens") else "length in words", "reward")
    known = ~np.isnan(rewards)
    if not known.any():
        _nothing(axes)
        return
    x, y = lengths[known], rewards[known]
    axes.plot(x, y, color=TRAIN, linewidth=0, marker="o", markersize=3.5, alpha=0.4, markeredgewidth=0)
    edges = np.unique(np.quantile(x, np.linspace(0, 1, 11)))
    place = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, max(len(edges) - 2, 0))
    tenths = [place == number for number in np.unique(place)]
    axes.plot(
        [x[rows].mean() for rows in tenths],
        [y[rows].mean() for rows in tenths],
        color=HELD_OUT,
        marker="o",
        markersize=4,
        linewidth=1.0,
    )
    axes.text(0.0, 1.02, "mean of each tenth", color=HELD_OUT, fontsize=9, transform=axes.transAxes)


def _groups(axes: Axes, table: Floats, groups: Mapping[str, Any]) -> None:
    dress(axes, "groups, by their mean", "reward")
    kept = table[(~np.isnan(table)).sum(1) >= 2]
    if not len(kept):
        _nothing(axes)
        return
    low, mean, high = np.nanmin(kept, 1), np.nanmean(kept, 1), np.nanmax(kept, 1)
    order = np.argsort(mean, kind="stable")
    at = np.arange(len(order))
    tie = (high - low)[order] <= 1e-5 * (1 + np.abs(high[order]))
    axes.vlines(at[~tie], low[order][~tie], high[order][~tie], color=TRAIN, linewidth=1.2)
    axes.plot(at[tie], mean[order][tie], color=HELD_OUT, linewidth=0, marker="o", markersize=3)
    axes.plot(at[~tie], mean[order][~tie], color=INK, linewidth=0, marker="_", markersize=4)
    axes.set_xticks([])
    said = f"{int(tie.sum())} of {groups['counted']} groups tie"
    axes.text(0.0, 1.02, said, color=HELD_OUT, fontsize=9, transform=axes.transAxes)


def _by_length(axes: Axes, pairs: Mapping[str, Any]) -> None:
    dress(axes, "pairs (their number)", "accuracy")
    parts = {"all": pairs, **pairs["by_length"]}
    for place, part in enumerate(parts.values()):
        if part["pairs"]:
            axes.plot([place, place], [part["low"], part["high"]], color=HELD_OUT, linewidth=1.2)
            axes.plot([place], [part["accuracy"]], color=HELD_OUT, marker="o", markersize=5)
    axes.axhline(0.5, color="#999999", linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set_xticks(
        range(len(parts)), [f"{name.replace(' ', chr(10))}\n({part['pairs']})" for name, part in parts.items()]
    )
    axes.set(xlim=(-0.5, len(parts) - 0.5), ylim=(-0.03, 1.03))


def _nothing(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, "nothing could be scored", color="#888888", ha="center", transform=axes.transAxes)
