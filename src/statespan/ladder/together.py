"""Rows trained one after the other by all the processes that `torchrun` started, each with its share of the text."""

import signal
from collections.abc import Generator, Sequence
from pathlib import Path

from statespan.ladder.material import Material
from statespan.ladder.recipe import Entry, Recipe
from statespan.ladder.workers import Event, Job, Started, attempt
from statespan.language.training import Stopped


def execute(recipe: Recipe, entries: Sequence[Entry], material: Material, out: Path) -> Generator[Event]:
    """Train rows here, in the order of the recipe; yields what happens. Every process must do it alike.

    Where one of them is asked to end (Ctrl-C, or SIGTERM from `torchrun`), all write their checkpoints and stop.

    Args:
        recipe: the recipe.
        entries: the rows to train.
        material: the text.
        out: the run's folder, which all processes see.
    """
    asked: list[int] = []
    note = lambda number, frame: asked.append(number)  # noqa: E731
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for entry in entries:
            yield Started(entry.name)
            yield attempt(Job(entry), recipe, material, out, lambda progress: None, lambda: bool(asked))
    except Stopped:
        return
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
