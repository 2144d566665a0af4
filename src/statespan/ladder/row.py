"""One row of the ladder: a rung built, trained and scored on one text, and what the report says of it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from statespan.files import save
from statespan.ladder import findings
from statespan.ladder.material import Material
from statespan.ladder.recipe import Entry
from statespan.ladder.rungs import BAYES, FORGET, GRU, JORDAN, LADDER, LSTM, Kind, Rung, count, find, ladder, width_for
from statespan.language import parallel
from statespan.language.expectation import EMTrainer
from statespan.language.scoring import score_sentences, score_stream, walk
from statespan.language.training import Curve, Progress, Stopped, Trainer, never
from statespan.language.vocabulary import stream

MODEL = "model.safetensors"
CHECKPOINTS = ("em.safetensors", "checkpoint.safetensors")
"""Where the two phases of a row, EM and gradients, keep their state."""

MIXED = 0.6
"""How much of a state that begins as a class of words is as all words: with less it keeps to its class."""

RARE = 5.0
"""A word that stands so often is half as sure of its class as a frequent one."""

PSEUDO_COUNT = 20.0
"""Added to how often a class is followed, spread as the classes are."""

MEASURED = (
    *("valid_perplexity", "valid_perplexity_independent", "test_perplexity", "test_perplexity_independent"),
    *("tokens_per_second", "seconds", "state_words", "state_usage", "tags"),
)
"""What a record holds once a row is trained."""


def build(entry: Entry, material: Material, seed: int) -> Any:
    """The model of a row, on the text's device, its output bias started at the log frequencies of the symbols."""
    exact = find(entry.rung).exact
    model = ladder(
        entry.rung,
        vocabulary=len(material.vocabulary),
        start=material.vocabulary.eos,
        tied=entry.tied,
        dropout=entry.dropout,
        spread=entry.spread,
        uniform=entry.uniform,
        embedding=entry.embedding,
        variational=entry.variational,
        classes=entry.classes,
        seed=seed,
        width=entry.width or None,
        parameters=None if entry.width else entry.parameters,
    )
    with torch.no_grad():
        model.emission.table.bias.copy_(material.frequencies().log())
        if entry.classes > 1:
            model.emission.set_classes(material.classes(entry.classes).owner)
        if entry.begin == "classes":
            begin_with_classes(model, material)
        if entry.first == "columns" and exact:
            model.initial.logits.copy_(_move(model.transition).logits.sum(0))
    if entry.first == "uniform" and exact:
        model.initial.logits.requires_grad_(False)
    return model.to(material.device)


def begin_with_classes(model: Any, material: Material) -> None:
    """Start the rows and the emissions of an HMM from classes of words, one a state, found in the training text.

    Each keeps a share of what all words do (`MIXED`, more for a rare word), so that no state is shut out of anything.

    Args:
        model: an HMM over words, its bias the log frequencies of the words.
        material: the text.
    """
    states, frequencies = model.transition.states, material.frequencies().double()
    words = torch.cat(material.train)
    found = material.classes(states)
    shares = frequencies.new_zeros(states).index_add(0, found.owner, frequencies)
    counts = torch.bincount(words, minlength=len(frequencies)).double()
    sure = ((1 - MIXED) * counts / (counts + RARE))[:, None]
    own = torch.nn.functional.one_hot(found.owner, states).double() / shares
    model.emission.table.weight.copy_((sure * own + 1 - sure).log())
    pairs = found.pairs.double() + PSEUDO_COUNT * found.shares
    moves = pairs / pairs.sum(-1, keepdim=True)
    _move(model.transition).logits.copy_(((1 - MIXED) * moves + MIXED * found.shares).clamp_min(1e-9).log())


def _move(transition: Any) -> Any:
    """What moves the state, inside what feeds it and what leaves states out."""
    while hasattr(transition, "move"):
        transition = transition.move
    return transition


def describe(entry: Entry, vocabulary: int) -> dict[str, Any]:
    """What the report says of a row before any training; a record is this and what `MEASURED` names.

    Args:
        entry: the row.
        vocabulary: V.

    Raises:
        StatespanError: no width meets the row's budget.
    """
    rung = find(entry.rung)
    width = entry.width or width_for(entry.rung, rung, vocabulary, entry.parameters, entry.tied)
    how = entry.how if entry.by_gradient else None
    return {
        "name": entry.name,
        "rung": entry.rung,
        "group": _group(rung),
        "state": _state(rung),
        "title": entry.name,
        "equations": rung.equations,
        "condition": rung.condition.words,
        "move": rung.move.words,
        "feed": rung.feed.words,
        "score": rung.score.words,
        "method": rung.method,
        "exact": rung.exact,
        "trainer": entry.trainer,
        "own_width": entry.own_width,
        "width": width,
        "parameters": count(rung, vocabulary, width, entry.tied, entry.embedding),
        "learning_rate": how.learning_rate if how else None,
        "optimizer": how.optimizer if how else None,
        "epochs": _passes(entry),
        "paper_perplexity": rung.paper if entry.name in LADDER else None,
        "note": "",
    }


def _group(rung: Rung) -> str:
    """The side of the ladder a rung stands on, as the report calls it."""
    if rung.condition is BAYES:
        return "hmm"
    return "reference" if rung.move in (FORGET, JORDAN, GRU, LSTM) else "elman"


def _state(rung: Rung) -> str:
    """What is carried from word to word, as the report calls it: a key of `records.STATES`."""
    if rung.move is FORGET:
        return "none"
    if rung.exact:
        return "belief"
    return {Kind.DISTRIBUTION: "distribution", Kind.POSITIVE: "positive"}.get(rung.move.yields or Kind.REAL, "real")


