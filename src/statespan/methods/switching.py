"""What the filters of switching linear models share: hypotheses about the regimes, a Kalman filter for each."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, MixtureSameFamily

from statespan.belief import Gaussian, MixtureOfGaussians, averaged
from statespan.errors import StatespanError
from statespan.method import Expected, Hindsight, Method, Prepared, in_hindsight, run
from statespan.methods.finite import excluded_states
from statespan.methods.kalman import (
    Kalman,
    Normal,
    Observation,
    emitted,
    filled,
    follow,
    observation,
    over_time,
    reverse,
)
from statespan.methods.linearisation import grid, symmetric
from statespan.methods.structured import StructuredPosterior
from statespan.part import Affine
from statespan.parts.linear import lower
from statespan.parts.switching_linear import (
    Components,
    Nodes,
    SwitchingEmission,
    SwitchingStart,
    SwitchingTransition,
)
from statespan.sequences import Sequences
from statespan.shapes import Float
from statespan.tree import Shared, Tree, stack, tree_map, unstack

PATHS = 100
"""How many paths of regimes a search goes on with."""
MOST_NODES = 150
"""A quadrature grid of more points than this gives way to the cubature rule."""


class Moves(NamedTuple):
    """What acts on the move into t.

    Args:
        initial: p(s_1).
        vectors: z_1 in every regime.
        tables: of jumps.
        affine: the regimes' A, b and scale.
        nodes: where averages over a normal z are taken.
    """

    initial: Shared
    vectors: Shared
    tables: Tree
    affine: Affine
    nodes: Shared


class Seen(NamedTuple):
    """What y_t says in each regime (1 or K), and where a label says that a regime is not the one, (T, B, K)."""

    y: Observation
    excluded: Tensor | None


# ------------------------------------------------------------------------------------------- hypotheses


def components(belief: MixtureOfGaussians) -> Components:
    """All components of a belief, laid out flat: (B, S I)."""
    regimes, each = belief.weights.shape[-2:]
    rows = torch.eye(regimes, dtype=belief.mean.dtype, device=belief.mean.device).repeat_interleave(each, 0)
    return Components(belief.weights.flatten(-2), rows, belief.mean.flatten(1, 2), belief.scale.flatten(1, 2))


def merge(belief: MixtureOfGaussians) -> MixtureOfGaussians:
    """One normal distribution in each regime, with the mean and the covariance of all that were there."""
    if belief.weights.shape[-1] == 1:
        return belief
    weights, total = belief.weights, belief.weights.sum(-1, keepdim=True)
    tiny = torch.finfo(belief.mean.dtype).tiny
    share = torch.where(total > 0, weights / torch.where(total > 0, total, 1.0), 1 / weights.shape[-1]).clamp_min(tiny)
    mean = (share[..., None] * belief.mean).sum(-2, keepdim=True)
    spread = torch.cat([belief.scale, (belief.mean - mean)[..., None]], -1) * share.sqrt()[..., None, None]
    return MixtureOfGaussians(total, mean, lower(spread.movedim(-3, -2).flatten(-2))[..., None, :, :])


def reduce(belief: MixtureOfGaussians, count: int) -> MixtureOfGaussians:
    """The `count` - 1 heaviest components of each regime, and the rest merged; as many with nothing if there are less.

    Source:
        Barber, "Expectation correction for smoothed inference in switching linear dynamical systems", JMLR 2006,
        section 2.2.
    """
    have = belief.weights.shape[-1]
    if have <= count:
        return _padded(belief, count)
    if count == 1:
        return merge(belief)
    order = belief.weights.detach().argsort(-1, descending=True)
    ordered = MixtureOfGaussians(
        belief.weights.gather(-1, order),
        belief.mean.gather(-2, order[..., None].expand_as(belief.mean)),
        belief.scale.gather(-3, order[..., None, None].expand_as(belief.scale)),
    )
    kept, rest = _cut(ordered, 0, count - 1), merge(_cut(ordered, count - 1, have))
    return _joined(kept, rest)


def _cut(belief: MixtureOfGaussians, start: int, stop: int) -> MixtureOfGaussians:
    return MixtureOfGaussians(
        belief.weights[..., start:stop], belief.mean[..., start:stop, :], belief.scale[..., start:stop, :, :]
    )


def _joined(a: MixtureOfGaussians, b: MixtureOfGaussians) -> MixtureOfGaussians:
    axes = zip(a, b, (-1, -2, -3), strict=True)
    return MixtureOfGaussians(*[torch.cat([x, y], axis) for x, y, axis in axes])


def _padded(belief: MixtureOfGaussians, count: int) -> MixtureOfGaussians:
    """With copies that weigh nothing, up to `count` components a regime."""
    more = count - belief.weights.shape[-1]
    if not more:
        return belief
    copy = _cut(belief, 0, 1)
    size = belief.weights.shape[:-1]
    return _joined(
        belief,
        MixtureOfGaussians(
            torch.zeros_like(copy.weights).expand(*size, more),
            copy.mean.expand(*size, more, -1),
            copy.scale.expand(*size, more, -1, -1),
        ),
    )


def _flat(tree: Tree, ranks: Sequence[int], size: torch.Size) -> list[Tensor]:
    """Fields with an axis of regimes (1 or K), with or without one of sequences, for all of B x K x I: (N, ...)."""

    def one(x: Tensor, rank: int) -> Tensor:
        if x.dim() == 0:
            return x
        tail = x.shape[x.dim() - rank :]
        return x.unsqueeze(-1 - rank).expand(*size, *tail).reshape(-1, *tail)

    return [one(x, rank) for x, rank in zip(tree, ranks, strict=True)]


def normals(belief: MixtureOfGaussians) -> Gaussian:
    """Every component, as B x K x I sequences of a Kalman filter."""
    return Gaussian(belief.mean.flatten(0, 2), belief.scale.flatten(0, 2))


def moved(belief: MixtureOfGaussians, affine: Affine) -> MixtureOfGaussians:
    """Every component through its regime's move, (B, K, I)."""
    size = belief.weights.shape
    found = Kalman().predict(None, normals(belief), Affine(*_flat(affine, (2, 1, 2), size)))
    return MixtureOfGaussians(belief.weights, found.mean.unflatten(0, size), found.scale.unflatten(0, size))


