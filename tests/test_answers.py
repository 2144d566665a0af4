"""Posteriors, forecasts, streams: what they hold, and what they say when asked for something else."""

import math
from typing import Any

import pandas as pd
import pytest
import torch
from torch.testing import assert_close

import statespan as ss
from statespan.tree import leaves


def chain() -> ss.StateSpace:
    return ss.hmm(states=2, emission=ss.Categorical(3), seed=0)


def test_a_posterior_says_what_it_has():
    found = chain().filter([0, 1, 2])
    assert found.exact
    with pytest.raises(AttributeError, match="no mean; it has probs"):
        _ = found.mean
    assert ss.lstm(4, 3).filter([0, 1]).state.shape == (2, 3)
    assert not ss.lstm(4, 3).filter([0, 1]).exact
    cloud = ss.linear_gaussian(2, 1).filter([0.0, 1.0], method=ss.ParticleFilter(7))
    assert cloud.samples.shape == (2, 7, 2)
    assert cloud.weights.shape == (2, 7)
    assert cloud.mean.shape == (2, 2)
    assert cloud.covariance.shape == (2, 2, 2)


def test_a_frame_has_a_row_a_step():
    model = chain()
    one, ragged = model.filter([0, 1, 2]).frame(), model.filter([[0, 1], [2]]).frame()
    assert one["sequence"] == [0, 0, 0]
    assert one["step"] == [0, 1, 2]
    assert_close(torch.tensor(one["probs_1"]).double(), model.filter([0, 1, 2]).probs[:, 1], rtol=1e-6, atol=1e-6)
    assert ragged["sequence"] == [0, 0, 1]
    assert ragged["step"] == [0, 1, 0]
    padded = model.filter(torch.tensor([[0, 1], [2, 0]]), lengths=[2, 1]).frame()
    assert padded["sequence"] == [0, 0, 1]
    assert list(ss.linear_gaussian(2, 1).smooth([0.0]).frame()) == ["sequence", "step", "mean_0", "mean_1"]
    chains = ss.factorial_hmm([2, 2], ss.AdditiveGaussian(dim=1), seed=0)
    apart = chains.smooth([0.0, 1.0], method=ss.StructuredMeanField())
    assert apart.frame()["marginals_1_0"] == apart.marginals[:, 1, 0].tolist()
    with pytest.raises(ss.StatespanError, match="samples"):
        model.filter([0, 1], method=ss.ParticleFilter(5)).frame()


def test_an_index_of_pandas_stands_beside_the_answer_and_goes_on():
    days = pd.date_range("2024-03-30", periods=4, tz="Europe/Berlin", name="day")  # a clock changes on the 31st
    frame = pd.DataFrame({"temp": [0.1, 0.3, math.nan, 0.2]}, index=days)
    model = ss.level(variance=1.0)
    assert model.smooth(frame).frame()["day"] == list(days)
    ahead = model.forecast(frame, steps=2)
    table = ahead.frame([0.1])
    assert table["step"] == [4, 5] and table["day"] == list(pd.date_range(days[-1], periods=3)[1:])
    assert list(table) == ["sequence", "step", "day", "temp_mean", "temp_q10"]
    assert_close(torch.tensor(table["temp_q10"]), ahead.quantile(0.1)[:, 0], check_dtype=False)
    both = chain().smooth([pd.Series([0, 1], index=["a", "b"]), pd.Series([2], index=["c"])]).frame()
    assert both["index"] == ["a", "b", "c"] and both["sequence"] == [0, 0, 1]
    assert "index" not in chain().smooth(pd.Series([0, 1])).frame()  # which counts the steps, as `step` does
    assert list(chain().forecast([[0, 1], [1]]).frame())[2:] == ["probs_0", "probs_1", "probs_2"]


def test_nothing_follows_what_cannot_be():
    model = ss.hmm(initial=[1, 0], transition=[[1, 0], [0, 1]], emission=ss.Categorical(probs=[[1, 0], [0, 1]]))
    with pytest.raises(ss.StatespanError, match="sequence 0, step 1: the model gives this observation probability"):
        model.forecast([0, 1, 0], steps=2)


