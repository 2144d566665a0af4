"""What the finite-state methods share: their tables, moves and likelihoods."""

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from statespan.errors import StatespanError
from statespan.method import Prepared, Step
from statespan.part import FiniteEmission, FiniteInitial, FiniteTransition, scaled
from statespan.sequences import Sequences, all_of, any_of
from statespan.tree import Lazy, Shared, Tree, unstack

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
    """What y_t leaves behind.

    Args:
        value: the transition's own tree; None where the transition is not fed.
        observed: whether y_t was there; None: it was, everywhere, or the transition is not fed.
        recent: for an emission that looks back, the observations up to y_t, the latest first, (..., P, D), zero before
            the first and NaN where missing, and whether each is known, (..., P).
    """

    value: Tree
    observed: Tensor | None
    recent: tuple[Tensor, Tensor] | None = None


class Likelihood(NamedTuple):
    """p(y_t | z_t = k) divided by its largest value, the log of that value, and what y_t feeds."""

    value: Tensor
    log_scale: Tensor
    fed: Fed | None
    log: Shared | None = None
    """What makes log p(y_t | z_t = k) itself, where its exponential will not do; None: `value` is all there is."""

    @staticmethod
    def of(log: Tensor) -> "Likelihood":
        """From log p(y_t | z_t = k), (T, B, K)."""
        return Likelihood(*scaled(log), None, Shared(partial(_same, log)))

    @property
    def leaf(self) -> Tensor:
        """What the posterior is a gradient by."""
        return self.value

    def with_leaf(self, leaf: Tensor, fed: Fed | None) -> "Likelihood":
        """The same with another leaf, which is then all there is."""
        return Likelihood(leaf, self.log_scale, fed)

    def posterior(self, gradient: Tensor) -> Tensor:
        """p(z_t = k | y) = likelihood x d log p / d likelihood."""
        return self.value.detach() * gradient

    @property
    def logs(self) -> Tensor:
        """The logarithm in float64 of what is there."""
        return self.value.double().log() + self.log_scale[..., None]

    def exactly(self) -> Tensor:
        """Log p(y_t | z_t = k), (T, B, K) float64."""
        if self.log is None:
            return self.logs
        return self.log.value().double()


def _same(log: Tensor) -> Tensor:
    return log


class OneChain(NamedTuple):
    """A chain inside another model, as a model of its own as far as a method asks."""

    initial: Any
    transition: Any


class LastTime:
    """Where the E-steps of a method were, by model and data: the next goes on from there, or EM could fall.

    What was remembered is not copied, nor sent to another process.
    """

    def __init__(self) -> None:
        self._models: weakref.WeakKeyDictionary[Any, WeakTensorKeyDictionary] = weakref.WeakKeyDictionary()

    def __reduce__(self) -> tuple[Any, tuple]:
        return LastTime, ()

    def of(self, model: Any) -> WeakTensorKeyDictionary:
        """What is remembered of this model, by the observations."""
        return self._models.setdefault(model, WeakTensorKeyDictionary())


def prepare_likelihood(model: Any, constants: Constants, data: Sequences) -> Likelihood:
    """The likelihood of every step; ones where nothing is observed, zeros off a labelled state."""
    owners, states = model.transition.owners, model.transition.public_states
    excluded = None if data.states is None else excluded_states(data.states, states)
    if model.emission.expanded and owners is not None:
        excluded = None if excluded is None else excluded[..., owners]
        owners, states = None, model.transition.states
    u, there, recent = look_back(model, data)
    log = None
    if data.y is None:
        value = constants.initial.new_ones(*data.shape, states)
        log_scale = value.new_zeros(data.shape, dtype=torch.float64)
    else:
        log = partial(_log_likelihood, model, constants, data, u, excluded)
        if excluded is None and data.powers is None:
            value, log_scale = model.emission.likelihood(data.y, u, data.present, constants.emission)
        else:
            value, log_scale = scaled(log())
    # Past a sequence's end a likelihood may be anything: nothing there is scored, and no gradient comes from there.
    if there is not None:
        value, log_scale = torch.where(there[..., None], value, 1.0), torch.where(there, log_scale, 0.0)
    if excluded is not None:
        value = value.masked_fill(excluded, 0.0)
    if owners is not None:
        value = value[..., owners]
    fed = None
    if model.transition.autoregressive:
        y = data.y if data.y is not None else torch.zeros(data.shape, dtype=torch.long, device=value.device)
        fed = Fed(model.transition.feed(y, data.u, constants.transition), data.observed, recent)
    elif recent is not None:
        fed = Fed(None, None, recent)
    late = None if log is None else Shared(partial(_placed, log, there, excluded, owners))
    return Likelihood(value, log_scale, fed, late)


