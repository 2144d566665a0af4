"""Run lengths a window of steps at a time: all that its segments predict at once, then a compiled loop over rows."""

import sys
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from statespan.belief import select
from statespan.errors import StatespanError
from statespan.method import Prepared, Trace, register
from statespan.methods.run_lengths import RunLengthFilter, RunLengths, Seen, pick, told
from statespan.parts.renewal import Renewal
from statespan.tree import Shared, Tree, leaves, tree_map

from . import lanes

WINDOW = 128
"""Steps of a window at most."""

AT_ONCE = 250_000
"""Numbers that the predictions of a window take, about: more do not stay in a cache."""

LARGEST = 4e9
"""Bytes of beliefs, for all steps and run lengths, above which a question is refused."""


def _jit() -> ModuleType:
    from . import _jit_run_lengths

    return _jit_run_lengths


class Limits(NamedTuple):
    """How many rows are kept after a step, and the longest run length; more than there can be where there is none."""

    keep: int
    longest: int

    def rows(self, before: int, steps: int) -> int:
        """How many there are after so many steps."""
        return min(before + steps, self.keep, self.longest)


def limits(model: Any, method: RunLengthFilter) -> Limits:
    """Those of the method, and of the law of durations."""
    return Limits(method.keep or sys.maxsize, model.transition.longest or sys.maxsize)


class Window(NamedTuple):
    """Some steps: the data, the sums before each of every segment that it may lie in, (C, B, C + R), what these say."""

    seen: Seen
    sums: Tree
    told: Tensor

    def before(self, places: Tensor) -> Tree:
        """The sums at places (C, B, N) before each step."""
        return tree_map(lambda x: pick(x.flatten(0, 1), places.flatten(0, 1)).unflatten(0, x.shape[:2]), self.sums)

    def after(self, places: Tensor) -> Tree:
        """And once it is seen."""
        return tree_map(lambda x, more: x + more[:, :, None], self.before(places), self.seen.adds)

    def in_the_end(self, places: Tensor) -> Tree:
        """At places (B, N) after the last step."""
        return tree_map(lambda x, more: pick(x[-1], places) + more[-1][:, None], self.sums, self.seen.adds)


