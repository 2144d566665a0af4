import math

import matplotlib
import pytest
import torch

import statespan as ss
from statespan.plots import BANDS, LINES, plot_curves, plot_forecast, plot_posterior

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


def test_importing_the_library_does_not_import_matplotlib():
    import subprocess
    import sys

    code = "import sys, statespan, statespan.plots; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
