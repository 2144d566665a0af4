"""Variational Bayes against hmmlearn, against evidence in closed form, and what holds of any bound."""

import itertools
import math

import numpy as np
import pytest
import torch
from hmmlearn.vhmm import VariationalCategoricalHMM, VariationalGaussianHMM
from scipy.special import multigammaln
from torch.testing import assert_close

import statespan as ss
from statespan.fit.conjugate import dirichlet_divergence

KINDS = ["full", "diagonal", "spherical", "tied"]
CLOSE = {"rtol": 1e-8, "atol": 1e-8}


def rises(history: list[float], slack: float = 1e-8) -> bool:
    return all(b >= a - slack for a, b in itertools.pairwise(history))


def symbols() -> list[torch.Tensor]:
    truth = ss.hmm(states=3, emission=ss.Categorical(4), seed=9)
    return [truth.sample(None, length, seed=length)[1] for length in (20, 25, 31)]


def vectors() -> list[torch.Tensor]:
    truth = ss.hmm(states=3, emission=ss.Gaussian(2), seed=9)
    with torch.no_grad():
        truth.emission.mean.mul_(4)
    return [truth.sample(None, length, seed=length)[1] for length in (40, 41, 45)]


@pytest.mark.parametrize("iterations", [1, 6])
def test_symbols_as_hmmlearn_does_them(iterations: int):
    rows = symbols()
    model = ss.hmm(states=3, emission=ss.Categorical(4), seed=1)
    peer = VariationalCategoricalHMM(3, n_iter=iterations, tol=-math.inf, init_params="", n_features=4)
    peer.startprob_prior_, peer.transmat_prior_ = np.full(3, 0.4), np.full((3, 3), 0.7)
    peer.emissionprob_prior_ = np.full((3, 4), 0.2)
    peer.startprob_posterior_ = 0.4 + len(rows) * model.initial.probs().detach().numpy()
    share = sum(map(len, rows)) / 3
    peer.transmat_posterior_ = 0.7 + share * model.transition.probs.detach().numpy()
    peer.emissionprob_posterior_ = 0.2 + share * model.emission.probs.detach().numpy()
    peer.fit(np.concatenate(rows)[:, None], [len(r) for r in rows])
    vi = ss.VI(initial=0.4, transition=0.7, symbols=0.2, iterations=iterations, tolerance=0)
    model.fit(rows, by=vi)
    assert_close(np.array(vi.history), np.array(peer.monitor_.history, dtype=float), **CLOSE)
    assert_close(vi.posterior.initial.concentration.detach().numpy(), peer.startprob_posterior_, **CLOSE)
    assert_close(vi.posterior.transition.concentration.detach().numpy(), peer.transmat_posterior_, **CLOSE)
    assert_close(vi.posterior.emission.concentration.detach().numpy(), peer.emissionprob_posterior_, **CLOSE)
    assert_close(model.emission.probs.detach().numpy(), peer.emissionprob_, **CLOSE)
    assert_close(model.transition.probs.detach().numpy(), peer.transmat_, **CLOSE)


