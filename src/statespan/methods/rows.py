"""Log-likelihoods as rows that steps may share: each symbol once, and of vectors only the steps that there are."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from statespan.kernels.lanes import each, pieces
from statespan.methods.finite import Constants, Fed, prepare_likelihood
from statespan.sequences import Sequences, any_of
from statespan.tree import Shared

PIECE = 2**18
"""Numbers (rows times states) made at once: what lies between stays in the cache."""


class Rows(NamedTuple):
    """Log p(y | z = k) of N observations, which of them each step sees, and what the step feeds.

    Args:
        rows: (N, K), `Shared` by all steps.
        which: (T, B) integers.
        fed: what y_t leaves behind.
    """

    rows: Any
    which: Tensor
    fed: Fed | None

    @property
    def logs(self) -> Tensor:
        """Those of one step, (B, K) float64."""
        return self.rows[self.which].double()


def prepare_rows(model: Any, constants: Constants, data: Sequences) -> Rows:
    """The log-likelihood of every step; zeros where nothing is observed, minus infinity off a labelled state."""
    emission = model.emission
    if not _alike(model, data):
        likelihood = prepare_likelihood(model, constants, data)
        log = likelihood.exactly()
        return Rows(Shared(log.flatten(0, 1)), _in_order(data), likelihood.fed)
    if sharing(model, data):
        rows, index = emission.log_likelihood(symbols(emission, data), None, None, constants.emission)[:, 0], data.y
    else:
        rows, index = _packed(emission, constants, data)
    if data.observed is not None:
        there = any_of(data.observed)
        rows, index = torch.cat([rows, rows.new_zeros(1, rows.shape[1])]), torch.where(there, index, len(rows))
    owners = None if emission.expanded else model.transition.owners
    return Rows(Shared(rows if owners is None else rows[:, owners]), index, None)


def _alike(model: Any, data: Sequences) -> bool:
    """Whether the likelihood of a step depends on what is observed there alone."""
    varies = model.emission.lags or model.transition.autoregressive
    return not varies and data.y is not None and data.u is data.states is data.powers is None


def sharing(model: Any, data: Sequences) -> bool:
    """Whether the rows are symbols, each made once: there are more steps than symbols."""
    count = model.emission.event.symbols
    return count is not None and _alike(model, data) and data.y.numel() >= count


def symbols(emission: Any, data: Sequences) -> Tensor:
    """Every symbol as a sequence, (V, 1)."""
    return torch.arange(emission.event.symbols, device=data.device)[:, None]


def _in_order(data: Sequences) -> Tensor:
    """The numbers of all steps, (T, B)."""
    return torch.arange(data.shape[0] * data.shape[1], device=data.device).view(data.shape)


def _packed(emission: Any, constants: Constants, data: Sequences) -> tuple[Tensor, Tensor]:
    """Rows of the steps within their sequences, one sequence after the other; past an end the index is of any row."""
    length, batch = data.shape
    ends = torch.full((batch,), length, device=data.device) if data.lengths is None else data.lengths
    within = data.within.T
    y, observed = (None if x is None else x.transpose(0, 1)[within][:, None] for x in (data.y, data.observed))
    assert y is not None
    index = ends.cumsum(0) - ends + torch.arange(length, device=data.device)[:, None]

    def some(first: int, end: int) -> Tensor:
        seen = None if observed is None else observed[first:end]
        return emission.log_likelihood(y[first:end], None, seen, constants.emission)[:, 0]

    parts = 1 if torch.is_grad_enabled() else -(-len(y) * emission.states // PIECE)
    ranges = pieces(len(y), parts)
    rows = each(lambda i: some(*ranges[i]), [end - first for first, end in ranges])
    if len(ranges) == 1:
        return next(rows), index.clamp(max=len(y) - 1)
    whole = None
    for (first, end), value in zip(ranges, rows, strict=True):
        whole = value.new_empty(len(y), value.shape[1]) if whole is None else whole
        whole[first:end] = value
    assert whole is not None
    return whole, index.clamp(max=len(y) - 1)
