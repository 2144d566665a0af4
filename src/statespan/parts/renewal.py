"""Segments that follow each other: how the first begins, and how likely each is to end."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from statespan.errors import StatespanError
from statespan.part import Part
from statespan.parts.durations import Hazard


class SegmentStart(Part):
    """A segment begins with the first step of a series.

    Source:
        Adams and MacKay, "Bayesian online changepoint detection", 2007, section 2.1.

    Example:
        >>> len(list(SegmentStart().parameters()))
        0
    """


class ConstantHazard(Part):
    r"""A segment ends after each of its steps with one probability: p(d) = h (1 - h)^(d - 1), d = 1, 2, ...

    Args:
        rate: h, between 0 and 1; segments last 1 / h steps on average.

    Raises:
        StatespanError: a rate that is not strictly between 0 and 1.

    Source:
        Adams and MacKay, "Bayesian online changepoint detection", 2007, section 2.1.

    Example:
        >>> round(ConstantHazard(1 / 250).rate.item(), 6)
        0.004
    """

    states = 1
    longest = None

    def __init__(self, rate: float = 0.01):
        super().__init__()
        if not 0 < rate < 1:
            raise StatespanError(
                f"a hazard of {rate!r} is no probability; give one between 0 and 1, such as 1 / 100 for segments of "
                "about 100 steps"
            )
        self.logit = nn.Parameter(torch.tensor(math.log(rate / (1 - rate)), dtype=torch.float64))

    @property
    def rate(self) -> Tensor:
        """H."""
        return self.logit.sigmoid()

    def hazard(self) -> Hazard:
        """Of a segment of any age the probabilities that it ends now and that it goes on, (1, 1)."""
        return Hazard(self.logit.sigmoid().view(1, 1), (-self.logit).sigmoid().view(1, 1))

    def log_prior(self) -> float:
        """None."""
        return 0.0


class Renewal(Part):
    r"""Segments that follow each other, each as long as a law says, whatever came before: a renewal process.

    The state is the run length, how many earlier steps its segment has had: r_t = 0 where a segment begins, and then
    r_t = r_{t-1} + 1 with probability p(d > r_{t-1} + 1) / p(d > r_{t-1}), else 0. With what a segment has shown
    forgotten when it ends, y acts on what comes next through more than the state: the transition is autoregressive.

    Args:
        durations: `ConstantHazard(rate)`, or a law of durations for one state, such as
            `ss.NegativeBinomialDurations(longest=200)`, whose longest segment is then that long.

    Raises:
        StatespanError: a law for several states.

    Source:
        Barry and Hartigan, "Product partition models for change point problems", 1992; Fearnhead 2006.

    Example:
        >>> import statespan as ss
        >>> Renewal(ss.PoissonDurations(longest=50)).hazards()[0].shape
        torch.Size([50])
    """

    autoregressive = True
    durations: Any

    def __init__(self, durations: Any):
        super().__init__()
        self.durations = durations.sized(1)
        if self.durations.states != 1:
            raise StatespanError(
                f"{type(durations).__name__} has {durations.states} states; segments have one law: give it states=1"
            )

    @property
    def longest(self) -> int | None:
        """The longest segment there can be; None: as long as it likes."""
        return self.durations.longest

    def hazards(self) -> tuple[Tensor, Tensor]:
        """Log-probabilities that a segment ends, and that it goes on, after 1, 2, ... steps, the last for all later."""
        leave, stay = self.durations.hazard()
        return _log(leave[:, 0]), _log(stay[:, 0])

    def log_prior(self) -> Any:
        """That of the law."""
        return self.durations.log_prior()


def _log(probs: Tensor) -> Tensor:
    """Logarithms, and no gradient where there is nothing."""
    some = probs > 0
    return torch.where(some, torch.where(some, probs, 1.0).log(), -torch.inf)