def test_a_forecast_says_what_it_has():
    symbols, vectors = chain().forecast([0, 1], steps=2), ss.linear_gaussian(2, 1).forecast([0.0, 1.0], steps=3)
    assert symbols.probs.shape == (2, 3)
    with pytest.raises(AttributeError, match=r"ask \.probs"):
        _ = symbols.mean
    with pytest.raises(AttributeError, match=r"ask \.mean"):
        _ = vectors.probs
    assert vectors.mean.shape == (3, 1)
    assert vectors.quantile(0.5).shape == (3, 1)
    assert vectors.quantile([0.1, 0.9]).shape == (2, 3, 1)
    batch = chain().forecast([[0, 1], [2]], steps=2, samples=7)
    assert batch.probs.shape == (2, 2, 3)
    assert batch.samples.shape == (7, 2, 2)
    with pytest.raises(ss.StatespanError, match="steps=0"):
        chain().forecast([0], steps=0)


def test_quantiles_of_a_normal():
    model = ss.linear_gaussian(2, 1, seed=0)
    ahead = model.forecast([0.0, 1.0], steps=2, samples=4000)
    exact = ahead.distribution
    for q, z in ((0.1, -1.2816), (0.5, 0.0), (0.9, 1.2816)):
        truth = exact.mean[0] + z * exact.variance[0].sqrt()
        assert_close(ahead.quantile(q), truth, rtol=0, atol=0.15)


def test_a_stream_step_by_step():
    model = chain()
    stream = model.stream()
    with pytest.raises(ss.StatespanError, match="nothing has been seen yet"):
        stream.forecast(2)
    total = 0.0
    for t, y in enumerate([0, None, 2, float("nan"), torch.tensor(1), -1]):
        belief = stream.update(y)
        total -= stream.surprise
        seen = [0, None, 2, None, 1, None][: t + 1]
        assert_close(belief.probs[0], model.filter(seen).probs[-1])
        assert_close(stream.log_prob, model.log_prob(seen).detach())
    assert_close(total, stream.log_prob)
    assert_close(stream.forecast(2).probs, model.forecast([0, None, 2, None, 1, None], steps=2).probs)
    assert not stream.belief.probs.requires_grad


@pytest.mark.parametrize("gone", [None, [math.nan, math.nan], torch.tensor([math.nan, math.nan])])
def test_a_stream_of_vectors(gone):
    model = ss.linear_gaussian(2, 2, seed=0)
    stream = model.stream()
    for y in ([0.1, 0.2], gone, torch.tensor([0.3, 0.4])):
        stream.update(y)
    nan = math.nan
    assert_close(stream.log_prob, model.log_prob([[0.1, 0.2], [nan, nan], [0.3, 0.4]]).detach(), rtol=0, atol=1e-6)
    one = ss.linear_gaussian(2, 1, seed=0).stream()
    for y in (0.5, None, [0.3], torch.tensor(0.2), math.nan):
        one.update(y)
    assert bool(one.log_prob.isfinite())


def test_a_stream_goes_on_from_a_belief():
    for model in (chain(), ss.lstm(3, 4, dtype=torch.float64, seed=0), ss.ladder("hmm/gated", 3, 3, seed=0)):
        first = model.filter([0, 1, 2])
        stream = model.stream(belief=first.belief)
        stream.update(1)
        assert_close(first.log_prob + stream.log_prob, model.log_prob([0, 1, 2, 1]).detach())


def test_sampling():
    model = chain()
    z, y = model.sample(n=3, length=4, seed=0)
    assert z.shape == y.shape == (3, 4)
    z, y = model.sample(length=4, seed=0)
    assert z.shape == y.shape == (4,)
    for bad in ({"length": 0}, {"n": 0}):
        with pytest.raises(ss.StatespanError, match="sample at least one"):
            model.sample(**bad)
    with pytest.raises(ss.StatespanError, match="draw at least one path"):
        model.sample_posterior([0, 1], n=0)
    joint = torch.bincount(z, minlength=2)
    assert joint.sum() == 4


