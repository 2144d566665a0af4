"""The scaled forward recursion of a finite state chain, and its gradient, as one operator.

predicted_1 = predicted;  joint_t = predicted_t y_t;  c_t = sum_k joint_t;  filtered_t = joint_t / c_t;
predicted_{t+1} = (filtered_t scale_{t+1}) table.

log c_t is log p(y_t | y_1 ... y_{t-1}); the gradient of their sum is the backward recursion: posterior = likelihood x
gradient, expected transitions = table x gradient.

Two ways: up to `LANES` states the sequences lie across the lanes of the vector registers, in groups sorted by length;
above, each thread takes some of the sequences and multiplies them with the table by BLAS, the longest first, so that
the product shrinks as sequences end. Both spread over torch's number of threads.
"""

import itertools
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import lanes as shared

#: Up to this many states sequences lie across lanes, above BLAS takes over (measured: benchmarks/kernels.py).
LANES = 128
#: At most so many rows wait before they are added to the table's gradient by one product.
ROWS = 1024
#: With fewer multiplications than this one thread does it all.
SMALL = 200_000


def _jit() -> ModuleType:
    from . import _jit_forward_backward

    return _jit_forward_backward


def _saved_size(steps: int, batch: int, K: int) -> int:
    """Above `LANES` the predicted beliefs and the sums; otherwise a mark that a gradient was foreseen."""
    return steps * batch * (K + 1) if K > LANES else 1


