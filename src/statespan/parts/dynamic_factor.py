"""Dynamic factors: a few numbers that move by themselves and that many series load on."""

from typing import Any

import torch
from torch import Tensor, nn

from statespan.belief import Gaussian
from statespan.part import Affine, GaussianInitial, LinearPart, Part
from statespan.parts.climb import climb
from statespan.parts.emissions.common import standardised
from statespan.parts.gaussian_initial import Moments, stationary
from statespan.parts.linear import Regression
from statespan.sequences import Event
from statespan.tree import Tree


class FactorMove(Part, LinearPart):
    r"""f_t = Phi_1 f_{t-1} + ... + Phi_p f_{t-p} + N(0, I); with errors beside them e_it = rho_i e_i,t-1 + N(0, s_i^2).

    The state is f_t, ..., f_{t-p+1} and then e_t.

    Args:
        factors: q.
        order: p.
        errors: how many errors are autoregressive, 0 or all of them.

    Source:
        Stock and Watson, "New indexes of coincident and leading economic indicators", 1989; Hamilton, Time Series
        Analysis 1994, section 13.1.
    """

    size: nn.Parameter | None
    rho: nn.Parameter | None

    def __init__(self, factors: int, order: int = 1, errors: int = 0):
        super().__init__()
        self.factors, self.order, self.errors = factors, order, errors
        self.event = Event(1, None, factors * order + errors)
        self.coefficients = nn.Parameter(0.5 * torch.eye(factors, factors * order))
        """Phi_1 to Phi_p beside each other, (q, q p)."""
        self.register_parameter("rho", nn.Parameter(torch.zeros(errors)) if errors else None)
        self.register_parameter("size", nn.Parameter(torch.ones(errors)) if errors else None)

    def affine(self, u: Tree = None) -> Affine:
        """The companion form, and the errors beside it."""
        phi, q, wide = self.coefficients, self.factors, self.factors * self.order
        matrix = torch.cat([phi, torch.eye(wide - q, wide, dtype=phi.dtype, device=phi.device)])
        scale = torch.eye(wide, q, dtype=phi.dtype, device=phi.device)
        if self.rho is not None and self.size is not None:
            matrix = torch.block_diag(matrix, torch.diag(self.rho))
            scale = torch.block_diag(scale, torch.diag(self.size))
        return Affine(matrix, matrix.new_zeros(len(matrix)), scale)

    def statistics(self, z: Tensor, y: Tensor, spread: Tensor, u: Tree, weights: Tensor) -> Regression:
        """Expected sums of each state with the one before."""
        size, weight = z.shape[-1], weights.flatten()[:, None]
        rows, out = z.flatten(0, -2), y.flatten(0, -2)
        return Regression(
            weight.sum(),
            rows.mT @ (weight * rows) + spread[:size, :size],
            (weight * out).mT @ rows + spread[size:, :size],
            out.mT @ (weight * out) + spread[size:, size:],
        )

    def expected_log(self, stats: Regression) -> Tensor:
        """The expected log-likelihood of what is random in the moves, up to a constant."""
        affine, q, wide = self.affine(), self.factors, self.factors * self.order
        matrix = affine.matrix
        left = stats.yy - 2 * matrix @ stats.yx.mT + matrix @ stats.xx @ matrix.mT
        value = -0.5 * left.diagonal()[:q].sum()
        if self.size is not None:
            variance = self.size.square()
            value = value - 0.5 * (left.diagonal()[wide:] / variance + stats.weight * variance.log()).sum()
        return value

    @torch.no_grad()
    def maximize(self, stats: Regression) -> None:
        """Least squares, the start left out of account; `FactorStart` does the rest."""
        q, wide = self.factors, self.factors * self.order
        if self.coefficients.requires_grad:
            inverse = torch.linalg.pinv(stats.xx[:wide, :wide], hermitian=True)
            self.coefficients.copy_(stats.yx[:q, :wide] @ inverse)
        if self.rho is not None and self.size is not None:
            xx, yx, yy = (x.diagonal()[wide:] for x in (stats.xx, stats.yx, stats.yy))
            if self.rho.requires_grad:
                self.rho.copy_(yx / xx)
            if self.size.requires_grad:
                left = yy - 2 * self.rho * yx + self.rho.square() * xx
                self.size.copy_((left / stats.weight).clamp_min(0).sqrt())


class FactorStart(Part, GaussianInitial):
    """The distribution that the moves keep.

    Args:
        move: shared with the model.

    Raises:
        StatespanError: the moves keep none (when the start is asked for).
    """

    together = True

    def __init__(self, move: nn.Module):
        super().__init__()
        self.move = move

    def gaussian(self, batch: int) -> Gaussian:
        """The belief about z_1 for `batch` sequences."""
        move: Any = self.move
        mean, root = stationary(*move.affine())
        return Gaussian(mean.expand(batch, -1), root.expand(batch, -1, -1))

    def statistics(self, z: Tensor, spread: Tensor, weights: Tensor) -> Moments:
        """Expected sums over sequences."""
        return Moments.of(z, spread, weights)

    @torch.no_grad()
    def maximize_with(self, stats: Moments, moves: Regression) -> None:
        """The M-step of start and moves: from least squares or from here, whichever is better, and up from there."""
        move: Any = self.move
        nothing = -torch.finfo(moves.xx.dtype).max / 1e6

        def value() -> Tensor:
            matrix = move.affine().matrix
            if float(torch.linalg.eigvals(matrix.detach()).abs().max()) >= 1 - 1e-8:
                return nothing + 0 * matrix.sum()
            root = self.gaussian(1).scale[0]
            white = torch.linalg.solve_triangular(root, stats.second, upper=False)
            white = torch.linalg.solve_triangular(root, white.mT, upper=False)
            start = stats.weight * root.diagonal().abs().log().sum() + 0.5 * white.diagonal().sum()
            return move.expected_log(moves) - start

        free = [p for p in move.parameters() if p.requires_grad]
        before, here = [p.clone() for p in free], float(value())
        move.maximize(moves)
        if not float(value()) >= here:
            for parameter, old in zip(free, before, strict=True):
                parameter.copy_(old)
        climb(free, value, 5)


