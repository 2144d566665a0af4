"""Changepoints against all segmentations of short series, written out; and against SciPy's distributions."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.special import betaln, gammaln
from torch.testing import assert_close

import statespan as ss
from statespan.method import prepare, run, smooth_backward
from statespan.methods.run_lengths import RunLengthFilter

TIGHT = {"rtol": 0.0, "atol": 1e-9}
X = np.array([0.3, -1.0, 0.7, 1.9, -0.4, 1.1, 0.2])


# ------------------------------------------------------------- marginal likelihoods of one segment, from textbooks


def gaussian(y: np.ndarray, at: np.ndarray) -> tuple[float, float, float]:
    """Murphy 2007, equations 85 to 95: log p(y), and mean and variance of the mean given y."""
    m, k, a, b, n = 0.5, 0.7, 1.4, 0.8, len(y)
    centre = y.mean() if n else 0.0
    kn, an = k + n, a + n / 2
    bn = b + 0.5 * ((y - centre) ** 2).sum() + k * n * (centre - m) ** 2 / (2 * kn)
    log = gammaln(an) - gammaln(a) + a * math.log(b) - an * math.log(bn) + 0.5 * math.log(k / kn)
    mean = (k * m + n * centre) / kn
    return log - n / 2 * math.log(2 * math.pi), mean, bn / (kn * (an - 1))


def gaussian_mean(y: np.ndarray, at: np.ndarray) -> tuple[float, float, float]:
    m, spread, variance, n = 0.5, 4.0, 0.6, len(y)
    log = 0.0
    if n:
        log = scipy.stats.multivariate_normal(np.full(n, m), variance * np.eye(n) + spread).logpdf(y)
    precision = 1 / spread + n / variance
    return float(log), (m / spread + y.sum() / variance) / precision, 1 / precision


def poisson(y: np.ndarray, at: np.ndarray) -> tuple[float, float, float]:
    a, b, n, s = 1.3, 1 / 2.5, len(y), y.sum()
    log = gammaln(a + s) - gammaln(a) + a * math.log(b) - (a + s) * math.log(b + n) - gammaln(y + 1).sum()
    return log, (a + s) / (b + n), (a + s) / (b + n) ** 2


def bernoulli(y: np.ndarray, at: np.ndarray) -> tuple[float, float, float]:
    a, b, n, s = 0.8, 1.7, len(y), y.sum()
    beta = scipy.stats.beta(a + s, b + n - s)
    return betaln(a + s, b + n - s) - betaln(a, b), beta.mean(), beta.var()


def regression(y: np.ndarray, at: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """A multivariate t (Gelman et al. 2013, section 14.2); the coefficients' mean and covariance."""
    x = np.stack([X[at], np.ones(len(at))], 1)
    w, prior, a, b = np.array([0.4, -0.2]), np.diag([0.5, 1.5]), 1.6, 0.9
    log = 0.0
    if len(y):
        shape = b / a * (np.eye(len(y)) + x @ np.linalg.inv(prior) @ x.T)
        log = scipy.stats.multivariate_t(x @ w, shape, df=2 * a).logpdf(y)
    precision = prior + x.T @ x
    mean = np.linalg.solve(precision, prior @ w + x.T @ y)
    an = a + len(y) / 2
    bn = b + 0.5 * (y @ y + w @ prior @ w - mean @ precision @ mean)
    return float(log), mean, bn / (an - 1) * np.linalg.inv(precision)


SEGMENTS: dict[str, tuple[Callable[[], Any], Callable, list[float]]] = {
    "gaussian": (
        lambda: ss.GaussianSegment(mean=0.5, strength=0.7, shape=1.4, scale=0.8),
        gaussian,
        [0.2, -0.4, 0.1, 3.2, 2.7, 3.1, 2.0],
    ),
    "gaussian-mean": (
        lambda: ss.GaussianMeanSegment(mean=0.5, spread=4.0, variance=0.6),
        gaussian_mean,
        [0.2, -0.4, 0.1, 3.2, 2.7, 3.1, 2.0],
    ),
    "poisson": (lambda: ss.PoissonSegment(shape=1.3, scale=2.5), poisson, [0, 1, 0, 5, 7, 4, 1]),
    "bernoulli": (lambda: ss.BernoulliSegment(ones=0.8, zeros=1.7), bernoulli, [0, 0, 0, 1, 1, 0, 1]),
    "regression": (
        lambda: ss.RegressionSegment(1, mean=[0.4, -0.2], strength=[0.5, 1.5], shape=1.6, scale=0.9),
        regression,
        [0.2, -0.9, 0.8, 0.1, 2.2, 1.4, 1.7],
    ),
}


