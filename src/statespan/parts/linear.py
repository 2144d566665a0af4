"""Linear Gaussian parts: how a vector moves and what it emits."""

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from statespan.part import Affine, Generative, LinearPart, Part
from statespan.sequences import Event
from statespan.tree import Tree


def factor(covariance: Tensor) -> Tensor:
    """A lower triangular square root of a covariance that may be singular: (..., D, D)."""
    values, vectors = torch.linalg.eigh(covariance)
    # What rounding leaves of a zero eigenvalue would have a root of the square root of rounding.
    least = values[..., -1:] * (values.shape[-1] * torch.finfo(values.dtype).eps)
    return lower(vectors * torch.where(values > least, values, 0.0).sqrt()[..., None, :])


def lower(root: Tensor) -> Tensor:
    """The lower triangular L with L L' = root root', by one QR: (..., D, M) with M >= D to (..., D, D).

    Source:
        Sarkka and Svensson, Bayesian Filtering and Smoothing 2023, section 8.4.
    """
    triangle = torch.linalg.qr(root.mT, mode="reduced").R.mT
    signs = torch.where(triangle.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(root.dtype)
    return triangle * signs[..., None, :]


def root(scale: Tensor) -> Tensor:
    """The lower triangle of a free matrix as a covariance's root: columns turned so that no diagonal is negative."""
    triangle = scale.tril()
    return torch.where(triangle.diagonal() < 0, -triangle, triangle)


class Linear(Part, LinearPart, Generative):
    r"""x -> A x + b + scale e: a move of the state, or an observation of it.

    Args:
        inputs: D, the width of x.
        outputs: E, the width of the result; None means the same (a move).

    Source:
        Kalman 1960; Sarkka and Svensson, Bayesian Filtering and Smoothing 2023, section 6.3.

    Example:
        >>> Linear(2).matrix.shape
        torch.Size([2, 2])
    """

    event: Event

    def __init__(self, inputs: int, outputs: int | None = None):
        super().__init__()
        outputs = inputs if outputs is None else outputs
        self.event = Event(1, None, outputs)
        self.matrix = nn.Parameter(torch.eye(outputs, inputs))
        self.offset = nn.Parameter(torch.zeros(outputs))
        self.scale = nn.Parameter(torch.eye(outputs))

    @property
    def covariance(self) -> Tensor:
        """The noise's covariance, (E, E)."""
        scale = root(self.scale)
        return scale @ scale.mT

    def affine(self, u: Tree) -> Affine:
        """A, b and scale."""
        return Affine(self.matrix, self.offset, root(self.scale))

    def forward(self, z: Tensor, u: Tree = None) -> MultivariateNormal:
        """The distribution of the result given x = z."""
        return MultivariateNormal(z @ self.matrix.mT + self.offset, scale_tril=root(self.scale), validate_args=False)
