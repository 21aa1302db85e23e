"""Alerts: each fires where it should, only there, once, and the same after a resume."""

from __future__ import annotations

import json
import math

import pytest

from rlhf_pg.tracking.alerts import RULES, WINDOW, Alerts

HEALTHY = {
    "reward": 0.5,
    "frac_reward_zero_std": 0.2,
    "kl/sequence": 4.0,
    "kl/token": 0.1,
    "entropy": 2.0,
    "completions/mean_length": 40.0,
    "completions/clipped_ratio": 0.3,
    "clip_ratio": 0.1,
    "updates/skipped_nonfinite": 0,
    "rewards/unscorable": 0.0,
    "logprob_gap": 0.01,
}


def run(steps: list[dict[str, float]], alerts: Alerts | None = None, start: int = 0) -> dict[int, list[str]]:
    """What was raised at which step, each step being the healthy metrics with some replaced."""
    alerts = alerts or Alerts()
    raised = {start + n: alerts.check(start + n, {**HEALTHY, **step}) for n, step in enumerate(steps, start=1)}
    return {step: texts for step, texts in raised.items() if texts}


def test_a_healthy_run_raises_nothing() -> None:
    assert run([{}] * 30) == {}


@pytest.mark.parametrize(
    ("metric", "bad", "nearly", "said"),
    [
        ("frac_reward_zero_std", 0.8, 0.79, "in 80% of groups all completions scored the same: nothing to learn from"),
        ("kl/sequence", -0.6, -0.4, "the KL estimate has been -0.60 nats on average"),
        ("completions/clipped_ratio", 1.0, 0.94, "every response was cut off at rollout.max_new_tokens"),
        ("completions/clipped_ratio", 0.96, 0.94, "96% of responses were cut off at rollout.max_new_tokens"),
        ("clip_ratio", 0.55, 0.5, "55% of tokens are outside the clipping range"),
        ("rewards/unscorable", 0.2, 0.1, "no reward function could score 20% of responses"),
        ("logprob_gap", 0.25, 0.1, "sampling and training disagree by 0.25 nats"),
    ],
)
def test_a_level_is_judged_on_five_steps_and_said_once(metric: str, bad: float, nearly: float, said: str) -> None:
    raised = run([{metric: bad}] * 20)
    assert list(raised) == [WINDOW]
    assert len(raised[WINDOW]) == 1
    assert raised[WINDOW][0].startswith(said)
    assert run([{metric: nearly}] * 20) == {}
    assert run([{metric: bad}] * (WINDOW - 1)) == {}


def test_one_bad_step_among_good_ones_is_no_alert() -> None:
    assert run([{}] * 10 + [{"logprob_gap": 0.4}] + [{}] * 10) == {}  # mean .088


def test_the_mean_of_the_last_five_decides() -> None:
    # Means of 5: after three of .23, (2 * .01 + 3 * .23) / 5 = .142 > .1; after two, (3 * .01 + 2 * .23) / 5 = .098.
    assert list(run([{}] * 10 + [{"logprob_gap": 0.23}] * 5)) == [13]


def test_kl_must_be_high_growing_and_high_per_token() -> None:
    growing = [{"kl/sequence": 40.0 + 5 * n, "kl/token": 1.0} for n in range(10)]
    raised = run(growing)
    assert list(raised) == [5 + 1]  # 40, 45, 50, 55, 60 have the mean 50, which is not above it; then 55
    assert raised[6][0].startswith("the KL to the reference is 55 nats a response and growing")
    assert run([{"kl/sequence": 70.0, "kl/token": 1.0}] * 10) == {}
    assert run([{**step, "kl/token": 0.02} for step in growing]) == {}


def test_kl_without_a_token_kl_counts_too() -> None:
    alerts = Alerts()
    raised = [alerts.check(n, {"kl/sequence": 60.0 + n}) for n in range(1, 8)]
    assert [len(texts) for texts in raised] == [0, 0, 0, 0, 1, 0, 0]


