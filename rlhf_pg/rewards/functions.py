"""A reward function ready to be called on rows, wherever it runs: in this process, or in workers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from rlhf_pg.config.rewards import RewardConfig, RewardFunctionConfig
from rlhf_pg.errors import ConfigError
from rlhf_pg.rewards.calls import Answer, Needs, needs_of, perform
from rlhf_pg.rewards.lookup import Found, find, own_name, runs_in_main
from rlhf_pg.rewards.process import Worker
from rlhf_pg.rewards.worker import Job

Call = Callable[[], Answer]


class RewardFunction(Protocol):
    """What calls a reward function."""

    shares: int  # calls that can go on at once

    def ready(self) -> Found:
        """Its name and arguments, once it is loaded."""

    @property
    def needs(self) -> Needs:
        """Its parameters."""

    def start(self, share: int, keywords: dict[str, Any]) -> Call:
        """Begin a call; calling what is returned waits for its answer."""

    def close(self) -> None:
        """End what it runs in."""


class Here:
    """A function in this process. Nothing can end its calls, and a call is over before the next begins."""

    shares = 1

    def __init__(self, found: Found) -> None:
        self._found, self.needs = found, needs_of(found.call, found.args if found.ours else None)

    def ready(self) -> Found:
        """Its name and arguments."""
        return self._found

    def start(self, share: int, keywords: dict[str, Any]) -> Call:  # noqa: ARG002 -- there is one share
        """Call it; one that is asynchronous goes on meanwhile."""
        return perform(self._found.call, keywords, self.needs)

    def close(self) -> None:
        """Nothing is to be ended."""


class InWorkers:
    """A function in processes of its own, each with a part of the rows."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers, self.shares = workers, len(workers)

    def ready(self) -> Found:
        """Its name and arguments, once each worker has loaded it."""
        all_ready = [worker.ready() for worker in self._workers]
        first = all_ready[0]
        return Found(first.name, _never, first.args or {}, first.notes)

    @functools.cached_property
    def needs(self) -> Needs:
        """Its parameters."""
        needs = self._workers[0].ready().needs
        assert needs is not None, "a worker that is ready says what its function needs"
        return needs

    def start(self, share: int, keywords: dict[str, Any]) -> Call:
        """Send a call to a worker."""
        return self._workers[share].call(keywords)

    def close(self) -> None:
        """Kill the workers and what they started."""
        for worker in self._workers:
            worker.close()


def _never(**_: Any) -> None:
    raise AssertionError("the function is in another process")


def place(entry: Callable[..., Any] | RewardFunctionConfig, config: RewardConfig, device: str) -> RewardFunction:
    """Load a function where its configuration puts it; a worker goes on loading by itself.

    Raises:
        ConfigError: nothing has that name, or it cannot run where it is told to.
    """
    if not isinstance(entry, RewardFunctionConfig):
        if not callable(entry):
            raise ConfigError(f"a reward must be a function, a name or a RewardFunctionConfig, got {entry!r}")
        return Here(Found(own_name(entry), entry, {}))
    if entry.process == "main" or (entry.process == "auto" and runs_in_main(entry.function)):
        if entry.workers > 1:
            raise ConfigError(
                f"reward.functions: workers={entry.workers} of {entry.function!r}, which runs in the run's own process; leave "
                "workers out, or set process: worker"
            )
        return Here(find(entry.function, entry.args, entry.factory, device))
    job = Job(entry.function, entry.args, entry.factory, device, int(config.worker_memory_gb * 1e9))
    return InWorkers([Worker(job, entry.timeout or config.timeout) for _ in range(entry.workers)])


def keywords_for(
    function: RewardFunction, given: Mapping[str, Sequence[Any]], args: Mapping[str, Any], rows: Sequence[int]
) -> dict[str, Any]:
    """The keywords of a call on some rows: fresh lists, so that no function can spoil another's, and its arguments."""
    needs = function.needs
    columns = {name: values for name, values in given.items() if name not in args and name not in needs.options}
    return {
        name: [_copy(values[row]) for row in rows] for name, values in needs.chosen(columns).items()
    } | needs.chosen(args)


def _copy(value: Any) -> Any:
    """A copy of messages and ids; other values are the user's own."""
    if not isinstance(value, list):
        return value
    return [dict(item) if isinstance(item, dict) else item for item in value]
