"""The small reward functions, on cases worked by hand."""

from __future__ import annotations

import importlib
import itertools
import math
import re
import sys
import threading
import time

import pytest

from reward_models.functions import (
    column_of,
    exact_match,
    format_tags,
    fuzzy_match,
    keyword,
    length,
    numeric_answer,
    regex_match,
    repetition_penalty,
    soft_overlong,
    text_of,
)
from rlhf_pg.config.rewards import RewardConfig
from rlhf_pg.errors import RewardError
from rlhf_pg.rewards import RewardRunner, text_rollout


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("as it is", "as it is"),
        (said("hello"), "hello"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "b"),
        (
            [
                {
                    "role": "assistant",
                    "content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}],
                }
            ],
            "ab",
        ),
        ([{"role": "assistant", "content": None}], ""),
        ([], ""),
    ],
)
def test_text_of_takes_the_last_message(completion, text):
    assert text_of(completion) == text


def test_length_is_the_relative_distance_to_the_target():
    ids = [[], [1], [1, 2, 3, 4], [1] * 8, [1] * 12]
    assert length(completion_ids=ids, target=4, prompts=["p"] * 5) == [-1.0, -0.75, 0.0, -1.0, -2.0]


def test_length_refuses_a_target_of_zero():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        length([[1]], target=0)


def test_vader_gives_the_scores_of_its_own_documentation():
    pytest.importorskip("vaderSentiment", reason="the extra sentiment is not installed")
    from reward_models.functions.sentiment import vader

    texts = [
        "VADER is smart, handsome, and funny.",
        "VADER is smart, handsome, and funny!",
        "VADER is not smart, handsome, nor funny.",
        "",
    ]
    assert vader(completions=texts, prompts=[""] * 4) == [0.8316, 0.8439, -0.7424, 0.0]
    assert vader(completions=[said(texts[0])]) == [0.8316]


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("sentiment", "vaderSentiment.vaderSentiment", "sentiment"),
        ("structured", "jsonschema", "json"),
        ("mathematics", "math_verify", "math"),
    ],
)
def test_a_function_without_its_package_names_the_extra(monkeypatch, module, package, extra):
    for name in (package, package.split(".")[0]):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"reward_models.functions.{module}", raising=False)
    with pytest.raises(ImportError, match=re.escape(f"rlhf-pg[{extra}]")):
        importlib.import_module(f"reward_models.functions.{module}")


@pytest.mark.parametrize(
    ("text", "right", "reward"),
    [
        ("so it is 42", "#### 42", 1.0),
        ("so it is 42.", "6 * 7 = 42\n#### 42", 1.0),
        ("42 and then 43", "42", 0.0),  # the last number counts
        ("it costs $1,234", "1234", 1.0),
        ("it costs $1,234.50", 1234.5, 1.0),
        ("a loss of -$5", "-5", 1.0),
        ("a loss of $-5", "-5", 1.0),
        ("a loss of −5", -5, 1.0),  # a typographic minus
        ("9-3", "3", 1.0),  # a difference, not minus three
        ("9 -3", "-3", 1.0),
        ("1, 2,3", "3", 1.0),  # no thousands: commas of a list
        ("12,3456", "3456", 1.0),
        (".5", "0.50", 1.0),
        ("2e3", "2000", 1.0),
        ("of H2O", "2", 0.0),  # not a number
        ("\\boxed{7}", "#### 7", 1.0),
        ("9007199254740993", "9007199254740992", 0.0),  # equal as floats
        ("nothing", "42", 0.0),
        ("", "42", 0.0),
        ("42", "no number", None),
        ("42", None, None),
        ("10", "the 7 of 9 #### 10 apples", 1.0),  # after the marker the first number
    ],
)
def test_numeric_answer_reads_the_last_number(text, right, reward):
    assert numeric_answer([text], answer=[right]) == [reward]


def test_numeric_answer_after_a_marker():
    texts = ["Answer: 42 of 100", "42", "Answer: 1. No. Answer: 42", "42 Answer: none"]
    assert numeric_answer(texts, marker="Answer:", answer=["42"] * 4) == [1.0, 0.0, 1.0, 0.0]


def test_numeric_answer_with_a_tolerance_on_both_sides():
    texts = ["0.9", "1.1", "1.11", "0.89"]
    assert numeric_answer(texts, tolerance=0.1, answer=[1] * 4) == [1.0, 1.0, 0.0, 0.0]


def test_numeric_answer_takes_another_column_and_messages():
    assert numeric_answer([said("7")], column="right", right=["7"], answer=["8"], prompts=["p"]) == [1.0]


