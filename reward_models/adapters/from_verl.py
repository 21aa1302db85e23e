"""verl's reward functions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
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
from reward_models.functions.text import Completion, column_of, text_of
from rlhf_pg.errors import RewardError


def verl(
    function: Callable[..., Any],
    *,
    data_source: str = "data_source",
    ground_truth: str = "reward_model.ground_truth",
    extra_info: str = "extra_info",
    reward_kwargs: Mapping[str, Any] | None = None,
    batched: bool = False,
) -> Callable[..., Any]:
    """verl's ``compute_score(data_source, solution_str, ground_truth, extra_info)`` as a reward function.

    It may return a number, or a dict with ``score``. Of the dict's other entries the means of those that are numbers go to
    ``log_metric``, as ``<function>/<entry>``, and the others to ``log_extra``. It may be asynchronous: then all rows are
    under way together.

    Args:
        function: called with keywords, once for each row; a row that it raises on is lost alone.
        data_source: the column of the sources' names. Where the data has none, give one name in ``reward_kwargs``.
        ground_truth: the column of the right answers; ``a.b`` is the entry ``b`` of the dicts in the column ``a``.
        extra_info: the column of further information, dicts; where the data has none, each is empty. As in verl they also
            hold ``num_turns`` and ``rollout_reward_scores``.
        reward_kwargs: further keywords; as in verl they take the place of those above.
        batched: it is given all rows at once, with the keywords ``data_sources``, ``solution_strs``, ``ground_truths`` and
            ``extra_infos``, as by verl's batch reward manager.

    Returns:
        The reward function, asynchronous if ``function`` is.

    Source: verl, ``workers/reward_manager/naive.py`` and ``batch.py``.
    """
    own = dict(reward_kwargs or {})

    def keywords(completions: Sequence[Completion], columns: Mapping[str, Any]) -> dict[str, list[Any]]:
        given: dict[str, list[Any]] = {"solution_str": [text_of(completion) for completion in completions]}
        for word, name in (("data_source", data_source), ("ground_truth", ground_truth)):
            if word not in own and f"{word}s" not in own:
                given[word] = _nested(columns, name, word)
        infos = columns.get(extra_info) or [None] * len(completions)
        given["extra_info"] = [{**(info or {}), "num_turns": None, "rollout_reward_scores": {}} for info in infos]
        return given

    def whole(completions: Sequence[Completion], columns: Mapping[str, Any]) -> Any:
        return function(**{**{f"{word}s": values for word, values in keywords(completions, columns).items()}, **own})

    def each(completions: Sequence[Completion], columns: Mapping[str, Any]) -> list[Callable[[], Any]]:
        given = keywords(completions, columns)
        rows = [dict(zip(given, values, strict=True)) for values in zip(*given.values(), strict=True)]
        return [partial(function, **{**row, **own}) for row in rows]

    def reward(
        completions: Sequence[Completion],
        log_metric: LogMetric | None = None,
        log_extra: LogExtra | None = None,
        **columns: Any,
    ) -> list[Value]:
        if batched:
            answers = listed(whole(completions, columns), len(completions))
        else:
            answers = [tried(call) for call in each(completions, columns)]
        return rewards_of([_row(answer) for answer in answers], name_of(function), log_metric, log_extra)

    async def reward_async(
        completions: Sequence[Completion],
        log_metric: LogMetric | None = None,
        log_extra: LogExtra | None = None,
        **columns: Any,
    ) -> list[Value]:
        if batched:
            answers = listed(await whole(completions, columns), len(completions))
        else:
            calls = [call() for call in each(completions, columns)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
        return rewards_of([_row(answer) for answer in answers], name_of(function), log_metric, log_extra)

    chosen: Callable[..., Any] = reward_async if is_async(function) else reward
    chosen.__name__ = name_of(function)
    return chosen


def _row(answer: Any) -> Row:
    """What the function returned for a row, or raised."""
    if not isinstance(answer, dict):
        return value_of(answer), {}
    if "score" not in answer:
        return RewardError(f"returned a dict without 'score'; it has {sorted(map(str, answer))}"), {}
    return value_of(answer["score"]), {str(name): value for name, value in answer.items() if name != "score"}


def _nested(columns: Mapping[str, Any], name: str, arg: str) -> list[Any]:
    """A column, or for ``a.b`` the entries ``b`` of the dicts in the column ``a``; None in a row without it."""
    if name in columns or "." not in name:
        return list(column_of(columns, name, f"{arg}s", arg=arg))
    outer, _, inner = name.partition(".")
    values = column_of(columns, outer, f"{arg}s", arg=arg)
    return [value.get(inner) if isinstance(value, Mapping) else None for value in values]
