"""What a segment of a series emits while its parameters stay: conjugate families, the parameters summed out.

A segment draws its parameters from a prior, and every observation in it from those. What it has shown is a few sums;
what comes next is then a known distribution. Coordinates are independent, and change together.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from statespan.errors import StatespanError
from statespan.part import Part, positive
from statespan.parts.emissions.common import known
from statespan.parts.emissions.counts import BITS, COUNTS
from statespan.parts.linear import inputs_of
from statespan.parts.run_mixture import (
    CoinCoordinate,
    Coordinate,
    CountCoordinate,
    NormalCoordinate,
    StudentCoordinate,
)
from statespan.sequences import Event
from statespan.tree import Tree


class Coefficients(NamedTuple):
    """What is known of w in E[y_d | parameters] = x' w_d: mean (..., D, P) and covariance (..., D, P, P)."""

    mean: Tensor
    covariance: Tensor


class Segment(ABC):
    """The law of the observations of one segment, its parameters summed out by a conjugate prior.

    What is to be written: the sums that an observation adds to (they start at zero, and a missing coordinate adds
    nothing), and what sums predict.
    """

    event: Event

    @abstractmethod
    def constants(self) -> Tree:
        """Work on parameters alone."""

    @abstractmethod
    def sums(self, y: Tensor, u: Tree, there: Tensor, constants: Tree) -> Tree:
        """What each observation adds: (..., D) and more axes. `there` (..., D) is 0 where y is missing, and y 0 too."""

    @abstractmethod
    def empty(self) -> Tree:
        """The sums of a segment that has shown nothing."""

    @abstractmethod
    def predictive(self, sums: Tree, u: Tree, constants: Tree) -> Coordinate:
        """The distribution of each coordinate of the next observation, (..., D)."""

    @abstractmethod
    def coefficients(self, sums: Tree, constants: Tree) -> Coefficients:
        """What is known of the parameters that the mean is made of."""

    def design(self, y: Tensor, u: Tree) -> Tensor:
        """x, (..., P): 1 where the mean is a parameter itself."""
        return torch.ones_like(y[..., :1])

    def log_predictive(self, sums: Tree, y: Tensor, u: Tree, there: Tensor, constants: Tree) -> Tensor:
        """Log p(y | sums), (...), over the coordinates that are there."""
        each: Any = self.predictive(sums, u, constants)
        return torch.where(there > 0, each.log_prob(y), 0.0).sum(-1)


class Sums(NamedTuple):
    """How many observations, (..., D), and the sum of what each is."""

    number: Tensor
    first: Tensor


class Squares(NamedTuple):
    """The same, and the sum of its square."""

    number: Tensor
    first: Tensor
    second: Tensor


def _values(value: Any, dim: int, name: str, low: float | None = None) -> Tensor:
    """One number, or one a coordinate, as (D,)."""
    x = torch.as_tensor(value, dtype=torch.float64)
    if x.dim() > 1 or (x.dim() == 1 and len(x) != dim):
        raise StatespanError(f"{name}=) is {tuple(x.shape)}; give one number, or one for each of the {dim} coordinates")
    if not bool(x.isfinite().all()) or (low is not None and not bool((x > low).all())):
        raise StatespanError(f"{name}={value!r}): give finite numbers{'' if low is None else f' above {low:g}'}")
    return x.expand(dim).clone()


def _positive(value: Any, dim: int, name: str) -> nn.Parameter:
    return nn.Parameter(_values(value, dim, name, 0.0).log())


