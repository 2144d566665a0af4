"""Parts that only the drop-in needs: tables as they are, and emissions known by numbers."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from statespan.errors import StatespanError
from statespan.part import FiniteEmission, FiniteInitial, MatrixTransition, Part
from statespan.sequences import Event
from statespan.tree import Tree


class GivenStart(Part, FiniteInitial):
    """An initial vector taken as it is; it need not sum to one.

    Args:
        weights: (K,).
    """

    def __init__(self, weights: Tensor):
        super().__init__()
        self.weights, self.states = weights, len(weights)

    def probs(self) -> Tensor:
        """The vector."""
        return self.weights

    def maximize(self, stats: Tensor) -> None:
        """Nothing: the model of the drop-in does it."""


class GivenMatrix(Part, MatrixTransition):
    """A matrix of moves taken as it is; its rows need not sum to one.

    Args:
        weights: (K, K).
    """

    def __init__(self, weights: Tensor):
        super().__init__()
        self.weights, self.states = weights, len(weights)

    @property
    def probs(self) -> Tensor:
        """The matrix."""
        return self.weights

    def maximize(self, stats: Tensor) -> None:
        """Nothing: the model of the drop-in does it."""


class LogFrames(Part, FiniteEmission):
    """Observations that are log p(y_t | z_t = k) themselves, (T, B, K): for a subclass that writes its own density.

    Its expected statistics are the posterior, so that the subclass may sum what it likes.

    Args:
        states: K.
    """

    def __init__(self, states: int):
        super().__init__()
        self.states, self.event = states, Event(1, None, states)

    def constants(self) -> None:
        """None."""
        return None

    def log_likelihood(self, y: Tensor, u: Tree, observed: Tensor | None, constants: Tree) -> Tensor:
        """Y itself."""
        return y

    def mixture(self, probs: Tensor, u: Tree, constants: Tree) -> Distribution:
        """Refused: the density of a subclass cannot be drawn from here."""
        raise StatespanError(
            "this model's emission is known by its log-likelihoods alone; write it as a statespan part"
        )

    def fill(self, y: Tensor, u: Tree, observed: Tensor | None, weights: Tensor) -> Tensor:
        """Refused, for the same reason."""
        raise StatespanError(
            "this model's emission is known by its log-likelihoods alone; write it as a statespan part"
        )

    def statistics(self, y: Tensor, u: Tree, weights: Tensor, observed: Tensor | None) -> Tensor:
        """The posterior, (T, B, K)."""
        return weights

    def maximize(self, stats: Tensor) -> None:
        """Nothing: the subclass does it."""


class Tilted(Part, FiniteEmission):
    """An emission with each state's density times a factor: log p(y | k) + c_k.

    The expected log-density under a variational posterior is of this form; it sums to less than one.

    Args:
        emission: the density that is normalised.
        offset: c, (K,).
    """

    def __init__(self, emission: Any, offset: Tensor):
        super().__init__()
        self.emission, self.offset, self.states, self.event = emission, offset, emission.states, emission.event

    def constants(self) -> Tree:
        """The emission's."""
        return self.emission.constants()

    def log_likelihood(self, y: Tensor, u: Tree, observed: Tensor | None, constants: Tree) -> Tensor:
        """Log p(y | k) + c_k."""
        return self.emission.log_likelihood(y, u, observed, constants) + self.offset

    def mixture(self, probs: Tensor, u: Tree, constants: Tree) -> Distribution:
        """The emission's."""
        return self.emission.mixture(probs, u, constants)

    def fill(self, y: Tensor, u: Tree, observed: Tensor | None, weights: Tensor) -> Tensor:
        """The emission's."""
        return self.emission.fill(y, u, observed, weights)

    def statistics(self, y: Tensor, u: Tree, weights: Tensor, observed: Tensor | None) -> Tree:
        """The emission's."""
        return self.emission.statistics(y, u, weights, observed)

    @torch.no_grad()
    def maximize(self, stats: Tree) -> None:
        """The emission's."""
        self.emission.maximize(stats)
