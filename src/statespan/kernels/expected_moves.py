"""The E-step of a finite state chain in one pass: posterior and expected moves without a graph.

The same numbers as the gradient of `forward_backward`, for where nothing else is asked of it: posterior = likelihood x
d log p / d likelihood, expected moves = table x d log p / d table. As nothing has to be handed to a graph, filtered
beliefs stay in the layout of the lanes, and the predicted ones need not be kept or made again.
"""

from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from . import lanes as shared
from .forward_backward import check

#: So many groups of lanes go through a panel of the table while it is in the first-level cache.
GROUPS = 2
#: With fewer multiplications than this one thread does it all.
SMALL = 200_000


def _jit() -> tuple[ModuleType, ModuleType]:
    from . import _jit_expected_moves, _jit_forward_backward

    return _jit_expected_moves, _jit_forward_backward


def _expected_moves(
    predicted: Tensor, table: Tensor, likelihood: Tensor, lengths: Tensor | None, weights: Tensor | None, counting: bool
) -> tuple[Tensor, Tensor, Tensor]:
    steps, batch, K = likelihood.shape
    normaliser = np.ones((steps, batch))
    posterior = torch.empty_like(likelihood, memory_format=torch.contiguous_format)
    counts = table.new_zeros(K, K)
    if not likelihood.numel():
        return torch.from_numpy(normaliser).log_(), posterior, counts
    order, lengths = shared.longest_first(lengths, steps, batch)
    predicted, table, likelihood = (x.detach().contiguous() for x in (predicted, table, likelihood))
    weights = likelihood.new_ones(batch) if weights is None else weights.detach().to(likelihood.dtype).contiguous()
    states = shared.padded(K)
    width = GROUPS * 64 // likelihood.element_size()
    blocks = (batch + width - 1) // width
    threads = torch.get_num_threads()
    small = threads == 1 or likelihood.numel() * K < SMALL
    ranges = shared.pieces(blocks, 1 if small else 4 * threads)
    panels = (shared.panels(x).numpy() for x in (table, table.t()))
    inputs = [*(x.numpy() for x in (order, lengths, predicted)), *panels, likelihood.numpy(), weights.numpy(), counting]
    parts = table.new_zeros(len(ranges), states, states)
    jit, recursion = _jit()

    def some(i: int) -> None:
        jit.expect_lanes(*ranges[i], GROUPS, *inputs, normaliser, posterior.numpy(), parts[i].numpy())

    shared.parallel(some, len(ranges))
    recursion.logarithms(0, normaliser.size, normaliser.reshape(-1))
    torch.mul(table, parts[:, :K, :K].sum(0), out=counts)
    return torch.from_numpy(normaliser), posterior, counts


def _fake(
    predicted: Tensor, table: Tensor, likelihood: Tensor, lengths: Tensor | None, weights: Tensor | None, counting: bool
) -> tuple[Tensor, Tensor, Tensor]:
    steps, batch, K = likelihood.shape
    normaliser = likelihood.new_empty(steps, batch, dtype=torch.float64)
    return normaliser, likelihood.new_empty(steps, batch, K), table.new_empty(K, K)


shared.define(
    "expected_moves(Tensor predicted, Tensor table, Tensor likelihood, Tensor? lengths, Tensor? weights, bool counting)"
    " -> (Tensor, Tensor, Tensor)",
    _expected_moves,
    _fake,
)


def expected_moves(
    predicted: Tensor,
    table: Tensor,
    likelihood: Tensor,
    lengths: Tensor | None = None,
    weights: Tensor | None = None,
    counting: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Smooths all sequences of a finite state chain and counts their moves, without gradient.

    gamma_t(k) = p(z_t = k | y) and the sum over t of p(z_{t-1} = i, z_t = j | y), as in `forward_backward`'s gradient.
    From the first impossible observation of a sequence on all of it is 0, and what came before is smoothed without it.

    Args:
        predicted: (B, K), belief about the first state before the first observation.
        table: (K, K), row i the probabilities of the next state after state i.
        likelihood: (T, B, K), p(y_t | state), float32 or float64.
        lengths: (B,) int64, own length of every sequence; T where not given.
        weights: (B,), how many times each sequence counts in posterior and counts; once where not given.
        counting: False leaves the counts 0, for a posterior in two thirds of the time.

    Returns:
        log_normaliser: (T, B) float64, log p(y_t | y_1 ... y_{t-1}), 0 past a sequence's own length.
        posterior: (T, B, K), times the weights; 0 past a sequence's own length.
        counts: (K, K), expected moves, times the weights, summed over all sequences.

    Raises:
        ValueError: shapes or dtypes do not fit.

    Source:
        Rabiner (1989), equations 27, 37 and 92 (scaling).

    Example:
        >>> initial = torch.tensor([[0.5, 0.5]])
        >>> table = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
        >>> likelihood = torch.tensor([[[0.1, 0.6]], [[0.1, 0.6]]])
        >>> _, posterior, counts = expected_moves(initial, table, likelihood)
        >>> round(counts.sum().item(), 4), round(posterior[0, 0, 1].item(), 4)
        (1.0, 0.9524)
    """
    check(predicted, table, likelihood, lengths)
    if weights is not None and weights.shape != likelihood.shape[1:2]:
        raise ValueError(f"weights must be ({likelihood.shape[1]},), not {tuple(weights.shape)}")
    with torch.no_grad():
        return torch.ops.statespan.expected_moves(predicted, table, likelihood, lengths, weights, counting)