def geometric(rate: float) -> np.ndarray:
    return rate * (1 - rate) ** np.arange(400)


class Truth:
    """All segmentations of one series: their paths of run lengths and log p(segmentation, y)."""

    def __init__(self, name: str, y: list[float], law: np.ndarray):
        one, values = SEGMENTS[name][1], np.array(y, dtype=float)
        length, known = len(y), {}
        self.paths, self.logs, self.segments = [], [], []
        for cuts in itertools.product([False, True], repeat=length - 1):
            starts = [0, *[t + 1 for t, cut in enumerate(cuts) if cut]]
            ends = [*starts[1:], length]
            log, parts = 0.0, []
            for start, end in zip(starts, ends, strict=True):
                d = end - start
                chance = law[d - 1] if end < length else law[d - 1 :].sum()
                at = np.arange(start, end)
                at = at[~np.isnan(values[at])]
                if (start, end) not in known:
                    known[start, end] = one(values[at], at)
                value, mean, spread = known[start, end]
                log += value + (math.log(chance) if chance > 0 else -math.inf)
                parts.append((start, end, mean, spread))
            self.paths.append([t - max(s for s in starts if s <= t) for t in range(length)])
            self.logs.append(log)
            self.segments.append(parts)
        self.log_prob = scipy.special.logsumexp(self.logs)
        self.weights = np.exp(np.array(self.logs) - self.log_prob)

    def smoothed(self) -> torch.Tensor:
        length = len(self.paths[0])
        probs = np.zeros((length, length))
        for path, weight in zip(self.paths, self.weights, strict=True):
            probs[np.arange(length), path] += weight
        return torch.tensor(probs)

    def levels(self) -> tuple[np.ndarray, np.ndarray]:
        length = len(self.paths[0])
        first, second = np.zeros(length), np.zeros(length)
        for parts, weight in zip(self.segments, self.weights, strict=True):
            for start, end, mean, spread in parts:
                for t in range(start, end):
                    x = np.array([X[t], 1.0]) if np.ndim(mean) else np.ones(1)
                    m, v = float(x @ np.atleast_1d(mean)), float(x @ np.atleast_2d(spread) @ x)
                    first[t] += weight * m
                    second[t] += weight * (v + m * m)
        return first, np.sqrt(second - first**2)


def made(name: str, hazard: Any = 0.3) -> ss.StateSpace:
    return ss.changepoints(SEGMENTS[name][0](), hazard=hazard)


def given(name: str, length: int = 7) -> dict[str, Any]:
    return {"inputs": torch.tensor(X[:length])} if name == "regression" else {}


def gapped(name: str) -> list[Any]:
    y: list[Any] = list(SEGMENTS[name][2])
    y[0] = y[3] = math.nan
    return y


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("name", SEGMENTS)
def test_everything_equals_the_sum_over_all_segmentations(name: str, gaps: bool):
    y = gapped(name) if gaps else SEGMENTS[name][2]
    model, truth = made(name), Truth(name, y, geometric(0.3))
    assert model.log_prob(y, **given(name)).item() == pytest.approx(truth.log_prob, abs=1e-9)
    assert_close(model.smooth(y, **given(name)).probs, truth.smoothed(), **TIGHT)
    filtered = model.filter(y, **given(name))
    for t in (1, 3, 6, 7):
        sooner = Truth(name, y[:t], geometric(0.3))
        assert_close(filtered.probs[t - 1, :t], sooner.smoothed()[-1], **TIGHT)
        assert filtered.steps[:t].sum().item() == pytest.approx(sooner.log_prob, abs=1e-9)
    mean, deviation = ss.segment_means(model, y, **given(name))
    first, second = truth.levels()
    np.testing.assert_allclose(mean[:, 0], first, atol=1e-9)
    np.testing.assert_allclose(deviation[:, 0], second, atol=1e-8)
    filled = model.impute(y, **given(name))
    assert_close(
        filled[:, 0], torch.where(torch.tensor(y).isnan(), mean[:, 0], torch.tensor(y, dtype=torch.float64)), **TIGHT
    )


