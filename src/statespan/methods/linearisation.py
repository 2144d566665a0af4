"""Rules that turn a function of a normal state into an affine one with noise: Taylor's, and those of sigma points."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from statespan.belief import Gaussian
from statespan.errors import StatespanError
from statespan.part import Affine
from statespan.parts.linear import apply, inverse, upright
from statespan.tree import Tree

MOST_POINTS = 10_000
"""A grid of more points than this a state is refused."""

Function = Callable[[Tensor, Tree], tuple[Tensor, Tensor]]
"""A part's `moments`."""


class Linearisation(ABC):
    """f(z) + scale(z) e as A z + b + scale e, where z is normal: one rule. It holds no data, only how it is done."""

    @abstractmethod
    def __call__(self, function: Function, belief: Gaussian, u: Tree) -> Affine:
        """A (..., E, D), b (..., E) and a root of the noise, for a belief (..., D)."""


class Taylor(Linearisation):
    r"""The expansion of first order about the mean, A = df/dz at m, b = f(m) - A m: the extended Kalman filter.

    The Jacobian is by `torch.func.vjp`, its E rows at once and all sequences together.

    Source:
        Sarkka and Svensson, Bayesian Filtering and Smoothing 2023, chapter 7.

    Example:
        >>> import torch
        >>> from statespan import GaussianBelief
        >>> z = GaussianBelief(torch.tensor([2.0]), torch.ones(1, 1))
        >>> affine = Taylor()(lambda z, u: (z**2, torch.eye(1)), z, None)
        >>> affine.matrix, affine.offset
        (tensor([[4.]]), tensor([-4.]))
    """

    def __call__(self, function: Function, belief: Gaussian, u: Tree) -> Affine:
        """A, b and the noise at the mean."""
        mean = belief.mean
        found: Any = torch.func.vjp(lambda z: function(z, u), mean, has_aux=True)
        value, back, noise = found
        basis = torch.eye(value.shape[-1], dtype=mean.dtype, device=mean.device)
        matrix = torch.func.vmap(lambda row: back(row.expand_as(value))[0])(basis).movedim(0, -2)
        return Affine(matrix, value - apply(matrix, mean), noise)


class Points(NamedTuple):
    """Sigma points of a standard normal: where (N, D), the weights of a mean (N,), and a root of the covariance's.

    The covariance of f is F W F', for F (E, N) the values at the points; `root` (N, M) has root root' = W. So it is had
    as a root, and no covariance has to be downdated, whatever the sign of the weights.
    """

    at: Tensor
    mean: Tensor
    root: Tensor


def regress(function: Function, belief: Gaussian, u: Tree, points: Points) -> Affine:
    r"""Statistical linear regression: A = cov(f, z) P^-1, b = E f - A m, and what A z + b leaves of f's covariance.

    Source:
        Arasaratnam, Haykin and Elliott 2007; Garcia-Fernandez, Svensson, Morelande and Sarkka 2015; Sarkka and Svensson
        2023, chapter 9.
    """
    scale = upright(belief.scale)
    z = belief.mean[..., None, :] + points.at @ scale.mT
    value, noise = function(z, None if u is None else u[..., None, :].expand(*z.shape[:-1], -1))
    spread, known = value.mT @ points.root, points.at.mT @ points.root  # roots: of cov(f), and I of the points
    matrix = spread @ known.mT @ inverse(scale)
    rest = spread - matrix @ (scale @ known)
    if noise.dim() > 2:
        if bool((points.mean < 0).any()):
            raise StatespanError(
                "noise that changes with the state cannot be averaged with a negative weight; use ss.Cubature()"
            )
        noise = (noise * points.mean.sqrt()[:, None, None]).movedim(-3, -1).flatten(-2)
    offset = points.mean @ value - apply(matrix, belief.mean)
    return Affine(matrix, offset, torch.cat([rest, noise.expand(*rest.shape[:-1], -1)], -1))


@lru_cache(64)
def symmetric(dim: int, spread: float, excess: float, dtype: torch.dtype, device: torch.device) -> Points:
    """The mean and +- sqrt(spread) along each axis; `excess` is what the centre weighs more in a covariance.

    With odd and even parts d and s - f_0 of f over each pair, the covariance is sum (d d' + s s') / spread
    + (excess - 1) (mean of f - f_0)(...)'.
    """
    eye = torch.eye(dim, dtype=dtype, device=device)
    zero = eye.new_zeros(1, dim)
    left = 1 + dim * (excess - 1) / spread
    if left < -1e-12:
        raise StatespanError(
            f"these sigma points can give a covariance that is none for a state of {dim}; use a larger kappa or beta"
        )
    odd = torch.cat([zero, eye, -eye]) / 2
    even = torch.cat([zero - 1, eye / 2, eye / 2]) @ (eye - (1 - max(left, 0.0) ** 0.5) / dim)
    weights = torch.full((2 * dim + 1,), 1 / (2 * spread), dtype=dtype, device=device)
    weights[0] = 1 - dim / spread
    at = torch.cat([zero, eye, -eye]) * spread**0.5
    return Points(at, weights, torch.cat([odd, even], -1) * spread**-0.5)


