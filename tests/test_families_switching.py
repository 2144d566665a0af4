"""Markov switching: published numbers, statsmodels at the same parameters, enumeration, simulation by hand."""

import ast
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import statespan as ss
from statespan.errors import StatespanError

MEAN_ADJUSTED = {"lags": 4, "switching": ["intercept"], "adjusted": True}
PUBLISHED = [
    0.754673,
    0.095915,
    -0.358811,
    1.163516,
    math.exp(-0.262658) ** 2,
    0.013486,
    -0.057521,
    -0.246983,
    -0.212923,
]
"""Hamilton's estimates as Stata and EViews print them: moves to regime 0, means, variance, phi."""


def gnp() -> tuple[torch.Tensor, torch.Tensor]:
    """Growth of US GNP 1951 to 1984, and whether the NBER dates a recession there: statsmodels' tests print them."""
    package = Path(pytest.importorskip("statsmodels").__file__).parent
    text = (package / "tsa/regime_switching/tests/test_markov_autoregression.py").read_text()
    found = {
        node.targets[0].id: torch.tensor(ast.literal_eval(node.value), dtype=torch.float64)
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in ("rgnp", "rec")
    }
    return found["rgnp"], found["rec"]


def hamilton() -> ss.StateSpace:
    p = PUBLISHED
    model = ss.markov_switching(2, **MEAN_ADJUSTED, transition=[[p[0], 1 - p[0]], [p[1], 1 - p[1]]])
    model.emission.set_values(p[2:4], p[5:], p[4])
    return model


def test_hamiltons_gnp():
    y, _ = gnp()
    assert hamilton().log_prob(y).item() == pytest.approx(-181.26339, abs=1e-5)
    assert hamilton().log_prob(y[None, :, None].expand(2, -1, 1)).tolist() == pytest.approx([-181.26339] * 2, abs=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "options", "switching"),
    [
        ("regression", {"switching_variance": True}, ["intercept", "variance"]),
        ("regression", {"exog": 2}, ["intercept", "inputs"]),
        (
            "regression",
            {"exog": 2, "switching_exog": [False, True], "switching_variance": True},
            ["intercept", 1, "variance"],
        ),
        ("regression", {"exog": 1, "switching_trend": False}, ["inputs"]),
        ("regression", {"exog_tvtp": True, "switching_variance": True}, ["intercept", "variance"]),
        ("autoregression", {"order": 1, "switching_variance": True}, ["intercept", "lags", "variance"]),
        ("autoregression", {"order": 2, "switching_ar": False}, ["intercept"]),
        ("autoregression", {"order": 3, "k_regimes": 3}, ["intercept", "lags"]),
        ("autoregression", {"order": 2, "exog": 2, "switching_exog": [True, False]}, ["intercept", 0, "lags"]),
        ("autoregression", {"order": 2, "switching_trend": False}, ["lags"]),
        ("autoregression", {"order": 1, "exog_tvtp": True}, ["intercept", "lags"]),
        ("autoregression", {"order": 2, "exog": 1, "exog_tvtp": True, "k_regimes": 3}, ["intercept", "inputs", "lags"]),
    ],
)
def test_statsmodels_at_the_same_parameters(kind: str, options: dict[str, Any], switching: list[Any]):
    pytest.importorskip("statsmodels")
    from statsmodels.tsa.regime_switching import markov_autoregression, markov_regression

    rng = np.random.default_rng(3)
    y, x, drive = rng.normal(size=60), rng.normal(size=(60, 2)), rng.normal(size=(60, 1))
    u = x[:, : options.get("exog", 0)]
    asked = {"k_regimes": 2} | options
    if "exog" in options:
        asked["exog"] = u
    if "exog_tvtp" in options:
        asked["exog_tvtp"] = np.c_[np.ones(60), drive]
    maker = markov_regression.MarkovRegression if kind == "regression" else markov_autoregression.MarkovAutoregression
    theirs, k, p = maker(y, **asked), asked["k_regimes"], options.get("order", 0)
    values = rng.normal(size=len(theirs.start_params)) * 0.4
    values[theirs.parameters["variance"]] = rng.uniform(0.5, 2.0, len(values[theirs.parameters["variance"]]))
    if "exog_tvtp" not in options:
        values[theirs.parameters["regime_transition"]] = rng.uniform(0.1, 0.45, k * (k - 1))
    result = theirs.smooth(values)

    model = ss.markov_switching(k, p, u.shape[1], switching, p > 0, drivers=int("exog_tvtp" in options))
    order = [*range(1, u.shape[1] + 1), 0]  # the intercept last
    coefficients = np.array([values[theirs.parameters[i, "exog"]][order] for i in range(k)])
    phi = np.array([values[theirs.parameters[i, "autoregressive"]] for i in range(k)]) if p else None
    variance = np.array([values[theirs.parameters[i, "variance"]] for i in range(k)])[:, 0]
    model.emission.set_values(coefficients, phi, variance)
    chain = getattr(model.transition, "chain", model.transition)
    if "exog_tvtp" in options:
        rows = np.array([values[theirs.parameters[i, "regime_transition"]].reshape(k - 1, 2) for i in range(k)])
        chain.weight.data = torch.tensor(np.concatenate([rows, np.zeros((k, 1, 2))], 1))
    else:
        chain.set_probs(torch.tensor(theirs.regime_transition_matrix(values)[:, :, 0].T))
    inputs = torch.tensor(np.c_[ss.lagged(u, p) if u.shape[1] else u, drive[:, : int("exog_tvtp" in options)]])
    inputs = inputs if inputs.shape[1] else None
    assert model.log_prob(y, inputs=inputs).item() == pytest.approx(result.llf, abs=1e-8)
    smoothed, filtered = model.smooth(y, inputs=inputs).probs[p:], model.filter(y, inputs=inputs).probs[p:]
    assert np.abs(smoothed.numpy() - result.smoothed_marginal_probabilities).max() < 1e-8
    assert np.abs(filtered.numpy() - result.filtered_marginal_probabilities).max() < 1e-8


