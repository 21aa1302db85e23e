"""Fitting a sequence classifier through ``transformers.Trainer``: the loop, the batches, the scores of held-out rows."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from reward_models.training.objectives import LOSSES, Objective


@dataclass(frozen=True, slots=True)
class Example:
    """A row as the model reads it: a pair has two texts, chosen and rejected, and any other row one."""

    texts: tuple[list[int], ...]
    target: float = 1.0  # who was preferred, the label, or the label's number
    weight: float = 1.0
    margin: float = 0.0
    group: str = ""  # rows with one prompt have one group


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How a model is fitted.

    ``batch_size`` rows a device and ``accumulate`` such batches make an optimizer step of AdamW, whose rate rises to
    ``learning_rate`` over the ``warmup`` share of the steps and then falls linearly to 0.
    """

    epochs: float = 1.0
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float = 1e-4
    warmup: float = 0.05
    weight_decay: float = 0.0
    bf16: bool = False
    keep_best: bool = False  # the weights after the epoch with the lowest held-out loss, not those after the last
    seed: int = 0
    cpu: bool = False


def fit(
    model: Any,
    objective: Objective,
    trained: Sequence[Example],
    measured: Sequence[Example],
    pad: int,
    options: FitOptions,
    say: Callable[[str], object] | None = None,
) -> tuple[float, Tensor]:
    """Train a model in place and score the held-out rows; it is left in evaluation mode.

    ``loss = sum of w_i l_i / N`` over the N rows of an optimizer step, with weights w that average 1 over the training
    rows. The global random generators are seeded, as ``transformers.Trainer`` does.

    Args:
        model: a sequence classifier, whose padding token's id is ``pad``.
        objective: what l is.
        trained: at least one.
        measured: held-out rows; may be none.
        pad: what stands in the padding.
        options: the optimizer's and the loop's.
        say: receives a line after each epoch, the held-out loss in it; without it held-out rows are scored once, at
            the end, unless the best epoch is kept.

    Returns:
        The mean loss over the training, and the (N, 2) or (N, labels) scores of the held-out rows.
    """
    by_epoch = bool(measured) and (options.keep_best or say is not None)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=4 * options.batch_size,
            gradient_accumulation_steps=options.accumulate,
            learning_rate=options.learning_rate,
            warmup_steps=options.warmup,  # below 1 it is a share of the steps
            weight_decay=options.weight_decay,
            seed=options.seed,
            bf16=options.bf16,
            use_cpu=options.cpu,
            eval_strategy="epoch" if by_epoch else "no",
            save_strategy="epoch" if by_epoch and options.keep_best else "no",
            save_only_model=True,
            save_total_limit=1,
            load_best_model_at_end=by_epoch and options.keep_best,
            metric_for_best_model="eval_loss",
            greater_is_better=False,
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,  # the rows are ours, not the model's arguments
            label_names=[],
            dataloader_pin_memory=torch.cuda.is_available() and not options.cpu,
        )
        trainer = _Trainer(
            model, arguments, data_collator=Collator(pad), train_dataset=trained, eval_dataset=measured or None
        )
        trainer.objective = objective
        trainer.mean_weight = math.fsum(row.weight for row in trained) / len(trained)
        trainer.model_accepts_loss_kwargs = True  # compute_loss divides by the step's rows; nothing else may divide
        trainer.remove_callback(PrinterCallback)
        if say is not None:
            trainer.add_callback(_Tell(say))
        loss = float(trainer.train().training_loss)
        scores = torch.empty(0)
        if measured:
            scores = torch.as_tensor(trainer.predict(measured).predictions)
    model.eval()
    return loss, scores


@torch.no_grad()
def mean_score(model: Any, texts: Sequence[list[int]], pad: int, rows: int) -> float:
    """The mean of a model's first logit over texts, at least one; ``rows`` of them a pass."""
    collate, total = Collator(pad), 0.0
    for start in range(0, len(texts), rows):
        batch = collate([Example((text,)) for text in texts[start : start + rows]])
        inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
        total += float(model(**inputs).logits[:, 0].double().sum())
    return total / len(texts)


class _Trainer(Trainer):  # type: ignore[misc]  # transformers is untyped here
    """``transformers.Trainer`` with an objective's loss, weighted by row."""

    objective: Objective
    mean_weight: float

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], int]:
        """The batches of an optimizer step, and how many rows they have together."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, sum(len(batch["target"]) for batch in batches)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The batch's part of the step's loss, and with ``return_outputs`` its scores (N, 2) or (N, labels)."""
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.float()
        rows = len(inputs["target"])
        scores = torch.cat(logits.split(rows), 1)
        losses = LOSSES[self.objective](scores, inputs) * (inputs["weight"] / self.mean_weight)
        loss = losses.sum() / (num_items_in_batch or rows)
        return (loss, scores) if return_outputs else loss

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,  # noqa: ARG002 -- the Trainer passes it
    ) -> tuple[Tensor, Tensor | None, None]:
        """Loss and scores."""
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, scores = self.compute_loss(model, self._prepare_inputs(inputs), return_outputs=True)
        return loss, None if prediction_loss_only else scores, None


class Collator:
    """Rows into one batch of their texts, padded on the right: the first text of each row, then the second."""

    def __init__(self, pad: int) -> None:
        self._pad = pad

    def __call__(self, rows: Sequence[Example]) -> dict[str, Tensor]:
        """Input ids and mask (N * texts, L); target, weight and margin (N,)."""
        texts = [torch.tensor(text) for side in zip(*(row.texts for row in rows), strict=True) for text in side]
        together = torch.nn.utils.rnn.pad_sequence
        return {
            "input_ids": together(texts, batch_first=True, padding_value=self._pad),
            "attention_mask": together([torch.ones_like(text) for text in texts], batch_first=True),
            "target": torch.tensor([row.target for row in rows]),
            "weight": torch.tensor([row.weight for row in rows]),
            "margin": torch.tensor([row.margin for row in rows]),
        }


class _Tell(TrainerCallback):  # type: ignore[misc]  # transformers is untyped here
    """Tells the held-out loss after each epoch."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say = say

    def on_evaluate(
        self,
        args: Any,
        state: Any,
        control: Any,  # noqa: ARG002 -- the Trainer passes it
        metrics: dict[str, float],
        **_: Any,
    ) -> None:
        """After each epoch."""
        self._say(f"Epoch {state.epoch:g} of {args.num_train_epochs:g}: held-out loss {metrics['eval_loss']:.4f}.")
