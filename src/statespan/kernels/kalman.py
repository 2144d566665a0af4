"""The Kalman filter and smoother of whole batches.

Covariances do not depend on y: series with the same matrices and gaps share them, and where nothing changes in time
they settle and are computed no further. Always in float64, whatever the model's dtype. The gradient is that of the
recursion written on covariances, reversed.
"""

from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from statespan.belief import Diffuse, Gaussian, Steady
from statespan.kernels import lanes
from statespan.method import Prepared, Trace, register
from statespan.methods import Kalman
from statespan.part import LinearPart
from statespan.tree import Shared, Tree, leaves, stack, tree_map, unstack

#: What is asked for, as the loops have it.
FILTERED, PREDICTED, LAST, PAIRS = 1, 2, 4, 8

#: Steps whose matrices are kept at a time.
CHUNK = 512

#: Fewer series than this are done one by one: most lanes would be empty.
FEW, LANES = 4, 8


def _jit() -> ModuleType:
    from . import _jit_kalman

    return _jit_kalman


class Matrices(NamedTuple):
    """A, b, q of the moves and C, r, y of the observations, (steps, series, ...), 1 where nothing changes."""

    A: Tensor
    b: Tensor
    q: Tensor
    C: Tensor
    r: Tensor
    y: Tensor

    @property
    def shared(self) -> bool:
        """Whether all series have the same covariances."""
        return all(x.shape[1] == 1 for x in (self.A, self.q, self.C, self.r))


def _whole(tree: Tree, rank: int) -> Tensor:
    """(steps, series, ...) of a prepared field."""
    x = tree.value if isinstance(tree, Shared) else tree
    return x.view(*[1] * (rank + 2 - x.dim()), *x.shape)


def _matrices(prepared: Prepared, start: int) -> Matrices:
    moves, seen = prepared.moves, prepared.likelihoods
    fields = [
        *(_whole(x, rank) for x, rank in zip(moves, (2, 1, 2), strict=True)),
        *(_whole(x, 2) for x in (seen.matrix, seen.scale)),
        seen.y,
    ]
    return Matrices(*[x.double() if len(x) == 1 else x[start:].double() for x in fields])


class _Run(NamedTuple):
    """What the loops wrote; of roots that series share there is one, and where they settled only some were written.

    Filtered and predicted ones from step `own` on are as the one before; smoothed ones of the steps own - 1 ... late as
    that of `late` (-1: each is there).
    """

    log_prob: Tensor
    filtered: Gaussian | None
    predicted: Gaussian | None
    last: Gaussian | None
    own: int
    pairs: Tensor | None = None
    late: int = -1


def _empty(*shape: int) -> Tensor:
    """Float64, in huge pages where the system has them, which NumPy asks for: to touch small ones costs as much."""
    return torch.from_numpy(np.empty(shape))


