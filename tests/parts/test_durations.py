"""Semi-Markov and higher-order chains against every path enumerated, and a geometric law against the plain chain."""

import itertools
import math

import pytest
import torch
from brute import by_path
from torch.testing import assert_close

import statespan as ss

TIGHT = {"rtol": 1e-10, "atol": 1e-10}
EMISSION = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.1, 0.7]], dtype=torch.float64)
LAWS = {
    "free": lambda: ss.FreeDurations(longest=4, concentration=1.2),
    "poisson": lambda: ss.PoissonDurations(longest=4),
    "negative-binomial": lambda: ss.NegativeBinomialDurations(longest=4),
    "geometric": lambda: ss.GeometricDurations(longest=4),
}


def rises(history: list[float], slack: float = 1e-8) -> bool:
    return all(b >= a - slack for a, b in itertools.pairwise(history))


def chain(law: str) -> ss.StateSpace:
    return ss.semi_markov(3, 4, ss.Categorical(probs=EMISSION.tolist()), LAWS[law](), [0.5, 0.3, 0.2], seed=1)


def printed(law: str, part) -> torch.Tensor:
    """p(d | k), (K, 4), each formula as it is printed, then cut at 4."""
    n = torch.arange(4, dtype=torch.float64)
    if law == "free":
        return part.logits.softmax(-1).detach()
    if law == "poisson":
        p = torch.distributions.Poisson(part.log_rate.exp()[:, None]).log_prob(n).exp()
    elif law == "geometric":
        q = part.logit.sigmoid()[:, None]
        p = (1 - q) * q**n
    else:
        size = part.log_size.exp()[:, None]
        p = torch.distributions.NegativeBinomial(size, logits=part.logit[:, None], validate_args=False)
        p = p.log_prob(n).exp()
    return (p / p.sum(-1, keepdim=True)).detach()


def log_of_segments(law: str, model: ss.StateSpace):
    """Log p of a path of states: its segments one by one, the last one by the law's tail."""
    durations, jumps = printed(law, model.transition.durations), model.transition.jumps.probs.detach()
    initial = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)

    def log(z: tuple[int, ...]) -> torch.Tensor:
        segments = [(k, len(list(group))) for k, group in itertools.groupby(z)]
        p = initial[segments[0][0]]
        for (k, d), (l, _) in itertools.pairwise(segments):
            p = p * (durations[k, d - 1] if d <= 4 else 0.0) * jumps[k, l]
        k, d = segments[-1]
        return (p * durations[k, d - 1 :].sum()).log()

    return log


@pytest.mark.parametrize("law", LAWS)
def test_answers_equal_enumeration(law: str, tmp_path):
    model, y = chain(law), torch.tensor([0, 0, 2, 1, 1, 1, 2])
    with torch.no_grad():
        for p in model.transition.durations.parameters():
            p.add_(0.3 * torch.randn_like(p))
    assert_close(model.transition.durations.probs().detach(), printed(law, model.transition.durations), **TIGHT)
    truth = by_path(log_of_segments(law, model), EMISSION.log().T[y], 3)
    assert_close(model.log_prob(y).detach(), truth.log_prob, **TIGHT)
    assert_close(model.smooth(y).probs, truth.smoothed, **TIGHT)
    assert_close(model.smooth(y, pairs=True).pairs, truth.pairs, **TIGHT)
    paths, scores = model.decode(y, k=3)
    assert paths[:, 0].tolist() == truth.path
    assert_close(scores[0], truth.score, **TIGHT)
    assert len({tuple(p) for p in paths.T.tolist()}) == 3, "each public path once"
    log = log_of_segments(law, model)
    for path, score in zip(paths.T.tolist(), scores, strict=True):
        assert_close(log(path) + sum(EMISSION.log()[k, v] for k, v in zip(path, y, strict=True)), score, **TIGHT)
    model.save(tmp_path / "m.safetensors")
    assert_close(ss.load(tmp_path / "m.safetensors").log_prob(y), model.log_prob(y), rtol=0, atol=0)
    ragged = model.log_prob([y, y[:3]])
    assert_close(ragged[1], model.log_prob(y[:3]), **TIGHT)
    model.log_prob(y).backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())
    assert_close(model.float().log_prob(y).detach(), truth.log_prob, rtol=1e-4, atol=1e-4)


