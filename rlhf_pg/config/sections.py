"""The sections that say what runs on what: run, policy, reference, data, rollout, evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from rlhf_pg.config.base import Section, key

Dtype = Literal["float32", "bfloat16", "float16", "float64"]


class RunConfig(Section):
    """One run: its folder, its seed, how long it goes on and what it leaves behind."""

    name: str = key("run", "Folder of the run below run.output_dir: one path component.", min_length=1)
    output_dir: str = key("runs", "Where runs are kept.")
    seed: int = key(0, "Seeds prompts' order, sampling, minibatches and new weights.", ge=0)
    steps: int = key(100, "Training steps; each samples, scores and updates once.", ge=1)
    save_every: int = key(50, "Steps between checkpoints; 0 saves only the final model.", ge=0)
    keep_last: int = key(2, "Checkpoints kept; older ones are deleted.", ge=1)
    overwrite: bool = key(False, "A run of the same name is replaced; otherwise it is an error.")
    trackers: tuple[str, ...] = key((), "accelerate's trackers by name: tensorboard, wandb, trackio, mlflow.")
    mixed_precision: Literal["no", "bf16", "fp16"] = key(
        "no", "Autocast of every forward pass; weights keep their dtype."
    )
    device: Literal["auto", "cpu"] = key("auto", "auto takes the accelerator that is there; cpu never does.")
    samples_every: int = key(10, "Steps between printed tables of samples; 0 prints none.", ge=0)

    @field_validator("name")
    @classmethod
    def _one_component(cls, name: str) -> str:
        if name in (".", "..") or any(c in name for c in "/\\\0"):
            raise ValueError("must be one path component, without '/' or '\\'; folders go into run.output_dir")
        return name


class LoraConfig(Section):
    """Low-rank adapters on the policy (Hu et al., arXiv 2106.09685), through peft."""

    r: int = key(16, "Rank.", ge=1)
    alpha: float = key(32.0, "Scale; the update is alpha / r times the product.", gt=0)
    targets: tuple[str, ...] = key(
        (), "Names of the linear layers to adapt; empty: all of the blocks, found by themselves."
    )


class PolicyConfig(Section):
    """The causal language model that is trained."""

    model: str = key(
        "", "Folder or hub id of a causal LM or of a trained LoRA adapter; builtin:reviews in the quickstart."
    )
    revision: str | None = key(None, "Branch, tag or commit of a hub model.")
    dtype: Dtype = key("float32", "The weights' type; float64 is for exactness tests.")
    lora: LoraConfig | None = key(None, "Train low-rank adapters and not the weights; {} takes the defaults.")
    gradient_checkpointing: bool = key(False, "Recompute activations in the backward pass: less memory, more time.")
    attn_implementation: str | None = key(None, "sdpa, eager, flash_attention_2, ...; None leaves it to transformers.")
    trust_remote_code: bool = key(False, "Run Python code that comes with a hub model.")


class ReferenceConfig(Section):
    """The frozen model that the KL is measured against."""

    model: str | None = key(None, "Folder or hub id; None: a copy of the policy's starting weights.")


class DataConfig(Section):
    """Where the prompts come from."""

    source: str = key(
        "",
        "Hub dataset id, json/jsonl/csv/parquet/txt file or a folder of them, reasoning_gym:TASK?size=500, or builtin:reviews.",
    )
    split: str = key("train", "Split of a hub dataset, or of a folder with one file a split.")
    prompt_column: str | None = key(None, "Column that holds the prompts; None recognises the usual shapes.")
    chat: bool | None = key(None, "Render prompts with the chat template; None: where they are messages.")
    system_prompt: str | None = key(None, "A system message put before each chat prompt that has none.")
    max_prompt_tokens: int = key(512, "Longer prompts are left out and counted.", ge=1)
    eval_source: str | None = key(
        None, "Held-out prompts, like data.source; None takes data.eval_size rows from data.source."
    )
    eval_size: int = key(
        64, "Held-out prompts; with data.eval_source at most so many are used; 0 holds out none.", ge=0
    )
    shuffle: bool = key(True, "New order each epoch, from run.seed; false keeps the file's order.")


class RolloutConfig(Section):
    """How completions are sampled: always from the whole softmax(logits / temperature)."""

    prompts_per_step: int = key(8, "P, prompts of a step over all processes.", ge=1)
    group_size: int = key(8, "G, completions per prompt.", ge=1)
    max_new_tokens: int = key(64, "T, the most tokens a completion may have.", ge=1)
    temperature: float = key(1.0, "Softmax temperature of policy, old and reference alike.", gt=0)
    stop: tuple[str, ...] = key((), "A completion ends once its text contains one of these.")
    batch_rows: int = key(256, "The most rows that are decoded at once on a process; bounds the cache's memory.", ge=1)
    ignore_eos: bool = key(False, "Sample max_new_tokens always; for models without an end-of-sequence token.")

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if "" in stop:
            raise ValueError("an empty stop string would end every completion at once; remove it")
        return stop


class EvaluationConfig(Section):
    """What is measured on held-out prompts, with the same random numbers each time."""

    every: int = key(
        50, "Steps between evaluations; before the first step and after the last always. 0: only those.", ge=0
    )
    samples_per_prompt: int = key(4, "Completions per held-out prompt.", ge=1)
    temperature: float | None = key(None, "Sampling temperature; None: rollout.temperature.", gt=0)
    top_p: float = key(
        1.0, "Nucleus of the evaluation's sampling; the KL is then of the full distributions.", gt=0, le=1
    )
    seed: int = key(1234, "Seeds the evaluation's random numbers, apart from run.seed.", ge=0)
    max_kl: float | None = key(
        None, "best/ is the highest held-out reward among those with sequence KL up to this, nats.", gt=0
    )
