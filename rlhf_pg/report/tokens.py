"""Token ids as the pieces of text that each of them adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_INCOMPLETE = "\ufffd"


def token_texts(decode: Callable[[list[int]], str], ids: Sequence[int]) -> list[str]:
    """What each token adds to the text; joined, they are the decoded text.

    A token is decoded together with those before it, since a tokenizer writes spaces and characters of several bytes
    by their neighbours. A token that ends within a character adds nothing, and the one that completes it adds it whole.

    Args:
        decode: ids to text, special tokens included.
        ids: a response.
    """
    texts: list[str] = []
    start = read = 0
    for end in range(1, len(ids) + 1):
        before, now = decode(list(ids[start:read])), decode(list(ids[start:end]))
        if now.endswith(_INCOMPLETE) and end < len(ids):
            texts.append("")
            continue
        texts.append(now[len(before) :])
        start, read = read, end
    return texts