def test_samples_have_the_joint_of_states_and_symbols():
    model = chain()
    z, y = model.sample(20_000, 2, seed=0)
    found = torch.bincount(((z[:, 0] * 3 + y[:, 0]) * 2 + z[:, 1]) * 3 + y[:, 1], minlength=36) / 20_000
    pi, a, b = model.initial.probs(), model.transition.probs, model.emission.probs
    truth = torch.einsum("i,iv,ij,jw->ivjw", pi, b, a, b).flatten().detach()
    assert_close(found.double(), truth, rtol=0, atol=0.012)


def test_nothing_missing_is_imputed_as_it_is():
    y = torch.tensor([0, 1, 2])
    assert torch.equal(chain().impute(y), y)
    assert [f.tolist() for f in chain().impute([[0, 1], [2]])] == [[0, 1], [2]]


MODELS = {
    "symbols": lambda: ss.hmm(states=3, emission=ss.Categorical(4), seed=2),
    "fed": lambda: ss.ladder("hmm/addition", vocabulary=4, width=3, spread=1.0, dtype=torch.float64, seed=1),
    "vectors": lambda: ss.linear_gaussian(2, 1, seed=0),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_stream_with_a_lag_is_the_smoother_of_what_was_seen(name: str):
    model = MODELS[name]()
    y = model.sample(None, 7, seed=0)[1]
    stream = model.stream(lag=2)
    for t in range(len(y)):
        stream.update(y[t])
        if t < 2:
            assert stream.lagged is None
            continue
        now, whole = stream.lagged.summary(), model.smooth(y[: t + 1])
        for key, value in now.items():
            assert_close(value[0], whole.values[key][t - 2], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_a_stream_is_saved_and_goes_on(name: str, tmp_path):
    model = MODELS[name]()
    y = model.sample(None, 6, seed=0)[1]
    one, other = model.stream(lag=1), model.stream(lag=1)
    for step in y[:3]:
        one.update(step)
    one.save(tmp_path / "stream.safetensors")
    other.resume(tmp_path / "stream.safetensors")
    for step in y[3:]:
        one.update(step)
        other.update(step)
    assert torch.equal(one.log_prob, other.log_prob)
    for a, b in zip(leaves(one.lagged), leaves(other.lagged), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ss.StatespanError, match="lag=1"):
        model.stream().resume(tmp_path / "stream.safetensors")
    with pytest.raises(ss.StatespanError, match="not a whole statespan file"):
        model.stream().resume(__file__)


@pytest.mark.parametrize("holes", [(), (1,), (0, 4)])
@pytest.mark.parametrize("name", ["symbols", "fed"])
def test_pairs_of_neighbours_equal_enumeration(name: str, holes: tuple):
    model = MODELS[name]()
    y = model.sample(None, 5, seed=0)[1]
    y[list(holes)] = -1
    pairs = torch.zeros(4, 3, 3, dtype=torch.float64)
    paths = torch.cartesian_prod(*[torch.arange(3)] * 5)
    weights = model.log_prob(y.expand(len(paths), -1), states=paths).detach().exp()
    for path, weight in zip(paths.tolist(), weights, strict=True):
        for t in range(4):
            pairs[t, path[t], path[t + 1]] += weight
    answer = model.smooth(y, pairs=True)
    assert_close(answer.pairs, pairs / weights.sum(), rtol=0, atol=1e-10)
    assert_close(answer.pairs.sum(-1), answer.probs[:-1], rtol=0, atol=1e-10)
    ragged = model.smooth([y, y[:2], y[:1]], pairs=True).pairs
    assert [len(x) for x in ragged] == [4, 1, 0]
    assert_close(ragged[1], model.smooth(y[:2], pairs=True).pairs, rtol=0, atol=1e-10)


def test_neighbours_of_a_normal_state_have_a_covariance():
    model = MODELS["vectors"]()
    y = model.sample(None, 5, seed=0)[1]
    assert model.smooth(y, pairs=True).pairs.shape == (4, 2, 2)


def test_pairs_that_no_method_knows_are_refused():
    with pytest.raises(ss.StatespanError, match="without pairs"):
        ss.ladder("elman", vocabulary=4, width=3).smooth([0, 1], pairs=True)


def test_surprise_is_minus_the_log_probability_of_each_step():
    model = MODELS["symbols"]()
    rows = [[0, 1, None, 3], [2, 2]]
    answer = model.filter(rows)
    for row, surprise, total in zip(rows, answer.surprise, answer.log_prob, strict=True):
        stream = model.stream()
        for y, value in zip(row, surprise, strict=True):
            stream.update(y)
            assert_close(stream.surprise, value)
        assert_close(-surprise.sum(), total)
    assert model.smooth(rows[1]).surprise.shape == (2,)
    assert [row.tolist() for row in answer.states] == [row.argmax(-1).tolist() for row in answer.probs]


def test_possible_states_constrain_every_answer():
    """Where only some states are allowed, answers are of y and of the path lying among them."""
    model = MODELS["symbols"]()
    y = torch.tensor([0, 3, 1, 2])
    allowed = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 1, 1], [0, 0, 1]], dtype=torch.bool)
    paths = torch.cartesian_prod(*[torch.arange(3)] * 4)
    inside = allowed[torch.arange(4), paths].all(-1)
    joint = model.log_prob(y.expand(len(paths), -1), states=paths).detach()
    assert_close(model.log_prob(y, states=allowed).detach(), joint[inside].logsumexp(0))
    assert bool((model.smooth(y, states=allowed).probs[~allowed] == 0).all())
    best = torch.where(inside, joint, -torch.inf).argmax()
    assert model.decode(y, states=allowed).tolist() == paths[best].tolist()
    labels = torch.full((4, 3), True)
    labels[1] = torch.tensor([False, False, True])
    assert_close(model.log_prob(y, states=labels), model.log_prob(y, states=[-1, 2, -1, -1]))
    model.fit([y, y[:2]], states=[allowed, allowed[:2]], by=ss.EM(iterations=3))
    for bad, message in (
        (allowed[:, 1:], "the model has 3"),
        (allowed & False, "allows no state"),
        (allowed[:3], "one entry for every step"),
        (allowed.double(), "one label for every step, or True and False"),
    ):
        with pytest.raises(ss.StatespanError, match=message):
            model.log_prob(y, states=bad)


