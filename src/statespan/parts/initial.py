"""How the state starts."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical as CategoricalDistribution

from statespan.errors import StatespanError
from statespan.part import CellInitial, FiniteInitial, Generative, Part, expected_log, not_movable
from statespan.parts.climb import climb
from statespan.parts.gaussian_initial import NormalStart
from statespan.parts.priors import dirichlet, log_dirichlet
from statespan.parts.rows import alike, held_entries, shared_softmax, shares
from statespan.tree import Shared, Tree

__all__ = ["ConstantStart", "Leading", "NormalStart", "Start", "Stationary"]


class Start(Part, FiniteInitial, Generative):
    r"""The first state of a finite chain: p(z_1 = k) = softmax(logits)_k.

    Args:
        states: K.
        concentration: alpha of a Dirichlet prior, one number or (K,), 1 or more: alpha - 1 is added to the counts.
        fixed: (K,), entries that are held; NaN or None is learnt.

    Raises:
        StatespanError: a concentration below 1, or held entries that no distribution has.

    Source:
        Rabiner, "A tutorial on hidden Markov models", Proc. IEEE 1989, section II.B.

    Example:
        >>> Start(3).probs().shape
        torch.Size([3])
    """

    def __init__(self, states: int | None = None, concentration: Any = 1.0, fixed: Any = None):
        super().__init__()
        states = len(fixed) if states is None and fixed is not None else states
        self.states: Any = states
        self.fixed: Tensor | None = None
        self.extra = dirichlet(concentration, (states,), "Start(concentration=)") - 1
        """What the prior adds to the expected counts."""
        if states is not None:
            self.logits = nn.Parameter(torch.zeros(states))
        if fixed is not None:
            self.fixed = held_entries(fixed, (int(self.states),), "Start(fixed=)")

    def probs(self) -> Tensor:
        """(K,), sums to one."""
        return shared_softmax(self.logits, self.fixed)

    def forward(self, shape: tuple[int, ...], u: Tree = None) -> CategoricalDistribution:
        """The distribution of z_1 for a batch of `shape`."""
        return CategoricalDistribution(probs=self.probs().expand(*shape, -1), validate_args=False)

    @torch.no_grad()
    def set_probs(self, probs: Tensor) -> None:
        """Make `probs` (K,) the distribution; what is held stays."""
        free = True if self.fixed is None else self.fixed.isnan().to(probs.device)
        self.logits.copy_(torch.where(torch.as_tensor(free), probs.log(), 0.0))

    def log_prior(self) -> Tensor:
        """The Dirichlet's sum of (alpha - 1) log p."""
        return log_dirichlet(self.probs(), self.extra)

    @torch.no_grad()
    def maximize(self, counts: Tensor) -> None:
        """Closed-form M-step from expected counts (K,); a zero stays."""
        self.set_probs(shares(counts + self.extra.to(counts), self.probs(), self.fixed))

    def expected_log(self, stats: Tensor) -> Tensor:
        """Sum of expected counts times log p."""
        return expected_log(stats, self.probs())

    @torch.no_grad()
    def permute(self, order: Tensor) -> None:
        """State k becomes what `order[k]` was, where nothing held and no prior tells them apart."""
        if not alike((self.extra, self.fixed), lambda x: x[..., order], (len(order),)):
            raise not_movable(self)
        self.logits.copy_(self.logits[order])


class Leading(Part, FiniteInitial, Generative):
    """A start in the first states of a longer chain, whose states stand for fewer (durations, higher orders).

    Args:
        start: p(z_1) over the public states, which are the chain's first ones.
        states: how many the chain has.
    """

    start: Any

    def __init__(self, start: Any, states: int):
        super().__init__()
        self.start, self.states = start, states

    def probs(self) -> Tensor:
        """(K,), sums to one."""
        return self._longer(self.start.probs())

    def given(self, u: Tree, probs: Tensor) -> Shared:
        """As the start has it."""
        return Shared(self._longer(self.start.given(u, probs[: self.start.states]).value))

    def _longer(self, probs: Tensor) -> Tensor:
        return torch.nn.functional.pad(probs, (0, self.states - probs.shape[-1]))

    def forward(self, shape: tuple[int, ...], u: Tree = None) -> CategoricalDistribution:
        """The distribution of z_1 for a batch of `shape`."""
        return self.start(shape, u)

    def log_prior(self) -> Any:
        """The start's."""
        return self.start.log_prior()

    def statistics(self, counts: Tensor, u: Tree) -> Tree:
        """The start's."""
        return self.start.statistics(counts[:, : self.start.states], u)

    def maximize(self, stats: Tree) -> None:
        """The start's."""
        self.start.maximize(stats)


class Stationary(Part, FiniteInitial, Generative):
    r"""The chain starts in its stationary distribution, pi A = pi, and so is in it at every step.

    It has no parameters of its own: the M-step maximises the expected log-likelihood of the first state and of all
    moves together over the transition's parameters, numerically, and never goes down.

    Args:
        transition: the transition, the same part that the model has; None leaves it to `ss.hmm`.

    Raises:
        StatespanError: the states fall into sets that do not reach each other, where pi is not one distribution.

    Source:
        Zucchini, MacDonald and Langrock, Hidden Markov Models for Time Series 2016, sections 1.3.2 and 4.2.4.

    Example:
        >>> import statespan as ss
        >>> model = ss.hmm(initial=ss.Stationary(), transition=[[0.9, 0.1], [0.3, 0.7]], emission=ss.Categorical(3))
        >>> [round(p, 6) for p in model.initial.probs().tolist()]
        [0.75, 0.25]
    """

    transition: Any

    def __init__(self, transition: Any = None):
        super().__init__()
        self.transition = transition
        self.states: Any = None if transition is None else transition.states
        self.together = hasattr(transition, "expected_log") and hasattr(transition, "maximize")

    def following(self, transition: Any) -> "Stationary":
        """The stationary distribution of `transition`, if it has none yet."""
        return self if self.transition is not None else Stationary(transition)

    def probs(self) -> Tensor:
        """pi, (K,)."""
        return self.transition.stationary()

    def forward(self, shape: tuple[int, ...], u: Tree = None) -> CategoricalDistribution:
        """The distribution of z_1 for a batch of `shape`."""
        return CategoricalDistribution(probs=self.probs().expand(*shape, -1), validate_args=False)

    def permute(self, order: Tensor) -> None:
        """Nothing: it follows the transition."""

    @torch.no_grad()
    def maximize_with(self, stats: Tensor, moves: Tree) -> None:
        """The M-step of the start and of the moves at once, from where they are or the moves' own if better."""
        transition = self.transition

        def value() -> Tensor:
            return transition.expected_log(moves) + transition.log_prior() + expected_log(stats, self.probs())

        before, parameters = float(value()), list(transition.parameters())
        old = [p.clone() for p in parameters]
        held = [p for p in parameters if not p.requires_grad]
        transition.maximize(moves)
        for parameter, kept in zip(parameters, old, strict=True):
            if any(parameter is h for h in held):
                parameter.copy_(kept)
        if not _better(value, before):
            for parameter, kept in zip(parameters, old, strict=True):
                parameter.copy_(kept)
        climb(parameters, value)


def _better(value: Callable[[], Tensor], before: float) -> bool:
    """Whether a start of the climb is one: the moves alone may have cut the chain in two."""
    try:
        return float(value()) > before
    except StatespanError:
        return False


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
