"""Functions written for other trainers, called as those trainers call them."""

from __future__ import annotations

import asyncio
import math
import re
import subprocess
import sys
from typing import Any

import pytest
import torch

from reward_models.adapters import openrlhf, reasoning_gym, verl
from rlhf_pg.config.rewards import RewardConfig
from rlhf_pg.errors import ConfigError, ModelError, RewardError
from rlhf_pg.rewards import RewardRunner, text_rollout
from rlhf_pg.sources import read_table


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


class Logged(dict[str, Any]):
    """What a function logs: `metric` and `extra` are given to it."""

    def metric(self, name: str, value: float) -> None:
        self[name] = value

    def extra(self, name: str, values: list[Any]) -> None:
        self[name] = values


def run(entry: dict[str, Any], prompts: list[Any], texts: list[str], columns: dict[str, list[Any]], **config: Any):
    """Score through a configuration, in a worker; the scores, None where unscorable, and the metrics."""
    runner = RewardRunner(RewardConfig.model_validate({"functions": [entry], **config}))
    metrics = Logged()
    try:
        scored = runner(text_rollout(prompts, texts, columns), metrics.metric)
    finally:
        runner.close()
    scores = [s if v else None for s, v in zip(scored.scores.tolist(), scored.valid.tolist(), strict=True)]
    return scores, metrics, scored


# --- OpenRLHF -----------------------------------------------------------------------------------------------------


def by_label(queries, prompts, labels, **kwargs):
    """In the form of OpenRLHF's own examples."""
    rewards = []
    for query, prompt, label in zip(queries, prompts, labels, strict=True):
        assert query.startswith(prompt)
        rewards.append(1.0 if query[len(prompt) :] == label else 0.0)
    found = torch.tensor(rewards, dtype=torch.float)
    return {"rewards": found * 2 - 1, "scores": found, "extra_logs": {"accuracy": found.mean(), "rows": len(queries)}}


def test_openrlhf_is_given_queries_prompts_and_labels():
    seen = []

    def reward_func(queries, prompts, labels):
        seen.append((queries, prompts, labels))
        return torch.zeros(len(queries))

    columns = {"answer": [4, "x"], "other": [0, 0]}
    openrlhf(reward_func, labels="answer")(prompts=["2+2=", "p "], completions=["4", said("y")], **columns)
    assert seen == [(["2+2=4"], ["2+2="], [4]), (["p y"], ["p "], ["x"])]
    seen.clear()
    openrlhf(reward_func, batched=True)(prompts=["a", "b"], completions=["c", "d"], completion_ids=[[1], [2]])
    assert seen == [(["ac", "bd"], ["a", "b"], ["", ""])]


@pytest.mark.parametrize("batched", [False, True])
def test_openrlhf_rewards_scores_and_logs(batched):
    logged = Logged()
    reward = openrlhf(by_label, labels="answer", batched=batched)
    given = {"prompts": ["p"] * 4, "completions": ["a", "b", "a", "a"], "answer": ["a"] * 4}
    assert reward(**given, log_metric=logged.metric, log_extra=logged.extra) == [1.0, -1.0, 1.0, 1.0]
    assert logged == {"by_label/scores": 0.75, "by_label/accuracy": 0.75, "by_label/rows": 4 if batched else 1}
    assert reward(**given) == [1.0, -1.0, 1.0, 1.0]
    assert reward.__name__ == "by_label"


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (torch.tensor([0.5]), 0.5),
        (torch.tensor(0.5), 0.5),
        ([0.5], 0.5),
        ([torch.tensor([0.5])], 0.5),
        (0.5, 0.5),
        ({"rewards": [True]}, 1.0),
        ({"rewards": [None]}, None),
        ({"rewards": torch.tensor([2.0]), "extra_logs": None, "scores": None}, 2.0),
    ],
)
def test_openrlhf_takes_every_form_of_one_reward(answer, value):
    assert openrlhf(lambda queries, prompts, labels: answer)(prompts=["p"], completions=["c"]) == [value]


