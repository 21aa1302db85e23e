"""Log-probabilities from hidden states: values, gradients, and that the logits of all tokens are never held."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from rlhf_pg.ops import logprobs as ops
from rlhf_pg.ops.logprobs import token_logprobs, token_statistics

F64 = torch.float64
N, H, V = 7, 4, 11


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def linear(bias: bool = True, dtype: torch.dtype = F64, shape: tuple[int, int] = (H, V)) -> nn.Linear:
    head = nn.Linear(*shape, bias=bias, dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(randn(1, shape[1], shape[0]))
        if bias:
            head.bias.copy_(randn(2, shape[1]))
    return head


HIDDEN, IDS = randn(3, N, H), torch.tensor([0, 10, 3, 3, 7, 1, 5])


def dense(hidden: Tensor, head: Callable[[Tensor], Tensor], temperature: float) -> tuple[Tensor, Tensor]:
    logp = (head(hidden) / temperature).log_softmax(1)
    return logp.gather(1, IDS[:, None]).squeeze(1), -(logp.exp() * logp).sum(1)


@pytest.fixture(params=[8_000_000, 3 * V, 1], ids=["one chunk", "chunks of 3", "chunks of 1"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(ops, "_CHUNK_ELEMENTS", request.param)
    return int(request.param)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("as_function", [False, True])
def test_values_are_log_softmax_and_entropy(temperature: float, bias: bool, as_function: bool) -> None:
    layer = linear(bias)
    head: Callable[[Tensor], Tensor] = (lambda x: layer(x)) if as_function else layer
    logprobs, entropies = token_statistics(HIDDEN, head, IDS, temperature)
    exact, exact_entropy = dense(HIDDEN, layer, temperature)
    torch.testing.assert_close(logprobs, exact, rtol=0, atol=1e-12)
    torch.testing.assert_close(entropies, exact_entropy, rtol=0, atol=1e-12)
    assert torch.equal(token_logprobs(HIDDEN, head, IDS, temperature), logprobs)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("as_function", [False, True])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients(temperature: float, as_function: bool, bias: bool) -> None:
    """Of hidden states, weight and bias, through logprobs and entropies, against the plain computation."""
    layer = linear(bias)
    head: Callable[[Tensor], Tensor] = (lambda x: layer(x)) if as_function else layer
    hidden = HIDDEN.clone().requires_grad_()
    leaves = [hidden, *layer.parameters()]
    along, across = randn(4, N), randn(5, N)
    for a, b in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):

        def objective(found: tuple[Tensor, Tensor], a: float = a, b: float = b) -> Tensor:
            return a * (found[0] * along).sum() + b * (found[1] * across).sum()

        ours = torch.autograd.grad(objective(token_statistics(hidden, head, IDS, temperature)), leaves)
        exact = torch.autograd.grad(objective(dense(hidden, layer, temperature)), leaves)
        for one, other in zip(ours, exact, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("which", [0, 1], ids=["logprobs", "entropies"])
def test_gradcheck_of_the_linear_path(which: int) -> None:
    def found(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        statistics: tuple[Tensor, Tensor] = ops._LinearStatistics.apply(hidden, weight, bias, IDS, 0.7)
        return statistics[which]

    given = (HIDDEN.clone(), randn(1, V, H), randn(2, V))
    assert torch.autograd.gradcheck(found, [x.requires_grad_() for x in given])


def test_frozen_head_gets_no_gradient() -> None:
    layer = linear().requires_grad_(False)
    hidden = HIDDEN.clone().requires_grad_()
    token_logprobs(hidden, layer, IDS).sum().backward()
    assert layer.weight.grad is None
    assert hidden.grad is not None
    assert hidden.grad.any()


def test_the_temperature_is_part_of_the_logprob() -> None:
    """The logits (2, 0) at T .7: without it the rare token's logprob is -2.127 and not -2.913, off by .79 nats."""
    head = nn.Linear(1, 2, bias=False, dtype=F64)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[2.0], [0.0]]))
    state, rare = torch.ones(1, 1, dtype=F64), torch.tensor([1])
    for temperature in (1.0, 0.7):
        found = token_logprobs(state, head, rare, temperature).item()
        assert found == pytest.approx(-math.log1p(math.exp(2 / temperature)), abs=1e-12)


def test_entropy_of_known_distributions() -> None:
    """Even: log V. Certain: 0. Never negative."""
    head = linear(bias=False, shape=(1, V))
    entropies = token_statistics(torch.tensor([[0.0], [1.0], [3000.0]], dtype=F64), head, torch.zeros(3).long())[
        1
    ].detach()
    assert float(entropies[0]) == pytest.approx(math.log(V), abs=1e-6)
    assert 0 < float(entropies[1]) < float(entropies[0])
    assert 0 <= float(entropies[2]) < 1e-12


