"""EM against hmmlearn step by step, and what holds of it whatever the data."""

import itertools
import math

import numpy as np
import pytest
import torch
from hmmlearn import hmm as hmmlearn
from torch.testing import assert_close

import statespan as ss
from statespan.sequences import read

KINDS = ["full", "diagonal", "spherical", "tied"]
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def double(rows: list) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def rises(history: list[float], slack: float = 1e-9) -> bool:
    return all(b >= a - slack for a, b in itertools.pairwise(history))


def symbols(n: int = 5) -> list[torch.Tensor]:
    truth = ss.hmm(states=3, emission=ss.Categorical(4), seed=9)
    return [truth.sample(None, length, seed=length)[1] for length in range(20, 20 + n)]


def vectors(n: int = 4, spread: float = 4.0) -> list[torch.Tensor]:
    truth = ss.hmm(states=3, emission=ss.Gaussian(2), seed=9)
    with torch.no_grad():
        truth.emission.mean.mul_(spread)
    return [truth.sample(None, length, seed=length)[1] for length in range(40, 40 + n)]


@pytest.mark.parametrize("iterations", [1, 5])
def test_symbols_as_hmmlearn_does_them(iterations: int):
    rows = symbols()
    model = ss.hmm(states=3, emission=ss.Categorical(4), seed=1)
    peer = hmmlearn.CategoricalHMM(3, n_iter=iterations, tol=-math.inf, init_params="")
    peer.startprob_ = model.initial.probs().detach().numpy()
    peer.transmat_ = model.transition.probs.detach().numpy()
    peer.emissionprob_ = model.emission.probs.detach().numpy()
    peer.fit(np.concatenate(rows)[:, None], [len(r) for r in rows])
    em = ss.EM(iterations=iterations, tolerance=0)
    model.fit(rows, by=em)
    assert_close(model.initial.probs().detach().numpy(), peer.startprob_, **EXACT)
    assert_close(model.transition.probs.detach().numpy(), peer.transmat_, **EXACT)
    assert_close(model.emission.probs.detach().numpy(), peer.emissionprob_, **EXACT)
    assert_close(np.array(em.history), np.array(peer.monitor_.history), **EXACT)


@pytest.mark.parametrize("iterations", [1, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_vectors_as_hmmlearn_does_them(kind: str, iterations: int):
    rows = vectors()
    model = ss.hmm(states=3, emission=ss.Gaussian(2, kind), seed=1)
    peer = hmmlearn.GaussianHMM(
        3,
        {"diagonal": "diag"}.get(kind, kind),
        min_covar=0,
        covars_prior=0,
        covars_weight=0,
        n_iter=iterations,
        tol=-math.inf,
        init_params="",
    )
    covariance = model.emission.covariance.detach().numpy()
    peer.startprob_ = model.initial.probs().detach().numpy()
    peer.transmat_ = model.transition.probs.detach().numpy()
    peer.means_ = model.emission.mean.detach().numpy()
    peer.n_features = 2
    peer.covars_ = {
        "full": covariance,
        "diagonal": np.diagonal(covariance, axis1=1, axis2=2),
        "spherical": covariance[:, 0, 0],
        "tied": covariance[0],
    }[kind]
    peer.fit(np.concatenate(rows), [len(r) for r in rows])
    em = ss.EM(iterations=iterations, tolerance=0)
    model.fit(rows, by=em)
    assert_close(np.array(em.history), np.array(peer.monitor_.history), **EXACT)
    assert_close(model.emission.mean.detach().numpy(), peer.means_, **EXACT)
    found = model.emission.covariance.detach().numpy()
    if kind == "spherical":
        assert_close(found[:, 0, 0], peer._covars_.reshape(3, -1)[:, 0].copy(), **EXACT)
    else:
        assert_close(found, np.broadcast_to(peer.covars_, (3, 2, 2)).copy(), **EXACT)


@pytest.mark.parametrize("kind", ["categorical", *KINDS])
@pytest.mark.parametrize("holes", [0.0, 0.3])
def test_the_likelihood_never_falls(kind: str, holes: float):
    rows = symbols() if kind == "categorical" else vectors()
    rows = [r.double().masked_fill(torch.rand(r.shape) < holes, math.nan) for r in rows]
    emission = ss.Categorical(4) if kind == "categorical" else ss.Gaussian(2, kind)
    em = ss.EM(iterations=25, tolerance=0)
    model = ss.hmm(states=3, emission=emission, seed=0).fit(rows, by=em)
    assert len(em.history) == 25
    assert rises(em.history)
    assert model.log_prob(rows).sum() >= em.history[-1] - 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_a_partly_missing_row_counts_by_its_conditional_moments(kind: str):
    """The M-step of one state, against the textbook's E-step for a normal with missing entries."""
    y = torch.randn(40, 3).double() @ torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 1.0]]).double() + 5
    y[torch.rand(40, 3) < 0.3] = math.nan
    y[7] = math.nan
    model = ss.hmm(states=1, emission=ss.Gaussian(3, kind), seed=0)
    mean, covariance = model.emission.mean[0].detach(), model.emission.covariance[0].detach()
    first, second, n = torch.zeros(3).double(), torch.zeros(3, 3).double(), 0
    for row in y:
        there = ~row.isnan()
        if not bool(there.any()):
            continue
        gone, n = ~there, n + 1
        gain = covariance[gone][:, there] @ torch.linalg.inv(covariance[there][:, there])
        x = row.clone()
        x[gone] = mean[gone] + gain @ (row[there] - mean[there])
        rest = torch.zeros(3, 3).double()
        rest[gone[:, None] & gone] = (covariance[gone][:, gone] - gain @ covariance[there][:, gone]).flatten()
        first, second = first + x, second + x[:, None] * x + rest
    new_mean = first / n
    new = second / n - new_mean[:, None] * new_mean
    if kind in ("diagonal", "spherical"):
        new = torch.diag(new.diagonal())
    if kind == "spherical":
        new = torch.eye(3).double() * new.diagonal().mean()
    model.fit(y, by=ss.EM(iterations=1))
    assert_close(model.emission.mean[0].detach(), new_mean, **EXACT)
    assert_close(model.emission.covariance[0].detach(), new, **EXACT)