@pytest.mark.filterwarnings("ignore")
def test_intercept_form_is_statsmodels_regression_on_the_past():
    pytest.importorskip("statsmodels")
    from statsmodels.tsa.regime_switching.markov_regression import MarkovRegression

    y = np.random.default_rng(0).normal(size=50).cumsum() * 0.3
    theirs = MarkovRegression(
        y[2:], 2, exog=np.c_[y[1:-1], y[:-2]], switching_exog=[True, True], switching_variance=True
    )
    values = np.r_[0.8, 0.3, 0.5, -0.4, 0.6, 0.2, -0.1, 0.3, 0.7, 0.4]
    model = ss.markov_switching(2, lags=2, transition=[[0.8, 0.2], [0.3, 0.7]])
    model.emission.set_values([0.5, -0.4], [[0.6, -0.1], [0.2, 0.3]], [0.7, 0.4])
    assert theirs.param_names[2:] == [
        "const[0]",
        "const[1]",
        "x1[0]",
        "x1[1]",
        "x2[0]",
        "x2[1]",
        "sigma2[0]",
        "sigma2[1]",
    ]
    assert model.log_prob(y).item() == pytest.approx(theirs.loglike(values), abs=1e-8)


def paths_by_hand(model: ss.StateSpace, y: torch.Tensor, p: int) -> tuple[float, torch.Tensor]:
    """Log p(y_p.. | y_0..p-1) of the mean-adjusted form and p(s_t | y), by every path of regimes."""
    table, (b, phi, v) = (
        model.transition.chain.probs,
        (
            model.emission.coefficients[:, 0],
            model.emission.autoregression,
            model.emission.variance,
        ),
    )
    start = model.transition.chain.stationary()
    k, total, marginal = len(b), torch.tensor(0.0).double(), torch.zeros(len(y), len(b), dtype=torch.float64)
    for path in itertools.product(range(k), repeat=len(y)):
        weight = start[path[0]]
        for before, now in itertools.pairwise(path):
            weight = weight * table[before, now]
        for t in range(p, len(y)):
            s = path[t]
            mean = b[s] + sum(phi[s, j] * (y[t - 1 - j] - b[path[t - 1 - j]]) for j in range(p))
            weight = weight * torch.distributions.Normal(mean, v[s].sqrt()).log_prob(y[t]).exp()
        total = total + weight
        for t, s in enumerate(path):
            marginal[t, s] += weight.item()
    return total.log().item(), marginal / total.item()


