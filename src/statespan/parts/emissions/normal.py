"""What emissions with normal noise share: distances and conditional moments where coordinates are missing."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor


def patterns(mask: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each pattern of rows (N, D): the indices of its rows, and what is there, (D,)."""
    kinds, which = torch.unique(mask, dim=0, return_inverse=True)
    for i, there in enumerate(kinds):
        yield (which == i).nonzero()[:, 0], there


def distances(x: Tensor, observed: Tensor | None, covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mahalanobis distances, of the coordinates that are there.

    Args:
        x: (N, K, D), differences from the means.
        observed: (N, D) bool; None: all there.
        covariance: (K, D, D).

    Returns:
        Squares (N, K), log-determinants (N, K) and how many coordinates there are, (N, 1).
    """
    if observed is None:
        return *_square(x, covariance), x.new_full((len(x), 1), x.shape[-1])
    squares, logs = x.new_zeros(x.shape[:2]), x.new_zeros(x.shape[:2])
    for rows, there in patterns(observed):
        if bool(there.any()):
            square, log = _square(x[rows][..., there], covariance[:, there][:, :, there])
            squares, logs = squares.index_copy(0, rows, square), logs.index_copy(0, rows, log)
    return squares, logs, observed.sum(-1, keepdim=True).to(x)


def _square(x: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    factor = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(factor, x.movedim(0, -1), upper=False)  # (K, D, N)
    log = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return white.square().sum(1).T, log.expand(len(x), -1)


def log_normal(x: Tensor, observed: Tensor | None, covariance: Tensor) -> Tensor:
    """Log N(x; 0, covariance_k) of differences (N, K, D): (N, K)."""
    squares, logs, count = distances(x, observed, covariance)
    return -0.5 * (squares + logs + count * math.log(2 * math.pi))


def completed(x: Tensor, observed: Tensor | None, covariance: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Each pattern of gaps in x (N, K, D): its rows, x with conditional means (n, K, D), conditional covariances."""
    if observed is None:
        yield torch.arange(len(x), device=x.device), x, torch.zeros_like(covariance)
        return
    for rows, there in patterns(observed):
        (gone, gain, rest), some = given(covariance, there), x[rows].clone()
        some[..., gone] = torch.einsum("nkd,kgd->nkg", x[rows][..., there], gain)
        yield rows, some, rest


def given(covariance: Tensor, there: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What coordinates (D,) that are there say of the others: which those are, (G,), their regression (K, G, D - G).

    With them the covariance (K, D, D) of what that leaves, zero for what is there.
    """
    gone = (~there).nonzero()[:, 0]
    gain = torch.linalg.solve(covariance[:, there][:, :, there], covariance[:, there][:, :, gone]).mT
    rest = torch.zeros_like(covariance)
    rest[:, gone[:, None], gone] = covariance[:, gone][:, :, gone] - gain @ covariance[:, there][:, :, gone]
    return gone, gain, rest


def floored(covariance: Tensor, floor: float, units: Tensor | None = None) -> Tensor:
    """Covariances with every eigenvalue below `floor` raised to it: the likeliest of those with none below it.

    With `units`, (D,), the coordinates are measured in these.
    """
    square = covariance.new_ones(()) if units is None else units[:, None] * units
    values, vectors = torch.linalg.eigh(covariance / square)
    raised = vectors @ torch.diag_embed(values.clamp_min(floor)) @ vectors.mT * square
    return torch.where((values < floor).any(-1)[..., None, None], raised, covariance)


def units_of(mean: Tensor, within: Tensor, weight: Tensor) -> Tensor:
    """The standard deviation of each coordinate, (D,), where it is below 1, and 1 where it is not, or is rounding.

    Args:
        mean: of each state, (K, D).
        within: sums of squares about these, (K, D).
        weight: of each state, (K,).
    """
    total = weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)
    centre = weight @ mean / total
    variance = (within.sum(0) + weight @ (mean - centre).square()) / total
    small = (variance < 1) & (variance > 1e-20 * centre.square())
    return torch.where(small, variance, 1.0).sqrt()
