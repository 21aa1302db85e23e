"""What a reward function reads of a completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Completion = str | Sequence[dict[str, Any]]


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
