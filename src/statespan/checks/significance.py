"""What chance makes of residuals: chi-square tails, Ljung-Box, cumulated sums with their lines."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from statespan.errors import StatespanError

CUSUM_LINES = {0.9: 0.850, 0.95: 0.948, 0.99: 1.143}
"""How many roots of n the lines of a cumulated sum lie from zero at first, by the level."""

SQUARES_LINES = {
    0.9: (1.2238734, -0.6700069, -0.7351697),
    0.95: (1.3581015, -0.6701218, -0.8858694),
    0.99: (1.6276236, -0.6703724, -1.2365861),
}
"""Of a cumulated sum of squares: the distance is a / m^(1/2) + b / m + c / m^(3/2) with m = n / 2 - 1."""


def chi_square_tail(x: Tensor, freedom: Tensor | float) -> Tensor:
    """P(X > x) for X chi-square with that many degrees of freedom."""
    return torch.special.gammaincc(torch.as_tensor(freedom, dtype=x.dtype).expand_as(x) / 2, x / 2)


def chi_square_quantile(p: float, freedom: float) -> float:
    """Where P(X <= x) = p, by halving.

    Example:
        >>> round(chi_square_quantile(0.95, 1), 4)
        3.8415
    """
    low, high = 0.0, freedom + 40 * (freedom + 10) ** 0.5
    half = torch.tensor(freedom / 2, dtype=torch.float64)
    for _ in range(200):
        middle = (low + high) / 2
        below = float(torch.special.gammainc(half, torch.tensor(middle / 2, dtype=torch.float64))) < p
        low, high = (middle, high) if below else (low, middle)
    return (low + high) / 2


def normal_tails(x: float) -> float:
    """P(|X| > |x|) for X standard normal."""
    return math.erfc(abs(x) / 2**0.5)


def ljung_box(correlations: Tensor, count: Tensor, fitted: int = 0) -> tuple[Tensor, Tensor]:
    r"""Q_m = n (n + 2) sum over k <= m of r_k^2 / (n - k), and P(chi-square with m - fitted > Q_m): (lags, D) each.

    Args:
        correlations: r, (lags, D), from lag 1 on.
        count: n, (D,).
        fitted: how many parameters of an ARMA process were fitted; NaN for the p-values of fewer lags.

    Source:
        Ljung and Box, Biometrika 65, 1978.
    """
    lag = torch.arange(1, len(correlations) + 1, dtype=correlations.dtype)[:, None]
    statistic = count * (count + 2) * (correlations.square() / (count - lag)).cumsum(0)
    freedom = (lag - fitted).expand_as(statistic)
    tail = chi_square_tail(statistic, freedom.clamp_min(1))
    return statistic, torch.where(freedom > 0, tail, torch.nan)


class Cumulated(NamedTuple):
    """A cumulated sum with the lines that it crosses somewhere with probability 1 - level at most.

    Args:
        step: (n,) the steps that are there, from 0.
        value: (n,) the sum up to each of them.
        lower: (n,) the lower line.
        upper: (n,) the upper line.
        p: about the probability that it goes as far out anywhere.
    """

    step: Tensor
    value: Tensor
    lower: Tensor
    upper: Tensor
    p: float

    @property
    def reach(self) -> float:
        """How far out it goes, where the lines lie at 1."""
        middle, half = (self.upper + self.lower) / 2, (self.upper - self.lower) / 2
        return float(((self.value - middle) / half).abs().max())

    @property
    def crossed(self) -> bool:
        """Whether the sum left the band anywhere."""
        return self.reach > 1


def cusum(residuals: Tensor, level: float = 0.95) -> Cumulated:
    r"""W_t = sum over s <= t of w_s / s(w), between +- a (sqrt(n) + 2 t / sqrt(n)): drifts where a mean changed.

    Args:
        residuals: w, (T,), standardised innovations in time, NaN where there is none.
        level: 0.9, 0.95 or 0.99.

    Raises:
        StatespanError: another level, or fewer than three residuals.

    Source:
        Brown, Durbin and Evans, Journal of the Royal Statistical Society B 37, 1975, section 2.3; p solves their
        equation 11 for its level.

    Example:
        >>> cusum(torch.tensor([0.3, -1.0, 0.2, 1.1, -0.4])).crossed
        False
    """
    step, w = _there(residuals, level)
    root = len(w) ** 0.5
    unit = root + 2 * torch.arange(1, len(w) + 1, dtype=w.dtype) / root
    value, line = w.cumsum(0) / w.std(), CUSUM_LINES[level] * unit
    a = float((value / unit).abs().max())
    p = normal_tails(3 * a) + math.exp(-4 * a * a) * (2 - normal_tails(a))
    return Cumulated(step, value, -line, line, min(1.0, p))


def cusum_squares(residuals: Tensor, level: float = 0.95) -> Cumulated:
    r"""S_t = sum over s <= t of w_s^2 / sum of all, between t / n +- c: leaves it where a variance changed.

    Args:
        residuals: w, (T,), standardised innovations in time, NaN where there is none.
        level: 0.9, 0.95 or 0.99.

    Raises:
        StatespanError: another level, or fewer than five residuals.

    Source:
        Brown, Durbin and Evans 1975, section 2.4; the distance c: Edgerton and Wells, Oxford Bulletin of Economics and
        Statistics 56, 1994; p is Kolmogorov's, which theirs approach, with their corrections at the level 0.95.
    """
    step, w = _there(residuals, level)
    half = len(w) / 2 - 1
    if half <= 1:
        raise StatespanError(f"CUSUM of squares takes at least 5 residuals; there are {len(w)}")
    c = sum(x / half ** (k / 2) for k, x in enumerate(SQUARES_LINES[level], 1))
    middle = torch.arange(1, len(w) + 1, dtype=w.dtype) / len(w)
    squares = w.square().cumsum(0)
    value = squares / squares[-1]
    _, second, third = SQUARES_LINES[0.95]
    a = float((value - middle).abs().max()) * half**0.5 - second / half**0.5 - third / half
    p = 2 * sum((-1) ** (k - 1) * math.exp(-2 * k * k * a * a) for k in range(1, 50))
    return Cumulated(step, value, middle - c, middle + c, min(1.0, p))


def _there(residuals: Tensor, level: float) -> tuple[Tensor, Tensor]:
    if level not in CUSUM_LINES:
        raise StatespanError(
            f"level={level}: the lines of a cumulated sum are known for {', '.join(map(str, CUSUM_LINES))}"
        )
    step = (~residuals.isnan()).nonzero()[:, 0]
    if len(step) < 3:
        raise StatespanError(f"a cumulated sum takes at least 3 residuals; there are {len(step)}")
    return step, residuals[step]
