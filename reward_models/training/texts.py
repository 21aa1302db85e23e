"""From what a dataset holds to the token ids that a reward model reads, the same in training as in scoring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reward_models.functions.text import Completion
from rlhf_pg.errors import DataError, ModelError
from rlhf_pg.types import Prompt

_PAD = "<|pad|>"


def encode(
    tokenizer: Any,
    prompt: Prompt,
    completion: Completion,
    *,
    max_tokens: int,
    where: str,
    append_eos: bool = False,
) -> list[int]:
    """The token ids of prompt and completion.

    Strings are joined and get the special tokens that the tokenizer always adds; messages are rendered by the chat
    template. An over-long text keeps its end, and its first token if that is BOS or CLS.

    Args:
        tokenizer: the reward model's.
        prompt: string or messages; "" where the completion is the whole text.
        completion: string or messages; messages with a prompt of a string make that the user's first.
        max_tokens: the most that are kept.
        where: what an error calls the row.
        append_eos: end the text with the end-of-sequence token.

    Raises:
        DataError: the text has no token, or the template cannot render it.
        ModelError: messages, and the tokenizer has no chat template.
    """
    if isinstance(prompt, str) and isinstance(completion, str):
        ids: list[int] = tokenizer(prompt + completion, verbose=False)["input_ids"]
    else:
        asked = ([{"role": "user", "content": prompt}] if prompt else []) if isinstance(prompt, str) else [*prompt]
        reply = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else [*completion]
        ids = _rendered(tokenizer, [*asked, *reply], where)
    if append_eos and ids and ids[-1] != tokenizer.eos_token_id:
        ids = [*ids, tokenizer.eos_token_id]
    if not ids:
        raise DataError(f"{where} has a text without any token: {completion!r}; remove the row")
    if len(ids) <= max_tokens:
        return ids
    first = ids[:1] if ids[0] in (tokenizer.bos_token_id, tokenizer.cls_token_id) else []
    return first + ids[len(ids) - max_tokens + len(first) :]


def _rendered(tokenizer: Any, messages: Sequence[Any], where: str) -> list[int]:
    if not tokenizer.chat_template:
        raise ModelError(
            f"{where} has messages, and the reward model's tokenizer has no chat template; give one with "
            "chat_template, take a chat model, or write the texts as strings"
        )
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception as error:
        raise DataError(f"{where}: the chat template cannot render it: {error}") from error
    # A rendered template has its special tokens already: adding them again would double the first one.
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def check_padding(model: Any, tokenizer: Any, texts: Sequence[Sequence[int]]) -> int:
    """The padding token's id, once the model is sure to read its score at each row's last token.

    Decoders pool at the last token whose id is not the padding's, so no text may end with that id.

    Raises:
        ModelError: there is no padding token, or texts end with it.
    """
    pad: int | None = tokenizer.pad_token_id
    own = "give the tokenizer one of its own (add_special_tokens, then the model's resize_token_embeddings)"
    if pad is None:
        raise ModelError(f"the reward model's tokenizer has no padding token; {own}")
    if ends := sum(ids[-1] == pad for ids in texts):
        raise ModelError(
            f"{ends} texts end with the token {tokenizer.pad_token!r}, which is also the padding token, so the model "
            f"would read their score one token early; {own}"
        )
    model.config.get_text_config().pad_token_id = pad
    return pad


def own_padding(model: Any, tokenizer: Any, texts: Sequence[Sequence[int]]) -> bool:
    """Give tokenizer and model a padding token of their own where there is none, or where a text ends with it.

    Args:
        model: its embeddings get a row where there is none left for the new token.
        tokenizer: changed in place.
        texts: all that will be trained on or measured.

    Returns:
        Whether a token was added.
    """
    pad = tokenizer.pad_token_id
    if pad is not None and all(ids[-1] != pad for ids in texts):
        return False
    tokenizer.add_special_tokens({"pad_token": _PAD})
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        # The row is never read, so it is not drawn from the others' distribution.
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return True