@pytest.mark.parametrize("iterations", [1, 6])
@pytest.mark.parametrize("kind", ["full", "tied"])
def test_vectors_as_hmmlearn_does_them(kind: str, iterations: int):
    """Its bound leaves out the normal's constant, half log 2 pi a coordinate."""
    rows = vectors()
    model = ss.hmm(states=3, emission=ss.Gaussian(2, kind), seed=1)
    n, d = sum(map(len, rows)), 2
    vi = ss.VI(initial=0.4, transition=0.7, mean=[0.5, -1.0], strength=0.3, freedom=4.5, scale=0.8)
    peer = VariationalGaussianHMM(3, kind, n_iter=iterations, tol=-math.inf, init_params="")
    peer.startprob_prior_, peer.transmat_prior_ = np.full(3, 0.4), np.full((3, 3), 0.7)
    peer.startprob_posterior_ = 0.4 + len(rows) * model.initial.probs().detach().numpy()
    peer.transmat_posterior_ = 0.7 + n / 3 * model.transition.probs.detach().numpy()
    peer.means_prior_, peer.beta_prior_ = np.tile([0.5, -1.0], (3, 1)), np.full(3, 0.3)
    peer.means_posterior_, peer.beta_posterior_ = model.emission.mean.detach().numpy().copy(), np.full(3, 0.3 + n / 3)
    covariance = model.emission.covariance.detach().numpy()
    if kind == "tied":
        peer.dof_prior_, peer.dof_posterior_ = 4.5, 4.5 + n
        peer.scale_prior_, peer.scale_posterior_ = 0.8 * np.eye(2), covariance[0] * (4.5 + n)
    else:
        peer.dof_prior_, peer.dof_posterior_ = np.full(3, 4.5), np.full(3, 4.5 + n / 3)
        peer.scale_prior_ = np.tile(0.8 * np.eye(2), (3, 1, 1))
        peer.scale_posterior_ = covariance * (4.5 + n / 3)
    peer._covars_ = covariance[0] if kind == "tied" else covariance
    peer.n_features = 2
    peer.fit(np.concatenate(rows), [len(r) for r in rows])
    vi.em.iterations, vi.em.tolerance = iterations, 0
    model.fit(rows, by=vi)
    found = vi.posterior.emission
    assert_close(
        np.array(vi.history) + n * d / 2 * math.log(2 * math.pi), np.array(peer.monitor_.history, dtype=float), **CLOSE
    )
    assert_close(found.mean.detach().numpy(), peer.means_posterior_, **CLOSE)
    assert_close(found.strength.detach().numpy(), peer.beta_posterior_, **CLOSE)
    assert_close(found.freedom.detach().numpy(), np.atleast_1d(peer.dof_posterior_).astype(float), **CLOSE)
    assert_close(
        found.scale.detach().numpy()[:, 0],
        np.array(np.broadcast_to(peer.scale_posterior_, found.scale[:, 0].shape)),
        **CLOSE,
    )
    assert_close(model.emission.mean.detach().numpy(), peer.means_posterior_, **CLOSE)


def evidence(y: np.ndarray, mean: np.ndarray, strength: float, freedom: float, scale: np.ndarray) -> float:
    """Log of the integral of N(y; m, P^-1) over a normal-Wishart: Murphy 2007, equation 266."""
    n, d = y.shape
    centre = y.mean(0)
    scatter = (y - centre).T @ (y - centre) + strength * n / (strength + n) * np.outer(centre - mean, centre - mean)
    after = scale + scatter
    value = -n * d / 2 * math.log(math.pi) + multigammaln((freedom + n) / 2, d) - multigammaln(freedom / 2, d)
    value += freedom / 2 * np.linalg.slogdet(scale)[1] - (freedom + n) / 2 * np.linalg.slogdet(after)[1]
    return value + d / 2 * math.log(strength / (strength + n))


@pytest.mark.parametrize("kind", KINDS)
def test_with_one_state_the_bound_is_the_evidence(kind: str):
    y = vectors()[0].numpy()
    n, d = y.shape
    mean, scale = np.array([0.5, -1.0]), np.array([[0.8, 0.3], [0.3, 1.1]])
    vi = ss.VI(mean=mean, strength=0.3, freedom=4.5, scale=scale, iterations=3, tolerance=0)
    ss.hmm(states=1, emission=ss.Gaussian(2, kind), seed=0).fit(y, by=vi)
    if kind in ("full", "tied"):
        expected = evidence(y, mean, 0.3, 4.5, scale)
    elif kind == "diagonal":
        expected = sum(evidence(y[:, [i]], mean[[i]], 0.3, 4.5, scale[[i]][:, [i]]) for i in range(d))
    else:
        before, after = 4.5 / 2, (4.5 + n * d) / 2
        scatter = ((y - y.mean(0)) ** 2).sum() + 0.3 * n / (0.3 + n) * ((y.mean(0) - mean) ** 2).sum()
        total = np.trace(scale)
        expected = math.lgamma(after) - math.lgamma(before) + before * math.log(total / 2)
        expected += -after * math.log((total + scatter) / 2) - n * d / 2 * math.log(2 * math.pi)
        expected += d / 2 * math.log(0.3 / (0.3 + n))
    assert vi.history[-1] == pytest.approx(expected, abs=1e-8)