def test_openrlhf_a_row_that_it_fails_on_is_lost_alone():
    def reward_func(queries, prompts, labels):
        return {"p0": [1.0], "p1": [1.0, 2.0], "p2": {"reward": 1}, "p3": ["high"]}[queries[0]]

    good, two, key, word, raised = openrlhf(reward_func)(prompts=["p"] * 5, completions=list("01234"))
    assert good == 1.0
    problems = [str(problem) for problem in (two, key, word, raised)]
    assert all(isinstance(problem, RewardError) for problem in (two, key, word, raised))
    assert "2 values for 1 rows" in problems[0]
    assert "without 'rewards'; it has ['reward']" in problems[1]
    assert "'high', which is no number" in problems[2]
    assert "raised KeyError: 'p4'" in problems[3]


def test_openrlhf_batched_with_the_wrong_count_fails_whole():
    with pytest.raises(RewardError, match="returned 3 values for 2 rows"):
        openrlhf(lambda *lists: torch.zeros(3), batched=True)(prompts=["p"] * 2, completions=["c"] * 2)
    with pytest.raises(RewardError, match="returned float for 2 rows"):
        openrlhf(lambda *lists: torch.tensor(1.0), batched=True)(prompts=["p"] * 2, completions=["c"] * 2)


def test_openrlhf_messages_are_written_by_a_template(tmp_path):
    def queries(given, prompts, labels):
        return [float(given[0] == "<user>hi<bot>yes" and prompts == ["<user>hi<bot>"])]

    prompts = [[{"role": "user", "content": "hi"}]]
    with pytest.raises(RewardError, match=r"messages: name the tokenizer .* args\.tokenizer"):
        openrlhf(queries)(prompts=prompts, completions=[said("yes")])
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "bare")
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<bot>"
    tokenizer.save_pretrained(tmp_path / "chat")
    reward = openrlhf(queries, tokenizer=str(tmp_path / "chat"))
    assert reward(prompts=prompts, completions=[said("yes")]) == [1.0]
    with pytest.raises(ModelError, match="has no chat template"):
        openrlhf(queries, tokenizer=str(tmp_path / "bare"))
    with pytest.raises(ModelError, match="cannot be loaded"):
        openrlhf(queries, tokenizer=str(tmp_path / "none"))


def tiny_tokenizer():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))


def test_openrlhf_refuses_a_coroutine_and_an_absent_label():
    async def reward_func(queries, prompts, labels):
        return [0.0]

    with pytest.raises(ConfigError, match="reward_func is asynchronous"):
        openrlhf(reward_func)
    with pytest.raises(ValueError, match=r"no column 'gold'; it has \['answer'\]: name .* args\.labels"):
        openrlhf(by_label, labels="gold")(prompts=["p"], completions=["c"], answer=["a"])


OPENRLHF_FILE = """
import torch

def reward_func(queries, prompts, labels, **kwargs):
    right = torch.tensor([float(q[len(p):] == l) for q, p, l in zip(queries, prompts, labels)])
    return {"rewards": right, "scores": right, "extra_logs": {"dummy_scores": right}}
"""


def test_openrlhf_by_its_prefix(tmp_path):
    (tmp_path / "mine.py").write_text(OPENRLHF_FILE)
    entry = {"function": f"openrlhf:{tmp_path / 'mine.py'}:reward_func", "args": {"labels": "answer"}}
    scores, metrics, _ = run(entry, ["p", "q"], ["a", "b"], {"answer": ["a", "c"]})
    assert scores == [1.0, 0.0]
    assert metrics["reward_func/dummy_scores"] == 0.5


# --- verl ---------------------------------------------------------------------------------------------------------

VERL_COLUMNS = {
    "data_source": ["openai/gsm8k", "math"],
    "reward_model": [{"style": "rule", "ground_truth": "4"}, {"style": "rule", "ground_truth": "5"}],
    "extra_info": [{"index": 0}, None],
    "ability": ["math", "math"],
}


def test_verl_is_given_each_row_of_its_own_data_by_keywords():
    seen = []

    def compute_score(data_source, solution_str, ground_truth, extra_info=None):
        seen.append((data_source, solution_str, ground_truth, extra_info))
        return solution_str == ground_truth

    assert verl(compute_score)(completions=["4", said("4")], prompts=["p"] * 2, **VERL_COLUMNS) == [1.0, 0.0]
    more = {"num_turns": None, "rollout_reward_scores": {}}
    assert seen == [("openai/gsm8k", "4", "4", {"index": 0, **more}), ("math", "4", "5", more)]
    assert VERL_COLUMNS["extra_info"] == [{"index": 0}, None]


