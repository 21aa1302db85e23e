"""The one place that packs micro-batches and runs models over rollouts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_pg.models import Policy, Reference
from rlhf_pg.ops.sampling import generator
from rlhf_pg.types import Rollout

Autocast = Callable[[], contextlib.AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows of a rollout as a model reads them: prompt and response side by side, padded on the right only."""

    rows: Tensor  # (R,) int64, rows of the rollout, on the CPU
    mask: Tensor  # (R, T) bool, the response mask
    input_ids: Tensor  # (R, L) int64
    positions: Tensor  # (N,) flat positions in R * L that predict the response tokens
    targets: Tensor  # (N,) the response tokens
    ends: Tensor  # (R,) flat positions of each row's last token
    cells: Tensor  # (N,) where each response token stands in the flattened (R, T) table

    def table(self, flat: Tensor) -> Tensor:
        """(R, T) from (N,): 0 outside the mask; differentiable."""
        return flat.new_zeros(self.mask.numel()).index_put((self.cells,), flat).view(self.mask.shape)


def plan(lengths: Sequence[int], rows: Sequence[int], most_tokens: int) -> list[list[int]]:
    """Cut rows into micro-batches of at most ``most_tokens`` padded tokens, the longest rows first.

    Args:
        lengths: tokens of each row, prompt and response.
        rows: which rows to cut.
        most_tokens: padded tokens of a micro-batch; a row that is longer gets one of its own.
    """
    parts: list[list[int]] = []
    for row in sorted(rows, key=lambda row: (-lengths[row], row)):
        if not parts or (len(parts[-1]) + 1) * lengths[parts[-1][0]] > most_tokens:
            parts.append([])
        parts[-1].append(row)
    return parts


def total_lengths(rollout: Rollout) -> list[int]:
    """Tokens of each row, prompt and response."""
    prompts = rollout.prompts.prompt_mask.sum(1).repeat_interleave(rollout.group_size)
    return [int(length) for length in prompts + rollout.lengths]


def minibatch_rows(rows: int, minibatches: int, seed: int, step: int, epoch: int) -> list[list[int]]:
    """The rows of each minibatch of an epoch: a permutation that belongs to (seed, step, epoch), cut evenly."""
    if minibatches == 1:
        return [list(range(rows))]
    order = torch.randperm(rows, generator=generator(seed, "minibatch", step, epoch)).tolist()
    size = rows // minibatches
    return [sorted(order[start : start + size]) for start in range(0, rows, size)]


def pack(rollout: Rollout, rows: Sequence[int], device: torch.device) -> MicroBatch:
    """Lay rows of a rollout out for a model."""
    picked = torch.tensor(rows)
    prompt_rows = picked // rollout.group_size
    prompt_mask = rollout.prompts.prompt_mask[prompt_rows]
    mask = rollout.response_mask[picked]
    prompts, responses = prompt_mask.sum(1), mask.sum(1)
    width = int((prompts + responses).max())
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    columns = torch.arange(width)
    ids[columns < prompts[:, None]] = rollout.prompts.prompt_ids[prompt_rows][prompt_mask]
    inside = (columns >= prompts[:, None]) & (columns < (prompts + responses)[:, None])
    targets = rollout.response_ids[picked][mask]
    ids[inside] = targets
    cells = mask.flatten().nonzero().squeeze(1)
    positions = inside.flatten().nonzero().squeeze(1) - 1
    ends = torch.arange(len(rows)) * width + prompts + responses - 1
    ready = (mask, ids, positions, targets, ends, cells)
    return MicroBatch(picked, *(x.to(device) for x in ready))


class Forward:
    """Runs models over rows of a rollout, micro-batch by micro-batch, without gradients.

    Args:
        device: where the models are.
        micro_batch_tokens: padded tokens of a pass.
        temperature: of policy, old and reference alike.
        autocast: the mixed precision of every pass.
    """

    def __init__(
        self,
        device: torch.device,
        micro_batch_tokens: int,
        temperature: float,
        autocast: Autocast = contextlib.nullcontext,
    ) -> None:
        self.device, self.temperature, self.autocast = device, temperature, autocast
        self.micro_batch_tokens = micro_batch_tokens

    def micro_batches(self, rollout: Rollout, parts: Sequence[Sequence[int]]) -> Iterator[MicroBatch]:
        """Micro-batches of each part by itself, so that a later pass over the same parts has the same shapes."""
        lengths = total_lengths(rollout)
        for part in parts:
            for rows in plan(lengths, part, self.micro_batch_tokens):
                yield pack(rollout, rows, self.device)

    def policy(
        self, policy: nn.Module, rollout: Rollout, parts: Sequence[Sequence[int]], reference: Reference | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log-probabilities, entropies and, against a reference, the exact KL: (rows, T) each, in nats."""

        def run(batch: MicroBatch) -> list[Tensor]:
            out = policy(batch.input_ids, batch.positions, batch.targets, self.temperature, reference)
            return [batch.table(x) for x in out if x is not None]

        tables = self._collect(rollout, parts, run)
        return tables[0], tables[1], tables[2] if reference is not None else None

    def reference(self, reference: Reference, rollout: Rollout, parts: Sequence[Sequence[int]]) -> Tensor:
        """(rows, T) log-probabilities of the responses under the reference, nats."""

        def run(batch: MicroBatch) -> list[Tensor]:
            found = reference.logprobs(batch.input_ids, batch.positions, batch.targets, self.temperature)
            return [batch.table(found)]

        return self._collect(rollout, parts, run)[0]

    def values(self, value: nn.Module, rollout: Rollout, parts: Sequence[Sequence[int]]) -> Tensor:
        """(rows, T) values of the states in which each token is taken, reward units."""

        def run(batch: MicroBatch) -> list[Tensor]:
            return [batch.table(value(batch.input_ids, batch.positions))]

        return self._collect(rollout, parts, run)[0]

    def grad_sq_norms(self, policy: Policy, rollout: Rollout, rows: Sequence[int]) -> Tensor:
        """(rows,) squared norm of each response's gradient of log pi(response): a backward pass a row."""
        weights = [weight for weight in policy.parameters() if weight.requires_grad]
        norms = []
        for row in rows:
            batch = pack(rollout, [row], self.device)
            with self.autocast():
                logprobs = policy(batch.input_ids, batch.positions, batch.targets, self.temperature)[0]
            found = torch.autograd.grad(logprobs.sum(), weights, allow_unused=True)
            norms.append(sum(float(grad.double().square().sum()) for grad in found if grad is not None))
        return torch.tensor(norms, dtype=torch.float64)

    @torch.no_grad()
    def _collect(
        self, rollout: Rollout, parts: Sequence[Sequence[int]], run: Callable[[MicroBatch], list[Tensor]]
    ) -> list[Tensor]:
        """Tables over the rows of all parts, in ascending order of rows, on the CPU."""
        found: list[Tensor] = []
        rows = []
        for batch in self.micro_batches(rollout, parts):
            with self.autocast():
                tables = [table.cpu() for table in run(batch)]
            if not found:
                found = [torch.zeros(rollout.response_mask.shape, dtype=table.dtype) for table in tables]
            for whole, table in zip(found, tables, strict=True):
                whole[batch.rows] = table
            rows.append(batch.rows)
        order = torch.cat(rows).sort().values
        return [whole[order] for whole in found]
