"""Moves that depend on inputs: every path enumerated, scipy's exponential, EM that rises to where the slope is zero."""

import itertools

import numpy as np
import pytest
import scipy.linalg
import torch
from brute import brute
from torch.testing import assert_close

import statespan as ss

TIGHT = {"rtol": 1e-10, "atol": 1e-10}
EMISSION = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.1, 0.7]]


def rises(history: list[float], slack: float = 1e-8) -> bool:
    return all(b >= a - slack for a, b in itertools.pairwise(history))


def scatter(part):
    for p in part.parameters():
        torch.nn.init.normal_(p, std=0.8)
    return part


def regression() -> ss.StateSpace:
    start, move = ss.SoftmaxStart(inputs=2, precision=0.1), ss.SoftmaxTransition(inputs=2, precision=0.1)
    model = ss.hmm(states=3, initial=start, transition=move, emission=ss.Categorical(probs=EMISSION), seed=1)
    scatter(model.initial)
    scatter(model.transition)
    return model


def seasons() -> ss.StateSpace:
    move = ss.Regimes(regimes=2, column=1, concentration=1.5)
    return ss.hmm(states=3, transition=move, emission=ss.Categorical(probs=EMISSION), seed=1)


def stamps() -> ss.StateSpace:
    move = ss.Generator(column=0, shape=1.5, rate=0.5)
    return ss.hmm(states=3, transition=move, emission=ss.Categorical(probs=EMISSION), seed=1)


MODELS = {"regression": regression, "seasons": seasons, "stamps": stamps}


def inputs(n: int, length: int) -> torch.Tensor:
    """A gap from a few, and a season."""
    g = torch.Generator().manual_seed(8)
    gaps = torch.tensor([0.0, 0.3, 1.0, 2.5])[torch.randint(4, (n, length), generator=g)]
    return torch.stack([gaps, torch.randint(2, (n, length), generator=g).float()], -1).double()


