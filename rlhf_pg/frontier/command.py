"""``rlhf-pg frontier``: how much reward a unit of KL buys, how near that is to the best possible, and where it breaks."""

from __future__ import annotations

import csv
import json
import os
import platform
import shlex
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from rich.console import Console

from rlhf_pg.config.load import load_config
from rlhf_pg.config.tree import Config
from rlhf_pg.errors import ConfigError, DataError, TrainingError
from rlhf_pg.frontier.assemble import assemble
from rlhf_pg.frontier.figures import frontier_figure
from rlhf_pg.frontier.grid import Cell, plan, write_file
from rlhf_pg.frontier.measured import Measured, ReferenceTable, read_anyone_s, read_reference_table, read_run_points
from rlhf_pg.frontier.reference import sample_reference
from rlhf_pg.frontier.same import check_one_reference
from rlhf_pg.frontier.target import search_coefficient
from rlhf_pg.frontier.work import run_cells
from rlhf_pg.report import write_report
from rlhf_pg.report.data import FrontierReport, Other, OtherPoint, Sample, SampleSet
from rlhf_pg.report.run import completion_of, decoder_of, rows_of
from rlhf_pg.tracking import read_table

SAMPLES = 512  # of the reference, a held-out prompt
SAMPLES_SHOWN = 8  # prompts a run


def frontier(
    recipe: str | None,
    overrides: Sequence[str],
    out: Path,
    *,
    vary: Sequence[str] = (),
    seeds: int = 1,
    gold: str | None = None,
    runs: Sequence[Path] = (),
    table: Path | None = None,
    others: Path | None = None,
    samples: int | None = None,
    jobs: int = 1,
    target_kl: float | None = None,
    console: Console | None = None,
) -> FrontierReport:
    """Plan a grid of runs, train what is missing, measure, and write the report.

    Repeating the call goes on where it stopped and repeats nothing.

    Args:
        recipe: of the runs; None with ``runs`` or ``table``.
        overrides: keys of every run.
        out: the frontier's folder: ``frontier.parquet``, ``.csv``, ``.json``, ``.png``, ``.svg`` and ``report.html``.
        vary: ``kl.coef=0.1,0.05``, ``recipe=rloo,ppo``.
        seeds: runs of each combination.
        gold: a reward that is measured and never trained on.
        runs: folders of runs that are there, in place of a recipe.
        table: a table of anyone's scores, in place of a recipe: see ``measured.read_anyone_s``.
        others: a csv of further points: name, kl, reward, and a label if wanted.
        samples: of the reference, a held-out prompt; 0 for none; None for 512. Not with ``table``.
        jobs: runs at a time.
        target_kl: nats; finds ``kl.coef`` for it, unless the grid varies it.
        console: where progress is shown.

    Raises:
        ConfigError: the grid cannot work, or it is not said what to measure.
        TrainingError: no run could be finished.
    """
    if sum([recipe is not None, bool(runs), table is not None]) != 1:
        raise ConfigError("give one of RECIPE, --runs DIR and --table FILE: what the frontier is of")
    if recipe is None and (vary or gold is not None or overrides or seeds != 1 or jobs != 1):
        raise ConfigError(
            "--vary, --seeds, --gold, --jobs and a.b=c belong to a RECIPE: runs and tables that are there cannot change"
        )
    if table is not None and samples is not None:
        raise ConfigError(f"--samples {samples}: a table brings its own samples of the reference; leave it out")
    samples = SAMPLES if samples is None else samples
    if samples == 1:
        raise ConfigError(
            "--samples 1: the optimum needs two samples of the reference a prompt; give more, or 0 for none"
        )
    console = console or Console()
    began = time.monotonic()
    reference: ReferenceTable | None = None
    sets: list[SampleSet] = []
    config: Config | None = None
    failed: list[str] = []
    if table is not None:
        measured, reference = read_anyone_s(table)
    else:
        if recipe is not None:
            cells, failed = _train(recipe, overrides, out, vary, seeds, gold, jobs, target_kl, console)
            known = [(cell.run_dir, cell.settings, cell.command) for cell in cells]
            config = cells[0].config
        else:
            runs = list({run.resolve(): run for run in runs}.values())
            configs = [load_config(run / "config.yaml") for run in runs]
            check_one_reference([(one.run.name, one) for one in configs])
            known = [(run, _differing(one, configs), _again(run, one)) for run, one in zip(runs, configs, strict=True)]
            config = configs[0]
        by_run = [read_run_points(*one) for one in known]
        names = Counter(points[0].run for points in by_run)
        # Two runs of one name, of different folders, are two lines.
        measured = [
            one if names[one.run] == 1 else replace(one, run=str(one.folder)) for points in by_run for one in points
        ]
        if samples:
            sample_reference(config, samples, out, console.print)
            reference = read_reference_table(out)
        sets = [_samples(one, reference) for one in {one.run: one for one in measured}.values()]
    out.mkdir(parents=True, exist_ok=True)
    console.print(f"Measured {len(measured)} points; now the optimum and the efficiency of each.")
    report = assemble(
        measured,
        reference,
        title="Reward against KL",
        about=_about(config, reference, measured),
        reward_name="reward" if config is None else _reward_name(config),
        others=[] if others is None else read_others(others),
        samples=sets,
        target_kl=target_kl,
    )
    about = dict(report.about) | {"seconds of this call": f"{time.monotonic() - began:.0f}"}
    about |= {"runs left out, because they failed": ", ".join(failed)} if failed else {}
    report = replace(report, about=about)
    write_files(report, out)
    return report


