"""Training a reward model on pairs of texts of which one was preferred."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import PrinterCallback, Trainer, TrainingArguments

from rlhf_pg.errors import DataError, ModelError

Encoded = dict[str, list[int]]


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
        held_out: share of the pairs that is kept from training and measured; 0: none.
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
    encoded = [
        {
            "chosen": _encode(tokenizer, chosen, max_tokens, row),
            "rejected": _encode(tokenizer, rejected, max_tokens, row),
        }
        for row, (chosen, rejected) in enumerate(pairs)
    ]
    pad = _padding(model, tokenizer, encoded)
    order = random.Random(seed).sample(range(len(encoded)), len(encoded))
    cut = round(held_out * len(encoded))
    measured, trained = [encoded[row] for row in order[:cut]], [encoded[row] for row in order[cut:]]
    if not trained:
        raise DataError(f"{len(pairs)} pairs, {cut} of them held out, leave none to train on; give more pairs")
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=4 * batch_size,
            learning_rate=learning_rate,
            warmup_steps=warmup,  # below 1 it is a share of the steps
            weight_decay=weight_decay,
            seed=seed,
            use_cpu=cpu,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,  # the columns are ours, not the model's arguments
            label_names=[],
            dataloader_pin_memory=not cpu,
        )
        trainer = _PairTrainer(model, arguments, data_collator=_Collator(pad), train_dataset=trained)
        trainer.remove_callback(PrinterCallback)
        metrics = {"loss": float(trainer.train().training_loss)}
        if measured:
            margins = torch.as_tensor(trainer.predict(measured).predictions)
            metrics["held_out/loss"] = float(-logsigmoid(margins).mean())
            metrics["held_out/accuracy"] = float((margins > 0).float().mean())
    model.eval()
    return metrics


class _PairTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped here
    """``transformers.Trainer`` with the Bradley-Terry loss; a batch holds the chosen rows, then the rejected ones."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,  # noqa: ARG002 -- the Trainer passes it
    ) -> Any:
        """The loss of the batch, and with ``return_outputs`` its margins (N,)."""
        chosen, rejected = model(**inputs).logits[:, 0].float().chunk(2)
        loss = -logsigmoid(chosen - rejected).mean()
        return (loss, chosen - rejected) if return_outputs else loss

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,  # noqa: ARG002 -- the Trainer passes it
    ) -> tuple[Tensor, Tensor | None, None]:
        """Loss and margins (N,)."""
        with torch.no_grad():
            loss, margins = self.compute_loss(model, self._prepare_inputs(inputs), return_outputs=True)
        return loss, None if prediction_loss_only else margins, None


class _Collator:
    """Pairs into one batch of 2N rows, padded on the right: the chosen, then the rejected."""

    def __init__(self, pad: int) -> None:
        self._pad = pad

    def __call__(self, pairs: Sequence[Encoded]) -> dict[str, Tensor]:
        rows = [torch.tensor(pair[side]) for side in ("chosen", "rejected") for pair in pairs]
        together = torch.nn.utils.rnn.pad_sequence
        return {
            "input_ids": together(rows, batch_first=True, padding_value=self._pad),
            "attention_mask": together([torch.ones_like(row) for row in rows], batch_first=True),
        }


def _encode(tokenizer: Any, text: str, max_tokens: int, row: int) -> list[int]:
    ids: list[int] = tokenizer(text)["input_ids"]
    if not ids:
        raise DataError(f"pair {row} has a text without any token: {text!r}; remove the pair")
    if len(ids) <= max_tokens:
        return ids
    first = ids[:1] if ids[0] in (tokenizer.bos_token_id, tokenizer.cls_token_id) else []
    return first + ids[len(ids) - max_tokens + len(first) :]


def _padding(model: Any, tokenizer: Any, encoded: Sequence[dict[str, list[int]]]) -> int:
    """The padding token's id, once the model is sure to read its score at each row's last token.

    Decoders pool at the last token whose id is not the padding's, so no text may end with that id.
    """
    pad: int | None = tokenizer.pad_token_id
    own = "give the tokenizer one of its own (add_special_tokens, then the model's resize_token_embeddings)"
    if pad is None:
        raise ModelError(f"the reward model's tokenizer has no padding token; {own}")
    ends = sum(ids[-1] == pad for pair in encoded for ids in pair.values())
    if ends:
        raise ModelError(
            f"{ends} texts end with the token {tokenizer.pad_token!r}, which is also the padding token, so the model "
            f"would read their score one token early; {own}"
        )
    model.config.get_text_config().pad_token_id = pad
    return pad
