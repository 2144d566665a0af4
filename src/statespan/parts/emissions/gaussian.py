"""Normal vectors."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Categorical as CategoricalDistribution
from torch.distributions import Distribution, MixtureSameFamily, MultivariateNormal

from statespan.errors import StatespanError
from statespan.part import FiniteEmission, Generative, Part
from statespan.sequences import Event
from statespan.shapes import Float
from statespan.tree import Tree

COVARIANCES = ("full", "diagonal", "spherical", "tied")


class Gaussian(Part, FiniteEmission, Generative):
    r"""Vectors: p(y | z = k) = N(y; mean_k, covariance_k).

    The covariance is kept as a lower triangular factor whose diagonal is exponentiated, so that any value of the
    parameters is a covariance. A missing coordinate is marginalised.

    Args:
        dim: D.
        covariance: "full", "diagonal", "spherical" (one variance a state) or "tied" (one matrix for all states).
        states: K; None leaves it to `ss.hmm`.
        mean: (K, D), to give the parameters instead of the sizes; `covariance` is then the matrices (K, D, D).
        floor: the least variance in any direction that the M-step gives, in the units of y squared: without one a state
            that settles on one point has unbounded likelihood.

    Source:
        Bishop, Pattern Recognition and Machine Learning 2006, sections 9.2 and 13.2.

    Example:
        >>> Gaussian(dim=2, states=3).covariance.shape
        torch.Size([3, 2, 2])
    """

    class Stats(NamedTuple):
        """Sums over observations: weights (K,), and weighted x (K, D) and x x' (K, D, D), x = y - the state's mean now.

        About the mean, not about zero, so that nothing cancels where y is large and its spread is small.
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
        self.event = Event(1, None, dim)
        if states is not None:
            self.mean = nn.Parameter(torch.randn(states, dim))
            self.log_diagonal = nn.Parameter(torch.zeros(*_diagonal_shape(covariance, states, dim)))
            free = covariance in ("full", "tied")
            self.lower = nn.Parameter(torch.zeros(1 if covariance == "tied" else states, dim, dim)) if free else None
        if given is not None:
            self.to(torch.float64).set_moments(*given)

    def recipe(self) -> tuple[tuple, dict[str, Any]]:
        """The sizes."""
        return (self.dim, self.kind, self.states), {"floor": self.floor}

    def sized(self, states: int) -> "Gaussian":
        """The same emission for K states, if it has none yet."""
        return self if self.states is not None else Gaussian(self.dim, self.kind, states, floor=self.floor)

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

    def constants(self) -> tuple[Tensor, Tensor]:
        """The factor and its inverse."""
        factor = self.factor()
        eye = torch.eye(self.dim, dtype=factor.dtype, device=factor.device)
        return factor, torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)

    def log_likelihood(
        self, y: Float[Tensor, "T B D"], u: Tree, observed: Tensor | None, constants: Tree
    ) -> Float[Tensor, "T B K"]:
        """Log N(y; mean_k, covariance_k), (T, B, K), over the coordinates that are there."""
        factor, inverse = constants
        if observed is None or observed.dim() == 2:
            return _log_normal(y, self.mean, inverse)
        covariance = factor @ factor.mT
        flat, mask = y.reshape(-1, self.dim), observed.reshape(-1, self.dim)
        patterns, which = torch.unique(mask, dim=0, return_inverse=True)
        out = y.new_zeros(len(flat), len(self.mean))
        for i, pattern in enumerate(patterns):
            if bool(pattern.any()):
                rows = (which == i).nonzero()[:, 0]
                part = torch.linalg.cholesky(covariance[:, pattern][:, :, pattern])
                eye = torch.eye(part.shape[-1], dtype=part.dtype, device=part.device)
                inverse = torch.linalg.solve_triangular(part, eye.expand_as(part), upper=False)
                out = out.index_copy(0, rows, _log_normal(flat[rows][:, pattern], self.mean[:, pattern], inverse))
        return out.view(*y.shape[:-1], len(self.mean))

    def mixture(self, probs: Tensor, u: Tree, constants: Tree) -> Distribution:
        """A mixture of the states' normals."""
        shape = probs.shape[:-1]
        factor = self.factor()
        normals = MultivariateNormal(
            self.mean.expand(*shape, *self.mean.shape),
            scale_tril=factor.expand(*shape, *factor.shape),
            validate_args=False,
        )
        weights = CategoricalDistribution(probs=probs, validate_args=False)
        return MixtureSameFamily(weights, normals, validate_args=False)

    def forward(self, z: Tensor, u: Tree = None) -> MultivariateNormal:
        """The distribution of y given states z."""
        return MultivariateNormal(self.mean[z], scale_tril=self.factor()[z], validate_args=False)

    @torch.no_grad()
    def set_moments(self, mean: Tensor, covariance: Tensor) -> None:
        """Set means (K, D) and covariances (K, D, D)."""
        factor = torch.linalg.cholesky(covariance.to(self.mean))
        self.mean.copy_(mean)
        if self.lower is not None:
            self.lower.copy_(factor[: len(self.lower)].tril(-1))
        diagonal = factor.diagonal(dim1=-2, dim2=-1).log()
        self.log_diagonal.copy_(diagonal[..., : self.log_diagonal.shape[-1]][: len(self.log_diagonal)])

    def fill(self, y: Tensor, u: Tree, observed: Tensor | None, weights: Tensor) -> Tensor:
        """The mean, given what is there of each row."""
        if observed is None or observed.dim() == 2:
            return weights @ self.mean
        out, w = torch.zeros_like(y).view(-1, self.dim), weights.reshape(-1, weights.shape[-1])
        for rows, filled, _ in self._patterns(y, observed):
            out[rows] = torch.einsum("nk,knd->nd", w[rows], filled)
        return out.view_as(y)

    def _patterns(self, y: Tensor, observed: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Each pattern of gaps: its rows (N,), y with conditional means (K, n, D), conditional covariance (K, D, D)."""
        flat, mask, covariance = y.reshape(-1, self.dim), observed.reshape(-1, self.dim), self.covariance
        patterns, which = torch.unique(mask, dim=0, return_inverse=True)
        for i, there in enumerate(patterns):
            gone, rows = (~there).nonzero()[:, 0], which == i
            x = flat[rows]
            known = covariance[:, there][:, :, there]
            gain = torch.linalg.solve(known, covariance[:, there][:, :, gone]).mT
            filled = x.expand(len(self.mean), *x.shape).clone()
            centred = x[:, there] - self.mean[:, None, there]
            filled[..., gone] = self.mean[:, None, gone] + centred @ gain.mT
            rest = torch.zeros_like(covariance)
            rest[:, gone[:, None], gone] = covariance[:, gone][:, :, gone] - gain @ covariance[:, there][:, :, gone]
            yield rows, filled, rest

    @torch.no_grad()
    def statistics(self, y: Tensor, u: Tree, weights: Tensor, observed: Tensor | None) -> "Gaussian.Stats":
        """Expected sums; a missing coordinate counts by its conditional mean and covariance in each state."""
        flat, w = y.reshape(-1, self.dim), weights.reshape(-1, weights.shape[-1])
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

    @torch.no_grad()
    def maximize(self, stats: "Gaussian.Stats") -> None:
        """Closed-form M-step; a state never visited keeps its parameters."""
        weight = stats.weight.clamp_min(torch.finfo(stats.weight.dtype).tiny)
        shift = stats.first / weight[:, None]
        scatter = stats.second - stats.weight[:, None, None] * shift[:, :, None] * shift[:, None]
        if self.kind == "tied":
            covariance = (scatter.sum(0) / weight.sum()).expand_as(scatter)
        else:
            covariance = scatter / weight[:, None, None]
        covariance = _floored(self._restricted(covariance), self.floor)
        seen = stats.weight > 0
        mean = self.mean + torch.where(seen[:, None], shift, 0.0)
        keep = seen[:, None, None] if self.kind != "tied" else torch.ones_like(seen)[:, None, None]
        self.set_moments(mean, torch.where(keep, covariance, self.covariance))

    @torch.no_grad()
    def begin(self, y: Tensor, u: Tree, observed: Tensor | None) -> None:
        """A start for EM from the data: means at K data points far apart (k-means++), the overall covariance."""
        points = y.reshape(-1, self.dim)
        if observed is not None:
            whole = observed if observed.dim() == 2 else observed.all(-1)
            points = points[whole.reshape(-1)]
        if len(points) < 2:
            return
        chosen = [int(torch.randint(len(points), ()))]
        distance = ((points - points[chosen[0]]) ** 2).sum(-1)
        for _ in range(1, len(self.mean)):
            weights = distance if float(distance.sum()) > 0 else torch.ones_like(distance)
            chosen.append(int(torch.multinomial(weights, 1)))
            distance = torch.minimum(distance, ((points - points[chosen[-1]]) ** 2).sum(-1))
        centred = points - points.mean(0)
        covariance = self._restricted((centred.T @ centred / len(points)).expand(len(self.mean), -1, -1))
        self.set_moments(points[chosen], _floored(covariance, self.floor))

    def _restricted(self, covariance: Tensor) -> Tensor:
        """The covariances (K, D, D) as the kind allows: their diagonals, or the mean of those."""
        if self.kind not in ("diagonal", "spherical"):
            return covariance
        variances = covariance.diagonal(dim1=-2, dim2=-1)
        if self.kind == "spherical":
            variances = variances.mean(-1, keepdim=True).expand_as(variances)
        return torch.diag_embed(variances)


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


def _floored(covariance: Tensor, floor: float) -> Tensor:
    """Covariances with every eigenvalue below `floor` raised to it: the likeliest of those with none below it."""
    values, vectors = torch.linalg.eigh(covariance)
    raised = vectors @ torch.diag_embed(values.clamp_min(floor)) @ vectors.mT
    return torch.where((values < floor).any(-1)[..., None, None], raised, covariance)


def _log_normal(y: Tensor, mean: Tensor, inverse: Tensor) -> Tensor:
    """Log N(y; mean_k, (inverse_k' inverse_k)^-1): (..., D) to (..., K)."""
    states, dim = mean.shape
    centre = mean.detach().mean(0)  # so that little cancels where y is large
    y, offset = y - centre, (inverse @ (mean - centre)[..., None])[..., 0]
    white = (y @ inverse.reshape(states * dim, dim).T).unflatten(-1, (states, dim)) - offset
    log_determinant = inverse.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return log_determinant - 0.5 * (white.square().sum(-1) + dim * math.log(2 * math.pi))
