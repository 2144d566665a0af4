"""The Kalman kernel against the scan: every form of matrices and gaps, in value, gradient and smoothing."""

import math

import pytest
import sympy
import torch
from torch.testing import assert_close

import statespan as ss
from statespan.method import prepare, run
from statespan.parts.structural import Arima
from statespan.sequences import Sequences, read

T, B, D, E = 9, 4, 3, 2
KEEP = ("predicted", "filtered", "last", "log_prob")


class Plain(ss.Kalman):
    """The same method, for which no kernel is registered."""


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def fixed(initial: str = "known") -> ss.StateSpace:
    return ss.linear_gaussian(dynamics=0.5 * normal(D, D), observation=normal(E, D), initial=initial)


def singular() -> ss.StateSpace:
    """A companion matrix with one noise, seen without noise, from a certain start."""
    a = torch.tensor([[0.5, 0.2, -0.3], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).double()
    q = torch.zeros(3, 3).double()
    q[0, 0] = 1.0
    return ss.linear_gaussian(
        dynamics=a,
        state_noise=q,
        observation=[[1.0, 0.4, 0.0], [0.3, 0.0, 0.0]],
        observation_noise=[[0.0, 0.0], [0.0, 0.2]],
        initial_covariance=torch.diag(torch.tensor([1.0, 0.0, 0.0])),
    )


def changing() -> ss.StateSpace:
    r = normal(T, E, E)
    return ss.linear_gaussian(dynamics=0.5 * normal(T, D, D), observation=normal(E, D), observation_noise=r @ r.mT)


def driven() -> ss.StateSpace:
    return ss.linear_gaussian(
        dynamics=0.5 * normal(D, D),
        observation=normal(E, D),
        state_inputs=normal(D, 1),
        observation_inputs=normal(E, 1),
    )


MODELS = {
    "known": fixed,
    "stationary": lambda: ss.linear_gaussian(
        dynamics=0.3 * torch.eye(D), observation=normal(E, D), initial="stationary"
    ),
    "diffuse": lambda: fixed("diffuse"),
    "singular": singular,
    "changing": changing,
    "driven": driven,
}
FORMS = ("whole", "one", "ragged", "gaps", "same-gaps")


DRIVEN = {"changing", "driven"}
"""The models that take inputs: which step it is, or what acts on it."""


def data_of(model: ss.StateSpace, form: str, driven: bool) -> Sequences:
    y = normal(1 if form == "one" else B, T, E)
    if form == "gaps":
        y = y.masked_fill(torch.rand(B, T, E) < 0.3, math.nan)
    if form == "same-gaps":
        y[:, 3] = math.nan
        y[:, 5, 1] = math.nan
    steps = torch.arange(T).double()[None, :, None].expand(len(y), -1, -1)
    if form == "ragged":
        ends = [9, 4, 7, 4]
        rows, inputs = [r[:n] for r, n in zip(y, ends, strict=True)], [steps[0, :n] for n in ends]
        return ss.verbs.ask(model, rows, inputs=inputs if driven else None)[0]
    return ss.verbs.ask(model, y, inputs=steps if driven else None)[0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MODELS)
def test_it_equals_the_scan(name: str, form: str):
    torch.manual_seed(len(name) + 7 * len(form))
    model = MODELS[name]()
    data = data_of(model, form, name in DRIVEN)
    inside = data.within
    size = {"rtol": 1e-8, "atol": 1e-8}
    with torch.no_grad():
        fast, slow = (run(model, ss.Kalman(), data, None, KEEP, kernel=k) for k in (True, False))
        for what in ("predicted", "filtered"):
            a, b = getattr(fast, what), getattr(slow, what)
            assert_close(a.mean[inside], b.mean[inside], **size)
            assert_close((a.scale @ a.scale.mT)[inside], (b.scale @ b.scale.mT)[inside], **size)
        assert_close(fast.log_prob, slow.log_prob, **size)
        assert_close(fast.last.mean, slow.last.mean, **size)
        for method in (ss.Kalman(), ss.Kalman(steady=0.0)):
            quick, plain = (
                m.hindsight(model, prepare(model, m, data), None, data, pairs=True) for m in (method, Plain())
            )
            assert_close(quick.smoothed.mean[inside], plain.smoothed.mean[inside], **size)
            a, b = quick.smoothed.scale, plain.smoothed.scale
            assert_close((a @ a.mT)[inside], (b @ b.mT)[inside], **size)
            assert_close(quick.pairs, plain.pairs, **size)
            assert_close(quick.log_prob, plain.log_prob, **size)
    parameters = list(model.parameters())
    weights = torch.rand(data.shape[1], dtype=torch.float64)
    grads = [
        torch.autograd.grad((run(model, ss.Kalman(), data, kernel=k).log_prob.sum(0) * weights).sum(), parameters)
        for k in (True, False)
    ]
    for a, b in zip(*grads, strict=True):
        assert_close(a, b, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("dim", "outputs", "batch"), [(1, 1, 2), (1, 1, 11), (6, 5, 19), (9, 4, 8), (17, 3, 13)])
def test_whole_and_partial_vectors_of_series_equal_the_scan(dim: int, outputs: int, batch: int):
    """More series than lanes, sizes that are no multiple of four, offsets that differ by series."""
    torch.manual_seed(dim)
    model = ss.linear_gaussian(
        dynamics=0.9 * torch.linalg.qr(normal(dim, dim))[0],
        observation=normal(outputs, dim),
        state_inputs=normal(dim, 2),
        observation_inputs=normal(outputs, 2),
    )
    data, _ = ss.verbs.ask(model, normal(batch, 40, outputs), inputs=normal(batch, 40, 2))
    with torch.no_grad():
        fast, slow = (run(model, ss.Kalman(), data, None, KEEP, kernel=k) for k in (True, False))
        for what in ("predicted", "filtered", "last"):
            assert_close(getattr(fast, what).mean, getattr(slow, what).mean, rtol=1e-9, atol=1e-9)
        assert_close(fast.log_prob, slow.log_prob, rtol=1e-9, atol=1e-9)
        quick, plain = (m.smooth(model, prepare(model, m, data), None, data.shape) for m in (ss.Kalman(), Plain()))
        assert_close(quick.mean, plain.mean, rtol=1e-9, atol=1e-9)
        assert_close(quick.summary()["covariance"], plain.summary()["covariance"], rtol=1e-9, atol=1e-9)


def test_series_that_share_covariances_hold_them_once():
    """In what the verbs answer too: a thousand series take no more than one."""
    model, y = fixed(), normal(10, 30, E)
    for found in (model.filter(y), model.smooth(y)):
        assert found.covariance.shape == (10, 30, D, D)
        assert found.covariance.stride(0) == 0
        alone = (model.filter if found.belief is not None else model.smooth)(y[3])
        assert_close(found.covariance[3], alone.covariance, rtol=1e-12, atol=1e-12)


def test_a_settled_covariance_is_kept_once_and_spread_when_it_is_asked_for():
    """A filter of many steps holds no T x D x D; what it answers is that of every step."""
    model, steps = fixed(), 2_000
    y = normal(2, steps, E)
    found = model.filter(y)
    with torch.no_grad():
        kept = run(model, ss.Kalman(), ss.verbs.ask(model, y)[0], None, ("filtered",)).filtered
    assert len(kept.roots) < 200
    always = model.filter(y, method=ss.Kalman(steady=0.0))
    assert_close(found.covariance, always.covariance, rtol=0, atol=1e-12)
    assert_close(found.mean, always.mean, rtol=0, atol=1e-11)
    assert found.covariance is found.covariance
    assert_close(found.log_prob, always.log_prob, rtol=1e-12, atol=0)
    smoothed, each = (model.smooth(y, method=m) for m in (None, ss.Kalman(steady=0.0)))
    assert_close(smoothed.mean, each.mean, rtol=0, atol=1e-11)
    assert_close(smoothed.covariance, each.covariance, rtol=0, atol=1e-12)
    assert kept.draw().mean.shape == kept.point().shape


def test_what_settles_is_right_for_many_series_and_for_series_that_begin_apart():
    """Smoothed roots are kept once too; starts that differ by series settle at steps of their own."""
    model, y = fixed(), normal(9, 300, E)
    data, always = ss.verbs.ask(model, y)[0], ss.Kalman(steady=0.0)
    with torch.no_grad():
        smoothed = ss.Kalman().hindsight(model, prepare(model, ss.Kalman(), data), None, data).smoothed
    assert len(smoothed.roots) < 200
    ragged = [row[:n] for row, n in zip(y, (2, 30, 1, 4, 5, 6, 7, 8, 9), strict=True)]
    apart = model.filter(ragged).belief
    for verb, belief in ((model.smooth, None), (model.filter, apart), (model.smooth, apart)):
        once, each = (verb(y, method=m, belief=belief) for m in (ss.Kalman(), always))
        assert_close(once.mean, each.mean, rtol=0, atol=1e-10)
        assert_close(once.covariance, each.covariance, rtol=0, atol=1e-11)
        assert_close(once.log_prob, each.log_prob, rtol=0, atol=1e-9)


def test_the_settled_gain_is_exact():
    """A slow model of 400 steps: with and without reuse, to the tolerance that is stated."""
    model = ss.linear_gaussian(
        dynamics=[[0.98, 0.1], [0.0, 0.95]], observation=[[1.0, 0.0]], state_noise=0.01 * torch.eye(2)
    )
    y = model.sample(2, 400, seed=0)[1]
    once, always = (model.smooth(y, method=ss.Kalman(steady=s)) for s in (1e-14, 0.0))
    assert_close(once.log_prob, always.log_prob, rtol=0, atol=1e-9)
    assert_close(once.mean, always.mean, rtol=0, atol=1e-10)
    assert_close(once.covariance, always.covariance, rtol=0, atol=1e-10)
    assert_close(model.log_prob(y).detach(), model.log_prob(y, method=Plain()).detach(), rtol=0, atol=1e-9)


def test_roots_stay_positive_where_plain_covariances_do_not():
    """Two nearly equal rows seen almost exactly (Bierman 1977): the innovation's condition number is above 1e12."""
    d = 2.0**-20
    rows = [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0 + d]]
    c, r, p = torch.tensor(rows).double(), d * d * torch.eye(2).double(), torch.eye(3).double()
    innovation = c @ p @ c.T + r
    assert torch.linalg.cond(innovation) > 1e12
    plain = p - p @ c.T @ torch.linalg.inv(innovation) @ c @ p
    # The exact answer in fractions: (I + C' C / d^2)^-1.
    precision = (
        sympy.eye(3)
        + sympy.Matrix(rows).applyfunc(sympy.Rational).T
        * sympy.Matrix(rows).applyfunc(sympy.Rational)
        / sympy.Rational(d) ** 2
    )
    truth = torch.tensor(precision.inv().evalf(30).tolist(), dtype=torch.float64)
    model = ss.linear_gaussian(observation=c, observation_noise=r, initial_covariance=p)
    wrong = (plain - truth).abs().max()
    for method in (ss.Kalman(), Plain()):
        found = model.filter(torch.zeros(1, 2).double(), method=method).covariance[0]
        assert (found - truth).abs().max() < 1e-8
        assert wrong > 1e3 * (found - truth).abs().max()
        assert torch.linalg.eigvalsh(found)[0] > 0
    assert torch.linalg.eigvalsh(0.5 * (plain + plain.T))[0] < 0


