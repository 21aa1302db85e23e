"""A world of 1,365 responses a prompt that can be summed over: what sampling estimates of reward against KL must find.

Five tokens, token 0 ends a response, at most five steps. Each of 400 prompts has a reference of its own, a softmax at each of
341 states, and a reward for each response. Policies are tables of logits too, so that each expectation and KL is a sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

VOCABULARY, STEPS, PROMPTS = 5, 5, 400
STATES = [prefix for length in range(STEPS) for prefix in product(range(1, VOCABULARY), repeat=length)]
RESPONSES = [(*prefix, 0) for prefix in STATES] + list(product(range(1, VOCABULARY), repeat=STEPS))


@cache
def _paths() -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(responses, STEPS) the state and the token of each step; past the end, one of probability 1."""
    number = {state: i for i, state in enumerate(STATES)}
    padded = [[(number[y[:t]], y[t]) if t < len(y) else (len(STATES), 0) for t in range(STEPS)] for y in RESPONSES]
    table = np.array(padded)
    return table[..., 0], table[..., 1]


def probabilities(logits: Floats) -> Floats:
    """(prompts, responses) from (prompts, states, tokens)."""
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    states, tokens = _paths()
    ended = np.zeros((len(logits), 1, VOCABULARY))
    return np.exp(np.concatenate([logprobs, ended], axis=1)[:, states, tokens].sum(-1))


@dataclass(frozen=True, slots=True)
class World:
    """(400, 1365) each: probabilities under the reference and a policy, and the reward of each response."""

    reference: Floats
    policy: Floats
    rewards: Floats

    def optimum(self, beta: float) -> tuple[float, float]:
        """The true reward and KL of the optimal policy, over all prompts."""
        weight = self.reference * np.exp((self.rewards - self.rewards.max(1, keepdims=True)) / beta)
        best = weight / weight.sum(1, keepdims=True)
        return self.value(best), self.kl(best)

    def optimum_at(self, kl: float) -> float:
        """The true best reward at a KL, by bisection over log beta."""
        low, high = -8.0, 8.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.optimum(np.exp(middle))[1] > kl else (low, middle)
        return self.optimum(np.exp(high))[0]

    def efficiency(self) -> float:
        """The true one of the policy."""
        start = self.value(self.reference)
        return (self.value(self.policy) - start) / (self.optimum_at(self.kl(self.policy)) - start)

    def value(self, p: Floats) -> float:
        return float((p * self.rewards).sum(1).mean())

    def kl(self, p: Floats) -> float:
        # A response that is never drawn adds nothing.
        return float((p * np.log(np.maximum(p, 1e-300) / self.reference)).sum(1).mean())

    def log_ratios(self) -> Floats:
        return np.log(self.policy / self.reference)


@cache
def world(rewards: str = "bounded") -> World:
    """Rewards "bounded", in (-1, 1); "binary", some 15% of them 1; "wide", normal, so that the optimum lies in the tail."""
    chance = np.random.default_rng(7)
    logits = chance.normal(size=(PROMPTS, len(STATES), VOCABULARY))
    noise = chance.normal(size=(PROMPTS, len(RESPONSES)))
    ease = 0.3 * chance.normal(size=(PROMPTS, 1))
    score = {
        "bounded": lambda: np.tanh(ease + 0.3 + 0.6 * noise),
        "binary": lambda: (ease + noise > 1.0).astype(float),
        "wide": lambda: ease + 0.5 * noise,
    }[rewards]()
    # A policy that learned, with errors, what each token is worth on average in its state.
    states, tokens = _paths()
    reference = probabilities(logits)
    gain = np.zeros((PROMPTS, len(STATES) + 1, VOCABULARY))
    mass = np.zeros_like(gain)
    for step in range(STEPS):
        at = (slice(None), states[:, step], tokens[:, step])
        for table, value in ((gain, reference * score), (mass, reference)):
            np.add.at(table, at, value)
    values = (gain / np.maximum(mass, 1e-12))[:, :-1]
    learned = values / (0.8 * score.std()) + 0.4 * chance.normal(size=values.shape)
    policy = probabilities(logits + learned)
    return World(reference, policy, score)


@dataclass(frozen=True, slots=True)
class Draws:
    """Samples on P prompts of a world: (P, N) of the reference, (P, G) of the policy."""

    scores: Floats
    responses: NDArray[np.intp]
    rewards: Floats
    kls: Floats


def draw(of: World, prompts: int, samples: int, group: int, seed: int) -> Draws:
    """Prompts drawn with replacement, as from a population, and samples of both policies."""
    chance = np.random.default_rng(seed)
    rows = chance.integers(PROMPTS, size=prompts)

    def responses(p: Floats, count: int) -> NDArray[np.intp]:
        steps = p[rows].cumsum(1)
        uniform = chance.random((prompts, count)) * steps[:, -1:]
        return np.array([np.searchsorted(s, u) for s, u in zip(steps, uniform, strict=True)])

    ours, theirs = responses(of.policy, group), responses(of.reference, samples)
    at = rows[:, None]
    return Draws(of.rewards[at, theirs], theirs, of.rewards[at, ours], of.log_ratios()[at, ours])
