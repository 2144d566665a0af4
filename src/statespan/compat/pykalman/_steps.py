"""One series through the unscented filter where the functions are NumPy's: a step costs little more than they do."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from statespan.belief import Gaussian
from statespan.errors import StatespanError
from statespan.method import Prepared, Trace, register
from statespan.methods.linearisation import Function, Linearisation
from statespan.methods.linearised import Linearised
from statespan.part import Affine
from statespan.parts.linear import Linear, apply, factor, inverse
from statespan.parts.nonlinear import NonlinearGaussian
from statespan.tree import Tree

LOG_2PI = float(np.log(2 * np.pi))


class SigmaPoints(Linearisation):
    r"""Statistical linearisation at pykalman's sigma points: m and m +- sqrt(3) times the columns of the root.

    The centre weighs (3 - D) / 3 and each other point 1 / 6, in means and covariances alike. It is the unscented
    transform with alpha = 1, beta = 0, kappa = 3 - D; for D above 3 the centre's weight is negative.

    Args:
        kept: coordinates from this one on are noises, fresh at every step: what they add is noise of the affine part,
            not a share of its matrix. None: there are none.

    Raises:
        StatespanError: the covariance that the points give is none.

    Source:
        Julier and Uhlmann 1997.
    """

    def __init__(self, kept: int | None = None):
        self.kept = kept

    def __call__(self, function: Function, belief: Gaussian, u: Tree) -> Affine:
        """A, b and a root of what A z + b leaves of the covariance, noise included."""
        dim, scale = belief.mean.shape[-1], belief.scale
        step = 3**0.5 * scale.mT
        z = belief.mean[..., None, :] + torch.cat([torch.zeros_like(step[..., :1, :]), step, -step], -2)
        value, noise = function(z, None if u is None else u[..., None, :].expand(*z.shape[:-1], -1))
        weights = value.new_full((2 * dim + 1,), 1 / 6)
        weights[0] = 1 - dim / 3
        mean = weights @ value
        up, down = value[..., 1 : dim + 1, :], value[..., dim + 1 :, :]
        slope = ((up - down) / (2 * 3**0.5)).mT  # A times the root
        bend = ((up + down) / 2 - value[..., :1, :]).mT  # (..., E, D), the even part
        centre = bend.sum(-1, keepdim=True)
        rest = (bend @ bend.mT - centre @ centre.mT / 3) / 3 + noise @ noise.mT
        if self.kept is not None:
            fresh = slope[..., self.kept :]
            rest, slope = rest + fresh @ fresh.mT, torch.cat([slope[..., : self.kept], torch.zeros_like(fresh)], -1)
        if dim > 3:
            least, most = torch.linalg.eigvalsh(rest)[..., 0], rest.diagonal(dim1=-2, dim2=-1).amax(-1)
            self._refuse(dim, bool((least < -1e-9 * most.clamp_min(1e-9)).any()))
        matrix = slope @ inverse(scale)
        return Affine(matrix, mean - apply(matrix, belief.mean), factor(rest))

    def sound(self, dim: int, rest: np.ndarray, slope: np.ndarray) -> None:
        """Refuse what is no covariance, as above, of one state."""
        if dim > 3:
            if self.kept is not None:
                rest = rest + slope[:, self.kept :] @ slope[:, self.kept :].T
            self._refuse(dim, np.linalg.eigvalsh(rest)[0] < -1e-9 * max(rest.diagonal().max(), 1e-9))

    def _refuse(self, dim: int, indefinite: bool) -> None:
        if indefinite:
            raise StatespanError(
                f"pykalman's sigma points give an indefinite covariance for this function of {dim} numbers, noises "
                "counted; with additive noise use from_pykalman(kf) and method=ss.Linearised(ss.Cubature())"
            )


class Regressed(NamedTuple):
    """Of f(z) + noise its mean (E,), its covariance with a root's columns (E, D), and what these leave of its own."""

    mean: np.ndarray
    slope: np.ndarray
    rest: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """(E, E)."""
        return self.slope @ self.slope.T + self.rest


class Step(ABC):
    """A part that can be regressed on one normal state in NumPy."""

    @abstractmethod
    def regress(self, rule: SigmaPoints, mean: np.ndarray, root: np.ndarray, t: int) -> Regressed:
        """At a mean (D,) and a root (D, D), in step t."""


