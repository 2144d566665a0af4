"""What comes next, and what was not seen."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from statespan.errors import StatespanError
from statespan.plots.style import (
    COLOURS,
    HAIR,
    LINES,
    QUIET,
    Across,
    Array,
    legend,
    legend_above,
    named,
    new,
    no_sequence,
    numbers,
    panels,
    plain_times,
    series,
    spoken,
    table,
)

if TYPE_CHECKING:
    from statespan.answers import Forecast

SHARES = (0.95, 0.8, 0.5)
LEVELS = [(1 + sign * share) / 2 for share in SHARES for sign in (-1, 1)]
"""The quantiles where the bands begin and end."""
TAIL = 40
"""Steps of the series that are drawn before a forecast, at least; else three times its own."""


def plot_forecast(
    forecast: "Forecast",
    sequence: int = 0,
    axes: Any = None,
    names: Sequence[str] | None = None,
    y: Any = None,
    times: Any = None,
    ahead: Any = None,
    columns: Sequence[str] | None = None,
    words: Mapping[str, Sequence[str]] | None = None,
) -> Any:
    """Draw what comes after one sequence.

    Real values are a fan: the mean as a line, the central 50 %, 80 % and 95 % of the sampled futures as bands, one
    colour a dimension; with `y`, a panel a column, after the tail of the series. Symbols are a stacked bar a step: the
    likeliest ones by name, the rest together.

    Args:
        forecast: what `forecast` returned.
        sequence: which sequence.
        axes: matplotlib axes to draw on; None makes new ones.
        names: what to call the symbols; their numbers by custom.
        y: the observations of that sequence, (T,) or (T, C), NaN missing.
        times: of its steps, numbers or dates.
        ahead: the times of the steps ahead.
        columns: what the columns of y are called.
        words: of a column of symbols, what they are called.

    Returns:
        The axes; with `y` those of the first column.

    Raises:
        StatespanError: there is no such sequence.

    Example:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> import statespan as ss
        >>> forecast = ss.linear_gaussian(state=1, observed=1, seed=0).forecast([0.3, 0.1], steps=5)
        >>> plot_forecast(forecast).get_xlabel()
        'steps ahead'
    """
    from matplotlib.ticker import MaxNLocator

    sequences = forecast.draws.shape[1]
    if not -sequences <= sequence < sequences:
        raise no_sequence(sequence, sequences)
    draws = numbers(forecast.draws[:, sequence])
    if hasattr(forecast.distribution, "probs"):
        probs = numbers(forecast.distribution.probs[sequence])  # type: ignore[index]
        names = names or (spoken(words, columns[0]) if columns else None)
        axes = new(axes)
        if ahead is not None:
            across = Across.of(ahead, len(probs))
            _bars(probs, axes, names, across.at, 0.78 * np.diff(across.edges))
            across.dress(axes)
            return axes
        _bars(probs, axes, names, np.arange(1, len(probs) + 1), 0.78)
    else:
        mean = numbers(forecast.distribution.mean[sequence])
        draws, mean = draws.reshape(*draws.shape[:2], -1), mean.reshape(len(mean), -1)
        bands = numbers(forecast.quantile(LEVELS)).reshape(len(LEVELS), sequences, *mean.shape)[:, sequence]
        if y is not None:
            return _after(table(y), draws, bands, mean, times, ahead, named(columns, mean.shape[1]), words, axes)
        axes = new(axes)
        _fan(bands, mean, axes)
    axes.set_xlabel("steps ahead")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return axes


def plot_imputed(
    y: Any,
    filled: Any,
    axes: Any = None,
    times: Any = None,
    columns: Sequence[str] | None = None,
    words: Mapping[str, Sequence[str]] | None = None,
) -> Any:
    """Draw a series with its gaps and what they are filled with, a panel a column.

    Args:
        y: the observations of one sequence, (T,) or (T, C), NaN (of symbols -1) missing.
        filled: what `impute` made of them.
        axes: matplotlib axes to draw the first column on; None makes new ones for every column.
        times: of the steps, numbers or dates.
        columns: what the columns are called.
        words: of a column of symbols, what they are called.

    Returns:
        The axes of the first column.

    Example:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> import statespan as ss
        >>> y = [0.1, float("nan"), 0.3]
        >>> model = ss.linear_gaussian(state=1, observed=1, seed=0)
        >>> plot_imputed(y, model.impute(y)).get_ylabel()
        'y'
    """
    seen, filled = table(y), table(filled)
    across, names = Across.of(times, len(seen)), named(columns, seen.shape[1])
    shown = min(len(names), LINES) if axes is None else 1
    rows = panels([1.7 if shown < 3 else 1.2] * shown) if axes is None else [new(axes)]
    for c, on in enumerate(rows):
        gap = np.isnan(seen[:, c])
        spell = spoken(words, names[c])
        bridge = gap.copy()  # the line over a gap reaches what stands beside it
        bridge[1:] |= gap[:-1]
        bridge[:-1] |= gap[1:]
        for left, right in _runs(gap):
            on.axvspan(across.edges[left], across.edges[right], color=HAIR, linewidth=0, zorder=0)
        if spell is None:
            on.plot(across.at, np.where(bridge, filled[:, c], np.nan), color=COLOURS[2], linewidth=1.1)
        series(on, seen[:, c], across, names[c], spell, label="observed")
        on.plot(
            across.at[gap],
            filled[gap, c],
            "o",
            markersize=4 if gap.sum() < 100 else 2.5,
            markerfacecolor="white",
            color=COLOURS[2],
            label="imputed",
        )
    across.dress(rows[-1])
    legend_above(rows[0])
    return rows[0]


def _runs(there: Array) -> list[tuple[int, int]]:
    """Where runs of True begin, and end."""
    edge = np.flatnonzero(np.diff(np.concatenate([[0], there.astype(np.int8), [0]])))
    return list(zip(edge[::2].tolist(), edge[1::2].tolist(), strict=True))


def _after(
    past: Array,
    draws: Array,
    bands: Array,
    mean: Array,
    times: Any,
    ahead: Any,
    names: list[str],
    words: Any,
    axes: Any,
) -> Any:
    """The fan after the tail of the series, a panel a column."""
    tail = min(len(past), max(TAIL, 3 * len(mean)))
    if times is None:
        before, after = np.arange(len(past)), np.arange(len(past), len(past) + len(mean))
    elif ahead is None:
        raise StatespanError("plot_forecast: times= are given; give ahead= too, the times of the steps ahead")
    else:
        before, after = plain_times(times), plain_times(ahead)
    across = Across.of(np.concatenate([before, after])[len(past) - tail :], tail + len(mean))
    label = "step" if times is None else getattr(times, "name", None) or across.label
    across = across._replace(label=across.label and str(label))
    shown = min(len(names), LINES) if axes is None else 1
    rows = panels([2.2 if shown == 1 else 1.5] * shown) if axes is None else [new(axes)]
    past = past[len(past) - tail :]
    for c, on in enumerate(rows):
        spell = spoken(words, names[c])
        series(on, np.concatenate([past[:, c], np.full(len(mean), np.nan)]), across, names[c], spell, label="observed")
        at = across.at[tail:]
        if spell is None:
            _bands(bands[..., c], mean[:, c], on, at, COLOURS[0], "forecast: mean, central 50, 80, 95 %")
        else:  # as large as it is probable
            share = np.stack([(draws[..., c] == v).mean(0) for v in range(len(spell))])
            for v, sizes in enumerate(share):
                on.scatter(at, np.full(len(at), v), 60 * sizes, color=COLOURS[0], alpha=0.6, linewidth=0)
        on.axvline(across.edges[tail], color=QUIET, linewidth=0.8, linestyle=(0, (2, 3)))
        on.grid(axis="y", color=HAIR, linewidth=0.8)
    across.dress(rows[-1])
    legend_above(rows[0])
    return rows[0]


def _bands(bands: Array, mean: Array, axes: Any, at: Array, colour: str, label: str) -> None:
    """The quantiles of `LEVELS`, (6, steps), as bands, and the mean (steps,)."""
    for low, high in bands.reshape(-1, 2, len(mean)):
        if len(mean) == 1:
            axes.vlines(at, low, high, color=colour, alpha=0.3, linewidth=8)
        else:
            axes.fill_between(at, low, high, color=colour, alpha=0.16, linewidth=0)
    axes.plot(at, mean, color=colour, linewidth=1.6, marker="o" if len(mean) == 1 else None, label=label)


def _fan(bands: Array, mean: Array, axes: Any) -> None:
    """The quantiles of `LEVELS`, (6, steps, D), as bands, and the mean (steps, D)."""
    shown, steps = min(mean.shape[1], LINES), np.arange(1, len(mean) + 1)
    for d in range(shown):
        label = f"dimension {d}" if mean.shape[1] > 1 else "mean"
        _bands(bands[..., d], mean[:, d], axes, steps, COLOURS[d], label)
    axes.grid(axis="y", color=HAIR, linewidth=0.8)
    axes.set_ylabel("mean, and central 50, 80, 95 %")
    if mean.shape[1] > shown:
        axes.set_title(f"the first {shown} of {mean.shape[1]} dimensions", fontsize="small", color=QUIET)
    if mean.shape[1] > 1:
        legend(axes)


def _bars(probs: Array, axes: Any, names: Sequence[str] | None, at: Array, width: Any) -> None:
    """(steps, V) as a stacked bar a step: the likeliest symbols, then the others together."""
    likeliest = np.argsort(-probs.max(0), kind="stable")[:LINES].tolist()
    if names is not None and len(names) < probs.shape[1]:
        raise StatespanError(f"names has {len(names)} entries for {probs.shape[1]} symbols; name every symbol")
    low = np.zeros(len(probs))
    parts = [(names[v] if names else f"symbol {v}", probs[:, v], COLOURS[i]) for i, v in enumerate(likeliest)]
    if probs.shape[1] > len(likeliest):
        parts.append((f"{probs.shape[1] - len(likeliest)} others", 1 - probs[:, likeliest].sum(1), "#d9d6cc"))
    for label, share, colour in parts:
        axes.bar(at, share, width, low, color=colour, label=label)
        low = low + share
    axes.set(ylim=(0, 1), ylabel="probability")
    legend(axes, upwards=True)
