"""Many settings for each rung, by successive halving; what wins is trained out and its figures are kept.

A trial goes on from its checkpoint, so every epoch is trained once; a run that was killed goes on where it was.
"""

from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace

from statespan.errors import StatespanError
from statespan.ladder import row, workers
from statespan.ladder.recipe import Entry, Recipe, Sweep
from statespan.ladder.trials import Trials, reached
from statespan.ladder.workers import Event, Failed, Finished, Job, Paused
from statespan.language.training import Curve

Known = Callable[[Job], Curve | None]


class Bracket:
    """Successive halving of one row's trials: a queue of jobs that grows as they end.

    Args:
        trials: the row with each point's settings.
        plan: the rounds.
        known: the learning curve of a job that was done before, None of one that was not.
        dropped: called with a trial that is not gone on with.
    """

    def __init__(self, trials: tuple[Entry, ...], plan: Sweep, known: Known, dropped: Callable[[Entry], None]):
        self.plan, self.known, self.dropped = plan, known, dropped
        self.trials = {trial.name: trial for trial in trials}
        self.alive = list(self.trials)
        self.round = 0
        self.scores: dict[str, float] = {}
        self.failures: dict[str, str] = {}
        self.winner: Entry | None = None
        self.waiting: deque[Job] = deque()
        self._begin()

    @property
    def until(self) -> int:
        """Epochs at the end of this round."""
        return self.plan.epochs[self.round]

    @property
    def last(self) -> bool:
        """Whether this is the last round."""
        return self.round == len(self.plan.epochs) - 1

    @property
    def open(self) -> bool:
        """Whether anything is still to be trained or heard of."""
        return self.winner is None and bool(self.alive)

    def take(self) -> Job | None:
        """The next job; None where there is none now."""
        return self.waiting.popleft() if self.waiting else None

    def told(self, event: Event) -> None:
        """A trial ended its round, or failed."""
        if isinstance(event, Failed):
            self.failures[event.name] = event.why
            self._score(event.name, float("inf"))
        elif isinstance(event, Paused):
            self._score(event.name, reached(event.curve, self.until))
        elif isinstance(event, Finished):
            self._score(event.name, reached(event.record["curve"], self.until))

    def _score(self, name: str, score: float) -> None:
        self.scores[name] = score
        if all(name in self.scores for name in self.alive):
            self._next()

    def _begin(self) -> None:
        """Hand out this round; what was done before counts at once."""
        self.scores = {}
        jobs = [Job(self.trials[name], 0 if self.last and len(self.alive) == 1 else self.until) for name in self.alive]
        curves = [self.known(job) for job in jobs]
        self.waiting = deque(job for job, curve in zip(jobs, curves, strict=True) if curve is None)
        for job, curve in zip(jobs, curves, strict=True):
            if curve is not None:
                self._score(job.entry.name, reached(curve, self.until))

    def _next(self) -> None:
        """The best go on; the first listed of equal ones."""
        order = sorted((name for name in self.alive if self.scores[name] < float("inf")), key=self.scores.__getitem__)
        kept = order[: 1 if self.last else self.plan.keep[self.round]]
        for name in self.alive:
            if name not in kept:
                self.dropped(self.trials[name])
        self.alive = kept
        if not kept:
            return
        if self.last:
            self.winner = self.trials[kept[0]]
            return
        self.round += 1
        self._begin()


class SweepRun:
    """A sweep of a recipe on a text.

    Args:
        trials: the recipe, with a sweep, on its text.
        resume: whether to go on with what is there.

    Raises:
        StatespanError: the recipe has no sweep, or a row cannot be swept.
    """

    def __init__(self, trials: Trials, resume: bool = False):
        self.trials, recipe = trials, trials.recipe
        if recipe.sweep is None:
            raise StatespanError(f"{trials.name}: the recipe has nothing to try; add [sweep] and [[sweep.grid]]")
        self.plan, out = recipe.sweep, trials.out
        rows = {entry.name: self.plan.trials(entry) for entry in recipe.entries}
        for each in rows.values():
            row.describe(each[0], len(trials.material.vocabulary))  # a budget that no width meets is told at once
            for trial in each:
                if not resume:
                    workers.forget(out, trial)

        def known(job: Job) -> Curve | None:
            if job.until:
                return workers.reached(out, job.entry, recipe, trials.digest, job.until)
            record = trials.finished(job.entry)
            return None if record is None else record["curve"]

        self.brackets = {n: Bracket(e, self.plan, known, lambda t: workers.drop(out, t)) for n, e in rows.items()}
        self.written: set[str] = set()

    @property
    def epochs(self) -> int:
        """Epochs to be trained, at most, over all rows."""
        rounds, alive = zip(self.plan.epochs, (len(self.plan.points), *self.plan.keep), strict=True), 0
        before = 0
        for until, count in rounds:
            alive, before = alive + min(count, len(self.plan.points)) * (until - before), until
        return alive * len(self.brackets)

    def train(self) -> Generator[Event]:
        """Train until every row has its winner; yields what happens. Closing the iterator stops the workers."""
        self._keep()
        with closing(self.trials.train(self.brackets)) as events:
            for event in events:
                yield event
                self._keep()
        self._keep()

    @property
    def failures(self) -> dict[str, str]:
        """Rows of which no trial was left, and why the first of them failed."""
        return {
            name: next(iter(bracket.failures.values()), "no trial was left")
            for name, bracket in self.brackets.items()
            if bracket.winner is None and not bracket.alive
        }

    def _keep(self) -> None:
        """Write the figures of rows that have their winner since."""
        for name, bracket in self.brackets.items():
            if bracket.winner is not None and name not in self.written:
                self.written.add(name)
                point = self.plan.points[int(bracket.winner.name.rpartition("@")[2])]
                self.trials.keep(name, bracket.winner, point)


def shortened(recipe: Recipe, epochs: int) -> Recipe:
    """The recipe with rounds as long, compared to each other, but ending after so many epochs.

    Raises:
        StatespanError: the recipe has no sweep, or too few epochs for its rounds.
    """
    if recipe.sweep is None:
        raise StatespanError("the recipe has no [sweep]")
    last = recipe.sweep.epochs[-1]
    rounds = tuple(max(1, round(until * epochs / last)) for until in recipe.sweep.epochs)
    return replace(recipe, sweep=replace(recipe.sweep, epochs=rounds))
