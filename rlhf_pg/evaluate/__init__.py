"""Held-out measurements of a run or of any saved model, and the mathematics of reward against KL.

Names are imported when they are first used: the functions on arrays need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_pg.evaluate.best_of import BestOfN, best_of_n, exact_best_of_n, kl_bound
    from rlhf_pg.evaluate.choosing import Search, closest, hypervolume, next_coefficient, pareto
    from rlhf_pg.evaluate.evaluation import Evaluator
    from rlhf_pg.evaluate.optimum import Efficiency, OptimumPoint, efficiency, optimal_frontier
    from rlhf_pg.evaluate.overoptimisation import Overoptimisation, fit_overoptimisation
    from rlhf_pg.evaluate.saved import evaluate_model
    from rlhf_pg.evaluate.statistics import clustered_mean, win_rates

_HOMES = {
    "best_of": ("BestOfN", "best_of_n", "exact_best_of_n", "kl_bound"),
    "choosing": ("Search", "closest", "hypervolume", "next_coefficient", "pareto"),
    "evaluation": ("Evaluator",),
    "optimum": ("Efficiency", "OptimumPoint", "efficiency", "optimal_frontier"),
    "overoptimisation": ("Overoptimisation", "fit_overoptimisation"),
    "saved": ("evaluate_model",),
    "statistics": ("clustered_mean", "win_rates"),
}

__all__ = [
    "BestOfN",
    "Efficiency",
    "Evaluator",
    "OptimumPoint",
    "Overoptimisation",
    "Search",
    "best_of_n",
    "closest",
    "clustered_mean",
    "efficiency",
    "evaluate_model",
    "exact_best_of_n",
    "fit_overoptimisation",
    "hypervolume",
    "kl_bound",
    "next_coefficient",
    "optimal_frontier",
    "pareto",
    "win_rates",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"rlhf_pg.evaluate.{module}"), name)
    raise AttributeError(f"module 'rlhf_pg.evaluate' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted({*globals(), *__all__})