def test_verl_with_other_columns_and_keywords_that_go_first():
    def compute_score(data_source, solution_str, ground_truth, extra_info, scale):
        return scale * (data_source == "mine") * (solution_str == ground_truth)

    args = {"ground_truth": "answer", "reward_kwargs": {"data_source": "mine", "scale": 3}}
    assert verl(compute_score, **args)(completions=["4", "5"], answer=["4", "4"]) == [3.0, 0.0]
    dotted = verl(compute_score, ground_truth="a.b", reward_kwargs=args["reward_kwargs"])
    assert dotted(completions=["4"], **{"a.b": ["4"], "a": [{"b": "5"}]}) == [3.0]  # a column of that very name
    assert dotted(completions=["4"], a=[None]) == [0.0]


def test_verl_dicts_are_logged():
    def compute_score(data_source, solution_str, ground_truth, extra_info):
        found = {
            "score": 2.0 * (solution_str == ground_truth),
            "acc": solution_str == ground_truth,
            "pred": solution_str,
        }
        return {**found, "late": math.nan} if solution_str == "4" else found

    logged = Logged()
    reward = verl(compute_score)
    given = {"completions": ["4", "4"], **VERL_COLUMNS}
    assert reward(**given, log_metric=logged.metric, log_extra=logged.extra) == [2.0, 0.0]
    assert logged == {"compute_score/acc": 0.5, "compute_score/pred": ["4", "4"]}
    assert reward(**given) == [2.0, 0.0]


def test_verl_a_row_that_it_fails_on_is_lost_alone():
    def compute_score(data_source, solution_str, ground_truth, extra_info):
        return {"a": 1, "b": None, "c": {"acc": 1}, "d": "x", "e": torch.tensor(0.5), "f": 10**400}[solution_str]

    columns = {"data_source": ["s"] * 7, "reward_model": [{}] * 7}
    values = verl(compute_score)(completions=list("abcdefg"), **columns)
    assert [value for value in values if not isinstance(value, RewardError)] == [1.0, None, 0.5]
    assert "without 'score'; it has ['acc']" in str(values[2])
    assert "'x', which is no number" in str(values[3])
    assert "no number" in str(values[5])
    assert "raised KeyError: 'g'" in str(values[6])


def test_verl_asynchronous_rows_are_under_way_together():
    waiting, most = 0, 0

    async def compute_score(data_source, solution_str, ground_truth, extra_info):
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        await asyncio.sleep(0.01)
        waiting -= 1
        if solution_str == "bad":
            raise ValueError("bad")
        return {"score": float(solution_str == ground_truth), "acc": 1}

    logged = Logged()
    columns = {"data_source": ["s"] * 3, "reward_model": [{"ground_truth": "4"}] * 3}
    values = asyncio.run(verl(compute_score)(completions=["4", "5", "bad"], log_metric=logged.metric, **columns))
    assert values[:2] == [1.0, 0.0]
    assert "raised ValueError: bad" in str(values[2])
    assert most == 3
    assert logged == {"compute_score/acc": 1.0}


def test_verl_batched_has_its_keywords_in_the_plural():
    def compute_score(data_sources, solution_strs, ground_truths, extra_infos, bonus=0):
        assert [info["rollout_reward_scores"] for info in extra_infos] == [{}, {}]
        return [
            {"score": (text == right) + bonus, "acc": text == right} if source == "math" else (text == right) + bonus
            for source, text, right in zip(data_sources, solution_strs, ground_truths, strict=True)
        ]

    reward = verl(compute_score, batched=True, reward_kwargs={"bonus": 1})
    assert reward(completions=["4", "4"], **VERL_COLUMNS) == [2.0, 1.0]

    async def waits(**given):
        return compute_score(**given)

    assert asyncio.run(verl(waits, batched=True)(completions=["4", "5"], **VERL_COLUMNS)) == [1.0, 1.0]
    with pytest.raises(RewardError, match="returned 1 values for 2 rows"):
        verl(lambda **_: [1.0], batched=True)(completions=["4", "4"], **VERL_COLUMNS)


