"""The verbs, each written once, over any model and method."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution

from statespan.answers import Forecast, Posterior
from statespan.belief import Belief
from statespan.errors import StatespanError, brief
from statespan.files import load_tree, save_tree
from statespan.method import Method, prepare, run, total, walk_back
from statespan.methods import check, method_for
from statespan.part import seeded
from statespan.sequences import Layout, Sequences, read
from statespan.tree import Lazily, Lazy, Tree, detach, leaves, replace_leaves, stack, tree_map, unstack


def ask(
    model: Any, y: Any, lengths: Any = None, inputs: Any = None, states: Any = None, weights: Any = None
) -> tuple[Sequences, Layout]:
    """The data as the model wants them."""
    if isinstance(y, Sequences):
        if any(x is not None for x in (lengths, inputs, states, weights)):
            raise StatespanError(
                "ss.Sequences has lengths, inputs (u), states and weights of its own; put them in there, and leave the "
                "arguments out"
            )
        length, batch = y.shape
        ends = [length] * batch if y.lengths is None else y.lengths.tolist()
        return y, Layout(False, False, ends)
    check_inputs(model, inputs)
    parameter = next(iter(model.parameters()), torch.zeros(()))
    return read(y, model.emission.event, lengths, inputs, states, parameter.device, parameter.dtype, weights)


def check_inputs(model: Any, inputs: Any, name: str = "inputs") -> None:
    """Refuse inputs that no part would see."""
    if inputs is not None and not any(getattr(part, "takes_inputs", False) for part in model.modules()):
        parts = ", ".join(type(part).__name__ for part in model.parts)
        raise StatespanError(
            f"{name}= is given, and no part of this model ({parts}) takes inputs; leave it out, or use a part that "
            "does, such as ss.SoftmaxTransition or ss.LinearRegression"
        )


def carried(belief: Any) -> Any:
    """A belief to start from, if it is one."""
    if belief is None or isinstance(belief, Belief):
        return belief
    raise StatespanError(f"belief={brief(belief)} is no belief; give the .belief of an earlier filter, or of a stream")


def choose(model: Any, method: Method | None) -> Method:
    """The method asked for, if it fits, or the model's own."""
    return method_for(model) if method is None else check(method, model)


def log_prob(model: Any, data: Sequences, method: Method | None = None, belief: Any = None) -> Tensor:
    """(B,) float64."""
    value = run(model, choose(model, method), data, carried(belief)).log_prob
    assert value is not None
    return value.sum(0)


def filter(model: Any, data: Sequences, layout: Layout, method: Method | None = None, belief: Any = None) -> Posterior:
    """Filtered beliefs."""
    method = choose(model, method)
    with torch.no_grad():
        trace = run(model, method, data, carried(belief), ("filtered", "last", "log_prob"))
    assert trace.log_prob is not None
    values = _values(method.public(model, trace.filtered), layout)
    return Posterior(values, *_scores(trace.log_prob, layout, method.exact(model)), trace.last)


def _values(belief: Any, layout: Layout, pairs: Any = None) -> Lazily:
    """What a user reads of beliefs, in the question's form; a belief may leave some of it until it is asked for."""
    known = getattr(belief, "answers", belief.summary)()
    lazy = {n: Lazy(lambda x=x: layout.steps(x.value)) for n, x in known.items() if isinstance(x, Lazy)}
    each = {n: layout.steps(x) for n, x in known.items() if n not in lazy}
    joint = {} if pairs is None else {"pairs": layout._replace(lengths=[n - 1 for n in layout.lengths]).steps(pairs)}
    return Lazily(each | lazy | joint)


def _scores(log_prob: Tensor, layout: Layout, exact: bool) -> tuple[Tensor, bool, Layout, Any]:
    """The log-probability of each sequence, what a posterior says beside it, and that of each step."""
    return layout.each(log_prob.sum(0)), exact, layout, layout.steps(log_prob)


