"""Distribution functions against SciPy; a segment of one's own."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.stats
import torch
from torch.distributions import TransformedDistribution, transforms
from torch.testing import assert_close

import statespan as ss
from statespan.parts.run_mixture import CountCoordinate, RunMixture, StudentCoordinate, incomplete_beta
from statespan.parts.segments import Coefficients
from statespan.sequences import Event

TIGHT = {"rtol": 1e-10, "atol": 1e-13}


def test_incomplete_beta():
    a, b = (x.flatten() for x in torch.meshgrid(*[torch.logspace(-2, 4, 7).double()] * 2, indexing="ij"))
    for x in (1e-9, 0.3, 0.5, 0.999999):
        wanted = torch.tensor(scipy.special.betainc(a.numpy(), b.numpy(), x))
        assert_close(
            incomplete_beta(a, b, torch.tensor(x, dtype=torch.float64), torch.tensor(1 - x, dtype=torch.float64)),
            wanted,
            rtol=1e-9,
            atol=1e-13,
        )


@pytest.mark.parametrize("df", [0.3, 1.0, 7.5, 4000.0])
def test_students_t(df: float):
    law = StudentCoordinate(
        torch.tensor(df, dtype=torch.float64),
        torch.tensor(1.0, dtype=torch.float64),
        torch.tensor(2.0, dtype=torch.float64),
    )
    y = torch.cat([-torch.logspace(-8, 5, 14).double(), torch.zeros(1).double(), torch.logspace(-8, 5, 14).double()])
    assert_close(law.cdf(y), torch.tensor(scipy.stats.t(df, 1.0, 2.0).cdf(y.numpy())), **TIGHT)
    assert law.mean == 1.0
    assert float(law.variance) == (pytest.approx(4 * df / (df - 2)) if df > 2 else np.inf)


@pytest.mark.parametrize(("shape", "rate"), [(0.4, 0.01), (3.0, 1.5), (900.0, 30.0)])
def test_counts(shape: float, rate: float):
    law = CountCoordinate(
        torch.tensor(shape, dtype=torch.float64), logits=-torch.tensor(rate, dtype=torch.float64).log()
    )
    y = torch.cat([torch.tensor([-1.0]), torch.arange(0.0, 60), torch.tensor([0.5, 400.0])]).double()
    assert_close(law.cdf(y), torch.tensor(scipy.stats.nbinom(shape, rate / (1 + rate)).cdf(y.numpy())), **TIGHT)


def test_quantiles_of_a_mixture_whose_parts_lie_far_apart():
    loc = torch.tensor([[0.0], [1e6], [-1e4]]).double()
    each = StudentCoordinate(torch.full((3, 1), 3.0).double(), loc, torch.ones(3, 1).double())
    mixture = RunMixture(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log(), each)
    levels = torch.tensor([0.0, 0.1, 0.45, 0.85, 1.0], dtype=torch.float64)
    found = mixture.quantile(levels)[:, 0]
    assert_close(mixture.cdf(found[1:-1, None])[:, 0], levels[1:-1], rtol=0, atol=1e-10)
    assert_close(found[[1, 3]], torch.tensor([-1e4, 1e6]).double(), rtol=0, atol=1e-3)
    assert found[0] == -torch.inf and found[-1] == torch.inf


class Waiting(NamedTuple):
    number: Any
    time: Any


class Lomax(TransformedDistribution):
    """What an exponential law predicts whose rate has a gamma distribution."""

    whole = False

    def __init__(self, shape: Any, scale: Any):
        self.shape, self.size = shape, scale
        base = torch.distributions.Exponential(shape, validate_args=False)
        grow = [transforms.ExpTransform(), transforms.AffineTransform(-scale, scale)]
        super().__init__(base, grow, validate_args=False)

    @property
    def mean(self) -> Any:
        return torch.where(self.shape > 1, self.size / (self.shape - 1), torch.inf)

    @property
    def variance(self) -> Any:
        return self.mean.square() * torch.where(self.shape > 2, self.shape / (self.shape - 2), torch.inf)

    def cdf(self, value: Any) -> Any:
        return 1 - (1 + value.clamp_min(0) / self.size) ** -self.shape


class ExponentialSegment(ss.Part, ss.Segment):
    """Waiting times whose rate, Gamma(3, 2), changes from segment to segment."""

    def __init__(self):
        super().__init__()
        self.event = Event(1, None, 1)
        self.log_prior_values = torch.nn.Parameter(torch.tensor([[3.0], [2.0]]).double().log())

    def constants(self):
        return self.log_prior_values.exp()

    def sums(self, y, u, there, constants):
        return Waiting(there, y * there)

    def empty(self):
        return Waiting(*[torch.zeros(1).double()] * 2)

    def predictive(self, sums, u, constants):
        return Lomax(constants[0] + sums.number, constants[1] + sums.time)

    def coefficients(self, sums, constants):
        shape, scale = constants[0] + sums.number, constants[1] + sums.time
        mean = scale / (shape - 1)
        return Coefficients(mean[..., None], (mean.square() / (shape - 2))[..., None, None])


def test_a_segment_of_ones_own():
    model, y = ss.changepoints(ExponentialSegment(), hazard=0.2), [0.5, 0.1, 6.0]
    one = lambda *t: scipy.special.gamma(3 + len(t)) / 2 * 2**3 / (2 + sum(t)) ** (3 + len(t))  # noqa: E731
    whole = 0.8**2 * one(*y) + 0.8 * 0.2 * (one(*y[:2]) * one(y[2]) + one(y[0]) * one(*y[1:]))
    whole += 0.2**2 * one(y[0]) * one(y[1]) * one(y[2])
    assert model.log_prob(y).exp().item() == pytest.approx(whole, rel=1e-10)
    assert model.forecast(y, steps=2).quantile([0.1, 0.9]).shape == (2, 2, 1)
    assert model.impute([0.5, None, 6.0]).shape == (3, 1)
    assert bool(model.sample(length=5, seed=0)[1].isfinite().all())
