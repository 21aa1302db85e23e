"""Time and memory of an RLOO step, against TRL's RLOO on the same work.

    python benchmarks/against_trl.py --workloads W1 W2 --runs 5 --steps 6 --out results.json

Needs the extra ``bench``. Both sides run in turn, A B A B, each run in a process of its own, so that a machine that slows
down slows both; the first side of a pair alternates. Nothing else should run meanwhile. A figure is the median over a
run's steps after the warm-up, then the median over the runs, with the lowest and the highest in brackets; a ratio is
taken within each pair of neighbouring runs, then its median over the pairs. ``--worker trl|ours --workload W2 --steps 6``
is one run, and prints its figures as one line of JSON.

Same on both sides: the model's folder, the prompts and their order, 8 prompts x 8 completions a step and one optimizer
step on them, float32, temperature 1 with no truncation, KL coefficient 0.05 in the reward, leave-one-out baseline, AdamW
at a constant 1e-4, gradient norm clipped to 1, the reward function (the share of the letter e: next to no time), the
CPU, torch's number of threads. No evaluation, checkpoints, trackers or progress bars. The sampled tokens differ, since the
random numbers do; the JSON has each side's mean lengths and reward. Where lengths vary (W4) a run's luck with them is in
its step time, so compare tokens a second there.

In TRL's favour, or against it:

- Gradient checkpointing, on by default in TRL, is off here: it costs about a fifth of its training time. So is bfloat16.
- TRL takes the 64 completions of an optimizer step in forward passes of ``--trl-batch`` rows each, with gradient
  accumulation. It generates all 64 at once whatever that is. By default 64 and 16 are tried once, shortly, before the
  runs, and the faster one is kept; both trials' figures are in the JSON, memory included.
- TRL computes old log-probabilities by a forward pass even though its ratio is 1 at the only update. That is how it
  works; nothing in its configuration turns it off.
- A step is timed by TRL's callbacks from on_step_begin to on_step_end, and by our ``step_time``. Neither has logging in
  it; ours has the writing of the samples to disk. "between rewards" is the time from one call of the reward function to
  the next: a step with all that stands between two, measured in the same way on both sides.
- Memory is the process's highest resident size (ru_maxrss), imports, both models and, on our side, the final model and
  figure included.

Operations. Matrix products only, counted by ``operations.count`` from the sampled lengths: prefill once a prompt, decode,
a reference forward pass, a training forward and backward pass (three forward passes' worth). "rows" counts a prompt in
the reference and training passes once for each of its completions, as a batch of rows computes it; "shared" once for
all eight, the least that a step needs. Utilisation is operations / (step time x rate), where the rate is the higher of
two matrix products of the training pass's shapes, one of the backbone and one of the output layer, measured in
the same process after its steps (decoding 64 rows at a time reaches less: it is printed beside).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# Only what is light is imported at the top: a child's ru_maxrss starts at its parent's resident size, so the parent must
# stay small. torch, TRL and ours are imported in the workers.
from report import summarise
from workloads import GROUP, MODEL, PROMPTS, PROMPTS_PER_STEP, WORKLOADS, build

_TRL_BATCHES = (64, 16)


def main() -> None:
    """Compare, or be one worker."""
    args = _arguments()
    if args.worker == "build":
        build(args)
    elif args.worker:
        _work(args)
    else:
        _compare(args)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Time and memory of an RLOO step, against TRL's RLOO on the same work."
    )
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), metavar="W1")
    parser.add_argument("--runs", type=int, default=5, help="runs of each side")
    parser.add_argument("--steps", type=int, default=6, help="measured steps of a run")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument("--model", default=str(MODEL), help="the story model of W1")
    parser.add_argument("--prompts", default=str(PROMPTS), help="W1's prompts, jsonl; generated where it is absent")
    parser.add_argument("--threads", type=int, help="threads of both sides; default: torch's")
    rows = PROMPTS_PER_STEP * GROUP
    sizes = [size for size in range(1, rows + 1) if rows % size == 0]
    parser.add_argument(
        "--trl-batch", type=int, choices=sizes, help="rows of TRL's passes; default: the faster of 64, 16"
    )
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="override a key of ours")
    parser.add_argument("--out", type=Path, help="write every figure there, as JSON")
    parser.add_argument("--worker", choices=["trl", "ours", "build"], help="be one run, print one line of JSON")
    parser.add_argument("--workload", choices=WORKLOADS, help="the worker's workload")
    parser.add_argument("--folder", help="the worker's prepared workload; default: prepared for it")
    parser.add_argument("--seed", type=int, default=0, help="the worker's seed")
    args = parser.parse_args()
    if args.worker and not args.workload:
        parser.error("--worker needs --workload")
    if args.runs < 1 or args.steps < 2 or args.warmup < 0:
        parser.error("--runs must be at least 1, --steps at least 2 and --warmup at least 0")
    return args


def _work(args: argparse.Namespace) -> None:
    """One run; what the trainers print goes to standard error, so that standard output is the line of JSON."""
    with contextlib.ExitStack() as stack:
        if args.folder is None:
            args.folder = stack.enter_context(tempfile.TemporaryDirectory())
            _worker("build", args, args.workload, args.folder)
        args.trl_batch = args.trl_batch or _TRL_BATCHES[0]
        if args.threads:
            import torch

            torch.set_num_threads(args.threads)
        with contextlib.redirect_stdout(sys.stderr):
            from sides import run

            found = run(args)
    print(json.dumps(found))


def _worker(
    worker: str,
    args: argparse.Namespace,
    workload: str,
    folder: str,
    *,
    steps: int | None = None,
    trl_batch: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Run a worker in a process of its own; its figures."""
    options = {
        "--worker": worker,
        "--workload": workload,
        "--folder": folder,
        "--steps": steps or args.steps,
        "--warmup": args.warmup,
        "--seed": seed,
        "--model": args.model,
        "--prompts": args.prompts,
    }
    if trl_batch:
        options["--trl-batch"] = trl_batch
    command = [sys.executable, str(Path(__file__).resolve())]
    command += [str(part) for option in options.items() for part in option]
    command += [part for value in args.set for part in ("--set", value)]
    # Everything is local: neither side should ask a hub about it.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if args.threads:
        command += ["--threads", str(args.threads)]
        environment["OMP_NUM_THREADS"] = str(args.threads)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{worker} failed on {workload}:\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1]) if worker != "build" else {}
    return found