def test_a_gap_a_stream_a_forecast_and_ages():
    model, y = chain("free"), torch.tensor([0, 0, 2, 1, 1])
    fills = y.repeat(3, 1)
    fills[:, 2] = torch.arange(3)
    holes = y.double()
    holes[2] = math.nan
    assert_close(model.log_prob(holes), model.log_prob(fills).logsumexp(0), **TIGHT)
    stream = model.stream()
    for v in y.tolist():
        stream.update(v)
    assert_close(stream.log_prob, model.log_prob(y).detach(), **TIGHT)
    ahead = model.forecast(y, steps=2, samples=10)
    longer = torch.cat([y.expand(3, -1), torch.arange(3)[:, None]], 1)
    assert_close(ahead.probs[0], (model.log_prob(longer) - model.log_prob(y)).exp().detach(), **TIGHT)
    old = ss.ages(model, y)
    assert_close(old.sum(-1), model.smooth(y).probs, **TIGHT)
    log = log_of_segments("free", model)
    paths = list(itertools.product(range(3), repeat=5))
    weight = torch.stack([log(z) + sum(EMISSION.log()[k, v] for k, v in zip(z, y, strict=True)) for z in paths])
    weight = weight.softmax(0)
    truth = torch.zeros(3, 4).double()
    for z, w in zip(paths, weight, strict=True):
        run = len(list(next(g for _, g in itertools.groupby(z[::-1]))))
        if run <= 4:
            truth[z[-1], run - 1] += w
    assert_close(old[-1], truth, **TIGHT)
    with pytest.raises(ss.StatespanError, match="does not keep how long"):
        ss.ages(ss.hmm(states=2, emission=ss.Categorical(3)), [0, 1])


@pytest.mark.parametrize("law", LAWS)
def test_em_rises_to_where_the_slope_is_zero(law: str):
    y = chain("poisson").sample(20, 25, seed=3)[1]
    model = chain(law)
    for p in model.emission.parameters():
        p.requires_grad_(False)
    em = ss.EM(iterations=40, tolerance=0)
    model.fit(y, by=em)
    assert rises(em.history)
    assert em.history[-1] > em.history[0] + 0.1
    free = list(model.transition.durations.parameters())
    value = model.log_prob(y).sum() + model.log_prior()
    slope = max(float(g.abs().max()) for g in torch.autograd.grad(value, free))
    assert slope < 0.5
    first = chain(law)
    start = first.log_prob(y).sum() + first.log_prior()
    before = torch.autograd.grad(start, list(first.transition.durations.parameters()))
    assert slope < 0.15 * max(float(g.abs().max()) for g in before)


def test_a_long_geometric_law_is_the_plain_chain():
    stay = torch.tensor([0.6, 0.7], dtype=torch.float64)
    model = ss.semi_markov(2, 110, ss.Categorical(probs=EMISSION[:2].tolist()), ss.GeometricDurations(longest=110))
    with torch.no_grad():
        model.transition.durations.logit.copy_(stay.logit())
    plain = ss.hmm(transition=[[0.6, 0.4], [0.3, 0.7]], emission=ss.Categorical(probs=EMISSION[:2].tolist()))
    y = plain.sample(3, 60, seed=0)[1]
    assert_close(model.log_prob(y), plain.log_prob(y), rtol=1e-9, atol=1e-9)
    assert_close(model.smooth(y).probs, plain.smooth(y).probs, rtol=1e-8, atol=1e-8)
    assert model.decode(y)[0].tolist() == plain.decode(y)[0].tolist()


def test_a_series_cut_out_of_a_longer_one():
    model = ss.semi_markov(3, 4, ss.Categorical(probs=EMISSION.tolist()), LAWS["poisson"](), ss.Stationary(), seed=1)
    tables = model.transition.constants()
    pi = model.initial.probs()
    assert_close(pi @ model.transition.dense(tables), pi, **TIGHT)
    assert_close(pi.sum().item(), 1.0, **TIGHT)
    em = ss.EM(iterations=5, tolerance=0)
    model.fit(chain("poisson").sample(10, 12, seed=3)[1], by=em)
    assert rises(em.history)


