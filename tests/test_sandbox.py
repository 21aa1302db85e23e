"""The sandbox, against programs that try to get out of it or to use up the machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import psutil
import pytest

from reward_models.sandbox import REQUIRED, Limits, Protections, SandboxError, protections, run
from reward_models.sandbox.process import launch
from reward_models.sandbox.protections import probe
from rlhf_pg.errors import ConfigError

ROOT = Path(__file__).parents[1]
QUICK = Limits(seconds=3.0, cpu_seconds=1)


@pytest.fixture(autouse=True)
def holding() -> Protections:
    holds = protections()
    if missing := [
        name for name in (*REQUIRED, "processes", "memory", "memory_total", "disk") if not getattr(holds, name)
    ]:
        pytest.skip(f"this machine does not give the protections {missing}")
    return holds


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where sandboxes have their folders, so that it can be seen that none is left."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def source(text: str) -> str:
    return textwrap.dedent(text)


def marked(mark: str) -> list[int]:
    """The processes that have a mark in their command line."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(mark in part for part in process.info["cmdline"] or ()):
            found.append(process.pid)
    return found


def test_a_program_reads_prints_and_ends(temporary):
    outcome = run("import sys\nprint(input()[::-1])\nprint('oops', file=sys.stderr)\nsys.exit(3)", stdin="abc\nrest")
    assert (outcome.ending, outcome.code, outcome.stdout, outcome.stderr) == ("exit", 3, "cba\n", "oops\n")
    assert not outcome.ok
    assert run("print('é' * 3)").stdout == "ééé\n"
    assert run("").ok
    assert list(temporary.iterdir()) == []


def test_the_place_is_empty_and_so_is_the_environment(monkeypatch):
    monkeypatch.setenv("API_TOKEN", "a secret")
    outcome = run("import os\nprint(os.listdir(), os.getcwd() == os.path.expanduser('~'), sorted(os.environ))")
    assert outcome.stdout == f"[] True {['HOME', 'LANG', 'PATH', 'PYTHONHASHSEED', 'PYTHONUTF8', 'TMPDIR']}\n"


def test_runs_can_be_repeated():
    program = "print(list({'a', 'b', 'c', 'd', 'e', 'f', 'g'}), hash('x'))"
    assert run(program).stdout == run(program).stdout


def test_only_the_standard_library_is_there():
    assert run("import json, sqlite3, ctypes").ok
    assert "ModuleNotFoundError" in run("import torch").stderr


def test_an_endless_loop_is_ended_by_its_processor_time():
    begin = time.monotonic()
    outcome = run("while True: pass", limits=QUICK)
    assert (outcome.ending, outcome.code) == ("cpu", None)
    assert time.monotonic() - begin < 3.0


@pytest.mark.parametrize(
    "program",
    [
        "import time; time.sleep(60)",
        "import signal, time\nfor n in set(signal.Signals) - {9, 19}: signal.signal(n, signal.SIG_IGN)\ntime.sleep(60)",
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
        "input_ = open('/dev/zero', 'rb')\nimport time\nprint('waits', flush=True)\ntime.sleep(60)",
    ],
)
def test_waiting_is_ended_by_the_clock(program):
    outcome = run(program, limits=Limits(seconds=0.5))
    assert (outcome.ending, outcome.code) == ("time", None)
    assert outcome.seconds < 2.5


def test_a_fork_bomb_stays_small_and_ends(temporary):
    mark = uuid.uuid4().hex
    bomb = source(f"""
        import os, time
        open("count", "w").close()
        while True:
            try:
                os.fork()
                with open("count", "a") as file:
                    file.write("x")
            except OSError:
                break
        time.sleep(0.3)
        if os.getpid() == 2:
            print("{mark}", os.path.getsize("count"), flush=True)
        time.sleep(60)
    """)
    outcome = run(bomb, limits=Limits(seconds=1.0, processes=6))
    assert outcome.ending == "time"
    said, count = outcome.stdout.split()
    assert said == mark
    assert 0 < int(count) <= 2 * 5  # each fork is written by two
    assert list(temporary.iterdir()) == []
    assert marked("/program.py") == []


def test_threads_count_as_processes():
    program = "import threading, time\nfor _ in range(50): threading.Thread(target=time.sleep, args=(5,), daemon=True).start()"
    assert "can't start new thread" in run(program, limits=QUICK).stderr


