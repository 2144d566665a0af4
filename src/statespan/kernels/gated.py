"""Gated feeding's move: a K x K table a sequence and step, softmaxed as it is used and never kept."""

import functools
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import lanes as shared


@functools.cache
def _jit() -> ModuleType:
    from . import _jit_gated

    return _jit_gated


def _padded(x: Tensor, value: float) -> Tensor:
    """Rows filled up to whole vectors of 64 bytes."""
    lanes = 64 // x.element_size()
    return torch.nn.functional.pad(x.detach(), (0, -x.shape[1] % lanes), value=value).contiguous()


def _operands(logits: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    return _padded(logits, -1e30), _padded(gate, 1.0)


def _push(probs: Tensor, logits: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    table, gates = _operands(logits, gate)
    batch, states = probs.shape
    moved, normaliser = torch.zeros_like(gates), torch.empty_like(probs)
    arrays = [x.numpy() for x in (probs.detach().contiguous(), table, gates, moved, normaliser)]
    ranges, jit = shared.pieces(batch, 2 * torch.get_num_threads()), _jit()
    shared.parallel(lambda i: jit.push(*ranges[i], *arrays), len(ranges))
    return moved[:, :states].contiguous(), normaliser


def _push_backward(
    gradient: Tensor, probs: Tensor, logits: Tensor, gate: Tensor, normaliser: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    table, gates = _operands(logits, gate)
    states = probs.shape[1]
    g_probs, g_logits = torch.empty_like(probs), torch.zeros_like(table)
    ranges, jit = shared.pieces(states, torch.get_num_threads()), _jit()
    g_gates = gates.new_zeros(len(ranges), *gates.shape)
    inputs = [x.numpy() for x in (probs.detach().contiguous(), table, gates, normaliser, _padded(gradient, 0.0))]
    outputs = (g_probs.numpy(), g_logits.numpy())

    def rows(i: int) -> None:
        jit.push_backward(*ranges[i], *inputs, *outputs, g_gates[i].numpy())

    shared.parallel(rows, len(ranges))
    return g_probs, g_logits[:, :states].contiguous(), g_gates.sum(0)[:, :states].contiguous()


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    return torch.ops.statespan.gated_push_backward(gradient, *ctx.saved_tensors)


shared.define(
    "gated_push(Tensor probs, Tensor logits, Tensor gate) -> (Tensor, Tensor)",
    _push,
    lambda probs, logits, gate: (torch.empty_like(probs), torch.empty_like(probs)),
    differentiable=True,
)
shared.define(
    "gated_push_backward(Tensor gradient, Tensor probs, Tensor logits, Tensor gate, Tensor normaliser)"
    " -> (Tensor, Tensor, Tensor)",
    _push_backward,
    lambda gradient, probs, logits, gate, normaliser: tuple(torch.empty_like(x) for x in (probs, logits, gate)),
)
torch.library.register_autograd("statespan::gated_push", _gradient, setup_context=_setup, lib=shared.LIBRARY)


def gated_push(probs: Tensor, logits: Tensor, gate: Tensor) -> Tensor:
    """Move p by A[l, k] = softmax over k of logits[l, k] gate[k], a table a sequence.

    The table is made row by row where it is used, and made again in the backward pass: K^2 exponentials a sequence each
    way, and K numbers a sequence kept, not K^2.

    Args:
        probs: p, (B, K), float32 or float64.
        logits: (K, K), of the same dtype.
        gate: (B, K), of the same dtype.

    Returns:
        (B, K).

    Raises:
        ValueError: shapes or dtypes do not fit.

    Source:
        Buys, Bisk and Choi, equation 26.

    Example:
        >>> gated_push(torch.tensor([[1.0, 0.0]]), torch.zeros(2, 2), torch.ones(1, 2))
        tensor([[0.5000, 0.5000]])
    """
    batch, states = probs.shape
    for name, value, shape in (("logits", logits, (states, states)), ("gate", gate, (batch, states))):
        if tuple(value.shape) != shape or value.dtype != probs.dtype:
            raise ValueError(f"{name} must be {shape} {probs.dtype}, not {tuple(value.shape)} {value.dtype}")
    if probs.device.type != "cpu":
        return (probs[:, None, :] @ (logits * gate[:, None, :]).softmax(-1))[:, 0]
    return torch.ops.statespan.gated_push(probs, logits, gate)[0]
