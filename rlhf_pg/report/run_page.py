"""The page of one run: its curves over the steps, what they cost in KL and time, and its samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_pg.report.data import RunReport
from rlhf_pg.report.page import Dot, Figure, Line, Page, Section, View, bars, setting
from rlhf_pg.report.series import measured

POINTS_DRAWN = 800
TRAIN, HELD_OUT = "c0", "c1"
_COLOURS = ("c0", "c2", "c4", "c3", "c1", "c5", "muted")
# The figure's id, its title, the metric of each step's samples, the held-out one, and why it may be absent.
_CURVES = (
    ("reward", "Reward", "reward", "eval/reward", ""),
    ("kl", "Sequence KL to the reference, nats", "kl/sequence", "eval/kl/sequence", "no KL was taken: kl.coef is 0"),
    ("entropy", "Entropy, nats a token", "entropy", "eval/entropy", ""),
    ("length", "Length, tokens", "completions/mean_length", "eval/completions/mean_length", ""),
    ("clip", "Clip fraction: tokens outside the clipping range", "clip_ratio", "", "this run's loss does not clip"),
    ("gradient", "Gradient norm before clipping", "grad_norm", "", ""),
)
_PHASES = "time/"


def run_page(data: RunReport) -> Page:
    """Lay a run out as a page."""
    curves, absent = [], []
    for id_, title, train, held, reason in _CURVES:
        figure = _curve(data.metrics, id_, title, train, held)
        if figure is None:
            absent.append(f"{title}: {reason or 'not measured in this run'}.")
        else:
            curves.append(figure)
    time = _time(data.metrics)
    if time is None:
        absent.append("Time by phase: not measured in this run.")
    block = _block(len(data.metrics))
    text = [f"Curves of each step's samples are means of {block} steps."] if block > 1 else []
    figures = [*_tradeoff(data.metrics), *curves, *([time] if time else [])]
    alerts = [Section("alerts", "What the run was warned of", notes=data.alerts)] if data.alerts else []
    return Page(
        title=data.title,
        headline=data.headline,
        about=list(data.about.items()),
        sections=[
            *alerts,
            Section("curves", "Curves", text, absent, figures=figures),
        ],
        samples=data.samples,
        config=[(key, setting(value)) for key, value in data.config.items()],
        samples_note=data.samples_note or ("" if data.samples else "This run kept no samples."),
    )


def _block(count: int) -> int:
    return -(-count // POINTS_DRAWN)


def _series(metrics: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    """Steps and values of a metric; of a long run, the means of blocks of steps."""
    pairs = [(float(line["step"]), value) for line in metrics if (value := measured(line, name)) is not None]
    size = _block(len(pairs))
    blocks = [pairs[at : at + size] for at in range(0, len(pairs), size)] if pairs else []
    return [(sum(x for x, _ in block) / len(block), sum(y for _, y in block) / len(block)) for block in blocks]


def _held_dots(metrics: Sequence[Mapping[str, Any]], x: str, y: str) -> list[Dot]:
    """Held-out values with bars of one standard error, named by their steps where x is not the step."""
    dots = []
    for line in metrics:
        if measured(line, x) is not None and measured(line, y) is not None:
            ends = (*bars(line[y], line.get(f"{y}_stderr")), *bars(line[x], line.get(f"{x}_stderr")))
            dots.append(Dot(line[x], line[y], *ends, label="" if x == "step" else f"step {line['step']}"))
    return dots


def _curve(metrics: Sequence[Mapping[str, Any]], id_: str, title: str, train: str, held: str) -> Figure | None:
    lines = []
    pairs = _series(metrics, train)
    if pairs:
        lines.append(Line("each step's samples", [Dot(x, y) for x, y in pairs], TRAIN))
    if held and (dots := _held_dots(metrics, "step", held)):
        lines.append(Line("held-out prompts", dots, HELD_OUT, mark="circle"))
    return Figure(id_, title, "step", [View(title, lines)], small=True) if lines else None


def _tradeoff(metrics: Sequence[Mapping[str, Any]]) -> list[Figure]:
    dots = _held_dots(metrics, "eval/kl/sequence", "eval/reward")
    if not dots:
        return []
    caption = "Each evaluation, in the order of the steps, with bars of one standard error clustered by prompt text."
    view = View("held-out reward", [Line("held-out prompts", dots, HELD_OUT, mark="circle")])
    return [
        Figure(
            "tradeoff", "Held-out reward against KL", "sequence KL to the reference, nats", [view], caption, roots=True
        )
    ]


def _time(metrics: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Seconds of each phase, stacked, the longest below; the evaluation stands apart, being no part of a step."""
    # A phase's own parts, such as each reward function's time, are within it already.
    names = {name for line in metrics for name in line if name.startswith(_PHASES) and name.count("/") == 1}
    lines = [line for line in metrics if line.get("step_time") is not None]
    totals = {name: sum(measured(line, name) or 0.0 for line in lines) for name in names - {"time/evaluation"}}
    order = sorted(totals, key=lambda name: -totals[name])
    if not order:
        return None
    filled = [{"step": line["step"], **{name: measured(line, name) or 0.0 for name in order}} for line in lines]
    base = [0.0] * len(_series(filled, order[0]))
    stack = []
    for place, name in enumerate(order):
        pairs = _series(filled, name)
        dots = [Dot(x, low=low, high=low + y) for (x, y), low in zip(pairs, base, strict=True)]
        base = [dot.high or 0.0 for dot in dots]
        stack.append(Line(name.removeprefix(_PHASES), dots, _COLOURS[place % len(_COLOURS)], style="area"))
    evaluation = sum(line.get("time/evaluation") or 0.0 for line in metrics)
    caption = f"Without the evaluations, which took {evaluation:.0f} s in all." if evaluation else ""
    return Figure(
        "time", "Time by phase, seconds a step", "step", [View("seconds", stack, zero=True)], caption, small=True
    )
