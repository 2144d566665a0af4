"""Expectation maximisation."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from statespan.errors import StatespanError
from statespan.fit.degenerate import at_bounds, unused_states
from statespan.fit.fitting import Fitter, adam, restart
from statespan.kernels.lanes import each, one_thread
from statespan.method import Method, Statistics, closed_parts, run, total, weighted
from statespan.sequences import Sequences, any_of
from statespan.tree import add
from statespan.verbs import choose

PADDING = 100_000
"""Numbers (steps times states) of padding that a group may have: a group of its own takes as long."""

LARGEST_GROUP = 1_500_000
"""Numbers (steps times states) above which a group is cut: larger tensors cost cache misses and page faults."""


def closed_form(model: Any) -> bool:
    """Whether every part has a closed-form M-step."""
    return all(closed_parts(model))


class EM(Fitter):
    r"""Baum-Welch: expected counts by one backward pass through the likelihood, then each part's closed form.

    What climbs is the log-likelihood plus the parts' log-priors (`concentration=` and the like), and `history` holds
    that. A parameter whose `requires_grad` is False is held where it is.

    `notes` then says what is degenerate: a state in which no more than one step is expected, a variance at its floor.

    A part without a closed form (a fed transition), or whose parameters another part uses too (a tied embedding), takes
    gradient steps on the log-likelihood instead, whose gradient at the current parameters is that of the expected
    complete log-likelihood (Fisher's identity); that is generalised EM.

    Args:
        iterations: at most this many.
        tolerance: stop when the log-likelihood of an observation rises by less than this; 0 never stops.
        batch: how many sequences the E-step takes at once.
        steps: gradient steps an iteration on parts without a closed form.
        learning_rate: of those steps (Adam).
        callback: called after each iteration with its number, from 1, and what `history` got, the value before it.
        method: of the E-step, such as `Checkpointed()`; None is the model's own.

    Raises:
        StatespanError: fewer than one iteration; in a fit, an observation that the model gives probability zero, or a
            method without an E-step.

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
        steps: int = 5,
        learning_rate: float = 0.01,
        callback: Callable[[int, float], None] | None = None,
        method: Method | None = None,
    ):
        if int(iterations) != iterations or iterations < 1:
            raise StatespanError(f"EM(iterations={iterations}): use a whole number, at least one")
        self.iterations, self.tolerance, self.batch, self.callback = iterations, tolerance, batch, callback
        self.steps, self.learning_rate, self.method = steps, learning_rate, method
        self.history: list[float] = []

    def __call__(self, model: Any, data: Sequences, start: bool = False) -> float:
        """Fit in place; the log-likelihood at the last E-step."""
        if start:
            restart(model, data)
        method = choose(model, self.method)
        return self.fit_batches(model, *group(data, method.breadth(model, data), self.batch))

    def fit_batches(self, model: Any, batches: list[Sequences], names: list[Tensor] | None = None) -> float:
        """Fit in place to sequences already in batches; the log-likelihood at the last E-step.

        Args:
            model: a state space whose method has an E-step.
            batches: the sequences.
            names: what each sequence of each batch is called in an error; None numbers them within their batch.
        """
        method = choose(model, self.method)
        each = zip(model.parts, closed_parts(model), strict=True)
        free = {p for part, closed in each if not closed for p in part.parameters() if p.requires_grad}
        count = sum(observations(b) for b in batches)
        optimiser = adam([p for p in model.parameters() if p in free], lr=self.learning_rate) if free else None
        self.history, stats, converged = [], None, False
        for _ in range(self.iterations):
            likelihood, stats = self.expect(model, method, batches, names)
            with one_thread(), torch.no_grad():
                likelihood += float(model.log_prior())
            self.history.append(likelihood)
            self.maximize(model, stats)
            if self.callback is not None:
                self.callback(len(self.history), likelihood)
            if optimiser is not None:
                self._climb(model, method, batches, optimiser)
            if len(self.history) > 1 and likelihood - self.history[-2] < self.tolerance * count and self.tolerance:
                converged = True
                break
        self.notes = notes(model, stats)
        if (best := max(self.history)) - self.history[-1] > 1e-3 * max(count, abs(best)):
            self.notes.append(
                f"the log-likelihood fell from {best:.6g} to {self.history[-1]:.6g}: a variance went to zero, or the "
                "values are large beside their spread; subtract their mean, divide by their spread, or hold the noise"
            )
        if self.tolerance and not converged:
            self.notes.append(
                f"not converged after {self.iterations} iterations; give more, or start from another seed"
            )
        return self.history[-1]

    def expect(
        self, model: Any, method: Method, batches: list[Sequences], names: list[Tensor] | None = None
    ) -> tuple[float, Statistics]:
        """The E-step: the log-likelihood, and sums of statistics over all batches."""
        likelihood, stats = 0.0, None
        with one_thread(), torch.no_grad():
            constants = method.constants(model)
        sizes = [math.prod(data.shape) for data in batches]
        expected = each(lambda i: method.expect(model, constants, batches[i]), sizes)
        for data, name, (log_prob, new) in zip(batches, names or [None] * len(batches), expected, strict=True):
            with one_thread():
                likelihood += float(total(log_prob, name, data.weights))
                stats = new if stats is None else add(stats, new)
        assert stats is not None
        return likelihood, stats

    @one_thread()
    @torch.no_grad()
    def maximize(self, model: Any, stats: Statistics) -> None:
        """The M-step of every part that has a closed form; what is held stays."""
        together = getattr(model.initial, "together", False)
        for part, sums in zip(model.parts, stats, strict=True):
            parameters = list(part.parameters())
            if sums is None or not any(p.requires_grad for p in parameters) or (together and part is model.transition):
                continue
            held = [(p, p.clone()) for p in parameters if not p.requires_grad]
            if together and part is model.initial:
                part.maximize_with(sums, stats.transition)
            else:
                part.maximize(sums)
            for parameter, value in held:
                parameter.copy_(value)

    def _climb(self, model: Any, method: Method, batches: list[Sequences], optimiser: torch.optim.Optimizer) -> None:
        for _ in range(self.steps):
            optimiser.zero_grad()
            for data in batches:
                log_prob = run(model, method, data).log_prob
                assert log_prob is not None
                value = weighted(log_prob, data.weights).sum() + model.log_prior() / len(batches)
                (-value / log_prob.numel()).backward()
            optimiser.step()


