"""Normal vectors whose covariance is of low rank plus a diagonal: factor analysis."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, LowRankMultivariateNormal

from statespan.errors import StatespanError
from statespan.part import FiniteEmission, Generative, Part, positive
from statespan.parts.emissions.common import spread_out, whole_rows
from statespan.parts.emissions.normal import completed, log_normal
from statespan.sequences import Event
from statespan.shapes import Float
from statespan.tree import Tree


class FactorGaussian(Part, FiniteEmission, Generative):
    r"""Vectors: p(y | z = k) = N(y; mean_k, W_k W_k' + diag(noise_k)), W_k of r columns.

    r D + D numbers a state for the covariance instead of D (D + 1) / 2. A missing coordinate is marginalised.

    Args:
        dim: D.
        rank: r, below D.
        states: K; None leaves it to `ss.hmm`.
        mean: (K, D); with `loadings` and `noise`, instead of the sizes.
        loadings: W, (K, D, r).
        noise: (K, D), variances, positive.
        floor: the least noise variance that the M-step gives, in the units of y squared.

    Raises:
        StatespanError: a rank out of range, or mean, loadings and noise whose shapes do not go together.

    Source:
        Rubin and Thayer, "EM algorithms for ML factor analysis", Psychometrika 1982; Bishop, Pattern Recognition and
        Machine Learning 2006, section 12.2.4.

    Example:
        >>> FactorGaussian(dim=5, rank=2, states=3).covariance.shape
        torch.Size([3, 5, 5])
    """

    class Stats(NamedTuple):
        """Weights (K,), sums about the means now (K, D), and of squares (K, D, D)."""

        weight: Tensor
        first: Tensor
        second: Tensor

    noise = positive("log_noise", "Variances, (K, D).")

    def __init__(
        self,
        dim: int = 2,
        rank: int = 1,
        states: int | None = None,
        mean: Any = None,
        loadings: Any = None,
        noise: Any = None,
        floor: float = 1e-6,
    ):
        super().__init__()
        given = None
        if mean is not None:
            given = [torch.as_tensor(x, dtype=torch.float64) for x in (mean, loadings, noise)]
            if given[1].dim() != 3 or given[0].shape != given[1].shape[:2] or given[2].shape != given[0].shape:
                raise StatespanError(
                    f"FactorGaussian: mean {tuple(given[0].shape)}, loadings {tuple(given[1].shape)}, noise "
                    f"{tuple(given[2].shape)}; give (K, D), (K, D, r) and (K, D)"
                )
            states, dim, rank = given[1].shape
        if not 0 < rank < max(dim, 2):
            raise StatespanError(f"FactorGaussian(rank={rank}): use 1 or more, fewer than dim={dim}")
        self.dim, self.rank, self.states, self.floor = dim, rank, states, floor
        self.remember(dim=dim, rank=rank, states=states, mean=None, loadings=None, noise=None)
        self.event = Event(1, None, dim)
        if states is not None:
            self.mean = nn.Parameter(torch.randn(states, dim) if given is None else given[0].clone())
            self.loadings = nn.Parameter(torch.randn(states, dim, rank) / 2 if given is None else given[1].clone())
            self.log_noise = nn.Parameter(torch.zeros(states, dim) if given is None else given[2].log())

    @property
    def covariance(self) -> Tensor:
        """(K, D, D)."""
        return self.loadings @ self.loadings.mT + torch.diag_embed(self.noise)

    def constants(self) -> tuple[Tensor, Tensor]:
        """What whitens the factors, (K, D, r), and log-determinants (K,): Woodbury's identity."""
        scaled = self.loadings / self.noise[..., None]
        eye = torch.eye(self.rank, dtype=scaled.dtype, device=scaled.device)
        inner = torch.linalg.cholesky(eye + self.loadings.mT @ scaled)
        white = torch.linalg.solve_triangular(inner, scaled.mT, upper=False).mT
        return white, self.log_noise.sum(-1) + 2 * inner.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def log_likelihood(
        self, y: Float[Tensor, "T B D"], u: Tree, observed: Tensor | None, constants: tuple[Tensor, Tensor]
    ) -> Float[Tensor, "T B K"]:
        """Log-densities, K (r + 1) D work a row; over the coordinates that are there."""
        x = y.reshape(-1, 1, self.dim) - self.mean
        if observed is not None and observed.dim() == 3:
            return log_normal(x, observed.reshape(-1, self.dim), self.covariance).view(*y.shape[:-1], -1)
        white, log_det = constants
        inner = torch.einsum("nkd,kdr->nkr", x, white)
        squares = (x.square() / self.noise).sum(-1) - inner.square().sum(-1)
        return (-0.5 * (squares + log_det + self.dim * math.log(2 * math.pi))).view(*y.shape[:-1], -1)

    def forward(self, z: Tensor, u: Tree = None) -> Distribution:
        """The distribution of y given states z."""
        return LowRankMultivariateNormal(self.mean[z], self.loadings[z], self.noise[z], validate_args=False)

    def fill(self, y: Tensor, u: Tree, observed: Tensor | None, weights: Tensor) -> Tensor:
        """The mean, given what is there of each row."""
        if observed is None or observed.dim() == 2:
            return weights @ self.mean
        x, w = y.reshape(-1, 1, self.dim) - self.mean, weights.flatten(0, -2)
        out = torch.zeros_like(x[:, 0])
        for rows, filled, _ in completed(x, observed.reshape(-1, self.dim), self.covariance):
            out[rows] = torch.einsum("nk,nkd->nd", w[rows], filled + self.mean)
        return out.view_as(y)

    @torch.no_grad()
    def statistics(self, y: Tensor, u: Tree, weights: Tensor, observed: Tensor | None) -> "FactorGaussian.Stats":
        """Expected sums; a missing coordinate counts by its conditional mean and covariance in each state."""
        x, w = y.reshape(-1, 1, self.dim) - self.mean, weights.flatten(0, -2)
        mask = None if observed is None or observed.dim() == 2 else observed.reshape(-1, self.dim)
        if mask is not None:
            w = torch.where(mask.any(-1, keepdim=True), w, 0.0)
        first, second = torch.zeros_like(self.mean), torch.zeros_like(self.covariance)
        for rows, filled, rest in completed(x, mask, self.covariance):
            weighted = w[rows][..., None] * filled
            first = first + weighted.sum(0)
            second = second + torch.einsum("nkd,nke->kde", weighted, filled) + w[rows].sum(0)[:, None, None] * rest
        return self.Stats(w.sum(0), first, second)

    @torch.no_grad()
    def maximize(self, stats: "FactorGaussian.Stats") -> None:
        """The mean in closed form, then ten of Rubin and Thayer's steps on the covariance, each of which climbs."""
        seen, weight = stats.weight > 0, stats.weight.clamp_min(torch.finfo(stats.weight.dtype).tiny)
        shift = stats.first / weight[:, None] if self.mean.requires_grad else torch.zeros_like(stats.first)
        shift = torch.where(seen[:, None], shift, 0.0)
        cross = shift[:, :, None] * stats.first[:, None] / weight[:, None, None]
        moments = stats.second / weight[:, None, None] - cross - cross.mT + shift[:, :, None] * shift[:, None]
        loadings, noise, eye = self.loadings.clone(), self.noise, torch.eye(self.rank).to(shift)
        for _ in range(10):
            covariance = loadings @ loadings.mT + torch.diag_embed(noise)
            gain = torch.linalg.solve(covariance, loadings).mT  # (K, r, D)
            through = moments @ gain.mT
            inner = eye - gain @ loadings + gain @ through
            if self.loadings.requires_grad:
                loadings = torch.linalg.solve(inner, through.mT).mT
            if self.log_noise.requires_grad:
                rest = moments - 2 * loadings @ through.mT + loadings @ inner @ loadings.mT
                noise = rest.diagonal(dim1=-2, dim2=-1).clamp_min(self.floor)
        self.mean.add_(shift)
        self.loadings.copy_(torch.where(seen[:, None, None], loadings, self.loadings))
        self.log_noise.copy_(torch.where(seen[:, None], noise.log(), self.log_noise))

    @torch.no_grad()
    def begin(self, y: Tensor, u: Tree, observed: Tensor | None) -> None:
        """A start for EM from the data: means at rows far apart (k-means++), the overall principal axes."""
        points = whole_rows(y, observed)
        if len(points) < 2:
            return
        centred = points - points.mean(0)
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(points))
        loadings = vectors[:, -self.rank :] * (values[-self.rank :].clamp_min(0) / 2).sqrt()
        noise = (centred.square().mean(0) - loadings.square().sum(-1)).clamp_min(self.floor)
        self.mean.copy_(spread_out(points, len(self.mean))[0])
        self.loadings.copy_(loadings.expand_as(self.loadings))
        self.log_noise.copy_(noise.log().expand_as(self.log_noise))
