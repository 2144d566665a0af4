"""`hmmlearn.hmm`: hidden Markov models fitted by expectation maximisation."""

import logging
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_random_state

from statespan.compat.hmmlearn._emissions import (
    COVARIANCE_TYPES,
    KINDS,
    CategoricalEmission,
    GaussianEmission,
    clusters,
    complete,
    gaussian,
    numbers,
    spread,
    variances,
    whole_numbers,
)
from statespan.compat.hmmlearn.base import BaseHMM
from statespan.compat.hmmlearn.utils import normalize
from statespan.errors import StatespanError
from statespan.parts.emissions import GaussianMixture, Multinomial, Poisson

_log = logging.getLogger(__name__)


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
            scatter = variances(second, 2) - 2 * moved * first + w * moved**2 + trust * off**2
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


class GMMHMM(BaseHMM):
    r"""Vectors with a mixture of normal distributions in each state.

    As in hmmlearn the covariances of an update are about the means before it; `covariance_type="tied"` is one matrix
    for the components of a state.

    Args:
        n_components: K, the number of states.
        n_mix: M, the number of components of each state.
        min_covar: added to the diagonal of the covariances a fit starts from.
        startprob_prior: Dirichlet parameters, a number or (K,).
        transmat_prior: Dirichlet parameters, a number or (K, K).
        weights_prior: Dirichlet parameters, a number or (K, M).
        means_prior: mean of the normal prior, a number or (K, M, n_features).
        means_weight: its weight, in observations, a number or (K, M).
        covars_prior: of the inverse gamma (shape) or inverse Wishart (scale) prior; None is no prior.
        covars_weight: of the same (scale, or degrees of freedom); None is no prior.
        algorithm: of `decode`, "viterbi" or "map".
        covariance_type: "spherical", "diag", "full", or "tied".
        random_state: a seed or `numpy.random.RandomState`.
        n_iter: iterations at most.
        tol: stop when an iteration gains less.
        verbose: report each iteration to standard error.
        params: what a fit changes: "s" startprob, "t" transmat, "m" means, "c" covars, "w" weights.
        init_params: what a fit starts afresh.
        implementation: "log" or "scaling"; both run the same code, "scaling" refuses what hmmlearn's cannot represent.

    Example:
        >>> X = np.random.RandomState(0).randn(60, 2)
        >>> GMMHMM(n_components=2, n_mix=3, random_state=0).fit(X).means_.shape
        (2, 3, 2)
    """

    _frames = False

    def __init__(
        self,
        n_components: int = 1,
        n_mix: int = 1,
        min_covar: float = 1e-3,
        startprob_prior: Any = 1.0,
        transmat_prior: Any = 1.0,
        weights_prior: Any = 1.0,
        means_prior: Any = 0.0,
        means_weight: Any = 0.0,
        covars_prior: Any = None,
        covars_weight: Any = None,
        algorithm: str = "viterbi",
        covariance_type: str = "diag",
        random_state: Any = None,
        n_iter: int = 10,
        tol: float = 1e-2,
        verbose: bool = False,
        params: str = "stmcw",
        init_params: str = "stmcw",
        implementation: str = "log",
    ):
        BaseHMM.__init__(
            self,
            *(n_components, startprob_prior, transmat_prior, algorithm, random_state, n_iter, tol, verbose),
            *(params, init_params, implementation),
        )
        self.covariance_type = covariance_type
        self.min_covar = min_covar
        self.n_mix = n_mix
        self.weights_prior = weights_prior
        self.means_prior = means_prior
        self.means_weight = means_weight
        self.covars_prior = covars_prior
        self.covars_weight = covars_weight

    def _covars_shape(self) -> tuple[int, ...]:
        k, m, d = self.n_components, self.n_mix, self.n_features
        shapes = {"spherical": (k, m), "diag": (k, m, d), "full": (k, m, d, d), "tied": (k, d, d)}
        if self.covariance_type not in shapes:
            raise StatespanError(f"covariance_type must be one of {sorted(COVARIANCE_TYPES)}")
        return shapes[self.covariance_type]

    def _init(self, X: np.ndarray, lengths: Any = None) -> None:
        super()._init(X, lengths)
        self._fix_priors_shape()
        k, m, d = self.n_components, self.n_mix, self.n_features
        rows = complete(X, k)
        whole = np.atleast_2d(np.cov(rows.T)) + self.min_covar * np.eye(d)
        found = clusters(rows, k, self.random_state)
        middle = found.cluster_centers_.mean(0)
        means = []
        for state in range(k):
            mine = rows[found.labels_ == state]
            if len(mine) >= m:
                means.append(clusters(mine, m, self.random_state).cluster_centers_)
            else:
                means.append(check_random_state(self.random_state).multivariate_normal(middle, whole, size=m))
        if self._needs_init("w", "weights_"):
            self.weights_ = np.full((k, m), 1 / m)
        if self._needs_init("m", "means_"):
            self.means_ = np.stack(means)
        if self._needs_init("c", "covars_"):
            kinds = {"spherical": whole.mean(), "diag": whole.diagonal()}
            self.covars_ = np.broadcast_to(kinds.get(self.covariance_type, whole), self._covars_shape()).copy()

    def _fix_priors_shape(self) -> None:
        """Fill in and spread out the priors; those of hmmlearn's defaults cancel what its formulas add."""
        shape = self._covars_shape()
        k, m, d = self.n_components, self.n_mix, self.n_features
        none = {
            "spherical": (-(m + 2.0) / 2.0, 0.0),
            "diag": (-1.5, 0.0),
            "full": (0.0, -(1.0 + d + 1.0)),
            "tied": (0.0, -(m + d + 1.0)),
        }[self.covariance_type]
        prior = none[0] if self.covars_prior is None else self.covars_prior
        weight = none[1] if self.covars_weight is None else self.covars_weight
        self.covars_prior = np.broadcast_to(prior, shape).copy()
        per = {"full": (k, m), "tied": (k,)}.get(self.covariance_type, shape)
        self.covars_weight = np.broadcast_to(weight, per).copy()
        self.weights_prior = np.broadcast_to(self.weights_prior, (k, m)).copy()
        self.means_prior = np.broadcast_to(self.means_prior, (k, m, d)).copy()
        self.means_weight = np.broadcast_to(self.means_weight, (k, m)).copy()

    def _check(self) -> None:
        super()._check()
        if not hasattr(self, "n_features"):
            self.n_features = np.shape(self.means_)[2]
        k, m, d = self.n_components, self.n_mix, self.n_features
        self._fix_priors_shape()
        self.weights_, self.means_, self.covars_ = (np.array(x) for x in (self.weights_, self.means_, self.covars_))
        self._check_shape("weights_", (k, m), "(n_components, n_mix)")
        self._check_sum_1("weights_")
        self._check_shape("means_", (k, m, d), "(n_components, n_mix, n_features)")
        self._check_shape("covars_", self._covars_shape(), f"of {self.covariance_type!r} mixture covars")
        if self.covariance_type in ("spherical", "diag"):
            if (self.covars_ < 0).any():
                raise StatespanError(f"{self.covariance_type!r} mixture covars must be non-negative")
            if (self.covars_ == 0).any():
                _log.warning("Degenerate mixture covariance")
            return
        off = np.abs(self.covars_ - self.covars_.swapaxes(-1, -2)) > 1e-8 + 1e-5 * np.abs(self.covars_)
        least = np.linalg.eigvalsh(self.covars_)[..., 0]
        for wrong, what in ((off.any((-2, -1)), "symmetric"), (least < 0, "positive definite")):
            if wrong.any():
                raise StatespanError(f"Covariance of {_mixture_name(wrong)} is not {what}")
        if (least == 0).any():
            _log.warning("Covariance of %s has a null eigenvalue.", _mixture_name(least == 0))

    def _observations(self, X: np.ndarray) -> Any:
        return numbers(X)

    def _full(self) -> np.ndarray:
        """Covariances (K, M, D, D)."""
        k, m, d = self.n_components, self.n_mix, self.n_features
        if self.covariance_type == "tied":
            return np.broadcast_to(self.covars_[:, None], (k, m, d, d))
        if self.covariance_type == "full":
            return self.covars_
        variances = self.covars_[..., None] if self.covariance_type == "spherical" else self.covars_
        return np.broadcast_to(variances, (k, m, d))[..., None] * np.eye(d)

    def _part(self) -> GaussianMixture:
        d = self.n_features
        # Elsewhere "tied" is one matrix for everything; here it is one a state.
        kind = "full" if self.covariance_type == "tied" else self.covariance_type
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            part = GaussianMixture(d, self.n_mix, KINDS[kind], self.n_components).double()
            means = np.asarray(self.means_, dtype=float).reshape(-1, d)
            part.normals = gaussian(means, self._full().reshape(-1, d, d), kind)
            part.logits.copy_(torch.tensor(self.weights_).log())
        return part

    def _get_n_fit_scalars_per_param(self) -> dict[str, int]:
        k, m, d = self.n_components, self.n_mix, self.n_features
        pairs = d * (d + 1) // 2
        free = {"spherical": k * m, "diag": k * m * d, "full": k * m * pairs, "tied": k * pairs}
        return {"s": k - 1, "t": k * (k - 1), "m": k * m * d, "c": free.get(self.covariance_type, 0), "w": m - 1}

    def _generate_sample_from_state(self, state: int, random_state: Any) -> np.ndarray:
        component = random_state.choice(self.n_mix, p=self.weights_[state])
        return random_state.multivariate_normal(self.means_[state, component], self._full()[state, component])

    def _do_mstep(self, stats: dict[str, Any]) -> None:
        """The mode of the posterior, with the scatter about the means before the update, as in hmmlearn."""
        super()._do_mstep(stats)
        k, m, d = self.n_components, self.n_mix, self.n_features
        weight, first, second = (x.numpy().reshape(k, m, *x.shape[1:]) for x in stats["emission"].normals)
        if "w" in self.params:
            total = weight + self.weights_prior - 1
            self.weights_ = total / total.sum(1, keepdims=True)
        trust = self.means_weight
        if "m" in self.params:
            total = (weight + trust)[..., None]  # zero: a component never used keeps its mean
            pulled = first + trust[..., None] * (self.means_prior - self.means_)
            self.means_ = self.means_ + np.where(total > 0, pulled / np.where(total > 0, total, 1), 0)
        if "c" not in self.params:
            return
        off = self.means_ - self.means_prior
        prior, other = self.covars_prior, self.covars_weight
        if self.covariance_type == "diag":
            scatter = variances(second, 3) + trust[..., None] * off**2 + 2 * other
            total = weight[..., None] + 1 + 2 * (prior + 1)
        elif self.covariance_type == "spherical":
            scatter = variances(second, 3).sum(-1) + trust * (off**2).sum(-1) + 2 * other
            total = d * (weight + 1) + 2 * (prior + 1)
        else:
            scatter = second + trust[..., None, None] * off[..., :, None] * off[..., None, :]
            total = weight + 1 + other + d + 1 if self.covariance_type == "full" else weight.sum(1) + m + other + d + 1
            scatter = scatter if self.covariance_type == "full" else scatter.sum(1)
            scatter, total = scatter + prior.swapaxes(-1, -2), total[..., None, None]
        self.covars_ = np.where(total > 0, scatter / np.where(total > 0, total, 1), self.covars_)


