"""The bootstrap filter against exact answers, within its own error."""

import math

import pytest
import torch
from torch.testing import assert_close

import statespan as ss
from statespan.method import run
from statespan.methods.particle import systematic
from statespan.sequences import Sequences


def linear() -> ss.StateSpace:
    return ss.linear_gaussian(
        dynamics=[[0.8, 0.2], [0.0, 0.7]],
        state_noise=[[0.5, 0.1], [0.1, 0.4]],
        observation=[[1.0, 0.5]],
        observation_noise=[[0.8]],
    )


def chain() -> ss.StateSpace:
    return ss.hmm(states=3, emission=ss.Categorical(4), seed=2)


def gaussian_chain() -> ss.StateSpace:
    return ss.hmm(states=3, emission=ss.Gaussian(2), seed=2)


MODELS = {"linear": linear, "chain": chain, "gaussian": gaussian_chain}


@pytest.mark.parametrize("name", MODELS)
def test_the_likelihood_is_unbiased(name: str):
    """E[exp(log_prob)] = p(y), with a gap in the middle; 300 runs at once as a batch of copies."""
    model = MODELS[name]()
    y = model.sample(None, 6, seed=1)[1].double()
    y[2] = math.nan
    exact = model.log_prob(y).detach()
    many = model.log_prob(y.expand(300, *y.shape), method=ss.ParticleFilter(100)).detach()
    ratio = (many - exact).exp()
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / math.sqrt(300)
    assert ratio.std() < 1.0


@pytest.mark.parametrize("resample", [0.0, 0.5, 1.0])
def test_filtered_and_smoothed_means_agree_with_kalman(resample: float):
    model = linear()
    y = model.sample(None, 6, seed=1)[1]
    y[3] = math.nan
    n, copies = 200, 40
    many = y.expand(copies, -1, -1)
    method = ss.ParticleFilter(n, resample)
    for verb in ("filter", "smooth"):
        exact, found = getattr(model, verb)(y), getattr(model, verb)(many, method=method)
        assert not found.exact
        spread = found.mean.std(0) / math.sqrt(copies)
        bias = 20 / n  # self-normalised weights are biased by a term of order 1/N
        assert bool(((found.mean.mean(0) - exact.mean).abs() < 4.5 * spread + bias).all())
        assert_close(found.covariance.mean(0), exact.covariance, rtol=0.15, atol=0.05)


def test_states_of_a_chain_agree_with_forward():
    model = chain()
    y = model.sample(None, 5, seed=1)[1]
    for verb in ("filter", "smooth"):
        exact = getattr(model, verb)(y).probs
        found = getattr(model, verb)(y, method=ss.ParticleFilter(1500))
        hot = torch.nn.functional.one_hot(found.samples, 3).double()
        assert_close((found.weights[..., None] * hot).sum(-2), exact, rtol=0, atol=0.09)
    paths = model.sample_posterior(y, n=1500, seed=0, method=ss.ParticleFilter(200))
    drawn = torch.nn.functional.one_hot(paths, 3).double().mean(0)
    assert_close(drawn, model.smooth(y).probs, rtol=0, atol=0.08)


def test_weights_sum_to_one_and_log_prob_is_the_sum_of_steps():
    model = linear()
    y = model.sample(2, 5, seed=1)[1]
    found = model.filter(y, method=ss.ParticleFilter(64))
    assert_close(found.weights.sum(-1), torch.ones(2, 5).double())
    torch.manual_seed(3)
    whole = model.log_prob(y[0], method=ss.ParticleFilter(64)).detach()
    torch.manual_seed(3)
    stream = model.stream(method=ss.ParticleFilter(64))
    for row in y[0]:
        stream.update(row)
    assert_close(stream.log_prob, whole)


def test_forecast_and_imputation_follow_the_exact():
    model = linear()
    y = model.sample(None, 6, seed=1)[1]
    exact = model.forecast(y, steps=2)
    found = model.forecast(y, steps=2, samples=1500, method=ss.ParticleFilter(200))
    assert not found.exact
    error = exact.distribution.variance[0].sqrt() / math.sqrt(1500)
    assert bool(((found.mean - exact.mean).abs() < 5 * error + 0.1).all())
    holes = y.clone()
    holes[2] = math.nan
    filled = model.impute(holes, method=ss.ParticleFilter(1000))
    assert_close(filled, model.impute(holes), rtol=0, atol=0.25)
    assert_close(filled[[0, 1, 3, 4, 5]], y[[0, 1, 3, 4, 5]])


