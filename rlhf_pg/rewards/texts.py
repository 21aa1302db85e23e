"""Completions that nobody sampled here, as a rollout that reward functions can score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from rlhf_pg.types import FinishReason, Prompt, PromptBatch, Rollout


def text_rollout(
    prompts: Sequence[Prompt],
    completions: Sequence[str],
    columns: Mapping[str, Sequence[Any]] | None = None,
    *,
    group_size: int = 1,
    tokenizer: Any = None,
    completion_ids: Sequence[Sequence[int]] | None = None,
) -> Rollout:
    """Texts as a rollout; its log-probabilities are 0, and every response counts as ended.

    Args:
        prompts: P of them.
        completions: P * ``group_size`` texts, those of a prompt adjacent.
        columns: further columns, P values each.
        group_size: completions per prompt.
        tokenizer: gives ``completion_ids``; without one each word that white space separates is a token of its own.
        completion_ids: or the ids themselves.
    """
    if completion_ids is None:
        encode = _words() if tokenizer is None else lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
        completion_ids = [encode(text) for text in completions]
    ids = [torch.tensor(row, dtype=torch.long) for row in completion_ids]
    table = pad_sequence([*ids, torch.zeros(1, dtype=torch.long)], batch_first=True)[:-1]
    mask = torch.arange(table.shape[1]) < torch.tensor([len(row) for row in ids], dtype=torch.long)[:, None]
    empty = torch.zeros(len(prompts), 1, dtype=torch.long)
    ends: list[FinishReason] = ["stop"] * len(ids)
    own = {name: list(values) for name, values in (columns or {}).items()}
    batch = PromptBatch(torch.arange(len(prompts)), tuple(prompts), empty, empty.bool(), own)
    return Rollout(batch, group_size, table, mask, torch.zeros(table.shape), tuple(ends), tuple(completions))


def _words() -> Any:
    """Numbers words in the order in which they come."""
    numbers: dict[str, int] = {}
    return lambda text: [numbers.setdefault(word, len(numbers)) for word in text.split()]
