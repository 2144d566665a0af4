"""Rules that put a normal distribution for what an observation of any law says of a normal state."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from statespan.belief import Gaussian
from statespan.errors import StatespanError
from statespan.methods.kalman import Kalman, observation
from statespan.methods.linearisation import MOST_POINTS, GaussHermite, Linearisation, Points, grid, symmetric
from statespan.methods.linearised import in_front
from statespan.parts.laws import Law
from statespan.parts.linear import lower, upright
from statespan.sequences import Sequences
from statespan.tree import unstack

MOST_NODES = 100
"""A grid of no more nodes than this is used of itself."""

STEPS = 100
"""Newton steps, and halvings of one, at most."""


class Seen(NamedTuple):
    """y is there and follows `law` at eta = offset + root v, where v (B, r) is standard normal before y is known.

    Args:
        law: the law.
        y: (B, ...).
        there: which of it is there, (B, E) or (B,) bool; None: everything.
        offset: (B, E).
        root: (B, E, r).
    """

    law: Law
    y: Tensor
    there: Tensor | None
    offset: Tensor
    root: Tensor

    def at(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """At v (B, r): log p(y, v) but for constants, its derivative, and G, its curvature being I + G'G."""
        near = self.law.near(torch.baddbmm(self.offset[..., None], self.root, v[..., None])[..., 0], self.y, self.there)
        joint = near.log_prob - 0.5 * v.square().sum(-1)
        return joint, (near.slope[:, None] @ self.root)[:, 0] - v, self.law.root(near.shape, self.root)


class Told(NamedTuple):
    """v ~ N(mean, root root') once y is known, (B, r) and (B, r, r), and log p(y) but for the law's base, (B,)."""

    mean: Tensor
    root: Tensor
    log_prob: Tensor


class Update(ABC):
    """What an observation says of a standard normal v: one rule. It holds no data, only how it is done."""

    @abstractmethod
    def __call__(self, seen: Seen) -> Told:
        """The normal distribution that stands for p(v | y), and log p(y)."""


def nodes(directions: int, order: int | None, like: Tensor) -> Points:
    """A Gauss-Hermite grid; by default 9 points along one or two directions, 3 along three or four, else one."""
    if order is None:
        order = next((n for n in (9, 3) if n**directions <= MOST_NODES), 1)
    if order**directions > MOST_POINTS:
        raise StatespanError(
            f"LaplaceApproximation(order={order}) takes {order}^{directions} points for this model; use a lower order"
        )
    if order == 1:
        one = like.new_ones(1)
        return Points(like.new_zeros(1, directions), one, one[:, None])
    return grid(directions, order, like.dtype, like.device)


def spread_points(dim: int, like: Tensor) -> Points:
    """Points of equal moments for an average: a grid where it is small, else the cubature rule's 2 D."""
    if 3**dim <= MOST_NODES:
        return grid(dim, {1: 32, 2: 9}.get(dim, 3), like.dtype, like.device)
    points = symmetric(dim, float(dim), 0.0, like.dtype, like.device)
    return Points(*[x[1:] for x in points])


def inverse_root(bend: Tensor) -> Tensor:
    """A (B, r, r) with A A' = (I + G'G)^-1, by one QR of I over G (B, E, r); A is a triangle."""
    if bend.shape[-1] == 1:
        return (1 + bend.square().sum(-2, keepdim=True)).rsqrt()
    eye = torch.eye(bend.shape[-1], dtype=bend.dtype, device=bend.device).expand(len(bend), -1, -1)
    triangle = torch.linalg.qr(torch.cat([eye, bend], -2), mode="reduced")[1]
    return torch.linalg.solve_triangular(triangle, eye, upper=True)


def _times(matrix: Tensor, x: Tensor) -> Tensor:
    return (matrix @ x[..., None])[..., 0]


@torch.no_grad()
def mode(seen: Seen) -> tuple[Tensor, Tensor]:
    """The mode of p(v | y) by Newton's method with halved steps, and a root of the covariance there.

    Log p(y, v) is concave, with a curvature of at least one, so there is one mode and every start leads there.

    Source:
        Boyd and Vandenberghe, Convex Optimization 2004, section 9.5.
    """
    v = seen.root.new_zeros(seen.root.shape[::2])
    value, rise, bend = seen.at(v)
    small = torch.finfo(v.dtype).eps ** 0.4  # squared by the last step
    for _ in range(STEPS):
        root = inverse_root(bend)
        step = _times(root, _times(root.mT, rise))
        if not bool((step.abs() > small * (1 + v.abs())).any()):
            v = v + step
            break
        gain, size, new = 1e-4 * (rise * step).sum(-1), torch.ones_like(value), v + step
        now = seen.at(new)
        for _ in range(STEPS):
            short = ~(now[0] >= value + size * gain - small * (1 + value.abs()))
            if not bool(short.any()):
                break
            size = torch.where(short, size / 2, size)
            new = v + size[:, None] * step
            now = seen.at(new)
        v, (value, rise, bend) = new, now
    else:
        root = inverse_root(bend)
    return v, root


