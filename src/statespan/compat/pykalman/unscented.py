"""The unscented filters and smoothers of pykalman, by statespan's linearised Kalman filter."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from statespan.belief import Gaussian
from statespan.compat.pykalman._arguments import array, random, root, rows, size
from statespan.compat.pykalman._steps import Pointwise, Shown, SigmaPoints, backwards
from statespan.errors import StatespanError
from statespan.method import run
from statespan.methods.linearised import Linearised
from statespan.model import StateSpace
from statespan.parts.gaussian_initial import NormalStart
from statespan.parts.linear import apply
from statespan.verbs import ask


class Given(NamedTuple):
    """The parameters, in the order in which pykalman hands them on."""

    transition_functions: np.ndarray
    observation_functions: np.ndarray
    transition_covariance: np.ndarray
    observation_covariance: np.ndarray
    initial_state_mean: np.ndarray
    initial_state_covariance: np.ndarray


class _Unscented(ABC):
    """What the two filters share: arguments, defaults, sampling, and how a question is put."""

    def __init__(
        self,
        transition_functions: Any = None,
        observation_functions: Any = None,
        transition_covariance: Any = None,
        observation_covariance: Any = None,
        initial_state_mean: Any = None,
        initial_state_covariance: Any = None,
        n_dim_state: int | None = None,
        n_dim_obs: int | None = None,
        random_state: Any = None,
    ):
        self.transition_functions = transition_functions
        self.observation_functions = observation_functions
        self.transition_covariance = transition_covariance
        self.observation_covariance = observation_covariance
        self.initial_state_mean = initial_state_mean
        self.initial_state_covariance = initial_state_covariance
        names = {"transition_covariance": 2, "initial_state_covariance": 2, "initial_state_mean": 1}
        state = [(name, getattr(self, name), rank, -1) for name, rank in names.items()]
        self.n_dim_state = size(state, n_dim_state, "n_dim_state")
        self.n_dim_obs = size([("observation_covariance", observation_covariance, 2, -1)], n_dim_obs, "n_dim_obs")
        self.random_state = random_state

    def _initialize_parameters(self) -> Given:
        """The parameters, with pykalman's defaults for those that are None."""
        state = self.n_dim_state
        both = (self.transition_functions, self.observation_functions)
        moves, shown = (functions_of(self._same if f is None else f) for f in both)
        names = ("transition_covariance", "observation_covariance", "initial_state_mean", "initial_state_covariance")
        defaults = (np.eye(state), np.eye(self.n_dim_obs), np.zeros(state), np.eye(state))
        each = [getattr(self, name) for name in names]
        arrays = [array(d if x is None else x, d.ndim) for x, d in zip(each, defaults, strict=True)]
        return Given(moves, shown, *arrays)

    @staticmethod
    @abstractmethod
    def _same(*arguments: np.ndarray) -> np.ndarray:
        """The default function."""

    @staticmethod
    @abstractmethod
    def _shown(function: Callable[..., Any], x: np.ndarray, noise: np.ndarray) -> Any:
        """What a function makes of a state and its noise."""

    @abstractmethod
    def _model(self, given: Given, length: int) -> StateSpace:
        """The state space whose first coordinates are the state."""

    @abstractmethod
    def _points(self) -> SigmaPoints:
        """The rule for that state space's functions."""

    @abstractmethod
    def _root(self, given: Given, covariance: Tensor) -> Tensor:
        """A root (S, S) of the covariance of that state space's state, from one of the state's (D, D)."""

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
        none, nothing = np.zeros(self.n_dim_state), np.zeros(self.n_dim_obs)
        x, z = np.zeros((n_timesteps, self.n_dim_state)), np.zeros((n_timesteps, self.n_dim_obs))
        for t in range(n_timesteps):
            if t == 0:
                x[t] = initial_state
            else:
                noise = rng.multivariate_normal(none, given.transition_covariance)
                x[t] = self._shown(at(given.transition_functions, t - 1), x[t - 1], noise)
            noise = rng.multivariate_normal(nothing, given.observation_covariance)
            z[t] = self._shown(at(given.observation_functions, t), x[t], noise)
        return x, np.ma.asarray(z)

    def filter(self, Z: Any) -> tuple[np.ndarray, np.ndarray]:
        """Means (n_timesteps, D) and covariances (n_timesteps, D, D) of each state given the observations so far.

        Args:
            Z: (n_timesteps, E) observations, masked or NaN where missing.
        """
        return arrays(self._filtered(rows(Z, self.n_dim_obs)), self.n_dim_state)

    @torch.no_grad()
    def _filtered(self, y: Tensor, belief: Gaussian | None = None, given: Given | None = None) -> Gaussian:
        """Filtered beliefs (T, 1, S), from the start or after a belief."""
        model = self._model(given or self._initialize_parameters(), len(y) + (belief is not None))
        steps = torch.arange(len(y), dtype=torch.float64) + (belief is not None)
        data, _ = ask(model, y, inputs=steps)
        return run(model, Linearised(self._points()), data, belief, ("filtered",)).filtered

    def filter_update(
        self,
        filtered_state_mean: Any,
        filtered_state_covariance: Any,
        observation: Any = None,
        transition_function: Callable[..., Any] | None = None,
        transition_covariance: Any = None,
        observation_function: Callable[..., Any] | None = None,
        observation_covariance: Any = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean (D,) and covariance (D, D) of the next state, from those of this one and the next observation.

        Args:
            filtered_state_mean: (D,).
            filtered_state_covariance: (D, D).
            observation: (E,); None, masked or NaN: missing.
            transition_function: of this move; None: the model's, which must then be the only one.
            transition_covariance: (D, D); None: the model's.
            observation_function: of this step; None: the model's, which must then be the only one.
            observation_covariance: (E, E); None: the model's.
        """
        own = self._initialize_parameters()
        now = own._replace(
            transition_functions=only(transition_function, own.transition_functions, "transition_function"),
            observation_functions=only(observation_function, own.observation_functions, "observation_function"),
            transition_covariance=either(transition_covariance, own.transition_covariance),
            observation_covariance=either(observation_covariance, own.observation_covariance),
        )
        y = rows([np.nan] * self.n_dim_obs if observation is None else np.ma.atleast_2d(observation), self.n_dim_obs)
        spread = root(array(filtered_state_covariance, 2), "filtered_state_covariance")
        scale = self._root(now, spread)
        mean = torch.zeros(len(scale), dtype=torch.float64)
        mean[: self.n_dim_state] = torch.from_numpy(array(filtered_state_mean, 1))
        means, covariances = arrays(self._filtered(y, Gaussian(mean[None], scale[None]), now), self.n_dim_state)
        return means[0], covariances[0]


class AdditiveUnscentedKalmanFilter(_Unscented):
    r"""The unscented filter where noise is added: x_{t+1} = f_t(x_t) + N(0, Q), z_t = g_t(x_t) + N(0, R).

    Names, arguments, shapes, defaults and numbers are pykalman's; inference is `ss.Linearised` at the same sigma
    points. An observation of which any part is masked or NaN is missing, whole. Where pykalman errs, this does not: of
    an array of functions each step has its own (pykalman takes the first for all).

    Args:
        transition_functions: f, of a state (D,) to the next, or one for each move; the identity.
        observation_functions: g, of a state (D,) to an observation (E,), or one for each step; the identity.
        transition_covariance: Q, (D, D); the identity.
        observation_covariance: R, (E, E); the identity.
        initial_state_mean: (D,); zeros.
        initial_state_covariance: (D, D); the identity.
        n_dim_state: D, where no parameter says it.
        n_dim_obs: E, where no parameter says it.
        random_state: a seed or a `numpy.random.RandomState`; None is NumPy's global one.

    Raises:
        StatespanError: shapes that do not agree; sigma points that give no covariance (a state of more than 3, bent
            along more than 3 directions), where pykalman goes on or stops.

    Source:
        pykalman 0.11; Wan and van der Merwe 2000.

    Example:
        >>> ukf = AdditiveUnscentedKalmanFilter(np.sin, lambda x: x[:1] ** 2, 0.1, n_dim_obs=1)
        >>> mean, covariance = ukf.smooth([0.1, 0.3, np.nan, 0.2])
        >>> mean.shape, covariance.shape
        ((4, 1), (4, 1, 1))
    """

    @staticmethod
    def _same(*arguments: np.ndarray) -> np.ndarray:
        """The state itself."""
        return arguments[0]

    @staticmethod
    def _shown(function: Callable[..., Any], x: np.ndarray, noise: np.ndarray) -> Any:
        """f(x) + w."""
        return function(x) + noise

    def _model(self, given: Given, length: int) -> StateSpace:
        """The model as it is written."""
        functions = before(given.transition_functions), given.observation_functions
        move, seen = (each(f) for f in functions)
        transition = Pointwise(move, root(given.transition_covariance, "transition_covariance"))
        emission = Pointwise(seen, root(given.observation_covariance, "observation_covariance"))
        mean = torch.from_numpy(given.initial_state_mean)
        start = normal(mean, root(given.initial_state_covariance, "initial_state_covariance"))
        return StateSpace(start, transition, emission)

    def _points(self) -> SigmaPoints:
        """Of the state."""
        return SigmaPoints()

    def _root(self, given: Given, covariance: Tensor) -> Tensor:
        """The state's."""
        return covariance

    @torch.no_grad()
    def smooth(self, Z: Any) -> tuple[np.ndarray, np.ndarray]:
        """Means (n_timesteps, D) and covariances (n_timesteps, D, D) of each state given all observations.

        Args:
            Z: (n_timesteps, E) observations, masked or NaN where missing.
        """
        given = self._initialize_parameters()
        filtered = self._filtered(rows(Z, self.n_dim_obs), None, given)
        move = self._model(given, len(filtered.mean)).transition
        return backwards(move, self._points(), filtered.mean[:, 0].numpy(), filtered.scale[:, 0].numpy())


class UnscentedKalmanFilter(_Unscented):
    r"""The unscented filter where noise enters anywhere: x_{t+1} = f_t(x_t, N(0, Q)), z_t = g_t(x_t, N(0, R)).

    Names, arguments, shapes, defaults and numbers are pykalman's. Inference is `ss.Linearised` at the same sigma
    points, of the state (x_t, w_t, v_{t+1}, z_t): the noises of the next step, and the observation before it is seen,
    made by one function (f(x, w), 0, 0, g(f(x, w), v)). An observation of which any part is masked or NaN is missing,
    whole. Where pykalman errs, this does not: of an array of functions each step has its own (pykalman takes the first
    for all).

    Args:
        transition_functions: f, of a state (D,) and noise (D,) to the next state, or one for each move; their sum.
        observation_functions: g, of a state (D,) and noise (E,) to an observation (E,), or one for each step; their
            sum.
        transition_covariance: Q, (D, D); the identity.
        observation_covariance: R, (E, E); the identity.
        initial_state_mean: (D,); zeros.
        initial_state_covariance: (D, D); the identity.
        n_dim_state: D, where no parameter says it.
        n_dim_obs: E, where no parameter says it.
        random_state: a seed or a `numpy.random.RandomState`; None is NumPy's global one.

    Raises:
        StatespanError: shapes that do not agree; sigma points that give no covariance (state and noises bent along
            more than 3 directions), where pykalman goes on or stops.

    Source:
        pykalman 0.11; Wan and van der Merwe 2000.

    Example:
        >>> ukf = UnscentedKalmanFilter(lambda x, w: x + np.sin(w), lambda x, v: x * (1 + 0.1 * v), random_state=0)
        >>> states, observations = ukf.sample(4)
        >>> mean, covariance = ukf.filter(observations)
        >>> mean.shape, covariance.shape
        ((4, 1), (4, 1, 1))
    """

    @staticmethod
    def _same(*arguments: np.ndarray) -> np.ndarray:
        """The state with its noise."""
        return arguments[0] + arguments[1]

    @staticmethod
    def _shown(function: Callable[..., Any], x: np.ndarray, noise: np.ndarray) -> Any:
        """f(x, w)."""
        return function(x, noise)

    def _roots(self, given: Given) -> tuple[Tensor, Tensor]:
        """Of Q and R."""
        transition = root(given.transition_covariance, "transition_covariance")
        return transition, root(given.observation_covariance, "observation_covariance")

    def _model(self, given: Given, length: int) -> StateSpace:
        """The model of (x_t, w_t, v_{t+1}, z_t), of which z_t is seen without noise."""
        moves, shown = before(given.transition_functions), given.observation_functions
        dim, width = self.n_dim_state, self.n_dim_obs

        def move(s: np.ndarray, t: int) -> np.ndarray:
            x = stacked(at(moves, t), s[:, :dim], s[:, dim : 2 * dim])
            z = stacked(at(shown, t), x, s[:, 2 * dim : 2 * dim + width])
            return np.concatenate([x, np.zeros((len(s), dim + width)), z], 1)

        kept, noise = self._roots(given)
        none = noise.new_zeros
        fresh = torch.block_diag(none(dim, dim), kept, noise, none(width, width))
        transition = Pointwise(move, fresh)
        # The first observation is a function of the first state and its noise.
        scale = root(given.initial_state_covariance, "initial_state_covariance")
        mean = torch.from_numpy(given.initial_state_mean)
        first = Gaussian(torch.cat([mean, none(width)])[None], torch.block_diag(scale, noise)[None])
        show = Pointwise(lambda s, t: stacked(at(shown, t), s[:, :dim], s[:, dim:]), none(width, width))
        one = show.approximate(SigmaPoints(dim), first, none(1, 1))
        expected = apply(one.matrix, first.mean) + one.offset
        size = 2 * dim + 2 * width
        start = torch.block_diag(scale, kept, noise, one.scale[0])  # all independent, but the last of the first:
        start[size - width :, :dim] = (one.matrix @ first.scale)[0, :, :dim]
        begin = normal(torch.cat([mean, none(dim + width), expected[0]]), start)
        return StateSpace(begin, transition, Shown(size, width))

    def _points(self) -> SigmaPoints:
        """Of the state and the noises."""
        return SigmaPoints(self.n_dim_state)

    def _root(self, given: Given, covariance: Tensor) -> Tensor:
        """With the noises', and nothing of what was observed."""
        return torch.block_diag(covariance, *self._roots(given), covariance.new_zeros(self.n_dim_obs, self.n_dim_obs))

    @torch.no_grad()
    def smooth(self, Z: Any) -> tuple[np.ndarray, np.ndarray]:
        """Means (n_timesteps, D) and covariances (n_timesteps, D, D) of each state given all observations.

        Args:
            Z: (n_timesteps, E) observations, masked or NaN where missing.
        """
        given, dim = self._initialize_parameters(), self.n_dim_state
        whole = self._filtered(rows(Z, self.n_dim_obs), None, given)
        moves = before(given.transition_functions)

        def move(s: np.ndarray, t: int) -> np.ndarray:
            return np.pad(stacked(at(moves, t), s[:, :dim], s[:, dim:]), ((0, 0), (0, dim)))

        kept = self._roots(given)[0]
        transition = Pointwise(move, torch.block_diag(torch.zeros_like(kept), kept))
        mean, scale = whole.mean[:, 0, : 2 * dim].numpy(), whole.scale[:, 0, : 2 * dim, : 2 * dim].numpy()
        means, covariances = backwards(transition, self._points(), mean, scale)  # of (x_t, w_t)
        return means[:, :dim], covariances[:, :dim, :dim]


# ------------------------------------------------------------------------------------------- the functions


def functions_of(given: Any) -> np.ndarray:
    """One function, or one a step, as an array."""
    return np.array([given], dtype=object) if callable(given) else np.asarray(given, dtype=object).ravel()


def at(functions: np.ndarray, t: int) -> Callable[..., Any]:
    """The function of step t."""
    if len(functions) == 1:
        return functions[0]
    if t >= len(functions):
        raise StatespanError(f"{len(functions)} functions are given where step {t} needs one; give one for each step")
    return functions[t]


def before(functions: np.ndarray) -> np.ndarray:
    """The function of the move into each step, where they are those of the moves out of it."""
    return functions if len(functions) == 1 else np.concatenate([functions[:1], functions])


def only(given: Callable[..., Any] | None, own: np.ndarray, name: str) -> np.ndarray:
    """The function that is given, or the model's only one."""
    if given is None and len(own) > 1:
        raise StatespanError(f"{name} is not constant for all time; give filter_update the one of this step")
    return own if given is None else functions_of(given)


def either(given: Any, own: np.ndarray) -> np.ndarray:
    """What is given, or the model's own."""
    return own if given is None else array(given, 2)


def each(functions: np.ndarray) -> Callable[[np.ndarray, int], np.ndarray]:
    """Functions of one state, for states (N, D) and the step that they are of."""
    return lambda s, t: stacked(at(functions, t), s)


def stacked(function: Callable[..., Any], *arguments: np.ndarray) -> np.ndarray:
    """A function's values for rows of its arguments, (N, E)."""
    values = [function(*given) for given in zip(*arguments, strict=True)]
    return np.array(values, dtype=float).reshape(len(values), -1)


def normal(mean: Tensor, scale: Tensor) -> NormalStart:
    """A start with these values."""
    start = NormalStart(len(mean)).double().requires_grad_(False)
    start.mean.copy_(mean)
    start.scale.copy_(scale)
    return start


def arrays(beliefs: Gaussian, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Means and covariances of the first coordinates, from beliefs (T, 1, S)."""
    scale = beliefs.scale[:, 0, :dim]
    return beliefs.mean[:, 0, :dim].numpy(), (scale @ scale.mT).numpy()
