"""Expectation maximisation a batch at a time."""

from collections.abc import Callable
from functools import singledispatch
from typing import Any

import torch

from statespan.errors import StatespanError
from statespan.fit.em import EM, closed_form, group, notes, observations, take
from statespan.fit.fitting import Fitter, restart
from statespan.method import Statistics
from statespan.methods import method_for
from statespan.parts.emissions import (
    AdditiveGaussian,
    Categorical,
    FactorGaussian,
    Gaussian,
    GaussianMixture,
    LinearRegression,
    Multinomial,
    NegativeBinomial,
    ProductEmission,
    StudentT,
)
from statespan.parts.emissions.exponential import ExponentialFamily
from statespan.sequences import Sequences
from statespan.tree import Tree, leaves, replace_leaves
from statespan.verbs import ask


class OnlineEM(Fitter):
    r"""Stepwise EM: after every batch the running statistics move towards the batch's, and the M-step follows.

    s <- (1 - eta_k) s + eta_k s_batch / observations,  eta_k = (k + 1)^-power, eta of the first batch 1. The priors of
    parts count as much as they do in EM on all observations seen.

    It fits data that stay (`model.fit(y, by=OnlineEM(...))`, whose `history` has one entry an epoch: the sum of the
    batches' log-likelihoods, each before its own step) and data that come (`update(model, y)` for each batch).

    Args:
        epochs: passes over the sequences, in random order.
        batch: sequences in a batch.
        power: of the step sizes, above 0.5 and at most 1: smaller forgets faster.
        delay: batches to gather before the first M-step.
        callback: called after each epoch with its number, from 1, and what `history` got.

    Raises:
        StatespanError: a part without a closed form, or whose sums cannot be carried over when its parameters move.

    Source:
        Liang and Klein, Online EM for unsupervised models, NAACL 2009; Cappe and Moulines, On-line
        expectation-maximization algorithm for latent data models, JRSS B 71(3), 2009.

    Example:
        >>> import statespan as ss
        >>> model, online = ss.hmm(states=2, emission=ss.Categorical(3), seed=0), ss.OnlineEM()
        >>> for batch in ([[0, 1, 2]], [[2, 1], [0, 0, 1]]):
        ...     _ = online.update(model, batch)
        >>> online.seen
        8.0
    """

    def __init__(
        self,
        epochs: int = 5,
        batch: int = 32,
        power: float = 0.7,
        delay: int = 1,
        callback: Callable[[int, float], None] | None = None,
    ):
        if epochs < 1 or batch < 1 or delay < 1:
            raise StatespanError(f"OnlineEM(epochs={epochs}, batch={batch}, delay={delay}): use at least one")
        if not 0.5 < power <= 1:
            raise StatespanError(f"OnlineEM(power={power}): use more than 0.5 and at most 1, or it does not settle")
        self.epochs, self.batch, self.power, self.delay, self.callback = epochs, batch, power, delay, callback
        self.history: list[float] = []
        self.em = EM(iterations=1)
        self._forget()

    def _forget(self) -> None:
        self.running: Statistics | None = None
        self.steps, self.seen = 0, 0.0

    def __call__(self, model: Any, data: Sequences, start: bool = False) -> float:
        """Fit in place; the log-likelihood that the batches of the last epoch had, each before its own step."""
        if start:
            restart(model, data)
        self._forget()
        self.history = []
        whole = float(observations(data))
        for epoch in range(self.epochs):
            likelihood = 0.0
            for index in torch.randperm(data.shape[1]).split(self.batch):
                likelihood += self._step(model, take(data, index.sort().values), whole)
            self.history.append(likelihood)
            if self.callback is not None:
                self.callback(epoch + 1, likelihood)
        self.notes = notes(model, None)
        return self.history[-1]

    def update(self, model: Any, y: Any, lengths: Any = None, inputs: Any = None, weights: Any = None) -> Any:
        """Learn from one more batch, in place, and return the model.

        Args:
            model: the model that all batches are for.
            y: the sequences of this batch, as `fit` takes them.
            lengths: (N,) lengths of a padded batch.
            inputs: inputs, the forms of y.
            weights: weights of sequences or steps.
        """
        data, _ = ask(model, y, lengths, inputs, weights=weights)
        self.history.append(self._step(model, data, None))
        return model

    def _step(self, model: Any, data: Sequences, whole: float | None) -> float:
        if not closed_form(model):
            raise StatespanError("OnlineEM: a part of this model has no closed-form M-step; fit by SGD(batch=)")
        method = method_for(model)
        likelihood, new = self.em.expect(model, method, *group(data, method.breadth(model, data)))
        count = max(observations(data), 1)
        self.steps, self.seen = self.steps + 1, self.seen + count
        new = _times(new, 1 / count)
        rate = self.steps**-self.power
        running: Any = new if self.running is None else _blend(self.running, new, rate)
        if self.steps >= self.delay:
            before = {name: value.clone() for name, value in model.emission.state_dict().items()}
            self.em.maximize(model, _times(running, self.seen if whole is None else whole))
            kept = restate(model.emission, running.emission, before)
            running = running._replace(emission=kept)
        self.running = running
        return likelihood


