"""The linear Gaussian model by its matrices, and linear stochastic differential equations seen at irregular times."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from statespan.errors import StatespanError
from statespan.model import StateSpace
from statespan.part import seeded
from statespan.parts.continuous import Continuous, Matern
from statespan.parts.gaussian_initial import DiffuseStart, NormalStart, StationaryStart
from statespan.parts.linear import Linear, Scheduled, factor

APPROXIMATE = 1e6
"""The variance that stands for not knowing where an approximately diffuse start is."""


PRIOR = ("prior_scale", "degrees", "matrix_strength", "prior_matrix")
"""What a prior on a matrix and its noise says (see `Linear`)."""


def linear_gaussian(
    state: int | None = None,
    observed: int | None = None,
    dynamics: Any = None,
    state_noise: Any = None,
    observation: Any = None,
    observation_noise: Any = None,
    initial_mean: Any = None,
    initial_covariance: Any = None,
    initial: Any = "known",
    inputs: int = 0,
    state_inputs: Any = None,
    observation_inputs: Any = None,
    state_offset: Any = None,
    observation_offset: Any = None,
    stable: float | None = None,
    state_prior: Mapping[str, Any] | None = None,
    observation_prior: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    seed: int | None = None,
) -> StateSpace:
    r"""z_t = A z_{t-1} + B u_t + b + N(0, Q), y_t = C z_t + F u_t + d + N(0, R), z_1 ~ N(m, P).

    What is not given starts at: A = 0.9 I, Q = I, C random normal, R = I, m = 0, P = I, and zeros for the rest.

    A matrix with one more axis in front, or an offset with one, changes in time: row s is for step s, and the data
    then come with their steps, `model.log_prob(y, inputs=range(T))`. Noise that is correlated between state and
    observation is written with the observation's noise in the state: z = (x, v), C = (C, I), R = 0.

    Args:
        state: D.
        observed: E.
        dynamics: A, (D, D) or (S, D, D).
        state_noise: Q, (D, D) or (S, D, D), a covariance.
        observation: C, (E, D) or (S, E, D).
        observation_noise: R, (E, E) or (S, E, E), a covariance.
        initial_mean: m, (D,).
        initial_covariance: P, (D, D).
        initial: how the state starts: "known" (m and P), "stationary" (the distribution that the dynamics keep),
            "diffuse" (nothing is known, exactly), "approximate" (variance 1e6); or an initial part.
        inputs: U, the width of u.
        state_inputs: B, (D, U).
        observation_inputs: F, (E, U).
        state_offset: b, (D,) or (S, D).
        observation_offset: d, (E,) or (S, E).
        stable: a bound that the spectral radius of A is kept at or below in every fit, such as 0.999 (see `Linear`).
        state_prior: a prior on A and Q, the arguments of `Linear`: `{"prior_scale": 0.1, "matrix_strength": 5.0}`.
        observation_prior: likewise on C and R.
        dtype: float64 unless you say otherwise.
        device: where the parameters lie.
        seed: makes the random start repeatable.

    Raises:
        StatespanError: shapes that do not agree, values that are not finite, a covariance that is not symmetric
            positive semi-definite, a stationary start of dynamics that are not stable.

    Source:
        Kalman 1960; Sarkka and Svensson 2023, section 6.3.

    Example:
        >>> import statespan as ss
        >>> model = ss.linear_gaussian(state=2, observed=1, seed=0)
        >>> model.smooth([[0.1], [0.3], [float("nan")]]).mean.shape
        torch.Size([3, 2])
    """
    a, c = _matrix(dynamics, "dynamics"), _matrix(observation, "observation")
    q, r = _matrix(state_noise, "state_noise"), _matrix(observation_noise, "observation_noise")
    p, m = _matrix(initial_covariance, "initial_covariance", 2), _vector(initial_mean, "initial_mean", 1)
    b, d = _vector(state_offset, "state_offset"), _vector(observation_offset, "observation_offset")
    moved, shown = _matrix(state_inputs, "state_inputs", 2), _matrix(observation_inputs, "observation_inputs", 2)
    states = {
        "state=": state,
        "dynamics": None if a is None else a.shape[-2],
        "state_noise": None if q is None else q.shape[-2],
        "observation's columns": None if c is None else c.shape[-1],
        "initial_mean": None if m is None else len(m),
        "initial_covariance": None if p is None else len(p),
        "state_offset": None if b is None else b.shape[-1],
        "state_inputs": None if moved is None else len(moved),
    }
    outputs = {
        "observed=": observed,
        "observation's rows": None if c is None else c.shape[-2],
        "observation_noise": None if r is None else r.shape[-2],
        "observation_offset": None if d is None else d.shape[-1],
        "observation_inputs": None if shown is None else len(shown),
    }
    controls = {
        "inputs=": inputs or None,
        "state_inputs": None if moved is None else moved.shape[1],
        "observation_inputs": None if shown is None else shown.shape[1],
    }
    size, width = _agree(states, "state=D"), _agree(outputs, "observed=E")
    u = _agree(controls | {"inputs=": inputs} if not any(controls.values()) else controls, "inputs=U")
    kept = None if q is None else _roots(q, "state_noise")
    spread = None if p is None else _roots(p, "initial_covariance")
    noise = None if r is None else _roots(r, "observation_noise")
    start = 0.9 * torch.eye(size) if a is None else _square(a, "dynamics")
    with seeded(seed):
        seen = torch.randn(width, size) if c is None else c
        transition = _part(size, size, u, (start, b, kept), moved, {"stable": stable, **(state_prior or {})})
        emission = _part(size, width, u, (seen, d, noise), shown, observation_prior or {})
    model = StateSpace(_initial(initial, transition, m, spread), transition, emission)
    return model.to(device=device, dtype=dtype or torch.float64)


def continuous(
    drift: Any,
    gain: Any = None,
    density: Any = None,
    observed: int | None = None,
    observation: Any = None,
    observation_noise: Any = None,
    observation_offset: Any = None,
    initial_mean: Any = None,
    initial_covariance: Any = None,
    initial: Any = "known",
    column: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    seed: int | None = None,
) -> StateSpace:
    r"""A linear stochastic differential equation seen at irregular times.

    dz = F z dt + L dw with E[dw dw'] = Q_c dt, y_t = C z_t + d + N(0, R), z_1 ~ N(m, P).

    The gaps are an input: `model.log_prob(y, inputs=gaps)`, with the time since the last step for every step; that of
    the first is not used. From times it is `numpy.diff(times, prepend=times[0])`. A forecast takes those to come as
    `future=`.

    Args:
        drift: F, (D, D), per unit of the gaps.
        gain: L, (D, M); None: the identity.
        density: Q_c, (M, M), a covariance per unit of time; None: the identity.
        observed: E.
        observation: C, (E, D).
        observation_noise: R, (E, E), a covariance.
        observation_offset: d, (E,).
        initial_mean: m, (D,).
        initial_covariance: P, (D, D).
        initial: as of `linear_gaussian`: "known", "stationary" (F must be stable), "diffuse", "approximate", or a part.
        column: of the inputs, which one is the gap.
        dtype: float64 unless you say otherwise.
        device: where the parameters lie.
        seed: makes the random start repeatable.

    Raises:
        StatespanError: shapes that do not agree, values that are not finite, no covariance.

    Source:
        Sarkka and Solin, Applied Stochastic Differential Equations 2019, chapters 6 and 10; Van Loan 1978.

    Example:
        >>> import statespan as ss
        >>> walk = ss.continuous(drift=[[0.0]], observation=[[1.0]], initial="diffuse")
        >>> round(walk.smooth([0.0, None, 3.0], inputs=[0.0, 1.0, 2.0]).mean[1].item(), 6)
        1.2
    """
    f = _square(_needed(_matrix(drift, "drift", 2), "drift"), "drift")
    size = len(f)
    given = torch.eye(size, dtype=torch.float64) if gain is None else _needed(_matrix(gain, "gain", 2), "gain")
    if len(given) != size:
        raise StatespanError(f"continuous(gain=) has {len(given)} rows where drift has {size}; give (D, M)")
    if density is not None:
        root = _roots(_needed(_matrix(density, "density", 2), "density"), "density")
        if len(root) != given.shape[1]:
            raise StatespanError(f"continuous(density=) is {len(root)} wide where gain has {given.shape[1]} columns")
        given = given @ root
    seen = linear_gaussian(
        size,
        observed,
        observation=observation,
        observation_noise=observation_noise,
        observation_offset=observation_offset,
        initial_mean=initial_mean,
        initial_covariance=initial_covariance,
        seed=seed,
    )
    transition = Continuous(size, given.shape[1], column).double()
    with torch.no_grad():
        transition.drift.copy_(f)
        transition.gain.copy_(given)
    start = seen.initial
    spread = None if initial_covariance is None else start.scale.detach()
    model = StateSpace(_initial(initial, transition, start.mean.detach(), spread), transition, seen.emission)
    return model.to(device=device, dtype=dtype or torch.float64)


def _needed(x: Tensor | None, name: str) -> Tensor:
    if x is None:
        raise StatespanError(f"continuous needs {name}, a matrix")
    return x


def matern(
    smoothness: float = 1.5, length: float = 1.0, variance: float = 1.0, noise: float = 1.0, column: int = 0
) -> StateSpace:
    r"""Gaussian process regression in linear time: f with a Matern kernel, y_t = f(time_t) + d + N(0, noise).

    The gaps between the times are an input, as `continuous` takes them; times may repeat. log_prob is that of the
    dense process, the smoothed state's first coordinate is the posterior of f, and `fit(y, by=ss.LBFGS())`
    finds length, variance, noise and d.

    Args:
        smoothness: 0.5, 1.5, 2.5 ...
        length: the length scale, in units of the gaps.
        variance: of f.
        noise: the variance of the observation's noise.
        column: of the inputs, which one is the gap.

    Raises:
        StatespanError: a smoothness that is no half-integer, or what is not positive.

    Source:
        Hartikainen and Sarkka, Kalman filtering and smoothing solutions to temporal Gaussian process regression models,
        2010.

    Example:
        >>> import statespan as ss
        >>> model = ss.matern(smoothness=2.5, length=3.0)
        >>> model.smooth([0.1, 0.4, None, 0.2], inputs=[0.0, 0.3, 1.5, 0.2]).mean.shape
        torch.Size([4, 3])
    """
    if not (length > 0 and variance > 0 and noise >= 0):
        raise StatespanError(f"matern(length={length:g}, variance={variance:g}, noise={noise:g}): use more than 0")
    transition = Matern(smoothness, column).double()
    emission = Linear(transition.event.dim or 1, 1).double()
    emission.matrix.requires_grad_(False)
    with torch.no_grad():
        transition.log_length.fill_(math.log(length))
        transition.log_variance.fill_(math.log(variance))
        emission.scale.fill_(noise**0.5)
    return StateSpace(StationaryStart(transition), transition, emission)


def _part(
    size: int,
    width: int,
    controls: int,
    given: tuple[Tensor, Tensor | None, Tensor | None],
    control: Tensor | None,
    options: Mapping[str, Any],
) -> Linear | Scheduled:
    """A part with these values: `Scheduled` where one of them changes in time."""
    steps = [1 if x is None or x.dim() == rank else len(x) for x, rank in zip(given, (2, 1, 2), strict=True)]
    varies = {n for n in steps if n > 1}
    if len(varies) > 1:
        raise StatespanError(
            f"linear_gaussian: values for {' and for '.join(map(str, sorted(varies)))} steps; give one"
        )
    if varies and controls:
        raise StatespanError(
            "linear_gaussian: a part that changes in time takes the step as its input and no other; "
            "put what the inputs add into an offset of each step"
        )
    if varies and any(value is not None for value in options.values()):
        raise StatespanError("linear_gaussian: a part that changes in time takes no prior and no bound; leave them out")
    unknown = sorted(set(options) - {"stable", *PRIOR})
    if unknown:
        raise StatespanError(f"linear_gaussian: a prior says {', '.join(PRIOR)}, not {unknown[0]}")
    part = Scheduled(size, width, steps) if varies else Linear(size, width, controls, **options)
    part = part.to(torch.float64)
    with torch.no_grad():
        for target, value in zip((part.matrix, part.offset, part.scale), given, strict=True):
            if value is not None:
                target.copy_(value)
        if control is not None and isinstance(part, Linear) and part.control is not None:
            part.control.copy_(control)
    return part


def _known(transition: Any, mean: Tensor | None, scale: Tensor | None) -> nn.Module:
    start = NormalStart(transition.event.dim).double()
    with torch.no_grad():
        if mean is not None:
            start.mean.copy_(mean)
        if scale is not None:
            start.scale.copy_(scale)
    return start


def _stationary(transition: Any, mean: Tensor | None, scale: Tensor | None) -> nn.Module:
    start = StationaryStart(transition)
    with torch.no_grad():
        start.gaussian(1)
    return start


def _diffuse(transition: Any, mean: Tensor | None, scale: Tensor | None) -> nn.Module:
    return DiffuseStart(transition.event.dim)


def _approximate(transition: Any, mean: Tensor | None, scale: Tensor | None) -> nn.Module:
    size = transition.event.dim
    return _known(transition, mean, APPROXIMATE**0.5 * torch.eye(size, dtype=torch.float64)).requires_grad_(False)


STARTS: dict[str, Callable[..., nn.Module]] = {
    "known": _known,
    "stationary": _stationary,
    "diffuse": _diffuse,
    "approximate": _approximate,
}
"""How a state may start, by name."""


def _initial(initial: Any, transition: nn.Module, mean: Tensor | None, scale: Tensor | None) -> nn.Module:
    if isinstance(initial, nn.Module):
        return initial
    if initial not in STARTS:
        raise StatespanError(f"linear_gaussian(initial={initial!r}) is not known; use {', '.join(STARTS)}, or a part")
    if initial != "known" and scale is not None:
        raise StatespanError(f"linear_gaussian(initial={initial!r}) has no initial_covariance; leave one of them out")
    return STARTS[initial](transition, mean, scale)


def _array(x: Any, name: str) -> Tensor:
    value = torch.as_tensor(x, dtype=torch.float64)
    if not bool(value.isfinite().all()):
        raise StatespanError(f"linear_gaussian({name}=) holds a value that is not finite; give numbers")
    return value


def _matrix(x: Any, name: str, most: int = 3) -> Tensor | None:
    if x is None:
        return None
    value = _array(x, name)
    if not 2 <= value.dim() <= most:
        one_a_step = " (or one a step)" if most > 2 else ""
        raise StatespanError(f"linear_gaussian({name}=) has {value.dim()} dimensions; give a matrix{one_a_step}")
    return value


def _vector(x: Any, name: str, most: int = 2) -> Tensor | None:
    if x is None:
        return None
    value = _array(x, name)
    if not 1 <= value.dim() <= most:
        raise StatespanError(f"linear_gaussian({name}=) has {value.dim()} dimensions; give a vector")
    return value


def _square(x: Tensor, name: str) -> Tensor:
    if x.shape[-2] != x.shape[-1]:
        raise StatespanError(f"linear_gaussian({name}=) is {tuple(x.shape)}; it must be square")
    return x


def _roots(covariance: Tensor, name: str) -> Tensor:
    """Roots of one covariance or of many."""
    _square(covariance, name)
    if not torch.allclose(covariance, covariance.mT, rtol=1e-6, atol=1e-9):
        raise StatespanError(f"linear_gaussian({name}=) is not symmetric; give a covariance")
    values = torch.linalg.eigvalsh(covariance)
    lowest = float((values[..., 0] + 1e-9 * values[..., -1].clamp_min(1)).min())
    if lowest < 0:
        least = float(values[..., 0].min())
        raise StatespanError(f"linear_gaussian({name}=) has the negative eigenvalue {least:.3g}; give a covariance")
    return factor(covariance)


def _agree(sizes: dict[str, int | None], ask: str) -> int:
    known = {name: size for name, size in sizes.items() if size is not None}
    if not known:
        raise StatespanError(f"linear_gaussian needs {ask}, or a matrix that says it")
    if len(set(known.values())) > 1:
        raise StatespanError(f"linear_gaussian: sizes differ: {', '.join(f'{n} {k}' for n, k in known.items())}")
    return next(iter(known.values()))
