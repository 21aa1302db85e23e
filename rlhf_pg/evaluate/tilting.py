"""The optimal policy of a coefficient, from samples of the reference alone, prompt by prompt.

For each coefficient beta the policy that maximises E[R] - beta * KL is ``pi_ref * exp(R / beta) / Z``, with one beta for all
prompts, since it is the mean KL over prompts that is spent. Samples of the reference, weighted by exp(R / beta) within their
prompt, give its reward ``E_w[R]`` and its KL ``E_w[R] / beta - log mean exp(R / beta)``.

Both are biased by O(1 / N), the reward and the KL down. The jackknife takes this term out: ``m * x - (m - 1) * mean_i x_(-i)``,
where ``x_(-i)`` is the estimate without sample i. Both values are kept, so that the correction can be seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from rlhf_pg.errors import DataError
from rlhf_pg.evaluate.clusters import Floats, Whole, as_table, cluster_numbers, renumbered


@dataclass(frozen=True, slots=True)
class Tilt:
    """The optimum of one beta, prompt by prompt; each (P,)."""

    reward: Floats
    kl: Floats
    plain_reward: Floats
    plain_kl: Floats
    ess: Floats

    @property
    def pooled_ess(self) -> float:
        """The harmonic mean over prompts: a prompt's bias is of the order of 1 / ESS, and biases add up over prompts."""
        return float(1 / np.mean(1 / self.ess))


@dataclass(frozen=True, slots=True)
class ReferenceSamples:
    """Scores of samples of the reference, ready to be reweighted.

    Attributes:
        scores: (P, N), NaN where unscorable; at least two known a prompt.
        numbers: (P,) clusters of prompts with the same text.
        rows: (P,) where these prompts stood in what was given.
    """

    scores: Floats
    numbers: Whole
    rows: Whole

    @classmethod
    def of(
        cls,
        scores: ArrayLike,
        prompts: Sequence[str] | None = None,
        completions: Sequence[Sequence[object]] | None = None,
    ) -> ReferenceSamples:
        """Check the scores; leave out prompts with fewer than two; pool equal completions.

        Raises:
            DataError: shapes that disagree, an infinite score, or no prompt with two scorable samples.
        """
        table = as_table(scores, "scores")
        if completions is not None:
            table = pooled(table, completions)
        rows = np.flatnonzero((~np.isnan(table)).sum(1) >= 2)
        if not len(rows):
            raise DataError(
                "scores has no prompt with two scorable samples; give many samples of the reference a prompt"
            )
        numbers = cluster_numbers(prompts, len(table))
        return cls(table[rows], renumbered(numbers[rows]), rows)

    @property
    def means(self) -> Floats:
        """(P,) the reference's own reward."""
        return np.asarray(np.nanmean(self.scores, axis=1))

    @property
    def bests(self) -> Floats:
        """(P,) the best reward seen, which the corrected mean reward must not pass."""
        return np.asarray(np.nanmax(self.scores, axis=1))

    def tilt(self, beta: float) -> Tilt:
        """The optimum at beta, with and without the jackknife's correction. Safe for beta near 0 and for a large one.

        Raises:
            DataError: beta is not positive.
        """
        if not beta > 0:
            raise DataError(f"beta is {beta}; give a positive coefficient: at 0 no KL is small enough to be finite")
        known = ~np.isnan(self.scores)
        m = known.sum(1)
        best = np.nanmax(self.scores, axis=1, keepdims=True)
        x = np.where(known, self.scores - best, 0.0)
        weight = np.where(known, np.exp(x / beta), 0.0)
        mass, sums = weight.sum(1), (weight * x).sum(1)
        reward, log_z = sums / mass, np.log(mass / m)
        # Without sample i. The best one, of weight 1, is done apart: what remains without it may be below the rounding.
        top = np.argmax(np.where(known, x, -np.inf), axis=1)
        first = np.arange(len(x)), top
        rest = known.copy()
        rest[first] = False
        others = mass[:, None] - weight
        others[first] = 1.0
        reward_without, log_z_without = (sums[:, None] - weight * x) / others, np.log(others / (m - 1)[:, None])
        second = np.where(rest, x, -np.inf).max(1)
        tail = np.where(rest, np.exp(np.where(rest, x - second[:, None], 0.0) / beta), 0.0)
        reward_without[first] = (tail * x).sum(1) / tail.sum(1)
        log_z_without[first] = np.log(tail.sum(1) / (m - 1)) + second / beta
        jack_reward = m * reward - (m - 1) * np.where(known, reward_without, 0.0).sum(1) / m
        jack_log_z = m * log_z - (m - 1) * np.where(known, log_z_without, 0.0).sum(1) / m
        return Tilt(
            reward=jack_reward + best[:, 0],
            kl=jack_reward / beta - jack_log_z,
            plain_reward=reward + best[:, 0],
            plain_kl=reward / beta - log_z,
            ess=mass**2 / np.square(weight).sum(1),
        )

    def beta_of(self, kl: float) -> float | None:
        """The beta whose optimum spends this mean KL; None where the samples reach no such KL."""
        spread = float(np.sqrt(np.nanvar(self.scores, axis=1).mean()))
        if spread == 0 or kl <= 0:
            return None
        start = np.log(spread / np.sqrt(2 * kl))  # the KL is var / (2 beta^2) while it is small

        def excess(log_beta: float) -> float:
            return float(self.tilt(float(np.exp(log_beta))).kl.mean()) - kl

        low, high = start, start
        while excess(high) > 0:
            high += 0.7
        while excess(low) <= 0:
            low -= 0.7
            if low < start - 14:
                return None
        return float(np.exp(brentq(excess, low, high, xtol=1e-9)))


def pooled(scores: Floats, completions: Sequence[Sequence[object]]) -> Floats:
    """(P, N) scores in which equal completions of a prompt have the mean of their scores.

    A reward that differs between equal completions is noise, which an optimal policy cannot choose. Each keeps its row: k draws
    of a completion are k witnesses of its probability, so that the weights and the effective sample size count draws.

    Args:
        scores: (P, N), NaN where unscorable.
        completions: P rows of N texts or ids, hashable.

    Raises:
        DataError: other numbers of completions than of scores.
    """
    if [len(row) for row in completions] != [scores.shape[1]] * len(scores):
        raise DataError(f"completions must have {len(scores)} rows of {scores.shape[1]}, one completion a score")
    out = scores.copy()
    for row, texts in enumerate(completions):
        names = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        known = np.flatnonzero(~np.isnan(scores[row]))
        numbers = np.array([names[texts[column]] for column in known.tolist()], dtype=np.intp)
        sums = np.bincount(numbers, scores[row, known], len(names))
        out[row, known] = (sums / np.maximum(np.bincount(numbers, minlength=len(names)), 1))[numbers]
    return out
