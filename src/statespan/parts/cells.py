"""Deterministic moves: the recurrent side of the ladder.

A `Cell` is three choices: how the state is conditioned on the symbol just seen, what feature of the symbol is fed,
and how the state moves. The stochastic-matrix moves of `parts/finite.py` serve here as they are.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from statespan.part import CellTransition, Part, scaled
from statespan.parts.symbols import Table
from statespan.tree import Lazy, Shared, Tree, tree_map


class LinearMove(ABC):
    """A move that is one matrix product between two elementwise functions: c = after(before(s) W, fed).

    It says the derivatives of the two, so that a kernel can run a whole window without a graph a step, and pool the
    gradient of W into one product. `adds` says that what is fed is added to the product.
    """

    adds: ClassVar[bool] = True

    @abstractmethod
    def linear(self, tables: Tree) -> tuple[Tensor, Tensor | None]:
        """W, and what stands in for `fed` where nothing is fed."""

    def before(self, state: Tensor) -> Tensor:
        """What is multiplied; the state itself unless a move says otherwise."""
        return state

    def before_backward(self, gradient: Tensor, state: Tensor, before: Tensor) -> Tensor:
        """The gradient at the state."""
        return gradient

    @abstractmethod
    def after(self, product: Tensor, fed: Tensor) -> Tensor:
        """The next state."""

    @abstractmethod
    def after_backward(self, gradient: Tensor, product: Tensor, state: Tensor, fed: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients at the product and at what is fed."""


class Bayes(Part):
    r"""Condition by Bayes' rule: s = e c / sum(e c), with e[k] = p(y | k).

    Args:
        table: the matrix whose normalised columns are e.

    Source:
        Buys, Bisk and Choi, equations 14 and 15.
    """

    def __init__(self, table: Table):
        super().__init__()
        self.table = table

    def constants(self) -> Tensor:
        """The log normalisers, (K,)."""
        return self.table.normaliser()

    def column(self, y: Tensor, e: Tensor | None, constants: Tensor) -> Tensor:
        """p(y | k) divided by its largest value, (..., K): only ratios matter."""
        return scaled(self.table.columns(y, constants))[0]

    def absorb(self, state: Tensor, column: Tensor) -> Tensor:
        """The state given the symbol."""
        joint = state * column
        return joint / joint.sum(-1, keepdim=True).clamp_min(torch.finfo(joint.dtype).tiny)

    def absorb_backward(self, gradient: Tensor, state: Tensor, column: Tensor, absorbed: Tensor) -> tuple[Any, Any]:
        """The gradients at the state and at the column."""
        total = (state * column).sum(-1, keepdim=True).clamp_min(torch.finfo(state.dtype).tiny)
        joint = (gradient - (gradient * absorbed).sum(-1, keepdim=True)) / total
        return joint * column, joint * state

    def missing(self, e: Tensor | None) -> Tensor:
        """Nothing was learnt: ones. It is the mean over symbols of p(y | k) / p(y) under the prediction."""
        return torch.ones_like(self.table.weight[0, 0])


class Keep(Part):
    """No conditioning: the symbol acts through what is fed alone.

    Source:
        Buys, Bisk and Choi, equation 20.
    """

    def constants(self) -> None:
        """Nothing."""

    def column(self, y: Tensor, e: Tensor | None, constants: None) -> None:
        """Nothing."""

    def absorb(self, state: Tree, column: None) -> Tree:
        """The state as it was."""
        return state

    def absorb_backward(self, gradient: Tensor, state: Tensor, column: None, absorbed: Tensor) -> tuple[Any, Any]:
        """The gradients at the state and at nothing."""
        return gradient, None

    def missing(self, e: Tensor | None) -> None:
        """Nothing."""


class Product(Part):
    """Condition by the product with the feature: c e.

    Source:
        Buys, Bisk and Choi, equation 39.
    """

    def constants(self) -> None:
        """Nothing."""

    def column(self, y: Tensor, e: Tensor | None, constants: None) -> Tensor | None:
        """The feature itself."""
        return e

    def absorb(self, state: Tensor, column: Tensor) -> Tensor:
        """C e."""
        return state * column

    def absorb_backward(self, gradient: Tensor, state: Tensor, column: Tensor, absorbed: Tensor) -> tuple[Any, Any]:
        """The gradients at the state and at the feature."""
        return gradient * column, gradient * state

    def missing(self, e: Tensor | None) -> Tensor | None:
        """The mean feature."""
        return e


