"""The learner: its gradient against a direct computation, what it skips, when it stops, and what it reports."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from small_world import VOCABULARY, digest, save_model
from torch import Tensor, nn

from rlhf_pg.config.tree import Config
from rlhf_pg.errors import TrainingError
from rlhf_pg.forward import Forward, minibatch_rows
from rlhf_pg.learner import Learner, schedule
from rlhf_pg.loading import Models, load_models
from rlhf_pg.ops import losses
from rlhf_pg.types import PromptBatch, Rollout, TrainBatch

F64 = torch.float64
P, G, T, TEMPERATURE = 3, 4, 5, 0.7
ROWS = P * G


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("policy"), dtype=F64)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("reference"), seed=7, dtype=F64)


def configured(model: str, **sections: dict[str, Any]) -> Config:
    base: dict[str, dict[str, Any]] = {
        "run": {"device": "cpu", "steps": 10},
        "policy": {"model": model, "dtype": "float64"},
        "rollout": {"prompts_per_step": P, "group_size": G, "max_new_tokens": T, "temperature": TEMPERATURE},
        "kl": {"coef": 0.0},
        "update": {"learning_rate": 0.01, "max_grad_norm": None},
    }
    for name, keys in sections.items():
        base[name] = base.get(name, {}) | keys
    return Config.model_validate(base)


def ready(config: Config) -> tuple[Learner, Models]:
    models = load_models(config)
    return Learner(config, models, Accelerator(cpu=True)), models


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def rollout() -> Rollout:
    """Responses of 1 to 5 random tokens after prompts of 1 to 3; NaN log-probabilities in padding."""
    chance = torch.Generator().manual_seed(3)
    ids = torch.randint(4, VOCABULARY, (P, 3), generator=chance)
    mask = torch.tensor([[False, False, True], [False, True, True], [True, True, True]])
    prompts = PromptBatch(torch.arange(P), ("p",) * P, ids, mask)
    lengths = torch.tensor([1, 5, 3, 2, 4, 5, 2, 1, 3, 5, 4, 2])
    inside = torch.arange(T) < lengths[:, None]
    responses = torch.randint(4, VOCABULARY, (ROWS, T), generator=chance)
    logprobs = torch.where(inside, -numbers(4, ROWS, T).abs(), torch.nan)
    return Rollout(prompts, G, responses, inside, logprobs, ("eos",) * ROWS, ("t",) * ROWS)


def dense(model: nn.Module, row: int, sampled: Rollout) -> Tensor:
    """(t, V) log-probabilities at each response token of a row, from its own unpadded pass."""
    prompt = sampled.prompts.prompt_ids[row // G][sampled.prompts.prompt_mask[row // G]]
    response = sampled.response_ids[row][sampled.response_mask[row]]
    logits = model(input_ids=torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits / TEMPERATURE, dim=1)


def taken(model: nn.Module, sampled: Rollout) -> Tensor:
    """(B, T) log-probabilities of the sampled tokens, NaN in padding."""
    found = torch.full(sampled.response_mask.shape, torch.nan, dtype=F64)
    for row in range(ROWS):
        ids = sampled.response_ids[row][sampled.response_mask[row]]
        found[row, : len(ids)] = dense(model, row, sampled).gather(1, ids[:, None])[:, 0].detach()
    return found


def batch_of(models: Models, **more: Any) -> TrainBatch:
    """Random advantages, one row invalid, and old log-probabilities some way off; NaN in padding."""
    sampled = rollout()
    mask = sampled.response_mask.clone()
    mask[6] = False
    old = taken(models.policy.model, sampled) + 0.3 * numbers(5, ROWS, T)
    table = torch.where(mask, numbers(6, ROWS, T), 0.0)
    return TrainBatch(sampled, table, mask, **({"old_logprobs": old} | more))


class Recorded(Exception):
    """Ends an update once its gradients are there."""


def gradients(
    monkeypatch: pytest.MonkeyPatch, learner: Learner, batch: TrainBatch, kl: float = 0.0
) -> dict[str, Tensor]:
    """The gradient of the first optimizer step, as it stands before clipping."""

    def stop(_: Learner) -> float:
        raise Recorded

    learner.optimizer.zero_grad()
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "_step", stop)
        with pytest.raises(Recorded):
            learner.update(batch, 1, kl)
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in learner.named_parameters}


def same(one: dict[str, Tensor], two: dict[str, Tensor], tolerance: float = 1e-12) -> None:
    assert one.keys() == two.keys()
    scale = max(float(grad.abs().max()) for grad in two.values())
    assert scale > 1e-6, "there is no gradient to compare"
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=tolerance * max(1.0, scale))


# The gradient.

LOSSES: list[dict[str, Any]] = [
    {"policy": "reinforce"},
    {"policy": "importance_weighted"},
    {"policy": "importance_weighted", "ratio": "sequence"},
    {"policy": "ppo_clip", "clip_low": 0.1, "clip_high": 0.15},
    {"policy": "ppo_clip", "ratio": "sequence"},
    {"policy": "ppo_clip", "dual_clip": 1.3},
    {"policy": "reinforce", "entropy_coef": 0.2},
    {"policy": "reinforce", "truncated_is": 2.0},
]
AGGREGATES = ["sequence_sum", "token_mean", "fixed", "sequence_mean"]


def direct_loss(config: Config, batch: TrainBatch, models: Models, kl_coef: float = 0.0) -> Tensor:
    """The loss row by row, written out."""
    loss, lengths = config.loss, batch.mask.sum(1)
    sequences, tokens = int((lengths > 0).sum()), int(lengths.sum())
    total = torch.zeros((), dtype=F64)
    for row in range(ROWS):
        n = int(lengths[row])
        if n == 0:
            continue
        everything = dense(models.policy.model, row, batch.rollout)
        ids = batch.rollout.response_ids[row, :n, None]
        logp, a = everything.gather(1, ids)[:, 0], batch.advantages[row, :n]
        if loss.policy == "reinforce":
            terms = -a * logp
        else:
            assert batch.old_logprobs is not None
            difference = logp - batch.old_logprobs[row, :n]
            ratio = difference.exp()
            if loss.ratio == "sequence":
                ratio = difference.sum().exp().detach() * (logp - logp.detach()).exp()
            terms = -ratio * a
            if loss.policy == "ppo_clip":
                clipped = torch.clamp(ratio, 1 - loss.clip_low, 1 + loss.clip_high)
                best = torch.minimum(ratio * a, clipped * a)
                if loss.dual_clip is not None:
                    best = torch.where(a < 0, torch.maximum(best, loss.dual_clip * a), best)
                terms = -best
        if batch.weights is not None:
            terms = terms * batch.weights[row, :n]
        terms = terms + loss.entropy_coef * (everything.exp() * everything).sum(1)
        if kl_coef:
            with torch.no_grad():
                frozen = dense(models.reference.policy.model, row, batch.rollout)
            d = logp - frozen.gather(1, ids)[:, 0]
            kinds = {
                "k2": d.square() / 2,
                "k3": (-d).exp() - 1 + d,
                "exact": (everything.exp() * (everything - frozen)).sum(1),
            }
            terms = terms + kl_coef * kinds[config.kl.estimator]
        divisor = {
            "sequence_sum": sequences,
            "token_mean": tokens,
            "fixed": sequences * T,
            "sequence_mean": sequences * n,
        }
        total = total + terms.sum() / divisor[loss.aggregate]
    return total


def direct_gradient(
    config: Config, batch: TrainBatch, learner: Learner, models: Models, kl: float = 0.0
) -> dict[str, Tensor]:
    names = [name for name, _ in learner.named_parameters]
    weights = [weight for _, weight in learner.named_parameters]
    found = torch.autograd.grad(direct_loss(config, batch, models, kl), weights)
    return dict(zip(names, found, strict=True))


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("loss", LOSSES, ids=lambda keys: "-".join(map(str, keys.values())))
def test_the_gradient_is_the_direct_one(
    folder: str, monkeypatch: pytest.MonkeyPatch, loss: dict[str, Any], aggregate: str
) -> None:
    config = configured(folder, loss={**loss, "aggregate": aggregate}, update={"micro_batch_tokens": 16})
    learner, models = ready(config)
    batch = batch_of(models)
    if "truncated_is" in loss:
        batch = replace(batch, weights=numbers(8, ROWS, T).abs())
    same(gradients(monkeypatch, learner, batch), direct_gradient(config, batch, learner, models))


@pytest.mark.parametrize("aggregate", ["sequence_sum", "token_mean"])
@pytest.mark.parametrize("estimator", ["k2", "k3", "exact"])
def test_the_kl_in_the_loss_is_the_direct_one(
    folder: str, other: str, monkeypatch: pytest.MonkeyPatch, estimator: str, aggregate: str
) -> None:
    placement = "both" if estimator == "exact" else "loss"
    kl = {"coef": 0.1, "placement": placement, "estimator": estimator}
    config = configured(
        folder, kl=kl, loss={"aggregate": aggregate}, update={"micro_batch_tokens": 16}, reference={"model": other}
    )
    learner, models = ready(config)
    sampled = rollout()
    ref = taken(models.reference.policy.model, sampled)
    batch = batch_of(models, ref_logprobs=None if estimator == "exact" else ref)
    same(gradients(monkeypatch, learner, batch, 0.4), direct_gradient(config, batch, learner, models, 0.4))


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_the_split_into_micro_batches_changes_nothing(
    folder: str, monkeypatch: pytest.MonkeyPatch, aggregate: str
) -> None:
    """Trap 22."""
    found = []
    for most in (1, 9, 20, 10_000):
        config = configured(
            folder,
            loss={"policy": "ppo_clip", "aggregate": aggregate, "entropy_coef": 0.1},
            advantage={"baseline": "value"},
            update={"micro_batch_tokens": most, "epochs": 2},
        )
        learner, models = ready(config)
        tables = {"old_values": numbers(1, ROWS, T), "returns": numbers(2, ROWS, T)}
        found.append(gradients(monkeypatch, learner, batch_of(models, **tables)))
    for other_split in found[1:]:
        same(other_split, found[0])


def test_the_value_gradient_is_the_direct_one(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """V is read at the position before each token; the clip of trap 24 cuts the gradient of tokens that moved too far."""
    value = {"clip": 0.2, "coef": 0.7}
    config = configured(folder, advantage={"baseline": "value"}, value=value, update={"micro_batch_tokens": 16})
    learner, models = ready(config)
    assert models.value is not None
    nn.init.normal_(models.value.head.weight, generator=torch.Generator().manual_seed(0))
    tables = {"old_values": 0.3 * numbers(1, ROWS, T), "returns": numbers(2, ROWS, T)}
    batch = batch_of(models, **tables)
    total, clipped = torch.zeros((), dtype=F64), 0
    for row in range(ROWS):
        n = int(batch.mask[row].sum())
        if n == 0:
            continue
        prompt = batch.rollout.prompts.prompt_ids[row // G][batch.rollout.prompts.prompt_mask[row // G]]
        ids = torch.cat([prompt, batch.rollout.response_ids[row, :n]])
        hidden = models.value.backbone(input_ids=ids[None]).last_hidden_state[0, len(prompt) - 1 : -1]
        v, old, wanted = models.value.head(hidden)[:, 0], tables["old_values"][row, :n], tables["returns"][row, :n]
        near = old + (v - old).clamp(-0.2, 0.2)
        errors = torch.stack([(v - wanted).square(), (near - wanted).square()])
        clipped += int((errors[1] > errors[0]).sum())
        total = total + 0.5 * errors.amax(0).sum() / (ROWS - 1)
    assert 0 < clipped < int(batch.mask.sum())
    weights = {name: weight for name, weight in learner.named_parameters if name.startswith("value")}
    wanted_grads = dict(zip(weights, torch.autograd.grad(0.7 * total, list(weights.values())), strict=True))
    found = gradients(monkeypatch, learner, batch)
    same({name: found[name] for name in weights}, wanted_grads)


# The first ratio.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_first_ratio_is_exactly_1(folder: str, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """Trap 6: the passes before the update and the update's first have the same micro-batches, and the same bits."""
    config = configured(
        folder,
        policy={"dtype": dtype},
        loss={"policy": "ppo_clip"},
        update={"epochs": 2, "minibatches": 3, "micro_batch_tokens": 16},
    )
    learner, models = ready(config)
    sampled = rollout()
    cuts = minibatch_rows(ROWS, 3, config.run.seed, 1, 0)
    old = Forward(torch.device("cpu"), 16, TEMPERATURE).policy(learner.policy, sampled, cuts)[0]
    seen: list[tuple[Tensor, Tensor]] = []
    plain = losses.ppo_clip_loss

    def spy(logprobs: Tensor, before: Tensor, advantages: Tensor, mask: Tensor, *rest: Any, **keys: Any) -> Any:
        seen.append((logprobs.detach()[mask], before[mask]))
        return plain(logprobs, before, advantages, mask, *rest, **keys)

    monkeypatch.setattr(losses, "ppo_clip_loss", spy)
    batch = replace(batch_of(models), old_logprobs=old)
    first = []

    def count(self: Learner) -> float:
        first.append(len(seen))
        self.optimizer.zero_grad()
        return 0.0

    monkeypatch.setattr(Learner, "_step", count)
    learner.update(batch, 1, 0.0)
    # No step is taken above, so that every minibatch of the first epoch is seen at the weights of the passes.
    assert len(first) == 6
    assert first[2] > 3
    assert all(torch.equal(now, before) for now, before in seen[: first[2]])


