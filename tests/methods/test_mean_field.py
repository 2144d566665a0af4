"""Structured mean field: a bound of log p, its gradient, its fixed point, and where it is exact."""

import itertools

import pytest
import torch
from torch.testing import assert_close

import statespan as ss
from statespan.method import run
from statespan.verbs import ask

NAN = float("nan")


def gaussian(seed: int = 0) -> ss.StateSpace:
    torch.manual_seed(seed)
    noise = [[0.6, 0.2], [0.2, 0.4]]
    emission = ss.AdditiveGaussian(contributions=[torch.randn(2, 2), torch.randn(3, 2)], covariance=noise)
    return scattered(ss.factorial_hmm([2, 3], emission, seed=seed))


def poisson(seed: int = 0) -> ss.StateSpace:
    torch.manual_seed(seed)
    emission = ss.AdditivePoisson(contributions=[0.5 * torch.randn(2, 2), 1 + 0.5 * torch.randn(3, 2)])
    return scattered(ss.factorial_hmm([2, 3], emission, seed=seed))


def scattered(model: ss.StateSpace) -> ss.StateSpace:
    for part in (model.initial, model.transition):
        for p in part.parameters():
            torch.nn.init.normal_(p)
    return model


def settled() -> ss.StructuredMeanField:
    return ss.StructuredMeanField(iterations=500, tolerance=1e-12)


def series(model: ss.StateSpace) -> list[torch.Tensor]:
    """Of unlike lengths, with a row and two numbers missing."""
    y = model.sample(3, 9, seed=1)[1]
    y[0, 3], y[1, 2, 0], y[2, 0, 1] = NAN, NAN, NAN
    return [y[0], y[1, :4], y[2, :7]]


def bound(model: ss.StateSpace, y: torch.Tensor, chains: list[torch.Tensor]) -> torch.Tensor:
    """E_q log p(z, y) - E_q log q over every joint path, of q a product over chains of laws of whole paths."""
    total = torch.zeros((), dtype=torch.float64)
    parts = [list(itertools.product(range(n), repeat=len(y))) for n in (2, 3)]
    emission, moves = model.emission, [c.probs for c in model.transition.chains]
    starts = [s.probs() for s in model.initial.starts]
    for (i, one), (j, two) in itertools.product(enumerate(parts[0]), enumerate(parts[1])):
        q = chains[0][i] * chains[1][j]
        log = torch.zeros((), dtype=torch.float64)
        for path, start, move in zip((one, two), starts, moves, strict=True):
            log = log + start[path[0]].log() + sum(move[a, b].log() for a, b in itertools.pairwise(path))
        for row, a, b in zip(y, one, two, strict=True):
            law = emission.apart(torch.tensor([a, b]))
            log = log + law.log_prob(row)
        total = total + q * (log - q.log())
    return total.detach()


def paths_of(model: ss.StateSpace, c: int, logs: torch.Tensor) -> torch.Tensor:
    """The law of one chain's whole paths under exp(logs) (T, K_c) as a likelihood."""
    size = logs.shape[1]
    move, start, found = model.transition.chains[c].probs, model.initial.starts[c].probs(), []
    for path in itertools.product(range(size), repeat=len(logs)):
        log = start[path[0]].log() + sum(move[a, b].log() for a, b in itertools.pairwise(path))
        found.append(log + sum(logs[t, k] for t, k in enumerate(path)))
    return torch.stack(found).softmax(0).detach()


@pytest.mark.parametrize("make", [gaussian, poisson])
def test_the_bound_is_that_of_every_path_and_below_the_truth(make):
    model = make()
    y = model.sample(1, 2, seed=2)[1][0]
    method = settled()
    data, _ = ask(model, y)
    _, fields = method.prepare(model, method.constants(model), data)
    chains = [paths_of(model, c, seen.exactly()[:, 0]) for c, seen in enumerate(fields.chains)]
    found = model.log_prob(y, method=method).detach()
    assert_close(found, bound(model, y, chains), rtol=1e-9, atol=1e-9)
    assert found < model.log_prob(y)
    for c, (law, size) in enumerate(zip(chains, (2, 3), strict=True)):
        each = torch.tensor(list(itertools.product(range(size), repeat=2)))
        share = torch.stack([(law[:, None] * (each == k)).sum(0) for k in range(size)], -1)
        assert_close(model.smooth(y, method=method).marginals[:, c, :size], share, rtol=1e-8, atol=1e-8)
    nearby = [(0.9 * law + 0.1 * torch.rand_like(law) / len(law)) for law in chains]
    nearby = [law / law.sum() for law in nearby]
    assert bound(model, y, [nearby[0], chains[1]]) < found
    assert bound(model, y, [chains[0], nearby[1]]) < found


