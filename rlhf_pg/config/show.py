"""What a user is shown of the configuration: its keys and their meaning, its schema, what is wrong with a value."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from rlhf_pg.config.tree import Config

_WIDEST = 44
_RULES = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "literal_error": "must be {expected}",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text; put it in quotes",
    "string_too_short": "must not be empty",
    "tuple_type": "must be a list, written [{value}]",
    "dict_type": "must be a mapping, written {{a: b}}",
    "model_type": "is a section; set the keys below it",
    "finite_number": "must be finite",
    "too_long": "has {actual_length} items; give {max_length}",
    "missing": "is missing; give it",
}


@cache
def config_keys() -> dict[str, FieldInfo]:
    """Every key and section by dotted name; those of a list's items have ``[]``: ``reward.functions[].weight``.

    A section within one of its own kind has the keys that this one has, and is not listed again.
    """

    def below(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, FieldInfo]]:
        for name, field in model.model_fields.items():
            yield prefix + name, field
            for kind in (field.annotation, *get_args(field.annotation)):
                if isinstance(kind, type) and issubclass(kind, BaseModel) and kind is not model:
                    many = "[]" if get_origin(field.annotation) is tuple else ""
                    yield from below(kind, f"{prefix}{name}{many}.")

    return dict(below(Config, ""))


def show(config: Config) -> str:
    """The whole configuration as YAML, each key with its meaning, and with its default where it differs from that."""
    lines = list(_lines(config, ""))
    column = max(len(text) for text, _ in lines if len(text) <= _WIDEST)
    return "".join(f"{text:<{column}}  # {meaning}\n" for text, meaning in lines)


def json_schema() -> dict[str, Any]:
    """The schema of a recipe, by which editors complete and check keys."""
    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "rlhf-pg recipe"
    schema["properties"] = {
        "extends": {
            "type": "string",
            "description": "A recipe's name, or a path relative to this file, to start from.",
        },
        **schema["properties"],
    }
    # A reward function may stand as plain text.
    functions = schema["$defs"]["RewardConfig"]["properties"]["functions"]
    functions["items"] = {"anyOf": [{"type": "string"}, functions["items"]]}
    return schema


def _lines(section: BaseModel, indent: str) -> Iterator[tuple[str, str]]:
    """Each line of YAML with its meaning."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        changed = value != field.default and not isinstance(field.default, BaseModel) and not field.is_required()
        meaning = f"{f'(default: {_json(field.default)}) ' if changed else ''}{field.description}"
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:", meaning
            yield from _lines(value, f"{indent}  ")
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            yield f"{indent}{name}:", meaning
            for item in value:
                first, *rest = _lines(item, f"{indent}    ")
                yield f"{indent}  - {first[0].lstrip()}", first[1]
                yield from rest
        else:
            yield f"{indent}{name}: {_json(value)}", meaning


def _json(value: Any) -> str:
    text = json.dumps(value, default=repr, ensure_ascii=False)
    # YAML breaks lines at some characters that JSON lets stand, and a terminal obeys others.
    return re.sub(r"[\x7f-\x9f\u2028\u2029\ufeff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def said(value: Any) -> str:
    """A value as an error message shows it: short, on one line."""
    text = value if isinstance(value, str) else _json(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _generic(dotted: str) -> str:
    """The name in ``config_keys`` of a key below a list's item."""
    return re.sub(r"(\.members\[\])+(?=\.)", "", re.sub(r"\[\d+\]", "[]", dotted))


def spell_booleans(value: Any, dotted: str = "") -> Any:
    """The tree with ``true`` as text where a number belongs: pydantic would take it for 1, and refuses the text."""
    if isinstance(value, Mapping):
        return {
            name: spell_booleans(below, f"{dotted}.{name}" if dotted else str(name)) for name, below in value.items()
        }
    if isinstance(value, list | tuple):
        return [spell_booleans(item, f"{dotted}[]") for item in value]
    if isinstance(value, bool):
        known = _generic(dotted)
        field = config_keys().get(known) or config_keys().get(known.removesuffix("[]"))
        kinds = {field.annotation, *get_args(field.annotation)} if field else set()
        return said(value) if bool not in kinds and kinds & {int, float} else value
    return value


def explain(details: ErrorDetails) -> Iterator[str]:
    """A pydantic error in plain words."""
    dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in details["loc"]).removeprefix(".")
    kind, context, value = details["type"], details.get("ctx", {}), details["input"]
    if kind == "extra_forbidden":
        yield from _unknown(dotted, value)
        return
    if kind == "value_error":
        rule = str(context["error"])
    else:
        rule = _RULES[kind].format(value=said(value), **context) if kind in _RULES else details["msg"]
    if not dotted:
        yield rule
        return
    field = config_keys().get(_generic(dotted))
    plain = field and not field.is_required() and not isinstance(field.default, BaseModel)
    default = f" (default: {said(field.default)})" if field and plain else ""
    yield f"{dotted}{'' if kind == 'missing' else f'={said(value)}'}: {rule}{default}"


def _unknown(dotted: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for name, below in value.items():
            yield from _unknown(f"{dotted}.{name}", below)
        return
    known = config_keys()
    section, _, leaf = _generic(dotted).rpartition(".")
    near = _nearest(section, leaf)
    if dotted in known:
        hint = f"write it nested: {section}: {{{leaf}: ...}}"
    elif near:
        hint = f"did you mean {' or '.join(near)}?"
    else:
        members: dict[str, list[str]] = {}
        for name in known:
            members.setdefault(name.rpartition(".")[0], []).append(name.rpartition(".")[2])
        while section not in members:
            section = section.rpartition(".")[0]
        hint = f"the {f'keys of {section}' if section else 'sections'} are {', '.join(members[section])}"
    yield f"{dotted}={said(value)}: unknown key; {hint}"


def _nearest(section: str, leaf: str) -> list[str]:
    """The keys most like ``section.leaf``: a like name counts anywhere in the tree, a like section on top of it."""

    def alike(a: str, b: str) -> float:
        return difflib.SequenceMatcher(None, a, b).ratio()

    scores = {}
    for name, field in config_keys().items():
        its_section, _, its_leaf = name.rpartition(".")
        place, likeness = alike(section, its_section), alike(leaf, its_leaf)
        here = place >= 0.75
        if likeness >= (0.6 if here else 0.7) and ("[]" not in name or place == 1):
            # A key that is off by default is the less likely wish: update.learning_rate before value.learning_rate.
            scores[name] = likeness + (place if here else -0.25 if field.default is None else 0.0)
    best = max(scores.values(), default=0.0)
    return sorted((name for name, score in scores.items() if score >= best - 0.25), key=lambda name: -scores[name])[:2]
