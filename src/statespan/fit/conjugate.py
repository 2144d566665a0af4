"""Posteriors of parameters, as parts: what a part is under a distribution of its parameters.

Each one stands where the part stood and offers exp(E log p) in place of p, which sums to less than one. Its closed-form
M-step is the conjugate update, and its log-prior is minus the divergence from the prior: EM over such parts is
variational Bayes, and what EM's history holds is the lower bound.
"""

import math
from functools import singledispatch
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributions import Categorical as CategoricalDistribution
from torch.distributions import Distribution

from statespan.errors import StatespanError
from statespan.kernels.symbol_sums import symbol_sums
from statespan.part import FiniteEmission, FiniteInitial, MatrixTransition, Part
from statespan.parts.emissions import Categorical, Gaussian, GaussianMixture
from statespan.parts.emissions.common import whole_rows
from statespan.parts.emissions.mixture import divided
from statespan.parts.finite import Dense
from statespan.parts.initial import Start
from statespan.sequences import Sequences
from statespan.tree import Tree

if TYPE_CHECKING:
    from statespan.fit.vi import VI


@singledispatch
def believe(part: Any, by: "VI", data: Sequences) -> Any:
    """The posterior that `by` begins with for a part, spread about the part's parameters as they are.

    A part of a class without an entry here is its own: a point, moved to the best one by its closed form. So is one of
    whose probabilities some are held above zero, or tied: what is left of them is no Dirichlet.
    """
    if not hasattr(part, "maximize"):
        raise StatespanError(
            f"VI: {type(part).__name__} has neither a conjugate posterior nor a closed-form M-step; fit by SGD"
        )
    return part


def settle(belief: Any) -> None:
    """Leave the part at its posterior mean; a part that is its own posterior is there already."""
    if hasattr(belief, "settle"):
        belief.settle()


# --------------------------------------------------------------------------------------------- Dirichlet


def expected_log(concentration: Tensor) -> Tensor:
    """E log p under Dirichlets over the last axis, digamma(a) - digamma(sum of a); minus infinity where a is 0."""
    return torch.digamma(concentration) - torch.digamma(concentration.sum(-1, keepdim=True))


def dirichlet_divergence(q: Tensor, p: Tensor) -> Tensor:
    r"""KL(q || p) of Dirichlets over the last axis; an entry that is 0 in both is no entry.

    log Gamma(Q) - log Gamma(P) - sum of log Gamma(q) - log Gamma(p) - (q - p)(digamma(q) - digamma(Q)), with Q and P
    the sums of q and p.

    Source:
        Penny, KL-divergences of normal, gamma, Dirichlet and Wishart densities, 2001.
    """
    there = q > 0
    total = torch.lgamma(q.sum(-1)) - torch.lgamma(p.sum(-1))
    a, b = torch.where(there, q, 1.0), torch.where(there, p, 1.0)
    each = torch.lgamma(b) - torch.lgamma(a) + (a - b) * torch.where(there, expected_log(q), 0.0)
    return total + torch.where(there, each, 0.0).sum(-1)


def _alpha(given: Any, own: Tensor, probs: Tensor, name: str) -> Tensor:
    """A Dirichlet prior of the shape of `probs`: the one given, else the part's own, else 1 / n; 0 where p is 0."""
    if given is not None:
        alpha = torch.as_tensor(given, dtype=probs.dtype, device=probs.device)
        if not bool((alpha > 0).all()):
            raise StatespanError(f"VI({name}=): {float(alpha.min()):g} is not above 0; a Dirichlet's alpha is")
        if alpha.dim() > probs.dim() or any(n not in (1, m) for n, m in zip(alpha.shape[::-1], probs.shape[::-1])):  # noqa: B905
            raise StatespanError(f"VI({name}=) is {tuple(alpha.shape)}; give one number or {tuple(probs.shape)}")
    elif bool(own.any()):
        alpha = own.to(probs) + 1
    else:
        alpha = probs.new_tensor(1 / probs.shape[-1])
    return torch.where(probs > 0, alpha.expand_as(probs), 0.0)


