"""Parts of wide states, whose noise is independent by coordinate: no D x D is ever made."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from statespan.belief import Gaussian
from statespan.errors import StatespanError
from statespan.part import GaussianInitial, Generative, NonlinearPart, Part
from statespan.parts.linear import inputs_of
from statespan.sequences import Event
from statespan.tree import Tree


def _deviations(value: Any, size: int, name: str) -> Tensor:
    """One number a coordinate, 0 or more."""
    found = torch.as_tensor(value, dtype=torch.float64)
    if (
        found.dim() > 1
        or (found.dim() == 1 and len(found) != size)
        or not bool((found.isfinite() & (found >= 0)).all())
    ):
        raise StatespanError(f"{name}(deviation=): give a number from 0, or {size} of them")
    return found.expand(size).clone().to(torch.get_default_dtype())


class IndependentStart(Part, GaussianInitial, Generative):
    r"""z_1 ~ N(mean, diag(deviation^2)).

    Args:
        dim: D.
        deviation: a number, or one for each coordinate.

    Raises:
        StatespanError: a deviation that is none.

    Example:
        >>> IndependentStart(3, deviation=2.0)((5,)).sample().shape
        torch.Size([5, 3])
    """

    def __init__(self, dim: int, deviation: Any = 1.0):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(dim))
        self.deviation = nn.Parameter(_deviations(deviation, dim, "IndependentStart"))
        self.remember(deviation=1.0)

    def gaussian(self, batch: int) -> Gaussian:
        """The belief about z_1 for `batch` sequences."""
        return Gaussian(self.mean.expand(batch, -1), torch.diag(self.deviation.abs()).expand(batch, -1, -1))

    def forward(self, shape: tuple[int, ...], u: Tree = None) -> Distribution:
        """The distribution of z_1 for a batch of `shape`."""
        each = Normal(self.mean, self.deviation.abs(), validate_args=False).expand(torch.Size([*shape, len(self.mean)]))
        return Independent(each, 1, validate_args=False)


class IndependentGaussian(Part, NonlinearPart, Generative):
    r"""x -> f(x, u) + diag(deviation) e: a move of a wide state by any function, or an observation of it.

    Args:
        function: f, of states (..., D) and, where `controls` is above 0, inputs (..., U), to (..., E). To be fitted it
            is an nn.Module, to be saved an `ss.Part`.
        outputs: E, the width of the result.
        controls: U, the width of the inputs u that f takes; 0: f(x) alone.
        deviation: of the noise, a number or one for each coordinate; 0 is none.

    Raises:
        StatespanError: f cannot be called, or gives another width; a deviation that is none; inputs that are missing.

    Example:
        >>> import torch
        >>> import statespan as ss
        >>> move = ss.IndependentGaussian(lambda z: 0.9 * z.roll(1, -1), 500, deviation=0.1)
        >>> seen = ss.IndependentGaussian(lambda z: z[..., ::50], 10, deviation=0.5)
        >>> model = ss.StateSpace(ss.IndependentStart(500), move, seen)
        >>> model.filter(torch.zeros(3, 10), method=ss.EnsembleKalman(20)).mean.shape
        torch.Size([3, 500])
    """

    event: Event

    def __init__(self, function: Callable[..., Tensor], outputs: int, controls: int = 0, deviation: Any = 1.0):
        super().__init__()
        if not callable(function):
            raise StatespanError(f"IndependentGaussian({function!r}): give a function of states, such as an nn.Module")
        self.event, self.controls, self.function = Event(1, None, outputs), controls, function
        self.deviation = nn.Parameter(_deviations(deviation, outputs, "IndependentGaussian"))
        self.remember(deviation=1.0)

    def _mean(self, z: Tensor, u: Tree) -> Tensor:
        mean = self.function(z, inputs_of(u, self.controls, self)) if self.controls else self.function(z)
        shape = (*z.shape[:-1], self.event.dim)
        if mean.shape != shape:
            raise StatespanError(
                f"the function of IndependentGaussian turned states {tuple(z.shape)} into {tuple(mean.shape)}; "
                f"it should give {tuple(shape)}"
            )
        return mean

    def moments(self, z: Tensor, u: Tree = None) -> tuple[Tensor, Tensor]:
        """F(z, u), and the deviations as a diagonal matrix."""
        return self._mean(z, u), torch.diag(self.deviation.abs())

    def forward(self, z: Tensor, u: Tree = None) -> Distribution:
        """The distribution of the result given x = z."""
        if u is not None:  # states may have more axes than the inputs: members
            u = u.view(*u.shape[:-1], *[1] * (z.dim() - u.dim()), u.shape[-1]).expand(*z.shape[:-1], -1)
        return Independent(Normal(self._mean(z, u), self.deviation.abs(), validate_args=False), 1, validate_args=False)
