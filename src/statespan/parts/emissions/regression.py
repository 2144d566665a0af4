"""Regressions on inputs and on past observations: linear, logistic, Poisson."""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Independent, MultivariateNormal, Poisson

from statespan.errors import StatespanError
from statespan.part import FiniteEmission, Generative, Part, mixed
from statespan.parts.emissions.common import first_weights, known
from statespan.parts.emissions.counts import BITS, COUNTS
from statespan.parts.emissions.gaussian import Gaussian
from statespan.parts.emissions.normal import completed, log_normal
from statespan.sequences import Event
from statespan.shapes import Float
from statespan.tree import Tree


def design(u: Tree, inputs: int, lags: int, like: Tensor) -> Tensor:
    """What is regressed on, (..., F): the inputs, the past from the latest back, and a one.

    Args:
        u: inputs (..., U), or with `lags` a pair of those and the past (..., lags, D).
        inputs: U.
        lags: how many past observations.
        like: (..., D) of the answer's shape, dtype and device, where there is neither.
    """
    given, past = u if lags else (u, None)
    width = 0 if given is None else given.shape[-1]
    if width != inputs:
        raise StatespanError(f"this emission is a regression on {inputs} inputs, and {width} are given; give inputs=")
    columns = [x for x in (given, None if past is None else past.flatten(-2)) if x is not None]
    return torch.cat([*columns, like.new_ones(*(columns[0] if columns else like).shape[:-1], 1)], -1)


def past_of(y: Tensor, lags: int) -> Tensor:
    """(T, B, lags, D): the observations before each, the latest first, zeros before the start."""
    return torch.stack([torch.cat([torch.zeros_like(y[:j]), y[:-j]])[: len(y)] for j in range(1, lags + 1)], -2)


