"""OpenRLHF's reward functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from reward_models.adapters.reading import (
    LogExtra,
    LogMetric,
    Row,
    Value,
    is_async,
    listed,
    name_of,
    rewards_of,
    tried,
    value_of,
)
from reward_models.functions.text import Completion, column_of, template_tokenizer, text_of
from rlhf_pg.errors import ConfigError, RewardError


def openrlhf(
    function: Callable[..., Any], *, labels: str | None = None, tokenizer: str | None = None, batched: bool = False
) -> Callable[..., Any]:
    """OpenRLHF's ``reward_func(queries, prompts, labels)`` as a reward function.

    It may return a tensor or a list of rewards, or a dict with ``rewards`` and, if it likes, ``scores`` and ``extra_logs``,
    whose means go to ``log_metric`` as ``<function>/<entry>``.

    A query is the prompt's text and the completion's. OpenRLHF decodes queries with their special tokens; here the
    completion has its own with ``reward.skip_special_tokens: false``, and a prompt has those that its text or its chat
    template writes.

    Args:
        function: called with three lists.
        labels: the column that the labels are in; without it each is "", as in OpenRLHF.
        tokenizer: a folder or hub id whose chat template writes prompts that are messages as text.
        batched: it is given all rows at once; else, as OpenRLHF does, one row a call, and a row that it raises on is lost
            alone.

    Returns:
        The reward function.

    Raises:
        ConfigError: the function is asynchronous, which OpenRLHF does not allow either.
        ModelError: the tokenizer cannot be loaded, or has no chat template.

    Source: OpenRLHF, ``openrlhf/utils/agent.py`` and ``examples/python/reward_func.py``.
    """
    if is_async(function):
        raise ConfigError(f"openrlhf:... {name_of(function)} is asynchronous, and OpenRLHF's functions are not")
    template = None if tokenizer is None else template_tokenizer(tokenizer)

    def reward(
        prompts: Sequence[Any],
        completions: Sequence[Completion],
        log_metric: LogMetric | None = None,
        log_extra: LogExtra | None = None,
        **columns: Any,
    ) -> list[Value]:
        texts = [_text(prompt, template) for prompt in prompts]
        queries = [text + text_of(completion) for text, completion in zip(texts, completions, strict=True)]
        marks = [""] * len(texts) if labels is None else column_of(columns, labels, "labels", arg="labels")
        if batched:
            rows = _rows(function(queries, texts, list(marks)), len(texts))
        else:
            answers = [tried(partial(_single, function, *row)) for row in zip(queries, texts, marks, strict=True)]
            rows = [(value_of(answer), {}) if isinstance(answer, Exception) else answer for answer in answers]
        return rewards_of(rows, name_of(function), log_metric, log_extra)

    reward.__name__ = name_of(function)
    return reward


def _single(function: Callable[..., Any], query: str, prompt: str, label: Any) -> Row:
    return _rows(function([query], [prompt], [label]), 1)[0]


def _rows(answer: Any, count: int) -> list[Row]:
    """What the function returned for some rows, row by row."""
    logs: dict[str, Any] = {}
    if isinstance(answer, dict):
        if "rewards" not in answer:
            raise RewardError(f"returned a dict without 'rewards'; it has {sorted(map(str, answer))}")
        scores = {"scores": answer["scores"]} if answer.get("scores") is not None else {}
        logs = {**scores, **(answer.get("extra_logs") or {})}
        answer = answer["rewards"]
    values = [value_of(value) for value in listed(answer, count)]
    spread = {str(name): _spread(value, count) for name, value in logs.items()}
    return [(value, {name: column[row] for name, column in spread.items()}) for row, value in enumerate(values)]


def _spread(value: Any, count: int) -> list[Any]:
    """An entry of the logs for each row: its own, or the one that stands for all."""
    given = value.tolist() if hasattr(value, "tolist") else value
    return list(given) if isinstance(given, list | tuple) and len(given) == count else [given] * count


def _text(prompt: Any, tokenizer: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    if tokenizer is None:
        raise RewardError(
            "is written for OpenRLHF, whose prompts are text, and here they are messages: name the tokenizer whose chat "
            "template writes them in args.tokenizer"
        )
    return str(tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True))
