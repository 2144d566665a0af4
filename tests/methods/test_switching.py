"""Switching linear models against every path of regimes, each a dense joint normal written out."""

import itertools
import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import statespan as ss
from statespan.methods.multiple_models import optimal

TIGHT = {"rtol": 0.0, "atol": 1e-9}


def jumpy(states: int = 2, seed: int = 3, **more: Any) -> ss.StateSpace:
    """Two (or three) regimes that differ in everything, an observation of three numbers."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    turn, root, noise = torch.linalg.qr(draw(states, 2, 2))[0], draw(states, 2, 2), draw(states, 3, 3)
    table = draw(states, states).abs() + 2 * torch.eye(states)
    first = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)[:states]
    return ss.switching_linear(
        states,
        dynamics=turn * torch.linspace(0.95, 0.5, states)[:, None, None],
        state_noise=0.2 * root @ root.mT + 0.05 * torch.eye(2),
        state_offset=draw(states, 2),
        observation=draw(states, 3, 2),
        observation_noise=0.2 * noise @ noise.mT + 0.2 * torch.eye(3),
        observation_offset=draw(states, 3),
        initial_mean=draw(states, 2),
        initial_covariance=torch.eye(2) * torch.arange(1.0, states + 1)[:, None, None],
        **{"initial": first / first.sum(), "transition": table / table.sum(-1, keepdim=True)} | more,
    )


class Truth(NamedTuple):
    """By enumeration: log p(y), p(s_t | y) (T, K), E[z_t | y] (T, D), cov (T, D, D), E[y | what is there of it] (T, E),
    every path and its weight."""

    log_prob: Tensor
    probs: Tensor
    mean: Tensor
    covariance: Tensor
    y: Tensor
    paths: list[tuple[int, ...]]
    weights: Tensor


def enumerated(model: Any, y: Tensor) -> Truth:
    """Each path of regimes as one joint normal of z_1..z_T and what is there of y."""
    length, seen = len(y), ~y.isnan().flatten()
    states, dim = model.transition.states, model.transition.event.dim
    move, show = model.transition.affine(None), model.emission.affine(None)
    start, table = model.initial.gaussians(), model.transition.chain.probs
    pick = lambda x, k: x[min(k, len(x) - 1)].detach()  # noqa: E731
    logs, means, covariances, filled = [], [], [], []
    every = list(itertools.product(range(states), repeat=length))
    for path in every:
        mean = [pick(start.mean, path[0])]
        # z is linear in independent noises: z = F e + m, each e standard normal
        factor = torch.zeros(length * dim, length * dim, dtype=torch.float64)
        factor[:dim, :dim] = pick(start.scale, path[0])
        log = model.initial.chain.probs()[path[0]].log()
        for t in range(1, length):
            a, k = pick(move.matrix, path[t]), path[t]
            now, before = slice(t * dim, (t + 1) * dim), slice((t - 1) * dim, t * dim)
            mean.append(a @ mean[-1] + pick(move.offset, k))
            factor[now] = a @ factor[before]
            factor[now, now] = pick(move.scale, k)
            log = log + table[path[t - 1], k].log()
        z, zz = torch.cat(mean), factor @ factor.T
        whole = torch.block_diag(*[pick(show.matrix, k) for k in path])
        offset = torch.cat([pick(show.offset, k) for k in path])
        noise = torch.block_diag(*[pick(show.scale, k) @ pick(show.scale, k).T for k in path])
        c, d, r = whole[seen], offset[seen], noise[seen][:, seen]
        s = c @ zz @ c.T + r
        white = torch.linalg.solve(s, y.flatten()[seen] - c @ z - d)
        square = (y.flatten()[seen] - c @ z - d) @ white
        logs.append(log - 0.5 * (square + torch.logdet(s) + len(d) * math.log(2 * math.pi)))
        means.append((z + zz @ c.T @ white).view(length, dim))
        covariances.append(zz - zz @ c.T @ torch.linalg.solve(s, c @ zz))
        filled.append((whole @ z + offset + (whole @ zz @ c.T + noise[:, seen]) @ white).view(length, -1))
    log = torch.stack(logs).detach()
    weights = (log - log.logsumexp(0)).exp()
    probs = torch.zeros(length, states, dtype=torch.float64)
    for path, w in zip(every, weights, strict=True):
        for t, k in enumerate(path):
            probs[t, k] += w
    mean = (weights[:, None, None] * torch.stack(means)).sum(0)
    blocks = [
        torch.stack([p[t * dim : (t + 1) * dim, t * dim : (t + 1) * dim] for p in covariances]) for t in range(length)
    ]
    away = torch.stack(means) - mean
    spread = torch.stack([(weights[:, None, None] * b).sum(0) for b in blocks])
    spread = spread + torch.einsum("p,pti,ptj->tij", weights, away, away)
    y = (weights[:, None, None] * torch.stack(filled)).sum(0)
    return Truth(log.logsumexp(0), probs, mean, spread, y, every, weights)


def holed(model: Any, length: int = 5, seed: int = 1) -> Tensor:
    y = model.sample(None, length, seed=seed)[1]
    y[1] = math.nan
    y[2, 0] = math.nan
    return y


@pytest.mark.parametrize(("states", "length"), [(2, 5), (3, 3)])
def test_a_sum_with_room_for_every_path_is_exact(states: int, length: int):
    model = jumpy(states)
    y = holed(model, length)
    truth = enumerated(model, y)
    for method in (ss.GaussianSum(states ** (length - 1)), ss.RaoBlackwellised(states ** (length - 1))):
        known = model.filter(y, method=method)
        assert_close(known.log_prob, truth.log_prob, **TIGHT)
        for t in range(length):
            past = enumerated(model, y[: t + 1])
            assert_close(known.probs[t], past.probs[-1], **TIGHT)
            assert_close(known.mean[t], past.mean[-1], **TIGHT)
            assert_close(known.covariance[t], past.covariance[-1], **TIGHT)
        smoothed = model.smooth(y, method=method)
        assert_close(smoothed.log_prob, truth.log_prob, **TIGHT)


@pytest.mark.parametrize(("states", "length"), [(2, 5), (3, 3), (1, 3)])
def test_the_likeliest_paths_are_those_of_all_paths(states: int, length: int):
    model = jumpy(states)
    y = holed(model, length)
    truth = enumerated(model, y)
    log, order = (truth.weights.log() + truth.log_prob).sort(descending=True)
    every = torch.tensor(truth.paths)[order]
    for method in (None, ss.InteractingMultipleModel(paths=states ** (length - 1)), ss.RaoBlackwellised(100)):
        paths, score = model.decode(y, k=5, method=method)
        count = min(5, len(log))
        assert_close(score[:count], log[:count], **TIGHT)
        assert torch.equal(paths.T[:count], every[:count])
        assert (paths[:, count:] == -1).all() and score[count:].isneginf().all()
        assert torch.equal(model.decode(y, method=method), every[0])
    if length == 5:
        both = model.decode([y[:3], y], k=2)
        alone = enumerated(model, y[:3])
        best = (alone.weights.log() + alone.log_prob).topk(2)
        assert_close(both[1][0], best.values, **TIGHT)
        assert torch.equal(both[0][0].T, torch.tensor(alone.paths)[best.indices])
        assert torch.equal(both[0][1], model.decode(y, k=2)[0])


def test_few_paths_are_scored_exactly_and_most_often_the_likeliest():
    """With one regime remembered, or two: each path's score is its own, and hardly one is missed."""
    found = 0
    for seed in range(3):
        model = jumpy(seed=seed)
        y = holed(model, 6, seed)
        truth = enumerated(model, y)
        log = {
            path: float(weight.log() + truth.log_prob) for path, weight in zip(truth.paths, truth.weights, strict=True)
        }
        for paths in (1, 4):
            path, score = model.decode(y, k=2, method=ss.GaussianSum(paths=paths))
            for i in range(2):
                assert float(score[i]) == pytest.approx(log[tuple(path[:, i].tolist())], abs=1e-9)
            found += float(score[0]) > max(log.values()) - 1e-9
    assert found >= 5


