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


class _Chain(NamedTuple):
    """The inputs, contiguous; `rows` (N, K) and which of them each step sees, (T, B), or none: a row for each step."""

    predicted: Tensor
    table: Tensor
    rows: Tensor
    which: Tensor
    lengths: Tensor | None
    weights: Tensor
    counting: bool

    @property
    def sharing(self) -> bool:
        return self.which.numel() > 0

    @property
    def work(self) -> int:
        """About how many multiplications there are."""
        steps = self.which.numel() or self.rows.shape[0]
        return steps * self.rows.shape[1] ** 2

    def sums(self, count: int) -> Tensor:
        """(count, N, K): where steps share rows, so many sums that begin at 0; else one that will be written."""
        return (
            self.rows.new_zeros(count, *self.rows.shape)
            if self.sharing
            else shared.empty(1, *self.rows.shape, like=self.rows)
        )


def _wider(x: Tensor, *sizes: int) -> Tensor:
    """With zeros after the last of its first axes, up to these sizes."""
    out = x.new_zeros(*sizes)
    out[tuple(slice(n) for n in x.shape)] = x
    return out


def _expected_moves(
    predicted: Tensor,
    table: Tensor,
    likelihood: Tensor,
    lengths: Tensor | None,
    weights: Tensor | None,
    which: Tensor | None,
    log_scale: Tensor | None,
    counting: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from . import _jit_expected_moves as jit
    from ._jit_forward_backward import logarithms

    (batch, K), shape = predicted.shape, likelihood.shape
    steps = shape[0] if which is None else which.shape[0]
    normaliser = np.ones((steps, batch))
    if not normaliser.size or not likelihood.numel():
        empty = torch.zeros_like(likelihood), torch.zeros_like(table), torch.zeros_like(predicted)
        return torch.from_numpy(normaliser - 1), *empty
    predicted, table, likelihood = (x.detach() for x in (predicted, table, likelihood))
    weights = likelihood.new_ones(batch) if weights is None else weights.detach().to(likelihood.dtype).contiguous()
    if which is None:
        which, rows = torch.empty(0, 0, dtype=torch.int64), likelihood.reshape(-1, K).contiguous()
    else:
        # Whole halves of vectors: rows that are read many times are worth it.
        half = 32 // likelihood.element_size()
        wide = -(-K // half) * half
        predicted, table = _wider(predicted, batch, wide), _wider(table, wide, wide)
        rows, which = _wider(likelihood, likelihood.shape[0], wide), which.detach().contiguous()
    chain = _Chain(predicted.contiguous(), table.contiguous(), rows, which, lengths, weights, counting)
    few = batch * rows.element_size() * FEW <= 64
    done = _one_by_one(chain, normaliser) if few else None
    sums, counts, begin = _across_lanes(chain, normaliser) if done is None else done
    counts = counts[:K, :K] * chain.table[:K, :K]
    flat = normaliser.reshape(-1)
    ranges = shared.pieces(flat.size, 4 if chain.work >= SMALL else 1)
    shared.parallel(lambda i: logarithms(*ranges[i], flat), len(ranges))
    if log_scale is not None:
        ends = torch.full((batch,), steps) if lengths is None else lengths
        given = (x.detach().contiguous().numpy() for x in (ends, which, log_scale.reshape(-1)))
        jit.add_scale(*given, normaliser)
    posterior = sums[:, :K].reshape(shape).contiguous()
    first = begin[:, :K].contiguous() if chain.sharing else posterior[0].clone()
    return torch.from_numpy(normaliser), posterior, counts, first


def _across_lanes(chain: _Chain, normaliser: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    from . import _jit_expected_moves as jit

    (steps, batch), K = normaliser.shape, chain.rows.shape[1]
    order, lengths = shared.longest_first(chain.lengths, steps, batch)
    width = GROUPS * 64 // chain.rows.element_size()
    blocks = (batch + width - 1) // width
    threads = 1 if chain.work < SMALL else shared.available()
    ranges = shared.pieces(blocks, 1 if threads == 1 else 4 * threads)
    panels = (shared.panels(x).numpy() for x in (chain.table, chain.table.t()))
    inputs = [*(x.numpy() for x in (order, lengths, chain.predicted)), *panels]
    inputs += [chain.rows.numpy(), chain.which.numpy(), chain.sharing, chain.weights.numpy(), chain.counting]
    begin = torch.zeros_like(chain.predicted)
    threads = min(threads, len(ranges))
    counts = begin.new_zeros(threads, shared.padded(K), shared.padded(K))
    sums = chain.sums(threads)
    free = list(range(threads))

    def some(i: int) -> None:
        mine = free.pop()
        outputs = sums[mine if chain.sharing else 0].view(-1), begin, counts[mine]
        jit.expect_lanes(*ranges[i], GROUPS, *inputs, normaliser, *(x.numpy() for x in outputs))
        free.append(mine)

    shared.parallel(some, len(ranges), threads)
    return sums.sum(0) if len(sums) > 1 else sums[0], counts.sum(0), begin


def _one_by_one(chain: _Chain, normaliser: np.ndarray) -> tuple[Tensor, Tensor, Tensor] | None:
    """None where messages that do not know of each other cannot be joined: an impossible observation is one reason."""
    from . import _jit_long_chain as jit

    (steps, batch), K = normaliser.shape, chain.rows.shape[1]
    ends = [steps] * batch if chain.lengths is None else chain.lengths.clamp(0, steps).tolist()
    lanes = 64 // chain.rows.element_size()
    threads = min(2 * batch, 1 if chain.work < SMALL else shared.available())
    begin, sums = torch.zeros_like(chain.predicted), chain.sums(threads)
    kept = shared.empty(steps, batch, K, like=begin) if chain.sharing else sums[0].view(steps, batch, K)
    panels = [shared.panels(x, columns=2 * lanes) for x in (chain.table, chain.table.t())]
    counts = begin.new_zeros(threads, shared.padded(K), -(-K // lanes) * lanes)
    # Of either direction of each sequence: the message on its way, and the last belief.
    messages = begin.new_zeros(2 * batch, 2, panels[0].numel() // shared.padded(K))
    messages[::2, 0, :K], messages[1::2, 0, :K] = chain.predicted, 1
    given = [x.numpy() for x in (chain.rows, chain.which)]
    weights = chain.weights.numpy()
    free, whole = list(range(threads)), [True]

    def send(i: int, joining: bool) -> None:
        b, backwards = divmod(i, 2)
        first, last = (0, ends[b] // 2) if bool(backwards) == joining else (ends[b] // 2, ends[b])
        mine = free.pop()
        outputs = kept, sums[mine if chain.sharing else 0].view(-1), begin, counts[mine]
        if not jit.messages(
            *(b, first, last, backwards == 1, joining, chain.counting, weights[b]),
            *(x.numpy() for x in (*messages[i], panels[backwards])),
            *(*given, chain.sharing, normaliser),
            *(x.numpy() for x in outputs),
        ):
            whole[0] = False
        free.append(mine)

    for joining in (False, True):
        if whole[0]:
            shared.parallel(lambda i, joining=joining: send(i, joining), 2 * batch, threads)
    if not whole[0]:
        normaliser[:] = 1
        return None
    if not chain.sharing:
        for b, end in enumerate(ends):
            kept[end:, b] = 0
    return sums.sum(0) if len(sums) > 1 else sums[0], counts.sum(0), begin


def _fake(
    predicted: Tensor,
    table: Tensor,
    likelihood: Tensor,
    lengths: Tensor | None,
    weights: Tensor | None,
    which: Tensor | None,
    log_scale: Tensor | None,
    counting: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    normaliser = likelihood.new_empty((likelihood if which is None else which).shape[:2], dtype=torch.float64)
    return normaliser, likelihood.new_empty(likelihood.shape), torch.empty_like(table), torch.empty_like(predicted)


shared.define(
    "expected_moves(Tensor predicted, Tensor table, Tensor likelihood, Tensor? lengths, Tensor? weights, Tensor? which,"
    " Tensor? log_scale, bool counting) -> (Tensor, Tensor, Tensor, Tensor)",
    _expected_moves,
    _fake,
)


def expected_moves(
    predicted: Tensor,
    table: Tensor,
    likelihood: Tensor,
    lengths: Tensor | None = None,
    weights: Tensor | None = None,
    which: Tensor | None = None,
    log_scale: Tensor | None = None,
    counting: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Smooths all sequences of a finite state chain and counts their moves, without gradient.

    gamma_t(k) = p(z_t = k | y) and the sum over t of p(z_{t-1} = i, z_t = j | y), as in `forward_backward`'s gradient.
    From the first impossible observation of a sequence on all of it is 0, and what came before is smoothed without it.

    Args:
        predicted: (B, K), belief about the first state before the first observation.
        table: (K, K), row i the probabilities of the next state after state i.
        likelihood: (T, B, K), p(y_t | state), float32 or float64; with `which` (N, K), of N observations, such as
            symbols, that steps share.
        lengths: (B,) int64, own length of every sequence; T where not given.
        weights: (B,), how many times each sequence counts in posterior and counts; once where not given.
        which: (T, B) int64, what each step observes; within a sequence's length from 0 to N - 1 (not checked).
        log_scale: (T, B) float64, or with `which` (N,): a logarithm to add to the normaliser of what is observed.
        counting: False leaves the counts 0, for a posterior in two thirds of the time.

    Returns:
        log_normaliser: (T, B) float64, log p(y_t | y_1 ... y_{t-1}) plus `log_scale`, 0 past a sequence's own end.
        posterior: (T, B, K), times the weights; 0 past a sequence's own length. With `which` (N, K), its sum over the
            steps that observe each.
        counts: (K, K), expected moves, times the weights, summed over all sequences.
        first: (B, K), the posterior of the first states, times the weights.

    Raises:
        ValueError: shapes or dtypes do not fit.

    Source:
        Rabiner (1989), equations 27, 37, 40c and 92 (scaling).

    Example:
        >>> initial = torch.tensor([[0.5, 0.5]])
        >>> table = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
        >>> likelihood = torch.tensor([[[0.1, 0.6]], [[0.1, 0.6]]])
        >>> _, posterior, counts, _ = expected_moves(initial, table, likelihood)
        >>> round(counts.sum().item(), 4), round(posterior[0, 0, 1].item(), 4)
        (1.0, 0.9524)
        >>> _, sums, _, _ = expected_moves(initial, table, likelihood[0], which=torch.tensor([[0], [0]]))
        >>> bool((sums - posterior.sum(0)).abs().max() < 1e-6)
        True
    """
    if which is None:
        check(predicted, table, likelihood, lengths)
    else:
        if likelihood.dim() != 2 or which.dim() != 2 or which.dtype != torch.int64:
            raise ValueError(
                f"likelihood and which must be (N, K) and (T, B) int64, not {tuple(likelihood.shape)} and "
                f"{tuple(which.shape)} {which.dtype}"
            )
        check(predicted, table, likelihood.new_empty(()).expand(*which.shape, likelihood.shape[1]), lengths)
    if weights is not None and weights.shape != predicted.shape[:1]:
        raise ValueError(f"weights must be ({len(predicted)},), not {tuple(weights.shape)}")
    if log_scale is not None and (log_scale.shape != likelihood.shape[:-1] or log_scale.dtype != torch.float64):
        raise ValueError(f"log_scale must be {tuple(likelihood.shape[:-1])} float64, not {tuple(log_scale.shape)}")
    with torch.no_grad():
        return torch.ops.statespan.expected_moves(
            predicted, table, likelihood, lengths, weights, which, log_scale, counting
        )
