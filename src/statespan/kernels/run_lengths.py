"""Run lengths from the beginning of a series: what every segment so far predicts, for all steps at once."""

from typing import Any

import torch
from torch import Tensor

from statespan.belief import select
from statespan.method import Prepared, Trace, register
from statespan.methods.run_lengths import RunLengthFilter, RunLengths, Seen, at_age, told, total
from statespan.parts.renewal import Renewal
from statespan.tree import leaves, tree_map

LARGEST = 2_000_000
"""Numbers in a table of steps by run lengths above which the scan is the faster, and takes less memory."""


@register(RunLengthFilter, Renewal, keeps=("predicted", "filtered", "last", "log_prob"))
def from_the_beginning(
    model: Any, method: RunLengthFilter, prepared: Prepared, length: int, batch: int, belief: Any, keep: frozenset[str]
) -> Trace | None:
    """The sums of all segments are running sums of windows; what is left for a loop is to grow and to sum up.

    It declines a belief carried in, a filter that drops run lengths, labels, and tables that would not fit.
    """
    seen: Seen = prepared.likelihoods
    if belief is not None or method.keep is not None or seen.y is None or seen.label is not None:
        return None
    size = min(length, model.transition.longest or length)
    wide = max(x[0, 0].numel() for x in leaves(seen.adds))
    if length * batch * size * wide > LARGEST:
        return None
    before = tree_map(lambda x: windows(x, size), seen.adds)
    ages = torch.arange(size, device=seen.y.device).repeat(length, batch, 1)
    every = tree_map(lambda x: x.flatten(0, 1), (ages, before, seen._replace(segment=None)))
    told_by = told(model, RunLengths(every[0], *every[:2]), every[2]._replace(segment=seen.segment.value))
    likelihoods = told_by.view(length, batch, size).unbind(0)
    ends, goes = at_age(prepared.moves.leave.value, ages[0]), at_age(prepared.moves.stay.value, ages[0])
    first = torch.nn.functional.pad(likelihoods[0].new_zeros(batch, 1), (0, size - 1), value=-torch.inf)
    befores, joints = [first], [first + likelihoods[0]]  # with y_<t, and with y_t
    for likelihood in likelihoods[1:]:
        log = joints[-1]
        befores.append(torch.cat([total(log + ends)[:, None], (log + goes)[:, :-1]], 1))
        joints.append(befores[-1] + likelihood)
    joint = torch.stack(joints)
    shares = total(joint)
    sooner = torch.nn.functional.pad(shares[:-1], (0, 0, 1, 0))
    trace = Trace(log_prob=(shares - sooner).double())
    if keep <= {"log_prob"}:
        return trace
    after = tree_map(lambda x, more: x + more[:, :, None], before, seen.adds)
    filtered = RunLengths(joint - shares[..., None], ages, after)
    end = torch.full((batch,), length, device=joint.device) if prepared.lengths is None else prepared.lengths
    return trace._replace(
        predicted=RunLengths(torch.stack(befores) - sooner[..., None], ages, before),
        filtered=filtered,
        last=select(filtered, end - 1),
    )


def windows(x: Tensor, size: int) -> Tensor:
    """Of (T, B, ...) the sums of the r rows before each, or of all there are, r = 0 .. size - 1: (T, B, R, ...)."""
    none = x.new_zeros(*x.shape[:2], 1, *x.shape[2:])
    if size == 1:
        return none
    padded = torch.cat([x.new_zeros(size - 1, *x.shape[1:]), x[:-1]])
    latest_first = padded.unfold(0, size - 1, 1).flip(-1).movedim(-1, 2)
    return torch.cat([none, latest_first.cumsum(2)], 2)