@pytest.mark.parametrize(
    ("method", "error"),
    [
        (ss.GaussianSum(16), 1e-3),  # what quadrature leaves
        (ss.GaussianSum(), 2e-2),
        (ss.InteractingMultipleModel(), 6e-2),
        (ss.RaoBlackwellised(16), 1e-2),
    ],
)
def test_hindsight_is_near_that_of_every_path(method: Any, error: float):
    model = jumpy()
    y = holed(model)
    truth, known = enumerated(model, y), model.smooth(y, method=method, pairs=True)
    assert_close(known.probs, truth.probs, rtol=0, atol=error)
    assert_close(known.mean, truth.mean, rtol=0, atol=error)
    assert_close(known.covariance, truth.covariance, rtol=0, atol=2 * error)
    assert_close(model.impute(y, method=method), truth.y, rtol=0, atol=2 * error)
    assert torch.equal(known.states, truth.probs.argmax(-1))
    pairs = torch.zeros_like(known.pairs)
    for path, weight in zip(truth.paths, truth.weights, strict=True):
        for t, both in enumerate(itertools.pairwise(path)):
            pairs[(t, *both)] += weight
    assert_close(known.pairs, pairs, rtol=0, atol=error)
    assert not known.exact


def test_drawn_paths_follow_the_posterior():
    model, n = jumpy(), 1000
    y = holed(model, 4)
    truth = enumerated(model, y)
    drawn = model.sample_posterior(y, n=n, seed=0, method=ss.GaussianSum(8, order=2))
    assert drawn.regime.shape == (n, 4)
    assert drawn.state.shape == (n, 4, 2)
    counts = torch.bincount(drawn.regime @ torch.tensor([8, 4, 2, 1]), minlength=16) / n
    error = (truth.weights * (1 - truth.weights) / n).sqrt()
    assert bool(((counts - truth.weights).abs() < 4.5 * error + 1e-3).all())
    spread = truth.covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    assert bool(((drawn.state.mean(0) - truth.mean).abs() < 4.5 * spread / n**0.5).all())
    assert_close(torch.stack([x.T.cov() for x in drawn.state.unbind(1)]), truth.covariance, rtol=0, atol=0.15)


