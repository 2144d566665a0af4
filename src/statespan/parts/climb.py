"""A numerical M-step that never goes down."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def climb(parameters: Iterable[nn.Parameter], objective: Callable[[], Tensor], iterations: int = 20) -> None:
    """Raise `objective()` by L-BFGS with a line search; where that fails, the parameters stay what they were.

    Args:
        parameters: those that may move; held ones (`requires_grad` False) stay.
        objective: the expected complete log-likelihood, and the log-prior.
        iterations: at most.

    Source:
        Nocedal and Wright, Numerical Optimization 2006, algorithm 7.5; a step that only rises makes generalised EM:
        Dempster, Laird and Rubin 1977, section 3.
    """
    free = [p for p in parameters if p.requires_grad]
    if not free:
        return
    before = [p.detach().clone() for p in free]
    kept = [p.grad for p in free]
    optimiser = torch.optim.LBFGS(
        free, max_iter=iterations, tolerance_grad=1e-10, tolerance_change=1e-13, line_search_fn="strong_wolfe"
    )
    with torch.enable_grad():
        start = float(objective().detach())
        scale = 1 / max(1.0, abs(start))

        def closure() -> Tensor:
            optimiser.zero_grad()
            loss = -objective() * scale
            loss.backward()
            return loss

        optimiser.step(closure)
    with torch.no_grad():
        if not float(objective()) >= start:
            for parameter, value in zip(free, before, strict=True):
                parameter.copy_(value)
    for parameter, gradient in zip(free, kept, strict=True):
        parameter.grad = gradient
