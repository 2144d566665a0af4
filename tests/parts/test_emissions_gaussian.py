"""Normal emissions: their priors against hmmlearn and numerical maxima, the diagonal formulas against dense ones."""

import math

import numpy as np
import pytest
import torch
from hmmlearn import hmm as hmmlearn
from torch.testing import assert_close

import statespan as ss
from laws import laws

KINDS = ["full", "diagonal", "spherical", "tied"]


def scatter(kind: str, **prior) -> ss.Gaussian:
    torch.manual_seed(3)
    part = ss.Gaussian(2, kind, 3, **prior).double()
    for p in part.parameters():
        torch.nn.init.normal_(p, std=0.7)
    return part


def data(n: int = 200) -> torch.Tensor:
    torch.manual_seed(5)
    return torch.randn(n, 1, 2).double() * 1.5 + torch.randint(0, 3, (n, 1, 1)) * 2.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0.0, 1.5])
@pytest.mark.parametrize("covars_weight", [1, 7])
def test_hmmlearns_prior_can_be_said(kind: str, strength: float, covars_weight: int):
    y = data()[:, 0]
    matrix = kind in ("full", "tied")
    degrees = max(covars_weight - (2 if matrix else 1), 0) - 3
    degrees -= strength > 0
    if kind == "tied" and strength:
        pytest.skip("hmmlearn leaves the means' part out of a tied covariance's exponent, which no density does")
    scale = torch.full((2, 2), 1e-2) if matrix else 1e-2
    prior = {"prior_scale": scale, "degrees": degrees, "mean_strength": strength, "prior_mean": 0.5}
    model = ss.hmm(states=3, emission=scatter(kind, **prior))
    peer = hmmlearn.GaussianHMM(
        3,
        {"diagonal": "diag"}.get(kind, kind),
        min_covar=0,
        means_prior=0.5,
        means_weight=strength,
        covars_prior=1e-2,
        covars_weight=covars_weight,
        n_iter=1,
        init_params="",
    )
    covariance = model.emission.covariance.detach().numpy()
    peer.startprob_ = model.initial.probs().detach().numpy()
    peer.transmat_ = model.transition.probs.detach().numpy()
    peer.means_, peer.n_features = model.emission.mean.detach().numpy().copy(), 2
    peer.covars_ = {
        "full": covariance,
        "diagonal": np.diagonal(covariance, axis1=1, axis2=2),
        "spherical": covariance[:, 0, 0],
        "tied": covariance[0],
    }[kind]
    peer.fit(y.numpy())
    model.fit(y, by=ss.EM(iterations=1))
    assert_close(model.emission.mean.detach().numpy(), peer.means_, rtol=1e-9, atol=1e-9)
    found = model.emission.covariance.detach().numpy()
    if kind == "spherical":
        assert_close(found[:, 0, 0], peer._covars_.reshape(3, -1)[:, 0].copy(), rtol=1e-9, atol=1e-9)
    else:
        assert_close(found, np.broadcast_to(peer.covars_, (3, 2, 2)).copy(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("held", [None, "mean"])
def test_the_m_step_is_the_mode(kind: str, held: str | None):
    part = scatter(kind, prior_scale=[[0.5, 0.1], [0.1, 0.4]], degrees=6, mean_strength=2.0, prior_mean=[1.0, -1.0])
    y, weights = data(), torch.rand(200, 1, 3).double()
    if held:
        part.mean.requires_grad_(False)
    before = part.mean.detach().clone()
    part.maximize(part.statistics(y, None, weights, None))
    value = (weights * part.log_likelihood(y, None, None, part.constants())).sum() + part.log_prior()
    free = [p for p in part.parameters() if p.requires_grad]
    for gradient in torch.autograd.grad(value, free):
        gradient = gradient.tril(-1) if gradient.dim() == 3 else gradient
        assert float(gradient.abs().max()) < 1e-7
    assert torch.equal(before, part.mean) == bool(held)


def test_a_prior_that_is_none_is_refused():
    with pytest.raises(ss.StatespanError, match="degrees=-9"):
        ss.Gaussian(2, degrees=-9)
    with pytest.raises(ss.StatespanError, match="prior_scale"):
        ss.Gaussian(2, prior_scale=[[1.0, 2.0], [2.0, 1.0]])


@pytest.mark.parametrize("kind", ["diagonal", "spherical"])
@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("far", [0.0, 1e6])
def test_diagonal_formulas(kind: str, gaps: bool, far: float):
    """Against scipy, and the sums against those of the same covariance held as a full one; however far states lie."""
    part = scatter(kind)
    with torch.no_grad():
        part.mean[2] += far
        part.mean += far / 3
    y, weights = data() + far / 3, torch.rand(200, 1, 3).double()
    y[::3] += far
    observed = torch.rand(y.shape) > 0.3 if gaps else None
    there = torch.ones_like(y, dtype=torch.bool) if observed is None else observed
    found = part.log_likelihood(y, None, observed, ())[:, 0]
    truth = [[law.log(*row) for law in laws(part)] for row in zip(y[:, 0].numpy(), there[:, 0].numpy(), strict=True)]
    assert_close(found.detach(), torch.tensor(truth, dtype=torch.float64), rtol=1e-9, atol=1e-8)
    full = ss.Gaussian(mean=part.mean.detach(), covariance=part.covariance.detach())
    dense, sums = full.statistics(y, None, weights, observed), part.statistics(y, None, weights, observed)
    for a, b in zip(sums, (*dense[:2], dense.second.diagonal(dim1=-2, dim2=-1)), strict=True):
        assert_close(a, b.detach(), rtol=1e-9, atol=1e-9)


def test_float32_keeps_its_digits_far_from_the_centre():
    part = ss.Gaussian(2, "diagonal", 3)
    with torch.no_grad():
        part.mean.copy_(torch.tensor([[0.0, 0.0], [1000.0, 0.0], [0.0, 1000.0]]))
    y = (part.mean.detach() + torch.randn(3, 2))[:, None]
    found = part.log_likelihood(y, None, None, ())[:, 0].diagonal()
    truth = -0.5 * (y[:, 0] - part.mean).square().sum(-1) - math.log(2 * math.pi)
    assert_close(found, truth, rtol=1e-5, atol=1e-5)
