"""Symbols."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical as CategoricalDistribution

from statespan.errors import StatespanError
from statespan.kernels.symbol_sums import symbol_sums
from statespan.part import FiniteEmission, Generative, Part, scaled
from statespan.parts.emissions.common import stochastic
from statespan.parts.priors import dirichlet, log_dirichlet
from statespan.parts.symbols import Columns, Table
from statespan.sequences import Event
from statespan.shapes import Float, Int
from statespan.tree import Tree


class Categorical(Part, FiniteEmission, Generative):
    r"""Symbols 0..V-1: p(y = v | z = k) = softmax over v of E[v, k] + d[v].

    Give the sizes (`symbols`, and `states` unless `ss.hmm` knows them), or the probabilities themselves.

    Args:
        symbols: V.
        states: K; None leaves it to `ss.hmm`.
        probs: (K, V), rows sum to one; instead of the sizes.
        bias: whether all states share a bias d a symbol (equation 4 of Buys, Bisk and Choi).
        table: the matrix E, when other parts share it.
        concentration: alpha of a Dirichlet prior on each state's probabilities, one number, (V,) or (K, V), 1 or more:
            alpha - 1 is added to the expected counts.

    Raises:
        StatespanError: neither symbols nor probs; probs whose rows do not sum to one; a concentration below 1.

    Source:
        Rabiner 1989, section II; Buys, Bisk and Choi, equation 4.

    Example:
        >>> Categorical(probs=[[0.5, 0.5], [0.9, 0.1]]).probs.shape
        torch.Size([2, 2])
    """

    def __init__(
        self,
        symbols: int | None = None,
        states: int | None = None,
        probs: Any = None,
        bias: bool = False,
        table: Table | None = None,
        concentration: Any = 1.0,
    ):
        super().__init__()
        if probs is not None:
            probs = stochastic(probs, "Categorical(probs=)", 2)
            states, symbols = probs.shape
        symbols = symbols if table is None else table.symbols
        if symbols is None:
            raise StatespanError("Categorical needs symbols=V, the number of symbols, or probs=")
        if table is None and states is not None:
            table = Table(symbols, states, bias, spread=1.0)
        self.symbols, self.states = symbols, states if table is None else table.width
        self.bias = bias
        self.remember(symbols=symbols, states=self.states, probs=None, table=table)
        self.event = Event(0, self.symbols)
        alpha = dirichlet(concentration, (self.states, self.symbols), "Categorical(concentration=)")
        self.extra = (torch.atleast_2d(alpha).T if alpha.dim() else alpha) - 1
        """What the prior adds to the expected counts (V, K)."""
        if table is not None:
            self.table = table
        if probs is not None:
            self.to(probs.dtype).set_probs(probs)

    @property
    def probs(self) -> Tensor:
        """p(v | k), (K, V)."""
        return self.table.probs()

    def constants(self) -> Columns:
        """The table's columns."""
        return self.table.as_columns()

    def log_likelihood(
        self, y: Int[Tensor, "T B"], u: Tree, observed: Tensor | None, constants: Columns
    ) -> Float[Tensor, "T B K"]:
        """Log p(y | k), (T, B, K)."""
        return self.table.columns(y, constants.normaliser)

    def likelihood(
        self, y: Tensor, u: Tree, observed: Tensor | None, constants: Columns
    ) -> tuple[Float[Tensor, "T B K"], Float[Tensor, "T B"]]:
        """Rows of one scaled table where no gradient is asked for and the symbols repeat; else by the logarithm."""
        if torch.is_grad_enabled() or y.numel() < self.symbols:
            return scaled(self.log_likelihood(y, u, observed, constants))
        value, log_scale = constants.scaled.value
        return nn.functional.embedding(y, value), log_scale[y]

    def mixture(self, probs: Float[Tensor, "... K"], u: Tree, constants: Columns) -> CategoricalDistribution:
        """Symbols with probability sum over k of probs[k] p(v | k)."""
        return CategoricalDistribution(probs=probs @ constants.probs.value, validate_args=False)

    def fill(self, y: Tensor, u: Tree, observed: Tensor | None, weights: Tensor) -> Tensor:
        """The likeliest symbol."""
        return (weights @ self.probs.to(weights.dtype)).argmax(-1)

    def forward(self, z: Tensor, u: Tree = None) -> CategoricalDistribution:
        """The distribution of y given states z."""
        return CategoricalDistribution(logits=self.table.log_probs().T[z], validate_args=False)

    @torch.no_grad()
    def set_probs(self, probs: Tensor) -> None:
        """Make `probs` (K, V) the emission."""
        self.table.weight.copy_(probs.log().T if self.table.bias is None else probs.log().T - self.table.bias[:, None])

    def permute(self, order: Tensor) -> None:
        """State k becomes what `order[k]` was."""
        self.set_probs(self.probs[order])

    def log_prior(self) -> Tensor:
        """The Dirichlet's sum of (alpha - 1) log p."""
        return log_dirichlet(self.probs.mT, self.extra)

    def statistics(self, y: Tensor, u: Tree, weights: Tensor, observed: Tensor | None) -> Tensor:
        """Expected counts, (V, K), from symbols (T, B) and weights (T, B, K), zero where missing."""
        flat = weights.reshape(-1, weights.shape[-1])
        return symbol_sums(flat, y.reshape(-1), self.symbols)

    @torch.no_grad()
    def maximize(self, stats: Tensor) -> None:
        """Closed-form M-step; a state never visited keeps its distribution."""
        stats = stats + self.extra.to(stats)
        total = stats.sum(0)
        new = stats / total.clamp_min(1e-300)
        self.set_probs(torch.where(total > 0, new, self.probs.T).T)

    @torch.no_grad()
    def begin(self, y: Tensor, u: Tree, observed: Tensor | None) -> None:
        """A start for EM from the data: the overall frequencies, disturbed state by state."""
        symbols = y.reshape(-1) if observed is None else y[observed]
        counts = torch.bincount(symbols, minlength=self.symbols).to(self.table.weight) + 1
        noise = torch.rand_like(self.table.weight) + 0.5
        probs = counts[:, None] * noise * (self.probs.T > 0)  # an impossible symbol stays impossible
        self.set_probs((probs / probs.sum(0)).T)
