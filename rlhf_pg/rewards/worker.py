"""The program of a worker process: it finds one reward function and answers calls of it, until its parent is gone.

It inherits two file descriptors: a connection on which calls come and answers go, and the reading end of a pipe that
closes when the parent ends, however it ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from rlhf_pg.errors import RlhfPgError
from rlhf_pg.rewards.calls import Needs, needs_of, perform
from rlhf_pg.rewards.lookup import find

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker runs."""

    reference: str
    args: Mapping[str, Any]
    factory: bool
    device: str
    memory: int  # bytes of data, at most
    dies_with_thread: bool  # the parent's main thread started it


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker's first word."""

    name: str = ""
    needs: Needs | None = None
    args: Mapping[str, Any] | None = None
    problem: str = ""  # why it cannot work


def serve(calls_descriptor: int, alive_descriptor: int) -> None:
    """Answer calls until the connection closes."""
    for descriptor in (calls_descriptor, alive_descriptor):
        os.set_inheritable(descriptor, False)
    calls = Connection(calls_descriptor)
    try:
        job: Job = calls.recv()
    except EOFError:
        return
    _bind_to_parent(alive_descriptor, job)
    try:
        found = find(job.reference, job.args, job.factory, job.device)
    except RlhfPgError as error:
        calls.send(Ready(problem=str(error)))
        return
    needs = needs_of(found.call)
    calls.send(Ready(found.name, needs, found.args))
    while True:
        try:
            keywords = calls.recv()
        except EOFError:
            return
        answer = perform(found.call, keywords, needs)()
        if answer.failure is not None:
            answer.failure = replace(answer.failure, error=None)  # its class may not exist in the parent
        try:
            calls.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            return


def _bind_to_parent(alive: int, job: Job) -> None:
    """Limit memory, keep descendants findable, and end when the parent ends, in whatever this process is then doing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    if sys.platform == "linux":
        import resource

        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        if job.dies_with_thread:  # the only way to end a call that never gives up the interpreter
            prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (job.memory if hard < 0 else min(job.memory, hard), hard))

    def watch() -> None:
        os.read(alive, 1)
        import psutil

        for child in psutil.Process().children(recursive=True):
            child.kill()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent", daemon=True).start()
