"""Linear Gaussian filtering in square-root form, from a known or a diffuse start."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from statespan.belief import Diffuse, Gaussian, squared
from statespan.errors import StatespanError
from statespan.method import (
    Expected,
    Hindsight,
    Method,
    Prepared,
    Statistics,
    closed_parts,
    find_kernel,
    in_hindsight,
    prepare,
    run,
)
from statespan.part import Affine, GaussianInitial, LinearPart
from statespan.parts.linear import apply, factor, lower, upright
from statespan.sequences import Sequences
from statespan.shapes import Float
from statespan.tree import Shared, Tree, stack, tree_map


class Normal(MultivariateNormal):
    """A joint normal that knows the quantiles of its coordinates."""

    def quantile(self, levels: Tensor) -> Tensor:
        """Mean + deviation x the standard normal's quantile: (...) levels to (..., *batch, D)."""
        standard = torch.special.ndtri(levels.to(self.mean))
        return self.mean + self.variance.sqrt() * standard.view(*levels.shape, *[1] * self.mean.dim())


class Observation(NamedTuple):
    """What y_t says: the residual y - d with zeros where missing, C likewise, a root of the noise.

    The root is (E, E), or (E, 2E) where something is missing: a missing coordinate observes nothing but noise.
    `log_prob` is what of the density depends on no state: the powers of 2 pi, and what compression took out.
    """

    y: Tensor
    matrix: Tree
    scale: Tree
    log_prob: Tree


class Settled(NamedTuple):
    """What an observation says of the flat directions, and what is left of it for the rest (see `settle`)."""

    gain: Tensor
    rest: Tensor
    own: Tensor
    factor: Tensor
    log_determinant: Tensor


class Reversed(NamedTuple):
    """z_t = mean + gain (z_{t+1} - ahead) + scale e, flat along `factor`: p(z_t | z_{t+1}, y_<=t)."""

    mean: Tensor
    ahead: Tensor
    gain: Tensor
    scale: Tensor
    factor: Tensor | None


def _rounding(root: Tensor) -> float:
    """Singular values of (..., D, D) below this share of the largest are rounding."""
    return 10 * root.shape[-1] * torch.finfo(root.dtype).eps


def over_time(x: Tensor, rank: int) -> Tree:
    """`Shared` where it has only its own axes, else as it is: with time and batch in front."""
    return Shared(x) if x.dim() == rank else x


def settle(matrix: Tensor, factor: Tensor) -> Settled:
    r"""Split y = C (z + W d) + ... into the part that tells the flat d and the part that does not see it.

    With H = C W of rank r and T = H^g a generalised inverse, z gains W T (y - C m), the rows (I - H T) y are ordinary
    observations (r of them of nothing), W (I - T H) stays flat, and the density of what settled d is 1 / |det H|,
    taken between the singular vectors of H. These are held fixed in the gradient; H is not.

    Args:
        matrix: C, (..., E, D).
        factor: W, (..., D, q).

    Source:
        de Jong 1991; Koopman, "Exact initial Kalman filtering and smoothing", JASA 1997. The split by singular vectors
        gives both at once and needs no innovation without noise to be inverted.
    """
    seen = matrix @ factor  # H, (..., E, q)
    outputs, width = seen.shape[-2:]
    short = min(outputs, width)
    left, size, right = torch.linalg.svd(seen.detach(), full_matrices=True)
    scale = (matrix.detach().abs() @ factor.detach().abs()).amax((-1, -2))
    told = (size > scale[..., None] * torch.finfo(seen.dtype).eps ** 0.5).to(seen.dtype)
    turned = (left.mT @ seen @ right.mT)[..., :short, :short] * told[..., :, None] * told[..., None, :]
    square = turned + torch.diag_embed(1 - told)
    inverse = torch.linalg.inv(square) * told[..., :, None] * told[..., None, :]
    solve = right.mT[..., :short] @ inverse @ left[..., :short].mT  # T, (..., q, E)
    own = torch.nn.functional.pad(told, (0, outputs - short))
    rest = (1 - own)[..., None] * (left.mT - left.mT @ seen @ solve)
    left_over = factor - factor @ solve @ seen
    flat = left_over @ _remaining(factor, left_over, told.sum(-1))
    return Settled(factor @ solve, rest, own, flat, torch.linalg.slogdet(square).logabsdet)