class Activation(NamedTuple):
    """An elementwise or row-wise function and its derivative, from gradient and output."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


ACTIVATIONS = {
    "sigmoid": Activation(torch.sigmoid, torch.ops.aten.sigmoid_backward),
    "softmax": Activation(
        lambda x: x.softmax(-1), lambda g, y: torch.ops.aten._softmax_backward_data(g, y, -1, y.dtype)
    ),
    "tanh": Activation(torch.tanh, torch.ops.aten.tanh_backward),
}
"""Non-linearities by the name a `Nonlinear` is made with."""


class Nonlinear(Part, LinearMove):
    r"""c = f(W s + b), or fed, f(W s + U e + b).

    Args:
        width: m.
        fed: whether U e is added.
        activation: f, a key of `ACTIVATIONS`.
        inputs: entries of e, m unless given.

    Source:
        Buys, Bisk and Choi, equations 20, 27, 29, 31, 33 and 35.
    """

    def __init__(self, width: int, fed: bool = False, activation: str = "sigmoid", inputs: int | None = None):
        super().__init__()
        # Unfed, it multiplies a distribution or a product with an embedding, whose entries are small: W starts larger.
        self.weight = nn.Parameter(torch.randn(width, width) * (1 / width**0.5 if fed else 2.0))
        self.bias = nn.Parameter(torch.zeros(width))
        self.input = nn.Linear(inputs or width, width, bias=False) if fed else None
        self.fed = fed
        self.activation = activation

    def constants(self) -> tuple[Tensor, Tensor]:
        """W' and b."""
        return self.weight, self.bias

    def tables(self, u: Tree, constants: Tree) -> Shared:
        """W' and b."""
        return Shared(constants)

    def drive(self, e: Tensor, constants: tuple[Tensor, Tensor]) -> Tensor | None:
        """U e + b for all t at once."""
        return None if self.input is None else nn.functional.linear(e, self.input.weight, constants[1])

    def push(self, state: Tensor, tables: tuple[Tensor, Tensor], fed: Tensor | None) -> Tensor:
        """The next state."""
        weight, bias = tables
        return ACTIVATIONS[self.activation].forward(torch.addmm(bias if fed is None else fed, state, weight))

    def linear(self, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """W' and b."""
        return tables

    def after(self, product: Tensor, fed: Tensor) -> Tensor:
        """F of the sum."""
        return ACTIVATIONS[self.activation].forward(product.add_(fed))

    def after_backward(self, gradient: Tensor, product: Tensor, state: Tensor, fed: Tensor) -> tuple[Tensor, Tensor]:
        """The same for both."""
        inner = ACTIVATIONS[self.activation].backward(gradient, state)
        return inner, inner


class LateSigmoid(Part, LinearMove):
    r"""c = W sigmoid(s) + U e + b: the state is carried before its non-linearity.

    Args:
        width: m.

    Source:
        Buys, Bisk and Choi, equation 36.
    """

    fed = True

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width) / width**0.5)
        self.input = nn.Linear(width, width)

    def constants(self) -> Tensor:
        """W'."""
        return self.weight

    def tables(self, u: Tree, constants: Tensor) -> Shared:
        """W'."""
        return Shared(constants)

    def drive(self, e: Tensor, constants: Tensor) -> Tensor:
        """U e + b."""
        return self.input(e)

    def push(self, state: Tensor, tables: Tensor, fed: Tensor) -> Tensor:
        """The next state."""
        return torch.addmm(fed, state.sigmoid(), tables)

    def linear(self, tables: Tensor) -> tuple[Tensor, None]:
        """W'."""
        return tables, None

    def before(self, state: Tensor) -> Tensor:
        """sigmoid(s)."""
        return state.sigmoid()

    def before_backward(self, gradient: Tensor, state: Tensor, before: Tensor) -> Tensor:
        """Through the sigmoid."""
        return torch.ops.aten.sigmoid_backward(gradient, before)

    def after(self, product: Tensor, fed: Tensor) -> Tensor:
        """The sum."""
        return product.add_(fed)

    def after_backward(self, gradient: Tensor, product: Tensor, state: Tensor, fed: Tensor) -> tuple[Tensor, Tensor]:
        """The same for both."""
        return gradient, gradient


