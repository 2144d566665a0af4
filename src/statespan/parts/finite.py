"""How a finite state moves: transitions as operators on tables."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Categorical as CategoricalDistribution

from statespan.errors import StatespanError
from statespan.kernels.gated import gated_push
from statespan.part import FiniteTransition, Generative, MatrixTransition, Part, not_movable
from statespan.parts.priors import dirichlet, log_dirichlet
from statespan.parts.rows import Ties, alike, as_fixed, held_entries, rearranged, shared_softmax, shares
from statespan.shapes import Float
from statespan.tree import Shared, Tree


class Dense(Part, MatrixTransition, Generative):
    r"""A stochastic matrix, free but for what is held: p(z_t = j | z_{t-1} = i) = softmax(logits_i)_j.

    Args:
        states: K; None leaves it to `ss.hmm`.
        concentration: alpha of a Dirichlet prior on each row, one number or (K, K), 1 or more: alpha - 1 is added to
            the expected counts.
        sticky: added to the concentration of staying, so that states last longer.
        fixed: (K, K), entries that are held: a number stays what it is, zero too; NaN or None is learnt. The free
            entries of a row share what the held ones leave.
        ties: (K,) integers, rows with one label are equal; or (K, K), entries with one label are equal wherever they
            stand (blocks, one probability of staying for all), -1 for none.
        reach: (below, above), how far down and up a state may move; what lies further is held at zero.

    Raises:
        StatespanError: a row held above one, a held entry tied to a free one, ties that no stochastic matrix has.

    Source:
        Rabiner, "A tutorial on hidden Markov models", Proc. IEEE 1989, sections II and IV.C (left-right models);
        equation 10 of Buys, Bisk and Choi, "Bridging HMMs and RNNs", where the rows of W are softmaxed; sticky: Fox et
        al. 2011.

    Example:
        >>> nan = float("nan")
        >>> Dense(3, fixed=[[nan, nan, 0], [0, nan, 0.1], [0, 0, 1]]).probs[2].tolist()
        [0.0, 0.0, 1.0]
    """

    fed = False

    def __init__(
        self,
        states: int | None = None,
        concentration: Any = 1.0,
        sticky: float = 0.0,
        fixed: Any = None,
        ties: Any = None,
        reach: tuple[int, int] | list[int] | None = None,
    ):
        super().__init__()
        if sticky < 0:
            raise StatespanError(f"Dense(sticky={sticky}): use 0 or more")
        states = len(fixed) if states is None and fixed is not None else states
        states = len(ties) if states is None and ties is not None else states
        self.states: Any = states
        self.fixed: Tensor | None = None
        self.ties: Ties | None = None
        if states is None:
            dirichlet(concentration, (None, None), "Dense(concentration=)")
            return
        alpha = dirichlet(concentration, (states, states), "Dense(concentration=)")
        self.extra = alpha - 1 + sticky * torch.eye(states, dtype=torch.float64) if sticky else alpha - 1
        """What the prior adds to the expected counts, (K, K)."""
        if fixed is not None or reach is not None:
            self.fixed = _within(fixed, reach, states)
        if ties is not None:
            self.ties = Ties(ties, states, self.fixed, "Dense(ties=)")
        self.logits = nn.Parameter(torch.randn(states, states) if self.ties is None else torch.randn(self.ties.size))

    @property
    def probs(self) -> Tensor:
        """A, (K, K): `probs[i, j]` is p(next = j | now = i)."""
        return shared_softmax(self.logits, self.fixed) if self.ties is None else self.ties.probs(self.logits)

    def forward(self, z: Tensor, u: Tree = None) -> CategoricalDistribution:
        """The distribution of z_t given z_{t-1} = z."""
        if self.fixed is None and self.ties is None:
            return CategoricalDistribution(logits=self.logits.log_softmax(-1)[z], validate_args=False)
        return CategoricalDistribution(probs=self.probs[z], validate_args=False)

    @torch.no_grad()
    def set_probs(self, probs: Tensor) -> None:
        """Make `probs` (K, K) the matrix; what is held stays, and tied entries take their mean."""
        if self.ties is not None:
            self.logits.copy_(self.ties.weights(probs.to(self.logits), torch.zeros_like(self.logits)))
        elif self.fixed is None:
            self.logits.copy_(probs.log())
        else:
            self.logits.copy_(torch.where(self.fixed.isnan().to(probs.device), probs.log(), 0.0))

    def log_prior(self) -> Tensor:
        """The Dirichlet's sum of (alpha - 1) log A."""
        return log_dirichlet(self.probs, self.extra)

    @torch.no_grad()
    def maximize(self, counts: Tensor) -> None:
        """Closed-form M-step from expected counts (K, K); a state never left keeps its row, a zero stays."""
        counts = counts + self.extra.to(counts)
        if self.ties is not None:
            self.logits.copy_(self.ties.weights(counts, self.logits))
        else:
            self.set_probs(shares(counts, self.probs, self.fixed))

    @torch.no_grad()
    def permute(self, order: Tensor) -> None:
        """State k becomes what `order[k]` was, where nothing held or tied and no prior tells them apart."""
        told = (self.extra, self.fixed)
        if self.ties is not None or not alike(told, lambda x: rearranged(x, order), (len(order),) * 2):
            raise not_movable(self)
        self.logits.copy_(rearranged(self.logits, order))


