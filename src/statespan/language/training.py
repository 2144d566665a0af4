"""Training and scoring a model of text: streams cut into windows, the belief carried over, truncated back-propagation.

A stream is a text laid out in B columns, (T, B) integers with -1 for padding. The belief at the end of one window
starts the next, its gradient cut; that is all that truncated back-propagation through time needs here.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from statespan.errors import StatespanError
from statespan.files import write_bytes
from statespan.language.vocabulary import windows
from statespan.method import Method, run
from statespan.methods import method_for
from statespan.sequences import Sequences
from statespan.tree import detach, leaves, replace_leaves

OPTIMISERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
    "amsgrad": (torch.optim.Adam, {"amsgrad": True, "betas": (0.0, 0.999)}),
}
"""Optimisers by the name recipes use; `amsgrad` is the paper's, AMSGrad with beta1 = 0 (footnote 5)."""

SCHEDULES = ("plateau", "linear", "constant")


@dataclass(frozen=True)
class Training:
    """How a model of text is trained.

    Args:
        optimizer: sgd, adam, adamw or amsgrad.
        learning_rate: its first step size.
        schedule: plateau divides the rate by `decay` after an evaluation without improvement; linear lowers it to zero
            over the whole run; constant leaves it.
        decay: what the plateau schedule divides by.
        batch: columns of the stream.
        window: steps between two cuts of the gradient.
        epochs: passes over the text.
        clip: largest norm of the gradient of the mean loss; 0 does not clip.
        weight_decay: L2 for sgd, adam and amsgrad, decoupled for adamw.
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
    batch: int = 32
    window: int = 35
    epochs: int = 2
    clip: float = 0.25
    weight_decay: float = 0.0
    patience: int = 0
    evaluations: int = 2
    save_every: float = 60.0

    def __post_init__(self):
        checks = (
            (self.optimizer in OPTIMISERS, "optimizer", f"one of {', '.join(OPTIMISERS)}"),
            (self.schedule in SCHEDULES, "schedule", f"one of {', '.join(SCHEDULES)}"),
            (self.learning_rate > 0, "learning_rate", "positive"),
            (self.decay > 1, "decay", "above 1"),
            (self.batch >= 1, "batch", "at least 1"),
            (self.window >= 1, "window", "at least 1"),
            (self.epochs >= 1, "epochs", "at least 1"),
            (self.clip >= 0, "clip", "0 or more"),
            (self.weight_decay >= 0, "weight_decay", "0 or more"),
            (self.evaluations >= 1, "evaluations", "at least 1"),
        )
        for good, name, want in checks:
            if not good:
                raise StatespanError(f"training: {name} = {getattr(self, name)!r} must be {want}")


class Progress(NamedTuple):
    """Where a run stands: tokens seen and to see, tokens a second, and the last perplexities."""

    tokens: int
    total: int
    rate: float
    train: float
    valid: float


class Score(NamedTuple):
    """Sum of log-probabilities, and how many symbols were scored."""

    log_prob: float
    count: int

    @property
    def perplexity(self) -> float:
        """exp(-log p / n)."""
        return math.exp(min(-self.log_prob / max(self.count, 1), 700.0))


def observe(words: Tensor) -> Sequences:
    """A window (L, B) of a stream as sequences; -1 is not observed."""
    there = words >= 0
    return Sequences(y=words.clamp_min(0), observed=None if bool(there.all()) else there)


@torch.no_grad()
def score_stream(model: Any, words: Tensor, method: Method | None = None, length: int = 64) -> Score:
    """Score a stream with the state carried over.

    Each of the B columns starts cold once, and then carries its belief to its end.

    Args:
        model: a model of symbols.
        words: (T, B) integers, -1 padding.
        method: the method, or None for the model's own.
        length: steps at once; it bounds memory and changes nothing else.
    """
    method = method_for(model) if method is None else method
    constants, belief, total = method.constants(model), None, 0.0
    for _, window in windows(words, length):
        trace = run(model, method, observe(window), belief, ("log_prob", "last"), constants)
        assert trace.log_prob is not None
        total, belief = total + float(trace.log_prob.sum()), trace.last
    return Score(total, int((words >= 0).sum()))


@torch.no_grad()
def score_sentences(model: Any, sentences: Sequence[Tensor], method: Method | None = None, tokens: int = 4096) -> Score:
    """Score sentences each on its own, from the model's start.

    Args:
        model: a model of symbols.
        sentences: integers, each (T_n,).
        method: the method, or None for the model's own.
        tokens: about how many symbols at once; sentences of like length go together.
    """
    method = method_for(model) if method is None else method
    constants, total = method.constants(model), 0.0
    for group in batches(sentences, tokens):
        trace = run(model, method, group, None, ("log_prob",), constants)
        assert trace.log_prob is not None
        total += float(trace.log_prob.sum())
    return Score(total, sum(len(s) for s in sentences))


def batches(sentences: Sequence[Tensor], tokens: int) -> list[Sequences]:
    """Sentences sorted by length and padded, about `tokens` symbols a batch."""
    ordered = sorted(sentences, key=len)
    groups, start = [], 0
    for i, sentence in enumerate(ordered):
        last = i + 1 == len(ordered)
        if last or (i + 2 - start) * len(ordered[i + 1]) > tokens:
            group = ordered[start : i + 1]
            lengths = torch.tensor([len(s) for s in group])
            y = nn.utils.rnn.pad_sequence(list(group))
            groups.append(Sequences(y=y, lengths=None if len(group[0]) == len(sentence) else lengths))
            start = i + 1
    return groups


@dataclass
class _State:
    """Where a training run stands: all that a resumed run needs beside tensors."""

    epoch: int = 0
    position: int = 0
    tokens: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    best: float = math.inf
    stale: int = 0
    done: bool = False
    loss: float = 0.0
    counted: int = 0
    curve: list[dict[str, float | None]] = field(default_factory=list)


class Trainer:
    """Trains one model; each evaluation and checkpoint is a place to stop and to go on from, to the same numbers.

    Args:
        model: the model, trained in place; at the end it holds the parameters with the best validation perplexity.
        train: (T, B) stream to learn from.
        valid: (T, B) stream to choose on.
        how: the settings.
        seed: of the run (dropout).
        checkpoint: where to keep the state of the run; None keeps none.
        name: what to call the run in errors.
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
    ):
        self.model, self.train, self.valid, self.how = model, train, valid, how
        self.method, self.name, self.checkpoint = method_for(model), name, checkpoint
        kind, options = OPTIMISERS[how.optimizer]
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = kind(self.parameters, lr=how.learning_rate, weight_decay=how.weight_decay, **options)
        self.state = _State(rate=how.learning_rate)
        self.best = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.belief: Any = None
        self.starts = list(range(0, len(train), how.window))
        every = max(1, len(self.starts) // how.evaluations)
        self.evaluate_at = {min(len(self.starts), every * (i + 1)) for i in range(how.evaluations - 1)}
        self.evaluate_at.add(len(self.starts))
        self.total = int((train >= 0).sum()) * how.epochs
        torch.manual_seed(seed)
        self._stamp = json.dumps([asdict(how), list(train.shape), seed, [list(p.shape) for p in self.parameters]])
        if checkpoint is not None and checkpoint.exists():
            self._load(checkpoint)

    @property
    def curve(self) -> list[dict[str, float | None]]:
        """Perplexities at each evaluation: epoch, seconds, train_perplexity, valid_perplexity."""
        return self.state.curve

    def run(self, report: Callable[[Progress], None] = lambda progress: None) -> Any:
        """Train to the end; returns the model with its best parameters.

        Args:
            report: called a few times a second with a `Progress`.

        Raises:
            StatespanError: the loss is no longer finite; the best parameters so far are kept.
        """
        state, how = self.state, self.how
        began, last_save, last_report = time.perf_counter() - state.seconds, time.monotonic(), 0.0
        while not state.done and state.epoch < how.epochs:
            if state.position == len(self.starts):
                state.epoch, state.position, self.belief = state.epoch + 1, 0, None
                continue
            self._step()
            state.seconds = time.perf_counter() - began
            if state.position in self.evaluate_at:
                self._evaluate()
                self.save()
                last_save = time.monotonic()
            elif time.monotonic() - last_save > how.save_every:
                self.save()
                last_save = time.monotonic()
            if time.monotonic() - last_report > 0.25:
                report(self._progress())
                last_report = time.monotonic()
        report(self._progress())
        self.model.load_state_dict(self.best)
        self.model.eval()
        return self.model

    def _progress(self) -> Progress:
        state = self.state
        last = state.curve[-1] if state.curve else {}
        train = math.exp(min(state.loss / state.counted, 700.0)) if state.counted else math.nan
        valid = last.get("valid_perplexity")
        rate = state.tokens / max(state.seconds, 1e-9)
        return Progress(state.tokens, self.total, rate, train, math.nan if valid is None else valid)

    def _step(self) -> None:
        """One window: a gradient step, and the belief carried on."""
        state, how = self.state, self.how
        start = self.starts[state.position]
        words = self.train[start : start + how.window]
        data = observe(words)
        self.model.train()
        trace = run(self.model, self.method, data, self.belief, ("log_prob", "last"))
        assert trace.log_prob is not None
        count = int((words >= 0).sum())
        loss = -trace.log_prob.sum() / max(count, 1)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise StatespanError(
                f"rung {self.name}: the loss became {value} in epoch {state.epoch + 1}, window {state.position + 1} of "
                f"{len(self.starts)}; the best parameters so far are kept; lower its learning_rate ({state.rate:g})"
            )
        if how.schedule == "linear":
            left = 1 - (state.epoch * len(self.starts) + state.position) / (how.epochs * len(self.starts))
            self._set_rate(how.learning_rate * left)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if how.clip:
            nn.utils.clip_grad_norm_(self.parameters, how.clip)
        self.optimiser.step()
        self.belief = detach(trace.last)
        state.loss, state.counted = state.loss + value * count, state.counted + count
        state.position, state.tokens = state.position + 1, state.tokens + count

    def _set_rate(self, rate: float) -> None:
        self.state.rate = rate
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    def _evaluate(self) -> None:
        """Perplexity of the validation text; the plateau schedule and early stopping act on it."""
        state, how = self.state, self.how
        self.model.eval()
        valid = score_stream(self.model, self.valid, self.method).perplexity
        state.curve.append(
            {
                "epoch": state.epoch + state.position / len(self.starts),
                "seconds": state.seconds,
                "train_perplexity": math.exp(min(state.loss / max(state.counted, 1), 700.0)),
                "valid_perplexity": valid,
            }
        )
        state.loss, state.counted = 0.0, 0
        if valid < state.best:
            state.best, state.stale = valid, 0
            self.best = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
            return
        state.stale += 1
        if how.schedule == "plateau":
            self._set_rate(state.rate / how.decay)
        state.done = bool(how.patience) and state.stale >= how.patience

    def save(self) -> None:
        """Write the state of the run, at once or not at all."""
        if self.checkpoint is None:
            return
        tensors = {f"model.{i}": p.detach() for i, p in enumerate(self.parameters)}
        for i, p in enumerate(self.parameters):
            for key, value in self.optimiser.state.get(p, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimiser.{i}.{key}"] = value
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        tensors |= {f"belief.{i}": x for i, x in enumerate(leaves(self.belief))}
        tensors["random"] = torch.random.get_rng_state()
        header = {"state": json.dumps(asdict(self.state)), "stamp": self._stamp}
        write_bytes(self.checkpoint, to_bytes({k: v.clone().contiguous() for k, v in tensors.items()}, header))

    def _load(self, path: Path) -> None:
        try:
            with safe_open(str(path), framework="pt") as file:
                meta = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            state = _State(**json.loads(meta["state"]))
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise StatespanError(f"{path}: the checkpoint is cut short or broken ({error}); delete it") from error
        if meta.get("stamp") != self._stamp:
            raise StatespanError(f"{path}: the checkpoint is of other settings or another text; delete it or use --out")
        self.state = state
        with torch.no_grad():
            for i, p in enumerate(self.parameters):
                p.copy_(tensors[f"model.{i}"])
        for i, p in enumerate(self.parameters):
            prefix = f"optimiser.{i}."
            kept = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if kept:
                self.optimiser.state[p] = kept
        self._set_rate(state.rate)
        self.best = {k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")}
        saved = [tensors[f"belief.{i}"] for i in range(sum(k.startswith("belief.") for k in tensors))]
        if saved:
            with torch.no_grad():
                like = run(self.model, self.method, observe(self.train[:1]), None, ("last",)).last
            self.belief = replace_leaves(like, saved)
        torch.random.set_rng_state(tensors["random"])
