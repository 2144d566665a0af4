"""`forward_backward` against a plain loop, against enumeration, and against finite differences."""

import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from statespan.kernels.forward_backward import LANES, forward_backward

ABOVE = LANES + 3
"""A number of states for which BLAS takes over."""


def plain(
    predicted: Tensor, table: Tensor, likelihood: Tensor, lengths: Tensor | None, scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    steps, batch, _ = likelihood.shape
    logs, beliefs = [], []
    p = predicted
    for t in range(steps):
        active = torch.full((batch,), steps) > t if lengths is None else lengths > t
        joint = p * likelihood[t]
        c = torch.where(active, joint.sum(-1), 1.0)
        f = torch.where(active[:, None], joint / c[:, None], 0.0)
        logs.append(c.double().log())
        beliefs.append(f)
        if t + 1 < steps:
            p = (f if scale is None else f * scale[t + 1]) @ table
    return torch.stack(logs), torch.stack(beliefs)


def example(
    T: int, B: int, K: int, dtype: torch.dtype, ragged: bool, scaled: bool, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    predicted = torch.rand(B, K, generator=generator, dtype=torch.float64).softmax(-1)
    table = torch.randn(K, K, generator=generator, dtype=torch.float64).softmax(-1)
    likelihood = torch.rand(T, B, K, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, T + 1, (B,), generator=generator) if ragged else None
    scale = torch.rand(T, B, K, generator=generator, dtype=torch.float64) if scaled else None
    leaves = [None if x is None else x.to(dtype).requires_grad_() for x in (predicted, table, likelihood, scale)]
    return leaves[0], leaves[1], leaves[2], lengths, leaves[3]  # pyright: ignore[reportReturnType]


Arguments = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]


def results(function: Callable[..., tuple[Tensor, Tensor]], arguments: Arguments) -> list[Tensor]:
    """Values of both outputs and the gradients from both."""
    _, _, likelihood, lengths, _ = arguments
    T, B, K = likelihood.shape
    generator = torch.Generator().manual_seed(5)
    of_logs = torch.randn(T, B, generator=generator, dtype=torch.float64)
    of_beliefs = torch.randn(T, B, K, generator=generator, dtype=torch.float64).to(likelihood.dtype)
    inside = torch.arange(T)[:, None] < (torch.full((B,), T) if lengths is None else lengths)
    leaves = [x for x in arguments if x is not None and x.requires_grad]
    logs, beliefs = function(*arguments)
    beliefs = beliefs.where(inside[..., None], 0.0)
    value = (logs * of_logs).sum() + (beliefs * of_beliefs).sum().double()
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    gradients = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)]
    return [logs, beliefs, *gradients]


def both(arguments: Arguments) -> tuple[list[Tensor], list[Tensor]]:
    """By the operator and by the plain loop; the latter with one thread, on a busy machine it would take seconds."""
    got = results(forward_backward, arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return got, results(plain, arguments)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("K", [1, 2, 4, 7, 16, 33, ABOVE])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (7, 1), (6, 8), (23, 37)])
def test_agrees_with_the_plain_loop(dtype: torch.dtype, K: int, shape: tuple[int, int]) -> None:
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    for ragged, scaled in itertools.product((False, True), repeat=2):
        for got, expected in zip(*both(example(*shape, K, dtype, ragged, scaled)), strict=True):
            torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("K", [16, 70, ABOVE])
def test_spread_over_threads_it_agrees(K: int) -> None:
    for got, expected in zip(*both(example(40, 150, K, torch.float64, True, True)), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-11, rtol=1e-11)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("ragged", [False, True])