def _remaining(before: Tensor, after: Tensor, told: Tensor) -> Tensor:
    """Turns what is left of a factor so that as many columns are not zero as directions are flat, (..., q, q)."""
    _, size, right = torch.linalg.svd(after.detach(), full_matrices=True)
    width, short = after.shape[-1], size.shape[-1]
    count = before.detach().ne(0).any(-2).sum(-1) - told
    rounding = before.detach().abs().amax((-1, -2)) * _rounding(after)
    kept = (torch.arange(short, device=after.device) < count[..., None]) & (size > rounding[..., None])
    return right.mT * torch.nn.functional.pad(kept.to(after.dtype), (0, width - short))[..., None, :]


def absorb(top: Tensor, bottom: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the joint root [top; bottom] of (y, z): the innovation's root, cov(y, z) over it, what is left of z's root."""
    turn, innovation = torch.linalg.qr(top.mT, mode="reduced")
    cross = bottom @ turn
    return innovation.mT, cross, lower(bottom - cross @ turn.mT)


def _determined(innovation: Tensor, top: Tensor) -> Tensor:
    """Which coordinates of y those before them determine, (..., E) bool, from the innovation's root and all of it."""
    least = (20 * top.shape[-1] * torch.finfo(top.dtype).eps * top.detach().norm(dim=-1)).clamp_min(1e-140)
    return innovation.detach().diagonal(dim1=-2, dim2=-1).abs() <= least


def without_determined(top: Tensor, residual: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates of y that those before them determine become observations of nothing, with a noise of their own.

    Args:
        top: the root of y's covariance, (B, E, N).
        residual: (B, E).
        size: how large the terms of the residual are, (B, E).

    Returns:
        The root (B, E, N + E), the residual, zero there, and what to add to log p, (B,): these coordinates have no
        density, and -inf where one was other than it had to be.
    """
    outputs = top.shape[-2]
    unit = torch.eye(outputs, dtype=top.dtype, device=top.device).expand(*top.shape[:-1], -1)
    own, whole = torch.nn.functional.pad(unit, (top.shape[-1], 0)), torch.nn.functional.pad(top, (0, outputs))
    known = top.new_zeros(top.shape[:-1], dtype=torch.bool)
    for j in range(outputs):  # in order: what a coordinate adds is known once those before it are
        kept = torch.where(known[..., None], own, whole)
        turn, innovation = torch.linalg.qr(kept.mT, mode="reduced")
        known[..., j] |= _determined(innovation.mT, kept)[..., j]
    kept = torch.where(known[..., None], own, whole)
    turn, innovation = torch.linalg.qr(kept.mT, mode="reduced")
    seen = torch.where(known, 0.0, residual)
    told = whole @ turn @ torch.linalg.solve_triangular(innovation.mT, seen[..., None], upper=False)
    wrong = (known & ((residual - told[..., 0]).abs() > 1e-9 * (size + told[..., 0].abs()) + 1e-12)).any(-1)
    return kept, seen, torch.where(wrong, -torch.inf, 0.5 * math.log(2 * math.pi) * known.sum(-1).double())


class Kalman(Method):
    r"""The Kalman filter and the Rauch-Tung-Striebel smoother, on square roots of covariances.

    predict: m = A m + b, P = A P A' + Q;  update: S = C P C' + R, K = P C' S^-1, m += K (y - C m - d).
    Each is done by QR decompositions of stacked roots, so that a covariance never loses its sign. A missing coordinate
    is an observation of nothing: its row of C is zero and its noise is 1, and its share of the density is taken out.
    An observation wider than the state is compressed to the state's width by one QR of R^(-1/2) C, for all t at once.
    A coordinate that those before it determine has no density: it adds 0, or -inf where it is not what it must be.
    From a diffuse start the flat directions are carried beside the covariance until observations have settled them.

    Args:
        steady: where nothing changes in time, the gain is taken as settled once a step changes the covariance's root by
            less than this share of its largest entry (by the kernel; the scan goes on); 0: never.

    Source:
        Sarkka and Svensson, Bayesian Filtering and Smoothing 2023, sections 6.3, 8.4, 12.2 and 12.4; de Jong 1991.

    Example:
        >>> import statespan as ss
        >>> nile = ss.linear_gaussian(dynamics=[[1.0]], state_noise=[[1469.1]], observation=[[1.0]],
        ...     observation_noise=[[15098.5]], initial_mean=[1000.0], initial_covariance=[[1e4]])
        >>> nile.filter([1120.0, 1160.0, float("nan")], method=ss.Kalman()).mean[:, 0].round().tolist()
        [1048.0, 1085.0, 1085.0]
    """

    accepts = (GaussianInitial, LinearPart, LinearPart)
    takes_labels = False
    takes_powers = False

    def __init__(self, steady: float = 1e-14):
        self.steady = steady

    def exact(self, model: Any) -> bool:
        """Always."""
        return True

    def constants(self, model: Any) -> Tree:
        """Nothing."""
        return ()

    def prepare(self, model: Any, constants: Tree, data: Sequences) -> tuple[Affine, Observation]:
        """The move's matrices, and each step's observation with its gaps taken out."""
        move = model.transition.affine(data.u)
        moves = Affine(over_time(move.matrix, 2), over_time(move.offset, 1), over_time(move.scale, 2))
        return moves, observation(model.emission.affine(data.u), data)

    def init(self, model: Any, move: Affine, batch: int) -> Any:
        """p(z_1)."""
        return model.initial.gaussian(batch)

    def predict(self, model: Any, belief: Any, move: Affine) -> Any:
        """Moments after the move."""
        belief = belief.state
        scale = move.scale.expand(len(belief.mean), -1, -1)
        mean = apply(move.matrix, belief.mean) + move.offset
        root = lower(torch.cat([move.matrix @ belief.scale, scale], -1))
        return _like(belief, mean, root, None if belief.factor is None else move.matrix @ belief.factor)

    def update(self, model: Any, belief: Any, likelihood: Observation) -> tuple[Any, Float[Tensor, " B"]]:
        """Moments given y_t, and the log-density of y_t's observed coordinates."""
        matrix, scale = likelihood.matrix, likelihood.scale
        batch, dim = belief.mean.shape
        top = torch.cat([matrix @ belief.scale, scale.expand(batch, -1, -1)], -1)
        bottom = torch.cat([belief.scale, belief.scale.new_zeros(batch, dim, scale.shape[-1])], -1)
        mean, flat = belief.mean, belief.factor
        residual, size = likelihood.y - apply(matrix, mean), likelihood.y.abs() + apply(matrix.abs(), mean.abs())
        log_prob = likelihood.log_prob
        if flat is not None and bool(flat.any()):
            settled = settle(matrix.expand(batch, -1, -1), flat)
            bottom = bottom - settled.gain @ top
            bottom = torch.cat([bottom, bottom.new_zeros(*bottom.shape[:-1], top.shape[-2])], -1)
            top = torch.cat([settled.rest @ top, torch.diag_embed(settled.own)], -1)
            mean, residual = mean + apply(settled.gain, residual), apply(settled.rest, residual)
            size = apply(settled.rest.abs(), size)
            flat, log_prob = settled.factor, log_prob - settled.log_determinant.double()
        innovation, cross, root = absorb(top, bottom)
        if bool(_determined(innovation, top).any()):
            top, residual, constant = without_determined(top, residual, size)
            bottom = torch.nn.functional.pad(bottom, (0, top.shape[-2]))
            innovation, cross, root = absorb(top, bottom)
            log_prob = log_prob + constant
        white = torch.linalg.solve_triangular(innovation, residual[..., None], upper=False)[..., 0]
        mean = mean + apply(cross, white)
        log_determinant = innovation.diagonal(dim1=-2, dim2=-1).abs().log().double().sum(-1)
        log_prob = log_prob - 0.5 * white.double().square().sum(-1) - log_determinant
        return _like(belief, mean, root, flat), log_prob

    def backward(self, model: Any, belief: Any, move: Affine, later: Any) -> Any:
        """Rauch-Tung-Striebel: z_t = m_t + G (z_{t+1} - m-) + noise, under any belief about z_{t+1}."""
        return follow(reverse(belief.state, move), later.state)

    def smooth(self, model: Any, prepared: Prepared, belief: Any, shape: tuple[int, int]) -> Any:
        """The reversed conditionals of all steps at once, then one loop back."""
        return self.hindsight(model, prepared, belief, unseen(prepared, shape)).smoothed

    def hindsight(self, model: Any, prepared: Prepared, belief: Any, data: Sequences, pairs: bool = False) -> Hindsight:
        """Smoothed beliefs, log p, and with `pairs` cov(z_t, z_{t+1} | y), (T - 1, B, D, D), zero past each end.

        Source:
            Shumway and Stoffer, Time Series Analysis and Its Applications 2017, property 6.3: P_{t,t+1} = G_t P_{t+1}.
        """
        found = find_kernel(model, self)
        if found and "smoothed" in found.keeps:
            keep = ("smoothed", "pairs", "log_prob") if pairs else ("smoothed", "log_prob")
            trace = run(model, self, data, belief, keep, prepared=prepared)
            if trace.smoothed is not None:
                assert trace.log_prob is not None
                return Hindsight(trace.smoothed, trace.log_prob, trace.pairs)
        trace = run(model, self, data, belief, ("filtered", "log_prob"), prepared=prepared)
        filtered, log_prob = trace.filtered, trace.log_prob
        assert log_prob is not None
        inside = None if prepared.lengths is None else data.within[1:]
        smoothed, joint = sweep(filtered, _moves_after(prepared.moves), inside, pairs)
        return Hindsight(smoothed, log_prob, joint)

    def breadth(self, model: Any, data: Sequences) -> int:
        """The numbers of a covariance."""
        return model.transition.event.dim**2

    @torch.no_grad()
    def expect(self, model: Any, constants: Tree, data: Sequences) -> Expected:
        """Moments of z_1, of neighbouring states, and of each state with its observation, given everything.

        Source:
            Shumway and Stoffer 1982; a missing coordinate stands with its own mean and covariance.
        """
        prepared = prepare(model, self, data, constants)
        known = self.hindsight(model, prepared, None, data, pairs=True)
        mean, covariance = known.smoothed.mean, squared(known.smoothed.scale)
        if known.smoothed.factor is not None and bool(known.smoothed.factor.any()):
            raise StatespanError("EM: a sequence is too short to settle its diffuse start; leave it out, or use ss.SGD")
        first, later, weights = told_of_states(model, data, mean, covariance, known.pairs)
        seen = None
        if closed_parts(model)[2]:
            y, spread, there = complete(model.emission.affine(data.u), data, mean, covariance, weights)
            seen = model.emission.statistics(mean, y, spread, data.u, there)
        return Expected(known.log_prob, Statistics(first, later, seen))

    def fill(self, model: Any, constants: Tree, data: Sequences) -> Tensor:
        """C m + d, and for the missing part of a row what the rest of its noise says of it."""
        return filled(model.emission.affine(data.u), in_hindsight(model, self, data, constants).mean, data)

    def decode(self, model: Any, constants: Tree, data: Sequences, k: int) -> tuple[Tensor, None]:
        """The smoothed mean: of a joint normal it is the mode."""
        if k > 1:
            raise TypeError("a normal posterior has one mode; ask for k=1, or sample_posterior for more paths")
        return in_hindsight(model, self, data, constants).mean[:, :, None], None

    def emit(self, model: Any, constants: Tree, belief: Any, u: Tree) -> Normal:
        """N(C m + d, C P C' + R)."""
        return emitted(model.emission.affine(u), belief.state)


def unseen(prepared: Prepared, shape: tuple[int, int]) -> Sequences:
    """The shape of the data alone: what was observed is in `prepared`."""
    return Sequences(observed=prepared.likelihoods.y.new_ones(shape, dtype=torch.bool), lengths=prepared.lengths)


def emitted(emission: Affine, belief: Any) -> Normal:
    """N(C m + d, C P C' + R)."""
    root = emission.matrix @ belief.scale
    covariance = root @ root.mT + emission.scale @ emission.scale.mT
    mean = apply(emission.matrix, belief.mean) + emission.offset
    return Normal(mean, scale_tril=factor(covariance), validate_args=False)


def _like(belief: Any, mean: Tensor, scale: Tensor, flat: Tensor | None) -> Any:
    """A belief of the same kind."""
    return Gaussian(mean, scale) if flat is None else Diffuse(mean, scale, flat)


def _wide(inside: Tensor, like: Tensor) -> Tensor:
    return inside.view(*inside.shape, *[1] * (like.dim() - inside.dim()))


def _summed(covariance: Tensor, weights: Tensor) -> Tensor:
    """The sum of covariances (..., D, D), each times its weight (...); what an expanded axis shares counts once."""
    for axis, step in enumerate(covariance.stride()[: weights.dim()]):
        if step == 0:
            covariance, weights = covariance.narrow(axis, 0, 1), weights.sum(axis, keepdim=True)
    size = covariance.shape[-2:]
    return (weights.flatten() @ covariance.flatten(0, -3).flatten(1)).view(size)


def told_of_states(
    model: Any, data: Sequences, mean: Tensor, covariance: Tensor, pairs: Tensor | None
) -> tuple[Tree, Tree, Tensor]:
    """What the M-steps of the start and of the move need, None where they have none, and how much each step counts.

    Args:
        model: its transition is a linear part.
        data: the sequences.
        mean: smoothed, (T, B, D).
        covariance: smoothed, (T, B, D, D).
        pairs: cov(z_t, z_{t+1} | y), (T - 1, B, D, D), zero past each end.
    """
    each = torch.ones(data.shape[1], dtype=mean.dtype, device=mean.device) if data.weights is None else data.weights
    weights = data.within * each
    initial, transition, _ = closed_parts(model)
    first = later = None
    if initial:
        first = model.initial.statistics(mean[0], _summed(covariance[0], each), each)
    if transition:
        assert pairs is not None
        after = weights[1:]
        cross = _summed(pairs, after)
        spread = _joint(_summed(covariance[:-1], after), cross.mT, _summed(covariance[1:], after))
        u = tree_map(lambda x: x[1:], data.u)
        later = model.transition.statistics(mean[:-1], mean[1:], spread, u, after)
    return first, later, weights


def _joint(xx: Tensor, yx: Tensor, yy: Tensor) -> Tensor:
    """The covariance of (x, y) from its blocks."""
    return torch.cat([torch.cat([xx, yx.mT], -1), torch.cat([yx, yy], -1)], -2)


def _moves_after(moves: Affine) -> Affine:
    """The moves into t = 2 ... T, with time in front or none."""
    return Affine(*[x.value if isinstance(x, Shared) else x[1:] for x in moves])


# ------------------------------------------------------------------------------------------ observations


def observation(emission: Affine, data: Sequences) -> Observation:
    """Residuals, matrices and noise of all steps, without gaps, no wider than the state."""
    outputs = emission.matrix.shape[-2]
    matrix, scale, there = emission.matrix, emission.scale, data.observed
    if data.y is None:
        y = emission.offset.new_zeros(*data.shape, outputs)
        there = y.new_zeros(data.shape, dtype=torch.bool)
    else:  # past its end a sequence may be anything, but finite
        y = data.y if data.lengths is None else torch.where(data.within[..., None], data.y, 0.0)
    if there is None or bool(there.all()):
        still = not (torch.is_grad_enabled() and emission.offset.requires_grad) and not bool(emission.offset.any())
        residual = y if still else y - emission.offset
        count: Tree = Shared(y.new_full((), -0.5 * outputs * math.log(2 * math.pi), dtype=torch.float64))
    else:
        if bool((there == there[:, :1]).all()):
            there = there[:, :1]  # the same gaps in every sequence: kept once
        there = (there[..., None] if there.dim() == 2 else there).expand(*there.shape[:2], outputs)
        residual = torch.where(there, y - emission.offset, 0.0)
        matrix = torch.where(there[..., None], matrix, 0.0)
        # The rows that are there keep their noise; each of the others gets one of its own.
        own = torch.diag_embed((~there).to(y.dtype))
        scale = torch.cat([torch.where(there[..., None], scale, 0.0), own], -1)
        count = -0.5 * math.log(2 * math.pi) * there.sum(-1).double()
    if outputs > matrix.shape[-1]:
        return compress(residual, matrix, scale, count)
    return Observation(residual, over_time(matrix, 2), over_time(scale, 2), count)


def compress(residual: Tensor, matrix: Tensor, scale: Tensor, count: Tree) -> Observation:
    r"""E rows that see D < E states to D rows that say the same of them.

    With R = r r' and r^-1 C = Q1 G: the rows Q1' r^-1 (y - d) = G z + e, e ~ N(0, I), and the rows orthogonal to Q1 are
    noise alone, whose density is a number. Left as it is where R is singular or, for a gradient, where G is.

    Source:
        Jungbacker and Koopman, "Likelihood-based dynamic factor analysis", 2015, section 2.
    """
    as_it_is = Observation(residual, over_time(matrix, 2), over_time(scale, 2), count)
    noise = upright(lower(scale))
    sizes = noise.diagonal(dim1=-2, dim2=-1)
    if not bool((sizes.amin(-1) > sizes.amax(-1) * _rounding(noise)).all()):
        return as_it_is
    white = torch.linalg.solve_triangular(noise, matrix, upper=False)
    turn, narrow = torch.linalg.qr(white, mode="reduced")
    if torch.is_grad_enabled():
        told = narrow.diagonal(dim1=-2, dim2=-1).abs()
        if not bool((told.amin(-1) > told.amax(-1) * _rounding(narrow)).all()):
            return as_it_is
    if noise.dim() == 2:
        sources = torch.linalg.solve_triangular(noise, residual.flatten(0, -2).mT, upper=False).mT.view_as(residual)
    else:
        sources = torch.linalg.solve_triangular(noise, residual[..., None], upper=False)[..., 0]
    y = apply(turn.mT, sources)
    beside = sources.double().square().sum(-1) - y.double().square().sum(-1)
    constant = (count.value if isinstance(count, Shared) else count) - sizes.log().double().sum(-1)
    identity = torch.eye(narrow.shape[-1], dtype=y.dtype, device=y.device)
    return Observation(y, over_time(narrow, 2), Shared(identity), constant - 0.5 * beside)


def told_noise(emission: Affine, there: Tensor) -> Tensor:
    """L with E[noise | the noise that was seen] = L times it, (T, B, E, E)."""
    seen = torch.where(there[..., None], emission.scale, 0.0)  # a root of the noise that was seen
    return emission.scale @ torch.linalg.pinv(seen, rtol=_rounding(seen))


def filled(emission: Affine, mean: Tensor, data: Sequences) -> Tensor:
    """C m + d, and for the missing part of a row what the rest of its noise says of it: (T, B, E)."""
    expected, there = apply(emission.matrix, mean) + emission.offset, data.present
    if there is None or there.dim() == 2:
        return expected
    return expected + apply(told_noise(emission, there), torch.where(there, data.y - expected, 0.0))


def complete(
    emission: Affine, data: Sequences, mean: Tensor, covariance: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Observations with their gaps filled, for the M-step of the emission.

    The missing part of a row is (I - L S) C z + L S y + d - L S d + (I - L S) noise, with S picking what is there.

    Returns:
        The means (T, B, E), the summed joint covariance of state and observation, and the weights with 0 where a whole
        row is missing.
    """
    there = data.present
    if there is None or there.dim() == 2:
        weights = weights if there is None else weights * there
        outputs, dim = emission.matrix.shape[-2:]
        spread = mean.new_zeros(dim + outputs, dim + outputs)
        spread[:dim, :dim] = _summed(covariance, weights)
        return data.y, spread, weights
    weights = weights * there.any(-1)
    expected = apply(emission.matrix, mean) + emission.offset
    told = told_noise(emission, there) * there[..., None, :]
    y = expected + apply(told, torch.where(there, data.y - expected, 0.0))
    gone = ~there[..., None]
    left = torch.where(gone, emission.matrix - told @ emission.matrix, 0.0)
    noise = torch.where(gone, emission.scale - told @ emission.scale, 0.0)
    cross = left @ covariance
    spread = _joint(
        _summed(covariance, weights), _summed(cross, weights), _summed(cross @ left.mT + noise @ noise.mT, weights)
    )
    return torch.where(there, data.y, y), spread, weights


# ---------------------------------------------------------------------------------------------- backwards


def reverse(belief: Any, move: Affine) -> Reversed:
    r"""p(z_t | z_{t+1}, y_<=t), for a step or for many at once: z_{t+1} is one more observation of z_t.

    The covariance is Joseph's sum, (I - G A) P (I - G A)' + G Q G', which holds where the predicted one is singular.

    Args:
        belief: filtered, with any axes in front.
        move: the move out of it.

    Source:
        Sarkka and Svensson, Bayesian Filtering and Smoothing 2023, section 12.2.
    """
    mean, scale, flat = belief.mean, belief.scale, belief.factor
    noise = move.scale.expand(*scale.shape[:-2], -1, -1)
    top = torch.cat([move.matrix @ scale, noise], -1)
    bottom = torch.cat([scale, torch.zeros_like(noise)], -1)
    ahead = apply(move.matrix, mean) + move.offset
    first = rest = None
    if flat is not None and bool(flat.any()):
        settled = settle(move.matrix.expand_as(scale), flat)
        first, rest, flat = settled.gain, settled.rest, settled.factor
        bottom, top = bottom - first @ top, rest @ top
    gain = _regression(bottom, top, _rounding(scale))
    left = bottom - gain @ top
    if first is not None and rest is not None:
        gain = first + gain @ rest
    return Reversed(mean, ahead, gain, left, flat)


def _regression(bottom: Tensor, top: Tensor, rounding: float) -> Tensor:
    """Bottom top' (top top')^-1; zero along a direction without variance, of which nothing is to be learnt.

    With top' = Q R it is bottom Q R'^-1. The product top top' would square what lies between the largest and the
    smallest variance, and a smoother multiplies the error of one step by the next; its gradient alone is taken so.
    """
    with torch.no_grad():
        turn, triangle = torch.linalg.qr(top.mT)
        gain = bottom @ turn @ torch.linalg.pinv(triangle.mT, rtol=rounding)
    if not torch.is_grad_enabled() or not (top.requires_grad or bottom.requires_grad):
        return gain
    inverse = torch.linalg.pinv(lower(top), rtol=rounding)
    like = bottom @ top.mT @ inverse.mT @ inverse
    return gain + (like - like.detach())


def follow(step: Reversed, later: Any) -> Any:
    """The belief about z_t under one about z_{t+1}."""
    mean = step.mean + apply(step.gain, later.mean - step.ahead)
    scale = lower(torch.cat([step.scale, step.gain @ later.scale], -1))
    if step.factor is None:
        return Gaussian(mean, scale)
    flat = step.factor
    if later.factor is not None and bool(later.factor.any()):
        # Only the span of the flat directions matters from here on, and it has no more dimensions than at the start.
        left, size, _ = torch.linalg.svd(torch.cat([flat, step.gain @ later.factor], -1), full_matrices=False)
        width = flat.shape[-1]
        told = size[..., :width] > size[..., :1] * _rounding(flat)
        flat = left[..., :width] * (size[..., :width] * told)[..., None, :]
    return Diffuse(mean, scale, flat)


def sweep(filtered: Any, moves: Affine, inside: Tensor | None, pairs: bool) -> tuple[Any, Tensor | None]:
    """Smoothed beliefs (T, B, ...) from filtered ones, and with `pairs` cov(z_t, z_{t+1} | y), zero past each end.

    Args:
        filtered: beliefs, (T, B, ...).
        moves: the moves into t = 2 ... T, with time in front or none.
        inside: (T - 1, B), whether t = 2 ... T lies within the sequence; None: all do.
        pairs: whether the covariances are wanted.
    """
    head = tree_map(lambda x: x[:-1], filtered)
    steps = reverse(head, moves)
    smoothed = [tree_map(lambda x: x[-1], filtered)]
    for t in range(len(filtered.mean) - 2, -1, -1):
        now = follow(tree_map(lambda x, t=t: x[t], steps), smoothed[-1])
        if inside is not None:
            now = tree_map(lambda a, b, t=t: torch.where(_wide(inside[t], a), a, b[t]), now, head)
        smoothed.append(now)
    whole = stack(smoothed[::-1])
    if not pairs:
        return whole, None
    joint = steps.gain @ (whole.scale[1:] @ whole.scale[1:].mT)
    return whole, joint if inside is None else torch.where(_wide(inside, joint), joint, 0.0)