def test_every_path_by_hand():
    """With the variance switching and two lags: statsmodels gives it the regime before, so it cannot be asked."""
    model = ss.markov_switching(2, lags=2, adjusted=True, transition=[[0.8, 0.2], [0.35, 0.65]])
    model.emission.set_values([-1.0, 2.0], [[0.5, -0.2], [0.1, 0.3]], [0.4, 1.7])
    y = torch.tensor([0.3, -1.2, 0.1, 2.4, 1.0, 2.2, -0.7], dtype=torch.float64)
    log_prob, marginal = paths_by_hand(model, y, 2)
    assert model.log_prob(y).item() == pytest.approx(log_prob, abs=1e-12)
    assert torch.allclose(model.smooth(y).probs, marginal, atol=1e-12)
    paths, scores = model.decode(y, k=2**7)
    assert len({tuple(path.tolist()) for path in paths.T}) == 2**7  # each path of regimes once
    assert scores.logsumexp(-1).item() == pytest.approx(log_prob, abs=1e-12)


@pytest.mark.parametrize(
    "switching", [["intercept"], ["intercept", "variance", 0], ["intercept", "lags", "inputs", "variance"]]
)
@pytest.mark.parametrize("adjusted", [False, True])
def test_em_rises_to_where_the_slope_is_zero(switching: list[Any], adjusted: bool):
    torch.manual_seed(0)
    x = torch.randn(150, 1, dtype=torch.float64)
    truth = ss.markov_switching(2, 1, 1, adjusted=adjusted, transition=[[0.9, 0.1], [0.2, 0.8]])
    truth.emission.set_values([[1.0, 3.0], [0.0, -1.0]], [0.5], [0.3, 1.0])
    u = ss.lagged(x, 1) if adjusted else x
    y = truth.sample(length=150, seed=4, inputs=u[:, None])[1]
    model = ss.markov_switching(2, 1, 1, switching, adjusted, seed=1)
    model.emission.begin(y[:, None], u[:, None], None)
    em = ss.EM(iterations=400, tolerance=1e-11)
    model.fit(y, inputs=u, by=em)
    assert (np.diff(em.history) > -1e-8).all()
    assert em.history[-1] > em.history[0] + 1
    slopes = torch.autograd.grad(model.log_prob(y, inputs=u), list(model.emission.parameters()))
    assert max(float(s.abs().max()) for s in slopes) < 0.02
    if "lags" not in switching:
        assert model.emission.autoregression[0].tolist() == model.emission.autoregression[1].tolist()
    if "variance" not in switching:
        assert model.emission.variance[0] == model.emission.variance[1]


def test_hold_keeps_what_it_names():
    y, _ = gnp()
    model = hamilton()
    model.fit(y + 0.1, by=ss.EM(iterations=3), hold=["emission.lag"])
    assert model.emission.autoregression[0].tolist() == pytest.approx(PUBLISHED[5:], abs=1e-12)
    assert model.emission.coefficients[1, 0].item() > 1.2


