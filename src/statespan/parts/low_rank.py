"""Very many states, few ways between them."""

from typing import Any

import torch
from torch import Tensor, nn

from statespan.part import FiniteTransition, Part, expected_log, stationary
from statespan.parts.priors import dirichlet, log_dirichlet
from statespan.parts.rows import shares
from statespan.shapes import Float
from statespan.tree import Shared, Tree


class LowRank(Part, FiniteTransition):
    r"""A = U V: from state i to one of R classes, from the class to state j, p(j | i) = sum over r of U[i, r] V[r, j].

    A step costs 2 K R, and no K x K table is made. The class is a hidden variable, so EM has a closed form.

    Args:
        states: K; None leaves it to `ss.hmm`.
        rank: R.
        concentration: alpha of a Dirichlet prior on each row of U and of V, one number, 1 or more.

    Source:
        Siddiqi, Boots and Gordon, "Reduced-rank hidden Markov models", 2010; Chiu, Deng and Rush, "Low-rank
        constraints for fast inference in structured models", 2021; EM: Saul and Pereira, "Aggregate and mixed-order
        Markov models", 1997.

    Example:
        >>> LowRank(100, rank=4).constants()[1].shape
        torch.Size([4, 100])
    """

    fed = False

    def __init__(self, states: int | None = None, rank: int = 1, concentration: float = 1.0):
        super().__init__()
        self.states: Any = states
        self.rank = rank
        self.extra = dirichlet(concentration, (), "LowRank(concentration=)") - 1
        if states is not None:
            self.into = nn.Parameter(torch.randn(states, rank))
            self.out = nn.Parameter(torch.randn(rank, states))

    def constants(self) -> tuple[Tensor, Tensor]:
        """U (K, R) and V (R, K)."""
        return self.into.softmax(-1), self.out.softmax(-1)

    def tables(self, u: Tree, constants: tuple[Tensor, Tensor]) -> Shared:
        """The same at every step."""
        return Shared(constants)

    def push(self, probs: Float[Tensor, "B K"], tables: tuple, fed: Tree = None) -> Float[Tensor, "B K"]:
        """P U V."""
        return (probs @ tables[0]) @ tables[1]

    def pull(self, values: Float[Tensor, "B K"], tables: tuple, fed: Tree = None) -> Float[Tensor, "B K"]:
        """U V f."""
        return (values @ tables[1].mT) @ tables[0].mT

    def dense(self, tables: tuple, fed: Tree = None) -> Float[Tensor, "K K"]:
        """A itself, (K, K): only for those who ask."""
        return tables[0] @ tables[1]

    def stationary(self) -> Tensor:
        """By the R classes: rho V U = rho, then pi = rho V, (K,)."""
        into, out = self.constants()
        return stationary(out @ into) @ out

    def log_prior(self) -> Tensor:
        """The Dirichlet's sum of (alpha - 1) log p."""
        into, out = self.constants()
        return log_dirichlet(into, self.extra) + log_dirichlet(out, self.extra)

    def statistics(self, counts: Shared, u: Tree) -> tuple[Tensor, Tensor]:
        """Expected counts of both halves of a move, (K, R) and (R, K)."""
        return counts.value

    def expected_log(self, stats: tuple) -> Tensor:
        """Sum of expected counts times log p."""
        into, out = self.constants()
        return expected_log(stats[0], into) + expected_log(stats[1], out)

    @torch.no_grad()
    def set_probs(self, into: Tensor, out: Tensor) -> None:
        """Make `into` (K, R) and `out` (R, K) the factors."""
        self.into.copy_(into.log())
        self.out.copy_(out.log())

    @torch.no_grad()
    def maximize(self, stats: tuple) -> None:
        """Closed-form M-step; a row without counts stays, a zero stays."""
        pairs = zip(stats, self.constants(), strict=True)
        self.set_probs(*(shares(counts + self.extra.to(counts), old, None) for counts, old in pairs))

    @torch.no_grad()
    def permute(self, order: Tensor) -> None:
        """State k becomes what `order[k]` was."""
        self.into.copy_(self.into[order])
        self.out.copy_(self.out[:, order])
