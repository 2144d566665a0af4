"""The Kalman filter and smoother of whole batches.

Covariances do not depend on y: series with the same matrices and gaps share them, and where nothing changes in time
they settle and are computed no further. Always in float64, whatever the model's dtype. The gradient is that of the
recursion written on covariances, reversed.
"""

from collections.abc import Callable
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

_NONE = np.zeros(0, np.int64)
_NOTHING = {rank: np.zeros((0,) * rank) for rank in (3, 4)}

#: Fewer series than this are done one by one: most lanes would be empty.
FEW, LANES = 4, 8


def _jit() -> ModuleType:
    from . import _jit_kalman

    return _jit_kalman


class Matrices(NamedTuple):
    """A, b, q of the moves and C, r, y of the observations, (steps, series, ...), 1 where nothing changes."""

    A: Any
    b: Any
    q: Any
    C: Any
    r: Any
    y: Any

    @property
    def shared(self) -> bool:
        """Whether all series have the same covariances."""
        return self.A.shape[1] == self.q.shape[1] == self.C.shape[1] == self.r.shape[1] == 1

    @property
    def still(self) -> bool:
        """Whether no matrix changes in time."""
        return len(self.A) == len(self.q) == len(self.C) == len(self.r) == 1


def _value(tree: Tree) -> Tensor:
    return tree.value if isinstance(tree, Shared) else tree


def _matrices(prepared: Prepared, start: int, of: Callable[[Tensor], Any]) -> Matrices:
    """The prepared fields from step `start` on, each as `of` makes it of a tensor in float64."""

    def whole(tree: Tree, rank: int) -> Any:
        x = of(_value(tree).double())
        front = rank + 2 - x.ndim
        x = x.reshape(*[1] * front, *x.shape) if front else x
        return x[start:] if start and len(x) > 1 else x

    (A, b, q), seen = prepared.moves, prepared.likelihoods
    y = of(seen.y.double())
    return Matrices(
        whole(A, 2), whole(b, 1), whole(q, 2), whole(seen.matrix, 2), whole(seen.scale, 2), y[start:] if start else y
    )


class _Run(NamedTuple):
    """What the loops wrote; of roots that series share there is one, and where they settled only some were written.

    Filtered and predicted ones from step `own` on are as the one before; smoothed ones of the steps own - 1 ... late as
    that of `late` (-1: each is there). `which` is the root of each step once only those are left that were written.
    """

    log_prob: Tensor
    filtered: Gaussian | None
    predicted: Gaussian | None
    last: Gaussian | None
    own: int
    which: Tensor
    pairs: Tensor | None = None
    late: int = -1


def _array(x: Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.numpy(force=True))


