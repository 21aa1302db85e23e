"""The command line. Each command imports what it runs once it runs, so that ``--help`` needs no torch."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from rlhf_pg.config.load import check_complete, find_recipe, load_config, recipe_names
from rlhf_pg.config.show import json_schema, show
from rlhf_pg.errors import ConfigError, RlhfPgError
from rlhf_pg.reward_cli import reward_app

app = typer.Typer(
    name="rlhf-pg",
    help="Fine-tune a causal language model by policy gradient against a reward.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Look at configurations.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(reward_app, name="reward")

Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or a name that `rlhf-pg recipes` lists.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="a.b=c", help="Keys to change, such as kl.coef=0.1; the later of two wins.", show_default=False
    ),
]


def main() -> None:
    """Run the command line; an error about the user's input is told in plain words, and the exit code is 2."""
    try:
        app()
    except RlhfPgError as error:
        if os.environ.get("RLHF_PG_TRACEBACK") == "1":
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


@app.command()
def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="A YAML file, or a name that `rlhf-pg recipes` lists. Left out with --resume.",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes to start on this machine.")] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, sample and score a little, train nothing.")
    ] = False,
    resume: Annotated[Path | None, typer.Option(metavar="RUN_DIR", help="Go on with a run where it stopped.")] = None,
) -> None:
    """Fine-tune a model by a recipe."""
    changes = list(overrides or ())
    if resume is not None:
        if recipe is not None and "=" not in recipe:
            raise ConfigError(f"--resume takes the recipe from {resume}, and {recipe!r} was given too; leave it out")
        if dry_run:
            raise ConfigError("--resume and --dry-run exclude each other; leave one out")
        changes = [recipe, *changes] if recipe is not None else changes
        if processes > 1:
            _launch(processes, ["--resume", str(resume), *changes])
            return
        from rlhf_pg.trainer import resume as resume_run

        resume_run(resume, changes)
        return
    if recipe is None:
        raise ConfigError("no recipe was given: rlhf-pg train RECIPE, or rlhf-pg train --resume RUN_DIR")
    config = load_config(recipe, changes)
    # Told before torch is imported, and once however many processes there will be.
    check_complete(config)
    if dry_run:
        if processes > 1:
            raise ConfigError("--dry-run runs in one process; leave --processes out")
        from rlhf_pg.dry_run import dry_run as run_dry

        run_dry(config)
    elif processes > 1:
        _launch(processes, [recipe, *changes])
    else:
        from rlhf_pg.trainer import train as train_model

        train_model(config)


def _launch(processes: int, arguments: list[str]) -> None:
    """Start ``train`` with these arguments in several processes."""
    if "LOCAL_RANK" in os.environ:
        raise ConfigError("--processes starts processes, and this one was started by a launcher already; leave it out")
    from rlhf_pg.distributed import launch

    launch(processes, arguments)


@app.command()
def evaluate(
    target: Annotated[
        str, typer.Argument(metavar="RUN_OR_MODEL", help="A run's folder, or a model's folder or hub id.")
    ],
    overrides: Overrides = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="Prompts, reward and sampling; a run brings its own.")
    ] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="MODEL", help="What the KL is measured against, if not the recipe's.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there too.")
    ] = None,
) -> None:
    """Measure a model on held-out prompts: reward, KL, win rate."""
    from rich.console import Console
    from rich.table import Table

    from rlhf_pg.evaluate import evaluate_model

    figures = evaluate_model(target, recipe, list(overrides or ()), reference)
    table = Table("figure", "value", title=target)
    for name, value in figures.items():
        table.add_row(name, f"{value:.4g}")
    Console().print(table)
    if json_file is not None:
        json_file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


@app.command()
def frontier(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="RECIPE", help="Of the runs. Left out with --runs or --table.", show_default=False),
    ] = None,
    overrides: Overrides = None,
    vary: Annotated[
        list[str] | None, typer.Option(metavar="KEY=A,B,C", help="What differs between runs; recipe=rloo,ppo too.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each combination.")] = 1,
    gold: Annotated[
        str | None, typer.Option(metavar="REWARD", help="A reward that is measured and never trained on.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Runs, figures and report.html.")] = Path("frontier"),
    runs: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="A run that is there, in place of RECIPE; repeat it.")
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Anyone's scores, in place of RECIPE: prompt, policy, kl, reward a row."),
    ] = None,
    others: Annotated[
        Path | None, typer.Option(metavar="CSV", help="Further points on the plot: name, kl, reward, label.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=0, help="Of the reference, a held-out prompt; 0: none. [default: 512]")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    target_kl: Annotated[
        float | None, typer.Option(min=0.0, help="Find the kl.coef that ends at this KL, nats, by bisection.")
    ] = None,
) -> None:
    """How much reward a unit of KL buys, how near that is to the best possible, and where it breaks."""
    changes = list(overrides or ())
    if recipe is not None and "=" in recipe:
        changes, recipe = [recipe, *changes], None
    from rlhf_pg.frontier.command import frontier as build

    found = build(
        recipe,
        changes,
        out,
        vary=vary or (),
        seeds=seeds,
        gold=gold,
        runs=runs or (),
        table=table,
        others=others,
        samples=samples,
        jobs=jobs,
        target_kl=target_kl,
    )
    for line in (found.headline, found.verdict, found.audit):
        if line:
            typer.echo(line)
    typer.echo(f"The report is {out / 'report.html'}.")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder; the run may still go on.")],
) -> None:
    """Write RUN/report.html: curves, time, and samples by token, in one page that opens offline."""
    from rlhf_pg.report import report_run

    typer.echo(report_run(run))


@app.command()
def quickstart(overrides: Overrides = None) -> None:
    """A whole run in a small embedded world: no network, no GPU, a few minutes."""
    from rlhf_pg.quickstart.run import quickstart as run_quickstart

    run_quickstart(list(overrides or ()))


@app.command()
def recipes() -> None:
    """List the recipes that come with the package."""
    names = recipe_names()
    for name in names:
        typer.echo(f"{name:<{max(map(len, names))}}  {_headline(find_recipe(name))}")


def _headline(recipe: Path) -> str:
    """The first line of a recipe's header, after the one that is for editors."""
    lines = (line for line in recipe.read_text(encoding="utf-8").splitlines() if line.startswith("# "))
    return next((line[2:] for line in lines if not line.startswith("# yaml-language-server")), "")


@config_app.command("show")
def config_show(recipe: Recipe, overrides: Overrides = None) -> None:
    """Print a recipe with every default filled in, and what each key means."""
    typer.echo(show(load_config(recipe, list(overrides or ()))), nl=False)


@config_app.command("schema")
def config_schema(
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write it; left out, it is printed.")
    ] = None,
) -> None:
    """Write the JSON schema that recipes name, so that editors complete their keys."""
    text = json.dumps(json_schema(), indent=2)
    if out is None:
        typer.echo(text)
    else:
        out.write_text(text + "\n", encoding="utf-8")
