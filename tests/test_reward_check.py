"""`rlhf-pg reward check`: its statistics by hand, its warnings at their limits, and the command on real completions."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer import Typer
from typer.testing import CliRunner

from rlhf_pg.config.load import config_from_dict
from rlhf_pg.config.rewards import RewardConfig
from rlhf_pg.errors import ConfigError, DataError
from rlhf_pg.ops.statistics import pearson, spearman, wilson
from rlhf_pg.reward_check import check_reward
from rlhf_pg.reward_check.completions import gather
from rlhf_pg.reward_check.measure import backwards, measure, totals_of
from rlhf_pg.reward_check.statistics import accuracy, centred, changes, distribution, tied
from rlhf_pg.reward_check.verdicts import percent
from rlhf_pg.reward_cli.check import check
from rlhf_pg.rewards import RewardRunner, text_rollout
from tests import tiny

NAN = math.nan


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- statistics -----------------------------------------------------------------------------------------------------


def test_a_distribution_by_hand() -> None:
    """0, 1, 1, 4: mean 6/4, variance (2.25 + .25 + .25 + 6.25) / 4 = 2.25; the quantile .25 lies at place .75: 0.75."""
    found = distribution(t(1, NAN, 0, 4, 1))
    assert found["rows"] == 4
    assert found["distinct"] == 3
    assert (found["mean"], found["sd"]) == (1.5, 1.5)
    assert (found["min"], found["q25"], found["median"], found["q75"], found["max"]) == (0, 0.75, 1, 1.75, 4)
    assert (found["at_min"], found["at_max"]) == (0.25, 0.25)


def test_a_distribution_of_nothing_is_unknown() -> None:
    found = distribution(t(NAN, NAN))
    assert (found["rows"], found["distinct"]) == (0, 0)
    assert all(math.isnan(value) for name, value in found.items() if name not in ("rows", "distinct"))
    assert list(found) == list(distribution(t(1.0)))


def test_correlations_by_hand() -> None:
    """x - mean = -1, 0, 1 and y - mean = -3, -1, 4: 7 / sqrt(2 * 26). Ranks of 1, 1, 5 are 1.5, 1.5, 3."""
    x, y = t(1, 2, 3), t(0, 2, 7)
    assert pearson(x, y) == pytest.approx(7 / math.sqrt(52))
    assert spearman(x, y) == pytest.approx(1)
    assert spearman(x, -(y**3)) == pytest.approx(-1)
    # Ranks less their mean: -1, 0, 1 and -.5, -.5, 1: 1.5 / sqrt(2 * 1.5).
    assert spearman(x, t(1, 1, 5)) == pytest.approx(1.5 / math.sqrt(3))


def test_correlations_leave_unknown_rows_out() -> None:
    x, y = t(1, NAN, 2, 3, 9), t(0, 5, 2, 7, NAN)
    assert pearson(x, y) == pytest.approx(7 / math.sqrt(52))
    assert spearman(x, y) == pytest.approx(1)
    for nothing in (t(4, 4, 4), t(NAN, NAN, NAN)):
        assert math.isnan(pearson(nothing, t(1, 2, 3)))
        assert math.isnan(spearman(nothing, t(1, 2, 3)))


def test_ties_by_hand() -> None:
    """Groups: tied; not; tied where known; one known, not counted; none known, not counted; apart by rounding."""
    table = torch.stack([t(1, 1, 1), t(1, 2, 1), t(5, NAN, 5), t(1, NAN, NAN), t(NAN, NAN, NAN), t(1, 1 + 1e-6, 1)])
    assert tied(table) == (0.75, 4)
    share, counted = tied(table[3:5])
    assert math.isnan(share)
    assert counted == 0
    assert tied(table[:1] + t(0, 1e-3, 0)) == (0.0, 1)


def test_values_less_their_groups_mean() -> None:
    found = centred(torch.stack([t(1, 3), t(NAN, 4)]))
    assert found[[0, 1, 3]].tolist() == [-1, 1, 0]
    assert found[2].isnan()


def test_changes_by_hand() -> None:
    found = changes(t(1, 2, NAN, NAN, 100), t(1, 2.5, NAN, 1, 100 + 1e-4))
    assert found["largest"] == pytest.approx(0.5)
    assert found["share"] == pytest.approx(2 / 5)
    assert changes(t(1, 2), t(1, 2)) == {"largest": 0.0, "share": 0.0}
    assert changes(t(), t()) == {"largest": 0.0, "share": 0.0}


def test_wilson_by_hand() -> None:
    """p = .5 of m = 4: z^2 = 3.841459; middle (.5 + .480182) / 1.960365 = .5; half-width z sqrt(1/16 + z^2/64) / 1.960365."""
    low, high = wilson(0.5, 4)
    assert low == pytest.approx(0.150, abs=5e-4)
    assert high == pytest.approx(0.850, abs=5e-4)
    assert all(math.isnan(end) for end in wilson(0.5, 0))


def test_accuracy_by_hand() -> None:
    """Won, lost, tied, unknown: (1 + 0 + .5) / 3."""
    found = accuracy(torch.stack([t(2, 1), t(0, 3), t(1, 1), t(NAN, 0)]))
    assert found["pairs"] == 3
    assert found["accuracy"] == pytest.approx(0.5)
    assert found["ties"] == pytest.approx(1 / 3)
    assert (found["low"], found["high"]) == wilson(0.5, 3)


@pytest.mark.parametrize(
    ("share", "said"), [(0, "0%"), (0.004, "under 1%"), (0.62, "62%"), (0.996, "over 99%"), (1, "100%")]
)
def test_a_percentage_never_hides_a_few(share: float, said: str) -> None:
    assert percent(share) == said


# --- measuring ------------------------------------------------------------------------------------------------------


def rollout(texts: list[str], group: int = 1) -> Any:
    prompts = [f"p{number}" for number in range(len(texts) // group)]
    return text_rollout(prompts, texts, {"number": list(range(len(prompts)))}, group_size=group)


def runner(*functions: Any, **section: Any) -> RewardRunner:
    return RewardRunner(RewardConfig(on_error="unscorable", max_unscorable=1.0, **section), functions)


def test_the_second_batches_have_every_row_once_with_its_own_columns() -> None:
    batches: list[list[tuple[str, str, int]]] = []

    def remember(prompts: list[str], completions: list[str], number: list[int]) -> list[float]:
        batches.append(list(zip(prompts, completions, number, strict=True)))
        return [float(len(text)) for text in completions]

    texts = ["a" * length for length in range(1, 13)]
    found = measure(runner(remember), rollout(texts, group=2), once=False)
    rows = [(f"p{row // 2}", text, row // 2) for row, text in enumerate(texts)]
    assert batches[:2] == [rows, rows]
    assert [len(batch) for batch in batches[2:]] == [6, 4, 2]
    assert [row for batch in batches[2:] for row in batch] == rows[::-1]
    assert found.again is not None
    assert found.elsewhere is not None
    assert found.totals.tolist() == found.again.tolist() == found.elsewhere.tolist() == list(range(1, 13))


def test_once_scores_once() -> None:
    calls = []

    def count(completions: list[str]) -> list[float]:
        calls.append(1)
        return [0.0] * len(completions)

    found = measure(runner(count), rollout(["a", "b"]), once=True)
    assert len(calls) == 1
    assert found.again is None
    assert found.elsewhere is None


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_few_prompts_are_measured_too(count: int) -> None:
    found = measure(
        runner(lambda completions: [float(c) for c in completions]), rollout([*map(str, range(count))]), once=False
    )
    assert found.elsewhere is not None
    assert found.elsewhere.tolist() == list(range(count))


def test_totals_are_what_a_run_maximises() -> None:
    """Scores 1 and 9 clipped to 4, the second one's prompt unscorable in part; a reward per token is added unclipped."""

    def scores(completions: list[str]) -> list[float | None]:
        return [1.0, 9.0, None]

    def per_token(completions: list[str]) -> list[Any]:
        return [[0.5, 0.25], [2.0], None]

    run = runner(scores, per_token, clip=(0.0, 4.0))
    scored = run(rollout(["a b", "c", "d"]))
    found = totals_of(scored, run.config)
    assert found[:2].tolist() == [1.75, 6.0]
    assert found[2].isnan()
    batch = tiny.rollout([[3], [4]], [[5, tiny.EOS], [5, 6]])  # the second one has no end
    run = runner(lambda completions: [1.0, 1.0], missing_eos_penalty=0.5)
    assert totals_of(run(batch), run.config).tolist() == [1.0, 0.5]


