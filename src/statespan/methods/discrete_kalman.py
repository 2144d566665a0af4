"""The discrete Kalman filter: a normal state seen through counts, successes or symbols."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from statespan.belief import Gaussian, squared
from statespan.errors import StatespanError
from statespan.method import Expected, Hindsight, Method, Prepared, Statistics, closed_parts, in_hindsight, prepare, run
from statespan.methods.kalman import Kalman, Observation, follow, over_time, reverse, sweep, told_of_states, unseen
from statespan.methods.updates import LaplaceApproximation, Seen, Update, spread_points
from statespan.part import Affine, GaussianInitial, LinearPart
from statespan.parts.generalised import PredictedEmission
from statespan.parts.linear import apply, inverse, lower, upright
from statespan.sequences import Sequences, any_of
from statespan.shapes import Float
from statespan.tree import Shared, Tree

ROUNDS = 100
"""Rounds of the search for the likeliest path, at most."""


class Reading(NamedTuple):
    """y_t, whether it is there, the law's base, and C and d of the predictors C z + d."""

    y: Tree
    there: Tensor | None
    base: Tree
    matrix: Tree
    offset: Tree


def _all(x: Tree) -> Tensor:
    """What time has in front, or is without it."""
    return x.value if isinstance(x, Shared) else x


def _after(x: Tree) -> Tensor:
    """The same from the second step on."""
    return x.value if isinstance(x, Shared) else x[1:]


