"""Linear parts with inputs and with matrices that change in time, against the dense joint normal of each series."""

import math

import pytest
import torch
from torch.testing import assert_close

import statespan as ss
from oracles import Joint, condition
from statespan.method import prepare
from statespan.parts.linear import lower, root

T, D, E, U = 6, 2, 3, 2
SIZE = {"rtol": 0.0, "atol": 1e-9}


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def joint_over_time(start: tuple, moves: list[tuple], emissions: list[tuple]) -> Joint:
    """The dense joint of all states and observations from (mean, P), (A, b, Q) and (C, d, R) of every step."""
    mean, spread = [start[0]], [[start[1]]]
    for a, b, q in moves[1:]:
        row = [a @ x for x in spread[-1]]
        spread.append([*row, a @ spread[-1][-1] @ a.T + q])
        mean.append(a @ mean[-1] + b)
    length, state, observed = len(moves), len(start[0]), len(emissions[0][1])
    zz = torch.zeros(length, state, length, state, dtype=torch.float64)
    for t in range(length):
        for s in range(t + 1):
            zz[t, :, s], zz[s, :, t] = spread[t][s], spread[t][s].T
    zz = zz.view(length * state, length * state)
    big = torch.block_diag(*[c for c, _, _ in emissions])
    both = torch.cat([torch.eye(length * state, dtype=torch.float64), big])
    covariance = both @ zz @ both.T
    at = length * state
    covariance[at:, at:] += torch.block_diag(*[r for _, _, r in emissions])
    z = torch.cat(mean)
    means = torch.cat([z, big @ z + torch.cat([d for _, d, _ in emissions])])
    return Joint(means, covariance, length, state, observed)


def check(model: ss.StateSpace, y: torch.Tensor, u: torch.Tensor, joint: Joint) -> None:
    """Likelihood, filter, smoother, lag-one covariances, forecast and imputation of one series."""
    with torch.no_grad():
        log, mean, cov = condition(joint, y.nan_to_num(), ~y.isnan())
        n = joint.length * joint.state
        smoothed = model.smooth(y, inputs=u)
        assert_close(smoothed.log_prob, log, **SIZE)
        assert_close(smoothed.mean.flatten(), mean[:n], **SIZE)
        data, _ = ss.verbs.ask(model, y, inputs=u)
        pairs = ss.Kalman().hindsight(model, prepare(model, ss.Kalman(), data), None, data, pairs=True).pairs
        for t in range(joint.length):
            at, then = (
                slice(t * joint.state, (t + 1) * joint.state),
                slice((t + 1) * joint.state, (t + 2) * joint.state),
            )
            assert_close(smoothed.covariance[t], cov[at, at], **SIZE)
            if t + 1 < joint.length:
                assert_close(pairs[t, 0], cov[at, then], **SIZE)
        filled = torch.where(y.isnan(), mean[n:].view(joint.length, -1), y)
        assert_close(model.impute(y, inputs=u), filled, **SIZE)
        past = y.clone()
        past[-2:] = math.nan
        _, mean, cov = condition(joint, past.nan_to_num(), ~past.isnan())
        ahead = model.forecast(y[:-2], steps=2, inputs=u[:-2], future=u[-2:])
        assert_close(ahead.mean.flatten(), mean[-2 * joint.observed :], **SIZE)
        assert_close(ahead.distribution.covariance_matrix[0, 1], cov[-joint.observed :, -joint.observed :], **SIZE)


@pytest.fixture(params=[0, 1, 2])
def y(request: pytest.FixtureRequest) -> torch.Tensor:
    torch.manual_seed(request.param)
    y = normal(T, E) * 2
    return y.masked_fill(torch.rand(T, E) < (0.0, 0.3, 0.6)[request.param], math.nan)


def test_inputs_act_on_the_move_and_on_the_observation(y: torch.Tensor):
    b, f, u = normal(D, U), normal(E, U), normal(T, U)
    model = ss.linear_gaussian(
        dynamics=normal(D, D) / 2,
        observation=normal(E, D),
        state_inputs=b,
        observation_inputs=f,
        state_offset=normal(D),
        observation_offset=normal(E),
    )
    move, emission = model.transition, model.emission
    moves = [(move.matrix, move.offset + b @ x, move.covariance) for x in u]
    emissions = [(emission.matrix, emission.offset + f @ x, emission.covariance) for x in u]
    start = (model.initial.mean, torch.eye(D).double())
    check(model, y, u, joint_over_time(start, moves, emissions))
    batch = model.log_prob([y, y[:3]], inputs=[u, u[:3]])
    assert_close(batch[1], model.log_prob(y[:3], inputs=u[:3]))