# Nothing to learn.


def weights_hash(learner: Learner) -> str:
    return digest(iter(learner.named_parameters))


def after_zero_advantages(
    config: Config, kl: float = 0.0, warm: bool = True, **more: Any
) -> tuple[bool, dict[str, float]]:
    """Whether the weights moved on advantages of 0, after a step that gave Adam momentum."""
    learner, models = ready(config)
    batch = batch_of(models, **more)
    if warm:
        learner.update(batch, 1, kl)
    before = weights_hash(learner)
    metrics = learner.update(replace(batch, advantages=torch.zeros_like(batch.advantages)), 2, kl)
    return weights_hash(learner) != before, metrics


def test_nothing_to_learn_leaves_the_weights_to_the_bit(folder: str) -> None:
    """Trap 27: AdamW would move them by its momentum and by weight decay."""
    moved, metrics = after_zero_advantages(configured(folder, update={"weight_decay": 0.1}))
    assert not moved
    assert (metrics["updates"], metrics["updates/skipped_empty"], metrics["grad_norm"]) == (0, 1, 0)


def test_a_step_without_a_valid_row_is_skipped_even_with_other_terms(folder: str) -> None:
    learner, models = ready(configured(folder, loss={"entropy_coef": 0.1}))
    batch = batch_of(models)
    before = weights_hash(learner)
    metrics = learner.update(replace(batch, mask=torch.zeros_like(batch.mask)), 1, 0.0)
    assert weights_hash(learner) == before
    assert metrics["updates/skipped_empty"] == 1


