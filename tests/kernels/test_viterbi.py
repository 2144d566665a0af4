"""`max_product` against a plain loop and against enumeration."""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from statespan.kernels import viterbi


def max_product(
    log_initial: Tensor, log_table: Tensor, log_likelihood: Tensor, lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """By a row for every step."""
    return viterbi.max_product(log_initial, log_table, *as_rows(log_likelihood), lengths)


def as_rows(log_likelihood: Tensor) -> tuple[Tensor, Tensor]:
    """A row for every step (T, B, K), and which is whose."""
    steps = log_likelihood.shape[:2]
    return log_likelihood.flatten(0, 1), torch.arange(steps.numel()).view(steps)


def plain(
    log_initial: Tensor, log_table: Tensor, log_likelihood: Tensor, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The path by comparing one state after the other, so that ties go to the lower one."""
    T, B, K = log_likelihood.shape
    score, path = torch.empty(B, dtype=log_likelihood.dtype), torch.full((T, B), -1)
    for b in range(B):
        best = log_initial[b] + log_likelihood[0, b]
        length = T if lengths is None else int(lengths[b])
        pointers = []
        for t in range(1, length):
            candidates = best[:, None] + log_table
            top = candidates[0].clone()
            pointer = torch.zeros(K, dtype=torch.int64)
            for k in range(1, K):
                better = candidates[k] > top
                top[better], pointer[better] = candidates[k][better], k
            pointers.append(pointer)
            best = top + log_likelihood[t, b]
        state = 0
        for k in range(1, K):
            state = k if best[k] > best[state] else state
        score[b] = best[state]
        path[length - 1, b] = state
        for t in range(length - 1, 0, -1):
            state = int(pointers[t - 1][state])
            path[t - 1, b] = state
    return score, path


def example(
    T: int, B: int, K: int, dtype: torch.dtype, ragged: bool, whole: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Random scores with some -inf; small whole numbers, with many ties, where asked for."""
    generator = torch.Generator().manual_seed(T * 100 + B * 10 + K)

    def draw(*shape: int) -> Tensor:
        if whole:
            x = -torch.randint(0, 3, shape, generator=generator).double()
        else:
            x = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return x.masked_fill(torch.rand(shape, generator=generator) < 0.1, -math.inf).to(dtype)

    lengths = torch.randint(1, T + 1, (B,), generator=generator) if ragged else None
    return draw(B, K), draw(K, K), draw(T, B, K), lengths


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4, 3), (9, 1, 2), (6, 5, 7), (11, 37, 8), (5, 3, 65)])
def test_agrees_with_the_plain_loop(dtype: torch.dtype, ragged: bool, whole: bool, shape: tuple[int, int, int]) -> None:
    arguments = example(*shape, dtype, ragged, whole)
    score, path = max_product(*arguments)
    expected, expected_path = plain(*arguments)
    assert score.dtype == dtype
    assert score.equal(expected)
    possible = expected > -math.inf
    assert path[:, possible].equal(expected_path[:, possible])
    lengths = torch.full((shape[1],), shape[0]) if arguments[3] is None else arguments[3]
    inside = torch.arange(shape[0])[:, None] < lengths
    assert (path[inside] >= 0).all() and (path[inside] < shape[2]).all() and (path[~inside] == -1).all()


def test_by_enumeration() -> None:
    log_initial, log_table, log_likelihood, _ = example(5, 1, 3, torch.float64, False)
    best, best_path = -math.inf, ()
    for path in itertools.product(range(3), repeat=5):
        p = log_initial[0, path[0]].item() + sum(log_likelihood[t, 0, k].item() for t, k in enumerate(path))
        p += sum(log_table[i, j].item() for i, j in itertools.pairwise(path))
        if p > best:
            best, best_path = p, path
    score, found = max_product(log_initial, log_table, log_likelihood)
    assert score.item() == pytest.approx(best, rel=1e-13)
    assert tuple(found[:, 0].tolist()) == best_path


