"""Criteria against their formulas, cross-validation, and states put in order."""

import math

import matplotlib
import numpy as np
import pytest
import torch
from hmmlearn import hmm as hmmlearn
from scipy.optimize import linear_sum_assignment
from torch.testing import assert_close

import statespan as ss
from statespan.selection import assignment, cross_validate, matching
from statespan.verbs import ask

matplotlib.use("Agg")


def truth() -> ss.StateSpace:
    emission = ss.Gaussian(mean=[[0.0], [4.0]], covariance=[[[1.0]]] * 2)
    return ss.hmm(initial=[0.5, 0.5], transition=[[0.9, 0.1], [0.2, 0.8]], emission=emission)


def series(n: int = 300) -> torch.Tensor:
    return truth().sample(None, n, seed=1)[1]


def test_the_sweep_finds_the_number_of_states_and_its_numbers_are_the_formulas():
    y = series()
    found = ss.select_states(y, ss.Gaussian(1), states=(1, 2, 3), restarts=2)
    assert found.best_name == 2
    frame = found.frame()
    assert frame["parameters"] == [2, 7, 14]
    assert frame["observations"] == [300] * 3
    for i, model in enumerate(found.models.values()):
        log_prob, count = model.log_prob(y).item(), frame["parameters"][i]
        path = float(model.decode(y, k=1)[1])
        assert frame["aic"][i] == pytest.approx(2 * count - 2 * log_prob)
        assert frame["bic"][i] == pytest.approx(count * math.log(300) - 2 * log_prob)
        assert frame["icl"][i] == pytest.approx(count * math.log(300) - 2 * path)
    assert str(found).splitlines()[2].startswith("*")
    assert found.plot().get_xlabel() == "states"


def test_aic_and_bic_as_hmmlearn_has_them():
    y = series()
    model = ss.hmm(states=2, emission=ss.Gaussian(1), seed=0).fit(y)
    peer = hmmlearn.GaussianHMM(2, "full", init_params="")
    peer.startprob_, peer.transmat_ = model.initial.probs().detach().numpy(), model.transition.probs.detach().numpy()
    peer.n_features, peer.means_ = 1, model.emission.mean.detach().numpy()
    peer.covars_ = model.emission.covariance.detach().numpy()
    row = ss.compare([model], y).frame()
    assert row["aic"][0] == pytest.approx(peer.aic(y.numpy()))
    assert row["bic"][0] == pytest.approx(peer.bic(y.numpy()))


def test_a_gap_is_no_observation():
    y = series(50)
    y[[3, 10]] = math.nan
    model = ss.hmm(states=2, emission=ss.Gaussian(1), seed=0)
    assert ss.compare({"a": model}, y).frame()["observations"] == [48]


def test_folds_of_sequences_score_what_was_left_out():
    rows = [truth().sample(None, 30, seed=i)[1] for i in range(4)]
    model = ss.hmm(states=2, emission=ss.Gaussian(1), seed=0)
    data, _ = ask(model, rows)
    by, seed = ss.EM(iterations=3, tolerance=0), 5
    score = cross_validate(model, data, 4, by, seed=seed)
    expected = 0.0
    for i in range(4):
        trial = ss.hmm(states=2, emission=ss.Gaussian(1), seed=0)
        trial.fit([row for j, row in enumerate(rows) if j != i], by=ss.EM(iterations=3, tolerance=0))
        expected += trial.log_prob(rows[i]).item()
    assert score == pytest.approx(expected / 120)


def test_blocks_of_one_series_are_scored_given_both_sides():
    y = series(60)
    model = ss.hmm(states=2, emission=ss.Gaussian(1), seed=0)
    data, _ = ask(model, y)
    score = cross_validate(model, data, 3, ss.EM(iterations=3, tolerance=0))
    expected = 0.0
    for i in range(3):
        gapped = y.clone()
        gapped[20 * i : 20 * (i + 1)] = math.nan
        trial = ss.hmm(states=2, emission=ss.Gaussian(1), seed=0).fit(gapped, by=ss.EM(iterations=3, tolerance=0))
        expected += (trial.log_prob(y) - trial.log_prob(gapped)).item()
    assert score == pytest.approx(expected / 60)


def test_cross_validation_chooses_too():
    rows = [truth().sample(None, 60, seed=i)[1] for i in range(5)]
    found = ss.select_states(rows, ss.Gaussian(1), states=(1, 2), criterion="cv", folds=5, restarts=1)
    assert found.best_name == 2
    assert found.best is found.models[2]


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (3, 6), (6, 3), (7, 7)])
def test_the_assignment_is_the_least(shape: tuple[int, int]):
    for seed in range(20):
        cost = np.random.default_rng(seed).normal(size=shape)
        rows = assignment(cost)
        there = rows >= 0
        assert len(set(rows[there])) == there.sum() == min(shape)
        i, j = linear_sum_assignment(cost)
        assert cost[np.arange(len(rows))[there], rows[there]].sum() == pytest.approx(cost[i, j].sum())


