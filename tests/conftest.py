"""What several tests build: tiny models in memory, and the real one where it is at hand."""

from __future__ import annotations

import os
from pathlib import Path

# Tiny models run fastest on one thread, and two pools of threads on one machine slow each other a hundredfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture
def stories() -> str:
    """The folder of a real 260,000-parameter story model."""
    folder = SHARED / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip("needs the story model in ../shared/models/stories260K")
    return str(folder)