def test_entropy_collapse_is_against_the_start() -> None:
    raised = run([{"entropy": 2.0}] * 5 + [{"entropy": 0.1}] * 6)
    assert list(raised) == [10]  # the first window without a 2.0 in it
    assert "fell from 2.00 to 0.100 nats" in raised[10][0]
    assert run([{"entropy": 2.0}] * 5 + [{"entropy": 0.21}] * 10) == {}
    assert run([{"entropy": 0.04}] * 5 + [{"entropy": 0.0001}] * 10) == {}, "there was no entropy to lose"


@pytest.mark.parametrize(("length", "said"), [(81.0, "grew from 40 to 81"), (9.0, "shrank from 40 to 9")])
def test_length_running_away_or_collapsing(length: float, said: str) -> None:
    raised = run([{}] * 5 + [{"completions/mean_length": length}] * 8)
    assert list(raised) == [10]
    assert said in raised[10][0]


@pytest.mark.parametrize("length", [79.0, 10.5])
def test_length_within_bounds(length: float) -> None:
    assert run([{}] * 5 + [{"completions/mean_length": length}] * 8) == {}


def test_a_skipped_update_is_said_at_once() -> None:
    raised = run([{"updates/skipped_nonfinite": 1}] * 3)
    assert list(raised) == [1]
    assert "not finite" in raised[1][0]


def test_non_finite_and_missing_values_are_left_out() -> None:
    alerts = Alerts()
    values = [0.9, math.nan, 0.9, math.inf, 0.9, 0.9]
    for n, value in enumerate(values):
        assert alerts.check(n, {"frac_reward_zero_std": value}) == []
    assert alerts.check(6, {"reward": 1.0}) == []
    assert len(alerts.check(7, {"frac_reward_zero_std": 0.9})) == 1


def test_a_line_of_an_evaluation_alone_raises_nothing() -> None:
    alerts = Alerts()
    assert alerts.check(0, {"eval/reward": 0.1, "eval/kl/sequence": 0.0}) == []
    assert alerts.state() == {"raised": {}, "windows": {}, "starts": {}}


def test_every_alert_says_what_to_try() -> None:
    bad = {
        "frac_reward_zero_std": 1.0, "completions/clipped_ratio": 1.0, "clip_ratio": 0.9, "rewards/unscorable": 0.5,
        "updates/skipped_nonfinite": 1, "logprob_gap": 1.0, "entropy": 0.01,
    }  # fmt: skip
    cases = [[{}] * 5 + [{**bad, "kl/sequence": kl + 0.1 * n, "completions/mean_length": length} for n in range(10)]
             for kl, length in ((60.0, 500.0), (-9.0, 2.0))]  # fmt: skip
    alerts = [Alerts(), Alerts()]
    texts = {
        text for a, steps in zip(alerts, cases, strict=True) for raised in run(steps, a).values() for text in raised
    }
    assert {name for a in alerts for name in a.raised} == set(RULES)
    keys = ("rollout.", "kl.coef", "update.", "policy.dtype", "rollouts/")
    assert all(any(key in text for key in keys) for text in texts)


@pytest.mark.parametrize("cut", range(1, 16))
def test_a_resumed_run_raises_what_it_would_have_raised(cut: int) -> None:
    steps = [
        {"entropy": 2.0 / (n + 1) ** 2, "logprob_gap": 0.025 * n, "kl/sequence": 1 / 3 - 0.1 * n} for n in range(20)
    ]
    whole = Alerts()
    expected = run(steps, whole)
    assert sum(map(len, expected.values())) == 3
    first = Alerts()
    before = run(steps[:cut], first)
    resumed = Alerts()
    resumed.load(json.loads(json.dumps(first.state(), allow_nan=False)))
    after = run(steps[cut:], resumed, start=cut)
    assert before | after == expected
    assert resumed.state() == whole.state()


def test_a_state_is_a_copy() -> None:
    alerts = Alerts()
    run([{}], alerts)
    state = alerts.state()
    copy = json.loads(json.dumps(state))
    run([{}] * 10, alerts)
    assert state == copy