def test_backwards_takes_the_whole_of_each_row() -> None:
    whole = rollout(["a", "b c", "d e f", "g"], group=2)
    part = backwards(whole, range(1))
    assert part.texts == ("g", "d e f")
    assert part.prompts.prompts == ("p1",)
    assert part.prompts.columns == {"number": [1]}
    assert part.lengths.tolist() == [1, 3]


# --- findings and warnings ------------------------------------------------------------------------------------------


def checked(
    tmp_path: Path, rows: list[dict[str, Any]], *functions: Any, reward: RewardConfig | None = None, **options: Any
) -> dict[str, Any]:
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_from_dict({"data": {"source": str(file)}})
    return check_reward(config, reward or functions, console=Console(quiet=True), **options)


def words(*counts: int) -> list[dict[str, Any]]:
    """Rows whose completions have these numbers of words, each word its row's number."""
    return [{"prompt": "p", "completion": " ".join([str(row)] * count)} for row, count in enumerate(counts)]


def by_row(values: list[float | None]) -> Any:
    return lambda completions: [values[int(text.split()[0])] for text in completions]


ZIGZAG = [float(row % 7) for row in range(40)]


def test_a_sound_reward_gets_no_warning(tmp_path: Path) -> None:
    found = checked(tmp_path, words(*[5 + row // 20 for row in range(40)]), by_row(ZIGZAG))
    assert found["warnings"] == []
    assert found["origin"].startswith("completion of ")
    assert found["tokens"] == "words"
    assert found["groups"] is None
    assert found["pairs"] is None
    assert found["repeated"] == {part: {"largest": 0.0, "share": 0.0} for part in ("again", "elsewhere")}
    assert found["length"]["mean"] == 5.5
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def said(found: dict[str, Any], *starts: str) -> None:
    assert [text[: len(start)] for text, start in zip(found["warnings"], starts, strict=True)] == list(starts)


def test_one_value_only(tmp_path: Path) -> None:
    found = checked(tmp_path, words(*[3] * 40), by_row([2.0] * 40))
    said(found, "one value only: every row has the reward 2")


def test_few_rows(tmp_path: Path) -> None:
    said(checked(tmp_path, words(*[3] * 29), by_row(ZIGZAG)), "only 29 rows were scored")
    assert checked(tmp_path, words(*[3] * 30), by_row(ZIGZAG))["warnings"] == []


def test_unscorable_rows(tmp_path: Path) -> None:
    holes: list[float | None] = [*ZIGZAG]
    holes[3] = holes[9] = None
    assert checked(tmp_path, words(*[3] * 40), by_row(holes))["warnings"] == []  # 5%
    holes[12] = None
    found = checked(tmp_path, words(*[3] * 40), by_row(holes))
    said(found, "8% of the rows are unscorable")
    assert found["components"]["lambda"]["unscorable"] == pytest.approx(3 / 40)
    assert found["reward"]["rows"] == 37


def test_rows_that_fail_are_counted_and_the_reason_is_given(tmp_path: Path) -> None:
    def fails(completions: list[str]) -> list[float]:
        if any(text.startswith("4 ") for text in completions):
            raise KeyError("unit")
        return [ZIGZAG[int(text.split()[0])] for text in completions]

    found = checked(tmp_path, words(*[3] * 40), fails)
    said(found, "fails failed on 2% of the rows: it raised KeyError: 'unit', in row 4 (prompt 'p', completion '4 4 4')")
    part = found["components"]["fails"]
    assert (part["failed"], part["unscorable"]) == (1 / 40, 0.0)


def test_a_reward_that_always_fails_is_still_reported(tmp_path: Path) -> None:
    found = checked(tmp_path, words(3, 3), lambda completions: "no", out=tmp_path / "out")
    said(found, "lambda failed on 100% of the rows", "100% of the rows are unscorable")
    assert found["reward"]["mean"] is None
    assert found["best"] == []
    assert (tmp_path / "out" / "check.png").read_bytes()[:4] == b"\x89PNG"


def test_almost_all_rows_at_an_end(tmp_path: Path) -> None:
    said(
        checked(tmp_path, words(*[3] * 40), by_row([0.0] * 36 + [1.0] * 4)), "90% of the rows have the lowest reward, 0"
    )
    said(
        checked(tmp_path, words(*[3] * 40), by_row([0.0] * 4 + [1.0] * 36)),
        "90% of the rows have the highest reward, 1",
    )
    assert checked(tmp_path, words(*[3] * 40), by_row([0.0] * 35 + [1.0] * 5))["warnings"] == []


def test_groups_that_tie(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{group}", "completion": ["a", "b"]} for group in range(50)]
    for tying, start in ((31, "62% of groups tie: most of a batch"), (20, "40% of groups tie: that part of a batch")):

        def score(prompts: list[str], completions: list[str], tying: int = tying) -> list[float]:
            return [
                float(text == "a" and int(prompt[1:]) >= tying)
                for prompt, text in zip(prompts, completions, strict=True)
            ]

        found = checked(tmp_path, rows, score)
        assert found["groups"] == {"counted": 50, "tied": tying / 50}
        assert found["group_size"] == 2
        said(found, start)


def test_a_reward_that_changes_by_itself(tmp_path: Path) -> None:
    calls: list[int] = []

    def drifts(completions: list[str]) -> list[float]:
        calls.append(1)
        return [ZIGZAG[int(text.split()[0])] + 0.5 * len(calls) for text in completions]

    found = checked(tmp_path, words(*[3] * 40), drifts)
    said(found, "not repeatable: scored twice, 100% of the rows differ, by up to 0.5")
    assert checked(tmp_path, words(*[3] * 40), drifts, once=True)["warnings"] == []


def test_a_reward_that_depends_on_its_batch(tmp_path: Path) -> None:
    def ranks(completions: list[str]) -> list[float]:
        own = [ZIGZAG[int(text.split()[0])] for text in completions]
        return [value - max(own) * len(own) for value in own]

    found = checked(tmp_path, words(*[3] * 40), ranks)
    said(found, "depends on the batch: scored in other batches, in another order, 100% of the rows differ")


@pytest.mark.parametrize(("sign", "word"), [(1, "longer"), (-1, "shorter")])
def test_a_reward_that_follows_length(tmp_path: Path, sign: int, word: str) -> None:
    counts = [2 + row % 9 for row in range(40)]
    found = checked(
        tmp_path, words(*counts), lambda completions: [sign * float(len(c.split())) ** 3 for c in completions]
    )
    said(
        found,
        f"the reward follows length: Spearman {sign:.2f} with the tokens; a policy may learn to write {word} texts",
    )
    assert found["length"]["spearman"] == pytest.approx(sign)
    assert abs(found["length"]["pearson"]) < 0.99


def pairs(count: int, right: int, *, longer: int = 0) -> list[dict[str, Any]]:
    """The text with a 1 scores higher: the chosen one in the first ``right`` pairs.

    It is longer in the first ``longer`` pairs and shorter in the others; with ``longer=0`` all texts are alike.
    """
    return [
        {
            "prompt": f"p{row}",
            "chosen": f"{int(row < right)} {'x ' * (3 if row < longer else 1 if longer else 2)}",
            "rejected": f"{int(row >= right)} x x",
        }
        for row in range(count)
    ]


def first_digit(completions: list[str]) -> list[float]:
    return [float(text[0]) for text in completions]


def test_pairs(tmp_path: Path) -> None:
    found = checked(tmp_path, pairs(40, 36), first_digit)
    assert found["warnings"] == []
    assert found["group_size"] == 2
    assert found["groups"] is None
    assert found["pairs"]["accuracy"] == 0.9
    assert (found["pairs"]["low"], found["pairs"]["high"]) == pytest.approx(wilson(0.9, 40))
    assert found["pairs"]["by_length"]["same length"]["pairs"] == 40
    said(checked(tmp_path, pairs(40, 24), first_digit), "it cannot be told from chance: accuracy 0.600")
    said(checked(tmp_path, pairs(40, 4), first_digit), "it prefers the rejected texts: accuracy 0.100")
    said(
        checked(tmp_path, pairs(70, 40, longer=40), first_digit),
        "the reward follows length",
        "it cannot be told from chance",
        "it prefers the longer text: accuracy 1.00 where the chosen one is longer, 0.00 where it is shorter",
    )


def test_components_of_which_one_is_constant_and_two_are_alike(tmp_path: Path) -> None:
    def first(completions: list[str]) -> list[float]:
        return by_row(ZIGZAG)(completions)

    def same(completions: list[str]) -> list[float]:
        return [2 * value + 1 for value in first(completions)]

    def nothing(completions: list[str]) -> list[float]:
        return [1.0] * len(completions)

    found = checked(tmp_path, words(*[3] * 40), first, same, nothing)
    said(
        found, "nothing gives every row 1: it decides nothing", "first and same say the same: their correlation is 1.00"
    )
    assert found["components"]["first"]["total_pearson"] == pytest.approx(1)


def test_a_sum_is_not_said_to_be_like_its_own_member(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text("def zigzag(completions, **_):\n    return [int(text.split()[0]) % 7 for text in completions]\n")
    member = {"function": f"{file}:zigzag", "process": "main"}
    other = {**member, "name": "half", "weight": 0.5}
    reward = RewardConfig.model_validate({"functions": [{"members": [member, other], "combine": "mean_minus_std"}]})
    found = checked(tmp_path, words(*[3] * 40), reward=reward)
    said(found, "zigzag and half say the same")
    assert list(found["disagreement"]) == ["mean_minus_std"]
    assert set(found["components"]) == {"mean_minus_std", "zigzag", "half"}


def test_a_slow_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 8))  # 8 s between two looks at the clock
    monkeypatch.setattr("rlhf_pg.reward_check.measure.time.perf_counter", lambda: float(next(clock)))
    found = checked(tmp_path, words(*[3] * 40), by_row(ZIGZAG))
    assert found["seconds"]["step_rows"] == 64
    assert found["seconds"]["step"] == pytest.approx(64 * found["seconds"]["call"] / 40)
    said(found, f"slow: at this rate a step of 64 rows takes {found['seconds']['step']:.0f} s to score")


def test_best_and_worst(tmp_path: Path) -> None:
    found = checked(tmp_path, words(*[3] * 40), by_row([float(row) for row in range(40)]))
    assert [row["reward"] for row in found["best"]] == [39, 38, 37]
    assert [row["reward"] for row in found["worst"]] == [0, 1, 2]
    assert found["worst"][1] == {"prompt": "p", "completion": "1 1 1", "reward": 1.0, "tokens": 3}


# --- completions ----------------------------------------------------------------------------------------------------


def gathered(tmp_path: Path, rows: list[dict[str, Any]], column: str | None = None, **more: Any) -> Any:
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_from_dict({"data": {"source": str(file), **more.pop("data", {})}})
    settings = {"policy": False, "group_size": None, "max_new_tokens": None, "rows": more.pop("most", None), "seed": 0}
    return gather(config, column=column, **{**settings, "say": lambda _: None, **more})


def test_a_column_may_be_the_answer_and_the_completion(tmp_path: Path) -> None:
    found = gathered(tmp_path, [{"question": "1 + 1?", "answer": "it is 2"}], "answer")
    assert found.rollout.texts == ("it is 2",)
    assert found.rollout.prompts.prompts == ("1 + 1?",)
    assert found.rollout.prompts.columns["answer"] == ["it is 2"]
    assert found.rollout.lengths.tolist() == [3]


def test_a_column_named_like_an_argument_is_not_passed_twice(tmp_path: Path) -> None:
    found = gathered(tmp_path, [{"prompt": "p", "completions": ["a", "b c"]}], "completions")
    assert found.rollout.texts == ("a", "b c")
    assert found.rollout.group_size == 2
    assert found.rollout.prompts.columns == {}


def test_data_without_prompts_have_empty_ones(tmp_path: Path) -> None:
    heard: list[str] = []
    found = gathered(tmp_path, [{"text": "a b", "label": 1}], "text", say=heard.append)
    assert found.rollout.prompts.prompts == ("",)
    assert found.rollout.prompts.columns["label"] == [1]
    assert len(heard) == 1
    assert "has none of the columns prompt" in heard[0]


@pytest.mark.parametrize("option", ["group_size", "max_new_tokens"])
def test_sampling_options_without_sampling_are_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(ConfigError, match=r"--group-size and --max-new-tokens are of sampled completions"):
        gathered(tmp_path, [{"prompt": "p", "completion": "a"}], **{option: 2})


USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}


def test_pairs_of_conversations_share_their_beginning(tmp_path: Path) -> None:
    other = {"role": "assistant", "content": "he"}
    found = gathered(tmp_path, [{"chosen": [USER, ANSWER], "rejected": [USER, other]}])
    assert found.pairs
    assert found.rollout.texts == ("ho", "he")
    assert found.rollout.prompts.prompts == ([USER],)
    with pytest.raises(DataError, match="differ before their last message"):
        gathered(tmp_path, [{"chosen": [USER, ANSWER], "rejected": [other, ANSWER]}])


def test_a_subset_is_drawn_by_the_seed(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{row}", "completion": str(row)} for row in range(50)]
    first, second, third = (gathered(tmp_path, rows, most=9, seed=seed).rollout for seed in (0, 0, 1))
    assert first.texts == second.texts != third.texts
    assert len(first) == 9
    assert first.prompts.prompts == tuple(f"p{text}" for text in first.texts)


@pytest.mark.parametrize(
    ("rows", "column", "error", "problem"),
    [
        ([{"prompt": "p", "a": 1}], None, ConfigError, r"--policy.*--column; the columns of .* are prompt, a"),
        ([{"prompt": "p", "a": "x"}], "b", DataError, r"--column b is no column of .*: prompt, a"),
        ([{"prompt": "p", "a": 1}], "a", DataError, r"row 0 of .* has a completion of type int"),
        (
            [{"prompt": "p", "a": ["x"]}, {"prompt": "p", "a": ["x", "y"]}],
            "a",
            DataError,
            r"row 1 .* 2 completions and the",
        ),
        ([{"prompt": "p", "a": []}], "a", DataError, r"row 0 .* has 0 completions"),
    ],
)
def test_completions_that_cannot_be_used(
    tmp_path: Path, rows: list[dict[str, Any]], column: str | None, error: type[Exception], problem: str
) -> None:
    with pytest.raises(error, match=problem):
        gathered(tmp_path, rows, column)


# --- the command ----------------------------------------------------------------------------------------------------

app = Typer(pretty_exceptions_enable=False)
app.command()(check)


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_command_on_samples_of_a_real_model(stories: str, tmp_path: Path) -> None:
    data, out, figures = tmp_path / "prompts.jsonl", tmp_path / "out", tmp_path / "found.json"
    prompts = ["Once upon a time, there was a", "Lily and Tom went to the", "One day, a little bird"]
    data.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    sampling = ("--policy", stories, "--group-size", 4, "--max-new-tokens", 12, "--rows", 2)
    arguments = ("keyword", "--arg", 'words=["the", "was"]', "--data", data, *sampling, "--out", out, "--json", figures)
    result = run(*arguments)
    assert result.exit_code == 0
    for text in (
        "samples of",
        "groups that tie",
        "scored again",
        "the same",
        "The best",
        "The worst",
        "warning: only 8 rows",
    ):
        assert text in result.stdout
    found = json.loads(figures.read_text())
    assert (found["rows"], found["prompts"], found["group_size"]) == (8, 2, 4)
    assert found["tokens"] == f"tokens of {stories}"
    assert found["length"]["mean"] <= 12
    assert (out / "check.png").read_bytes()[:4] == b"\x89PNG"
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert [row["reward"] for row in rows] == [row["components"]["keyword"] for row in rows]
    wanted = [
        sum(word in row["completion"].lower().replace(".", " ").replace(",", " ").split() for word in ("the", "was"))
        / 2
        for row in rows
    ]
    assert [row["reward"] for row in rows] == wanted
    again = run(*arguments, "--strict")
    assert again.exit_code == 1
    assert [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()] == rows


def test_what_a_model_wrote_cannot_steer_the_terminal(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    text = "[bold red]x[/] \x1b[2J\u202e"
    data.write_text(json.dumps({"prompt": text, "completion": text}) + "\n")
    result = run("length", "--arg", "target=2", "--data", data, "--out", tmp_path / "out")
    assert result.stdout.count(r"[bold red]x[/] \x1b[2J\u202e") == 4
    assert "\x1b[2J" not in result.stdout
    assert "\u202e" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--data", "x.jsonl"), "there is no reward to check"),
        (("length",), "--data is missing"),
        (("--arg", "a=1", "--data", "x.jsonl"), "belong to a reward named on the command line"),
    ],
)
def test_commands_that_cannot_run(arguments: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        run(*arguments)


def test_the_commands_module_needs_no_torch() -> None:
    code = "import sys, rlhf_pg.reward_cli.check; sys.exit(bool({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_recipe_brings_data_policy_and_reward(stories: str, tmp_path: Path) -> None:
    data, recipe = tmp_path / "prompts.jsonl", tmp_path / "recipe.yaml"
    data.write_text(json.dumps({"prompt": "Once upon a time"}) + "\n")
    recipe.write_text(
        f"policy: {{model: {stories}}}\ndata: {{source: {data}}}\nrollout: {{group_size: 2, max_new_tokens: 6}}\n"
        "reward: {functions: [{function: length, args: {target: 3}}]}\n"
    )
    figures = tmp_path / "found.json"
    assert run("--recipe", recipe, "--out", tmp_path / "out", "--json", figures).exit_code == 0
    found = json.loads(figures.read_text())
    assert (found["rows"], list(found["components"])) == (2, ["length"])
    assert found["seconds"]["step_rows"] == 16
    assert (
        run(
            "keyword", "--arg", "words=time", "--recipe", recipe, "--out", tmp_path / "out", "--json", figures
        ).exit_code
        == 0
    )
    assert list(json.loads(figures.read_text())["components"]) == ["keyword"]