class Unscented(Linearisation):
    r"""The unscented transform: 2 D + 1 points, m and m +- sqrt(alpha^2 (D + kappa)) times the root's columns.

    Args:
        alpha: how far the points lie.
        beta: what is known of the distribution; 2 is best for a normal state of one dimension.
        kappa: the second parameter of the spread; 0, or 3 - D.

    Raises:
        StatespanError: the points lie nowhere, or could give an indefinite covariance (alpha^2 kappa + D beta < 0).

    Source:
        Julier and Uhlmann 1997; Wan and van der Merwe 2000; Sarkka and Svensson 2023, chapter 8.

    Example:
        >>> import torch
        >>> from statespan import GaussianBelief
        >>> z = GaussianBelief(torch.zeros(1, dtype=torch.float64), torch.eye(1, dtype=torch.float64))
        >>> affine = Unscented()(lambda z, u: (z**2, 0 * torch.eye(1).double()), z, None)
        >>> affine.offset.item(), round((affine.scale @ affine.scale.mT).item(), 9)  # mean 1, variance 2
        (1.0, 2.0)
    """

    def __init__(self, alpha: float = 1.0, beta: float = 2.0, kappa: float = 0.0):
        if not alpha > 0:
            raise StatespanError(f"Unscented(alpha={alpha}): use more than 0")
        self.alpha, self.beta, self.kappa = alpha, beta, kappa

    def __call__(self, function: Function, belief: Gaussian, u: Tree) -> Affine:
        """By `regress`."""
        mean, square = belief.mean, self.alpha**2
        spread = square * (mean.shape[-1] + self.kappa)
        if not spread > 0:
            raise StatespanError(
                f"Unscented(kappa={self.kappa}) with a state of {mean.shape[-1]} puts the points nowhere; "
                "kappa must be above minus the state's size"
            )
        return regress(
            function, belief, u, symmetric(mean.shape[-1], spread, 1 - square + self.beta, mean.dtype, mean.device)
        )


class Cubature(Linearisation):
    r"""The spherical cubature rule of third degree: 2 D points m +- sqrt(D) times the root's columns, of equal weight.

    Source:
        Arasaratnam and Haykin 2009; Sarkka and Svensson 2023, chapter 8.

    Example:
        >>> import torch
        >>> from statespan import GaussianBelief
        >>> z = GaussianBelief(torch.zeros(2), torch.eye(2))
        >>> Cubature()(lambda z, u: (z.square().sum(-1, keepdim=True), torch.eye(1)), z, None).offset.round()
        tensor([2.])
    """

    def __call__(self, function: Function, belief: Gaussian, u: Tree) -> Affine:
        """By `regress`."""
        mean = belief.mean
        points = symmetric(mean.shape[-1], float(mean.shape[-1]), 0.0, mean.dtype, mean.device)
        return regress(function, belief, u, Points(*[x[1:] for x in points]))  # the centre weighs nothing


@lru_cache(64)
def grid(dim: int, order: int, dtype: torch.dtype, device: torch.device) -> Points:
    """The Gauss-Hermite grid of order^D points."""
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(order))
    each = weights / weights.sum()
    at = torch.cartesian_prod(*[nodes] * dim).view(-1, dim)
    mean = torch.cartesian_prod(*[each] * dim).view(-1, dim).prod(-1)
    root = torch.diag(mean.sqrt()) - mean[:, None] * mean.sqrt()
    return Points(*[x.to(device=device, dtype=dtype) for x in (at, mean, root)])


class GaussHermite(Linearisation):
    r"""Statistical linearisation, its expectations by Gauss-Hermite quadrature on a grid of order^D points.

    A, b and the covariance are exact where f is a polynomial of a degree below `order`; for states of a few dimensions.

    Args:
        order: points along each axis.

    Raises:
        StatespanError: the grid would be too large.

    Source:
        Ito and Xiong 2000; Sarkka and Svensson 2023, chapters 8 and 9.

    Example:
        >>> import torch
        >>> from statespan import GaussianBelief
        >>> z = GaussianBelief(torch.zeros(1), torch.eye(1))
        >>> affine = GaussHermite(4)(lambda z, u: (z**3, torch.eye(1)), z, None)
        >>> round(affine.matrix.item(), 4)  # E[z^3 z] = 3
        3.0
    """

    def __init__(self, order: int = 3):
        if order < 2:
            raise StatespanError(f"GaussHermite(order={order}): use 2 or more")
        self.order = order

    def __call__(self, function: Function, belief: Gaussian, u: Tree) -> Affine:
        """By `regress`."""
        mean = belief.mean
        if self.order ** mean.shape[-1] > MOST_POINTS:
            raise StatespanError(
                f"GaussHermite(order={self.order}) takes {self.order}^{mean.shape[-1]} points for this state; "
                "use ss.Unscented() or ss.Cubature()"
            )
        return regress(function, belief, u, grid(mean.shape[-1], self.order, mean.dtype, mean.device))
