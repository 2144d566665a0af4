"""A run of the ladder as a terminal shows it: bars where there is a screen, a line a row where there is none."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column, Table
from rich.text import Text

from statespan.ladder import charts
from statespan.ladder.estimate import Estimate
from statespan.ladder.material import Material
from statespan.ladder.recipe import Recipe
from statespan.ladder.records import (
    number,
    read,
    show_clock,
    show_count,
    show_duration,
    show_perplexity,
    show_size,
    text,
)
from statespan.ladder.workers import Event, Failed, Finished, Moved, Started
from statespan.language import parallel
from statespan.language.training import Progress as Training

PLAIN_WIDTH = 110
"""Columns of a line where the output is no terminal."""

NAME_WIDTH, BAR_WIDTH, NOTE_WIDTH, LEFT_WIDTH = 31, 10, 27, 12
BESIDE_NAME = BAR_WIDTH + 5 + NOTE_WIDTH + LEFT_WIDTH + 4
"""What is left of a line of progress for a row's name is the terminal's width less this."""


def console() -> Console:
    """Standard output; of several processes that train together, the first one's."""
    quiet = parallel.place() > 0
    found = Console(highlight=False, quiet=quiet)
    return found if found.is_terminal else Console(highlight=False, quiet=quiet, width=PLAIN_WIDTH)


def say_text(screen: Console, material: Material) -> None:
    """What was read."""
    parts = (material.train, material.valid, material.test)
    counts = " / ".join(show_count(sum(map(len, part))) for part in parts)
    tagged = f", {len(material.tags)} tags" if material.tags else ""
    said = f"{material.name}: {counts} {material.level} to learn from, choose on and test on"
    screen.print(f"{said}; {len(material.vocabulary):,} different{tagged}", markup=False)


def say_small(screen: Console, recipe: Recipe) -> None:
    """That a text is so small that it is passed over more often than the recipe says."""
    epochs = max(entry.how.epochs for entry in recipe.entries)
    screen.print(f"a small text, so it is passed over up to {epochs} times, in narrow batches")


def say_time(screen: Console, recipe: Recipe, expected: Estimate, kept: int) -> None:
    """How long it will take."""
    count = len(expected.rows)
    done = f", {kept} more are done" if kept else ""
    together = f", {recipe.workers} at a time" if min(recipe.workers, count) > 1 else ""
    rungs = f"{count} rung{'s' if count != 1 else ''} to train{done}{together}"
    screen.print(f"{rungs}: about {show_duration(expected.total)} on this machine")


def line(record: dict[str, Any]) -> str:
    """A row that is done, in one line."""
    name, test = record["name"][:NAME_WIDTH], show_perplexity(record["test_perplexity"])
    return (
        f"{name:{NAME_WIDTH}s} test perplexity {test:>7s}  "
        f"{show_count(record['parameters']):>10s} parameters  {show_count(record['tokens_per_second']):>7s} words/s  "
        f"{show_duration(record['seconds'])}"
    )


def follow(screen: Console, events: Iterable[Event], expected: Estimate) -> None:
    """Show what happens until it is over.

    Args:
        screen: where.
        events: of a run.
        expected: seconds each row should take; the bar of all rows weighs them by it.
    """
    bars = Progress(
        TextColumn("{task.description}", table_column=_column(min(NAME_WIDTH, max(8, screen.width - BESIDE_NAME)))),
        BarColumn(BAR_WIDTH),
        TextColumn("{task.percentage:3.0f} %", table_column=_column(5)),
        TextColumn("{task.fields[note]}", table_column=_column(NOTE_WIDTH)),
        _Left(table_column=_column(LEFT_WIDTH)),
        console=screen,
        transient=True,
        disable=not screen.is_terminal,
    )
    with bars:
        whole = bars.add_task("all", total=sum(expected.rows.values()), note="")
        tasks: dict[str, Any] = {}
        done: dict[str, float] = {}
        for event in events:
            match event:
                case Started(name):
                    tasks[name] = bars.add_task(name, total=1.0, note="")
                case Moved(name, progress):
                    share = min(progress.tokens / max(progress.total, 1), 1.0)
                    done[name] = share * expected.rows[name]
                    bars.update(tasks[name], completed=share, note=_note(progress))
                case Finished(name) | Failed(name):
                    done[name] = expected.rows[name]
                    if name in tasks:
                        bars.remove_task(tasks[name])
                    told = line(event.record) if isinstance(event, Finished) else f"{name}: not finished: {event.why}"
                    screen.print(told, markup=False, soft_wrap=True)
            bars.update(whole, completed=sum(done.values()))