def test_numeric_answer_with_a_column_marker_of_ones_own():
    assert numeric_answer(["7"], column_marker="=>", answer=["#### 1 => 7"]) == [1.0]


def test_numeric_answer_without_its_column_lists_the_columns():
    with pytest.raises(ValueError, match=r"no column 'answer'; it has \['question', 'solution'\]"):
        numeric_answer(["1"], question=["q"], solution=["1"])


def test_regex_match():
    texts = ["<think>a\nb</think> yes", "yes", "no"]
    assert regex_match(texts, pattern=r"(?s)<think>.*</think>") == [1.0, 0.0, 0.0]
    assert regex_match(texts, pattern="yes") == [1.0, 1.0, 0.0]
    assert regex_match(texts, pattern="YES", whole=True) == [0.0, 0.0, 0.0]
    assert regex_match(texts, pattern="(?i)YES", whole=True) == [0.0, 1.0, 0.0]
    assert regex_match([said("yes")], pattern="yes", prompts=["p"]) == [1.0]
    with pytest.raises(re.error):
        regex_match(texts, pattern="(")


def test_keyword_shares_of_wanted_and_unwanted():
    texts = ["A cat and a dog", "cats", "the CAT, and a rat", "rat"]
    assert keyword(texts, words=["cat", "dog"]) == [1.0, 0.0, 0.5, 0.0]
    assert keyword(texts, words=["cat", "dog"], absent="rat") == [1.0, 0.0, -0.5, -1.0]
    assert keyword(texts, words="cat", ignore_case=False) == [1.0, 0.0, 0.0, 0.0]
    assert keyword([said("well, C++ it is")], words=["C++"], prompts=["p"]) == [1.0]


def test_keyword_refuses_nothing_to_look_for():
    with pytest.raises(ValueError, match="no words"):
        keyword(["a"])
    with pytest.raises(ValueError, match="empty word"):
        keyword(["a"], words=["a", ""])


def test_a_column_that_the_data_lacks_is_named_with_the_argument_that_names_it():
    assert column_of({"a": [1]}, "a") == [1]
    with pytest.raises(ValueError, match=r"no column 'b'; it has \['a'\]: name the one with the labels in args.labels"):
        column_of({"a": [1]}, "b", "labels", arg="labels")


# --- length and repetition ----------------------------------------------------------------------------------------


def test_soft_overlong_falls_in_the_cache_and_stays_at_minus_one():
    # The limit 10, the cache 4: nothing up to 6, a quarter a token to 10, then -1.
    ids = [[1] * n for n in (0, 6, 7, 8, 10, 11, 99)]
    assert soft_overlong(ids, max_tokens=10, cache=4, prompts=[""] * 7) == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0, -1.0]
    assert soft_overlong([[1] * 10, [1] * 11], max_tokens=10, cache=0) == [0.0, -1.0]
    assert soft_overlong([[], [1] * 5], max_tokens=10, cache=10) == [0.0, -0.5]


@pytest.mark.parametrize(("limit", "cache"), [(0, 0), (10, 11), (10, -1)])
def test_soft_overlong_refuses_a_cache_outside_the_limit(limit, cache):
    with pytest.raises(ValueError, match=f"max_tokens={limit}, cache={cache}"):
        soft_overlong([[1]], max_tokens=limit, cache=cache)


def test_repetition_penalty_counts_ngrams_that_stood_before():
    # 5 5 5 5 5 has the bigram 5 5 four times: 1 of 4 is new. 1 2 1 2 has 12, 21, 12: 2 of 3 are.
    ids = [[1, 2, 3, 4], [5] * 5, [1, 2, 1, 2], [7], []]
    texts = [""] * 5
    assert repetition_penalty(texts, ids, n=2) == pytest.approx([0.0, -0.75, -1 / 3, 0.0, 0.0])
    assert repetition_penalty(texts, ids, n=2, max_penalty=2)[1] == -1.5
    assert repetition_penalty(texts, ids, n=1)[2] == -0.5
    words = [said("a b  a\nb"), "x", "", "é é", "A a"]
    assert repetition_penalty(words, ids, n=1, unit="words") == [-0.5, 0.0, 0.0, -0.5, 0.0]


@pytest.mark.parametrize("args", [{"n": 0}, {"max_penalty": -1.0}, {"unit": "lines"}])
def test_repetition_penalty_refuses_what_makes_no_sense(args):
    with pytest.raises(ValueError, match=str(next(iter(args.values())))):
        repetition_penalty(["a"], [[1]], **args)


