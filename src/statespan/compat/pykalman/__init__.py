"""A drop-in for pykalman 0.11: change the import, keep the program."""

from statespan.compat.pykalman import sqrt, standard, unscented
from statespan.compat.pykalman._convert import from_pykalman
from statespan.compat.pykalman.standard import KalmanFilter
from statespan.compat.pykalman.unscented import AdditiveUnscentedKalmanFilter, UnscentedKalmanFilter

__all__ = [
    "AdditiveUnscentedKalmanFilter",
    "KalmanFilter",
    "UnscentedKalmanFilter",
    "from_pykalman",
    "sqrt",
    "standard",
    "unscented",
]
