"""Likeliest paths: ties, several at once, kernels, refusals. Enumeration is in test_forward.py."""

import math

import pytest
import torch
from torch.testing import assert_close

import statespan as ss
from statespan.method import run


def test_ties_go_to_the_lower_state():
    even = ss.hmm(initial=[0.5, 0.5], transition=[[0.5, 0.5]] * 2, emission=ss.Categorical(probs=[[0.5, 0.5]] * 2))
    assert even.decode([0, 1, 0]).tolist() == [0, 0, 0]
    paths, scores = even.decode([0, 1], k=4)
    assert paths[:, 0].tolist() == [0, 0]
    assert {tuple(p.tolist()) for p in paths.T} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert_close(scores, torch.full((4,), 4 * math.log(0.5)).double())
    fed = ss.ladder("hmm/addition", vocabulary=2, width=2, dtype=torch.float64)
    with torch.no_grad():
        for p in fed.parameters():
            p.zero_()
    assert fed.decode([0, 1, 0]).tolist() == [0, 0, 0]


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("k", [1, 3])
def test_ragged_and_gaps_one_by_one(kernel: bool, k: int):
    model = ss.hmm(states=3, emission=ss.Categorical(4), seed=0)
    rows = [[0, 1, None, 3, 2], [2], [None, None], [3, 3, 0]]
    method = ss.MaxProduct(k)
    data, _ = ss.verbs.ask(model, rows)
    paths, scores = run(model, method, data, keep=("paths",), kernel=kernel).paths
    for i, row in enumerate(rows):
        alone, score = model.decode(row, k=k)
        assert_close(paths[: len(row), i], alone)
        assert bool((paths[len(row) :, i] == -1).all())
        assert_close(scores[i].detach(), score)


def test_more_paths_than_there_are_have_probability_zero():
    model = ss.hmm(states=2, emission=ss.Categorical(2), seed=0)
    paths, scores = model.decode([1], k=5)
    assert paths.shape == (1, 5)
    assert bool(scores[:2].isfinite().all())
    assert bool((scores[2:] == -math.inf).all())


def test_float32_scores_are_summed_in_float64():
    model = ss.hmm(states=3, emission=ss.Categorical(4), seed=0)
    y = model.sample(None, 700, seed=0)[1]
    exact = model.decode(y, k=2)[1]
    assert_close(model.float().decode(y, k=2)[1], exact, rtol=1e-6, atol=0)


def test_a_model_with_more_method_ranks_than_asked():
    model = ss.hmm(states=3, emission=ss.Categorical(4), seed=0)
    three, _ = model.decode([0, 1, 2], k=3)
    assert_close(model.decode([0, 1, 2], method=ss.MaxProduct(3)), three[:, 0])
    assert model.decode([0, 1, 2], k=3, method=ss.MaxProduct())[0].shape == (3, 3)


def test_refusals_name_the_verb():
    model = ss.hmm(states=3, emission=ss.Categorical(4), seed=0)
    for verb, word in (("log_prob", "log_prob"), ("smooth", "smooth"), ("forecast", "forecast"), ("impute", "impute")):
        with pytest.raises(ss.StatespanError, match=word):
            getattr(model, verb)([0, None, 2], method=ss.MaxProduct())
    with pytest.raises(ss.StatespanError, match="k=0: ask for at least one"):
        model.decode([0], k=0)
    with pytest.raises(TypeError, match=r"ask filter\(y\)\.state"):
        ss.elman(vocabulary=4, width=3).decode([0, 1])
    with pytest.raises(TypeError, match="k=1"):
        ss.ladder("hmm/late-both", vocabulary=4, width=3).decode([0, 1], k=2)
    path = ss.ladder("hmm/late-both", vocabulary=4, width=3).decode([[0, 1, 2], [1]])
    assert [p.shape for p in path] == [(3,), (1,)]
