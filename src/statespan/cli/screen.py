"""What the data commands show: progress while fitting, a summary, tables on a screen and CSV in a pipe."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from statespan.errors import StatespanError
from statespan.tables.write import json_of, text_of

MOST_ROWS = 30
"""More rows than this are shown by their beginning and end."""

PLAIN_WIDTH = 110


class Stopped(Exception):
    """Ctrl-C, and what of the work is kept."""


def console(stderr: bool = False) -> Console:
    """Standard output or error; where it is no terminal, of a fixed width."""
    found = Console(highlight=False, markup=False, stderr=stderr)
    return found if found.is_terminal else Console(highlight=False, markup=False, stderr=stderr, width=PLAIN_WIDTH)


def chosen(option: str, value: str, names: Iterable[str]) -> str:
    """One of several names, in small letters or large.

    Raises:
        StatespanError: it is none of them; says which it may have been, and all there are.
    """
    names = list(names)
    if value.lower() in names:
        return value.lower()
    near = get_close_matches(value.lower(), names, 1)
    raise StatespanError(
        f"{option} {value}: {f'did you mean {near[0]}? ' if near else ''}choose one of {', '.join(names)}"
    )


def note(notes: Sequence[str]) -> None:
    """What a user should know, on standard error."""
    for each in notes:
        print(f"note: {each}", file=sys.stderr)


def show(frame: Any, as_json: bool) -> None:
    """A frame on standard output: JSON if asked for, a table on a screen, CSV in a pipe."""
    if as_json:
        print(json_of(frame), end="")
    elif not sys.stdout.isatty():
        print(text_of(frame), end="")
    else:
        rows, half, screen = len(frame), MOST_ROWS // 2, console()
        cut = ["..."] if rows > MOST_ROWS else []
        some = frame.iloc[[*range(half), *range(rows - half, rows)]] if cut else frame
        some = some.astype(object).where(some.notna(), None)
        cells = [[str(name), *map(cell, some[name])] for name in some.columns]
        cells = [[*column[: half + 1], *cut, *column[half + 1 :]] for column in cells]
        kinds = [frame[name].dtype.kind for name in frame.columns]
        keys = kinds.index("f") if "f" in kinds else 0
        for i, block in enumerate(_blocks([max(map(len, column)) + 2 for column in cells], keys, screen.width)):
            table = Table(box=None, pad_edge=False, header_style="bold")
            for c in block:
                table.add_column(cells[c][0], justify="right" if kinds[c] in "iuf" else "left", no_wrap=True)
            for row in zip(*(cells[c][1:] for c in block), strict=True):
                table.add_row(*row)
            screen.print(*([""] if i else []), table, sep="\n")
        if cut:
            screen.print(f"{rows:,} rows; --out FILE keeps them all")


def _blocks(widths: Sequence[int], keys: int, width: int) -> list[list[int]]:
    """Which columns go into tables that fit the screen, one below the other; the first `keys` go into each."""
    blocks: list[list[int]] = []
    for c in range(keys, len(widths)):
        if not blocks or sum(widths[i] for i in [*blocks[-1], c]) > width + 2:
            blocks.append(list(range(keys)))
        blocks[-1].append(c)
    return blocks


def cell(value: Any) -> str:
    """A value for a reader: four digits of a number, nothing for a missing one, no hours where it is midnight."""
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 9999.5 or abs(value) >= 1e15 else f"{value:,.0f}"
    return str(value).removesuffix(" 00:00:00")


def tabulate(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """Rows as a table for a reader."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(cell, row))
    return table


@contextmanager
def progress(restarts: int, iterations: int, what: str = "fitting") -> Iterator[Callable[[int, float], None]]:
    """A bar while a model is fitted; what is given back is called with each iteration and its log-likelihood."""
    screen = console(stderr=True)
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(24),
        TextColumn("{task.percentage:3.0f} %"),
        TextColumn("{task.fields[note]}"),
        console=screen,
        transient=True,
        disable=not screen.is_terminal,
    )
    with bars:
        task = bars.add_task(what, total=restarts * iterations, note="")
        state = {"start": 0, "best": -float("inf"), "since": time.monotonic()}

        def follow(iteration: int, likelihood: float) -> None:
            if iteration == 1:
                state["start"] += 1
            state["best"] = max(state["best"], likelihood)
            start = f"start {state['start']:.0f} of {restarts}, " if restarts > 1 else ""
            bars.update(
                task,
                completed=(state["start"] - 1) * iterations + iteration,
                note=f"{start}iteration {iteration}: log-likelihood {likelihood:,.1f}, best {state['best']:,.1f}",
            )

        yield follow


def check_file(path: Path) -> None:
    """That a file can be written there, before any work is done."""
    if path.is_dir():
        raise StatespanError(f"{path}: this is a directory; name a file in it")
    folder = next(each for each in path.absolute().parents if each.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise StatespanError(f"cannot write {path}: {folder} takes no files; choose another place")


def check_plot(path: Path | None) -> None:
    """That a picture can be written under that name, before any work is done."""
    if path is None:
        return
    check_file(path)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in known:
        raise StatespanError(f"--plot {path}: a picture is .png, .pdf or .svg; end the name in one of them")


def save_plot(axes: Any, path: Path) -> None:
    """Write a picture at once or not at all."""
    import io

    from matplotlib import pyplot

    from statespan.files import write_bytes

    buffer = io.BytesIO()
    axes.figure.savefig(buffer, format=path.suffix.lower().removeprefix("."), dpi=160)
    pyplot.close(axes.figure)
    write_bytes(path, buffer.getvalue())
