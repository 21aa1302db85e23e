"""The figures of all runs of a workload, as lines of text."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

_SIDES = ("trl", "ours")
Run = dict[str, Any]


def summarise(found: dict[str, Any]) -> list[str]:
    """Each figure of both sides with its spread, the ratios, our phases, and the operations.

    Args:
        found: ``trl`` and ``ours``, lists of runs in the order of their pairs, and ``trials``.
    """
    one: Run = found["ours"][0]
    versions = ", ".join(f"{name} {version}" for name, version in one["versions"].items())
    lines = [f"  {versions}; {one['threads']} threads; TRL's passes take {found['trl'][0]['trl_batch']} rows"]
    lines += [
        f"  TRL with {trial['trl_batch']} rows a pass, tried: {min(trial['steps']):.3f} s a step, {trial['peak_gb']:.2f} GB"
        for trial in found["trials"]
    ]
    lines.append(f"  {'':24} {'TRL':>24} {'ours':>24} {'ratio':>24}")
    figures: list[tuple[str, Callable[[Run], float], bool]] = [
        ("step time, s", _step_time, True),
        ("between rewards, s", lambda run: statistics.median(run["intervals"]), True),
        ("samples a second", lambda run: run["samples"] / _step_time(run), False),
        ("tokens a second", _token_rate, False),
        ("peak memory, GB", lambda run: run["peak_gb"], True),
    ]
    for name, of, less_is_better in figures:
        theirs, ours = ([of(run) for run in found[side]] for side in _SIDES)
        pairs = zip(theirs, ours, strict=True)
        ratios = [a / b if less_is_better else b / a for a, b in pairs]
        lines.append(f"  {name:24} {_spread(theirs):>24} {_spread(ours):>24} {_spread(ratios):>24}")
    lines.append("  (a ratio above 1 is in our favour)")
    lengths = [statistics.fmean(run["completion_tokens"] for run in found[side]) for side in _SIDES]
    longest = [max(run["longest_completion"] for run in found[side]) for side in _SIDES]
    shortest = [min(run["shortest_completion"] for run in found[side]) for side in _SIDES]
    lines.append(
        f"  prompts of {one['prompt_tokens']:.1f} tokens; completions of {lengths[0]:.1f} ({shortest[0]} to {longest[0]}) "
        f"and {lengths[1]:.1f} ({shortest[1]} to {longest[1]})"
    )
    for phase in one["phases"]:
        seconds = [run["phases"][phase] for run in found["ours"]]
        share = statistics.median(run["phases"][phase] / _step_time(run) for run in found["ours"])
        lines.append(f"  ours, time/{phase:12} {_spread(seconds)} s, {share:.0%} of the step")
    return lines + _operations(found)


def _operations(found: dict[str, Any]) -> list[str]:
    """The machine's rate, the operations that a step needs, and how much of the rate each side reaches."""
    if found["ours"][0]["operations"] is None:
        return ["  (operations are counted for Llama-shaped models only)"]
    everyone = [*found["trl"], *found["ours"]]
    rates = [
        f"{part} {_spread([run['matrix_gflops'][part] for run in everyone])}" for part in everyone[0]["matrix_gflops"]
    ]
    lines = [f"  matrix products, GFLOP/s: {', '.join(rates)}"]
    for key, title in (("operations", "rows"), ("operations_shared", "shared")):
        parts = {
            phase: statistics.median(run[key][phase] / 1e9 for run in found["ours"]) for phase in found["ours"][0][key]
        }
        listed = ", ".join(f"{phase} {value:.3g}" for phase, value in parts.items())
        reached = [
            f"{name} {_spread([sum(run[key].values()) / 1e9 / (_step_time(run) * _rate(run)) for run in found[side]], '.0%')}"
            for name, side in (("TRL", "trl"), ("ours", "ours"))
        ]
        lines.append(f"  a step needs ({title}), GFLOP: {sum(parts.values()):.4g} ({listed})")
        lines.append(f"  utilisation ({title}): {', '.join(reached)}")
    return lines


def _step_time(run: Run) -> float:
    return float(statistics.median(run["steps"]))


def _token_rate(run: Run) -> float:
    """Completion tokens a second over all measured steps: what compares runs whose lengths differ (W4)."""
    return float(run["completion_tokens"] * run["samples"] / statistics.fmean(run["steps"]))


def _rate(run: Run) -> float:
    return float(max(run["matrix_gflops"][part] for part in ("backbone", "head")))


def _spread(values: Sequence[float], form: str = ".3g") -> str:
    """Median [lowest to highest]."""
    middle, low, high = (format(value, form) for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} [{low} to {high}]"