class Dirichlets(nn.Module):
    """Dirichlet posteriors over the last axis, and the prior they are measured against; 0 where a share must be.

    Args:
        prior: its parameters, (..., n).
        counts: what the beginning is worth beside it, (..., n).
    """

    def __init__(self, prior: Tensor, counts: Tensor):
        super().__init__()
        self.prior, self.concentration = prior, nn.Parameter(prior + counts)

    def expected_log(self) -> Tensor:
        """E log p."""
        return expected_log(self.concentration)

    def divergence(self) -> Tensor:
        """From the prior, of all rows together."""
        return dirichlet_divergence(self.concentration, self.prior).sum()

    def mean(self) -> Tensor:
        """E p."""
        return self.concentration.detach() / self.concentration.detach().sum(-1, keepdim=True)

    @torch.no_grad()
    def update(self, counts: Tensor) -> None:
        """Prior plus expected counts."""
        self.concentration.copy_(self.prior + torch.where(self.prior > 0, counts, 0.0))


class DirichletStart(Part, FiniteInitial):
    """A Dirichlet posterior of the first state's probabilities.

    Args:
        part: the part whose probabilities they are.
        prior: its parameters, (K,); 0 where a state is impossible.
        weight: how many observations the beginning is worth.
    """

    def __init__(self, part: Start, prior: Tensor, weight: float):
        super().__init__()
        self.states: Any = part.states
        self._part = (part,)  # in a tuple: it is no child of this module
        self.dirichlet = Dirichlets(prior, weight * part.probs().detach())

    @property
    def concentration(self) -> Tensor:
        """Its parameters, (K,)."""
        return self.dirichlet.concentration

    def probs(self) -> Tensor:
        """exp(E log p), (K,)."""
        return self.dirichlet.expected_log().exp()

    def log_prior(self) -> Tensor:
        """Minus the divergence from the prior."""
        return -self.dirichlet.divergence()

    def maximize(self, counts: Tensor) -> None:
        """Prior plus expected counts."""
        self.dirichlet.update(counts)

    def settle(self) -> None:
        """Leave the part at the mean."""
        self._part[0].set_probs(self.dirichlet.mean())


class DirichletRows(Part, MatrixTransition):
    """Dirichlet posteriors of the rows of a stochastic matrix.

    Args:
        part: the part whose matrix it is.
        prior: their parameters, (K, K); 0 where a move is impossible.
        weight: how many observations the beginning of each row is worth.
    """

    def __init__(self, part: Dense, prior: Tensor, weight: float):
        super().__init__()
        self.states: Any = part.states
        self._part = (part,)
        self.dirichlet = Dirichlets(prior, weight * part.probs.detach())

    @property
    def concentration(self) -> Tensor:
        """Its parameters, (K, K)."""
        return self.dirichlet.concentration

    @property
    def probs(self) -> Tensor:
        """exp(E log A), (K, K)."""
        return self.dirichlet.expected_log().exp()

    def log_prior(self) -> Tensor:
        """Minus the divergence from the prior."""
        return -self.dirichlet.divergence()

    def maximize(self, counts: Tensor) -> None:
        """Prior plus expected counts."""
        self.dirichlet.update(counts)

    def settle(self) -> None:
        """Leave the part at the mean."""
        self._part[0].set_probs(self.dirichlet.mean())


