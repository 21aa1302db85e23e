"""The modules that a run needs: the policy, its frozen reference, a value model."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlhf_pg.ops.kl import exact_kl
from rlhf_pg.ops.logprobs import chunk_rows, token_statistics, upcast


class Policy(nn.Module):
    """A causal language model as the distribution of the next token.

    What accelerate prepares is this module, and training goes through its ``forward``: calling the backbone and the
    head by themselves under data parallelism would leave each process with its own gradient.

    Args:
        model: a causal LM of transformers, or a ``PeftModel`` around one.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        # In a tuple, so that they are not registered again: their parameters are the model's and must appear once.
        self._parts: tuple[Any, Any] = (base.base_model, base.get_output_embeddings())
        self.from_hidden = self._head is not None and self._head_gives_logits()

    @property
    def config(self) -> Any:
        """The transformers configuration."""
        return self.model.config

    @property
    def _backbone(self) -> Any:
        return self._parts[0]

    @property
    def _head(self) -> Any:
        return self._parts[1]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def states(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """What ``logits`` reads at the given positions: hidden states, or logits where the head is not all there is.

        Rows are right-padded, so causality keeps padding out and no mask is needed.

        Args:
            input_ids: (R, L) right-padded.
            positions: (N,) indices into the flattened R * L positions.

        Returns:
            (N, H), or (N, V) for families whose logits are more than ``lm_head(hidden)`` (soft caps, scales).
        """
        if self.from_hidden:
            everything = self._backbone(input_ids=input_ids, use_cache=False).last_hidden_state
        else:
            everything = self.model(input_ids=input_ids, use_cache=False).logits
        return cast(Tensor, everything.flatten(0, 1).index_select(0, positions))

    def logits(self, states: Tensor) -> Tensor:
        """(N, V) from what ``states`` gave."""
        return cast(Tensor, self._head(states)) if self.from_hidden else states

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        targets: Tensor,
        temperature: float,
        reference: Reference | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log-probabilities of given tokens.

        Args:
            input_ids: (R, L) right-padded rows.
            positions: (N,) flat positions that predict the targets.
            targets: (N,) int64.
            temperature: of the softmax.
            reference: if given, the exact KL(policy || reference) at each position is computed too.

        Returns:
            logprobs (N,), entropies (N,) and the exact KL (N,) or None; nats, differentiable.
        """
        frozen = reference.states(input_ids, positions) if reference is not None else None
        states = self.states(input_ids, positions)
        head = self._head if self.from_hidden else self.logits
        logprobs, entropies = token_statistics(states, head, targets, temperature)
        if reference is None or frozen is None:
            return logprobs, entropies, None
        return logprobs, entropies, self._exact_kl(states, reference, frozen, temperature)

    def _exact_kl(self, states: Tensor, reference: Reference, frozen: Tensor, temperature: float) -> Tensor:
        """(N,) the KL summed over the vocabulary, in chunks that are computed again in the backward pass."""

        def chunk(ours: Tensor, theirs: Tensor) -> Tensor:
            with torch.no_grad():
                ref_logits = upcast(reference.logits(theirs)) / temperature
            return exact_kl(upcast(self.logits(ours)) / temperature, ref_logits)

        size = chunk_rows(self.vocabulary)
        parts = zip(torch.split(states, size), torch.split(frozen, size), strict=True)
        return torch.cat([checkpoint(chunk, *part, use_reentrant=False) for part in parts])

    @property
    def vocabulary(self) -> int:
        """V, the number of tokens the output layer knows."""
        if self._head is not None:
            return int(self._head.weight.shape[0])
        return int(self.config.get_text_config().vocab_size)

    @torch.no_grad()
    def _head_gives_logits(self) -> bool:
        """Whether ``lm_head(hidden)`` is the logits; it is not where a family caps or scales them."""
        ids = torch.arange(8, device=self.device)[None] % self.vocabulary
        hidden = self._backbone(input_ids=ids, use_cache=False).last_hidden_state
        mine, full = self._head(hidden), self.model(input_ids=ids, use_cache=False).logits
        return mine.shape == full.shape and torch.allclose(mine, full, rtol=1e-4, atol=1e-4)


class Reference:
    """The frozen model that the KL is measured against.

    Args:
        policy: a frozen policy of its own, or the trained one.
        adapters_off: the reference is the policy with its adapters disabled.
    """

    def __init__(self, policy: Policy, adapters_off: bool = False) -> None:
        self.policy = policy
        self._adapters_off = adapters_off
        if not adapters_off:
            policy.requires_grad_(False)

    @contextlib.contextmanager
    def active(self) -> Iterator[Policy]:
        """The reference as a policy; while the block runs, adapters that are not its own are off."""
        if self._adapters_off:
            with cast(PeftModel, self.policy.model).disable_adapter():
                yield self.policy
        else:
            yield self.policy

    @torch.no_grad()
    def states(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """As ``Policy.states``."""
        with self.active() as policy:
            return policy.states(input_ids, positions)

    @torch.no_grad()
    def logits(self, states: Tensor) -> Tensor:
        """As ``Policy.logits``."""
        with self.active() as policy:
            return policy.logits(states)

    @torch.no_grad()
    def logprobs(self, input_ids: Tensor, positions: Tensor, targets: Tensor, temperature: float) -> Tensor:
        """(N,) log-probabilities of the targets, nats."""
        with self.active() as policy:
            return cast(Tensor, policy(input_ids, positions, targets, temperature)[0])

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Names and weights of the reference alone: its identity."""
        for name, weight in self.policy.model.named_parameters():
            if not (self._adapters_off and "lora_" in name):
                yield name, weight


class ValueModel(nn.Module):
    """V(s): a backbone and one linear head that starts at zero, so that the first values are 0.

    Args:
        backbone: a model of transformers without a head.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        weight = next(backbone.parameters())
        self.head = nn.Linear(hidden_size(backbone), 1, device=weight.device, dtype=weight.dtype)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """Values at flat positions.

        Args:
            input_ids: (R, L) right-padded.
            positions: (N,) indices into the flattened R * L positions.

        Returns:
            (N,) reward units, float32 at least.
        """
        hidden = self.backbone(input_ids=input_ids, use_cache=False).last_hidden_state
        return upcast(self.head(hidden.flatten(0, 1).index_select(0, positions)).squeeze(1))


def hidden_size(model: nn.Module) -> int:
    """H of a model of transformers."""
    config: Any = model.config
    return int(config.get_text_config().hidden_size)


def turn_dropout_off(model: nn.Module) -> None:
    """Set every dropout probability to 0, adapters' and attention's included.

    Not by ``eval()``, which would turn gradient checkpointing off too.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    config = getattr(model, "config", None)
    for name, value in list(vars(config).items()) if config is not None else []:
        if ("dropout" in name or name.endswith(("pdrop", "layerdrop"))) and isinstance(value, float):
            setattr(config, name, 0.0)


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy of the very weights, without gradients."""
    duplicate = copy.deepcopy(model)
    return duplicate.requires_grad_(False)