def smooth(
    model: Any,
    data: Sequences,
    layout: Layout,
    method: Method | None = None,
    belief: Any = None,
    pairs: bool = False,
) -> Posterior:
    """Smoothed beliefs; with `pairs` the joint law of neighbours too."""
    method, belief = choose(model, method), carried(belief)
    with torch.no_grad():
        prepared = prepare(model, method, data, belief=belief)
        known = method.hindsight(model, prepared, belief, data, pairs)
        values = _values(method.public(model, known.smoothed), layout, known.pairs)
    return Posterior(values, *_scores(known.log_prob, layout, method.exact(model)))


def decode(model: Any, data: Sequences, layout: Layout, k: int | None, method: Method | None) -> Any:
    """Likeliest paths; with k, the k best and their joint log-probabilities."""
    method = choose(model, method)
    with torch.no_grad():
        path, score = method.decode(model, method.constants(model), data, 1 if k is None else k)
    if k is None:
        return layout.paths(path[:, :, 0])
    return layout.paths(path), None if score is None else layout.each(score)


def sample_posterior(
    model: Any, data: Sequences, layout: Layout, n: int, seed: int | None, method: Method | None
) -> Any:
    """N posterior paths of every sequence, drawn backwards, all at once."""
    if n < 1:
        raise StatespanError(f"n={n}: draw at least one path")
    method = choose(model, method)
    many = data.each(lambda x, axis: x.repeat_interleave(n, axis))
    with torch.no_grad(), seeded(seed):
        constants = method.constants(model)
        log_prob = run(model, method, data, constants=constants).log_prob
        assert log_prob is not None
        total(log_prob)
        prepared = prepare(model, method, many, constants)
        steps = list(walk_back(model, method, prepared, None, many.shape, method.draw))
        path = stack([method.public(model, step).point() for step in steps[::-1]])
    path = tree_map(lambda x: x.unflatten(1, (len(layout.lengths), n)).movedim(0, 2), path)  # (B, n, T, ...)
    if layout.single:
        return tree_map(lambda x: x[0], path)
    return [tree_map(lambda x, i=i, end=end: x[i, :, :end], path) for i, end in enumerate(layout.lengths)]


def ahead(future: Any, layout: Layout, steps: int, like: Tensor) -> Tensor:
    """Inputs to come as (steps, B, U)."""
    given = future if isinstance(future, Tensor) else np.asarray(future)  # torch would read a list in single precision
    value = _finite(torch.as_tensor(given), "future").to(device=like.device)
    value = value.to(like) if value.is_floating_point() and like.is_floating_point() else value
    value = value[None] if layout.single else value
    if value.dim() != 3 or value.shape[:2] != (len(layout.lengths), steps):
        raise StatespanError(
            f"future inputs have shape {tuple(value.shape)}; give (sequences, steps, U) with "
            f"{len(layout.lengths)} sequences and {steps} steps"
        )
    return value.transpose(0, 1)


def _finite(inputs: Tensor, name: str) -> Tensor:
    """Inputs, none of which is missing."""
    if not bool(inputs.isfinite().all()):
        at = ", ".join(map(str, (~inputs.isfinite()).nonzero()[0].tolist()))
        raise StatespanError(f"{name}[{at}] is not finite; an input cannot be missing, fill it first")
    return inputs


class Drawn(NamedTuple):
    """One simulated step: the state, the distribution it emits, and the observation drawn from that."""

    state: Tree
    distribution: Distribution
    y: Tensor


def simulate(
    model: Any, method: Method, constants: Tree, belief: Any, length: int, batch: int, inputs: Tree = None
) -> Iterator[Drawn]:
    """Draw a step at a time after `belief` (None: from the start): move, draw a state, emit, remember."""
    blank = Sequences(observed=torch.zeros(length, batch, dtype=torch.bool, device=_device(model)), u=inputs)
    for t, move in enumerate(unstack(method.prepare(model, constants, blank)[0], length)):
        now, u = tree_map(lambda x, t=t: x[t : t + 1], inputs), tree_map(lambda x, t=t: x[t], inputs)
        before = method.init(model, move, batch) if belief is None else method.predict(model, belief, move)
        belief = method.draw(before)
        distribution = method.emit(model, constants, belief, u)
        y = distribution.sample()
        yield Drawn(method.public(model, belief).point(), distribution, y)
        if model.autoregressive:
            data = method.resume(model, Sequences(y=y[None], u=now), belief)
            seen = method.prepare(model, constants, data)[1]
            belief, _ = method.update(model, belief, unstack(seen, 1)[0])