def _log_likelihood(model: Any, constants: Constants, data: Sequences, u: Tree, excluded: Tensor | None) -> Tensor:
    """Of every step, raised to its power, minus infinity off a labelled state."""
    log = model.emission.log_likelihood(data.y, u, data.present, constants.emission)
    if data.powers is not None:
        # Without a density there is nothing to raise to a power: 0 times minus infinity is a NaN.
        log = torch.where(data.powers[..., None] > 0, log * data.powers[..., None], 0.0)
    return log if excluded is None else log.masked_fill(excluded, -torch.inf)


def _placed(log: Callable[[], Tensor], there: Tensor | None, excluded: Tensor | None, owners: Tensor | None) -> Tensor:
    """Zero where nothing is observed, and each state's that of its owner."""
    value = log()
    if there is not None:
        value = torch.where(there[..., None], value, 0.0)
        value = value if excluded is None else value.masked_fill(excluded, -torch.inf)
    return value if owners is None else value[..., owners]


def look_back(model: Any, data: Sequences) -> tuple[Tree, Tensor | None, tuple[Tensor, Tensor] | None]:
    """What the emission sees beside y_t, where y_t is scored, and what is recent after each step.

    For an emission that looks back these are the inputs with the observations before each step, and the steps whose
    past is known: the first ones of a sequence are taken as given.

    Raises:
        StatespanError: a gap that a later observation looks back on.
    """
    observed, lags = data.observed, model.emission.lags
    there = None if observed is None else any_of(observed)
    if not lags or data.y is None:
        return data.u, there, None
    length, batch = data.shape
    if data.past is None:
        before, known = data.y.new_zeros(batch, lags, *data.y.shape[2:]), data.within.new_zeros(batch, lags)
    else:
        before, known = data.past
    refuse_gaps(data, lags)
    whole = _whole(data)
    missing = torch.where(whole.view(*whole.shape, *[1] * (data.y.dim() - 2)), data.y, torch.nan)
    values = torch.cat([before.transpose(0, 1).flip(0), missing])
    mask = torch.cat([known.T.flip(0), whole])
    steps = [slice(lags - 1 - j, lags - 1 - j + length) for j in range(-1, lags)]
    past = torch.stack([values[s] for s in steps[1:]], 2).nan_to_num(0.0)
    given = torch.stack([mask[s] for s in steps[1:]], 2).all(2)
    recent = torch.stack([values[s] for s in steps[:-1]], 2), torch.stack([mask[s] for s in steps[:-1]], 2)
    return (data.u, past), given if there is None else there & given, recent


def refuse_runs(data: Sequences, lags: int) -> None:
    """Refuse to fill a gap whose own past is a gap."""
    if data.observed is None:
        return
    gone = ~all_of(data.observed) & data.within
    for j in range(1, min(lags, len(gone) - 1) + 1):
        bad = gone[:-j] & gone[j:]
        if bool(bad.any()):
            b, t = bad.T.nonzero()[0].tolist()
            raise StatespanError(
                f"sequence {b}: steps {t} and {t + j} are both missing, and the emission of the second looks back on "
                "the first; fill one of them, or end the sequence before them and forecast"
            )


