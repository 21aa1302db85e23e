"""What a request to a reward server holds, in the wire format of OpenRLHF's reward servers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class Refused(Exception):
    """A request that gets no rewards: the status, and why in a sentence."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, slots=True)
class Rows:
    """What a request asks for."""

    prompts: list[Any]  # strings or messages
    completions: list[str]
    labels: list[Any] | None
    ids: list[list[int]] | None = None  # of the completions' tokens

    def __len__(self) -> int:
        """Its rows."""
        return len(self.completions)


def read_rows(body: Any, max_rows: int, query_end: str = "") -> Rows:
    """The rows of a request.

    With ``completions``, as our own client sends them, the prompts are ``messages`` where there are such, else
    ``prompts``. Without, a completion is its query without the prompt at the start and without ``query_end``.

    Raises:
        Refused: 422, it has not that form; 413, it has too many rows.
    """
    query = _texts(body, "query")
    if query is None:
        raise Refused(
            422, 'the body must be an object with "query", a list of texts; "prompts" and "labels" are optional'
        )
    if len(query) > max_rows:
        raise Refused(
            413, f"{len(query)} rows are more than the {max_rows} that a request may have; send fewer at a time"
        )
    prompts: list[Any] = _texts(body, "prompts") or [""] * len(query)
    completions, labels = _texts(body, "completions"), body.get("labels")
    labels = None if labels is None or all(one is None or one == "" for one in _list(labels, "labels")) else labels
    messages = _list(body.get("messages") or [None] * len(query), "messages")
    ids = body.get("completion_ids")
    if ids is not None and not all(map(_is_ids, _list(ids, "completion_ids"))):
        raise Refused(422, '"completion_ids" must be a list of lists of whole numbers')
    for name, values in (
        ("prompts", prompts),
        ("completions", completions),
        ("labels", labels),
        ("messages", messages),
        ("completion_ids", ids),
    ):
        if values is not None and len(values) != len(query):
            raise Refused(422, f'"{name}" has {len(values)} entries and "query" {len(query)}; they must have as many')
    if completions is None:
        completions = []
        for row, (text, prompt) in enumerate(zip(query, prompts, strict=True)):
            if not text.startswith(prompt):
                raise Refused(
                    422, f'entry {row} of "query" does not begin with that of "prompts", so its reply cannot be told'
                )
            completions.append(text[len(prompt) :].removesuffix(query_end))
    for row, chat in enumerate(messages):
        if chat is not None:
            if not isinstance(chat, list) or not all(isinstance(one, dict) and "content" in one for one in chat):
                raise Refused(
                    422, f'entry {row} of "messages" must be null or a list of messages with role and content'
                )
            prompts[row] = chat
    return Rows(prompts, completions, labels, ids)


def _list(values: Any, name: str) -> list[Any]:
    if not isinstance(values, list):
        raise Refused(422, f'"{name}" must be a list')
    return values


def _is_ids(row: Any) -> bool:
    return isinstance(row, list) and all(type(number) is int for number in row)


def _texts(body: Any, name: str) -> list[str] | None:
    values = body.get(name) if isinstance(body, dict) else None
    if values is not None and not all(isinstance(value, str) for value in _list(values, name)):
        raise Refused(422, f'"{name}" must be a list of texts')
    return values
