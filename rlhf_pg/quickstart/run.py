"""The quickstart: a run of the ordinary trainer in the embedded world, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from rlhf_pg.config import load_config
from rlhf_pg.errors import ModelError
from rlhf_pg.frontier.command import frontier
from rlhf_pg.quickstart.build import policy_folder, world_folder
from rlhf_pg.quickstart.grammar import held_out_prompts
from rlhf_pg.quickstart.models import sample
from rlhf_pg.tracking import read_metrics, safe_text
from rlhf_pg.trainer import train

SHOWN = (
    ("learned reward", "eval/reward"),
    ("gold score, never trained on", "eval/rewards/gold/mean"),
    ("KL to the reference, nats a review", "eval/kl/sequence"),
)
SAMPLES = 4
REFERENCE_SAMPLES = 64  # a held-out prompt


def quickstart(overrides: Sequence[str] = ()) -> None:
    """Build the world if it is not there, train by the recipe ``quickstart``, and print what changed.

    Args:
        overrides: ``a.b=c`` on top of the recipe.

    Raises:
        RlhfPgError: the configuration, the world or the run failed.
    """
    console = Console()
    console.print(
        "Quickstart: a tiny model that writes reviews is trained by policy gradient against a learned reward. The gold "
        "score, which is known in this small world, shows how much of the gain is real.",
        highlight=False,
    )
    # A bad override is told at once, not after the world is built.
    config = load_config("quickstart", overrides)
    console.print(f"World: {world_folder(console.print)}", highlight=False, soft_wrap=True)
    result = train(config)
    console.print(summary(read_metrics(result.run_dir)))
    console.print(samples(policy_folder(), result.run_dir / "final"))
    console.print("Now the same against the best possible: samples of the reference, the optimum, best of n.")
    out = result.run_dir / "frontier"
    frontier(None, [], out, runs=[result.run_dir], samples=REFERENCE_SAMPLES, console=Console(quiet=True))
    named = {"Figure": result.run_dir / "training.png", "Run": result.run_dir, "Report": out / "report.html"}
    for kind, path in named.items():
        console.print(f"{kind}: {path}", highlight=False, soft_wrap=True)


def summary(metrics: Sequence[Mapping[str, Any]]) -> Table:
    """Held-out reward, gold score and KL at the first and the last evaluation, with their standard errors.

    Args:
        metrics: lines of ``metrics.jsonl``; a name that is absent is shown as a dash.
    """
    measured = [line for line in metrics if "eval/reward" in line]
    table = Table(title="on held-out prompts, ± one standard error", title_justify="left")
    table.add_column("")
    for when, line in (("before", measured[:1]), ("after", measured[-1:])):
        table.add_column(f"{when}, step {line[0]['step']}" if line else when, justify="right")
    for label, name in SHOWN:
        table.add_row(label, *(_value(line, name) for line in (*measured[:1], *measured[-1:])))
    return table


def _value(line: Mapping[str, Any], name: str) -> str:
    value, error = line.get(name), line.get(f"{name}_stderr")
    if value is None:
        return "–"
    return f"{value:.3f}" + ("" if error is None else f" ± {error:.3f}")


def samples(before: Path, after: Path) -> Table:
    """Reviews of the same held-out prompts by two models, drawn with the same random numbers.

    Args:
        before: the folder of a model with its tokenizer.
        after: likewise.
    """
    held_out = [row["prompt"] for row in held_out_prompts()]
    prompts = held_out[:: len(held_out) // SAMPLES][:SAMPLES]
    table = Table(title="the same held-out prompts before and after", title_justify="left", show_lines=True)
    columns = []
    for name, folder in (("prompt", None), ("before", before), ("after", after)):
        table.add_column(name, ratio=2 if folder is None else 3, overflow="fold")
        columns.append(prompts if folder is None else _reviews(folder, prompts))
    for row in zip(*columns, strict=True):
        table.add_row(*(Text(safe_text(cell.strip())) for cell in row))
    return table


def _reviews(folder: Path, prompts: Sequence[str]) -> list[str]:
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} cannot be loaded as a causal language model: {error}") from error
    return sample(model, tokenizer, prompts, seed=0)
