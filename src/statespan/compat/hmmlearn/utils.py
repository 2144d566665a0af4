"""Helpers that hmmlearn publishes under `hmmlearn.utils`."""

import numpy as np


def normalize(a: np.ndarray, axis: int | None = None) -> None:
    """Divide `a` by its sums along `axis`, in place; what sums to zero stays zero.

    Args:
        a: any shape.
        axis: the axis that shall sum to one; None is all of it.

    Example:
        >>> a = np.array([[1.0, 3.0], [0.0, 0.0]])
        >>> normalize(a, axis=1)
        >>> a.tolist()
        [[0.25, 0.75], [0.0, 0.0]]
    """
    total = a.sum(axis, keepdims=axis is not None)
    a /= np.where(total == 0, 1, total)


def log_normalize(a: np.ndarray, axis: int | None = None) -> None:
    """Take from `a` the logarithm of the sum of its exponentials along `axis`, in place.

    Args:
        a: logarithms, any shape.
        axis: the axis whose exponentials shall sum to one; None is all of it.
    """
    top = a.max(axis, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    total = np.exp(a - top).sum(axis, keepdims=True)
    a -= top + np.log(np.where(total == 0, 1, total))


def fill_covars(
    covars: np.ndarray, covariance_type: str = "full", n_components: int = 1, n_features: int = 1
) -> np.ndarray:
    """Covariances in the form that `covariance_type` keeps, as full matrices (n_components, n_features, n_features).

    Args:
        covars: "full": (K, D, D); "tied": (D, D); "diag": (K, D); "spherical": K numbers, or (K, D) of equal columns.
        covariance_type: one of these.
        n_components: K.
        n_features: D.
    """
    covars = np.asarray(covars)
    if covariance_type == "spherical":
        # K numbers in any shape; after a fit hmmlearn keeps each state's variance once a feature.
        covars = np.broadcast_to(covars.reshape(n_components, -1)[:, :1], (n_components, n_features))
    if covariance_type in ("spherical", "diag"):
        return covars[:, :, None] * np.eye(n_features, dtype=covars.dtype)
    return np.tile(covars, (n_components, 1, 1)) if covariance_type == "tied" else covars