def test_an_observation_that_cannot_be_has_probability_zero():
    """Seen without noise from a start without variance: the model knows y_1, and y_2 once the gain has settled."""
    model = ss.linear_gaussian(
        dynamics=[[0.5]],
        state_noise=[[0.0]],
        observation=[[1.0]],
        observation_noise=[[0.0]],
        initial_mean=[2.0],
        initial_covariance=[[0.0]],
    )
    for method in (ss.Kalman(), Plain()):
        assert model.log_prob([[2.0], [1.0], [0.5]], method=method) == 0
        assert model.log_prob([[2.0], [1.5], [0.5]], method=method).isneginf()


def test_a_coordinate_that_others_determine_adds_nothing():
    """y = (z, 2 z, w) with w noise: the density is that of (z, w), in any order, and zero where y_2 is not 2 y_1."""
    whole, two = ([[1.0], [2.0], [0.0]], [0.0, 0.0, 4.0]), ([[1.0], [0.0]], [0.0, 4.0])
    full, small = (
        ss.linear_gaussian(dynamics=[[0.5]], observation=c, observation_noise=torch.diag(torch.tensor(r)))
        for c, r in (whole, two)
    )
    y = normal(2, 6, 2)
    wide = torch.stack([y[..., 0], 2 * y[..., 0], y[..., 1]], -1)
    for method in (ss.Kalman(), Plain()):
        found = full.smooth(wide, method=method)
        assert_close(found.log_prob, small.log_prob(y).detach(), rtol=1e-12, atol=1e-12)
        assert_close(found.mean, y[..., :1], rtol=0, atol=1e-12)
        assert full.log_prob(wide + torch.tensor([0.0, 0.1, 0.0]), method=method).isneginf().all()


