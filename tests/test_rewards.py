"""Reward functions found, called, checked and combined."""

from __future__ import annotations

import asyncio
import functools
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_pg.config.rewards import RewardConfig, RewardFunctionConfig
from rlhf_pg.errors import ConfigError, RewardError
from rlhf_pg.rewards import BUILTINS, RewardRunner
from rlhf_pg.types import PromptBatch, Rollout

LENGTHS = [3, 1, 2, 3]
TEXTS = ("alpha", "beta", "gamma", "delta")


def rollout(prompts: tuple[Any, ...] = ("p0", "p1"), columns: dict[str, list[Any]] | None = None) -> Rollout:
    """P = 2 prompts, G = 2, T = 3; what is behind a response's end is 99."""
    ids = torch.tensor([[1, 2, 3], [4, 99, 99], [5, 6, 99], [7, 8, 9]])
    mask = torch.arange(3) < torch.tensor(LENGTHS)[:, None]
    batch = PromptBatch(
        torch.arange(2), prompts, torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1, dtype=torch.bool), columns or {}
    )
    return Rollout(batch, 2, ids, mask, torch.zeros(4, 3), ("eos", "eos", "stop", "length"), TEXTS)


def config(*functions: Any) -> RewardConfig:
    return RewardConfig.model_validate({"functions": list(functions)})


def run(*functions: Any, **kwargs: Any):
    return RewardRunner(RewardConfig(), functions)(rollout(**kwargs))


def weighted(path: str, weight: float, **more: Any) -> dict[str, Any]:
    return {"function": path, "weight": weight, **more}


@pytest.fixture
def file(tmp_path):
    """A user's file of reward functions; gives ``path:``."""

    def write(source: str, name: str = "mine.py") -> str:
        path = tmp_path / name
        path.write_text(source)
        return f"{path}:"

    return write


# --- the call -------------------------------------------------------------------------------------------------------


def test_a_function_gets_keywords_lists_and_columns_repeated_for_each_completion():
    seen = {}

    def spy(**keywords):
        seen.update(keywords)
        return [0.0] * 4

    run(spy, columns={"answer": ["a", "b"], "level": [1, 2]})
    assert seen == {
        "prompts": ["p0", "p0", "p1", "p1"],
        "completions": list(TEXTS),
        "completion_ids": [[1, 2, 3], [4], [5, 6], [7, 8, 9]],
        "answer": ["a", "a", "b", "b"],
        "level": [1, 1, 2, 2],
    }
    assert all(type(value) is list for value in seen.values())


def test_trap_15_the_order_of_the_parameters_does_not_matter():
    def ids_first(completion_ids, completions):
        return [float(len(ids)) for ids in completion_ids]

    assert run(ids_first).scores.tolist() == [3.0, 1.0, 2.0, 3.0]


def test_a_function_gets_only_what_it_names():
    def narrow(completions, answer=None):
        assert answer is None
        return [1.0] * len(completions)

    assert run(narrow, columns={"question": ["a", "b"]}).scores.tolist() == [1.0] * 4


def test_messages_give_messages_and_no_function_can_spoil_another():
    chats = ([{"role": "user", "content": "hi"}], [{"role": "user", "content": "ho"}])
    seen = []

    def vandal(prompts, completions, completion_ids, answer):
        seen.append(
            (
                [p[0]["content"] for p in prompts],
                [c[0]["content"] for c in completions],
                list(completion_ids),
                list(answer),
            )
        )
        assert [c[0]["role"] for c in completions] == ["assistant"] * 4
        for prompt in prompts:
            prompt[0]["content"] += "!"
            prompt.append({"role": "user", "content": "more"})
        completions.clear()
        completion_ids.pop()
        answer.pop()
        return [0.0] * 4

    run(vandal, vandal, prompts=chats, columns={"answer": [1, 2]})
    assert seen[0] == seen[1]
    assert seen[0][0] == ["hi", "hi", "ho", "ho"]
    assert seen[0][1] == list(TEXTS)
    assert chats == ([{"role": "user", "content": "hi"}], [{"role": "user", "content": "ho"}])


def test_a_missing_column_is_named_with_the_columns_there_are():
    def needs(completions, solution, **kwargs):
        return [0.0] * 4

    with pytest.raises(RewardError, match=r"'needs' needs 'solution'.*\['answer', 'level'\]"):
        run(needs, columns={"level": [1, 2], "answer": [3, 4]})