class _Chain(NamedTuple):
    """The inputs, contiguous; `order` and `lengths` have the longest sequence first."""

    predicted: Tensor
    table: Tensor
    likelihood: Tensor
    scale: Tensor
    scaled: bool
    order: Tensor
    lengths: Tensor

    @staticmethod
    def of(
        predicted: Tensor, table: Tensor, likelihood: Tensor, lengths: Tensor | None, scale: Tensor | None
    ) -> "_Chain":
        steps, batch, _ = likelihood.shape
        order, lengths = shared.longest_first(lengths, steps, batch)
        predicted, table, likelihood = (x.detach().contiguous() for x in (predicted, table, likelihood))
        given = likelihood[:0] if scale is None else scale.detach().contiguous()
        return _Chain(predicted, table, likelihood, given, scale is not None, order, lengths)

    def groups(self) -> list[tuple[int, int]]:
        """Ranges of groups of lanes."""
        width = 64 // self.likelihood.element_size()
        count = (self.order.shape[0] + width - 1) // width
        threads = torch.get_num_threads()
        small = threads == 1 or self.likelihood.numel() * self.table.shape[0] < SMALL
        return shared.pieces(count, 1 if small else max(threads, min(4 * threads, count // 2)))

    def rows(self) -> list[tuple[int, int]]:
        """Ranges of sequences with about the same number of steps, one or more a thread."""
        batch, K = self.predicted.shape
        threads = torch.get_num_threads() if shared.can_split() else 1
        if threads == 1 or batch * K * K < SMALL // 2:
            return [(0, batch)]
        parts = min(batch, max(threads, min(batch // 128, 4 * threads)))
        ends = self.lengths.cumsum(0)
        aims = torch.arange(1, parts) * int(ends[-1]) // parts
        edges = [0, *(torch.searchsorted(ends, aims) + 1).tolist(), batch]
        return [(a, b) for a, b in itertools.pairwise(edges) if b > a]

    def starts(self) -> list[int]:
        """Where the rows of every step start when those of all steps are kept, one after the other."""
        steps = self.likelihood.shape[0]
        counts = (self.lengths.view(1, -1) > torch.arange(steps).view(-1, 1)).sum(1)
        return [0, *counts.cumsum(0).tolist()]

    def counts(self, first: int, last: int) -> list[int]:
        """How many of the sequences first ... last - 1 are longer than t, for every t, and a 0 after."""
        part = self.lengths[first:last]
        return [*(part.view(1, -1) > torch.arange(int(part[0])).view(-1, 1)).sum(1).tolist(), 0]

    def clear(self, first: int, last: int, values: Tensor, start: int = 0) -> None:
        """Zeros for sequences first ... last - 1 past their ends, and at least from step `start` on where given."""
        for b, length in zip(self.order[first:last].tolist(), self.lengths[first:last].tolist(), strict=True):
            if length < values.shape[0]:
                values[max(start, length) :, b] = 0


def _forward(
    predicted: Tensor, table: Tensor, likelihood: Tensor, lengths: Tensor | None, scale: Tensor | None, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    steps, batch, K = likelihood.shape
    # Not torch.ones and log: they would wake torch's threads for a moment's work.
    normaliser = np.ones((steps, batch))
    filtered = likelihood.new_empty(steps, batch, K)
    saved = likelihood.new_empty(_saved_size(steps, batch, K)) if save else likelihood.new_empty(0)
    if likelihood.numel():
        chain = _Chain.of(predicted, table, likelihood, lengths, scale)
        if K <= LANES:
            _forward_lanes(chain, normaliser, filtered)
            saved.zero_()
        else:
            _forward_rows(chain, normaliser, filtered, saved)
    _jit().logarithms(0, normaliser.size, normaliser.reshape(-1))
    return torch.from_numpy(normaliser), filtered, saved


def _forward_lanes(chain: _Chain, normaliser: np.ndarray, filtered: Tensor) -> None:
    jit = _jit()
    ranges = chain.groups()
    inputs = [
        x.numpy() for x in (chain.order, chain.lengths, chain.predicted, shared.panels(chain.table), chain.likelihood)
    ]

    def some(i: int) -> None:
        jit.forward_lanes(*ranges[i], *inputs, chain.scale.numpy(), chain.scaled, normaliser, filtered.numpy())

    shared.parallel(some, len(ranges))


def _forward_rows(chain: _Chain, normaliser: np.ndarray, filtered: Tensor, saved: Tensor) -> None:
    jit = _jit()
    steps, batch, K = filtered.shape
    save = saved.numel() > 0
    kept = saved if save else filtered.new_empty(batch * (K + 1))
    size = kept.numel() // (K + 1)
    all_rows, sums = kept[: size * K].view(size, K), kept[size * K :]
    starts = chain.starts() if save else [0] * (steps + 1)
    ranges = chain.rows()
    fixed = (chain.likelihood.numpy(), chain.scale.numpy(), chain.scaled, normaliser, filtered.numpy())
    order = chain.order.numpy()

    def some(i: int) -> None:
        first, last = ranges[i]
        counts = chain.counts(first, last)
        S = filtered.new_empty(last - first, K)
        P = all_rows[starts[0] + first : starts[0] + last]
        torch.index_select(chain.predicted, 0, chain.order[first:last], out=P)
        with shared.one_thread(len(ranges) > 1):
            for t, count in enumerate(counts[:-1]):
                later = counts[t + 1]
                C = sums[starts[t] + first : starts[t] + last]
                jit.forward_rows(t, count, later, first, order, P.numpy(), C.numpy(), *fixed, S.numpy())
                if later:
                    P = all_rows[starts[t + 1] + first : starts[t + 1] + first + later]
                    torch.mm(S[:later], chain.table, out=P)
        chain.clear(first, last, filtered)

    shared.parallel(some, len(ranges))


def _backward(
    g_normaliser: Tensor | None,
    g_filtered: Tensor | None,
    predicted: Tensor,
    table: Tensor,
    likelihood: Tensor,
    lengths: Tensor | None,
    scale: Tensor | None,
    filtered: Tensor,
    saved: Tensor,
    of_table: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    steps, batch, K = likelihood.shape
    if saved.numel() != _saved_size(steps, batch, K):
        raise ValueError("forward_backward was called with save=False: it has no gradient")
    gradients = _Gradients(
        np.zeros((steps, batch)) if g_normaliser is None else g_normaliser.detach().contiguous().numpy(),
        (likelihood[:0] if g_filtered is None else g_filtered).detach().contiguous(),
        g_filtered is not None,
        of_table,
        likelihood.new_zeros(batch, K),
        likelihood.new_zeros(K, K),
        likelihood.new_empty(steps, batch, K),
        likelihood.new_empty((steps, batch, K) if scale is not None else (0, 0, 0)),
    )
    if likelihood.numel():
        chain = _Chain.of(predicted, table, likelihood, lengths, scale)
        if K <= LANES:
            _backward_lanes(chain, gradients, filtered.detach())
        else:
            _backward_rows(chain, gradients, saved)
    return gradients.predicted, gradients.table, gradients.likelihood, gradients.scale


class _Gradients(NamedTuple):
    """The gradients that come in and those that go out."""

    of_normaliser: np.ndarray
    of_filtered: Tensor
    filtering: bool
    of_table: bool
    predicted: Tensor
    table: Tensor
    likelihood: Tensor
    scale: Tensor


def _backward_lanes(chain: _Chain, gradients: _Gradients, filtered: Tensor) -> None:
    jit = _jit()
    K = chain.table.shape[0]
    ranges = chain.groups()
    parts = filtered.new_zeros(len(ranges), shared.padded(K), shared.padded(K))
    panels = shared.panels(chain.table), shared.panels(chain.table.t())
    inputs = [x.numpy() for x in (chain.order, chain.lengths, chain.predicted, *panels, chain.likelihood)]
    fixed = (
        *(chain.scale.numpy(), chain.scaled, filtered.numpy()),
        *(gradients.of_normaliser, gradients.of_filtered.numpy(), gradients.filtering, gradients.of_table),
        gradients.predicted.numpy(),
    )
    outputs = gradients.likelihood.numpy(), gradients.scale.numpy()

    def some(i: int) -> None:
        jit.backward_lanes(*ranges[i], *inputs, *fixed, parts[i].numpy(), *outputs)

    shared.parallel(some, len(ranges))
    if gradients.of_table:
        torch.sum(parts[:, :K, :K], 0, out=gradients.table)


def _backward_rows(chain: _Chain, gradients: _Gradients, saved: Tensor) -> None:
    jit = _jit()
    steps, batch, K = chain.likelihood.shape
    all_rows, sums = saved[: steps * batch * K].view(steps * batch, K), saved[steps * batch * K :]
    starts = chain.starts()
    ranges = chain.rows()
    parts: list[Tensor] = [chain.table] * len(ranges)
    order = chain.order.numpy()
    fixed = (
        *(chain.likelihood.numpy(), chain.scale.numpy(), chain.scaled),
        *(gradients.of_normaliser, gradients.of_filtered.numpy(), gradients.filtering),
    )
    outputs = gradients.likelihood.numpy(), gradients.scale.numpy()
    transposed = chain.table.t()

    def some(i: int) -> None:
        # Rows of the table's gradient wait in pairs: left holds what the table was applied to, right the gradient of
        # the product. The right one of a pair comes a step earlier (time runs backwards here) than its left one.
        first, last = ranges[i]
        counts = chain.counts(first, last)
        room = max(ROWS, 2 * (last - first))
        left, right = saved.new_empty(room, K), saved.new_empty(room, K)
        V = saved.new_empty(last - first, K)
        part = torch.zeros_like(chain.table)
        filled = 0
        with shared.one_thread(len(ranges) > 1):
            for t in range(len(counts) - 2, -1, -1):
                count, later = counts[t], counts[t + 1]
                start = starts[t] + first
                P, C = all_rows[start : start + count], sums[start : start + count]
                S = left[filled : filled + later]
                R = right[filled + later : filled + later + count]
                numbers = (x.numpy() for x in (P, C, V))
                jit.backward_rows(t, count, later, first, order, *numbers, *fixed, S.numpy(), R.numpy(), *outputs)
                filled += later
                if t and filled + count + counts[t - 1] > room:
                    if gradients.of_table:
                        part.addmm_(left[:filled].t(), right[:filled])
                    right[:count] = R.clone() if filled < count else R
                    R = right[:count]
                    filled = 0
                if t:
                    torch.mm(R, transposed, out=V[:count])
                else:
                    gradients.predicted[chain.order[first : first + count]] = R
            if gradients.of_table and filled:
                part.addmm_(left[:filled].t(), right[:filled])
        parts[i] = part
        chain.clear(first, last, gradients.likelihood)
        if chain.scaled:
            chain.clear(first, last, gradients.scale, 1)
            gradients.scale[0, chain.order[first:last]] = 0

    shared.parallel(some, len(ranges))
    for part in parts if gradients.of_table else []:
        gradients.table.add_(part)


def _fake_forward(
    predicted: Tensor,
    table: Tensor,
    likelihood: Tensor,
    lengths: Tensor | None,
    scale: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    steps, batch, K = likelihood.shape
    size = _saved_size(steps, batch, K) if save else 0
    return (
        likelihood.new_empty(steps, batch, dtype=torch.float64),
        likelihood.new_empty(steps, batch, K),
        likelihood.new_empty(size),
    )


def _fake_backward(
    g_normaliser: Tensor | None,
    g_filtered: Tensor | None,
    predicted: Tensor,
    table: Tensor,
    likelihood: Tensor,
    lengths: Tensor | None,
    scale: Tensor | None,
    filtered: Tensor,
    saved: Tensor,
    of_table: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    steps, batch, K = likelihood.shape
    return (
        likelihood.new_empty(batch, K),
        likelihood.new_empty(K, K),
        likelihood.new_empty(steps, batch, K),
        likelihood.new_empty((steps, batch, K) if scale is not None else (0, 0, 0)),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    predicted, table, likelihood, lengths, scale, _ = inputs
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(predicted, table, likelihood, lengths, scale, output[1], output[2])


def _gradient(
    ctx: Any, g_normaliser: Tensor | None, g_filtered: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    if g_normaliser is None and g_filtered is None:
        return (None,) * 6
    saved = ctx.saved_tensors  # read once: under checkpointing a second reading is an error
    g_predicted, g_table, g_likelihood, g_scale = torch.ops.statespan.forward_backward_backward(
        g_normaliser, g_filtered, *saved, ctx.needs_input_grad[1]
    )
    return g_predicted, g_table, g_likelihood, None, None if saved[4] is None else g_scale, None


shared.define(
    "forward_backward(Tensor predicted, Tensor table, Tensor likelihood, Tensor? lengths, Tensor? scale, bool save)"
    " -> (Tensor, Tensor, Tensor)",
    _forward,
    _fake_forward,
    differentiable=True,
)
shared.define(
    "forward_backward_backward(Tensor? g_normaliser, Tensor? g_filtered, Tensor predicted, Tensor table,"
    " Tensor likelihood, Tensor? lengths, Tensor? scale, Tensor filtered, Tensor saved, bool of_table)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)
torch.library.register_autograd("statespan::forward_backward", _gradient, setup_context=_setup, lib=shared.LIBRARY)


def forward_backward(
    predicted: Tensor,
    table: Tensor,
    likelihood: Tensor,
    lengths: Tensor | None = None,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Filters all sequences of a finite state chain; the gradient smooths them.

    With p_1 = `predicted`: j_t = p_t y_t;  c_t = sum_k j_t;  f_t = j_t / c_t;  p_{t+1} = (f_t s_{t+1}) A.
    The gradient of sum_t log c_t gives the posterior, y_t times the gradient with respect to y_t, and the expected
    transitions, A times the gradient with respect to A.

    Where c_t = 0 its logarithm is -inf, the filtered belief 0, and so from there on; gradients are 0 there. Past a
    sequence's own length the logarithm is 0, the filtered belief 0, and nothing has a gradient.

    Args:
        predicted: (B, K), belief about the first state before the first observation.
        table: (K, K), row i the probabilities of the next state after state i.
        likelihood: (T, B, K), p(y_t | state).
        lengths: (B,) int64, own length of every sequence; T where not given.
        scale: (T, B, K), factors of the filtered belief of t - 1 before the table; its first row is not used; ones
            where not given.

    Returns:
        log_normaliser: (T, B) float64, log c_t.
        filtered: (T, B, K), f_t.

    Raises:
        ValueError: shapes or dtypes do not fit.

    Source:
        Rabiner (1989), section V.A (scaling); Murphy, Probabilistic Machine Learning: Advanced Topics (2023), 9.2.3;
        Eisner (2016) for the backward pass as the gradient.

    Example:
        >>> initial = torch.tensor([[0.5, 0.5]])
        >>> table = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
        >>> likelihood = torch.tensor([[[0.1, 0.6]], [[0.1, 0.6]]])
        >>> log_normaliser, filtered = forward_backward(initial, table, likelihood)
        >>> [round(x, 4) for x in log_normaliser.exp().flatten().tolist()]
        [0.35, 0.45]
    """
    check(predicted, table, likelihood, lengths, scale)
    save = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (predicted, table, likelihood, scale)
    )
    log_normaliser, filtered, _ = torch.ops.statespan.forward_backward(
        predicted, table, likelihood, lengths, scale, save
    )
    return log_normaliser, filtered


def check(
    predicted: Tensor, table: Tensor, likelihood: Tensor, lengths: Tensor | None = None, scale: Tensor | None = None
) -> None:
    """Refuses shapes and dtypes that do not fit a chain.

    Args:
        predicted: (B, K).
        table: (K, K).
        likelihood: (T, B, K), float32 or float64.
        lengths: (B,) int64.
        scale: (T, B, K).

    Raises:
        ValueError: they do not fit.

    Example:
        >>> check(torch.ones(2, 3), torch.ones(3, 3), torch.ones(5, 2, 3))
    """
    if likelihood.dim() != 3:
        raise ValueError(f"likelihood must be (T, B, K), not {tuple(likelihood.shape)}")
    steps, batch, K = likelihood.shape
    expected = {
        "predicted": (predicted, (batch, K)),
        "table": (table, (K, K)),
        "scale": (scale, (steps, batch, K)),
        "lengths": (lengths, (batch,)),
    }
    for name, (value, shape) in expected.items():
        if value is None:
            continue
        if tuple(value.shape) != shape:
            raise ValueError(f"{name} must be {shape} with likelihood {(steps, batch, K)}, not {tuple(value.shape)}")
        kind = torch.int64 if name == "lengths" else likelihood.dtype
        if value.dtype != kind:
            raise ValueError(f"{name} must be {kind}, not {value.dtype}")
    if likelihood.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"likelihood must be float32 or float64, not {likelihood.dtype}")
