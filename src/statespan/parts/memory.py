"""Chains that remember their last regimes, and starts that follow."""

from typing import Any

import torch
from torch import Tensor, nn

from statespan.errors import StatespanError
from statespan.part import FiniteInitial, FiniteTransition, Part, stationary
from statespan.shapes import Float
from statespan.tree import Shared, Tree, unstack


def columns(u: Tree, first: int, width: int) -> Tree:
    """Columns `first` to `first + width` of the inputs (..., U); all of them where `width` is 0."""
    return u[..., first : first + width] if width and isinstance(u, Tensor) else u


class Remembering(Part, FiniteTransition):
    r"""A chain of regimes together with those of the p steps before: the state is (s_{t-p}, ..., s_{t-1}, s_t).

    It moves as the chain does, p(s_t | s_{t-1}), and forgets s_{t-p-1}; an emission may then depend on all of them. The
    states are numbered with s_t fastest, and every answer is about s_t. A step costs K^(p+2).

    Args:
        chain: a transition of K states.
        memory: p; 0 only chooses the inputs.
        first: the column of the inputs where the chain's begin.
        width: how many inputs the chain takes; 0 leaves the inputs as they are.

    Raises:
        StatespanError: a negative memory.

    Source:
        Hamilton, Time Series Analysis 1994, section 22.4, equation 22.4.6.

    Example:
        >>> import statespan as ss
        >>> chain = Remembering(ss.Dense(2), memory=4)
        >>> chain.states, chain.public_states
        (32, 2)
    """

    fed = False
    chain: Any

    def __init__(self, chain: nn.Module, memory: int = 0, first: int = 0, width: int = 0):
        super().__init__()
        if memory < 0:
            raise StatespanError(f"Remembering(memory={memory}): use 0 or more")
        self.chain, self.memory, self.first, self.width = chain, memory, first, width
        self.count = int(self.chain.states)
        self.states = self.count ** (memory + 1)

    @property
    def owners(self) -> Tensor | None:
        """The regime now of each state, (S,); None where that is all of the state."""
        if not self.memory:
            return None
        return torch.arange(self.states, device=next(self.chain.parameters()).device) % self.count

    def constants(self) -> Tree:
        """The chain's."""
        return self.chain.constants()

    def tables(self, u: Tree, constants: Tree) -> Tree:
        """The chain's, under its own inputs."""
        return self.chain.tables(columns(u, self.first, self.width), constants)

    def _grown(self, probs: Tensor, table: Tensor) -> Tensor:
        """(..., S) and a table (..., K, K) to (..., S): the next regime joins, the oldest is summed out."""
        joined = probs.unflatten(-1, (-1, self.count, 1)) * table[..., None, :, :]
        return joined.flatten(-3).unflatten(-1, (self.count, -1)).sum(-2)

    def push(self, probs: Float[Tensor, "B S"], tables: Tree, fed: Tree = None) -> Float[Tensor, "B S"]:
        """P A."""
        return self._grown(probs, self.chain.dense(tables, None))

    def pull(self, values: Float[Tensor, "B S"], tables: Tree, fed: Tree = None) -> Float[Tensor, "B S"]:
        """A f."""
        each = values.repeat(1, self.count).unflatten(-1, (-1, self.count, self.count))
        return (each * self.chain.dense(tables, None)[..., None, :, :]).sum(-1).flatten(1)

    def dense(self, tables: Tree, fed: Tree = None) -> Tensor:
        """A itself, (S, S) or (B, S, S)."""
        table = self.chain.dense(tables, None)
        return self._grown(torch.eye(self.states, dtype=table.dtype, device=table.device), table[..., None, :, :])

    def log_prior(self) -> Any:
        """The chain's."""
        return self.chain.log_prior()

    def statistics(self, counts: Tree, u: Tree) -> Tree:
        """The chain's."""
        return self.chain.statistics(counts, columns(u, self.first, self.width))

    def maximize(self, stats: Tree) -> None:
        """The chain's M-step."""
        self.chain.maximize(stats)


class RememberingStart(Part, FiniteInitial):
    """A start of a chain that remembers: the regimes before the first step are taken to be the first one.

    Where the first p observations are given, as those of an emission that looks back are, no answer depends on that.

    Args:
        start: p(s_1) over K regimes.
        memory: p.
        first: the column of the inputs where the start's begin.
        width: how many inputs the start takes; 0 leaves the inputs as they are.

    Source:
        Hamilton, Time Series Analysis 1994, section 22.4.

    Example:
        >>> import statespan as ss
        >>> RememberingStart(ss.Start(2), memory=1).probs().tolist()
        [0.5, 0.0, 0.0, 0.5]
    """

    start: Any

    def __init__(self, start: nn.Module, memory: int = 0, first: int = 0, width: int = 0):
        super().__init__()
        self.start, self.memory, self.first, self.width = start, memory, first, width
        self.count = int(self.start.states)
        self.states = self.count ** (memory + 1)
        self.together = bool(getattr(start, "together", False))

    @property
    def _step(self) -> int:
        """How far apart the states stand whose regimes are all the same one."""
        return sum(self.count**i for i in range(self.memory + 1))

    def _longer(self, probs: Tensor) -> Tensor:
        at = torch.arange(self.count, device=probs.device) * self._step
        return probs.new_zeros(*probs.shape[:-1], self.states).index_copy(-1, at, probs)

    def probs(self) -> Tensor:
        """(S,), sums to one."""
        return self._longer(self.start.probs())

    def given(self, u: Tree, probs: Tensor) -> Shared:
        """As the start has it under its own inputs."""
        return Shared(self._longer(self.start.given(columns(u, self.first, self.width), probs[:: self._step]).value))

    def log_prior(self) -> Any:
        """The start's."""
        return self.start.log_prior()

    def statistics(self, counts: Tensor, u: Tree) -> Tree:
        """The start's."""
        return self.start.statistics(counts[:, :: self._step], columns(u, self.first, self.width))

    def maximize(self, stats: Tree) -> None:
        """The start's M-step."""
        self.start.maximize(stats)

    def maximize_with(self, stats: Tree, moves: Tree) -> None:
        """The start's M-step and the chain's."""
        self.start.maximize_with(stats, moves)


class StationaryUnder(Part, FiniteInitial):
    r"""The chain starts in the distribution that would be stationary were the first step's inputs to stay: pi A_1 = pi.

    Args:
        transition: the transition whose tables depend on inputs, the same part that the model has.
        inputs: how many inputs it takes.

    Source:
        The start of statsmodels' regime-switching models with time-varying transition probabilities.

    Example:
        >>> import statespan as ss
        >>> StationaryUnder(ss.SoftmaxTransition(2, inputs=1), inputs=1).probs().shape
        torch.Size([2])
    """

    transition: Any

    def __init__(self, transition: nn.Module, inputs: int):
        super().__init__()
        self.transition, self.inputs = transition, inputs
        self.states = int(self.transition.states)

    def permute(self, order: Tensor) -> None:
        """Nothing: it follows the transition."""

    def _at(self, u: Tensor) -> Tensor:
        tables = self.transition.tables(u, self.transition.constants())
        return stationary(self.transition.dense(unstack(tables, len(u))[0], None))

    def probs(self) -> Tensor:
        """At inputs of zero, (K,)."""
        like = next(self.transition.parameters())
        return self._at(like.new_zeros(1, 1, self.inputs))[0]

    def given(self, u: Tree, probs: Tensor) -> Shared:
        """Under the first step's inputs, (B, K)."""
        return Shared(probs if u is None else self._at(u[:1]))
