"""The Kalman filter against dense joint normals, singular noise, float32, and pykalman."""

import math

import numpy as np
import pykalman
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import statespan as ss
from oracles import condition, joint_normal

TIGHT = {"rtol": 0.0, "atol": 1e-9}


def covariance(dim: int, rank: int | None = None) -> torch.Tensor:
    root = torch.randn(dim, dim if rank is None else rank, dtype=torch.float64)
    return root @ root.T


def random_model(state: int, observed: int, q: int | None = None, r: int | None = None, p: int | None = None):
    """Random matrices; q, r and p are the ranks of the three covariances."""
    model = ss.linear_gaussian(
        dynamics=torch.randn(state, state).double() / (state + 1) ** 0.5,
        state_noise=covariance(state, q),
        observation=torch.randn(observed, state),
        observation_noise=covariance(observed, r),
        initial_mean=torch.randn(state),
        initial_covariance=covariance(state, p),
    )
    for part in (model.transition, model.emission):
        torch.nn.init.normal_(part.offset)
    return model


def check(model: ss.StateSpace, y: torch.Tensor, atol: float = 1e-9) -> None:
    """Likelihood, filter, smoother and imputation of one sequence against the dense joint."""
    length, state = len(y), len(model.transition.matrix)
    seen, value = ~y.isnan(), y.nan_to_num()
    size = {"rtol": 0.0, "atol": atol}
    with torch.no_grad():
        joint = joint_normal(model, length)
        log, mean, cov = condition(joint, value, seen)
        smoothed, filtered = model.smooth(y), model.filter(y)
        assert_close(smoothed.log_prob, log, **size)
        assert_close(smoothed.mean.flatten(), mean[: length * state], **size)
        for t in range(length):
            at = slice(t * state, (t + 1) * state)
            assert_close(smoothed.covariance[t], cov[at, at], **size)
            past = condition(joint_normal(model, t + 1), value[: t + 1], seen[: t + 1])
            assert_close(filtered.mean[t], past[1][at], **size)
            assert_close(filtered.covariance[t], past[2][at, at], **size)
        filled = torch.where(seen, y, mean[length * state :].view(length, -1))
        assert_close(model.impute(y), filled, **size)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.floats(0, 0.6), st.integers(0, 2**31))
def test_random_models_with_missing_entries(state: int, observed: int, length: int, holes: float, seed: int):
    torch.manual_seed(seed)
    model = random_model(state, observed)
    y = torch.randn(length, observed).double() * 3
    check(model, y.masked_fill(torch.rand(length, observed) < holes, math.nan))


@pytest.mark.parametrize("ranks", [(1, 3, 3), (3, 1, 3), (3, 3, 0), (1, 1, 3), (0, 3, 3), (1, 1, 1), (0, 2, 2)])
@pytest.mark.parametrize("holes", [0.0, 0.3])
def test_singular_noise(ranks: tuple[int, int, int], holes: float):
    q, r, p = ranks
    for _ in range(5):
        model = random_model(3, 3, q, r, p)
        y = model.sample(None, 4, seed=None)[1]
        y = y.masked_fill(torch.rand(4, 3) < holes, math.nan)
        joint = joint_normal(model, 4)
        at = torch.cat([torch.zeros(12, dtype=torch.bool), ~y.isnan().flatten()])
        if float(torch.linalg.eigvalsh(joint.covariance[at][:, at].detach())[0]) < 1e-6:
            continue  # the data themselves have no density
        check(model, y, atol=1e-7)


def test_an_observation_without_noise():
    model = ss.linear_gaussian(
        dynamics=[[0.9, 0.1], [0.0, 0.8]],
        state_noise=[[0.3, 0.0], [0.0, 0.2]],
        observation=[[1.0, 0.0]],
        observation_noise=[[0.0]],
    )
    y = model.sample(None, 5, seed=0)[1]
    check(model, y)
    assert_close(model.filter(y).mean[:, 0], y[:, 0])
    states, both = model.sample(3, 5, seed=1)
    assert bool(both.isfinite().all())
    assert_close(both[..., 0], states[..., 0])


def test_a_lag_whose_move_is_singular_is_smoothed_right():
    """z = (x_t, x_{t-1}) from a certain start: the predicted covariance has no inverse."""
    model = ss.linear_gaussian(
        dynamics=[[0.5, 0.3], [1.0, 0.0]],
        state_noise=[[1.0, 0.0], [0.0, 0.0]],
        observation=[[1.0, 0.5]],
        observation_noise=[[0.5]],
        initial_covariance=[[1.0, 0.0], [0.0, 0.0]],
    )
    y = model.sample(None, 6, seed=0)[1]
    y[2] = math.nan
    check(model, y)
    forgetful = ss.linear_gaussian(
        dynamics=[[0.0]],
        state_noise=[[0.0]],
        observation=[[1.0]],
        observation_noise=[[1.0]],
        initial_covariance=[[2.0]],
    )
    check(forgetful, torch.tensor([[1.0], [0.3]]).double())


def test_float32_keeps_its_digits():
    """A long run with little noise: the plain covariance update would lose its sign."""
    model = ss.linear_gaussian(
        dynamics=[[1.0, 1.0], [0.0, 1.0]],
        state_noise=[[1e-6, 0.0], [0.0, 1e-6]],
        observation=[[1.0, 0.0]],
        observation_noise=[[1e-4]],
        initial_covariance=[[1e4, 0.0], [0.0, 1e4]],
    )
    y = model.sample(None, 300, seed=0)[1]
    y = y - y[0]
    truth = model.filter(y)
    found = model.float().filter(y.float())
    assert_close(found.covariance.double(), truth.covariance, rtol=1e-3, atol=1e-7)
    assert bool((torch.linalg.eigvalsh(found.covariance.double()) > 0).all())


