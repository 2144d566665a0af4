"""Switching linear Gaussian parts: a regime jumps, and its matrices move a vector and show it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from statespan.belief import Gaussian, MixtureOfGaussians
from statespan.errors import StatespanError
from statespan.part import Affine, FiniteTransition, Part
from statespan.parts.inputs import Bound, rise, with_one
from statespan.parts.linear import lower
from statespan.sequences import Event
from statespan.tree import Shared, Tree, tree_map


class Nodes(NamedTuple):
    """A quadrature rule for a standard normal vector: where (N, D), and positive weights (N,)."""

    at: Tensor
    weights: Tensor


class Components(NamedTuple):
    """A mixture over regimes and vectors, laid out flat.

    Args:
        weights: (B, C), sum to one.
        regimes: the regime of each as a row of a table, (C, S) or (B, C, S), one-hot.
        mean: (B, C, D).
        scale: (B, C, D, D).
    """

    weights: Tensor
    regimes: Tensor
    mean: Tensor
    scale: Tensor


class Hybrids(NamedTuple):
    """Expected sums of a part: those about regimes, and those of each linear or normal part that it holds."""

    regimes: Tree
    vectors: tuple


def one_or_each(parts: Any, states: int, name: str) -> nn.ModuleList:
    """A part for each regime, or a list of one part for all of them."""
    each = nn.ModuleList([parts] if isinstance(parts, nn.Module) else parts)
    if len(each) not in (1, states):
        raise StatespanError(f"{name} holds {len(each)} parts for {states} regimes; give one for all, or one for each")
    return each


def regimes_of(chain: Any, name: str) -> int:
    """How many regimes a start or a chain has."""
    if not getattr(chain, "states", None):
        raise StatespanError(f"{name}: {type(chain).__name__} does not know its number of states; give it states=")
    return int(chain.states)


def same_width(parts: Any, name: str) -> int:
    """The width of the vectors that the parts give."""
    widths = {int(part.event.dim) for part in parts}
    if len(widths) > 1:
        raise StatespanError(f"{name}: the regimes have vectors of {sorted(widths)} numbers; make them of one width")
    return widths.pop()


def affines(parts: Any, u: Tree) -> Affine:
    """A, b and the noise of every part, with an axis of regimes (1 or K) before their own."""
    each = [part.affine(u) for part in parts]
    width = max(a.scale.shape[-1] for a in each)
    each = [a._replace(scale=nn.functional.pad(a.scale, (0, width - a.scale.shape[-1]))) for a in each]
    fields = zip(zip(*each, strict=True), (2, 1, 2), strict=True)
    return Affine(*[torch.stack(torch.broadcast_tensors(*field), -rank - 1) for field, rank in fields])


def shares(weights: Tensor, spread: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
    """Weights (..., K) and summed covariances (K, D, D) for each of K parts, or the totals for one that all share."""
    if count == 1:
        return [(weights.sum(-1), spread.sum(0))]
    return list(zip(weights.unbind(-1), spread.unbind(0), strict=True))


def of_moves(dynamics: Any, z: Tensor, y: Tensor, spread: Tensor, u: Tree, weights: Tensor) -> tuple:
    """Expected sums of the move of each regime, or of the one that all share."""
    each, after = shares(weights, spread, len(dynamics)), tree_map(lambda x: x[1:], u)
    return tuple(part.statistics(z, y, one, after, w) for part, (w, one) in zip(dynamics, each, strict=True))


def log_priors(parts: Any) -> Any:
    """The sum over parts of their log-priors; 0 without any."""
    return sum(part.log_prior() for part in parts)


def maximize(parts: Any, stats: tuple) -> None:
    """The M-step of each part that is not held."""
    for part, sums in zip(parts, stats, strict=True):
        if any(p.requires_grad for p in part.parameters()):
            part.maximize(sums)


class SwitchingStart(Part):
    r"""p(s_1) p(z_1 | s_1): a regime, and a normal vector.

    Args:
        chain: p(s_1), such as `ss.Start(K)`.
        vectors: p(z_1 | s_1), such as `ss.NormalStart(D)`: one for all regimes, or a list of one for each.

    Raises:
        StatespanError: another number of parts, or a start that is diffuse.

    Source:
        Barber, Bayesian Reasoning and Machine Learning 2012, section 25.1.

    Example:
        >>> import statespan as ss
        >>> SwitchingStart(ss.Start(3), ss.NormalStart(2)).gaussians().mean.shape
        torch.Size([1, 2])
    """

    chain: Any
    vectors: Any

    def __init__(self, chain: nn.Module, vectors: nn.Module | Sequence[nn.Module]):
        super().__init__()
        self.chain, self.states = chain, regimes_of(chain, "SwitchingStart")
        self.vectors = one_or_each(vectors, self.states, "SwitchingStart(vectors=)")

    def gaussians(self) -> Gaussian:
        """z_1 in every regime: (1 or K, D) and (1 or K, D, D)."""
        each = [vector.gaussian(1) for vector in self.vectors]
        if any(one.factor is not None for one in each):
            raise StatespanError(
                "a switching model cannot weigh its regimes from a diffuse start; use ss.NormalStart with a wide scale"
            )
        return Gaussian(torch.cat([one.mean for one in each]), torch.cat([one.scale for one in each]))

    def log_prior(self) -> Any:
        """The chain's and the vectors'."""
        return log_priors([self.chain, *self.vectors])

    def statistics(self, first: Tensor, u: Tree, z: Tensor, spread: Tensor) -> Hybrids:
        """Expected sums: regimes (B, K), means (B, D), summed covariances by the regimes' shares (K, D, D)."""
        each = shares(first, spread, len(self.vectors))
        sums = [v.statistics(z, one, weight) for v, (weight, one) in zip(self.vectors, each, strict=True)]
        return Hybrids(self.chain.statistics(first, u), tuple(sums))

    def maximize(self, stats: Hybrids) -> None:
        """The M-steps of the chain and of the vectors."""
        self.chain.maximize(stats.regimes)
        maximize(self.vectors, stats.vectors)


