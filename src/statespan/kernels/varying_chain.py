"""The scaled forward recursion of a chain whose matrix changes from step to step, and its gradient, as one operator.

As `forward_backward`, which says what it is, but the move into step t of sequence b has a matrix of its own, or is one
of several. Sequences are spread over torch's number of threads, each by itself.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import lanes as shared

#: With fewer multiplications than this one thread does it all.
SMALL = 200_000


def _given(which: Tensor | None, likelihood: Tensor, lengths: Tensor | None) -> tuple[Any, list[int], int]:
    """Which matrix acts where, every sequence's length, and how many threads."""
    steps, batch, K = likelihood.shape
    ends = [steps] * batch if lengths is None else lengths.clamp(0, steps).tolist()
    at = np.empty((0, 0), np.int64) if which is None else which.contiguous().numpy()
    threads = 1 if likelihood.numel() * K < SMALL else min(batch, shared.available())
    return at, ends, threads


def _forward(
    predicted: Tensor, tables: Tensor, which: Tensor | None, likelihood: Tensor, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    from . import _jit_varying_chain as jit
    from ._jit_forward_backward import logarithms

    predicted, tables, likelihood = (x.detach().contiguous() for x in (predicted, tables, likelihood))
    at, ends, threads = _given(which, likelihood, lengths)
    filtered = shared.empty(*likelihood.shape, like=likelihood)
    normaliser = np.ones(likelihood.shape[:2])
    inputs = predicted.numpy(), tables.numpy(), at, likelihood.numpy(), normaliser, filtered.numpy()
    shared.parallel(lambda b: jit.forward(b, ends[b], *inputs), len(ends), threads)
    logarithms(0, normaliser.size, normaliser.reshape(-1))
    return torch.from_numpy(normaliser), filtered


def _backward(
    g_normaliser: Tensor | None,
    g_filtered: Tensor | None,
    predicted: Tensor,
    tables: Tensor,
    which: Tensor | None,
    likelihood: Tensor,
    lengths: Tensor | None,
    filtered: Tensor,
    of_tables: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    from . import _jit_varying_chain as jit

    predicted, tables, likelihood, filtered = (
        x.detach().contiguous() for x in (predicted, tables, likelihood, filtered)
    )
    at, ends, threads = _given(which, likelihood, lengths)
    of_normaliser = np.zeros(likelihood.shape[:2]) if g_normaliser is None else g_normaliser.contiguous().numpy()
    of_filtered = (likelihood[:0] if g_filtered is None else g_filtered).contiguous().numpy()
    g_predicted, g_likelihood = torch.zeros_like(predicted), torch.empty_like(likelihood)
    # A matrix that several sequences use is added to by several threads: each has its own sum.
    parts = tables.new_zeros(1 if which is None or not of_tables else threads, *tables.shape)
    free = list(range(threads))
    inputs = [x.numpy() for x in (predicted, tables)], [x.numpy() for x in (likelihood, filtered)]
    upstream = of_normaliser, of_filtered, g_filtered is not None, of_tables

    def one(b: int) -> None:
        mine = free.pop()
        outputs = g_predicted, parts[mine if len(parts) > 1 else 0], g_likelihood
        jit.backward(b, ends[b], *inputs[0], at, *inputs[1], *upstream, *(x.numpy() for x in outputs))
        free.append(mine)

    shared.parallel(one, len(ends), threads)
    return g_predicted, parts.sum(0) if len(parts) > 1 else parts[0], g_likelihood


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, output[1])


def _gradient(ctx: Any, g_normaliser: Tensor | None, g_filtered: Tensor | None) -> tuple[Tensor | None, ...]:
    if g_normaliser is None and g_filtered is None:
        return (None,) * 5
    g_predicted, g_tables, g_likelihood = torch.ops.statespan.varying_chain_backward(
        g_normaliser, g_filtered, *ctx.saved_tensors, ctx.needs_input_grad[1]
    )
    return g_predicted, g_tables, None, g_likelihood, None


shared.define(
    "varying_chain(Tensor predicted, Tensor tables, Tensor? which, Tensor likelihood, Tensor? lengths)"
    " -> (Tensor, Tensor)",
    _forward,
    lambda predicted, tables, which, likelihood, lengths: (
        likelihood.new_empty(likelihood.shape[:2], dtype=torch.float64),
        torch.empty_like(likelihood),
    ),
    differentiable=True,
)
shared.define(
    "varying_chain_backward(Tensor? g_normaliser, Tensor? g_filtered, Tensor predicted, Tensor tables, Tensor? which,"
    " Tensor likelihood, Tensor? lengths, Tensor filtered, bool of_tables) -> (Tensor, Tensor, Tensor)",
    _backward,
    lambda g_normaliser, g_filtered, predicted, tables, which, likelihood, lengths, filtered, of_tables: (
        torch.empty_like(predicted),
        torch.empty_like(tables),
        torch.empty_like(likelihood),
    ),
)
torch.library.register_autograd("statespan::varying_chain", _gradient, setup_context=_setup, lib=shared.LIBRARY)


def varying_chain(
    predicted: Tensor, tables: Tensor, which: Tensor | None, likelihood: Tensor, lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Filters all sequences of a finite state chain with a matrix for every move; the gradient smooths them.

    With p_1 = `predicted`: j_t = p_t y_t;  c_t = sum_k j_t;  f_t = j_t / c_t;  p_{t+1} = f_t A_{t+1}. Where c_t = 0 and
    past an end it is as `forward_backward` says.

    Args:
        predicted: (B, K), belief about the first state before the first observation.
        tables: (M, K, K), matrices of moves.
        which: (T, B) int64, the matrix of the move into each step, the first row of no meaning, within a sequence's
            length from 0 to M - 1 (not checked); None: matrix t B + b is that into step t of sequence b.
        likelihood: (T, B, K), p(y_t | state), float32 or float64.
        lengths: (B,) int64, own length of every sequence; T where not given.

    Returns:
        log_normaliser: (T, B) float64, log c_t.
        filtered: (T, B, K), f_t.

    Raises:
        ValueError: shapes do not fit.

    Source:
        Rabiner (1989), section V.A (scaling); Eisner (2016) for the backward pass as the gradient.

    Example:
        >>> initial, likelihood = torch.tensor([[0.5, 0.5]]), torch.tensor([[[0.1, 0.6]], [[0.1, 0.6]]])
        >>> tables = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.9, 0.1], [0.2, 0.8]]])
        >>> log_normaliser, _ = varying_chain(initial, tables, None, likelihood)
        >>> [round(x, 4) for x in log_normaliser.exp().flatten().tolist()]
        [0.35, 0.45]
    """
    steps, batch, K = likelihood.shape
    count = tables.shape[0] if which is not None else steps * batch
    if tuple(tables.shape) != (count, K, K) or tuple(predicted.shape) != (batch, K):
        raise ValueError(f"tables {tuple(tables.shape)} and predicted {tuple(predicted.shape)} must be of {K} states")
    return torch.ops.statespan.varying_chain(predicted, tables, which, likelihood, lengths)
