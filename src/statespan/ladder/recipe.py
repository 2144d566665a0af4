"""Recipes: TOML files that say what a run of the ladder does."""

import difflib
import itertools
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import torch

from statespan.errors import StatespanError
from statespan.ladder.fields import insist, known, make, table, typed
from statespan.ladder.rungs import (
    LADDER,
    MIXTURE,
    ROWS,
    ROWS_EMBEDDED,
    ROWS_LOW_RANK,
    check_classes,
    check_embedding,
    find,
)
from statespan.ladder.space import Search, searching
from statespan.language.training import Training

SOURCES = ("files", "king-james")
LEVELS = ("words", "characters")
FORMS = ("", "text", "tagged", "conllu")
TRAINERS = ("SGD", "EM", "EM, then SGD")
FIRSTS = ("learnt", "ends", "columns", "uniform")
BEGINS = ("random", "classes")

LEAST_WINDOWS = 20
"""A small text is laid out in so few columns that an epoch has this many windows, or `LEAST_COLUMNS`."""

LEAST_COLUMNS = 4
LEAST_STEPS = 400
"""A small text is passed over until there are this many gradient steps, or `MOST_EPOCHS`."""

MOST_EPOCHS = 40


@dataclass(frozen=True)
class Text:
    """What is read.

    Args:
        source: "king-james" (the demo extra), or "files".
        train: path of the text to learn from. Relative paths start beside the recipe, or where --data says; with
            `train` alone the text is split 18/1/1 by blocks of 20 sentences.
        valid: path of the text to choose on.
        test: path of the text to report on.
        name: what the report calls it.
        level: "words" or "characters".
        vocabulary: at most this many symbols, the two special ones counted; 0 takes all.
        share: this share of the training sentences, the first ones.
        form: "text", "tagged" or "conllu"; "" goes by the file's suffix.
        universal: path of a map from tags to coarser ones, two columns; "" keeps the tags.

    Raises:
        StatespanError: a value that cannot be.
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

    def __post_init__(self):
        insist(
            (self.source in SOURCES, f"source = {self.source!r} must be one of {', '.join(SOURCES)}"),
            (self.level in LEVELS, f"level = {self.level!r} must be one of {', '.join(LEVELS)}"),
            (self.form in FORMS, f"form = {self.form!r} must be one of {', '.join(FORMS[1:])}, or left out"),
            (0 < self.share <= 1, f"share = {self.share} must lie above 0 and be at most 1"),
            (self.vocabulary == 0 or self.vocabulary >= 3, f"vocabulary = {self.vocabulary} must be 0 or at least 3"),
            (self.source != "files" or bool(self.train), "train is missing; name a file, or give --text FILE"),
            (bool(self.valid) == bool(self.test), "valid and test go together; give both, or train alone to split it"),
        )


@dataclass(frozen=True)
class Entry:
    """One row of the run.

    Args:
        name: how the report calls it.
        rung: a key of `ss.LADDER`, or four choices spelled out.
        trainer: "SGD", "EM", or "EM, then SGD"; EM is for exact rungs.
        width: the width; 0 finds the largest within the budget.
        parameters: the budget.
        tied: one matrix in and out.
        dropout: at what is fed, in the state, before the score, as `ss.ladder` has them.
        spread: standard deviation of the first embeddings.
        uniform: a, to start the embeddings in U(-a, a) instead; 0 for normal ones.
        embedding: width of the embedding, where it is not that of the state; it needs a width.
        variational: drop the same entries at every step of a window.
        classes: of words, as `ss.ladder` has them; they are found in the training text (`language.classes`).
        begin: how the rows and emissions of the rung hmm begin: "random", or "classes", each state on the words of a
            class of its own, found in the training text, and moving as these classes follow each other there.
        first: of an exact rung's first state: "learnt" from a uniform start; "ends", learnt too, and once all is
            trained the mean state after `<eos>` (a stream has few starts to learn from, and a line on its own is one);
            "columns", learnt from the softmax of the transition's column sums (the paper's equation 3); or "uniform",
            held there. Other rungs start at zero, or uniform where the state is a distribution, whatever is said.
        iterations: of EM.
        prior: EM's pseudo-counts a state, spread over the symbols by their frequency.
        how: the settings of training.

    Raises:
        StatespanError: a value that cannot be.
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
    uniform: float = 0.0
    first: str = "learnt"
    embedding: int = 0
    variational: bool = False
    classes: int = 1
    begin: str = "random"
    how: Training = field(default_factory=Training)

    def __post_init__(self):
        rung = find(self.rung)
        check_embedding(self.rung, rung, self.width, self.embedding)
        check_classes(self.rung, rung, self.width, self.classes)
        insist(
            (not self.embedding or self.width > 0, f"embedding = {self.embedding} needs a width; set one"),
            (self.trainer in TRAINERS, f"trainer = {self.trainer!r} must be one of {'; '.join(TRAINERS)}"),
            (
                not self.by_em or rung.exact,
                f"trainer = {self.trainer!r} needs an exact rung; {self.rung} is none, set 'SGD'",
            ),
            (self.width >= 0, f"width = {self.width} must be 0 or more"),
            (self.parameters >= 0, f"parameters = {self.parameters} must be 0 or more"),
            (self.width + self.parameters > 0, "neither width nor parameters is given; set one in [model]"),
            (all(0 <= p < 1 for p in self.dropout), f"dropout = {list(self.dropout)} must lie in 0 to 1, without 1"),
            (self.spread > 0, f"spread = {self.spread} must be positive"),
            (self.uniform >= 0, f"uniform = {self.uniform} must be 0 or more"),
            (self.first in FIRSTS, f"first = {self.first!r} must be one of {', '.join(FIRSTS)}"),
            (
                self.first != "columns" or not self.by_em,
                "first = 'columns' is a start for gradients; EM has its own, so set 'learnt'",
            ),
            (
                self.first != "columns" or rung.move not in (ROWS_LOW_RANK, ROWS_EMBEDDED),
                f"first = 'columns' sums the columns of a full matrix; for {self.rung} set 'learnt' or 'uniform'",
            ),
            (self.begin in BEGINS, f"begin = {self.begin!r} must be one of {', '.join(BEGINS)}"),
            (
                self.begin == "random" or (rung.exact and rung.move is ROWS and rung.score is MIXTURE),
                f"begin = {self.begin!r} starts the free rows of an HMM; for {self.rung} set 'random'",
            ),
            (
                self.begin == "random" or not self.by_em,
                f"begin = {self.begin!r} is a start for gradients; EM has its own, so set 'random'",
            ),
            (
                not self.by_em or not (rung.move.embedded or rung.score.embedded),
                f"trainer = {self.trainer!r} counts in closed form, and {self.rung} is made of vectors; set 'SGD'",
            ),
            (self.iterations >= 1, f"iterations = {self.iterations} must be at least 1"),
            (self.prior >= 0, f"prior = {self.prior} must be 0 or more"),
        )

    @property
    def by_em(self) -> bool:
        """Whether expectation maximisation has a part in its training."""
        return self.trainer.startswith("EM")

    @property
    def by_gradient(self) -> bool:
        """Whether gradient descent has."""
        return self.trainer.endswith("SGD")

    @property
    def own_width(self) -> bool:
        """Whether it stands beside rows of a common budget at a width of its own."""
        return bool(self.width and self.parameters)

    def at(self, name: str, point: Mapping[str, Any], epochs: int) -> "Entry":
        """The row by another name with some settings changed, trained for so many epochs.

        Args:
            name: of the new row.
            point: settings, of the row or of its training.
            epochs: passes over the text.

        Raises:
            StatespanError: a row that EM has a part in, or a value that cannot be.
        """
        if self.by_em:
            raise StatespanError(
                f"row {self.name!r} is trained by EM; what is tried is of gradients: leave it out by --only"
            )
        how = {k: v for k, v in point.items() if k in _TRAINING} | {"epochs": epochs}
        own = {k: v for k, v in point.items() if k not in _TRAINING}
        return replace(self, name=name, how=replace(self.how, **how), **own)


