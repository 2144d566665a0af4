"""Free parameters counted, and standard errors against a second derivative by autograd and against theory."""

import math

import pytest
import torch
from torch.testing import assert_close

import statespan as ss
from statespan.method import run
from statespan.methods import Forward
from statespan.verbs import ask


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (ss.hmm(states=3, emission=ss.Categorical(5)), 2 + 6 + 12),
        (ss.hmm(states=3, emission=ss.Gaussian(2)), 2 + 6 + 6 + 9),
        (ss.hmm(states=3, emission=ss.Gaussian(2, "tied")), 2 + 6 + 6 + 3),
        (ss.hmm(states=3, emission=ss.Gaussian(2, "diagonal")), 2 + 6 + 6 + 6),
        (ss.hmm(states=3, emission=ss.Gaussian(2, "spherical")), 2 + 6 + 6 + 3),
        (ss.hmm(initial=[1.0, 0.0], transition=[[0.5, 0.5], [0.0, 1.0]], emission=ss.Categorical(2)), 0 + 1 + 2),
        (ss.hmm(states=3, transition=ss.Dense(3, ties=[0, 0, 1]), emission=ss.Categorical(2)), 2 + 4 + 3),
    ],
)
def test_free_parameters(model: ss.StateSpace, count: int):
    assert ss.free_parameters(model) == count
    model.emission.requires_grad_(False)
    assert ss.free_parameters(model) == count - ss.free_parameters(model.emission.requires_grad_(True))


def test_one_state_is_a_sample():
    """The error of a mean is s / sqrt n, of a variance s^2 sqrt(2 / n)."""
    y = torch.randn(400, generator=torch.Generator().manual_seed(0)).double() * 3 + 5
    model = ss.hmm(states=1, emission=ss.Gaussian(1), seed=0).fit(y)
    frame = ss.summary(model, y).frame()
    row = {name: i for i, name in enumerate(frame["name"])}
    variance = float(y.var(unbiased=False))
    mean, spread = row["emission.mean"], row["emission.covariance"]
    assert frame["estimate"][mean] == pytest.approx(float(y.mean()))
    assert frame["error"][mean] == pytest.approx(math.sqrt(variance / 400), rel=1e-4)
    assert frame["error"][spread] == pytest.approx(variance * math.sqrt(2 / 400), rel=1e-4)
    half = 1.959963984540054 * math.sqrt(2 / 400)
    assert frame["high"][spread] == pytest.approx(variance * math.exp(half), rel=1e-4)


def test_against_the_second_derivative_by_autograd():
    truth = ss.hmm(
        initial=[0.5, 0.5],
        transition=[[0.8, 0.2], [0.3, 0.7]],
        emission=ss.Gaussian(mean=[[0.0], [3.0]], covariance=[[[1.0]]] * 2),
    )
    rows = [truth.sample(None, 12, seed=i)[1] for i in range(12)]
    model = ss.hmm(states=2, emission=ss.Gaussian(1), seed=0).fit(rows, by=ss.EM(iterations=400, tolerance=1e-13))
    frame = ss.summary(model, rows).frame()
    a, m = model.transition.probs.detach(), model.emission.mean.detach()[:, 0]
    s = model.emission.covariance.detach()[:, 0, 0]
    data, _ = ask(model, rows)

    def log_prob(x: torch.Tensor) -> torch.Tensor:
        """Of natural parameters (p(z_1 = 0), A_01, A_10, means, variances), by a plain loop."""
        move = torch.stack([torch.stack([1 - x[1], x[1]]), torch.stack([x[2], 1 - x[2]])])
        now, total = torch.stack([x[0], 1 - x[0]]).expand(12, 2), 0.0
        for t in range(12):
            dens = torch.exp(-0.5 * (data.y[t] - x[3:5]) ** 2 / x[5:7]) / torch.sqrt(2 * math.pi * x[5:7])
            joint = (now if t == 0 else now @ move) * dens
            total = total + joint.sum(-1).log().sum()
            now = joint / joint.sum(-1, keepdim=True)
        return total

    x = torch.cat([model.initial.probs().detach()[:1], a[0, 1:], a[1, :1], m, s])
    value = run(model, Forward(), data).log_prob
    assert_close(log_prob(x), value.sum().detach())
    errors = torch.linalg.inv(-torch.autograd.functional.hessian(log_prob, x)).diagonal().sqrt().tolist()
    found = {(n, i): e for n, i, e in zip(frame["name"], frame["index"], frame["error"], strict=True)}
    keys = [("initial.probs", "0"), ("transition.probs", "0,1"), ("transition.probs", "1,0")]
    keys += [("emission.mean", "0,0"), ("emission.mean", "1,0")]
    keys += [("emission.covariance", "0,0,0"), ("emission.covariance", "1,0,0")]
    assert [found[k] for k in keys] == pytest.approx(errors, rel=1e-3)


