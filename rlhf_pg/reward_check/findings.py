"""From what was measured to what a careful person would ask."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from rlhf_pg.ops.statistics import pearson, spearman
from rlhf_pg.reward_check.completions import Completions
from rlhf_pg.reward_check.measure import Measured
from rlhf_pg.reward_check.statistics import accuracy, centred, changes, distribution, tied
from rlhf_pg.reward_check.verdicts import warnings
from rlhf_pg.types import Prompt

EXAMPLES = 3
_DISAGREEMENT = "/disagreement"


def findings(
    measured: Measured, completions: Completions, *, step_rows: int, nested: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Everything that is known of a reward, as plain Python; a figure that cannot be told is NaN or ``None``.

    Args:
        measured: its values.
        completions: what was scored.
        step_rows: rows of a training step, for the time.
        nested: each component's members.

    Returns:
        ``rows``, ``prompts``, ``group_size``, ``origin``, ``tokens``, ``reward`` (a distribution), ``unscorable`` (share,
        rows that failed included), ``seconds``, ``repeated``, ``truncated`` (share cut at the token limit), ``length``,
        ``groups``, ``pairs``, ``components``, ``correlations``, ``disagreement`` (of ensembles, the mean), ``logged``,
        ``problems``, ``best`` and ``worst`` (examples) and ``warnings``.
    """
    rollout = completions.rollout
    totals, lengths, group = measured.totals, rollout.lengths.double(), rollout.group_size
    table = totals.view(-1, group)
    known = (~totals.isnan()).nonzero().flatten()
    order = known[totals[known].argsort(stable=True)].tolist()
    rows = len(rollout)
    seconds = measured.seconds / rows
    share, counted = tied(table)
    components = {
        name: x.double() for name, x in measured.scored.components.items() if not name.endswith(_DISAGREEMENT)
    }
    parts = {name: _component(name, values, measured, lengths) for name, values in components.items()}
    found: dict[str, Any] = {
        "rows": rows,
        "prompts": len(rollout.prompts),
        "group_size": group,
        "origin": completions.origin,
        "tokens": completions.tokens,
        "reward": distribution(totals),
        "unscorable": float(totals.isnan().double().mean()),
        "seconds": {
            "call": measured.seconds,
            "row": seconds,
            "step_rows": step_rows,
            "step": seconds * step_rows,
        },
        "repeated": _repeated(measured),
        "truncated": float(rollout.truncated.double().mean()),
        "length": {
            "mean": float(lengths.mean()),
            "pearson": pearson(totals, lengths),
            "spearman": spearman(totals, lengths),
            # Prompts that ask for long answers may be the easy ones: this is what a policy can gain by length alone.
            "within_groups": pearson(centred(table), centred(lengths.view(-1, group))) if group > 1 else math.nan,
        },
        "groups": {"counted": counted, "tied": share} if group > 1 and not completions.pairs else None,
        "pairs": _pairs(table, lengths.view(-1, 2)) if completions.pairs else None,
        "components": parts,
        "correlations": _correlations(components, nested),
        "disagreement": {
            name.removesuffix(_DISAGREEMENT): float(values.double().nanmean())
            for name, values in measured.scored.components.items()
            if name.endswith(_DISAGREEMENT)
        },
        "logged": {name: value for name, value in measured.logged.items() if not _own(name, parts)},
        "problems": list(measured.problems[:EXAMPLES]),
        "best": [_example(completions, totals, row) for row in reversed(order[-EXAMPLES:])],
        "worst": [_example(completions, totals, row) for row in order[:EXAMPLES]],
    }
    found["warnings"] = warnings(found)
    return found


def _component(name: str, values: Tensor, measured: Measured, lengths: Tensor) -> dict[str, float]:
    """Rows that failed are not counted among the unscorable ones."""
    rows = len(values)
    failed = measured.logged.get(f"rewards/{name}/failed", 0.0) / rows
    return {
        **distribution(values),
        "failed": failed,
        "unscorable": max(0.0, float(values.isnan().double().mean()) - failed),
        "seconds_per_row": measured.logged.get(f"time/rewards/{name}", math.nan) / rows,
        "length_spearman": spearman(values, lengths),
        "total_pearson": pearson(values, measured.totals),
    }


def _own(name: str, parts: Mapping[str, Any]) -> bool:
    """Whether the runner logged it, and not a function."""
    own = (f"time/rewards/{part}" for part in parts)
    return name in own or any(name in (f"rewards/{part}/failed", f"rewards/{part}/nan") for part in parts)


def _repeated(measured: Measured) -> dict[str, dict[str, float]] | None:
    if measured.again is None or measured.elsewhere is None:
        return None
    return {
        "again": changes(measured.totals, measured.again),
        "elsewhere": changes(measured.totals, measured.elsewhere),
    }


def _pairs(table: Tensor, lengths: Tensor) -> dict[str, Any]:
    gap = lengths[:, 0] - lengths[:, 1]
    kinds = {"chosen longer": gap > 0, "same length": gap == 0, "chosen shorter": gap < 0}
    return {**accuracy(table), "by_length": {name: accuracy(table[rows]) for name, rows in kinds.items()}}


def _correlations(components: Mapping[str, Tensor], nested: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Of each two components; ``nested`` where one is made of the other."""
    return [
        {
            "of": [a, b],
            "pearson": pearson(components[a], components[b]),
            "nested": b in nested.get(a, ()) or a in nested.get(b, ()),
        }
        for a, b in itertools.combinations(components, 2)
    ]


def _example(completions: Completions, totals: Tensor, row: int) -> dict[str, Any]:
    rollout = completions.rollout
    return {
        "prompt": _shown(rollout.prompts.prompts[row // rollout.group_size]),
        "completion": rollout.texts[row],
        "reward": float(totals[row]),
        "tokens": int(rollout.lengths[row]),
    }


def _shown(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message.get('role')}: {message.get('content')}" for message in prompt)


def plain(value: Any) -> Any:
    """Findings as JSON can hold them: NaN as null."""
    if isinstance(value, dict):
        return {name: plain(below) for name, below in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table_of(measured: Measured, completions: Completions) -> list[dict[str, Any]]:
    """Each completion with its rewards, as JSON can hold them."""
    rollout, components = completions.rollout, measured.scored.components
    return [
        {
            "prompt": rollout.prompts.prompts[row // rollout.group_size],
            "completion": text,
            "tokens": int(rollout.lengths[row]),
            "reward": plain(float(measured.totals[row])),
            "components": {name: plain(float(values[row])) for name, values in components.items()},
        }
        for row, text in enumerate(rollout.texts)
    ]
