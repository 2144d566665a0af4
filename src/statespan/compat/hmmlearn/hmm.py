"""`hmmlearn.hmm`: hidden Markov models fitted by expectation maximisation."""

from typing import Any

import numpy as np
from sklearn.utils.validation import check_random_state

from statespan.compat.hmmlearn._emissions import (
    COVARIANCE_TYPES,
    CategoricalEmission,
    GaussianEmission,
    clusters,
    complete,
    spread,
)
from statespan.compat.hmmlearn.base import BaseHMM
from statespan.compat.hmmlearn.utils import normalize
from statespan.errors import StatespanError


class CategoricalHMM(CategoricalEmission, BaseHMM):
    """Symbols 0..n_features-1, one a row of X (n_samples, 1).

    Args:
        n_components: K, the number of states.
        startprob_prior: Dirichlet parameters, a number or (K,).
        transmat_prior: Dirichlet parameters, a number or (K, K).
        emissionprob_prior: Dirichlet parameters, a number or (K, n_features).
        n_features: the number of symbols; None takes it from the data.
        algorithm: of `decode`, "viterbi" or "map".
        random_state: a seed or `numpy.random.RandomState`.
        n_iter: iterations at most.
        tol: stop when an iteration gains less.
        verbose: report each iteration to standard error.
        params: what a fit changes: "s" startprob, "t" transmat, "e" emissionprob.
        init_params: what a fit starts afresh.
        implementation: "log" or "scaling"; both run the same code, "scaling" refuses what hmmlearn's cannot represent.

    Example:
        >>> model = CategoricalHMM(n_components=2, random_state=0).fit([[0], [1], [1], [2], [0], [2]])
        >>> model.predict([[0], [2]]).shape
        (2,)
    """

    def __init__(
        self,
        n_components: int = 1,
        startprob_prior: Any = 1.0,
        transmat_prior: Any = 1.0,
        *,
        emissionprob_prior: Any = 1.0,
        n_features: int | None = None,
        algorithm: str = "viterbi",
        random_state: Any = None,
        n_iter: int = 10,
        tol: float = 1e-2,
        verbose: bool = False,
        params: str = "ste",
        init_params: str = "ste",
        implementation: str = "log",
    ):
        BaseHMM.__init__(
            self,
            *(n_components, startprob_prior, transmat_prior, algorithm, random_state, n_iter, tol, verbose),
            *(params, init_params, implementation),
        )
        self.emissionprob_prior = emissionprob_prior
        self.n_features = n_features

    def _init(self, X: np.ndarray, lengths: Any = None) -> None:
        super()._init(X, lengths)
        self.random_state = check_random_state(self.random_state)
        if self._needs_init("e", "emissionprob_"):
            self.emissionprob_ = self.random_state.rand(self.n_components, self.n_features)
            normalize(self.emissionprob_, axis=1)

    def _check(self) -> None:
        super()._check()
        self.emissionprob_ = np.atleast_2d(self.emissionprob_)
        if self.n_features is None:
            self.n_features = self.emissionprob_.shape[1]
        shape = self.n_components, self.n_features
        self._check_shape("emissionprob_", shape, "(n_components, n_features)")
        self._check_sum_1("emissionprob_")

    def _do_mstep(self, stats: dict[str, Any]) -> None:
        super()._do_mstep(stats)
        if "e" in self.params:
            new = np.maximum(self.emissionprob_prior - 1 + stats["emission"].T.numpy(), 0)
            seen = new.sum(1, keepdims=True) > 0  # a state never visited keeps what it had
            normalize(new, axis=1)
            self.emissionprob_ = np.where(seen, new, self.emissionprob_)


