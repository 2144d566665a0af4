"""Chains whose next state depends on several before it."""

from typing import Any

import torch
from torch import Tensor, nn

from statespan.errors import StatespanError
from statespan.part import FiniteTransition, Part, expected_log
from statespan.parts.priors import dirichlet, log_dirichlet
from statespan.parts.rows import shares
from statespan.shapes import Float
from statespan.tree import Shared, Tree


class HigherOrder(Part, FiniteTransition):
    r"""p(z_t | z_{t-1}, ..., z_{t-m}), a table for each past of m states; the first steps have tables of their own.

    An internal state is the past as far as it goes, of 1 to m states, so a path of states is one path of these and
    every answer is exact. A step costs K^(m+1).

    Args:
        states: K; None leaves it to `ss.hmm`.
        order: m.
        concentration: alpha of a Dirichlet prior on each row, one number, 1 or more.

    Raises:
        StatespanError: an order below 1, or a concentration below 1.

    Source:
        He, "Extended Viterbi algorithm for second order hidden Markov process", 1988; Thede and Harper 1999.

    Example:
        >>> HigherOrder(3, order=2).states
        12
    """

    fed = False

    def __init__(self, states: int | None = None, order: int = 2, concentration: float = 1.0):
        super().__init__()
        if order < 1:
            raise StatespanError(f"HigherOrder(order={order}): use at least 1")
        self.count, self.order = states, order
        self.extra = dirichlet(concentration, (), "HigherOrder(concentration=)") - 1
        self.states: Any = None
        if states is None:
            return
        self.sizes = [states**i for i in range(1, order + 1)]
        self.states = sum(self.sizes)
        self.logits = nn.ParameterList([nn.Parameter(torch.randn(size, states)) for size in self.sizes])

    @property
    def probs(self) -> tuple[Tensor, ...]:
        """Tables after 1, ..., m states, (K^i, K): row a K + b is that after a, then b."""
        return tuple(logits.softmax(-1) for logits in self.logits)

    @property
    def owners(self) -> Tensor | None:
        """The last state of each past, (S,)."""
        if self.count is None:
            return None
        return torch.arange(self.states, device=next(self.parameters()).device) % self.count

    def constants(self) -> tuple[Tensor, ...]:
        """The tables."""
        return self.probs

    def tables(self, u: Tree, constants: tuple[Tensor, ...]) -> Shared:
        """The same at every step."""
        return Shared(constants)

    def push(self, probs: Float[Tensor, "B S"], tables: tuple, fed: Tree = None) -> Float[Tensor, "B S"]:
        """P A: the past gains a state, and loses its oldest once it has m."""
        count, parts = tables[0].shape[1], probs.split(self.sizes, 1)
        grown = [(p[..., None] * table).flatten(1) for p, table in zip(parts[:-1], tables[:-1], strict=True)]
        full = torch.einsum("bor,orj->brj", parts[-1].unflatten(1, (count, -1)), tables[-1].unflatten(0, (count, -1)))
        full = full.flatten(1)
        return torch.cat([torch.zeros_like(parts[0]), *grown[:-1], grown[-1] + full], 1) if grown else full

    def pull(self, values: Float[Tensor, "B S"], tables: tuple, fed: Tree = None) -> Float[Tensor, "B S"]:
        """A f."""
        count, parts = tables[0].shape[1], values.split(self.sizes, 1)
        less = [
            (part.unflatten(1, (-1, count)) * table).sum(-1) for part, table in zip(parts[1:], tables, strict=False)
        ]
        last = parts[-1].unflatten(1, (-1, count))
        full = torch.einsum("brj,orj->bor", last, tables[-1].unflatten(0, (count, -1))).flatten(1)
        return torch.cat([*less, full], 1)

    def dense(self, tables: tuple, fed: Tree = None) -> Float[Tensor, "S S"]:
        """A itself."""
        return self.push(torch.eye(self.states, dtype=tables[0].dtype, device=tables[0].device), tables)

    def log_prior(self) -> Tensor:
        """The Dirichlet's sum of (alpha - 1) log A."""
        return sum((log_dirichlet(table, self.extra) for table in self.probs), torch.zeros_like(self.logits[0][0, 0]))

    def statistics(self, counts: Shared, u: Tree) -> tuple[Tensor, ...]:
        """Expected counts of every move, like the tables."""
        return counts.value

    def expected_log(self, stats: tuple) -> Tensor:
        """Sum of expected counts times log A."""
        each = [expected_log(counts, table) for counts, table in zip(stats, self.probs, strict=True)]
        return torch.stack(each).sum()

    @torch.no_grad()
    def set_probs(self, probs: tuple[Tensor, ...]) -> None:
        """Make `probs` the tables after 1, ..., m states."""
        for logits, table in zip(self.logits, probs, strict=True):
            logits.copy_(table.log())

    @torch.no_grad()
    def maximize(self, stats: tuple) -> None:
        """Closed-form M-step; a past never seen keeps its row, a zero stays."""
        pairs = zip(stats, self.probs, strict=True)
        self.set_probs(tuple(shares(counts + self.extra.to(counts), old, None) for counts, old in pairs))
