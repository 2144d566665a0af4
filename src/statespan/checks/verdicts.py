"""What a check's tests say of a model, in words."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from statespan.checks.significance import (
    chi_square_quantile,
    chi_square_tail,
    cusum,
    cusum_squares,
    normal_tails,
)

if TYPE_CHECKING:
    from statespan.checks.check import Check

FEWEST = 6
"""Of fewer residuals nothing is said."""
DOUBTFUL, WRONG = 0.05, 0.01
"""Below these a corrected p-value is a doubt, and speaks against the model."""


class Words(NamedTuple):
    """What it means where a test is passed, where its value is too large, and where it is too small."""

    fits: str
    above: str
    below: str = ""


WORDS = {
    "surprise": Words(
        "the data surprise the model as much as it expects",
        "the data surprise the model more than it expects: it misses something",
        "the data surprise the model less than it expects: its noise is too wide",
    ),
    "bias": Words("forecasts are right on average", "forecasts are too low", "forecasts are too high"),
    "spread": Words(
        "forecasts are as sure as they should be",
        "forecasts are too sure: their intervals are too narrow",
        "forecasts are not sure enough: their intervals are too wide",
    ),
    "nis": Words(
        "forecasts are as sure as they should be",
        "forecasts are too sure: their intervals are too narrow",
        "forecasts are not sure enough: their intervals are too wide",
    ),
    "nees": Words(
        "filtered states are as sure as they should be",
        "filtered states are too sure: the truth lies outside their intervals",
        "filtered states are not sure enough",
    ),
    "ljung-box": Words(
        "errors do not depend on those before", "errors depend on those before: some movement is missing"
    ),
    "jarque-bera": Words(
        "errors have the shape they should have", "errors have another shape: outliers, or a skewness, of their own"
    ),
    "cusum": Words("the level stays where it is forecast", "the level drifts from where it is forecast"),
    "cusum of squares": Words("the size of errors stays the same", "the size of errors changes in time"),
    "occupancy": Words(
        "it is as frequent as the model expects",
        "it is more frequent than the model expects",
        "it is rarer than the model expects",
    ),
}


class Row(NamedTuple):
    """One test: of which column or state, its value, where that lies 95 times in 100, and the p-value."""

    test: str
    of: str
    value: float
    low: float
    high: float
    p: float


def verdicts(found: "Check", names: Sequence[str] | None = None) -> dict[str, list[Any]]:
    r"""Columns for a data frame, one row a test: test, of, value, low, high, p, corrected, verdict, means.

    Were the model true, a value would lie between `low` and `high` 95 times in 100; `p` is the probability of one as
    far out, and `corrected` the same for that many tests (`holm`). `verdict` is "fits", "doubtful" (corrected p below
    0.05) or "does not fit" (below 0.01): of 100 true models at most one has any test that does not fit. Discrete
    observations are tested by residuals drawn between `lower` and `upper`, which are standard normal if the model is
    true.

    Args:
        found: what `check` returned.
        names: of the observed columns; None: 0, 1, ...

    Source:
        Dunn and Smyth, "Randomized quantile residuals", Journal of Computational and Graphical Statistics 5, 1996;
        cumulated sums: Brown, Durbin and Evans 1975; many tests: Holm 1979; the other tests as in `Check.tests`.

    Example:
        >>> import statespan as ss
        >>> verdicts(ss.check(ss.level(variance=1.0), [0.3, 0.1, -0.4, 0.2, 0.3, -0.1, 0.4, 0.2]))["test"][:3]
        ['surprise', 'nis', 'bias']
    """
    expected, deviation = found.expected_surprise
    rows = [_normal("surprise", "", found.surprise, expected, deviation)]
    if found.nis is not None and found.freedom is not None:
        rows.append(_chi_square("nis", "", found.nis, found.freedom))
    if found.nees is not None:
        rows.append(_chi_square("nees", "", found.nees, torch.full_like(found.nees, found.state_dim)))
    residuals = _drawn(found)
    sound = found._replace(residuals=residuals)
    for d, z in enumerate(residuals.T):
        name = str(d) if names is None else names[d]
        rows += _of_column(sound, d, name, z, found.nis is not None and residuals.shape[1] == 1)
    if found.occupancy is not None and found.occupancy_deviation is not None:
        each = zip(*found.occupancy, found.occupancy_deviation, strict=True)
        rows += [_normal("occupancy", f"state {k}", *map(float, one)) for k, one in enumerate(each)]
    columns: dict[str, list[Any]] = {name: [row[i] for row in rows] for i, name in enumerate(Row._fields)}
    corrected = holm(columns["p"])
    judged = [_judged(row, p) for row, p in zip(rows, corrected, strict=True)]
    return columns | {"corrected": corrected, "verdict": [x for x, _ in judged], "means": [x for _, x in judged]}


def holm(p: Sequence[float]) -> list[float]:
    """P-values of several tests, however they depend on each other, corrected for how many they are.

    The least times their number n, the next times n - 1, and so on, none below one before it, and at most 1.

    Source:
        Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.

    Example:
        >>> holm([0.04, 0.01, 0.5])
        [0.08, 0.03, 0.5]
    """
    order = sorted(range(len(p)), key=p.__getitem__)
    corrected, least = [0.0] * len(p), 0.0
    for tests, i in zip(range(len(p), 0, -1), order, strict=True):
        least = corrected[i] = min(1.0, max(least, p[i] * tests))
    return corrected


def conclusion(found: dict[str, list[Any]]) -> str:
    """One line on all verdicts."""
    many, count = len(found["verdict"]), found["verdict"].count
    if not count("does not fit"):
        doubts = f"; doubtful: {count('doubtful')}" if count("doubtful") else ""
        return f"no test of {many} speaks against the model{doubts}; p corrected for {many} tests (Holm)"
    against = f"tests that speak against the model: {count('does not fit')} of {many}"
    return f"{against}; p corrected for {many} tests (Holm): of a true model 1 data set in 100 has any"


def _judged(row: Row, p: float) -> tuple[str, str]:
    words = WORDS[row.test]
    if p >= DOUBTFUL:
        return "fits", words.fits
    means = words.below if words.below and row.value < (row.low + row.high) / 2 else words.above
    return "doubtful" if p >= WRONG else "does not fit", means


def _of_column(found: "Check", d: int, name: str, z: Tensor, spread_is_known: bool) -> list[Row]:
    """The tests of one column's residuals; where NIS says the same, not their spread."""
    there = z[~z.isnan()]
    n = len(there)
    if n < FEWEST:
        return []
    rows = [_normal("bias", name, float(there.mean()), 0.0, n**-0.5)]
    if not spread_is_known:
        rows.append(_chi_square("spread", name, there.square(), torch.ones_like(there)))
    box = found.ljung_box()
    lags = len(box[0])
    limits = {"ljung-box": chi_square_quantile(0.95, lags), "jarque-bera": chi_square_quantile(0.95, 2)}
    third, fourth = (float(((there - there.mean()) / there.std(unbiased=False)).pow(k).mean()) for k in (3, 4))
    shape = n / 6 * (third**2 + (fourth - 3) ** 2 / 4)
    rows.append(Row("ljung-box", name, float(box[0][-1, d]), 0.0, limits["ljung-box"], float(box[1][-1, d])))
    rows.append(Row("jarque-bera", name, shape, 0.0, limits["jarque-bera"], math.exp(-shape / 2)))
    each = [z[found.sequence == i] for i in found.sequence.unique().tolist()]
    each = [x for x in each if int((~x.isnan()).sum()) >= FEWEST]
    for test, sums in (("cusum", cusum), ("cusum of squares", cusum_squares)):
        if each:
            rows.append(_cumulated(test, name, [sums(x) for x in each]))
    return rows