def tables_by_hand(name: str, model: ss.StateSpace, u: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The start and the move into each later step, as the formulas are printed."""
    initial = model.initial.probs().detach()
    with torch.no_grad():
        if name == "regression":
            w, b = model.transition.weight[..., 1:], model.transition.weight[..., 0]
            initial = (model.initial.weight[:, 0] + model.initial.weight[:, 1:] @ u[0]).softmax(-1)
            return initial, [torch.stack([(b[i] + w[i] @ x).softmax(-1) for i in range(3)]) for x in u[1:]]
        if name == "seasons":
            return initial, [model.transition.logits[int(x[1])].softmax(-1) for x in u[1:]]
        rates = model.transition.log_rates.exp().numpy().copy()
        np.fill_diagonal(rates, 0)
        rates -= np.diag(rates.sum(1))
        return initial, [torch.as_tensor(scipy.linalg.expm(rates * float(x[0]))) for x in u[1:]]


@pytest.mark.parametrize("name", MODELS)
def test_answers_equal_enumeration(name: str, tmp_path):
    model, y, u = MODELS[name](), torch.tensor([0, 2, 1, 1, 2]), inputs(1, 5)[0]
    truth = brute(*tables_by_hand(name, model, u), torch.tensor(EMISSION, dtype=torch.float64).log().T[y])
    assert_close(model.log_prob(y, inputs=u).detach(), truth.log_prob, **TIGHT)
    smoothed = model.smooth(y, inputs=u)
    assert_close(smoothed.probs, truth.smoothed, **TIGHT)
    assert model.decode(y, inputs=u).tolist() == truth.path
    assert_close(model.decode(y, inputs=u, k=2)[1][0], truth.score, **TIGHT)
    model.save(tmp_path / "m.safetensors")
    assert_close(ss.load(tmp_path / "m.safetensors").log_prob(y, inputs=u), model.log_prob(y, inputs=u), rtol=0, atol=0)
    ragged = model.log_prob([y, y[:3]], inputs=[u, u[:3]])
    assert_close(ragged[0], model.log_prob(y, inputs=u), **TIGHT)
    assert_close(ragged[1], model.log_prob(y[:3], inputs=u[:3]), **TIGHT)
    paths = model.sample_posterior(y, n=3000, seed=0, inputs=u)
    drawn = torch.nn.functional.one_hot(paths, 3).double().mean(0)
    assert_close(drawn, truth.smoothed, rtol=0, atol=0.05)
    single = model.float()
    assert_close(single.log_prob(y, inputs=u).detach(), truth.log_prob, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_a_forecast_follows_the_inputs_to_come(name: str):
    model, y, u = MODELS[name](), torch.tensor([0, 2, 1]), inputs(1, 5)[0]
    initial, tables = tables_by_hand(name, model, u)
    emission = torch.tensor(EMISSION, dtype=torch.float64)
    now = brute(initial, tables[:2], emission.log().T[y]).smoothed[-1]
    ahead = model.forecast(y, steps=2, inputs=u[:3], future=u[None, 3:][0], samples=4000)
    assert_close(ahead.probs[0], now @ tables[2] @ emission, **TIGHT)
    assert_close(ahead.probs[1], now @ tables[2] @ tables[3] @ emission, **TIGHT)
    drawn = torch.nn.functional.one_hot(ahead.samples, 3).double().mean(0)
    assert_close(drawn, ahead.probs, rtol=0, atol=0.05)


@pytest.mark.parametrize("name", MODELS)
def test_em_rises_to_where_the_slope_is_zero(name: str):
    truth, u = MODELS[name](), inputs(30, 12)
    y = truth.sample(30, 12, seed=2, inputs=u.transpose(0, 1))[1]
    model = MODELS[name]()
    scatter(model.transition)
    for p in model.emission.parameters():
        p.requires_grad_(False)
    em = ss.EM(iterations=60, tolerance=0)
    model.fit(y, inputs=u, by=em)
    assert rises(em.history)
    assert em.history[-1] > em.history[0] + 1
    value = model.log_prob(y, inputs=u).sum() + model.log_prior()
    free = [p for p in model.parameters() if p.requires_grad]
    slopes = [g.abs().max() for g in torch.autograd.grad(value, free, allow_unused=True) if g is not None]
    first = MODELS[name]()
    scatter(first.transition)
    start = first.log_prob(y, inputs=u).sum() + first.log_prior()
    before = [g.abs().max() for g in torch.autograd.grad(start, list(first.parameters()), allow_unused=True)]
    assert max(slopes) < (0.2 if name == "stamps" else 0.03) * max(before)  # jumps unseen make EM slow


@pytest.mark.parametrize("name", ["seasons", "stamps"])
def test_a_batch_at_a_time_gives_the_same_sums(name: str):
    model, u = MODELS[name](), inputs(6, 8)
    y = model.sample(6, 8, seed=2, inputs=u.transpose(0, 1))[1]
    fits = [MODELS[name]().fit(y, inputs=u, by=ss.EM(iterations=3, batch=b, tolerance=0)) for b in (6, 2)]
    for a, b in zip(*(m.parameters() for m in fits), strict=True):
        assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_the_expected_jumps_and_times_are_those_of_a_fine_grid():
    """Jumps and times between two known ends, against a chain of many small steps."""
    part = ss.Generator(3).double()
    gap, fine = 0.8, 4000
    table = torch.linalg.matrix_exp(part.rates.detach() * gap)
    counts = torch.rand(3, 3).double()
    from statespan.parts.inputs import Chosen
    from statespan.tree import Shared

    found = part.statistics(
        Chosen(Shared(counts[None]), torch.zeros(1, 1)), torch.full((1, 1, 1), gap, dtype=torch.float64)
    )
    small = torch.linalg.matrix_exp(part.rates.detach() * gap / fine)
    before, after = torch.eye(3).double(), torch.linalg.matrix_exp(part.rates.detach() * gap * (1 - 1 / fine))
    inverse, total = torch.linalg.inv(small), torch.zeros(3, 3).double()
    for _ in range(fine):  # p(jump i to j in this small step | ends a, b), summed with weight counts[a, b]
        total += torch.einsum("ab,ai,jb->ij", counts / table, before, after) * small
        before, after = before @ small, after @ inverse
    eye = torch.eye(3).bool()
    assert_close(found[~eye], total[~eye], rtol=2e-3, atol=1e-4)
    assert_close(found[eye], total[eye] * gap / fine, rtol=2e-3, atol=1e-4)
    assert_close(found.trace(), counts.sum() * gap, **TIGHT)
    assert_close(part.stationary() @ part.rates, torch.zeros(3).double(), rtol=0, atol=1e-12)


def test_inputs_that_cannot_be_are_named():
    y = torch.tensor([0, 1])
    for name, words in (("regression", "takes 2 inputs a step"), ("seasons", "an input in column 1")):
        with pytest.raises(ss.StatespanError, match=words):
            MODELS[name]().log_prob(y)
    with pytest.raises(ss.StatespanError, match="time must not run backwards"):
        stamps().log_prob(y, inputs=[[0.0], [-1.0]])
    with pytest.raises(ss.StatespanError, match="column 1 says which table"):
        seasons().log_prob(y, inputs=[[0.0, 0], [0, 2]])