def _run(
    given: Matrices,
    start: tuple[np.ndarray, np.ndarray],
    ends: np.ndarray,
    steady: float,
    wanted: int,
    smooth: bool = False,
    constant: float = 0.0,
) -> _Run:
    """Filters from the predicted belief of the first step; with `smooth` the smoothed moments stand for the filtered.

    Series that share covariances are cut into pieces for the threads; the first piece writes the roots that all share.
    Adds a constant to the log p of each step.
    """
    series, dim = given.y.shape[1], given.A.shape[-1]
    shared = given.shared and len(start[1]) == 1
    if smooth and shared and len(ends) > 1 and bool((ends != ends[0]).any()):
        return _by_length(given, start, ends, steady, wanted, constant)
    if shared and series >= FEW and series % LANES:
        given, start = _filled_up(given, start)
    length, batch = given.y.shape[:2]
    marks, of = _NONE, ends
    if wanted & LAST:
        marks, of = np.unique(ends, return_inverse=True) if shared else (ends, np.arange(batch))
    threads = torch.get_num_threads()
    # Of each job the series, their group, its steps, where it writes roots (-1: nowhere), its marks and their places.
    if shared:
        columns, each = 1, LANES if batch >= FEW else 1
        jobs = [
            (low * each, high * each, 0, int(ends[0]) if smooth else length, -bool(i), 0, 0 if i else len(marks))
            for i, (low, high) in enumerate(lanes.pieces(batch // each, threads))
        ]
    else:
        columns, m = batch, min(len(marks), 1)
        jobs = [(s, s + 1, s, end if smooth else length, s, s * m, (s + 1) * m) for s, end in enumerate(ends.tolist())]
    wanted |= FILTERED * bool(wanted & LAST)

    def kept(asked: int, *shape: int) -> np.ndarray:
        """Made by NumPy, in huge pages where the system has them: to touch small ones costs as much."""
        made = np.zeros if smooth and not shared else np.empty
        return made(shape) if asked else _NOTHING[len(shape)]

    rows = (length, columns, dim, dim)
    log_prob = np.empty((length, batch))
    means, roots = kept(wanted & FILTERED, length, batch, dim), kept(wanted & FILTERED, *rows)
    ahead, ahead_roots = kept(wanted & PREDICTED, length, batch, dim), kept(wanted & PREDICTED, *rows)
    last_roots, pairs = kept(wanted & LAST, len(marks), dim, dim), kept(wanted & PAIRS, length - 1, columns, dim, dim)
    which, found, table = np.arange(length), np.array([length, -1]), np.array(jobs)
    steady = steady if given.still else 0.0
    parts, jit = lanes.pieces(len(jobs), threads if shared else 4 * threads), _jit()

    def some(i: int) -> None:
        jit.run_jobs(
            table, *parts[i], *given, *start, min(length, CHUNK), steady, constant, smooth, wanted, shared, marks,
            found, which, log_prob, means, roots, ahead, ahead_roots, last_roots, pairs,
        )  # fmt: skip

    lanes.parallel(some, len(parts))
    own, late = found.tolist()
    if wanted & PAIRS and late >= own:
        pairs[own - 1 : late] = pairs[late]
    as_tensor = torch.from_numpy
    means, ahead = means[:, :series], ahead[:, :series]
    return _Run(
        as_tensor(log_prob[:, :series]),
        Gaussian(as_tensor(means), as_tensor(roots)) if wanted & FILTERED else None,
        Gaussian(as_tensor(ahead), as_tensor(ahead_roots)) if wanted & PREDICTED else None,
        Gaussian(as_tensor(means[ends - 1, np.arange(series)]), as_tensor(last_roots[of])) if len(marks) else None,
        own,
        as_tensor(which),
        as_tensor(pairs) if wanted & PAIRS else None,
        late,
    )


def _filled_up(given: Matrices, start: tuple[np.ndarray, np.ndarray]) -> tuple[Matrices, tuple[np.ndarray, np.ndarray]]:
    """With so many more series that no lane is empty."""
    more = -given.y.shape[1] % LANES
    pad = lambda x, axis: np.concatenate([x, np.zeros_like(x, shape=(*x.shape[:axis], more, x.shape[-1]))], axis)  # noqa: E731
    b = given.b if given.b.shape[1] == 1 else pad(given.b, 1)
    return given._replace(y=pad(given.y, 1), b=b), (pad(start[0], 0), start[1])


def _by_length(
    given: Matrices,
    start: tuple[np.ndarray, np.ndarray],
    ends: np.ndarray,
    steady: float,
    wanted: int,
    constant: float,
) -> _Run:
    """Smooths series that share covariances and end at unlike times: those that end together have the same roots."""
    (length, batch, _), dim = given.y.shape, given.A.shape[-1]
    log_prob, means = torch.zeros(length, batch).double(), torch.zeros(length, batch, dim).double()
    distinct, of = np.unique(ends, return_inverse=True)
    roots = torch.zeros(length, len(distinct), dim, dim).double()
    pairs = torch.zeros(length - 1 if wanted & PAIRS else 0, len(distinct), dim, dim).double()
    for i, end in enumerate(distinct.tolist()):
        there = of == i
        some = [np.ascontiguousarray(x[:end, there]) if x.shape[1] == batch else x[:end] for x in given]
        begun = start[0][there], start[1]
        run = _run(Matrices(*some), begun, ends[there], steady, wanted, True, constant)
        assert run.filtered is not None
        log_prob[:end, there], means[:end, there] = run.log_prob, run.filtered.mean
        roots[:end, i] = run.filtered.scale[:, 0]
        roots[run.own - 1 : max(run.late, 0), i] = roots[run.late, i]  # none where nothing settled
        if run.pairs is not None:
            pairs[: end - 1, i] = run.pairs[:, 0]
    smoothed = Gaussian(means, roots[:, of])
    which = torch.arange(length)
    return _Run(log_prob, smoothed, None, None, length, which, pairs[:, of] if wanted & PAIRS else None)


class _LogProb(torch.autograd.Function):
    """log p(y_t | y_<t) without what depends on no state, (T, B)."""

    @staticmethod
    def forward(ctx: Any, steady: float, ends: np.ndarray, mean: Tensor, root: Tensor, *given: Tensor) -> Tensor:
        found = _run(Matrices(*map(_array, given)), (_array(mean), _array(root)), ends, steady, PREDICTED)
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
    dtype, constant = prepared.likelihoods.y.dtype, _value(prepared.likelihoods.log_prob)
    constant = constant[done:] if done and constant.dim() else constant
    root = start.scale.double()
    if len(root) > 1 and (root.stride(0) == 0 or bool((root == root[:1]).all())):
        root = root[:1]
    ends = np.full(batch, length - done) if prepared.lengths is None else prepared.lengths.numpy() - done
    if torch.is_grad_enabled() and any(x.requires_grad for x in leaves((*prepared[:2], *start, *steps))):
        if keep != {"log_prob"}:
            return None
        given = _matrices(prepared, done, lambda x: x)
        found: Any = _LogProb.apply(method.steady, ends, start.mean.double(), root, *given)
        log_prob = [step.log_prob for step in steps]
        return Trace(log_prob=torch.cat([*(x[None] for x in log_prob), found + constant]))
    if "last" in keep and done and int(ends.min()) <= 0:
        return None
    if steps and "smoothed" in keep:
        return None
    given, begun = _matrices(prepared, done, _array), (_array(start.mean.double()), _array(root))
    each = 0.0 if constant.dim() else float(constant)  # of one number the loops take care
    if "smoothed" in keep:
        run = _run(given, begun, ends, method.steady, FILTERED | PAIRS * ("pairs" in keep), True, each)
        assert run.filtered is not None
        mean, roots = run.filtered.mean.to(dtype), run.filtered.scale
        if run.late >= 0:  # without those that are as another
            roots = torch.from_numpy(np.concatenate([roots[: run.own - 1].numpy(), roots[run.late :].numpy()]))
        roots = roots.to(dtype)
        smoothed: Any = (
            Gaussian(mean, roots.expand(-1, batch, -1, -1)) if run.late < 0 else Steady(mean, roots, run.which)
        )
        if start.factor is not None:
            smoothed = Diffuse(smoothed.mean, smoothed.scale, start.factor.new_zeros(length, *start.factor.shape))
        pairs = None if run.pairs is None else run.pairs.to(dtype).expand(-1, batch, -1, -1)
        return Trace(
            smoothed=smoothed, pairs=pairs, log_prob=run.log_prob + constant if constant.dim() else run.log_prob
        )
    wanted = FILTERED * ("filtered" in keep) + PREDICTED * ("predicted" in keep) + LAST * ("last" in keep)
    run = _run(given, begun, ends, method.steady, wanted, False, each)
    log_prob = run.log_prob + constant if constant.dim() else run.log_prob
    if steps:
        log_prob = torch.cat([*(step.log_prob[None] for step in steps), log_prob])

    def whole(name: str, rest: Gaussian | None) -> Any:
        if rest is None:
            return None
        if start.factor is None and name == "filtered":
            own = run.own
            return Steady(rest.mean.to(dtype), rest.scale[:own].to(dtype, copy=own < length), run.which)
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
