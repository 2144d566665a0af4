"""Starts that are not known: exactly diffuse, stationary and approximate, against dense least squares and Nile."""

import math

import pytest
import torch
from torch.testing import assert_close

import statespan as ss
from series import NILE
from statespan.method import prepare, smooth_backward
from statespan.parts.gaussian_initial import stationary

TIGHT = {"rtol": 0.0, "atol": 1e-8}


def covariance(dim: int) -> torch.Tensor:
    root = torch.randn(dim, dim, dtype=torch.float64)
    return root @ root.T


def partly_diffuse(state: int, observed: int, flat: int, noise: bool = True) -> ss.StateSpace:
    """Random matrices, with z_1 flat along `flat` random directions."""
    start = ss.DiffuseStart(state, flat).double()
    start.directions.copy_(torch.randn(state, flat))
    start.mean.copy_(torch.randn(state))
    start.scale.copy_(torch.randn(state, state).tril())
    return ss.linear_gaussian(
        dynamics=torch.randn(state, state).double() / state**0.5,
        state_noise=covariance(state),
        observation=torch.randn(observed, state),
        observation_noise=covariance(observed) if noise else torch.zeros(observed, observed),
        state_offset=torch.randn(state),
        observation_offset=torch.randn(observed),
        initial=start,
    )


