"""Discretisation against Van Loan's block exponential; Matern processes against their dense normal; irregular times."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import statespan as ss
from statespan.parts.continuous import discretise


def van_loan(drift: torch.Tensor, gain: torch.Tensor, gap: float) -> tuple[torch.Tensor, torch.Tensor]:
    size = len(drift)
    block = torch.cat([torch.cat([drift, gain @ gain.T], 1), torch.cat([torch.zeros_like(drift), -drift.T], 1)])
    whole = torch.linalg.matrix_exp(block * gap)
    matrix = whole[:size, :size]
    return matrix, whole[:size, size:] @ matrix.T


@pytest.mark.parametrize("gap", [1e-6, 0.01, 0.3, 2.0])
def test_discretisation_is_van_loans(gap: float):
    random = torch.Generator().manual_seed(0)
    for size, noises in ((1, 1), (3, 1), (4, 6)):
        drift = torch.randn(size, size, generator=random).double() - torch.eye(size).double()
        gain = torch.randn(size, noises, generator=random).double()
        matrix, root = discretise(drift, gain, torch.tensor([gap], dtype=torch.float64))
        a, q = van_loan(drift, gain, gap)
        assert_close(matrix[0], a, rtol=1e-8, atol=1e-10)  # torch's exponential is that good
        assert_close(root[0] @ root[0].T, q, rtol=1e-8, atol=1e-10 * float(q.abs().max()))


def test_a_long_gap_forgets_and_none_is_none():
    """Where Van Loan's exponential overflows: the stationary covariance, F P + P F' + G G' = 0."""
    drift = torch.tensor([[-1.0, 2.0], [0.0, -30.0]]).double()
    gain = torch.eye(2).double()
    matrix, root = discretise(drift, gain, torch.tensor([0.0, 200.0]).double())
    assert_close(matrix[0], torch.eye(2).double())
    assert not root[0].any()
    spread = root[1] @ root[1].T
    assert_close(drift @ spread + spread @ drift.T, -torch.eye(2).double())
    assert_close(matrix[1], torch.zeros(2, 2).double(), atol=1e-80, rtol=0)


def kernel(smoothness: float, r: torch.Tensor, length: float, variance: float) -> torch.Tensor:
    """Rasmussen and Williams 2006, equation 4.17."""
    x = (2 * smoothness) ** 0.5 * r / length
    shape = {0.5: 1, 1.5: 1 + x, 2.5: 1 + x + x**2 / 3}[smoothness]
    return variance * shape * torch.exp(-x)


@pytest.mark.parametrize("smoothness", [0.5, 1.5, 2.5])
def test_a_matern_process_is_the_dense_one(smoothness: float):
    random = torch.Generator().manual_seed(1)
    times = (torch.rand(25, generator=random).double() * 8).sort().values
    times[7] = times[6]  # twice at one time
    y = torch.sin(times) + 0.3 * torch.randn(25, generator=random)
    y[11] = math.nan
    gaps = torch.diff(times, prepend=times[:1])
    model = ss.matern(smoothness, length=1.7, variance=2.0, noise=0.3)
    with torch.no_grad():
        model.emission.offset.fill_(0.4)
    there = ~y.isnan()
    every = torch.cat([times, times[-1:] + 1.3])
    spread = kernel(smoothness, (every[:, None] - every).abs(), 1.7, 2.0)
    seen = spread[:25, :25][there][:, there] + 0.3 * torch.eye(int(there.sum())).double()
    joint = torch.distributions.MultivariateNormal(torch.full((int(there.sum()),), 0.4).double(), seen)
    assert float(model.log_prob(y, inputs=gaps).detach()) == pytest.approx(float(joint.log_prob(y[there])), rel=1e-10)
    gain = spread[:, :25][:, there] @ torch.linalg.inv(seen)
    expected = gain @ (y[there] - 0.4)
    assert_close(model.smooth(y, inputs=gaps).mean[:, 0], expected[:25], atol=1e-9, rtol=0)
    forecast = model.forecast(y, steps=1, inputs=gaps, future=[[1.3]])
    assert_close(forecast.mean[0], expected[25:] + 0.4, atol=1e-9, rtol=0)
    variance = (spread - gain @ spread[:25][there])[25, 25] + 0.3
    assert_close(forecast.distribution.variance.detach().flatten()[0], variance)


