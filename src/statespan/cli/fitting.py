"""Fitting models to a file's sequences, with a bar, and with what was done kept on Ctrl-C."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from statespan.cli import screen
from statespan.cli.screen import chosen
from statespan.errors import StatespanError
from statespan.tables import Data

PASSES = ("online", "sgd")
"""Fitters that count passes over the data."""
LEARNING_RATE = 0.05
"""Of sgd."""


class Plan(NamedTuple):
    """How to fit: `--by`, `--iterations`, `--learning-rate`, `--batch`, `--restarts`, `--seed`."""

    by: str | None
    iterations: int
    learning_rate: float | None
    batch: int | None
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
        if likelihood > self.likelihood:
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
    y, _ = verbs.ask(model, data.y(model.emission.event), inputs=data.u())
    with screen.progress(plan.restarts, plan.iterations, what) as follow, torch.enable_grad():
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
                    elif best.model is model:
                        best.notes = list(fitter.notes)
        except KeyboardInterrupt:
            if best.model is None:
                raise
            return best.fitted(True)
    if len(errors) == plan.restarts:
        raise errors[0]
    if errors:
        best.notes.append(f"{len(errors)} of {plan.restarts} starts failed; the first: {errors[0]}")
    return best.fitted(False)


def cross_validate(model: Any, data: Data, plan: Plan, folds: int) -> float:
    """The cross-validated log-likelihood of an observed step (`statespan.selection.cross_validate`)."""
    import torch

    from statespan import verbs
    from statespan.selection import cross_validate as validate

    sequences, _ = verbs.ask(model, data.y(model.emission.event), inputs=data.u())
    with torch.enable_grad():
        return validate(model, sequences, folds, _fitter(plan, model), 1, plan.seed)


def _watch(model: Any, best: _Best, follow: Callable[[int, float], None]) -> Callable[[int, float], None]:
    """What is called after each iteration."""

    def callback(iteration: int, likelihood: float) -> None:
        best.see(model, likelihood)
        follow(iteration, likelihood)

    return callback


def _fitter(plan: Plan, model: Any) -> Any:
    """What `--by` means for a model, with the options that it takes."""
    from statespan.fit import EM, LBFGS, SGD, VI, OnlineEM
    from statespan.fit.fitting import usual

    makers = {"em": EM, "vi": VI, "online": OnlineEM, "lbfgs": LBFGS, "sgd": SGD}
    by = next(name for name, maker in makers.items() if maker is usual(model))
    by = by if plan.by is None else chosen("--by", plan.by, makers)
    options: dict[str, Any] = {"epochs" if by in PASSES else "iterations": plan.iterations}
    if plan.learning_rate is not None and by != "sgd":
        raise StatespanError(f"--learning-rate {plan.learning_rate:g}: {by} has none; leave it out, or say --by sgd")
    if plan.learning_rate is not None and not 0 < plan.learning_rate < float("inf"):
        raise StatespanError(f"--learning-rate {plan.learning_rate:g}: give a number above 0")
    if plan.batch is not None and plan.batch < 1:
        raise StatespanError(f"--batch {plan.batch}: give at least 1")
    if plan.batch is not None and by not in PASSES:
        raise StatespanError(f"--batch {plan.batch}: {by} takes all sequences at once; leave it out or say --by online")
    if by == "sgd":
        options["learning_rate"] = LEARNING_RATE if plan.learning_rate is None else plan.learning_rate
    if plan.batch is not None:
        options["batch"] = plan.batch
    return makers[by](**options)


def save(model: Any, path: Path, extra: dict[str, Any]) -> None:
    """Write the model and what its columns are called."""
    from statespan.files import save as write

    write(model, path, extra)