def test_pykalman_agrees():
    model = random_model(2, 2)
    y = model.sample(None, 30, seed=0)[1]
    y[3] = math.nan
    y[10] = math.nan
    numpy = lambda x: x.detach().numpy()  # noqa: E731
    peer = pykalman.KalmanFilter(
        transition_matrices=numpy(model.transition.matrix),
        observation_matrices=numpy(model.emission.matrix),
        transition_covariance=numpy(model.transition.covariance),
        observation_covariance=numpy(model.emission.covariance),
        transition_offsets=numpy(model.transition.offset),
        observation_offsets=numpy(model.emission.offset),
        initial_state_mean=numpy(model.initial.mean),
        initial_state_covariance=numpy(model.initial.scale @ model.initial.scale.T),
    )
    masked = np.ma.masked_invalid(y.numpy())
    mean, cov = peer.filter(masked)
    filtered, smoothed = model.filter(y), model.smooth(y)
    assert_close(filtered.mean.numpy(), mean, rtol=1e-8, atol=1e-8)
    assert_close(filtered.covariance.numpy(), cov, rtol=1e-8, atol=1e-8)
    mean, cov = peer.smooth(masked)
    assert_close(smoothed.mean.numpy(), mean, rtol=1e-8, atol=1e-8)
    assert_close(smoothed.covariance.numpy(), cov, rtol=1e-8, atol=1e-8)
    assert_close(smoothed.log_prob.item(), peer.loglikelihood(masked), rtol=1e-9, atol=1e-8)


def test_given_parameters_are_read_back():
    p = covariance(2)
    model = ss.linear_gaussian(
        dynamics=np.eye(2) * 0.5,
        state_noise=p,
        observation=[[1, 2]],
        observation_noise=[[0.25]],
        initial_mean=[1, 2],
        initial_covariance=p,
    )
    assert_close(model.transition.covariance.detach(), p)
    assert_close(model.emission.covariance.detach(), torch.tensor([[0.25]]).double())
    assert_close(model.initial.mean.tolist(), [1.0, 2.0])
    assert model.emission.matrix.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "needs state=D, or a matrix"),
        ({"state": 2}, "needs observed=E"),
        ({"state": 2, "dynamics": [[1.0]], "observed": 1}, "sizes differ: state= 2, dynamics 1"),
        ({"dynamics": [[1.0, 2.0]], "observed": 1}, r"dynamics=.* \(1, 2\); it must be square"),
        ({"dynamics": [1.0], "observed": 1}, "dynamics=.* 1 dimensions; give a matrix"),
        ({"state": 1, "observed": 1, "state_noise": [[-1.0]]}, "state_noise=.* negative eigenvalue -1"),
        ({"state": 2, "observed": 1, "state_noise": [[1.0, 0.5], [0.0, 1.0]]}, "state_noise=.* not symmetric"),
        ({"state": 2, "observed": 1, "initial_mean": [[1.0, 2.0]]}, "initial_mean=.* 2 dimensions; give a vector"),
    ],
)
def test_bad_parameters_are_named(options: dict, words: str):
    with pytest.raises(ss.StatespanError, match=words):
        ss.linear_gaussian(**options)


def test_decode_is_the_smoothed_mean():
    model = random_model(2, 1)
    y = model.sample(None, 4, seed=0)[1]
    assert_close(model.decode(y), model.smooth(y).mean)
    with pytest.raises(TypeError, match="one mode"):
        model.decode(y, k=2)


def test_a_scale_whose_diagonal_went_negative_is_the_same_covariance():
    model = random_model(2, 2)
    y = model.sample(None, 4, seed=0)[1]
    before = model.log_prob(y), model.log_prob(y, method=ss.ParticleFilter(2000))
    with torch.no_grad():
        for part in (model.initial, model.transition, model.emission):
            part.scale[:, 1] *= -1
    assert_close(model.log_prob(y), before[0])
    assert bool(model.log_prob(y, method=ss.ParticleFilter(2000)).isfinite())


def test_intervals_of_a_forecast_are_exact():
    """By formula, from the dense joint's variances: no sampling error."""
    model = random_model(2, 2)
    y = model.sample(3, 4, seed=0)[1]
    low, high = model.forecast(y, steps=3, samples=2).quantile([0.025, 0.975])
    assert low.shape == (3, 3, 2)
    for i in range(3):
        joint = joint_normal(model, 7)
        seen = torch.arange(7)[:, None].expand(7, 2) < 4
        _, mean, cov = condition(joint, torch.cat([y[i], y.new_zeros(3, 2)]), seen)
        centre, spread = mean[-6:].view(3, 2).detach(), cov.diagonal()[-6:].view(3, 2).sqrt().detach()
        assert_close(low[i], centre - 1.959963984540054 * spread, **TIGHT)
        assert_close(high[i], centre + 1.959963984540054 * spread, **TIGHT)
    one = model.forecast(y[0], steps=3, samples=2).quantile(0.5)
    assert_close(one, model.forecast(y[0], steps=3, samples=2).mean)