def _compare(args: argparse.Namespace) -> None:
    results: dict[str, Any] = {"machine": _processor(), "cores": os.cpu_count(), "workloads": {}}
    print(f"{results['machine']}, {results['cores']} cores")
    for name in args.workloads:
        if not WORKLOADS[name].random_model and not Path(args.model).is_dir():
            print(f"\n{name} left out: there is no model in {args.model}; name one with --model")
            continue
        print(f"\n{name}: {WORKLOADS[name].title}", flush=True)
        found = _runs(args, name)
        results["workloads"][name] = found
        print("\n".join(summarise(found)), flush=True)
        if args.out:
            args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _runs(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """All runs of a workload."""
    with tempfile.TemporaryDirectory() as folder:
        _worker("build", args, name, folder)
        trials: list[dict[str, Any]] = []
        if args.trl_batch is None:
            trials = [_worker("trl", args, name, folder, steps=2, trl_batch=size) for size in _TRL_BATCHES]
        best = args.trl_batch or min(trials, key=lambda trial: min(trial["steps"]))["trl_batch"]
        runs: dict[str, list[dict[str, Any]]] = {"trl": [], "ours": []}
        for seed in range(args.runs):
            sides = ("trl", "ours") if seed % 2 == 0 else ("ours", "trl")
            for side in sides:
                runs[side].append(_worker(side, args, name, folder, trl_batch=best, seed=seed))
                print(f"  {side} run {seed + 1} of {args.runs} done", file=sys.stderr, flush=True)
    return {"title": WORKLOADS[name].title, "trials": trials, **runs}


def _processor() -> str:
    """The processor's model, where the system says."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
