"""The three ways in which a classifier's weights are kept: whole, as an adapter on a base, as a head for a causal LM."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils import cached_file, logging

from rlhf_pg.errors import ModelError

_ADAPTER = "base_model.model."  # peft writes it before the base model's own names
# What trainers call the layer: TRL's v_head.summary, score and value_head of OpenRLHF, and a bare layer.
_HEADS = re.compile(r"(?:^|\.)(?:v_head\.summary|v_head|value_head|reward_head|score|head)\.weight$|^weight$")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where weights come from, and how they are read."""

    name: str  # folder or hub id
    dtype: torch.dtype
    revision: str | None = None
    trust_remote_code: bool = False

    def file(self, name: str) -> Path | None:
        """A file of it, brought here from the hub if need be; ``None`` where there is none, or none can be had now."""
        try:
            found = cached_file(
                self.name,
                name,
                revision=self.revision,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
        except (OSError, ValueError) as error:
            raise ModelError(f"reward model {self.name!r} is neither a folder here nor on the hub: {error}") from error
        return None if found is None else Path(found)

    def load(self, kind: Any, what: str, **settings: Any) -> tuple[Any, set[str]]:
        """The model, and the names of weights that are random because the checkpoint lacks them."""
        folder = Path(self.name)
        if folder.is_dir() and not any(folder.glob("*.safetensors")):
            raise ModelError(
                f"reward model {self.name!r} has no safetensors file, and pickled weights are not loaded because they "
                "can run code; convert it with save_pretrained, on a machine where you trust its source"
            )
        level = logging.get_verbosity()
        logging.set_verbosity_error()  # what is missing is told below
        logging.disable_progress_bar()
        try:
            model, info = kind.from_pretrained(
                self.name,
                revision=self.revision,
                dtype=self.dtype,
                use_safetensors=True,
                trust_remote_code=self.trust_remote_code,
                output_loading_info=True,
                **settings,
            )
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            raise ModelError(f"reward model {self.name!r} cannot be loaded as {what}: {error}") from error
        finally:
            logging.set_verbosity(level)
        return model, {*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])}


class HeadOnCausalLM(nn.Module):
    """A causal LM's backbone and a linear layer, as a sequence classifier with one label.

    Args:
        backbone: the causal LM without its output layer.
        score: from hidden size to 1.
    """

    def __init__(self, backbone: Any, score: nn.Linear) -> None:
        super().__init__()
        self.base_model = backbone
        self.score = score
        self.config = backbone.config
        self.config.num_labels = 1

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        """``logits`` (N, 1) at the last token of each row; rows are padded on the right."""
        hidden = self.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        rows = torch.arange(len(input_ids), device=input_ids.device)
        return SimpleNamespace(logits=self.score(hidden[rows, attention_mask.sum(1) - 1]))


def load_network(source: Checkpoint, *, head: str | None, base: str | None) -> tuple[Any, Checkpoint]:
    """The classifier, and where its tokenizer is.

    Args:
        source: a sequence classifier, an adapter on one, or with ``head`` a causal LM.
        head: a safetensors file.
        base: replaces the base model that an adapter names.

    Raises:
        ModelError: it cannot be loaded, or something that it needs is not there.
    """
    adapter = source.file("adapter_config.json")
    if base is not None and adapter is None:
        raise ModelError(f"args.base names an adapter's base model, and {source.name!r} is no adapter; leave it out")
    if head is not None:
        if adapter is not None:
            raise ModelError(
                f"args.head goes on a whole causal LM, and {source.name!r} is an adapter; merge it into its base first"
            )
        return _with_head(source, Path(head).expanduser()), source
    if adapter is not None:
        return _with_adapter(source, adapter.parent, base)
    model, missing = source.load(AutoModelForSequenceClassification, "a sequence classifier")
    if missing:
        raise ModelError(
            f"reward model {source.name!r} lacks the weights {sorted(missing)}, which would be random; it must be saved "
            "from a sequence-classification model, its head included (a causal LM with a head in a file of its own: "
            "name the file in args.head)"
        )
    return model, source


