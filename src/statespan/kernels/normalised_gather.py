"""Rows of a table normalised down its columns: the emission of an HMM over a vocabulary, without a V x K temporary.

log p(y | k) = weight[y, k] + bias[y] - log sum_v exp(weight[v, k] + bias[v])

Two operators. The logsumexp is computed once (`column_logsumexp`, one pass with a running maximum per column) and given
to the gather as a value; the gather's gradient contains what would flow through it, and is written in one pass.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import lanes as shared

#: Below so many numbers one thread does it all.
SMALL = 20_000


def _jit() -> ModuleType:
    from . import _jit_softmax

    return _jit_softmax


def _ranges(rows: int, columns: int) -> list[tuple[int, int]]:
    parts = 1 if rows * columns < SMALL else 4 * torch.get_num_threads()
    return shared.pieces(rows, parts)


def _column_logsumexp(weight: Tensor, bias: Tensor | None) -> Tensor:
    weight = weight.detach().contiguous()
    biases = weight.new_empty(0) if bias is None else bias.detach().contiguous()
    rows, columns = weight.shape
    if not weight.numel():
        return weight.new_full((columns,), -torch.inf)
    ranges = _ranges(rows, columns)
    peaks = weight.new_empty(len(ranges), columns)
    sums = torch.empty(len(ranges), columns, dtype=torch.float64)
    jit = _jit()
    inputs = (weight.numpy(), biases.numpy(), bias is not None)

    def some(i: int) -> None:
        jit.column_sums(*ranges[i], *inputs, peaks[i].numpy(), sums[i].numpy())

    shared.parallel(some, len(ranges))
    peaks = peaks.double()
    top = peaks.amax(0)
    base = torch.where(top.isinf(), 0.0, top)
    own = torch.where(peaks.isinf(), 0.0, peaks)
    return (base + (sums * (own - base).exp()).sum(0).log()).to(weight.dtype)


def _gather(weight: Tensor, bias: Tensor | None, normaliser: Tensor, index: Tensor) -> Tensor:
    weight, normaliser, index = (x.detach().contiguous() for x in (weight, normaliser, index))
    biases = weight.new_empty(0) if bias is None else bias.detach().contiguous()
    result = weight.new_empty(index.shape[0], weight.shape[1])
    if not result.numel():
        return result
    jit = _jit()
    ranges = _ranges(*result.shape)
    inputs = (weight.numpy(), biases.numpy(), bias is not None, normaliser.numpy(), index.numpy(), result.numpy())
    shared.parallel(lambda i: jit.gather(*ranges[i], *inputs), len(ranges))
    return result


def _gather_backward(
    gradient: Tensor, weight: Tensor, bias: Tensor | None, normaliser: Tensor, index: Tensor
) -> tuple[Tensor, Tensor]:
    weight, normaliser, gradient = (x.detach().contiguous() for x in (weight, normaliser, gradient))
    biases = weight.new_empty(0) if bias is None else bias.detach().contiguous()
    g_weight, g_bias = torch.empty_like(weight), torch.zeros_like(biases)
    if not weight.numel():
        return g_weight, g_bias
    rows, columns = weight.shape
    order = index.detach().argsort(stable=True)
    edges = torch.zeros(rows + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(index.detach(), minlength=rows), 0, out=edges[1:])
    jit = _jit()
    ranges = _ranges(rows, columns)
    inputs = (
        *(weight.numpy(), biases.numpy(), bias is not None, normaliser.numpy(), order.numpy(), edges.numpy()),
        *(gradient.numpy(), gradient.sum(0).numpy(), g_weight.numpy(), g_bias.numpy()),
    )
    shared.parallel(lambda i: jit.gather_backward(*ranges[i], *inputs), len(ranges))
    return g_weight, g_bias


def _fake_backward(
    gradient: Tensor, weight: Tensor, bias: Tensor | None, normaliser: Tensor, index: Tensor
) -> tuple[Tensor, Tensor]:
    return weight.new_empty(weight.shape), weight.new_empty(weight.shape[0] if bias is not None else 0)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    weight, bias, normaliser, index = ctx.saved_tensors
    g_weight, g_bias = torch.ops.statespan.gather_log_softmax_backward(gradient, weight, bias, normaliser, index)
    return g_weight, None if bias is None else g_bias, None, None


shared.define(
    "column_logsumexp(Tensor weight, Tensor? bias) -> Tensor",
    _column_logsumexp,
    lambda weight, bias: weight.new_empty(weight.shape[1]),
)
shared.define(
    "gather_log_softmax(Tensor weight, Tensor? bias, Tensor normaliser, Tensor index) -> Tensor",
    _gather,
    lambda weight, bias, normaliser, index: weight.new_empty(index.shape[0], weight.shape[1]),
    differentiable=True,
)
shared.define(
    "gather_log_softmax_backward(Tensor gradient, Tensor weight, Tensor? bias, Tensor normaliser, Tensor index)"
    " -> (Tensor, Tensor)",
    _gather_backward,
    _fake_backward,
)
torch.library.register_autograd("statespan::gather_log_softmax", _gradient, setup_context=_setup, lib=shared.LIBRARY)


def _check(weight: Tensor, bias: Tensor | None, **others: tuple[Tensor, tuple[int, ...]]) -> None:
    if weight.dim() != 2 or weight.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"weight must be (V, K) float32 or float64, not {tuple(weight.shape)} {weight.dtype}")
    values = dict(others)
    if bias is not None:
        values["bias"] = (bias, (weight.shape[0],))
    for name, (value, shape) in values.items():
        if tuple(value.shape) != shape or value.dtype != weight.dtype:
            raise ValueError(f"{name} must be {shape} {weight.dtype}, not {tuple(value.shape)} {value.dtype}")


def column_logsumexp(weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Logarithm of the sum of exponentials down every column of a table, without gradient.

    log sum_v exp(weight[v, k] + bias[v]), in one pass over blocks of rows with a running maximum per column.

    Args:
        weight: (V, K), float32 or float64.
        bias: (V,), added to every column; zeros where not given.

    Returns:
        (K,), of the weight's dtype. Its gradient is part of `gather_log_softmax`.

    Raises:
        ValueError: shapes or dtypes do not fit.

    Source:
        Milakov and Gimelshein (2018), Online normalizer calculation for softmax.

    Example:
        >>> column_logsumexp(torch.zeros(4, 2)).exp()
        tensor([4., 4.])
    """
    _check(weight, bias)
    with torch.no_grad():
        if weight.device.type != "cpu":
            return (weight if bias is None else weight + bias[:, None]).logsumexp(0)
        return torch.ops.statespan.column_logsumexp(weight, bias)


