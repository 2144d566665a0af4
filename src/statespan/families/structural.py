"""Structural time series: a series as the sum of a level, a slope, a season, a cycle, a regression, an ARIMA process.

Each function makes a model of its own, and models add: `ss.level() + ss.slope() + ss.seasonal(12)`. What is diffuse is
so exactly; what is fitted is the sizes of the shocks and of the noise, and a cycle's or an ARMA's coefficients.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from statespan.errors import StatespanError
from statespan.method import in_hindsight
from statespan.methods import Kalman
from statespan.model import StateSpace
from statespan.parts.gaussian_initial import DiffuseStart
from statespan.parts.structural import Arima, Driven, Moves, MovesStart, Starts, Sum, Wave
from statespan.verbs import ask


def _component(name: str, start: nn.Module, move: Any, row: list[float], inputs: int = 0) -> StateSpace:
    shown = Sum([name], [len(row)], [inputs])
    shown.row.copy_(torch.tensor([row]))
    return StateSpace(Starts([start]), Moves([move]), shown).double()


def _tensor(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def _held(part: nn.Module, parameter: nn.Parameter, variance: float | None, name: str) -> None:
    """A variance that is given is held there."""
    if variance is None:
        return
    if not 0 <= variance < math.inf:
        raise StatespanError(f"{name}(variance={variance}): a variance is a number from 0")
    with torch.no_grad():
        parameter.fill_(variance**0.5)
    parameter.requires_grad_(False)


def level(variance: float | None = None) -> StateSpace:
    r"""A level that wanders: m_t = m_{t-1} + N(0, v), diffuse at first.

    Args:
        variance: v, held at this; None: fitted. 0 is a constant.

    Raises:
        StatespanError: a negative variance.

    Source:
        Durbin and Koopman 2012, section 2.1.

    Example:
        >>> import statespan as ss
        >>> ss.level().log_prob([1120.0, 1160.0, 963.0]).shape
        torch.Size([])
    """
    move = Driven(1, [0]).double()
    _held(move, move.size, variance, "level")
    return _component("level", DiffuseStart(1), move, [1.0])


def slope(variance: float | None = None) -> StateSpace:
    r"""A slope that wanders, summed up: s_t = s_{t-1} + n_{t-1}, n_t = n_{t-1} + N(0, v), with s_1 = 0 and n_1 diffuse.

    With a level it is the local linear trend.

    Args:
        variance: v, held at this; None: fitted. 0 is a straight line.

    Raises:
        StatespanError: a negative variance.

    Source:
        Durbin and Koopman 2012, section 3.2.1.

    Example:
        >>> import statespan as ss
        >>> line = ss.level(variance=0.0) + ss.slope(variance=0.0)
        >>> line.forecast([1.0, 2.0, 3.0, 4.0], steps=2).mean.flatten().round(decimals=6).tolist()
        [5.0, 6.0]
    """
    move, start = Driven(2, [0]).double(), DiffuseStart(2, 1)
    move.matrix.copy_(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    move.loading.copy_(torch.tensor([[0.0], [1.0]]))
    start.directions.copy_(torch.tensor([[0.0], [1.0]]))
    _held(move, move.size, variance, "slope")
    return _component("slope", start, move, [1.0, 0.0])


def seasonal(period: int, trigonometric: bool = False, variance: float | None = None) -> StateSpace:
    r"""A pattern of `period` steps that sums to zero and may change.

    Dummies: g_t = -(g_{t-1} + ... + g_{t-s+1}) + N(0, v). Trigonometric: s / 2 waves of the periods s / j, each with
    shocks of one variance v.

    Args:
        period: s, in steps.
        trigonometric: which of the two.
        variance: v, held at this; None: fitted. 0 is a fixed pattern.

    Raises:
        StatespanError: a period below 2, or a negative variance.

    Source:
        Durbin and Koopman 2012, section 3.2.2; Harvey 1989, section 2.3.4.

    Example:
        >>> import statespan as ss
        >>> pattern = ss.seasonal(2, variance=0.0)
        >>> pattern.forecast([1.0, -1.0, 1.0, -1.0], steps=2).mean.flatten().round(decimals=6).tolist()
        [1.0, -1.0]
    """
    if period < 2:
        raise StatespanError(f"seasonal({period}): a season has at least 2 steps")
    size = period - 1
    move = Driven(size, [0] * size if trigonometric else [0]).double()
    if trigonometric:
        waves = [2 * math.pi * j / period for j in range(1, (period - 1) // 2 + 1)]
        turns = [_tensor([[math.cos(w), math.sin(w)], [-math.sin(w), math.cos(w)]]) for w in waves]
        turns += [] if period % 2 else [_tensor([[-1.0]])]
        move.matrix.copy_(torch.block_diag(*turns))
        row = [1.0, 0.0] * len(waves) + ([] if period % 2 else [1.0])
    else:
        move.matrix.copy_(torch.eye(size).roll(1, 0))
        move.matrix[0] = -1.0
        row = [1.0] + [0.0] * (size - 1)
    _held(move, move.size, variance, "seasonal")
    return _component(f"seasonal {period}", DiffuseStart(size), move, row)


def cycle(
    period: float | None = None,
    shortest: float = 2.0,
    longest: float = 200.0,
    damped: bool = True,
    variance: float | None = None,
) -> StateSpace:
    r"""A stochastic cycle, whose period is fitted: stationary where it is damped, else diffuse at first.

    Args:
        period: where the fit starts, in steps; None: the middle of the frequencies.
        shortest: the least period.
        longest: the largest period.
        damped: whether the cycle forgets.
        variance: of its shocks, held at this; None: fitted.

    Raises:
        StatespanError: bounds that are none, a period outside them, or a negative variance.

    Source:
        Harvey 1989, section 2.3.3.

    Example:
        >>> import statespan as ss
        >>> round(ss.cycle(period=11.0, shortest=8.0, longest=14.0).transition.each[0].period.item(), 6)
        11.0
    """
    if not 2 <= shortest < longest:
        raise StatespanError(f"cycle(shortest={shortest:g}, longest={longest:g}): give 2 <= shortest < longest")
    move = Wave(shortest, longest, damped).double()
    if period is not None:
        move.set(period, 0.9)
    _held(move, move.size, variance, "cycle")
    return _component("cycle", MovesStart(move) if damped else DiffuseStart(2), move, [1.0, 0.0])


def regression(inputs: Any, variance: float | None = 0.0) -> StateSpace:
    r"""Regression on the inputs: u_t' b, with b diffuse at first; `inputs=` then goes with y in every verb.

    Several regressions share the columns of the inputs in the order in which they were added.

    Args:
        inputs: how many columns, or the inputs themselves, (T, U), whose columns are counted.
        variance: of the coefficients' shocks, held at this; 0: they are constant; None: fitted.

    Raises:
        StatespanError: no column, or a negative variance.

    Source:
        Durbin and Koopman 2012, section 3.2.5.

    Example:
        >>> import statespan as ss
        >>> x = [[0.0], [1.0], [3.0], [2.0]]
        >>> model = ss.level(variance=0.0) + ss.regression(x)
        >>> model.smooth([1.0, 3.0, 7.0, 5.0], inputs=x).mean[-1].round(decimals=6).tolist()
        [1.0, 2.0]
    """
    if isinstance(inputs, int):
        count = inputs
    else:
        given = torch.as_tensor(inputs)
        count = given.shape[-1] if given.dim() > 1 else 1
    if count < 1:
        raise StatespanError(f"regression({count}): give at least one column")
    move = Driven(count, list(range(count))).double()
    _held(move, move.size, variance, "regression")
    return _component("regression", DiffuseStart(count), move, [1.0] * count, count)


def autoregressive(order: int = 1, variance: float | None = None) -> StateSpace:
    r"""A stationary process x_t = c_1 x_{t-1} + ... + c_p x_{t-p} + N(0, v).

    Args:
        order: p.
        variance: v, held at this; None: fitted.

    Raises:
        StatespanError: an order below 1, or a negative variance.

    Source:
        Harvey 1989, section 2.3.4; its coefficients by Monahan, Biometrika 71, 1984.

    Example:
        >>> import statespan as ss
        >>> model = ss.autoregressive(2, variance=1.0)
        >>> model.transition.each[0].set(ar=[0.5, 0.2])
        >>> [round(x, 6) for x in model.transition.each[0].ar.tolist()]
        [0.5, 0.2]
    """
    if order < 1:
        raise StatespanError(f"autoregressive({order}): give an order from 1")
    move = Arima((order, 0, 0)).double()
    _held(move, move.size, variance, "autoregressive")
    return _component("autoregressive", MovesStart(move), move, move.row()[0].tolist())


def arima(
    p: int = 0, d: int = 0, q: int = 0, seasonal: tuple[int, int, int] = (0, 0, 0), season: int = 1
) -> StateSpace:
    r"""(Seasonal) ARIMA: (1 - phi(L)) (1 - Phi(L^s)) (1 - L)^d (1 - L^s)^D y_t = (1 + theta(L)) (1 + Theta(L^s)) e_t.

    log_prob is that of the differences: the first d + s D values are diffuse. There is no noise beside it; add
    `ss.level(variance=0.0)` for a mean, `ss.regression` for inputs.

    Args:
        p: the order of phi.
        d: how often differences are taken.
        q: the order of theta.
        seasonal: the same three for the season.
        season: s, in steps.

    Raises:
        StatespanError: a negative order, or a seasonal part without a season of at least 2 steps.

    Source:
        Harvey 1989, section 3.3; Box and Jenkins 1970.

    Example:
        >>> import statespan as ss
        >>> ss.arima(0, 1, 1, seasonal=(0, 1, 1), season=4).forecast([1.0, 2, 3, 5, 2, 3, 4, 6], steps=4).mean.shape
        torch.Size([4, 1])
    """
    if min(p, d, q, *seasonal) < 0 or (any(seasonal) and season < 2):
        raise StatespanError("arima: give orders from 0, and season= of at least 2 steps with a seasonal part")
    move = Arima((p, d, q), seasonal, season)
    model = _component("arima", MovesStart(move), move, move.row()[0].tolist())
    _held(model.emission, model.emission.scale, 0.0, "arima")
    return model


def add(first: StateSpace, second: StateSpace) -> StateSpace:
    """The model of the sum of two structural series, with one noise: held where one of them holds its own (`arima`)."""
    for model in (first, second):
        if not isinstance(model.emission, Sum):
            raise StatespanError(
                f"only structural series add (ss.level, ss.arima ...), not a {type(model.emission).__name__}"
            )
    shown = [model.emission for model in (first, second)]
    both = Sum(*[[x for each in shown for x in getattr(each, name)] for name in ("names", "sizes", "inputs")])
    both.row = torch.cat([each.row for each in shown], -1)
    held = [each.scale for each in shown if not each.scale.requires_grad]
    with torch.no_grad():
        both.scale.copy_(max(held or [each.scale for each in shown], key=float))
    both.scale.requires_grad_(not held)
    starts = [part for model in (first, second) for part in model.initial.each]
    moves = [part for model in (first, second) for part in model.transition.each]
    return StateSpace(Starts(starts), Moves(moves), both).to(shown[0].row.dtype)


class Piece(NamedTuple):
    """What one component adds to a series: the posterior mean and standard deviation at each step, (T,)."""

    mean: Tensor
    deviation: Tensor


def decompose(model: StateSpace, y: Any, inputs: Any = None) -> dict[str, Piece]:
    """What each component of a structural series adds to one series, given all of it.

    Args:
        model: a sum of components.
        y: one series, (T,).
        inputs: its inputs, (T, U).

    Returns:
        A piece for each component by its name, in their order; `noise` last, what is left of y.

    Raises:
        StatespanError: another kind of model, or more than one series.

    Source:
        Harvey 1989, section 4.5 (extraction of components).

    Example:
        >>> import statespan as ss
        >>> pieces = ss.decompose(ss.level() + ss.seasonal(2), [1.0, 3.0, 1.5, 3.5, 2.0])
        >>> list(pieces)
        ['level', 'seasonal 2', 'noise']
    """
    if not isinstance(model.emission, Sum):
        raise StatespanError(f"only structural series have components, not a {type(model.emission).__name__}")
    data, layout = ask(model, y, inputs=inputs)
    if not layout.single:
        raise StatespanError("decompose takes one series; call it for each")
    with torch.no_grad():
        smoothed = in_hindsight(model, Kalman(), data)
        row = model.emission.matrix(data.u).expand(*data.shape, 1, -1)[:, 0, 0]
        mean, scale = smoothed.mean[:, 0], smoothed.scale[:, 0]
        pieces, at = {}, 0
        for name, size in zip(model.emission.names, model.emission.sizes, strict=True):
            here = slice(at, at + size)
            spread = (row[:, None, here] @ scale[:, here])[:, 0]
            label = name if name not in pieces else f"{name} ({sum(k.startswith(name) for k in pieces) + 1})"
            pieces[label] = Piece((row[:, here] * mean[:, here]).sum(-1), spread.square().sum(-1).sqrt())
            at += size
        fitted = (row * mean).sum(-1)
        spread = (row[:, None] @ scale)[:, 0].square().sum(-1).sqrt()
        seen = (
            torch.where(data.present[:, 0], data.y[:, 0, 0], torch.nan) if data.present is not None else data.y[:, 0, 0]
        )
        pieces["noise"] = Piece(seen - fitted, spread)
    return pieces
