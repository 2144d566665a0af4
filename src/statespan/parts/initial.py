"""How the state starts."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical as CategoricalDistribution

from statespan.part import CellInitial, FiniteInitial, Generative, Part
from statespan.parts.gaussian_initial import NormalStart
from statespan.parts.priors import dirichlet, log_dirichlet
from statespan.tree import Tree

__all__ = ["ConstantStart", "NormalStart", "Start"]


class Start(Part, FiniteInitial, Generative):
    r"""The first state of a finite chain: p(z_1 = k) = softmax(logits)_k.

    Args:
        states: K.
        concentration: alpha of a Dirichlet prior, one number or (K,), 1 or more: alpha - 1 is added to the counts.

    Example:
        >>> Start(3).probs().shape
        torch.Size([3])
    """

    def __init__(self, states: int, concentration: Any = 1.0):
        super().__init__()
        self.states = states
        self.logits = nn.Parameter(torch.zeros(states))
        self.extra = dirichlet(concentration, (states,), "Start(concentration=)") - 1
        """What the prior adds to the expected counts."""

    def probs(self) -> Tensor:
        """(K,), sums to one."""
        return self.logits.softmax(-1)

    def forward(self, shape: tuple[int, ...], u: Tree = None) -> CategoricalDistribution:
        """The distribution of z_1 for a batch of `shape`."""
        return CategoricalDistribution(probs=self.probs().expand(*shape, -1), validate_args=False)

    @torch.no_grad()
    def set_probs(self, probs: Tensor) -> None:
        """Make `probs` (K,) the distribution."""
        self.logits.copy_(probs.log())

    def log_prior(self) -> Tensor:
        """The Dirichlet's sum of (alpha - 1) log p."""
        return log_dirichlet(self.probs(), self.extra)

    @torch.no_grad()
    def maximize(self, counts: Tensor) -> None:
        """Closed-form M-step from expected counts (K,); a zero stays."""
        counts = torch.where(self.probs() > 0, counts + self.extra.to(counts), 0.0)
        if float(counts.sum()) > 0:
            self.set_probs(counts / counts.sum())


class ConstantStart(Part, CellInitial):
    """A recurrent network's first state, the same number everywhere, and the symbol fed before the first one.

    Args:
        sizes: the width of each tensor of the state: (D,), or (D, D) for an LSTM's h and c.
        value: the number; 0, or 1 / K where the state must be a distribution.
        symbol: what is fed before the first observation, a language model's end of sentence.
    """

    def __init__(self, sizes: Sequence[int], value: float = 0.0, symbol: int = 0):
        super().__init__()
        self.sizes, self.value, self.symbol = tuple(sizes), value, symbol
        self.like: Tensor
        self.register_buffer("like", torch.zeros(()))

    def start(self, batch: int) -> Tree:
        """(B, D), or a tuple of such."""
        made = [self.like.new_full((batch, n), self.value) for n in self.sizes]
        return tuple(made) if len(made) > 1 else made[0]
