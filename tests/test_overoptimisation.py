"""The fits of gold reward to KL: exact curves, verdicts, and how often the intervals hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from rlhf_pg.errors import DataError
from rlhf_pg.evaluate import fit_overoptimisation
from rlhf_pg.evaluate.overoptimisation import Kind

Floats = NDArray[np.float64]
KLS = np.array([0.1, 0.3, 0.6, 1.0, 2.0, 4.0, 6.0, 9.0, 12.0])
TRUTH = {"bon": (1.0, 0.25), "rl": (0.9, 0.5)}
PEAKS = {"bon": 4.0, "rl": math.exp(1.6)}  # d = alpha / (2 beta) = 2; d = exp(alpha / beta - 1) = exp(0.8)


def curve(kl: Floats, kind: Kind, alpha: float, beta: float) -> Floats:
    d = np.sqrt(kl)
    return d * (alpha - beta * (d if kind == "bon" else np.log(np.maximum(d, 1e-300))))


@pytest.mark.parametrize("kind", ["bon", "rl"])
def test_an_exact_curve_is_found_again(kind: Kind) -> None:
    kls = np.append(KLS, 0.0)  # the reference's own point
    gold = 3.0 + np.append(curve(KLS, kind, *TRUTH[kind]), 0.0)
    found = fit_overoptimisation(kls, gold, np.full(len(kls), 0.01), kind, reference=3.0)
    assert (found.alpha, found.beta) == pytest.approx(TRUTH[kind])
    assert found.peak_kl == pytest.approx(PEAKS[kind])
    assert found.peak_gold == pytest.approx(3.0 + curve(np.array([PEAKS[kind]]), kind, *TRUTH[kind])[0])
    assert found.gold_at(kls) == pytest.approx(gold)
    assert found.alpha_low < found.alpha < found.alpha_high
    assert found.beta_low < found.beta < found.beta_high
    assert found.peak_low < PEAKS[kind] < found.peak_high
    assert found.outcome == "peak"
    assert found.misfit == pytest.approx(1.0)
    dense = np.linspace(0.01, 12, 5000)
    assert dense[np.argmax(found.gold_at(dense))] == pytest.approx(PEAKS[kind], abs=0.01)


def test_weights_by_hand() -> None:
    """Points off by their errors' share: the least squares of the rows divided by their errors."""
    gold, errors = curve(KLS, "rl", 1.0, 0.4) + 0.1 * np.cos(KLS), np.linspace(0.05, 0.5, len(KLS))
    found = fit_overoptimisation(KLS, gold, errors)
    d = np.sqrt(KLS)
    rows = np.column_stack([d, -d * np.log(d)]) / errors[:, None]
    assert [found.alpha, found.beta] == pytest.approx(np.linalg.lstsq(rows, gold / errors)[0].tolist())
    chi_square = np.square(gold / errors - rows @ [found.alpha, found.beta]).sum()
    assert found.chi_square == pytest.approx(chi_square)


# What is said.


def said(gold: Floats, error: float = 0.02, kind: Kind = "rl", kls: Floats = KLS) -> tuple[str, str]:
    found = fit_overoptimisation(kls, gold, np.full(len(kls), error), kind)
    return found.outcome, found.verdict


def test_a_peak_is_told_with_its_interval_and_what_was_lost() -> None:
    outcome, verdict = said(curve(KLS, "bon", 1.0, 0.25), kind="bon")
    assert outcome == "peak"
    assert "peaks at a KL of 4 nats (95% interval 3." in verdict
    assert "+1 from the reference; at 12 nats, the largest KL measured, the fit is 0.536 below its peak." in verdict


def test_gold_that_still_rises_is_not_given_a_peak() -> None:
    outcome, verdict = said(curve(KLS[:5], "rl", 2.0, 0.5), kls=KLS[:5])
    assert outcome == "rises"
    assert verdict == "Gold still rises at 2 nats, the largest KL measured: where it peaks, the data cannot tell."


@pytest.mark.parametrize("kind", ["bon", "rl"])
def test_gold_that_falls_from_the_first(kind: Kind) -> None:
    assert said(-0.5 * np.sqrt(KLS), kind=kind)[0] == "falls"
    assert said(-0.5 * KLS, kind=kind)[0] == "falls"


def test_noise_alone_tells_nothing() -> None:
    outcome, verdict = said(0.1 * np.random.default_rng(1).normal(size=len(KLS)), error=0.1)
    assert outcome == "unclear"
    assert "cannot tell whether gold peaks: beta is not told apart from 0" in verdict


def test_a_peak_whose_interval_leaves_the_data_is_not_placed() -> None:
    """The bend is certain, and where it turns is not: the peak at 4 nats lies at the end of what was measured."""
    outcome, verdict = said(curve(KLS[:6], "bon", 1.0, 0.25), error=0.03, kind="bon", kls=KLS[:6])
    assert outcome == "unclear"
    assert "cannot tell where gold peaks" in verdict
    assert "reaches beyond 4 nats" in verdict


