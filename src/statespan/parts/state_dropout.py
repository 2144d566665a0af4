"""States left out at random while a chain is trained, so that no state leans on another."""

from typing import Any

import torch
from torch import Tensor, nn

from statespan.part import MatrixTransition, Part


class StateDropout(Part, MatrixTransition):
    r"""In training, a chain that does not move to some states: A'[i, j] = A[i, j] m[j] / sum over k of A[i, k] m[k].

    m is drawn anew for each window, the same for all of it, each entry 0 with probability p. Out of training it is the
    chain itself.

    Args:
        move: the chain, one matrix.
        p: probability with which a state is left out.

    Source:
        Chiu and Rush, "Scaling hidden Markov language models", 2020, section 3.3.

    Example:
        >>> from statespan.parts.finite import Dense
        >>> left = StateDropout(Dense(50), 0.5)
        >>> int((left.probs[0] > 0).sum()) < 50, int((left.eval().probs[0] > 0).sum())
        (True, 50)
    """

    fed = False

    def __init__(self, move: nn.Module, p: float):
        super().__init__()
        self.move: Any = move
        self.states: Any = self.move.states
        self.p = p

    @property
    def probs(self) -> Tensor:
        """A, or in training A', (K, K)."""
        probs = self.move.probs
        if not self.training:
            return probs
        kept = torch.rand(probs.shape[-1], device=probs.device) >= self.p
        masked = probs * (kept | ~kept.any())
        return masked / masked.sum(-1, keepdim=True).clamp_min(torch.finfo(probs.dtype).tiny)

    @property
    def extra(self) -> Tensor:
        """What the chain's prior adds to the expected counts."""
        return self.move.extra

    @extra.setter
    def extra(self, counts: Tensor) -> None:
        self.move.extra = counts

    def log_prior(self) -> Tensor:
        """The chain's own."""
        return self.move.log_prior()

    @torch.no_grad()
    def maximize(self, counts: Tensor) -> None:
        """The chain's own M-step."""
        self.move.maximize(counts)

    def permute(self, order: Tensor) -> None:
        """As the chain does."""
        self.move.permute(order)