class SwitchingTransition(ABC):
    """p(s_t | s_{t-1}, z_{t-1}) p(z_t | z_{t-1}, s_t): a jump between K regimes, then the regime's affine move."""

    autoregressive: ClassVar[bool] = False
    recurrent: ClassVar[bool]
    """Whether z_{t-1} acts on the jump, which then is summed over by quadrature."""
    states: int
    event: Event

    @abstractmethod
    def constants(self) -> Tree:
        """Work on parameters alone."""

    @abstractmethod
    def tables(self, u: Tree, constants: Tree) -> Tree:
        """What `branch` needs, for all t: `Shared` or (T, B, ...)."""

    @abstractmethod
    def affine(self, u: Tree) -> Affine:
        """A, b and the noise's scale of every regime, (1 or K, ...) or (T, B, 1 or K, ...)."""

    @abstractmethod
    def branch(self, parts: Components, tables: Tree, nodes: Nodes) -> MixtureOfGaussians:
        """z_{t-1} by the regime that comes next, (B, K, C); averages over z, if there are any, by `nodes`."""


class SwitchingLinear(Part, SwitchingTransition):
    r"""A chain of regimes, and in each a linear move: z_t = A_s z_{t-1} + B_s u_t + b_s + scale_s e, s = s_t.

    The chain is any finite transition that no observation feeds: sticky, with held entries, driven by inputs.

    Args:
        chain: p(s_t | s_{t-1}), such as `ss.Dense(K, sticky=10)`.
        dynamics: the moves, such as `ss.Linear(D)`: a list of one for each regime, or one for all.

    Raises:
        StatespanError: another number of parts, vectors of different width, or a chain with states of its own.

    Source:
        Ackerson and Fu 1970; Barber, Bayesian Reasoning and Machine Learning 2012, chapter 25.

    Example:
        >>> import statespan as ss
        >>> SwitchingLinear(ss.Dense(2), [ss.Linear(3), ss.Linear(3)]).affine(None).matrix.shape
        torch.Size([2, 3, 3])
    """

    recurrent = False
    chain: Any
    dynamics: Any

    def __init__(self, chain: nn.Module, dynamics: nn.Module | Sequence[nn.Module]):
        super().__init__()
        self.chain, self.states = chain, regimes_of(chain, "SwitchingLinear")
        if not isinstance(chain, FiniteTransition) or chain.autoregressive or chain.owners is not None:
            raise StatespanError(
                f"SwitchingLinear: {type(chain).__name__} is no chain of plain regimes; use ss.Dense, ss.Sparse or "
                "ss.SoftmaxTransition"
            )
        self.dynamics = one_or_each(dynamics, self.states, "SwitchingLinear(dynamics=)")
        self.event = Event(1, None, same_width(self.dynamics, "SwitchingLinear(dynamics=)"))

    @property
    def probs(self) -> Any:
        """The chain's table (K, K), where it has one."""
        return getattr(self.chain, "probs", None)

    def constants(self) -> Tree:
        """The chain's."""
        return self.chain.constants()

    def tables(self, u: Tree, constants: Tree) -> Tree:
        """The chain's."""
        return self.chain.tables(u, constants)

    def affine(self, u: Tree) -> Affine:
        """Of every regime."""
        return affines(self.dynamics, u)

    def branch(self, parts: Components, tables: Tree, nodes: Nodes) -> MixtureOfGaussians:
        """Every component goes to every regime as it is."""
        rows = parts.regimes @ self.chain.dense(tables, None)
        size = (-1, self.states, -1, -1)
        return MixtureOfGaussians(
            (parts.weights[..., None] * rows).mT,
            parts.mean[:, None].expand(size),
            parts.scale[:, None].expand(*size, -1),
        )

    def log_prior(self) -> Any:
        """The chain's and the moves'."""
        return log_priors([self.chain, *self.dynamics])

    def statistics(
        self, counts: Tree, z: Tensor, y: Tensor, spread: Tensor, u: Tree, weights: Tensor, before: Tensor
    ) -> Hybrids:
        """Expected sums over moves, for `maximize`.

        Args:
            counts: of jumps, a tree like the tables.
            z: (T - 1, B, D), posterior means before each move.
            y: (T - 1, B, D), after it.
            spread: (K, 2 D, 2 D), their summed joint covariances, each times its weight.
            u: (T, B, U) inputs, or None.
            weights: (T - 1, B, K), the probability of each regime after the move.
            before: (T - 1, B, D, D), the covariances before each move.
        """
        return Hybrids(self.chain.statistics(counts, u), of_moves(self.dynamics, z, y, spread, u, weights))

    def maximize(self, stats: Hybrids) -> None:
        """The M-steps of the chain and of the moves."""
        self.chain.maximize(stats.regimes)
        maximize(self.dynamics, stats.vectors)