def test_both_agree_with_those_of_trl():
    rewards = pytest.importorskip("trl.rewards", reason="trl is not installed")
    ids = [list(range(n)) + [1, 2, 3] * k for n, k in itertools.product((0, 3, 8), (0, 1, 4))]
    ours = soft_overlong(ids, max_tokens=12, cache=5)
    assert ours == rewards.get_soft_overlong_punishment(12, 5)(completion_ids=ids)
    ours = repetition_penalty([""] * len(ids), ids, n=2, max_penalty=0.5)
    assert ours == pytest.approx(rewards.get_repetition_penalty_reward(2, -0.5)(completion_ids=ids))


# --- format tags --------------------------------------------------------------------------------------------------

WHOLE = "<think>why</think>\n<answer>42</answer>\n"


@pytest.mark.parametrize(
    ("text", "full", "share"),
    [
        (WHOLE, 1.0, 1.0),
        ("<think></think><answer></answer>", 1.0, 1.0),
        ("So: " + WHOLE, 0.0, 2 / 3),
        (WHOLE + "!", 0.0, 2 / 3),
        ("<think>a</think> and <answer>b</answer>", 0.0, 2 / 3),
        ("<answer>b</answer><think>a</think>", 0.0, 1 / 3),  # the order
        ("<think>a</think>", 0.0, 1 / 3),
        ("<answer>b</answer>", 0.0, 1 / 3),
        ("<think>a<answer>b</answer></think>", 0.0, 0.0),  # nested
        ("<think>a<answer>b</think></answer>", 0.0, 0.0),  # crossed
        (WHOLE + WHOLE, 0.0, 0.0),  # twice
        ("<think>a</think></think><answer>b</answer>", 0.0, 1 / 3),
        ("</think>a<think><answer>b</answer>", 0.0, 1 / 3),
        ("<think>a", 0.0, 0.0),
        ("<THINK>a</THINK><answer>b</answer>", 0.0, 1 / 3),
        ("", 0.0, 0.0),
        ("<think>" * 20_000, 0.0, 0.0),
    ],
)
def test_format_tags(text, full, share):
    assert format_tags([text], prompts=["p"]) == [full]
    assert format_tags([said(text)], partial=True) == [pytest.approx(share)]


def test_format_tags_with_text_outside_allowed():
    texts = ["So: " + WHOLE + "!", "<think>a</think> b", "b"]
    assert format_tags(texts, outside=True) == [1.0, 0.0, 0.0]
    assert format_tags(texts, outside=True, partial=True) == [1.0, 0.5, 0.0]


def test_format_tags_takes_any_names():
    assert format_tags(["<a.b>x</a.b>", "<axb>x</aXb>"], tags="a.b") == [1.0, 0.0]
    assert format_tags(["思<考>x</考>", "<考>😀</考>"], tags=["考"]) == [0.0, 1.0]
    for tags in ([], ["a", "a"], ["<a>"], [""], ["a b"]):
        with pytest.raises(ValueError, match="tags must be different names"):
            format_tags([""], tags=tags)


# --- JSON ---------------------------------------------------------------------------------------------------------

SCHEMA = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}, "additionalProperties": False}


def json_schema(*args, **keywords):
    pytest.importorskip("jsonschema", reason="the extra json is not installed")
    from reward_models.functions.structured import json_schema

    return json_schema(*args, **keywords)


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ('{"a": 1}', 1.0),
        (' {"a": 1}\n', 1.0),
        ('{"a": "1"}', 0.0),
        ('{"b": 1}', 0.0),
        ('{"a": 1, "b": 2}', 0.0),
        ('{"a": 1} and more', 0.0),
        ("{'a': 1}", 0.0),
        ("", 0.0),
        ('{"a": ' * 50_000, 0.0),
        ("[" * 5_000 + "]" * 5_000, 0.0),
        ('{"a": ' + "9" * 5_000 + "}", 0.0),
    ],
)
def test_json_schema(text, reward):
    assert json_schema([text, said(text)], schema=SCHEMA, prompts=["p"] * 2) == [reward, reward]


def test_json_schema_refuses_what_is_not_json_though_python_reads_it():
    texts = ["NaN", "Infinity", "1e999", "1e300", "null", '"é😀"']
    assert json_schema(texts, schema={}) == [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]


