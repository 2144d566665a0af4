"""The linear Gaussian model by its matrices."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from statespan.errors import StatespanError
from statespan.model import StateSpace
from statespan.part import seeded
from statespan.parts.gaussian_initial import DiffuseStart, NormalStart, StationaryStart
from statespan.parts.linear import Linear, Scheduled, factor

APPROXIMATE = 1e6
"""The variance that stands for not knowing where an approximately diffuse start is."""


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
        transition = _part(size, size, u, (start, b, kept), moved)
        emission = _part(size, width, u, (seen, d, noise), shown)
    model = StateSpace(_initial(initial, transition, m, spread), transition, emission)
    return model.to(device=device, dtype=dtype or torch.float64)


def _part(
    size: int, width: int, controls: int, given: tuple[Tensor, Tensor | None, Tensor | None], control: Tensor | None
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
    part = Scheduled(size, width, steps) if varies else Linear(size, width, controls)
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
