"""Completions of a policy for given prompts, for what is measured against it."""

from __future__ import annotations

import torch

from rlhf_pg.config.sections import DataConfig, PolicyConfig
from rlhf_pg.data import load_prompts
from rlhf_pg.errors import ModelError
from rlhf_pg.loading import eos_ids, load_causal_lm, load_tokenizer
from rlhf_pg.models import Policy, turn_dropout_off
from rlhf_pg.ops.sampling import row_uniforms
from rlhf_pg.rollout import Sampler
from rlhf_pg.sources import Say
from rlhf_pg.types import Prompt


def completions_of(
    model: str, prompts: str, count: int, max_new_tokens: int, seed: int, *, cpu: bool = False, say: Say = print
) -> list[tuple[Prompt, str]]:
    """One completion for each of ``count`` prompts, sampled from the whole softmax at temperature 1.

    Args:
        model: folder or hub id of the policy.
        prompts: what ``data.source`` takes.
        count: at most this many prompts, chosen by ``seed``.
        max_new_tokens: a longer completion is cut.
        seed: of the choice and the sampling.
        cpu: stay on the CPU even where there is an accelerator.
        say: receives what the data say of themselves.

    Returns:
        Prompts, as strings or messages, with their completions.

    Raises:
        ModelError: the model cannot be loaded, or never ends a text.
        DataError: the prompts cannot be used.
    """
    settings = PolicyConfig(model=model)
    tokenizer = load_tokenizer(settings)
    network = load_causal_lm(model, settings, "--reference")
    turn_dropout_off(network)
    policy = Policy(network.to("cuda" if torch.cuda.is_available() and not cpu else "cpu"))
    ends = eos_ids(policy, tokenizer)
    if not ends:
        raise ModelError(
            f"--reference {model} and its tokenizer name no end-of-sequence token; set one in its config.json"
        )
    source = load_prompts(DataConfig(source=prompts, eval_size=0), tokenizer, seed=seed, say=say).train
    batch = source.batch(0, min(count, len(source)))
    numbers = row_uniforms(seed, "reference completions", rows=range(len(batch)), columns=max_new_tokens)
    rollout = Sampler(tokenizer, ends, max_new_tokens)(policy, batch, numbers)
    return list(zip(batch.prompts, rollout.texts, strict=True))
