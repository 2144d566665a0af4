"""Nonlinear Gaussian models: linearise at a belief, then do what the Kalman filter does."""

from typing import Any

import torch
from torch import Tensor

from statespan.belief import Gaussian
from statespan.errors import StatespanError
from statespan.method import Hindsight, Method, Prepared, in_hindsight, lacks, run
from statespan.methods.kalman import (
    Kalman,
    Normal,
    Observation,
    emitted,
    filled,
    follow,
    observation,
    over_time,
    reverse,
    sweep,
    unseen,
)
from statespan.methods.linearisation import Linearisation, Unscented
from statespan.methods.particle import Observed
from statespan.part import Affine, GaussianInitial, NonlinearPart
from statespan.sequences import Sequences
from statespan.shapes import Float
from statespan.tree import Tree, tree_map, unstack


def in_front(affine: Affine) -> Affine:
    """An axis of time before what has one of sequences."""
    return Affine(*[x[None] if x.dim() > rank else x for x, rank in zip(affine, (2, 1, 2), strict=True)])


class Linearised(Method):
    r"""The Gaussian filters and smoothers: extended, unscented, cubature, Gauss-Hermite, and their iterated forms.

    A rule makes an affine part of each function under the belief at hand, and the Kalman filter's own steps follow:
    a move is linearised at the filtered belief, an observation at the predicted one; with `iterations` above 1 the
    observation again at the belief it gave (by Taylor's rule this is Gauss-Newton, and the mean the mode). Smoothing is
    by Rauch, Tung and Striebel; each of `passes` linearises everything again at the smoothed beliefs and smooths anew.
    log_prob is that of the linearised model.

    Args:
        rule: `Taylor()`, `Unscented()`, `Cubature()` or `GaussHermite()`.
        iterations: how many times an observation is linearised.
        passes: further passes of the smoother.

    Raises:
        StatespanError: no iterations, or a diffuse start: it has no moments to linearise at.

    Source:
        Sarkka and Svensson, Bayesian Filtering and Smoothing 2023, chapters 7 to 10, 13 and 14; iterated: Bell and
        Cathey 1993, Garcia-Fernandez et al. 2015.

    Example:
        >>> import torch
        >>> import statespan as ss
        >>> move = ss.NonlinearGaussian(torch.sin, 1, covariance=[[0.1]])
        >>> model = ss.StateSpace(ss.NormalStart(1), move, ss.Linear(1)).double()
        >>> model.smooth([0.3, None, 0.9], method=ss.Linearised(ss.Taylor(), passes=2)).mean.shape
        torch.Size([3, 1])
    """

    accepts = (GaussianInitial, NonlinearPart, NonlinearPart)
    takes_labels = False
    takes_powers = False

    def __init__(self, rule: Linearisation | None = None, iterations: int = 1, passes: int = 0):
        if iterations < 1 or passes < 0:
            raise StatespanError(f"Linearised(iterations={iterations}, passes={passes}): use 1 or more, and 0 or more")
        self.rule = Unscented() if rule is None else rule
        self.iterations, self.passes = iterations, passes
        self.kalman = Kalman()

    def exact(self, model: Any) -> bool:
        """Where the parts are linear."""
        return not lacks(Kalman, model)

    def constants(self, model: Any) -> Tree:
        """Nothing."""
        return ()

    def prepare(self, model: Any, constants: Tree, data: Sequences) -> tuple[Tree, Observed]:
        """Nothing can be done before the beliefs are there."""
        return (data.u,), Observed(data.y, data.u, data.present)

    def init(self, model: Any, move: Tree, batch: int) -> Gaussian:
        """p(z_1)."""
        start = model.initial.gaussian(batch)
        if start.factor is not None:
            raise StatespanError(
                f"{type(model.initial).__name__} has no moments to linearise at; use ss.NormalStart with a wide scale"
            )
        return start

    def predict(self, model: Any, belief: Any, move: Tree) -> Gaussian:
        """The move linearised at the belief, then Kalman's step."""
        return self.kalman.predict(model, belief, model.transition.approximate(self.rule, belief.state, move[0]))

    def update(self, model: Any, belief: Any, likelihood: Observed) -> tuple[Any, Float[Tensor, " B"]]:
        """The observation linearised at the belief, then Kalman's step from the same prediction, and so again."""
        seen, log_prob = belief, torch.zeros(len(belief.mean), dtype=torch.float64, device=belief.mean.device)
        if likelihood.y is None:
            return seen, log_prob
        one = Sequences(y=likelihood.y[None], observed=None if likelihood.there is None else likelihood.there[None])
        for _ in range(self.iterations):
            emission = model.emission.approximate(self.rule, seen.state, likelihood.u)
            told: Observation = unstack(observation(in_front(emission), one), 1)[0]
            seen, log_prob = self.kalman.update(model, belief, told)
        return seen, log_prob

    def backward(self, model: Any, belief: Any, move: Tree, later: Any) -> Any:
        """Rauch-Tung-Striebel with the move linearised at the filtered belief."""
        step = model.transition.approximate(self.rule, belief.state, move[0])
        return follow(reverse(belief.state, step), later.state)

    def smooth(self, model: Any, prepared: Prepared, belief: Any, shape: tuple[int, int]) -> Any:
        """By `hindsight`."""
        return self.hindsight(model, prepared, belief, unseen(prepared, shape)).smoothed

    def hindsight(self, model: Any, prepared: Prepared, belief: Any, data: Sequences, pairs: bool = False) -> Hindsight:
        """The moves of all steps linearised at once, then one loop back; again for each pass."""
        (u,), there = prepared.moves, prepared.likelihoods.there
        inside = None if prepared.lengths is None else data.within[1:]
        trace = run(model, self, data, belief, ("filtered", "log_prob"), prepared=prepared)
        filtered = trace.filtered
        head = tree_map(lambda x: x[:-1], filtered)
        moves = model.transition.approximate(self.rule, head, None if u is None else u[1:])
        known = sweep(filtered, moves, inside, pairs)
        for _ in range(self.passes):
            start = self.init(model, None, data.shape[1]) if belief is None else belief.state
            before = tree_map(lambda a, b: torch.cat([a[None], b[:-1]]), start, known[0])
            move = model.transition.approximate(self.rule, before, u)
            moves = Affine(*[over_time(x, rank) for x, rank in zip(move, (2, 1, 2), strict=True)])
            blank = unseen(prepared, data.shape)
            seen = blank._replace(y=prepared.likelihoods.y, observed=blank.observed if there is None else there)
            told = observation(model.emission.approximate(self.rule, known[0], u), seen)
            again = Prepared(moves, told, prepared.lengths)
            found = self.kalman.hindsight(model, again, belief, data, pairs)
            known = found.smoothed, found.pairs
        assert trace.log_prob is not None
        return Hindsight(known[0], trace.log_prob, known[1])

    def breadth(self, model: Any, data: Sequences) -> int:
        """The numbers of a covariance."""
        return model.transition.event.dim**2

    def fill(self, model: Any, constants: Tree, data: Sequences) -> Tensor:
        """The mean of y under the smoothed belief, and for the missing part of a row what the rest says of it."""
        smoothed = in_hindsight(model, self, data, constants)
        return filled(model.emission.approximate(self.rule, smoothed, data.u), smoothed.mean, data)

    def decode(self, model: Any, constants: Tree, data: Sequences, k: int) -> tuple[Tensor, None]:
        """The smoothed mean; by Taylor's rule, iterated, it is the mode."""
        if k > 1:
            raise TypeError("a normal posterior has one mode; ask for k=1, or sample_posterior for more paths")
        return in_hindsight(model, self, data, constants).mean[:, :, None], None

    def emit(self, model: Any, constants: Tree, belief: Any, u: Tree) -> Normal:
        """The observation linearised at the belief: its mean and covariance."""
        return emitted(model.emission.approximate(self.rule, belief.state, u), belief.state)
