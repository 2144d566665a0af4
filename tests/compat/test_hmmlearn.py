"""The drop-in against hmmlearn itself: same parameters, same answers; same start, same fit, iteration by iteration."""

import copy
import inspect
import logging
import pickle

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

import statespan as ss

hmmlearn = pytest.importorskip("hmmlearn")

from hmmlearn import base as their_base  # noqa: E402
from hmmlearn import hmm as their_hmm  # noqa: E402
from hmmlearn import vhmm as their_vhmm  # noqa: E402
from sklearn.base import clone  # noqa: E402

from statespan.compat import hmmlearn as ours  # noqa: E402
from statespan.compat.hmmlearn import base as our_base  # noqa: E402

LENGTHS = [30, 5, 17, 1, 48]
TYPES = ["spherical", "diag", "full", "tied"]
IMPLEMENTATIONS = ["log", "scaling"]


def vectors(seed=0, columns=3):
    rng = np.random.RandomState(seed)
    return np.concatenate([rng.randn(50, columns), rng.randn(51, columns) * 0.5 + 3])


def symbols(seed=0):
    return np.random.RandomState(seed).randint(0, 5, (101, 1))


def counts(seed=0):
    rng = np.random.RandomState(seed)
    return np.concatenate([rng.poisson([1.0, 4, 2], (50, 3)), rng.poisson([6.0, 1, 2], (51, 3))])


def trials(seed=0):
    rng = np.random.RandomState(seed)
    return np.concatenate([rng.multinomial(6, [0.5, 0.3, 0.2], 50), rng.multinomial(6, [0.1, 0.2, 0.7], 51)])


CASES = {
    **{f"GMMHMM-{t}": ("GMMHMM", {"covariance_type": t, "n_mix": 2}, vectors) for t in TYPES},
    "PoissonHMM": ("PoissonHMM", {}, counts),
    "MultinomialHMM": ("MultinomialHMM", {}, trials),
    **{f"GaussianHMM-{t}": ("GaussianHMM", {"covariance_type": t}, vectors) for t in TYPES},
    **{f"VariationalGaussianHMM-{t}": ("VariationalGaussianHMM", {"covariance_type": t}, vectors) for t in TYPES},
    "CategoricalHMM": ("CategoricalHMM", {}, symbols),
    "VariationalCategoricalHMM": ("VariationalCategoricalHMM", {}, symbols),
}


def pair(case, **options):
    """hmmlearn's model and ours."""
    name, arguments, make = CASES[case]
    theirs = getattr(their_vhmm if name.startswith("Variational") else their_hmm, name)
    both = [cls(n_components=3, random_state=3, **arguments, **options) for cls in (theirs, getattr(ours, name))]
    return *both, make()


def fitted_arrays(model):
    names = [n for n in vars(model) if n.endswith("_") and isinstance(getattr(model, n), (np.ndarray, float, int))]
    return {name: np.asarray(getattr(model, name)) for name in names if not name.startswith("__")}


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES)
def test_same_fit(case, implementation):
    theirs, mine, X = pair(case, n_iter=8, tol=-1e9, implementation=implementation)
    theirs.fit(X, LENGTHS)
    mine.fit(X, LENGTHS)
    assert mine.monitor_.iter == theirs.monitor_.iter == 8
    np.testing.assert_allclose(mine.monitor_.history, theirs.monitor_.history, rtol=1e-9)
    expected = fitted_arrays(theirs)
    assert {"startprob_", "transmat_"} <= set(expected) <= set(fitted_arrays(mine))
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(mine, name), value, rtol=1e-6, atol=1e-9, err_msg=name)
    assert mine.model.log_prob(torch.as_tensor(X[:30, 0] if "Cat" in case else X[:30])).item() == pytest.approx(
        theirs.score(X[:30]), rel=1e-8
    )


