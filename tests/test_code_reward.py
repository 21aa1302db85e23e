"""The reward of programs: tests of every form, and completions that try to pass without solving anything."""

from __future__ import annotations

import json
import time

import pytest

from reward_models.functions.code import code, program_in
from reward_models.sandbox import REQUIRED, SandboxError, protections
from rlhf_pg.errors import ConfigError, RewardError

ADD = "def add(a, b):\n    return a + b\n"
TESTS = [
    "assert add(1, 2) == 3",
    "assert 0 == add(-1, 1)",
    "assert add('a', 'b') == 'ab'",
    "assert add(2, 2) is not None",
]


@pytest.fixture(autouse=True)
def holding():
    if missing := [name for name in REQUIRED if not getattr(protections(), name)]:
        pytest.skip(f"this machine does not give the protections {missing}")


def one(completion, tests, **args):
    (value,) = code([completion], tests=[tests], **args)
    return value


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("print(1)", "print(1)"),
        ("So:\n```python\nprint(1)\n```\nDone.", "print(1)\n"),
        ("```python\na\n```\n```py\nb\n```", "b\n"),
        ("```python\na\n```\nwhich prints\n```\nout\n```\n", "a\n"),
        ("```\na\n```\n```text\nb\n```", "a\n"),
        ("  ```Python\n  a\n  ```", "  a\n"),
        ("```python\nnever closed", "```python\nnever closed"),
        ("", ""),
    ],
)
def test_program_in(text, program):
    assert program_in(text) == program


def test_the_share_of_tests_that_pass():
    wrong = "def add(a, b):\n    return 3\n"
    completions = [
        ADD,
        f"Here:\n```python\n{ADD}```",
        wrong,
        "no program at all",
        [{"role": "assistant", "content": ADD}],
    ]
    assert code(completions, tests=[TESTS] * 5, prompts=["p"] * 5) == [1.0, 1.0, 0.5, 0.0, 1.0]
    assert code([ADD, wrong], tests=[TESTS] * 2, partial=False) == [1.0, 0.0]


def test_rows_without_tests_are_not_ours():
    assert code([ADD] * 4, tests=[None, [], "", TESTS]) == [None, None, None, 1.0]


def test_one_string_is_one_test_and_json_text_a_list():
    assert (
        one(ADD, "import math\nfor n in range(5):\n    assert add(n, n) == 2 * n\nassert math.isclose(add(.1, .2), .3)")
        == 1.0
    )
    assert one(ADD, "assert add(1, 1) == 2\nassert add(1, 1) == 3") == 0.0
    assert one(ADD, json.dumps(TESTS)) == 1.0
    assert one(ADD, "[add(1, 1)].index(2)") == 1.0


def test_text_in_and_text_out():
    program = "a, b = map(int, input().split())\nprint(a + b, ' ')\nprint()"
    tests = [{"stdin": "1 2\n", "stdout": "3"}, {"input": "5 5", "output": "10\n"}, {"stdin": "x y", "stdout": ""}]
    assert one(program, tests) == pytest.approx(2 / 3)  # the last prints what is wanted, and fails
    assert one("print(3)", {"stdin": "1 2", "stdout": "3"}) == 1.0
    assert one("print('3 4')", {"stdin": "", "stdout": "3\n4"}) == 0.0


@pytest.mark.parametrize(
    ("expression", "equal"),
    [
        ("(1, 2.5, 'é', None, True)", "(1, 2.5, 'é', None, True)"),
        ("[1, 2]", "(1, 2)"),
        ("{1: {'a': [1]}, (2, 3): {4}}", "{(2, 3): {4}, 1: {'a': [1]}}"),
        ("frozenset([1])", "{1}"),
        ("{'a': 1}.keys()", "{'a'}"),
        ("__import__('collections').Counter('aab')", "{'a': 2, 'b': 1}"),
        ("__import__('collections').namedtuple('P', 'x y')(1, 2)", "(1, 2)"),
        ("__import__('collections').deque([1])", "[1]"),
        ("__import__('fractions').Fraction(1, 2)", "0.5"),
        ("__import__('decimal').Decimal('0.1')", "0.1"),
        ("__import__('enum').IntEnum('E', 'a').a", "1"),
        ("1", "True"),
        ("True", "1"),
        ("bytearray(b'a')", "b'a'"),
        ("1j * 1j", "-1"),
        ("float('nan')", "0.0"),
        ("range(2)", "[0, 1]"),
        ("10 ** 40", "10000000000000000000000000000000000000000"),
        ("0.1 + 0.2", "0.3"),
        ("'\\udc80'", "'\\udc80'"),
    ],
)
def test_a_value_compared_outside_is_equal_exactly_where_python_says_so(expression, equal):
    assert one(f"value = {expression}", [f"assert value == {equal}"]) == float(eval(expression) == eval(equal))


def test_is_compares_by_identity():
    tests = ["assert value is True", "assert value is None", "assert value is False"]
    assert [one(f"value = {value}", tests) for value in ("True", "1", "None", "0")] == pytest.approx(
        [1 / 3, 0, 1 / 3, 0]
    )


