"""Training reward models: from preferences, numbers or classes to a checkpoint that ``load_classifier`` loads."""

from reward_models.training.bradley_terry import train_bradley_terry
from reward_models.training.building import ModelOptions
from reward_models.training.data import DataOptions
from reward_models.training.fitting import FitOptions
from reward_models.training.run import train_reward_model

__all__ = ["DataOptions", "FitOptions", "ModelOptions", "train_bradley_terry", "train_reward_model"]