def test_more_rows_than_wait_for_the_gradient_of_the_table(ragged: bool) -> None:
    """Some 20 000 rows, 600 at a time, and lengths that all differ."""
    arguments = example(60, 600, ABOVE, torch.float64, ragged, False)
    for got, expected in zip(*both(arguments), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.usefixtures("two_threads")
def test_one_thread_gives_what_two_give(monkeypatch: pytest.MonkeyPatch) -> None:
    for K in (5, ABOVE):
        arguments = example(20, 70, K, torch.float64, True, False)
        two = results(forward_backward, arguments)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        one = results(forward_backward, arguments)
        monkeypatch.undo()
        for a, b in zip(one, two, strict=True):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def test_likelihood_posterior_and_transitions_by_enumeration() -> None:
    K, T = 3, 4
    predicted, table, likelihood, _, _ = example(T, 1, K, torch.float64, False, False)
    total, posterior, counts = 0.0, torch.zeros(T, K).double(), torch.zeros(K, K).double()
    for path in itertools.product(range(K), repeat=T):
        p = predicted[0, path[0]].item()
        for t, state in enumerate(path):
            p *= likelihood[t, 0, state].item()
            p *= table[path[t - 1], state].item() if t else 1.0
        total += p
        for t, state in enumerate(path):
            posterior[t, state] += p
            if t:
                counts[path[t - 1], state] += p
    value = forward_backward(predicted, table, likelihood)[0].sum()
    g_table, g_likelihood = torch.autograd.grad(value, (table, likelihood))
    assert value.item() == pytest.approx(math.log(total), rel=1e-12)
    torch.testing.assert_close((g_likelihood * likelihood)[:, 0], posterior / total)
    torch.testing.assert_close(g_table * table, counts / total)


@pytest.mark.parametrize("K", [3, ABOVE])
@pytest.mark.parametrize("ragged", [False, True])
def test_gradcheck(K: int, ragged: bool) -> None:
    T, B = 3, 2
    predicted, table, likelihood, lengths, scale = example(T, B, K, torch.float64, ragged, True)
    mask = torch.ones(T, B) if lengths is None else (torch.arange(T)[:, None] < lengths).double()

    def function(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        logs, beliefs = forward_backward(leaves[0], leaves[1], leaves[2], lengths, leaves[3])
        return logs, beliefs * mask[..., None]

    assert torch.autograd.gradcheck(function, (predicted, table, likelihood, scale), fast_mode=K > 3)


@pytest.mark.parametrize("K", [4, ABOVE])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_impossible_observation(K: int, dtype: torch.dtype) -> None:
    T, B, at = 5, 3, 2
    predicted, table, likelihood, _, _ = example(T, B, K, dtype, False, False)
    likelihood.data[at, 1] = 0
    lengths = torch.tensor([T, T - 1, T])
    logs, beliefs = forward_backward(predicted, table, likelihood, lengths)
    assert logs[at : T - 1, 1].eq(-math.inf).all() and logs[T - 1, 1] == 0
    assert logs[:at].isfinite().all() and logs[:, [0, 2]].isfinite().all()
    assert beliefs[at:, 1].eq(0).all()
    gradients = torch.autograd.grad(logs.sum() + beliefs.square().sum(), (predicted, table, likelihood))
    assert all(g.isfinite().all() for g in gradients)
    assert gradients[2][at:, 1].eq(0).all()
    # Up to there it is as if the sequence ended before.
    logs, beliefs = forward_backward(predicted, table, likelihood, torch.tensor([T, at, T]))
    expected = torch.autograd.grad(logs.sum() + beliefs.square().sum(), (predicted, table, likelihood))
    for got, want in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("K", [4, ABOVE])
def test_likelihoods_below_the_smallest_normal_number(K: int) -> None:
    predicted, table, likelihood, _, _ = example(4, 9, K, torch.float32, False, False)
    tiny = likelihood.detach().double() * 1e-37
    tiny[1] *= 1e-2
    tiny[2] *= 1e-5
    tiny = tiny.float()
    logs, beliefs = forward_backward(predicted, table, tiny.requires_grad_())
    expected, filtered = plain(predicted.double(), table.double(), tiny.double(), None, None)
    torch.testing.assert_close(logs, expected, atol=0.05, rtol=0.0)
    torch.testing.assert_close(beliefs.double(), filtered, atol=0.05, rtol=0.0)
    torch.testing.assert_close(beliefs[:2].double(), filtered[:2], atol=1e-4, rtol=0.0)
    g_predicted, g_table = torch.autograd.grad(logs.sum(), (predicted, table))
    want = torch.autograd.grad(expected.sum(), (predicted, table))
    torch.testing.assert_close(g_predicted, want[0], atol=0.1, rtol=0.1)
    torch.testing.assert_close(g_table, want[1], atol=0.1, rtol=0.1)


@pytest.mark.parametrize("K", [5, ABOVE])
def test_padding_may_hold_anything(K: int) -> None:
    arguments = example(9, 20, K, torch.float64, True, True)
    predicted, table, likelihood, lengths, scale = arguments
    assert lengths is not None and scale is not None
    clean = results(forward_backward, arguments)
    padding = torch.arange(9)[:, None] >= lengths
    likelihood.data[padding] = math.nan
    scale.data[padding] = math.nan
    scale.data[0] = math.nan
    for got, expected in zip(results(forward_backward, arguments), clean, strict=True):
        torch.testing.assert_close(got, expected)
    with torch.no_grad():
        logs, beliefs = forward_backward(predicted, table, likelihood, lengths, scale)
    assert logs.isfinite().all() and beliefs.isfinite().all() and logs[padding].eq(0).all()


@pytest.mark.parametrize("K", [5, ABOVE])
def test_windows_carry_the_belief_and_its_gradient(K: int) -> None:
    predicted, table, likelihood, _, _ = example(8, 6, K, torch.float64, False, False)
    leaves = (predicted, table, likelihood)
    whole = forward_backward(predicted, table, likelihood)[0].sum()
    first, beliefs = forward_backward(predicted, table, likelihood[:5])
    second, _ = forward_backward(beliefs[-1] @ table, table, likelihood[5:])
    torch.testing.assert_close(first.sum() + second.sum(), whole)
    for got, expected in zip(
        torch.autograd.grad(first.sum() + second.sum(), leaves), torch.autograd.grad(whole, leaves), strict=True
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("K", [5, ABOVE])
def test_gradient_of_some_only_and_twice(K: int) -> None:
    predicted, table, likelihood, _, _ = example(6, 10, K, torch.float64, False, False)
    full = torch.autograd.grad(forward_backward(predicted, table, likelihood)[0].sum(), (table, likelihood))
    value = forward_backward(predicted.detach(), table.detach(), likelihood)[0].sum()
    for _ in range(2):
        (g,) = torch.autograd.grad(value, likelihood, retain_graph=True)
        torch.testing.assert_close(g, full[1])
    (g,) = torch.autograd.grad(forward_backward(predicted.detach(), table, likelihood.detach())[0].sum(), table)
    torch.testing.assert_close(g, full[0])


def test_strided_inputs_and_empty_batches() -> None:
    predicted, table, likelihood, _, _ = example(6, 10, 4, torch.float64, False, False)
    logs, _ = forward_backward(
        predicted, table.t().contiguous().t(), likelihood.transpose(0, 1).contiguous().transpose(0, 1)
    )
    torch.testing.assert_close(logs, forward_backward(predicted, table, likelihood)[0])
    logs, beliefs = forward_backward(predicted[:0], table, likelihood[:, :0])
    assert logs.shape == (6, 0) and beliefs.shape == (6, 0, 4)
    assert torch.autograd.grad(logs.sum(), table)[0].eq(0).all()


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("K", [4, ABOVE])
def test_two_callers_at_once(K: int) -> None:
    arguments = example(30, 120, K, torch.float64, True, False)
    expected = results(forward_backward, arguments)
    with ThreadPoolExecutor(2) as pool:
        for got in pool.map(lambda _: results(forward_backward, arguments), range(6)):
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b, atol=1e-13, rtol=1e-13)


def test_second_derivatives_are_refused() -> None:
    predicted, table, likelihood, _, _ = example(3, 2, 2, torch.float64, False, False)
    value = forward_backward(predicted, table, likelihood)[0].sum()
    (g,) = torch.autograd.grad(value, likelihood, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        g.sum().backward()


def test_wrong_arguments() -> None:
    predicted, table, likelihood, _, _ = example(3, 2, 4, torch.float64, False, False)
    with pytest.raises(ValueError, match=r"table must be \(4, 4\)"):
        forward_backward(predicted, table[:3], likelihood)
    with pytest.raises(ValueError, match=r"float64, not torch\.float32"):
        forward_backward(predicted.float(), table, likelihood)
    with pytest.raises(ValueError, match="int64"):
        forward_backward(predicted, table, likelihood, torch.tensor([1, 2], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"\(T, B, K\)"):
        forward_backward(predicted, table, likelihood[0])


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("K", [3, ABOVE])
@pytest.mark.parametrize("ragged", [False, True])
def test_opcheck(K: int, ragged: bool) -> None:
    predicted, table, likelihood, lengths, scale = example(4, 3, K, torch.float64, ragged, ragged)
    arguments = (predicted, table, likelihood, lengths, scale)
    operator = torch.ops.statespan.forward_backward
    torch.library.opcheck(operator, (*(None if x is None else x.detach() for x in arguments), False))
    # The third output, kept for the backward pass, is not written where no sequence is: with lengths that leave room
    # two runs differ there, and the last check compares all outputs.
    utilities = ["test_schema", "test_autograd_registration", "test_faketensor"]
    torch.library.opcheck(operator, (*arguments, True), test_utils=utilities)
    if lengths is not None:
        lengths.fill_(4)
    torch.library.opcheck(operator, (*arguments, True))