def least_squares(model: ss.StateSpace, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log p, and the smoothed states' mean and covariance, by generalised least squares on the stacked equations.

    Every state is linear in the flat d and in the noises; the flat prior's limit is -(log det X' S^-1 X) / 2.
    """
    a, b, q = (x.detach() for x in (model.transition.matrix, model.transition.offset, model.transition.covariance))
    c, d, r = (x.detach() for x in (model.emission.matrix, model.emission.offset, model.emission.covariance))
    length, state = len(y), len(a)
    start = model.initial
    mean, reach = [start.mean], [start.directions]
    spread = [[start.scale @ start.scale.T]]
    for t in range(1, length):
        mean.append(a @ mean[-1] + b)
        reach.append(a @ reach[-1])
        row = [a @ spread[-1][s] for s in range(t)]
        spread.append([*row, a @ spread[-1][t - 1] @ a.T + q])
    zz = torch.zeros(length * state, length * state, dtype=torch.float64)
    for t in range(length):
        for s in range(t + 1):
            zz[t * state : (t + 1) * state, s * state : (s + 1) * state] = spread[t][s]
            zz[s * state : (s + 1) * state, t * state : (t + 1) * state] = spread[t][s].T
    seen = ~y.isnan().flatten()
    big = torch.block_diag(*[c] * length)[seen]
    design = torch.cat(reach)
    z_mean = torch.cat(mean)
    sigma = big @ zz @ big.T + torch.block_diag(*[r] * length)[seen][:, seen]
    off = y.flatten()[seen] - big @ z_mean - d.repeat(length)[seen]
    x = big @ design
    precision = torch.linalg.inv(sigma)
    information = x.T @ precision @ x
    best = torch.linalg.solve(information, x.T @ precision @ off)
    error = off - x @ best
    log = -0.5 * (len(off) * math.log(2 * math.pi) + sigma.logdet() + information.logdet() + error @ precision @ error)
    gain = zz @ big.T @ precision
    left = design - gain @ x
    smoothed = z_mean + design @ best + gain @ error
    return log, smoothed, zz - gain @ big @ zz + left @ torch.linalg.inv(information) @ left.T


@pytest.mark.parametrize(
    ("state", "observed", "flat"), [(1, 1, 1), (2, 1, 2), (3, 2, 2), (3, 2, 3), (2, 3, 2), (4, 1, 3)]
)
@pytest.mark.parametrize("holes", [0.0, 0.3])
@pytest.mark.parametrize("noise", [True, False])
def test_a_diffuse_start_equals_least_squares(state: int, observed: int, flat: int, holes: float, noise: bool):
    for seed in range(3):
        torch.manual_seed(seed)
        model = partly_diffuse(state, observed, flat, noise or observed > state)
        y = torch.randn(9, observed).double() * 3
        y = y.masked_fill(torch.rand(9, observed) < holes, math.nan)
        log, mean, cov = least_squares(model, y)
        smoothed = model.smooth(y)
        size = {"rtol": 1e-7, "atol": 1e-6}
        assert_close(model.log_prob(y).detach(), log, **size)
        assert_close(smoothed.mean.flatten(), mean, **size)
        for t in range(9):
            at = slice(t * state, (t + 1) * state)
            assert_close(smoothed.covariance[t], cov[at, at], **size)
        data, _ = ss.verbs.ask(model, y)
        method = ss.Kalman()
        prepared = prepare(model, method, data)
        with torch.no_grad():
            both, _, pairs = method.hindsight(model, prepared, None, data, pairs=True)
            again = smooth_backward(model, method, prepared, None, data.shape)
        assert_close(again.mean, both.mean, **size)
        for t in range(8):
            here, there = slice(t * state, (t + 1) * state), slice((t + 1) * state, (t + 2) * state)
            assert_close(pairs[t, 0], cov[here, there], **size)


def test_filtered_beliefs_of_a_diffuse_start():
    """Infinite variance where nothing is known yet, and least squares of the past from then on."""
    torch.manual_seed(0)
    model = partly_diffuse(3, 1, 2)
    y = torch.randn(6, 1).double()
    filtered = model.filter(y)
    assert bool(filtered.covariance[0].diagonal().isinf().all())
    assert not bool(filtered.covariance.isnan().any())
    for t in range(1, 6):
        _, mean, cov = least_squares(model, y[: t + 1])
        assert_close(filtered.mean[t], mean[-3:], rtol=1e-7, atol=1e-7)
        assert_close(filtered.covariance[t], cov[-3:, -3:], rtol=1e-7, atol=1e-7)
    carried = model.filter(y[1:], belief=model.filter(y[:1]).belief)
    assert_close(carried.log_prob + model.log_prob(y[:1]).detach(), model.log_prob(y).detach())
    assert_close(carried.mean, filtered.mean[1:])
    ahead = model.forecast(y, steps=3)
    assert bool(ahead.mean.isfinite().all())
    paths = model.sample_posterior(y, n=4000, seed=0)
    smoothed = model.smooth(y)
    error = smoothed.covariance.diagonal(dim1=-2, dim2=-1).sqrt() / math.sqrt(4000)
    assert bool(((paths.mean(0) - smoothed.mean).abs() < 4.5 * error + 1e-9).all())


def test_ragged_series_settle_each_at_its_own_time():
    torch.manual_seed(1)
    model = partly_diffuse(2, 1, 2)
    long = torch.randn(8, 1).double()
    gaps = long.clone()
    gaps[[0, 2, 3]] = math.nan
    rows = [long[:5], gaps, long[:2]]
    together, alone = model.log_prob(rows), [model.log_prob(row) for row in rows]
    assert_close(together, torch.stack(alone))
    smoothed = model.smooth(rows)
    for i, row in enumerate(rows):
        assert_close(smoothed.mean[i], model.smooth(row).mean)
        assert_close(smoothed.covariance[i], model.smooth(row).covariance)


def test_the_gradient_of_a_diffuse_likelihood_is_its_slope():
    torch.manual_seed(2)
    model = partly_diffuse(3, 2, 3)
    y = torch.randn(7, 2).double()
    parameters = list(model.parameters())
    way = [torch.randn_like(p) for p in parameters]
    gradients = torch.autograd.grad(model.log_prob(y), parameters)
    slope = sum((g * w).sum() for g, w in zip(gradients, way, strict=True))
    ends = []
    with torch.no_grad():
        for sign in (1, -2):
            for p, w in zip(parameters, way, strict=True):
                p += sign * 1e-6 * w
            ends.append(model.log_prob(y))
    assert_close(slope, (ends[0] - ends[1]) / 2e-6, rtol=1e-5, atol=1e-5)


def test_an_approximate_start_tends_to_the_diffuse_one():
    torch.manual_seed(3)
    shape = {"dynamics": [[1.0, 1.0], [0.0, 1.0]], "state_noise": covariance(2), "observation": [[1.0, 0.0]]}
    y = torch.randn(12, 1).double().cumsum(0)
    exact = ss.linear_gaussian(**shape, initial="diffuse").smooth(y)
    wide = ss.linear_gaussian(**shape, initial="approximate")
    assert_close(wide.smooth(y).mean, exact.mean, rtol=1e-4, atol=1e-4)
    limit = wide.log_prob(y) + math.log(1e6)  # (q / 2) log k with q = 2
    assert_close(limit, exact.log_prob, rtol=0, atol=1e-4)
    assert not any(p.requires_grad for p in wide.initial.parameters())


def test_nothing_observed_leaves_a_diffuse_state_diffuse():
    model = partly_diffuse(2, 1, 2)
    y = torch.full((4, 1), math.nan).double()
    assert model.log_prob(y).item() == 0.0
    smoothed = model.smooth(y)
    assert bool(smoothed.covariance.diagonal(dim1=-2, dim2=-1).isinf().all())
    assert bool(smoothed.mean.isfinite().all())


def test_a_diffuse_model_cannot_be_drawn_from():
    model = partly_diffuse(2, 1, 1)
    with pytest.raises(ss.StatespanError, match="still diffuse"):
        model.sample(2, 3)
    with pytest.raises(ss.StatespanError, match="does not accept"):
        model.log_prob(torch.zeros(3, 1), method=ss.ParticleFilter(10))


# ------------------------------------------------------------------------------------------- stationary


def test_a_stationary_start_solves_the_lyapunov_equation():
    torch.manual_seed(0)
    for size in (1, 3, 6):
        a = torch.randn(size, size).double()
        a = 0.97 * a / torch.linalg.eigvals(a).abs().max()
        scale = torch.randn(size, size).double().tril()
        scale[:, -1] = 0.0
        mean, root = stationary(a, torch.ones(size).double(), scale)
        p = root @ root.T
        assert_close(a @ p @ a.T + scale @ scale.T, p, rtol=1e-9, atol=1e-9)
        assert_close(a @ mean + 1, mean, **TIGHT)


def test_a_stationary_start_moves_with_its_dynamics():
    """The gradient goes through the start; a series of an AR(1) has the textbook likelihood."""
    model = ss.linear_gaussian(
        dynamics=[[0.6]], state_noise=[[2.0]], observation=[[1.0]], observation_noise=[[0.0]], initial="stationary"
    )
    y = torch.tensor([[1.0], [0.3], [-2.0]]).double()

    def textbook(phi: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        normal = torch.distributions.Normal
        first = normal(0.0, (variance / (1 - phi**2)).sqrt()).log_prob(y[0, 0])
        return first + normal(phi * y[:-1, 0], variance.sqrt()).log_prob(y[1:, 0]).sum()

    phi = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    truth = textbook(phi, torch.tensor(2.0, dtype=torch.float64))
    found = model.log_prob(y)
    assert_close(found.detach(), truth.detach(), **TIGHT)
    (slope,) = torch.autograd.grad(truth, phi)
    (gradient,) = torch.autograd.grad(found, model.transition.matrix)
    assert_close(gradient[0, 0], slope, **TIGHT)


def test_save_and_load_keep_the_start(tmp_path):
    torch.manual_seed(0)
    y = torch.randn(5, 1).double()
    shape = {"dynamics": [[0.5, 0.1], [0.0, 0.4]], "observation": [[1.0, 1.0]]}
    for initial in ("stationary", "diffuse", "approximate", "known"):
        model = ss.linear_gaussian(**shape, initial=initial)
        model.save(tmp_path / "m.safetensors")
        again = ss.load(tmp_path / "m.safetensors")
        assert torch.equal(again.log_prob(y), model.log_prob(y))
        assert len(list(again.parameters())) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dynamics": [[1.0]], "initial": "stationary"}, "eigenvalue of size 1 and so no stationary"),
        ({"state": 1, "initial": "flat"}, "use known, stationary, diffuse, approximate, or a part"),
        ({"state": 1, "initial": "diffuse", "initial_covariance": [[1.0]]}, "has no initial_covariance"),
    ],
)
def test_bad_starts_are_named(options: dict, words: str):
    with pytest.raises(ss.StatespanError, match=words):
        ss.linear_gaussian(observed=1, **options)


# ------------------------------------------------------------------------------------------------- Nile


def nile(initial: str) -> tuple[ss.StateSpace, torch.Tensor]:
    one = [[1.0]]
    model = ss.linear_gaussian(
        dynamics=one, state_noise=[[1478.81]], observation=one, observation_noise=[[15078.01]], initial=initial
    )
    return model, NILE


def test_nile():
    model, y = nile("diffuse")
    assert len(y) == 100
    assert_close(model.log_prob(y).item(), -633.464595, rtol=0, atol=1e-6)
    assert_close(model.log_prob(y).item() + 0.5 * math.log(2 * math.pi), -632.545656, rtol=0, atol=1e-6)
    wide, _ = nile("approximate")
    first = torch.distributions.Normal(0.0, (1e6 + 15078.01) ** 0.5).log_prob(y[0])
    assert_close((wide.log_prob(y) - first).item(), -632.537761, rtol=0, atol=1e-3)


@pytest.mark.parametrize("variances", [(1e-24, 1e-24, 1e-24), (3e-18, 2e-21, 7e-18)])
def test_hindsight_where_variances_are_nearly_zero(variances):
    """As a fit leaves them: what is smoothed is that of variances of zero, and neither NaN nor 1e34."""
    t = torch.arange(60.0)
    y = 50 + 0.3 * t + 8 * (2 * torch.pi * t / 12).sin() + torch.randn(60, generator=torch.Generator().manual_seed(0))
    y[[5, 17, 18]] = torch.nan
    level, slope, season = variances
    near, zero = (ss.level(level * x) + ss.slope(slope * x) + ss.seasonal(12, variance=season * x) for x in (1.0, 0.0))
    for model in (near, zero):
        with torch.no_grad():
            model.emission.scale.fill_(1.9)
    mine, its = near.smooth(y), zero.smooth(y)
    torch.testing.assert_close(mine.mean, its.mean, rtol=0.0, atol=1e-6)
    torch.testing.assert_close(mine.covariance, its.covariance, rtol=0.0, atol=1e-6)