def test_what_is_held_or_at_a_boundary_has_no_error():
    y = [0, 0, 1, 0, 1, 1, 0, 0, 1, 1, 1, 0] * 4
    model = ss.hmm(
        initial=[1.0, 0.0], transition=[[0.5, 0.5], [0.5, 0.5]], emission=ss.Categorical(probs=[[0.9, 0.1], [0.2, 0.8]])
    )
    model.emission.requires_grad_(False)
    model.fit(y)
    found = ss.summary(model, y)
    frame = found.frame()
    assert not any(name.startswith("emission") for name in frame["name"])
    for name, error in zip(frame["name"], frame["error"], strict=True):
        assert (error is None) == (name == "initial.probs")
    assert "std. error" in str(found)
    before = [p.clone() for p in model.parameters()]
    ss.summary(model, y)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_flat_direction_is_said():
    model = ss.hmm(states=2, emission=ss.Categorical(2), seed=0)
    with torch.no_grad():
        model.emission.set_probs(torch.tensor([[0.5, 0.5], [0.5, 0.5]]).double())
    found = ss.summary(model, [0, 1, 1, 0])
    assert any("does not curve" in note for note in found.notes)
    with pytest.raises(ss.StatespanError, match="level"):
        ss.summary(model, [0, 1], level=2)


def test_they_are_read_without_gradients_too():
    model = ss.hmm(states=2, emission=ss.Gaussian(1), seed=0)
    with torch.no_grad():
        assert set(ss.parameters.natural(model.emission)) == {"mean", "covariance"}


# ------------------------------------------------------------------------------- normal states, by statsmodels


def rows(summary) -> dict[str, tuple[float, float | None]]:
    frame = summary.frame()
    each = zip(frame["name"], frame["index"], frame["estimate"], frame["error"], strict=True)
    return {f"{name}[{index}]" if index else name: (x, e) for name, index, x, e in each}


def test_standard_errors_of_a_local_level_with_a_cycle_are_those_of_statsmodels():
    api = pytest.importorskip("statsmodels.api")
    random = torch.Generator().manual_seed(0)
    turn = 0.9 * torch.tensor([[0.84, 0.54], [-0.54, 0.84]]).double()
    shocks, noise = torch.randn(150, 3, generator=random).double(), torch.randn(150, generator=random)
    waves = [shocks[0, :2]]
    for shock in shocks[1:, :2]:
        waves.append(turn @ waves[-1] + shock)
    y = torch.stack(waves)[:, 0] + 0.3 * shocks[:, 2].cumsum(0) + 0.7 * noise
    model = ss.level() + ss.cycle(period=10, shortest=4, longest=40)
    model.initial.each[1] = ss.DiffuseStart(2).double()  # as statsmodels starts a damped cycle
    model.fit(y, by=ss.LBFGS(iterations=40))
    found = rows(ss.summary(model, y))
    names = ["noise.variance", "level.variance[0]", "cycle.variance", "cycle.period", "cycle.persistence"]
    assert set(found) == set(names)
    noise, level, shock, period, damping = (found[name][0] for name in names)
    theirs = api.tsa.UnobservedComponents(
        y.numpy(), "llevel", cycle=True, damped_cycle=True, stochastic_cycle=True, use_exact_diffuse=True
    )
    theirs = theirs.smooth([noise, level, shock, 2 * math.pi / period, damping], cov_type="approx")
    assert float(model.log_prob(y).detach()) == pytest.approx(theirs.llf)
    errors = [float(x) for x in theirs.bse]
    errors[3] *= period**2 / (2 * math.pi)  # of the period, by the delta method
    assert [found[name][1] for name in names] == pytest.approx(errors, rel=5e-3)  # theirs are finite differences


