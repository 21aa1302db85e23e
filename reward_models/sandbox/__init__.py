"""A sandbox for programs that a model wrote: limits, an empty place, no network, and nothing left behind."""

from reward_models.sandbox.process import Ending, Limits, Outcome, SandboxError
from reward_models.sandbox.protections import REQUIRED, Protections, protections, run

__all__ = ["REQUIRED", "Ending", "Limits", "Outcome", "Protections", "SandboxError", "protections", "run"]