def test_labels_leave_one_path():
    model = jumpy()
    y = holed(model)
    truth = enumerated(model, y)
    for path in ((0, 0, 1, 1, 0), (1, 1, 1, 1, 1)):
        at = truth.paths.index(path)
        known = model.log_prob(y, states=torch.tensor(path))
        assert_close(known.detach(), truth.log_prob + truth.weights[at].log(), **TIGHT)
    some = model.log_prob(y, states=torch.tensor([0, -1, -1, -1, 1]), method=ss.GaussianSum(16)).detach()
    wanted = torch.stack([w for p, w in zip(truth.paths, truth.weights, strict=True) if p[0] == 0 and p[4] == 1])
    assert_close(some, truth.log_prob + wanted.sum().log(), **TIGHT)


def test_a_forecast_goes_on_as_the_paths_do():
    model = jumpy()
    y = holed(model, 4)
    gone = torch.full((2, 3), math.nan, dtype=torch.float64)
    truth = enumerated(model, torch.cat([y, gone]))
    ahead = model.forecast(y, steps=2, samples=4000, method=ss.GaussianSum(8))
    assert_close(ahead.mean, truth.y[4:], **TIGHT)
    error = ahead.samples.std(0) / 4000**0.5
    assert bool(((ahead.samples.mean(0) - truth.y[4:]).abs() < 4.5 * error).all())
    assert_close(ahead.distribution.variance[0], ahead.samples.var(0), rtol=0.15, atol=0)
    low, high = ahead.quantile([0.1, 0.9])
    assert bool((low < high).all())
    assert ahead.mean.shape == (2, 3)


