"""What a finite state emits."""

from statespan.parts.emissions.bounded import Beta, VonMises
from statespan.parts.emissions.categorical import Categorical
from statespan.parts.emissions.common import stochastic
from statespan.parts.emissions.counts import Bernoulli, Multinomial, NegativeBinomial, Poisson
from statespan.parts.emissions.gaussian import Gaussian
from statespan.parts.emissions.positive import Exponential, Gamma, LogNormal

__all__ = [
    "Bernoulli",
    "Beta",
    "Categorical",
    "Exponential",
    "Gamma",
    "Gaussian",
    "LogNormal",
    "Multinomial",
    "NegativeBinomial",
    "Poisson",
    "VonMises",
    "stochastic",
]