def test_arguments_win_over_columns_of_the_same_name(file):
    path = file("def f(completions, target): return [float(target)] * len(completions)")
    runner = RewardRunner(config({"function": path + "f", "args": {"target": 7}}))
    assert runner(rollout(columns={"target": [1, 2]})).scores.tolist() == [7.0] * 4


def test_a_function_may_log():
    def logs(completions, log_metric, log_extra):
        log_metric("share", 0.5)
        log_extra("column", completions)
        return [1.0] * 4

    heard = {}
    RewardRunner(RewardConfig(), [logs])(rollout(), heard.__setitem__)
    assert heard["share"] == 0.5
    assert RewardRunner(RewardConfig(), [logs])(rollout()).valid.all()


# --- what it may return ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "result",
    [
        [1, 2.0, True, np.float32(0.5)],
        (1.0, 2.0, 1.0, 0.5),
        np.array([1.0, 2.0, 1.0, 0.5]),
        torch.tensor([1.0, 2.0, 1.0, 0.5], dtype=torch.bfloat16, requires_grad=True),
        [torch.tensor(1.0), torch.tensor(2), torch.tensor(True), np.float64(0.5)],
    ],
)
def test_every_kind_of_list_is_read(result):
    assert run(lambda **_: result).scores.tolist() == [1.0, 2.0, 1.0, 0.5]


def test_trap_13_one_value_does_not_broadcast():
    for result in ([1.0], [1.0] * 3, [1.0] * 5, torch.ones(1), []):
        with pytest.raises(RewardError, match=rf"'one' returned {len(result)} values? for 4 rows"):
            RewardRunner(RewardConfig(), [named("one", result)])(rollout())


def named(name: str, result: Any):
    def function(**_):
        return result

    function.__name__ = name
    return function


@pytest.mark.parametrize("result", [1.0, None, "abcd", {0: 1.0}, torch.tensor(1.0), np.float64(1.0), {1.0, 2.0}])
def test_what_is_no_list_is_refused(result):
    with pytest.raises(RewardError, match=r"'bad' returned .* one value for each of the 4 rows"):
        RewardRunner(RewardConfig(), [named("bad", result)])(rollout())


@pytest.mark.parametrize("value", ["1.0", math.inf, -math.inf, {}, 1j, 1e39, 10**400, torch.tensor(math.inf), b"1"])
def test_what_is_no_number_is_refused_and_its_row_is_shown(value):
    with pytest.raises(RewardError, match=r"'bad' returned .* row 2 \(prompt 'p1', completion 'gamma'\)"):
        RewardRunner(RewardConfig(), [named("bad", [0.0, 0.0, value, value])])(rollout())


def test_long_rows_are_shortened_and_control_characters_are_shown():
    prompts = ("x" * 500, "\x1b[31m" + "y" * 500)
    with pytest.raises(RewardError) as caught:
        RewardRunner(RewardConfig(), [named("bad", [0.0, 0.0, "no", 0.0])])(rollout(prompts))
    assert len(str(caught.value)) < 400
    assert "\x1b" not in str(caught.value)


def test_trap_14_none_and_nan_leave_the_row_to_the_others():
    first = named("first", [1.0, None, math.nan, None])
    second = named("second", [10.0, 20.0, None, None])
    heard = {}
    scored = RewardRunner(RewardConfig(), [first, second])(rollout(), heard.__setitem__)
    assert scored.scores.tolist() == [11.0, 20.0, 0.0, 0.0]
    assert scored.valid.tolist() == [True, True, False, False]
    assert scored.components["first"].isnan().tolist() == [False, True, True, True]
    assert scored.components["second"][:2].tolist() == [10.0, 20.0]
    assert {name: value for name, value in heard.items() if not name.startswith("time/")} == {
        "rewards/first/failed": 0.0,
        "rewards/first/nan": 1.0,
        "rewards/second/failed": 0.0,
        "rewards/second/nan": 0.0,
    }
    assert min(heard.values()) >= 0


