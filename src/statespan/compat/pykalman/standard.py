"""The linear filter, smoother and EM of pykalman, by statespan's Kalman filter."""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from statespan.belief import Gaussian
from statespan.compat.pykalman._arguments import array, random, root, rows, size
from statespan.errors import StatespanError
from statespan.method import prepare
from statespan.methods.kalman import Kalman
from statespan.methods.kalman import observation as observed
from statespan.model import StateSpace
from statespan.part import Affine
from statespan.parts.gaussian_initial import NormalStart
from statespan.parts.linear import Linear, Scheduled
from statespan.sequences import Sequences
from statespan.tree import unstack
from statespan.verbs import ask

RANKS = {
    "transition_matrices": 2,
    "transition_offsets": 1,
    "transition_covariance": 2,
    "observation_matrices": 2,
    "observation_offsets": 1,
    "observation_covariance": 2,
    "initial_state_mean": 1,
    "initial_state_covariance": 2,
}
"""The parameters, in the order in which pykalman hands them on, and how many dimensions each has that is constant."""

FITTED = ("transition_covariance", "observation_covariance", "initial_state_mean", "initial_state_covariance")
"""What `em` estimates where nobody says what."""


class Parameters(NamedTuple):
    """All parameters as arrays; those of moves and observations may have an axis of steps in front."""

    transition_matrices: np.ndarray
    transition_offsets: np.ndarray
    transition_covariance: np.ndarray
    observation_matrices: np.ndarray
    observation_offsets: np.ndarray
    observation_covariance: np.ndarray
    initial_state_mean: np.ndarray
    initial_state_covariance: np.ndarray

    def move(self, t: int) -> list[np.ndarray]:
        """A, b and Q of the move out of step t."""
        return [at(x, t, RANKS[name]) for name, x in zip(self._fields[:3], self[:3], strict=True)]

    def seen(self, t: int) -> list[np.ndarray]:
        """C, d and R of step t."""
        return [at(x, t, RANKS[name]) for name, x in zip(self._fields[3:6], self[3:6], strict=True)]


def at(x: np.ndarray, t: int, rank: int) -> np.ndarray:
    """The value at step t of what may be constant."""
    return x if x.ndim == rank else x[t]


