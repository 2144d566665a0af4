"""Kernels for chains of which an observation leaves one class of states: a step costs (K / C)^2 and no matrix is made.

With classes c_t known from what is observed, only the parts A[c_{t-1}, c_t] of the table are needed, (K / C) x (K / C)
each. Pairs of classes that stand several times in a window are computed once. The rows' normalisers are the only work
that all states do, and they are a fused product.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from statespan.belief import Discrete, select
from statespan.kernels.finite import remembers, start, traced
from statespan.kernels.finite import viterbi as dense_viterbi
from statespan.kernels.forward_backward import forward_backward
from statespan.method import Prepared, Trace, register
from statespan.methods import Forward, MaxProduct
from statespan.parts.embedded import EmbeddedMatrix, EmbeddedTables
from statespan.tree import Shared


def _with_table(prepared: Prepared) -> Prepared:
    """The same with the table itself, for the kernels of dense tables."""
    moves = prepared.moves
    return prepared._replace(moves=moves._replace(tables=Shared(moves.tables.value.probs.value)))


def _class_of(there: Tensor, classes: int) -> Tensor | None:
    """The only class of each row of what is possible (..., K); None where a row has not one alone."""
    some = there.unflatten(-1, (classes, -1)).any(-1)
    return some.int().argmax(-1) if bool((some.sum(-1) == 1).all()) else None


def _of_class(values: Tensor, at: Tensor, classes: int) -> Tensor:
    """The states of one class: (..., K) and (...) to (..., n)."""
    values = values.unflatten(-1, (classes, -1))
    return values.gather(-2, at[..., None, None].expand(*at.shape, 1, values.shape[-1]))[..., 0, :]


@register(Forward, EmbeddedMatrix, keeps=("filtered", "predicted", "last", "log_prob"), devices=("cpu", "cuda"))
def forward(
    model: Any, method: Forward, prepared: Prepared, length: int, batch: int, belief: Any, keep: frozenset[str]
) -> Trace | None:
    """Class by class; by the table where an observation leaves more than one class (a gap), or there is one alone."""
    if "predicted" in keep and remembers(prepared, belief):
        return None
    likelihood, classes = prepared.likelihoods, getattr(model.emission, "classes", 1)
    at = None if classes == 1 else _class_of(likelihood.value.detach() > 0, classes)
    if at is None:
        if likelihood.value.device.type != "cpu":
            return None
        table = prepared.moves.tables.value.probs.value
        begun = start(model, method, prepared, batch, belief)
        log_normaliser, filtered = forward_backward(begun, table, likelihood.value, prepared.lengths)
        every = torch.cat([begun[None], filtered[:-1] @ table]) if "predicted" in keep else None
        return traced(prepared, log_normaliser, filtered, every)
    tables: EmbeddedTables = prepared.moves.tables.value
    seen, states = _of_class(likelihood.value, at, classes), model.transition.states
    every = torch.arange(states, device=seen.device).view(classes, -1)
    kept = every if tables.kept is None else tables.kept
    before = None if belief is None else _class_of(belief.state.probs.detach() > 0, classes)
    totals, filtered = [], []
    if belief is None or before is None:  # the first step is from the start, or from a belief about several classes
        joint = _of_class(start(model, method, prepared, batch, belief), at[0], classes) * seen[0]
        totals.append(joint.sum(-1))
        filtered.append(joint / _divisor(totals[0]))
        first, steps, seen = at[0], at[1:], seen[1:]
        state = filtered[0]
    else:
        first, steps, state = before, at, _of_class(belief.state.probs, before, classes)
    normaliser = _normaliser(tables, every[first.unique()].flatten())
    seen = seen.gather(-1, (kept % every.shape[1])[steps])
    for part, here in zip(_parts(tables, every[first], kept, steps, normaliser), seen, strict=True):
        joint = torch.bmm(state[:, None], part)[:, 0] * here
        totals.append(joint.sum(-1))
        state = joint / _divisor(totals[-1])
        filtered.append(state)
    total = torch.stack(totals)
    log_prob = torch.where(total > 0, _divisor(total)[..., 0].log().double(), -torch.inf) + likelihood.log_scale

    def whole(t: int) -> Tensor:
        """What is known after step t, of all states."""
        where = (every if t == 0 and before is None else kept)[at[t]]
        return state.new_zeros(batch, states).scatter(-1, where, filtered[t])

    if not keep & {"filtered", "predicted"} and prepared.lengths is None:
        return Trace(last=Discrete(whole(length - 1)), log_prob=log_prob)
    stacked = Discrete(torch.stack([whole(t) for t in range(length)]))
    ends = torch.full((batch,), length, device=total.device) if prepared.lengths is None else prepared.lengths
    predicted = None
    if "predicted" in keep:
        table = tables.probs.value.unflatten(0, (classes, -1))
        if belief is None or before is None:
            begun = start(model, method, prepared, batch, belief)[None]
        else:
            begun = _moved(belief.state.probs[None], before[None], table)
        predicted = Discrete(torch.cat([begun, _moved(stacked.probs[:-1], at[:-1], table)]))
    return Trace(filtered=stacked, predicted=predicted, last=select(stacked, ends - 1), log_prob=log_prob)


def _moved(probs: Tensor, at: Tensor, table: Tensor) -> Tensor:
    """P A of beliefs about one class each, (T, B, K), by the classes `at` (T, B) and A's rows by class (C, n, K)."""
    own, out = _of_class(probs, at, len(table)), torch.empty_like(probs)
    for one in at.unique():
        there = at == one
        out[there] = own[there] @ table[one]
    return out


