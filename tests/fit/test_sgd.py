"""Gradient descent, and that it and EM climb the same hill."""

import math

import pytest
import torch
from torch.testing import assert_close

import statespan as ss


def data() -> list[torch.Tensor]:
    truth = ss.hmm(
        initial=[0.5, 0.5], transition=[[0.9, 0.1], [0.1, 0.9]], emission=ss.Categorical(probs=[[0.9, 0.1], [0.2, 0.8]])
    )
    return list(truth.sample(10, 30, seed=0)[1])


def test_em_and_sgd_reach_the_same_optimum_on_the_same_object():
    rows = data()
    model = ss.hmm(
        initial=[0.5, 0.5], transition=[[0.8, 0.2], [0.2, 0.8]], emission=ss.Categorical(probs=[[0.7, 0.3], [0.4, 0.6]])
    )
    start = {k: v.clone() for k, v in model.state_dict().items()}
    em, sgd = ss.EM(iterations=250, tolerance=0), ss.SGD(epochs=120, learning_rate=0.1)
    model.fit(rows, by=em)
    model.load_state_dict(start)
    model.fit(rows, by=sgd)
    assert em.history[0] == pytest.approx(sgd.history[0], abs=1e-9)
    assert em.history[-1] == pytest.approx(sgd.history[-1], abs=0.02)
    model.fit(rows, by=em)  # and from where the gradient stopped, EM goes on
    assert em.history[-1] >= sgd.history[-1] - 1e-6


@pytest.mark.parametrize("name", ["hmm", "hmm/gated", "hmm/sigmoid+late-emission", "elman", "gru", "lstm"])
def test_rungs_improve(name: str):
    sgd = ss.SGD(epochs=15, learning_rate=0.05)
    ss.ladder(name, vocabulary=2, width=3, seed=0).fit(data(), by=sgd)
    assert sgd.history[-1] > sgd.history[0]


def test_a_linear_gaussian_model_improves_and_keeps_its_covariances():
    truth = ss.linear_gaussian(dynamics=[[0.9]], state_noise=[[0.1]], observation=[[1.0]], observation_noise=[[0.5]])
    y = truth.sample(8, 15, seed=0)[1]
    y[0, 3] = math.nan
    model = ss.linear_gaussian(state=1, observed=1, seed=0)
    sgd = ss.SGD(epochs=25, learning_rate=0.1)
    model.fit(y, by=sgd)
    assert sgd.history[-1] > sgd.history[0] + 1
    assert model.transition.covariance.item() > 0


def test_what_fits_when_nothing_is_said():
    rows = data()[:3]
    for model in (ss.hmm(states=2, emission=ss.Categorical(2), seed=0), ss.ladder("elman", vocabulary=2, width=2)):
        before = model.log_prob(rows).sum()
        assert model.fit(rows) is model
        assert model.log_prob(rows).sum() > before


def test_batches_and_seeds():
    rows = [r[: 5 + i] for i, r in enumerate(data())]
    found = []
    for _ in range(2):
        model = ss.ladder("elman", vocabulary=2, width=3, seed=0)
        model.fit(rows, by=ss.SGD(epochs=3, batch=4, clip=0.5, weight_decay=1e-3), seed=5)
        found.append(model.log_prob(rows))
    assert torch.equal(*found)


def test_other_optimisers():
    for optimizer, options in ((torch.optim.SGD, {"momentum": 0.9}), (torch.optim.AdamW, {"betas": (0.0, 0.99)})):
        sgd = ss.SGD(epochs=10, learning_rate=0.05, optimizer=optimizer, options=options)
        ss.hmm(states=2, emission=ss.Categorical(2), seed=0).fit(data(), by=sgd)
        assert sgd.history[-1] > sgd.history[0]


def test_restarts_of_a_network_start_anew():
    rows, found = data(), []
    sgd = ss.SGD(epochs=2, learning_rate=0.01)
    model = ss.lstm(vocabulary=2, width=3, seed=0)

    class Spy(ss.SGD):
        def __call__(self, model, data, start=False):
            value = super().__call__(model, data, start)
            found.append(self.history[0])
            return value

    spy = Spy(epochs=2, learning_rate=0.01)
    model.fit(rows, by=spy, restarts=3, seed=0)
    assert len(set(found)) == 3
    sgd(ss.lstm(vocabulary=2, width=3, seed=0), ss.verbs.ask(model, rows)[0])
    assert found[0] == pytest.approx(sgd.history[0])


def test_a_learning_rate_too_high_is_said():
    class Burst(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.fill_(math.nan)

    with pytest.raises(ss.StatespanError, match="epoch 1; lower the learning rate"):
        ss.ladder("elman", vocabulary=2, width=2).fit(data(), by=ss.SGD(epochs=3, optimizer=Burst))


def test_dropout_is_off_after_a_fit_and_log_prob_is_certain():
    model = ss.ladder("lstm", vocabulary=2, width=8, dropout=(0.3, 0.3, 0.3), seed=0)
    rows = data()
    assert not torch.equal(model.log_prob(rows), model.log_prob(rows))
    model.fit(rows, by=ss.SGD(epochs=2))
    assert_close(model.log_prob(rows), model.log_prob(rows), rtol=0, atol=0)
