"""``--target-kl``: the KL coefficient whose runs end at a wanted KL, by bisection over short runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from rlhf_pg.config.load import load_config
from rlhf_pg.errors import ConfigError, TrainingError
from rlhf_pg.evaluate.choosing import next_coefficient
from rlhf_pg.frontier.grid import Cell, plan
from rlhf_pg.frontier.work import run_cells
from rlhf_pg.tracking import read_metrics

_START = 0.1  # where the recipe has no penalty


@dataclass(frozen=True, slots=True)
class Trial:
    """What a coefficient came to at the end of its runs, averaged over their seeds; NaN where one was not finite."""

    coef: float  # kl.coef, reward units per nat
    kl: float  # held-out sequence KL, nats
    reward: float  # held-out, reward units
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class TargetSearch:
    """How a search ended."""

    trials: tuple[Trial, ...]  # in order
    best: Trial | None  # the nearest to the target; None where no run had a finite KL
    reason: str  # why it ended, in words
    failed: list[str] = field(default_factory=list)  # names of the runs that ended the search


def search_coefficient(
    recipe: str,
    overrides: Sequence[str],
    out: Path,
    target: float,
    *,
    tolerance: float = 0.1,
    most: int = 12,
    seeds: int = 1,
    jobs: int = 1,
    gold: str | None = None,
    console: Console | None = None,
) -> TargetSearch:
    """Train with one ``kl.coef`` after another until the KL at the end of the runs is the wanted one.

    The first coefficient is the recipe's, the next are those of :func:`rlhf_pg.evaluate.choosing.next_coefficient`. Each trial is
    an ordinary run of the frontier, and the rule sees only what was measured: the same call goes on where one that was
    killed stopped.

    Args:
        recipe: as for :func:`rlhf_pg.frontier.grid.plan`.
        overrides: for every run; ``run.steps`` says how short they are, ``kl.coef`` where the search starts.
        out: the frontier's folder.
        target: held-out sequence KL, nats.
        tolerance: found when the KL is within this share of the target.
        most: coefficients tried at most.
        seeds: runs of each coefficient.
        jobs: runs at a time.
        gold: as for ``plan``.
        console: where progress is shown.

    Raises:
        ConfigError: ``kl.coef`` is adaptive, the target is not above 0, or ``plan`` refuses.
        TrainingError: a run of the first coefficient failed; a later one ends the search with what there is.
    """
    kl = load_config(recipe, overrides).kl
    if kl.controller == "adaptive":
        raise ConfigError(
            "kl.controller=adaptive moves kl.coef in each run, so no one value of it leads to a KL; set "
            "kl.controller=fixed, or set kl.target and leave the search out"
        )
    fixed = [override for override in overrides if not override.startswith("kl.coef=")]
    trials: list[Trial] = []
    while True:
        tried = [(trial.coef, trial.kl) for trial in trials]
        step = next_coefficient(tried, target, start=kl.coef or _START, tolerance=tolerance, most=most)
        if step.done or step.beta is None:
            best = next((trial for trial in trials if trial.coef == step.beta), None)
            return TargetSearch(tuple(trials), best, step.reason)
        # Five digits keep names readable, and are more than bisection tells apart.
        coef = float(f"{step.beta:.5g}")
        cells = plan(recipe, fixed, [f"kl.coef={coef!r}"], seeds, out, gold)
        failed = [outcome for outcome in run_cells(cells, jobs, console) if outcome.state == "failed"]
        if failed:
            problem = "; ".join(f"run {outcome.cell.name} {outcome.problem}" for outcome in failed)
            if not trials:
                raise TrainingError(problem)
            known = [trial for trial in trials if math.isfinite(trial.kl)]
            best = min(known, key=lambda trial: abs(trial.kl - target), default=None)
            return TargetSearch(tuple(trials), best, problem, [outcome.cell.name for outcome in failed])
        trials.append(Trial(coef, _end(cells, "eval/kl/sequence"), _end(cells, "eval/reward"), tuple(cells)))


def _end(cells: Sequence[Cell], name: str) -> float:
    """The mean over the runs of a metric of their last step."""
    values = [read_metrics(cell.run_dir)[-1].get(name) for cell in cells]
    return sum(math.nan if value is None else value for value in values) / len(values)
