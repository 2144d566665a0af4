"""Observations that are a generalised linear model of a normal state, and a start that is wide instead of diffuse."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, MultivariateNormal

from statespan.belief import Gaussian
from statespan.part import Affine, GaussianInitial, Generative, Part
from statespan.parts.linear import apply, inputs_of, lower
from statespan.sequences import Event
from statespan.tree import Tree


class PredictedEmission(ABC):
    """p(y_t | eta_t), where the linear predictors eta = C z + d are those of a normal state z."""

    event: Event
    law: Any
    """The law of y given eta, a `Law`."""

    @abstractmethod
    def predictors(self, u: Tree) -> tuple[Tensor, Tensor]:
        """C (..., E, D) and d (..., E) under inputs (..., U)."""


def distribution(emission: PredictedEmission, z: Tensor, u: Tree) -> Distribution:
    """The distribution of y given states (..., D), which may have more axes than the inputs: particles."""

    def fit(x: Tensor, rank: int) -> Tensor:
        front = x.dim() - rank
        return x if front == 0 else x.view(*x.shape[:front], *[1] * (z.dim() - 1 - front), *x.shape[front:])

    matrix, offset = emission.predictors(u)
    return emission.law.distribution(apply(fit(matrix, 2), z) + fit(offset, 1))


class Sums(NamedTuple):
    """Expected sums for one Newton step of an M-step: of x = (z, 1, u) and of what the law has of its own.

    Args:
        slope: (E, F), of the derivative in each row of coefficients.
        bend: (E, F, F), of minus the second derivative.
        xx: (F, F), of x x'.
        weight: how many steps there are.
        own: first derivatives in the law's own parameters, end to end.
        own_bend: minus the second.
    """

    slope: Tensor
    bend: Tensor
    xx: Tensor
    weight: Tensor
    own: Tensor
    own_bend: Tensor


class GeneralisedLinear(Part, PredictedEmission, Generative):
    r"""y ~ law(eta), eta = C z + F u + d: counts, successes or symbols that a normal state drives.

    Args:
        law: of y given eta, such as `PoissonLaw()`.
        inputs: D, the width of z.
        predictors: E, the width of eta; of symbols one for each.
        controls: U, the width of the inputs u that act on it; 0 leaves F away.

    Raises:
        StatespanError: it takes inputs, and the data have none or of another width.

    Source:
        West, Harrison and Migon 1985; Durbin and Koopman, Time Series Analysis by State Space Methods 2012, chapter 9.

    Example:
        >>> from statespan.parts.laws import PoissonLaw
        >>> GeneralisedLinear(PoissonLaw(), inputs=2, predictors=3).matrix.shape
        torch.Size([3, 2])
    """

    control: nn.Parameter | None

    def __init__(self, law: Any, inputs: int, predictors: int, controls: int = 0):
        super().__init__()
        self.law = law
        self.event, self.controls = self.law.event(predictors), controls
        self.matrix = nn.Parameter(torch.randn(predictors, inputs))
        self.offset = nn.Parameter(torch.zeros(predictors))
        self.register_parameter("control", nn.Parameter(torch.zeros(predictors, controls)) if controls else None)

    def predictors(self, u: Tree) -> tuple[Tensor, Tensor]:
        """C, and d + F u."""
        if self.control is None:
            return self.matrix, self.offset
        return self.matrix, self.offset + inputs_of(u, self.controls, self) @ self.control.mT

    def forward(self, z: Tensor, u: Tree = None) -> Distribution:
        """The distribution of y given states z."""
        return distribution(self, z, u)

    def statistics(self, z: Tensor, share: Tensor, y: Tensor, there: Tensor | None, u: Tree, weights: Tensor) -> Sums:
        """Slopes and curvatures of the expected log p(y | z) at the parameters as they are.

        Args:
            z: (T, B, N, D), points that stand for the posterior of each state.
            share: (N,), their weights.
            y: (T, B, ...) observations.
            there: which of them are there.
            u: (T, B, U) inputs, or None.
            weights: (T, B), how often each step counts.
        """
        x = [z, torch.ones_like(z[..., :1])]
        blocks: list[Any] = [self.matrix, self.offset[:, None]]
        if self.control is not None:
            x.append(inputs_of(u, self.controls, self)[..., None, :].expand(*z.shape[:-1], -1))
            blocks.append(self.control)
        rows = torch.cat(x, -1)
        eta = rows @ torch.cat(blocks, -1).mT
        y, there = y[:, :, None], None if there is None else there[:, :, None]
        weight = weights[..., None] * share
        near = self.law.near(eta, y, there)
        slope, bend = weight[..., None] * near.slope, weight[..., None] * self.law.bound(near.shape)
        flat = rows.flatten(0, 2)
        pairs = (bend.flatten(0, 2).mT[:, None] * flat.mT) @ flat
        own, own_bend = self._own(eta, y, there, weight)
        xx = (weight.flatten()[:, None] * flat).mT @ flat
        return Sums(slope.flatten(0, 2).mT @ flat, pairs, xx, weight.sum(), own, own_bend)

    def _own(self, eta: Tensor, y: Tensor, there: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives in the law's own parameters, each of which one coordinate hangs on."""
        free = [p for p in self.law.parameters() if p.requires_grad]
        if not free:
            return eta.new_zeros(0), eta.new_zeros(0)
        with torch.enable_grad():
            total = (weight * (self.law.near(eta, y, there).log_prob + self.law.base(y, there))).sum()
            first = torch.cat([g.flatten() for g in torch.autograd.grad(total, free, create_graph=True)])
            second = torch.cat([g.flatten() for g in torch.autograd.grad(first.sum(), free)])
        return first.detach(), -second

    @torch.no_grad()
    def maximize(self, stats: Sums) -> None:
        """One Newton step for what is free, shortened where it would change eta much; generalised EM."""
        if not float(stats.weight) > 0:
            return
        blocks: list[Any] = [self.matrix, self.offset, *([] if self.control is None else [self.control])]
        widths = [self.matrix.shape[1], 1, self.controls]
        free = torch.cat([torch.full((n,), b.requires_grad) for b, n in zip(blocks, widths, strict=False)])
        free = free.to(stats.slope.device)
        bend, slope = stats.bend[:, free][:, :, free], stats.slope[:, free]
        step = torch.zeros_like(stats.slope)
        # A direction that the states never took says nothing of its coefficients: they stay.
        step[:, free] = (torch.linalg.pinv(bend, hermitian=True) @ slope[..., None])[..., 0]
        reach = ((step @ stats.xx * step).sum(-1, keepdim=True) / stats.weight).clamp_min(1e-24).sqrt()
        step = step * torch.log1p(reach) / reach
        for block, change in zip(blocks, step.split(widths[: len(blocks)], -1), strict=True):
            block.add_(change.view_as(block))
        at = 0
        for parameter in [p for p in self.law.parameters() if p.requires_grad]:
            here = slice(at, at + parameter.numel())
            change = stats.own[here] / stats.own_bend[here].abs().clamp_min(1e-12)
            parameter.add_(change.clamp(-1, 1).view_as(parameter))
            at += parameter.numel()