@pytest.mark.parametrize("make", [gaussian, poisson])
def test_it_is_exact_where_one_chain_acts(make):
    model = make()
    with torch.no_grad():
        model.emission.table[:2] = model.emission.table[:1]  # both states of the first chain add the same
    y, method = series(model), settled()
    assert_close(model.log_prob(y, method=method), model.log_prob(y), rtol=1e-9, atol=1e-9)
    ours, truth = model.smooth(y, method=method), model.smooth(y)
    assert not ours.exact
    for found, probs in zip(ours.marginals, truth.probs, strict=True):
        one, two = model.transition.marginals(probs)
        assert_close(found[:, 0, :2], one, rtol=1e-8, atol=1e-8)
        assert_close(found[:, 1], two, rtol=1e-8, atol=1e-8)
    for a, b in zip(model.impute(y, method=method), model.impute(y), strict=True):
        assert_close(a, b, rtol=1e-8, atol=1e-8)
    for path, joint in zip(model.decode(y, method=method), model.decode(y), strict=True):
        assert_close(path[:, 1], model.transition.split(joint)[:, 1])
    drawn = model.sample_posterior(y[1], 4000, seed=0, method=method)
    assert drawn.shape == (4000, 4, 2)
    share = torch.nn.functional.one_hot(drawn[..., 1], 3).double().mean(0)
    assert_close(share, ours.marginals[1][:, 1], rtol=0, atol=4.5 * 0.5 / 4000**0.5)
    ahead, exactly = (model.forecast(y[1], 2, 4000, method=m) for m in (method, None))
    assert not ahead.exact
    assert_close(ahead.mean, exactly.mean, rtol=0, atol=4.5 * float(ahead.samples.std()) / 4000**0.5)


@pytest.mark.parametrize("make", [gaussian, poisson])
def test_the_gradient_is_the_slope_and_the_kernel_the_scan(make):
    model, method = make(), settled()
    data, _ = ask(model, series(model))
    parameters = list(model.parameters())
    way = [torch.randn_like(p) for p in parameters]
    fast, slow = (run(model, method, data, keep=("log_prob", "last"), kernel=k) for k in (True, False))
    assert_close(fast.log_prob, slow.log_prob, rtol=1e-10, atol=1e-10)
    for a, b in zip(fast.last.probs, slow.last.probs, strict=True):
        assert_close(a, b, rtol=1e-10, atol=1e-10)
    gradients = torch.autograd.grad(fast.log_prob.sum(), parameters)
    slope, ends, step = sum((g * w).sum() for g, w in zip(gradients, way, strict=True)), [], 1e-5
    with torch.no_grad():
        for sign in (1, -2):
            for p, w in zip(parameters, way, strict=True):
                p += sign * step * w
            ends.append(run(model, method, data).log_prob.sum())
    assert_close(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [gaussian, poisson])
def test_em_climbs_the_bound_even_with_one_sweep(make):
    y = series(make(seed=5))
    for sweeps in (1, 5):
        model = make(seed=6)
        em = ss.EM(iterations=6, tolerance=0, method=ss.StructuredMeanField(iterations=sweeps))
        model.fit(y, by=em)
        assert all(b >= a - 1e-9 for a, b in itertools.pairwise(em.history))
        assert em.history[-1] > em.history[0]
    assert em.history[-1] <= model.log_prob(y).sum() + 1e-6
    weighted, twice = make(seed=6), make(seed=6)
    em = ss.EM(iterations=2, tolerance=0, method=settled())
    weighted.fit(y, by=em, weights=[2, 1, 1])
    twice.fit([y[0], *y], by=ss.EM(iterations=2, tolerance=0, method=settled()))
    assert_close(weighted.emission.table, twice.emission.table, rtol=1e-6, atol=1e-6)


def test_many_chains_and_refusals():
    model = ss.factorial_hmm([2] * 20, ss.AdditiveGaussian(2), seed=0)
    method = ss.StructuredMeanField(iterations=3)
    states, y = model.sample(2, 10, seed=0, method=method)
    assert states.shape == (2, 10, 20)
    em = ss.EM(iterations=2, tolerance=0, method=method)
    model.fit(y, by=em)
    assert em.history[0] < em.history[-1]
    assert model.smooth(y, method=method).marginals.sum(-1).allclose(torch.ones(2, 10, 20).double())
    few = gaussian()
    y = few.sample(1, 5, seed=0)[1][0]
    for ask_it, what in (
        (lambda: few.filter(y, method=method), "no filter"),
        (lambda: few.log_prob(y, belief=few.filter(y).belief, method=method), "no belief can be carried"),
        (lambda: few.decode(y, k=2, method=method), "one path"),
        (lambda: few.log_prob(y, states=[0] * 5, method=method), "no labels"),
        (lambda: ss.StructuredMeanField(0), "at least one"),
        (lambda: ss.hmm(2, ss.Gaussian(2)).log_prob(y, method=method), "does not accept this model"),
    ):
        with pytest.raises(ss.StatespanError, match=what):
            ask_it()
