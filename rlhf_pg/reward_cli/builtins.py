"""``rlhf-pg reward functions``: the builtin rewards and what they take."""

from __future__ import annotations

import importlib
import inspect

import typer

from rlhf_pg.rewards.lookup import BUILTINS, IN_MAIN

_ROWS = ("prompts", "completions", "completion_ids", "log_metric", "log_extra")


def functions() -> None:
    """List the builtin rewards with their arguments; those without a default must be given."""
    for name, target in sorted(BUILTINS.items()):
        if target.startswith("rlhf_pg.quickstart"):
            continue
        place, _, attribute = target.partition(":")
        try:
            function = getattr(importlib.import_module(place), attribute)
        except ImportError as error:
            typer.echo(f"{name}\n    not here: {error}")
            continue
        parameters = [
            str(parameter).partition(":")[0].strip()
            + ("" if parameter.default is parameter.empty else f"={parameter.default!r}")
            for key, parameter in inspect.signature(function).parameters.items()
            if key not in _ROWS and parameter.kind is not parameter.VAR_KEYWORD
        ]
        where = " (runs in the run's own process)" if name in IN_MAIN else ""
        typer.echo(f"{name}: {', '.join(parameters) or 'no arguments'}{where}")
        typer.echo(f"    {(inspect.getdoc(function) or '').splitlines()[0]}")
