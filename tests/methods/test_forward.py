"""Finite states against every path, and against hmmlearn."""

import math

import numpy as np
import pytest
import torch
from hmmlearn import hmm as hmmlearn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import statespan as ss
from oracles import enumerate_finite, finite
from statespan.method import prepare, run
from statespan.methods.forward import expectations
from statespan.tree import leaves

TIGHT = {"rtol": 0.0, "atol": 1e-9}


def random_model(states: int, symbols: int, zeros: float = 0.0) -> ss.StateSpace:
    """Dirichlet tables, some entries exactly zero where asked."""

    def rows(*shape: int) -> torch.Tensor:
        p = torch.distributions.Dirichlet(torch.full((shape[-1],), 0.7).double()).sample(shape[:-1])
        keep = torch.rand(shape) >= zeros
        keep[..., 0] |= ~keep.any(-1)
        p = p * keep
        return p / p.sum(-1, keepdim=True)

    return ss.hmm(
        initial=rows(states), transition=rows(states, states), emission=ss.Categorical(probs=rows(states, symbols))
    )


def check_against_every_path(model: ss.StateSpace, y: torch.Tensor, seen: torch.Tensor, labels: torch.Tensor) -> None:
    """Likelihood, posterior, pair counts, best path and the five best, of one sequence."""
    states = len(model.initial.logits)
    truth = enumerate_finite(finite(model), y, seen, labels)
    holes = torch.where(seen, y, -1)
    data, _ = ss.verbs.ask(model, holes, states=labels)
    if truth.log_prob == -math.inf:
        assert model.log_prob(data)[0] == -math.inf
        return
    method = ss.Forward()
    posterior, counts, log_prob = expectations(model, method, prepare(model, method, data), None, data.shape)
    assert_close(log_prob.sum(), truth.log_prob.detach(), **TIGHT)
    assert_close(posterior[:, 0], truth.smoothed(states).detach(), **TIGHT)
    assert_close(leaves(counts)[0].detach(), truth.pairs(states).detach(), **TIGHT)
    paths, scores = (x[0] for x in model.decode(data, k=5))
    every = truth.log.logsumexp(0).detach()  # of each path, gaps summed out
    best = every.sort(descending=True, stable=True)
    count = min(5, int((every > -math.inf).sum()))
    assert_close(scores[:count], best.values[:count], **TIGHT)
    assert bool((scores[count:] == -math.inf).all())
    power = states ** torch.arange(len(y) - 1, -1, -1)
    if bool((labels < 0).all()):  # each path has the score that is claimed for it
        found = every[(paths[:, :count] * power[:, None]).sum(0)]
        assert_close(found, scores[:count], **TIGHT)
        assert len({tuple(p.tolist()) for p in paths.T[:count]}) == count
    if len(best.values) == 1 or best.values[0] - best.values[1] > 1e-9:
        assert_close(paths[:, 0], truth.paths[best.indices[0]])


def test_a_thousand_random_models_against_every_path():
    generator = torch.Generator().manual_seed(0)
    for i in range(1000):
        states, symbols, length = (int(torch.randint(1, n, (), generator=generator)) for n in (5, 5, 6))
        model = random_model(states, symbols, zeros=0.3 if i % 4 == 0 else 0.0)
        y = torch.randint(symbols, (length,), generator=generator)
        seen = torch.ones(length, dtype=torch.bool)
        check_against_every_path(model, y, seen, torch.full((length,), -1))
        if i % 10 == 0:
            assert_close(model.decode(y), model.decode(y, k=5)[0][:, 0])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.integers(-1, 3)), min_size=1, max_size=5),
    st.integers(0, 2**31),
)
def test_gaps_and_labels_against_every_path(states: int, symbols: int, steps: list, seed: int):
    torch.manual_seed(seed)
    model = random_model(states, symbols, zeros=0.2)
    y = torch.tensor([s % symbols for s, _, _ in steps])
    seen = torch.tensor([there for _, there, _ in steps])
    labels = torch.tensor([label if label < states else -1 for _, _, label in steps])
    check_against_every_path(model, y, seen, labels)


def test_labels_of_some_sequences_of_a_ragged_list():
    model = random_model(3, 3)
    y = [torch.tensor([0, 1, 2]), torch.tensor([2, 2])]
    labels = [torch.tensor([-1, 2, -1]), torch.tensor([0, -1])]
    both = model.log_prob(y, states=labels)
    chain = finite(model)
    for i in range(2):
        truth = enumerate_finite(chain, y[i], torch.ones_like(y[i], dtype=torch.bool), labels[i])
        assert_close(both[i], truth.log_prob, **TIGHT)
    assert model.smooth(y, states=labels).probs[0][1].tolist() == [0.0, 0.0, 1.0]


def test_a_label_outside_the_states_is_named():
    with pytest.raises(ss.StatespanError, match=r"sequence 1, step 0: .*state 3.* 0\.\.2"):
        random_model(3, 3).log_prob([[0, 1], [1, 2]], states=[[0, -1], [3, -1]])


