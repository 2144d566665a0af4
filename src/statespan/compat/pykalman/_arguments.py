"""What pykalman's classes are given: sizes, arrays, observations with masks or NaN, random states."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from statespan.errors import StatespanError
from statespan.parts.linear import factor


def array(x: Any, rank: int) -> np.ndarray:
    """An array of at least `rank` dimensions."""
    out = np.asarray(x, dtype=float)
    return out.reshape((1,) * (rank - out.ndim) + out.shape)


def size(given: Sequence[tuple[str, Any, int, int]], said: int | None, what: str) -> int:
    """One size from (name, array or None, rank, axis) and what the user says; 1 where nothing says it.

    Raises:
        StatespanError: two of them differ.
    """
    found = {name: array(x, rank).shape[axis] for name, x, rank, axis in given if x is not None}
    if said is not None:
        found[what] = int(said)
    if len(set(found.values())) > 1:
        each = ", ".join(f"{name} says {n}" for name, n in found.items())
        raise StatespanError(f"{what}: the parameters' shapes do not agree: {each}")
    return next(iter(found.values()), 1)


def random(seed: Any) -> np.random.RandomState:
    """NumPy's global state for None, a new one for a number, or the one that is given."""
    if seed is None:
        return np.random.mtrand._rand
    return seed if isinstance(seed, np.random.RandomState) else np.random.RandomState(seed)


def rows(observations: Any, width: int) -> Tensor:
    """Observations (T, E), a row NaN where any of it is masked or NaN.

    One dimension is T numbers where one is observed, else one row of E.

    Raises:
        StatespanError: another width, or no observation.
    """
    given = np.ma.asarray(observations)
    values = np.ma.filled(given.astype(float), np.nan)
    if values.ndim < 2:
        values = values.reshape(-1, 1) if width == 1 else values.reshape(1, -1)
    elif values.shape[1] != width and values.shape[0] == 1 == width:
        values = values.T
    if values.ndim != 2 or values.shape[1] != width or not len(values):
        raise StatespanError(f"the observations are {given.shape}; give (n_timesteps, {width})")
    return torch.from_numpy(np.where(np.isnan(values).any(1, keepdims=True), np.nan, values))


def root(covariance: np.ndarray, name: str) -> Tensor:
    """Roots of one covariance (D, D), or of many.

    Raises:
        StatespanError: it is not symmetric, or has a negative eigenvalue.
    """
    return _root(covariance.tobytes(), covariance.shape, name)


@lru_cache(16)
def _root(data: bytes, shape: tuple[int, ...], name: str) -> Tensor:
    """By the values: one filter_update after another asks for the same roots."""
    value = torch.from_numpy(np.frombuffer(data).reshape(shape).copy())
    if shape[-1] != shape[-2] or not torch.allclose(value, value.mT, rtol=1e-6, atol=1e-9):
        raise StatespanError(f"{name} is {shape} and not symmetric; give a covariance")
    sizes = torch.linalg.eigvalsh(value)
    if bool((sizes[..., 0] < -1e-9 * sizes[..., -1].clamp_min(1)).any()):
        raise StatespanError(f"{name} has the negative eigenvalue {float(sizes[..., 0].min()):.3g}; give a covariance")
    return factor(value)
