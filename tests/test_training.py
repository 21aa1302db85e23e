"""Whole runs on a tiny model: what they leave behind, that they repeat and resume to the bit, and bad input."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from small_world import (
    PROMPTS,
    RaiseAt,
    goodness,
    overrides,
    repeatable,
    same_weights,
    save_model,
    saved_weights,
    small_config,
    write_prompts,
    write_reward,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_pg.config.load import load_config
from rlhf_pg.errors import CheckpointError, ConfigError, DataError, RewardError, TrainingError
from rlhf_pg.tracking import read_metrics
from rlhf_pg.trainer import Trainer, TrainResult, resume, train

RECIPES = ["reinforce", "rloo", "grpo", "remax", "ppo"]
EVERY_STEP = {
    "reward",
    "reward_std",
    "rewards/goodness/mean",
    "rewards/goodness/std",
    "kl/sequence",
    "kl/token",
    "kl/coef",
    "entropy",
    "completions/mean_length",
    "completions/clipped_ratio",
    "loss",
    "grad_norm",
    "learning_rate",
    "logprob_gap",
    "num_tokens",
    "step_time",
    "time/rollout",
    "time/reward",
    "time/reference",
    "time/learn",
    "samples_per_second",
    "memory/peak_gb",
}
EVERY_EVALUATION = {
    "eval/reward",
    "eval/reward_stderr",
    "eval/kl/sequence",
    "eval/kl/sequence_stderr",
    "eval/win_rate",
    "eval/win_rate_stderr",
    "eval/completions/mean_length",
    "eval/entropy",
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As the subprocesses have: the bits of a sum depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("policy"))


def run(tmp_path: Path, model: str, *more: str, recipe: str = "rloo", name: str = "run", **given: Any) -> TrainResult:
    config = small_config(tmp_path, model, *more, recipe=recipe, name=name)
    return train(config, given.pop("dataset", PROMPTS), given.pop("rewards", [goodness]), **given)


# What a run leaves behind.


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_recipe_runs_twice_to_the_same_bits(tmp_path: Path, model: str, recipe: str) -> None:
    result = run(tmp_path, model, recipe=recipe)
    folder = result.run_dir
    lines = read_metrics(folder)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    expected = EVERY_STEP | ({"value_loss"} if recipe == "ppo" else set())
    expected |= {"ratio", "clip_ratio"} if recipe in ("grpo", "ppo") else set()
    expected |= {"frac_reward_zero_std"} if recipe in ("grpo", "rloo") else set()
    for line in lines[1:]:
        assert expected <= line.keys()
        assert all(line[name] is not None for name in expected)
        assert line["logprob_gap"] < 1e-4
    assert set(lines[0]) >= EVERY_EVALUATION
    assert set(lines[-1]) >= EVERY_EVALUATION
    assert "eval/reward" not in lines[1]
    assert lines[0]["eval/kl/sequence"] == pytest.approx(0, abs=1e-6)
    assert {name: value for name, value in lines[-1].items() if name != "step"} == result.metrics

    assert load_config(folder / "config.yaml").policy.model == model
    table = pyarrow.parquet.read_table(folder / "rollouts" / "step-000002.parquet")
    rows = lines[2]["completions/mean_length"], table.num_rows
    assert sum(map(len, table["response_ids"].to_pylist())) == pytest.approx(rows[0] * rows[1])
    assert sum(table["score"].to_pylist()) / rows[1] == pytest.approx(lines[2]["reward"])
    for name in ("final", "best"):
        policy = AutoModelForCausalLM.from_pretrained(folder / name)
        assert AutoTokenizer.from_pretrained(folder / name)("good1")["input_ids"] == [1, 9]
        assert torch.isfinite(policy(torch.tensor([[1, 9]])).logits).all()
        assert "rlhf" in (folder / name / "README.md").read_text().lower()
    assert not same_weights(folder / "final", Path(model))
    assert (folder / "training.png").read_bytes().startswith(b"\x89PNG")

    torch.rand(3)
    again = run(tmp_path, model, recipe=recipe, name="again")
    assert repeatable(folder) == repeatable(again.run_dir)
    assert same_weights(folder / "final", again.run_dir / "final")
    other = run(tmp_path, model, "run.seed=1", recipe=recipe, name="other")
    assert not same_weights(folder / "final", other.run_dir / "final")


def test_a_run_learns(tmp_path: Path, model: str) -> None:
    more = ["run.steps=20", "rollout.prompts_per_step=8", "update.learning_rate=1e-2", "kl.coef=0.01"]
    result = run(tmp_path, model, *more)
    lines = read_metrics(result.run_dir)
    assert lines[-1]["eval/reward"] > lines[0]["eval/reward"] + 0.5
    assert lines[-1]["eval/kl/sequence"] > 0.1
    assert lines[-1]["eval/win_rate"] > 0.5


def test_best_stays_within_the_kl_limit(tmp_path: Path, model: str) -> None:
    result = run(tmp_path, model, "evaluation.max_kl=1e-7", "update.learning_rate=0.05", "kl.coef=0")
    assert same_weights(result.run_dir / "best", Path(model))
    assert not same_weights(result.run_dir / "final", Path(model))


def test_nothing_is_held_out_or_evaluated_if_asked_so(tmp_path: Path, model: str) -> None:
    result = run(tmp_path, model, "data.eval_size=0")
    assert not (result.run_dir / "best").exists()
    assert [line["step"] for line in read_metrics(result.run_dir)] == [1, 2, 3]
    assert not any(name.startswith("eval/") for name in result.metrics)


def test_evaluations_come_every_so_many_steps(tmp_path: Path, model: str) -> None:
    result = run(tmp_path, model, "run.steps=5", "evaluation.every=2")
    assert [line["step"] for line in read_metrics(result.run_dir) if "eval/reward" in line] == [0, 2, 4, 5]


# Resuming.

SIX = ["run.steps=6", "run.save_every=2", "evaluation.every=3", "run.keep_last=2"]
VARIANTS: dict[str, tuple[str, list[str]]] = {
    "ppo": ("ppo", ["kl.controller=adaptive", "kl.horizon=50", "kl.target=0.1", "reward.normalize=running"]),
    "moving_average": ("reinforce", ["loss.policy=importance_weighted", "update.epochs=2", "update.schedule=cosine"]),
    "lora": ("rloo", ["policy.lora={r: 4}", "update.weight_decay=0.1"]),
    "exact": ("rloo", ["kl.placement=both", "kl.estimator=exact", "loss.entropy_coef=0.01"]),
}


def assert_same_run(one: Path, other: Path) -> None:
    assert repeatable(one) == repeatable(other)
    for name in ("final", "best"):
        assert same_weights(one / name, other / name)
    for folder in (one, other):
        assert len(list((folder / "rollouts").iterdir())) == 6


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_that_stopped_goes_on_to_the_same_bits(tmp_path: Path, model: str, variant: str) -> None:
    recipe, more = VARIANTS[variant]
    whole = run(tmp_path, model, *SIX, *more, recipe=recipe, name="whole")
    # 2 calls before the first step, one a step and one more in the evaluation after the third: the 8th is step 5's.
    with pytest.raises(RewardError, match="the machine stops here"):
        run(tmp_path, model, *SIX, *more, recipe=recipe, name="stopped", rewards=[RaiseAt(8)])
    stopped = tmp_path / "stopped"
    assert [line["step"] for line in read_metrics(stopped)] == [0, 1, 2, 3, 4]
    result = resume(stopped, dataset=PROMPTS, rewards=[goodness])
    assert_same_run(whole.run_dir, stopped)
    lines = read_metrics(whole.run_dir)
    assert {name: value for name, value in result.metrics.items() if name.startswith("eval/")} == {
        name: value for name, value in lines[-1].items() if name.startswith("eval/")
    }
    if variant == "ppo":
        assert len({line["kl/coef"] for line in lines if "kl/coef" in line}) > 3


@pytest.mark.parametrize("recipe", ["rloo", "ppo"])
def test_a_killed_process_goes_on_to_the_same_bits(tmp_path: Path, model: str, recipe: str) -> None:
    group = ["rollout.group_size=4"] if recipe == "rloo" else ["kl.controller=adaptive", "kl.horizon=50"]
    files = [f"data.source={write_prompts(tmp_path)}", f"reward.functions=[{write_reward(tmp_path)}]"]
    keys = [*group, *SIX, *files]
    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "rlhf_pg", "train", recipe, *overrides(tmp_path, model, *keys, name="killed")]
    environment = os.environ | {"KILL_AT_CALL": "8", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [line["step"] for line in read_metrics(killed)] == [0, 1, 2, 3, 4]
    assert not (killed / "final").exists()
    resume(killed)
    whole = train(load_config(recipe, overrides(tmp_path, model, *keys, name="whole")))
    assert_same_run(whole.run_dir, killed)


def stopped_run(tmp_path: Path, model: str) -> Path:
    with pytest.raises(RewardError):
        run(tmp_path, model, *SIX, rewards=[RaiseAt(8)])
    return tmp_path / "run"


def test_a_damaged_newest_checkpoint_falls_back_with_a_warning(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(tmp_path, model, *SIX, name="whole")
    folder = stopped_run(tmp_path, model)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    weights = folder / "checkpoints" / "step-000004" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    capsys.readouterr()
    resume(folder, dataset=PROMPTS, rewards=[goodness])
    said = capsys.readouterr().out
    assert "is damaged" in said
    assert "Resuming after step 2." in said
    assert_same_run(whole.run_dir, folder)


def test_without_a_whole_checkpoint_there_is_no_resuming(tmp_path: Path, model: str) -> None:
    folder = stopped_run(tmp_path, model)
    for path in folder.glob("checkpoints/*/weights.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="All 2 checkpoints"):
        resume(folder, dataset=PROMPTS, rewards=[goodness])


def test_resume_refuses_other_weights_behind_the_same_name(tmp_path: Path) -> None:
    mine = save_model(tmp_path / "model")
    folder = stopped_run(tmp_path, mine)
    save_model(tmp_path / "model", seed=1)
    with pytest.raises(CheckpointError, match="another reference"):
        resume(folder, dataset=PROMPTS, rewards=[goodness])


def test_resume_refuses_what_would_make_it_another_run(tmp_path: Path, model: str) -> None:
    folder = stopped_run(tmp_path, model)
    for override in ("update.learning_rate=1", "run.seed=3", "kl.coef=1", "policy.model=x"):
        with pytest.raises(ConfigError, match="cannot change on --resume"):
            resume(folder, [override], dataset=PROMPTS, rewards=[goodness])
    with pytest.raises(ConfigError, match="there is no run there"):
        resume(tmp_path / "nothing")


def test_a_run_can_be_made_longer(tmp_path: Path, model: str) -> None:
    whole = run(tmp_path, model, *SIX, name="whole")
    short = run(tmp_path, model, *SIX, "run.steps=4", name="short")
    resume(short.run_dir, ["run.steps=6"], dataset=PROMPTS, rewards=[goodness])
    assert same_weights(whole.run_dir / "final", short.run_dir / "final")
    assert load_config(short.run_dir / "config.yaml").run.steps == 6


def test_before_the_first_checkpoint_a_resumed_run_begins_anew(tmp_path: Path, model: str) -> None:
    whole = run(tmp_path, model, *SIX, name="whole")
    with pytest.raises(RewardError):
        run(tmp_path, model, *SIX, rewards=[RaiseAt(4)])
    resume(tmp_path / "run", dataset=PROMPTS, rewards=[goodness])
    assert_same_run(whole.run_dir, tmp_path / "run")


# Bad input.


def constant(value: Any) -> Callable[..., list[Any]]:
    def reward(completions: Sequence[str], **_: Any) -> list[Any]:
        return [value] * len(completions)

    return reward


def one_short(completions: Sequence[str], **_: Any) -> list[float]:
    return [1.0] * (len(completions) - 1)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (one_short, "values for"),
        (constant("good"), "'good'"),
        (constant(float("inf")), "inf"),
        (lambda completions, **_: 1.0, "returned float"),
        (lambda completions, missing, **_: [0.0] * len(completions), "needs 'missing'"),
    ],
)
def test_a_reward_that_is_none_is_an_error(tmp_path: Path, model: str, reward: Any, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        run(tmp_path, model, rewards=[reward])


def test_a_reward_that_raises_costs_nothing_that_was_done(tmp_path: Path, model: str) -> None:
    folder = stopped_run(tmp_path, model)
    assert [line["step"] for line in read_metrics(folder)] == [0, 1, 2, 3, 4]
    assert len(list((folder / "rollouts").iterdir())) == 4
    assert (folder / "checkpoints" / "step-000004" / "manifest.json").is_file()
    assert (folder / "best" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("dataset", "more", "message"),
    [
        ([], [], "no rows|empty|no prompt"),
        ([{"text_of": "word1"}], [], "text_of"),
        (PROMPTS, ["data.prompt_column=question"], "question"),
        (PROMPTS, ["data.max_prompt_tokens=1"], "max_prompt_tokens=1"),
        (PROMPTS, ["data.eval_size=18"], "data.eval_size"),
    ],
)
def test_data_that_cannot_work_is_an_error_at_the_start(
    tmp_path: Path, model: str, dataset: list[Any], more: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        run(tmp_path, model, *more, dataset=dataset)
    assert not (tmp_path / "run").exists()


def test_over_long_prompts_are_left_out_and_counted(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, model, "data.max_prompt_tokens=3")
    assert "are longer than data.max_prompt_tokens=3 and were left out" in capsys.readouterr().out


def test_a_response_that_would_leave_the_context_is_an_error(tmp_path: Path, model: str) -> None:
    with pytest.raises(ConfigError, match="48 positions"):
        run(tmp_path, model, "rollout.max_new_tokens=44")


def test_an_existing_run_is_not_overwritten(tmp_path: Path, model: str) -> None:
    first = run(tmp_path, model)
    lines = repeatable(first.run_dir)
    with pytest.raises(ConfigError, match=r"run\.overwrite=true"):
        run(tmp_path, model, "run.seed=1")
    assert repeatable(first.run_dir) == lines
    run(tmp_path, model, "run.seed=1", "run.steps=1", "run.overwrite=true")
    assert [line["step"] for line in read_metrics(first.run_dir)] == [0, 1]
    assert [path.name for path in (first.run_dir / "rollouts").iterdir()] == ["step-000001.parquet"]


def test_what_is_missing_is_told(tmp_path: Path, model: str) -> None:
    config = small_config(tmp_path, model)
    with pytest.raises(ConfigError, match=r"data\.source is not set"):
        train(config, rewards=[goodness])
    with pytest.raises(ConfigError, match=r"reward\.functions is empty"):
        train(config, PROMPTS)


def test_equal_rewards_are_said_and_teach_nothing(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["run.steps=7", "kl.coef=0", "update.weight_decay=0.1"]
    result = run(tmp_path, model, *more, rewards=[constant(0.3)])
    assert same_weights(result.run_dir / "final", Path(model))
    for line in read_metrics(result.run_dir)[1:]:
        assert line["frac_reward_zero_std"] == 1
        assert (line["updates"], line["updates/skipped_empty"]) == (0, 1)
    assert capsys.readouterr().out.count("nothing to learn from") == 1


def test_gradients_that_stay_nonfinite_end_the_run(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlhf_pg.ops import losses

    plain = losses.reinforce_loss

    def broken(*given: Any) -> Any:
        loss, metrics = plain(*given)
        return loss * torch.inf, metrics

    monkeypatch.setattr(losses, "reinforce_loss", broken)
    with pytest.raises(TrainingError, match="2 updates in a row"):
        run(tmp_path, model, "update.max_nonfinite=2")
    assert [line["updates/skipped_nonfinite"] for line in read_metrics(tmp_path / "run")[1:]] == [1]


# Shapes of rewards, prompts and models.


def test_rows_that_cannot_be_scored(tmp_path: Path, model: str) -> None:
    def some(completions: Sequence[str], **_: Any) -> list[float | None]:
        return [None if row % 4 == 1 else value for row, value in enumerate(goodness(completions))]

    result = run(tmp_path, model, rewards=[some])
    assert result.metrics["rewards/unscorable"] == 0.25
    table = pyarrow.parquet.read_table(result.run_dir / "rollouts" / "step-000001.parquet").to_pydict()
    assert not any(any(found) for found in table["advantages"][1::4])
    assert any(any(found) for found in table["advantages"])
    assert [row for row, score in enumerate(table["score"]) if score != score] == [1, 5, 9, 13]


def test_rows_that_no_function_can_score_teach_nothing(tmp_path: Path, model: str) -> None:
    result = run(tmp_path, model, "data.eval_size=0", rewards=[constant(None)])
    assert same_weights(result.run_dir / "final", Path(model))


def test_rewards_per_token(tmp_path: Path, model: str) -> None:
    def each(completion_ids: list[list[int]], **_: Any) -> list[list[float]]:
        return [[float(token % 2) for token in ids] for ids in completion_ids]

    result = run(tmp_path, model, "advantage.baseline=none", "rollout.group_size=1", "kl.coef=0", rewards=[each])
    table = pyarrow.parquet.read_table(result.run_dir / "rollouts" / "step-000001.parquet").to_pydict()
    for ids, found in zip(table["response_ids"], table["advantages"], strict=True):
        assert found == [float(sum(token % 2 for token in ids[t:])) for t in range(len(ids))]


def test_an_async_reward_is_the_plain_one(tmp_path: Path, model: str) -> None:
    async def later(completions: Sequence[str], **_: Any) -> list[float]:
        return goodness(completions)

    plain = run(tmp_path, model, name="plain")
    waited = run(tmp_path, model, rewards=[later])
    assert same_weights(plain.run_dir / "final", waited.run_dir / "final")


def test_columns_reach_the_reward(tmp_path: Path, model: str) -> None:
    rows = [{"prompt": prompt, "wanted": str(number)} for number, prompt in enumerate(PROMPTS)]
    seen: list[tuple[str, str]] = []

    def reward(prompts: list[str], completions: list[str], wanted: list[str]) -> list[float]:
        seen.extend(zip(prompts, wanted, strict=True))
        return goodness(completions)

    run(tmp_path, model, dataset=rows, rewards=[reward])
    assert seen
    assert all(PROMPTS[int(number)] == prompt for prompt, number in seen)


CHAT = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]


def test_chat_prompts_and_completions_are_messages(tmp_path: Path, model: str) -> None:
    seen: list[tuple[Any, Any]] = []

    def reward(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        seen.extend(zip(prompts, completions, strict=True))
        return goodness([completion[0]["content"] for completion in completions])

    result = run(tmp_path, model, dataset=[{"messages": messages} for messages in CHAT], rewards=[reward])
    assert all(prompt in CHAT for prompt, _ in seen)
    assert all(completion[0]["role"] == "assistant" and len(completion) == 1 for _, completion in seen)
    assert not same_weights(result.run_dir / "final", Path(model))


def test_rewards_written_for_trl(tmp_path: Path, model: str) -> None:
    rewards = pytest.importorskip("trl.rewards")
    repetition = rewards.get_repetition_penalty_reward(ngram_size=2, max_penalty=-1.0)
    result = run(tmp_path, model, rewards=[goodness, repetition], name="strings")
    assert "rewards/goodness/mean" in result.metrics
    both = [rewards.think_format_reward, repetition]
    result = run(tmp_path, model, "reward.missing_eos_penalty=1", dataset=CHAT, rewards=both)
    assert result.metrics["rewards/think_format_reward/mean"] == 0


def test_lora(tmp_path: Path, model: str) -> None:
    result = run(tmp_path, model, "policy.lora={}", "update.learning_rate=0.02")
    assert result.metrics["eval/kl/sequence"] > 1e-5
    assert read_metrics(result.run_dir)[0]["eval/kl/sequence"] == 0
    for name in ("final", "best"):
        assert all("lora_" in weight for weight in saved_weights(result.run_dir / name))
    plain, tuned = (AutoModelForCausalLM.from_pretrained(path) for path in (model, result.run_dir / "final"))
    ids = torch.tensor([[1, 9, 20]])
    assert not torch.allclose(plain(ids).logits, tuned(ids).logits, atol=1e-4)


def test_a_trained_adapter_goes_on_from_a_kl_of_0(tmp_path: Path, model: str) -> None:
    """Trap 28: its reference is a copy with the adapter, not the base."""
    first = run(tmp_path, model, "policy.lora={}", "update.learning_rate=0.02", name="first")
    second = run(tmp_path, str(first.run_dir / "final"), name="second")
    lines = read_metrics(second.run_dir)
    assert lines[0]["eval/kl/sequence"] == pytest.approx(0, abs=1e-6)
    assert lines[-1]["eval/kl/sequence"] > 1e-6


def test_another_reference(tmp_path: Path, model: str) -> None:
    other = save_model(tmp_path / "other", seed=3)
    result = run(tmp_path, model, f"reference.model={other}")
    assert read_metrics(result.run_dir)[0]["eval/kl/sequence"] > 0.1
    with pytest.raises(RewardError):
        run(tmp_path, model, *SIX, f"reference.model={other}", name="stopped", rewards=[RaiseAt(8)])
    save_model(tmp_path / "other", seed=4)
    with pytest.raises(CheckpointError, match="another reference"):
        resume(tmp_path / "stopped", dataset=PROMPTS, rewards=[goodness])


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_dtypes(tmp_path: Path, model: str, dtype: str) -> None:
    result = run(tmp_path, model, f"policy.dtype={dtype}", "update.learning_rate=0.02")
    weights = saved_weights(result.run_dir / "final")
    assert {weight.dtype for weight in weights.values()} == {getattr(torch, dtype)}
    gap = max(line["logprob_gap"] for line in read_metrics(result.run_dir)[1:])
    assert gap < (1e-12 if dtype == "float64" else 0.2)


@pytest.mark.parametrize("recipe", ["rloo", "ppo"])
def test_gradient_checkpointing_changes_nothing(tmp_path: Path, model: str, recipe: str) -> None:
    """Trap 36."""
    plain = run(tmp_path, model, "policy.dtype=float64", recipe=recipe, name="plain")
    saving = run(tmp_path, model, "policy.dtype=float64", "policy.gradient_checkpointing=true", recipe=recipe)
    one, two = saved_weights(plain.run_dir / "final"), saved_weights(saving.run_dir / "final")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-10)


def test_micro_batches_change_nothing_in_a_run(tmp_path: Path, model: str) -> None:
    found = []
    for most in (20, 8192):
        more = ["policy.dtype=float64", f"update.micro_batch_tokens={most}"]
        result = run(tmp_path, model, *more, recipe="ppo", name=f"cut{most}")
        found.append(saved_weights(result.run_dir / "final"))
    one, two = found
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-9)


def test_held_out_prompts_are_never_trained_on(tmp_path: Path, model: str) -> None:
    trainer = Trainer(small_config(tmp_path, model), PROMPTS, [goodness])
    held_out = trainer.data.held_out
    assert held_out is not None
    assert not set(held_out.texts) & set(trainer.data.train.texts)
