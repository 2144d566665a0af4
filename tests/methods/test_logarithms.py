"""Sequences whose scaled probabilities vanish, against the sum over every path in logarithms."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import statespan as ss
from statespan.method import run
from statespan.methods.forward import expectations
from statespan.methods.logarithms import LogForward

Y = [[0.0, 0, 300], [0.0, 1, 0.5], [0.0, 150, math.nan, 200], [0.0, 60]]
"""The first can be explained by a path alone that the second step makes impossible but for 5000 nats."""


def left_to_right(dtype: torch.dtype = torch.float64) -> ss.StateSpace:
    """Three states at 0, 100 and 200, none skipped."""
    table = [[0.5, 0.5, 0.0], [0.0, 0.6, 0.4], [0.0, 0.0, 1.0]]
    model = ss.hmm(emission=ss.Gaussian(1, states=3), initial=[1, 0, 0], transition=table, dtype=dtype, seed=0)
    with torch.no_grad():
        model.emission.mean.copy_(torch.tensor([[0.0], [100.0], [200.0]]))
    return model


def every_path(model: Any, y: list[float], labels: list[int] | None = None) -> tuple[Tensor, Tensor]:
    """All paths (N, T), and log p(z, y) of each."""
    law = torch.distributions.Normal(model.emission.mean[:, 0], model.emission.covariance[:, 0, 0].sqrt())
    initial, table = (x.clamp_min(1e-300).log() for x in (model.initial.probs(), model.transition.probs))
    paths = [p for p in itertools.product(range(3), repeat=len(y)) if p[0] == 0]
    paths = [p for p in paths if all(b - a in (0, 1) for a, b in itertools.pairwise(p))]
    if labels is not None:
        paths = [p for p in paths if all(k in (-1, z) for z, k in zip(p, labels, strict=True))]
    log = []
    for path in paths:
        value = initial[path[0]] + sum(table[a, b] for a, b in itertools.pairwise(path))
        log.append(value + sum(law.log_prob(torch.tensor(x))[z] for z, x in zip(path, y, strict=True) if x == x))
    return torch.tensor(paths), torch.stack(log)


def smoothed(paths: Tensor, log: Tensor) -> Tensor:
    weights = log.detach().softmax(0)
    return torch.stack(
        [torch.stack([weights[paths[:, t] == k].sum() for k in range(3)]) for t in range(paths.shape[1])]
    )


def test_what_scaling_loses_is_found():
    model = left_to_right()
    truth = [every_path(model, y) for y in Y]
    log_prob = model.log_prob(Y)
    assert_close(log_prob, torch.stack([log.logsumexp(0) for _, log in truth]).double(), rtol=1e-12, atol=0)
    expected = torch.autograd.grad(sum(log.logsumexp(0) for _, log in truth), model.emission.mean)[0]
    assert_close(torch.autograd.grad(log_prob.sum(), model.emission.mean)[0], expected)
    posterior, paired = model.smooth(Y), model.smooth(Y, pairs=True)
    drawn, best = model.sample_posterior(Y, n=3, seed=0), model.decode(Y)
    for i, (paths, log) in enumerate(truth):
        assert_close(posterior.probs[i], smoothed(paths, log))
        assert_close(paired.probs[i], smoothed(paths, log))
        assert_close(paired.pairs[i].sum(2), smoothed(paths, log)[:-1])
        assert_close(paired.pairs[i].sum(1), smoothed(paths, log)[1:])
        assert best[i].tolist() == paths[log.argmax()].tolist()
        assert all(log[(paths == path).all(1)] > log.max() - 30 for path in drawn[i])  # a likely path
        for t in range(len(Y[i])):
            until = every_path(model, Y[i][: t + 1])
            assert_close(model.filter(Y).probs[i][t], smoothed(*until)[t])
    scores = model.decode(Y, k=2)[1]
    assert_close(scores[1], truth[1][1].detach().sort(descending=True).values[:2])
    assert_close(model.impute(Y)[2][2, 0], (posterior.probs[2][2] * model.emission.mean[:, 0]).sum().detach())


@pytest.mark.parametrize("counting", [True, False])
@pytest.mark.parametrize("weights", [None, [1.0, 2, 0.5, 3]])
def test_expected_counts(weights: list[float] | None, counting: bool):
    model, method = left_to_right(), ss.Forward()
    data, _ = ss.verbs.ask(model, Y)
    each = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    ready = ss.method.prepare(model, method, data)
    posterior, counts, log_prob = expectations(model, method, ready, None, data.shape, each, counting)
    expected = torch.zeros(3, 3, dtype=torch.float64)
    for i, y in enumerate(Y):
        paths, log = every_path(model, y)
        factor = 1.0 if weights is None else weights[i]
        assert_close(posterior[: len(y), i], factor * smoothed(paths, log))
        for path, p in zip(paths.tolist(), (factor * log.detach().softmax(0)).tolist(), strict=True):
            for a, b in itertools.pairwise(path):
                expected[a, b] += p
        assert_close(log_prob[:, i].sum(), log.logsumexp(0).detach())
    if counting:
        assert_close(counts.value, expected)


@pytest.mark.parametrize("kernel", [True, False])
def test_single_precision(kernel: bool):
    model, double = left_to_right(torch.float32), left_to_right()
    y = [[0.0, 0, 30], [0.0, 1, 0.5], [0.0, 15]]
    with torch.no_grad():
        model.emission.mean.div_(10)
        double.emission.mean.div_(10)
    data, _ = ss.verbs.ask(model, y)
    log_prob = run(model, ss.Forward(), data, kernel=kernel).log_prob.sum(0)
    assert_close(log_prob, double.log_prob(y), rtol=1e-6, atol=0)
    log_prob.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    trace = run(model, ss.Forward(), data, keep=("predicted", "filtered", "last"), kernel=kernel)
    assert trace.filtered.probs.dtype == trace.last.probs.dtype == trace.predicted.probs.dtype == torch.float32


def test_labels_and_a_belief_carried_in():
    model = left_to_right()
    labels = [-1, 0, 1]
    truth = every_path(model, [0.0, 90, 190], labels)[1].logsumexp(0)
    assert_close(model.log_prob([0.0, 90, 190], states=labels), truth)
    first = model.filter([0.0])
    rest = model.log_prob([[300.0, 300]], belief=first.belief) + first.log_prob
    assert_close(rest[0], every_path(model, [0.0, 300, 300])[1].logsumexp(0))


def test_em_climbs_through_an_outlier():
    model, fitter = left_to_right(), ss.EM(iterations=5, tolerance=0)
    model.fit(Y, by=fitter)
    assert all(b >= a - 1e-6 for a, b in itertools.pairwise(fitter.history))
    assert math.isfinite(fitter.history[0])


@pytest.mark.parametrize(
    "model",
    [
        ss.semi_markov(states=3, longest=4, emission=ss.Gaussian(1), seed=0),
        ss.factorial_hmm(states=[2, 2], emission=ss.Gaussian(1), seed=0),
        ss.hmm(states=3, emission=ss.Gaussian(1), seed=0),
    ],
)
def test_the_method_by_itself_agrees(model: ss.StateSpace):
    y, method = model.sample(2, 7, seed=0)[1], LogForward(ss.Forward())
    y[0, 3] = math.nan
    assert_close(model.log_prob(y, method=method), model.log_prob(y))
    assert_close(model.smooth(y, method=method, pairs=True).pairs, model.smooth(y, pairs=True).pairs)
    assert_close(model.filter(y, method=method).probs, model.filter(y).probs)


def test_what_is_impossible_stays_so():
    model = ss.hmm(initial=[1.0, 0], transition=[[1.0, 0], [0, 1]], emission=ss.Categorical(probs=[[1.0, 0], [0, 1]]))
    assert model.log_prob([[0, 0, 0], [0, 1, 0]]).tolist() == [0.0, -math.inf]
