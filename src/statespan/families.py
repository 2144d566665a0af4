"""Models people know by name."""

from typing import Any

import torch
from torch import nn

from statespan.errors import StatespanError
from statespan.families_linear import linear_gaussian
from statespan.model import StateSpace
from statespan.part import seeded
from statespan.parts.emissions import stochastic
from statespan.parts.finite import Dense
from statespan.parts.initial import Start

__all__ = ["hmm", "linear_gaussian"]


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


def _is_table(x: Any) -> bool:
    """Whether a user gave numbers rather than a part."""
    return x is not None and not isinstance(x, nn.Module)