def test_the_bound_lies_below_the_evidence_by_enumeration_and_integration():
    """Two states, three symbols: the evidence is a sum over all paths of ratios of Dirichlet normalisers."""
    y, a, b, c = [0, 0, 1, 1, 0], 0.8, 0.6, 0.9

    def log_beta(counts: np.ndarray, alpha: float) -> float:
        q = counts + alpha
        k = len(counts)
        value = sum(map(math.lgamma, q)) - math.lgamma(q.sum())
        return value - k * math.lgamma(alpha) + math.lgamma(k * alpha)

    total = []
    for path in itertools.product(range(2), repeat=len(y)):
        first, moves, seen = np.zeros(2), np.zeros((2, 2)), np.zeros((2, 2))
        first[path[0]] += 1
        for i, j in itertools.pairwise(path):
            moves[i, j] += 1
        for k, v in zip(path, y, strict=True):
            seen[k, v] += 1
        total.append(log_beta(first, a) + sum(log_beta(r, b) for r in moves) + sum(log_beta(r, c) for r in seen))
    exact = float(np.logaddexp.reduce(total))
    vi = ss.VI(initial=a, transition=b, symbols=c, iterations=200, tolerance=0)
    ss.hmm(states=2, emission=ss.Categorical(2), seed=0).fit(y, by=vi)
    assert exact - 2.5 < vi.history[-1] < exact


@pytest.mark.parametrize("kind", ["categorical", *KINDS])
@pytest.mark.parametrize("holes", [0.0, 0.3])
def test_the_bound_never_falls(kind: str, holes: float):
    rows = symbols() if kind == "categorical" else vectors()
    rows = [r.double().masked_fill(torch.rand(r.shape) < holes, math.nan) for r in rows]
    emission = ss.Categorical(4) if kind == "categorical" else ss.Gaussian(2, kind)
    vi = ss.VI(iterations=25, tolerance=0)
    ss.hmm(states=3, emission=emission, seed=0).fit(rows, by=vi)
    assert len(vi.history) == 25
    assert rises(vi.history)


@pytest.mark.parametrize("kind", KINDS)
def test_mixtures_of_normals(kind: str):
    rows = [r.masked_fill(torch.rand(r.shape) < 0.2, math.nan) for r in vectors()]
    one, other = ss.VI(iterations=15, tolerance=0), ss.VI(iterations=15, tolerance=0)
    emission = ss.GaussianMixture(2, components=2, covariance=kind)
    model = ss.hmm(states=2, emission=emission, seed=0).fit(rows, by=one)
    assert rises(one.history)
    assert one.posterior.emission.concentration.shape == (2, 2)
    mean = one.posterior.emission.concentration.detach()
    assert_close(model.emission.weights.detach(), mean / mean.sum(-1, keepdim=True))
    # One component a state is a normal a state.
    plain = ss.hmm(states=2, emission=ss.Gaussian(2, kind), seed=0)
    single = ss.hmm(states=2, emission=ss.GaussianMixture(2, components=1, covariance=kind), seed=0)
    single.emission.normals.load_state_dict(plain.emission.state_dict())
    single.transition.load_state_dict(plain.transition.state_dict())
    plain.fit(rows, by=one)
    single.fit(rows, by=other)
    assert_close(one.history, other.history, rtol=1e-9, atol=1e-9)
    with pytest.raises(ss.StatespanError, match=r"VI\(components=\)"):
        model.fit(rows, by=ss.VI(components=[1.0, 1.0, 1.0]))


