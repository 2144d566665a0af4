"""How a recurrent state scores the next symbol."""

import torch
from torch import Tensor, nn
from torch.distributions import Categorical as CategoricalDistribution

from statespan.part import CellEmission, Generative, Part, scaled
from statespan.parts.symbols import Columns, Table, dropout_of
from statespan.sequences import Event
from statespan.shapes import Float, Int


class Mixture(Part, CellEmission):
    r"""A mixture of the states' word distributions: p(v) = sum over k of c[k] softmax(E)[v, k].

    Args:
        table: E.
        normalise: divide a positive state by its sum first, c / sum c (equations 30 and 34).

    Source:
        Buys, Bisk and Choi, equations 18, 30, 32 and 34.
    """

    def __init__(self, table: Table, normalise: bool = False):
        super().__init__()
        self.table, self.normalise = table, normalise
        self.event = Event(0, table.symbols)

    def constants(self) -> Columns:
        """The table's columns."""
        return self.table.as_columns()

    def distribution(self, state: Tensor) -> Tensor:
        """The state as it is mixed."""
        return state / state.sum(-1, keepdim=True) if self.normalise else state

    def log_prob(
        self, state: Float[Tensor, "... K"], y: Int[Tensor, "..."], constants: Columns
    ) -> Float[Tensor, "..."]:
        """Log p(y), (...), by the log of a sum scaled by its largest term."""
        value, log_scale = scaled(self.table.columns(y, constants.normaliser))
        mixed = (self.distribution(state) * value).sum(-1)
        return mixed.clamp_min(torch.finfo(mixed.dtype).tiny).log() + log_scale

    def predict(self, state: Float[Tensor, "... K"], constants: Columns) -> CategoricalDistribution:
        """The distribution of y."""
        return CategoricalDistribution(probs=self.distribution(state) @ constants.probs.value, validate_args=False)


class Softmax(Part, CellEmission, Generative):
    r"""One softmax over the vocabulary: p = softmax(E c + d).

    Args:
        table: E and d.
        normalise: take the softmax of the state first, softmax(E softmax(c) + d) (equation 37).
        dropout: probability with which an entry of c is dropped in training.
        variational: drop the same entries at every step of a window.
        width: of c, where it is not that of the table; c is then projected, softmax(E P c + d).

    Source:
        Buys, Bisk and Choi, equations 21, 28 and 37; the projection: Melis, Dyer and Blunsom 2017.
    """

    def __init__(
        self,
        table: Table,
        normalise: bool = False,
        dropout: float = 0.0,
        variational: bool = False,
        width: int | None = None,
    ):
        super().__init__()
        self.table, self.normalise, self.drop = table, normalise, dropout_of(dropout, variational)
        apart = width is not None and width != table.width
        self.project = nn.Linear(width, table.width, bias=False) if apart and width else None
        self.event = Event(0, table.symbols)

    def constants(self) -> None:
        """Nothing."""

    def activate(self, state: Tensor) -> Tensor:
        """The state as it is scored."""
        return state.softmax(-1) if self.normalise else state

    def log_prob(
        self, state: Float[Tensor, "... K"], y: Int[Tensor, "..."], constants: None = None
    ) -> Float[Tensor, "..."]:
        """Log p(y), (...)."""
        return self.table.log_softmax(self._embed(self.drop(self.activate(state))), y)

    def predict(self, state: Float[Tensor, "... K"], constants: None = None) -> CategoricalDistribution:
        """The distribution of y."""
        logits = self.table.logits(self._embed(self.activate(state)))
        return CategoricalDistribution(logits=logits, validate_args=False)

    def _embed(self, state: Tensor) -> Tensor:
        """The state in the embedding's space."""
        return state if self.project is None else self.project(state)

    def forward(self, z: Tensor, u: None = None) -> CategoricalDistribution:
        """The distribution of y given the state."""
        return self.predict(z)


class Softmaxes(Part, CellEmission, Generative):
    r"""Several softmaxes over the vocabulary, mixed: p = sum over i of pi_i softmax(E tanh(P_i c + b_i) + d).

    pi = softmax(Q c) depends on the state too, so that the logarithms of p are not of low rank.

    Args:
        table: E and d.
        width: of c.
        count: how many.
        dropout: probability with which an entry of c is dropped in training.
        variational: drop the same entries at every step of a window.

    Source:
        Yang, Dai, Salakhutdinov and Cohen, "Breaking the softmax bottleneck", 2018, equation 2.
    """

    def __init__(
        self, table: Table, width: int | None = None, count: int = 4, dropout: float = 0.0, variational: bool = False
    ):
        super().__init__()
        self.table, self.count, self.drop = table, count, dropout_of(dropout, variational)
        self.share = nn.Linear(width or table.width, count, bias=False)
        self.project = nn.Linear(width or table.width, count * table.width)
        self.event = Event(0, table.symbols)

    def constants(self) -> None:
        """Nothing."""

    def _parts(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Log pi (..., N), and what each softmax scores (..., N, m)."""
        return self.share(state).log_softmax(-1), self.project(state).tanh().unflatten(-1, (self.count, -1))

    def log_prob(
        self, state: Float[Tensor, "... K"], y: Int[Tensor, "..."], constants: None = None
    ) -> Float[Tensor, "..."]:
        """Log p(y), (...)."""
        shares, states = self._parts(self.drop(state))
        each = self.table.log_softmax(states, y[..., None].expand(shares.shape))
        return (shares + each).logsumexp(-1)

    def predict(self, state: Float[Tensor, "... K"], constants: None = None) -> CategoricalDistribution:
        """The distribution of y."""
        shares, states = self._parts(state)
        probs = (shares.exp()[..., None] * self.table.logits(states).softmax(-1)).sum(-2)
        return CategoricalDistribution(probs=probs, validate_args=False)

    def forward(self, z: Tensor, u: None = None) -> CategoricalDistribution:
        """The distribution of y given the state."""
        return self.predict(z)