@pytest.mark.parametrize("case", CASES)
def test_same_answers(case):
    theirs, _, X = pair(case, n_iter=5)
    theirs.fit(X, LENGTHS)
    mine = ours.drop_in(theirs)
    for lengths in (None, LENGTHS):
        assert mine.score(X, lengths) == pytest.approx(theirs.score(X, lengths), rel=1e-10)
        log_prob, posterior = mine.score_samples(X, lengths)
        assert log_prob == pytest.approx(theirs.score(X, lengths), rel=1e-10)
        np.testing.assert_allclose(posterior, theirs.predict_proba(X, lengths), atol=1e-10)
        np.testing.assert_array_equal(mine.predict(X, lengths), theirs.predict(X, lengths))
        for algorithm in ("viterbi", "map"):
            a, b = (m.decode(X, lengths, algorithm=algorithm) for m in (mine, theirs))
            assert a[0] == pytest.approx(b[0], rel=1e-10)
            np.testing.assert_array_equal(a[1], b[1])
    if hasattr(theirs, "aic"):
        assert mine.aic(X, LENGTHS) == pytest.approx(theirs.aic(X, LENGTHS), rel=1e-10)
        assert mine.bic(X, LENGTHS) == pytest.approx(theirs.bic(X, LENGTHS), rel=1e-10)
        np.testing.assert_allclose(mine.get_stationary_distribution(), theirs.get_stationary_distribution())
    np.testing.assert_allclose(mine._compute_log_likelihood(X), theirs._compute_log_likelihood(X), rtol=1e-9)


@pytest.mark.parametrize("case", [c for c in CASES if "spherical" not in c])
def test_same_sample_of_a_seed(case):
    theirs, _, X = pair(case, n_iter=3)
    theirs.fit(X, LENGTHS)
    drawn = ours.drop_in(theirs).sample(60, random_state=5)
    for seen, expected in zip(drawn, theirs.sample(60, random_state=5), strict=True):
        np.testing.assert_array_equal(seen, expected)
    X, Z = ours.drop_in(theirs).sample(4, random_state=5, currstate=2)
    assert Z[0] == 2 and X.shape[0] == 4


def test_spherical_covars_are_one_a_state():
    """hmmlearn gives n_components x n_features of them after a fit, and draws from the wrong ones."""
    theirs, mine, X = pair("GaussianHMM-spherical", n_iter=3)
    assert theirs.fit(X).covars_.shape == (9, 3, 3)
    assert mine.fit(X).covars_.shape == (3, 3, 3)
    np.testing.assert_allclose(mine.covars_, mine._covars_[:, :1, None] * np.eye(3))


