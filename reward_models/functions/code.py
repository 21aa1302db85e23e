"""A reward of programs: the share of a column's tests that the completion's code passes, run only in the sandbox."""

from __future__ import annotations

import ast
import contextlib
import json
import math
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import reward_models.sandbox.tester
from reward_models.functions.text import Completion, text_of
from reward_models.sandbox import REQUIRED, Limits, protections, run
from rlhf_pg.errors import RewardError

_FENCED = re.compile(r"^[ \t]*```([^\n`]*)\n(.*?)^[ \t]*```", re.MULTILINE | re.DOTALL)
_TESTER = Path(reward_models.sandbox.tester.__file__).read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class _Test:
    """One test: text to feed and to expect, an expression and its value, or test code."""

    source: str  # the standard input, the expression, or the code
    kind: str  # "printed", "equal", "same" (by identity: True, False, None) or "code"
    expected: Any = None


def code(
    completions: Sequence[Completion],
    *,
    column: str = "tests",
    partial: bool = True,
    seconds: float = 5.0,
    memory_mb: int = 512,
    workers: int | None = None,
    require: Sequence[str] = REQUIRED,
    **columns: Any,
) -> list[float | RewardError | None]:
    """The share of a row's tests that the completion's program passes: ``passed / tests``.

    The program is the last block fenced as Python, else the last fenced without a language, else the whole text. It has
    the standard library only. A row's tests are one of:

    - a list of strings of test code, such as ``"assert add(1, 2) == 3"``: the program is run once, then each in turn;
    - one string of test code, which is one test;
    - a list of ``{stdin, stdout}`` (or ``{input, output}``): the program is run for each, and must print that text, up
      to white space at the ends of lines and of the text, and end with status 0;
    - JSON text of such a list.

    What a program cannot fake: of ``{stdin, stdout}`` and of ``assert EXPRESSION == LITERAL`` (or ``is True``, ``False``,
    ``None``) the right answer never enters the sandbox; the expression's value is sent out and compared outside, so that
    neither an early exit, nor printing, nor an object that equals everything passes. Any other test code runs in the
    program's own process: an early exit and printing do not pass it, because a test counts only once a random token says
    so, but an object that equals everything does, and so does a program that searches its interpreter for the token.

    Args:
        completions: strings, or chat messages whose last one is read.
        column: the column that holds the tests.
        partial: false: 1 if every test passes, else 0.
        seconds: wall-clock time of each test, and of the program before the first one.
        memory_mb: MiB that a program may hold.
        workers: programs that run at a time; by default one per processor that this process may use.
        require: the sandbox's protections without which nothing is run: see ``reward_models.sandbox.Protections``.
        columns: the data's columns, each a list with one value per completion.

    Returns:
        From 0 to 1; ``None`` where the row has no tests; a ``RewardError`` where the tests cannot be read or the sandbox
        failed.

    Raises:
        ValueError: the data has no such column.
        ConfigError: a required protection does not hold on this machine, or a limit is too low.
    """
    if column not in columns:
        raise ValueError(
            f"the data has no column {column!r}; it has {sorted(columns)}: name the one with the tests in args.column"
        )
    limits = Limits(seconds=seconds, cpu_seconds=math.ceil(seconds) + 1, memory=memory_mb << 20)
    protections().require(require)  # before the threads: it is found out once

    def score(completion: Completion, value: Any) -> float | RewardError | None:
        try:
            tests = _read_tests(value)
            if not tests:
                return None
            passed = _passed(program_in(text_of(completion)), tests, limits, require)
        except RewardError as error:
            return error
        return passed / len(tests) if partial else float(passed == len(tests))

    rows = list(zip(completions, columns[column], strict=True))
    with ThreadPoolExecutor(workers or _processors()) as pool:
        return list(pool.map(lambda row: score(*row), rows))


def start_notes(args: Mapping[str, Any]) -> list[str]:
    """What a run that uses this reward says at its start: which protections hold here.

    Args:
        args: of the reward.

    Raises:
        ConfigError: a required protection does not hold on this machine.
    """
    protections().require(args.get("require", REQUIRED))
    return ["Programs run in a sandbox; its protections on this machine:", *protections().describe()]


