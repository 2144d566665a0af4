"""Vectors with heavy tails."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from statespan.part import FiniteEmission, Generative, Part, positive
from statespan.parts.emissions.common import root, table
from statespan.parts.emissions.gaussian import Gaussian
from statespan.parts.emissions.normal import completed, distances
from statespan.sequences import Event
from statespan.shapes import Float
from statespan.tree import Tree


class StudentT(Part, FiniteEmission, Generative):
    r"""Vectors: a multivariate t distribution with location, scale matrix and degrees of freedom of each state.

    y = loc_k + x / sqrt(g), x ~ N(0, scale_matrix_k), g ~ Gamma(df_k / 2, df_k / 2). Outliers count less in its fit. A
    missing coordinate is marginalised: what is left is t distributed with the same df.

    Args:
        dim: D.
        covariance: of the scale matrix: "full", "diagonal", "spherical" or "tied".
        states: K; None leaves it to `ss.hmm`.
        df: (K,) degrees of freedom, positive; with `loc` and `scale_matrix`, instead of the sizes.
        loc: (K, D).
        scale_matrix: (K, D, D).
        floor: the least eigenvalue of the scale matrix that the M-step gives.

    Source:
        Liu and Rubin, "ML estimation of the t distribution using EM and its extensions, ECM and ECME", Statistica
        Sinica 1995, sections 2 and 3, with missing values.

    Example:
        >>> StudentT(dim=2, states=3).df.shape
        torch.Size([3])
    """

    class Stats(NamedTuple):
        """Weights (K,), the same times E[g] and sums about the locations times E[g], and sums of E[log g] - E[g]."""

        weight: Tensor
        counted: Tensor
        first: Tensor
        second: Tensor
        logs: Tensor

    df = positive("log_df", "The degrees of freedom, (K,).")

    def __init__(
        self,
        dim: int = 1,
        covariance: str = "full",
        states: int | None = None,
        df: Any = None,
        loc: Any = None,
        scale_matrix: Any = None,
        floor: float = 1e-6,
    ):
        super().__init__()
        if loc is None:
            self.normal = Gaussian(dim, covariance, states, floor=floor)
        else:
            self.normal = Gaussian(mean=loc, covariance=scale_matrix, floor=floor)
        self.dim, self.states, self.kind, self.floor = self.normal.dim, self.normal.states, self.normal.kind, floor
        self.remember(dim=self.dim, covariance=self.kind, states=self.states, df=None, loc=None, scale_matrix=None)
        self.event = Event(1, None, self.dim)
        if self.states is not None:
            given = torch.full((self.states,), 4.0) if df is None else torch.as_tensor(df, dtype=torch.float64)
            given = table(given.expand(self.states)[:, None], "StudentT(df=)", 0.0)[:, 0]
            self.log_df = nn.Parameter(given.log().to(self.normal.mean.dtype))

    @property
    def loc(self) -> Tensor:
        """(K, D)."""
        return self.normal.mean

    @property
    def scale_matrix(self) -> Tensor:
        """(K, D, D)."""
        return self.normal.covariance

    def constants(self) -> tuple[Tensor, Tensor]:
        """The scale matrices and the degrees of freedom."""
        return self.scale_matrix, self.df

    def _rows(self, y: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Differences from the locations (N, K, D), and the gaps (N, D)."""
        mask = None if observed is None or observed.dim() == 2 else observed.reshape(-1, self.dim)
        return y.reshape(-1, 1, self.dim) - self.loc, mask

    def log_likelihood(
        self, y: Float[Tensor, "T B D"], u: Tree, observed: Tensor | None, constants: tuple[Tensor, Tensor]
    ) -> Float[Tensor, "T B K"]:
        """Log-densities, over the coordinates that are there."""
        matrix, df = constants
        squares, logs, count = distances(*self._rows(y, observed), matrix)
        out = torch.lgamma((df + count) / 2) - torch.lgamma(df / 2) - count / 2 * (df * math.pi).log() - logs / 2
        return (out - (df + count) / 2 * torch.log1p(squares / df)).view(*y.shape[:-1], -1)

    def forward(self, z: Tensor, u: Tree = None) -> Distribution:
        """The distribution of y given states z."""
        return MultivariateT(self.df[z], self.loc[z], self.normal.factor()[z])

    def fill(self, y: Tensor, u: Tree, observed: Tensor | None, weights: Tensor) -> Tensor:
        """The mean (the median where df is 1 or less), given what is there of each row."""
        return self.normal.fill(y, u, observed, weights)

    @torch.no_grad()
    def statistics(self, y: Tensor, u: Tree, weights: Tensor, observed: Tensor | None) -> "StudentT.Stats":
        """Sums of the E-step over g; a missing coordinate counts by its conditional mean and covariance."""
        (x, mask), matrix, df = self._rows(y, observed), self.scale_matrix, self.df
        w = weights.reshape(len(x), -1)
        if mask is not None:
            w = torch.where(mask.any(-1, keepdim=True), w, 0.0)
        squares, _, count = distances(x, mask, matrix)
        g = (df + count) / (df + squares)
        logs = torch.digamma((df + count) / 2) - ((df + squares) / 2).log()
        first, second = torch.zeros_like(self.loc), torch.zeros_like(matrix)
        for rows, filled, rest in completed(x, mask, matrix):
            weighted = (w[rows] * g[rows])[..., None] * filled
            first = first + weighted.sum(0)
            second = second + torch.einsum("nkd,nke->kde", weighted, filled) + w[rows].sum(0)[:, None, None] * rest
        return self.Stats(w.sum(0), (w * g).sum(0), first, second, (w * (logs - g)).sum(0))

    @torch.no_grad()
    def maximize(self, stats: "StudentT.Stats") -> None:
        """Location and scale in closed form, degrees of freedom by bisection, at most 1,000."""
        seen = stats.weight > 0
        weight = torch.where(seen, stats.weight, 1.0)
        shift = stats.first / torch.where(seen, stats.counted, 1.0)[:, None]
        if not self.normal.mean.requires_grad:
            shift = torch.zeros_like(shift)
        cross = shift[:, :, None] * stats.first[:, None]
        square = shift[:, :, None] * shift[:, None]
        scatter = stats.second - cross - cross.mT + stats.counted[:, None, None] * square
        self.normal.set_scatter(self.loc + torch.where(seen[:, None], shift, 0.0), scatter, stats.weight)
        mean = torch.where(seen, stats.logs / weight, -1.5).double()
        df = root(lambda v: torch.digamma(v / 2) - (v / 2).log() - 1 - mean, 1e-2, 1e3, mean)
        self.log_df.copy_(torch.where(seen, df.to(mean).log(), self.log_df))

    @torch.no_grad()
    def begin(self, y: Tensor, u: Tree, observed: Tensor | None) -> None:
        """A start for EM from the data: that of normals, with four degrees of freedom."""
        self.normal.begin(y, u, observed)
        self.log_df.fill_(math.log(4.0))


