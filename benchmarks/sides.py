"""The two sides of the comparison; each runs in a process of its own and returns its figures."""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from operations import Shape, count, matrix_rates
from workloads import GROUP, KL_COEF, LEARNING_RATE, PROMPTS_PER_STEP, REPOSITORY, WORKLOADS, load

PHASES = ("rollout", "reward", "reference", "learn")


class Recorder:
    """The reward of both sides, the share of the letter e; it notes when it was called and what it was given.

    The time from one call to the next is a whole step, measured in the same way on both sides.
    """

    def __init__(self) -> None:
        self.called: list[float] = []
        self.prompts: list[list[str]] = []
        self.lengths: list[list[int]] = []
        self.means: list[float] = []

    def function(self) -> Callable[..., list[float]]:
        """As both sides take it."""

        def letter_e(
            prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any
        ) -> list[float]:
            self.called.append(time.perf_counter())
            scores = [text.count("e") / max(1, len(text)) for text in completions]
            self.prompts.append(list(prompts))
            self.lengths.append([len(ids) for ids in completion_ids])
            self.means.append(statistics.fmean(scores))
            return scores

        return letter_e


def run(args: argparse.Namespace) -> dict[str, Any]:
    """One run of one side; its figures are those of the steps after the warm-up."""
    given = load(Path(args.folder))
    recorder = Recorder()
    side = {"trl": _trl, "ours": _ours}[args.worker]
    with tempfile.TemporaryDirectory() as scratch:
        found = side(args, given, recorder, scratch)
    # Linux counts in KiB, macOS in bytes. Read before the matrix products below take memory.
    found["peak_gb"] = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    )
    return found | _work(args, given, recorder) | _versions()


def _ours(args: argparse.Namespace, given: dict[str, Any], recorder: Recorder, scratch: str) -> dict[str, Any]:
    sys.path.insert(0, str(REPOSITORY))  # this checkout is what is measured, whatever is installed
    import rlhf_pg

    overrides = {
        "run.output_dir": scratch,
        "run.name": "bench",
        "run.seed": args.seed,
        "run.steps": args.warmup + args.steps,
        "run.save_every": 0,
        "run.samples_every": 0,
        "run.device": "cpu",
        "policy.model": given["model"],
        "data.eval_size": 0,
        "data.shuffle": "false",
        "rollout.prompts_per_step": PROMPTS_PER_STEP,
        "rollout.group_size": GROUP,
        "rollout.max_new_tokens": WORKLOADS[args.workload].max_new_tokens,
        "kl.coef": KL_COEF,
        "update.learning_rate": LEARNING_RATE,
    }
    config = rlhf_pg.load_config("rloo", [*(f"{name}={value}" for name, value in overrides.items()), *args.set])
    result = rlhf_pg.train(config, dataset=given["prompts"], rewards=[recorder.function()])
    lines = (result.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = [json.loads(line) for line in lines][args.warmup :]
    return {
        "steps": [line["step_time"] for line in metrics],
        "phases": {phase: statistics.median(line[f"time/{phase}"] for line in metrics) for phase in PHASES},
    }


def _trl(args: argparse.Namespace, given: dict[str, Any], recorder: Recorder, scratch: str) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import RLOOConfig, RLOOTrainer

    times: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]  # untyped
        """Times optimizer steps, generation included."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter() - self.start)

    rows = PROMPTS_PER_STEP * GROUP
    config = RLOOConfig(
        output_dir=scratch,
        seed=args.seed,
        max_steps=args.warmup + args.steps,
        use_cpu=True,
        bf16=False,
        fp16=False,
        model_init_kwargs={"dtype": "float32"},
        gradient_checkpointing=False,
        per_device_train_batch_size=args.trl_batch,
        gradient_accumulation_steps=rows // args.trl_batch,
        num_generations=GROUP,
        max_completion_length=WORKLOADS[args.workload].max_new_tokens,
        temperature=1.0,
        beta=KL_COEF,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        shuffle_dataset=False,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = RLOOTrainer(
        model=given["model"],
        reward_funcs=recorder.function(),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": given["prompts"]}),
        callbacks=[Clock()],
    )
    trainer.train()
    return {"steps": times[args.warmup :], "trl_batch": args.trl_batch}


def _work(args: argparse.Namespace, given: dict[str, Any], recorder: Recorder) -> dict[str, Any]:
    """What the measured steps did, the operations that they needed, and the machine's rate."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    steps = [
        list(zip([len(ids) for ids in tokenizer(prompts)["input_ids"]], lengths, strict=True))
        for prompts, lengths in zip(recorder.prompts[args.warmup :], recorder.lengths[args.warmup :], strict=True)
    ]
    rows = [row for step in steps for row in step]
    responses = [length for _, length in rows]
    found: dict[str, Any] = {
        "intervals": [after - before for before, after in itertools.pairwise(recorder.called[args.warmup :])],
        "samples": len(rows) / len(steps),
        "prompt_tokens": statistics.fmean(prompt for prompt, _ in rows),
        "completion_tokens": statistics.fmean(responses),
        "shortest_completion": min(responses),
        "longest_completion": max(responses),
        "reward": statistics.fmean(recorder.means[args.warmup :]),
        "operations": None,
    }
    shape = Shape.of(json.loads((Path(given["model"]) / "config.json").read_text(encoding="utf-8")))
    if shape is not None:
        for name, shared in (("operations", False), ("operations_shared", True)):
            counts = [count(shape, step, GROUP, shared) for step in steps]
            found[name] = {phase: statistics.fmean(one[phase] for one in counts) for phase in counts[0]}
        tokens = round(sum(map(sum, rows)) / len(steps))
        found["matrix_gflops"] = matrix_rates(shape, PROMPTS_PER_STEP * GROUP, tokens)
    return found


def _versions() -> dict[str, Any]:
    from importlib.metadata import version

    import torch

    names = ("torch", "transformers", "trl")
    return {"versions": {name: version(name) for name in names}, "threads": torch.get_num_threads()}
