"""Structural series: the sum of components that `--model` names, and the command that takes a series apart."""

import ast
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

import statespan as ss
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
    Sequence,
    Show,
    Time,
    ask,
    located,
    without_gradients,
)
from statespan.cli.pictures import captions
from statespan.errors import StatespanError
from statespan.tables import Data

if TYPE_CHECKING:
    from statespan.cli.models import Wanted

COMPONENTS: dict[str, Callable[..., Any]] = {
    each.__name__: each
    for each in (ss.level, ss.slope, ss.seasonal, ss.cycle, ss.regression, ss.autoregressive, ss.arima)
}
"""What a series may be the sum of, by name."""


def add(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(without_gradients(decompose))


def named(text: str) -> bool:
    """Whether `--model` names components: one of them, a call or a sum."""
    return text.strip() in COMPONENTS or "(" in text or "+" in text


def structural(text: str, data: Data, wanted: "Wanted") -> Any:
    """The model of a sum of components, as Python writes it; counts and the like by `--emission`.

    Raises:
        StatespanError: it names something else, or does not go with the data.
    """
    name, *others = data.columns.names
    if others:
        both = ", ".join(data.columns.names)
        raise StatespanError(f"--model {text}: a series is one column of {both}; say which with --columns")
    if data.columns.words:
        raise StatespanError(f"--model {text}: column {name} holds words; name one of numbers with --columns")
    for option in ("states", "state", "covariance", "components"):
        value = getattr(wanted, option)
        if value is not None:
            raise StatespanError(f"--{option} {value}: components know their own sizes; leave it out")
    try:
        model = _sum(ast.parse(text.strip(), mode="eval").body, text, len(data.columns.inputs))
    except SyntaxError:
        raise _unread(text) from None
    if data.columns.inputs and not model.emission.takes_inputs:
        raise StatespanError(f"--model {text}: there are --inputs; add + regression to it, or leave them out")
    return model if wanted.emission is None else ss.generalised_linear(model, wanted.emission.replace("-", " "))


def _sum(node: ast.AST, text: str, inputs: int) -> Any:
    match node:
        case ast.BinOp(left, _, right) if isinstance(node.op, ast.Add):
            return _sum(left, text, inputs) + _sum(right, text, inputs)
        case ast.Name(id=name):
            return _component(name, [], {}, text, inputs)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=options):
            try:
                values = [ast.literal_eval(each) for each in arguments]
                by_name = {str(each.arg): ast.literal_eval(each.value) for each in options}
            except ValueError:
                raise _unread(text) from None
            return _component(name, values, by_name, text, inputs)
    raise _unread(text)


def _component(name: str, values: list[Any], options: dict[str, Any], text: str, inputs: int) -> Any:
    if name not in COMPONENTS:
        raise _unread(text)
    if COMPONENTS[name] is ss.regression and not values:
        if not inputs:
            raise StatespanError(f"--model {text}: a regression is on inputs; name their columns with --inputs")
        values = [inputs]
    try:
        return COMPONENTS[name](*values, **options)
    except TypeError as error:
        said = str(error).replace("positional argument", "number").removeprefix(f"{name}() ")
        raise StatespanError(f"--model {text}: {name}: {said}; as in seasonal(12) or arima(0, 1, 1)") from error


def _unread(text: str) -> StatespanError:
    return StatespanError(
        f"--model {text}: give hmm, linear-gaussian, or a sum of {', '.join(COMPONENTS)}, "
        "as in 'level + slope + seasonal(12)' or 'arima(0, 1, 1)'"
    )


def decompose(
    model: ModelFile,
    data: DataFile,
    columns: Columns = "",
    inputs: Inputs = "",
    sequence: Sequence = None,
    time: Time = None,
    every: Every = None,
    missing: Missing = "",
    out: Out = None,
    plot: Plot = None,
    show: Show = None,
    as_json: Json = False,
) -> None:
    """What each component of a structural series adds to it.

    statespan fit sales.csv --time month --model "level + slope + seasonal(12)"

    statespan decompose model.safetensors sales.csv --plot parts.png
    """
    from statespan.plots import plot_components

    asked = ask(model, data, columns, inputs, sequence, time, every, out, plot, show, as_json, missing)
    given = asked.inputs or [None] * len(asked.y)
    with located(asked.data):
        each = [ss.decompose(asked.model, y, u) for y, u in zip(asked.y, given, strict=True)]
    found: dict[str, Any] = {}
    for name in each[0]:
        column = name.replace(" ", "_")
        found[column] = np.concatenate([pieces[name].mean.numpy() for pieces in each])
        if name != "noise":  # what is left of y is known where y is
            found[f"{column}_sd"] = np.concatenate([pieces[name].deviation.numpy() for pieces in each])

    def draw() -> Any:
        told = asked.picture()
        return plot_components(each[asked.sequence], asked.observed()[:, 0], told["times"], told["columns"][0])

    asked.answer(asked.data.beside(found), draw)


def portrait(model: Any, data: Data) -> Any:
    """The picture of a fitted structural series: the first sequence taken apart."""
    from statespan.plots import plot_components

    y, u, told = data.y(model.emission.event)[0], data.u(), captions(data, 0)
    pieces = ss.decompose(model, y, None if u is None else u[0])
    return plot_components(pieces, y, told["times"], told["columns"][0])
