"""Switching linear models against every path of regimes, each a dense joint normal written out."""

import itertools
import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import statespan as ss

TIGHT = {"rtol": 0.0, "atol": 1e-9}


def jumpy(states: int = 2, seed: int = 3, **more: Any) -> ss.StateSpace:
    """Two (or three) regimes that differ in everything, an observation of three numbers."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    turn, root, noise = torch.linalg.qr(draw(states, 2, 2))[0], draw(states, 2, 2), draw(states, 3, 3)
    table = draw(states, states).abs() + 2 * torch.eye(states)
    return ss.switching_linear(
        states,
        dynamics=turn * torch.linspace(0.95, 0.5, states)[:, None, None],
        state_noise=0.2 * root @ root.mT + 0.05 * torch.eye(2),
        state_offset=draw(states, 2),
        observation=draw(states, 3, 2),
        observation_noise=0.2 * noise @ noise.mT + 0.2 * torch.eye(3),
        observation_offset=draw(states, 3),
        initial=torch.tensor([0.6, 0.3, 0.1])[:states] / torch.tensor([0.6, 0.3, 0.1])[:states].sum(),
        transition=table / table.sum(-1, keepdim=True),
        initial_mean=draw(states, 2),
        initial_covariance=torch.eye(2) * torch.arange(1.0, states + 1)[:, None, None],
        **more,
    )


class Truth(NamedTuple):
    """By enumeration: log p(y), p(s_t | y) (T, K), E[z_t | y] (T, D), cov (T, D, D), every path and its weight."""

    log_prob: Tensor
    probs: Tensor
    mean: Tensor
    covariance: Tensor
    paths: list[tuple[int, ...]]
    weights: Tensor


def enumerated(model: Any, y: Tensor) -> Truth:
    """Each path of regimes as one joint normal of z_1..z_T and what is there of y."""
    length, seen = len(y), ~y.isnan().flatten()
    states, dim = model.transition.states, model.transition.event.dim
    move, show = model.transition.affine(None), model.emission.affine(None)
    start, table = model.initial.gaussians(), model.transition.chain.probs
    pick = lambda x, k: x[min(k, len(x) - 1)].detach()  # noqa: E731
    logs, means, covariances = [], [], []
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
        c = torch.block_diag(*[pick(show.matrix, k) for k in path])[seen]
        d = torch.cat([pick(show.offset, k) for k in path])[seen]
        r = torch.block_diag(*[pick(show.scale, k) @ pick(show.scale, k).T for k in path])[seen][:, seen]
        s = c @ zz @ c.T + r
        gain = zz @ c.T @ torch.linalg.inv(s)
        away = y.flatten()[seen] - c @ z - d
        logs.append(log - 0.5 * (away @ torch.linalg.solve(s, away) + torch.logdet(s) + len(d) * math.log(2 * math.pi)))
        means.append((z + gain @ away).view(length, dim))
        covariances.append(zz - gain @ c @ zz)
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
    return Truth(log.logsumexp(0), probs, mean, spread, every, weights)


def holed(model: Any, length: int = 5, seed: int = 1) -> Tensor:
    y = model.sample(None, length, seed=seed)[1]
    y[1] = math.nan
    y[3, 0] = math.nan
    return y


@pytest.mark.parametrize(("states", "many"), [(2, 16), (3, 81)])
def test_a_sum_with_room_for_every_path_is_exact(states: int, many: int):
    model = jumpy(states)
    y = holed(model)
    truth = enumerated(model, y)
    for method in (ss.GaussianSum(many), ss.RaoBlackwellised(many)):
        assert_close(model.log_prob(y, method=method).detach(), truth.log_prob, **TIGHT)
        for t in (0, 2, 4):
            known, past = model.filter(y[: t + 1], method=method), enumerated(model, y[: t + 1])
            assert_close(known.probs[-1], past.probs[-1], **TIGHT)
            assert_close(known.mean[-1], past.mean[-1], **TIGHT)
            assert_close(known.covariance[-1], past.covariance[-1], **TIGHT)
