"""Reward functions in worker processes: killed, replaced, bound to their parent; and which rows a failure costs."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from rlhf_pg.config.rewards import RewardConfig
from rlhf_pg.errors import ConfigError, RewardError
from rlhf_pg.rewards import RewardRunner, text_rollout

TEXTS = [f"text {i}" for i in range(12)]


@pytest.fixture
def make(tmp_path: Path):
    """A runner of one function ``f``, whose source is given; it is closed in the end."""
    made: list[RewardRunner] = []

    def runner(source: str, *, entry: dict[str, Any] | None = None, **config: Any) -> RewardRunner:
        path = tmp_path / f"mine{len(made)}.py"
        path.write_text(textwrap.dedent(source), encoding="utf-8")
        functions = [{"function": f"{path}:f", **(entry or {})}]
        made.append(RewardRunner(RewardConfig.model_validate({"functions": functions, **config})))
        return made[-1]

    yield runner
    for one in made:
        one.close()


def score(runner: RewardRunner, texts: list[str] = TEXTS, group: int = 2) -> list[float | None]:
    scored = runner(text_rollout(["p"] * (len(texts) // group), texts, group_size=group))
    return [s if v else None for s, v in zip(scored.scores.tolist(), scored.valid.tolist(), strict=True)]


def gone(pid: int, seconds: float = 5.0) -> bool:
    """Whether a process has ended, given some time to."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def pid_in(path: Path, seconds: float = 10.0) -> int:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.exists() and path.read_text().strip():
            return int(path.read_text())
        time.sleep(0.02)
    raise AssertionError(f"nothing was written to {path}")


# --- where a function runs ------------------------------------------------------------------------------------------


def test_a_named_function_runs_in_another_process_without_torch(make):
    runner = make(
        """
        import os, sys
        def f(completions, parent=0): return [float(os.getpid() != parent and "torch" not in sys.modules)] * len(completions)
        """,
        entry={"args": {"parent": os.getpid()}},
    )
    assert score(runner) == [1.0] * 12


def test_in_the_main_process_by_choice(make):
    source = "import os\ndef f(completions, parent=0): return [float(os.getpid() == parent)] * len(completions)"
    assert score(make(source, entry={"process": "main", "args": {"parent": os.getpid()}})) == [1.0] * 12
    with pytest.raises(ConfigError, match=r"workers=2 .* runs in the run's own process"):
        make(source, entry={"process": "main", "workers": 2})


def test_workers_share_the_rows_by_whole_groups_and_keep_their_order(make):
    source = """
        import os
        def f(completions, log_extra, log_metric):
            log_extra("pid", [os.getpid()] * len(completions))
            log_metric("rows", len(completions))
            return [float(text.split()[1]) for text in completions]
        """
    runner = make(source, entry={"workers": 3})
    rollout = text_rollout(["p"] * 4, TEXTS, group_size=3)
    heard: dict[str, float] = {}
    scored = runner(rollout, heard.__setitem__)
    assert scored.scores.tolist() == [float(i) for i in range(12)]
    pids = scored.extras["pid"]
    assert len(set(pids)) == 3
    assert [len(set(pids[row : row + 3])) for row in range(0, 12, 3)] == [1] * 4
    assert heard["rows"] == pytest.approx((3 * 3 + 3 * 3 + 6 * 6) / 12)


def test_an_asynchronous_function_and_one_that_returns_tensors(make):
    source = """
        import asyncio, numpy
        async def f(completions):
            await asyncio.sleep(0.01)
            return numpy.arange(len(completions), dtype="float32")
        """
    assert score(make(source)) == [float(i) for i in range(12)]


def test_user_code_finds_what_the_run_finds_and_its_state_lasts(make, tmp_path, monkeypatch):
    (tmp_path / "beside.py").write_text("calls = []")
    monkeypatch.syspath_prepend(str(tmp_path))
    source = """
        import beside
        def f(completions):
            beside.calls.append(1)
            return [float(len(beside.calls))] * len(completions)
        """
    runner = make(source)
    assert [score(runner)[0] for _ in range(3)] == [1.0, 2.0, 3.0]


