"""Fitting: EM and gradient descent on the same object."""

from statespan.fit.em import EM
from statespan.fit.fitting import Fitter, fit
from statespan.fit.lbfgs import LBFGS
from statespan.fit.sgd import SGD

__all__ = ["EM", "LBFGS", "SGD", "Fitter", "fit"]