@dataclass(frozen=True)
class Sweep:
    """Settings to try for every row, by successive halving: all of them a little, the best ones on.

    Args:
        points: settings of a row, each tried in their place.
        epochs: passes over the text at the end of each round, rising; a trial goes on from where it was.
        keep: how many trials are gone on with after each round but the last, falling to 1.

    Raises:
        StatespanError: a value that cannot be.

    Source:
        Jamieson and Talwalkar 2016, "Non-stochastic best arm identification and hyperparameter optimization".
    """

    points: tuple[Mapping[str, Any], ...]
    epochs: tuple[int, ...] = (3, 10, 40)
    keep: tuple[int, ...] = (4, 1)

    def __post_init__(self):
        insist(
            (bool(self.points), "grid is missing; give one [[sweep.grid]] at least"),
            (
                bool(self.epochs) and list(self.epochs) == sorted(set(self.epochs)) and self.epochs[0] >= 1,
                f"epochs = {list(self.epochs)} must rise from 1 or more",
            ),
            (
                len(self.keep) == len(self.epochs) - 1 and list(self.keep) == sorted(self.keep, reverse=True),
                f"keep = {list(self.keep)} must have one number fewer than epochs, and not rise",
            ),
            (not self.keep or self.keep[-1] == 1, f"keep = {list(self.keep)} must end in 1: one trial is trained out"),
        )

    def trials(self, entry: "Entry") -> tuple["Entry", ...]:
        """The row with each point's settings, numbered.

        Raises:
            StatespanError: a row that EM has a part in, or a value that cannot be.
        """
        numbered = enumerate(self.points)
        return tuple(entry.at(f"{entry.name} @{number:02d}", point, self.epochs[-1]) for number, point in numbered)