def test_a_main_script_without_a_guard_is_not_run_again(tmp_path):
    """multiprocessing's spawn would import it in each worker."""
    (tmp_path / "mine.py").write_text("def f(completions): return [1.0] * len(completions)")
    script = tmp_path / "script.py"
    script.write_text(
        "print('once')\nfrom rlhf_pg.rewards import RewardRunner, text_rollout\n"
        "from rlhf_pg.config.rewards import RewardConfig\n"
        "print(RewardRunner(RewardConfig(), ['mine.py:f'])(text_rollout(['p'], ['a'])).scores.tolist())\n"
    )
    run = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.split("\n") == ["once", "[1.0]", ""]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import nothing_of_that_name", "cannot be imported: ModuleNotFoundError"),
        ("def g(): pass", "has no function 'f'"),
        ("import os; os._exit(3)", "its worker process ended with exit code 3 while loading it"),
    ],
)
def test_a_function_that_cannot_be_loaded_is_told_at_the_start(make, source, message):
    with pytest.raises(ConfigError, match=message):
        make(source)


# --- failures, and the rows that they cost --------------------------------------------------------------------------

FAILING = {
    "raises": 'raise ValueError("no such thing")',
    "hangs": "time.sleep(1000)",
    "hangs for good": "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n                while True: pass",
    "never lets go of the interpreter": "re.match('(a+)+b', 'a' * 64)",
    "dies": "os._exit(7)",
    "is killed": "os.kill(os.getpid(), signal.SIGSEGV)",
    "exits": "sys.exit('bye')",
    "eats memory": "keep.append(bytearray(10**12))",
    "an infinite value": 'return [float("inf") if "7" in text else 1.0 for text in completions]',
    "a word": 'return ["good" if "7" in text else 1.0 for text in completions]',
    "says so": 'return [RewardError("the server is gone") if "7" in text else 1.0 for text in completions]',
}
SAID = {
    "raises": "raised ValueError: no such thing",
    "hangs": "did not return within 0.5 s and was stopped",
    "hangs for good": "did not return within 0.5 s and was stopped",
    "never lets go of the interpreter": "did not return within 0.5 s and was stopped",
    "dies": "ended with exit code 7",
    "is killed": "was killed by signal 11",
    "exits": "ended with exit code 1",
    "eats memory": "raised MemoryError",
    "an infinite value": "returned inf, where every value must be a finite number",
    "a word": "returned 'good', where every value must be a finite number",
    "says so": "failed: the server is gone",
}


def failing(kind: str) -> str:
    return f"""
        import os, re, signal, sys, time
        from rlhf_pg.errors import RewardError
        keep = []
        def f(completions):
            if any("7" in text for text in completions):
                {FAILING[kind]}
            return [1.0] * len(completions)
        """


@pytest.mark.parametrize("kind", FAILING)
def test_only_the_row_that_a_function_fails_on_is_lost(make, kind, caplog):
    runner = make(failing(kind), timeout=0.5, on_error="unscorable")
    heard: dict[str, float] = {}
    rollout = text_rollout(["p"] * 6, TEXTS, group_size=2)
    with caplog.at_level(logging.WARNING):
        scored = runner(rollout, heard.__setitem__)
    assert [row for row in range(12) if not scored.valid[row]] == [7]
    assert scored.scores.tolist() == [1.0] * 7 + [0.0] + [1.0] * 4
    assert heard["rewards/f/failed"] == 1.0
    assert len(caplog.records) == 1
    assert f"'f' {SAID[kind]}" in caplog.text
    assert "row 7 (prompt 'p', completion 'text 7')" in caplog.text
    assert score(runner, ["fine"] * 4) == [1.0] * 4  # and it goes on


@pytest.mark.parametrize("kind", FAILING)
def test_by_default_a_failure_stops_with_the_function_and_the_row(make, kind):
    with pytest.raises(RewardError, match="in row 7") as caught:
        score(make(failing(kind), timeout=0.5))
    assert f"'f' {SAID[kind]}" in str(caught.value)


