"""Fitting models to a file's sequences, with a bar, and with what was done kept on Ctrl-C."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from statespan.cli import screen
from statespan.errors import StatespanError
from statespan.tables import Data

STARTS = 4
"""Of an hmm, whose likelihood has many peaks."""


class Plan(NamedTuple):
    """How to fit: `--by`, `--iterations`, `--learning-rate`, `--restarts`, `--seed`."""

    by: str | None
    iterations: int
    learning_rate: float
    restarts: int
    seed: int


class Fitted(NamedTuple):
    """The best model of several starts.

    Args:
        model: it.
        notes: what a user should know: an unused state, no convergence.
        stopped: what was done before Ctrl-C, in words; None where the fit went to its end.
    """

    model: Any
    notes: list[str]
    stopped: str | None


class _Best:
    """The best parameters seen so far, of any start."""

    def __init__(self) -> None:
        self.likelihood, self.iterations = -float("inf"), 0
        self.model: Any = None
        self.state: Any = None
        self.notes: list[str] = []

    def see(self, model: Any, likelihood: float) -> None:
        """After an iteration."""
        self.iterations += 1
        if likelihood > self.likelihood or self.model is None:
            self.likelihood, self.model, self.state = likelihood, model, copy.deepcopy(model.state_dict())
            self.notes = []

    def fitted(self, stopped: bool) -> Fitted:
        """The model with those parameters."""
        self.model.load_state_dict(self.state)
        done = f"{self.iterations} iteration{'s' if self.iterations > 1 else ''}"
        return Fitted(self.model.eval(), self.notes, done if stopped else None)


def fit(make: Callable[[int], Any], data: Data, plan: Plan, what: str = "fitting") -> Fitted:
    """Fit from several starts, each from the data where the parts can begin there, and keep the best.

    Args:
        make: a new model from a seed.
        data: of a file.
        plan: how.
        what: said beside the bar.

    Raises:
        StatespanError: no start succeeded; the error of the first.
    """
    import torch

    from statespan import verbs
    from statespan.fit.fitting import restart
    from statespan.part import seeded

    if plan.restarts < 1 or plan.iterations < 1:
        raise StatespanError(f"--restarts {plan.restarts} --iterations {plan.iterations}: give at least 1 of each")
    best, errors = _Best(), []
    model = make(plan.seed)
    fitter = _fitter(plan, model)
    y, _ = verbs.ask(model, data.y(model.emission.event))
    with screen.progress(plan.restarts, plan.iterations, what) as follow:
        try:
            for start in range(plan.restarts):
                model = make(plan.seed + start)
                with seeded(plan.seed + start):
                    if any(hasattr(part, "begin") for part in model.parts):
                        restart(model, y)
                    try:
                        fitter.callback = _watch(model, best, follow)
                        value = fitter(model, y, start=False)
                    except StatespanError as error:
                        errors.append(error)
                        continue
                with torch.no_grad():
                    if value >= best.likelihood:
                        best.likelihood, best.model, best.notes = value, model, list(fitter.notes)
                        best.state = copy.deepcopy(model.state_dict())
        except KeyboardInterrupt:
            if best.model is None:
                raise
            return best.fitted(True)
    if best.model is None:
        raise errors[0]
    if errors:
        best.notes.append(f"{len(errors)} of {plan.restarts} starts failed; the first: {errors[0]}")
    return best.fitted(False)


def held_out(make: Callable[[int], Any], data: Data, plan: Plan, share: float, what: str) -> float:
    """The log-probability of a step, in nats, that a fit to the rest was not shown.

    Of five sequences or more every so many-th is held out; else the end of each, which is then scored given what went
    before it.

    Args:
        make: a new model from a seed.
        data: of a file.
        plan: how to fit.
        share: how much is held out, between 0 and 1.
        what: said beside the bar.

    Raises:
        StatespanError: the share leaves nothing to fit or to score.
    """
    if not 0 < share < 1:
        raise StatespanError(f"--held-out {share:g}: give a share between 0 and 1, such as 0.2")
    whole = len(data.ends) >= 5
    ends = np.array(data.ends)
    if whole:
        out = np.zeros(len(ends), bool)
        out[np.linspace(0, len(ends) - 1, max(1, round(share * len(ends)))).round().astype(int)] = True
        keep = np.where(out, 0, ends)
    else:
        keep = np.maximum(1, np.floor((1 - share) * ends)).astype(int)
    within = np.concatenate([np.arange(end) for end in ends])
    shown = within < np.repeat(keep, ends)
    if not (~shown).any() or np.isnan(data.values[~shown]).all() or np.isnan(data.values[shown]).all():
        raise StatespanError(f"--held-out {share:g}: too little is left; the data have {len(shown)} steps")
    begun = data._replace(values=data.values[shown], ends=[int(n) for n in keep if n])
    model = fit(make, begun, plan, what).model.requires_grad_(False)
    surprise = np.concatenate([each.numpy() for each in model.filter(data.y(model.emission.event)).surprise])
    there = ~shown & ~np.isnan(data.values).all(1)
    return float(-surprise[there].mean())


def _watch(model: Any, best: _Best, follow: Callable[[int, float], None]) -> Callable[[int, float], None]:
    """What is called after each iteration."""

    def callback(iteration: int, likelihood: float) -> None:
        best.see(model, likelihood)
        follow(iteration, likelihood)

    return callback


def _fitter(plan: Plan, model: Any) -> Any:
    """What `--by` means for a model."""
    from statespan.fit import EM, SGD
    from statespan.fit.em import closed_form

    by = plan.by or ("em" if closed_form(model) else "sgd")
    makers = {
        "em": lambda: EM(iterations=plan.iterations),
        "sgd": lambda: SGD(epochs=plan.iterations, learning_rate=plan.learning_rate),
    }
    if by not in makers:
        raise StatespanError(f"--by {by}: choose one of {', '.join(makers)}")
    return makers[by]()


def save(model: Any, path: Path, extra: dict[str, Any]) -> None:
    """Write the model and what its columns are called."""
    from statespan.files import save as write

    write(model, path, extra)