class Pointwise(NonlinearGaussian, Step):
    """States (N, D) and their step to values (N, E), by NumPy.

    Args:
        values: the function.
        scale: a root of the noise, (E, E).
    """

    def __init__(self, values: Any, scale: Tensor):
        super().__init__(self._apart, len(scale), 1)
        self.double().requires_grad_(False)
        self.scale.copy_(scale)
        self.values, self.noise = values, (scale @ scale.mT).numpy()

    def _apart(self, z: Tensor, u: Tensor) -> Tensor:
        """Of states (..., D) and steps (..., 1)."""
        flat, steps = z.reshape(-1, z.shape[-1]).numpy(), u.reshape(-1).long().numpy()
        ends = [*(np.flatnonzero(np.diff(steps)) + 1).tolist(), len(steps)]
        each = [self.values(flat[i:j], int(steps[i])) for i, j in zip([0, *ends[:-1]], ends, strict=True)]
        return torch.from_numpy(np.concatenate(each)).reshape(*z.shape[:-1], -1)

    def regress(self, rule: SigmaPoints, mean: np.ndarray, root: np.ndarray, t: int) -> Regressed:
        """As `SigmaPoints`; a column of zeros needs no points of its own."""
        columns = root.T
        live = columns.any(1)
        whole = bool(live.all())
        step = 3**0.5 * (columns if whole else columns[live])
        count = len(step)
        value = self.values(np.concatenate([mean[None], mean + step, mean - step]), t)
        if value.shape[1] != self.event.dim:
            self.moments(torch.from_numpy(mean), torch.tensor([float(t)]))  # which says so
        up, down = value[1 : count + 1], value[count + 1 :]
        slope = (up - down).T / (2 * 3**0.5)
        bend = (up + down).T / 2 - value[0][:, None]
        centre = bend.sum(1)
        rest = (bend @ bend.T - centre[:, None] * (centre / 3)) / 3 + self.noise
        if not whole:
            part, slope = slope, np.zeros((len(slope), len(mean)))
            slope[:, live] = part
        rule.sound(len(mean), rest, slope)
        return Regressed(value[0] + centre / 3, slope, rest)


class Shown(Linear, Step):
    """The last coordinates, without noise."""

    def __init__(self, state: int, observed: int):
        super().__init__(state, observed)
        self.double().requires_grad_(False)
        self.matrix.copy_(torch.eye(observed, state, dtype=torch.float64).roll(state - observed, 1))
        self.scale.zero_()

    def regress(self, rule: SigmaPoints, mean: np.ndarray, root: np.ndarray, t: int) -> Regressed:
        """What they are."""
        size = len(self.scale)
        return Regressed(mean[-size:], root[-size:], np.zeros((size, size)))


def triangle(covariance: np.ndarray) -> np.ndarray:
    """A lower root; where there is no variance a column of zeros."""
    try:
        return np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        live = covariance.diagonal() > 1e-14 * covariance.diagonal().max()
        out, some = np.zeros_like(covariance), np.ix_(live, live)
        try:
            out[some] = np.linalg.cholesky(covariance[some])
        except np.linalg.LinAlgError:
            return factor(torch.from_numpy(covariance)).numpy()
        return out


def over(covariance: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """Cross times the inverse of the covariance; nothing is learnt along a direction without variance."""
    try:
        return np.linalg.solve(covariance, cross.T).T
    except np.linalg.LinAlgError:
        return cross @ np.linalg.pinv(covariance, hermitian=True)


@register(Linearised, Pointwise, keeps=("filtered", "last", "log_prob"))
def step_by_step(
    model: Any, method: Linearised, prepared: Prepared, length: int, batch: int, belief: Any, keep: frozenset[str]
) -> Trace | None:
    """It declines several series, iterations, and other points."""
    if batch > 1 or method.iterations > 1 or not isinstance(method.rule, SigmaPoints):
        return None
    likelihood, steps = prepared.likelihoods, prepared.moves[0][:, 0, 0].long().tolist()
    y = likelihood.y[:, 0].numpy()
    there = [True] * length if likelihood.there is None else likelihood.there.reshape(length, -1).all(1).tolist()
    begun = method.init(model, None, 1) if belief is None else belief.state
    mean, root = begun.mean[0].detach().numpy(), begun.scale[0].detach().numpy()
    means, roots, log_prob = np.empty((length, *mean.shape)), np.empty((length, *root.shape)), np.zeros(length)
    for t, step in enumerate(steps):
        if t or belief is not None:
            move = model.transition.regress(method.rule, mean, root, step)
            mean, root = move.mean, triangle(move.covariance)
        if there[t]:
            seen = model.emission.regress(method.rule, mean, root, step)
            spread, cross, error = seen.covariance, root @ seen.slope.T, y[t] - seen.mean
            gain = over(spread, cross)
            mean = mean + gain @ error
            covariance = root @ root.T - gain @ cross.T
            root = triangle((covariance + covariance.T) / 2)
            if "log_prob" in keep:
                size = np.linalg.slogdet(spread)[1] + error @ over(spread, error[None])[0]
                log_prob[t] = -0.5 * (size + len(error) * LOG_2PI)
        means[t], roots[t] = mean, root
    filtered = Gaussian(torch.from_numpy(means)[:, None], torch.from_numpy(roots)[:, None])
    last = Gaussian(filtered.mean[-1], filtered.scale[-1])
    return Trace(filtered=filtered, last=last, log_prob=torch.from_numpy(log_prob)[:, None])


def backwards(move: Step, rule: SigmaPoints, means: np.ndarray, roots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smoothed means (T, D) and covariances (T, D, D) from filtered means and roots, by Rauch, Tung and Striebel."""
    means, covariances = means.copy(), roots @ roots.transpose(0, 2, 1)
    for t in range(len(means) - 2, -1, -1):
        ahead = move.regress(rule, means[t], roots[t], t + 1)
        spread = ahead.covariance
        gain = over(spread, roots[t] @ ahead.slope.T)
        means[t] += gain @ (means[t + 1] - ahead.mean)
        covariances[t] += gain @ (covariances[t + 1] - spread) @ gain.T
    return means, covariances
