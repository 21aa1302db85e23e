"""Training a reward model from a file of data to a saved checkpoint with its report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import set_seed

from reward_models.functions.text import Completion
from reward_models.training.building import ModelOptions, load_model, load_tokenizer, save, with_lora
from reward_models.training.card import center_line, model_card, rows_of
from reward_models.training.columns import label_names, objective_of
from reward_models.training.data import DataOptions, parts, read, reference_of, texts_of
from reward_models.training.figure import report_figure
from reward_models.training.fitting import Example, FitOptions, fit, mean_score
from reward_models.training.objectives import Objective
from reward_models.training.report import report
from reward_models.training.rows import RowReader
from reward_models.training.texts import check_padding, encode, own_padding
from rlhf_pg.errors import ConfigError, ModelError
from rlhf_pg.sources import Say
from rlhf_pg.types import Prompt


def train_reward_model(
    data: object,
    out: str | Path,
    model: str | ModelOptions,
    *,
    objective: Objective | None = None,
    eval_data: object = None,
    reference: Sequence[tuple[Prompt, Completion]] = (),
    data_options: DataOptions | None = None,
    fit_options: FitOptions | None = None,
    merge: bool = True,
    overwrite: bool = False,
    say: Say = print,
) -> dict[str, Any]:
    """Train a reward model, measure it on held-out rows, centre it, and save it with a report.

    In ``out``: safetensors, configuration, tokenizer, ``report.json``, ``report.png`` and a model card. A Bradley-Terry
    reward is centred: the mean score of the reference's completions, or else of the held-out texts, is written as
    ``reward_center`` into config.json, and ``load_classifier`` subtracts it. A regression is centred where there are
    completions of a reference; a classification never.

    Args:
        data: a file, folder or hub id; a ``datasets.Dataset``; or a list of dicts.
        out: the folder to write; absent or empty.
        model: what it starts from.
        objective: default: Bradley-Terry for data with chosen and rejected texts.
        eval_data: rows to measure on, like ``data``, in place of a part of it. Rows whose prompt is trained on are left
            out.
        reference: prompts and completions of the reference policy.
        data_options: what the rows mean.
        fit_options: how the model is fitted.
        merge: save adapters merged into the weights.
        overwrite: replace what is in ``out``.
        say: receives a sentence at a time.

    Returns:
        The report: ``training`` (settings and loss), ``held_out`` (figures, or None), ``center`` (or None), ``use``.

    Raises:
        ConfigError: options that exclude each other, or ``out`` is in use.
        DataError: the data, or a row of them, cannot be used.
        ModelError: the model or its tokenizer cannot be used so.
    """
    start = ModelOptions(model) if isinstance(model, str) else model
    options, how, out = data_options or DataOptions(), fit_options or FitOptions(), Path(out)
    _check(options, how, start, out, merge=merge, overwrite=overwrite, measured=eval_data is not None)
    table = read(data, "data", say)
    goal = objective_of(table, objective, options.columns)
    labels = label_names(table, options.columns) if goal == "classification" else ()
    reference = [*reference, *reference_of(table, options.columns)]
    if reference and goal == "classification":
        raise ConfigError(
            "a classification is not centred: leave the reference out, or train bradley_terry or regression"
        )

    set_seed(how.seed)
    tokenizer = load_tokenizer(start, texts_of(table, options.columns) if start.new_tokenizer else ())
    network = load_model(start, tokenizer, goal, labels, say)
    known = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    limit = min(options.max_tokens, tokenizer.model_max_length, known or options.max_tokens)
    reader = RowReader(tokenizer, goal, options.columns, limit, options.append_eos, options.bad_rows)
    # The loader cuts texts where training did.
    tokenizer.model_max_length = limit
    trained, measured = parts(reader, table, eval_data, labels, options.held_out, how.seed, say)
    asked = [
        encode(
            tokenizer,
            *row,
            max_tokens=limit,
            where=f"reference completion {number}",
            append_eos=options.append_eos,
        )
        for number, row in enumerate(reference)
    ]
    texts = [text for row in (*trained, *measured) for text in row.texts] + asked
    if cut := sum(len(text) == limit for text in texts):
        say(f"{cut} of {len(texts)} texts have {limit} tokens, the most; what was longer lost its beginning.")
    if own_padding(network, tokenizer, texts):
        if start.lora_rank and not merge:
            raise ModelError(
                f"{start.model} has no padding token of its own; one was added, and adapters alone cannot carry it: save "
                "them merged, or give the base model such a token"
            )
        say(f"The tokenizer had no padding token of its own; {tokenizer.pad_token} was added.")
    pad = check_padding(network, tokenizer, texts)
    network = with_lora(network, start)
    count = sum(weights.numel() for weights in network.parameters() if weights.requires_grad)
    say(f"Training {count:,} weights on {len(trained)} rows ({goal}); {len(measured)} held out.")
    loss, scores = fit(network, goal, trained, measured, pad, how, say)

    center = None
    if goal == "bradley_terry" or asked:
        which, what = (asked, "completions of the reference policy") if asked else _any_texts(trained, measured)
        mean = mean_score(network, which, pad, how.batch_size)
        center = {"value": mean, "of": what, "texts": len(which)}
        network.config.reward_center = mean
        scores = scores - mean if goal == "bradley_terry" else scores
    if out.exists():
        shutil.rmtree(out)
    save(network, tokenizer, out, merge=merge)
    found = {
        "training": _settings(goal, start, options, how, len(trained), loss, merge),
        "held_out": report(goal, measured, scores, labels) if measured else None,
        "center": center,
        "use": _use(out, labels, options),
    }
    _write(out, start.model, found, measured, scores)
    for line in _summary(out, found):
        say(line)
    return found


def _check(
    options: DataOptions,
    how: FitOptions,
    start: ModelOptions,
    out: Path,
    *,
    merge: bool,
    overwrite: bool,
    measured: bool,
) -> None:
    """What can be refused before anything is read."""
    if not 0 <= options.held_out < 1:
        raise ConfigError(f"held_out={options.held_out} must be a share of at least 0 and below 1")
    if how.keep_best and not measured and not options.held_out:
        raise ConfigError("keep_best compares held-out losses, and nothing is held out; set held_out, or leave it out")
    if not merge and not start.lora_rank:
        raise ConfigError("merge=False saves adapters, and lora_rank is 0; set lora_rank, or leave it out")
    for name, value, least in (
        ("epochs", how.epochs, 0),
        ("batch_size", how.batch_size, 1),
        ("accumulate", how.accumulate, 1),
        ("max_tokens", options.max_tokens, 1),
        ("learning_rate", how.learning_rate, 0),
    ):
        if value < least:
            raise ConfigError(f"{name}={value} must be at least {least}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not overwrite:
            raise ConfigError(f"out={out} is there already and not an empty folder; name another, or set overwrite")
        if not (out / "report.json").is_file():
            raise ConfigError(f"out={out} holds no reward model of an earlier training, so it is not overwritten")


def _any_texts(trained: Sequence[Example], measured: Sequence[Example]) -> tuple[list[list[int]], str]:
    rows, what = (measured, "the held-out texts") if measured else (trained, "the training texts")
    return [text for row in rows for text in row.texts], what


def _settings(
    goal: Objective,
    start: ModelOptions,
    options: DataOptions,
    how: FitOptions,
    rows: int,
    loss: float,
    merge: bool,
) -> dict[str, Any]:
    settings = asdict(start) | asdict(options) | asdict(how)
    if start.lora_rank:
        settings["merge"] = merge
    return {"objective": goal, "rows": rows, "loss": loss} | {
        name: value for name, value in settings.items() if value is not None and name != "chat_template"
    }


def _use(out: Path, labels: Sequence[str], options: DataOptions) -> dict[str, Any]:
    """The entry of a run's configuration that makes this model its reward."""
    args: dict[str, Any] = {"label": labels[-1], "output": "log_odds"} if labels else {}
    if options.append_eos:
        args["append_eos"] = True
    return {"function": str(out)} | ({"args": args} if args else {})


def _write(out: Path, base: str, found: Mapping[str, Any], measured: Sequence[Example], scores: Tensor) -> None:
    (out / "report.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (out / "README.md").write_text(model_card(out.name, base, found), encoding="utf-8")
    if found["held_out"] is not None:
        report_figure(found["held_out"], measured, scores, out / "report.png")


def _summary(out: Path, found: Mapping[str, Any]) -> list[str]:
    rows = rows_of(found["held_out"]) if found["held_out"] is not None else [("Held out", "nothing")]
    width = max(len(label) for label, _ in rows)
    return [
        *(f"{label:<{width}}  {value}" for label, value in rows),
        center_line(found["center"]),
        f"Saved in {out}; report.json, report.png and README.md say the same.",
    ]
