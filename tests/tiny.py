"""Tiny random models of several families, a word tokenizer, and what tests feed them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from rlhf_pg.config.tree import Config
from rlhf_pg.models import Policy, turn_dropout_off
from rlhf_pg.types import FinishReason, PromptBatch, Rollout

V = 61  # above 50, the top_k that transformers takes by default; no divisor of anything
PAD, EOS, BOS = 0, 1, 2
T_MAX = 64

_SIZES: dict[str, Any] = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": T_MAX,
    "initializer_range": 0.3,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
_GPT2: dict[str, Any] = {
    "vocab_size": V,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": T_MAX,
    "initializer_range": 0.3,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", _GPT2),
    "llama": ("LlamaConfig", _SIZES),
    "qwen2": ("Qwen2Config", _SIZES),
    "mistral": ("MistralConfig", {**_SIZES, "sliding_window": 4}),
    "gemma2": (
        "Gemma2Config",
        {**_SIZES, "sliding_window": 4, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0},
    ),
    "cohere": ("CohereConfig", {**_SIZES, "logit_scale": 0.25}),
    "granite": ("GraniteConfig", {**_SIZES, "logits_scaling": 8.0}),
}
PLAIN = ("gpt2", "llama", "qwen2")  # logits are lm_head(hidden)
SCALED = ("gemma2", "cohere", "granite")  # and here they are not
FAMILIES = tuple(_FAMILIES)


def model_config(family: str, **changes: Any) -> Any:
    name, settings = _FAMILIES[family]
    return getattr(transformers, name)(**{**settings, **changes})


def causal_lm(family: str, dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """The same weights for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(model_config(family, **changes))
    return model.to(dtype)


def policy(family: str, dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any) -> Policy:
    """As ``load_models`` makes it: dropout 0, in training mode."""
    model = causal_lm(family, dtype, seed, **changes)
    turn_dropout_off(model)
    return Policy(model.train())


def tokenizer(eos: str | None = "<eos>", words: int = V) -> PreTrainedTokenizerFast:
    """One token a word: w3, w4, ... after <pad>, <eos> and <bos>."""
    vocabulary = {"<pad>": PAD, "<eos>": EOS, "<bos>": BOS} | {f"w{i}": i for i in range(3, words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    extra = {} if eos is None else {"eos_token": eos}
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", **extra)


def save(folder: Path, family: str = "llama", seed: int = 0, **changes: Any) -> str:
    """A folder with a model and its tokenizer, as ``policy.model`` names it."""
    causal_lm(family, torch.float32, seed, **changes).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def config(folder: str | Path, dtype: str = "float64", **sections: dict[str, Any]) -> Config:
    """A configuration around a folder; ``sections`` are merged into it."""
    tree: dict[str, dict[str, Any]] = {"policy": {"model": str(folder), "dtype": dtype}}
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    return Config.model_validate(tree)


def prompt_batch(rows: Sequence[Sequence[int]], width: int = 0, padding: int = PAD) -> PromptBatch:
    """Left-padded to the longest row, or further."""
    width = max(width, *map(len, rows))
    ids = torch.tensor([[padding] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return PromptBatch(torch.arange(len(rows)), tuple(str(row) for row in rows), ids, mask)


def rollout(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    extra: tuple[int, int] = (0, 0),
    padding: int = PAD,
) -> Rollout:
    """Given responses to given prompts; ``extra`` columns of padding on the left and on the right."""
    width = max(map(len, responses)) + extra[1]
    ids = torch.tensor([list(row) + [padding] * (width - len(row)) for row in responses])
    mask = torch.arange(width) < torch.tensor([len(row) for row in responses])[:, None]
    reasons: tuple[FinishReason, ...] = tuple("eos" if row[-1] == EOS else "length" for row in responses)
    batch = prompt_batch(prompts, max(map(len, prompts)) + extra[0], padding)
    texts = tuple(str(row) for row in responses)
    return Rollout(batch, len(responses) // len(prompts), ids, mask, torch.zeros(ids.shape), reasons, texts)


def random_ids(seed: int, *lengths: int) -> list[list[int]]:
    """Rows of words, no special token among them."""
    source = torch.Generator().manual_seed(seed)
    return [torch.randint(3, V, (length,), generator=source).tolist() for length in lengths]


def backbone(policy: Policy) -> torch.nn.Module:
    """The model without its output layer."""
    model: Any = policy.model
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    inner: torch.nn.Module = base.base_model
    return inner


def full_logits(policy: Policy, ids: Sequence[int]) -> Tensor:
    """(L, V) of one row by itself, from the model's own forward."""
    return policy.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]


def response_logprobs(
    policy: Policy, prompt: Sequence[int], response: Sequence[int], temperature: float = 1.0
) -> Tensor:
    """(len(response),) the long way: one row, all logits, log_softmax."""
    logits = full_logits(policy, [*prompt, *response])[len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(1).gather(1, torch.tensor(response)[:, None]).squeeze(1)
