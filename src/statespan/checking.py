"""Whether a model fits: pseudo-residuals, occupancy, how long states last, surprise."""

import math
from functools import singledispatch
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
)

from statespan.errors import StatespanError
from statespan.method import run, total
from statespan.methods import method_for
from statespan.part import seeded
from statespan.sequences import Sequences
from statespan.tree import tree_map
from statespan.verbs import ask, simulate

MOST_COUNTS = 2000
"""Counts above this are not summed up to, but drawn."""
LARGEST_RESIDUAL = 8.0
"""Residuals are cut here: a normal deviate beyond it, one in 10^15, is rounding."""


class Check(NamedTuple):
    """How a model and a data set agree; print it, plot it, or read the parts.

    Were the model true, pseudo-residuals would be standard normal and independent (those of discrete observations
    nearly so).

    Args:
        residuals: (n, D), mid-residuals z with Phi(z) halfway between P(Y < y_t | y_<t) and P(Y <= y_t | y_<t), in the
            order of the sequences; NaN where nothing is observed. Symbols are one column, taken in their order.
        lower: the same of P(Y < y_t), for discrete observations; of continuous ones equal to `residuals`.
        upper: the same of P(Y <= y_t).
        sequence: (n,) the sequence of each row.
        exact: whether the distribution functions are known, or drawn.
        occupancy: the share of steps in each state in hindsight, and the share that the model expects; (K,) each, or
            None for a state that is not one of K.
        dwell: how long states lasted, on the likeliest path and on simulated ones: two lists of K tensors of lengths;
            or None.
        surprise: mean of -log p(y_t | y_<t) over observed steps, in nats.
        expected_surprise: its mean over data sets simulated from the model, and its standard deviation.
    """

    residuals: Tensor
    lower: Tensor
    upper: Tensor
    sequence: Tensor
    exact: bool
    occupancy: tuple[Tensor, Tensor] | None
    dwell: tuple[list[Tensor], list[Tensor]] | None
    surprise: float
    expected_surprise: tuple[float, float]

    def autocorrelation(self, lags: int = 20) -> Tensor:
        """Of the residuals, within sequences: (lags, D), from lag 1 on; +- 1.96 / sqrt(n) is chance."""
        z = self.residuals - self.residuals.nanmean(0)
        variance = z.square().nanmean(0)
        rows = []
        for lag in range(1, lags + 1):
            pairs = z[lag:] * z[:-lag]
            pairs = torch.where((self.sequence[lag:] == self.sequence[:-lag])[:, None], pairs, torch.nan)
            rows.append(pairs.nansum(0) / (~z.isnan()).sum(0) / variance)
        return torch.stack(rows)

    def frame(self) -> dict[str, list[Any]]:
        """Columns for a data frame, one row a coordinate: moments of the residuals, which should be 0, 1, 0 and 3."""
        columns: dict[str, list[Any]] = {
            n: [] for n in ("column", "n", "mean", "deviation", "skewness", "kurtosis", "acf1")
        }
        first = (
            self.autocorrelation(1)[0] if len(self.residuals) > 1 else self.residuals.new_zeros(self.residuals.shape[1])
        )
        for d, column in enumerate(self.residuals.T):
            z = column[~column.isnan()]
            centred, spread = z - z.mean(), z.std(unbiased=False)
            moments = [float((centred**p).mean() / spread**p) for p in (3, 4)]
            row = (d, len(z), float(z.mean()), float(spread), *moments, float(first[d]))
            for cells, cell in zip(columns.values(), row, strict=True):
                cells.append(cell)
        return columns

    def __str__(self) -> str:
        """A few lines."""
        expected, deviation = self.expected_surprise
        lines = [
            f"surprise {self.surprise:.4f} nats a step; the model expects {expected:.4f} +- {deviation:.4f}",
            "pseudo-residuals (0, 1, 0 and 3 if the model is true):",
        ]
        frame = self.frame()
        for row in zip(*frame.values(), strict=True):
            lines.append(
                f"  column {row[0]}: n {row[1]}, mean {row[2]:.3f}, deviation {row[3]:.3f}, skewness {row[4]:.3f}, "
                f"kurtosis {row[5]:.3f}, autocorrelation at lag 1 {row[6]:.3f}"
            )
        if self.occupancy is not None:
            for k, (seen, told) in enumerate(zip(*(x.tolist() for x in self.occupancy), strict=True)):
                lines.append(f"  state {k}: {seen:.1%} of the steps, {told:.1%} expected")
        return "\n".join(lines)

    def plot(self, column: int = 0) -> Any:
        """Draw the residuals in time, their quantiles, histogram and autocorrelation, occupancy and dwell times.

        Args:
            column: which coordinate.

        Returns:
            The matplotlib figure.
        """
        from statespan.plots.checking import plot_check

        return plot_check(self, column)


