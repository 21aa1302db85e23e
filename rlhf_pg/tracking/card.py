"""The model card of a trained policy: README.md with the front matter that model hubs read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def model_card(config_yaml: str, base_model: str, metrics: Mapping[str, float], recipe: str | None) -> str:
    """A model card in Markdown: what was trained on what reward, what it reached at what KL, how to load it.

    It holds nothing that a model wrote.

    Args:
        config_yaml: the resolved configuration, as in the run's ``config.yaml``.
        base_model: what ``policy.model`` named: a hub id, which the front matter then gives too, or a path.
        metrics: the last evaluation's (``eval/reward``, ``eval/reward_stderr``, ``eval/kl/sequence``, ...); any
            may be absent.
        recipe: the recipe's name, if there was one.
    """
    config: dict[str, Any] = yaml.safe_load(config_yaml) or {}
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if _HUB_ID.fullmatch(base_model) and not Path(base_model).exists():
        front["base_model"] = base_model
    front["tags"] = ["rlhf-pg", "rlhf", "reinforcement-learning", "policy-gradient"]
    run, rollout = config.get("run", {}), config.get("rollout", {})
    how = f"by the recipe `{recipe}` of rlhf_pg" if recipe else "by rlhf_pg"
    samples = f"{rollout.get('prompts_per_step', '?')} prompts × {rollout.get('group_size', '?')} completions"
    # A fence must be longer than any run of backticks inside, which a stop string may hold.
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", config_yaml)), default=0))
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {run.get('name', 'Policy')}",
        f"{_code(base_model)}, fine-tuned by policy gradient {how}: {run.get('steps', '?')} steps of {samples}, "
        f"{_algorithm(config)}.",
        "## Reward\n\n" + _rewards(config),
        "## Held-out measurements\n\n" + _measurements(metrics),
        "## Use\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'folder = "."  # where this file is\n'
        "model = AutoModelForCausalLM.from_pretrained(folder)\n"
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n```",
        f"## Configuration\n\n{fence}yaml\n{config_yaml.rstrip()}\n{fence}",
    ]
    return "\n\n".join(parts) + "\n"


def _algorithm(config: Mapping[str, Any]) -> str:
    """The algorithm's three choices in words."""
    advantage, loss, kl = (config.get(section, {}) for section in ("advantage", "loss", "kl"))
    penalty = f"KL coefficient {kl.get('coef', '?')} ({kl.get('estimator', '?')}, in the {kl.get('placement', '?')})"
    if kl.get("placement") == "both":
        penalty = f"KL coefficient {kl.get('coef', '?')} ({kl.get('estimator', '?')}, in reward and loss)"
    return f"baseline `{advantage.get('baseline', '?')}`, loss `{loss.get('policy', '?')}`, {penalty}"


def _rewards(config: Mapping[str, Any]) -> str:
    functions = config.get("reward", {}).get("functions") or []
    lines = []
    for entry in functions:
        function = entry if isinstance(entry, str) else entry.get("function", "?")
        weight = 1.0 if isinstance(entry, str) else entry.get("weight", 1.0)
        lines.append(f"- {_code(function)}, weight {weight:g}")
    return "The weighted sum of:\n\n" + "\n".join(lines) if lines else "Reward functions were passed from Python."


def _measurements(metrics: Mapping[str, float]) -> str:
    rows = [
        ("Reward", "eval/reward", "eval/reward_stderr", ""),
        ("KL to the reference, a response", "eval/kl/sequence", "eval/kl/sequence_stderr", " nats"),
        ("Win rate against the reference", "eval/win_rate", "eval/win_rate_stderr", ""),
        ("Mean length", "eval/completions/mean_length", "eval/completions/mean_length_stderr", " tokens"),
        ("Entropy, a token", "eval/entropy", "eval/entropy_stderr", " nats"),
    ]
    lines = [
        f"| {label} | {metrics[name]:.3f}{f' ± {metrics[error]:.3f}' if error in metrics else ''}{unit} |"
        for label, name, error, unit in rows
        if name in metrics
    ]
    if not lines:
        return "This run held out no prompts."
    return "Each with its standard error, clustered by prompt.\n\n| | |\n|---|---|\n" + "\n".join(lines)


def _code(text: str) -> str:
    """A Markdown code span of one line, whatever backticks the text has."""
    ticks = "`" * (1 + max(map(len, re.findall(r"`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{pad}{' '.join(text.split())}{pad}{ticks}"
