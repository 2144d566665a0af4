"""Subspace identification: a linear Gaussian model from one singular value decomposition, as a start for a fit."""

from typing import Any

import torch
from torch import Tensor

from statespan.errors import StatespanError
from statespan.families.linear import linear_gaussian
from statespan.model import StateSpace
from statespan.parts.gaussian_initial import stationary
from statespan.parts.linear import factor, radius
from statespan.sequences import Event, Sequences, read

LARGEST = 0.999
"""The spectral radius that dynamics found outside of it are shrunk to."""
SMALLEST = 1e-3
"""The least share of the noises' mean variance that any direction of them keeps: EM does not leave zero."""


def subspace(y: Any, state: int, lags: int | None = None, lengths: Any = None, initial: Any = "known") -> StateSpace:
    r"""A linear Gaussian model by canonical variate analysis: no iterations, no start of its own.

    The states are the `state` combinations of the last `lags` observations that are most correlated with the next
    `lags`; A and C are their regressions, Q and R the covariances of what these leave. The poles of A are consistent
    estimates; Q and R are a start only, as what is left is correlated between state and observation. `fit` it on.

    Windows with a gap are left out, and series are taken together.

    Args:
        y: the sequences, as every verb takes them.
        state: D.
        lags: how many observations back and ahead; None: 2 D, 5 at least, and no more than a third of the longest.
        lengths: (N,) lengths of a padded batch.
        initial: how the state starts: "known" at the stationary distribution, or what else `ss.linear_gaussian` takes.

    Raises:
        StatespanError: too few windows without a gap for so large a state.

    Source:
        van Overschee and De Moor, Subspace Identification for Linear Systems 1996, chapter 3; Larimore 1990 (CVA).

    Example:
        >>> import statespan as ss
        >>> truth = ss.linear_gaussian(dynamics=[[0.9]], observation=[[1.0]], observation_noise=[[0.5]])
        >>> model = subspace(truth.sample(length=500, seed=0)[1], state=1)
        >>> 0.8 < model.transition.matrix.item() < 1
        True
    """
    data = _data(y, lengths)
    outputs, longest = data.y.shape[-1], data.shape[0]
    lags = min(max(2 * state, 5), max((longest - 1) // 3, 1)) if lags is None else lags
    if state < 1 or lags < 1 or lags * outputs < state:
        raise StatespanError(
            f"subspace(state={state}, lags={lags}): give a state of at least 1, and lags times {outputs} no less"
        )
    there = data.within if data.present is None else data.present
    there = there.all(-1) if there.dim() == 3 else there
    if not bool(there.any()):
        raise StatespanError("subspace: there is no whole observation")
    mean = data.y[there].mean(0)
    centred = torch.where(there[..., None], data.y - mean, 0.0)
    windows = _windows(centred, there, 2 * lags + 1)  # (N, 2 lags + 1, E)
    if len(windows) < 2 * lags * outputs:
        raise StatespanError(
            f"subspace(state={state}, lags={lags}): {len(windows)} windows of {2 * lags + 1} steps without a gap are "
            f"too few; give longer series, or lags={max(1, lags // 2)}"
        )
    past, ahead = windows[:, :lags].flatten(1), windows[:, lags : 2 * lags].flatten(1)
    weigh = _inverse_root(past.mT @ past)
    _, size, right = torch.linalg.svd(_inverse_root(ahead.mT @ ahead) @ (ahead.mT @ past) @ weigh)
    turn = size[:state, None].sqrt() * right[:state] @ weigh * len(windows) ** 0.5
    before, after = past @ turn.mT, windows[:, 1 : lags + 1].flatten(1) @ turn.mT
    dynamics = torch.linalg.lstsq(before, after).solution.mT
    dynamics = dynamics * (LARGEST / radius(dynamics)).clamp_max(1.0)
    observation = torch.linalg.lstsq(before, windows[:, lags]).solution.mT
    state_noise = _covariance(after - before @ dynamics.mT)
    noise = _covariance(windows[:, lags] - before @ observation.mT)
    spread = None
    if initial == "known":
        root = stationary(dynamics, dynamics.new_zeros(state), factor(state_noise))[1]
        spread = root @ root.mT
    return linear_gaussian(
        dynamics=dynamics,
        state_noise=state_noise,
        observation=observation,
        observation_noise=noise,
        observation_offset=mean,
        initial_covariance=spread,
        initial=initial,
    )


def _data(y: Any, lengths: Any) -> Sequences:
    """The sequences, of as many columns as they have."""
    if isinstance(y, Sequences):
        return y
    row = y[0] if isinstance(y, (list, tuple)) else y
    shape = getattr(row, "shape", None)
    shape = torch.as_tensor(row).shape if shape is None else shape
    several = not isinstance(y, (list, tuple)) or len(shape) == 2
    return read(y, Event(1, None, shape[-1] if several and len(shape) > 1 else 1), lengths)[0]


def _windows(y: Tensor, there: Tensor, width: int) -> Tensor:
    """Every run of `width` steps that is all there, of every sequence: (N, width, E)."""
    if len(y) < width:
        return y.new_zeros(0, width, y.shape[-1])
    whole = there.unfold(0, width, 1).all(-1)
    return y.unfold(0, width, 1)[whole].mT


def _inverse_root(covariance: Tensor) -> Tensor:
    """Its symmetric inverse root, zero along a direction without variance."""
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values[-1:] * (1e3 * len(values) * torch.finfo(values.dtype).eps)
    return (vectors * torch.where(kept, values.clamp_min(1e-300).rsqrt(), 0.0)) @ vectors.mT


def _covariance(residuals: Tensor) -> Tensor:
    """Of the rows, with no direction much below the mean."""
    values, vectors = torch.linalg.eigh(residuals.mT @ residuals / len(residuals))
    least = (SMALLEST * values.mean()).clamp_min(torch.finfo(values.dtype).tiny)
    return (vectors * values.clamp_min(least)) @ vectors.mT
