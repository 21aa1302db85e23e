"""Packing rows for a model, and running models over rollouts: nothing depends on how the rows were cut."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import Tensor, nn

from rlhf_pg.forward import Forward, MicroBatch, minibatch_rows, pack, plan, total_lengths
from rlhf_pg.models import Reference, ValueModel
from rlhf_pg.types import Rollout

CPU = torch.device("cpu")
PROMPTS = tiny.random_ids(1, 3, 9, 5)
RESPONSES = tiny.random_ids(2, 7, 1, 4, 6, 2, 9)  # two for each prompt
ROLLOUT = tiny.rollout(PROMPTS, RESPONSES)
ALL = [range(6)]


def forward(tokens: int = 10_000, temperature: float = 0.7) -> Forward:
    return Forward(CPU, tokens, temperature)


def value_model() -> ValueModel:
    model = ValueModel(tiny.backbone(tiny.policy("llama", seed=4)))
    nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    return model


# Cutting.


def test_plan_by_hand() -> None:
    """Rows of 5, 2, 9, 4 and 2 tokens, at most 10 padded: [9], then [5, 4] = 2 x 5, then [2, 2] = 2 x 2."""
    lengths = [5, 2, 9, 4, 2]
    assert plan(lengths, range(5), 10) == [[2], [0, 3], [1, 4]]
    assert plan(lengths, range(5), 45) == [[2, 0, 3, 1, 4]]
    assert plan(lengths, [4, 1], 10) == [[1, 4]]
    assert plan(lengths, [], 10) == []


@pytest.mark.parametrize("most", [1, 7, 30, 64, 1000])
def test_plan_keeps_its_limit_and_every_row(most: int) -> None:
    lengths = torch.randint(1, 40, (50,), generator=torch.Generator().manual_seed(1)).tolist()
    parts = plan(lengths, range(50), most)
    assert sorted(row for part in parts for row in part) == list(range(50))
    assert all(part for part in parts)
    for part in parts:
        assert len(part) == 1 or len(part) * max(lengths[row] for row in part) <= most


def test_plan_does_not_depend_on_the_order_of_rows() -> None:
    lengths = [5, 2, 9, 4, 2, 5]
    assert plan(lengths, [5, 3, 0, 1, 4, 2], 10) == plan(lengths, range(6), 10)


def test_total_lengths() -> None:
    assert total_lengths(ROLLOUT) == [3 + 7, 3 + 1, 9 + 4, 9 + 6, 5 + 2, 5 + 9]


@pytest.mark.parametrize(("rows", "count"), [(12, 1), (12, 3), (12, 12), (64, 4)])
def test_minibatches_are_a_partition(rows: int, count: int) -> None:
    parts = minibatch_rows(rows, count, seed=3, step=5, epoch=1)
    assert len(parts) == count
    assert {len(part) for part in parts} == {rows // count}
    assert sorted(row for part in parts for row in part) == list(range(rows))


def test_minibatches_belong_to_seed_step_and_epoch() -> None:
    def draw(seed: int = 3, step: int = 5, epoch: int = 1) -> list[list[int]]:
        return minibatch_rows(64, 4, seed, step, epoch)

    torch.manual_seed(0)
    first = draw()
    torch.manual_seed(1)
    assert draw() == first
    assert all(other != first for other in (draw(seed=4), draw(step=6), draw(epoch=0)))


# Packing.


def test_pack_by_hand() -> None:
    """Prompts [7, 8] and [9] answered by [5, 6, EOS] and [4]; as a model reads them:

    7 8 5 6 1    the response is predicted at 1, 2, 3 of 5 columns
    9 4 . . .    at 0: flat 5 + 0
    """
    rollout = tiny.rollout([[7, 8], [9]], [[5, 6, tiny.EOS], [4]])
    batch = pack(rollout, [0, 1], CPU)
    assert batch.rows.tolist() == [0, 1]
    assert batch.input_ids.tolist() == [[7, 8, 5, 6, 1], [9, 4, 0, 0, 0]]
    assert batch.positions.tolist() == [1, 2, 3, 5]
    assert batch.targets.tolist() == [5, 6, 1, 4]
    assert batch.ends.tolist() == [4, 6]
    assert batch.cells.tolist() == [0, 1, 2, 3]
    assert batch.mask.tolist() == [[True, True, True], [True, False, False]]
    assert batch.table(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [[1, 2, 3], [4, 0, 0]]


def test_pack_of_rows_in_another_order() -> None:
    rollout = tiny.rollout([[7, 8], [9]], [[5, 6, tiny.EOS], [4], [3, 3], [10]])
    batch = pack(rollout, [2, 1], CPU)
    assert batch.input_ids.tolist() == [[9, 3, 3], [7, 8, 4]]
    assert batch.positions.tolist() == [0, 1, 4]
    assert batch.targets.tolist() == [3, 3, 4]
    assert batch.cells.tolist() == [0, 1, 3]


def test_pack_ignores_what_padding_holds() -> None:
    other = tiny.rollout(PROMPTS, RESPONSES, extra=(4, 3), padding=42)
    ours, theirs = pack(ROLLOUT, range(6), CPU), pack(other, range(6), CPU)
    for name in ("input_ids", "positions", "targets", "ends"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def test_the_table_is_differentiable() -> None:
    batch = pack(ROLLOUT, range(6), CPU)
    flat = torch.ones(29, dtype=torch.float64, requires_grad=True)
    (batch.table(flat) * torch.arange(54, dtype=torch.float64).view(6, 9)).sum().backward()
    assert flat.grad is not None
    assert flat.grad.tolist() == torch.arange(54)[ROLLOUT.response_mask.flatten()].tolist()


# Running.


def tables(rollout: Rollout, tokens: int, family: str = "llama") -> list[Tensor]:
    policy, reference = tiny.policy(family), Reference(tiny.policy(family, seed=1))
    run = forward(tokens)
    logprobs, entropies, kl = run.policy(policy, rollout, [range(len(rollout))], reference)
    assert kl is not None
    ref = run.reference(reference, rollout, [range(len(rollout))])
    return [logprobs, entropies, kl, ref, run.values(value_model(), rollout, [range(len(rollout))])]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_logprobs_are_those_of_each_row_alone(family: str) -> None:
    logprobs, entropies, kl = forward().policy(tiny.policy(family), ROLLOUT, ALL)
    assert kl is None
    assert logprobs.shape == entropies.shape == ROLLOUT.response_mask.shape
    policy = tiny.policy(family)
    for row, response in enumerate(RESPONSES):
        with torch.no_grad():
            exact = tiny.response_logprobs(policy, PROMPTS[row // 2], response, 0.7)
        torch.testing.assert_close(logprobs[row, : len(response)], exact, rtol=0, atol=1e-10)
        assert not logprobs[row, len(response) :].any()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_results_do_not_depend_on_micro_batches(family: str) -> None:
    whole = tables(ROLLOUT, 10_000, family)
    for tokens in (1, 40):
        for ours, theirs in zip(tables(ROLLOUT, tokens, family), whole, strict=True):
            assert theirs.any()
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_results_do_not_depend_on_padding() -> None:
    other = tiny.rollout(PROMPTS, RESPONSES, extra=(5, 2), padding=42)
    for ours, theirs in zip(tables(other, 40), tables(ROLLOUT, 40), strict=True):
        assert not ours[:, 9:].any()
        assert torch.equal(ours[:, :9], theirs)


def test_results_follow_the_order_of_rows() -> None:
    order = [2, 0, 1]
    rows = [2 * p + g for p in order for g in (1, 0)]
    other = tiny.rollout([PROMPTS[p] for p in order], [RESPONSES[row] for row in rows])
    for ours, theirs in zip(tables(other, 40), tables(ROLLOUT, 40), strict=True):
        torch.testing.assert_close(ours, theirs[rows], rtol=0, atol=1e-10)


def test_parts_cover_the_rows_named_in_ascending_order() -> None:
    policy = tiny.policy("llama")
    whole = forward(40).policy(policy, ROLLOUT, ALL)[0]
    parts = forward(40).policy(policy, ROLLOUT, [[5, 0], [3]])[0]
    torch.testing.assert_close(parts, whole[[0, 3, 5]], rtol=0, atol=1e-10)


def test_parts_are_not_mixed() -> None:
    """A later pass over the same parts must see the same shapes, so that the first ratio is exactly 1."""
    found = [batch.rows.tolist() for batch in forward(10_000).micro_batches(ROLLOUT, [[0, 3], [1, 5], [2, 4]])]
    assert [sorted(rows) for rows in found] == [[0, 3], [1, 5], [2, 4]]


def test_values_are_read_before_the_token_is_taken() -> None:
    """values[:, t] stands at position S - 1 + t: it may know the tokens before t, and not t."""
    model = value_model()
    values = forward(40).values(model, ROLLOUT, ALL)
    for row, response in enumerate(RESPONSES):
        prompt = PROMPTS[row // 2]
        ids = torch.tensor([[*prompt, *response]])
        with torch.no_grad():
            each = model.head(model.backbone(input_ids=ids).last_hidden_state)[0, :, 0]
        start = len(prompt) - 1
        expected = each[start : start + len(response)]
        torch.testing.assert_close(values[row, : len(response)], expected, rtol=0, atol=1e-10)
    changed = [list(response) for response in RESPONSES]
    changed[0][3] = 60 if changed[0][3] != 60 else 59
    others = forward(40).values(model, tiny.rollout(PROMPTS, changed), ALL)
    different = (others - values).abs() > 1e-9
    assert different[0].tolist() == [False] * 4 + [True] * 3 + [False] * 2
    assert not different[1:].any()


def test_no_gradient_is_kept() -> None:
    policy = tiny.policy("llama")
    for table in forward().policy(policy, ROLLOUT, ALL, Reference(tiny.policy("llama", seed=1))):
        assert table is not None
        assert not table.requires_grad


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_gradient_norms_of_each_response(family: str) -> None:
    policy = tiny.policy(family)
    found = forward().grad_sq_norms(policy, ROLLOUT, [4, 1, 2])
    weights = list(policy.parameters())
    expected = []
    for row in (4, 1, 2):
        total = tiny.response_logprobs(policy, PROMPTS[row // 2], RESPONSES[row], 0.7).sum()
        grads = torch.autograd.grad(total, weights, allow_unused=True)
        expected.append(sum(float((g * g).sum()) for g in grads if g is not None))
    assert min(expected) > 0
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)
    assert all(p.grad is None for p in weights)


def test_gradient_norms_of_trained_weights_alone() -> None:
    policy = tiny.policy("gpt2")
    whole = forward().grad_sq_norms(policy, ROLLOUT, [0])
    tiny.backbone(policy).get_submodule("h").requires_grad_(False)
    assert 0 < float(forward().grad_sq_norms(policy, ROLLOUT, [0])) < float(whole)


def test_autocast_reaches_every_pass() -> None:
    policy = tiny.policy("llama", torch.float32)
    narrow = Forward(CPU, 10_000, 1.0, lambda: torch.autocast("cpu", torch.bfloat16))
    wide = Forward(CPU, 10_000, 1.0)
    difference = narrow.policy(policy, ROLLOUT, ALL)[0] - wide.policy(policy, ROLLOUT, ALL)[0]
    assert 1e-4 < float(difference.abs().max()) < 1.0


def test_a_micro_batch_names_its_rows() -> None:
    batches: list[MicroBatch] = list(forward(16).micro_batches(ROLLOUT, ALL))
    assert len(batches) > 1
    for batch in batches:
        assert torch.equal(batch.mask, ROLLOUT.response_mask[batch.rows])
        assert batch.input_ids.numel() <= 16 or len(batch.rows) == 1
