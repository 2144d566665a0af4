"""Priors on matrices and noises against scipy's densities, EM's maximum against the gradient, and the bound on A."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch.testing import assert_close

import statespan as ss
from statespan.parts.linear import radius

PRIOR = {"prior_scale": [[0.6, 0.1], [0.1, 0.4]], "degrees": 5.0, "matrix_strength": [4.0, 2.0], "prior_matrix": 0.7}


def drifting(length: int = 40) -> torch.Tensor:
    """A series whose likeliest dynamics are not stable."""
    truth = ss.linear_gaussian(
        dynamics=[[0.99, 0.1], [0.0, 0.97]],
        state_noise=0.1 * np.eye(2),
        observation=[[1.0, 0.0], [0.5, 0.5]],
        observation_noise=0.4 * np.eye(2),
    )
    y = truth.sample(None, length, seed=0)[1] + 0.15 * torch.arange(length)[:, None]
    y[3], y[7, 1] = torch.nan, torch.nan
    return y


def test_the_log_prior_is_scipys_up_to_a_constant():
    part, random = ss.Linear(2, 2, **PRIOR).double(), np.random.default_rng(0)
    off = []
    for _ in range(3):
        a, root = random.normal(size=(2, 2)), np.tril(random.normal(size=(2, 2)))
        with torch.no_grad():
            part.matrix.copy_(torch.from_numpy(a))
            part.scale.copy_(torch.from_numpy(root))
        q = root @ root.T
        wishart = stats.invwishart.logpdf(q, 5.0, PRIOR["prior_scale"])
        normal = stats.matrix_normal.logpdf(a, 0.7 * np.eye(2), q, np.diag([1 / 4.0, 1 / 2.0]))
        off.append(float(part.log_prior().detach()) - wishart - normal)
    assert off == pytest.approx([off[0]] * 3)
    assert ss.Linear(2).log_prior() == 0.0


@pytest.mark.parametrize("held", [(), ("matrix",), ("offset", "control"), ("scale",)])
def test_the_m_step_is_where_the_expected_posterior_is_flat(held):
    """sum over steps of log N(y; A x + b + B u, Q) plus the prior, by its gradient."""
    random = torch.Generator().manual_seed(0)
    x, u = (torch.randn(30, 1, n, generator=random).double() for n in (2, 1))
    y = x @ torch.tensor([[0.9, 0.3], [0.0, 0.5]]).double() + 0.2 * u + torch.randn(30, 1, 2, generator=random)
    part = ss.Linear(2, 2, controls=1, **PRIOR).double()
    with torch.no_grad():
        part.control.fill_(0.3)
    for name in held:
        getattr(part, name).requires_grad_(False)
    extra = torch.eye(4).double()
    part.maximize(part.statistics(x, y, extra, u, torch.ones(30, 1).double()))
    mean, root = x @ part.matrix.mT + part.offset + u @ part.control.mT, part.scale
    joint = torch.distributions.MultivariateNormal(mean, scale_tril=root)
    off = torch.cat([-part.matrix, torch.eye(2).double()], 1)  # of the posterior's own spread, `extra`
    spread = (off @ extra @ off.mT * torch.cholesky_inverse(root)).sum() / 2
    free = {name: p for name, p in part.named_parameters() if p.requires_grad}
    slopes = torch.autograd.grad(joint.log_prob(y).sum() - spread + part.log_prior(), list(free.values()))
    for name, slope in zip(free, slopes, strict=True):
        assert float((slope.tril() if name == "scale" else slope).abs().max()) < 1e-9


def test_em_climbs_with_priors():
    seen = {"prior_scale": 0.5, "matrix_strength": 1.0, "prior_matrix": 0.5}
    model = ss.linear_gaussian(state=2, observed=2, state_prior=PRIOR, observation_prior=seen, seed=1)
    em = ss.EM(iterations=12, tolerance=0)
    model.fit(drifting(25), by=em)
    assert all(b > a - 1e-8 for a, b in pairwise(em.history))


def test_a_strong_prior_wins_and_a_prior_without_data_is_its_mode():
    strong = {"prior_scale": 1e6, "degrees": 1e6 - 3, "matrix_strength": 1e9, "prior_matrix": 0.7}
    model = ss.linear_gaussian(state=2, observed=2, state_prior=strong, seed=0)
    model.fit(drifting(), by=ss.EM(iterations=2, tolerance=0))
    assert_close(model.transition.matrix.detach(), 0.7 * torch.eye(2).double(), rtol=1e-4, atol=1e-4)
    assert_close(model.transition.covariance.detach(), torch.eye(2).double(), rtol=1e-3, atol=1e-3)


def test_the_bound_holds_in_em_and_under_the_gradient_and_em_stays_monotone():
    y = drifting()
    free = ss.linear_gaussian(state=2, observed=2, seed=1).fit(y, by=ss.EM(iterations=40, tolerance=0))
    assert float(radius(free.transition.matrix).detach()) > 1
    model = ss.linear_gaussian(state=2, observed=2, seed=1, stable=0.9)
    em = ss.EM(iterations=40, tolerance=0)
    model.fit(y, by=em)
    assert all(b > a - 1e-8 for a, b in pairwise(em.history))
    assert float(radius(model.transition.matrix).detach()) <= 0.9 + 1e-9
    by = ss.LBFGS(iterations=15)
    model.fit(y, by=by)
    bounded = model.transition.stable_matrix
    assert float(radius(bounded).detach()) <= 0.9 + 1e-9
    assert by.history[-1] >= em.history[-1]
    assert by.history[-1] - em.history[-1] < 0.5  # EM's cut step was near the best there is
    assert model.forecast(y, steps=200).mean[-1].abs().max() < 1e3
    stationary = ss.linear_gaussian(state=2, observed=2, seed=1, stable=0.9, initial="stationary")
    stationary.transition.matrix.data.mul_(2.0)  # free to leave; what acts does not
    assert stationary.log_prob(y).isfinite()


def test_saved_and_loaded(tmp_path):
    model = ss.linear_gaussian(
        state=2, observed=2, seed=0, stable=0.95, state_prior={**PRIOR, "prior_scale": torch.eye(2)}
    )
    model.save(tmp_path / "m")
    again = ss.load(tmp_path / "m")
    assert again.transition.stable == 0.95
    assert_close(again.log_prior(), model.log_prior(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ss.Linear(2, 1, stable=0.9), "on a square matrix"),
        (lambda: ss.Linear(2, stable=1.5), "a bound of 0 to 1"),
        (lambda: ss.Linear(2, prior_scale=np.eye(3)), "prior_scale is"),
        (lambda: ss.Linear(2, prior_scale=1.0, degrees=-9), "degrees=-9"),
        (lambda: ss.Linear(2, matrix_strength=-1.0), "matrix_strength"),
        (lambda: ss.Linear(2, prior_matrix=np.eye(3)), "prior_matrix is"),
        (lambda: ss.linear_gaussian(2, 1, state_prior={"strength": 1}), "not strength"),
        (lambda: ss.linear_gaussian(dynamics=np.zeros((3, 1, 1)), observed=1, stable=0.9), "changes in time"),
    ],
)
def test_refusals(call, words: str):
    with pytest.raises(ss.StatespanError, match=words):
        call()