def test_a_memory_hog_gets_a_memory_error():
    outcome = run("x = bytearray(1 << 30)", limits=QUICK)
    assert outcome.code == 1
    assert "MemoryError" in outcome.stderr


def test_many_processes_cannot_hold_more_memory_than_one():
    hogs = source("""
        import os, time
        for _ in range(4):
            if os.fork() == 0:
                held = bytearray(b"x") * (60 << 20)
                time.sleep(60)
        time.sleep(60)
    """)
    outcome = run(hogs, limits=Limits(memory=128 << 20, seconds=5.0))
    assert outcome.ending == "memory"


def test_a_gigabyte_is_not_written(temporary):
    program = source("""
        import os
        total, number = 0, 0
        block = bytes(1 << 20)
        while total < 1 << 30:
            with open(str(number), "wb", buffering=0) as file:
                try:
                    while total < 1 << 30:
                        total += file.write(block)
                except OSError as error:
                    why = error.strerror
            if number and not os.path.getsize(str(number)):
                break
            number += 1
        print(total >> 20, number, why)
    """)
    outcome = run(program, limits=Limits(file_size=4 << 20, disk=10 << 20))
    assert outcome.stdout == "10 3 No space left on device\n"
    assert list(temporary.iterdir()) == []


def test_one_file_has_a_limit_of_its_own():
    program = "file = open('a', 'wb', buffering=0)\nprint(file.write(bytes(9 << 20)))\nfile.write(b'x')"
    outcome = run(program, limits=Limits(file_size=4 << 20))
    assert outcome.stdout == f"{4 << 20}\n"
    assert "File too large" in outcome.stderr


def test_no_other_folder_can_be_written_and_nothing_mounted():
    program = source("""
        import os
        for folder in ("/", "/usr/lib", "/dev", "/etc", "/usr", "/bin"):
            try:
                open(folder + "/made", "w")
                print("wrote", folder)
            except OSError:
                pass
        os.remove("/program.py")
    """)
    outcome = run(program)
    assert outcome.stdout == ""
    assert outcome.code == 1
    nested = source("""
        import ctypes
        libc = ctypes.CDLL(None)
        print(libc.unshare(0x10000000), libc.setuid(0), libc.mount(b"", b"/", b"", 32, b""))
    """)
    assert run(nested).stdout == "-1 -1 -1\n"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_printing_without_end_is_cut_and_ended(stream):
    begin = time.monotonic()
    outcome = run(f"import sys\nwhile True: sys.{stream}.write('x' * 1000)", limits=Limits(output=100_000))
    assert (outcome.ending, outcome.code) == ("output", None)
    assert max(len(outcome.stdout), len(outcome.stderr)) == 100_000
    assert time.monotonic() - begin < 5.0


def test_too_much_output_is_seen_even_where_the_program_ends_at_once():
    assert run("print('x' * 50_000)", limits=Limits(output=40_000)).ending == "output"
    assert run("print('x' * 39_999)", limits=Limits(output=40_000)).ok


def test_the_home_folder_is_not_there(tmp_path, monkeypatch):
    secrets = [tmp_path / "secret.txt", Path.home() / f".{uuid.uuid4().hex}"]
    monkeypatch.setenv("HOME", str(tmp_path))
    try:
        for path in secrets:
            path.write_text("a secret", encoding="utf-8")
            path.chmod(0o644)
        program = source(f"""
            import os, sys
            for path in {[str(path) for path in secrets]} + [{str(ROOT / "pyproject.toml")!r}, "/etc/passwd"]:
                try:
                    print(open(path).read())
                except OSError as error:
                    print(type(error).__name__)
            print([name for folder in ("/home", "/root", "/tmp", "/var", "/proc", "/sys", "/mnt")
                   for place, _, names in os.walk(folder) for name in names if not place.startswith(sys.base_prefix)])
        """)
        assert run(program).stdout.splitlines() == ["FileNotFoundError"] * 4 + ["[]"]
    finally:
        secrets[1].unlink()