def check(
    model: Any,
    y: Any,
    simulations: int = 20,
    draws: int = 2000,
    seed: int | None = 0,
    lengths: Any = None,
    inputs: Any = None,
) -> Check:
    r"""Check a fitted model against data, those it was fitted to or others held out.

    Pseudo-residuals are Phi^-1(P(Y <= y_t | y_<t)), the forecast kind, a column a coordinate by its own marginal. Where
    no distribution function is known, `draws` from the forecast stand in for it.

    Args:
        model: a state space.
        y: the sequences.
        simulations: data sets to simulate, of the same lengths, for what the model expects.
        draws: from each forecast, where they are needed.
        seed: makes it repeatable.
        lengths: (N,) lengths of a padded batch.
        inputs: inputs, the forms of y.

    Returns:
        A `Check`: `print(it)`, `.plot()`, `.frame()`.

    Raises:
        StatespanError: an observation that the model makes impossible, or nothing to simulate.

    Source:
        Zucchini, MacDonald and Langrock, Hidden Markov Models for Time Series 2016, chapter 6; Rosenblatt 1952.

    Example:
        >>> import statespan as ss
        >>> found = check(ss.hmm(states=2, emission=ss.Categorical(3), seed=0), [0, 2, 1, 1])
        >>> found.residuals.shape
        torch.Size([4, 1])
    """
    if simulations < 2:
        raise StatespanError(f"check(simulations={simulations}): use at least 2")
    data, _ = ask(model, y, lengths, inputs)
    method = method_for(model)
    with torch.no_grad(), seeded(seed):
        constants = method.constants(model)
        trace = run(model, method, data, None, ("predicted", "log_prob"), constants)
        assert trace.log_prob is not None
        total(trace.log_prob)
        below, upto, exact = _ranks(method.emit(model, constants, trace.predicted, data.u), data.y, draws)
        there = data.within if data.present is None else data.present
        seen = there if there.dim() == 2 else there.any(-1)
        mask = (there if there.dim() == below.dim() else there[..., None]).expand_as(below)
        flat = [torch.where(mask, x, torch.nan).transpose(0, 1)[data.within.T] for x in (below, upto)]
        steps = float(seen.sum().clamp_min(1))
        surprise = -float(trace.log_prob.sum()) / steps
        told, paths = _simulated(model, method, constants, data, simulations, steps)
        occupancy = dwell = None
        if hasattr(trace.predicted.state, "probs"):
            occupancy, dwell = _states(model, method, constants, data, paths)
    owner = torch.arange(data.shape[1])[:, None].expand(data.within.T.shape)[data.within.T]
    lower, upper = (_normal(x) for x in flat)
    middle = _normal((flat[0] + flat[1]) / 2)
    return Check(middle, lower, upper, owner, exact, occupancy, dwell, surprise, told)


def _normal(p: Tensor) -> Tensor:
    return torch.special.ndtri(p).clamp(-LARGEST_RESIDUAL, LARGEST_RESIDUAL)


def _simulated(
    model: Any, method: Any, constants: Any, data: Sequences, n: int, steps: float
) -> tuple[tuple[float, float], Tensor | None]:
    """The surprise of n simulated data sets, mean and deviation, and their states (T, n B) where these are integers."""
    length, batch = data.shape
    many = data.each(lambda x, axis: x.repeat_interleave(n, axis))
    drawn = list(simulate(model, method, constants, None, length, batch * n, many.u))
    values = torch.stack([d.y for d in drawn])
    log_prob = run(model, method, many._replace(y=values), constants=constants).log_prob
    assert log_prob is not None
    each = -log_prob.sum(0).view(batch, n).sum(0) / steps
    states = [d.state for d in drawn]
    whole = isinstance(states[0], Tensor) and not states[0].is_floating_point()
    return (float(each.mean()), float(each.std())), torch.stack(states) if whole else None