class DirichletSymbols(Part, FiniteEmission):
    """Dirichlet posteriors of each state's probabilities of symbols.

    Args:
        part: the part whose probabilities they are.
        prior: their parameters, (K, V); 0 where a symbol is impossible.
        weight: how many observations the beginning of each state is worth.
    """

    def __init__(self, part: Categorical, prior: Tensor, weight: float):
        super().__init__()
        self.states, self.event = part.states, part.event
        self._part = (part,)
        self.dirichlet = Dirichlets(prior, weight * part.probs.detach())

    @property
    def concentration(self) -> Tensor:
        """Its parameters, (K, V)."""
        return self.dirichlet.concentration

    def constants(self) -> Tensor:
        """E log p, by symbol, (V, K)."""
        return self.dirichlet.expected_log().T.contiguous()

    def log_likelihood(self, y: Tensor, u: Tree, observed: Tensor | None, constants: Tensor) -> Tensor:
        """E log p(y | k), (T, B, K)."""
        return nn.functional.embedding(y, constants)

    def mixture(self, probs: Tensor, u: Tree, constants: Tensor) -> Distribution:
        """Symbols under the posterior mean."""
        return CategoricalDistribution(probs=probs @ self.dirichlet.mean(), validate_args=False)

    def fill(self, y: Tensor, u: Tree, observed: Tensor | None, weights: Tensor) -> Tensor:
        """The likeliest symbol under the posterior mean."""
        return (weights @ self.dirichlet.mean()).argmax(-1)

    def statistics(self, y: Tensor, u: Tree, weights: Tensor, observed: Tensor | None) -> Tensor:
        """Expected counts, (V, K)."""
        symbols = self.event.symbols
        assert symbols is not None
        return symbol_sums(weights.reshape(-1, weights.shape[-1]), y.reshape(-1), symbols)

    def log_prior(self) -> Tensor:
        """Minus the divergence from the prior."""
        return -self.dirichlet.divergence()

    def maximize(self, stats: Tensor) -> None:
        """Prior plus expected counts."""
        self.dirichlet.update(stats.T)

    def settle(self) -> None:
        """Leave the part at the mean."""
        self._part[0].set_probs(self.dirichlet.mean())


def _pinned(part: Any) -> bool:
    """Whether some probabilities are tied, or held above zero."""
    fixed = getattr(part, "fixed", None)
    return getattr(part, "ties", None) is not None or (fixed is not None and bool((fixed > 0).any()))


@believe.register(Start)
def _(part: Start, by: "VI", data: Sequences) -> DirichletStart | Start:
    if _pinned(part):
        return part
    prior = _alpha(by.initial, part.extra, part.probs().detach(), "initial")
    return DirichletStart(part, prior, data.shape[1] if data.weights is None else float(data.weights.sum()))


@believe.register(Dense)
def _(part: Dense, by: "VI", data: Sequences) -> DirichletRows | Dense:
    if _pinned(part):
        return part
    return DirichletRows(part, _alpha(by.transition, part.extra, part.probs.detach(), "transition"), by.share(part))


@believe.register(Categorical)
def _(part: Categorical, by: "VI", data: Sequences) -> DirichletSymbols:
    own = part.extra.mT if part.extra.dim() else part.extra
    return DirichletSymbols(part, _alpha(by.symbols, own, part.probs.detach(), "symbols"), by.share(part))


# ----------------------------------------------------------------------------------------- normal-Wishart


