"""Normal vectors."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from statespan.errors import StatespanError
from statespan.kernels import diagonal_normal
from statespan.part import FiniteEmission, Generative, Part
from statespan.parts.emissions.common import spread_out, whole_rows
from statespan.parts.emissions.normal import floored, given, patterns, units_of
from statespan.parts.priors import NormalInverseWishart
from statespan.sequences import Event
from statespan.shapes import Float
from statespan.tree import Tree

COVARIANCES = ("full", "diagonal", "spherical", "tied")
WIDEST = 24
"""The D up to which the products of all coordinates are made."""


class Gaussian(Part, FiniteEmission, Generative):
    r"""Vectors: p(y | z = k) = N(y; mean_k, covariance_k).

    The covariance is kept as a lower triangular factor whose diagonal is exponentiated, so that any value of the
    parameters is a covariance. A missing coordinate is marginalised.

    Args:
        dim: D.
        covariance: "full", "diagonal", "spherical" (one variance a state) or "tied" (one matrix for all states).
        states: K; None leaves it to `ss.hmm`.
        mean: (K, D), to give the parameters instead of the sizes; `covariance` is then the matrices (K, D, D).
        floor: the least variance in any direction that the M-step gives: without one a state that settles on one point
            has unbounded likelihood. It is in the units of y squared, or, of a coordinate whose variance over all data
            is below 1, a share of that variance, so that small units do not matter.
        prior_scale: Psi of a normal-inverse-Wishart prior on mean and covariance, (D, D) or (K, D, D), or a number for
            that times the identity; None is no prior on the covariance. Psi is added to each scatter.
        degrees: nu of it; each scatter is divided by its weight + nu + D + 1 (+ 1 where `mean_strength` is positive).
            D + 2 unless you say otherwise: then Psi is the covariance expected a priori.
        mean_strength: kappa of it: the prior mean counts as that many observations; 0 is no prior on the means.
        prior_mean: (D,), (K, D) or a number.

    hmmlearn's defaults are `prior_scale=1e-2, degrees=-D - 1` for "diagonal" and "spherical" (its `covars_prior`, and
    max(`covars_weight` - 1, 0) - D - 1 in general), and for "full" and "tied" a (D, D) matrix full of 1e-2, as it adds
    the number to every entry, with degrees max(`covars_weight` - D, 0) - D - 1; one less where its
    `means_weight`, our `mean_strength`, is positive.

    Raises:
        StatespanError: a covariance of no such kind; means without matrices, or matrices that are no covariances; a
            prior that is none.

    Source:
        Bishop, Pattern Recognition and Machine Learning 2006, sections 9.2 and 13.2; prior: Murphy, Machine Learning: A
        Probabilistic Perspective 2012, section 4.6.3.3.

    Example:
        >>> Gaussian(dim=2, states=3).covariance.shape
        torch.Size([3, 2, 2])
    """

    class Stats(NamedTuple):
        """Sums over observations: weights (K,), weighted x (K, D) and x x' (K, D, D), x = y - the state's mean now.

        About the mean, not about zero, so that nothing cancels where y is large and its spread is small. Where the
        covariance is diagonal the last are squares, (K, D).
        """

        weight: Tensor
        first: Tensor
        second: Tensor

    def __init__(
        self,
        dim: int = 1,
        covariance: Any = "full",
        states: int | None = None,
        mean: Any = None,
        floor: float = 1e-6,
        prior_scale: Any = None,
        degrees: float | None = None,
        mean_strength: float = 0.0,
        prior_mean: Any = 0.0,
    ):
        super().__init__()
        given = None
        if mean is not None:
            given = _moments(mean, covariance)
            states, dim = given[0].shape
            covariance = "full"
        if not isinstance(covariance, str) or covariance not in COVARIANCES:
            raise StatespanError(f"covariance={covariance!r} is none of {', '.join(COVARIANCES)}; choose one of them")
        self.dim, self.kind, self.states, self.floor = dim, covariance, states, floor
        self.units: Tensor | None = None
        """In which the floor is measured, of the data seen last."""
        self.remember(dim=dim, covariance=covariance, states=states, mean=None)
        self.event = Event(1, None, dim)
        self.prior = NormalInverseWishart.check(dim, prior_scale, degrees, mean_strength, prior_mean)
        if states is not None:
            self.mean = nn.Parameter(torch.randn(states, dim))
            self.log_diagonal = nn.Parameter(torch.zeros(*_diagonal_shape(covariance, states, dim)))
            free = covariance in ("full", "tied")
            self.lower = nn.Parameter(torch.zeros(1 if covariance == "tied" else states, dim, dim)) if free else None
        if given is not None:
            self.to(torch.float64).set_moments(*given)

    @property
    def plain(self) -> bool:
        """Whether coordinates are independent given the state."""
        return self.kind in ("diagonal", "spherical")

    def factor(self) -> Tensor:
        """The lower triangular L with covariance L L', (K, D, D)."""
        diagonal = self.log_diagonal.exp().expand(len(self.mean), self.dim)
        full = torch.diag_embed(diagonal)
        return full if self.lower is None else full + self.lower.tril(-1)

    @property
    def covariance(self) -> Tensor:
        """(K, D, D)."""
        factor = self.factor()
        return factor @ factor.mT

    @property
    def variance(self) -> Tensor:
        """The covariances' diagonals, (K, D)."""
        if self.plain:
            return (2 * self.log_diagonal).exp().expand(len(self.mean), self.dim)
        return self.factor().square().sum(-1)

    def constants(self) -> Any:
        """The factor and its inverse; nothing where the covariance is diagonal."""
        if self.plain:
            return ()
        factor = self.factor()
        eye = torch.eye(self.dim, dtype=factor.dtype, device=factor.device)
        return factor, torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)

    def log_likelihood(
        self, y: Float[Tensor, "T B D"], u: Tree, observed: Tensor | None, constants: Any
    ) -> Float[Tensor, "T B K"]:
        """Log N(y; mean_k, covariance_k), (T, B, K), over the coordinates that are there."""
        if self.plain:
            return self._log_plain(y, observed)
        factor, inverse = constants
        if observed is None or observed.dim() == 2:
            return _log_normal(y, self.mean, inverse)
        covariance = factor @ factor.mT
        flat, mask = y.reshape(-1, self.dim), observed.reshape(-1, self.dim)
        out = y.new_zeros(len(flat), len(self.mean))
        for rows, there in patterns(mask):
            if bool(there.any()):
                part = torch.linalg.cholesky(covariance[:, there][:, :, there])
                eye = torch.eye(part.shape[-1], dtype=part.dtype, device=part.device)
                inverse = torch.linalg.solve_triangular(part, eye.expand_as(part), upper=False)
                out = out.index_copy(0, rows, _log_normal(flat[rows][:, there], self.mean[:, there], inverse))
        return out.view(*y.shape[:-1], len(self.mean))

    def likelihood(self, y: Tensor, u: Tree, observed: Tensor | None, constants: Any) -> tuple[Tensor, Tensor]:
        """By one loop where the covariance is diagonal."""
        if not (self.plain and diagonal_normal.usable(y, self.mean, self.log_diagonal)):
            return super().likelihood(y, u, observed, constants)
        value, log_scale = self._by_rows(y, observed, scaling=True)
        return value.view(*y.shape[:-1], -1), log_scale.view(y.shape[:-1])

    def _by_rows(self, y: Tensor, observed: Tensor | None, scaling: bool) -> tuple[Tensor, Tensor]:
        log_scale = self.log_diagonal.expand_as(self.mean)
        return diagonal_normal.densities(*self._rows(y, observed), self.mean, log_scale, scaling)

    def _rows(self, y: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Rows (N, D), and where some coordinates are missing which are there; rows that are wholly missing stay."""
        mask = None if observed is None or observed.dim() == 2 else observed.reshape(-1, self.dim)
        return y.reshape(-1, self.dim), mask

    def _log_plain(self, y: Tensor, observed: Tensor | None) -> Tensor:
        """By one loop, or where a gradient is asked for by one matrix product.

        That is of (y - c)^2, y - c and 1, about a common centre c, with what the states say of them.
        """
        if diagonal_normal.usable(y, self.mean, self.log_diagonal):
            return self._by_rows(y, observed, scaling=False)[0].view(*y.shape[:-1], -1)
        rows, there = self._rows(y, observed)
        centre = self.mean.detach().mean(0)
        x = rows - centre if there is None else torch.where(there, rows - centre, 0.0)
        mask = None if there is None else there.to(x)
        mean, log_scale = self.mean - centre, self.log_diagonal.expand_as(self.mean)
        precision = (-2 * log_scale).exp()
        rest = 0.5 * mean.square() * precision + log_scale + 0.5 * math.log(2 * math.pi)
        if _loses(x, mean, precision):  # too far apart for squares to be taken about one centre
            part = (x[:, None] - mean).square() if mask is None else (x[:, None] - mean).square() * mask[:, None]
            norm = log_scale + 0.5 * math.log(2 * math.pi)
            norm = norm.sum(-1) if mask is None else mask @ norm.T
            return (-0.5 * (part * precision).sum(-1) - norm).view(*y.shape[:-1], -1)
        rest = rest.sum(-1, keepdim=True) if mask is None else rest
        matrix = torch.cat([-0.5 * precision, mean * precision, -rest], 1)
        return (_features(x, mask) @ matrix.T).view(*y.shape[:-1], -1)

    def forward(self, z: Tensor, u: Tree = None) -> MultivariateNormal:
        """The distribution of y given states z."""
        return MultivariateNormal(self.mean[z], scale_tril=self.factor()[z], validate_args=False)

    @torch.no_grad()
    def set_moments(self, mean: Tensor, covariance: Tensor) -> None:
        """Set means (K, D) and covariances (K, D, D)."""
        self.mean.copy_(mean)
        if self.plain:
            self.log_diagonal.copy_(covariance.diagonal(dim1=-2, dim2=-1)[:, : self.log_diagonal.shape[-1]].log() / 2)
            return
        factor = torch.linalg.cholesky(covariance.to(self.mean))
        diagonal = factor.diagonal(dim1=-2, dim2=-1).log()
        assert self.lower is not None
        self.lower.copy_(factor[: len(self.lower)].tril(-1))
        self.log_diagonal.copy_(diagonal[: len(self.log_diagonal)])

    def fill(self, y: Tensor, u: Tree, observed: Tensor | None, weights: Tensor) -> Tensor:
        """The mean, given what is there of each row."""
        if self.plain or observed is None or observed.dim() == 2:
            return weights @ self.mean
        out, w = torch.zeros_like(y).view(-1, self.dim), weights.reshape(-1, weights.shape[-1])
        for rows, filled, _ in self._patterns(y, observed):
            out[rows] = torch.einsum("nk,knd->nd", w[rows], filled)
        return out.view_as(y)

    def _patterns(self, y: Tensor, observed: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Each pattern of gaps: its rows (N,), y with conditional means (K, n, D), conditional covariance (K, D, D)."""
        flat, mask, covariance = y.reshape(-1, self.dim), observed.reshape(-1, self.dim), self.covariance
        for rows, there in patterns(mask):
            gone, gain, rest = given(covariance, there)
            x = flat[rows]
            filled = x.expand(len(self.mean), *x.shape).clone()
            centred = x[:, there] - self.mean[:, None, there]
            filled[..., gone] = self.mean[:, None, gone] + centred @ gain.mT
            yield rows, filled, rest

    @torch.no_grad()
    def statistics(self, y: Tensor, u: Tree, weights: Tensor, observed: Tensor | None) -> "Gaussian.Stats":
        """Expected sums; a missing coordinate counts by its conditional mean and covariance in each state."""
        flat, w = y.reshape(-1, self.dim), weights.reshape(-1, weights.shape[-1])
        if self.plain:
            return self._plain_sums(y, w, observed)
        if observed is None or observed.dim() == 2:
            return self._sums(flat.expand(len(self.mean), -1, -1), w)
        total = self.Stats(*(torch.zeros_like(x) for x in (w[0], self.mean, self.covariance)))
        some = observed.any(-1, keepdim=True).reshape(-1, 1)
        w = torch.where(some, w, 0.0)
        for rows, filled, rest in self._patterns(y, observed):
            new = self._sums(filled, w[rows])
            new = new._replace(second=new.second + new.weight[:, None, None] * rest)
            total = self.Stats(*(a + b for a, b in zip(total, new, strict=True)))
        return total

    def _sums(self, y: Tensor, weights: Tensor) -> "Gaussian.Stats":
        """Sums over rows y (K, n, D), the same or other rows for each state, with weights (n, K)."""
        each = []
        for k, rows in enumerate(y):  # a state at a time: K copies of the data would not fit
            x, w = rows - self.mean[k], weights[:, k]
            each.append((w.sum(), w @ x, x.T @ (w[:, None] * x)))
        return self.Stats(*(torch.stack(sums) for sums in zip(*each, strict=True)))

    def _plain_sums(self, y: Tensor, weights: Tensor, observed: Tensor | None) -> "Gaussian.Stats":
        """Sums of a diagonal covariance's; a missing coordinate counts by its mean and variance."""
        rows, mask = self._rows(y, observed)
        if mask is not None:
            weights = torch.where(mask.any(-1, keepdim=True), weights, 0.0)
        whole, counted, first, second = diagonal_normal.sums(rows, mask, self.mean, weights)
        return self.Stats(whole, first, second + (whole[:, None] - counted) * self.variance)

    @torch.no_grad()
    def maximize(self, stats: "Gaussian.Stats") -> None:
        """Closed-form M-step, about the means that are held if they are; a state never visited keeps its parameters."""
        weight, first, prior = stats.weight, stats.first, self.prior
        seen = weight > 0
        shift = torch.zeros_like(first)
        if self.mean.requires_grad:
            pull = prior.mean_strength * (prior.location(self.mean) - self.mean)
            shift = (first + pull) / (weight + prior.mean_strength).clamp_min(torch.finfo(weight.dtype).tiny)[:, None]
        mean = self.mean + torch.where(seen[:, None], shift, 0.0)
        if self.plain:
            off = mean - prior.location(self.mean)
            scatter = stats.second - 2 * shift * first + weight[:, None] * shift.square()
            scatter = scatter + prior.mean_strength * off.square() + prior.psi(first).diagonal(dim1=-2, dim2=-1)
            variance = scatter / (weight + prior.extra(self.dim)).clamp_min(torch.finfo(weight.dtype).tiny)[:, None]
            if self.kind == "spherical":
                variance = variance.mean(-1, keepdim=True)
            self.units = units_of(mean, stats.second - shift * first, weight)
            low = self.floor * (self.units.square() if self.kind == "diagonal" else self.units.square().min())
            log_diagonal = variance.clamp_min(low).log() / 2
            self.log_diagonal.copy_(torch.where(seen[:, None], log_diagonal, self.log_diagonal))
            self.mean.copy_(mean)
            return
        cross = shift[:, :, None] * first[:, None]
        scatter = stats.second - cross - cross.mT + weight[:, None, None] * shift[:, :, None] * shift[:, None]
        self.set_scatter(mean, scatter, weight)

    @torch.no_grad()
    def set_scatter(self, mean: Tensor, scatter: Tensor, weight: Tensor) -> None:
        """Set means (K, D), and covariances from scatters about them (K, D, D), their weights (K,) and the prior."""
        prior, seen = self.prior, weight > 0
        if bool(mean.any()):  # not what is left of a regression
            self.units = units_of(mean, scatter.diagonal(dim1=-2, dim2=-1), weight)
        off = mean - prior.location(self.mean)
        scatter = scatter + prior.mean_strength * off[:, :, None] * off[:, None]
        if self.kind == "tied":
            total = weight.sum() + prior.extra(self.dim, len(mean))
            covariance = ((scatter.sum(0) + prior.psi(mean)) / total).expand_as(scatter)
        else:
            total = (weight + prior.extra(self.dim)).clamp_min(torch.finfo(weight.dtype).tiny)
            covariance = (scatter + prior.psi(mean)) / total[:, None, None]
        covariance = floored(self._restricted(covariance), self.floor, self.units)
        keep = seen[:, None, None] if self.kind != "tied" else torch.ones_like(seen)[:, None, None]
        self.set_moments(mean, torch.where(keep, covariance, self.covariance))

    def log_prior(self) -> Tensor | float:
        """The normal-inverse-Wishart's log-density."""
        return self.prior.log(self.mean, self.factor(), self.kind == "tied")

    @torch.no_grad()
    def begin(self, y: Tensor, u: Tree, observed: Tensor | None) -> None:
        """A start for EM from the data: means at K data points far apart (k-means++), the overall covariance."""
        points = whole_rows(y, observed)
        if len(points) < 2:
            return
        centred = points - points.mean(0)
        covariance = self._restricted((centred.T @ centred / len(points)).expand(len(self.mean), -1, -1))
        self.units = units_of(
            points.mean(0, keepdim=True), centred.square().sum(0, keepdim=True), points.new_full((1,), len(points))
        )
        self.set_moments(spread_out(points, len(self.mean))[0], floored(covariance, self.floor, self.units))

    def _restricted(self, covariance: Tensor) -> Tensor:
        """The covariances (K, D, D) as the kind allows: their diagonals, or the mean of those."""
        if not self.plain:
            return covariance
        variances = covariance.diagonal(dim1=-2, dim2=-1)
        if self.kind == "spherical":
            variances = variances.mean(-1, keepdim=True).expand_as(variances)
        return torch.diag_embed(variances)


def _features(x: Tensor, mask: Tensor | None) -> Tensor:
    """Squares, values and what is there of rows (N, D), side by side; one column of ones where all is."""
    return torch.cat([x.square(), x, x.new_ones(len(x), 1) if mask is None else mask], 1)


def _moments(mean: Any, covariance: Any) -> tuple[Tensor, Tensor]:
    """Check means (K, D) and covariances (K, D, D)."""
    if isinstance(covariance, str):
        raise StatespanError("Gaussian(mean=) needs covariance= as matrices (K, D, D) too, or give states= instead")
    mean = torch.as_tensor(mean, dtype=torch.float64)
    covariance = torch.as_tensor(covariance, dtype=torch.float64)
    if mean.dim() != 2 or covariance.shape != (*mean.shape, mean.shape[-1]):
        raise StatespanError(
            f"Gaussian: mean is {tuple(mean.shape)} and covariance {tuple(covariance.shape)}; give (K, D) and (K, D, D)"
        )
    bad = (torch.linalg.cholesky_ex(covariance).info > 0) | ((covariance - covariance.mT).abs().amax((-1, -2)) > 1e-6)
    if bool(bad.any()):
        raise StatespanError(f"Gaussian(covariance=): that of state {int(bad.nonzero()[0])} is not positive definite")
    return mean, covariance


def _diagonal_shape(kind: str, states: int, dim: int) -> tuple[int, int]:
    """How many variances there are."""
    return (1 if kind == "tied" else states, 1 if kind == "spherical" else dim)


def _log_normal(y: Tensor, mean: Tensor, inverse: Tensor) -> Tensor:
    """Log N(y; mean_k, (inverse_k' inverse_k)^-1): (..., D) to (..., K).

    As a product of the coordinates' products with what the states say of them, where that keeps the digits; else by
    whitening, D numbers a row and state.
    """
    states, dim = mean.shape
    centre = mean.detach().mean(0)  # so that little cancels where y is large
    x, about = (y - centre).reshape(-1, dim), mean - centre
    log_determinant = inverse.diagonal(dim1=-2, dim2=-1).log().sum(-1) - 0.5 * dim * math.log(2 * math.pi)
    offset = (inverse @ about[..., None])[..., 0]
    precision = inverse.mT @ inverse
    if dim <= WIDEST and not _loses(x, about, precision.abs()):
        i, j = torch.triu_indices(dim, dim, device=y.device)
        square = precision[:, i, j] * torch.where(i == j, -0.5, -1.0).to(y)
        linear = (precision @ about[..., None])[..., 0]
        rest = log_determinant - 0.5 * offset.square().sum(-1)
        features = torch.cat([x[:, i] * x[:, j], x, x.new_ones(len(x), 1)], 1)
        return (features @ torch.cat([square, linear, rest[:, None]], 1).T).view(*y.shape[:-1], states)
    white = (x @ inverse.reshape(states * dim, dim).T).unflatten(-1, (states, dim)) - offset
    return (log_determinant - 0.5 * white.square().sum(-1)).view(*y.shape[:-1], states)


@torch.no_grad()
def _loses(x: Tensor, mean: Tensor, precision: Tensor) -> bool:
    """Whether squares about the centre are so much larger than about the means that rounding would show.

    Args:
        x: rows about the centre, (N, D).
        mean: means about it, (K, D).
        precision: absolute values, (K, D, D), or a diagonal (K, D).
    """
    if not len(x):
        return False
    reach = _largest(x) + mean.abs().amax(0)
    across = precision * reach if precision.dim() == 2 else precision @ reach
    info = torch.finfo(x.dtype)
    return bool((across @ reach).max() * info.eps > (1e-4 if info.bits <= 32 else 1e-10))


def _largest(x: Tensor) -> Tensor:
    """The largest absolute value of each of few columns, (D,), of many rows (N, D)."""
    # Maxima over short rows are slow: 64 rows are taken as one, and then the 64 maxima.
    whole = len(x) // 64 * 64
    rest, wide = x[whole:], x[:whole].reshape(whole // 64, 64 * x.shape[1])
    candidates = [rest, -rest]
    if whole:
        candidates += [each.view(64, -1) for each in (wide.amax(0), -wide.amin(0))]
    return torch.cat(candidates).amax(0)
