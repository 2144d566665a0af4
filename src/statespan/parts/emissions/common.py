"""What emissions share: checks of given parameters, mixtures over states, a start from the data, roots."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from statespan.errors import StatespanError
from statespan.sequences import all_of


def known(y: Tensor, observed: Tensor | None, neutral: float) -> tuple[Tensor, Tensor | None]:
    """Values (..., D) with a harmless one where they are missing, and which coordinates are there; None: whole rows."""
    if observed is None:
        return y, None
    there = observed if observed.dim() == y.dim() else observed[..., None]
    return torch.where(there, y, neutral), None if observed.dim() < y.dim() else observed


def table(values: Any, name: str, low: float = -math.inf, high: float = math.inf) -> Tensor:
    """Check parameters (K, D) that lie strictly between two numbers, and give them in float64."""
    values = torch.as_tensor(values, dtype=torch.float64)
    if values.dim() != 2:
        raise StatespanError(f"{name} has {values.dim()} dimensions; give (K, D), one row a state")
    if not bool(((values > low) & (values < high)).all()):
        k, d = (~((values > low) & (values < high))).nonzero()[0].tolist()
        raise StatespanError(
            f"{name}: state {k}, coordinate {d} is {float(values[k, d]):g}; it must lie between {low:g} and {high:g}"
        )
    return values


def tables(name: str, **given: tuple) -> list[Any]:
    """Parameters that go together, as one shape (K, D); None for each where none is given.

    Args:
        name: of the emission.
        given: the values of each, and what they lie above and below (see `table`).

    Raises:
        StatespanError: some are given without the others.
    """
    there = [values is not None for values, *_ in given.values()]
    if not any(there):
        return [None] * len(given)
    if not all(there):
        raise StatespanError(f"{name} needs both {'= and '.join(given)}=, or the sizes instead")
    found = [table(values, f"{name}({key}=)", *limits) for key, (values, *limits) in given.items()]
    return list(torch.broadcast_tensors(*found))


def root(function: Callable[[Tensor], Tensor], low: float, high: float, like: Tensor) -> Tensor:
    """Where a function that rises from below zero to above it crosses zero, by bisection of the logarithm.

    Args:
        function: elementwise, rising; float64.
        low: the least answer, positive.
        high: the largest.
        like: of the answer's shape.
    """
    a = torch.full_like(like, math.log(low), dtype=torch.float64)
    b = torch.full_like(like, math.log(high), dtype=torch.float64)
    for _ in range(60):
        middle = (a + b) / 2
        below = function(middle.exp()) < 0
        a, b = torch.where(below, middle, a), torch.where(below, b, middle)
    return ((a + b) / 2).exp().to(like)


def spread_out(points: Tensor, states: int) -> tuple[Tensor, Tensor]:
    """K rows of `points` (N, D) far apart, and which of them each row is nearest to, (N,).

    Source:
        Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding", 2007.
    """
    chosen = [int(torch.randint(len(points), ()))]
    distance = ((points - points[chosen[0]]) ** 2).sum(-1)
    nearest = torch.zeros(len(points), dtype=torch.long, device=points.device)
    for k in range(1, states):
        weights = distance if float(distance.sum()) > 0 else torch.ones_like(distance)
        cumulative = weights.cumsum(0)
        at = torch.searchsorted(cumulative, torch.rand(1, dtype=weights.dtype, device=weights.device) * cumulative[-1])
        chosen.append(min(int(at), len(points) - 1))
        new = ((points - points[chosen[-1]]) ** 2).sum(-1)
        nearest = torch.where(new < distance, k, nearest)
        distance = torch.minimum(distance, new)
    return points[chosen], nearest


def whole_rows(y: Tensor, observed: Tensor | None) -> Tensor:
    """The observations of which nothing is missing, (N, D)."""
    rows = y.reshape(-1, y.shape[-1])
    return rows if observed is None else rows[all_of(observed).reshape(-1)]


def standardised(y: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All rows (N, D) less the means of the columns and over their deviations, zero where missing.

    With them come what of them is there (N, D), the means and the deviations, (D,).
    """
    rows = y.reshape(-1, y.shape[-1])
    there = torch.ones_like(rows, dtype=torch.bool)
    if observed is not None:
        there = (observed if observed.dim() == y.dim() else observed[..., None]).expand_as(y).reshape(rows.shape)
    count = there.sum(0).clamp_min(1)
    mean = torch.where(there, rows, 0.0).sum(0) / count
    centred = torch.where(there, rows - mean, 0.0)
    deviation = (centred.square().sum(0) / count).sqrt().clamp_min(torch.finfo(rows.dtype).tiny)
    return centred / deviation, there, mean, deviation


def first_weights(y: Tensor, observed: Tensor | None, states: int) -> Tensor:
    """Weights (T, B, K) to start EM from: most of each row on the nearest of K rows far apart; zero if missing."""
    rows, there, _, _ = standardised(y, observed)
    some = there.any(-1)
    nearest = torch.zeros(len(rows), dtype=torch.long, device=y.device)
    if bool(some.any()):
        nearest[some] = spread_out(rows[some], states)[1]
    weights = 0.8 * torch.nn.functional.one_hot(nearest, states).to(y) + 0.2 / states
    return torch.where(some[:, None], weights, 0.0).view(*y.shape[:-1], states)


def stochastic(probs: Any, name: str, rank: int) -> Tensor:
    """Check that the last axis of `probs` sums to one, and give it in float64."""
    probs = torch.as_tensor(probs, dtype=torch.float64)
    if probs.dim() != rank:
        raise StatespanError(f"{name} has {probs.dim()} dimensions where {rank} are expected")
    wrong = ((probs.sum(-1) - 1).abs() > 1e-4) | (probs < 0).any(-1) | ~probs.isfinite().all(-1)
    if bool(wrong.any()):
        row = int(wrong.reshape(-1).nonzero()[0])
        total = float(probs.reshape(-1, probs.shape[-1])[row].sum())
        raise StatespanError(f"{name}: row {row} sums to {total:.6g}; each row must be probabilities that sum to 1")
    return probs / probs.sum(-1, keepdim=True)
