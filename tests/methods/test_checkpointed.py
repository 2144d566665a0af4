"""A segment at a time gives what the whole gives."""

import math

import pytest
import torch
from torch.testing import assert_close

import statespan as ss

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
MODELS = {
    "low-rank": lambda: ss.hmm(6, ss.Categorical(4), transition=ss.LowRank(rank=2), seed=1),
    "dense": lambda: ss.hmm(5, ss.Categorical(4), seed=1),
    "semi-markov": lambda: ss.semi_markov(3, 4, ss.Categorical(4), seed=1),
    "gaussian": lambda: ss.hmm(3, ss.Gaussian(2), seed=1),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("segment", [1, 3, 50])
def test_every_answer_is_the_whole_ones(name: str, segment: int):
    model, method = MODELS[name](), ss.Checkpointed(segment)
    y = model.sample(4, 10, seed=0)[1].double()
    y[1, 3:5] = math.nan
    rows = [row[:n] for row, n in zip(y, (10, 7, 2, 5), strict=True)]
    for asked in (y, rows, rows[2]):
        assert_close(model.log_prob(asked, method=method), model.log_prob(asked), **TIGHT)
        here, there = model.smooth(asked, method=method), model.smooth(asked)
        for a, b in zip(here.probs, there.probs, strict=True):
            assert_close(a, b, **TIGHT)
        values = torch.rand(model.transition.public_states, 2).double()
        found = method.smoothed(model, asked, values)
        for a, b in zip(found, there.probs, strict=True):
            assert_close(a, b @ values, **TIGHT)
    pieces = dict(method.segments(model, y))
    whole = torch.cat([pieces[t] for t in sorted(pieces)])
    assert_close(whole.transpose(0, 1), model.smooth(y).probs, **TIGHT)
    belief = model.filter(rows).belief
    assert_close(run_last(model, rows, method), belief.state.probs, **TIGHT)
    data, _ = ss.verbs.ask(model, rows, weights=[1.0, 2.0, 0.5, 1.0])
    here, there = (m.expect(model, m.constants(model), data) for m in (method, ss.Forward()))
    assert_close(here.log_prob, there.log_prob, **TIGHT)
    from statespan.tree import leaves

    for a, b in zip(leaves(here.statistics), leaves(there.statistics), strict=True):
        assert_close(a, b, rtol=1e-8, atol=1e-8)
    parameters = list(model.parameters())
    here, there = (
        torch.autograd.grad(model.log_prob(rows, method=m).sum(), parameters, allow_unused=True, materialize_grads=True)
        for m in (method, None)
    )
    for a, b in zip(here, there, strict=True):
        assert_close(a, b, rtol=1e-8, atol=1e-8)


def run_last(model: ss.StateSpace, rows: list[torch.Tensor], method: ss.Method) -> torch.Tensor:
    data, _ = ss.verbs.ask(model, rows)
    return ss.run(model, method, data, keep=("last",)).last.state.probs.detach()


def test_a_forecast_and_what_is_refused():
    model, method = MODELS["dense"](), ss.Checkpointed(2)
    y = model.sample(None, 7, seed=0)[1]
    assert_close(model.forecast(y, 2, method=method).probs, model.forecast(y, 2).probs, **TIGHT)
    with pytest.raises(ss.StatespanError, match="at least one step"):
        ss.Checkpointed(0)
    with pytest.raises(ss.StatespanError, match="sample paths with Forward"):
        model.sample_posterior(y, method=method)
    rung = ss.ladder("hmm/feed-add", vocabulary=4, width=3) if "hmm/feed-add" in ss.LADDER else None
    if rung is not None and rung.autoregressive:
        with pytest.raises(ss.StatespanError, match="see the past through the state alone"):
            rung.log_prob([0, 1], method=method)


def test_em_by_segments_is_em():
    y = MODELS["low-rank"]().sample(3, 20, seed=0)[1]
    fits = [MODELS["low-rank"]().fit(y, by=ss.EM(4, 0, method=m)) for m in (None, ss.Checkpointed(6))]
    for a, b in zip(*(m.parameters() for m in fits), strict=True):
        assert_close(a, b, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("segment", [1, 4, 50])
def test_an_emission_that_looks_back_sees_the_segment_before(segment: int):
    model, method = ss.hmm(3, ss.LinearRegression(2, lags=2), seed=1), ss.Checkpointed(segment)
    y = model.sample(3, 9, seed=0)[1].double()
    rows = [row[:n] for row, n in zip(y, (9, 6, 2), strict=True)]
    rows[0][-1, 1] = rows[1][-1] = math.nan  # at an end: nothing looks back on it
    assert_close(model.log_prob(rows, method=method), model.log_prob(rows), **TIGHT)
    for here, there in zip(model.impute(rows, method=method), model.impute(rows), strict=True):
        assert_close(here, there, **TIGHT)
    data, _ = ss.verbs.ask(model, rows)
    here, there = (ss.run(model, m, data, keep=("last",)).last for m in (method, ss.Forward()))
    assert_close(here.state.probs, there.state.probs, **TIGHT)
    for a, b in zip(here.fed.recent, there.fed.recent, strict=True):
        assert_close(a, b, equal_nan=True)
    here, there = (m.expect(model, m.constants(model), data).statistics.emission for m in (method, ss.Forward()))
    for a, b in zip(here, there, strict=True):
        assert_close(a, b, **TIGHT)
    y[0, 3] = math.nan
    with pytest.raises(ss.StatespanError, match="sequence 0, step 3 is missing, and the emission of step 4 looks back"):
        model.log_prob(y, method=method)
    with pytest.raises(ss.StatespanError, match="with Forward, and futures"):
        model.forecast(y[2], 2, method=method)