@pytest.mark.parametrize(
    "emission", [ss.Categorical(6), ss.Gaussian(2), ss.Gaussian(2, "tied"), ss.Gaussian(2, "diagonal")]
)
def test_aligned_states_are_those_of_the_reference(emission: ss.Part):
    reference = ss.hmm(states=4, emission=emission, seed=3)
    with torch.no_grad():
        for p in reference.parameters():
            p.mul_(2).add_(0.1 * torch.randn_like(p)) if p.dim() == 2 else None
        reference.initial.set_probs(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    y = reference.sample(None, 40, seed=0)[1]
    order = [2, 0, 3, 1]
    other = ss.hmm(states=4, emission=emission, seed=9)
    other.load_state_dict(reference.state_dict())
    for part in other.parts:
        ss.selection.permute(part, torch.tensor(order))
    assert_close(other.log_prob(y), reference.log_prob(y))
    assert_close(other.smooth(y).probs, reference.smooth(y).probs[:, order])
    ss.align(other, reference)
    assert_close(other.smooth(y).probs, reference.smooth(y).probs)


@pytest.mark.parametrize(
    ("transition", "initial"),
    [
        (ss.Dense(3, sticky=2.0), ss.Stationary()),
        (ss.SoftmaxTransition(3, inputs=1), ss.SoftmaxStart(3, inputs=1)),
        (ss.Generator(3), None),
        (ss.Regimes(3, regimes=3), None),
        (ss.LowRank(3, rank=3), None),
    ],
)
def test_what_a_model_says_does_not_hang_on_the_order_of_its_states(transition: ss.Part, initial: ss.Part | None):
    model = ss.hmm(emission=ss.Gaussian(1), transition=transition, initial=initial, states=3, seed=1)
    y, u = torch.arange(8.0).sin(), torch.tensor([0, 2, 1, 1, 0, 2, 2, 1.0])
    given = {"inputs": u} if transition.takes_inputs else {}
    before = model.smooth(y, **given)
    for part in model.parts:
        ss.selection.permute(part, torch.tensor([2, 0, 1]))
    after = model.smooth(y, **given)
    assert_close(after.log_prob, before.log_prob)
    assert_close(after.probs, before.probs[:, [2, 0, 1]])


@pytest.mark.parametrize(
    "emission",
    [
        ss.Product(ss.Categorical(3), ss.Gaussian(2)),
        ss.GaussianMixture(3, 2),
        ss.Gaussian(3, "tied"),
        ss.SwitchingRegression(inputs=2, switching=["variance"]),
    ],
)
def test_nor_on_where_an_emission_keeps_them(emission: ss.Part):
    model, order = ss.hmm(states=3, emission=emission, seed=0), torch.tensor([2, 0, 1])
    width = model.emission.event.dim
    y = torch.tensor([[0.0, 1.5, 0.1], [2.0, -1.0, 0.3], [1.0, 0.2, 2.0]])[:, :width]
    given = {"inputs": y.new_tensor([[0.0, 1.0], [1.0, 2.0], [3.0, 1.0]])} if model.emission.takes_inputs else {}
    before = model.smooth(y, **given)
    for part in model.parts:
        ss.selection.permute(part, order)
    after = model.smooth(y, **given)
    assert_close(after.log_prob, before.log_prob)
    assert_close(after.probs, before.probs[:, order])


@pytest.mark.parametrize("given", [{"initial": [math.nan, math.nan, 0.0]}, {"transition": ss.left_to_right(3)}])
def test_a_model_whose_states_cannot_change_places_stays_as_it_is(given: dict):
    model, other = (ss.hmm(emission=ss.Gaussian(1), states=3, seed=i, **given) for i in (0, 1))
    with torch.no_grad():
        other.emission.mean.copy_(model.emission.mean[[2, 0, 1]])
    before = other.log_prob([0.3, 1.0])
    with pytest.raises(ss.StatespanError, match="cannot be put in another order"):
        ss.align(other, model)
    assert other.log_prob([0.3, 1.0]) == before


def test_more_states_than_the_reference_follow():
    reference = truth()
    model = ss.hmm(states=3, emission=ss.Gaussian(1), seed=0)
    with torch.no_grad():
        model.emission.mean.copy_(torch.tensor([[4.1], [9.0], [0.1]]))
    assert matching(model, reference).tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ss.compare([truth()], series(), criterion="waic"), "none of aic"),
        (lambda: ss.compare([truth()], series(), criterion="cv"), "needs folds="),
        (lambda: ss.compare([], series()), "at least one model"),
        (lambda: ss.compare([truth()], [series(20)] * 2, folds=3), "at most 2"),
        (lambda: ss.select_states(series(), ss.Gaussian(1, states=2)), "without states="),
        (lambda: ss.select_states(series(), ss.Gaussian(1), states=()), "at least one number"),
        (lambda: ss.align(ss.linear_gaussian(1, 1), truth()), "no states"),
    ],
)
def test_what_cannot_be_compared(call, words: str):
    with pytest.raises(ss.StatespanError, match=words):
        call()
