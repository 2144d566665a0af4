"""Gaussian filters of nonlinear models: Kalman's where linear, printed formulas, a grid, the mode, particles."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import statespan as ss
from statespan.methods.linearisation import Linearisation
from statespan.part import Generative, NonlinearPart

TIGHT = {"rtol": 0.0, "atol": 1e-9}
RULES = {
    "taylor": ss.Taylor(),
    "unscented": ss.Unscented(),
    "unscented-far": ss.Unscented(1.0, 0.0, 1.0),
    "unscented-near": ss.Unscented(0.1, 2.0, 0.0),
    "cubature": ss.Cubature(),
    "gauss-hermite": ss.GaussHermite(3),
}


class Product(nn.Module):
    """A linear part's own product, as a function that no method knows to be linear."""

    def __init__(self, part: nn.Module):
        super().__init__()
        self.part = part

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z @ self.part.matrix.T + self.part.offset


class Swing(ss.Part):
    """A pendulum's (angle, velocity) after a short time: Sarkka and Svensson 2023, example 7.6."""

    def __init__(self, step: float = 0.05, gravity: float = 9.8):
        super().__init__()
        self.step, self.gravity = step, nn.Parameter(torch.tensor(gravity))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        angle, speed = z.unbind(-1)
        return torch.stack([angle + self.step * speed, speed - self.gravity * self.step * angle.sin()], -1)


class Sine(ss.Part):
    """The sine of the first coordinate."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z[..., :1].sin()


class Growth(ss.Part):
    """z / 2 + 25 z / (1 + z^2) + 8 u: the growth model of Gordon, Salmond and Smith 1993."""

    def forward(self, z: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return z / 2 + 25 * z / (1 + z.square()) + 8 * u


def pendulum() -> ss.StateSpace:
    start = ss.NormalStart(2)
    with torch.no_grad():
        start.mean.copy_(torch.tensor([1.5, 0.0]))
        start.scale.mul_(0.3)
    d = 0.05
    noise = [[d**3 / 3, d**2 / 2], [d**2 / 2, d]]
    move = ss.NonlinearGaussian(Swing(d), 2, covariance=noise)
    return ss.StateSpace(start, move, ss.NonlinearGaussian(Sine(), 1, covariance=[[0.1]])).double()


def growth(process: float = 1.0) -> ss.StateSpace:
    move = ss.NonlinearGaussian(Growth(), 1, controls=1, covariance=[[process]])
    seen = ss.NonlinearGaussian(Arc(), 1, covariance=[[0.25]])
    return ss.StateSpace(ss.NormalStart(1), move, seen).double()


class Arc(ss.Part):
    """4 arctan(z / 4): an observation that says little of a large state."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return 4 * (z / 4).atan()


def linear_twins() -> tuple[ss.StateSpace, ss.StateSpace]:
    linear = ss.linear_gaussian(
        dynamics=[[0.8, 0.3], [-0.2, 0.7]],
        state_noise=[[0.5, 0.1], [0.1, 0.3]],
        observation=[[1.0, 0.5], [0.0, 1.0], [0.3, -0.4]],
        observation_noise=[[0.4, 0.1, 0.0], [0.1, 0.5, 0.05], [0.0, 0.05, 0.3]],
        initial_mean=[0.5, -1.0],
        initial_covariance=[[1.0, 0.2], [0.2, 0.8]],
    )
    move, seen = [ss.NonlinearGaussian(Product(p), p.event.dim).double() for p in (linear.transition, linear.emission)]
    move.scale, seen.scale = linear.transition.scale, linear.emission.scale
    return linear, ss.StateSpace(linear.initial, move, seen)


