"""Emissions that chains share, against the joint states written out, least squares and a Poisson regression."""

import itertools

import pytest
import torch
from torch.testing import assert_close

import statespan as ss

TIGHT = {"rtol": 1e-9, "atol": 1e-9}
NAN = float("nan")


def gaussian(kind: str = "full", seed: int = 0) -> ss.StateSpace:
    torch.manual_seed(seed)
    noise = torch.tensor([[0.6, 0.2], [0.2, 0.4]]) if kind == "full" else kind
    tables = [torch.randn(2, 2), torch.randn(3, 2)]
    if kind == "full":
        return ss.factorial_hmm([2, 3], ss.AdditiveGaussian(contributions=tables, covariance=noise), seed=seed)
    model = ss.factorial_hmm([2, 3], ss.AdditiveGaussian(2, kind), seed=seed)
    torch.nn.init.normal_(model.emission.log_diagonal)
    return model


def poisson(seed: int = 0) -> ss.StateSpace:
    torch.manual_seed(seed)
    tables = [0.5 * torch.randn(2, 2), 1 + 0.5 * torch.randn(3, 2)]
    return ss.factorial_hmm([2, 3], ss.AdditivePoisson(contributions=tables), seed=seed)


def joint(model: ss.StateSpace) -> ss.StateSpace:
    """The same model with nothing factored."""
    old = model.emission
    one, two = old.contributions
    sums = torch.stack([one[i] + two[j] for i in range(2) for j in range(3)]).detach()
    if isinstance(old, ss.AdditiveGaussian):
        emission: ss.Part = ss.Gaussian(mean=sums, covariance=old.covariance.detach().expand(6, 2, 2))
    else:
        emission = ss.Poisson(rate=sums.exp())
    start, table = model.initial.probs().detach(), model.transition.dense(model.transition.constants()).detach()
    return ss.hmm(initial=start, transition=table, emission=emission)


def holes(y: torch.Tensor) -> torch.Tensor:
    y = y.clone()
    y[0, 3], y[1, 2, 0], y[2, 0, 1], y[2, 5] = NAN, NAN, NAN, NAN
    return y


@pytest.mark.parametrize("make", [gaussian, lambda: gaussian("diagonal"), lambda: gaussian("spherical"), poisson])
def test_answers_are_those_of_the_joint_states(make, tmp_path):
    model = make()
    y = holes(model.sample(3, 8, seed=1)[1])
    twin = joint(model)
    for data in (y, [r[:n] for r, n in zip(y, (8, 3, 6), strict=True)]):
        assert_close(model.log_prob(data), twin.log_prob(data), **TIGHT)
    assert_close(model.smooth(y).probs, twin.smooth(y).probs, **TIGHT)
    assert_close(model.impute(y), twin.impute(y), **TIGHT)
    assert_close(model.decode(y), twin.decode(y))
    ours, theirs = model.forecast(y, 2, 10), twin.forecast(y, 2, 10)
    assert_close(ours.mean, theirs.mean, **TIGHT)
    assert_close(ours.distribution.variance, theirs.distribution.variance, **TIGHT)
    model.log_prob(y).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
    model.save(tmp_path / "m.safetensors")
    assert_close(ss.load(tmp_path / "m.safetensors").log_prob(y), model.log_prob(y), rtol=0, atol=0)
    assert_close(model.float().log_prob(y.float()), twin.log_prob(y), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["full", "diagonal", "spherical"])
def test_a_gaussian_step_is_weighted_least_squares(kind):
    model = gaussian(kind, seed=2)
    y = 1e3 + model.sample(3, 20, seed=1)[1]
    model.emission.begin(y.transpose(0, 1), None, None)
    weights = model.smooth(y).probs.flatten(0, 1)  # (N, 6)
    which = torch.tensor([[i == 0, i == 1, j == 0, j == 1, j == 2] for i in range(2) for j in range(3)]).double()
    rows, design = y.flatten(0, 1).repeat_interleave(6, 0), which.repeat(60, 1)
    root = weights.flatten().sqrt()[:, None]
    best = torch.linalg.lstsq(root * design, root * rows, driver="gelsd").solution
    left = root * (rows - design @ best)
    covariance = left.T @ left / 60
    if kind != "full":
        covariance = torch.diag(covariance.diagonal())
    if kind == "spherical":
        covariance = torch.eye(2).double() * covariance.diagonal().mean()
    model.fit(y, by=ss.EM(iterations=1))
    assert_close(model.emission.mean.detach(), which @ best, **TIGHT)
    assert_close(model.emission.covariance.detach(), covariance, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("make", [gaussian, lambda seed: gaussian("diagonal", seed), poisson])
def test_em_climbs_with_gaps(make):
    y = holes(make(seed=5).sample(3, 8, seed=1)[1])
    em = ss.EM(iterations=8, tolerance=0)
    make(seed=6).fit(y, by=em)
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(em.history))


def test_what_is_held_stays_and_a_start_from_the_data_helps():
    y = gaussian(seed=5).sample(3, 8, seed=1)[1]
    model = gaussian(seed=6)
    before = model.emission.table.clone()
    model.fit(y, by=ss.EM(iterations=2), hold=["emission.table"])
    assert_close(model.emission.table, before, rtol=0, atol=0)
    for make in (gaussian, poisson):
        y, model = make(seed=5).sample(2, 8, seed=1)[1], make(seed=6)
        em = ss.EM(iterations=2)
        model.fit(y, by=em, restarts=2, seed=0)
        assert all(value > -1e6 for value in em.restarts)


def test_refusals():
    with pytest.raises(ss.StatespanError, match=r"use ss\.factorial_hmm"):
        ss.hmm(states=6, emission=ss.AdditiveGaussian(2))
    with pytest.raises(ss.StatespanError, match=r"chains=\[2, 0\]"):
        ss.AdditivePoisson(1, chains=[2, 0])
    with pytest.raises(ss.StatespanError, match="all with the same D"):
        ss.AdditiveGaussian(contributions=[[[0.0]], [[1.0, 2.0]]])
    with pytest.raises(ss.StatespanError, match="positive definite matrix"):
        ss.AdditiveGaussian(2, covariance=torch.ones(2, 2), chains=[2])
    with pytest.raises(ss.StatespanError, match="choose one of them"):
        ss.AdditiveGaussian(2, covariance="tied", chains=[2])
    with pytest.raises(ss.StatespanError, match=r"counts 0, 1, 2"):
        poisson().log_prob([[0.5, 1.0]])
    with pytest.raises(ss.StatespanError, match=r"1,073,741,824 joint states.*StructuredMeanField"):
        ss.factorial_hmm([2] * 30, ss.AdditiveGaussian(1), seed=0).log_prob([[1.0]])
