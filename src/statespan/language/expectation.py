"""Training a model of text by expectation maximisation; a run can be stopped and goes on to the same numbers."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from statespan.errors import StatespanError
from statespan.fit import EM
from statespan.fit.em import closed_form
from statespan.language import checkpoints, parallel
from statespan.language.scoring import batches, perplexity, score_stream
from statespan.language.training import Curve, Progress, Stopped, never
from statespan.part import seeded

BATCH_NUMBERS = 2**21
"""Symbols times states that an E-step takes at once, 8 MB a float32 tensor; larger is no faster, and needs more."""

SHAPE = 0.02
"""Of the gamma law that says how much of each symbol a state starts with: the smaller, the fewer symbols a state."""

FLOOR = 1e-5
"""Added to those draws, so that no state starts without a symbol for good."""

PSEUDO_COUNTS = 0.1
"""Added to the expected count of each first state and of each move."""


class SharedEM(EM):
    """EM whose expected counts are summed over the processes that `torchrun` started, each with its own sentences."""

    def expect(self, model: Any, method: Any, batches: list[Any], names: Any = None) -> tuple[float, Any]:
        """The log-likelihood and the statistics of all processes together."""
        likelihood, statistics = super().expect(model, method, batches, names)
        return parallel.total(likelihood), parallel.summed(statistics)


@dataclass
class _Rounds:
    """Where EM stands."""

    iteration: int = 0
    seconds: float = 0.0
    best: float = math.inf
    curve: Curve = field(default_factory=list)


class EMTrainer:
    """Trains one finite state model by expectation maximisation on sentences, each on its own.

    It starts with each state on a few symbols of its own, drawn at random. Each iteration is a place to stop and to
    go on from, to the same numbers.

    Args:
        model: an exact model of symbols, trained in place; at the end it holds the parameters with the best
            validation perplexity.
        sentences: integers, each (T_n,).
        valid: (T, B) stream to choose on.
        iterations: passes over the sentences.
        prior: pseudo-counts a state, spread over the symbols by their frequency.
        frequencies: (V,) of the symbols, sums to one.
        seed: of the random start.
        checkpoint: where to keep the state of the run; None keeps none. One that is there is gone on from.
        name: what to call the run in errors.
        stamp: what else the run depends on; a checkpoint with another stamp is refused.

    Source:
        Baum et al. 1970; the sparse random start and the unigram prior are ours.
    """

    def __init__(
        self,
        model: Any,
        sentences: Sequence[Tensor],
        valid: Tensor,
        iterations: int,
        prior: float,
        frequencies: Tensor,
        seed: int = 0,
        checkpoint: Path | None = None,
        name: str = "model",
        stamp: str = "",
    ):
        self.model, self.sentences, self.valid, self.iterations = model, sentences, valid, iterations
        self.prior, self.frequencies, self.checkpoint, self.name = prior, frequencies, checkpoint, name
        self.tokens = sum(map(len, sentences))
        self.total = self.tokens * iterations
        self.state = _Rounds()
        self._start(seed)
        self.best = [p.detach().clone() for p in model.parameters()]
        shapes = [list(p.shape) for p in self.best]
        self._stamp = json.dumps(["EM", iterations, prior, self.tokens, seed, shapes, stamp])
        if checkpoint is not None and checkpoint.exists():
            self._load(checkpoint)

    @property
    def curve(self) -> Curve:
        """The learning curve, a point an iteration."""
        return self.state.curve

    @property
    def seconds(self) -> float:
        """Spent so far, evaluations included, over all the times the run was resumed."""
        return self.state.seconds

    @property
    def rate(self) -> float:
        """Symbols a second, evaluations included."""
        return self.tokens * self.state.iteration / max(self.state.seconds, 1e-9)

    def run(self, report: Callable[[Progress], None] = lambda progress: None, stop: Callable[[], bool] = never) -> None:
        """Train to the end; the model then has its best parameters.

        Args:
            report: called after each iteration with a `Progress`.
            stop: asked after each iteration whether to stop.

        Raises:
            StatespanError: the likelihood is no longer finite.
            Stopped: `stop` said so; the checkpoint is written.
        """
        state, began = self.state, time.perf_counter() - self.state.seconds
        once, model = SharedEM(iterations=1, tolerance=0.0), self.model
        model.initial.extra, model.transition.extra = torch.tensor(PSEUDO_COUNTS), torch.tensor(PSEUDO_COUNTS)
        model.emission.extra = self.prior * self.frequencies[:, None]
        groups = self._groups() if not self._done else []
        model.eval()
        while not self._done:
            likelihood = once.fit_batches(self.model, groups)
            valid = score_stream(self.model, self.valid)
            if not math.isfinite(likelihood + valid.log_prob):
                raise StatespanError(
                    f"rung {self.name}: the log-likelihood became {likelihood} in EM's iteration "
                    f"{state.iteration + 1}; raise its prior ({self.prior:g})"
                )
            state.iteration, state.seconds = state.iteration + 1, time.perf_counter() - began
            train = perplexity(-likelihood, self.tokens)
            state.curve.append(
                {
                    "epoch": float(state.iteration),
                    "seconds": state.seconds,
                    "train_perplexity": train,
                    "valid_perplexity": valid.perplexity,
                }
            )
            if valid.perplexity < state.best:
                state.best = valid.perplexity
                self.best = [p.detach().clone() for p in self.model.parameters()]
            self.save()
            if parallel.anywhere(stop())[0]:
                raise Stopped
            report(Progress(self.tokens * state.iteration, self.total, self.rate, train, valid.perplexity))
        with torch.no_grad():
            for parameter, best in zip(self.model.parameters(), self.best, strict=True):
                parameter.copy_(best)
        self.model.eval()

    def _groups(self) -> list[Any]:
        """This process's share of the sentences, in batches."""
        several = parallel.processes()
        size = min(BATCH_NUMBERS // self.model.emission.states, self.tokens) // several
        groups = batches(self.sentences, max(1, size))
        if several > 1 and (len(groups) < several or not closed_form(self.model)):
            raise StatespanError(
                f"rung {self.name}: EM in {several} processes needs {several} batches of sentences and a closed form "
                "of every part; use one process"
            )
        return groups[parallel.place() :: several]

    @property
    def _done(self) -> bool:
        return self.state.iteration >= self.iterations

    @torch.no_grad()
    def _start(self, seed: int) -> None:
        """Each state on a few random symbols: frequencies times draws from a gamma law of small shape."""
        with seeded(seed + 1):
            shape = torch.full((len(self.frequencies), self.model.emission.states), SHAPE)
            draws = torch.distributions.Gamma(shape, 1.0).sample() + FLOOR  # on the CPU: the same start on any device
            probs = self.frequencies[:, None] * draws.to(self.frequencies)
        self.model.emission.set_probs((probs / probs.sum(0)).T)

    def save(self) -> None:
        """Write the state of the run, at once or not at all."""
        if self.checkpoint is None or parallel.place():
            return
        tensors = {f"model.{i}": p for i, p in enumerate(self.model.parameters())}
        tensors |= {f"best.{i}": x for i, x in enumerate(self.best)}
        checkpoints.write(self.checkpoint, self._stamp, asdict(self.state), tensors)

    def _load(self, path: Path) -> None:
        state, tensors = checkpoints.read(path, self._stamp)
        self.state = _Rounds(**state)
        for i, parameter in enumerate(self.model.parameters()):
            parameter.data.copy_(tensors[f"model.{i}"])
            self.best[i] = tensors[f"best.{i}"].to(parameter.device)
