"""The scan, the registry of kernels, and what `run` keeps."""

import subprocess
import sys

import pytest
import torch
from torch.testing import assert_close

import statespan as ss
from statespan.belief import choose
from statespan.method import _KERNELS, Prepared, Trace, prepare, register, run, scan, total
from statespan.methods import check
from statespan.sequences import Sequences
from statespan.tree import Lazy, Shared, detach, leaves, replace_leaves, stack, tree_map, unstack


def chain() -> ss.StateSpace:
    return ss.hmm(states=2, emission=ss.Categorical(3), seed=0)


DATA = Sequences(y=torch.tensor([[0, 1], [2, 2], [1, 0]]))


def test_run_keeps_what_is_asked_for_and_nothing_else():
    for model in (chain(), ss.lstm(3, 2), ss.ladder("hmm/gated", 3, 2), ss.elman(3, 2)):
        for kernel in (True, False):
            for keep in (("log_prob",), ("last",), ("filtered",), ("predicted", "filtered"), ()):
                trace = run(model, ss.method_for(model), DATA, keep=keep, kernel=kernel)
                assert {n for n in Trace._fields if getattr(trace, n) is not None} == set(keep)


def test_work_done_once_serves_again():
    for model in (chain(), ss.lstm(3, 2)):
        method = ss.method_for(model)
        constants = method.constants(model)
        prepared = prepare(model, method, DATA, constants)
        assert isinstance(prepared, Prepared)
        whole = run(model, method, DATA).log_prob
        assert_close(run(model, method, DATA, constants=constants).log_prob, whole)
        assert_close(run(model, method, DATA, prepared=prepared).log_prob, whole)
        assert_close(run(model, method, DATA, prepared=prepared, kernel=False).log_prob, whole)


def test_the_scan_is_a_generator():
    model, method = chain(), ss.Forward()
    steps = scan(model, method, prepare(model, method, DATA), 3, 2)
    first = next(steps)
    assert first.log_prob.shape == (2,)
    assert_close(first.predicted.probs, model.initial.probs().expand(2, -1))
    assert len(list(steps)) == 2


def test_the_most_specific_kernel_wins_and_may_decline():
    class Special(ss.Dense):
        pass

    model = ss.StateSpace(ss.Start(2), Special(2), ss.Categorical(3, 2)).double()
    truth, called = run(model, ss.Forward(), DATA).log_prob, []

    def mine(model, method, prepared, length, batch, belief, keep):
        called.append(sorted(keep))
        return None if belief is None else Trace(log_prob=torch.ones(length, batch).double())

    register(ss.Forward, Special, keeps=("log_prob",))(mine)
    try:
        assert_close(run(model, ss.Forward(), DATA).log_prob, truth)
        belief = run(model, ss.Forward(), DATA, keep=("last",)).last
        assert called == [["log_prob"]]  # it does not keep last: the scan ran
        assert run(model, ss.Forward(), DATA, belief).log_prob.sum() == 6
        assert run(model, ss.Forward(), DATA, belief, kernel=False).log_prob.sum() < 0
        assert (ss.Forward, Special) in ss.registered()
    finally:
        del _KERNELS[ss.Forward, Special]


def test_truncated_back_propagation():
    for model in (chain(), ss.elman(3, 2), ss.lstm(3, 2), ss.linear_gaussian(2, 1)):
        y = torch.randn(3, 2, 1).double() if model.emission.event.symbols is None else DATA.y
        last = run(model, ss.method_for(model), Sequences(y=y), keep=("last",)).last
        assert any(x.requires_grad for x in leaves(last))
        cut = detach(last)
        assert type(cut) is type(last)
        assert not any(x.requires_grad for x in leaves(cut))
        run(model, ss.method_for(model), Sequences(y=y), cut).log_prob.sum().backward()


