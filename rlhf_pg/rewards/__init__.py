"""Rewards of completions: found by name, called so that none can stall a run, checked, combined.

Names are imported when they are first used: a worker process that runs one function needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_pg.rewards.lookup import BUILTINS
    from rlhf_pg.rewards.runner import RewardRunner, Scoring
    from rlhf_pg.rewards.texts import text_rollout

__all__ = ["BUILTINS", "RewardRunner", "Scoring", "text_rollout"]
_HOMES = {"BUILTINS": "lookup", "RewardRunner": "runner", "Scoring": "runner", "text_rollout": "texts"}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name in _HOMES:
        return getattr(import_module(f"rlhf_pg.rewards.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'rlhf_pg.rewards' has no attribute {name!r}")
