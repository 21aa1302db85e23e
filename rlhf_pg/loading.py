"""Load the models of a run from folders or a hub, and check that they fit each other."""

from __future__ import annotations

import copy
import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from rlhf_pg.config.sections import LoraConfig, PolicyConfig
from rlhf_pg.config.tree import Config
from rlhf_pg.errors import ModelError
from rlhf_pg.models import Policy, Reference, ValueModel, frozen_copy, turn_dropout_off

_BUILTIN = {"builtin:reviews": "rlhf_pg.quickstart.build"}


@dataclass(frozen=True, slots=True)
class Models:
    """Everything with weights that a run uses, and the policy's tokenizer."""

    policy: Policy
    reference: Reference
    value: ValueModel | None
    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]  # every id that ends a response; empty with rollout.ignore_eos


def load_models(config: Config) -> Models:
    """Load policy, reference and, for ``advantage.baseline=value``, the value model; all on the CPU.

    Raises:
        ModelError: one cannot be loaded, has no end of sequence, or does not fit the policy.
    """
    logging.disable_progress_bar()
    tokenizer = load_tokenizer(config.policy)
    base = load_causal_lm(config.policy.model, config.policy, "policy.model")
    if config.policy.dtype == "float64" and cast(Any, base).config._attn_implementation == "eager":
        raise ModelError(
            f"policy.dtype=float64 with the eager attention of policy.model={config.policy.model} gives NaN beside padding; "
            "take policy.dtype=float32, or policy.attn_implementation=sdpa where the model has it"
        )
    trained_adapter = isinstance(base, PeftModel)
    if trained_adapter and config.policy.lora is not None:
        raise ModelError(
            f"policy.model={config.policy.model} is a LoRA adapter already, and policy.lora asks for another; "
            "remove policy.lora to go on training the one it has, or merge it into its base first"
        )
    value = _load_value(config, base) if config.advantage.baseline == "value" else None
    if config.reference.model is not None:
        frozen: nn.Module | None = load_causal_lm(config.reference.model, config.policy, "reference.model")
    elif config.policy.lora is None:
        frozen = frozen_copy(base)
    else:
        frozen = None
    model = base if config.policy.lora is None else _with_lora(base, config.policy.lora, "CAUSAL_LM", config.run.seed)
    if config.policy.gradient_checkpointing:
        cast(Any, model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if isinstance(model, PeftModel):
            cast(Any, model).enable_input_require_grads()
    turn_dropout_off(model)
    policy = Policy(model.train())
    reference = Reference(Policy(frozen.eval())) if frozen is not None else Reference(policy, adapters_off=True)
    _check_vocabularies(policy, reference, config, tokenizer)
    eos = () if config.rollout.ignore_eos else eos_ids(policy, tokenizer)
    if not eos and not config.rollout.ignore_eos:
        raise ModelError(
            f"policy.model={config.policy.model} and its tokenizer name no end-of-sequence token, so no response would "
            "ever end; set eos_token_id in its config.json, or rollout.ignore_eos=true for responses of fixed length"
        )
    return Models(policy, reference, value, tokenizer, eos)


def resolve_model(name: str) -> str:
    """The folder behind ``builtin:reviews``; any other name is itself."""
    if name in _BUILTIN:
        return str(importlib.import_module(_BUILTIN[name]).policy_folder())
    if name.startswith("builtin:"):
        raise ModelError(f"{name} is no model that comes with the package; there is {', '.join(_BUILTIN)}")
    return name


def load_tokenizer(config: PolicyConfig) -> PreTrainedTokenizerBase:
    """The policy's tokenizer: of its folder, or of the base model of an adapter."""
    name = resolve_model(config.model)
    if (base := _base_of_adapter(name)) and not (Path(name) / "tokenizer_config.json").is_file():
        name = resolve_model(base)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ModelError(
            f"policy.model={config.model}: no tokenizer could be loaded from it ({_first(error)})"
        ) from error
    return cast(PreTrainedTokenizerBase, tokenizer)


def load_causal_lm(name: str, config: PolicyConfig, key: str) -> nn.Module:
    """A causal LM, or an adapter on one (then a trainable ``PeftModel``), in the policy's dtype; safetensors only.

    Args:
        name: folder, hub id or ``builtin:reviews``.
        config: dtype, attention and trust of the policy.
        key: the configuration key that names it, for errors.
    """
    folder = resolve_model(name)
    if base_name := _base_of_adapter(folder):
        if not (Path(folder) / "adapter_model.safetensors").is_file():
            raise ModelError(
                f"{key}={name} has no adapter_model.safetensors; save the adapter so (a pickle is refused)"
            )
        base = load_causal_lm(base_name, config, key)
        return cast(nn.Module, PeftModel.from_pretrained(base, folder, is_trainable=True, autocast_adapter_dtype=False))
    settings: dict[str, Any] = {"dtype": getattr(torch, config.dtype), "use_safetensors": True}
    if config.attn_implementation is not None:
        settings["attn_implementation"] = config.attn_implementation
    revision = config.revision if key == "policy.model" else None
    return _load(AutoModelForCausalLM, folder, key, name, config.trust_remote_code, revision, settings)


def _base_of_adapter(folder: str) -> str | None:
    """The base model that an adapter's folder names; None for any other folder or a hub id."""
    if not (Path(folder) / "adapter_config.json").is_file():
        return None
    return str(PeftLoraConfig.from_pretrained(folder).base_model_name_or_path)


def _load(
    kind: Any, folder: str, key: str, name: str, trust: bool, revision: str | None, settings: dict[str, Any]
) -> nn.Module:
    if _looks_like_path(name) and not Path(folder).is_dir():
        raise ModelError(f"{key}={name}: there is no such folder; give a folder with a config.json, or a hub id")
    try:
        model, report = kind.from_pretrained(
            folder, trust_remote_code=trust, revision=revision, output_loading_info=True, **settings
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ModelError(
            f"{key}={name} could not be loaded: {_first(error)}. It must be a folder or a hub id with a config.json "
            "and weights in safetensors (a pickle is refused)"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"{key}={name} lacks {len(missing)} of the weights that its config asks for ({missing[0]}, ...): they would "
            "be random; give a checkpoint of the whole model"
        )
    return cast(nn.Module, model)


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or (os.sep in name and name.count("/") > 1)


def _first(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]


def _with_lora(model: nn.Module, lora: LoraConfig, task: str, seed: int) -> nn.Module:
    """The model with new adapters, the same for the same seed whatever was drawn before."""
    settings = PeftLoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=list(lora.targets) or "all-linear",
        task_type=task,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return cast(nn.Module, get_peft_model(cast(Any, model), settings))
        except ValueError as error:
            raise ModelError(
                f"policy.lora.targets={list(lora.targets)}: {_first(error)}; leave it empty to adapt every linear layer"
            ) from error


def _load_value(config: Config, base: nn.Module) -> ValueModel:
    """The value model: from its own folder, or a copy of the policy's starting weights without adapters."""
    name = config.value.model
    if name is None:
        causal: Any = copy.deepcopy(base)
        if isinstance(causal, PeftModel):
            causal = causal.merge_and_unload()
        backbone = causal.base_model
    else:
        settings: dict[str, Any] = {"dtype": getattr(torch, config.policy.dtype), "use_safetensors": True}
        backbone = _load(
            AutoModel, resolve_model(name), "value.model", name, config.policy.trust_remote_code, None, settings
        )
    ours, theirs = _embeddings(base), _embeddings(backbone)
    if ours != theirs:
        raise ModelError(
            f"value.model={name} reads {theirs} tokens and the policy {ours}; it must share the policy's tokenizer"
        )
    if config.policy.lora is not None:
        backbone = _with_lora(backbone, config.policy.lora, "FEATURE_EXTRACTION", config.run.seed)
    else:
        backbone.requires_grad_(True)
    if config.policy.gradient_checkpointing:
        backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if config.policy.lora is not None:
            backbone.enable_input_require_grads()
    turn_dropout_off(backbone)
    return ValueModel(backbone).train()


def _embeddings(model: Any) -> int:
    return int(model.get_input_embeddings().num_embeddings)


def eos_ids(policy: Policy, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every end-of-sequence id: of the generation config, the model's config and the tokenizer."""
    generation = getattr(policy.model, "generation_config", None)
    found: set[int] = set()
    for ids in (getattr(generation, "eos_token_id", None), policy.config.eos_token_id, tokenizer.eos_token_id):
        if ids is not None:
            found.update([ids] if isinstance(ids, int) else cast(Sequence[int], ids))
    return tuple(sorted(found))


def _check_vocabularies(
    policy: Policy, reference: Reference, config: Config, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Policy, reference and tokenizer must mean the same by an id."""
    with reference.active() as frozen:
        if frozen.vocabulary != policy.vocabulary:
            raise ModelError(
                f"reference.model={config.reference.model} has a vocabulary of {frozen.vocabulary} and the policy of "
                f"{policy.vocabulary}; the KL needs the same tokens: give a reference of the same family"
            )
    if len(tokenizer) > policy.vocabulary:
        raise ModelError(
            f"policy.model={config.policy.model}: its tokenizer has {len(tokenizer)} tokens and its output layer "
            f"{policy.vocabulary}; resize the model's embeddings and save it again"
        )
    if config.reference.model is not None:
        try:
            other = AutoTokenizer.from_pretrained(resolve_model(config.reference.model))
        except (OSError, ValueError):
            return  # a reference without a tokenizer of its own is taken at its word
        if other.get_vocab() != tokenizer.get_vocab():
            raise ModelError(
                f"reference.model={config.reference.model} has another tokenizer than the policy; the KL needs the same "
                "tokens: give a reference of the same family"
            )


def context_length(policy: Policy) -> int | None:
    """The most positions that the model was made for, where its config says."""
    length = getattr(policy.config.get_text_config(), "max_position_embeddings", None)
    return int(length) if length else None
