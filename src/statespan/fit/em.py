"""Expectation maximisation."""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from statespan.errors import StatespanError
from statespan.fit.fitting import Fitter, restart
from statespan.method import Prepared, run, total
from statespan.methods import Forward, check
from statespan.methods.forward import expectations
from statespan.sequences import Sequences
from statespan.tree import Tree, leaves, replace_leaves, tree_map


class Statistics(NamedTuple):
    """Expected statistics of the three parts, in their own forms; None where a part has no closed form."""

    initial: Tree
    transition: Tree
    emission: Tree


SMALLEST_GROUP = 8192
"""Steps below which sequences of unlike length stay together."""

LARGEST_GROUP = 1_500_000
"""Numbers (steps times states) above which a group is cut: larger tensors cost cache misses and page faults."""


def closed_parts(model: Any) -> list[nn.Module]:
    """The parts whose M-step has a closed form: they know one, and share no parameter with another part."""
    users = Counter(id(p) for part in model.parts for p in part.parameters())
    return [
        part for part in model.parts if hasattr(part, "maximize") and all(users[id(p)] == 1 for p in part.parameters())
    ]


def closed_form(model: Any) -> bool:
    """Whether every part has a closed-form M-step."""
    return len(closed_parts(model)) == len(model.parts)


class EM(Fitter):
    r"""Baum-Welch: expected counts by one backward pass through the likelihood, then each part's closed form.

    A part without a closed form (a fed transition), or whose parameters another part uses too (a tied embedding), takes
    gradient steps on the log-likelihood instead, whose gradient at the current parameters is that of the expected
    complete log-likelihood (Fisher's identity); that is generalised EM.

    Args:
        iterations: at most this many.
        tolerance: stop when the log-likelihood of an observation rises by less than this; 0 never stops.
        batch: how many sequences the E-step takes at once.
        prior: pseudo-statistics of the initial state, the transition and the emission, each added to the expected
            ones (for counts, Dirichlet(1 + prior)); a single number is added to every count, and to nothing else.
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
        if start:
            restart(model, data)
        return self.fit_batches(model, *group(data, len(model.initial.probs()), self.batch))

    def fit_batches(self, model: Any, batches: list[Sequences], names: list[Tensor] | None = None) -> float:
        """Fit in place to sequences already in batches; the log-likelihood at the last E-step.

        Args:
            model: a finite state space.
            batches: the sequences.
            names: what each sequence of each batch is called in an error; None numbers them within their batch.
        """
        method, closed = Forward(), closed_parts(model)
        free = {p for part in model.parts if part not in closed for p in part.parameters() if p.requires_grad}
        count = sum(observations(b) for b in batches)
        optimiser = torch.optim.Adam([p for p in model.parameters() if p in free], self.learning_rate) if free else None
        self.history = []
        for _ in range(self.iterations):
            likelihood, stats = self.expect(model, method, batches, names)
            self.history.append(likelihood)
            self.maximize(model, stats)
            if self.callback is not None:
                self.callback(len(self.history), likelihood)
            if optimiser is not None:
                self._climb(model, method, batches, optimiser)
            if len(self.history) > 1 and likelihood - self.history[-2] < self.tolerance * count and self.tolerance:
                break
        return self.history[-1]

    def expect(
        self, model: Any, method: Forward, batches: list[Sequences], names: list[Tensor] | None = None
    ) -> tuple[float, Statistics]:
        """The E-step: the log-likelihood, and sums of statistics over all batches."""
        likelihood, stats, closed = 0.0, None, closed_parts(model)
        with torch.no_grad():
            constants = method.constants(model)
        for data, name in zip(batches, names or [None] * len(batches), strict=True):
            with torch.no_grad():
                prepared = Prepared(*method.prepare(model, constants, data), data.lengths)
            posterior, counts, log_prob = expectations(model, method, prepared, None, data.shape)
            likelihood += float(total(log_prob, name))
            observed, weights = data.observed, posterior
            if observed is not None:
                there = observed if observed.dim() == 2 else observed.any(-1)
                weights = torch.where(there[..., None], posterior, 0.0)
            new = Statistics(
                posterior[0].sum(0) if model.initial in closed else None,
                model.transition.statistics(counts) if model.transition in closed else None,
                model.emission.statistics(data.y, weights, observed) if model.emission in closed else None,
            )
            stats = new if stats is None else add(stats, new)
        assert stats is not None
        return likelihood, stats

    @torch.no_grad()
    def maximize(self, model: Any, stats: Statistics) -> None:
        """The M-step of every part that has a closed form."""
        for part, sums, prior in zip(model.parts, stats, self.prior, strict=True):
            if sums is not None:
                part.maximize(_with_prior(sums, prior))

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
    return replace_leaves(a, [x + y for x, y in zip(leaves(a), leaves(b), strict=True)])


def _with_prior(sums: Tree, prior: Any) -> Tree:
    """Add pseudo-statistics; a bare number is a pseudo-count, and sums that are no counts have none."""
    if isinstance(prior, (int, float)):
        return sums + prior if isinstance(sums, Tensor) else sums
    return add(sums, prior)


def observations(data: Sequences) -> int:
    """How many steps are there."""
    present = data.present
    if present is None:
        return data.shape[0] * data.shape[1]
    return int((present if present.dim() == 2 else present.any(-1)).sum())


def group(data: Sequences, states: int, size: int = 4096) -> tuple[list[Sequences], list[Tensor]]:
    """Sequences of like length together, so that little is padding, in groups that stay in the cache.

    Args:
        data: the sequences.
        states: K; a group is cut where its steps times K grow large.
        size: sequences in a group at most.

    Returns:
        The groups, and which sequences each holds.
    """
    length, batch = data.shape
    if data.lengths is None:
        most = max(1, min(size, LARGEST_GROUP // (length * states)))
        names = list(torch.arange(batch, device=data.device).split(most))
        return ([data] if len(names) == 1 else [take(data, index) for index in names]), names
    lengths, order = data.lengths.sort(descending=True, stable=True)
    groups, start, steps = [], 0, lengths.tolist()
    for i in range(1, batch + 1):
        full = i - start == size or (i - start + 1) * steps[start] * states > LARGEST_GROUP
        # A new group pays its own overhead: it begins where the padding it saves is worth more.
        short = i < batch and steps[i] < 0.8 * steps[start] and (i - start) * steps[start] > SMALLEST_GROUP
        if i == batch or full or short:
            groups.append(order[start:i])
            start = i
    return [take(data, index) for index in groups], groups


def take(data: Sequences, index: Tensor) -> Sequences:
    """The sequences of `index`, cut to the longest of them."""
    longest = data.shape[0] if data.lengths is None else int(data.lengths[index].max())
    lengths = None if data.lengths is None else data.lengths[index]
    if lengths is not None and bool((lengths == longest).all()):
        lengths = None
    return tree_map(lambda x: x[:longest, index], data._replace(lengths=None))._replace(lengths=lengths)
