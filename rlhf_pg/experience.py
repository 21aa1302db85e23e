"""What a step learns from: completions, their scores, and the forward passes over them.

Each process samples, scores and runs its own prompts; the tables are then gathered, so that every process has all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf_pg.algorithm import AlgorithmState
from rlhf_pg.config.tree import Config
from rlhf_pg.distributed import gather, gather_tables, own_part
from rlhf_pg.forward import Forward, minibatch_rows
from rlhf_pg.learner import Learner
from rlhf_pg.loading import Models
from rlhf_pg.ops.sampling import row_uniforms
from rlhf_pg.rewards import RewardRunner, Scoring
from rlhf_pg.rewards.combine import Normaliser
from rlhf_pg.rollout import Sampler
from rlhf_pg.types import ModelPasses, PromptBatch, Rollout, ScoredRollout

Log = Callable[[str, float], None]


class Experience:
    """Samples, scores and measures a step's completions."""

    def __init__(
        self, config: Config, models: Models, learner: Learner, runner: RewardRunner, accelerator: Accelerator
    ) -> None:
        self.config, self.models, self.learner = config, models, learner
        self.runner, self.accelerator = runner, accelerator
        self.sampler = Sampler.of(config, models, accelerator.autocast)
        self.forward = Forward(
            accelerator.device, config.update.micro_batch_tokens, config.rollout.temperature, accelerator.autocast
        )

    def sample(self, prompts: PromptBatch, step: int) -> tuple[Rollout, Rollout | None]:
        """This process's part of the step's completions, and for ReMax its greedy ones."""
        rollout, own = self.config.rollout, own_part(len(prompts), self.accelerator)
        rows = range(own.start * rollout.group_size, own.stop * rollout.group_size)
        numbers = row_uniforms(self.config.run.seed, "sample", step, rows=rows, columns=rollout.max_new_tokens)
        mine = prompts.rows(own.start, own.stop)
        if self.config.advantage.baseline == "greedy":
            return self.sampler.with_greedy(self.models.policy, mine, numbers)
        return self.sampler(self.models.policy, mine, numbers), None

    def gathered(self, rollout: Rollout, prompts: PromptBatch) -> Rollout:
        """The rollouts of all processes as one."""
        parts = gather(rollout, self.accelerator)
        if len(parts) == 1:
            return rollout
        return Rollout(
            prompts,
            rollout.group_size,
            gather_tables([part.response_ids for part in parts]),
            gather_tables([part.response_mask for part in parts]),
            gather_tables([part.logprobs for part in parts]),
            tuple(reason for part in parts for reason in part.finish_reason),
            tuple(text for part in parts for text in part.texts),
        )

    def scored(
        self, scoring: Scoring, greedy: Rollout | None, rollout: Rollout, state: AlgorithmState, log: Log
    ) -> tuple[ScoredRollout, ScoredRollout, Tensor | None, AlgorithmState]:
        """What the reward functions said.

        Args:
            scoring: this process's rows, being scored.
            greedy: this process's greedy completions, for ReMax.
            rollout: of all processes.
            state: before the step.
            log: takes the functions' metrics, of all processes.

        Returns:
            The scores of all processes; the same with those rewards normalised that ask for it; (P,) what the greedy
            completions score, normalised alike, 0, which is as unbiased, where no function could tell; and the state with the
            moments of the normalised rewards.
        """
        logged: dict[str, float] = {}
        mine = scoring.result(logged.__setitem__)
        parts = gather(mine, self.accelerator)
        scored = mine if len(parts) == 1 else _joined(parts, rollout)
        for name, value in joined_metrics(gather(logged, self.accelerator)).items():
            log(name, value)
        greedy_parts = [] if greedy is None else gather(self.runner(greedy), self.accelerator)
        shaped = scored
        if self.runner.normalises:
            normaliser = Normaliser(state.rewards)
            shaped = self.runner.normalised(scored, normaliser)
            greedy_parts = [self.runner.normalised(part, normaliser.again) for part in greedy_parts]
            state = replace(state, rewards=normaliser.state)
        return scored, shaped, torch.cat([part.totals for part in greedy_parts]) if greedy_parts else None, state

    def passes(self, rollout: Rollout, step: int) -> ModelPasses:
        """The forward passes that the algorithm asks for, over this process's rows, gathered."""
        config, models = self.config, self.models
        own = own_part(len(rollout), self.accelerator)
        # The parts of the first epoch's minibatches: the learner's first pass then has the same shapes to the bit.
        cuts = minibatch_rows(len(rollout), config.update.minibatches, config.run.seed, step, 0)
        parts = [part for part in ([row for row in rows if row in own] for rows in cuts) if part]
        found: dict[str, Tensor] = {}
        penalised = config.kl.coef > 0
        passes_over = config.update.epochs * config.update.minibatches
        exact = penalised and config.kl.placement == "both"
        if passes_over > 1 or config.loss.truncated_is is not None or exact:
            reference = models.reference if exact else None
            found["old_logprobs"], _, kl = self.forward.policy(self.learner.policy, rollout, parts, reference)
            found |= {} if kl is None else {"exact_kl": kl}
        if penalised and not exact:
            found["ref_logprobs"] = self.forward.reference(models.reference, rollout, parts)
        if self.learner.value is not None:
            found["values"] = self.forward.values(self.learner.value, rollout, parts)
        if config.advantage.baseline == "optimal":
            found["grad_sq_norms"] = self.forward.grad_sq_norms(models.policy, rollout, own)
        gathered = gather(found, self.accelerator)
        return ModelPasses(**{name: torch.cat([part[name] for part in gathered]) for name in found})


def _joined(parts: Sequence[ScoredRollout], rollout: Rollout) -> ScoredRollout:
    """The scores of each process's rows as those of the whole rollout."""
    extras = sorted({name for part in parts for name in part.extras})
    return ScoredRollout(
        rollout,
        torch.cat([part.scores for part in parts]),
        {name: torch.cat([part.components[name] for part in parts]) for name in parts[0].components},
        torch.cat([part.valid for part in parts]),
        gather_tables([part.token_rewards for part in parts]),
        frozenset().union(*(part.per_token for part in parts)),
        {name: [x for part in parts for x in part.extras.get(name, [None] * len(part.scores))] for name in extras},
    )


def joined_metrics(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What the functions logged in each process, of as many rows each: rows are added up, the longest time is taken."""
    names = dict.fromkeys(name for part in parts for name in part)
    values = {name: [part[name] for part in parts if name in part] for name in names}
    return {name: _joined_metric(name, given) for name, given in values.items()}


def _joined_metric(name: str, values: Sequence[float]) -> float:
    if name.startswith("time/rewards/"):
        return max(values)
    counts_rows = name.startswith("rewards/") and name.endswith(("/failed", "/nan"))
    return sum(values) if counts_rows else sum(values) / len(values)


class Timer:
    """Seconds of each phase of a step."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.phases: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time a block."""
        start = time.perf_counter()
        yield
        self.phases[f"time/{phase}"] = time.perf_counter() - start

    def metrics(self, rows: int) -> dict[str, float]:
        """``step_time``, ``samples_per_second`` and ``time/...``."""
        whole = time.perf_counter() - self.start
        return {"step_time": whole, "samples_per_second": rows / whole, **self.phases}