class Multiplicative(Part, LinearMove):
    r"""c = sigmoid((W s)(U e + b)): multiplicative integration.

    Args:
        width: m.

    Source:
        Buys, Bisk and Choi, equation 38; Wu et al. 2016.
    """

    fed = True
    adds = False

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width) / width**0.5)
        self.input = nn.Linear(width, width)
        nn.init.ones_(self.input.bias)  # starts as an Elman move without input rather than at zero

    def constants(self) -> Tensor:
        """W'."""
        return self.weight

    def tables(self, u: Tree, constants: Tensor) -> Shared:
        """W'."""
        return Shared(constants)

    def drive(self, e: Tensor, constants: Tensor) -> Tensor:
        """U e + b."""
        return self.input(e)

    def push(self, state: Tensor, tables: Tensor, fed: Tensor) -> Tensor:
        """The next state."""
        return ((state @ tables) * fed).sigmoid()

    def linear(self, tables: Tensor) -> tuple[Tensor, None]:
        """W'."""
        return tables, None

    def after(self, product: Tensor, fed: Tensor) -> Tensor:
        """The sigmoid of the product."""
        return (product * fed).sigmoid_()

    def after_backward(self, gradient: Tensor, product: Tensor, state: Tensor, fed: Tensor) -> tuple[Tensor, Tensor]:
        """Through the sigmoid, then through the product."""
        inner = torch.ops.aten.sigmoid_backward(gradient, state)
        return inner * fed, inner * product


class Jordan(Part, LinearMove):
    r"""c = sigmoid(U (e + s) + b): the last output is fed back, and enters as a symbol does.

    A Jordan network feeds back its output. Feeding back the whole distribution over V symbols costs V m both ways
    inside the loop; under a tied embedding the state s, which E turns into logits, already is an embedding of what is
    predicted, so it is fed back in that space, through the same U that the last symbol's embedding goes through.

    Args:
        width: m.

    Source:
        Jordan 1986; the feedback in the embedding's space is ours.
    """

    fed = True

    def __init__(self, width: int):
        super().__init__()
        self.input = nn.Linear(width, width)

    def constants(self) -> Tensor:
        """U'."""
        return self.input.weight.T

    def tables(self, u: Tree, constants: Tensor) -> Shared:
        """U'."""
        return Shared(constants)

    def drive(self, e: Tensor, constants: Tensor) -> Tensor:
        """U e + b."""
        return self.input(e)

    def push(self, state: Tensor, tables: Tensor, fed: Tensor) -> Tensor:
        """The next state."""
        return torch.addmm(fed, state, tables).sigmoid()

    def linear(self, tables: Tensor) -> tuple[Tensor, None]:
        """U'."""
        return tables, None

    def after(self, product: Tensor, fed: Tensor) -> Tensor:
        """The sigmoid of the sum."""
        return product.add_(fed).sigmoid_()

    def after_backward(self, gradient: Tensor, product: Tensor, state: Tensor, fed: Tensor) -> tuple[Tensor, Tensor]:
        """The same for both."""
        inner = torch.ops.aten.sigmoid_backward(gradient, state)
        return inner, inner


class Forget(Part):
    r"""c = U e + b: no state at all, the neural bigram.

    Args:
        width: m.

    Source:
        Bengio et al. 2003 with one word of context; Buys, Bisk and Choi, section 5.2.
    """

    fed = True

    def __init__(self, width: int):
        super().__init__()
        self.input = nn.Linear(width, width)

    def constants(self) -> None:
        """Nothing."""

    def tables(self, u: Tree, constants: None) -> None:
        """Nothing."""

    def drive(self, e: Tensor, constants: None) -> Tensor:
        """U e + b."""
        return self.input(e)

    def push(self, state: Tensor, tables: None, fed: Tensor) -> Tensor:
        """U e + b."""
        return fed


