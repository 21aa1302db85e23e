"""Many completions of each held-out prompt from the frozen reference, scored: what best of n and the optimum are made of."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pyarrow.parquet
import torch
from torch import Tensor

from rlhf_pg.checkpoint import fingerprint
from rlhf_pg.config.tree import Config
from rlhf_pg.data import PromptSource, load_prompts
from rlhf_pg.distributed import make_accelerator
from rlhf_pg.errors import ConfigError, DataError
from rlhf_pg.frontier.grid import write_file
from rlhf_pg.frontier.same import differences, reference_settings
from rlhf_pg.loading import load_models
from rlhf_pg.ops.sampling import row_uniforms
from rlhf_pg.rewards import RewardRunner
from rlhf_pg.rollout import Sampler
from rlhf_pg.types import Rollout, ScoredRollout

FOLDER = "reference"
_PART_ROWS = 4096  # completions of a part, at most, where there are fewer prompts than that
_MADE_BY = "made_by.json"
_FOUND = (
    "reference.model",
    "reference.revision",
    "data.",
)  # settings that say where the weights and the prompts are found


def sample_reference(config: Config, samples: int, out: Path, say: Callable[[str], None] = print) -> Path:
    """Sample each held-out prompt from the frozen reference, score the completions by every reward, and keep them.

    Sample k of prompt p has random numbers of its own, which no evaluation of a run uses and which depend on nothing but
    ``evaluation.seed``, k and p. They are written part by part, a few samples of every prompt each, and parts that are
    there are left alone: calling again goes on, and a larger number adds to what is there.

    Args:
        config: of any run of the frontier.
        samples: N, of each prompt.
        out: the frontier's folder.
        say: takes what the data says of itself, and each part as it is done.

    Returns:
        ``OUT/reference``, which :func:`read_reference` reads.

    Raises:
        ConfigError: N is below 1, or the samples there were made by another model, sampling, reward or set of prompts.
        DataError: no held-out prompts are configured.
    """
    if samples < 1:
        raise ConfigError(f"{samples} reference samples of each prompt were asked for; give 1 at least")
    accelerator = make_accelerator(config.run, ".")
    # A value model, which some recipes train, has no part in this.
    plain = Config.model_validate(config.model_dump() | {"advantage": {"baseline": "none"}, "value": {}})
    models = load_models(plain)
    for module in (models.policy, models.reference.policy):
        module.to(accelerator.device)
    source = load_prompts(config.data, models.tokenizer, seed=config.run.seed, say=say).held_out
    if source is None:
        raise DataError("data.eval_size is 0, so there are no held-out prompts to sample; raise it")
    folder = out / FOLDER
    _check_maker(folder, _maker(config, source, fingerprint(models.reference.weights()), models.eos_ids))
    parts = [(number, part) for number, part in _parts(samples, len(source)) if not _is_there(folder, number, part)]
    sampler = replace(
        Sampler.of(config, models, accelerator.autocast),
        temperature=config.evaluation.temperature or config.rollout.temperature,
        top_p=config.evaluation.top_p,
    )
    runner = RewardRunner(config.reward, device=accelerator.device)
    try:
        for number, part in parts:
            with models.reference.active() as frozen:
                rollout = sampler(frozen, source.rows(0, len(source)), _numbers(config, part, len(source)))
            _write_part(folder, number, _columns(runner(rollout), source, part))
            say(f"Reference: {part.stop} of {samples} samples of {len(source)} prompts.")
    finally:
        runner.close()
    return folder


def read_reference(out: Path) -> dict[str, numpy.ndarray[Any, Any]]:
    """The reference's samples.

    Args:
        out: the frontier's folder.

    Returns:
        Arrays (P, N): ``prompt_index`` and ``length`` (tokens) integers; ``prompt``, ``completion`` and ``finish_reason`` text;
        ``completion_id`` integers, the same for the same tokens; ``reward`` and ``rewards/<name>`` floats, NaN where
        unscorable.

    Raises:
        DataError: there are none.
    """
    folder, found = out / FOLDER, []
    for path in sorted(folder.glob("part-*.parquet")):
        table = pyarrow.parquet.read_table(path)
        each = int(table.schema.metadata[b"samples"])
        found.append({name: table[name].to_numpy().reshape(-1, each) for name in table.column_names})
    if not found:
        raise DataError(f"{folder} holds no samples of the reference; make them first")
    return {name: numpy.concatenate([part[name] for part in found], 1) for name in found[0]}


def _parts(samples: int, prompts: int) -> Iterator[tuple[int, range]]:
    """The number and the samples of each part."""
    each = max(1, _PART_ROWS // prompts)
    for number, start in enumerate(range(0, samples, each)):
        yield number, range(start, min(start + each, samples))


def _path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:04d}.parquet"


def _is_there(folder: Path, number: int, part: range) -> bool:
    path = _path(folder, number)
    return path.is_file() and int(pyarrow.parquet.read_schema(path).metadata[b"samples"]) >= len(part)


def _numbers(config: Config, part: range, prompts: int) -> Tensor:
    """(P * samples of the part, T) uniform numbers, a prompt's rows adjacent."""
    width = config.rollout.max_new_tokens
    tables = [
        row_uniforms(config.evaluation.seed, "reference", sample, rows=range(prompts), columns=width) for sample in part
    ]
    return torch.stack(tables, 1).flatten(0, 1)


