"""What every picture shares: colours, axes without chart junk, steps or dates across, the series as they are."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from statespan.errors import StatespanError

COLOURS = ("#0a6eb4", "#d98e04", "#c2441c", "#3ea4b8", "#6b4c9a", "#5b8c3a", "#a3586d", "#85827a")
"""Told apart by those who do not see red from green, and in print."""
INK, QUIET, HAIR, PAPER = "#2b2a27", "#65635c", "#ebe8df", "#fdfcf9"
BANDS = 8
"""With more states than this, bands are too thin to read, and a heat map is drawn."""
LINES = 6
"""With more dimensions than this, lines are too many to read."""
MOST_WORDS = 14
"""With more words than this on an axis, only some are named."""
DOTS = 150
"""With more steps than this a series is a line without dots."""
TINT = 0.38
WIDTH = 7.6

Array = NDArray[Any]


def new(axes: Any) -> Any:
    """The axes, or new ones, without the frame that carries nothing."""
    if axes is None:
        import matplotlib.pyplot as plt

        _, axes = plt.subplots(figsize=(WIDTH, 3.2), layout="constrained")
    return plain(axes)


def plain(axes: Any) -> Any:
    """Axes without the frame that carries nothing."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(QUIET)
    axes.tick_params(colors=QUIET)
    axes.set_axisbelow(True)
    return axes


def numbers(x: Tensor) -> Array:
    """As NumPy has it."""
    return x.detach().double().cpu().numpy()


def no_sequence(sequence: int, count: int) -> StatespanError:
    """The error for a sequence that is not there."""
    return StatespanError(f"sequence={sequence}: there are {count}; choose one of 0..{count - 1}")


def one(value: Any, single: bool, sequence: int) -> Array:
    """One sequence out of an answer in the question's form."""
    rows = [value] if single else value
    if not -len(rows) <= sequence < len(rows):
        raise no_sequence(sequence, len(rows))
    return numbers(rows[sequence])


def legend(axes: Any, beside: bool = True, upwards: bool = False) -> None:
    """A legend, beside the axes or inside them; `upwards` lists what is stacked in the order it is seen."""
    place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if beside else {"loc": "best"}
    axes.legend(frameon=False, fontsize="small", labelcolor=QUIET, reverse=upwards, **place)