def test_standard_errors_of_arima_and_of_a_linear_gaussian_model():
    api = pytest.importorskip("statsmodels.api")
    random = torch.Generator().manual_seed(1)
    y, last = torch.randn(150, generator=random).double(), 0.0
    for i in range(150):
        y[i] = last = 0.7 * last + float(y[i])
    model = ss.arima(2, 0, 0).fit(y, by=ss.LBFGS(iterations=60))
    found = rows(ss.summary(model, y))
    names = ["arima.ar[0]", "arima.ar[1]", "arima.variance"]
    theirs = api.tsa.SARIMAX(y.numpy(), order=(2, 0, 0)).smooth([found[n][0] for n in names], cov_type="approx")
    assert [found[n][1] for n in names] == pytest.approx(theirs.bse.tolist(), rel=5e-3)
    noisy = y + 0.5 * torch.randn(150, generator=random)
    one = torch.ones(1, 1).double()
    model = ss.linear_gaussian(
        dynamics=0.5 * one, observation=one, state_noise=one, observation_noise=0.5 * one, initial="stationary"
    )
    held = [model.emission.matrix, model.emission.offset, model.transition.offset]
    for parameter in held:
        parameter.requires_grad_(False)
    model.fit(noisy, by=ss.LBFGS(iterations=60))
    found = rows(ss.summary(model, noisy))
    names = ["emission.covariance[0,0]", "transition.covariance[0,0]", "transition.matrix[0,0]"]
    assert set(found) == set(names)  # the start is the transition's own, and is not said twice
    theirs = api.tsa.UnobservedComponents(noisy.numpy(), irregular=True, autoregressive=1)
    theirs = theirs.smooth([found[n][0] for n in names], cov_type="approx")
    assert [found[n][1] for n in names] == pytest.approx(theirs.bse.tolist(), rel=5e-3)


def test_parts_inside_a_part_speak_for_themselves():
    model = ss.hmm(states=2, emission=ss.Product(ss.Gaussian(1), ss.Poisson(1)), seed=0)
    names = set(ss.summary(model, [[0.1, 1.0], [0.4, 3.0]]).frame()["name"])
    assert {"emission.emissions.0.mean", "emission.emissions.0.covariance", "emission.emissions.1.rate"} <= names


def test_a_variance_at_zero_is_on_the_boundary():
    """Noise whose neighbours are opposed has no moving level: its variance is fitted at zero, without an error."""
    e = torch.randn(61, generator=torch.Generator().manual_seed(4)).double()
    y = e[1:] - 0.3 * e[:-1]
    model = ss.level().fit(y, by=ss.LBFGS(iterations=60))
    found = ss.summary(model, y)
    frame = found.frame()
    at = frame["name"].index("level.variance")
    assert frame["estimate"][at] < 1e-4
    assert (frame["error"][at], frame["low"][at], frame["note"][at]) == (None, None, "on the boundary")
    other = frame["name"].index("noise.variance")
    assert frame["note"][other] == "" and frame["error"][other] == pytest.approx(
        2**0.5 * float(y.var()) / 60**0.5, rel=0.1
    )
    assert "on the boundary" in str(found)