def _states(model: Any, method: Any, constants: Any, data: Sequences, paths: Tensor | None) -> tuple[Any, Any]:
    """Occupancy in hindsight and as the model expects it, and dwell times on the likeliest path and simulated ones."""
    from statespan.method import prepare

    prepared = prepare(model, method, data, constants)
    smoothed = method.public(model, method.smooth(model, prepared, None, data.shape)).probs
    blank = Sequences(u=data.u, observed=torch.zeros_like(data.within), lengths=data.lengths)
    marginal = method.public(model, run(model, method, blank, None, ("predicted",), constants).predicted).probs
    inside = data.within[..., None]
    count = data.within.sum()
    occupancy = tuple((torch.where(inside, x, 0.0).sum((0, 1)) / count) for x in (smoothed, marginal))
    if paths is None:
        return occupancy, None
    best = method.decode(model, constants, data, 1)[0][:, :, 0]
    states = smoothed.shape[-1]
    n = paths.shape[1] // data.shape[1]
    within = data.within.repeat_interleave(n, 1)
    return occupancy, (_runs(best, data.within, states), _runs(paths, within, states))


def _runs(paths: Tensor, within: Tensor, states: int) -> list[Tensor]:
    """Lengths of the runs of each state in paths (T, B), those cut by an end too."""
    flat = torch.where(within, paths, -1).T
    flat = torch.cat([flat, flat.new_full((len(flat), 1), -1)], 1).reshape(-1)  # an end between sequences
    starts = torch.cat([flat.new_ones(1, dtype=torch.bool), flat[1:] != flat[:-1]]).nonzero()[:, 0]
    lengths = torch.diff(starts, append=starts.new_tensor([len(flat)]))
    return [lengths[flat[starts] == k] for k in range(states)]


# ------------------------------------------------------------------------------------ distribution functions


@singledispatch
def ranks(distribution: Any, y: Tensor) -> tuple[Tensor, Tensor] | None:
    """P(Y < y) and P(Y <= y) of every coordinate, (..., D), or None where they are not known.

    By custom the distribution's own `cdf`; of a discrete one the sum of its probabilities.
    """
    try:
        if getattr(distribution.support, "is_discrete", False):
            return _summed(distribution, y)
        upto = distribution.cdf(y)
    except NotImplementedError:
        return None
    return upto, upto


def _summed(distribution: Any, y: Tensor) -> tuple[Tensor, Tensor] | None:
    top = int(y.max()) if y.numel() else 0
    if top > MOST_COUNTS or bool((y < 0).any()):
        return None
    below = here = torch.zeros(())
    for value in range(top + 1):
        p = distribution.log_prob(torch.full_like(y, value)).exp()
        below = below + torch.where(y > value, p, 0.0)
        here = here + torch.where(y == value, p, 0.0)
    return below, below + here


@ranks.register(Categorical)
def _(distribution: Categorical, y: Tensor) -> tuple[Tensor, Tensor]:
    upto = distribution.probs.cumsum(-1).expand(*y.shape, -1).gather(-1, y[..., None])
    return upto - distribution.probs.expand(*y.shape, -1).gather(-1, y[..., None]), upto


@ranks.register(MultivariateNormal)
def _(distribution: MultivariateNormal, y: Tensor) -> tuple[Tensor, Tensor]:
    upto = torch.special.ndtr((y - distribution.mean) / distribution.variance.sqrt())
    return upto, upto


@ranks.register(Independent)
def _(distribution: Independent, y: Tensor) -> tuple[Tensor, Tensor] | None:
    return ranks(distribution.base_dist, y)


@ranks.register(MixtureSameFamily)
def _(distribution: MixtureSameFamily, y: Tensor) -> tuple[Tensor, Tensor] | None:
    event = len(distribution.event_shape)
    found = ranks(distribution.component_distribution, y.unsqueeze(-1 - event))
    if found is None or event > 1:
        return None
    weights = distribution.mixture_distribution.probs
    if event == 0:
        return (found[0] * weights).sum(-1), (found[1] * weights).sum(-1)
    return (found[0] * weights[..., None]).sum(-2), (found[1] * weights[..., None]).sum(-2)


def _ranks(distribution: Distribution, y: Tensor, draws: int) -> tuple[Tensor, Tensor, bool]:
    """P(Y < y) and P(Y <= y), (T, B, D), and whether they are exact; drawn ones are kept inside (0, 1)."""
    found = ranks(distribution, y)
    exact = found is not None
    if found is None:
        low, high = (y.new_zeros(y.shape, dtype=torch.float64) for _ in range(2))
        for _ in range(draws):
            sample = distribution.sample()
            low, high = low + (sample < y), high + (sample <= y)
        found = (low + 0.5) / (draws + 1), (high + 0.5) / (draws + 1)
    return (*tree_map(lambda x: x if x.dim() == 3 else x[..., None], found), exact)


def lag_band(n: int) -> float:
    """What chance makes of an autocorrelation of n residuals, 95 times in 100."""
    return 1.96 / math.sqrt(max(n, 1))
