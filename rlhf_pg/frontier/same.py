"""When two configurations belong on one plot, and when they are the same run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_pg.config.show import said
from rlhf_pg.config.tree import Config
from rlhf_pg.errors import ConfigError

# What changes where a run is and what it prints, and none of its numbers.
_ASIDE = {
    f"run.{name}"
    for name in ("output_dir", "overwrite", "save_every", "keep_last", "samples_every", "trackers", "device")
}
# Keys of a reward that its measured values do not depend on.
_OF_TRAINING = {"normalize", "process", "timeout", "workers"}


def reference_settings(config: Config) -> dict[str, Any]:
    """The keys that decide what the reference writes to held-out prompts and how that is scored, by dotted name."""
    tree = config.model_dump(mode="json")
    frozen = config.reference.model
    own = {"model": frozen or config.policy.model, "revision": None if frozen else config.policy.revision}
    temperature = config.evaluation.temperature or config.rollout.temperature
    parts = {
        "reference": {**own, "dtype": config.policy.dtype, "mixed_precision": config.run.mixed_precision},
        "data": {name: value for name, value in tree["data"].items() if name != "shuffle"},
        "rollout": {name: tree["rollout"][name] for name in ("max_new_tokens", "stop", "ignore_eos")},
        "evaluation": {"temperature": temperature, "top_p": config.evaluation.top_p, "seed": config.evaluation.seed},
        "reward": {
            "functions": _measured(tree["reward"]["functions"]),
            "skip_special_tokens": config.reward.skip_special_tokens,
        },
    }
    return dict(_flat("", parts))


def check_one_reference(runs: Sequence[tuple[str, Config]]) -> None:
    """Refuse runs, given by name and configuration, that are not measured against one reference.

    Raises:
        ConfigError: which key differs, and where.
    """

    def measured(config: Config) -> dict[str, Any]:
        return reference_settings(config) | {"evaluation.samples_per_prompt": config.evaluation.samples_per_prompt}

    for name, config in runs[1:]:
        for key, ours, theirs in differences(measured(runs[0][1]), measured(config)):
            raise ConfigError(
                f"{key} is {said(ours)} in run {runs[0][0]} and {said(theirs)} in {name}: a frontier has one reference, one "
                "set of held-out prompts, one way of sampling and one reward for all runs, or its points cannot be compared; "
                "make a frontier for each"
            )


def check_same_run(name: str, found: Config, wanted: Config, run_dir: Path) -> None:
    """Refuse to go on with a run that was started with another configuration.

    Raises:
        ConfigError: which keys differ, and the mend.
    """
    was, now = (
        {key: x for key, x in _flat("", config.model_dump(mode="json")) if key not in _ASIDE}
        for config in (found, wanted)
    )
    changed = [f"{key} was {said(ours)} and is {said(theirs)} now" for key, ours, theirs in differences(was, now)]
    if changed:
        more = f" (and {len(changed) - 3} more)" if len(changed) > 3 else ""
        raise ConfigError(
            f"run {name}: {run_dir} holds a run of another configuration: {'; '.join(changed[:3])}{more}. Ask for the same as "
            f"before, give another --out, or remove {run_dir}"
        )


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The keys of which two flat mappings have different values, and both values; None where one lacks the key."""
    for key in dict.fromkeys([*one, *other]):
        if one.get(key) != other.get(key):
            yield key, one.get(key), other.get(key)


def _flat(prefix: str, tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(f"{prefix}{name}.", value)
        else:
            yield f"{prefix}{name}", value


def _measured(functions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            name: _measured(value) if name == "members" else value
            for name, value in function.items()
            if name not in _OF_TRAINING
        }
        for function in functions
    ]
