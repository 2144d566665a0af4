"""What every model of the drop-in shares: parameters, checks, and hmmlearn's verbs over statespan's inference."""

import logging
import string
import sys
from collections import deque
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_array, check_is_fitted, check_random_state
from torch import Tensor

from statespan.compat.hmmlearn._chain import Batch, Chain, batches
from statespan.compat.hmmlearn._parts import LogFrames
from statespan.errors import StatespanError
from statespan.families.hidden_markov import hmm
from statespan.fit.conjugate import dirichlet_divergence, expected_log
from statespan.fit.em import add
from statespan.model import StateSpace

_log = logging.getLogger(__name__)

DECODER_ALGORITHMS = frozenset(("viterbi", "map"))
"""Ways to decode: the likeliest path, or the likeliest state of each step."""


class ConvergenceMonitor:
    """Keeps the history of a fit and says when it is done.

    Args:
        tol: a fit has converged when an iteration gains less than this.
        n_iter: or after so many iterations.
        verbose: whether to report each iteration to standard error: its number, the log-probability, the gain.

    Example:
        >>> monitor = ConvergenceMonitor(tol=0.1, n_iter=10, verbose=False)
        >>> for log_prob in (-5.0, -4.0, -3.95):
        ...     monitor.report(log_prob)
        >>> monitor.converged, monitor.iter
        (True, 3)
    """

    _template = "{iter:>10d} {log_prob:>16.8f} {delta:>+16.8f}"

    def __init__(self, tol: float, n_iter: int, verbose: bool):
        self.tol, self.n_iter, self.verbose = tol, n_iter, verbose
        self.history: deque[float] = deque()
        self.iter = 0

    def __repr__(self) -> str:
        lines = [f"    {name}={value},\n" for name, value in sorted({**vars(self), "history": [*self.history]}.items())]
        return f"{type(self).__name__}(\n{''.join(lines)})"

    def _reset(self) -> None:
        """Forget the last fit."""
        self.iter = 0
        self.history.clear()

    def report(self, log_prob: float) -> None:
        """Note the log-probability before an iteration's update.

        Args:
            log_prob: natural, of all data; for a variational model the bound.
        """
        delta = log_prob - self.history[-1] if self.history else np.nan
        if self.verbose:
            print(self._template.format(iter=self.iter + 1, log_prob=log_prob, delta=delta), file=sys.stderr)
        if delta < -(np.finfo(float).eps ** 0.5):  # rounding apart
            _log.warning(
                "Model is not converging.  Current: %s is not greater than %s. Delta is %s",
                *(log_prob, self.history[-1], delta),
            )
        self.history.append(log_prob)
        self.iter += 1

    @property
    def converged(self) -> bool:
        """Whether the last iteration gained less than `tol`, or was the last allowed."""
        if self.iter == self.n_iter:
            return True
        return len(self.history) >= 2 and self.history[-1] - self.history[-2] < self.tol


