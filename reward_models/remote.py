"""A reward that a server computes, in the wire format of OpenRLHF's reward servers."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from reward_models.functions.text import Completion, template_tokenizer, text_of
from reward_models.http import JsonClient, Limits, token_of
from rlhf_pg.errors import ConfigError, RewardError

Server = Literal["openrlhf", "rlhf_pg"]
Messages = Sequence[Mapping[str, Any]]


class Remote:
    """A reward function that posts rows to a server, some at a time, and reads one number for each.

    ``{"query": [...], "prompts": [...], "labels": [...]}`` is answered by ``{"rewards": [...]}``: a finite number a row, or null
    for a row that cannot be scored. The answer may hold ``extra_logs``, lists of numbers, whose means go to ``log_metric``;
    ``errors`` says of single rows, by their number, why they failed. ``completions`` and, of chat prompts, ``messages`` are sent
    besides, which other servers leave unread. Made by :func:`remote`.
    """

    def __init__(
        self,
        client: JsonClient,
        *,
        server: Server,
        batch_rows: int,
        labels: str | None,
        tokenizer: Any,
        query_end: str,
    ) -> None:
        self.__name__ = "remote"
        self.client, self.server, self.batch_rows = client, server, batch_rows
        self.labels, self.tokenizer, self.query_end = labels, tokenizer, query_end

    async def __call__(
        self,
        prompts: Sequence[str | Messages],
        completions: Sequence[Completion],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | RewardError | None]:
        """Score each row.

        Args:
            prompts: strings or messages.
            completions: as many.
            log_metric: takes ``remote/retries``, how many requests were sent again, and the means of ``extra_logs``.
            columns: the data's columns, of which ``labels`` names one that is sent.

        Returns:
            One number per row; None where the server gave null; the error where it failed on the row, or where no request
            with the row got through.

        Raises:
            RewardError: the rows cannot be sent: there are messages and no tokenizer, or no such column.
        """
        until = time.monotonic() + self.client.limits.deadline
        before = self.client.retried
        body = self._body(prompts, [text_of(completion) for completion in completions], columns)
        starts = range(0, len(prompts), self.batch_rows)
        parts = [{name: v[start : start + self.batch_rows] for name, v in body.items()} for start in starts]
        logs: dict[str, list[float]] = {}
        answers = await asyncio.gather(*(self._ask(part, until, logs) for part in parts))
        if log_metric is not None:
            log_metric("remote/retries", float(self.client.retried - before))
            for name, values in logs.items():
                log_metric(f"remote/{name}", math.fsum(values) / len(values))
        return [value for answer in answers for value in answer]

    def _body(
        self, prompts: Sequence[str | Messages], completions: Sequence[str], columns: Mapping[str, Any]
    ) -> dict[str, list[Any]]:
        """The fields of a request, a value per row."""
        if self.labels is not None and self.labels not in columns:
            raise RewardError(
                f"args.labels={self.labels!r} is no column of the data, which has {sorted(columns)}; name one of them"
            )
        texts = [self._text(prompt) for prompt in prompts]
        body: dict[str, list[Any]] = {
            "query": [prompt + reply + self.query_end for prompt, reply in zip(texts, completions, strict=True)],
            "prompts": texts,
            # OpenRLHF sends "" where the data has no label, and servers expect text.
            "labels": [""] * len(texts) if self.labels is None else list(columns[self.labels]),
            "completions": list(completions),
        }
        if self.server == "rlhf_pg" and "completion_ids" in columns:
            body["completion_ids"] = [list(ids) for ids in columns["completion_ids"]]
        chat = [None if isinstance(prompt, str) else list(prompt) for prompt in prompts]
        return body | {"messages": chat} if any(messages is not None for messages in chat) else body

    def _text(self, prompt: str | Messages) -> str:
        """A prompt as text."""
        if isinstance(prompt, str):
            return prompt
        if self.tokenizer is not None:
            text: str = self.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
            return text
        if self.server == "rlhf_pg":
            return ""  # it reads the messages
        raise RewardError(
            f"the prompts are messages, and {self.client.shown} is to be sent text: name the tokenizer whose chat template "
            "writes it in args.tokenizer, or say args.server=rlhf_pg if `rlhf-pg reward serve` runs there, which reads messages"
        )

    async def _ask(
        self, part: dict[str, list[Any]], until: float, logs: dict[str, list[float]]
    ) -> list[float | RewardError | None]:
        """Score the rows of one request."""
        rows = len(part["query"])
        try:
            answer = await self.client.post(part, until)
            values = self._read(answer, rows)
        except RewardError as error:
            return [error] * rows
        extra = answer.get("extra_logs")
        for name, entry in extra.items() if isinstance(extra, dict) else ():
            numbers = [float(x) for x in (entry if isinstance(entry, list) else [entry] * rows) if is_number(x)]
            if numbers:
                logs.setdefault(name, []).extend(numbers)
        return values

    def _read(self, answer: Any, rows: int) -> list[float | RewardError | None]:
        """The rewards of an answer."""
        rewards = answer.get("rewards") if isinstance(answer, dict) else None
        if not isinstance(rewards, list):
            raise RewardError(f'{self.client.shown} gave no list "rewards" but {str(answer)[:100]}')
        if len(rewards) != rows:
            raise RewardError(
                f"{self.client.shown} gave {len(rewards)} rewards for {rows} rows; it must give one per row"
            )
        errors = answer.get("errors")
        said = errors if isinstance(errors, dict) else {}
        values: list[float | RewardError | None] = []
        for row, reward in enumerate(rewards):
            if str(row) in said:
                values.append(RewardError(f"{self.client.shown}: {str(said[str(row)])[:1000]}"))
            elif reward is None or is_number(reward):
                values.append(None if reward is None else float(reward))
            else:
                given = str(reward)[:100]
                values.append(
                    RewardError(f"{self.client.shown} gave {given} as a reward, which must be a finite number")
                )
        return values


def is_number(value: Any) -> bool:
    """Whether a value read from JSON is a finite number."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def remote(
    url: str,
    *,
    server: Server = "openrlhf",
    labels: str | None = None,
    tokenizer: Any = None,
    query_end: str = "",
    token_env: str | None = None,
    batch_rows: int = 64,
    concurrency: int = 8,
    timeout: float = 60.0,
    deadline: float = 300.0,
    retries: int = 8,
    max_bytes: int = 16_000_000,
    break_after: int = 5,
    cool_down: float = 30.0,
    trust_env: bool = False,
) -> Remote:
    """A reward computed by a server: OpenRLHF's ``serve_rm``, another of its wire format, or ``rlhf-pg reward serve``.

    Args:
        url: the address that takes the rows, such as ``http://127.0.0.1:5000/get_reward``: https, or http on this machine.
        server: ``openrlhf`` reads text; ``rlhf_pg``, which is ``rlhf-pg reward serve``, reads chat messages as they are, so it
            needs no ``tokenizer``, and is sent the completions' token ids too.
        labels: the column that is sent as ``labels``, such as the right answer.
        tokenizer: its chat template turns messages into text; a folder or hub id, or the object.
        query_end: put after each query, such as the end-of-sequence token that a reward model reads its score at.
        token_env: the environment variable that holds the token.
        batch_rows: rows of a request.
        concurrency: requests at once.
        timeout: seconds that a request may take.
        deadline: seconds that all rows of a call may take, retries included.
        retries: further attempts after a connection error, a timeout, or status 408, 425, 429 or 5xx.
        max_bytes: the longest answer that is read.
        break_after: failed requests in a row after which no more are sent for a while.
        cool_down: how long, in seconds; then one request tries.
        trust_env: take proxies and certificates from the environment.

    Returns:
        The reward function, which is asynchronous.

    Raises:
        ConfigError: an argument is out of range, or the address or the token is not usable.
        ModelError: the tokenizer cannot be loaded, or has no chat template.

    Source: OpenRLHF, ``openrlhf/cli/serve_rm.py`` and ``openrlhf/utils/agent.py``.
    """
    if server not in ("openrlhf", "rlhf_pg"):
        raise ConfigError(f"args.server={server!r} must be openrlhf or rlhf_pg")
    if isinstance(batch_rows, bool) or not isinstance(batch_rows, int) or batch_rows < 1:
        raise ConfigError(f"args.batch_rows={batch_rows!r} must be a whole number of at least 1")
    limits = Limits(timeout, deadline, retries, concurrency, max_bytes, break_after, cool_down, trust_env)
    return Remote(
        JsonClient(url, token_of(token_env), limits),
        server=server,
        batch_rows=batch_rows,
        labels=labels,
        tokenizer=template_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer,
        query_end=query_end,
    )
