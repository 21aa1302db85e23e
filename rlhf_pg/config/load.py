"""Recipes into configurations: YAML, ``extends``, ``a.b=c`` overrides, and errors that name key, value and fix."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from rlhf_pg.config.show import config_keys, explain, said, spell_booleans
from rlhf_pg.config.tree import Config
from rlhf_pg.errors import ConfigError

# The recipes of an installed wheel, then those of a checkout.
_FOLDERS = (Path(__file__).parents[1] / "_recipes", Path(__file__).parents[2] / "recipes")
_NULLS = ("", "~", "null", "Null", "NULL", "None")
_SCALARS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+", "-+0123456789"),
    "float": (r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", "-+.0123456789"),
    "null": ("|".join(_NULLS), ["", "~", "n", "N"]),
}


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars: ``5e-6`` is a number, ``no`` and ``1:30`` are text; a repeated key is an error."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 -- PyYAML wants it so

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys all differ."""
        seen = set()
        for name, _ in node.value:
            if isinstance(name, yaml.ScalarNode):
                if name.value in seen:
                    line = name.start_mark.line + 1
                    raise ConfigError(
                        f"{name.start_mark.name}, line {line}: {name.value} stands there twice; remove one"
                    )
                seen.add(name.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes what ``_Loader`` reads back."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 -- PyYAML wants it so

    def ignore_aliases(self, _data: Any) -> bool:
        """Write everything out, without anchors."""
        return True


for _tag, (_pattern, _first) in _SCALARS.items():
    for _dialect in (_Loader, _Dumper):
        _dialect.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))
# PyYAML would read 010 as octal, write 5e-06 as 5.0e-06, and lose some line separators in text.
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))
_Dumper.add_representer(float, lambda dumper, x: dumper.represent_scalar("tag:yaml.org,2002:float", _float_text(x)))
_Dumper.add_representer(
    str, lambda dumper, x: dumper.represent_scalar("tag:yaml.org,2002:str", x, style=None if x.isprintable() else '"')
)


