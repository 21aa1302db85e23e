"""Sampling by inverse CDF: the right distribution, every token reachable, and numbers that belong to their place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlhf_pg.ops.sampling import generator, inverse_cdf, keep_nucleus, row_uniforms

F64 = torch.float64
ALMOST_ONE = 1 - 2.0**-53


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def sample_many(logits: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
    """One row of logits, a number each."""
    return inverse_cdf(logits.expand(len(uniforms), -1), uniforms, temperature)[0]


@pytest.mark.parametrize("size", [1, 2, 5, 255, 256, 257, 700])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_each_token_gets_its_probability(size: int, temperature: float) -> None:
    logits = 2 * randn(size, size)
    p = (logits / temperature).softmax(0)
    n = 20_000
    grid = (torch.arange(n, dtype=F64) + 0.5) / n
    share = torch.bincount(sample_many(logits, grid, temperature), minlength=size) / n
    # A token owns one interval: the grid counts it to within one point.
    assert (share - p).abs().max() <= 1 / n + 1e-12


def test_edges_of_the_intervals() -> None:
    logits = torch.tensor([0.5, 0.25, 0.25], dtype=F64).log()
    # [0, .5) is token 0, [.5, .75) token 1, [.75, 1) token 2.
    numbers = torch.tensor([0.0, 0.5 - 1e-9, 0.5 + 1e-9, 0.75 - 1e-9, 0.75 + 1e-9, ALMOST_ONE], dtype=F64)
    assert sample_many(logits, numbers).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
@pytest.mark.parametrize("size", [3, 256, 600])
def test_excluded_tokens_are_never_taken(dtype: torch.dtype, size: int) -> None:
    """Not even at the ends, where u is 0 or the largest number below 1."""
    logits = randn(1, size).to(dtype)
    allowed = torch.zeros(size, dtype=torch.bool)
    allowed[[1, size // 2]] = True
    logits[~allowed] = -torch.inf
    numbers = torch.cat([torch.tensor([0.0, 2.0**-60, ALMOST_ONE], dtype=F64), torch.linspace(0, 0.999999, 999)])
    ids, logprobs = inverse_cdf(logits.expand(len(numbers), -1), numbers)
    assert set(ids.tolist()) == {1, size // 2}
    assert torch.isfinite(logprobs).all()


def test_a_block_without_weight_is_skipped() -> None:
    logits = torch.full((1024,), -torch.inf)
    logits[[300, 1000]] = 0.0
    numbers = torch.tensor([0.0, 0.25, 0.5, 0.75, ALMOST_ONE], dtype=F64)
    assert sample_many(logits, numbers).tolist() == [300, 300, 1000, 1000, 1000]


def test_tokens_that_a_float32_cumsum_loses_are_reached() -> None:
    """152,000 tokens: the middle of each token's interval takes that token, the last ones and the lost ones included."""
    size = 152_000
    logits = 3 * torch.randn(size, generator=torch.Generator().manual_seed(3))
    weights = (logits - logits.max()).exp().double()
    middles = (weights.cumsum(0) - weights / 2) / weights.sum()

    plain = logits.softmax(0).cumsum(0)
    lost = (plain[1:] == plain[:-1]).nonzero().squeeze(1) + 1  # an interval of length zero
    assert len(lost) > 5000, "the trap is not in this example"
    tokens = torch.cat([lost[:: len(lost) // 100], torch.arange(0, size, size // 50), torch.arange(size - 30, size)])
    assert torch.equal(sample_many(logits, middles[tokens]), tokens)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16, torch.float16])
def test_logprobs_are_log_softmax(dtype: torch.dtype, temperature: float) -> None:
    logits = (3 * randn(4, 50, 777)).to(dtype)
    ids, logprobs = inverse_cdf(logits, row_uniforms(0, rows=range(50), columns=1)[:, 0], temperature)
    wide = F64 if dtype == F64 else torch.float32
    exact = (logits.double() / temperature).log_softmax(1).gather(1, ids[:, None]).squeeze(1)
    assert logprobs.dtype == wide
    torch.testing.assert_close(logprobs.double(), exact, rtol=0, atol=1e-12 if dtype == F64 else 1e-5)


def test_arguments_are_left_as_they_are() -> None:
    for dtype in (torch.float32, F64):
        logits, numbers = randn(5, 4, 300).to(dtype), torch.tensor([0.1, 0.9, torch.nan, 0.5], dtype=F64)
        before, numbers_before = logits.clone(), numbers.clone()
        inverse_cdf(logits, numbers)
        assert torch.equal(logits, before)
        assert torch.equal(numbers.isnan(), numbers_before.isnan())
        assert torch.equal(numbers.nan_to_num(), numbers_before.nan_to_num())


def test_nan_takes_the_most_likely() -> None:
    logits = randn(6, 8, 600)
    numbers = torch.full((8,), torch.nan, dtype=F64)
    ids, logprobs = inverse_cdf(logits, numbers, 0.7)
    assert torch.equal(ids, logits.argmax(1))
    torch.testing.assert_close(logprobs, (logits / 0.7).log_softmax(1).amax(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_row_does_not_know_the_others(dtype: torch.dtype) -> None:
    logits = (3 * randn(7, 33, 1000)).to(dtype)
    numbers = row_uniforms(1, rows=range(33), columns=1)[:, 0]
    ids, logprobs = inverse_cdf(logits, numbers, 0.9)
    alone = [inverse_cdf(logits[i : i + 1], numbers[i : i + 1], 0.9) for i in range(33)]
    assert torch.equal(ids, torch.cat([one[0] for one in alone]))
    assert torch.equal(logprobs, torch.cat([one[1] for one in alone]))
    order = torch.randperm(33, generator=torch.Generator().manual_seed(0))
    shuffled = inverse_cdf(logits[order], numbers[order], 0.9)
    assert torch.equal(shuffled[0], ids[order])
    assert torch.equal(shuffled[1], logprobs[order])


def test_a_shift_of_the_logits_changes_nothing() -> None:
    logits = randn(8, 20, 400)
    numbers = row_uniforms(2, rows=range(20), columns=1)[:, 0]
    assert torch.equal(inverse_cdf(logits, numbers)[0], inverse_cdf(logits + 1e4, numbers)[0])
    assert torch.isfinite(inverse_cdf(logits - 1e4, numbers)[1]).all()


def test_uniforms_ignore_the_global_generator() -> None:
    def draw() -> Tensor:
        return row_uniforms(5, "sample", 3, rows=range(4), columns=6)

    torch.manual_seed(0)
    first = draw()
    torch.manual_seed(1)
    torch.rand(100)
    state = torch.get_rng_state()
    assert torch.equal(first, draw())
    assert torch.equal(state, torch.get_rng_state())
    assert first.dtype == F64
    assert bool(((first >= 0) & (first < 1)).all())


def test_a_rows_uniforms_belong_to_the_row() -> None:
    """Not to how many rows are drawn, where the range starts, or how many columns are asked for."""
    whole = row_uniforms(5, "sample", 3, rows=range(8), columns=12)
    assert torch.equal(row_uniforms(5, "sample", 3, rows=range(2, 5), columns=12), whole[2:5])
    assert torch.equal(row_uniforms(5, "sample", 3, rows=range(8), columns=5), whole[:, :5])
    assert row_uniforms(5, "sample", 3, rows=range(0), columns=5).shape == (0, 5)


def test_uniforms_differ_by_row_step_seed_and_purpose() -> None:
    tables = [
        row_uniforms(seed, purpose, step, rows=range(5), columns=3)
        for seed in (0, 1)
        for purpose in ("sample", "evaluate")
        for step in (0, 1, 2)
    ]
    rows = torch.cat(tables)
    assert len(rows.unique(dim=0)) == len(rows) == 60


def test_generators_of_different_purposes_do_not_run_together() -> None:
    """("a", 12) is not ("a", 1, 2), and 1 is not "1"."""
    keys: list[tuple[str | int, ...]] = [("a", 12), ("a", 1, 2), ("a1", 2), ("a", "12"), ("a",), ()]
    firsts = {float(torch.rand(1, generator=generator(0, *key), dtype=F64)) for key in keys}
    assert len(firsts) == len(keys)
    assert generator(0, "a").initial_seed() == generator(0, "a").initial_seed()


def test_uniforms_are_uniform() -> None:
    table = row_uniforms(9, "sample", rows=range(400), columns=50).flatten()
    # 20,000 numbers: the deviation of the mean is .00204, and of each tenth's share .00212.
    assert abs(float(table.mean()) - 0.5) < 0.008
    assert (torch.histc(table, 10, 0, 1) / len(table) - 0.1).abs().max() < 0.0085


def test_nucleus_keeps_the_fewest_tokens_that_reach_top_p() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]], dtype=F64).log()

    def kept(top_p: float) -> list[int]:
        return torch.isfinite(keep_nucleus(logits, top_p))[0].nonzero().flatten().tolist()

    assert kept(0.39) == [1]
    assert kept(0.41) == kept(0.69) == [1, 3]
    assert kept(0.71) == [1, 2, 3]
    assert kept(0.95) == kept(1.0) == [0, 1, 2, 3]
    assert kept(1e-9) == [1]
    left = keep_nucleus(logits, 0.6)
    assert torch.equal(left[0, [1, 3]], logits[0, [1, 3]])


def test_nucleus_is_of_the_distribution_at_the_temperature() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]], dtype=F64)
    # p of the top token: .665 at T 1, .867 at T 1/2, .506 at T 2.
    for temperature, count in ((1.0, 2), (0.5, 1), (2.0, 2)):
        assert int(torch.isfinite(keep_nucleus(logits, 0.8, temperature)).sum()) == count
    assert int(torch.isfinite(keep_nucleus(logits, 0.9, 2.0)).sum()) == 3


def test_equal_tokens_do_not_all_fall_out_of_the_nucleus() -> None:
    assert int(torch.isfinite(keep_nucleus(torch.zeros(1, 10), 0.45)).sum()) == 5
