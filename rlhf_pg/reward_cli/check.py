"""``rlhf-pg reward check``: is a reward any good?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rlhf_pg.errors import ConfigError
from rlhf_pg.reward_cli.serve import reward_section


def check(
    reward: Annotated[
        str | None,
        typer.Argument(
            metavar="REWARD",
            help="What reward.functions takes, or a recipe's .yaml file for its section reward; left out, --recipe's.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="What data.source takes; left out, --recipe's.")
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Sample completions from this model; with --column, count its tokens."),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The column with completions; a list in it is a group. Left out, with no --policy: the columns chosen and "
            "rejected, or completion.",
        ),
    ] = None,
    prompt_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="The column with prompts, if not one of the usual.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="Data, policy, sampling and reward, where not given.")
    ] = None,
    group_size: Annotated[int | None, typer.Option(min=1, help="Completions sampled per prompt.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="The most tokens of a sampled completion.")] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="At most so many prompts; default 64 to sample for, 1000 to read.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of prompts, and the sampling.")] = 0,
    args: Annotated[
        list[str] | None,
        typer.Option("--arg", metavar="NAME=VALUE", help="An argument of the reward; VALUE is JSON, or else text."),
    ] = None,
    factory: Annotated[
        bool, typer.Option("--factory", help="The name is called with the arguments and returns it.")
    ] = False,
    once: Annotated[
        bool, typer.Option("--once", help="Score once, where a call costs money; repeatability is not known then.")
    ] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="A folder for check.png and rows.jsonl.")] = Path(
        "reward-check"
    ),
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the findings there too.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if there is a warning.")] = False,
) -> None:
    """Score real completions and say whether the reward is any good: spread, ties, length, repeatability, accuracy."""
    from rlhf_pg.config.load import load_config
    from rlhf_pg.config.tree import Config

    config = load_config(recipe) if recipe is not None else Config()
    if reward is None and (args or factory):
        raise ConfigError(
            "--arg and --factory belong to a reward named on the command line; name it, or leave them out"
        )
    section = config.reward if reward is None else reward_section(reward, args or (), factory=factory)
    if not section.functions:
        raise ConfigError("there is no reward to check: rlhf-pg reward check REWARD --data DATA, or --recipe RECIPE")
    if data is None and not config.data.source:
        raise ConfigError("--data is missing: a file, a folder or a hub id, as data.source takes it")
    changes = {"source": data or config.data.source, "prompt_column": prompt_column or config.data.prompt_column}
    model = {} if policy is None else {"model": policy, "revision": None}
    config = config.model_copy(
        update={"data": config.data.model_copy(update=changes), "policy": config.policy.model_copy(update=model)}
    )

    from rlhf_pg.reward_check import check_reward

    found = check_reward(
        config,
        section,
        policy=policy is not None,
        column=column,
        group_size=group_size,
        max_new_tokens=max_new_tokens,
        rows=rows,
        seed=seed,
        once=once,
        out=out,
        title=reward or str(recipe),
    )
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if strict and found["warnings"]:
        raise typer.Exit(1)
