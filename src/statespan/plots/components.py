"""What the components of a structural series add to it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from statespan.plots.style import COLOURS, HAIR, INK, QUIET, Across, numbers, panels, series, table

if TYPE_CHECKING:
    from statespan.families.structural import Piece

NORMAL_95 = 1.959964


def plot_components(pieces: "Mapping[str, Piece]", y: Any = None, times: Any = None, name: str = "y") -> Any:
    """Draw what each component adds, a panel each, with its central 95 %; with `y`, the series above them.

    Args:
        pieces: what `decompose` returned.
        y: the series, (T,), NaN missing.
        times: of its steps, numbers or dates.
        name: what the series is called.

    Returns:
        The axes of the first panel.

    Example:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> import statespan as ss
        >>> y = [1.0, 3.0, 1.5, 3.5, 2.0]
        >>> plot_components(ss.decompose(ss.level() + ss.seasonal(2), y), y).get_ylabel()
        'y'
    """
    count = len(next(iter(pieces.values())).mean)
    across = Across.of(times, count)
    rows = panels([1.5] * (len(pieces) + (y is not None)))
    if y is not None:
        series(rows[0], table(y)[:, 0], across, name, colour=INK)
    drawn = rows[1:] if y is not None else rows
    for i, (axes, (what, piece)) in enumerate(zip(drawn, pieces.items(), strict=True)):
        mean, deviation = numbers(piece.mean), numbers(piece.deviation)
        colour = QUIET if what == "noise" else COLOURS[i % len(COLOURS)]
        if what == "noise":
            axes.vlines(across.at, 0, mean, color=colour, linewidth=0.9)
            axes.axhline(0, color=HAIR, linewidth=0.8)
        else:
            low, high = mean - NORMAL_95 * deviation, mean + NORMAL_95 * deviation
            axes.fill_between(across.at, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(across.at, mean, color=colour, linewidth=1.2)
        axes.grid(axis="y", color=HAIR, linewidth=0.8)
        axes.set_ylabel(what)
    across.dress(rows[-1])
    for axes in rows[:-1]:
        axes.set_xlabel("")
    return rows[0]
