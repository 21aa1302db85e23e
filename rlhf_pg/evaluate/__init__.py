"""Held-out measurements of a run or of any saved model."""

from rlhf_pg.evaluate.evaluation import Evaluator
from rlhf_pg.evaluate.saved import evaluate_model
from rlhf_pg.evaluate.statistics import clustered_mean, win_rates

__all__ = ["Evaluator", "clustered_mean", "evaluate_model", "win_rates"]
