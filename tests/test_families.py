"""Models by name: sizes, given parameters, and what is said when they do not agree."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import statespan as ss

PI, A = [0.6, 0.4], [[0.7, 0.3], [0.2, 0.8]]
B = [[0.5, 0.4, 0.1], [0.1, 0.3, 0.6]]


def test_given_parameters_are_read_back_exactly():
    for wrap in (list, np.array, torch.tensor):
        model = ss.hmm(initial=wrap(PI), transition=wrap(A), emission=ss.Categorical(probs=wrap(B)))
        size = {"rtol": 0, "atol": 1e-12 if wrap is not torch.tensor else 1e-7}
        assert_close(model.initial.probs().detach(), torch.tensor(PI).double(), rtol=0, atol=1e-7)
        assert_close(model.transition.probs.detach(), torch.tensor(A, dtype=torch.float64), **size)
        assert_close(model.emission.probs.detach(), torch.tensor(B, dtype=torch.float64), **size)
        assert all(p.dtype == torch.float64 for p in model.parameters())


def test_rabiners_textbook_example():
    """p(0, 1, 2) by hand."""
    model = ss.hmm(initial=PI, transition=A, emission=ss.Categorical(probs=B))
    a = np.array(PI) * np.array(B)[:, 0]
    a = (a @ np.array(A)) * np.array(B)[:, 1]
    a = (a @ np.array(A)) * np.array(B)[:, 2]
    assert model.log_prob([0, 1, 2]).item() == pytest.approx(math.log(a.sum()), abs=1e-12)


def test_zeros_and_ones_are_kept():
    model = ss.hmm(initial=[1, 0], transition=[[0, 1], [1, 0]], emission=ss.Categorical(probs=[[1, 0], [0, 1]]))
    assert model.log_prob([0, 1, 0, 1]) == 0
    assert model.log_prob([1, 0]) == -math.inf
    assert model.decode([0, 1, 0]).tolist() == [0, 1, 0]


def test_a_gaussian_from_moments():
    mean, cov = [[0.0, 1.0], [2.0, -1.0]], [[[1.0, 0.3], [0.3, 2.0]], [[0.5, 0.0], [0.0, 0.5]]]
    model = ss.hmm(emission=ss.Gaussian(mean=mean, covariance=cov), initial=PI, transition=A)
    assert_close(model.emission.mean.detach(), torch.tensor(mean, dtype=torch.float64))
    assert_close(model.emission.covariance.detach(), torch.tensor(cov, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["full", "diagonal", "spherical", "tied"])
def test_kinds_of_covariance(kind: str):
    part = ss.hmm(states=3, emission=ss.Gaussian(2, kind)).emission
    for p in part.parameters():
        torch.nn.init.normal_(p)
    cov = part.covariance.detach()
    assert bool((torch.linalg.eigvalsh(cov) > 0).all())
    off = cov[:, 0, 1]
    assert bool((off == 0).all()) == (kind in ("diagonal", "spherical"))
    assert torch.equal(cov[:, 0, 0], cov[:, 1, 1]) == (kind == "spherical")
    assert torch.equal(cov[0], cov[1]) == (kind == "tied")


def test_dtype_device_and_seed():
    assert ss.hmm(states=2, emission=ss.Categorical(3)).log_prob([0]).dtype == torch.float64
    for make in (
        lambda **o: ss.hmm(states=2, emission=ss.Categorical(3), **o),
        lambda **o: ss.linear_gaussian(state=2, observed=1, **o),
    ):
        model = make(dtype=torch.float32, device="cpu", seed=1)
        assert all(p.dtype == torch.float32 for p in model.parameters())
    one, two = (ss.hmm(states=2, emission=ss.Gaussian(2), seed=4).transition.logits for _ in range(2))
    assert torch.equal(one, two)


def test_on_the_meta_device():
    """Sizes without memory; nothing in a model is left behind when it moves."""
    for model in (ss.hmm(states=2, emission=ss.Gaussian(2)), ss.lstm(5, 3), ss.linear_gaussian(2, 1)):
        moved = model.to("meta")
        assert {t.device.type for t in moved.state_dict().values()} == {"meta"}


def test_parts_may_be_given():
    move = ss.Dense(2)
    model = ss.hmm(emission=ss.Categorical(3), transition=move, initial=ss.Start(2), states=2)
    assert model.transition is move


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "hmm needs an emission"),
        ({"emission": ss.Categorical(3)}, "hmm needs states=K"),
        ({"emission": ss.Categorical(3), "states": 0}, "states=0; use at least one"),
        ({"emission": ss.Categorical(probs=B), "states": 3}, "differs: states= 3, emission 2"),
        ({"emission": ss.Categorical(3), "initial": [0.5, 0.5], "transition": [[1.0]]}, "initial 2, transition 1"),
        ({"emission": ss.Categorical(3), "transition": [[0.5, 0.5]]}, r"transition=\) is \(1, 2\); it must be square"),
        ({"emission": ss.Categorical(3), "transition": [[0.5, 0.6], [1, 0]]}, "row 0 sums to 1.1"),
        ({"emission": ss.Categorical(3), "initial": [0.5, 0.4]}, r"hmm\(initial=\): row 0 sums to 0.9"),
        ({"emission": ss.Categorical(3), "initial": [-0.5, 1.5]}, "must be probabilities"),
        ({"emission": ss.Categorical(3), "initial": [[0.5, 0.5]]}, "initial=.* 2 dimensions where 1"),
        ({"emission": ss.Categorical(3), "states": 2, "initial": ss.Start(3)}, "the number of states differs"),
        ({"emission": ss.Categorical(3), "states": 2, "transition": ss.Dense(3)}, "the number of states differs"),
    ],
)
def test_what_does_not_agree_is_named(options: dict, words: str):
    with pytest.raises(ss.StatespanError, match=words) as error:
        ss.hmm(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ss.Categorical(), "needs symbols=V"),
        (lambda: ss.Categorical(probs=[[0.5, 0.4]]), "row 0 sums to 0.9"),
        (lambda: ss.Gaussian(2, "fulll"), "covariance='fulll' is none of full, diagonal"),
        (lambda: ss.Gaussian(mean=[[0.0]]), "needs covariance= as matrices"),
        (lambda: ss.Gaussian(mean=[[0.0]], covariance=[[1.0]]), r"\(1, 1\) and covariance \(1, 1\)"),
        (lambda: ss.Gaussian(mean=[[0.0]], covariance=[[[-1.0]]]), "state 0 is not positive definite"),
        (
            lambda: ss.StateSpace(ss.Start(2), ss.Dense(2), ss.Categorical(3)),
            "Categorical does not know its number of states",
        ),
    ],
)
def test_parts_say_what_is_wrong(make, words: str):
    with pytest.raises(ss.StatespanError, match=words):
        make()
