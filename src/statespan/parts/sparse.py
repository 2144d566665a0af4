"""A transition with few possible moves among many states."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical as CategoricalDistribution

from statespan.errors import StatespanError
from statespan.part import FiniteTransition, Generative, Part, expected_log
from statespan.parts.priors import dirichlet, log_dirichlet
from statespan.shapes import Float
from statespan.tree import Shared, Tree


class Sparse(Part, FiniteTransition, Generative):
    r"""Moves along given edges alone: p(z_t = j | z_{t-1} = i) is a softmax over the edges that leave i.

    A step costs the number of edges, and no K x K table is made. Where K is small and a matrix with zeros would do,
    `Dense(fixed=)` is faster: it has the kernels.

    Args:
        edges: (E, 2) integers, the possible moves, from and to; every state needs at least one that leaves it.
        states: K; None takes the largest that an edge names, plus one.
        concentration: alpha of a Dirichlet prior on each state's edges, one number or (E,), 1 or more.

    Raises:
        StatespanError: an edge twice, a state outside 0..K-1, or one that nothing leaves.

    Source:
        Rabiner 1989, section IV.C: "the imposition of constraints ... has essentially no effect on the reestimation
        procedure".

    Example:
        >>> ring = Sparse([[i, (i + step) % 5] for i in range(5) for step in (0, 1)])
        >>> ring.states, ring.probs.shape
        (5, torch.Size([10]))
    """

    fed = False

    def __init__(self, edges: Any, states: int | None = None, concentration: float | list[float] = 1.0):
        super().__init__()
        self.edges = _checked(edges)
        self.states = int(self.edges.max()) + 1 if states is None else states
        if int(self.edges.max()) >= self.states or int(self.edges.min()) < 0:
            raise StatespanError(f"Sparse(edges=): a state lies outside 0..{self.states - 1}")
        stuck = torch.bincount(self.edges[:, 0], minlength=self.states) == 0
        if bool(stuck.any()):
            raise StatespanError(
                f"Sparse(edges=): nothing leaves state {int(stuck.nonzero()[0])}; let it stay at least"
            )
        self.extra = dirichlet(concentration, (len(self.edges),), "Sparse(concentration=)") - 1
        self.logits = nn.Parameter(torch.randn(len(self.edges)))
        self.source: Tensor
        self.target: Tensor
        self.register_buffer("source", self.edges[:, 0].contiguous(), persistent=False)
        self.register_buffer("target", self.edges[:, 1].contiguous(), persistent=False)

    @property
    def probs(self) -> Tensor:
        """The probability of each edge among those that leave the same state, (E,)."""
        blank = self.logits.new_full((self.states,), -torch.inf)
        top = blank.scatter_reduce(0, self.source, self.logits.detach(), "amax")
        weight = (self.logits - top[self.source]).exp()
        return weight / self._per_source(weight)[self.source]

    def _per_source(self, values: Tensor) -> Tensor:
        return values.new_zeros(self.states).index_add(0, self.source, values)

    def forward(self, z: Tensor, u: Tree = None) -> CategoricalDistribution:
        """The distribution of z_t given z_{t-1} = z."""
        return CategoricalDistribution(probs=self.dense(self.probs)[z], validate_args=False)

    def constants(self) -> Tensor:
        """The probability of each edge."""
        return self.probs

    def tables(self, u: Tree, constants: Tensor) -> Shared:
        """The same at every step."""
        return Shared(constants)

    def push(self, probs: Float[Tensor, "B K"], tables: Tensor, fed: Tree = None) -> Float[Tensor, "B K"]:
        """P A, edge by edge."""
        return torch.zeros_like(probs).index_add(1, self.target, probs[:, self.source] * tables)

    def pull(self, values: Float[Tensor, "B K"], tables: Tensor, fed: Tree = None) -> Float[Tensor, "B K"]:
        """A f, edge by edge."""
        return torch.zeros_like(values).index_add(1, self.source, values[:, self.target] * tables)

    def dense(self, tables: Tensor, fed: Tree = None) -> Float[Tensor, "K K"]:
        """A."""
        return tables.new_zeros(self.states, self.states).index_put((self.source, self.target), tables)

    def best(self, score: Tensor, tables: Tensor, fed: Tree = None) -> tuple[Tensor, Tensor]:
        """The k best ways into each state, edge by edge."""
        batch, states, k = score.shape
        ways = score[:, self.source] + tables.to(score).log()[:, None]  # (B, E, k)
        value = ways.flatten(1)
        origin = (self.source[:, None] * k + torch.arange(k, device=score.device)).flatten()
        target = self.target.repeat_interleave(k)
        best, back = [], []
        for _ in range(k):
            top = value.new_full((batch, states), -torch.inf).scatter_reduce(
                1, target.expand_as(value), value, "amax", include_self=True
            )
            reached = value == top[:, target]
            first = origin.new_full((batch, states), states * k).scatter_reduce(
                1, target.expand_as(value), torch.where(reached, origin, states * k), "amin", include_self=True
            )
            value = value.masked_fill(reached & (origin == first[:, target]), -torch.inf)
            best.append(top)
            back.append(torch.where(first < states * k, first, 0))
        return torch.stack(best, -1), torch.stack(back, -1)

    def statistics(self, counts: Shared, u: Tree) -> Tensor:
        """Expected counts of each edge, (E,)."""
        return counts.value

    def expected_log(self, stats: Tensor) -> Tensor:
        """Sum of expected counts times log p."""
        return expected_log(stats, self.probs)

    def log_prior(self) -> Tensor:
        """The Dirichlet's sum of (alpha - 1) log p."""
        return log_dirichlet(self.probs, self.extra)

    @torch.no_grad()
    def set_probs(self, probs: Tensor) -> None:
        """Make `probs` (E,) those of the edges."""
        self.logits.copy_(probs.log())

    @torch.no_grad()
    def maximize(self, counts: Tensor) -> None:
        """Closed-form M-step; a state never left keeps its edges, a zero stays."""
        old = self.probs
        counts = torch.where(old > 0, counts + self.extra.to(counts), 0.0)
        total = self._per_source(counts)[self.source]
        self.set_probs(torch.where(total > 0, counts / total.clamp_min(1e-300), old))


def _checked(edges: Any) -> Tensor:
    edges = torch.as_tensor(edges)
    if edges.dim() != 2 or edges.shape[-1] != 2 or not len(edges) or edges.is_floating_point():
        raise StatespanError(f"Sparse(edges=) is {tuple(edges.shape)} of {edges.dtype}; give (E, 2) integers")
    edges = edges.long()
    unique, times = torch.unique(edges, dim=0, return_counts=True)
    if len(unique) < len(edges):
        raise StatespanError(f"Sparse(edges=): {unique[times > 1][0].tolist()} stands there twice")
    return edges