def test_weights_multiply_and_components_stay_as_they_were(file):
    path = file("def a(**k): return [1.0, 2.0, 3.0, 4.0]\ndef b(**k): return [1.0, None, 1.0, 1.0]")
    scored = RewardRunner(config(weighted(path + "a", 0.5), weighted(path + "b", -2.0)))(rollout())
    assert scored.scores.tolist() == [-1.5, 1.0, -0.5, 0.0]
    assert scored.components["a"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert scored.scores.dtype == scored.token_rewards.dtype == scored.components["a"].dtype == torch.float32


def test_a_function_of_weight_zero_is_measured_and_decides_nothing(file):
    path = file("def a(**k): return [1.0, None, None, None]\ndef b(**k): return [5.0, 5.0, None, 5.0]")
    scored = RewardRunner(config(path + "a", weighted(path + "b", 0.0)))(rollout())
    assert scored.valid.tolist() == [True, False, False, False]
    assert scored.scores.tolist() == [1.0, 0.0, 0.0, 0.0]
    assert scored.components["b"][0] == 5.0


def test_a_sum_beyond_float32_is_an_error(file):
    path = file("def a(**k): return [0.0, 3e38, 0.0, 0.0]")
    with pytest.raises(RewardError, match="too large for float32 in row 1"):
        RewardRunner(config(path + "a", path + "a"))(rollout())


def test_rewards_per_token(file):
    path = file(
        "import torch\n"
        "def tokens(**k): return [[1.0, 2.0, 3.0], torch.tensor([4.0]), None, [0.0, float('nan'), 0.0]]\n"
        "def whole(**k): return [1.0, 1.0, None, None]"
    )
    scored = RewardRunner(config(weighted(path + "tokens", 2.0), path + "whole"))(rollout())
    assert scored.token_rewards.tolist() == [[2.0, 4.0, 6.0], [8.0, 0.0, 0.0], [0.0] * 3, [0.0] * 3]
    assert scored.scores.tolist() == [1.0, 1.0, 0.0, 0.0]  # the token rewards are apart
    assert scored.components["tokens"][:2].tolist() == [6.0, 4.0]
    assert scored.valid.tolist() == [True, True, False, False]


def test_a_row_with_token_rewards_alone_is_valid_with_score_zero():
    scored = run(lambda **_: [[1.0] * length for length in LENGTHS])
    assert scored.valid.all()
    assert scored.scores.tolist() == [0.0] * 4
    assert scored.token_rewards.sum(1).tolist() == LENGTHS


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([[1.0] * 3] * 4, "3 rewards for the 1 tokens of the response, in row 1"),
        (torch.ones(4, 3), "3 rewards for the 1 tokens of the response, in row 1"),
        ([[1.0] * 3, 1.0, [1.0] * 2, [1.0] * 3], "beside rows with a list of rewards per token, in row 1"),
        ([[1.0] * 3, [1.0], [1.0, math.inf], [1.0] * 3], "finite number.* in row 2"),
        ([[1.0] * 3, [1.0], [1.0, None], [1.0] * 3], "finite number.* in row 2"),
        ([[1.0] * 3, [1.0], [1.0, "x"], [1.0] * 3], "finite number.* in row 2"),
    ],
)
def test_rewards_per_token_are_exactly_as_many_as_the_tokens(result, message):
    with pytest.raises(RewardError, match=message):
        run(lambda **_: result)


def test_a_function_that_raises_is_named_with_the_row_it_raises_on_and_the_cause_is_kept():
    def broken(completions):
        if "gamma" in completions:
            raise KeyError("gone")
        return [0.0] * len(completions)

    with pytest.raises(RewardError, match=r"'broken' raised KeyError: 'gone', in row 2 \(prompt 'p1'") as caught:
        run(broken)
    assert isinstance(caught.value.__cause__, KeyError)


# --- asynchronous functions -----------------------------------------------------------------------------------------


def test_asynchronous_functions_run_together():
    """Each waits for the other: one after the other they would wait for ever."""
    events = [asyncio.Event(), asyncio.Event()]

    async def wait(mine, other, value, completions):
        events[mine].set()
        await asyncio.wait_for(events[other].wait(), 10)
        return [value] * len(completions)

    first, second = functools.partial(wait, 0, 1, 1.0), functools.partial(wait, 1, 0, 2.0)
    scored = run(first, lambda **_: [10.0] * 4, second)
    assert scored.scores.tolist() == [13.0] * 4
    assert list(scored.components) == ["wait", "lambda", "wait_2"]