@dataclass(frozen=True)
class Tags:
    """Where gold tags stand beside a text that has none, for Table 2 of the paper; a treebank's word/TAG files.

    Args:
        lexicon: tagged words from which p(tag | word) is counted.
        valid: the sentences to choose on, with tags.
        test: the sentences to report on, with tags.
        universal: map to coarser tags, two columns; "" keeps the tags.

    Raises:
        StatespanError: a file is not named.
    """

    lexicon: str = ""
    valid: str = ""
    test: str = ""
    universal: str = ""

    def __post_init__(self):
        insist((bool(self.lexicon and self.valid and self.test), "name lexicon, valid and test"))


@dataclass(frozen=True)
class Recipe:
    """A run of the ladder.

    Args:
        title: of the report.
        text: what is read.
        entries: the rows, in the order of the report.
        model: settings of a row that says nothing of its own.
        training: settings of its training.
        references: orders of the Kneser-Ney counts to report, 2 for bigrams.
        seed: of every random draw.
        workers: rungs trained at a time, each on one thread.
        paper: whether the paper's figures stand beside ours (they are for the Penn Treebank).
        sweep: what `statespan ladder sweep` tries; None has nothing to try.
        tags: gold tags beside the text, if there are any.
        search: what `statespan ladder search` tries; None has nothing to try.
        device: where it is trained and scored, as torch names devices.

    Raises:
        StatespanError: a value that cannot be.
    """

    title: str
    text: Text
    entries: tuple[Entry, ...]
    model: Mapping[str, Any] = field(default_factory=dict)
    training: Training = field(default_factory=Training)
    references: tuple[int, ...] = (2, 3)
    seed: int = 0
    workers: int = 2
    paper: bool = False
    sweep: Sweep | None = None
    tags: Tags | None = None
    search: Search | None = None
    device: str = "cpu"

    def __post_init__(self):
        names = [entry.name for entry in self.entries]
        insist(
            (bool(names), "there are no rungs; name at least one"),
            (len(set(names)) == len(names), f"rungs lists a row twice: {', '.join(names)}"),
            (self.workers >= 1, f"workers = {self.workers} must be at least 1"),
            (set(self.references) <= {2, 3}, f"references = {list(self.references)} must be 2 or 3, or both"),
        )


@dataclass(frozen=True)
class _Run:
    """The table [run]; `rungs` empty takes all."""

    title: str = ""
    seed: int = 0
    workers: int = 2
    references: tuple[int, ...] = (2, 3)
    paper: bool = False
    rungs: tuple[str, ...] = ()