SAYING = 'import os\nsaid = \'{"ready": true}\\n{"passed": true}\\n{"value": 3}\\n\' * 9\n'
FAKES = {
    "an early exit": "import os\nos._exit(0)",
    "an early exit by exception": "raise SystemExit(0)",
    "an exit in the function": "import os\ndef add(a, b): os._exit(0)",
    "a polite exit in the function": "def add(a, b): raise SystemExit(0)",
    "printing what a test prints": SAYING + "print(said)\ndef add(a, b): print(said)",
    "writing to every descriptor": SAYING
    + "for fd in range(1, 30):\n    try: os.write(fd, said.encode())\n    except OSError: pass",
    "closing the channel": "import os\nos.closerange(0, 100)\ndef add(a, b): return 3",
    "an endless loop": "while True: pass",
    "printing without end": "while True: print('x' * 10000)",
    "killing everyone": "import os\nos.kill(os.getppid(), 9)\nos.kill(-1, 9)\nos.kill(os.getpid(), 9)",
    "no compiling": "def add(a, b) return a + b",
    "recursion": "def add(a, b): return add(a, b)",
    "nested without end": "x = []\nx.append(x)\ndef add(a, b): return x",
}


@pytest.mark.parametrize("fake", FAKES.values(), ids=FAKES.keys())
def test_what_does_not_solve_it_gets_nothing(fake):
    assert one(fake, [*TESTS[:3], "import math\nassert math.isclose(add(1, 2), 3)"], seconds=0.5) == 0.0


def test_an_object_that_equals_everything_passes_no_comparison_with_a_literal():
    always = (
        "class A:\n    def __eq__(self, other): return True\n    __hash__ = object.__hash__\ndef add(a, b): return A()"
    )
    assert one(always, TESTS[:3]) == 0.0
    assert one(always, ["value = 3\nassert add(1, 2) == value"]) == 1.0  # what is documented not to hold
    as_int = "class A(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\ndef add(a, b): return A(7)"
    assert one(as_int, TESTS[:3]) == 0.0


def test_the_right_answer_is_not_in_the_sandbox():
    search = (
        "import re, sys\n"
        "def add(a, b):\n"
        "    frame, seen = sys._getframe(), ''\n"
        "    while frame: seen += str(dict(frame.f_locals)); frame = frame.f_back\n"
        "    return int(re.search(r'add\\(7, 8\\) == (\\d+)', seen)[1])\n"
    )
    assert one(search, ["assert add(7, 8) == 987654"]) == 0.0
    assert one(search, ["print()\nassert add(7, 8) == 987654"]) == 1.0  # test code is there to be found


def test_tests_after_one_that_ends_the_process_still_count():
    program = (
        "import os, time\n"
        "def f(n):\n"
        "    if n == 1: os._exit(0)\n"
        "    if n == 3: time.sleep(60)\n"
        "    if n == 4: return [bytearray(1 << 20) for _ in range(1 << 20)]\n"
        "    return n\n"
    )
    begin = time.monotonic()
    assert one(program, [f"assert f({n}) == {n}" for n in range(6)], seconds=1.0, memory_mb=256) == 0.5
    assert time.monotonic() - begin < 6


def test_a_program_that_does_not_let_the_clock_ring_loses_the_rest():
    program = (
        "import signal, time\n"
        "def f(n):\n"
        "    signal.signal(signal.SIGALRM, signal.SIG_IGN)\n"
        "    if n: time.sleep(60)\n"
        "    return n\n"
    )
    assert one(program, [f"assert f({n}) == {n}" for n in (0, 1, 2)], seconds=0.3) == pytest.approx(1 / 3)


def test_code_under_a_main_guard_is_not_started_by_assertions():
    program = ADD + "if __name__ == '__main__':\n    print(add(*map(int, input().split())))"
    assert one(program, [*TESTS, {"stdin": "3 4", "stdout": "7"}]) == 1.0


def test_dataclasses_find_their_module():
    program = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    x: int = 1\n"
    )
    assert one(program, ["assert P(3).x == 3"]) == 1.0


def test_rows_are_scored_in_order_by_several_workers():
    completions = [f"import time\ntime.sleep({0.3 if n == 0 else 0})\nn = {n}" for n in range(6)]
    tests = [[f"assert n == {n}", f"assert n == {n % 2}"] for n in range(6)]
    assert code(completions, tests=tests, workers=3) == [1.0, 1.0, 0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        (5, "the tests are a int"),
        ([5], "test 1 is a int"),
        (["assert True", {"in": "1"}], r"test 2 has the keys \['in'\]"),
        (["assert add(1, 2 == 3"], "test 1 is not Python"),
    ],
)
def test_tests_that_cannot_be_read_fail_their_row_only(tests, said):
    failed, passed = code([ADD, ADD], tests=[tests, TESTS])
    assert isinstance(failed, RewardError)
    with pytest.raises(RewardError, match=said):
        raise failed
    assert passed == 1.0


def test_a_sandbox_that_fails_fails_its_row(monkeypatch):
    def broken(*_, **__):
        raise SandboxError("no more memory")

    monkeypatch.setattr("reward_models.functions.code.run", broken)
    assert isinstance(one(ADD, TESTS), SandboxError)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"no column 'tests'; it has \['checks'\]"):
        code([ADD], checks=[TESTS])
    assert code([ADD], checks=[TESTS], column="checks") == [1.0]
    with pytest.raises(ConfigError, match="no protection 'nothing'"):
        one(ADD, TESTS, require=["nothing"])
    with pytest.raises(ConfigError, match="limit memory must be"):
        one(ADD, TESTS, memory_mb=1)