class MultivariateT(Distribution):
    """A multivariate t: df (...), loc (..., D), a lower triangular factor (..., D, D) of the scale matrix."""

    @property
    def arg_constraints(self) -> dict[str, Any]:
        """None."""
        return {}

    def __init__(self, df: Tensor, loc: Tensor, factor: Tensor):
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)
        self.df, self.loc, self.factor = df, loc, factor

    def expand(self, batch_shape: Any, _instance: Any = None) -> "MultivariateT":
        """The same with another batch shape."""
        tail = self.event_shape
        return MultivariateT(
            self.df.expand(batch_shape),
            self.loc.expand(*batch_shape, *tail),
            self.factor.expand(*batch_shape, *tail, *tail),
        )

    @property
    def mean(self) -> Tensor:
        """The location: the mean where df is above 1, the median anyway."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Infinite where df is 2 or less."""
        scale = self.factor.square().sum(-1)
        df = self.df[..., None]
        return torch.where(df > 2, scale * df / (df - 2).clamp_min(1e-12), math.inf)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Normal over the root of a Gamma."""
        with torch.no_grad():
            sample_shape = torch.Size(sample_shape)
            shape = self._extended_shape(sample_shape)
            x = (self.factor @ torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)[..., None])[..., 0]
            g = torch.distributions.Gamma(self.df / 2, self.df / 2).sample(sample_shape)
            return self.loc + x / g.sqrt()[..., None]

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, (...)."""
        white = torch.linalg.solve_triangular(self.factor, (value - self.loc)[..., None], upper=False)[..., 0]
        dim, df = self.event_shape[0], self.df
        log = torch.lgamma((df + dim) / 2) - torch.lgamma(df / 2) - dim / 2 * (df * math.pi).log()
        log = log - self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return log - (df + dim) / 2 * torch.log1p(white.square().sum(-1) / df)