class _AbstractHMM(BaseEstimator):
    """hmmlearn's verbs; the subclasses say what the parameters are and how they are re-estimated."""

    _frames = True
    """Whether the emission is known by its log-likelihoods alone, as in a user's subclass."""

    n_features: Any
    startprob_: Any
    transmat_: Any
    monitor_: Any

    def __init_subclass__(cls, **kwargs: Any):
        """A subclass that writes its own density is asked for it."""
        super().__init_subclass__(**kwargs)
        if {"_compute_log_likelihood", "_compute_likelihood"} & set(vars(cls)):
            cls._frames = True

    def __init__(
        self,
        n_components: int,
        algorithm: str,
        random_state: Any,
        n_iter: int,
        tol: float,
        verbose: bool,
        params: str,
        init_params: str,
        implementation: str,
    ):
        self.n_components = n_components
        self.algorithm = algorithm
        self.random_state = random_state
        self.n_iter = n_iter
        self.tol = tol
        self.verbose = verbose
        self.params = params
        self.init_params = init_params
        self.implementation = implementation

    # ------------------------------------------------------------------------------------- the verbs

    def fit(self, X: Any, lengths: Any = None) -> "_AbstractHMM":
        """Estimate the parameters: start those of `init_params`, then iterate on those of `params`.

        Args:
            X: (n_samples, n_features), sequences one after another; NaN is missing.
            lengths: of the sequences; None: there is one.
        """
        X = _read(X)
        lengths = np.asarray([len(X)]) if lengths is None else lengths
        self._init(X, lengths)
        self._check()
        self.monitor_._reset()
        data = None
        for _ in range(self.n_iter):
            if data is None or self._frames:
                data = batches(*self._sees(X), lengths, self._breadth())
            stats, log_prob = self._do_estep(X, data)
            bound = self._compute_lower_bound(log_prob)
            self._do_mstep(stats)
            self.monitor_.report(bound)
            if self.monitor_.converged:
                break
            if (np.asarray(self.transmat_).sum(1) == 0).any():
                _log.warning(
                    "Some rows of transmat_ have zero sum because no transition from the state was ever observed."
                )
        return self

    def score(self, X: Any, lengths: Any = None) -> float:
        """Natural log-probability of all sequences together.

        Args:
            X: (n_samples, n_features), sequences one after another; NaN is missing.
            lengths: of the sequences; None: there is one.
        """
        X = self._ready(X)
        return self._chain().log_prob(self._batches(X, lengths))

    def score_samples(self, X: Any, lengths: Any = None) -> tuple[float, np.ndarray]:
        """The log-probability of all sequences, and the state probabilities (n_samples, n_components) given them.

        Args:
            X: (n_samples, n_features), sequences one after another; NaN is missing.
            lengths: of the sequences; None: there is one.
        """
        X = self._ready(X)
        data = self._batches(X, lengths)
        return self._chain().smooth(data, _count(data))

    def predict_proba(self, X: Any, lengths: Any = None) -> np.ndarray:
        """State probabilities (n_samples, n_components) given each whole sequence.

        Args:
            X: (n_samples, n_features), sequences one after another; NaN is missing.
            lengths: of the sequences; None: there is one.
        """
        return self.score_samples(X, lengths)[1]

    def decode(self, X: Any, lengths: Any = None, algorithm: str | None = None) -> tuple[float, np.ndarray]:
        """The likeliest states (n_samples,) and their log-probability.

        Args:
            X: (n_samples, n_features), sequences one after another; NaN is missing.
            lengths: of the sequences; None: there is one.
            algorithm: "viterbi", the likeliest path and log p(path, X), or "map", the likeliest state of each step and
                the sum of their probabilities; None is the model's own.
        """
        X = self._ready(X)
        algorithm = algorithm or self.algorithm
        if algorithm not in DECODER_ALGORITHMS:
            raise StatespanError(f"Unknown decoder {algorithm!r}; use 'viterbi' or 'map'")
        data = self._batches(X, lengths)
        if algorithm == "viterbi":
            return self._chain().decode(data, _count(data))
        posterior = self._chain().smooth(data, _count(data))[1]
        return posterior.max(1).sum(), posterior.argmax(1)

    def predict(self, X: Any, lengths: Any = None) -> np.ndarray:
        """The likeliest states (n_samples,), by `algorithm`.

        Args:
            X: (n_samples, n_features), sequences one after another; NaN is missing.
            lengths: of the sequences; None: there is one.
        """
        return self.decode(X, lengths)[1]

    def filter(self, X: Any, lengths: Any = None) -> np.ndarray:
        """State probabilities (n_samples, n_components) given each sequence up to the step, not beyond.

        Args:
            X: (n_samples, n_features), sequences one after another; NaN is missing.
            lengths: of the sequences; None: there is one.
        """
        X = self._ready(X)
        data = self._batches(X, lengths)
        return self._chain().filter(data, _count(data))

    def forecast(self, X: Any, steps: int = 1, lengths: Any = None, samples: int = 200, seed: int | None = 0) -> Any:
        """What comes after each sequence: a `statespan.Forecast`.

        Args:
            X: (n_samples, n_features), sequences one after another; NaN is missing.
            steps: how many steps ahead.
            lengths: of the sequences; None: there is one.
            samples: how many futures to draw.
            seed: makes the draws repeatable.
        """
        y, observed = self._sees(self._ready(X))
        if observed is not None:
            y = torch.where(observed, y, -1) if y.dim() == 1 else torch.where(_like(observed, y), y, torch.nan)
        rows = y if lengths is None else list(y.split(np.asarray(lengths).tolist()))
        return self.model.requires_grad_(False).forecast(rows, steps, samples, seed)

    def sample(
        self, n_samples: int = 1, random_state: Any = None, currstate: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw one sequence, observations (n_samples, n_features) and states, in hmmlearn's order of random numbers.

        Args:
            n_samples: its length.
            random_state: a seed or `numpy.random.RandomState`; None is the model's own.
            currstate: the first state; None draws it.
        """
        check_is_fitted(self, "startprob_")
        self._check()
        rng = check_random_state(self.random_state if random_state is None else random_state)
        rows = np.cumsum(self.transmat_, axis=1)
        states, seen = [], []
        for t in range(n_samples):
            if t > 0 or currstate is None:
                currstate = int(((rows[currstate] if t else np.cumsum(self.startprob_)) > rng.rand()).argmax())
            states.append(currstate)
            seen.append(self._generate_sample_from_state(currstate, rng))
        return np.atleast_2d(seen), np.array(states, dtype=int)

    @property
    def model(self) -> StateSpace:
        """The same model as a `statespan.StateSpace`: forecasts, gaps, streams, files, gradients."""
        check_is_fitted(self, "startprob_")
        self._check()
        return hmm(initial=self.startprob_, transition=self.transmat_, emission=self._part())

    def to_statespan(self) -> StateSpace:
        """The same model as a `statespan.StateSpace`."""
        return self.model

    # ------------------------------------------------------------------------------- the two languages

    def _ready(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "startprob_")
        self._check()
        return _read(X)

    def _sees(self, X: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """The observations as the emission reads them, and which are there."""
        if self._frames:
            return torch.as_tensor(np.asarray(self._compute_log_likelihood(X), dtype=float)), None
        return self._observations(X)

    def _batches(self, X: np.ndarray, lengths: Any) -> list[Batch]:
        return batches(*self._sees(X), lengths, self.n_components)

    def _breadth(self) -> int:
        """About how many numbers a step takes in the E-step."""
        return self.n_components

    def _chain(self) -> Chain:
        """The model as it is, for inference."""
        emission = LogFrames(self.n_components) if self._frames else self._part()
        return Chain(self.startprob_, self.transmat_, emission, self.implementation)

    def _observations(self, X: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """What the part reads, and which of it is there."""
        raise NotImplementedError("a subclass writes _compute_log_likelihood")

    def _part(self) -> Any:
        """The emission as a statespan part."""
        raise NotImplementedError("a subclass writes _compute_log_likelihood")

    # --------------------------------------------------- what hmmlearn's documentation lets a subclass write

    def _compute_log_likelihood(self, X: np.ndarray) -> np.ndarray:
        """Log p(X_t | state), (n_samples, n_components)."""
        if type(self)._compute_likelihood is not _AbstractHMM._compute_likelihood:
            with np.errstate(divide="ignore"):
                return np.log(self._compute_likelihood(X))
        y, observed = self._observations(X)
        part = self._part()
        with torch.no_grad():
            there = None if observed is None else observed[:, None]
            return part.log_likelihood(y[:, None], None, there, part.constants())[:, 0].numpy()

    def _compute_likelihood(self, X: np.ndarray) -> np.ndarray:
        """p(X_t | state), (n_samples, n_components)."""
        return np.exp(self._compute_log_likelihood(X))

    def _generate_sample_from_state(self, state: int, random_state: Any) -> Any:
        """One observation drawn from a state; the bare chain has none."""
        return ()

    def _initialize_sufficient_statistics(self) -> dict[str, Any]:
        """Sums of the E-step at zero: sequences, expected first states, expected moves; the emission's come in bulk."""
        k = self.n_components
        return {"nobs": 0, "start": np.zeros(k), "trans": np.zeros((k, k)), "emission": None}

    def _accumulate_sufficient_statistics(
        self, stats: dict[str, Any], X: Any, lattice: Any, posteriors: Any, fwdlattice: Any, bwdlattice: Any
    ) -> None:
        """What a subclass sums over one sequence; first states and moves are summed already, for all sequences."""

    def _do_estep(self, X: np.ndarray, data: list[Batch]) -> tuple[dict[str, Any], float]:
        """Expected statistics and the log-probability of everything."""
        self._estep_begin()
        stats, log_prob = self._initialize_sufficient_statistics(), 0.0
        for batch, new, part in self._fit_chain().expect(data):
            log_prob += part
            stats["nobs"] += len(batch.names)
            stats["start"] += new.initial.numpy()
            stats["trans"] += new.transition.numpy()
            if self._frames:
                self._sum_each(stats, X, batch, new.emission)
            else:
                stats["emission"] = new.emission if stats["emission"] is None else add(stats["emission"], new.emission)
        return stats, log_prob

    def _sum_each(self, stats: dict[str, Any], X: np.ndarray, batch: Batch, posterior: Tensor) -> None:
        """A subclass's own sums, a sequence at a time."""
        ends = batch.data.within.sum(0).tolist()
        for b, end in enumerate(ends):
            rows = batch.rows[:end, b].numpy()
            frames = batch.data.y[:end, b].numpy()
            self._accumulate_sufficient_statistics(stats, X[rows], frames, posterior[:end, b].numpy(), None, None)

    def _estep_begin(self) -> None:
        """Before each E-step."""

    def _fit_chain(self) -> Chain:
        """The chain of the E-step."""
        return self._chain()

    def _do_mstep(self, stats: dict[str, Any]) -> None:
        """New parameters."""
        raise NotImplementedError

    def _compute_lower_bound(self, log_prob: float) -> float:
        """What the fit raises."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------ starts, checks

    def _init(self, X: np.ndarray, lengths: Any = None) -> None:
        raise NotImplementedError

    def _check(self) -> None:
        raise NotImplementedError

    def _needs_init(self, code: str, name: str) -> bool:
        """Whether a parameter is to be started; says so where that overwrites one that was set."""
        if code in self.init_params and hasattr(self, name):
            _log.warning(
                "Even though the %r attribute is set, it will be overwritten during initialization because "
                "'init_params' contains %r",
                *(name, code),
            )
        return code in self.init_params or not hasattr(self, name)

    def _check_and_set_n_features(self, X: np.ndarray) -> None:
        width = X.shape[1]
        if getattr(self, "n_features", width) != width:
            raise StatespanError(f"Unexpected number of dimensions, got {width} but expected {self.n_features}")
        self.n_features = width

    def _get_n_fit_scalars_per_param(self) -> dict[str, int] | None:
        """How many free numbers stand behind each letter of `params`; None: not known."""
        return None

    def _warn_if_too_many(self, X: np.ndarray) -> None:
        scalars = self._get_n_fit_scalars_per_param()
        free = 0 if scalars is None else sum(scalars[p] for p in self.params)
        if X.size < free:
            _log.warning(
                "Fitting a model with %d free scalar parameters with only %d data points will result in a degenerate "
                "solution.",
                *(free, X.size),
            )

    def _check_sum_1(self, name: str) -> None:
        value = getattr(self, name)
        sums = value.sum(-1)
        if not np.allclose(sums, 1):
            what = (
                f"must sum to 1 (got {sums:.4f})" if sums.ndim == 0 else f"rows must sum to 1 (got row sums of {sums})"
            )
            raise StatespanError(f"{name} {what}")

    def _check_shape(self, name: str, shape: tuple[int, ...], said: str) -> None:
        if np.shape(getattr(self, name)) != shape:
            raise StatespanError(f"{name} must have shape {said}, {shape}; it has {np.shape(getattr(self, name))}")


class BaseHMM(_AbstractHMM):
    """A hidden Markov chain fitted by expectation maximisation; the base of one's own emissions.

    A subclass writes `_compute_log_likelihood(X)` or `_compute_likelihood(X)`, and for `fit` also
    `_accumulate_sufficient_statistics` (called once a sequence, with its posterior; the lattices are None) and
    `_do_mstep`, as hmmlearn's documentation describes.

    Args:
        n_components: K, the number of states.
        startprob_prior: Dirichlet parameters, a number or (K,).
        transmat_prior: Dirichlet parameters, a number or (K, K).
        algorithm: of `decode`, "viterbi" or "map".
        random_state: a seed or `numpy.random.RandomState`.
        n_iter: iterations at most.
        tol: stop when an iteration gains less.
        verbose: report each iteration to standard error.
        params: the parameters that a fit changes: "s" startprob, "t" transmat, others by class.
        init_params: the parameters that a fit starts afresh.
        implementation: "log" or "scaling"; both run the same code, "scaling" refuses what hmmlearn's cannot represent.
    """

    def __init__(
        self,
        n_components: int = 1,
        startprob_prior: Any = 1.0,
        transmat_prior: Any = 1.0,
        algorithm: str = "viterbi",
        random_state: Any = None,
        n_iter: int = 10,
        tol: float = 1e-2,
        verbose: bool = False,
        params: str = string.ascii_letters,
        init_params: str = string.ascii_letters,
        implementation: str = "log",
    ):
        super().__init__(
            n_components, algorithm, random_state, n_iter, tol, verbose, params, init_params, implementation
        )
        self.startprob_prior = startprob_prior
        self.transmat_prior = transmat_prior
        self.monitor_ = ConvergenceMonitor(tol, n_iter, verbose)

    def get_stationary_distribution(self) -> np.ndarray:
        """The distribution over states (K,) that `transmat_` leaves as it is."""
        check_is_fitted(self, "transmat_")
        table = np.asarray(self.transmat_)
        values, vectors = np.linalg.eig(table.T)
        vector = np.real(vectors[:, np.abs(values - 1).argmin()])
        return vector / vector.sum()

    def aic(self, X: Any, lengths: Any = None) -> float:
        """Akaike's criterion: -2 log p + 2 times the free parameters; lower is better.

        Args:
            X: (n_samples, n_features), sequences one after another.
            lengths: of the sequences; None: there is one.
        """
        return -2 * self.score(X, lengths) + 2 * self._free()

    def bic(self, X: Any, lengths: Any = None) -> float:
        """Schwarz's criterion: -2 log p + the free parameters times log n_samples; lower is better.

        Args:
            X: (n_samples, n_features), sequences one after another.
            lengths: of the sequences; None: there is one.
        """
        return -2 * self.score(X, lengths) + self._free() * np.log(len(X))

    def _free(self) -> int:
        scalars = self._get_n_fit_scalars_per_param()
        if scalars is None:
            raise NotImplementedError("write _get_n_fit_scalars_per_param, which counts the free parameters")
        return sum(scalars.values())

    def _init(self, X: np.ndarray, lengths: Any = None) -> None:
        self._check_and_set_n_features(X)
        k, rng = self.n_components, check_random_state(self.random_state)
        if self._needs_init("s", "startprob_"):
            self.startprob_ = rng.dirichlet(np.full(k, 1 / k))
        if self._needs_init("t", "transmat_"):
            self.transmat_ = rng.dirichlet(np.full(k, 1 / k), size=k)
        self._warn_if_too_many(X)

    def _check(self) -> None:
        k = self.n_components
        self.startprob_ = np.asarray(self.startprob_)
        if len(self.startprob_) != k:
            raise StatespanError(f"startprob_ must have length n_components, {k}; it has {len(self.startprob_)}")
        self._check_sum_1("startprob_")
        self.transmat_ = np.asarray(self.transmat_)
        self._check_shape("transmat_", (k, k), "(n_components, n_components)")
        self._check_sum_1("transmat_")

    def _do_mstep(self, stats: dict[str, Any]) -> None:
        if "s" in self.params:
            self.startprob_ = _mode(self.startprob_prior, stats["start"], self.startprob_)
        if "t" in self.params:
            self.transmat_ = _mode(self.transmat_prior, stats["trans"], self.transmat_)

    def _compute_lower_bound(self, log_prob: float) -> float:
        return log_prob


class VariationalBaseHMM(_AbstractHMM):
    """A hidden Markov chain with Dirichlet posteriors over its tables, fitted by variational Bayes.

    Args:
        n_components: K, the number of states.
        startprob_prior: Dirichlet parameters, a number or (K,); None is 1 / K.
        transmat_prior: Dirichlet parameters, a number or (K, K); None is 1 / K.
        algorithm: of `decode`, "viterbi" or "map".
        random_state: a seed or `numpy.random.RandomState`.
        n_iter: iterations at most.
        tol: stop when an iteration raises the bound by less.
        verbose: report each iteration to standard error.
        params: the parameters that a fit changes: "s" startprob, "t" transmat, others by class.
        init_params: the parameters that a fit starts afresh.
        implementation: "log" or "scaling"; both run the same code, "scaling" refuses what hmmlearn's cannot represent.

    Source:
        Beal, Variational Algorithms for Approximate Bayesian Inference, PhD thesis 2003, chapter 3.
    """

    def __init__(
        self,
        n_components: int = 1,
        startprob_prior: Any = None,
        transmat_prior: Any = None,
        algorithm: str = "viterbi",
        random_state: Any = None,
        n_iter: int = 100,
        tol: float = 1e-6,
        verbose: bool = False,
        params: str = "ste",
        init_params: str = "ste",
        implementation: str = "log",
    ):
        super().__init__(
            n_components, algorithm, random_state, n_iter, tol, verbose, params, init_params, implementation
        )
        self.startprob_prior = startprob_prior
        self.transmat_prior = transmat_prior
        self.monitor_ = ConvergenceMonitor(tol, n_iter, verbose)

    def _init(self, X: np.ndarray, lengths: Any = None) -> None:
        self._check_and_set_n_features(X)
        k, rng = self.n_components, check_random_state(self.random_state)
        if self._needs_any("s", "startprob_posterior_", "startprob_prior_"):
            self.startprob_prior_ = np.full(k, 1 / k if self.startprob_prior is None else self.startprob_prior)
            self.startprob_posterior_ = rng.dirichlet(np.full(k, 1 / k)) * len(lengths)
        if self._needs_any("t", "transmat_posterior_", "transmat_prior_"):
            self.transmat_prior_ = np.full((k, k), 1 / k if self.transmat_prior is None else self.transmat_prior)
            self.transmat_posterior_ = rng.dirichlet(np.full(k, 1 / k), size=k) * (sum(lengths) / k)
        self._warn_if_too_many(X)

    def _needs_any(self, code: str, *names: str) -> bool:
        return any([self._needs_init(code, name) for name in names])

    def _check(self) -> None:
        k = self.n_components
        for name, shape, said in (
            ("startprob_prior_", (k,), "(n_components,)"),
            ("startprob_posterior_", (k,), "(n_components,)"),
            ("transmat_prior_", (k, k), "(n_components, n_components)"),
            ("transmat_posterior_", (k, k), "(n_components, n_components)"),
        ):
            setattr(self, name, np.asarray(getattr(self, name)))
            self._check_shape(name, shape, said)

    def _estep_begin(self) -> None:
        with np.errstate(under="ignore"):
            self.startprob_subnorm_ = np.exp(expected_logs(self.startprob_posterior_))
            self.transmat_subnorm_ = np.exp(expected_logs(self.transmat_posterior_))

    def _fit_chain(self) -> Chain:
        return Chain(self.startprob_subnorm_, self.transmat_subnorm_, self._subnormal_part(), self.implementation)

    def _subnormal_part(self) -> Any:
        """The emission with exp(E log p(y | k)) for its density."""
        raise NotImplementedError

    def _do_mstep(self, stats: dict[str, Any]) -> None:
        if "s" in self.params:
            self.startprob_posterior_ = self.startprob_prior_ + stats["start"]
            self.startprob_ = self.startprob_posterior_ / self.startprob_posterior_.sum()
        if "t" in self.params:
            self.transmat_posterior_ = self.transmat_prior_ + stats["trans"]
            self.transmat_ = self.transmat_posterior_ / self.transmat_posterior_.sum(1, keepdims=True)

    def _compute_lower_bound(self, log_prob: float) -> float:
        tables = (self.startprob_posterior_, self.startprob_prior_), (self.transmat_posterior_, self.transmat_prior_)
        return log_prob - sum(divergence(posterior, prior) for posterior, prior in tables)


def expected_logs(concentration: np.ndarray) -> np.ndarray:
    """E log p under Dirichlet distributions over the last axis."""
    return expected_log(torch.as_tensor(concentration, dtype=torch.float64)).numpy()


def divergence(posterior: np.ndarray, prior: np.ndarray) -> float:
    """KL of Dirichlet distributions over the last axis, summed."""
    q, p = (torch.as_tensor(x, dtype=torch.float64) for x in (posterior, prior))
    return float(dirichlet_divergence(q, p).sum())


def _read(X: Any) -> np.ndarray:
    """A numeric array of two dimensions; NaN is missing."""
    options: dict[str, Any] = {"ensure_all_finite": "allow-nan"}
    return check_array(X, **options)


def _count(data: list[Batch]) -> int:
    return sum(int(batch.data.within.sum()) for batch in data)


def _like(observed: Tensor, y: Tensor) -> Tensor:
    return observed if observed.dim() == y.dim() else observed[:, None]


def _mode(prior: Any, counts: np.ndarray, now: np.ndarray) -> np.ndarray:
    """The mode of a Dirichlet posterior, row by row: prior - 1 + counts, not below zero; a zero stays zero."""
    new = np.where(now == 0, 0, np.maximum(prior - 1 + counts, 0))
    sums = new.sum(-1, keepdims=True)
    with np.errstate(under="ignore"):
        return new / np.where(sums == 0, 1, sums)
