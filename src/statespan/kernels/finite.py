"""Kernels for finite states: the forward algorithm as one operation."""

from typing import Any

import torch

from statespan.belief import Discrete, select, with_fed
from statespan.kernels.expected_moves import expected_moves
from statespan.kernels.forward_backward import forward_backward
from statespan.kernels.varying_chain import varying_chain
from statespan.kernels.viterbi import max_product
from statespan.method import Prepared, Trace, register
from statespan.methods import Forward, MaxProduct
from statespan.part import MatrixTransition
from statespan.parts.finite import RowsAddition
from statespan.parts.inputs import Generator, Regimes, SoftmaxTransition
from statespan.tree import Shared, tree_map, unstack


def start(model: Any, method: Forward, prepared: Prepared, batch: int, belief: Any) -> torch.Tensor:
    """The predicted belief about the first step, (B, K)."""
    move = unstack(tree_map(lambda x: x[:1], prepared.moves), 1)[0]
    before = method.init(model, move, batch) if belief is None else method.predict(model, belief, move)
    return before.state.probs.contiguous()


def traced(
    prepared: Prepared, log_normaliser: torch.Tensor, filtered: torch.Tensor, predicted: torch.Tensor | None = None
) -> Trace:
    """What the scan would have kept."""
    likelihood = prepared.likelihoods
    state = with_fed(Discrete(filtered), likelihood.fed)
    last = tree_map(lambda x: x[-1], state) if prepared.lengths is None else select(state, prepared.lengths - 1)
    before = None if predicted is None else Discrete(predicted)
    return Trace(filtered=state, predicted=before, last=last, log_prob=log_normaliser + likelihood.log_scale)


def remembers(prepared: Prepared, belief: Any) -> bool:
    """Whether beliefs carry what was observed, or what is fed of it, beside the probabilities."""
    return prepared.likelihoods.fed is not None or (belief is not None and belief.fed is not None)


KEEPS = ("filtered", "predicted", "last", "log_prob", "posterior", "counts", "sums", "first")


@register(Forward, MatrixTransition, keeps=KEEPS)
def dense(
    model: Any, method: Forward, prepared: Prepared, length: int, batch: int, belief: Any, keep: frozenset[str]
) -> Trace | None:
    """A stochastic matrix that does not vary with time; for `sums` the likelihoods are of rows that steps share."""
    if "predicted" in keep and remembers(prepared, belief):
        return None
    predicted = start(model, method, prepared, batch, belief)
    table, value = prepared.moves.tables.value, prepared.likelihoods.value
    if keep & {"posterior", "sums"}:
        seen = prepared.likelihoods
        which = seen.which if "sums" in keep else None
        log_prob, posterior, counts, first = expected_moves(
            predicted, table, value, prepared.lengths, prepared.weights, which, seen.log_scale, "counts" in keep
        )
        trace = Trace(log_prob=log_prob, counts=Shared(counts), first=first)
        return trace._replace(posterior=posterior) if which is None else trace._replace(sums=posterior)
    log_normaliser, filtered = forward_backward(predicted, table, value, prepared.lengths)
    every = torch.cat([predicted[None], filtered[:-1] @ table]) if "predicted" in keep else None
    return traced(prepared, log_normaliser, filtered, every)


@register(Forward, RowsAddition, keeps=("filtered", "last", "log_prob"))
def addition(
    model: Any, method: Forward, prepared: Prepared, length: int, batch: int, belief: Any, keep: frozenset[str]
) -> Trace | None:
    """Addition feeding: exp(W) is the matrix; row factors scale the belief, column factors the likelihood."""
    likelihood = prepared.likelihoods
    if likelihood.fed.observed is not None and not bool(likelihood.fed.observed.all()):
        return None
    predicted = start(model, method, prepared, batch, belief)
    drive, one = likelihood.fed.value, torch.ones_like(likelihood.value[:1])
    row, column = (torch.cat([one, x[:-1]]) for x in (drive.row, drive.column))
    value = likelihood.value * column
    return traced(prepared, *forward_backward(predicted, prepared.moves.tables.value, value, prepared.lengths, row))


@register(Forward, Regimes, keeps=("filtered", "last", "log_prob"))
@register(Forward, Generator, keeps=("filtered", "last", "log_prob"))
def chosen(
    model: Any, method: Forward, prepared: Prepared, length: int, batch: int, belief: Any, keep: frozenset[str]
) -> Trace:
    """One of several matrices at each step."""
    tables, value = prepared.moves.tables, prepared.likelihoods.value
    before = start(model, method, prepared, batch, belief)
    return traced(prepared, *varying_chain(before, tables.every.value, tables.which, value, prepared.lengths))


@register(Forward, SoftmaxTransition, keeps=("filtered", "last", "log_prob"))
def varying(
    model: Any, method: Forward, prepared: Prepared, length: int, batch: int, belief: Any, keep: frozenset[str]
) -> Trace:
    """A matrix of its own at each step of each sequence."""
    tables, value = prepared.moves.tables, prepared.likelihoods.value
    before = start(model, method, prepared, batch, belief)
    return traced(prepared, *varying_chain(before, tables.flatten(0, 1), None, value, prepared.lengths))


@register(MaxProduct, MatrixTransition, keeps=("paths",))
def viterbi(
    model: Any, method: MaxProduct, prepared: Prepared, length: int, batch: int, belief: Any, keep: frozenset[str]
) -> Trace | None:
    """The best path of each sequence; more than one is left to the scan."""
    if method.k > 1 or belief is not None:
        return None
    moves, seen = prepared.moves, prepared.likelihoods
    with torch.no_grad():
        # In float64, as the scan: a long path's score has more digits than float32.
        initial, table = (x.double().log() for x in (moves.initial.value, moves.tables.value))
        initial = initial.expand(batch, -1).contiguous()
        score, path = max_product(initial, table, seen.rows.value.double(), seen.which, prepared.lengths)
    return Trace(paths=(path[..., None], score[:, None]))
