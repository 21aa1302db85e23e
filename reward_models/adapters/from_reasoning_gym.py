"""reasoning-gym's tasks; using one needs the extra ``gym``."""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import json
import textwrap
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, Literal

from reward_models.adapters.reading import LogMetric, Value, tried, value_of
from reward_models.functions.text import Completion, column_of, text_of
from rlhf_pg.errors import ConfigError, RewardError

_EVALUATORS = ("eval", "exec", "parse_expr", "sympify")  # each runs what it is given as Python


def reasoning_gym(
    task: str,
    *,
    answer: Literal["tags", "marker", "whole"] = "tags",
    marker: str | None = None,
    column: str = "entry",
    evaluate: bool = False,
) -> Callable[..., Any]:
    """The score that a reasoning-gym task gives an answer to its question, mostly from 0 to 1.

    Some tasks raise on an answer of another form than they expect: it is wrong, and scores 0. ``<task>/raised`` is the share
    of these among the rows.

    The prompts come from ``data.source: reasoning_gym:TASK?size=500&seed=1``, whose column ``entry`` says which question
    each is. It is generated again here, and a row is refused where that gives another question: a few tasks draw from sets,
    whose order Python changes with each process unless ``PYTHONHASHSEED`` is set.

    Args:
        task: its name.
        answer: which part of a completion is the answer: what stands in its last ``<answer>...</answer>``, what follows the
            last ``marker``, or the whole text; without white space at its ends. A completion without the tags or the
            marker has none, which mostly scores 0.
        marker: with ``answer="marker"``, what the answer follows.
        column: the column that says which question a row is.
        evaluate: take tasks that run the model's answer as Python (``countdown``, ``n_queens``, ...). They do so in the worker
            process, with its rights and no sandbox around it.

    Returns:
        The reward function.

    Raises:
        ConfigError: there is no such task, it runs answers as Python and ``evaluate`` is false, or the marker is missing.
        ImportError: reasoning-gym is not installed.

    Source: package reasoning-gym, ``ProceduralDataset.score_answer``.
    """
    tasks = _factory().DATASETS
    if task not in tasks:
        near = difflib.get_close_matches(task, tasks, n=1)
        raise ConfigError(f"reasoning_gym:{task} is no task{f' (nearest: {near[0]})' if near else ''}")
    if answer not in ("tags", "marker", "whole"):
        raise ConfigError(f"reasoning_gym:{task}: args.answer must be tags, marker or whole, got {answer!r}")
    if (answer == "marker") != bool(marker):
        raise ConfigError(
            f"reasoning_gym:{task}: args.marker and args.answer=marker belong together, got answer={answer!r}, "
            f"marker={marker!r}"
        )
    if not evaluate and _evaluates(tasks[task][0]):
        raise ConfigError(
            f"reasoning_gym:{task} scores an answer by running it as Python, so the model could run anything here; set "
            "args.evaluate=true if that is safe on this machine, or take another task"
        )

    def reward(completions: Sequence[Completion], log_metric: LogMetric | None = None, **columns: Any) -> list[Value]:
        raised = 0

        def score(text: str, place: Any) -> Any:
            nonlocal raised
            if place is None:
                return None
            dataset, entry = _question(task, str(place))
            value = tried(partial(dataset.score_answer, answer=_answer(text, answer, marker), entry=entry))
            raised += isinstance(value, Exception)
            return 0.0 if isinstance(value, Exception) else value

        places = column_of(columns, column, "questions' places")
        texts = [text_of(completion) for completion in completions]
        values = [value_of(tried(partial(score, *row))) for row in zip(texts, places, strict=True)]
        if log_metric is not None and values:
            log_metric(f"{task}/raised", raised / len(values))
        return values

    reward.__name__ = task
    return reward


def _factory() -> Any:
    try:
        return importlib.import_module("reasoning_gym.factory")
    except ImportError as error:
        raise ImportError(
            "rewards of reasoning_gym:... need the package reasoning-gym; install the extra: pip install 'rlhf-pg[gym]'"
        ) from error


def _evaluates(dataset: type) -> bool:
    """Whether a task's ``score_answer`` gives an answer, which is a plain name there, to what runs it as Python."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(dataset.score_answer)))  # type: ignore[attr-defined]
    except (OSError, TypeError, SyntaxError):
        return True  # it cannot be seen that it does not
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    names = [call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "") for call in calls]
    return any(
        name in _EVALUATORS and isinstance(call.args[0], ast.Name) for name, call in zip(names, calls, strict=True)
    )


@lru_cache(maxsize=4096)
def _question(task: str, place: str) -> tuple[Any, dict[str, Any]]:
    """The dataset and the entry that a row's place names."""
    try:
        where = json.loads(place)
        of, config, index, question = (where[key] for key in ("task", "config", "index", "question"))
    except (ValueError, TypeError, KeyError) as error:
        raise RewardError(
            f"cannot tell which question the row is from {place[:60]!r}; take prompts from data.source: reasoning_gym:{task}"
        ) from error
    if of != task:
        raise RewardError(f"scores the task {task!r}, and the row's question is of {of!r}")
    dataset = _dataset(task, json.dumps(config))
    entry = dataset[index]
    if entry["question"] != question:
        raise RewardError(
            f"question {index} of {task} is generated differently in each process; set PYTHONHASHSEED=0 in the environment"
        )
    return dataset, entry


@lru_cache(maxsize=8)
def _dataset(task: str, config: str) -> Any:
    return _factory().create_dataset(task, **json.loads(config))


def _answer(text: str, part: str, marker: str | None) -> str | None:
    if part == "whole":
        return text.strip()
    if part == "marker":
        _, found, rest = text.rpartition(marker or "")
        return rest.strip() if found else None
    head, closed, _ = text.rpartition("</answer>")
    _, opened, inside = head.rpartition("<answer>")
    return inside.strip() if closed and opened else None
