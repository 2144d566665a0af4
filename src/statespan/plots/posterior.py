"""What is known of the hidden states over time."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from statespan.plots.style import (
    BANDS,
    COLOURS,
    HAIR,
    LINES,
    Across,
    Array,
    heat,
    legend,
    named,
    new,
    one,
    panels,
    series,
    spoken,
    state_legend,
    table,
    tint,
)

if TYPE_CHECKING:
    from statespan.answers import Posterior

NORMAL_95 = 1.959963984540054
PANEL, SMALL = 1.7, 1.1
"""Heights of a panel, in inches."""


def plot_posterior(
    posterior: "Posterior",
    sequence: int = 0,
    axes: Any = None,
    y: Any = None,
    times: Any = None,
    columns: Sequence[str] | None = None,
    words: Mapping[str, Sequence[str]] | None = None,
) -> Any:
    """Draw what is known of one sequence's states over time.

    State probabilities are stacked bands (a heat map above eight states); a Gaussian's or a cloud's mean is a line a
    dimension with its 95 % band, mean +- 1.96 standard deviations; a recurrent network's state is a heat map. With `y`
    the series stands above, a panel a column, its ground tinted by the states.

    Args:
        posterior: what `filter` or `smooth` returned.
        sequence: which sequence.
        axes: matplotlib axes to draw on; None makes new ones. With `y` the series alone is drawn on them.
        y: the observations of that sequence, (T,) or (T, C), NaN missing.
        times: of the steps, numbers or dates.
        columns: what the columns of y are called.
        words: of a column of symbols, what they are called.

    Returns:
        The axes; with `y` those of the first column.

    Raises:
        StatespanError: there is no such sequence.

    Example:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> import statespan as ss
        >>> posterior = ss.hmm(states=2, emission=ss.Categorical(3), seed=0).smooth([0, 1, 2, 2])
        >>> plot_posterior(posterior).get_xlabel()
        'step'
    """
    values = posterior.values
    single = posterior.log_prob.dim() == 0
    probs = _probabilities(values, single, sequence)
    if y is not None:
        few = probs if probs is not None and probs.shape[1] <= BANDS else None
        rows, below, across = _over(table(y), times, columns, words, few, axes)
        if below is not None:
            _draw(values, probs, single, sequence, below, across, inside=few is not None)
            across.dress(below)
        return rows[0]
    count = len(probs if probs is not None else one(next(iter(values.values())), single, sequence))
    across, axes = Across.of(times, count), new(axes)
    _draw(values, probs, single, sequence, axes, across)
    across.dress(axes)
    return axes


def plot_paths(
    paths: Any,
    log_prob: Any = None,
    axes: Any = None,
    y: Any = None,
    times: Any = None,
    columns: Sequence[str] | None = None,
    words: Mapping[str, Sequence[str]] | None = None,
    name: str = "likeliest path",
) -> Any:
    """Draw one path of states, or several below each other; with `y` the series above, its ground tinted by the first.

    Args:
        paths: (T,) states, or (T, k); a path of numbers, (T, D) real, is lines, and so are several, (T, k, D).
        log_prob: (k,) of each, named beside it.
        axes: matplotlib axes to draw on; None makes new ones.
        y: the observations, (T,) or (T, C).
        times: of the steps, numbers or dates.
        columns: what the columns of y are called.
        words: of a column of symbols, what they are called.
        name: what one path is called.

    Returns:
        The axes of the paths; with `y` those of the first column.

    Example:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> import statespan as ss
        >>> model = ss.hmm(states=2, emission=ss.Categorical(3), seed=0)
        >>> plot_paths(*model.decode([0, 1, 2, 2], k=3)).get_ylabel()
        'path'
    """
    array = np.asarray(paths)
    whole = array.dtype.kind in "iu"
    if whole:
        array = array.reshape(len(array), -1)
    elif array.ndim < 3:
        array = array.reshape(len(array), 1, -1)
    states = int(array.max()) + 1 if whole else 0
    if y is None:
        across, below, rows = Across.of(times, len(array)), new(axes), []
    else:
        probs = np.eye(states)[array[:, 0].clip(0)] if 0 < states <= BANDS else None
        rows, below, across = _over(table(y), times, columns, words, probs, axes)
    if below is not None:
        if not whole:
            _lines(array, below, across)
        else:
            _strips(array, log_prob, below, across, name)
            if not rows or states > BANDS:
                state_legend(below, min(states, len(COLOURS)))
        across.dress(below)
    return rows[0] if rows else below


def _over(
    values: Array, times: Any, columns: Any, words: Any, probs: Array | None, axes: Any
) -> tuple[list[Any], Any, Across]:
    """The series in panels, and the panel below them; on axes given, all on those and none below."""
    names, across = named(columns, values.shape[1]), Across.of(times, len(values))
    shown = min(len(names), LINES)
    rows = panels([PANEL if shown < 3 else SMALL] * shown + [SMALL]) if axes is None else [new(axes)]
    for c in range(shown):
        on = rows[c] if axes is None else rows[0]
        series(on, values[:, c], across, names[c], spoken(words, names[c]))
    for on in rows[: shown if axes is None else 1]:
        if probs is not None:
            tint(on, probs, across)
    if probs is not None:
        state_legend(rows[0], probs.shape[1])
    if axes is not None:
        across.dress(rows[0])
        return rows, None, across
    return rows[:-1], rows[-1], across


def _probabilities(values: Mapping[str, Any], single: bool, sequence: int) -> Array | None:
    """(T, K), where the belief says as much."""
    if "probs" in values:
        return one(values["probs"], single, sequence)
    if "weights" not in values:
        return None
    samples, weights = (one(values[name], single, sequence) for name in ("samples", "weights"))
    if samples.ndim > 2:  # a cloud over vectors has means
        return None
    return ((samples[..., None] == np.arange(samples.max() + 1)) * weights[..., None]).sum(1)


def _draw(
    values: Mapping[str, Any],
    probs: Array | None,
    single: bool,
    sequence: int,
    axes: Any,
    across: Across,
    inside: bool = False,
) -> None:
    """The belief on axes; `inside` leaves out the legend, which stands above."""
    if probs is not None:
        _states(probs, axes, across, inside)
    elif "mean" in values:
        mean = one(values["mean"], single, sequence)
        if "covariance" in values:
            variance = np.diagonal(one(values["covariance"], single, sequence), axis1=-2, axis2=-1)
        else:  # a cloud of fewer members than dimensions
            variance = one(values["samples"], single, sequence).var(-2, ddof=1)
        _means(mean, np.sqrt(variance.clip(min=0)), axes, across)
    elif "marginals" in values:  # (T, C, K): the chains one above the other
        each = one(values["marginals"], single, sequence)
        heat(each.reshape(len(each), -1), axes, "chain, state", "probability", across)
    else:
        heat(one(values["state"], single, sequence), axes, "unit", "activation", across)


def _states(probs: Array, axes: Any, across: Across, inside: bool) -> None:
    """(T, K) as bands, or as a heat map where bands would be too thin."""
    if probs.shape[1] > BANDS:
        heat(probs, axes, "state", "probability", across)
        return
    low = np.zeros(len(probs) + 1)
    for k, share in enumerate(np.concatenate([probs, probs[-1:]]).T):
        axes.fill_between(
            across.edges, low, low + share, step="post", color=COLOURS[k], alpha=0.85, linewidth=0, label=f"state {k}"
        )
        low = low + share
    axes.set(ylim=(0, 1), ylabel="probability")
    if not inside:
        legend(axes, upwards=True)


def _strips(paths: Array, log_prob: Any, axes: Any, across: Across, name: str) -> None:
    """(T, k) states as a coloured strip a path, the best on top; of the others what they share with it is pale."""
    from matplotlib.colors import to_rgb

    count, each = paths.shape[1], paths.T
    strength = np.where((each == each[0]) & (np.arange(count) > 0)[:, None] & (log_prob is not None), 0.3, 0.85)
    strength[each < 0] = 0.0
    colours = np.array([to_rgb(colour) for colour in COLOURS])[each % len(COLOURS)]
    edges = np.arange(count + 1) * 1.0
    axes.pcolormesh(across.edges, edges, 1 - strength[..., None] * (1 - colours), rasterized=True)
    for edge in edges[1:-1]:
        axes.axhline(edge, color="white", linewidth=2)
    axes.set_ylim(count, 0)
    if log_prob is None:
        axes.set_yticks([])
        axes.set_ylabel(name if count == 1 else "paths")
    else:
        values = np.asarray(log_prob)
        axes.set_yticks(edges[:-1] + 0.5, [f"{value:.2f}" for value in values], fontsize="small")
        axes.set_ylabel("path")
    axes.tick_params(axis="y", length=0)


def _lines(paths: Array, axes: Any, across: Across) -> None:
    """(T, k, D) paths of numbers: one as means are drawn, several as thin lines of one colour a dimension."""
    count, width = paths.shape[1:]
    if count == 1 or width > LINES:
        _means(paths[:, 0], None, axes, across)
        return
    for d in range(width):
        lines = axes.plot(across.at, paths[:, :, d], color=COLOURS[d], linewidth=0.9, alpha=max(0.15, 1 / count**0.5))
        lines[0].set_label(f"dimension {d}")
    axes.grid(axis="y", color=HAIR, linewidth=0.8)
    axes.set_ylabel("states")
    if width > 1:
        legend(axes)


def _means(mean: Array, deviation: Array | None, axes: Any, across: Across) -> None:
    """(T, D) means as lines with 95 % bands; heat map of the means where lines would be too many."""
    if mean.shape[1] > LINES:
        heat(mean, axes, "dimension", "mean", across)
        return
    for d in range(mean.shape[1]):
        m = mean[:, d]
        if deviation is not None:
            s = NORMAL_95 * deviation[:, d]
            axes.fill_between(across.at, m - s, m + s, color=COLOURS[d], alpha=0.18, linewidth=0)
        label = f"dimension {d}" if mean.shape[1] > 1 else "mean"
        axes.plot(across.at, m, color=COLOURS[d], linewidth=1.4, marker="o" if len(mean) == 1 else None, label=label)
    axes.grid(axis="y", color=HAIR, linewidth=0.8)
    axes.set_ylabel("state" if deviation is None else "state, 95 %")
    if mean.shape[1] > 1:
        legend(axes)
