"""How well a model fits: learning curves, surprise, information criteria."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from statespan.plots.style import COLOURS, HAIR, QUIET, Across, legend, new, table

UNUSUAL = 0.99


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
    axes = new(axes)
    if log:
        axes.set_yscale("log")
    for i, (name, points) in enumerate(curves.items()):
        xs, ys = zip(*points, strict=True) if points else ((), ())
        mark = "o" if len(points) < 2 else None
        axes.plot(xs, ys, color=COLOURS[i % len(COLOURS)], linewidth=1.6, marker=mark, label=name)
    axes.grid(color=HAIR, linewidth=0.8)
    axes.set(xlabel=across, ylabel=up)
    if curves:
        legend(axes, beside=len(curves) > 4)
    return axes


def plot_surprise(surprise: Any, axes: Any = None, times: Any = None, mark: float = UNUSUAL) -> Any:
    """Draw how surprising each step was, -log p(y_t | y_<t) in nats; the most surprising ones are marked.

    Args:
        surprise: (T,) of one sequence.
        axes: matplotlib axes to draw on; None makes new ones.
        times: of the steps, numbers or dates.
        mark: the share of steps that are not marked.

    Returns:
        The axes.

    Example:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> plot_surprise([0.3, 0.2, 4.0, 0.1]).get_ylabel()
        'surprise (nats)'
    """
    values = table(surprise)[:, 0]
    across, axes = Across.of(times, len(values)), new(axes)
    finite = values[np.isfinite(values)]
    limit = float(np.quantile(finite, mark)) if len(finite) else 0.0
    axes.plot(across.at, values, color=COLOURS[0], linewidth=0.9, marker="o" if len(values) == 1 else None)
    unusual = values > limit
    axes.axhline(limit, color=QUIET, linewidth=0.8, linestyle=(0, (2, 3)))
    axes.plot(across.at[unusual], values[unusual], "o", color=COLOURS[2], markersize=4)
    axes.annotate(
        f"{100 * mark:g} % of steps lie below",
        (1, limit),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        fontsize="small",
        color=QUIET,
    )
    axes.grid(axis="y", color=HAIR, linewidth=0.8)
    axes.set_ylabel("surprise (nats)")
    across.dress(axes)
    return axes


def plot_criteria(rows: Sequence[Mapping[str, Any]], axes: Any = None) -> Any:
    """Draw AIC and BIC of several models, lowest marked; across is the number of states, or the model's name.

    Args:
        rows: of each model `AIC` and `BIC`, in large or small letters (`ICL` is drawn too), and `states` or `model`.
        axes: matplotlib axes to draw on; None makes new ones.

    Returns:
        The axes.

    Example:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> rows = [{"states": 2, "AIC": 12.0, "BIC": 14.0}, {"states": 3, "AIC": 10.0, "BIC": 15.0}]
        >>> plot_criteria(rows).get_xlabel()
        'states'
    """
    axes = new(axes)
    rows = [{key.upper() if key in ("aic", "bic", "icl") else key: value for key, value in row.items()} for row in rows]
    counted = all("states" in row for row in rows) and len({row["states"] for row in rows}) == len(rows)
    at = [row["states"] for row in rows] if counted else list(range(len(rows)))
    for i, name in enumerate(name for name in ("AIC", "BIC", "ICL") if all(name in row for row in rows)):
        values = [row[name] for row in rows]
        axes.plot(at, values, color=COLOURS[i], linewidth=1.4, marker="o", markersize=4, label=name)
        best = int(np.nanargmin(values))
        axes.plot(at[best], values[best], "o", markersize=11, markerfacecolor="none", color=COLOURS[i])
    if counted:
        axes.set_xlabel("states")
    else:
        axes.set_xlabel("model")
    axes.set_xticks(at, [str(a) for a in at] if counted else [str(row.get("model", i)) for i, row in enumerate(rows)])
    axes.grid(axis="y", color=HAIR, linewidth=0.8)
    axes.set_ylabel("criterion (lower is better)")
    axes.margins(x=0.08)
    legend(axes, beside=False)
    return axes
