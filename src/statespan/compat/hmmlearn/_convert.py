"""Taking a model of hmmlearn over."""

from typing import Any

from statespan.compat.hmmlearn.hmm import GMMHMM, CategoricalHMM, GaussianHMM, MultinomialHMM, PoissonHMM
from statespan.compat.hmmlearn.vhmm import VariationalCategoricalHMM, VariationalGaussianHMM
from statespan.errors import StatespanError
from statespan.model import StateSpace

MODELS = {
    cls.__name__: cls
    for cls in (
        *(CategoricalHMM, GaussianHMM, GMMHMM, MultinomialHMM, PoissonHMM),
        *(VariationalCategoricalHMM, VariationalGaussianHMM),
    )
}
"""The drop-in of each model, by hmmlearn's name."""


def drop_in(model: Any) -> Any:
    """The same model with the same parameters, fitted or not, as one of this package.

    Args:
        model: of hmmlearn, or of a class derived from one of its models.

    Raises:
        StatespanError: a class that is none of hmmlearn's.
    """
    names = [cls.__name__ for cls in type(model).__mro__]
    kind = next((MODELS[name] for name in names if name in MODELS), None)
    if kind is None:
        raise StatespanError(f"{names[0]} is no model of hmmlearn; give one of {', '.join(MODELS)}")
    mine = kind.__new__(kind)
    vars(mine).update(vars(model))
    return mine


def from_hmmlearn(model: Any) -> StateSpace:
    """A fitted model of hmmlearn as a `statespan.StateSpace` with the same parameters.

    Args:
        model: fitted, of hmmlearn or of this package.

    Raises:
        StatespanError: a class that is none of hmmlearn's.

    Example:
        >>> from statespan.compat.hmmlearn import CategoricalHMM
        >>> fitted = CategoricalHMM(n_components=2, random_state=0).fit([[0], [1], [1], [0], [1]])
        >>> from_hmmlearn(fitted).forecast([0, 1, 1], steps=2).probs.shape
        torch.Size([2, 2])
    """
    return drop_in(model).model