def heat(values: Array, axes: Any, what: str, scale: str, across: "Across | None" = None) -> Any:
    """(T, D) as a heat map, time across: one colour for what is positive, two around zero."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import MaxNLocator

    top = float(np.abs(values).max()) or 1.0
    signed = bool((values < 0).any())
    ends = [COLOURS[2], PAPER, COLOURS[0]] if signed else [PAPER, COLOURS[0]]
    across = across or Across.of(None, len(values))
    image = axes.imshow(
        values.T,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
        extent=(across.edges[0], across.edges[-1], -0.5, values.shape[1] - 0.5),
        cmap=LinearSegmentedColormap.from_list("statespan", ends),
        vmin=-top if signed else 0.0,
        vmax=top,
    )
    bar = axes.figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label(scale, color=QUIET)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=QUIET)
    axes.set_ylabel(what)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return axes


class Across(NamedTuple):
    """Where steps stand on the horizontal axis.

    Args:
        at: (T,) centres, days since the epoch for dates.
        edges: (T + 1,) where one step ends and the next begins.
        dates: whether they are dates.
        label: what the axis is called.
    """

    at: Array
    edges: Array
    dates: bool
    label: str

    @classmethod
    def of(cls, times: Any, count: int) -> "Across":
        """Steps 0..T-1, or the times given: numbers or dates."""
        if times is None:
            return cls(np.arange(count), np.arange(count + 1) - 0.5, False, "step")
        label = getattr(times, "name", None) or "time"  # of a pandas index or column
        times = plain_times(times)
        if len(times) != count:
            raise StatespanError(f"times has {len(times)} entries for {count} steps; give one for each")
        dates = times.dtype.kind == "M"
        if dates:
            from matplotlib.dates import date2num

            times = date2num(times)
        at = np.asarray(times, dtype=np.float64)
        half = np.diff(at) / 2 if count > 1 else np.array([0.5])
        edges = np.concatenate([[at[0] - half[0]], at[:-1] + half[: count - 1], [at[-1] + half[-1]]])
        return cls(at, edges, dates, "" if dates else str(label))

    def dress(self, axes: Any) -> None:
        """Limits, ticks and label."""
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
        from matplotlib.ticker import MaxNLocator

        axes.set_xlim(self.edges[0], self.edges[-1])
        axes.set_xlabel(self.label)
        if self.dates:
            locator = AutoDateLocator(minticks=3, maxticks=9)
            axes.xaxis.set_major_locator(locator)
            axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=bool((self.at % 1 == 0).all())))


def plain_times(times: Any) -> Array:
    """Numbers, or dates as NumPy has them: by the clock of their own zone; of a pandas period where it begins."""
    kind, dates = getattr(times, "dtype", None), getattr(times, "dt", times)  # of a column, or of an index
    if getattr(kind, "tz", None) is not None:
        times = dates.tz_localize(None)
    elif hasattr(kind, "freq"):
        times = dates.to_timestamp()
    array = np.asarray(times)
    if array.dtype.kind == "O":
        clocks = [time.replace(tzinfo=None) if getattr(time, "tzinfo", None) else time for time in array]
        return np.array(clocks, "datetime64[us]")
    return array


def panels(heights: Sequence[float]) -> list[Any]:
    """Panels one above the other that share the horizontal axis."""
    import matplotlib.pyplot as plt

    figure, rows = plt.subplots(
        len(heights),
        1,
        figsize=(WIDTH, sum(heights) + 0.4),
        sharex=True,
        squeeze=False,
        layout="constrained",
        gridspec_kw={"height_ratios": list(heights)},
    )
    figure.align_ylabels()
    return [plain(axes) for axes in rows[:, 0]]


def table(y: Any) -> Array:
    """A series as (T, C) numbers, NaN missing; a symbol below 0 is missing."""
    if isinstance(y, Tensor):
        y = numbers(y)
    array = np.asarray(y)
    if array.dtype == object:
        array = array.astype(np.float64)
    if array.dtype.kind in "iu":
        array = np.where(array < 0, np.nan, array)
    return array.astype(np.float64).reshape(len(array), -1)


def named(columns: Sequence[str] | None, count: int) -> list[str]:
    """What the columns are called."""
    if columns is None:
        return ["y"] if count == 1 else [f"y[{c}]" for c in range(count)]
    if len(columns) < count:
        raise StatespanError(f"columns names {len(columns)} where there are {count}; name every one")
    return list(columns)


def series(
    axes: Any,
    values: Array,
    across: Across,
    name: str,
    words: Sequence[str] | None = None,
    colour: str = INK,
    label: str | None = None,
) -> None:
    """One column over time: a line that gaps break, with dots where they can be told apart; words as dots."""
    alone = np.isfinite(values) & ~_beside(values)
    dots = len(values) <= DOTS
    if words is not None:
        axes.plot(across.at, values, "o", color=colour, markersize=3 if dots else 1.6, label=label)
        axes.set_ylim(-0.6, len(words) - 0.4)
        some = range(len(words)) if len(words) <= MOST_WORDS else np.unique(values[np.isfinite(values)])[:MOST_WORDS]
        room = 72 * axes.get_position().height * axes.figure.get_figheight() / len(words)  # points a word
        axes.set_yticks([int(v) for v in some], [str(words[int(v)]) for v in some], fontsize=min(9, max(5, 0.8 * room)))
    else:
        axes.plot(across.at, values, color=colour, linewidth=1.1, label=label)
        axes.plot(across.at[alone | dots], values[alone | dots], "o", color=colour, markersize=2.6 if dots else 1.6)
        axes.margins(y=0.08)
    axes.set_ylabel(name)


def _beside(values: Array) -> NDArray[np.bool_]:
    """Which steps have a neighbour that is there."""
    there = np.isfinite(values)
    beside = np.zeros(len(values), bool)
    beside[1:] |= there[:-1]
    beside[:-1] |= there[1:]
    return beside


def spoken(words: Mapping[str, Sequence[str]] | None, name: str) -> Sequence[str] | None:
    """The words of a column, where it holds words."""
    return None if words is None else words.get(name)


def state_colours(probs: Array) -> Array:
    """(T, K) probabilities as (T, 3) tints: the states' colours mixed."""
    from matplotlib.colors import to_rgb

    colours = np.array([to_rgb(COLOURS[k % len(COLOURS)]) for k in range(probs.shape[1])])
    return 1 - TINT * (probs.sum(1, keepdims=True) - probs @ colours)


def tint(axes: Any, probs: Array, across: Across) -> None:
    """Colour the ground behind a series by the states' probabilities."""
    limits = axes.get_ylim()
    axes.pcolormesh(
        across.edges,
        [0, 1],
        state_colours(probs)[None],
        transform=axes.get_xaxis_transform(),
        zorder=0,
        rasterized=True,
    )
    axes.set_ylim(limits)


def state_legend(axes: Any, states: int, names: Sequence[str] | None = None) -> None:
    """Which colour is which state, above the axes."""
    from matplotlib.patches import Patch

    patches = [
        Patch(color=COLOURS[k % len(COLOURS)], alpha=0.85, label=names[k] if names else f"state {k}")
        for k in range(states)
    ]
    legend_above(axes, patches)


def legend_above(axes: Any, handles: list[Any] | None = None) -> None:
    """A legend in a row above the axes, of what has a label or of `handles`."""
    axes.legend(
        **({} if handles is None else {"handles": handles}),
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=BANDS,
        frameon=False,
        fontsize="small",
        labelcolor=QUIET,
        borderpad=0.2,
        handlelength=1.2,
        handleheight=1,
        columnspacing=1.4,
    )
