"""Every emission against scipy, its M-step against a numerical maximum, its fits against known parameters."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import statespan as ss
from laws import laws
from statespan.tree import leaves

MAKERS: dict[str, Callable[[], Any]] = {
    "poisson": lambda: ss.Poisson(rate=[[0.5, 3.0], [8.0, 20.0]]),
    "bernoulli": lambda: ss.Bernoulli(probs=[[0.1, 0.8], [0.9, 0.4]]),
    "multinomial": lambda: ss.Multinomial(trials=6, probs=[[0.1, 0.2, 0.7], [0.6, 0.3, 0.1]]),
    "negative-binomial": lambda: ss.NegativeBinomial(
        total_count=[[1.5, 4.0], [6.0, 2.0]], probs=[[0.3, 0.8], [0.7, 0.5]]
    ),
    "exponential": lambda: ss.Exponential(rate=[[0.5, 2.0], [5.0, 0.1]]),
    "gamma": lambda: ss.Gamma(concentration=[[0.7, 3.0], [9.0, 2.0]], rate=[[1.0, 2.0], [1.5, 0.2]]),
    "log-normal": lambda: ss.LogNormal(loc=[[0.0, 2.0], [2.0, -1.0]], scale=[[0.5, 1.0], [0.3, 0.4]]),
    "beta": lambda: ss.Beta(concentration1=[[0.8, 3.0], [9.0, 2.0]], concentration0=[[2.0, 2.0], [1.5, 6.0]]),
    "von-mises": lambda: ss.VonMises(loc=[[0.0, 3.0], [2.0, -2.0]], concentration=[[1.0, 5.0], [9.0, 0.5]]),
    "student-t": lambda: ss.StudentT(
        df=[3.0, 8.0],
        loc=[[0.0, 1.0], [6.0, -3.0]],
        scale_matrix=[[[1.0, 0.4], [0.4, 0.5]], [[0.3, 0.0], [0.0, 2.0]]],
    ),
    "gaussian-mixture": lambda: ss.GaussianMixture(
        weights=[[0.3, 0.7], [0.6, 0.4]],
        mean=[[[0.0, 0.0], [2.0, 1.0]], [[8.0, 0.0], [9.0, 5.0]]],
        covariance=[[[[1.0, 0.4], [0.4, 0.5]], [[0.3, 0.0], [0.0, 2.0]]], [[[1.0, 0.2], [0.2, 0.5]]] * 2],
    ),
    "factor-gaussian": lambda: ss.FactorGaussian(
        mean=[[0.0, 1.0, 2.0], [4.0, -3.0, 0.0]],
        loadings=[[[1.0], [0.5], [-1.0]], [[0.2], [1.0], [0.7]]],
        noise=[[0.5, 1.0, 0.3], [1.0, 0.2, 0.4]],
    ),
}
SLOW = {"negative-binomial", "student-t", "gaussian-mixture", "factor-gaussian"}
"""Those whose M-step is one climb of several, as there is something hidden inside."""

names = pytest.mark.parametrize("name", list(MAKERS))


def rises(history: list[float], slack: float = 1e-7) -> bool:
    return all(b >= a - slack for a, b in itertools.pairwise(history))


def drawn(emission: Any, n: int, seed: int = 0) -> torch.Tensor:
    """(n, 1, D) observations of states in turn."""
    torch.manual_seed(seed)
    return emission.forward(torch.arange(n) % emission.states).sample()[:, None]


def holes(y: torch.Tensor, share: float = 0.3) -> torch.Tensor:
    return torch.rand(y.shape) > share


@names
def test_the_density_is_scipys(name: str):
    emission = MAKERS[name]()
    y = drawn(emission, 40)
    observed = holes(y)
    for mask in (None, observed):
        found = emission.log_likelihood(y, None, mask, emission.constants())[:, 0]
        there = np.ones((40, y.shape[-1]), bool) if mask is None else mask[:, 0].numpy()
        truth = [[law.log(*row) for law in laws(emission)] for row in zip(y[:, 0].numpy(), there, strict=True)]
        assert_close(found.detach(), torch.tensor(truth, dtype=torch.float64), rtol=1e-10, atol=1e-10)
    single = emission.float()
    found = single.log_likelihood(y.float(), None, observed, single.constants())[:, 0]
    assert_close(found.detach().double(), torch.tensor(truth, dtype=torch.float64), rtol=2e-5, atol=2e-5)


@names
def test_the_mixture_is_the_weighted_sum(name: str):
    emission = MAKERS[name]()
    y, probs = drawn(emission, 20)[:, 0], torch.tensor([0.3, 0.7]).double()
    mixture = emission.mixture(probs.expand(20, 2), None, emission.constants())
    each = emission.log_likelihood(y[:, None], None, None, emission.constants())[:, 0]
    assert_close(mixture.log_prob(y), (each + probs.log()).logsumexp(-1), rtol=1e-8, atol=1e-8)
    assert mixture.sample().shape == y.shape


@names
def test_what_is_drawn_has_the_moments(name: str):
    emission = MAKERS[name]()
    y = emission.forward(torch.zeros(40_000, dtype=torch.long)).sample()
    if name == "von-mises":
        y = torch.stack([y.cos(), y.sin()], -1).mean(0)
        found, truth = torch.atan2(y[:, 1], y[:, 0]), emission.loc[0].detach()
        assert_close(((found - truth + math.pi) % (2 * math.pi)) - math.pi, torch.zeros(2).double(), rtol=0, atol=0.04)
        return
    truth = torch.as_tensor(laws(emission)[0].mean(y[0].numpy(), np.zeros(y.shape[1], bool)))
    assert bool(((y.mean(0) - truth).abs() < 4.5 * y.std(0) / 200).all())
    if name not in ("student-t", "gaussian-mixture"):
        assert_close(emission.mean[0].detach(), truth)


@names
@pytest.mark.parametrize("gaps", [False, True])
def test_the_m_step_is_the_maximum(name: str, gaps: bool):
    """Where the E-step's sums are taken at the answer, no nearby parameters explain the weighted data better."""
    emission = MAKERS[name]()
    y = drawn(emission, 300)
    own = torch.nn.functional.one_hot(torch.arange(300) % 2, 2)[:, None]
    weights, observed = own * torch.rand(300, 1, 1).double(), holes(y) if gaps else None
    for _ in range(250 if name in SLOW or (gaps and name == "multinomial") else 1):
        emission.maximize(emission.statistics(y, None, weights, observed))
    loss = (weights * emission.log_likelihood(y, None, observed, emission.constants())).sum()
    gradients = torch.autograd.grad(loss, list(emission.parameters()))
    for gradient in gradients:
        gradient = gradient.tril(-1) if gradient.dim() == 3 and gradient.shape[1] == gradient.shape[2] else gradient
        assert float(gradient.abs().max()) < (2e-2 if name in SLOW else 1e-4)


