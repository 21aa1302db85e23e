"""A world small enough to sum over: 3 tokens, token 0 ends a response, at most 3 steps, so 15 responses in 7 states.

The policy is a table of logits, one row per state (the tokens so far), in float64. Every expectation is a sum over all
responses, or over all G-tuples of them, weighted by their probability; the truth is autograd through those
probabilities, which knows nothing of score functions. What padding holds is NaN throughout.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

EOS, VOCABULARY, STEPS = 0, 3, 3
STATES = [prefix for length in range(STEPS) for prefix in product((1, 2), repeat=length)]  # () (1) (2) (1,1) ...


def _responses() -> list[tuple[int, ...]]:
    ended = [(*prefix, EOS) for prefix in STATES]
    return ended + list(product((1, 2), repeat=STEPS))


RESPONSES = _responses()
N = len(RESPONSES)


MASK = torch.tensor([[t < len(y) for t in range(STEPS)] for y in RESPONSES])
IDS = torch.tensor([[y[t] if t < len(y) else 0 for t in range(STEPS)] for y in RESPONSES])
STATE = torch.tensor([[STATES.index(y[:t]) if t < len(y) else 0 for t in range(STEPS)] for y in RESPONSES])
LENGTHS = MASK.sum(1)
TRUNCATED = torch.tensor([y[-1] != EOS for y in RESPONSES])
LAST = MASK & ~torch.nn.functional.pad(MASK[:, 1:], (0, 1))


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LOGITS = _random(1, len(STATES), VOCABULARY)
REF_LOGITS = _random(2, len(STATES), VOCABULARY)
OLD_LOGITS = LOGITS + 0.5 * _random(3, len(STATES), VOCABULARY)
SCORES = _random(4, N) + 0.7  # an offset, so that a missing baseline or a wrong factor shows
TOKEN_REWARDS = _random(5, len(STATES), VOCABULARY)  # by state and action
VALUES = _random(6, len(STATES))


def pad_nan(x: Tensor) -> Tensor:
    """NaN where a response has ended."""
    return torch.where(MASK, x, torch.nan)


def policy() -> Tensor:
    """The policy's table, a fresh leaf."""
    return LOGITS.clone().requires_grad_()


def token_logprobs(table: Tensor) -> Tensor:
    """(15, 3), NaN in padding."""
    return pad_nan(torch.log_softmax(table, dim=1)[STATE, IDS])


def probabilities(table: Tensor) -> Tensor:
    """(15,), of the responses."""
    return torch.where(MASK, token_logprobs(table), 0.0).sum(1).exp()


def at_last(scores: Tensor) -> Tensor:
    """(15, 3): each response's score on its last token, NaN in padding."""
    return pad_nan(torch.where(LAST, scores[:, None], 0.0))


def at_states(values: Tensor) -> Tensor:
    """(15, 3): a number per state at each visited state, NaN in padding."""
    return pad_nan(values[STATE])


def total(token_table: Tensor) -> Tensor:
    """(15,): the sum of a (15, 3) table over each response."""
    return torch.where(MASK, token_table, 0.0).sum(1)


def truth(scores: Tensor, beta: float = 0.0) -> Tensor:
    """The gradient of E[scores] − beta · KL(π‖π_ref), by autograd through the probabilities."""
    table = policy()
    p = probabilities(table)
    ref = probabilities(REF_LOGITS)
    objective = (p * scores).sum() - beta * (p * (p.log() - ref.log())).sum()
    return gradient(objective, table)


def gradient(objective: Tensor, table: Tensor) -> Tensor:
    (grad,) = torch.autograd.grad(objective, table)
    assert torch.isfinite(grad).all(), "padding reached the gradient"
    return grad


def tuples(group_size: int) -> Tensor:
    """(15^G, G): every group of responses, as indices."""
    return torch.tensor(list(product(range(N), repeat=group_size)))


def visit_probabilities() -> Tensor:
    """(7,): how often a response passes each state."""
    p = probabilities(LOGITS)
    return torch.stack([p[(MASK & torch.eq(STATE, state)).any(1)].sum() for state in range(len(STATES))])


def squared_gradient_norms() -> Tensor:
    """(15,): ‖∇ log π(y)‖² of each response."""
    table = policy()
    whole = total(token_logprobs(table))
    return torch.stack([torch.autograd.grad(x, table, retain_graph=True)[0].square().sum() for x in whole])


def relative_error(estimate: Tensor, exact: Tensor) -> float:
    return float((estimate - exact).norm() / exact.norm())


def assert_same(estimate: Tensor, exact: Tensor) -> None:
    error = relative_error(estimate, exact)
    assert error < 1e-10, f"off by {error:.3g} of the exact gradient"


def assert_differs(estimate: Tensor, exact: Tensor, at_least: float = 0.02) -> None:
    error = relative_error(estimate, exact)
    assert error > at_least, f"expected a bias, and it is {error:.3g} of the exact gradient"
