"""Find a reward function by its name: a file, a module, a builtin or a classifier."""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from rlhf_pg.config.sections import RewardFunctionConfig
from rlhf_pg.errors import ConfigError

BUILTINS: dict[str, str] = {
    "keyword": "reward_models.functions.patterns:keyword",
    "length": "reward_models.functions.lengths:length",
    "numeric_answer": "reward_models.functions.answers:numeric_answer",
    "regex_match": "reward_models.functions.patterns:regex_match",
    "reviews_gold": "rlhf_pg.quickstart.rewards:reviews_gold",
    "reviews_reward": "rlhf_pg.quickstart.rewards:reviews_reward",
    "vader": "reward_models.functions.sentiment:vader",
}
FACTORIES = frozenset({"reviews_gold", "reviews_reward"})  # builtins that return the function when called
CLASSIFIER = "reward_models.classifier:load_classifier"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SAMPLED = ("prompts", "completions", "completion_ids")


@dataclass(frozen=True, slots=True)
class RewardFunction:
    """A callable, its name in the metrics, its weight in the sum, and the arguments given at each call."""

    name: str
    weight: float
    call: Callable[..., Any]
    args: Mapping[str, Any]


def resolve(function: Callable[..., Any] | str | RewardFunctionConfig, device: torch.device | str) -> RewardFunction:
    """Find a reward function.

    In this order: ``builtin:NAME``; a folder with a ``config.json``, which is a classifier; a builtin's name;
    ``path/to/file.py:name`` and ``package.module:name``; a hub id, which is a classifier.

    Args:
        function: a callable as it is, a name, or a configuration.
        device: where a classifier runs unless its arguments say otherwise.

    Raises:
        ConfigError: nothing has that name, or it does not take the arguments given.
    """
    if isinstance(function, str):
        function = RewardFunctionConfig(function=function)
    if not isinstance(function, RewardFunctionConfig):
        if not callable(function):
            raise ConfigError(f"a reward must be a function, a name or a RewardFunctionConfig, got {function!r}")
        return RewardFunction(_own_name(function), 1.0, function, {})
    reference = function.function
    bare = reference.removeprefix("builtin:")
    is_model = (Path(reference) / "config.json").is_file()
    builtin = bare != reference or (bare in BUILTINS and not is_model)
    if builtin and bare in BUILTINS:
        target = _attribute(BUILTINS[bare], reference)
    elif not builtin and not is_model and ":" in reference:
        target = _attribute(reference, reference)
    elif not builtin and (is_model or (_HUB_ID.fullmatch(reference) and not Path(reference).exists())):
        load = _attribute(CLASSIFIER, reference)
        _check_args(load, function.args, reference, strict=True)
        model = load(reference, **{"device": device, **function.args})
        return RewardFunction(function.name or _own_name(model), function.weight, model, {})
    else:
        raise _unknown(reference, bare)
    _check_args(target, function.args, reference, strict=builtin)
    if function.factory or (builtin and bare in FACTORIES):
        call, args = _make(target, function.args, reference), {}
    elif inspect.isclass(target):
        raise ConfigError(f"reward.functions: {reference!r} is a class; with factory: true it is made once from args")
    else:
        call, args = target, function.args
    own_name = bare if builtin else _own_name(call)
    return RewardFunction(function.name or own_name, function.weight, call, args)


def _unknown(reference: str, bare: str) -> ConfigError:
    """What to say of a name that nothing has."""
    if Path(reference).is_dir():
        reason = "is a folder without a config.json, so it is no saved model"
    elif reference.endswith(".py"):
        reason = f"names no function: write {reference}:NAME"
    else:
        near = difflib.get_close_matches(bare, BUILTINS, n=1)
        reason = f"is neither a file, a module, a model nor a builtin{f' (nearest: {near[0]})' if near else ''}"
    return ConfigError(
        f"reward.functions: {reference!r} {reason}. A reward is path/to/file.py:name, package.module:name, "
        f"a classifier's folder or hub id, or one of {sorted(BUILTINS)}"
    )


def _attribute(target: str, reference: str) -> Any:
    """What ``path/to/file.py:name`` or ``package.module:name`` names."""
    place, _, name = target.rpartition(":")
    try:
        module = _file_module(Path(place).expanduser().resolve()) if place.endswith(".py") else _module(place)
    except Exception as error:
        raise ConfigError(
            f"reward.functions: {reference!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not callable(getattr(module, name, None)):
        has = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(f"reward.functions: {place} has no function {name!r}; it has {sorted(has)}")
    return getattr(module, name)


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name and Path(f"{name}.py").is_file():
            raise ModuleNotFoundError(f"{error}; for the file {name}.py write {name}.py:NAME") from error
        raise


@functools.cache
def _file_module(path: Path) -> ModuleType:
    """Import a file by its path, once."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    name = f"reward_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _check_args(target: Callable[..., Any], args: Mapping[str, Any], reference: str, *, strict: bool) -> None:
    """Refuse arguments that the target has no parameter for; ``strict``: even where it takes any keyword."""
    parameters = parameters_of(target)
    if parameters is None or (not strict and takes_any(parameters)):
        return
    named = [name for name, parameter in parameters.items() if parameter.kind != parameter.VAR_KEYWORD]
    for arg in args:
        if arg not in named or arg in _SAMPLED:
            settable = [name for name in named if name not in _SAMPLED]
            near = difflib.get_close_matches(arg, settable, n=1)
            hint = f" (nearest: {near[0]})" if near else ""
            raise ConfigError(f"reward.functions: {reference!r} has no argument {arg!r}{hint}; it takes {settable}")


def _make(factory: Callable[..., Any], args: Mapping[str, Any], reference: str) -> Callable[..., Any]:
    """Call a factory, which must return a reward function."""
    try:
        made = factory(**args)
    except Exception as error:
        message = f"reward.functions: the factory {reference!r} raised {type(error).__name__}: {error}"
        raise ConfigError(f"{message}; it was called with the arguments {dict(args)}") from error
    if not callable(made):
        raise ConfigError(
            f"reward.functions: the factory {reference!r} returned {type(made).__name__}, not a function; "
            "leave factory out if it is the reward function itself"
        )
    return made  # type: ignore[no-any-return]


def _own_name(function: Callable[..., Any]) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__)).strip("<>")


def parameters_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter] | None:
    """The parameters; ``None`` where Python cannot say, as with some functions written in C."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None


def takes_any(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether there is a ``**kwargs``."""
    return any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())