class GaussianHMM(GaussianEmission, BaseHMM):
    """Vectors with a normal distribution in each state.

    As in hmmlearn there is a prior on the covariances unless you say otherwise: `covars_prior=1e-2`. For "full" and
    "tied" a number is added to every entry of the scatter matrix, off the diagonal too.

    Args:
        n_components: K, the number of states.
        covariance_type: "spherical", "diag", "full", or "tied" (one matrix for all states).
        min_covar: added to the diagonal of the covariances a fit starts from.
        startprob_prior: Dirichlet parameters, a number or (K,).
        transmat_prior: Dirichlet parameters, a number or (K, K).
        means_prior: mean of the normal prior, a number or (K, n_features).
        means_weight: its weight, in observations.
        covars_prior: scale of the inverse gamma or inverse Wishart prior.
        covars_weight: its weight; 1 for "spherical" and "diag", or n_features for the others, adds nothing.
        algorithm: of `decode`, "viterbi" or "map".
        random_state: a seed or `numpy.random.RandomState`.
        n_iter: iterations at most.
        tol: stop when an iteration gains less.
        verbose: report each iteration to standard error.
        params: what a fit changes: "s" startprob, "t" transmat, "m" means, "c" covars.
        init_params: what a fit starts afresh.
        implementation: "log" or "scaling"; both run the same code, "scaling" refuses what hmmlearn's cannot represent.

    Example:
        >>> import numpy as np
        >>> X = np.array([[0.1], [0.0], [5.1], [4.9], [0.2], [5.0]])
        >>> model = GaussianHMM(n_components=2, random_state=0).fit(X)
        >>> sorted(model.means_[:, 0].round(1).tolist())
        [0.1, 5.0]
    """

    def __init__(
        self,
        n_components: int = 1,
        covariance_type: str = "diag",
        min_covar: float = 1e-3,
        startprob_prior: Any = 1.0,
        transmat_prior: Any = 1.0,
        means_prior: Any = 0,
        means_weight: Any = 0,
        covars_prior: Any = 1e-2,
        covars_weight: Any = 1,
        algorithm: str = "viterbi",
        random_state: Any = None,
        n_iter: int = 10,
        tol: float = 1e-2,
        verbose: bool = False,
        params: str = "stmc",
        init_params: str = "stmc",
        implementation: str = "log",
    ):
        BaseHMM.__init__(
            self,
            *(n_components, startprob_prior, transmat_prior, algorithm, random_state, n_iter, tol, verbose),
            *(params, init_params, implementation),
        )
        self.covariance_type = covariance_type
        self.min_covar = min_covar
        self.means_prior = means_prior
        self.means_weight = means_weight
        self.covars_prior = covars_prior
        self.covars_weight = covars_weight

    def _init(self, X: np.ndarray, lengths: Any = None) -> None:
        super()._init(X, lengths)
        rows = complete(X, self.n_components)
        if self._needs_init("m", "means_"):
            self.means_ = clusters(rows, self.n_components, self.random_state).cluster_centers_
        if self._needs_init("c", "covars_"):
            whole = np.atleast_2d(np.cov(rows.T)) + self.min_covar * np.eye(X.shape[1])
            self.covars_ = spread(whole, self.covariance_type, self.n_components)

    def _check(self) -> None:
        super()._check()
        self.means_ = np.asarray(self.means_)
        self.n_features = self.means_.shape[1]
        if self.covariance_type not in COVARIANCE_TYPES:
            raise StatespanError(f"covariance_type must be one of {sorted(COVARIANCE_TYPES)}")

    def _do_mstep(self, stats: dict[str, Any]) -> None:
        r"""The mode of the posterior, from sums about the means now.

        With w, f and S the sums of weights, of x = y - m and of x x', and m' the new mean, the scatter about m' is
        S - f d' - d f' + w d d' with d = m' - m: nothing cancels where y is large and its spread small.

        Source:
            Huang, Acero and Hon, Spoken Language Processing 2001, section 8.2 and 9.6 (MAP).
        """
        super()._do_mstep(stats)
        weight, first, second = (x.numpy() for x in stats["emission"])
        w, now = weight[:, None], np.asarray(self.means_, dtype=float)
        trust, prior = _by_state(self.means_weight, 2), self.means_prior
        means = now
        if "m" in self.params:
            total = trust + w  # zero: a state never visited keeps its mean
            means = now + np.where(total > 0, (first + trust * (prior - now)) / np.where(total > 0, total, 1), 0)
            self.means_ = means
        if "c" not in self.params:
            return
        moved, off = means - now, means - prior
        if self.covariance_type in ("diag", "spherical"):
            scatter = second.diagonal(axis1=1, axis2=2) - 2 * moved * first + w * moved**2 + trust * off**2
            total = np.maximum(np.maximum(_by_state(self.covars_weight, 2) - 1, 0) + w, 1e-5)
            covars = (_by_state(self.covars_prior, 2) + scatter) / total
            if self.covariance_type == "spherical":
                covars = np.tile(covars.mean(1, keepdims=True), (1, covars.shape[1]))
            self._covars_ = covars
            return
        cross = first[:, :, None] * moved[:, None]
        scatter = second - cross - cross.transpose(0, 2, 1) + w[:, :, None] * moved[:, :, None] * moved[:, None]
        scatter = scatter + _by_state(self.means_weight, 3) * off[:, :, None] * off[:, None]
        if self.covariance_type == "tied":
            total = max(self.covars_weight - self.n_features, 0) + weight.sum()
            self._covars_ = (self.covars_prior + scatter.sum(0)) / total
        else:
            total = np.maximum(_by_state(self.covars_weight, 3) - self.n_features, 0) + w[:, :, None]
            covars = (_by_state(self.covars_prior, 3) + scatter) / np.where(total > 0, total, 1)
            self._covars_ = np.where(total > 0, covars, self._covars_)


def _by_state(x: Any, rank: int) -> np.ndarray:
    """A number, or one a state (K,), as an array that goes with (K, ...) of `rank` dimensions; others as they are."""
    x = np.asarray(x, dtype=float)
    return x.reshape(-1, *[1] * (rank - 1)) if x.ndim == 1 else x
