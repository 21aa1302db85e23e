"""What in the figures of a reward should give pause, in words. The limits stand here, each with its reason."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

FEW = 30  # rows, groups or pairs below which a share says little
UNSCORABLE = 0.05  # rows that no function scored are sampled in vain
AT_AN_END = 0.9  # rows with the lowest, or the highest, reward there is
TIED = 0.25  # groups without a difference to learn from
TRUNCATED = 0.5  # samples cut at the token limit: their ends are not what the reward will see later
LENGTH = 0.5  # |Spearman|: a quarter of the ranks' variance
ALIKE = 0.95  # correlation of two components that say the same
BY_LENGTH = 0.2  # accuracy lost where the better text is the shorter one
STEP_SECONDS = 10.0  # scoring one step


def warnings(found: Mapping[str, Any]) -> list[str]:
    """Sentences about a reward, the gravest first.

    Args:
        found: of :func:`rlhf_pg.reward_check.findings.findings`.
    """
    return [
        *_failures(found),
        *_values(found),
        *_groups(found),
        *_repeatability(found),
        *_truncation(found),
        *_length(found),
        *_pairs(found),
        *_components(found),
        *_time(found),
    ]


def percent(share: float) -> str:
    """A share as a whole percentage, but never 0% or 100% of what is some or not all."""
    if 0 < share < 0.01:
        return "under 1%"
    return "over 99%" if 0.99 < share < 1 else f"{share:.0%}"


def _failures(found: Mapping[str, Any]) -> Iterator[str]:
    for name, part in found["components"].items():
        if part["failed"] > 0:
            start = f"reward function {name!r} "
            reason = next((text.removeprefix(start) for text in found["problems"] if text.startswith(start)), "")
            why = f": it {reason.removesuffix(': it counts as unscorable')}" if reason else ""
            yield f"{name} failed on {percent(part['failed'])} of the rows{why}"
    if found["unscorable"] > UNSCORABLE:
        yield f"{percent(found['unscorable'])} of the rows are unscorable: they are sampled and teach nothing"


def _values(found: Mapping[str, Any]) -> Iterator[str]:
    reward = found["reward"]
    if 0 < reward["rows"] < FEW:
        yield f"only {reward['rows']} rows were scored: every figure here is uncertain"
    if reward["rows"] and reward["distinct"] == 1:
        yield f"one value only: every row has the reward {reward['min']:.4g}, so there is nothing to learn"
        return
    if reward["rows"] >= FEW and reward["at_min"] >= AT_AN_END:
        yield (
            f"{percent(reward['at_min'])} of the rows have the lowest reward, {reward['min']:.4g}: this policy hardly ever "
            "earns more, and learning would start slowly"
        )
    if reward["rows"] >= FEW and reward["at_max"] >= AT_AN_END:
        yield (
            f"{percent(reward['at_max'])} of the rows have the highest reward, {reward['max']:.4g}: there is little left to "
            "learn"
        )


def _groups(found: Mapping[str, Any]) -> Iterator[str]:
    groups = found["groups"]
    # With one value only all groups tie, and that has been said.
    if groups is None or not groups["counted"] or found["reward"]["distinct"] == 1 or groups["tied"] < TIED:
        return
    part = "most of a batch" if groups["tied"] > 0.5 else "that part of a batch"
    yield f"{percent(groups['tied'])} of groups tie: {part} would teach nothing"


def _repeatability(found: Mapping[str, Any]) -> Iterator[str]:
    for key, what in (
        ("again", "scored twice"),
        ("elsewhere", "scored in other batches, in another order"),
    ):
        change = found["repeated"] and found["repeated"][key]
        if change and change["share"] > 0:
            say = "not repeatable" if key == "again" else "depends on the batch"
            yield (
                f"{say}: {what}, {percent(change['share'])} of the rows differ, by up to {change['largest']:.3g} "
                f"(the rewards' standard deviation is {found['reward']['sd']:.3g})"
            )
            return  # what differs between two equal calls differs in other batches too


def _truncation(found: Mapping[str, Any]) -> Iterator[str]:
    if found["truncated"] >= TRUNCATED:
        yield (
            f"{percent(found['truncated'])} of the samples were cut at the token limit, so the reward read texts without an "
            "end: raise --max-new-tokens, or see that it means to score those"
        )


def _length(found: Mapping[str, Any]) -> Iterator[str]:
    rank = found["length"]["spearman"]
    if found["reward"]["rows"] >= FEW and not math.isnan(rank) and abs(rank) >= LENGTH:
        longer = "longer" if rank > 0 else "shorter"
        yield f"the reward follows length: Spearman {rank:.2f} with the tokens; a policy may learn to write {longer} texts"


def _pairs(found: Mapping[str, Any]) -> Iterator[str]:
    pairs = found["pairs"]
    if pairs is None or not pairs["pairs"]:
        return
    said = f"accuracy {pairs['accuracy']:.3f} (95%: {pairs['low']:.3f} to {pairs['high']:.3f}, {pairs['pairs']} pairs)"
    if pairs["high"] < 0.5:
        yield f"it prefers the rejected texts: {said}; is its sign right?"
    elif pairs["low"] <= 0.5:
        yield f"it cannot be told from chance: {said}"
    longer, shorter = (pairs["by_length"][name] for name in ("chosen longer", "chosen shorter"))
    if min(longer["pairs"], shorter["pairs"]) < FEW:
        return
    gap = longer["accuracy"] - shorter["accuracy"]
    if abs(gap) >= BY_LENGTH:
        kind = "longer" if gap > 0 else "shorter"
        yield (
            f"it prefers the {kind} text: accuracy {longer['accuracy']:.2f} where the chosen one is longer, "
            f"{shorter['accuracy']:.2f} where it is shorter"
        )


def _components(found: Mapping[str, Any]) -> Iterator[str]:
    several = found["components"] if len(found["components"]) > 1 else {}
    for name, part in several.items():
        if part["rows"] and part["distinct"] == 1:
            yield f"{name} gives every row {part['min']:.4g}: it decides nothing"
    for pair in found["correlations"]:
        if pair["pearson"] >= ALIKE and not pair["nested"]:
            yield f"{' and '.join(pair['of'])} say the same: their correlation is {pair['pearson']:.2f}"


def _time(found: Mapping[str, Any]) -> Iterator[str]:
    seconds = found["seconds"]
    if seconds["step"] > STEP_SECONDS:
        yield f"slow: at this rate a step of {seconds['step_rows']} rows takes {seconds['step']:.0f} s to score"
