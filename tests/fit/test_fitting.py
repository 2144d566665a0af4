"""Fitters one after another, restarts, what is held by name, and what a fit reports."""

import math

import pytest
import torch
from torch.testing import assert_close

import statespan as ss
from statespan.fit.fitting import usual


def rows() -> list[torch.Tensor]:
    truth = ss.hmm(states=2, emission=ss.Categorical(3), seed=9)
    return list(truth.sample(4, 25, seed=0)[1])


def model(seed: int = 1) -> ss.StateSpace:
    return ss.hmm(states=2, emission=ss.Categorical(3), seed=seed)


def test_em_then_sgd_goes_on_from_where_em_stopped():
    y, seen = rows(), []
    em, sgd = ss.EM(iterations=3, tolerance=0), ss.SGD(epochs=5, callback=lambda i, value: seen.append((i, value)))
    one = model().fit(y, by=[em, sgd])
    other = model().fit(y, by=ss.EM(iterations=3, tolerance=0)).fit(y, by=ss.SGD(epochs=5))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert_close(a, b)
    assert [i for i, _ in seen] == [1, 2, 3, 4, 5]
    assert [value for _, value in seen] == sgd.history
    assert sgd.history[0] > em.history[-1]
    chain = ss.Chain(em, sgd)
    model().fit(y, by=chain)
    assert chain.history == em.history + sgd.history
    with pytest.raises(ss.StatespanError, match="at least one fitter"):
        model().fit(y, by=[])


def test_sgd_stops_when_it_rises_no_more():
    sgd = ss.SGD(epochs=2000, learning_rate=0.1, tolerance=1e-4)
    model().fit(rows(), by=sgd)
    assert len(sgd.history) < 1000


def test_the_best_of_the_restarts_is_kept_and_all_are_told():
    y, by = rows(), ss.EM(iterations=10, tolerance=0)
    found = model().fit(y, by=by, restarts=4, seed=0)
    assert len(by.restarts) == 4
    assert by.history[-1] == max(by.restarts)
    assert len(set(by.restarts)) > 1
    again = ss.EM(iterations=10, tolerance=0)
    model().fit(y, by=again, restarts=4, seed=0)
    assert again.restarts == by.restarts
    alone = ss.EM(iterations=10, tolerance=0)
    model().fit(y, by=alone)
    assert by.restarts[0] == pytest.approx(alone.history[-1])
    assert found.log_prob(y).sum().item() >= max(by.restarts)


def test_the_answer_does_not_depend_on_how_many_processes_share_the_work():
    y, results = rows(), []
    for jobs in (1, 2):
        by = ss.EM(iterations=4, tolerance=0)
        results.append((model().fit(y, by=by, restarts=3, seed=0, jobs=jobs), by))
    assert_close(results[0][1].restarts, results[1][1].restarts)
    for a, b in zip(results[0][0].parameters(), results[1][0].parameters(), strict=True):
        assert_close(a, b)
    with pytest.raises(ss.StatespanError, match="cannot send this"):
        model().fit(y, by=ss.EM(callback=lambda i, v: None), restarts=2, jobs=2)


def test_what_is_held_by_name_stays_in_this_fit_alone():
    y, held = rows(), model()
    before = held.transition.probs.detach().clone()
    held.fit(y, by=ss.EM(iterations=3), hold=["transition"], restarts=2, seed=0)
    assert torch.equal(held.transition.probs, before)
    assert all(p.requires_grad for p in held.parameters())
    held.fit(y, by=ss.EM(iterations=3))
    assert not torch.equal(held.transition.probs, before)
    with pytest.raises(ss.StatespanError, match="names no parameter"):
        held.fit(y, hold=["motion"])


def test_degenerate_fits_are_reported():
    y = [0.0] * 30 + [5.0, 5.3, 4.8, 5.1]
    em = ss.EM(iterations=50)
    emission = ss.Gaussian(mean=[[0.1], [5.0], [90.0]], covariance=[[[1.0]]] * 3)
    fitted = ss.hmm(initial=[0.4, 0.3, 0.3], transition=[[0.4, 0.3, 0.3]] * 3, emission=emission)
    fitted.fit(y, by=em)
    assert math.isfinite(fitted.log_prob(y).item())
    assert any("state 0: a variance is at its floor" in note for note in em.notes)
    assert any("state 2 is hardly used" in note for note in em.notes)
    short = ss.EM(iterations=2)
    model().fit(rows(), by=short)
    assert any("not converged after 2" in note for note in short.notes)


def test_the_usual_fitter_is_the_best_that_the_parts_and_the_method_allow():
    assert usual(ss.hmm(states=2, emission=ss.Gaussian(1))) is ss.EM
    assert usual(ss.hmm(states=2, emission=ss.Emission("Gumbel", 1))) is ss.LBFGS
    assert usual(ss.level() + ss.seasonal(4)) is ss.LBFGS
    assert usual(ss.lstm(vocabulary=5, width=3)) is ss.SGD
