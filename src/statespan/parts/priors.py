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
