"""Laws of observations that hang on linear predictors of a state: counts, successes, symbols."""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import (
    Binomial,
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    NegativeBinomial,
    Poisson,
)

from statespan.errors import StatespanError
from statespan.part import Part
from statespan.parts.emissions.counts import COUNTS
from statespan.sequences import Event, Support


class Near(NamedTuple):
    """Of a law at its predictors: log p of what is there, its derivative, and what its curvature W is made of.

    Args:
        log_prob: (...), but for the law's `base`.
        slope: g, (..., E).
        shape: (..., E), zero where y is missing; `root`, `bend`, `white` and `bound` read it.
    """

    log_prob: Tensor
    slope: Tensor
    shape: Tensor


class Law(ABC):
    r"""p(y | eta), log-concave in the linear predictors eta (..., E).

    The curvature W is minus the second derivative of log p; R is a root of it, W = R R'.
    """

    @abstractmethod
    def event(self, predictors: int) -> Event:
        """What one observation is under E predictors."""

    @abstractmethod
    def base(self, y: Tensor, there: Tensor | None) -> Tensor:
        """What of log p hangs on no predictor, (...): for all steps at once."""

    @abstractmethod
    def near(self, eta: Tensor, y: Tensor, there: Tensor | None) -> Near:
        """The law about eta; `there`, (..., E) or (...) bool, says which of y is there: the rest says nothing."""

    @abstractmethod
    def root(self, shape: Tensor, matrix: Tensor) -> Tensor:
        """R' M for M (..., E, D), without W where that is large."""

    @abstractmethod
    def bend(self, shape: Tensor, x: Tensor) -> Tensor:
        """W x, (..., E)."""

    @abstractmethod
    def white(self, slope: Tensor, shape: Tensor) -> Tensor:
        """R^-1 g, (..., E): what a linear observation R' eta with noise of size 1 is short of."""

    @abstractmethod
    def bound(self, shape: Tensor) -> Tensor:
        """A diagonal above W, (..., E), as near to it as can be."""

    @abstractmethod
    def moments(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        """The mean (..., O) of y as numbers, and a root (..., O, M) of its covariance."""

    @abstractmethod
    def numbers(self, y: Tensor, predictors: int) -> Tensor:
        """The observation as numbers (..., O)."""

    @abstractmethod
    def distribution(self, eta: Tensor) -> Distribution:
        """The distribution of y."""

    @abstractmethod
    def mixture(self, weights: Tensor, eta: Tensor) -> Distribution:
        """The mixture under weights (N,) of predictors (..., N, E)."""

    @abstractmethod
    def fill(self, weights: Tensor, eta: Tensor) -> Tensor:
        """The mean of that mixture; of symbols the likeliest."""


class CoordinateLaw(Law):
    """Each coordinate of y has a predictor of its own and is independent of the others given these; W is diagonal."""

    support: Support

    @abstractmethod
    def terms(self, eta: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log p but for `ways`, its derivative in eta and minus its second: elementwise."""

    @abstractmethod
    def ways(self, y: Tensor) -> Tensor:
        """What of log p hangs on no predictor: elementwise."""

    @abstractmethod
    def mean_and_variance(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        """Elementwise."""

    @abstractmethod
    def each(self, eta: Tensor) -> Distribution:
        """The distribution of each coordinate, batch shape that of eta."""

    def event(self, predictors: int) -> Event:
        """Vectors of E numbers."""
        return Event(1, None, predictors, self.support)

    def base(self, y: Tensor, there: Tensor | None) -> Tensor:
        """The sum over coordinates."""
        ways = self.ways(y)
        return (ways if there is None else torch.where(_wide(there, y), ways, 0.0)).sum(-1)

    def near(self, eta: Tensor, y: Tensor, there: Tensor | None) -> Near:
        """The sum over coordinates; W itself."""
        log_prob, slope, bend = self.terms(eta, y)
        if there is not None:
            there = _wide(there, y)
            log_prob, slope, bend = (torch.where(there, x, 0.0) for x in (log_prob, slope, bend))
        return Near(log_prob.sum(-1), slope, bend)

    def root(self, shape: Tensor, matrix: Tensor) -> Tensor:
        """Rows by the roots of W."""
        return _positive(shape).sqrt()[..., None] * matrix

    def bend(self, shape: Tensor, x: Tensor) -> Tensor:
        """By W."""
        return shape * x

    def white(self, slope: Tensor, shape: Tensor) -> Tensor:
        """The slope over the root of W."""
        return slope / _positive(shape).sqrt()

    def bound(self, shape: Tensor) -> Tensor:
        """W itself."""
        return shape

    def moments(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        """A diagonal root."""
        mean, variance = self.mean_and_variance(eta)
        return mean, torch.diag_embed(variance.sqrt())

    def numbers(self, y: Tensor, predictors: int) -> Tensor:
        """As it is."""
        return y

    def distribution(self, eta: Tensor) -> Distribution:
        """Independent coordinates."""
        return Independent(self.each(eta), 1, validate_args=False)

    def mixture(self, weights: Tensor, eta: Tensor) -> Distribution:
        """A mixture of vectors, whose coordinates hang together."""
        which = Categorical(probs=weights.expand(eta.shape[:-1]), validate_args=False)
        return MixtureSameFamily(which, self.distribution(eta), validate_args=False)

    def fill(self, weights: Tensor, eta: Tensor) -> Tensor:
        """The mean."""
        return (weights[:, None] * self.mean_and_variance(eta)[0]).sum(-2)


def _wide(there: Tensor, y: Tensor) -> Tensor:
    return there if there.dim() == y.dim() else there[..., None]


def _positive(x: Tensor) -> Tensor:
    """A curvature that rounding has made zero has a root with a slope, and something may be divided by it."""
    return x.clamp_min(torch.finfo(x.dtype).tiny)


class PoissonLaw(Part, CoordinateLaw):
    r"""Counts with log rate eta: p(y | eta) = exp(y eta - e^eta) / y!.

    Source:
        McCullagh and Nelder, Generalized Linear Models 1989, chapter 6.

    Example:
        >>> import torch
        >>> PoissonLaw().distribution(torch.tensor([0.0])).mean
        tensor([1.])
    """

    support = COUNTS

    def terms(self, eta: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The rate is the curvature."""
        rate = eta.exp()
        slope = y - rate
        return y * eta - rate, slope, rate.expand_as(slope)

    def ways(self, y: Tensor) -> Tensor:
        """Minus log y!."""
        return -torch.lgamma(y + 1)

    def mean_and_variance(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        """The rate, twice."""
        rate = eta.exp()
        return rate, rate

    def each(self, eta: Tensor) -> Distribution:
        """Poisson."""
        return Poisson(eta.exp(), validate_args=False)


class BinomialLaw(Part, CoordinateLaw):
    r"""Successes in n trials with log odds eta; with n = 1 zeros and ones.

    Args:
        trials: n, at least 1.

    Source:
        McCullagh and Nelder, Generalized Linear Models 1989, chapter 4.

    Example:
        >>> import torch
        >>> BinomialLaw(trials=10).distribution(torch.tensor([0.0])).mean
        tensor([5.])
    """

    def __init__(self, trials: int = 1):
        super().__init__()
        if int(trials) != trials or trials < 1:
            raise StatespanError(f"binomial: trials={trials}; give a whole number from 1")
        self.trials = int(trials)
        what = "zeros and ones" if self.trials == 1 else f"whole numbers from 0 to {self.trials}, the trials"
        self.support = Support(lambda x, there: there & ((x < 0) | (x > self.trials) | (x != x.round())), what)

    def terms(self, eta: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The variance is the curvature."""
        n, p = self.trials, eta.sigmoid()
        slope = y - n * p
        return y * eta - n * nn.functional.softplus(eta), slope, (n * p * (1 - p)).expand_as(slope)

    def ways(self, y: Tensor) -> Tensor:
        """Log n! / (y! (n - y)!)."""
        n = self.trials
        return math.lgamma(n + 1) - torch.lgamma(y + 1) - torch.lgamma(n - y + 1)

    def mean_and_variance(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        """N p and n p (1 - p)."""
        p = eta.sigmoid()
        return self.trials * p, self.trials * p * (1 - p)

    def each(self, eta: Tensor) -> Distribution:
        """Binomial."""
        return Binomial(self.trials, logits=eta, validate_args=False)


class NegativeBinomialLaw(Part, CoordinateLaw):
    r"""Counts that vary more than Poisson's: the mean is e^eta = mu, the variance mu + mu^2 / r.

    Args:
        predictors: E; each coordinate has an r of its own.
        size: r at the start, above 0.

    Source:
        Hilbe, Negative Binomial Regression 2011, section 8.2 (NB2).

    Example:
        >>> import torch
        >>> law = NegativeBinomialLaw(1, size=2.0).distribution(torch.tensor([0.0]))
        >>> law.mean.item(), law.variance.item()
        (1.0, 1.5)
    """

    support = COUNTS

    def __init__(self, predictors: int = 1, size: float = 5.0):
        super().__init__()
        if not size > 0:
            raise StatespanError(f"negative binomial: size={size}; give a number above 0")
        self.log_size = nn.Parameter(torch.full((predictors,), float(size)).log())

    def terms(self, eta: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """With p = mu / (mu + r): the slope y - (y + r) p, the curvature (y + r) p (1 - p)."""
        odds = eta - self.log_size
        p, total = odds.sigmoid(), y + self.log_size.exp()
        return y * odds - total * nn.functional.softplus(odds), y - total * p, total * p * (1 - p)

    def ways(self, y: Tensor) -> Tensor:
        """Log Gamma(y + r) / (Gamma(r) y!)."""
        r = self.log_size.exp()
        return torch.lgamma(y + r) - torch.lgamma(r) - torch.lgamma(y + 1)

    def mean_and_variance(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        """Mu and mu + mu^2 / r."""
        mean = eta.exp()
        return mean, mean + mean.square() / self.log_size.exp()

    def each(self, eta: Tensor) -> Distribution:
        """Negative binomial."""
        return NegativeBinomial(self.log_size.exp(), logits=eta - self.log_size, validate_args=False)


class SoftmaxLaw(Part, Law):
    r"""Symbols 0..V-1: p(y = v | eta) = exp(eta_v) / sum over w of exp(eta_w).

    With p the probabilities W = diag(p) - p p', and R' = diag(sqrt p) (I - 1 p').

    Source:
        McCullagh and Nelder, Generalized Linear Models 1989, chapter 5.

    Example:
        >>> import torch
        >>> SoftmaxLaw().distribution(torch.zeros(4)).probs
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    def event(self, predictors: int) -> Event:
        """A symbol for each predictor."""
        if predictors < 2:
            raise StatespanError("categorical: give a predictor for each symbol, at least two (observed=V)")
        return Event(0, predictors)

    def base(self, y: Tensor, there: Tensor | None) -> Tensor:
        """Nothing."""
        return torch.zeros((), device=y.device).expand(y.shape)

    def near(self, eta: Tensor, y: Tensor, there: Tensor | None) -> Near:
        """The log-softmax at y, one at y minus p, and p."""
        log = eta.log_softmax(-1)
        p = log.exp()
        found = log.gather(-1, y.expand(log.shape[:-1])[..., None])[..., 0]
        slope = nn.functional.one_hot(y, p.shape[-1]) - p
        if there is None:
            return Near(found, slope, p)
        wide = there[..., None]
        return Near(torch.where(there, found, 0.0), torch.where(wide, slope, 0.0), torch.where(wide, p, 0.0))

    def root(self, shape: Tensor, matrix: Tensor) -> Tensor:
        """Rows of M less their mean under p, times sqrt p."""
        return _positive(shape).sqrt()[..., None] * (matrix - (shape[..., None, :] @ matrix))

    def bend(self, shape: Tensor, x: Tensor) -> Tensor:
        """P (x - p'x)."""
        return shape * (x - (shape * x).sum(-1, keepdim=True))

    def white(self, slope: Tensor, shape: Tensor) -> Tensor:
        """The slope over sqrt p: R times it is the slope, which sums to zero."""
        return slope / _positive(shape).sqrt()

    def bound(self, shape: Tensor) -> Tensor:
        """One half: W is below (I - 1 1' / V) / 2, and nothing moves along 1 (Boehning 1992)."""
        return (0.5 * shape.sum(-1, keepdim=True)).expand(shape.shape)

    def moments(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        """Of the indicators of all symbols but the last: p, and the root diag(sqrt p) - p sqrt p'."""
        p = eta.softmax(-1)
        half = p.sqrt()
        return p[..., :-1], (torch.diag_embed(half) - p[..., None] * half[..., None, :])[..., :-1, :]

    def numbers(self, y: Tensor, predictors: int) -> Tensor:
        """Indicators of all symbols but the last."""
        return nn.functional.one_hot(y, predictors)[..., :-1]

    def distribution(self, eta: Tensor) -> Distribution:
        """Categorical."""
        return Categorical(logits=eta, validate_args=False)

    def mixture(self, weights: Tensor, eta: Tensor) -> Distribution:
        """Categorical, with the mean probabilities."""
        return Categorical(probs=weights @ eta.softmax(-1), validate_args=False)

    def fill(self, weights: Tensor, eta: Tensor) -> Tensor:
        """The likeliest symbol."""
        return (weights @ eta.softmax(-1)).argmax(-1)