def test_noise_of_fewer_dimensions_than_coordinates_is_told_by_as_many():
    """Six coordinates of three things: what the first three say is all, whatever rounding leaves of the others."""
    for seed in range(20):
        torch.manual_seed(seed)
        shown, noise = normal(6, 1), normal(6, 2)
        full, small = (
            ss.linear_gaussian(observation=shown[:n], observation_noise=noise[:n] @ noise[:n].T) for n in (6, 3)
        )
        y = normal(4, 1) @ shown.T + normal(4, 2) @ noise.T
        for method in (ss.Kalman(), Plain()):
            found, told = (m.log_prob(x, method=method).detach() for m, x in ((full, y), (small, y[:, :3])))
            assert_close(found, told, rtol=1e-9, atol=1e-9)


def test_the_gradient_of_a_long_series_is_that_of_its_value():
    """Over 600 steps the recursion backwards must not let rounding grow."""
    torch.manual_seed(9)
    model = ss.linear_gaussian(dynamics=0.95 * torch.linalg.qr(normal(9, 9))[0], observation=normal(3, 9))
    y, along, step = normal(1, 600, 3), normal(9, 9), 1e-5
    (gradient,) = torch.autograd.grad(model.log_prob(y).sum(), [model.transition.matrix])
    values = []
    with torch.no_grad():
        for sign in (1, -1):
            model.transition.matrix += sign * step * along
            values.append(model.log_prob(y).sum())
            model.transition.matrix -= sign * step * along
    assert_close((gradient * along).sum(), (values[0] - values[1]) / (2 * step), rtol=1e-5, atol=0)


