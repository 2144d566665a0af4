"""The ensemble Kalman filter: a cloud of equal members in place of a mean and a covariance, for wide states."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from statespan.belief import Particles
from statespan.errors import StatespanError
from statespan.method import Hindsight, Method, Prepared, in_hindsight, run
from statespan.methods.kalman import unseen
from statespan.methods.particle import Observed, ParticleFilter
from statespan.part import Generative, NonlinearPart
from statespan.parts.linear import factor, lower
from statespan.sequences import Sequences
from statespan.shapes import Float
from statespan.tree import Tree


class Members(NamedTuple):
    """What a user reads of an ensemble: its members (..., N, D) and their moments; no covariance of a wide state."""

    z: Tensor

    def point(self) -> Tensor:
        """The mean, (..., D)."""
        return self.z.mean(-2)

    def summary(self) -> dict[str, Tensor]:
        """`samples` (..., N, D), `weights` (..., N), `mean` (..., D); `covariance` where D is no more than N."""
        weights = self.z.new_full(self.z.shape[:-1], 1 / self.z.shape[-2])
        mean, spread = _anomalies(self.z)
        found = {"samples": self.z, "weights": weights, "mean": mean[..., 0, :]}
        return found | ({"covariance": spread.mT @ spread} if self.z.shape[-1] <= self.z.shape[-2] else {})


def taper(distance: Tensor, radius: float) -> Tensor:
    r"""Weights that fall from 1 to 0 at `radius`, smoothly and as a correlation may: what `localisation=` wants.

    Args:
        distance: of each state from each observation, (D, E).
        radius: beyond it an observation does not act.

    Source:
        Gaspari and Cohn, "Construction of correlation functions in two and three dimensions", 1999, equation 4.10.

    Example:
        >>> import torch
        >>> taper(torch.tensor([0.0, 1.0, 2.0]), radius=2.0)
        tensor([1.0000, 0.2083, 0.0000])
    """
    if not radius > 0:
        raise StatespanError(f"taper(radius={radius}): give a number above 0")
    r = 2 * distance / radius
    near = 1 - r**2 * (5 / 3 - r * (5 / 8 + r * (1 / 2 - r / 4)))
    far = 4 - r * (5 - r * (5 / 3 + r * (5 / 8 - r * (1 / 2 - r / 12)))) - 2 / (3 * r.clamp_min(1.0))
    return torch.where(r <= 1, near, torch.where(r < 2, far, 0.0)).clamp_min(0.0)


def _anomalies(z: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (B, 1, D), and what members differ from it over the root of N - 1, (B, N, D)."""
    mean = z.mean(-2, keepdim=True)
    return mean, (z - mean) / max(z.shape[-2] - 1, 1) ** 0.5


def _corrected(z: Tensor, ahead: Tensor, later: Tensor) -> Tensor:
    """Z + G (later - ahead), where G regresses z (B, N, D) on ahead, the same members after a move."""
    (_, before), (_, after) = _anomalies(z), _anomalies(ahead)
    inverse = torch.linalg.pinv(after, rtol=sum(after.shape[-2:]) * torch.finfo(after.dtype).eps)
    return z + (later - ahead) @ inverse @ before