def left_to_right(states: int | None = None, skip: int = 1, concentration: Any = 1.0, sticky: float = 0.0) -> Dense:
    """A chain that never goes back: from state i to i, ..., i + skip; the last one stays.

    With `ss.hmm(initial=[1, 0, ...])` it starts at the first.

    Args:
        states: K; None leaves it to `ss.hmm`.
        skip: how far it may go in one step.
        concentration: of the Dirichlet prior of `Dense`.
        sticky: of that prior.

    Raises:
        StatespanError: `skip` below 1.

    Source:
        Rabiner 1989, section IV.C, equations 48 and 49 (the Bakis model).

    Example:
        >>> (left_to_right(3).probs > 0).int().tolist()
        [[1, 1, 0], [0, 1, 1], [0, 0, 1]]
    """
    if skip < 1:
        raise StatespanError(f"left_to_right(skip={skip}): use at least 1, or no state is ever left")
    return Dense(states, concentration, sticky, reach=(0, skip))


def banded(states: int | None = None, width: int = 1, concentration: Any = 1.0, sticky: float = 0.0) -> Dense:
    """A chain that moves at most `width` states up or down.

    Args:
        states: K; None leaves it to `ss.hmm`.
        width: the greatest distance of a move.
        concentration: of the Dirichlet prior of `Dense`.
        sticky: of that prior.

    Raises:
        StatespanError: a negative width.

    Source:
        Rabiner 1989, section IV.C: the zeros stay in every re-estimation.

    Example:
        >>> (banded(3).probs > 0).int().tolist()
        [[1, 1, 0], [1, 1, 1], [0, 1, 1]]
    """
    if width < 0:
        raise StatespanError(f"banded(width={width}): use 0 or more")
    return Dense(states, concentration, sticky, reach=(width, width))


def _within(fixed: Any, reach: tuple[int, int] | list[int] | None, states: int) -> Tensor:
    """What is held, (K, K), NaN where free: that given, and zeros out of reach."""
    shape = (states, states)
    held = torch.full(shape, torch.nan, dtype=torch.float64) if fixed is None else as_fixed(fixed)
    if reach is not None and held.shape == shape:
        below, above = reach
        step = torch.arange(states) - torch.arange(states)[:, None]
        held = torch.where((step < -below) | (step > above), 0.0, held)
    return held_entries(held, shape, "Dense(fixed=)")


