"""The likeliest paths of regimes of a switching linear model: Viterbi's algorithm on the regimes of the last steps."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from statespan.belief import Gaussian, MixtureOfGaussians
from statespan.methods.switching import Moves, Seen, moved, told
from statespan.parts.switching_linear import Components
from statespan.tree import unstack


class Survivors(NamedTuple):
    """The best paths so far by the regimes of their last steps, the latest fastest, and of each of these by rank.

    Args:
        score: (B, C), log p(path, y so far).
        z: given its path, (B, C, ...).
        rank: how many paths share the last regimes.
        origin: (B, C), which path of the step before each goes on.
    """

    score: Tensor
    z: Gaussian
    rank: int
    origin: Tensor


def best_regimes(model: Any, moves: Moves, seen: Seen, within: Tensor, k: int, paths: int) -> tuple[Tensor, Tensor]:
    r"""The k paths of regimes s with the largest p(s_1..T, y), and the logarithm of that.

    A path has a Kalman filter of its own, so its probability is the model's; but for a recurrent jump, which leaves z
    normal by its moments only. Of the paths that share the regimes of the last L steps the best k go on, K^L being at
    most `paths`. Nothing is dropped of L + 1 steps; beyond, paths are compared by all but what a filter still knows of
    a regime L steps ago.

    Args:
        model: a switching linear model.
        moves: what acts on the moves, for all t.
        seen: what was observed, for all t.
        within: (T, B), before each sequence's own end.
        k: how many.
        paths: at most so many combinations of the last regimes, or K of them.

    Returns:
        Paths (T, B, k), -1 past each end and where there are fewer; log-probabilities (B, k), best first.

    Source:
        Raheli, Polydoros and Tzou, "Per-survivor processing", IEEE Transactions on Communications 43, 1995; for
        switching linear models with L = 1: Pavlovic, Rehg and MacCormick, NIPS 2000.
    """
    length, batch = within.shape
    regimes = model.transition.states
    most = regimes ** max(1, int(math.log(paths) / math.log(regimes) + 1e-9)) if regimes > 1 else 1
    last = within.sum(0) - 1
    now, kept = None, []
    ends, scores = [], torch.full((batch, k), -torch.inf, dtype=torch.float64, device=within.device)
    for t, (move, y) in enumerate(zip(unstack(moves, length), unstack(seen, length), strict=True)):
        now = _start(model, move, y, batch) if now is None else _onward(model, now, move, y, most, k)
        best, at = now.score.sort(dim=1, descending=True, stable=True)
        more = (0, max(0, k - best.shape[1]))
        ends.append(torch.nn.functional.pad(at[:, :k], more))
        scores = torch.where((last == t)[:, None], torch.nn.functional.pad(best[:, :k], more, value=-torch.inf), scores)
        kept.append((now.rank, now.origin))
    path, at = [], ends[-1]
    for t in range(length - 1, -1, -1):
        rank, origin = kept[t]
        at = torch.where((last == t)[:, None], ends[t], at)
        path.append(torch.where(within[t, :, None] & (scores > -torch.inf), at // rank % regimes, -1))
        at = origin.gather(1, at)
    return torch.stack(path[::-1]), scores


def _start(model: Any, move: Moves, y: Seen, batch: int) -> Survivors:
    """A path a regime."""
    first: Any = move
    regimes = model.transition.states
    mean, scale = (x.expand(batch, regimes, *x.shape[1:])[:, :, None] for x in first.vectors)
    chance = first.initial.expand(batch, -1)
    z, log = told(MixtureOfGaussians(chance[..., None], mean, scale), y)
    return Survivors(
        (chance.log()[..., None] + log)[..., 0],
        Gaussian(z.mean[:, :, 0], z.scale[:, :, 0]),
        1,
        torch.zeros(batch, regimes, dtype=torch.long, device=mean.device),
    )


def _onward(model: Any, before: Survivors, move: Moves, y: Seen, most: int, k: int) -> Survivors:
    """Every path to every regime, and the best of those that from here on share what is remembered."""
    tables: Any = move
    regimes, (batch, count), rank = model.transition.states, before.score.shape, before.rank
    place = torch.arange(count, device=before.score.device)
    rows = torch.nn.functional.one_hot(place // rank % regimes, regimes).to(before.z.mean)
    parts = Components(before.z.mean.new_ones(batch, count), rows, before.z.mean, before.z.scale)
    branched = model.transition.branch(parts, tables.tables, tables.nodes)  # (B, K, C), whose weights are of the jump
    z, log = told(moved(branched, tables.affine), y)
    score = before.score[:, None] + branched.weights.log() + log
    histories = count // rank
    forgotten = regimes if histories == most else 1
    shape = (regimes, forgotten, histories // forgotten, rank)
    place = torch.arange(regimes * count, device=place.device).view(shape).permute(2, 0, 1, 3).flatten(2).flatten(0, 1)
    ways = score.flatten(1)[:, place]  # (B, histories from now on, ways to each)
    order = ways.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    best = place.expand(batch, -1, -1).gather(-1, order).flatten(1)
    pick = lambda x: x.flatten(1, 2).gather(1, best.view(batch, -1, *[1] * (x.dim() - 3)).expand(-1, -1, *x.shape[3:]))  # noqa: E731
    return Survivors(pick(score), Gaussian(pick(z.mean), pick(z.scale)), order.shape[-1], best % count)
