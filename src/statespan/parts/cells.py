"""Deterministic moves: the recurrent side of the ladder.

A `Cell` is three choices: how the state is conditioned on the symbol just seen, what feature of the symbol is fed,
and how the state moves. The stochastic-matrix moves of `parts/finite.py` serve here as they are.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from statespan.part import CellTransition, Part
from statespan.parts.symbols import Table
from statespan.tree import Lazy, Shared, Tree, tree_map


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
        log = self.table.columns(y, constants)
        return (log - log.detach().amax(-1, keepdim=True)).exp()

    def absorb(self, state: Tensor, column: Tensor) -> Tensor:
        """The state given the symbol."""
        joint = state * column
        return joint / joint.sum(-1, keepdim=True).clamp_min(torch.finfo(joint.dtype).tiny)


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


class Nonlinear(Part):
    r"""c = f(W s + b), or fed, f(W s + U e + b); f is the sigmoid or the softmax.

    Args:
        width: m.
        fed: whether U e is added.
        activation: "sigmoid" or "softmax".

    Source:
        Buys, Bisk and Choi, equations 20, 27, 29, 31, 33 and 35.
    """

    def __init__(self, width: int, fed: bool = False, activation: str = "sigmoid"):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width) / width**0.5)
        self.bias = nn.Parameter(torch.zeros(width))
        self.input = nn.Linear(width, width, bias=False) if fed else None
        self.fed = fed
        self.activation = {"sigmoid": torch.sigmoid, "softmax": _softmax}[activation]

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
        return self.activation(torch.addmm(bias if fed is None else fed, state, weight))


class LateSigmoid(Part):
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


class Multiplicative(Part):
    r"""c = sigmoid((W s)(U e + b)): multiplicative integration.

    Args:
        width: m.

    Source:
        Buys, Bisk and Choi, equation 38; Wu et al. 2016.
    """

    fed = True

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


class Jordan(Part):
    r"""c = sigmoid(W E' o / V + U e + b) with o = E s + d, the last output fed back.

    Feeding back the whole output distribution costs V m both ways inside the loop. Fed back before its softmax, the
    output meets the tied embedding twice, E'E s + E'd, an m x m matrix made once: the loop costs what Elman's costs.

    Args:
        width: m.
        table: E and d.

    Source:
        Jordan 1986; the linear feedback is ours.
    """

    fed = True

    def __init__(self, width: int, table: Table):
        super().__init__()
        self.table = table
        self.weight = nn.Parameter(torch.randn(width, width) / width**0.5)
        self.input = nn.Linear(width, width)

    def constants(self) -> tuple[Tensor, Tensor]:
        """E'E W / V and E'd W / V + b."""
        e = self.table.weight
        gram = (e.T @ e) / len(e)
        shift = (
            torch.zeros_like(self.input.bias) if self.table.bias is None else (self.table.bias @ e) / len(e)
        )
        return gram @ self.weight, shift @ self.weight + self.input.bias

    def tables(self, u: Tree, constants: tuple[Tensor, Tensor]) -> Shared:
        """The first of the constants."""
        return Shared(constants[0])

    def drive(self, e: Tensor, constants: tuple[Tensor, Tensor]) -> Tensor:
        """U e and the constant."""
        return nn.functional.linear(e, self.input.weight, constants[1])

    def push(self, state: Tensor, tables: Tensor, fed: Tensor) -> Tensor:
        """The next state."""
        return torch.addmm(fed, state, tables).sigmoid()


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
        simplex: whether the state is a distribution.
        symbols: V.
        dropout: probability with which an entry of the state is dropped on its way into the next move, in training;
            only for a state that is not a distribution.
    """

    def __init__(
        self,
        condition: nn.Module,
        move: nn.Module,
        feature: nn.Module | None,
        simplex: bool,
        symbols: int,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.condition, self.move, self.feature = condition, move, feature
        self.simplex, self.symbols = simplex, symbols
        self.drop = nn.Dropout(0.0 if simplex else dropout)

    class Constants(NamedTuple):
        """The three parts' constants, the move's tables, and what every symbol feeds (made if a gap asks)."""

        condition: Any
        feature: Any
        move: Any
        tables: Any
        every: Lazy

    @property
    def operator(self) -> Any:
        """What chooses a kernel: the torch cell where there is one."""
        return getattr(self.move, "operator", self)

    def constants(self) -> "Cell.Constants":
        """The parts' constants."""
        move = self.move.constants()
        tables = self.move.tables(None, move)
        feature = None if self.feature is None else self.feature.constants()
        symbols = torch.arange(self.symbols, device=next(self.parameters()).device)
        made = self.Constants(
            self.condition.constants(),
            feature,
            move,
            None if tables is None else tables.value,
            Lazy(lambda: self.feed(symbols, None, made)),
        )
        return made

    def feed(self, y: Tensor, u: Tree, constants: "Cell.Constants") -> Fed:
        """The condition's column and the move's drive."""
        e = None if self.feature is None else self.feature(y, constants.feature)
        drive = self.move.drive(e, constants.move) if self.move.fed else None
        return Fed(self.condition.column(y, e, constants.condition), drive)

    def absorb(self, state: Tree, fed: Fed) -> Tree:
        """The state given the symbol."""
        return self.condition.absorb(state, fed.column)

    def step(self, fed: Fed, state: Tree, constants: "Cell.Constants") -> Tree:
        """The next state."""
        if self.training and self.drop.p:
            state = tree_map(self.drop, state)
        return self.move.push(state, constants.tables, fed.drive)

    def missing(self, prediction: Distribution, constants: "Cell.Constants") -> Fed:
        """What to feed when the symbol is missing: the mean of what each symbol would, under the prediction."""
        probs: Any = getattr(prediction, "probs", None)
        return tree_map(lambda x: probs @ x, constants.every.value)


def _softmax(x: Tensor) -> Tensor:
    return x.softmax(-1)
