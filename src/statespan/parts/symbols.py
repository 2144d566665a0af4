"""One matrix for symbols, in and out: the tied embedding, and the features of a symbol that a move is fed."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from statespan.kernels.linear_cross_entropy import linear_log_softmax_gather
from statespan.kernels.normalised_gather import column_logsumexp, gather_log_softmax
from statespan.part import Part, scaled
from statespan.tree import Lazy


class Columns(NamedTuple):
    """A table's columns as distributions over symbols.

    The log normalisers (K,); and made if asked for: p(v | k) (K, V), and the same by symbol, each row divided by its
    largest value and that value's logarithm, (V, K) and (V,).
    """

    normaliser: Tensor
    probs: Lazy
    scaled: Lazy


class Table(Part):
    r"""E, one row a symbol and one column a state or a feature, with a bias a symbol if asked for.

    Read by columns it is an HMM's emission, p(v | k) = softmax over v of E[v, k] + d[v]; read by rows it embeds
    symbols; multiplied by a state it gives logits, E c + d. The parts of a model share one table: that is the tie.

    Args:
        symbols: V.
        width: K, states or features.
        bias: whether there is a d, shared by all states.
        spread: standard deviation of the first entries.
        uniform: a; the first entries are drawn from U(-a, a) instead. 0 draws normal ones.

    Source:
        Buys, Bisk and Choi, equations 4, 11, 14, 19 and 21.
    """

    def __init__(self, symbols: int, width: int, bias: bool = False, spread: float = 0.1, uniform: float = 0.0):
        super().__init__()
        self.symbols, self.width = symbols, width
        first = (
            torch.rand(symbols, width).mul_(2).sub_(1) * uniform if uniform else torch.randn(symbols, width) * spread
        )
        self.weight = nn.Parameter(first)
        self.bias = nn.Parameter(torch.zeros(symbols)) if bias else None

    @torch.no_grad()
    def normaliser(self) -> Tensor:
        """Log of the sum over symbols of exp(E + d), (K,): a value; `columns` knows its gradient."""
        return column_logsumexp(self.weight, self.bias)

    def as_columns(self) -> Columns:
        """What `columns` needs, and the probabilities themselves."""
        return Columns(self.normaliser(), Lazy(self.probs), Lazy(lambda: scaled(self.log_probs())))

    def probs(self) -> Tensor:
        """p(v | k), (K, V)."""
        return self.log_probs().exp().T

    def columns(self, y: Tensor, normaliser: Tensor) -> Tensor:
        """Log p(y | k) for symbols y (...): (..., K)."""
        rows = gather_log_softmax(self.weight, self.bias, normaliser, y.reshape(-1))
        return rows.view(*y.shape, self.width)

    def log_probs(self) -> Tensor:
        """Log p(v | k), (V, K)."""
        logits = self.weight if self.bias is None else self.weight + self.bias[:, None]
        return logits.log_softmax(0)

    def embed(self, y: Tensor) -> Tensor:
        """Rows of E, (..., K)."""
        return nn.functional.embedding(y, self.weight)

    def logits(self, state: Tensor) -> Tensor:
        """E c + d, (..., V)."""
        return nn.functional.linear(state, self.weight, self.bias)

    def log_softmax(self, state: Tensor, y: Tensor) -> Tensor:
        """Log softmax(E c + d)[y], without keeping the logits twice: (..., K) and (...) to (...)."""
        flat = linear_log_softmax_gather(
            state.reshape(-1, self.width).contiguous(), self.weight, self.bias, y.reshape(-1)
        )
        return flat.view(y.shape)


class WindowDropout(nn.Module):
    """Dropout whose mask is the same at every step of a window, drawn anew for each window and sequence.

    Args:
        p: probability with which an entry is dropped.

    Source:
        Gal and Ghahramani 2016, "A theoretically grounded application of dropout in recurrent neural networks".
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """(T, B, m), or (N, m) without time, where each row has its own."""
        if not self.training or not self.p:
            return x
        return x * nn.functional.dropout(x.new_ones((1, *x.shape[1:]) if x.dim() == 3 else x.shape), self.p)


def dropout_of(p: float, variational: bool) -> nn.Module:
    """Dropout of each step's own, or the same over a window."""
    return WindowDropout(p) if variational else nn.Dropout(p)


class RawFeature(Part):
    """The embedding as it is: e = E[y].

    Args:
        table: the embedding, often the one the emission scores with.
        dropout: probability with which an entry of e is dropped in training.
        variational: drop the same entries at every step of a window.

    Source:
        Buys, Bisk and Choi, equations 19 and 24.
    """

    def __init__(self, table: Table, dropout: float = 0.0, variational: bool = False):
        super().__init__()
        self.table, self.drop = table, dropout_of(dropout, variational)

    def constants(self) -> None:
        """Nothing."""

    def forward(self, y: Tensor, constants: None = None) -> Tensor:
        """(...) to (..., m)."""
        return self.drop(self.table.embed(y))


class SoftmaxFeature(Part):
    """The embedding normalised as an HMM's emission is: e[k] = p(y | k).

    Args:
        table: the embedding.
        dropout: probability with which an entry of e is dropped in training.
        variational: drop the same entries at every step of a window.

    Source:
        Buys, Bisk and Choi, equation 14.
    """

    def __init__(self, table: Table, dropout: float = 0.0, variational: bool = False):
        super().__init__()
        self.table, self.drop = table, dropout_of(dropout, variational)

    def constants(self) -> Tensor:
        """The log normalisers, (m,)."""
        return self.table.normaliser()

    def forward(self, y: Tensor, constants: Tensor) -> Tensor:
        """(...) to (..., m)."""
        return self.drop(self.table.columns(y, constants).exp())
