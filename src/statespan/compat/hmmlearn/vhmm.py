"""`hmmlearn.vhmm`: hidden Markov models fitted by variational Bayes, with Dirichlet and normal-Wishart posteriors."""

import numbers
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_random_state

from statespan.compat.hmmlearn._emissions import (
    COVARIANCE_TYPES,
    CategoricalEmission,
    GaussianEmission,
    clusters,
    complete,
    gaussian,
    spread,
    variances,
)
from statespan.compat.hmmlearn._parts import Tilted
from statespan.compat.hmmlearn._variational import (
    expected_log_determinant,
    normal_divergence,
    wishart_divergence,
)
from statespan.compat.hmmlearn.base import VariationalBaseHMM, divergence, expected_logs
from statespan.compat.hmmlearn.utils import fill_covars
from statespan.errors import StatespanError
from statespan.parts.emissions import Categorical


class VariationalCategoricalHMM(CategoricalEmission, VariationalBaseHMM):
    r"""Symbols 0..n_features-1 with Dirichlet posteriors over each state's probabilities.

    A state that the data do not need falls back to its prior. After a fit `startprob_`, `transmat_` and
    `emissionprob_` are posterior means.

    Args:
        n_components: K, the number of states.
        startprob_prior: Dirichlet parameters, a number or (K,); None is 1 / K.
        transmat_prior: Dirichlet parameters, a number or (K, K); None is 1 / K.
        emissionprob_prior: Dirichlet parameters, a number; None is 1 / n_features.
        n_features: the number of symbols; None takes it from the data.
        algorithm: of `decode`, "viterbi" or "map".
        random_state: a seed or `numpy.random.RandomState`.
        n_iter: iterations at most.
        tol: stop when an iteration raises the bound by less.
        verbose: report each iteration to standard error.
        params: what a fit changes: "s" startprob, "t" transmat, "e" emissionprob.
        init_params: what a fit starts afresh.
        implementation: "log" or "scaling"; both run the same code, "scaling" refuses what hmmlearn's cannot represent.

    Source:
        Beal, Variational Algorithms for Approximate Bayesian Inference, PhD thesis 2003, section 3.4.

    Example:
        >>> model = VariationalCategoricalHMM(n_components=2, random_state=0)
        >>> model.fit([[0], [1], [0], [1], [0], [1]]).transmat_.shape
        (2, 2)
    """

    def __init__(
        self,
        n_components: int = 1,
        startprob_prior: Any = None,
        transmat_prior: Any = None,
        emissionprob_prior: Any = None,
        n_features: int | None = None,
        algorithm: str = "viterbi",
        random_state: Any = None,
        n_iter: int = 100,
        tol: float = 1e-6,
        verbose: bool = False,
        params: str = "ste",
        init_params: str = "ste",
        implementation: str = "log",
    ):
        VariationalBaseHMM.__init__(
            self,
            *(n_components, startprob_prior, transmat_prior, algorithm, random_state, n_iter, tol, verbose),
            *(params, init_params, implementation),
        )
        self.emissionprob_prior = emissionprob_prior
        self.n_features = n_features

    def _init(self, X: np.ndarray, lengths: Any = None) -> None:
        super()._init(X, lengths)
        rng = check_random_state(self.random_state)
        if self._needs_init("e", "emissionprob_posterior_"):
            k, v = self.n_components, self.n_features
            prior = 1 / v if self.emissionprob_prior is None else self.emissionprob_prior
            self.emissionprob_prior_ = np.full((k, v), prior)
            self.emissionprob_posterior_ = rng.dirichlet([prior] * v, size=k) * (sum(lengths) / k)

    def _check(self) -> None:
        super()._check()
        for name in ("emissionprob_prior_", "emissionprob_posterior_"):
            setattr(self, name, np.atleast_2d(getattr(self, name)))
        if self.n_features is None:
            self.n_features = self.emissionprob_posterior_.shape[1]
        for name in ("emissionprob_prior_", "emissionprob_posterior_"):
            self._check_shape(name, (self.n_components, self.n_features), "(n_components, n_features)")

    def _estep_begin(self) -> None:
        super()._estep_begin()
        self.emissionprob_log_subnorm_ = expected_logs(self.emissionprob_posterior_)

    def _subnormal_part(self) -> Tilted:
        """exp(E log p) as probabilities times what they lack to sum to one."""
        log = torch.as_tensor(self.emissionprob_log_subnorm_)
        lacking = log.logsumexp(1, keepdim=True)
        return Tilted(Categorical(probs=(log - lacking).exp()), lacking[:, 0])

    def _do_mstep(self, stats: dict[str, Any]) -> None:
        super()._do_mstep(stats)
        if "e" in self.params:
            self.emissionprob_posterior_ = self.emissionprob_prior_ + stats["emission"].T.numpy()
            self.emissionprob_ = self.emissionprob_posterior_ / self.emissionprob_posterior_.sum(1, keepdims=True)

    def _compute_lower_bound(self, log_prob: float) -> float:
        symbols = divergence(self.emissionprob_posterior_, self.emissionprob_prior_)
        return super()._compute_lower_bound(log_prob) - symbols