@names
def test_sums_add_up_over_batches(name: str):
    emission = MAKERS[name]()
    y, weights = drawn(emission, 60), torch.rand(60, 1, 2).double()
    observed = holes(y)
    whole = leaves(emission.statistics(y, None, weights, observed))
    parts = [
        leaves(emission.statistics(y[at], None, weights[at], observed[at])) for at in (slice(0, 25), slice(25, 60))
    ]
    for total, first, second in zip(whole, *parts, strict=True):
        assert_close(total, first + second)


@names
@pytest.mark.parametrize("gaps", [0.0, 0.25])
def test_em_climbs_and_finds_the_states(name: str, gaps: float):
    truth = ss.hmm(transition=[[0.95, 0.05], [0.1, 0.9]], emission=MAKERS[name]())
    states, y = truth.sample(8, 120, seed=1)
    y = torch.where(torch.rand(y.shape) < gaps, math.nan, y)
    emission = type(truth.emission)(truth.emission.dim, **({"trials": 6} if name == "multinomial" else {}))
    model, em = ss.hmm(states=2, emission=emission, seed=0), ss.EM(iterations=25, tolerance=0)
    em(model, ss.verbs.ask(model, y)[0], start=True)
    assert rises(em.history)
    assert em.history[-1] > float(truth.log_prob(y).detach().sum()) - 10
    found = torch.stack([model.smooth(row).states for row in y])
    agree = float((found == states).double().mean())
    assert max(agree, 1 - agree) > 0.9


