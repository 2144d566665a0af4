"""What a model says: how its states follow each other, and what each emits."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from statespan.errors import StatespanError
from statespan.part import seeded
from statespan.plots.style import (
    BANDS,
    COLOURS,
    HAIR,
    INK,
    LINES,
    QUIET,
    WIDTH,
    Array,
    heat,
    named,
    new,
    numbers,
    plain,
    spoken,
    state_legend,
)
from statespan.verbs import ask

LEAST_ARROW = 0.005
BEND = 0.16
MOST_SYMBOLS = 12
"""With more symbols than this only the likeliest are drawn."""
POINTS = 400


def plot_transitions(model: Any, axes: Any = None, names: Sequence[str] | None = None) -> Any:
    """Draw how states follow each other: a node a state, an arrow as wide as its probability; above eight a heat map.

    A node's area is the share of time spent there in the long run. Arrows below half a percent are left out.

    Args:
        model: a model whose transition is one matrix.
        axes: matplotlib axes to draw on; None makes new ones.
        names: what to call the states; their numbers by custom.

    Returns:
        The axes.

    Raises:
        StatespanError: the transition is no matrix.

    Example:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> import statespan as ss
        >>> model = ss.hmm(transition=[[0.9, 0.1], [0.2, 0.8]], emission=ss.Categorical(3), seed=0)
        >>> sorted(text.get_text() for text in plot_transitions(model).texts)
        ['0', '0.10', '0.20', '0.80', '0.90', '1']
    """
    table = matrix(model)
    if len(table) > BANDS:
        axes = new(axes)
        heat(table.T, axes, "next state", "probability")
        axes.set_xlabel("state")
        return axes
    if axes is None:
        import matplotlib.pyplot as plt

        _, axes = plt.subplots(figsize=(4.4, 4.4), layout="constrained")
    axes.set_aspect("equal")
    axes.set_axis_off()
    count, share = len(table), long_run(table)
    angles = np.pi / 2 - 2 * np.pi * np.arange(count) / count if count > 2 else np.array([np.pi, 0.0])[:count]
    at = np.stack([np.cos(angles), np.sin(angles)], 1)
    radius = 0.12 + 0.2 * np.sqrt(share) * min(1.0, 4 / count)
    for i in range(count):
        for j in range(count):
            if table[i, j] >= LEAST_ARROW:
                _loop(axes, at[i], radius[i], i, table[i, i]) if i == j else _arrow(axes, at, radius, i, j, table[i, j])
    from matplotlib.patches import Circle

    for k in range(count):
        axes.add_patch(Circle(at[k], radius[k], facecolor=COLOURS[k], edgecolor="white", linewidth=1.5, zorder=3))
        name = names[k] if names else str(k)
        axes.text(*at[k], name, ha="center", va="center", color="white", weight="bold", zorder=4)
    axes.set(xlim=(-1.75, 1.75), ylim=(-1.75, 1.75) if count > 2 else (-0.95, 0.95))
    return axes


def plot_emissions(
    model: Any,
    y: Any = None,
    axes: Any = None,
    columns: Sequence[str] | None = None,
    words: Mapping[str, Sequence[str]] | None = None,
    share: Any = None,
) -> Any:
    """Draw what each state emits: a density a state and column over the data's histogram, or bars of symbols.

    Densities are weighted by the states' shares, so that their sum, the dashed line, is what the model expects of the
    histogram.

    Args:
        model: a model of finite states.
        y: one sequence, (T,) or (T, C), or a list of them, for the histogram and the states' shares; NaN missing.
        axes: matplotlib axes for the first column; None makes new ones for every column.
        columns: what the columns are called.
        words: of a column of symbols, what they are called.
        share: (K,) the states' shares; by custom those in y, without y in the long run of the transition.

    Returns:
        The axes of the first column.

    Raises:
        StatespanError: what is emitted depends on inputs, or the states are not finite.

    Example:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> import statespan as ss
        >>> plot_emissions(ss.hmm(states=2, emission=ss.Gaussian(dim=1), seed=0), [0.1, 0.4, -0.2]).get_xlabel()
        'y'
    """
    emission = model.emission
    if getattr(emission, "states", None) is None or getattr(emission, "lags", 0):
        raise StatespanError(f"{type(emission).__name__} is not of states alone; its emissions cannot be drawn")
    weights = _shares(model, y) if share is None else np.asarray(share)
    parts = _columns(emission)
    rows = _side_by_side(min(len(parts), LINES)) if axes is None else [new(axes)]
    _emitted(emission, weights, _pooled(model, y), rows, named(columns, len(parts)), words)
    state_legend(rows[0], len(weights) if len(weights) <= BANDS else 0)
    return rows[0]


def plot_model(
    model: Any,
    y: Any = None,
    columns: Sequence[str] | None = None,
    words: Mapping[str, Sequence[str]] | None = None,
) -> Any:
    """Draw a fitted model on one page: its transitions beside its emissions; of real states, the dynamics alone.

    Args:
        model: a state space.
        y: one sequence, (T,) or (T, C), or a list of them, for the histogram and the states' shares.
        columns: what the columns are called.
        words: of a column of symbols, what they are called.

    Returns:
        The axes of the first panel.

    Example:
        >>> import matplotlib; matplotlib.use("Agg")
        >>> import statespan as ss
        >>> plot_model(ss.hmm(states=2, emission=ss.Gaussian(dim=2), seed=0)).figure.axes.__len__()
        3
    """
    import matplotlib.pyplot as plt

    if not hasattr(model.emission, "states"):
        axes = new(None)
        dynamics = numbers(model.transition.matrix)  # row i makes the new dimension i
        heat(dynamics, axes, "from dimension", "dynamics")
        axes.set_xlabel("to dimension")
        axes.set_xticks(range(len(dynamics)))
        axes.set_yticks(range(len(dynamics)))
        return axes
    dim = min(model.emission.event.dim or 1, LINES)
    height = max(3.4, 1.7 * dim)
    figure = plt.figure(figsize=(WIDTH + 1, height), layout="constrained")
    grid = figure.add_gridspec(dim, 2, width_ratios=[1, 1.25])
    left = figure.add_subplot(grid[:, 0])
    rows = [plain(figure.add_subplot(grid[c, 1])) for c in range(dim)]
    plot_transitions(model, left)
    _emitted(
        model.emission, _shares(model, y), _pooled(model, y), rows, named(columns, model.emission.event.dim or 1), words
    )
    return left


# ------------------------------------------------------------------------------------------------- pieces


def of_states(model: Any) -> bool:
    """Whether a model moves by one matrix, and what it emits depends on its states alone: `plot_model` says it all."""
    probs, emission = getattr(model.transition, "probs", None), model.emission
    square = isinstance(probs, torch.Tensor) and probs.dim() == 2
    return square and hasattr(emission, "states") and not (getattr(emission, "lags", 0) or emission.takes_inputs)


def matrix(model: Any) -> Array:
    """p(next = j | now = i), (K, K)."""
    probs = getattr(model.transition, "probs", None)
    if probs is None or not isinstance(probs, torch.Tensor) or probs.dim() != 2:
        raise StatespanError(f"{type(model.transition).__name__} is no single matrix; its transitions cannot be drawn")
    return numbers(probs)


def long_run(table: Array) -> Array:
    """The share of time in each state in the long run: the average of the distribution over many steps."""
    lazy = 0.5 * (table + np.eye(len(table)))  # the same long run, without its oscillations
    return np.full(len(table), 1 / len(table)) @ np.linalg.matrix_power(lazy, 1 << 16)


def _shares(model: Any, y: Any) -> Array:
    """Of the states: in y, else in the long run where the transition is a matrix, else alike."""
    states = model.emission.states
    if y is not None:
        probs = model.smooth(y).values["probs"]
        return numbers(torch.cat(list(probs)) if isinstance(probs, list) else probs).reshape(-1, states).mean(0)
    if isinstance(getattr(model.transition, "probs", None), torch.Tensor) and model.transition.states == states:
        return long_run(matrix(model))
    return np.full(states, 1 / states)


def _pooled(model: Any, y: Any) -> Array | None:
    """All the steps of all sequences together, (rows, C), NaN missing."""
    if y is None:
        return None
    data, _ = ask(model, y)
    values: Any = data.y if model.emission.event.rank else data.y[..., None]  # type: ignore[index]
    array, present = numbers(values), data.present
    if present is not None:
        there = present if present.dim() == 3 else present[..., None]
        array = np.where(there.cpu().numpy(), array, np.nan)
    return array.reshape(-1, array.shape[-1])


def _sure(emission: Any) -> torch.Tensor:
    """(K, K): sure of each state in turn."""
    like = next(iter(emission.parameters()), torch.zeros((), dtype=torch.float64))
    return torch.eye(emission.states, dtype=like.dtype, device=like.device)


def _columns(emission: Any) -> list[tuple[Any, int]]:
    """Of every column the emission that it belongs to, and its place there; several side by side come one by one."""
    parts = getattr(emission, "emissions", [emission])
    return [(part, c) for part in parts for c in range(part.event.dim or 1)]


def _emitted(
    emission: Any, weights: Array, values: Array | None, rows: list[Any], names: list[str], words: Any
) -> None:
    """A panel a column: bars of symbols, or densities."""
    for at, ((part, c), on) in enumerate(zip(_columns(emission), rows, strict=False)):
        seen = None if values is None else values[:, at]
        if part.event.symbols is not None:
            _symbols(part, weights, seen, on, names[at], spoken(words, names[at]))
        else:
            _densities(part, c, weights, seen, on, names[at])


def _side_by_side(count: int) -> list[Any]:
    import matplotlib.pyplot as plt

    across = min(count, 3)
    down = -(-count // across)
    size = (max(4.6, 2.9 * across), 2.8 * down)
    _, rows = plt.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
    for axes in rows.flat[count:]:
        axes.set_axis_off()
    return [plain(axes) for axes in rows.flat[:count]]


def _densities(emission: Any, c: int, weights: Array, values: Array | None, axes: Any, name: str) -> None:
    """One column's density in each state, weighted, and their sum; every other column is summed out."""
    seen = None if values is None else values[np.isfinite(values)]
    grid, discrete = _grid(emission, c, seen)
    dim = emission.event.dim or 1
    like = _sure(emission)
    y = like.new_zeros(len(grid), 1, dim)
    y[:, 0, c] = torch.as_tensor(grid)
    there = None
    if dim > 1:
        there = torch.zeros(len(grid), 1, dim, dtype=torch.bool)
        there[..., c] = True
    with torch.no_grad():
        log = emission.log_likelihood(y, None, there, emission.constants())
    density = np.exp(numbers(log)[:, 0]) * weights
    if seen is not None and len(seen):
        if discrete:
            heights = np.array([(seen == v).mean() for v in grid])
            axes.bar(grid, heights, 0.9, color=HAIR)
        else:
            axes.hist(seen, bins=min(60, max(8, int(len(seen) ** 0.5))), density=True, color=HAIR)
    style = {"drawstyle": "steps-mid"} if discrete else {}
    for k, each in enumerate(density.T):
        axes.plot(grid, each, color=COLOURS[k % len(COLOURS)], linewidth=1.5, label=f"state {k}", **style)
    axes.plot(grid, density.sum(1), color=INK, linewidth=0.9, linestyle=(0, (3, 2)), **style)
    axes.set_ylim(bottom=0)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set(xlabel=name, ylabel="probability" if discrete else "density")