class RecurrentSwitchingLinear(Part, SwitchingTransition):
    r"""A switching linear move whose jump looks at where the vector is: the recurrent switching linear model.

    p(s_t = j | s_{t-1} = i, z) = softmax over j of (logits[i, j] + weight[i, j]' z), z = z_{t-1}; then z_t as in
    `SwitchingLinear`. A jump conditions a normal z on a softmax of it: what that leaves is taken to be normal, with its
    mean and covariance by quadrature.

    Args:
        states: K.
        dynamics: the moves: a list of one for each regime, or one for all.

    Raises:
        StatespanError: another number of parts, or vectors of different width.

    Source:
        Linderman, Johnson, Miller, Adams, Blei and Paninski, "Bayesian learning and inference in recurrent switching
        linear dynamical systems", AISTATS 2017, section 3; there by stick-breaking. The bound of EM: Boehning,
        "Multinomial logistic regression algorithm", Annals of the Institute of Statistical Mathematics 44, 1992.

    Example:
        >>> import statespan as ss
        >>> RecurrentSwitchingLinear(2, [ss.Linear(3), ss.Linear(3)]).weight.shape
        torch.Size([2, 2, 3])
    """

    recurrent = True
    dynamics: Any

    def __init__(self, states: int, dynamics: nn.Module | Sequence[nn.Module]):
        super().__init__()
        self.states = states
        self.dynamics = one_or_each(dynamics, states, "RecurrentSwitchingLinear(dynamics=)")
        width = same_width(self.dynamics, "RecurrentSwitchingLinear(dynamics=)")
        self.event = Event(1, None, width)
        self.logits = nn.Parameter(torch.randn(states, states))
        self.weight = nn.Parameter(0.1 * torch.randn(states, states, width))

    def constants(self) -> Tensor:
        """The logits at z = 0."""
        return self.logits

    def tables(self, u: Tree, constants: Tensor) -> Shared:
        """The same at every step."""
        return Shared(constants)

    def affine(self, u: Tree) -> Affine:
        """Of every regime."""
        return affines(self.dynamics, u)

    def jump(self, z: Tensor) -> Tensor:
        """p(s_t | s_{t-1}, z_{t-1} = z): (..., D) to (..., K, K)."""
        return (torch.einsum("ijd,...d->...ij", self.weight, z) + self.logits).softmax(-1)

    @property
    def _centred(self) -> Tensor:
        """The weights less their mean over where a jump goes, which it does not see."""
        return self.weight - self.weight.mean(1, keepdim=True)

    def bound(self, z: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        r"""Of E log p(s_t = j | s_{t-1} = i, z) >= log table_ij - loss_i: the table (..., K, K), the loss (..., K).

        log sum exp x lies below the parabola that touches it at E x and has the curvature (I - 1 1'/K) / 2.

        Args:
            z: (..., D), posterior means.
            covariance: (..., D, D).
        """
        about = torch.einsum("ijd,...de,ije->...i", self._centred, covariance, self._centred)
        return self.jump(z), 0.25 * about

    def seen(self, pairs: Tensor, z: Tensor) -> Tensor:
        """The same bound as rows of z with unit noise, and what they observe last: (..., K^2, D + 1).

        Args:
            pairs: (..., K, K), how probable each jump is.
            z: (..., D), where the parabola touches.
        """
        many, now = pairs.sum(-1, keepdim=True), self.jump(z)
        share = torch.where(many > 0, pairs / many.clamp_min(torch.finfo(pairs.dtype).tiny), now)
        matrix = self._centred / 2**0.5
        y = torch.einsum("ijd,...d->...ij", matrix, z) + 2**0.5 * (share - now)
        rows = torch.cat([matrix.expand(*y.shape, -1), y[..., None]], -1)
        return (rows * many.clamp_min(0).sqrt()[..., None]).flatten(-3, -2)

    def log_prior(self) -> Any:
        """The moves'."""
        return log_priors(self.dynamics)

    def statistics(
        self, counts: Tree, z: Tensor, y: Tensor, spread: Tensor, u: Tree, weights: Tensor, before: Tensor
    ) -> Hybrids:
        """Expected sums over moves, as those of `SwitchingLinear`, with expected jumps (T, B, K, K)."""
        jumps, x = counts[1:], with_one(z)
        many = jumps.sum(-1)
        slope = torch.einsum("tbij,tbu->iju", jumps - many[..., None] * self.jump(z), x)
        second = torch.einsum("tbi,tbu,tbv->iuv", many, x, x)
        about = torch.einsum("tbi,tbde->ide", many, before)
        slope[..., 1:] -= 0.5 * self._centred @ about
        second[:, 1:, 1:] += about
        return Hybrids(Bound(slope, second), of_moves(self.dynamics, z, y, spread, u, weights))

    @torch.no_grad()
    def maximize(self, stats: Hybrids) -> None:
        """One step of the jumps' bound, which never falls, and the M-steps of the moves."""
        both = torch.cat([self.logits[..., None], self.weight], -1)
        sizes = [(self.logits.requires_grad, 1), (self.weight.requires_grad, both.shape[-1] - 1)]
        free = torch.cat([torch.full((n,), wanted, device=both.device) for wanted, n in sizes])
        if bool(free.any()):
            slope, second = stats.regimes
            both[..., free] = rise(both[..., free], Bound(slope[..., free], second[..., free, :][..., free]), 0.0)
            self.logits.copy_(both[..., 0])
            self.weight.copy_(both[..., 1:])
        maximize(self.dynamics, stats.vectors)

    def branch(self, parts: Components, tables: Tensor, nodes: Nodes) -> MixtureOfGaussians:
        """Every component goes to every regime with its share of z: mean and covariance by quadrature."""
        z = parts.mean[..., None, :] + nodes.at @ parts.scale.mT  # (B, C, N, D)
        weight = torch.einsum("...cs,sjd->...cjd", parts.regimes, self.weight)
        logits = weight @ z.mT + (parts.regimes @ tables)[..., None]  # (B, C, K, N)
        joint = logits.softmax(-2) * nodes.weights
        total = joint.sum(-1)
        tiny = torch.finfo(z.dtype).tiny
        share = joint / total.clamp_min(tiny)[..., None]
        mean = share @ z
        away = z[..., None, :, :] - mean[..., None, :]
        scale = lower((away * share.clamp_min(tiny).sqrt()[..., None]).mT)
        weights = parts.weights[..., None] * total
        return MixtureOfGaussians(weights.mT, mean.transpose(1, 2), scale.transpose(1, 2))


class SwitchingEmission(Part):
    r"""y_t = C_s z_t + D_s u_t + d_s + scale_s e, s = s_t: what the vector shows in each regime.

    Args:
        vectors: p(y_t | z_t, s_t), such as `ss.Linear(D, E)`: one for all regimes, or a list of one for each.

    Raises:
        StatespanError: vectors of different width.

    Source:
        Barber, Bayesian Reasoning and Machine Learning 2012, section 25.1.

    Example:
        >>> import statespan as ss
        >>> SwitchingEmission(ss.Linear(3, 2)).affine(None).matrix.shape
        torch.Size([1, 2, 3])
    """

    vectors: Any

    def __init__(self, vectors: nn.Module | Sequence[nn.Module]):
        super().__init__()
        self.vectors = nn.ModuleList([vectors] if isinstance(vectors, nn.Module) else vectors)
        self.event = Event(1, None, same_width(self.vectors, "SwitchingEmission"))

    def affine(self, u: Tree) -> Affine:
        """Of every regime, (1 or K, ...) or (T, B, 1 or K, ...)."""
        return affines(self.vectors, u)

    def log_prior(self) -> Any:
        """The sum of the parts'."""
        return log_priors(self.vectors)

    def statistics(self, z: Tensor, y: list[Tensor], spread: list[Tensor], u: Tree, weights: list[Tensor]) -> tuple:
        """Expected sums over steps of each part, for `maximize`: each has its own observations and weights (T, B)."""
        each = zip(self.vectors, y, spread, weights, strict=True)
        return tuple(part.statistics(z, one, about, u, w) for part, one, about, w in each)

    def maximize(self, stats: tuple) -> None:
        """The M-step of each part."""
        maximize(self.vectors, stats)
