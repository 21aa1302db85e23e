"""The command line: what it calls, what it prints, its exit codes, and that help needs no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import rlhf_pg
from rlhf_pg.cli import app, main
from rlhf_pg.config import Config, load_config
from rlhf_pg.config.show import json_schema
from rlhf_pg.errors import TrainingError

ROOT = Path(__file__).parents[1]
COMPLETE = ["policy.model=m", "data.source=d", "reward.functions=[f.py:g]"]
Calls = list[tuple[Any, ...]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Stands in for what the commands run, and keeps the arguments they were given."""
    seen: Calls = []

    def module(name: str, **functions: Callable[..., Any]) -> None:
        made = ModuleType(name)
        for key, function in functions.items():
            setattr(made, key, function)
        monkeypatch.setitem(sys.modules, name, made)

    def recorder(name: str, result: Any = None) -> Callable[..., Any]:
        def record(*arguments: Any) -> Any:
            seen.append((name, *arguments))
            return result

        return record

    module("rlhf_pg.trainer", train=recorder("train"), resume=recorder("resume"))
    module("rlhf_pg.dry_run", dry_run=recorder("dry_run"))
    module("rlhf_pg.distributed", launch=recorder("launch"))
    module("rlhf_pg.evaluate", evaluate_model=recorder("evaluate", {"eval/reward": 0.123456, "eval/kl/sequence": 2.0}))
    module("rlhf_pg.quickstart.run", quickstart=recorder("quickstart"))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return seen


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs ``main`` as the shell does: exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rlhf-pg", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


Shell = Callable[..., tuple[int, str, str]]


# What is called


def test_train_gets_the_resolved_configuration(calls: Calls, shell: Shell) -> None:
    assert shell("train", "rloo", *COMPLETE, "update.learning_rate=5e-6", "kl.coef=1", "kl.coef=2")[0] == 0
    assert calls == [("train", load_config("rloo", [*COMPLETE, "update.learning_rate=5e-6", "kl.coef=2"]))]


def test_options_may_stand_between_overrides(calls: Calls, shell: Shell) -> None:
    assert shell("train", "rloo", COMPLETE[0], "--dry-run", *COMPLETE[1:])[0] == 0
    assert calls == [("dry_run", load_config("rloo", COMPLETE))]


def test_several_processes_are_launched_with_the_same_arguments(calls: Calls, shell: Shell) -> None:
    assert shell("train", "rloo", *COMPLETE, "--processes", "2")[0] == 0
    assert shell("train", "--processes=3", "--resume", "runs/a", "run.steps=9")[0] == 0
    assert calls == [
        ("launch", 2, ["rloo", *COMPLETE]),
        ("launch", 3, ["--resume", "runs/a", "run.steps=9"]),
    ]


def test_a_launched_worker_trains(calls: Calls, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert shell("train", "rloo", *COMPLETE)[0] == 0
    code, _, error = shell("train", "rloo", *COMPLETE, "--processes", "2")
    assert (code, [name for name, *_ in calls]) == (2, ["train"])
    assert "started by a launcher already" in error


def test_resume(calls: Calls, shell: Shell) -> None:
    assert shell("train", "--resume", "runs/a")[0] == 0
    assert shell("train", "--resume", "runs/a", "run.steps=9", "evaluation.every=2")[0] == 0
    assert calls == [
        ("resume", Path("runs/a"), []),
        ("resume", Path("runs/a"), ["run.steps=9", "evaluation.every=2"]),
    ]


def test_evaluate_prints_and_writes(calls: Calls, shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    code, out, _ = shell(
        "evaluate", "runs/a", "run.seed=3", "--recipe", "rloo", "--reference", "base", "--json", str(file)
    )
    assert code == 0
    assert calls == [("evaluate", "runs/a", "rloo", ["run.seed=3"], "base")]
    assert "0.1235" in out
    assert json.loads(file.read_text()) == {"eval/reward": 0.123456, "eval/kl/sequence": 2.0}
    shell("evaluate", "m")
    assert calls[1] == ("evaluate", "m", None, [], None)


def test_quickstart(calls: Calls, shell: Shell) -> None:
    assert shell("quickstart", "run.steps=2")[0] == 0
    assert calls == [("quickstart", ["run.steps=2"])]


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "rlo"], "error: there is no recipe 'rlo', neither as a file nor by name; did you mean rloo?"),
        (["train", "rloo", "kl.coeff=1"], "error: kl.coeff=1: unknown key; did you mean kl.coef?"),
        (["train", "rloo"], "error: policy.model is not set"),
        (["train", "rloo", "--processes", "2"], "error: policy.model is not set"),
        (["train", "rloo", *COMPLETE, "--dry-run", "--processes", "2"], "--dry-run runs in one process"),
        (["train"], "error: no recipe was given"),
        (["train", "rloo", "--resume", "runs/a"], "error: --resume takes the recipe from runs/a"),
        (["train", "--resume", "runs/a", "--dry-run"], "exclude each other"),
        (["train", "rloo", "ppo"], "error: override 'ppo' is not of the form"),
        (["config", "show", "rloo", "rollout.group_size=1"], "error: advantage.baseline=leave_one_out compares"),
        (["train", "rloo", "--processes", "0"], "processes"),
        (["train", "rloo", "--no-such-option"], "No such option"),
        (["trian", "rloo"], "No such command"),
    ],
)
def test_errors_are_plain_and_exit_with_2(calls: Calls, shell: Shell, arguments: list[str], message: str) -> None:
    code, out, error = shell(*arguments)
    assert (code, out, calls) == (2, "", [])
    assert message in error
    assert "Traceback" not in error


