"""`diagonal_normal` against torch's normal distribution, and an emission without a gradient against one with it."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

import statespan as ss
from statespan.kernels import diagonal_normal


def example(rows: int, dim: int, states: int, dtype: torch.dtype, gaps: bool) -> tuple[Tensor, ...]:
    """Rows, what is there of them, means, logarithms of deviations, weights."""
    generator = torch.Generator().manual_seed(rows + dim + states)
    y, mean, scale = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in ((rows, dim), (states, dim), (states, dim))
    )
    there = torch.rand(rows, dim, generator=generator) < (0.7 if gaps else 2.0)
    return y, there, mean, scale, torch.rand(rows, states, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 5), (130, 5, 3), (1500, 8, 16)])
def test_agrees_with_torch(dtype: torch.dtype, gaps: bool, shape: tuple[int, int, int]) -> None:
    y, there, mean, scale, weights = example(*shape, dtype, gaps)
    small = 1e-11 if dtype == torch.float64 else 1e-3

    def close(got: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(got.double(), expected, atol=small, rtol=small)

    each = Normal(mean.double(), scale.double().exp()).log_prob(y.double()[:, None])
    expected = (each * there[:, None]).sum(-1)
    mask = there if gaps else None
    close(diagonal_normal.densities(y, mask, mean, scale)[0], expected)
    value, top = diagonal_normal.densities(y, mask, mean, scale, scaling=True)
    close(value, (expected - expected.amax(1, keepdim=True)).exp())
    close(top, expected.amax(1))
    w, x = weights.double()[:, :, None] * there[:, None], y.double()[:, None] - mean.double()
    got = diagonal_normal.sums(y, mask, mean, weights)
    for part, whole in zip(got, (weights.double(), w, w * x, w * x.square()), strict=True):
        close(part, whole.sum(0))
    with pytest.MonkeyPatch.context() as patch:  # as on other devices
        patch.setattr(diagonal_normal, "usable", lambda *_: False)
        for part, other in zip(diagonal_normal.sums(y, mask, mean, weights), got, strict=True):
            close(part, other.double())


@pytest.mark.parametrize("kind", ["diagonal", "spherical"])
@pytest.mark.parametrize("gaps", [False, True])
def test_the_same_with_and_without_a_gradient(kind: str, gaps: bool) -> None:
    y, there, *_ = example(40, 3, 4, torch.float64, gaps)
    part = ss.hmm(states=4, emission=ss.Gaussian(dim=3, covariance=kind), seed=0).emission
    y, there = y[:, None], there[:, None]
    with_gradient = part.likelihood(y, None, there, ())
    with torch.no_grad():
        without = part.likelihood(y, None, there, ())
        log = part.log_likelihood(y, None, there, ())
    assert with_gradient[0].requires_grad
    for a, b in zip(without, with_gradient, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(log, part.log_likelihood(y, None, there, ()))


def test_nothing_cancels_far_from_zero() -> None:
    """Squares about zero would lose all digits: 1e8 squared is 1e16."""
    y, mean = torch.tensor([[1e8 + 1]], dtype=torch.float64), torch.tensor([[1e8], [-1e8]], dtype=torch.float64)
    log, _ = diagonal_normal.densities(y, None, mean, torch.zeros_like(mean))
    assert log[0, 0].item() == Normal(0.0, 1.0).log_prob(torch.tensor(1.0, dtype=torch.float64)).item()
    assert diagonal_normal.sums(y, None, mean, torch.ones(1, 2, dtype=torch.float64))[3][0].item() == 1.0
