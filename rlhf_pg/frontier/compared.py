"""What runs are compared with: best of n, the optimum, and the fits of gold against KL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from rlhf_pg.errors import DataError
from rlhf_pg.evaluate.best_of import best_of_n, kl_bound
from rlhf_pg.evaluate.optimum import optimal_frontier
from rlhf_pg.evaluate.overoptimisation import Overoptimisation, fit_overoptimisation
from rlhf_pg.frontier.measured import Measured, ReferenceTable, row_means
from rlhf_pg.report.data import BestOfN, Fit, Optimum, Point

_CURVE = np.geomspace(0.02, 1.0, 40)  # shares of the largest KL at which a curve is drawn


def best_of_rows(reference: ReferenceTable) -> list[BestOfN]:
    """Best of 1, 2, 4, ... up to half of the samples, which leaves the others as opponents.

    Prompts with fewer than two scorable samples, which the reward does not speak of, have no say in how far it goes.
    """
    counts = (~np.isnan(reference.reward)).sum(1)
    most = int(counts[counts >= 2].min(initial=reference.reward.shape[1]))
    sizes = [2**power for power in range(20) if 2**power <= max(most // 2, 1)]
    found: list[BestOfN] = []
    for n in sizes:
        best = best_of_n(reference.reward, n, reference.gold, reference.prompts)
        found.append(
            {
                "n": n,
                "kl_bound": kl_bound(n),
                "reward": best.reward,
                "reward_stderr": _finite(best.reward_stderr),
                "gold": _finite(best.gold),
                "gold_stderr": _finite(best.gold_stderr),
                "win_rate": _finite(best.win_rate),
            }
        )
    return found


def optimum_rows(reference: ReferenceTable, largest: float) -> list[Optimum]:
    """The ceiling, up to the largest KL of the runs, as far as the samples reach: N of them show at most log N nats."""
    end = min(largest * 1.05, math.log(reference.reward.shape[1]))
    kls = [float(kl) for kl in end * np.linspace(0.05, 1, 24) ** 2]
    ids = None if reference.ids is None else reference.ids.tolist()
    points = optimal_frontier(reference.reward, kls=kls, prompts=reference.prompts, completions=ids)
    return [
        {
            "beta": point.beta,
            "kl": point.kl,
            "reward": point.reward,
            "low": _finite(point.low),
            "high": _finite(point.high),
            "ess": point.ess,
            "drawn": point.drawn,
            "reason": point.reason,
        }
        for point in points
        if math.isfinite(point.reward) and math.isfinite(point.beta)
    ]


def gold_fits(
    measured: Sequence[Measured], points: Sequence[Point], reference: ReferenceTable | None
) -> dict[str, Overoptimisation]:
    """Fits of gold against KL, of best of n and of the runs that differ in nothing but ``kl.coef`` and seed.

    What cannot be fitted is left out.
    """
    if reference is None or reference.gold is None:
        return {}
    start = float(np.nanmean(row_means(reference.gold)))
    groups: dict[str, list[int]] = {}
    for place, one in enumerate(measured):
        if points[place].get("gold") is not None:
            groups.setdefault(_curve_of(one), []).append(place)
    fits = {}
    for name, places in groups.items():
        own = dict(zip(reference.keys, row_means(reference.gold), strict=True))
        tables = [_gold_by_key(measured[place]) for place in places]
        # Policies may have been measured on the prompts in another order, or on some of them.
        keys = [key for key in own if all(key in table for table in tables)]
        by_prompt = np.array([[table[key] - own[key] for table in tables] for key in keys])
        texts = dict(zip(reference.keys, reference.prompts, strict=True))
        try:
            fits[name] = fit_overoptimisation(
                [max(points[place]["kl"], 0.0) for place in places],
                [number(points[place].get("gold")) for place in places],
                reference=start,
                by_prompt=by_prompt,
                prompts=[texts[key] for key in keys],
                runs=[measured[place].run for place in places],
            )
        except DataError:
            continue
    best = [row for row in best_of_rows(reference) if row["n"] > 1]
    if len(best) >= 3:
        kls, golds = [row["kl_bound"] for row in best], [number(row.get("gold")) for row in best]
        errors = [number(row.get("gold_stderr")) for row in best]
        # Where gold is the same for all that the reference writes, there is no error to fit with.
        with suppress(DataError):
            fits["best of n"] = fit_overoptimisation(kls, golds, errors, "bon", reference=start)
    return fits


def fit_row(name: str, fit: Overoptimisation) -> Fit:
    """A fit as the report shows it."""
    formula = "R(d) = d (α − β d)" if fit.kind == "bon" else "R(d) = d (α − β log d)"
    curve = [float(kl) for kl in _CURVE * fit.largest_kl]
    return {
        "name": name,
        "formula": f"{formula}, d = √KL",
        "parameters": [
            {"name": "α", "value": fit.alpha, "low": fit.alpha_low, "high": fit.alpha_high},
            {"name": "β", "value": fit.beta, "low": fit.beta_low, "high": fit.beta_high},
        ],
        "curve": [{"kl": kl, "value": float(value)} for kl, value in zip(curve, fit.gold_at(curve), strict=True)],
        "measure": "gold",
        "peak_kl": None if fit.peak_kl is None else _finite(fit.peak_kl),
        "peak_low": _finite(fit.peak_low),
        "peak_high": _finite(fit.peak_high),
    }


def _curve_of(one: Measured) -> str:
    """The name of what a run is a point of: all that was varied but the coefficient, which moves along the curve."""
    settings = {key: value for key, value in one.settings.items() if key != "kl.coef"}
    return ", ".join(str(value) if key == "recipe" else f"{key}={value}" for key, value in settings.items()) or "RL"


def _gold_by_key(one: Measured) -> dict[str, float]:
    assert one.gold is not None
    return dict(zip(one.keys, row_means(one.gold).tolist(), strict=True))


def number(value: float | None) -> float:
    """NaN for what was not measured."""
    return math.nan if value is None else value


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
