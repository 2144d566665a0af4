"""Taking a filter of pykalman over."""

from collections.abc import Callable
from typing import Any

from statespan.compat.pykalman.standard import RANKS, KalmanFilter, linear
from statespan.compat.pykalman.unscented import AdditiveUnscentedKalmanFilter
from statespan.errors import StatespanError
from statespan.model import StateSpace

TIED = {
    "transition_matrices": "transition.matrix",
    "transition_offsets": "transition.offset",
    "transition_covariance": "transition.scale",
    "observation_matrices": "emission.matrix",
    "observation_offsets": "emission.offset",
    "observation_covariance": "emission.scale",
    "initial_state_mean": "initial.mean",
    "initial_state_covariance": "initial.scale",
}
"""Which parameter of the state space each of pykalman's is."""


def _linear(kf: Any) -> StateSpace:
    mine = KalmanFilter.__new__(KalmanFilter)
    vars(mine).update(vars(kf))
    given = mine._initialize_parameters()
    fields = zip(given._fields, given, strict=True)
    steps = [len(x) + (name in given._fields[:3]) for name, x in fields if x.ndim > RANKS[name]]
    model = linear(given, min(steps, default=1))
    parameters, chosen = dict(model.named_parameters()), mine._chosen(None)
    for theirs, ours in TIED.items():
        parameters[ours].requires_grad_(theirs in chosen)
    return model


def _additive(kf: Any) -> StateSpace:
    mine = AdditiveUnscentedKalmanFilter.__new__(AdditiveUnscentedKalmanFilter)
    vars(mine).update(vars(kf))
    return mine._model(mine._initialize_parameters(), 1)


MODELS: dict[str, Callable[[Any], StateSpace]] = {
    **dict.fromkeys(("KalmanFilter", "CholeskyKalmanFilter", "BiermanKalmanFilter"), _linear),
    "AdditiveUnscentedKalmanFilter": _additive,
}
"""How each class is taken over, by its name."""


def from_pykalman(kf: Any) -> StateSpace:
    """A filter of pykalman, or of this package, as a `statespan.StateSpace` with the same parameters.

    It forecasts, takes many series and rows with a part missing, is saved, and fits by gradient too. `fit` moves what
    `em_vars` names and holds the rest; `model.requires_grad_()` frees all. Where parameters change in time, or the
    filter is an unscented one, the data come with their steps: `inputs=range(n_timesteps)`. An unscented filter's
    functions stay NumPy's: no gradient goes through them, and they are not saved.

    Args:
        kf: a KalmanFilter (also those of `pykalman.sqrt`) or an AdditiveUnscentedKalmanFilter, fitted or not.

    Raises:
        StatespanError: another class; noise that enters a function is no part of a state space.

    Example:
        >>> from statespan.compat.pykalman import KalmanFilter
        >>> y = [0.1, 0.4, None, 0.9, 1.2]
        >>> kf = KalmanFilter(n_dim_state=1, n_dim_obs=1).em([0.1, 0.4, float("nan"), 0.9, 1.2], n_iter=3)
        >>> from_pykalman(kf).forecast(y, steps=2).mean.shape
        torch.Size([2, 1])
    """
    names = [cls.__name__ for cls in type(kf).__mro__]
    kind = next((MODELS[name] for name in names if name in MODELS), None)
    if kind is None:
        raise StatespanError(f"{names[0]} cannot be taken over; give one of {', '.join(MODELS)}")
    return kind(kf)
