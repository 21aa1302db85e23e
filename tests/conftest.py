"""What several tests build: tiny models in memory, and the real one where it is at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture
def stories() -> str:
    """The folder of a real 260,000-parameter story model."""
    folder = SHARED / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip("needs the story model in ../shared/models/stories260K")
    return str(folder)
