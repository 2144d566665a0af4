"""L-BFGS on linear Gaussian models and on HMMs."""

import math

import pytest
import torch
from torch.testing import assert_close

import statespan as ss


def test_the_mean_and_variance_of_white_noise_in_a_few_steps():
    torch.manual_seed(0)
    y = 3 + 2 * torch.randn(30, 1).double()
    model = ss.linear_gaussian(dynamics=[[0.0]], observation=[[0.0]], state_noise=[[1.0]])
    for part in (model.initial, model.transition):
        part.requires_grad_(False)
    model.emission.matrix.requires_grad_(False)
    lbfgs = ss.LBFGS()
    model.fit(y, by=lbfgs)
    assert_close(model.emission.offset.detach()[0], y.mean(), rtol=1e-6, atol=1e-6)
    assert_close(model.emission.covariance.detach()[0, 0], y.var(unbiased=False), rtol=1e-5, atol=1e-5)
    assert model.emission.matrix.item() == 0.0
    best = torch.distributions.Normal(y.mean(), y.std(unbiased=False)).log_prob(y).sum()
    assert_close(lbfgs.history[-1], best.item(), rtol=0, atol=1e-7)
    assert all(b >= a for a, b in zip(lbfgs.history, lbfgs.history[1:], strict=False))
    assert len(lbfgs.history) < 40


def test_an_hmm_reaches_where_em_ends():
    y = ss.hmm(states=2, emission=ss.Gaussian(1), seed=3).sample(None, 40, seed=1)[1]
    start = ss.hmm(states=2, emission=ss.Gaussian(1), seed=5)
    start.fit(y, by=ss.EM(iterations=3))
    path = {name: value.clone() for name, value in start.state_dict().items()}
    em = ss.EM(iterations=500, tolerance=0)
    start.fit(y, by=em)
    start.load_state_dict(path)
    lbfgs = ss.LBFGS(iterations=300)
    start.fit(y, by=lbfgs)
    assert lbfgs.history[-1] >= em.history[-1] - 1e-4
    assert_close(start.log_prob(y).item(), lbfgs.history[-1])


def test_a_step_out_of_the_domain_is_cut():
    """The likelihood of a stationary start ends where the dynamics stop being stable: a random walk pulls there."""
    torch.manual_seed(0)
    y = torch.randn(25, 1).double().cumsum(0)
    model = ss.linear_gaussian(dynamics=[[0.5]], observation=[[1.0]], observation_noise=[[0.01]], initial="stationary")
    lbfgs = ss.LBFGS(iterations=60)
    model.fit(y, by=lbfgs)
    assert 0.8 < model.transition.matrix.item() < 1
    assert math.isfinite(lbfgs.history[-1])
    assert lbfgs.history[-1] > lbfgs.history[0]


def test_bad_use_is_named():
    model = ss.linear_gaussian(state=1, observed=1)
    with pytest.raises(ss.StatespanError, match="use at least one"):
        ss.LBFGS(iterations=0)
    with pytest.raises(ss.StatespanError, match="no parameter is free"):
        model.requires_grad_(False).fit([0.1, 0.2], by=ss.LBFGS())


def test_it_climbs_the_log_prob_of_the_method_asked_for():
    def reached(by):
        model = ss.generalised_linear(ss.linear_gaussian(state=1, observed=1, seed=0), "poisson")
        return model.fit([2, 3, 1, 4, 9, 7, 8, 12], by=by).log_prob([2, 3, 1, 4, 9, 7, 8, 12], method=by.method).item()

    moments = ss.DiscreteKalman(ss.ConditionalMoments())
    own, other = reached(ss.LBFGS(iterations=8)), reached(ss.LBFGS(iterations=8, method=moments))
    assert own != other
    with pytest.raises(ss.StatespanError, match="Forward"):
        reached(ss.LBFGS(iterations=1, method=ss.Forward()))
    with pytest.raises(ss.StatespanError, match="Forward"):
        reached(ss.SGD(epochs=1, method=ss.Forward()))
