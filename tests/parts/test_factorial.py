"""Several chains at once against the joint chain written out, and every path enumerated."""

import itertools

import pytest
import torch
from brute import brute
from torch.testing import assert_close

import statespan as ss

TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def model_of(sizes: list[int], seed: int = 1) -> ss.StateSpace:
    return ss.factorial_hmm(sizes, ss.Categorical(4), seed=seed)


def rises(history: list[float], slack: float = 1e-8) -> bool:
    return all(b >= a - slack for a, b in itertools.pairwise(history))


def test_answers_equal_enumeration(tmp_path):
    model, y = model_of([2, 3]), torch.tensor([0, 3, 1, 2])
    one, two = (c.logits.softmax(-1).detach() for c in model.transition.chains)
    table = torch.einsum("ab,cd->acbd", one, two).reshape(6, 6)
    emission = model.emission.probs.detach()
    truth = brute(torch.full((6,), 1 / 6, dtype=torch.float64), [table] * 3, emission.log().T[y])
    assert_close(model.log_prob(y).detach(), truth.log_prob, **TIGHT)
    smoothed = model.smooth(y).probs
    assert_close(smoothed, truth.smoothed, **TIGHT)
    first, second = model.transition.marginals(smoothed)
    assert_close(first, truth.smoothed.view(4, 2, 3).sum(2), **TIGHT)
    assert_close(second, truth.smoothed.view(4, 2, 3).sum(1), **TIGHT)
    path = model.decode(y)
    assert path.tolist() == truth.path
    apart = model.transition.split(path)
    assert_close(apart[:, 0] * 3 + apart[:, 1], path)
    assert_close(model.transition.join(apart), path)
    model.save(tmp_path / "m.safetensors")
    assert_close(ss.load(tmp_path / "m.safetensors").log_prob(y), model.log_prob(y), rtol=0, atol=0)
    model.log_prob(y).backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
    assert_close(model.float().log_prob(y).detach(), truth.log_prob, rtol=1e-4, atol=1e-4)


def test_three_chains_move_as_the_joint_table_does():
    model = model_of([2, 3, 2])
    part, p = model.transition, torch.rand(5, 12).double()
    tables = part.constants()
    joint = part.dense(tables).detach()
    assert_close(part.push(p, tables), p @ joint, **TIGHT)
    assert_close(part.pull(p, tables), p @ joint.mT, **TIGHT)
    assert_close(part.stationary() @ joint, part.stationary(), **TIGHT)
    twin = ss.hmm(initial=model.initial.probs().detach(), transition=joint, emission=model.emission)
    y = model.sample(3, 15, seed=0)[1]
    assert_close(model.log_prob(y), twin.log_prob(y), **TIGHT)
    assert_close(model.smooth(y).probs, twin.smooth(y).probs, **TIGHT)
    for k in (1, 3):
        assert_close(model.decode(y, k=k)[1], twin.decode(y, k=k)[1], **TIGHT)
    assert_close(model.decode(y), twin.decode(y))


def test_em_counts_each_chain_by_itself():
    y = model_of([2, 3], seed=4).sample(8, 30, seed=0)[1]
    model = model_of([2, 3])
    pairs = model.smooth(y, pairs=True).pairs.sum((0, 1)).view(2, 3, 2, 3)
    em = ss.EM(iterations=1, tolerance=0)
    model.fit(y, by=em)
    for part, counts in zip(model.transition.chains, (pairs.sum((1, 3)), pairs.sum((0, 2))), strict=True):
        assert_close(part.probs.detach(), counts / counts.sum(-1, keepdim=True), **TIGHT)
    em = ss.EM(iterations=15, tolerance=0)
    model.fit(y, by=em)
    assert rises(em.history)


def test_tables_and_parts_a_chain():
    nan = float("nan")
    model = ss.factorial_hmm(
        transition=[[[0.9, 0.1], [0.2, 0.8]], ss.left_to_right(3)],
        initial=[[0.3, 0.7], [1, 0, 0]],
        emission=ss.Gaussian(2),
        seed=0,
    )
    assert_close(model.initial.probs().view(2, 3)[:, 0], torch.tensor([0.3, 0.7]).double(), rtol=1e-6, atol=1e-6)
    assert (model.transition.chains[1].probs > 0).sum() == 5
    held = ss.factorial_hmm([2, 2], ss.Categorical(3), transition=[[[nan, 0.4], [nan, nan]], ss.Dense()], seed=0)
    assert_close(held.transition.chains[0].probs[0, 1].item(), 0.4, rtol=1e-12, atol=0)
    stationary = ss.factorial_hmm([2, 2], ss.Categorical(3), initial=ss.Stationary(), seed=0)
    em = ss.EM(iterations=5, tolerance=0)
    stationary.fit(model_of([2, 2]).sample(4, 20, seed=0)[1].clamp(max=2), by=em)
    assert rises(em.history)
    with pytest.raises(ss.StatespanError, match="how many states each chain"):
        ss.factorial_hmm(emission=ss.Categorical(3))
    with pytest.raises(ss.StatespanError, match="give a matrix transition"):
        ss.Factorial([ss.Sparse([[0, 0]]), 2])
