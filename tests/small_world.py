"""A tiny Llama with a tokenizer of one token a word, and runs of a few steps on it: what the training tests share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf_pg.config.load import load_config
from rlhf_pg.config.tree import Config
from rlhf_pg.tracking import read_metrics

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "user", "assistant", "system", ":"]
GOOD = [f"good{i}" for i in range(13)]
BAD = [f"bad{i}" for i in range(13)]
ENDS = [f"end{i}" for i in range(8)]  # end-of-sequence ids besides </s>, so that short responses end often
WORDS = [*SPECIAL, *GOOD, *BAD, *ENDS, *(f"word{i}" for i in range(18))]
VOCABULARY = len(WORDS)
END_IDS = [2, *(WORDS.index(word) for word in ENDS)]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)
PROMPTS = [" ".join(f"word{(i * 7 + j) % 18}" for j in range(1 + i % 4)) for i in range(18)]
UNREPEATABLE = ("time/", "memory/", "step_time", "samples_per_second")


def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    found = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    found.chat_template = TEMPLATE
    return found


def save_model(folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32, positions: int = 48) -> str:
    """A random Llama of 2 layers and its tokenizer, as ``from_pretrained`` reads them; the folder's name."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=positions,
        bos_token_id=1,
        eos_token_id=END_IDS,
        pad_token_id=3,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(dtype)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def goodness(completions: Sequence[str], **_: Any) -> list[float]:
    """Good words less bad ones."""
    return [float(sum(w.startswith("good") - w.startswith("bad") for w in text.split())) for text in completions]


# The same as a file, for runs in other processes; told to, it kills the run at one of its calls.
REWARD_FILE = """
import os, signal

import psutil

CALLS = 0


def goodness(completions, **columns):
    global CALLS
    CALLS += 1
    if CALLS == int(os.environ.get("KILL_AT_CALL", "-1")):
        os.kill(psutil.Process().parent().ppid(), signal.SIGKILL)  # the run: this is its worker's child
    return [float(sum(w.startswith("good") - w.startswith("bad") for w in text.split())) for text in completions]
"""


class RaiseAt:
    """``goodness`` that raises at its n-th call."""

    __name__ = "goodness"

    def __init__(self, call: int) -> None:
        self.call, self.calls = call, 0

    def __call__(self, completions: Sequence[str], **columns: Any) -> list[float]:
        self.calls += 1
        if self.calls == self.call:
            raise ValueError("the machine stops here")
        return goodness(completions)


def write_prompts(folder: Path) -> str:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS), encoding="utf-8")
    return str(path)


def write_reward(folder: Path) -> str:
    path = folder / "reward.py"
    path.write_text(REWARD_FILE, encoding="utf-8")
    return f"{path}:goodness"


def overrides(folder: Path, model: str, *more: str, name: str = "run") -> list[str]:
    """The keys of a run of three small steps, the later ones winning."""
    return [
        f"run.output_dir={folder}",
        f"run.name={name}",
        "run.steps=3",
        "run.save_every=0",
        "run.samples_every=0",
        "run.device=cpu",
        f"policy.model={model}",
        "data.eval_size=4",
        "rollout.prompts_per_step=4",
        "rollout.max_new_tokens=6",
        "update.learning_rate=3e-3",
        "evaluation.every=0",
        "evaluation.samples_per_prompt=2",
        *more,
    ]


def small_config(folder: Path, model: str, *more: str, recipe: str = "rloo", name: str = "run") -> Config:
    group = [] if recipe in ("ppo", "reinforce", "remax") else ["rollout.group_size=4"]
    return load_config(recipe, [*overrides(folder, model, name=name), *group, *more])


def repeatable(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without times and memory."""
    return [
        {name: value for name, value in row.items() if not name.startswith(UNREPEATABLE)}
        for row in read_metrics(run_dir)
    ]


def saved_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a saved model or adapter."""
    (path,) = folder.glob("*.safetensors")
    return load_file(path)


def same_weights(one: Path, other: Path) -> bool:
    first, second = saved_weights(one), saved_weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def digest(weights: Iterator[tuple[str, Tensor]]) -> str:
    """A hash of names and weights."""
    found = hashlib.sha256()
    for name, weight in weights:
        found.update(name.encode())
        found.update(weight.detach().double().numpy().tobytes())
    return found.hexdigest()