def _whole(data: Sequences) -> Tensor:
    """(T, B) where nothing of an observation is missing."""
    return torch.ones_like(data.within) if data.observed is None else all_of(data.observed)


def refuse_gaps(data: Sequences, lags: int) -> None:
    """Refuse a gap that a later observation looks back on."""
    if not lags or data.observed is None:
        return
    whole, within = _whole(data), data.within
    gap = ~whole & within
    if not bool(gap.any()):
        return
    for j in range(1, min(lags, len(gap) - 1) + 1):
        bad = gap[:-j] & whole[j:] & within[j:]
        if bool(bad.any()):
            b, t = bad.T.nonzero()[0].tolist()
            raise StatespanError(
                f"sequence {b}, step {t} is missing, and the emission of step {t + j} looks back on it; fill the gap "
                "first, or cut the sequence there"
            )


def table_of(model: Any, fed: Fed | None, move: Moves) -> Tensor:
    """The matrix of one move, (K, K) or (B, K, K); after a missing symbol the averaged one."""
    table = model.transition.dense(move.tables, None if fed is None else fed.value)
    if fed is None or fed.observed is None:
        return table
    average: Any = move.average
    return torch.where(fed.observed[:, None, None], table, average.value)


def neighbours(
    model: Any,
    prepared: Prepared,
    steps: Sequence[Step],
    smoothed: Tensor,
    joint: Callable[[Any, Moves, Tensor], Tensor],
) -> Tensor:
    """p(z_t = i, z_{t+1} = j | y) of the public states, (T - 1, B, K, K), zero past each end.

    Args:
        model: a finite state space.
        prepared: what the filter read.
        steps: what it gave.
        smoothed: what is known of each state in hindsight, (T, B, K), in the terms of `joint`.
        joint: from the filtered belief, the move out of it and what is known of the next state to their joint law.
    """
    transition, pairs = model.transition, []
    for t, (step, move) in enumerate(zip(steps[:-1], unstack(prepared.moves, len(steps))[1:], strict=True)):
        pair = joint(step.filtered, move, smoothed[t + 1])
        if prepared.lengths is not None:
            pair = torch.where((prepared.lengths - 1 > t)[:, None, None], pair, 0.0)
        pairs.append(public(transition, public(transition, pair).mT).mT)
    blank = smoothed.new_zeros(0, smoothed.shape[1], *[transition.public_states] * 2)
    return torch.stack(pairs) if pairs else blank


def public(transition: Any, probs: Tensor) -> Tensor:
    """Probabilities of the chain's states (..., K) as those of the public states they stand for."""
    if transition.owners is None:
        return probs
    out = probs.new_zeros(*probs.shape[:-1], transition.public_states)
    return out.index_add(-1, transition.owners, probs)


def told_apart(model: Any, probs: Tensor) -> Tensor:
    """Probabilities of the chain's states as those that the emission tells apart: its own, or the public ones."""
    return probs if model.emission.expanded else public(model.transition, probs)


def excluded_states(labels: Tensor, states: int) -> Tensor:
    """Where a label (T, B), or what is possible (T, B, K), says that a state is not the one: (T, B, K)."""
    if labels.dim() == 3:
        if labels.shape[-1] != states:
            raise StatespanError(f"states= allows or forbids {labels.shape[-1]} states; the model has {states}")
        return ~labels
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


def finite_moves(model: Any, constants: Constants, data: Sequences) -> Moves:
    """Tables, for all t at once."""
    tables = model.transition.tables(data.u, constants.transition)
    return Moves(model.initial.given(data.u, constants.initial), tables, Shared(constants.average))


def finite_prepare(model: Any, constants: Constants, data: Sequences) -> tuple[Moves, Likelihood]:
    """Tables, and the likelihood of every step."""
    return finite_moves(model, constants, data), prepare_likelihood(model, constants, data)
