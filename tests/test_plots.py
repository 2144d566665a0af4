import math

import matplotlib
import numpy as np
import pytest
import torch

import statespan as ss
from statespan.plots import (
    BANDS,
    COLOURS,
    LINES,
    plot_criteria,
    plot_curves,
    plot_emissions,
    plot_forecast,
    plot_imputed,
    plot_model,
    plot_paths,
    plot_posterior,
    plot_surprise,
    plot_transitions,
)

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def drawn():
    """Draw every figure, so that what only shows when drawn is tested too."""
    import matplotlib.pyplot as plt

    yield
    for number in plt.get_fignums():
        plt.figure(number).canvas.draw()
    plt.close("all")


def hmm(states: int = 3) -> ss.StateSpace:
    return ss.hmm(states=states, emission=ss.Categorical(5), seed=0)


def linear(state: int = 2, observed: int = 1) -> ss.StateSpace:
    return ss.linear_gaussian(state=state, observed=observed, seed=0)


def labels(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_probabilities_are_bands_that_fill_the_height():
    axes = hmm().smooth([0, 1, 2, None, 4]).plot()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "probability")
    assert labels(axes) == ["state 2", "state 1", "state 0"]  # as they are stacked, the lowest last
    tops = [path.vertices[:, 1].max() for band in axes.collections for path in band.get_paths()]
    assert math.isclose(max(tops), 1.0)
    assert axes.get_xlim() == (-0.5, 4.5)


def test_many_states_are_a_heat_map():
    axes = hmm(BANDS + 1).filter([0, 1, 2]).plot()
    assert axes.get_ylabel() == "state"
    assert axes.images[0].get_array().shape == (BANDS + 1, 3)


@pytest.mark.parametrize(
    ("y", "sequence", "steps"),
    [([[0, 1], [2, 3, 4]], 1, 3), ([[0, 1], [2, 3, 4]], -2, 2), (torch.zeros(2, 4, dtype=torch.long), 1, 4)],
)
def test_the_sequence_asked_for(y, sequence, steps):
    axes = hmm().filter(y).plot(sequence)
    assert axes.get_xlim() == (-0.5, steps - 0.5)


@pytest.mark.parametrize("sequence", [2, -3])
def test_a_sequence_that_is_not_there(sequence):
    model = hmm()
    with pytest.raises(ss.StatespanError, match=r"there are 2; choose one of 0..1"):
        model.filter([[0, 1], [2]]).plot(sequence)
    with pytest.raises(ss.StatespanError, match=r"there are 2; choose one of 0..1"):
        model.forecast([[0, 1], [2]], steps=2).plot(sequence)


def test_a_gaussian_is_a_line_and_a_band_a_dimension():
    posterior = linear().smooth([0.1, math.nan, 0.3])
    axes = posterior.plot()
    assert [len(axes.lines), len(axes.collections)] == [2, 2]
    mean, deviation = posterior.mean[1, 0].item(), posterior.covariance[1, 0, 0].sqrt().item()
    band = axes.collections[0].get_paths()[0].vertices
    at = band[band[:, 0] == 1][:, 1]
    assert math.isclose(at.max(), mean + 1.959964 * deviation, rel_tol=1e-6)
    assert math.isclose(at.min(), mean - 1.959964 * deviation, rel_tol=1e-6)


def test_many_dimensions_are_a_heat_map():
    axes = linear(state=LINES + 1).filter([0.1, 0.2]).plot()
    assert axes.get_ylabel() == "dimension"


def test_clouds():
    axes = linear().filter([0.1, 0.2], method=ss.ParticleFilter(50)).plot()
    assert len(axes.lines) == 2
    axes = hmm().filter([0, 1, 2], method=ss.ParticleFilter(50)).plot()
    assert axes.get_ylabel() == "probability"


def test_a_recurrent_state_is_a_heat_map():
    axes = ss.lstm(vocabulary=5, width=4, seed=0).smooth([0, 1, 2]).plot()
    assert axes.get_ylabel() == "unit"
    assert axes.images[0].get_array().shape == (4, 3)


def test_real_values_are_a_fan():
    forecast = linear(observed=2).forecast([[0.1, 0.2], [0.3, 0.4]], steps=6)
    axes = forecast.plot()
    assert len(axes.lines) == 2
    assert len(axes.collections) == 6
    assert axes.lines[1].get_ydata().tolist() == forecast.mean[:, 1].tolist()
    assert axes.get_xlabel() == "steps ahead"


@pytest.mark.parametrize("method", [None, ss.ParticleFilter(50)])
def test_one_step_is_drawn_too(method):
    axes = linear().forecast([0.1, 0.2], steps=1, method=method).plot()
    assert axes.lines[0].get_marker() == "o"
    assert len(axes.collections) == 3


