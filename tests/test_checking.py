"""Pseudo-residuals against distribution functions by hand, occupancy and runs by counting, and calibration."""

import math

import matplotlib
import numpy as np
import pytest
import torch
from scipy import stats
from torch.testing import assert_close

import statespan as ss
from statespan.checks.check import _ranks, _runs

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


# ------------------------------------------------------------------------------- models with a normal state

NILE = """1120 1160 963 1210 1160 1160 813 1230 1370 1140 995 935 1110 994 1020 960 1180 799 958 1140 1100 1210
1150 1250 1260 1220 1030 1100 774 840 874 694 940 833 701 916 692 1020 1050 969 831 726 456 824 702 1120
1100 832 764 821 768 845 864 862 698 845 744 796 1040 759 781 865 845 944 984 897 822 1010 771 676 649
846 812 742 801 1040 860 874 848 890 744 749 838 1050 918 986 797 923 975 815 1020 906 901 1170 912 746
919 718 714 740"""


def nile() -> tuple[torch.Tensor, ss.StateSpace]:
    model = ss.level(variance=1469.1)
    with torch.no_grad():
        model.emission.scale.fill_(15098.5**0.5)
    return torch.tensor([float(x) for x in NILE.split()]).double(), model


def test_the_tests_of_statsmodels_on_its_local_level():
    api = pytest.importorskip("statsmodels.api")
    y, model = nile()
    y[20] = math.nan
    found = ss.check(model, y)
    theirs = api.tsa.UnobservedComponents(y.numpy(), "llevel", use_exact_diffuse=True).smooth([15098.5, 1469.1])
    expected = torch.as_tensor(theirs.standardized_forecasts_error[0])
    expected[[0, 20]] = torch.nan  # before the start is settled there is no forecast
    assert_close(found.residuals[:, 0], expected, rtol=1e-9, atol=1e-9, equal_nan=True)
    assert_close(found.innovations[:, 0], expected, rtol=1e-9, atol=1e-9, equal_nan=True)
    assert_close(found.nis, expected.square(), equal_nan=True)
    whole = ss.check(model, nile()[0])
    theirs = api.tsa.UnobservedComponents(nile()[0].numpy(), "llevel", use_exact_diffuse=True)
    theirs = theirs.smooth([15098.5, 1469.1])
    box = torch.as_tensor(theirs.test_serial_correlation("ljungbox", lags=10)[0])
    statistic, tail = whole.ljung_box(10)
    assert_close(torch.stack([statistic[:, 0], tail[:, 0]]), box)
    normal = theirs.test_normality("jarquebera")[0]
    tests = whole.tests()
    assert tests["test"][:2] == ["ljung-box 10", "jarque-bera"]
    assert tests["statistic"][1] == pytest.approx(normal[0])
    assert tests["p"][1] == pytest.approx(normal[1])
    assert whole.surprise == pytest.approx(-(theirs.llf_obs[1:].sum()) / 99)


def test_cumulated_sums_of_statsmodels_recursive_residuals():
    api = pytest.importorskip("statsmodels.api")
    random = torch.Generator().manual_seed(0)
    x = torch.cat([torch.ones(40, 1), torch.randn(40, 1, generator=random)], 1).double()
    y = x @ torch.tensor([1.0, 2.0]).double() + torch.randn(40, generator=random)
    y[25:] += 1.5
    theirs = api.RecursiveLS(y.numpy(), x.numpy()).fit()
    found = ss.check(ss.regression(x), y, inputs=x)
    drift, squares = found.cusum(), found.cusum(squares=True)
    assert drift.step.tolist() == list(range(2, 40))
    assert_close(drift.value, torch.as_tensor(theirs.cusum), rtol=1e-8, atol=1e-8)
    assert_close(squares.value, torch.as_tensor(theirs.cusum_squares), rtol=1e-8, atol=1e-8)
    points = torch.arange(3, 41).numpy()
    for line, bounds in (
        (drift, theirs._cusum_significance_bounds(0.05, points=points)),
        (squares, theirs._cusum_squares_significance_bounds(0.05, points=points)),
    ):
        assert_close(torch.stack([line.lower, line.upper]), torch.from_numpy(np.array(bounds)))
    assert not ss.check(ss.regression(x), x @ torch.ones(2).double() + torch.randn(40), inputs=x).cusum().crossed
    with pytest.raises(ss.StatespanError, match=r"level=0.8"):
        found.cusum(level=0.8)


def test_the_lines_of_cumulated_sums_hold_their_level():
    """Of 400 series of white noise about one in twenty crosses (Brown, Durbin and Evans's lines are approximate)."""
    from statespan.checks.significance import cusum, cusum_squares

    rows = torch.randn(400, 100, generator=torch.Generator().manual_seed(1)).double()
    assert 5 <= sum(cusum(row).crossed for row in rows) <= 30
    assert 5 <= sum(cusum_squares(row).crossed for row in rows) <= 36