@pytest.mark.parametrize("term", ["kl", "exact", "entropy", "value"])
def test_other_terms_have_something_to_learn(folder: str, other: str, term: str) -> None:
    sections: dict[str, dict[str, dict[str, Any]]] = {
        "kl": {"kl": {"coef": 0.1, "placement": "loss", "estimator": "k3"}},
        "exact": {
            "kl": {"coef": 0.1, "placement": "both", "estimator": "exact"},
            "reference": {"model": other},
        },
        "entropy": {"loss": {"entropy_coef": 0.1}},
        "value": {"advantage": {"baseline": "value"}},
    }
    more = {
        "kl": {"ref_logprobs": -numbers(9, ROWS, T).abs()},
        "value": {"old_values": numbers(1, ROWS, T), "returns": numbers(2, ROWS, T)},
    }
    kl = 0.1 if term in ("kl", "exact") else 0.0
    moved, metrics = after_zero_advantages(configured(folder, **sections[term]), kl, False, **more.get(term, {}))
    assert moved
    assert metrics["updates"] == 1


def test_a_kl_of_the_reward_has_nothing_of_its_own_to_learn(folder: str) -> None:
    moved, _ = after_zero_advantages(configured(folder, kl={"coef": 0.1}), 0.1, False)
    assert not moved


