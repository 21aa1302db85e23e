"""The frontier command: runs, reference, points, files; anyone's table; bad input."""

from __future__ import annotations

import csv
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from rich.console import Console
from small_world import overrides, save_model, write_prompts, write_reward

from rlhf_pg.errors import ConfigError, DataError
from rlhf_pg.frontier.assemble import assemble, text_figures
from rlhf_pg.frontier.command import frontier
from rlhf_pg.frontier.measured import read_anyone_s
from rlhf_pg.report.data import FrontierReport

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FrontierReport, list[str]]:
    """A frontier of two tiny runs with a gold reward, 32 samples of the reference."""
    folder = tmp_path_factory.mktemp("frontier")
    model, reward = save_model(folder / "model"), write_reward(folder)
    gold = folder / "gold.py"
    gold.write_text("def length(completions): return [float(len(t.split())) for t in completions]\n", encoding="utf-8")
    keys = [
        *(o for o in overrides(folder, model) if not o.startswith(("run.output_dir", "run.name"))),
        f"data.source={write_prompts(folder)}",
        f"reward.functions=[{reward}]",
        "rollout.group_size=4",
        "update.learning_rate=0.01",
        "evaluation.every=1",
    ]
    return folder, build(folder, keys, str(gold) + ":length"), [*keys, str(gold) + ":length"]


def build(folder: Path, keys: list[str], gold: str) -> FrontierReport:
    return frontier("rloo", keys, folder / "out", vary=["kl.coef=0.1,0.01"], gold=gold, samples=32, console=QUIET)


def test_points_of_every_evaluation_and_what_they_are_compared_with(built: Any) -> None:
    folder, report, _ = built
    assert [(p["run"], p["step"]) for p in report.points] == [
        (f"kl.coef={coef},seed=0", step) for coef in ("0.1", "0.01") for step in (1, 2, 3)
    ]
    for point in report.points:
        lines = (folder / "out" / "runs" / point["run"] / "metrics.jsonl").read_text().splitlines()
        line = next(json.loads(text) for text in lines if json.loads(text)["step"] == point["step"])
        assert point["reward"] == pytest.approx(line["eval/reward"], abs=1e-6)
        assert point["kl"] == pytest.approx(line["eval/kl/sequence"], abs=1e-6)
        assert point["kl_k1"] == pytest.approx(line["eval/kl/k1"], abs=1e-6)
        assert point["kl_token"] == pytest.approx(line["eval/kl/token"], abs=1e-6)
        assert (point["efficiency"] is None) == bool(point["efficiency_reason"])
        assert point["gold"] == pytest.approx(line["eval/rewards/gold/mean"], abs=1e-6)
        assert point["reward_stderr"] == pytest.approx(line["eval/reward_stderr"], rel=0.5)
    assert [row["n"] for row in report.best_of_n] == [1, 2, 4, 8, 16]
    rewards = [row["reward"] for row in report.best_of_n]
    assert rewards == sorted(rewards)
    assert any(point["drawn"] for point in report.optimum)
    assert report.gold_name == "gold reward"
    assert {name for sample in report.samples for name in [sample["name"]]} == {p["run"] for p in report.points}
    tokens = report.samples[0]["samples"][0]["policy"]["tokens"]
    assert all(token["kl"] is not None and token["kl"] >= -1e-6 for token in tokens)
    assert report.samples[0]["samples"][0]["reference"]["text"]


def test_the_files_agree(built: Any) -> None:
    folder, report, _ = built
    out = folder / "out"
    assert {path.name for path in out.glob("frontier.*")} == {
        f"frontier.{kind}" for kind in ("parquet", "csv", "json", "png", "svg")
    }
    rewards = [point["reward"] for point in report.points]
    assert pyarrow.parquet.read_table(out / "frontier.parquet")["reward"].to_pylist() == rewards
    with (out / "frontier.csv").open(encoding="utf-8") as file:
        assert [float(row["reward"]) for row in csv.DictReader(file)] == pytest.approx(rewards)
    whole = json.loads((out / "frontier.json").read_text())
    assert [point["reward"] for point in whole["points"]] == pytest.approx(rewards)
    page = (out / "report.html").read_text()
    assert "Content-Security-Policy" in page
    assert "kl.coef=0.01,seed=0" in page


def test_again_repeats_nothing(built: Any) -> None:
    folder, report, keys = built
    files = [*(folder / "out" / "runs").rglob("*"), *(folder / "out" / "reference").rglob("*")]
    before = {path: path.stat().st_mtime_ns for path in files if path.is_file()}
    again = build(folder, keys[:-1], keys[-1])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert again.points == report.points


def test_runs_that_are_there_give_the_same(built: Any) -> None:
    folder, report, _ = built
    runs = sorted((folder / "out" / "runs").iterdir(), reverse=True)
    found = frontier(None, [], folder / "other", runs=runs, samples=32, console=QUIET)
    assert [point["reward"] for point in found.points] == [point["reward"] for point in report.points]
    assert [dict(point["settings"]) for point in found.points][::3] == [{"kl.coef": "0.1"}, {"kl.coef": "0.01"}]
    assert [point["efficiency"] for point in found.points] == [point["efficiency"] for point in report.points]