def unfinished(entry: Entry, vocabulary: int, why: str) -> dict[str, Any]:
    """The record of a row that did not finish: what it was to be, and why not."""
    return describe(entry, vocabulary) | dict.fromkeys(MEASURED) | {"curve": [], "samples": [], "note": why}


def train(
    entry: Entry,
    material: Material,
    seed: int,
    folder: Path,
    stamp: str = "",
    report: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = never,
) -> dict[str, Any]:
    """Train and score one row, and save its model.

    Args:
        entry: the row.
        material: the text.
        seed: of every random draw.
        folder: where the model and the checkpoints lie; what is there already is gone on from.
        stamp: what the row depends on; a checkpoint with another one is refused.
        report: called a few times a second with a `Progress` over all phases.
        stop: asked often whether to stop.

    Returns:
        The row's record, as `results.json` holds it.

    Raises:
        StatespanError: the loss is no longer finite, a checkpoint is broken, or a file cannot be written.
        Stopped: `stop` said so; the same call goes on from there.
    """
    rung, model = find(entry.rung), build(entry, material, seed)
    valid, test = (stream(part, findings.COLUMNS) for part in (material.valid, material.test))
    total = material.tokens * _passes(entry)
    seen, spent, rate, curve = 0, 0.0, 0.0, Curve()
    for make in _phases(entry, model, material, valid, seed, folder, stamp):
        phase = make()
        phase.run(lambda p, before=seen: report(p._replace(tokens=before + p.tokens, total=total)), stop)
        epochs = curve[-1]["epoch"] if curve else 0.0
        curve += [p | {"epoch": p["epoch"] + epochs, "seconds": p["seconds"] + spent} for p in phase.curve]
        seen, spent, rate = seen + phase.total, spent + phase.seconds, phase.rate
    began = time.perf_counter()
    model.eval()
    if entry.first == "ends" and rung.exact:
        start_after_ends(model, material)
    record = describe(entry, len(material.vocabulary)) | {"curve": curve, "tokens_per_second": rate}
    for name, part, columns in (("valid", material.valid, valid), ("test", material.test, test)):
        record[f"{name}_perplexity"] = score_stream(model, columns).perplexity
        record[f"{name}_perplexity_independent"] = score_sentences(model, part).perplexity
    record["samples"] = findings.samples(model, material, seed)
    record |= findings.state_words(model, rung, material, valid)
    record["tags"] = findings.tags(model, rung, material) if material.tags else None
    record["seconds"] = spent + time.perf_counter() - began
    extra = {"vocabulary": material.vocabulary.to_json(), "level": material.level, "rung": entry.rung}
    if parallel.place() == 0:
        save(model, folder / MODEL, extra | {"text": material.name})
    return record


@torch.no_grad()
def start_after_ends(model: Any, material: Material) -> None:
    """Make the first state of an exact rung the mean state after `<eos>`, over the training text's first words.

    Args:
        model: the rung's model.
        material: the text.
    """
    words = stream(material.train[: findings.first(material.train, findings.LEARN_TOKENS)], findings.LEARN_COLUMNS)
    after = torch.cat([torch.zeros_like(words[:1], dtype=torch.bool), words[:-1] == material.vocabulary.eos])
    width = model.emission.states
    total = torch.zeros(width, dtype=torch.float64, device=material.device)
    for rows, trace in walk(model, words, ("predicted",), max(1, findings.CHUNK // (findings.LEARN_COLUMNS * width))):
        predicted: Any = trace.predicted
        total += predicted.state.probs[after[rows]].double().sum(0)
    model.initial.set_probs((total / total.sum()).to(model.initial.logits))


def advance(
    entry: Entry,
    material: Material,
    seed: int,
    folder: Path,
    until: int,
    stamp: str = "",
    report: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = never,
) -> Curve:
    """Train one row up to an epoch and leave it there, its checkpoint written; `train` or a later epoch goes on.

    Args:
        entry: the row, trained by gradients alone.
        material: the text.
        seed: of every random draw.
        folder: where the checkpoint lies.
        until: epochs to have passed.
        stamp: as for `train`.
        report: as for `train`.
        stop: as for `train`.

    Returns:
        The learning curve.

    Raises:
        StatespanError: as `train`.
        Stopped: `stop` said so.
    """
    model = build(entry, material, seed)
    (make,) = _phases(entry, model, material, stream(material.valid, findings.COLUMNS), seed, folder, stamp)
    trainer: Any = make()

    def reached() -> bool:
        return trainer.state.epoch + trainer.state.position // trainer.windows >= until

    try:
        if not reached():
            trainer.run(report, lambda: stop() or reached())
    except Stopped:
        if not reached():
            raise
    return trainer.curve


def _phases(
    entry: Entry, model: Any, material: Material, valid: Any, seed: int, folder: Path, stamp: str
) -> list[Callable[[], EMTrainer | Trainer]]:
    """How to make the trainers of a row, one after the other: each begins from what the one before left."""
    by_em, by_gradient = (folder / name for name in CHECKPOINTS)

    def em() -> EMTrainer:
        settings = (entry.iterations, entry.prior, material.frequencies(), seed, by_em, entry.name, stamp)
        return EMTrainer(model, material.train, valid, *settings)

    def gradient() -> Trainer:
        columns = stream(material.train, entry.how.batch)
        return Trainer(model, columns, valid, entry.how, seed, by_gradient, entry.name, stamp)

    return [make for make, wanted in ((em, entry.by_em), (gradient, entry.by_gradient)) if wanted]


def _passes(entry: Entry) -> int:
    """Passes over the text, by EM and by gradients."""
    return (entry.iterations if entry.by_em else 0) + (entry.how.epochs if entry.by_gradient else 0)