@pytest.mark.parametrize("k", [1, 3, 70])
def test_the_k_best_segmentations(k: int):
    y = SEGMENTS["gaussian"][2]
    truth = Truth("gaussian", y, geometric(0.3))
    paths, score = made("gaussian").decode(y, k=k)
    order = np.argsort(-np.array(truth.logs))[:k]
    assert_close(score[: len(order)], torch.tensor(np.array(truth.logs)[order]), **TIGHT)
    for j, i in enumerate(order):
        assert paths[:, j].tolist() == truth.paths[i]
    assert bool((score[64:] == -math.inf).all())


@pytest.mark.parametrize(
    "law", [ss.PoissonDurations(1, longest=4), ss.FreeDurations(1, longest=9), ss.NegativeBinomialDurations(longest=5)]
)
def test_any_law_of_durations(law: Any):
    model, y = made("poisson", law), SEGMENTS["poisson"][2]
    with torch.no_grad():
        probs = model.transition.durations.probs()[0].numpy()
    truth = Truth("poisson", y, np.pad(probs, (0, 20)))
    assert model.log_prob(y).item() == pytest.approx(truth.log_prob, abs=1e-9)
    smoothed = model.smooth(y).probs
    assert_close(torch.nn.functional.pad(smoothed, (0, 7 - smoothed.shape[1])), truth.smoothed(), **TIGHT)
    path, _ = model.decode(y, k=2)
    order = np.argsort(-np.array(truth.logs))[:2]
    assert path.T.tolist() == [truth.paths[i] for i in order]
    model.log_prob(y).backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


def test_a_law_that_forbids_short_segments():
    law = ss.FreeDurations(1, longest=6).double()
    law.set_probs(torch.tensor([[0.0, 0.0, 0.5, 0.0, 0.2, 0.3]], dtype=torch.float64))
    model, y = made("gaussian", law), SEGMENTS["gaussian"][2]
    truth = Truth("gaussian", y, np.pad([0.0, 0.0, 0.5, 0.0, 0.2, 0.3], (0, 20)))
    assert model.log_prob(y).item() == pytest.approx(truth.log_prob, abs=1e-9)
    assert_close(torch.nn.functional.pad(model.smooth(y).probs, (0, 1)), truth.smoothed(), **TIGHT)
    model.log_prob(y).backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.emission.parameters())


@pytest.mark.parametrize("name", SEGMENTS)
def test_gradients(name: str):
    model, y = made(name), torch.tensor(gapped(name)[:5]).double()
    parameters = list(model.parameters())

    def value(*values: torch.Tensor) -> torch.Tensor:
        names = [n for n, _ in model.named_parameters()]
        keep = {"inputs": torch.tensor(X[:5])} if name == "regression" else {}
        return torch.func.functional_call(
            _Value(model, keep), {f"model.{n}": v for n, v in zip(names, values, strict=True)}, (y,)
        )

    assert torch.autograd.gradcheck(value, [p.detach().clone().requires_grad_() for p in parameters], atol=1e-6)


class _Value(torch.nn.Module):
    def __init__(self, model: Any, keep: dict[str, Any]):
        super().__init__()
        self.model, self.keep = model, keep

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return self.model.log_prob(y, **self.keep)


