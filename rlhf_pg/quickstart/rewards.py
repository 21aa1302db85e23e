"""The two scores of the quickstart's world, as reward functions that any trainer of TRL's convention can call."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

from rlhf_pg.quickstart.grammar import gold_score

Reward = Callable[..., list[float]]


def reviews_reward() -> Reward:
    """The learned reward: what the reward model says of prompt and completion, joined as in its training.

    The completion is scored as it was written, its last full stop included, and without an end-of-sequence token.
    """
    from rlhf_pg.quickstart.build import reward_folder  # torch, which the gold score's worker does without

    load = importlib.import_module("reward_models.classifier").load_classifier
    reward: Reward = load(str(reward_folder()))
    return reward


def reviews_gold() -> Reward:
    """The gold score, which is known by construction and which the reward model only estimates."""

    # TRL passes whatever columns and state it has.
    def gold(prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[float]:
        return [gold_score(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]

    return gold