class DiscreteKalman(Method):
    r"""Kalman's filter and smoother where y is not normal: z_t normal and linear, y_t ~ p(y | C z_t + d).

    A move is Kalman's. At an observation the predictors are normal; the directions of the state that they see (r of
    them, no more than there are predictors) are turned apart, `update` puts a normal for p(z | y) there, and the rest
    follows linearly. Smoothing is by Rauch, Tung and Striebel, on roots; each of `passes` then puts for every law the
    linear observation that it is near the smoothed path and smooths anew: Newton's method for the likeliest path, which
    is what `decode` gives, run to its end. log_prob is a sum of what `update` says of each step.

    Args:
        update: `LaplaceApproximation()` or `ConditionalMoments()`.
        passes: further passes of the smoother.

    Raises:
        StatespanError: a negative number of passes, or a diffuse start: it has no moments to go on from.

    Source:
        Fahrmeir, "Posterior mode estimation by extended Kalman filtering for multivariate dynamic generalized linear
        models", JASA 1992; Durbin and Koopman, Time Series Analysis by State Space Methods 2012, sections 10.6 and
        10.7; Eden, Frank, Barbieri, Solo and Brown 2004.

    Example:
        >>> import statespan as ss
        >>> model = ss.generalised_linear(ss.linear_gaussian(state=2, observed=3, seed=0), "categorical")
        >>> model.smooth([0, 2, None, 2], method=ss.DiscreteKalman(passes=2)).mean.shape
        torch.Size([4, 2])
    """

    accepts = (GaussianInitial, LinearPart, PredictedEmission)
    takes_labels = False
    takes_powers = False

    def __init__(self, update: Update | None = None, passes: int = 0):
        if passes < 0:
            raise StatespanError(f"DiscreteKalman(passes={passes}): use 0 or more")
        self.rule = LaplaceApproximation() if update is None else update
        self.passes, self.kalman = passes, Kalman()

    def exact(self, model: Any) -> bool:
        """Never: p(z | y) is not normal."""
        return False

    def constants(self, model: Any) -> Tree:
        """Nothing."""
        return ()

    def prepare(self, model: Any, constants: Tree, data: Sequences) -> tuple[Affine, Reading]:
        """The move's matrices, and C and d."""
        move = model.transition.affine(data.u)
        moves = Affine(over_time(move.matrix, 2), over_time(move.offset, 1), over_time(move.scale, 2))
        matrix, offset = model.emission.predictors(data.u)
        y = data.y
        if y is not None and data.lengths is not None:  # past its end a sequence may be anything, but possible
            y = torch.where(data.within.view(*data.shape, *[1] * (y.dim() - 2)), y, 0)
        base = None if y is None else model.emission.law.base(y, data.present).double()
        return moves, Reading(y, data.present, base, over_time(matrix, 2), over_time(offset, 1))

    def init(self, model: Any, move: Affine, batch: int) -> Gaussian:
        """p(z_1)."""
        start = model.initial.gaussian(batch)
        if start.factor is not None:
            raise StatespanError(
                f"{type(model.initial).__name__} is flat where an observation needs moments; use ss.NormalStart, or "
                "ss.generalised_linear, which makes it wide"
            )
        return start

    def predict(self, model: Any, belief: Any, move: Affine) -> Gaussian:
        """Kalman's step."""
        return self.kalman.predict(model, belief, move)

    def update(self, model: Any, belief: Any, likelihood: Reading) -> tuple[Any, Float[Tensor, " B"]]:
        """The directions that y sees, what `update` says of them, and what follows for the rest."""
        mean, scale = belief.mean, belief.scale
        if likelihood.y is None:
            return belief, torch.zeros(len(mean), dtype=torch.float64, device=mean.device)
        offset = apply(likelihood.matrix, mean) + likelihood.offset
        seen = likelihood.matrix @ scale  # (B, E, D): the predictors from a standard normal state
        if seen.shape[-2] < seen.shape[-1]:
            root = upright(lower(seen))
            turn = inverse(root) @ seen  # Q', of orthonormal rows, with C L = root Q'
            ahead = scale @ turn.mT
        else:  # points lie along the columns of the state's own root
            ahead = scale = upright(scale)
            turn, root = None, likelihood.matrix @ scale
        told = self.rule(Seen(model.emission.law, likelihood.y, likelihood.there, offset, root))
        after = ahead @ told.root
        after = after if turn is None else torch.cat([scale - ahead @ turn, after], -1)
        log_prob = told.log_prob.double() + likelihood.base
        return Gaussian(mean + apply(ahead, told.mean), lower(after)), log_prob

    def backward(self, model: Any, belief: Any, move: Affine, later: Any) -> Any:
        """Rauch, Tung and Striebel's."""
        return follow(reverse(belief.state, move), later.state)

    def smooth(self, model: Any, prepared: Prepared, belief: Any, shape: tuple[int, int]) -> Any:
        """By `hindsight`."""
        return self.hindsight(model, prepared, belief, unseen(prepared, shape)).smoothed

    def hindsight(self, model: Any, prepared: Prepared, belief: Any, data: Sequences, pairs: bool = False) -> Hindsight:
        """Filter, one sweep back, and the passes."""
        trace = run(model, self, data, belief, ("filtered", "log_prob"), prepared=prepared)
        inside = None if prepared.lengths is None else data.within[1:]
        moves = Affine(*[_after(x) for x in prepared.moves])
        smoothed, joint = sweep(trace.filtered, moves, inside, pairs)
        assert trace.log_prob is not None
        known = Hindsight(smoothed, trace.log_prob, joint)
        for _ in range(self.passes):
            known = self._pass(model, prepared, belief, known, pairs)
        return known

    def _pass(self, model: Any, prepared: Prepared, belief: Any, known: Hindsight, pairs: bool) -> Hindsight:
        """Every law as the linear observation that it is near the smoothed path, and Kalman's smoother."""
        told = tangent(model.emission.law, prepared.likelihoods, known.smoothed.mean)
        shape = known.smoothed.mean.shape[:2]
        again = Prepared(prepared.moves, told, prepared.lengths)
        found = self.kalman.hindsight(model, again, belief, unseen(again, (shape[0], shape[1])), pairs)
        return found._replace(log_prob=known.log_prob)

    def breadth(self, model: Any, data: Sequences) -> int:
        """The numbers of a covariance."""
        return model.transition.event.dim**2

    @torch.no_grad()
    def expect(self, model: Any, constants: Tree, data: Sequences) -> Expected:
        """Moments as Kalman's; for the emission slopes and curvatures over points that stand for each posterior.

        Source:
            Shumway and Stoffer 1982; Smith and Brown, "Estimating a state-space model from point process observations",
            2003.
        """
        prepared = prepare(model, self, data, constants)
        known = self.hindsight(model, prepared, None, data, pairs=True)
        mean, scale = known.smoothed.mean, known.smoothed.scale
        covariance = squared(scale)
        first, later, weights = told_of_states(model, data, mean, covariance, known.pairs)
        seen = None
        if closed_parts(model)[2]:
            points = spread_points(mean.shape[-1], mean)
            z = mean[..., None, :] + points.at @ scale.mT
            there = data.present
            some = weights if there is None else weights * any_of(there)
            y = prepared.likelihoods.y
            seen = model.emission.statistics(z, points.mean, y, there, data.u, some)
        return Expected(known.log_prob, Statistics(first, later, seen))

    def fill(self, model: Any, constants: Tree, data: Sequences) -> Tensor:
        """The mean of y under the smoothed belief (for symbols the likeliest), by quadrature."""
        return model.emission.law.fill(*_predictors(model, in_hindsight(model, self, data, constants), data.u))

    def decode(self, model: Any, constants: Tree, data: Sequences, k: int) -> tuple[Tensor, None]:
        """The likeliest path: passes until it moves no more."""
        if k > 1:
            raise TypeError("this posterior has one mode; ask for k=1, or sample_posterior for more paths")
        prepared = prepare(model, self, data, constants)
        known = self.hindsight(model, prepared, None, data)
        return likeliest(self.kalman, model, prepared, data, known.smoothed.mean)[:, :, None], None

    def emit(self, model: Any, constants: Tree, belief: Any, u: Tree) -> Distribution:
        """The mixture over points that stand for the belief; of a known state the law itself."""
        state = belief.state
        if not bool(state.scale.any()):
            matrix, offset = model.emission.predictors(u)
            return model.emission.law.distribution(apply(matrix, state.mean) + offset)
        return model.emission.law.mixture(*_predictors(model, state, u))


