from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf_pg.ops import baselines

THREE_OF_EIGHT = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
SCORES = torch.tensor([1.0, 2.0, 6.0, 10.0, 20.0, 60.0])  # two prompts of three
Grouped = Callable[..., Tensor]


def weighted(scores: Tensor, group_size: int, valid: Tensor | None = None) -> Tensor:
    """``optimal`` with weights 1, 2, 3, ... along the rows."""
    weights = torch.arange(1, len(scores) + 1, dtype=scores.dtype)
    return baselines.optimal(scores, group_size, valid, sq_norms=weights)


OTHERS: list[Grouped] = [baselines.leave_one_out, weighted]
MEANS: list[Grouped] = [*OTHERS, baselines.group_mean, baselines.batch_mean]


def test_leave_one_out_three_right_of_eight() -> None:
    """Right: 1 - 2/7 = .7143; wrong: 0 - 3/7 = -.4286; both are 8/7 (R - 3/8)."""
    advantages = THREE_OF_EIGHT - baselines.leave_one_out(THREE_OF_EIGHT, 8)
    assert advantages[0].item() == pytest.approx(0.7143, abs=5e-5)
    assert advantages[7].item() == pytest.approx(-0.4286, abs=5e-5)
    torch.testing.assert_close(advantages, 8 / 7 * (THREE_OF_EIGHT - 0.375))


def test_group_mean_and_deviation_three_right_of_eight() -> None:
    """(3 * .625^2 + 5 * .375^2) / 7 = .26786, deviation .51755: .625 / .51755 = 1.2076, -.375 / .51755 = -.7246."""
    advantages = THREE_OF_EIGHT - baselines.group_mean(THREE_OF_EIGHT, 8)
    advantages = advantages / baselines.group_std(THREE_OF_EIGHT, 8)
    assert advantages[0].item() == pytest.approx(1.2076, abs=5e-5)
    assert advantages[7].item() == pytest.approx(-0.7246, abs=5e-5)


def test_each_baseline_by_hand() -> None:
    assert baselines.none(SCORES, 3).tolist() == [0.0] * 6
    assert baselines.constant(SCORES, 3, value=0.5).tolist() == [0.5] * 6
    assert baselines.batch_mean(SCORES, 3).tolist() == [16.5] * 6
    assert baselines.group_mean(SCORES, 3).tolist() == [3.0] * 3 + [30.0] * 3
    assert baselines.leave_one_out(SCORES, 3).tolist() == [4.0, 3.5, 1.5, 40.0, 35.0, 15.0]
    assert baselines.greedy(SCORES, 3, greedy_scores=torch.tensor([7.0, -8.0])).tolist() == [7.0] * 3 + [-8.0] * 3
    # weights 1, 2, 3: (2*2 + 3*6)/5, (1*1 + 3*6)/4, (1*1 + 2*2)/3;
    # weights 4, 5, 6: (5*20 + 6*60)/11, (4*10 + 6*60)/10, (4*10 + 5*20)/9
    expected = [22 / 5, 19 / 4, 5 / 3, 460 / 11, 40.0, 140 / 9]
    assert weighted(SCORES, 3).tolist() == pytest.approx(expected)
    lengths = torch.arange(1, 7)
    assert torch.equal(baselines.optimal_length(SCORES, 3, lengths=lengths), weighted(SCORES, 3))
    # (4 + 1 + 9) / 2 and a hundred times that
    assert baselines.group_std(SCORES, 3).tolist() == pytest.approx([7**0.5] * 3 + [700**0.5] * 3)


def test_moving_average_over_three_batches() -> None:
    """None -> mean 2 -> .9 * 2 + .1 * 12 = 3; the baseline of a batch is the state before it."""
    state = None
    seen = []
    for batch in ([1.0, 3.0], [12.0, 12.0], [0.0, 0.0]):
        scores = torch.tensor(batch)
        seen.append(baselines.moving_average(scores, 1, average=state)[0].item())
        state = baselines.update_average(state, scores, None, 0.9)
    assert seen == pytest.approx([0.0, 2.0, 3.0])
    assert state == pytest.approx(2.7)


def test_moving_average_leaves_out_invalid_rows() -> None:
    scores, valid = torch.tensor([1.0, torch.nan]), torch.tensor([True, False])
    assert baselines.update_average(None, scores, valid, 0.9) == 1.0
    assert baselines.update_average(2.0, scores, valid, 0.5) == 1.5
    nobody = torch.tensor([False, False])
    assert baselines.update_average(2.0, scores, nobody, 0.5) == 2.0
    assert baselines.update_average(None, scores, nobody, 0.5) is None


@pytest.mark.parametrize("baseline", OTHERS)
@pytest.mark.parametrize("change", [1e30, -3.3e7, 1 / 3, torch.inf, torch.nan])
def test_ones_own_score_does_not_move_ones_own_baseline_to_the_bit(baseline: Grouped, change: float) -> None:
    scores = torch.tensor([0.1, 0.7, 0.3, 0.9, -0.2, 1 / 3, 0.6, 0.05])
    before = baseline(scores, 4)
    for row in range(8):
        moved = scores.clone()
        moved[row] = change
        assert torch.equal(baseline(moved, 4)[row], before[row])