def _train(
    recipe: str,
    overrides: Sequence[str],
    out: Path,
    vary: Sequence[str],
    seeds: int,
    gold: str | None,
    jobs: int,
    target_kl: float | None,
    console: Console,
) -> tuple[list[Cell], list[str]]:
    """Get the runs done; those that failed are left out and named."""
    if target_kl is not None and not any(text.startswith("kl.coef=") for text in vary):
        if vary:
            raise ConfigError("--target-kl searches kl.coef for one recipe; leave --vary out, or vary kl.coef yourself")
        search = search_coefficient(
            recipe, overrides, out, target_kl, seeds=seeds, jobs=jobs, gold=gold, console=console
        )
        console.print(f"The search for {target_kl:g} nats: {search.reason}.")
        return [cell for trial in search.trials for cell in trial.cells], search.failed
    cells = plan(recipe, overrides, vary, seeds, out, gold)
    console.print(f"{len(cells)} runs: {', '.join(cell.name for cell in cells)}.", soft_wrap=True, highlight=False)
    outcomes = run_cells(cells, jobs, console)
    done = [outcome.cell for outcome in outcomes if outcome.state != "failed"]
    if not done:
        raise TrainingError(f"no run of {out} could be finished; its logs are in {out / 'logs'}")
    return done, [outcome.cell.name for outcome in outcomes if outcome.state == "failed"]


def write_files(report: FrontierReport, out: Path) -> None:
    """``frontier.parquet``, ``.csv``, ``.json``, ``.png``, ``.svg`` and ``report.html``."""
    rows = [
        {name: json.dumps(value) if isinstance(value, Mapping) else value for name, value in point.items()}
        for point in report.points
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    pyarrow.parquet.write_table(
        pyarrow.table({name: [row.get(name) for row in rows] for name in names}), out / "frontier.parquet"
    )
    with (out / "frontier.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [name for name in names if name != "config"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    whole = {name: value for name, value in asdict(report).items() if name != "samples"}
    write_file(out / "frontier.json", json.dumps(whole, indent=1, default=str) + "\n")
    frontier_figure(report, out)
    write_report(report, out / "report.html")


def read_others(path: Path) -> list[Other]:
    """Further series from a csv with the columns ``name``, ``kl``, ``reward``, and ``label`` if wanted.

    Raises:
        DataError: the file cannot be read, or a row has no number where one belongs.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        series: dict[str, list[OtherPoint]] = {}
        for row in rows:
            point: OtherPoint = {"kl": float(row["kl"]), "reward": float(row["reward"])}
            if row.get("label"):
                point["label"] = row["label"]
            series.setdefault(row["name"], []).append(point)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"--others {path} must be a csv with the columns name, kl, reward: {error!r}") from error
    return [{"name": name, "points": points} for name, points in series.items()]


def _samples(one: Measured, reference: ReferenceTable | None) -> SampleSet:
    """A run's completions at its last evaluation, by token, beside the reference's of the same prompts."""
    assert one.folder is not None
    assert one.step is not None
    decode, _ = decoder_of(one.folder, load_config(one.folder / "config.yaml").model_dump(mode="json"))
    first: dict[int, dict[str, Any]] = {}
    for row in rows_of(read_table(one.folder / "evaluations", one.step)):
        first.setdefault(row["prompt_index"], row)
    samples: list[Sample] = []
    for index, row in list(first.items())[:SAMPLES_SHOWN]:
        sample: Sample = {"prompt": row["prompt"], "policy": completion_of(row, decode)}
        if reference is not None and reference.texts is not None:
            place = reference.rows([str(index)])[0]
            score = float(reference.reward[place, 0])
            sample["reference"] = {"text": str(reference.texts[place, 0]), "reward": score if score == score else None}
        samples.append(sample)
    return {"name": one.run, "step": one.step, "samples": samples}


def _again(run: Path, config: Config) -> str:
    """The command that trains a run anew."""
    return shlex.join(["rlhf-pg", "train", str(run / "config.yaml"), f"run.name={config.run.name}-again"])


def _differing(config: Config, configs: Sequence[Config]) -> dict[str, str]:
    """The settings in which runs that are there differ: those in the name that a frontier gave it, else the algorithm's."""
    named = dict(part.partition("=")[::2] for part in config.run.name.split(","))
    if named.pop("seed", None) and all(named.values()):
        return named
    trees = [one.model_dump(mode="json") for one in configs]
    own = config.model_dump(mode="json")
    return {
        f"{section}.{key}": str(value)
        for section in ("kl", "advantage", "loss", "update", "rollout")
        for key, value in own[section].items()
        if any(tree[section][key] != value for tree in trees)
    }


def _reward_name(config: Config) -> str:
    names = [entry.name or entry.function or entry.combine for entry in config.reward.functions if entry.weight]
    return " + ".join(names)


def _about(config: Config | None, reference: ReferenceTable | None, measured: Sequence[Measured]) -> dict[str, str]:
    about = {"command": shlex.join(["rlhf-pg", *sys.argv[1:]])}
    if config is not None:
        about |= {"policy": config.policy.model, "prompts": config.data.eval_source or config.data.source}
    if measured:
        about["held out"] = f"{len(measured[-1].prompts)} prompts, {measured[-1].reward.shape[1]} samples each"
    if reference is not None:
        about["reference"] = f"{len(reference.prompts)} prompts, {reference.reward.shape[1]} samples each"
    versions = ", ".join(f"{name} {version(name)}" for name in ("rlhf-pg", "torch", "transformers"))
    return about | {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": versions,
        "date": time.strftime("%Y-%m-%d"),
    }
