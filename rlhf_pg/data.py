"""Prompt sources to `PromptBatch`: rendered, tokenised once, filtered, held out, and ordered by the seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_pg.config.sections import DataConfig
from rlhf_pg.errors import DataError
from rlhf_pg.ops.sampling import generator
from rlhf_pg.prompts import as_asked, find_prompts, render, tokenise
from rlhf_pg.sources import Say, Table, read_table, table_from
from rlhf_pg.types import Prompt, PromptBatch


@dataclass(frozen=True, slots=True)
class PromptSource:
    """Prompts in the dataset's order, from which any step's batch can be taken without state."""

    name: str  # what messages call it
    indices: tuple[int, ...]  # rows of the dataset
    prompts: tuple[Prompt, ...]  # what a reward function reads
    texts: tuple[str, ...]  # as the model sees them before tokenisation: two prompts are the same if these are
    ids: tuple[tuple[int, ...], ...]
    columns: dict[str, list[Any]]
    chat: bool  # the prompts are message lists
    pad_id: int
    seed: int
    shuffle: bool

    def __len__(self) -> int:
        """Prompts of an epoch."""
        return len(self.indices)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, self.ids), default=0)

    def batch(self, step: int, count: int) -> PromptBatch:
        """The prompts of a training step.

        Rows ``[step * count, (step + 1) * count)`` of an endless sequence of epochs. Epoch ``e`` is a permutation
        drawn from a generator seeded by ``(seed, "data", e)`` alone, so steps can be asked for in any order.

        Args:
            step: counted from 0.
            count: P; more than an epoch has is fine.
        """
        positions = range(step * count, (step + 1) * count)
        return self._take([self._order(at // len(self))[at % len(self)] for at in positions])

    def rows(self, start: int, stop: int) -> PromptBatch:
        """Prompts ``start`` to ``stop`` in the dataset's order, cut at the end; for evaluation."""
        return self._take(list(range(len(self)))[start:stop])

    def select(self, keep: Sequence[int]) -> PromptSource:
        """The prompts at these positions, in this order."""
        return replace(
            self,
            indices=tuple(self.indices[i] for i in keep),
            prompts=tuple(self.prompts[i] for i in keep),
            texts=tuple(self.texts[i] for i in keep),
            ids=tuple(self.ids[i] for i in keep),
            columns={name: [values[i] for i in keep] for name, values in self.columns.items()},
        )

    def _order(self, epoch: int) -> Sequence[int]:
        return _permutation(len(self), self.seed, epoch) if self.shuffle else range(len(self))

    def _take(self, positions: list[int]) -> PromptBatch:
        part = self.select(positions)
        ids, mask = pad_prompts(part.ids, self.pad_id)
        return PromptBatch(torch.tensor(part.indices, dtype=torch.int64), part.prompts, ids, mask, part.columns)


@dataclass(frozen=True, slots=True)
class PromptData:
    """The prompts of a run; no training prompt has the text of a held-out one."""

    train: PromptSource
    held_out: PromptSource | None


def load_prompts(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    dataset: object = None,
    eval_dataset: object = None,
    say: Say = print,
) -> PromptData:
    """Read, check, render and tokenise the prompts, and part the held-out ones from the training ones.

    Held-out prompts are the first ``data.eval_size`` of ``data.eval_source`` that fit and do not stand in the training
    data; or else ``data.eval_size`` rows of ``data.source``, chosen by a fixed generator that ``seed`` does not enter,
    so that runs with different seeds are measured on the same prompts. Training rows with the text of a row so chosen
    are left out too.

    Args:
        config: the section ``data``.
        tokenizer: the policy's.
        seed: ``run.seed``; it alone decides the training order.
        dataset: takes the place of ``data.source``: a ``datasets.Dataset`` or a list of strings, of message
            lists or of dicts.
        eval_dataset: takes the place of ``data.eval_source``, likewise.
        say: receives a sentence for each thing that was recognised or left out.

    Returns:
        Training and held-out prompts; the latter None with ``data.eval_size=0``.

    Raises:
        DataError: nothing to train on or to hold out, or a row that cannot be used; it names the key or the row.
    """
    if dataset is None:
        table = read_table(config.source, config.split, "data.source", say)
    else:
        table = table_from(dataset, config.split, "dataset")
    everything = _prepare(table, config, config.chat, tokenizer, seed, say)
    if config.eval_size == 0:
        return PromptData(everything, None)
    if eval_dataset is None and config.eval_source is None:
        return _split_off(everything, config.eval_size, say)

    if eval_dataset is None:
        table = read_table(config.eval_source or "", config.split, "data.eval_source", say)
    else:
        table = table_from(eval_dataset, config.split, "eval_dataset")
    others = _prepare(table, config, everything.chat, tokenizer, seed, say)
    trained = set(everything.texts)
    fresh = [i for i, text in enumerate(others.texts) if text not in trained]
    if not fresh:
        raise DataError(
            f"all {len(others)} prompts of {others.name} also stand in the training data, so none is left to hold out; "
            "name other prompts in data.eval_source, or leave it out and let data.eval_size rows be split off"
        )
    if dropped := len(others) - len(fresh):
        say(f"{dropped} of {len(others)} held-out prompts also stand in the training data and were dropped.")
    return PromptData(everything, others.select(fresh[: config.eval_size]))


