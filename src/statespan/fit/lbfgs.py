"""Quasi-Newton ascent of the log-likelihood."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from statespan.errors import StatespanError
from statespan.fit.em import observations
from statespan.fit.fitting import Fitter, restart
from statespan.method import Method, run, total
from statespan.sequences import Sequences
from statespan.verbs import choose


class LBFGS(Fitter):
    r"""Maximise log p(y) + log prior by L-BFGS with a strong Wolfe line search, over all sequences at once.

    It moves what has `requires_grad`. Covariances move as roots, so none leaves its cone and a variance may reach zero.
    A step to where the likelihood is not defined (dynamics without the stationary distribution they start from) is cut.

    Args:
        iterations: at most this many.
        tolerance: stop when the log-likelihood of an observation rises by less than this twice running; 0 never stops.
        memory: how many steps the curvature is made of.
        callback: called after each iteration with its number, from 1, and the value that `history` got.
        method: whose log_prob is maximised; None: the model's own.

    Raises:
        StatespanError: nothing is free, or the log-likelihood is not finite at the start.

    Source:
        Nocedal and Wright, Numerical Optimization 2006, algorithms 7.4 and 3.5.

    Example:
        >>> import statespan as ss
        >>> lbfgs = ss.LBFGS(iterations=20)
        >>> model = ss.linear_gaussian(state=1, observed=1, observation=[[1.0]], initial="stationary")
        >>> _ = model.fit([0.3, 0.5, -0.2, 0.1, 0.9, 0.4], by=lbfgs)
        >>> lbfgs.history[-1] > lbfgs.history[0]
        True
    """

    def __init__(
        self,
        iterations: int = 100,
        tolerance: float = 1e-9,
        memory: int = 20,
        callback: Callable[[int, float], None] | None = None,
        method: Method | None = None,
    ):
        if iterations < 1:
            raise StatespanError(f"LBFGS(iterations={iterations}): use at least one")
        self.iterations, self.tolerance, self.memory, self.callback = iterations, tolerance, memory, callback
        self.method = method
        self.history: list[float] = []

    def __call__(self, model: Any, data: Sequences, start: bool = False) -> float:
        """Fit in place; the log-likelihood (and log-prior) at the end."""
        if start:
            restart(model, data)
        objective = _Objective(model, data, choose(model, self.method))
        count = max(observations(data), 1)
        first = objective.value()
        if first is None:
            raise StatespanError("LBFGS: the log-likelihood is not finite at the start; give other parameters")
        self.history, still = [-first * count], 0
        # One of its iterations a step, so that each is seen; it may look at 40 points along the line.
        optimiser = torch.optim.LBFGS(
            objective.parameters,
            max_iter=1,
            max_eval=40,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            history_size=self.memory,
            line_search_fn="strong_wolfe",
        )
        model.train()
        for i in range(self.iterations):
            optimiser.step(objective)
            self.history.append(-objective.best * count)
            if self.callback is not None:
                self.callback(i + 1, self.history[-1])
            still = still + 1 if self.history[-1] - self.history[-2] < self.tolerance * count else 0
            if still > 1 and self.tolerance:
                break
        model.eval()
        objective.settle()
        return self.history[-1]


class _Objective:
    """Minus the log-likelihood (and log-prior) of an observation, and its gradient, where they are defined."""

    def __init__(self, model: Any, data: Sequences, method: Method):
        self.model, self.data, self.method = model, data, method
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise StatespanError("LBFGS: no parameter is free; set requires_grad where one is to be fitted")
        self.count = max(observations(data), 1)
        self.at: Tensor | None = None
        self.loss = self.best = float("inf")
        self.found = self._flat()

    def _flat(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.parameters])

    def value(self) -> float | None:
        """The loss here, with gradients in the parameters; None where it is not defined."""
        for p in self.parameters:
            p.grad = None
        log_prob = run(self.model, self.method, self.data).log_prob
        assert log_prob is not None
        loss = -(total(log_prob, None, self.data.weights) + self.model.log_prior()) / self.count
        if not bool(loss.isfinite()):
            return None
        loss.backward()
        self.at, self.loss = self._flat(), float(loss.detach())
        if self.loss < self.best:
            self.best, self.found = self.loss, self.at
        return self.loss

    def __call__(self) -> float:
        """What torch's optimiser asks: a step out of the domain is a wall, high and flat."""
        if self.at is not None and torch.equal(self.at, self._flat()):
            return self.loss
        try:
            value = self.value()
        except StatespanError:
            value = None
        if value is None:
            self.at = None
            for p in self.parameters:
                p.grad = torch.zeros_like(p)
            return self.best + 10 * (1 + abs(self.best))
        return value

    @torch.no_grad()
    def settle(self) -> None:
        """Leave the best parameters that were seen."""
        start = 0
        for p in self.parameters:
            p.copy_(self.found[start : start + p.numel()].view_as(p))
            start += p.numel()
