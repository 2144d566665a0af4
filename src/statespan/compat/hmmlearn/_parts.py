"""Parts that only the drop-in needs: tables as they are, and emissions known by numbers."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from statespan.errors import StatespanError
from statespan.part import FiniteEmission, FiniteInitial, MatrixTransition, Part
from statespan.sequences import Event
from statespan.tree import Tree


class Weights(Part, FiniteInitial):
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


class WeightMatrix(Part, MatrixTransition):
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


class Frames(Part, FiniteEmission):
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


class Mixture(Part, FiniteEmission):
    r"""Several normal distributions in each state: p(y | k) = sum over m of weights_km N(y; mean_km, covariance_km).

    Args:
        emission: the normal distributions, those of state 0 first: a `Gaussian` of K M states.
        weights: (K, M), rows sum to one.
    """

    def __init__(self, emission: Any, weights: Tensor):
        super().__init__()
        self.emission, self.weights = emission, weights
        self.states, self.event = len(weights), emission.event

    def constants(self) -> Tree:
        """Those of the normal distributions."""
        return self.emission.constants()

    def _joint(self, y: Tensor, u: Tree, observed: Tensor | None, constants: Tree) -> Tensor:
        """Log p(y, m | k), (T, B, K, M)."""
        log = self.emission.log_likelihood(y, u, observed, constants)
        return log.unflatten(-1, self.weights.shape) + self.weights.log()

    def log_likelihood(self, y: Tensor, u: Tree, observed: Tensor | None, constants: Tree) -> Tensor:
        """Log p(y | k), (T, B, K)."""
        return self._joint(y, u, observed, constants).logsumexp(-1)

    def _shares(self, y: Tensor, u: Tree, observed: Tensor | None, weights: Tensor) -> Tensor:
        """State weights (T, B, K) as those of states and components, (T, B, K M)."""
        joint = self._joint(y, u, observed, self.constants())
        share = joint.softmax(-1)
        share = torch.where(joint.amax(-1, keepdim=True).isfinite(), share, self.weights)
        return (weights[..., None] * share).flatten(-2)

    def mixture(self, probs: Tensor, u: Tree, constants: Tree) -> Distribution:
        """A mixture of all of them."""
        return self.emission.mixture((probs[..., None] * self.weights).flatten(-2), u, constants)

    def fill(self, y: Tensor, u: Tree, observed: Tensor | None, weights: Tensor) -> Tensor:
        """The mean, given what is there of each row."""
        return self.emission.fill(y, u, observed, self._shares(y, u, observed, weights))

    @torch.no_grad()
    def statistics(self, y: Tensor, u: Tree, weights: Tensor, observed: Tensor | None) -> Tree:
        """Those of the normal distributions, K M of each."""
        return self.emission.statistics(y, u, self._shares(y, u, observed, weights), observed)

    def maximize(self, stats: Tree) -> None:
        """Nothing: the model of the drop-in does it."""
