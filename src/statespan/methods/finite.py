"""What the finite-state methods share: their tables, moves and likelihoods."""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from statespan.errors import StatespanError
from statespan.part import FiniteEmission, FiniteInitial, FiniteTransition, scaled
from statespan.sequences import Sequences
from statespan.tree import Lazy, Shared, Tree

ACCEPTS = (FiniteInitial, FiniteTransition, FiniteEmission)


class Constants(NamedTuple):
    """Tables made of parameters alone; `average` is the transition with a missing symbol summed out, made if needed."""

    initial: Tensor
    transition: Tree
    emission: Tree
    average: Lazy


class Moves(NamedTuple):
    """What acts on the move into t."""

    initial: Shared
    tables: Tree
    average: Shared


class Fed(NamedTuple):
    """What y_t leaves behind: the transition's own tree, and whether y_t was there (None: it was, everywhere)."""

    value: Tree
    observed: Tensor | None


class Likelihood(NamedTuple):
    """p(y_t | z_t = k) divided by its largest value, the log of that value, and what y_t feeds."""

    value: Tensor
    log_scale: Tensor
    fed: Fed | None


def prepare_likelihood(model: Any, constants: Constants, data: Sequences) -> Likelihood:
    """The likelihood of every step; ones where nothing is observed, zeros off a labelled state."""
    states, observed = len(constants.initial), data.observed
    excluded = None if data.states is None else _excluded(data.states, states)
    if data.y is None:
        value = constants.initial.new_ones(*data.shape, states)
        log_scale = value.new_zeros(data.shape, dtype=torch.float64)
    elif excluded is None:
        value, log_scale = model.emission.likelihood(data.y, data.u, observed, constants.emission)
    else:
        log = model.emission.log_likelihood(data.y, data.u, observed, constants.emission)
        value, log_scale = scaled(log.masked_fill(excluded, -torch.inf))
    # Past a sequence's end a likelihood may be anything: nothing there is scored, and no gradient comes from there.
    if observed is not None:
        there = observed if observed.dim() == 2 else observed.any(-1)
        value, log_scale = torch.where(there[..., None], value, 1.0), torch.where(there, log_scale, 0.0)
    if excluded is not None:
        value = value.masked_fill(excluded, 0.0)
    fed = None
    if model.transition.autoregressive:
        y = data.y if data.y is not None else torch.zeros(data.shape, dtype=torch.long, device=value.device)
        fed = Fed(model.transition.feed(y, data.u, constants.transition), data.observed)
    return Likelihood(value, log_scale, fed)


def _excluded(labels: Tensor, states: int) -> Tensor:
    """Where a label (T, B) says that a state is not the one: (T, B, K)."""
    if bool((labels >= states).any()):
        b, t = (states <= labels.T).nonzero()[0].tolist()
        raise StatespanError(
            f"sequence {b}, step {t}: labelled state {int(labels[t, b])} lies outside 0..{states - 1}; "
            "use -1 where the state is unknown"
        )
    each = torch.arange(states, device=labels.device)
    return (labels[..., None] >= 0) & (labels[..., None] != each)


def finite_constants(model: Any) -> Constants:
    """Stochastic tables from logits."""
    transition, emission = model.transition.constants(), model.emission.constants()
    return Constants(model.initial.probs(), transition, emission, Lazy(partial(_average, model, transition, emission)))


def _average(model: Any, transition: Tree, emission: Tree) -> Tensor:
    """The transition's table with a missing symbol summed out."""
    initial = model.initial.probs()
    each = torch.eye(len(initial), dtype=initial.dtype, device=initial.device)
    return model.transition.average(transition, model.emission.mixture(each, None, emission).probs.T)


def finite_prepare(model: Any, constants: Constants, data: Sequences) -> tuple[Moves, Likelihood]:
    """Tables, and the likelihood of every step."""
    tables = model.transition.tables(data.u, constants.transition)
    moves = Moves(Shared(constants.initial), tables, Shared(constants.average))
    return moves, prepare_likelihood(model, constants, data)