def test_up_to_a_share_of_rows_may_fail_and_one_row_always(make):
    source = """
        def f(completions):
            if any(text.startswith("bad") for text in completions):
                raise ValueError
            return [1.0] * len(completions)
        """
    runner = make(source, on_error="unscorable", max_unscorable=0.25)
    assert score(runner, ["bad", "good", "bad", *["good"] * 5]) == [None, 1.0, None] + [1.0] * 5
    with pytest.raises(RewardError, match=r"row 3 of 8 .*more than reward.max_unscorable=0.25 allows"):
        score(runner, ["bad"] * 3 + ["good"] * 5)
    assert score(runner, ["bad", "good"]) == [None, 1.0]


def test_a_wrong_count_is_no_matter_of_rows(make):
    """Called on each row alone, a function that returns one value would pass."""
    with pytest.raises(RewardError, match="returned 1 value for 12 rows"):
        score(make("def f(completions): return [1.0]"))
    with pytest.raises(RewardError, match="max_unscorable"):
        score(make("def f(completions): return [1.0]", on_error="unscorable"))


def test_a_function_that_fails_on_all_rows_together_only(make):
    source = """
        import time
        def f(completions):
            time.sleep(0.1 * len(completions))
            return [1.0] * len(completions)
        """
    with pytest.raises(RewardError, match=r"within 0.6 s .* called with 12 rows.* raise reward.timeout"):
        score(make(source, timeout=0.6))
    assert score(make(source, on_error="unscorable", timeout=0.6)) == [1.0] * 12


def test_an_answer_that_nobody_took_is_not_the_next_calls(tmp_path):
    """One function fails and ends the call while another still works: its answer must not be read for later rows."""
    path = tmp_path / "both.py"
    path.write_text(
        "import time\n"
        "def fails(completions):\n"
        "    if 'bad' in completions: raise ValueError\n"
        "    return [0.0] * len(completions)\n"
        "def chars(completions):\n"
        "    time.sleep(0.2 if 'bad' in completions else 0)\n"
        "    return [float(len(text)) for text in completions]\n",
        encoding="utf-8",
    )
    runner = RewardRunner(RewardConfig(functions=(f"{path}:fails", f"{path}:chars")))
    with pytest.raises(RewardError, match="'fails' raised ValueError"):
        score(runner, ["bad", "x"])
    abandoned = runner.start(text_rollout(["p"], ["four"]))
    assert score(runner, ["a", "bbb"]) == [1.0, 3.0]
    assert abandoned.result().scores.tolist() == [4.0]
    runner.close()


def test_what_a_worker_gives_needs_none_of_its_classes(make):
    source = """
        from rlhf_pg.errors import RewardError
        class Mine(RewardError): pass
        class Note:
            def __str__(self): return "note"
        def f(completions, log_extra):
            log_extra("note", [Note(), 1.5, {"a": Note}])
            return [Mine("no"), 1.0, 2.0]
        """
    scored = make(source, on_error="unscorable")(text_rollout(["p"] * 3, ["a", "b", "c"]))
    assert scored.valid.tolist() == [False, True, True]
    assert scored.extras["note"][:2] == ["note", 1.5]
    assert "Note" in scored.extras["note"][2]


def test_its_own_time_limit(make):
    runner = make("import time\ndef f(completions): time.sleep(9)", entry={"timeout": 0.3})
    start = time.monotonic()
    with pytest.raises(RewardError, match=r"within 0.3 s"):
        score(runner, ["a"], 1)
    assert time.monotonic() - start < 5


def test_what_leaks_is_given_a_new_process(make):
    source = """
        keep = []
        def f(completions):
            keep.append(bytearray(3 * 10**7))
            return [float(len(keep))] * len(completions)
        """
    runner = make(source, worker_memory_gb=0.2, on_error="unscorable")
    assert [score(runner, ["a"], 1)[0] is not None for _ in range(12)].count(False) <= 3
    assert score(runner)[0] is not None


