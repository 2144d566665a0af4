"""What is known of the hidden state: named tuples of tensors, batch in front (time before it once stacked).

Every belief answers `state` (itself, or what it wraps), `fed` (what the last observation left behind for the
next move, or None), `draw()` (a belief sure of one state, drawn from this one), `point()` (that state as a
tensor) and `summary()` (what a user reads: probabilities, or a mean and covariance, or samples).
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from statespan.errors import StatespanError
from statespan.tree import Lazy, Tree, leaves, tree_map


@runtime_checkable
class Belief(Protocol):
    """The interface that every belief below has."""

    @property
    def state(self) -> Any: ...  # noqa: D102
    @property
    def fed(self) -> Tree: ...  # noqa: D102
    def draw(self) -> Any: ...  # noqa: D102
    def point(self) -> Tree: ...  # noqa: D102
    def summary(self) -> dict[str, Tensor]: ...  # noqa: D102


class Discrete(NamedTuple):
    """A distribution over K states.

    Args:
        probs: (..., K), sums to one.

    Example:
        >>> Discrete(torch.tensor([0.2, 0.8])).point()
        tensor(1)
    """

    probs: Tensor

    @property
    def state(self) -> "Discrete":
        """Itself."""
        return self

    @property
    def fed(self) -> None:
        """Nothing."""
        return None

    def draw(self) -> "Discrete":
        """One-hot at a state drawn from `probs`."""
        return Discrete(torch.nn.functional.one_hot(choose(self.probs), self.probs.shape[-1]).to(self.probs.dtype))

    def point(self) -> Tensor:
        """The most probable state, (...) integers; ties go to the lower one."""
        return self.probs.argmax(-1)

    def summary(self) -> dict[str, Tensor]:
        """`probs`."""
        return {"probs": self.probs}


class Gaussian(NamedTuple):
    """A normal distribution; its covariance is scale scale', so it cannot lose positive semi-definiteness.

    Args:
        mean: (..., D).
        scale: (..., D, D), lower triangular, may be singular.

    Example:
        >>> Gaussian(torch.zeros(1), torch.tensor([[2.0]])).summary()["covariance"]
        tensor([[4.]])
    """

    mean: Tensor
    scale: Tensor

    @property
    def state(self) -> "Gaussian":
        """Itself."""
        return self

    @property
    def fed(self) -> None:
        """Nothing."""
        return None

    @property
    def factor(self) -> None:
        """It is flat along no direction (see `Diffuse`)."""
        return None

    def draw(self) -> "Gaussian":
        """A belief without spread at a draw from this one."""
        noise = torch.randn_like(self.mean)[..., None]
        return Gaussian(self.mean + (self.scale @ noise)[..., 0], torch.zeros_like(self.scale))

    def point(self) -> Tensor:
        """The mean, (..., D)."""
        return self.mean

    def summary(self) -> dict[str, Tensor]:
        """`mean` and `covariance`."""
        return {"mean": self.mean, "covariance": squared(self.scale)}


class Steady(NamedTuple):
    """Normal distributions (T, B, ...) of which many steps have the same covariance, which is kept once.

    Args:
        mean: (T, B, D).
        roots: (N, B or 1, D, D), lower triangular.
        which: (T,) integers, the root of each step.
    """

    mean: Tensor
    roots: Tensor
    which: Tensor

    @property
    def state(self) -> "Steady":
        """Itself."""
        return self

    @property
    def fed(self) -> None:
        """Nothing."""
        return None

    @property
    def factor(self) -> None:
        """It is flat along no direction (see `Diffuse`)."""
        return None

    @property
    def scale(self) -> Tensor:
        """The root of every step, (T, B, D, D)."""
        return self._every(self.roots)

    def draw(self) -> Gaussian:
        """As that of `Gaussian`."""
        return Gaussian(self.mean, self.scale).draw()

    def point(self) -> Tensor:
        """The mean, (T, B, D)."""
        return self.mean

    def summary(self) -> dict[str, Tensor]:
        """`mean` and `covariance`."""
        return {"mean": self.mean, "covariance": self._every(squared(self.roots))}

    def answers(self) -> dict[str, Any]:
        """The summary, whose covariance is made when it is first asked for."""
        return {"mean": self.mean, "covariance": Lazy(lambda: self.summary()["covariance"])}

    def _every(self, x: Tensor) -> Tensor:
        return x[self.which].expand(-1, self.mean.shape[1], -1, -1)


class Diffuse(NamedTuple):
    """A normal distribution that is flat along some directions: covariance scale scale' + k factor factor', k infinite.

    Args:
        mean: (..., D); along the factor it says nothing.
        scale: (..., D, D), lower triangular, may be singular.
        factor: (..., D, q); columns of zeros once the data have settled them.

    Source:
        de Jong, "The diffuse Kalman filter", Annals of Statistics 1991.

    Example:
        >>> Diffuse(torch.zeros(1), torch.zeros(1, 1), torch.ones(1, 1)).summary()["covariance"]
        tensor([[inf]])
    """

    mean: Tensor
    scale: Tensor
    factor: Tensor

    @property
    def state(self) -> "Diffuse":
        """Itself."""
        return self

    @property
    def fed(self) -> None:
        """Nothing."""
        return None

    def draw(self) -> "Diffuse":
        """A belief without spread at a draw from this one.

        Raises:
            StatespanError: it is still flat along some direction.
        """
        if bool(self.factor.any()):
            raise StatespanError(
                "the state is still diffuse here, and a flat distribution has no draws; give more observations, or a "
                "known or stationary start"
            )
        return self._replace(**Gaussian(self.mean, self.scale).draw()._asdict())

    def point(self) -> Tensor:
        """The mean, (..., D)."""
        return self.mean

    def summary(self) -> dict[str, Tensor]:
        """`mean` and `covariance`, whose entries are infinite where the factor reaches."""
        flat = self.factor @ self.factor.mT
        size = self.factor.abs() @ self.factor.abs().mT
        reached = flat.abs() > size * torch.finfo(flat.dtype).eps ** 0.5
        covariance = torch.where(reached, flat.sign() * torch.inf, squared(self.scale))
        return {"mean": self.mean, "covariance": covariance}


class Particles(NamedTuple):
    """A weighted cloud of N states.

    Args:
        z: (..., N) or (..., N, D), the particles.
        log_weights: (..., N), normalised: their exponentials sum to one.
        ancestors: (..., N) integers, which particle of the step before each came from.

    Example:
        >>> cloud = Particles(torch.tensor([[1.0], [3.0]]), torch.tensor([0.25, 0.75]).log(), torch.tensor([0, 0]))
        >>> cloud.summary()["mean"], cloud.point()
        (tensor([2.5000]), tensor([3.]))
    """

    z: Tensor
    log_weights: Tensor
    ancestors: Tensor

    @property
    def state(self) -> "Particles":
        """Itself."""
        return self

    @property
    def fed(self) -> None:
        """Nothing."""
        return None

    def draw(self) -> "Particles":
        """A cloud of one particle, drawn by weight."""
        chosen = choose(self.log_weights.exp())[..., None]
        return Particles(self.at(chosen), torch.zeros_like(self.log_weights[..., :1]), chosen)

    def at(self, index: Tensor) -> Tensor:
        """The particles of (..., M) indices: (..., M) or (..., M, D)."""
        axis, rank = self.log_weights.dim() - 1, self.z.dim() - self.log_weights.dim()
        wide = index.view(*index.shape, *[1] * rank).expand(*index.shape, *self.z.shape[axis + 1 :])
        return self.z.gather(axis, wide)

    def point(self) -> Tensor:
        """The heaviest particle, (...) or (..., D)."""
        axis = self.log_weights.dim() - 1
        return self.at(self.log_weights.argmax(-1, keepdim=True)).squeeze(axis)

    def summary(self) -> dict[str, Tensor]:
        """`samples` (..., N, D), `weights` (..., N), and their `mean` and `covariance` for vectors."""
        weights = self.log_weights.exp()
        if self.z.dim() == weights.dim():
            return {"samples": self.z, "weights": weights}
        mean = (weights[..., None] * self.z).sum(-2)
        centred = self.z - mean[..., None, :]
        covariance = (weights[..., None] * centred).mT @ centred
        return {"samples": self.z, "weights": weights, "mean": mean, "covariance": covariance}


class Hybrid(NamedTuple):
    """A regime and a vector: one state of a switching linear model.

    Args:
        regime: (...) integers.
        state: (..., D).

    Example:
        >>> Hybrid(torch.tensor(1), torch.zeros(2)).state.shape
        torch.Size([2])
    """

    regime: Tensor
    state: Tensor


class MixtureOfGaussians(NamedTuple):
    """A regime s out of S, and in each regime a mixture of I normal distributions of z.

    p(s, z) = sum over i of weights[s, i] N(z; mean[s, i], scale[s, i] scale[s, i]').

    Args:
        weights: (..., S, I), sum to one over both; one that is zero is a place not used.
        mean: (..., S, I, D).
        scale: (..., S, I, D, D), lower triangular, may be singular.

    Example:
        >>> half, means = torch.full((2, 1), 0.5), torch.tensor([[[-1.0]], [[1.0]]])
        >>> two = MixtureOfGaussians(half, means, torch.zeros(2, 1, 1, 1))
        >>> two.summary()["mean"], two.summary()["covariance"]
        (tensor([0.]), tensor([[1.]]))
    """

    weights: Tensor
    mean: Tensor
    scale: Tensor

    @property
    def state(self) -> "MixtureOfGaussians":
        """Itself."""
        return self

    @property
    def fed(self) -> None:
        """Nothing."""
        return None

    @property
    def probs(self) -> Tensor:
        """p(s), (..., S)."""
        return self.weights.sum(-1)

    def draw(self) -> "MixtureOfGaussians":
        """A belief sure of one regime and one z."""
        regimes, each = self.weights.shape[-2:]
        one = choose(self.weights.flatten(-2))
        index = one[..., None, None]
        mean = self.mean.flatten(-3, -2).gather(-2, index.expand(*index.shape[:-1], self.mean.shape[-1]))
        scale = self.scale.flatten(-4, -3).gather(-3, index[..., None].expand(*one.shape, 1, *self.scale.shape[-2:]))
        z = Gaussian(mean[..., 0, :], scale[..., 0, :, :]).draw().mean[..., None, None, :]
        sure = torch.nn.functional.one_hot(one // each, regimes).to(z)[..., None]
        z = z.expand(*one.shape, regimes, 1, -1)
        return MixtureOfGaussians(sure, z, z.new_zeros(1).expand(*z.shape, z.shape[-1]))

    def point(self) -> Hybrid:
        """The most probable regime, and the mean of z in it."""
        regime = self.probs.argmax(-1)
        index = regime[..., None, None].expand(*regime.shape, 1, self.mean.shape[-1])
        return Hybrid(regime, averaged(self.weights, self.mean).gather(-2, index)[..., 0, :])

    def summary(self) -> dict[str, Tensor]:
        """`probs` of the regimes, and `mean` and `covariance` of z whatever the regime."""
        weights, mean = self.weights.flatten(-2), self.mean.flatten(-3, -2)
        centre = (weights[..., None] * mean).sum(-2)
        away = mean - centre[..., None, :]
        within = (weights[..., None, None] * squared(self.scale.flatten(-4, -3))).sum(-3)
        return {"probs": self.probs, "mean": centre, "covariance": within + (weights[..., None] * away).mT @ away}


def averaged(weights: Tensor, values: Tensor) -> Tensor:
    """The mean of values (..., I, D) by weights (..., I); where all of these are zero, the plain mean."""
    total = weights.sum(-1, keepdim=True)
    share = torch.where(total > 0, weights / torch.where(total > 0, total, 1.0), 1 / weights.shape[-1])
    return (share[..., None] * values).sum(-2)


class Point(NamedTuple):
    """A state known exactly: the hidden vector of a recurrent network, or a tuple of them.

    Args:
        value: a tensor (..., D) or a tuple of such (an LSTM's h and c).

    Example:
        >>> Point((torch.ones(3), torch.zeros(3))).summary()["state"]
        tensor([1., 1., 1.])
    """

    value: Tree

    @property
    def state(self) -> "Point":
        """Itself."""
        return self

    @property
    def fed(self) -> None:
        """Nothing."""
        return None

    def draw(self) -> "Point":
        """Itself: there is nothing to draw."""
        return self

    def point(self) -> Tree:
        """The state."""
        return self.value

    def summary(self) -> dict[str, Tensor]:
        """`state`: the vector the network puts out (an LSTM's h)."""
        return {"state": leaves(self.value)[0]}


class Hidden(NamedTuple):
    """A belief about the state together with what the last observation left behind for the next move.

    Args:
        state: the belief about the state.
        fed: a tree; for a language model what the last word feeds (an embedding, its projection).

    Example:
        >>> Hidden(Discrete(torch.tensor([0.2, 0.8])), fed=torch.zeros(4)).point()
        tensor(1)
    """

    state: Any
    fed: Tree

    def draw(self) -> "Hidden":
        """Draw the state, keep what was fed."""
        return Hidden(self.state.draw(), self.fed)

    def point(self) -> Tree:
        """The state's point."""
        return self.state.point()

    def summary(self) -> dict[str, Tensor]:
        """The state's summary."""
        return self.state.summary()


class Best(NamedTuple):
    """The k best paths into each state, for max-product.

    Args:
        score: (..., K, k) log-probability of each path, best first.
        back: (..., K, k) integers: previous state times k plus the rank of the path it extends.

    Source:
        Viterbi 1967; Rabiner 1989, section III.B.

    Example:
        >>> Best(torch.tensor([[-3.0], [-1.0]]), torch.zeros(2, 1, dtype=torch.long)).point()
        tensor(1)
    """

    score: Tensor
    back: Tensor

    @property
    def state(self) -> "Best":
        """Itself."""
        return self

    @property
    def fed(self) -> None:
        """Nothing."""
        return None

    def draw(self) -> "Best":
        """Itself: a maximum is not drawn from."""
        return self

    def point(self) -> Tensor:
        """The state where the best path ends."""
        return self.score[..., 0].argmax(-1)

    def summary(self) -> dict[str, Tensor]:
        """`score`."""
        return {"score": self.score}


def squared(scale: Tensor) -> Tensor:
    """The product scale scale' of (..., D, D), once for all that an expanded axis shares."""
    once = scale[tuple(slice(0, 1) if step == 0 else slice(None) for step in scale.stride()[:-2])]
    return (once @ once.mT).expand(scale.shape)


def choose(weights: Tensor) -> Tensor:
    """One index a row, drawn with probability proportional to weights (..., N), by an exponential race."""
    return (weights / torch.empty_like(weights).exponential_()).argmax(-1)


def with_fed(state: Any, fed: Tree) -> Any:
    """`Hidden(state, fed)`, or the bare state when nothing was fed."""
    return state if fed is None else Hidden(state, fed)


def known(state: Tree, simplex: bool) -> Discrete | Point:
    """A recurrent network's state as a belief: `Discrete` where it is a distribution, else `Point`."""
    return Discrete(state) if simplex else Point(state)


def select(tree: Tree, index: Tensor) -> Tree:
    """Of a stacked tree (T, B, ...) take row `index[b]` for each b: (B, ...)."""
    batch = torch.arange(len(index), device=index.device)
    return tree_map(lambda x: x[index, batch], tree)