class LinearRegression(Part, FiniteEmission, Generative):
    r"""Vectors that follow inputs and their own past: y_t = W_k u_t + sum over j of A_kj y_{t-j} + b_k + noise.

    The noise is normal with the state's covariance. With `lags` and no inputs this is the autoregressive HMM; the first
    `lags` steps of a sequence are taken as given. A missing coordinate is marginalised; with `lags` a gap must not be
    looked back on.

    Args:
        dim: D.
        inputs: U, 0 for none.
        states: K; None leaves it to `ss.hmm`.
        covariance: of the noise: "full", "diagonal", "spherical" or "tied".
        lags: how many past observations each step sees.
        floor: the least variance of the noise in any direction that the M-step gives.

    Raises:
        StatespanError: nothing to regress on, a negative width, or inputs that are missing.

    Source:
        Hamilton, "Analysis of time series subject to changes in regime", J. Econometrics 1990; Cappe, Moulines and
        Ryden, Inference in Hidden Markov Models 2005, section 1.3.

    Example:
        >>> import statespan as ss, torch
        >>> model = ss.hmm(states=2, emission=LinearRegression(dim=1, inputs=2, lags=1), seed=0)
        >>> model.log_prob(torch.randn(9, 1), inputs=torch.randn(9, 2)).shape
        torch.Size([])
    """

    class Stats(NamedTuple):
        """Weights (K,); sums of x x' (K, F, F), of r x' (K, D, F) and r r' (K, D, D), r the differences now."""

        weight: Tensor
        design: Tensor
        cross: Tensor
        square: Tensor

    def __init__(
        self,
        dim: int = 1,
        inputs: int = 0,
        states: int | None = None,
        covariance: str = "full",
        lags: int = 0,
        floor: float = 1e-6,
    ):
        super().__init__()
        if inputs < 0 or lags < 0 or inputs + lags < 1:
            raise StatespanError(f"LinearRegression(inputs={inputs}, lags={lags}): regress on at least one of the two")
        self.dim, self.inputs, self.states, self.lags = dim, inputs, states, lags
        self.kind, self.floor = covariance, floor
        self.event, self.width = Event(1, None, dim), inputs + lags * dim + 1
        self.noise = Gaussian(dim, covariance, states, floor=floor)
        if states is not None:
            self.noise.mean.requires_grad_(False).zero_()
            self.coefficients = nn.Parameter(torch.randn(states, dim, self.width) / self.width)

    @property
    def weight(self) -> Tensor:
        """W, (K, D, U)."""
        return self.coefficients[..., : self.inputs]

    @property
    def autoregression(self) -> Tensor:
        """A, (K, lags, D, D), the latest first."""
        return self.coefficients[..., self.inputs : -1].unflatten(-1, (self.lags, self.dim)).transpose(1, 2)

    @property
    def bias(self) -> Tensor:
        """b, (K, D)."""
        return self.coefficients[..., -1]

    @property
    def covariance(self) -> Tensor:
        """Of the noise, (K, D, D)."""
        return self.noise.covariance

    def constants(self) -> Tensor:
        """The covariance."""
        return self.covariance

    def _expected(self, u: Tree, like: Tensor) -> tuple[Tensor, Tensor]:
        """What is regressed on (..., F), and the states' means (..., K, D)."""
        x = design(u, self.inputs, self.lags, like)
        return x, (x @ self.coefficients.flatten(0, 1).T).unflatten(-1, self.coefficients.shape[:2])

    def log_likelihood(
        self, y: Float[Tensor, "T B D"], u: Tree, observed: Tensor | None, constants: Tensor
    ) -> Float[Tensor, "T B K"]:
        """Log-densities, over the coordinates that are there."""
        rest = (y[..., None, :] - self._expected(u, y)[1]).flatten(0, -3)
        mask = None if observed is None or observed.dim() == 2 else observed.flatten(0, -2)
        return log_normal(rest, mask, constants).view(*y.shape[:-1], -1)

    def forward(self, z: Tensor, u: Tree = None) -> MultivariateNormal:
        """The distribution of y given states z."""
        x = design(u, self.inputs, self.lags, self.coefficients[0, :, 0])
        x = x if x.dim() > z.dim() else x[..., None, :]
        mean = (self.coefficients[z] @ x[..., None])[..., 0]
        return MultivariateNormal(mean, scale_tril=self.noise.factor()[z], validate_args=False)

    def mixture(self, probs: Tensor, u: Tree, constants: Tensor) -> Distribution:
        """A mixture of the states' normals."""
        mean = self._expected(u, probs)[1].expand(*probs.shape, self.dim)
        factor = self.noise.factor().expand(*mean.shape, self.dim)
        return mixed(probs, MultivariateNormal(mean, scale_tril=factor, validate_args=False))

    def fill(self, y: Tensor, u: Tree, observed: Tensor | None, weights: Tensor) -> Tensor:
        """The mean, given what is there of each row."""
        mean = self._expected(u, y)[1]
        if observed is not None and observed.dim() == 3:
            rest, whole = (y[..., None, :] - mean).flatten(0, -3), mean.flatten(0, -3).clone()
            for rows, some, _ in completed(rest, observed.flatten(0, -2), self.covariance):
                whole[rows] = whole[rows] + some
            mean = whole.view_as(mean)
        return torch.einsum("...k,...kd->...d", weights, mean)

    @torch.no_grad()
    def statistics(self, y: Tensor, u: Tree, weights: Tensor, observed: Tensor | None) -> "LinearRegression.Stats":
        """Expected sums; a missing coordinate counts by its conditional mean and covariance in each state."""
        x, mean = self._expected(u, y)
        x, rest, w = x.flatten(0, -2), (y[..., None, :] - mean).flatten(0, -3), weights.flatten(0, -2)
        mask = None if observed is None or observed.dim() == 2 else observed.flatten(0, -2)
        if mask is not None:
            w = torch.where(mask.any(-1, keepdim=True), w, 0.0)
        cross, square = torch.zeros_like(self.coefficients), torch.zeros_like(self.covariance)
        for rows, some, extra in completed(rest, mask, self.covariance):
            weighted = w[rows][..., None] * some
            cross = cross + torch.einsum("nkd,nf->kdf", weighted, x[rows])
            square = square + torch.einsum("nkd,nke->kde", weighted, some) + w[rows].sum(0)[:, None, None] * extra
        return self.Stats(w.sum(0), torch.einsum("nk,nf,ng->kfg", w, x, x), cross, square)

    @torch.no_grad()
    def maximize(self, stats: "LinearRegression.Stats") -> None:
        """Least squares (the shortest answer where there are several), then the covariance of what is left."""
        step = torch.zeros_like(stats.cross)
        if self.coefficients.requires_grad:
            step = stats.cross @ torch.linalg.pinv(stats.design, hermitian=True, rtol=1e-12)
        across = step @ stats.cross.mT
        scatter = stats.square - across - across.mT + step @ stats.design @ step.mT
        self.coefficients.add_(torch.where((stats.weight > 0)[:, None, None], step, 0.0))
        self.noise.set_scatter(torch.zeros_like(self.noise.mean), scatter, stats.weight)

    @torch.no_grad()
    def begin(self, y: Tensor, u: Tree, observed: Tensor | None) -> None:
        """A start for EM from the data: the M-step for states at rows far apart (k-means++)."""
        weights = first_weights(y, observed, len(self.coefficients))
        if self.lags:
            u, weights[: self.lags] = (u, past_of(y, self.lags)), 0.0
        self.maximize(self.statistics(y, u, weights, observed))


