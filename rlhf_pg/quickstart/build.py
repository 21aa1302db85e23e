"""The folder of the quickstart's models, built on first use and kept.

They are trained in a process of their own, on the CPU, so that a run which asks for them keeps its random generators,
its accelerator and its processes to itself.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from rlhf_pg.errors import ModelError

# What a launcher tells its processes would make the building process wait for others.
_LAUNCHER = re.compile(r"(LOCAL_|GROUP_)?(RANK|WORLD_SIZE)$|ROLE_|MASTER_|TORCHELASTIC_|ACCELERATE_|PET_")

_SOURCES = (
    "rlhf_pg.quickstart.lexicon",
    "rlhf_pg.quickstart.grammar",
    "rlhf_pg.quickstart.models",
    *(f"reward_models.training.{name}" for name in ("bradley_terry", "fitting", "objectives", "texts")),
)

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the world's models and their training data are."""

    hidden: int = 64
    layers: int = 2
    reviews: int = 24_000
    pairs: int = 7_000
    epochs: int = 3  # of the reward model, over the pairs
    batch: int = 32
    learning_rate: float = 6e-3
    reward_learning_rate: float = 1e-3


def policy_folder() -> Path:
    """The folder of the language model that the quickstart starts from; built if it is not there."""
    return world_folder() / "policy"


def reward_folder() -> Path:
    """The folder of the reward model, a sequence classifier with one label; built if it is not there."""
    return world_folder() / "reward"


def world_folder(say: Say = print, sizes: Sizes | None = None) -> Path:
    """The folder with ``policy/`` and ``reward/``, built on first use.

    It lies in ``rlhf_pg/reviews-<hash>`` below ``RLHF_PG_CACHE``, else ``XDG_CACHE_HOME``, else ``~/.cache``; the hash
    is of the sources, the versions and the sizes. It appears whole or not at all. Of several processes that ask at once
    one builds and says so, and the others wait.

    Raises:
        ModelError: the cache folder cannot be written, or the build failed.
    """
    sizes = sizes or Sizes()
    base = os.environ.get("RLHF_PG_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base).expanduser().absolute() / "rlhf_pg" / f"reviews-{_fingerprint(sizes)}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                unfinished = folder.with_suffix(".building")
                shutil.rmtree(unfinished, ignore_errors=True)  # of a build that was killed
                _build_apart(unfinished, sizes, say)
                unfinished.rename(folder)
    except OSError as error:
        raise ModelError(
            f"the quickstart's models cannot be kept in {folder.parent}: {error}; set RLHF_PG_CACHE to a folder that "
            "can be written"
        ) from error
    return folder


def _fingerprint(sizes: Sizes) -> str:
    """A hash of all that the models depend on."""
    specs = [importlib.util.find_spec(name) for name in _SOURCES]
    sources = [Path(spec.origin).read_bytes() for spec in specs if spec and spec.origin]
    versions = [importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers")]
    parts = [*sources, json.dumps([versions, asdict(sizes)]).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def _build_apart(folder: Path, sizes: Sizes, say: Say) -> None:
    """Run ``rlhf_pg.quickstart.models`` in a process of its own, and pass on what it says."""
    environment = {name: value for name, value in os.environ.items() if not _LAUNCHER.match(name)} | {
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "PYTHONUTF8": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    command = [sys.executable, "-m", "rlhf_pg.quickstart.models", str(folder), json.dumps(asdict(sizes))]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=complaints, text=True, encoding="utf-8"
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            say(line.rstrip())
        if process.wait():
            complaints.seek(0)
            end = complaints.read()[-2000:]
            raise ModelError(f"building the quickstart's models ended with exit code {process.returncode}: {end}")
