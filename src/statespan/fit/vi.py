"""Variational Bayes."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from statespan.errors import StatespanError
from statespan.fit.conjugate import believe, settle
from statespan.fit.em import EM, observations
from statespan.fit.fitting import Fitter, restart
from statespan.model import StateSpace
from statespan.sequences import Sequences


class VI(Fitter):
    r"""Variational Bayes: a posterior of the parameters, q(parameters) q(states), by coordinate ascent.

    What climbs, and what `history` holds, is the lower bound of the log-evidence,

        log p(y) >= log of the sum over z of exp(E log p(y, z)) - KL(q(parameters) || prior),

    where E is over q(parameters). Each part's posterior is a part too (`fit/conjugate.py`), and EM over these does it:
    initial and transition Dirichlet, symbols Dirichlet, vectors normal-inverse-Wishart, and so the components of
    Gaussian mixtures, with Dirichlet weights. A state that the data do not need falls back to its prior. A part without
    a conjugate posterior here is moved to its best point.

    After a fit the model lies at the posterior mean, and `posterior` is a state space of the three posteriors:
    `.initial.concentration`, `.transition.concentration`, `.emission.concentration`, or `.emission.mean`, `.strength`,
    `.freedom` and `.scale`. A part all of whose parameters are held stays as it is.

    Args:
        initial: alpha of the Dirichlet prior, above 0, one number or (K,); None is the part's own `concentration`
            where it has one, else 1 / K.
        transition: that of each row, one number or (K, K); None alike.
        symbols: that of each state's symbols, one number or (K, V); None alike, else 1 / V.
        mean: the normal prior's mean, (D,); None is that of the data.
        strength: its strength beta, in observations: mean_k ~ N(mean, covariance_k / beta).
        freedom: nu, the degrees of freedom of the inverse-Wishart prior, above D - 1; None is D + 2.
        scale: its scale matrix, (D, D) or a number; None is the data's variances divided by K^(2/D). Of a spherical
            covariance the trace counts.
        iterations: at most this many.
        tolerance: stop when the bound of an observation rises by less than this; 0 never stops.
        batch: how many sequences the E-step takes at once.
        callback: called after each iteration with its number, from 1, and the bound.
        components: alpha of the weights of a mixture's components, one number or (K, M); None is the part's own
            `concentration` where it has one, else 1 / M.

    Raises:
        StatespanError: a prior that is none, a part that is held in part, a part that has no closed form.

    Source:
        MacKay, Ensemble learning for hidden Markov models, 1997; Beal, Variational Algorithms for Approximate Bayesian
        Inference, PhD thesis 2003, section 3.4; default priors of vectors: Fraley and Raftery 2007, section 3.2.

    Example:
        >>> import statespan as ss
        >>> vi = ss.VI(iterations=20)
        >>> _ = ss.hmm(states=4, emission=ss.Categorical(2), seed=0).fit([0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1], by=vi)
        >>> all(a <= b + 1e-9 for a, b in zip(vi.history, vi.history[1:]))
        True
        >>> vi.posterior.transition.concentration.shape
        torch.Size([4, 4])
    """

    def __init__(
        self,
        initial: Any = None,
        transition: Any = None,
        symbols: Any = None,
        mean: Any = None,
        strength: float = 0.01,
        freedom: float | None = None,
        scale: Any = None,
        iterations: int = 100,
        tolerance: float = 1e-6,
        batch: int = 4096,
        callback: Callable[[int, float], None] | None = None,
        components: Any = None,
    ):
        self.components = components
        self.initial, self.transition, self.symbols = initial, transition, symbols
        self.mean, self.strength, self.freedom, self.scale = mean, strength, freedom, scale
        self.em, self.callback = EM(iterations, tolerance, batch, callback=self._tell), callback
        self.history: list[float] = []
        self.posterior: Any = None
        self._count = 0.0

    def share(self, part: Any) -> float:
        """How many observations a state of `part` begins with."""
        return self._count / part.states

    def __call__(self, model: Any, data: Sequences, start: bool = False) -> float:
        """Fit in place; the lower bound at the last E-step."""
        if start:
            restart(model, data)
        users = Counter(id(p) for part in model.parts for p in part.parameters())
        if max(users.values(), default=0) > 1:
            raise StatespanError(
                "VI: two parts of this model share parameters, which then have no posterior; fit by EM"
            )
        self._count = float(observations(data))
        self.posterior = StateSpace(*[self._believe(part, data) for part in model.parts])
        value = self.em(self.posterior, data)
        self.history, self.notes = self.em.history, self.em.notes
        self._settle()
        return value

    def _tell(self, iteration: int, bound: float) -> None:
        """The caller is told, and finds the model at the posterior mean."""
        if self.callback is not None:
            self._settle()
            self.callback(iteration, bound)

    @torch.no_grad()
    def _settle(self) -> None:
        for belief in self.posterior.parts:
            settle(belief)

    def _believe(self, part: Any, data: Sequences) -> Any:
        free = [p.requires_grad for p in part.parameters()]
        if not any(free):
            return part
        if not all(free) and believe.dispatch(type(part)) is not believe.dispatch(object):
            raise StatespanError(
                f"VI holds all of {type(part).__name__} or nothing; set requires_grad of every parameter alike"
            )
        return believe(part, self, data)
