"""Positive numbers: exponential, Gamma, log-normal."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent
from torch.distributions import Exponential as ExponentialDistribution
from torch.distributions import Gamma as GammaDistribution
from torch.distributions import LogNormal as LogNormalDistribution

from statespan.part import Generative, Part, positive
from statespan.parts.emissions.common import root, table, tables
from statespan.parts.emissions.exponential import ExponentialFamily, Sums, averages
from statespan.parts.priors import gamma, log_gamma
from statespan.sequences import Event, Support
from statespan.tree import Tree

POSITIVE = Support(lambda x, there: there & (x <= 0), "numbers above 0")
NOT_NEGATIVE = Support(lambda x, there: there & (x < 0), "numbers of 0 or more")


class Exponential(Part, ExponentialFamily, Generative):
    r"""Waiting times: p(y | z = k) = product over d of rate_kd exp(-rate_kd y_d).

    Args:
        dim: D.
        states: K; None leaves it to `ss.hmm`.
        rate: (K, D), one over the means, in units of one over y's; instead of the sizes.
        prior: a and b of a Gamma(a, b) prior on each rate, a 1 or more: a - 1 is added to the expected weights and b
            to the expected sums.
        floor: the least mean the M-step gives, in the units of y: a state that saw only zeros has unbounded likelihood.

    Raises:
        StatespanError: a rate not above 0, or a prior without a mode.

    Source:
        Zucchini, MacDonald and Langrock, Hidden Markov Models for Time Series 2016, section 8.2.

    Example:
        >>> Exponential(rate=[[0.5], [4.0]]).mean.flatten().tolist()
        [2.0, 0.25]
    """

    rate = positive("log_rate", "One over the means, (K, D).")

    def __init__(
        self,
        dim: int = 1,
        states: int | None = None,
        rate: Any = None,
        prior: Sequence[float] = (1.0, 0.0),
        floor: float = 1e-6,
    ):
        super().__init__()
        given = None if rate is None else table(rate, "Exponential(rate=)", 0.0)
        self.states, self.dim = (states, dim) if given is None else given.shape
        self.remember(dim=self.dim, states=self.states, rate=None)
        self.event, self.floor = Event(1, None, self.dim, NOT_NEGATIVE), floor
        self.prior = gamma(prior, "Exponential(prior=)")
        if self.states is not None:
            self.log_rate = nn.Parameter(torch.randn(self.states, self.dim) if given is None else given.log())

    @property
    def mean(self) -> Tensor:
        """(K, D)."""
        return (-self.log_rate).exp()

    def features(self, y: Tensor) -> Tensor:
        """The times."""
        return y[..., None, :]

    def base(self, y: Tensor) -> None:
        """Zero."""

    def natural(self) -> tuple[Tensor, Tensor]:
        """Minus the rate, and minus its logarithm."""
        return -self.rate[None], -self.log_rate

    def forward(self, z: Tensor, u: Tree = None) -> Distribution:
        """The distribution of y given states z."""
        return Independent(ExponentialDistribution(self.rate[z], validate_args=False), 1, validate_args=False)

    def log_prior(self) -> Tensor:
        """The Gamma's (a - 1) log rate - b rate."""
        return log_gamma(self.rate, self.prior)

    @torch.no_grad()
    def maximize(self, stats: Sums) -> None:
        """Closed-form M-step; a coordinate never seen keeps its rate."""
        a, b = self.prior
        mean = (stats.features[0] + b) / (stats.weight + a - 1).clamp_min(1e-300)
        self.log_rate.copy_(torch.where(stats.weight > 0, -mean.clamp_min(self.floor).log(), self.log_rate))


