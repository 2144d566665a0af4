"""Counts by symbol against the E-step that goes step by step."""

import pytest
import torch

import statespan as ss
from statespan.method import Expected
from statespan.methods import Forward
from statespan.methods.by_symbol import by_symbol
from statespan.sequences import Sequences, read
from statespan.tree import leaves

GENERATOR = torch.Generator().manual_seed(0)


def step_by_step(model: ss.StateSpace, data: Sequences) -> Expected:
    """Labels that say nothing: what a step says is then no longer its symbol's alone."""
    unlabelled = torch.full(data.shape, -1)
    return expect(model, data._replace(states=unlabelled))


def expect(model: ss.StateSpace, data: Sequences) -> Expected:
    method = Forward()
    with torch.no_grad():
        return method.expect(model, method.constants(model), data)


def same(a: Expected, b: Expected, within: torch.Tensor) -> None:
    torch.testing.assert_close(torch.where(within, a.log_prob, 0.0), torch.where(within, b.log_prob, 0.0))
    for x, y in zip(leaves(a.statistics), leaves(b.statistics), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("kind", ["plain", "two states", "float32"])
def test_the_same_statistics(kind: str) -> None:
    """Gaps, weights, lengths."""
    lengths = [9, 4, 1, 12, 7, 3, 3, 8, 5, 2]
    states = 2 if kind == "two states" else 3
    model = ss.hmm(states=states, emission=ss.Categorical(5), seed=1)
    y = [torch.randint(-1, 5, (n,), generator=GENERATOR) for n in lengths]
    data, _ = read(y, model.emission.event, weights=[float(i % 3) for i in range(len(y))])
    if kind == "float32":
        model = model.to(torch.float32)
        data = data._replace(weights=torch.as_tensor(data.weights, dtype=torch.float32))
    assert by_symbol(model, Forward(), data) is not None
    same(expect(model, data), step_by_step(model, data), data.within)


def test_a_sequence_that_scaled_probabilities_lose() -> None:
    """The likeliest state of a symbol cannot be reached, and the other is less likely by more than 1e-308."""
    model = ss.hmm(initial=[0.0, 1.0], transition=[[1.0, 0.0], [0.0, 1.0]], emission=ss.Categorical(3, 2), seed=0)
    with torch.no_grad():
        model.emission.table.weight.copy_(torch.tensor([[0.0, 1000.0], [0.0, 0.0], [1.0, 0.0]]))
    y = [[0, 1, 0], [1, 1, 2, 2], [2, 0, 1, 1], [0, 0]]
    data, _ = read(y, model.emission.event, weights=[1.0, 2.0, 3.0, 0.5])
    found, expected = expect(model, data), step_by_step(model, data)
    same(found, expected, data.within)
    assert found.log_prob.isfinite().all()


def test_few_symbols_seen_are_not_worth_a_table() -> None:
    model = ss.hmm(states=2, emission=ss.Categorical(50), seed=0)
    data, _ = read([[1, 2, 3]], model.emission.event)
    assert by_symbol(model, Forward(), data) is None
