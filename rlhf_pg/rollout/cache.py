"""A key-value cache that is written in place and lets finished rows go."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer


class ReservedLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not typed here
    """One layer's keys and values in memory reserved once, where ``DynamicLayer`` copies them all at every token.

    Args:
        capacity: positions reserved.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0
        self.memory: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (N, heads, new, size) keys and values, and return all so far."""
        del args, kwargs
        if not self.memory:
            self.dtype, self.device = key_states.dtype, key_states.device
            self.is_initialized = True
            self.memory = [
                torch.empty((*x.shape[:2], self.capacity, x.shape[3]), dtype=x.dtype, device=x.device)
                for x in (key_states, value_states)
            ]
        start, self.length = self.length, self.length + key_states.shape[2]
        for memory, new in zip(self.memory, (key_states, value_states), strict=True):
            memory[:, :, start : self.length] = new
        self._show()
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row ``repeats`` times: one prefill serves all completions of a prompt."""
        self.memory = [memory.repeat_interleave(repeats, dim=0) for memory in self.memory]
        self._show()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        self.memory = [memory.index_select(0, indices) for memory in self.memory]
        self._show()

    def _show(self) -> None:
        self.keys, self.values = (memory[:, :, : self.length] for memory in self.memory)


def new_cache(config: Any, capacity: int) -> Cache:
    """An empty cache for a model: reserved memory for attention layers, transformers' own for any other kind.

    Sliding windows keep every position here; the model's mask leaves out those that are too old.

    Args:
        config: the model's configuration.
        capacity: the most positions a row can reach.
    """
    cache = DynamicCache(config=config)
    if all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers):
        cache.layers = [ReservedLayer(capacity) for _ in cache.layers]
    return cache