def _times(stats: Tree, factor: float) -> Tree:
    return replace_leaves(stats, [x * factor for x in leaves(stats)])


def _blend(old: Tree, new: Tree, rate: float) -> Tree:
    return replace_leaves(old, [a + rate * (b - a) for a, b in zip(leaves(old), leaves(new), strict=True)])


@singledispatch
def restate(part: Any, stats: Tree, before: dict[str, torch.Tensor]) -> Tree:
    """An emission's sums as they are after its parameters moved from `before`, where sums are about the parameters.

    A part has its own by a method `restate(stats, before)`.
    """
    if hasattr(part, "restate"):
        return part.restate(stats, before)
    raise StatespanError(
        f"OnlineEM: how sums of {type(part).__name__} carry over when its parameters move is not known; fit by EM, or "
        "by SGD(batch=)"
    )


@restate.register(Categorical)
@restate.register(Multinomial)
@restate.register(NegativeBinomial)
@restate.register(ExponentialFamily)
def _(part: Any, stats: Tree, before: dict[str, torch.Tensor]) -> Tree:
    return stats


@restate.register(Gaussian)
@restate.register(FactorGaussian)
@torch.no_grad()
def _(part: Any, stats: Any, before: dict[str, torch.Tensor]) -> Any:
    first, second = _about(part.mean - before["mean"], stats.weight, stats.first, stats.second)
    return stats._replace(first=first, second=second)


@restate.register(StudentT)
@torch.no_grad()
def _(part: StudentT, stats: StudentT.Stats, before: dict[str, torch.Tensor]) -> StudentT.Stats:
    first, second = _about(part.loc - before["normal.mean"], stats.counted, stats.first, stats.second)
    return stats._replace(first=first, second=second)


def _about(moved: torch.Tensor, weight: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> tuple[Any, Any]:
    """Sums of x and of its squares, or of x x', about a mean (K, D) that has moved."""
    now = first - weight[:, None] * moved
    if second.dim() == 2:
        return now, second - 2 * moved * first + weight[:, None] * moved.square()
    cross = moved[:, :, None] * first[:, None]
    return now, second - cross - cross.mT + weight[:, None, None] * moved[:, :, None] * moved[:, None]


@restate.register(GaussianMixture)
def _(part: GaussianMixture, stats: GaussianMixture.Stats, before: dict[str, torch.Tensor]) -> GaussianMixture.Stats:
    return stats._replace(normals=restate(part.normals, stats.normals, _below("normals", before)))


@restate.register(ProductEmission)
def _(part: ProductEmission, stats: tuple, before: dict[str, torch.Tensor]) -> tuple:
    each = enumerate(zip(part.emissions, stats, strict=True))
    return tuple(restate(e, sums, _below(f"emissions.{i}", before)) for i, (e, sums) in each)


def _below(name: str, before: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a part within the part was."""
    return {key.removeprefix(f"{name}."): value for key, value in before.items() if key.startswith(f"{name}.")}


@restate.register(LinearRegression)
@torch.no_grad()
def _(part: LinearRegression, stats: LinearRegression.Stats, before: dict[str, torch.Tensor]) -> LinearRegression.Stats:
    moved = part.coefficients - before["coefficients"]  # (K, D, F)
    across = moved @ stats.cross.mT
    square = stats.square - across - across.mT + moved @ stats.design @ moved.mT
    return stats._replace(cross=stats.cross - moved @ stats.design, square=square)


@restate.register(AdditiveGaussian)
@torch.no_grad()
def _(part: AdditiveGaussian, stats: AdditiveGaussian.Stats, before: dict[str, torch.Tensor]) -> AdditiveGaussian.Stats:
    moved = part.table - before["table"]  # (P, D)
    across = moved.T @ stats.cross
    squares = stats.squares - across - across.T + moved.T @ stats.states @ moved
    return stats._replace(cross=stats.cross - stats.states @ moved, squares=squares)