@pytest.mark.parametrize("method", [ss.GaussianSum(2), ss.InteractingMultipleModel(), ss.RaoBlackwellised(3)])
def test_one_regime_is_the_kalman_filter(method: Any):
    model = jumpy(1)
    move, show, start = model.transition.dynamics[0], model.emission.vectors[0], model.initial.vectors[0]
    plain = ss.StateSpace(start, move, show)
    y = holed(model, 6)
    assert_close(model.log_prob(y, method=method), plain.log_prob(y), **TIGHT)
    for a, b in ((model.filter(y, method=method), plain.filter(y)), (model.smooth(y, method=method), plain.smooth(y))):
        assert a.exact
        assert_close(a.mean, b.mean, **TIGHT)
        assert_close(a.covariance, b.covariance, **TIGHT)
        assert_close(a.probs, torch.ones(6, 1).double(), **TIGHT)
    a, b = model.forecast(y, steps=3, method=method), plain.forecast(y, steps=3)
    assert a.exact
    assert_close(a.mean, b.mean, **TIGHT)
    assert_close(a.distribution.variance, b.distribution.variance, **TIGHT)
    assert_close(model.impute(y, method=method), plain.impute(y), **TIGHT)


def test_interacting_models_are_those_of_filterpy():
    kalman = pytest.importorskip("filterpy.kalman")
    table = torch.tensor([[0.9, 0.1], [0.3, 0.7]], dtype=torch.float64)
    model = jumpy(transition=table, initial=[0.75, 0.25])
    with torch.no_grad():
        for part in (*model.transition.dynamics, *model.emission.vectors):
            part.offset.zero_()
    y = model.sample(None, 12, seed=4)[1]
    filters = []
    for move, show, start in zip(model.transition.dynamics, model.emission.vectors, model.initial.vectors, strict=True):
        one = kalman.KalmanFilter(dim_x=2, dim_z=3)
        first = start.gaussian(1)
        one.x, one.P = first.mean[0, :, None].detach().numpy(), (first.scale[0] @ first.scale[0].T).detach().numpy()
        one.F, one.Q = move.matrix.detach().numpy(), move.covariance.detach().numpy()
        one.H, one.R = show.matrix.detach().numpy(), show.covariance.detach().numpy()
        filters.append(one)
    peer = kalman.IMMEstimator(filters, [0.75, 0.25], table.numpy())  # stationary: its first step has moved already
    known = model.filter(y, method=ss.InteractingMultipleModel())
    for t, row in enumerate(y.numpy()):
        if t:
            peer.predict()
        peer.update(row[:, None])
        assert_close(known.probs[t], torch.from_numpy(peer.mu), **TIGHT)
        assert_close(known.mean[t], torch.from_numpy(peer.x[:, 0]), **TIGHT)
        assert_close(known.covariance[t], torch.from_numpy(peer.P), **TIGHT)


def test_few_paths_give_an_unbiased_likelihood():
    model = jumpy()
    y = holed(model, 6)
    truth = enumerated(model, y).log_prob
    torch.manual_seed(0)
    with torch.no_grad():
        ratio = (model.log_prob(y.expand(1500, -1, -1), method=ss.RaoBlackwellised(2)) - truth).exp()
    assert ratio.std() > 0.01
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / 1500**0.5


def test_resampling_keeps_each_once_and_every_sum_on_the_average():
    weights = torch.tensor([0.5, 0.3, 0.1, 0.05, 0.03, 0.02, 0.0], dtype=torch.float64)
    torch.manual_seed(0)
    index, new = optimal(weights.expand(20_000, -1), 4)
    assert all(len(set(row)) == 4 for row in index[:200].tolist())
    assert_close(new.sum(-1), torch.ones(20_000).double())
    kept = torch.zeros(20_000, 7, dtype=torch.float64).scatter(1, index, new)
    error = kept.std(0) / 20_000**0.5
    assert bool(((kept.mean(0) - weights).abs() < 4.5 * error + 1e-12).all())
    assert bool((kept[:, 0] == 0.5).all())  # a heavy one surely, as it is


# ---------------------------------------------------------------------------------------------- recurrent


