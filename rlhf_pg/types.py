"""The records that a training step passes on, one type a stage.

Axis legend, used in every shape comment of the package:

    P  prompts of the step                G  completions per prompt
    B  rows, B = P * G; the G rows of a prompt are adjacent
    S  prompt tokens (left-padded)        T  response tokens (right-padded)
    V  vocabulary

A step is ``PromptBatch -> Rollout -> ScoredRollout (+ ModelPasses) -> TrainBatch``. Shapes, dtypes and masks are
checked once, on construction, with assertions: a violation is a defect of ours, not of the user's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

Message = dict[str, Any]
Prompt = str | list[Message]
FinishReason = Literal["eos", "stop", "length"]


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """The prompts of one step, each once, however many completions it will get."""

    indices: Tensor  # (P,) int64, rows of the dataset
    prompts: tuple[Prompt, ...]  # P strings or message lists, as the dataset has them
    prompt_ids: Tensor  # (P, S) int64, left-padded
    prompt_mask: Tensor  # (P, S) bool
    columns: dict[str, list[Any]] = field(default_factory=dict)  # the dataset's other columns, P values each

    def __post_init__(self) -> None:
        """Check the shapes."""
        count = len(self.prompts)
        assert self.indices.shape == (count,)
        assert self.prompt_ids.shape == self.prompt_mask.shape
        assert self.prompt_ids.shape[0] == count
        assert self.prompt_mask.dtype == torch.bool
        assert all(len(values) == count for values in self.columns.values())

    def __len__(self) -> int:
        """P."""
        return len(self.prompts)

    def rows(self, start: int, stop: int) -> PromptBatch:
        """Prompts ``start`` to ``stop``; the padding width S stays."""
        part = slice(start, stop)
        columns = {name: values[part] for name, values in self.columns.items()}
        return PromptBatch(
            self.indices[part], self.prompts[part], self.prompt_ids[part], self.prompt_mask[part], columns
        )


@dataclass(frozen=True, slots=True)
class Rollout:
    """Sampled completions. Row ``i`` answers prompt ``i // group_size``."""

    prompts: PromptBatch
    group_size: int
    response_ids: Tensor  # (B, T) int64; padding after the end may hold anything
    response_mask: Tensor  # (B, T) bool: True on every sampled token, the end-of-sequence token included
    logprobs: Tensor  # (B, T) float: of the sampled tokens, under the sampling distribution
    finish_reason: tuple[FinishReason, ...]  # "eos" and "stop" are terminal, "length" is truncated
    texts: tuple[str, ...]  # what the reward functions read

    def __post_init__(self) -> None:
        """Check the shapes and that the mask is a prefix of each row."""
        rows = len(self.prompts) * self.group_size
        assert self.response_ids.shape == self.response_mask.shape == self.logprobs.shape
        assert self.response_ids.shape[0] == rows == len(self.finish_reason) == len(self.texts)
        assert self.response_mask.dtype == torch.bool
        assert not bool((~self.response_mask[:, :-1] & self.response_mask[:, 1:]).any()), "the mask must be a prefix"

    def __len__(self) -> int:
        """B."""
        return len(self.texts)

    @property
    def lengths(self) -> Tensor:
        """(B,) int64: sampled tokens of each response."""
        return self.response_mask.sum(1)

    @property
    def truncated(self) -> Tensor:
        """(B,) bool: the response was cut at the token limit."""
        return torch.tensor([reason == "length" for reason in self.finish_reason], dtype=torch.bool)


@dataclass(frozen=True, slots=True)
class ScoredRollout:
    """A rollout and what the reward functions said of it."""

    rollout: Rollout
    scores: Tensor  # (B,) float32; 0 where invalid
    components: dict[str, Tensor]  # (B,) each, before its weight; NaN where that function could not score the row
    valid: Tensor  # (B,) bool; False: no function could score the row
    token_rewards: Tensor  # (B, T) float32: rewards given per token; 0 where there are none
    per_token: frozenset[str] = frozenset()  # components whose rewards are per token: their value is the sum
    extras: dict[str, list[Any]] = field(default_factory=dict)  # B values each: what functions gave to log_extra

    def __post_init__(self) -> None:
        """Check the shapes."""
        rows = len(self.rollout)
        assert self.scores.shape == self.valid.shape == (rows,)
        assert self.valid.dtype == torch.bool
        assert all(values.shape == (rows,) for values in self.components.values())
        assert self.token_rewards.shape == self.rollout.response_mask.shape
        assert bool(torch.isfinite(self.scores).all())

    @property
    def totals(self) -> Tensor:
        """(B,) float32: score and per-token rewards of each response together, reward units."""
        return self.scores + torch.where(self.rollout.response_mask, self.token_rewards, 0.0).sum(1)


@dataclass(frozen=True, slots=True)
class ModelPasses:
    """What forward passes over a rollout gave; each is present only if it was asked for."""

    old_logprobs: Tensor | None = None  # (B, T) the policy's, before the step's first update
    ref_logprobs: Tensor | None = None  # (B, T) the reference's
    values: Tensor | None = None  # (B, T) values[:, t] is read at position S-1+t, before token t is taken
    bootstrap: Tensor | None = None  # (B,) V after the last token of a truncated response
    exact_kl: Tensor | None = None  # (B, T) nats: KL(policy || reference) at the state in which token t is taken
    grad_sq_norms: Tensor | None = None  # (B,) squared norm of the gradient of each response's log-probability


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """What the learner needs and no more; every table is global, the same on each process."""

    rollout: Rollout
    advantages: Tensor  # (B, T) float32; 0 on invalid rows
    mask: Tensor  # (B, T) bool: the response mask, False on invalid rows
    old_logprobs: Tensor | None = None  # (B, T); None: the first update is the only one and the ratio is 1
    ref_logprobs: Tensor | None = None  # (B, T), where the KL is in the loss
    old_values: Tensor | None = None  # (B, T)
    returns: Tensor | None = None  # (B, T)
    weights: Tensor | None = None  # (B, T) importance weights of sampling against training, detached

    def __post_init__(self) -> None:
        """Check the shapes."""
        shape = self.rollout.response_mask.shape
        for table in (self.advantages, self.mask, self.old_logprobs, self.ref_logprobs, self.old_values):
            assert table is None or table.shape == shape
        for table in (self.returns, self.weights):
            assert table is None or table.shape == shape
        assert self.mask.dtype == torch.bool