def notes(model: Any, stats: Statistics | None) -> list[str]:
    """What a user should know of a fit: unused states and parameters at their bounds."""
    owners = getattr(model.transition, "owners", None)
    unused = [] if stats is None else unused_states(stats.initial, stats.transition, owners)
    return unused + [note for part in model.parts for note in at_bounds(part)]


def observations(data: Sequences) -> int:
    """How many steps are there."""
    present = data.present
    if present is None:
        return data.shape[0] * data.shape[1]
    return int(any_of(present).sum())


@one_thread()
def group(data: Sequences, breadth: int, size: int = 4096) -> tuple[list[Sequences], list[Tensor]]:
    """Sequences of like length together, so that little is padding, in groups that stay in the cache.

    Args:
        data: the sequences.
        breadth: K, or how many numbers a step takes; a group is cut where its steps times K grow large.
        size: sequences in a group at most.

    Returns:
        The groups, and which sequences each holds.
    """
    length, batch = data.shape
    if data.lengths is None:
        most = max(1, min(size, LARGEST_GROUP // (length * breadth)))
        names = list(torch.arange(batch, device=data.device).split(most))
        return ([data] if len(names) == 1 else [take(data, index) for index in names]), names
    lengths, order = data.lengths.sort(descending=True, stable=True)
    groups, start, steps = [], 0, lengths.tolist()
    for i in range(1, batch + 1):
        full = i - start == size or (i - start + 1) * steps[start] * breadth > LARGEST_GROUP
        # A new group pays its own overhead: it begins where the padding it saves is worth more.
        short = i < batch and (i - start) * (steps[start] - steps[i]) * breadth > PADDING
        if i == batch or full or short:
            groups.append(order[start:i])
            start = i
    return [take(data, index) for index in groups], groups


def take(data: Sequences, index: Tensor) -> Sequences:
    """The sequences of `index`, cut to the longest of them."""
    longest = data.shape[0] if data.lengths is None else int(data.lengths[index].max())
    chosen = data.each(lambda x, axis: x[:longest, index] if axis else x[index])
    whole = chosen.lengths is None or bool((chosen.lengths == longest).all())
    return chosen._replace(lengths=None) if whole else chosen
