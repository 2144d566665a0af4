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
from typing import Any

import torch
from torch import Tensor

from . import lanes as shared

#: Up to this many states sequences lie across lanes, above BLAS takes over (measured: benchmarks/kernels.py).
LANES = 64
#: At most so many rows wait before they are added to the table's gradient by one product.
ROWS = 1024


def _jit() -> ModuleType:
    from . import _jit_forward_backward

    return _jit_forward_backward


def _width(dtype: torch.dtype) -> int:
    return 64 // dtype.itemsize


def _padded(K: int) -> int:
    return (K + 3) // 4 * 4


def _saved_size(steps: int, batch: int, K: int, dtype: torch.dtype) -> int:
    if K > LANES:
        return steps * batch * (K + 1)
    width = _width(dtype)
    return (batch + width - 1) // width * steps * (_padded(K) + 1) * width


def _panels(table: Tensor) -> Tensor:
    K = table.shape[0]
    states = _padded(K)
    padded = table.new_zeros(states, states)
    padded[:K, :K] = table
    return padded.view(states, states // 4, 4).permute(1, 0, 2).reshape(-1)


def _parts(work: int, count: int, least: int) -> int:
    """How many pieces `count` groups are cut into: one where there is too little work to wake another thread."""
    threads = torch.get_num_threads()
    if threads == 1 or work < 200_000:
        return 1
    return min(count, 4 * threads, max(threads, count // least))


def _counts(lengths: Tensor, first: int, last: int) -> list[int]:
    """How many of the sequences first ... last - 1 (longest first) are longer than t, for every t and one 0 after."""
    part = lengths[first:last]
    longest = int(part[0])
    return [*(part.view(1, -1) > torch.arange(longest).view(-1, 1)).sum(1).tolist(), 0]


def _slices(lengths: Tensor, K: int) -> list[tuple[int, int]]:
    """Cuts the sequences (longest first) into ranges of about the same number of steps, one or more a thread."""
    batch = lengths.shape[0]
    threads = torch.get_num_threads() if shared.can_split() else 1
    if threads == 1 or batch * K * K < 100_000:
        return [(0, batch)] if batch else []
    parts = min(batch, max(threads, min(batch // 128, 4 * threads)))
    ends = lengths.cumsum(0)
    aims = torch.arange(1, parts) * int(ends[-1]) // parts
    edges = [0, *(torch.searchsorted(ends, aims) + 1).tolist(), batch]
    return [(a, b) for a, b in itertools.pairwise(edges) if b > a]


def _starts(lengths: Tensor, steps: int, save: bool) -> list[int]:
    """First of the rows that are kept for step t; all of them 0 where only the current step is kept."""
    if not save:
        return [0] * (steps + 1)
    counts = (lengths.view(1, -1) > torch.arange(steps).view(-1, 1)).sum(1)
    return [0, *counts.cumsum(0).tolist()]


def _forward(
    predicted: Tensor,
    table: Tensor,
    likelihood: Tensor,
    lengths: Tensor | None,
    scale: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    steps, batch, K = likelihood.shape
    predicted, table, likelihood = (x.detach().contiguous() for x in (predicted, table, likelihood))
    normaliser = torch.ones(steps, batch, dtype=torch.float64)
    filtered = torch.empty_like(likelihood)
    saved = likelihood.new_empty(_saved_size(steps, batch, K, likelihood.dtype) if save else 0)
    if likelihood.numel() == 0:
        return normaliser.log_(), filtered, saved
    order, lengths = shared.longest_first(lengths, steps, batch)
    scaling = likelihood[:0] if scale is None else scale.detach().contiguous()
    run = _forward_lanes if K <= LANES else _forward_rows
    run(
        order,
        lengths,
        predicted,
        table,
        likelihood,
        scaling,
        scale is not None,
        normaliser,
        filtered,
        saved,
        save,
    )
    return normaliser.log_(), filtered, saved


def _forward_lanes(
    order: Tensor,
    lengths: Tensor,
    predicted: Tensor,
    table: Tensor,
    likelihood: Tensor,
    scale: Tensor,
    scaled: bool,
    normaliser: Tensor,
    filtered: Tensor,
    saved: Tensor,
    save: bool,
) -> None:
    jit = _jit()
    width = _width(likelihood.dtype)
    groups = (order.shape[0] + width - 1) // width
    ranges = shared.pieces(groups, _parts(likelihood.numel() * table.shape[0], groups, 2))
    inputs = [x.numpy() for x in (order, lengths, predicted, _panels(table), likelihood, scale)]
    outputs = [x.numpy() for x in (normaliser, filtered, saved)]

    def some(i: int) -> None:
        jit.forward_lanes(*ranges[i], *inputs, scaled, *outputs, save)

    shared.parallel(some, len(ranges))


def _forward_rows(
    order: Tensor,
    lengths: Tensor,
    predicted: Tensor,
    table: Tensor,
    likelihood: Tensor,
    scale: Tensor,
    scaled: bool,
    normaliser: Tensor,
    filtered: Tensor,
    saved: Tensor,
    save: bool,
) -> None:
    jit = _jit()
    steps, batch, K = likelihood.shape
    kept = saved if save else likelihood.new_empty(batch * (K + 1))
    size = kept.numel() // (K + 1)
    rows, sums = kept[: size * K].view(size, K), kept[size * K :]
    starts = _starts(lengths, steps, save)
    ranges = _slices(lengths, K)
    inputs = [x.numpy() for x in (likelihood, scale)]
    outputs = [x.numpy() for x in (normaliser, filtered)]
    places = order.numpy()

    def some(i: int) -> None:
        first, last = ranges[i]
        counts = _counts(lengths, first, last)
        S = likelihood.new_empty(last - first, K)
        P = rows[starts[0] + first : starts[0] + last]
        torch.index_select(predicted, 0, order[first:last], out=P)
        with shared.one_thread(len(ranges) > 1):
            for t, count in enumerate(counts[:-1]):
                later = counts[t + 1]
                C = sums[starts[t] + first : starts[t] + last]
                jit.forward_rows(
                    t, count, later, first, places, P.numpy(), C.numpy(), *inputs, scaled, *outputs, S.numpy()
                )
                if later:
                    P = rows[starts[t + 1] + first : starts[t + 1] + first + later]
                    torch.mm(S[:later], table, out=P)
        for b, length in zip(order[first:last].tolist(), lengths[first:last].tolist(), strict=True):
            if length < steps:
                filtered[length:, b] = 0

    shared.parallel(some, len(ranges))


def _backward(
    g_normaliser: Tensor | None,
    g_filtered: Tensor | None,
    table: Tensor,
    likelihood: Tensor,
    lengths: Tensor | None,
    scale: Tensor | None,
    saved: Tensor,
    of_table: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    steps, batch, K = likelihood.shape
    if saved.numel() != _saved_size(steps, batch, K, likelihood.dtype):
        raise ValueError("forward_backward was called with save=False: it has no gradient")
    table, likelihood = table.detach().contiguous(), likelihood.detach().contiguous()
    g_predicted = likelihood.new_zeros(batch, K)
    g_table = torch.zeros_like(table)
    g_likelihood = torch.empty_like(likelihood)
    g_scale = torch.empty_like(likelihood) if scale is not None else likelihood.new_empty(0)
    if likelihood.numel() == 0:
        return g_predicted, g_table, g_likelihood, g_scale.zero_()
    order, lengths = shared.longest_first(lengths, steps, batch)
    scaling = likelihood[:0] if scale is None else scale.detach().contiguous()
    if g_normaliser is None:
        g_normaliser = torch.zeros(steps, batch, dtype=torch.float64)
    g_filtering = likelihood[:0] if g_filtered is None else g_filtered.detach().contiguous()
    run = _backward_lanes if K <= LANES else _backward_rows
    run(
        order,
        lengths,
        table,
        likelihood,
        scaling,
        scale is not None,
        saved,
        g_normaliser.detach().contiguous(),
        g_filtering,
        g_filtered is not None,
        of_table,
        g_predicted,
        g_table,
        g_likelihood,
        g_scale if scale is not None else scaling,
    )
    return g_predicted, g_table, g_likelihood, g_scale


def _backward_lanes(
    order: Tensor,
    lengths: Tensor,
    table: Tensor,
    likelihood: Tensor,
    scale: Tensor,
    scaled: bool,
    saved: Tensor,
    g_normaliser: Tensor,
    g_filtered: Tensor,
    filtering: bool,
    of_table: bool,
    g_predicted: Tensor,
    g_table: Tensor,
    g_likelihood: Tensor,
    g_scale: Tensor,
) -> None:
    jit = _jit()
    K = table.shape[0]
    states, width = _padded(K), _width(likelihood.dtype)
    groups = (order.shape[0] + width - 1) // width
    ranges = shared.pieces(groups, _parts(likelihood.numel() * K, groups, 2))
    parts = likelihood.new_zeros(len(ranges), states, states)
    inputs = [x.numpy() for x in (order, lengths, _panels(table.t()), likelihood, scale)]
    gradients = [g_normaliser.numpy(), g_filtered.numpy(), filtering, of_table, g_predicted.numpy()]

    def some(i: int) -> None:
        jit.backward_lanes(
            *ranges[i],
            *inputs,
            scaled,
            saved.numpy(),
            *gradients,
            parts[i].numpy(),
            g_likelihood.numpy(),
            g_scale.numpy(),
        )

    shared.parallel(some, len(ranges))
    if of_table:
        torch.sum(parts[:, :K, :K], 0, out=g_table)


def _backward_rows(
    order: Tensor,
    lengths: Tensor,
    table: Tensor,
    likelihood: Tensor,
    scale: Tensor,
    scaled: bool,
    saved: Tensor,
    g_normaliser: Tensor,
    g_filtered: Tensor,
    filtering: bool,
    of_table: bool,
    g_predicted: Tensor,
    g_table: Tensor,
    g_likelihood: Tensor,
    g_scale: Tensor,
) -> None:
    jit = _jit()
    steps, batch, K = likelihood.shape
    rows, sums = saved[: steps * batch * K].view(steps * batch, K), saved[steps * batch * K :]
    starts = _starts(lengths, steps, True)
    ranges = _slices(lengths, K)
    parts: list[Tensor] = [table] * len(ranges)
    inputs = [x.numpy() for x in (likelihood, scale)]
    gradients = [g_normaliser.numpy(), g_filtered.numpy(), filtering]
    outputs = [g_likelihood.numpy(), g_scale.numpy()]
    places = order.numpy()
    transposed = table.t()

    def some(i: int) -> None:
        first, last = ranges[i]
        counts = _counts(lengths, first, last)
        room = max(ROWS, last - first)
        left, right = likelihood.new_empty(room, K), likelihood.new_empty(room, K)
        V = likelihood.new_zeros(last - first, K)
        part = torch.zeros_like(table)
        filled = 0
        with shared.one_thread(len(ranges) > 1):
            for t in range(len(counts) - 2, -1, -1):
                count, later = counts[t], counts[t + 1]
                start = starts[t] + first
                S = left[filled : filled + later].numpy()
                P, C = rows[start : start + count].numpy(), sums[start : start + count].numpy()
                full = filled + later + count > room
                place = 0 if full else filled + later
                R = right[place : place + count]
                if full:
                    R = likelihood.new_empty(count, K)
                jit.backward_rows(
                    t,
                    count,
                    later,
                    first,
                    places,
                    P,
                    C,
                    V.numpy(),
                    *inputs,
                    scaled,
                    *gradients,
                    S,
                    R.numpy(),
                    *outputs,
                )
                if full:
                    if of_table:
                        part.addmm_(left[: filled + later].t(), right[: filled + later])
                    right[:count] = R
                filled = place
                if t:
                    torch.mm(R, transposed, out=V[:count])
                else:
                    g_predicted[order[first:last]] = 0
                    g_predicted[order[first : first + count]] = R
            if of_table and filled:
                part.addmm_(left[:filled].t(), right[:filled])
        parts[i] = part
        for b, length in zip(order[first:last].tolist(), lengths[first:last].tolist(), strict=True):
            if length < steps:
                g_likelihood[length:, b] = 0
                if scaled:
                    g_scale[max(1, length) :, b] = 0
            if scaled:
                g_scale[0, b] = 0

    shared.parallel(some, len(ranges))
    for part in parts if of_table else []:
        g_table += part


def _fake_forward(
    predicted: Tensor,
    table: Tensor,
    likelihood: Tensor,
    lengths: Tensor | None,
    scale: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    steps, batch, K = likelihood.shape
    size = _saved_size(steps, batch, K, likelihood.dtype) if save else 0
    return (
        likelihood.new_empty(steps, batch, dtype=torch.float64),
        likelihood.new_empty(steps, batch, K),
        likelihood.new_empty(size),
    )


def _fake_backward(
    g_normaliser: Tensor | None,
    g_filtered: Tensor | None,
    table: Tensor,
    likelihood: Tensor,
    lengths: Tensor | None,
    scale: Tensor | None,
    saved: Tensor,
    of_table: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    steps, batch, K = likelihood.shape
    return (
        likelihood.new_empty(batch, K),
        likelihood.new_empty(K, K),
        likelihood.new_empty(steps, batch, K),
        likelihood.new_empty((steps, batch, K) if scale is not None else (0,)),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, table, likelihood, lengths, scale, _ = inputs
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(table, likelihood, lengths, scale, output[2])


def _gradient(
    ctx: Any, g_normaliser: Tensor | None, g_filtered: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    if g_normaliser is None and g_filtered is None:
        return (None,) * 6
    table, likelihood, lengths, scale, saved = ctx.saved_tensors
    g_predicted, g_table, g_likelihood, g_scale = torch.ops.statespan.forward_backward_backward(
        g_normaliser, g_filtered, table, likelihood, lengths, scale, saved, ctx.needs_input_grad[1]
    )
    return g_predicted, g_table, g_likelihood, None, None if scale is None else g_scale, None


shared.define(
    "forward_backward(Tensor predicted, Tensor table, Tensor likelihood, Tensor? lengths, Tensor? scale, bool save)"
    " -> (Tensor, Tensor, Tensor)",
    _forward,
    _fake_forward,
    differentiable=True,
)
shared.define(
    "forward_backward_backward(Tensor? g_normaliser, Tensor? g_filtered, Tensor table, Tensor likelihood,"
    " Tensor? lengths, Tensor? scale, Tensor saved, bool of_table) -> (Tensor, Tensor, Tensor, Tensor)",
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
    _check(predicted, table, likelihood, lengths, scale)
    save = torch.is_grad_enabled() and any(
        x is not None and x.requires_grad for x in (predicted, table, likelihood, scale)
    )
    log_normaliser, filtered, _ = torch.ops.statespan.forward_backward(
        predicted, table, likelihood, lengths, scale, save
    )
    return log_normaliser, filtered


def _check(predicted: Tensor, table: Tensor, likelihood: Tensor, lengths: Tensor | None, scale: Tensor | None) -> None:
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
