"""Evaluation: statistics by hand, the KL against a dense computation, the same numbers each time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_world import PROMPTS, goodness, save_model, small_config, write_prompts

from rlhf_pg.errors import ConfigError, DataError
from rlhf_pg.evaluate import evaluate_model
from rlhf_pg.evaluate.statistics import clustered_mean, win_rates
from rlhf_pg.tracking import read_metrics, read_table
from rlhf_pg.trainer import Trainer, train

NAN = math.nan


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("policy"), dtype=torch.float64)


# Statistics.


def test_clustered_mean_by_hand() -> None:
    """Mean 3; the clusters' sums of deviations are -3 and 3: sqrt(2 / 1 * 18 / 16) = 1.5."""
    assert clustered_mean(torch.tensor([1.0, 2, 3, 6]), "aabb") == pytest.approx((3.0, 1.5))
    assert clustered_mean(torch.tensor([1.0, 3, 2, 6]), "abab") == pytest.approx((3.0, 1.5))


def test_with_a_cluster_each_it_is_the_usual_error() -> None:
    values = torch.tensor([1.0, 2, 3, 6, 7])
    assert clustered_mean(values, "abcde") == pytest.approx((3.8, float(values.std()) / 5**0.5))


def test_copies_of_a_prompt_do_not_shrink_the_error() -> None:
    values = torch.tensor([1.0, 2, 3, 6, 7])
    assert clustered_mean(values.repeat(4), "abcde" * 4) == pytest.approx(clustered_mean(values, "abcde"))


def test_unknown_values_are_left_out() -> None:
    assert clustered_mean(torch.tensor([1.0, 2, NAN, 3, 6, NAN]), "aabbbc") == pytest.approx((3.0, 1.5))
    mean, error = clustered_mean(torch.tensor([1.0, 2]), "aa")
    assert mean == 1.5
    assert math.isnan(error)
    assert all(math.isnan(x) for x in clustered_mean(torch.tensor([NAN]), "a"))


def test_win_rates_by_hand() -> None:
    """Of the pairs of [1, 2] with [1, 3] one is won and one a tie."""
    ours = torch.tensor([[1.0, 2], [5, 5], [NAN, 4], [NAN, NAN]])
    theirs = torch.tensor([[1.0, 3], [1, 2], [4, NAN], [1, 1]])
    found = win_rates(ours, theirs).tolist()
    assert found[:3] == [0.375, 1.0, 0.5]
    assert math.isnan(found[3])


# The evaluator.


def evaluated(tmp_path: Path, model: str, *more: str, rewards: Any = (goodness,)) -> Trainer:
    config = small_config(tmp_path, model, "policy.dtype=float64", "evaluation.samples_per_prompt=8", *more)
    return Trainer(config, PROMPTS, list(rewards))


def shake(trainer: Trainer) -> None:
    """Move the policy away from its reference."""
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in trainer.models.policy.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=chance, dtype=weight.dtype)


def test_the_reference_itself_has_no_kl_and_wins_half(tmp_path: Path, model: str) -> None:
    trainer = evaluated(tmp_path, model, "evaluation.samples_per_prompt=64")
    assert trainer.evaluator is not None
    found = trainer.evaluator()
    assert found["eval/kl/sequence"] == pytest.approx(0.0, abs=1e-12)
    assert found["eval/kl/k1"] == pytest.approx(0.0, abs=1e-12)
    assert 0.4 < found["eval/win_rate"] < 0.6
    assert found["eval/win_rate"] != 0.5, "the reference's completions must be drawn with other numbers"
    assert found["eval/prompts"] == 4