def _moments(y: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and variance of each column of what is there; of a constant column a small variance."""
    y, _ = known(y, observed, 0.0)
    there = torch.ones_like(y, dtype=torch.bool) if observed is None else observed
    there = (there if there.dim() == y.dim() else there[..., None]).expand_as(y).flatten(0, -2).to(y)
    rows, count = y.flatten(0, -2), there.sum(0).clamp_min(1)
    mean = (rows * there).sum(0) / count
    variance = ((rows - mean).square() * there).sum(0) / count
    return mean, variance.clamp_min(1e-12 + 1e-12 * mean.square())


def _within(y: Tensor, observed: Tensor | None) -> Tensor:
    """The variance of a column about a level that changes seldom: half that of its differences, by their median."""
    y, _ = known(y, observed, torch.nan)
    jumps = (y[1:] - y[:-1]).flatten(0, -2).abs()
    whole = _moments(y.nan_to_num(), observed)[1]
    middle = torch.stack([x[~x.isnan()].median() if bool((~x.isnan()).any()) else x.new_zeros(()) for x in jumps.T])
    # The median of |N(0, 2 s^2)| is 0.9539 s.
    return torch.where(middle > 0, (middle / 0.9539).square(), whole).minimum(whole)


class GaussianSegment(Part, Segment):
    r"""Normal observations whose mean and variance change from segment to segment.

    s^2 ~ InverseGamma(shape, scale), m ~ N(mean, s^2 / strength), y ~ N(m, s^2). Predictions are Student's t.

    Args:
        dim: D; each coordinate has parameters of its own.
        mean: where a segment's mean is expected, a number or (D,).
        strength: how many observations this counts as.
        shape: of the prior of the variance; twice as many degrees of freedom.
        scale: of the prior of the variance, about which the variances lie times `shape`.

    Source:
        Gelman et al., Bayesian Data Analysis 2013, section 3.3; Murphy, "Conjugate Bayesian analysis of the Gaussian
        distribution", 2007, section 3.

    Example:
        >>> import statespan as ss
        >>> model = ss.changepoints(ss.GaussianSegment(mean=5.0), hazard=0.1)
        >>> model.decode([0.1, -0.2, 0.0, 9.1, 8.8, 9.0]).tolist()
        [0, 1, 2, 0, 1, 2]
    """

    strength = positive("log_strength", "How many observations the prior of the mean counts as, (D,).")
    shape = positive("log_shape", "Of the prior of the variance, (D,).")
    scale = positive("log_scale", "Of the prior of the variance, (D,).")

    def __init__(self, dim: int = 1, mean: Any = 0.0, strength: Any = 1.0, shape: Any = 1.0, scale: Any = 1.0):
        super().__init__()
        self.event = Event(1, None, dim)
        self.mean = nn.Parameter(_values(mean, dim, "GaussianSegment(mean"))
        self.log_strength = _positive(strength, dim, "GaussianSegment(strength")
        self.log_shape = _positive(shape, dim, "GaussianSegment(shape")
        self.log_scale = _positive(scale, dim, "GaussianSegment(scale")

    def constants(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean, strength, shape, scale."""
        return self.mean, self.strength, self.shape, self.scale

    def sums(self, y: Tensor, u: Tree, there: Tensor, constants: tuple) -> Squares:
        """Counted from the prior's mean, so that little is lost where the level is far from zero."""
        apart = (y - constants[0]) * there
        return Squares(there, apart, apart.square())

    def empty(self) -> Squares:
        """Zeros."""
        return Squares(*[torch.zeros_like(self.mean)] * 3)

    def _posterior(self, sums: Squares, constants: tuple) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, strength, shape, scale = constants
        strength = strength + sums.number
        left = (sums.second - sums.first.square() / strength).clamp_min(0)
        return mean + sums.first / strength, strength, shape + sums.number / 2, scale + left / 2

    def predictive(self, sums: Squares, u: Tree, constants: tuple) -> StudentCoordinate:
        """Student's t."""
        mean, strength, shape, scale = self._posterior(sums, constants)
        return StudentCoordinate(
            2 * shape, mean, (scale * (strength + 1) / (shape * strength)).sqrt(), validate_args=False
        )

    def coefficients(self, sums: Squares, constants: tuple) -> Coefficients:
        """The mean; its law is Student's t."""
        mean, strength, shape, scale = self._posterior(sums, constants)
        return Coefficients(mean[..., None], (_inverse_gamma_mean(shape, scale) / strength)[..., None, None])

    @torch.no_grad()
    def begin(self, y: Tensor, u: Tree, observed: Tensor | None) -> None:
        """A weak prior about where the data lie."""
        mean, variance = _moments(y, observed)
        inner = _within(y, observed)
        self.mean.copy_(mean)
        self.log_strength.copy_((inner / variance).log())
        self.log_shape.copy_(torch.full_like(mean, 2.0).log())
        self.log_scale.copy_((2 * inner).log())


def _inverse_gamma_mean(shape: Tensor, scale: Tensor) -> Tensor:
    return torch.where(shape > 1, scale / torch.where(shape > 1, shape - 1, 1.0), torch.inf)


class GaussianMeanSegment(Part, Segment):
    r"""Normal observations of one variance, whose mean changes from segment to segment.

    m ~ N(mean, spread), y ~ N(m, variance).

    Args:
        dim: D; each coordinate has parameters of its own.
        mean: where a segment's mean is expected, a number or (D,).
        spread: the variance of the segments' means about it.
        variance: of the observations about their segment's mean.

    Source:
        Adams and MacKay 2007, section 2.3; Fearnhead, "Exact and efficient Bayesian inference for multiple changepoint
        problems", 2006, section 4.

    Example:
        >>> import statespan as ss
        >>> model = ss.changepoints(ss.GaussianMeanSegment(spread=25.0, variance=1.0), hazard=0.1)
        >>> (model.smooth([0.1, -0.2, 0.0, 9.1, 8.8, 9.0]).probs[:, 0] > 0.5).tolist()
        [True, False, False, True, False, False]
    """

    spread = positive("log_spread", "The variance of the segments' means, (D,).")
    variance = positive("log_variance", "Of the observations about their segment's mean, (D,).")

    def __init__(self, dim: int = 1, mean: Any = 0.0, spread: Any = 1.0, variance: Any = 1.0):
        super().__init__()
        self.event = Event(1, None, dim)
        self.mean = nn.Parameter(_values(mean, dim, "GaussianMeanSegment(mean"))
        self.log_spread = _positive(spread, dim, "GaussianMeanSegment(spread")
        self.log_variance = _positive(variance, dim, "GaussianMeanSegment(variance")

    def constants(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, spread, variance."""
        return self.mean, self.spread, self.variance

    def sums(self, y: Tensor, u: Tree, there: Tensor, constants: tuple) -> Sums:
        """Counted from the prior's mean."""
        return Sums(there, (y - constants[0]) * there)

    def empty(self) -> Sums:
        """Zeros."""
        return Sums(*[torch.zeros_like(self.mean)] * 2)

    def _posterior(self, sums: Sums, constants: tuple) -> tuple[Tensor, Tensor]:
        mean, spread, variance = constants
        share = spread / (variance + sums.number * spread)
        return mean + share * sums.first, share * variance

    def predictive(self, sums: Sums, u: Tree, constants: tuple) -> NormalCoordinate:
        """A normal."""
        mean, spread = self._posterior(sums, constants)
        return NormalCoordinate(mean, (spread + constants[2]).sqrt(), validate_args=False)

    def coefficients(self, sums: Sums, constants: tuple) -> Coefficients:
        """The mean."""
        mean, spread = self._posterior(sums, constants)
        return Coefficients(mean[..., None], spread[..., None, None])

    @torch.no_grad()
    def begin(self, y: Tensor, u: Tree, observed: Tensor | None) -> None:
        """About where the data lie."""
        mean, variance = _moments(y, observed)
        self.mean.copy_(mean)
        self.log_spread.copy_(variance.log())
        self.log_variance.copy_(_within(y, observed).log())


class PoissonSegment(Part, Segment):
    r"""Counts whose rate changes from segment to segment: rate ~ Gamma(shape, 1 / scale), y ~ Poisson(rate).

    Predictions are negative binomial.

    Args:
        dim: D; each coordinate has a rate of its own.
        shape: of the prior of the rate, a number or (D,).
        scale: of the prior of the rate; rates are about shape times scale.

    Source:
        Gelman et al. 2013, section 2.6.

    Example:
        >>> import statespan as ss
        >>> model = ss.changepoints(ss.PoissonSegment(shape=1.0, scale=5.0), hazard=0.1)
        >>> model.decode([1, 0, 2, 1, 12, 9, 14]).tolist()
        [0, 1, 2, 3, 0, 1, 2]
    """

    shape = positive("log_shape", "Of the prior of the rate, (D,).")
    scale = positive("log_scale", "Of the prior of the rate, (D,).")

    def __init__(self, dim: int = 1, shape: Any = 1.0, scale: Any = 1.0):
        super().__init__()
        self.event = Event(1, None, dim, COUNTS)
        self.log_shape = _positive(shape, dim, "PoissonSegment(shape")
        self.log_scale = _positive(scale, dim, "PoissonSegment(scale")

    def constants(self) -> tuple[Tensor, Tensor]:
        """Shape, and one over scale."""
        return self.shape, (-self.log_scale).exp()

    def sums(self, y: Tensor, u: Tree, there: Tensor, constants: tuple) -> Sums:
        """How many, and how much."""
        return Sums(there, y * there)

    def empty(self) -> Sums:
        """Zeros."""
        return Sums(*[torch.zeros_like(self.log_shape)] * 2)

    def predictive(self, sums: Sums, u: Tree, constants: tuple) -> CountCoordinate:
        """A negative binomial."""
        shape, rate = constants[0] + sums.first, constants[1] + sums.number
        return CountCoordinate(shape, logits=-rate.log(), validate_args=False)

    def coefficients(self, sums: Sums, constants: tuple) -> Coefficients:
        """The rate."""
        shape, rate = constants[0] + sums.first, constants[1] + sums.number
        return Coefficients((shape / rate)[..., None], (shape / rate.square())[..., None, None])

    @torch.no_grad()
    def begin(self, y: Tensor, u: Tree, observed: Tensor | None) -> None:
        """About where the data lie."""
        mean, _ = _moments(y, observed)
        self.log_shape.zero_()
        self.log_scale.copy_(mean.clamp_min(0.1).log())


class BernoulliSegment(Part, Segment):
    r"""Zeros and ones whose probability changes from segment to segment: p ~ Beta(ones, zeros), y ~ Bernoulli(p).

    Args:
        dim: D; each coordinate has a probability of its own.
        ones: how many ones the prior counts as, a number or (D,).
        zeros: how many zeros.

    Source:
        Gelman et al. 2013, section 2.4.

    Example:
        >>> import statespan as ss
        >>> model = ss.changepoints(ss.BernoulliSegment(), hazard=0.05)
        >>> model.decode([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]).tolist()
        [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]
    """

    ones = positive("log_ones", "How many ones the prior counts as, (D,).")
    zeros = positive("log_zeros", "How many zeros, (D,).")

    def __init__(self, dim: int = 1, ones: Any = 1.0, zeros: Any = 1.0):
        super().__init__()
        self.event = Event(1, None, dim, BITS)
        self.log_ones = _positive(ones, dim, "BernoulliSegment(ones")
        self.log_zeros = _positive(zeros, dim, "BernoulliSegment(zeros")

    def constants(self) -> tuple[Tensor, Tensor]:
        """Ones and zeros."""
        return self.ones, self.zeros

    def sums(self, y: Tensor, u: Tree, there: Tensor, constants: tuple) -> Sums:
        """How many, and how many ones."""
        return Sums(there, y * there)

    def empty(self) -> Sums:
        """Zeros."""
        return Sums(*[torch.zeros_like(self.log_ones)] * 2)

    def _posterior(self, sums: Sums, constants: tuple) -> tuple[Tensor, Tensor]:
        return constants[0] + sums.first, constants[1] + sums.number - sums.first

    def predictive(self, sums: Sums, u: Tree, constants: tuple) -> CoinCoordinate:
        """A coin."""
        ones, zeros = self._posterior(sums, constants)
        return CoinCoordinate(logits=ones.log() - zeros.log(), validate_args=False)

    def coefficients(self, sums: Sums, constants: tuple) -> Coefficients:
        """The probability."""
        ones, zeros = self._posterior(sums, constants)
        mean = ones / (ones + zeros)
        return Coefficients(mean[..., None], (mean * (1 - mean) / (ones + zeros + 1))[..., None, None])

    @torch.no_grad()
    def begin(self, y: Tensor, u: Tree, observed: Tensor | None) -> None:
        """Any probability."""
        self.log_ones.zero_()
        self.log_zeros.zero_()


class Products(NamedTuple):
    """How many observations (..., D), and sums of x x' (..., D, P, P), x e (..., D, P) and e e (..., D)."""

    number: Tensor
    xx: Tensor
    xe: Tensor
    ee: Tensor


class RegressionSegment(Part, Segment):
    r"""A regression on inputs whose coefficients and variance change from segment to segment.

    s^2 ~ InverseGamma(shape, scale), w ~ N(mean, s^2 diag(1 / strength)), y ~ N(x' w, s^2), with x the inputs and a 1
    for the intercept. Predictions are Student's t. With the values before as inputs it is an autoregression.

    Args:
        inputs: U.
        dim: D; each coordinate has coefficients of its own.
        mean: where the coefficients are expected, a number or (U + 1,), the intercept last.
        strength: their prior precision over s^2, a number or (U + 1,).
        shape: of the prior of the variance, a number or (D,).
        scale: of the prior of the variance.

    Source:
        Gelman et al. 2013, section 14.2; Fearnhead 2006, section 5.

    Example:
        >>> import torch
        >>> import statespan as ss
        >>> x = torch.arange(12.0)[:, None]
        >>> y = torch.where(x < 6, 2 * x, 22 - 2 * x) + 0.1 * (-1) ** x
        >>> model = ss.changepoints(ss.RegressionSegment(inputs=1, strength=0.01, scale=0.1), hazard=0.05)
        >>> model.decode(y, inputs=x).tolist()
        [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]
    """

    strength = positive("log_strength", "The prior precision of the coefficients over s^2, (U + 1,).")
    shape = positive("log_shape", "Of the prior of the variance, (D,).")
    scale = positive("log_scale", "Of the prior of the variance, (D,).")

    def __init__(
        self, inputs: int, dim: int = 1, mean: Any = 0.0, strength: Any = 1.0, shape: Any = 1.0, scale: Any = 1.0
    ):
        super().__init__()
        self.inputs, self.event = inputs, Event(1, None, dim)
        self.mean = nn.Parameter(_values(mean, inputs + 1, "RegressionSegment(mean"))
        self.log_strength = _positive(strength, inputs + 1, "RegressionSegment(strength")
        self.log_shape = _positive(shape, dim, "RegressionSegment(shape")
        self.log_scale = _positive(scale, dim, "RegressionSegment(scale")

    def constants(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean, strength, shape, scale."""
        return self.mean, self.strength, self.shape, self.scale

    def design(self, y: Tensor, u: Tree) -> Tensor:
        """The inputs and a 1."""
        x = inputs_of(u, self.inputs, self)
        return torch.cat([x, torch.ones_like(x[..., :1])], -1)

    def sums(self, y: Tensor, u: Tree, there: Tensor, constants: tuple) -> Products:
        """Of what the prior's mean leaves."""
        x = self.design(y, u)
        left = (y - (x @ constants[0])[..., None]) * there
        xx = there[..., None, None] * (x[..., :, None] * x[..., None, :])[..., None, :, :]
        return Products(there, xx, left[..., None] * x[..., None, :], left.square())

    def empty(self) -> Products:
        """Zeros."""
        none, size = torch.zeros_like(self.log_shape), self.inputs + 1
        return Products(none, none.new_zeros(len(none), size, size), none.new_zeros(len(none), size), none)

    def _posterior(self, sums: Products, constants: tuple) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A Cholesky root of the precision, w - mean, shape and scale."""
        _, strength, shape, scale = constants
        root = torch.linalg.cholesky(sums.xx + torch.diag(strength))
        apart = torch.cholesky_solve(sums.xe[..., None], root)[..., 0]
        left = (sums.ee - (sums.xe * apart).sum(-1)).clamp_min(0)
        return root, apart, shape + sums.number / 2, scale + left / 2

    def predictive(self, sums: Products, u: Tree, constants: tuple) -> StudentCoordinate:
        """Student's t."""
        root, apart, shape, scale = self._posterior(sums, constants)
        x = self.design(sums.ee, u)[..., None, :]  # (..., 1, P)
        wide = x.expand(*root.shape[:-1])[..., None]
        reach = torch.linalg.solve_triangular(root, wide, upper=False)[..., 0].square().sum(-1)
        centre = (x * (apart + constants[0])).sum(-1)
        return StudentCoordinate(2 * shape, centre, (scale / shape * (1 + reach)).sqrt(), validate_args=False)

    def coefficients(self, sums: Products, constants: tuple) -> Coefficients:
        """The coefficients."""
        root, apart, shape, scale = self._posterior(sums, constants)
        size = _inverse_gamma_mean(shape, scale)
        return Coefficients(apart + constants[0], size[..., None, None] * torch.cholesky_inverse(root))

    @torch.no_grad()
    def begin(self, y: Tensor, u: Tree, observed: Tensor | None) -> None:
        """A weak prior about the intercept that the data have."""
        mean, variance = _moments(y, observed)
        inner = _within(y, observed)
        self.mean.zero_()
        self.mean[-1] = mean.mean()
        self.log_strength.copy_((inner / variance).mean().log().expand_as(self.log_strength))
        self.log_shape.copy_(torch.full_like(mean, 2.0).log())
        self.log_scale.copy_((2 * inner).log())