def test_varying_probabilities_are_fitted():
    """Regimes that follow a driver: the fit finds it, by EM (gradient steps on the moves) and by L-BFGS."""
    rng = np.random.default_rng(1)
    drive = rng.normal(size=150)
    state, y = 0, []
    for x in drive:
        stay = 1 / (1 + math.exp(-(2.0 - 3.0 * x)))
        state = state if rng.uniform() < stay else 1 - state
        y.append(rng.normal() + 4 * state)
    u = torch.tensor(drive)[:, None]
    fixed = ss.markov_switching(2, switching=["intercept"], seed=0)
    model = ss.markov_switching(2, switching=["intercept"], drivers=1, seed=0)
    for m, inputs in ((fixed, None), (model, u)):
        m.emission.set_values([0.0, 4.0], None, 1.0)
        m.fit(y, inputs=inputs, by=ss.LBFGS(iterations=25))
    assert model.log_prob(y, inputs=u).item() > fixed.log_prob(y).item() + 10
    weight = model.transition.chain.weight
    assert (weight[0, 0] - weight[0, 1])[1].item() == pytest.approx(-3.0, abs=1.5)
    before = model.log_prob(y, inputs=u).item()
    model.fit(y, inputs=u, by=ss.EM(iterations=2, tolerance=0))
    assert model.log_prob(y, inputs=u).item() > before - 0.5


