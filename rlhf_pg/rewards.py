"""Run reward functions over a rollout and add up what they say: ``Rollout -> ScoredRollout``.

A reward function is ``fn(prompts, completions, completion_ids, **columns)``, called with keywords, once per rollout.
Clipping, normalisation and the penalty for a missing end are applied later, to the table of all processes.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import torch

from rlhf_pg.config.sections import RewardConfig, RewardFunctionConfig
from rlhf_pg.errors import ConfigError, RewardError
from rlhf_pg.reward_lookup import BUILTINS, RewardFunction, parameters_of, resolve, takes_any
from rlhf_pg.reward_values import LARGEST, raised, read_result, show_row
from rlhf_pg.types import Rollout, ScoredRollout

__all__ = ["BUILTINS", "RewardFunction", "RewardRunner", "resolve"]


class RewardRunner:
    """Calls every reward function on a rollout and combines their values into one score per row.

    ``score_i = sum of weight_f * value_f(i)`` over the functions f that could score row i. A function of weight 0 is
    measured and decides nothing. Per-token rewards are summed in the same way into ``token_rewards`` and are not in
    ``scores``: a row's total is ``scores[i] + token_rewards[i].sum()``.

    Args:
        config: the section ``reward``.
        functions: callables, names or configurations that replace ``config.functions``.
        device: where reward models run.

    Raises:
        ConfigError: there is no function, none has a weight, or one cannot be found.
    """

    def __init__(
        self,
        config: RewardConfig,
        functions: Sequence[Callable[..., Any] | str | RewardFunctionConfig] | None = None,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        given = config.functions if functions is None else functions
        found = [resolve(function, device) for function in given]
        if not any(function.weight for function in found):
            problem = "every function has weight 0" if found else "there is no reward function"
            raise ConfigError(f"reward.functions: {problem}, so nothing would be maximised; give one a weight")
        self.names: tuple[str, ...] = _unique([function.name for function in found])
        self._functions = found

    def __call__(self, rollout: Rollout, log: Callable[[str, float], None] | None = None) -> ScoredRollout:
        """Score each row.

        Args:
            rollout: B completions.
            log: takes ``rewards/<name>/unscorable`` (share of rows), ``rewards/<name>/nan`` (rows scored NaN), and what
                functions report through TRL's ``log_metric``.

        Returns:
            The scores, on the rollout's device.

        Raises:
            RewardError: a function raised, lacks a column, or returned something that is not a reward per row.
        """
        rows, columns = rollout.response_mask.shape
        scores = torch.zeros(rows, dtype=torch.float64)
        valid = torch.zeros(rows, dtype=torch.bool)
        token_rewards = torch.zeros(rows, columns, dtype=torch.float64)
        components = {}
        results = self._results(rollout, log)
        for name, function, result in zip(self.names, self._functions, results, strict=True):
            read = read_result(result, name, rollout)
            values = torch.tensor(read.values, dtype=torch.float64)
            scorable = ~values.isnan()
            components[name] = values.float().to(rollout.response_mask.device)
            if function.weight:
                valid |= scorable
            if read.tokens is None:
                scores += function.weight * values.nan_to_num()
            for row, tokens in enumerate(read.tokens or ()):
                token_rewards[row, : len(tokens)] += function.weight * torch.tensor(tokens, dtype=torch.float64)
            if log is not None:
                log(f"rewards/{name}/unscorable", 1.0 - scorable.double().mean().item())
                log(f"rewards/{name}/nan", float(read.nans))
        too_large = (scores.abs() + token_rewards.abs().sum(1)) > LARGEST
        if too_large.any():
            row = int(too_large.int().argmax())
            raise RewardError(f"the weighted sum of the rewards is too large for float32 in {show_row(rollout, row)}")
        device = rollout.response_mask.device
        return ScoredRollout(
            rollout, scores.float().to(device), components, valid.to(device), token_rewards.float().to(device)
        )

    def _results(self, rollout: Rollout, log: Callable[[str, float], None] | None) -> list[Any]:
        """What each function returned; the asynchronous ones run together."""
        results: list[Any] = []
        try:
            for name, function in zip(self.names, self._functions, strict=True):
                keywords = _keywords(name, function, rollout, log)
                try:
                    results.append(function.call(**keywords))
                except Exception as error:
                    raise raised(name, error, rollout) from error
        except RewardError:
            for result in results:
                if inspect.iscoroutine(result):
                    result.close()  # never to be awaited, and said so: no warning
            raise
        waiting = [row for row, result in enumerate(results) if inspect.isawaitable(result)]
        for row, outcome in zip(waiting, _await_all([results[row] for row in waiting]), strict=True):
            if isinstance(outcome, BaseException):
                raise raised(self.names[row], outcome, rollout) from outcome
            results[row] = outcome
        return results


def _keywords(
    name: str, function: RewardFunction, rollout: Rollout, log: Callable[[str, float], None] | None
) -> dict[str, Any]:
    """The keywords of one call, in lists and messages of its own, so that no function can spoil another's.

    A function without ``**kwargs`` gets what it names. TRL's ``log_metric`` is given to a function that names it and
    ``log_extra`` only to one that requires it: extra columns are not kept.
    """
    batch, size = rollout.prompts, rollout.group_size
    chat = [isinstance(prompt, list) for prompt in batch.prompts]
    given: dict[str, Any] = {key: [v for v in values for _ in range(size)] for key, values in batch.columns.items()}
    given["prompts"] = [_copy(prompt) for prompt in batch.prompts for _ in range(size)]
    given["completions"] = [
        [{"role": "assistant", "content": text}] if chat[row // size] else text
        for row, text in enumerate(rollout.texts)
    ]
    lengths = rollout.lengths.tolist()
    given["completion_ids"] = [ids[:length] for ids, length in zip(rollout.response_ids.tolist(), lengths, strict=True)]
    given |= function.args
    parameters = parameters_of(function.call)
    if parameters is None:
        return given
    required = [
        key
        for key, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    if "log_metric" in parameters:
        given["log_metric"] = log or _discard
    if "log_extra" in required:
        given["log_extra"] = _discard
    for key in required:
        if key not in given:
            raise RewardError(
                f"reward function {name!r} needs {key!r}, which is neither a column of the data "
                f"({sorted(batch.columns)}) nor in its args ({sorted(function.args)}); rename the column or give the "
                "argument"
            )
    return given if takes_any(parameters) else {key: value for key, value in given.items() if key in parameters}


def _copy(prompt: Any) -> Any:
    return [dict(message) for message in prompt] if isinstance(prompt, list) else prompt


def _discard(*_: object) -> None:
    """Where a function wants to log and nobody listens."""


def _await_all(waiting: Sequence[Awaitable[Any]]) -> list[Any]:
    """What each gave or raised, all awaited at once."""
    if not waiting:
        return []

    async def gather() -> list[Any]:
        return await asyncio.gather(*waiting, return_exceptions=True)

    future = asyncio.run_coroutine_threadsafe(gather(), _event_loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


@functools.cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """One loop, kept in a thread.

    In a notebook the main thread's loop runs already, and a client that a function keeps between calls stays bound to
    the loop of its first.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="reward-functions", daemon=True).start()
    return loop


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    """The same names, the second ``vader`` as ``vader_2``."""
    taken: list[str] = []
    for name in names:
        number = 2
        free = name
        while free in taken:
            free = f"{name}_{number}"
            number += 1
        taken.append(free)
    return tuple(taken)
