"""Recurrent networks: the state is a function of what was seen."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from statespan.belief import Discrete, Hidden, Point, known
from statespan.method import Method, Prepared, Trace, run
from statespan.part import CellEmission, CellInitial, CellTransition
from statespan.sequences import Sequences
from statespan.shapes import Float
from statespan.tree import Shared, Tree, leaves, tree_map


class Constants(NamedTuple):
    """Work on parameters alone, and what the start symbol feeds (1, ...)."""

    transition: Tree
    emission: Tree
    start: Tree


class Moves(NamedTuple):
    """The constants, and what is fed before the first observation."""

    constants: Shared
    start: Shared


class Seen(NamedTuple):
    """What y_t feeds, whether it was there (None: everywhere), and what a gap needs instead."""

    fed: Tree
    observed: Tensor | None
    constants: Shared


class Recurrent(Method):
    r"""A deterministic state: predict is the cell, update absorbs y_t and keeps what it feeds, scores come in bulk.

    state_t = step(fed(y_{t-1}), absorb(state_{t-1}, fed(y_{t-1}))), log p(y_t | y_<t) = emission(state_t).
    Smoothed equals filtered. A missing y feeds the mean embedding under the model's own prediction, so answers with
    gaps, and forecasts, are approximate.

    Source:
        Elman 1990; Buys, Bisk and Choi, equations 19 to 21.

    Example:
        >>> import statespan as ss
        >>> network = ss.elman(vocabulary=3, width=4, seed=0)
        >>> network.filter([0, 2, 1], method=ss.Recurrent()).state.shape
        torch.Size([3, 4])
    """

    accepts = (CellInitial, CellTransition, CellEmission)
    takes_labels = False
    takes_powers = False
    scores_from = frozenset({"predicted"})

    def exact(self, model: Any) -> bool:
        """Without gaps; with one the mean embedding stands in for the word."""
        return False

    def constants(self, model: Any) -> Constants:
        """The transition's, the emission's, and the start symbol's feed."""
        transition = model.transition.constants()
        device = next(model.parameters()).device
        symbol = torch.full((1, 1), model.initial.symbol, dtype=torch.long, device=device)
        start = tree_map(lambda x: x[0], model.transition.feed(symbol, None, transition))
        return Constants(transition, model.emission.constants(), start)

    def prepare(self, model: Any, constants: Constants, data: Sequences) -> tuple[Moves, Seen]:
        """What every symbol feeds, all at once."""
        device = next(model.parameters()).device
        y = data.y if data.y is not None else torch.zeros(data.shape, dtype=torch.long, device=device)
        fed = model.transition.feed(y, data.u, constants.transition)
        observed = data.observed
        if data.y is None:
            observed = torch.zeros(data.shape, dtype=torch.bool, device=device)
        return Moves(Shared(constants), Shared(constants.start)), Seen(fed, observed, Shared(constants))

    def init(self, model: Any, move: Moves, batch: int) -> Discrete | Point:
        """The first move: from the start state, fed with the start symbol."""
        fed = tree_map(lambda x: x.expand(batch, *x.shape[1:]), move.start)
        state = model.transition.absorb(model.initial.start(batch), fed)
        return self._move(model, state, fed, move)

    def predict(self, model: Any, belief: Hidden, move: Moves) -> Discrete | Point:
        """The cell."""
        return self._move(model, _value(belief), belief.fed, move)

    def _move(self, model: Any, state: Tree, fed: Tree, move: Moves) -> Discrete | Point:
        constants: Any = move.constants
        after = model.transition.step(fed, state, constants.transition)
        return known(after, model.transition.moves_to_simplex)

    def update(self, model: Any, belief: Any, likelihood: Seen) -> tuple[Hidden, None]:
        """Absorb y_t, and keep what it feeds to the next move; no log-probability, `score` gives all at once."""
        fed, value = likelihood.fed, _value(belief)
        if likelihood.observed is not None and not bool(likelihood.observed.all()):
            there = likelihood.observed
            constants: Any = likelihood.constants
            prediction = model.emission.predict(_vector(belief), constants.emission)
            mean = model.transition.missing(prediction, constants.transition)
            fed = tree_map(lambda x, m: torch.where(there.view(-1, *[1] * (x.dim() - 1)), x, m), fed, mean)
        state = model.transition.absorb(value, fed)
        return Hidden(known(state, model.transition.simplex), fed), None

    def score(self, model: Any, prepared: Prepared, trace: Trace, data: Sequences) -> Float[Tensor, "T B"]:
        """Log p(y_t | y_<t) for all t at once, zero where nothing is observed."""
        state, constants = _vector(trace.predicted), prepared.moves.constants.value
        if data.y is None:
            return state.new_zeros(data.shape, dtype=torch.float64)
        log_prob = model.emission.log_prob(state, data.y, constants.emission).double()
        present = data.present
        return log_prob if present is None else torch.where(present, log_prob, 0.0)

    def smooth(self, model: Any, prepared: Prepared, belief: Any, shape: tuple[int, int]) -> Any:
        """The filtered state: the future tells nothing more of a function of the past."""
        data = Sequences(observed=torch.ones(shape, dtype=torch.bool), lengths=prepared.lengths)
        return run(model, self, data, belief, ("filtered",), prepared=prepared).filtered

    def draw(self, belief: Any) -> Any:
        """The belief itself: its state is a function of the past, though its entries may sum to one."""
        return belief

    def backward(self, model: Any, belief: Any, move: Moves, later: Any) -> Any:
        """The belief itself."""
        return belief

    def fill(self, model: Any, constants: Constants, data: Sequences) -> Tensor:
        """The mode of the one-step prediction: approximate."""
        predicted = run(model, self, data, None, ("predicted",), constants).predicted
        return self.emit(model, constants, predicted, data.u).mode

    def decode(self, model: Any, constants: Constants, data: Sequences, k: int) -> tuple[Tensor, None]:
        """The likeliest state at each step, where the state is a distribution."""
        if not model.transition.simplex:
            raise TypeError("this model's state is a vector, not a distribution over states; ask filter(y).state")
        if k > 1:
            raise TypeError("this model has no joint distribution over paths; ask for k=1")
        filtered = run(model, self, data, None, ("filtered",), constants).filtered
        path = filtered.point()
        return torch.where(data.within, path, -1)[..., None], None

    def emit(self, model: Any, constants: Constants, belief: Any, u: Tree) -> Distribution:
        """The emission of the state."""
        return model.emission.predict(_vector(belief), constants.emission)


def _value(belief: Any) -> Tree:
    """The state inside a belief: both kinds hold one field."""
    return belief.state[0]


def _vector(belief: Any) -> Tensor:
    """What the network puts out: for a tuple its first (an LSTM's h)."""
    return leaves(_value(belief))[0]