def on_a_grid(model: Any, y: Tensor, points: int = 1201, reach: float = 12.0) -> tuple[Tensor, Tensor, Tensor]:
    """Log p(y), filtered regimes and filtered means of a recurrent model of one number, on a grid of z."""
    z = torch.linspace(-reach, reach, points, dtype=torch.float64)
    width, start = z[1] - z[0], model.initial.gaussians()
    move, show = model.transition.affine(None), model.emission.affine(None)
    normal = torch.distributions.Normal
    first = normal(start.mean[0, 0], start.scale[0, 0, 0]).log_prob(z).exp()
    belief = model.initial.chain.probs()[:, None] * first
    jump = model.transition.jump(z[:, None])  # (points, K, K)
    log, probs, means = 0.0, [], []
    for t, row in enumerate(y):
        if t:
            joint = torch.einsum("in,nij->jn", belief, jump)
            ahead = normal(move.matrix[:, 0, 0, None] * z + move.offset, move.scale[:, :1, 0])
            density = ahead.log_prob(z[:, None, None]).exp()  # (to, K, from)
            belief = torch.einsum("jn,mjn->jm", joint, density) * width
        belief = belief * normal(show.matrix[0, 0] * z + show.offset[0], show.scale[0, 0, 0]).log_prob(row).exp()
        total = belief.sum() * width
        log, belief = log + total.log(), belief / total
        probs.append(belief.sum(-1) * width)
        means.append((belief.sum(0) * z).sum() * width)
    return log, torch.stack(probs), torch.stack(means)


def looking(strength: float) -> ss.StateSpace:
    """Up in regime 0, down in regime 1, and the regime turns where z is high or low."""
    model = ss.switching_linear(
        2,
        dynamics=[[[0.95]], [[0.8]]],
        state_offset=[[0.5], [-0.6]],
        state_noise=[[0.1]],
        observation=[[1.0]],
        observation_noise=[[0.5]],
        recurrent=True,
    )
    with torch.no_grad():
        model.transition.weight.copy_(strength * torch.tensor([-1.0, 1.0])[:, None])
        model.transition.logits.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    return model


@torch.no_grad()
def test_a_jump_that_looks_at_the_state_against_a_grid():
    model = looking(2.0)
    y = model.sample(None, 12, seed=1)[1]
    log, probs, means = on_a_grid(model, y)
    for method in (ss.GaussianSum(8, order=9), ss.GaussianSum()):
        known = model.filter(y, method=method)
        assert_close(known.log_prob, log, rtol=0, atol=0.02)
        assert_close(known.probs, probs, rtol=0, atol=0.01)
        assert_close(known.mean[:, 0], means, rtol=0, atol=0.01)
    assert abs(looking(0.0).log_prob(y) - log) > 1  # where it looks matters


@torch.no_grad()
def test_the_likeliest_path_follows_a_jump_that_looks():
    model = looking(2.0)
    (regimes, _), y = model.sample(None, 30, seed=1)
    path, score = model.decode(y, k=1)
    assert_close(score[0], model.log_prob(y, states=path[:, 0]), **TIGHT)
    for other in (regimes, model.smooth(y).states):
        assert float(score) > float(model.log_prob(y, states=other))
    blind = looking(0.0)
    chain = ss.switching_linear(
        2,
        dynamics=[[[0.95]], [[0.8]]],
        state_offset=[[0.5], [-0.6]],
        state_noise=[[0.1]],
        observation=[[1.0]],
        observation_noise=[[0.5]],
        transition=torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).softmax(-1),
    )
    chain.initial.chain.set_probs(blind.initial.chain.probs())
    assert torch.equal(blind.decode(y), chain.decode(y))
    assert_close(blind.decode(y, k=3)[1], chain.decode(y, k=3)[1], rtol=0, atol=1e-6)


@torch.no_grad()
def test_a_jump_that_does_not_look_is_a_chain():
    model = looking(0.0)
    chain = ss.SwitchingLinear(ss.Dense(2), list(model.transition.dynamics)).double()
    chain.chain.set_probs(model.transition.logits.softmax(-1))
    plain = ss.StateSpace(model.initial, chain, model.emission)
    y = plain.sample(2, 6, seed=0)[1]
    for method in (ss.GaussianSum(2), ss.InteractingMultipleModel()):
        a, b = model.smooth(y, method=method), plain.smooth(y, method=method)
        assert_close(a.log_prob, b.log_prob, **TIGHT)
        assert_close(a.probs, b.probs, **TIGHT)
        assert_close(a.covariance, b.covariance, **TIGHT)
    with pytest.raises(ss.StatespanError, match="no Kalman filter sums it"):
        model.log_prob(y, method=ss.RaoBlackwellised(5))