@pytest.mark.parametrize("deeper", [{}, {"iterations": 3, "passes": 2}])
@pytest.mark.parametrize("name", RULES)
def test_a_linear_model_gets_kalmans_answers(name: str, deeper: dict):
    linear, other = linear_twins()
    assert isinstance(ss.method_for(other), ss.Linearised)
    method = ss.Linearised(RULES[name], **deeper)
    y = linear.sample(4, 7, seed=0)[1]
    y[0, 2], y[1, 3, 0] = math.nan, math.nan
    y = [y[0], y[1, :4], y[2], y[3, :1]]
    expected, found = linear.log_prob(y), other.log_prob(y, method=method)
    assert_close(found, expected, **TIGHT)
    parameters = list(linear.parameters())
    slopes = [torch.autograd.grad(value.sum(), parameters) for value in (expected, found)]
    assert_close(slopes[1], slopes[0], rtol=1e-7, atol=1e-7)
    for verb in (lambda m, **k: m.filter(y, **k), lambda m, **k: m.smooth(y, pairs=True, **k)):
        exact, guess = verb(linear), verb(other, method=method)
        assert exact.exact and not guess.exact
        for key, value in exact.values.items():
            assert_close(list(guess.values[key]), list(value), **TIGHT)
    assert_close(other.impute(y, method=method), linear.impute(y), **TIGHT)