class Loadings(Part, LinearPart):
    r"""y_t = mean + Lambda f_t + e_t, the errors independent of each other, with variances of their own.

    Args:
        width: D, of the state; the factors come first.
        outputs: E.
        factors: q.

    Source:
        Banbura and Modugno, "Maximum likelihood estimation of factor models on datasets with arbitrary pattern of
        missing data", 2014, section 2 (the M-step under gaps).
    """

    def __init__(self, width: int, outputs: int, factors: int):
        super().__init__()
        self.width, self.factors, self.event = width, factors, Event(1, None, outputs)
        self.loadings = nn.Parameter(0.5 * torch.randn(outputs, factors))
        self.mean = nn.Parameter(torch.zeros(outputs))
        self.size = nn.Parameter(torch.ones(outputs))
        """The errors' standard deviations, (E,)."""

    @property
    def variance(self) -> Tensor:
        """Of the errors, (E,)."""
        return self.size.square()

    def affine(self, u: Tree = None) -> Affine:
        """Lambda on the factors, the mean, and independent noise."""
        matrix = nn.functional.pad(self.loadings, (0, self.width - self.factors))
        return Affine(matrix, self.mean, torch.diag(self.size))

    def statistics(self, z: Tensor, y: Tensor, spread: Tensor, u: Tree, weights: Tensor) -> Regression:
        """Expected sums of y with the factors and a 1."""
        q, size = self.factors, z.shape[-1]
        rows = torch.cat([z[..., :q], torch.ones_like(z[..., :1])], -1).flatten(0, -2)
        out, weight = y.flatten(0, -2), weights.flatten()[:, None]
        xx, yx = rows.mT @ (weight * rows), (weight * out).mT @ rows
        xx[:q, :q] += spread[:q, :q]
        yx[:, :q] += spread[size:, :q]
        return Regression(weight.sum(), xx, yx, out.mT @ (weight * out) + spread[size:, size:])

    @torch.no_grad()
    def maximize(self, stats: Regression) -> None:
        """Least squares for what is free of loadings and mean, given the rest; then the variances."""
        weight = torch.cat([self.loadings, self.mean[:, None]], 1)
        free = torch.tensor([self.loadings.requires_grad] * self.factors + [self.mean.requires_grad])
        if bool(free.any()):
            rest = stats.yx[:, free] - weight[:, ~free] @ stats.xx[~free][:, free]
            weight[:, free] = rest @ torch.linalg.pinv(stats.xx[free][:, free], hermitian=True)
        self.loadings.copy_(weight[:, :-1])
        self.mean.copy_(weight[:, -1])
        if self.size.requires_grad:
            left = stats.yy.diagonal() - 2 * (weight * stats.yx).sum(1) + (weight @ stats.xx * weight).sum(1)
            self.size.copy_((left / stats.weight).clamp_min(0).sqrt())

    @torch.no_grad()
    def begin(self, y: Tensor, u: Tree, observed: Tensor | None) -> None:
        """Principal components of the standardised columns, a gap at its column's mean."""
        mean, deviation, loadings = principal(y, observed, self.factors)
        self.mean.copy_(mean)
        self.loadings.copy_(deviation[:, None] * loadings)
        self.size.copy_(deviation * (1 - loadings.square().sum(1)).clamp_min(0.05).sqrt())


class LoadingsAndErrors(Part, LinearPart):
    r"""y_t = mean + Lambda f_t + e_t with the errors in the state, the last of it.

    With nothing but the state in y, an M-step in closed form would leave the loadings where they are: EM takes gradient
    steps on them.

    Args:
        width: D, of the state; the factors come first.
        outputs: E.
        factors: q.
    """

    def __init__(self, width: int, outputs: int, factors: int):
        super().__init__()
        self.width, self.factors, self.event = width, factors, Event(1, None, outputs)
        self.loadings = nn.Parameter(0.5 * torch.randn(outputs, factors))
        self.mean = nn.Parameter(torch.zeros(outputs))

    def affine(self, u: Tree = None) -> Affine:
        """Lambda on the factors, a 1 on each error, the mean, and no other noise."""
        outputs, between = len(self.mean), self.width - self.factors - len(self.mean)
        one = torch.eye(outputs, dtype=self.mean.dtype, device=self.mean.device)
        matrix = torch.cat([nn.functional.pad(self.loadings, (0, between)), one], 1)
        return Affine(matrix, self.mean, torch.zeros_like(one))

    @torch.no_grad()
    def begin(self, y: Tensor, u: Tree, observed: Tensor | None) -> None:
        """Principal components."""
        mean, deviation, loadings = principal(y, observed, self.factors)
        self.mean.copy_(mean)
        self.loadings.copy_(deviation[:, None] * loadings)


def principal(y: Tensor, observed: Tensor | None, factors: int) -> tuple[Tensor, Tensor, Tensor]:
    """Means and deviations of the columns (E,), and loadings (E, q) of the first principal components."""
    white, _, mean, deviation = standardised(y, observed)
    values, vectors = torch.linalg.eigh(white.mT @ white / len(white))
    values, vectors = values.flip(-1)[:factors], vectors.flip(-1)[:, :factors]
    return mean, deviation.clamp_min(1e-12), vectors * values.clamp_min(0).sqrt()
