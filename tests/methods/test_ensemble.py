"""The ensemble Kalman filter: Kalman's where linear and large, the printed transform, Lorenz's weather, wide states."""

import math

import pytest
import torch
from torch.testing import assert_close

import statespan as ss
from statespan.belief import Particles
from statespan.methods.ensemble import taper
from statespan.methods.particle import Observed


def linear() -> ss.StateSpace:
    return ss.linear_gaussian(
        dynamics=[[0.8, 0.3], [-0.2, 0.7]],
        state_noise=[[0.5, 0.1], [0.1, 0.3]],
        observation=[[1.0, 0.5], [0.0, 1.0], [0.3, -0.4]],
        observation_noise=[[0.4, 0.1, 0.0], [0.1, 0.5, 0.05], [0.0, 0.05, 0.3]],
        initial_mean=[0.5, -1.0],
    )


class Lorenz(ss.Part):
    """Lorenz's model of 1996 of waves on a circle, a step of Runge and Kutta."""

    def __init__(self, step: float = 0.05, force: float = 8.0):
        super().__init__()
        self.step, self.force = step, force

    def rate(self, z: torch.Tensor) -> torch.Tensor:
        return (z.roll(-1, -1) - z.roll(2, -1)) * z.roll(1, -1) - z + self.force

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        h = self.step
        a = self.rate(z)
        b = self.rate(z + h / 2 * a)
        c = self.rate(z + h / 2 * b)
        return z + h / 6 * (a + 2 * b + 2 * c + self.rate(z + h * c))


class Every(ss.Part):
    """One coordinate in n."""

    def __init__(self, n: int):
        super().__init__()
        self.n = n

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z[..., :: self.n]


