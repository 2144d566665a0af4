"""The E-step of a finite state chain in one pass: posterior and expected moves without a graph.

The same numbers as the gradient of `forward_backward`, for where nothing else is asked of it: posterior = likelihood x
d log p / d likelihood, expected moves = table x d log p / d table. As nothing has to be handed to a graph, filtered
beliefs stay in the layout of the lanes, and the predicted ones need not be kept or made again.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import lanes as shared
from .forward_backward import check

#: So many groups of lanes go through a panel of the table while it is in the first-level cache.
GROUPS = 2
#: With fewer multiplications than this one thread does it all.
SMALL = 200_000


#: So many sequences, as a part of the lanes, go one by one, their states across the lanes.
FEW = 2
#: Steps that a thread takes at once where it joins the messages of one sequence.
PIECE = 4096


class _Chain(NamedTuple):
    """The inputs, contiguous."""

    predicted: Tensor
    table: Tensor
    likelihood: Tensor
    lengths: Tensor | None
    weights: Tensor
    counting: bool


def _expected_moves(
    predicted: Tensor,
    table: Tensor,
    likelihood: Tensor,
    lengths: Tensor | None,
    weights: Tensor | None,
    counting: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    from . import _jit_forward_backward

    steps, batch, _ = likelihood.shape
    normaliser = np.ones((steps, batch))
    posterior = torch.empty_like(likelihood, memory_format=torch.contiguous_format)
    counts = torch.zeros_like(table, memory_format=torch.contiguous_format)
    if likelihood.numel():
        predicted, table, likelihood = (x.detach().contiguous() for x in (predicted, table, likelihood))
        weights = likelihood.new_ones(batch) if weights is None else weights.detach().to(likelihood.dtype).contiguous()
        chain = _Chain(predicted, table, likelihood, lengths, weights, counting)
        few = batch * likelihood.element_size() * FEW <= 64
        done = _one_by_one(chain, normaliser, posterior) if few else None
        torch.mul(table, _across_lanes(chain, normaliser, posterior) if done is None else done, out=counts)
    _jit_forward_backward.logarithms(0, normaliser.size, normaliser.reshape(-1))
    return torch.from_numpy(normaliser), posterior, counts


def _across_lanes(chain: _Chain, normaliser: np.ndarray, posterior: Tensor) -> Tensor:
    from . import _jit_expected_moves as jit

    steps, batch, K = posterior.shape
    order, lengths = shared.longest_first(chain.lengths, steps, batch)
    width = GROUPS * 64 // posterior.element_size()
    blocks = (batch + width - 1) // width
    threads = torch.get_num_threads()
    small = threads == 1 or posterior.numel() * K < SMALL
    ranges = shared.pieces(blocks, 1 if small else 4 * threads)
    panels = (shared.panels(x).numpy() for x in (chain.table, chain.table.t()))
    inputs = [*(x.numpy() for x in (order, lengths, chain.predicted)), *panels]
    inputs += [chain.likelihood.numpy(), chain.weights.numpy(), chain.counting]
    parts = posterior.new_zeros(len(ranges), shared.padded(K), shared.padded(K))

    def some(i: int) -> None:
        jit.expect_lanes(*ranges[i], GROUPS, *inputs, normaliser, posterior.numpy(), parts[i].numpy())

    shared.parallel(some, len(ranges))
    return parts[:, :K, :K].sum(0)


def _one_by_one(chain: _Chain, normaliser: np.ndarray, posterior: Tensor) -> Tensor | None:
    """None where messages that do not know of each other cannot be joined: an impossible observation is one reason."""
    from . import _jit_long_chain as jit

    steps, batch, K = posterior.shape
    ends = [steps] * batch if chain.lengths is None else chain.lengths.clamp(0, steps).tolist()
    lanes = 64 // posterior.element_size()
    filtered = torch.empty_like(posterior)
    tables = [shared.panels(x, columns=2 * lanes).numpy() for x in (chain.table, chain.table.t())]
    starts = [chain.predicted.numpy(), np.ones((batch, K), posterior.numpy().dtype)]
    outputs = [filtered.numpy(), posterior.numpy()]
    threads = 1 if posterior.numel() * K < SMALL else torch.get_num_threads()
    whole = [True]

    def send(i: int) -> None:
        b, backwards = divmod(i, 2)
        start, output = starts[backwards][b], outputs[backwards]
        likelihood = chain.likelihood.numpy()
        if not jit.messages(b, ends[b], backwards == 1, start, tables[backwards], likelihood, normaliser, output):
            whole[0] = False

    shared.parallel(send, 2 * batch, threads)
    pieces = [(b, n) for b in range(batch) for n in shared.pieces(ends[b], max(threads, ends[b] // PIECE))]
    parts = posterior.new_zeros(min(threads, len(pieces)), shared.padded(K), (K + lanes - 1) // lanes * lanes)
    free = list(parts.numpy())
    weights = chain.weights.numpy()

    def join(i: int) -> None:
        b, (first, last) = pieces[i]
        mine = free.pop()
        inputs = chain.counting, chain.likelihood.numpy(), normaliser
        if not jit.join(b, first, last, weights[b], *inputs, *outputs, mine):
            whole[0] = False
        free.append(mine)

    if whole[0]:
        shared.parallel(join, len(pieces), threads)
    if not whole[0]:
        normaliser[:] = 1
        return None
    for b, end in enumerate(ends):
        posterior[end:, b] = 0
    return parts.sum(0)[:K, :K]


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
