"""`rlhf-pg reward train`: a reward model from preferences, numbers or classes."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from rlhf_pg.errors import ConfigError

Objective = Literal["bradley_terry", "regression", "classification"]


def train(
    data: Annotated[
        str, typer.Argument(metavar="PAIRS", help="A json, jsonl, csv or parquet file, a folder of them, or a hub id.")
    ],
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="Folder or hub id to start from; a config.json with --from-config.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the reward model and its report go.")],
    objective: Annotated[
        Objective | None, typer.Option(help="Default: bradley_terry for data with chosen and rejected texts.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=COLUMN",
            help="Where the data call it otherwise: prompt, chosen, rejected, text, label, margin, weight; and "
            "reference, completions of the reference policy, whose mean score becomes 0.",
        ),
    ] = None,
    eval_data: Annotated[str | None, typer.Option(metavar="FILE", help="Rows to measure on.")] = None,
    held_out: Annotated[
        float, typer.Option(help="Share of the rows to measure on, whole prompts, without them.")
    ] = 0.1,
    bad_rows: Annotated[
        Literal["stop", "drop"], typer.Option(help="What a row that cannot be used does: stop, or be dropped.")
    ] = "stop",
    max_tokens: Annotated[int, typer.Option(help="Longer texts lose their beginning.")] = 512,
    append_eos: Annotated[bool, typer.Option("--append-eos", help="End each text with the EOS token.")] = False,
    epochs: Annotated[float, typer.Option(help="Passes over the rows.")] = 1.0,
    batch_size: Annotated[int, typer.Option(help="Rows a device and pass.")] = 32,
    accumulate: Annotated[int, typer.Option(help="Passes an optimizer step.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="AdamW's peak; it falls linearly to 0.")] = 1e-4,
    warmup: Annotated[float, typer.Option(help="Share of the steps over which the rate rises.")] = 0.05,
    weight_decay: Annotated[float, typer.Option(help="AdamW's.")] = 0.0,
    dropout: Annotated[float | None, typer.Option(help="Of all of the model's dropouts; default: its own.")] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16; the weights stay in float32.")] = False,
    keep_best: Annotated[
        bool, typer.Option("--keep-best", help="Keep the epoch with the lowest held-out loss, not the last.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the split, the order, new weights and dropout.")] = 0,
    cpu: Annotated[bool, typer.Option("--cpu", help="Stay on the CPU where there is an accelerator.")] = False,
    lora_rank: Annotated[int, typer.Option(min=0, help="Of adapters on every linear layer; 0: all weights.")] = 0,
    lora_alpha: Annotated[float | None, typer.Option(help="Default: twice the rank.")] = None,
    merge: Annotated[bool, typer.Option("--merge/--adapter", help="Save adapters merged, or by themselves.")] = True,
    from_config: Annotated[
        bool, typer.Option("--from-config", help="Random weights of MODEL's architecture: train from scratch.")
    ] = False,
    tokenizer: Annotated[str | None, typer.Option(metavar="NAME", help="Default: MODEL's.")] = None,
    new_tokenizer: Annotated[
        str | None, typer.Option(metavar="KIND:N", help="With --from-config: words:N or bpe:N, trained on the texts.")
    ] = None,
    chat_template: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A Jinja file in place of the tokenizer's own template.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A policy whose completions shall average a score of 0.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="DATA", help="The prompts that the reference completes.")
    ] = None,
    reference_samples: Annotated[int, typer.Option(min=1, help="How many prompts it completes.")] = 256,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest completion of the reference.")] = 128,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier reward model in DIR.")] = False,
) -> None:
    """Train a reward model on preferences, numbers or classes, and report how good it is."""
    if (reference is None) != (prompts is None):
        raise ConfigError("--reference and --prompts belong together: the policy, and the prompts that it completes")
    columns = dict(_pair(text) for text in column or ())
    training = importlib.import_module("reward_models.training")
    template = None if chat_template is None else _text(chat_template)
    fit_options = training.FitOptions(
        epochs=epochs,
        batch_size=batch_size,
        accumulate=accumulate,
        learning_rate=learning_rate,
        warmup=warmup,
        weight_decay=weight_decay,
        bf16=bf16,
        keep_best=keep_best,
        seed=seed,
        cpu=cpu,
    )
    from rlhf_pg.loading import resolve_model

    start = training.ModelOptions(
        model=resolve_model(model),
        from_config=from_config,
        tokenizer=tokenizer,
        new_tokenizer=new_tokenizer,
        chat_template=template,
        dropout=dropout,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
    )
    samples: list[tuple[Any, str]] = []
    if reference is not None and prompts is not None:
        from rlhf_pg.reward_cli.reference import completions_of

        samples = completions_of(reference, prompts, reference_samples, max_new_tokens, seed, cpu=cpu, say=typer.echo)
    training.train_reward_model(
        data,
        out,
        start,
        objective=objective,
        eval_data=eval_data,
        reference=samples,
        data_options=training.DataOptions(columns, held_out, max_tokens, append_eos, bad_rows),
        fit_options=fit_options,
        merge=merge,
        overwrite=overwrite,
        say=typer.echo,
    )


def _pair(text: str) -> tuple[str, str]:
    name, equals, column = text.partition("=")
    if not (name and equals and column):
        raise ConfigError(f"--column {text} must be NAME=COLUMN, such as prompt=instruction")
    return name, column


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--chat-template {path} cannot be read: {error.strerror}") from error