@pytest.mark.parametrize("params", ["s", "t", "m", "mc", "ste"])
@pytest.mark.parametrize("case", ["GaussianHMM-full", "GaussianHMM-diag", "CategoricalHMM"])
def test_params_and_init_params(case, params):
    theirs, mine, X = pair(case, n_iter=4, tol=-1e9)
    theirs.fit(X, LENGTHS)
    mine = ours.drop_in(copy.deepcopy(theirs))
    allowed = mine.init_params
    for model in (theirs, mine):
        model.params, model.init_params = "".join(p for p in params if p in allowed), ""
        model.fit(X[::-1], LENGTHS)
    np.testing.assert_allclose(mine.monitor_.history, theirs.monitor_.history, rtol=1e-9)
    for name, value in fitted_arrays(theirs).items():
        np.testing.assert_allclose(getattr(mine, name), value, rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("kind", TYPES)
def test_priors(kind):
    rng = np.random.RandomState(1)
    priors = {
        "startprob_prior": rng.rand(3) * 3 + 0.5,
        "transmat_prior": rng.rand(3, 3) * 3 + 0.5,
        "means_prior": rng.randn(3, 3),
        "means_weight": 2.0,
        "covars_prior": 0.3 * np.eye(3) if kind in ("full", "tied") else 0.3,
        "covars_weight": 7.0,
    }
    theirs, mine, X = pair(f"GaussianHMM-{kind}", n_iter=10, tol=-1e9, **priors)
    theirs.fit(X, LENGTHS)
    mine.fit(X, LENGTHS)
    np.testing.assert_allclose(mine.monitor_.history, theirs.monitor_.history, rtol=1e-9)
    for name, value in fitted_arrays(theirs).items():
        np.testing.assert_allclose(getattr(mine, name), value, rtol=1e-6, atol=1e-9, err_msg=name)
    theirs, mine, Y = pair("CategoricalHMM", n_iter=10, emissionprob_prior=rng.rand(3, 5) * 2 + 0.2)
    np.testing.assert_allclose(mine.fit(Y).emissionprob_, theirs.fit(Y).emissionprob_, rtol=1e-6)


def test_covariances_alone_are_fitted_about_the_means():
    """hmmlearn's sums for params="c" lack the means', so that its covariances are meaningless; ours are the MAP."""
    _, mine, X = pair("GaussianHMM-diag", params="c", n_iter=1, covars_prior=0.0)
    mine.fit(X)
    start = clone(mine).set_params(n_iter=0).fit(X)
    posterior = start.predict_proba(X)
    expected = np.einsum("tk,tkd->kd", posterior, (X[:, None] - mine.means_) ** 2) / posterior.sum(0)[:, None]
    np.testing.assert_allclose(mine._covars_, expected, rtol=1e-9)


def test_far_from_zero_nothing_cancels():
    X = vectors() + 1e7
    model = ours.GaussianHMM(3, "full", random_state=0, n_iter=20, tol=-1e9).fit(X, LENGTHS)
    near = ours.GaussianHMM(3, "full", random_state=0, n_iter=20, tol=-1e9).fit(X - 1e7, LENGTHS)
    np.testing.assert_allclose(model.covars_, near.covars_, rtol=1e-4, atol=1e-6)


# ----------------------------------------------------------------------------------------- more than hmmlearn


def test_a_missing_symbol_is_summed_out():
    theirs, _, X = pair("CategoricalHMM", n_iter=4)
    theirs.fit(X)
    gap = X[:20].astype(float)
    gap[7] = np.nan
    each = [theirs.score(np.where(np.arange(20)[:, None] == 7, v, X[:20])) for v in range(5)]
    assert ours.drop_in(theirs).score(gap) == pytest.approx(logsumexp(each), rel=1e-10)
    gap[3] = np.nan
    assert np.isfinite(ours.CategoricalHMM(3, random_state=0).fit(gap).score(gap))


def test_a_missing_column_is_marginalised():
    theirs, _, X = pair("GaussianHMM-full", n_iter=4)
    theirs.fit(X)
    less = copy.deepcopy(theirs)
    less.means_, less.n_features = theirs.means_[:, :2], 2
    less._covars_ = theirs._covars_[:, :2, :2]
    gap = X.copy()
    gap[:, 2] = np.nan
    mine = ours.drop_in(theirs)
    assert mine.score(gap, LENGTHS) == pytest.approx(less.score(X[:, :2], LENGTHS), rel=1e-10)
    np.testing.assert_array_equal(mine.predict(gap), less.predict(X[:, :2]))


@pytest.mark.parametrize("kind", TYPES)
def test_a_fit_with_gaps_climbs(kind):
    X = vectors()
    rng = np.random.RandomState(2)
    X[rng.rand(*X.shape) < 0.2] = np.nan
    X[40] = np.nan
    model = ours.GaussianHMM(2, kind, random_state=0, n_iter=20, tol=-1e9, covars_prior=0).fit(X, LENGTHS)
    assert (np.diff(model.monitor_.history) > -1e-9).all()
    assert np.sort(model.means_[:, 0]) == pytest.approx([0, 3], abs=0.4)


def test_filter_and_forecast():
    theirs, _, X = pair("GaussianHMM-diag", n_iter=5)
    theirs.fit(X, LENGTHS)
    mine = ours.drop_in(theirs)
    filtered = mine.filter(X, LENGTHS)
    for t in (0, 12, 29):
        np.testing.assert_allclose(filtered[t], theirs.predict_proba(X[: t + 1])[-1], atol=1e-10)
    np.testing.assert_allclose(filtered[30], theirs.predict_proba(X[30:31])[0], atol=1e-10)
    ahead = mine.forecast(X[:30], steps=3)
    expected = theirs.predict_proba(X[:30])[-1] @ np.linalg.matrix_power(theirs.transmat_, 3) @ theirs.means_
    np.testing.assert_allclose(ahead.mean[-1], expected)
    assert len(mine.forecast(X, steps=2, lengths=LENGTHS).mean) == len(LENGTHS)
    gap = X[:30].copy()
    gap[-1] = np.nan
    shorter = mine.forecast(X[:29], steps=2).mean[-1]
    np.testing.assert_allclose(mine.forecast(gap).mean[0], shorter)


def test_logarithms_where_scaling_underflows():
    """A chain that must start in a state a thousand nats away: hmmlearn's logarithms can, and so can we."""
    arguments = {"n_components": 3, "init_params": "", "n_iter": 4, "tol": -1e9, "covars_prior": 0.1}
    theirs, mine = (cls(**arguments) for cls in (their_hmm.GaussianHMM, ours.GaussianHMM))
    for model in (theirs, mine):
        model.startprob_ = np.array([1.0, 0, 0])
        model.transmat_ = np.array([[0.6, 0.4, 0], [0, 0.6, 0.4], [0, 0, 1]])
        model.means_, model.covars_ = np.array([[0.0], [50], [100]]), np.full((3, 1), 1.0)
        model.n_features = 1
    X = np.array([[100.0], [99], [1], [50], [100], [0.0], [0.3], [51], [100], [101]])
    lengths = [5, 5]
    assert mine.score(X, lengths) == pytest.approx(theirs.score(X, lengths), rel=1e-10)
    np.testing.assert_allclose(mine.predict_proba(X, lengths), theirs.predict_proba(X, lengths), atol=1e-10)
    a, b = mine.decode(X, lengths), theirs.decode(X, lengths)
    assert a[0] == pytest.approx(b[0], rel=1e-10)
    np.testing.assert_array_equal(a[1], b[1])
    np.testing.assert_allclose(mine.fit(X, lengths).monitor_.history, theirs.fit(X, lengths).monitor_.history)
    np.testing.assert_allclose(mine.means_, theirs.means_)


def test_impossible_data_are_named():
    model = ours.CategoricalHMM(2, init_params="")
    model.startprob_, model.transmat_ = np.array([1.0, 0]), np.eye(2)
    model.emissionprob_ = np.array([[0.5, 0.5, 0], [0, 0, 1.0]])
    X = [[0], [1], [0], [2]]
    assert model.score(X, [2, 2]) == -np.inf
    with pytest.raises(ss.StatespanError, match="sequence 1"):
        model.predict_proba(X, [2, 2])
    with pytest.raises(ss.StatespanError, match="sequence 1"):
        model.fit(X, [2, 2])


@pytest.mark.parametrize("case", CASES)
def test_a_model_of_hmmlearn_is_taken_over(case):
    theirs, _, X = pair(case, n_iter=3)
    theirs.fit(X, LENGTHS)
    model = ours.from_hmmlearn(theirs)
    rows = [torch.as_tensor(row[:, 0] if "Cat" in case else row) for row in np.split(X, np.cumsum(LENGTHS)[:-1])]
    assert model.log_prob(rows).sum().item() == pytest.approx(theirs.score(X, LENGTHS), rel=1e-9)
    assert isinstance(model, ss.StateSpace)


def test_only_models_of_hmmlearn_are_taken_over():
    with pytest.raises(ss.StatespanError, match="int is no model of hmmlearn"):
        ours.from_hmmlearn(3)


# ---------------------------------------------------------------------------------------------- one's own


def exponential(base):
    """An emission written as hmmlearn's documentation describes, over either base."""

    class Exponential(base.BaseHMM):
        def _init(self, X, lengths=None):
            super()._init(X, lengths)
            self.rate_ = np.linspace(0.5, 2, self.n_components) / X.mean()

        def _compute_log_likelihood(self, X):
            return np.log(self.rate_) - X * self.rate_

        def _generate_sample_from_state(self, state, random_state):
            return [random_state.exponential(1 / self.rate_[state])]

        def _initialize_sufficient_statistics(self):
            return {**super()._initialize_sufficient_statistics(), "post": 0.0, "obs": 0.0}

        def _accumulate_sufficient_statistics(self, stats, X, lattice, posteriors, fwdlattice, bwdlattice):
            super()._accumulate_sufficient_statistics(
                stats=stats, X=X, lattice=lattice, posteriors=posteriors, fwdlattice=fwdlattice, bwdlattice=bwdlattice
            )
            stats["post"] = stats["post"] + posteriors.sum(0)
            stats["obs"] = stats["obs"] + (posteriors * X).sum(0)

        def _do_mstep(self, stats):
            super()._do_mstep(stats)
            self.rate_ = stats["post"] / stats["obs"]

        def _get_n_fit_scalars_per_param(self):
            return dict.fromkeys(base.string.ascii_letters, 0)

    return Exponential


def test_a_subclass_with_its_own_emission():
    X = np.random.RandomState(0).exponential(1, (101, 1))
    theirs, mine = (exponential(base)(3, random_state=0, n_iter=8, tol=-1e9) for base in (their_base, our_base))
    theirs.fit(X, LENGTHS)
    mine.fit(X, LENGTHS)
    np.testing.assert_allclose(mine.monitor_.history, theirs.monitor_.history, rtol=1e-10)
    np.testing.assert_allclose(mine.rate_, theirs.rate_, rtol=1e-9)
    np.testing.assert_allclose(mine.predict_proba(X), theirs.predict_proba(X), atol=1e-10)
    np.testing.assert_allclose(mine.sample(9, random_state=1)[0], theirs.sample(9, random_state=1)[0])


def test_a_derived_model_may_replace_the_density():
    class Flat(ours.GaussianHMM):
        def _compute_likelihood(self, X):
            return np.full((len(X), self.n_components), 0.5)

    model = Flat(2, init_params="")
    model.startprob_, model.transmat_, model.means_ = np.full(2, 0.5), np.full((2, 2), 0.5), np.zeros((2, 1))
    assert model.score(np.zeros((4, 1))) == pytest.approx(4 * np.log(0.5))


# --------------------------------------------------------------------------------------- as an estimator


@pytest.mark.parametrize("case", CASES)
def test_same_signature_and_defaults(case):
    theirs, mine, _ = pair(case)
    assert mine.get_params() == theirs.get_params()
    cls, other = type(mine), type(theirs)
    assert list(inspect.signature(cls).parameters) == list(inspect.signature(other).parameters)
    assert cls().get_params() == other().get_params()
    assert cls().monitor_.n_iter == other().monitor_.n_iter
    assert repr(cls(n_components=2)) == repr(other(n_components=2))
    public = {name for name in dir(other) if not name.startswith("_") and not name.startswith("set_")}
    assert public <= set(dir(cls))


def test_clone_pickle_and_monitor(capsys):
    model = ours.GaussianHMM(2, random_state=0, n_iter=50, tol=0.5, verbose=True).fit(vectors())
    reported = capsys.readouterr().err.splitlines()
    assert model.monitor_.converged and len(reported) == model.monitor_.iter == len(model.monitor_.history) < 50
    theirs = their_hmm.GaussianHMM(2, random_state=0, n_iter=50, tol=0.5, verbose=True).fit(vectors())
    expected = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in reported] == [line.split()[0] for line in expected]
    assert reported == expected
    again = pickle.loads(pickle.dumps(model))
    assert again.score(vectors()) == model.score(vectors())
    assert not hasattr(clone(model), "means_")
    assert "history" in repr(model.monitor_) and theirs.monitor_.converged


