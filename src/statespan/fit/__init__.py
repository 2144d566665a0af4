"""Fitting: EM and gradient descent on the same object."""

from statespan.fit.em import EM
from statespan.fit.fitting import Chain, Fitter, fit
from statespan.fit.lbfgs import LBFGS
from statespan.fit.online import OnlineEM
from statespan.fit.sgd import SGD
from statespan.fit.vi import VI

__all__ = ["EM", "LBFGS", "SGD", "VI", "Chain", "Fitter", "OnlineEM", "fit"]
