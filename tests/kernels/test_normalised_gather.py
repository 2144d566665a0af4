"""`column_logsumexp` and `gather_log_softmax` against torch."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from statespan.kernels.normalised_gather import column_logsumexp, gather_log_softmax

RELATIVE = {torch.float32: 1e-6, torch.float64: 1e-13}


def example(V: int, K: int, N: int, dtype: torch.dtype, biased: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(V + K)
    weight = (3 * torch.randn(V, K, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
    bias = torch.randn(V, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() if biased else None
    return weight, bias, torch.randint(0, V, (N,), generator=generator)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (40, 8), (37, 17), (1000, 4), (3000, 70)])
def test_agrees_with_torch(dtype: torch.dtype, biased: bool, shape: tuple[int, int]) -> None:
    weight, bias, index = example(*shape, 60, dtype, biased)
    tolerance = RELATIVE[dtype]
    scores = weight.double() if bias is None else weight.double() + bias.double()[:, None]
    normaliser = column_logsumexp(weight, bias)
    assert normaliser.dtype == dtype and not normaliser.requires_grad
    torch.testing.assert_close(normaliser.double(), scores.logsumexp(0).detach(), rtol=tolerance, atol=tolerance)
    got = gather_log_softmax(weight, bias, normaliser, index)
    expected = scores.log_softmax(0)[index]
    torch.testing.assert_close(got.double(), expected, rtol=3 * tolerance, atol=3 * tolerance)
    g = torch.randn(got.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    leaves = [weight] if bias is None else [weight, bias]
    for a, b in zip(
        torch.autograd.grad(got, leaves, g), torch.autograd.grad(expected, leaves, g.double()), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=10 * tolerance, atol=30 * tolerance)


def test_gradcheck() -> None:
    weight, bias, index = example(9, 5, 7, torch.float64, True)

    def function(weight: Tensor, bias: Tensor) -> Tensor:
        return gather_log_softmax(weight, bias, column_logsumexp(weight, bias), index)

    assert bias is not None
    assert torch.autograd.gradcheck(function, (weight, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_infinities_and_extremes(dtype: torch.dtype) -> None:
    weight = torch.randn(50, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    weight[:, 0] = -math.inf
    weight[:33, 1] = -math.inf
    weight[3, 2] = math.inf
    weight[:, 3] += 1e4
    weight[:, 4] -= 1e4
    weight[7, 5] = math.nan
    weight[:, 19] = -math.inf
    weight[40, 19] = 0
    tolerance = RELATIVE[dtype]
    torch.testing.assert_close(
        column_logsumexp(weight), weight.logsumexp(0), rtol=tolerance, atol=tolerance, equal_nan=True
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_exponential_is_accurate_everywhere(dtype: torch.dtype) -> None:
    low, high = (-87.0, 88.0) if dtype == torch.float32 else (-708.0, 709.0)
    x = torch.linspace(low, high, 200_000, dtype=torch.float64).to(dtype)
    # A column of one row: the gradient is g - exp(x - normaliser) g, with a normaliser of our choice.
    weight = x[None].clone().requires_grad_()
    value = torch.ops.statespan.gather_log_softmax(weight, None, torch.zeros_like(x), torch.tensor([0]))
    (g,) = torch.autograd.grad(value.sum(), weight)
    expected = 1 - x.double().exp()
    error = ((g[0].double() - expected).abs() / (1 + x.double().exp())).max().item()
    assert error < (2e-7 if dtype == torch.float32 else 5e-16)


@pytest.mark.usefixtures("two_threads")
def test_two_callers_at_once() -> None:
    weight, bias, index = example(2000, 40, 500, torch.float64, True)

    def all_of_it(_: int) -> list[Tensor]:
        assert bias is not None
        value = gather_log_softmax(weight, bias, column_logsumexp(weight, bias), index)
        return [value, *torch.autograd.grad(value.square().sum(), (weight, bias))]

    expected = all_of_it(0)
    with ThreadPoolExecutor(2) as pool:
        for got in pool.map(all_of_it, range(6)):
            for a, b in zip(got, expected, strict=True):
                assert a.equal(b)


def test_nothing_to_gather() -> None:
    weight, bias, _ = example(6, 3, 1, torch.float64, True)
    value = gather_log_softmax(weight, bias, column_logsumexp(weight, bias), torch.zeros(0, dtype=torch.int64))
    assert value.shape == (0, 3)
    assert torch.autograd.grad(value.sum(), weight)[0].eq(0).all()


def test_wrong_arguments() -> None:
    weight, bias, index = example(6, 3, 2, torch.float64, True)
    normaliser = column_logsumexp(weight, bias)
    with pytest.raises(ValueError, match=r"bias must be \(6,\)"):
        column_logsumexp(weight, normaliser)
    with pytest.raises(ValueError, match=r"normaliser must be \(3,\)"):
        gather_log_softmax(weight, bias, normaliser[:2], index)
    with pytest.raises(ValueError, match="int64"):
        gather_log_softmax(weight, bias, normaliser, index.int())
    with pytest.raises(ValueError, match=r"\(V, K\)"):
        column_logsumexp(index)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("biased", [False, True])
def test_opcheck(biased: bool) -> None:
    weight, bias, index = example(6, 3, 4, torch.float64, biased)
    normaliser = column_logsumexp(weight, bias)
    torch.library.opcheck(torch.ops.statespan.gather_log_softmax, (weight, bias, normaliser, index))
    torch.library.opcheck(
        torch.ops.statespan.column_logsumexp, (weight.detach(), None if bias is None else bias.detach())
    )
