"""What a fitter is, and restarts."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any

from statespan.errors import StatespanError
from statespan.part import seeded
from statespan.sequences import Sequences


class Fitter(ABC):
    """A way of fitting parameters; `history` holds the log-likelihood of each iteration of the last fit."""

    history: list[float]

    @abstractmethod
    def __call__(self, model: Any, data: Sequences, start: bool) -> float:
        """Fit in place and return the final log-likelihood; `start` asks for a start from the data."""


def fit(model: Any, data: Sequences, by: Fitter | None, restarts: int, seed: int | None) -> Any:
    """Fit by `by`, from `restarts` starts, keeping the best.

    The first start is the model as it is; the others, and the first of several, start from the data where the
    emission knows how.
    """
    from statespan.fit.em import EM, closed_form
    from statespan.fit.sgd import SGD

    if restarts < 1:
        raise StatespanError(f"restarts={restarts}: use at least one")
    if by is None:
        by = EM() if closed_form(model) else SGD()
    best, state, history = -float("inf"), None, []
    original = copy.deepcopy(model.state_dict()) if restarts > 1 else None
    with seeded(seed):
        for attempt in range(restarts):
            if original is not None:
                model.load_state_dict(original)
            value = by(model, data, start=restarts > 1 and attempt > 0)
            if value > best or state is None:
                best, history = value, by.history
                state = copy.deepcopy(model.state_dict()) if restarts > 1 else {}
    if restarts > 1 and state is not None:
        model.load_state_dict(state)
    by.history = history
    return model
