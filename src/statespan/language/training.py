"""Training a model of text by gradients.

The belief at the end of one window of a stream starts the next, its gradient cut; that is all that truncated
back-propagation through time needs here. A run can be stopped anywhere and goes on to the same numbers.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from statespan.errors import StatespanError
from statespan.language import checkpoints, parallel
from statespan.language.scoring import observe, perplexity, score_stream
from statespan.method import run
from statespan.methods import method_for
from statespan.part import seeded
from statespan.tree import leaves, replace_leaves, tree_map

OPTIMISERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
    "amsgrad": (torch.optim.Adam, {"amsgrad": True, "betas": (0.0, 0.999)}),
    "rmsprop": (torch.optim.Adam, {"betas": (0.0, 0.999)}),
}
"""Optimisers by the name recipes use; `amsgrad` is the paper's, AMSGrad with beta1 = 0 (footnote 5), and `rmsprop` that
of Melis et al. 2017, Adam with beta1 = 0: RMSProp with its bias corrected."""

SCHEDULES = ("plateau", "linear", "constant")

PRECISIONS = ("highest", "high", "medium")

REPORT_EVERY = 0.25
"""Seconds between two reports of progress."""


@dataclass(frozen=True)
class Training:
    """How a model of text is trained.

    Args:
        optimizer: sgd, adam, adamw, amsgrad or rmsprop.
        learning_rate: its first step size.
        schedule: plateau divides the rate by `decay` after an evaluation without improvement; linear lowers it to zero
            over the whole run; constant leaves it.
        decay: what the plateau schedule divides by.
        wait: evaluations in a row without improvement before the plateau schedule divides.
        batch: columns of the stream.
        window: steps between two cuts of the gradient.
        epochs: passes over the text.
        clip: largest norm of the gradient of the mean loss; 0 does not clip.
        weight_decay: L2 for sgd, adam, amsgrad and rmsprop, decoupled for adamw.
        precision: of products of float32 matrices, by torch's names: highest; high lets hardware take TensorFloat32;
            medium lets it round what goes into a product, and nothing else, to bfloat16 where that is faster. A model
            that is trained is scored in torch's own precision.
        reset: probability with which a window starts from the model's start instead of the carried state.
        average: share of the old mean kept when the parameters' running mean takes in a step (an exponential moving
            average); the mean is what is evaluated and kept. 0 keeps none.
        patience: evaluations without improvement before stopping; 0 never stops early.
        evaluations: evaluations on the validation text an epoch.
        save_every: seconds between checkpoints.

    Raises:
        StatespanError: a value that cannot be.
    """

    optimizer: str = "adam"
    learning_rate: float = 0.003
    schedule: str = "plateau"
    decay: float = 4.0
    wait: int = 1
    batch: int = 32
    window: int = 35
    epochs: int = 2
    clip: float = 0.25
    weight_decay: float = 0.0
    precision: str = "highest"
    reset: float = 0.0
    average: float = 0.0
    patience: int = 0
    evaluations: int = 2
    save_every: float = 60.0

    def __post_init__(self):
        checks = (
            (self.optimizer in OPTIMISERS, "optimizer", f"one of {', '.join(OPTIMISERS)}"),
            (self.schedule in SCHEDULES, "schedule", f"one of {', '.join(SCHEDULES)}"),
            (self.learning_rate > 0, "learning_rate", "positive"),
            (self.decay > 1, "decay", "above 1"),
            (self.wait >= 1, "wait", "at least 1"),
            (self.batch >= 1, "batch", "at least 1"),
            (self.window >= 1, "window", "at least 1"),
            (self.epochs >= 1, "epochs", "at least 1"),
            (self.clip >= 0, "clip", "0 or more"),
            (self.weight_decay >= 0, "weight_decay", "0 or more"),
            (self.precision in PRECISIONS, "precision", f"one of {', '.join(PRECISIONS)}"),
            (0 <= self.reset <= 1, "reset", "0 to 1"),
            (0 <= self.average < 1, "average", "0 to 1, without 1"),
            (self.patience >= 0, "patience", "0 or more"),
            (self.evaluations >= 1, "evaluations", "at least 1"),
            (self.save_every >= 0, "save_every", "0 or more"),
        )
        for good, name, want in checks:
            if not good:
                raise StatespanError(f"{name} = {getattr(self, name)!r} must be {want}")


@contextmanager
def matrix_precision(name: str) -> Iterator[None]:
    """Within it, products of float32 matrices are as exact as torch's `name` says."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Progress(NamedTuple):
    """Where a run stands.

    Args:
        tokens: symbols trained on so far, each as often as it was seen.
        total: symbols to train on.
        rate: symbols trained on a second.
        train: training perplexity since the last evaluation, NaN before the first step.
        valid: validation perplexity at the last evaluation, NaN before the first.
    """

    tokens: int
    total: int
    rate: float
    train: float
    valid: float


