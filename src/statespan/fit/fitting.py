"""What a fitter is, one after another, and restarts."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from statespan.errors import StatespanError, brief
from statespan.files import describe, make
from statespan.part import seeded
from statespan.sequences import Sequences

adam = partial(torch.optim.Adam, fused=True)
"""Adam in one pass over memory: a step takes under half the time on three states, an eighth on ten million numbers."""


class Fitter(ABC):
    """A way of fitting parameters.

    After a fit `history` holds the log-likelihood of each iteration, `restarts` what each start reached (minus infinity
    where it failed), and `notes` what a user should know: an unused state, a variance at its floor, no convergence.
    """

    history: list[float]
    restarts: Sequence[float] = ()
    notes: Sequence[str] = ()

    @abstractmethod
    def __call__(self, model: Any, data: Sequences, start: bool) -> float:
        """Fit in place and return the final log-likelihood; `start` asks for a start from the data."""


class Chain(Fitter):
    """One fitter after another on the same parameters: EM, then gradient descent.

    `model.fit(y, by=[EM(...), SGD(...)])` makes one.

    Args:
        steps: the fitters; `history` is theirs, end to end.

    Raises:
        StatespanError: no fitter.

    Example:
        >>> import statespan as ss
        >>> model = ss.hmm(states=2, emission=ss.Categorical(3), seed=0)
        >>> chain = ss.Chain(ss.EM(iterations=3, tolerance=0), ss.SGD(epochs=4))
        >>> _ = model.fit([0, 1, 2, 0], by=chain)
        >>> len(chain.history)
        7
    """

    def __init__(self, *steps: Fitter):
        if not steps:
            raise StatespanError("by=[]: give at least one fitter, such as EM()")
        self.steps, self.history = steps, []

    def __copy__(self) -> Chain:
        """A chain of copies, so that restarts do not write over each other."""
        return Chain(*[copy.copy(step) for step in self.steps])

    def __call__(self, model: Any, data: Sequences, start: bool = False) -> float:
        """Fit in place; what the last fitter says."""
        value = -float("inf")
        for i, step in enumerate(self.steps):
            value = step(model, data, start=start and i == 0)
        self.history = [x for step in self.steps for x in step.history]
        self.notes = self.steps[-1].notes
        return value


def fit(
    model: Any,
    data: Sequences,
    by: Fitter | Sequence[Fitter] | None,
    restarts: int,
    seed: int | None,
    hold: Sequence[str] = (),
    jobs: int = 1,
) -> Any:
    """Fit by `by`, keeping the best of `restarts` starts: the model as it is, then `restart` for each other.

    Every start has a seed of its own, so the answer does not depend on `jobs`, the processes they are shared among.
    """
    if restarts < 1 or jobs < 1:
        raise StatespanError(f"restarts={restarts}, jobs={jobs}: use at least one")
    by = _fitter(by, model)
    with held(model, hold):
        if restarts == 1:
            with seeded(seed):
                by.restarts = [by(model, data, start=False)]
            return model
        with seeded(seed):
            seeds = torch.randint(2**62, (restarts,)).tolist()
        tasks = [(by, data, i > 0, number) for i, number in enumerate(seeds)]
        if jobs == 1:
            results = (attempt(copy.deepcopy(model), *task) for task in tasks)
        else:
            from statespan.fit.processes import attempts

            results = attempts(model, tasks, min(jobs, restarts))
        _keep_best(model, by, results)
    return model


Result = tuple[float, Any, Any]
"""What a start gave: the value, the fitter with its history, and the parameters; or minus infinity and the error."""


def attempt(model: Any, by: Fitter, data: Sequences, start: bool, seed: int) -> Result:
    """One start, on a model of its own."""
    by = copy.copy(by)
    try:
        with seeded(seed):
            value = by(model, data, start=start)
    except StatespanError as error:
        return -float("inf"), error, None
    return value, by, model.state_dict()


def _keep_best(model: Any, by: Fitter, results: Iterator[Result]) -> None:
    best: Any = (-float("inf"), None, None)
    values, errors = [], []
    for result in results:
        values.append(result[0])
        if result[2] is None:
            errors.append(result[1])
        elif best[2] is None or result[0] > best[0]:
            best = result
    if best[2] is None:
        raise errors[0]
    model.load_state_dict(best[2])
    model.eval()
    vars(by).update(vars(best[1]))
    by.restarts = values
    if errors:
        by.notes = [*by.notes, f"{len(errors)} of {len(values)} starts failed; the first: {errors[0]}"]


def _fitter(by: Any, model: Any) -> Fitter:
    """What `by=` means."""
    if by is None:
        return usual(model)()
    steps: list[Any] = [by] if isinstance(by, (Fitter, str)) or not isinstance(by, Sequence) else list(by)
    for step in steps:
        if not isinstance(step, Fitter):
            raise StatespanError(f"by={brief(step)} is no fitter; give an instance, such as ss.EM() or ss.SGD()")
    return Chain(*steps) if isinstance(by, Sequence) else steps[0]


def usual(model: Any) -> Any:
    """The fitter of a model where none is named: EM where every part has a closed form, else by the gradient.

    Where that is exact it leads straight up: quasi-Newton steps then. Where it is of a guess or a draw (a network with
    gaps, particles), and of networks in general, small steps.
    """
    from statespan.fit.em import EM, closed_form
    from statespan.fit.lbfgs import LBFGS
    from statespan.fit.sgd import SGD
    from statespan.methods import method_for

    if closed_form(model):
        return EM
    return LBFGS if method_for(model).exact(model) else SGD


@contextmanager
def held(model: Any, names: Sequence[str]) -> Iterator[None]:
    """Hold parameters by name while inside: a part ("transition") or a parameter of one ("emission.mean")."""
    names = [names] if isinstance(names, str) else names
    parameters = dict(model.named_parameters(remove_duplicate=False))
    chosen = []
    for name in names:
        found = [p for key, p in parameters.items() if key == name or key.startswith(f"{name}.")]
        if not found:
            raise StatespanError(f"hold={name!r} names no parameter; choose a part or one of {', '.join(parameters)}")
        chosen += [p for p in found if p.requires_grad]
    try:
        for p in chosen:
            p.requires_grad_(False)
        yield
    finally:
        for p in chosen:
            p.requires_grad_(True)


@torch.no_grad()
def restart(model: Any, data: Sequences) -> None:
    """New random values, as if the model were made again, then what its parts can begin from the data.

    A zero of a table (an infinite logit) stays: it is structure. So does what is held.
    """
    fresh = dict(make(describe(model)).named_parameters(remove_duplicate=False))
    before = [(p, p.clone()) for p in model.parameters() if not p.requires_grad]
    for name, parameter in model.named_parameters():
        parameter.copy_(torch.where(parameter.isinf(), parameter, fresh[name].to(parameter)))
    for part in model.parts:
        if hasattr(part, "begin"):
            part.begin(data.y, data.u, data.present)
    for parameter, value in before:
        parameter.copy_(value)
