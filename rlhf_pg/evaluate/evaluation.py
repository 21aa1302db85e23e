"""What a policy is worth on held-out prompts: reward, exact KL, win rate, each with its error."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf_pg.config.tree import Config
from rlhf_pg.data import PromptSource
from rlhf_pg.distributed import gather, own_part
from rlhf_pg.evaluate.statistics import clustered_mean, win_rates
from rlhf_pg.forward import Forward
from rlhf_pg.loading import Models
from rlhf_pg.models import Policy
from rlhf_pg.ops.masking import masked_sum
from rlhf_pg.ops.sampling import row_uniforms
from rlhf_pg.rewards import RewardRunner
from rlhf_pg.rollout import Sampler
from rlhf_pg.types import Rollout, ScoredRollout


@dataclass(slots=True)
class Evaluator:
    """Measures the policy on all held-out prompts, with the same random numbers each time.

    The reference's own completions, for the win rate, are drawn with other numbers, once, when they are first needed.
    """

    config: Config
    source: PromptSource
    models: Models
    runner: RewardRunner
    accelerator: Accelerator
    reference_scores: Tensor | None = field(default=None)  # (P, G)

    def __call__(self) -> dict[str, float]:
        """All ``eval/...`` metrics, the same on each process. Rewards in reward units, KL in nats."""
        if self.reference_scores is None:
            with self.models.reference.active() as frozen:
                found = self._rows(self._sample(frozen, "reference"))
            self.reference_scores = self._gathered(found)["reward"].view(len(self.source), -1)
        scored = self._sample(self.models.policy, "policy")
        table = self._gathered(self._rows(scored) | self._passes(scored.rollout))
        texts = [text for text in self.source.texts for _ in range(self.config.evaluation.samples_per_prompt)]
        metrics: dict[str, float] = {"eval/prompts": len(set(self.source.texts))}
        for name, values in table.items():
            if name in ("tokens", "entropy_sum"):
                continue
            mean, error = clustered_mean(values, texts)
            metrics[f"eval/{name}"] = mean
            if name in ("reward", "kl/sequence", "kl/k1") or name.startswith("rewards/"):
                metrics[f"eval/{name}_stderr"] = error
        tokens = table["tokens"].sum()
        metrics["eval/kl/token"] = float(table["kl/sequence"].sum() / tokens)
        metrics["eval/entropy"] = float(table["entropy_sum"].sum() / tokens)
        wins = win_rates(table["reward"].view(len(self.source), -1), self.reference_scores)
        metrics["eval/win_rate"], metrics["eval/win_rate_stderr"] = clustered_mean(wins, self.source.texts)
        # An error needs two prompts, a mean one scorable row: what cannot be told is left out.
        return {name: value for name, value in metrics.items() if math.isfinite(value)}

    def _sample(self, policy: Policy, purpose: str) -> ScoredRollout:
        """This process's part of the held-out prompts, completed and scored."""
        settings, rollout = self.config.evaluation, self.config.rollout
        sampler = replace(
            Sampler.of(self.config, self.models, self.accelerator.autocast),
            temperature=self._temperature,
            top_p=settings.top_p,
        )
        own, group = own_part(len(self.source), self.accelerator), settings.samples_per_prompt
        rows = range(own.start * group, own.stop * group)
        numbers = row_uniforms(settings.seed, "evaluate", purpose, rows=rows, columns=rollout.max_new_tokens)
        return self.runner(sampler(policy, self.source.rows(own.start, own.stop), numbers))

    @property
    def _temperature(self) -> float:
        return self.config.evaluation.temperature or self.config.rollout.temperature

    def _rows(self, scored: ScoredRollout) -> dict[str, Tensor]:
        """(rows,) what is known of each completion without another forward pass."""
        rollout = scored.rollout
        total = scored.scores.double() + masked_sum(scored.token_rewards.double(), rollout.response_mask, 1)
        return {
            "reward": torch.where(scored.valid, total, torch.nan),
            **{f"rewards/{name}/mean": values.double() for name, values in scored.components.items()},
            "rewards/unscorable": (~scored.valid).double(),
            "completions/mean_length": rollout.lengths.double(),
            "completions/clipped_ratio": rollout.truncated.double(),
        }

    def _passes(self, rollout: Rollout) -> dict[str, Tensor]:
        """(rows,) KL and entropy of the full distributions along each completion, nats."""
        forward = Forward(
            self.accelerator.device,
            self.config.update.micro_batch_tokens,
            self._temperature,
            self.accelerator.autocast,
        )
        rows = [range(len(rollout))]
        logprobs, entropies, kl = forward.policy(self.models.policy, rollout, rows, self.models.reference)
        assert kl is not None
        k1 = logprobs - forward.reference(self.models.reference, rollout, rows)
        mask = rollout.response_mask
        sums = {"kl/sequence": kl, "kl/k1": k1, "entropy_sum": entropies}
        return {name: masked_sum(x.double(), mask, 1) for name, x in sums.items()} | {
            "tokens": rollout.lengths.double()
        }

    def _gathered(self, table: dict[str, Tensor]) -> dict[str, Tensor]:
        parts = gather(table, self.accelerator)
        return {name: torch.cat([part[name] for part in parts]) for name in table}
