"""The picture of a check."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from statespan.errors import StatespanError
from statespan.plots.style import COLOURS, HAIR, QUIET, Across, new, numbers, panels, plain

if TYPE_CHECKING:
    from statespan.checks.auxiliary import Auxiliary
    from statespan.checks.check import Check


def plot_check(found: "Check", column: int = 0, name: str = "") -> Any:
    """Draw a check: residuals in time, quantiles, histogram, autocorrelation, occupancy, dwell times.

    Of a model with a normal state the last two are NIS and the cumulated sum of the first sequence's residuals.

    Args:
        found: what `check` returned.
        column: which coordinate.
        name: what it is called.

    Returns:
        The matplotlib figure.

    Raises:
        StatespanError: there is no such column.

    Example:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> import statespan as ss
        >>> found = ss.check(ss.hmm(states=2, emission=ss.Categorical(3), seed=0), [0, 2, 1, 1])
        >>> len(plot_check(found).axes)
        6
    """
    import matplotlib.pyplot as plt

    if not 0 <= column < found.residuals.shape[1]:
        raise StatespanError(f"column={column}: there are {found.residuals.shape[1]}; choose one of them, from 0")
    figure, axes = plt.subplots(2, 3, figsize=(11, 6), layout="constrained")
    for each in axes.flat:
        plain(each)
    lower, upper, z = (numbers(x[:, column]) for x in (found.lower, found.upper, found.residuals))
    _time(axes[0, 0], lower, upper, z)
    there = ~np.isnan(z)
    _quantiles(axes[0, 1], z[there])
    _histogram(axes[0, 2], z[there])
    _lags(axes[1, 0], found, column, int(there.sum()))
    if found.occupancy is not None:
        _occupancy(axes[1, 1], *(numbers(x) for x in found.occupancy))
    elif found.nis is not None:
        plot_nis(found, axes[1, 1])
    else:
        axes[1, 1].set_axis_off()
    if found.dwell is not None:
        _dwell(axes[1, 2], *found.dwell)
    elif int(there[numbers(found.sequence) == 0].sum()) > 2:
        plot_cusum(found, column, axes=axes[1, 2])
    else:
        axes[1, 2].set_axis_off()
    expected, deviation = found.expected_surprise
    said = f"surprise {found.surprise:.3f} nats a step, {expected:.3f} ± {deviation:.3f} expected"
    said = f"{name}; {said}" if name else said
    figure.suptitle(said, fontsize="medium", color=QUIET, x=0.02, ha="left")
    return figure


def plot_nis(found: "Check", axes: Any = None, level: float = 0.95) -> Any:
    """Draw the normalised innovation squared of each step, below which it should lie so often, and its mean.

    Args:
        found: what `check` returned, of a model whose forecasts are normal.
        axes: matplotlib axes to draw on; None makes new ones.
        level: the share of steps.

    Returns:
        The axes.

    Raises:
        StatespanError: the model's forecasts are no normals.

    Example:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> import statespan as ss
        >>> plot_nis(ss.check(ss.level(variance=1.0), [0.3, 0.1, -0.4, 0.2])).get_title()
        'normalised innovation squared'
    """
    from statespan.checks.significance import chi_square_quantile

    low, high = found.nis_band(level)
    assert found.nis is not None and found.freedom is not None
    axes, nis, freedom = new(axes), numbers(found.nis), numbers(found.freedom)
    steps = np.arange(len(nis))
    limit = {k: chi_square_quantile(level, k) for k in np.unique(freedom[freedom > 0])}
    line = np.array([limit.get(k, np.nan) for k in freedom])
    axes.plot(steps, nis, ".", color=COLOURS[0], markersize=3)
    axes.plot(steps[nis > line], nis[nis > line], ".", color=COLOURS[2], markersize=5)
    axes.plot(steps, line, color=QUIET, linewidth=0.8, linestyle="--")
    axes.axhspan(low, high, color=HAIR)
    axes.axhline(np.nanmean(nis), color=COLOURS[2], linewidth=1.2, label=f"mean; {level:.0%} of means lie in the band")
    axes.set(title="normalised innovation squared", xlabel="step", ylabel="chi-square, if true")
    axes.set_ylim(0, 1.25 * np.nanmax(np.append(nis, line)))
    axes.legend(frameon=False, fontsize="small", labelcolor=QUIET, loc="upper right")
    return axes


def plot_cusum(
    found: "Check", column: int = 0, sequence: int = 0, squares: bool = False, level: float = 0.95, axes: Any = None
) -> Any:
    """Draw the cumulated sum of one sequence's residuals, or of their squares, between the lines it should not cross.

    Args:
        found: what `check` returned.
        column: which coordinate.
        sequence: which sequence.
        squares: of squares.
        level: 0.9, 0.95 or 0.99.
        axes: matplotlib axes to draw on; None makes new ones.

    Returns:
        The axes.

    Raises:
        StatespanError: too few residuals, or another level.

    Example:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> import statespan as ss
        >>> found = ss.check(ss.level(variance=1.0), [0.3, 0.1, -0.4, 0.2, 0.9, 0.1, 0.2])
        >>> plot_cusum(found, squares=True).get_title()
        'cumulated sum of squares'
    """
    line, axes = found.cusum(column, sequence, squares, level), new(axes)
    steps, value, lower, upper = (numbers(x) for x in line[:4])
    axes.fill_between(steps, lower, upper, color=HAIR, linewidth=0, label=f"{level:.0%} of sums stay inside")
    if not squares:
        axes.axhline(0, color=QUIET, linewidth=0.8)
    axes.plot(steps, value, color=COLOURS[2 if line.crossed else 0], linewidth=1.4)
    axes.set(title="cumulated sum of squares" if squares else "cumulated sum", xlabel="step")
    axes.legend(frameon=False, fontsize="small", labelcolor=QUIET, loc="upper left")
    return axes


def plot_auxiliary(found: "Auxiliary", times: Any = None, threshold: float = 3.0) -> Any:
    """Draw auxiliary residuals, a panel for each noise; those beyond a threshold are marked.

    Args:
        found: what `auxiliary` returned.
        times: of the steps, numbers or dates.
        threshold: in standard deviations.

    Returns:
        The axes of the first panel.

    Example:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> import statespan as ss
        >>> found = ss.auxiliary(ss.level(variance=0.1), [0.1, -0.2, 0.3, 5.0, 0.2])
        >>> plot_auxiliary(found).get_ylabel()
        'noise'
    """
    values = numbers(found.values)
    across, rows = Across.of(times, len(values)), panels([1.2] * len(found.names))
    for axes, name, z in zip(rows, found.names, values.T, strict=True):
        beyond = np.abs(z) > threshold
        axes.vlines(across.at, 0, z, color=COLOURS[0], linewidth=0.9)
        axes.plot(across.at[beyond], z[beyond], "o", color=COLOURS[2], markersize=4)
        for line in (-threshold, threshold):
            axes.axhline(line, color=QUIET, linewidth=0.8, linestyle="--")
        axes.axhline(0, color=QUIET, linewidth=0.8)
        reach = 1.15 * max(threshold, np.nanmax(np.abs(z)))
        axes.set(ylabel=name, ylim=(-reach, reach))
    across.dress(rows[-1])
    for axes in rows[:-1]:
        axes.set_xlabel("")
    return rows[0]


def _time(axes: Any, lower: Any, upper: Any, z: Any) -> None:
    """Dots, or from discrete observations the intervals; the central 95 % and 99 % between lines."""
    steps = np.arange(len(z))
    if np.nanmax(upper - lower, initial=0) > 0:
        axes.vlines(steps, lower.clip(-4), upper.clip(max=4), color=COLOURS[0], linewidth=0.8, alpha=0.6)
    else:
        axes.plot(steps, z, ".", color=COLOURS[0], markersize=3)
    for level, style in ((1.96, "--"), (2.576, ":")):
        for sign in (-1, 1):
            axes.axhline(sign * level, color=QUIET, linewidth=0.8, linestyle=style)
    axes.set(title="pseudo-residuals", xlabel="step", ylabel="standard normal, if true")


def _quantiles(axes: Any, z: Any) -> None:
    at = torch.special.ndtri((torch.arange(len(z)).double() + 0.5) / max(len(z), 1)).numpy()
    ends = [min(at.min(initial=-3), -3), max(at.max(initial=3), 3)]
    axes.plot(ends, ends, color=QUIET, linewidth=0.8)
    axes.plot(at, np.sort(z), ".", color=COLOURS[0], markersize=3)
    axes.set(title="quantiles", xlabel="standard normal", ylabel="residuals")


def _histogram(axes: Any, z: Any) -> None:
    axes.hist(z, bins=max(10, min(40, len(z) // 15)), density=True, color=COLOURS[0], alpha=0.5)
    x = np.linspace(-4, 4, 200)
    axes.plot(x, np.exp(-x * x / 2) / np.sqrt(2 * np.pi), color=COLOURS[2], linewidth=1.4)
    axes.set(title="distribution", xlabel="residuals", ylabel="density")


def _lags(axes: Any, found: "Check", column: int, n: int) -> None:
    from statespan.checks.check import lag_band

    lags = min(20, max(1, len(found.residuals) - 1))
    values = numbers(found.autocorrelation(lags)[:, column]) if len(found.residuals) > 1 else np.zeros(1)
    axes.axhspan(-lag_band(n), lag_band(n), color=HAIR)
    axes.axhline(0, color=QUIET, linewidth=0.8)
    axes.vlines(np.arange(1, len(values) + 1), 0, values, color=COLOURS[0], linewidth=2)
    axes.set(title="autocorrelation", xlabel="lag", ylabel="correlation")


def _occupancy(axes: Any, seen: Any, told: Any) -> None:
    at = np.arange(len(seen))
    axes.bar(at - 0.2, seen, 0.38, color=COLOURS[0], label="in hindsight")
    axes.bar(at + 0.2, told, 0.38, color=COLOURS[1], label="expected")
    axes.set(title="occupancy", xlabel="state", ylabel="share of steps")
    axes.set_xticks(at)
    axes.set_ylim(0, 1.25 * max(seen.max(), told.max()))
    axes.legend(frameon=False, fontsize="small", labelcolor=QUIET, loc="upper right", ncols=2)


def _dwell(axes: Any, seen: list[Any], told: list[Any]) -> None:
    """Quartiles and mean of each state's runs, on the likeliest path and on simulated ones."""
    states = [k for k in range(len(seen)) if len(seen[k]) or len(told[k])]
    for shift, lists, colour, label in (
        (-0.2, seen, COLOURS[0], "likeliest path"),
        (0.2, told, COLOURS[1], "simulated"),
    ):
        chosen = [(k, numbers(lists[k])) for k in states if len(lists[k])]
        at = [k + shift for k, _ in chosen]
        low, middle, high = (np.array([np.quantile(x, q) for _, x in chosen]) for q in (0.25, 0.5, 0.75))
        axes.bar(at, high - low, 0.3, low, color=colour, alpha=0.35)
        axes.plot(at, middle, "_", color=colour, markersize=12, markeredgewidth=2, label=label)
        axes.plot(at, [x.mean() for _, x in chosen], "o", color=colour, markersize=4)
    axes.set(title="how long states last", xlabel="state", ylabel="steps: quartiles, mean as a dot")
    axes.set_xticks(states)
    axes.set_ylim(0, 1.25 * axes.get_ylim()[1])
    axes.legend(frameon=False, fontsize="small", labelcolor=QUIET, loc="upper right", ncols=2)
