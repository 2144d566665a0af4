"""Markov-switching regressions and autoregressions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from statespan.errors import StatespanError
from statespan.families.hidden_markov import hmm
from statespan.model import StateSpace
from statespan.part import seeded
from statespan.parts.emissions.common import stochastic
from statespan.parts.emissions.switching import SWITCHES, SwitchingRegression
from statespan.parts.finite import Dense
from statespan.parts.initial import Start, Stationary
from statespan.parts.inputs import SoftmaxTransition
from statespan.parts.memory import Remembering, RememberingStart, StationaryUnder


def markov_switching(
    states: int = 2,
    lags: int = 0,
    inputs: int = 0,
    switching: Sequence[Any] = SWITCHES,
    adjusted: bool = False,
    drivers: int = 0,
    initial: Any = None,
    transition: Any = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    seed: int | None = None,
) -> StateSpace:
    r"""A Markov-switching regression or autoregression of one series.

    With m_t(k) = W_k u_t + b_k in regime k:

    - intercept form: y_t = m_t(s_t) + sum over j of phi_j(s_t) y_{t-j} + sigma(s_t) e_t;
    - mean-adjusted form (`adjusted`): y_t - m_t(s_t) = sum over j of phi_j(s_t) (y_{t-j} - m_{t-j}(s_{t-j})) +
      sigma(s_t) e_t, exact on the K^(lags+1) states that remember the regimes of the lags; answers are about s_t.

    The first `lags` steps of a series are given. With `drivers` the probabilities of the moves vary in time,
    p(s_t = j | s_{t-1} = i, x_t) = softmax over j of (a_i + B_i x_t)_j.

    One step ahead a forecast is an exact mixture of normals; further on, where there are lags, it is made of sampled
    futures. The parameters are `model.emission.coefficients` (W and then b), `.autoregression` and `.variance`, set by
    `model.emission.set_values`, and `model.transition`.

    Args:
        states: K, the number of regimes.
        lags: how many past values.
        inputs: U, how many regressors. With `adjusted` and lags give `inputs=ss.lagged(u, lags)`, and so in `future=`.
        switching: what differs between regimes, of "intercept", "inputs", "lags", "variance"; a number stands for that
            input alone. The rest is the same in all regimes.
        adjusted: the mean-adjusted form.
        drivers: how many inputs move the probabilities of the moves; they stand after the regressors.
        initial: (K,) probabilities of the first regime, or an initial part of K states; None is the chain's stationary
            distribution (with `drivers`, that of the first step's table).
        transition: (K, K) probabilities, or a transition part of K states; None is free.
        dtype: float64 unless you say otherwise.
        device: where the parameters lie.
        seed: makes the random start repeatable.

    Raises:
        StatespanError: sizes that do not agree, rows that do not sum to one.

    Source:
        Hamilton, Econometrica 57, 1989; Hamilton, Time Series Analysis 1994, chapter 22; Kim and Nelson, State-Space
        Models with Regime Switching 1999, chapter 4; varying probabilities: Filardo, Journal of Business and Economic
        Statistics 12, 1994.

    Example:
        >>> import statespan as ss
        >>> model = ss.markov_switching(states=2, lags=1, switching=["intercept", "variance"], adjusted=True, seed=0)
        >>> y = [0.2, 0.5, 0.1, 3.2, 2.9, 3.4, 3.0]
        >>> model.smooth(y).probs.shape, model.forecast(y, steps=2).mean.shape
        (torch.Size([7, 2]), torch.Size([2, 1]))
    """
    if states < 1 or drivers < 0:
        raise StatespanError(f"markov_switching(states={states}, drivers={drivers}): use at least 1 and 0")
    follows = hasattr(initial, "following")
    start_table, initial = given_table(None if follows else initial, "markov_switching(initial=)", 1, states)
    move_table, transition = given_table(transition, "markov_switching(transition=)", 2, states)
    if drivers and move_table is not None:
        raise StatespanError("markov_switching: a table of probabilities follows no drivers; give one of the two")
    with seeded(seed):
        emission = SwitchingRegression(inputs, lags, states, switching, adjusted, beside=drivers)
        chain: Any = transition
        if transition is None:
            chain = transition = SoftmaxTransition(states, drivers) if drivers else Dense(states)
        if initial is None:
            initial = StationaryUnder(chain, drivers) if drivers else Stationary(chain)
        if start_table is not None:
            initial = Start(states)
        start: Any = initial
        memory = lags if adjusted else 0
        if memory or drivers:
            first = inputs * (memory + 1)
            initial = RememberingStart(initial, memory, first, drivers)
            transition = Remembering(chain, memory, first, drivers)
        model = hmm(states, emission, initial, transition, dtype, device)
    if move_table is not None:
        chain.set_probs(move_table.to(next(chain.parameters())))
    if start_table is not None:
        start.set_probs(start_table.to(next(start.parameters())))
    return model


def given_table(given: Any, name: str, rank: int, states: int) -> tuple[Any, Any]:
    """Probabilities and no part, or no probabilities and what was given."""
    if given is None or isinstance(given, nn.Module):
        if given is not None and getattr(given, "states", None) != states:
            raise StatespanError(f"{name} has {getattr(given, 'states', None)} states; give it states={states}")
        return None, given
    table = stochastic(given, name, rank)
    if table.shape != (states,) * rank:
        raise StatespanError(f"{name} is {tuple(table.shape)}; it must be {(states,) * rank}")
    return table, None
