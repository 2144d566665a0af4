"""Every sequence model with a hidden state, from the HMM to the LSTM, in one vocabulary.

Three parts make a model (how the state starts, how it moves, what it emits), a method infers, a kernel makes it fast;
the verbs (log_prob, filter, smooth, decode, forecast, sample, impute, fit, stream) work on all.
"""

from statespan.answers import Forecast, Posterior
from statespan.belief import Best, Diffuse, Discrete, Hidden, Hybrid, MixtureOfGaussians, Particles, Point
from statespan.belief import Gaussian as GaussianBelief
from statespan.checks.auxiliary import auxiliary
from statespan.checks.check import check
from statespan.errors import StatespanError
from statespan.families.changepoints import changepoints, segment_means
from statespan.families.dynamic_factor import dynamic_factor
from statespan.families.generalised import generalised_linear
from statespan.families.hidden_markov import factorial_hmm, hmm, semi_markov
from statespan.families.linear import continuous, linear_gaussian, matern
from statespan.families.structural import arima, autoregressive, cycle, decompose, level, regression, seasonal, slope
from statespan.families.subspace import subspace
from statespan.families.switching import markov_switching
from statespan.families.switching_linear import switching_linear
from statespan.families.switching_subspace import switching_subspace
from statespan.files import load
from statespan.fit import EM, LBFGS, SGD, VI, Chain, OnlineEM
from statespan.kernels import blocks as _blocks_kernels  # noqa: F401  (registers the kernels)
from statespan.kernels import finite as _finite_kernels  # noqa: F401
from statespan.kernels import kalman as _kalman_kernel  # noqa: F401
from statespan.kernels import recurrence as _recurrence_kernel  # noqa: F401
from statespan.kernels import recurrent as _recurrent_kernels  # noqa: F401
from statespan.kernels import run_lengths as _run_length_kernel  # noqa: F401
from statespan.ladder.rungs import LADDER, elman, gru, jordan, ladder, lstm
from statespan.method import Method, register, registered, run, scan
from statespan.methods import (
    Checkpointed,
    ConditionalMoments,
    Cubature,
    DiscreteKalman,
    EnsembleKalman,
    Forward,
    GaussHermite,
    GaussianSum,
    InteractingMultipleModel,
    Kalman,
    LaplaceApproximation,
    Linearised,
    MaxProduct,
    ParticleFilter,
    RaoBlackwellised,
    Recurrent,
    RunLengthFilter,
    StructuredMeanField,
    Taylor,
    Unscented,
    method_for,
)
from statespan.model import StateSpace
from statespan.parameters import free_parameters, summary
from statespan.part import Part
from statespan.parts.continuous import Continuous, Matern
from statespan.parts.durations import (
    FreeDurations,
    GeometricDurations,
    NegativeBinomialDurations,
    PoissonDurations,
    SemiMarkov,
    ages,
)
from statespan.parts.emissions import (
    AdditiveGaussian,
    AdditivePoisson,
    Bernoulli,
    Beta,
    Categorical,
    Emission,
    Exponential,
    FactorGaussian,
    Gamma,
    Gaussian,
    GaussianMixture,
    LinearRegression,
    LogisticRegression,
    LogNormal,
    Multinomial,
    NegativeBinomial,
    Poisson,
    PoissonRegression,
    StudentT,
    VonMises,
)
from statespan.parts.emissions import ProductEmission as Product
from statespan.parts.emissions.switching import SwitchingRegression, lagged
from statespan.parts.factorial import Factorial, FactorialStart
from statespan.parts.finite import Dense, banded, left_to_right
from statespan.parts.gaussian_initial import DiffuseStart, NormalStart, StationaryStart
from statespan.parts.initial import Start, Stationary
from statespan.parts.inputs import Generator, Regimes, SoftmaxStart, SoftmaxTransition
from statespan.parts.linear import Linear, Modulated, Scheduled
from statespan.parts.low_rank import LowRank
from statespan.parts.memory import Remembering, RememberingStart, StationaryUnder
from statespan.parts.nonlinear import NonlinearGaussian
from statespan.parts.orders import HigherOrder
from statespan.parts.renewal import ConstantHazard, Renewal, SegmentStart
from statespan.parts.segments import (
    BernoulliSegment,
    GaussianMeanSegment,
    GaussianSegment,
    PoissonSegment,
    RegressionSegment,
    Segment,
)
from statespan.parts.sparse import Sparse
from statespan.parts.switching_linear import (
    RecurrentSwitchingLinear,
    SwitchingEmission,
    SwitchingLinear,
    SwitchingStart,
)
from statespan.parts.wide import IndependentGaussian, IndependentStart
from statespan.selection import align, compare, select_states
from statespan.sequences import Sequences
from statespan.tree import Shared, detach
from statespan.verbs import Stream
from statespan.version import __version__