def test_json_schema_of_a_fenced_block():
    block = '```json\n{"a": 1}\n```'
    texts = [f"Here:\n{block}\nDone", block.replace("json", ""), '{"a": 1}', f"```python\n1\n```\n{block}", block[:-3]]
    assert json_schema(texts, schema=SCHEMA, fenced=True) == [1.0, 1.0, 0.0, 1.0, 0.0]
    assert json_schema([block], schema=SCHEMA) == [0.0]


def test_json_schema_from_a_column():
    schemas = [None, SCHEMA, '{"type": "integer"}', "no json", {"type": "wat"}, {"$ref": "http://127.0.0.1:9/x"}, 5]
    found = json_schema(["7"] * 7, column="wanted", wanted=schemas)
    assert found[:3] == [None, 0.0, 1.0]
    assert all(isinstance(value, RewardError) for value in found[3:])
    assert "'wanted' is no JSON schema: 'wat'" in str(found[4])
    assert "nothing is fetched" in str(found[5])


def test_json_schema_from_a_column_that_is_called_like_the_argument():
    assert json_schema(["7", "7"], column="schema", schema=[None, SCHEMA]) == [None, 0.0]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({}, "args.schema, or"),
        ({"column": "schema"}, "no column 'schema'"),
        ({"schema": {}, "column": "schema"}, "args.schema, or"),
        ({"schema": {}, "column": "x"}, "args.schema, or"),
        ({"column": "x"}, "no column 'x'"),
        ({"schema": {"type": "wat"}}, "args.schema is no JSON schema"),
        ({"schema": {"$ref": "http://127.0.0.1:9/x"}}, "nothing is fetched"),
        ({"schema": {"$ref": "#/no"}}, "leads nowhere"),
        ({"schema": {"$schema": 5}}, "args.schema cannot be read"),
    ],
)
def test_json_schema_says_what_is_wrong_with_the_schema(args, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        json_schema(["1"], **args)


def test_json_schema_fetches_nothing(monkeypatch):
    import socket

    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("it went to the network"))
    with pytest.raises(ValueError, match="nothing is fetched"):
        json_schema(["1"], schema={"$ref": "https://json-schema.org/draft-07/schema"})


# --- mathematics --------------------------------------------------------------------------------------------------


@pytest.fixture
def math_equal():
    pytest.importorskip("math_verify", reason="the extra math is not installed")
    from reward_models.functions.mathematics import math_equal

    return math_equal


@pytest.mark.parametrize(
    ("text", "right", "reward"),
    [
        ("so it is 42", "42", 1.0),
        ("so it is 42.0", "6 * 7 = 42 #### 42", 1.0),
        ("\\boxed{43}", "42", 0.0),
        ("\\boxed{\\frac{1}{2}}", "0.5", 1.0),
        ("0.5", "$\\frac12$", 1.0),
        ("\\boxed{\\frac{2}{6}}", "\\frac{1}{3}", 1.0),  # without delimiters in the column
        ("\\boxed{1 + x^2}", "x^2+1", 1.0),
        ("\\boxed{x^2 - 1}", "x^2+1", 0.0),
        ("\\boxed{5}", "x = 5", 1.0),
        ("$(1, 2)$", "(1, 2)", 1.0),
        ("$1234$", "1,234", 1.0),
        ("0.00001", 1e-05, 1.0),
        ("5", "5 apples", 1.0),
        ("hello", "hello", None),  # no mathematics
        ("1", None, None),
        ("1", "", None),
        ("", "42", 0.0),
        ("思考 😀", "42", 0.0),
        ("(" * 3_000 + "1" + ")" * 3_000, "42", 0.0),
        ("word " * 20_000, "42", 0.0),
    ],
)
def test_math_equal(math_equal, text, right, reward):
    assert math_equal([text, said(text)], answer=[right, right], prompts=["p"] * 2) == [reward, reward]


def test_math_equal_gives_up_after_its_seconds(math_equal):
    start = time.monotonic()
    assert math_equal(["$9^{9^{9^{9}}}$", "7"], answer=["3", "7"], seconds=1) == [0.0, 1.0]
    assert 0.5 < time.monotonic() - start < 5
    with pytest.raises(ValueError, match="at least 1, got 0"):
        math_equal(["1"], answer=["1"], seconds=0)


def test_math_equal_in_a_thread(math_equal):
    found = []
    thread = threading.Thread(target=lambda: found.extend(math_equal(["42", "41"], answer=["42", "42"])))
    thread.start()
    thread.join()
    assert found == [1.0, 0.0]