class NormalWishart(Part, FiniteEmission):
    r"""Normal-Wishart posteriors: mean_k | P_k ~ N(m_k, (beta_k P_k)^-1), P_k ~ Wishart(nu_k, B_k^-1).

    P_k is the precision; its inverse is inverse-Wishart. A diagonal covariance is D Wisharts of size 1 (gamma
    distributions) that share nu_k, a spherical one a single Wishart of size 1, a tied one a Wishart for all states.
    E log N(y) is log N(y; m_k, B_k / nu_k) plus a number a state, so that gaps are the emission's own business.

    Args:
        part: the emission whose parameters they are.
        mean: m of the prior, (D,).
        strength: beta of the prior, in observations.
        freedom: nu of the prior.
        scale: B of the prior, (D, D).
        weight: how many observations the beginning of each state is worth.

    Source:
        Bishop 2006, section 10.2.1 and equations 10.60 to 10.63; Penny 2001.
    """

    def __init__(self, part: Gaussian, mean: Tensor, strength: float, freedom: float, scale: Tensor, weight: float):
        super().__init__()
        assert part.states is not None
        k, d = int(part.states), part.dim
        self.states: Any = k
        self.event, self.dim, self.kind = part.event, d, part.kind
        self._part = (part,)
        self.inner = Gaussian(d, part.kind, k, floor=0.0).to(part.mean)
        owners = 1 if part.kind == "tied" else k
        first = self._blocks(scale.to(part.mean).expand(owners, d, d))
        self.prior_mean, self.prior_strength, self.prior_freedom, self.prior_scale = mean, strength, freedom, first
        alike = self._blocks(part.covariance.detach()[:owners], mean=True)
        self.strength = nn.Parameter(part.mean.new_full((k,), strength + weight))
        total = freedom + weight * {"tied": k, "spherical": d}.get(part.kind, 1)
        self.freedom = nn.Parameter(part.mean.new_full((owners,), total))
        self.scale = nn.Parameter(alike * total)
        self._refresh(part.mean.detach())

    @property
    def mean(self) -> Tensor:
        """M, (K, D)."""
        return self.inner.mean

    def _blocks(self, matrices: Tensor, mean: bool = False) -> Tensor:
        """Matrices (n, D, D) as the blocks that the kind has, (n, G, d, d); a spherical one is the trace, or its mean.

        Of scatter matrices a trace, as every coordinate counts; of covariances their mean; so of a prior's scale too.
        """
        if self.kind in ("full", "tied"):
            return matrices[:, None]
        variances = matrices.diagonal(dim1=-2, dim2=-1)
        if self.kind == "spherical":
            variances = variances.mean(-1, keepdim=True) if mean else variances.sum(-1, keepdim=True)
        return variances[..., None, None]

    @torch.no_grad()
    def _refresh(self, mean: Tensor) -> None:
        """The normal at which the expectation lies, N(m, B / nu)."""
        blocks = self.scale / self.freedom[:, None, None, None]
        if self.kind in ("full", "tied"):
            covariance = blocks[:, 0]
        else:
            covariance = torch.diag_embed(blocks[..., 0, 0].expand(self.states, self.dim))
        self.inner.set_moments(mean, covariance.expand(self.states, -1, -1))

    def _multiple(self) -> int:
        """How many coordinates one block of size 1 stands for."""
        return self.dim if self.kind == "spherical" else 1

    def constants(self) -> tuple[Tree, Tensor]:
        """The normal's, and what E log N(y) has above its logarithm, (K,)."""
        d, log_scale = self.dim, torch.linalg.slogdet(self.scale)[1]
        expected = _expected_log_determinant(self.freedom[:, None], self.scale)
        lacking = self._multiple() * (expected + log_scale).sum(-1) - d * self.freedom.log()
        return self.inner.constants(), (lacking - d / self.strength) / 2

    def log_likelihood(self, y: Tensor, u: Tree, observed: Tensor | None, constants: tuple[Tree, Tensor]) -> Tensor:
        """E log N(y), (T, B, K)."""
        return self.inner.log_likelihood(y, u, observed, constants[0]) + constants[1]

    def mixture(self, probs: Tensor, u: Tree, constants: tuple[Tree, Tensor]) -> Distribution:
        """Normals at the expectation."""
        return self.inner.mixture(probs, u, constants[0])

    def fill(self, y: Tensor, u: Tree, observed: Tensor | None, weights: Tensor) -> Tensor:
        """The mean."""
        return self.inner.fill(y, u, observed, weights)

    def statistics(self, y: Tensor, u: Tree, weights: Tensor, observed: Tensor | None) -> Tree:
        """Sums about m."""
        return self.inner.statistics(y, u, weights, observed)

    def log_prior(self) -> Tensor:
        r"""Minus the divergence from the prior, KL of the precisions plus expected KL of the means."""
        far = self.mean - self.prior_mean
        prior, scale, freedom = self.prior_scale, self.scale, self.freedom[:, None]
        ratio = self.prior_strength / self.strength
        apart = torch.einsum("kd,kde,ke->k", far, torch.linalg.inv(self.inner.covariance), far)
        means = 0.5 * (self.dim * (ratio - ratio.log() - 1) + self.prior_strength * apart)
        trace = torch.linalg.solve(scale, prior).diagonal(dim1=-2, dim2=-1).sum(-1)
        expected = (freedom - self.prior_freedom) / 2 * _expected_log_determinant(freedom, scale)
        normaliser = _log_partition(scale.new_full((1, 1), self.prior_freedom), prior) - _log_partition(freedom, scale)
        wisharts = expected + freedom / 2 * (trace - scale.shape[-1]) + normaliser
        return -(means.sum() + wisharts.sum())

    @torch.no_grad()
    def maximize(self, stats: Gaussian.Stats) -> None:
        r"""Add: beta = beta_0 + w, m = (beta_0 m_0 + sum of y) / beta, nu = nu_0 + w, B = B_0 + scatter about m.

        From sums about the mean now, so that nothing cancels: with f and S the sums of x and x x', x = y - m_now, the
        scatter is S + beta_0 e e' - beta c c' with e = m_0 - m_now and c = m - m_now.
        """
        now, far = self.mean.clone(), self.prior_mean - self.mean
        self.strength.copy_(self.prior_strength + stats.weight)
        moved = (stats.first + self.prior_strength * far) / self.strength[:, None]
        second = stats.second if stats.second.dim() == 3 else torch.diag_embed(stats.second)
        scatter = second + self.prior_strength * far[:, :, None] * far[:, None]
        scatter = scatter - self.strength[:, None, None] * moved[:, :, None] * moved[:, None]
        weight = stats.weight * self._multiple()
        if self.kind == "tied":
            scatter, weight = scatter.sum(0, keepdim=True), weight.sum(0, keepdim=True)
        self.freedom.copy_(self.prior_freedom + weight)
        self.scale.copy_(self.prior_scale + self._blocks(scatter))
        self._refresh(now + moved)

    @torch.no_grad()
    def settle(self) -> None:
        """Leave the part at the mean: m, and B / (nu - d - 1) where that exists, else B / nu."""
        size = self.scale.shape[-1]
        spare = self.freedom - size - 1
        share = torch.where(spare > 0, self.freedom / spare.clamp_min(1e-9), 1.0)
        covariance = self.inner.covariance * share[:, None, None]
        self._part[0].set_moments(self.mean, covariance.expand(self.states, -1, -1))