@pytest.mark.parametrize("name", ["hmm/tensor", "hmm/addition", "hmm/addition-raw", "hmm/gated"])
def test_a_fed_rung_improves(name: str):
    em = ss.EM(iterations=15, tolerance=0, learning_rate=0.02)
    model = ss.ladder(name, vocabulary=4, width=3, spread=1.0, dtype=torch.float64, seed=0)
    rows = symbols(8)
    model.fit(rows, by=em)
    assert em.history[-1] > em.history[0] + 1
    assert rises(em.history[:5], slack=0.5)


def test_a_fed_rung_that_shares_nothing_updates_its_emission_in_closed_form():
    model = ss.ladder("hmm/addition", vocabulary=4, width=3, tied=False, dtype=torch.float64, seed=0)
    em = ss.EM(iterations=6, tolerance=0, steps=3)
    model.fit(symbols(8), by=em)
    assert rises(em.history)


def test_labels_make_counts():
    """With every state labelled, one M-step is counting."""
    y, z = [[0, 1, 1, 2], [2, 2, 0]], [[0, 0, 1, 1], [1, 1, 0]]
    model = ss.hmm(states=2, emission=ss.Categorical(3), seed=0).fit(y, states=z, by=ss.EM(iterations=1))
    assert_close(model.initial.probs().detach(), double([0.5, 0.5]), **EXACT)
    assert_close(model.transition.probs.detach(), double([[0.5, 0.5], [1 / 3, 2 / 3]]), **EXACT)
    assert_close(model.emission.probs.detach(), double([[2 / 3, 1 / 3, 0], [0, 0.25, 0.75]]), **EXACT)


def test_a_dirichlet_prior_adds_alpha_minus_one():
    y, z = [[0, 1, 1, 2], [2, 2, 0]], [[0, 0, 1, 1], [1, 1, 0]]
    emission = ss.Categorical(3, concentration=2)
    model = ss.hmm(initial=ss.Start(2, 2), transition=ss.Dense(2, 2.0), emission=emission, seed=0)
    model.fit(y, states=z, by=ss.EM(iterations=1))
    assert_close(model.transition.probs.detach(), double([[0.5, 0.5], [0.4, 0.6]]), **EXACT)
    assert_close(model.emission.probs.detach(), double([[3 / 6, 2 / 6, 1 / 6], [1 / 7, 2 / 7, 4 / 7]]), **EXACT)
    uneven = ss.Dense(2, concentration=[[1.0, 4.0], [1.0, 1.0]])
    model = ss.hmm(states=2, transition=uneven, emission=ss.Categorical(3), seed=0)
    model.fit(y, states=z, by=ss.EM(iterations=1))
    assert_close(model.transition.probs.detach(), double([[0.2, 0.8], [1 / 3, 2 / 3]]), **EXACT)


def test_a_sticky_prior_lengthens_stays():
    models = [ss.hmm(states=2, transition=ss.Dense(2, sticky=k), emission=ss.Categorical(4), seed=0) for k in (0, 50)]
    stays = [m.fit(symbols(), by=ss.EM(iterations=5)).transition.probs.detach().diagonal().mean() for m in models]
    assert stays[1] > stays[0] + 0.1