_TRAINING = get_type_hints(Training)
_MODEL = {k: kind for k, kind in get_type_hints(Entry).items() if k not in ("name", "rung", "trainer", "how")}
_ROW = {"rung": str, "trainer": str, **_MODEL, **_TRAINING}


def read(path: str | Path) -> Recipe:
    """Read a recipe.

    Args:
        path: a TOML file with the tables [run], [text], [model], [training] and [rungs."name"]; what a rung's table
            says overrides [model] and [training] for it, and a rung without a table takes part too unless [run] lists
            `rungs`.

    Raises:
        StatespanError: no such file, not TOML, an unknown key (the nearest is suggested), or a value that cannot be.
    """
    path = Path(path)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StatespanError(f"{path}: there is no such recipe; recipes/kjv.toml is one") from None
    except OSError as error:
        raise StatespanError(f"{path}: cannot be read: {error.strerror}; name a .toml file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StatespanError(f"{path}: not a TOML file: {error}; mend it") from None
    try:
        return _recipe(raw, path.stem)
    except StatespanError as error:
        raise StatespanError(f"{path}: {error}") from None


def _recipe(raw: dict[str, Any], stem: str) -> Recipe:
    """The recipe of a file's tables; errors name the table."""
    known("", raw, ("run", "text", "model", "training", "rungs", "sweep", "tags", "search"))
    tables = {name: table(name, raw.get(name, {})) for name in ("run", "text", "model", "training", "rungs")}
    run = make("[run]", _Run, typed("[run]", tables["run"], get_type_hints(_Run)))
    text = make("[text]", Text, typed("[text]", tables["text"], get_type_hints(Text)))
    model = typed("[model]", tables["model"], _MODEL)
    training = typed("[training]", tables["training"], _TRAINING)
    base = make("[training]", Training, training)
    own = {name: table(f'rungs."{name}"', given) for name, given in tables["rungs"].items()}
    names = run.rungs or (*LADDER, *(name for name in own if name not in LADDER))
    for name in own:
        if name not in names:
            raise StatespanError(f'[rungs."{name}"] is not among the rungs that [run] lists; list it, or take it out')
    entries = tuple(_entry(name, own.get(name, {}), model, training) for name in names)
    settings = (
        *(run.title or stem, text, entries, model, base, run.references, run.seed, run.workers, run.paper),
        _sweep(table("sweep", raw["sweep"])) if "sweep" in raw else None,
        make("[tags]", Tags, typed("[tags]", table("tags", raw["tags"]), get_type_hints(Tags)))
        if "tags" in raw
        else None,
        searching(table("search", raw["search"]), {**_MODEL, **_TRAINING, "rung": str}) if "search" in raw else None,
    )
    return make("[run]", Recipe, dict(zip((f.name for f in fields(Recipe)), settings, strict=False)))


def _sweep(table: dict[str, Any]) -> Sweep:
    """The table [sweep]: a list in a [[sweep.grid]] is tried value by value, all lists in all combinations."""
    grids = table.pop("grid", [])
    if not isinstance(grids, list) or not all(isinstance(grid, dict) for grid in grids):
        raise StatespanError(f"sweep.grid = {grids!r} must be tables, [[sweep.grid]]")
    points: list[Mapping[str, Any]] = []
    for grid in grids:
        ways = {
            k: v if isinstance(v, list) and (k != "dropout" or isinstance(v[0], list)) else [v] for k, v in grid.items()
        }
        for values in itertools.product(*ways.values()):
            points.append(typed("[[sweep.grid]]", dict(zip(ways, values, strict=True)), {**_MODEL, **_TRAINING}))
    kinds = {"epochs": tuple[int, ...], "keep": tuple[int, ...]}
    return make("[sweep]", Sweep, {"points": tuple(points)} | typed("[sweep]", table, kinds))


def _entry(name: str, own: dict[str, Any], model: dict[str, Any], training: dict[str, Any]) -> Entry:
    """One row from its own table and the common ones."""
    place = f'[rungs."{name}"]'
    own = typed(place, own, _ROW)
    how = make(place, Training, training | {k: v for k, v in own.items() if k in _TRAINING})
    row = {k: v for k, v in own.items() if k not in _TRAINING}
    return make(place, Entry, {"name": name, "rung": name, **model, **row, "how": how})


# --------------------------------------------------------------------------------------- a recipe, changed


def only(recipe: Recipe, names: str) -> Recipe:
    """The recipe with some rows alone.

    Args:
        recipe: the recipe.
        names: rows separated by commas, in the order wanted; a rung that has no row yet gets [model] and [training].

    Raises:
        StatespanError: an unknown name (the nearest is suggested).
    """
    rows = {entry.name: entry for entry in recipe.entries}
    pieces = [piece.strip() for piece in names.split(",")]
    chosen: dict[str, Entry] = {}
    while pieces:
        # A row's own name may hold a comma: the longest one wins.
        lengths = [n for n in range(len(pieces), 0, -1) if ", ".join(pieces[:n]) in rows]
        name = ", ".join(pieces[: lengths[0] if lengths else 1])
        pieces = pieces[lengths[0] if lengths else 1 :]
        if name:
            chosen[name] = rows.get(name) or _added(recipe, name, rows)
    if not chosen:
        raise StatespanError("--only names no row; name some, such as elman,lstm")
    return replace(recipe, entries=tuple(chosen.values()))


def _added(recipe: Recipe, name: str, rows: Iterable[str]) -> Entry:
    if name in LADDER or name.count("/") == 3:
        return make("--only", Entry, {"name": name, "rung": name, **recipe.model, "how": recipe.training})
    near = difflib.get_close_matches(name, [*rows, *LADDER], 1, 0.3)
    hint = f"did you mean {near[0]!r}?" if near else "statespan ladder list shows them"
    raise StatespanError(f"--only: there is no row {name!r}; {hint}")


def passes(recipe: Recipe, epochs: int) -> Recipe:
    """The recipe with this many passes over the text in every row, by gradients or EM.

    Raises:
        StatespanError: fewer than one.
    """
    entries = (replace(e, iterations=epochs, how=replace(e.how, epochs=epochs)) for e in recipe.entries)
    return replace(recipe, entries=tuple(entries))


def on_device(recipe: Recipe, device: str) -> Recipe:
    """The recipe on a device.

    Args:
        recipe: the recipe.
        device: as torch names devices, such as "cuda:1".

    Raises:
        StatespanError: it is not there, or has no float64, which sums of log-probabilities need.
    """
    try:
        float(torch.zeros((), dtype=torch.float64, device=device))
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        why = str(error).split("\n")[0].split(". ")[0].rstrip(".")
        raise StatespanError(
            f"--device {device}: cannot be used here ({why}); give cpu, or a GPU such as cuda"
        ) from None
    return replace(recipe, device=device)


def on_own_text(recipe: Recipe, path: Path, form: str) -> Recipe:
    """The recipe on a user's own text.

    Args:
        recipe: the recipe.
        path: the text.
        form: how to read it, as in `Text`.
    """
    own = Text(train=str(path.resolve()), form=form, level=recipe.text.level, vocabulary=recipe.text.vocabulary)
    return replace(recipe, text=own, title=path.stem, paper=False, tags=None)


def suited(recipe: Recipe, tokens: int) -> Recipe:
    """The recipe with narrower batches and more passes where a text is so small that training would hardly begin.

    Args:
        recipe: the recipe.
        tokens: symbols to learn from.
    """
    entries = []
    for entry in recipe.entries:
        how = entry.how
        columns = min(how.batch, max(LEAST_COLUMNS, tokens // (how.window * LEAST_WINDOWS)))
        windows = math.ceil(tokens / (columns * how.window))
        epochs = max(how.epochs, min(MOST_EPOCHS, math.ceil(LEAST_STEPS / windows)))
        evaluations = how.evaluations if epochs == how.epochs else 1
        entries.append(replace(entry, how=replace(how, batch=columns, epochs=epochs, evaluations=evaluations)))
    return replace(recipe, entries=tuple(entries))


def stamp(entry: Entry, recipe: Recipe, digest: str) -> str:
    """What a finished row depends on; a row with another stamp is trained again.

    Args:
        entry: the row.
        recipe: its recipe.
        digest: of the text.
    """
    return repr((sorted(asdict(entry).items(), key=lambda pair: pair[0]), recipe.seed, digest))
