"""The process that builds the sandbox around one program, watches it, and takes it down.

It is run as a script, by its path, and imports nothing but the standard library. Each program gets: this process, which
makes the namespaces; a watcher, which is the first process of the new process namespace, so that the kernel ends every
other one with it; and the program itself, as a user without rights. Without namespaces the first two are one process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import sys
import time

PRIVATE_UIDS = 0x70000000  # above every range that systemd and subuid hand out; the process number is added
NEW_NS, NEW_IPC, NEW_USER, NEW_PID, NEW_NET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
READ_ONLY, NO_SUID, NO_DEV, NO_EXEC, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
DETACH = 2  # of umount2
DEATH_SIGNAL, DUMPABLE, SUBREAPER, NO_NEW_PRIVS = 1, 4, 36, 38  # of prctl
SYSTEM = ("/bin", "/lib", "/lib32", "/lib64", "/usr/bin", "/usr/lib", "/usr/lib32", "/usr/lib64")
FILES = ("/etc/ld.so.cache", "/nix/store", "/gnu/store", "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
TICK = 0.02  # seconds between two looks at the memory
PER_NAMESPACE = (5, 14)  # since this Linux, processes are counted in each user namespace by itself


def call(name: str, *args: object) -> None:
    """A function of the C library that returns -1 when it fails."""
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    if function(*args) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    call("mount", source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())


def show(path: str, root: str) -> None:
    """Make a file or folder of the system visible, read-only, at the same place below another root."""
    place = root + path
    if not os.path.exists(path) or os.path.lexists(place):
        return
    os.makedirs(os.path.dirname(place), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), place)
    elif os.path.isdir(path):
        os.mkdir(place)
        mount(path, place, flags=BIND | RECURSIVE)
        kept = os.statvfs(place).f_flag & NO_EXEC  # a user namespace may not lift it
        mount("", place, flags=REMOUNT | BIND | READ_ONLY | NO_SUID | NO_DEV | kept)
    else:
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY))
        mount(path, place, flags=BIND)


def furnish(root: str, uid: int, gid: int, disk: int) -> None:
    """Mount a root with the interpreter and the system's libraries, and one small folder that can be written."""
    with open(f"{root}/program.py", "rb") as file:
        program = file.read()
    mount("tmpfs", root, "tmpfs", NO_SUID | NO_DEV, f"mode=755,nr_inodes=4096,size={len(program) + (1 << 20)}")
    for path in SYSTEM:
        show(path, root)
    for prefix in (sys.base_prefix, sys.base_exec_prefix):
        for folder in ("bin", "lib", "lib32", "lib64"):
            show(f"{prefix}/{folder}", root)
    for path in FILES:
        show(path, root)
    with open(f"{root}/program.py", "wb") as file:
        file.write(program)
    os.mkdir(f"{root}/tmp")
    mount("tmpfs", f"{root}/tmp", "tmpfs", NO_SUID | NO_DEV, f"mode=700,uid={uid},gid={gid},nr_inodes=4096,size={disk}")
    mount("", root, flags=REMOUNT | BIND | READ_ONLY | NO_SUID | NO_DEV)


def private_uid(folder: str) -> int:
    """A user that owns nothing, one for each program, so that its processes can be counted and ended by user."""
    for uid in (PRIVATE_UIDS + os.getpid(), 60000 + os.getpid() % 5000):
        try:
            os.chown(folder, uid, uid)
        except OSError:
            continue  # a container may have few users
        return uid
    raise OSError("no user id can be taken besides root")


def own_tasks() -> int:
    """Threads of this user on the whole system."""
    total = 0
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{entry}").st_uid == os.getuid():
                total += len(os.listdir(f"/proc/{entry}/task"))
        except OSError:
            continue  # it ended meanwhile
    return total


def limit(kind: str, soft: int, hard: int | None = None) -> None:
    """Set a limit where the system has it; what holds is found out by trying, not here."""
    try:
        resource.setrlimit(getattr(resource, kind), (soft, soft if hard is None else hard))
    except (AttributeError, ValueError, OSError):
        return


