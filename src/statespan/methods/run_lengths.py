"""Changepoints, online and in hindsight: exact inference over how long the present segment has lasted."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from statespan.belief import choose
from statespan.errors import StatespanError
from statespan.method import Hindsight, Method, Prepared, prepare, run, smooth_backward
from statespan.parts.renewal import Renewal, SegmentStart
from statespan.parts.run_mixture import RunMixture
from statespan.parts.segments import Coefficients, Segment
from statespan.sequences import Sequences
from statespan.shapes import Float
from statespan.tree import Shared, Tree, tree_map

AT_ONCE = 1_000_000
"""Run lengths of many steps whose segments are summed up together, at most."""


class RunLengths(NamedTuple):
    """A distribution over run lengths, and what the segment of each has shown.

    Rows stand in the order of their ages, the one that begins now first; rows of probability zero may follow.

    Args:
        log_probs: (..., R), whose exponentials sum to one.
        ages: (..., R) integers, the run lengths: how many earlier steps the segment has had.
        sums: a tree of (..., R, ...), what the segment of each row has shown so far.
        lost: (...) how probable the rows were that have been dropped so far, each when it was dropped, added up. Under
            the model this is on average at least the probability, given all there is to come, that one of them was
            right.
    """

    log_probs: Tensor
    ages: Tensor
    sums: Tree
    lost: Tensor

    @property
    def state(self) -> "RunLengths":
        """Itself."""
        return self

    @property
    def fed(self) -> None:
        """Nothing: the sums are part of the state."""
        return None

    def draw(self) -> "RunLengths":
        """One row, drawn by its probability."""
        row = choose(self.log_probs.exp())[..., None]
        return RunLengths(
            torch.zeros_like(self.log_probs[..., :1]),
            self.ages.gather(-1, row),
            tree_map(lambda x: pick(x, row), self.sums),
            self.lost,
        )

    def point(self) -> Tensor:
        """The likeliest run length, (...)."""
        return self.ages.gather(-1, self.log_probs.argmax(-1, keepdim=True))[..., 0]

    def summary(self) -> dict[str, Tensor]:
        """`probs` (..., R), `ages`, the run length of each: 0, 1, 2, ... where none was dropped; and `lost` (...)."""
        return {"probs": self.log_probs.exp(), "ages": self.ages, "lost": self.lost}


class Constants(NamedTuple):
    """Log-probabilities that a segment of 1, 2, ... steps ends, and goes on; what the emission made of its own."""

    leave: Tensor
    stay: Tensor
    segment: Tree


class Move(NamedTuple):
    """The log-hazards of ending and of going on, and how many rows to make room for before this step."""

    leave: Tree
    stay: Tree
    room: Tensor


class Seen(NamedTuple):
    """y_t, the inputs, which coordinates are there (1 or 0), what y_t adds to the sums, a known run length or -1."""

    y: Tree
    u: Tree
    there: Tree
    adds: Tree
    label: Tree
    segment: Tree


class RunLengthFilter(Method):
    r"""The filter and smoother of segments: the probability of each run length, and the sums of its segment.

    p(r_t = r + 1, y_1..t) = p(r_{t-1} = r, y_1..t-1) p(the segment goes on | r) p(y_t | y_{t-r-1}..y_{t-1}), and
    r_t = 0 collects what ended. A step costs as many predictions as there are run lengths, so T steps cost about T^2,
    and where every step's are asked for their memory too: a long series is refused there. With `keep` they cost T times
    that many: only the likeliest run lengths go on, log_prob is the logarithm of the probability of y and the
    segmentations that were kept, a lower bound, and `Posterior.exact` is False. `.values["lost"]` (N, T) says what has
    been dropped up to each step: the sum of the probabilities of the run lengths dropped, given y so far.

    Hindsight is exact too: given the next run length, the present one depends on nothing later.

    Args:
        keep: how many run lengths go on from a step; None: all.

    Raises:
        StatespanError: fewer than two are kept.

    Source:
        Adams and MacKay, "Bayesian online changepoint detection", 2007; in hindsight: Fearnhead, "Exact and efficient
        Bayesian inference for multiple changepoint problems", 2006; keeping some: Fearnhead and Liu, "On-line inference
        for multiple changepoint problems", 2007.

    Example:
        >>> import statespan as ss
        >>> model, y = ss.changepoints(ss.PoissonSegment(scale=5.0), hazard=0.1), [1, 0, 9, 12, 14]
        >>> bool(model.log_prob(y) > model.log_prob(y, method=ss.RunLengthFilter(keep=2)))
        True
    """

    accepts = (SegmentStart, Renewal, Segment)
    takes_powers = False

    def __init__(self, keep: int | None = None):
        if keep is not None and keep < 2:
            raise StatespanError(f"RunLengthFilter(keep={keep}): keep at least two run lengths, or None for all")
        self.keep = keep

    def exact(self, model: Any) -> bool:
        """Where all run lengths are kept."""
        return self.keep is None

    def foretells(self, model: Any) -> bool:
        """By formula, of the run lengths that are kept."""
        return True

    def constants(self, model: Any) -> Constants:
        """Hazards, and the prior of a segment."""
        leave, stay = model.transition.hazards()
        return Constants(leave, stay, model.emission.constants())

    def prepare(self, model: Any, constants: Constants, data: Sequences) -> tuple[Move, Seen]:
        """What each observation adds to the sums of the segments it may lie in."""
        if data.states is not None and data.states.dim() == 3:
            raise StatespanError("a model of changepoints takes run lengths as labels, 0 where a segment begins, or -1")
        room = torch.zeros(data.shape[0], dtype=torch.long)
        room[0] = len(room)
        there = adds = None
        if data.y is not None:
            there, present = torch.ones_like(data.y), data.present
            if present is not None:
                there = (present if present.dim() == 3 else present[..., None]).expand_as(there).to(there)
            adds = model.emission.sums(data.y, data.u, there, constants.segment)
        seen = Seen(data.y, data.u, there, adds, data.states, Shared(constants.segment))
        return Move(Shared(constants.leave), Shared(constants.stay), room), seen

    def _rows(self, model: Any, rows: int, move: Move, last: bool) -> int:
        """How many rows a prediction has: as many at every step of a window, so that its beliefs can be stacked.

        The row that comes after the last is left away only where it has no probability.
        """
        longest = model.transition.longest
        if self.keep is not None:
            return min(self.keep + 1, longest or self.keep + 1)
        size = rows + max(int(move.room), int(last))
        return min(size, longest or size)

    def init(self, model: Any, move: Move, batch: int) -> RunLengths:
        """A segment begins."""
        size, none = self._rows(model, 0, move, True), model.emission.empty()
        leave: Any = move.leave
        log = torch.full((batch, size), -torch.inf, dtype=leave.dtype, device=leave.device)
        log[:, 0] = 0.0
        ages = torch.arange(size, device=log.device).repeat(batch, 1)
        sums = tree_map(lambda x: x.expand(batch, size, *x.shape), none)
        return RunLengths(log, ages, sums, log.new_zeros(batch, dtype=torch.float64))

    def predict(self, model: Any, belief: Any, move: Move) -> RunLengths:
        """Each segment ends or goes on."""
        log, ages, sums, lost = belief.state
        ended, grown = log + at_age(move.leave, ages), log + at_age(move.stay, ages)
        size = self._rows(model, log.shape[1], move, bool((grown[:, -1] > -torch.inf).any()))
        new = shifted(total(ended)[:, None], grown, size, -torch.inf)
        count = torch.arange(max(size - ages.shape[1], 0), device=ages.device)
        ages = torch.cat([torch.zeros_like(ages[:, :1]), ages + 1, ages[:, -1:] + 2 + count], 1)[:, :size]
        return RunLengths(new, ages, tree_map(lambda x: shifted(torch.zeros_like(x[:, :1]), x, size), sums), lost)

    def update(self, model: Any, belief: RunLengths, likelihood: Seen) -> tuple[RunLengths, Float[Tensor, " B"]]:
        """Weigh every run length by what its segment predicted, and add y to the sums."""
        log, ages, sums, lost = belief
        share = torch.zeros_like(log[:, 0])
        if likelihood.y is not None:
            joint = log + told(model, belief, likelihood)
            share = total(joint)
            possible = share > -torch.inf
            log = torch.where(possible[:, None], joint - torch.where(possible, share, 0.0)[:, None], log)
            sums = tree_map(lambda x, more: x + more[:, None], sums, likelihood.adds)
        if self.keep is None:
            return RunLengths(log, ages, sums, lost), share.double()
        row = likeliest(log, self.keep)
        log = log.gather(1, row)
        rest = total(log)  # what is dropped is taken off the probability
        sums = tree_map(lambda x: pick(x, row), sums)
        kept = RunLengths(log - rest[:, None], ages.gather(1, row), sums, lost - rest.double().expm1())
        return kept, (share + rest).double()

    def backward(self, model: Any, belief: Any, move: Move, later: Any) -> RunLengths:
        """What was a step older at the next step, and what ended where the next segment begins."""
        ages = belief.state.ages
        _, chances = self._ends(belief.state, move.leave, later)
        at = torch.searchsorted(later.ages.contiguous(), ages + 1).clamp_max(later.ages.shape[1] - 1)
        lasted = torch.where(later.ages.gather(1, at) == ages + 1, later.log_probs.gather(1, at), -torch.inf)
        return belief.state._replace(log_probs=torch.logaddexp(lasted, chances))

    def _ends(self, belief: RunLengths, leave: Any, later: RunLengths) -> tuple[Tensor, Tensor]:
        """Log-probabilities that the next step begins a segment, (..., 1), and that this row's ends here, (..., R)."""
        ended = belief.log_probs + at_age(leave, belief.ages)
        share = total(ended)[..., None]
        begins = torch.where(later.ages[..., :1] == 0, later.log_probs[..., :1], -torch.inf)
        return begins, begins + torch.where(share > -torch.inf, ended - share, -torch.inf)

    def smooth(self, model: Any, prepared: Prepared, belief: Any, shape: tuple[int, int]) -> RunLengths:
        """One loop forwards and one back; the sums, which are those of what was known then, are not kept."""
        return smooth_backward(model, self, prepared, belief, shape)._replace(sums=None)

    def hindsight(self, model: Any, prepared: Prepared, belief: Any, data: Sequences, pairs: bool = False) -> Hindsight:
        """By the kernel where it can."""
        if not pairs:
            trace = run(model, self, data, belief, ("smoothed", "log_prob"), prepared=prepared)
            if trace.smoothed is not None:
                assert trace.log_prob is not None
                return Hindsight(trace.smoothed, trace.log_prob)
        return super().hindsight(model, prepared, belief, data, pairs)

    def emit(self, model: Any, constants: Constants, belief: Any, u: Tree) -> RunMixture:
        """The mixture over run lengths of what their segments predict."""
        state = belief.state
        return RunMixture(state.log_probs, model.emission.predictive(state.sums, beside(u), constants.segment))

    def fill(self, model: Any, constants: Constants, data: Sequences) -> Tensor:
        """The mean of the segments that each step may lie in."""
        return self.segment_means(model, constants, data)[0]

    def segment_means(self, model: Any, constants: Constants, data: Sequences) -> tuple[Tensor, Tensor]:
        r"""The posterior mean and variance of E[y_t | the parameters of its segment], given all of y: (T, B, D).

        A segment is known when it ends: how probable it is, and by its sums its parameters. Each step averages over
        the segments that hold it.

        Source:
            Fearnhead 2006, section 3.
        """
        length, batch = data.shape
        prepared = prepare(model, self, data, constants)
        now = run(model, self, data, keep=("filtered",), prepared=prepared).filtered
        later = self.hindsight(model, prepared, None, data).smoothed
        step, final = torch.arange(length, device=now.ages.device)[:, None, None], last_steps(data)
        log = torch.where(step == final, later.log_probs, -torch.inf)
        leave: Any = prepared.moves.leave
        chances = self._ends(tree_map(lambda x: x[:-1], now), leave.value, tree_map(lambda x: x[1:], later))[1]
        log[:-1] = torch.where(step[:-1] < final, chances, log[:-1])
        # Of each step's segments what begins there, less what ended before it: their running sum is what holds it.
        empty = tree_map(lambda x: x[None, None], model.emission.empty())
        shapes = [x.shape[2:] for x in summaries(model.emission.coefficients(empty, constants.segment))]
        held = [data.y.new_zeros(batch, length + 1, *shape) for shape in shapes]
        size = max(1, AT_ONCE // log[0].numel())
        for part in (slice(t, t + size) for t in range(0, length, size)):
            share, begins = log[part].exp(), (step[part] - now.ages[part]).clamp_min(0)
            known = model.emission.coefficients(tree_map(lambda x, part=part: x[part], now.sums), constants.segment)
            for sums, values in zip(held, summaries(known), strict=True):
                weights = share.view(*share.shape, *[1] * (values.dim() - 3))
                values = torch.where(weights > 0, weights * values, 0.0).transpose(0, 1)  # (B, T, R, ...)
                sums[:, 1:][:, part] -= values.sum(2)
                values = values.flatten(1, 2)
                sums.scatter_add_(1, like(begins.transpose(0, 1).flatten(1), values).expand_as(values), values)
        first, second, wide = (x.cumsum(1)[:, :length].transpose(0, 1) for x in held)
        x = model.emission.design(data.y, data.u)[:, :, None]
        mean = (x * first).sum(-1)
        square = (x[..., None, :] @ second @ x[..., :, None])[..., 0, 0]
        return mean, torch.where(wide > 1e-9, torch.inf, (square - mean.square()).clamp_min(0))

    def decode(self, model: Any, constants: Constants, data: Sequences, k: int) -> tuple[Tensor, Tensor]:
        """The k likeliest segmentations as run lengths (T, B, k), -1 past each end, and log p(segmentation, y).

        With `keep` the best of the segments that look likeliest go on.

        Source:
            Fearnhead 2006, section 3.2 (the maximum a posteriori segmentation).
        """
        from statespan.kernels.run_lengths import segmentations

        return segmentations(model, self, prepare(model, self, data, constants), last_steps(data), k)


def last_steps(data: Sequences) -> Tensor:
    """The last step of each sequence, (B, 1)."""
    length, batch = data.shape
    ends = torch.full((batch,), length, device=data.device) if data.lengths is None else data.lengths
    return ends[:, None] - 1


def at_age(table: Any, ages: Tensor) -> Tensor:
    """A table of hazards by age, (D,), at ages (B, R): its last entry holds from there on."""
    return table if len(table) == 1 else table[ages.clamp_max(len(table) - 1)]


def beside(u: Tree) -> Tree:
    """Inputs (..., U) for every run length, (..., 1, U)."""
    return None if u is None else u[..., None, :]


def told(model: Any, belief: RunLengths, seen: Seen) -> Tensor:
    """Log p(y_t | the segment of each row), (B, R); impossible where the run length is known to be another."""
    there, y = seen.there[:, None], seen.y[:, None]
    log = model.emission.log_predictive(belief.sums, y, beside(seen.u), there, seen.segment)
    if seen.label is None:
        return log
    return torch.where((seen.label < 0)[:, None] | (belief.ages == seen.label[:, None]), log, -torch.inf)


def total(log: Tensor) -> Tensor:
    """Log of the sum of exponentials over the last axis; minus infinity, and no gradient, where all are impossible."""
    least = torch.finfo(log.dtype).min / 4
    value = log.clamp_min(least).logsumexp(-1)
    return torch.where(value > least / 2, value, -torch.inf)


def likeliest(log: Tensor, count: int) -> Tensor:
    """The first row of (B, R) and those of the largest log-probability, in their order: (B, count) or all."""
    chosen = torch.nn.functional.pad(log[:, 1:], (1, 0), value=torch.inf).topk(min(count, log.shape[1])).indices
    return chosen.sort(dim=1).values


def like(x: Tensor, values: Tensor) -> Tensor:
    """(B, R) with axes of length one for those of (B, R, ...)."""
    return x.view(*x.shape, *[1] * (values.dim() - 2))


def pick(x: Tensor, row: Tensor) -> Tensor:
    """The rows (B, n) of (B, R, ...)."""
    return x.gather(1, like(row, x).expand(*row.shape, *x.shape[2:]))


def shifted(first: Tensor, x: Tensor, size: int, value: float = 0.0) -> Tensor:
    """A row before those of (B, R, ...), and then as many of `value` as make `size` of them, or the last cut off."""
    x = torch.cat([first, x], 1)[:, :size]
    more = size - x.shape[1]
    return torch.cat([x, x.new_full((len(x), more, *x.shape[2:]), value)], 1) if more else x


def summaries(known: Coefficients) -> tuple[Tensor, Tensor, Tensor]:
    """First and second moments of coefficients, and 1 where the second are infinite."""
    wide = known.covariance.isinf().any(-1).any(-1)
    covariance = torch.where(wide[..., None, None], 0.0, known.covariance)
    return known.mean, covariance + known.mean[..., :, None] * known.mean[..., None, :], wide.to(known.mean)