Curve = list[dict[str, float]]
"""Points of a learning curve: epoch, seconds, train_perplexity, valid_perplexity."""


class Stopped(Exception):
    """Training was asked to stop, and wrote its checkpoint; run again, it goes on from there."""


def never() -> bool:
    """Do not stop."""
    return False


@dataclass
class _State:
    """Where a training run stands: all that a resumed run needs beside tensors.

    `seconds` are spent in all, `stepping` in gradient steps alone; `loss` and `counted` are since the last evaluation;
    `stale` evaluations brought nothing, `unmoved` of them since the rate was last divided.
    """

    epoch: int = 0
    position: int = 0
    tokens: int = 0
    seconds: float = 0.0
    stepping: float = 0.0
    rate: float = 0.0
    best: float = math.inf
    stale: int = 0
    unmoved: int = 0
    done: bool = False
    loss: float = 0.0
    counted: int = 0
    curve: Curve = field(default_factory=list)


class Trainer:
    """Trains one model by gradients, window after window of a stream.

    Each window is a place to stop and to go on from, to the same numbers, bit for bit. In processes that `torchrun`
    started (`parallel.together`) each trains on its share of the columns, and gradients are summed: the numbers are
    those of one process, but for rounding and for what dropout draws.

    Args:
        model: the model, trained in place; at the end it holds the parameters with the best validation perplexity.
        train: (T, B) stream to learn from.
        valid: (T, B) stream to choose on.
        how: the settings.
        seed: of the run (dropout).
        checkpoint: where to keep the state of the run; None keeps none. One that is there is gone on from.
        name: what to call the run in errors.
        stamp: what else the run depends on; a checkpoint with another stamp is refused.

    Raises:
        StatespanError: the checkpoint is cut short, or of other settings.
    """

    def __init__(
        self,
        model: Any,
        train: Tensor,
        valid: Tensor,
        how: Training,
        seed: int = 0,
        checkpoint: Path | None = None,
        name: str = "model",
        stamp: str = "",
    ):
        self.model, self.train, self.valid, self.how, self.seed = model, train, valid, how, seed
        self.method, self.name, self.checkpoint = method_for(model), name, checkpoint
        kind, options = OPTIMISERS[how.optimizer]
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        options = {"lr": how.learning_rate, "weight_decay": how.weight_decay, "fused": True, **options}
        self.optimiser = kind(self.parameters, **options)  # fused: one pass over memory, eight times the speed of ten
        self.state = _State(rate=how.learning_rate)
        self.best = [p.detach().clone() for p in self.parameters]
        self.mean = [p.detach().clone() for p in self.parameters] if how.average else []
        self.belief: Any = None
        self.windows = -(-len(train) // how.window)
        rows = (train >= 0).split(how.window)
        self.counts = torch.stack([there.sum() for there in rows]).tolist()  # once: asking a GPU makes it wait
        every = max(1, self.windows // how.evaluations)
        self.evaluate_at = {min(self.windows, every * i) for i in range(1, how.evaluations)} | {self.windows}
        self.total = sum(self.counts) * how.epochs
        settings = {k: v for k, v in asdict(how).items() if k != "save_every"}
        shapes = [list(p.shape) for p in self.parameters]
        self._stamp = json.dumps([settings, list(train.shape), seed, shapes, stamp])
        self._random: dict[str, Tensor] = {}
        self.device = train.device
        if parallel.processes() > train.shape[1]:
            raise StatespanError(f"{name}: {train.shape[1]} columns are too few for {parallel.processes()} processes")
        if checkpoint is not None:
            self.checkpoint = parallel.own(checkpoint)
        if parallel.processes() > 1:
            self._stamp = json.dumps([self._stamp, parallel.processes(), parallel.place()])
        if self.checkpoint is not None and self.checkpoint.exists():
            self._load(self.checkpoint)

    @property
    def curve(self) -> Curve:
        """The learning curve, a point an evaluation."""
        return self.state.curve

    @property
    def seconds(self) -> float:
        """Spent so far, evaluations included, over all the times the run was resumed."""
        return self.state.seconds

    @property
    def rate(self) -> float:
        """Symbols a second in gradient steps, evaluations left out."""
        return self.state.tokens / max(self.state.stepping, 1e-9)

    def run(self, report: Callable[[Progress], None] = lambda progress: None, stop: Callable[[], bool] = never) -> None:
        """Train to the end; the model then has its best parameters.

        Args:
            report: called a few times a second with a `Progress`.
            stop: asked after every window whether to stop.

        Raises:
            StatespanError: the loss is no longer finite; the last good checkpoint is kept.
            Stopped: `stop` said so; the checkpoint is written.
        """
        with seeded(self.seed), matrix_precision(self.how.precision):
            if self._random:
                torch.random.set_rng_state(self._random["random"])
            if self.device.type == "cuda" and "random_cuda" in self._random:  # of a run that began on a GPU too
                torch.cuda.set_rng_state(self._random["random_cuda"], self.device)
            self._run(report, stop)
        with torch.no_grad():
            for parameter, best in zip(self.parameters, self.best, strict=True):
                parameter.copy_(best)
        self.model.eval()

    def _run(self, report: Callable[[Progress], None], stop: Callable[[], bool]) -> None:
        state, how = self.state, self.how
        began, last_save, last_report = time.perf_counter() - state.seconds, time.monotonic(), -math.inf
        while not state.done and state.epoch < how.epochs:
            if state.position == self.windows:
                state.epoch, state.position, self.belief = state.epoch + 1, 0, None
                continue
            self.step()
            due = state.position in self.evaluate_at
            if due:
                self._evaluate(time.perf_counter() - began)
            state.seconds = time.perf_counter() - began
            stopping, saving = parallel.anywhere(stop(), time.monotonic() - last_save > how.save_every)
            if due or stopping or saving:
                self.save()
                last_save = time.monotonic()
            if stopping:
                raise Stopped
            if time.monotonic() - last_report > REPORT_EVERY:
                report(self._progress())
                last_report = time.monotonic()
        report(self._progress())

    def _progress(self) -> Progress:
        state = self.state
        valid = state.curve[-1]["valid_perplexity"] if state.curve else math.nan
        return Progress(state.tokens, self.total, self.rate, perplexity(state.loss, state.counted), valid)

    def step(self) -> None:
        """One window: a gradient step, and the belief carried on.

        Raises:
            StatespanError: the loss or its gradient is not finite; the parameters are as they were before the step.
        """
        state, how, began = self.state, self.how, time.perf_counter()
        words = self.train[state.position * how.window : (state.position + 1) * how.window]
        count = self.counts[state.position]
        whole = True if count == words.numel() else None
        self.model.train()
        belief = None if self._starts_anew() else self.belief
        trace = run(self.model, self.method, observe(parallel.columns(words), whole), belief, ("log_prob", "last"))
        assert trace.log_prob is not None
        loss = -trace.log_prob.sum() / max(count, 1)
        if how.schedule == "linear":
            past = state.epoch * self.windows + state.position
            self._set_rate(how.learning_rate * (1 - past / (how.epochs * self.windows)))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        parallel.sum_gradients(self.parameters)
        norm = nn.utils.clip_grad_norm_(self.parameters, how.clip or math.inf)
        value, length = torch.stack([loss.detach(), norm.to(loss)]).tolist()  # the one place where a GPU is waited for
        value = parallel.total(value)
        self._insist("loss", value)
        self._insist("gradient's norm", length)
        self.optimiser.step()
        with torch.no_grad():
            for mean, parameter in zip(self.mean, self.parameters, strict=False):
                mean.lerp_(parameter, 1 - how.average)
        # Copies lie in memory as a resumed run's do: matrix products round by how their operands lie.
        self.belief = tree_map(lambda x: x.detach().clone(memory_format=torch.contiguous_format), trace.last)
        state.loss, state.counted = state.loss + value * count, state.counted + count
        state.position, state.tokens = state.position + 1, state.tokens + count
        state.stepping += time.perf_counter() - began

    def _starts_anew(self) -> bool:
        """Whether the carried state is dropped before this window: drawn from where it stands, whatever else draws."""
        if not self.how.reset:
            return False
        drawn = torch.Generator().manual_seed(
            (self.seed * 1_000_003 + self.state.epoch) * 1_000_003 + self.state.position
        )
        return float(torch.rand((), generator=drawn)) < self.how.reset

    def _insist(self, what: str, value: float) -> None:
        """Refuse a number that is not finite, naming rung and step."""
        if math.isfinite(value):
            return
        kept = "there is no checkpoint yet"
        if self.checkpoint is not None and self.checkpoint.exists():
            kept = f"the last good checkpoint is {self.checkpoint}"
        state = self.state
        raise StatespanError(
            f"rung {self.name}: the {what} became {value} in epoch {state.epoch + 1}, window {state.position + 1} of "
            f"{self.windows}; {kept}; lower its learning_rate ({state.rate:g})"
        )

    def _set_rate(self, rate: float) -> None:
        self.state.rate = rate
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    def _evaluate(self, seconds: float) -> None:
        """Perplexity of the validation text; the plateau schedule and early stopping act on it."""
        state, how = self.state, self.how
        self.model.eval()
        stepped = self._exchange(self.mean)
        score = score_stream(self.model, self.valid, self.method)
        self._insist("validation loss", -score.log_prob)
        state.curve.append(
            {
                "epoch": state.epoch + state.position / self.windows,
                "seconds": seconds,
                "train_perplexity": perplexity(state.loss, state.counted),
                "valid_perplexity": score.perplexity,
            }
        )
        state.loss, state.counted = 0.0, 0
        if score.perplexity < state.best:
            state.best, state.stale, state.unmoved = score.perplexity, 0, 0
            self.best = [p.detach().clone() for p in self.parameters]
            self._exchange(stepped)
            return
        self._exchange(stepped)
        state.stale, state.unmoved = state.stale + 1, state.unmoved + 1
        if how.schedule == "plateau" and state.unmoved >= how.wait:
            state.unmoved = 0
            self._set_rate(state.rate / how.decay)
        state.done = bool(how.patience) and state.stale >= how.patience

    @torch.no_grad()
    def _exchange(self, values: list[Tensor]) -> list[Tensor]:
        """Put values in the parameters' place; what stood there. Nothing is done where there are none."""
        before = [p.detach().clone() for p in self.parameters] if values else []
        for parameter, value in zip(self.parameters, values, strict=False):
            parameter.copy_(value)
        return before

    def save(self) -> None:
        """Write the state of the run, at once or not at all; numbers that are not finite are refused."""
        if self.checkpoint is None:
            return
        tensors = {}
        for i, (parameter, best) in enumerate(zip(self.parameters, self.best, strict=True)):
            self._insist("sum of a parameter", float(parameter.detach().sum()))
            tensors |= {f"model.{i}": parameter, f"best.{i}": best}
            kept = self.optimiser.state.get(parameter, {})
            tensors |= {f"optimiser.{i}.{key}": x for key, x in kept.items() if isinstance(x, Tensor)}
        tensors |= {f"mean.{i}": x for i, x in enumerate(self.mean)}
        tensors |= {f"belief.{i}": x for i, x in enumerate(leaves(self.belief))}
        tensors["random"] = torch.random.get_rng_state()
        if self.device.type == "cuda":
            tensors["random_cuda"] = torch.cuda.get_rng_state(self.device)
        checkpoints.write(self.checkpoint, self._stamp, asdict(self.state), tensors)

    def _load(self, path: Path) -> None:
        state, tensors = checkpoints.read(path, self._stamp)
        self.state = _State(**state)
        self._set_rate(self.state.rate)
        self._random = {name: x for name, x in tensors.items() if name.startswith("random")}
        for i, parameter in enumerate(self.parameters):
            device = parameter.device
            parameter.data.copy_(tensors[f"model.{i}"])
            self.best[i] = tensors[f"best.{i}"].to(device)
            if self.mean:
                self.mean[i] = tensors[f"mean.{i}"].to(device)
            prefix = f"optimiser.{i}."
            kept = {k.removeprefix(prefix): x for k, x in tensors.items() if k.startswith(prefix)}
            if kept:  # a fused optimiser counts its steps on the device too
                self.optimiser.state[parameter] = {k: x.to(device) for k, x in kept.items()}
        before = parallel.columns(self.train[: self.state.position * self.how.window][-self.how.window :])
        with torch.no_grad():  # for the belief's form alone
            like = run(self.model, self.method, observe(before), None, ("last",)).last
        saved = (tensors[f"belief.{i}"].to(x.device) for i, x in enumerate(leaves(like)))
        self.belief = replace_leaves(like, saved)
