"""Whether a reward is any good, seen before hours are spent on it."""

from rlhf_pg.reward_check.check import check_reward
from rlhf_pg.reward_check.completions import Completions

__all__ = ["Completions", "check_reward"]