@pytest.mark.parametrize("K", [256, 257, 300])
def test_back_pointers_hold_many_states(K: int) -> None:
    arguments = example(4, 3, K, torch.float32, False)
    score, path = max_product(*arguments)
    # A second way: the best predecessors by torch.
    log_initial, log_table, log_likelihood, _ = arguments
    best = log_initial + log_likelihood[0]
    for t in range(1, 4):
        best = (best[..., None] + log_table).amax(1) + log_likelihood[t]
    assert score.equal(best.amax(1))
    total = log_initial.gather(1, path[:1].T)[:, 0] + log_likelihood.gather(2, path[..., None])[..., 0].sum(0)
    total = total + log_table[path[:-1], path[1:]].sum(0)
    torch.testing.assert_close(total, score)
    assert path.max() > 128


def test_nothing_is_possible() -> None:
    log_initial, log_table, log_likelihood, _ = example(4, 3, 5, torch.float64, False)
    log_likelihood[2, 1] = -math.inf
    score, path = max_product(log_initial, log_table, log_likelihood)
    assert score[1] == -math.inf and score[[0, 2]].isfinite().all()
    assert (path >= 0).all() and (path < 5).all()
    score, path = max_product(
        torch.full((2, 4), -math.inf), torch.full((4, 4), -math.inf), torch.full((3, 2, 4), -math.inf)
    )
    assert score.eq(-math.inf).all() and (path >= 0).all() and (path < 4).all()


@pytest.mark.usefixtures("two_threads")
def test_spread_over_threads_and_two_callers_at_once() -> None:
    arguments = example(12, 150, 12, torch.float64, True)
    expected = plain(*arguments)
    with ThreadPoolExecutor(2) as pool:
        for score, path in pool.map(lambda _: max_product(*arguments), range(6)):
            assert score.equal(expected[0])
            possible = score > -math.inf
            assert path[:, possible].equal(expected[1][:, possible])


def test_padding_may_hold_anything() -> None:
    log_initial, log_table, log_likelihood, lengths = example(9, 20, 6, torch.float64, True)
    assert lengths is not None
    score, path = max_product(log_initial, log_table, log_likelihood, lengths)
    log_likelihood[torch.arange(9)[:, None] >= lengths] = math.nan
    again, same = max_product(log_initial, log_table, log_likelihood, lengths)
    assert again.equal(score) and same.equal(path)


def test_steps_share_rows() -> None:
    log_initial, log_table, rows, lengths = example(9, 20, 6, torch.float64, True)
    index = torch.randint(0, 20, (9, 20), generator=torch.Generator().manual_seed(0))
    score, path = viterbi.max_product(log_initial, log_table, rows[0], index, lengths)
    expected, expected_path = plain(log_initial, log_table, rows[0][index], lengths)
    assert score.equal(expected)
    assert path[:, expected > -math.inf].equal(expected_path[:, expected > -math.inf])


def test_wrong_arguments() -> None:
    log_initial, log_table, log_likelihood, _ = example(4, 3, 5, torch.float64, False)
    rows, index = as_rows(log_likelihood)
    with pytest.raises(ValueError, match=r"log_table must be \(5, 5\)"):
        viterbi.max_product(log_initial, log_table[:4], rows, index)
    with pytest.raises(ValueError, match="float64"):
        viterbi.max_product(log_initial.float(), log_table, rows, index)
    with pytest.raises(ValueError, match="lengths must be"):
        viterbi.max_product(log_initial, log_table, rows, index, torch.ones(3))
    with pytest.raises(ValueError, match=r"rows must be \(N, K\)"):
        viterbi.max_product(log_initial, log_table, rows[0], index)
    with pytest.raises(ValueError, match=r"index must be \(T, B\)"):
        viterbi.max_product(log_initial, log_table, rows, index.int())


def test_it_has_no_gradient() -> None:
    log_initial, log_table, log_likelihood, _ = example(4, 3, 5, torch.float64, False)
    score, _ = max_product(log_initial, log_table, log_likelihood.requires_grad_())
    assert not score.requires_grad


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("ragged", [False, True])
def test_opcheck(ragged: bool) -> None:
    log_initial, log_table, log_likelihood, lengths = example(4, 3, 5, torch.float64, ragged)
    arguments = (log_initial, log_table, *as_rows(log_likelihood), lengths)
    torch.library.opcheck(torch.ops.statespan.max_product, arguments)
