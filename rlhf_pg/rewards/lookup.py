"""Find a reward function by its name: a file, a module, a builtin, a model, a service, another trainer's function.

Nothing here needs torch, because worker processes import it.
"""

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

from rlhf_pg.errors import ConfigError, RlhfPgError
from rlhf_pg.rewards.calls import parameters_of, takes_any

BUILTINS: dict[str, str] = {
    "code": "reward_models.functions.code:code",
    "exact_match": "reward_models.functions.matches:exact_match",
    "format_tags": "reward_models.functions.formats:format_tags",
    "fuzzy_match": "reward_models.functions.matches:fuzzy_match",
    "json_schema": "reward_models.functions.structured:json_schema",
    "judge": "reward_models.judge:judge",
    "keyword": "reward_models.functions.patterns:keyword",
    "length": "reward_models.functions.lengths:length",
    "math_equal": "reward_models.functions.mathematics:math_equal",
    "numeric_answer": "reward_models.functions.answers:numeric_answer",
    "regex_match": "reward_models.functions.patterns:regex_match",
    "repetition_penalty": "reward_models.functions.repetition:repetition_penalty",
    "reviews_gold": "rlhf_pg.quickstart.rewards:reviews_gold",
    "reviews_reward": "rlhf_pg.quickstart.rewards:reviews_reward",
    "soft_overlong": "reward_models.functions.lengths:soft_overlong",
    "vader": "reward_models.functions.sentiment:vader",
}
FACTORIES = frozenset({"judge", "reviews_gold", "reviews_reward"})  # builtins that return the function when called
# Adapters are given what their prefix stands before, and the arguments; they return the function.
ADAPTERS: dict[str, str] = {
    "openrlhf": "reward_models.adapters:openrlhf",
    "verl": "reward_models.adapters:verl",
    "reasoning_gym": "reward_models.adapters:reasoning_gym",
}
# Builtins that have something to say before a run starts, or to refuse: given the arguments, they return lines.
START_NOTES: dict[str, str] = {"code": "reward_models.functions.code:start_notes"}
REMOTE = "reward_models.remote:remote"
CLASSIFIER = "reward_models.classifier:load_classifier"
IN_MAIN = frozenset({"judge", "reviews_reward"})  # builtins that hold a model, or keep their time themselves
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SAMPLED = ("prompts", "completions", "completion_ids")


@dataclass(frozen=True, slots=True)
class Found:
    """A reward function, the name it has by itself, and the arguments given at each call."""

    name: str
    call: Callable[..., Any]
    args: Mapping[str, Any]
    notes: tuple[str, ...] = ()  # what a run says at its start
    ours: bool = False  # its keyword-only parameters are options, never columns


def is_model(reference: str) -> bool:
    """Whether a name is that of a classifier: a folder with a model's or an adapter's configuration, or a hub id."""
    if _is_service(reference) or reference.startswith("builtin:"):
        return False
    if any((Path(reference) / name).is_file() for name in ("config.json", "adapter_config.json")):
        return True
    return _HUB_ID.fullmatch(reference) is not None and not Path(reference).exists()


def runs_in_main(reference: str) -> bool:
    """Whether a function runs in the main process by default: it holds a model, or asks a service in its own time."""
    return is_model(reference) or _is_service(reference) or reference.removeprefix("builtin:") in IN_MAIN


def _is_service(reference: str) -> bool:
    return reference.startswith(("http://", "https://"))


def find(reference: str, args: Mapping[str, Any], factory: bool, device: str) -> Found:
    """Find a reward function.

    In this order: ``builtin:NAME``; ``http(s)://`` address of a server; ``openrlhf:``, ``verl:`` and ``trl:`` before a file's or
    module's function, ``reasoning_gym:TASK``; a folder with a ``config.json``, which is a classifier; a builtin's name;
    ``path/to/file.py:name`` and ``package.module:name``; a hub id, which is a classifier.

    Args:
        reference: the name.
        args: of the call; of the factory, adapter or loader where there is one.
        factory: the name is called once and returns the function.
        device: where a classifier runs unless its arguments say otherwise.

    Raises:
        ConfigError: nothing has that name, or it does not take the arguments given.
    """
    bare = reference.removeprefix("builtin:")
    prefix, _, rest = reference.partition(":")
    if bare == reference:
        if _is_service(reference):
            return _made(_attribute(REMOTE, reference), (reference,), args, reference, strict=True)
        if prefix in ADAPTERS:
            target = rest if prefix == "reasoning_gym" else _attribute(rest, reference)
            return _made(_attribute(ADAPTERS[prefix], reference), (target,), args, reference, strict=True)
        if prefix == "trl":
            return find(rest, args, factory, device)
        if is_model(reference) and (bare not in BUILTINS or Path(reference).is_dir()):
            given = args if "device" in args else {**args, "device": device}
            return _made(_attribute(CLASSIFIER, reference), (reference,), given, reference, strict=True)
    builtin = bare in BUILTINS
    if not builtin and (bare != reference or ":" not in reference):
        raise _unknown(reference, bare)
    target = _attribute(BUILTINS[bare] if builtin else reference, reference)
    if factory or (builtin and bare in FACTORIES):
        made = _made(target, (), args, reference, strict=builtin)
        return Found(bare, made.call, {}) if builtin else made
    _check_args(target, args, reference, strict=builtin)
    if inspect.isclass(target):
        raise ConfigError(f"reward.functions: {reference!r} is a class; with factory: true it is made once from args")
    notes = tuple(_attribute(START_NOTES[bare], reference)(args)) if builtin and bare in START_NOTES else ()
    return Found(bare if builtin else own_name(target), target, args, notes, builtin)


def _made(
    factory: Callable[..., Any], first: tuple[Any, ...], args: Mapping[str, Any], reference: str, *, strict: bool
) -> Found:
    """Call what makes a reward function, which must return one."""
    _check_args(factory, args, reference, strict=strict, positional=len(first))
    try:
        made = factory(*first, **args)
    except RlhfPgError:
        raise
    except Exception as error:
        message = f"reward.functions: the factory {reference!r} raised {type(error).__name__}: {error}"
        raise ConfigError(f"{message}; it was called with the arguments {dict(args)}") from error
    if not callable(made):
        raise ConfigError(
            f"reward.functions: the factory {reference!r} returned {type(made).__name__}, not a function; "
            "leave factory out if it is the reward function itself"
        )
    return Found(own_name(made), made, {})


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
        f"a classifier's folder or hub id, a server's address, {', '.join(f'{name}:...' for name in ADAPTERS)}, or one of "
        f"{sorted(BUILTINS)}"
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


def _check_args(
    target: Callable[..., Any], args: Mapping[str, Any], reference: str, *, strict: bool, positional: int = 0
) -> None:
    """Refuse arguments that the target has no parameter for; ``strict``: even where it takes any keyword.

    The first ``positional`` parameters are not the user's to give.
    """
    parameters = parameters_of(target)
    if parameters is None or (not strict and takes_any(parameters)):
        return
    named = [name for name, parameter in parameters.items() if parameter.kind != parameter.VAR_KEYWORD][positional:]
    for arg in args:
        if arg not in named or arg in _SAMPLED:
            settable = [name for name in named if name not in _SAMPLED]
            near = difflib.get_close_matches(arg, settable, n=1)
            hint = f" (nearest: {near[0]})" if near else ""
            raise ConfigError(f"reward.functions: {reference!r} has no argument {arg!r}{hint}; it takes {settable}")


def own_name(function: Callable[..., Any]) -> str:
    """What a function calls itself."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__)).strip("<>")
