"""EM of linear Gaussian models: against pykalman, against gradients (Fisher's identity), with coefficients held."""

import math

import numpy as np
import pykalman
import pytest
import torch
from torch.testing import assert_close

import statespan as ss
from series import NILE
from statespan.method import closed_parts
from statespan.verbs import ask


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def random_model(state: int = 2, observed: int = 3, inputs: int = 0) -> ss.StateSpace:
    model = ss.linear_gaussian(dynamics=normal(state, state) / 2, observation=normal(observed, state), inputs=inputs)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model


def broken(n: int, length: int, observed: int, holes: float = 0.3) -> torch.Tensor:
    """Random data with missing entries and a few missing rows."""
    y = normal(n, length, observed) * 2
    y = y.masked_fill(torch.rand(n, length, observed) < holes, math.nan)
    return y.masked_fill(torch.rand(n, length, 1) < holes / 3, math.nan)


@pytest.mark.parametrize("observed", [1, 3])
def test_expected_statistics_give_the_gradient(observed: int):
    """Fisher's identity: the slope of the expected complete log-likelihood here is that of log p."""
    torch.manual_seed(observed)
    model = random_model(2, observed, inputs=2)
    y, u = broken(4, 9, observed), normal(4, 9, 2)
    ends, weights = [9, 5, 1, 7], [1.0, 2.0, 0.5, 0.0]
    data, _ = ask(model, y, lengths=ends, inputs=u, weights=weights)
    log_prob, stats = ss.Kalman().expect(model, (), data)
    total = (model.log_prob(y, lengths=ends, inputs=u) * torch.tensor(weights)).sum()
    assert_close((log_prob.sum(0) * torch.tensor(weights)).sum(), total.detach())
    gradient = dict(
        zip(dict(model.named_parameters()), torch.autograd.grad(total, list(model.parameters())), strict=True)
    )
    for name, sums in (("transition", stats.transition), ("emission", stats.emission)):
        part = getattr(model, name)
        with torch.no_grad():
            weight = torch.cat([part.matrix, part.offset[:, None], part.control], 1)
            precision = torch.linalg.inv(part.covariance)
            slope = precision @ (sums.yx - weight @ sums.xx)
            found = torch.cat(
                [gradient[f"{name}.matrix"], gradient[f"{name}.offset"][:, None], gradient[f"{name}.control"]], 1
            )
            assert_close(found, slope, rtol=1e-8, atol=1e-8)
            square = sums.yy - weight @ sums.yx.T - sums.yx @ weight.T + weight @ sums.xx @ weight.T
            scale = torch.linalg.cholesky(part.covariance)
            slope = ((precision @ square @ precision - sums.weight * precision) @ scale).tril()
            turned = torch.sign(part.scale.diagonal())
            assert_close(gradient[f"{name}.scale"] * turned, slope, rtol=1e-8, atol=1e-8)
    start = model.initial
    with torch.no_grad():
        precision = torch.linalg.inv(start.gaussian(1).scale[0] @ start.gaussian(1).scale[0].T)
        slope = precision @ (stats.initial.first - stats.initial.weight * start.mean)
    assert_close(gradient["initial.mean"], slope, rtol=1e-8, atol=1e-8)


