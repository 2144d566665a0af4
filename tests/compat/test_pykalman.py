"""The drop-in against pykalman itself: same parameters, same answers; same start, same EM, iteration by iteration.

pykalman's distribution (wheel and sdist of 0.11.2) holds no tests of its own, so there are none to redirect; but it has
a robot's data with the states, covariances and log-likelihoods that another program, in MATLAB, found.
"""

import inspect
import pickle
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch

import statespan as ss

theirs = pytest.importorskip("pykalman")

from statespan.compat import pykalman as ours  # noqa: E402
from statespan.compat.pykalman.standard import RANKS  # noqa: E402
from statespan.method import run  # noqa: E402
from statespan.methods.linearised import Linearised  # noqa: E402
from statespan.verbs import ask  # noqa: E402

NAMES = ["KalmanFilter", "UnscentedKalmanFilter", "AdditiveUnscentedKalmanFilter"]


def covariance(rng, n):
    a = rng.randn(n, n)
    return 0.3 * a @ a.T + 0.05 * np.eye(n)


def close(found, expected, tolerance=1e-8):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def linear(seed, varying=True):
    """Both filters with some parameters given, some changing in time, and observations with masks."""
    rng = np.random.RandomState(seed)
    state, observed, length = rng.randint(1, 5), rng.randint(1, 4), 12

    def perhaps(make, steps):
        return np.stack([make() for _ in range(steps)]) if varying and rng.rand() < 0.5 else make()

    given = {
        "transition_matrices": perhaps(lambda: 0.5 * rng.randn(state, state), length - 1),
        "observation_matrices": perhaps(lambda: rng.randn(observed, state), length),
        "transition_offsets": perhaps(lambda: rng.randn(state), length - 1),
        "observation_offsets": perhaps(lambda: rng.randn(observed), length),
        "transition_covariance": covariance(rng, state),
        "observation_covariance": covariance(rng, observed),
        "initial_state_mean": rng.randn(state),
        "initial_state_covariance": covariance(rng, state),
    }
    given = {name: x for name, x in given.items() if rng.rand() < 0.8} | {"n_dim_state": state, "n_dim_obs": observed}
    both = ours.KalmanFilter(**given), theirs.KalmanFilter(**given)
    z = np.ma.array(both[1].sample(length, random_state=seed)[1])
    z[[2, 7], 0] = np.ma.masked
    z[-1] = np.ma.masked
    return *both, z, rng


@pytest.mark.parametrize("name", NAMES)
def test_arguments_and_methods_have_pykalmans_names(name):
    mine, other = getattr(ours, name), getattr(theirs, name)
    assert list(inspect.signature(mine).parameters) == list(inspect.signature(other).parameters)
    for method, function in inspect.getmembers(other, inspect.isfunction):
        if not method.startswith("_"):
            assert list(inspect.signature(getattr(mine, method)).parameters) == list(
                inspect.signature(function).parameters
            ), method
    assert set(vars(other())) - {"_em_vars"} == set(vars(mine()))
    for attribute, value in vars(other()).items():
        if attribute in vars(mine()):
            assert getattr(mine(), attribute) == value


@pytest.mark.parametrize("seed", range(12))
def test_filter_smooth_likelihood_and_draws(seed):
    mine, other, z, rng = linear(seed)
    close(mine.sample(6, random_state=1), other.sample(6, random_state=1), 1e-12)
    close(mine.filter(z), other.filter(z))
    close(mine.smooth(z), other.smooth(z))
    assert mine.loglikelihood(z) == pytest.approx(other.loglikelihood(z), rel=1e-10)
    close(mine.smooth(z.filled(np.nan)), other.smooth(z))
    given = other._initialize_parameters()
    close(mine._initialize_parameters(), given, 0)
    keys = ["transition_matrix", "transition_offset", "observation_matrix", "observation_offset"]
    values = [x if x.ndim == rank else x[0] for x, rank in zip(given[:2] + given[3:5], (2, 1, 2, 1), strict=True)]
    mean, spread = rng.randn(mine.n_dim_state), covariance(rng, mine.n_dim_state)
    for y in (None, np.asarray(z.data[0])):
        now = dict(zip(keys, values, strict=True))
        close(mine.filter_update(mean, spread, y, **now), other.filter_update(mean, spread, y, **now))