def program_in(text: str) -> str:
    """The program that a text presents: its last block fenced as Python, else its last without a language, else all.

    Args:
        text: of a completion.
    """
    blocks: list[tuple[str, str]] = [(language.strip().lower(), body) for language, body in _FENCED.findall(text)]
    for wanted in (("python", "py", "python3"), ("",)):
        found = [body for language, body in blocks if language in wanted]
        if found:
            return found[-1]
    return text


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read_tests(value: Any) -> list[_Test]:
    """A row's tests; ``[]`` where it has none."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(ValueError):  # test code may begin with a bracket
            value = json.loads(value)
    if value is None or value == "":
        return []
    given = [value] if isinstance(value, str | dict) else value
    if not isinstance(given, list | tuple):
        raise RewardError(
            f"the tests are a {type(value).__name__}; they must be strings of test code, or of stdin, stdout"
        )
    return [_read_test(test, number) for number, test in enumerate(given, 1)]


def _read_test(test: Any, number: int) -> _Test:
    if isinstance(test, dict):
        for fed, printed in (("stdin", "stdout"), ("input", "output")):
            if isinstance(test.get(fed), str) and isinstance(test.get(printed), str):
                return _Test(test[fed], "printed", test[printed])
        raise RewardError(f"test {number} has the keys {sorted(test)}; it must have stdin and stdout, both strings")
    if not isinstance(test, str):
        raise RewardError(
            f"test {number} is a {type(test).__name__}; it must be a string of test code, or {{stdin, stdout}}"
        )
    try:
        return _kept_outside(ast.parse(test)) or _Test(test, "code")
    except (SyntaxError, ValueError) as error:
        raise RewardError(f"test {number} is not Python: {error}") from error


def _kept_outside(tree: ast.Module) -> _Test | None:
    """The test as an expression and its value, if it is ``assert EXPRESSION == LITERAL`` or the other way round."""
    match tree.body:
        case [ast.Assert(test=ast.Compare(left=left, ops=[ast.Eq() | ast.Is() as operator], comparators=[right]))]:
            pass
        case _:
            return None
    for expression, literal in ((left, right), (right, left)):
        try:
            expected = ast.literal_eval(literal)
        except (ValueError, TypeError, SyntaxError):
            continue
        if isinstance(operator, ast.Eq) or expected is None or isinstance(expected, bool):
            return _Test(ast.unparse(expression), "equal" if isinstance(operator, ast.Eq) else "same", expected)
    return None


def _passed(program: str, tests: Sequence[_Test], limits: Limits, require: Sequence[str]) -> int:
    """How many tests a program passes."""
    fed = [test for test in tests if test.kind == "printed"]
    passed = sum(_prints(program, test, limits, require) for test in fed)
    rest = [test for test in tests if test.kind != "printed"]
    while rest:
        answers, alive = _answers(program, rest, limits, require)
        passed += sum(_right(test, answer) for test, answer in zip(rest, answers, strict=False))
        # The test after the last answer ended the process: the others are tried in a new one.
        rest = rest[len(answers) + 1 :] if alive else []
    return passed


def _prints(program: str, test: _Test, limits: Limits, require: Sequence[str]) -> bool:
    outcome = run(program, stdin=test.source, limits=limits, require=require)
    printed, wanted = (
        [line.rstrip() for line in text.strip().splitlines()] for text in (outcome.stdout, test.expected)
    )
    return outcome.ok and printed == wanted


def _answers(program: str, tests: Sequence[_Test], limits: Limits, require: Sequence[str]) -> tuple[list[str], bool]:
    """What one process answered to the tests, in order, and whether a new one may do better from there on."""
    token = secrets.token_hex(16)
    asked = [{"source" if test.kind == "code" else "expression": test.source} for test in tests]
    job = {"code": program, "tests": asked, "seconds": limits.seconds, "token": token}
    total = limits.seconds * (len(tests) + 1) + 1.0
    longer = replace(limits, seconds=total, cpu_seconds=math.ceil(total) + 1)
    outcome = run(_TESTER, stdin=json.dumps(job), limits=longer, require=require)
    said = [line.removeprefix(token) for line in outcome.stdout.split("\n") if line.startswith(token)]
    return said[1 : len(tests) + 1], bool(said) and outcome.ending not in ("time", "lost")


def _right(test: _Test, answer: str) -> bool:
    """Whether an answer, which a hostile program may have written, is the right one."""
    try:
        told = json.loads(answer)
        if test.kind == "code":
            return bool(told == {"passed": True})
        value = _untagged(told["value"])
        return bool(value == test.expected) if test.kind == "equal" else value is test.expected
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError):
        return False


def _untagged(value: Any) -> Any:
    """The value that the sandbox's side sent as JSON."""
    if isinstance(value, list):
        return [_untagged(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    match kind:
        case "tuple":
            return tuple(_untagged(item) for item in content)
        case "set":
            return frozenset(_untagged(item) for item in content)
        case "dict":
            return {_untagged(key): _untagged(item) for key, item in content}
        case "bytes":
            return bytes.fromhex(content)
        case "complex":
            return complex(*content)
        case "ratio":
            return Fraction(*content)
    raise ValueError(f"unknown kind {kind!r}")