def _array(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy()


class _Job(NamedTuple):
    """Series low ... high - 1 of one group: which group, how many steps, the column of roots they write (-1: none).

    The filtered roots of the steps before `marks` are written from place `mark` on.
    """

    low: int
    high: int
    group: int
    length: int
    write: int
    marks: np.ndarray
    mark: int


class _Out(NamedTuple):
    """What the loops write."""

    log_prob: np.ndarray
    means: np.ndarray
    roots: np.ndarray
    ahead: np.ndarray
    ahead_roots: np.ndarray
    last_roots: np.ndarray
    pairs: np.ndarray


class _Loops:
    """Filters one group after the other in the same room, and smooths it where `smooth` says so."""

    def __init__(self, given: Matrices, start: Gaussian, longest: int, steady: float, smooth: bool, wanted: int):
        self.matrices = [_array(x) for x in given]
        self.mean, self.root = _array(start.mean), _array(start.scale)
        still = all(len(x) == 1 for x in (given.A, given.q, given.C, given.r))
        self.steady, self.smooth, self.wanted, self.jit = steady if still else 0.0, smooth, wanted, _jit()
        self.chunk, self.dim, outputs = min(longest, CHUNK), given.A.shape[-1], given.y.shape[-1]
        offset = self.dim if given.b[..., 0].numel() > 1 else 1
        rows = self.dim + outputs + self.dim * bool(wanted & PREDICTED)
        self.wide, size = -(-self.dim // LANES) * LANES, -(-rows // LANES) * LANES
        step, back = (outputs + offset + self.dim) * size, (self.dim + offset + self.dim) * self.wide
        self.steps = np.empty(self.chunk * step), np.empty(self.chunk), np.empty(self.chunk, np.int64)
        self.kept = [np.empty(longest * self.dim * self.wide if smooth else 0) for _ in range(2)]
        self.back = np.empty(self.chunk * back if smooth else 0)

    def run(self, job: _Job, out: _Out) -> tuple[int, int]:
        """One group; how many steps have roots of their own, and from where back the smoothed ones have settled."""
        A, b, q, C, r, _ = self.matrices
        X, after = np.zeros((2, self.dim, self.wide))
        X[:, : self.dim] = self.root[job.group if len(self.root) > 1 else 0].T
        now, last = self._begin(job), job.length - 1 if self.smooth else 0
        t0, t1, own, late = 0, 0, job.length, -1
        while t1 < job.length:
            t0 = t1
            steps, settled = self.jit.forward_covariances(
                A, q, b, C, r, job.group, t0, min(self.chunk, job.length - t0), job.length, self.steady, X, after,
                *self.steps, *self.kept, self.smooth, self.wanted, job.write >= 0 and not self.smooth, out.roots,
                out.ahead_roots, job.marks, job.mark, out.last_roots,
            )  # fmt: skip
            t1 = t0 + steps
            if settled:
                own, t1 = t1, job.length
                if out.roots.shape[1] > 1 and not self.smooth:
                    for roots in (out.roots, out.ahead_roots):
                        roots[own:, job.write] = roots[own - 1 : own, job.write]
            self._means(job, now, t0, t1, t0, own - 1, last, out)
        if self.wanted & LAST:
            out.last_roots[job.mark : job.mark + len(job.marks)][job.marks > own] = after[:, : self.dim].T
        if self.smooth:
            for begin in range(t0, -1, -self.chunk):
                end = min(begin + self.chunk if begin < t0 else job.length, job.length - 1)
                found = self.jit.backward_covariances(
                    A, b, job.group, begin, end, own, begin == t0, self.steady, after, *self.kept, self.back, job.write,
                    out.roots, bool(self.wanted & PAIRS), out.pairs,
                )  # fmt: skip
                late = max(late, found)
                self._means(job, now, begin, begin, end, own - 1, last, out)
        return own, late

    def _begin(self, job: _Job) -> np.ndarray:
        """The means of the start, as the loops over means have them."""
        mean = self.mean[job.low : job.high]
        if len(mean) < FEW:
            return mean.copy()
        return np.ascontiguousarray(mean.reshape(-1, LANES, self.dim).transpose(0, 2, 1))

    def _means(self, job: _Job, now: np.ndarray, t0: int, t1: int, end: int, filled: int, last: int, out: _Out) -> None:
        """Filtered means of the steps t0 ... t1 - 1, then smoothed ones of the steps end - 1 ... t0."""
        _, b, *_, y = self.matrices
        given = (t0, t1, end, filled, last, b, y, *self.steps, self.back)
        written = (self.wanted, out.log_prob, out.means, out.ahead)
        if job.high - job.low >= FEW:
            self.jit.many_series(job.low, job.high, *given, now, *written)
            return
        for s, row in zip(range(job.low, job.high), now, strict=True):
            self.jit.one_series(s, *given, row, *written)


def _run(given: Matrices, start: Gaussian, ends: Tensor, steady: float, wanted: int, smooth: bool = False) -> _Run:
    """Filters from the predicted belief of the first step; with `smooth` the smoothed moments stand for the filtered.

    Series that share covariances are cut into pieces for the threads; the first piece writes the roots that all share.
    """
    series, dim = given.y.shape[1], given.A.shape[-1]
    shared = given.shared and start.scale.shape[0] == 1
    if smooth and shared and bool((ends != ends[0]).any()):
        return _by_length(given, start, ends, steady, wanted)
    if shared and series >= FEW and series % LANES:
        given, start = _filled_up(given, start)
    length, batch = given.y.shape[:2]
    marks, of = np.zeros(0, np.int64), ends
    if wanted & LAST:
        distinct, of = ends.unique(return_inverse=True) if shared else (ends, torch.arange(batch))
        marks = distinct.numpy()
    threads, steps = torch.get_num_threads(), int(ends[0])
    if shared:
        columns, each = 1, LANES if batch >= FEW else 1
        jobs = [
            _Job(low * each, high * each, 0, steps if smooth else length, -bool(i), marks[: 0 if i else None], 0)
            for i, (low, high) in enumerate(lanes.pieces(batch // each, threads))
        ]
    else:
        columns = batch
        each = enumerate(ends.tolist())
        jobs = [_Job(s, s + 1, s, end if smooth else length, s, marks[s : s + 1], s) for s, end in each]
    wanted |= FILTERED * bool(wanted & LAST)
    blank = smooth and not shared

    def kept(asked: int, *shape: int) -> Tensor:
        x = _empty(*shape) if asked else _empty(0, *shape[1:])
        return x.zero_() if blank else x

    log_prob, rows = _empty(length, batch), (length, columns, dim, dim)
    means, roots = kept(wanted & FILTERED, length, batch, dim), kept(wanted & FILTERED, *rows)
    ahead, ahead_roots = kept(wanted & PREDICTED, length, batch, dim), kept(wanted & PREDICTED, *rows)
    last_roots, pairs = _empty(len(marks), dim, dim), kept(wanted & PAIRS, length - 1, columns, dim, dim)
    out = _Out(*(x.numpy() for x in (log_prob, means, roots, ahead, ahead_roots, last_roots, pairs)))
    parts, found = lanes.pieces(len(jobs), threads if shared else 4 * threads), [(length, -1)]

    def some(i: int) -> None:
        loops = _Loops(given, start, length, steady, smooth, wanted)
        for job in jobs[slice(*parts[i])]:
            known = loops.run(job, out)
            if job.write >= 0:
                found[0] = known

    lanes.parallel(some, len(parts))
    own, late = found[0] if shared else (length, -1)
    if wanted & PAIRS and late >= own:
        pairs[own - 1 : late] = pairs[late]
    means, ahead = means[:, :series], ahead[:, :series]
    return _Run(
        log_prob[:, :series],
        Gaussian(means, roots) if wanted & FILTERED else None,
        Gaussian(ahead, ahead_roots) if wanted & PREDICTED else None,
        Gaussian(means[ends - 1, torch.arange(series)], last_roots[of]) if len(marks) else None,
        own,
        pairs if wanted & PAIRS else None,
        late,
    )


def _filled_up(given: Matrices, start: Gaussian) -> tuple[Matrices, Gaussian]:
    """With so many more series that no lane is empty."""
    more = -given.y.shape[1] % LANES
    pad = lambda x: torch.nn.functional.pad(x, (0, 0, 0, more))  # noqa: E731
    b = given.b if given.b.shape[1] == 1 else pad(given.b)
    return given._replace(y=pad(given.y), b=b), Gaussian(pad(start.mean), start.scale)


def _by_length(given: Matrices, start: Gaussian, ends: Tensor, steady: float, wanted: int) -> _Run:
    """Smooths series that share covariances and end at unlike times: those that end together have the same roots."""
    (length, batch, _), dim = given.y.shape, given.A.shape[-1]
    log_prob, means = torch.zeros(length, batch).double(), torch.zeros(length, batch, dim).double()
    distinct, of = ends.unique(return_inverse=True)
    roots = torch.zeros(length, len(distinct), dim, dim).double()
    pairs = torch.zeros(length - 1 if wanted & PAIRS else 0, len(distinct), dim, dim).double()
    for i, end in enumerate(distinct.tolist()):
        there = of == i
        some = Matrices(*[x[:end, there] if x.shape[1] == batch else x[:end] for x in given])
        run = _run(some, Gaussian(start.mean[there], start.scale), ends[there], steady, wanted, smooth=True)
        assert run.filtered is not None
        log_prob[:end, there], means[:end, there] = run.log_prob, run.filtered.mean
        roots[:end, i] = run.filtered.scale[:, 0]
        roots[run.own - 1 : max(run.late, 0), i] = roots[run.late, i]  # none where nothing settled
        if run.pairs is not None:
            pairs[: end - 1, i] = run.pairs[:, 0]
    smoothed = Gaussian(means, roots[:, of])
    return _Run(log_prob, smoothed, None, None, length, pairs[:, of] if wanted & PAIRS else None)


class _LogProb(torch.autograd.Function):
    """log p(y_t | y_<t) without what depends on no state, (T, B)."""

    @staticmethod
    def forward(ctx: Any, steady: float, ends: Tensor, mean: Tensor, root: Tensor, *given: Tensor) -> Tensor:
        found = _run(Matrices(*given), Gaussian(mean, root), ends, steady, PREDICTED)
        assert found.predicted is not None
        ctx.own = found.own
        ctx.save_for_backward(mean, root, *found.predicted, *given)
        return found.log_prob

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        mean, root, ahead, roots, *rest = ctx.saved_tensors
        given, jit = Matrices(*rest), _jit()
        shared = given.shared and root.shape[0] == 1
        batch = given.y.shape[1]
        ranges = lanes.pieces(batch, torch.get_num_threads())
        named = ("A", "b", "q", "C", "r")
        zeros = lambda x: x.new_zeros(x.shape)  # noqa: E731  (in rows, whatever the order of x)
        totals = [{name: zeros(getattr(given, name)) for name in named} for _ in ranges]
        starts = [zeros(root) for _ in ranges]
        dy, dmean = zeros(given.y), zeros(mean)
        A, _, q, C, r, y = (_array(x) for x in given)
        kept = _array(ahead), _array(roots), ctx.own, _array(gradients[0])

        def some(i: int) -> None:
            first, last = ranges[i]
            groups = [(first, last, 0)] if shared else [(s, s + 1, s) for s in range(first, last)]
            for low, high, g in groups:
                # Sums over series where they share a matrix, else the series' own.
                total = totals[i]
                into = {name: total[name] if name == "b" else _column(total[name], g).contiguous() for name in named}
                begun = starts[i][0 if len(root) == 1 else g]
                out = [x.numpy() for x in (*into.values(), dy, dmean, begun)]
                jit.gradient_group(low, high, g, A, q, C, r, y, *kept, *out)
                for name in named:
                    if name != "b" and total[name].shape[1] > 1:
                        _column(total[name], g).copy_(into[name])

        lanes.parallel(some, len(ranges))
        sums = [torch.stack([each[name] for each in totals]).sum(0) for name in named]
        return None, None, dmean, torch.stack(starts).sum(0), *sums, dy


def _column(x: Tensor, g: int) -> Tensor:
    return x[:, g : g + 1] if x.shape[1] > 1 else x


def _filled(belief: Gaussian, own: int, batch: int, dtype: torch.dtype) -> Gaussian:
    """With the settled root at every later step, for every series."""
    belief.scale[own:] = belief.scale[own - 1]
    return Gaussian(belief.mean.to(dtype), belief.scale.to(dtype).expand(-1, batch, -1, -1))


def _once(mean: Tensor, roots: Tensor, own: int, late: int, dtype: torch.dtype) -> Steady:
    """The steps from own - 1 on have the same root until `late`, where those of the later ones begin."""
    t = torch.arange(len(mean))
    return Steady(mean.to(dtype), roots.to(dtype), t.clamp(max=own - 1) + (t - late).clamp(min=0))


def _settle_first(
    model: Any, method: Kalman, prepared: Prepared, length: int, batch: int, belief: Any
) -> tuple[list[Any], Any]:
    """The steps taken while the state is diffuse, and the predicted belief after them (None at the end)."""
    steps: list[Any] = []
    at = lambda tree, t: unstack(tree_map(lambda x: x[t : t + 1], tree), 1)[0]  # noqa: E731
    while len(steps) < length:
        t = len(steps)
        move = at(prepared.moves, t)
        predicted = method.init(model, move, batch) if belief is None else method.predict(model, belief, move)
        if predicted.factor is None or not bool(predicted.factor.any()):
            return steps, predicted
        steps.append(method.step(model, belief, move, at(prepared.likelihoods, t), batch))
        belief = steps[-1].filtered
    return steps, None


@register(Kalman, LinearPart, keeps=("predicted", "filtered", "last", "log_prob", "smoothed", "pairs"))
def kalman(
    model: Any, method: Kalman, prepared: Prepared, length: int, batch: int, belief: Any, keep: frozenset[str]
) -> Trace | None:
    """Any linear model; with a gradient, log p alone."""
    steps, start = _settle_first(model, method, prepared, length, batch, belief)
    if start is None:
        return None
    done = len(steps)
    given = _matrices(prepared, done)
    dtype = prepared.likelihoods.y.dtype
    constant = _whole(prepared.likelihoods.log_prob, 0)
    constant = constant if len(constant) == 1 else constant[done:]
    root = start.scale.double()
    same = root.stride(0) == 0 or bool((root == root[:1]).all())
    root = root[:1] if same else root
    ends = torch.full((batch,), length) if prepared.lengths is None else prepared.lengths
    grad = torch.is_grad_enabled() and any(x.requires_grad for x in (*given, start.mean, root, *leaves(steps)))
    if grad:
        if keep != {"log_prob"}:
            return None
        found: Any = _LogProb.apply(method.steady, ends - done, start.mean.double(), root, *given)
        log_prob = [step.log_prob for step in steps]
        return Trace(log_prob=torch.cat([*(x[None] for x in log_prob), found + constant]))
    early = prepared.lengths is not None and bool((prepared.lengths <= done).any())
    if early and "last" in keep:
        return None
    if steps and "smoothed" in keep:
        return None
    begun = Gaussian(start.mean.double(), root)
    constants = [step.log_prob[None] for step in steps]
    if "smoothed" in keep:
        run = _run(given, begun, ends, method.steady, FILTERED | PAIRS * ("pairs" in keep), smooth=True)
        assert run.filtered is not None
        mean, roots, own, late = *run.filtered, run.own, run.late
        if late < 0:
            smoothed: Any = Gaussian(mean.to(dtype), roots.to(dtype).expand(-1, batch, -1, -1))
        else:
            smoothed = _once(mean, torch.cat([roots[: own - 1], roots[late:]]), own, late, dtype)
        if start.factor is not None:
            smoothed = Diffuse(smoothed.mean, smoothed.scale, start.factor.new_zeros(length, *start.factor.shape))
        pairs = None if run.pairs is None else run.pairs.to(dtype).expand(-1, batch, -1, -1)
        return Trace(smoothed=smoothed, pairs=pairs, log_prob=run.log_prob + constant)
    wanted = FILTERED * ("filtered" in keep) + PREDICTED * ("predicted" in keep) + LAST * ("last" in keep)
    run = _run(given, begun, ends - done, method.steady, wanted)
    log_prob = torch.cat([*constants, run.log_prob + constant])

    def whole(name: str, rest: Gaussian | None) -> Any:
        if rest is None:
            return None
        if start.factor is None and name == "filtered":
            own = run.own
            return _once(rest.mean, rest.scale[:own].to(dtype, copy=own < length), own, length, dtype)
        return _joined([getattr(step, name) for step in steps], _filled(rest, run.own, batch, dtype), start)

    last = None if run.last is None else tree_map(lambda x: x.to(dtype), run.last)
    return Trace(
        predicted=whole("predicted", run.predicted),
        filtered=whole("filtered", run.filtered),
        last=last
        if last is None or start.factor is None
        else Diffuse(last.mean, last.scale, torch.zeros_like(start.factor)),
        log_prob=log_prob,
    )


def _joined(first: list[Any], rest: Gaussian, start: Any) -> Any:
    """The beliefs of the diffuse steps and of those after them, of one kind."""
    if start.factor is None:
        return rest
    after = Diffuse(rest.mean, rest.scale, start.factor.new_zeros(len(rest.mean), *start.factor.shape))
    return tree_map(lambda a, b: torch.cat([a, b]), stack(first), after) if first else after