def quadrature(seen: Seen, centre: Tensor, root: Tensor, points: Points) -> Told:
    """Log p(y), the mean and a root of the covariance of v by a grid of points about N(centre, root root').

    Source:
        Liu and Pierce, "A note on Gauss-Hermite quadrature", Biometrika 1994.
    """
    v = centre[:, None] + points.at @ root.mT  # (B, N, r)
    eta = seen.offset[:, None] + v @ seen.root.mT
    near = seen.law.near(eta, seen.y[:, None], None if seen.there is None else seen.there[:, None])
    log = near.log_prob + 0.5 * (points.at.square().sum(-1) - v.square().sum(-1))
    log = log + points.mean.log()
    total = log.logsumexp(-1)
    size = root.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
    share = (log - total[:, None]).exp()
    mean = (share[:, None] @ v)[:, 0]
    spread = (0.5 * (log - total[:, None])).exp()[..., None] * (v - mean[:, None])
    return Told(mean, lower(spread.mT), total + size)


class LaplaceApproximation(Update):
    r"""A normal at the mode of p(z | y), by Newton's method; about it the moments by adaptive quadrature.

    With one point: Laplace's own, mode, curvature and log p(y) = log p(y, z*) + (D / 2) log 2 pi - log|H| / 2. With
    more, the mean, covariance and log p(y) of p(z | y) itself, integrated over the directions that y sees of the state
    (at most as many as it has predictors) on a Gauss-Hermite grid laid about that normal.

    Args:
        order: points along each direction; None: 9 for one or two directions, 3 for three or four, 1 for more.

    Raises:
        StatespanError: an order below 1.

    Source:
        Fahrmeir 1992; Koyama et al. 2010 (Laplace); Liu and Pierce 1994 (adaptive quadrature); Ypma and Heskes 2005.

    Example:
        >>> import statespan as ss
        >>> model = ss.generalised_linear(ss.linear_gaussian(state=1, observed=1, observation=[[1.0]]), "poisson")
        >>> rough, fine = [ss.DiscreteKalman(ss.LaplaceApproximation(order)) for order in (1, 9)]
        >>> y = [0, 2, 1, 5, 3]
        >>> round(model.log_prob(y, method=rough).item(), 2), round(model.log_prob(y, method=fine).item(), 2)
        (-10.33, -10.51)
    """

    def __init__(self, order: int | None = None):
        if order is not None and order < 1:
            raise StatespanError(f"LaplaceApproximation(order={order}): use 1 or more")
        self.order = order

    def __call__(self, seen: Seen) -> Told:
        """The mode; one more Newton step carries its gradient (implicit function theorem)."""
        v, root = mode(seen)
        if torch.is_grad_enabled():  # a step of no length, whose gradient is that of the mode
            v = v + _times(root, _times(root.mT, seen.at(v)[1]))
        joint, _, bend = seen.at(v)
        root = inverse_root(bend)
        points = nodes(v.shape[-1], self.order, v)
        if len(points.mean) > 1:
            return quadrature(seen, v, root, points)
        return Told(v, root, joint + root.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1))


class ConditionalMoments(Update):
    r"""The normal filter's update from E[y | z] and Cov[y | z]: their average over the state, then Kalman's step.

    With `iterations` above 1 the moments are averaged again over the normal that they gave (posterior linearisation).
    log p(y) is by quadrature about that normal, of the law itself.

    Args:
        rule: how they are averaged: `GaussHermite()`, `Cubature()`, `Unscented()`, `Taylor()`; of the directions that y
            sees of the state.
        iterations: how many times.

    Raises:
        StatespanError: no iterations.

    Source:
        Sarkka and Svensson, Bayesian Filtering and Smoothing 2023, sections 9.2, 9.4 and 10.4; Garcia-Fernandez et al.
        2015.

    Example:
        >>> import statespan as ss
        >>> model = ss.generalised_linear(ss.linear_gaussian(state=1, observed=1, observation=[[1.0]]), "poisson")
        >>> model.smooth([0, 2, None, 5], method=ss.DiscreteKalman(ss.ConditionalMoments(ss.Unscented()))).mean.shape
        torch.Size([4, 1])
    """

    def __init__(self, rule: Linearisation | None = None, iterations: int = 1):
        if iterations < 1:
            raise StatespanError(f"ConditionalMoments(iterations={iterations}): use 1 or more")
        self.rule = GaussHermite(5) if rule is None else rule
        self.iterations, self.kalman = iterations, Kalman()

    def __call__(self, seen: Seen) -> Told:
        """Regress E[y | v] on v, then update."""
        batch, _, size = seen.root.shape
        prior = Gaussian(seen.offset.new_zeros(batch, size), torch.eye(size).to(seen.offset).expand(batch, -1, -1))
        y = seen.law.numbers(seen.y, seen.offset.shape[-1]).to(seen.offset)
        one = Sequences(y=y[None], observed=None if seen.there is None else seen.there[None])

        def moments(v: Tensor, u: None) -> tuple[Tensor, Tensor]:
            many = v.dim() > 2
            eta = (seen.offset[:, None] if many else seen.offset) + (
                v @ seen.root.mT if many else (seen.root @ v[..., None])[..., 0]
            )
            return seen.law.moments(eta)

        told = prior
        for _ in range(self.iterations):
            affine = self.rule(moments, told, None)
            told, _ = self.kalman.update(None, prior, unstack(observation(in_front(affine), one), 1)[0])
        log_prob = quadrature(seen, told.mean, upright(told.scale), nodes(size, None, y)).log_prob
        return Told(told.mean, told.scale, log_prob)