def test_verl_without_its_columns_says_which_argument_names_them():
    with pytest.raises(ValueError, match=r"no column 'data_source'; it has \['answer'\].* args\.data_source"):
        verl(lambda **_: 0.0)(completions=["a"], answer=["a"])
    with pytest.raises(ValueError, match=r"no column 'reward_model'.* args\.ground_truth"):
        verl(lambda **_: 0.0)(completions=["a"], data_source=["s"])


VERL_FILE = """
async def slow(data_source, solution_str, ground_truth, extra_info=None):
    return compute_score(data_source, solution_str, ground_truth)

def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    if solution_str == "bad":
        raise ValueError("no")
    return {"score": float(solution_str == ground_truth), "acc": 1, "pred": solution_str}
"""


@pytest.mark.parametrize("name", ["compute_score", "slow"])
def test_verl_by_its_prefix(tmp_path, name):
    (tmp_path / "mine.py").write_text(VERL_FILE)
    entry = {"function": f"verl:{tmp_path / 'mine.py'}:{name}", "args": {"ground_truth": "answer"}}
    columns = {"data_source": ["s"] * 3, "answer": ["a"] * 3}
    scores, metrics, scored = run(entry, ["p"] * 3, ["a", "bad", "b"], columns, on_error="unscorable")
    assert scores == [1.0, None, 0.0]
    assert metrics[f"{name}/acc"] == 1.0
    assert scored.extras[f"{name}/pred"] == ["a", None, "b"]
    with pytest.raises(RewardError, match="raised ValueError: no, in row 1"):
        run(entry, ["p"] * 3, ["a", "bad", "b"], columns)


# --- TRL ----------------------------------------------------------------------------------------------------------


def test_trl_functions_need_no_adapter():
    pytest.importorskip("trl.rewards", reason="trl is not installed")
    pytest.importorskip("math_verify", reason="the extra math is not installed")
    chat = [[{"role": "user", "content": "?"}]] * 2
    texts = ["<think>a</think>$\\boxed{4}$", "$\\boxed{4}$"]
    names = ["trl.rewards:think_format_reward", "trl:trl.rewards:accuracy_reward"]
    runner = RewardRunner(RewardConfig.model_validate({"functions": names}))
    try:
        scored = runner(text_rollout(chat, texts, {"solution": ["$4$", "none"]}))
    finally:
        runner.close()
    assert scored.components["think_format_reward"].tolist() == [1.0, 0.0]
    assert scored.scores.tolist() == [2.0, 0.0]  # the second row: its solution cannot be read, so the format alone
    assert scored.extras["gold_parsed"][1] == "[unparseable]"


# --- reasoning-gym ------------------------------------------------------------------------------------------------


@pytest.fixture
def gym():
    return pytest.importorskip("reasoning_gym", reason="the extra gym is not installed")


def prompts_of(source: str) -> dict[str, list[Any]]:
    return read_table(source, "train", "data.source", print).columns


def test_reasoning_gym_scores_answers_as_the_task_does(gym):
    columns = prompts_of("reasoning_gym:chain_sum?size=3&seed=1")
    answers = columns["answer"]
    reward = reasoning_gym("chain_sum")
    texts = [
        f"so <answer>\n{answers[0]} </answer>.",
        said(f"<answer>1</answer><answer>{answers[1]}</answer>"),
        answers[2],
    ]
    assert reward(completions=texts, prompts=columns["prompt"], entry=columns["entry"]) == [1.0, 1.0, 0.0]
    assert reward.__name__ == "chain_sum"
    longer = f"<answer>{answers[0]} apples</answer>"
    partly = gym.create_dataset("chain_sum", size=3, seed=1)[0]
    expected = gym.get_score_answer_fn("chain_sum")(f"{answers[0]} apples", partly)
    assert reward(completions=[longer], entry=columns["entry"][:1]) == [expected]