# Epochs.


def test_epochs_times_minibatches_are_so_many_updates(folder: str) -> None:
    config = configured(folder, loss={"policy": "ppo_clip"}, update={"epochs": 3, "minibatches": 4})
    learner, models = ready(config)
    metrics = learner.update(batch_of(models), 1, 0.0)
    assert (metrics["updates"], metrics["epochs"]) == (12, 3)


def test_target_kl_ends_the_epochs_early(folder: str) -> None:
    def epochs(target: float, rate: float) -> float:
        update = {"epochs": 4, "minibatches": 2, "target_kl": target, "learning_rate": rate}
        learner, models = ready(configured(folder, loss={"policy": "ppo_clip"}, update=update))
        batch = replace(batch_of(models), old_logprobs=taken(models.policy.model, rollout()))
        return learner.update(batch, 1, 0.0)["epochs"]

    assert epochs(1e9, 0.05) == 4
    assert epochs(1e-6, 0.05) == 1
    assert epochs(1e-6, 0.0) == 4


def test_minibatches_are_a_partition_that_the_seed_decides() -> None:
    found = minibatch_rows(12, 3, 0, 1, 0)
    assert sorted(functools.reduce(operator.iadd, found, [])) == list(range(12))
    assert [len(rows) for rows in found] == [4, 4, 4]
    assert found == minibatch_rows(12, 3, 0, 1, 0)
    assert found != minibatch_rows(12, 3, 0, 1, 1) != minibatch_rows(12, 3, 0, 2, 1)


