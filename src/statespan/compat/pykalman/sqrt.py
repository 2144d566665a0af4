"""What pykalman has once more on square roots of covariances: statespan always works on those, so they are the same."""

from statespan.compat.pykalman.standard import KalmanFilter
from statespan.compat.pykalman.unscented import AdditiveUnscentedKalmanFilter

BiermanKalmanFilter = CholeskyKalmanFilter = KalmanFilter

__all__ = ["AdditiveUnscentedKalmanFilter", "BiermanKalmanFilter", "CholeskyKalmanFilter"]