def _mixture_name(which: Any) -> str:
    """Which covariance is meant: that of a state, or of a state's component."""
    place = [int(i) for i in np.argwhere(which)[0]]
    return f"state #{place[0]}" + (f", mixture #{place[1]}" if len(place) > 1 else "")


class MultinomialHMM(BaseHMM):
    """Counts of n_features categories in n_trials trials, one row of X (n_samples, n_features) an observation.

    Symbols, one a row, are `CategoricalHMM`; so was this class before hmmlearn 0.3.

    Args:
        n_components: K, the number of states.
        n_trials: the sum of every row, or of each; None takes it from the data.
        startprob_prior: Dirichlet parameters, a number or (K,).
        transmat_prior: Dirichlet parameters, a number or (K, K).
        algorithm: of `decode`, "viterbi" or "map".
        random_state: a seed or `numpy.random.RandomState`.
        n_iter: iterations at most.
        tol: stop when an iteration gains less.
        verbose: report each iteration to standard error.
        params: what a fit changes: "s" startprob, "t" transmat, "e" emissionprob.
        init_params: what a fit starts afresh.
        implementation: "log" or "scaling"; both run the same code, "scaling" refuses what hmmlearn's cannot represent.

    Example:
        >>> model = MultinomialHMM(n_components=2, random_state=0).fit([[3, 0], [0, 3], [1, 2], [3, 0]])
        >>> model.emissionprob_.shape
        (2, 2)
    """

    _frames = False
    emissionprob_: Any

    def __init__(
        self,
        n_components: int = 1,
        n_trials: Any = None,
        startprob_prior: Any = 1.0,
        transmat_prior: Any = 1.0,
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
        self.n_trials = n_trials
        _log.warning(
            "MultinomialHMM is a model of counts that sum to n_trials; for symbols, which it took before hmmlearn 0.3, "
            "use CategoricalHMM."
        )

    def _check_and_set_n_features(self, X: np.ndarray) -> None:
        super()._check_and_set_n_features(X)
        whole_numbers(X, "Symbol counts")
        rows = ~np.isnan(X).any(1)
        if self.n_trials is None:
            self.n_trials = X.sum(1)
        elif (X.sum(1) != self.n_trials)[rows].any():
            raise StatespanError("Total count for each sample should add up to the number of trials")

    def _init(self, X: np.ndarray, lengths: Any = None) -> None:
        super()._init(X, lengths)
        self.random_state = check_random_state(self.random_state)
        if "e" in self.init_params:
            self.emissionprob_ = self.random_state.rand(self.n_components, self.n_features)
            normalize(self.emissionprob_, axis=1)

    def _check(self) -> None:
        super()._check()
        self.emissionprob_ = np.atleast_2d(self.emissionprob_)
        width = getattr(self, "n_features", self.emissionprob_.shape[1])
        self._check_shape("emissionprob_", (self.n_components, width), "(n_components, n_features)")
        self.n_features = width
        if self.n_trials is None:
            raise StatespanError("n_trials must be set")

    def _observations(self, X: np.ndarray) -> Any:
        whole_numbers(X, "Symbol counts")
        return numbers(X)

    def _part(self) -> Multinomial:
        trials = self._trials()
        return Multinomial(trials=int(trials[0]) if len(trials) == 1 else None, probs=self.emissionprob_)

    _get_n_fit_scalars_per_param: Any = CategoricalEmission._get_n_fit_scalars_per_param

    def _generate_sample_from_state(self, state: int, random_state: Any) -> np.ndarray:
        trials = self._trials()
        if len(trials) != 1:
            raise StatespanError("For sampling, a single n_trials must be given")
        return random_state.multinomial(int(trials[0]), self.emissionprob_[state])

    def _trials(self) -> np.ndarray:
        """The different numbers of trials; a row with a gap has none of its own."""
        trials = np.unique(np.asarray(self.n_trials, dtype=float))
        return trials[~np.isnan(trials)]

    def _do_mstep(self, stats: dict[str, Any]) -> None:
        super()._do_mstep(stats)
        if "e" in self.params:
            new = stats["emission"].numpy().copy()
            seen = new.sum(1, keepdims=True) > 0  # a state never visited keeps what it had
            normalize(new, axis=1)
            self.emissionprob_ = np.where(seen, new, self.emissionprob_)


class PoissonHMM(BaseHMM):
    r"""Counts, independent and Poisson in each state.

    Args:
        n_components: K, the number of states.
        startprob_prior: Dirichlet parameters, a number or (K,).
        transmat_prior: Dirichlet parameters, a number or (K, K).
        lambdas_prior: alpha of the gamma prior: lambda = (alpha + N y) / (beta + N), with y the mean in the state and,
            as in hmmlearn, N the weight of all states together.
        lambdas_weight: beta of the gamma prior.
        algorithm: of `decode`, "viterbi" or "map".
        random_state: a seed or `numpy.random.RandomState`.
        n_iter: iterations at most.
        tol: stop when an iteration gains less.
        verbose: report each iteration to standard error.
        params: what a fit changes: "s" startprob, "t" transmat, "l" lambdas.
        init_params: what a fit starts afresh.
        implementation: "log" or "scaling"; both run the same code, "scaling" refuses what hmmlearn's cannot represent.

    Example:
        >>> model = PoissonHMM(n_components=2, random_state=0).fit([[0], [1], [9], [8], [0], [11]])
        >>> model.lambdas_.shape
        (2, 1)
    """

    _frames = False
    lambdas_: Any

    def __init__(
        self,
        n_components: int = 1,
        startprob_prior: Any = 1.0,
        transmat_prior: Any = 1.0,
        lambdas_prior: Any = 0.0,
        lambdas_weight: Any = 0.0,
        algorithm: str = "viterbi",
        random_state: Any = None,
        n_iter: int = 10,
        tol: float = 1e-2,
        verbose: bool = False,
        params: str = "stl",
        init_params: str = "stl",
        implementation: str = "log",
    ):
        BaseHMM.__init__(
            self,
            *(n_components, startprob_prior, transmat_prior, algorithm, random_state, n_iter, tol, verbose),
            *(params, init_params, implementation),
        )
        self.lambdas_prior = lambdas_prior
        self.lambdas_weight = lambdas_weight

    def _init(self, X: np.ndarray, lengths: Any = None) -> None:
        super()._init(X, lengths)
        self.random_state = check_random_state(self.random_state)
        if self._needs_init("l", "lambdas_"):
            mean, variance = np.nanmean(X), np.nanvar(X)
            shape = self.n_components, self.n_features
            self.lambdas_ = self.random_state.gamma(mean**2 / variance, variance / mean, size=shape)

    def _check(self) -> None:
        super()._check()
        self.lambdas_ = np.atleast_2d(self.lambdas_)
        width = getattr(self, "n_features", self.lambdas_.shape[1])
        self._check_shape("lambdas_", (self.n_components, width), "(n_components, n_features)")
        self.n_features = width

    def _observations(self, X: np.ndarray) -> Any:
        there = ~np.isnan(X)
        if ((X[there] < 0) | (X[there] != np.rint(X[there]))).any():
            raise StatespanError("X should be counts, 0 or more; NaN is missing")
        return numbers(X)

    def _part(self) -> Poisson:
        return Poisson(rate=np.maximum(self.lambdas_, 1e-300))

    def _get_n_fit_scalars_per_param(self) -> dict[str, int]:
        k = self.n_components
        return {"s": k - 1, "t": k * (k - 1), "l": k * self.n_features}

    def _generate_sample_from_state(self, state: int, random_state: Any) -> np.ndarray:
        return random_state.poisson(self.lambdas_[state])

    def _do_mstep(self, stats: dict[str, Any]) -> None:
        super()._do_mstep(stats)
        if "l" in self.params:
            weight, sums = stats["emission"].weight.numpy(), stats["emission"].features[0].numpy()
            everything = weight.sum(0)
            mean = np.where(weight > 0, sums / np.where(weight > 0, weight, 1), self.lambdas_)
            self.lambdas_ = (self.lambdas_prior + everything * mean) / (self.lambdas_weight + everything)


def _by_state(x: Any, rank: int) -> np.ndarray:
    """A number, or one a state (K,), as an array that goes with (K, ...) of `rank` dimensions; others as they are."""
    x = np.asarray(x, dtype=float)
    return x.reshape(-1, *[1] * (rank - 1)) if x.ndim == 1 else x
