"""Checkpoints that are whole or refused: safetensors and JSON, never a pickle."""

from rlhf_pg.checkpoint.folders import load_checkpoint, newest_checkpoint, save_checkpoint
from rlhf_pg.checkpoint.tensors import fingerprint, load_optimizer_tensors, optimizer_tensors

__all__ = [
    "fingerprint",
    "load_checkpoint",
    "load_optimizer_tensors",
    "newest_checkpoint",
    "optimizer_tensors",
    "save_checkpoint",
]
