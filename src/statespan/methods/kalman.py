"""Linear Gaussian filtering in square-root form."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from statespan.belief import Gaussian
from statespan.method import Method, Prepared, smooth_backward
from statespan.part import Affine, GaussianInitial, LinearPart
from statespan.parts.linear import factor, lower
from statespan.sequences import Sequences
from statespan.shapes import Float
from statespan.tree import Shared, Tree


class Observation(NamedTuple):
    """What y_t says: the residual y - d with zeros where missing, C likewise, a root of the noise, how many are there.

    The root is (E, E), or (E, 2E) where something is missing: a missing coordinate observes nothing but noise.
    """

    y: Tensor
    matrix: Tree
    scale: Tree
    count: Tree


def _rounding(root: Tensor) -> float:
    """Singular values of (..., D, D) below this share of the largest are rounding."""
    return 10 * root.shape[-1] * torch.finfo(root.dtype).eps


class Kalman(Method):
    r"""The Kalman filter and the Rauch-Tung-Striebel smoother, on square roots of covariances.

    predict: m = A m + b, P = A P A' + Q;  update: S = C P C' + R, K = P C' S^-1, m += K (y - C m - d).
    Each is one QR decomposition of stacked roots, so that a covariance never loses its sign. A missing coordinate is
    an observation of nothing: its row of C is zero and its noise is 1, and its share of the density is taken out.

    Source:
        Sarkka and Svensson, Bayesian Filtering and Smoothing 2023, sections 6.3, 8.4, 12.2 and 12.4.
    """

    accepts = (GaussianInitial, LinearPart, LinearPart)

    def exact(self, model: Any) -> bool:
        """Always."""
        return True

    def constants(self, model: Any) -> Tree:
        """Nothing."""
        return ()

    def prepare(self, model: Any, constants: Tree, data: Sequences) -> tuple[Tree, Observation]:
        """The move's matrices, and each step's observation with its gaps taken out."""
        move = Shared(model.transition.affine(data.u))
        emission = model.emission.affine(data.u)
        outputs = emission.matrix.shape[0]
        if data.y is None:
            length, batch = data.shape
            y = emission.offset.new_zeros(length, batch, outputs)
            there = torch.zeros_like(y, dtype=torch.bool)
        else:
            y, there = data.y, data.present
        if there is None:
            count = Shared(torch.tensor(float(outputs), dtype=y.dtype, device=y.device))
            return move, Observation(y - emission.offset, Shared(emission.matrix), Shared(emission.scale), count)
        there = there[..., None].expand_as(y) if there.dim() == 2 else there
        residual = torch.where(there, y - emission.offset, 0.0)
        matrix = torch.where(there[..., None], emission.matrix, 0.0)
        # The rows that are there keep their noise; each of the others gets one of its own.
        own = torch.diag_embed((~there).to(y.dtype))
        scale = torch.cat([torch.where(there[..., None], emission.scale, 0.0), own], -1)
        return move, Observation(residual, matrix, scale, there.sum(-1).to(y.dtype))

    def init(self, model: Any, move: Affine, batch: int) -> Gaussian:
        """p(z_1)."""
        return model.initial.gaussian(batch)

    def predict(self, model: Any, belief: Any, move: Affine) -> Gaussian:
        """Moments after the move."""
        belief = belief.state
        batch = len(belief.mean)
        root = torch.cat([move.matrix @ belief.scale, move.scale.expand(batch, -1, -1)], -1)
        return Gaussian(belief.mean @ move.matrix.mT + move.offset, lower(root))

    def update(self, model: Any, belief: Gaussian, likelihood: Observation) -> tuple[Gaussian, Float[Tensor, " B"]]:
        """Moments given y_t, and the log-density of y_t's observed coordinates."""
        matrix, scale = likelihood.matrix, likelihood.scale
        batch, dim = belief.mean.shape
        outputs, noises = scale.shape[-2:]
        top = torch.cat([matrix @ belief.scale, scale.expand(batch, -1, -1)], -1)
        bottom = torch.cat([belief.scale, belief.scale.new_zeros(batch, dim, noises)], -1)
        joint = lower(torch.cat([top, bottom], -2))
        innovation, cross = joint[:, :outputs, :outputs], joint[:, outputs:, :outputs]
        residual = likelihood.y - (matrix @ belief.mean[..., None])[..., 0]
        white = torch.linalg.solve_triangular(innovation, residual[..., None], upper=False)[..., 0]
        mean = belief.mean + (cross @ white[..., None])[..., 0]
        log_determinant = innovation.diagonal(dim1=-2, dim2=-1).abs().log().double().sum(-1)
        squares = white.double().square().sum(-1)
        log_prob = -0.5 * (squares + likelihood.count * math.log(2 * math.pi)) - log_determinant
        return Gaussian(mean, joint[:, outputs:, outputs:]), log_prob

    def backward(self, model: Any, belief: Any, move: Affine, later: Any) -> Gaussian:
        """Rauch-Tung-Striebel: z_t = m_t + G (z_{t+1} - m-) + noise, under any belief about z_{t+1}.

        The covariance is Joseph's sum, (I - G A) P (I - G A)' + G Q G' + G P+ G', which holds where P- is singular.
        """
        belief, later = belief.state, later.state
        moved, noise = move.matrix @ belief.scale, move.scale.expand(len(belief.mean), -1, -1)
        # A direction without variance has no inverse; nothing is to be learnt along it either.
        inverse = torch.linalg.pinv(lower(torch.cat([moved, noise], -1)), rtol=_rounding(moved))
        gain = belief.scale @ moved.mT @ inverse.mT @ inverse
        ahead = belief.mean @ move.matrix.mT + move.offset
        mean = belief.mean + (gain @ (later.mean - ahead)[..., None])[..., 0]
        rest = belief.scale - gain @ moved
        return Gaussian(mean, lower(torch.cat([rest, gain @ noise, gain @ later.scale], -1)))

    def smooth(self, model: Any, prepared: Prepared, belief: Any, shape: tuple[int, int]) -> Gaussian:
        """By `backward`."""
        return smooth_backward(model, self, prepared, belief, shape)

    def fill(self, model: Any, constants: Tree, data: Sequences) -> Tensor:
        """C m + d, and for the missing part of a row what the rest of its noise says of it."""
        prepared = Prepared(*self.prepare(model, constants, data), data.lengths)
        mean = self.smooth(model, prepared, None, data.shape).mean
        emission, there = model.emission.affine(data.u), data.present
        expected = mean @ emission.matrix.mT + emission.offset
        if there is None or there.dim() == 2:
            return expected
        residual = torch.where(there, data.y - expected, 0.0)
        noise = torch.where(there[..., None], emission.scale, 0.0)  # (T, B, E, E), a root of the noise that was seen
        source = torch.linalg.pinv(noise, rtol=_rounding(noise)) @ residual[..., None]
        return expected + (emission.scale @ source)[..., 0]

    def decode(self, model: Any, constants: Tree, data: Sequences, k: int) -> tuple[Tensor, None]:
        """The smoothed mean: of a joint normal it is the mode."""
        if k > 1:
            raise TypeError("a normal posterior has one mode; ask for k=1, or sample_posterior for more paths")
        prepared = Prepared(*self.prepare(model, constants, data), data.lengths)
        return self.smooth(model, prepared, None, data.shape).mean[:, :, None], None

    def emit(self, model: Any, constants: Tree, belief: Any, u: Tree) -> MultivariateNormal:
        """N(C m + d, C P C' + R)."""
        emission, state = model.emission.affine(u), belief.state
        root = emission.matrix @ state.scale
        covariance = root @ root.mT + emission.scale @ emission.scale.mT
        mean = state.mean @ emission.matrix.mT + emission.offset
        return MultivariateNormal(mean, scale_tril=factor(covariance), validate_args=False)
