"""The command that says whether a model fits."""

import sys
from typing import Annotated, Any

import typer

from statespan.cli import screen
from statespan.cli.data import (
    Columns,
    DataFile,
    Every,
    Inputs,
    Json,
    Missing,
    ModelFile,
    Out,
    Plot,
    Seed,
    Sequence,
    Time,
    ask,
    deliver,
    located,
    without_gradients,
)
from statespan.errors import StatespanError


def add(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(without_gradients(check))


def check(
    model: ModelFile,
    data: DataFile,
    skip: Annotated[
        int, typer.Option(help="Steps at the start of each sequence that are given, not checked: those fitted to.")
    ] = 0,
    simulations: Annotated[int, typer.Option(help="Data sets drawn from the model, for what it expects.")] = 50,
    seed: Seed = 0,
    columns: Columns = "",
    inputs: Inputs = "",
    sequence: Sequence = None,
    time: Time = None,
    every: Every = None,
    missing: Missing = "",
    out: Out = None,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Whether the model fits: a row a test, and what it means.

    Verdicts go by p-values that are corrected for the number of tests (Holm). Best on data that the model was not
    fitted to. The picture is of the column that fits worst.

    statespan check model.safetensors weather.csv --plot check.png

    statespan check model.safetensors weather.csv --skip 365
    """
    from statespan.checks import verdicts
    from statespan.checks.check import check as examine
    from statespan.tables.files import pandas

    if skip < 0 or simulations < 2:
        raise StatespanError(f"--skip {skip} --simulations {simulations}: give 0 and 2, or more")
    asked = ask(model, data, columns, inputs, sequence, time, every, out, plot, None, as_json, missing)
    with located(asked.data):
        found = examine(asked.model, asked.y, simulations, seed=seed, inputs=asked.inputs, skip=skip or None)
    names = list(asked.data.columns.names)
    table = found.verdicts(names)
    ordered = sorted((p, of) for p, of in zip(table["p"], table["of"], strict=True) if of in names)
    worst = ordered[0][1] if ordered else names[0]
    if out is None and not as_json and sys.stdout.isatty():
        _show(table)
    else:
        deliver(pandas().DataFrame(table), out, as_json)
    if plot is not None:
        screen.save_plot(found.plot(names.index(worst), worst), plot)
    screen.note([verdicts.conclusion(table)])


def _show(table: dict[str, list[Any]]) -> None:
    """The tests without what they mean, and that of those which do not fit below: no wider than a terminal."""
    names = ("test", "of", "value", "low", "high", "p", "corrected", "verdict")
    cells = [[screen.cell(x) for x in table[name]] for name in names]
    rows = [
        [test, of, value, f"{low} to {high}", *said] for test, of, value, low, high, *said in zip(*cells, strict=True)
    ]
    shown = screen.console()
    shown.print(screen.tabulate(["test", "of", "value", "should be", "p", "corrected", "verdict"], rows))
    for test, of, verdict, means in zip(*(table[name] for name in ("test", "of", "verdict", "means")), strict=True):
        if verdict != "fits":
            shown.print(f"\n{' of '.join(filter(None, (test, of)))}: {means}", markup=False)