@pytest.mark.parametrize("name", SEGMENTS)
def test_a_carried_belief_a_stream_and_a_ragged_batch_equal_the_whole(name: str, tmp_path: Path):
    model, y = made(name), gapped(name)
    x = {} if name != "regression" else {"inputs": torch.tensor(X)[:, None]}
    part = lambda a, b: {k: v[a:b] for k, v in x.items()}  # noqa: E731
    whole, smoothed = model.filter(y, **x), model.smooth(y, **x)
    first = model.filter(y[:3], **part(0, 3))
    rest = model.filter(y[3:], belief=first.belief, **part(3, 7))
    assert_close(first.log_prob + rest.log_prob, whole.log_prob, **TIGHT)
    assert_close(rest.probs, whole.probs[3:], **TIGHT)
    assert_close(model.smooth(y[3:], belief=first.belief, **part(3, 7)).probs, smoothed.probs[3:], **TIGHT)
    stream = model.stream(lag=2)
    for t, value in enumerate(y):
        stream.update(value, None if not x else x["inputs"][t])
        assert_close(stream.state.log_probs[0].exp(), whole.probs[t, : t + 1], **TIGHT)
        if t >= 2:
            sooner = model.smooth(y[: t + 1], **part(0, t + 1)).probs[t - 2]
            assert_close(stream.lagged.log_probs[0].exp(), sooner[: t - 1], **TIGHT)
        if t == 3:
            stream.save(tmp_path / "stream.safetensors")
            stream = model.stream(lag=2).resume(tmp_path / "stream.safetensors")
    assert_close(stream.log_prob, whole.log_prob, **TIGHT)
    ends = [2, 7, 4]
    ragged = {"inputs": [x["inputs"][:n] for n in ends]} if x else {}
    many = model.smooth([y[:n] for n in ends], **ragged)
    level = ss.segment_means(model, [y[:n] for n in ends], **ragged)
    paths = model.decode([y[:n] for n in ends], **ragged)
    for i, n in enumerate(ends):
        alone = model.smooth(y[:n], **part(0, n))
        assert_close(many.probs[i][:, :n], alone.probs, **TIGHT)
        assert_close(many.log_prob[i], alone.log_prob, **TIGHT)
        assert_close(level.mean[i], ss.segment_means(model, y[:n], **part(0, n)).mean, **TIGHT)
        assert paths[i].tolist() == model.decode(y[:n], **part(0, n)).tolist()


@pytest.mark.parametrize("name", SEGMENTS)
def test_the_kernel_is_the_scan(name: str, monkeypatch: pytest.MonkeyPatch):
    """In windows of three steps, of the seven and four; after a belief carried in; with few run lengths."""
    monkeypatch.setattr("statespan.kernels.run_lengths.WINDOW", 3)
    keep = ("log_prob", "filtered", "predicted", "last")
    laws = [(0.3, None), (ss.PoissonDurations(longest=4), None), (0.3, 3), (ss.PoissonDurations(longest=4), 3)]
    for hazard, few in laws:
        model, method = made(name, hazard), RunLengthFilter(few)
        inputs = {"inputs": [torch.tensor(X), torch.tensor(X[:4])]} if name == "regression" else {}
        data, _ = ss.verbs.ask(model, [gapped(name), gapped(name)[:4]], **inputs)
        with torch.no_grad():
            belief = run(model, method, data, keep=("last",), kernel=False).last
        for before in (None, belief):
            fast, slow = (run(model, method, data, before, keep, kernel=k) for k in (True, False))
            assert_close(fast.log_prob, slow.log_prob, **TIGHT)
            for what in keep[1:]:
                one, other = getattr(fast, what), getattr(slow, what)
                live = one.log_probs > -torch.inf
                assert_close(one.log_probs, other.log_probs, **TIGHT)
                assert torch.equal(one.ages[live], other.ages[live])
                assert_close(one.lost, other.lost, **TIGHT)
                for a, b in zip(one.sums, other.sums, strict=True):  # of a row without probability they are anything
                    assert_close(a[live], b[live], **TIGHT)
            free = list(model.parameters())
            assert_close(*[torch.autograd.grad(answer.log_prob.sum(), free) for answer in (fast, slow)], **TIGHT)
            prepared = prepare(model, method, data, belief=before)
            back = smooth_backward(model, method, prepared, before, data.shape)
            found = method.hindsight(model, prepared, before, data).smoothed
            assert_close(found.log_probs.exp(), back.log_probs.exp(), **TIGHT)