class VariationalGaussianHMM(GaussianEmission, VariationalBaseHMM):
    r"""Vectors with a normal distribution in each state, and normal-Wishart posteriors of its mean and precision.

    mean_k | precision_k ~ N(m_k, (beta_k precision_k)^-1), precision_k ~ Wishart(nu_k, B_k^-1). After a fit `means_`
    is m and `covars_` is B / nu.

    Args:
        n_components: K, the number of states.
        covariance_type: "full", "diag", "spherical", or "tied" (one matrix for all states).
        startprob_prior: Dirichlet parameters, a number or (K,); None is 1 / K.
        transmat_prior: Dirichlet parameters, a number or (K, K); None is 1 / K.
        means_prior: m, (K, n_features); None is the mean of the data.
        beta_prior: beta, (K,); None is 1.
        dof_prior: nu, (K,), or a number for "tied"; None is n_features.
        scale_prior: B, in the form that `covariance_type` keeps; None is 1e-3 on the diagonal.
        algorithm: of `decode`, "viterbi" or "map".
        random_state: a seed or `numpy.random.RandomState`.
        n_iter: iterations at most.
        tol: stop when an iteration raises the bound by less.
        verbose: report each iteration to standard error.
        params: what a fit changes: "s" startprob, "t" transmat, "m" means, "c" covars.
        init_params: what a fit starts afresh.
        implementation: "log" or "scaling"; both run the same code, "scaling" refuses what hmmlearn's cannot represent.

    Source:
        McGrory and Titterington, Australian and New Zealand Journal of Statistics 51(2), 2009; Gruhl and Sick,
        arXiv:1605.08618.

    Example:
        >>> import numpy as np
        >>> X = np.array([[0.1], [0.0], [5.1], [4.9], [0.2], [5.0]])
        >>> VariationalGaussianHMM(n_components=2, random_state=0).fit(X).means_.shape
        (2, 1)
    """

    def __init__(
        self,
        n_components: int = 1,
        covariance_type: str = "full",
        startprob_prior: Any = None,
        transmat_prior: Any = None,
        means_prior: Any = None,
        beta_prior: Any = None,
        dof_prior: Any = None,
        scale_prior: Any = None,
        algorithm: str = "viterbi",
        random_state: Any = None,
        n_iter: int = 100,
        tol: float = 1e-6,
        verbose: bool = False,
        params: str = "stmc",
        init_params: str = "stmc",
        implementation: str = "log",
    ):
        VariationalBaseHMM.__init__(
            self,
            *(n_components, startprob_prior, transmat_prior, algorithm, random_state, n_iter, tol, verbose),
            *(params, init_params, implementation),
        )
        self.covariance_type = covariance_type
        self.means_prior = means_prior
        self.beta_prior = beta_prior
        self.dof_prior = dof_prior
        self.scale_prior = scale_prior

    @property
    def means_(self) -> np.ndarray:
        """The posterior means of the means, (n_components, n_features)."""
        return self.means_posterior_

    def _init(self, X: np.ndarray, lengths: Any = None) -> None:
        super()._init(X, lengths)
        k, d = self.n_components, self.n_features
        rows = complete(X, k)
        found = clusters(rows, k, self.random_state)
        counts = np.bincount(found.predict(rows), minlength=k)
        if self._needs_any("m", "means_prior_", "means_posterior_", "beta_prior_", "beta_posterior_"):
            self.means_prior_ = np.tile(rows.mean(0), (k, 1)) if self.means_prior is None else self.means_prior
            self.means_posterior_ = found.cluster_centers_.copy()
            self.beta_prior_ = np.ones(k) if self.beta_prior is None else self.beta_prior
            self.beta_posterior_ = counts.copy()
        if self._needs_any("c", "dof_prior_", "dof_posterior_", "scale_prior_", "scale_posterior_"):
            tied = self.covariance_type == "tied"
            self.dof_prior_ = (d if tied else np.full(k, d)) if self.dof_prior is None else self.dof_prior
            self.dof_posterior_ = counts.sum() if tied else counts.copy()
            whole = np.atleast_2d(np.cov(rows.T)) + 1e-3 * np.eye(d)
            self.covars_ = spread(whole, self.covariance_type, k)
            small = spread(1e-3 * np.eye(d), self.covariance_type, k)
            covars = self._covars_
            if self.covariance_type == "spherical":
                small, covars = np.full(k, 1e-3), covars.mean(1)
            self.scale_prior_ = small if self.scale_prior is None else self.scale_prior
            self.scale_posterior_ = covars * np.reshape(self.dof_posterior_, (-1, *[1] * (covars.ndim - 1)))
            self.scale_posterior_ = self.scale_posterior_.reshape(covars.shape)

    def _get_n_fit_scalars_per_param(self) -> dict[str, int]:
        self._check_type()
        k, d = self.n_components, self.n_features
        free = {"full": k + k * d * (d + 1) // 2, "tied": 1 + d * (d + 1) // 2, "diag": k + k * d, "spherical": 2 * k}
        return {"s": k - 1, "t": k * (k - 1), "m": k * d + k, "c": free[self.covariance_type]}

    def _check_type(self) -> None:
        if self.covariance_type not in COVARIANCE_TYPES:
            raise StatespanError(f"covariance_type={self.covariance_type!r}; use one of {sorted(COVARIANCE_TYPES)}")

    def _check(self) -> None:
        self._check_type()
        super()._check()
        k, d, tied = self.n_components, self.n_features, self.covariance_type == "tied"
        scales = {"full": (k, d, d), "tied": (d, d), "diag": (k, d), "spherical": (k,)}
        shapes = {"means": (k, d), "beta": (k,), "dof": (k,), "scale": scales[self.covariance_type]}
        for name in ("means", "beta", "dof", "scale"):
            for which in (f"{name}_prior_", f"{name}_posterior_"):
                value = getattr(self, which)
                if name == "dof" and tied:
                    if not isinstance(value, numbers.Number):
                        raise StatespanError(f"{which} should be numeric for covariance_type='tied'")
                    continue
                setattr(self, which, np.asarray(value, dtype=float))
                self._check_shape(which, shapes[name], "that goes with n_components, n_features and covariance_type")

    def _full(self, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inverse scales as full matrices (K, D, D), and the degrees of freedom of the posterior (K,)."""
        k, d = self.n_components, self.n_features
        return fill_covars(scale, self.covariance_type, k, d), np.broadcast_to(np.asarray(self.dof_posterior_), (k,))

    def _subnormal_part(self) -> Tilted:
        r"""exp(E log N(y)) as N(y; m_k, B_k / nu_k) times a factor a state.

        E log N(y) = (E log|P| - D / beta - nu (y - m)' B^-1 (y - m)) / 2, without the constant in 2 pi, as in hmmlearn.
        """
        d = self.n_features
        scale, dof = self._full(self.scale_posterior_)
        lacking = expected_log_determinant(dof, scale) - d / self.beta_posterior_
        lacking = lacking - d * np.log(dof) + np.linalg.slogdet(scale)[1] + d * np.log(2 * np.pi)
        return Tilted(
            gaussian(self.means_posterior_, scale / dof[:, None, None], self.covariance_type),
            torch.from_numpy(lacking / 2),
        )

    def _do_mstep(self, stats: dict[str, Any]) -> None:
        r"""Update beta = beta_0 + w, m = (beta_0 m_0 + sum of y) / beta, nu = nu_0 + w, B = B_0 + the scatter about m.

        From sums about the means now, so that nothing cancels: with f and S the sums of x = y - m_now and of x x', the
        scatter is S + beta_0 e e' - beta c c' with e = m_0 - m_now and c = m - m_now.

        Source:
            Bishop 2006, equations 10.60 to 10.63.
        """
        super()._do_mstep(stats)
        weight, first, second = (x.numpy() for x in stats["emission"])
        now = self.means_posterior_
        if "m" in self.params:
            self.beta_posterior_ = self.beta_prior_ + weight
            far = self.means_prior_ - now
            self.means_posterior_ = now + (first + self.beta_prior_[:, None] * far) / self.beta_posterior_[:, None]
        if "c" not in self.params:
            return
        far, moved = self.means_prior_ - now, self.means_posterior_ - now
        trust, total = self.beta_prior_[:, None], self.beta_posterior_[:, None]
        if self.covariance_type in ("diag", "spherical"):
            scatter = variances(second, 2) + trust * far**2 - total * moved**2
            scatter = scatter.mean(1) if self.covariance_type == "spherical" else scatter
        else:
            scatter = second + trust[:, None] * far[:, :, None] * far[:, None]
            scatter = scatter - total[:, None] * moved[:, :, None] * moved[:, None]
        if self.covariance_type == "tied":
            self.dof_posterior_ = self.dof_prior_ + weight.sum()
            self.scale_posterior_ = self.scale_prior_ + scatter.sum(0)
            self._covars_ = self.scale_posterior_ / self.dof_posterior_
            return
        self.dof_posterior_ = self.dof_prior_ + weight
        self.scale_posterior_ = self.scale_prior_ + scatter
        self._covars_ = self.scale_posterior_ / self.dof_posterior_.reshape(-1, *[1] * (scatter.ndim - 1))

    def _compute_lower_bound(self, log_prob: float) -> float:
        scale, dof = self._full(self.scale_posterior_)
        prior, _ = self._full(self.scale_prior_)
        precision = np.linalg.inv(scale) * dof[:, None, None]
        means = normal_divergence(
            *(self.means_posterior_, self.beta_posterior_, self.means_prior_, self.beta_prior_, precision)
        )
        dof_prior = np.broadcast_to(np.asarray(self.dof_prior_), dof.shape)
        precisions = wishart_divergence(dof, scale, dof_prior, prior)
        covars = precisions[0] if self.covariance_type == "tied" else precisions.sum()
        return super()._compute_lower_bound(log_prob) - means.sum() - covars
