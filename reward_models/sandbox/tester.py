"""The program that runs inside the sandbox to try a program's tests; sent there as text, so standard library only.

It reads one JSON object: ``code``, ``tests`` (each with an ``expression`` to evaluate, or a ``source`` to run),
``seconds`` for each, and a ``token``. It prints a line when the code has run, and one for each test, each beginning with
the token: what the program prints goes nowhere. A test that takes too long ends the process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import types
from collections.abc import Set
from typing import Any


def tagged(value: Any) -> Any:
    """A value as JSON can carry it: what JSON lacks, or would change, as ``{kind: content}``.

    A subclass is sent as what it equals: a ``Counter`` as a dictionary, a named tuple as a tuple.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [tagged(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [tagged(item) for item in value]}
    if isinstance(value, Set):
        return {"set": [tagged(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[tagged(key), tagged(item)] for key, item in value.items()]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if hasattr(value, "as_integer_ratio"):
        return {"ratio": list(value.as_integer_ratio())}
    raise TypeError(f"a {type(value).__name__} equals no literal")


def main() -> None:
    """Run the code, then each test."""
    job = json.load(sys.stdin)
    channel, nowhere = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    module = types.ModuleType("solution")  # not "__main__": the code is imported, not started
    sys.modules["solution"] = module
    space = vars(module)

    def tell(answer: dict[str, Any]) -> None:
        os.write(channel, (job["token"] + json.dumps(answer) + "\n").encode())

    signal.setitimer(signal.ITIMER_REAL, job["seconds"])
    exec(compile(job["code"], "<program>", "exec"), space)
    tell({"ready": True})
    for test in job["tests"]:
        signal.setitimer(signal.ITIMER_REAL, job["seconds"])
        try:
            if "expression" in test:
                tell({"value": tagged(eval(compile(test["expression"], "<test>", "eval"), space))})
            else:
                exec(compile(test["source"], "<test>", "exec"), space)
                tell({"passed": True})
        except BaseException as error:
            tell({"error": type(error).__name__})
    os._exit(0)


if __name__ == "__main__":
    main()
