"""Alerts: a run that goes wrong says so in plain words, once, with what to try."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

WINDOW = 5


@dataclass(frozen=True, slots=True)
class Recent:
    """What a rule may look at: each metric's mean over the last steps, its change over them, its mean at the start."""

    mean: Mapping[str, float]
    change: Mapping[str, float]  # last value minus first value of the window
    start: Mapping[str, float]  # mean of the run's first values, as many as a window has


@dataclass(frozen=True, slots=True)
class Rule:
    """A metric to watch, when it alarms, and what is then said; both see the metric's value first."""

    metric: str
    alarms: Callable[[float, Recent], bool]
    text: Callable[[float, Recent], str]
    window: int = WINDOW
    also: tuple[str, ...] = field(default=())  # metrics the rule reads besides


RULES: dict[str, Rule] = {
    "zero_std": Rule(
        "frac_reward_zero_std",
        lambda x, _: x >= 0.8,
        lambda x, _: (
            f"in {x:.0%} of groups all completions scored the same: nothing to learn from. Look at the samples; raise "
            "rollout.temperature or rollout.group_size, or take a reward that gives partial credit, or other prompts."
        ),
    ),
    # The best of n reference samples has a KL of about ln n: at 50 nats n would be 10^21. Long responses reach it with
    # small changes of each token, so that the KL per token counts too.
    "kl_high": Rule(
        "kl/sequence",
        lambda x, recent: x > 50 and recent.change["kl/sequence"] > 0 and recent.mean.get("kl/token", math.inf) > 0.05,
        lambda x, _: (
            f"the KL to the reference is {x:.0f} nats a response and growing: the policy is leaving what the reference "
            "can write, and its reward is probably no longer worth much. Raise kl.coef, or lower update.learning_rate."
        ),
        also=("kl/token",),
    ),
    # A true KL is never negative, and noise around 0 averages out.
    "kl_negative": Rule(
        "kl/sequence",
        lambda x, _: x < -0.5,
        lambda x, _: (
            f"the KL estimate has been {x:.2f} nats on average, and no KL is negative: the responses were not drawn "
            "from the distribution whose log-probabilities are compared. Check logprob_gap, and that nothing edits "
            "responses after sampling; if kl/sequence drifts down within a run, lower update.learning_rate."
        ),
    ),
    "entropy": Rule(
        "entropy",
        lambda x, recent: recent.start["entropy"] > 0.05 and x < 0.1 * recent.start["entropy"],
        lambda x, recent: (
            f"the policy's entropy fell from {recent.start['entropy']:.2f} to {x:.3f} nats a token: it writes nearly "
            "the same each time and stops exploring. Raise kl.coef or loss.entropy_coef, or lower update.learning_rate."
        ),
    ),
    "length_high": Rule(
        "completions/mean_length",
        lambda x, recent: x > 2 * recent.start["completions/mean_length"],
        lambda x, recent: (
            f"responses grew from {recent.start['completions/mean_length']:.0f} to {x:.0f} tokens on average: the "
            "reward may pay for length. Compare the rewards of short and long samples; raise kl.coef, or set "
            "reward.missing_eos_penalty."
        ),
    ),
    "length_low": Rule(
        "completions/mean_length",
        lambda x, recent: x < 0.25 * recent.start["completions/mean_length"],
        lambda x, recent: (
            f"responses shrank from {recent.start['completions/mean_length']:.0f} to {x:.0f} tokens on average: the "
            "reward, or the KL penalty, may pay for ending early. Look at the samples; lower kl.coef or "
            "update.learning_rate, or let the reward ask for content."
        ),
    ),
    "clipped": Rule(
        "completions/clipped_ratio",
        lambda x, _: x >= 0.95,
        lambda x, _: (
            f"{'every response was' if x > 0.999 else f'{x:.0%} of responses were'} cut off at rollout.max_new_tokens: "
            "the policy cannot learn to end. Raise rollout.max_new_tokens, or add a rollout.stop string; if cut text "
            "is what you want, there is nothing to do."
        ),
    ),
    "clip_ratio": Rule(
        "clip_ratio",
        lambda x, _: x > 0.5,
        lambda x, _: (
            f"{x:.0%} of tokens are outside the clipping range, where they have no gradient: a step's updates go too "
            "far. Lower update.learning_rate, update.epochs or update.minibatches, or set update.target_kl."
        ),
    ),
    "nonfinite": Rule(
        "updates/skipped_nonfinite",
        lambda x, _: x > 0,
        lambda _, __: (
            "an update was skipped because its loss or gradient was not finite. If it recurs, lower "
            "update.learning_rate, set update.max_grad_norm, or take policy.dtype=float32."
        ),
        window=1,
    ),
    "unscorable": Rule(
        "rewards/unscorable",
        lambda x, _: x > 0.1,
        lambda x, _: (
            f"no reward function could score {x:.0%} of responses, and they teach nothing: each gave None or NaN. Look "
            "at these rows in rollouts/, and let a function answer for them."
        ),
    ),
    "logprob_gap": Rule(
        "logprob_gap",
        lambda x, _: x > 0.1,
        lambda x, _: (
            f"sampling and training disagree by {x:.2f} nats on the tokens' log-probabilities. Take "
            "policy.dtype=float32 or another policy.attn_implementation, or correct for it with loss.truncated_is=2."
        ),
    ),
}


class Alerts:
    """Judges each step's metrics by ``RULES``, on the mean of the last 5 values of a metric and not before there are 5.

    Each alert is raised at most once a run. Nothing but the metrics given decides, so a run that is resumed with
    ``load(state())`` raises what it would have raised.

    Attributes:
        raised: what was raised so far: the rule's name to ``{"step": ..., "text": ...}``.
    """

    def __init__(self) -> None:
        self.raised: dict[str, dict[str, Any]] = {}
        self._windows: dict[str, list[float]] = {}
        self._starts: dict[str, list[float]] = {}

    def check(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Take in a step's metrics; the texts of the alerts that are raised by it. Values not finite are left out."""
        for name in sorted({name for rule in RULES.values() for name in (rule.metric, *rule.also)} & metrics.keys()):
            value = float(metrics[name])
            if math.isfinite(value):
                self._windows[name] = [*self._windows.get(name, []), value][-WINDOW:]
                if len(self._starts.get(name, [])) < WINDOW:
                    self._starts[name] = [*self._starts.get(name, []), value]
        recent = Recent(
            mean={name: _mean(values) for name, values in self._windows.items()},
            change={name: values[-1] - values[0] for name, values in self._windows.items()},
            start={name: _mean(values) for name, values in self._starts.items()},
        )
        texts = []
        for name, rule in RULES.items():
            values = self._windows.get(rule.metric, [])[-rule.window :]
            if name in self.raised or len(values) < rule.window or rule.metric not in metrics:
                continue
            if rule.alarms(_mean(values), recent):
                texts.append(rule.text(_mean(values), recent))
                self.raised[name] = {"step": step, "text": texts[-1]}
        return texts

    def state(self) -> dict[str, Any]:
        """All memory, for a checkpoint's JSON."""
        return {"raised": _copy(self.raised), "windows": _copy(self._windows), "starts": _copy(self._starts)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state`` gave."""
        self.raised, self._windows, self._starts = (_copy(state[key]) for key in ("raised", "windows", "starts"))


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _copy(table: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.copy() for name, value in table.items()}