# ---------------------------------------------------------------------------------------------- fitting


def test_em_never_falls_and_its_bound_is_one():
    true, model = jumpy(2, seed=2), jumpy(2, seed=5)
    y = true.sample(3, 5, seed=0)[1]
    y[0, 2], y[1, 3, 0] = math.nan, math.nan
    each, em = [], ss.EM(iterations=4, tolerance=0)
    em.callback = lambda i, value: each.append(sum(enumerated(model, row[:end]).log_prob for row, end in rows))
    rows = [(y[0], 5), (y[1], 4), (y[2], 1)]
    before = sum(enumerated(model, row[:end]).log_prob for row, end in rows)
    model.fit([row[:end] for row, end in rows], by=em, hold=["emission"])  # so little data has no noise of its own
    truths = [before, *each[:-1]]
    assert all(bound < truth + 1e-9 for bound, truth in zip(em.history, truths, strict=True))
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(em.history))
    assert em.history[-1] > em.history[0] + 10


def test_em_of_one_regime_is_that_of_the_linear_model():
    model = jumpy(1, seed=2)
    y = model.sample(2, 15, seed=0)[1]
    y[0, 3], y[1, 5, 1] = math.nan, math.nan
    plain = ss.linear_gaussian(state=2, observed=3, seed=1)
    one = ss.switching_linear(
        1, observation=plain.emission.matrix.detach(), dynamics=0.9 * torch.eye(2), state_offset=[0, 0]
    )
    slow, fast = ss.EM(iterations=4, tolerance=0), ss.EM(iterations=4, tolerance=0)
    one.fit(y, by=slow)
    plain.fit(y, by=fast)
    assert slow.history == pytest.approx(fast.history, abs=1e-8)
    assert_close(one.transition.dynamics[0].matrix, plain.transition.matrix, **TIGHT)
    assert_close(one.emission.vectors[0].covariance, plain.emission.covariance, **TIGHT)


def test_em_counts_labels_and_weights():
    model, again = jumpy(seed=2), jumpy(seed=2)
    (regimes, _), y = model.sample(2, 12, seed=0)
    once = ss.EM(iterations=2, tolerance=0)
    model.fit(y, by=once, states=regimes, weights=[2.0, 1.0])
    twice = ss.EM(iterations=2, tolerance=0)
    again.fit(y[[0, 0, 1]], by=twice, states=regimes[[0, 0, 1]])
    assert once.history == pytest.approx(twice.history, abs=1e-8)
    counts = torch.zeros(2, 2, dtype=torch.float64)
    for row in regimes[[0, 0, 1]].tolist():
        for both in itertools.pairwise(row):
            counts[both] += 1
    assert_close(model.transition.probs.detach(), counts / counts.sum(-1, keepdim=True), **TIGHT)


def test_the_collapsed_likelihood_is_climbed():
    model = looking(0.5)
    y = looking(2.0).sample(2, 8, seed=0)[1]
    fitter = ss.LBFGS(iterations=1)
    model.fit(y, by=fitter)
    assert fitter.history[-1] > fitter.history[0] + 0.1


def recurrent(states: int = 3, seed: int = 0) -> ss.StateSpace:
    """Regimes, vectors of two numbers, and jumps that look at them."""
    model = ss.switching_linear(states, state=2, observed=2, recurrent=True, seed=seed)
    with torch.no_grad():
        model.transition.weight.mul_(10)
    return model


@torch.no_grad()
def test_the_parabola_of_a_jump_lies_below_it_and_touches_it():
    part, generator = recurrent().transition, torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    mean, root, pairs = draw(4, 2), 0.5 * draw(4, 2, 2), draw(4, 3, 3).square()
    rows = part.seen(pairs, mean)

    def parabola(z: Tensor) -> Tensor:
        return -0.5 * ((rows[..., :-1] @ z[..., None])[..., 0] - rows[..., -1]).square().sum(-1)

    def truth(z: Tensor) -> Tensor:
        return (pairs * part.jump(z).log()).sum((-1, -2))

    gap = truth(mean) - parabola(mean)
    for away in draw(50, 4, 2):
        assert bool((parabola(mean + away) + gap <= truth(mean + away) + 1e-9).all())
    near = mean + 1e-4 * draw(4, 2)
    assert_close(parabola(near) + gap, truth(near), rtol=0, atol=1e-5)
    table, loss = part.bound(mean, root @ root.mT)
    noise = (root[:, None] @ draw(4, 40_000, 2, 1))[..., 0]
    noise -= noise.mean(1, keepdim=True)
    expected = part.jump(mean[:, None] + noise).log().mean(1)
    assert bool((table.log() - loss[..., None] <= expected + 5e-3).all())