def pad_prompts(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pad on the left to the longest row.

    Args:
        rows: P rows of token ids.
        pad_id: what stands in the padding.

    Returns:
        ids (P, S) int64 and mask (P, S) bool, True on the rows' own tokens.
    """
    width = max(map(len, rows), default=0)
    ids = [[pad_id] * (width - len(row)) + list(row) for row in rows]
    mask = [[False] * (width - len(row)) + [True] * len(row) for row in rows]
    shape = (len(rows), width)
    return torch.tensor(ids, dtype=torch.int64).view(shape), torch.tensor(mask, dtype=torch.bool).view(shape)


@lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(torch.randperm(size, generator=generator(seed, "data", epoch)).tolist())


def _split_off(everything: PromptSource, size: int, say: Say) -> PromptData:
    """Hold out ``size`` rows and keep every row with their texts out of training."""
    total = len(everything)
    if size >= total:
        raise DataError(
            f"data.eval_size={size} would hold out all {total} prompts of {everything.name}; "
            f"set data.eval_size to {max(total // 10, 1) if total > 1 else 0} (0 holds out none), "
            "or name data.eval_source"
        )
    chosen = sorted(torch.randperm(total, generator=generator(0, "held-out"))[:size].tolist())
    held_out = everything.select(chosen)
    texts = set(held_out.texts)
    train = [i for i, text in enumerate(everything.texts) if text not in texts]
    if not train:
        raise DataError(
            f"every prompt of {everything.name} has the text of one of the data.eval_size={size} held-out prompts, so "
            "none is left to train on; lower data.eval_size, or name data.eval_source"
        )
    copies = total - size - len(train)
    also = f"; {copies} more rows with the same text are left out of training" if copies else ""
    say(f"{size} of {total} prompts of {everything.name} are held out for evaluation{also}.")
    return PromptData(everything.select(train), held_out)


def _prepare(
    table: Table,
    config: DataConfig,
    chat: bool | None,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    say: Say,
) -> PromptSource:
    """All prompts of a table that fit, rendered and tokenised."""
    found, columns = find_prompts(table, config.prompt_column, say)
    prompts, chat = as_asked(found, chat, config.system_prompt, table)
    texts = [render(prompt, tokenizer, table.row(i)) for i, prompt in enumerate(prompts)]
    ids = tokenise(texts, chat, tokenizer, table)
    pads = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    source = PromptSource(
        name=table.name,
        indices=tuple(range(len(ids))),
        prompts=tuple(prompts),
        texts=tuple(texts),
        ids=tuple(map(tuple, ids)),
        columns=columns,
        chat=chat,
        pad_id=next((token for token in pads if token is not None), 0),
        seed=seed,
        shuffle=config.shuffle,
    )
    lengths = [len(row) for row in ids]
    fit = [i for i, length in enumerate(lengths) if length <= config.max_prompt_tokens]
    if not fit:
        raise DataError(
            f"all {len(ids)} prompts of {table.name} are longer than data.max_prompt_tokens="
            f"{config.max_prompt_tokens}: the shortest has {min(lengths)} tokens, the longest {max(lengths)}; "
            "raise data.max_prompt_tokens"
        )
    if len(fit) == len(ids):
        return source
    say(
        f"{len(ids) - len(fit)} of {len(ids)} prompts of {table.name} are longer than "
        f"data.max_prompt_tokens={config.max_prompt_tokens} and were left out; the longest has {max(lengths)} tokens."
    )
    return source.select(fit)