def test_windows_carry_on():
    for name in ss.LADDER:
        model = ss.ladder(name, 3, 2, dtype=torch.float64, spread=1.0, seed=0)
        method, y = ss.method_for(model), torch.randint(3, (7, 2))
        whole = run(model, method, Sequences(y=y)).log_prob
        belief, parts = None, []
        for window in y.split(3):
            trace = run(model, method, Sequences(y=window), belief, ("log_prob", "last"))
            belief = detach(trace.last)
            parts.append(trace.log_prob)
        assert_close(torch.cat(parts), whole, rtol=0, atol=1e-12)


def test_total_names_what_is_impossible():
    log = torch.zeros(2, 3).double()
    log[1, 2] = -torch.inf
    with pytest.raises(ss.StatespanError, match="sequence 2, step 1"):
        total(log)
    with pytest.raises(ss.StatespanError, match="sequence 9, step 1"):
        total(log, torch.tensor([7, 8, 9]))


def test_trees():
    tree = (torch.arange(6).view(3, 2), Shared(torch.ones(2)), None, ss.Discrete(torch.ones(3, 1)))
    steps = unstack(tree, 3)
    assert len(steps) == 3
    assert steps[1][0].tolist() == [2, 3]
    assert steps[1][1].tolist() == [1, 1]
    assert steps[1][2] is None
    assert type(steps[1][3]) is ss.Discrete
    again = stack([(s[0], s[3]) for s in steps])
    assert torch.equal(again[0], tree[0])
    assert unstack((), 2) == [(), ()]
    assert len(leaves(tree)) == 3
    assert torch.equal(replace_leaves(tree, [x + 1 for x in leaves(tree)])[1].value, torch.full((2,), 2.0))
    assert tree_map(lambda x: x + 1, tree)[1] is tree[1]
    made = []
    lazy = Lazy(lambda: made.append(1) or 5)
    assert (lazy.value, lazy.value, made) == (5, 5, [1])


def test_choices_follow_their_weights():
    weights = torch.tensor([0.1, 0.0, 0.6, 0.3]).expand(20_000, -1)
    counts = torch.bincount(choose(weights), minlength=4) / 20_000
    assert_close(counts, weights[0], rtol=0, atol=0.015)
    assert counts[1] == 0


def test_beliefs_summarise_and_draw():
    z = torch.randn(2, 5, 3)
    cloud = ss.Particles(z, torch.full((2, 5), 0.2).log(), torch.arange(5).expand(2, 5))
    assert_close(cloud.summary()["mean"], z.mean(1))
    drawn = cloud.draw()
    assert drawn.z.shape == (2, 1, 3)
    assert bool((drawn.z == z).all(-1).any(-1).all())
    assert cloud.point().shape == (2, 3)
    sure = ss.GaussianBelief(torch.zeros(2, 3), torch.eye(3).expand(2, 3, 3)).draw()
    assert bool((sure.scale == 0).all())
    hidden = ss.Hidden(ss.Discrete(torch.tensor([[0.2, 0.8]])), (torch.ones(1),))
    assert hidden.draw().fed is hidden.fed
    assert hidden.point().tolist() == [1]
    best = ss.Best(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1, dtype=torch.long))
    for belief in (cloud, hidden, best, sure, ss.Point((torch.ones(2), torch.zeros(2)))):
        assert belief.state is not None
        assert isinstance(belief.summary(), dict)


def test_the_library_imports_without_what_only_tests_plots_and_the_command_line_need():
    code = (
        "import sys, statespan, statespan.plots, statespan.language.corpora, statespan.language.training; "
        "import statespan.ladder.run, statespan.ladder.generate; "
        "extra = {'jaxtyping', 'beartype', 'matplotlib', 'typer', 'rich', 'conllu', 'pandas', 'pythonbible'}; "
        "print(sorted(extra & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("method", ["forward", ss.Forward, 3])
def test_what_is_no_method_is_refused(method):
    with pytest.raises(ss.StatespanError, match=r"is no inference method; give an instance, such as ss.Forward\(\)"):
        check(method, ss.hmm(states=2, emission=ss.Categorical(3), seed=0))
