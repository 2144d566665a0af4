"""hmmlearn's emission attributes as statespan parts, for models fitted by EM and by variational Bayes alike."""

import warnings
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.utils.validation import check_random_state
from torch import Tensor

from statespan.compat.hmmlearn.base import _AbstractHMM
from statespan.compat.hmmlearn.utils import fill_covars
from statespan.errors import StatespanError
from statespan.parts.emissions import Categorical, Gaussian

COVARIANCE_TYPES = frozenset(("spherical", "diag", "full", "tied"))
KINDS = {"spherical": "spherical", "diag": "diagonal", "full": "full", "tied": "tied"}
"""hmmlearn's names of covariances, and statespan's."""


class CategoricalEmission(_AbstractHMM):
    """Symbols, one a row of X (n_samples, 1): `emissionprob_` (n_components, n_features)."""

    _frames = False
    emissionprob_: Any

    def _check_and_set_n_features(self, X: np.ndarray) -> None:
        whole_numbers(X, "Symbols")
        largest = int(X[~np.isnan(X)].max(initial=0))
        if self.n_features is None:
            self.n_features = largest + 1
        elif largest >= self.n_features:
            raise StatespanError(
                f"Largest symbol is {largest} but the model only emits symbols up to {self.n_features - 1}"
            )

    def _observations(self, X: np.ndarray) -> tuple[Tensor, Tensor | None]:
        if X.shape[1] != 1:
            warnings.warn("Inputs of shape other than (n_samples, 1) are deprecated.", DeprecationWarning, stacklevel=4)
        self._check_and_set_n_features(X)
        flat = X.reshape(-1)
        there = ~np.isnan(flat)
        y = torch.from_numpy(np.where(there, flat, 0).astype(np.int64))
        return y, None if there.all() else torch.from_numpy(there)

    def _breadth(self) -> int:
        return 1  # symbols have the likelihoods, not steps

    def _part(self) -> Categorical:
        return Categorical(probs=np.asarray(self.emissionprob_, dtype=float))

    def _get_n_fit_scalars_per_param(self) -> dict[str, int]:
        k = self.n_components
        return {"s": k - 1, "t": k * (k - 1), "e": k * (self.n_features - 1)}

    def _generate_sample_from_state(self, state: int, random_state: Any = None) -> list[int]:
        levels = np.cumsum(self.emissionprob_[state])
        return [int((levels > check_random_state(random_state).rand()).argmax())]


