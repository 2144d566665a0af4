"""Rows trained in worker processes, one thread each; the parent hands them out and hears how they go.

Each worker has a pipe of its own. A worker that dies closes it, so the row that it had is known to have failed; a
parent that dies closes it too, and the worker stops at its next window with its checkpoint written.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from statespan.errors import StatespanError
from statespan.files import write_bytes
from statespan.ladder import row
from statespan.ladder.material import Material, fetch
from statespan.ladder.recipe import Entry, Recipe, stamp
from statespan.language import parallel
from statespan.language.training import Curve, Progress, Stopped

RECORD = "record.json"
TRIAL = "trial.json"
ERROR = "error.txt"

PATIENCE = 30.0
"""Seconds that workers get to finish their window and write their checkpoint when a run is stopped."""

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class Started(NamedTuple):
    """A worker took a row."""

    name: str


class Moved(NamedTuple):
    """A row went on."""

    name: str
    progress: Progress


class Finished(NamedTuple):
    """A row is done, its record written."""

    name: str
    record: dict[str, Any]


class Paused(NamedTuple):
    """A row was trained as far as asked; its checkpoint and its learning curve so far are written."""

    name: str
    until: int
    curve: Curve


class Failed(NamedTuple):
    """A row could not be done; why, in one line."""

    name: str
    why: str


Event = Started | Moved | Finished | Paused | Failed


class Job(NamedTuple):
    """A row to train: to its end, or, where `until` is not 0, as far as so many epochs."""

    entry: Entry
    until: int = 0


class Queue(Protocol):
    """What is to be trained, and hears what became of it."""

    def take(self) -> Job | None:
        """The next job; None where there is none now."""
        ...

    def told(self, event: Event) -> None:
        """A job ended so."""
        ...


class Longest:
    """Rows to their end, the longest first.

    Args:
        entries: the rows.
        seconds: how long each should take, by name.
    """

    def __init__(self, entries: Sequence[Entry], seconds: dict[str, float]):
        self.waiting = deque(sorted(entries, key=lambda entry: -seconds.get(entry.name, 0.0)))

    def take(self) -> Job | None:
        """The next row."""
        return Job(self.waiting.popleft()) if self.waiting else None

    def told(self, event: Event) -> None:
        """Nothing follows from it."""


def folder_of(out: Path, entry: Entry) -> Path:
    """Where a row's model, checkpoints and record lie."""
    return out / entry.name.replace("/", "-").replace(" ", "-").replace(",", "")


def finished(out: Path, entry: Entry, recipe: Recipe, digest: str) -> dict[str, Any] | None:
    """The record of a row that is done, if it was done with these settings on this text."""
    folder = folder_of(out, entry)
    try:
        kept = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        same = kept["stamp"] == stamp(entry, recipe, digest) and (folder / row.MODEL).is_file()
        return kept["record"] if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def reached(out: Path, entry: Entry, recipe: Recipe, digest: str, until: int) -> Curve | None:
    """The learning curve of a row that was trained so far or farther, with these settings on this text."""
    record = finished(out, entry, recipe, digest)
    if record is not None:
        return record["curve"]
    try:
        kept = json.loads((folder_of(out, entry) / TRIAL).read_text(encoding="utf-8"))
        same = kept["stamp"] == stamp(entry, recipe, digest) and kept["until"] >= until
        return kept["curve"] if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def drop(out: Path, entry: Entry) -> None:
    """Remove the checkpoints of a row that is not gone on with."""
    for name in row.CHECKPOINTS:
        (folder_of(out, entry) / name).unlink(missing_ok=True)


