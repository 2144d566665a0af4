"""Torch's own LSTM and GRU layers, for cells of theirs that run over a whole window without gaps."""

from typing import Any

import torch
from torch import Tensor, nn

from statespan.belief import Hidden, Point, select
from statespan.method import Prepared, Trace, register
from statespan.methods import Recurrent
from statespan.tree import tree_map


def _inputs(model: Any, prepared: Prepared, batch: int, belief: Any) -> tuple[Any, Tensor] | None:
    """The state before the window and what drives each step, or None where a step needs more than its cell."""
    seen, transition = prepared.likelihoods, model.transition
    if seen.observed is not None and not bool(seen.observed.all()):
        return None
    if transition.training and transition.drop.p:
        return None
    if belief is None:
        first = prepared.moves.start.value.drive.expand(batch, -1)
        state = transition.absorb(model.initial.start(batch), prepared.moves.start.value)
    else:
        first, state = belief.fed.drive, belief.state.value
    return state, torch.cat([first[None], seen.fed.drive[:-1]])


def _at_end(prepared: Prepared, outputs: Tensor, fed: Any) -> tuple[Tensor, Any]:
    """The output, and what was fed, at each sequence's own end."""
    if prepared.lengths is None:
        return outputs[-1], tree_map(lambda x: x[-1], fed)
    return select(outputs, prepared.lengths - 1), select(fed, prepared.lengths - 1)


@register(Recurrent, nn.LSTMCell, keeps=("last", "log_prob"), devices=("cpu", "cuda"))
def lstm(
    model: Any, method: Any, prepared: Prepared, length: int, batch: int, belief: Any, keep: frozenset[str]
) -> Trace | None:
    """torch.nn.LSTM's layer; it tells the memory cell at the end of the window only, so ragged ends are declined."""
    given = _inputs(model, prepared, batch, belief)
    if given is None or ("last" in keep and prepared.lengths is not None):
        return None
    state, inputs = given
    cell = model.transition.operator
    weights = [cell.weight_ih, cell.weight_hh, *([cell.bias_ih, cell.bias_hh] if cell.bias else [])]
    hidden = [x[None].contiguous() for x in state]
    out, h, c = torch._VF.lstm(inputs, hidden, weights, cell.bias, 1, 0.0, False, False, False)  # type: ignore[attr-defined]
    last = Hidden(Point((h[0], c[0])), tree_map(lambda x: x[-1], prepared.likelihoods.fed))
    return Trace(predicted=Point(out), last=last)


@register(Recurrent, nn.GRUCell, keeps=("filtered", "last", "log_prob"), devices=("cpu", "cuda"))
def gru(
    model: Any, method: Any, prepared: Prepared, length: int, batch: int, belief: Any, keep: frozenset[str]
) -> Trace | None:
    """torch.nn.GRU's layer."""
    given = _inputs(model, prepared, batch, belief)
    if given is None:
        return None
    state, inputs = given
    cell = model.transition.operator
    weights = [cell.weight_ih, cell.weight_hh, *([cell.bias_ih, cell.bias_hh] if cell.bias else [])]
    out, _ = torch._VF.gru(inputs, state[None].contiguous(), weights, cell.bias, 1, 0.0, False, False, False)  # type: ignore[attr-defined]
    fed = prepared.likelihoods.fed
    output, at_end = _at_end(prepared, out, fed)
    return Trace(predicted=Point(out), filtered=Hidden(Point(out), fed), last=Hidden(Point(output), at_end))
