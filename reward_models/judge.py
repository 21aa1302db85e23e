"""A reward that a chat model gives: it scores a completion by a rubric, or compares it with another."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from reward_models.functions.text import Completion, text_of
from reward_models.http import JsonClient, Limits, token_of
from reward_models.remote import is_number
from reward_models.verdicts import Messages, Mode, Question, ResponseFormat, is_trivial
from rlhf_pg.errors import ConfigError, RewardError


class Judge:
    """A reward function that asks a chat model about each row. Made by :func:`judge`."""

    def __init__(
        self,
        client: JsonClient,
        question: Question,
        request: Mapping[str, Any],
        *,
        against: str | None,
        refuse_trivial: bool,
    ) -> None:
        self.__name__ = "judge"
        self.client, self.question, self.request = client, question, request
        self.against, self.refuse_trivial = against, refuse_trivial

    async def __call__(
        self,
        prompts: Sequence[str | Messages],
        completions: Sequence[Completion],
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | RewardError | None]:
        """Judge each row.

        Args:
            prompts: strings or messages.
            completions: as many.
            log_metric: takes shares of the rows: ``judge/unparsed`` (an answer was no verdict), ``judge/trivial`` (not asked
                about), ``judge/cut`` (longer than ``max_chars``), and ``judge/order``
                (which of two was better hung on their order).
            columns: the data's columns, of which ``against`` names the other response.

        Returns:
            From 0 (worst) to 1 (best) per row; None where an answer was no verdict; the error where there was none.

        Raises:
            RewardError: there is no column ``against``.
        """
        if self.against is not None and self.against not in columns:
            raise RewardError(
                f"args.against={self.against!r} is no column of the data, which has {sorted(columns)}; name one of them"
            )
        others = [None] * len(prompts) if self.against is None else columns[self.against]
        until, counts = time.monotonic() + self.client.limits.deadline, Counter[str]()
        rows = zip(prompts, map(text_of, completions), others, strict=True)
        values = await asyncio.gather(*(self._row(*row, until, counts) for row in rows))
        if log_metric is not None and values:
            for name in ("unparsed", "trivial", "cut", *(["order"] if self.question.mode == "compare" else [])):
                log_metric(f"judge/{name}", counts[name] / len(values))
        return list(values)

    async def _row(
        self, prompt: str | Messages, text: str, other: Completion | None, until: float, counts: Counter[str]
    ) -> float | RewardError | None:
        """Judge one row."""
        if self.refuse_trivial and is_trivial(text):
            counts["trivial"] += 1
            return 0.0
        counts["cut"] += len(text) > self.question.max_chars
        try:
            if self.question.mode == "score":
                verdicts = [await self._ask(self.question.messages(prompt, text), until)]
            elif other is None:
                return None
            else:
                second = text_of(other)
                pairs = [(text, second), (second, text)]
                verdicts = await asyncio.gather(
                    *(self._ask(self.question.messages(prompt, *pair), until) for pair in pairs)
                )
        except RewardError as error:
            return error
        if None in verdicts:
            counts["unparsed"] += 1
            return None
        known = [verdict for verdict in verdicts if verdict is not None]
        if self.question.mode == "score":
            low, high = self.question.scale
            return (known[0] - low) / (high - low)
        first, swapped = known[0], 1.0 - known[1]
        counts["order"] += first != swapped
        return (first + swapped) / 2

    async def _ask(self, messages: list[dict[str, str]], until: float) -> float | None:
        """One verdict: a score on the scale, or 1, 0.5 or 0 as A wins, neither does, or B does; None for anything else."""
        answer = await self.client.post({**self.request, "messages": messages}, until)
        try:
            content = answer["choices"][0]["message"]["content"]
        except (TypeError, KeyError, IndexError):
            raise RewardError(f"{self.client.shown} gave no message but {str(answer)[:100]}") from None
        return self.question.read(content)


def judge(
    url: str,
    model: str,
    *,
    rubric: str,
    mode: Mode = "score",
    scale: Sequence[float] = (1, 10),
    against: str | None = None,
    response_format: ResponseFormat = "json_schema",
    temperature: float | None = 0.0,
    max_tokens: int | None = 256,
    request: Mapping[str, Any] | None = None,
    max_chars: int = 20_000,
    refuse_trivial: bool = True,
    token_env: str | None = None,
    concurrency: int = 8,
    timeout: float = 60.0,
    deadline: float = 600.0,
    retries: int = 8,
    trust_env: bool = False,
) -> Judge:
    """A chat model behind an interface like OpenAI's as a reward.

    ``score``: ``(s - low) / (high - low)`` for the score s that it gives. ``compare``: the mean, over both orders, of 1 where the
    completion wins, 0.5 for a tie and 0 where it loses, so that a preference for the first place cancels.

    Args:
        url: the interface's base, such as ``http://127.0.0.1:8000/v1``: https, or http on this machine.
        model: the model's name there.
        rubric: what is good, in words.
        mode: ``score`` or ``compare``.
        scale: the lowest and the highest score.
        against: the column with the response that a completion is compared with.
        response_format: how a server that can is held to the form: ``json_schema``, ``json_object``, or ``text`` (not at
            all). The answer is checked alike in each case.
        temperature: of the judge's sampling; None: the server's own.
        max_tokens: of the judge's answer; None: the server's own.
        request: further fields of the request, such as ``{max_completion_tokens: 2000}``.
        max_chars: longer completions lose their end, and longer prompts their beginning.
        refuse_trivial: a completion without a letter or digit, apart from openings such as "Thought process:" that judges are
            known to reward by themselves, gets 0 and is not asked about.
        token_env: the environment variable that holds the token.
        concurrency: requests at once.
        timeout: seconds that a request may take.
        deadline: seconds that all rows of a call may take, retries included.
        retries: further attempts after a connection error, a timeout, or status 408, 425, 429 or 5xx.
        trust_env: take proxies and certificates from the environment.

    Returns:
        The reward function, which is asynchronous.

    Raises:
        ConfigError: an argument is out of range, or the address or the token is not usable.

    Source: Zheng et al., arXiv 2306.05685 (both orders); Zhao et al., arXiv 2507.08794 (openings).
    """
    choices: dict[str, tuple[Any, tuple[str, ...]]] = {
        "mode": (mode, ("score", "compare")),
        "response_format": (response_format, ("json_schema", "json_object", "text")),
    }
    for name, (value, allowed) in choices.items():
        if value not in allowed:
            raise ConfigError(f"args.{name}={value!r} must be one of {', '.join(allowed)}")
    if len(scale) != 2 or not all(map(is_number, scale)) or not scale[0] < scale[1]:
        raise ConfigError(f"args.scale={list(scale)} must be the lowest and the highest score")
    if (mode == "compare") != (against is not None):
        raise ConfigError("args.against names the column to compare with: give it with mode: compare, and only there")
    if isinstance(max_chars, bool) or not isinstance(max_chars, int) or max_chars < 1:
        raise ConfigError(f"args.max_chars={max_chars!r} must be a whole number of at least 1")
    if not rubric.strip():
        raise ConfigError("args.rubric is empty; say in words what is good")
    low, high = map(float, scale)
    question = Question(rubric.strip(), mode, (low, high), max_chars)
    fields = {
        "model": model,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "response_format": question.response_format(response_format),
    }
    limits = Limits(timeout, deadline, retries, concurrency, trust_env=trust_env)
    return Judge(
        JsonClient(url.rstrip("/") + "/chat/completions", token_of(token_env), limits),
        question,
        {name: value for name, value in fields.items() if value is not None} | dict(request or {}),
        against=against,
        refuse_trivial=refuse_trivial,
    )
