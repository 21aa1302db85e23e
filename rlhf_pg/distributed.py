"""The few collective operations, over accelerate, and launching several processes on one machine."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from torch import Tensor

from rlhf_pg.config.sections import RunConfig
from rlhf_pg.errors import ConfigError, TrainingError

Item = TypeVar("Item")
_PROCESSES = "RLHF_PG_PROCESSES"
_LAUNCHER = "RLHF_PG_LAUNCHER"  # the process that started these


def make_accelerator(run: RunConfig, project_dir: str) -> Accelerator:
    """The accelerator of a run; refuses a world of another size than ``--processes`` asked for."""
    if _LAUNCHER in os.environ and int(os.environ[_LAUNCHER]) == os.getppid():
        threading.Thread(target=_end_with, args=(os.getppid(),), name="launcher", daemon=True).start()
    try:
        accelerator = Accelerator(
            cpu=run.device == "cpu",
            mixed_precision=run.mixed_precision,
            log_with=list(run.trackers) or None,
            project_dir=project_dir,
            # Buffers never change here, and a broadcast in each forward pass would need as many passes everywhere.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
    except (ValueError, ImportError) as error:
        raise ConfigError(
            f"run.mixed_precision={run.mixed_precision}, run.trackers={list(run.trackers)}: {error}"
        ) from error
    asked = os.environ.get(_PROCESSES)
    if asked is not None and int(asked) != accelerator.num_processes:
        raise TrainingError(
            f"--processes {asked} was asked for and {accelerator.num_processes} came up; each would train alone. "
            "Start with `accelerate launch -m rlhf_pg train ...` and a configuration for this machine"
        )
    return accelerator


def _end_with(launcher: int) -> None:
    """End this process once the one that started it is gone: nobody else would end it."""
    while os.getppid() == launcher:
        time.sleep(1.0)
    os._exit(1)


def own_part(count: int, accelerator: Accelerator) -> range:
    """The part of ``count`` adjacent things that this process works on; parts differ by one at most."""
    world, rank = accelerator.num_processes, accelerator.process_index
    return part_of(count, rank, world)


def part_of(count: int, rank: int, world: int) -> range:
    """The part of process ``rank``."""
    return range(count * rank // world, count * (rank + 1) // world)


def gather(item: Item, accelerator: Accelerator) -> list[Item]:
    """Each process's item, in the order of the processes, on every process."""
    if accelerator.num_processes == 1:
        return [item]
    return cast(list[Item], gather_object([item]))


def gather_tables(tables: Sequence[Tensor], fill: float = 0.0) -> Tensor:
    """(rows of all, widest T): tables of the processes, one below the other, padded on the right."""
    width = max(table.shape[1] for table in tables)
    return torch.cat([torch.nn.functional.pad(table, (0, width - table.shape[1]), value=fill) for table in tables])


class Sums:
    """Metrics as (sum, count), so that no mean of means is ever taken."""

    def __init__(self) -> None:
        self.pairs: dict[str, tuple[float, float]] = {}

    def add(self, metrics: Mapping[str, tuple[Tensor | float, Tensor | float]]) -> None:
        """Add the sums and counts of a part."""
        for name, (total, count) in metrics.items():
            before = self.pairs.get(name, (0.0, 0.0))
            self.pairs[name] = (before[0] + float(total), before[1] + float(count))

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over all processes; the same on each."""
        whole = Sums()
        for pairs in gather(self.pairs, accelerator):
            whole.add(pairs)
        return {name: total / count for name, (total, count) in whole.pairs.items() if count}


def launch(processes: int, arguments: Iterable[str]) -> None:
    """Run ``python -m rlhf_pg train ARGUMENTS`` in several processes, under torch's elastic launcher.

    Raises:
        TrainingError: a process failed; it has said why.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    on_gpus = torch.cuda.is_available()
    if on_gpus and processes > torch.cuda.device_count():
        raise ConfigError(
            f"--processes {processes} needs as many GPUs, and there are {torch.cuda.device_count()}; ask for fewer"
        )
    environment = {_PROCESSES: str(processes)}
    if not on_gpus:
        environment["ACCELERATE_USE_CPU"] = "true"
        environment["OMP_NUM_THREADS"] = os.environ.get(
            "OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes))
        )
    environment[_LAUNCHER] = str(os.getpid())
    os.environ.update(environment)
    settings: dict[str, Any] = {
        "min_nodes": 1,
        "max_nodes": 1,
        "nproc_per_node": processes,
        "rdzv_backend": "c10d",
        "rdzv_endpoint": "localhost:0",
        "run_id": f"rlhf-pg-{os.getpid()}",
        "max_restarts": 0,
        "monitor_interval": 0.5,
    }
    try:
        elastic_launch(LaunchConfig(**settings), sys.executable)("-m", "rlhf_pg", "train", *arguments)
    except ChildFailedError as error:
        raise TrainingError(f"a process of {processes} failed; what it said stands above") from error
