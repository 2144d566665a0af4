"""Dynamic factor models against statsmodels at equal parameters; EM climbs to where statsmodels' optimum is."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import statespan as ss

OUTPUTS = 4


def series(length: int = 40) -> np.ndarray:
    """One factor, with gaps: a column that begins late, a whole row."""
    rng = np.random.default_rng(0)
    factor = np.zeros(length)
    for t in range(1, length):
        factor[t] = 0.7 * factor[t - 1] + rng.normal()
    y = factor[:, None] * [1, -0.5, 0.8, 0.3] + rng.normal(size=(length, OUTPUTS)) * 0.6
    y[:15, 1] = y[30] = y[35, :2] = np.nan
    return y


def peer(y: np.ndarray, **sizes: int):
    api = pytest.importorskip("statsmodels.api")
    return api.tsa.DynamicFactor(y, **sizes)


@pytest.mark.parametrize(("factors", "order", "errors"), [(1, 2, 0), (2, 1, 0), (1, 1, 1), (2, 2, 1)])
def test_log_prob_is_that_of_statsmodels(factors: int, order: int, errors: int):
    other = peer(series(), k_factors=factors, factor_order=order, error_order=errors)
    rng = np.random.default_rng(factors + 10 * order)
    values = {name: 0.25 * rng.normal() for name in other.param_names}
    values |= {name: abs(x) + 0.3 for name, x in values.items() if name.startswith("sigma2")}
    model = ss.dynamic_factor(OUTPUTS, factors, order, bool(errors))
    move, shown = model.transition, model.emission
    with torch.no_grad():
        for i in range(OUTPUTS):
            for k in range(factors):
                shown.loadings[i, k] = values[f"loading.f{k + 1}.y{i + 1}"]
            (move if errors else shown).size[i] = values[f"sigma2.y{i + 1}"] ** 0.5
            if errors:
                move.rho[i] = values[f"L1.e(y{i + 1}).e(y{i + 1})"]
        for j in range(order):
            for a in range(factors):
                for b in range(factors):
                    move.coefficients[b, j * factors + a] = values[f"L{j + 1}.f{a + 1}.f{b + 1}"]
    expected = other.loglike(np.array(list(values.values())))
    assert model.log_prob(series()).item() == pytest.approx(expected, abs=1e-6)


def test_em_climbs_to_the_maximum_through_the_gaps():
    y, model = series(), ss.dynamic_factor(OUTPUTS, seed=0)
    em = ss.EM(iterations=20, tolerance=0)
    model.fit(y, by=em, hold=["emission.mean"])
    assert all(after >= before - 1e-9 for before, after in zip(em.history, em.history[1:], strict=False))
    assert bool((model.emission.mean == 0).all())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        best = peer(y, k_factors=1, factor_order=1).fit(disp=0, maxiter=100).llf
    assert em.history[-1] == pytest.approx(best, abs=0.3)
    assert em.history[-1] <= best + 1e-4


@pytest.mark.parametrize("hold", [[], ["transition"], ["emission.loadings"], ["emission.size", "emission.mean"]])
def test_one_m_step_climbs_and_leaves_what_is_held(hold: list[str]):
    y, model = torch.tensor(series()), ss.dynamic_factor(OUTPUTS, factors=2, order=2, seed=3)
    model.log_prob(y).backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradient = {name: p.grad.clone() for name, p in model.named_parameters()}
    start = model.log_prob(y).item()
    model.fit(y, by=ss.EM(iterations=1, tolerance=0), hold=hold)
    rise = 0.0
    for name, p in model.named_parameters():
        held = any(name == h or name.startswith(h) for h in hold)
        held |= "transition" in hold and name.startswith("initial")
        assert torch.equal(p.detach(), before[name]) == held
        rise += float(((p.detach() - before[name]) * gradient[name]).sum())
    assert rise > 0
    assert model.log_prob(y).item() > start


def test_autoregressive_errors_fit_and_forecast(tmp_path: Path):
    y = series()
    model = ss.dynamic_factor(OUTPUTS, autoregressive_errors=True, seed=0)
    fitter = ss.LBFGS(iterations=5)
    model.fit(y, by=fitter, restarts=2, seed=0)
    assert fitter.history[-1] > fitter.history[0]
    assert model.forecast(y, steps=2).quantile([0.1, 0.9]).shape == (2, 2, OUTPUTS)
    filled = model.impute(y)
    assert_close(filled[~np.isnan(y)], torch.tensor(y[~np.isnan(y)]), rtol=0, atol=0)
    assert bool(filled.isfinite().all())
    model.save(tmp_path / "factor.safetensors")
    assert torch.equal(ss.load(tmp_path / "factor.safetensors").log_prob(y), model.log_prob(y))
    em = ss.EM(iterations=3, tolerance=0)
    model.fit(y, by=em)
    assert em.history[-1] > em.history[0] - 1e-6


def test_refusals():
    with pytest.raises(ss.StatespanError, match="use at least 1"):
        ss.dynamic_factor(3, factors=0)
    model = ss.dynamic_factor(2)
    with torch.no_grad():
        model.transition.coefficients.fill_(1.0)
    with pytest.raises(ss.StatespanError, match="stationary"):
        model.log_prob(torch.zeros(3, 2))