@pytest.mark.parametrize(
    ("args", "text", "reward"),
    [
        ({"answer": "whole"}, " {} \n", 1.0),
        ({"answer": "whole"}, "is {}", None),  # what the task gives for more than the answer
        ({"answer": "marker", "marker": "####"}, "#### 0 no #### {}", 1.0),
        ({"answer": "marker", "marker": "####"}, "{}", 0.0),
        ({}, "<answer>{}", 0.0),
        ({}, "</answer>{}<answer>", 0.0),
        ({}, "", 0.0),
    ],
)
def test_reasoning_gym_finds_the_answer(gym, args, text, reward):
    columns = prompts_of("reasoning_gym:chain_sum?size=1&seed=1")
    answer = columns["answer"][0]
    (value,) = reasoning_gym("chain_sum", **args)(completions=[text.format(answer)], entry=columns["entry"])
    assert value == (len(answer) / len(f"is {answer}") if reward is None else reward)


def test_reasoning_gym_rows_that_cannot_be_scored(gym):
    place = prompts_of("reasoning_gym:chain_sum?size=1")["entry"][0]
    others = prompts_of("reasoning_gym:gcd?size=1")["entry"][0]
    changed = place.replace("State", "Say")
    assert changed != place
    values = reasoning_gym("chain_sum")(completions=["<answer>1</answer>"] * 4, entry=[None, "{}", others, changed])
    assert values[0] is None
    assert "data.source: reasoning_gym:chain_sum" in str(values[1])
    assert "question is of 'gcd'" in str(values[2])
    assert "PYTHONHASHSEED=0" in str(values[3])
    with pytest.raises(ValueError, match="no column 'entry'"):
        reasoning_gym("chain_sum")(completions=["1"], answer=["1"])


def test_reasoning_gym_an_answer_that_the_task_raises_on_is_wrong_and_counted(gym):
    columns = prompts_of("reasoning_gym:prime_factorization?size=2&seed=1")
    with pytest.raises(ValueError, match="invalid literal"):
        gym.get_score_answer_fn("prime_factorization")("no number", {"answer": "2", "metadata": {"number": 2}})
    texts = ["<answer>no number</answer>", f"<answer>{columns['answer'][1]}</answer>"]
    logged = Logged()
    reward = reasoning_gym("prime_factorization")
    assert reward(completions=texts, entry=columns["entry"], log_metric=logged.metric) == [0.0, 1.0]
    assert logged == {"prime_factorization/raised": 0.5}


@pytest.mark.parametrize(
    ("task", "args", "message"),
    [
        ("chain_sums", {}, "nearest: chain_sum"),
        ("countdown", {}, "args.evaluate=true"),
        ("n_queens", {}, "args.evaluate=true"),
        ("polynomial_multiplication", {}, "args.evaluate=true"),
        ("chain_sum", {"answer": "marker"}, "belong together"),
        ("chain_sum", {"marker": "#"}, "belong together"),
        ("chain_sum", {"answer": "last"}, "tags, marker or whole, got 'last'"),
    ],
)
def test_reasoning_gym_refuses(gym, task, args, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        reasoning_gym(task, **args)


def test_reasoning_gym_runs_answers_only_where_it_is_asked_to(gym):
    columns = prompts_of("reasoning_gym:countdown?size=1&seed=1")
    texts = [f"<answer>{columns['answer'][0]}</answer>"]
    assert reasoning_gym("countdown", evaluate=True)(completions=texts, entry=columns["entry"]) == [1.0]


def test_reasoning_gym_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(ImportError, match=re.escape("rlhf-pg[gym]")):
        reasoning_gym("chain_sum")


def test_reasoning_gym_by_its_prefix(gym):
    columns = prompts_of("reasoning_gym:chain_sum?size=2&seed=3")
    prompts = columns.pop("prompt")
    texts = [f"<answer>{columns['answer'][0]}</answer>", "no"]
    assert run({"function": "reasoning_gym:chain_sum"}, prompts, texts, columns)[0] == [1.0, 0.0]


def test_importing_the_adapters_needs_neither_torch_nor_transformers():
    program = (
        "import sys, reward_models.adapters; assert not {'torch', 'transformers', 'reasoning_gym'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
