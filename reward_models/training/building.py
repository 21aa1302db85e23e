"""The model and tokenizer that a reward model starts from, and how they are saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging

from reward_models.training.objectives import Objective
from rlhf_pg.errors import ConfigError, ModelError

_SPECIAL = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """What a reward model starts from.

    Args:
        model: folder or hub id; with ``from_config`` also a configuration's file.
        from_config: random weights of the model's architecture, for training from scratch.
        tokenizer: folder or hub id; default: the model's.
        new_tokenizer: with ``from_config``: train one on the texts of the data. ``words:N``: at most N lower-case words
            and marks that occur twice or more; ``bpe:N``: N byte pairs, nothing unknown.
        chat_template: replaces the tokenizer's own.
        dropout: probability for all of the model's dropouts; default: its configuration's.
        lora_rank: of adapters on every linear layer, the head trained beside them; 0: all weights are trained.
        lora_alpha: their scale times the rank; default: twice the rank.
    """

    model: str
    from_config: bool = False
    tokenizer: str | None = None
    new_tokenizer: str | None = None
    chat_template: str | None = None
    dropout: float | None = None
    lora_rank: int = 0
    lora_alpha: float | None = None

    def __post_init__(self) -> None:
        if self.new_tokenizer is not None:
            kind, _, size = self.new_tokenizer.partition(":")
            if not self.from_config or self.tokenizer is not None:
                raise ConfigError(
                    "new_tokenizer needs from_config and no tokenizer: pretrained weights know the tokens they were "
                    "trained with"
                )
            if kind not in ("words", "bpe") or not size.isdecimal() or int(size) < 300:
                raise ConfigError(f"new_tokenizer={self.new_tokenizer} must be words:N or bpe:N with N of 300 or more")
        if self.from_config and self.lora_rank:
            raise ConfigError("lora_rank adapts pretrained weights, and from_config has random ones; leave one out")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout} must be at least 0 and below 1")


def load_tokenizer(options: ModelOptions, texts: Sequence[str]) -> Any:
    """The tokenizer asked for; a new one is trained on ``texts``.

    Raises:
        ModelError: it cannot be loaded.
    """
    if options.new_tokenizer is not None:
        kind, _, size = options.new_tokenizer.partition(":")
        tokenizer = _train_tokenizer(texts, kind, int(size))
    else:
        name = options.tokenizer or options.model
        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError, ImportError) as error:
            raise ModelError(f"no tokenizer could be loaded from {name}: {_first(error)}") from error
    if options.chat_template is not None:
        tokenizer.chat_template = options.chat_template
    return tokenizer


def load_model(
    options: ModelOptions, tokenizer: Any, objective: Objective, labels: Sequence[str], say: Callable[[str], object]
) -> Any:
    """A sequence classifier in float32; its head is new unless the checkpoint has one of the same size.

    Args:
        options: where from.
        tokenizer: gives a model from a configuration its vocabulary.
        objective: written into the configuration.
        labels: of a classification; otherwise the model has one label.
        say: receives a sentence on what is new.

    Raises:
        ModelError: it cannot be loaded, or lacks weights other than the head's.
    """
    logging.disable_progress_bar()
    kinds = {"classification": "single_label_classification", "regression": "regression", "bradley_terry": None}
    settings: dict[str, Any] = {"num_labels": max(len(labels), 1), "problem_type": kinds[objective]}
    if labels:
        settings["id2label"] = dict(enumerate(labels))
        settings["label2id"] = {name: number for number, name in enumerate(labels)}
    try:
        config = AutoConfig.from_pretrained(options.model, **settings)
        _set_dropout(config, options)
        if options.from_config:
            text_config = config.get_text_config()
            text_config.vocab_size = len(tokenizer)
            for name in ("pad", "bos", "eos", "cls", "sep"):
                setattr(text_config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
            model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
            say(f"{sum(weights.numel() for weights in model.parameters()):,} random weights by {options.model}.")
            return model
        model, info = _load_pretrained(options.model, config)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise ModelError(
            f"model={options.model} cannot be loaded as a sequence classifier: {_first(error)}. It must be a folder or "
            "a hub id with a config.json and weights in safetensors (a pickle is refused)"
        ) from error
    new = sorted({*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])})
    body = f"{model.base_model_prefix}."
    if lacking := [name for name in new if name.startswith(body) and "pooler" not in name]:
        raise ModelError(
            f"model={options.model} lacks {len(lacking)} of the weights that its config asks for ({lacking[0]}, ...): "
            "they would be random; give a checkpoint of the whole model"
        )
    if new:
        say(f"New in {options.model}, drawn at random: {', '.join(new)}.")
    return model


def _load_pretrained(name: str, config: Any) -> tuple[Any, dict[str, Any]]:
    """The model, and which of its weights the checkpoint lacks: we tell that ourselves, so transformers need not."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        found: tuple[Any, dict[str, Any]] = AutoModelForSequenceClassification.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
        return found
    finally:
        logging.set_verbosity(level)


def with_lora(model: Any, options: ModelOptions) -> Any:
    """The model with adapters on every linear layer but the head, which is trained as it is; as it is at rank 0."""
    if not options.lora_rank:
        return model
    settings = LoraConfig(
        r=options.lora_rank,
        lora_alpha=2 * options.lora_rank if options.lora_alpha is None else options.lora_alpha,
        lora_dropout=options.dropout or 0.0,
        target_modules="all-linear",
        modules_to_save=head_names(model),
        task_type="SEQ_CLS",
    )
    return get_peft_model(model, settings)


def head_names(model: Any) -> list[str]:
    """The names of the modules beside the backbone that have weights."""
    return [
        name
        for name, module in model.named_children()
        if name != model.base_model_prefix and any(True for _ in module.parameters())
    ]


def save(model: Any, tokenizer: Any, folder: Path, *, merge: bool) -> None:
    """Write weights, configuration and tokenizer; adapters merged into the weights, or as they are.

    Adapters by themselves load through ``load_classifier``, or through peft on their base model; the rest also through
    ``AutoModelForSequenceClassification``.
    """
    if isinstance(model, PeftModel) and merge:
        model = model.merge_and_unload()
    model.save_pretrained(folder)
    model.config.save_pretrained(folder)  # an adapter's own files say nothing of labels and centre
    tokenizer.save_pretrained(folder)


def _train_tokenizer(texts: Sequence[str], kind: str, size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of at most ``size`` tokens, which puts BOS before a text."""
    special = list(_SPECIAL.values())
    if kind == "words":
        made = Tokenizer(models.WordLevel(unk_token="<unk>"))
        made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordLevelTrainer(
            vocab_size=size, min_frequency=2, special_tokens=special, show_progress=False
        )
    else:
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    made.train_from_iterator(texts, trainer)
    bos = _SPECIAL["bos_token"]
    made.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, made.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, **_SPECIAL)


def _set_dropout(config: Any, options: ModelOptions) -> None:
    if options.dropout is None:
        return
    text_config = config.get_text_config()
    names = [
        name
        for name, value in vars(text_config).items()
        if (name.endswith(("dropout", "pdrop", "dropout_prob"))) and (value is None or isinstance(value, (int, float)))
    ]
    if not names:
        raise ModelError(f"dropout={options.dropout}: {options.model} has no dropout; leave it out")
    for name in names:
        setattr(text_config, name, options.dropout)


def _first(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