def told(belief: MixtureOfGaussians, seen: Seen) -> tuple[Gaussian, Float[Tensor, "B K I"]]:
    """Every component given y_t, and log p(y_t) of it; minus infinity where a label excludes its regime."""
    size = belief.weights.shape
    found, log = Kalman().update(None, normals(belief), Observation(*_flat(seen.y, (1, 2, 2, 0), size)))
    log = log.view(size).double()
    if seen.excluded is not None:
        log = log.masked_fill(seen.excluded[..., None], -torch.inf)
    return Gaussian(found.mean.unflatten(0, size), found.scale.unflatten(0, size)), log


def conditioned(belief: MixtureOfGaussians, seen: Seen) -> tuple[MixtureOfGaussians, Float[Tensor, " B"]]:
    """Every component given y_t, weighed by how well it told y_t; and log p(y_t | y_<t)."""
    found, log = told(belief, seen)
    there = belief.weights > 0
    weigh = torch.where(there, belief.weights, 1.0).log().double()
    each = torch.where(there, log + weigh, -torch.inf)
    top = each.detach().amax((-1, -2), keepdim=True)
    top = torch.where(top.isfinite(), top, 0.0)
    joint = (each - top).exp()
    total = joint.sum((-1, -2), keepdim=True)
    possible = total > 0
    weights = (joint / torch.where(possible, total, 1.0)).to(belief.mean.dtype)
    log_prob = torch.where(possible, torch.where(possible, total, 1.0).log() + top, -torch.inf)[:, 0, 0]
    return MixtureOfGaussians(weights, *found), log_prob


# ------------------------------------------------------------------------------------------ observations


