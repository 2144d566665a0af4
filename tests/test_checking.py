"""Pseudo-residuals against distribution functions by hand, occupancy and runs by counting, and calibration."""

import math

import matplotlib
import pytest
import torch
from scipy import stats
from torch.testing import assert_close

import statespan as ss
from statespan.checking import _ranks, _runs

matplotlib.use("Agg")


def truth() -> ss.StateSpace:
    emission = ss.Gaussian(mean=[[0.0], [4.0]], covariance=[[[1.0]]] * 2)
    return ss.hmm(initial=[0.5, 0.5], transition=[[0.95, 0.05], [0.1, 0.9]], emission=emission)


def test_residuals_are_the_quantiles_of_the_one_step_forecasts():
    y = truth().sample(None, 30, seed=0)[1]
    found = ss.check(truth(), y)
    stream, ahead = truth().stream(), torch.tensor([[0.5, 0.5]]).double()
    for t, value in enumerate(y):
        p = float(ahead[0] @ torch.tensor([stats.norm.cdf(value - m)[0] for m in (0.0, 4.0)]).double())
        assert float(found.residuals[t, 0]) == pytest.approx(stats.norm.ppf(p), abs=1e-9)
        stream.update(value)
        ahead = stream.belief.probs @ truth().transition.probs.detach()
    assert found.exact
    assert found.surprise == pytest.approx(-truth().log_prob(y).item() / 30)


def test_symbols_and_counts_have_intervals():
    model = ss.hmm(initial=[1.0], transition=[[1.0]], emission=ss.Categorical(probs=[[0.2, 0.5, 0.3]]))
    found = ss.check(model, [0, 1, 2, None])
    assert_close(found.lower[:3, 0], torch.special.ndtri(torch.tensor([0.0, 0.2, 0.7]).double()).clamp(-8, 8))
    assert_close(found.upper[:3, 0], torch.special.ndtri(torch.tensor([0.2, 0.7, 1.0]).double()).clamp(-8, 8))
    assert_close(found.residuals[:3, 0], torch.special.ndtri(torch.tensor([0.1, 0.45, 0.85]).double()))
    assert bool(found.residuals[3].isnan().all())
    counts = ss.hmm(states=1, emission=ss.Poisson(), seed=0)
    found = ss.check(counts, [3.0, 0.0, 1.0])
    rate = counts.emission.mean.item()
    for value, low, high in zip((3, 0, 1), found.lower[:, 0].tolist(), found.upper[:, 0].tolist(), strict=True):
        assert high == pytest.approx(min(stats.norm.ppf(stats.poisson.cdf(value, rate)), 8))
        assert low == pytest.approx(max(stats.norm.ppf(stats.poisson.cdf(value - 1, rate)), -8))


def test_where_no_distribution_function_is_known_draws_stand_in():
    torch.manual_seed(0)
    y = torch.linspace(-2, 2, 7)[:, None, None].double()
    unknown = torch.distributions.StudentT(torch.full((7, 1, 1), 5.0).double())
    low, high, exact = _ranks(torch.distributions.Independent(unknown, 1), y, 4000)
    assert not exact
    assert_close(high.flatten(), torch.as_tensor(stats.t.cdf(y.flatten(), 5)), atol=0.03, rtol=0)
    assert_close(low, high)


def test_a_true_model_is_calibrated_and_a_wrong_one_is_seen():
    y = truth().sample(None, 600, seed=1)[1]
    found = ss.check(truth(), y)
    frame = found.frame()
    assert stats.kstest(found.residuals[:, 0].numpy(), "norm").pvalue > 0.01
    assert frame["mean"][0] == pytest.approx(0, abs=0.15)
    assert frame["deviation"][0] == pytest.approx(1, abs=0.1)
    assert abs(frame["acf1"][0]) < 0.12
    assert abs(found.surprise - found.expected_surprise[0]) < 3 * found.expected_surprise[1]
    wrong = ss.check(ss.hmm(states=1, emission=ss.Gaussian(1), seed=0).fit(y), y)
    assert wrong.frame()["acf1"][0] > 0.5
    assert "surprise" in str(wrong)


def test_occupancy_and_runs():
    y = [truth().sample(None, n, seed=n)[1] for n in (20, 35)]
    found = ss.check(truth(), y)
    probs = torch.cat(truth().smooth(y).probs)
    assert_close(found.occupancy[0], probs.mean(0))
    table, marginal, total = truth().transition.probs.detach(), torch.tensor([0.5, 0.5]).double(), 0
    for t in range(35):
        total = total + marginal * (2 if t < 20 else 1)
        marginal = marginal @ table
    assert_close(found.occupancy[1], total / 55)
    assert sum(float(x.sum()) for x in found.dwell[0]) == 55
    paths = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]]).T
    within = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).T.bool()
    assert [sorted(x.tolist()) for x in _runs(paths, within, 2)] == [[2], [3, 3]]


def test_sequences_do_not_run_into_each_other_and_gaps_stay_out():
    y = [truth().sample(None, 10, seed=i)[1] for i in range(3)]
    y[1][4] = math.nan
    found = ss.check(truth(), y)
    assert found.sequence.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    assert found.residuals.isnan().flatten().nonzero().flatten().tolist() == [14]
    z = found.residuals[:, 0]
    z = z - z.nanmean()
    pairs = [float(z[t] * z[t + 1]) for t in range(29) if t not in (9, 19, 13, 14)]
    expected = sum(pairs) / 29 / float(z.square().nanmean())
    assert float(found.autocorrelation(1)) == pytest.approx(expected)


def test_a_model_without_states_to_count_is_checked_too():
    model = ss.linear_gaussian(state=1, observed=2, seed=0)
    found = ss.check(model, model.sample(None, 50, seed=0)[1])
    assert found.occupancy is None
    assert found.residuals.shape == (50, 2)
    assert len(found.plot(1).axes) == 6
    with pytest.raises(ss.StatespanError, match="column=2"):
        found.plot(2)
    with pytest.raises(ss.StatespanError, match="simulations=1"):
        ss.check(model, [[0.0, 1.0]], simulations=1)
