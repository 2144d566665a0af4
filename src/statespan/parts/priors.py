"""Priors of parameters that are probabilities."""

from typing import Any

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
    alpha = torch.as_tensor(concentration, dtype=torch.float64)
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


def plain(concentration: Any) -> Any:
    """A concentration as a number or lists of numbers, which a recipe can say."""
    return concentration if isinstance(concentration, (int, float)) else torch.as_tensor(concentration).tolist()


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
