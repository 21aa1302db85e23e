"""From what was measured to what the report shows: points, best of n, the optimum, efficiency, fits, a choice."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from rlhf_pg.errors import DataError
from rlhf_pg.evaluate.choosing import closest, hypervolume, pareto
from rlhf_pg.evaluate.clusters import cluster_numbers, mean_and_error
from rlhf_pg.evaluate.optimum import efficiency
from rlhf_pg.evaluate.overoptimisation import Overoptimisation
from rlhf_pg.frontier.compared import best_of_rows, fit_row, gold_fits, number, optimum_rows
from rlhf_pg.frontier.measured import Floats, Measured, ReferenceTable, row_means
from rlhf_pg.report.data import Closest, FrontierReport, Other, Point, SampleSet


def assemble(
    measured: Sequence[Measured],
    reference: ReferenceTable | None,
    *,
    title: str,
    about: Mapping[str, str],
    reward_name: str = "reward",
    gold_name: str = "gold reward",
    others: Sequence[Other] = (),
    samples: Sequence[SampleSet] = (),
    target_kl: float | None = None,
) -> FrontierReport:
    """All that is said of a frontier.

    Args:
        measured: policies by step, a run's steps in order.
        reference: the reference's samples; without them there is neither best of n nor optimum nor efficiency.
        title: of the report.
        about: label to text.
        reward_name: of the proxy.
        gold_name: of the gold reward.
        others: further series.
        samples: of runs, by name.
        target_kl: the KL that is wanted, nats.
    """
    points = [_point(one, reference) for one in measured]
    ends = list({point["run"]: point for point in points}.values())
    kls, rewards = [point["kl"] for point in ends], [number(point["reward"]) for point in ends]
    largest = max([point["kl"] for point in points], default=1.0)
    has_gold = any(point.get("gold") is not None for point in points)
    fits = gold_fits(measured, points, reference)
    start = None if reference is None else float(np.nanmean(row_means(reference.reward)))
    return FrontierReport(
        title=title,
        headline=_headline(ends),
        about=about,
        points=points,
        best_of_n=[] if reference is None else best_of_rows(reference),
        optimum=[] if reference is None else optimum_rows(reference, largest),
        others=others,
        fits=[fit_row(name, fit) for name, fit in fits.items()],
        verdict=" ".join(f"{name}: {fit.verdict}" for name, fit in fits.items()),
        audit="" if has_gold else _audit(points),
        pareto=[ends[place]["run"] for place in pareto(kls, rewards)] if ends else [],
        hypervolume=None if start is None or not ends else hypervolume(kls, rewards, kl=max(kls), reward=start),
        closest=None if target_kl is None or np.isnan(rewards).all() else _closest(ends, kls, rewards, target_kl),
        samples=samples,
        reward_name=reward_name,
        gold_name=gold_name,
        absent=_absent(reference, has_gold, fits),
    )


def _point(one: Measured, reference: ReferenceTable | None) -> Point:
    numbers = cluster_numbers(one.prompts, len(one.prompts))

    def mean(table: Floats | None) -> tuple[float | None, float | None]:
        if table is None or np.isnan(table).all():
            return None, None
        rows = ~np.isnan(table).all(1)
        clusters = np.unique(numbers[rows], return_inverse=True)[1]
        value, error = mean_and_error(row_means(table)[rows], clusters)
        return value, error if math.isfinite(error) else None

    kl, kl_error = mean(one.kl)
    if kl is None:
        raise DataError(f"{one.run} has no KL; give the sequence KL of its completions, nats")
    reward, reward_error = mean(one.reward)
    gold, gold_error = mean(one.gold)
    point: Point = {
        "run": one.run,
        "kl": kl,
        "kl_stderr": kl_error,
        "kl_k1": mean(one.kl_k1)[0],
        "kl_k1_stderr": mean(one.kl_k1)[1],
        "reward": reward,
        "reward_stderr": reward_error,
        "gold": gold,
        "gold_stderr": gold_error,
        "seed": one.seed,
        "step": one.step,
        "settings": one.settings,
        "disagreement": one.disagreement,
        "win_rate": one.win_rate,
        "command": one.command,
        "config": one.config,
    }
    if one.ids is not None:
        point |= text_figures(one.ids)
        point["kl_token"] = float(np.nansum(one.kl)) / max(sum(len(ids) for ids in one.ids), 1)
    if reference is not None and reward is not None:
        rows = reference.rows(one.keys)
        found = efficiency(
            one.reward,
            one.kl,
            reference.reward[rows],
            prompts=one.prompts,
            completions=None if reference.ids is None else reference.ids[rows].tolist(),
            resamples=1000,
        )
        point |= {"efficiency": found.value, "efficiency_low": found.low, "efficiency_high": found.high}
        point["efficiency_reason"] = found.reason
    return point


def text_figures(completions: Sequence[Sequence[int]]) -> Point:
    """Mean length in tokens; repetition, the mean share of a completion's 3-grams that stood before in it; and distinct, the
    share of different 2-grams among all 2-grams of all completions (Li et al. 2016, arXiv 1510.03055)."""
    repeated = []
    pairs: Counter[tuple[int, ...]] = Counter()
    for ids in completions:
        threes = list(zip(ids, ids[1:], ids[2:], strict=False))
        repeated.append(1 - len(set(threes)) / len(threes) if threes else 0.0)
        pairs.update(pairwise(ids))
    figures: dict[str, Any] = {
        "length": float(np.mean([len(ids) for ids in completions])),
        "repetition": float(np.mean(repeated)),
        "distinct": len(pairs) / max(sum(pairs.values()), 1),
    }
    return figures  # type: ignore[return-value]  # a part of a Point


def _closest(ends: Sequence[Point], kls: Sequence[float], rewards: Sequence[float], target: float) -> Closest:
    point = ends[closest(kls, rewards, target)]
    return {
        "target_kl": target,
        "run": point["run"],
        "kl": point["kl"],
        "reward": point["reward"],
        "step": point.get("step"),
        "command": point.get("command", ""),
    }


def _headline(ends: Sequence[Point]) -> str:
    """The run with the highest efficiency at its end; where none is known, the one with the most reward."""
    told = [point for point in ends if point.get("efficiency") is not None]
    if not told:
        known = [point for point in ends if point["reward"] is not None]
        top = max(known, key=lambda point: number(point["reward"]), default=None)
        return f"{top['run']} ends with a reward of {number(top['reward']):.3f} at {top['kl']:.2f} nats." if top else ""
    best = max(told, key=lambda point: number(point.get("efficiency")))
    low, high = number(best.get("efficiency_low")), number(best.get("efficiency_high"))
    return (
        f"{best['run']} has {number(best.get('efficiency')):.0%} [{low:.0%}, {high:.0%}] of the gain in reward that any policy "
        f"can have at its KL of {best['kl']:.2f} nats."
    )


def _audit(points: Sequence[Point]) -> str:
    """What can be said of over-optimisation without a gold reward: how the texts change with the KL."""
    if not points:
        return ""
    low, high = (choose(points, key=lambda point: point["kl"]) for choose in (min, max))
    words = {"length": "tokens", "repetition": "of 3-grams repeated", "distinct": "of 2-grams distinct"}
    words["disagreement"] = "disagreement in the ensemble"
    changes = [
        f"{low[name]:.3g} to {high[name]:.3g} {word}"  # type: ignore[literal-required]
        for name, word in words.items()
        if low.get(name) is not None and high.get(name) is not None
    ]
    return (
        "Without a gold reward nobody can say at which KL the proxy stops meaning what it says. This is an audit: from "
        f"{low['kl']:.2f} to {high['kl']:.2f} nats, {', '.join(changes) or 'nothing else was measured'}. Read the samples."
    )


def _absent(reference: ReferenceTable | None, has_gold: bool, fits: Mapping[str, Overoptimisation]) -> dict[str, str]:
    reasons = {}
    if reference is None:
        reasons["best_of_n"] = reasons["optimum"] = "There are no samples of the reference."
    if not has_gold:
        reasons["fits"] = "No gold reward was given."
    elif reference is None or reference.gold is None:
        reasons["fits"] = "A fit is of the gain in gold over samples of the reference, and there is no gold of those."
    elif not fits:
        reasons["fits"] = "A fit needs gold at three different KLs above 0."
    return reasons
