"""Numbers within bounds: shares (Beta) and directions (von Mises)."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Beta as BetaDistribution
from torch.distributions import Distribution, Independent, MixtureSameFamily
from torch.distributions import VonMises as VonMisesDistribution

from statespan.part import Generative, Part, positive
from statespan.parts.emissions.common import root, tables
from statespan.parts.emissions.exponential import ExponentialFamily, Sums, averages
from statespan.sequences import Event, Support
from statespan.shapes import Float
from statespan.tree import Tree

SHARES = Support(lambda x, there: there & ((x <= 0) | (x >= 1)), "numbers strictly between 0 and 1")


class Beta(Part, ExponentialFamily, Generative):
    r"""Shares: p(y | z = k) = product over d of y_d^(a - 1) (1 - y_d)^(b - 1) / B(a, b).

    With a = `concentration1`_kd and b = `concentration0`_kd, as torch names them; the mean is a / (a + b).

    Args:
        dim: D.
        states: K; None leaves it to `ss.hmm`.
        concentration1: a, (K, D), positive; with `concentration0`, instead of the sizes.
        concentration0: b, (K, D), positive.
        floor: one over the largest a or b that the M-step gives: without it a state that settles on one value has
            unbounded likelihood.

    Raises:
        StatespanError: one of the two concentrations is given without the other, or one is not above 0.

    Source:
        M-step: Newton on digamma(a) - digamma(a + b) = mean of log y and the same of 1 - y; Minka, "Estimating a
        Dirichlet distribution", 2000, section 1.

    Example:
        >>> Beta(concentration1=[[3.0]], concentration0=[[1.0]]).mean.item()
        0.75
    """

    neutral = 0.5

    concentration1 = positive("log_one", "The exponent of y plus 1, (K, D).")
    concentration0 = positive("log_zero", "The exponent of 1 - y plus 1, (K, D).")

    def __init__(
        self,
        dim: int = 1,
        states: int | None = None,
        concentration1: Any = None,
        concentration0: Any = None,
        floor: float = 1e-6,
    ):
        super().__init__()
        a, b = tables("Beta", concentration1=(concentration1, 0.0), concentration0=(concentration0, 0.0))
        self.states, self.dim = (states, dim) if a is None else a.shape
        self.remember(dim=self.dim, states=self.states, concentration1=None, concentration0=None)
        self.event, self.floor = Event(1, None, self.dim, SHARES), floor
        if self.states is not None:
            shape = self.states, self.dim
            self.log_one = nn.Parameter(torch.randn(shape) / 2 + 0.5 if a is None else a.log())
            self.log_zero = nn.Parameter(torch.randn(shape) / 2 + 0.5 if b is None else b.log())

    @property
    def mean(self) -> Tensor:
        """(K, D)."""
        return (self.log_one - self.log_zero).sigmoid()

    def features(self, y: Tensor) -> Tensor:
        """Log y and log(1 - y); what rounding made 0 or 1 counts as the nearest number between."""
        info = torch.finfo(y.dtype)
        y = y.clamp(info.tiny, 1 - info.eps)
        return torch.stack([y.log(), torch.log1p(-y)], -2)

    def base(self, y: Tensor) -> None:
        """Zero."""

    def natural(self) -> tuple[Tensor, Tensor]:
        """A - 1 and b - 1; log B(a, b)."""
        a, b = self.concentration1, self.concentration0
        return torch.stack([a - 1, b - 1]), torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)

    def forward(self, z: Tensor, u: Tree = None) -> Distribution:
        """The distribution of y given states z."""
        each = BetaDistribution(self.concentration1[z], self.concentration0[z], validate_args=False)
        return Independent(each, 1, validate_args=False)

    @torch.no_grad()
    def maximize(self, stats: Sums) -> None:
        """The maximum, by Newton's method; a coordinate never seen keeps its parameters."""
        means, seen = averages(stats)
        free = [self.log_one.requires_grad, self.log_zero.requires_grad]
        start = torch.stack([self.concentration1, self.concentration0]).double()
        target = torch.where(seen, means.double(), -math.log(2.0))
        found = _beta_newton(target, start, free, 1 / self.floor).to(means)
        self.log_one.copy_(torch.where(seen, found[0].log(), self.log_one))
        self.log_zero.copy_(torch.where(seen, found[1].log(), self.log_zero))


def _beta_newton(target: Tensor, start: Tensor, free: list[bool], ceiling: float) -> Tensor:
    """The a and b (2, ...) of most a g1 + b g0 - log B(a, b), a concave function; a step is halved until it climbs."""

    def value(x: Tensor) -> Tensor:
        return (x * target).sum(0) - torch.lgamma(x).sum(0) + torch.lgamma(x.sum(0))

    x = start.clamp(1e-6, ceiling)
    mask = torch.tensor(free, dtype=x.dtype, device=x.device).view(2, *[1] * (x.dim() - 1))
    for _ in range(50):
        slope = (target - torch.digamma(x) + torch.digamma(x.sum(0))) * mask
        own, joint = torch.polygamma(1, x), torch.polygamma(1, x.sum(0))
        if all(free):  # the inverse of diag(own) - joint 1 1'
            scaled = slope / own
            step = scaled + (joint * scaled.sum(0) / (1 - joint * (1 / own).sum(0)).clamp_min(1e-12)) / own
        else:
            step = slope / (own - joint)
        if float((step.abs() / x).max()) < 1e-12:
            break
        size, now, new = torch.ones_like(x[0]), value(x), x
        for _ in range(40):
            wide = x + size * step
            bad = (wide <= 0).any(0) | (value(wide.clamp(1e-6, ceiling)) < now - 1e-12 * now.abs())
            new = torch.where(bad, x, wide.clamp(1e-6, ceiling))
            if not bool(bad.any()):
                break
            size = torch.where(bad, size / 2, size)
        x = new
    return x


