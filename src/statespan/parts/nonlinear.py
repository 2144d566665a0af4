"""Nonlinear Gaussian parts: how a vector moves by any function, and what it emits."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from statespan.errors import StatespanError
from statespan.part import Generative, NonlinearPart, Part
from statespan.parts.linear import factor, inputs_of, root
from statespan.sequences import Event
from statespan.tree import Tree


class NonlinearGaussian(Part, NonlinearPart, Generative):
    r"""x -> f(x, u) + scale e: a move of the state by any function, or an observation of it.

    A noise that changes with the state, or parameters shared in another way, take a class of one's own:
    `moments(z, u)` of `statespan.part.NonlinearPart`.

    Args:
        function: f, of states (..., D) and, where `controls` is above 0, inputs (..., U), to (..., E). To be fitted it
            is an nn.Module, to be saved an `ss.Part`.
        outputs: E, the width of the result.
        controls: U, the width of the inputs u that f takes; 0: f(x) alone.
        covariance: the noise's, (E, E); None: the identity.

    Raises:
        StatespanError: f cannot be called, or gives another width; the covariance is no covariance of E; it takes
            inputs, and the data have none or of another width.

    Source:
        Sarkka and Svensson, Bayesian Filtering and Smoothing 2023, chapter 7.

    Example:
        >>> import torch
        >>> import statespan as ss
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> model = ss.StateSpace(ss.NormalStart(2), ss.NonlinearGaussian(net, 2), ss.Linear(2, 1))
        >>> model.log_prob([0.3, None, -0.1]).shape
        torch.Size([])
    """

    event: Event

    def __init__(self, function: Callable[..., Tensor], outputs: int, controls: int = 0, covariance: Any = None):
        super().__init__()
        if not callable(function):
            raise StatespanError(f"NonlinearGaussian({function!r}): give a function of states, such as an nn.Module")
        self.event, self.controls = Event(1, None, outputs), controls
        self.function = function
        self.scale = nn.Parameter(torch.eye(outputs) if covariance is None else _root(covariance, outputs))

    @property
    def covariance(self) -> Tensor:
        """The noise's covariance, (E, E)."""
        scale = root(self.scale)
        return scale @ scale.mT

    def moments(self, z: Tensor, u: Tree = None) -> tuple[Tensor, Tensor]:
        """F(z, u) and the scale."""
        mean = self.function(z, inputs_of(u, self.controls, self)) if self.controls else self.function(z)
        shape = (*z.shape[:-1], self.event.dim)
        if mean.shape != shape:
            raise StatespanError(
                f"the function of NonlinearGaussian turned states {tuple(z.shape)} into {tuple(mean.shape)}; "
                f"it should give {tuple(shape)}"
            )
        return mean, root(self.scale)

    def forward(self, z: Tensor, u: Tree = None) -> MultivariateNormal:
        """The distribution of the result given x = z."""
        if u is not None:  # states may have more axes than the inputs: particles
            u = u.view(*u.shape[:-1], *[1] * (z.dim() - u.dim()), u.shape[-1]).expand(*z.shape[:-1], -1)
        mean, scale = self.moments(z, u)
        return MultivariateNormal(mean, scale_tril=scale, validate_args=False)


def _root(covariance: Any, size: int) -> Tensor:
    value = torch.as_tensor(covariance, dtype=torch.float64)
    if value.shape != (size, size) or not bool(value.isfinite().all()):
        raise StatespanError(f"NonlinearGaussian(covariance=) has shape {tuple(value.shape)}; give ({size}, {size})")
    least = 1e-9 * float(value.abs().max())
    if float((value - value.mT).abs().max()) > least or float(torch.linalg.eigvalsh(value).min()) < -least:
        raise StatespanError("NonlinearGaussian(covariance=) is not symmetric and positive semi-definite")
    return factor(0.5 * (value + value.mT)).to(torch.get_default_dtype())
