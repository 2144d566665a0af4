"""What a finite state emits."""

from statespan.parts.emissions.categorical import Categorical
from statespan.parts.emissions.common import stochastic
from statespan.parts.emissions.gaussian import Gaussian

__all__ = ["Categorical", "Gaussian", "stochastic"]
