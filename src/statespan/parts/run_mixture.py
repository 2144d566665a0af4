"""What conjugate segments predict: Student's t, negative binomials, coins; and their mixtures over run lengths."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, NegativeBinomial, Normal, StudentT

from statespan.belief import choose

TERMS = 2000
"""Terms of the continued fraction at most; it needs about the root of the larger parameter."""
HALVINGS = 200
"""Steps of a bisection at most."""


class Coordinate(ABC):
    """A distribution of one number that knows its distribution function."""

    whole: bool
    """Whether it gives whole numbers."""

    @abstractmethod
    def cdf(self, value: Tensor) -> Tensor:
        """P(y <= value)."""


class NormalCoordinate(Normal, Coordinate):
    """A normal distribution."""

    whole = False


class StudentCoordinate(StudentT, Coordinate):
    """Student's t, whose mean is taken to be its centre even where the tails leave it none."""

    whole = False
    loc: Tensor
    scale: Tensor
    df: Tensor

    @property
    def mean(self) -> Tensor:
        """The centre."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Df / (df - 2) times the squared scale; infinite where df is 2 or less."""
        finite = self.df > 2
        spread = self.scale.square() * self.df / torch.where(finite, self.df - 2, 1.0)
        return torch.where(finite, spread, torch.inf)

    def cdf(self, value: Tensor) -> Tensor:
        """By the incomplete beta function."""
        z = (value - self.loc) / self.scale
        share = self.df / (self.df + z.square())
        tail = 0.5 * incomplete_beta(self.df / 2, torch.full_like(self.df, 0.5), share, z.square() / self.df * share)
        return torch.where(z > 0, 1 - tail, tail)


class CountCoordinate(NegativeBinomial, Coordinate):
    """A negative binomial: a Poisson count whose rate has a gamma distribution."""

    whole = True
    total_count: Tensor

    def cdf(self, value: Tensor) -> Tensor:
        """By the incomplete beta function."""
        below = value.floor()
        logits: Any = self.logits
        more, fewer = logits.sigmoid(), (-logits).sigmoid()
        share = incomplete_beta(self.total_count, below.clamp_min(0) + 1, fewer, more)
        return torch.where(below < 0, 0.0, share)


class CoinCoordinate(Bernoulli, Coordinate):
    """Zero or one."""

    whole = True

    def cdf(self, value: Tensor) -> Tensor:
        """A step at zero, and one at one."""
        return torch.where(value < 0, 0.0, torch.where(value < 1, 1 - self.mean, 1.0))


class RunMixture(Distribution):
    """A mixture over run lengths of rows of independent coordinates, with its quantiles.

    Args:
        log_weights: (..., R), whose exponentials sum to one.
        each: a `Coordinate` with batch (..., R, D).
    """

    def __init__(self, log_weights: Tensor, each: Any):
        self.log_weights, self.each = log_weights, each
        super().__init__(log_weights.shape[:-1], each.batch_shape[-1:], validate_args=False)

    @property
    def arg_constraints(self) -> dict[str, Any]:
        """None."""
        return {}

    def _average(self, values: Tensor) -> Tensor:
        """Over run lengths; one that cannot be counts nothing, whatever its value."""
        weights = self.log_weights.exp()[..., None]
        return torch.where(weights > 0, weights * values, 0.0).sum(-2)

    @property
    def mean(self) -> Tensor:
        """(..., D)."""
        return self._average(self.each.mean)

    @property
    def variance(self) -> Tensor:
        """(..., D)."""
        return self._average(self.each.variance + (self.each.mean - self.mean[..., None, :]).square())

    def log_prob(self, value: Tensor) -> Tensor:
        """(...)."""
        return (self.log_weights + self.each.log_prob(value[..., None, :]).sum(-1)).logsumexp(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """A run length, and a row of it."""
        every = self.each.sample(sample_shape)  # (*sample, ..., R, D)
        row = choose(self.log_weights.exp().expand(every.shape[:-1]))
        return every.gather(-2, row[..., None, None].expand(*row.shape, 1, every.shape[-1]))[..., 0, :]

    def cdf(self, value: Tensor) -> Tensor:
        """P(y_d <= value_d) of each coordinate, (..., D)."""
        return self._average(self.each.cdf(value[..., None, :]))

    @torch.no_grad()
    def quantile(self, levels: Tensor) -> Tensor:
        """The least value whose distribution function reaches the level: (...) levels to (..., *batch, D).

        By bisection; of a level of 0 or 1 it is infinite.
        """
        centre = self.mean
        wanted = levels.to(centre).view(*levels.shape, *[1] * centre.dim()).expand(*levels.shape, *centre.shape)
        step, low = torch.ones_like(wanted), centre.expand_as(wanted).floor()
        high = low + 1
        for _ in range(HALVINGS):
            under, over = self.cdf(high) < wanted, self.cdf(low) >= wanted
            if self.each.whole:
                over = over & (low >= 0)
            if not bool((under | over).any()):
                break
            high, low, step = torch.where(under, high + step, high), torch.where(over, low - step, low), step * 2
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            middle = middle.floor() if self.each.whole else middle
            if bool(((middle == low) | (middle == high)).all()):
                break
            under = self.cdf(middle) < wanted
            low, high = torch.where(under, middle, low), torch.where(under, high, middle)
        if self.each.whole:
            return high
        ends = torch.where(wanted <= 0, -torch.inf, torch.where(wanted >= 1, torch.inf, high))
        return ends


def incomplete_beta(a: Tensor, b: Tensor, x: Tensor, rest: Tensor) -> Tensor:
    """The regularised incomplete beta function I_x(a, b), elementwise; `rest` is 1 - x, which may be too small for it.

    Source:
        NIST Digital Library of Mathematical Functions, section 8.17(v), by Lentz's continued fractions.
    """
    a, b, x, rest = torch.broadcast_tensors(a, b, x, rest)
    swap = x > (a + 1) / (a + b + 2)
    a, b = torch.where(swap, b, a), torch.where(swap, a, b)
    x, rest = torch.where(swap, rest, x), torch.where(swap, x, rest)
    tiny = torch.finfo(x.dtype).tiny
    log = a * x.clamp_min(tiny).log() + b * rest.clamp_min(tiny).log()
    front = (log + torch.lgamma(a + b) - torch.lgamma(a) - torch.lgamma(b)).exp() / a
    c = torch.ones_like(x)
    d = 1 / _away(1 - (a + b) * x / (a + 1), tiny)
    value = d
    for m in range(1, TERMS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away(1 + term * d, tiny)
            c = _away(1 + term / c, tiny)
            value = value * c * d
        if bool(((c * d - 1).abs() < 4 * torch.finfo(x.dtype).eps).all()):
            break
    value = torch.where(x > 0, front * value, 0.0)
    return torch.where(swap, 1 - value, value)


def _away(x: Tensor, tiny: float) -> Tensor:
    return torch.where(x.abs() < tiny, tiny, x)
