"""Switching linear dynamical systems, recurrent ones too."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from statespan.errors import StatespanError
from statespan.families.linear import linear_gaussian
from statespan.families.switching import given_table
from statespan.model import StateSpace
from statespan.part import seeded
from statespan.parts.finite import Dense
from statespan.parts.initial import Start
from statespan.parts.switching_linear import (
    RecurrentSwitchingLinear,
    SwitchingEmission,
    SwitchingLinear,
    SwitchingStart,
)

STAY = 0.95
"""The probability of staying in a regime that a chain starts from."""
RANKS = {
    "dynamics": 2,
    "state_noise": 2,
    "state_offset": 1,
    "observation": 2,
    "observation_noise": 2,
    "observation_offset": 1,
    "initial_mean": 1,
    "initial_covariance": 2,
}
"""How many axes each value has where it is the same in all regimes."""


def switching_linear(
    states: int = 2,
    state: int | None = None,
    observed: int | None = None,
    dynamics: Any = None,
    state_noise: Any = None,
    state_offset: Any = None,
    observation: Any = None,
    observation_noise: Any = None,
    observation_offset: Any = None,
    initial_mean: Any = None,
    initial_covariance: Any = None,
    initial: Any = None,
    transition: Any = None,
    recurrent: bool = False,
    inputs: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    seed: int | None = None,
) -> StateSpace:
    r"""A switching linear dynamical system: a chain of regimes s_t that picks the matrices of a linear Gaussian model.

    z_t = A_s z_{t-1} + B_s u_t + b_s + N(0, Q_s), y_t = C_s z_t + D_s u_t + d_s + N(0, R_s), s = s_t.

    Any value may have one more axis in front, of K regimes. Moves are each regime's own; what is observed of z, and how
    it starts, has one set of parameters for all regimes unless a value with that axis is given. What is not given
    starts at: A_s near 0.9 I and b_s near 0, at random; C random (the identity where E = D); Q, R, P = I; a chain that
    stays with probability 0.95.

    The model's own method is `GaussianSum()`; exact inference takes K^T Kalman filters. `model.smooth(y)` has `.probs`
    of the regimes, `.states`, the most probable one of each step, and `.mean` and `.covariance` of z whatever the
    regime; `decode` gives the likeliest path of regimes, and with `k=` the k likeliest; `sample` and
    `sample_posterior` give pairs `(regime, state)`. `fit` is by EM with a variational E-step, which needs noise in
    every direction: what climbs, and what `history` holds, is a lower bound of log p(y), of a recurrent model a lower
    one; `by=ss.LBFGS()` climbs `log_prob` itself. From parameters at random regimes may never part:
    `ss.switching_subspace` begins with the data.

    Args:
        states: K, the number of regimes.
        state: D.
        observed: E.
        dynamics: A, (D, D) or (K, D, D).
        state_noise: Q, a covariance, (D, D) or (K, D, D).
        state_offset: b, (D,) or (K, D).
        observation: C, (E, D) or (K, E, D).
        observation_noise: R, a covariance, (E, E) or (K, E, E).
        observation_offset: d, (E,) or (K, E).
        initial_mean: m, (D,) or (K, D).
        initial_covariance: P, (D, D) or (K, D, D).
        initial: (K,) probabilities of the first regime, or an initial part of K states; None is free, from equal ones.
        transition: (K, K) probabilities, or a transition part of K states, such as `ss.Dense(K, sticky=20)` or
            `ss.SoftmaxTransition(K, inputs=U)`; None is free.
        recurrent: p(s_t | s_{t-1}, z_{t-1}) is a softmax regression on z_{t-1}; `transition` is then left out.
        inputs: U, the width of u, which acts on moves and observations.
        dtype: float64 unless you say otherwise.
        device: where the parameters lie.
        seed: makes the random start repeatable.

    Raises:
        StatespanError: sizes that do not agree, a covariance that is none, rows that do not sum to one.

    Source:
        Ghahramani and Hinton, "Variational learning for switching state-space models", Neural Computation 12, 2000;
        Barber, Bayesian Reasoning and Machine Learning 2012, chapter 25; recurrent: Linderman et al., AISTATS 2017.

    Example:
        >>> import statespan as ss
        >>> model = ss.switching_linear(states=2, dynamics=[[[0.99]], [[0.5]]], observation=[[1.0]], seed=0)
        >>> y = [1.0, 1.1, 0.9, None, 0.1, -0.3]
        >>> model.smooth(y).probs.shape, model.decode(y).shape, model.forecast(y, steps=2).quantile(0.9).shape
        (torch.Size([6, 2]), torch.Size([6]), torch.Size([2, 1]))
    """
    if states < 1:
        raise StatespanError(f"switching_linear(states={states}): use at least 1")
    if recurrent and transition is not None:
        raise StatespanError("switching_linear: a recurrent model has its own softmax in place of transition=")
    values = {
        "dynamics": dynamics,
        "state_noise": state_noise,
        "state_offset": state_offset,
        "observation": observation,
        "observation_noise": observation_noise,
        "observation_offset": observation_offset,
        "initial_mean": initial_mean,
        "initial_covariance": initial_covariance,
    }
    given = {name: _values(x, name, states) for name, x in values.items() if x is not None}
    start_table, initial = given_table(initial, "switching_linear(initial=)", 1, states)
    move_table, transition = given_table(transition, "switching_linear(transition=)", 2, states)
    with seeded(seed):
        each = [_regime(given, k, state, observed, inputs) for k in range(states)]
        apart = {name for name, x in given.items() if x.dim() > RANKS[name]}
        moves: list[Any] = [one.transition for one in each]
        with torch.no_grad():
            for move in moves:
                if "dynamics" not in given:
                    move.matrix.add_(0.1 * torch.randn_like(move.matrix))
                if "state_offset" not in given:
                    move.offset.add_(0.1 * torch.randn_like(move.offset))
        own = lambda prefix: each if any(name.startswith(prefix) for name in apart) else each[:1]  # noqa: E731
        emission = SwitchingEmission([one.emission for one in own("observation")])
        first = Start(states) if initial is None else initial
        start = SwitchingStart(first, [one.initial for one in own("initial")])
        if recurrent:
            moved: Any = RecurrentSwitchingLinear(states, moves)
        else:
            moved = SwitchingLinear(Dense(states) if transition is None else transition, moves)
        model = StateSpace(start, moved, emission).to(device=device, dtype=dtype or torch.float64)
    free = torch.full((states, states), (1 - STAY) / max(states - 1, 1)).fill_diagonal_(STAY if states > 1 else 1.0)
    with torch.no_grad():
        if recurrent:
            moved.logits.copy_(free.log())
        elif transition is None:
            moved.chain.set_probs((free if move_table is None else move_table).to(moved.chain.logits))
        if start_table is not None:
            model.initial.chain.set_probs(start_table.to(model.initial.chain.logits))
    return model


def _values(x: Any, name: str, states: int) -> Tensor:
    """A value for all regimes, or with an axis of them."""
    value = torch.as_tensor(x, dtype=torch.float64)
    rank = RANKS[name]
    if value.dim() not in (rank, rank + 1) or (value.dim() > rank and len(value) != states):
        raise StatespanError(
            f"switching_linear({name}=) is {tuple(value.shape)}; give {rank} axes, or one more in front for "
            f"the {states} regimes"
        )
    return value


def _regime(given: Mapping[str, Tensor], k: int, state: int | None, observed: int | None, inputs: int) -> StateSpace:
    """The linear Gaussian model of one regime."""
    own: dict[str, Any] = {name: x[k] if x.dim() > RANKS[name] else x for name, x in given.items()}
    if "observation" not in own and state == observed and state is not None:
        own["observation"] = torch.eye(state)
    try:
        return linear_gaussian(state=state, observed=observed, inputs=inputs, **own)
    except StatespanError as error:
        raise StatespanError(f"switching_linear, regime {k}: {error}") from error