def weather(every: int = 1) -> ss.StateSpace:
    start = ss.IndependentStart(40, deviation=3.6)
    with torch.no_grad():
        start.mean.fill_(2.3)
    move = ss.IndependentGaussian(Lorenz(), 40, deviation=0.01)
    return ss.StateSpace(start, move, ss.IndependentGaussian(Every(every), 40 // every)).double()


def test_a_large_ensemble_of_a_linear_model_gets_kalmans_answers():
    model = linear()
    y = model.sample(None, 8, seed=1)[1]
    y[3], y[5, 1] = math.nan, math.nan
    torch.manual_seed(0)
    with torch.no_grad():
        for verb in (model.filter, model.smooth):
            exact, errors = verb(y), []
            for members in (50, 3000):
                found = verb(y, method=ss.EnsembleKalman(members))
                assert not found.exact
                errors.append(float((found.mean - exact.mean).square().mean().sqrt()))
            assert errors[1] < 0.03 < errors[0]  # one over the root of the members
            assert_close(found.covariance, exact.covariance, rtol=0, atol=0.05)
            assert_close(found.log_prob, exact.log_prob, rtol=0, atol=0.3)
        paths = model.sample_posterior(y, n=150, seed=2, method=ss.EnsembleKalman(60))
        assert_close(paths.mean(0), exact.mean, rtol=0, atol=0.25)
        assert_close(paths.var(0), exact.covariance.diagonal(dim1=-2, dim2=-1), rtol=0.5, atol=0.02)


def test_the_transform_is_kalmans_update_of_the_ensembles_own_moments():
    """Whatever the members: their mean, covariance and log p are those of Kalman's formulas, exactly."""
    model, z = linear(), torch.randn(2, 7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y, there = torch.tensor([[0.4, -0.2, 1.0], [0.1, 0.0, 2.0]]).double(), torch.tensor([[1, 1, 1], [1, 0, 1]]).bool()
    before = Particles(z, torch.zeros(2, 7).double(), torch.zeros(2, 7).long())
    for method in (ss.EnsembleKalman(7), ss.EnsembleKalman(7, localisation=torch.ones(2, 3))):
        after, log_prob = method.update(model, before, Observed(y, None, there))
        for b in range(2):
            keep = there[b]
            emission = model.emission
            c, d, r = (
                emission.matrix[keep].detach(),
                emission.offset[keep].detach(),
                emission.covariance[keep][:, keep].detach(),
            )
            mean, p = z[b].mean(0), torch.cov(z[b].T)
            law = torch.distributions.MultivariateNormal(c @ mean + d, c @ p @ c.T + r)
            gain = p @ c.T @ torch.linalg.inv(law.covariance_matrix)
            size = {"rtol": 0.0, "atol": 1e-12}
            assert_close(after.z[b].mean(0), mean + gain @ (y[b, keep] - law.mean), **size)
            assert_close(torch.cov(after.z[b].T), p - gain @ c @ p, **size)
            assert_close(log_prob[b], law.log_prob(y[b, keep]), **size)


def test_lorenz_96_is_followed_and_the_smoother_sees_more():
    """Forty states of which all or half are observed with noise of 1, by forty members, or by ten near by."""
    place = torch.arange(40.0)
    apart = (place[:, None] - place[::2]).abs()
    near = taper(torch.minimum(apart, 40 - apart), radius=8.0)
    torch.manual_seed(1)
    for every, length, method, most in (
        (1, 70, ss.EnsembleKalman(40, inflation=1.02), 0.4),
        (2, 90, ss.EnsembleKalman(10, inflation=1.05, localisation=near), 0.9),
    ):
        model = weather(every)
        z, y = model.sample(None, length, seed=3)
        error = lambda p: float((p.mean[:, 30:] - z[30:]).square().mean().sqrt())  # noqa: B023, E731
        many = y.expand(4, -1, -1)
        filtered, smoothed = model.filter(many, method=method), model.smooth(many, method=method)
        climate = float(z.std())
        assert error(filtered) < most and climate > 3
        assert error(smoothed) < error(filtered)
    assert "covariance" not in smoothed.values  # wider than the ensemble


def test_a_wide_state_takes_no_square_of_it():
    """Twenty thousand states: a covariance would take 3 GB."""
    size = 20_000
    move = ss.IndependentGaussian(lambda z: 0.9 * z.roll(1, -1), size, deviation=0.1)
    model = ss.StateSpace(
        ss.IndependentStart(size), move, ss.IndependentGaussian(lambda z: z[..., ::2000], 10, deviation=0.5)
    )
    known = model.smooth(torch.randn(4, 10), method=ss.EnsembleKalman(8))
    assert known.mean.shape == (4, size) and known.samples.shape == (4, 8, size) and known.mean.isfinite().all()
    assert model.forecast(torch.randn(2, 10), 2, samples=3, method=ss.EnsembleKalman(8)).mean.shape == (2, 10)


def test_ragged_batches_streams_inputs_and_files(tmp_path):
    model, method = weather(4), ss.EnsembleKalman(30, inflation=1.02)
    y = model.sample(3, 6, seed=5)[1]
    y[0, 2], y[1, 3, 1] = math.nan, math.nan
    rows = [y[0], y[1, :4], y[2, :1]]
    torch.manual_seed(0)
    found = model.smooth(rows, method=method)
    assert [len(m) for m in found.mean] == [6, 4, 1] and all(bool(m.isfinite().all()) for m in found.mean)
    filtered = model.filter(rows, method=method)
    assert_close(filtered.log_prob, torch.stack([s.sum() for s in filtered.steps]))
    stream = model.stream(method=method)
    for row in y[0]:
        stream.update(row)
    assert stream.log_prob.isfinite() and stream.state.point().shape == (1, 40)
    filled = model.impute(y[0], method=method)
    assert filled.isfinite().all() and model.decode(y[0], method=method).shape == (6, 40)
    model.save(tmp_path / "weather.safetensors")
    again = ss.load(tmp_path / "weather.safetensors")
    assert torch.equal(again.transition.deviation, model.transition.deviation)
    driven = ss.linear_gaussian(state=1, observed=1, inputs=1, seed=0)
    u = torch.randn(5, 1)
    assert driven.filter(torch.randn(5, 1), inputs=u, method=ss.EnsembleKalman(10)).mean.shape == (5, 1)


def test_the_taper_is_a_correlation():
    """Gaspari and Cohn: one at zero, none from the radius on, smooth between, positive definite on a line."""
    x = torch.linspace(0, 3, 301, dtype=torch.float64)
    weight = taper(x, 2.0)
    assert weight[0] == 1 and bool((weight[200:] == 0).all()) and bool((weight.diff() <= 1e-12).all())
    assert weight.diff().diff().abs().max() < 1e-3
    assert torch.linalg.eigvalsh(taper((x[:, None] - x).abs(), 2.0)).min() > -1e-9


def test_what_is_refused():
    for wrong in (
        lambda: ss.EnsembleKalman(1),
        lambda: ss.EnsembleKalman(inflation=0.0),
        lambda: ss.EnsembleKalman(localisation=torch.full((2, 3), 1.5)),
        lambda: taper(torch.ones(2), 0.0),
        lambda: ss.IndependentGaussian(torch.sin, 3, deviation=[1.0, 2.0]),
        lambda: ss.IndependentStart(3, deviation=-1.0),
    ):
        with pytest.raises(ss.StatespanError):
            wrong()
    model = linear()
    y = model.sample(None, 3, seed=0)[1]
    with pytest.raises(ss.StatespanError, match="states by observed"):
        model.log_prob(y, method=ss.EnsembleKalman(5, localisation=torch.ones(3, 3)))
    with pytest.raises(ss.StatespanError, match="without pairs"):
        model.smooth(y, pairs=True, method=ss.EnsembleKalman(5))
    with torch.no_grad():
        model.emission.scale[2] = 0.0
    with pytest.raises(ss.StatespanError, match="singular"):
        model.log_prob(y, method=ss.EnsembleKalman(5))
    with pytest.raises(ss.StatespanError, match="does not accept"):
        ss.hmm(2, ss.Poisson(), seed=0).log_prob([1, 2], method=ss.EnsembleKalman(5))
