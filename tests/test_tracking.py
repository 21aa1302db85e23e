"""What a run writes and prints: metrics, rollouts, progress, tables, the figure, the model card."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml
from matplotlib import image
from matplotlib.figure import Figure
from rich.console import Console

from rlhf_pg.errors import DataError
from rlhf_pg.tracking import RunLog, SampleRow, model_card, read_metrics, safe_text, training_figure


def plain(width: int = 120) -> Console:
    return Console(file=io.StringIO(), width=width)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def lines(run: Path) -> list[str]:
    return (run / "metrics.jsonl").read_text().splitlines()


def write_steps(run: Path, steps: range, start_step: int = 0, total: int = 20) -> None:
    with RunLog(run, total_steps=total, start_step=start_step, quiet=True) as log:
        for step in steps:
            log.step(step, {"reward": step / 3, "kl/sequence": 0.1 * step})
            log.rollout(step, {"text": ["a"]})


# metrics.jsonl


def test_one_line_a_step_with_floats_to_the_bit(tmp_path: Path) -> None:
    with RunLog(tmp_path, total_steps=2, quiet=True) as log:
        log.step(0, {"eval/reward": 0.1 + 0.2})
        log.step(1, {"reward": 1 / 3, "num_tokens": 7, "loss": math.nan, "ratio": -math.inf})
        assert lines(tmp_path) == [
            '{"step": 0, "eval/reward": 0.30000000000000004}',
            '{"step": 1, "reward": 0.3333333333333333, "num_tokens": 7, "loss": null, "ratio": null}',
        ], "flushed before the run ends"
    assert read_metrics(tmp_path)[1] == {"step": 1, "reward": 1 / 3, "num_tokens": 7, "loss": None, "ratio": None}


def test_no_metrics_yet(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize("torn", ['{"step": 3, "rew', "{", "3", '{"step": 3, "reward": 0.5'])
def test_a_torn_last_line_is_left_out(tmp_path: Path, torn: str) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n' + torn)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


@pytest.mark.parametrize("bad", ["nonsense", '{"reward": 1}', "[]"])
def test_a_bad_line_elsewhere_is_an_error(tmp_path: Path, bad: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{bad}\n{{"step": 3}}\n')
    with pytest.raises(DataError, match="line 2"):
        read_metrics(tmp_path)


def test_a_resume_cuts_later_steps_and_ends_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    write_steps(whole, range(1, 13))
    write_steps(stopped, range(1, 10))
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "rewa')
    (stopped / "rollouts" / ".step-000010.parquet.tmp").write_bytes(b"half")
    write_steps(stopped, range(6, 13), start_step=5)
    assert (stopped / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert sorted(p.name for p in stopped.rglob("*")) == sorted(p.name for p in whole.rglob("*"))


def test_a_resume_removes_rollouts_of_later_steps_only(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 10))
    (tmp_path / "rollouts" / "notes.txt").write_text("mine")
    RunLog(tmp_path, total_steps=20, start_step=7, quiet=True).close()
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 8))
    names = sorted(p.name for p in (tmp_path / "rollouts").iterdir())
    assert names == ["notes.txt", *(f"step-{n:06d}.parquet" for n in range(1, 8))]


def test_step_0_begins_anew(tmp_path: Path) -> None:
    write_steps(tmp_path, range(1, 4))
    write_steps(tmp_path, range(1, 3))
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


def test_only_the_main_process_writes_or_prints(tmp_path: Path) -> None:
    console, seen = plain(), []
    run = tmp_path / "run"
    with RunLog(run, total_steps=1, main=False, console=console, trackers=lambda m, s: seen.append(s)) as log:
        log.step(1, {"reward": 1.0})
        log.say("hello")
        log.samples(1, [SampleRow("p", "c", 1.0, 1.0, "eos")])
        log.rollout(1, {"text": ["a"]})
    assert not run.exists()
    assert shown(console) == ""
    assert seen == []


def test_trackers_get_finite_numbers(tmp_path: Path) -> None:
    seen: list[tuple[dict[str, float], int]] = []
    with RunLog(tmp_path, total_steps=1, quiet=True, trackers=lambda m, s: seen.append((m, s))) as log:
        log.step(1, {"reward": 0.5, "loss": math.nan})
    assert seen == [({"reward": 0.5}, 1)]


# Rollouts


def test_rollouts_are_zstd_parquet(tmp_path: Path) -> None:
    columns: dict[str, Any] = {"text": ["a\x1b[31m", "ü"], "reward": [0.5, None], "ids": [[1, 2], [3]]}
    with RunLog(tmp_path, total_steps=1, quiet=True) as log:
        log.rollout(1, columns)
    assert [p.name for p in (tmp_path / "rollouts").iterdir()] == ["step-000001.parquet"]
    file = pyarrow.parquet.ParquetFile(tmp_path / "rollouts" / "step-000001.parquet")
    assert file.read().to_pydict() == columns
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"


# The terminal


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_every_tenth_where_there_is_no_terminal(tmp_path: Path) -> None:
    console = plain()
    with RunLog(tmp_path, total_steps=45, console=console) as log:
        for step in range(1, 46):
            log.step(step, {"reward": 0.25, "kl/sequence": 1.5, "samples_per_second": 93.2})
    printed = shown(console).splitlines()
    assert [int(line.split()[1].split("/")[0]) for line in printed] == [5, 9, 14, 18, 23, 27, 32, 36, 41, 45]
    assert printed[0] == "step 5/45  reward 0.250  KL 1.50 nats  93 samples/s"
    assert "\x1b" not in shown(console)


def test_colours_forced_on_in_ci_draw_no_bar(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with RunLog(tmp_path, total_steps=10, console=console) as log:
        log.step(1, {"reward": 0.25})
    assert "━" not in shown(console)
    assert "step 1/10" in shown(console)


def test_a_bar_with_reward_kl_and_speed_on_a_terminal(tmp_path: Path) -> None:
    console = Console(file=Tty(), force_terminal=True, width=120, legacy_windows=False)
    with RunLog(tmp_path, total_steps=10, start_step=4, console=console) as log:
        log.step(5, {"reward": 0.25, "kl/sequence": 1.5, "samples_per_second": 93.2})
        log.say("a line above")
    printed = shown(console)
    assert "━" in printed
    assert "5/10" in printed
    assert "reward 0.250  KL 1.50 nats  93 samples/s" in printed
    assert "a line above" in printed
    log.close()


def test_an_evaluation_has_its_line(tmp_path: Path) -> None:
    console = plain()
    metrics = {"eval/reward": 0.8721, "eval/reward_stderr": 0.0123, "eval/kl/sequence": 6.543,
               "eval/kl/sequence_stderr": 0.1, "eval/win_rate": 0.81}  # fmt: skip
    with RunLog(tmp_path, total_steps=10, console=console) as log:
        log.step(0, metrics)
        log.step(1, {"eval/reward": 0.9})
    assert shown(console).splitlines() == [
        "step 0/10  held-out: reward 0.872 ± 0.012, KL 6.54 ± 0.10 nats, wins 81% against the reference",
        "step 1/10  held-out: reward 0.900",
    ]


def test_alerts_are_printed_once_and_remembered(tmp_path: Path) -> None:
    console = plain(40)
    with RunLog(tmp_path, total_steps=1000, console=console) as log:
        for step in range(1, 10):
            log.step(step, {"frac_reward_zero_std": 1.0})
    assert shown(console).count("Alert at step 5: in 100% of groups all completions scored the same") == 1
    assert shown(console).count("Alert") == 1
    assert log.alerts.raised["zero_std"]["step"] == 5


def test_quiet_prints_nothing_and_writes_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path, total_steps=1, quiet=True) as log:
        log.step(1, {"reward": 0.5, "updates/skipped_nonfinite": 1, "eval/reward": 1.0})
        log.say("hello")
    assert capsys.readouterr() == ("", "")
    assert len(lines(tmp_path)) == 1


# Model-written text


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("plain é 中 🙂 [bold]", "plain é 中 🙂 [bold]"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b2J", "\\x9b2J"),
        ("abc\u202edcb\u2066x\u2069\u200f", "abc\\u202edcb\\u2066x\\u2069\\u200f"),
        ("a\u200bb\ufeff", "a\\u200bb\\ufeff"),
        ("\u2028\u2029\x85", "\\u2028\\u2029\\x85"),
        ("\U000e0041\ud800\ue000", "\\U000e0041\\ud800\\ue000"),
        ("\x00\x08\x7f", "\\x00\\x08\\x7f"),
    ],
)
def test_safe_text(text: str, safe: str) -> None:
    assert safe_text(text) == safe


def test_the_table_of_samples_shows_hostile_text_escaped(tmp_path: Path) -> None:
    console = plain(200)
    rows = [
        SampleRow("long " * 50 + "prompt end", "[bold]x[/bold] [/] \x1b[2J \u202e </script>", 0.8123, 4.567, "eos"),
        SampleRow("p", "y" * 400, None, None, "length"),
    ]
    with RunLog(tmp_path, total_steps=1, console=console) as log:
        log.samples(7, rows)
        log.say("said [red]\x1b[31m\nsecond")
    printed = shown(console)
    assert "samples of step 7" in printed
    assert "[bold]x[/bold] [/] \\x1b[2J \\u202e </script>" in printed
    assert "0.812" in printed
    assert "4.57" in printed
    assert "prompt end" in printed.replace("\n", "")
    assert printed.count("y") == 300
    assert "said [red]\\x1b[31m\nsecond\n" in printed
    assert not set(printed) & {"\x1b", "\u202e"}


# The figure


def fake_run(evaluated: bool = True, trained: bool = True) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(21):
        row: dict[str, Any] = {"step": step}
        if trained and step:
            row |= {"reward": 0.3 + 0.02 * step, "kl/sequence": 0.3 * step - 0.4}
        if evaluated and step % 5 == 0:
            row |= {"eval/reward": 0.3 + 0.025 * step, "eval/reward_stderr": 0.02, "eval/kl/sequence": 0.25 * step,
                    "eval/kl/sequence_stderr": 0.1}  # fmt: skip
        rows.append(row)
    return rows


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, *args: Any, **kwargs: Any) -> None:
        figures.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


def test_the_figure_draws_the_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = drawn(monkeypatch)
    training_figure(fake_run(), tmp_path / "run.png")
    height, width = image.imread(tmp_path / "run.png").shape[:2]
    assert (width, height) == (2025, 645)
    reward, kl, trade = figures[0].axes
    assert list(reward.lines[0].get_ydata()) == [0.3 + 0.02 * n for n in range(1, 21)]
    assert list(reward.containers[0].lines[0].get_ydata()) == pytest.approx([0.3, 0.425, 0.55, 0.675, 0.8])
    assert list(kl.containers[0].lines[0].get_ydata()) == [0, 1.25, 2.5, 3.75, 5.0]
    assert list(trade.containers[0].lines[0].get_xdata()) == [0, 1.25, 2.5, 3.75, 5.0]
    first_bar = reward.containers[0].lines[2][0].get_segments()[0]
    assert first_bar[:, 1] == pytest.approx([0.28, 0.32])
    texts = {text.get_text() for text in trade.texts}
    assert {"step 0", "step 20"} <= texts
    assert "nats" in kl.get_ylabel()
    assert "nats" in trade.get_xlabel()


@pytest.mark.parametrize("nothing", [None, "absent"])
def test_values_that_are_missing_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing: Any) -> None:
    figures = drawn(monkeypatch)
    rows = fake_run()
    for name in ("reward", "eval/reward", "eval/reward_stderr"):
        if nothing is None:
            rows[10][name] = None
        else:
            del rows[10][name]
    training_figure(rows, tmp_path / "run.png")
    reward, _, trade = figures[0].axes
    assert list(reward.lines[0].get_xdata()) == [*range(1, 10), *range(11, 21)]
    assert list(trade.containers[0].lines[0].get_xdata()) == [0, 1.25, 3.75, 5.0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"step": 0}],
        fake_run()[:1],
        fake_run(evaluated=False),
        fake_run(evaluated=False)[:2],
        fake_run(trained=False),
        [{"step": 1, "reward": 1.0}],
        [{"step": 0, "eval/reward": 1.0, "eval/kl/sequence": 0.0}],
        [{"step": n, "eval/reward": 1.0, "eval/kl/sequence": 3e4 * n} for n in range(3)],
    ],
)
def test_any_run_has_a_figure(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    training_figure(rows, tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 1000


def test_pyplot_is_not_used() -> None:
    import subprocess
    import sys

    code = "import sys, rlhf_pg.tracking; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0


# The model card

CONFIG = """\
run: {name: stories, steps: 60}
rollout: {prompts_per_step: 8, group_size: 4, stop: ["```"]}
reward:
  functions:
  - {function: rewards.py:vader, weight: 1.0}
  - {function: org/classifier, weight: 0.5}
