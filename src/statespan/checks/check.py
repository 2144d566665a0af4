"""Whether a model fits: residuals and their tests, occupancy, how long states last, surprise."""

import math
from collections.abc import Sequence
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

from statespan.checks.significance import Cumulated, chi_square_quantile, cusum, cusum_squares, ljung_box
from statespan.errors import StatespanError
from statespan.method import Trace, run, total
from statespan.methods import method_for
from statespan.part import seeded
from statespan.parts.linear import inverse, lower
from statespan.sequences import Sequences, read
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
        surprise: mean of -log p(y_t | y_<t) over observed steps, in nats; from a diffuse start only over those that
            could be forecast.
        expected_surprise: what the model expects of it, and its standard deviation: by formula for a linear Gaussian
            model, else over data sets simulated from the model.
        innovations: (n, D) where forecasts are joint normals, y_t less its forecast over a root of the covariance: were
            the model true, independent standard normals in every column. NaN where missing, or the start is diffuse.
        nis: (n,) the normalised innovation squared, their sum of squares: chi-square with `freedom`.
        freedom: (n,) how much of each observation is there.
        nees: (n,) the normalised estimation error squared of the filtered state, where true states were given:
            chi-square with `state_dim` degrees of freedom.
        occupancy_deviation: (K,) the standard deviation over simulated data sets of the share of steps in each state.
        state_dim: how many numbers the state is, where true states were given.
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
    innovations: Tensor | None = None
    nis: Tensor | None = None
    freedom: Tensor | None = None
    nees: Tensor | None = None
    occupancy_deviation: Tensor | None = None
    state_dim: int = 0

    def verdicts(self, names: Sequence[str] | None = None) -> dict[str, list[Any]]:
        """Columns for a data frame, one row a test: where its value should lie, its p-value, and what that means.

        The verdicts go by p-values that are corrected for the number of tests (Holm).

        Args:
            names: of the observed columns; None: 0, 1, ...
        """
        from statespan.checks.verdicts import verdicts

        return verdicts(self, names)

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

    def ljung_box(self, lags: int | None = None, fitted: int = 0) -> tuple[Tensor, Tensor]:
        """The Ljung-Box statistics of the residuals for 1, 2 ... lags and their p-values, (lags, D) each.

        Args:
            lags: how many; None: 10, or a fifth of the steps.
            fitted: how many parameters of an ARMA process were fitted.
        """
        count = (~self.residuals.isnan()).sum(0)
        lags = max(1, min(10, int(count.min()) // 5)) if lags is None else lags
        return ljung_box(self.autocorrelation(lags), count, fitted)

    def cusum(self, column: int = 0, sequence: int = 0, squares: bool = False, level: float = 0.95) -> Cumulated:
        """The cumulated sum of one sequence's residuals, or of their squares, and the lines it should stay between.

        Args:
            column: which coordinate.
            sequence: which sequence.
            squares: of squares, which shows changes of variance rather than of level.
            level: 0.9, 0.95 or 0.99.

        Source:
            Brown, Durbin and Evans 1975.
        """
        values = self.residuals[self.sequence == sequence, column]
        return (cusum_squares if squares else cusum)(values, level)

    def nis_band(self, level: float = 0.95) -> tuple[float, float]:
        """Between which the mean of `nis` lies, were the model true, with this probability.

        Args:
            level: a probability.

        Raises:
            StatespanError: the model's forecasts are no normals.

        Source:
            Bar-Shalom, Li and Kirubarajan, Estimation with Applications to Tracking and Navigation 2001, section 5.4.
        """
        if self.nis is None or self.freedom is None:
            raise StatespanError("NIS is of models whose forecasts are normal; this check has none")
        there = ~self.nis.isnan()
        freedom, count = float(self.freedom[there].sum()), float(there.sum())
        low, high = (chi_square_quantile(p, freedom) / count for p in ((1 - level) / 2, (1 + level) / 2))
        return low, high

    def tests(self, lags: int | None = None, fitted: int = 0) -> dict[str, list[Any]]:
        """Columns for a data frame, one row a coordinate and test: statistic, p-value.

        `ljung-box` sees what is left of serial correlation, `jarque-bera` residuals that are not normal.

        Args:
            lags: of Ljung-Box; None: 10, or a fifth of the steps.
            fitted: how many parameters of an ARMA process were fitted.

        Source:
            Ljung and Box 1978; Jarque and Bera 1980.
        """
        statistic, tail = self.ljung_box(lags, fitted)
        frame = self.frame()
        columns: dict[str, list[Any]] = {"column": [], "test": [], "statistic": [], "p": []}
        for d in range(self.residuals.shape[1]):
            normal = frame["n"][d] / 6 * (frame["skewness"][d] ** 2 + (frame["kurtosis"][d] - 3) ** 2 / 4)
            box = float(statistic[-1, d]), float(tail[-1, d])
            for row in ((d, f"ljung-box {len(statistic)}", *box), (d, "jarque-bera", normal, math.exp(-normal / 2))):
                for cells, cell in zip(columns.values(), row, strict=True):
                    cells.append(cell)
        return columns

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
        """A line a test."""
        from statespan.checks.verdicts import conclusion

        found = self.verdicts()
        rows = zip(
            *(found[name] for name in ("test", "of", "value", "low", "high", "p", "corrected", "verdict", "means")),
            strict=True,
        )
        lines = [
            f"{test}{f' of {of}' if of else ''} {value:.4g} ({low:.4g} to {high:.4g}), "
            f"p = {p:.3f}, corrected {corrected:.3f}: {verdict}; {means}"
            for test, of, value, low, high, p, corrected, verdict, means in rows
        ]
        return "\n".join([*lines, conclusion(found)])

    def plot(self, column: int = 0, name: str = "") -> Any:
        """Draw the residuals in time, their quantiles, histogram and autocorrelation, occupancy and dwell times.

        Where the state is no finite one: NIS in time, and the cumulated sum of the residuals (`cusum`).

        Args:
            column: which coordinate.
            name: what it is called.

        Returns:
            The matplotlib figure.
        """
        from statespan.plots.checking import plot_check

        return plot_check(self, column, name)


def check(
    model: Any,
    y: Any,
    simulations: int = 20,
    draws: int = 2000,
    seed: int | None = 0,
    lengths: Any = None,
    inputs: Any = None,
    states: Any = None,
    skip: int | None = None,
) -> Check:
    r"""Check a fitted model against data, those it was fitted to or others held out.

    Pseudo-residuals are Phi^-1(P(Y <= y_t | y_<t)), the forecast kind, a column a coordinate by its own marginal; of a
    linear Gaussian model that is the innovation over its standard deviation. Where no distribution function is known,
    `draws` from the forecast stand in for it.

    Args:
        model: a state space.
        y: the sequences.
        simulations: data sets to simulate, of the same lengths, for what the model expects.
        draws: from each forecast, where they are needed.
        seed: makes it repeatable.
        lengths: (N,) lengths of a padded batch.
        inputs: inputs, the forms of y.
        states: the true states of a normal state, the forms of y with (T, S), as `model.sample` gives them: for NEES.
        skip: so many first steps of each sequence are given, and only what follows is checked: those that the model was
            fitted to, say. None: 0, or where the start is wide (`ss.generalised_linear`) as many observed ones as
            settle it, for what is simulated from such a start says nothing.

    Returns:
        A `Check`: `print(it)`, `.plot()`, `.verdicts()`, `.frame()`, `.tests()`, `.cusum()`.

    Raises:
        StatespanError: an observation that the model makes impossible, nothing to simulate, or no step after `skip`.

    Source:
        Zucchini, MacDonald and Langrock, Hidden Markov Models for Time Series 2016, chapter 6; Rosenblatt 1952; Durbin
        and Koopman, Time Series Analysis by State Space Methods 2012, section 2.12.

    Example:
        >>> import statespan as ss
        >>> found = check(ss.hmm(states=2, emission=ss.Categorical(3), seed=0), [0, 2, 1, 1])
        >>> found.residuals.shape
        torch.Size([4, 1])
    """
    if simulations < 2:
        raise StatespanError(f"check(simulations={simulations}): use at least 2")
    everything, _ = ask(model, y, lengths, inputs)
    skip = _unsettled(model, everything) if skip is None else skip
    data = _after(everything, skip)
    method = method_for(model)
    with torch.no_grad(), seeded(seed):
        constants, belief = method.constants(model), None
        if skip:
            belief = run(model, method, everything.window(0, skip), None, ("last",), constants).last
        keep = ("predicted", "log_prob", *(() if states is None else ("filtered",)))
        trace = run(model, method, data, belief, keep, constants)
        assert trace.log_prob is not None
        total(trace.log_prob)
        distribution = method.emit(model, constants, trace.predicted, data.u)
        below, upto, exact = _ranks(distribution, data.y, draws)
        there = data.within if data.present is None else data.present
        known = _known(trace.predicted.state)
        there = there if known is None else there & (known if there.dim() == 2 else known[..., None])
        seen = there if there.dim() == 2 else there.any(-1)
        mask = (there if there.dim() == below.dim() else there[..., None]).expand_as(below)

        def rows(x: Tensor) -> Tensor:
            """One sequence after another, without their padding."""
            return x.transpose(0, 1)[data.within.T]

        flat = [rows(torch.where(mask, x, torch.nan)) for x in (below, upto)]
        steps = float(seen.sum().clamp_min(1))
        surprise = -float(torch.where(seen, trace.log_prob, 0.0).sum()) / steps
        whole = whitened(distribution, data.y, mask)
        formula = None if whole is None or not method.exact(model) else whole.expected(steps)
        paths = None
        if formula is None:
            formula, paths = _simulated(model, method, constants, data, belief, simulations, steps)
        about: tuple[Any, Any, Any] = (None, None, None)
        if hasattr(trace.predicted.state, "probs"):
            about = _states(model, method, constants, everything, data, belief, paths)
        nees = None if states is None else rows(_estimation_error(model, trace, states, lengths, data, skip))
    owner = rows(torch.arange(data.shape[1])[None].expand(data.shape))
    lowest, upper = (_normal(x) for x in flat)
    middle = _normal((flat[0] + flat[1]) / 2)
    occupancy, dwell, deviation = about
    found = Check(middle, lowest, upper, owner, exact, occupancy, dwell, surprise, formula)
    found = found._replace(occupancy_deviation=deviation, nees=nees)
    if nees is not None:
        found = found._replace(state_dim=trace.filtered.state.mean.shape[-1])
    if whole is None:
        return found
    squared = torch.where(whole.freedom > 0, whole.value.nan_to_num(0.0).square().sum(-1), torch.nan)
    return found._replace(innovations=rows(whole.value), nis=rows(squared), freedom=rows(whole.freedom))


def _unsettled(model: Any, data: Sequences) -> int:
    """How many steps it takes until each sequence has as many observations as its start has wide directions."""
    wide = getattr(model.initial, "wide", 0)
    if not wide:
        return 0
    there = data.within if data.present is None else data.present
    count = (there if there.dim() == 2 else there.any(-1)).cumsum(0)
    return int((count < wide).sum(0).max()) + 1


def _after(data: Sequences, skip: int) -> Sequences:
    """The steps from `skip` on."""
    if not skip:
        return data
    shortest = data.shape[0] if data.lengths is None else int(data.lengths.min())
    if not 0 < skip < shortest:
        raise StatespanError(
            f"check: the first {skip} steps are given, and the shortest sequence has {shortest}; leave some to check"
        )
    cut = lambda tree: tree_map(lambda x: x[skip:], tree)  # noqa: E731
    lengths = None if data.lengths is None else data.lengths - skip
    return Sequences(cut(data.y), cut(data.u), cut(data.observed), lengths)


def _known(state: Any) -> Tensor | None:
    """(T, B), whether a normal state is flat along no direction; None of any other state."""
    flat = getattr(state, "factor", None)
    return None if flat is None else ~flat.ne(0).any(-1).any(-1)


def _estimation_error(model: Any, trace: Trace, states: Any, lengths: Any, data: Sequences, skip: int) -> Tensor:
    """Of the filtered state, e' P^-1 e, (T, B); NaN where nothing is known of it, or of the truth."""
    belief = trace.filtered.state
    if not hasattr(belief, "scale"):
        raise StatespanError("check(states=) is for models with a normal state, whose errors have a covariance")
    truth = _after(read(states, model.transition.event, lengths)[0], skip)
    if truth.shape != data.shape:
        raise StatespanError(
            f"check(states=) has {truth.shape[0]} steps of {truth.shape[1]} sequences; give those of y"
        )
    error = inverse(belief.scale) @ (truth.y.to(belief.mean) - belief.mean)[..., None]
    known = (
        data.within if truth.present is None else (truth.present if truth.present.dim() == 2 else truth.present.all(-1))
    )
    settled = _known(belief)
    known = known if settled is None else known & settled
    return torch.where(known, error[..., 0].square().sum(-1), torch.nan)


def _normal(p: Tensor) -> Tensor:
    return torch.special.ndtri(p).clamp(-LARGEST_RESIDUAL, LARGEST_RESIDUAL)


def _simulated(
    model: Any, method: Any, constants: Any, data: Sequences, belief: Any, n: int, steps: float
) -> tuple[tuple[float, float], Tensor | None]:
    """The surprise of n simulated data sets, mean and deviation, and their states (T, n B) where these are integers."""
    length, batch = data.shape
    many, belief = (
        data.each(lambda x, axis: x.repeat_interleave(n, axis)),
        tree_map(lambda x: x.repeat_interleave(n, 0), belief),
    )
    drawn = list(simulate(model, method, constants, belief, length, batch * n, many.u))
    values = torch.stack([d.y for d in drawn])
    log_prob = run(model, method, many._replace(y=values), belief, constants=constants).log_prob
    assert log_prob is not None
    each = -log_prob.sum(0).view(batch, n).sum(0) / steps
    states = [getattr(d.state, "regime", d.state) for d in drawn]
    whole = isinstance(states[0], Tensor) and not states[0].is_floating_point()
    return (float(each.mean()), float(each.std())), torch.stack(states) if whole else None


def _states(
    model: Any, method: Any, constants: Any, everything: Sequences, data: Sequences, belief: Any, paths: Tensor | None
) -> tuple[Any, Any, Any]:
    """Occupancy in hindsight and as the model expects it, dwell times of the likeliest path and of simulated ones.

    The third is the deviation of the simulated paths' occupancy.
    """
    from statespan.method import prepare

    prepared, skip = prepare(model, method, everything, constants), everything.shape[0] - data.shape[0]
    smoothed = method.public(model, method.smooth(model, prepared, None, everything.shape)).probs[skip:]
    blank = Sequences(u=data.u, observed=torch.zeros_like(data.within), lengths=data.lengths)
    marginal = method.public(model, run(model, method, blank, belief, ("predicted",), constants).predicted).probs
    inside = data.within[..., None]
    count = data.within.sum()
    occupancy = tuple((torch.where(inside, x, 0.0).sum((0, 1)) / count) for x in (smoothed, marginal))
    if paths is None:
        return occupancy, None, None
    best = method.decode(model, constants, everything, 1)[0][skip:, :, 0]
    states = smoothed.shape[-1]
    n = paths.shape[1] // data.shape[1]
    within = data.within.repeat_interleave(n, 1)
    there = torch.nn.functional.one_hot(paths, states) * within[..., None]
    each = there.sum(0).unflatten(0, (-1, n)).sum(0) / count  # (n, K)
    return occupancy, (_runs(best, data.within, states), _runs(paths, within, states)), each.double().std(0)


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


class Whitened(NamedTuple):
    """Observations less their forecasts over a root of the covariance (T, B, D), NaN where missing.

    Args:
        value: these.
        freedom: (T, B) how many are there.
        log_scale: (T, B) the logarithm of the root's determinant.
    """

    value: Tensor
    freedom: Tensor
    log_scale: Tensor

    def expected(self, steps: float) -> tuple[float, float]:
        """The mean surprise that is expected, and its deviation: squares of standard normals are independent."""
        freedom = float(self.freedom.sum())
        mean = 0.5 * freedom * (1 + math.log(2 * math.pi)) + float(self.log_scale.sum())
        return mean / steps, math.sqrt(freedom / 2) / steps


@singledispatch
def whitened(distribution: Any, y: Tensor, there: Tensor) -> Whitened | None:
    """What of y a joint normal forecast did not foresee, in its own units; None for other distributions.

    Args:
        distribution: the forecasts, (T, B).
        y: (T, B, D).
        there: (T, B, D), which entries are observed and were forecast.
    """
    return None


@whitened.register(MultivariateNormal)
def _(distribution: MultivariateNormal, y: Tensor, there: Tensor) -> Whitened:
    own = torch.diag_embed((~there).to(y.dtype))
    root = lower(torch.cat([torch.where(there[..., None], distribution.scale_tril, 0.0), own], -1))
    size = root.diagonal(dim1=-2, dim2=-1)
    foreseen = size <= 1e-12 * distribution.variance.sqrt().amax(-1, keepdim=True)  # without a doubt: no residual
    sound = root + torch.diag_embed(foreseen.to(y.dtype))
    error = torch.where(there, y - distribution.mean, 0.0)
    value = torch.linalg.solve_triangular(sound, error[..., None], upper=False)[..., 0]
    there = there & ~foreseen
    log_scale = torch.where(there, size, 1.0).log().sum(-1)
    return Whitened(torch.where(there, value, torch.nan), there.sum(-1), log_scale)


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
