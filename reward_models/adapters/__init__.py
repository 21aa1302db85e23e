"""Reward functions written for other trainers, unchanged, in the convention that is called here.

Each adapter takes what its prefix stands before in a configuration::

    - {function: "openrlhf:my_rewards.py:reward_func", args: {labels: answer}}
    - {function: "verl:my_rewards.py:compute_score", args: {reward_kwargs: {strict: true}}}
    - "reasoning_gym:chain_sum"  # with data.source: reasoning_gym:chain_sum?size=500&seed=1

TRL's functions need no adapter: their convention is ours.
"""

from reward_models.adapters.from_openrlhf import openrlhf
from reward_models.adapters.from_reasoning_gym import reasoning_gym
from reward_models.adapters.from_verl import verl

__all__ = ["openrlhf", "reasoning_gym", "verl"]
