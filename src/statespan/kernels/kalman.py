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

from statespan.belief import Diffuse, Gaussian
from statespan.kernels import lanes
from statespan.method import Prepared, Trace, register
from statespan.methods import Kalman
from statespan.part import LinearPart
from statespan.tree import Shared, Tree, leaves, stack, tree_map, unstack

FILTERED, PREDICTED, LAST = 1, 2, 4


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
    """What the loops wrote."""

    log_prob: Tensor
    filtered: Gaussian | None
    predicted: Gaussian | None
    last: Gaussian | None
    own: int


def _empty(*shape: int) -> Tensor:
    """Float64, in huge pages where the system has them, which NumPy asks for: to touch small ones costs as much."""
    return torch.from_numpy(np.empty(shape))


def _array(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy()


def _ranges(series: int) -> list[tuple[int, int]]:
    return lanes.pieces(series, torch.get_num_threads() if series > 1 else 1)


def _filter(given: Matrices, start: Gaussian, ends: Tensor, steady: float, wanted: int) -> _Run:
    """Filter from the predicted belief of the first step; roots that series share are kept once, and unfilled."""
    length, batch, _ = given.y.shape
    dim = given.A.shape[-1]
    shared = given.shared and start.scale.shape[0] == 1
    groups = 1 if shared else batch

    def kept(bit: int) -> tuple[Tensor, Tensor]:
        size, steps = (batch, length) if wanted & bit else (0, 0)
        return _empty(steps, size, dim), _empty(steps, groups, dim, dim)

    (means, roots), (ahead, ahead_roots) = kept(FILTERED), kept(PREDICTED)
    count = batch if wanted & LAST else 0
    last, last_root, log_prob = _empty(count, dim), _empty(count, dim, dim), _empty(length, batch)
    arrays = [_array(x) for x in (*given, start.mean, start.scale)]
    ends_array = _array(ends)
    out = [x.numpy() for x in (means, roots, ahead, ahead_roots, last, last_root)]
    ranges, jit = _ranges(batch), _jit()
    own = [length] * len(ranges)

    def some(i: int) -> None:
        own[i] = jit.filter_series(*ranges[i], shared, *arrays, ends_array, steady, log_prob.numpy(), wanted, *out)

    lanes.parallel(some, len(ranges))
    return _Run(
        log_prob,
        Gaussian(means, roots) if wanted & FILTERED else None,
        Gaussian(ahead, ahead_roots) if wanted & PREDICTED else None,
        Gaussian(last, last_root) if wanted & LAST else None,
        own[0],
    )


class _LogProb(torch.autograd.Function):
    """log p(y_t | y_<t) without what depends on no state, (T, B)."""

    @staticmethod
    def forward(ctx: Any, steady: float, ends: Tensor, mean: Tensor, root: Tensor, *given: Tensor) -> Tensor:
        found = _filter(Matrices(*given), Gaussian(mean, root), ends, steady, PREDICTED)
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
        ranges = _ranges(batch)
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


def _smooth(given: Matrices, filtered: Gaussian, own: int, ends: Tensor, steady: float, pairs: bool) -> tuple:
    """Means (T, B, D), roots (T, G, D, D) and lag-one covariances (T - 1, G, D, D), in place of the filtered means.

    G is the number of series, or 1 where all share them.
    """
    length, batch, dim = filtered.mean.shape
    shared = given.shared and filtered.scale.shape[1] == 1
    whole, of = shared and bool((ends == length).all()), None
    if whole:  # the first piece keeps the roots of all
        jobs = [(np.arange(*piece), 0, -1 if i else 0, length) for i, piece in enumerate(_ranges(batch))]
    elif shared:  # series that end together have the same roots
        distinct, of = ends.unique(return_inverse=True)
        jobs = [((of == i).nonzero()[:, 0].numpy(), 0, i, end) for i, end in enumerate(distinct.tolist())]
    else:
        jobs = [(np.array([i]), i, i, end) for i, end in enumerate(ends.tolist())]
    columns = 1 if whole else len(jobs)
    roots, joined = _empty(length, columns, dim, dim), _empty(length - 1 if pairs else 0, columns, dim, dim)
    if not whole:
        roots.zero_()
        joined.zero_()
    arrays = [_array(x) for x in (given.A, given.b, given.q, filtered.mean, filtered.scale)]
    jit = _jit()

    def some(i: int) -> None:
        members, g, write, end = jobs[i]
        out = roots.numpy(), pairs, joined.numpy()
        jit.smooth_group(members, g, write, *arrays, own, end, steady, *out)

    lanes.parallel(some, len(jobs))
    if of is not None:
        roots, joined = roots[:, of], joined[:, of]
    return filtered.mean, roots, joined


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
    wanted = (
        FILTERED * bool(keep & {"filtered", "smoothed"}) + PREDICTED * ("predicted" in keep) + LAST * ("last" in keep)
    )
    run = _filter(given, Gaussian(start.mean.double(), root), ends - done, method.steady, wanted)
    log_prob = torch.cat([*(step.log_prob[None] for step in steps), run.log_prob + constant])

    if "smoothed" in keep:
        assert run.filtered is not None
        mean, *spread = _smooth(given, run.filtered, run.own, ends, method.steady, "pairs" in keep)
        scale, pairs = (x.to(dtype).expand(-1, batch, -1, -1) for x in spread)
        smoothed: Any = Gaussian(mean.to(dtype), scale)
        if start.factor is not None:
            smoothed = Diffuse(mean.to(dtype), scale, start.factor.new_zeros(length, *start.factor.shape))
        return Trace(smoothed=smoothed, pairs=pairs if "pairs" in keep else None, log_prob=log_prob)

    def whole(name: str, rest: Gaussian | None) -> Any:
        if rest is None:
            return None
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
