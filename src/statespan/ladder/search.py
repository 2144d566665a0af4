"""Settings for each rung searched by Optuna: drawn where earlier trials were good, given up where they fall behind.

A study lies in a database, so that many searches, on one machine or on several, draw from it and add to it. A search
that was killed leaves trials without an end; the next one in the same folder takes them up from their checkpoints.
"""

import fcntl
import time
import zlib
from collections import deque
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from statespan.errors import StatespanError
from statespan.ladder import row, workers
from statespan.ladder.recipe import Entry, Recipe, stamp
from statespan.ladder.trials import Trials, reached
from statespan.ladder.workers import Event, Failed, Finished, Job, Paused

LOCK = "search.lock"

PAUSE = 0.3
"""Seconds before a database that could not be opened is tried once more."""

HALVING = {"min_resource": 1, "reduction_factor": 3}
"""Of asynchronous successive halving: after 1, 3, 9, ... epochs the better third of the trials so far goes on."""


def optuna() -> Any:
    """Optuna, which is asked for only where it is used.

    Raises:
        StatespanError: it is not installed.
    """
    try:
        import optuna as found
    except ImportError:
        raise StatespanError('a search needs Optuna; pip install "statespan[search]"') from None
    found.logging.set_verbosity(found.logging.WARNING)
    return found


class RowSearch:
    """The trials of one row: drawn from its study, an epoch at a time, and told to it.

    Args:
        entry: the row.
        recipe: its recipe, with a search.
        digest: of the text.
        study: the row's, of Optuna.
        out: the folder of the trials.
    """

    def __init__(self, entry: Entry, recipe: Recipe, digest: str, study: Any, out: Path):
        assert recipe.search is not None
        self.entry, self.recipe, self.digest, self.study, self.out = entry, recipe, digest, study, out
        self.plan, self.state = recipe.search, optuna().trial.TrialState
        self.running: dict[str, tuple[Any, Entry]] = {}
        self.waiting: deque[Job] = deque()
        self.failures: dict[str, str] = {}
        self._insist_same()
        self._take_up()

    def _insist_same(self) -> None:
        """A study is of one row, one space and one text."""
        mark = f"{stamp(self.entry, self.recipe, self.digest)} {self.plan.space} {self.plan.epochs}"
        if self.study.user_attrs.setdefault("stamp", mark) != mark:
            raise StatespanError(
                f"study {self.study.study_name!r} is of other settings or another text; give another --study"
            )
        self.study.set_user_attr("stamp", mark)

    def _take_up(self) -> None:
        """Draw once more what a search that was killed here was trying."""
        for trial in self.study.get_trials(states=(self.state.RUNNING,)):
            if trial.user_attrs.get("out") == str(self.out):
                self.study.tell(trial.number, state=self.state.FAIL)
                self.study.enqueue_trial(trial.params, user_attrs=trial.user_attrs)

    @property
    def drawn(self) -> int:
        """How many trials there were, in all searches of the study; one taken up is the same."""
        ended = (t for t in self.study.get_trials(deepcopy=False) if t.state != self.state.WAITING)
        return len({trial.user_attrs.get("name", trial.number) for trial in ended})

    @property
    def _left(self) -> bool:
        """Whether another trial may be drawn."""
        enqueued = self.study.get_trials(deepcopy=False, states=(self.state.WAITING,))
        return bool(enqueued) or self.drawn < self.plan.trials

    def take(self) -> Job | None:
        """The next epoch of a trial, or a new trial's first; None where there is none now."""
        while not self.waiting and self._left:
            self._draw()
        return self.waiting.popleft() if self.waiting else None

    def _draw(self) -> None:
        """A new trial; one whose settings cannot be is given up at once."""
        trial = self.study.ask()
        name = trial.user_attrs.get("name") or f"{self.entry.name} #{trial.number:03d}"
        trial.set_user_attr("name", name)
        trial.set_user_attr("out", str(self.out))
        try:
            made = self.entry.at(name, self.plan.point(trial), self.plan.epochs)
            row.describe(made, 10)
        except StatespanError as error:
            self.failures[name] = str(error)
            self.study.tell(trial, state=self.state.PRUNED)
            return
        self.running[name] = (trial, made)
        self.waiting.append(Job(made, self._next(0)))

    def _next(self, epoch: int) -> int:
        """How far the next job goes; 0 is to the end."""
        return epoch + 1 if epoch + 1 < self.plan.epochs else 0

    def told(self, event: Event) -> None:
        """A trial went an epoch on, ended or failed."""
        trial, made = self.running[event.name]
        match event:
            case Paused(_, until, curve):
                trial.report(reached(curve, until), until)
                if not trial.should_prune():
                    self.waiting.append(Job(made, self._next(until)))
                    return
                self.study.tell(trial, state=self.state.PRUNED)
                workers.drop(self.out, made)
            case Finished(_, record):
                self.study.tell(trial, record["valid_perplexity"])
            case Failed(name, why):
                self.failures[name] = why
                self.study.tell(trial, state=self.state.PRUNED)
        del self.running[event.name]

    def best(self) -> tuple[Entry, dict[str, Any], Path] | None:
        """The best trial that came to its end: its row, its settings, and the folder of the search that made it."""
        ended = self.study.get_trials(deepcopy=False, states=(self.state.COMPLETE,))
        if not ended:
            return None
        trial = self.study.best_trial
        point = self.plan.point(optuna().trial.FixedTrial(trial.params))
        made = self.entry.at(trial.user_attrs["name"], point, self.plan.epochs)
        return made, point, Path(trial.user_attrs["out"])


