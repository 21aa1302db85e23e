"""What a reward function reads of a completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_pg.errors import ModelError

Completion = str | Sequence[dict[str, Any]]
SAMPLED = {"prompts", "completions", "completion_ids"}  # what a call has besides the data's columns


def text_of(completion: Completion) -> str:
    """The text of a completion: the string itself, or the content of the last message.

    Args:
        completion: a string, or chat messages; a content made of parts gives the parts of type ``text``, joined.

    Returns:
        The text; "" for no message and for a message without content.
    """
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else None
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content if part.get("type") == "text")
    return content or ""


def column_of(columns: Mapping[str, Any], name: str, holds: str = "answers", *, arg: str = "column") -> Sequence[Any]:
    """A column of the data that a reward reads.

    Args:
        columns: the data's columns, each with one value per completion.
        name: which one.
        holds: what stands in it, for the error.
        arg: the reward's argument that names it, for the error.

    Raises:
        ValueError: the data has no such column.
    """
    if name not in columns:
        raise ValueError(
            f"the data has no column {name!r}; it has {sorted({*columns} - SAMPLED)}: name the one with the {holds} in args.{arg}"
        )
    values: Sequence[Any] = columns[name]
    return values


def template_tokenizer(name: str) -> Any:
    """A tokenizer with a chat template, which turns messages into text.

    Args:
        name: folder or hub id; the reward's argument ``tokenizer``.

    Raises:
        ModelError: it cannot be loaded, or has no chat template.
    """
    from transformers import AutoTokenizer  # takes seconds, and most functions need none

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"args.tokenizer={name!r} cannot be loaded: {error}") from error
    if not tokenizer.chat_template:
        raise ModelError(f"args.tokenizer={name!r} has no chat template; name a chat model's, such as the policy's own")
    return tokenizer
