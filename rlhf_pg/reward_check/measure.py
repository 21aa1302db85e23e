"""Score the same completions again and again, and see what stays the same."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhf_pg.config.rewards import RewardConfig
from rlhf_pg.rewards import RewardRunner
from rlhf_pg.types import PromptBatch, Rollout, ScoredRollout

_PARTS = (0.5, 0.8, 1.0)  # three batches of different sizes


@dataclass(frozen=True, slots=True)
class Measured:
    """What a reward said of completions."""

    scored: ScoredRollout
    totals: Tensor  # (B,) reward units; NaN where unscorable
    again: Tensor | None  # (B,) the same call once more
    elsewhere: Tensor | None  # (B,) the same rows in other batches, in another order
    seconds: float  # of one call on all rows
    logged: dict[str, float] = field(default_factory=dict)  # of that call
    problems: tuple[str, ...] = ()  # why rows failed, of the first call


def measure(runner: RewardRunner, rollout: Rollout, *, once: bool) -> Measured:
    """Score a rollout; then the same rows again; then backwards, in three batches.

    Args:
        runner: a row that it fails on must not stop it.
        rollout: the completions.
        once: score once and stop there.
    """
    with _heard() as problems:
        scored, seconds, logged = _call(runner, rollout)
    totals = totals_of(scored, runner.config)
    if once:
        return Measured(scored, totals, None, None, seconds, logged, tuple(problems))
    with _heard():  # what fails now has been told
        # The first call may load a lexicon or compile; the second takes what every later one will take.
        second, seconds, logged = _call(runner, rollout)
        rows = torch.arange(len(rollout)).flip(0)
        elsewhere = torch.full_like(totals, torch.nan)
        for part in _parts(len(rollout.prompts)):
            found = totals_of(_call(runner, backwards(rollout, part))[0], runner.config)
            size = rollout.group_size
            elsewhere[rows[part.start * size : part.stop * size]] = found
    again = totals_of(second, runner.config)
    return Measured(scored, totals, again, elsewhere, seconds, logged, tuple(problems))


def totals_of(scored: ScoredRollout, config: RewardConfig) -> Tensor:
    """(B,) float64: what a run maximises, but for normalisation: the clipped score, rewards per token, the penalty.

    Args:
        scored: by the runner of ``config``.
        config: its ``clip`` and ``missing_eos_penalty`` are applied.

    Returns:
        Reward units; NaN where nothing could score the row.
    """
    scores = scored.scores.double()
    if config.clip is not None:
        scores = scores.clamp(*config.clip)
    totals = scores + scored.totals.double() - scored.scores.double()
    totals = totals - config.missing_eos_penalty * scored.rollout.truncated
    return torch.where(scored.valid, totals, torch.nan)


def backwards(rollout: Rollout, part: range) -> Rollout:
    """Some groups of a rollout counted from its end, the last row of the last one first.

    Args:
        rollout: P groups.
        part: of ``range(P)``.
    """
    size, last = rollout.group_size, len(rollout.prompts) - 1
    groups = [last - place for place in part]
    rows = [group * size + place for group in groups for place in reversed(range(size))]
    old = rollout.prompts
    prompts = PromptBatch(
        old.indices[groups],
        tuple(old.prompts[group] for group in groups),
        old.prompt_ids[groups],
        old.prompt_mask[groups],
        {name: [values[group] for group in groups] for name, values in old.columns.items()},
    )
    return Rollout(
        prompts,
        size,
        rollout.response_ids[rows],
        rollout.response_mask[rows],
        rollout.logprobs[rows],
        tuple(rollout.finish_reason[row] for row in rows),
        tuple(rollout.texts[row] for row in rows),
    )


def _parts(count: int) -> Iterator[range]:
    start = 0
    for share in _PARTS:
        stop = max(start, round(share * count))
        if stop > start:
            yield range(start, stop)
        start = stop


def _call(runner: RewardRunner, rollout: Rollout) -> tuple[ScoredRollout, float, dict[str, float]]:
    logged: dict[str, float] = {}
    start = time.perf_counter()
    scored = runner(rollout, logged.__setitem__)
    return scored, time.perf_counter() - start, logged


@contextmanager
def _heard() -> Iterator[Sequence[str]]:
    """Why rows failed, which the runner says in its log, and which would fill the screen."""

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    messages: list[str] = []
    logger, handler = logging.getLogger("rlhf_pg.rewards"), Keep()
    before = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.propagate = before