def test_runs_of_one_name_are_two_lines(built: Any) -> None:
    folder, _, _ = built
    run = next((folder / "out" / "runs").iterdir())
    copy = shutil.copytree(run, folder / "copies" / run.name)
    found = frontier(None, [], folder / "twice", runs=[run, copy, run], samples=0, console=QUIET)
    assert [point["run"] for point in found.points] == [str(run)] * 3 + [str(copy)] * 3
    assert [one["name"] for one in found.samples] == [str(run), str(copy)]


# --- anyone's table -------------------------------------------------------------------------------------------------


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_anyone_s_table_gives_the_same_report(tmp_path: Path) -> None:
    """Rewards are normal at each prompt, so that the optimum at beta has KL 1 / (2 beta^2) and a gain of 1 / beta."""
    generator = np.random.default_rng(0)
    prompts = [f"prompt {i}" for i in range(80)]
    rows = [
        {"prompt": prompt, "policy": "reference", "kl": 0.0, "reward": x}
        for prompt in prompts
        for x in generator.normal(0, 1, 256)
    ]
    # A policy at KL 0.5 whose gain is half of the best possible, which is sqrt(2 * 0.5) = 1.
    rows += [
        {"prompt": prompt, "policy": "half", "kl": 0.5, "reward": x}
        for prompt in prompts
        for x in generator.normal(0.5, 1, 16)
    ]
    report = frontier(None, [], tmp_path / "out", table=write_table(tmp_path / "scores.csv", rows), console=QUIET)
    (point,) = report.points
    assert point["kl"] == pytest.approx(0.5)
    assert point["efficiency"] == pytest.approx(0.5, abs=0.1)
    assert point["efficiency_low"] < 0.5 < point["efficiency_high"]
    for optimum in report.optimum:
        if optimum["drawn"]:
            assert optimum["reward"] == pytest.approx(math.sqrt(2 * optimum["kl"]), abs=0.12)
    assert "half has" in report.headline
    assert "audit" in report.audit
    assert (tmp_path / "out" / "report.html").is_file()


def test_prompts_with_different_numbers_of_samples(tmp_path: Path) -> None:
    rows = [{"prompt": p, "policy": "a", "kl": 1, "reward": r} for p, r in (("x", 1), ("x", 2), ("y", 5))]
    measured, reference = read_anyone_s(write_table(tmp_path / "t.csv", rows))
    assert reference is None
    np.testing.assert_array_equal(measured[0].reward, [[1, 2], [5, np.nan]])


def scores(**policies: float) -> list[dict[str, Any]]:
    """Rows of a reference with 32 samples of 6 prompts, and of policies with 4, each as far above it as is said."""
    generator = np.random.default_rng(0)
    shifts = {"reference": 0.0, **policies}
    return [
        {"prompt": f"p{i}", "policy": name, "kl": 0.3 * shift, "reward": x, "gold": x / 2}
        for name, shift in shifts.items()
        for i in range(6)
        for x in generator.normal(shift, 1, 4 if shift else 32)
    ]


def test_texts_that_look_like_missing_values_stay_texts(tmp_path: Path) -> None:
    rows = [{"prompt": p, "policy": "NA", "kl": "", "reward": "NA"} for p in ("NA", "None", "01", "1")]
    (one,), _ = read_anyone_s(write_table(tmp_path / "t.csv", rows))
    assert (one.run, one.prompts) == ("NA", ("NA", "None", "01", "1"))
    assert np.isnan(one.reward).all()
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row | {"kl": 1, "reward": None}) + "\n" for row in rows))
    (one,), _ = read_anyone_s(tmp_path / "t.jsonl")
    assert one.prompts == ("NA", "None", "01", "1")


def test_the_reference_needs_neither_step_nor_seed(tmp_path: Path) -> None:
    rows = [row | {"step": "", "seed": ""} for row in scores()]
    rows += [
        {"prompt": "p0", "policy": "a", "kl": 1, "reward": seed + step, "step": step, "seed": seed}
        for seed in (1, 0)
        for step in (20, 3)
    ]
    measured, reference = read_anyone_s(write_table(tmp_path / "t.csv", rows))
    assert reference is not None
    assert reference.reward.shape == (6, 32)
    assert [(one.run, one.seed, one.step, one.reward.item()) for one in measured] == [
        ("a,seed=0", 0, 3, 3.0),
        ("a,seed=0", 0, 20, 20.0),
        ("a,seed=1", 1, 3, 4.0),
        ("a,seed=1", 1, 20, 21.0),
    ]