@pytest.mark.parametrize("wide", [True, False])
def test_matrices_that_change_in_time(y: torch.Tensor, wide: bool):
    """Every matrix its own in every step, for an observation wider and one narrower than the state."""
    y = y if wide else y[:, :1]
    width = y.shape[1]
    a, b, q = normal(T, D, D), normal(T, D), normal(T, D, D)
    c, d, r = normal(T, width, D), normal(T, width), normal(T, width, width)
    model = ss.linear_gaussian(
        dynamics=a,
        state_offset=b,
        state_noise=q @ q.mT,
        observation=c,
        observation_offset=d,
        observation_noise=r @ r.mT,
    )
    joint = joint_over_time(
        (torch.zeros(D).double(), torch.eye(D).double()),
        list(zip(a, b, q @ q.mT, strict=True)),
        list(zip(c, d, r @ r.mT, strict=True)),
    )
    check(model, y, torch.arange(T)[:, None].double(), joint)
    batch = model.log_prob(torch.stack([y, y]), inputs=torch.arange(T).expand(2, -1)[..., None])
    assert_close(batch[0].detach(), condition(joint, y.nan_to_num(), ~y.isnan())[0], **SIZE)


def test_a_regression_whose_coefficients_move(y: torch.Tensor):
    """y_t = u_t' z_t + noise: the inputs are the observation matrix."""
    y, u = y[:, :1], normal(T, U)
    emission = ss.Modulated(U, 1, U).double()
    move = ss.Linear(U).double()
    model = ss.StateSpace(ss.NormalStart(U).double(), move, emission)
    eye = torch.eye(U).double()
    moves = [(eye, torch.zeros(U).double(), eye)] * T
    emissions = [(x[None], torch.zeros(1).double(), torch.eye(1).double()) for x in u]
    check(model, y, u, joint_over_time((torch.zeros(U).double(), eye), moves, emissions))


def test_each_series_its_own_steps():
    """Two series of one calendar that begin at different steps."""
    c = normal(9, 1, D)
    model = ss.linear_gaussian(dynamics=0.5 * torch.eye(D), observation=c)
    y = normal(2, 4, 1)
    steps = torch.stack([torch.arange(4), torch.arange(5, 9)])[..., None]
    both = model.log_prob(y, inputs=steps)
    for i in range(2):
        assert_close(both[i], model.log_prob(y[i], inputs=steps[i]))
    shifted = ss.linear_gaussian(dynamics=0.5 * torch.eye(D), observation=c[5:])
    assert_close(both[1], shifted.log_prob(y[1], inputs=torch.arange(4)))


def test_noise_shared_by_state_and_observation_is_a_state():
    """cov(w_t, v_t) = S: the state carries v, and the observation reads it off without noise of its own."""
    a, c = normal(D, D) / 2, normal(1, D)
    joined = normal(D + 1, D + 1)
    joined = joined @ joined.T
    q, s, r = joined[:D, :D], joined[:D, D:], joined[D:, D:]
    model = ss.linear_gaussian(
        dynamics=torch.block_diag(a, torch.zeros(1, 1).double()),
        state_noise=joined,
        observation=torch.cat([c, torch.ones(1, 1)], 1),
        observation_noise=[[0.0]],
        initial_covariance=torch.block_diag(torch.eye(D).double(), r),
    )
    y = normal(3, 1)
    # y_1, y_2, y_3 from x_1 ~ N(0, I), x_t = a x_{t-1} + w_t, y_t = c x_t + v_t, written out.
    p = [torch.eye(D).double()]
    for _ in range(2):
        p.append(a @ p[-1] @ a.T + q)
    cov = torch.zeros(3, 3).double()
    own = [torch.zeros(D, 1).double(), s, s]  # cov(x_t, v_t)
    for t in range(3):
        cov[t, t] = c @ p[t] @ c.T + r + 2 * c @ own[t]
        for later in range(t + 1, 3):
            reach = torch.linalg.matrix_power(a, later - t)
            cov[t, later] = cov[later, t] = c @ reach @ (p[t] @ c.T + own[t])
    truth = torch.distributions.MultivariateNormal(torch.zeros(3).double(), cov).log_prob(y[:, 0])
    assert_close(model.log_prob(y).detach(), truth, **SIZE)


def test_a_wide_observation_is_compressed_to_the_state():
    torch.manual_seed(0)
    model = ss.linear_gaussian(dynamics=0.8 * torch.eye(2), observation=normal(40, 2), seed=0)
    y = model.sample(3, 7, seed=0)[1]
    y[0, 2, :25] = math.nan
    y[1, 3] = math.nan
    data, _ = ss.verbs.ask(model, y)
    with torch.no_grad():
        prepared = prepare(model, ss.Kalman(), data)
    assert prepared.likelihoods.y.shape == (7, 3, 2)
    moves = [(model.transition.matrix, model.transition.offset, model.transition.covariance)] * 7
    emissions = [(model.emission.matrix, model.emission.offset, model.emission.covariance)] * 7
    joint = joint_over_time((torch.zeros(2).double(), torch.eye(2).double()), moves, emissions)
    for row, value in zip(y, model.log_prob(y), strict=True):
        assert_close(value, condition(joint, row.nan_to_num(), ~row.isnan())[0])
    # A column that nothing observes: the gradient of its entries is not lost.
    with torch.no_grad():
        model.emission.matrix[:, 1] = 0.0
    (gradient,) = torch.autograd.grad(model.log_prob(y).sum(), model.emission.matrix)
    with torch.no_grad():
        value = model.log_prob(y).sum()
        model.emission.matrix[3, 1] = 1e-6
        slope = (model.log_prob(y).sum() - value) / 1e-6
    assert_close(gradient[3, 1], slope, rtol=1e-4, atol=1e-4)


