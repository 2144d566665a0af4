"""Sums of rows by symbol: the expected counts of a categorical emission."""

import functools
from types import ModuleType

import torch
from torch import Tensor

from . import lanes as shared


@functools.cache
def _jit() -> ModuleType:
    from . import _jit_symbol_sums

    return _jit_symbol_sums


def _symbol_sums(values: Tensor, index: Tensor, symbols: int) -> Tensor:
    result = values.new_zeros(symbols, values.shape[1])
    arrays = *(x.detach().contiguous().numpy() for x in (values, index)), result.numpy()
    ranges = shared.pieces(values.shape[1], max(1, min(torch.get_num_threads(), values.shape[1] // 16)))
    shared.parallel(lambda i: _jit().add_rows(*ranges[i], *arrays), len(ranges))
    return result


shared.define(
    "symbol_sums(Tensor values, Tensor index, int symbols) -> Tensor",
    _symbol_sums,
    lambda values, index, symbols: values.new_empty(symbols, values.shape[1]),
)


def symbol_sums(values: Tensor, index: Tensor, symbols: int) -> Tensor:
    """Sum of the rows that belong to each symbol, without gradient: result[v] = sum of values[n] where index[n] = v.

    Args:
        values: (N, K), float32 or float64.
        index: (N,) int64, each in 0 ... symbols - 1 (not checked).
        symbols: V.

    Returns:
        (V, K), of the values' dtype.

    Source:
        Rabiner 1989, equation 40c.

    Example:
        >>> symbol_sums(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1, 0, 1]), 3)
        tensor([[2.],
                [5.],
                [0.]])
    """
    if values.device.type != "cpu":
        return values.new_zeros(symbols, values.shape[1]).index_add_(0, index, values)
    with torch.no_grad():
        return torch.ops.statespan.symbol_sums(values, index, symbols)
