"""What a trained reward model's scores of held-out rows say, as one table that can be written as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from reward_models.training.fitting import Example
from reward_models.training.objectives import Objective
from reward_models.training.statistics import Calibration, calibration, share_interval, spread
from rlhf_pg.ops.statistics import pearson, spearman


def report(objective: Objective, rows: Sequence[Example], scores: Tensor, labels: Sequence[str]) -> dict[str, Any]:
    """The figures of an objective. All rows count alike, whatever their weights in training.

    Args:
        objective: what the model was trained for.
        rows: N held-out rows, at least one.
        scores: (N, 2) of chosen and rejected, or (N, labels).
        labels: a classification's names.

    Returns:
        Nested figures; None where one cannot be told.
    """
    scores = scores.double()
    if objective == "bradley_terry":
        found = _of_pairs(rows, scores)
    elif objective == "regression":
        found = _of_numbers(rows, scores[:, 0])
    else:
        found = _of_classes(rows, scores, labels)
    plain: dict[str, Any] = _plain({"objective": objective, "rows": len(rows), **found})
    return plain


def _of_pairs(rows: Sequence[Example], scores: Tensor) -> dict[str, Any]:
    """Ties of the data count in the log loss alone; equal scores count as half right."""
    d, target = scores[:, 0] - scores[:, 1], torch.tensor([row.target for row in rows], dtype=torch.float64)
    clear = target > 0.5
    right = (d > 0).double() + 0.5 * (d == 0).double()
    lengths = torch.tensor([[len(text) for text in row.texts] for row in rows], dtype=torch.float64)
    longer = lengths[:, 0] - lengths[:, 1]
    groups = [row.group or f"\0{number}" for number, row in enumerate(rows)]
    sure = _calibrated(d.abs()[clear].sigmoid(), right[clear], 0.5)
    return {
        "accuracy": _share(right, groups, clear),
        "log_loss": float(-(target * logsigmoid(d) + (1 - target) * logsigmoid(-d)).mean()),
        "log_loss_of_chance": math.log(2),
        "ties": int((~clear).sum()),
        "calibration": sure,
        "scores": {"chosen": spread(scores[:, 0]), "rejected": spread(scores[:, 1]), "difference": spread(d)},
        "length": {
            **_length(scores.flatten(), lengths.flatten()),
            "chosen_longer": _share(right, groups, clear & (longer > 0)),
            "rejected_longer": _share(right, groups, clear & (longer < 0)),
            "same_length": _share(right, groups, clear & (longer == 0)),
            "shorter_is_chosen": _mean((longer[clear] < 0).double() + 0.5 * (longer[clear] == 0).double()),
        },
    }


def _of_numbers(rows: Sequence[Example], scores: Tensor) -> dict[str, Any]:
    target = torch.tensor([row.target for row in rows], dtype=torch.float64)
    squared, varies = float((scores - target).square().mean()), float(target.var(correction=0))
    return {
        "mse": squared,
        "r2": 1 - squared / varies if varies > 0 else None,
        "pearson": pearson(scores, target),
        "spearman": spearman(scores, target),
        "scores": {"score": spread(scores), "label": spread(target)},
        "length": _length(scores, _lengths(rows)),
    }


def _of_classes(rows: Sequence[Example], scores: Tensor, labels: Sequence[str]) -> dict[str, Any]:
    target = torch.tensor([int(row.target) for row in rows])
    confidence, said = scores.softmax(1).max(1)
    right = (said == target).double()
    groups = [row.group or f"\0{number}" for number, row in enumerate(rows)]
    everything = torch.ones_like(right, dtype=torch.bool)
    log_odds = scores[:, -1] - scores[:, :-1].logsumexp(1)
    return {
        "accuracy": _share(right, groups, everything),
        "accuracy_of_the_commonest": float(target.bincount().max()) / len(rows),
        "log_loss": float(-scores.log_softmax(1).gather(1, target[:, None]).mean()),
        "classes": {
            name: {
                "rows": int((target == number).sum()),
                "recall": _mean(right[target == number]),
                "precision": _mean(right[said == number]),
                "log_odds": spread(log_odds[target == number]) if (target == number).any() else None,
            }
            for number, name in enumerate(labels)
        },
        "log_odds_of": labels[-1],
        "calibration": _calibrated(confidence, right, 1 / len(labels)),
        "length": _length(log_odds, _lengths(rows)),
    }


def _lengths(rows: Sequence[Example]) -> Tensor:
    return torch.tensor([len(row.texts[0]) for row in rows], dtype=torch.float64)


def _length(scores: Tensor, lengths: Tensor) -> dict[str, Any]:
    """How the score goes with the length in tokens."""
    return {"pearson": pearson(scores, lengths), "spearman": spearman(scores, lengths), "mean_tokens": _mean(lengths)}


def _calibrated(confidence: Tensor, right: Tensor, low: float) -> dict[str, Any]:
    found: Calibration = calibration(confidence, right, low)
    return {"error": found.error, "bins": len(found.counts), **asdict(found)}


def _share(right: Tensor, groups: Sequence[str], rows: Tensor) -> dict[str, Any]:
    share, low, high = share_interval(right[rows], [groups[row] for row in rows.nonzero().flatten().tolist()])
    return {"share": share, "low": low, "high": high, "rows": int(rows.sum())}


def _mean(values: Tensor) -> float:
    return float(values.double().mean()) if len(values) else math.nan


def _plain(value: Any) -> Any:
    """NaN is no JSON: None in its place."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