def test_its_gradient_and_fit_are_those_of_the_dense_process():
    random = torch.Generator().manual_seed(2)
    times = torch.rand(30, generator=random).double().mul(10).sort().values
    y = torch.sin(times) + 0.2 * torch.randn(30, generator=random)
    gaps = torch.diff(times, prepend=times[:1])
    model = ss.matern(1.5, length=1.0, variance=1.0, noise=0.2)
    (-model.log_prob(y, inputs=gaps)).backward()
    found = [model.transition.log_length.grad, model.transition.log_variance.grad, model.emission.scale.grad[0, 0]]
    logs = torch.tensor([0.0, 0.0, 0.2**0.5], dtype=torch.float64, requires_grad=True)
    spread = kernel(1.5, (times[:, None] - times).abs(), logs[0].exp(), logs[1].exp())
    spread = spread + logs[2].square() * torch.eye(30)
    (-torch.distributions.MultivariateNormal(torch.zeros(30).double(), spread).log_prob(y)).backward()
    assert_close(torch.stack(found), logs.grad, rtol=1e-7, atol=1e-8)
    by = ss.LBFGS(iterations=25)
    model.fit(y, by=by, inputs=gaps)
    assert by.history[-1] > by.history[0] + 1
    names = ss.summary(model, y, inputs=gaps).frame()["name"]
    assert set(names) == {"transition.length", "transition.variance", "emission.offset", "emission.covariance"}


def test_batches_gaps_of_their_own_and_the_discrete_model_where_gaps_are_equal():
    drift = [[0.0, 1.0], [-0.5, -0.4]]
    model = ss.continuous(drift, gain=[[0.0], [1.0]], density=[[0.3]], observation=[[1.0, 0.0]], initial="stationary")
    matrix, q = van_loan(torch.tensor(drift).double(), torch.tensor([[0.0], [0.3**0.5]]).double(), 0.7)
    plain = ss.linear_gaussian(
        dynamics=matrix, state_noise=q, observation=[[1.0, 0.0]], observation_noise=[[1.0]], initial="stationary"
    )
    y = torch.randn(2, 9, 1, generator=torch.Generator().manual_seed(0)).double()
    same = torch.full((2, 9, 1), 0.7).double()
    same[:, 0] = 99.0  # that of the first step is not used
    assert_close(model.log_prob(y, inputs=same), plain.log_prob(y))
    gaps = torch.rand(2, 9, 1, generator=torch.Generator().manual_seed(1)).double()
    each = torch.stack([model.log_prob(y[i], inputs=gaps[i]) for i in range(2)])
    assert_close(model.log_prob(y, inputs=gaps), each)
    # A step that is not observed is as if it were not there.
    blank, merged = y[0].clone(), gaps[0].clone()
    blank[4] = math.nan
    merged[5] += merged[4]
    kept = [i for i in range(9) if i != 4]
    assert_close(model.log_prob(blank, inputs=gaps[0]), model.log_prob(y[0][kept], inputs=merged[kept]))
    drawn = model.sample(3, 9, seed=0, inputs=gaps[:1].expand(3, -1, -1).transpose(0, 1))[1]
    assert drawn.shape == (3, 9, 1)


def test_what_is_saved_comes_back(tmp_path):
    for i, model in enumerate((ss.matern(2.5), ss.continuous(-np.eye(2), observed=1, initial="stationary", seed=0))):
        model.save(tmp_path / str(i))
        assert_close(
            ss.load(tmp_path / str(i)).log_prob([0.1, 0.2], inputs=[0.0, 0.5]),
            model.log_prob([0.1, 0.2], inputs=[0.0, 0.5]),
            rtol=0,
            atol=0,
        )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ss.matern(2.0), "use 0.5, 1.5"),
        (lambda: ss.matern(length=-1.0), "use more than 0"),
        (lambda: ss.matern().log_prob([0.1, 0.2], inputs=[0.0, -1.0]), "time must not run backwards"),
        (lambda: ss.matern().log_prob([0.1, 0.2]), "none were given"),
        (lambda: ss.continuous([[1.0, 2.0]], observed=1), "must be square"),
        (lambda: ss.continuous([[1.0]], gain=np.eye(2), observed=1), "has 2 rows where drift has 1"),
        (lambda: ss.continuous([[1.0]], density=np.eye(2), observed=1), "2 wide where gain has 1"),
        (lambda: ss.continuous([[0.1]], observed=1, initial="stationary"), "no stationary distribution"),
        (lambda: ss.linear_gaussian(None, 1, np.ones((3, 1, 1)), initial="stationary"), "Scheduled has no one"),
    ],
)
def test_refusals(call, words: str):
    with pytest.raises(ss.StatespanError, match=words):
        call()