def test_operators_agree_with_the_dense_table():
    for part in (chain("free").transition, ss.HigherOrder(3, order=3).double()):
        tables, n = part.constants(), part.states
        table = part.dense(tables)
        p = torch.rand(4, n).double()
        assert_close(table.sum(-1), torch.ones(n).double(), **TIGHT)
        assert_close(part.push(p, tables), p @ table, **TIGHT)
        assert_close(part.pull(p, tables), p @ table.mT, **TIGHT)


def test_a_long_duration_costs_a_step_linear_in_it():
    model = ss.semi_markov(3, 5000, ss.Categorical(probs=EMISSION.tolist()), seed=0)  # the table would have 2e8 entries
    assert model.log_prob(torch.tensor([0, 1, 1])).isfinite()
    assert model.decode(torch.tensor([0, 1, 1])).shape == (3,)


def test_what_cannot_be_is_named():
    with pytest.raises(ss.StatespanError, match="at least two"):
        ss.semi_markov(1, 4, ss.Categorical(3))
    with pytest.raises(ss.StatespanError, match="jumps have 2 states"):
        ss.SemiMarkov(3, ss.FreeDurations(longest=2), ss.Dense(2))
    fixed = ss.semi_markov(2, 3, ss.Categorical(3), transition=[[0, 1], [1, 0]])
    assert fixed.transition.jumps.probs.tolist() == [[0, 1], [1, 0]]


# -------------------------------------------------------------------------------------------- higher order


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_higher_order_chain_equals_enumeration(order: int, tmp_path):
    move = ss.HigherOrder(order=order)
    model = ss.hmm(3, ss.Categorical(probs=EMISSION.tolist()), [0.5, 0.3, 0.2], move, seed=1)
    y = torch.tensor([0, 2, 1, 1, 2])
    tables = [t.detach().reshape(*[3] * (i + 2)) for i, t in enumerate(model.transition.probs)]

    def log(z: tuple[int, ...]) -> torch.Tensor:
        p = model.initial.probs().detach()[z[0]]
        for t in range(1, len(z)):
            past = z[max(0, t - order) : t]
            p = p * tables[len(past) - 1][(*past, z[t])]
        return p.log()

    truth = by_path(log, EMISSION.log().T[y], 3)
    assert_close(model.log_prob(y).detach(), truth.log_prob, **TIGHT)
    assert_close(model.smooth(y).probs, truth.smoothed, **TIGHT)
    assert model.decode(y).tolist() == truth.path
    rows = chain("poisson").sample(10, 12, seed=3)[1]
    em = ss.EM(iterations=6, tolerance=0)
    model.fit(rows, by=em)
    assert rises(em.history)
    model.save(tmp_path / "m.safetensors")
    assert_close(ss.load(tmp_path / "m.safetensors").log_prob(y), model.log_prob(y), rtol=0, atol=0)


# ------------------------------------------------------------------------------------------------ low rank


def test_low_rank_equals_its_dense_twin(tmp_path):
    model = ss.hmm(4, ss.Categorical(3), transition=ss.LowRank(rank=2), seed=1)
    into, out = (x.detach() for x in model.transition.constants())
    twin = ss.hmm(transition=into @ out, emission=model.emission)
    y = chain("poisson").sample(4, 12, seed=3)[1]
    assert_close(model.log_prob(y), twin.log_prob(y), **TIGHT)
    assert_close(model.smooth(y).probs, twin.smooth(y).probs, **TIGHT)
    assert_close(model.decode(y, k=2)[1], twin.decode(y, k=2)[1], **TIGHT)
    assert_close(model.transition.stationary(), twin.transition.stationary(), **TIGHT)
    em = ss.EM(iterations=10, tolerance=0)
    model.fit(y, by=em)
    assert rises(em.history)
    assert em.history[-1] > em.history[0] + 1
    model.save(tmp_path / "m.safetensors")
    assert_close(ss.load(tmp_path / "m.safetensors").log_prob(y), model.log_prob(y), rtol=0, atol=0)