def test_an_error_of_a_run_is_told_without_traceback(
    calls: Calls, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(config: Config) -> None:
        raise TrainingError("the loss stays non-finite")

    monkeypatch.setattr(sys.modules["rlhf_pg.trainer"], "train", train)
    assert shell("train", "rloo", *COMPLETE) == (2, "", "error: the loss stays non-finite\n")
    monkeypatch.setenv("RLHF_PG_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["rlhf-pg", "train", "rloo", *COMPLETE])
    with pytest.raises(TrainingError):
        main()


# What is printed


def test_config_show_prints_a_recipe_that_loads(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["config", "show", "ppo", "kl.coef=0.125"])
    assert result.exit_code == 0
    assert "  coef: 0.125 " in result.stdout
    (tmp_path / "shown.yaml").write_text(result.stdout)
    assert load_config(tmp_path / "shown.yaml") == load_config("ppo", ["kl.coef=0.125"])


def test_config_schema(tmp_path: Path) -> None:
    printed = CliRunner().invoke(app, ["config", "schema"])
    assert json.loads(printed.stdout) == json_schema()
    written = CliRunner().invoke(app, ["config", "schema", "--out", str(tmp_path / "schema.json")])
    assert (written.exit_code, written.stdout) == (0, "")
    assert json.loads((tmp_path / "schema.json").read_text()) == json_schema()


def test_recipes_are_listed_with_their_headline() -> None:
    lines = CliRunner().invoke(app, ["recipes"]).stdout.splitlines()
    listed = {line.split()[0]: line for line in lines}
    assert set(listed) == {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
    assert listed["rloo"].split(maxsplit=1)[1].startswith("RLOO: ")
    assert "yaml-language-server" not in "".join(lines)


# The package and its imports


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def test_help_and_configuration_import_no_torch() -> None:
    code = """
import sys
import rlhf_pg.config, rlhf_pg.cli
heavy = lambda: sorted({"torch", "transformers", "accelerate", "datasets", "peft", "numpy"} & set(sys.modules))
for line in ("--help", "train --help", "config show rloo", "config schema", "recipes", "train rloo"):
    arguments = line.split()
    sys.argv = ["rlhf-pg", *arguments]
    try:
        rlhf_pg.cli.main()
    except SystemExit as ended:
        expected = 2 if line == "train rloo" else 0
        assert (ended.code or 0) == expected, (arguments, ended.code)
    assert not heavy(), (arguments, heavy())
assert rlhf_pg.Config is rlhf_pg.config.Config and not heavy()
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_the_module_runs() -> None:
    command = [sys.executable, "-m", "rlhf_pg", "train", "rloo", "kl.coeff=1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: kl.coeff=1: unknown key; did you mean kl.coef?\n"


def test_the_package_s_public_names(calls: Calls) -> None:
    assert rlhf_pg.Config is Config
    assert rlhf_pg.load_config is load_config
    assert rlhf_pg.train is sys.modules["rlhf_pg.trainer"].train
    assert {"Config", "evaluate", "load_config", "train", "__version__"} <= set(dir(rlhf_pg))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        rlhf_pg.nothing  # noqa: B018


def test_evaluate_is_the_subpackage() -> None:
    done = python("import rlhf_pg, types; assert isinstance(rlhf_pg.evaluate, types.ModuleType), rlhf_pg.evaluate")
    assert done.returncode == 0, done.stderr


def test_the_version_is_the_project_s() -> None:
    assert rlhf_pg.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_recipes_are_data_that_the_wheel_carries() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]["recipes"] == "rlhf_pg/_recipes"
    assert not (ROOT / "recipes" / "__init__.py").exists()
    assert all(isinstance(yaml.safe_load(path.read_text()), dict) for path in (ROOT / "recipes").glob("*.yaml"))
