"""Held and tied entries, patterns, sparse moves, starts: against enumeration, a dense twin, a numerical optimum."""

import copy
import itertools
import math

import pytest
import torch
from torch.testing import assert_close

import statespan as ss
from statespan.part import best_ways, stationary

NAN = math.nan
TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def rises(history: list[float], slack: float = 1e-8) -> bool:
    return all(b >= a - slack for a, b in itertools.pairwise(history))


def symbols(model: ss.StateSpace, n: int = 4, length: int = 40, seed: int = 5) -> torch.Tensor:
    return model.sample(n, length, seed=seed)[1]


def finite_gradients(model: ss.StateSpace, y: torch.Tensor) -> bool:
    (-model.log_prob(y).sum()).backward()
    return all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def reloaded(model: ss.StateSpace, tmp_path) -> ss.StateSpace:
    model.save(tmp_path / "m.safetensors")
    again = ss.load(tmp_path / "m.safetensors")
    again.save(tmp_path / "n.safetensors")
    assert (tmp_path / "m.safetensors").read_bytes() == (tmp_path / "n.safetensors").read_bytes()
    return again


TRUTH = ss.hmm(
    initial=[0.6, 0.3, 0.1],
    transition=[[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.1, 0.2, 0.7]],
    emission=ss.Categorical(probs=[[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.1, 0.7]]),
)
HELD = [[NAN, NAN, 0.0], [0.3, NAN, NAN], [NAN, None, 0.5]]


@pytest.mark.parametrize("by", [ss.EM(iterations=10, tolerance=0), ss.SGD(epochs=30, learning_rate=0.1)])
def test_held_entries_stay_and_the_rest_is_learnt(by, tmp_path):
    model = ss.hmm(transition=HELD, initial=[0.2, NAN, NAN], emission=ss.Categorical(3), seed=1)
    y = symbols(TRUTH)
    assert finite_gradients(model, y)
    first = model.transition.probs.detach().clone()
    model.fit(y, by=by)
    table = model.transition.probs.detach()
    assert table[0, 2] == 0
    assert_close(table[1, 0].item(), 0.3, **TIGHT)
    assert_close(table[2, 2].item(), 0.5, **TIGHT)
    assert_close(model.initial.probs()[0].item(), 0.2, **TIGHT)
    assert_close(table.sum(-1), torch.ones(3).double(), **TIGHT)
    assert (table - first).abs().max() > 0.01
    if isinstance(by, ss.EM):
        assert rises(by.history)
    again = reloaded(model, tmp_path)
    assert_close(again.log_prob(y), model.log_prob(y), rtol=0, atol=0)
    assert_close(again.fit(y, by=ss.EM(iterations=1)).transition.probs[1, 0].item(), 0.3, **TIGHT)


def test_em_ends_where_the_gradient_is_zero():
    y = symbols(TRUTH, 6)
    model = ss.hmm(transition=HELD, initial=[0.2, NAN, NAN], emission=TRUTH.emission, seed=1)
    for p in model.emission.parameters():
        p.requires_grad_(False)
    model.fit(y, by=ss.EM(iterations=300, tolerance=0))
    slope = torch.autograd.grad(model.log_prob(y).sum(), [model.transition.logits, model.initial.logits])
    assert max(float(g.abs().max()) for g in slope) < 0.02


def test_a_row_held_whole_and_the_gradient_there():
    model = ss.hmm(transition=[[NAN, NAN, 0], [0, NAN, NAN], [0, 0, 1]], emission=ss.Categorical(3), seed=0)
    assert model.transition.probs[2].tolist() == [0, 0, 1]
    assert finite_gradients(model, symbols(TRUTH))
    model.fit(symbols(TRUTH), by=ss.EM(iterations=3))
    assert model.transition.probs[2].tolist() == [0, 0, 1]
    assert (model.transition.probs == 0).sum() == 4