def test_asynchronous_functions_work_inside_a_running_loop():
    async def score(completions):
        await asyncio.sleep(0)
        return [1.0] * len(completions)

    async def notebook():
        return run(score).scores.tolist()

    assert asyncio.run(notebook()) == [1.0] * 4


def test_a_client_that_is_bound_to_its_first_loop_can_be_used_again():
    client = {}

    async def score(completions):
        loop = asyncio.get_running_loop()
        assert client.setdefault("loop", loop) is loop
        return [1.0] * len(completions)

    runner = RewardRunner(RewardConfig(), [score])
    assert runner(rollout()).valid.all()
    assert runner(rollout()).valid.all()


def test_an_asynchronous_function_that_raises_is_named():
    async def broken(completions):
        raise ValueError("no")

    async def fine(completions):
        return [1.0] * 4

    with pytest.raises(RewardError, match="'broken' raised ValueError: no") as caught:
        run(fine, broken)
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.filterwarnings("error")
def test_no_coroutine_is_left_behind_when_another_function_raises():
    async def never(completions):
        return [1.0] * 4

    def broken(completions):
        raise ValueError("no")

    with pytest.raises(RewardError, match="'broken'"):
        run(never, broken)


# --- finding functions ----------------------------------------------------------------------------------------------


def test_in_the_main_process_a_file_is_loaded_once_and_its_functions_share_it(file):
    path = file(
        "calls = []\ndef a(**k):\n    calls.append(1)\n    return [1.0] * 4\ndef b(**k): return [float(len(calls))] * 4"
    )
    runner = RewardRunner(config(*({"function": path + name, "process": "main"} for name in "ab")))
    assert runner.names == ("a", "b")
    assert runner(rollout()).scores.tolist() == [2.0] * 4


def test_two_files_of_one_name_are_two_modules(file, tmp_path):
    (tmp_path / "other").mkdir()
    first = file("def f(**k): return [1.0] * 4")
    second = file("def f(**k): return [2.0] * 4", "other/mine.py")
    runner = RewardRunner(config(first + "f", second + "f"))
    assert runner.names == ("f", "f_2")
    scored = runner(rollout())
    assert scored.components["f"].tolist() == [1.0] * 4
    assert scored.components["f_2"].tolist() == [2.0] * 4


def test_a_dataclass_in_a_file_works(file):
    path = file(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Scale:\n    by: float = 2.0\n"
        "    def __call__(self, completions): return [self.by] * len(completions)\n"
    )
    with pytest.raises(ConfigError, match="is a class; with factory: true"):
        RewardRunner(config(path + "Scale"))
    made = {"function": path + "Scale", "factory": True, "args": {"by": 3.0}}
    runner = RewardRunner(config(made))
    assert runner.names == ("Scale",)
    assert runner(rollout()).scores.tolist() == [3.0] * 4


def test_a_module_by_its_name():
    runner = RewardRunner(config({"function": "reward_models.functions.lengths:length", "args": {"target": 2}}))
    assert runner(rollout()).scores.tolist() == [-0.5, -0.5, 0.0, -0.5]


def test_names_are_unique_even_beside_a_name_that_was_given(file):
    path = file("def f(**k): return [1.0] * 4")
    functions = (path + "f", {"function": path + "f", "name": "f_2"}, path + "f")
    assert RewardRunner(config(*functions)).names == ("f", "f_2", "f_3")
    assert RewardRunner(config({"function": path + "f", "name": "mine"})).names == ("mine",)


def test_functions_from_python_replace_those_of_the_configuration(file):
    path = file("def f(**k): return [1.0] * 4")
    entry = RewardFunctionConfig(function=path + "f", weight=3.0)
    runner = RewardRunner(config("nothing:there"), [path + "f", entry, lambda **_: [0.0] * 4])
    assert runner.names == ("f", "f_2", "lambda")
    assert runner(rollout()).scores.tolist() == [4.0] * 4


@pytest.mark.parametrize("name", ["length", "builtin:length"])
def test_a_builtin_with_and_without_its_prefix(name):
    runner = RewardRunner(config({"function": name, "args": {"target": 3}}))
    assert runner.names == ("length",)
    assert runner(rollout()).scores.tolist() == pytest.approx([0.0, -2 / 3, -1 / 3, 0.0])


