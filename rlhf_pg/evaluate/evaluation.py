"""What a policy is worth on held-out prompts: reward, exact KL, win rate, each with its error."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

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

    Attributes:
        samples: the last measurement, a row a completion, the same on each process: prompts, texts, rewards, KL.
    """

    config: Config
    source: PromptSource
    models: Models
    runner: RewardRunner
    accelerator: Accelerator
    reference_scores: Tensor | None = field(default=None)  # (P, G)
    samples: dict[str, list[Any]] = field(default_factory=dict)

    def __call__(self) -> dict[str, float]:
        """All ``eval/...`` metrics, the same on each process. Rewards in reward units, KL in nats."""
        if self.reference_scores is None:
            with self.models.reference.active() as frozen:
                found = self._rows(self._sample(frozen, "reference"))
            self.reference_scores = self._gathered(found)["reward"].view(len(self.source), -1)
        scored = self._sample(self.models.policy, "policy")
        passes, token_kl = self._passes(scored.rollout)
        table = self._gathered(self._rows(scored) | passes)
        texts = [text for text in self.source.texts for _ in range(self.config.evaluation.samples_per_prompt)]
        self.samples = self._columns(scored.rollout, table, token_kl, texts)
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

    def _passes(self, rollout: Rollout) -> tuple[dict[str, Tensor], Tensor]:
        """(rows,) KL and entropy of the full distributions along each completion, nats; and the KL (rows, T) of each state."""
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
        table = {name: masked_sum(x.double(), mask, 1) for name, x in sums.items()}
        return table | {"tokens": rollout.lengths.double()}, kl

    def _columns(
        self, rollout: Rollout, table: dict[str, Tensor], token_kl: Tensor, texts: list[str]
    ) -> dict[str, list[Any]]:
        """The rows of all processes, as columns."""
        lengths = rollout.lengths.tolist()
        own: dict[str, list[Any]] = {
            "completion": list(rollout.texts),
            "finish_reason": list(rollout.finish_reason),
            "response_ids": [ids[:n] for ids, n in zip(rollout.response_ids.tolist(), lengths, strict=True)],
            "token_kl": [kl[:n] for kl, n in zip(token_kl.tolist(), lengths, strict=True)],
        }
        parts = gather(own, self.accelerator)
        group = self.config.evaluation.samples_per_prompt
        return {
            "prompt_index": [int(index) for index in self.source.indices for _ in range(group)],
            "prompt": texts,
            **{name: [value for part in parts for value in part[name]] for name in own},
            "reward": table["reward"].tolist(),
            **{name.removesuffix("/mean"): x.tolist() for name, x in table.items() if name.endswith("/mean")},
            "kl": table["kl/sequence"].tolist(),
            "kl_k1": table["kl/k1"].tolist(),
            "entropy": table["entropy_sum"].tolist(),
        }

    def _gathered(self, table: dict[str, Tensor]) -> dict[str, Tensor]:
        parts = gather(table, self.accelerator)
        return {name: torch.cat([part[name] for part in parts]) for name in table}