# Gradients that are not finite.


def test_a_nonfinite_gradient_is_skipped_counted_and_ends_the_run(folder: str) -> None:
    learner, models = ready(configured(folder, update={"max_nonfinite": 3, "weight_decay": 0.1}))
    good = batch_of(models)
    bad = replace(good, advantages=torch.where(good.mask, torch.inf, 0.0))
    before = weights_hash(learner)
    for _ in range(2):
        metrics = learner.update(bad, 1, 0.0)
        assert (metrics["updates"], metrics["updates/skipped_nonfinite"]) == (0, 1)
        assert weights_hash(learner) == before
    learner.update(good, 1, 0.0)
    assert weights_hash(learner) != before
    for _ in range(2):
        learner.update(bad, 1, 0.0)
    with pytest.raises(TrainingError, match="3 updates in a row"):
        learner.update(bad, 1, 0.0)


def test_each_models_gradient_is_clipped_by_itself(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured(folder, advantage={"baseline": "value"}, update={"max_grad_norm": 0.01})
    learner, models = ready(config)
    batch = batch_of(models, old_values=numbers(1, ROWS, T), returns=numbers(2, ROWS, T))
    plain = gradients(monkeypatch, learner, batch)
    whole = math.sqrt(sum(float(grad.square().sum()) for name, grad in plain.items() if name.startswith("policy")))
    learner.optimizer.zero_grad()
    seen: dict[str, Tensor] = {}

    def keep() -> None:
        seen.update({name: p.grad.clone() for name, p in learner.named_parameters if p.grad is not None})

    monkeypatch.setattr(learner.optimizer, "step", keep)
    metrics = learner.update(batch, 1, 0.0)
    assert metrics["grad_norm"] == pytest.approx(whole, rel=1e-12)
    for prefix in ("policy", "value"):
        norm = math.sqrt(sum(float(grad.square().sum()) for name, grad in seen.items() if name.startswith(prefix)))
        assert norm == pytest.approx(0.01, rel=1e-3)


# Schedules.


def test_schedules() -> None:
    assert [schedule("constant", step, 4, 0) for step in (1, 2, 4)] == [1, 1, 1]
    assert [schedule("linear", step, 4, 0) for step in (1, 2, 3, 4)] == [1, 0.75, 0.5, 0.25]
    cosine = [0.5 * (1 + math.cos(math.pi * x)) for x in (0, 0.25, 0.5, 0.75)]
    assert [schedule("cosine", step, 4, 0) for step in (1, 2, 3, 4)] == pytest.approx(cosine)
    assert [schedule("linear", step, 6, 2) for step in (1, 2, 3, 4)] == pytest.approx([1 / 3, 2 / 3, 1, 0.75])


@pytest.mark.parametrize(("value", "peak"), [({"learning_rate": 0.5}, 0.5), ({}, 0.1)])
def test_the_schedule_reaches_the_optimizer_and_the_metrics(folder: str, value: dict[str, float], peak: float) -> None:
    config = configured(
        folder,
        advantage={"baseline": "value"},
        value=value,
        update={"schedule": "linear", "learning_rate": 0.01},
    )
    learner, models = ready(config)
    tables = {"old_values": numbers(1, ROWS, T), "returns": numbers(2, ROWS, T)}
    metrics = learner.update(batch_of(models, **tables), 6, 0.0)
    assert metrics["learning_rate"] == pytest.approx(0.005)
    assert [group["lr"] for group in learner.adamw.param_groups] == pytest.approx([0.005, peak / 2])


def test_the_entropy_bonus_falls_to_zero(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for step, kind in ((5, "linear"), (5, "constant"), (10, "linear")):
        config = configured(folder, loss={"entropy_coef": 0.4, "entropy_schedule": kind})
        learner, models = ready(config)
        found.append(learner.update(batch_of(models), step, 0.0))
    halved, whole, none = (metrics["loss"] for metrics in found)
    sequences = ROWS - 1
    tokens = int(batch_of(models).mask.sum())
    bonus = 0.4 * found[0]["entropy"] * tokens / sequences
    assert none - halved == pytest.approx(bonus / 2, rel=1e-9)
    assert none - whole == pytest.approx(bonus, rel=1e-9)


# LoRA.


def test_lora_trains_adapters_alone(folder: str) -> None:
    """Trap 28: the adapters' hash must change, the base's must not, nor the reference."""
    config = configured(folder, policy={"lora": {"r": 4}})
    learner, models = ready(config)
    names = [name for name, _ in learner.named_parameters]
    assert names
    assert all("lora_" in name for name in names)

    def base() -> str:
        return digest((name, p) for name, p in models.policy.named_parameters() if "lora_" not in name)

    adapters, frozen = weights_hash(learner), base()
    batch = batch_of(models)
    with models.reference.active() as reference:
        before = taken(reference.model, batch.rollout)
    learner.update(batch, 1, 0.0)
    assert weights_hash(learner) != adapters
    assert base() == frozen
    with models.reference.active() as reference:
        assert torch.equal(taken(reference.model, batch.rollout).nan_to_num(), before.nan_to_num())
    assert not torch.equal(taken(models.policy.model, batch.rollout).nan_to_num(), before.nan_to_num())


def test_a_policy_that_is_all_frozen_is_refused(folder: str) -> None:
    config = configured(folder)
    models = load_models(config)
    models.policy.requires_grad_(False)
    with pytest.raises(TrainingError, match="nothing would be trained"):
        Learner(config, models, Accelerator(cpu=True))


# Metrics.


def test_metrics_of_an_update(folder: str, tmp_path: Path) -> None:
    config = configured(
        folder,
        loss={"policy": "ppo_clip", "aggregate": "token_mean"},
        update={"micro_batch_tokens": 16, "learning_rate": 0.0},
    )
    learner, models = ready(config)
    batch = batch_of(models)
    metrics = learner.update(batch, 1, 0.0)
    new, old, mask = taken(models.policy.model, batch.rollout), batch.old_logprobs, batch.mask
    assert old is not None
    d = (new - old)[mask]
    ratio, a = d.exp(), batch.advantages[mask]
    rows = [dense(models.policy.model, row, batch.rollout).detach() for row in range(ROWS) if row != 6]
    entropies = [-(x.exp() * x).sum(1) for x in rows]
    low, high = (a < 0) & (ratio < 0.8), (a > 0) & (ratio > 1.2)
    wanted = {
        "loss": float(-torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a).mean()),
        "ratio": float(ratio.mean()),
        "approx_kl": float((ratio - 1 - d).mean()),
        "clip_ratio": float((low | high).double().mean()),
        "clip_ratio/low": float(low.double().mean()),
        "clip_ratio/high": float(high.double().mean()),
        "entropy": float(torch.cat(entropies).mean()),
        "updates": 1,
        "epochs": 1,
        "updates/skipped_empty": 0,
        "updates/skipped_nonfinite": 0,
    }
    assert float(low.sum()) > 0 < float(high.sum())
    assert {name: metrics[name] for name in wanted} == pytest.approx(wanted, rel=1e-9)


def test_metrics_of_values_and_of_a_first_pass(folder: str) -> None:
    config = configured(folder, advantage={"baseline": "value"}, update={"micro_batch_tokens": 16})
    learner, models = ready(config)
    returns = numbers(2, ROWS, T)
    batch = batch_of(models, old_logprobs=None, old_values=torch.zeros(ROWS, T, dtype=F64), returns=returns)
    new = taken(models.policy.model, batch.rollout)
    metrics = learner.update(batch, 1, 0.0)
    gap = (new - batch.rollout.logprobs)[batch.mask].abs().mean()
    assert metrics["logprob_gap"] == pytest.approx(float(gap), rel=1e-9)
    value_loss = 0.5 * float(returns[batch.mask].square().sum()) / (ROWS - 1)
    assert metrics["value_loss"] == pytest.approx(value_loss, rel=1e-9)
    policy = -float((batch.advantages * new.nan_to_num()).sum()) / (ROWS - 1)
    assert metrics["loss"] == pytest.approx(policy + 0.5 * value_loss, rel=1e-9)


def test_a_batch_learns(folder: str) -> None:
    """Some updates raise the probability of rows with positive advantages over that of the others."""
    config = configured(folder, update={"learning_rate": 0.003})
    learner, models = ready(config)
    sampled = rollout()
    sign = torch.where(torch.arange(ROWS) % 2 == 0, 1.0, -1.0).double()
    batch = TrainBatch(sampled, sign[:, None] * sampled.response_mask, sampled.response_mask)

    def margin() -> float:
        return float((sign * taken(models.policy.model, sampled).nan_to_num().sum(1)).sum())

    before = margin()
    for step in range(1, 4):
        learner.update(batch, step, 0.0)
    assert margin() > before + 1.0