def test_math_equal_in_a_worker(math_equal):
    entry = {"function": "reward_models.functions.mathematics:math_equal", "process": "worker", "args": {"seconds": 1}}
    runner = RewardRunner(RewardConfig.model_validate({"functions": [entry]}))
    try:
        rollout = text_rollout(["p"] * 3, ["$\\frac{2}{4}$", "$9^{9^{9^{9}}}$", "1"], {"answer": ["1/2", "3", None]})
        scored = runner(rollout)
    finally:
        runner.close()
    assert scored.valid.tolist() == [True, True, False]
    assert scored.scores.tolist()[:2] == [1.0, 0.0]


# --- matches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "right", "options", "reward"),
    [
        ("Paris", "Paris", {}, 1.0),
        (" Paris\n", "Paris", {}, 1.0),
        ("New  York", "New York", {}, 1.0),
        ("New  York", "New York", {"ignore_space": False}, 0.0),
        ("paris", "Paris", {}, 0.0),
        ("paris", "Paris", {"ignore_case": True}, 1.0),
        ("STRASSE", "Straße", {"ignore_case": True}, 1.0),
        ("Paris!", "Paris", {}, 0.0),
        ("“Paris”, it’s", "Paris its", {"ignore_punctuation": True}, 1.0),
        ("cafe\u0301", "caf\u00e9", {}, 1.0),
        ("42", 42, {}, 1.0),
        ("Rome", ["Paris", "Rome"], {}, 1.0),
        ("Oslo", ["Paris", None], {}, 0.0),
        ("", "Paris", {}, 0.0),
        ("", "", {}, 1.0),
        ("x", None, {}, None),
        ("x", [], {}, None),
        ("x", [None], {}, None),
    ],
)
def test_exact_match(text, right, options, reward):
    assert exact_match([text, said(text)], answer=[right, right], prompts=["p"] * 2, **options) == [reward, reward]


@pytest.mark.parametrize(
    ("text", "right", "options", "reward"),
    [
        ("abcd", "abcd", {}, 1.0),
        ("abcd", "bcde", {}, 0.75),  # bcd: 2 * 3 / 8
        ("abcd", "bcde", {"threshold": 0.75}, 1.0),
        ("abcd", "bcde", {"threshold": 0.76}, 0.0),
        ("abxcd", "abcd", {}, 8 / 9),
        ("ABCD", "abcd", {}, 0.0),
        ("ABCD", "abcd", {"ignore_case": True}, 1.0),
        ("a.b", "ab", {"ignore_punctuation": True}, 1.0),
        ("abcd", ["zzzz", "bcde"], {}, 0.75),
        ("", "abcd", {}, 0.0),
        ("", "", {}, 1.0),
        ("abcd", None, {}, None),
        # Of 4 characters only 2 are looked at, and matched: 2 * 2 / 8.
        ("abcd", "abce", {"max_chars": 2}, 0.5),
    ],
)
def test_fuzzy_match(text, right, options, reward):
    assert fuzzy_match([text], answer=[right], prompts=["p"], **options) == [pytest.approx(reward)]


def test_fuzzy_match_does_not_leave_out_frequent_characters():
    # difflib's own rule would ignore "a" in a text of 200 characters or more.
    assert fuzzy_match(["a" * 300], answer=["a" * 299 + "b"]) == [pytest.approx(2 * 299 / 600)]


def test_fuzzy_match_of_a_huge_text_is_quick():
    start = time.monotonic()
    (value,) = fuzzy_match(["ab" * 100_000], answer=["ba" * 100_000])
    assert 0 < value < 0.01
    assert time.monotonic() - start < 3
    with pytest.raises(ValueError, match="max_chars=0"):
        fuzzy_match(["a"], answer=["a"], max_chars=0)
    with pytest.raises(ValueError, match=r"threshold=1\.5"):
        fuzzy_match(["a"], answer=["a"], threshold=1.5)


@pytest.mark.parametrize("function", [exact_match, fuzzy_match])
def test_matches_without_their_column(function):
    with pytest.raises(ValueError, match="no column 'answer'"):
        function(["a"], question=["q"])


def test_every_reward_is_finite_on_hostile_text():
    texts = ["", "\x00", "\ud800", "\u202e", "<" * 1000, "\\boxed{" * 50, "[" * 500, "🏳️‍🌈" * 100]
    ids = [[0]] * len(texts)
    results = [
        repetition_penalty(texts, ids, unit="words"),
        format_tags(texts, partial=True),
        exact_match(texts, answer=["x"] * len(texts), ignore_case=True, ignore_punctuation=True),
        fuzzy_match(texts, answer=["x"] * len(texts)),
        json_schema(texts, schema={}),
    ]
    assert all(math.isfinite(value) for result in results for value in result)
