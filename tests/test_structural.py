"""Structural series and ARIMA: statsmodels' log-likelihoods, exact diffuse; sums, decomposition, fits."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import statespan as ss
from series import NILE
from statespan.parts.gaussian_initial import DiffuseStart

statsmodels = pytest.importorskip("statsmodels.api")
pytestmark = pytest.mark.filterwarnings("ignore")
Components, Sarimax = statsmodels.tsa.UnobservedComponents, statsmodels.tsa.SARIMAX

WHOLE = NILE.numpy()
GAPS = np.where(np.isin(np.arange(100), [0, 1, 20, 21, 22, 60]), np.nan, WHOLE)
X = np.random.default_rng(0).normal(size=(100, 2))


def with_values(model: ss.StateSpace, variances: list[float], noise: float) -> ss.StateSpace:
    """The same model with these variances of its shocks, component by component."""
    left = list(variances)
    with torch.no_grad():
        for move in model.transition.each:
            count = move.size.numel()
            move.size.copy_(torch.tensor(left[:count], dtype=torch.float64).sqrt().view_as(move.size))
            left = left[count:]
        model.emission.scale.fill_(noise**0.5)
    assert not left
    return model


def diffuse_cycle(model: ss.StateSpace) -> ss.StateSpace:
    """statsmodels starts a damped cycle diffuse."""
    model.transition.each[1].set(20.0, 0.8)
    model.initial.each[1] = DiffuseStart(2).double()
    return model


def autoregression() -> ss.StateSpace:
    model = ss.level() + ss.autoregressive(2)
    with torch.no_grad():
        model.transition.each[1].set([0.5, -0.3])
    return model


CASES = {
    "level": (lambda: ss.level(), [1000], {"level": "llevel"}, []),
    "trend": (lambda: ss.level() + ss.slope(), [1000, 10], {"level": "lltrend"}, []),
    "line": (lambda: ss.level(variance=0.0) + ss.slope(variance=0.0), [0, 0], {"level": "dtrend"}, None),
    "season": (lambda: ss.level() + ss.seasonal(4), [1000, 50], {"level": "llevel", "seasonal": 4}, []),
    "season 12": (lambda: ss.level() + ss.seasonal(12), [1000, 50], {"level": "llevel", "seasonal": 12}, []),
    "waves": (
        lambda: ss.level() + ss.seasonal(12, trigonometric=True),
        [1000, 50],
        {"level": "llevel", "freq_seasonal": [{"period": 12}]},
        [],
    ),
    "odd waves": (
        lambda: ss.level() + ss.seasonal(7, trigonometric=True),
        [1000, 50],
        {"level": "llevel", "freq_seasonal": [{"period": 7}]},
        [],
    ),
    "all": (
        lambda: ss.level() + ss.slope() + ss.seasonal(4),
        [1000, 10, 50],
        {"level": "lltrend", "seasonal": 4},
        [],
    ),
    "cycle": (
        lambda: diffuse_cycle(ss.level() + ss.cycle()),
        [1000, 500],
        {"level": "llevel", "cycle": True, "damped_cycle": True, "stochastic_cycle": True},
        [2 * math.pi / 20, 0.8],
    ),
    "autoregression": (autoregression, [1000, 500], {"level": "llevel", "autoregressive": 2}, [0.5, -0.3]),
}


@pytest.mark.parametrize("y", [WHOLE, GAPS], ids=["whole", "gaps"])
@pytest.mark.parametrize("name", CASES)
def test_components_equal_statsmodels(name: str, y: np.ndarray):
    make, variances, options, more = CASES[name]
    model = with_values(make(), variances, 15000.0)
    peer = Components(y, use_exact_diffuse=True, **options)
    parameters = [15000.0] if more is None else [15000.0, *variances, *more]
    assert_close(model.log_prob(y).item(), peer.loglike(parameters), rtol=0, atol=1e-6)


def test_regression_equals_statsmodels_and_its_coefficients_are_least_squares():
    model = with_values(ss.level() + ss.regression(X), [1000.0, 0.0, 0.0], 15000.0)
    peer = Components(WHOLE, "llevel", exog=X, mle_regression=False, use_exact_diffuse=True)
    assert_close(model.log_prob(WHOLE, inputs=X).item(), peer.loglike([15000.0, 1000.0]), rtol=0, atol=1e-6)
    flat = ss.level(variance=0.0) + ss.regression(X[:, :1]) + ss.regression(1)
    found = flat.smooth(WHOLE, inputs=X).mean[-1].numpy()
    best = np.linalg.lstsq(np.column_stack([np.ones(100), X]), WHOLE, rcond=None)[0]
    assert_close(found, best, rtol=1e-8, atol=1e-8)
    ahead = flat.forecast(WHOLE, steps=2, inputs=X, future=[[1.0, 0.0], [0.0, 1.0]]).mean[:, 0].numpy()
    assert_close(ahead, best[0] + best[1:], rtol=1e-8, atol=1e-8)


def given(model: ss.StateSpace, ar=(), ma=(), seasonal_ar=(), seasonal_ma=(), variance: float = 2e4) -> ss.StateSpace:
    move = model.transition.each[0]
    with torch.no_grad():
        move.set(ar, ma, seasonal_ar, seasonal_ma)
        move.size.fill_(variance**0.5)
    return model


ARIMA = [
    ((2, 0, 1), (0, 0, 0), 1, ([0.5, 0.2], [0.3], [], [])),
    ((0, 0, 2), (0, 0, 0), 1, ([], [0.4, 0.2], [], [])),
    ((1, 1, 1), (0, 0, 0), 1, ([0.5], [0.3], [], [])),
    ((0, 2, 1), (0, 0, 0), 1, ([], [-0.3], [], [])),
    ((0, 1, 1), (0, 1, 1), 12, ([], [-0.4], [], [-0.6])),
    ((1, 1, 1), (1, 1, 1), 4, ([0.3], [-0.4], [0.2], [-0.6])),
]


@pytest.mark.parametrize(("order", "seasonal", "season", "values"), ARIMA)
def test_arima_equals_statsmodels(order: tuple, seasonal: tuple, season: int, values: tuple):
    model = given(ss.arima(*order, seasonal, season), *values)
    parameters = [*(x for part in values for x in part), 2e4]
    where = {"order": order, "seasonal_order": (*seasonal, season if season > 1 else 0)}
    y = WHOLE - WHOLE.mean()
    lags = order[1] + seasonal[1] * season
    differenced = Sarimax(y, simple_differencing=True, **where).loglike(parameters)
    assert_close(model.log_prob(y).item(), differenced - 0.5 * lags * math.log(2 * math.pi), rtol=0, atol=1e-6)
    broken = np.where(np.isnan(GAPS), np.nan, y)
    peer = Sarimax(broken, use_exact_diffuse=True, **where)
    assert_close(model.log_prob(broken).item(), peer.loglike(parameters), rtol=0, atol=1e-6)
    ahead = model.forecast(y, steps=5).mean[:, 0].numpy()
    truth = Sarimax(y, use_exact_diffuse=True, **where).smooth(parameters).forecast(5)
    assert_close(ahead, truth, rtol=1e-6, atol=1e-6)


def test_nile_is_fitted():
    model = ss.level()
    model.fit(NILE, by=ss.LBFGS())
    assert_close(model.log_prob(NILE).item(), -633.464564, rtol=0, atol=1e-6)
    assert_close(model.emission.scale.item() ** 2, 15098.52, rtol=1e-3, atol=0)
    assert_close(model.transition.each[0].size.item() ** 2, 1469.18, rtol=5e-3, atol=0)


def test_arima_is_fitted_as_statsmodels_fits_it():
    model = ss.arima(1, 1, 1)
    model.fit(NILE, by=ss.LBFGS(iterations=200))
    peer = Sarimax(WHOLE, order=(1, 1, 1), use_exact_diffuse=True).fit(disp=False)
    assert model.log_prob(NILE).item() > peer.llf - 1e-3


def test_coefficients_stay_where_they_are_stationary_and_invertible():
    from statsmodels.tsa.statespace.tools import constrain_stationary_univariate

    from statespan.parts.structural import autoregression, unrestricted

    for free in torch.randn(20, 4, generator=torch.Generator().manual_seed(0)).double() * 3:
        found = autoregression(free)
        assert_close(found.numpy(), constrain_stationary_univariate(-free.numpy()), rtol=1e-9, atol=1e-9)
        assert float(np.abs(np.roots([1, *(-found.numpy())])).max()) < 1
        assert_close(unrestricted(found, "ar"), free, rtol=1e-5, atol=1e-5)
    with pytest.raises(ss.StatespanError, match="ma has a root on or inside"):
        ss.arima(0, 0, 1).transition.each[0].set(ma=[1.5])
    with pytest.raises(ss.StatespanError, match="this model has 1 of them"):
        ss.arima(1, 0, 0).transition.each[0].set(ar=[0.5, 0.1])


def test_a_moving_average_ends_invertible_and_as_likely():
    """theta = 2 is theta = 1/2 with four times the variance: the fit finds the second, wherever it begins."""
    e = torch.randn(201, generator=torch.Generator().manual_seed(2)).double()
    y = e[1:] + 2 * e[:-1]
    for start in (0.9, -0.9):
        model = ss.arima(0, 0, 1)
        model.transition.each[0].set(ma=[start])
        model.fit(y, by=ss.LBFGS(iterations=60))
        theta = model.transition.each[0].ma.item()
        peer = Sarimax(y.numpy(), order=(0, 0, 1)).fit(disp=False)
        assert theta == pytest.approx(peer.params[0], abs=1e-3) and 0.3 < theta < 0.7
        assert model.log_prob(y).item() == pytest.approx(peer.llf, abs=1e-5)


def test_the_pieces_add_up():
    model = with_values(ss.level() + ss.slope() + ss.seasonal(4), [1000.0, 10.0, 50.0], 15000.0)
    pieces = ss.decompose(model, GAPS)
    assert list(pieces) == ["level", "slope", "seasonal 4", "noise"]
    total = sum(piece.mean for piece in pieces.values())
    seen = ~np.isnan(GAPS)
    assert_close(total.numpy()[seen], GAPS[seen])
    assert bool(total[~seen].isnan().all())
    peer = Components(GAPS, "lltrend", seasonal=4, use_exact_diffuse=True).smooth([15000.0, 1000.0, 10.0, 50.0])
    trend = (pieces["level"].mean + pieces["slope"].mean).numpy()
    assert_close(trend, peer.level["smoothed"], rtol=1e-6, atol=1e-5)
    assert_close(pieces["seasonal 4"].mean.numpy(), peer.seasonal["smoothed"], rtol=1e-6, atol=1e-5)
    deviation = np.sqrt(peer.seasonal["smoothed_cov"])
    assert_close(pieces["seasonal 4"].deviation.numpy(), deviation, rtol=1e-6, atol=1e-5)


def test_they_are_drawn():
    import matplotlib

    matplotlib.use("Agg")
    from statespan.plots.components import plot_components

    y = WHOLE[:30]
    pieces = ss.decompose(with_values(ss.level() + ss.seasonal(4), [1000.0, 50.0], 15000.0), y)
    first = plot_components(pieces, y)
    labels = [axes.get_ylabel() for axes in first.figure.axes]
    assert labels == ["y", "level", "seasonal 4", "noise"]


def test_models_add_in_any_order_and_keep_what_is_held():
    a = with_values(ss.level() + ss.seasonal(4), [1000.0, 50.0], 15000.0)
    b = with_values(ss.seasonal(4) + ss.level(), [50.0, 1000.0], 15000.0)
    assert_close(a.log_prob(WHOLE), b.log_prob(WHOLE))
    held = ss.level(variance=2.0) + ss.seasonal(4, variance=0.0)
    assert [p.requires_grad for p in held.parameters()] == [False, False, True]
    assert_close([move.size.item() ** 2 for move in held.transition.each], [2.0, 0.0])
    exact = ss.arima(1, 0, 0) + ss.regression(1)
    assert exact.emission.scale.item() == 0.0
    assert not exact.emission.scale.requires_grad


def test_save_and_load(tmp_path):
    model = ss.level() + ss.cycle(20.0) + ss.seasonal(4) + ss.arima(1, 1, 1) + ss.regression(1)
    model.save(tmp_path / "m.safetensors")
    again = ss.load(tmp_path / "m.safetensors")
    u = torch.ones(20, 1).double()
    assert torch.equal(again.log_prob(NILE[:20], inputs=u), model.log_prob(NILE[:20], inputs=u))
    assert len(list(again.parameters())) == len(list(model.parameters()))
    assert_close(again.transition.each[1].period.item(), 20.0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ss.seasonal(1), "at least 2 steps"),
        (lambda: ss.level(variance=-1.0), "a number from 0"),
        (lambda: ss.cycle(period=1000.0), "outside its bounds"),
        (lambda: ss.cycle(shortest=5.0, longest=4.0), "shortest < longest"),
        (lambda: ss.autoregressive(0), "an order from 1"),
        (lambda: ss.arima(1, -1, 0), "orders from 0"),
        (lambda: ss.arima(1, 0, 0, (1, 0, 0)), "at least 2 steps"),
        (lambda: ss.regression(0), "at least one column"),
        (lambda: ss.level() + ss.linear_gaussian(state=1, observed=1), "only structural series add"),
        (lambda: ss.decompose(ss.linear_gaussian(state=1, observed=1), [1.0]), "only structural series have"),
        (lambda: ss.decompose(ss.level(), [[1.0, 2.0], [1.0, 2.0]]), "takes one series"),
        (lambda: (ss.level() + ss.regression(2)).log_prob([1.0, 2.0]), "takes 2 inputs a step"),
    ],
)
def test_bad_use_is_named(make, words: str):
    with pytest.raises(ss.StatespanError, match=words):
        make()