def test_a_column_named_like_an_option_of_a_builtin_is_not_that_option():
    columns = {"tags": [1, 2], "ignore_case": [True, False], "answer": ["alpha", "nothing"]}
    runner = RewardRunner(config("format_tags", "exact_match", {"function": "keyword", "args": {"words": ["alpha"]}}))
    scored = runner(rollout(columns=columns))
    assert scored.components["format_tags"].tolist() == [0.0] * 4
    assert scored.components["exact_match"].tolist() == [1.0, 0.0, 0.0, 0.0]
    runner.close()


def test_every_builtin_of_reward_models_is_where_the_table_says():
    args = {
        "length": {"target": 1},
        "soft_overlong": {"max_tokens": 4, "cache": 2},
        "regex_match": {"pattern": "a"},
        "keyword": {"words": ["alpha"]},
        "format_tags": {"tags": ["answer"]},
        "judge": {"url": "http://127.0.0.1:9/v1", "model": "none", "rubric": "Is it good?"},
    }
    for package in ("vaderSentiment", "jsonschema", "math_verify"):
        pytest.importorskip(package, reason="an extra is not installed")
    own = [name for name, target in BUILTINS.items() if target.startswith("reward_models.")]
    runner = RewardRunner(config(*({"function": name, "args": args.get(name, {})} for name in own)))
    assert runner.names == tuple(own)
    runner.close()


def test_the_quickstart_rewards_are_made_by_their_factories():
    pytest.importorskip("rlhf_pg.quickstart.rewards", reason="the quickstart is not there")
    from rlhf_pg.quickstart.rewards import reviews_gold

    assert callable(reviews_gold())
    assert RewardRunner(config("builtin:reviews_gold")).names == ("reviews_gold",)


def test_a_builtin_factory_is_called_without_being_asked(monkeypatch):
    import sys
    import types

    module = types.ModuleType("rlhf_pg.quickstart.rewards")
    module.reviews_gold = lambda: lambda completions: [5.0] * len(completions)
    monkeypatch.setitem(sys.modules, "rlhf_pg.quickstart.rewards", module)
    runner = RewardRunner(config({"function": "builtin:reviews_gold", "process": "main"}))
    assert runner.names == ("reviews_gold",)
    assert runner(rollout()).scores.tolist() == [5.0] * 4


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("vadr", r"nearest: vader"),
        ("builtin:lenght", r"nearest: length"),
        ("xyzzy", r"neither a file, a module, a model nor a builtin"),
        ("mine.py", r"write mine.py:NAME"),
        ("absent.py:f", r"there is no file .*absent.py"),
        ("no_such_module:f", r"No module named 'no_such_module'"),
        ("reward_models.functions.lengths:lenght", r"no function 'lenght'; it has \[.*'length'"),
        ({"function": "length", "args": {"traget": 3}}, r"no argument 'traget' \(nearest: target\)"),
        ({"function": "length", "args": {"completion_ids": []}}, r"no argument 'completion_ids'"),
        ({"function": "builtin:numeric_answer", "args": {"tolerence": 1}}, r"nearest: tolerance"),
    ],
)
def test_names_that_nothing_has(entry, message):
    with pytest.raises(ConfigError, match=message):
        RewardRunner(config(entry))


def test_a_module_beside_the_command_is_pointed_to_its_file(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text("def f(**k): return []")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in __import__("sys").path if entry])
    with pytest.raises(ConfigError, match=r"write my_rewards.py:NAME"):
        RewardRunner(config("my_rewards:f"))


def test_a_file_that_fails_on_import_says_so_and_is_tried_again(file):
    path = file("import no_such_module_anywhere")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"cannot be imported: ModuleNotFoundError.*no_such_module_anywhere"):
            RewardRunner(config(path + "f"))
    file("def f(**k): return [1.0] * 4")
    assert RewardRunner(config(path + "f")).names == ("f",)


def test_a_factory_that_fails_or_returns_no_function(file):
    path = file("def f(by): raise ValueError('no')\ndef g(): return 3")
    with pytest.raises(ConfigError, match="raised ValueError: no"):
        RewardRunner(config({"function": path + "f", "factory": True, "args": {"by": 1}}))
    with pytest.raises(ConfigError, match=r"no argument 'bye'.*nearest: by"):
        RewardRunner(config({"function": path + "f", "factory": True, "args": {"bye": 1}}))
    with pytest.raises(ConfigError, match="returned int, not a function"):
        RewardRunner(config({"function": path + "g", "factory": True}))


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ConfigError, match=r"a folder without a config.json"):
        RewardRunner(config(str(tmp_path)))