def _predictors(model: Any, belief: Gaussian, u: Tree) -> tuple[Tensor, Tensor]:
    """Weights (N,) and predictors (..., N, E) that stand for those of a belief (...)."""
    matrix, offset = model.emission.predictors(u)
    root = matrix @ belief.scale
    root = lower(root) if root.shape[-2] < root.shape[-1] else root
    points = spread_points(root.shape[-1], root)
    return points.mean, (apply(matrix, belief.mean) + offset)[..., None, :] + points.at @ root.mT


def tangent(law: Any, reading: Reading, z: Tensor) -> Observation:
    r"""The linear observations with the slope and the curvature that the law has at states (T, B, D).

    With R R' the curvature and g the slope at eta: R' C z' + e = R' C z + R^-1 g, e ~ N(0, I).

    Source:
        Durbin and Koopman, Time Series Analysis by State Space Methods 2012, section 10.6.
    """
    matrix = _all(reading.matrix)
    eta = apply(matrix, z) + _all(reading.offset)
    near = law.near(eta, reading.y, reading.there)
    rows = law.root(near.shape, matrix.expand(*eta.shape, -1))
    told = apply(rows, z) + law.white(near.slope, near.shape)
    if rows.shape[-2] > rows.shape[-1]:  # as many rows as there are states say the same
        turn, rows = torch.linalg.qr(rows, mode="reduced")
        told = apply(turn.mT, told)
    return Observation(told, rows, Shared(torch.eye(rows.shape[-2]).to(eta)), Shared(told.new_zeros(()).double()))


@torch.no_grad()
def likeliest(kalman: Kalman, model: Any, prepared: Prepared, data: Sequences, z: Tensor) -> Tensor:
    r"""The path that maximises log p(z, y), (T, B, D), by Newton's method with halved steps from the path z.

    A smoothed path is z_0 + P C' l, with P and z_0 the moments of z before y is known; so its -2 log p(z) is
    l' (eta - eta_0), without an inverse, and along a step both change linearly.

    Source:
        Durbin and Koopman 2012, section 10.6; Shephard and Pitt 1997.
    """
    law, reading, shape = model.emission.law, prepared.likelihoods, data.shape

    def smoothed(told: Observation) -> Tensor:
        again = Prepared(prepared.moves, told, prepared.lengths)
        return kalman.hindsight(model, again, None, unseen(again, shape)).smoothed.mean

    def predictors(z: Tensor) -> Tensor:
        return apply(_all(reading.matrix), z) + _all(reading.offset)

    def value(eta: Tensor, pull: Tensor) -> Tensor:
        return (law.near(eta, reading.y, reading.there).log_prob - 0.5 * (pull * (eta - first)).sum(-1)).sum(0)

    one = z.new_ones(1, 1)
    nothing = Observation(z.new_zeros(*shape, 1), Shared(0 * z[0, :1]), Shared(one), Shared(one[0, 0]))
    first = predictors(smoothed(nothing))
    now: tuple[Tensor, ...] = ()
    for _ in range(ROUNDS):
        eta = predictors(z)
        new = smoothed(tangent(law, reading, z))
        there = predictors(new)
        near = law.near(eta, reading.y, reading.there)
        pull = near.slope + law.bend(near.shape, eta - there)
        after, size = (new, there, pull), z.new_ones(shape[1])
        if now:
            before = value(now[1], now[2])
            for _ in range(ROUNDS):
                after = tuple(a + size[:, None] * (b - a) for a, b in zip(now, (new, there, pull), strict=True))
                short = ~(value(after[1], after[2]) >= before - torch.finfo(z.dtype).eps ** 0.5 * (1 + before.abs()))
                if not bool(short.any()):
                    break
                size = torch.where(short, size / 2, size)
        still = bool(((new - z).abs() <= torch.finfo(z.dtype).eps ** 0.5 * (1 + z.abs())).all())
        now, z = after, after[0]
        if still:
            break
    return z
