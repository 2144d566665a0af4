"""Finite moves as operators: push, pull and dense say the same; the average sums a symbol out; gradients are right."""

import pytest
import torch
from torch.testing import assert_close

import statespan as ss
from oracles import features, moved_rows
from statespan.parts.cells import ACTIVATIONS, LinearMove
from statespan.parts.emissions import Gaussian, stochastic
from statespan.parts.linear import factor, lower, root
from statespan.parts.symbols import RawFeature, SoftmaxFeature, Table

TIGHT = {"rtol": 0.0, "atol": 1e-10}
FINITE = [n for n, rung in ss.LADDER.items() if rung.exact]


def transition(name: str):
    return ss.ladder(name, vocabulary=5, width=4, spread=1.0, dtype=torch.float64, seed=0).transition


@pytest.mark.parametrize("name", FINITE)
def test_push_pull_and_dense_agree(name: str):
    part = transition(name)
    constants = part.constants()
    tables = part.tables(None, constants).value
    y = torch.tensor([0, 3, 3])
    fed = part.feed(y, None, constants) if part.autoregressive else None
    p, f = torch.rand(3, 4).double(), torch.randn(3, 4).double()
    dense = part.dense(tables, fed).expand(3, 4, 4)
    assert_close(dense.sum(-1), torch.ones(3, 4).double(), **TIGHT)
    assert_close(part.push(p, tables, fed), torch.einsum("bl,blk->bk", p, dense), **TIGHT)
    assert_close(part.pull(f, tables, fed), torch.einsum("blk,bk->bl", dense, f), **TIGHT)


@pytest.mark.parametrize("name", FINITE[1:])
def test_tables_are_the_papers_and_average_as_they_should(name: str):
    model = ss.ladder(name, vocabulary=5, width=4, spread=1.0, dtype=torch.float64, seed=0)
    part = model.transition
    constants = part.constants()
    truth = moved_rows(part.move, features(model, part.feature))
    found = part.dense(part.tables(None, constants).value, part.feed(torch.arange(5), None, constants))
    assert_close(found, truth, **TIGHT)
    b = model.emission.probs
    assert_close(part.average(constants, b.T), torch.einsum("kv,vkl->kl", b, truth), **TIGHT)


def test_addition_survives_extreme_logits():
    """exp(W + f) is factored: rows scaled by their largest entries must not overflow or vanish."""
    part = transition("hmm/addition-raw")
    with torch.no_grad():
        part.move.logits.mul_(60)
        part.move.input.bias.add_(300)
    single = part.float()
    constants = single.constants()
    tables = single.tables(None, constants).value
    fed = single.feed(torch.tensor([1, 2]), None, constants)
    moved = single.push(torch.full((2, 4), 0.25), tables, fed)
    assert_close(moved.sum(-1), torch.ones(2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [n for n, rung in ss.LADDER.items() if not rung.exact])
def test_the_written_derivatives_of_a_move(name: str):
    """What a kernel is told of a move is its derivative."""
    move = transition(name).move
    if not isinstance(move, LinearMove):
        pytest.skip("no single matrix product")
    state = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    product = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    fed = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    g = torch.randn(3, 4, dtype=torch.float64)
    before = move.before(state)
    if before is not state:
        (truth,) = torch.autograd.grad(before, state, g)
        assert_close(move.before_backward(g, state, before.detach()), truth, **TIGHT)
    after = move.after(product.clone(), fed)
    truth = torch.autograd.grad(after, (product, fed), g)
    found = move.after_backward(g, product.detach(), after.detach(), fed.detach())
    for a, b in zip(found, truth, strict=True):
        assert_close(a, b, **TIGHT)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_written_derivatives_of_an_activation(name: str):
    function, x, g = ACTIVATIONS[name], torch.randn(3, 4).double().requires_grad_(), torch.randn(3, 4).double()
    y = function.forward(x)
    assert_close(function.backward(g, y.detach()), torch.autograd.grad(y, x, g)[0], **TIGHT)


@pytest.mark.parametrize("bias", [True, False])
def test_a_table_read_by_rows_and_by_columns(bias: bool):
    table = Table(6, 3, bias=bias, spread=1.0).double()
    if table.bias is not None:
        torch.nn.init.normal_(table.bias)
    logits = table.weight if table.bias is None else table.weight + table.bias[:, None]
    y = torch.tensor([[0, 5], [2, 2]])
    assert_close(table.columns(y, table.normaliser()), logits.log_softmax(0)[y], **TIGHT)
    assert_close(table.probs(), logits.softmax(0).T, **TIGHT)
    state = torch.randn(2, 2, 3).double()
    truth = (state @ table.weight.T + (0 if table.bias is None else table.bias)).log_softmax(-1)
    assert_close(table.log_softmax(state, y), truth.gather(-1, y[..., None])[..., 0], **TIGHT)
    assert_close(RawFeature(table)(y), table.weight[y])
    soft = SoftmaxFeature(table)
    assert_close(soft(y, soft.constants()), logits.softmax(0)[y], **TIGHT)


def test_roots():
    a = torch.randn(5, 3, 7).double()
    low = lower(a)
    assert_close(low @ low.mT, a @ a.mT)
    assert bool((low.triu(1) == 0).all())
    assert bool((low.diagonal(dim1=-2, dim2=-1) >= 0).all())
    singular = torch.tensor([[1.0, 1.0], [1.0, 1.0]]).double()
    assert_close(factor(singular) @ factor(singular).mT, singular)
    assert factor(singular)[1, 1] == 0
    assert_close(factor(torch.zeros(2, 2)), torch.zeros(2, 2))
    free = torch.tensor([[-1.0, 9.0], [2.0, 3.0]])
    assert root(free).tolist() == [[1.0, 0.0], [-2.0, 3.0]]
    assert_close(root(free) @ root(free).T, free.tril() @ free.tril().T)


def test_a_gaussian_scores_each_pattern_of_gaps():
    part = Gaussian(3, "full", 2).double()
    for p in part.parameters():
        torch.nn.init.normal_(p)
    y = torch.randn(4, 2, 3).double()
    seen = torch.rand(4, 2, 3) > 0.4
    found = part.log_likelihood(y, None, seen, part.constants())
    for t in range(4):
        for b in range(2):
            there = seen[t, b]
            for k in range(2):
                mean, cov = part.mean[k][there], part.covariance[k][there][:, there]
                truth = 0.0
                if bool(there.any()):
                    truth = torch.distributions.MultivariateNormal(mean, cov).log_prob(y[t, b][there])
                assert_close(found[t, b, k], torch.as_tensor(truth).double(), **TIGHT)


def test_a_gaussian_far_from_zero_keeps_its_digits():
    near, far = Gaussian(2, "full", 3), Gaussian(2, "full", 3)
    far.load_state_dict(near.state_dict())
    with torch.no_grad():
        far.mean.add_(4096.0)
    y = torch.randn(5, 2, 2)
    a = near.log_likelihood(y, None, None, near.constants())
    b = far.log_likelihood(y + 4096.0, None, None, far.constants())
    assert_close(a, b, rtol=0, atol=5e-2)


def test_probabilities_are_checked_and_made_to_sum():
    p = stochastic([[0.50001, 0.5], [1, 0]], "x", 2)
    assert_close(p.sum(-1), torch.ones(2).double(), rtol=0, atol=1e-15)
    for bad in ([[0.5, float("nan")]], [[0.5, 0.6]], [[-0.1, 1.1]]):
        with pytest.raises(ss.StatespanError, match="row 0"):
            stochastic(bad, "x", 2)