def test_with_a_prior_the_posterior_climbs():
    part = ss.Categorical(4, concentration=3.0)
    model = ss.hmm(initial=ss.Start(2, 2), transition=ss.Dense(2, 5.0), emission=part, seed=0)
    em = ss.EM(iterations=15, tolerance=0)
    model.fit(symbols(8), by=em)
    assert rises(em.history)
    assert_close(
        em.history[-1], float((model.log_prob(symbols(8)).sum() + model.log_prior()).detach()), rtol=1e-3, atol=0
    )


def test_em_and_gradient_find_the_same_maximum_of_the_posterior():
    make = lambda: ss.hmm(  # noqa: E731
        initial=ss.Start(2, 2.0),
        transition=ss.Dense(2, 3.0),
        emission=ss.Categorical(probs=[[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]], concentration=2.0),
        seed=0,
    )
    value = lambda m: float((m.log_prob(symbols(8)).sum() + m.log_prior()).detach())  # noqa: E731
    by_em = make().fit(symbols(8), by=ss.EM(iterations=500, tolerance=0))
    by_gradient = make().fit(symbols(8), by=ss.SGD(epochs=400, learning_rate=0.05))
    assert abs(value(by_em) - value(by_gradient)) < 1e-3


def test_a_concentration_below_one_is_refused():
    with pytest.raises(ss.StatespanError, match=r"Dense\(concentration=\): 0.5 is below 1"):
        ss.Dense(2, concentration=0.5)


def test_a_prior_is_saved(tmp_path):
    part = ss.Categorical(4, concentration=[1.0, 2.0, 3.0, 4.0])
    model = ss.hmm(states=2, transition=ss.Dense(2, sticky=3.0), emission=part, seed=0)
    model.save(tmp_path / "m.safetensors")
    assert_close(ss.load(tmp_path / "m.safetensors").log_prior(), model.log_prior(), **EXACT)


def test_what_is_held_stays():
    model = ss.hmm(states=2, emission=ss.Gaussian(2), seed=0)
    model.transition.logits.requires_grad_(False)
    model.emission.mean.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for by in (ss.EM(iterations=3), ss.SGD(epochs=3)):
        model.fit(vectors(), by=by)
        held = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
        assert held == {"transition.logits", "emission.mean"}


def test_weights_count_sequences():
    """A sequence of weight 2 is a sequence given twice, and one of weight 0 is not there."""
    rows = symbols(6)
    weights = [2, 0, 1, 1, 0, 3]
    many = [row for row, n in zip(rows, weights, strict=True) for _ in range(n)]
    for by in (ss.EM(iterations=3), ss.SGD(epochs=3)):
        a = ss.hmm(states=2, emission=ss.Categorical(4), seed=0).fit(rows, by=by, weights=weights)
        b = ss.hmm(states=2, emission=ss.Categorical(4), seed=0).fit(many, by=by)
        assert_close(a.emission.probs, b.emission.probs, rtol=1e-6, atol=1e-8)
        assert_close(a.transition.probs, b.transition.probs, rtol=1e-6, atol=1e-8)


def test_a_step_of_weight_zero_is_a_gap_and_em_climbs_with_the_others():
    y, gap = torch.tensor([0, 3, 1, 2, 2, 0]), torch.tensor([0, 3, -1, 2, 2, 0])
    weights = torch.tensor([1, 1, 0, 1, 1, 1.0])
    a = ss.hmm(states=2, emission=ss.Categorical(4), seed=0).fit(y, by=ss.EM(iterations=3), weights=weights)
    b = ss.hmm(states=2, emission=ss.Categorical(4), seed=0).fit(gap, by=ss.EM(iterations=3))
    assert_close(a.emission.probs, b.emission.probs, **EXACT)
    em = ss.EM(iterations=20, tolerance=0)
    rows = symbols(6)
    ss.hmm(states=2, emission=ss.Categorical(4), seed=0).fit(
        rows, by=em, weights=[torch.rand(len(row), dtype=torch.float64) * 3 for row in rows]
    )
    assert rises(em.history)


def test_batches_change_nothing():
    rows = symbols(9)
    histories = []
    for batch in (4096, 4, 1):
        em = ss.EM(iterations=4, tolerance=0, batch=batch)
        ss.hmm(states=3, emission=ss.Categorical(4), seed=1).fit(rows, by=em)
        histories.append(em.history)
    assert_close(histories[0], histories[1], **EXACT)
    assert_close(histories[0], histories[2], **EXACT)