def test_hindsight_is_the_backward_pass_and_drawn_paths_follow_it():
    model, y = made("gaussian"), gapped("gaussian")
    data, _ = ss.verbs.ask(model, y)
    method = RunLengthFilter()
    back = smooth_backward(model, method, prepare(model, method, data), None, data.shape)
    assert_close(back.log_probs[:, 0].exp(), model.smooth(y).probs, **TIGHT)
    paths = model.sample_posterior(y, n=4000, seed=0)
    truth = Truth("gaussian", y, geometric(0.3))
    share = {tuple(path): weight for path, weight in zip(truth.paths, truth.weights, strict=True)}
    found = {path: 0 for path in share}
    for path in paths.tolist():
        found[tuple(path)] += 1
    chi2 = sum((found[p] - 4000 * w) ** 2 / (4000 * w) for p, w in share.items() if 4000 * w > 5)
    assert chi2 < 110


def test_labels_are_known_run_lengths():
    model, y = made("poisson"), SEGMENTS["poisson"][2]
    truth = Truth("poisson", y, geometric(0.3))
    wanted = [log for path, log in zip(truth.paths, truth.logs, strict=True) if path[3] == 0 and path[5] == 2]
    found = model.log_prob(y, states=[-1, -1, -1, 0, -1, 2, -1]).item()
    assert found == pytest.approx(scipy.special.logsumexp(wanted), abs=1e-9)
    with pytest.raises(ss.StatespanError, match="run lengths as labels"):
        model.log_prob(y, states=torch.ones(7, 3, dtype=torch.bool))


def test_few_run_lengths_are_a_lower_bound_that_rises_to_all():
    torch.manual_seed(0)
    y = torch.tensor([0.0, 4.0, 1.0]).repeat_interleave(20) + torch.randn(60)
    model = ss.changepoints(ss.GaussianSegment(), hazard=1 / 20)
    exact = model.log_prob(y).item()
    values = [model.log_prob(y, method=RunLengthFilter(keep=n)).item() for n in (3, 10, 40, 60)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(exact, abs=1e-9)
    assert exact - values[1] < 1.0
    assert exact - values[2] < 1e-6
    few = RunLengthFilter(keep=10)
    answer = model.smooth(y, method=few)
    assert answer.probs.shape == answer.values["ages"].shape == (60, 10)
    assert not answer.exact
    assert_close(answer.probs[:, 0], model.smooth(y).probs[:, 0], rtol=0, atol=0.05)
    assert model.decode(y, method=few).tolist() == model.decode(y).tolist()
    assert_close(ss.segment_means(model, y, method=few).mean, ss.segment_means(model, y).mean, rtol=0, atol=0.1)
    assert bool((answer.values["ages"][:, 1:] > answer.values["ages"][:, :-1]).all())
    lost = model.filter(y, method=few).values["lost"]
    assert bool((lost[:10] == 0).all())
    assert bool((lost[1:] >= lost[:-1]).all())
    assert model.filter(y).values["lost"].tolist() == [0.0] * 60
    one, other = (model.forecast(y, steps=2, method=method).mean for method in (few, None))
    assert_close(one, other, rtol=0, atol=0.02)


def test_what_was_lost_is_on_average_at_least_what_the_dropped_were_worth():
    """Over all series of nine bits, by their probabilities under the model itself."""
    model = ss.changepoints(ss.BernoulliSegment(ones=0.4, zeros=0.4), hazard=0.3)
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=9)))[..., None]
    exact, few = model.filter(every), model.filter(every, method=RunLengthFilter(keep=3))
    chance = exact.log_prob.exp()
    gone = (chance * (1 - (few.log_prob - exact.log_prob).exp())).sum().item()
    lost = (chance * few.values["lost"][:, -1]).sum().item()
    assert 0.02 < gone <= lost < 2 * gone


def test_a_series_that_would_not_fit_is_refused_and_a_long_one_is_quick_with_few():
    model, y = ss.changepoints(hazard=0.01), torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ss.StatespanError, match=r"20000 steps by 20000 run lengths .*RunLengthFilter\(keep="):
        model.smooth(y)
    few = RunLengthFilter(keep=10)
    answer = model.filter(y, method=few)
    assert answer.probs.shape == (20_000, 10)
    assert answer.log_prob.item() == pytest.approx(model.log_prob(y, method=few).item(), abs=1e-9)


