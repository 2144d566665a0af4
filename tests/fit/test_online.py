"""Stepwise EM: where it must equal EM, and where it must end."""

import pytest
import torch
from torch.testing import assert_close

import statespan as ss
from statespan.fit.online import restate
from statespan.tree import leaves

KINDS = ["full", "diagonal", "spherical", "tied"]


def truth() -> ss.StateSpace:
    emission = ss.Gaussian(mean=[[0.0], [4.0]], covariance=[[[1.0]], [[0.25]]])
    return ss.hmm(initial=[0.5, 0.5], transition=[[0.9, 0.1], [0.2, 0.8]], emission=emission)


def rows(n: int) -> list[torch.Tensor]:
    return list(truth().sample(n, 40, seed=0)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_one_batch_of_everything_is_one_iteration_of_em(kind: str):
    y = rows(6)
    one, other = (ss.hmm(states=2, emission=ss.Gaussian(1, kind), seed=1) for _ in range(2))
    one.fit(y, by=ss.OnlineEM(epochs=1, batch=6))
    other.fit(y, by=ss.EM(iterations=1))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_sums_are_carried_over_when_the_means_move(kind: str):
    """Two batches at rate eta, against blended sums about zero by hand."""
    y = [torch.randn(30, 2, generator=torch.Generator().manual_seed(i)).double() + 3 * i for i in range(2)]
    model, online = ss.hmm(states=1, emission=ss.Gaussian(2, kind), seed=0), ss.OnlineEM(power=0.8)
    for batch in y:
        online.update(model, batch)
    eta = 2**-0.8
    first = (1 - eta) * y[0].mean(0) + eta * y[1].mean(0)
    second = (1 - eta) * y[0].T @ y[0] / 30 + eta * y[1].T @ y[1] / 30
    covariance = second - first[:, None] * first
    if kind in ("diagonal", "spherical"):
        covariance = torch.diag(covariance.diagonal())
    if kind == "spherical":
        covariance = torch.eye(2).double() * covariance.diagonal().mean()
    assert_close(model.emission.mean[0].detach(), first)
    assert_close(model.emission.covariance[0].detach(), covariance)


def emissions() -> dict[str, ss.Part]:
    table = torch.randn(2, 2, generator=torch.Generator().manual_seed(3)).double()
    return {
        "student": ss.StudentT(2),
        "factor": ss.FactorGaussian(2, 1),
        "mixture": ss.GaussianMixture(2, 2),
        "mixture-diagonal": ss.GaussianMixture(2, 2, "diagonal"),
        "product": ss.Product(ss.Gaussian(1), ss.GaussianMixture(1, 2)),
        "regression": ss.LinearRegression(2, 1),
        "additive": ss.AdditiveGaussian(contributions=[table, 1 - table]),
    }


@pytest.mark.parametrize("name", emissions())
def test_sums_after_a_move_are_those_made_there(name: str):
    """With the weights of states and components held, sums taken before a move and restated equal sums taken after."""
    part = emissions()[name]
    states = part.states or 2
    part = part.sized(2).double()
    generator = torch.Generator().manual_seed(0)
    y = 2 + torch.randn(9, 3, 2, generator=generator).double()
    u = torch.randn(9, 3, 1, generator=generator).double() if name == "regression" else None
    weights = torch.rand(9, 3, states, generator=generator).double()
    one_component = {"mixture", "mixture-diagonal", "product"}
    if name in one_component:  # which component a row is of must not change: one that is far away has none
        for module in part.modules():
            if isinstance(module, ss.GaussianMixture):
                with torch.no_grad():
                    module.normals.mean[1::2] += 1e3
    before = {key: value.clone() for key, value in part.state_dict().items()}
    old = part.statistics(y, u, weights, None)
    names = {"loc", "mean", "coefficients", "table"}
    with torch.no_grad():
        for key, value in part.named_parameters():
            if key.rsplit(".", 1)[-1] in names:
                value.add_(0.3)
    kept = restate(part, old, before)
    again = part.statistics(y, u, weights, None)
    if name == "student":  # whose E-step knows the location: only its moments about it are restated
        shift = old.first - 0.3 * old.counted[:, None]
        assert_close(kept.first, shift)
        return
    for a, b in zip(leaves(kept), leaves(again), strict=True):
        assert_close(a, b, rtol=1e-9, atol=1e-7)


def test_it_ends_near_em_in_fewer_passes():
    y = rows(60)
    by = ss.OnlineEM(epochs=6, batch=5)
    model = ss.hmm(states=2, emission=ss.Gaussian(1), seed=1).fit(y, by=by, seed=0)
    best = ss.hmm(states=2, emission=ss.Gaussian(1), seed=1).fit(y)
    assert len(by.history) == 6
    assert float(model.log_prob(y).detach().sum()) > float(best.log_prob(y).detach().sum()) - 20


def test_a_stream_of_batches():
    y = rows(100)
    model, online = ss.hmm(states=2, emission=ss.Gaussian(1), seed=1), ss.OnlineEM()
    for i in range(0, 300, 5):
        online.update(model, y[i % 100 : i % 100 + 5])
    assert online.seen == 12000
    assert_close(
        model.emission.mean.detach().flatten().sort().values, torch.tensor([0.0, 4.0]).double(), atol=0.3, rtol=0
    )


def test_symbols():
    truth = ss.hmm(
        initial=[1.0, 0.0], transition=[[0.9, 0.1], [0.1, 0.9]], emission=ss.Categorical(probs=[[0.9, 0.1], [0.2, 0.8]])
    )
    y = truth.sample(40, 50, seed=0)[1]
    model = ss.hmm(states=2, emission=ss.Categorical(2), seed=3)
    before = float(model.log_prob(y).detach().sum())
    model.fit(y, by=ss.OnlineEM(epochs=6, batch=8), seed=0)
    assert float(model.log_prob(y).detach().sum()) > before + 10


@pytest.mark.parametrize("options", [{"power": 0.5}, {"power": 1.1}, {"batch": 0}, {"epochs": 0}, {"delay": 0}])
def test_bad_options(options: dict):
    with pytest.raises(ss.StatespanError, match="OnlineEM"):
        ss.OnlineEM(**options)
