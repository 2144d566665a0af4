"""The verbs, each written once, over any model and method."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical

from statespan.answers import Forecast, Posterior
from statespan.errors import StatespanError
from statespan.method import Method, prepare, run, walk_back
from statespan.methods import check, method_for
from statespan.part import seeded
from statespan.sequences import Layout, Sequences, read
from statespan.tree import Tree, detach, stack, tree_map, unstack


def ask(model: Any, y: Any, lengths: Any = None, inputs: Any = None, states: Any = None) -> tuple[Sequences, Layout]:
    """The data as the model wants them."""
    if isinstance(y, Sequences):
        length, batch = y.shape
        ends = [length] * batch if y.lengths is None else y.lengths.tolist()
        return y, Layout(False, False, ends)
    parameter = next(iter(model.parameters()), torch.zeros(()))
    return read(y, model.emission.event, lengths, inputs, states, parameter.device, parameter.dtype)


def choose(model: Any, method: Method | None) -> Method:
    """The method asked for, if it fits, or the model's own."""
    return method_for(model) if method is None else check(method, model)


def log_prob(model: Any, data: Sequences, method: Method | None = None, belief: Any = None) -> Tensor:
    """(B,) float64."""
    value = run(model, choose(model, method), data, belief).log_prob
    assert value is not None
    return value.sum(0)


def filter(model: Any, data: Sequences, layout: Layout, method: Method | None = None, belief: Any = None) -> Posterior:
    """Filtered beliefs."""
    method = choose(model, method)
    with torch.no_grad():
        trace = run(model, method, data, belief, ("filtered", "last", "log_prob"))
    assert trace.log_prob is not None
    values = {name: layout.steps(value) for name, value in trace.filtered.summary().items()}
    return Posterior(values, layout.each(trace.log_prob.sum(0)), method.exact(model), trace.last)


def smooth(model: Any, data: Sequences, layout: Layout, method: Method | None = None, belief: Any = None) -> Posterior:
    """Smoothed beliefs."""
    method = choose(model, method)
    with torch.no_grad():
        prepared = prepare(model, method, data)
        smoothed = method.smooth(model, prepared, belief, data.shape)
        values = {name: layout.steps(value) for name, value in smoothed.state.summary().items()}
        log_prob = run(model, method, data, belief, prepared=prepared).log_prob
    assert log_prob is not None
    return Posterior(values, layout.each(log_prob.sum(0)), method.exact(model))


def decode(model: Any, data: Sequences, layout: Layout, k: int | None, method: Method | None) -> Any:
    """Likeliest paths; with k, the k best and their joint log-probabilities."""
    method = choose(model, method)
    with torch.no_grad():
        path, score = method.decode(model, method.constants(model), data, k or 1)
    if k is None:
        return layout.paths(path[:, :, 0])
    return layout.paths(path), None if score is None else layout.each(score)


def sample_posterior(
    model: Any, data: Sequences, layout: Layout, n: int, seed: int | None, method: Method | None
) -> Any:
    """N posterior paths of every sequence, drawn backwards, all at once."""
    method = choose(model, method)
    many = tree_map(lambda x: x.repeat_interleave(n, 1), data._replace(lengths=None, u=None))
    many = many._replace(u=tree_map(lambda x: x.repeat_interleave(n, 1), data.u))
    if data.lengths is not None:
        many = many._replace(lengths=data.lengths.repeat_interleave(n))
    with torch.no_grad(), seeded(seed):
        prepared = prepare(model, method, many)
        steps = list(walk_back(model, method, prepared, None, many.shape, method.draw))
        path = stack([step.state.point() for step in steps[::-1]])
    path = tree_map(lambda x: x.unflatten(1, (len(layout.lengths), n)).movedim(0, 2), path)  # (B, n, T, ...)
    if layout.single:
        return tree_map(lambda x: x[0], path)
    return [tree_map(lambda x, i=i, end=end: x[i, :, :end], path) for i, end in enumerate(layout.lengths)]


def ahead(future: Any, layout: Layout, steps: int, like: Tensor) -> Tensor:
    """Inputs to come as (steps, B, U)."""
    value = torch.as_tensor(future).to(device=like.device)
    value = value[None] if layout.single else value
    if value.dim() != 3 or value.shape[:2] != (len(layout.lengths), steps):
        raise StatespanError(
            f"future inputs have shape {tuple(value.shape)}; give (sequences, steps, U) with "
            f"{len(layout.lengths)} sequences and {steps} steps"
        )
    return value.transpose(0, 1)


