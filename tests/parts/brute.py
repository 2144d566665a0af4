"""Every path of a finite chain, by a table for each step: log p, smoothed states, neighbouring pairs, the best path."""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor


class Answer(NamedTuple):
    """Log p(y), p(z_t | y) (T, K), sum of p(z_t, z_{t+1} | y) for each t (T - 1, K, K), the best path and its log p."""

    log_prob: Tensor
    smoothed: Tensor
    pairs: Tensor
    path: list[int]
    score: Tensor


def brute(initial: Tensor, tables: list[Tensor], log_emission: Tensor) -> Answer:
    """`tables[t]` is the move into step t + 1; `log_emission` is (T, K)."""
    length, states = log_emission.shape
    return by_path(
        lambda z: initial[z[0]].log() + sum((tables[t][z[t], z[t + 1]].log() for t in range(length - 1)), 0.0),
        log_emission,
        states,
    )


def by_path(log_path, log_emission: Tensor, states: int) -> Answer:
    """`log_path(z)` is log p of a path."""
    length = len(log_emission)
    paths = list(itertools.product(range(states), repeat=length))
    log = torch.stack(
        [torch.as_tensor(log_path(z)) + sum(log_emission[t, k] for t, k in enumerate(z)) for z in paths]
    ).detach()
    log_prob = log.logsumexp(0)
    weight = (log - log_prob).exp()
    smoothed = log.new_zeros(length, states)
    pairs = log.new_zeros(max(length - 1, 0), states, states)
    for z, w in zip(paths, weight, strict=True):
        for t, k in enumerate(z):
            smoothed[t, k] += w
            if t:
                pairs[t - 1, z[t - 1], k] += w
    best = int(log.argmax())
    return Answer(log_prob, smoothed, pairs, list(paths[best]), log[best])