def test_what_cannot_be_held_is_named():
    with pytest.raises(ss.StatespanError, match="row 0 sums to 1"):
        ss.Dense(2, fixed=[[0.5, 0.6], [NAN, NAN]])
    with pytest.raises(ss.StatespanError, match="row 1 sums to 1, which leaves nothing"):
        ss.Dense(2, fixed=[[NAN, NAN], [1, NAN]])
    with pytest.raises(ss.StatespanError, match="holds -0"):
        ss.Dense(2, fixed=[[-0.1, NAN], [NAN, NAN]])
    with pytest.raises(ss.StatespanError, match=r"is \(2, 3\)"):
        ss.hmm(transition=[[NAN, 1, 0], [0, 1, 0]], emission=ss.Categorical(2))


# -------------------------------------------------------------------------------------------------- ties


def test_tied_rows_pool_their_counts():
    transition = ss.Dense(3, ties=[0, 0, 1], concentration=1.5)
    counts = torch.tensor([[1.0, 2, 3], [4, 5, 6], [0, 1, 1]]).double()
    transition.double().maximize(counts)
    pooled = counts[:2].sum(0) + 1.0
    assert_close(transition.probs[0], pooled / pooled.sum(), **TIGHT)
    assert_close(transition.probs[0], transition.probs[1], **TIGHT)
    assert_close(transition.probs[2], torch.tensor([0.5, 1.5, 1.5]).double() / 3.5, **TIGHT)


LABELS = {
    "one probability of staying": [[0, -1, -1], [-1, 0, -1], [-1, -1, 0]],
    "blocks": [[0, 0, 1], [0, 0, 1], [2, 2, 3]],
    "circulant": [[0, 1, 2], [2, 0, 1], [1, 2, 0]],
    "across": [[0, 1, -1], [-1, 0, 1], [2, 2, -1]],
}


