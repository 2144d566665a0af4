"""Pictures of answers. matplotlib is imported when the first one is drawn.

Every function draws on the axes it is given, or on new ones, and returns them; `axes.figure.savefig(path)` writes them.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from statespan.errors import StatespanError

if TYPE_CHECKING:
    from statespan.answers import Forecast, Posterior

COLOURS = ("#0a6eb4", "#d98e04", "#c2441c", "#3ea4b8", "#6b4c9a", "#5b8c3a", "#a3586d", "#85827a")
"""Told apart by those who do not see red from green, and in print."""
QUIET, HAIR = "#65635c", "#ebe8df"
BANDS = 8
"""With more states than this, bands are too thin to read, and a heat map is drawn."""
LINES = 6
"""With more dimensions than this, lines are too many to read."""
NORMAL_95 = 1.959963984540054

Array = NDArray[np.float64]


def plot_posterior(posterior: "Posterior", sequence: int = 0, axes: Any = None) -> Any:
    """Draw what is known of one sequence's states over time.

    State probabilities are stacked bands (a heat map above eight states); a Gaussian's or a cloud's mean is a line a
    dimension with its 95 % band, mean +- 1.96 standard deviations; a recurrent network's state is a heat map.

    Args:
        posterior: what `filter` or `smooth` returned.
        sequence: which sequence.
        axes: matplotlib axes to draw on; None makes new ones.

    Returns:
        The axes.

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
    if "probs" in values:
        probs = _one(values["probs"], single, sequence)
        axes = _states(probs, _new(axes))
    elif "mean" in values:
        mean = _one(values["mean"], single, sequence)
        covariance = _one(values["covariance"], single, sequence)
        axes = _means(mean, np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1).clip(min=0)), _new(axes))
    elif "weights" in values:  # a cloud over integer states
        samples, weights = (_one(values[name], single, sequence) for name in ("samples", "weights"))
        states = np.arange(samples.max() + 1)
        probs = ((samples[..., None] == states) * weights[..., None]).sum(1)
        axes = _states(probs, _new(axes))
    else:
        axes = _heat(_one(values["state"], single, sequence), _new(axes), "unit", "activation")
    axes.set_xlabel("step")
    return axes


def plot_forecast(forecast: "Forecast", sequence: int = 0, axes: Any = None, names: Sequence[str] | None = None) -> Any:
    """Draw what comes after one sequence.

    Real values are a fan: the mean as a line, the central 50 %, 80 % and 95 % of the sampled futures as bands, one
    colour a dimension. Symbols are a stacked bar a step: the likeliest ones by name, the rest together.

    Args:
        forecast: what `forecast` returned.
        sequence: which sequence.
        axes: matplotlib axes to draw on; None makes new ones.
        names: what to call the symbols; their numbers by custom.

    Returns:
        The axes.

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
        raise _no_sequence(sequence, sequences)
    draws = forecast.draws[:, sequence]
    axes = _new(axes)
    if hasattr(forecast.distribution, "probs"):
        _bars(_numbers(forecast.distribution.probs[sequence]), axes, names)  # type: ignore[index]
    else:
        _fan(_numbers(draws), _numbers(forecast.distribution.mean[sequence]), axes)
    axes.set_xlabel("steps ahead")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return axes


def plot_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    axes: Any = None,
    across: str = "iteration",
    up: str = "log-likelihood",
    log: bool = False,
) -> Any:
    """Draw learning curves.

    Args:
        curves: by name, the points (across, up) of each.
        axes: matplotlib axes to draw on; None makes new ones.
        across: what the horizontal axis is called.
        up: what the vertical one is called.
        log: whether the vertical one is logarithmic.

    Returns:
        The axes.

    Example:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> len(plot_curves({"EM": [(1, -20.0), (2, -15.0)], "SGD": [(1, -20.0), (2, -19.0)]}).lines)
        2
    """
    axes = _new(axes)
    if log:
        axes.set_yscale("log")
    for i, (name, points) in enumerate(curves.items()):
        xs, ys = zip(*points, strict=True) if points else ((), ())
        mark = "o" if len(points) < 2 else None
        axes.plot(xs, ys, color=COLOURS[i % len(COLOURS)], linewidth=1.6, marker=mark, label=name)
    axes.grid(color=HAIR, linewidth=0.8)
    axes.set(xlabel=across, ylabel=up)
    if curves:
        _legend(axes, beside=len(curves) > 4)
    return axes


# ------------------------------------------------------------------------------------------------- pieces


def _new(axes: Any) -> Any:
    """The axes, or new ones, without the frame that carries nothing."""
    if axes is None:
        import matplotlib.pyplot as plt

        _, axes = plt.subplots(figsize=(7.2, 3.2), layout="constrained")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(QUIET)
    axes.tick_params(colors=QUIET)
    axes.set_axisbelow(True)
    return axes


def _numbers(x: Tensor) -> Array:
    return x.detach().double().cpu().numpy()


def _no_sequence(sequence: int, count: int) -> StatespanError:
    return StatespanError(f"sequence={sequence}: there are {count}; choose one of 0..{count - 1}")


def _one(value: Any, single: bool, sequence: int) -> Array:
    """One sequence out of an answer in the question's form."""
    rows = [value] if single else value
    if not -len(rows) <= sequence < len(rows):
        raise _no_sequence(sequence, len(rows))
    return _numbers(rows[sequence])


