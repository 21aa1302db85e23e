"""A classifier as a reward function, whose scores depend on the row and on nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from reward_models.functions.text import Completion, text_of
from rlhf_pg.errors import ModelError
from rlhf_pg.types import Prompt

Output = Literal["logit", "log_odds", "probability"]
_PROBE = ("A short one.", "A second text, a good deal longer than the first one, to see what padding does.")


class Classifier:
    """A reward function that reads prompt and completion with a classifier and gives one number per row.

    The model has its own tokenizer. Strings are joined, prompt and completion, with the special tokens that the
    tokenizer adds; messages are rendered by the chat template. The last token is found from our own padding, never
    from the padding token's id, so a text may end with that token, and a model without one needs none. Made by
    :func:`load_classifier`, which says what the arguments mean.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        label: int,
        output: Output,
        max_tokens: int,
        batch_tokens: int,
        prompt_too: bool,
        append_eos: bool,
        center: float = 0.0,
        device: torch.device | str = "cpu",
        offload: bool = False,
    ) -> None:
        self.__name__ = name
        self.model = model
        self.tokenizer = tokenizer
        self.label = label
        self.output = output
        self.max_tokens = max_tokens
        self.batch_tokens = batch_tokens
        self.prompt_too = prompt_too
        self.append_eos = append_eos
        self.center = center
        self._device = torch.device(device)
        self._offload = offload and self._device.type != "cpu"
        self.truncated = 0  # texts so far that were longer than max_tokens and lost their beginning
        text_config = model.config.get_text_config()
        self._pad = next((pad for pad in (tokenizer.pad_token_id, text_config.pad_token_id) if pad is not None), 0)
        # No token's id, because transformers would pool the token before a last one that has it.
        text_config.pad_token_id = -1
        with self._on_device():
            self._logits = self._choose_pooling()

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        log_metric: Callable[[str, float], None] | None = None,
    ) -> list[float | None]:
        """Score each row.

        Args:
            prompts: strings or messages.
            completions: as many, of the same kind.
            log_metric: takes ``classifier/truncated``, the share of these texts that lost their beginning.

        Returns:
            One number per row; ``None`` for a text without any token.

        Raises:
            ModelError: the rows are messages and there is no chat template.
        """
        before = self.truncated
        rows = [self.encode(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        if log_metric is not None and rows:
            log_metric("classifier/truncated", (self.truncated - before) / len(rows))
        scores: list[float | None] = [None] * len(rows)
        with self._on_device():
            for batch in self._batches(rows):
                logits = self._logits([rows[row] for row in batch])
                for row, score in zip(batch, self._reward(logits).tolist(), strict=True):
                    scores[row] = score
        return scores

    @contextlib.contextmanager
    def _on_device(self) -> Iterator[None]:
        """The weights are where they compute; afterwards, with ``offload``, in main memory again."""
        self.model.to(self._device)
        try:
            yield
        finally:
            if self._offload:
                self.model.to("cpu")

    def encode(self, prompt: Prompt, completion: Completion) -> list[int]:
        """The ids of one row; an over-long one keeps its end, and its first token if that is BOS or CLS."""
        if not self.prompt_too:
            text, bare = text_of(completion), True
        elif isinstance(prompt, str):
            text, bare = prompt + text_of(completion), True
        else:
            if not self.tokenizer.chat_template:
                raise ModelError(
                    f"reward model {self.__name__!r} has no chat template and the prompts are messages; give one in "
                    "args.chat_template, or set args.prompt_too to false to score the completion's text alone"
                )
            reply = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else [*completion]
            text, bare = self.tokenizer.apply_chat_template([*prompt, *reply], tokenize=False), False
        # A rendered template has its special tokens already: adding them again would double the first one.
        ids: list[int] = self.tokenizer(text, add_special_tokens=bare)["input_ids"]
        if self.append_eos and ids[-1:] != [self.tokenizer.eos_token_id]:
            ids = [*ids, self.tokenizer.eos_token_id]
        if len(ids) <= self.max_tokens:
            return ids
        self.truncated += 1
        first = ids[:1] if ids[0] in (self.tokenizer.bos_token_id, self.tokenizer.cls_token_id) else []
        return first + ids[len(ids) - self.max_tokens + len(first) :]

    def _batches(self, rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Row numbers, of similar lengths together, at most ``batch_tokens`` with padding; empty rows are left out."""
        batch: list[int] = []
        for row in sorted((row for row in range(len(rows)) if rows[row]), key=lambda row: -len(rows[row])):
            if batch and len(rows[batch[0]]) * (len(batch) + 1) > self.batch_tokens:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _reward(self, logits: Tensor) -> Tensor:
        """(N, labels) -> (N,)."""
        logits = logits.double()
        own = logits[:, self.label] - self.center
        if self.output == "logit":
            return own
        independent = self.model.config.problem_type == "multi_label_classification"
        if logits.shape[1] > 1 and not independent:
            others = [label for label in range(logits.shape[1]) if label != self.label]
            own = own - logits[:, others].logsumexp(1)  # log p - log(1 - p) of a softmax
        return own if self.output == "log_odds" else own.sigmoid()

    @torch.no_grad()
    def _choose_pooling(self) -> Callable[[Sequence[Sequence[int]]], Tensor]:
        """The fastest way to the logits that agrees, on this model, with rows one at a time and without padding.

        Families pool differently, and some by the padding token's id, so one of the probes ends with that id.
        """
        if self.model.config.is_encoder_decoder:
            return self._one_by_one  # these refuse batches whose rows differ in the number of end-of-sequence tokens
        rows = [self.tokenizer(text)["input_ids"][: self.max_tokens] or [self._pad] for text in _PROBE]
        rows.append([*rows[0][: self.max_tokens - 1], self._pad])
        truth = self._one_by_one(rows)
        tolerance = 1e-3 if truth.dtype in (torch.float32, torch.float64) else 5e-2
        tolerance *= 1.0 + truth.abs().max().item()
        has_token_head = isinstance(getattr(self.model, "score", None), nn.Linear)
        for candidate in (self._last_token, self._padded) if has_token_head else (self._padded,):
            if (candidate(rows) - truth).abs().max().item() <= tolerance:
                return candidate
        return self._one_by_one

    @torch.no_grad()
    def _one_by_one(self, rows: Sequence[Sequence[int]]) -> Tensor:
        return torch.cat([self._padded([row]) for row in rows])

    @torch.no_grad()
    def _padded(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """(N, labels): the model's own pooling, over rows padded on the right."""
        ids, mask = self._pad_right(rows)
        logits: Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        return logits

    @torch.no_grad()
    def _last_token(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """(N, labels): the head on each row's last token. Padding on the right leaves the positions as they are."""
        ids, mask = self._pad_right(rows)
        hidden = self.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(rows), device=ids.device), mask.sum(1) - 1]
        logits: Tensor = self.model.score(last)
        return logits

    def _pad_right(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        device = next(self.model.parameters()).device
        ids = [torch.tensor(row, device=device) for row in rows]
        mask = [torch.ones_like(row) for row in ids]
        pad = nn.utils.rnn.pad_sequence
        return pad(ids, batch_first=True, padding_value=self._pad), pad(mask, batch_first=True)
