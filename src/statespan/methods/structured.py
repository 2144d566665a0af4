"""The E-step of switching linear models: a posterior of the vectors times one of the regimes, each exact in itself."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from statespan.belief import Gaussian
from statespan.errors import StatespanError
from statespan.method import Expected, Hindsight, Method, Prepared, Statistics, closed_parts, prepare
from statespan.methods.finite import LastTime, Likelihood, OneChain, excluded_states
from statespan.methods.finite import Moves as Jumps
from statespan.methods.forward import Forward, expectations
from statespan.methods.kalman import Kalman, Observation, complete
from statespan.part import Affine
from statespan.parts.inputs import SoftmaxTransition
from statespan.parts.linear import lower
from statespan.sequences import Sequences
from statespan.tree import Shared, Tree

LOG_2PI = math.log(2 * math.pi)


class Rows(NamedTuple):
    """log p = constant - |y - H x|^2 / 2 in every regime: H (..., 1 or K, N, width of x) and y (..., 1 or K, N).

    For a move x is (z_t, z_{t-1}).
    """

    matrix: Tensor
    y: Tensor
    constant: Tensor


class Equations(NamedTuple):
    """Of the start, the moves into t = 2 ... T, and what is seen."""

    start: Rows
    moves: Rows
    seen: Rows


class Vectors(NamedTuple):
    """q(z): means (T, B, D), roots (T, B, D, D), and cov(z_t, z_{t+1}), (T - 1, B, D, D)."""

    mean: Tensor
    scale: Tensor
    pairs: Tensor


class Settled(NamedTuple):
    """What an E-step goes on from: q(s_t), and for jumps that look at z q(s_t, s_{t+1}) and E z_t, (T - 1, B, ...)."""

    regimes: Tensor
    pairs: Tensor | None
    mean: Tensor | None


class StructuredPosterior:
    r"""q(z) q(s) in place of p(z, s | y): a Gaussian chain and a chain of regimes, each the best for the other.

    q(z) is a Kalman smoother's, of rows of all regimes, each row times the root of q(s_t = k); q(s) is that of
    forward-backward under E_q(z) log p(z_t, y_t | z_{t-1}, s_t = k). The two in turn raise

        log p(y) >= E log p(y, z, s) - E log q(z) - E log q(s),

    and so does the M-step under them: EM never falls. The next E-step on the same model and data goes on from q(s).

    Where jumps look at z, log p(s_t | s_{t-1}, z_{t-1}) is no quadratic of z; a parabola below it that touches it at
    E z_{t-1} stands in for it, in q(z) as further rows, in q(s) as a table and a loss a step. The bound is lower by
    that, and what is said of EM holds of it.

    Args:
        sweeps: at most this many turns an E-step.
        tolerance: stop when no probability of a regime moves by more than this.

    Source:
        Ghahramani and Hinton, "Variational learning for switching state-space models", Neural Computation 12, 2000,
        section 5, with one vector that all regimes move. The parabola: Boehning 1992; in a model like this one:
        Linderman et al., AISTATS 2017, who augment by Polya-gamma variables instead.
    """

    def __init__(self, sweeps: int = 10, tolerance: float = 1e-4):
        self.sweeps, self.tolerance = sweeps, tolerance
        self._settled = LastTime()

    @torch.no_grad()
    def expect(self, model: Any, constants: Tree, data: Sequences, method: Method, seen: Observation) -> Expected:
        """The bound of every step, and the parts' statistics.

        Args:
            model: a switching linear model.
            constants: what the method's `constants` gave.
            data: the sequences.
            method: a filter, whose smoothed regimes are where the first E-step starts.
            seen: the observations in every regime, their gaps taken out.
        """
        before = self._settled.of(model)
        settled = before.get(data.y)
        if settled is None:
            prepared = prepare(model, method, data, constants)
            settled = _first(model, method.hindsight(model, prepared, None, data, pairs=True))
        equations = _equations(model, data, seen)

        def turn(settled: Settled) -> tuple[Vectors, Tensor, Settled, Tensor]:
            vectors = _vectors(model, equations, settled, data)
            log = _expected(equations, vectors, data)
            recurrent = model.transition.recurrent
            now, pairs, log_prob = self._regimes(model, constants, data, log, vectors, None, counting=recurrent)
            looked = (pairs[1:], vectors.mean[:-1]) if recurrent else (None, None)
            return vectors, log, Settled(now, *looked), log_prob

        vectors, log, now, log_prob = turn(settled)
        for _ in range(self.sweeps - 1):
            if float((now.regimes - settled.regimes)[data.within].abs().max()) < self.tolerance:
                break
            settled = now
            vectors, log, now, log_prob = turn(settled)
        before[data.y] = now
        weighted, counts, _ = self._regimes(model, constants, data, log, vectors, data.weights, counting=True)
        bound = log_prob + _entropy(vectors, data)
        bound = torch.where(data.within, bound, 0.0)
        return Expected(bound, _statistics(model, data, vectors, weighted, counts))

    def _regimes(
        self,
        model: Any,
        constants: Tree,
        data: Sequences,
        log: Tensor,
        vectors: Vectors,
        weights: Tensor | None,
        counting: bool,
    ) -> tuple[Tensor, Tree, Tensor]:
        """q(s_t = k), the expected jumps, and the log-normaliser of q(s) step by step."""
        if data.states is not None:
            log = log.masked_fill(excluded_states(data.states, model.transition.states), -torch.inf)
        if model.transition.recurrent:
            chain = OneChain(model.initial.chain, SoftmaxTransition())  # whose tables are each step's own
            table, loss = model.transition.bound(vectors.mean[:-1], vectors.scale[:-1] @ vectors.scale[:-1].mT)
            tables = torch.cat([torch.ones_like(table[:1]) if len(table) else log.new_ones(1, 1, 1, 1), table])
            log = log - torch.cat([torch.where(data.within[1:, :, None], loss, 0.0), torch.zeros_like(log[:1])])
        else:
            chain = OneChain(model.initial.chain, model.transition.chain)
            tables = model.transition.tables(data.u, constants[1])
        moves = Jumps(chain.initial.given(data.u, constants[0]), tables, Shared(None))
        prepared = Prepared(moves, Likelihood.of(log), data.lengths)
        return expectations(chain, Forward(), prepared, None, data.shape, weights, counting)


def _first(model: Any, known: Hindsight) -> Settled:
    """What a filter says in hindsight."""
    regimes: Any = known.smoothed
    if not model.transition.recurrent:
        return Settled(regimes.probs, None, None)
    return Settled(regimes.probs, known.pairs, regimes.summary()["mean"][:-1])


def _whitened(scale: Tensor, matrix: Tensor, y: Tensor, place: str) -> Rows:
    """Equations y = matrix x + scale e as rows of unit noise."""
    root = lower(scale)
    sizes = root.diagonal(dim1=-2, dim2=-1).abs()
    if not bool((sizes.amin(-1) > sizes.amax(-1) * 1e-7).all()):
        raise StatespanError(
            f"EM of a switching linear model needs noise in every direction, and {place} has none in one, from the "
            "start or by the fit; hold that noise above zero, or fit by ss.LBFGS()"
        )
    front = torch.broadcast_shapes(root.shape[:-2], matrix.shape[:-2], y.shape[:-1])
    both = torch.cat([matrix.expand(*front, -1, -1), y[..., None].expand(*front, -1, 1)], -1)
    rows = torch.linalg.solve_triangular(root.expand(*front, -1, -1), both, upper=False)
    return Rows(rows[..., :-1], rows[..., -1], -sizes.log().sum(-1).expand(front))


def _equations(model: Any, data: Sequences, seen: Observation) -> Equations:
    """The model's densities in every regime as rows."""
    start, move = model.initial.gaussians(), model.transition.affine(data.u)
    if move.matrix.dim() > 3 or move.offset.dim() > 2:
        move = Affine(*[x[1:] if x.dim() > rank else x for x, rank in zip(move, (3, 2, 3), strict=True)])
    eye = torch.eye(start.mean.shape[-1], dtype=start.mean.dtype, device=start.mean.device)
    first = _whitened(start.scale, eye, start.mean, "its start")
    both = torch.cat([eye.expand_as(move.matrix), -move.matrix], -1)
    moves = _whitened(move.scale, both, move.offset, "its move")
    matrix, scale, log = (x.value if isinstance(x, Shared) else x for x in (seen.matrix, seen.scale, seen.log_prob))
    rows = _whitened(scale, matrix, seen.y, "what is observed")
    half = 0.5 * len(eye) * LOG_2PI
    return Equations(
        first._replace(constant=first.constant - half),
        moves._replace(constant=moves.constant - half),
        rows._replace(constant=rows.constant + log.to(rows.constant)),
    )


