"""The whole configuration, and the combinations that are refused because they cannot work."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import model_validator

from rlhf_pg.config.algorithm import AdvantageConfig, KlConfig, LossConfig, UpdateConfig, ValueConfig
from rlhf_pg.config.base import Section, key
from rlhf_pg.config.rewards import RewardConfig
from rlhf_pg.config.sections import (
    DataConfig,
    EvaluationConfig,
    PolicyConfig,
    ReferenceConfig,
    RolloutConfig,
    RunConfig,
)


class Config(Section):
    """All of a run. ``rlhf-pg config show RECIPE`` prints it with what each key means."""

    run: RunConfig = key(RunConfig(), "The run itself.")
    policy: PolicyConfig = key(PolicyConfig(), "The model that is trained.")
    reference: ReferenceConfig = key(ReferenceConfig(), "The frozen reference.")
    data: DataConfig = key(DataConfig(), "Prompts.")
    rollout: RolloutConfig = key(RolloutConfig(), "Sampling.")
    reward: RewardConfig = key(RewardConfig(), "What is maximised.")
    kl: KlConfig = key(KlConfig(), "The KL penalty.")
    advantage: AdvantageConfig = key(AdvantageConfig(), "Baselines and advantages.")
    loss: LossConfig = key(LossConfig(), "The surrogate loss.")
    value: ValueConfig = key(ValueConfig(), "The learned value.")
    update: UpdateConfig = key(UpdateConfig(), "The optimizer.")
    evaluation: EvaluationConfig = key(EvaluationConfig(), "Held-out measurements.")

    @model_validator(mode="after")
    def _possible(self) -> Config:
        problems = list(_impossible(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self


def _impossible(c: Config) -> Iterator[str]:
    """Each combination of keys that cannot work, with the reason and the mend."""
    rows, group = c.rollout.prompts_per_step * c.rollout.group_size, c.rollout.group_size
    baseline, kl, loss = c.advantage.baseline, c.kl, c.loss

    if baseline in ("leave_one_out", "group_mean", "optimal", "optimal_length") and group < 2:
        yield (
            f"advantage.baseline={baseline} compares the completions of a prompt and needs rollout.group_size >= 2, "
            f"got {group}; raise it, or take advantage.baseline=moving_average"
        )
    if c.advantage.normalize == "group_std" and group < 2:
        yield f"advantage.normalize=group_std needs rollout.group_size >= 2, got {group}; raise it, or take batch_std"
    if rows % c.update.minibatches:
        nearest = min((n for n in range(1, rows + 1) if rows % n == 0), key=lambda n: abs(n - c.update.minibatches))
        yield (
            f"update.minibatches={c.update.minibatches} does not divide the {rows} rows of a step "
            f"(rollout.prompts_per_step x rollout.group_size); the nearest that does is {nearest}"
        )
    placements = {"k1": ("reward",), "k2": ("loss",), "k3": ("loss",), "exact": ("both",)}[kl.estimator]
    if kl.placement not in placements:
        why = {
            "k1": "k1 in the loss has no gradient in expectation",
            "k2": "k2 in the reward has not the gradient of the KL",
            "k3": "k3 in the reward has not the gradient of the KL",
            "exact": "the exact KL's gradient has a term in the loss and one in the reward-to-go; either alone is wrong",
        }[kl.estimator]
        yield f"kl.estimator={kl.estimator} with kl.placement={kl.placement}: {why}; set kl.placement={placements[0]}"
    passes = c.update.epochs * c.update.minibatches
    if loss.policy == "reinforce" and passes > 1:
        yield (
            f"loss.policy=reinforce is right for the first update only, and update.epochs x update.minibatches is {passes}; "
            "set both to 1, or take loss.policy=ppo_clip or importance_weighted"
        )
    if loss.policy != "ppo_clip" and loss.dual_clip is not None:
        yield f"loss.dual_clip belongs to loss.policy=ppo_clip, and loss.policy is {loss.policy}; remove it"
    if loss.policy == "reinforce" and loss.ratio == "sequence":
        yield "loss.ratio=sequence has no meaning for loss.policy=reinforce, which has no ratio; set loss.ratio=token"
    if baseline != "value" and c.advantage.lam != 1.0:
        yield f"advantage.lam={c.advantage.lam} needs a learned value: set advantage.baseline=value, or remove it"
    if baseline != "constant" and c.advantage.constant != 0.0:
        yield f"advantage.constant={c.advantage.constant} is used by advantage.baseline=constant alone, and it is {baseline}"
    if baseline != "value" and c.value != ValueConfig():
        yield f"value.* is used by advantage.baseline=value alone, and it is {baseline}; set it, or remove value.*"
    if kl.controller == "adaptive" and kl.coef == 0:
        yield "kl.controller=adaptive multiplies kl.coef, and 0 stays 0; start it above 0, for example kl.coef=0.05"
    if c.update.target_kl is not None and passes == 1:
        yield "update.target_kl ends the passes early, and there is one only; raise update.epochs, or remove it"
    if c.update.warmup_steps >= c.run.steps and c.update.warmup_steps > 0:
        yield f"update.warmup_steps={c.update.warmup_steps} must be below run.steps={c.run.steps}"
    if c.policy.dtype == "float16" and c.policy.lora is None:
        yield (
            "policy.dtype=float16 underflows in AdamW when all weights are trained; take policy.dtype=bfloat16, "
            "policy.dtype=float32 with run.mixed_precision=fp16, or policy.lora={}"
        )
