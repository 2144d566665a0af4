"""Expectation maximisation."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from statespan.errors import StatespanError
from statespan.fit.fitting import Fitter
from statespan.method import Prepared, run, total
from statespan.methods import Forward, check
from statespan.methods.forward import expectations
from statespan.sequences import Sequences
from statespan.tree import Tree, leaves, replace_leaves

SMALLEST_GROUP = 8192
"""Symbols below which sequences of unlike length stay together."""


def closed_form(model: Any) -> bool:
    """Whether every part has a closed-form M-step."""
    return all(hasattr(part, "maximize") for part in (model.initial, model.transition, model.emission))


class EM(Fitter):
    r"""Baum-Welch: expected counts by one backward pass through the likelihood, then each part's closed form.

    A part without a closed form (a fed transition) takes gradient steps on the log-likelihood instead, whose gradient
    at the current parameters is that of the expected complete log-likelihood (Fisher's identity); that is
    generalised EM.

    Args:
        iterations: at most this many.
        tolerance: stop when the log-likelihood of an observation rises by less than this; 0 never stops.
        batch: how many sequences the E-step takes at once.
        prior: pseudo-statistics of the initial state, the transition and the emission, each added to the expected
            ones (for counts, Dirichlet(1 + prior)); a single number is added to every count.
        steps: gradient steps an iteration on parts without a closed form.
        learning_rate: of those steps (Adam).
        callback: called after each iteration with its number, from 1, and the log-likelihood before its M-step.

    Source:
        Baum et al. 1970; Dempster, Laird and Rubin 1977; counts as gradients: Eisner 2016.

    Example:
        >>> import statespan as ss
        >>> em = ss.EM(iterations=5)
        >>> _ = ss.hmm(states=2, emission=ss.Categorical(3), seed=0).fit([[0, 1, 2, 0], [1, 1]], by=em)
        >>> all(a <= b + 1e-9 for a, b in zip(em.history, em.history[1:]))
        True
    """

    def __init__(
        self,
        iterations: int = 100,
        tolerance: float = 1e-6,
        batch: int = 4096,
        prior: float | tuple[Any, Any, Any] = 0.0,
        steps: int = 5,
        learning_rate: float = 0.01,
        callback: Callable[[int, float], None] | None = None,
    ):
        if iterations < 1:
            raise StatespanError(f"EM(iterations={iterations}): use at least one")
        self.iterations, self.tolerance, self.batch, self.callback = iterations, tolerance, batch, callback
        self.prior = prior if isinstance(prior, tuple) else (prior, prior, prior)
        self.steps, self.learning_rate = steps, learning_rate
        self.history: list[float] = []

    def __call__(self, model: Any, data: Sequences, start: bool = False) -> float:
        """Fit in place; the log-likelihood at the last E-step."""
        check(Forward(), model)
        if start and hasattr(model.emission, "begin"):
            _restart(model, data)
        return self.fit_batches(model, _batches(data, self.batch))

    def fit_batches(self, model: Any, batches: list[Sequences]) -> float:
        """Fit in place to sequences already in batches; the log-likelihood at the last E-step."""
        method = Forward()
        free = [part for part in (model.initial, model.transition, model.emission) if not hasattr(part, "maximize")]
        observations = sum(_observations(b) for b in batches)
        optimiser = None
        if free:
            shared = {id(p) for part in (model.initial, model.emission) if part not in free for p in part.parameters()}
            parameters = [p for part in free for p in part.parameters() if id(p) not in shared]
            optimiser = torch.optim.Adam(parameters, self.learning_rate)
        self.history = []
        for _ in range(self.iterations):
            likelihood, stats = self.expect(model, method, batches)
            self.history.append(likelihood)
            self.maximize(model, stats)
            if self.callback is not None:
                self.callback(len(self.history), likelihood)
            if optimiser is not None:
                self._climb(model, method, batches, optimiser)
            if (
                len(self.history) > 1
                and likelihood - self.history[-2] < self.tolerance * observations
                and self.tolerance
            ):
                break
        return self.history[-1]

    def expect(self, model: Any, method: Forward, batches: list[Sequences]) -> tuple[float, Tree]:
        """The E-step: the log-likelihood, and sums of statistics over all batches."""
        likelihood, stats = 0.0, None
        with torch.no_grad():
            constants = method.constants(model)
        for data in batches:
            with torch.no_grad():
                prepared = Prepared(*method.prepare(model, constants, data), data.lengths)
            posterior, counts, log_prob = expectations(model, method, prepared, None, data.shape)
            likelihood += float(total(log_prob))
            observed, weights = data.observed, posterior
            if observed is not None:
                there = observed if observed.dim() == 2 else observed.any(-1)
                weights = torch.where(there[..., None], posterior, 0.0)
            emission = None
            if hasattr(model.emission, "maximize") and data.y is not None:
                emission = model.emission.statistics(data.y, weights, observed)
            new = (posterior[0].sum(0), counts, emission)
            stats = new if stats is None else add(stats, new)
        return likelihood, stats

    @torch.no_grad()
    def maximize(self, model: Any, stats: Tree) -> None:
        """The M-step of every part that has a closed form."""
        first, counts, emission = stats
        if hasattr(model.initial, "maximize"):
            model.initial.maximize(first + self.prior[0])
        if hasattr(model.transition, "maximize"):
            model.transition.maximize(leaves(counts)[0] + self.prior[1])
        if emission is not None:
            model.emission.maximize(emission + self.prior[2] if isinstance(emission, Tensor) else emission)

    def _climb(self, model: Any, method: Forward, batches: list[Sequences], optimiser: torch.optim.Optimizer) -> None:
        for _ in range(self.steps):
            optimiser.zero_grad()
            for data in batches:
                log_prob = run(model, method, data).log_prob
                assert log_prob is not None
                (-log_prob.sum() / log_prob.numel()).backward()
            optimiser.step()


def add(a: Tree, b: Tree) -> Tree:
    """Add two trees of sums."""
    if a is None:
        return None
    return replace_leaves(a, [x + y for x, y in zip(leaves(a), leaves(b), strict=True)])


def _restart(model: Any, data: Sequences) -> None:
    """New random tables, and an emission begun from the data."""
    with torch.no_grad():
        for part in (model.initial, model.transition):
            for parameter in part.parameters():
                nn.init.normal_(parameter)
    model.emission.begin(data.y, data.present)


def _observations(data: Sequences) -> int:
    """How many steps are there."""
    present = data.present
    if present is None:
        return data.shape[0] * data.shape[1]
    return int((present if present.dim() == 2 else present.any(-1)).sum())


def _batches(data: Sequences, size: int) -> list[Sequences]:
    """Sequences of like length together, at most `size` at once, so that little is padding."""
    length, batch = data.shape
    if data.lengths is None:
        return [data] if batch <= size else [_take(data, index) for index in torch.arange(batch).split(size)]
    lengths, order = data.lengths.sort(descending=True, stable=True)
    groups, start, steps = [], 0, lengths.tolist()
    for i in range(1, batch + 1):
        full = i - start == size
        # A new group pays its own overhead: it begins where the padding it saves is worth more.
        short = i < batch and steps[i] < 0.8 * steps[start] and (i - start) * steps[start] > SMALLEST_GROUP
        if i == batch or full or short:
            groups.append(_take(data, order[start:i]))
            start = i
    return groups


def _take(data: Sequences, index: Tensor) -> Sequences:
    """The sequences of `index`, cut to the longest of them."""
    longest = data.shape[0] if data.lengths is None else int(data.lengths[index].max())
    cut = lambda x: None if x is None else x[:longest, index]  # noqa: E731
    lengths = None if data.lengths is None else data.lengths[index]
    if lengths is not None and bool((lengths == longest).all()):
        lengths = None
    return Sequences(cut(data.y), cut(data.u), cut(data.observed), lengths, cut(data.states))