def _stacked(rows: Rows, regimes: Tensor) -> Tensor:
    """The rows of all regimes (1 or K), each times the root of its probability (..., K): (..., N', width + 1)."""
    both = torch.cat([rows.matrix, rows.y[..., None]], -1)
    if both.shape[-3] == 1:
        return both.expand(*regimes.shape[:-1], *both.shape[-3:])[..., 0, :, :]
    return (both * regimes.clamp_min(0).sqrt()[..., None, None]).flatten(-3, -2)


def _triangle(rows: Tensor) -> Tensor:
    """As few rows that say the same: the triangle of a QR."""
    return torch.linalg.qr(rows, mode="r")[1]


def _vectors(model: Any, equations: Equations, settled: Settled, data: Sequences) -> Vectors:
    """q(z) under q(s), (T, B, K), by the Kalman smoother.

    The rows of a move are turned until those that hold z_t are as many as z_t has numbers: these are a move, and what
    is left is an observation of z_{t-1}.
    """
    length, batch = data.shape
    within = data.within
    regimes = torch.where(within[..., None], settled.regimes, 1 / settled.regimes.shape[-1])
    first = _triangle(_stacked(equations.start, regimes[0]))
    dim = first.shape[-1] - 1
    moves = _triangle(_stacked(equations.moves, regimes[1:]))  # (T - 1, B, N, 2 D + 1): z_t, z_{t-1}, 1
    left = moves[..., dim:, dim:]
    if settled.pairs is not None:  # where a jump looked at z_{t-1}
        left = torch.cat([left, model.transition.seen(settled.pairs, settled.mean)], -2)
    left = left * within[1:, :, None, None]
    left = (
        torch.cat([left, left.new_zeros(1, *left.shape[1:])]) if length > 1 else first.new_zeros(1, batch, 0, dim + 1)
    )
    rows = torch.cat([_stacked(equations.seen, regimes) * within[..., None, None], left], -2)
    rows = _triangle(rows)
    eye = torch.eye(dim, dtype=rows.dtype, device=rows.device)
    inverse = lambda x: torch.linalg.solve_triangular(x, eye.expand_as(x), upper=True)  # noqa: E731
    root = torch.cat([inverse(first[..., :dim, :dim])[None], inverse(moves[..., :dim, :dim])])
    before = torch.cat([rows.new_zeros(1, batch, dim, dim), -moves[..., :dim, dim:-1]])
    offset = torch.cat([first[None, :, :dim, -1], moves[..., :dim, -1]])
    affine = Affine(root @ before, (root @ offset[..., None])[..., 0], root)
    noise = torch.eye(rows.shape[-2], dtype=rows.dtype, device=rows.device)
    none = torch.zeros((), dtype=torch.float64, device=rows.device)
    told = Observation(rows[..., -1], rows[..., :-1], Shared(noise), Shared(none))
    nowhere = Gaussian(rows.new_zeros(batch, dim), rows.new_zeros(batch, dim, dim))
    chain, blank = OneChain(None, model.transition.dynamics[0]), Sequences(observed=within, lengths=data.lengths)
    known = Kalman().hindsight(chain, Prepared(affine, told, data.lengths), nowhere, blank, pairs=True)
    assert known.pairs is not None
    inside = within[..., None, None]  # past its end a sequence has nothing to say, and no moments
    mean, scale = torch.where(within[..., None], known.smoothed.mean, 0.0), known.smoothed.scale
    return Vectors(mean, torch.where(inside, scale, eye), torch.where(inside[1:], known.pairs, 0.0))