def test_pykalman_takes_the_same_steps():
    torch.manual_seed(0)
    model = random_model(2, 2)
    y = model.sample(None, 60, seed=0)[1]
    y[5:8] = math.nan
    with torch.no_grad():
        for part in (model.transition, model.emission):
            part.offset.zero_().requires_grad_(False)
    numpy = lambda x: x.detach().numpy()  # noqa: E731
    first = model.initial.gaussian(1)
    peer = pykalman.KalmanFilter(
        transition_matrices=numpy(model.transition.matrix),
        observation_matrices=numpy(model.emission.matrix),
        transition_covariance=numpy(model.transition.covariance),
        observation_covariance=numpy(model.emission.covariance),
        initial_state_mean=numpy(first.mean[0]),
        initial_state_covariance=numpy(first.scale[0] @ first.scale[0].T),
        em_vars=[
            "transition_matrices",
            "observation_matrices",
            "transition_covariance",
            "observation_covariance",
            "initial_state_mean",
            "initial_state_covariance",
        ],
    ).em(np.ma.masked_invalid(y.numpy()), n_iter=4)
    model.fit(y, by=ss.EM(iterations=4, tolerance=0))
    size = {"rtol": 1e-6, "atol": 1e-8}
    assert_close(numpy(model.transition.matrix), peer.transition_matrices, **size)
    assert_close(numpy(model.emission.matrix), peer.observation_matrices, **size)
    assert_close(numpy(model.transition.covariance), peer.transition_covariance, **size)
    assert_close(numpy(model.emission.covariance), peer.observation_covariance, **size)
    assert_close(numpy(model.initial.mean), peer.initial_state_mean, **size)
    start = model.initial.gaussian(1).scale[0]
    assert_close(numpy(start @ start.T), peer.initial_state_covariance, **size)
    assert bool((model.transition.offset == 0).all())


@pytest.mark.parametrize(
    "held", [(), ("transition.matrix",), ("emission.matrix", "emission.scale"), ("initial.scale",)]
)
def test_it_never_falls_and_leaves_what_is_held(held: tuple[str, ...]):
    torch.manual_seed(1)
    model = random_model(2, 3, inputs=1)
    y, u = broken(3, 12, 3), normal(3, 12, 1)
    before = {}
    for name, p in model.named_parameters():
        p.requires_grad_(name not in held)
        before[name] = p.detach().clone()
    em = ss.EM(iterations=15, tolerance=0)
    model.fit(y, by=em, inputs=u)
    assert all(b >= a - 1e-8 for a, b in zip(em.history, em.history[1:], strict=False))
    assert em.history[-1] > em.history[0] + 1
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (name in held), name


def test_it_ends_where_the_gradient_is_zero():
    """Nile: the two variances that Durbin and Koopman print, with the level diffuse."""
    one = [[1.0]]
    model = ss.linear_gaussian(dynamics=one, observation=one, initial="diffuse")
    for p in (model.transition.matrix, model.transition.offset, model.emission.matrix, model.emission.offset):
        p.requires_grad_(False)
    with torch.no_grad():
        model.transition.scale.fill_(100.0)
        model.emission.scale.fill_(100.0)
    assert closed_parts(model) == (True, True, True)
    model.fit(NILE, by=ss.LBFGS())
    assert_close(model.log_prob(NILE).item(), -633.464564, rtol=0, atol=1e-6)
    assert_close(model.emission.covariance.item(), 15098.52, rtol=2e-4, atol=0)
    assert_close(model.transition.covariance.item(), 1469.18, rtol=2e-3, atol=0)
    best = model.log_prob(NILE).item()
    em = ss.EM(iterations=30, tolerance=0)
    model.fit(NILE, by=em)
    assert_close(em.history[-1], best, rtol=0, atol=1e-6)


def test_a_start_that_is_not_settled_is_named():
    model = ss.linear_gaussian(state=2, observed=1, initial="diffuse")
    with pytest.raises(ss.StatespanError, match="too short to settle"):
        model.fit(torch.zeros(1, 1), by=ss.EM())


def test_one_long_and_one_short_series_count_by_their_weights():
    torch.manual_seed(0)
    y = [normal(8, 1), normal(1, 1), normal(8, 1)]
    model = ss.linear_gaussian(state=1, observed=1, seed=0)
    again = ss.linear_gaussian(state=1, observed=1, seed=0)
    model.fit(y, by=ss.EM(iterations=2), weights=[2.0, 1.0, 0.0])
    again.fit([y[0], y[0], y[1]], by=ss.EM(iterations=2))
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert_close(a, b)
