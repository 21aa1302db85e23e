"""The floating point operations that a step needs, and how fast this machine multiplies matrices."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PHASES = ("prefill", "decode", "reference", "learn")
BACKWARD = 3  # a forward and a backward pass cost three forward passes: one more for the inputs, one for the weights


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a Llama-shaped model. A multiplication with an addition counts as two operations."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape | None:
        """From a ``config.json``; None where the family is not Llama-shaped, so that nothing is guessed."""
        if config.get("model_type") not in ("llama", "mistral", "qwen2", "qwen3"):
            return None
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        return cls(
            hidden,
            config["num_hidden_layers"],
            heads,
            config.get("num_key_value_heads") or heads,
            config.get("head_dim") or hidden // heads,
            config["intermediate_size"],
            config["vocab_size"],
        )

    @property
    def layer_weights(self) -> int:
        """Weights of one layer's matrices: q and o, k and v, and the three of the MLP."""
        attention = 2 * self.hidden * self.head_size * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    def backbone(self, tokens: int, pairs: int) -> int:
        """Of all layers: ``tokens`` through the matrices, ``pairs`` of a query and a key that it sees.

        2 * weights a token; 2 * head_size for the score and as much for the weighted sum, a pair and head.
        """
        return self.layers * (2 * tokens * self.layer_weights + 4 * pairs * self.heads * self.head_size)

    def head(self, positions: int) -> int:
        """Of the output layer at so many positions."""
        return 2 * positions * self.hidden * self.vocabulary


def count(shape: Shape, rows: Sequence[tuple[int, int]], group: int, share_prompts: bool) -> dict[str, int]:
    """Operations of each phase of an RLOO step with a KL penalty and one pass over the samples.

    prefill: each prompt once, the output layer at its last token. decode: one token at a time, all but a completion's last
    (whose successor nobody asks for). reference: one forward pass over prompts and completions, the output layer at
    the T positions that predict completion tokens. learn: the same with a backward pass.

    Padding, a second computation of logits or activations in the backward pass, old log-probabilities (one pass over
    the samples needs none), softmax, norms and the optimizer are not needed, or are no matrix products: not counted.

    Args:
        shape: of the model.
        rows: (prompt tokens, completion tokens) of each completion; a prompt's completions stand together.
        group: completions of a prompt.
        share_prompts: in reference and learn, count a prompt once for its group (the least that a step needs) and not
            once for each completion.
    """
    found = dict.fromkeys(PHASES, 0)
    for index, (prompt, length) in enumerate(rows):
        first = index % group == 0
        later = length - 1
        # Token j of a completion sees the prompt and the j tokens up to itself.
        pairs = later * prompt + later * (later + 1) // 2
        whole = prompt * (prompt + 1) // 2
        if first:
            found["prefill"] += shape.backbone(prompt, whole) + shape.head(1)
        found["decode"] += shape.backbone(later, pairs) + shape.head(later)
        forward = shape.backbone(later, pairs) + shape.head(length)
        if first or not share_prompts:
            forward += shape.backbone(prompt, whole)
        found["reference"] += forward
        found["learn"] += BACKWARD * forward
    return found


def matrix_rates(shape: Shape, rows: int, tokens: int) -> dict[str, float]:
    """GFLOP/s of float32 matrix products of the step's shapes, on torch's current number of threads.

    Args:
        shape: of the model.
        rows: completions that are decoded together.
        tokens: of a training pass.
    """
    return {
        "backbone": _rate(tokens, shape.hidden, shape.intermediate),
        # 1,024 positions: no trainer holds the logits of all.
        "head": _rate(min(tokens, 1024), shape.hidden, shape.vocabulary),
        "decode": _rate(rows, shape.hidden, shape.intermediate),
    }


def _rate(rows: int, inner: int, columns: int, seconds: float = 0.5) -> float:
    import torch

    left, right, out = torch.randn(rows, inner), torch.randn(inner, columns), torch.empty(rows, columns)
    operations = 2 * rows * inner * columns
    repeats = max(1, round(2e9 / operations))  # about 10 ms or more a reading, so that the clock's grain is nothing
    readings: list[float] = []
    end = time.perf_counter() + seconds
    while len(readings) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(repeats):
            torch.mm(left, right, out=out)
        readings.append(repeats * operations / (time.perf_counter() - start) / 1e9)
    return statistics.median(readings[1:])