def test_zeros_stay_zeros():
    left_right = [[0.5, 0.5, 0], [0, 0.5, 0.5], [0, 0, 1]]
    for restarts in (1, 3):
        model = ss.hmm(initial=[1, 0, 0], transition=left_right, emission=ss.Categorical(4))
        model.fit(symbols(), by=ss.EM(iterations=3), restarts=restarts, seed=0)
        assert bool((model.transition.probs[torch.tensor(left_right) == 0] == 0).all())
        assert model.initial.probs().tolist() == [1, 0, 0]
        assert bool(model.transition.probs.isfinite().all())


def test_a_state_that_is_never_visited_keeps_its_parameters():
    for emission in (ss.Categorical(4), ss.Gaussian(2)):
        rows = symbols() if emission.event.symbols else vectors()
        move = [[0.5, 0.5, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]]
        for dtype in (torch.float64, torch.float32):
            model = ss.hmm(initial=[0.5, 0.5, 0], transition=move, emission=emission, dtype=dtype)
            before = [p.clone() for p in model.emission.parameters()]
            model.fit(rows, by=ss.EM(iterations=2))
            assert all(bool(p.isfinite().all()) for p in model.emission.parameters())
            assert_close(model.transition.probs[2], torch.tensor(move[2], dtype=dtype))
            if emission.event.symbols is None:
                assert_close(model.emission.mean[2], before[0][2])


@pytest.mark.parametrize(
    "emission",
    [ss.Gaussian(2), ss.Gaussian(2, covariance="diagonal"), ss.StudentT(2), ss.GaussianMixture(2, components=2)],
)
def test_small_units_do_not_matter(emission):
    y = torch.rand(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y[10:20] = y[10]  # where a variance meets its floor
    reached = []
    for values in (y, y * 1e-9):
        model = ss.hmm(states=2, emission=emission, seed=0)
        data, _ = read(values, model.emission.event)
        torch.manual_seed(0)
        em = ss.EM(iterations=8)
        reached.append(em(model, data, start=True))
    assert reached[1] + 80 * math.log(1e-9) == pytest.approx(reached[0], abs=1e-6)


def test_a_state_on_one_point_stays_above_the_floor():
    y = torch.cat([torch.zeros(30, 1), torch.randn(30, 1) + 10]).double()
    em = ss.EM(iterations=30, tolerance=0)
    model = ss.hmm(states=2, emission=ss.Gaussian(1, floor=1e-3), seed=0).fit(y, by=em, restarts=3, seed=0)
    assert rises(em.history)
    assert model.emission.covariance.min().item() == pytest.approx(1e-3)


def test_data_far_from_zero_lose_nothing():
    near = vectors(spread=1.0)
    models = []
    for shift in (0.0, 1e6):
        model = ss.hmm(states=3, emission=ss.Gaussian(2), seed=1)
        with torch.no_grad():
            model.emission.mean.add_(shift)
        models.append(model.fit([r + shift for r in near], by=ss.EM(iterations=5, tolerance=0)))
    assert_close(models[1].emission.covariance, models[0].emission.covariance, rtol=1e-6, atol=1e-6)


def test_restarts_find_the_better_and_a_seed_repeats_them():
    rows = vectors(spread=3.0)
    make = lambda: ss.hmm(states=3, emission=ss.Gaussian(2), seed=3)  # noqa: E731
    one, many = ss.EM(iterations=20), ss.EM(iterations=20)
    make().fit(rows, by=one)
    best = make().fit(rows, by=many, restarts=5, seed=0)
    assert many.history[-1] >= one.history[-1] - 1e-9
    assert best.log_prob(rows).sum() >= many.history[-1] - 1e-9
    again = make().fit(rows, by=ss.EM(iterations=20), restarts=5, seed=0)
    for a, b in zip(best.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_it_stops_when_it_has_settled():
    em = ss.EM(iterations=500, tolerance=1e-4)
    ss.hmm(states=2, emission=ss.Categorical(4), seed=0).fit(symbols(), by=em)
    assert 2 < len(em.history) < 500


def test_errors_name_the_place():
    model = ss.hmm(initial=[1, 0], transition=[[1, 0], [0, 1]], emission=ss.Categorical(probs=[[1, 0], [0, 1]]))
    for by in (ss.EM(), ss.EM(batch=1), ss.SGD(epochs=1), ss.SGD(epochs=1, batch=1)):
        with pytest.raises(ss.StatespanError, match=r"sequence 2, step 1: .*probability zero"):
            model.fit([[0], [0, 0], [0, 1, 0]], by=by)
    with pytest.raises(ss.StatespanError, match="Recurrent has no expectation step"):
        ss.ladder("elman", vocabulary=4, width=3).fit([0, 1], by=ss.EM())
    for bad in (lambda: ss.EM(iterations=0), lambda: ss.SGD(epochs=0), lambda: model.fit([[0]], restarts=0)):
        with pytest.raises(ss.StatespanError, match="at least one"):
            bad()
