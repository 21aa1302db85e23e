"""The README's commands, run as they stand, on a tiny world."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def rlhf_pg(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_pg", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def block(language: str, number: int) -> str:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)[number]


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("quickstart", "test", "test-slow", "lint"):
        assert f"`make {target}`" in README or f"make {target} " in README
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README's command for a run of one's own was run, with its reward function."""
    folder = tmp_path_factory.mktemp("readme")
    model = ROOT.parent / "shared" / "models" / "stories260K"
    if not model.is_dir():
        pytest.skip("needs the story model in ../shared/models/stories260K")
    (folder / "my_rewards.py").write_text(block("python", 0), encoding="utf-8")
    prompts = [
        f'{{"prompt": "Once upon a time there was {word}"}}' for word in ("a cat", "a dog", "Tim", "Lily", "the sea")
    ]
    (folder / "prompts.jsonl").write_text("\n".join(prompts * 4), encoding="utf-8")
    command = next(line for line in block("sh", 1).splitlines() if line.startswith("rlhf-pg train rloo"))
    arguments = [part.strip("'") for part in command.replace("run.steps=100", "run.steps=2").split()[1:]]
    arguments = [part.replace("MODEL", str(model)) for part in arguments]
    small = ["rollout.max_new_tokens=8", "data.eval_size=2", "run.save_every=1"]
    dry = rlhf_pg(*arguments, *small, "--dry-run", cwd=folder)
    assert "nothing was trained" in dry.stdout
    assert "<s>" in dry.stdout
    assert not (folder / "runs").exists()
    rlhf_pg(*arguments, *small, cwd=folder)
    return folder


def test_a_run_of_ones_own_leaves_what_the_readme_says(trained: Path) -> None:
    run = trained / "runs" / "rloo"
    section = README.split("## What a run leaves")[1].split("##")[0]
    names = [name.rstrip("/") for name in re.findall(r"`([\w.]+/?)`", section) if name != "from_pretrained"]
    assert {
        "config.yaml",
        "metrics.jsonl",
        "rollouts",
        "evaluations",
        "checkpoints",
        "final",
        "best",
        "training.png",
    } == set(names)
    for name in names:
        assert (run / name).exists(), name


def test_resume_and_evaluate(trained: Path) -> None:
    resumed = rlhf_pg("train", "--resume", "runs/rloo", "run.steps=3", cwd=trained)
    assert "Resuming after step 2" in resumed.stdout
    evaluated = rlhf_pg("evaluate", "runs/rloo", "--json", "figures.json", cwd=trained)
    assert "eval/win_rate" in evaluated.stdout
    assert (trained / "figures.json").is_file()


def test_the_same_from_python(trained: Path) -> None:
    model = ROOT.parent / "shared" / "models" / "stories260K"
    script = "from my_rewards import short\n" + block("python", 1).replace("MODEL", str(model))
    script = script.replace("run.steps=100", 'run.steps=1", "run.name=python", "rollout.max_new_tokens=8')
    done = subprocess.run([sys.executable, "-c", script], cwd=trained, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_looking_at_configurations(tmp_path: Path) -> None:
    assert "rloo" in rlhf_pg("recipes", cwd=tmp_path).stdout
    assert "coef: 0.1" in rlhf_pg("config", "show", "rloo", "kl.coef=0.1", cwd=tmp_path).stdout
    rlhf_pg("config", "schema", "--out", "schema.json", cwd=tmp_path)
    assert (tmp_path / "schema.json").is_file()


def test_the_recipes_of_the_table_exist() -> None:
    table = README.split("## Recipes")[1].split("##")[0]
    for name in re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE):
        assert (ROOT / "recipes" / f"{name}.yaml").is_file()


def test_quickstart_with_few_steps(tmp_path: Path) -> None:
    done = rlhf_pg("quickstart", "run.steps=2", f"run.output_dir={tmp_path}", cwd=tmp_path)
    for word in ("learned reward", "gold score", "KL to the reference", "training.png"):
        assert word in done.stdout


def section(title: str) -> str:
    return README.split(f"## {title}\n")[1].split("\n## ")[0]


def test_the_builtin_rewards_of_the_table_exist() -> None:
    from rlhf_pg.rewards import BUILTINS

    named = set(re.findall(r"`(\w+)`", section("Rewards").split("`rlhf-pg reward functions`")[0]))
    assert named - {"rewards", "reward", "functions", "tests"} == {
        name for name in BUILTINS if not name.startswith("reviews")
    }


def test_the_yaml_of_the_rewards_is_read() -> None:
    import yaml

    from rlhf_pg.config.load import config_from_dict

    for number in range(len(re.findall(r"```yaml", section("Rewards")))):
        text = re.findall(r"```yaml\n(.*?)```", section("Rewards"), re.DOTALL)[number]
        assert len(config_from_dict(yaml.safe_load(text)).reward.functions) >= 2


def test_a_frontier_and_a_report(trained: Path) -> None:
    model = ROOT.parent / "shared" / "models" / "stories260K"
    (command,) = (line for line in section("Reward against KL").splitlines() if line.startswith("rlhf-pg frontier"))
    arguments = [part.strip("'") for part in command.replace("run.steps=100", "run.steps=2").split()[1:]]
    small = ["rollout.max_new_tokens=8", "data.eval_size=2", "--samples", "16", "--seeds", "1"]
    made = rlhf_pg(*(part.replace("MODEL", str(model)) for part in arguments), *small, cwd=trained)
    assert "The report is frontier/report.html" in made.stdout
    for name in ("report.html", "frontier.csv", "frontier.parquet", "frontier.json", "frontier.png", "frontier.svg"):
        assert (trained / "frontier" / name).is_file(), name
    rlhf_pg("report", "runs/rloo", cwd=trained)
    assert (trained / "runs" / "rloo" / "report.html").is_file()


def test_check_train_and_serve_a_reward(trained: Path) -> None:
    model = ROOT.parent / "shared" / "models" / "stories260K"
    check, train, _ = (line for line in section("Rewards").splitlines() if line.startswith("rlhf-pg reward"))
    arguments = check.replace("MODEL", str(model)).split()[1:]
    checked = rlhf_pg(*arguments, "--group-size", "2", "--max-new-tokens", "8", cwd=trained)
    assert "length" in checked.stdout
    assert (trained / "check" / "check.png").is_file()
    pairs = [
        json.dumps({"prompt": f"Tell of {i}.", "chosen": f"A good day {i}.", "rejected": f"Bad {i}."})
        for i in range(20)
    ]
    (trained / "pairs.jsonl").write_text("\n".join(pairs), encoding="utf-8")
    rlhf_pg(*train.replace("MODEL", str(model)).split()[1:], "--cpu", cwd=trained)
    assert (trained / "my_reward_model" / "report.json").is_file()
    again = rlhf_pg("reward", "check", "my_reward_model", "--data", "pairs.jsonl", cwd=trained)
    assert "accuracy" in again.stdout