def test_ragged_and_missing():
    model = linear()
    y = model.sample(3, 6, seed=1)[1]
    rows = [y[0, :2], y[1], y[2, :4].clone()]
    rows[2][1] = math.nan
    method = ss.ParticleFilter(600)
    assert_close(model.log_prob(rows, method=method), model.log_prob(rows), rtol=0, atol=0.4)
    data, _ = ss.verbs.ask(model, rows)
    each = run(model, method, data).log_prob
    assert each[1, 2] == 0
    assert bool((each[2:, 0] == 0).all())
    smoothed = model.smooth(rows, method=method)
    for ours, exact in zip(smoothed.mean, model.smooth(rows).mean, strict=True):
        assert_close(ours, exact, rtol=0, atol=0.35)


def test_an_impossible_observation_is_minus_infinity():
    model = ss.hmm(initial=[1, 0], transition=[[1, 0], [0, 1]], emission=ss.Categorical(probs=[[1, 0], [0, 1]]))
    method = ss.ParticleFilter(20)
    assert model.log_prob([0, 1, 0], method=method) == -math.inf
    for verb in (model.filter, model.smooth):
        assert bool(verb([0, 1, 0], method=method).weights.isfinite().all())
    mixed = ss.hmm(initial=[0.5, 0.5], transition=[[1, 0], [0, 1]], emission=ss.Categorical(probs=[[1, 0], [0, 1]]))
    found = mixed.smooth([0, None, 0], method=ss.ParticleFilter(30, resample=0.0))
    state = (found.weights * found.samples).sum(-1)
    assert_close(state, torch.zeros(3).double())


def test_one_missing_coordinate_is_refused_by_name():
    model = gaussian_chain()
    y = model.sample(None, 4, seed=0)[1]
    y[2, 1] = math.nan
    with pytest.raises(ss.StatespanError, match=r"sequence 0, step 2: .*one missing coordinate of Gaussian"):
        model.log_prob(y, method=ss.ParticleFilter(10))


def test_systematic_resampling_takes_each_particle_its_share():
    weights = torch.rand(50, 8).double()
    weights = weights / weights.sum(-1, keepdim=True)
    index = systematic(weights)
    counts = torch.nn.functional.one_hot(index, 8).sum(1)
    assert bool(((counts - 8 * weights).abs() < 1).all())


def test_gradients_flow_to_the_observation_model():
    model = linear()
    y = model.sample(None, 4, seed=0)[1]
    model.log_prob(y, method=ss.ParticleFilter(50)).backward()
    assert model.emission.matrix.grad is not None
    assert bool(model.emission.matrix.grad.isfinite().all())


def test_what_a_method_lacks_is_said():
    with pytest.raises(ss.StatespanError, match=r"Kalman does not accept this model: its initial Start is no Gaussian"):
        chain().log_prob([0, 1], method=ss.Kalman())
    with pytest.raises(ss.StatespanError, match=r"Forward does not accept .* NormalStart is no FiniteInitial"):
        linear().log_prob([0.0, 1.0], method=ss.Forward())
    with pytest.raises(ss.StatespanError, match=r"ParticleFilter does not accept .* Cell is no Generative"):
        ss.lstm(vocabulary=4, width=2).log_prob([0, 1], method=ss.ParticleFilter())
    with pytest.raises(
        ss.StatespanError, match=r"no method accepts these parts \(Forward: .*; Kalman: .*; Recurrent: "
    ):
        ss.StateSpace(ss.Start(2), ss.lstm(vocabulary=4, width=2).transition, ss.Categorical(4, 2)).log_prob([0, 1])
    with pytest.raises(ss.StatespanError, match="particles=0: use at least one"):
        ss.ParticleFilter(0)


def test_nothing_seen_has_probability_one():
    model = linear()
    blank = Sequences(observed=torch.zeros(3, 2, dtype=torch.bool))
    for method in (ss.Kalman(), ss.ParticleFilter(10)):
        each = run(model, method, blank, keep=("log_prob", "last"))
        assert_close(each.log_prob.detach(), torch.zeros(3, 2).double())
