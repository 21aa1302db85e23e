"""From ``--vary`` to runs: every combination checked, named and written down before the first one starts."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_pg.config.load import check_complete, config_from_dict, dump_yaml, find_recipe, load_config, to_yaml
from rlhf_pg.config.tree import Config
from rlhf_pg.errors import ConfigError
from rlhf_pg.frontier.same import check_one_reference, check_same_run

_EVALUATIONS = 8  # of a run that does not say how many
_LONGEST_VALUE, _LONGEST_NAME = 40, 160  # characters; a file's name may have 255 bytes
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")
_EXTENDS = re.compile(r"^extends:.*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of the grid."""

    name: str  # of the run: the varied settings and the seed; one path component
    settings: dict[str, str]  # what is varied, as it was given, the seed left out
    seed: int
    config: Config
    config_file: Path  # the whole configuration
    command: str  # trains the same run anew, in the recipe's run.output_dir

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return Path(self.config.run.output_dir) / self.name


def plan(
    recipe: str, overrides: Sequence[str], vary: Sequence[str], seeds: int, out: Path, gold: str | None = None
) -> list[Cell]:
    """Every combination of the varied settings and seeds as a run that is known to be possible.

    A run is ``OUT/runs/NAME``, its configuration ``OUT/configs/NAME.yaml``. Where the recipe does not say how often
    to evaluate and to save, a run is measured about 8 times, and saved as often.

    ``recipe=...`` may be varied too. The values stand alone if RECIPE is one of them; otherwise each takes the place of
    what RECIPE extends, and RECIPE's own keys stay on top (the file is kept as ``OUT/recipes/VALUE-RECIPE.yaml``).

    Args:
        recipe: a YAML file, or a recipe's name.
        overrides: ``a.b=c``, for every run.
        vary: ``a.b=c,d,e`` or ``recipe=x,y``; commas within brackets do not part values.
        seeds: runs of each combination, with ``run.seed`` counted up from the recipe's.
        out: the frontier's folder.
        gold: a reward that is measured and never trained on: anything that ``reward.functions`` takes, or a YAML mapping.

    Returns:
        The runs, the seeds of a combination adjacent.

    Raises:
        ConfigError: a run cannot work (the run is named), two are the same, they have no reference in common, or the folder
            holds another run of that name.
    """
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: a frontier needs one seed at least")
    for override in overrides:
        if override.startswith(("run.name=", "run.output_dir=")):
            raise ConfigError(f"{override}: the frontier names its runs and their folder; leave it out, and give --out")
    varied = _varied(vary, overrides)
    recipes = _recipes(recipe, varied.get("recipe", []), out)
    grid = [dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())]
    cells = [
        _cell(recipes[settings.get("recipe", recipe)], overrides, settings, number, out, gold)
        for settings in grid
        for number in range(seeds)
    ]
    _refuse_equals(cells)
    check_one_reference([(cell.name, cell.config) for cell in cells])
    for cell in cells:
        if (cell.run_dir / "config.yaml").is_file():
            check_same_run(cell.name, load_config(cell.run_dir / "config.yaml"), cell.config, cell.run_dir)
    for cell in cells:
        write_file(cell.config_file, to_yaml(cell.config))
    return cells


def _varied(vary: Sequence[str], overrides: Sequence[str]) -> dict[str, list[str]]:
    """Each varied key with its values."""
    found: dict[str, list[str]] = {}
    given = {override.partition("=")[0] for override in overrides}
    for text in vary:
        name, equals, raw = text.partition("=")
        values = [value.strip() for value in _split(raw)]
        if not equals or not name or not all(values):
            raise ConfigError(f"--vary {text!r} is not of the form section.key=a,b, such as kl.coef=0.2,0.1,0.05")
        if name in found:
            raise ConfigError(f"--vary {name} stands there twice; put all its values into one")
        if name in given:
            raise ConfigError(f"{name} is varied and also set for every run; remove one of the two")
        if name in ("run.seed", "run.name", "run.output_dir"):
            raise ConfigError(f"--vary {name}: the frontier sets it itself; give --seeds and --out")
        found[name] = values
    return found