def recipe_names() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted({path.stem for folder in _FOLDERS for path in folder.glob("*.yaml")})


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe, given as a path or as the name of one that comes with the package.

    Raises:
        ConfigError: there is none.
    """
    path = Path(name)
    if path.is_file():
        return path
    if (path / "config.yaml").is_file():
        raise ConfigError(
            f"{name} is a run's folder; its recipe is {path / 'config.yaml'}, and --resume {name} goes on with it"
        )
    for folder in _FOLDERS:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    near = difflib.get_close_matches(path.stem, recipe_names(), 1)
    hint = f"did you mean {near[0]}?" if near else f"the recipes are {', '.join(recipe_names())}"
    raise ConfigError(f"there is no recipe {str(name)!r}, neither as a file nor by name; {hint}")


def load_config(recipe: str | Path, overrides: Sequence[str] = ()) -> Config:
    """A recipe, what it extends and the overrides, as one checked configuration.

    Args:
        recipe: a YAML file, or the name of a recipe that comes with the package.
        overrides: ``a.b=c``; c is YAML, a mapping is merged, and the later of two wins.

    Raises:
        ConfigError: with a line for each problem, naming the key, the value, the rule and the fix.
    """
    return config_from_dict(_read(find_recipe(recipe), ()), overrides)


def config_from_dict(tree: Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """A checked configuration from nested mappings, shaped like a recipe without ``extends``.

    Raises:
        ConfigError: as ``load_config``.
    """
    for override in overrides:
        tree = _merge(tree, _override(override))
    try:
        return Config.model_validate(spell_booleans(tree))
    except ValidationError as error:
        problems = [line for details in error.errors(include_url=False) for line in explain(details)]
        raise ConfigError("\n".join(problems)) from None


def to_yaml(config: Config) -> str:
    """The whole configuration as YAML, which ``load_config`` reads back to an equal one.

    Raises:
        ConfigError: the arguments of a reward function hold something that YAML has no form for.
    """
    return dump_yaml(config.model_dump())


def dump_yaml(value: Any, flow: bool = False) -> str:
    """A value in the dialect that recipes are read in, in block style or (``flow``) on one line.

    Raises:
        ConfigError: YAML has no form for it.
    """
    try:
        text = yaml.dump(
            _plain(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1 << 16, default_flow_style=flow
        )
    except yaml.YAMLError as error:
        raise ConfigError(f"{error.args[-1]!r} has no form in YAML; give text, numbers, lists or mappings") from error
    return str(text).removesuffix("...\n")


def check_complete(config: Config, data_given: bool = False, rewards_given: bool = False) -> None:
    """Check what has no default: the model, the prompts and the reward.

    Args:
        config: the configuration of a run.
        data_given: a dataset was passed from Python.
        rewards_given: reward functions were passed from Python.

    Raises:
        ConfigError: one of them is not set; says how to set it.
    """
    missing = []
    if not config.policy.model:
        missing.append("policy.model is not set; give a folder or hub id: rlhf-pg train RECIPE policy.model=...")
    if not config.data.source and not data_given:
        missing.append(
            "data.source is not set; give a file, folder or hub dataset: rlhf-pg train RECIPE data.source=..."
        )
    if not config.reward.functions and not rewards_given:
        missing.append(
            "reward.functions is empty; give one at least: rlhf-pg train RECIPE 'reward.functions=[file.py:name]'"
        )
    if missing:
        raise ConfigError("\n".join(missing))


def _read(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    """A recipe's tree with what it extends below it; ``children`` are the recipes that led here."""
    chain = (*children, path.resolve())
    if chain[-1] in children:
        raise ConfigError(f"extends goes in a circle: {' -> '.join(str(step) for step in chain)}; remove one")
    try:
        tree = _parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(tree, dict | None):
        raise ConfigError(f"{path} holds a {type(tree).__name__}, and a recipe is a mapping of sections")
    # A section whose keys are all commented out reads as null.
    tree = {name: {} if value is None else value for name, value in (tree or {}).items()}
    parent = tree.pop("extends", None)
    if not parent:
        return tree
    if not isinstance(parent, str):
        raise ConfigError(f"{path}: extends={said(parent)}: must be one recipe's name or path")
    beside = [path.parent / parent, path.parent / f"{parent}.yaml"]
    # A recipe of one's own may have the name of the packaged one that it extends.
    found = next((file for file in beside if file.is_file() and (file.resolve() != chain[-1] or "." in parent)), None)
    return _merge(_read(found or find_recipe(parent), chain), tree)


def _parse(text: str, name: str) -> Any:
    try:
        loader = _Loader(text)
        loader.name = name
        return loader.get_single_data()
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or error
        raise ConfigError(f"{name}{f', line {mark.line + 1}' if mark else ''}: not valid YAML: {problem}") from error


def _override(text: str) -> dict[str, Any]:
    name, equals, raw = text.partition("=")
    if not equals or not all(parts := name.split(".")):
        raise ConfigError(f"override {text!r} is not of the form section.key=value, such as kl.coef=0.1")
    kind = config_keys()[name].annotation if name in config_keys() else None
    # Text is taken as it stands: a colon, a '#' or a date in it means nothing.
    is_text = kind in (str, str | None) and raw not in _NULLS and raw[0] not in "'\""
    tree = raw if is_text or (kind is str and not raw) else _parse(raw, f"override {text}")
    for part in reversed(parts[1:]):
        tree = {part: tree}
    return {parts[0]: tree}


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` on ``base``: mappings merge, anything else replaces."""
    merged = dict(base)
    for name, value in over.items():
        below = merged.get(name)
        merged[name] = (
            _merge(below if isinstance(below, Mapping) else {}, value) if isinstance(value, Mapping) else value
        )
    return merged


def _float_text(x: float) -> str:
    return repr(x).replace("inf", ".inf").replace("nan", ".nan")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(below) for name, below in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
