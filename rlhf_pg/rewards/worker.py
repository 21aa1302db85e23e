"""The program of a worker process: it finds one reward function and answers calls of it, until its parent is gone.

It inherits two file descriptors: a connection on which calls come and answers go, and the reading end of a pipe that
closes when the parent ends, however it ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from rlhf_pg.errors import RlhfPgError
from rlhf_pg.rewards.calls import Needs, needs_of, perform
from rlhf_pg.rewards.lookup import find

KILLED = 128  # an exit code above it names the signal that ended the worker
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker runs."""

    reference: str
    args: Mapping[str, Any]
    factory: bool
    device: str
    memory: int  # bytes of data, at most


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker's first word."""

    name: str = ""
    needs: Needs | None = None
    args: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    problem: str = ""  # why it cannot work


def serve(calls: int, alive: int) -> None:
    """Run the function in a child, and see to it that nothing is left of it once it, or the parent, is gone.

    The child may be busy in a way that lets nothing else run in it, so that it cannot watch over itself; and what it
    starts may leave its session and lose its parent, and is then this process's child.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    ended, note = os.pipe()
    os.set_blocking(note, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(note)
    for descriptor in (calls, alive):
        os.set_inheritable(descriptor, False)
    worker = os.fork()
    if worker == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in (alive, ended, note):
            os.close(descriptor)
        _answer(Connection(calls))
        return
    os.close(calls)
    while True:
        ready, _, _ = select.select([alive, ended], [], [])
        if alive in ready:
            _leave(1)
        os.read(ended, 4096)
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                if found[0] == worker:
                    code = os.waitstatus_to_exitcode(found[1])
                    _leave(code if code >= 0 else KILLED - code)


def _leave(code: int) -> NoReturn:
    """Kill all that the worker started, and exit."""
    import psutil

    while children := psutil.Process().children(recursive=True):
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)
    os._exit(code)


def _answer(calls: Connection) -> None:
    """Answer calls until the connection closes."""
    try:
        job: Job = calls.recv()
    except (EOFError, ConnectionResetError):
        return
    if sys.platform == "linux":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (job.memory if hard < 0 else min(job.memory, hard), hard))
    try:
        found = find(job.reference, job.args, job.factory, job.device)
    except RlhfPgError as error:
        calls.send(Ready(problem=str(error)))
        return
    needs = needs_of(found.call, found.args if found.ours else None)
    calls.send(Ready(found.name, needs, found.args, found.notes))
    while True:
        try:
            keywords = calls.recv()
        except (EOFError, ConnectionResetError):
            return
        answer = perform(found.call, keywords, needs)()
        if answer.failure is not None:
            answer.failure = replace(answer.failure, error=None)  # its class may not exist in the parent
        try:
            calls.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            return