def test_a_folder_with_a_config_and_a_hub_id_are_classifiers(tmp_path, monkeypatch):
    import reward_models.classifier as classifier

    def load(model, *, device, label=None):
        return named(f"{model.rpartition('/')[2]}-{label}-{device}", [1.0] * 4)

    monkeypatch.setattr(classifier, "load_classifier", load)
    (tmp_path / "rm").mkdir()
    (tmp_path / "rm" / "config.json").write_text(json.dumps({}))
    folder = {"function": str(tmp_path / "rm"), "args": {"label": "good"}}
    runner = RewardRunner(config(folder, "someone/a-model"), device="cpu")
    assert runner.names == ("rm-good-cpu", "a-model-None-cpu")
    with pytest.raises(ConfigError, match=r"no argument 'lable'.*nearest: label"):
        RewardRunner(config({"function": "someone/a-model", "args": {"lable": "good"}}))


@pytest.mark.parametrize("functions", [[], [{"function": "vader", "weight": 0.0}]])
def test_nothing_to_maximise_is_refused(functions):
    with pytest.raises(ConfigError, match="nothing would be maximised"):
        RewardRunner(config(*functions))


def test_what_is_no_function_is_refused():
    with pytest.raises(ConfigError, match="got 3"):
        RewardRunner(RewardConfig(), [3])


# --- TRL's functions, unchanged -------------------------------------------------------------------------------------


def with_texts(record: Rollout, *texts: str) -> Rollout:
    return Rollout(
        record.prompts,
        record.group_size,
        record.response_ids,
        record.response_mask,
        record.logprobs,
        record.finish_reason,
        texts,
    )


CHATS = ([{"role": "user", "content": "hi"}], [{"role": "user", "content": "ho"}])


def test_trl_think_format_on_chat_prompts():
    pytest.importorskip("trl", reason="trl is not installed")
    runner = RewardRunner(config("trl.rewards:think_format_reward"))
    assert runner.names == ("think_format_reward",)
    record = with_texts(rollout(CHATS), "<think>\na\n</think>\nb", "<think>\na b", "a", "<think>a</think>")
    assert runner(record).scores.tolist() == [1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("prompts", [("p0", "p1"), CHATS])
def test_trl_repetition_penalty_on_either_kind_of_prompt(prompts):
    pytest.importorskip("trl", reason="trl is not installed")
    factory = {
        "function": "trl.rewards:get_repetition_penalty_reward",
        "factory": True,
        "args": {"ngram_size": 3, "max_penalty": -1.0},
    }
    runner = RewardRunner(config(factory))
    assert runner.names == ("repetition_penalty_reward",)
    ids = torch.tensor([[5, 5, 5, 5, 5], [1, 2, 3, 4, 5], [5, 5, 0, 0, 0], [1, 2, 3, 1, 2]])
    mask = torch.tensor([[1] * 5, [1] * 5, [1, 1, 0, 0, 0], [1] * 5], dtype=torch.bool)
    old = rollout(prompts)
    record = Rollout(old.prompts, 2, ids, mask, torch.zeros(4, 5), old.finish_reason, old.texts)
    assert runner(record).scores.tolist() == pytest.approx([-2 / 3, 0.0, 0.0, 0.0])


def test_trl_soft_overlong_punishment():
    rewards = pytest.importorskip("trl.rewards", reason="trl is not installed")
    runner = RewardRunner(
        RewardConfig(), [rewards.get_soft_overlong_punishment(max_completion_len=3, soft_punish_cache=2)]
    )
    assert runner(rollout()).scores.tolist() == [-1.0, 0.0, -0.5, -1.0]


def test_trl_accuracy_without_its_column_is_told_so():
    pytest.importorskip("trl", reason="trl is not installed")
    with pytest.raises(RewardError, match=r"'accuracy_reward' needs 'solution'.*\['answer'\]"):
        RewardRunner(config("trl.rewards:accuracy_reward"))(rollout(CHATS, {"answer": ["1", "2"]}))
