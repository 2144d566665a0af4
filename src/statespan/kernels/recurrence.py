"""The recurrence of a cell whose move is one matrix product, over a whole window.

The scan makes a graph of some ten nodes a step, and its backward pass adds up one gradient of W a step. Here the
forward pass runs without a graph, the backward pass is written down once over the parts' own derivatives, and the
gradient of W is a single product over all steps.
"""

from typing import Any

import torch
from torch import Tensor

from statespan.belief import Hidden, known, select
from statespan.method import Prepared, Trace, register
from statespan.methods import Recurrent
from statespan.parts.cells import LinearMove
from statespan.tree import tree_map


class _Recurrence(torch.autograd.Function):
    """States c_1..c_T (T, B, m) from s_0 (B, m), W (m, m), what is fed (T, B, m), and columns (T - 1, B, m) or None."""

    @staticmethod
    def forward(
        ctx: Any, condition: Any, move: Any, first: Tensor, weight: Tensor, fed: Tensor, columns: Any
    ) -> Tensor:
        length = len(fed)
        states = fed.new_empty(length, *first.shape)
        needed = any(ctx.needs_input_grad)
        absorbed, befores, products = [first], [], []
        state = first
        for t in range(length):
            if t > 0:
                state = condition.absorb(states[t - 1], None if columns is None else columns[t - 1])
                absorbed.append(state)
            before = move.before(state)
            product = torch.mm(before, weight)
            if needed:
                befores.append(before)
                products.append(product)
            states[t] = move.after(product, fed[t])
        if needed:
            ctx.condition, ctx.move, ctx.absorbed = condition, move, absorbed
            ctx.befores, ctx.products = befores, products
            ctx.save_for_backward(states, weight, fed, columns)
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (outer,) = gradients
        states, weight, fed, columns = ctx.saved_tensors
        condition, move = ctx.condition, ctx.move
        length = len(fed)
        inner = torch.empty_like(states)
        fed_gradient = inner if move.adds else torch.empty_like(states)
        column_gradient = None if columns is None else torch.empty_like(columns)
        transposed, carried = weight.t(), None
        for t in range(length - 1, -1, -1):
            gradient = outer[t] if carried is None else outer[t] + carried
            at_product, at_fed = move.after_backward(gradient, ctx.products[t], states[t], fed[t])
            inner[t] = at_product
            if not move.adds:
                fed_gradient[t] = at_fed
            carried = torch.mm(at_product, transposed)
            carried = move.before_backward(carried, ctx.absorbed[t], ctx.befores[t])
            if t > 0:
                column = None if columns is None else columns[t - 1]
                carried, at_column = condition.absorb_backward(carried, states[t - 1], column, ctx.absorbed[t])
                if column_gradient is not None:
                    column_gradient[t - 1] = at_column
        before = torch.stack(ctx.befores).flatten(0, 1)
        weight_gradient = before.t() @ inner.flatten(0, 1)
        return None, None, carried, weight_gradient, fed_gradient, column_gradient


@register(Recurrent, LinearMove, keeps=("predicted", "filtered", "last", "log_prob"), devices=("cpu", "cuda"))
def recurrence(
    model: Any, method: Any, prepared: Prepared, length: int, batch: int, belief: Any, keep: frozenset[str]
) -> Trace | None:
    """A cell without gaps and without dropout in its state."""
    seen, cell = prepared.likelihoods, model.transition
    if (seen.observed is not None and not bool(seen.observed.all())) or (cell.training and cell.drop.p):
        return None
    constants = prepared.moves.constants.value.transition
    if belief is None:
        fed = tree_map(lambda x: x.expand(batch, *x.shape[1:]), prepared.moves.start.value)
        first = cell.absorb(model.initial.start(batch), fed)
    else:
        fed, first = belief.fed, belief.state[0]
    weight, shift = cell.move.linear(constants.tables)
    if seen.fed.drive is None:
        drive = shift.expand(length, batch, -1)
    else:
        drive = torch.cat([fed.drive[None], seen.fed.drive[:-1]])
    columns = None if seen.fed.column is None else seen.fed.column[:-1]
    states = _Recurrence.apply(cell.condition, cell.move, first, weight, drive, columns)
    assert isinstance(states, Tensor)
    filtered = last = None
    if "filtered" in keep or ("last" in keep and prepared.lengths is not None):
        filtered = Hidden(known(cell.absorb(states, seen.fed), cell.simplex), seen.fed)
        last = select(filtered, prepared.lengths - 1) if prepared.lengths is not None else None
    if last is None and "last" in keep:
        end = tree_map(lambda x: x[-1], seen.fed)
        last = Hidden(known(cell.absorb(states[-1], end), cell.simplex), end)
    return Trace(predicted=known(states, cell.moves_to_simplex), filtered=filtered, last=last)