kl: {coef: 0.02, placement: reward, estimator: k1}
advantage: {baseline: leave_one_out}
loss: {policy: reinforce}
"""
MEASURED = {"eval/reward": 0.8721, "eval/reward_stderr": 0.0123, "eval/kl/sequence": 6.54, "eval/win_rate": 0.9}


def front_matter(card: str) -> dict[str, Any]:
    _, front, _ = card.split("---\n", 2)
    loaded = yaml.safe_load(front)
    assert isinstance(loaded, dict)
    return loaded


def test_the_card_says_what_was_trained_and_what_it_reached() -> None:
    card = model_card(CONFIG, "org/base-1B", MEASURED, "rloo")
    front = front_matter(card)
    assert front["base_model"] == "org/base-1B"
    assert front["library_name"] == "transformers"
    assert "reinforcement-learning" in front["tags"]
    assert "# stories" in card
    assert "by the recipe `rloo` of rlhf_pg: 60 steps of 8 prompts × 4 completions, baseline `leave_one_out`" in card
    assert "KL coefficient 0.02 (k1, in the reward)" in card
    assert "- `rewards.py:vader`, weight 1\n- `org/classifier`, weight 0.5" in card
    assert "| Reward | 0.872 ± 0.012 |" in card
    assert "| KL to the reference, a response | 6.540 nats |" in card
    assert "AutoModelForCausalLM.from_pretrained" in card


def test_the_configuration_in_the_card_is_whole_whatever_it_holds() -> None:
    card = model_card(CONFIG, "org/base", {}, None)
    block = card.split("````yaml\n")[1].split("\n````")[0]
    assert block == CONFIG.rstrip()
    assert "This run held out no prompts." in card


@pytest.mark.parametrize("path", ["../models/tiny", "/data/models/x", "builtin:reviews", "C:\\models"])
def test_a_local_base_model_is_no_hub_id(path: str) -> None:
    card = model_card(CONFIG, path, {}, None)
    assert "base_model" not in front_matter(card)
    assert f"`{path}`, fine-tuned" in card


@pytest.mark.parametrize("config", ["", "run: {name: x}\n", "reward: {functions: [a.py:f]}\n"])
def test_a_card_of_a_partial_configuration(config: str) -> None:
    card = model_card(config, "evil`\n# base: [x", {"eval/entropy": 1.0}, None)
    front_matter(card)
    assert "\n# base" not in card