class FedTransition(Part, FiniteTransition):
    """A finite move that also sees the last symbol: a feature of it and a move that is fed.

    Args:
        feature: a part with `forward(y, constants) -> (..., m)` and `constants()`.
        move: a fed move, such as `RowsAddition`.
    """

    autoregressive = True

    feature: Any
    move: Any

    def __init__(self, feature: nn.Module, move: Any):
        super().__init__()
        self.feature, self.move, self.states = feature, move, move.states

    @property
    def operator(self) -> nn.Module:
        """What chooses a kernel."""
        return self.move

    def constants(self) -> Tree:
        """The feature's and the move's."""
        return self.feature.constants(), self.move.constants()

    def tables(self, u: Tree, constants: Tree) -> Tree:
        """The move's."""
        return self.move.tables(u, constants[1])

    def feed(self, y: Tensor, u: Tree, constants: Tree) -> Tree:
        """The move's drive by the feature of y, for all t at once."""
        return self.move.drive(self.feature(y, constants[0]), constants[1])

    def push(self, probs: Float[Tensor, "B K"], tables: Tree, fed: Tree) -> Float[Tensor, "B K"]:
        """P A(fed)."""
        return self.move.push(probs, tables, fed)

    def pull(self, values: Float[Tensor, "B K"], tables: Tree, fed: Tree) -> Float[Tensor, "B K"]:
        """A(fed) f."""
        return self.move.pull(values, tables, fed)

    def dense(self, tables: Tree, fed: Tree) -> Float[Tensor, "*B K K"]:
        """A(fed), (B, K, K)."""
        return self.move.dense(tables, fed)

    def average(self, constants: Tree, symbol_probs: Tensor) -> Tensor:
        """Sum over v of p(v | k) A_v[k, l], (K, K); K^2 V work, in chunks, made only for a gap or a forecast."""
        symbols = torch.arange(len(symbol_probs), device=symbol_probs.device)
        tables = self.tables(None, constants).value
        states = symbol_probs.shape[1]
        total = symbol_probs.new_zeros(states, states)
        for chunk in symbols.split(max(1, 2**22 // states**2)):
            fed = self.feed(chunk, None, constants)
            total = total + torch.einsum("vk,vkl->kl", symbol_probs[chunk], self.dense(tables, fed))
        return total


class RowsAddition(Part):
    r"""Addition feeding: A(e)[l, k] = softmax over k of W[l, k] + (U e + b)[k].

    exp(W + f) factorises, so a step is one matrix product with exp(W), and the row sums are one more for all t at
    once: no K x K softmax a token. So that no product of two exponentials underflows, logits of W and of f that lie
    more than `depth` below the largest of their row are held there: 39 in float32, a factor of 1e-17, 318 in float64.

    Args:
        states: K, the width of e too.

    Source:
        Buys, Bisk and Choi, equation 23.
    """

    fed = True

    class Drive(NamedTuple):
        """exp(f) and one over each row's sum, both (..., K)."""

        column: Tensor
        row: Tensor

    def __init__(self, states: int):
        super().__init__()
        self.states = states
        self.logits = nn.Parameter(torch.randn(states, states))
        self.input = nn.Linear(states, states)

    def constants(self) -> Tensor:
        """exp(W), each row scaled by its largest entry."""
        return _relative_exp(self.logits)

    def tables(self, u: Tree, constants: Tensor) -> Shared:
        """exp(W)."""
        return Shared(constants)

    def drive(self, e: Tensor, constants: Tensor) -> "RowsAddition.Drive":
        """exp(f) and the inverse row sums."""
        column = _relative_exp(self.input(e))
        return self.Drive(column, 1 / (column @ constants.mT))

    def push(self, probs: Float[Tensor, "B K"], tables: Tensor, fed: "RowsAddition.Drive") -> Float[Tensor, "B K"]:
        """P A."""
        return ((probs * fed.row) @ tables) * fed.column

    def pull(self, values: Float[Tensor, "B K"], tables: Tensor, fed: "RowsAddition.Drive") -> Float[Tensor, "B K"]:
        """A f."""
        return ((values * fed.column) @ tables.mT) * fed.row

    def dense(self, tables: Tensor, fed: "RowsAddition.Drive") -> Float[Tensor, "*B K K"]:
        """A, (..., K, K)."""
        return fed.row[..., :, None] * tables * fed.column[..., None, :]


def _relative_exp(logits: Tensor) -> Tensor:
    """Exponentials divided by the largest of each row, none below the root of the smallest number there is."""
    depth = -0.45 * math.log(torch.finfo(logits.dtype).tiny)
    return (logits - logits.detach().amax(-1, keepdim=True)).clamp_min(-depth).exp()


class RowsGate(Part):
    r"""Gated feeding: A(e)[l, k] = softmax over k of W[l, k] sigmoid(U e + b)[k]; K^2 exponentials a token.

    Args:
        states: K, the width of e too.

    Source:
        Buys, Bisk and Choi, equations 24 to 26.
    """

    fed = True

    def __init__(self, states: int):
        super().__init__()
        self.states = states
        self.logits = nn.Parameter(torch.randn(states, states))
        self.input = nn.Linear(states, states)

    def constants(self) -> Tensor:
        """W."""
        return self.logits

    def tables(self, u: Tree, constants: Tensor) -> Shared:
        """W."""
        return Shared(constants)

    def drive(self, e: Tensor, constants: Tensor) -> Tensor:
        """The gate, (..., K)."""
        return self.input(e).sigmoid()

    def push(self, probs: Float[Tensor, "B K"], tables: Tensor, fed: Tensor) -> Float[Tensor, "B K"]:
        """P A."""
        return gated_push(probs, tables, fed)

    def pull(self, values: Float[Tensor, "B K"], tables: Tensor, fed: Tensor) -> Float[Tensor, "B K"]:
        """A f."""
        return (self.dense(tables, fed) @ values[..., None])[..., 0]

    def dense(self, tables: Tensor, fed: Tensor) -> Float[Tensor, "*B K K"]:
        """A, (..., K, K)."""
        return (tables * fed[..., None, :]).softmax(-1)


class RowsTensor(Part):
    r"""Tensor feeding: A(e)[l, k] = softmax over k of sum over j of W[l, k, j] e[j] + B[l, k]; K^3 work a token.

    Args:
        states: K, the width of e too.

    Source:
        Buys, Bisk and Choi, equation 22; Tran et al. 2016.
    """

    fed = True

    def __init__(self, states: int):
        super().__init__()
        self.states = states
        self.logits = nn.Parameter(torch.randn(states, states))
        self.tensor = nn.Parameter(torch.randn(states * states, states) / states**0.5)

    def constants(self) -> tuple[Tensor, Tensor]:
        """W as (K^2, K), and B."""
        return self.tensor, self.logits

    def tables(self, u: Tree, constants: tuple[Tensor, Tensor]) -> Shared:
        """W and B."""
        return Shared(constants)

    def drive(self, e: Tensor, constants: Tree) -> Tensor:
        """The feature itself, (..., K): the table is too large to make for all t at once."""
        return e

    def push(self, probs: Float[Tensor, "B K"], tables: tuple[Tensor, Tensor], fed: Tensor) -> Float[Tensor, "B K"]:
        """P A."""
        return (probs[..., None, :] @ self.dense(tables, fed))[..., 0, :]

    def pull(self, values: Float[Tensor, "B K"], tables: tuple[Tensor, Tensor], fed: Tensor) -> Float[Tensor, "B K"]:
        """A f."""
        return (self.dense(tables, fed) @ values[..., None])[..., 0]

    def dense(self, tables: tuple[Tensor, Tensor], fed: Tensor) -> Float[Tensor, "*B K K"]:
        """A, (..., K, K)."""
        tensor, base = tables
        return ((fed @ tensor.mT).unflatten(-1, base.shape) + base).softmax(-1)
