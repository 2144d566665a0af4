"""Models people know by name."""

from typing import Any

import torch
from torch import Tensor, nn

from statespan.errors import StatespanError
from statespan.model import StateSpace
from statespan.part import seeded
from statespan.parts.emissions import stochastic
from statespan.parts.finite import Dense
from statespan.parts.initial import NormalStart, Start
from statespan.parts.linear import Linear, factor


def hmm(
    states: int | None = None,
    emission: Any = None,
    initial: Any = None,
    transition: Any = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    seed: int | None = None,
) -> StateSpace:
    r"""A hidden Markov model: p(z_1) product of p(z_t | z_{t-1}) product of p(y_t | z_t).

    Give the number of states, or the parameters themselves, or parts.

    Args:
        states: K; needed unless the emission or a given table says it.
        emission: an emission part, such as `Categorical(symbols)` or `Gaussian(dim)`.
        initial: (K,) probabilities, or an initial part.
        transition: (K, K) probabilities, `transition[i, j]` is p(next = j | now = i), or a transition part.
        dtype: float64 unless you say otherwise.
        device: where the parameters lie.
        seed: makes the random start repeatable.

    Raises:
        StatespanError: sizes that do not agree, rows that do not sum to one.

    Source:
        Rabiner 1989.

    Example:
        >>> import statespan as ss
        >>> model = ss.hmm(states=2, emission=ss.Categorical(3), seed=0)
        >>> model.filter([0, 1, 2]).probs.shape
        torch.Size([3, 2])
    """
    if emission is None:
        raise StatespanError("hmm needs an emission, such as ss.Categorical(symbols=10) or ss.Gaussian(dim=2)")
    given_initial = stochastic(initial, "hmm(initial=)", 1) if _is_table(initial) else None
    given_transition = stochastic(transition, "hmm(transition=)", 2) if _is_table(transition) else None
    sizes = {
        "states=": states,
        "emission": getattr(emission, "states", None),
        "initial": getattr(initial, "states", None) if given_initial is None else len(given_initial),
        "transition": getattr(transition, "states", None) if given_transition is None else len(given_transition),
    }
    known = {name: size for name, size in sizes.items() if size is not None}
    if len(set(known.values())) > 1:
        raise StatespanError(f"hmm: the number of states differs: {', '.join(f'{n} {k}' for n, k in known.items())}")
    if given_transition is not None and given_transition.shape[0] != given_transition.shape[1]:
        raise StatespanError(f"hmm(transition=) is {tuple(given_transition.shape)}; it must be square")
    if not known and (initial is None or transition is None):
        raise StatespanError("hmm needs states=K, the number of hidden states")
    k = next(iter(known.values()), 0)
    if known and k < 1:
        raise StatespanError(f"hmm: states={k}; use at least one")
    with seeded(seed):
        model = StateSpace(
            Start(k) if initial is None or given_initial is not None else initial,
            Dense(k) if transition is None or given_transition is not None else transition,
            emission.sized(k) if hasattr(emission, "sized") else emission,
        )
    model = model.to(device=device, dtype=dtype or torch.float64)
    if given_initial is not None:
        model.initial.set_probs(given_initial)
    if given_transition is not None:
        model.transition.set_probs(given_transition)
    return model


def linear_gaussian(
    state: int | None = None,
    observed: int | None = None,
    dynamics: Any = None,
    state_noise: Any = None,
    observation: Any = None,
    observation_noise: Any = None,
    initial_mean: Any = None,
    initial_covariance: Any = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    seed: int | None = None,
) -> StateSpace:
    r"""z_t = A z_{t-1} + N(0, Q), y_t = C z_t + N(0, R), z_1 ~ N(m, P).

    What is not given starts at: A = 0.9 I, Q = I, C random normal, R = I, m = 0, P = I.

    Args:
        state: D.
        observed: E.
        dynamics: A, (D, D).
        state_noise: Q, (D, D), a covariance.
        observation: C, (E, D).
        observation_noise: R, (E, E), a covariance.
        initial_mean: m, (D,).
        initial_covariance: P, (D, D).
        dtype: float64 unless you say otherwise.
        device: where the parameters lie.
        seed: makes the random start repeatable.

    Raises:
        StatespanError: shapes that do not agree, or a covariance that is not symmetric positive semi-definite.

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
    p = _matrix(initial_covariance, "initial_covariance")
    m = None if initial_mean is None else torch.as_tensor(initial_mean, dtype=torch.float64)
    if m is not None and m.dim() != 1:
        raise StatespanError(f"linear_gaussian(initial_mean=) has {m.dim()} dimensions; give a vector")
    states = {
        "state=": state,
        "dynamics": None if a is None else len(a),
        "state_noise": None if q is None else len(q),
        "observation's columns": None if c is None else c.shape[1],
        "initial_mean": None if m is None else len(m),
        "initial_covariance": None if p is None else len(p),
    }
    outputs = {
        "observed=": observed,
        "observation's rows": None if c is None else len(c),
        "observation_noise": None if r is None else len(r),
    }
    d, e = _agree(states, "state=D"), _agree(outputs, "observed=E")
    with seeded(seed):
        model = StateSpace(NormalStart(d), Linear(d), Linear(d, e))
        nn.init.normal_(model.emission.matrix)
    model = model.to(torch.float64)
    with torch.no_grad():
        model.transition.matrix.copy_(0.9 * torch.eye(d) if a is None else _square(a, "dynamics"))
        for name, value, target in (
            ("state_noise", q, model.transition.scale),
            ("observation_noise", r, model.emission.scale),
            ("initial_covariance", p, model.initial.scale),
        ):
            if value is not None:
                target.copy_(_root(value, name))
        if c is not None:
            model.emission.matrix.copy_(c)
        if m is not None:
            model.initial.mean.copy_(m)
    return model.to(device=device, dtype=dtype or torch.float64)


def _is_table(x: Any) -> bool:
    """Whether a user gave numbers rather than a part."""
    return x is not None and not isinstance(x, nn.Module)


def _matrix(x: Any, name: str) -> Tensor | None:
    if x is None:
        return None
    value = torch.as_tensor(x, dtype=torch.float64)
    if value.dim() != 2:
        raise StatespanError(f"linear_gaussian({name}=) has {value.dim()} dimensions; give a matrix")
    return value


def _square(x: Tensor, name: str) -> Tensor:
    if x.shape[0] != x.shape[1]:
        raise StatespanError(f"linear_gaussian({name}=) is {tuple(x.shape)}; it must be square")
    return x


def _root(covariance: Tensor, name: str) -> Tensor:
    _square(covariance, name)
    if not torch.allclose(covariance, covariance.T, rtol=1e-6, atol=1e-9):
        raise StatespanError(f"linear_gaussian({name}=) is not symmetric; give a covariance")
    lowest, highest = torch.linalg.eigvalsh(covariance)[[0, -1]].tolist()
    if lowest < -1e-9 * max(1.0, highest):
        raise StatespanError(f"linear_gaussian({name}=) has the negative eigenvalue {lowest:.3g}; give a covariance")
    return factor(covariance)


def _agree(sizes: dict[str, int | None], ask: str) -> int:
    known = {name: size for name, size in sizes.items() if size is not None}
    if not known:
        raise StatespanError(f"linear_gaussian needs {ask}, or a matrix that says it")
    if len(set(known.values())) > 1:
        raise StatespanError(f"linear_gaussian: sizes differ: {', '.join(f'{n} {k}' for n, k in known.items())}")
    return next(iter(known.values()))