def test_gold_that_is_constant_or_partly_absent_or_in_another_order(tmp_path: Path) -> None:
    """None of these may take the fit of the policies with it."""
    rows = scores(a=1, b=2, c=3, d=4)
    for row in rows:
        if row["policy"] == "reference":
            row["gold"] = 0.0
        if row["policy"] == "d":
            row["gold"] = ""
    rows = [row for row in rows if row["policy"] != "b"] + [row for row in rows if row["policy"] == "b"][::-1]
    report = frontier(None, [], tmp_path / "out", table=write_table(tmp_path / "t.csv", rows), console=QUIET)
    assert [fit["name"] for fit in report.fits] == ["RL"]
    assert [point["gold"] is None for point in report.points] == [False, False, True, False]


def test_runs_that_differ_in_more_than_the_coefficient_are_fits_of_their_own(tmp_path: Path) -> None:
    """Two curves in one fit would be no curve."""
    given = scores(**{f"{rate}{step}": step for step in (1, 2, 3) for rate in "ab"})
    measured, reference = read_anyone_s(write_table(tmp_path / "t.csv", given))
    named = [
        replace(one, settings={"recipe": "ppo", "update.learning_rate": one.run[0], "kl.coef": one.run[1]})
        for one in measured
    ]
    report = assemble(named, reference, title="t", about={})
    names = [fit["name"] for fit in report.fits if fit["name"] != "best of n"]
    assert names == ["ppo, update.learning_rate=a", "ppo, update.learning_rate=b"]


def test_why_there_is_no_fit(tmp_path: Path) -> None:
    measured, reference = read_anyone_s(write_table(tmp_path / "t.csv", scores(a=1, b=2)))
    assert reference is not None
    without = [replace(one, gold=None) for one in measured]
    for points, table, words in (
        (measured, replace(reference, gold=None), "there is no gold of those"),
        (measured, None, "there is no gold of those"),
        (without, reference, "No gold reward was given"),
    ):
        assert words in assemble(points, table, title="t", about={}).absent["fits"]


def test_a_prompt_that_the_reward_does_not_speak_of(tmp_path: Path) -> None:
    rows = [row | ({"reward": ""} if row["prompt"] == "p3" else {}) for row in scores(a=1)]
    report = frontier(None, [], tmp_path / "out", table=write_table(tmp_path / "t.csv", rows), console=QUIET)
    assert [row["n"] for row in report.best_of_n] == [1, 2, 4, 8, 16]


def test_a_reference_alone_and_a_policy_without_rewards(tmp_path: Path) -> None:
    alone = frontier(None, [], tmp_path / "out", table=write_table(tmp_path / "r.csv", scores()), console=QUIET)
    assert (len(alone.points), len(alone.best_of_n)) == (0, 5)
    rows = [row | {"reward": ""} if row["policy"] == "a" else row for row in scores(a=1, b=2)[192:]]
    path = write_table(tmp_path / "p.csv", rows)
    assert frontier(None, [], tmp_path / "out", table=path, console=QUIET).headline.startswith(
        "b ends with a reward of"
    )
    nothing = frontier(
        None, [], tmp_path / "out", table=write_table(tmp_path / "n.csv", rows[:24]), target_kl=1.0, console=QUIET
    )
    assert (nothing.headline, nothing.closest) == ("", None)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "prompt,policy,kl\na,b,1\n", "no column reward"),
        ("t.txt", "", "must end in"),
        ("t.csv", "", "cannot be read"),
        ("t.csv", "prompt,policy,kl,reward\n", "has no rows"),
        ("t.csv", "prompt,policy,kl,reward\na,b,1,good\n", "column reward: .*give numbers"),
        ("t.csv", "prompt,policy,kl,reward\na,b,1,inf\n", "column reward, row 0 is infinite"),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        frontier(None, [], tmp_path / "out", table=tmp_path / name, console=QUIET)


def test_what_cannot_be_meant(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give one of RECIPE"):
        frontier(None, [], tmp_path, console=QUIET)
    with pytest.raises(ConfigError, match="two samples"):
        frontier(None, [], tmp_path, runs=[tmp_path], samples=1, console=QUIET)
    with pytest.raises(ConfigError, match="belong to a RECIPE"):
        frontier(None, [], tmp_path, vary=["kl.coef=1,2"], runs=[tmp_path], console=QUIET)
    with pytest.raises(ConfigError, match="--seeds, --gold, --jobs"):
        frontier(None, [], tmp_path, seeds=2, table=tmp_path, console=QUIET)
    with pytest.raises(ConfigError, match=r"--jobs and .* belong to a RECIPE"):
        frontier(None, [], tmp_path, jobs=2, runs=[tmp_path], console=QUIET)
    with pytest.raises(ConfigError, match="--samples 512: a table brings its own"):
        frontier(None, [], tmp_path, samples=512, table=tmp_path, console=QUIET)


def test_text_figures_by_hand() -> None:
    """1 2 1 2 1 2: of the 3-grams 121 212 121 212 two are new; of the 2-grams 12 21 12 21 12 and 34, three are distinct."""
    figures = text_figures([[1, 2, 1, 2, 1, 2], [3, 4]])
    assert figures == pytest.approx({"length": 4.0, "repetition": 0.25, "distinct": 3 / 6})
