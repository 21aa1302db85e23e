"""A reward function in a process of its own, which can be killed and replaced."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import psutil

from rlhf_pg.errors import ConfigError
from rlhf_pg.rewards.calls import Answer, Failure
from rlhf_pg.rewards.worker import KILLED, Job, Ready

START_SECONDS = 600.0  # to import a function, and load what it loads
# Not multiprocessing's spawn, which would import the user's main script again.
_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from rlhf_pg.rewards.worker import serve
serve(int(sys.argv[2]), int(sys.argv[3]))
"""


class Worker:
    """Runs one reward function in a child process, one call at a time.

    The child, and whatever it started, is killed when a call passes its time, when this object goes, and when the
    process that owns it ends in any way.

    Args:
        job: what it runs.
        timeout: seconds a call may take.
    """

    def __init__(self, job: Job, timeout: float) -> None:
        self.job, self.timeout = job, timeout
        self._start()

    def _start(self) -> None:
        calls, theirs = Pipe()
        alive, closes_with_us = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, json.dumps(sys.path), str(theirs.fileno()), str(alive)],
            pass_fds=(theirs.fileno(), alive),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            # Beside the run's own passes, a second pool of threads would slow both.
            env={"OMP_NUM_THREADS": "1", **os.environ},
        )
        theirs.close()
        os.close(alive)
        self._calls: Connection = calls
        self._ready: Ready | None = None
        self._owed: Callable[[], Answer] | None = None  # the last call's answer, until it is taken
        self._end = weakref.finalize(self, _end, self._process, calls, closes_with_us)
        calls.send(self.job)

    def ready(self) -> Ready:
        """The function's name and parameters, once it is found and loaded.

        Raises:
            ConfigError: it cannot be found, or loading it fails, or takes too long.
        """
        if self._ready is None:
            where = f"reward.functions: {self.job.reference!r}"
            answer = self._receive(time.monotonic() + START_SECONDS)
            if isinstance(answer, Failure):
                self.close()
                raise ConfigError(f"{where}: its worker process {answer.reason} while loading it")
            if answer.problem:
                self.close()
                raise ConfigError(answer.problem)
            self._ready = answer
        return self._ready

    def call(self, keywords: dict[str, Any]) -> Callable[[], Answer]:
        """Start a call; calling what is returned waits for it, at most until its time is over."""
        if self._owed is not None and self._end.alive:
            self._owed()  # whoever asked gave up: unread, it would be taken for this call's answer
        if not self._end.alive:
            self._start()
        self.ready()
        started = time.monotonic()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it died; receiving says how
            self._calls.send(keywords)

        @functools.cache
        def result() -> Answer:
            received = self._receive(started + self.timeout)
            self._owed = None
            gone = isinstance(received, Failure)
            answer: Answer = Answer(failure=received, seconds=time.monotonic() - started) if gone else received
            if answer.failure is not None and answer.failure.renew:
                self.close()
            return answer

        self._owed = result
        return result

    def _receive(self, deadline: float) -> Any:
        """What the worker sent, or why it did not."""
        try:
            if not self._calls.poll(max(0.0, deadline - time.monotonic())):
                return Failure("timeout", f"did not return within {self.timeout:g} s and was stopped", renew=True)
            return self._calls.recv()
        except (EOFError, ConnectionResetError):
            code = self._process.wait()
            how = f"was killed by signal {code - KILLED}" if code > KILLED else f"ended with exit code {code}"
            return Failure("died", how, renew=True)

    def close(self) -> None:
        """Kill the process and all that it started. A later call starts a new one."""
        self._end()


def _end(process: subprocess.Popen[bytes], calls: Connection, pipe: int) -> None:
    """Kill a worker and its descendants; they are stopped first, so that none can start another meanwhile."""
    try:
        worker = psutil.Process(process.pid)
        stopped: set[psutil.Process] = set()
        while found := ({worker, *worker.children(recursive=True)} - stopped):
            for one in found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.suspend()
            stopped |= found
        for one in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    except psutil.NoSuchProcess:
        pass
    process.wait()
    calls.close()
    os.close(pipe)