class KalmanFilter:
    r"""The linear Gaussian model x_{t+1} = A_t x_t + b_t + N(0, Q_t), z_t = C_t x_t + d_t + N(0, R_t), x_0 ~ N(m, P).

    Names, arguments, shapes, defaults and numbers are pykalman's; inference is statespan's. A parameter that changes
    has an axis of steps in front: one entry a move (n_timesteps - 1) or one an observation (n_timesteps). An
    observation of which any part is masked **or NaN** is missing, whole, as in pykalman; `from_pykalman` gives a model
    that uses what is left of it, that takes many series, and that forecasts.

    Where pykalman errs, this does not: covariances that change in time are used by `sample` and `loglikelihood` too
    (pykalman keeps the first, or fails); a single observation of several columns is not taken for a column; `em`
    leaves a parameter as it was where the data say nothing of it (pykalman makes it zero); a matrix that is no
    covariance is refused.

    Args:
        transition_matrices: A, (D, D) or (n_timesteps - 1, D, D); the identity.
        observation_matrices: C, (E, D) or (n_timesteps, E, D); ones on the diagonal.
        transition_covariance: Q, (D, D) or one a move; the identity.
        observation_covariance: R, (E, E) or one a step; the identity.
        transition_offsets: b, (D,) or (n_timesteps - 1, D); zeros.
        observation_offsets: d, (E,) or (n_timesteps, E); zeros.
        initial_state_mean: m, (D,); zeros.
        initial_state_covariance: P, (D, D); the identity.
        random_state: a seed or a `numpy.random.RandomState`; None is NumPy's global one.
        em_vars: what `em` estimates, names of parameters or "all"; None: the four covariances and the initial mean.
        n_dim_state: D, where no parameter says it.
        n_dim_obs: E, where no parameter says it.

    Raises:
        StatespanError: shapes that do not agree.

    Source:
        pykalman 0.11; Shumway and Stoffer 1982.

    Example:
        >>> kf = KalmanFilter(transition_matrices=[[1, 1], [0, 1]], observation_matrices=[[0.1, 0.5], [-0.3, 0.0]])
        >>> measurements = [[1, 0], [0, 0], [0, 1]]
        >>> kf = kf.em(measurements, n_iter=5)
        >>> mean, covariance = kf.smooth(measurements)
        >>> mean.shape, covariance.shape
        ((3, 2), (3, 2, 2))
    """

    def __init__(
        self,
        transition_matrices: Any = None,
        observation_matrices: Any = None,
        transition_covariance: Any = None,
        observation_covariance: Any = None,
        transition_offsets: Any = None,
        observation_offsets: Any = None,
        initial_state_mean: Any = None,
        initial_state_covariance: Any = None,
        random_state: Any = None,
        em_vars: Any = None,
        n_dim_state: int | None = None,
        n_dim_obs: int | None = None,
    ):
        self.transition_matrices = transition_matrices
        self.observation_matrices = observation_matrices
        self.transition_covariance = transition_covariance
        self.observation_covariance = observation_covariance
        self.transition_offsets = transition_offsets
        self.observation_offsets = observation_offsets
        self.initial_state_mean = initial_state_mean
        self.initial_state_covariance = initial_state_covariance
        self.random_state = random_state
        self.em_vars = em_vars
        axes = {"observation_matrices": -1} | {name: -1 for name in RANKS if not name.startswith("observation")}
        state = [(name, getattr(self, name), RANKS[name], axis) for name, axis in axes.items()]
        names = [name for name in RANKS if name.startswith("observation")]
        observed = [(name, getattr(self, name), RANKS[name], -RANKS[name]) for name in names]
        self.n_dim_state = size(state, n_dim_state, "n_dim_state")
        self.n_dim_obs = size(observed, n_dim_obs, "n_dim_obs")

    def _initialize_parameters(self) -> Parameters:
        """The parameters as arrays, with pykalman's defaults for those that are None."""
        state, observed = self.n_dim_state, self.n_dim_obs
        defaults = [np.eye(state), np.zeros(state), np.eye(state)]
        defaults += [np.eye(observed, state), np.zeros(observed), np.eye(observed), np.zeros(state), np.eye(state)]
        given = [getattr(self, name) for name in RANKS]
        each = zip(given, defaults, RANKS.values(), strict=True)
        return Parameters(*[array(default if x is None else x, rank) for x, default, rank in each])

    def sample(
        self, n_timesteps: int, initial_state: Any = None, random_state: Any = None
    ) -> tuple[np.ndarray, np.ma.MaskedArray]:
        """States (n_timesteps, D) and observations (n_timesteps, E), the same draws as pykalman's from the same seed.

        Args:
            n_timesteps: how many.
            initial_state: (D,) the first state; None: drawn.
            random_state: instead of the model's own.
        """
        given = self._initialize_parameters()
        rng = random(self.random_state if random_state is None else random_state)
        if initial_state is None:
            initial_state = rng.multivariate_normal(given.initial_state_mean, given.initial_state_covariance)
        states, observations = np.zeros((n_timesteps, self.n_dim_state)), np.zeros((n_timesteps, self.n_dim_obs))
        for t in range(n_timesteps):
            if t == 0:
                states[t] = initial_state
            else:
                matrix, offset, covariance = given.move(t - 1)
                states[t] = matrix @ states[t - 1] + offset + rng.multivariate_normal(0 * offset, covariance)
            matrix, offset, covariance = given.seen(t)
            observations[t] = matrix @ states[t] + offset + rng.multivariate_normal(0 * offset, covariance)
        return states, np.ma.array(observations)

    def filter(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """Means (n_timesteps, D) and covariances (n_timesteps, D, D) of each state given the observations so far.

        Args:
            X: (n_timesteps, E) observations, masked or NaN where missing.
        """
        model, y, inputs = self._about(X)
        found = model.filter(y, inputs=inputs)
        return found.mean.numpy(), found.covariance.numpy()

    def smooth(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """Means (n_timesteps, D) and covariances (n_timesteps, D, D) of each state given all observations.

        Args:
            X: (n_timesteps, E) observations, masked or NaN where missing.
        """
        model, y, inputs = self._about(X)
        found = model.smooth(y, inputs=inputs)
        return found.mean.numpy(), found.covariance.numpy()

    def loglikelihood(self, X: Any) -> float:
        """The natural log-likelihood of all observations.

        Args:
            X: (n_timesteps, E) observations, masked or NaN where missing.
        """
        model, y, inputs = self._about(X)
        with torch.no_grad():
            return float(model.log_prob(y, inputs=inputs))

    def filter_update(
        self,
        filtered_state_mean: Any,
        filtered_state_covariance: Any,
        observation: Any = None,
        transition_matrix: Any = None,
        transition_offset: Any = None,
        transition_covariance: Any = None,
        observation_matrix: Any = None,
        observation_offset: Any = None,
        observation_covariance: Any = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean (D,) and covariance (D, D) of the next state, from those of this one and the next observation.

        Args:
            filtered_state_mean: (D,).
            filtered_state_covariance: (D, D).
            observation: (E,); None, masked or NaN: missing.
            transition_matrix: (D, D), of this move; None: the model's, which must then be constant.
            transition_offset: (D,), likewise.
            transition_covariance: (D, D), likewise.
            observation_matrix: (E, D), likewise.
            observation_offset: (E,), likewise.
            observation_covariance: (E, E), likewise.
        """
        own = self._initialize_parameters()
        given = (transition_matrix, transition_offset, transition_covariance)
        given += (observation_matrix, observation_offset, observation_covariance)
        now = own._replace(**{name: constant(x, own, name) for name, x in zip(own._fields[:6], given, strict=True)})
        y = rows([np.nan] * self.n_dim_obs if observation is None else np.ma.atleast_2d(observation), self.n_dim_obs)
        spread = root(array(filtered_state_covariance, 2), "filtered_state_covariance")
        belief = Gaussian(torch.from_numpy(array(filtered_state_mean, 1))[None], spread[None])
        method, there = Kalman(), ~y.isnan().any(1)
        belief = method.predict(None, belief, _affine(now[:3], "transition_covariance"))
        if bool(there):
            data = Sequences(y=y[None])
            told = unstack(observed(_affine(now[3:6], "observation_covariance"), data), 1)[0]
            belief, _ = method.update(None, belief, told)
        return belief.mean[0].numpy(), belief.summary()["covariance"][0].numpy()

    def em(self, X: Any, y: Any = None, n_iter: int = 10, em_vars: Any = None) -> "KalmanFilter":
        """Estimate parameters by expectation maximisation; the model itself.

        An iteration maximises over one parameter after another, in pykalman's order; what changes in time and is
        estimated is constant from then on.

        Args:
            X: (n_timesteps, E) observations, masked or NaN where missing.
            y: not used.
            n_iter: how many iterations.
            em_vars: names of parameters, or "all"; None: the model's own.

        Raises:
            StatespanError: a name that is no parameter.
        """
        chosen = self._chosen(em_vars)
        given = self._initialize_parameters()
        for name in chosen:
            if getattr(given, name).ndim != RANKS[name]:
                text = f"{name} has {getattr(given, name).ndim} dimensions now; after fitting, it will have dimension"
                warnings.warn(f"{text} {RANKS[name]}", stacklevel=2)
        z = rows(X, self.n_dim_obs)
        for _ in range(n_iter):
            given = improved(given, expected(given, z), z.numpy(), chosen)
        for name, value in given._asdict().items():
            setattr(self, name, value)
        return self

    def _chosen(self, em_vars: Any) -> set[str]:
        """What EM estimates."""
        wanted = self.em_vars if em_vars is None else em_vars
        wanted = FITTED if wanted is None else wanted
        names: Iterable[str] = RANKS if isinstance(wanted, str) and wanted == "all" else wanted
        unknown = sorted(set(names) - set(RANKS))
        if unknown:
            raise StatespanError(f"em_vars: {unknown[0]!r} is no parameter; use 'all', or some of {', '.join(RANKS)}")
        return set(names)

    def _about(self, X: Any) -> tuple[StateSpace, Tensor, Tensor | None]:
        """The model for these observations, the observations, and their steps where it asks for them."""
        y = rows(X, self.n_dim_obs)
        model = linear(self._initialize_parameters(), len(y))
        return model, y, steps(model, len(y))


def constant(x: Any, own: Parameters, name: str) -> np.ndarray:
    """The value that is given, or the model's own if it is constant."""
    value = getattr(own, name) if x is None else array(x, RANKS[name])
    if value.ndim != RANKS[name]:
        raise StatespanError(f"{name} is not constant for all time; give filter_update the one of this step")
    return value


# ----------------------------------------------------------------------------------------------- the model


def linear(given: Parameters, length: int) -> StateSpace:
    """The state space of these parameters, for series of `length` steps; with `inputs=range(length)`.

    Raises:
        StatespanError: too few entries of a parameter that changes in time, or no covariance.
    """
    dim, width = len(given.initial_state_mean), given.observation_matrices.shape[-2]
    names = given._fields
    moves = [_steps(x, name, max(length - 1, 1), "moves") for x, name in zip(given[:3], names[:3], strict=True)]
    # The first row stands for a move into the first step, which there is none of.
    moves = [np.concatenate([x[:1], x]) if x.ndim > RANKS[n] else x for x, n in zip(moves, names[:3], strict=True)]
    seen = [_steps(x, name, length, "steps") for x, name in zip(given[3:6], names[3:6], strict=True)]
    start = NormalStart(dim).double()
    with torch.no_grad():
        start.mean.copy_(torch.from_numpy(given.initial_state_mean))
        start.scale.copy_(root(given.initial_state_covariance, "initial_state_covariance"))
    return StateSpace(start, _part(dim, dim, moves, names[2]), _part(dim, width, seen, names[5]))


def steps(model: StateSpace, length: int) -> Tensor | None:
    """The steps 0 ... length - 1, for a model that changes in time."""
    return torch.arange(length, dtype=torch.float64) if any(part.takes_inputs for part in model.parts) else None


def _steps(x: np.ndarray, name: str, count: int, what: str) -> np.ndarray:
    """As many entries as are needed; one entry is a constant."""
    if x.ndim == RANKS[name]:
        return x
    if len(x) < count:
        raise StatespanError(f"{name} has {len(x)} entries where the observations have {count} {what}")
    return x[:count] if count > 1 else x[0]


def _affine(values: Sequence[np.ndarray], name: str) -> Affine:
    matrix, offset, covariance = values
    return Affine(torch.as_tensor(matrix), torch.as_tensor(offset), root(covariance, name))


def _part(inputs: int, outputs: int, values: list[np.ndarray], name: str) -> Linear | Scheduled:
    matrix, offset, covariance = values
    scale = root(covariance, name)
    counts = [len(x) if x.ndim > rank else 1 for x, rank in zip((matrix, offset, scale), (2, 1, 2), strict=True)]
    part = Linear(inputs, outputs) if max(counts) == 1 else Scheduled(inputs, outputs, counts)
    part = part.double()
    with torch.no_grad():
        for own, value in zip((part.matrix, part.offset, part.scale), (matrix, offset, scale), strict=True):
            own.copy_(torch.as_tensor(value))
    return part


# ---------------------------------------------------------------------------------------------------- EM


class Moments(NamedTuple):
    """Smoothed means (T, D), covariances (T, D, D), and cov(x_{t+1}, x_t) (T - 1, D, D)."""

    mean: np.ndarray
    covariance: np.ndarray
    pairs: np.ndarray


@torch.no_grad()
def expected(given: Parameters, y: Tensor) -> Moments:
    """The E-step, by statespan's smoother."""
    model, method = linear(given, len(y)), Kalman()
    data, _ = ask(model, y, inputs=steps(model, len(y)))
    smoothed, _, pairs = method.hindsight(model, prepare(model, method, data), None, data, pairs=True)
    assert pairs is not None
    covariance = smoothed.summary()["covariance"]
    return Moments(smoothed.mean[:, 0].numpy(), covariance[:, 0].numpy(), pairs[:, 0].mT.numpy())


def improved(given: Parameters, known: Moments, z: np.ndarray, chosen: set[str]) -> Parameters:
    """The M-step: each chosen parameter in turn, given those before it as they are now and the others as they were."""
    there = ~np.isnan(z[:, 0])
    mean, spread = known.mean, known.covariance
    new = given._asdict()

    def put(name: str, value: np.ndarray, count: int) -> None:
        """What the data say nothing of stays."""
        if name in chosen and count > 0:
            new[name] = value

    y, m, p, count = z[there], mean[there], spread[there], int(there.sum())
    offset = _rows(given.observation_offsets, there)
    put("observation_matrices", _ratio((y - offset).T @ m, p.sum(0) + m.T @ m), count)
    matrix = _rows(new["observation_matrices"], there, 2)
    error = y - _apply(matrix, m) - offset
    put("observation_covariance", _scatter(error, matrix, p) / max(count, 1), count)

    before, after, moves = mean[:-1], mean[1:], len(mean) - 1
    inside = np.arange(moves)
    offset = _rows(given.transition_offsets, inside)
    cross = known.pairs.sum(0) + (after - offset).T @ before
    put("transition_matrices", _ratio(cross, spread[:-1].sum(0) + before.T @ before), moves)
    matrix = _rows(new["transition_matrices"], inside, 2)
    error = after - _apply(matrix, before) - offset
    joint = (known.pairs @ np.swapaxes(matrix, -1, -2)).sum(0)
    scatter = _scatter(error, matrix, spread[:-1]) + spread[1:].sum(0) - joint - joint.T
    put("transition_covariance", scatter / max(moves, 1), moves)

    put("initial_state_mean", mean[0], 1)
    off = mean[0] - new["initial_state_mean"]
    put("initial_state_covariance", spread[0] + np.outer(off, off), 1)
    put("transition_offsets", (after - _apply(matrix, before)).sum(0) / max(moves, 1), moves)
    matrix = _rows(new["observation_matrices"], there, 2)
    put("observation_offsets", (y - _apply(matrix, m)).sum(0) / max(count, 1), count)
    return Parameters(**new)


def _rows(x: np.ndarray, index: np.ndarray, rank: int = 1) -> np.ndarray:
    """The rows of what changes in time, or the constant."""
    return x if x.ndim == rank else x[: len(index)][index]


def _ratio(cross: np.ndarray, second: np.ndarray) -> np.ndarray:
    return cross @ np.linalg.pinv(second, rcond=len(second) * np.finfo(float).eps)


def _apply(matrix: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.einsum("...ij,...j->...i", matrix, x)


def _scatter(error: np.ndarray, matrix: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Sum of e e' + M P M'."""
    return error.T @ error + (matrix @ spread @ np.swapaxes(matrix, -1, -2)).sum(0)
