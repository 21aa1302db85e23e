"""Two real processes over gloo end where one does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from small_world import overrides, repeatable, save_model, saved_weights, write_prompts, write_reward

from rlhf_pg.config.load import load_config
from rlhf_pg.distributed import part_of
from rlhf_pg.experience import joined_metrics
from rlhf_pg.trainer import train

# Lengths differ, so that 40 padded tokens cut the two processes' rows into different numbers of micro-batches.
COMMON = ["policy.dtype=float64", "update.micro_batch_tokens=40", "run.steps=3", "run.save_every=2", "data.eval_size=5"]
RUNS = {
    "rloo": ["rollout.group_size=3", "rollout.prompts_per_step=4", "loss.aggregate=token_mean"],
    "ppo": [
        "rollout.group_size=2",
        "rollout.prompts_per_step=6",
        "update.epochs=2",
        "update.minibatches=4",
        "reward.normalize=running",
        "kl.controller=adaptive",
        "kl.horizon=50",
    ],
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def keys(folder: Path, recipe: str, name: str, *more: str) -> list[str]:
    model = save_model(folder / "model", dtype=torch.float64)
    files = [f"data.source={write_prompts(folder)}", f"reward.functions=[{write_reward(folder)}]"]
    return overrides(folder, model, *files, *COMMON, *RUNS[recipe], *more, name=name)


def two_processes(recipe: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlhf_pg", "train", recipe, *arguments, "--processes", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize("recipe", RUNS)
def test_two_processes_end_where_one_does(tmp_path: Path, recipe: str) -> None:
    done = two_processes(recipe, keys(tmp_path, recipe, "two"))
    assert done.returncode == 0, done.stderr
    one = train(load_config(recipe, keys(tmp_path, recipe, "one"))).run_dir
    two = tmp_path / "two"
    alone, together = repeatable(one), repeatable(two)
    assert [line["step"] for line in together] == [0, 1, 2, 3]
    for mine, theirs in zip(alone, together, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-10, abs=1e-12)
    for name in ("final", "best"):
        mine, theirs = saved_weights(one / name), saved_weights(two / name)
        assert mine.keys() == theirs.keys()
        for weight in mine:
            torch.testing.assert_close(theirs[weight], mine[weight], rtol=1e-10, atol=1e-12)
    start = saved_weights(tmp_path / "model")
    assert any(not torch.equal(start[weight], saved_weights(two / "final")[weight]) for weight in start)


def test_prompts_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    done = two_processes("rloo", keys(tmp_path, "rloo", "run", "rollout.prompts_per_step=3"))
    assert done.returncode == 2, done.stderr
    assert "rollout.prompts_per_step=3 does not divide over 2 processes; the nearest that does is" in done.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_no_process_outlives_the_launcher(tmp_path: Path) -> None:
    arguments = keys(tmp_path, "rloo", "run", "run.steps=100000")
    run = subprocess.Popen([sys.executable, "-m", "rlhf_pg", "train", "rloo", *arguments, "--processes", "2"])
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 2):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    started = psutil.Process(run.pid).children(recursive=True)
    assert len(started) >= 2
    run.kill()
    run.wait()
    _, alive = psutil.wait_procs(started, timeout=15)
    assert alive == []


def test_parts_cover_everything_once_and_differ_by_one_at_most() -> None:
    for count in range(12):
        for world in range(1, 6):
            parts = [part_of(count, rank, world) for rank in range(world)]
            assert [row for part in parts for row in part] == list(range(count))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_what_functions_log_is_of_all_processes() -> None:
    first = {"time/rewards/f": 2.0, "rewards/f/failed": 1.0, "rewards/f/nan": 0.0, "share": 0.5}
    second = {"time/rewards/f": 3.0, "rewards/f/failed": 2.0, "rewards/f/nan": 1.0, "other": 4.0}
    together = {"time/rewards/f": 3.0, "rewards/f/failed": 3.0, "rewards/f/nan": 1.0, "share": 0.5, "other": 4.0}
    assert joined_metrics([first, second]) == together
    assert joined_metrics([first]) == first
