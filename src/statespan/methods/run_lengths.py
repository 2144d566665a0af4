"""Changepoints, online and in hindsight: exact inference over how long the present segment has lasted."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from statespan.belief import choose
from statespan.errors import StatespanError
from statespan.method import Method, Prepared, prepare, scan
from statespan.parts.renewal import Renewal, SegmentStart
from statespan.parts.run_mixture import RunMixture
from statespan.parts.segments import Coefficients, Segment
from statespan.sequences import Sequences
from statespan.shapes import Float
from statespan.tree import Shared, Tree, stack, tree_map, unstack


class RunLengths(NamedTuple):
    """A distribution over run lengths, and what the segment of each has shown.

    Rows stand in the order of their ages, the one that begins now first; rows of probability zero may follow.

    Args:
        log_probs: (..., R), whose exponentials sum to one.
        ages: (..., R) integers, the run lengths: how many earlier steps the segment has had.
        sums: a tree of (..., R, ...), what the segment of each row has shown so far.
    """

    log_probs: Tensor
    ages: Tensor
    sums: Tree

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
        )

    def point(self) -> Tensor:
        """The likeliest run length, (...)."""
        return self.ages.gather(-1, self.log_probs.argmax(-1, keepdim=True))[..., 0]

    def summary(self) -> dict[str, Tensor]:
        """`probs` (..., R), and `ages`, the run length of each: 0, 1, 2, ... where none was dropped."""
        return {"probs": self.log_probs.exp(), "ages": self.ages}


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
    r_t = 0 collects what ended. A step costs as many predictions as there are run lengths, so T steps cost about T^2;
    with `keep` at most T times that many: only the likeliest run lengths go on, log_prob is the logarithm of the
    probability of y and the segmentations that were kept, a lower bound, and `Posterior.exact` is False.

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

    def __init__(self, keep: int | None = None):
        if keep is not None and keep < 2:
            raise StatespanError(f"RunLengthFilter(keep={keep}): keep at least two run lengths, or None for all")
        self.keep = keep

    def exact(self, model: Any) -> bool:
        """Where all run lengths are kept."""
        return self.keep is None

    def constants(self, model: Any) -> Constants:
        """Hazards, and the prior of a segment."""
        leave, stay = model.transition.hazards()
        return Constants(leave, stay, model.emission.constants())

    def prepare(self, model: Any, constants: Constants, data: Sequences) -> tuple[Move, Seen]:
        """What each observation adds to the sums of the segments it may lie in."""
        if data.powers is not None:
            raise StatespanError("a model of changepoints takes no weights of single steps; weight whole sequences")
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
        return RunLengths(log, ages, tree_map(lambda x: x.expand(batch, size, *x.shape), none))

    def predict(self, model: Any, belief: Any, move: Move) -> RunLengths:
        """Each segment ends or goes on."""
        log, ages, _ = belief.state
        ended, grown = log + at_age(move.leave, ages), log + at_age(move.stay, ages)
        return self._older(model, belief.state, move, total(ended)[:, None], grown)[0]

    def _older(
        self, model: Any, belief: RunLengths, move: Move, begun: Tensor, grown: Tensor
    ) -> tuple[RunLengths, Tensor]:
        """The rows a step later: a new one, and the others, given their log-probabilities, (B, R) or (B, R, k)."""
        log, ages, sums = belief
        last = grown[:, -1] > -torch.inf
        size = self._rows(model, log.shape[1], move, bool(last.any()))
        new = shifted(begun, grown, size, -torch.inf)
        count = torch.arange(max(size - ages.shape[1], 0), device=ages.device)
        ages = torch.cat([torch.zeros_like(ages[:, :1]), ages + 1, ages[:, -1:] + 2 + count], 1)[:, :size]
        sums = tree_map(lambda x: shifted(torch.zeros_like(x[:, :1]), x, size), sums)
        return RunLengths(new if new.dim() == 2 else new[..., 0], ages, sums), new

    def update(self, model: Any, belief: RunLengths, likelihood: Seen) -> tuple[RunLengths, Float[Tensor, " B"]]:
        """Weigh every run length by what its segment predicted, and add y to the sums."""
        log, ages, sums = belief
        share = torch.zeros_like(log[:, 0])
        if likelihood.y is not None:
            joint = log + told(model, belief, likelihood)
            share = total(joint)
            possible = share > -torch.inf
            log = torch.where(possible[:, None], joint - torch.where(possible, share, 0.0)[:, None], log)
            sums = tree_map(lambda x, more: x + more[:, None], sums, likelihood.adds)
        if self.keep is None:
            return RunLengths(log, ages, sums), share.double()
        row = likeliest(log, self.keep)
        log = log.gather(1, row)
        rest = total(log)  # what is dropped is taken off the probability
        kept = RunLengths(log - rest[:, None], ages.gather(1, row), tree_map(lambda x: pick(x, row), sums))
        return kept, (share + rest).double()

    def backward(self, model: Any, belief: Any, move: Move, later: Any) -> RunLengths:
        """What was a step older at the next step, and what ended where the next segment begins."""
        _, ages, sums = belief.state
        _, chances = self._ends(belief.state, move, later)
        at = torch.searchsorted(later.ages.contiguous(), ages + 1).clamp_max(later.ages.shape[1] - 1)
        lasted = torch.where(later.ages.gather(1, at) == ages + 1, later.log_probs.gather(1, at), -torch.inf)
        return RunLengths(torch.logaddexp(lasted, chances), ages, sums)

    def _ends(self, belief: RunLengths, move: Move, later: RunLengths) -> tuple[Tensor, Tensor]:
        """Log-probabilities that the next step begins a segment, (B, 1), and that this row's ends here, (B, R)."""
        ended = belief.log_probs + at_age(move.leave, belief.ages)
        share = total(ended)[:, None]
        begins = torch.where(later.ages[:, :1] == 0, later.log_probs[:, :1], -torch.inf)
        return begins, begins + torch.where(share > -torch.inf, ended - share, -torch.inf)

    def smooth(self, model: Any, prepared: Prepared, belief: Any, shape: tuple[int, int]) -> RunLengths:
        """One loop forwards and one back; the sums, which are those of what was known then, are not kept."""
        steps = scan(model, self, prepared, *shape, belief)
        return stack(self._hindsight(model, prepared, [x.filtered._replace(sums=None) for x in steps]))

    def _hindsight(self, model: Any, prepared: Prepared, filtered: list[RunLengths]) -> list[RunLengths]:
        moves, out = unstack(prepared.moves, len(filtered)), [filtered[-1]]
        for t in range(len(filtered) - 2, -1, -1):
            now = self.backward(model, filtered[t], moves[t + 1], out[-1])
            if prepared.lengths is not None:
                inside = (prepared.lengths - 1 > t)[:, None]
                now = now._replace(log_probs=torch.where(inside, now.log_probs, filtered[t].log_probs))
            out.append(now)
        return out[::-1]

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
        filtered = [step.filtered for step in scan(model, self, prepared, length, batch)]
        smoothed = self._hindsight(model, prepared, filtered)
        moves, empty = unstack(prepared.moves, length), tree_map(lambda x: x[None, None], model.emission.empty())
        final = last_steps(data)
        # Of each step's segments what begins there, less what ended before it: their running sum is what holds it.
        shapes = [x.shape[2:] for x in summaries(model.emission.coefficients(empty, constants.segment))]
        held = [data.y.new_zeros(batch, length + 1, *shape) for shape in shapes]
        for t, now in enumerate(filtered):
            weights = torch.where(final == t, smoothed[t].log_probs, -torch.inf)
            if t + 1 < length:
                chances = self._ends(now, moves[t + 1], smoothed[t + 1])[1]
                weights = torch.where(final > t, chances, weights)
            begins = (t - now.ages).clamp_min(0)
            for sums, values in zip(
                held, summaries(model.emission.coefficients(now.sums, constants.segment)), strict=True
            ):
                share = like(weights.exp(), values)
                values = torch.where(share > 0, share * values, 0.0)
                sums.scatter_add_(1, like(begins, values).expand_as(values), values)
                sums[:, t + 1] -= values.sum(1)
        first, second, wide = (x.cumsum(1)[:, :length].transpose(0, 1) for x in held)
        x = model.emission.design(data.y, data.u)[:, :, None]
        mean = (x * first).sum(-1)
        square = (x[..., None, :] @ second @ x[..., :, None])[..., 0, 0]
        return mean, torch.where(wide > 1e-9, torch.inf, (square - mean.square()).clamp_min(0))

    def decode(self, model: Any, constants: Constants, data: Sequences, k: int) -> tuple[Tensor, Tensor]:
        """The k likeliest segmentations as run lengths (T, B, k), -1 past each end, and log p(segmentation, y).

        Source:
            Fearnhead 2006, section 3.2 (the maximum a posteriori segmentation).
        """
        length, batch = data.shape
        moves, seen = self.prepare(model, constants, data)
        moves, seen = unstack(moves, length), unstack(seen, length)
        final = last_steps(data)
        now = self.init(model, moves[0], batch)
        score = torch.nn.functional.pad(now.log_probs[..., None], (0, k - 1), value=-torch.inf)
        last, origins = (score, now.ages), [(now.ages[:, :1], now.ages[:, :1])]
        for t in range(length):
            if t:
                ways = (score + at_age(moves[t].leave, now.ages)[..., None]).flatten(1)
                ways = ways.sort(dim=1, descending=True, stable=True)
                at = ways.indices[:, :k]
                origins.append((now.ages.gather(1, at // k), at % k))
                grown = score + at_age(moves[t].stay, now.ages)[..., None]
                now, score = self._older(model, now, moves[t], ways.values[:, None, :k], grown)
            score = score + told(model, now, seen[t])[..., None]
            now = now._replace(sums=tree_map(lambda x, more: x + more[:, None], now.sums, seen[t].adds))
            if self.keep is not None:
                row = likeliest(score[..., 0], self.keep)
                now, score = tree_map(lambda x, row=row: pick(x, row), (now, score))
            last = tuple(
                torch.where(like(final == t, new), new, old) if t else new
                for new, old in zip((score, now.ages), last, strict=True)
            )
        best = last[0].flatten(1).sort(dim=1, descending=True, stable=True)
        age, rank = last[1].gather(1, best.indices[:, :k] // k), best.indices[:, :k] % k
        path = torch.full((length, batch, k), -1, device=age.device)
        for t in range(length - 1, -1, -1):
            inside = final >= t
            path[t] = torch.where(inside, age, -1)
            begins, (before, place) = inside & (age == 0), origins[t]
            older = torch.where(inside, age - 1, age)
            if t:
                age, rank = (
                    torch.where(begins, before.gather(1, rank), older),
                    torch.where(begins, place.gather(1, rank), rank),
                )
        return path, best.values[:, :k]


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