def test_the_same_numbers_at_each_call_whatever_was_drawn_between(tmp_path: Path, model: str) -> None:
    trainer = evaluated(tmp_path, model)
    assert trainer.evaluator is not None
    shake(trainer)
    found = trainer.evaluator()
    torch.rand(17)
    assert trainer.evaluator() == found
    assert found["eval/kl/sequence"] > 0.01
    other = evaluated(tmp_path, model, "evaluation.seed=5")
    assert other.evaluator is not None
    shake(other)
    assert other.evaluator()["eval/reward"] != found["eval/reward"]
    reseeded = evaluated(tmp_path, model, "run.seed=5")
    assert reseeded.evaluator is not None
    shake(reseeded)
    assert reseeded.evaluator() == found


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_kl_and_entropy_against_the_dense_computation(tmp_path: Path, model: str, temperature: float) -> None:
    trainer = evaluated(tmp_path, model, f"evaluation.temperature={temperature}")
    shake(trainer)
    evaluator = trainer.evaluator
    assert evaluator is not None
    found = evaluator()
    rollout = evaluator._sample(trainer.models.policy, "policy").rollout
    kls, entropy, tokens, texts = [], 0.0, 0, []
    for row in range(len(rollout)):
        at = row // rollout.group_size
        prompt = rollout.prompts.prompt_ids[at][rollout.prompts.prompt_mask[at]]
        ids = torch.cat([prompt, rollout.response_ids[row][rollout.response_mask[row]]])[None]
        with torch.no_grad():
            ours, theirs = (
                torch.log_softmax(policy.model(input_ids=ids).logits[0, len(prompt) - 1 : -1] / temperature, 1)
                for policy in (trainer.models.policy, trainer.models.reference.policy)
            )
        kls.append(float((ours.exp() * (ours - theirs)).sum()))
        entropy -= float((ours.exp() * ours).sum())
        tokens += len(ours)
        texts.append(evaluator.source.texts[at])
    mean, error = clustered_mean(torch.tensor(kls, dtype=torch.float64), texts)
    assert found["eval/kl/sequence"] == pytest.approx(mean, rel=1e-9)
    assert found["eval/kl/sequence_stderr"] == pytest.approx(error, rel=1e-9)
    assert found["eval/kl/token"] == pytest.approx(sum(kls) / tokens, rel=1e-9)
    assert found["eval/entropy"] == pytest.approx(entropy / tokens, rel=1e-9)
    assert abs(found["eval/kl/k1"] - mean) < 6 * max(found["eval/kl/k1_stderr"], 0.05)
    rewards = goodness(list(rollout.texts))
    assert found["eval/reward"] == pytest.approx(sum(rewards) / len(rewards))
    assert found["eval/rewards/goodness/mean"] == pytest.approx(found["eval/reward"])
    assert found["eval/completions/mean_length"] == pytest.approx(tokens / len(rollout))


def test_rows_without_a_score_are_left_out_and_counted(tmp_path: Path, model: str) -> None:
    def half(completions: list[str], **_: Any) -> list[float | None]:
        return [2.0 if row % 2 else None for row in range(len(completions))]

    trainer = evaluated(tmp_path, model, rewards=[half])
    assert trainer.evaluator is not None
    found = trainer.evaluator()
    assert (found["eval/reward"], found["eval/rewards/unscorable"], found["eval/win_rate"]) == (2.0, 0.5, 0.5)


# A saved model.


def test_a_runs_folder_gives_the_runs_own_last_figures(tmp_path: Path, model: str) -> None:
    source = f"data.source={write_prompts(tmp_path)}"
    result = train(small_config(tmp_path, model, source, "policy.dtype=float64"), rewards=[goodness])
    last = {name: value for name, value in read_metrics(result.run_dir)[-1].items() if name.startswith("eval/")}
    assert last["eval/kl/sequence"] > 1e-5
    found = evaluate_model(str(result.run_dir), rewards=[goodness], say=lambda _: None)
    assert found == pytest.approx(last, rel=1e-12)
    recipe = str(result.run_dir / "config.yaml")
    best = evaluate_model(model, recipe, rewards=[goodness], say=lambda _: None)
    assert best["eval/kl/sequence"] == pytest.approx(0.0, abs=1e-12)
    against = evaluate_model(
        model, recipe, reference=str(result.run_dir / "final"), rewards=[goodness], say=lambda _: None
    )
    assert against["eval/kl/sequence"] > 1e-5


def test_what_cannot_be_evaluated(tmp_path: Path, model: str) -> None:
    with pytest.raises(ConfigError, match="--recipe"):
        evaluate_model(model)
    config = small_config(tmp_path, model, f"data.source={write_prompts(tmp_path)}")
    unfinished = Trainer(config, None, [goodness])
    unfinished.files.create()
    with pytest.raises(ConfigError, match="has not ended"):
        evaluate_model(str(unfinished.files.run_dir), rewards=[goodness])
    recipe = str(unfinished.files.run_dir / "config.yaml")
    with pytest.raises(DataError, match=r"data\.eval_size"):
        evaluate_model(model, recipe, ["data.eval_size=0"], rewards=[goodness])


def test_the_samples_of_each_evaluation_are_kept_and_agree_with_its_figures(tmp_path: Path, model: str) -> None:
    config = small_config(tmp_path, model, "policy.dtype=float64", "evaluation.every=2")
    result = train(config, dataset=PROMPTS, rewards=[goodness])
    lines = {line["step"]: line for line in read_metrics(result.run_dir)}
    for step in (0, 2, 3):
        table = read_table(result.run_dir / "evaluations", step)
        rows = len(table["prompt"])
        assert rows == 4 * config.evaluation.samples_per_prompt
        assert {len(column) for column in table.values()} == {rows}
        assert lines[step]["eval/reward"] == pytest.approx(sum(table["reward"]) / rows)
        assert table["reward"] == table["rewards/goodness"] == goodness(table["completion"])
        assert lines[step]["eval/kl/sequence"] == pytest.approx(sum(table["kl"]) / rows, abs=1e-9)
        assert [sum(kl) for kl in table["token_kl"]] == pytest.approx(table["kl"], abs=1e-5)
        assert [len(ids) for ids in table["response_ids"]] == [len(kl) for kl in table["token_kl"]]
    assert not (result.run_dir / "evaluations" / "step-000001.parquet").exists()
