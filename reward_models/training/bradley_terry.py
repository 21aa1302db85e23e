"""Bradley-Terry training of a model in memory on whole texts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from torch.nn.functional import logsigmoid

from reward_models.training.fitting import Example, FitOptions, fit
from reward_models.training.texts import check_padding, encode
from rlhf_pg.errors import DataError, ModelError


def train_bradley_terry(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    *,
    epochs: float = 1.0,
    batch_size: int = 32,
    learning_rate: float = 1e-4,
    warmup: float = 0.05,
    weight_decay: float = 0.0,
    held_out: float = 0.1,
    max_tokens: int = 512,
    seed: int = 0,
    cpu: bool = False,
) -> dict[str, float]:
    """Fit a reward r to preferences: P(chosen is preferred) = sigmoid(r(chosen) - r(rejected)).

    ``loss = mean of -log sigmoid(r(chosen) - r(rejected))``

    Only differences of r are determined. The learning rate rises over the warm-up and then falls linearly to 0. The
    global random generators are seeded, as ``transformers.Trainer`` does.

    Args:
        model: a sequence classifier with one label; trained in place and left in evaluation mode.
        tokenizer: its tokenizer, with a padding token; adds the special tokens that it always adds.
        pairs: (chosen, rejected), each the whole text that is scored: prompt and completion.
        epochs: passes over the pairs.
        batch_size: pairs per optimizer step on a device.
        learning_rate: AdamW's peak.
        warmup: share of the optimizer steps over which the learning rate rises.
        weight_decay: AdamW's.
        held_out: share of the pairs that is kept from training and measured; 0: none. Pairs are split, not prompts.
        max_tokens: a longer text loses its beginning, as it does in ``load_classifier``.
        seed: seeds the order, the split and dropout.
        cpu: stay on the CPU even where there is an accelerator.

    Returns:
        ``loss``, nats, over the training; ``held_out/accuracy``, the share of held-out pairs whose chosen text scores
        higher, and ``held_out/loss``, nats, where pairs were held out.

    Raises:
        DataError: there are no pairs to train on, or a text has no token.
        ModelError: the model has more than one label, or it cannot tell padding from text.

    Source: Bradley & Terry (1952); Ouyang et al., arXiv 2203.02155, eq. 1, with one pair per prompt.
    """
    if model.config.num_labels != 1:
        raise ModelError(
            f"a reward model has one label, and this one has {model.config.num_labels}; load it with num_labels=1"
        )
    rows = [
        Example(
            tuple(encode(tokenizer, "", text, max_tokens=max_tokens, where=f"pair {number}") for text in pair),
        )
        for number, pair in enumerate(pairs)
    ]
    pad = check_padding(model, tokenizer, [text for row in rows for text in row.texts])
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    cut = round(held_out * len(rows))
    measured, trained = [rows[number] for number in order[:cut]], [rows[number] for number in order[cut:]]
    if not trained:
        raise DataError(f"{len(pairs)} pairs, {cut} of them held out, leave none to train on; give more pairs")
    options = FitOptions(epochs, batch_size, 1, learning_rate, warmup, weight_decay, seed=seed, cpu=cpu)
    loss, scores = fit(model, "bradley_terry", trained, measured, pad, options)
    metrics = {"loss": loss}
    if measured:
        margins = scores[:, 0] - scores[:, 1]
        metrics["held_out/loss"] = float(-logsigmoid(margins).mean())
        metrics["held_out/accuracy"] = float((margins > 0).float().mean())
    return metrics