def observations(emission: Affine, data: Sequences) -> Observation:
    """What every y_t says in each regime (1 or K): (T, B, 1 or K, ...).

    Regimes stand in the place of time, and all steps of all sequences in that of sequences: one call for all.
    """
    length, batch = data.shape
    regimes = emission.matrix.shape[-3]

    def front(x: Tensor, rank: int) -> Tensor:
        if x.dim() == rank + 1:
            return x[:, None]
        return x.expand(length, batch, *x.shape[2:]).movedim(2, 0).flatten(1, 2)

    def each(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.flatten(0, 1).expand(regimes, *([-1] * (x.dim() - 1)))

    y = data.y if data.lengths is None or data.y is None else torch.where(data.within[..., None], data.y, 0.0)
    affine = Affine(*[front(x, rank) for x, rank in zip(emission, (2, 1, 2), strict=True)])
    observed = data.observed if data.y is not None else torch.zeros_like(data.within)
    found = observation(affine, Sequences(y=each(y), observed=each(observed)))

    def back(x: Tree) -> Tree:
        if isinstance(x, Shared):
            return x if x.value.dim() == 0 else Shared(x.value[None])
        if x.shape[1] == 1 and length * batch > 1:
            return Shared(x[:, 0])
        return x.unflatten(1, (length, batch)).movedim(0, 2)

    return Observation(*[back(x) for x in found])


# ---------------------------------------------------------------------------------------------- backwards


def corrected(
    transition: Any, belief: MixtureOfGaussians, move: Moves, later: MixtureOfGaussians
) -> tuple[MixtureOfGaussians, Tensor]:
    r"""z_t and its regime under a belief about z_{t+1} and its regime, and p(s_t, s_{t+1}), by expectation correction.

    Component i of z_t weighs p(j, l | y) E p(i | s_{t+1} = j, z_{t+1}, y_<=t), the average over component l of the
    later belief in regime j, by quadrature. Together with i z_{t+1} has a mean and covariance of its own, from which
    Rauch, Tung and Striebel lead to z_t. Where z_{t+1} is known, as on a drawn path, nothing is approximated.

    Source:
        Barber, JMLR 2006, section 3, which takes the average at the mean of z_{t+1}; Kim, Journal of Econometrics 60,
        1994, leaves z_{t+1} out of it.
    """
    nodes: Any = move.nodes
    branched = transition.branch(components(belief), move.tables, nodes)  # (B, K, C)
    regimes, each = belief.weights.shape[-2:]
    size, many, tiny = branched.weights.shape, later.weights.shape[-1], torch.finfo(belief.mean.dtype).tiny
    ahead = moved(branched, move.affine)
    z = later.mean[..., None, :] + nodes.at @ later.scale.mT  # (B, K, L, N, D)
    there = branched.weights[..., None] > 0
    log = _log_density(z.flatten(2, 3)[:, :, None], ahead.mean[..., None, :], ahead.scale)
    log = torch.where(there, log + torch.where(there, branched.weights[..., None], 1.0).log(), -torch.inf)
    log = torch.where(there.any(2, keepdim=True), log, 0.0)  # a regime that nothing leads to has no weight later
    joint = log.softmax(2).unflatten(-1, (many, -1)) * nodes.weights  # (B, K, C, L, N)
    share = joint.sum(-1)
    tilted = _tilted(z[:, :, None], joint / share.clamp_min(tiny)[..., None])
    matrices = Affine(*[x.unsqueeze(-1 - rank) for x, rank in zip(move.affine, (2, 1, 2), strict=True)])
    back = reverse(Gaussian(branched.mean, branched.scale), matrices)
    wide: Any = tree_map(lambda x: x.unsqueeze(3).expand(*size, many, *x.shape[3:]), back)
    known = follow(wide, tilted)
    axes = lambda x: x.unflatten(2, (regimes, each)).movedim(1, 3).flatten(2, 4)  # noqa: E731
    weights = later.weights[:, :, None] * share
    pairs = weights.unflatten(2, (regimes, each)).sum((-1, -2)).mT
    return MixtureOfGaussians(axes(weights), axes(known.mean), axes(known.scale)), pairs


def _tilted(z: Tensor, share: Tensor) -> Gaussian:
    """Mean and root of the covariance of points (..., N, D) by their shares (..., N)."""
    mean = (share[..., None, :] @ z)[..., 0, :]
    tiny = torch.finfo(z.dtype).tiny
    return Gaussian(mean, lower(((z - mean[..., None, :]) * share.clamp_min(tiny).sqrt()[..., None]).mT))


def _log_density(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Log N(x; mean, scale scale') but for 2 pi, (B, K, C, L); a direction without variance gets that of rounding."""
    floor = torch.finfo(scale.dtype).eps ** 0.5 * scale.abs().amax((-1, -2), keepdim=True)
    floor = floor.clamp_min(torch.finfo(scale.dtype).tiny ** 0.25)
    eye = torch.eye(scale.shape[-1], dtype=scale.dtype, device=scale.device)
    root = lower(torch.cat([scale, floor * eye], -1))
    away = (x - mean).mT.expand(*root.shape[:-1], -1)
    white = torch.linalg.solve_triangular(root, away, upper=False)
    return -0.5 * white.square().sum(-2) - root.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)


def _within(inside: Tensor, now: Tree, past: Tree) -> Tree:
    """`now` where a sequence goes on, `past` elsewhere."""
    return tree_map(lambda a, b: torch.where(inside.view(-1, *[1] * (a.dim() - 1)), a, b), now, past)


def _unseen(prepared: Prepared, shape: tuple[int, int]) -> Sequences:
    """The shape of the data alone: what was observed is in `prepared`."""
    like = prepared.likelihoods.y.y
    return Sequences(observed=like.new_ones(shape, dtype=torch.bool), lengths=prepared.lengths)


# ------------------------------------------------------------------------------------------------- method


class MixtureFilter(Method):
    """A filter that keeps a mixture of normal distributions in every regime: which ones, is what is to be written.

    With K regimes there are K^t paths of them after t steps; for each a Kalman filter gives p(z_t | path, y) and the
    path's weight. `ahead` says what goes into the next move, `kept` what stays once y_t is known. A recurrent jump is
    averaged over z by Gauss-Hermite quadrature with `order` points along each axis, or by the cubature rule where the
    grid would be large.
    """

    accepts = (SwitchingStart, SwitchingTransition, SwitchingEmission)
    takes_powers = False

    def __init__(self, order: int, remembered: int, paths: int):
        if order < 2 or paths < 1:
            raise StatespanError(f"{type(self).__name__}(order={order}, paths={paths}): use at least 2 and 1")
        self.order = order
        self.searched = paths
        """How many paths of regimes `decode` goes on with."""
        self.remembered = remembered
        """How many components a regime keeps in hindsight."""
        self.structured = StructuredPosterior()

    @abstractmethod
    def places(self, regimes: int) -> int:
        """How many components a regime has before y_t is known."""

    @abstractmethod
    def ahead(self, model: Any, belief: MixtureOfGaussians, move: Any) -> MixtureOfGaussians:
        """What goes into the move: z_{t-1} by the next regime, (B, K, `places`)."""

    @abstractmethod
    def kept(self, belief: MixtureOfGaussians) -> MixtureOfGaussians:
        """What stays of the components once they are weighed."""

    def _nodes(self, model: Any) -> Nodes:
        """The points of a standard normal vector over which is averaged."""
        dim, like = model.transition.event.dim, next(model.transition.parameters())
        if self.order**dim <= MOST_NODES:
            points = grid(dim, self.order, like.dtype, like.device)
            return Nodes(points.at, points.mean)
        points = symmetric(dim, float(dim), 0.0, like.dtype, like.device)
        return Nodes(points.at[1:], points.mean[1:])

    def exact(self, model: Any) -> bool:
        """With one regime, which is a Kalman filter."""
        return model.transition.states == 1

    def foretells(self, model: Any) -> bool:
        """Unless jumps look at z: merging keeps means and covariances, and affine moves need no more of them."""
        return not model.transition.recurrent

    def constants(self, model: Any) -> Tree:
        """p(s_1), and the chain's tables."""
        return model.initial.chain.probs(), model.transition.constants()

    def prepare(self, model: Any, constants: Tree, data: Sequences) -> tuple[Moves, Seen]:
        """The regimes' matrices, the chain's tables, and each step's observation with its gaps taken out."""
        move = model.transition.affine(data.u)
        affine = Affine(*[over_time(x, rank) for x, rank in zip(move, (3, 2, 3), strict=True)])
        moves = Moves(
            model.initial.chain.given(data.u, constants[0]),
            Shared(model.initial.gaussians()),
            model.transition.tables(data.u, constants[1]),
            affine,
            Shared(self._nodes(model)),
        )
        excluded = None if data.states is None else excluded_states(data.states, model.transition.states)
        return moves, Seen(observations(model.emission.affine(data.u), data), excluded)

    def init(self, model: Any, move: Moves, batch: int) -> MixtureOfGaussians:
        """p(s_1, z_1)."""
        first: Any = move
        regimes = model.transition.states
        mean, scale = (x.expand(batch, regimes, *x.shape[1:]) for x in first.vectors)
        start = MixtureOfGaussians(first.initial.expand(batch, -1)[..., None], mean[:, :, None], scale[:, :, None])
        return reduce(start, self.places(regimes))

    def predict(self, model: Any, belief: Any, move: Moves) -> MixtureOfGaussians:
        """Jump, then every component through its regime's move."""
        return moved(self.ahead(model, belief.state, move), move.affine)

    def update(
        self, model: Any, belief: MixtureOfGaussians, likelihood: Seen
    ) -> tuple[MixtureOfGaussians, Float[Tensor, " B"]]:
        """Kalman's update of every component, weighed by how well it told y_t."""
        found, log_prob = conditioned(belief, likelihood)
        return self.kept(found), log_prob

    def backward(self, model: Any, belief: Any, move: Moves, later: Any) -> MixtureOfGaussians:
        """By expectation correction; given the filtered belief exact where `later` is a drawn state."""
        found, _ = corrected(model.transition, belief.state, move, later.state)
        return reduce(found, belief.state.weights.shape[-1])

    def smooth(self, model: Any, prepared: Prepared, belief: Any, shape: tuple[int, int]) -> MixtureOfGaussians:
        """By expectation correction."""
        return self.hindsight(model, prepared, belief, _unseen(prepared, shape)).smoothed

    def hindsight(self, model: Any, prepared: Prepared, belief: Any, data: Sequences, pairs: bool = False) -> Hindsight:
        """Filter once, then one loop back; with `pairs` p(s_t = i, s_{t+1} = j | y), zero past each end."""
        trace = run(model, self, data, belief, ("filtered", "log_prob"), prepared=prepared)
        assert trace.log_prob is not None
        length = len(trace.log_prob)
        filtered, moves = unstack(trace.filtered, length), unstack(prepared.moves, length)
        smoothed, joint = [reduce(filtered[-1], self.remembered)], []
        for t in range(length - 2, -1, -1):
            now, both = corrected(model.transition, filtered[t], moves[t + 1], smoothed[-1])
            now = reduce(now, self.remembered)
            if prepared.lengths is not None:
                inside, last = prepared.lengths - 1 > t, reduce(filtered[t], self.remembered)
                now, both = _within(inside, now, last), _within(inside, both, torch.zeros_like(both))
            smoothed.append(now)
            joint.append(both)
        regimes = model.transition.states
        blank = trace.log_prob.new_zeros(0, data.shape[1], regimes, regimes)
        found = None if not pairs else torch.stack(joint[::-1]) if joint else blank
        return Hindsight(stack(smoothed[::-1]), trace.log_prob, found)

    def expect(self, model: Any, constants: Tree, data: Sequences) -> Expected:
        """By a posterior of vectors times one of regimes: its lower bound of log p, and its statistics."""
        seen = observations(model.emission.affine(data.u), data)
        return self.structured.expect(model, constants, data, self, seen)

    def breadth(self, model: Any, data: Sequences) -> int:
        """The numbers of all covariances."""
        regimes = model.transition.states
        return regimes * self.places(regimes) * model.transition.event.dim**2

    def fill(self, model: Any, constants: Tree, data: Sequences) -> Tensor:
        """The mean of y over the smoothed regimes, and for the missing part of a row what the rest says of it."""
        known = in_hindsight(model, self, data, constants)
        emission, mean = model.emission.affine(data.u), averaged(known.weights, known.mean)
        last = emission.matrix.shape[-3] - 1

        def one(k: int) -> Tensor:
            own = [x.select(-1 - rank, min(k, last)) for x, rank in zip(emission, (2, 1, 2), strict=True)]
            return known.probs[..., k, None] * filled(Affine(*own), mean[..., k, :], data)

        return torch.stack([one(k) for k in range(model.transition.states)]).sum(0)

    def decode(self, model: Any, constants: Tree, data: Sequences, k: int) -> tuple[Tensor, Tensor]:
        """The k likeliest paths of regimes and log p(path, y), by Viterbi's algorithm on the last regimes.

        Exact up to L + 1 steps with K^L <= `paths` of the method (see `best_regimes`), but for a recurrent jump.
        """
        from statespan.methods.regime_paths import best_regimes

        moves, seen = self.prepare(model, constants, data)
        return best_regimes(model, moves, seen, data.within, k, max(self.searched, k))

    def emit(self, model: Any, constants: Tree, belief: Any, u: Tree) -> Distribution:
        """The mixture of normal distributions."""
        state = belief.state
        affine = Affine(*[x.unsqueeze(-1 - r) for x, r in zip(model.emission.affine(u), (2, 1, 2), strict=True)])
        each = emitted(affine, Gaussian(state.mean, state.scale))
        normal = Normal(each.mean.flatten(-3, -2), scale_tril=each.scale_tril.flatten(-4, -3), validate_args=False)
        return MixtureSameFamily(Categorical(probs=state.weights.flatten(-2), validate_args=False), normal)