def test_excluded_tokens_through_a_function_head() -> None:
    """A logit of -inf has probability 0: it adds nothing to the entropy, and no NaN to the gradient."""
    layer = linear()
    outside = torch.zeros(V, dtype=torch.bool)
    outside[[2, 9]] = True
    hidden = HIDDEN.clone().requires_grad_()
    logprobs, entropies = token_statistics(hidden, lambda x: layer(x).masked_fill(outside, -torch.inf), IDS)
    logp = layer(HIDDEN)[:, ~outside].log_softmax(1)
    torch.testing.assert_close(entropies, -(logp.exp() * logp).sum(1), rtol=0, atol=1e-12)
    (logprobs.sum() + entropies.sum()).backward()
    assert torch.isfinite(hidden.grad).all()


@pytest.mark.parametrize("as_function", [False, True])
def test_bfloat16_is_upcast_before_the_sum(as_function: bool) -> None:
    """The logits are bf16, and nothing after them is: log_softmax in bf16 is off by hundredths."""
    layer = linear(False, torch.bfloat16, (16, 500))
    hidden = randn(6, 64, 16).bfloat16()
    ids = torch.arange(64)
    head: Callable[[Tensor], Tensor] = (lambda x: layer(x)) if as_function else layer
    found, entropies = token_statistics(hidden, head, ids)
    logits = (hidden @ layer.weight.t()).detach()
    exact = logits.double().log_softmax(1).gather(1, ids[:, None]).squeeze(1)
    narrow = logits.log_softmax(1).gather(1, ids[:, None]).squeeze(1)
    assert found.dtype == entropies.dtype == torch.float32
    assert (found.double() - exact).abs().max() < 1e-5
    assert (narrow.double() - exact).abs().max() > 0.01


def test_bfloat16_gradients_have_the_weights_type() -> None:
    layer = linear(dtype=torch.bfloat16)
    hidden = HIDDEN.bfloat16().requires_grad_()
    token_logprobs(hidden, layer, IDS).sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16
    assert {p.grad.dtype for p in layer.parameters() if p.grad is not None} == {torch.bfloat16}
    exact_hidden, wide = HIDDEN.bfloat16().double().requires_grad_(), linear()
    wide.load_state_dict({name: x.double() for name, x in layer.state_dict().items()})
    dense(exact_hidden, wide, 1.0)[0].sum().backward()
    torch.testing.assert_close(hidden.grad.double(), exact_hidden.grad, rtol=0.05, atol=0.05)


def test_under_autocast_the_products_are_narrow_and_the_sums_wide() -> None:
    layer = linear(dtype=torch.float32, shape=(16, 500))
    hidden, ids = randn(6, 64, 16).float(), torch.arange(64)
    with torch.autocast("cpu", torch.bfloat16):
        found = token_logprobs(hidden, layer, ids)
    assert found.dtype == torch.float32
    exact = dense_of(hidden.double(), layer.double(), ids)
    assert 0 < (found.double() - exact).abs().max() < 0.2


def dense_of(hidden: Tensor, layer: nn.Linear, ids: Tensor) -> Tensor:
    return layer(hidden).log_softmax(1).gather(1, ids[:, None]).squeeze(1)


def test_all_logits_are_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor made on the way, forward or backward, has more elements than a chunk."""
    rows, width, size = 200, 50, 20 * 50
    monkeypatch.setattr(ops, "_CHUNK_ELEMENTS", size)
    layer = linear(shape=(4, width))
    hidden = randn(7, rows, 4).requires_grad_()
    biggest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal biggest
            made = func(*args, **(kwargs or {}))
            for x in made if isinstance(made, tuple | list) else [made]:
                if isinstance(x, Tensor):
                    biggest = max(biggest, x.numel())
            return made

    with Watch():
        logprobs, entropies = token_statistics(hidden, layer, torch.arange(rows) % width)
        (logprobs.sum() + 0.1 * entropies.sum()).backward()
    assert size == biggest < rows * width


def test_a_function_head_sees_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_CHUNK_ELEMENTS", 2 * 32_000)
    seen: list[int] = []
    layer = linear()

    def head(states: Tensor) -> Tensor:
        seen.append(len(states))
        return layer(states)

    token_logprobs(HIDDEN.clone().requires_grad_(), head, IDS).sum().backward()
    assert sorted(seen) == sorted([2, 2, 2, 1] * 2)  # once forward, once backward


def test_arguments_are_left_as_they_are() -> None:
    layer, hidden = linear(), HIDDEN.clone().requires_grad_()
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    token_logprobs(hidden, layer, IDS, 0.7).sum().backward()
    assert torch.equal(hidden, HIDDEN)
    assert torch.equal(layer.weight, weight)
    assert torch.equal(layer.bias, bias)