def _column(width: int) -> Column:
    """A column of one line."""
    return Column(width=width, no_wrap=True, overflow="ellipsis")


def _note(progress: Training) -> str:
    """Speed and perplexity."""
    known = progress.valid == progress.valid
    value = show_perplexity(progress.valid if known else progress.train)
    return f"{show_count(progress.rate)} words/s  {'dev' if known else 'train'} {value}"


class _Left(ProgressColumn):
    """Time left, from the speed so far."""

    def render(self, task: Task) -> Text:
        """What is left of one bar."""
        left = None
        if task.total and task.completed and task.elapsed:
            left = task.elapsed * (task.total / task.completed - 1)
        return Text(f"{show_clock(left, '?'):>7s} left", style="cyan")


COLOURS = {
    "belief": "blue",
    "distribution": "cyan",
    "positive": "yellow",
    "real": "magenta",
    "none": "bright_black",
}
"""Of a bar, by kind of state."""


def table(results: Mapping[str, Any]) -> Table:
    """The ladder as a table for the terminal, 100 columns wide at most.

    Args:
        results: What `load` returns.

    Returns:
        A `rich.table.Table`, in ladder order.
    """
    rungs = read(results)
    budget = number(results.get("budget"))
    each = f", {show_count(budget)} parameters a rung" if budget is not None else ""
    made = Table(
        box=box.SIMPLE_HEAD,
        title=Text(f"{text(results.get('title')) or 'The ladder'}: test perplexity, state carried{each}"),
    )
    made.add_column("rung", no_wrap=True, max_width=33, overflow="ellipsis")
    made.add_column("perplexity", justify="right", no_wrap=True, min_width=12)
    made.add_column("", no_wrap=True, min_width=12, max_width=12)
    for heading in ("width", "params", "words/s", "min"):
        made.add_column(heading, justify="right", no_wrap=True)
    equal = [r.test for r in rungs if r.test is not None]
    ordered = sorted(equal)
    high = min(max(equal), 4 * ordered[len(ordered) // 2]) if equal else 1.0
    axis = charts.Axis(min(equal, default=1.0) / 1.25, high * 1.0001)
    best = min((r.test for r in rungs if r.test is not None and not r.own_width), default=None)
    marks = set()
    section = ""
    for rung in rungs:
        if section and rung.section != section:
            made.add_section()
        section = rung.section
        label = Text(rung.name)
        if rung.by_em:
            label.append(" *")
            marks.add("* trained by EM")
        if rung.own_width and not rung.counts:
            label.append(" †")
            marks.add("† at its own width, not at the budget")
        if rung.test is None:
            shown, bar = Text("not finished", style="red"), Text("")
        else:
            shown = Text(show_perplexity(rung.test), style="bold" if rung.test == best else "")
            bar = Text(_bar(axis.at(rung.test) / 100, 12), style=COLOURS[rung.state])
        made.add_row(
            label,
            shown,
            bar,
            show_count(rung.width),
            show_size(rung.parameters),
            show_size(rung.speed),
            "–" if rung.seconds is None else f"{rung.seconds / 60:.1f}",
        )
    if marks:
        made.caption = Text("   ".join(sorted(marks)))
    return made


def _bar(share: float, width: int) -> str:
    eighths = round(share * width * 8)
    return "█" * (eighths // 8) + ("▏▎▍▌▋▊▉"[eighths % 8 - 1] if eighths % 8 else "")