def test_random_state_may_be_a_generator():
    X = symbols()
    a, b = (
        cls(2, random_state=np.random.RandomState(7)).fit(X).emissionprob_
        for cls in (their_hmm.CategoricalHMM, ours.CategoricalHMM)
    )
    np.testing.assert_allclose(a, b)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"lengths": [3, 4]}, "doesn't sum to 101"),
        ({"X": vectors(columns=2)}, "Unexpected number of dimensions"),
        ({"X": np.full((101, 3), np.inf)}, "infinity"),
        ({"implementation": "magic"}, "implementation"),
        ({"covariance_type": "round"}, "covariance_type"),
    ],
)
def test_bad_input(change, what):
    model = ours.GaussianHMM(2, random_state=0).fit(vectors())
    X, lengths = change.pop("X", vectors()), change.pop("lengths", None)
    with pytest.raises(ValueError, match=what):
        model.set_params(init_params="", **change).fit(X, lengths)


def test_bad_symbols_and_decoder():
    model = ours.CategoricalHMM(2, random_state=0).fit(symbols())
    with pytest.raises(ValueError, match="Largest symbol is 9"):
        model.score([[9]])
    with pytest.raises(ValueError, match="integers"):
        model.score([[0.5], [np.nan]])
    with pytest.raises(ValueError, match="Unknown decoder"):
        model.decode(symbols(), algorithm="guess")
    with pytest.warns(DeprecationWarning, match="n_samples, 1"):
        assert model.score(symbols().T) == pytest.approx(model.score(symbols()))


def test_unfitted():
    from sklearn.exceptions import NotFittedError

    with pytest.raises(NotFittedError):
        ours.GaussianHMM().score(vectors())


def test_warnings(caplog):
    logging.disable(logging.NOTSET)
    model = ours.GaussianHMM(2, n_iter=1)
    model.startprob_ = [0.5, 0.5]
    model.fit(vectors())
    assert "'startprob_' attribute is set, it will be overwritten" in caplog.text
    caplog.clear()
    ours.GaussianHMM(4, n_iter=1).fit(vectors()[:9])
    assert "degenerate solution" in caplog.text
    caplog.clear()
    last = ours.CategoricalHMM(2, init_params="", n_iter=2, tol=-1)
    last.startprob_, last.transmat_ = [1, 0], [[0, 1], [0.5, 0.5]]
    last.emissionprob_ = [[1, 0], [0, 1]]
    last.fit([[0], [1]])
    assert "zero sum" in caplog.text and (last.transmat_[1] == 0).all()