def start(python: str, root: str, home: str, uid: int, tasks: int, limits: dict[str, int]) -> None:
    """Become the program."""
    if root:
        os.chroot(root)  # and in a chroot the kernel lets nobody make a user namespace
    os.chdir(home)
    os.setsid()
    os.umask(0o077)
    limit("RLIMIT_CPU", limits["cpu"], limits["cpu"] + 1)
    limit("RLIMIT_AS", limits["memory"])
    limit("RLIMIT_FSIZE", limits["file_size"])
    limit("RLIMIT_NOFILE", limits["open_files"])
    for kind in ("RLIMIT_CORE", "RLIMIT_MEMLOCK", "RLIMIT_MSGQUEUE"):
        limit(kind, 0)
    if tasks >= 0:
        limit("RLIMIT_NPROC", tasks + limits["processes"])
    if uid != os.getuid():
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    if sys.platform == "linux":
        call("prctl", NO_NEW_PRIVS, 1, 0, 0, 0)
    places = {"HOME": home, "TMPDIR": home, "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    program = "/program.py" if root else f"{os.path.dirname(home)}/program.py"
    # Not -I, which would ignore PYTHONHASHSEED: -s -P and this environment isolate as much, and runs can be repeated.
    os.execve(python, [python, "-s", "-P", "-S", "-B", program], places | {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"})


def resident() -> int:
    """Bytes that all processes of this process namespace but its first hold in memory; pages in common count in each."""
    total = 0
    for entry in filter(str.isdigit, os.listdir("/proc")):
        if entry != "1":
            try:
                with open(f"/proc/{entry}/statm", encoding="utf-8") as file:
                    total += int(file.read().split()[1])
            except (OSError, IndexError):
                continue  # it ended meanwhile
    return total * resource.getpagesize()


def watch(child: int, control: int, wake: int, limits: dict[str, int], counts_memory: bool) -> str:
    """Wait for the program's end, or the time's, or the memory's, or for whoever started this to let go."""
    deadline = time.monotonic() + limits["wall_ms"] / 1000
    while True:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return "lost 0"
            if pid == 0:
                break
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
                killed = code == -signal.SIGKILL and usage.ru_utime + usage.ru_stime >= limits["cpu"]
                return f"{'cpu' if killed or code == -signal.SIGXCPU else 'exit'} {code}"
        if time.monotonic() > deadline:
            return "time 0"
        if counts_memory and resident() > limits["memory"]:
            return "memory 0"
        left = max(deadline - time.monotonic(), 0.0)
        ready = select.select([control, wake], [], [], min(left, TICK) if counts_memory else left)[0]
        if control in ready:
            return "stopped 0"
        if wake in ready:
            os.read(wake, 4096)


def end_descendants(uid: int) -> None:
    """Without a process namespace: end whatever the program left, by its user or by descent."""
    if uid != os.getuid():
        killer = os.fork()
        if killer == 0:
            os.setresuid(uid, uid, uid)
            os.kill(-1, signal.SIGKILL)  # every process of this user, this one too
            os._exit(0)
    while True:  # as a subreaper this process is the parent of every orphan
        if uid == os.getuid():
            for entry in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc") else []):
                try:
                    with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                        if int(file.read().rpartition(")")[2].split()[1]) == os.getpid():
                            os.kill(int(entry), signal.SIGKILL)
                except OSError:
                    continue  # it ended meanwhile
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.001)
        except ChildProcessError:
            return


def run_and_watch(root: str, home: str, uid: int, tasks: int, control: int, limits: dict[str, int]) -> None:
    """Start the program, say so, watch it, and say how it ended."""
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    counts_memory = bool(root) and os.getpid() == 1 and os.path.isdir("/proc/1")
    os.write(control, b"started watched\n" if counts_memory else b"started unwatched\n")
    child = os.fork()
    if child == 0:
        try:
            start(sys.executable, root, home, uid, tasks, limits)
        except OSError as error:
            os.write(control, f"failed {error}\n".encode())
        os._exit(127)
    ending = watch(child, control, wake, limits, counts_memory)
    if not root:
        with contextlib.suppress(OSError):  # its group may be empty
            os.killpg(child, signal.SIGKILL)
        end_descendants(uid)
    os.write(control, f"{ending}\n".encode())
    os._exit(0)


def enter(mode: str, folder: str, control: int, limits: dict[str, int]) -> None:
    """Make the namespaces of a mode and start the watcher in them; returns when everything in them has ended."""
    root_user = os.getuid() == 0
    uid = private_uid(folder) if root_user else os.getuid()
    gid = uid if root_user else os.getgid()
    if mode == "bare":
        if sys.platform == "linux":
            call("prctl", SUBREAPER, 1, 0, 0, 0)
        tasks = 0 if root_user else own_tasks() if sys.platform == "linux" else -1
        home = f"{folder}/home"
        os.mkdir(home, 0o700)
        os.chown(home, uid, -1)
        run_and_watch("", home, uid, tasks, control, limits)
    tasks, spaces = 0, NEW_NS | NEW_PID | NEW_NET | NEW_IPC
    if mode == "user":
        if root_user:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            call("prctl", DUMPABLE, 1, 0, 0, 0)  # or /proc/self would be root's
        release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
        tasks = 2 if release >= PER_NAMESPACE else own_tasks()  # this process and the watcher are the user's too
        call("unshare", NEW_USER | spaces)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="utf-8") as file:
                file.write(text)
    else:
        call("unshare", spaces)
    call("prctl", DUMPABLE, 0, 0, 0, 0)
    mount("", "/", flags=RECURSIVE | PRIVATE)
    watcher = os.fork()
    if watcher == 0:
        call("prctl", DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
        furnish(folder, uid, gid, limits["disk"])
        # A container that hides parts of /proc forbids it: then no one counts the memory of all processes.
        with contextlib.suppress(OSError):
            mount("proc", "/proc", "proc", NO_SUID | NO_DEV | NO_EXEC)
        run_and_watch(folder, "/tmp", uid, tasks, control, limits)
    os.waitpid(watcher, 0)
    with contextlib.suppress(OSError):  # whoever started this would remove the folder, unless it was killed
        call("umount2", folder.encode(), DETACH)
        os.unlink(f"{folder}/program.py")
        os.rmdir(folder)


def main() -> None:
    """``launcher.py MODE FOLDER CONTROL KEY=NUMBER...``; CONTROL is a socket: lines go out, and its end means stop."""
    mode, folder, control = sys.argv[1], sys.argv[2], int(sys.argv[3])
    os.set_inheritable(control, False)
    try:
        enter(
            mode, folder, control, {key: int(value) for key, _, value in (arg.partition("=") for arg in sys.argv[4:])}
        )
    except BaseException as error:
        os.write(control, f"failed {type(error).__name__}: {error}\n".encode())
        os._exit(1)
    os._exit(0)


if __name__ == "__main__":
    main()