def _split(text: str) -> list[str]:
    """The parts between the commas that stand outside all brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{(") - (character in ")}]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _recipes(recipe: str, values: Sequence[str], out: Path) -> dict[str, str]:
    """The recipe to load for each varied one, and for RECIPE itself where none is varied."""
    if not values or recipe in values:
        return {value: value for value in values or [recipe]}
    text = find_recipe(recipe).read_text(encoding="utf-8")
    line = _EXTENDS.search(text)
    if line is None:
        raise ConfigError(
            f"--vary recipe={','.join(values)}: {recipe} is none of them and extends nothing, so it is not known what they "
            f"would replace; give {values[0]} as RECIPE, or begin {recipe} with the line extends: {values[0]}"
        )
    found = {}
    for value in values:
        path = out / "recipes" / f"{_stem(value)}-{_stem(recipe)}.yaml"
        start, end = line.span()
        write_file(path, f"{text[:start]}extends: {dump_yaml(str(find_recipe(value).resolve())).strip()}{text[end:]}")
        found[value] = str(path)
    return found


def _cell(
    recipe: str, overrides: Sequence[str], settings: Mapping[str, str], number: int, out: Path, gold: str | None
) -> Cell:
    """The run of these settings with the seed of this number."""
    changes = [*overrides, *(f"{name}={value}" for name, value in settings.items() if name != "recipe")]
    labels = [f"{name}={_label(name, value)}" for name, value in settings.items()]
    try:
        first = load_config(recipe, changes)
        check_complete(first)
        if first.data.eval_size == 0:
            raise ConfigError("data.eval_size is 0, and a frontier is measured on held-out prompts; raise it")
        seed = first.run.seed + number
        name = _short(",".join([*labels, f"seed={seed}"]))
        every = str(max(1, -(-first.run.steps // _EVALUATIONS)))
        if "every" not in first.evaluation.model_fields_set:
            changes.append(f"evaluation.every={every}")
        if "save_every" not in first.run.model_fields_set:
            changes.append(f"run.save_every={every}")
        if gold is not None:
            changes.append(f"reward.functions={dump_yaml(_with_gold(first, gold), flow=True).strip()}")
        changes += [f"run.seed={seed}", f"run.name={name}"]
        config = load_config(recipe, [*changes, f"run.output_dir={out / 'runs'}"])
    except ConfigError as error:
        raise ConfigError(f"run {','.join([*labels, f'seed {number + 1}'])}: {error}") from error
    command = shlex.join(["rlhf-pg", "train", recipe, *changes])
    return Cell(name, dict(settings), seed, config, out / "configs" / f"{name}.yaml", command)


def _with_gold(config: Config, gold: str) -> list[Any]:
    """The reward functions and the gold one, as short as a recipe has them."""
    functions = config.reward.functions
    if any((function.name or function.function.rpartition(":")[2]) == "gold" for function in functions):
        raise ConfigError(
            "--gold: reward.functions has one of the name gold already; leave --gold out, or rename that one"
        )
    given: Any = gold
    if gold.lstrip().startswith("{"):
        (given,) = config_from_dict({}, [f"reward.functions=[{gold}]"]).reward.functions
        if given.name not in (None, "gold") or ("weight" in given.model_fields_set and given.weight):
            raise ConfigError(f"--gold {gold}: its name is gold and its weight 0; leave name and weight out")
        given = given.model_dump(exclude_defaults=True)
    else:
        given = {"function": gold}
    return [
        *(function.model_dump(mode="json", exclude_defaults=True) for function in functions),
        {**given, "name": "gold", "weight": 0},
    ]


def _stem(recipe: str) -> str:
    return Path(recipe).name.removesuffix(".yaml")


def _label(name: str, value: str) -> str:
    """A value as it stands in a run's name: numbers in one spelling, anything unsafe replaced and told apart by a hash."""
    if name == "recipe":
        value = _stem(value)
    elif _NUMBER.fullmatch(value):
        value = repr(float(value)).removesuffix(".0")
    safe = _UNSAFE.sub("_", value).strip("_")[:_LONGEST_VALUE]
    return safe if safe == value else f"{safe}-{_hash(value)}"


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}-{_hash(name)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def _refuse_equals(cells: Iterable[Cell]) -> None:
    """No two runs may share a name; upper and lower case are one on some file systems."""
    seen: dict[str, Cell] = {}
    for cell in cells:
        other = seen.setdefault(cell.name.casefold(), cell)
        if other is not cell:
            raise ConfigError(
                f"--vary: {other.settings} and {cell.settings} would both be the run {cell.name}; remove or rename one"
            )


def write_file(path: Path, text: str) -> None:
    """Write a file in one move, and its folder if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)