def _divisor(total: Tensor) -> Tensor:
    """What to divide by, (..., 1)."""
    return torch.where(total > 0, total, 1.0)[..., None]


def _normaliser(tables: EmbeddedTables, first: Tensor) -> Tensor:
    """Of the rows that are left: all, or in training those of the window's states and of the `first` ones, (K,)."""
    if tables.kept is None:
        return tables.normaliser.value
    rows = torch.cat([tables.kept.flatten(), first]).unique()
    return torch.zeros_like(tables.bias).index_put((rows,), tables.normalise(rows))


def _parts(tables: EmbeddedTables, first: Tensor, kept: Tensor, at: Tensor, normaliser: Tensor) -> Iterator[Tensor]:
    """The part of A that each move of a window takes, (B, n, n'): from the states `first` on, then class to class.

    Args:
        tables: the vectors.
        first: (B, n) all the states of the classes before the window; one that it does not keep is still left.
        kept: (C, n') the states of each class that are moved to.
        at: (T, B) the classes.
        normaliser: (K,) of the rows.
    """
    if len(at):
        yield tables.block(first, kept[at[0]], normaliser).exp()
    if len(at) < 2:
        return
    pairs, which = torch.unique(at[:-1] * len(kept) + at[1:], return_inverse=True)
    parts = tables.block(kept[pairs // len(kept)], kept[pairs % len(kept)], normaliser).exp()
    # One gather for all steps has one gradient; without one, a step's own takes less memory.
    yield from parts[which].unbind(0) if parts.requires_grad else (parts[some] for some in which)


@register(MaxProduct, EmbeddedMatrix, keeps=("paths",))
def viterbi(
    model: Any, method: MaxProduct, prepared: Prepared, length: int, batch: int, belief: Any, keep: frozenset[str]
) -> Trace | None:
    """The best path of each sequence, class by class; by the table as `forward`."""
    if method.k > 1 or belief is not None:
        return None
    classes, log = getattr(model.emission, "classes", 1), prepared.likelihoods.rows.value
    owner = None if classes == 1 else _class_of(log > -torch.inf, classes)
    if owner is None:
        return dense_viterbi(model, method, _with_table(prepared), length, batch, belief, keep)
    tables, which = prepared.moves.tables.value, prepared.likelihoods.which
    at, rows = owner[which], _of_class(log, owner, classes).double()
    kept = torch.arange(model.transition.states, device=log.device).view(classes, -1)
    ends = torch.full((batch,), length, device=log.device) if prepared.lengths is None else prepared.lengths
    with torch.no_grad():
        initial = prepared.moves.initial.value.double().log().expand(batch, -1)
        score = _of_class(initial, at[0], classes) + rows[which[0]]
        back = []
        for t, part in enumerate(_parts(tables, kept[at[0]], kept, at[1:], tables.normaliser.value), 1):
            ways, best = (score[:, :, None] + part.double().log()).max(1)
            inside = (t < ends)[:, None]
            stay = torch.arange(score.shape[1], device=log.device)  # past an end a path stays where it was
            back.append(torch.where(inside, best, stay))
            score = torch.where(inside, ways + rows[which[t]], score)
        top, place = score.max(-1)
        path = torch.full((length, batch), -1, device=log.device)
        for t in range(length - 1, -1, -1):
            path[t] = torch.where(t < ends, kept[at[t], place], -1)
            if t:
                place = back[t - 1].gather(-1, place[:, None])[:, 0]
    return Trace(paths=(path[..., None], top[:, None]))
