"""What a finite state emits."""

from statespan.parts.emissions.additive import AdditiveGaussian, AdditivePoisson
from statespan.parts.emissions.bounded import Beta, VonMises
from statespan.parts.emissions.categorical import Categorical
from statespan.parts.emissions.common import stochastic
from statespan.parts.emissions.counts import Bernoulli, Multinomial, NegativeBinomial, Poisson
from statespan.parts.emissions.distribution import Emission
from statespan.parts.emissions.factor import FactorGaussian
from statespan.parts.emissions.gaussian import Gaussian
from statespan.parts.emissions.mixture import GaussianMixture
from statespan.parts.emissions.positive import Exponential, Gamma, LogNormal
from statespan.parts.emissions.product import ProductEmission
from statespan.parts.emissions.regression import LinearRegression, LogisticRegression, PoissonRegression
from statespan.parts.emissions.student import StudentT

__all__ = [
    "AdditiveGaussian",
    "AdditivePoisson",
    "Bernoulli",
    "Beta",
    "Categorical",
    "Emission",
    "Exponential",
    "FactorGaussian",
    "Gamma",
    "Gaussian",
    "GaussianMixture",
    "LinearRegression",
    "LogNormal",
    "LogisticRegression",
    "Multinomial",
    "NegativeBinomial",
    "Poisson",
    "PoissonRegression",
    "ProductEmission",
    "StudentT",
    "VonMises",
    "stochastic",
]