def test_em_of_jumps_that_look_never_falls():
    true, model = recurrent(seed=1), recurrent(seed=2)
    y = true.sample(3, 12, seed=0)[1]
    y[0, 2], y[1, 3, 0] = math.nan, math.nan
    rows = [y[0], y[1, :7], y[2, :1]]
    each, em = [], ss.EM(iterations=4, tolerance=0)
    em.callback = lambda i, value: each.append(float(model.log_prob(rows, method=ss.GaussianSum(9)).sum().detach()))
    before = float(model.log_prob(rows, method=ss.GaussianSum(9)).sum().detach())
    weight = model.transition.weight.detach().clone()
    model.fit(rows, by=em, hold=["emission"])
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(em.history))
    assert all(bound < truth for bound, truth in zip(em.history, [before, *each[:-1]], strict=True))
    assert em.history[-1] > em.history[0] + 5
    assert not torch.equal(model.transition.weight, weight)


def test_em_of_jumps_that_need_not_look_begins_as_that_of_a_chain():
    table = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
    blind, chain = jumpy(seed=2, transition=None, recurrent=True), jumpy(seed=2, transition=table)
    with torch.no_grad():
        blind.transition.weight.zero_()
        blind.transition.logits.copy_(table.log())
    y = chain.sample(2, 10, seed=0)[1]
    found = []
    for model in (blind, chain):
        em = ss.EM(iterations=1)
        model.fit(y, by=em)
        found.append(em.history[0])
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert_close(blind.transition.dynamics[0].matrix, chain.transition.dynamics[0].matrix, rtol=0, atol=1e-6)


def test_a_start_from_the_data_finds_the_regimes():
    truth = looking(2.0)
    with torch.no_grad():
        truth.transition.logits.copy_(torch.tensor([[3.0, -3.0], [-1.0, 1.0]]))
        for part in (*truth.transition.dynamics, *truth.emission.vectors):
            part.scale.fill_(0.15)
    (regimes, _), y = truth.sample(2, 60, seed=1)
    model = ss.switching_subspace([y[0], y[1, :30]], states=2, state=1, recurrent=True, restarts=1)
    model.fit(y[0], by=ss.EM(iterations=3))
    same = float((model.decode(y)[0] == regimes[0]).double().mean())
    assert max(same, 1 - same) > 0.9
    plain = ss.switching_subspace(y[0], states=2, state=1, restarts=1)
    assert plain.log_prob(y).isfinite().all() and plain.transition.probs.shape == (2, 2)
    with pytest.raises(ss.StatespanError, match="states=0"):
        ss.switching_subspace(y, states=0, state=1)


# ----------------------------------------------------------------------------------------------- the rest


def test_inputs_drive_the_switch_and_the_moves(tmp_path: Any):
    model = ss.switching_linear(2, state=1, observed=1, inputs=1, transition=ss.SoftmaxTransition(2, inputs=1), seed=0)
    with torch.no_grad():
        model.transition.chain.weight[:, 1, 1] = 40.0  # regime 1 where the input is above 0
        model.transition.chain.weight[..., 0] = 0.0
    u = torch.tensor([-1.0, -1.0, 1.0, 1.0, -1.0])[:, None]
    drawn = model.sample(None, 5, seed=0, inputs=u[:, None])[0]
    assert drawn.regime[1:].tolist() == [0, 1, 1, 0]
    y = model.sample(None, 5, seed=0, inputs=u[:, None])[1]
    assert model.decode(y, inputs=u)[1:].tolist() == [0, 1, 1, 0]
    assert model.forecast(y, steps=2, inputs=u, future=u[:2]).mean.shape == (2, 1)
    stream = model.stream()
    for row, now in zip(y[:3], u[:3], strict=True):
        stream.update(row, inputs=now)
    stream.save(tmp_path / "s.safetensors")
    again = model.stream().resume(tmp_path / "s.safetensors")
    again.update(y[3], inputs=u[3])
    stream.update(y[3], inputs=u[3])
    assert_close(again.log_prob, stream.log_prob)
    em = ss.EM(iterations=3, tolerance=0)
    model.fit(y, by=em, inputs=u)
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(em.history))