def _expected_log_determinant(freedom: Tensor, scale: Tensor) -> Tensor:
    """E log |P| for P ~ Wishart(freedom, scale^-1): Bishop 2006, equation B.81."""
    d = scale.shape[-1]
    halves = (freedom[..., None] - torch.arange(d, device=scale.device)) / 2
    return torch.digamma(halves).sum(-1) + d * math.log(2) - torch.linalg.slogdet(scale)[1]


def _log_partition(freedom: Tensor, scale: Tensor) -> Tensor:
    """Log of what a Wishart density is divided by."""
    d = scale.shape[-1]
    halves = freedom / 2 * d * math.log(2) - freedom / 2 * torch.linalg.slogdet(scale)[1]
    return halves + torch.special.multigammaln(freedom / 2, d)


@believe.register(Gaussian)
def _(part: Gaussian, by: "VI", data: Sequences) -> NormalWishart:
    d, rows = part.dim, whole_rows(data.y, data.present)
    if len(rows) < 2 and (by.mean is None or by.scale is None):
        raise StatespanError("VI: fewer than two whole observations; give mean= and scale=")
    freedom = float(d + 2 if by.freedom is None else by.freedom)
    if by.strength <= 0 or freedom <= d - 1:
        raise StatespanError(f"VI(strength={by.strength}, freedom={freedom}): use above 0 and above {d - 1}")
    centre = rows.mean(0) if by.mean is None else torch.as_tensor(by.mean).to(rows).expand(d)
    if by.scale is None:
        spread = torch.diag((rows - rows.mean(0)).square().mean(0).clamp_min(part.floor))
        scale = spread / (part.states or 1) ** (2 / d)
        if part.kind == "spherical":
            scale = scale / d  # its trace counts
    else:
        scale = torch.as_tensor(by.scale).to(rows)
        scale = scale * torch.eye(d).to(rows) if scale.dim() == 0 else scale
        if scale.shape != (d, d) or not bool(torch.linalg.cholesky_ex(scale).info == 0):
            raise StatespanError(f"VI(scale=) is {tuple(scale.shape)}; give a number above 0 or a covariance {(d, d)}")
    return NormalWishart(part, centre, float(by.strength), freedom, scale, by.share(part))