def forecast(
    model: Any,
    data: Sequences,
    layout: Layout,
    steps: int,
    samples: int,
    seed: int | None,
    inputs: Any = None,
    method: Method | None = None,
    belief: Any = None,
) -> Forecast:
    """What comes after the end of each sequence."""
    _check_counts(steps, samples)
    method = choose(model, method)
    with torch.no_grad(), seeded(seed):
        constants = method.constants(model)
        trace = run(model, method, data, carried(belief), ("last", "log_prob"), constants)
        assert trace.log_prob is not None
        total(trace.log_prob)  # nothing follows what cannot be
        return forecast_from(model, method, constants, trace.last, layout, steps, samples, inputs)


def _check_counts(steps: Any, samples: Any) -> None:
    """Refuse what is no number of steps or of samples."""
    if not hasattr(steps, "__index__") or steps < 1:
        raise StatespanError(f"steps={steps!r}: forecast at least one step, a whole number of them")
    if not hasattr(samples, "__index__") or samples < 1:
        raise StatespanError(f"samples={samples!r}: draw at least one future, a whole number of them")


def forecast_from(
    model: Any,
    method: Method,
    constants: Tree,
    last: Any,
    layout: Layout,
    steps: int,
    samples: int,
    inputs: Any = None,
) -> Forecast:
    """A forecast from a belief; no gradient comes out of it."""
    constants = replace_leaves(constants, [x.detach() for x in leaves(constants)])
    batch = len(layout.lengths)
    many = tree_map(lambda x: x.repeat_interleave(samples, 0), last)
    wide = tree_map(lambda x: x.repeat_interleave(samples, 1), inputs)
    drawn = list(simulate(model, method, constants, many, steps, batch * samples, wide))
    draws = torch.stack([d.y for d in drawn]).unflatten(1, (batch, samples)).movedim((2, 1, 0), (0, 1, 2))

    def formula(steps: int, inputs: Any) -> Distribution:
        blank = Sequences(observed=torch.zeros(steps, batch, dtype=torch.bool, device=_device(model)), u=inputs)
        predicted = run(model, method, blank, last, ("predicted",), constants).predicted
        return method.emit(model, constants, *tree_map(lambda x: x.transpose(0, 1), (predicted, inputs)))

    # What an emission looks back on is known one step ahead, and no further.
    next_one = method.exact(model) and not method.exact_ahead(model)
    exact = method.exact_ahead(model) or (next_one and steps == 1)
    if exact or method.foretells(model):
        return Forecast(formula(steps, inputs), draws, layout, exact)
    each = [d.distribution for d in drawn]
    first = formula(1, tree_map(lambda x: x[:1], inputs)) if next_one else None
    return Forecast(_mean_of(each, (batch, samples)) or Empirical(draws, first), draws, layout, False)


def _mean_of(each: list[Distribution], shape: tuple[int, int]) -> Categorical | None:
    """The mean over samples of each step's distribution of symbols (Rao-Blackwell); None for other distributions."""
    if not isinstance(each[0], Categorical):
        return None
    probs = torch.stack([d.probs.unflatten(0, shape).mean(1) for d in each if isinstance(d, Categorical)], 1)
    return Categorical(probs=probs, validate_args=False)