def gather_log_softmax(weight: Tensor, bias: Tensor | None, normaliser: Tensor, index: Tensor) -> Tensor:
    """Rows of a table's softmax down its columns, in logarithms.

    result[n, k] = weight[index[n], k] + bias[index[n]] - normaliser[k]. The normaliser is a value; the gradient is that
    of the whole formula, with s_k = sum_n g[n, k]:
    d weight[v, k] = sum_{n: index[n] = v} g[n, k] - exp(weight[v, k] + bias[v] - normaliser[k]) s_k;  d bias is its sum
    over k.

    Args:
        weight: (V, K), float32 or float64.
        bias: (V,) or None for zeros.
        normaliser: (K,), `column_logsumexp(weight, bias)`.
        index: (N,) int64, each in 0 ... V - 1 (not checked).

    Returns:
        (N, K), of the weight's dtype.

    Raises:
        ValueError: shapes or dtypes do not fit.

    Source:
        Chiu and Rush (2020), Scaling Hidden Markov Language Models, section 4, for where it is needed.

    Example:
        >>> weight = torch.zeros(4, 2)
        >>> gather_log_softmax(weight, None, column_logsumexp(weight), torch.tensor([3])).exp()
        tensor([[0.2500, 0.2500]])
    """
    _check(weight, bias, normaliser=(normaliser, (weight.shape[1],)))
    if index.dim() != 1 or index.dtype != torch.int64:
        raise ValueError(f"index must be (N,) int64, not {tuple(index.shape)} {index.dtype}")
    if weight.device.type != "cpu":
        return plain(weight, bias, index)
    return torch.ops.statespan.gather_log_softmax(weight, bias, normaliser.detach(), index)


def plain(weight: Tensor, bias: Tensor | None, index: Tensor) -> Tensor:
    """The same by torch's own operations, for devices without this kernel."""
    logits = weight if bias is None else weight + bias[:, None]
    return logits[index] - logits.logsumexp(0)
