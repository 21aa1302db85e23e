"""Rewards of JSON; importing this module needs the extra ``json``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from reward_models.functions.text import Completion, column_of, text_of
from rlhf_pg.errors import RewardError

try:
    from jsonschema import exceptions, validators
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import EMPTY_REGISTRY
except ImportError as error:
    raise ImportError(
        "the reward 'json_schema' needs the package jsonschema; install the extra: pip install 'rlhf-pg[json]'"
    ) from error

_FENCED = re.compile(r"^[ \t]*```([^\n`]*)\n(.*?)^[ \t]*```", re.MULTILINE | re.DOTALL)


def json_schema(
    completions: Sequence[Completion],
    *,
    schema: dict[str, Any] | list[Any] | None = None,
    column: str | None = None,
    fenced: bool = False,
    **columns: Any,
) -> list[float | RewardError | None]:
    """1 where a completion is JSON that is valid under a schema, else 0.

    ``schema: {}`` asks for any JSON. ``NaN``, ``Infinity``, numbers beyond float64 and text nested too deeply for Python's
    reader are not JSON here. A ``$ref`` is looked up in the schema itself; nothing is ever fetched.

    Args:
        completions: strings, or chat messages whose last one is read.
        schema: one schema for every row.
        column: or the column that holds each row's schema, as a dict or as JSON text.
        fenced: the JSON is the first block fenced as ``json`` or without a language; a text without one is wrong. Else it
            is the whole text.
        columns: the data's columns, each a list with one value per completion.

    Returns:
        1.0 or 0.0; ``None`` where the column has no schema, and a ``RewardError`` where what it has is none.

    Raises:
        ValueError: not exactly one of ``schema`` and ``column`` is given, the schema is none, or there is no such column.
    """
    if column == "schema" and isinstance(schema, list):  # the data's column has come in the argument's place
        columns, schema = columns | {"schema": schema}, None
    if (schema is None) == (column is None):
        raise ValueError("give the schema in args.schema, or the name of the column that holds it in args.column")
    texts = [_json_in(text_of(completion), fenced) for completion in completions]
    if column is None:
        written = json.dumps(schema)
        try:
            return [_valid(text, written) for text in texts]
        except RewardError as error:
            raise ValueError(f"args.schema {error}") from error
    rewards: list[float | RewardError | None] = []
    for text, value in zip(texts, column_of(columns, column, "schemas"), strict=True):
        try:
            written = value if isinstance(value, str) else json.dumps(value)
            rewards.append(None if value is None else _valid(text, written))
        except (RewardError, TypeError) as error:
            rewards.append(RewardError(f"the schema in the column {column!r} {error}"))
    return rewards


def _json_in(text: str, fenced: bool) -> str:
    if not fenced:
        return text
    blocks = (body for language, body in _FENCED.findall(text) if language.strip().lower() in ("json", ""))
    return next(blocks, "")


def _valid(text: str, schema: str) -> float:
    """Whether a text is JSON under a schema."""
    checker = _checker(schema)
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        return 0.0
    try:
        return float(checker.is_valid(value))
    except RecursionError:
        return 0.0  # nested too deeply to be looked at
    except Unresolvable as error:
        raise RewardError(f"has a $ref that leads nowhere in it, and nothing is fetched: {error}") from error
    except re.error as error:
        raise RewardError(f"has a pattern that is malformed: {error}") from error


@lru_cache(maxsize=256)
def _checker(schema: str) -> Any:
    """What checks values under a schema, written as JSON."""
    try:
        read = json.loads(schema)
        kind = validators.validator_for(read, default=validators.Draft202012Validator)
        kind.check_schema(read)
    except exceptions.SchemaError as error:
        raise RewardError(f"is no JSON schema: {error.message}") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RewardError(f"cannot be read: {error}") from error
    return kind(read, registry=EMPTY_REGISTRY)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"{number} is too large")
    return value
