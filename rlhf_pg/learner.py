"""``TrainBatch`` -> optimizer steps: epochs x minibatches x micro-batches."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from rlhf_pg.config.tree import Config
from rlhf_pg.distributed import Sums, own_part, part_of
from rlhf_pg.errors import TrainingError
from rlhf_pg.forward import MicroBatch, minibatch_rows, pack, plan, total_lengths
from rlhf_pg.loading import Models
from rlhf_pg.models import Reference
from rlhf_pg.ops import losses
from rlhf_pg.ops.kl import kl_estimate
from rlhf_pg.ops.masking import masked_sum
from rlhf_pg.types import TrainBatch

PolicyLoss = Callable[..., tuple[Tensor, losses.Metrics]]


def _policy_loss(config: Config) -> PolicyLoss:
    """The policy loss of the config as a function of (logprobs, old_logprobs, advantages, mask, denominator, weights)."""
    loss = config.loss

    def reinforce(logprobs: Tensor, _: Tensor, *rest: Any) -> tuple[Tensor, losses.Metrics]:
        return losses.reinforce_loss(logprobs, *rest)

    def importance_weighted(*given: Any) -> tuple[Tensor, losses.Metrics]:
        return losses.importance_weighted_loss(*given, ratio=loss.ratio)

    def ppo_clip(*given: Any) -> tuple[Tensor, losses.Metrics]:
        return losses.ppo_clip_loss(
            *given, clip_low=loss.clip_low, clip_high=loss.clip_high, dual_clip=loss.dual_clip, ratio=loss.ratio
        )

    choices: dict[str, PolicyLoss] = {
        "reinforce": reinforce,
        "importance_weighted": importance_weighted,
        "ppo_clip": ppo_clip,
    }
    return choices[loss.policy]


class Learner:
    """Updates the policy, and the value model where there is one.

    Every loss is divided by the count of the whole optimizer step, over all micro-batches and processes, so the gradient
    does not depend on how the step was split. This class alone undoes the averaging of data parallelism.

    Args:
        config: the run's.
        models: loaded, on the accelerator's device.
        accelerator: prepares policy, value model and optimizer.
    """

    def __init__(self, config: Config, models: Models, accelerator: Accelerator) -> None:
        self.config, self.accelerator = config, accelerator
        self.reference: Reference = models.reference
        named = list(models.policy.named_parameters(prefix="policy"))
        groups = [{"params": [p for _, p in named if p.requires_grad], "peak": config.update.learning_rate}]
        if models.value is not None:
            rate = config.value.learning_rate or 10 * config.update.learning_rate
            of_value = list(models.value.named_parameters(prefix="value"))
            groups.append({"params": [p for _, p in of_value if p.requires_grad], "peak": rate})
            named += of_value
        self.named_parameters = [(name, weight) for name, weight in named if weight.requires_grad]
        if not groups[0]["params"]:
            raise TrainingError("no weight of the policy requires a gradient, so nothing would be trained")
        update = config.update
        optimizer = torch.optim.AdamW(
            groups, lr=update.learning_rate, betas=update.betas, eps=update.eps, weight_decay=update.weight_decay
        )
        self.optimizer: Any = accelerator.prepare(optimizer)
        self.policy: nn.Module = accelerator.prepare(models.policy)
        self.value: nn.Module | None = None if models.value is None else accelerator.prepare(models.value)
        self._policy_loss = _policy_loss(config)
        self.nonfinite_in_a_row = 0

    @property
    def adamw(self) -> torch.optim.AdamW:
        """The optimizer under accelerate's wrapper."""
        return cast(torch.optim.AdamW, getattr(self.optimizer, "optimizer", self.optimizer))

    def update(self, batch: TrainBatch, step: int, kl_coef: float) -> dict[str, float]:
        """Do a step's optimizer updates.

        Args:
            batch: global tables.
            step: counts from 1; seeds the minibatches, and sets learning rate and entropy coefficient.
            kl_coef: beta, for a KL in the loss.

        Returns:
            Metrics over all processes.

        Raises:
            TrainingError: ``update.max_nonfinite`` updates in a row had a non-finite gradient.
        """
        update = self.config.update
        rate = schedule(update.schedule, step, self.config.run.steps, update.warmup_steps)
        for group in self.adamw.param_groups:
            group["lr"] = group["peak"] * rate
        entropy_coef = self.config.loss.entropy_coef
        if self.config.loss.entropy_schedule == "linear":
            entropy_coef *= 1 - step / self.config.run.steps
        sums, norms, counts = Sums(), [], {"updates": 0, "updates/skipped_empty": 0, "updates/skipped_nonfinite": 0}
        for epoch in range(update.epochs):
            drift = Sums()
            for rows in minibatch_rows(len(batch.rollout), update.minibatches, self.config.run.seed, step, epoch):
                if self._nothing_to_learn(batch, rows, kl_coef, entropy_coef):
                    counts["updates/skipped_empty"] += 1
                    continue
                norm = self._minibatch(batch, rows, kl_coef, entropy_coef, sums, drift)
                if math.isfinite(norm):
                    norms.append(norm)
                    counts["updates"] += 1
                else:
                    counts["updates/skipped_nonfinite"] += 1
            moved = drift.means(self.accelerator).get("approx_kl", 0.0) if update.target_kl is not None else 0.0
            if update.target_kl is not None and moved > update.target_kl:
                break
        means = sums.means(self.accelerator)
        return {
            **means,
            **counts,
            "grad_norm": sum(norms) / len(norms) if norms else 0.0,
            "learning_rate": update.learning_rate * rate,
            "epochs": epoch + 1,
        }

    def _nothing_to_learn(self, batch: TrainBatch, rows: list[int], kl_coef: float, entropy_coef: float) -> bool:
        """Every active term has nothing but zero coefficients; Adam would still move."""
        kl_in_loss = self.config.kl.placement != "reward" and kl_coef != 0
        others = self.value is not None or entropy_coef != 0 or kl_in_loss
        mask = batch.mask[rows]
        return not bool(mask.any()) or (not others and not bool((batch.advantages[rows] * mask).any()))

    def _minibatch(
        self, batch: TrainBatch, rows: list[int], kl_coef: float, entropy_coef: float, sums: Sums, drift: Sums
    ) -> float:
        """One optimizer step; the gradient's norm, which is the same on each process."""
        kind, longest = self.config.loss.aggregate, self.config.rollout.max_new_tokens
        shares = torch.zeros(len(batch.rollout), 1, dtype=batch.advantages.dtype)
        shares[rows], denominator = losses.aggregate_weights(batch.mask[rows], kind, longest, shares.dtype)
        micro_batches = self._micro_batches(batch, rows)
        for number, own in enumerate(micro_batches):
            last = number + 1 == len(micro_batches)
            # A process without rows left walks a row with weight 0: data parallelism waits for each process.
            part = pack(batch.rollout, own or [0], self.accelerator.device)
            with contextlib.ExitStack() as stack:
                for model in (self.policy, self.value):
                    if model is not None and not last:
                        stack.enter_context(self.accelerator.no_sync(model))
                loss = self._loss(batch, part, bool(own), shares, denominator, kl_coef, entropy_coef, sums, drift)
                self.accelerator.backward(loss * self.accelerator.num_processes)
        once = 1 / self.accelerator.num_processes
        sums.add({"loss": (0.0, once)} | ({"value_loss": (0.0, once)} if self.value is not None else {}))
        return self._step()

    def _micro_batches(self, batch: TrainBatch, rows: list[int]) -> list[list[int]]:
        """This process's micro-batches, with empty ones at the front so that each process has as many as any."""
        lengths, world = total_lengths(batch.rollout), self.accelerator.num_processes
        most = self.config.update.micro_batch_tokens

        def cut(part: Iterable[int]) -> list[list[int]]:
            inside = set(part)
            return plan(lengths, [row for row in rows if row in inside], most)

        own = cut(own_part(len(batch.rollout), self.accelerator))
        widest = max(len(cut(part_of(len(batch.rollout), rank, world))) for rank in range(world)) if world > 1 else 0
        return [[] for _ in range(widest - len(own))] + own

    def _loss(
        self,
        batch: TrainBatch,
        part: MicroBatch,
        counted: bool,
        shares: Tensor,
        denominator: float,
        kl_coef: float,
        entropy_coef: float,
        sums: Sums,
        drift: Sums,
    ) -> Tensor:
        """The micro-batch's part of the loss; summed over all parts and processes it is the step's."""
        device = self.accelerator.device

        def rows_of(table: Tensor) -> Tensor:
            return table[part.rows].to(device)

        mask = rows_of(batch.mask) & counted
        weights = rows_of(shares)
        placement = self.config.kl.placement
        exact = self.reference if placement == "both" and kl_coef else None
        with self.accelerator.autocast():
            found = self.policy(part.input_ids, part.positions, part.targets, self.config.rollout.temperature, exact)
        logprobs, entropies = part.table(found[0]), part.table(found[1])
        old = logprobs.detach() if batch.old_logprobs is None else rows_of(batch.old_logprobs)
        policy_weights = weights if batch.weights is None else weights * rows_of(batch.weights)
        loss, metrics = self._policy_loss(logprobs, old, rows_of(batch.advantages), mask, denominator, policy_weights)
        bonus, of_entropy = losses.entropy_bonus(entropies, mask, denominator, weights)
        loss = loss + entropy_coef * bonus if entropy_coef else loss
        if placement != "reward" and kl_coef:
            penalty, of_kl = losses.kl_loss(self._kl(batch, part, logprobs, found[2], mask), mask, denominator, weights)
            loss = loss + kl_coef * penalty
            metrics |= of_kl
        if self.value is not None:
            assert batch.old_values is not None
            assert batch.returns is not None
            with self.accelerator.autocast():
                values = part.table(self.value(part.input_ids, part.positions))
            targets = rows_of(batch.old_values), rows_of(batch.returns)
            value_loss, of_value = losses.value_loss(
                values, *targets, mask, denominator, weights, clip=self.config.value.clip
            )
            loss = loss + self.config.value.coef * value_loss
            metrics |= {name: pair for name, pair in of_value.items() if name != "value_loss"}
            sums.add({"value_loss": (value_loss.detach(), 0.0)})
        if counted:
            if batch.old_logprobs is None:
                gap = (logprobs.detach() - rows_of(batch.rollout.logprobs)).abs()
                metrics = {**metrics, "logprob_gap": (masked_sum(gap, mask), mask.sum())}
            drift.add({name: pair for name, pair in metrics.items() if name == "approx_kl"})
            sums.add({**metrics, **of_entropy})
        sums.add({"loss": (loss.detach(), 0.0)})
        return loss

    def _kl(self, batch: TrainBatch, part: MicroBatch, logprobs: Tensor, exact: Tensor | None, mask: Tensor) -> Tensor:
        """(R, T) the differentiable KL of the loss."""
        if exact is not None:
            return part.table(exact)
        assert batch.ref_logprobs is not None
        theirs = batch.ref_logprobs[part.rows].to(logprobs.device)
        return kl_estimate(logprobs, theirs, cast(Any, self.config.kl.estimator), mask)

    def _step(self) -> float:
        """Clip each model's gradient, and step unless one is not finite.

        Gradients are the same on each process, so all agree.
        """
        limit = self.config.update.max_grad_norm or math.inf
        self.accelerator.unscale_gradients()
        norms = [float(nn.utils.clip_grad_norm_(group["params"], limit)) for group in self.adamw.param_groups]
        norm = norms[0] if all(map(math.isfinite, norms)) else math.nan
        if math.isfinite(norm):
            self.nonfinite_in_a_row = 0
            self.optimizer.step()
        else:
            self.nonfinite_in_a_row += 1
        if self.accelerator.scaler is not None and not math.isfinite(norm):
            self.optimizer.step()  # the scaler leaves the weights alone and lowers its scale
        self.optimizer.zero_grad()
        if self.nonfinite_in_a_row >= self.config.update.max_nonfinite:
            raise TrainingError(
                f"{self.nonfinite_in_a_row} updates in a row had a non-finite gradient (update.max_nonfinite); the last "
                "checkpoint is whole: resume it with a lower update.learning_rate, or look for infinite rewards"
            )
        return norm


def schedule(kind: str, step: int, steps: int, warmup: int) -> float:
    """The share of the peak learning rate at a step.

    It rises linearly over ``warmup`` steps, then stays (constant), or falls to 0 after the last step as 1 - x (linear)
    or (1 + cos(pi x)) / 2 (cosine), x the share of the remaining steps done.

    Args:
        kind: constant, linear or cosine.
        step: counts from 1.
        steps: of the run.
        warmup: steps of the rise.
    """
    if step <= warmup:
        return step / (warmup + 1)
    done = (step - 1 - warmup) / max(1, steps - warmup)
    return {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[kind]