class Newton(NamedTuple):
    """Slopes (K, D, F), curvatures (K, D, F, F), and of each feature the largest size, (F,).

    The last adds up over batches to no less than the largest.
    """

    slope: Tensor
    curvature: Tensor
    largest: Tensor


class GeneralisedLinear(FiniteEmission, ABC):
    r"""Coordinates that are independent given the state and eta = W_k u_t + b_k, of a canonical exponential family.

    log p(y | eta) = y eta - a(eta) + h(y). What is to be written are a, its first two derivatives, h and the
    distribution. The M-step is one Newton step an iteration, shortened by log(1 + d) / d where d bounds how far it
    moves any eta: as |a'''| is at most a'', it never lowers the expected log-likelihood.

    Source:
        McCullagh and Nelder, Generalized Linear Models 1989, section 2.5; step: Sun and Tran-Dinh, "Generalized
        self-concordant functions", Math. Programming 2019, section 4.1 (nu = 2).
    """

    dim: int
    inputs: int
    precision: float
    coefficients: Tensor

    @abstractmethod
    def link(self, eta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """a(eta), the mean a'(eta) and the variance a''(eta)."""

    @abstractmethod
    def base(self, y: Tensor) -> Tensor:
        """h(y)."""

    @abstractmethod
    def law(self, eta: Tensor) -> Distribution:
        """The distribution of y under eta, (..., D)."""

    @property
    def weight(self) -> Tensor:
        """W, (K, D, U)."""
        return self.coefficients[..., :-1]

    @property
    def bias(self) -> Tensor:
        """b, (K, D)."""
        return self.coefficients[..., -1]

    def constants(self) -> Tensor:
        """The coefficients as a matrix, (F, K D)."""
        return self.coefficients.flatten(0, 1).T

    def _eta(self, u: Tree, like: Tensor) -> tuple[Tensor, Tensor]:
        x = design(u, self.inputs, 0, like)
        return x, (x @ self.coefficients.flatten(0, 1).T).unflatten(-1, self.coefficients.shape[:2])

    def log_likelihood(
        self, y: Float[Tensor, "T B D"], u: Tree, observed: Tensor | None, constants: Tensor
    ) -> Float[Tensor, "T B K"]:
        """Log-probabilities, over the coordinates that are there."""
        y, there = known(y, observed, 0.0)
        eta = self._eta(u, y)[1]
        each = y[..., None, :] * eta - self.link(eta)[0] + self.base(y)[..., None, :]
        return (each if there is None else each * there[..., None, :]).sum(-1)

    def forward(self, z: Tensor, u: Tree = None) -> Distribution:
        """The distribution of y given states z."""
        x = design(u, self.inputs, 0, self.coefficients[0, :, 0])
        x = x if x.dim() > z.dim() else x[..., None, :]
        return self.law((self.coefficients[z] @ x[..., None])[..., 0])

    def mixture(self, probs: Tensor, u: Tree, constants: Tensor) -> Distribution:
        """A mixture of the states' distributions."""
        return mixed(probs, self.law(self._eta(u, probs)[1].expand(*probs.shape, self.dim)))

    def fill(self, y: Tensor, u: Tree, observed: Tensor | None, weights: Tensor) -> Tensor:
        """The mean."""
        return torch.einsum("...k,...kd->...d", weights, self.link(self._eta(u, y)[1])[1])

    def log_prior(self) -> Tensor:
        """A normal's about zero on each coefficient."""
        return -self.precision / 2 * self.coefficients.square().sum()

    @torch.no_grad()
    def statistics(self, y: Tensor, u: Tree, weights: Tensor, observed: Tensor | None) -> Newton:
        """Sums of slopes and curvatures at the coefficients as they are."""
        y, there = known(y, observed, 0.0)
        x, eta = self._eta(u, y)
        _, mean, variance = self.link(eta)
        w = weights[..., None].expand_as(eta)
        w = (w if there is None else w * there[..., None, :]).flatten(0, 1)
        x, rest = x.flatten(0, 1), y.flatten(0, 1)[:, None] - mean.flatten(0, 1)
        slope = torch.einsum("nkd,nf->kdf", w * rest, x)
        pairs = (x[:, :, None] * x[:, None]).flatten(1)
        curvature = torch.einsum("nkd,np->kdp", w * variance.flatten(0, 1), pairs)
        return Newton(slope, curvature.unflatten(-1, (x.shape[-1], -1)), x.abs().amax(0))

    @torch.no_grad()
    def maximize(self, stats: Newton) -> None:
        """One shortened Newton step."""
        eye = torch.eye(self.coefficients.shape[-1]).to(stats.slope)
        precision = max(self.precision, 1e-12)
        slope = stats.slope - precision * self.coefficients
        step = torch.linalg.solve(stats.curvature + precision * eye, slope)
        reach = (step.abs() * stats.largest).sum(-1, keepdim=True).clamp_min(1e-12)
        seen = (stats.curvature.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)) > 0
        self.coefficients.add_(torch.where(seen, step * torch.log1p(reach) / reach, 0.0))

    @torch.no_grad()
    def begin(self, y: Tensor, u: Tree, observed: Tensor | None) -> None:
        """A start for EM from the data: ten steps for states at rows far apart (k-means++)."""
        weights = first_weights(y, observed, len(self.coefficients))
        for _ in range(10):
            self.maximize(self.statistics(y, u, weights, observed))