@pytest.mark.parametrize("em_vars", [None, "all", ["transition_matrices", "observation_offsets"]])
@pytest.mark.parametrize("seed", range(4))
def test_em_iterate_by_iterate(seed, em_vars):
    mine, other, z, _ = linear(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what changes in time and is fitted is constant afterwards
        for _ in range(4):
            assert mine.em(z, n_iter=1, em_vars=em_vars) is mine
            other.em(z, n_iter=1, em_vars=em_vars)
            close([getattr(mine, n) for n in RANKS], [getattr(other, n) for n in RANKS])


def test_em_warns_as_pykalman_does_and_climbs():
    mine, _, z, _ = linear(0, varying=False)
    matrices = np.stack([0.5 * np.eye(mine.n_dim_state)] * 11)
    mine.transition_matrices, mine.em_vars = matrices, ["transition_matrices"]
    with pytest.warns(UserWarning, match="transition_matrices has 3 dimensions now"):
        mine.em(z, n_iter=1)
    values = [mine.em(z, n_iter=1, em_vars="all").loglikelihood(z) for _ in range(10)]
    assert all(a <= b + 1e-9 for a, b in pairwise(values))
    with pytest.raises(ss.StatespanError, match="'covariances' is no parameter"):
        mine.em(z, em_vars=["covariances"])


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # pykalman leaves its own open
def test_the_robot_of_pykalmans_data():
    data = pytest.importorskip("pykalman.datasets").load_robot()
    means = data.transition_offsets, data.observation_offset, data.initial_state_mean, data.initial_state_covariance
    matrices = data.transition_matrix, data.observation_matrix
    kf = ours.KalmanFilter(*matrices, data.transition_covariance, data.observation_covariance, *means)
    mean, spread = kf.filter(data.observations)
    np.testing.assert_allclose(mean[:500], data.filtered_state_means[:500], atol=1e-7)
    np.testing.assert_allclose(spread[:500], data.filtered_state_covariances[:500], atol=1e-7)
    np.testing.assert_allclose(kf.smooth(data.observations)[0], data.smoothed_state_means, atol=1e-7)
    online = mean[10], spread[10]
    for t in range(10, 20):
        online = kf.filter_update(*online, data.observations[t + 1], transition_offset=data.transition_offsets[t])
    close(online, (mean[20], spread[20]))
    start = data.initial_transition_covariance, data.initial_observation_covariance
    kf = ours.KalmanFilter(*matrices, *start, *means, em_vars=["transition_covariance", "observation_covariance"])
    found = []
    for _ in range(5):
        found.append(kf.loglikelihood(data.observations))
        kf.em(data.observations, n_iter=1)
    assert found == pytest.approx(np.ravel(data.loglikelihoods)[:5].tolist(), rel=1e-9)
    assert pickle.loads(pickle.dumps(kf)).loglikelihood(data.observations) == kf.loglikelihood(data.observations)


def unscented(name, seed):
    rng = np.random.RandomState(seed)
    state, observed = rng.randint(1, 4), rng.randint(1, 3)
    a, c = 0.7 * rng.randn(state, state), rng.randn(observed, state)
    functions = {
        "AdditiveUnscentedKalmanFilter": (lambda x: a @ np.sin(x) + 0.1, lambda x: c @ x + 0.2 * x[0] ** 2),
        "UnscentedKalmanFilter": (
            lambda x, w: a @ np.sin(x) + w * (1 + 0.3 * x),
            lambda x, v: c @ np.tanh(x) + v * (1 + 0.2 * x[0]),
        ),
    }
    given = [covariance(rng, state), covariance(rng, observed), rng.randn(state), covariance(rng, state)]
    mine, other = (getattr(module, name)(*functions[name], *given) for module in (ours, theirs))
    return mine, other, rng


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("seed", range(5))
def test_unscented(name, seed):
    mine, other, rng = unscented(name, seed)
    z = other.sample(7, random_state=1)[1]
    np.testing.assert_allclose(mine.sample(7, random_state=1)[1], z, atol=1e-12)
    z[3] = np.ma.masked
    close(mine.filter(z), other.filter(z))
    close(mine.smooth(z), other.smooth(z))
    mean, spread = rng.randn(mine.n_dim_state), covariance(rng, mine.n_dim_state)
    for y in (None, z[0]):
        close(mine.filter_update(mean, spread, y), other.filter_update(mean, spread, y))


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_series_in_numpy_is_the_scan(name):
    """With a gap, noise that is singular, after a belief; and what is no covariance is refused by both."""
    mine, _, rng = unscented(name, 5)
    given = mine._initialize_parameters()
    flat = np.outer(*[rng.randn(mine.n_dim_state)] * 2)
    model, points = mine._model(given._replace(transition_covariance=flat), 8), mine._points()
    y = torch.from_numpy(rng.randn(8, mine.n_dim_obs))
    y[3] = torch.nan
    data, _ = ask(model, y, inputs=torch.arange(8.0).double())
    belief = None
    for _ in range(2):
        keep = ("filtered", "last", "log_prob")
        fast, slow = (run(model, Linearised(points), data, belief, keep, kernel=k) for k in (True, False))
        close([fast.log_prob], [slow.log_prob])
        for one, other in ((fast.filtered, slow.filtered), (fast.last, slow.last)):
            close(one.summary().values(), other.summary().values())
        belief = slow.last
    bent = getattr(ours, name)(lambda x, *w: -np.full(5, (x**2).sum()), n_dim_state=5, n_dim_obs=5)
    model, y = bent._model(bent._initialize_parameters(), 3), torch.ones(3, bent.n_dim_obs)
    data, _ = ask(model, y, inputs=torch.arange(3.0))
    for k in (True, False):
        with pytest.raises(ss.StatespanError, match="indefinite covariance for this function of"):
            run(model, Linearised(bent._points()), data, kernel=k)


def test_where_pykalman_errs():
    """Covariances that change in time, one row of two columns, functions of each step, nothing to learn from."""
    spread = np.stack([np.eye(1) * k for k in (1.0, 4.0, 9.0)])
    kf = ours.KalmanFilter(observation_covariance=spread)
    model = ours.from_pykalman(kf)
    y = torch.tensor([0.3, -0.1, 2.0]).double()
    joint = torch.distributions.MultivariateNormal(
        torch.zeros(3).double(),
        torch.tensor([[1.0, 1, 1], [1, 2, 2], [1, 2, 3]]).double() + torch.diag(torch.tensor([1.0, 4, 9]).double()),
    )
    assert kf.loglikelihood(y.numpy()) == pytest.approx(float(joint.log_prob(y)))
    assert float(model.log_prob(y, inputs=range(3)).detach()) == pytest.approx(float(joint.log_prob(y)))
    two = ours.KalmanFilter(n_dim_state=2, n_dim_obs=2)
    assert two.filter([[1.0, 2.0]])[0].shape == (1, 2)
    grow = ours.AdditiveUnscentedKalmanFilter([lambda x: x + 1, lambda x: x + 10], random_state=0)
    states = grow.filter([np.nan] * 3)[0]
    assert states[:, 0].tolist() == pytest.approx([0.0, 1.0, 11.0])
    assert ours.KalmanFilter().em([np.nan, np.nan], n_iter=2, em_vars="all").observation_covariance.item() == 1.0


def test_taking_over():
    _, other, z, _ = linear(3, varying=False)
    other.em(z, n_iter=3)
    model = ours.from_pykalman(other)
    rows = z.filled(np.nan)
    assert float(model.log_prob(rows).detach()) == pytest.approx(other.loglikelihood(z))
    free = {name for name, p in model.named_parameters() if p.requires_grad}
    assert free == {"transition.scale", "emission.scale", "initial.mean", "initial.scale"}
    other.em(z, n_iter=2)
    model.fit(rows, by=ss.EM(iterations=2, tolerance=0))
    close([model.transition.covariance.detach()], [other.transition_covariance])
    square = ours.AdditiveUnscentedKalmanFilter(lambda x: 0.9 * x, lambda x: x**2)
    model = ours.from_pykalman(square)
    assert model.forecast([0.1, 0.2], steps=2, inputs=range(2), future=[[2.0], [3.0]]).mean.shape == (2, 1)
    with pytest.raises(ss.StatespanError, match="UnscentedKalmanFilter cannot be taken over"):
        ours.from_pykalman(ours.UnscentedKalmanFilter())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ours.KalmanFilter(np.eye(2), np.eye(3)), "n_dim_state: the parameters' shapes do not agree"),
        (lambda: ours.KalmanFilter(transition_covariance=[[-1.0]]).filter([1.0]), "transition_covariance has the neg"),
        (lambda: ours.KalmanFilter(np.ones((2, 1, 1))).filter([1.0] * 5), "transition_matrices has 2 entries"),
        (lambda: ours.KalmanFilter(np.ones((2, 1, 1))).filter_update([0.0], [[1.0]]), "is not constant"),
        (lambda: ours.KalmanFilter(n_dim_obs=2).filter(np.ones((4, 3))), r"the observations are \(4, 3\)"),
        (lambda: ours.AdditiveUnscentedKalmanFilter([np.sin] * 2).smooth([0.0] * 5), "2 functions|3 functions"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ss.StatespanError, match=words):
        call()