def _squares(rows: Rows, mean: Tensor, root: Tensor) -> Tensor:
    """E log p of every regime for x ~ N(mean, root root'), (..., D) and (..., D, M): (..., 1 or K)."""
    away = rows.y - (rows.matrix @ mean[..., None, :, None])[..., 0]
    spread = rows.matrix @ root[..., None, :, :]
    return rows.constant - 0.5 * (away.square().sum(-1) + spread.square().sum((-1, -2)))


def _expected(equations: Equations, vectors: Vectors, data: Sequences) -> Tensor:
    """E_q(z) log p(z_t, y_t | z_{t-1}, s_t = k), (T, B, K)."""
    mean, scale, _ = vectors
    start = _squares(equations.start, mean[0], scale[0])
    if len(mean) > 1:
        both = torch.cat([mean[1:], mean[:-1]], -1)
        gain, rest = _conditional(vectors)
        zeros = torch.zeros_like(rest)
        root = torch.cat([torch.cat([scale[1:], zeros], -1), torch.cat([gain @ scale[1:], rest], -1)], -2)
        moves = _squares(equations.moves, both, root)
        start, moves = torch.broadcast_tensors(start[None], moves[:1])[0], moves
        width = max(start.shape[-1], moves.shape[-1])
        total = torch.cat([start.expand(1, -1, width), moves.expand(*moves.shape[:-1], width)])
    else:
        total = start[None]
    seen = _squares(equations.seen, mean, scale)
    return total + torch.where(data.within[..., None], seen, 0.0)