class GaussianEmission(_AbstractHMM):
    """Vectors: `means_` (n_components, n_features) and `covars_`, kept as `covariance_type` says."""

    _frames = False
    covariance_type: str
    means_: Any
    _covars_: np.ndarray

    @property
    def covars_(self) -> np.ndarray:
        """Full matrices (n_components, n_features, n_features)."""
        return fill_covars(self._covars_, self.covariance_type, self.n_components, self.n_features)

    @covars_.setter
    def covars_(self, covars: Any) -> None:
        covars = np.array(covars, copy=True)
        check_covars(covars, self.covariance_type, self.n_components)
        self._covars_ = covars

    def _observations(self, X: np.ndarray) -> tuple[Tensor, Tensor | None]:
        return numbers(X)

    def _part(self) -> Gaussian:
        return gaussian(np.asarray(self.means_, dtype=float), self.covars_, self.covariance_type)

    def _get_n_fit_scalars_per_param(self) -> dict[str, int]:
        k, d = self.n_components, self.n_features
        free = {"spherical": k, "diag": k * d, "full": k * d * (d + 1) // 2, "tied": d * (d + 1) // 2}
        return {"s": k - 1, "t": k * (k - 1), "m": k * d, "c": free.get(self.covariance_type, 0)}

    def _generate_sample_from_state(self, state: int, random_state: Any) -> np.ndarray:
        return random_state.multivariate_normal(self.means_[state], self.covars_[state])


def whole_numbers(X: np.ndarray, what: str) -> None:
    """Refuse what is no integer or negative; NaN is missing.

    Whole numbers stored as floats are refused too, as in hmmlearn, unless it is NaN that makes them floats.
    """
    there = ~np.isnan(X)
    if not np.issubdtype(X.dtype, np.integer) and (there.all() or (X[there] != np.rint(X[there])).any()):
        raise StatespanError(f"{what} should be nonnegative integers; NaN is missing")
    if X[there].min(initial=0) < 0:
        raise StatespanError(f"{what} should be nonnegative integers")


def numbers(X: np.ndarray) -> tuple[Tensor, Tensor | None]:
    """Real values, NaN made 0, and which are there: (n, D), or (n,) where rows are whole or gone; None: all are."""
    y = torch.from_numpy(np.array(X, dtype=float, order="C"))
    there = ~y.isnan()
    if bool(there.all()):
        return y, None
    return y.nan_to_num(0.0), there.all(-1) if bool((there.all(-1) == there.any(-1)).all()) else there


def gaussian(means: np.ndarray, covars: np.ndarray, covariance_type: str) -> Gaussian:
    """The part with these means (K, D) and covariances (K, D, D); a singular one gets 1e-7 on its diagonal."""
    with torch.random.fork_rng(devices=[]):  # the part's random start is not used: leave the generator alone
        part = Gaussian(means.shape[1], KINDS[covariance_type], len(means)).double()
    matrices = torch.tensor(covars, dtype=torch.float64)
    if covariance_type in ("diag", "spherical"):
        matrices.diagonal(dim1=-2, dim2=-1).clamp_(min=torch.finfo(torch.float64).tiny)
    singular = torch.linalg.cholesky_ex(matrices).info > 0
    if bool(singular.any()):
        matrices[singular] += 1e-7 * torch.eye(means.shape[1], dtype=torch.float64)
        if bool((torch.linalg.cholesky_ex(matrices).info > 0).any()):
            raise StatespanError("'covars' must be symmetric, positive-definite")
    part.set_moments(torch.from_numpy(means), matrices)
    return part


def variances(second: np.ndarray, rank: int) -> np.ndarray:
    """Weighted sums of squares (..., D), of `rank` dimensions, from those or from sums of products (..., D, D)."""
    return second if second.ndim == rank else second.diagonal(axis1=-2, axis2=-1)


def check_covars(covars: np.ndarray, covariance_type: str, states: int) -> None:
    """Refuse what is no covariance of this type."""
    if covariance_type not in COVARIANCE_TYPES:
        raise StatespanError("covariance_type must be one of 'spherical', 'tied', 'diag', 'full'")
    if covariance_type == "spherical":
        if len(covars) != states:
            raise StatespanError("'spherical' covars have length n_components")
        if (covars <= 0).any():
            raise StatespanError("'spherical' covars must be positive")
        return
    shapes = {"tied": "(n_dim, n_dim)", "diag": "(n_components, n_dim)", "full": "(n_components, n_dim, n_dim)"}
    rank = 3 if covariance_type == "full" else 2
    if covars.ndim != rank or (covariance_type != "diag" and covars.shape[-1] != covars.shape[-2]):
        raise StatespanError(f"'{covariance_type}' covars must have shape {shapes[covariance_type]}")
    if covariance_type == "diag":
        if (covars <= 0).any():
            raise StatespanError("'diag' covars must be positive")
        return
    for i, matrix in enumerate(covars.reshape(-1, *covars.shape[-2:])):
        if not np.allclose(matrix, matrix.T) or np.linalg.eigvalsh(matrix)[0] <= 0:
            place = f"component {i} of 'full' covars" if covariance_type == "full" else "'tied' covars"
            raise StatespanError(f"{place} must be symmetric, positive-definite")


def spread(covariance: np.ndarray, covariance_type: str, states: int) -> np.ndarray:
    """One covariance (D, D) for all states, in the form that `covariance_type` keeps."""
    if covariance_type not in COVARIANCE_TYPES:
        raise StatespanError("covariance_type must be one of 'spherical', 'tied', 'diag', 'full'")
    if covariance_type == "tied":
        return covariance.copy()
    if covariance_type == "full":
        return np.tile(covariance, (states, 1, 1))
    mean = np.full(len(covariance), covariance.mean())
    return np.tile(mean if covariance_type == "spherical" else covariance.diagonal(), (states, 1))


def complete(X: np.ndarray, states: int) -> np.ndarray:
    """The rows of X without gaps, for a start from the data; with too few of them, gaps filled by column means."""
    there = ~np.isnan(X)
    if there.all():
        return X
    rows = X[there.all(1)]
    if len(rows) > max(states, X.shape[1]):
        return rows
    counts = there.sum(0)
    if (counts == 0).any():
        raise StatespanError(f"column {int((counts == 0).argmax())} of X is missing everywhere; leave it out")
    return np.where(there, X, np.nan_to_num(X).sum(0) / counts)


def clusters(X: np.ndarray, count: int, random_state: Any) -> Any:
    """The best of ten k-means, as hmmlearn begins: one seed gives both the same start."""
    options: dict[str, Any] = {"n_init": 10}
    return KMeans(n_clusters=count, random_state=random_state, **options).fit(X)
