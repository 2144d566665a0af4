"""Filters of switching linear models: one normal distribution a regime, a few, or paths drawn at random."""

from typing import Any

import torch
from torch import Tensor

from statespan.belief import MixtureOfGaussians
from statespan.errors import StatespanError
from statespan.methods.switching import PATHS, MixtureFilter, components, merge, reduce
from statespan.parts.switching_linear import Components


class InteractingMultipleModel(MixtureFilter):
    r"""One normal distribution a regime, mixed before the move: K Kalman filters that interact.

    Before the move into regime j the beliefs of all regimes i are merged by p(s_{t-1} = i | s_t = j, y_<t). log_prob is
    that of the merged model. With one regime it is the Kalman filter.

    Args:
        order: points along each axis of z, for averages over it (the smoother's, and of a recurrent jump).
        paths: how many paths of regimes `decode` goes on with.

    Source:
        Blom and Bar-Shalom, "The interacting multiple model algorithm for systems with Markovian switching
        coefficients", IEEE Transactions on Automatic Control 33, 1988.

    Example:
        >>> import statespan as ss
        >>> model = ss.switching_linear(states=2, state=1, observed=1, seed=0)
        >>> model.filter([0.1, 0.4, -0.2], method=ss.InteractingMultipleModel()).probs.shape
        torch.Size([3, 2])
    """

    def __init__(self, order: int = 5, paths: int = PATHS):
        super().__init__(order, remembered=1, paths=paths)

    def places(self, regimes: int) -> int:
        """One."""
        return 1

    def ahead(self, model: Any, belief: MixtureOfGaussians, move: Any) -> MixtureOfGaussians:
        """All that comes to a regime, merged."""
        return merge(model.transition.branch(components(belief), move.tables, move.nodes))

    def kept(self, belief: MixtureOfGaussians) -> MixtureOfGaussians:
        """All."""
        return belief


class GaussianSum(MixtureFilter):
    r"""A few normal distributions a regime: each branches to K, and after y_t the lightest are merged.

    With one component it is the generalised pseudo-Bayesian filter of second order. With I components a step takes
    K^2 I Kalman filters; with K^(t-1) components and more nothing is merged up to step t, and filter and log_prob are
    exact, but for a recurrent jump.

    Args:
        components: I, how many a regime keeps.
        order: points along each axis of z, for averages over it.
        paths: how many paths of regimes `decode` goes on with.

    Raises:
        StatespanError: fewer than one component.

    Source:
        Alspach and Sorenson 1972; Bar-Shalom, Li and Kirubarajan, Estimation with Applications to Tracking and
        Navigation 2001, section 11.6.5 (GPB2); Barber, JMLR 2006, section 2.

    Example:
        >>> import statespan as ss
        >>> model = ss.switching_linear(states=2, state=1, observed=1, seed=0)
        >>> model.smooth([0.1, 0.4, -0.2], method=ss.GaussianSum(components=4)).mean.shape
        torch.Size([3, 1])
    """

    def __init__(self, components: int = 1, order: int = 5, paths: int = PATHS):
        if components < 1:
            raise StatespanError(f"GaussianSum(components={components}): use at least one")
        super().__init__(order, remembered=components, paths=paths)
        self.components = components

    def places(self, regimes: int) -> int:
        """I from each regime."""
        return regimes * self.components

    def ahead(self, model: Any, belief: MixtureOfGaussians, move: Any) -> MixtureOfGaussians:
        """Every component to every regime."""
        return model.transition.branch(components(belief), move.tables, move.nodes)

    def kept(self, belief: MixtureOfGaussians) -> MixtureOfGaussians:
        """The heaviest of each regime, and the rest merged."""
        return reduce(belief, self.components)


