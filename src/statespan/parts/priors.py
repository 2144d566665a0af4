"""Priors of parameters that are probabilities."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from statespan.errors import StatespanError


def dirichlet(concentration: Any, shape: tuple[int | None, ...], name: str) -> Tensor:
    """Check the concentration alpha of a Dirichlet prior and give it in float64; one number stays one number.

    Args:
        concentration: a number, or an array of `shape` or of its last axes; 1 is no prior.
        shape: of the probabilities; None for a size not known yet.
        name: what to call it in an error.

    Raises:
        StatespanError: alpha below 1, whose density has no mode inside the simplex; or another shape.
    """
    alpha = torch.as_tensor(
        concentration, dtype=torch.float64, device="cpu"
    )  # a model that is only counted is on "meta"
    last = shape[len(shape) - alpha.dim() :]
    if alpha.dim() > len(shape) or any(n not in (None, m) for n, m in zip(last, alpha.shape, strict=True)):
        raise StatespanError(f"{name} is {tuple(alpha.shape)}; give one number, or an array {shape} or its last axes")
    if not bool((alpha >= 1).all()):
        raise StatespanError(
            f"{name}: {float(alpha.min()):g} is below 1, where the most probable parameters do not exist; "
            "use 1 (no prior) or more"
        )
    return alpha


def log_dirichlet(probs: Tensor, extra: Tensor) -> Tensor:
    """Sum of (alpha - 1) log p, `extra` = alpha - 1 broadcasting; a probability fixed at zero counts nothing."""
    extra = extra.to(probs)
    if not bool(extra.any()):
        return probs.new_zeros(())
    possible = probs > 0
    return (extra * torch.where(possible, probs, 1.0).log()).sum()


def gamma(prior: Any, name: str) -> tuple[float, float]:
    """Check shape a and rate b of a Gamma prior on a rate; (1, 0) is no prior."""
    a, b = (float(x) for x in prior)
    if not (a >= 1 and b >= 0):
        raise StatespanError(f"{name}: Gamma({a:g}, {b:g}) has no mode above 0; use a of 1 or more and b of 0 or more")
    return a, b


def log_gamma(rate: Tensor, prior: tuple[float, float]) -> Tensor:
    """Sum of (a - 1) log rate - b rate."""
    a, b = prior
    return ((a - 1) * rate.log() - b * rate).sum() if prior != (1.0, 0.0) else rate.new_zeros(())


def beta(prior: Any, name: str) -> tuple[float, float]:
    """Check a and b of a Beta prior on a probability; (1, 1) is no prior."""
    a, b = (float(x) for x in prior)
    if not (a >= 1 and b >= 1):
        raise StatespanError(f"{name}: Beta({a:g}, {b:g}) has no mode between 0 and 1; use 1 (no prior) or more")
    return a, b


def log_beta(logits: Tensor, prior: tuple[float, float]) -> Tensor:
    """Sum of (a - 1) log p + (b - 1) log(1 - p)."""
    a, b = prior
    softplus = torch.nn.functional.softplus
    return -((a - 1) * softplus(-logits) + (b - 1) * softplus(logits)).sum()


class NormalInverseWishart(NamedTuple):
    """A prior on means and covariances: on the covariances if there is a `scale`, on the means if there is a strength.

    log p = -(nu + D + 1 + [kappa > 0]) / 2 log |S| - tr((Psi + kappa (m - m0) (m - m0)') S^-1) / 2 for each state; of
    a tied covariance the inverse Wishart's part counts once.

    Source:
        Murphy, Machine Learning: A Probabilistic Perspective 2012, section 4.6.3.2.
    """

    scale: Tensor | None
    degrees: float
    mean_strength: float
    mean: Tensor

    @staticmethod
    def check(dim: int, scale: Any, degrees: float | None, mean_strength: float, mean: Any) -> "NormalInverseWishart":
        """From what a user says."""
        degrees = float(dim + 2) if degrees is None else float(degrees)
        least = -dim - 1 - (mean_strength > 0)
        if not (degrees >= least and mean_strength >= 0):
            raise StatespanError(
                f"prior on a covariance: degrees={degrees:g}, mean_strength={mean_strength:g}; "
                f"use degrees of {least} or more and a strength of 0 or more"
            )
        psi = None if scale is None else torch.as_tensor(scale, dtype=torch.float64)
        if psi is not None:
            psi = psi * torch.eye(dim, dtype=torch.float64) if psi.dim() == 0 else psi
            if psi.dim() < 2 or psi.shape[-2:] != (dim, dim) or bool((torch.linalg.eigvalsh(psi) < -1e-12).any()):
                raise StatespanError(
                    f"prior_scale is {tuple(psi.shape)}; give a number, or matrices ({dim}, {dim}) or "
                    f"(K, {dim}, {dim}) without negative eigenvalues"
                )
        return NormalInverseWishart(psi, degrees, float(mean_strength), torch.as_tensor(mean, dtype=torch.float64))

    def psi(self, like: Tensor) -> Tensor:
        """Psi, (D, D) or (K, D, D)."""
        dim = like.shape[-1]
        return like.new_zeros(dim, dim) if self.scale is None else self.scale.to(like)

    def location(self, like: Tensor) -> Tensor:
        """The prior mean, as (K, D)."""
        return self.mean.to(like).expand_as(like)

    def extra(self, dim: int, states: int = 1) -> float:
        """What is added to the weight that a scatter is divided by; `states` share one covariance."""
        return (self.degrees + dim + 1 if self.scale is not None else 0.0) + states * (self.mean_strength > 0)

    def log(self, mean: Tensor, factor: Tensor, tied: bool) -> Tensor | float:
        """The log-density, up to a constant, of means (K, D) and factors (K, D, D) of covariances."""
        if self.scale is None and not self.mean_strength:
            return 0.0
        dim, each = mean.shape[-1], slice(0, 1) if tied else slice(None)
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)[each]
        value = -self.extra(dim, len(mean) if tied else 1) / 2 * log_det.sum()
        inverse = torch.cholesky_inverse(factor)
        value = value - (self.psi(mean) * inverse[each]).sum() / 2
        off = mean - self.location(mean)
        return value - self.mean_strength * torch.einsum("kd,kde,ke->", off, inverse, off) / 2


class MatrixNormalInverseWishart(NamedTuple):
    """A prior on a regression: on the noise's covariance Q if there is a `scale`, on the matrix A if a strength.

    log p = -(nu + E + 1) / 2 log |Q| - tr(Psi Q^-1) / 2 - r / 2 log |Q| - tr(Q^-1 (A - M) K (A - M)') / 2, with r the
    rank of K: an inverse Wishart, and given Q a matrix normal of rows with covariance Q and columns with K^-1.

    Source:
        Rossi, Allenby and McCulloch, Bayesian Statistics and Marketing 2005, section 2.8.5; Murphy, Machine Learning: A
        Probabilistic Perspective 2012, section 4.6.
    """

    scale: Tensor | None
    degrees: float
    strength: Tensor
    mean: Tensor

    @staticmethod
    def check(
        inputs: int, outputs: int, scale: Any, degrees: float | None, strength: Any, mean: Any
    ) -> "MatrixNormalInverseWishart":
        """From what a user says."""
        degrees = float(outputs + 2) if degrees is None else float(degrees)
        psi = None if scale is None else torch.as_tensor(scale, dtype=torch.float64)
        if psi is not None:
            psi = psi * torch.eye(outputs, dtype=torch.float64) if psi.dim() == 0 else psi
            if psi.shape != (outputs, outputs) or bool((torch.linalg.eigvalsh(psi) < -1e-12).any()):
                raise StatespanError(
                    f"prior_scale is {tuple(psi.shape)}; give a number, or a matrix ({outputs}, {outputs}) without "
                    "negative eigenvalues"
                )
            if degrees < -outputs - 1:
                raise StatespanError(f"degrees={degrees:g}; use {-outputs - 1} or more")
        weight = torch.as_tensor(strength, dtype=torch.float64).expand(inputs)
        if not bool((weight >= 0).all()):
            raise StatespanError("matrix_strength: use 0 (no prior) or more, one number or one for each column")
        given = torch.as_tensor(mean, dtype=torch.float64)
        centre = given * torch.eye(outputs, inputs, dtype=torch.float64) if given.dim() == 0 else given
        if centre.shape != (outputs, inputs):
            raise StatespanError(f"prior_matrix is {tuple(centre.shape)}; give ({outputs}, {inputs}), or a number")
        return MatrixNormalInverseWishart(psi, degrees, weight, centre)

    def extra(self, outputs: int) -> float:
        """What is added to the weight that a scatter is divided by."""
        return (self.degrees + outputs + 1 if self.scale is not None else 0.0) + float((self.strength > 0).sum())

    def scatter(self, matrix: Tensor) -> Tensor:
        """Psi + (A - M) K (A - M)', what is added to a scatter, (E, E)."""
        off = matrix - self.mean.to(matrix)
        found = (off * self.strength.to(matrix)) @ off.mT
        return found if self.scale is None else found + self.scale.to(matrix)

    def log(self, matrix: Tensor, root: Tensor) -> Tensor | float:
        """The log-density, up to a constant, of A and of Q with this lower triangular root."""
        if self.scale is None and not bool(self.strength.any()):
            return 0.0
        log_det = 2 * root.diagonal(dim1=-2, dim2=-1).abs().log().sum()
        inverse = torch.cholesky_inverse(root)
        return -self.extra(len(root)) / 2 * log_det - (self.scatter(matrix) * inverse).sum() / 2