def test_an_impossible_observation_is_minus_infinity_with_finite_gradients():
    model = ss.hmm(initial=[1, 0], transition=[[1, 0], [0, 1]], emission=ss.Categorical(probs=[[1, 0, 0], [0, 1, 0]]))
    for y in ([0, 1, 0], [0, 2, 0], [2]):
        log_prob = model.log_prob([y, [0] * len(y)])
        assert log_prob.tolist() == [-math.inf, 0.0]
        for verb in (model.filter, model.smooth):
            assert all(bool(p.isfinite().all()) for p in verb([y, [0] * len(y)]).probs)
        model.zero_grad()
        torch.where(log_prob.isfinite(), log_prob, 0.0).sum().backward()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
        each = run(model, ss.Forward(), ss.verbs.ask(model, y)[0], kernel=False).log_prob
        torch.where(each.isfinite(), each, 0.0).sum().backward()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
    with pytest.raises(ss.StatespanError, match=r"sequence 0, step 1: .* probability zero"):
        model.sample_posterior([[0, 1, 0], [0, 0, 0]], n=2)


def test_long_sequences_do_not_underflow():
    model = random_model(3, 4)
    y = model.sample(2, 1500, seed=0)[1]
    log_prob = model.log_prob(y)
    assert bool(log_prob.isfinite().all())
    assert_close(model.float().log_prob(y).detach(), log_prob.detach(), rtol=1e-5, atol=0)
    model.log_prob(y).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_the_gradient_is_the_posterior():
    """d log p / d log emission = expected counts of each symbol in each state; likewise for the transition."""
    model = random_model(3, 4)
    y = model.sample(None, 12, seed=1)[1]
    log_b = model.emission.probs.detach().log().requires_grad_()
    p, a = model.initial.probs().detach(), model.transition.probs.detach()
    state, total = p, 0.0
    for t, v in enumerate(y):
        state = (state @ a if t else state) * log_b[:, v].exp()
        total = total + state.sum().log()
        state = state / state.sum()
    (gradient,) = torch.autograd.grad(total, log_b)
    smoothed = model.smooth(y).probs
    for v in range(4):
        assert_close(gradient[:, v], smoothed[y == v].sum(0), **TIGHT)


# ------------------------------------------------------------------------------------------------ hmmlearn


def _joint(model: ss.StateSpace, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Log p(y, z)."""
    move = model.transition.probs.log()[z[:-1], z[1:]].sum()
    return model.initial.probs().log()[z[0]] + move + model.emission.probs.log()[z, y].sum()


def to_hmmlearn(model: ss.StateSpace) -> hmmlearn.CategoricalHMM:
    peer = hmmlearn.CategoricalHMM(len(model.initial.logits), init_params="")
    peer.startprob_ = model.initial.probs().detach().numpy()
    peer.transmat_ = model.transition.probs.detach().numpy()
    peer.emissionprob_ = model.emission.probs.detach().numpy()
    peer.n_features = peer.emissionprob_.shape[1]
    return peer


def test_hmmlearn_agrees_on_symbols():
    model = random_model(4, 6)
    rows = [model.sample(None, n, seed=n)[1] for n in (30, 7, 100)]
    x, lengths = np.concatenate([r.numpy() for r in rows])[:, None], [len(r) for r in rows]
    peer = to_hmmlearn(model)
    log_prob, posterior = peer.score_samples(x, lengths)
    ours = model.smooth(rows)
    assert_close(ours.log_prob.sum().item(), log_prob, rtol=0, atol=1e-9)
    assert_close(torch.cat(ours.probs).numpy(), posterior, rtol=0, atol=1e-9)
    best, path = peer.decode(x, lengths)
    paths, score = model.decode(rows, k=1)
    assert_close(score.sum().item(), best, rtol=0, atol=1e-9)
    for row, ours, theirs in zip(rows, paths, np.split(path, np.cumsum(lengths)[:-1]), strict=True):
        scores = [_joint(model, row, z) for z in (ours[:, 0], torch.as_tensor(theirs))]
        assert_close(*scores, rtol=0, atol=1e-9)  # either of two paths that tie


@pytest.mark.parametrize("kind", ["full", "diagonal", "spherical", "tied"])
def test_hmmlearn_agrees_on_vectors(kind: str):
    model = ss.hmm(states=3, emission=ss.Gaussian(2, kind), seed=0)
    for p in model.emission.parameters():
        torch.nn.init.normal_(p)
    covariance = model.emission.covariance.detach().numpy()
    peer = hmmlearn.GaussianHMM(3, {"diagonal": "diag"}.get(kind, kind), init_params="")
    peer.startprob_ = model.initial.probs().detach().numpy()
    peer.transmat_ = model.transition.probs.detach().numpy()
    peer.means_ = model.emission.mean.detach().numpy()
    peer.n_features = 2
    peer.covars_ = {
        "full": covariance,
        "diagonal": np.diagonal(covariance, axis1=1, axis2=2),
        "spherical": covariance[:, 0, 0],
        "tied": covariance[0],
    }[kind]
    rows = [model.sample(None, n, seed=n)[1] for n in (30, 7)]
    log_prob, posterior = peer.score_samples(np.concatenate([r.numpy() for r in rows]), [30, 7])
    ours = model.smooth(rows)
    assert_close(ours.log_prob.sum().item(), log_prob, rtol=0, atol=1e-9)
    assert_close(torch.cat(ours.probs).numpy(), posterior, rtol=0, atol=1e-9)