def _cumulated(test: str, name: str, each: list[Any]) -> Row:
    """How far the sum of any sequence goes out, in units of where its lines lie."""
    worst = min(each, key=lambda line: line.p)
    return Row(test, name, worst.reach, 0.0, 1.0, min(1.0, worst.p * len(each)))


def _normal(test: str, of: str, value: float, expected: float, deviation: float) -> Row:
    away = (value - expected) / deviation if deviation > 0 else math.copysign(math.inf, value - expected)
    p = 1.0 if value == expected else normal_tails(away)
    return Row(test, of, value, expected - 1.96 * deviation, expected + 1.96 * deviation, p)


def _chi_square(test: str, of: str, squares: Tensor, freedom: Tensor) -> Row:
    """The mean of squares by their degrees of freedom, and both tails."""
    there = ~squares.isnan()
    total, degrees = squares[there].sum(), float(freedom[there].sum())
    count = max(float(there.sum()), 1.0)
    low, high = (chi_square_quantile(q, degrees) / count for q in (0.025, 0.975))
    above = float(chi_square_tail(total, degrees))
    return Row(test, of, float(total) / count, low, high, min(1.0, 2 * min(above, 1 - above)))


def _drawn(found: "Check") -> Tensor:
    """Residuals that are standard normal for discrete observations too."""
    if bool((found.lower == found.upper).logical_or(found.lower.isnan()).all()):
        return found.residuals
    low, high = (torch.special.ndtr(x) for x in (found.lower, found.upper))
    share = torch.rand(low.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(low)
    return torch.special.ndtri(low + share * (high - low)).clamp(-8, 8)