@pytest.mark.parametrize("row", [0, 1, 2])
def test_kalmans_gradient_where_a_coordinate_is_missing(row: int):
    """Wider than the state, so compressed: the root of the noise that is left is no longer the one that was given."""
    model, _ = linear_twins()
    y = model.sample(2, 3, seed=1)[1]
    y[0, 1, row] = math.nan
    scale = model.emission.scale
    way = torch.randn_like(scale)
    slope = (torch.autograd.grad(model.log_prob(y).sum(), scale)[0] * way).sum()
    ends = []
    with torch.no_grad():
        for step in (1e-5, -2e-5):
            scale += step * way
            ends.append(model.log_prob(y).sum())
    assert_close(slope, (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-6)


def textbook(function, mean: np.ndarray, covariance: np.ndarray, alpha: float, beta: float, kappa: float):
    """Mean, covariance and cross-covariance by the unscented transform as printed, no roots of covariances kept."""
    n = len(mean)
    extra = alpha**2 * (n + kappa) - n
    root = np.linalg.cholesky(covariance) * math.sqrt(n + extra)
    points = np.concatenate([mean[None], mean + root.T, mean - root.T])
    weights = np.full(2 * n + 1, 0.5 / (n + extra))
    weights[0] = extra / (n + extra)
    both = weights.copy()
    both[0] += 1 - alpha**2 + beta
    values = np.stack([function(p) for p in points])
    centre = weights @ values
    away = values - centre
    return centre, (both[:, None] * away).T @ away, (both[:, None] * (points - mean)).T @ away


@pytest.mark.parametrize("alpha,beta,kappa", [(1.0, 2.0, 0.0), (1.0, 0.0, 0.0), (0.5, 2.0, -1.0), (0.1, 2.0, 0.0)])
def test_the_unscented_transform_is_the_printed_one(alpha: float, beta: float, kappa: float):
    """Also with a negative weight at the centre; (1, 0, 0) is the cubature rule."""
    torch.manual_seed(0)
    root = torch.randn(3, 3, dtype=torch.float64).tril()
    root.diagonal().abs_()
    mean, matrix = torch.randn(3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    belief, noise = ss.GaussianBelief(mean, root), torch.zeros(2, 1, dtype=torch.float64)
    function = lambda z, u: ((z @ matrix.T).sin() + z[..., :2] ** 2, noise)  # noqa: E731
    plain = lambda z: np.sin(matrix.numpy() @ z) + z[:2] ** 2  # noqa: E731
    centre, covariance, cross = textbook(plain, mean.numpy(), (root @ root.T).numpy(), alpha, beta, kappa)
    rules: list[Linearisation] = [ss.Unscented(alpha, beta, kappa)]
    rules += [ss.Cubature()] if (alpha, beta, kappa) == (1.0, 0.0, 0.0) else []
    for rule in rules:
        affine = rule(function, belief, None)
        spread = affine.matrix @ root
        size = {"rtol": 0.0, "atol": 1e-8}
        assert_close((affine.matrix @ mean + affine.offset).numpy(), centre, **size)
        assert_close((spread @ spread.T + affine.scale @ affine.scale.T).numpy(), covariance, **size)
        assert_close((root @ spread.T).numpy(), cross, **size)


def test_gauss_hermite_is_exact_for_polynomials():
    """Of z ~ N(1, 4): E z^2 = 5, cov(z^2, z) = 8, var z^2 = 2 * 16 + 4 * 4 = 48."""
    belief = ss.GaussianBelief(torch.ones(1).double(), torch.full((1, 1), 2.0).double())
    affine = ss.GaussHermite(3)(lambda z, u: (z**2, torch.zeros(1, 1).double()), belief, None)
    total = 4 * affine.matrix.square() + affine.scale.square().sum()
    found = torch.stack([affine.matrix[0, 0] + affine.offset[0], 4 * affine.matrix[0, 0], total[0, 0]])
    assert_close(found, torch.tensor([5.0, 8.0, 48.0]).double(), **TIGHT)


class Rough(ss.Part, NonlinearPart, Generative):
    """sin z with noise of deviation sqrt(1 + z^2) / 2."""

    def __init__(self):
        super().__init__()
        from statespan.sequences import Event

        self.event = Event(1, None, 1)

    def moments(self, z: torch.Tensor, u=None) -> tuple[torch.Tensor, torch.Tensor]:
        return z.sin(), ((1 + z**2).sqrt() / 2)[..., None]


def test_noise_that_changes_with_the_state():
    """E of the noise's variance under z ~ N(0, 1) is (1 + 1) / 4, by any rule that is exact for a square."""
    belief = ss.GaussianBelief(torch.zeros(2, 1).double(), torch.eye(1).double().expand(2, 1, 1))
    for rule in (ss.Unscented(), ss.Cubature(), ss.GaussHermite(4)):
        affine = rule(Rough().moments, belief, None)
        rest = rule(lambda z, u: (z.sin(), torch.zeros(1, 1).double()), belief, None).scale.square().sum(-1)
        assert_close(affine.scale.square().sum(-1) - rest, torch.full((2, 1), 0.5).double(), **TIGHT)
    assert_close(ss.Taylor()(Rough().moments, belief, None).scale, torch.full((2, 1, 1), 0.5).double())
    with pytest.raises(ss.StatespanError, match="Cubature"):
        ss.Unscented(0.5)(Rough().moments, belief, None)
    model = ss.StateSpace(ss.NormalStart(1).double(), Rough(), ss.Linear(1).double())
    assert model.smooth([0.2, None, 1.0]).mean.isfinite().all()


def on_a_grid(model: ss.StateSpace, y: torch.Tensor, u: torch.Tensor, points: int = 601, reach: float = 30.0):
    """The exact filter of a state of one dimension: log p and the filtered means, by sums over a grid."""
    z = torch.linspace(-reach, reach, points, dtype=torch.float64)[:, None]
    width = float(z[1] - z[0])
    density = model.initial((1,)).log_prob(z).exp()
    total, means = 0.0, []
    for t in range(len(y)):
        if t:
            moved = model.transition(z, u[t].expand(points, 1))  # at rows: to, columns: from
            density = (moved.log_prob(z[:, None]).exp() @ density) * width
        if not y[t].isnan():
            density = density * model.emission(z).log_prob(y[t]).exp()
        mass = density.sum() * width
        total, density = total + mass.log(), density / mass
        means.append((density @ z).squeeze() * width)
    return total, torch.stack(means)


def test_growth_against_a_grid():
    """Where the posterior has one mode the rules come near; each is nearer than knowing nothing, and says so."""
    model = growth()
    u = torch.cos(1.2 * torch.arange(30, dtype=torch.float64))[:, None]
    states, y = model.sample(None, 30, seed=3, inputs=u[:, None])
    y[10:12] = math.nan
    with torch.no_grad():
        truth, means = on_a_grid(model, y, u)
    spread = states.std()
    for rule, most in ((ss.GaussHermite(7), 0.1), (ss.GaussHermite(3), 0.15), (ss.Unscented(), 0.15)):
        found = model.filter(y, inputs=u, method=ss.Linearised(rule))
        assert not found.exact
        assert (found.mean[:, 0] - means).square().mean().sqrt() < most * spread, rule
        assert abs(found.log_prob - truth) < 0.2 * abs(truth), rule


def test_pendulum_against_particles():
    model = pendulum()
    states, y = model.sample(None, 60, seed=4)
    y[20:25] = math.nan
    many = model.filter(y.expand(4, -1, -1), method=ss.ParticleFilter(3000))
    for name, rule in RULES.items():
        found = model.filter(y, method=ss.Linearised(rule))
        apart = (found.mean - many.mean.mean(0)).square().mean(0).sqrt()
        deviation = found.covariance.diagonal(dim1=-2, dim2=-1).sqrt().mean(0)
        assert bool((apart < 0.5 * deviation).all()), name
        assert abs(found.log_prob - many.log_prob.mean()) < 2, name
        smoothed = model.smooth(y, method=ss.Linearised(rule))
        error = lambda p: (p.mean - states).square().mean().sqrt()  # noqa: E731
        assert error(smoothed) < error(found), name


def test_the_iterated_extended_smoother_finds_the_mode():
    """Bell 1994: its passes are Gauss-Newton steps, so at the end the joint density has no slope."""
    model = pendulum()
    y = model.sample(None, 40, seed=4)[1]
    y[7] = math.nan
    path = model.smooth(y, method=ss.Linearised(ss.Taylor(), passes=25)).mean.requires_grad_()
    parts = model.initial((1,)).log_prob(path[0]).sum() + model.transition(path[:-1]).log_prob(path[1:]).sum()
    joint = parts + model.emission(path).log_prob(y.nan_to_num())[~y.isnan()[:, 0]].sum()
    assert torch.autograd.grad(joint, path)[0].abs().max() < 1e-5
    assert_close(model.decode(y, method=ss.Linearised(ss.Taylor(), passes=25)), path.detach())


def test_the_iterated_update_finds_the_mode_of_a_step():
    """An observation so exact that one linearisation misses: y = z^2 seen with deviation 0.01, z ~ N(1, 0.5^2)."""
    seen = ss.NonlinearGaussian(torch.square, 1, covariance=[[1e-4]])
    model = ss.StateSpace(ss.NormalStart(1), ss.Linear(1), seen).double()
    with torch.no_grad():
        model.initial.mean.fill_(1.0)
        model.initial.scale.fill_(0.5)
        model.emission.scale.fill_(0.01)
    once, often = [model.filter([4.0], method=ss.Linearised(ss.Taylor(), i)).mean.item() for i in (1, 10)]
    slope = lambda z: -(z - 1) / 0.25 + (4 - z * z) * 2 * z / 1e-4  # noqa: E731
    assert abs(once - 2) > 0.4 and abs(slope(often)) < 1e-3


def test_ragged_batches_streams_and_carried_beliefs():
    model, method = pendulum(), ss.Linearised(ss.Cubature(), iterations=2)
    y = model.sample(3, 8, seed=5)[1]
    y[0, 3] = math.nan
    rows = [y[0], y[1, :5], y[2, :1]]
    together, alone = model.smooth(rows, method=method), [model.smooth(r, method=method) for r in rows]
    for i, one in enumerate(alone):
        assert_close(together.mean[i], one.mean, **TIGHT)
    stream = model.stream(method=method, lag=2)
    for value in y[0]:
        stream.update(value)
    whole = model.filter(y[0], method=method)
    assert_close(stream.log_prob, whole.log_prob, **TIGHT)
    assert_close(stream.belief.mean[0], whole.mean[-1], **TIGHT)
    assert stream.lagged is not None and stream.forecast(2).mean.shape == (2, 1)
    first = model.filter(y[0, :4], method=method)
    rest = model.smooth(y[0, 4:], method=ss.Linearised(ss.Cubature(), passes=1), belief=first.belief)
    assert rest.mean.isfinite().all()
    assert_close(first.log_prob + model.log_prob(y[0, 4:], method=method, belief=first.belief), whole.log_prob, **TIGHT)


def test_forecasts_paths_and_samples():
    model = pendulum()
    states, y = model.sample(3, 50, seed=6)
    assert states.shape == (3, 50, 2) and y.shape == (3, 50, 1)
    ahead = model.forecast(y, steps=4, samples=4000, seed=1)
    assert not ahead.exact
    with torch.no_grad():
        last = model.filter(y).belief
        z = last.mean[:, None] + torch.randn(3, 4000, 2, dtype=torch.float64) @ last.scale.mT
        for t in range(4):
            z = model.transition(z).sample()
            drawn = model.emission(z).sample()
            assert_close(ahead.mean[:, t], drawn.mean(1), rtol=0, atol=0.04)
            assert_close(ahead.quantile(0.9)[:, t], drawn.quantile(0.9, 1), rtol=0, atol=0.06)
    paths = model.sample_posterior(y[0], n=2000, seed=3)
    smoothed = model.smooth(y[0])
    assert_close(paths.mean(0), smoothed.mean, rtol=0, atol=0.08)
    y[0, 10:20] = math.nan
    filled = model.impute(y[0])
    assert filled.isfinite().all() and bool((filled[10:20].abs() <= 1.2).all())


def test_fitting_by_gradient_and_files(tmp_path):
    """The gravity of a pendulum that starts from a wrong one."""
    model = pendulum()
    y = model.sample(8, 15, seed=7)[1]
    gravity = model.transition.function.gravity
    with torch.no_grad():
        at_truth = model.log_prob(y).sum()
        gravity.fill_(4.0)
    model.fit(y, by=ss.SGD(epochs=15, learning_rate=0.5), seed=0, hold=("initial", "emission", "transition.scale"))
    assert model.log_prob(y).sum() > at_truth - 1 and abs(gravity.item() - 9.8) < 4
    model.save(tmp_path / "pendulum.safetensors")
    again = ss.load(tmp_path / "pendulum.safetensors")
    assert torch.equal(again.log_prob(y), model.log_prob(y))


@pytest.mark.parametrize("name", RULES)
def test_the_gradient_is_the_slope(name: str):
    """Through sigma points too, which hang on the root's own triangle."""
    model = pendulum()
    y = model.sample(2, 5, seed=8)[1]
    value = lambda: model.log_prob(y, method=ss.Linearised(RULES[name], 2)).sum()  # noqa: E731
    for parameter in model.parameters():
        way = torch.randn_like(parameter)
        slope = (torch.autograd.grad(value(), parameter)[0] * way).sum()
        ends = []
        with torch.no_grad():
            for step in (1e-6, -2e-6):
                parameter += step * way
                ends.append(value())
            parameter += 1e-6 * way
        assert_close(slope, (ends[0] - ends[1]) / 2e-6, rtol=1e-4, atol=1e-4)


def test_without_noise_or_spread():
    """A known start and no noise: the state is known, and nothing is NaN."""
    model = pendulum()
    with torch.no_grad():
        model.initial.scale.zero_()
        model.transition.scale.zero_()
    for rule in RULES.values():
        found = model.smooth([[0.9], [None], [0.7]], method=ss.Linearised(rule))
        assert found.covariance.abs().max() < 1e-20
        step = model.transition.function(model.initial.mean)
        assert_close(found.mean[1], step.detach())


def test_what_is_refused():
    wide = ss.StateSpace(ss.NormalStart(2), ss.NonlinearGaussian(torch.sin, 3), ss.Linear(2, 1))
    with pytest.raises(ss.StatespanError, match=r"it should give"):
        wide.log_prob([0.1, 0.2])
    flat = ss.StateSpace(ss.DiffuseStart(1), ss.NonlinearGaussian(torch.sin, 1), ss.Linear(1))
    with pytest.raises(ss.StatespanError, match="NormalStart"):
        flat.log_prob([0.1, 0.2])
    with pytest.raises(ss.StatespanError, match="1 inputs a step and none"):
        growth().log_prob([0.1, 0.2])
    with pytest.raises(ss.StatespanError, match="positive semi-definite"):
        ss.NonlinearGaussian(torch.sin, 2, covariance=[[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(ss.StatespanError, match="iterations=0"):
        ss.Linearised(iterations=0)
    many = ss.StateSpace(ss.NormalStart(12), ss.NonlinearGaussian(torch.sin, 12), ss.Linear(12))
    with pytest.raises(ss.StatespanError, match="Unscented"):
        many.log_prob(torch.zeros(2, 12), method=ss.Linearised(ss.GaussHermite(3)))
    with pytest.raises(ss.StatespanError, match="kappa"):
        many.log_prob(torch.zeros(2, 12), method=ss.Linearised(ss.Unscented(1.0, 0.0, -9.0)))
