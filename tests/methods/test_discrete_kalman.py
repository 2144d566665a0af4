"""Counts, successes and symbols of a normal state: Kalman's where it must be, integrals, particles, the mode."""

import itertools
import math

import pytest
import torch
from torch.distributions import Distribution, Normal
from torch.testing import assert_close

import statespan as ss
from statespan.parts.laws import CoordinateLaw
from statespan.sequences import Support

TIGHT = {"rtol": 0.0, "atol": 1e-9}
LAWS = {"poisson": None, "bernoulli": None, "binomial": 5, "negative binomial": None, "categorical": None}
FINE, ROUGH = ss.LaplaceApproximation(25), ss.LaplaceApproximation(1)


class NormalLaw(ss.Part, CoordinateLaw):
    """Numbers about eta with variance one half: what every update gets exactly."""

    support = Support(lambda x, there: torch.zeros_like(there), "numbers")

    def terms(self, eta: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return -((y - eta) ** 2), 2 * (y - eta), torch.full_like(y - eta, 2.0)

    def ways(self, y: torch.Tensor) -> torch.Tensor:
        return torch.full_like(y, -0.5 * math.log(math.pi))

    def mean_and_variance(self, eta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return eta, torch.full_like(eta, 0.5)

    def each(self, eta: torch.Tensor) -> Distribution:
        return Normal(eta, 0.5**0.5)


def predictor(state: int, width: int, **more) -> ss.StateSpace:
    torch.manual_seed(0)
    turn = torch.linalg.qr(torch.randn(state, state).double())[0]
    noise = 0.2 * torch.eye(state).double() + 0.05
    return ss.linear_gaussian(
        dynamics=0.9 * turn, state_noise=noise, initial_covariance=0.5 * noise, observed=width, seed=1, **more
    )


UPDATES = {"laplace": ROUGH, "quadrature": ss.LaplaceApproximation(), "moments": ss.ConditionalMoments()}


@pytest.mark.parametrize("state,width", [(1, 1), (3, 1), (3, 2), (2, 4)])
@pytest.mark.parametrize("name", UPDATES)
def test_a_normal_law_gets_kalmans_answers(name: str, state: int, width: int):
    linear = predictor(state, width, observation_noise=0.5 * torch.eye(width))
    model = ss.generalised_linear(linear, NormalLaw())
    assert isinstance(ss.method_for(model), ss.DiscreteKalman)
    y = linear.sample(3, 6, seed=0)[1]
    y[0, 2], y[1, 3, 0] = math.nan, math.nan
    y = [y[0], y[1, :5], y[2, :1]]
    for method in (ss.DiscreteKalman(UPDATES[name]), ss.DiscreteKalman(UPDATES[name], passes=1)):
        assert_close(model.log_prob(y, method=method), linear.log_prob(y), **TIGHT)
        for verb in (lambda m, **k: m.filter(y, **k), lambda m, **k: m.smooth(y, pairs=True, **k)):
            exact, found = verb(linear), verb(model, method=method)
            assert not found.exact
            for key in exact.values:
                assert_close(list(getattr(found, key)), list(getattr(exact, key)), **TIGHT)
    assert_close(model.decode(y), linear.decode(y), rtol=0, atol=1e-7)


def on_a_grid(model: ss.StateSpace, y: torch.Tensor, points: int = 401, reach: float = 8.0):
    """The exact filter of a state of one dimension by sums: log p, filtered means, smoothed means."""
    z = torch.linspace(-reach, reach, points, dtype=torch.float64)[:, None]
    width = float(z[1] - z[0])
    move = model.transition(z).log_prob(z[:, None]).exp() * width  # at rows: to, columns: from
    law = model.emission(z)
    seen = [torch.ones(points).double() if v.isnan().any() else law.log_prob(v).exp() for v in y]
    density, total, forward = model.initial((1,)).log_prob(z).exp() * width, 0.0, []
    for t, like in enumerate(seen):
        density = like * (move @ density if t else density)
        total, density = total + density.sum().log(), density / density.sum()
        forward.append(density)
    back, smoothed = torch.ones(points).double(), [forward[-1]]
    for t in range(len(y) - 2, -1, -1):
        back = move.T @ (seen[t + 1] * back)
        back = back / back.sum()
        smoothed.append(forward[t] * back / (forward[t] * back).sum())
    return total, torch.stack([f @ z[:, 0] for f in forward]), torch.stack([s @ z[:, 0] for s in smoothed[::-1]])


@pytest.mark.parametrize("name", [n for n in LAWS if n != "categorical"])
def test_against_a_numerical_integral(name: str):
    """One step is exact by quadrature; what is left later is that the filtered state is not normal."""
    model = ss.generalised_linear(predictor(1, 1), name, trials=LAWS[name])
    y = model.sample(None, 12, seed=3)[1]
    y[7] = math.nan
    with torch.no_grad():
        first, _, _ = on_a_grid(model, y[:1])
        assert_close(model.log_prob(y[:1], method=ss.DiscreteKalman(FINE)), first, rtol=0, atol=1e-7)
        truth, filtered, smoothed = on_a_grid(model, y)
        for update, most in ((ss.LaplaceApproximation(), 0.04), (ss.ConditionalMoments(), 0.2), (ROUGH, 0.4)):
            method = ss.DiscreteKalman(update)
            assert abs(model.log_prob(y, method=method) - truth) < most
            assert (model.filter(y, method=method).mean[:, 0] - filtered).abs().max() < most
            assert (model.smooth(y, method=method).mean[:, 0] - smoothed).abs().max() < most


@pytest.mark.parametrize("name,width", [("categorical", 3), ("poisson", 2), ("negative binomial", 1)])
def test_against_particles(name: str, width: int):
    model = ss.generalised_linear(predictor(2, width), name)
    y = model.sample(None, 14, seed=4)[1].double()
    y[5] = math.nan
    with torch.no_grad():
        many = y.expand(6, *y.shape)
        estimates = model.log_prob(many, method=ss.ParticleFilter(3000))
        truth = estimates.logsumexp(0) - math.log(6)
        error = estimates.std() / math.sqrt(6)
        assert abs(model.log_prob(y) - truth) < 0.03 + 4 * error
        assert abs(model.log_prob(y, method=ss.DiscreteKalman(ROUGH)) - truth) < 2


def test_probabilities_of_symbols_sum_to_one_as_near_as_the_quadrature_is():
    model = ss.generalised_linear(predictor(2, 3), "categorical")
    every = torch.tensor(list(itertools.product(range(3), repeat=3)))
    total = lambda order: model.log_prob(every, method=ss.DiscreteKalman(ss.LaplaceApproximation(order))).exp().sum()  # noqa: E731
    assert abs(total(9) - 1) < 3e-4
    assert 1e-3 < abs(total(1) - 1) < 0.2
    ahead = model.forecast(every[5], steps=2, samples=3000)
    assert not ahead.exact and ahead.probs.shape == (2, 3)
    longer = torch.cat([every[5].expand(3, 3), torch.arange(3)[:, None]], 1)
    assert_close(ahead.probs[0], (model.log_prob(longer) - model.log_prob(every[5])).exp().detach(), rtol=0, atol=0.02)


@pytest.mark.parametrize("name", LAWS)
def test_the_likeliest_path(name: str):
    """At it the joint density has no slope, as many passes of the smoother find too; a far one is reached."""
    model = ss.generalised_linear(predictor(2, 3), name, trials=LAWS[name])
    y = model.sample(3, 8, seed=5)[1].double()
    y[0, 2] = math.nan
    rows = [y[0], y[1, :5], y[2, :1]]
    for row, path in zip(rows, model.decode(rows), strict=True):
        path = path.clone().requires_grad_()
        joint = model.initial(()).log_prob(path[0]) + model.transition(path[:-1]).log_prob(path[1:]).sum()
        there = ~row.isnan().reshape(len(row), -1).any(-1)
        joint = joint + model.emission(path).log_prob(row.nan_to_num()).where(there, torch.zeros(())).sum()
        assert torch.autograd.grad(joint, path)[0].abs().max() < 1e-6
    passes = model.smooth(rows[0], method=ss.DiscreteKalman(passes=12)).mean
    assert_close(passes, model.decode(rows[0]), rtol=0, atol=1e-6)


def test_counts_far_from_what_was_expected():
    """Newton's steps are halved where they would leave what numbers can hold."""
    wide = ss.linear_gaussian(dynamics=[[1.0]], state_noise=[[1.0]], observation=[[1.0]], initial_covariance=[[100.0]])
    model = ss.generalised_linear(wide, "poisson")
    with torch.no_grad():
        model.initial.mean.fill_(-20.0)
    found = model.filter([5000, 0, 5000])
    assert_close(found.mean[0, 0].item(), math.log(5000), rtol=0, atol=0.02)
    assert found.log_prob.isfinite() and model.decode([5000, 0, 5000])[0, 0] > 8


def test_a_structural_series_of_counts_against_the_dense_laplace_approximation():
    """A diffuse level, season and regression, made wide; the passes end at the mode and curvature of the whole."""
    u = (torch.arange(14) > 8).double()[:, None]
    model = ss.generalised_linear(ss.level() + ss.seasonal(3) + ss.regression(1), "poisson", spread=3.0)
    with torch.no_grad():
        model.transition.each[0].size.fill_(0.3)
        model.transition.each[1].size.fill_(0.2)
    y = torch.tensor([3.0, 8, 1, 4, 9, 0, 5, 12, 2, 2, 4, 0, 3, 5])
    matrix, seen = model.transition.affine(None), model.emission.predictors(u)[0].detach()
    with torch.no_grad():
        gain = torch.zeros(4, 4 + 13 * matrix.scale.shape[1], dtype=torch.float64)
        gain[:, :4] = model.initial.gaussian(1).scale[0]
        states = []
        for t in range(14):
            if t:
                gain = matrix.matrix @ gain
                at = 4 + (t - 1) * matrix.scale.shape[1]
                gain[:, at : at + matrix.scale.shape[1]] += matrix.scale
            states.append(gain)
        way = torch.cat([c @ g for c, g in zip(seen, states, strict=True)])
        noise = torch.zeros(way.shape[1], dtype=torch.float64)
        for _ in range(60):
            rate = (way @ noise).exp()
            precision = way.T @ (rate[:, None] * way) + torch.eye(len(noise)).double()
            noise = noise + torch.linalg.solve(precision, way.T @ (y - rate) - noise)
        known = model.smooth(y, inputs=u, method=ss.DiscreteKalman(passes=12))
        for t in (0, 6, 13):
            assert_close(known.mean[t], states[t] @ noise, rtol=0, atol=1e-7)
            spread = states[t] @ torch.linalg.solve(precision, states[t].T)
            assert_close(known.covariance[t], spread, rtol=0, atol=1e-7)
    assert model.forecast(y, steps=3, inputs=u, future=u[-3:]).mean.shape == (3, 1)


def test_em_and_gradients_climb():
    for name in ("poisson", "negative binomial", "categorical"):
        truth = ss.generalised_linear(predictor(2, 4), name)
        y = [row[: 10 - 3 * i] for i, row in enumerate(truth.sample(2, 10, seed=6)[1].double())]
        y[0][3] = math.nan
        model = ss.generalised_linear(ss.linear_gaussian(state=2, observed=4, seed=8), name)
        by = ss.EM(iterations=3, tolerance=0)
        model.fit(y, by=by)
        assert all(b > a - 1e-3 for a, b in itertools.pairwise(by.history)), (name, by.history)
        assert by.history[-1] > by.history[0] + 0.3, name
    held = model.emission.matrix.clone()
    model.fit(y[1], by=ss.LBFGS(iterations=1), hold=("emission.matrix", "initial"))
    assert torch.equal(held, model.emission.matrix)


def test_em_ends_where_the_likelihood_is_flat():
    """Of one series of independent counts: the mean of log p's own slope in C and d is zero at EM's fixed point."""
    start = ss.linear_gaussian(dynamics=[[0.0]], state_noise=[[1.0]], observation=[[0.3]])
    model = ss.generalised_linear(start, "poisson")
    y = model.sample(40, 1, seed=7)[1]
    for part in (model.initial, model.transition):
        part.requires_grad_(False)
    model.fit(y, by=ss.EM(iterations=40, tolerance=0))
    for parameter in (model.emission.matrix, model.emission.offset):
        slope = torch.autograd.grad(model.log_prob(y).mean(), parameter)[0]
        assert slope.abs().max() < 2e-3


@pytest.mark.parametrize("state,width", [(3, 2), (2, 3)])
@pytest.mark.parametrize("name", UPDATES)
def test_the_gradient_is_the_slope(name: str, state: int, width: int):
    model = ss.generalised_linear(predictor(state, width), "negative binomial")
    y = model.sample(2, 4, seed=8)[1]
    y[0, 1] = math.nan
    method = ss.DiscreteKalman(UPDATES[name])
    way = [torch.randn_like(p) for p in model.parameters()]
    value = lambda: model.log_prob(y, method=method).sum()  # noqa: E731
    slopes = torch.autograd.grad(value(), list(model.parameters()))
    ends = []
    with torch.no_grad():
        for size in (1e-5, -2e-5):
            for p, w in zip(model.parameters(), way, strict=True):
                p += size * w
            ends.append(value())
    slope = sum((g * w).sum() for g, w in zip(slopes, way, strict=True))
    assert_close(slope, (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-6)


def test_streams_gaps_forecasts_and_files(tmp_path):
    model = ss.generalised_linear(predictor(2, 2), "binomial", trials=9)
    y = model.sample(3, 9, seed=9)[1]
    y[0, 3], y[0, 5, 1] = math.nan, math.nan
    stream = model.stream(lag=2)
    for row in y[0]:
        stream.update(row)
    whole = model.filter(y[0])
    assert_close(stream.log_prob, whole.log_prob, **TIGHT)
    assert_close(stream.belief.mean[0], whole.mean[-1], **TIGHT)
    assert_close(stream.lagged.mean[0], model.smooth(y[0]).mean[-3], **TIGHT)
    ahead = model.forecast(y, steps=3, samples=2000, seed=1)
    with torch.no_grad():
        z = model.filter(y).belief
        z = z.mean[:, None] + torch.randn(3, 4000, 2, dtype=torch.float64) @ z.scale.mT
        drawn = model.emission(model.transition(z).sample()).sample()
    assert_close(ahead.mean[:, 0], drawn.mean(1), rtol=0, atol=0.2)
    assert bool((ahead.samples == ahead.samples.round()).all()) and ahead.samples.max() <= 9
    filled = model.impute(y[0])
    paths = model.sample_posterior(y[0], n=1000, seed=2)
    assert_close(paths.mean(0), model.smooth(y[0]).mean, rtol=0, atol=0.09)
    assert_close(filled[3], model.emission(paths[:, 3]).mean.mean(0).detach(), rtol=0, atol=0.15)
    model.save(tmp_path / "counts.safetensors")
    assert torch.equal(ss.load(tmp_path / "counts.safetensors").log_prob(y), model.log_prob(y))
    counts = ss.generalised_linear(ss.level() + ss.seasonal(4), "poisson")
    counts.save(tmp_path / "season.safetensors")
    assert torch.equal(ss.load(tmp_path / "season.safetensors").log_prob([1, 2, 3]), counts.log_prob([1, 2, 3]))


def test_what_is_refused():
    linear = predictor(2, 2)
    with pytest.raises(ss.StatespanError, match="negative binomial"):
        ss.generalised_linear(linear, "gamma")
    with pytest.raises(ss.StatespanError, match="trials="):
        ss.generalised_linear(linear, "binomial")
    with pytest.raises(ss.StatespanError, match="trials="):
        ss.generalised_linear(linear, "poisson", trials=4)
    with pytest.raises(ss.StatespanError, match="linear Gaussian"):
        ss.generalised_linear(ss.hmm(2, ss.Poisson()), "poisson")
    with pytest.raises(ss.StatespanError, match="is no law"):
        ss.generalised_linear(linear, ss.Poisson())
    with pytest.raises(ss.StatespanError, match="at least two"):
        ss.generalised_linear(predictor(2, 1), "categorical")
    counts = ss.generalised_linear(linear, "poisson")
    with pytest.raises(ss.StatespanError, match=r"counts 0, 1, 2"):
        counts.log_prob([[0.5, 1.0]])
    with pytest.raises(ss.StatespanError, match="0 to 3"):
        ss.generalised_linear(linear, "binomial", trials=3).log_prob([[4.0, 1.0]])
    flat = ss.StateSpace(ss.DiffuseStart(2).double(), counts.transition, counts.emission)
    with pytest.raises(ss.StatespanError, match="NormalStart"):
        flat.log_prob([[0.0, 1.0]])
    with pytest.raises(ss.StatespanError, match="lower order"):
        counts.log_prob([[0.0, 1.0]], method=ss.DiscreteKalman(ss.LaplaceApproximation(200)))
    for wrong in (lambda: ss.DiscreteKalman(passes=-1), lambda: ss.ConditionalMoments(iterations=0)):
        with pytest.raises(ss.StatespanError, match="or more"):
            wrong()
    with pytest.raises(TypeError, match="k=1"):
        counts.decode([[0.0, 1.0]], k=2)
