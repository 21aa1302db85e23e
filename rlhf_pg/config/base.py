"""What every section of the configuration shares: frozen, unknown keys refused."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A frozen group of keys. Unknown keys are errors; ``1e-6`` written as text is read as a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


def key(default: Any, description: str, **rules: Any) -> Any:
    """A configuration key: its default, what it means, and pydantic's bounds (``ge``, ``gt``, ``le``, ``lt``)."""
    return Field(default, description=description, **rules)
