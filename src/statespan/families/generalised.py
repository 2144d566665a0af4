"""Counts, successes and symbols over a linear Gaussian state: the dynamic generalised linear model by name."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from statespan.errors import StatespanError, brief
from statespan.method import lacks
from statespan.methods.kalman import Kalman
from statespan.model import StateSpace
from statespan.parts.generalised import GeneralisedLinear, GeneralisedObservation, WideStart
from statespan.parts.laws import BinomialLaw, Law, NegativeBinomialLaw, PoissonLaw, SoftmaxLaw
from statespan.parts.linear import Linear

LAWS: dict[str, Callable[[int, int | None], nn.Module]] = {
    "poisson": lambda width, trials: PoissonLaw(),
    "bernoulli": lambda width, trials: BinomialLaw(1),
    "binomial": lambda width, trials: BinomialLaw(0 if trials is None else trials),
    "negative binomial": lambda width, trials: NegativeBinomialLaw(width),
    "categorical": lambda width, trials: SoftmaxLaw(),
}
"""Laws of observations by name, from how many predictors there are and the trials."""


def generalised_linear(
    predictor: StateSpace, emission: Any, trials: int | None = None, spread: float = 10.0
) -> StateSpace:
    r"""The discrete Kalman filter's model: y_t ~ law(eta_t), where eta_t = C z_t + d is a linear Gaussian series.

    `predictor` is a model of the series of predictors, `ss.linear_gaussian(...)` or a structural one such as
    `ss.level() + ss.seasonal(12)`; its observation noise is left out. Predictors are log rates of "poisson" and
    "negative binomial" counts, log odds of "bernoulli" zeros and ones and of "binomial" successes, and of "categorical"
    symbols unnormalised logarithms, one for each symbol (`observed=V`).

    An exposure (the population, the length of a month) is an input whose coefficient is held at one: its logarithm.

    Args:
        predictor: the model of the predictors; it stays as it is.
        emission: the law by name, or a `statespan.parts.laws.Law` of one's own.
        trials: of "binomial", how many.
        spread: a start that is diffuse is made wide instead, of this standard deviation on the predictors' scale.

    Raises:
        StatespanError: a law that is not known, trials that do not go with it, or a predictor that is not linear
            Gaussian.

    Source:
        West, Harrison and Migon 1985; Fahrmeir 1992; Durbin and Koopman 2012, chapter 9.

    Example:
        >>> import statespan as ss
        >>> model = ss.generalised_linear(ss.level(), "poisson")
        >>> _ = model.fit([4, 7, 3, 9, 12, 10, 15, 11], by=ss.LBFGS(iterations=20))
        >>> model.forecast([4, 7, 3, 9, 12, 10, 15, 11], steps=2).quantile([0.1, 0.9]).shape
        torch.Size([2, 2, 1])
    """
    if not isinstance(predictor, StateSpace) or lacks(Kalman, predictor):
        raise StatespanError(
            "generalised_linear takes a linear Gaussian model of the predictors: ss.linear_gaussian(...), or a "
            "structural one such as ss.level() + ss.seasonal(12)"
        )
    if isinstance(emission, str) and emission not in LAWS:
        raise StatespanError(
            f"generalised_linear(emission={brief(emission)}) is not known; use {', '.join(LAWS)}, or a Law"
        )
    if (trials is not None) != (emission == "binomial"):
        raise StatespanError('generalised_linear: trials= goes with "binomial", and with no other')
    copied = copy.deepcopy(predictor)
    given, width = copied.emission, copied.emission.event.dim
    law = LAWS[emission](width, trials) if isinstance(emission, str) else emission
    if not isinstance(law, Law):
        raise StatespanError(
            f"generalised_linear(emission={brief(emission)}) is no law; use {', '.join(LAWS)}, or a Law"
        )
    start = copied.initial
    if start.gaussian(1).factor is not None:
        start = WideStart(start, spread)
    if type(given) is not Linear:
        given.scale.requires_grad_(False)
        return StateSpace(start, copied.transition, GeneralisedObservation(given, law).to(given.scale))
    seen = GeneralisedLinear(law, given.matrix.shape[1], width, given.controls).to(given.matrix)
    with torch.no_grad():
        for parameter, value in zip((seen.matrix, seen.offset), (given.matrix, given.offset), strict=True):
            parameter.copy_(value).requires_grad_(value.requires_grad)
        if seen.control is not None and given.control is not None:
            seen.control.copy_(given.control).requires_grad_(given.control.requires_grad)
    return StateSpace(start, copied.transition, seen)
