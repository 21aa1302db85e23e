"""Sample completions: ``PromptBatch -> Rollout``."""

from rlhf_pg.rollout.sampler import Sampler

__all__ = ["Sampler"]
