"""The methods, and which one a model gets when none is named."""

from typing import TYPE_CHECKING, Any

from statespan.errors import StatespanError, brief
from statespan.method import Method, lacks
from statespan.methods.checkpointed import Checkpointed
from statespan.methods.discrete_kalman import DiscreteKalman
from statespan.methods.ensemble import EnsembleKalman
from statespan.methods.forward import Forward
from statespan.methods.kalman import Kalman
from statespan.methods.linearisation import Cubature, GaussHermite, Taylor, Unscented
from statespan.methods.linearised import Linearised
from statespan.methods.max_product import MaxProduct
from statespan.methods.mean_field import StructuredMeanField
from statespan.methods.multiple_models import GaussianSum, InteractingMultipleModel, RaoBlackwellised
from statespan.methods.particle import ParticleFilter
from statespan.methods.recurrent import Recurrent
from statespan.methods.run_lengths import RunLengthFilter
from statespan.methods.updates import ConditionalMoments, LaplaceApproximation

if TYPE_CHECKING:
    from statespan.model import StateSpace

DEFAULTS: tuple[type[Method], ...] = (
    Forward,
    Kalman,
    DiscreteKalman,
    Linearised,
    Recurrent,
    RunLengthFilter,
    GaussianSum,
    ParticleFilter,
)
"""The order of choice: the special before the general, particles last."""


def method_for(model: "StateSpace") -> Method:
    """The first method of `DEFAULTS` that accepts the model's parts.

    Args:
        model: a state space.

    Raises:
        StatespanError: none does; the message lists what each lacks.

    Example:
        >>> import statespan as ss
        >>> type(ss.method_for(ss.lstm(vocabulary=3, width=4))).__name__
        'Recurrent'
    """
    for method in DEFAULTS:
        if not lacks(method, model):
            return method()
    reasons = "; ".join(f"{method.__name__}: {', '.join(lacks(method, model))}" for method in DEFAULTS)
    raise StatespanError(f"no method accepts these parts ({reasons})")


def check(method: Any, model: "StateSpace") -> Method:
    """The method, if it is one and accepts the model's parts."""
    if not isinstance(method, Method):
        raise StatespanError(f"method={brief(method)} is no inference method; give an instance, such as ss.Forward()")
    missing = lacks(type(method), model)
    if missing:
        raise StatespanError(f"{type(method).__name__} does not accept this model: {', '.join(missing)}")
    return method


__all__ = [
    "DEFAULTS",
    "Checkpointed",
    "ConditionalMoments",
    "Cubature",
    "DiscreteKalman",
    "EnsembleKalman",
    "Forward",
    "GaussHermite",
    "GaussianSum",
    "InteractingMultipleModel",
    "Kalman",
    "LaplaceApproximation",
    "Linearised",
    "MaxProduct",
    "ParticleFilter",
    "RaoBlackwellised",
    "Recurrent",
    "RunLengthFilter",
    "StructuredMeanField",
    "Taylor",
    "Unscented",
    "check",
    "method_for",
]
