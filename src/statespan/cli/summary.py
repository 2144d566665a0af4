"""What a fitted model looks like, in a terminal."""

from collections.abc import Callable
from typing import Any

import numpy as np

from statespan.cli.screen import cell, console, tabulate
from statespan.tables import Data

FEW = 3
"""Symbols a state is described by."""
MOST_STATES = 20


def criteria(model: Any, data: Data) -> dict[str, Any]:
    """Log-likelihood, free parameters, AIC, BIC, ICL (`statespan.selection.criteria`), and the score of a step."""
    import torch

    from statespan import selection, verbs

    sequences, _ = verbs.ask(model, data.y(model.emission.event), inputs=data.u())
    with torch.enable_grad():  # the free parameters are counted by their derivatives
        values = selection.criteria(model, sequences)
    values["log_prob_per_step"] = values["log_prob"] / max(values["observations"], 1)
    return {name: value for name, value in values.items() if value is not None}


Rows = tuple[list[str], list[list[Any]]]
"""Columns by name, and rows, for a reader."""


def show(model: Any, data: Data, describe: Callable[[Any, Data], Rows]) -> None:
    """Print what the model is, and how well it fits."""
    screen = console()
    rows = len(data.values)
    gaps = int(np.isnan(data.values).sum())
    said = f"{data.path}: {len(data.ends):,} sequence{'s' if len(data.ends) > 1 else ''}, {_steps(f'{rows:,}')}"
    said += f", {gaps:,} missing" if gaps else ""
    screen.print(f"{said}; {', '.join(data.columns.names)}\n", markup=False, soft_wrap=True)
    screen.print(tabulate(*describe(model, data)))
    values = criteria(model, data)
    screen.print(
        f"\nlog-likelihood {values['log_prob']:,.2f} ({values['log_prob_per_step']:.4f} a step), "
        f"{values['parameters']:,} parameters, AIC {values['aic']:,.1f}, BIC {values['bic']:,.1f}",
        markup=False,
    )


def states(model: Any, data: Data) -> Rows:
    """A row a state: its share of the steps, how long it stays, what it emits."""
    posterior = model.smooth(data.y(model.emission.event), inputs=data.u())
    probs = np.concatenate([x.numpy() for x in posterior.probs])
    share = probs.mean(0)
    stays = _stays(model)
    emitted = _emitted(model, data)
    header = ["state", "share", *(["stays"] if stays is not None else []), *emitted]
    rows: list[list[Any]] = []
    for k in range(min(len(share), MOST_STATES)):
        stay = [] if stays is None else ["for good" if stays[k] > len(probs) else _steps(_three(stays[k]))]
        rows.append([str(k), f"{100 * share[k]:.1f} %", *stay, *(column[k] for column in emitted.values())])
    if len(share) > MOST_STATES:
        rows.append([f"and {len(share) - MOST_STATES} more"] + [""] * (len(header) - 1))
    return header, rows


def parameters(model: Any, data: Data) -> Rows:
    """A row a parameter, with its standard error and 95 % interval (`statespan.summary`)."""
    import torch

    from statespan.parameters import summary

    with torch.enable_grad():
        found = summary(model, data.y(model.emission.event), inputs=data.u()).frame()
    cells = zip(*(found[name] for name in ("name", "index", "estimate", "error", "low", "high", "note")), strict=True)
    rows = [
        [f"{name}[{index}]" if index not in ("", "0") else name, estimate, error, note or _between(low, high)]
        for name, index, estimate, error, low, high, note in cells
    ]
    return ["parameter", "estimate", "std. error", "95 % interval"], rows


def _between(low: float | None, high: float | None) -> str:
    return "" if low is None else f"{cell(low)} to {cell(high)}"


def _three(x: float) -> str:
    """Three digits of a number, or all of a large one."""
    return f"{x:.3g}" if x < 999.5 else f"{x:,.0f}"


def _steps(count: str) -> str:
    return f"{count} step" if count == "1" else f"{count} steps"


def _stays(model: Any) -> Any:
    """How long a state lasts on average, 1 / (1 - A_kk)."""
    table = getattr(model.transition, "probs", None)
    if table is None:
        return None
    with np.errstate(divide="ignore"):
        return 1 / (1 - np.diagonal(table.detach().numpy()))


def _emitted(model: Any, data: Data) -> dict[str, list[str]]:
    """By column, what each state emits: mean and standard deviation, or the likeliest symbols."""
    names, words = list(data.columns.names), data.columns.words
    found: dict[str, list[str]] = {}
    for part in getattr(model.emission, "emissions", [model.emission]):
        own = [names.pop(0) for _ in range(part.event.dim or 1)]
        found |= _described(part, own, words, data.given)
    return found


def _described(emission: Any, names: list[str], words: dict[str, Any], given: Any) -> dict[str, list[str]]:
    """The same of one emission, of a regression at the mean inputs; {} of one that is known by other numbers."""
    import torch

    states = emission.states
    sure, at = torch.eye(states, dtype=torch.float64), None
    if emission.takes_inputs:
        at = torch.as_tensor(given.mean(0)).expand(states, -1)
        names = [f"{name}, mean inputs" for name in names]
    each = emission.mixture(sure, at, emission.constants())
    if emission.event.symbols is not None:
        return {names[0]: [_likeliest(row, words.get(names[0])) for row in each.probs.numpy()]}
    try:
        mean, deviation = (x.numpy().reshape(states, -1) for x in (each.mean, each.variance.sqrt()))
    except (NotImplementedError, AttributeError):
        return {}
    return {
        name: [
            f"{cell(float(m) if abs(m) > 1e-9 * s else 0.0)} ± {cell(float(s))}"
            for m, s in zip(mean[:, c], deviation[:, c], strict=True)
        ]
        for c, name in enumerate(names)
    }


def _likeliest(probs: Any, words: Any) -> str:
    """The likeliest symbols of a state, with their probability."""
    order = np.argsort(-probs, kind="stable")[:FEW]
    return ", ".join(f"{words[v] if words else v} {100 * probs[v]:.0f} %" for v in order if probs[v] >= 0.005)


def coordinates(model: Any, data: Data) -> Rows:
    """A row a coordinate of a state of numbers: where it has been, and how each column follows it."""
    posterior = model.smooth(data.y(model.emission.event), inputs=data.u())
    mean = np.concatenate([x.numpy() for x in posterior.mean])
    loadings = model.emission.matrix.detach().numpy()
    header = ["coordinate", "mean", "sd", *(f"{name} per unit" for name in data.columns.names)]
    return header, [
        [str(d), float(mean[:, d].mean()), float(mean[:, d].std()), *map(float, loadings[:, d])]
        for d in range(mean.shape[1])
    ]
