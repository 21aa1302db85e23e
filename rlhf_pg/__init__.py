"""Fine-tune a causal language model by policy gradient: exact, clear, measured.

``rlhf_pg.train(config, dataset=None, rewards=None)`` runs what ``rlhf-pg train`` runs. Names are imported when they are
first used, so that the configuration and the command line's help need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_pg import evaluate
    from rlhf_pg.config import Config, load_config
    from rlhf_pg.trainer import resume, train

__version__ = "0.1.0"
__all__ = ["Config", "__version__", "evaluate", "load_config", "resume", "train"]

_HOMES = {
    "Config": "rlhf_pg.config",
    "load_config": "rlhf_pg.config",
    "resume": "rlhf_pg.trainer",
    "train": "rlhf_pg.trainer",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name == "evaluate":
        return import_module("rlhf_pg.evaluate")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'rlhf_pg' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted({*globals(), *__all__})
