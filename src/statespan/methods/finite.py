"""What the finite-state methods share: their tables, moves and likelihoods."""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from statespan.errors import StatespanError
from statespan.part import FiniteEmission, FiniteInitial, FiniteTransition
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
    initial, present = constants.initial, data.present
    states = len(initial)
    if data.y is None:
        length, batch = data.shape
        log = initial.new_zeros(length, batch, states)
    else:
        log = model.emission.log_likelihood(data.y, data.u, present, constants.emission)
    anything = present if present is None or present.dim() == 2 else present.any(-1)
    if anything is not None:
        log = torch.where(anything[..., None], log, 0.0)
    if data.states is not None:
        if bool((data.states >= states).any()):
            b, t = (states <= data.states.T).nonzero()[0].tolist()
            raise StatespanError(
                f"sequence {b}, step {t}: labelled state {int(data.states[t, b])} lies outside 0..{states - 1}; "
                "use -1 where the state is unknown"
            )
        known, each = data.states[..., None] >= 0, torch.arange(states, device=log.device)
        log = log.masked_fill(known & (data.states[..., None] != each), -torch.inf)
    top = log.detach().amax(-1, keepdim=True)
    top = torch.where(top.isfinite(), top, 0.0)
    fed = None
    if model.transition.autoregressive:
        y = data.y if data.y is not None else torch.zeros(data.shape, dtype=torch.long, device=log.device)
        fed = Fed(model.transition.feed(y, data.u, constants.transition), data.observed)
    return Likelihood((log - top).exp(), top[..., 0].double(), fed)


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
