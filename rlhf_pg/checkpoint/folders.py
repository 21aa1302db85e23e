"""Checkpoints on disk: written beside, flushed, renamed; whole only with the manifest of hashes written last."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf_pg.errors import CheckpointError

FORMAT = 1
FOLDER = "checkpoints"
MANIFEST = "manifest.json"
STATE = "state.json"
_MARGIN_BYTES = 16 * 2**20
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
_WHOLE = re.compile(r"step-(\d{6,})")
_HIDDEN = re.compile(r"\.(step-\d{6,})\.(tmp|old|del)-\d+")


def save_checkpoint(
    run_dir: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    keep_last: int,
) -> Path:
    """Write ``run_dir/checkpoints/step-NNNNNN`` so that at every moment some whole checkpoint stands on the disk.

    One process of a run calls this. The files go to a hidden folder beside, are flushed to the disk, and appear under
    their name by one rename; a checkpoint of the same step is replaced, and older ones beyond ``keep_last`` are
    deleted only then.

    Args:
        run_dir: the run's folder.
        step: training steps done.
        tensors: groups of tensors by name, each written to ``GROUP.safetensors``; any dtype and device.
        state: everything else, as JSON: keys are strings, tuples come back as lists, floats to the bit.
        keep_last: whole checkpoints kept, this one included; at least 1.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: the disk has no room, or a write failed; older checkpoints are as they were.
        ValueError: ``state`` holds a NaN or an infinity, which JSON has not; give None instead.
    """
    text = json.dumps(state, allow_nan=False, indent=1)
    folder = run_dir / FOLDER
    final = folder / f"step-{step:06d}"
    partial = folder / f".{final.name}.tmp-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        sizes = [tensor.numel() * tensor.element_size() for group in tensors.values() for tensor in group.values()]
        _check_space(folder, sum(sizes) + len(text))
        _write(partial, tensors, text)
        if final.exists():
            # A folder cannot be renamed over a full one. Should we die between the two renames, the old one is still
            # found under its hidden name, because no folder stands under the plain one.
            final.rename(folder / f".{final.name}.old-{os.getpid()}")
        partial.rename(final)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"The checkpoint of step {step} could not be written to {folder}: {error}. Earlier checkpoints are as they "
            "were; free some space or check the disk, then resume."
        ) from error
    # Later ones are damaged ones of before a resume: they are no reason to delete what is whole.
    kept = [(number, path) for number, path in _candidates(folder) if number <= step]
    for number, path in kept[: -max(keep_last, 1)]:
        # Renamed first, so that a kill in the middle of deleting leaves no half of a checkpoint under its name.
        path.rename(folder / f".step-{number:06d}.del-{os.getpid()}")
    _sweep(folder)
    return final


def newest_checkpoint(run_dir: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint of a run, every file of it verified by its hash.

    Args:
        run_dir: the run's folder.
        warn: is told, in words, of each newer checkpoint that is damaged.

    Returns:
        The checkpoint's folder, or None if the run has no checkpoint at all.

    Raises:
        CheckpointError: there are checkpoints and all of them are damaged.
    """
    candidates = _candidates(run_dir / FOLDER)
    for _, path in reversed(candidates):
        try:
            _verify(path)
        except CheckpointError as error:
            warn(f"{error} Falling back to the checkpoint before it.")
        else:
            return path
    if candidates:
        raise CheckpointError(
            f"All {len(candidates)} checkpoints in {run_dir / FOLDER} are damaged, so this run cannot be resumed; "
            "start it anew under another run.name."
        )
    return None


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read a checkpoint after verifying every file of it.

    Args:
        path: a checkpoint's folder, as ``newest_checkpoint`` gives it.

    Returns:
        The groups of tensors, on the CPU, and the JSON state.

    Raises:
        CheckpointError: a file is missing, has another size or hash, is a pickle, or the format is unknown.
    """
    names = _verify(path)
    try:
        groups = {Path(name).stem: load_file(path / name) for name in names if name.endswith(".safetensors")}
        state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"The checkpoint {path} cannot be read: {error}.") from error
    return groups, state


def _write(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: str) -> None:
    """Write and flush every file of a checkpoint, the manifest last."""
    folder.mkdir()
    for group, members in tensors.items():
        save_file(_writable(members), folder / f"{group}.safetensors")
    (folder / STATE).write_text(state, encoding="utf-8")
    files = {}
    for path in sorted(folder.iterdir()):
        _flush(path)
        files[path.name] = {"sha256": _sha256(path), "bytes": path.stat().st_size}
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files}, indent=1), encoding="utf-8")
    _flush(folder / MANIFEST)
    _flush(folder)


def _writable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors of which no two share memory, which safetensors refuses."""
    seen: set[int] = set()
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        address = plain.untyped_storage().data_ptr()
        result[name] = plain.clone() if address in seen else plain
        seen.add(address)
    return result


