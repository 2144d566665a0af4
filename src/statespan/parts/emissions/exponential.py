"""Exponential families: the likelihood and its sums are matrix products of features."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from statespan.part import FiniteEmission
from statespan.parts.emissions.common import first_weights, known
from statespan.sequences import Event
from statespan.shapes import Float
from statespan.tree import Tree


class Sums(NamedTuple):
    """Sums over what is observed: weights (K, D), and weighted features (M, K, D)."""

    weight: Tensor
    features: Tensor


class Natural(NamedTuple):
    """Parameters of the canonical form: eta as a matrix (M D, K), and log-partitions a, (D, K)."""

    matrix: Tensor
    partition: Tensor


class ExponentialFamily(FiniteEmission, ABC):
    r"""Vectors whose coordinates are independent given the state, each of an exponential family.

    log p(y_d | z = k) = h(y_d) + sum over m of eta_mkd s_m(y_d) - a_kd, so that a missing coordinate is left out of
    the sum. What is to be written are the features s, h, the natural parameters, the distribution and the M-step.

    Source:
        Wainwright and Jordan, Graphical Models, Exponential Families, and Variational Inference 2008, section 3.1.
    """

    dim: int
    event: Event
    neutral: ClassVar[float] = 0.0
    """A value that can be observed: it stands where one is missing."""

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """E[y | k], (K, D)."""

    @abstractmethod
    def features(self, y: Tensor) -> Tensor:
        """s(y), (..., M, D), of y (..., D)."""

    @abstractmethod
    def base(self, y: Tensor) -> Tensor | None:
        """h(y), (..., D); None where it is zero."""

    @abstractmethod
    def natural(self) -> tuple[Tensor, Tensor]:
        """Eta (M, K, D) and a (K, D)."""

    @abstractmethod
    def forward(self, z: Tensor, u: Tree = None) -> Distribution:
        """The distribution of y given states z."""

    @abstractmethod
    def maximize(self, stats: Sums) -> None:
        """The M-step."""

    def constants(self) -> Natural:
        """The natural parameters as a matrix."""
        eta, partition = self.natural()
        return Natural(eta.transpose(1, 2).flatten(0, 1), partition.T)

    def log_likelihood(
        self, y: Float[Tensor, "T B D"], u: Tree, observed: Tensor | None, constants: Natural
    ) -> Float[Tensor, "T B K"]:
        """One matrix product, and where single coordinates are missing a second one."""
        y, there = known(y, observed, self.neutral)
        features, base = self.features(y), self.base(y)
        if there is None:
            out = features.flatten(-2) @ constants.matrix - constants.partition.sum(0)
        else:
            mask = there.to(y)
            out = (features * mask[..., None, :]).flatten(-2) @ constants.matrix - mask @ constants.partition
            base = None if base is None else base * mask
        return out if base is None else out + base.sum(-1, keepdim=True)

    def fill(self, y: Tensor, u: Tree, observed: Tensor | None, weights: Tensor) -> Tensor:
        """The mean."""
        return weights @ self.mean

    @torch.no_grad()
    def statistics(self, y: Tensor, u: Tree, weights: Tensor, observed: Tensor | None) -> Sums:
        """Expected sums over what is there."""
        y, there = known(y, observed, self.neutral)
        w, rows = weights.reshape(-1, weights.shape[-1]).T, self.features(y).flatten(0, 1)
        if there is None:
            weight = w.sum(-1, keepdim=True).expand(-1, self.dim).contiguous()
        else:
            mask = there.reshape(-1, self.dim).to(y)
            weight, rows = w @ mask, rows * mask[:, None]
        return Sums(weight, (w @ rows.flatten(1)).unflatten(1, rows.shape[1:]).transpose(0, 1).contiguous())

    @torch.no_grad()
    def begin(self, y: Tensor, u: Tree, observed: Tensor | None) -> None:
        """A start for EM from the data: the M-step for states at rows far apart (k-means++)."""
        self.maximize(self.statistics(y, u, first_weights(y, observed, len(self.mean)), observed))


def averages(stats: Sums) -> tuple[Tensor, Tensor]:
    """Mean features (M, K, D), and where there is anything to learn from, (K, D)."""
    seen = stats.weight > 0
    return stats.features / torch.where(seen, stats.weight, 1.0), seen


def sizes(given: dict[str, Tensor], dim: int, states: int | None) -> tuple[int, int | None]:
    """D and K, from parameters (K, D) where there are some."""
    for values in given.values():
        states, dim = values.shape
    return dim, states


def expanded(values: Any, like: Tensor) -> Tensor:
    """A number or an array as one of `like`'s kind."""
    return torch.as_tensor(values, dtype=like.dtype, device=like.device)