def _conditional(vectors: Vectors) -> tuple[Tensor, Tensor]:
    """z_t = gain z_{t+1} + root e + ..., (T - 1, B, D, D) each."""
    scale = vectors.scale[1:]
    white = torch.linalg.solve_triangular(lower(scale), vectors.pairs.mT, upper=False)  # L^-1 cov(z_{t+1}, z_t)
    gain = torch.linalg.solve_triangular(lower(scale).mT, white, upper=True).mT
    left = vectors.scale[:-1] @ vectors.scale[:-1].mT - white.mT @ white
    return gain, torch.linalg.cholesky(0.5 * (left + left.mT))


def _entropy(vectors: Vectors, data: Sequences) -> Tensor:
    """-E log q(z), step by step, (T, B) float64: of z_t given z_{t+1}, and of the last."""
    own = vectors.scale.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1).double()
    dim = vectors.mean.shape[-1]
    if len(own) > 1:
        last = ~torch.cat([data.within[1:], data.within.new_zeros(1, data.shape[1])])
        _, rest = _conditional(vectors)
        after = rest.diagonal(dim1=-2, dim2=-1).log().sum(-1).double()
        own = torch.where(last, own, torch.cat([after, own[-1:]]))
    return own + 0.5 * dim * (1 + LOG_2PI)


def _shared(weights: Tensor, covariance: Tensor) -> Tensor:
    """Covariances (..., D, D) summed by each regime's weights (..., K): (K, D, D)."""
    return torch.einsum("nk,nij->kij", weights.flatten(0, -2), covariance.flatten(0, -3))


def _statistics(model: Any, data: Sequences, vectors: Vectors, weights: Tensor, counts: Tree) -> Statistics:
    """What the M-steps need, from regimes (T, B, K) that are zero past each end and weighed by sequence."""
    mean, scale, pairs = vectors
    covariance = scale @ scale.mT
    initial, transition, emission = closed_parts(model)
    first = later = seen = None
    if initial:
        first = model.initial.statistics(weights[0], data.u, mean[0], _shared(weights[0], covariance[0]))
    if transition:
        top = torch.cat([covariance[:-1], pairs], -1)
        joint = torch.cat([top, torch.cat([pairs.mT, covariance[1:]], -1)], -2)
        spread = _shared(weights[1:], joint)
        later = model.transition.statistics(counts, mean[:-1], mean[1:], spread, data.u, weights[1:], covariance[:-1])
    if emission:
        affine = model.emission.affine(data.u)
        count = affine.matrix.shape[-3]
        each = [weights.sum(-1)] if count == 1 else list(weights.unbind(-1))
        filled = []
        for k, weight in enumerate(each):
            own = Affine(*[x.select(-1 - rank, k) for x, rank in zip(affine, (2, 1, 2), strict=True)])
            filled.append(complete(own, data, mean, covariance, weight))
        y, spread, there = (list(x) for x in zip(*filled, strict=True))
        seen = model.emission.statistics(mean, y, spread, data.u, there)
    return Statistics(first, later, seen)