def following(seen: Seen, start: int, rows: int) -> slice:
    """The steps of the next window, where there are so many rows."""
    wide = max(x[0].numel() for x in leaves(seen.adds))
    return slice(start, min(start + min(WINDOW, max(8, AT_ONCE // (wide * (rows + WINDOW)))), len(seen.y)))


def window(model: Any, ages: Tensor, sums: Tree, seen: Seen, part: slice) -> Window:
    """What every segment predicts for some steps, those of before given by their run lengths then and their sums."""
    seen = tree_map(lambda x: x[part], seen)
    steps, batch = seen.y.shape[:2]

    def ahead(carried: Tensor, adds: Tensor) -> Tensor:
        sooner = torch.cat([torch.zeros_like(adds[:1]), adds[:-1]]).cumsum(0)
        return torch.cat([windows(adds, steps), carried + sooner[:, :, None]], 2)

    sums = tree_map(ahead, sums, seen.adds)
    count = torch.arange(steps, device=seen.y.device)
    older = ages + 1 + count[:, None, None]
    flat = tree_map(lambda x: x.flatten(0, 1), (sums, seen._replace(segment=None)))
    ages = torch.cat([count.expand(steps, batch, steps), older], 2).flatten(0, 1)
    rows = RunLengths(ages, ages, flat[0], ages)
    return Window(seen, sums, told(model, rows, flat[1]._replace(segment=seen.segment.value)).view(steps, batch, -1))


def windows(x: Tensor, size: int) -> Tensor:
    """Of (T, B, ...) the sums of the r rows before each, or of all there are, r = 0 .. size - 1: (T, B, R, ...)."""
    none = x.new_zeros(*x.shape[:2], 1, *x.shape[2:])
    if size == 1:
        return none
    padded = torch.cat([x.new_zeros(size - 1, *x.shape[1:]), x[:-1]])
    latest_first = padded.unfold(0, size - 1, 1).flip(-1).movedim(-1, 2)
    return torch.cat([none, latest_first.cumsum(2)], 2)


def none(model: Any, y: Tensor) -> RunLengths:
    """Before the first of the steps (T, B, D): no rows."""
    blank = y.new_zeros(y.shape[1], 0)
    sums = tree_map(lambda x: x.new_zeros(*blank.shape, *x.shape), model.emission.empty())
    return RunLengths(blank, blank.long(), sums, blank.sum(1).double())


class Table(NamedTuple):
    """Log-probabilities, run lengths, and places among what a window has, each (T, B, R)."""

    log: Tensor
    ages: Tensor
    places: Tensor


def table(steps: int, batch: int, rows: int) -> Table:
    """Room for one."""
    return Table(*[torch.empty(steps, batch, rows, dtype=x) for x in (torch.float64, torch.long, torch.long)])


def numbers(tree: Tree) -> Any:
    """Tensors as NumPy's arrays, in rows, and where they are real in double precision."""
    return tree_map(lambda x: (x.detach().double() if x.is_floating_point() else x).contiguous().numpy(), tree)


def over(batch: int, loop: Any, *given: Any) -> None:
    """The loop over all sequences, on torch's number of threads."""
    ranges = lanes.pieces(batch, lanes.available())
    lanes.parallel(lambda i: loop(*ranges[i], *given), len(ranges))


@register(RunLengthFilter, Renewal, keeps=("predicted", "filtered", "last", "log_prob", "smoothed"))
def in_windows(
    model: Any, method: RunLengthFilter, prepared: Prepared, length: int, batch: int, belief: Any, keep: frozenset[str]
) -> Trace | None:
    """It declines data without y, and a belief carried in that has a gradient, or more rows than are kept."""
    seen: Seen = prepared.likelihoods
    if seen.y is None or isinstance(seen.u, Shared):
        return None
    now = none(model, seen.y) if belief is None else belief.state
    carried = now.ages.shape[1]
    if carried > (method.keep or carried) or any(x.requires_grad for x in leaves(now)):
        return None
    most = limits(model, method)
    size = most.rows(carried if method.keep is None else most.keep, length)
    ends = torch.full((batch,), length) if prepared.lengths is None else prepared.lengths
    differ = "last" in keep and prepared.lengths is not None
    whole = bool(keep & {"filtered", "smoothed"}) or differ
    fields = 2 + len(leaves(now.sums)) * bool(keep & {"filtered", "predicted"})
    if (whole or "predicted" in keep) and 8 * fields * length * batch * size > LARGEST:
        raise StatespanError(
            f"{length * batch} steps by {size} run lengths take more than {LARGEST / 1e9:.0f} GB; follow the likeliest "
            "alone, method=ss.RunLengthFilter(keep=500), or give a law with a longest segment"
        )
    leave, stay = prepared.moves.leave.value, prepared.moves.stay.value
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in (leave, stay, *leaves(seen)))
    ahead = table(length * ("predicted" in keep), batch, min(size + (method.keep is not None), most.longest))
    after = table(length * (whole or learns), batch, size)
    log_prob, lost = torch.empty(2, length, batch, dtype=torch.float64)
    chosen, before, then, first = [], [], [], now
    part = slice(0, 0)
    while part.stop < length:
        part = following(seen, part.stop, now.ages.shape[1])
        here = window(model, now.ages, now.sums, seen, part)
        steps, rows = len(here.told), most.rows(now.ages.shape[1], len(here.told))
        kept = Table(*[x[part] for x in after]) if len(after.log) else table(steps, batch, rows)
        coming = Table(*[x[part] for x in ahead])
        given = numbers((here.told, now.log_probs, now.ages, leave, stay))
        begins = belief is None and part.start == 0
        out = numbers((tuple(coming), tuple(kept), log_prob[part], lost[part]))
        over(batch, _jit().grow, *given, *most, begins, *out)
        places = kept.places[-1, :, :rows]
        now = RunLengths(
            kept.log[-1, :, :rows], kept.ages[-1, :, :rows], here.in_the_end(places), now.lost + lost[part].sum(0)
        )
        if learns:
            chosen.append(here.told.gather(2, kept.places))
        if "predicted" in keep:
            before.append(here.before(coming.places))
        if "filtered" in keep or differ:
            then.append(here.after(kept.places))
    gone = first.lost + lost.cumsum(0)
    each = lambda table, sums, lost: RunLengths(table.log.to(seen.y), table.ages, joined(sums), lost)  # noqa: E731
    filtered = each(after, then, gone) if then else None
    smoothed = None
    if "smoothed" in keep:
        left = ends - 1 - torch.arange(length)[:, None]
        weights = weigh(after.log, after.ages, (leave, stay), (left == 0).double())[0]
        log = torch.where((left < 0)[..., None], after.log, weights.log())
        smoothed = RunLengths(log.to(seen.y), after.ages, None, gone)
    if learns:
        rows = after[:2]
        if belief is not None:
            rows = [torch.cat([x[None], more]) for x, more in zip(extended(first, size), rows, strict=False)]
        log_prob = _LogProb.apply(torch.cat(chosen), leave, stay, log_prob, *rows)
    return Trace(
        predicted=each(ahead, before, gone - lost) if before else None,
        filtered=filtered,
        last=select(filtered, ends - 1) if differ else extended(now, size),
        log_prob=log_prob,
        smoothed=smoothed,
    )


def joined(parts: list[Tree]) -> Tree:
    """Windows in their order, (T, B, ...)."""
    return tree_map(lambda *xs: torch.cat(xs), *parts)


def extended(belief: RunLengths, size: int) -> RunLengths:
    """With rows of no probability after the others, `size` of them in all."""
    log, ages, sums, _ = belief
    more = size - log.shape[1]
    if not more:
        return belief
    older = ages[:, -1:] + torch.arange(1, more + 1)
    blank = lambda x: torch.cat([x, x.new_zeros(len(x), more, *x.shape[2:])], 1)  # noqa: E731
    log = torch.nn.functional.pad(log, (0, more), value=-torch.inf)
    return belief._replace(log_probs=log, ages=torch.cat([ages, older], 1), sums=tree_map(blank, sums))


def weigh(log: Tensor, ages: Tensor, hazards: tuple[Tensor, Tensor], given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The derivative of sum over t of given_t log p(y_1..t) by what each step says of each row, and by log-hazards.

    Of log p(y_1..T) the first is what is known in hindsight.
    """
    out, ranges = torch.empty_like(log), lanes.pieces(log.shape[1], lanes.available())
    left, stayed = (torch.zeros(len(ranges), len(x), dtype=torch.float64) for x in hazards)
    rows, sums = numbers((log, ages, *hazards, given, out)), numbers((left, stayed))
    lanes.parallel(lambda i: _jit().weigh(*ranges[i], *rows, *[x[i] for x in sums]), len(ranges))
    return out, left.sum(0), stayed.sum(0)


class _LogProb(torch.autograd.Function):
    """log p(y_t | y_<t), (T, B), which is known already, with its gradient."""

    @staticmethod
    def forward(ctx: Any, told: Tensor, leave: Tensor, stay: Tensor, log_prob: Tensor, *rows: Tensor) -> Tensor:
        ctx.save_for_backward(told, leave, stay, log_prob, *rows)
        return log_prob.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        told, leave, stay, log_prob, log, ages = ctx.saved_tensors
        possible = log_prob > -torch.inf
        each = torch.where(possible, gradients[0], 0.0)
        given = each - torch.nn.functional.pad(each[1:], (0, 0, 0, 1))
        sooner = len(log) - len(told)  # a belief carried in
        weights, left, stayed = weigh(log, ages, (leave, stay), torch.nn.functional.pad(given, (0, 0, sooner, 0)))
        weights = torch.where(possible[..., None], weights[sooner:], 0.0).to(told)
        return weights, left.to(leave), stayed.to(stay), None, None, None


def segmentations(
    model: Any, method: RunLengthFilter, prepared: Prepared, final: Tensor, paths: int
) -> tuple[Tensor, Tensor]:
    """The likeliest segmentations as run lengths (T, B, k), -1 past each end, and log p(segmentation, y), (B, k)."""
    seen: Seen = prepared.likelihoods
    leave, stay = (numbers(x.value.cpu()) for x in (prepared.moves.leave, prepared.moves.stay))
    length, batch = seen.y.shape[:2]
    most = limits(model, method)
    path = torch.full((length, batch, paths), -1)
    origin = torch.zeros(2, length, batch, paths, dtype=torch.long)
    best = torch.zeros(batch, paths, dtype=torch.float64), *torch.zeros(2, batch, paths, dtype=torch.long)
    now = none(model, seen.y)
    score = now.log_probs.double()[..., None].expand(-1, -1, paths)
    part = slice(0, 0)
    while part.stop < length:
        part = following(seen, part.stop, now.ages.shape[1])
        here = window(model, now.ages, now.sums, seen, part)
        steps, rows = len(here.told), now.ages.shape[1]
        places = torch.arange(rows).expand(batch, -1) + steps
        room = [torch.cat([x, x.new_zeros(batch, steps, *x.shape[2:])], 1) for x in (score, now.ages, places)]
        counts = torch.full((batch,), rows)
        given = numbers((here.told.cpu(), (*room, counts)))
        out = numbers((final[:, 0] - part.start, tuple(origin[:, part]), best))
        over(batch, _jit().lengthen, *given, leave, stay, *most, *out)
        score, ages, places = (x[:, : int(counts[0])] for x in room)
        now = now._replace(ages=ages, sums=here.in_the_end(places))
    _jit().trace_back(*numbers((final[:, 0], *best[1:], *origin, path)))
    return path, best[0]
