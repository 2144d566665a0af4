"""A series and the segments it falls into."""

from typing import Any

import numpy as np

from statespan.errors import StatespanError
from statespan.plots.style import COLOURS, HAIR, INK, LINES, Across, legend_above, named, numbers, panels, series, table

NORMAL_95 = 1.959963984540054
FAINT = 1e-4
"""Probabilities below this are not seen."""


def plot_changepoints(
    model: Any, y: Any, times: Any = None, columns: Any = None, inputs: Any = None, method: Any = None
) -> Any:
    """Draw a series, its segments, and what was known of them.

    Above the series, a panel a column, with the mean of its segments in hindsight, its central 95 %, and a line where
    the likeliest segmentation changes; then the probability that a segment begins at each step, given everything;
    below p(run length | y so far), a darker grey for a larger probability (its logarithm, from 0.0001).

    Args:
        model: what `ss.changepoints` made.
        y: one series, (T,) or (T, D), NaN missing.
        times: of the steps, numbers or dates.
        columns: what the columns of y are called.
        inputs: its inputs, (T, U).
        method: a `RunLengthFilter` that keeps few run lengths, for a long series.

    Returns:
        The axes of the first panel.

    Raises:
        StatespanError: several series, or another kind of model.

    Source:
        After Adams and MacKay 2007, figures 3 to 5.

    Example:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> import statespan as ss
        >>> model = ss.changepoints(ss.PoissonSegment(scale=5.0), hazard=0.1)
        >>> plot_changepoints(model, [1, 0, 2, 1, 12, 9, 14]).get_ylabel()
        'y'
    """
    from statespan.families.changepoints import segment_means

    known = segment_means(model, y, inputs=inputs, method=method)
    if isinstance(known.mean, list) or known.mean.dim() != 2:
        raise StatespanError("plot_changepoints draws one series; call it for each")
    values = table(y)
    names, across = named(columns, values.shape[1]), Across.of(times, len(values))
    shown = min(len(names), LINES)
    rows = panels([1.9 if shown == 1 else 1.3] * shown + [0.9, 1.9])
    path = model.decode(y, inputs=inputs, method=method)
    cuts = across.edges[:-1][numbers(path) == 0][1:]
    mean, deviation = numbers(known.mean), numbers(known.deviation)
    for c, axes in enumerate(rows[:shown]):
        series(axes, values[:, c], across, names[c])
        limits = axes.get_ylim()
        low, high = mean[:, c] - NORMAL_95 * deviation[:, c], mean[:, c] + NORMAL_95 * deviation[:, c]
        axes.fill_between(across.at, low, high, step="mid", color=COLOURS[0], alpha=0.22, linewidth=0)
        axes.step(
            across.at, mean[:, c], where="mid", color=COLOURS[0], linewidth=1.6, label="mean of the segments, 95 %"
        )
        for i, cut in enumerate(cuts):
            axes.axvline(
                cut,
                color=COLOURS[2],
                linewidth=1.0,
                linestyle=(0, (4, 2)),
                label=None if i else "likeliest segmentation",
            )
        axes.set_ylim(limits)
    legend_above(rows[0])
    begins = numbers(model.smooth(y, inputs=inputs, method=method).probs[:, 0])
    rows[-2].bar(across.at[1:], begins[1:], width=np.diff(across.edges)[1:], color=COLOURS[2], linewidth=0)
    rows[-2].set(ylim=(0, 1), ylabel="p(begins)")
    rows[-2].grid(axis="y", color=HAIR, linewidth=0.8)
    filtered = model.filter(y, inputs=inputs, method=method).values
    _runs(numbers(filtered["probs"]), filtered["ages"].cpu().numpy(), rows[-1], across)
    across.dress(rows[-1])
    for axes in rows[:-1]:
        axes.set_xlabel("")
    return rows[0]


def _runs(probs: Any, ages: Any, axes: Any, across: Across) -> None:
    """p(run length | y so far), (T, R), as greys."""
    from matplotlib.colors import LinearSegmentedColormap

    steps, row = np.nonzero(probs > FAINT)
    tallest = int(ages[steps, row].max()) + 1
    grid = np.zeros((tallest, len(probs)))
    grid[ages[steps, row], steps] = 1 - np.log(probs[steps, row]) / np.log(FAINT)
    axes.pcolormesh(
        across.edges,
        np.arange(tallest + 1) - 0.5,
        grid,
        cmap=LinearSegmentedColormap.from_list("runs", ["white", INK]),
        vmin=0,
        vmax=1,
        rasterized=True,
    )
    axes.set_ylabel("run length")
