"""Which protections hold on this machine, found out by trying, and programs run only where the wanted ones do."""

from __future__ import annotations

import functools
import json
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from reward_models.sandbox.process import Limits, Mode, Outcome, SandboxError, launch
from rlhf_pg.errors import ConfigError

REQUIRED = ("network", "files", "others", "descendants")
"""What must hold unless the caller says otherwise: without these a program could reach beyond itself."""
USUAL = Limits()

_SAID = {  # what is said where it holds, and where it does not
    "network": (
        "no network (a virtual machine's vsock aside)",
        "NETWORK IS OPEN: a program can talk to every machine that this one can",
    ),
    "files": (
        "no file can be read but Python's and the system's, none written but in an empty folder",
        "FILES CAN BE READ, and perhaps written: a program sees the file system of this machine",
    ),
    "others": ("no other process can be reached", "OTHER PROCESSES CAN BE KILLED, this one among them"),
    "descendants": ("nothing that a program starts outlives it", "PROCESSES MAY OUTLIVE the program that started them"),
    "processes": ("the number of processes is limited", "THE NUMBER OF PROCESSES IS NOT LIMITED, only their time"),
    "memory": ("the memory of each process is limited", "MEMORY IS NOT LIMITED"),
    "memory_total": (
        "the memory of all processes together is limited",
        "the memory of all processes together is limited only by their number",
    ),
    "disk": (
        "the disk space of all files together is limited",
        "disk space is limited in each file, not in all together",
    ),
}

_PROBE = """
import json, os, socket, sys, time
secret, port, pid = sys.stdin.read().splitlines()
def fails(action):
    try:
        action()
    except (OSError, MemoryError):
        return True
    return False
def fill():
    for number in range(4):
        with open(str(number), "wb") as file:
            file.write(bytes(400_000))
def multiply():
    for _ in range(8):
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
print(json.dumps({
    "network": fails(lambda: socket.create_connection(("127.0.0.1", int(port)), 1)),
    "files": fails(lambda: open(secret)),
    "others": fails(lambda: os.kill(int(pid), 0)),
    "memory": fails(lambda: bytearray(1 << 28)),
    "disk": fails(fill),
    "processes": fails(multiply),
}))
"""
_PROBE_LIMITS = Limits(seconds=5.0, memory=128 << 20, processes=4, file_size=1 << 19, disk=1 << 20)


@dataclass(frozen=True, slots=True)
class Protections:
    """What the sandbox protects from on this machine.

    Limits on time, on one file's size, on open files and on output hold everywhere, and so do the empty environment and
    the empty working folder.

    Args:
        mode: how the sandbox is built: ``root`` (namespaces made by root), ``user`` (in a user namespace), ``bare``.
        network: no connection over IP or to a local socket, the machine itself included. In a virtual machine its channel
            to the host (vsock) belongs to no network namespace and stays open.
        files: no file is visible but the interpreter's and the system's libraries and programs, read-only.
        others: a program cannot signal a process outside.
        descendants: whatever a program started ends with it.
        processes: ``Limits.processes`` holds.
        memory: ``Limits.memory`` holds for each process.
        memory_total: ``Limits.memory`` holds for all processes together.
        disk: ``Limits.disk`` holds.
    """

    mode: Mode
    network: bool
    files: bool
    others: bool
    descendants: bool
    processes: bool
    memory: bool
    memory_total: bool
    disk: bool

    def describe(self) -> list[str]:
        """One line per protection; those that do not hold come first."""
        lines = [(getattr(self, name), said[not getattr(self, name)]) for name, said in _SAID.items()]
        return [line for _, line in sorted(lines, key=lambda pair: pair[0])]

    def require(self, names: Sequence[str]) -> None:
        """Refuse to go on without some protections.

        Args:
            names: of the protections.

        Raises:
            ConfigError: one does not hold here, or has another name.
        """
        known = [field.name for field in fields(self) if field.name != "mode"]
        names = [names] if isinstance(names, str) else names
        if unknown := [name for name in names if name not in known]:
            raise ConfigError(f"require: the sandbox has no protection {unknown[0]!r}; it has {known}")
        if missing := [name for name in names if not getattr(self, name)]:
            raise ConfigError(
                f"require: the sandbox cannot give {missing} here: {'; '.join(_SAID[name][1] for name in missing)}. It "
                "needs Linux, and root or the right to make user namespaces (a container may need to be started with "
                "it). To run model-written code all the same, leave these out of require"
            )


@functools.cache
def protections() -> Protections:
    """Find out once, by a program that tries to break out, what the sandbox protects from on this machine.

    Returns:
        What holds in the best kind of sandbox that can be built here.

    Raises:
        SandboxError: none can be built.
    """
    modes: tuple[Mode, ...] = ("bare",)
    if sys.platform == "linux":
        modes = ("root", "user", "bare") if os.getuid() == 0 else ("user", "bare")
    problems = []
    for mode in modes:
        try:
            return probe(mode)
        except SandboxError as error:
            problems.append(f"{mode}: {error}")
    raise SandboxError("; ".join(problems))


def probe(mode: Mode, python: str | None = None) -> Protections:
    """Try to break out of one kind of sandbox.

    Args:
        mode: the kind.
        python: the interpreter; this one by default.

    Raises:
        SandboxError: that kind cannot be built here.
    """
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        Path(folder).chmod(0o755)
        secret = Path(folder) / "secret"
        secret.write_text("readable by everyone", encoding="utf-8")
        secret.chmod(0o644)
        answers = f"{secret}\n{server.getsockname()[1]}\n{os.getpid()}\n"
        outcome = launch(_PROBE, answers, _PROBE_LIMITS, mode, python)
    if not outcome.ok:
        raise SandboxError(f"a first program ended by {outcome.ending} {outcome.code}: {outcome.stderr[-300:]}")
    own_user = mode == "bare" and os.getuid() == 0
    contained = {"descendants": mode != "bare" or own_user, "memory_total": outcome.counted}
    return Protections(mode, **json.loads(outcome.stdout), **contained)


def run(program: str, *, stdin: str = "", limits: Limits = USUAL, require: Sequence[str] = REQUIRED) -> Outcome:
    """Run a Python program that nobody trusts.

    It gets the standard library, an empty environment, an empty folder that is removed afterwards, and what ``stdin``
    holds. When this returns, the program and all that it started have ended, as far as the protections hold. Any thread
    may call it.

    Args:
        program: its source.
        stdin: what it reads.
        limits: what it may use.
        require: the protections without which nothing is run.

    Returns:
        How it ended and what it printed.

    Raises:
        ConfigError: a required protection does not hold here.
        SandboxError: the sandbox could not be built.
    """
    holding = protections()
    holding.require(require)
    return launch(program, stdin, limits, holding.mode)