def _columns(scored: ScoredRollout, source: PromptSource, part: range) -> dict[str, list[Any]]:
    rollout = scored.rollout
    return {
        "prompt_index": [int(index) for index in source.indices for _ in part],
        "prompt": [text for text in source.texts for _ in part],
        "sample": [*part] * len(source),
        "completion": list(rollout.texts),
        "completion_id": _identities(rollout),
        "finish_reason": list(rollout.finish_reason),
        "length": rollout.lengths.tolist(),
        "reward": torch.where(scored.valid, scored.totals.double(), torch.nan).tolist(),
        **{f"rewards/{name}": values.double().tolist() for name, values in scored.components.items()},
    }


def _identities(rollout: Rollout) -> list[int]:
    """(B,) a number for each completion's tokens; two that differ share one with a probability of 2^-63."""
    rows = zip(rollout.response_ids.numpy().astype("<i8"), rollout.lengths.tolist(), strict=True)
    digests = (hashlib.sha256(ids[:length].tobytes()).digest() for ids, length in rows)
    return [int.from_bytes(digest[:8], "little") >> 1 for digest in digests]


def _write_part(folder: Path, number: int, columns: dict[str, list[Any]]) -> None:
    """Write a part in one move."""
    path = _path(folder, number)
    beside = path.with_name(f".{path.name}.tmp")
    table = pyarrow.table(columns)
    each = len(set(columns["sample"]))
    pyarrow.parquet.write_table(table.replace_schema_metadata({"samples": str(each)}), beside, compression="zstd")
    os.replace(beside, path)


def _maker(config: Config, source: PromptSource, weights: str, eos_ids: tuple[int, ...]) -> dict[str, Any]:
    """All that the samples and their scores depend on."""
    prompts = json.dumps([source.indices, source.texts, source.ids, source.columns], default=str)
    return {
        "reference.weights": weights,
        "held-out prompts": hashlib.sha256(prompts.encode()).hexdigest(),
        "end-of-sequence ids": list(eos_ids),
        "part rows": _PART_ROWS,
        # The weights and the prompts themselves are compared, wherever they lie.
        **{name: x for name, x in reference_settings(config).items() if not name.startswith(_FOUND)},
    }


def _check_maker(folder: Path, maker: dict[str, Any]) -> None:
    """Note who makes the samples, or refuse if those there were made otherwise."""
    path = folder / _MADE_BY
    if not path.is_file():
        write_file(path, json.dumps(maker, indent=1) + "\n")
        return
    changed = [name for name, _, _ in differences(json.loads(path.read_text(encoding="utf-8")), maker)]
    if changed:
        raise ConfigError(
            f"{folder} holds samples that were made otherwise: {', '.join(changed)} changed since. Go back to what it was, give "
            f"another --out, or remove {folder}"
        )
