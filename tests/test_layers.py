"""The layering of the packages and the length of their files, read from the sources without importing them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for package in ("rlhf_pg", "reward_models") for path in (ROOT / package).rglob("*.py"))
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "types"),
    ("ops", "config"),
    ("data", "prompts", "sources", "models", "loading", "distributed", "checkpoint", "tracking"),
    ("forward", "rollout", "rewards"),
    ("algorithm", "learner"),
    ("experience", "run_files"),
    ("trainer", "evaluate", "dry_run", "reward_check", "report"),
    ("frontier", "quickstart"),
    ("reward_cli",),
    ("cli", "__main__", "__init__"),
)
LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}
OPEN_TO_REWARD_MODELS = ("errors", "types", "ops", "config", "data", "sources", "models")
LONGEST = 300


def unit_of(module: str) -> str:
    """The unit of a dotted module: ``rlhf_pg.ops.kl`` is of ``ops``; the package itself is ``__init__``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(source: str, module: str, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """The line and the dotted module of each import, wherever it stands in the file."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            home = ".".join([*base, *([node.module] if node.module else [])])
            # `from rlhf_pg import ops` imports rlhf_pg.ops.
            yield from ((node.lineno, f"{home}.{alias.name}" if "." not in home else home) for alias in node.names)


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """What a module imports against the layers."""
    unit, found = unit_of(module), []
    if module.startswith("rlhf_pg") and unit not in LEVEL:
        return [f"{module} is in no layer: say in LAYERS where it stands"]
    for line, name in imports(source, module, is_package):
        target, head = unit_of(name), name.split(".")[0]
        if module.startswith("reward_models"):
            allowed = head != "rlhf_pg" or target in OPEN_TO_REWARD_MODELS
        elif head == "rlhf_pg":
            allowed = target == unit or LEVEL.get(target, len(LAYERS)) <= LEVEL[unit]
        else:
            allowed = head != "reward_models"
        if not allowed:
            found.append(f"{module}, line {line}: must not import {name}")
    return found


def described(path: Path) -> tuple[str, str, bool]:
    parts = path.relative_to(ROOT).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    return path.read_text(encoding="utf-8"), ".".join(parts[:-1] if is_package else parts), is_package


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    assert violations(*described(path)) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_stops_at_300_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_units_of_a_layer_do_not_import_each_other_in_a_circle() -> None:
    edges: dict[str, set[str]] = {}
    for path in SOURCES:
        source, module, is_package = described(path)
        if module.startswith("rlhf_pg.") and unit_of(module) in LEVEL:
            targets = {unit_of(name) for _, name in imports(source, module, is_package) if name.startswith("rlhf_pg.")}
            edges.setdefault(unit_of(module), set()).update(targets - {unit_of(module)})
    assert circle(edges) == []


def circle(edges: dict[str, set[str]]) -> list[str]:
    """The units that reach themselves."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = list(edges.get(start, ()))
        while todo:
            unit = todo.pop()
            if unit not in seen:
                seen.add(unit)
                todo.extend(edges.get(unit, ()))
        return seen

    return sorted(unit for unit in edges if unit in reached(unit))


@pytest.mark.parametrize("path", sorted((ROOT / "rlhf_pg" / "config").glob("*.py")), ids=lambda path: path.name)
def test_the_configuration_imports_no_torch(path: Path) -> None:
    heavy = {"torch", "transformers", "accelerate", "datasets", "peft", "numpy"}
    names = [name for _, name in imports(*described(path))]
    assert not [name for name in names if name.split(".")[0] in heavy]
    assert "rlhf_pg.types" not in names


@pytest.mark.parametrize(
    ("source", "module", "refused"),
    [
        ("from rlhf_pg.trainer import train", "rlhf_pg.ops.kl", True),
        ("def f():\n    import rlhf_pg.learner", "rlhf_pg.models", True),
        ("from rlhf_pg import cli", "rlhf_pg.trainer", True),
        ("from ..trainer import train", "rlhf_pg.ops.kl", True),
        ("from . import masking", "rlhf_pg.ops.kl", False),
        ("from .masking import masked_sum", "rlhf_pg.ops", True),
        ("import reward_models", "rlhf_pg.rewards", True),
        ("from reward_models.functions import vader", "rlhf_pg.quickstart.world", True),
        ("from rlhf_pg.rewards import score", "reward_models.classifier", True),
        ("from rlhf_pg.models import load", "reward_models.classifier", False),
        ("from rlhf_pg import Config", "rlhf_pg.rewards", True),
        ("from rlhf_pg.ops.kl import kl_estimate", "rlhf_pg.algorithm", False),
        ("from rlhf_pg.trainer import train", "rlhf_pg.quickstart.run", False),
        ("import torch", "rlhf_pg.nowhere", True),
    ],
)
def test_the_rule_itself(source: str, module: str, refused: bool) -> None:
    assert bool(violations(source, module)) is refused


def test_a_circle_is_seen() -> None:
    assert circle({"data": {"models"}, "models": {"tracking"}, "tracking": {"data"}, "cli": {"data"}}) == [
        "data",
        "models",
        "tracking",
    ]
    assert circle({"data": {"models"}, "models": set()}) == []
