"""Normal vectors of independent coordinates: densities of every row in every state, and sums for an M-step.

Differences from each state's own mean are taken before they are squared, so nothing cancels, however far apart the
states are; a product of matrices, which squares first, is no faster: it reads twice as many numbers.
"""

import math
from typing import Any

import torch
from torch import Tensor

from . import lanes as shared

#: Below so many numbers (rows times states times coordinates) one thread does it all.
SMALL = 100_000


def usable(*tensors: Tensor | None) -> bool:
    """Whether these are on the CPU, of one dtype that there are loops for, and no gradient is asked of them."""
    given = [x for x in tensors if x is not None]
    alike = all(x.device.type == "cpu" and x.dtype == given[0].dtype for x in given)
    tracked = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    return alike and not tracked and given[0].dtype in (torch.float32, torch.float64)


def _ranges(rows: int, work: int) -> list[tuple[int, int]]:
    threads = 1 if work < SMALL else shared.available()
    return shared.pieces(rows, 1 if threads == 1 else 4 * threads)


def _arrays(y: Tensor, there: Tensor | None) -> tuple[Any, ...]:
    """As the loops take them: rows, what is there of them, and whether some may not be."""
    mask = y[:0] if there is None else there.to(y.dtype).contiguous()
    return y.detach().contiguous().numpy(), mask.numpy(), there is not None


def _table(x: Tensor) -> Tensor:
    """(K, D) with zeros up to a multiple of 4 states, flat."""
    return torch.nn.functional.pad(x.detach(), (0, 0, 0, -len(x) % 4)).reshape(-1)


@torch.no_grad()
def densities(
    y: Tensor, there: Tensor | None, mean: Tensor, log_scale: Tensor, scaling: bool = False
) -> tuple[Tensor, Tensor]:
    """Log N(y_n; mean_k, diag(exp(log_scale_k)^2)) over the coordinates that are there; without gradient.

    Args:
        y: (N, D), float32 or float64 on the CPU; of any finite value where missing.
        there: (N, D) bool; None: everything.
        mean: (K, D), of the same dtype, as what follows.
        log_scale: (K, D), of the standard deviations.
        scaling: whether to give exp(log N) divided by its largest value over the states, and that one's logarithm.

    Returns:
        (N, K), and (N,) float64, 0 where they are not `scaling`.

    Source:
        Bishop, Pattern Recognition and Machine Learning 2006, equation 2.43.

    Example:
        >>> log, _ = densities(torch.zeros(1, 2), None, torch.zeros(1, 2), torch.zeros(1, 2))
        >>> round(log.item(), 4)
        -1.8379
    """
    from . import _jit_diagonal_normal as jit

    result = shared.empty(len(y), len(mean), like=y)
    top = torch.zeros(len(y), dtype=torch.float64)
    bend = -0.5 * (-2 * log_scale).exp()
    tables = [_table(x).numpy() for x in (mean, bend, -log_scale - 0.5 * math.log(2 * math.pi))]
    inputs = *_arrays(y, there), *tables, scaling, top.numpy(), result.numpy()
    ranges = _ranges(len(y), result.numel() * y.shape[1])
    shared.parallel(lambda i: jit.densities(*ranges[i], *inputs), len(ranges))
    return result, top


@torch.no_grad()
def sums(y: Tensor, there: Tensor | None, mean: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weighted sums about the states' means, over the coordinates that are there; without gradient.

    Args:
        y: (N, D), of any finite value where missing.
        there: (N, D) bool; None: everything.
        mean: (K, D), of the same dtype.
        weights: (N, K), of the same dtype.

    Returns:
        w (K,), and of every coordinate w, w x and w x^2 with x = y - mean, (K, D) each.

    Source:
        Bishop, Pattern Recognition and Machine Learning 2006, equations 13.20 and 13.21.

    Example:
        >>> w, there, first, second = sums(torch.tensor([[3.0]]), None, torch.tensor([[1.0]]), torch.tensor([[0.5]]))
        >>> w.item(), there.item(), first.item(), second.item()
        (0.5, 0.5, 1.0, 2.0)
    """
    if not usable(y, mean, weights):
        each = []
        for m, w in zip(mean, weights.T, strict=True):  # a state at a time: K copies of the data would not fit
            x = y - m
            counted = w[:, None].expand_as(x) if there is None else w[:, None] * there
            each.append((w.sum(), counted.sum(0), (counted * x).sum(0), (counted * x.square()).sum(0)))
        whole, counted, first, second = (torch.stack(x) for x in zip(*each, strict=True))
        return whole, counted, first, second
    from . import _jit_diagonal_normal as jit

    dim = y.shape[1]
    ranges = _ranges(len(y), len(y) * mean.numel())
    parts = y.new_zeros(max(1, len(ranges)), len(mean), 1 + 3 * dim)
    inputs = *_arrays(y, there), _table(mean).numpy(), weights.detach().contiguous().numpy()
    shared.parallel(lambda i: jit.sums(*ranges[i], *inputs, parts[i].numpy()), len(ranges))
    whole, each, first, second = parts.sum(0).split([1, dim, dim, dim], 1)
    return whole[:, 0], each, first, second
