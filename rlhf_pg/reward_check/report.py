"""Findings about a reward on a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf_pg.reward_check.verdicts import percent
from rlhf_pg.tracking import safe_text

_PROMPT_CHARACTERS = 80
_COMPLETION_CHARACTERS = 300


def print_findings(found: Mapping[str, Any], title: str, console: Console) -> None:
    """Print figures, components, examples and, last, the warnings. Text of data and models is made harmless.

    Args:
        found: of :func:`rlhf_pg.reward_check.findings.findings`.
        title: the reward's name.
        console: where to.
    """
    table = Table("figure", "value", title=Text(safe_text(title)), title_justify="left")
    for name, value in _figures(found):
        table.add_row(name, Text(safe_text(value)))
    console.print(table)
    if len(found["components"]) > 1:
        console.print(_components(found))
    for name in ("best", "worst"):
        if found[name]:
            console.print(_examples(name, found[name]))
    for text in found["warnings"]:
        console.print(Text("warning: ", style="bold red") + Text(safe_text(text)), soft_wrap=True)
    if not found["warnings"]:
        console.print("No warnings.")


def _figures(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    reward, length, seconds = found["reward"], found["length"], found["seconds"]
    yield "completions", f"{found['rows']}, {found['origin']}"
    if found["group_size"] > 1 and not found["pairs"]:
        yield "groups", f"{found['prompts']} of {found['group_size']}"
    yield "mean ± deviation", f"{_number(reward['mean'])} ± {_number(reward['sd'])}"
    quantiles = (_number(reward[name]) for name in ("min", "q05", "q25", "median", "q75", "q95", "max"))
    yield "min | 5 25 50 75 95% | max", "{} | {} {} {} {} {} | {}".format(*quantiles)
    yield "distinct values", f"{reward['distinct']} in {reward['rows']} scored rows"
    if reward["rows"]:
        yield "at the lowest, the highest", f"{percent(reward['at_min'])}, {percent(reward['at_max'])}"
    yield "unscorable", percent(found["unscorable"])
    for name, part in found["components"].items():
        if part["failed"]:
            yield f"failed: {name}", percent(part["failed"])
    yield "time", f"{_seconds(seconds['row'])} a row; a step of {seconds['step_rows']} rows {_seconds(seconds['step'])}"
    if found["repeated"]:
        yield "scored again", _change(found["repeated"]["again"])
        yield "in other batches", _change(found["repeated"]["elsewhere"])
    yield "mean length", f"{length['mean']:.1f} {found['tokens']}"
    if found["truncated"]:
        yield "cut at the token limit", percent(found["truncated"])
    within = "" if math.isnan(length["within_groups"]) else f"; within groups {_number(length['within_groups'])}"
    yield (
        "correlation with length",
        f"Pearson {_number(length['pearson'])}, Spearman {_number(length['spearman'])}{within}",
    )
    if found["groups"] and found["groups"]["counted"]:
        yield "groups that tie", f"{percent(found['groups']['tied'])} of {found['groups']['counted']}"
    if found["pairs"]:
        yield "accuracy on pairs", _accuracy(found["pairs"])
        for name, part in found["pairs"]["by_length"].items():
            yield f"… {name}", _accuracy(part)
    for name, value in found["disagreement"].items():
        yield f"disagreement in {name}", _number(value)
    for name, value in found["logged"].items():
        yield f"logged: {name}", _number(value)


def _components(found: Mapping[str, Any]) -> Table:
    heads = (
        "component",
        "mean",
        "deviation",
        "min",
        "max",
        "unscorable",
        "failed",
        "time a row",
        "with length",
        "with total",
    )
    table = Table(*heads, title="Components, before their weights", title_justify="left")
    for name, part in found["components"].items():
        table.add_row(
            Text(safe_text(name)),
            *(_number(part[key]) for key in ("mean", "sd", "min", "max")),
            percent(part["unscorable"]),
            percent(part["failed"]),
            _seconds(part["seconds_per_row"]),
            _number(part["length_spearman"]),
            _number(part["total_pearson"]),
        )
    pairs = [pair for pair in found["correlations"] if not math.isnan(pair["pearson"])]
    table.caption = Text(safe_text("; ".join(f"{' and '.join(pair['of'])} {pair['pearson']:.2f}" for pair in pairs)))
    table.caption_justify = "left"
    return table


def _examples(name: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=f"The {name}", title_justify="left", show_lines=True, expand=True)
    table.add_column("prompt", ratio=2, overflow="fold")
    table.add_column("completion", ratio=5, overflow="fold")
    table.add_column("reward", justify="right", no_wrap=True)
    table.add_column("length", justify="right", no_wrap=True)
    for row in rows:
        prompt, completion = row["prompt"], row["completion"]
        if len(prompt) > _PROMPT_CHARACTERS:
            prompt = "…" + prompt[-_PROMPT_CHARACTERS:]
        if len(completion) > _COMPLETION_CHARACTERS:
            completion = completion[:_COMPLETION_CHARACTERS] + "…"
        cells = (Text(safe_text(prompt), style="dim"), Text(safe_text(completion)))
        table.add_row(*cells, _number(row["reward"]), str(row["tokens"]))
    return table


def _accuracy(part: Mapping[str, float]) -> str:
    if not part["pairs"]:
        return "no pairs"
    interval = f"95%: {part['low']:.3f} to {part['high']:.3f}"
    return f"{part['accuracy']:.3f} ({interval}; {part['pairs']} pairs, {percent(part['ties'])} ties)"


def _change(change: Mapping[str, float]) -> str:
    if not change["share"]:
        return "the same"
    return f"{percent(change['share'])} of the rows differ, by up to {_number(change['largest'])}"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4g}"


def _seconds(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value * 1e6:.0f} µs" if value < 1e-3 else f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"