def simulate(
    model: Any, method: Method, constants: Tree, belief: Any, length: int, batch: int, inputs: Any = None
) -> tuple[Tree, Tensor]:
    """Draw states and observations after `belief` (None: from the start): trees (T, B, ...) and (T, B, ...)."""
    states, ys = [], []
    for t in range(length):
        u = None if inputs is None else inputs[t : t + 1]
        blank = Sequences(observed=torch.zeros(1, batch, dtype=torch.bool, device=_device(model)), u=u)
        move = _first(method.prepare(model, constants, blank)[0])
        before = method.init(model, move, batch) if belief is None else method.predict(model, belief, move)
        sure = method.draw(before)
        y = method.emit(model, constants, sure, None if u is None else u[0]).sample()
        likelihood = _first(method.prepare(model, constants, Sequences(y=y[None], u=u))[1])
        belief, _ = method.update(model, sure, likelihood)
        states.append(sure.state.point())
        ys.append(y)
    return stack(states), torch.stack(ys)


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
    if steps < 1:
        raise StatespanError(f"steps={steps}: forecast at least one step")
    method = choose(model, method)
    with torch.no_grad(), seeded(seed):
        constants = method.constants(model)
        last = run(model, method, data, belief, ("last",), constants).last
        return forecast_from(model, method, constants, last, layout, steps, samples, inputs)


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
    """A forecast from a belief."""
    batch = len(layout.lengths)
    many = tree_map(lambda x: x.repeat_interleave(samples, 0), last)
    wide = None if inputs is None else inputs.repeat_interleave(samples, 1)
    if not method.exact(model):
        return _sampled_forecast(model, method, constants, many, layout, steps, samples, wide)
    _, y = simulate(model, method, constants, many, steps, batch * samples, wide)
    draws = y.unflatten(1, (batch, samples)).movedim((2, 1, 0), (0, 1, 2))
    blank = Sequences(observed=torch.zeros(steps, batch, dtype=torch.bool, device=_device(model)), u=inputs)
    predicted = run(model, method, blank, last, ("predicted",), constants).predicted
    ahead = tree_map(lambda x: x.transpose(0, 1), predicted)
    return Forecast(method.emit(model, constants, ahead, inputs), draws, layout, True)


def _sampled_forecast(
    model: Any,
    method: Method,
    constants: Tree,
    many: Any,
    layout: Layout,
    steps: int,
    samples: int,
    inputs: Any,
) -> Forecast:
    """Ancestral samples; the distribution at each step is the mean over them (Rao-Blackwellised for symbols)."""
    batch, belief, ys, each = len(layout.lengths), many, [], []
    for t in range(steps):
        u = None if inputs is None else inputs[t : t + 1]
        blank = Sequences(observed=torch.zeros(1, batch * samples, dtype=torch.bool, device=_device(model)), u=u)
        move = _first(method.prepare(model, constants, blank)[0])
        before = method.draw(method.predict(model, belief, move))
        distribution = method.emit(model, constants, before, None if u is None else u[0])
        y = distribution.sample()
        likelihood = _first(method.prepare(model, constants, Sequences(y=y[None], u=u))[1])
        belief, _ = method.update(model, before, likelihood)
        ys.append(y)
        each.append(distribution)
    draws = torch.stack(ys).unflatten(1, (batch, samples)).movedim((2, 1, 0), (0, 1, 2))
    if isinstance(each[0], Categorical):
        probs = torch.stack([d.probs.unflatten(0, (batch, samples)).mean(1) for d in each], 1)
        return Forecast(Categorical(probs=probs), draws, layout, False)
    return Forecast(Empirical(draws), draws, layout, False)


class Empirical(torch.distributions.Distribution):
    """The distribution that puts equal weight on draws (S, ...)."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, draws: Tensor):
        super().__init__(draws.shape[1:], validate_args=False)
        self.draws = draws

    @property
    def mean(self) -> Tensor:
        """The mean of the draws."""
        return self.draws.mean(0)

    @property
    def variance(self) -> Tensor:
        """The variance of the draws."""
        return self.draws.var(0)


def sample(
    model: Any, n: int | None, length: int, seed: int | None, inputs: Any = None, method: Method | None = None
) -> tuple[Tree, Tensor]:
    """Draw n sequences: states and observations, (N, T, ...)."""
    if length < 1:
        raise StatespanError(f"length={length}: sample at least one step")
    method = choose(model, method)
    with torch.no_grad(), seeded(seed):
        constants = method.constants(model)
        states, y = simulate(model, method, constants, None, length, n or 1, inputs)
    front = lambda x: x[:, 0] if n is None else x.transpose(0, 1)  # noqa: E731
    return tree_map(front, states), front(y)


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


def _first(tree: Tree) -> Tree:
    """The only step of a tree over time."""
    return unstack(tree, 1)[0]


def _device(model: Any) -> torch.device:
    return next(iter(model.parameters()), torch.zeros(())).device


class Stream:
    """One observation at a time.

    Args:
        model: a state space.
        method: the method, or None for the model's own.
        belief: where to start from; None is the beginning.

    Example:
        >>> import statespan as ss
        >>> stream = ss.hmm(states=2, emission=ss.Categorical(3), seed=0).stream()
        >>> _ = stream.update(1)
        >>> stream.belief.probs.shape
        torch.Size([1, 2])
    """

    def __init__(self, model: Any, method: Method | None = None, belief: Any = None):
        self.model, self.method, self.belief = model, choose(model, method), belief
        with torch.no_grad():
            self.constants = self.method.constants(model)
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

    def update(self, y: Any, inputs: Any = None) -> Any:
        """See one observation (None, NaN or -1: a gap) and return the belief about the state now.

        Args:
            y: one symbol or vector.
            inputs: the inputs of this step.
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
        return self.belief

    def forecast(self, steps: int, samples: int = 200, seed: int | None = 0, inputs: Any = None) -> Forecast:
        """What comes next.

        Args:
            steps: how many steps ahead.
            samples: how many futures to draw.
            seed: makes them repeatable.
            inputs: (steps, U) inputs to come.
        """
        if self.belief is None:
            raise StatespanError("nothing has been seen yet; update the stream first, or use model.sample")
        layout = Layout(True, False, [1])
        with torch.no_grad(), seeded(seed):
            return forecast_from(self.model, self.method, self.constants, self.belief, layout, steps, samples, inputs)