@names
def test_a_state_never_visited_keeps_its_parameters(name: str):
    emission = MAKERS[name]()
    before = {k: v.clone() for k, v in emission.state_dict().items()}
    y, weights = drawn(emission, 50), torch.ones(50, 1, 2).double()
    weights[..., 1] = 0
    emission.maximize(emission.statistics(y, None, weights, None))
    for k, v in emission.state_dict().items():
        kept = len(v) // 2  # a mixture's normals lie state after state
        assert_close(v[kept:], before[k][kept:])
        assert not torch.equal(v[:kept], before[k][:kept])


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("poisson", -2.0, "counts"),
        ("poisson", 1.5, "counts"),
        ("negative-binomial", -1.0, "counts"),
        ("bernoulli", 2.0, "zeros and ones"),
        ("multinomial", 7.0, "sum to 6"),
        ("exponential", -0.5, "0 or more"),
        ("gamma", 0.0, "above 0"),
        ("log-normal", -3.0, "above 0"),
        ("beta", 1.0, "between 0 and 1"),
    ],
)
def test_what_cannot_be_is_named(name: str, value: float, what: str):
    model = ss.hmm(states=2, emission=MAKERS[name]())
    rows = [r for r in model.sample(2, 5, seed=0)[1]]
    rows[1][3, 1] = value
    with pytest.raises(ss.StatespanError, match=f"sequence 1, step 3, column .*{what}.*NaN"):
        model.log_prob(rows)


def test_priors_add_what_they_say():
    y, w = torch.tensor([[[0.0]], [[1.0]], [[3.0]]]).double(), torch.ones(3, 1, 1).double()
    cases = [
        (ss.Poisson(1, 1, prior=(3.0, 2.0)), lambda p: p.rate, (4 + 2) / (3 + 2)),
        (ss.Exponential(1, 1, prior=(3.0, 2.0)), lambda p: p.rate, (3 + 2) / (4 + 2)),
    ]
    for part, read, answer in cases:
        part = part.double()
        part.maximize(part.statistics(y, None, w, None))
        assert_close(read(part).item(), answer)
        value = part.log_likelihood(y, None, None, part.constants()).sum() + part.log_prior()
        (gradient,) = torch.autograd.grad(value, list(part.parameters()))
        assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9)
    part = ss.Bernoulli(1, 1, prior=(3.0, 2.0)).double()
    part.maximize(part.statistics(y.clamp(max=1), None, w, None))
    assert_close(part.probs.item(), (2 + 2) / (3 + 3))
    for wrong in (
        lambda: ss.Poisson(prior=(0.5, 0)),
        lambda: ss.Bernoulli(prior=(0.5, 1)),
        lambda: ss.Multinomial(2, concentration=0.5),
    ):
        with pytest.raises(ss.StatespanError, match="use"):
            wrong()


def test_directions_average_as_directions():
    model = ss.hmm(
        transition=[[0.5, 0.5], [0.5, 0.5]], emission=ss.VonMises(loc=[[3.1], [-3.1]], concentration=[[20.0], [20.0]])
    )
    filled = model.impute(torch.tensor([[3.1], [math.nan], [-3.1]]))
    assert abs(abs(float(filled[1])) - math.pi) < 1e-6
    assert bool(((model.forecast([[3.0]], 2).mean.abs() - math.pi).abs() < 0.2).all())


def test_a_single_value_does_not_explode():
    """Where all of a state's data are one value the floors hold."""
    for emission, value in (
        (ss.Gamma(states=2), 2.0),
        (ss.LogNormal(states=2), 2.0),
        (ss.Beta(states=2), 0.3),
        (ss.VonMises(states=2), 0.3),
        (ss.Exponential(states=2), 0.0),
        (ss.Poisson(states=2), 0.0),
        (ss.Bernoulli(states=2), 1.0),
        (ss.NegativeBinomial(states=2), 0.0),
    ):
        model = ss.hmm(states=2, emission=emission, seed=0)
        y = torch.full((20, 1), value)
        model.fit(y, by=ss.EM(iterations=5))
        assert all(bool(p.isfinite().all()) for p in model.parameters()), type(emission).__name__
        assert bool(model.log_prob(y).isfinite())


def test_held_parameters_stay_and_the_rest_follows():
    emission = ss.Gamma(concentration=[[2.0], [2.0]], rate=[[1.0], [1.0]])
    emission.log_rate.requires_grad_(False)
    y, w = drawn(MAKERS["gamma"](), 200)[..., :1], torch.rand(200, 1, 2).double()
    ss.EM().maximize(
        ss.StateSpace(ss.Start(2), ss.Dense(2), emission),
        ss.method.Statistics(None, None, emission.statistics(y, None, w, None)),
    )
    assert_close(emission.rate, torch.ones(2, 1).double())
    loss = (w * emission.log_likelihood(y, None, None, emission.constants())).sum()
    (gradient,) = torch.autograd.grad(loss, [emission.log_concentration])
    assert float(gradient.abs().max()) < 1e-6