class Gamma(Part, ExponentialFamily, Generative):
    r"""Positive numbers: p(y | z = k) = product over d of b^a y_d^(a - 1) exp(-b y_d) / Gamma(a).

    With a = `concentration`_kd and b = `rate`_kd; the mean is a / b, the variance a / b^2.

    Args:
        dim: D.
        states: K; None leaves it to `ss.hmm`.
        concentration: a, (K, D), positive; with `rate`, instead of the sizes.
        rate: b, (K, D), positive.
        floor: the least variance the M-step gives, as a share of the squared mean: without it a state that settles on
            one value has unbounded likelihood.

    Raises:
        StatespanError: one of concentration and rate is given without the other, or one is not above 0.

    Source:
        M-step: log a - digamma(a) = log of the mean - mean of the log; Minka, "Estimating a Gamma distribution", 2002.

    Example:
        >>> Gamma(concentration=[[4.0]], rate=[[2.0]]).mean.item()
        2.0
    """

    neutral = 1.0

    concentration = positive("log_concentration", "The shape a, (K, D).")
    rate = positive("log_rate", "The rate b, (K, D).")

    def __init__(
        self,
        dim: int = 1,
        states: int | None = None,
        concentration: Any = None,
        rate: Any = None,
        floor: float = 1e-6,
    ):
        super().__init__()
        a, b = tables("Gamma", concentration=(concentration, 0.0), rate=(rate, 0.0))
        self.states, self.dim = (states, dim) if a is None else a.shape
        self.remember(dim=self.dim, states=self.states, concentration=None, rate=None)
        self.event, self.floor = Event(1, None, self.dim, POSITIVE), floor
        if self.states is not None:
            shape = self.states, self.dim
            self.log_concentration = nn.Parameter(torch.randn(shape) / 2 if a is None else a.log())
            self.log_rate = nn.Parameter(torch.randn(shape) / 2 if b is None else b.log())

    @property
    def mean(self) -> Tensor:
        """(K, D)."""
        return (self.log_concentration - self.log_rate).exp()

    def features(self, y: Tensor) -> Tensor:
        """The logarithm, and the number itself."""
        return torch.stack([y.clamp_min(torch.finfo(y.dtype).tiny).log(), y], -2)

    def base(self, y: Tensor) -> None:
        """Zero: 1 / y is among the features."""

    def natural(self) -> tuple[Tensor, Tensor]:
        """A - 1 and minus b; log Gamma(a) - a log b."""
        a = self.concentration
        return torch.stack([a - 1, -self.rate]), torch.lgamma(a) - a * self.log_rate

    def forward(self, z: Tensor, u: Tree = None) -> Distribution:
        """The distribution of y given states z."""
        each = GammaDistribution(self.concentration[z], self.rate[z], validate_args=False)
        return Independent(each, 1, validate_args=False)

    @torch.no_grad()
    def maximize(self, stats: Sums) -> None:
        """The maximum, by bisection for a; a coordinate never seen keeps its parameters."""
        (log, mean), seen = averages(stats)
        gap = torch.where(seen, mean, 1.0).double().log() - torch.where(seen, log, -1.0).double()
        if self.log_concentration.requires_grad:
            if not self.log_rate.requires_grad:  # digamma(a) = log b + mean of the log
                target = self.log_rate.double() + torch.where(seen, log, 0.0).double()
                a = root(lambda x: torch.digamma(x) - target, 1e-6, 1 / self.floor, gap)
            else:
                a = root(lambda x: torch.digamma(x) - x.log() + gap, 1e-6, 1 / self.floor, gap)
            self.log_concentration.copy_(torch.where(seen, a.log(), self.log_concentration))
        rate = self.log_concentration - torch.where(seen, mean, 1.0).log()
        self.log_rate.copy_(torch.where(seen, rate, self.log_rate))


class LogNormal(Part, ExponentialFamily, Generative):
    r"""Positive numbers whose logarithms are normal: log y_d ~ N(loc_kd, scale_kd^2), coordinates independent.

    Args:
        dim: D.
        states: K; None leaves it to `ss.hmm`.
        loc: (K, D), the mean of log y; with `scale`, instead of the sizes.
        scale: (K, D), the standard deviation of log y, positive.
        floor: the least variance of log y that the M-step gives: without one a state that settles on one value has
            unbounded likelihood.

    Raises:
        StatespanError: one of loc and scale is given without the other, or a scale not above 0.

    Source:
        Johnson, Kotz and Balakrishnan, Continuous Univariate Distributions 1994, volume 1, chapter 14.

    Example:
        >>> round(LogNormal(loc=[[0.0]], scale=[[1.0]]).mean.item(), 4)
        1.6487
    """

    neutral = 1.0

    scale = positive("log_scale", "The standard deviation of log y, (K, D).")

    def __init__(
        self,
        dim: int = 1,
        states: int | None = None,
        loc: Any = None,
        scale: Any = None,
        floor: float = 1e-6,
    ):
        super().__init__()
        m, s = tables("LogNormal", loc=(loc,), scale=(scale, 0.0))
        self.states, self.dim = (states, dim) if m is None else m.shape
        self.remember(dim=self.dim, states=self.states, loc=None, scale=None)
        self.event, self.floor = Event(1, None, self.dim, POSITIVE), floor
        if self.states is not None:
            shape = self.states, self.dim
            self.loc = nn.Parameter(torch.randn(shape) if m is None else m.clone())
            self.log_scale = nn.Parameter(torch.zeros(shape) if s is None else s.log())

    @property
    def mean(self) -> Tensor:
        """(K, D)."""
        return (self.loc + self.scale.square() / 2).exp()

    def _centre(self) -> Tensor:
        """The middle of the states' log-means: about it little cancels."""
        return self.loc.detach().mean(0)

    def features(self, y: Tensor) -> Tensor:
        """The logarithm about the centre, and its square."""
        x = y.clamp_min(torch.finfo(y.dtype).tiny).log() - self._centre()
        return torch.stack([x, x.square()], -2)

    def base(self, y: Tensor) -> Tensor:
        """Minus log y - log(2 pi) / 2."""
        return -y.clamp_min(torch.finfo(y.dtype).tiny).log() - 0.5 * math.log(2 * math.pi)

    def natural(self) -> tuple[Tensor, Tensor]:
        """Those of a normal of log y about the centre."""
        mean, precision = self.loc - self._centre(), (-2 * self.log_scale).exp()
        return torch.stack([mean * precision, -precision / 2]), mean.square() * precision / 2 + self.log_scale

    def forward(self, z: Tensor, u: Tree = None) -> Distribution:
        """The distribution of y given states z."""
        return Independent(
            LogNormalDistribution(self.loc[z], self.scale[z], validate_args=False), 1, validate_args=False
        )

    @torch.no_grad()
    def maximize(self, stats: Sums) -> None:
        """Closed-form M-step; a coordinate never seen keeps its parameters."""
        (first, second), seen = averages(stats)
        held = self.loc - self._centre()
        mean = torch.where(seen & torch.tensor(self.loc.requires_grad), first, held)
        variance = second - 2 * mean * first + mean.square()
        log_scale = variance.clamp_min(self.floor).log() / 2
        loc = mean + self._centre()
        self.log_scale.copy_(torch.where(seen, log_scale, self.log_scale))
        self.loc.copy_(loc)
