"""Mixed columns, regressions, autoregression, and torch's own distributions as emissions."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.testing import assert_close

import statespan as ss
from oracles import all_rows


def rises(history: list[float], slack: float = 1e-7) -> bool:
    return all(b >= a - slack for a, b in itertools.pairwise(history))


def by_paths(model, log: torch.Tensor) -> torch.Tensor:
    """Log p(y) by every state path, from log-densities (T, K)."""
    length, states = log.shape
    paths = all_rows(states, length)
    initial, table = model.initial.probs().log(), model.transition.probs.log()
    value = initial[paths[:, 0]] + log[torch.arange(length), paths].sum(-1)
    return (value + table[paths[:, :-1], paths[:, 1:]].sum(-1)).logsumexp(0)


def product() -> ss.StateSpace:
    torch.manual_seed(1)
    emission = ss.Product(ss.Categorical(3), ss.Gaussian(dim=2), ss.Poisson())
    model = ss.hmm(states=2, emission=emission, seed=0)
    with torch.no_grad():
        model.emission.emissions[1].mean.copy_(torch.tensor([[0.0, 1.0], [4.0, -3.0]]))
        model.emission.emissions[2].log_rate.copy_(torch.tensor([[0.0], [2.0]]))
    return model


def test_mixed_columns_multiply():
    model = product()
    y = model.sample(None, 5, seed=0)[1]
    y[1, 0], y[2, 1], y[3, 3] = math.nan, math.nan, math.nan
    y[4] = math.nan
    symbol, normal, count = model.emission.emissions
    rows = []
    for row in y:
        logs = torch.zeros(2, dtype=torch.float64)
        for k in range(2):
            if not row[0].isnan():
                logs[k] += symbol.probs[k, int(row[0])].log().item()
            there = (~row[1:3].isnan()).numpy()
            if there.any():
                mean = normal.mean[k].detach().numpy()[there]
                matrix = normal.covariance[k].detach().numpy()[np.ix_(there, there)]
                logs[k] += stats.multivariate_normal(mean, matrix).logpdf(row[1:3].numpy()[there])
            if not row[3].isnan():
                logs[k] += stats.poisson(count.rate[k].item()).logpmf(row[3].item())
        rows.append(logs)
    assert_close(model.log_prob(y), by_paths(model, torch.stack(rows)), rtol=1e-10, atol=1e-10)


def test_mixed_columns_in_every_verb(tmp_path):
    model = product()
    states, y = model.sample(4, 80, seed=0)
    holes = torch.where(torch.rand(y.shape) < 0.15, math.nan, y)
    em = ss.EM(iterations=12, tolerance=0)
    fitted = ss.hmm(states=2, emission=ss.Product(ss.Categorical(3), ss.Gaussian(dim=2), ss.Poisson()), seed=3)
    em(fitted, ss.verbs.ask(fitted, holes)[0], start=True)
    assert rises(em.history)
    found = torch.stack([fitted.smooth(row).states for row in holes])
    agree = float((found == states).double().mean())
    assert max(agree, 1 - agree) > 0.95
    filled = fitted.impute(holes)
    assert bool((filled[..., 0] == filled[..., 0].round()).all())
    assert not bool(filled.isnan().any())
    assert fitted.forecast(holes, 3).mean.shape == (4, 3, 4)
    fitted.save(tmp_path / "m.safetensors")
    assert torch.equal(ss.load(tmp_path / "m.safetensors").log_prob(holes), fitted.log_prob(holes))
    mixture = fitted.emission.mixture(torch.tensor([0.2, 0.8]).double(), None, fitted.emission.constants())
    each = fitted.emission.log_likelihood(y[0, :1, None], None, None, fitted.emission.constants())[0, 0]
    truth = (each + torch.tensor([0.2, 0.8]).double().log()).logsumexp(0)
    assert_close(mixture.log_prob(y[0, 0]), truth)
    with pytest.raises(ss.StatespanError, match="sequence 0, step 1, column 0: 3 "):
        model.log_prob([[0, 1.0, 1.0, 2], [3, 1.0, 1.0, 2]])


def regression(covariance: str = "full", lags: int = 0, inputs: int = 2) -> ss.StateSpace:
    model = ss.hmm(states=2, emission=ss.LinearRegression(2, inputs, covariance=covariance, lags=lags), seed=1)
    with torch.no_grad():
        torch.manual_seed(4)
        part = model.emission
        part.coefficients.copy_(torch.randn_like(part.coefficients) / 3)
        part.coefficients[..., -1] = torch.tensor([[0.0, 2.0], [3.0, -2.0]])
        for p in (part.noise.log_diagonal, part.noise.lower):
            if p is not None:
                torch.nn.init.normal_(p, std=0.3)
    return model


def normal_rows(model, y: torch.Tensor, u: torch.Tensor | None, lags: int) -> torch.Tensor:
    """Log-densities (T, K), written once more; the first steps are given."""
    part, rows = model.emission, []
    for t in range(len(y)):
        logs = torch.zeros(2, dtype=torch.float64)
        for k in range(2):
            if t < lags:
                continue
            mean = part.bias[k].detach().clone()
            if u is not None:
                mean += part.weight[k].detach() @ u[t]
            for j in range(lags):
                mean += part.autoregression[k, j].detach() @ y[t - 1 - j]
            there = (~y[t].isnan()).numpy()
            matrix = part.covariance[k].detach().numpy()[np.ix_(there, there)]
            if there.any():
                logs[k] = stats.multivariate_normal(mean.numpy()[there], matrix).logpdf(y[t].numpy()[there])
        rows.append(logs)
    return torch.stack(rows)


@pytest.mark.parametrize("covariance", ["full", "diagonal", "tied"])
def test_linear_regression_with_gaps_equals_enumeration(covariance: str):
    model, u = regression(covariance), torch.randn(5, 2).double()
    y = torch.randn(5, 2).double()
    y[1, 0], y[3, 1] = math.nan, math.nan
    y[2] = math.nan
    assert_close(model.log_prob(y, inputs=u), by_paths(model, normal_rows(model, y, u, 0)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("lags", [1, 2])
@pytest.mark.parametrize("inputs", [0, 2])
def test_an_autoregression_equals_enumeration_however_it_is_asked(lags: int, inputs: int):
    model = regression("full", lags, inputs)
    y, u = torch.randn(6, 2).double(), torch.randn(6, 2).double() if inputs else None
    truth = by_paths(model, normal_rows(model, y, u, lags))
    cut = lambda at: None if u is None else u[at]  # noqa: E731
    assert_close(model.log_prob(y, inputs=u), truth, rtol=1e-10, atol=1e-10)
    stream = model.stream()
    for t, row in enumerate(y):
        stream.update(row, inputs=cut(t))
    assert_close(stream.log_prob, truth, rtol=1e-10, atol=1e-10)
    for at in (1, 2, 4):
        first = model.filter(y[:at], inputs=cut(slice(0, at)))
        rest = model.filter(y[at:], inputs=cut(slice(at, None)), belief=first.belief)
        assert_close(first.log_prob + rest.log_prob, truth, rtol=1e-10, atol=1e-10)
        assert_close(rest.probs, model.filter(y, inputs=u).probs[at:], rtol=1e-9, atol=1e-9)
    ragged = [y, y[:4], y[:1]]
    given = None if u is None else [u, u[:4], u[:1]]
    alone = torch.stack([model.log_prob(r, inputs=None if u is None else u[: len(r)]) for r in ragged])
    assert_close(model.log_prob(ragged, inputs=given), alone, rtol=1e-10, atol=1e-10)
    with pytest.raises(ss.StatespanError, match="step 2 is missing"):
        holed = y.clone()
        holed[2, 0] = math.nan
        model.log_prob(holed, inputs=u)
    late = y.clone()
    late[5, 1] = math.nan
    truth = by_paths(model, normal_rows(model, late, u, lags))
    assert_close(model.log_prob(late, inputs=u), truth, rtol=1e-10, atol=1e-10)


def test_an_autoregression_forecasts_by_samples():
    model = regression("full", 1, 0)
    y = model.sample(None, 12, seed=0)[1]
    ahead = model.forecast(y, steps=2, samples=6000, seed=1)
    assert not ahead.exact
    part = model.emission
    p = model.filter(y).probs[-1] @ model.transition.probs.detach()
    mean = (part.autoregression[:, 0] @ y[-1] + part.bias).detach()
    error = ahead.samples.std(0) / math.sqrt(6000)
    assert bool(((ahead.mean[0] - p @ mean).abs() < 4.5 * error[0]).all())
    after = torch.zeros(2).double()  # E[y_2] = sum over z1, z2 of p(z1) A[z1, z2] (A_z2 m_z1 + b_z2)
    table = model.transition.probs.detach()
    for i, j in itertools.product(range(2), range(2)):
        after += p[i] * table[i, j] * (part.autoregression[j, 0] @ mean[i] + part.bias[j]).detach()
    assert bool(((ahead.mean[1] - after).abs() < 4.5 * error[1]).all())


@pytest.mark.parametrize("lags", [0, 1])
def test_linear_regression_is_recovered(lags: int):
    truth, u = regression("full", lags), torch.randn(6, 150, 2).double()
    with torch.no_grad():
        truth.transition.set_probs(torch.tensor([[0.95, 0.05], [0.1, 0.9]]))
    y = truth.sample(6, 150, seed=0, inputs=u.transpose(0, 1))[1]
    model, em = (
        ss.hmm(states=2, emission=ss.LinearRegression(2, 2, lags=lags), seed=0),
        ss.EM(iterations=30, tolerance=0),
    )
    model.fit(y, inputs=u, by=em, restarts=4, seed=1)
    assert rises(em.history)
    assert em.history[-1] > float(truth.log_prob(y, inputs=u).detach().sum()) - 5
    order = model.emission.bias[:, 0].argsort()
    error = (model.emission.coefficients[order] - truth.emission.coefficients).abs().max()
    assert float(error.detach()) < (0.7 if lags else 0.35)
    if not lags:
        holes = torch.where(torch.rand(y.shape) < 0.2, math.nan, y)
        em(model, ss.verbs.ask(model, holes, inputs=u)[0], start=False)
        assert rises(em.history)


@pytest.mark.parametrize("kind", [ss.LogisticRegression, ss.PoissonRegression])
def test_glms(kind):
    truth, u = ss.hmm(states=2, emission=kind(2, 2), seed=1), torch.randn(6, 150, 2).double() / 2
    with torch.no_grad():
        truth.emission.coefficients.copy_(
            torch.tensor([[[2.0, -1.0, 1.0], [0.0, 1.0, 1.5]], [[-2.0, 1.0, -1.0], [1.0, 0.0, -1.5]]])
        )
        truth.transition.set_probs(torch.tensor([[0.97, 0.03], [0.03, 0.97]]))
    y = truth.sample(6, 150, seed=0, inputs=u.transpose(0, 1))[1]
    eta = torch.einsum("kdf,f->kd", truth.emission.coefficients, torch.cat([u[0, 0], torch.ones(1).double()])).detach()
    law = stats.bernoulli(eta.sigmoid().numpy()) if kind is ss.LogisticRegression else stats.poisson(eta.exp().numpy())
    found = truth.emission.log_likelihood(y[0, :1, None], u[0, :1, None], None, truth.emission.constants())
    assert_close(found[0, 0].detach().numpy(), law.logpmf(y[0, 0].numpy()).sum(-1), rtol=1e-9, atol=1e-9)
    holes = torch.where(torch.rand(y.shape) < 0.1, math.nan, y)
    model, em = ss.hmm(states=2, emission=kind(2, 2), seed=2), ss.EM(iterations=40, tolerance=0)
    em(model, ss.verbs.ask(model, holes, inputs=u)[0], start=True)
    assert rises(em.history)
    order = model.emission.bias[:, 0].argsort(descending=True)
    error = (model.emission.coefficients[order] - truth.emission.coefficients).abs().max()
    assert float(error.detach()) < 1.0
    assert model.impute(holes, inputs=u).isfinite().all() if hasattr(model, "impute") else True


def test_a_newton_step_never_falls_from_far_away():
    y, u = torch.tensor([[[3.0]], [[0.0]], [[50.0]]]).double(), torch.tensor([[[1.0]], [[-2.0]], [[4.0]]]).double()
    part = ss.PoissonRegression(1, 1, 1).double()
    with torch.no_grad():
        part.coefficients.copy_(torch.tensor([[[-2.0, 3.0]]]))
    weights, values = torch.ones(3, 1, 1).double(), []
    for _ in range(60):
        log = part.log_likelihood(y, u, None, part.constants()).sum() + part.log_prior()
        values.append(log.item())
        part.maximize(part.statistics(y, u, weights, None))
    assert rises(values)
    log = part.log_likelihood(y, u, None, part.constants()).sum() + part.log_prior()
    (gradient,) = torch.autograd.grad(log, [part.coefficients])
    assert float(gradient.abs().max()) < 1e-6


@pytest.mark.parametrize(
    ("emission", "law"),
    [
        (
            lambda: ss.Emission("Gumbel", loc=[[0.0, 1.0], [3.0, -2.0]], scale=[[1.0, 0.5], [2.0, 1.0]]),
            lambda k, d: stats.gumbel_r([[0.0, 1.0], [3.0, -2.0]][k][d], [[1.0, 0.5], [2.0, 1.0]][k][d]),
        ),
        (
            lambda: ss.Emission("Weibull", scale=[[1.0, 3.0], [3.0, 2.0]], concentration=[[1.0, 0.5], [2.0, 1.0]]),
            lambda k, d: stats.weibull_min([[1.0, 0.5], [2.0, 1.0]][k][d], scale=[[1.0, 3.0], [3.0, 2.0]][k][d]),
        ),
    ],
)
def test_torchs_distributions(emission, law, tmp_path):
    model = ss.hmm(states=2, emission=emission(), seed=0)
    y = model.sample(None, 6, seed=0)[1]
    y[1, 0] = math.nan
    y[3] = math.nan
    rows = [
        [sum(law(k, d).logpdf(float(v)) for d, v in enumerate(row) if not v.isnan()) for k in range(2)] for row in y
    ]
    assert_close(model.log_prob(y), by_paths(model, torch.tensor(rows, dtype=torch.float64)), rtol=1e-9, atol=1e-9)
    model.save(tmp_path / "m.safetensors")
    assert torch.equal(ss.load(tmp_path / "m.safetensors").log_prob(y), model.log_prob(y))
    before = model.log_prob(y).item()
    model.fit(y, by=ss.EM(iterations=5))
    assert model.log_prob(y).item() > before


def test_torchs_vectors_and_what_is_refused():
    model = ss.hmm(states=2, emission=ss.Emission("Dirichlet", concentration=[[1.0, 2.0, 3.0], [4.0, 1.0, 1.0]]))
    y = model.sample(None, 5, seed=0)[1]
    rows = [[stats.dirichlet(a).logpdf((r / r.sum()).numpy()) for a in ([1.0, 2, 3], [4.0, 1, 1])] for r in y]
    assert_close(model.log_prob(y), by_paths(model, torch.tensor(rows, dtype=torch.float64)), rtol=1e-7, atol=1e-7)
    y[2, 1] = 2.0
    with pytest.raises(ss.StatespanError, match=r"step 2, column 0.*Dirichlet"):
        model.log_prob(y)
    for name, what in (("Nothing", "no such"), ("MultivariateNormal", "Gaussian")):
        with pytest.raises(ss.StatespanError, match=what):
            ss.Emission(name)


def test_an_autoregression_in_the_other_verbs():
    model = regression("full", 2, 0)
    y = torch.randn(5, 2).double()
    rows, paths = normal_rows(model, y, None, 2), all_rows(2, 5)
    initial, table = model.initial.probs().log().detach(), model.transition.probs.log().detach()
    log = initial[paths[:, 0]] + rows[torch.arange(5), paths].sum(-1) + table[paths[:, :-1], paths[:, 1:]].sum(-1)
    weights = log.softmax(0)
    smoothed = model.smooth(y)
    assert_close(smoothed.probs[:, 1], (weights[:, None] * paths).sum(0), rtol=1e-9, atol=1e-9)
    best, score = model.decode(y, k=2)
    assert torch.equal(best.T, paths[log.topk(2).indices])
    assert_close(score, log.topk(2).values, rtol=1e-9, atol=1e-9)
    assert model.sample_posterior(y, n=3, seed=0).shape == (3, 5)
    last = y.clone()
    last[4] = math.nan
    filled = model.impute(last)
    assert torch.equal(filled[:4], y[:4])
    assert bool(filled.isfinite().all())
    assert model.forecast([y, y[:3]], steps=2, samples=20).mean.shape == (2, 2, 2)
    ragged, em = [torch.randn(n, 2).double() for n in (30, 12, 2, 1)], ss.EM(iterations=8, tolerance=0)
    model.fit(ragged, by=em)
    assert rises(em.history)


def test_a_gap_at_the_end_is_not_looked_back_on():
    model = ss.hmm(states=2, emission=ss.LinearRegression(1, lags=2), seed=0)
    y = torch.randn(8, 1, generator=torch.Generator().manual_seed(0)).double()
    assert model.forecast(y, 2).mean.shape == (2, 1)
    y[-1] = math.nan
    filled = model.impute(y)
    assert torch.equal(filled[:-1], y[:-1])
    assert_close(filled[-1], model.forecast(y[:-1], 1).mean[0])
    stream = model.stream()
    for row in y:
        stream.update(row)
    for forecast in (lambda: model.forecast(y, 2), lambda: stream.forecast(2)):
        with pytest.raises(ss.StatespanError, match="looks back on an observation that is missing"):
            forecast()
    y[-2] = math.nan
    with pytest.raises(ss.StatespanError, match="steps 6 and 7 are both missing"):
        model.impute(y)
    checkpointed = model.impute(y[:-1], method=ss.Checkpointed())
    assert_close(checkpointed, model.impute(y[:-1]))
