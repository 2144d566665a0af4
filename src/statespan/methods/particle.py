"""Particles: a weighted cloud in place of a formula."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, MixtureSameFamily

from statespan.belief import Particles
from statespan.errors import StatespanError
from statespan.method import Method, Prepared, in_hindsight, smooth_backward
from statespan.part import Generative
from statespan.sequences import Sequences
from statespan.shapes import Float
from statespan.tree import Tree, tree_map


class Observed(NamedTuple):
    """y_t, the inputs and whether y_t is there."""

    y: Tree
    u: Tree
    there: Tensor | None


def systematic(weights: Tensor) -> Tensor:
    """Systematic resampling: indices (B, N) so that particle i is taken N w_i times, rounded up or down.

    Source:
        Douc, Cappe and Moulines, "Comparison of resampling schemes for particle filtering", 2005.
    """
    n = weights.shape[-1]
    start = torch.rand(*weights.shape[:-1], 1, dtype=weights.dtype, device=weights.device)
    grid = (torch.arange(n, dtype=weights.dtype, device=weights.device) + start) / n
    return torch.searchsorted(weights.cumsum(-1), grid).clamp_max(n - 1)


class ParticleFilter(Method):
    r"""The bootstrap filter: particles moved by the model's own transition, weighted by the likelihood.

    w_t^i is proportional to w_{t-1}^i p(y_t | z_t^i), and exp(log_prob) is an unbiased estimate of p(y). The cloud is
    resampled when the effective number of particles, 1 / sum w^2, falls below `resample` times N.

    Args:
        particles: N.
        resample: the threshold, between 0 (never) and 1 (always).

    Raises:
        StatespanError: no particles.

    Source:
        Gordon, Salmond and Smith 1993; Chopin and Papaspiliopoulos, An Introduction to Sequential Monte Carlo 2020,
        chapter 10; smoothing by backward weights, chapter 12.

    Example:
        >>> import statespan as ss
        >>> y = [1.0, 0.4, float("nan"), -0.3]
        >>> model = ss.linear_gaussian(state=2, observed=1, seed=0)
        >>> found = model.filter(y, method=ss.ParticleFilter(500))
        >>> found.samples.shape, found.exact
        (torch.Size([4, 500, 2]), False)
    """

    accepts = (Generative, Generative, Generative)
    takes_labels = False
    takes_powers = False

    def __init__(self, particles: int = 1000, resample: float = 0.5):
        if particles < 1:
            raise StatespanError(f"particles={particles}: use at least one")
        self.particles, self.resample = particles, resample

    def exact(self, model: Any) -> bool:
        """Never: an estimate, with an error that shrinks as one over the root of N."""
        return False

    def constants(self, model: Any) -> Tree:
        """Nothing."""
        return ()

    def prepare(self, model: Any, constants: Tree, data: Sequences) -> tuple[Tree, Observed]:
        """Nothing can be done before the particles are there."""
        there = data.present
        if there is not None and there.dim() == 3:
            some = there.any(-1)
            if bool((some != there.all(-1)).any()):
                t, b = (some != there.all(-1)).nonzero()[0].tolist()
                raise StatespanError(
                    f"sequence {b}, step {t}: the particle filter cannot marginalise one missing coordinate of "
                    f"{type(model.emission).__name__}; make the whole row missing, or use the model's own method"
                )
            there = some
        return (data.u,), Observed(data.y, data.u, there)

    def init(self, model: Any, move: Tree, batch: int) -> Particles:
        """N draws of z_1."""
        z = model.initial((batch, self.particles), move[0]).sample()
        weights = torch.full((batch, self.particles), -math.log(self.particles), dtype=_real(z), device=z.device)
        each = torch.arange(self.particles, device=z.device).expand(batch, -1)
        return Particles(z, weights, each)

    def predict(self, model: Any, belief: Any, move: Tree) -> Particles:
        """Resample where the weights have become uneven, then move every particle."""
        belief = belief.state
        weights = belief.log_weights.exp()
        each = torch.arange(weights.shape[-1], device=weights.device).expand_as(belief.ancestors)
        uneven = 1 / weights.square().sum(-1, keepdim=True) < self.resample * weights.shape[-1]
        ancestors = torch.where(uneven, systematic(weights), each)
        flat = torch.full_like(belief.log_weights, -math.log(weights.shape[-1]))
        moved = model.transition(belief.at(ancestors), move[0]).sample()
        return Particles(moved, torch.where(uneven, flat, belief.log_weights), ancestors)

    def update(self, model: Any, belief: Particles, likelihood: Observed) -> tuple[Particles, Float[Tensor, " B"]]:
        """Weigh by p(y_t | z_t); log p(y_t | y_<t) is the log of the mean weight."""
        if likelihood.y is None:
            return belief, torch.zeros(len(belief.z), dtype=torch.float64, device=belief.z.device)
        y = tree_map(lambda x: x[:, None], likelihood.y)
        log = model.emission(belief.z, likelihood.u).log_prob(y)
        if likelihood.there is not None:
            log = torch.where(likelihood.there[:, None], log, 0.0)
        joint = belief.log_weights + log
        total = joint.logsumexp(-1)
        possible = total.isfinite()
        safe = torch.where(possible[:, None], joint - torch.where(possible, total, 0.0)[:, None], belief.log_weights)
        return Particles(belief.z, safe, belief.ancestors), total.double()

    def backward(self, model: Any, belief: Any, move: Tree, later: Any) -> Particles:
        """Weigh each particle by how it explains the later belief: N^2 transition densities."""
        belief, later = belief.state, later.state
        z = belief.z[:, :, None]
        log = model.transition(z, move[0]).log_prob(later.z[:, None])  # (B, N, N later)
        ahead = belief.log_weights[:, :, None] + log
        total = ahead.logsumexp(1, keepdim=True)
        conditional = ahead - torch.where(
            total.isfinite(), total, 0.0
        )  # a later particle that cannot be weighs nothing
        weights = (conditional + later.log_weights[:, None]).logsumexp(-1)
        return Particles(belief.z, weights.log_softmax(-1), belief.ancestors)

    def smooth(self, model: Any, prepared: Prepared, belief: Any, shape: tuple[int, int]) -> Particles:
        """By `backward`."""
        return smooth_backward(model, self, prepared, belief, shape)

    def fill(self, model: Any, constants: Tree, data: Sequences) -> Tensor:
        """The mean (for symbols the mode) of the emission over the smoothed cloud."""
        distribution = self.emit(model, constants, in_hindsight(model, self, data, constants), data.u)
        return distribution.mode if isinstance(distribution, Categorical) else distribution.mean

    def decode(self, model: Any, constants: Tree, data: Sequences, k: int) -> tuple[Tensor, None]:
        """The heaviest particle of the smoothed cloud at each step: the likeliest states found."""
        if k > 1:
            raise TypeError("particles give one path; ask for k=1, or sample_posterior for more")
        return in_hindsight(model, self, data, constants).point()[:, :, None], None

    def emit(self, model: Any, constants: Tree, belief: Any, u: Tree) -> Distribution:
        """The mixture over particles."""
        state = belief.state
        each = model.emission(state.z, u)
        weights = Categorical(logits=state.log_weights, validate_args=False)
        if isinstance(each, Categorical):
            return Categorical(probs=(weights.probs[..., None] * each.probs).sum(-2), validate_args=False)
        return MixtureSameFamily(weights, each, validate_args=False)


def _real(z: Tensor) -> torch.dtype:
    """The dtype of weights beside particles z."""
    return z.dtype if z.is_floating_point() else torch.float64
