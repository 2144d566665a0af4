"""log softmax of a linear layer at one class each: the cross-entropy of a large vocabulary with one (N, V) buffer.

The scores of a chunk of rows are one matrix product; the softmax overwrites them while they are in the cache, as
exp(score - maximum), and leaves 1 / the row's sum beside. The backward pass only reads that buffer: with E the buffer,
r the inverse sums and g the gradient, d hidden = g (weight[index] - r E weight), d weight = scatter(g hidden) -
E' (g r hidden), so that scaling falls on (N, m) and no second (N, V) buffer exists.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import lanes as shared

#: About so many bytes of scores are computed before their softmax is taken.
CHUNK = 1 << 24


def _jit() -> ModuleType:
    from . import _jit_softmax

    return _jit_softmax


def _threads(N: int, V: int) -> int:
    return torch.get_num_threads() if shared.can_split() and N * V > 100_000 else 1


def _forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight, index = (x.detach().contiguous() for x in (hidden, weight, index))
    biases = weight.new_empty(0) if bias is None else bias.detach().contiguous()
    N, V = hidden.shape[0], weight.shape[0]
    result = hidden.new_empty(N)
    inverse = hidden.new_empty(N)
    buffer = hidden.new_empty((N, V) if save else (0, V))
    if not N:
        return result, buffer, inverse
    rows = max(16, CHUNK // (V * hidden.element_size()))
    threads = _threads(N, V)
    parts = max(threads, (N + rows - 1) // rows)
    ranges = shared.pieces(N, -(-parts // threads) * threads)
    transposed = weight.t()
    jit = _jit()

    def some(i: int) -> None:
        first, last = ranges[i]
        chunk = buffer[first:last] if save else hidden.new_empty(last - first, V)
        with shared.one_thread(threads > 1):
            torch.mm(hidden[first:last], transposed, out=chunk)
        values = (chunk, biases), (index[first:last], result[first:last], inverse[first:last])
        jit.softmax_rows(
            0, last - first, *(x.numpy() for x in values[0]), bias is not None, *(x.numpy() for x in values[1])
        )

    shared.parallel(some, len(ranges), threads)
    return result, buffer, inverse


def _backward(
    gradient: Tensor, hidden: Tensor, weight: Tensor, index: Tensor, buffer: Tensor, inverse: Tensor, biased: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if buffer.shape[0] != hidden.shape[0]:
        raise ValueError("linear_log_softmax_gather was called with save=False: it has no gradient")
    gradient, hidden, weight, index = (x.detach().contiguous() for x in (gradient, hidden, weight, index))
    N, V = buffer.shape
    shares = -gradient * inverse
    scaled = torch.empty_like(hidden)
    g_hidden, g_weight = torch.empty_like(hidden), torch.empty_like(weight)
    g_bias = weight.new_empty(V if biased else 0)
    jit = _jit()
    jit.scale_rows(hidden.numpy(), shares.numpy(), scaled.numpy())
    values = [x.numpy() for x in (gradient, index)]
    threads = _threads(N, V)
    columns, rows = shared.pieces(V, threads), shared.pieces(N, threads)

    def some(i: int) -> None:
        with shared.one_thread(threads > 1):
            if i < len(columns):
                first, last = columns[i]
                torch.mm(buffer[:, first:last].t(), scaled, out=g_weight[first:last])
                if biased:
                    torch.mv(buffer[:, first:last].t(), shares, out=g_bias[first:last])
                jit.finish_weight(first, last, *values, hidden.numpy(), g_weight.numpy(), g_bias.numpy(), biased)
            else:
                first, last = rows[i - len(columns)]
                torch.mm(buffer[first:last], weight, out=g_hidden[first:last])
                jit.finish_hidden(first, last, shares.numpy(), *values, weight.numpy(), g_hidden.numpy())

    shared.parallel(some, len(columns) + len(rows), threads)
    return g_hidden, g_weight, g_bias


def _fake_forward(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    N, V = hidden.shape[0], weight.shape[0]
    return hidden.new_empty(N), hidden.new_empty(N if save else 0, V), hidden.new_empty(N)


def _fake_backward(
    gradient: Tensor, hidden: Tensor, weight: Tensor, index: Tensor, buffer: Tensor, inverse: Tensor, biased: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        hidden.new_empty(hidden.shape),
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape[0] if biased else 0),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, bias, index, _ = inputs
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)
    ctx.biased = bias is not None
    ctx.save_for_backward(hidden, weight, index, output[1], output[2])


def _gradient(ctx: Any, gradient: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return (None,) * 5
    g_hidden, g_weight, g_bias = torch.ops.statespan.linear_log_softmax_gather_backward(
        gradient, *ctx.saved_tensors, ctx.biased
    )
    return g_hidden, g_weight, g_bias if ctx.biased else None, None, None


shared.define(
    "linear_log_softmax_gather(Tensor hidden, Tensor weight, Tensor? bias, Tensor index, bool save)"
    " -> (Tensor, Tensor, Tensor)",
    _forward,
    _fake_forward,
    differentiable=True,
)
shared.define(
    "linear_log_softmax_gather_backward(Tensor gradient, Tensor hidden, Tensor weight, Tensor index, Tensor buffer,"
    " Tensor inverse, bool biased) -> (Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)
torch.library.register_autograd(
    "statespan::linear_log_softmax_gather", _gradient, setup_context=_setup, lib=shared.LIBRARY
)


def linear_log_softmax_gather(hidden: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor) -> Tensor:
    """Log-probability of one class each under the softmax of a linear layer.

    result[n] = s[n, index[n]] - log sum_v exp(s[n, v]), s = hidden weight' + bias. Minus its mean is the cross-entropy.
    Without a gradient the scores exist only a chunk of rows at a time; with one, in one (N, V) buffer.

    Args:
        hidden: (N, m), float32 or float64.
        weight: (V, m), of the same dtype.
        bias: (V,) or None for zeros.
        index: (N,) int64, each in 0 ... V - 1 (not checked).

    Returns:
        (N,), of the same dtype.

    Raises:
        ValueError: shapes or dtypes do not fit.

    Source:
        Wijmans et al. (2024), Cut Your Losses in Large-Vocabulary Language Models, for the idea; Jurafsky and Martin,
        Speech and Language Processing (3rd ed.), 7.5, for the loss.

    Example:
        >>> hidden, weight = torch.ones(2, 3), torch.zeros(4, 3)
        >>> linear_log_softmax_gather(hidden, weight, None, torch.tensor([0, 3])).exp()
        tensor([0.2500, 0.2500])
    """
    if hidden.dim() != 2 or hidden.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"hidden must be (N, m) float32 or float64, not {tuple(hidden.shape)} {hidden.dtype}")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[1] or weight.dtype != hidden.dtype:
        raise ValueError(
            f"weight must be (V, {hidden.shape[1]}) {hidden.dtype}, not {tuple(weight.shape)} {weight.dtype}"
        )
    if bias is not None and (tuple(bias.shape) != (weight.shape[0],) or bias.dtype != hidden.dtype):
        raise ValueError(f"bias must be ({weight.shape[0]},) {hidden.dtype}, not {tuple(bias.shape)} {bias.dtype}")
    if tuple(index.shape) != (hidden.shape[0],) or index.dtype != torch.int64:
        raise ValueError(f"index must be ({hidden.shape[0]},) int64, not {tuple(index.shape)} {index.dtype}")
    if hidden.device.type != "cpu":
        return plain(hidden, weight, bias, index)
    save = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (hidden, weight, bias))
    return torch.ops.statespan.linear_log_softmax_gather(hidden, weight, bias, index, save)[0]


def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor) -> Tensor:
    """The same by torch's own operations, for devices without this kernel."""
    scores = torch.nn.functional.linear(hidden, weight, bias)
    return -torch.nn.functional.cross_entropy(scores, index, reduction="none")
