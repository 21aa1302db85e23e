"""The model card of a reward model, and the lines that say the same at the end of its training."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_TRAINED = {
    "bradley_terry": "pairs of texts of which one was preferred (Bradley-Terry loss)",
    "regression": "numbers (squared error)",
    "classification": "classes (cross-entropy)",
}
Row = tuple[str, str]


def model_card(name: str, base_model: str, found: Mapping[str, Any]) -> str:
    """A model card in Markdown: what was trained on what, how good it is, how to use it. It quotes no row of the data.

    Args:
        name: the folder's.
        base_model: what ``model`` named: a hub id, which the front matter then gives too, or a path.
        found: the whole report: ``training``, ``held_out`` (or None), ``center``, ``use``.
    """
    training, held_out = found["training"], found["held_out"]
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-classification"}
    if _HUB_ID.fullmatch(base_model) and not Path(base_model).exists():
        front["base_model"] = base_model
    front["tags"] = ["reward-model", "rlhf-pg", "rlhf"]
    start = "Trained from scratch" if training["from_config"] else f"`{base_model}`, trained"
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {name}",
        f"{start} by rlhf_pg on {training['rows']} {_TRAINED[training['objective']]}, {training['epochs']:g} epochs.",
        "## Held-out measurements\n\n" + _measurements(held_out),
    ]
    if held_out is not None:
        parts.append("![scores, calibration and length](report.png)")
    parts += [
        "## Zero\n\n" + center_line(found["center"]),
        "## Use\n\nAs the reward of a run, in its configuration:\n\n```yaml\n"
        + yaml.safe_dump({"reward": {"functions": [found["use"]]}}, sort_keys=False)
        + "```\n\nor from Python:\n\n```python\nfrom reward_models.classifier import load_classifier\n\n"
        + f"reward = load_classifier({_call(found['use'])})\n"
        + 'reward(prompts=["..."], completions=["..."])\n```',
        "## Settings\n\n```yaml\n" + yaml.safe_dump(dict(training), sort_keys=False) + "```",
    ]
    return "\n\n".join(parts) + "\n"


def center_line(center: Mapping[str, Any] | None) -> str:
    """What the score 0 means."""
    if center is None:
        return "Scores are as the model gives them; nothing is subtracted."
    return (
        f"`reward_center` in config.json, {center['value']:.4f}, is the mean score of {center['of']} ({center['texts']} "
        "texts): `load_classifier` subtracts it, so that these average 0. Only differences of a Bradley-Terry reward are "
        "determined by its training."
    )


def rows_of(held_out: Mapping[str, Any]) -> list[Row]:
    """The figures of a report in words, a line each."""
    length, kind = held_out["length"], held_out["objective"]
    rows = [("Rows held out", str(held_out["rows"]))]
    if kind == "regression":
        rows += [
            ("Mean squared error", _n(held_out["mse"])),
            ("R², 1 is perfect, 0 the mean label", _n(held_out["r2"])),
            ("Correlation with the label, Pearson, Spearman", f"{_n(held_out['pearson'])}, {_n(held_out['spearman'])}"),
        ]
    else:
        rows += [
            ("Accuracy", _share(held_out["accuracy"])),
            ("Log loss", f"{_n(held_out['log_loss'])} nats"),
            (
                f"Expected calibration error, {held_out['calibration']['bins']} bins",
                _n(held_out["calibration"]["error"]),
            ),
        ]
        chance = {"bradley_terry": 0.5}.get(kind, held_out.get("accuracy_of_the_commonest", 0.0))
        if held_out["accuracy"]["low"] <= chance:
            rows.append(("Warning", f"this is not told apart from chance, an accuracy of {_n(chance)}"))
    if kind == "bradley_terry":
        chosen, rejected = held_out["scores"]["chosen"], held_out["scores"]["rejected"]
        rows += [
            (f"Score of {side}, mean ± standard deviation", f"{_n(part['mean'])} ± {_n(part['sd'])}")
            for side, part in (("chosen", chosen), ("rejected", rejected))
        ]
        rows += [
            ("Accuracy where the chosen text is longer", _share(length["chosen_longer"])),
            ("Accuracy where the rejected text is longer", _share(length["rejected_longer"])),
            ("Accuracy of always choosing the shorter text", _n(length["shorter_is_chosen"])),
        ]
    if kind == "classification":
        rows.insert(2, ("Accuracy of always saying the commonest", _n(held_out["accuracy_of_the_commonest"])))
        rows += [
            (
                f"Class {name!r}: rows, recall, precision",
                f"{part['rows']}, {_n(part['recall'])}, {_n(part['precision'])}",
            )
            for name, part in held_out["classes"].items()
        ]
    what = f"log-odds of {held_out['log_odds_of']!r}" if kind == "classification" else "score"
    rows.append(
        (f"Correlation of {what} with tokens, Pearson, Spearman", f"{_n(length['pearson'])}, {_n(length['spearman'])}")
    )
    return rows


def _measurements(held_out: Mapping[str, Any] | None) -> str:
    if held_out is None:
        return "Nothing was held out."
    lines = [f"| {label.replace('|', chr(92) + '|')} | {value} |" for label, value in rows_of(held_out)]
    return "Intervals are of 95%, rows of a prompt taken together.\n\n| | |\n|---|---|\n" + "\n".join(lines)


def _share(part: Mapping[str, Any]) -> str:
    if not part["rows"]:
        return "no such row"
    return f"{part['share']:.3f} [{part['low']:.3f}, {part['high']:.3f}] of {part['rows']}"


def _n(value: float | None) -> str:
    return "not to be told" if value is None else f"{value:.3f}"


def _call(use: Mapping[str, Any]) -> str:
    return ", ".join([repr(use["function"]), *(f"{name}={value!r}" for name, value in use.get("args", {}).items())])
