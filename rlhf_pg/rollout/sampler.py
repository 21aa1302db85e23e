"""The engine: one prefill per prompt, one token at a time, rows leave when they end."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_pg.config.tree import Config
from rlhf_pg.loading import Models
from rlhf_pg.models import Policy
from rlhf_pg.ops.sampling import inverse_cdf, keep_nucleus
from rlhf_pg.rollout.cache import new_cache
from rlhf_pg.types import FinishReason, PromptBatch, Rollout

# Copying the cache without the finished rows costs as much as a few tokens' attention.
_LEAVE_AT = 0.8


@dataclass(frozen=True, slots=True)
class Sampler:
    """Samples completions from softmax(logits / temperature), the whole of it.

    A row's tokens depend on its prompt and its own uniform numbers alone, to the rounding of the logits: not on the
    other rows, nor on the process, nor on the global generator, nor on the model's ``generation_config``.
    """

    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    batch_rows: int = 256
    skip_special_tokens: bool = True
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = field(default=contextlib.nullcontext)

    @classmethod
    def of(
        cls, config: Config, models: Models, autocast: Callable[[], contextlib.AbstractContextManager[Any]]
    ) -> Sampler:
        """The sampler of a training step."""
        rollout = config.rollout
        return cls(
            models.tokenizer,
            models.eos_ids,
            rollout.max_new_tokens,
            rollout.temperature,
            1.0,
            rollout.stop,
            rollout.batch_rows,
            config.reward.skip_special_tokens,
            autocast,
        )

    @torch.no_grad()
    def __call__(self, policy: Policy, prompts: PromptBatch, uniforms: Tensor) -> Rollout:
        """Sample G completions for each of P prompts.

        Args:
            policy: the model.
            prompts: P prompts.
            uniforms: (P * G, max_new_tokens) float64 in [0, 1), the numbers of each row; a row of NaN is decoded
                greedily.

        Returns:
            The rollout, its tables on the CPU and T columns, T the longest response.
        """
        group = len(uniforms) // len(prompts)
        step = max(1, self.batch_rows // group)
        parts = []
        with _inference(policy), self.autocast():
            for start in range(0, len(prompts), step):
                some = prompts.rows(start, min(start + step, len(prompts)))
                numbers = uniforms[start * group : (start + len(some)) * group]
                parts.append(self._decode(policy, some, numbers, group))
        ids, logprobs, lengths = (torch.cat(tables) for tables in zip(*(part[:3] for part in parts), strict=True))
        stopped = [row for part in parts for row in part[3]]
        width = int(lengths.max())
        ids, logprobs = ids[:, :width], logprobs[:, :width]
        mask = torch.arange(width) < lengths[:, None]
        last = ids.gather(1, (lengths - 1)[:, None]).squeeze(1)
        ended = torch.isin(last, torch.tensor(self.eos_ids, dtype=torch.int64)).tolist()
        reasons: list[FinishReason] = [
            "eos" if eos else "stop" if stop else "length" for eos, stop in zip(ended, stopped, strict=True)
        ]
        return Rollout(prompts, group, ids, mask, logprobs, tuple(reasons), tuple(self._texts(ids, lengths)))

    def with_greedy(self, policy: Policy, prompts: PromptBatch, uniforms: Tensor) -> tuple[Rollout, Rollout]:
        """G sampled completions and one greedy one per prompt, from the same prefill (ReMax's baseline)."""
        group = len(uniforms) // len(prompts)
        table = uniforms.view(len(prompts), group, -1)
        nan = torch.full_like(table[:, :1], torch.nan)
        both = self(policy, prompts, torch.cat([table, nan], 1).flatten(0, 1))
        rows = torch.arange(len(both)).view(len(prompts), group + 1)
        return _select(both, rows[:, :-1].flatten(), group), _select(both, rows[:, -1], 1)

    def _decode(
        self, policy: Policy, prompts: PromptBatch, uniforms: Tensor, group: int
    ) -> tuple[Tensor, Tensor, Tensor, list[bool]]:
        """Ids (B, T), logprobs (B, T) and lengths (B,) on the CPU, and which rows met a stop string."""
        device, rows = policy.device, len(uniforms)
        used = int(prompts.prompt_mask.sum(1).max())
        ids = prompts.prompt_ids[:, -used:].to(device)
        mask = prompts.prompt_mask[:, -used:].to(device)
        uniforms = uniforms.to(device)
        end = torch.tensor(self.eos_ids, dtype=torch.int64, device=device)
        cache = new_cache(policy.config, used + self.max_new_tokens)
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        logits = _next_logits(policy, ids, mask, positions, cache)
        if group > 1:
            cache.batch_repeat_interleave(group)
            logits, mask, positions = (x.repeat_interleave(group, 0) for x in (logits, mask, positions[:, -1:]))
        positions = positions[:, -1:]
        out = torch.zeros(rows, self.max_new_tokens, dtype=torch.int64, device=device)
        logprobs = torch.zeros(rows, self.max_new_tokens, dtype=torch.float64, device=device)
        lengths = torch.full((rows,), self.max_new_tokens, dtype=torch.int64, device=device)
        stopped = [False] * rows
        # The rows in the batch, and which of them have not ended.
        present = torch.arange(rows, device=device)
        going = torch.ones(rows, dtype=torch.bool, device=device)
        for t in range(self.max_new_tokens):
            kept = keep_nucleus(logits, self.top_p, self.temperature)
            tokens, found = inverse_cdf(kept, uniforms[present, t], self.temperature)
            out[present, t] = tokens
            logprobs[present, t] = found.double()
            ending = torch.isin(tokens, end) & going
            if self.stop:
                ending |= self._met_stop(out, present, going & ~ending, t, stopped)
            lengths[present[ending]] = t + 1
            going &= ~ending
            left = int(going.sum())
            if left == 0 or t + 1 == self.max_new_tokens:
                break
            if left <= _LEAVE_AT * len(present):
                stay = going.nonzero().squeeze(1)
                present, going, tokens, mask, positions = (x[stay] for x in (present, going, tokens, mask, positions))
                cache.batch_select_indices(stay)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            positions = positions + 1
            logits = _next_logits(policy, tokens[:, None], mask, positions, cache)
        return (
            out.cpu(),
            logprobs.to(logits.dtype if logits.dtype == torch.float64 else torch.float32).cpu(),
            lengths.cpu(),
            stopped,
        )

    def _met_stop(self, out: Tensor, present: Tensor, going: Tensor, t: int, stopped: list[bool]) -> Tensor:
        """Which rows' text contains a stop string now; notes them in ``stopped``."""
        rows = present[going].tolist()
        texts = self.tokenizer.batch_decode(out[present[going], : t + 1].cpu(), skip_special_tokens=True)
        hits = [any(mark in text for mark in self.stop) for text in texts]
        for row, hit in zip(rows, hits, strict=True):
            stopped[row] = stopped[row] or hit
        met = torch.zeros_like(going)
        met[going] = torch.tensor(hits, dtype=torch.bool, device=going.device)
        return met

    def _texts(self, ids: Tensor, lengths: Tensor) -> list[str]:
        rows = [row[:length] for row, length in zip(ids.tolist(), lengths.tolist(), strict=True)]
        return cast(list[str], self.tokenizer.batch_decode(rows, skip_special_tokens=self.skip_special_tokens))


def _next_logits(policy: Policy, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
    """(N, V) logits of the next token; the cache grows by the ids."""
    model: Any = policy.model
    # Without padding no mask is needed, and attention takes its fast path.
    padded = None if bool(mask.all()) else mask
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    extra: dict[str, Any] = {"logits_to_keep": 1} if _takes_logits_to_keep(cast(Hashable, type(base))) else {}
    out = model(
        input_ids=ids, attention_mask=padded, position_ids=positions, past_key_values=cache, use_cache=True, **extra
    )
    return cast(Tensor, out.logits[:, -1])


@functools.cache
def _takes_logits_to_keep(model: Hashable) -> bool:
    return "logits_to_keep" in inspect.signature(cast(Any, model).forward).parameters


@contextlib.contextmanager
def _inference(policy: Policy) -> Iterator[None]:
    """Evaluation mode while sampling: in training mode gradient checkpointing would refuse the cache."""
    training = policy.model.training
    policy.model.eval()
    try:
        yield
    finally:
        policy.model.train(training)


def _select(rollout: Rollout, rows: Tensor, group: int) -> Rollout:
    """Some rows of a rollout, trimmed to their longest response."""
    width = int(rollout.response_mask[rows].sum(1).max())
    picked = rows.tolist()
    return Rollout(
        rollout.prompts,
        group,
        rollout.response_ids[rows, :width],
        rollout.response_mask[rows, :width],
        rollout.logprobs[rows, :width],
        tuple(rollout.finish_reason[row] for row in picked),
        tuple(rollout.texts[row] for row in picked),
    )
