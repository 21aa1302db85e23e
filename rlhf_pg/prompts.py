"""From a table's rows to what the model reads: which column holds the prompts, chat form, rendering, token ids."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_pg.errors import DataError
from rlhf_pg.sources import Say, Table
from rlhf_pg.types import Message, Prompt

USUAL = ("prompt", "messages", "conversations", "instruction", "question")
RESERVED = ("prompts", "completions", "completion_ids")
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}


def find_prompts(table: Table, column: str | None, say: Say) -> tuple[list[Prompt], dict[str, list[Any]]]:
    """Recognise which column holds the prompts, say so, and check every row.

    Without ``column``, the first of these that the table has: ``prompt``, ``messages``, ``conversations``,
    ``instruction`` (joined with ``input`` by a blank line where there is one), ``question``. In a message list the
    closing assistant turns are the answer and not the prompt; the column keeps them, for the reward.

    Args:
        table: the rows.
        column: ``data.prompt_column``.
        say: receives one sentence on what was recognised.

    Returns:
        The prompts, and the columns that reach the reward: all but a prompt column named ``prompt``.

    Raises:
        DataError: no rows, no such column, a column with a reserved name, or a row without a usable prompt.
    """
    if not len(table):
        raise DataError(f"{table.name} has no rows; at least one prompt is needed")
    listed = ", ".join(table.columns)
    for name in RESERVED:
        if name in table.columns:
            raise DataError(
                f"{table.name} has a column {name!r}, which is an argument that every reward function already gets; "
                f"rename or remove the column (its columns: {listed})"
            )
    found = column if column is not None else next((name for name in USUAL if name in table.columns), None)
    if found is None:
        raise DataError(
            f"{table.name} has none of the columns {', '.join(USUAL)}; "
            f"set data.prompt_column to one of its columns: {listed}"
        )
    if found not in table.columns:
        raise DataError(f"data.prompt_column={found} is no column of {table.name}; its columns: {listed}")

    values = table.columns[found]
    source = f"column {found!r}"
    if column is None and found == "instruction" and "input" in table.columns:
        values = [_joined(*pair) for pair in zip(values, table.columns["input"], strict=True)]
        source = "columns 'instruction' and 'input', with a blank line between them,"
    prompts = [_prompt(value, table.row(index)) for index, value in enumerate(values)]
    answered = sum(not isinstance(p, str) and len(p) < len(v) for p, v in zip(prompts, values, strict=True))
    left_out = f"; the closing assistant turns of {answered} are answers and not in the prompt" if answered else ""
    kind = "strings" if isinstance(prompts[0], str) else "chat messages"
    say(f"Prompts: {source} of {table.name}, {len(prompts)} rows of {kind}{left_out}.")
    return prompts, {name: rows for name, rows in table.columns.items() if name != found or name != "prompt"}


def as_asked(
    prompts: list[Prompt], chat: bool | None, system_prompt: str | None, table: Table
) -> tuple[list[Prompt], bool]:
    """All prompts as strings or all as message lists, as ``data.chat`` asks; the system prompt put in."""
    first = not isinstance(prompts[0], str)
    if chat is None:
        chat = first
        for i, prompt in enumerate(prompts):
            if isinstance(prompt, str) == first:
                raise DataError(
                    f"{table.row(i)} is a {'string' if first else 'list of messages'} and row 0 is not; make all rows "
                    "alike, or set data.chat=true, which makes each string a user's message"
                )
    if not chat:
        if system_prompt is not None:
            raise DataError(
                "data.system_prompt needs chat prompts, and these are plain strings; set data.chat=true or remove it"
            )
        for i, prompt in enumerate(prompts):
            if not isinstance(prompt, str):
                raise DataError(
                    f"{table.row(i)} is a list of messages, and these need the chat template; set data.chat=true"
                )
        return prompts, False
    conversations: list[Prompt] = []
    for prompt in prompts:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if system_prompt is not None and all(message["role"] != "system" for message in messages):
            messages = [{"role": "system", "content": system_prompt}, *messages]
        conversations.append(messages)
    return conversations, True


def render(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, where: str) -> str:
    """The text that the model reads: a string as it is, messages through the chat template up to the answer."""
    if isinstance(prompt, str):
        return prompt
    if not tokenizer.chat_template:
        raise DataError(
            "the prompts are chat messages and the policy's tokenizer has no chat template; take a chat model, "
            "set the tokenizer's chat_template, or give the prompts as plain strings with data.chat=false"
        )
    try:
        return str(tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True))
    except Exception as error:
        raise DataError(f"the chat template cannot render {where}: {error}") from error


def tokenise(texts: list[str], chat: bool, tokenizer: PreTrainedTokenizerBase, table: Table) -> list[list[int]]:
    """Token ids, each with one BOS in front where the tokenizer puts one before a string, and no EOS put behind.

    A chat template may write the BOS or leave it to the tokenizer, and a user's string may bring one along: either way
    there is one.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    # Seen on an example, for an id alone does not tell what the tokenizer adds: BOS and EOS may be the same token.
    bare, full = (tokenizer("a", add_special_tokens=add)["input_ids"] for add in (False, True))
    adds_bos = bos is not None and full[:1] == [bos] != bare[:1]
    adds_eos = eos is not None and full[-1:] == [eos] != bare[-1:]
    rows: list[list[int]] = tokenizer(texts, add_special_tokens=not chat, verbose=False)["input_ids"]
    for i, row in enumerate(rows):
        if adds_eos and not chat and row[-1:] == [eos]:
            row = row[:-1]
        if adds_bos or not row:
            row = [bos, *row] if bos is not None else row
        while bos is not None and row[:2] == [bos, bos]:
            row = row[1:]
        if not row:
            raise DataError(
                f"{table.row(i)} has an empty prompt, and the tokenizer has no BOS to begin with; remove the row"
            )
        rows[i] = row
    return rows


def _joined(instruction: object, more: object) -> object:
    return (
        f"{instruction}\n\n{more}" if isinstance(instruction, str) and isinstance(more, str) and more else instruction
    )


def _prompt(value: object, where: str) -> Prompt:
    """Check one prompt; a message list comes back in role/content form without its closing assistant turns."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{where} has a prompt that is no valid text: {error.reason}; mend or remove it") from None
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise DataError(f"{where} has no prompt; fill it in or remove the row")
    if not isinstance(value, (list, tuple)):
        raise DataError(
            f"{where} has a prompt of type {type(value).__name__}; a string or a list of messages is needed"
        )
    messages = [_message(message, f"{where}, message {number},") for number, message in enumerate(value)]
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages:
        raise DataError(f"{where} has no message before the assistant's answer, so no prompt; remove the row")
    return messages


def _message(message: object, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise DataError(f"{where} is a {type(message).__name__}; a dict with role and content is needed")
    if "from" in message and "value" in message:
        speaker = message["from"]
        found: Message = {"role": ROLES.get(speaker, speaker), "content": message["value"]}
    else:
        # A table fills the keys that other rows' messages have with None, and chat templates would print it.
        found = {key: value for key, value in message.items() if value is not None}
    if not isinstance(found.get("role"), str):
        raise DataError(f"{where} has no role; role and content (or from and value) are needed, got {list(message)}")
    if not isinstance(found.get("content"), (str, list)) and "tool_calls" not in found:
        raise DataError(f"{where} has no text in its content; fill it in or remove the row")
    return found
