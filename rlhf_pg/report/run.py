"""``rlhf-pg report RUN``: the report of one run, from what the run left in its folder."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_pg.config.load import load_config
from rlhf_pg.errors import DataError
from rlhf_pg.report.data import Completion, RunReport, Sample, SampleSet, Token
from rlhf_pg.report.html import write_report
from rlhf_pg.report.page import plus_minus
from rlhf_pg.report.tokens import token_texts
from rlhf_pg.tracking import Alerts, read_metrics, read_table

STEPS_SHOWN, SAMPLES_SHOWN = 12, 12
_SHOWN = (
    f"Up to {SAMPLES_SHOWN} completions of up to {STEPS_SHOWN} steps. Held-out prompts are the same at each step, each with its "
    "first completion and the exact KL of its tokens; training prompts have advantages."
)
Decode = Callable[[list[int]], str]


def report_run(run_dir: Path | str) -> Path:
    """Write ``report.html`` into a run's folder; the run may still be going on.

    Args:
        run_dir: the folder, as ``rlhf-pg train`` made it.

    Returns:
        The report's path.

    Raises:
        DataError: the folder holds no run, or one without a finished step.
    """
    run_dir = Path(run_dir)
    return write_report(read_run(run_dir), run_dir / "report.html")


def read_run(run_dir: Path) -> RunReport:
    """What a run's folder says of it: metrics, configuration, alerts, and samples of up to 12 of its steps.

    Raises:
        DataError: the folder holds no run, or one without a finished step.
    """
    if not (run_dir / "config.yaml").is_file():
        raise DataError(f"{run_dir} is no run: it has no config.yaml; name a folder that `rlhf-pg train` made")
    tree = load_config(run_dir / "config.yaml").model_dump(mode="json")
    metrics = read_metrics(run_dir)
    if not metrics:
        raise DataError(f"{run_dir}: metrics.jsonl has no line yet; wait for the run's first step")
    config = flat(tree)
    name = str(config.get("run.name", run_dir.name))
    decode, reason = decoder_of(run_dir, tree)
    samples = [*_held_out(run_dir, decode), *_training(run_dir, decode)]
    note = (
        f"{_SHOWN} {reason}"
        if samples
        else "The folder holds neither rollouts/ nor evaluations/, so there are no samples."
    )
    return RunReport(
        title=f"Run {name}",
        headline=_headline(metrics),
        about={
            "policy": str(config.get("policy.model")),
            "data": str(config.get("data.source")),
            "reward": ", ".join(str(entry["function"]) for entry in tree["reward"]["functions"]),
            "steps": f"{metrics[-1]['step']} of {config.get('run.steps')}",
            "folder": str(run_dir),
            "command": f"rlhf-pg train {shlex.quote(str(run_dir / 'config.yaml'))} run.name={shlex.quote(name + '-again')}",
        },
        metrics=metrics,
        alerts=_alerts(metrics),
        config=config,
        samples=samples,
        samples_note=note.strip(),
    )


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration by dotted key."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}
    return found


def _headline(metrics: Sequence[Mapping[str, Any]]) -> str:
    held = [line for line in metrics if line.get("eval/reward") is not None]
    if not held:
        return "This run held out no prompts: its figures are of its own training samples."
    last, first = held[-1], held[0]
    words = f"Held-out reward {_held(last, 'reward')}"
    if last is not first:
        words += f" at step {last['step']}, from {_held(first, 'reward')} at step {first['step']}"
    return words + ("." if last.get("eval/kl/sequence") is None else f", at a KL of {_held(last, 'kl/sequence')} nats.")


def _held(line: Mapping[str, Any], name: str) -> str:
    return plus_minus(line[f"eval/{name}"], line.get(f"eval/{name}_stderr"))


def _alerts(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    judge = Alerts()
    for line in metrics:
        judge.check(line["step"], {name: value for name, value in line.items() if value is not None})
    return [f"Step {alert['step']}: {alert['text']}" for alert in judge.raised.values()]


def decoder_of(run_dir: Path, tree: Mapping[str, Any]) -> tuple[Decode | None, str]:
    """The run's own tokenizer, or the one beside its model on this machine; else why there is none."""
    from transformers import AutoTokenizer

    for folder in (run_dir / "final", run_dir / "best", Path(str(tree["policy"]["model"]))):
        if not folder.is_dir():
            continue
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError):
            continue
        return partial(_decode, tokenizer), ""
    reason = "The run has not saved its tokenizer yet and its model is not on this machine, so samples are not shown by token."
    return None, reason


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _chosen(folder: Path) -> list[int]:
    """Steps with samples, at most 12: the first, the last, and evenly between."""
    steps = sorted(int(path.stem.removeprefix("step-")) for path in folder.glob("step-*.parquet"))
    count = min(len(steps), STEPS_SHOWN)
    places = {round(place * (len(steps) - 1) / max(count - 1, 1)) for place in range(count)}
    return [steps[place] for place in sorted(places)]


def _held_out(run_dir: Path, decode: Decode | None) -> list[SampleSet]:
    """The first completion of the same held-out prompts at each step, beside the reference's where step 0 was it."""
    folder, sets = run_dir / "evaluations", list[SampleSet]()
    reference: dict[int, Completion] = {}
    for step in _chosen(folder):
        rows = rows_of(read_table(folder, step))
        first: dict[int, dict[str, Any]] = {}
        for row in rows:
            first.setdefault(row["prompt_index"], row)
        # Before the first step a policy whose KL is 0 is its reference.
        if step == 0 and all(abs(row.get("kl") or 0.0) < 1e-6 for row in rows):
            reference = {index: completion_of(row, decode) for index, row in first.items()}
        samples: list[Sample] = [
            {"prompt": row["prompt"], "policy": completion_of(row, decode), "reference": reference.get(index)}
            for index, row in sorted(first.items())[:SAMPLES_SHOWN]
        ]
        sets.append({"name": "held-out prompts", "step": step, "samples": samples})
    return sets


def _training(run_dir: Path, decode: Decode | None) -> list[SampleSet]:
    folder = run_dir / "rollouts"
    return [
        {
            "name": "training prompts",
            "step": step,
            "samples": [
                {"prompt": row["prompt"], "policy": completion_of(row, decode)}
                for row in rows_of(read_table(folder, step))[:SAMPLES_SHOWN]
            ],
        }
        for step in _chosen(folder)
    ]


def rows_of(columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """A table of columns as rows."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def completion_of(row: Mapping[str, Any], decode: Decode | None) -> Completion:
    """A row of rollouts/ or evaluations/."""
    kind = "rewards/"
    side: Completion = {
        "text": row["completion"],
        "components": {name.removeprefix(kind): value for name, value in row.items() if name.startswith(kind)},
        "reward": _known(row.get("reward", row.get("score"))),
        "kl": _known(row.get("kl")),
        "finish_reason": row["finish_reason"],
    }
    if decode is not None:
        ids = row["response_ids"]
        kl = row.get("token_kl") or [None] * len(ids)
        advantages = row.get("advantages") or [None] * len(ids)
        tokens: list[Token] = [
            {"text": text, "kl": one_kl, "advantage": advantage}
            for text, one_kl, advantage in zip(token_texts(decode, ids), kl, advantages, strict=True)
        ]
        side["tokens"] = tokens
    return side


def _known(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