class RaoBlackwellised(MixtureFilter):
    r"""N paths of regimes drawn at random, each with its Kalman filter: exp(log_prob) is an unbiased estimate of p(y).

    Every path branches to all K regimes, y_t weighs the branches, and of these N K paths N are kept: a heavy one surely
    and with its weight, the lighter ones at random, so that no path is there twice and every sum stays right on the
    average. With K^(t-1) and more none is lost up to step t, and filter and log_prob are exact.

    Args:
        particles: N; `decode` goes on with as many paths.
        order: points along each axis of z, for the smoother's averages over it.

    Raises:
        StatespanError: no particle, or a recurrent model: there z acts on the jump, and no Kalman filter sums it out.

    Source:
        Doucet, de Freitas, Murphy and Russell 2000; Chen and Liu, "Mixture Kalman filters", JRSS B 2000; which to keep:
        Fearnhead and Clifford, "On-line inference for hidden Markov models via particle filters", JRSS B 2003.

    Example:
        >>> import statespan as ss
        >>> model = ss.switching_linear(states=2, state=1, observed=1, seed=0)
        >>> model.filter([0.1, 0.4, -0.2], method=ss.RaoBlackwellised(50)).probs.shape
        torch.Size([3, 2])
    """

    def __init__(self, particles: int = 100, order: int = 5):
        if particles < 1:
            raise StatespanError(f"RaoBlackwellised(particles={particles}): use at least one")
        super().__init__(order, remembered=1, paths=particles)
        self.particles = particles

    def places(self, regimes: int) -> int:
        """A branch of every path."""
        return self.particles

    def ahead(self, model: Any, belief: MixtureOfGaussians, move: Any) -> MixtureOfGaussians:
        """Some of the paths, each to every regime."""
        if model.transition.recurrent:
            raise StatespanError(
                "RaoBlackwellised: in a recurrent model the state acts on the regime, and no Kalman filter sums it "
                "out; use ss.GaussianSum()"
            )
        return model.transition.branch(thinned(components(belief), self.particles), move.tables, move.nodes)

    def kept(self, belief: MixtureOfGaussians) -> MixtureOfGaussians:
        """All branches, until the next move: what is known of z_t has them all."""
        return belief


def thinned(parts: Components, count: int) -> Components:
    """Some of the components (B, C), `count` of them or all, so weighed that every sum stays right on the average."""
    if parts.mean.shape[1] <= count:
        return parts
    index, weights = optimal(parts.weights, count)
    dim = parts.mean.shape[-1]
    regimes = parts.regimes.expand(len(index), -1, -1)
    return Components(
        weights,
        regimes.gather(1, index[..., None].expand(-1, -1, regimes.shape[-1])),
        parts.mean.gather(1, index[..., None].expand(-1, -1, dim)),
        parts.scale.gather(1, index[..., None, None].expand(-1, -1, dim, dim)),
    )


def optimal(weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
    r"""Optimal resampling: N of C places (B, C), none twice, and their new weights, whose sum is what it was.

    A place is kept with probability min(1, c w), where c is such that these sum to N, and its weight is divided by that
    probability. Among all unbiased ways the squared error of the weights is least.

    Source:
        Fearnhead and Clifford 2003, section 3.1 and theorem 1; the lighter ones by systematic sampling.
    """
    sizes, order = weights.detach().double().clamp_min(torch.finfo(torch.float64).tiny).sort(-1, descending=True)
    rank = torch.arange(sizes.shape[-1], device=weights.device)
    rest = sizes.flip(-1).cumsum(-1).flip(-1)[..., :count]  # of what is left once the first `rank` are kept
    left = count - rank[:count]
    fits = sizes[..., :count] * left <= rest  # the first of these needs no more than probability one
    sure = fits.int().argmax(-1, keepdim=True)
    factor = (left / rest).gather(-1, sure)
    chance = torch.where(rank < sure, 1.0, (sizes * factor).clamp_max(1.0))
    start = torch.rand(*sizes.shape[:-1], 1, dtype=torch.float64, device=weights.device)
    at = start + torch.arange(count, device=weights.device)
    chosen = torch.searchsorted(chance.cumsum(-1), at).clamp_max(sizes.shape[-1] - 1)
    index = order.gather(-1, chosen)
    return index, weights.gather(-1, index) / chance.gather(-1, chosen).to(weights)
