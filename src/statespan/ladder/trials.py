"""Trials of a recipe's rows on one text: how they are trained, and what is kept of the best of them."""

from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from statespan.errors import StatespanError
from statespan.files import load_with_extra
from statespan.ladder import figures, ledger, row, workers
from statespan.ladder import material as texts
from statespan.ladder.material import Material
from statespan.ladder.recipe import Entry, Recipe
from statespan.ladder.rungs import find
from statespan.ladder.workers import Event, Failed, Finished, Job, Paused, Queue
from statespan.language.protocols import Gold
from statespan.language.training import Curve


def reached(curve: Curve, until: int) -> float:
    """The best validation perplexity up to an epoch; infinite where there is none."""
    return min((p["valid_perplexity"] for p in curve if p["epoch"] <= until), default=float("inf"))


@dataclass(frozen=True)
class Trials:
    """What a sweep and a search have in common.

    Args:
        recipe: the recipe.
        name: of the recipe, for the results.
        material: its text.
        gold: gold tags of the validation and the test text, if there are any.
        out: the folder of the trials.
        results: the folder of the results files.
    """

    recipe: Recipe
    name: str
    material: Material
    gold: Mapping[str, Gold] | None
    out: Path
    results: Path

    @cached_property
    def digest(self) -> str:
        """Of the text."""
        return self.material.digest

    def train(self, rows: Mapping[str, Queue]) -> Generator[Event]:
        """Train what the rows' queues hand out, those of the first row first; yields what happens.

        Args:
            rows: by name.
        """
        source = self.out / "text.safetensors"
        texts.store(self.material, source)
        with closing(workers.work(self.recipe, _InTurn(rows), source, self.out)) as events:
            yield from events
        source.unlink(missing_ok=True)

    def finished(self, trial: Entry) -> dict[str, Any] | None:
        """The record of a trial that is done, if it was done with these settings on this text."""
        return workers.finished(self.out, trial, self.recipe, self.digest)

    def keep(self, rung: str, winner: Entry, point: Mapping[str, Any]) -> None:
        """Add the figures of a trained row to the results files, but for those that are there.

        Args:
            rung: what the results call the row.
            winner: the row as it was trained.
            point: the settings that it won by.

        Raises:
            StatespanError: its record is gone, or a file cannot be written.
        """
        folder, record = workers.folder_of(self.out, winner), self.finished(winner)
        if record is None:
            raise StatespanError(f"{folder}: the winner's record is gone; train it again")
        told = f"{self.name}: {', '.join(f'{k}={v}' for k, v in point.items())}"
        device = figures.device_name(self.recipe.device)
        made = ledger.of_record(record, rung, self.material.name, told, self.recipe.seed, device)
        new = ledger.append(self.results / ledger.LADDER, [made])
        if self.gold is None or (not new and ledger.holds(self.results / ledger.TAGGING, made)):
            return
        model, _ = load_with_extra(folder / row.MODEL, self.recipe.device)
        gold = {part: text.to(self.recipe.device) for part, text in self.gold.items()}
        ledger.append(self.results / ledger.TAGGING, figures.tagging_rows(model, find(winner.rung), gold, made))


class _InTurn:
    """The queues of all rows as one: the first that has a job is served first.

    Args:
        rows: by name.
    """

    def __init__(self, rows: Mapping[str, Queue]):
        self.rows = rows
        self.owner: dict[str, Queue] = {}

    def take(self) -> Job | None:
        """The next job of the first row that has one."""
        for queue in self.rows.values():
            if (job := queue.take()) is not None:
                self.owner[job.entry.name] = queue
                return job
        return None

    def told(self, event: Event) -> None:
        """Tell the row whose trial it is."""
        self.owner[event.name].told(event)


def say(event: Event, at: float) -> str | None:
    """An event as a line; None for one that is not worth a line.

    Args:
        event: what happened.
        at: seconds since the start.
    """
    match event:
        case Paused(name, until, curve):
            return f"{at:8.0f} s  {name}: dev {reached(curve, until):.2f} after {until} epochs"
        case Finished(name, record):
            return f"{at:8.0f} s  {name}: dev {record['valid_perplexity']:.2f}, test {record['test_perplexity']:.2f}"
        case Failed(name, why):
            return f"{at:8.0f} s  {name}: {why}"
        case _:
            return None