def test_normalised_squares_by_hand_with_gaps_and_several_series():
    model = ss.linear_gaussian(state=2, observed=3, seed=0)
    states, y = model.sample(2, 30, seed=0)
    y[0, 4, 1] = y[1, 7] = math.nan
    found = ss.check(model, y, states=states)
    method = ss.Kalman()
    data, _ = ss.verbs.ask(model, y)
    with torch.no_grad():
        trace = ss.run(model, method, data, keep=("predicted", "filtered"))
        forecast = method.emit(model, (), trace.predicted, None)
    for row, (t, i) in {4: (4, 0), 12: (12, 0), 37: (7, 1)}.items():
        there = ~y[i, t].isnan()
        error = (y[i, t] - forecast.mean[t, i])[there]
        expected = error @ torch.linalg.pinv(forecast.covariance_matrix[t, i][there][:, there]) @ error
        if there.any():
            assert float(found.nis[row]) == pytest.approx(float(expected))
        assert int(found.freedom[row]) == int(there.sum())
        off = states[i, t] - trace.filtered.mean[t, i]
        spread = trace.filtered.scale[t, i] @ trace.filtered.scale[t, i].T
        assert float(found.nees[row]) == pytest.approx(float(off @ torch.linalg.inv(spread) @ off))
    assert bool(found.nis[37].isnan())
    with pytest.raises(ss.StatespanError, match="30 steps of 1 sequences"):
        ss.check(model, y, states=states[:1])
    with pytest.raises(ss.StatespanError, match="normal state"):
        ss.check(truth(), [[0.1], [0.2]], states=[[0.1], [0.2]])


def test_a_true_linear_model_is_consistent_and_a_wrong_one_is_not():
    model = ss.linear_gaussian(dynamics=[[0.9]], state_noise=[[1.0]], observation=[[1.0]], observation_noise=[[1.0]])
    states, y = model.sample(30, 50, seed=3)
    found = ss.check(model, y, states=states)
    low, high = found.nis_band(0.999)
    assert low < float(found.nis.nanmean()) < high
    assert float(found.nees.nanmean()) == pytest.approx(1.0, abs=0.15)
    assert abs(found.surprise - found.expected_surprise[0]) < 4 * found.expected_surprise[1]
    assert min(found.tests()["p"]) > 0.001
    assert low == pytest.approx(stats.chi2.ppf(0.0005, 1500) / 1500)
    assert "nis 0.9957" in str(found)
    proud = ss.linear_gaussian(dynamics=[[0.9]], state_noise=[[0.2]], observation=[[1.0]], observation_noise=[[1.0]])
    wrong = ss.check(proud, y, states=states)
    assert float(wrong.nis.nanmean()) > wrong.nis_band(0.999)[1]
    assert float(wrong.nees.nanmean()) > 1.5
    assert wrong.tests()["p"][0] < 1e-6
    formula = ss.check(model, y[0]).expected_surprise
    drawn = -model.log_prob(model.sample(400, 50, seed=0)[1]).detach() / 50
    assert formula[0] == pytest.approx(float(drawn.mean()), abs=0.02)
    assert formula[1] == pytest.approx(float(drawn.std()), rel=0.15)


def test_auxiliary_residuals_of_statsmodels_and_what_they_find_in_the_nile():
    api = pytest.importorskip("statsmodels.api")
    y, model = nile()
    found = ss.auxiliary(model, y)
    theirs = api.tsa.UnobservedComponents(y.numpy(), "llevel", use_exact_diffuse=True)
    theirs = theirs.smooth([15098.5, 1469.1]).smoother_results
    noise = torch.as_tensor(theirs.smoothed_measurement_disturbance[0]).clone()
    shock = torch.as_tensor(theirs.smoothed_state_disturbance[0])[:-1].clone()
    noise /= (15098.5 - torch.as_tensor(theirs.smoothed_measurement_disturbance_cov[0, 0])).sqrt()
    shock /= (1469.1 - torch.as_tensor(theirs.smoothed_state_disturbance_cov[0, 0])[:-1]).sqrt()
    assert found.names == ("noise", "level")
    assert_close(found.values[:, 0], noise)
    assert_close(found.values[1:, 1], shock)
    worst = found.outliers(2.8)
    assert (worst["name"], worst["step"]) == (["level", "noise"], [28, 42])  # the dam of 1899, the drought of 1913
    assert found.plot(threshold=2.8).get_ylabel() == "noise"
    trend = ss.level(variance=1.0) + ss.slope(variance=0.1) + ss.seasonal(4, variance=0.1)
    assert ss.auxiliary(trend, y).names == ("noise", "level", "slope [1]", "seasonal 4")
    with pytest.raises(ss.StatespanError, match="linear Gaussian"):
        ss.auxiliary(truth(), [[0.1]])


def test_the_picture_of_a_normal_state_has_nis_and_the_cumulated_sum():
    y, model = nile()
    found = ss.check(model, y)
    titles = [axes.get_title() for axes in found.plot().axes]
    assert titles[-2:] == ["normalised innovation squared", "cumulated sum"]


# ------------------------------------------------------------------------------------------------- verdicts


