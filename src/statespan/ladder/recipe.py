"""Recipes: TOML files that say what a run of the ladder does."""

import difflib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from statespan.errors import StatespanError
from statespan.ladder.rungs import LADDER, find
from statespan.language.training import Training


@dataclass(frozen=True)
class Text:
    """What is read.

    Args:
        source: "king-james" (the demo extra), or "files".
        train, valid, test: paths, for files; a folder-free path is looked for beside the recipe. With `train` alone
            the text is split 18/1/1 by blocks of 20 sentences.
        name: what the report calls it.
        level: "words" or "characters".
        vocabulary: at most this many symbols, the two special ones counted; 0 takes all.
        share: this share of the training sentences, the first ones.
        form: "text", "tagged" or "conllu"; "" goes by the file's suffix.
        universal: a map from tags to coarser ones, two columns; "" keeps the tags.
    """

    source: str = "files"
    train: str = ""
    valid: str = ""
    test: str = ""
    name: str = ""
    level: str = "words"
    vocabulary: int = 0
    share: float = 1.0
    form: str = ""
    universal: str = ""


@dataclass(frozen=True)
class Entry:
    """One row of the run.

    Args:
        name: how the report calls it.
        rung: a key of `ss.LADDER`, or four choices spelled out.
        trainer: "SGD", "EM", or "EM, then SGD".
        width: the width; 0 finds the largest within the budget.
        parameters: the budget.
        tied: one matrix in and out.
        dropout: at what is fed, in the state, before the score.
        spread: standard deviation of the first embeddings.
        iterations: of EM.
        prior: EM's pseudo-counts a state, spread over the symbols by their frequency.
        how: the settings of training.
    """

    name: str
    rung: str
    trainer: str = "SGD"
    width: int = 0
    parameters: int = 0
    tied: bool = True
    dropout: tuple[float, float, float] = (0.0, 0.0, 0.0)
    spread: float = 0.1
    iterations: int = 15
    prior: float = 30.0
    how: Training = field(default_factory=Training)


@dataclass(frozen=True)
class Recipe:
    """A run of the ladder.

    Args:
        title: of the report.
        text: what is read.
        entries: the rows, in the order of the report.
        references: orders of the Kneser-Ney counts to report, 2 for bigrams.
        seed: of every random draw.
        workers: rungs trained at a time, each on one thread.
        paper: whether the paper's figures stand beside ours (they are for the Penn Treebank).
    """

    title: str
    text: Text
    entries: tuple[Entry, ...]
    references: tuple[int, ...] = (2, 3)
    seed: int = 0
    workers: int = 2
    paper: bool = False


TRAINERS = ("SGD", "EM", "EM, then SGD")
_ENTRY = ("rung", "trainer", "width", "parameters", "tied", "dropout", "spread", "iterations", "prior")
_TRAINING = tuple(f.name for f in fields(Training))


def read(path: str | Path) -> Recipe:
    """Read a recipe.

    Args:
        path: a TOML file with the tables [run], [text], [model], [training] and [rungs."name"]; what a rung's table
            says overrides [model] and [training] for it, and a rung without a table takes part too unless [run] lists
            `rungs`.

    Raises:
        StatespanError: no such file, not TOML, or an unknown key (the nearest is suggested).
    """
    path = Path(path)
    if not path.is_file():
        raise StatespanError(f"{path}: no such recipe; recipes/kjv.toml is one")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StatespanError(f"{path}: not a TOML file: {error}") from error
    _known(path, "", raw, ("run", "text", "model", "training", "rungs"))
    run, model, training = raw.get("run", {}), raw.get("model", {}), raw.get("training", {})
    _known(path, "run", run, ("title", "seed", "workers", "references", "paper", "rungs"))
    _known(path, "text", raw.get("text", {}), [f.name for f in fields(Text)])
    _known(path, "model", model, [k for k in _ENTRY if k not in ("rung", "trainer")])
    _known(path, "training", training, _TRAINING)
    text = _build(path, "text", Text, raw.get("text", {}))
    tables = raw.get("rungs", {})
    names = run.get("rungs", [*[n for n in LADDER], *[n for n in tables if n not in LADDER]])
    entries = []
    for name in names:
        own = tables.get(name, {})
        _known(path, f'rungs."{name}"', own, (*_ENTRY, *_TRAINING))
        entries.append(_entry(path, name, model | own, training | own))
    settings = {k: run[k] for k in ("seed", "workers", "paper") if k in run}
    references = tuple(run.get("references", (2, 3)))
    return Recipe(run.get("title", path.stem), text, tuple(entries), references, **settings)


def _entry(path: Path, name: str, model: dict[str, Any], training: dict[str, Any]) -> Entry:
    """One row, its rung checked."""
    place = f'rungs."{name}"'
    rung = model.get("rung", name)
    try:
        find(rung)
    except StatespanError as error:
        raise StatespanError(f"{path}: {place}: {error}") from error
    how = _build(path, place, Training, {k: v for k, v in training.items() if k in _TRAINING})
    values = {k: model[k] for k in _ENTRY if k in model and k != "rung"}
    if "dropout" in values:
        values["dropout"] = tuple(values["dropout"])
    entry = _build(path, place, Entry, {"name": name, "rung": rung, "how": how} | values)
    if entry.trainer not in TRAINERS:
        raise StatespanError(f"{path}: {place}: trainer = {entry.trainer!r} must be one of {', '.join(TRAINERS)}")
    if not entry.width and not entry.parameters:
        raise StatespanError(f"{path}: {place}: neither width nor parameters; set one in [model]")
    return entry


def _build(path: Path, place: str, cls: type, values: dict[str, Any]) -> Any:
    """A dataclass from a table, each value of its field's type."""
    defaults = {f.name: f.default for f in fields(cls)}
    for key, value in values.items():
        like = defaults.get(key)
        wrong = isinstance(like, bool) != isinstance(value, bool) and isinstance(like, (bool, int, float, str))
        if isinstance(like, float) and isinstance(value, int) and not isinstance(value, bool):
            values = values | {key: float(value)}
        elif wrong or (isinstance(like, (int, float, str)) and not isinstance(value, type(like))):
            raise StatespanError(f"{path}: [{place}] {key} = {value!r} must be a {type(like).__name__}")
    try:
        return cls(**values)
    except StatespanError as error:
        raise StatespanError(f"{path}: [{place}] {error}") from error


def _known(path: Path, place: str, table: dict[str, Any], known: Iterable[str]) -> None:
    """Refuse an unknown key by name."""
    known = list(known)
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.4)
            where = f"[{place}] " if place else ""
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise StatespanError(f"{path}: {where}unknown key {key!r}; {hint}")


def only(recipe: Recipe, names: Iterable[str]) -> Recipe:
    """The recipe with the rows of these names alone; a rung that has no row yet gets the defaults of the others.

    Raises:
        StatespanError: an unknown name.
    """
    rows = {entry.name: entry for entry in recipe.entries}
    chosen = []
    for name in names:
        if name not in rows:
            near = difflib.get_close_matches(name, [*rows, *LADDER], 1, 0.4)
            if name not in LADDER and name.count("/") != 3:
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise StatespanError(f"--only: no row {name!r} in the recipe{hint}")
            find(name)
            first = recipe.entries[0]
            rows[name] = replace(first, name=name, rung=name, trainer="SGD", width=0)
        chosen.append(rows[name])
    return replace(recipe, entries=tuple(chosen))