def _grid(emission: Any, c: int, seen: Array | None) -> tuple[Array, bool]:
    """Where to draw a density: over the data and the states' means, at whole numbers for counts."""
    with torch.no_grad(), seeded(0):
        each = emission.mixture(_sure(emission), None, emission.constants())
        draws = numbers(each.sample(torch.Size([1000])))[..., c]
    support = each.support
    low, high = float(np.quantile(draws, 0.001, 0).min()), float(np.quantile(draws, 0.999, 0).max())
    if seen is not None and len(seen):
        spread = 0.08 * (seen.max() - seen.min() or 1.0)
        low, high = float(seen.min() - spread), float(seen.max() + spread)
    if bool(getattr(support, "is_discrete", False)):
        return np.arange(max(0, int(np.floor(low))), int(np.ceil(high)) + 1).astype(np.float64), True
    grid = np.linspace(low, high, POINTS)
    inside = support.check(torch.as_tensor(grid)[:, None].expand(-1, emission.event.dim or 1))
    return grid[inside.reshape(len(grid), -1).all(1).numpy()], False


def _symbols(emission: Any, weights: Array, values: Array | None, axes: Any, name: str, words: Any) -> None:
    """(K, V) as a group of bars a symbol, a bar a state; beside them how often the data have it."""
    with torch.no_grad():
        probs = numbers(emission.mixture(_sure(emission), None, emission.constants()).probs)
    order = np.argsort(-(weights @ probs), kind="stable")[:MOST_SYMBOLS]
    if probs.shape[1] <= MOST_SYMBOLS:
        order = np.arange(probs.shape[1])
    states = len(probs)
    at, width = np.arange(len(order)), 0.8 / states
    if values is not None:
        counts = np.bincount(values[np.isfinite(values)].astype(int), minlength=probs.shape[1])
        axes.bar(at, (counts / max(counts.sum(), 1))[order], 0.92, color=HAIR, label="data")
    for k in range(states):
        axes.bar(at + (k - (states - 1) / 2) * width, probs[k, order], 0.92 * width, color=COLOURS[k % len(COLOURS)])
    labels = [str(words[v]) if words else str(v) for v in order]
    slanted = sum(map(len, labels)) > 48
    axes.set_xticks(at, labels, rotation=35 if slanted else 0, ha="right" if slanted else "center")
    axes.set(ylabel="probability", xlabel=name)
    state_legend(axes, states if states <= BANDS else 0)