class GeneralisedObservation(Part, PredictedEmission, Generative):
    r"""y ~ law(eta), with the predictors eta = C z + d those of a linear part, whose noise is left out.

    So a structural series may be one of counts. EM takes gradient steps on what the linear part leaves free.

    Args:
        predictor: the linear part.
        law: of y given eta, such as `PoissonLaw()`.

    Example:
        >>> import statespan as ss
        >>> from statespan.parts.laws import PoissonLaw
        >>> GeneralisedObservation((ss.level() + ss.seasonal(4)).emission, PoissonLaw()).event.dim
        1
    """

    def __init__(self, predictor: nn.Module, law: Any):
        super().__init__()
        self.predictor: Any = predictor
        self.law = law
        self.event = self.law.event(self.predictor.event.dim)

    def predictors(self, u: Tree) -> tuple[Tensor, Tensor]:
        """What the linear part says."""
        affine: Affine = self.predictor.affine(u)
        return affine.matrix, affine.offset

    def forward(self, z: Tensor, u: Tree = None) -> Distribution:
        """The distribution of y given states z."""
        return distribution(self, z, u)


class WideStart(Part, GaussianInitial, Generative):
    r"""A start that may be flat along some directions, with a standard deviation of `spread` along them instead.

    Where observations are no linear function of the state a flat start has no moments to go on from; on the scale of
    logarithms or log odds a spread of 10 says as little.

    Args:
        start: the start.
        spread: the standard deviation.

    Example:
        >>> import statespan as ss
        >>> WideStart(ss.DiffuseStart(1), spread=3.0).gaussian(1).scale.item()
        3.0
    """

    def __init__(self, start: nn.Module, spread: float = 10.0):
        super().__init__()
        self.start: Any = start
        self.spread = spread

    @property
    def wide(self) -> int:
        """Along how many directions."""
        factor = self.start.gaussian(1).factor
        return 0 if factor is None else factor.shape[-1]

    def gaussian(self, batch: int) -> Gaussian:
        """The belief about z_1 for `batch` sequences."""
        first = self.start.gaussian(1)
        scale = first.scale if first.factor is None else torch.cat([first.scale, self.spread * first.factor], -1)
        return Gaussian(first.mean.expand(batch, -1), lower(scale).expand(batch, -1, -1))

    def forward(self, shape: tuple[int, ...], u: Tree = None) -> MultivariateNormal:
        """The distribution of z_1 for a batch of `shape`."""
        first = self.gaussian(1)
        return MultivariateNormal(first.mean[0].expand(*shape, -1), scale_tril=first.scale[0], validate_args=False)
