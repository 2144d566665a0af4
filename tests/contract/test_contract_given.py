"""The contract where every step is given inputs, and where several states of the chain stand for one of the user's.

Their oracles by enumeration are in tests/parts; here each way to ask agrees with the others, and with a loop by hand.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import SYMBOLS, WIDTH, moving, scatter
from torch.testing import assert_close

import statespan as ss
from statespan.method import prepare, run, smooth_backward
from statespan.tree import unstack

INPUTS = 2
BITS = {"rtol": 1e-11, "atol": 1e-11}


def driven(emission: Any, initial: Any = None, transition: Any = None) -> Any:
    return ss.StateSpace(initial or ss.Start(WIDTH), transition or ss.Dense(WIDTH), emission)


FACTORIES: dict[str, Callable[[], Any]] = {
    "inputs/start-and-moves": lambda: driven(
        ss.Categorical(SYMBOLS, WIDTH), ss.SoftmaxStart(WIDTH, INPUTS), ss.SoftmaxTransition(WIDTH, INPUTS)
    ),
    "inputs/regression": lambda: driven(ss.LinearRegression(2, INPUTS, WIDTH)),
    "inputs/autoregression": lambda: driven(ss.LinearRegression(2, INPUTS, WIDTH, lags=1)),
    "inputs/poisson-regression": lambda: driven(ss.PoissonRegression(1, INPUTS, WIDTH)),
    "inputs/product": lambda: driven(ss.Product(ss.PoissonRegression(1, INPUTS, WIDTH), ss.Gaussian(1, states=WIDTH))),
    "inputs/linear-gaussian": lambda: ss.linear_gaussian(2, 3, inputs=INPUTS),
    "owners/semi-markov": lambda: ss.semi_markov(WIDTH, 3, ss.Categorical(SYMBOLS)),
    "owners/higher-order": moving(lambda: ss.HigherOrder(order=2)),
    "owners/remembering": lambda: ss.hmm(2, ss.Categorical(SYMBOLS), ss.RememberingStart(ss.Start(2), 1), remember()),
    "owners/semi-markov-regression": lambda: ss.semi_markov(WIDTH, 3, ss.LinearRegression(1, INPUTS)),
}


def remember() -> Any:
    return ss.Remembering(ss.Dense(2), memory=1)


class Given:
    """A model, three sequences of six steps that it may have made, and the inputs of each step and of the next ones."""

    def __init__(self, name: str):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.model = scatter(FACTORIES[name]()).double()
            self.takes = any(getattr(part, "takes_inputs", False) for part in self.model.modules())
            self.u = torch.randn(3, 6, INPUTS, dtype=torch.float64) if self.takes else None
            self.y = self.model.sample(3, 6, seed=1, inputs=None if self.u is None else self.u.transpose(0, 1))[1]

    def inputs(self, rows: Any, steps: Any) -> dict[str, Any]:
        """The option `inputs=` for some of the sequences and steps."""
        return {} if self.u is None else {"inputs": self.u[rows, steps]}


@pytest.fixture(scope="module")
def given(request: pytest.FixtureRequest) -> Given:
    return Given(request.param)


def over(names: list[str]):
    return pytest.mark.parametrize("given", names, indirect=True, ids=names, scope="module")


ALL = list(FACTORIES)
CHAINS = [name for name in ALL if "gaussian" not in name and "auto" not in name]
EVERY = slice(None)


@over(CHAINS)
def test_log_prob_is_the_recursion_by_hand(given: Given):
    model, transition, emission = given.model, given.model.transition, given.model.emission
    found = model.log_prob(given.y, **given.inputs(EVERY, EVERY))
    for i, y in enumerate(given.y):
        u = None if given.u is None else given.u[i][:, None]
        tables = unstack(transition.tables(u, transition.constants()), 6)
        likelihood = emission.log_likelihood(y[:, None], u, None, emission.constants())[:, 0].exp()
        if transition.owners is not None:
            likelihood = likelihood[:, transition.owners]
        joint = model.initial.given(u, model.initial.probs()).value.reshape(-1) * likelihood[0]
        for t in range(1, 6):
            dense = transition.dense(tables[t], None)
            joint = joint @ dense.reshape(dense.shape[-2:]) * likelihood[t]
        assert_close(found[i], joint.sum().log(), **BITS)


@over(ALL)
def test_streams_carried_beliefs_and_lists_agree(given: Given):
    model, y = given.model, given.y
    whole = model.filter(y, **given.inputs(EVERY, EVERY))
    assert_close(whole.log_prob, model.log_prob(y, **given.inputs(EVERY, EVERY)).detach(), **BITS)
    first = model.filter(y[:, :2], **given.inputs(EVERY, slice(2)))
    rest = model.filter(y[:, 2:], belief=first.belief, **given.inputs(EVERY, slice(2, None)))
    assert_close(first.log_prob + rest.log_prob, whole.log_prob, **BITS)
    stream = model.stream()
    for t in range(6):
        stream.update(y[0, t], **given.inputs(0, t))
        assert_close(-stream.surprise, whole.steps[0, t], **BITS)
    ends = [3, 6, 1]
    rows = [row[:n] for row, n in zip(y, ends, strict=True)]
    u = {} if given.u is None else {"inputs": [row[:n] for row, n in zip(given.u, ends, strict=True)]}
    for verb in (model.filter, model.smooth):
        together, padded = verb(rows, **u), verb(y, lengths=ends, **given.inputs(EVERY, EVERY))
        for i, n in enumerate(ends):
            alone = verb(rows[i], **given.inputs(i, slice(n)))
            assert_close(together.log_prob[i], alone.log_prob, **BITS)
            for name, value in alone.values.items():
                assert_close(together.values[name][i], value, rtol=1e-9, atol=1e-9)
                assert_close(padded.values[name][i, :n], value, rtol=1e-9, atol=1e-9)


@over(ALL)
def test_smoothing_is_the_backward_pass_and_a_kernel_is_the_scan(given: Given):
    model, method = given.model, ss.method_for(given.model)
    data, _ = ss.verbs.ask(model, given.y, **given.inputs(EVERY, EVERY))
    with torch.no_grad():
        back = method.public(model, smooth_backward(model, method, prepare(model, method, data), None, data.shape))
    smoothed = model.smooth(given.y, **given.inputs(EVERY, EVERY))
    for name, value in back.summary().items():
        assert_close(smoothed.values[name], value.transpose(0, 1), rtol=1e-9, atol=1e-9)
    fast, slow = (run(model, method, data, kernel=kernel).log_prob for kernel in (True, False))
    assert_close(fast, slow, **BITS)


@over(ALL)
def test_the_next_step_is_forecast_with_its_own_inputs(given: Given):
    model, y = given.model, given.y
    future = {} if given.u is None else {"future": given.u[:, 4:5]}
    ahead = model.forecast(y[:, :4], steps=1, samples=3, **given.inputs(EVERY, slice(4)), **future)
    after, before = (model.log_prob(y[:, :n], **given.inputs(EVERY, slice(n))).detach() for n in (5, 4))
    assert_close(ahead.distribution.log_prob(y[:, 4:5])[:, 0], after - before, **BITS)
