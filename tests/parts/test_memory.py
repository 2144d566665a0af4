"""Chains that remember their last regimes, against tables written out."""

import itertools
from typing import Any

import pytest
import torch

import statespan as ss
from statespan.errors import StatespanError


def by_hand(table: torch.Tensor, memory: int) -> torch.Tensor:
    """The table over (s_{t-p}, ..., s_t), entry by entry."""
    every = list(itertools.product(range(len(table)), repeat=memory + 1))
    whole = torch.zeros(len(every), len(every), dtype=table.dtype)
    for i, a in enumerate(every):
        for j, b in enumerate(every):
            if a[1:] == b[:-1]:
                whole[i, j] = table[a[-1], b[-1]]
    return whole


@pytest.mark.parametrize("memory", [0, 1, 3])
def test_the_operator_is_the_table(memory: int):
    torch.manual_seed(0)
    chain = ss.Remembering(ss.Dense(3), memory).double()
    tables = chain.tables(None, chain.constants()).value
    whole = by_hand(chain.chain.probs, memory)
    assert torch.allclose(chain.dense(tables), whole)
    probs, values = torch.rand(2, 4, chain.states, dtype=torch.float64)
    assert torch.allclose(chain.push(probs, tables), probs @ whole)
    assert torch.allclose(chain.pull(values, tables), values @ whole.T)


@pytest.mark.parametrize("memory", [0, 2])
def test_a_table_that_varies(memory: int):
    torch.manual_seed(0)
    chain = ss.Remembering(ss.SoftmaxTransition(2, inputs=1), memory, first=1, width=1).double()
    torch.nn.init.normal_(chain.chain.weight)
    u = torch.randn(5, 3, 2, dtype=torch.float64)
    tables = chain.tables(u, chain.constants())[4]
    whole = torch.stack([by_hand(chain.chain.at(x), memory) for x in u[4, :, 1:]])
    assert torch.allclose(chain.dense(tables), whole)
    probs, values = torch.rand(2, 3, chain.states, dtype=torch.float64)
    assert torch.allclose(chain.push(probs, tables), (probs[:, None] @ whole)[:, 0])
    assert torch.allclose(chain.pull(values, tables), (whole @ values[..., None])[..., 0])
    start = ss.StationaryUnder(chain.chain, inputs=1)
    pi = start.given(u[..., 1:], start.probs()).value
    table = chain.chain.at(u[0, :, 1:])
    assert torch.allclose((pi[:, None] @ table)[:, 0], pi)
    assert torch.allclose(pi.sum(-1), torch.ones(3).double())


def test_what_is_not_looked_at_changes_nothing():
    """With an emission of the regime now alone a memory is idle: every answer, and EM, are those of the plain chain."""
    plain = ss.hmm(2, ss.Gaussian(1), ss.Stationary(), seed=0)
    y = plain.sample(length=30, seed=1)[1]

    def remembering() -> Any:
        chain = ss.Dense(2)
        start = ss.RememberingStart(ss.Stationary(chain), 2)
        model = ss.hmm(2, ss.Gaussian(1), start, ss.Remembering(chain, 2), seed=0)
        model.emission.load_state_dict(plain.emission.state_dict())
        chain.load_state_dict(plain.transition.state_dict())
        return model

    model = remembering()
    assert torch.allclose(model.log_prob(y), plain.log_prob(y))
    assert torch.allclose(model.smooth(y).probs, plain.smooth(y).probs)
    assert torch.allclose(model.smooth(y, pairs=True).pairs, plain.smooth(y, pairs=True).pairs)
    assert torch.equal(model.decode(y), plain.decode(y))
    assert torch.allclose(model.forecast(y, steps=3).mean, plain.forecast(y, steps=3).mean)
    for each in (model, plain):
        each.fit(y, by=ss.EM(iterations=4, tolerance=0))
    assert torch.allclose(model.transition.chain.probs, plain.transition.probs, atol=1e-7)
    assert torch.allclose(model.emission.mean, plain.emission.mean)


def test_a_memory_below_zero_is_refused():
    with pytest.raises(StatespanError, match="memory=-1"):
        ss.Remembering(ss.Dense(2), memory=-1)