def test_many_dimensions_of_a_forecast_say_what_is_left_out():
    axes = linear(observed=LINES + 2).forecast([[0.0] * (LINES + 2)] * 2, steps=2).plot()
    assert axes.get_title() == f"the first {LINES} of {LINES + 2} dimensions"


def test_symbols_are_bars():
    forecast = ss.lstm(vocabulary=9, width=4, seed=0).forecast([[0, 1], [3]], steps=4)
    names = [f"word{v}" for v in range(9)]
    axes = plot_forecast(forecast, 1, names=names)
    shown = labels(axes)
    assert shown[0] == "3 others"
    likeliest = forecast.probs[1].amax(0).argmax()
    assert shown[-1] == f"word{likeliest}"
    heights = torch.tensor([[bar.get_height() for bar in group] for group in axes.containers])
    torch.testing.assert_close(heights.sum(0), torch.ones(4).double(), rtol=0, atol=1e-6)
    with pytest.raises(ss.StatespanError, match="names has 2 entries for 9 symbols"):
        plot_forecast(forecast, names=names[:2])


def test_few_symbols_have_no_others():
    assert len(labels(hmm().forecast([0, 1], steps=2).plot())) == 5


def test_curves():
    axes = plot_curves({"EM": [(1, -9.0), (2, -8.0)], "SGD": [(1, -9.0)]}, across="seconds", up="nats")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("seconds", "nats")
    assert labels(axes) == ["EM", "SGD"]
    assert axes.lines[1].get_marker() == "o"
    assert plot_curves({"a": [(1, 10.0), (2, 100.0)]}, log=True).get_yscale() == "log"
    assert plot_curves({}).get_legend() is None


def test_axes_given_are_drawn_on():
    import matplotlib.pyplot as plt

    _, (left, right) = plt.subplots(1, 2)
    posterior = hmm().smooth([0, 1, 2])
    assert plot_posterior(posterior, axes=left) is left
    assert plot_curves({"a": [(1, 1.0), (2, 2.0)]}, axes=right) is right
    assert len(plt.get_fignums()) == 1


def test_the_series_stands_above_its_states_and_is_tinted_by_them():
    from matplotlib.colors import to_rgb

    model = ss.hmm(states=2, emission=ss.Gaussian(mean=[[0.0], [9.0]], covariance=[[[1.0]], [[1.0]]]), seed=0)
    y, days = [0.1, math.nan, 9.0, 8.5], np.arange("2024-05-01", "2024-05-05", dtype="datetime64[D]")
    axes = plot_posterior(model.smooth(y), y=y, times=days, columns=["rain"])
    assert axes.get_ylabel() == "rain" and len(axes.figure.axes) == 2
    line = axes.lines[0]
    np.testing.assert_array_equal(line.get_ydata(), y)
    assert line.get_xdata()[0] == matplotlib.dates.date2num(np.datetime64("2024-05-01"))
    ground = axes.collections[0].get_array().reshape(4, 3)
    assert np.abs(ground[0] - to_rgb(COLOURS[0])).sum() < np.abs(ground[0] - to_rgb(COLOURS[1])).sum()
    assert np.abs(ground[3] - to_rgb(COLOURS[0])).sum() > np.abs(ground[3] - to_rgb(COLOURS[1])).sum()
    with pytest.raises(ss.StatespanError, match="times has 4 entries for 3 steps"):
        plot_posterior(model.smooth(y[:3]), times=days)


def test_paths_are_strips_with_their_log_probabilities():
    paths, log_prob = hmm().decode([0, 1, 2, 4], k=3)
    axes = plot_paths(paths, log_prob)
    colours = np.array([matplotlib.colors.to_rgb(COLOURS[k]) for k in range(3)])[paths.T]
    alike = (paths[:, 0] == paths.T).numpy() & np.array([[False], [True], [True]])  # with the best: pale
    strips = 1 - np.where(alike, 0.3, 0.85)[..., None] * (1 - colours)
    np.testing.assert_allclose(axes.collections[0].get_array().reshape(3, 4, 3), strips)
    assert [text.get_text() for text in axes.get_yticklabels()] == [f"{value:.2f}" for value in log_prob]


def test_a_fan_comes_after_the_tail_of_the_series():
    model, y = linear(observed=2), torch.randn(60, 2)
    forecast = model.forecast(y, steps=5)
    axes = plot_forecast(forecast, y=y)
    assert len(axes.figure.axes) == 2
    mean = next(line for line in axes.lines if len(line.get_xdata()) == 5)
    np.testing.assert_array_equal(mean.get_xdata(), np.arange(60, 65))
    np.testing.assert_allclose(mean.get_ydata(), forecast.mean[:, 0].detach())
    with pytest.raises(ss.StatespanError, match="give ahead= too"):
        plot_forecast(forecast, y=y, times=np.arange(60))