class Empirical(torch.distributions.Distribution):
    """The distribution that puts equal weight on draws (S, N, steps, ...), but for the first step's if that is known.

    Args:
        draws: (S, N, steps, ...).
        first: the distribution of the first step, (N, 1), for its moments.
    """

    def __init__(self, draws: Tensor, first: Distribution | None = None):
        super().__init__(draws.shape[1:], validate_args=False)
        self.draws, self.first = draws, first

    def _moments(self, drawn: Tensor, known: Callable[[Distribution], Tensor]) -> Tensor:
        return drawn if self.first is None else torch.cat([known(self.first).to(drawn), drawn[:, 1:]], 1)

    @property
    def arg_constraints(self) -> dict[str, Any]:
        """None."""
        return {}

    @property
    def mean(self) -> Tensor:
        """The mean of the draws."""
        return self._moments(self.draws.mean(0), lambda first: first.mean)

    @property
    def variance(self) -> Tensor:
        """The variance of the draws."""
        return self._moments(self.draws.var(0), lambda first: first.variance)


def sample(
    model: Any, n: int | None, length: int, seed: int | None, inputs: Any = None, method: Method | None = None
) -> tuple[Tree, Tensor]:
    """Draw n sequences: states and observations, (N, T, ...)."""
    if length < 1 or (n is not None and n < 1):
        raise StatespanError(f"length={length}, n={n}: sample at least one step of at least one sequence")
    method, inputs = choose(model, method), _alongside(model, inputs, length, n or 1)
    with torch.no_grad(), seeded(seed):
        constants = method.constants(model)
        drawn = [(d.state, d.y) for d in simulate(model, method, constants, None, length, n or 1, inputs)]
    return tree_map(lambda x: x[:, 0] if n is None else x.transpose(0, 1), stack(drawn))


def _alongside(model: Any, inputs: Any, length: int, n: int) -> Tensor | None:
    """Inputs (T, U) or (T, N, U) of sequences to be drawn, as (T, N, U)."""
    check_inputs(model, inputs)
    if inputs is None:
        return None
    like = next(iter(model.parameters()), torch.zeros(()))
    u = _finite(torch.as_tensor(inputs, device=like.device, dtype=like.dtype), "inputs")
    u = u[:, None].expand(-1, n, -1) if u.dim() == 2 else u
    if u.dim() != 3 or u.shape[:2] != (length, n):
        raise StatespanError(
            f"sample(inputs=) is {tuple(torch.as_tensor(inputs).shape)}; give (T, U), or (T, N, U), with T = length = "
            f"{length} and N = {n}"
        )
    return u


def impute(model: Any, data: Sequences, layout: Layout, method: Method | None = None) -> Any:
    """Fill the gaps."""
    method = choose(model, method)
    present = data.observed
    if present is None:
        return layout.steps(data.y)
    with torch.no_grad():
        filled = method.fill(model, method.constants(model), data)
    there = present if present.dim() == data.y.dim() else present[..., None]
    return layout.steps(torch.where(there, data.y, filled.to(data.y.dtype)))


def _device(model: Any) -> torch.device:
    return next(iter(model.parameters()), torch.zeros(())).device