class LogisticRegression(GeneralisedLinear, Part, Generative):
    r"""Zeros and ones that follow inputs: p(y_d = 1 | z = k) = sigmoid(W_kd u_t + b_kd).

    Args:
        dim: D.
        inputs: U.
        states: K; None leaves it to `ss.hmm`.
        precision: of a normal prior about zero on each coefficient: without one, inputs that separate the ones from
            the zeros have unbounded coefficients.

    Source:
        McCullagh and Nelder, Generalized Linear Models 1989, chapter 4.

    Example:
        >>> LogisticRegression(dim=1, inputs=3, states=2).weight.shape
        torch.Size([2, 1, 3])
    """

    def __init__(self, dim: int = 1, inputs: int = 1, states: int | None = None, precision: float = 1e-6):
        super().__init__()
        self.dim, self.inputs, self.states, self.precision = dim, inputs, states, precision
        self.event = Event(1, None, dim, BITS)
        if states is not None:
            self.coefficients = nn.Parameter(torch.randn(states, dim, inputs + 1) / math.sqrt(inputs + 1))

    def link(self, eta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log(1 + e^eta), p and p (1 - p)."""
        p = eta.sigmoid()
        return nn.functional.softplus(eta), p, p * (1 - p)

    def base(self, y: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(y)

    def law(self, eta: Tensor) -> Distribution:
        """Independent coins."""
        return Independent(Bernoulli(logits=eta, validate_args=False), 1, validate_args=False)


class PoissonRegression(GeneralisedLinear, Part, Generative):
    r"""Counts that follow inputs: y_d ~ Poisson(exp(W_kd u_t + b_kd)).

    Args:
        dim: D.
        inputs: U.
        states: K; None leaves it to `ss.hmm`.
        precision: of a normal prior about zero on each coefficient: without one, zeros alone have an unbounded bias.

    Source:
        McCullagh and Nelder, Generalized Linear Models 1989, chapter 6.

    Example:
        >>> PoissonRegression(dim=1, inputs=3, states=2).bias.shape
        torch.Size([2, 1])
    """

    def __init__(self, dim: int = 1, inputs: int = 1, states: int | None = None, precision: float = 1e-6):
        super().__init__()
        self.dim, self.inputs, self.states, self.precision = dim, inputs, states, precision
        self.event = Event(1, None, dim, COUNTS)
        if states is not None:
            self.coefficients = nn.Parameter(torch.randn(states, dim, inputs + 1) / math.sqrt(inputs + 1))

    def link(self, eta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The rate, three times."""
        rate = eta.exp()
        return rate, rate, rate

    def base(self, y: Tensor) -> Tensor:
        """Minus log y!."""
        return -torch.lgamma(y + 1)

    def law(self, eta: Tensor) -> Distribution:
        """Independent counts."""
        return Independent(Poisson(eta.exp(), validate_args=False), 1, validate_args=False)
