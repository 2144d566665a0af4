"""`linear_log_softmax_gather` against torch."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from statespan.kernels.linear_cross_entropy import linear_log_softmax_gather


def example(N: int, m: int, V: int, dtype: torch.dtype, biased: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(N + V)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    return draw(N, m), draw(V, m), draw(V) if biased else None, torch.randint(0, V, (N,), generator=generator)


def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor) -> Tensor:
    return linear(hidden, weight, bias).log_softmax(-1).gather(-1, index[:, None])[:, 0]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (20, 6, 8), (33, 12, 50), (130, 20, 3001)])
def test_agrees_with_torch(dtype: torch.dtype, biased: bool, shape: tuple[int, int, int]) -> None:
    hidden, weight, bias, index = example(*shape, dtype, biased)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    leaves = [x for x in (hidden, weight, bias) if x is not None]
    got = linear_log_softmax_gather(hidden, weight, bias, index)
    expected = plain(*(None if x is None else x.double() for x in (hidden, weight, bias)), index)  # pyright: ignore
    torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=tolerance)
    g = torch.randn(shape[0], generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    gradients = torch.autograd.grad(got, leaves, g, retain_graph=True)
    for a, b in zip(gradients, torch.autograd.grad(expected, leaves, g.double()), strict=True):
        torch.testing.assert_close(a, b, atol=5 * tolerance, rtol=5 * tolerance)
    for a, b in zip(gradients, torch.autograd.grad(got, leaves, g), strict=True):
        assert a.equal(b)
    with torch.no_grad():
        assert linear_log_softmax_gather(hidden, weight, bias, index).equal(got)


def test_gradcheck() -> None:
    hidden, weight, bias, index = example(4, 3, 11, torch.float64, True)
    assert torch.autograd.gradcheck(lambda *x: linear_log_softmax_gather(*x, index), (hidden, weight, bias))


def test_large_scores_and_impossible_classes() -> None:
    hidden, weight, _, index = example(6, 3, 40, torch.float64, False)
    bias = torch.zeros(40, dtype=torch.float64)
    bias[5:17] = -math.inf
    index[0] = 5
    bias.requires_grad_()
    hidden.data *= 1e3
    leaves = (hidden, weight, bias)
    got, expected = linear_log_softmax_gather(*leaves, index), plain(*leaves, index)
    assert got[0] == -math.inf
    torch.testing.assert_close(got, expected)
    a, b = (torch.autograd.grad(x[1:].sum(), leaves) for x in (got, expected))
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y)


def test_without_a_gradient_no_buffer_is_kept() -> None:
    hidden, weight, bias, index = example(30, 4, 500, torch.float32, True)
    operator = torch.ops.statespan.linear_log_softmax_gather
    assert operator(hidden.detach(), weight.detach(), None, index, False)[1].numel() == 0
    assert operator(hidden, weight, bias, index, True)[1].shape == (30, 500)


def test_nothing_to_score() -> None:
    hidden, weight, bias, index = example(5, 3, 4, torch.float64, True)
    value = linear_log_softmax_gather(hidden[:0], weight, bias, index[:0])
    assert value.shape == (0,)
    assert torch.autograd.grad(value.sum(), weight)[0].eq(0).all()


@pytest.mark.usefixtures("two_threads")
def test_two_callers_at_once() -> None:
    hidden, weight, bias, index = example(300, 20, 1000, torch.float64, True)
    assert bias is not None

    def all_of_it(_: int) -> list[Tensor]:
        value = linear_log_softmax_gather(hidden, weight, bias, index)
        return [value, *torch.autograd.grad(value.square().sum(), (hidden, weight, bias))]

    expected = all_of_it(0)
    with ThreadPoolExecutor(2) as pool:
        for got in pool.map(all_of_it, range(6)):
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b, atol=1e-13, rtol=1e-13)


def test_wrong_arguments() -> None:
    hidden, weight, bias, index = example(5, 3, 4, torch.float64, True)
    with pytest.raises(ValueError, match=r"weight must be \(V, 3\)"):
        linear_log_softmax_gather(hidden, weight.t(), bias, index)
    with pytest.raises(ValueError, match=r"bias must be \(4,\)"):
        linear_log_softmax_gather(hidden, weight, hidden[:, 0], index)
    with pytest.raises(ValueError, match=r"index must be \(5,\)"):
        linear_log_softmax_gather(hidden, weight, bias, index[:2])
    with pytest.raises(ValueError, match=r"hidden must be \(N, m\)"):
        linear_log_softmax_gather(hidden[0], weight, bias, index)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("biased", [False, True])
def test_opcheck(biased: bool) -> None:
    hidden, weight, bias, index = example(5, 3, 9, torch.float64, biased)
    operator = torch.ops.statespan.linear_log_softmax_gather
    torch.library.opcheck(operator, (hidden, weight, bias, index, True))
    torch.library.opcheck(
        operator, (*(None if x is None else x.detach() for x in (hidden, weight, bias)), index, False)
    )
