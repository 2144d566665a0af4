"""A mixture of normals in each state."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from statespan.errors import StatespanError
from statespan.part import FiniteEmission, Generative, Part, mixed, permute
from statespan.parts.emissions.common import spread_out, stochastic, whole_rows
from statespan.parts.emissions.gaussian import Gaussian
from statespan.parts.priors import dirichlet, log_dirichlet
from statespan.sequences import Event, any_of
from statespan.shapes import Float
from statespan.tree import Tree


class GaussianMixture(Part, FiniteEmission, Generative):
    r"""Vectors: p(y | z = k) = sum over m of weights_km N(y; mean_km, covariance_km).

    Args:
        dim: D.
        components: M, in each state.
        covariance: "full", "diagonal", "spherical" or "tied" (one matrix for all components of all states).
        states: K; None leaves it to `ss.hmm`.
        weights: (K, M), rows sum to one; with `mean` and `covariance` as matrices, instead of the sizes.
        mean: (K, M, D).
        floor: the least variance in any direction that the M-step gives.
        concentration: alpha of a Dirichlet prior on each state's weights, one number, (M,) or (K, M), 1 or more.

    Raises:
        StatespanError: fewer than one component; weights whose rows do not sum to one, or means of other numbers.

    Source:
        Rabiner 1989, section IV.A, equations 52 to 54.

    Example:
        >>> GaussianMixture(dim=2, components=3, states=4).mean.shape
        torch.Size([4, 3, 2])
    """

    class Stats(NamedTuple):
        """Weights of the components (K, M), and the sums of their normals."""

        weight: Tensor
        normals: Gaussian.Stats

    def __init__(
        self,
        dim: int = 1,
        components: int = 2,
        covariance: Any = "full",
        states: int | None = None,
        weights: Any = None,
        mean: Any = None,
        floor: float = 1e-6,
        concentration: Any = 1.0,
    ):
        super().__init__()
        if components < 1:
            raise StatespanError(f"GaussianMixture(components={components}): use at least one")
        given = None if weights is None else stochastic(weights, "GaussianMixture(weights=)", 2)
        if given is None:
            self.normals = Gaussian(dim, covariance, None if states is None else states * components, floor=floor)
        else:
            (states, components), mean = given.shape, torch.as_tensor(mean, dtype=torch.float64)
            if mean.shape[:2] != given.shape:
                raise StatespanError(
                    f"GaussianMixture: weights are {tuple(given.shape)} and means {tuple(mean.shape)}; "
                    "give (K, M) and (K, M, D)"
                )
            matrices = torch.as_tensor(covariance, dtype=torch.float64).flatten(0, 1)
            self.normals = Gaussian(mean=mean.flatten(0, 1), covariance=matrices, floor=floor)
        self.dim, self.components, self.states, self.floor = self.normals.dim, components, states, floor
        self.kind, self.event = self.normals.kind, Event(1, None, self.normals.dim)
        self.remember(dim=self.dim, components=components, covariance=self.kind, states=states, weights=None, mean=None)
        alpha = dirichlet(concentration, (states, components), "GaussianMixture(concentration=)")
        self.extra = alpha - 1
        """What the prior adds to the components' weights."""
        if states is not None:
            self.logits = nn.Parameter(torch.zeros(states, components) if given is None else given.log())

    @property
    def weights(self) -> Tensor:
        """(K, M)."""
        return self.logits.softmax(-1)

    @property
    def mean(self) -> Tensor:
        """(K, M, D)."""
        return self.normals.mean.unflatten(0, self.logits.shape)

    @property
    def covariance(self) -> Tensor:
        """(K, M, D, D)."""
        return self.normals.covariance.unflatten(0, self.logits.shape)

    def constants(self) -> tuple[Tensor, Tree]:
        """Log weights, and the normals' own."""
        return self.logits.log_softmax(-1), self.normals.constants()

    def _joint(self, y: Tensor, u: Tree, observed: Tensor | None, constants: tuple[Tensor, Tree]) -> Tensor:
        """Log p(y, component | k), (T, B, K, M)."""
        log = self.normals.log_likelihood(y, u, observed, constants[1])
        return log.unflatten(-1, self.logits.shape) + constants[0]

    def log_likelihood(
        self, y: Float[Tensor, "T B D"], u: Tree, observed: Tensor | None, constants: tuple[Tensor, Tree]
    ) -> Float[Tensor, "T B K"]:
        """Log-densities, over the coordinates that are there."""
        return self._joint(y, u, observed, constants).logsumexp(-1)

    def forward(self, z: Tensor, u: Tree = None) -> Distribution:
        """The distribution of y given states z."""
        each = torch.arange(len(self.normals.mean), device=z.device).view(self.logits.shape)
        return mixed(self.weights[z], self.normals(each[z]))

    def mixture(self, probs: Tensor, u: Tree, constants: Tree) -> Distribution:
        """A mixture of all components of all states."""
        flat = (probs[..., None] * self.weights).flatten(-2)
        return self.normals.mixture(flat, u, self.normals.constants())

    def fill(self, y: Tensor, u: Tree, observed: Tensor | None, weights: Tensor) -> Tensor:
        """The mean, given what is there of each row."""
        return self.normals.fill(y, u, observed, self._shares(y, u, observed, weights))

    def _shares(self, y: Tensor, u: Tree, observed: Tensor | None, weights: Tensor) -> Tensor:
        """State weights divided among the components, (T, B, K M); where no row is there, by the prior weights."""
        return divided(self._joint(y, u, observed, self.constants()), observed, self.logits, weights)

    @torch.no_grad()
    def permute(self, order: Tensor) -> None:
        """State k becomes what `order[k]` was, with its components."""
        count = self.components
        self.logits.copy_(self.logits[order])
        permute(self.normals, (order[:, None] * count + torch.arange(count, device=order.device)).flatten())

    def log_prior(self) -> Tensor:
        """The Dirichlet's sum of (alpha - 1) log w."""
        return log_dirichlet(self.weights, self.extra)

    @torch.no_grad()
    def statistics(self, y: Tensor, u: Tree, weights: Tensor, observed: Tensor | None) -> "GaussianMixture.Stats":
        """Sums by component."""
        shares = self._shares(y, u, observed, weights)
        counts = shares.flatten(0, 1).sum(0).view(self.logits.shape)
        return self.Stats(counts, self.normals.statistics(y, u, shares, observed))

    @torch.no_grad()
    def maximize(self, stats: "GaussianMixture.Stats") -> None:
        """Closed-form M-step; a state or component never visited keeps its parameters."""
        weight = stats.weight + self.extra.to(stats.weight)
        total, seen = weight.sum(-1, keepdim=True), stats.weight.sum(-1, keepdim=True) > 0
        new = (weight / total.clamp_min(1e-300)).clamp_min(torch.finfo(weight.dtype).tiny).log()
        self.logits.copy_(torch.where(seen, new, self.logits))
        self.normals.maximize(stats.normals)

    @torch.no_grad()
    def begin(self, y: Tensor, u: Tree, observed: Tensor | None) -> None:
        """A start for EM from the data: states at rows far apart (k-means++), components at rows of each."""
        self.normals.begin(y, u, observed)
        points = whole_rows(y, observed)
        if len(points) < 2:
            return
        _, nearest = spread_out(points, len(self.logits))
        for k in range(len(self.logits)):
            mine = points[nearest == k] if bool((nearest == k).any()) else points
            at = slice(k * self.components, (k + 1) * self.components)
            self.normals.mean[at] = spread_out(mine, self.components)[0]
        self.logits.zero_()


def divided(log: Tensor, observed: Tensor | None, prior: Tensor, weights: Tensor) -> Tensor:
    """State weights (T, B, K) among components, (T, B, K M), by log p(y, component | k); `prior` where no row is."""
    if observed is not None:
        log = torch.where(any_of(observed)[..., None, None], log, prior)
    return (log.softmax(-1) * weights[..., None]).flatten(-2)
