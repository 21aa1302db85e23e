"""The frontier's grid, its runs in processes of their own, the reference's samples, and the search for a KL."""

from __future__ import annotations

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy
import psutil
import pyarrow.parquet
import pytest
import torch
from filelock import FileLock
from rich.console import Console
from small_world import overrides, repeatable, same_weights, save_model, small_config, write_prompts, write_reward

from rlhf_pg.config.load import load_config
from rlhf_pg.config.tree import Config
from rlhf_pg.data import load_prompts
from rlhf_pg.errors import ConfigError, DataError, RewardError, TrainingError
from rlhf_pg.frontier import reference, work
from rlhf_pg.frontier.grid import Cell, plan
from rlhf_pg.frontier.progress import Progress
from rlhf_pg.frontier.reference import read_reference, sample_reference
from rlhf_pg.frontier.target import TargetSearch, search_coefficient
from rlhf_pg.frontier.work import is_done, run_cells
from rlhf_pg.loading import load_models
from rlhf_pg.ops.sampling import row_uniforms
from rlhf_pg.rollout import Sampler
from rlhf_pg.trainer import train
from rlhf_pg.types import PromptBatch, Rollout

GOLD = "{function: keyword, args: {keywords: [a b]}}"
KEYS = ["policy.model=m", "data.source=p.jsonl", "reward.functions=[length]"]


def grid(tmp_path: Path, *vary: str, more: tuple[str, ...] = (), seeds: int = 1, gold: str | None = None) -> list[Cell]:
    varied = {text.partition("=")[0] for text in vary}
    keys = [key for key in KEYS if key.partition("=")[0] not in varied]
    return plan("rloo", [*keys, *more], vary, seeds, tmp_path, gold)


def by_command(cell: Cell) -> Config:
    """What the command trains, put where the grid has it."""
    program, verb, recipe, *changes = shlex.split(cell.command)
    assert (program, verb) == ("rlhf-pg", "train")
    again = load_config(recipe, changes)
    assert again.run.output_dir == "runs"
    return load_config(recipe, [*changes, f"run.output_dir={cell.config.run.output_dir}"])


# The grid.


def test_every_combination_is_a_run_that_its_files_and_its_command_give_again(tmp_path: Path) -> None:
    vary = ["recipe=rloo,ppo", "kl.coef=2e-1,0.05"]
    cells = grid(tmp_path, *vary, more=("run.seed=5",), seeds=2, gold=GOLD)
    assert [cell.name for cell in cells] == [
        f"recipe={recipe},kl.coef={coef},seed={seed}"
        for recipe in ("rloo", "ppo")
        for coef in ("0.2", "0.05")
        for seed in (5, 6)
    ]
    for cell in cells:
        config = cell.config
        assert load_config(cell.config_file) == config
        assert by_command(cell) == config
        assert (config.run.name, config.run.seed) == (cell.name, cell.seed)
        assert cell.run_dir == tmp_path / "runs" / cell.name
        assert config.kl.coef == float(cell.settings["kl.coef"])
        assert (config.advantage.baseline == "value") is (cell.settings["recipe"] == "ppo")
        assert [(f.function, f.name, f.weight) for f in config.reward.functions] == [
            ("length", None, 1.0),
            ("keyword", "gold", 0.0),
        ]
        assert config.reward.functions[1].args == {"keywords": ["a b"]}
    assert not (tmp_path / "runs").exists()
    assert grid(tmp_path, *vary, more=("run.seed=5",), seeds=2, gold=GOLD) == cells


def test_seeds_alone_are_a_grid(tmp_path: Path) -> None:
    assert [cell.name for cell in grid(tmp_path, seeds=3)] == ["seed=0", "seed=1", "seed=2"]


def test_commas_within_brackets_do_not_part_values(tmp_path: Path) -> None:
    cells = grid(tmp_path, "update.betas=[0.9, 0.99],[0.8,0.9]")
    assert [cell.config.update.betas for cell in cells] == [(0.9, 0.99), (0.8, 0.9)]
    for cell in cells:
        assert all(character.isalnum() or character in "._+-=," for character in cell.name)
    assert len({cell.name for cell in cells}) == 2