def forget(out: Path, entry: Entry) -> None:
    """Remove what is left of an earlier run of a row.

    Raises:
        StatespanError: it cannot be removed.
    """
    folder = folder_of(out, entry)
    for name in (RECORD, TRIAL, ERROR, *row.CHECKPOINTS):
        try:
            parallel.own(folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise StatespanError(f"{folder}: cannot be emptied: {error.strerror}; give another --out") from None


# ------------------------------------------------------------------------------------------------ a row


def attempt(
    job: Job,
    recipe: Recipe,
    material: Material,
    out: Path,
    told: Callable[[Progress], None],
    asked: Callable[[], bool],
) -> Event:
    """Train what a job asks for and write what came of it, here and now.

    Args:
        job: the row, and how far.
        recipe: its recipe.
        material: the text.
        out: the run's folder.
        told: called a few times a second with a `Progress`.
        asked: asked often whether to stop.

    Returns:
        That it is done, or left where it was asked to be, or why it failed.

    Raises:
        Stopped: `asked` said so; the same call goes on from there.
    """
    (entry, until), folder = job, folder_of(out, job.entry)
    try:
        mark = stamp(entry, recipe, material.digest)
        if until:
            curve = row.advance(entry, material, recipe.seed, folder, until, mark, told, asked)
            _write(folder / TRIAL, {"stamp": mark, "until": until, "curve": curve})
            return Paused(entry.name, until, curve)
        record = row.train(entry, material, recipe.seed, folder, mark, told, asked)
        _write(folder / RECORD, {"stamp": mark, "record": record})
        for name in row.CHECKPOINTS:
            parallel.own(folder / name).unlink(missing_ok=True)
        return Finished(entry.name, record)
    except StatespanError as error:
        return Failed(entry.name, " ".join(str(error).split()))
    except Stopped:
        raise
    except Exception as error:
        where = folder / ERROR
        with contextlib.suppress(StatespanError):
            write_bytes(where, traceback.format_exc().encode())
        line = " ".join(str(error).split())[:200]
        return Failed(entry.name, f"rung {entry.name}: {type(error).__name__}: {line}; the traceback is in {where}")


def _write(path: Path, kept: dict[str, Any]) -> None:
    """Keep it as JSON; of several processes that train together, the first does."""
    if parallel.place() == 0:
        write_bytes(path, json.dumps(kept).encode())


# ---------------------------------------------------------------------------------------------- a worker


class _Worker:
    """The child's side: trains the rows that come down the pipe until None comes, or the pipe closes."""

    def __init__(self, pipe: Connection, source: Path, out: Path, recipe: Recipe):
        self.pipe, self.out, self.recipe = pipe, out, recipe
        self.material = fetch(source).to(recipe.device)
        self.stopping = False
        # Ctrl-C reaches the whole group, but only the parent, which blocked it here, decides what it means.
        signal.signal(signal.SIGTERM, lambda number, frame: self.stop())
        torch.set_num_threads(1)

    def stop(self) -> None:
        """Stop at the next window."""
        self.stopping = True

    def say(self, event: Event) -> None:
        """Tell the parent; where there is none any more, stop."""
        try:
            self.pipe.send(event)
        except OSError:
            self.stop()

    def serve(self) -> None:
        """Train what comes."""
        with contextlib.suppress(EOFError, OSError):
            while not self.stopping and (job := self.pipe.recv()) is not None:
                self.say(Started(job.entry.name))
                told = lambda progress, name=job.entry.name: self.say(Moved(name, progress))  # noqa: E731
                with contextlib.suppress(Stopped):
                    self.say(attempt(job, self.recipe, self.material, self.out, told, lambda: self.stopping))


def _work(pipe: Connection, source: Path, out: Path, recipe: Recipe) -> None:
    """What a worker process runs."""
    _Worker(pipe, source, out, recipe).serve()


# -------------------------------------------------------------------------------------------- the parent


class _Hand:
    """The parent's side of a worker: its process, its pipe, and the row that it has."""

    def __init__(self, source: Path, out: Path, recipe: Recipe):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, source, out, recipe), daemon=True)
        with _bringing_up():
            self.process.start()
        theirs.close()
        self.job: Job | None = None

    def give(self, job: Job | None) -> None:
        """Hand over a job, or None for no more."""
        self.job = job
        with contextlib.suppress(OSError):  # it died just now; hearing from it will tell
            self.pipe.send(job)

    def hear(self) -> Event:
        """What it says next; that it died counts as failing its row."""
        assert self.job is not None
        try:
            event: Event = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            why = "most likely out of memory; lower workers" if code == -signal.SIGKILL else f"exit code {code}"
            name = self.job.entry.name
            return Failed(name, f"rung {name}: its process ended before it was done ({why})")
        return event


def execute(
    recipe: Recipe, entries: Sequence[Entry], source: Path, out: Path, seconds: dict[str, float]
) -> Generator[Event]:
    """Train rows in worker processes, the longest first; yields what happens until all are done or have failed.

    Closing the iterator (or an exception where it is used, as by Ctrl-C) stops the workers, which write their
    checkpoints first.

    Args:
        recipe: the recipe.
        entries: the rows to train.
        source: what `material.store` wrote.
        out: the run's folder.
        seconds: how long each row should take, by name.
    """
    return work(recipe, Longest(entries, seconds), source, out)


def work(recipe: Recipe, queue: Queue, source: Path, out: Path) -> Generator[Event]:
    """Train what a queue hands out, as `execute` does, until it has no more and all is done.

    Args:
        recipe: the recipe.
        queue: the jobs; it is told of each one's end before it is asked for the next.
        source: what `material.store` wrote.
        out: the run's folder.
    """
    busy: list[_Hand] = []
    idle: list[_Hand] = []
    try:
        while True:
            while (idle or len(busy) < recipe.workers) and (job := queue.take()) is not None:
                busy.append(idle.pop() if idle else _Hand(source, out, recipe))
                busy[-1].give(job)
            if not busy:
                break
            heard = wait([hand.pipe for hand in busy])
            for hand in [hand for hand in busy if hand.pipe in heard]:
                event = hand.hear()
                yield event
                if isinstance(event, Started | Moved):
                    continue
                queue.told(event)
                busy.remove(hand)
                if hand.process.is_alive():
                    idle.append(hand)
                else:
                    hand.pipe.close()
        for hand in idle:
            hand.give(None)
            hand.process.join()
    finally:
        _stop(busy + idle)


def _stop(hands: list[_Hand]) -> None:
    """Ask workers to stop, wait for their checkpoints, and leave none behind."""
    try:
        for hand in hands:
            hand.process.terminate()
            hand.pipe.close()
        end = time.monotonic() + PATIENCE
        for hand in hands:
            hand.process.join(max(end - time.monotonic(), 0.0))
    finally:
        for hand in hands:
            hand.process.kill()
            hand.process.join()


@contextlib.contextmanager
def _bringing_up() -> Iterator[None]:
    """Where a new process starts its libraries with one thread, and is deaf to Ctrl-C from its first moment."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    resource_tracker.ensure_running()  # it unblocks Ctrl-C when it starts, so it starts first
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