__all__ = [
    "EM",
    "LADDER",
    "LBFGS",
    "SGD",
    "VI",
    "AdditiveGaussian",
    "AdditivePoisson",
    "Bernoulli",
    "BernoulliSegment",
    "Best",
    "Beta",
    "Categorical",
    "Chain",
    "Checkpointed",
    "ConditionalMoments",
    "ConstantHazard",
    "Continuous",
    "Cubature",
    "Dense",
    "Diffuse",
    "DiffuseStart",
    "Discrete",
    "DiscreteKalman",
    "Emission",
    "EnsembleKalman",
    "Exponential",
    "FactorGaussian",
    "Factorial",
    "FactorialStart",
    "Forecast",
    "Forward",
    "FreeDurations",
    "Gamma",
    "GaussHermite",
    "Gaussian",
    "GaussianBelief",
    "GaussianMeanSegment",
    "GaussianMixture",
    "GaussianSegment",
    "GaussianSum",
    "Generator",
    "GeometricDurations",
    "Hidden",
    "HigherOrder",
    "Hybrid",
    "IndependentGaussian",
    "IndependentStart",
    "InteractingMultipleModel",
    "Kalman",
    "LaplaceApproximation",
    "Linear",
    "LinearRegression",
    "Linearised",
    "LogNormal",
    "LogisticRegression",
    "LowRank",
    "Matern",
    "MaxProduct",
    "Method",
    "MixtureOfGaussians",
    "Modulated",
    "Multinomial",
    "NegativeBinomial",
    "NegativeBinomialDurations",
    "NonlinearGaussian",
    "NormalStart",
    "OnlineEM",
    "Part",
    "ParticleFilter",
    "Particles",
    "Point",
    "Poisson",
    "PoissonDurations",
    "PoissonRegression",
    "PoissonSegment",
    "Posterior",
    "Product",
    "RaoBlackwellised",
    "Recurrent",
    "RecurrentSwitchingLinear",
    "Regimes",
    "RegressionSegment",
    "Remembering",
    "RememberingStart",
    "Renewal",
    "RunLengthFilter",
    "Scheduled",
    "Segment",
    "SegmentStart",
    "SemiMarkov",
    "Sequences",
    "Shared",
    "SoftmaxStart",
    "SoftmaxTransition",
    "Sparse",
    "Start",
    "StateSpace",
    "StatespanError",
    "Stationary",
    "StationaryStart",
    "StationaryUnder",
    "Stream",
    "StructuredMeanField",
    "StudentT",
    "SwitchingEmission",
    "SwitchingLinear",
    "SwitchingRegression",
    "SwitchingStart",
    "Taylor",
    "Unscented",
    "VonMises",
    "__version__",
    "ages",
    "align",
    "arima",
    "autoregressive",
    "auxiliary",
    "banded",
    "changepoints",
    "check",
    "compare",
    "continuous",
    "cycle",
    "decompose",
    "detach",
    "dynamic_factor",
    "elman",
    "factorial_hmm",
    "free_parameters",
    "generalised_linear",
    "gru",
    "hmm",
    "jordan",
    "ladder",
    "lagged",
    "left_to_right",
    "level",
    "linear_gaussian",
    "load",
    "lstm",
    "markov_switching",
    "matern",
    "method_for",
    "register",
    "registered",
    "regression",
    "run",
    "scan",
    "seasonal",
    "segment_means",
    "select_states",
    "semi_markov",
    "slope",
    "subspace",
    "summary",
    "switching_linear",
    "switching_subspace",
]