def _check_space(folder: Path, size: int) -> None:
    """Refuse to begin a checkpoint that the disk cannot hold."""
    needed, free = size + size // 50 + _MARGIN_BYTES, shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"A checkpoint needs {needed / 2**20:.0f} MiB and {folder} has {free / 2**20:.0f} MiB free; free some "
            "space, lower run.keep_last, or move run.output_dir to another disk. Earlier checkpoints are as they were."
        )


def _candidates(folder: Path) -> list[tuple[int, Path]]:
    """Everything that may be a checkpoint, by step: named folders, and replaced ones whose successor never arrived."""
    if not folder.is_dir():
        return []
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        hidden = _HIDDEN.fullmatch(path.name)
        if _WHOLE.fullmatch(path.name):
            found[path.name] = path
        elif hidden and hidden[2] == "old" and not (folder / hidden[1]).exists():
            found.setdefault(hidden[1], path)
    return sorted((int(name.removeprefix("step-")), path) for name, path in found.items())


def _sweep(folder: Path) -> None:
    """Delete hidden left-overs: unfinished, half-deleted, and replaced ones whose successor is there."""
    for path in folder.iterdir():
        hidden = _HIDDEN.fullmatch(path.name)
        if hidden and (hidden[2] != "old" or (folder / hidden[1]).exists()):
            shutil.rmtree(path, ignore_errors=True)


def _verify(path: Path) -> list[str]:
    """Check a checkpoint against its manifest; the names of its files."""
    try:
        return _verified_names(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"The checkpoint {path} is damaged: its {MANIFEST} cannot be read ({error}).") from error


def _verified_names(path: Path) -> list[str]:
    if not path.is_dir():
        raise CheckpointError(f"There is no checkpoint at {path}.")
    pickles = sorted(entry.name for entry in path.iterdir() if entry.suffix in _PICKLES)
    if pickles:
        raise CheckpointError(
            f"The checkpoint {path} holds {pickles[0]}, a pickle: reading one can run any code, so it is refused; only "
            "safetensors and JSON are read."
        )
    if not (path / MANIFEST).is_file():
        raise CheckpointError(f"The checkpoint {path} is damaged: {MANIFEST} is missing, so it was never finished.")
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    if manifest["format"] != FORMAT:
        raise CheckpointError(
            f"The checkpoint {path} has format {manifest['format']!r} and this version reads {FORMAT}; resume it with "
            "the version of rlhf_pg that wrote it."
        )
    files: dict[str, dict[str, Any]] = manifest["files"]
    for name in [*files, STATE]:
        file = path / name
        if Path(name).name != name or name not in files or not file.is_file():
            raise CheckpointError(f"The checkpoint {path} is damaged: {name} is missing.")
        size = file.stat().st_size
        if size != files[name]["bytes"]:
            raise CheckpointError(
                f"The checkpoint {path} is damaged: {name} has {size} bytes, not {files[name]['bytes']}."
            )
        if _sha256(file) != files[name]["sha256"]:
            raise CheckpointError(f"The checkpoint {path} is damaged: the contents of {name} have changed (SHA-256).")
    return list(files)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
