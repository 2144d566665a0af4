"""How long a run will take, by timing a window of each row on this machine."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from statespan.fit import EM
from statespan.ladder import findings
from statespan.ladder.material import Material
from statespan.ladder.recipe import Entry, Recipe
from statespan.ladder.row import build
from statespan.language.scoring import batches, score_stream
from statespan.language.training import Trainer
from statespan.language.vocabulary import stream
from statespan.methods import Forward

ROWS = 64
"""Rows of the validation stream that are scored to time scoring."""

EM_TOKENS = 2**13
"""Symbols of the E-step that is timed."""

STANDSTILL = 1e-12
"""A learning rate so small that the steps that are timed cannot go wrong."""

ROW_SECONDS = 1.0
"""What a row takes beside: making and saving the model, drawing samples."""

START_SECONDS = 6.0
"""What starting the workers and writing the report take."""

CROWDED = 1.15
"""How much slower a row is with others beside it."""


class Estimate(NamedTuple):
    """Seconds each row should take on one thread, and all of them on the workers."""

    rows: dict[str, float]
    total: float


def estimate(recipe: Recipe, entries: Sequence[Entry], material: Material) -> Estimate:
    """Time one window of each row, and say how long the run will take.

    Rows of the same rung and size are timed once.

    Args:
        recipe: the recipe.
        entries: the rows to train.
        material: the text.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        known: dict[tuple[Any, ...], _Costs] = {}
        rows = {}
        for entry in entries:
            size = (entry.rung, entry.width or entry.parameters, entry.how.batch, entry.how.window, entry.trainer)
            if size not in known:
                known[size] = _measure(entry, material, recipe.seed)
            rows[entry.name] = _seconds(entry, material, known[size])
    finally:
        torch.set_num_threads(threads)
    workers = min(recipe.workers, len(entries))
    crowded = CROWDED if workers > 1 else 1.0
    rows = {name: seconds * crowded for name, seconds in rows.items()}
    return Estimate(rows, max(sum(rows.values()) / max(workers, 1), max(rows.values(), default=0.0)) + START_SECONDS)


class _Costs(NamedTuple):
    """Seconds a symbol: in a gradient step, in an E-step, in scoring."""

    step: float
    expect: float
    score: float


def _measure(entry: Entry, material: Material, seed: int) -> _Costs:
    """Time each kind of work once, after a first time that warms it up."""
    model = build(entry, material, seed)
    step = expect = 0.0
    if entry.by_gradient:
        words = stream(material.train, entry.how.batch)[: entry.how.window]
        how = replace(entry.how, learning_rate=STANDSTILL)
        once = lambda: Trainer(model, words, words[:1], how, seed, name=entry.name).step()  # noqa: E731
        step = _time(once) / int((words >= 0).sum())
    columns = stream(material.valid, findings.COLUMNS)[:ROWS]
    score = _time(lambda: score_stream(model, columns)) / int((columns >= 0).sum())
    if entry.by_em:
        groups = batches(material.train, EM_TOKENS)[-1:]
        expect = _time(lambda: EM().expect(model, Forward(), groups)) / int(groups[0].within.sum())
    return _Costs(step, expect, score)


def _seconds(entry: Entry, material: Material, costs: _Costs) -> float:
    """What the row takes, from what a symbol costs."""
    valid, test = (sum(map(len, part)) for part in (material.valid, material.test))
    scored = 2.0 * (valid + test)
    trained = 0.0
    if entry.by_gradient:
        trained += material.tokens * entry.how.epochs * costs.step
        scored += valid * entry.how.epochs * entry.how.evaluations
    if entry.by_em:
        trained += material.tokens * entry.iterations * costs.expect
        scored += valid * entry.iterations
    if material.tags:
        scored += 2.0 * test + min(material.tokens, findings.LEARN_TOKENS)
    return trained + scored * costs.score + ROW_SECONDS


def _time(work: Callable[[], Any]) -> float:
    """Seconds of the second of two times."""
    work()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
