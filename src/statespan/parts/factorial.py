"""Several chains at once: the state is one state of each."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical as CategoricalDistribution

from statespan.errors import StatespanError
from statespan.part import FiniteInitial, FiniteTransition, Generative, MatrixTransition, Part
from statespan.parts.finite import Dense
from statespan.parts.initial import Start
from statespan.shapes import Float
from statespan.tree import Shared, Tree

MOST = 2**24
"""Joint states at most: a table of more is refused."""


class FactorialStart(Part, FiniteInitial, Generative):
    """Each chain starts by itself: p(z_1) = product over chains of p(z_1 of the chain).

    Args:
        starts: one initial part a chain, or the number of states of each.

    Raises:
        StatespanError: more joint states than a table can have, when it is asked for.

    Source:
        Ghahramani and Jordan, "Factorial hidden Markov models", 1997, section 2.

    Example:
        >>> FactorialStart([2, 3]).probs().shape
        torch.Size([6])
    """

    def __init__(self, starts: Any):
        super().__init__()
        self.starts = nn.ModuleList([Start(s) if isinstance(s, int) else s for s in starts])
        self.sizes = [int(getattr(s, "states", 0)) for s in self.starts]
        self.states = math.prod(self.sizes)

    def probs(self) -> Tensor:
        """(K,), sums to one; the last chain's state runs fastest.

        Raises:
            StatespanError: more joint states than a table can have.
        """
        if self.states > MOST:
            raise StatespanError(
                f"{len(self.sizes)} chains have {self.states:,} joint states, too many for exact answers; give "
                "method=ss.StructuredMeanField(), with an emission to which each chain adds its own"
            )
        parts: list[Any] = list(self.starts)
        joint = parts[0].probs()
        for part in parts[1:]:
            joint = (joint[:, None] * part.probs()).flatten()
        return joint

    def forward(self, shape: tuple[int, ...], u: Tree = None) -> CategoricalDistribution:
        """The distribution of z_1 for a batch of `shape`."""
        return CategoricalDistribution(probs=self.probs().expand(*shape, -1), validate_args=False)

    def log_prior(self) -> Any:
        """The sum of the chains'."""
        parts: list[Any] = list(self.starts)
        return sum(part.log_prior() for part in parts)

    def statistics(self, counts: Tensor, u: Tree) -> tuple[Tensor, ...]:
        """Expected first states of each chain."""
        return tuple(chain.sum(0) for chain in marginals(counts, self.sizes))

    def maximize(self, stats: tuple[Tensor, ...]) -> None:
        """Each chain's own M-step."""
        parts: list[Any] = list(self.starts)
        for part, sums in zip(parts, stats, strict=True):
            part.maximize(sums)