def _arrow(axes: Any, at: Array, radius: Array, i: int, j: int, p: float) -> None:
    """From node i to node j, bent, so that the arrow back is another; its number stands nearer to where it leaves."""
    way = at[j] - at[i]
    length = float(np.hypot(*way))
    unit, side = way / length, np.array([way[1], -way[0]]) / length
    tilt = np.arctan(2 * BEND)
    start = at[i] + (radius[i] + 0.02) * (np.cos(tilt) * unit + np.sin(tilt) * side)
    end = at[j] - (radius[j] + 0.03) * (np.cos(tilt) * unit - np.sin(tilt) * side)
    middle = 0.5 * (start + end) + BEND * float(np.hypot(*(end - start))) * side
    _draw_arrow(axes, [start, middle, middle, end], i, p)
    _label(axes, _along([start, middle, middle, end], 0.24) + 0.08 * side, p)


def _loop(axes: Any, at: Array, radius: float, i: int, p: float) -> None:
    """From a node to itself, outwards."""
    out = at / max(float(np.hypot(*at)), 1e-9)
    side = np.array([out[1], -out[0]])
    start, end = (at + (radius + 0.02) * (0.88 * out + sign * 0.475 * side) for sign in (1, -1))
    far, wide = at + (radius + 0.42) * out, 0.3 * side
    _draw_arrow(axes, [start, far + wide, far - wide, end], i, p)
    _label(axes, at + (radius + 0.45 + 0.1 * abs(out[0])) * out, p)  # a number is wider than high


def _along(points: list[Array], t: float) -> Array:
    """The point at t of a cubic Bezier curve."""
    weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3)
    return sum(w * p for w, p in zip(weights, points, strict=True))  # type: ignore[return-value]


def _draw_arrow(axes: Any, points: list[Array], i: int, p: float) -> None:
    """Along a cubic Bezier curve, as wide as the probability is large."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    width = 0.7 + 3.0 * p
    axes.add_patch(
        FancyArrowPatch(
            path=Path(np.stack(points), [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]),
            arrowstyle=f"-|>,head_length={4 + 1.1 * width},head_width={2 + 0.5 * width}",
            linewidth=width,
            color=COLOURS[i],
            alpha=0.85,
            capstyle="butt",
            joinstyle="miter",
            zorder=2,
        )
    )


def _label(axes: Any, at: Array, p: float) -> None:
    axes.text(
        *at,
        f"{p:.2f}",
        ha="center",
        va="center",
        fontsize="small",
        color=QUIET,
        zorder=5,
        bbox={"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )
