"""A linear stochastic differential equation seen at irregular times."""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from statespan.errors import StatespanError
from statespan.part import Affine, Generative, LinearPart, Part, positive
from statespan.parts.inputs import gaps_of
from statespan.parts.linear import conditional, lower
from statespan.sequences import Event
from statespan.tree import Tree

NODES = 8
"""Points of the quadrature over a short piece of time, which is then doubled."""
SHORT = 0.5
"""A piece is short where F times it has no larger norm than this: then the quadrature is exact to rounding."""


def discretise(drift: Tensor, gain: Tensor, gaps: Tensor) -> tuple[Tensor, Tensor]:
    r"""The move over each gap of dz = F z dt + G dw: A = expm(F dt), Q = integral of expm(F s) G G' expm(F s)' ds.

    Q comes as a root: of a short piece by Gauss and Legendre's rule, whose terms are columns, and then doubled,
    root(2 h) = [root(h), expm(F h) root(h)]. So no covariance is formed, none loses its sign, and a gap of zero has
    none.

    Args:
        drift: F, (D, D).
        gain: G, (D, M).
        gaps: (n,), not negative.

    Returns:
        A (n, D, D), and lower triangular roots of Q (n, D, D).

    Source:
        Van Loan, "Computing integrals involving the matrix exponential", IEEE Transactions on Automatic Control 23,
        1978; Sarkka and Solin, Applied Stochastic Differential Equations 2019, section 6.3.

    Example:
        >>> one = torch.ones(1, 1, dtype=torch.float64)
        >>> matrix, root = discretise(-one, one, torch.tensor([0.0, 1.0]))
        >>> torch.allclose(root[1].square(), (1 - torch.exp(-2 * one)) / 2)
        True
    """
    gaps = gaps.to(drift)
    size = float(torch.linalg.matrix_norm(drift.detach(), 2)) * float(gaps.max()) / SHORT
    doublings = max(0, math.ceil(math.log2(size))) if size > 1 else 0
    piece = gaps / 2**doublings
    nodes, weights = (torch.from_numpy(x).to(drift) for x in np.polynomial.legendre.leggauss(NODES))
    moves = torch.linalg.matrix_exp(drift * (0.5 * (nodes + 1) * piece[:, None])[..., None, None])  # (n, nodes, D, D)
    columns = (0.5 * weights * piece[:, None]).sqrt()[..., None, None] * (moves @ gain)
    root = lower(_square(columns.movedim(1, -2).flatten(-2)))
    power = torch.linalg.matrix_exp(drift * piece[:, None, None])
    for _ in range(doublings):
        root = lower(torch.cat([root, power @ root], -1))
        power = power @ power
    return power, root


def _square(root: Tensor) -> Tensor:
    """At least as many columns as rows."""
    return torch.nn.functional.pad(root, (0, max(0, root.shape[-2] - root.shape[-1])))


class Continuous(Part, LinearPart, Generative):
    r"""dz = F z dt + G dw, seen at irregular times: the move over a gap dt is expm(F dt) z + N(0, Q(dt)).

    The gaps are an input, the time since the last step, as `ss.Generator` takes them; that of a sequence's first step
    is not used. Every different gap is exponentiated once. F and G are fitted by gradient (`ss.LBFGS`).

    Args:
        dim: D.
        noises: M, how many columns G has; None: D.
        column: of the inputs, which one is the gap, in any unit; F is per that unit.

    Raises:
        StatespanError: a negative gap, or none given.

    Source:
        Sarkka and Solin, Applied Stochastic Differential Equations 2019, chapter 6; Jones 1981.

    Example:
        >>> import statespan as ss
        >>> model = ss.StateSpace(ss.NormalStart(1), ss.Continuous(1), ss.Linear(1)).double()
        >>> model.log_prob([0.3, -0.1, 0.4], inputs=[0.0, 0.5, 2.25]).shape
        torch.Size([])
    """

    event: Event

    def __init__(self, dim: int, noises: int | None = None, column: int = 0):
        super().__init__()
        self.event, self.column = Event(1, None, dim), column
        self.drift = nn.Parameter(-0.1 * torch.eye(dim))
        self.gain = nn.Parameter(torch.eye(dim, dim if noises is None else noises))

    @property
    def takes_inputs(self) -> bool:
        """Always: the gaps."""
        return True

    @property
    def diffusion(self) -> Tensor:
        """G G', (D, D): the noise's covariance that a unit of time adds at first."""
        return self.gain @ self.gain.mT

    def still(self) -> Affine:
        """The move over a unit of time."""
        return over(self.drift, self.gain, torch.ones_like(self.drift[0, 0]).detach())

    def affine(self, u: Tree) -> Affine:
        """expm(F dt), nothing, and a root of Q(dt)."""
        return over(self.drift, self.gain, gaps_of(u, self.column, self))

    def forward(self, z: Tensor, u: Tree = None) -> MultivariateNormal:
        """The distribution of z_t given z_{t-1} = z and inputs."""
        return conditional(self.affine(u), z)


class Matern(Part, LinearPart, Generative):
    r"""A Gaussian process with a Matern kernel, and its derivatives, as a state: its move over a gap.

    k(r) = v 2^(1-s) / Gamma(s) (sqrt(2 s) r / l)^s K_s(sqrt(2 s) r / l), with s a half-integer and the state of
    D = s + 1/2 numbers: f and its first derivatives. The gaps are an input, as `Continuous` takes them.

    Args:
        smoothness: s, 0.5, 1.5, 2.5 ...: the process has s - 1/2 derivatives.
        column: of the inputs, which one is the gap.

    Raises:
        StatespanError: s is no half-integer; a negative gap, or none given.

    Source:
        Hartikainen and Sarkka 2010; Sarkka and Solin, Applied Stochastic Differential Equations 2019, section 12.3.

    Example:
        >>> Matern(smoothness=2.5).event.dim
        3
    """

    event: Event

    length = positive("log_length", "The length scale l, in units of the gaps.")
    variance = positive("log_variance", "Of the process, v = k(0).")

    def __init__(self, smoothness: float = 1.5, column: int = 0):
        super().__init__()
        if smoothness <= 0 or smoothness % 1 != 0.5:
            raise StatespanError(f"Matern(smoothness={smoothness:g}): use 0.5, 1.5, 2.5 ...")
        self.smoothness, self.column = smoothness, column
        self.event = Event(1, None, int(smoothness + 0.5))
        self.log_length = nn.Parameter(torch.zeros(()))
        self.log_variance = nn.Parameter(torch.zeros(()))

    @property
    def takes_inputs(self) -> bool:
        """Always: the gaps."""
        return True

    def equation(self) -> tuple[Tensor, Tensor]:
        """F, the companion matrix of (s + rate)^D, and G, of dz = F z dt + G dw."""
        dim, rate = self.event.dim or 1, (2 * self.smoothness) ** 0.5 / self.length
        powers = torch.stack([math.comb(dim, i) * rate ** (dim - i) for i in range(dim)])
        last = torch.nn.functional.one_hot(torch.tensor(dim - 1), dim).to(rate)
        drift = torch.diag(rate.new_ones(dim - 1), 1) - last[:, None] * powers
        each = 2 * math.pi**0.5 * math.gamma(dim) / math.gamma(dim - 0.5)
        return drift, last[:, None] * (each * self.variance * rate ** (2 * dim - 1)).sqrt()

    def still(self) -> Affine:
        """The move over a length scale."""
        return over(*self.equation(), self.length.detach())

    def affine(self, u: Tree) -> Affine:
        """expm(F dt), nothing, and a root of Q(dt)."""
        return over(*self.equation(), gaps_of(u, self.column, self))

    def forward(self, z: Tensor, u: Tree = None) -> MultivariateNormal:
        """The distribution of z_t given z_{t-1} = z and inputs."""
        return conditional(self.affine(u), z)


def over(drift: Tensor, gain: Tensor, gaps: Tensor) -> Affine:
    """The moves over gaps (...), each different one once; (T, 1) of them where all sequences have the same."""
    gaps = gaps[:, :1] if gaps.dim() == 2 and bool((gaps == gaps[:, :1]).all()) else gaps
    each, index = torch.unique(gaps, return_inverse=True)
    matrix, root = discretise(drift, gain, each)
    return Affine(matrix[index], matrix.new_zeros(matrix.shape[-1]), root[index])