class Factorial(Part, FiniteTransition, Generative):
    r"""Several chains that move by themselves and are seen together: A = A_1 x A_2 x ... (Kronecker).

    A step pushes each chain along its own axis of the joint table, K (K_1 + K_2 + ...) operations for K joint states,
    and the K x K table is never made. The joint state counts the last chain fastest: `split` takes it apart.

    Args:
        chains: one transition by a matrix a chain (`Dense` and its like), or the number of states of each.

    Raises:
        StatespanError: a chain that is no matrix.

    Source:
        Ghahramani and Jordan, "Factorial hidden Markov models", 1997, section 3.2 (the exact E-step).

    Example:
        >>> Factorial([2, 3]).states
        6
    """

    fed = False

    def __init__(self, chains: Any):
        super().__init__()
        made = [Dense(c) if isinstance(c, int) else c for c in chains]
        for i, part in enumerate(made):
            if not isinstance(part, MatrixTransition) or part.states is None:
                raise StatespanError(
                    f"Factorial: chain {i} is a {type(part).__name__}; give a matrix transition that knows its states"
                )
        self.chains = nn.ModuleList(made)
        self.sizes = [part.states for part in made]
        self.states = math.prod(self.sizes)

    def split(self, states: Tensor) -> Tensor:
        """Joint states (...) as one state of each chain, (..., C)."""
        return torch.stack(torch.unravel_index(states, tuple(self.sizes)), -1)

    def join(self, states: Tensor) -> Tensor:
        """One state of each chain, (..., C), as joint states."""
        joint = torch.zeros_like(states[..., 0])
        for i, size in enumerate(self.sizes):
            joint = joint * size + states[..., i]
        return joint

    def marginals(self, probs: Tensor) -> tuple[Tensor, ...]:
        """Joint probabilities (..., K) as those of each chain's own states."""
        return marginals(probs, self.sizes)

    def constants(self) -> tuple[Tensor, ...]:
        """A of each chain."""
        parts: list[Any] = list(self.chains)
        return tuple(part.probs for part in parts)

    def tables(self, u: Tree, constants: tuple[Tensor, ...]) -> Shared:
        """The same at every step."""
        return Shared(constants)

    def forward(self, z: Tensor, u: Tree = None) -> CategoricalDistribution:
        """The distribution of z_t given z_{t-1} = z."""
        one = nn.functional.one_hot(z, self.states).flatten(0, -2).to(next(self.parameters()))
        probs = self.push(one, self.constants()).view(*z.shape, self.states)
        return CategoricalDistribution(probs=probs, validate_args=False)

    def push(self, probs: Float[Tensor, "B K"], tables: tuple, fed: Tree = None) -> Float[Tensor, "B K"]:
        """P A, chain by chain."""
        return self._along(probs, tables)

    def pull(self, values: Float[Tensor, "B K"], tables: tuple, fed: Tree = None) -> Float[Tensor, "B K"]:
        """A f, chain by chain."""
        return self._along(values, tuple(table.mT for table in tables))

    def _along(self, x: Tensor, tables: tuple[Tensor, ...]) -> Tensor:
        """Each axis in turn: the first goes through its table and comes out last, until all have."""
        out = x.unflatten(-1, self.sizes)
        for table in tables:
            out = torch.movedim(out, 1, -1) @ table
        return out.flatten(1)

    def dense(self, tables: tuple, fed: Tree = None) -> Float[Tensor, "K K"]:
        """A itself: only for those who ask."""
        joint = tables[0]
        for table in tables[1:]:
            joint = torch.kron(joint, table)
        return joint

    def best(self, score: Tensor, tables: tuple, fed: Tree = None) -> tuple[Tensor, Tensor]:
        """The k best ways into each state: the best past is found chain by chain."""
        k = score.shape[-1]
        value = score.unflatten(1, self.sizes)  # (B, K_1, ..., K_C, k)
        origin = torch.arange(self.states * k, device=score.device).view(1, *self.sizes, k).expand_as(value)
        for axis, table in enumerate(tables):
            log = table.to(score).log()
            v, o = value.movedim(1 + axis, -2), origin.movedim(1 + axis, -2)  # (..., from, k)
            ways = (v[..., None] + log[:, None]).flatten(-3, -2)  # (..., from k, to)
            ways, at = ways.sort(dim=-2, descending=True, stable=True)
            origins = o.flatten(-2)[..., None].expand_as(at).gather(-2, at)
            value = ways[..., :k, :].mT.movedim(-2, 1 + axis)
            origin = origins[..., :k, :].mT.movedim(-2, 1 + axis)
        return value.flatten(1, -2), origin.flatten(1, -2)

    def stationary(self) -> Tensor:
        """The product of the chains' own, (K,)."""
        parts: list[Any] = list(self.chains)
        joint = parts[0].stationary()
        for part in parts[1:]:
            joint = (joint[:, None] * part.stationary()).flatten()
        return joint

    def log_prior(self) -> Any:
        """The sum of the chains'."""
        parts: list[Any] = list(self.chains)
        return sum(part.log_prior() for part in parts)

    def statistics(self, counts: Shared, u: Tree) -> tuple[Tensor, ...]:
        """Expected moves of each chain, (K_c, K_c)."""
        return counts.value

    def expected_log(self, stats: tuple[Tensor, ...]) -> Tensor:
        """The sum of the chains'."""
        parts: list[Any] = list(self.chains)
        return torch.stack([part.expected_log(sums) for part, sums in zip(parts, stats, strict=True)]).sum()

    def maximize(self, stats: tuple[Tensor, ...]) -> None:
        """Each chain's own M-step."""
        parts: list[Any] = list(self.chains)
        for part, sums in zip(parts, stats, strict=True):
            part.maximize(sums)


def marginals(probs: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
    """Joint probabilities (..., K_1 K_2 ...) as those of each chain, (..., K_c)."""
    joint, front = probs.unflatten(-1, sizes), probs.dim() - 1
    others = [[front + j for j in range(len(sizes)) if j != i] for i in range(len(sizes))]
    return tuple(joint.sum(axes) if axes else joint for axes in others)
