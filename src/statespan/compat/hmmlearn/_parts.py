"""Parts that only the drop-in needs: tables as they are, and emissions known by numbers."""

from typing import Any

import torch
from torch import Tensor, nn
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


class GaussianComponents(Part, FiniteEmission):
    r"""Several normal distributions in each state: p(y | k) = sum over m of weights_km N(y; mean_km, covariance_km).

    Args:
        emission: the normal distributions, those of state 0 first: a `Gaussian` of K M states.
        states: K.
    """

    def __init__(self, emission: Any, states: int):
        super().__init__()
        self.emission, self.states, self.event = emission, states, emission.event
        self.logits = nn.Parameter(torch.zeros(states, emission.states // states))

    def recipe(self) -> tuple[tuple, dict[str, Any]]:
        """The emission's own recipe, and K."""
        return (self.emission, self.states), {}

    @property
    def weights(self) -> Tensor:
        """(K, M), rows sum to one."""
        return self.logits.softmax(-1)

    def constants(self) -> tuple[Tree, Tensor]:
        """Those of the normal distributions, and the weights."""
        return self.emission.constants(), self.weights

    def _joint(self, y: Tensor, u: Tree, observed: Tensor | None, constants: tuple[Tree, Tensor]) -> Tensor:
        """Log p(y, m | k), (T, B, K, M)."""
        log = self.emission.log_likelihood(y, u, observed, constants[0])
        return log.unflatten(-1, self.logits.shape) + constants[1].log()

    def log_likelihood(self, y: Tensor, u: Tree, observed: Tensor | None, constants: tuple[Tree, Tensor]) -> Tensor:
        """Log p(y | k), (T, B, K)."""
        return self._joint(y, u, observed, constants).logsumexp(-1)

    def _shares(self, y: Tensor, u: Tree, observed: Tensor | None, weights: Tensor) -> Tensor:
        """State weights (T, B, K) as those of states and components, (T, B, K M)."""
        constants = self.constants()
        joint = self._joint(y, u, observed, constants)
        share = torch.where(joint.amax(-1, keepdim=True).isfinite(), joint.softmax(-1), constants[1])
        return (weights[..., None] * share).flatten(-2)

    def mixture(self, probs: Tensor, u: Tree, constants: tuple[Tree, Tensor]) -> Distribution:
        """A mixture of all of them."""
        return self.emission.mixture((probs[..., None] * constants[1]).flatten(-2), u, constants[0])

    def fill(self, y: Tensor, u: Tree, observed: Tensor | None, weights: Tensor) -> Tensor:
        """The mean, given what is there of each row."""
        return self.emission.fill(y, u, observed, self._shares(y, u, observed, weights))

    @torch.no_grad()
    def set_weights(self, weights: Tensor) -> None:
        """Make `weights` (K, M) those of the components."""
        self.logits.copy_(weights.log())

    @torch.no_grad()
    def statistics(self, y: Tensor, u: Tree, weights: Tensor, observed: Tensor | None) -> Tree:
        """Those of the normal distributions, K M of each."""
        return self.emission.statistics(y, u, self._shares(y, u, observed, weights), observed)

    @torch.no_grad()
    def maximize(self, stats: Any) -> None:
        """Closed-form M-step; a state never visited keeps its weights."""
        each = stats.weight.view_as(self.logits)
        total = each.sum(-1, keepdim=True)
        self.set_weights(torch.where(total > 0, each / total.clamp_min(1e-300), self.weights))
        self.emission.maximize(stats)