def _with_adapter(source: Checkpoint, folder: Path, given: str | None) -> tuple[Any, Checkpoint]:
    """An adapter merged into its base."""
    settings = PeftConfig.from_pretrained(str(folder))
    said = f"reward model {source.name!r} is an adapter"
    if settings.task_type not in ("SEQ_CLS", None):
        raise ModelError(
            f"{said} of task type {settings.task_type}, which scores no text; give one of task type SEQ_CLS, trained on a "
            "sequence-classification model"
        )
    if settings.is_prompt_learning:
        raise ModelError(
            f"{said} of type {settings.peft_type.value}, which cannot be merged into its base; give LoRA or another that can"
        )
    file = source.file("adapter_model.safetensors")
    if file is None:
        raise ModelError(
            f"{said} without adapter_model.safetensors, and pickled weights are not loaded because they can run code; save "
            "it again with save_pretrained, on a machine where you trust its source"
        )
    name = given or settings.base_model_name_or_path
    if not name:
        raise ModelError(f"{said} that names no base model; name it in args.base")
    origin = replace(source, name=name, revision=None if given else settings.revision)
    shapes = {key.removeprefix(_ADAPTER): shape for key, shape in _shapes(file).items()}
    try:
        config = _config_of(source, origin, shapes)
        model, missing = origin.load(
            AutoModelForSequenceClassification, "a sequence classifier", config=config, ignore_mismatched_sizes=True
        )
    except ModelError as error:
        raise ModelError(f"{said} on {name!r}: {error}; args.base names the base model elsewhere") from error
    if absent := sorted(missing - shapes.keys()):
        raise ModelError(
            f"{said} on {name!r}, and neither has the weights {absent}, which would be random; save the adapter with its "
            "head: modules_to_save in its peft configuration"
        )
    try:
        merged = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except (ValueError, RuntimeError) as error:
        raise ModelError(f"{said} that does not fit its base {name!r}: {error}; name its own in args.base") from error
    return merged, source if source.file("tokenizer_config.json") else origin


def _config_of(source: Checkpoint, base: Checkpoint, shapes: dict[str, tuple[int, ...]]) -> Any:
    """The configuration beside the adapter, or the base's with as many labels as the adapter's head has."""
    own = source.file("config.json")
    where = source if own is not None else base
    try:
        config = AutoConfig.from_pretrained(
            where.name, revision=where.revision, trust_remote_code=where.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"there is no configuration to be read: {error}") from error
    labels = {
        shape[0]
        for key, shape in shapes.items()
        if key.endswith(("score.weight", "classifier.weight", "out_proj.weight"))
    }
    if own is None and len(labels) == 1 and labels != {config.num_labels}:
        config.num_labels = labels.pop()
    return config


def _with_head(source: Checkpoint, file: Path) -> HeadOnCausalLM:
    """A causal LM's backbone under the linear layer that a file holds."""
    if file.suffix != ".safetensors" or not file.is_file():
        raise ModelError(f"args.head={str(file)!r} must be a safetensors file with the head's weights")
    shapes = _shapes(file)
    found = [key for key in shapes if _HEADS.search(key)] or (list(shapes) if len(shapes) == 1 else [])
    if len(found) != 1:
        problem = f"has {len(found)} that may be the head" if found else "has none that is called like a head"
        raise ModelError(
            f"args.head={str(file)!r} {problem}, among the keys {sorted(shapes)}; save a file with one linear layer in it, "
            "as score.weight and, where it has one, score.bias"
        )
    causal, missing = source.load(AutoModelForCausalLM, "a causal LM, which args.head goes on")
    if missing:
        raise ModelError(
            f"reward model {source.name!r} lacks the weights {sorted(missing)}, which would be random; give the whole causal LM"
        )
    size = causal.config.get_text_config().hidden_size
    if shapes[found[0]] != (1, size):
        raise ModelError(
            f"args.head={str(file)!r}: {found[0]} has the shape {list(shapes[found[0]])}, and a head of {source.name!r} has "
            f"[1, {size}]; give the head that was trained on this model"
        )
    bias = found[0].removesuffix("weight") + "bias"
    score = nn.Linear(size, 1, bias=bias in shapes, dtype=source.dtype)
    with safe_open(file, "pt") as tensors, torch.no_grad():
        score.weight.copy_(tensors.get_tensor(found[0]))
        if bias in shapes:
            score.bias.copy_(tensors.get_tensor(bias))
    return HeadOnCausalLM(causal.base_model, score)


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in a safetensors file."""
    try:
        with safe_open(file, "pt") as tensors:
            return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118 -- no dict
    except SafetensorError as error:
        raise ModelError(f"{file} is no safetensors file: {error}") from error