class SearchRun:
    """A search of a recipe on a text.

    Args:
        trials: the recipe, with a search, on its text, in a folder of this search alone.
        storage: where the studies lie, an URL as SQLAlchemy has them; "" is a file of SQLite in the folder.
        study: what the studies are called, before the row; "" is the recipe's name.

    Raises:
        StatespanError: the recipe has no search, Optuna is not there, or the storage cannot be opened.
    """

    def __init__(self, trials: Trials, storage: str = "", study: str = ""):
        if trials.recipe.search is None:
            raise StatespanError(f"{trials.name}: the recipe has nowhere to look; add [search] and [search.space]")
        self.trials = replace(trials, out=trials.out.resolve())
        self.storage, self.study = storage or f"sqlite:///{self.trials.out / 'study.db'}", study or trials.name
        self.rows: dict[str, RowSearch] = {}

    def _study(self, entry: Entry, again: bool = True) -> Any:
        """The row's study, made where there is none."""
        trials, found = self.trials, optuna()
        seed = zlib.crc32(f"{trials.recipe.seed} {trials.out}".encode())
        try:
            return found.create_study(
                study_name=f"{self.study}: {entry.name}",
                storage=self.storage,
                sampler=found.samplers.TPESampler(seed=seed, constant_liar=True),
                pruner=found.pruners.SuccessiveHalvingPruner(**HALVING),
                direction="minimize",
                load_if_exists=True,
            )
        except Exception as error:
            if again:  # searches that begin at once make the tables at once: who comes second finds them made
                time.sleep(PAUSE)
                return self._study(entry, again=False)
            why = str(error).split("\n")[0].rstrip(".")
            raise StatespanError(
                f"--storage {self.storage}: cannot be opened: {why}; mend the URL, or install its driver "
                "(psycopg for postgresql://)"
            ) from error

    def train(self) -> Generator[Event]:
        """Search until every row has its trials; yields what happens. Closing the iterator stops the workers."""
        trials = self.trials
        with _alone(trials.out):
            for e in trials.recipe.entries:
                self.rows[e.name] = RowSearch(e, trials.recipe, trials.digest, self._study(e), trials.out)
            with closing(trials.train(self.rows)) as events:
                yield from events
        for name, search in self.rows.items():
            self._keep(name, search)

    def say(self) -> list[str]:
        """What was found, a line a row."""
        lines = []
        for name, search in self.rows.items():
            best, failed = search.best(), len(search.failures)
            more = f"; {failed} could not be, the first: {next(iter(search.failures.values()))}" if failed else ""
            head = f"{name}: {search.drawn} trials, "
            if best is None:
                lines.append(f"{head}none came to its end{more}")
                continue
            settings = ", ".join(f"{key}={value}" for key, value in best[1].items())
            value = search.study.best_value
            lines.append(f"{head}best dev {value:.2f} by {settings}, in {best[2]}{more}")
        return lines

    def _keep(self, name: str, search: RowSearch) -> None:
        """Write the figures of the row's best trial, where its model lies within reach."""
        best = search.best()
        if best is None:
            return
        made, point, out = best
        where = replace(self.trials, out=out)
        if where.finished(made) is not None:
            where.keep(point.get("rung", name), made, point)


@contextmanager
def _alone(out: Path) -> Generator[None]:
    """One search in a folder at a time: its trials without an end are nobody else's."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StatespanError(
                f"{out}: another search works here; give another --out, and the same --storage"
            ) from None
        yield
