"""Fitting a model to a file's sequences, with a bar, and with what was done kept on Ctrl-C."""

import copy
from pathlib import Path
from typing import Any, NamedTuple

from statespan.cli import screen
from statespan.errors import StatespanError
from statespan.tables import Data


class Plan(NamedTuple):
    """How to fit: `--by`, `--iterations`, `--learning-rate`, `--restarts`, `--seed`."""

    by: str | None
    iterations: int
    learning_rate: float
    restarts: int
    seed: int


def fit(model: Any, data: Data, plan: Plan) -> str | None:
    """Fit in place.

    Args:
        model: a state space.
        data: of a file.
        plan: how.

    Returns:
        None, or what was done before Ctrl-C stopped it; the model is then the best one so far.
    """
    import torch

    from statespan.fit import EM, SGD
    from statespan.fit.em import closed_form

    y = data.y(model.emission.event)
    by = plan.by or ("em" if closed_form(model) else "sgd")
    if by not in ("em", "sgd"):
        raise StatespanError(f"--by {by}: choose em or sgd")
    kept: dict[str, Any] = {"likelihood": -float("inf"), "state": None, "iterations": 0}
    with screen.progress(plan.restarts, plan.iterations, "iteration" if by == "em" else "pass") as follow:

        def callback(iteration: int, likelihood: float) -> None:
            kept["iterations"] += 1
            if likelihood > kept["likelihood"]:
                kept.update(likelihood=likelihood, state=copy.deepcopy(model.state_dict()))
            follow(iteration, likelihood)

        if by == "em":
            fitter = EM(iterations=plan.iterations, callback=callback)
        else:
            fitter = SGD(epochs=plan.iterations, learning_rate=plan.learning_rate, callback=callback)
        try:
            torch.manual_seed(plan.seed)
            model.fit(y, by=fitter, restarts=plan.restarts, seed=plan.seed)
        except KeyboardInterrupt:
            if kept["state"] is None:
                raise
            model.load_state_dict(kept["state"])
            return f"{kept['iterations']} iteration{'s' if kept['iterations'] > 1 else ''}"
    return None


def save(model: Any, path: Path, extra: dict[str, Any]) -> None:
    """Write the model and what its columns are called."""
    from statespan.files import save as write

    write(model, path, extra)
