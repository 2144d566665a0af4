"""The E-step of symbols: expected counts by symbol at once, and nothing of the size of steps times states."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from statespan.method import Expected, Kernel, Method, Prepared, Statistics, Trace, closed_parts, find_kernel
from statespan.methods.finite import Constants, finite_moves, told_apart
from statespan.methods.rows import prepare_rows, sharing, symbols
from statespan.part import scaled
from statespan.sequences import Sequences
from statespan.tree import add

SUMS = frozenset({"log_prob", "sums", "counts"})
"""What a kernel must keep to count by symbol."""


class SharedLikelihood(NamedTuple):
    """Likelihoods that steps share.

    Args:
        value: (N, K), p(y | z = k) of N observations, each divided by its largest value.
        log_scale: (N,), the logarithm of that value, float64.
        which: (T, B) integers, what each step observes.
    """

    value: Tensor
    log_scale: Tensor
    which: Tensor


def by_symbol(model: Any, method: Method, data: Sequences) -> Kernel | None:
    """The kernel that counts by symbol, where there is one and the data allow it."""
    found = find_kernel(model, method)
    if found is None or SUMS - found.keeps or data.device.type not in found.devices:
        return None
    return found if sharing(model, data) else None


@torch.no_grad()
def expect_by_symbol(
    model: Any, method: Method, constants: Constants, data: Sequences, otherwise: Callable[[Sequences], Expected]
) -> Expected | None:
    """The E-step; None where no kernel counts by symbol.

    Args:
        model: a finite state space.
        method: the method the kernel is registered for.
        constants: what `method.constants` returned.
        data: the sequences.
        otherwise: the E-step of those that scaled probabilities cannot do.
    """
    kernel = by_symbol(model, method, data)
    if kernel is None:
        return None
    rows = prepare_rows(model, constants, data)
    value, log_scale = scaled(rows.rows.value)
    seen = SharedLikelihood(value, log_scale, rows.which)
    prepared = Prepared(finite_moves(model, constants, data), seen, data.lengths, data.weights)
    trace = kernel.run(model, method, prepared, *data.shape, None, SUMS)
    if trace is None or trace.log_prob is None:
        return None
    which = _lost(rows.rows.value, seen, trace, data)
    log_prob = trace.log_prob
    if which is None:
        return Expected(log_prob, _statistics(model, data, trace))
    index = which.nonzero()[:, 0]
    others = otherwise(data.each(lambda x, axis: x.index_select(axis, index)))
    each = value.new_ones(len(which)) if data.weights is None else data.weights
    weights = each.masked_fill(which, 0.0)
    trace = kernel.run(model, method, prepared._replace(weights=weights), *data.shape, None, SUMS)
    assert trace is not None
    return Expected(
        log_prob.index_copy(1, index, others.log_prob), add(_statistics(model, data, trace), others.statistics)
    )


def _lost(logs: Tensor, seen: SharedLikelihood, trace: Trace, data: Sequences) -> Tensor | None:
    """(B,) which sequences scaled probabilities cannot do, as `logarithms.lost` says; None: they can do all."""
    assert trace.log_prob is not None
    tiny = torch.finfo(seen.value.dtype).tiny ** 0.5
    vanished = ((seen.value < tiny) & (logs > -torch.inf)).any(-1)
    if not bool(vanished.any()):
        return None
    within = data.within
    which = torch.where(within, seen.which, 0)
    low = (trace.log_prob - seen.log_scale[which] < torch.tensor(tiny, dtype=torch.float64).log()) & within
    lost = low.any(0) & (vanished[which] & within).any(0)
    return lost if bool(lost.any()) else None


def _statistics(model: Any, data: Sequences, trace: Trace) -> Statistics:
    """What the parts' M-steps need: an emission adds up over steps, so a symbol stands for all that show it."""
    every = symbols(model.emission, data)
    assert trace.sums is not None
    weights = told_apart(model, trace.sums[: len(every), None])
    initial, transition, emission = closed_parts(model)
    return Statistics(
        model.initial.statistics(trace.first, None) if initial else None,
        model.transition.statistics(trace.counts, None) if transition else None,
        model.emission.statistics(every, None, weights, None) if emission else None,
    )
