"""Very many states for few parameters: each state is a short vector, by which it moves and emits."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from statespan.errors import StatespanError
from statespan.kernels.linear_cross_entropy import linear_log_softmax_gather
from statespan.part import FiniteEmission, FiniteTransition, Generative, Part, scaled
from statespan.parts.symbols import Table
from statespan.sequences import Event
from statespan.shapes import Float, Int
from statespan.tree import Lazy, Shared, Tree


class StateVectors(Part):
    """S, one vector a state, (K, h): the parts of a model share it.

    Args:
        states: K.
        width: h.
        spread: standard deviation of the first entries.
    """

    def __init__(self, states: int, width: int, spread: float = 0.1):
        super().__init__()
        self.states, self.width = states, width
        self.weight = nn.Parameter(torch.randn(states, width) * spread)


class Residual(nn.Module):
    """What a vector is in one role: f(s) = layernorm(relu(V relu(U s + a) + b) + relu(U s + a)).

    Args:
        width: h.

    Source:
        Chiu and Rush, "Scaling hidden Markov language models", 2020, section 3.2.
    """

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(width, width), nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, s: Tensor) -> Tensor:
        """(..., h) to (..., h)."""
        once = self.first(s).relu()
        return self.norm(self.second(once).relu() + once)


class EmbeddedTables(NamedTuple):
    """A[i, j] = exp(source_i . target_j + bias_j - normaliser_i) where j is kept, else 0.

    Args:
        source: (K, h).
        target: (K, h).
        bias: (K,).
        kept: (C, n') the states of each class that are moved to; None: all.
        normaliser: (K,), made if asked for.
        probs: A itself, (K, K), made if asked for.
    """

    source: Tensor
    target: Tensor
    bias: Tensor
    kept: Tensor | None
    normaliser: Lazy
    probs: Lazy

    def normalise(self, rows: Tensor | None = None) -> Float[Tensor, " R"]:
        """Log of the sum over the states moved to of exp(source_i . target_j + bias_j), of some rows i; None: all."""
        source = self.source if rows is None else self.source[rows]
        target, bias = self.target, self.bias
        if self.kept is not None:
            target, bias = target[self.kept.flatten()], bias[self.kept.flatten()]
        zero = torch.zeros(len(source), dtype=torch.long, device=source.device)
        return source @ target[0] + bias[0] - linear_log_softmax_gather(source, target, bias, zero)

    def table(self) -> Float[Tensor, "K K"]:
        """A, (K, K)."""
        log = self.source @ self.target.mT + self.bias
        if self.kept is not None:
            there = torch.zeros_like(self.bias, dtype=torch.bool).index_fill(0, self.kept.flatten(), True)
            log = log.masked_fill(~there, -torch.inf)
        return log.softmax(-1)

    def block(self, rows: Int[Tensor, "P a"], columns: Int[Tensor, "P b"], normaliser: Tensor) -> Tensor:
        """Logarithms of parts of A, (P, a, b), with the normalisers (K,) of their rows."""
        product = self.source[rows] @ self.target[columns].mT
        return product + (self.bias[columns][:, None] - normaliser[rows][..., None])


class EmbeddedMatrix(Part, FiniteTransition, Generative):
    r"""A stochastic matrix made of vectors: p(z_t = j | z_{t-1} = i) = softmax over j of f(s_i) . U s_j + b_j.

    In training whole states may be left out, the same for all of a window: A'[i, j] = A[i, j] m[j] / sum over k of
    A[i, k] m[k]. With an emission whose symbols each leave one class of states (`EmbeddedCategorical`), a step costs
    (K / C)^2 instead of K^2, and A is never made.

    Args:
        vectors: S, shared with the emission.
        classes: C; as many states are left out of each class.
        dropout: share of the states that are left out of a window in training.

    Source:
        Chiu and Rush 2020, sections 3.2 (neural parameterisation) and 3.3 (state dropout).

    Example:
        >>> move = EmbeddedMatrix(StateVectors(8, 3))
        >>> bool(torch.allclose(move.probs.sum(-1), torch.ones(8)))
        True
    """

    fed = False

    def __init__(self, vectors: StateVectors, classes: int = 1, dropout: float = 0.0):
        super().__init__()
        self.vectors, self.states, self.dropout = vectors, vectors.states, dropout
        self.classes = _divides(classes, vectors.states)
        self.source = Residual(vectors.width)
        self.target = nn.Linear(vectors.width, vectors.width, bias=False)
        self.bias = nn.Parameter(torch.zeros(vectors.states))

    def constants(self) -> EmbeddedTables:
        """The vectors in their roles; in training with dropout, the states that this window keeps."""
        s, kept = self.vectors.weight, None
        if self.training and self.dropout:
            size = self.states // self.classes
            drawn = torch.rand(self.classes, size, device=s.device).argsort(-1)[:, : self.kept]
            kept = drawn.sort(-1).values + size * torch.arange(self.classes, device=s.device)[:, None]
        made = EmbeddedTables(self.source(s), self.target(s), self.bias, kept, *[Lazy(lambda: None)] * 2)
        return made._replace(normaliser=Lazy(made.normalise), probs=Lazy(made.table))

    @property
    def kept(self) -> int:
        """How many states of a class a window keeps in training."""
        return max(1, round(self.states // self.classes * (1 - self.dropout)))

    @property
    def probs(self) -> Tensor:
        """A, (K, K)."""
        return self.constants().table()

    def tables(self, u: Tree, constants: EmbeddedTables) -> Shared:
        """The same at every step."""
        return Shared(constants)

    def push(self, probs: Float[Tensor, "B K"], tables: EmbeddedTables, fed: Tree = None) -> Float[Tensor, "B K"]:
        """P A."""
        return probs @ tables.probs.value

    def pull(self, values: Float[Tensor, "B K"], tables: EmbeddedTables, fed: Tree = None) -> Float[Tensor, "B K"]:
        """A f."""
        return values @ tables.probs.value.mT

    def dense(self, tables: EmbeddedTables, fed: Tree = None) -> Float[Tensor, "K K"]:
        """A."""
        return tables.probs.value

    def forward(self, z: Tensor, u: Tree = None) -> Categorical:
        """The distribution of z_t given z_{t-1} = z."""
        s = self.vectors.weight
        return Categorical(logits=self.source(s[z]) @ self.target(s).mT + self.bias, validate_args=False)


class ClassRows(NamedTuple):
    """Log p(v | k) for the states k of v's class, (V, K / C); and p(v | k), (K, V), made if asked for."""

    rows: Tensor
    probs: Lazy


class EmbeddedCategorical(Part, FiniteEmission, Generative):
    r"""Symbols from vectors of states and symbols, each state those of its class alone.

    p(y = v | z = k) = softmax over the v in class c(k) of w_v . f(s_k) + d_v, else 0. The first K / C states are of
    class 0, the next of class 1, and so on; with one class every state emits every symbol.

    Args:
        table: W and d, the symbols' vectors.
        vectors: S, shared with the transition.
        classes: C. Symbols take turns until `set_classes` says better.

    Raises:
        StatespanError: classes that do not divide the states, or more of them than symbols.

    Source:
        Chiu and Rush, "Scaling hidden Markov language models", 2020, sections 3.1 (blocked emissions) and 3.2.

    Example:
        >>> emission = EmbeddedCategorical(Table(6, 3, bias=True), StateVectors(4, 3), classes=2)
        >>> (emission.probs > 0).int().tolist()[0]
        [1, 0, 1, 0, 1, 0]
    """

    owner: Tensor

    def __init__(self, table: Table, vectors: StateVectors, classes: int = 1):
        super().__init__()
        if classes > table.symbols:
            raise StatespanError(f"classes={classes} are more than the {table.symbols} symbols; use fewer")
        self.table, self.vectors = table, vectors
        self.states: Any = vectors.states
        self.symbols, self.event = table.symbols, Event(0, table.symbols)
        self.classes = _divides(classes, vectors.states)
        self.role = Residual(vectors.width)
        self.register_buffer("owner", torch.arange(table.symbols) % classes)

    def set_classes(self, owner: Tensor) -> None:
        """Say of which class each symbol is, (V,) integers.

        Raises:
            StatespanError: a class without a symbol: its states could emit nothing.
        """
        sizes = torch.bincount(owner, minlength=self.classes)
        if len(sizes) != self.classes or not bool((sizes > 0).all()) or owner.shape != self.owner.shape:
            raise StatespanError(
                f"{self.symbols} symbols must have one of {self.classes} classes each, and every class some symbol"
            )
        self.owner.copy_(owner)

    def _members(self) -> tuple[Tensor, ...]:
        """The symbols of each class."""
        return self.owner.argsort(stable=True).split(torch.bincount(self.owner, minlength=self.classes).tolist())

    def constants(self) -> ClassRows:
        """Each symbol under the states of its class."""
        size, members = self.states // self.classes, self._members()
        states = self.role(self.vectors.weight).split(size)
        w, d, order = self.table.weight, self.table.bias, torch.cat(members)
        ends = [len(some) for some in members]
        biases = w.new_zeros(self.symbols) if d is None else d
        symbols = zip(w[order].split(ends), biases[order].split(ends), states, strict=True)
        rows = torch.cat([torch.addmm(b[:, None], x, s.mT).log_softmax(0) for x, b, s in symbols])
        rows = rows[order.argsort()]
        return ClassRows(rows, Lazy(lambda: self._spread(rows.exp(), self.owner).mT))

    def _spread(self, values: Float[Tensor, "... n"], at: Int[Tensor, "..."]) -> Float[Tensor, "... K"]:
        """Values of the states of one class as those of all states, zero for the others."""
        if self.classes == 1:
            return values
        flat, index = values.flatten(0, -2), at.flatten()
        out = flat.new_zeros(len(flat), self.classes, flat.shape[-1])
        out[torch.arange(len(flat), device=flat.device), index] = flat
        return out.view(*at.shape, self.states)

    @property
    def probs(self) -> Tensor:
        """p(v | k), (K, V)."""
        return self.constants().probs.value

    def log_likelihood(
        self, y: Int[Tensor, "T B"], u: Tree, observed: Tensor | None, constants: ClassRows
    ) -> Float[Tensor, "T B K"]:
        """Log p(y | k), (T, B, K): minus infinity where the symbol is of another class."""
        log = self._spread(nn.functional.embedding(y, constants.rows), self.owner[y])
        return log.masked_fill(~self._possible(y), -torch.inf)

    def _possible(self, y: Tensor) -> Tensor:
        """Which states can emit y, (T, B, K)."""
        each = torch.arange(self.states, device=y.device) // (self.states // self.classes)
        return each == self.owner[y][..., None]

    def likelihood(
        self, y: Tensor, u: Tree, observed: Tensor | None, constants: ClassRows
    ) -> tuple[Float[Tensor, "T B K"], Float[Tensor, "T B"]]:
        """By the states of the symbol's class alone."""
        value, log_scale = scaled(nn.functional.embedding(y, constants.rows))
        return self._spread(value, self.owner[y]), log_scale

    def mixture(self, probs: Float[Tensor, "... K"], u: Tree, constants: ClassRows) -> Categorical:
        """Symbols with probability sum over k of probs[k] p(v | k)."""
        members, size = self._members(), self.states // self.classes
        parts = [x @ constants.rows[some].exp().mT for x, some in zip(probs.split(size, -1), members, strict=True)]
        return Categorical(probs=torch.cat(parts, -1)[..., torch.cat(members).argsort()], validate_args=False)

    def fill(self, y: Tensor, u: Tree, observed: Tensor | None, weights: Tensor) -> Tensor:
        """The likeliest symbol."""
        rows = self.constants()
        return self.mixture(weights.to(rows.rows), u, rows).probs.argmax(-1)

    def forward(self, z: Tensor, u: Tree = None) -> Categorical:
        """The distribution of y given states z."""
        logits = self.table.logits(self.role(self.vectors.weight[z]))
        there = self.owner == (z // (self.states // self.classes))[..., None]
        return Categorical(logits=logits.masked_fill(~there, -torch.inf), validate_args=False)


def _divides(classes: int, states: int) -> int:
    """The number of classes, if each has as many states."""
    if classes < 1 or states % classes:
        raise StatespanError(f"{states} states cannot be shared by {classes} classes; use a number that divides them")
    return classes