def test_forecasts_are_exact_mixtures():
    """One segment after another by hand: with probability (1 - h)^s the present segment, else the prior."""
    model, y = made("gaussian"), SEGMENTS["gaussian"][2]
    ahead = model.forecast(y, steps=3, samples=4000, seed=0)
    probs, h = model.filter(y).probs[-1], 0.3
    levels = [0.1, 0.5, 0.9]
    found = ahead.quantile(levels)[..., 0]
    for s in range(3):
        share = [(1 - h) ** (s + 1) * p for p in probs] + [1 - (1 - h) ** (s + 1)]
        laws = []
        for r in [*range(7), -1]:
            seen = np.array(y[7 - r - 1 :] if r >= 0 else [])
            n, m, k, a, b = len(seen), 0.5, 0.7, 1.4, 0.8
            centre = seen.mean() if n else 0.0
            kn, an = k + n, a + n / 2
            bn = b + 0.5 * ((seen - centre) ** 2).sum() + k * n * (centre - m) ** 2 / (2 * kn)
            laws.append(scipy.stats.t(2 * an, (k * m + n * centre) / kn, math.sqrt(bn * (kn + 1) / (an * kn))))
        for level, value in zip(levels, found[:, s].tolist(), strict=True):
            assert sum(float(p) * law.cdf(value) for p, law in zip(share, laws, strict=True)) == pytest.approx(
                level, abs=1e-9
            )
        mean = sum(float(p) * law.mean() for p, law in zip(share, laws, strict=True))
        assert ahead.mean[s, 0].item() == pytest.approx(mean, abs=1e-9)
    drawn = torch.quantile(ahead.samples[..., 0], torch.tensor(levels).double(), dim=0)
    assert_close(drawn, found, rtol=0, atol=0.25)
    assert ahead.exact


@pytest.mark.parametrize("name", ["poisson", "bernoulli"])
def test_quantiles_of_counts_are_counts(name: str):
    model, y = made(name), SEGMENTS[name][2]
    ahead = model.forecast(y, steps=2, samples=4000, seed=0)
    for level in (0.05, 0.5, 0.95):
        q = ahead.quantile(level)
        assert bool((ahead.distribution.cdf(q[None])[0] >= level).all())
        assert bool((ahead.distribution.cdf(q[None] - 1)[0] < level).all())
    drawn = ahead.samples[..., 0]
    assert_close(drawn.double().mean(0), ahead.mean[:, 0], rtol=0, atol=0.15)


def test_samples_follow_the_density():
    """All series of four bits."""
    model = made("bernoulli")
    every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)))[..., None]
    p = model.log_prob(every).exp().detach()
    assert p.sum().item() == pytest.approx(1.0, abs=1e-9)
    states, y = model.sample(8000, 4, seed=1)
    counts = torch.bincount((y[..., 0].long() * torch.tensor([8, 4, 2, 1])).sum(1), minlength=16)
    chi2 = ((counts - 8000 * p) ** 2 / (8000 * p)).sum().item()
    assert chi2 < 15 + 4.5 * math.sqrt(30)
    assert bool((states[:, 0] == 0).all())
    assert bool(((states[:, 1:] == 0) | (states[:, 1:] == states[:, :-1] + 1)).all())
    assert (states[:, 1:] == 0).double().mean().item() == pytest.approx(0.3, abs=0.02)


def test_columns_change_together_and_one_may_be_missing():
    y = torch.tensor([[0.2, 9.0], [math.nan, 8.5], [3.1, 1.0], [2.9, math.nan]])
    one = lambda: ss.GaussianSegment(2, mean=[0.5, 4.0], strength=[0.7, 1.0], shape=1.4, scale=0.8)  # noqa: E731
    model = ss.changepoints(one(), hazard=0.3)
    logs = []
    for cuts in itertools.product([False, True], repeat=3):
        starts = [0, *[t + 1 for t, cut in enumerate(cuts) if cut]]
        log = sum(math.log(0.3) if cut else math.log(0.7) for cut in cuts)
        for start, end in zip(starts, [*starts[1:], 4], strict=True):
            alone = ss.changepoints(one(), hazard=1e-12)
            log += alone.log_prob(y[start:end]).item()
        logs.append(log)
    assert model.log_prob(y).item() == pytest.approx(scipy.special.logsumexp(logs), abs=1e-9)


