"""Sentiment by lexicon; importing this module needs the extra ``sentiment``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from reward_models.functions.text import Completion, text_of

try:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
except ImportError as error:
    raise ImportError(
        "the reward 'vader' needs the package vaderSentiment; install the extra: pip install 'rlhf-pg[sentiment]'"
    ) from error


@cache
def _analyzer() -> Any:
    return SentimentIntensityAnalyzer()  # reads its lexicon from disk: once


def vader(completions: Sequence[Completion], **_columns: Any) -> list[float]:
    """VADER's compound sentiment of the completion, from -1 (most negative) to 1.

    The lexicon's valences, changed by rules for negation, degree and punctuation, are summed to x, and the compound
    score is ``x / sqrt(x^2 + 15)``. A text without any word of the lexicon gets 0.

    Args:
        completions: strings, or chat messages whose last one is scored.

    Returns:
        One score per completion.

    Source: Hutto and Gilbert, VADER, ICWSM 2014; package vaderSentiment.
    """
    return [float(_analyzer().polarity_scores(text_of(completion))["compound"]) for completion in completions]