def test_forecast_one_step_is_the_mixture_and_beyond_is_simulation():
    table = np.array([[0.9, 0.1], [0.25, 0.75]])
    b, phi, v = np.array([2.0, -1.0]), np.array([[0.6, -0.2], [0.1, 0.3]]), np.array([0.3, 1.2])
    model = ss.markov_switching(2, lags=2, adjusted=True, transition=table)
    model.emission.set_values(b, phi, v)
    y = model.sample(length=40, seed=2)[1][:, 0].numpy()
    # p(s_t, s_{t-1}, s_{t-2} | y) from the paths drawn backwards, and exactly from the last belief
    belief = model.filter(y).belief.state.probs[0].numpy().reshape(2, 2, 2)  # (s_{t-2}, s_{t-1}, s_t)
    weight = np.einsum("abc,cd->bcd", belief, table)  # (s_{t-1}, s_t, s_{t+1})
    mean = np.array(
        [
            [[b[d] + phi[d, 0] * (y[-1] - b[c]) + phi[d, 1] * (y[-2] - b[a]) for d in (0, 1)] for c in (0, 1)]
            for a in (0, 1)
        ]
    )
    one = model.forecast(y, steps=1)
    assert one.exact
    assert one.mean.item() == pytest.approx((weight * mean).sum(), abs=1e-12)
    second = (weight * (mean**2 + v)).sum() - (weight * mean).sum() ** 2
    assert one.distribution.variance.item() == pytest.approx(second, abs=1e-12)

    many, steps, rng = 40_000, 6, np.random.default_rng(0)
    first = rng.choice(8, size=many, p=belief.flatten() / belief.sum())
    states, values = [first // 2 % 2, first % 2], [np.full(many, y[-2]), np.full(many, y[-1])]
    for _ in range(steps):
        s = (rng.uniform(size=many) < table[states[-1], 1]).astype(int)
        centre = b[s] + phi[s, 0] * (values[-1] - b[states[-1]]) + phi[s, 1] * (values[-2] - b[states[-2]])
        states.append(s)
        values.append(centre + np.sqrt(v[s]) * rng.normal(size=many))
    by_hand = np.stack(values[2:])
    ahead = model.forecast(y, steps=steps, samples=many)
    assert not ahead.exact
    assert ahead.mean[0].item() == pytest.approx(one.mean.item(), abs=1e-12)  # the first step is exact there too
    error = 4.5 * np.sqrt(2) * by_hand.std(1) / math.sqrt(many)
    assert (np.abs(ahead.mean[:, 0].numpy() - by_hand.mean(1)) < error).all()
    levels = [0.1, 0.5, 0.9]
    assert np.abs(ahead.quantile(levels)[..., 0].numpy() - np.quantile(by_hand, levels, axis=1)).max() < 0.08


def test_forecast_without_lags_is_exact_and_follows_its_drivers():
    model = ss.markov_switching(2, inputs=1, drivers=1)
    model.emission.set_values([[1.0, 0.0], [-1.0, 5.0]], None, [1.0, 1.0])
    model.transition.chain.weight.data = torch.tensor(
        [[[3.0, -4.0], [0, 0]], [[-3.0, 2.0], [0, 0]]], dtype=torch.float64
    )
    y, u = torch.tensor([0.1, 0.2, -0.3]), torch.zeros(3, 2)
    future = torch.tensor([[1.0, 2.0], [2.0, 0.0]])
    probs, expected = model.filter(y, inputs=u).probs[-1], []
    for x, driver in future.tolist():
        stay = [1 / (1 + math.exp(4 * driver - 3)), 1 / (1 + math.exp(3 - 2 * driver))]
        probs = probs @ torch.tensor([[p, 1 - p] for p in stay], dtype=torch.float64)
        expected.append(float(probs @ torch.tensor([x, 5 - x], dtype=torch.float64)))
    found = model.forecast(y, steps=2, inputs=u, future=future)
    assert found.exact
    assert found.mean[:, 0].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_stream_and_windows_and_files(tmp_path):
    y, rec = gnp()
    model = ss.markov_switching(2, 1, switching=["intercept"], adjusted=True, drivers=1, seed=3)
    model.emission.set_values([-0.4, 1.1], [0.2], 0.6)
    u = rec[:, None]
    stream = model.stream()
    for value, x in zip(y, u, strict=True):
        stream.update(value[None], inputs=x)
    whole = model.filter(y, inputs=u)
    assert stream.log_prob.item() == pytest.approx(whole.log_prob.item(), abs=1e-9)
    assert torch.allclose(stream.state.probs[0], whole.probs[-1])
    first = model.filter(y[:50], inputs=u[:50])
    rest = model.log_prob(y[50:], inputs=u[50:], belief=first.belief)
    assert (first.log_prob + rest).item() == pytest.approx(whole.log_prob.item(), abs=1e-9)
    model.save(tmp_path / "m.safetensors")
    again = ss.load(tmp_path / "m.safetensors")
    assert torch.equal(again.log_prob(y, inputs=u), model.log_prob(y, inputs=u))


def test_labels_speak_of_the_regime_now():
    model = hamilton()
    y = model.sample(length=12, seed=0)[1]
    labels = torch.full((12,), -1)
    labels[6] = 1
    known = model.log_prob(y, states=labels).item() - model.log_prob(y).item()
    assert math.exp(known) == pytest.approx(model.smooth(y).probs[6, 1].item(), abs=1e-12)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ss.markov_switching(2, switching=["mean"]), "intercept, inputs, lags, variance"),
        (lambda: ss.markov_switching(2, switching=[0]), "an input's number"),
        (lambda: ss.markov_switching(0), "states=0"),
        (lambda: ss.markov_switching(2, lags=-1), "lags=-1"),
        (lambda: ss.markov_switching(2, transition=[[0.5, 0.4], [0.5, 0.5]]), "sums to 0.9"),
        (lambda: ss.markov_switching(3, transition=[[0.5, 0.5], [0.5, 0.5]]), r"must be \(3, 3\)"),
        (lambda: ss.markov_switching(2, drivers=1, transition=[[0.5, 0.5], [0.5, 0.5]]), "drivers"),
        (lambda: ss.markov_switching(2, inputs=1, seed=0).log_prob([1.0, 2.0]), "1 inputs a step, and 0"),
        (
            lambda: ss.markov_switching(2, lags=1, inputs=1, adjusted=True).log_prob([1.0, 2.0], inputs=[[1.0]] * 2),
            "lagged",
        ),
        (lambda: ss.markov_switching(2, lags=1, adjusted=True).log_prob([1.0, None, 2.0]), "looks back"),
        (lambda: ss.markov_switching(2).emission.set_values(variance=[1.0, -1.0]), "positive"),
    ],
)
def test_bad_input(make: Any, says: str):
    with pytest.raises(StatespanError, match=says):
        make()