def test_saved_and_loaded(tmp_path: Path):
    for name in SEGMENTS:
        model = made(name, 0.05)
        model.save(tmp_path / "model.safetensors")
        again, y = ss.load(tmp_path / "model.safetensors"), gapped(name)
        assert torch.equal(again.log_prob(y, **given(name)), model.log_prob(y, **given(name)))


def test_fitted_from_where_the_data_lie():
    torch.manual_seed(3)
    means = torch.tensor([0.0, 40, -30, 10, 60, -10])
    y = 500 + means.repeat_interleave(20) + 2 * torch.randn(120)
    model = ss.changepoints(ss.GaussianMeanSegment(), hazard=0.01)
    model.fit(y, by=ss.LBFGS(iterations=12), restarts=2, seed=0)
    assert model.emission.variance.item() == pytest.approx(4.0, rel=0.4)
    assert 300 < model.emission.spread.item() < 2500
    assert 0.02 < model.transition.durations.rate.item() < 0.07
    assert (model.decode(y) == 0).nonzero()[:, 0].tolist() == list(range(0, 120, 20))


def test_an_outlier_of_eight_hundred_nats_is_forgotten_by_no_rounding():
    law = ss.FreeDurations(1, longest=20)
    probs = torch.zeros(1, 20).double()
    probs[0, -1] = 1.0  # segments of twenty steps, no other
    law.set_probs(probs)
    model = ss.changepoints(ss.GaussianMeanSegment(spread=1.0, variance=1.0), hazard=law)
    y = torch.zeros(15)
    y[7] = 60.0
    assert model.log_prob(y).item() == pytest.approx(
        scipy.stats.multivariate_normal(np.zeros(15), np.eye(15) + 1).logpdf(y.numpy()), abs=1e-9
    )


def test_refusals():
    with pytest.raises(ss.StatespanError, match=r"a hazard of 1\.5 is no probability"):
        ss.changepoints(hazard=1.5)
    with pytest.raises(ss.StatespanError, match="give a probability, or a law"):
        ss.changepoints(hazard="often")
    with pytest.raises(ss.StatespanError, match="no segment"):
        ss.changepoints(ss.Gaussian(1))
    with pytest.raises(ss.StatespanError, match="one law"):
        ss.changepoints(hazard=ss.PoissonDurations(3, longest=5))
    with pytest.raises(ss.StatespanError, match=r"PoissonSegment\(scale=-1.0\): give finite numbers above 0"):
        ss.PoissonSegment(scale=-1.0)
    with pytest.raises(ss.StatespanError, match=r"GaussianSegment\(mean=\) is \(2,\)"):
        ss.GaussianSegment(mean=[1.0, 2.0])
    with pytest.raises(ss.StatespanError, match="emission is of counts"):
        made("poisson").log_prob([1.5])
    with pytest.raises(ss.StatespanError, match="takes 1 inputs a step and none"):
        made("regression").log_prob([1.5])
    with pytest.raises(ss.StatespanError, match="keep at least two"):
        ss.RunLengthFilter(keep=1)
    with pytest.raises(ss.StatespanError, match="RunLengthFilter does not accept"):
        ss.segment_means(ss.level(), [1.0, 2.0])
    with pytest.raises(ss.StatespanError, match="fit by SGD"):
        made("poisson").fit([1.0, 2.0], by=ss.EM())


def test_a_stream_that_keeps_few_run_lengths_is_the_filter_that_does():
    model, y, few = made("gaussian", 0.1), SEGMENTS["gaussian"][2] * 2, RunLengthFilter(keep=3)
    whole = model.filter(y, method=few)
    stream = model.stream(method=few, lag=2)
    for t, value in enumerate(y):
        stream.update(value)
        assert_close(stream.state.log_probs[0].exp(), whole.probs[t], **TIGHT)
    assert_close(stream.log_prob, whole.log_prob, **TIGHT)
    assert_close(stream.lagged.log_probs[0].exp(), model.smooth(y, method=few).probs[-3], **TIGHT)
    assert model.sample_posterior(y, n=2, seed=0, method=few).shape == (2, 14)