def test_a_form_that_does_not_fit_says_so_and_widens() -> None:
    gold = np.sin(2 * KLS)
    found = fit_overoptimisation(KLS, gold, np.full(len(KLS), 0.02))
    assert found.misfit < 1e-6
    assert found.verdict.startswith("The form fits the points badly (chi-square ")
    assert "trust the points before the curve. By the fit: " in found.verdict
    assert found.alpha_high - found.alpha_low > 10 * 0.02


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"kl": [1.0, 2, 2]}, "three different KLs"),
        ({"kl": [0.0, 1, 2]}, "three different KLs"),
        ({"kl": [-0.1, 1, 2, 3], "gold": [0.0] * 4}, "three different KLs"),
        ({"gold": [1.0, 2]}, "2 rows for 3"),
        ({"gold": [1.0, 2, math.nan]}, "a NaN"),
        ({"stderr": [0.1, 0.0, 0.1]}, "above 0"),
        ({"kind": "ppo"}, "'ppo'"),
        ({"by_prompt": [[1.0, 2]]}, "2 columns for 3 points"),
        ({"by_prompt": [[1.0, 2, 3], [1, math.nan, 3]]}, "fewer than two prompt texts"),
        ({"runs": ["a"]}, "1 texts for 3 rows"),
    ],
)
def test_what_cannot_be_fitted_is_refused(given: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        fit_overoptimisation(**({"kl": [1.0, 2, 3], "gold": [0.1, 0.2, 0.3]} | given))  # type: ignore[arg-type]


# How often the intervals hold the truth.


def coverage(kind: Kind, luck: str, times: int, use: bool = True) -> dict[str, float]:
    """The share of 95% intervals of alpha, beta and the peak that hold them.

    ``luck``: what the points share. "none"; "scatter", of which no error is given; "prompts", 60 of them with a steepness each;
    "runs", 10 of them with three checkpoints. ``use``: whether the fit is told.
    """
    hits = {"alpha": 0, "beta": 0, "peak": 0}
    alpha, beta = TRUTH[kind]
    for seed in range(times):
        chance = np.random.default_rng(seed)
        kl, more = KLS, {}
        if luck == "prompts":
            steep = alpha + 0.8 * chance.normal(size=(60, 1))
            table = np.array([curve(kl, kind, a, beta) for a in steep[:, 0]]) + 0.2 * chance.normal(size=(60, len(kl)))
            gold, errors = table.mean(0), table.std(0, ddof=1) / 60**0.5
            more = {"by_prompt": table} if use else {"stderr": errors}
        elif luck == "runs":
            kl = np.exp(chance.uniform(np.log(0.2), np.log(12), size=30))
            names = np.repeat([f"run {i}" for i in range(10)], 3)
            gold = (
                curve(kl, kind, alpha, beta)
                + np.repeat(0.1 * chance.normal(size=10), 3)
                + 0.02 * chance.normal(size=30)
            )
            more = {"stderr": np.full(30, 0.02)} | ({"runs": names.tolist()} if use else {})
        else:
            gold = curve(kl, kind, alpha, beta) + 0.05 * chance.normal(size=len(kl))
            more = {"stderr": np.full(len(kl), 0.05)} if luck == "none" else {}
        found = fit_overoptimisation(kl, gold, kind=kind, resamples=1000, seed=seed, **more)  # type: ignore[arg-type]
        hits["alpha"] += found.alpha_low <= alpha <= found.alpha_high
        hits["beta"] += found.beta_low <= beta <= found.beta_high
        hits["peak"] += found.peak_low <= PEAKS[kind] <= found.peak_high
    return {name: count / times for name, count in hits.items()}


@pytest.mark.parametrize("luck", ["none", "scatter", "prompts"])
@pytest.mark.parametrize("kind", ["bon", "rl"])
def test_the_intervals_hold_the_truth(kind: Kind, luck: str) -> None:
    found = coverage(kind, luck, times=100)
    assert min(found.values()) >= 0.9, found


@pytest.mark.parametrize("luck", ["prompts", "runs"])
def test_shared_luck_must_be_told(luck: str) -> None:
    """Taken as independent, points on the same prompts, or of the same run, promise what they do not know."""
    assert coverage("bon", luck, times=60, use=False)["alpha"] < 0.85
    assert coverage("bon", luck, times=60)["alpha"] >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("luck", ["none", "scatter", "prompts", "runs"])
@pytest.mark.parametrize("kind", ["bon", "rl"])
def test_the_intervals_hold_the_truth_95_times_in_100(kind: Kind, luck: str) -> None:
    found = coverage(kind, luck, times=1000)
    print(f"{kind}, {luck}: {found}")
    assert min(found.values()) >= 0.92, found