def test_weights_that_make_no_sense_are_refused():
    model = MODELS["symbols"]()
    for weights in ([1.0, -1.0], [1.0, float("nan")]):
        with pytest.raises(ss.StatespanError, match="weights: give one number, 0 or more"):
            model.fit([[0, 1], [2]], weights=weights)
    with pytest.raises(ss.StatespanError, match="weights has lengths"):
        model.fit([[0, 1], [2]], weights=[[1.0], [1.0]])


@pytest.mark.parametrize("emission", [ss.Gaussian(1), ss.Poisson(1), ss.Emission("Gumbel")])
def test_answers_carry_no_gradient(emission: Any):
    model = ss.hmm(states=2, emission=emission, seed=0)
    ahead = model.forecast(torch.tensor([0.0, 1, 2, 1]), steps=2)
    for value in (ahead.mean, ahead.quantile([0.1, 0.9]), ahead.samples):
        value.numpy()


def test_what_is_asked_of_a_forecast_is_checked_and_its_repr_is_short():
    model = ss.hmm(states=2, emission=ss.Gaussian(2), seed=0)
    y = torch.zeros(4, 2)
    assert repr(model.forecast([y, y], steps=3)) == "Forecast(3 steps of 2 sequences: mean, quantile(q), 200 samples)"
    assert repr(model.smooth(y)).startswith("Posterior(probs of 1 sequence, 4 steps; log_prob -")
    assert "Gaussian(dim=2, covariance='full', states=2)" in repr(model)
    with pytest.raises(ss.StatespanError, match="samples=0: draw at least one"):
        model.forecast(y, steps=3, samples=0)
    with pytest.raises(ss.StatespanError, match="give probabilities between 0 and 1"):
        model.forecast(y, steps=3).quantile(90)
    with pytest.raises(ss.StatespanError, match="row 1 holds 3 numbers where the model observes 2"):
        model.log_prob([[1, 2], [3, 4, 5]])