def test_particles_follow_inputs_too():
    """The part's own distribution, given inputs, is the one that Kalman uses."""
    torch.manual_seed(0)
    y, u = normal(4, 1), normal(4, U)
    model = ss.linear_gaussian(
        dynamics=[[0.5]], observation=[[1.0]], state_inputs=normal(1, U), observation_inputs=normal(1, U)
    )
    steps = ss.linear_gaussian(dynamics=normal(4, 1, 1), observation=[[1.0]])
    for each, given in ((model, u), (steps, torch.arange(4)[:, None])):
        with torch.no_grad():
            particles = each.log_prob(y, inputs=given, method=ss.ParticleFilter(20_000))
        assert_close(particles, each.log_prob(y, inputs=given).detach(), rtol=0, atol=0.08)


# ------------------------------------------------------------------------------------------------- roots


def test_lower_is_a_root_with_a_gradient_where_it_is_singular():
    x = normal(3, 5)
    x[2] = x[0]
    x.requires_grad_()
    weight = normal(3, 3)
    found = lower(x)
    assert_close(found @ found.T, x @ x.T)
    assert bool((found.triu(1) == 0).all())
    (gradient,) = torch.autograd.grad(((found @ found.T) * weight).sum(), x)
    (truth,) = torch.autograd.grad(((x @ x.T) * weight).sum(), x)
    assert_close(gradient, truth)


def test_the_gradient_holds_where_covariances_are_singular():
    """A lag, an unknown variance of zero, a certain start: the gradient is the slope, and no NaN."""
    model = ss.linear_gaussian(
        dynamics=[[0.5, 0.3], [1.0, 0.0]],
        state_noise=[[1.0, 0.0], [0.0, 0.0]],
        observation=[[1.0, 0.5]],
        observation_noise=[[0.5]],
        initial_covariance=[[0.0, 0.0], [0.0, 0.0]],
    )
    y = normal(6, 1)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(model.log_prob(y), parameters)
    for p, gradient in zip(parameters, gradients, strict=True):
        slopes = torch.zeros_like(p)
        with torch.no_grad():
            for i in range(p.numel()):
                at = p.view(-1)
                keep, values = at[i].item(), []
                for step in (1e-5, -1e-5):
                    at[i] = keep + step
                    values.append(model.log_prob(y).item())
                at[i] = keep
                slopes.view(-1)[i] = (values[0] - values[1]) / 2e-5
        assert_close(gradient, slopes, rtol=1e-4, atol=2e-4)


def test_root_turns_columns():
    x = torch.tensor([[-1.0, 9.0], [2.0, 3.0]])
    assert root(x).tolist() == [[1.0, 0.0], [-2.0, 3.0]]
    assert torch.equal(root(torch.stack([x, x]))[1], root(x))


@pytest.mark.parametrize(
    ("options", "asked", "words"),
    [
        ({"inputs": 2}, {}, "Linear takes 2 inputs a step and none were given; give inputs="),
        ({"inputs": 2}, {"inputs": torch.zeros(3, 1)}, "takes 2 inputs a step and 1 were given"),
        ({"observation": torch.ones(3, 1, 1)}, {"inputs": [1, 2, 3]}, r"step 3 lies outside 0\.\.2"),
    ],
)
def test_missing_inputs_are_named(options: dict, asked: dict, words: str):
    model = ss.linear_gaussian(state=1, observed=1, **options)
    with pytest.raises(ss.StatespanError, match=words):
        model.log_prob(torch.zeros(3, 1), **asked)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dynamics": torch.ones(3, 1, 1), "state_offset": torch.ones(4, 1)}, "values for 3 and for 4 steps; give one"),
        ({"dynamics": torch.ones(3, 1, 1), "inputs": 2}, "takes the step as its input and no other"),
        ({"state_inputs": torch.ones(1, 2), "inputs": 3}, "sizes differ: inputs= 3, state_inputs 2"),
        ({"dynamics": [[math.nan]]}, "dynamics=.* not finite"),
        ({"state_offset": [1.0, 2.0], "state": 1}, "sizes differ: state= 1, state_offset 2"),
    ],
)
def test_bad_values_are_named(options: dict, words: str):
    with pytest.raises(ss.StatespanError, match=words):
        ss.linear_gaussian(**{"state": 1, "observed": 1} | options)
