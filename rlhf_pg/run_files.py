"""The folder of a run: its configuration, checkpoints, models, rollouts and figure."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from rlhf_pg.algorithm import sequence_kl
from rlhf_pg.checkpoint import (
    fingerprint,
    load_checkpoint,
    load_optimizer_tensors,
    newest_checkpoint,
    optimizer_tensors,
    save_checkpoint,
)
from rlhf_pg.config.load import to_yaml
from rlhf_pg.config.tree import Config
from rlhf_pg.data import PromptSource
from rlhf_pg.errors import CheckpointError, ConfigError
from rlhf_pg.learner import Learner
from rlhf_pg.loading import Models
from rlhf_pg.tracking import TABLES, SampleRow, model_card, read_metrics, training_figure
from rlhf_pg.types import ModelPasses, ScoredRollout, TrainBatch

_SAMPLES_SHOWN = 3


class RunFiles:
    """What a run keeps in ``run.output_dir/run.name``.

    Raises:
        ConfigError: a new run would overwrite one that is there; one that never measured anything may be.
    """

    def __init__(self, config: Config, resumed: bool = False) -> None:
        self.config = config
        self.run_dir = Path(config.run.output_dir) / config.run.name
        if not resumed and not config.run.overwrite and read_metrics(self.run_dir):
            raise ConfigError(
                f"run.name={config.run.name}: {self.run_dir} holds a run already; go on with it by --resume {self.run_dir}, "
                "take another run.name, or set run.overwrite=true"
            )

    def create(self) -> None:
        """An empty folder with the resolved configuration."""
        for name in ("checkpoints", *TABLES, "final", "best"):
            shutil.rmtree(self.run_dir / name, ignore_errors=True)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.write_config()

    def write_config(self) -> None:
        """``config.yaml``, replaced in one move."""
        beside = self.run_dir / ".config.yaml.tmp"
        beside.write_text(to_yaml(self.config), encoding="utf-8")
        os.replace(beside, self.run_dir / "config.yaml")

    def save(self, step: int, learner: Learner, models: Models, state: Mapping[str, Any]) -> None:
        """A checkpoint: trained weights, optimizer, and everything that the next step depends on."""
        scaler = learner.accelerator.scaler
        state = {
            **state,
            "reference": fingerprint(models.reference.weights()),
            "scaler": None if scaler is None else scaler.state_dict(),
            "nonfinite_in_a_row": learner.nonfinite_in_a_row,
        }
        groups = {
            "weights": {name: weight.detach() for name, weight in learner.named_parameters},
            "optimizer": optimizer_tensors(learner.adamw, learner.named_parameters),
        }
        save_checkpoint(self.run_dir, step, groups, state, self.config.run.keep_last)

    def load(self, learner: Learner, models: Models, warn: Callable[[str], None]) -> dict[str, Any] | None:
        """Restore the newest whole checkpoint; its state, or None if there is none.

        Raises:
            CheckpointError: none is whole, or it belongs to other models.
        """
        path = newest_checkpoint(self.run_dir, warn)
        if path is None:
            return None
        groups, state = load_checkpoint(path)
        if state["reference"] != fingerprint(models.reference.weights()):
            raise CheckpointError(
                f"{path} was made against another reference: the weights behind policy.model="
                f"{self.config.policy.model} (or reference.model) have changed since; put the old ones back"
            )
        saved, own = groups["weights"], dict(learner.named_parameters)
        odd = sorted(set(saved) ^ set(own)) or [name for name in own if own[name].shape != saved[name].shape]
        if odd:
            raise CheckpointError(
                f"{path} is a checkpoint of another model: {odd[0]} does not match; resume its own run"
            )
        with torch.no_grad():
            for name, weight in own.items():
                weight.copy_(saved[name])
        load_optimizer_tensors(learner.adamw, learner.named_parameters, groups["optimizer"])
        if learner.accelerator.scaler is not None:
            learner.accelerator.scaler.load_state_dict(state["scaler"])
        learner.nonfinite_in_a_row = state["nonfinite_in_a_row"]
        return state

    def save_model(self, name: str, models: Models, metrics: Mapping[str, Any]) -> None:
        """The policy as ``from_pretrained`` loads it, with tokenizer and model card; replaced as a whole."""
        folder, beside = self.run_dir / name, self.run_dir / f".{name}.tmp"
        shutil.rmtree(beside, ignore_errors=True)
        model = cast(Any, models.policy.model)
        model.save_pretrained(beside)
        models.tokenizer.save_pretrained(beside)
        card = model_card(to_yaml(self.config), self.config.policy.model, metrics, None)
        (beside / "README.md").write_text(card, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(beside, folder)

    def draw(self) -> Path:
        """The figure of the run so far."""
        path = self.run_dir / "training.png"
        training_figure(read_metrics(self.run_dir), path)
        return path

    def flat_config(self) -> dict[str, Any]:
        """The configuration as trackers take it: dotted keys, plain values."""
        return dict(_flat("", self.config.model_dump(mode="json")))


def _flat(prefix: str, tree: Mapping[str, Any]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            found += _flat(f"{key}.", value)
        else:
            found.append((key, value if isinstance(value, (int, float, str, bool)) else str(value)))
    return found


def rollout_columns(scored: ScoredRollout, passes: ModelPasses, batch: TrainBatch) -> dict[str, list[Any]]:
    """A step's samples as columns: what was sampled, each reward, KL, advantages, why it ended."""
    rollout, group = scored.rollout, scored.rollout.group_size
    kl = sequence_kl(scored, passes)
    lengths = rollout.lengths.tolist()

    def cut(table: Tensor) -> list[list[Any]]:
        return [row[:length] for row, length in zip(table.tolist(), lengths, strict=True)]

    prompts = rollout.prompts.prompts
    return {
        "prompt_index": [index for index in rollout.prompts.indices.tolist() for _ in range(group)],
        "prompt": [_text(prompt) for prompt in prompts for _ in range(group)],
        "completion": list(rollout.texts),
        "finish_reason": list(rollout.finish_reason),
        "score": torch.where(scored.valid, scored.scores, torch.nan).tolist(),
        **{f"rewards/{name}": values.tolist() for name, values in scored.components.items()},
        **{f"extra/{name}": [None if x is None else str(x) for x in values] for name, values in scored.extras.items()},
        **({} if kl is None else {"kl": kl.tolist()}),
        "response_ids": cut(rollout.response_ids),
        "logprobs": cut(rollout.logprobs),
        "advantages": cut(batch.advantages),
    }


def sample_rows(scored: ScoredRollout, passes: ModelPasses, source: PromptSource) -> list[SampleRow]:
    """The first completion of the first prompts, for the table on the terminal."""
    rollout, kl = scored.rollout, sequence_kl(scored, passes)
    totals = scored.totals
    rows = range(0, len(rollout), rollout.group_size)[:_SAMPLES_SHOWN]
    names = dict(zip(source.indices, source.texts, strict=True))
    return [
        SampleRow(
            names[int(rollout.prompts.indices[row // rollout.group_size])],
            rollout.texts[row],
            float(totals[row]) if scored.valid[row] else None,
            None if kl is None else float(kl[row]),
            rollout.finish_reason[row],
        )
        for row in rows
    ]


def _text(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(f"{m['role']}: {m['content']}" for m in prompt)


def peak_memory_gb(device: torch.device) -> float:
    """The most memory used so far, GB: the accelerator's where there is one, else the process's."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 1e9
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
