"""What each emission is, from scipy: log-densities and conditional means of single states, coordinates missing or not.

Nothing here uses the library's formulas; it reads parameters by their public names.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import stats


class Law(NamedTuple):
    """One state's distribution of y.

    Args:
        log: from y (D,) and what of it is there (D,) bool to the log-density of that.
        mean: the mean of y given what is there, (D,).
    """

    log: Callable[[np.ndarray, np.ndarray], float]
    mean: Callable[[np.ndarray, np.ndarray], np.ndarray]


def _each(emission: Any, *names: str) -> list[np.ndarray]:
    return [getattr(emission, name).detach().double().numpy() for name in names]


def _torch(e: Any) -> Any:
    loc, scale = (e.parameter(name).detach().double().numpy() for name in ("loc", "scale"))
    return lambda k, d: {"Gumbel": stats.gumbel_r, "Laplace": stats.laplace}[e.name](loc[k, d], scale[k, d])


def _poisson(e: Any) -> Any:
    (rate,) = _each(e, "rate")
    return lambda k, d: stats.poisson(rate[k, d])


def _bernoulli(e: Any) -> Any:
    (p,) = _each(e, "probs")
    return lambda k, d: stats.bernoulli(p[k, d])


def _negative_binomial(e: Any) -> Any:
    r, p = _each(e, "total_count", "probs")
    return lambda k, d: stats.nbinom(r[k, d], 1 - p[k, d])


def _exponential(e: Any) -> Any:
    (rate,) = _each(e, "rate")
    return lambda k, d: stats.expon(scale=1 / rate[k, d])


def _gamma(e: Any) -> Any:
    a, b = _each(e, "concentration", "rate")
    return lambda k, d: stats.gamma(a[k, d], scale=1 / b[k, d])


def _log_normal(e: Any) -> Any:
    m, s = _each(e, "loc", "scale")
    return lambda k, d: stats.lognorm(s[k, d], scale=math.exp(m[k, d]))


def _beta(e: Any) -> Any:
    a, b = _each(e, "concentration1", "concentration0")
    return lambda k, d: stats.beta(a[k, d], b[k, d])


def _von_mises(e: Any) -> Any:
    m, c = _each(e, "loc", "concentration")
    return lambda k, d: stats.vonmises(c[k, d], loc=m[k, d])


COORDINATES: dict[str, Callable[[Any], Any]] = {
    "Poisson": _poisson,
    "Bernoulli": _bernoulli,
    "NegativeBinomial": _negative_binomial,
    "Exponential": _exponential,
    "Gamma": _gamma,
    "LogNormal": _log_normal,
    "Beta": _beta,
    "VonMises": _von_mises,
    "Emission": _torch,
}
"""Emissions whose coordinates are independent: the scipy distribution of coordinate d in state k."""


def _independent(emission: Any) -> list[Law]:
    at = COORDINATES[type(emission).__name__](emission)

    def law(k: int) -> Law:
        each = [at(k, d) for d in range(emission.event.dim)]
        log = [f.logpmf if hasattr(f.dist, "pmf") else f.logpdf for f in each]
        return Law(
            lambda y, there: sum(float(f(v)) for f, v, t in zip(log, y, there, strict=True) if t),
            lambda y, there: np.where(there, y, [f.mean() for f in each]),
        )

    return [law(k) for k in range(emission.states)]


def _normal_law(mean: np.ndarray, covariance: np.ndarray) -> Law:
    def log(y: np.ndarray, there: np.ndarray) -> float:
        if not there.any():
            return 0.0
        return float(stats.multivariate_normal(mean[there], covariance[np.ix_(there, there)]).logpdf(y[there]))

    return Law(log, lambda y, there: _regress(mean, covariance, y, there))


def _regress(mean: np.ndarray, covariance: np.ndarray, y: np.ndarray, there: np.ndarray) -> np.ndarray:
    out, gone = np.where(there, y, mean), ~there
    if there.any() and gone.any():
        gain = covariance[np.ix_(gone, there)] @ np.linalg.inv(covariance[np.ix_(there, there)])
        out[gone] = mean[gone] + gain @ (y[there] - mean[there])
    return out


def _normal(emission: Any) -> list[Law]:
    return [_normal_law(*pair) for pair in zip(*_each(emission, "mean", "covariance"), strict=True)]


def _multinomial(emission: Any) -> list[Law]:
    (probs,), n = _each(emission, "probs"), emission.trials

    def law(p: np.ndarray) -> Law:
        def log(y: np.ndarray, there: np.ndarray) -> float:
            counts, shares = list(y[there]), list(p[there])
            if not there.all():
                counts, shares = [*counts, n - sum(counts)], [*shares, 1 - sum(shares)]
            return float(stats.multinomial(int(sum(counts)), shares).logpmf(counts))

        def mean(y: np.ndarray, there: np.ndarray) -> np.ndarray:
            return np.where(there, y, (n - y[there].sum()) * p / max(p[~there].sum(), 1e-300))

        return Law(log, mean)

    return [law(p) for p in probs]


def _student(emission: Any) -> list[Law]:
    def law(df: float, loc: np.ndarray, matrix: np.ndarray) -> Law:
        def log(y: np.ndarray, there: np.ndarray) -> float:
            if not there.any():
                return 0.0
            return float(stats.multivariate_t(loc[there], matrix[np.ix_(there, there)], df).logpdf(y[there]))

        return Law(log, lambda y, there: _regress(loc, matrix, y, there))

    return [law(*row) for row in zip(*_each(emission, "df", "loc", "scale_matrix"), strict=True)]


def _mixture(emission: Any) -> list[Law]:
    def law(weights: np.ndarray, means: np.ndarray, covariances: np.ndarray) -> Law:
        each = [_normal_law(*pair) for pair in zip(means, covariances, strict=True)]

        def logs(y: np.ndarray, there: np.ndarray) -> np.ndarray:
            return np.log(weights) + [part.log(y, there) for part in each]

        def mean(y: np.ndarray, there: np.ndarray) -> np.ndarray:
            shares = np.exp(logs(y, there) - np.logaddexp.reduce(logs(y, there)))
            return shares @ np.stack([part.mean(y, there) for part in each])

        return Law(lambda y, there: float(np.logaddexp.reduce(logs(y, there))), mean)

    return [law(*row) for row in zip(*_each(emission, "weights", "mean", "covariance"), strict=True)]


def _product(emission: Any) -> list[Law]:
    parts = [laws(e) for e in emission.emissions]

    def law(k: int) -> Law:
        def each(y: np.ndarray, there: np.ndarray) -> list[tuple[Law, np.ndarray, np.ndarray]]:
            return [(part[k], y[at], there[at]) for part, at in zip(parts, emission.columns, strict=True)]

        return Law(
            lambda y, there: sum(one.log(*row) for one, *row in each(y, there)),
            lambda y, there: np.concatenate([one.mean(*row) for one, *row in each(y, there)]),
        )

    return [law(k) for k in range(emission.states)]


FAMILIES: dict[str, Callable[[Any], list[Law]]] = {
    "Gaussian": _normal,
    "FactorGaussian": _normal,
    "GaussianMixture": _mixture,
    "Multinomial": _multinomial,
    "ProductEmission": _product,
    "StudentT": _student,
    **dict.fromkeys(COORDINATES, _independent),
}
"""Every emission of vectors: the laws of its states."""


def laws(emission: Any) -> list[Law]:
    """The law of y in each state."""
    return FAMILIES[type(emission).__name__](emission)
