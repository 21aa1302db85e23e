"""A reward served over HTTP on loopback: rows a second against the same reward in process, and what a killed server costs.

    python benchmarks/reward_server.py --rows 512 --runs 5 --out results.json

Needs the extras ``serve`` and ``sentiment``. Two rewards: VADER's lexicon, and a random two-layer Llama classifier of width 64
on CPU. "In process" is the reward in this process, all rows in one call, through the runner that training uses. "Served" is
``rlhf-pg reward serve`` in a process of its own, asked through the same runner: a call of all rows is cut into requests of
``batch`` rows, ``concurrency`` of them at once. "Merged" is the server's default of scoring requests that wait together, up to 64
rows a call; "not merged" is ``--merge-rows 1``. A figure is the median over the runs with [the lowest, the highest], after one
call that is not counted; the configurations take turns, so that a slow minute slows all. Client and server share the machine.

The kill: a client scores 64 rows a call, without a pause; the server is killed by SIGKILL and started again on its port at
once. Told are the seconds until the new one says that it serves, the longest call, and the rows without a score.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from rlhf_pg.config.rewards import RewardConfig
from rlhf_pg.rewards import RewardRunner, text_rollout

PROGRAM = "import typer; from rlhf_pg.reward_cli.serve import serve; typer.run(serve)"
BATCHES = ((1, 8), (8, 1), (8, 8), (64, 1), (64, 8))  # rows of a request, requests at once
WORDS = tuple("the film was a good bad slow lovely awful story and its people are great but dull not nice".split())  # noqa: SIM905


def texts(rows: int) -> list[str]:
    """Completions of 10 to 40 words."""
    source = torch.Generator().manual_seed(0)
    lengths = torch.randint(10, 41, (rows,), generator=source).tolist()
    return [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=source).tolist()) for n in lengths]


def build_classifier(folder: Path) -> str:
    vocabulary = {"<pad>": 0, **{word: i + 1 for i, word in enumerate(WORDS)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=len(vocabulary), num_labels=1, **sizes)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return str(folder)


def runner(function: str, **args: Any) -> RewardRunner:
    entry = {"function": function, "args": args, "process": "main"}
    return RewardRunner(
        RewardConfig.model_validate({"functions": [entry], "on_error": "unscorable", "max_unscorable": 1.0})
    )


class Server:
    """``rlhf-pg reward serve`` in a process of its own."""

    def __init__(self, reward: str, *options: str, port: int | None = None) -> None:
        if port is None:
            with socket.create_server(("127.0.0.1", 0)) as probe:
                port = probe.getsockname()[1]
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        command = [sys.executable, "-c", PROGRAM, reward, "--port", str(port), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert "is served" in self.process.stdout.readline()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def seconds(run: Any) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def throughput(reward: str, rows: int, runs: int) -> dict[str, Any]:
    """Rows a second by where and how the reward runs, and the largest difference between served and in process."""
    rollout = text_rollout(["p "] * rows, texts(rows))
    merged, single = Server(reward), Server(reward, "--merge-rows", "1")
    try:
        sides = {"in process": runner(reward)}
        for batch, concurrency in BATCHES:
            for label, server in (("merged", merged), ("not merged", single)):
                name = f"batch {batch}, concurrency {concurrency}, {label}"
                sides[name] = runner(server.url, batch_rows=batch, concurrency=concurrency)
        scores = {name: side(rollout).scores for name, side in sides.items()}
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(runs):
            for name, side in sides.items():
                times[name].append(seconds(lambda side=side: side(rollout)))
    finally:
        merged.kill()
        single.kill()
    gap = max((scores[name] - scores["in process"]).abs().max().item() for name in sides)
    return {
        "rows a second": {name: [rows / t for t in values] for name, values in times.items()},
        "largest difference": gap,
    }


def kill_and_restart(reward: str) -> dict[str, Any]:
    """What a client sees while its server is killed and started again."""
    rollout = text_rollout(["p "] * 64, texts(64))
    servers = [Server(reward)]
    side = runner(servers[0].url, batch_rows=16)
    expected = side(rollout).scores
    calls: list[float] = []
    outage, lost, wrong, retries = [0.0], 0, 0, 0.0

    def restart() -> None:
        servers[0].kill()
        started = time.perf_counter()
        servers.append(Server(reward, port=servers[0].port))
        outage[0] = time.perf_counter() - started

    thread = threading.Timer(0.5, restart)
    thread.start()
    try:
        end = time.perf_counter() + 0.5
        while thread.is_alive() or time.perf_counter() < end:
            logged: dict[str, float] = {}
            started = time.perf_counter()
            scored = side(rollout, logged.__setitem__)
            calls.append(time.perf_counter() - started)
            lost += int((~scored.valid).sum())
            wrong += int((scored.scores - expected).abs().gt(1e-6)[scored.valid].sum())
            retries += logged["remote/retries"]
    finally:
        thread.join()
        for server in servers:
            server.kill()
    return {
        "server away, s": outage[0],
        "longest call, s": max(calls),
        "median call, s": statistics.median(calls),
        "requests sent again": retries,
        "rows": 64 * len(calls),
        "rows lost": lost,
        "rows with another score": wrong,
    }


def shown(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f} [{min(values):,.0f}, {max(values):,.0f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "load average before": os.getloadavg()[0],
        "options": {"rows": options.rows, "runs": options.runs, "kills": options.kills},
    }
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rewards = {"vader": "vader", "classifier": build_classifier(Path(folder))}
        for name, reward in rewards.items():
            results[name] = throughput(reward, options.rows, options.runs)
        results["kill"] = [kill_and_restart(rewards["vader"]) for _ in range(options.kills)]
    print(f"{results['machine']}, load average before {results['load average before']:.1f}")
    print("\n| | " + " | ".join(f"{name}, rows a second" for name in rewards) + " |\n|---|" + "---|" * len(rewards))
    for side in results["vader"]["rows a second"]:
        print(f"| {side} | " + " | ".join(shown(results[name]["rows a second"][side]) for name in rewards) + " |")
    for name in rewards:
        print(f"largest difference, {name}: {results[name]['largest difference']:.2g}")
    print("\n| kill | " + " | ".join(results["kill"][0]) + " |\n|---|" + "---|" * len(results["kill"][0]))
    for number, one in enumerate(results["kill"]):
        print(f"| {number + 1} | " + " | ".join(f"{value:.4g}" for value in one.values()) + " |")
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