class Stream:
    """One observation at a time.

    Args:
        model: a state space.
        method: the method, or None for the model's own.
        belief: where to start from; None is the beginning.
        lag: how many steps of hindsight `lagged` has: fixed-lag smoothing, at the cost of `lag` steps an update.

    Raises:
        StatespanError: a negative lag; a method that does not fit the model; a belief that is none.

    Source:
        Fixed lag: Sarkka and Svensson, Bayesian Filtering and Smoothing 2023, section 12.5.

    Example:
        >>> import statespan as ss
        >>> stream = ss.hmm(states=2, emission=ss.Categorical(3), seed=0).stream(lag=1)
        >>> _ = stream.update(1)
        >>> stream.belief.probs.shape, stream.lagged is None
        (torch.Size([1, 2]), True)
        >>> _ = stream.update(2)
        >>> stream.lagged.probs.shape
        torch.Size([1, 2])
    """

    def __init__(self, model: Any, method: Method | None = None, belief: Any = None, lag: int = 0):
        if lag < 0:
            raise StatespanError(f"stream(lag={lag}): use 0 or more")
        self.model, self.method, self.belief, self.lag = model, choose(model, method), carried(belief), lag
        with torch.no_grad():
            self.constants = self.method.constants(model)
        self._recent: deque[tuple[Any, Tree]] = deque(maxlen=lag + 1)
        self._total = torch.zeros((), dtype=torch.float64)
        self._last = self._total

    @property
    def log_prob(self) -> Tensor:
        """Log p of everything seen so far."""
        return self._total

    @property
    def surprise(self) -> Tensor:
        """Minus log p of the last observation given those before it, in nats."""
        return -self._last

    @property
    def state(self) -> Any:
        """The belief about the state now, in the terms of the user's states."""
        return None if self.belief is None else self.method.public(self.model, self.belief)

    @property
    def lagged(self) -> Any:
        """The belief about the state `lag` steps ago given everything seen; None until there is such a step."""
        if len(self._recent) <= self.lag:
            return None
        beliefs, inputs = zip(*self._recent, strict=True)
        batch = torch.ones(len(beliefs), 1, dtype=torch.bool, device=_device(self.model))
        blank = Sequences(observed=batch, u=None if inputs[0] is None else torch.stack(inputs))
        with torch.no_grad():
            moves = unstack(self.method.prepare(self.model, self.constants, blank)[0], len(beliefs))
            later = beliefs[-1]
            for t in range(len(beliefs) - 2, -1, -1):
                later = self.method.backward(self.model, beliefs[t], moves[t + 1], later)
            return self.method.public(self.model, later)

    def update(self, y: Any, inputs: Any = None) -> Any:
        """See one observation (None, NaN or -1: a gap) and return the belief about the state now.

        Args:
            y: one symbol or vector.
            inputs: the inputs of this step.

        Raises:
            StatespanError: an observation that does not fit the model.
        """
        event = self.model.emission.event
        one = [[float("nan")] * (event.dim or 1)] if y is None and event.rank == 1 else [y]
        if isinstance(y, Tensor):
            one = y[None]
        data, _ = ask(self.model, one, inputs=None if inputs is None else [inputs])
        with torch.no_grad():
            trace = run(self.model, self.method, data, self.belief, ("last", "log_prob"), self.constants)
        assert trace.log_prob is not None
        self.belief, self._last = detach(trace.last), trace.log_prob.sum()
        self._total = self._total + self._last
        if self.lag:
            self._recent.append((self.belief, None if data.u is None else data.u[0]))
        return self.belief

    def save(self, path: Any) -> None:
        """Write what the stream knows, to go on from later: `model.stream().resume(path)`.

        Args:
            path: a file name, by custom `.safetensors`.
        """
        save_tree((self.belief, self._total, self._last, tuple(self._recent)), path, {"lag": self.lag})

    def resume(self, path: Any) -> "Stream":
        """Go on from what `save` wrote for the same model; the stream itself.

        Args:
            path: the file.

        Raises:
            StatespanError: no such file, or it was written by a stream of another lag.
        """
        (self.belief, self._total, self._last, recent), extra = load_tree(path, _device(self.model))
        if extra["lag"] != self.lag:
            raise StatespanError(f"{path} is of a stream with lag={extra['lag']}; ask for model.stream(lag=...) alike")
        self._recent.extend(recent)
        return self

    def forecast(self, steps: int, samples: int = 200, seed: int | None = 0, inputs: Any = None) -> Forecast:
        """What comes next.

        Args:
            steps: how many steps ahead.
            samples: how many futures to draw.
            seed: makes them repeatable.
            inputs: (steps, U) inputs to come.

        Raises:
            StatespanError: nothing has been seen yet; inputs of another shape, or that no part takes.
        """
        if self.belief is None:
            raise StatespanError("nothing has been seen yet; update the stream first, or use model.sample")
        _check_counts(steps, samples)
        layout = Layout(True, False, [1])
        check_inputs(self.model, inputs)
        future = None if inputs is None else ahead(inputs, layout, steps, next(self.model.parameters()))
        with torch.no_grad(), seeded(seed):
            return forecast_from(self.model, self.method, self.constants, self.belief, layout, steps, samples, future)