@pytest.mark.parametrize("baseline", OTHERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_scores_have_exactly_no_advantage(baseline: Grouped, dtype: torch.dtype) -> None:
    for score in (0.1, 1 / 3, -0.7, 1e-8):
        for group_size in (2, 3, 7, 8):
            scores = torch.full((2 * group_size,), score, dtype=dtype)
            for function in (baseline, baselines.group_mean, baselines.batch_mean):
                assert torch.equal(function(scores, group_size), scores)
            assert torch.equal(baselines.group_std(scores, group_size), torch.zeros_like(scores))


@pytest.mark.parametrize("baseline", [*MEANS, baselines.group_std])
def test_invalid_rows_are_in_no_mean(baseline: Grouped) -> None:
    """Rows 2 and 3 are invalid; whatever stands there, rows 0, 1 and the rest see the others alone."""
    valid = torch.tensor([True, True, False, False, True, True])
    results = []
    for garbage in (0.0, 1e9, torch.nan, torch.inf):
        scores = torch.where(valid, SCORES, garbage)
        results.append(baseline(scores, 3, valid)[valid])
    for result in results[1:]:
        assert torch.equal(result, results[0])
    assert torch.isfinite(results[0]).all()


def test_invalid_rows_by_hand() -> None:
    valid = torch.tensor([True, True, False, False, True, True])
    assert baselines.leave_one_out(SCORES, 3, valid)[valid].tolist() == [2.0, 1.0, 60.0, 20.0]
    assert baselines.group_mean(SCORES, 3, valid).tolist() == [1.5] * 3 + [40.0] * 3
    assert baselines.batch_mean(SCORES, 3, valid).tolist() == [20.75] * 6
    assert baselines.group_std(SCORES, 3, valid)[valid].tolist() == pytest.approx([0.5**0.5] * 2 + [800**0.5] * 2)


@pytest.mark.parametrize("baseline", OTHERS)
def test_a_row_alone_in_its_group_has_no_advantage(baseline: Grouped) -> None:
    valid = torch.tensor([False, True, False, False, False, False])
    scores = torch.where(valid, SCORES, torch.nan)
    assert baseline(scores, 3, valid).tolist() == [2.0, 2.0, 2.0, 0.0, 0.0, 0.0]
    assert torch.equal(baseline(SCORES, 1), SCORES)
    assert baselines.group_std(scores, 3, valid).tolist() == [0.0] * 6
    assert baselines.group_std(SCORES, 1).tolist() == [0.0] * 6


def test_nobody_valid() -> None:
    nobody = torch.zeros(6, dtype=torch.bool)
    for baseline in (*MEANS, baselines.group_std):
        assert baseline(torch.full((6,), torch.nan), 3, nobody).tolist() == [0.0] * 6


def test_optimal_with_weights_of_zero_is_the_plain_mean_of_the_others() -> None:
    expected = baselines.leave_one_out(SCORES, 3)
    assert torch.equal(baselines.optimal(SCORES, 3, sq_norms=torch.zeros(6)), expected)
    torch.testing.assert_close(baselines.optimal(SCORES, 3, sq_norms=torch.full((6,), 0.3)), expected)
    only_first = torch.tensor([5.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert baselines.optimal(SCORES, 3, sq_norms=only_first)[1:3].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "baseline", [baselines.leave_one_out, baselines.group_mean, baselines.batch_mean, baselines.group_std]
)
def test_order_of_groups_and_of_rows(baseline: Grouped) -> None:
    scores = SCORES.double()
    swapped = baseline(scores.view(2, 3).flip(0).flatten(), 3)
    torch.testing.assert_close(swapped, baseline(scores, 3).view(2, 3).flip(0).flatten())
    within = baseline(scores.view(2, 3)[:, [2, 0, 1]].flatten(), 3)
    torch.testing.assert_close(within, baseline(scores, 3).view(2, 3)[:, [2, 0, 1]].flatten())


def test_rows_that_are_no_whole_groups() -> None:
    with pytest.raises(ValueError, match="6 rows are no multiple of group_size=4"):
        baselines.leave_one_out(SCORES, 4)


def test_dtypes_and_no_mutation() -> None:
    scores, valid = SCORES.clone(), torch.tensor([True, True, False, True, True, True])
    rows, prompts = torch.ones(6), torch.ones(2)
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.int64, torch.float32), (torch.float64,) * 2):
        typed = scores.to(dtype)
        results = [
            baselines.none(typed, 3, valid),
            baselines.constant(typed, 3, valid, value=1.0),
            baselines.moving_average(typed, 3, valid, average=1.0),
            baselines.greedy(typed, 3, valid, greedy_scores=prompts),
            baselines.optimal(typed, 3, valid, sq_norms=rows),
            baselines.optimal_length(typed, 3, valid, lengths=rows.long()),
            *(baseline(typed, 3, valid) for baseline in (*MEANS, baselines.group_std)),
        ]
        assert {result.dtype for result in results} == {expected}
        assert all(result.shape == (6,) for result in results)
        assert torch.equal(typed, SCORES.to(dtype))
    assert valid.tolist() == [True, True, False, True, True, True]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=4, max_size=4), st.floats(-100, 100))
def test_leave_one_out_is_the_centred_score_times_g_over_g_minus_1(values: list[float], shift: float) -> None:
    scores = torch.tensor(values, dtype=torch.float64)
    advantages = scores - baselines.leave_one_out(scores, 4)
    torch.testing.assert_close(advantages, 4 / 3 * (scores - baselines.group_mean(scores, 4)), atol=1e-9, rtol=1e-9)
    shifted = scores + shift
    torch.testing.assert_close(shifted - baselines.leave_one_out(shifted, 4), advantages, atol=1e-9, rtol=1e-9)