def test_dates_of_every_kind_stand_across_and_the_bands_are_the_quantiles():
    pd = pytest.importorskip("pandas")
    model, y = ss.level(variance=1.0), [0.1, 0.4, 0.2]
    zone = pd.date_range("2024-03-30 12:00", periods=3, tz="Europe/Berlin")
    wanted = matplotlib.dates.date2num(np.datetime64("2024-03-30T12:00"))
    for times in (
        zone,
        zone.to_series(),
        zone.tz_localize(None).to_series(),
        zone.tz_localize(None).to_period("h"),
        list(zone),
    ):
        assert plot_posterior(model.smooth(y), times=times).lines[0].get_xdata()[0] == pytest.approx(wanted)
    ahead = model.forecast(pd.DataFrame({"y": y}, index=zone), steps=4)
    axes = ahead.plot(y=y)
    low = axes.collections[0].get_paths()[0].vertices[:, 1].min()
    assert low == pytest.approx(ahead.quantile(0.025).min().item())  # by formula, not by 200 draws
    assert "2024-Apr" in axes.xaxis.get_major_formatter().get_offset() or axes.get_xlim()[1] > wanted + 5


def test_gaps_are_marked():
    axes = plot_imputed([0.0, math.nan, 2.0, math.nan, math.nan], [0.0, 1.0, 2.0, 3.0, 4.0])
    marks = next(line for line in axes.lines if line.get_label() == "imputed")
    assert marks.get_xydata().tolist() == [[1, 1], [3, 3], [4, 4]]
    assert len(axes.patches) == 2, "a band a run of gaps"


def test_the_most_surprising_steps_are_marked():
    axes = plot_surprise([0.0] * 98 + [5.0, 9.0])
    assert axes.lines[-1].get_xydata().tolist() == [[99, 9.0]]


def test_transitions_are_arrows_or_a_heat_map():
    model = ss.hmm(transition=[[0.9, 0.1], [0.0, 1.0]], emission=ss.Categorical(3), seed=0)
    texts = {text.get_text() for text in plot_transitions(model).texts}
    assert texts == {"0", "1", "0.90", "0.10", "1.00"}, "none for what is impossible"
    assert len(plot_transitions(hmm(BANDS + 1)).images) == 1


def test_densities_are_the_marginals_and_sum_to_the_mixture():
    mean, covariance = [[0.0, 1.0], [5.0, -1.0]], [[[1.0, 0.8], [0.8, 2.0]], [[4.0, 0.0], [0.0, 1.0]]]
    model = ss.hmm(states=2, emission=ss.Gaussian(mean=mean, covariance=covariance), seed=0)
    axes = plot_emissions(model, share=[0.3, 0.7]).figure.axes[1]
    grid = torch.as_tensor(axes.lines[0].get_xdata())
    expected = (
        0.3
        * torch.distributions.Normal(torch.tensor(1.0).double(), torch.tensor(2.0).double().sqrt()).log_prob(grid).exp()
    )
    np.testing.assert_allclose(axes.lines[0].get_ydata(), expected, rtol=1e-9)
    whole = axes.lines[0].get_ydata() + axes.lines[1].get_ydata()
    np.testing.assert_allclose(axes.lines[2].get_ydata(), whole)


def test_counts_are_drawn_at_whole_numbers():
    model = ss.hmm(states=2, emission=ss.Poisson(dim=1), seed=0)
    axes = plot_emissions(model, [0.0, 3, 1, 7, 2], share=[0.5, 0.5])
    np.testing.assert_array_equal(axes.lines[0].get_xdata() % 1, 0)
    assert axes.get_ylabel() == "probability"


def test_mixed_columns_have_a_panel_each():
    model = ss.hmm(states=2, emission=ss.Product(ss.Gaussian(dim=2), ss.Categorical(3)), seed=0)
    assert len(plot_model(model, [[0.1, 2.0, 1.0], [0.3, math.nan, 2.0]]).figure.axes) == 4
    with pytest.raises(ss.StatespanError, match="emissions cannot be drawn"):
        plot_emissions(linear())


def test_criteria_mark_the_lowest():
    rows = [{"states": k, "aic": value, "bic": value + k} for k, value in ((1, 9.0), (2, 5.0), (3, 6.0))]
    axes = plot_criteria(rows)
    assert axes.get_xlabel() == "states" and labels(axes) == ["AIC", "BIC"]
    assert [line.get_xdata()[0] for line in axes.lines if line.get_markersize() == 11] == [2, 2]


def test_a_cloud_of_fewer_members_than_dimensions_has_bands_too():
    model = ss.linear_gaussian(state=4, observed=1, seed=0)
    posterior = model.filter([0.1, 0.4, -0.2], method=ss.EnsembleKalman(3))
    axes = posterior.plot()
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    deviation = posterior.values["samples"][0, :, 0].std()
    mean = posterior.values["mean"][0, 0]
    assert any(abs(edge - float(mean + 1.959964 * deviation)) < 1e-5 for edge in band)