class VonMises(Part, ExponentialFamily, Generative):
    r"""Directions, radians: p(y | z = k) = product over d of exp(c cos(y_d - loc_kd)) / (2 pi I0(c)).

    With c = `concentration`_kd. A direction is the same after a full turn; averages are of directions, too.

    Args:
        dim: D.
        states: K; None leaves it to `ss.hmm`.
        loc: (K, D), radians; with `concentration`, instead of the sizes.
        concentration: (K, D), positive; one over it is about the variance.
        floor: one over the largest concentration that the M-step gives: without it a state that settles on one
            direction has unbounded likelihood.

    Raises:
        StatespanError: one of loc and concentration is given without the other, or a concentration not above 0.

    Source:
        Mardia and Jupp, Directional Statistics 2000, section 5.3.1: I1(c) / I0(c) is the mean resultant length.

    Example:
        >>> VonMises(loc=[[0.0], [3.0]], concentration=[[2.0], [8.0]]).concentration.shape
        torch.Size([2, 1])
    """

    concentration = positive("log_concentration", "How tightly angles lie about loc, (K, D).")

    def __init__(
        self,
        dim: int = 1,
        states: int | None = None,
        loc: Any = None,
        concentration: Any = None,
        floor: float = 1e-6,
    ):
        super().__init__()
        m, c = tables("VonMises", loc=(loc,), concentration=(concentration, 0.0))
        self.states, self.dim = (states, dim) if m is None else m.shape
        self.remember(dim=self.dim, states=self.states, loc=None, concentration=None)
        self.event, self.floor = Event(1, None, self.dim), floor
        if self.states is not None:
            shape = self.states, self.dim
            self.loc = nn.Parameter((torch.rand(shape) * 2 - 1) * math.pi if m is None else m.clone())
            self.log_concentration = nn.Parameter(torch.randn(shape) / 2 if c is None else c.log())

    @property
    def mean(self) -> Tensor:
        """The mean directions, (K, D), radians."""
        return self.loc

    def features(self, y: Tensor) -> Tensor:
        """Cosine and sine."""
        return torch.stack([y.cos(), y.sin()], -2)

    def base(self, y: Tensor) -> None:
        """Zero."""

    def natural(self) -> tuple[Tensor, Tensor]:
        """C (cos loc, sin loc); log(2 pi I0(c))."""
        c = self.concentration
        return torch.stack([c * self.loc.cos(), c * self.loc.sin()]), _log_bessel(c)

    def forward(self, z: Tensor, u: Tree = None) -> Distribution:
        """The distribution of y given states z, between -pi and pi."""
        return Independent(VonMisesDistribution(self.loc[z], self.concentration[z], validate_args=False), 1)

    def mixture(self, probs: Tensor, u: Tree, constants: Tree) -> Distribution:
        """A mixture of the states' directions, whose mean is a direction."""
        each = self.forward(torch.arange(probs.shape[-1], device=probs.device)).expand(probs.shape)
        weights = torch.distributions.Categorical(probs=probs, validate_args=False)
        return Directions(weights, each, self._resultant(probs), validate_args=False)

    def fill(self, y: Tensor, u: Tree, observed: Tensor | None, weights: Tensor) -> Tensor:
        """The mean direction."""
        return self._resultant(weights)

    def _resultant(self, weights: Float[Tensor, "*N K"]) -> Float[Tensor, "*N D"]:
        """The direction of the mean unit vector."""
        c = self.concentration
        length = torch.special.i1e(c) / torch.special.i0e(c)
        return torch.atan2(weights @ (length * self.loc.sin()), weights @ (length * self.loc.cos()))

    @torch.no_grad()
    def maximize(self, stats: Sums) -> None:
        """The maximum, by bisection for the concentration; a coordinate never seen keeps its parameters."""
        (cosine, sine), seen = averages(stats)
        if self.loc.requires_grad:
            length = torch.hypot(cosine, sine)
            self.loc.copy_(torch.where(seen, torch.atan2(sine, cosine), self.loc))
        else:
            length = cosine * self.loc.cos() + sine * self.loc.sin()
        target = torch.where(seen, length, 0.5).double()
        c = root(lambda x: torch.special.i1e(x) / torch.special.i0e(x) - target, 1e-6, 1 / self.floor, target)
        self.log_concentration.copy_(torch.where(seen, c.to(length).log(), self.log_concentration))


class Directions(MixtureSameFamily):
    """A mixture of directions: its mean is the direction of the mean unit vector."""

    def __init__(self, weights: Any, each: Distribution, resultant: Tensor, validate_args: bool | None = None):
        super().__init__(weights, each, validate_args=validate_args)
        self.resultant = resultant

    @property
    def mean(self) -> Tensor:
        """(..., D), radians."""
        return self.resultant


def _log_bessel(c: Tensor) -> Tensor:
    """Log(2 pi I0(c))."""
    return torch.special.i0e(c).log() + c + math.log(2 * math.pi)
