"""The estimator against scikit-learn's own checks, and the native model."""

import numpy as np
import pytest
import torch

import statespan as ss

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

from statespan.compat.sklearn import HiddenMarkovModel


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks([HiddenMarkovModel(iterations=10)])
def test_checks(estimator, check):
    """All of scikit-learn's own, no exception declared."""
    check(estimator)


def two_kinds(n=20, seed=0):
    """Sequences that switch fast between two levels, and such that switch slowly."""
    rng = np.random.default_rng(seed)
    X, kind = [], []
    for i in range(n):
        fast = i % 2
        stays = rng.random(int(rng.integers(20, 40))) < (0.3 if fast else 0.9)
        states = np.cumsum(~stays) % 2
        X.append(3.0 * states + 0.3 * rng.normal(size=len(states)))
        kind.append(fast)
    return X, np.array(kind)


def test_lists_and_arrays_mean_the_same():
    X, _ = two_kinds()
    X = [row[:20] for row in X]
    fits = [HiddenMarkovModel(random_state=0).fit(x) for x in (X, np.stack(X), np.stack(X)[:, :, None])]
    assert fits[0].n_iter_ == fits[1].n_iter_ == fits[2].n_iter_
    answers = [fit.predict_proba(x) for fit, x in zip(fits, (X, np.stack(X), np.stack(X)[:, :, None]), strict=True)]
    assert isinstance(answers[0], list) and answers[1].shape == (20, 20, 2)
    np.testing.assert_allclose(np.stack(answers[0]), answers[1])
    np.testing.assert_allclose(answers[2], answers[1])
    np.testing.assert_array_equal(np.stack(fits[0].predict(X)), answers[1].argmax(-1))


def test_answers_are_the_native_model():
    X, _ = two_kinds()
    fit = HiddenMarkovModel(random_state=0, iterations=20).fit(X)
    torch.testing.assert_close(torch.as_tensor(fit.score_samples(X)), fit.model_.log_prob(X).detach())
    assert fit.score(X) == pytest.approx(fit.score_samples(X).mean())
    assert [len(path) for path in fit.predict(X)] == [len(row) for row in X]
    shares = fit.transform(X)
    np.testing.assert_allclose(shares.sum(1), 1)
    np.testing.assert_allclose(shares[3], fit.predict_proba(X)[3].mean(0))
    assert sorted(fit.model_.emission.mean.detach().flatten().round().tolist()) == [0.0, 3.0]


def test_a_list_is_free_in_its_lengths_an_array_is_not():
    X, _ = two_kinds()
    fit = HiddenMarkovModel(random_state=0).fit([row[:20] for row in X])
    assert [len(path) for path in fit.predict([row[:7] for row in X])] == [7] * 20
    fit = HiddenMarkovModel(random_state=0).fit(np.stack([row[:20] for row in X]))
    assert [len(path) for path in fit.predict(X)] == [len(row) for row in X]
    with pytest.raises(ValueError, match="expecting 20 features"):
        fit.predict(np.stack([row[:7] for row in X]))


def test_a_weight_counts_as_repetition_and_nan_is_missing():
    X, _ = two_kinds(6)
    weights = np.array([1, 0, 3, 1, 2, 1])
    X[0] = np.where(np.arange(len(X[0])) % 5 == 0, np.nan, X[0])
    weighted = HiddenMarkovModel(random_state=0, iterations=20).fit(X, sample_weight=weights)
    repeated = HiddenMarkovModel(random_state=0, iterations=20).fit([X[i] for i in np.repeat(np.arange(6), weights)])
    np.testing.assert_allclose(weighted.score_samples(X), repeated.score_samples(X), rtol=1e-6)
    assert np.isfinite(weighted.score_samples(X)).all()
    one = HiddenMarkovModel(random_state=0, iterations=20).fit(X)
    assert abs(one.score(X) - weighted.score(X)) > 1e-6


def test_works_in_a_pipeline():
    """Sequences become shares of time in states, which tell fast from slow by three states' use."""
    X, kind = two_kinds(40)
    X = np.stack([np.diff(row[:20], prepend=row[0]) for row in X])
    whole = make_pipeline(
        FunctionTransformer(np.abs, feature_names_out="one-to-one"),
        HiddenMarkovModel(states=2, random_state=0),
        LogisticRegression(C=100),
    )
    assert whole.fit(X, kind).score(X, kind) > 0.8
    assert list(whole[:-1].get_feature_names_out()) == ["hiddenmarkovmodel0", "hiddenmarkovmodel1"]


def test_grid_search_finds_the_number_of_states():
    rng = np.random.default_rng(1)
    X = [4.0 * (np.cumsum(rng.random(60) < 0.2) % 3) + 0.4 * rng.normal(size=60) for _ in range(9)]
    search = GridSearchCV(
        HiddenMarkovModel(random_state=0, restarts=3, iterations=20), {"states": [1, 2, 3]}, cv=3
    ).fit(X)
    assert search.best_params_ == {"states": 3}
    assert search.best_estimator_.predict(X[:2])[1].shape == (60,)


def test_emission_is_cloned_and_left_alone():
    emission = ss.Categorical(3)
    model = HiddenMarkovModel(states=2, emission=emission, random_state=0)
    again = clone(model)
    assert again.emission is not emission and again.emission.symbols == 3
    X = np.array([[0, 1, 2, 0], [1, 1, 0, 2]])
    fit = again.fit(X)
    assert fit.emission.states is None and fit.model_.emission.probs.shape == (2, 3)
    assert model.fit(X).score(X) == pytest.approx(fit.score(X))


def test_mixed_shapes_are_refused():
    with pytest.raises(ss.StatespanError, match="every sequence"):
        HiddenMarkovModel().fit([np.zeros(3), np.zeros((4, 2))])