# ------------------------------------------------------------------------------------------------ mixtures


class DirichletMixture(Part, FiniteEmission):
    """A mixture of normals in each state: Dirichlet posteriors of the weights, normal-Wishart ones of the normals.

    Which component an observation came from is a hidden state beside the chain's: it is summed out with it, exactly.

    Args:
        part: the emission whose parameters they are.
        prior: the Dirichlets' parameters, (K, M).
        normals: the normals' posteriors, of all components of all states.
        weight: how many observations the beginning of each state is worth.

    Source:
        Bishop 2006, section 10.2.
    """

    def __init__(self, part: GaussianMixture, prior: Tensor, normals: NormalWishart, weight: float):
        super().__init__()
        self.states: Any = part.states
        self.event, self.normals = part.event, normals
        self._part = (part,)
        self.dirichlet = Dirichlets(prior, weight * part.weights.detach())

    @property
    def concentration(self) -> Tensor:
        """Its parameters, (K, M)."""
        return self.dirichlet.concentration

    def constants(self) -> tuple[Tensor, Tree]:
        """E log weights, and the normals' own."""
        return self.dirichlet.expected_log(), self.normals.constants()

    def _joint(self, y: Tensor, u: Tree, observed: Tensor | None, constants: tuple[Tensor, Tree]) -> Tensor:
        """E log p(y, component | k), (T, B, K, M)."""
        log = self.normals.log_likelihood(y, u, observed, constants[1])
        return log.unflatten(-1, constants[0].shape) + constants[0]

    def log_likelihood(self, y: Tensor, u: Tree, observed: Tensor | None, constants: tuple[Tensor, Tree]) -> Tensor:
        """Log of the sum over components of exp(E log p(y, component | k)), (T, B, K)."""
        return self._joint(y, u, observed, constants).logsumexp(-1)

    def _shares(self, y: Tensor, u: Tree, observed: Tensor | None, weights: Tensor) -> Tensor:
        constants = self.constants()
        return divided(self._joint(y, u, observed, constants), observed, constants[0], weights)

    def mixture(self, probs: Tensor, u: Tree, constants: tuple[Tensor, Tree]) -> Distribution:
        """All components of all states at the expectation."""
        return self.normals.mixture((probs[..., None] * self.dirichlet.mean()).flatten(-2), u, constants[1])

    def fill(self, y: Tensor, u: Tree, observed: Tensor | None, weights: Tensor) -> Tensor:
        """The mean."""
        return self.normals.fill(y, u, observed, self._shares(y, u, observed, weights))

    @torch.no_grad()
    def statistics(self, y: Tensor, u: Tree, weights: Tensor, observed: Tensor | None) -> GaussianMixture.Stats:
        """Sums by component."""
        shares = self._shares(y, u, observed, weights)
        counts = shares.flatten(0, 1).sum(0).view(self.concentration.shape)
        return GaussianMixture.Stats(counts, self.normals.statistics(y, u, shares, observed))

    def log_prior(self) -> Tensor:
        """Minus the divergences from the priors."""
        return self.normals.log_prior() - self.dirichlet.divergence()

    def maximize(self, stats: GaussianMixture.Stats) -> None:
        """Each by its own."""
        self.dirichlet.update(stats.weight)
        self.normals.maximize(stats.normals)

    @torch.no_grad()
    def settle(self) -> None:
        """Leave the part at the means."""
        self._part[0].logits.copy_(self.dirichlet.mean().log())
        self.normals.settle()


@believe.register(GaussianMixture)
def _(part: GaussianMixture, by: "VI", data: Sequences) -> DirichletMixture:
    prior = _alpha(by.components, part.extra, part.weights.detach(), "components")
    return DirichletMixture(part, prior, believe(part.normals, by, data), by.share(part))