def test_answers_larger_than_a_pipe_do_not_stall(make):
    source = "def f(completion_ids): return [[0.5] * len(ids) for ids in completion_ids]"
    rollout = text_rollout(["p"] * 4, ["w " * 50_000] * 4)
    assert make(source)(rollout).token_rewards.sum() == 100_000


# --- no process stays -----------------------------------------------------------------------------------------------

SPAWNS = """
    import os, subprocess, sys, time
    def f(completions, note=""):
        # A child that leaves the session, whose own parent is gone.
        program = (
            "import os, sys, time\\nif os.fork(): os._exit(0)\\nos.setsid()\\n"
            "open(sys.argv[1], 'w').write(str(os.getpid()))\\ntime.sleep(1000)"
        )
        subprocess.run([sys.executable, "-c", program, note])
        time.sleep(1000)
    """


def test_what_a_call_started_ends_with_it(make, tmp_path):
    note = tmp_path / "pid"
    runner = make(SPAWNS, timeout=1.5, entry={"args": {"note": str(note)}})
    with pytest.raises(RewardError, match="did not return"):
        score(runner, ["a"], 1)
    assert gone(pid_in(note))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_outlives_a_run_that_is_killed(tmp_path, how):
    (tmp_path / "mine.py").write_text(textwrap.dedent(SPAWNS))
    source = """
        from rlhf_pg.rewards import RewardRunner, text_rollout
        from rlhf_pg.config.rewards import RewardConfig
        entry = {"function": "mine.py:f", "args": {"note": "pid"}}
        RewardRunner(RewardConfig(functions=(entry,)))(text_rollout(["p"], ["a"]))
        """
    run = subprocess.Popen([sys.executable, "-c", textwrap.dedent(source)], cwd=tmp_path)
    grandchild = pid_in(tmp_path / "pid", 30)
    workers = [child.pid for child in psutil.Process(run.pid).children()]
    assert workers
    run.send_signal(how)
    run.wait()
    assert all(gone(pid) for pid in [*workers, grandchild])


def test_a_worker_that_holds_the_interpreter_does_not_outlive_its_parent(tmp_path):
    if sys.platform != "linux":
        pytest.skip("only Linux ends a process with its parent while it holds the interpreter")
    (tmp_path / "mine.py").write_text(
        "import os, re\ndef f(completions):\n    open('pid', 'w').write(str(os.getpid()))\n    re.match('(a+)+b', 'a' * 64)\n"
    )
    source = (
        "from rlhf_pg.rewards import RewardRunner, text_rollout\nfrom rlhf_pg.config.rewards import RewardConfig\n"
        "RewardRunner(RewardConfig(), ['mine.py:f'])(text_rollout(['p'], ['a']))\n"
    )
    run = subprocess.Popen([sys.executable, "-c", source], cwd=tmp_path)
    worker = pid_in(tmp_path / "pid", 30)
    time.sleep(0.2)
    run.kill()
    run.wait()
    assert gone(worker)


def test_a_runner_that_goes_takes_its_workers_with_it(make):
    runner = make("def f(completions): return [1.0] * len(completions)")
    score(runner)
    workers = [child.pid for child in psutil.Process().children()]
    assert workers
    runner.close()
    assert all(gone(pid) for pid in workers)
    assert score(runner) == [1.0] * 12  # a later call starts anew


# --- meanwhile ------------------------------------------------------------------------------------------------------


def test_functions_run_at_the_same_time_as_each_other_and_as_the_caller(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import time\ndef f(completions):\n    time.sleep(0.6)\n    return [1.0] * len(completions)\n"
    )
    entry = {"function": f"{tmp_path}/mine.py:f"}
    runner = RewardRunner(RewardConfig(functions=(entry, entry, entry)))
    start = time.monotonic()
    scoring = runner.start(text_rollout(["p"], ["a"]))
    time.sleep(0.5)
    assert scoring.result().scores.tolist() == [3.0]
    assert time.monotonic() - start < 1.1
