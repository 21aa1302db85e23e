"""What a reward model is trained to do: the loss of each row of a batch, as pure functions of its scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

Objective = Literal["bradley_terry", "regression", "classification"]
Losses = Callable[[Tensor, Mapping[str, Tensor]], Tensor]


def bradley_terry_losses(scores: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Cross-entropy of who was preferred, with P(chosen is preferred) = sigmoid(r(chosen) - r(rejected) - margin).

    ``loss = -t log sigmoid(d) - (1 - t) log sigmoid(-d)``, ``d = r(chosen) - r(rejected) - margin``

    Args:
        scores: (N, 2) r(chosen) and r(rejected).
        batch: ``target`` t (N,), 1 for a preference, 0.5 for a tie, the share of the annotators in between; ``margin``
            (N,), in units of r, 0 for none.

    Returns:
        (N,) nats.

    Source: Bradley & Terry (1952); Ouyang et al., arXiv 2203.02155, eq. 1; the margin: Touvron et al., arXiv
    2307.09288, eq. 2.
    """
    d = scores[:, 0] - scores[:, 1] - batch["margin"]
    return -(batch["target"] * logsigmoid(d) + (1 - batch["target"]) * logsigmoid(-d))


def regression_losses(scores: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Squared error: ``(r - target)^2``.

    Args:
        scores: (N, 1) r.
        batch: ``target`` (N,).

    Returns:
        (N,) in the label's unit, squared.
    """
    return (scores[:, 0] - batch["target"]).square()


def classification_losses(scores: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Cross-entropy of the softmax: ``-log softmax(scores)[target]``.

    Args:
        scores: (N, K) a logit for each label.
        batch: ``target`` (N,), the label's number.

    Returns:
        (N,) nats.
    """
    return cross_entropy(scores, batch["target"].long(), reduction="none")


LOSSES: Mapping[Objective, Losses] = {
    "bradley_terry": bradley_terry_losses,
    "regression": regression_losses,
    "classification": classification_losses,
}