class EnsembleKalman(Method):
    r"""N members moved by the model's own transition; at an observation their mean and spread follow Kalman's formulas.

    With S the members' predictions of y about their mean, whitened by the noise and divided by the root of N - 1, and
    d the whitened residual: the mean gains Z w, w = (I + S'S)^-1 S'd, and the anomalies Z become Z (I + S'S)^(-1/2),
    so that nothing larger than N x N, N x D and N x E is made (and E x E, the noise). No observation is perturbed.
    Smoothing corrects each member by what was learnt of its own move, through a regression within the ensemble (the
    ensemble Rauch-Tung-Striebel smoother). Answers have no gradient, and of a state wider than N no covariance;
    log_prob is that of a normal distribution with the ensemble's moments.

    Few members see correlations where there are none, and lose their spread. `inflation` stretches the anomalies after
    each move; `localisation` lets an observation act on near states alone, each with a transform of its own.

    Args:
        members: N.
        inflation: the factor, 1 or a little more.
        localisation: (D, E) weights from 0 to 1 of each observed coordinate for each state, such as
            `statespan.methods.ensemble.taper(distance, radius)` gives; None: 1. The noise should be independent by
            coordinate, and the smoother is not localised.

    Raises:
        StatespanError: fewer than two members, an inflation or weights out of their range, or an observation without
            noise.

    Source:
        Evensen 1994; Bishop, Etherton and Majumdar 2001; Hunt, Kostelich and Szunyogh 2007 (the transform, and its
        localisation); Raanes, "On the ensemble Rauch-Tung-Striebel smoother", 2016.

    Example:
        >>> import statespan as ss
        >>> model = ss.linear_gaussian(state=2, observed=1, seed=0)
        >>> model.smooth([0.1, None, 0.4], method=ss.EnsembleKalman(200)).mean.shape
        torch.Size([3, 2])
    """

    accepts = (Generative, Generative, NonlinearPart)
    takes_labels = False
    takes_powers = False

    def __init__(self, members: int = 100, inflation: float = 1.0, localisation: Tensor | None = None):
        if members < 2:
            raise StatespanError(f"EnsembleKalman(members={members}): use at least two")
        if not 0 < inflation < math.inf:
            raise StatespanError(f"EnsembleKalman(inflation={inflation}): give a number above 0, 1 for none")
        if localisation is not None and not bool(((localisation >= 0) & (localisation <= 1)).all()):
            raise StatespanError("EnsembleKalman(localisation=): weights lie between 0 and 1")
        self.members, self.inflation, self.localisation = members, inflation, localisation
        self.cloud = ParticleFilter(members)

    def exact(self, model: Any) -> bool:
        """Never: a sample, with an error that shrinks as one over the root of N."""
        return False

    def constants(self, model: Any) -> Tree:
        """Nothing."""
        return ()

    def prepare(self, model: Any, constants: Tree, data: Sequences) -> tuple[Tree, Observed]:
        """Nothing can be done before the members are there."""
        return (data.u,), Observed(data.y, data.u, data.present)

    def init(self, model: Any, move: Tree, batch: int) -> Particles:
        """N draws of z_1."""
        return self.cloud.init(model, move, batch)

    @torch.no_grad()
    def predict(self, model: Any, belief: Any, move: Tree) -> Particles:
        """Every member moved, and the anomalies stretched."""
        belief = belief.state
        z = model.transition(belief.z, move[0]).sample()
        if self.inflation != 1:
            mean = z.mean(-2, keepdim=True)
            z = mean + self.inflation * (z - mean)
        return belief._replace(z=z)

    @torch.no_grad()
    def update(self, model: Any, belief: Particles, likelihood: Observed) -> tuple[Particles, Float[Tensor, " B"]]:
        """The ensemble transform."""
        z = belief.z
        if likelihood.y is None:
            return belief, torch.zeros(len(z), dtype=torch.float64, device=z.device)
        u = None if likelihood.u is None else likelihood.u[:, None].expand(*z.shape[:-1], -1)
        value, noise = model.emission.moments(z, u)
        root, there = self._noise(model, noise, likelihood.there, value)
        middle, spread = _anomalies(value)
        whiten = lambda x: torch.linalg.solve_triangular(root, x, upper=False)  # noqa: E731
        seen = whiten(torch.where(there[..., None, :], spread, 0.0).mT)  # S, (B, E, N)
        rest = whiten(torch.where(there, likelihood.y - middle[..., 0, :], 0.0)[..., None])  # d, (B, E, 1)
        left, size, turn = torch.linalg.svd(seen, full_matrices=False)
        told, grown = (left.mT @ rest)[..., 0], 1 + size.square()
        distance = rest.double().square().sum((-1, -2)) - (told * size / grown.sqrt()).double().square().sum(-1)
        volume = root.diagonal(dim1=-2, dim2=-1).abs().log().double().sum(-1) + 0.5 * grown.double().log().sum(-1)
        log_prob = -0.5 * distance - volume - 0.5 * math.log(2 * math.pi) * there.sum(-1).double()
        if self.localisation is not None:
            return belief._replace(z=self._locally(z, seen, rest)), log_prob
        mean, own = _anomalies(z)
        along = turn @ own  # what of the anomalies lies along the singular vectors, (B, k, D)
        shift = (told * size / grown)[:, None] @ along
        shrunk = own - turn.mT @ ((1 - grown.rsqrt())[..., None] * along)
        return belief._replace(z=mean + shift + (z.shape[-2] - 1) ** 0.5 * shrunk), log_prob

    def _noise(self, model: Any, noise: Tensor, there: Tensor | None, value: Tensor) -> tuple[Tensor, Tensor]:
        """A triangular root of the noise, with one of its own where nothing is there, and what is there, (B, E)."""
        if noise.dim() > 2:  # it changes with the members: its mean over them
            noise = factor((noise @ noise.mT).mean(-3))
        batch, outputs = value.shape[0], value.shape[-1]
        everything = torch.ones(batch, outputs, dtype=torch.bool, device=value.device)
        there = everything if there is None else everything & (there if there.dim() == 2 else there[:, None])
        if not bool(there.all()):
            own = torch.diag_embed((~there).to(noise.dtype))
            noise = torch.cat([torch.where(there[..., None], noise, 0.0), own], -1)
        root = lower(noise)
        sizes = root.diagonal(dim1=-2, dim2=-1)
        if not bool((sizes > sizes.amax(-1, keepdim=True) * torch.finfo(sizes.dtype).eps).all()):
            raise StatespanError(
                f"EnsembleKalman needs noise in every observed coordinate, and that of {type(model.emission).__name__} "
                "is singular; give it some"
            )
        return root.expand(batch, -1, -1), there

    def _locally(self, z: Tensor, seen: Tensor, rest: Tensor) -> Tensor:
        """A transform for each state, from the observations that act on it."""
        weights: Any = self.localisation
        if weights.shape != (z.shape[-1], seen.shape[-2]):
            raise StatespanError(
                f"EnsembleKalman(localisation=) is {tuple(weights.shape)}; give ({z.shape[-1]}, {seen.shape[-2]}), "
                "states by observed coordinates"
            )
        weights = weights.to(z)
        size, turn = torch.linalg.eigh(torch.einsum("ben,de,bem->bdnm", seen, weights, seen))
        size = size.clamp_min(0)
        told = torch.einsum("ben,de,be->bdn", seen, weights, rest[..., 0])
        gain = turn @ ((turn.mT @ told[..., None]) / (1 + size)[..., None])  # (B, D, N, 1)
        mean, own = _anomalies(z)
        columns = own.mT[..., None]  # (B, D, N, 1)
        shift = (columns * gain).sum(-2).mT
        stretched = turn @ ((turn.mT @ columns) * (1 + size).rsqrt()[..., None])
        return mean + shift + (z.shape[-2] - 1) ** 0.5 * stretched[..., 0].mT

    @torch.no_grad()
    def backward(self, model: Any, belief: Any, move: Tree, later: Any) -> Particles:
        """The draw z + G (z' - A(z)): each member and a fresh move of it, conditioned on a drawn state after.

        Source:
            Matheron's rule: of jointly normal (z, z+), z + G (z' - z+) is a draw of p(z | z+ = z').
        """
        belief = belief.state
        return belief._replace(z=_corrected(belief.z, model.transition(belief.z, move[0]).sample(), later.state.z))

    def hindsight(self, model: Any, prepared: Prepared, belief: Any, data: Sequences, pairs: bool = False) -> Hindsight:
        """Filter, then one loop back from each member's own move."""
        if pairs:
            raise StatespanError("EnsembleKalman gives no joint law of neighbouring states; smooth without pairs")
        trace = run(model, self, data, belief, ("predicted", "filtered", "log_prob"), prepared=prepared)
        filtered, ahead = trace.filtered.z, trace.predicted.z
        smoothed = [filtered[-1]]
        for t in range(len(filtered) - 2, -1, -1):
            now = _corrected(filtered[t], ahead[t + 1], smoothed[-1])
            if prepared.lengths is not None:
                now = torch.where((prepared.lengths - 1 > t)[:, None, None], now, filtered[t])
            smoothed.append(now)
        assert trace.log_prob is not None
        return Hindsight(trace.filtered._replace(z=torch.stack(smoothed[::-1])), trace.log_prob)

    def smooth(self, model: Any, prepared: Prepared, belief: Any, shape: tuple[int, int]) -> Particles:
        """By `hindsight`."""
        return self.hindsight(model, prepared, belief, unseen(prepared, shape)).smoothed

    def public(self, model: Any, belief: Any) -> Members:
        """The members, without a covariance."""
        return Members(belief.state.z)

    def breadth(self, model: Any, data: Sequences) -> int:
        """The numbers of an ensemble."""
        return self.members * model.transition.event.dim

    def fill(self, model: Any, constants: Tree, data: Sequences) -> Tensor:
        """The mean of the emission over the smoothed members."""
        return self.emit(model, constants, in_hindsight(model, self, data, constants), data.u).mean

    def decode(self, model: Any, constants: Tree, data: Sequences, k: int) -> tuple[Tensor, None]:
        """The smoothed mean."""
        if k > 1:
            raise TypeError("an ensemble gives one path, its mean; ask for k=1, or sample_posterior for more")
        return in_hindsight(model, self, data, constants).z.mean(-2)[:, :, None], None

    def emit(self, model: Any, constants: Tree, belief: Any, u: Tree) -> Distribution:
        """The mixture over members."""
        return self.cloud.emit(model, constants, belief, u)