def test_no_socket_reaches_this_machine():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        name = f"\0{uuid.uuid4().hex}"  # an abstract one belongs to no folder
        local.bind(name)
        local.listen()
        program = source(f"""
            import socket
            for family, kind, address in (
                (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", {server.getsockname()[1]})),
                (socket.AF_INET, socket.SOCK_DGRAM, ("8.8.8.8", 53)),
                (socket.AF_UNIX, socket.SOCK_STREAM, {name!r}),
            ):
                try:
                    socket.socket(family, kind).connect(address)
                    print("connected")
                except OSError as error:
                    print(error.strerror)
        """)
        assert run(program).stdout.splitlines() == [
            "Network is unreachable",
            "Network is unreachable",
            "Connection refused",
        ]
        socket.create_connection(server.getsockname(), 1).close()  # from here it can be reached


def test_nobody_can_be_killed():
    program = source(f"""
        import os
        for pid in (os.getppid(), {os.getpid()}, {os.getppid()}, -1, 1):
            try:
                os.kill(pid, 9)
            except OSError as error:
                print(type(error).__name__)
        print("alive")
    """)
    outcome = run(program)
    assert outcome.stdout.splitlines()[-1] == "alive"
    assert outcome.ok


def test_other_processes_cannot_be_looked_at(monkeypatch):
    monkeypatch.setenv("API_TOKEN", "a secret")
    program = source(f"""
        import os
        for pid in (1, os.getppid(), {os.getpid()}):
            for name in ("environ", "cmdline", "mem", "fd", "root"):
                print(os.path.exists(f"/proc/{{pid}}/{{name}}"))
    """)
    assert set(run(program).stdout.split()) == {"False"}


def test_a_daemon_does_not_outlive_the_program():
    with socket.create_server(("127.0.0.1", 0)):
        mark = f"daemon-{uuid.uuid4().hex}"
        program = source(f"""
            import os, sys, time
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(60)", {mark!r}])
                os._exit(0)
            os.wait()
            time.sleep(0.2)
            print("started", flush=True)
        """)
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(run, program)
            seen = False
            while not future.done():
                seen = seen or bool(marked(mark))
        assert future.result().stdout == "started\n"
        assert seen
        assert marked(mark) == []


def test_closing_every_descriptor_changes_nothing():
    outcome = run("import os\nos.closerange(0, 1000)\nos._exit(0)")
    assert outcome.ok
    assert outcome.stdout == ""
    forged = run(
        "import os\nfor fd in range(3, 100):\n    try: os.write(fd, b'exit 0\\n')\n    except OSError: pass\nos._exit(5)"
    )
    assert forged.code == 5


@pytest.mark.parametrize("way", [signal.SIGKILL, signal.SIGTERM])
def test_when_we_are_killed_the_program_ends_and_its_folder_goes(way, tmp_path):
    script = source(f"""
        import sys
        sys.path.insert(0, {str(ROOT)!r})
        from reward_models.sandbox import Limits, protections, run
        protections()
        print("ready", flush=True)
        run("import time; time.sleep(50)", limits=Limits(seconds=50))
    """)
    settings = {"stdout": subprocess.PIPE, "text": True, "env": os.environ | {"TMPDIR": str(tmp_path)}}
    with subprocess.Popen([sys.executable, "-c", script], **settings) as process:
        assert process.stdout is not None
        process.stdout.readline()
        deadline, inner = time.monotonic() + 5, []
        while len(inner) < 3 and time.monotonic() < deadline:
            inner = psutil.Process(process.pid).children(recursive=True)
            time.sleep(0.01)
        assert len(inner) == 3  # the launcher, the watcher, the program
        process.send_signal(way)
    assert psutil.wait_procs(inner, timeout=3)[1] == []
    assert list(tmp_path.iterdir()) == []


def test_several_at_once_do_not_count_against_each_other():
    program = source("""
        import os, time
        children = [os.fork() for _ in range(2)]
        time.sleep(0.3)
        print("done", flush=True)
        for child in filter(None, children):
            os.waitpid(child, 0)
    """)
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda _: run(program, limits=Limits(processes=4)), range(4)))
    assert [outcome.stdout.count("done") for outcome in outcomes] == [4] * 4


def test_what_a_program_hides_is_removed_all_the_same(temporary):
    program = source("""
        import os
        os.makedirs("a/b")
        open("a/b/c", "w").close()
        os.symlink("/", "a/d")
        os.chmod("a/b", 0)
        os.chmod("a", 0)
    """)
    assert run(program).ok
    assert list(temporary.iterdir()) == []


