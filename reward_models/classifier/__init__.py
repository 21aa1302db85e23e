"""Classifiers as reward functions: any sequence-classification checkpoint, adapters of one, a head on a causal LM."""

from reward_models.classifier.loading import load_classifier
from reward_models.classifier.scoring import Classifier

__all__ = ["Classifier", "load_classifier"]
