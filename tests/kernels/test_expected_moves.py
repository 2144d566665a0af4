"""`expected_moves` against the gradient of a plain loop and against enumeration."""

import itertools

import pytest
import torch
from torch import Tensor

from statespan.kernels.expected_moves import expected_moves


def plain(
    predicted: Tensor, table: Tensor, likelihood: Tensor, lengths: Tensor | None, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """By back-propagation through a loop, in float64."""
    predicted, table, likelihood = (x.double() for x in (predicted, table, likelihood))
    table, likelihood = table.clone().requires_grad_(), likelihood.clone().requires_grad_()
    T, B, _ = likelihood.shape
    lengths = torch.full((B,), T) if lengths is None else lengths
    belief, normalisers = predicted, []
    for t in range(T):
        inside = t < lengths
        joint = torch.where(inside[:, None], (belief if t == 0 else belief @ table) * likelihood[t], 0.0)
        c = joint.sum(1)
        belief = joint / torch.where(c > 0, c, 1.0)[:, None]
        normalisers.append(torch.where(inside, c, 1.0))
    c = torch.stack(normalisers)
    log = torch.where(c > 0, c, 1.0).log()
    total = (log if weights is None else log * weights).sum()
    by_table, by_likelihood = torch.autograd.grad(total, [table, likelihood], materialize_grads=True, allow_unused=True)
    return c.detach().log(), (likelihood * by_likelihood).detach(), (table * by_table).detach()


def example(
    T: int, B: int, K: int, dtype: torch.dtype = torch.float64, ragged: bool = True, zeros: float = 0.1
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Random chains with zeros in the table and the likelihoods, some of which make a sequence impossible."""
    generator = torch.Generator().manual_seed(T * 100 + B * 10 + K)

    def draw(*shape: int) -> Tensor:
        x = torch.rand(*shape, generator=generator, dtype=torch.float64)
        return torch.where(torch.rand(*shape, generator=generator) < zeros, 0.0, x)

    predicted, table = draw(B, K) + 0.01, draw(K, K) + torch.eye(K)
    predicted, table = predicted / predicted.sum(1, keepdim=True), table / table.sum(1, keepdim=True)
    lengths = torch.randint(0, T + 1, (B,), generator=generator) if ragged else None
    weights = torch.rand(B, generator=generator, dtype=torch.float64) * 2 if ragged else None
    return (
        *(x.to(dtype) for x in (predicted, table, draw(T, B, K))),
        lengths,
        None if weights is None else weights.to(dtype),
    )


SHAPES = [(1, 1, 1), (1, 4, 3), (9, 1, 2), (6, 5, 7), (11, 37, 8), (40, 20, 5), (150, 3, 12), (5, 18, 66), (70, 9, 33)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_agrees_with_the_gradient(dtype: torch.dtype, ragged: bool, shape: tuple[int, int, int]) -> None:
    arguments = example(*shape, dtype, ragged)
    tolerance = {"atol": 1e-12, "rtol": 1e-11} if dtype == torch.float64 else {"atol": 1e-4, "rtol": 1e-4}
    log_normaliser, posterior, counts, first = expected_moves(*arguments)
    assert (log_normaliser.dtype, posterior.dtype, counts.dtype) == (torch.float64, dtype, dtype)
    assert first.equal(posterior[0])
    for got, expected in zip((log_normaliser, posterior, counts), plain(*arguments), strict=True):
        torch.testing.assert_close(got.double(), expected, **tolerance)
    again, same, none, _ = expected_moves(*arguments, counting=False)
    assert again.equal(log_normaliser) and same.equal(posterior) and not none.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [*SHAPES, (1200, 1, 12)])
def test_steps_that_share_rows(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    """The same as rows of their own, added up by what each step observes."""
    predicted, table, likelihood, lengths, weights = example(*shape, dtype)
    (T, B, K), symbols = shape, 3
    rows = likelihood.flatten(0, 1)[:symbols].clone()
    which = torch.randint(0, len(rows), (T, B), generator=torch.Generator().manual_seed(0))
    expected = expected_moves(predicted, table, rows[which], lengths, weights)
    sums = torch.zeros(len(rows), K, dtype=torch.float64).index_add_(
        0, which.flatten(), expected[1].double().view(-1, K)
    )
    assert lengths is not None
    which[torch.arange(T)[:, None] >= lengths] = -999
    log_scale = torch.rand(len(rows), dtype=torch.float64)
    got = expected_moves(predicted, table, rows, lengths, weights, which, log_scale)
    inside = torch.arange(T)[:, None] < lengths
    expected = (expected[0] + torch.where(inside, log_scale[which.clamp(0)], 0.0), *expected[1:])
    small = 1e-11 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(got[1].double(), sums, atol=small, rtol=small)
    for i in (0, 2, 3):
        torch.testing.assert_close(got[i], expected[i], atol=small, rtol=small)


def test_by_enumeration() -> None:
    predicted, table, likelihood, _, _ = example(5, 1, 3, ragged=False)
    joint = {}
    for path in itertools.product(range(3), repeat=5):
        p = predicted[0, path[0]].item()
        for t, k in enumerate(path):
            p *= likelihood[t, 0, k].item() * (table[path[t - 1], k].item() if t else 1)
        joint[path] = p
    total = sum(joint.values())
    posterior, counts = torch.zeros(5, 1, 3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    for path, p in joint.items():
        for t, k in enumerate(path):
            posterior[t, 0, k] += p / total
        for i, j in itertools.pairwise(path):
            counts[i, j] += p / total
    log_normaliser, got_posterior, got_counts, _ = expected_moves(predicted, table, likelihood)
    torch.testing.assert_close(log_normaliser.sum().exp().item(), total)
    torch.testing.assert_close(got_posterior, posterior)
    torch.testing.assert_close(got_counts, counts)


@pytest.mark.parametrize("B", [1, 9])
@pytest.mark.parametrize("K", [2, 20])
def test_a_state_that_cannot_be_has_no_say(B: int, K: int) -> None:
    """However well it would explain what follows: its backward message would overflow."""
    table = torch.full((K, K), 1.0, dtype=torch.float64).triu()
    table[0] = 0
    table[0, 0] = 1
    table = table / table.sum(1, keepdim=True)
    predicted = torch.zeros(B, K, dtype=torch.float64)
    predicted[:, 0] = 1
    likelihood = torch.ones(400, B, K, dtype=torch.float64)
    likelihood[:, :, 0] = 1e-3
    log_normaliser, posterior, counts, _ = expected_moves(predicted, table, likelihood)
    expected = torch.zeros_like(posterior)
    expected[:, :, 0] = 1
    torch.testing.assert_close(posterior, expected)
    torch.testing.assert_close(counts[0, 0].item(), 399.0 * B)
    assert counts.sum().isfinite() and log_normaliser.isfinite().all()


def test_padding_may_hold_anything() -> None:
    predicted, table, likelihood, lengths, weights = example(9, 20, 6)
    assert lengths is not None
    expected = expected_moves(predicted, table, likelihood, lengths, weights)
    likelihood[torch.arange(9)[:, None] >= lengths] = torch.nan
    for a, b in zip(expected_moves(predicted, table, likelihood, lengths, weights), expected, strict=True):
        assert a.equal(b)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("shape", [(30, 150, 12), (3000, 1, 12), (900, 1, 3)])
def test_spread_over_threads(shape: tuple[int, int, int]) -> None:
    arguments = example(*shape, zeros=0.0)
    predicted, table, likelihood, lengths, weights = arguments
    rows, which = likelihood[0, :1].repeat(5, 1), torch.arange(shape[0] * shape[1]).view(shape[:2]) % 5
    got = expected_moves(predicted, table, rows, lengths, weights, which)
    expected = expected_moves(predicted, table, rows[which], lengths, weights)
    torch.testing.assert_close(got[1].sum(0), expected[1].sum((0, 1)))
    torch.testing.assert_close(got[2], expected[2])
    for got, expected in zip(expected_moves(*arguments), plain(*arguments), strict=False):
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)


def test_wrong_arguments() -> None:
    predicted, table, likelihood, lengths, _ = example(3, 2, 4)
    with pytest.raises(ValueError, match=r"table must be \(4, 4\)"):
        expected_moves(predicted, table[:3], likelihood)
    with pytest.raises(ValueError, match=r"weights must be \(2,\)"):
        expected_moves(predicted, table, likelihood, lengths, torch.ones(3))
    with pytest.raises(ValueError, match=r"likelihood and which must be \(N, K\) and \(T, B\) int64"):
        expected_moves(predicted, table, likelihood, which=torch.zeros(3, 2, dtype=torch.int64))


def test_it_has_no_gradient() -> None:
    predicted, table, likelihood, _, _ = example(3, 2, 4)
    assert not any(x.requires_grad for x in expected_moves(predicted, table.requires_grad_(), likelihood))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("ragged", [False, True])
def test_opcheck(ragged: bool) -> None:
    arguments = example(4, 3, 5, ragged=ragged)
    torch.library.opcheck(torch.ops.statespan.expected_moves, (*arguments, None, None, True))
    predicted, table, likelihood, *rest = arguments
    which = torch.tensor([[0, 1, 2]] * 4)
    torch.library.opcheck(
        torch.ops.statespan.expected_moves, (predicted, table, likelihood[0], *rest, which, None, True)
    )