@pytest.mark.parametrize("name", LABELS)
def test_tied_entries_maximise_under_their_ties(name: str):
    labels = torch.tensor(LABELS[name])
    torch.manual_seed(3)
    transition = ss.Dense(3, ties=labels.tolist()).double()
    table = transition.probs.detach()
    assert_close(table.sum(-1), torch.ones(3).double(), rtol=0, atol=1e-12)
    for label in range(int(labels.max()) + 1):
        assert table[labels == label].max() - table[labels == label].min() < 1e-14
    counts = torch.rand(3, 3).double() * 10
    transition.maximize(counts)
    best = (counts * transition.probs.log()).sum().item()
    # No feasible step from there is better: the slope along every direction that keeps rows and ties is zero.
    which, names = transition.ties.which, transition.ties.size
    inside = torch.nn.functional.one_hot(which, names).sum(1).double()
    p = transition.ties.solve(transition.logits).detach()
    slope = transition.ties.sums(counts) / p
    flat = torch.linalg.svd(inside)[2][torch.linalg.matrix_rank(inside) :]
    assert len(flat) > 0
    assert_close(flat @ slope, torch.zeros(len(flat)).double(), rtol=0, atol=1e-6)
    for direction in flat:
        for step in (1e-3, -1e-3):
            moved = p + step * direction
            assert (transition.ties.sums(counts) * moved.clamp_min(1e-9).log()).sum().item() <= best + 1e-12
    transition.set_probs(table)
    assert_close(transition.probs, table, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", LABELS)
def test_tied_entries_have_gradients_and_em_rises(name: str, tmp_path):
    model = ss.hmm(transition=ss.Dense(3, ties=LABELS[name]), emission=ss.Categorical(3), seed=2)
    y = symbols(TRUTH)
    logits = model.transition.logits
    torch.autograd.gradcheck(lambda x: model.transition.ties.probs(x), (logits.detach().clone().requires_grad_(),))
    assert finite_gradients(model, y)
    em = ss.EM(iterations=20, tolerance=0)
    model.fit(y, by=em)
    assert rises(em.history)
    assert em.history[-1] > em.history[0] + 1
    assert_close(reloaded(model, tmp_path).log_prob(y), model.log_prob(y), rtol=0, atol=0)


def test_ties_with_held_entries_and_ties_that_cannot_be():
    part = ss.Dense(3, fixed=[[NAN, NAN, 0.2], [NAN, NAN, 0.2], [0, 0, 1]], ties=[[0, 1, -1], [1, 0, -1], [-1, -1, -1]])
    assert_close(part.probs[0, :2].flip(0), part.probs[1, :2])
    assert_close(part.probs.sum(-1), torch.ones(3))
    with pytest.raises(ss.StatespanError, match="hold both or none"):
        ss.Dense(2, fixed=[[0.3, NAN], [NAN, NAN]], ties=[[0, -1], [-1, 0]])
    with pytest.raises(ss.StatespanError, match="no matrix whose rows sum to one"):
        ss.Dense(3, fixed=[[NAN, NAN, 0.4], [NAN, NAN, 0.0], [0, 0, 1]], ties=[[0, 1, -1], [0, 1, -1], [-1, -1, -1]])


# ---------------------------------------------------------------------------------------------- patterns


def test_patterns():
    y = symbols(TRUTH)
    for part, pattern in (
        (ss.left_to_right(skip=2), [[1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]),
        (ss.banded(width=1), [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]),
        (ss.Dense(sticky=2.0), [[1] * 4] * 4),
    ):
        model = ss.hmm(states=4, transition=part, initial=[1, 0, 0, 0], emission=ss.Categorical(3), seed=0)
        em = ss.EM(iterations=5, tolerance=0)
        model.fit(y, by=em)
        assert (model.transition.probs > 0).int().tolist() == pattern
        assert model.initial.probs().tolist() == [1, 0, 0, 0]
        assert rises(em.history)
        sgd = ss.SGD(epochs=5)
        model.fit(y, by=sgd, restarts=2, seed=0)
        assert (model.transition.probs > 0).int().tolist() == pattern
    with pytest.raises(ss.StatespanError, match="skip=0"):
        ss.left_to_right(3, skip=0)


EDGES = [[i, j] for i, j in itertools.product(range(4), range(4)) if (i + 2 * j) % 3 != 1 or i == j]


def test_sparse_moves_equal_a_dense_twin(tmp_path):
    model = ss.hmm(states=4, transition=ss.Sparse(EDGES), emission=ss.Categorical(3), seed=3)
    twin = ss.hmm(
        initial=ss.Start(4),
        transition=model.transition.dense(model.transition.probs).detach(),
        emission=copy.deepcopy(model.emission),
        states=4,
    )
    y = symbols(TRUTH)
    assert_close(model.log_prob(y), twin.log_prob(y), **TIGHT)
    assert_close(model.smooth(y).probs, twin.smooth(y).probs, **TIGHT)
    for k in (1, 3):
        paths, scores = model.decode(y, k=k)
        same, truth = twin.decode(y, k=k)
        assert_close(scores, truth, **TIGHT)
        assert_close(paths, same)
    p = torch.rand(5, 4).double()
    table = model.transition.dense(model.transition.probs)
    assert_close(model.transition.push(p, model.transition.probs), p @ table, **TIGHT)
    assert_close(model.transition.pull(p, model.transition.probs), p @ table.mT, **TIGHT)
    assert_close(model.transition.stationary(), stationary(table), **TIGHT)
    assert finite_gradients(model, y)
    for each in (model, twin):
        em = ss.EM(iterations=4, tolerance=0)
        each.fit(y, by=em)
        assert rises(em.history)
    assert_close(model.transition.dense(model.transition.probs), twin.transition.probs, rtol=1e-8, atol=1e-10)
    assert_close(reloaded(model, tmp_path).log_prob(y), model.log_prob(y), rtol=0, atol=0)


def test_sparse_ways_are_the_dense_ones_ties_included():
    torch.manual_seed(0)
    part = ss.Sparse(EDGES).double()
    for k in (1, 2, 3):
        score = torch.randint(-3, 3, (6, 4, k)).double().sort(-1, descending=True)[0]
        part.set_probs(torch.ones(len(EDGES)).double() / 2)
        p = torch.full((len(EDGES),), 0.5).double()
        value, back = part.best(score, p)
        truth, origin = best_ways(score, part.dense(p))
        assert_close(value, truth)
        assert_close(back[truth.isfinite()], origin[truth.isfinite()])


def test_a_sparse_step_costs_its_edges():
    states = 20_000
    ring = [[i, (i + step) % states] for i in range(states) for step in (0, 1)]
    part = ss.Sparse(ring)
    p = torch.full((1, states), 1 / states)
    assert_close(part.push(p, part.probs).sum().item(), 1.0, rtol=1e-4, atol=0)


def test_edges_that_cannot_be_are_named():
    for edges, words in (
        ([[0, 1], [1, 0], [0, 1]], "twice"),
        ([[0, 1]], "nothing leaves state 1"),
        ([[0.0, 1.0]], "integers"),
        ([[0, 1], [1, -1]], "outside"),
    ):
        with pytest.raises(ss.StatespanError, match=words):
            ss.Sparse(edges)


# ---------------------------------------------------------------------------------------------- starts


def left_eigenvector(table: torch.Tensor) -> torch.Tensor:
    values, vectors = torch.linalg.eig(table.mT)
    v = vectors[:, (values - 1).abs().argmin()].real
    return v / v.sum()


def test_a_stationary_start_is_the_left_eigenvector(tmp_path):
    model = ss.hmm(states=3, initial=ss.Stationary(), emission=ss.Categorical(3), seed=4)
    assert_close(model.initial.probs(), left_eigenvector(model.transition.probs.detach()), **TIGHT)
    y = symbols(TRUTH)
    table = model.transition.probs
    assert_close(model.initial.probs() @ table, model.initial.probs(), **TIGHT)
    again = reloaded(model, tmp_path)
    assert again.initial.transition is again.transition
    assert_close(again.log_prob(y), model.log_prob(y), rtol=0, atol=0)
    assert finite_gradients(model, y)


def test_em_with_a_stationary_start_rises_to_where_the_gradient_is_zero():
    y = symbols(TRUTH, n=40, length=3)  # many starts, so that they matter
    model = ss.hmm(states=3, initial=ss.Stationary(), emission=TRUTH.emission, seed=4)
    for p in model.emission.parameters():
        p.requires_grad_(False)
    em = ss.EM(40, tolerance=0)
    model.fit(y, by=em)
    assert rises(em.history)
    assert_close(model.initial.probs(), left_eigenvector(model.transition.probs.detach()), **TIGHT)
    slope = torch.autograd.grad(model.log_prob(y).sum(), model.transition.logits)[0]
    assert slope.abs().max() < 0.2, "EM stopped where the likelihood still rises"
    sgd = ss.SGD(20, learning_rate=0.01)
    model.fit(y, by=sgd)
    assert abs(sgd.history[-1] - em.history[-1]) < 0.05


def test_a_stationary_start_of_a_held_pattern_and_of_a_chain_in_two():
    table = [[NAN, NAN, 0], [NAN, NAN, NAN], [0, NAN, NAN]]
    model = ss.hmm(initial=ss.Stationary(), transition=table, emission=ss.Categorical(3), seed=0)
    em = ss.EM(iterations=10, tolerance=0)
    model.fit(symbols(TRUTH), by=em)
    assert rises(em.history)
    assert model.transition.probs[0, 2] == 0
    split = ss.hmm(initial=ss.Stationary(), transition=[[1, 0], [0, 1]], emission=ss.Categorical(3), seed=0)
    with pytest.raises(ss.StatespanError, match="no single stationary distribution"):
        split.log_prob([0, 1])


def test_float32():
    for part in (ss.Dense(3, fixed=HELD), ss.Dense(3, ties=LABELS["across"]), ss.Sparse(EDGES, 4)):
        model = ss.hmm(transition=part, emission=ss.Categorical(3), dtype=torch.float32, seed=0)
        y = symbols(TRUTH)
        double = model.log_prob(y).detach()
        assert model.smooth(y).probs.dtype == torch.float32
        assert_close(model.double().log_prob(y), double, rtol=1e-4, atol=1e-4)