def test_float32_is_computed_in_double():
    model, y = fixed(), normal(2, 50, E)
    truth = model.log_prob(y).detach()
    found = model.float().log_prob(y.float())
    assert_close(found.detach(), truth, rtol=1e-5, atol=1e-4)


def test_second_derivatives_are_refused():
    model = fixed()
    parameter = model.transition.matrix
    (gradient,) = torch.autograd.grad(model.log_prob(normal(5, E)), parameter, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(gradient.sum(), parameter)


def test_a_state_that_becomes_certain_stays_a_number():
    """What is not known of an invertible moving average falls by its root each step, to squares below the smallest."""
    model = ss.arima(0, 1, 1, seasonal=(0, 1, 1), season=4)
    (part,) = (p for p in model.modules() if isinstance(p, Arima))
    part.set(ma=[-0.2], seasonal_ma=[-0.3])
    with torch.no_grad():
        part.size.fill_(0.01)
    y = torch.randn(400, 1, generator=torch.Generator().manual_seed(0)).double().cumsum(0)
    data, _ = read(y, model.emission.event)
    fast, slow = (run(model, ss.Kalman(), data, kernel=kernel).log_prob for kernel in (True, False))
    assert fast.isfinite().all()
    assert_close(fast, slow, rtol=1e-9, atol=1e-9)
