"""Subspace identification: the poles of simulated systems, and a better start than a random one."""

import math

import pytest
import torch

import statespan as ss


def system(seed: int) -> tuple[ss.StateSpace, torch.Tensor]:
    """Two damped rotations in coordinates of no meaning, seen by three columns; and eight series of it."""
    random = torch.Generator().manual_seed(seed)

    def turn(r: float, angle: float) -> torch.Tensor:
        c, s = math.cos(angle), math.sin(angle)
        return r * torch.tensor([[c, s], [-s, c]])

    basis = torch.randn(4, 4, generator=random)
    back = torch.linalg.inv(basis)
    noise = 0.3 * basis @ basis.T
    truth = ss.linear_gaussian(
        dynamics=basis @ torch.block_diag(turn(0.95, 0.6), turn(0.9, 1.6)) @ back,
        state_noise=0.5 * (noise + noise.T),
        observation=torch.randn(3, 4, generator=random) @ back,
        observation_noise=0.5 * torch.eye(3),
        observation_offset=[1.0, 2.0, 3.0],
    )
    return truth, truth.sample(8, 150, seed=seed)[1]


def poles(model: ss.StateSpace) -> torch.Tensor:
    """Those above the real axis, by their angle."""
    found = torch.linalg.eigvals(model.transition.matrix.detach())
    found = found[found.imag > 0]
    return found[found.angle().argsort()]


@pytest.mark.parametrize("seed", [0, 1])
def test_poles_of_a_simulated_system_gaps_and_all(seed: int):
    truth, y = system(seed)
    y[0, 50], y[5, 70, 1] = torch.nan, torch.nan
    model = ss.subspace(y, state=4)
    assert (poles(model) - poles(truth)).abs().max() < 0.03
    with torch.no_grad():
        reached, best = float(model.log_prob(y).sum()), float(truth.log_prob(y).sum())
        random = max(float(ss.linear_gaussian(state=4, observed=3, seed=s).log_prob(y).sum()) for s in range(5))
    assert best - reached < 0.25 * (best - random)  # before any fit
    by, other = ss.EM(iterations=5, tolerance=0), ss.EM(iterations=5, tolerance=0)
    model.fit(y, by=by)
    ss.linear_gaussian(state=4, observed=3, seed=0).fit(y, by=other)
    assert by.history[-1] > other.history[-1] + 100


def test_several_series_and_a_list_of_numbers():
    truth = ss.linear_gaussian(dynamics=[[0.9]], observation=[[1.0]], observation_noise=[[0.5]], initial="stationary")
    whole = [*truth.sample(3, 250, seed=1)[1]]
    whole[1] = whole[1][:20]
    assert abs(ss.subspace(whole, state=1).transition.matrix.item() - 0.9) < 0.07
    padded = torch.zeros(2, 250, 1).double()
    padded[0], padded[1, :200] = whole[0], whole[2][:200]
    one, other = ss.subspace(padded, 1, lengths=[250, 200]), ss.subspace([whole[0], whole[2][:200]], 1)
    assert one.transition.matrix.item() == pytest.approx(other.transition.matrix.item())
    assert ss.subspace(whole[0][:, 0].tolist(), state=1, initial="diffuse").log_prob(whole[1]).isfinite()
    walk = torch.randn(400, generator=torch.Generator().manual_seed(0)).double().cumsum(0)
    assert ss.subspace(walk, state=1).transition.matrix.item() <= 0.999


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ss.subspace([0.1, 0.2, 0.3, 0.4, 0.5, 0.1], state=1, lags=3), "too few"),
        (lambda: ss.subspace(torch.zeros(50, 1), state=4, lags=2), "lags times 1"),
        (lambda: ss.subspace([float("nan")] * 40, state=1), "no whole observation"),
        (lambda: ss.subspace(torch.zeros(50, 1), state=0), "state of at least 1"),
    ],
)
def test_refusals(call, words: str):
    with pytest.raises(ss.StatespanError, match=words):
        call()