def test_a_mixture_is_what_is_drawn_from_it():
    model = jumpy()
    belief = model.filter(holed(model, 3), method=ss.GaussianSum(3)).belief
    told = belief.summary()
    torch.manual_seed(0)
    many = ss.MixtureOfGaussians(*[x.expand(20_000, *x.shape[1:]) for x in belief]).draw().point()
    assert_close(many.state.mean(0), told["mean"][0], rtol=0, atol=0.05)
    assert_close(many.state.T.cov(), told["covariance"][0], rtol=0, atol=0.08)
    assert_close(many.regime.double().mean(), told["probs"][0, 1], rtol=0, atol=0.02)


def test_what_cannot_be_says_so():
    error = ss.StatespanError
    with pytest.raises(error, match=r"dynamics=.* is \(3, 1, 1\); give 2 axes"):
        ss.switching_linear(2, dynamics=torch.ones(3, 1, 1), observed=1)
    with pytest.raises(error, match=r"regime 1: .*not symmetric"):
        ss.switching_linear(2, observed=1, state_noise=[[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.5], [0.0, 1.0]]])
    with pytest.raises(error, match="its own softmax"):
        ss.switching_linear(2, state=1, observed=1, recurrent=True, transition=torch.eye(2))
    with pytest.raises(error, match="holds 3 parts for 2 regimes"):
        ss.SwitchingLinear(ss.Dense(2), [ss.Linear(1)] * 3)
    with pytest.raises(error, match="no chain of plain regimes"):
        ss.SwitchingLinear(ss.HigherOrder(2, 2), ss.Linear(1))
    with pytest.raises(error, match="diffuse start"):
        start = ss.SwitchingStart(ss.Start(2), ss.DiffuseStart(1))
        ss.StateSpace(
            start, ss.SwitchingLinear(ss.Dense(2), ss.Linear(1)), ss.SwitchingEmission(ss.Linear(1))
        ).log_prob([0.1])
    for method in (ss.GaussianSum, ss.RaoBlackwellised):
        with pytest.raises(error, match="at least one"):
            method(0)
    with pytest.raises(error, match="at least 2 and 1"):
        ss.InteractingMultipleModel(order=1)
    with pytest.raises(error, match="paths=0"):
        ss.GaussianSum(paths=0)
    model = jumpy()
    with pytest.raises(error, match="weights of single steps"):
        model.fit(holed(model), weights=[1.0, 2, 1, 1, 1])
    singular = ss.switching_linear(2, state=1, observed=1, state_noise=[[0.0]], seed=0)
    with pytest.raises(error, match="its move has none in one"):
        singular.fit([0.1, 0.3, 0.2], by=ss.EM(iterations=1))


def test_priors_of_the_parts_count_and_em_climbs_with_them():
    move, seen = ss.Linear(1, prior_scale=0.5, matrix_strength=2.0), ss.Linear(1, prior_scale=0.1)
    chain = ss.Dense(2, concentration=3.0)
    transition = ss.SwitchingLinear(chain, [move, ss.Linear(1)])
    start = ss.SwitchingStart(ss.Start(2), ss.NormalStart(1))
    model = ss.StateSpace(start, transition, ss.SwitchingEmission(seen)).double()
    with torch.no_grad():
        chain.logits.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        transition.dynamics[1].matrix.fill_(0.3)
    assert_close(model.log_prior(), chain.log_prior() + move.log_prior() + seen.log_prior())
    em = ss.EM(iterations=3, tolerance=0)
    model.fit(torch.arange(6.0).sin(), by=em)
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(em.history))
