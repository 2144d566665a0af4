"""The main job: every row of a recipe on one text, what came of it, and the report."""

import datetime
import json
import math
import os
import platform
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from statespan.files import write_bytes
from statespan.ladder import material as texts
from statespan.ladder import report, row, together, workers
from statespan.ladder.estimate import Estimate, estimate
from statespan.ladder.material import Material
from statespan.ladder.recipe import Entry, Recipe
from statespan.language import parallel
from statespan.language.ngrams import KneserNey
from statespan.version import __version__

TEXT = "text.safetensors"
"""The encoded text in the run's folder while workers read it."""

COUNT_NAMES = {2: "Kneser-Ney bigram", 3: "Kneser-Ney trigram"}
"""What the report calls n-gram counts, by order."""


class Run:
    """One run of a recipe: what is done, what is to do, what failed.

    Args:
        recipe: the recipe.
        material: its text.
        out: the folder for models, checkpoints, records and the report.
        resume: whether rows that are done, with these settings, stay, and stopped ones go on; otherwise all is
            trained anew.

    Raises:
        StatespanError: the folder cannot be written, or a row's budget cannot be met.
    """

    def __init__(self, recipe: Recipe, material: Material, out: Path, resume: bool = False):
        self.recipe, self.material, self.out = recipe, material._replace(folder=out), out
        self.began = time.time()
        self.described = [row.describe(entry, len(material.vocabulary)) for entry in recipe.entries]
        if parallel.processes() == 1:  # for workers; those that torchrun started have read it
            texts.store(material, out / TEXT)
        digest = material.digest
        self.records: dict[str, dict[str, Any]] = {}
        self.failures: dict[str, str] = {}
        for entry in recipe.entries:
            if not resume:
                workers.forget(out, entry)
            elif (record := workers.finished(out, entry, recipe, digest)) is not None:
                self.records[entry.name] = record
        self.todo: list[Entry] = parallel.agreed([e for e in recipe.entries if e.name not in self.records])
        self.counts: list[dict[str, Any]] = []

    def estimate(self) -> Estimate:
        """How long what is to do will take."""
        return estimate(self.recipe, self.todo, self.material.to(self.recipe.device))

    def train(self, seconds: dict[str, float]) -> Generator[workers.Event]:
        """Train what is to do; yields what happens. Closing the iterator stops the workers, their state kept.

        Processes that `torchrun` started train each row together; one alone hands the rows to workers.

        Args:
            seconds: how long each row should take, by name: the longest is begun first.
        """
        self.counts = references(self.recipe, self.material)
        if parallel.processes() > 1:
            made = together.execute(self.recipe, self.todo, self.material.to(self.recipe.device), self.out)
        else:
            made = workers.execute(self.recipe, self.todo, self.out / TEXT, self.out, seconds)
        with closing(made) as events:
            for event in events:
                if isinstance(event, workers.Finished):
                    self.records[event.name] = event.record
                elif isinstance(event, workers.Failed):
                    self.failures[event.name] = event.why
                yield event

    def results(self, command: str) -> dict[str, Any]:
        """All that the report needs, as `results.json` holds it.

        Args:
            command: the command that was typed.
        """
        recipe, material = self.recipe, self.material
        vocabulary, test = len(material.vocabulary), torch.cat(material.test)
        stopped = "stopped before it was done; --resume goes on"
        rows = [
            self.records.get(e.name) or row.unfinished(e, vocabulary, self.failures.get(e.name, stopped))
            for e in recipe.entries
        ]
        return {
            "title": recipe.title,
            "corpus": {
                "name": material.name,
                "train_tokens": material.tokens,
                "valid_tokens": sum(map(len, material.valid)),
                "test_tokens": len(test),
                "vocabulary": vocabulary,
                "unknown_rate": float((test == material.vocabulary.unk).float().mean()),
                "tags": len(material.tags) or None,
            },
            "budget": max(e.parameters for e in recipe.entries) or None,
            "command": command,
            "started": datetime.datetime.fromtimestamp(self.began).isoformat(timespec="seconds"),
            "seconds": time.time() - self.began,
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}, torch {torch.__version__}",
            "version": __version__,
            "seed": recipe.seed,
            "paper": recipe.paper,
            "rungs": [*rows, *self.counts],
        }

    def write(self, results: dict[str, Any]) -> Path:
        """Write `results.json` and the report; returns the report's path. Of several processes, the first does.

        Raises:
            StatespanError: a file cannot be written.
        """
        target = self.out / "report.html"
        if parallel.place():
            return target
        write_bytes(self.out / "results.json", json.dumps(_plain(results), indent=1, allow_nan=False).encode())
        write_bytes(target, report.render(results).encode())
        (self.out / TEXT).unlink(missing_ok=True)
        return target


def references(recipe: Recipe, material: Material) -> list[dict[str, Any]]:
    """Interpolated Kneser-Ney counts, the n-gram yardstick, one record an order."""
    records = []
    for order in recipe.references:
        began = time.perf_counter()
        name = COUNT_NAMES[order]
        record: dict[str, Any] = {
            "name": name, "rung": name, "group": "reference", "title": name, "equations": "", "condition": "none",
            "move": "no state", "feed": f"last {order - 1} words", "score": "discounted counts", "method": "counts",
            "exact": True, "trainer": "counts", "own_width": True, "width": None, "parameters": None,
            "learning_rate": None, "optimizer": None, "epochs": 1, "curve": [], "samples": [], "state_words": None,
            "state_usage": None, "tags": None, "paper_perplexity": None, "note": "",
        }  # fmt: skip
        for ending, independent in (("", False), ("_independent", True)):
            counts = KneserNey(order).fit(material.train, len(material.vocabulary), independent)
            for part in ("valid", "test"):
                record[f"{part}_perplexity{ending}"] = counts.perplexity(getattr(material, part), independent)
        seconds = time.perf_counter() - began
        records.append(record | {"seconds": seconds, "tokens_per_second": material.tokens / seconds})
    return records


def _plain(value: Any) -> Any:
    """The same with null where a number is not finite: JSON has no such numbers."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