def _legend(axes: Any, beside: bool = True, upwards: bool = False) -> None:
    """A legend, beside the axes or inside them; `upwards` lists what is stacked in the order it is seen."""
    place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if beside else {"loc": "best"}
    axes.legend(frameon=False, fontsize="small", labelcolor=QUIET, reverse=upwards, **place)


def _states(probs: Array, axes: Any) -> Any:
    """(T, K) as bands, or as a heat map where bands would be too thin."""
    return _bands(probs, axes) if probs.shape[1] <= BANDS else _heat(probs, axes, "state", "probability")


def _bands(probs: Array, axes: Any) -> Any:
    """(T, K) as stacked bands, a step wide each."""
    steps = np.arange(len(probs) + 1) - 0.5
    low = np.zeros(len(probs) + 1)
    for k, share in enumerate(np.concatenate([probs, probs[-1:]]).T):
        axes.fill_between(
            steps, low, low + share, step="post", color=COLOURS[k], alpha=0.85, linewidth=0, label=f"state {k}"
        )
        low = low + share
    axes.set(xlim=(-0.5, len(probs) - 0.5), ylim=(0, 1), ylabel="probability")
    _legend(axes, upwards=True)
    return axes


def _heat(values: Array, axes: Any, what: str, scale: str) -> Any:
    """(T, D) as a heat map, time across: one colour for what is positive, two around zero."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import MaxNLocator

    top = float(np.abs(values).max()) or 1.0
    signed = bool((values < 0).any())
    ends = [COLOURS[2], "#fdfcf9", COLOURS[0]] if signed else ["#fdfcf9", COLOURS[0]]
    image = axes.imshow(
        values.T,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
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


def _means(mean: Array, deviation: Array, axes: Any) -> Any:
    """(T, D) means as lines with 95 % bands; heat map of the means where lines would be too many."""
    if mean.shape[1] > LINES:
        return _heat(mean, axes, "dimension", "mean")
    steps = np.arange(len(mean))
    for d in range(mean.shape[1]):
        m, s = mean[:, d], NORMAL_95 * deviation[:, d]
        axes.fill_between(steps, m - s, m + s, color=COLOURS[d], alpha=0.18, linewidth=0)
        label = f"dimension {d}" if mean.shape[1] > 1 else "mean"
        mark = "o" if len(mean) == 1 else None
        axes.plot(steps, m, color=COLOURS[d], linewidth=1.4, marker=mark, label=label)
    axes.grid(axis="y", color=HAIR, linewidth=0.8)
    axes.set_ylabel("state, with 95 % band")
    if mean.shape[1] > 1:
        _legend(axes)
    return axes


def _fan(draws: Array, mean: Array, axes: Any) -> None:
    """Quantiles of (S, steps, D) as bands, and the mean (steps, D)."""
    if mean.ndim == 1:
        draws, mean = draws[..., None], mean[:, None]
    steps = np.arange(1, len(mean) + 1)
    shown = min(mean.shape[1], LINES)
    for d in range(shown):
        for share in (0.95, 0.8, 0.5):
            low, high = np.quantile(draws[..., d], [(1 - share) / 2, (1 + share) / 2], axis=0)
            if len(mean) == 1:
                axes.vlines(1, low, high, color=COLOURS[d], alpha=0.3, linewidth=8)
            else:
                axes.fill_between(steps, low, high, color=COLOURS[d], alpha=0.16, linewidth=0)
        label = f"dimension {d}" if mean.shape[1] > 1 else "mean"
        mark = "o" if len(mean) == 1 else None
        axes.plot(steps, mean[:, d], color=COLOURS[d], linewidth=1.6, marker=mark, label=label)
    axes.grid(axis="y", color=HAIR, linewidth=0.8)
    axes.set_ylabel("mean, and central 50, 80, 95 %")
    if mean.shape[1] > shown:
        axes.set_title(f"the first {shown} of {mean.shape[1]} dimensions", fontsize="small", color=QUIET)
    if mean.shape[1] > 1:
        _legend(axes)


def _bars(probs: Array, axes: Any, names: Sequence[str] | None) -> None:
    """(steps, V) as a stacked bar a step: the likeliest symbols, then the others together."""
    likeliest = np.argsort(-probs.max(0), kind="stable")[:LINES].tolist()
    if names is not None and len(names) < probs.shape[1]:
        raise StatespanError(f"names has {len(names)} entries for {probs.shape[1]} symbols; name every symbol")
    steps = np.arange(1, len(probs) + 1)
    low = np.zeros(len(probs))
    parts = [(names[v] if names else f"symbol {v}", probs[:, v], COLOURS[i]) for i, v in enumerate(likeliest)]
    if probs.shape[1] > len(likeliest):
        parts.append((f"{probs.shape[1] - len(likeliest)} others", 1 - probs[:, likeliest].sum(1), "#d9d6cc"))
    for label, share, colour in parts:
        axes.bar(steps, share, 0.78, low, color=colour, label=label)
        low = low + share
    axes.set(ylim=(0, 1), ylabel="probability")
    _legend(axes, upwards=True)