def test_what_a_program_hides_without_namespaces_is_removed_too(monkeypatch):
    python = other_python()
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        outside = Path(folder) / "outside"
        outside.mkdir(0o755)
        program = (
            f"import os\nos.makedirs('a/b')\nos.symlink({str(outside)!r}, 'a/d')\nos.chmod('a/b', 0)\nos.chmod('a', 0)"
        )
        assert launch(program, "", Limits(), "bare", python).ok
        assert list(Path(folder).iterdir()) == [outside]
        assert outside.stat().st_mode & 0o777 == 0o755


def test_limits_that_cannot_work_are_refused():
    for name, value in (("memory", 1), ("processes", 0), ("seconds", float("nan")), ("output", 1.5), ("disk", True)):
        with pytest.raises(ConfigError, match=f"limit {name} must be"):
            Limits(**{name: value})


def test_a_missing_protection_is_refused_by_name(holding):
    nothing = Protections("bare", **{field.name: False for field in fields(Protections) if field.name != "mode"})
    with pytest.raises(ConfigError, match=r"cannot give \['network', 'files'\] here: NETWORK IS OPEN"):
        nothing.require(["network", "files"])
    nothing.require([])
    with pytest.raises(ConfigError, match="no protection 'net'"):
        run("", require=["net"])
    holding.require(REQUIRED)


def test_what_does_not_hold_is_said_first(holding):
    partly = Protections("bare", False, True, True, True, True, True, True, True)
    assert partly.describe()[0].startswith("NETWORK IS OPEN")
    assert len(partly.describe()) == len(fields(Protections)) - 1
    assert holding.describe()[0].startswith("no network")


def test_a_sandbox_that_cannot_be_built_is_said():
    with pytest.raises(SandboxError, match="could not be built"):
        launch("", "", Limits(), "user", "/bin/false")


def other_python() -> str:
    """An interpreter that any user may run."""
    path = "/usr/bin/python3"
    shown = (
        subprocess.run([path, "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True, text=True)
        if Path(path).exists()
        else None
    )
    if os.getuid() != 0 or shown is None or shown.stdout != "True\n":
        pytest.skip("needs root, and a Python for everyone in /usr/bin")
    return path


def test_without_namespaces_root_still_gives_the_program_a_user_of_its_own():
    python = other_python()
    holds = probe("bare", python)
    assert holds.others
    assert holds.descendants
    assert not holds.network
    assert not holds.files
    daemon = source("""
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(60)
            os._exit(0)
        os.wait()
        print(os.getuid())
    """)
    begin = time.monotonic()
    uid = int(launch(daemon, "", Limits(), "bare", python).stdout)
    assert uid > 1 << 30
    assert [process for process in psutil.process_iter(["uids"]) if process.info["uids"].real == uid] == []
    assert time.monotonic() - begin < 5


def test_a_user_without_rights_has_the_same_protections(tmp_path):
    python = other_python()
    packages = tmp_path / "packages"
    for package in ("rlhf_pg/__init__.py", "rlhf_pg/errors.py", "reward_models/__init__.py", "reward_models/sandbox"):
        source_path, target = ROOT / package, packages / package
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source_path, target) if source_path.is_dir() else shutil.copy(source_path, target)
    script = source("""
        import json, os
        from dataclasses import asdict
        from reward_models.sandbox import Limits, protections, run
        bomb = "import os, time\\nwhile True: os.fork()"
        kill = "import os\\ntry: os.kill(-1, 9)\\nexcept OSError as error: print(type(error).__name__)"
        print(json.dumps([asdict(protections()), run(bomb, limits=Limits(seconds=2)).ending, run(kill).stdout]))
    """)
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(folder) / "packages"
        shutil.copytree(packages, shared)
        Path(folder).chmod(0o755)
        done = subprocess.run(
            [python, "-B", "-c", script],
            user=65534, group=65534, extra_groups=[], cwd="/", env={"PYTHONPATH": str(shared)}, capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    holds, ending, kill = json.loads(done.stdout)
    if holds["mode"] == "bare":
        pytest.skip("users may not make namespaces here")
    assert holds.pop("mode") == "user"
    assert set(holds.values()) == {True}
    assert ending == "exit"
    assert kill == "ProcessLookupError\n"