def test_a_name_stays_short_and_does_not_depend_on_the_rest_of_the_grid(tmp_path: Path) -> None:
    long = "policy.lora={targets: [" + ", ".join(f"layer_{i}" for i in range(40)) + "]}"
    (cell,) = grid(tmp_path, long)
    both = grid(tmp_path / "other", f"{long},null")
    assert len(cell.name) < 80
    assert cell.name == both[0].name
    assert both[1].name == "policy.lora=null,seed=0"
    # many settings
    keys = ["kl.horizon=1", "update.weight_decay=0.25", "update.eps=1e-7", "update.learning_rate=0.00012345678901"]
    keys += ["loss.entropy_coef=0.00012345678901", "evaluation.max_kl=12.345678901234", "value.learning_rate=null"]
    (wide,) = grid(tmp_path, *keys)
    assert len(f"{wide.name}.yaml".encode()) < 200


@pytest.mark.parametrize("same", ["kl.coef=0.1,0.10", "update.learning_rate=1e-4,0.0001", "run.device=cpu,cpu"])
def test_two_settings_that_are_one_run_are_refused(tmp_path: Path, same: str) -> None:
    with pytest.raises(ConfigError, match="would both be the run"):
        grid(tmp_path, same)


@pytest.mark.parametrize(
    ("vary", "more", "message"),
    [
        (["kl.coef"], (), "is not of the form"),
        (["kl.coef=0.1,,0.2"], (), "is not of the form"),
        (["kl.coef=0.1", "kl.coef=0.2"], (), "twice"),
        (["kl.coef=0.1"], ("kl.coef=0.3",), "also set for every run"),
        (["run.seed=1,2"], (), "--seeds"),
        ([], ("run.name=x",), "--out"),
        (["kl.coef=0.1,-1"], (), r"(?s)run kl.coef=-1,seed 1: kl.coef=-1: must be at least 0"),
        (["kl.cof=0.1"], (), r"(?s)run kl.cof=0.1,seed 1: kl.cof=0.1: unknown key; did you mean kl.coef"),
        (["rollout.group_size=4,1"], (), r"(?s)run rollout.group_size=1,seed 1: .*leave_one_out"),
        (["kl.coef=0.1"], ("policy.model=",), r"(?s)run kl.coef=0.1,seed 1: policy.model is not set"),
        (["kl.coef=0.1"], ("data.eval_size=0",), "held-out prompts"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_written(
    tmp_path: Path, vary: list[str], more: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        grid(tmp_path, *vary, more=more)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("vary", "key"),
    [
        ("policy.model=m,other", "reference.model is m in run"),
        ("reference.model=null,other", "reference.model"),
        ("policy.dtype=float32,bfloat16", "reference.dtype"),
        ("data.eval_size=64,32", "data.eval_size"),
        ("rollout.temperature=1,0.7", "evaluation.temperature"),
        ("rollout.max_new_tokens=8,16", "rollout.max_new_tokens"),
        ("evaluation.seed=1,2", "evaluation.seed"),
        ("evaluation.samples_per_prompt=2,4", "evaluation.samples_per_prompt"),
        ("reward.functions=[length],[vader]", "reward.functions"),
    ],
)
def test_runs_that_share_no_reference_are_refused(tmp_path: Path, vary: str, key: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){key}.*one reference"):
        grid(tmp_path, vary)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "vary",
    [
        "policy.lora=null,{}",
        "reference.model=null,m",
        "data.shuffle=true,false",
        "reward.functions=[length],[{function: length, normalize: running}]",
        "rollout.group_size=4,8",
    ],
)
def test_what_leaves_the_reference_and_the_measure_alone_may_vary(tmp_path: Path, vary: str) -> None:
    assert len(grid(tmp_path, vary)) == 2


def test_the_training_temperature_may_vary_where_the_evaluation_has_its_own(tmp_path: Path) -> None:
    assert len(grid(tmp_path, "rollout.temperature=1,0.7", more=("evaluation.temperature=1",))) == 2


@pytest.mark.parametrize(("steps", "every"), [(100, 13), (8, 1), (3, 1), (1000, 125)])
def test_a_run_is_measured_and_saved_about_eight_times_unless_it_says_otherwise(
    tmp_path: Path, steps: int, every: int
) -> None:
    (cell,) = grid(tmp_path, more=(f"run.steps={steps}",))
    assert (cell.config.evaluation.every, cell.config.run.save_every) == (every, every)
    (own,) = grid(tmp_path / "own", more=(f"run.steps={steps}", "evaluation.every=5", "run.save_every=2"))
    assert (own.config.evaluation.every, own.config.run.save_every) == (5, 2)


def test_a_varied_recipe_takes_the_place_of_what_the_task_extends(tmp_path: Path) -> None:
    task = tmp_path / "task.yaml"
    keys = "policy: {model: m}\ndata: {source: p.jsonl}\nreward: {functions: [length]}\nupdate: {learning_rate: 3e-4}\n"
    task.write_text(f"# A task.\nextends: rloo\n{keys}", encoding="utf-8")
    cells = plan(str(task), [], ["recipe=ppo,grpo"], 1, tmp_path / "out")
    assert [cell.name for cell in cells] == ["recipe=ppo,seed=0", "recipe=grpo,seed=0"]
    assert [cell.config.advantage.baseline for cell in cells] == ["value", "group_mean"]
    assert all(cell.config.update.learning_rate == 3e-4 for cell in cells)
    assert all(by_command(cell) == cell.config for cell in cells)
    task.write_text(keys, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"extends nothing.*extends: ppo"):
        plan(str(task), [], ["recipe=ppo,grpo"], 1, tmp_path / "out")


def test_gold_is_a_reward_without_weight_and_there_is_one(tmp_path: Path) -> None:
    (cell,) = grid(tmp_path, gold="vader")
    assert [(f.function, f.name, f.weight) for f in cell.config.reward.functions][1] == ("vader", "gold", 0.0)
    for functions in ("[length, {function: vader, name: gold, weight: 0}]", "[length, mine.py:gold]"):
        with pytest.raises(ConfigError, match="gold already"):
            grid(tmp_path, more=(f"reward.functions={functions}",), gold="vader")
    for wrong in ("{function: vader, weight: 1}", "{function: vader, name: silver}"):
        with pytest.raises(ConfigError, match="leave name and weight out"):
            grid(tmp_path, gold=wrong)
    with pytest.raises(ConfigError, match="unknown key"):
        grid(tmp_path, gold="{function: vader, wait: 1}")


def test_a_run_of_another_configuration_in_the_folder_is_refused(tmp_path: Path) -> None:
    (cell,) = grid(tmp_path, "kl.coef=0.1")
    cell.run_dir.mkdir(parents=True)
    (cell.run_dir / "config.yaml").write_text(cell.config_file.read_text(encoding="utf-8"), encoding="utf-8")
    assert grid(tmp_path, "kl.coef=0.1") == [cell]
    grid(tmp_path, "kl.coef=0.1", more=("run.save_every=7", "run.device=cpu"))  # changes no number
    with pytest.raises(
        ConfigError, match=r"kl.coef=0.1,seed=0: .*update.learning_rate was 1e-05 and is 0.001 now.*remove"
    ):
        grid(tmp_path, "kl.coef=0.1", more=("update.learning_rate=1e-3",))


# Runs, by a program that stands in for the trainer.

FAKE = """
#!{python}
import json, os, sys, time
from pathlib import Path
import yaml
assert sys.argv[1:3] == ["-m", "rlhf_pg.frontier.child"] and sys.argv[4] == "train", sys.argv
file = Path(sys.argv[6], "config.yaml") if sys.argv[5] == "--resume" else Path(sys.argv[5])
config = yaml.safe_load(file.read_text())
run, coef = config["run"], config["kl"]["coef"]
folder = Path(run["output_dir"], run["name"])
folder.mkdir(parents=True, exist_ok=True)
(folder / "config.yaml").write_text(file.read_text())
names = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
note = {{"arguments": sys.argv[4:], **{{name: os.environ.get(name) for name in names}}, "start": time.time()}}
time.sleep(0.3)
print("one line\\nCUDA out of \\x1b[31mmemory" if coef == 9 else "fine")
if coef == 9:
    sys.exit(3)
with (folder / "metrics.jsonl").open("w") as file:
    for step in (0, run["steps"]):
        file.write(json.dumps({{"step": step, "eval/reward": 0.5, "eval/kl/sequence": 0.25 / coef}}) + "\\n")
if coef != 8:
    (folder / "final").mkdir(exist_ok=True)
with (folder.parents[1] / "notes.jsonl").open("a") as file:
    file.write(json.dumps({{**note, "name": run["name"], "end": time.time()}}) + "\\n")
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, Any]]]:
    """Runs are done by a program that writes what a run leaves behind; what it noted."""
    program = tmp_path / "trainer"
    program.write_text(textwrap.dedent(FAKE).lstrip().format(python=sys.executable), encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(work, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(sys, "executable", str(program))
    notes = tmp_path / "out" / "notes.jsonl"
    return lambda: [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def test_at_most_so_many_runs_go_on_at_once_each_with_its_share_of_the_machine(
    tmp_path: Path, fake: Callable[[], list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setattr(work, "_cores", lambda: 7)
    cells = grid(tmp_path / "out", "kl.coef=0.1,0.2,0.3,0.4,0.5")
    console = quiet()
    outcomes = run_cells(cells, 2, console)
    assert [(outcome.cell, outcome.state) for outcome in outcomes] == [(cell, "done") for cell in cells]
    notes = fake()
    assert len(notes) == 5
    assert {note["OMP_NUM_THREADS"] for note in notes} == {"3"}
    assert {note["CUDA_VISIBLE_DEVICES"] for note in notes} == {"3", "5"}
    for note in notes:
        others = [o for o in notes if o is not note and o["start"] <= note["start"] < o["end"]]
        assert len(others) <= 1
        assert not any(o["CUDA_VISIBLE_DEVICES"] == note["CUDA_VISIBLE_DEVICES"] for o in others)
    assert any(o["start"] <= n["start"] < o["end"] for n in notes for o in notes if o is not n)
    said = console.file.getvalue()
    assert "kl.coef=0.3,seed=0: done, step 100/100, held-out reward 0.500, KL 0.83 nats\n" in said


def test_what_is_done_is_left_alone_what_was_begun_goes_on_and_the_rest_starts(
    tmp_path: Path, fake: Callable[[], list[dict[str, Any]]]
) -> None:
    cells = grid(tmp_path / "out", "kl.coef=0.1,0.2,0.3")
    run_cells(cells[:1], 1, quiet())
    cells[1].run_dir.mkdir()
    (cells[1].run_dir / "config.yaml").write_text(cells[1].config_file.read_text())
    outcomes = run_cells(cells, 2, quiet())
    assert [outcome.state for outcome in outcomes] == ["done before", "done", "done"]
    assert outcomes[0].seconds == 0 < outcomes[1].seconds
    assert sorted((note["name"], note["arguments"]) for note in fake()) == [
        (cells[0].name, ["train", str(cells[0].config_file)]),
        (cells[1].name, ["train", "--resume", str(cells[1].run_dir)]),
        (cells[2].name, ["train", str(cells[2].config_file)]),
    ]
    # A run that lacks its last step, or its model, is not done.
    (cells[0].run_dir / "final").rmdir()
    (cells[2].run_dir / "metrics.jsonl").write_text('{"step": 99}\n')
    assert [is_done(cell) for cell in cells] == [False, True, False]


def test_a_run_that_fails_stops_no_other_and_says_why(tmp_path: Path, fake: object) -> None:
    cells = grid(tmp_path / "out", "kl.coef=9,8,0.1")
    console = quiet()
    failed, without_model, done = run_cells(cells, 1, console)
    assert (failed.state, without_model.state, done.state) == ("failed", "failed", "done")
    assert failed.problem.splitlines() == [
        f"ended with exit code 3; the end of {failed.log_file}:",
        "one line",
        "CUDA out of \\x1b[31mmemory",
    ]
    assert without_model.problem.startswith("ended with exit code 0")
    assert "one line" in console.file.getvalue()
    assert "\x1b" not in console.file.getvalue()
    assert failed.log_file.read_text().startswith("one line\n")


def test_on_a_terminal_a_table_shows_each_run(tmp_path: Path, fake: object) -> None:
    cells = grid(tmp_path / "out", "kl.coef=0.1,9")
    console = Console(file=io.StringIO(), force_terminal=True, width=120, force_interactive=True)
    run_cells(cells, 1, console)
    shown = console.file.getvalue()
    for text in (
        "kl.coef=0.1,seed=0",
        "kl.coef=9,seed=0",
        "0.500",
        "2.50",
        "100/100",
        "failed",
        "1 of 2 runs are done",
    ):
        assert text in shown, text


def test_how_far_a_run_is_and_how_long_it_will_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cell,) = grid(tmp_path, more=("run.steps=40",))
    clock = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    progress = Progress(cell, "running")
    cell.run_dir.mkdir(parents=True)
    file = cell.run_dir / "metrics.jsonl"

    def write(*steps: int) -> None:
        lines = [f'{{"step": {step}, "filler": "{"x" * 9000}"}}\n' for step in steps]
        file.write_text('{"step": 0, "eval/reward": 1.5, "eval/kl/sequence": null}\n' + "".join(lines) + '{"step": 9')
        progress.update()

    progress.update()
    assert (progress.step, progress.seconds_left, progress.said()) == (0, None, "step 0/40")
    write()
    assert (progress.step, progress.seconds_left) == (0, None)
    assert progress.said() == "step 0/40, held-out reward 1.500"
    write(1)
    assert progress.seconds_left is None
    clock += 30
    write(*range(1, 17))  # the first line is further back than what is read
    assert (progress.step, progress.reward) == (16, 1.5)
    assert progress.seconds_left == pytest.approx(30 / 15 * 24)
    write(*range(1, 13))  # resumed
    assert progress.step == 12


def test_two_commands_do_not_work_on_the_same_runs(tmp_path: Path, fake: object) -> None:
    cells = grid(tmp_path / "out", "kl.coef=0.1")
    (tmp_path / "out" / "logs").mkdir()
    with FileLock(tmp_path / "out" / "logs" / ".lock"), pytest.raises(ConfigError, match="another command"):
        run_cells(cells, 1, quiet())
    with pytest.raises(ConfigError, match="--jobs 0"):
        run_cells(cells, 0, quiet())
    assert [outcome.state for outcome in run_cells(cells, 1, quiet())] == ["done"]


# The search for a KL.


def test_the_coefficient_of_a_wanted_kl_is_found_and_the_search_goes_on_where_it_stopped(
    tmp_path: Path, fake: Callable[[], list[dict[str, Any]]]
) -> None:
    def search(most: int, start: float = 0.1) -> TargetSearch:
        keys = [*KEYS, f"kl.coef={start}"]
        return search_coefficient("rloo", keys, tmp_path / "out", 6.0, most=most, seeds=2, jobs=2, console=quiet())

    # The stand-in's KL is 0.25 / kl.coef nats.
    first = search(2)
    assert [trial.coef for trial in first.trials] == [0.1, 0.025]
    assert first.best == first.trials[0]
    assert first.reason.startswith("2 coefficients were tried")
    found = search(12)
    assert found.trials[:2] == first.trials
    assert [trial.coef for trial in found.trials] == [0.1, 0.025, 0.05, 0.035355, 0.042045]
    assert found.best == found.trials[-1]
    assert found.best.kl == pytest.approx(0.25 / 0.042045)
    assert found.best.reward == 0.5
    assert "gives 5.95 nats" in found.reason
    assert [cell.name for cell in found.best.cells] == ["kl.coef=0.042045,seed=0", "kl.coef=0.042045,seed=1"]
    assert len(fake()) == 2 * 5  # none was repeated
    with pytest.raises(TrainingError, match="CUDA out of"):
        search(1, start=9)


def test_a_search_whose_later_run_fails_keeps_what_there_is(tmp_path: Path, fake: object) -> None:
    found = search_coefficient("rloo", [*KEYS, "kl.coef=2.25"], tmp_path / "out", 0.02, jobs=2, console=quiet())
    assert [trial.coef for trial in found.trials] == [2.25]
    assert found.best == found.trials[0]
    assert found.failed == ["kl.coef=9,seed=0"]
    assert "run kl.coef=9,seed=0 ended with exit code 3" in found.reason


def test_a_search_needs_a_coefficient_that_it_may_set_and_a_target(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="adaptive moves"):
        search_coefficient("rloo", [*KEYS, "kl.controller=adaptive"], tmp_path, 3.0)
    with pytest.raises(ConfigError, match="target is 0"):
        search_coefficient("rloo", KEYS, tmp_path, 0.0)


# The reference's samples.


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def config(tmp_path: Path, model: str) -> Config:
    return reference_config(tmp_path, model)


def reference_config(folder: Path, model: str, *more: str) -> Config:
    entries = [
        f"{{function: {write_reward(folder)}, process: main}}",
        "{function: length, args: {target: 3}, weight: 0, process: main}",
    ]
    rewards = f"reward.functions=[{', '.join(entries)}]"
    return small_config(folder, model, f"data.source={write_prompts(folder)}", rewards, *more)


def columns_equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(numpy.array_equal(one[name], other[name]) for name in one)


def test_the_reference_is_sampled_in_parts_with_numbers_of_their_own(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "_PART_ROWS", 12)  # 4 prompts, 3 samples of each
    said: list[str] = []
    folder = sample_reference(config, 8, tmp_path / "out", said.append)
    assert sorted(path.name for path in folder.iterdir()) == [
        "made_by.json",
        "part-0000.parquet",
        "part-0001.parquet",
        "part-0002.parquet",
    ]
    assert said[-1] == "Reference: 8 of 8 samples of 4 prompts."
    found = read_reference(tmp_path / "out")
    assert {name: values.shape for name, values in found.items()} == dict.fromkeys(found, (4, 8))
    assert {"reward", "rewards/goodness", "rewards/length", "completion_id", "completion", "length"} < found.keys()
    assert (found["sample"] == numpy.arange(8)).all()
    assert (found["reward"] == found["rewards/goodness"]).all()
    assert (found["length"] >= 1).all()
    assert found["reward"].std() > 0
    for text, value in zip(found["completion"].flat, found["reward"].flat, strict=True):
        assert value == sum(word.startswith("good") - word.startswith("bad") for word in text.split())

    # One completion by hand: prompt 2, sample 7.
    models = load_models(config)
    held_out = load_prompts(config.data, models.tokenizer, seed=3, say=said.append).held_out
    assert held_out is not None
    assert [row[0] for row in found["prompt"]] == list(held_out.texts)
    numbers = row_uniforms(config.evaluation.seed, "reference", 7, rows=range(2, 3), columns=6)
    with models.reference.active() as frozen:
        rollout = Sampler.of(config, models, nullcontext)(frozen, held_out.rows(2, 3), numbers)
    assert rollout.texts[0] == found["completion"][2, 7]
    assert int(rollout.lengths[0]) == found["length"][2, 7]

    # The same numbers whatever the parts are.
    monkeypatch.setattr(reference, "_PART_ROWS", 4096)
    sample_reference(config, 8, tmp_path / "whole", said.append)
    assert columns_equal(read_reference(tmp_path / "whole"), found)


def test_the_reference_goes_on_part_by_part_and_grows(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "_PART_ROWS", 12)
    out, whole = tmp_path / "out", tmp_path / "whole"
    calls = 0

    def columns(*arguments: Any) -> dict[str, list[Any]]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RewardError("the server is down")
        return made(*arguments)

    made = reference._columns
    monkeypatch.setattr(reference, "_columns", columns)
    with pytest.raises(RewardError, match="down"):
        sample_reference(config, 8, out, lambda _: None)
    assert read_reference(out)["reward"].shape == (4, 3)
    first = (out / "reference" / "part-0000.parquet").stat()
    sample_reference(config, 8, out, lambda _: None)
    assert calls == 4
    assert (out / "reference" / "part-0000.parquet").stat() == first
    sample_reference(config, 5, out, lambda _: None)  # fewer: all there
    assert calls == 4
    sample_reference(config, 10, out, lambda _: None)  # more: the last part, which was short, and one more
    assert calls == 6
    sample_reference(config, 10, whole, lambda _: None)
    assert columns_equal(read_reference(out), read_reference(whole))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("evaluation.seed=7", "evaluation.seed"),
        ("rollout.temperature=0.7", "evaluation.temperature"),
        ("data.eval_size=3", "held-out prompts"),
        ("reward.functions=[{function: length, args: {target: 3}, process: main}]", "reward.functions"),
        ("policy.model=OTHER", "reference.weights"),
    ],
)
def test_samples_of_another_reference_are_refused(tmp_path: Path, model: str, change: str, named: str) -> None:
    if change.endswith("OTHER"):
        change = f"policy.model={save_model(tmp_path / 'other', seed=1)}"
    sample_reference(reference_config(tmp_path, model), 1, tmp_path / "out", lambda _: None)
    with pytest.raises(ConfigError, match=f"made otherwise: {named} changed"):
        sample_reference(reference_config(tmp_path, model, change), 2, tmp_path / "out", lambda _: None)
    # What belongs to training alone may differ.
    ppo = reference_config(tmp_path, model, "kl.coef=0.3", "advantage.baseline=value", "run.seed=3")
    sample_reference(ppo, 2, tmp_path / "out", lambda _: None)
    assert read_reference(tmp_path / "out")["reward"].shape == (4, 2)


def test_no_samples_and_no_prompts_are_told(tmp_path: Path, model: str, config: Config) -> None:
    with pytest.raises(DataError, match="no samples"):
        read_reference(tmp_path)
    with pytest.raises(ConfigError, match="at least"):
        sample_reference(config, 0, tmp_path)
    with pytest.raises(DataError, match="eval_size"):
        sample_reference(reference_config(tmp_path, model, "data.eval_size=0"), 1, tmp_path, lambda _: None)


def test_completions_have_one_number_if_their_tokens_are_the_same() -> None:
    ids = torch.tensor([[5, 6, 7], [5, 6, 9], [5, 6, 0], [5, 0, 0], [5, 6, 7]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 0, 0], [1, 1, 1]]).bool()
    one = torch.ones(1, 1)
    prompts = PromptBatch(torch.tensor([0]), ("p",), one.long(), one.bool())
    found = reference._identities(Rollout(prompts, 5, ids, mask, mask.float(), ("eos",) * 5, ("t",) * 5))
    assert found[0] == found[4]
    assert found[1] == found[2]  # what stands in the padding is nobody's
    assert len(set(found)) == 3
    assert all(0 <= number < 2**63 for number in found)


# Processes, and what becomes of them.


def test_a_run_and_what_it_started_end_when_the_pipe_of_its_parent_closes(tmp_path: Path) -> None:
    program = """
import subprocess, sys, threading, time
from rlhf_pg.frontier.child import end_with_parent
threading.Thread(target=end_with_parent, args=(int(sys.argv[1]),), daemon=True).start()
print(subprocess.Popen(["sleep", "60"]).pid, flush=True)
while True:
    pass
"""
    alive, closes_with_us = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", program, str(alive)],
        pass_fds=(alive,),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        assert child.stdout is not None
        grandchild = psutil.Process(int(child.stdout.readline()))
        assert child.poll() is None
        os.close(closes_with_us)
        assert child.wait(10) == -signal.SIGKILL
    psutil.wait_procs([grandchild], timeout=10)
    assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE
    os.close(alive)


def test_the_child_is_the_command_line_with_its_output_and_its_exit_code() -> None:
    alive, closes_with_us = os.pipe()

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rlhf_pg.frontier.child", str(alive), *arguments]
        return subprocess.run(command, pass_fds=(alive,), capture_output=True, text=True, start_new_session=True)

    assert "story_sentiment" in run("recipes").stdout
    failed = run("train", "nonesuch")
    assert failed.returncode == 2
    assert "there is no recipe 'nonesuch'" in failed.stderr
    os.close(closes_with_us)
    os.close(alive)


SLOW_REWARD = """
import time


def goodness(completions, **columns):
    time.sleep(0.2)
    return [float(sum(w.startswith("good") - w.startswith("bad") for w in text.split())) for text in completions]
"""
COMMAND = """
import json, sys
from pathlib import Path
from rlhf_pg.frontier.grid import plan
from rlhf_pg.frontier.work import run_cells
arguments = json.loads(sys.argv[1])
cells = plan("rloo", arguments["overrides"], ["kl.coef=0.1,0.2"], 1, Path(arguments["out"]))
print([outcome.state for outcome in run_cells(cells, arguments["jobs"])])
"""


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def real_grid(tmp_path: Path, model: str) -> list[str]:
    reward = tmp_path / "slow.py"
    reward.write_text(SLOW_REWARD, encoding="utf-8")
    keys = overrides(tmp_path, model, f"data.source={write_prompts(tmp_path)}", "run.steps=12", "rollout.group_size=4")
    own = ("run.output_dir=", "run.name=", "run.save_every=", "evaluation.every=")
    return [
        *(key for key in keys if not key.startswith(own)),
        "evaluation.every=4",
        "run.save_every=4",
        f"reward.functions=['{reward}:goodness']",
    ]


def wait_for(what: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def steps_done(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return path.read_text().count("\n") - 1 if path.exists() else -1


@pytest.mark.slow
@pytest.mark.parametrize(("number", "jobs"), [(signal.SIGKILL, 1), (signal.SIGTERM, 2), (signal.SIGINT, 2)])
def test_a_killed_command_leaves_nothing_running_and_goes_on_when_repeated(
    tmp_path: Path, model: str, one_thread: None, number: signal.Signals, jobs: int
) -> None:
    keys, out = real_grid(tmp_path, model), tmp_path / "out"
    cells = plan("rloo", keys, ["kl.coef=0.1,0.2"], 1, out)
    first, second = (cell.run_dir for cell in cells)
    command = [sys.executable, "-c", COMMAND, json.dumps({"overrides": keys, "out": str(out), "jobs": jobs})]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL) as parent:
        wait_for(lambda: steps_done(second) >= 6)
        below = psutil.Process(parent.pid).children(recursive=True)
        assert len(below) >= 2  # the run and its reward's worker
        parent.send_signal(number)
        assert parent.wait(20) != 0
    _, alive = psutil.wait_procs(below, timeout=20)
    assert not alive
    assert 6 <= steps_done(second) < 12
    assert is_done(cells[0]) is (jobs == 1)
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")} if jobs == 1 else {}

    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert again.stdout.splitlines()[-1] == str(["done before" if jobs == 1 else "done", "done"])
    if jobs == 1:
        assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before
    assert "Resuming after step 4." in (out / "logs" / f"{cells[1].name}.log").read_text()
    # As if nothing had happened.
    config = load_config(cells[1].config_file, [f"run.output_dir={tmp_path / 'straight'}"])
    straight = train(config).run_dir
    assert repeatable(second) == repeatable(straight)
    assert same_weights(second / "final", straight / "final")
    for path in (straight / "evaluations").iterdir():
        assert pyarrow.parquet.read_table(path).equals(pyarrow.parquet.read_table(second / "evaluations" / path.name))
