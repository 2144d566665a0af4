"""A drop-in for hmmlearn 0.3.3: change the import, keep the program."""

# ruff: noqa: E402  (what is missing is said before it is imported)
from statespan.compat import need_sklearn

need_sklearn()

from statespan.compat.hmmlearn import base, hmm, utils, vhmm
from statespan.compat.hmmlearn._convert import drop_in, from_hmmlearn
from statespan.compat.hmmlearn.hmm import GMMHMM, CategoricalHMM, GaussianHMM, MultinomialHMM, PoissonHMM
from statespan.compat.hmmlearn.vhmm import VariationalCategoricalHMM, VariationalGaussianHMM

__all__ = [
    "GMMHMM",
    "CategoricalHMM",
    "GaussianHMM",
    "MultinomialHMM",
    "PoissonHMM",
    "VariationalCategoricalHMM",
    "VariationalGaussianHMM",
    "base",
    "drop_in",
    "from_hmmlearn",
    "hmm",
    "utils",
    "vhmm",
]
