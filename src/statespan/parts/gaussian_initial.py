"""How a Gaussian state starts: known, stationary, or not known at all."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from statespan.belief import Diffuse, Gaussian
from statespan.errors import StatespanError
from statespan.part import GaussianInitial, Generative, Part
from statespan.parts.linear import factor, lower, root
from statespan.tree import Tree

DOUBLINGS = 60
"""Squarings of A before its powers are said not to vanish: 2^60 steps."""


class Moments(NamedTuple):
    """Expected sums about z_1: the weight, sums of z and of z z'."""

    weight: Tensor
    first: Tensor
    second: Tensor

    @staticmethod
    def of(z: Tensor, spread: Tensor, weights: Tensor) -> "Moments":
        """From posterior means (B, D), the sum of covariances (D, D), each times its weight, and the weights (B,)."""
        weight = weights[:, None]
        return Moments(weights.sum(), (weight * z).sum(0), z.mT @ (weight * z) + spread)


class NormalStart(Part, GaussianInitial, Generative):
    r"""z_1 ~ N(mean, scale scale').

    Args:
        dim: D.

    Source:
        Sarkka and Svensson, Bayesian Filtering and Smoothing 2023, section 6.3.

    Example:
        >>> NormalStart(2).covariance.tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    def __init__(self, dim: int):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(dim))
        self.scale = nn.Parameter(torch.eye(dim))

    @property
    def covariance(self) -> Tensor:
        """Of z_1, (D, D)."""
        scale = root(self.scale)
        return scale @ scale.mT

    def gaussian(self, batch: int) -> Gaussian:
        """The belief about z_1 for `batch` sequences."""
        return Gaussian(self.mean.expand(batch, -1), root(self.scale).expand(batch, -1, -1))

    def forward(self, shape: tuple[int, ...], u: Tree = None) -> MultivariateNormal:
        """The distribution of z_1 for a batch of `shape`."""
        return MultivariateNormal(self.mean.expand(*shape, -1), scale_tril=root(self.scale), validate_args=False)

    def statistics(self, z: Tensor, spread: Tensor, weights: Tensor) -> Moments:
        """Expected sums over sequences: posterior means (B, D), the sum of covariances (D, D), weights (B,)."""
        return Moments.of(z, spread, weights)

    @torch.no_grad()
    def maximize(self, stats: Moments) -> None:
        """The mean, and the covariance about it."""
        if float(stats.weight) <= 0:
            return
        if self.mean.requires_grad:
            self.mean.copy_(stats.first / stats.weight)
        if self.scale.requires_grad:
            cross = stats.first[:, None] * self.mean
            second = stats.second - cross - cross.mT + stats.weight * self.mean[:, None] * self.mean
            self.scale.copy_(factor(0.5 * (second + second.mT) / stats.weight))


def stationary(matrix: Tensor, offset: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    r"""Mean and root of the covariance that z -> A z + b + scale e leaves as they are: P = A P A' + Q.

    The sum over k of A^k Q A^k' by doubling, on roots: X <- [X, A X], A <- A A.

    Args:
        matrix: A, (D, D), its eigenvalues inside the unit circle.
        offset: b, (D,).
        scale: (D, M), a root of Q.

    Raises:
        StatespanError: A has an eigenvalue on or outside the unit circle.

    Source:
        Anderson and Moore, Optimal Filtering 1979, section 6.7 (doubling).
    """
    radius = float(torch.linalg.eigvals(matrix.detach()).abs().max())
    if not radius < 1:
        raise StatespanError(
            f"the dynamics have an eigenvalue of size {radius:.6g} and so no stationary distribution; "
            "use initial='diffuse' or make them stable"
        )
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    mean = torch.linalg.solve(identity - matrix, offset)
    power, total = matrix, torch.nn.functional.pad(scale, (0, max(0, len(matrix) - scale.shape[1])))
    for _ in range(DOUBLINGS):
        more = power @ total
        total = lower(torch.cat([total, more], -1))
        if float(more.detach().abs().max()) <= torch.finfo(matrix.dtype).eps * float(total.detach().abs().max()):
            break
        power = power @ power
    return mean, total


class StationaryStart(Part, GaussianInitial, Generative):
    r"""z_1 ~ the distribution that the dynamics keep: mean = A mean + b, P = A P A' + Q.

    Args:
        transition: the move whose stationary distribution it is, `Linear` or `Continuous`; shared with the model, so it
            has no parameters of its own and a gradient goes through it. Inputs are left out.

    Raises:
        StatespanError: the move changes in time; the dynamics are not stable (when the start is asked for).

    Source:
        Durbin and Koopman, Time Series Analysis by State Space Methods 2012, section 5.6.2.

    Example:
        >>> import statespan as ss
        >>> model = ss.linear_gaussian(dynamics=[[0.8]], state_noise=[[0.36]], observed=1, initial="stationary")
        >>> model.initial.gaussian(1).scale.item()
        1.0
    """

    def __init__(self, transition: nn.Module):
        super().__init__()
        if not hasattr(transition, "still"):
            raise StatespanError(
                f"{type(transition).__name__} has no one distribution that it keeps; give another start, such as "
                "initial='diffuse'"
            )
        self.transition = transition

    def gaussian(self, batch: int) -> Gaussian:
        """The belief about z_1 for `batch` sequences."""
        move: Any = self.transition
        mean, scale = stationary(*move.still())
        return Gaussian(mean.expand(batch, -1), scale.expand(batch, -1, -1))

    def forward(self, shape: tuple[int, ...], u: Tree = None) -> MultivariateNormal:
        """The distribution of z_1 for a batch of `shape`."""
        first = self.gaussian(1)
        return MultivariateNormal(first.mean[0].expand(*shape, -1), scale_tril=first.scale[0], validate_args=False)


class DiffuseStart(Part, GaussianInitial):
    r"""z_1 = mean + scale e + W d, with d ~ N(0, k I) as k goes to infinity: nothing is known along W.

    log_prob is the limit of log N(y; ...) + (q / 2) log k, which counts log 2 pi for every observation, those too that
    only settle d. It has no distribution to draw from: `sample` refuses.

    Args:
        dim: D.
        directions: q, how many columns W has; the first q coordinates until `directions` is given other values.

    Source:
        de Jong, "The diffuse Kalman filter", Annals of Statistics 1991; Koopman 1997.

    Example:
        >>> import statespan as ss
        >>> one = [[1.0]]
        >>> walk = dict(dynamics=one, state_noise=[[1469.1]], observation=one, observation_noise=[[15098.5]])
        >>> model = ss.linear_gaussian(**walk, initial="diffuse")
        >>> model.filter([1120.0, 1160.0, 963.0]).mean[0].item()
        1120.0
    """

    mean: Tensor
    scale: Tensor
    directions: Tensor

    def __init__(self, dim: int, directions: int | None = None):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.zeros(dim, dim))
        self.register_buffer("directions", torch.eye(dim, dim if directions is None else directions))

    def gaussian(self, batch: int) -> Diffuse:
        """The belief about z_1 for `batch` sequences."""
        return Diffuse(
            self.mean.expand(batch, -1),
            root(self.scale).expand(batch, -1, -1),
            self.directions.expand(batch, -1, -1),
        )

    def statistics(self, z: Tensor, spread: Tensor, weights: Tensor) -> tuple:
        """Nothing: it has no parameters."""
        return ()

    def maximize(self, stats: tuple) -> None:
        """Nothing: it has no parameters."""
