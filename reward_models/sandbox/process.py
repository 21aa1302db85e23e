"""Run one program in a sandbox of a given kind, read what it prints, and leave nothing of it behind."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from rlhf_pg.errors import ConfigError, RewardError

Mode = Literal["root", "user", "bare"]  # namespaces made by root; made in a user namespace; none
Ending = Literal["exit", "time", "cpu", "memory", "output", "lost"]

_LAUNCHER = str(Path(__file__).with_name("launcher.py"))
_GRACE = 5.0  # seconds that building and taking down a sandbox may take beside the program's own time
_LEAST = {"seconds": 0.01, "cpu_seconds": 1, "memory": 64 << 20, "processes": 1, "open_files": 16, "file_size": 0}


class SandboxError(RewardError):
    """The sandbox itself could not be built: nothing is said about the program."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use.

    Args:
        seconds: wall-clock time.
        cpu_seconds: of each process, whole seconds.
        memory: bytes of each process's address space, and, where the protection ``memory`` holds, of what all
            processes hold together (pages that they share count in each).
        processes: processes and threads at a time, the program itself among them.
        open_files: of each process.
        file_size: bytes of one file.
        disk: bytes of all files together, where the protection ``disk`` holds.
        output: bytes that may be printed, standard output and error together.

    Raises:
        ConfigError: a limit is too low to start Python, or no number.
    """

    seconds: float = 10.0
    cpu_seconds: int = 10
    memory: int = 512 << 20
    processes: int = 8
    open_files: int = 32
    file_size: int = 16 << 20
    disk: int = 32 << 20
    output: int = 1 << 20

    def __post_init__(self) -> None:
        for field in fields(self):
            value, least = getattr(self, field.name), _LEAST.get(field.name, 1)
            wanted = (int, float) if field.name == "seconds" else int
            if not isinstance(value, wanted) or isinstance(value, bool) or not least <= value < 1 << 50:
                kind = "a number" if field.name == "seconds" else "a whole number"
                raise ConfigError(f"the sandbox's limit {field.name} must be {kind}, at least {least}; got {value!r}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a program.

    Args:
        ending: ``exit``: it ended by itself, or by a signal of its own. Otherwise what ended it: ``time``, ``cpu``,
            ``memory`` (of all processes; a single one gets Python's ``MemoryError``), ``output``, or ``lost``: the
            system or the program ended the sandbox.
        code: exit status; negative: the signal that ended it; ``None`` where it did not end by itself.
        stdout: what it printed, at most the limit; bytes that are not UTF-8 are replaced.
        stderr: the same of standard error.
        seconds: wall-clock time, the sandbox's own included.
        counted: whether the memory of all processes together was watched.
    """

    ending: Ending
    code: int | None
    stdout: str
    stderr: str
    seconds: float
    counted: bool

    @property
    def ok(self) -> bool:
        """Whether the program ended by itself with status 0."""
        return self.ending == "exit" and self.code == 0


def launch(program: str, stdin: str, limits: Limits, mode: Mode, python: str | None = None) -> Outcome:
    """Run a program in a sandbox of one kind, whatever that kind protects from.

    Args:
        program: Python source.
        stdin: what it reads.
        limits: what it may use.
        mode: the kind.
        python: the interpreter; this one by default.

    Raises:
        SandboxError: the sandbox could not be built.
    """
    begin = time.perf_counter()
    folder = Path(tempfile.mkdtemp(prefix="rlhf-pg-sandbox-"))
    ours, theirs = socket.socketpair()
    try:
        (folder / "program.py").write_text(program, encoding="utf-8", errors="surrogatepass")
        (folder / "stdin").write_text(stdin, encoding="utf-8", errors="replace")
        numbers = {field.name: getattr(limits, field.name) for field in fields(limits)}
        numbers |= {"cpu": limits.cpu_seconds, "wall_ms": round(limits.seconds * 1000)}
        del numbers["seconds"], numbers["cpu_seconds"], numbers["output"]
        with (folder / "stdin").open("rb") as text:
            (folder / "stdin").unlink()
            python = python or os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)
            options = [f"{name}={number}" for name, number in numbers.items()]
            process = subprocess.Popen(
                [python, "-I", "-S", "-B", _LAUNCHER, mode, str(folder), str(theirs.fileno()), *options],
                stdin=text,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                cwd="/",
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
            )
        theirs.close()
        with process:
            stdout, stderr, said, stopped = _attend(process, ours, limits)
    finally:
        ours.close()
        theirs.close()
        _remove(folder)
    lines = said.decode(errors="replace").splitlines()
    failure = [line for line in lines if line.startswith("failed")]
    if failure or not lines:
        why = failure[0].removeprefix("failed ") if failure else f"its launcher ended early: {stderr[-300:]!r}"
        raise SandboxError(f"the sandbox could not be built: {why}")
    last, _, number = lines[-1].partition(" ")
    ending = stopped or _ENDINGS.get(last, "lost")
    code = int(number) if ending == "exit" else None
    printed, complained = (part.decode("utf-8", errors="replace") for part in (stdout, stderr))
    return Outcome(ending, code, printed, complained, time.perf_counter() - begin, lines[0] == "started watched")


_ENDINGS: dict[str, Ending] = {"exit": "exit", "cpu": "cpu", "time": "time", "memory": "memory"}


def _attend(
    process: subprocess.Popen[bytes], control: socket.socket, limits: Limits
) -> tuple[bytes, bytes, bytes, Ending | None]:
    """Read everything until the launcher and the watcher have ended; make them end when there is too much of it."""
    assert process.stdout is not None
    assert process.stderr is not None
    sources = {
        process.stdout.fileno(): bytearray(),
        process.stderr.fileno(): bytearray(),
        control.fileno(): bytearray(),
    }
    out, err, said = sources.values()
    deadline = time.monotonic() + limits.seconds + _GRACE
    stopped: Ending | None = None
    try:
        with selectors.DefaultSelector() as selector:
            for source in sources:
                os.set_blocking(source, False)
                selector.register(source, selectors.EVENT_READ)
            while stopped is None and control.fileno() in selector.get_map():
                left = deadline - time.monotonic()
                ready = [key.fd for key, _ in selector.select(max(left, 0.0))]
                for source in ready:
                    block = _block(source)
                    sources[source] += block
                    if not block:
                        selector.unregister(source)
                if len(out) + len(err) > limits.output:
                    stopped = "output"
                elif left <= 0:
                    stopped = "lost"
    finally:
        _end(process, control)
    for source, text in sources.items():
        # Where nothing else holds, a process that outlived the program may go on writing: never more than the limit.
        while stopped is None and len(text) <= limits.output and (block := _block(source)):
            text += block
    if stopped is None and len(out) + len(err) > limits.output:
        stopped = "output"
    return bytes(out[: limits.output]), bytes(err[: limits.output]), bytes(said), stopped


def _block(descriptor: int) -> bytes:
    """What can be read now; nothing at the end."""
    try:
        return os.read(descriptor, 1 << 16)
    except (BlockingIOError, ConnectionError):
        return b""


def _end(process: subprocess.Popen[bytes], control: socket.socket) -> None:
    """Let go: the watcher ends everything when it sees that, and the launcher ends after it."""
    with contextlib.suppress(OSError):
        control.shutdown(socket.SHUT_WR)
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


def _remove(folder: Path) -> None:
    """Remove the folder, even where the program took its own right to read it."""
    for place, names, _ in os.walk(folder):
        for path in (Path(place) / name for name in names):
            if not path.is_symlink():  # it may point anywhere
                with contextlib.suppress(OSError):
                    path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
