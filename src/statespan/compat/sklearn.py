"""A hidden Markov model as a scikit-learn estimator: a sample is a whole sequence."""

# ruff: noqa: E402  (what is missing is said before it is imported)
from statespan.compat import need_sklearn

need_sklearn()

import copy
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import (
    _check_sample_weight,  # pyright: ignore[reportPrivateUsage]
    check_is_fitted,
    check_random_state,
    validate_data,
)

from statespan.errors import StatespanError
from statespan.families.hidden_markov import hmm
from statespan.fit import EM
from statespan.part import seeded
from statespan.parts.emissions import Gaussian
from statespan.verbs import ask


class HiddenMarkovModel(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""A hidden Markov model whose samples are sequences.

    **X is a set of sequences, and `len(X)` is how many there are**: a list of arrays (T_i,) or (T_i, D) of any lengths,
    a 2-D array (n, T) of n sequences of T numbers, or a 3-D array (n, T, D). This is scikit-learn's convention, and not
    that of `statespan.hmm`, where a 2-D array (T, D) is one sequence. NaN is missing. Where X is an array the answers
    are arrays; where it is a list of arrays they are lists, one array a sequence. After a fit to an array scikit-learn
    wants the same T of every other array; a list of arrays is free.

    Args:
        states: K.
        emission: a statespan emission, such as `ss.Categorical(5)`; None: normal, with `covariance`.
        covariance: "full", "diagonal", "spherical" or "tied", where `emission` is None.
        initial: probabilities (K,) or a part; None is free, from equal ones.
        transition: probabilities (K, K) or a part; None is free, from random ones.
        iterations: of EM at most.
        tolerance: stop when the log-likelihood of an observation rises by less.
        restarts: how many starts; the best fit is kept.
        random_state: a seed or `numpy.random.RandomState`.

    Attributes:
        model_: the fitted `statespan.StateSpace`.
        history_: the log-likelihood before each iteration.
        n_iter_: iterations done.
        n_features_in_: T, after a fit to an array.

    Raises:
        StatespanError: data that the emission cannot read.

    Example:
        >>> import numpy as np
        >>> X = np.array([[0.1, 0.0, 5.1, 4.9], [5.2, 5.0, 0.1, 0.2], [0.0, 0.1, 5.0, 5.2]])
        >>> model = HiddenMarkovModel(states=2, random_state=0).fit(X)
        >>> path = model.predict(X)
        >>> path.shape, bool(path[0, 0] != path[0, 3]), model.transform(X).shape
        ((3, 4), True, (3, 2))
    """

    model_: Any

    def __init__(
        self,
        states: int = 2,
        emission: Any = None,
        covariance: str = "full",
        initial: Any = None,
        transition: Any = None,
        iterations: int = 100,
        tolerance: float = 1e-6,
        restarts: int = 1,
        random_state: Any = None,
    ):
        self.states = states
        self.emission = emission
        self.covariance = covariance
        self.initial = initial
        self.transition = transition
        self.iterations = iterations
        self.tolerance = tolerance
        self.restarts = restarts
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "HiddenMarkovModel":
        """Fit by expectation maximisation from a start that the data suggest.

        Args:
            X: the sequences (see the class).
            y: not used.
            sample_weight: (n,) how many times each sequence counts; None: once.
        """
        rows = self._rows(X, reset=True)
        weights = None if sample_weight is None else _check_sample_weight(sample_weight, rows, ensure_non_negative=True)
        if self.emission is None:
            emission = Gaussian(rows[0].shape[1] if rows[0].ndim == 2 else 1, self.covariance)
        else:
            emission = copy.deepcopy(self.emission)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        parts = copy.deepcopy((self.initial, self.transition))
        model = hmm(self.states, emission, *parts, seed=seed)
        _begin(model, rows, weights, seed)
        by = EM(self.iterations, self.tolerance)
        self.model_ = model.fit(rows, by, self.restarts, seed, weights=weights)
        self.history_ = np.array(by.history)
        self.n_iter_ = len(by.history)
        self._n_features_out = self.states
        return self

    def predict(self, X: Any) -> Any:
        """The likeliest state path of each sequence: (n, T), or a list of (T_i,).

        Args:
            X: the sequences (see the class).
        """
        return self._answer(X, self._fitted().decode)

    def predict_proba(self, X: Any) -> Any:
        """State probabilities given each whole sequence: (n, T, K), or a list of (T_i, K).

        Args:
            X: the sequences (see the class).
        """
        model = self._fitted()
        return self._answer(X, lambda rows: model.smooth(rows).probs)

    def transform(self, X: Any) -> np.ndarray:
        """The expected share of its time that each sequence spends in each state, (n, K); rows sum to one.

        Args:
            X: the sequences (see the class).
        """
        return np.stack([probs.mean(0).numpy() for probs in self._fitted().smooth(self._rows(X)).probs])

    def score_samples(self, X: Any) -> np.ndarray:
        """The natural log-probability of each sequence, (n,).

        Args:
            X: the sequences (see the class).
        """
        with torch.no_grad():
            return self._fitted().log_prob(self._rows(X)).numpy()

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """The mean of `score_samples`.

        Args:
            X: the sequences (see the class).
            y: not used.
            sample_weight: (n,) how many times each sequence counts; None: once.
        """
        return float(np.average(self.score_samples(X), weights=sample_weight))

    def _fitted(self) -> Any:
        check_is_fitted(self)
        return self.model_

    def _answer(self, X: Any, verb: Any) -> Any:
        rows = [row.numpy() for row in verb(self._rows(X))]
        return rows if _ragged(X) else np.stack(rows)

    def _rows(self, X: Any, reset: bool = False) -> list[np.ndarray]:
        """One array a sequence."""
        if reset:
            vars(self).pop("n_features_in_", None)
        if _ragged(X):
            rows = [np.array(row) for row in X]
            if {row.ndim for row in rows} not in ({1}, {2}):
                raise StatespanError("X: give every sequence as (T_i,), or every one as (T_i, D)")
            return rows
        array = validate_data(self, X, reset=reset, allow_nd=True, ensure_all_finite="allow-nan")
        return [np.array(row) for row in array]

    def __sklearn_tags__(self) -> Any:
        """NaN is missing; the sequences of an array may have several columns."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.three_d_array = True
        return tags


def _begin(model: Any, rows: list[np.ndarray], weights: np.ndarray | None, seed: int) -> None:
    """Start from the data, each different sequence once and in an order of its own.

    So the start, and with it the fit, is the same however the sequences are ordered, and whether one is repeated or
    has a weight.
    """
    found = {row.tobytes(): i for i, row in enumerate(rows) if weights is None or weights[i] > 0}
    data, _ = ask(model, [rows[found[key]] for key in sorted(found)])
    with seeded(seed):
        for part in model.parts:
            if hasattr(part, "begin"):
                part.begin(data.y, data.u, data.present)


def _ragged(X: Any) -> bool:
    """Whether X is a list of arrays, or of lists of different lengths, rather than an array or a list that is one."""
    if not isinstance(X, (list, tuple)):
        return False
    return any(hasattr(row, "ndim") for row in X) or len({len(row) for row in X if isinstance(row, (list, tuple))}) > 1
