"""From a checkpoint on disk or a hub, and what the user says of it, to a reward function."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from reward_models.classifier.networks import Checkpoint, load_network
from reward_models.classifier.scoring import Classifier, Output
from rlhf_pg.config.sections import Dtype
from rlhf_pg.errors import ModelError


def load_classifier(
    model: str,
    *,
    label: str | None = None,
    output: Output = "log_odds",
    center: float | None = None,
    prompt_too: bool = True,
    append_eos: bool = False,
    chat_template: str | None = None,
    max_tokens: int | None = None,
    batch_tokens: int = 8192,
    head: str | None = None,
    base: str | None = None,
    dtype: Dtype = "float32",
    device: torch.device | str = "cpu",
    offload: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Classifier:
    """Load a classifier and its tokenizer; weights from safetensors only.

    Args:
        model: folder or hub id of a sequence-classification checkpoint or of an adapter on one (LoRA and others that
            can be merged; its head comes from ``modules_to_save``); with ``head``, of a causal LM.
        label: the label that is rewarded; a model with one label needs none.
        output: ``logit`` of the label; ``log_odds``, ``log p - log(1 - p)``, which with one label is the logit; or
            ``probability``, p, which with one label is the logit's sigmoid.
        center: subtracted from logit and log-odds, and before the sigmoid; default: ``reward_center`` of the model's
            config.json, where there is one, else 0.
        prompt_too: score prompt and completion; false: the completion's text alone.
        append_eos: end each text with the end-of-sequence token. Completions come without it, and a model that was
            trained on texts that end so reads its score there.
        chat_template: replaces the tokenizer's own.
        max_tokens: longer texts lose their beginning; default: what the model can take.
        batch_tokens: tokens, padding included, of one forward pass; a longer row goes alone.
        head: a safetensors file with a linear layer from the hidden size to 1, read at the last token.
        base: folder or hub id of an adapter's base model, in place of the one that the adapter names.
        dtype: the weights' type.
        device: where the model runs.
        offload: keep the weights in main memory between calls, so that the device's is free for others; each call
            then waits for them to be moved. On the CPU there is nothing to move.
        revision: branch, tag or commit of a hub model.
        trust_remote_code: run Python code that comes with a hub model.

    Returns:
        The reward function.

    Raises:
        ModelError: the checkpoint cannot be loaded or has no classification head; the label is absent or missing;
            ``append_eos`` without such a token; a centre that is no number.
    """
    source = Checkpoint(model, getattr(torch, dtype), revision, trust_remote_code)
    network, words = load_network(source, head=head, base=base)
    tokenizer = _load_tokenizer(words)
    if max_tokens is not None and max_tokens < 1:
        raise ModelError(f"args.max_tokens of reward model {model!r} must be at least 1, got {max_tokens}")
    if append_eos and tokenizer.eos_token_id is None:
        raise ModelError(f"append_eos: the tokenizer of {model!r} has no end-of-sequence token")
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    config = network.config
    limits = (
        max_tokens,
        getattr(config.get_text_config(), "max_position_embeddings", None),
        tokenizer.model_max_length,
    )
    return Classifier(
        network.eval().requires_grad_(False),
        tokenizer,
        name=Path(model).name,
        label=_label_index(model, config, label),
        output=output,
        max_tokens=min(limit for limit in limits if limit is not None and limit > 0),  # XLNet says -1 for no limit
        batch_tokens=batch_tokens,
        prompt_too=prompt_too,
        append_eos=append_eos,
        center=_center(model, config, center),
        device=device,
        offload=offload,
    )


def _load_tokenizer(source: Checkpoint) -> Any:
    try:
        return AutoTokenizer.from_pretrained(
            source.name, revision=source.revision, trust_remote_code=source.trust_remote_code
        )
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(
            f"reward model {source.name!r} has no tokenizer that can be loaded: {error}; save the one that it was "
            "trained with beside it"
        ) from error


def _label_index(model: str, config: Any, label: str | None) -> int:
    names = {name: index for index, name in config.id2label.items()}
    if label is None and len(names) == 1:
        return 0
    if label in names:
        return int(names[label])
    given = "args.label is not set" if label is None else f"it has no label {label!r}"
    raise ModelError(f"reward model {model!r}: {given}; set args.label to one of its labels: {config.id2label}")


def _center(model: str, config: Any, given: float | None) -> float:
    """What is subtracted: the argument, else what the checkpoint's configuration says."""
    center = getattr(config, "reward_center", None) if given is None else given
    if center is None:
        return 0.0
    if isinstance(center, bool) or not isinstance(center, int | float) or not math.isfinite(center):
        where = "reward_center in its config.json" if given is None else "args.center"
        raise ModelError(f"reward model {model!r}: {where} must be a finite number, got {center!r}")
    return float(center)
