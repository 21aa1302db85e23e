"""The errors users see. Each is also the built-in that a caller without this package would expect."""

from __future__ import annotations


class RlhfPgError(Exception):
    """Anything that this package reports about its input: the key or row, what was given, the rule and the fix."""


class ConfigError(RlhfPgError, ValueError):
    """A configuration key has a value that cannot work."""


class DataError(RlhfPgError, ValueError):
    """A dataset or one of its rows cannot be used."""


class ModelError(RlhfPgError, ValueError):
    """A model, tokenizer or adapter cannot be used as asked."""


class RewardError(RlhfPgError, RuntimeError):
    """A reward function raised, or returned something that is not a reward."""


class CheckpointError(RlhfPgError, RuntimeError):
    """A checkpoint is damaged, of another model, or absent."""


class TrainingError(RlhfPgError, RuntimeError):
    """A run cannot go on: the loss stays non-finite, or the processes disagree."""
