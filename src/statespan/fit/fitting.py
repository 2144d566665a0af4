"""What a fitter is, and restarts."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any

import torch

from statespan.errors import StatespanError
from statespan.files import describe, make
from statespan.part import seeded
from statespan.sequences import Sequences


class Fitter(ABC):
    """A way of fitting parameters; `history` holds the log-likelihood of each iteration of the last fit."""

    history: list[float]

    @abstractmethod
    def __call__(self, model: Any, data: Sequences, start: bool) -> float:
        """Fit in place and return the final log-likelihood; `start` asks for a start from the data."""


def fit(model: Any, data: Sequences, by: Fitter | None, restarts: int, seed: int | None) -> Any:
    """Fit by `by`, keeping the best of `restarts` starts: the model as it is, then `restart` for each other."""
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
            value = by(model, data, start=attempt > 0)
            if value > best or state is None:
                best, history = value, by.history
                state = copy.deepcopy(model.state_dict()) if restarts > 1 else {}
    if restarts > 1 and state is not None:
        model.load_state_dict(state)
    by.history = history
    return model


@torch.no_grad()
def restart(model: Any, data: Sequences) -> None:
    """New random values, as if the model were made again, then what its parts can begin from the data.

    A zero of a table (an infinite logit) stays: it is structure.
    """
    fresh = dict(make(describe(model)).named_parameters(remove_duplicate=False))
    for name, parameter in model.named_parameters():
        parameter.copy_(torch.where(parameter.isinf(), parameter, fresh[name].to(parameter)))
    for part in model.parts:
        if hasattr(part, "begin"):
            part.begin(data.y, data.u, data.present)
