"""Gradient descent on the negative log-likelihood."""

from collections.abc import Callable
from typing import Any

import torch

from statespan.errors import StatespanError
from statespan.fit.em import notes, observations, take
from statespan.fit.fitting import Fitter, adam, restart
from statespan.method import Method, run, total
from statespan.sequences import Sequences
from statespan.verbs import choose


class SGD(Fitter):
    r"""Minimise -(log p(y) + log prior) / observations with one of torch's optimisers; the gradient is exact inference.

    Args:
        epochs: passes over the sequences.
        learning_rate: the step.
        optimizer: a class of `torch.optim`; Adam (fused) unless another is given.
        batch: sequences a step; None takes all.
        clip: largest norm of the gradient; None does not clip.
        weight_decay: passed to the optimiser.
        options: more keyword arguments of the optimiser.
        tolerance: stop when in `patience` epochs the best log-likelihood of an observation has risen by less than this;
            0 never stops.
        patience: how many epochs.
        callback: called after each pass with its number, from 1, and its log-likelihood.
        method: whose log_prob is maximised; None: the model's own.

    Raises:
        StatespanError: fewer than one epoch; in a fit, an observation that the model gives probability zero, or a
            log-likelihood that stops being a number.

    Source:
        Buys, Bisk and Choi, section 2.2: "we only implement the forward algorithm".

    Example:
        >>> import statespan as ss
        >>> sgd = ss.SGD(epochs=20, learning_rate=0.1)
        >>> _ = ss.hmm(states=2, emission=ss.Categorical(3), seed=0).fit([0, 1, 2, 0], by=sgd)
        >>> sgd.history[-1] > sgd.history[0]
        True
    """

    def __init__(
        self,
        epochs: int = 100,
        learning_rate: float = 0.01,
        optimizer: Callable[..., torch.optim.Optimizer] = adam,
        batch: int | None = None,
        clip: float | None = None,
        weight_decay: float = 0.0,
        options: dict[str, Any] | None = None,
        callback: Callable[[int, float], None] | None = None,
        tolerance: float = 0.0,
        patience: int = 5,
        method: Method | None = None,
    ):
        if epochs < 1:
            raise StatespanError(f"SGD(epochs={epochs}): use at least one")
        self.epochs, self.learning_rate, self.optimizer, self.batch = epochs, learning_rate, optimizer, batch
        self.tolerance, self.patience = tolerance, patience
        self.clip, self.weight_decay, self.options, self.callback = clip, weight_decay, options or {}, callback
        self.method = method
        self.history: list[float] = []

    def __call__(self, model: Any, data: Sequences, start: bool = False) -> float:
        """Fit in place; the log-likelihood of the last pass."""
        method = choose(model, self.method)
        if start:
            restart(model, data)
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimiser = self.optimizer(parameters, lr=self.learning_rate, weight_decay=self.weight_decay, **self.options)
        count = data.shape[1]
        size = count if self.batch is None else min(self.batch, count)
        self.history = []
        model.train()
        for epoch in range(self.epochs):
            likelihood = 0.0
            for index in torch.randperm(count).split(size):
                part = data if size == count else take(data, index)
                log_prob = run(model, method, part).log_prob
                assert log_prob is not None
                value = total(log_prob, index, part.weights)
                optimiser.zero_grad()
                prior = model.log_prior() * (part.shape[1] / count)
                (-(value + prior) / max(observations(part), 1)).backward()
                if self.clip is not None:
                    torch.nn.utils.clip_grad_norm_(parameters, self.clip)
                if not bool(value.isfinite()):
                    now = float(value.detach())
                    raise StatespanError(
                        f"SGD: the log-likelihood became {now} in epoch {epoch}; lower the learning rate"
                    )
                optimiser.step()
                likelihood += float(value.detach())
            self.history.append(likelihood)
            if self.callback is not None:
                self.callback(epoch + 1, likelihood)
            if self.tolerance and len(self.history) > self.patience:
                before = max(self.history[: -self.patience])
                if max(self.history[-self.patience :]) - before < self.tolerance * observations(data):
                    break
        model.eval()
        self.notes = notes(model, None)
        return self.history[-1]
