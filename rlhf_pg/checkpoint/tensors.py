"""Weights' fingerprints, and an optimizer's state as named tensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from rlhf_pg.errors import CheckpointError

_ADAMW = ("step", "exp_avg", "exp_avg_sq")


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 (hexadecimal) over names, dtypes, shapes and bytes, in the order of the names.

    Equal for equal weights, on whatever device and in whatever order they come; another bit anywhere changes it.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        header = json.dumps([name, str(tensor.dtype), list(tensor.shape)])
        digest.update(f"{len(header)}:{header}".encode())
        # numpy knows no bfloat16, so the bytes are taken as such; a view needs at least one dimension.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, Parameter]]
) -> dict[str, Tensor]:
    """AdamW's state, flat, as ``{"PARAMETER/exp_avg": tensor, ...}`` with ``exp_avg``, ``exp_avg_sq`` and ``step``.

    A parameter that has had no gradient yet has no state; it is given as zeros, which is what AdamW starts from, so
    that a missing entry is always a fault.

    Args:
        optimizer: AdamW without amsgrad, or accelerate's wrapper of it.
        named_parameters: names of at least all parameters of the optimizer; others, such as frozen ones, are ignored.

    Raises:
        CheckpointError: a parameter of the optimizer has no name, or its state is not AdamW's.
    """
    flat: dict[str, Tensor] = {}
    for name, (parameter, group) in _stepped(optimizer, named_parameters).items():
        state = optimizer.state.get(parameter) or _fresh_state(parameter, group)
        if set(state) != set(_ADAMW):
            raise CheckpointError(f"The optimizer's state of {name} is {sorted(state)}; only AdamW's can be saved.")
        flat.update({f"{name}/{key}": state[key].detach() for key in _ADAMW})
    return flat


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, Parameter]],
    tensors: Mapping[str, Tensor],
) -> None:
    """Put back what ``optimizer_tensors`` gave, to the bit and in its dtype; all entries are checked first.

    Raises:
        CheckpointError: an entry is missing, belongs to no parameter, or has another shape than its parameter.
    """
    parameters = _stepped(optimizer, named_parameters)
    wanted = {
        f"{name}/{key}": p.shape if key != "step" else () for name, (p, _) in parameters.items() for key in _ADAMW
    }
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or extra:
        raise CheckpointError(
            f"The checkpoint's optimizer state does not fit the model: {len(missing)} entries missing {missing[:3]}, "
            f"{len(extra)} of no parameter {extra[:3]}; resume with the configuration the run was started with."
        )
    for entry, shape in wanted.items():
        if tuple(tensors[entry].shape) != tuple(shape):
            raise CheckpointError(
                f"The checkpoint's optimizer state {entry} has shape {tuple(tensors[entry].shape)} and its parameter "
                f"needs {tuple(shape)}; resume with the model the run was started with."
            )
    for name, (parameter, group) in parameters.items():
        devices = {"step": _step_device(parameter, group)}
        optimizer.state[parameter] = {
            key: tensors[f"{name}/{key}"].detach().clone().to(devices.get(key, parameter.device)) for key in _ADAMW
        }


def _stepped(
    optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, Parameter]]
) -> dict[str, tuple[Parameter, dict[str, Any]]]:
    """The optimizer's parameters with their groups, by name; a tied parameter has its first name only."""
    names: dict[Parameter, str] = {}
    for name, parameter in named_parameters:
        names.setdefault(parameter, name)
    found = [(parameter, group) for group in optimizer.param_groups for parameter in group["params"]]
    unnamed = sum(parameter not in names for parameter, _ in found)
    if unnamed:
        raise CheckpointError(f"{unnamed} parameters of the optimizer are not among the model's named parameters.")
    return {names[parameter]: (parameter, group) for parameter, group in found}


def _fresh_state(parameter: Parameter, group: Mapping[str, Any]) -> dict[str, Tensor]:
    """What AdamW gives a parameter at its first gradient."""
    moment = torch.zeros_like(parameter, requires_grad=False)
    return {
        "step": torch.tensor(0.0, dtype=torch.float32, device=_step_device(parameter, group)),
        "exp_avg": moment,
        "exp_avg_sq": moment.clone(),
    }


def _step_device(parameter: Parameter, group: Mapping[str, Any]) -> torch.device:
    """AdamW counts steps on the CPU, unless its kernel is fused or captured."""
    return parameter.device if group.get("fused") or group.get("capturable") else torch.device("cpu")
