"""Chains made of state vectors, against the dense HMM with the same tables and by enumeration."""

import itertools

import pytest
import torch
from torch.testing import assert_close

import statespan as ss
from statespan.method import find_kernel, run
from statespan.parts.embedded import EmbeddedCategorical, EmbeddedMatrix, StateVectors
from statespan.parts.symbols import Table
from statespan.sequences import read

TIGHT = {"rtol": 0.0, "atol": 1e-10}
Y = torch.randint(6, (5, 13), generator=torch.Generator().manual_seed(1))


def made(states: int = 8, classes: int = 2, dropout: float = 0.0) -> ss.StateSpace:
    vectors = StateVectors(states, 3)
    emission = EmbeddedCategorical(Table(6, 3, bias=True), vectors, classes)
    model = ss.hmm(emission=emission, transition=EmbeddedMatrix(vectors, classes, dropout))
    torch.manual_seed(0)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.7)
    if classes == 2:
        model.emission.set_classes(torch.tensor([0, 0, 1, 0, 1, 1]))
    return model.eval()


def twin(model: ss.StateSpace) -> ss.StateSpace:
    """The HMM of tables."""
    tables = (part.detach() for part in (model.initial.probs(), model.transition.probs, model.emission.probs))
    initial, transition, emission = tables
    return ss.hmm(initial=initial, transition=transition, emission=ss.Categorical(probs=emission))


def data(y, lengths=None):
    return read(y, made().emission.event, lengths=lengths)[0]


def test_a_state_emits_the_words_of_its_class_and_the_formulas_hold():
    model = made()
    p, m, e = model.emission.probs, model.transition, model.emission
    assert ((p > 0) == torch.tensor([[1, 1, 0, 1, 0, 0], [0, 0, 1, 0, 1, 1]]).bool().repeat_interleave(4, 0)).all()
    s = e.vectors.weight
    assert_close(m.probs, (m.source(s) @ (s @ m.target.weight.T).T + m.bias).softmax(-1), **TIGHT)
    of_class = e.table.weight[[2, 4, 5]] @ e.role(s[6]) + e.table.bias[[2, 4, 5]]
    assert_close(p[6, [2, 4, 5]], of_class.softmax(0), **TIGHT)
    z = torch.arange(8)
    assert_close(m(z).probs, m.probs, **TIGHT)
    assert_close(e(z).probs, p, **TIGHT)


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_every_answer_is_that_of_the_dense_hmm(classes: int):
    model = made(classes=classes)
    dense, every = twin(model), torch.tensor(list(itertools.product(range(6), repeat=3)))
    assert_close(model.log_prob(every).exp().sum().item(), 1.0, **TIGHT)
    ragged = [[0, 3, 3, 5, 1], [4], [2, 2, 0]]
    first = model.filter(Y[:, :4])
    for y in (Y, ragged, [0, 1, None, 5, None]):
        assert_close(model.log_prob(y), dense.log_prob(y), **TIGHT)
        for mine, its in zip(model.decode(y), dense.decode(y), strict=True):
            assert (mine == its).all()
    assert_close(model.smooth(Y).probs, dense.smooth(Y).probs, **TIGHT)
    assert_close(model.filter(Y).probs, dense.filter(Y).probs, **TIGHT)
    after = [[0, None, 2]] * 5  # a gap with a belief carried in
    assert_close(model.log_prob(after, belief=first.belief), dense.log_prob(after, belief=first.belief), **TIGHT)
    assert_close(model.forecast(Y, steps=3).probs, dense.forecast(Y, steps=3).probs, **TIGHT)
    assert (model.impute([0, None, 4]) == dense.impute([0, None, 4])).all()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("carried", ["nothing", "what was seen", "anything"])
def test_the_kernel_is_the_scan_in_value_and_gradient(dropout: float, carried: str):
    model, found = made(dropout=dropout).train(), []
    assert find_kernel(model, ss.Forward()).run.__module__.endswith("blocks")
    beliefs = {"nothing": None, "anything": ss.belief.Discrete(torch.rand(5, 8).double().softmax(-1))}
    with torch.no_grad():
        torch.manual_seed(4)
        beliefs["what was seen"] = run(model, ss.Forward(), data(Y[:, :3]), None, ("last",)).last
    for kernel in (True, False):
        torch.manual_seed(5)
        keep = ("log_prob", "last", "filtered", "predicted")
        got = run(model, ss.Forward(), data(Y, [13, 1, 4, 13, 2]), beliefs[carried], keep, kernel=kernel)
        gradients = torch.autograd.grad(got.log_prob.sum(), list(model.parameters()), allow_unused=True)
        there = torch.arange(13)[:, None] < torch.tensor([13, 1, 4, 13, 2])
        beliefs_kept = (got.filtered.probs[there], got.predicted.probs[there])
        found.append([got.log_prob, got.last.probs, *beliefs_kept, *(g for g in gradients if g is not None)])
    for mine, its in zip(*found, strict=True):
        assert_close(mine, its, **TIGHT)


def test_in_training_a_window_keeps_the_same_share_of_each_class():
    tables = made(dropout=0.5).train().transition.constants()
    kept = (tables.table() > 0).all(0)
    assert (
        kept.view(2, 4).sum(-1).tolist() == [2, 2] and tables.kept.flatten().tolist() == kept.nonzero()[:, 0].tolist()
    )
    assert_close(tables.table().sum(-1), torch.ones(8).double(), **TIGHT)
    assert_close(tables.normalise()[:3], tables.normalise(torch.arange(3)), **TIGHT)


def test_it_is_saved_with_its_classes(tmp_path):
    model = made()
    model.save(tmp_path / "m.safetensors")
    again = ss.load(tmp_path / "m.safetensors")
    assert again.transition.vectors is again.emission.vectors
    assert_close(again.log_prob(Y), model.log_prob(Y), **TIGHT)


def test_what_cannot_be_is_refused_in_words():
    with pytest.raises(ss.StatespanError, match="8 states cannot be shared by 3 classes"):
        made(classes=3)
    with pytest.raises(ss.StatespanError, match="7 are more than the 6 symbols"):
        EmbeddedCategorical(Table(6, 3), StateVectors(14, 3), 7)
    with pytest.raises(ss.StatespanError, match="every class some symbol"):
        made().emission.set_classes(torch.zeros(6, dtype=torch.long))