class Gated(Part):
    """A torch cell as a move: nn.LSTMCell, nn.GRUCell, or any module (x, state) -> state.

    Args:
        cell: the cell.

    Source:
        Hochreiter and Schmidhuber 1997; Cho et al. 2014.
    """

    fed = True

    def __init__(self, cell: nn.Module):
        super().__init__()
        self.cell = cell

    @property
    def operator(self) -> nn.Module:
        """What chooses a kernel."""
        return self.cell

    def constants(self) -> None:
        """Nothing."""

    def tables(self, u: Tree, constants: None) -> None:
        """Nothing."""

    def drive(self, e: Tensor, constants: None) -> Tensor:
        """The feature itself: a torch cell multiplies it by its own input matrix."""
        return e

    def push(self, state: Tree, tables: None, fed: Tensor) -> Tree:
        """The next state."""
        return self.cell(fed, state)


class Fed(NamedTuple):
    """What a symbol leaves behind: what conditions the state, and what drives the move."""

    column: Any
    drive: Any


class Cell(Part, CellTransition):
    """One rung's transition: condition, feature, move.

    Args:
        condition: `Bayes`, `Keep` or `Product`.
        move: any move of this module, or a stochastic one of `parts/finite.py`.
        feature: what is fed, or None.
        symbols: V.
        simplex: whether the state is a distribution once the symbol is known.
        moves_to_simplex: whether it is one after a move.
        dropout: probability with which an entry of the state is dropped on its way into the next move, in training;
            only for a state that is not a distribution.
        variational: drop the same entries at every step of a window.
    """

    condition: Any
    move: Any
    feature: Any

    def __init__(
        self,
        condition: nn.Module,
        move: nn.Module,
        feature: nn.Module | None,
        symbols: int,
        simplex: bool = False,
        moves_to_simplex: bool = False,
        dropout: float = 0.0,
        variational: bool = False,
    ):
        super().__init__()
        self.variational = variational
        self.condition, self.move, self.feature, self.symbols = condition, move, feature, symbols
        self.simplex, self.moves_to_simplex = simplex, moves_to_simplex
        self.drop = nn.Dropout(0.0 if simplex else dropout)

    class Constants(NamedTuple):
        """The three parts' constants, the move's tables, and every symbol's feature (made if a gap asks)."""

        condition: Any
        feature: Any
        move: Any
        tables: Any
        every: Lazy
        masks: dict[torch.Size, Tensor]

    @property
    def operator(self) -> Any:
        """What chooses a kernel: the move, or the torch cell inside it."""
        return getattr(self.move, "operator", self.move)

    def constants(self) -> "Cell.Constants":
        """The parts' constants."""
        move = self.move.constants()
        tables = self.move.tables(None, move)
        feature = None if self.feature is None else self.feature.constants()
        symbols = torch.arange(self.symbols, device=next(self.parameters()).device)
        every = Lazy(lambda: None if self.feature is None else self.feature(symbols, feature))
        at_move = None if tables is None else tables.value
        return self.Constants(self.condition.constants(), feature, move, at_move, every, {})

    def feed(self, y: Tensor, u: Tree, constants: "Cell.Constants") -> Fed:
        """The condition's column and the move's drive."""
        e = None if self.feature is None else self.feature(y, constants.feature)
        return Fed(self.condition.column(y, e, constants.condition), self._drive(e, constants))

    def _drive(self, e: Tensor | None, constants: "Cell.Constants") -> Tree:
        return self.move.drive(e, constants.move) if self.move.fed else None

    def absorb(self, state: Tree, fed: Fed) -> Tree:
        """The state given the symbol."""
        return self.condition.absorb(state, fed.column)

    def step(self, fed: Fed, state: Tree, constants: "Cell.Constants") -> Tree:
        """The next state."""
        if self.training and self.drop.p:
            state = tree_map(lambda x: self._dropped(x, constants.masks), state)
        return self.move.push(state, constants.tables, fed.drive)

    def _dropped(self, x: Tensor, masks: dict[torch.Size, Tensor]) -> Tensor:
        """Without some of its entries; variational ones are drawn at the window's first step, and kept."""
        if not self.variational:
            return self.drop(x)
        if x.shape not in masks:
            masks[x.shape] = self.drop(torch.ones_like(x))
        return x * masks[x.shape]

    def missing(self, prediction: Distribution, constants: "Cell.Constants") -> Fed:
        """What to feed when the symbol is missing: the mean feature under the prediction."""
        probs: Any = getattr(prediction, "probs", None)
        e = None if constants.every.value is None else probs @ constants.every.value
        return Fed(self.condition.missing(e), self._drive(e, constants))