def test_verdicts_are_calibrated_where_the_model_is_true():
    """Of 25 sequences of symbols from the model, whose residuals are drawn, each test calls out a few; few have any."""
    symbols = ss.hmm(
        initial=[0.5, 0.5],
        transition=[[0.9, 0.1], [0.2, 0.8]],
        emission=ss.Categorical(probs=[[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]]),
    )
    called: dict[str, int] = {}
    doubts = 0
    for y in symbols.sample(25, 60, seed=5)[1]:
        found = ss.check(symbols, y, simulations=10).verdicts()
        for test, of, p in zip(found["test"], found["of"], found["p"], strict=True):
            called[test + of] = called.get(test + of, 0) + (p < 0.05)
        doubts += any(verdict != "fits" for verdict in found["verdict"])
    assert len(called) == 9 and max(called.values()) <= 5 and sum(called.values()) >= 2, called
    assert doubts <= 4  # 1 in 20 on average; 5 or more of 25 are less likely than 1 in 100


def test_p_values_are_corrected_for_their_number():
    from statsmodels.stats.multitest import multipletests

    from statespan.checks.verdicts import holm

    p = [*torch.rand(12, generator=torch.Generator().manual_seed(0)).square().tolist(), 0.0, 0.0, 1e-4, 1.0]
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist(), abs=1e-15)
    assert holm([]) == []


def test_verdicts_name_what_is_wrong():
    order = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    y = torch.special.ndtri((order.double() + 0.5) / 400)
    white = ss.hmm(initial=[1.0], transition=[[1.0]], emission=ss.Gaussian(mean=[[0.0]], covariance=[[[1.0]]]))

    def wrong(y: torch.Tensor) -> set[str]:
        found = ss.check(white, y).verdicts(["flow"])
        assert found["of"][1] == "flow"
        return {m for m, v in zip(found["means"], found["verdict"], strict=True) if v == "does not fit"}

    assert not wrong(y)
    assert "forecasts are too low" in wrong(y + 0.3)
    assert "forecasts are too sure: their intervals are too narrow" in wrong(1.5 * y)
    assert "the data surprise the model less than it expects: its noise is too wide" in wrong(0.5 * y)
    assert "errors depend on those before: some movement is missing" in wrong((y[1:] + y[:-1]) / 2**0.5)
    assert "the level drifts from where it is forecast" in wrong(torch.cat([y[:200] - 0.5, y[200:] + 0.5]))
    assert "the size of errors changes in time" in wrong(torch.cat([0.6 * y[:200], 1.3 * y[200:]]))
    assert any("another shape" in m for m in wrong(-torch.special.ndtr(-y).log() - 1))
    proud = ss.linear_gaussian(dynamics=[[0.9]], state_noise=[[0.2]], observation=[[1.0]], observation_noise=[[1.0]])
    states, seen = ss.linear_gaussian(
        dynamics=[[0.9]], state_noise=[[1.0]], observation=[[1.0]], observation_noise=[[1.0]]
    ).sample(5, 50, seed=3)
    found = ss.check(proud, seen, states=states).verdicts()
    assert found["test"][1:3] == ["nis", "nees"] and found["verdict"][1:3] == ["does not fit"] * 2
    assert found["value"][2] == pytest.approx(float(ss.check(proud, seen, states=states).nees.mean()))


def test_the_levels_of_cumulated_sums_are_those_of_their_lines():
    from statespan.checks.significance import cusum, cusum_squares

    w = torch.randn(60, generator=torch.Generator().manual_seed(3)).double()
    for sums in (cusum, cusum_squares):
        for level in (0.9, 0.95, 0.99):
            for drift in torch.linspace(0.01, 2.5, 200).tolist():
                line = sums(w * (1 + drift * torch.linspace(0, 1, 60)) + drift / 8, level)
                if abs(line.reach - 1) > 0.03:
                    assert line.crossed == (line.p < 1 - level)


def test_given_steps_are_filtered_and_not_checked():
    model = truth()
    y = [model.sample(None, n, seed=n)[1] for n in (20, 35)]
    whole, found = ss.check(model, y), ss.check(model, y, skip=12)
    assert found.sequence.tolist() == [0] * 8 + [1] * 23
    kept = [t for t in range(55) if 12 <= t < 20 or t >= 32]
    assert_close(found.residuals, whole.residuals[kept])
    probs = torch.cat([p[12:] for p in model.smooth(y).probs])
    assert_close(found.occupancy[0], probs.mean(0))
    assert sum(float(x.sum()) for x in found.dwell[0]) == 31
    with pytest.raises(ss.StatespanError, match="the shortest sequence has 20"):
        ss.check(model, y, skip=20)


def test_a_wide_start_is_settled_first():
    counts = torch.poisson(torch.full((40,), 7.0).double(), generator=torch.Generator().manual_seed(0))
    model = ss.generalised_linear(ss.level(variance=0.001) + ss.seasonal(4, variance=0.001), "poisson")
    y = counts.clone()
    y[1] = math.nan
    found = ss.check(model, y)
    assert len(found.residuals) == 40 - 5  # a level and three of a season, one of them not seen at first
    expected, deviation = found.expected_surprise
    assert 1 < expected < 5 and deviation < 3 and abs(found.surprise - expected) < 3 * deviation
