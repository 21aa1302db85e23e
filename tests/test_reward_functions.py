"""The small reward functions, on cases worked by hand."""

from __future__ import annotations

import re

import pytest

from reward_models.functions import keyword, length, numeric_answer, regex_match, text_of


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


def test_vader_without_its_package_names_the_extra(monkeypatch):
    import importlib
    import sys

    monkeypatch.setitem(sys.modules, "vaderSentiment", None)
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    monkeypatch.delitem(sys.modules, "reward_models.functions.sentiment", raising=False)
    with pytest.raises(ImportError, match=re.escape("rlhf-pg[sentiment]")):
        importlib.import_module("reward_models.functions.sentiment")


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