def test_the_bound_chooses_and_a_state_that_is_not_needed_falls_back_to_the_prior():
    truth = ss.hmm(
        transition=[[0.9, 0.1], [0.1, 0.9]],
        emission=ss.Gaussian(mean=[[0.0], [6.0]], covariance=[[[1.0]]] * 2),
        initial=[0.5, 0.5],
    )
    y = truth.sample(None, 400, seed=1)[1]
    bounds = {}
    for states in (1, 2, 3, 5):
        vi = ss.VI(iterations=200)
        ss.hmm(states=states, emission=ss.Gaussian(1), seed=0).fit(y, by=vi, restarts=8, seed=0)
        bounds[states] = vi.history[-1]
    assert max(bounds, key=lambda k: bounds[k]) == 2
    assert sorted(vi.restarts)[-1] == vi.history[-1]
    spare = vi.posterior.emission.strength < 1
    assert bool(spare.any())
    assert bool((vi.posterior.emission.freedom[spare] < 4).all())


def test_structure_stays_and_what_is_held_stays():
    rows = symbols()
    model = ss.hmm(
        initial=[1.0, 0.0, 0.0],
        transition=[[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5]],
        emission=ss.Categorical(4, states=3),
        seed=0,
    )
    before = model.emission.probs.detach().clone()
    model.emission.requires_grad_(False)
    vi = ss.VI(iterations=10, tolerance=0)
    model.fit(rows, by=vi)
    assert torch.equal(model.emission.probs, before)
    assert_close(model.initial.probs().tolist(), [1.0, 0.0, 0.0])
    assert bool((model.transition.probs[[0, 1, 2], [2, 0, 1]] == 0).all())
    assert rises(vi.history)
    model.emission.requires_grad_(True)
    mixed = ss.hmm(states=2, emission=ss.Gaussian(2), seed=0)
    mixed.emission.mean.requires_grad_(False)
    with pytest.raises(ss.StatespanError, match="all of Gaussian or nothing"):
        mixed.fit(vectors(), by=ss.VI())


def test_the_prior_of_a_part_is_taken():
    rows, by = symbols(), [ss.VI(iterations=5, tolerance=0), ss.VI(transition=3.0, iterations=5, tolerance=0)]
    for vi, alpha in zip(by, (3.0, 1.0), strict=True):
        ss.hmm(states=3, transition=ss.Dense(3, concentration=alpha), emission=ss.Categorical(4), seed=0).fit(
            rows, by=vi
        )
    assert_close(by[0].posterior.transition.dirichlet.prior, by[1].posterior.transition.dirichlet.prior)


@pytest.mark.parametrize(
    ("vi", "words"),
    [
        (ss.VI(transition=0.0), "not above 0"),
        (ss.VI(symbols=[1.0, 1.0]), r"VI\(symbols=\)"),
    ],
)
def test_priors_that_are_none(vi: ss.VI, words: str):
    with pytest.raises(ss.StatespanError, match=words):
        ss.hmm(states=3, emission=ss.Categorical(4), seed=0).fit(symbols(), by=vi)


def test_bad_normal_priors():
    for vi in (ss.VI(freedom=0.5), ss.VI(strength=0.0), ss.VI(scale=[[1.0, 2.0], [2.0, 1.0]])):
        with pytest.raises(ss.StatespanError, match="VI"):
            ss.hmm(states=3, emission=ss.Gaussian(2), seed=0).fit(vectors(), by=vi)


def test_divergence_of_dirichlets():
    q, p = torch.tensor([1.5, 0.7, 3.0]).double(), torch.tensor([0.5, 2.0, 1.0]).double()
    expected = torch.distributions.kl_divergence(torch.distributions.Dirichlet(q), torch.distributions.Dirichlet(p))
    assert_close(dirichlet_divergence(q, p), expected)
    zero = torch.zeros(1).double()
    assert_close(dirichlet_divergence(torch.cat([q, zero]), torch.cat([p, zero])), expected)
