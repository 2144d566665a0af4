"""What several chains emit together: each adds its own contribution."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal
from torch.distributions import Poisson as PoissonDistribution

from statespan.errors import StatespanError
from statespan.part import AdditiveEmission, Generative, Part
from statespan.parts.emissions.common import whole_rows
from statespan.parts.emissions.counts import COUNTS
from statespan.parts.emissions.normal import floored, patterns
from statespan.sequences import Event
from statespan.shapes import Float
from statespan.tree import Tree

COVARIANCES = ("full", "diagonal", "spherical")


class Evidence(NamedTuple):
    """Observations and contributions where the noise is white.

    Args:
        white: y, (T, B, D).
        base: log-density of noise that is zero, (T, B).
        tables: contributions of each chain, (K_c, D) or (T, B, K_c, D).
    """

    white: Tensor
    base: Tensor
    tables: tuple[Tensor, ...]


class AdditiveGaussian(AdditiveEmission, Part, Generative):
    r"""Vectors: p(y | z_1, ..., z_C) = N(y; sum over c of contributions_c[z_c], covariance), one covariance for all.

    What is added to one chain's contributions and taken off another's changes nothing; the M-step takes the shortest
    step. A missing coordinate is marginalised.

    Args:
        dim: D.
        covariance: "full", "diagonal" or "spherical"; or the matrix (D, D).
        chains: K_1, K_2, ..., how many states each chain has; None leaves it to `ss.factorial_hmm`.
        contributions: a (K_c, D) for each chain, instead of `dim` and `chains`.
        floor: the least variance in any direction that the M-step gives.

    Raises:
        StatespanError: contributions or a covariance of the wrong shape, or a covariance of another name.

    Source:
        Ghahramani and Jordan, "Factorial hidden Markov models", 1997, equation 4 and appendix A.

    Example:
        >>> import statespan as ss
        >>> model = ss.factorial_hmm([2, 2, 3], ss.AdditiveGaussian(dim=2), seed=0)
        >>> model.log_prob([[0.5, -1.0], [float("nan"), 2.0]]).shape
        torch.Size([])
        >>> [part.shape for part in model.emission.contributions][2]
        torch.Size([3, 2])
    """

    class Stats(NamedTuple):
        """Weight (), products of states (P, P), states times residuals (P, D), squares of residuals (D, D)."""

        weight: Tensor
        states: Tensor
        cross: Tensor
        squares: Tensor

    def __init__(
        self,
        dim: int = 1,
        covariance: Any = "full",
        chains: Sequence[int] | None = None,
        contributions: Any = None,
        floor: float = 1e-6,
    ):
        super().__init__()
        given = _tables(contributions, "AdditiveGaussian")
        if given is not None:
            chains, dim = [len(table) for table in given], given[0].shape[1]
        kind = covariance if isinstance(covariance, str) else "full"
        if kind not in COVARIANCES:
            raise StatespanError(f"covariance={covariance!r} is none of {', '.join(COVARIANCES)}; choose one of them")
        self.dim, self.kind, self.floor, self.event = dim, kind, floor, Event(1, None, dim)
        self.remember(dim=dim, covariance=kind, chains=chains, contributions=None)
        self.sizes, self.states = _sizes(chains)
        if self.sizes:
            values = torch.randn(sum(self.sizes), dim) if given is None else torch.cat(given)
            self.table = nn.Parameter(values)
            self.log_diagonal = nn.Parameter(values.new_zeros(1 if kind == "spherical" else dim))
            self.lower = nn.Parameter(values.new_zeros(dim, dim)) if kind == "full" else None
            if not isinstance(covariance, str):
                self._set_covariance(_matrix(covariance, dim).to(values))

    @property
    def contributions(self) -> tuple[Tensor, ...]:
        """What each chain adds, (K_c, D)."""
        return self.table.split(self.sizes)

    @property
    def mean(self) -> Tensor:
        """Of each joint state, (K, D)."""
        return _joint(self.contributions)

    def factor(self) -> Tensor:
        """The lower triangular L with covariance L L', (D, D)."""
        diagonal = torch.diag_embed(self.log_diagonal.exp().expand(self.dim))
        return diagonal if self.lower is None else diagonal + self.lower.tril(-1)

    @property
    def covariance(self) -> Tensor:
        """(D, D)."""
        factor = self.factor()
        return factor @ factor.mT

    def constants(self) -> tuple[Tensor, ...]:
        """The contributions."""
        return self.contributions

    def _whiteners(self, y: Tensor, observed: Tensor | None) -> Iterator[tuple[Tensor | None, Tensor, float | Tensor]]:
        """Each pattern of gaps in y (T, B, D): its rows (None: all), a root of its precision (d, D), its base."""
        if observed is None or observed.dim() == 2:
            yield None, *self._whitener(torch.ones(self.dim, dtype=torch.bool, device=y.device))
            return
        for rows, there in patterns(observed.reshape(-1, self.dim)):
            yield rows, *self._whitener(there)

    def _whitener(self, there: Tensor) -> tuple[Tensor, Tensor]:
        factor = torch.linalg.cholesky(self.covariance[there][:, there]) if not bool(there.all()) else self.factor()
        eye = torch.eye(self.dim, dtype=factor.dtype, device=factor.device)[there]
        root = torch.linalg.solve_triangular(factor, eye, upper=False)  # zero in the columns of what is missing
        base = -factor.diagonal().log().sum() - 0.5 * math.log(2 * math.pi) * len(factor)
        return nn.functional.pad(root, (0, 0, 0, self.dim - len(root))), base

    def log_likelihood(
        self, y: Float[Tensor, "T B D"], u: Tree, observed: Tensor | None, constants: tuple[Tensor, ...]
    ) -> Float[Tensor, "T B K"]:
        """Log-densities under the joint states, over the coordinates that are there."""
        flat, mean = y.reshape(-1, self.dim), _joint(constants)
        out = y.new_zeros(len(flat), len(mean))
        for rows, root, base in self._whiteners(y, observed):
            some = flat if rows is None else flat[rows]
            far = torch.cdist(some @ root.mT, mean @ root.mT, compute_mode="donot_use_mm_for_euclid_dist")
            log = base - 0.5 * far.square()
            out = log if rows is None else out.index_copy(0, rows, log)
        return out.view(*y.shape[:-1], -1)

    def apart(self, z: Tensor) -> MultivariateNormal:
        """The distribution of y given one state of each chain."""
        return MultivariateNormal(_added(self.contributions, z), scale_tril=self.factor(), validate_args=False)

    def forward(self, z: Tensor, u: Tree = None) -> MultivariateNormal:
        """The distribution of y given joint states z."""
        return self.apart(torch.stack(torch.unravel_index(z, self.sizes), -1))

    def evidence(self, y: Tensor, u: Tree, observed: Tensor | None, constants: tuple[Tensor, ...]) -> Evidence:
        """Y and the contributions where the noise is white."""
        each = list(self._whiteners(y, observed))
        if each[0][0] is None:
            root, base = each[0][1:]
            return Evidence(y @ root.mT, y.new_zeros(y.shape[:-1]) + base, tuple(x @ root.mT for x in constants))
        kind = torch.zeros(y.shape[:-1], dtype=torch.long, device=y.device).flatten()
        for i, (rows, _, _) in enumerate(each):
            kind[rows] = i
        kind, roots = kind.view(y.shape[:-1]), torch.stack([root for _, root, _ in each])
        bases = torch.stack([torch.as_tensor(base) for _, _, base in each])
        white = (roots[kind] @ y[..., None])[..., 0]
        return Evidence(white, bases[kind], tuple((x @ roots.mT)[kind] for x in constants))

    def expected(self, chain: int, others: Sequence[Tensor], evidence: Evidence) -> Tensor:
        """Log N(y; k's contribution plus the others' means), less half their spread."""
        rest, spread = evidence.white, torch.zeros_like(evidence.base)
        for c, (probs, table) in enumerate(zip(others, evidence.tables, strict=True)):
            if c != chain:
                mean = (probs[..., None, :] @ table)[..., 0, :]
                rest = rest - mean
                spread = spread + (probs * (table - mean[..., None, :]).square().sum(-1)).sum(-1)
        own = (rest[..., None, :] - evidence.tables[chain]).square().sum(-1)
        return (evidence.base - 0.5 * spread)[..., None] - 0.5 * own

    def fill(self, y: Tensor, u: Tree, observed: Tensor | None, weights: Tensor) -> Tensor:
        """The mean, given what is there of each row."""
        return self._filled(y, observed, weights @ self.mean)

    def chain_fill(self, y: Tensor, u: Tree, observed: Tensor | None, chains: Sequence[Tensor]) -> Tensor:
        """The mean, given what is there of each row."""
        return self._filled(y, observed, torch.cat(list(chains), -1) @ self.table)

    def _filled(self, y: Tensor, observed: Tensor | None, mean: Tensor) -> Tensor:
        """The mean, which is linear in what is there: that of the states (T, B, D) will do."""
        if observed is None or observed.dim() == 2:
            return mean
        x, out = (y - mean).reshape(-1, self.dim), torch.zeros_like(y).view(-1, self.dim)
        for rows, there in patterns(observed.reshape(-1, self.dim)):
            out[rows] = x[rows][:, there] @ self._spread(there)[0].mT
        return mean + out.view_as(y)

    def _spread(self, there: Tensor) -> tuple[Tensor, Tensor]:
        """All coordinates' noise from that of some: E x = G x_there, (D, d), and what is left of its covariance."""
        covariance = self.covariance
        gain = torch.linalg.solve(covariance[there][:, there], covariance[there]).mT
        gain[there] = torch.eye(gain.shape[1], dtype=gain.dtype, device=gain.device)
        return gain, covariance - gain @ covariance[there]

    @torch.no_grad()
    def statistics(self, y: Tensor, u: Tree, weights: Tensor, observed: Tensor | None) -> "AdditiveGaussian.Stats":
        """Expected sums under joint states."""
        which, flat = _indicators(self.sizes).to(weights), weights.flatten(0, 1)

        def moments(rows: Any, x: Tensor) -> tuple[Tensor, Tensor]:
            w = flat[rows]
            return which.T @ (w.sum(0)[:, None] * which), which.T @ (w.T @ x)

        return self._sums(y, flat.sum(-1), observed, moments)

    @torch.no_grad()
    def chain_statistics(
        self, y: Tensor, u: Tree, chains: Sequence[Tensor], weights: Tensor, observed: Tensor | None
    ) -> "AdditiveGaussian.Stats":
        """Expected sums under independent chains."""
        flat, weight = torch.cat(list(chains), -1).flatten(0, 1), weights.flatten()

        def moments(rows: Any, x: Tensor) -> tuple[Tensor, Tensor]:
            q = flat[rows]
            w = weight[rows][:, None] * q
            pairs, at = w.T @ q, 0
            for size in self.sizes:  # a chain is in one state at a time
                own = slice(at, at + size)
                pairs[own, own], at = torch.diag(w[:, own].sum(0)), at + size
            return pairs, w.T @ x

        return self._sums(y, weight, observed, moments)

    def _sums(
        self,
        y: Tensor,
        weight: Tensor,
        observed: Tensor | None,
        moments: Callable[[Any, Tensor], tuple[Tensor, Tensor]],
    ) -> "AdditiveGaussian.Stats":
        """Sums over rows; a missing coordinate counts by its conditional mean and covariance.

        Args:
            y: (T, B, D).
            weight: of each row, (N,).
            observed: what is there.
            moments: of rows, with the coordinates x (n, d) of them: sums of states times states, and times x.
        """
        middle = torch.stack([table.mean(0) for table in self.contributions])
        table = torch.cat([t - m for t, m in zip(self.contributions, middle, strict=True)])
        flat = y.reshape(-1, self.dim) - middle.sum(0)  # about the middle of the states, so that little cancels
        if observed is None or observed.dim() == 2:
            each: Any = [(slice(None), torch.ones(self.dim, dtype=torch.bool, device=y.device))]
        else:
            each = patterns(observed.reshape(-1, self.dim))
        p = len(table)
        total = [y.new_zeros(()), y.new_zeros(p, p), y.new_zeros(p, self.dim), y.new_zeros(self.dim, self.dim)]
        for rows, there in each:
            if not bool(there.any()):
                continue
            x, w, own = flat[rows][:, there], weight[rows], table[:, there]
            pairs, cross = moments(rows, x)
            left = x.T @ (w[:, None] * x) - cross.T @ own
            squares = left - own.T @ cross + own.T @ pairs @ own
            gain, rest = self._spread(there)
            new = (w.sum(), pairs, (cross - pairs @ own) @ gain.mT, gain @ squares @ gain.mT + w.sum() * rest)
            total = [a + b for a, b in zip(total, new, strict=True)]
        return self.Stats(*total)

    @torch.no_grad()
    def maximize(self, stats: "AdditiveGaussian.Stats") -> None:
        """Closed-form M-step: the shortest of the least-squares steps, then the covariance of what is left."""
        weight, states, cross, squares = stats
        if not float(weight) > 0:
            return
        shift = torch.zeros_like(cross)
        if self.table.requires_grad:
            small = 100 * len(states) * torch.finfo(states.dtype).eps
            shift = torch.linalg.pinv(states, rtol=small, hermitian=True) @ cross
        self.table.add_(shift)
        left = shift.T @ cross
        self._set_covariance((squares - left - left.T + shift.T @ states @ shift) / weight)

    @torch.no_grad()
    def _set_covariance(self, covariance: Tensor) -> None:
        """As the kind allows, and no variance below the floor."""
        if self.kind != "full":
            variances = covariance.diagonal()
            variances = variances.mean(0, keepdim=True) if self.kind == "spherical" else variances
            self.log_diagonal.copy_(variances.clamp_min(self.floor).log() / 2)
            return
        factor = torch.linalg.cholesky(floored((covariance + covariance.T) / 2, self.floor))
        self.log_diagonal.copy_(factor.diagonal().log())
        assert self.lower is not None
        self.lower.copy_(factor.tril(-1))

    @torch.no_grad()
    def begin(self, y: Tensor, u: Tree, observed: Tensor | None) -> None:
        """A start for EM from the data: chance contributions that together spread as the data do, about their mean."""
        points = whole_rows(y, observed)
        if len(points) < 2:
            return
        centred, chains = points - points.mean(0), len(self.sizes)
        spread = centred.square().mean(0).sqrt() / chains**0.5
        self.table.copy_(points.mean(0) / chains + spread * torch.randn_like(self.table))
        self._set_covariance(centred.T @ centred / len(points))


class Rates(NamedTuple):
    """Counts and what of them is there, (T, B, D), log y! summed, (T, B), and each chain's log-factors and factors."""

    y: Tensor
    there: Tensor
    base: Tensor
    logs: tuple[Tensor, ...]
    factors: tuple[Tensor, ...]


class AdditivePoisson(AdditiveEmission, Part, Generative):
    r"""Counts: y_d ~ Poisson(exp(sum over c of contributions_c[z_c]_d)): each chain multiplies the rate.

    What is added to one chain's contributions and taken off another's changes nothing. The M-step is one step of
    iterative scaling, which has a closed form and never goes down; a full one has none.

    Args:
        dim: D.
        chains: K_1, K_2, ..., how many states each chain has; None leaves it to `ss.factorial_hmm`.
        contributions: a (K_c, D) for each chain, of logarithms, instead of the sizes.
        floor: the least factor (exp of a contribution) the M-step gives.

    Source:
        Iterative scaling: Darroch and Ratcliff, "Generalized iterative scaling for log-linear models", 1972.

    Example:
        >>> AdditivePoisson(contributions=[[[0.0], [1.0]], [[0.5], [2.0]]]).rate.detach().log().flatten().tolist()
        [0.5, 2.0, 1.5, 3.0]
    """

    class Stats(NamedTuple):
        """By chain and state, the sums of what was seen and of what was expected, (P, D)."""

        seen: Tensor
        rates: Tensor

    def __init__(
        self, dim: int = 1, chains: Sequence[int] | None = None, contributions: Any = None, floor: float = 1e-10
    ):
        super().__init__()
        given = _tables(contributions, "AdditivePoisson")
        if given is not None:
            chains, dim = [len(table) for table in given], given[0].shape[1]
        self.dim, self.floor, self.event = dim, floor, Event(1, None, dim, COUNTS)
        self.remember(dim=dim, chains=chains, contributions=None)
        self.sizes, self.states = _sizes(chains)
        if self.sizes:
            spread = len(self.sizes) ** -0.5
            self.table = nn.Parameter(torch.cat(given) if given else spread * torch.randn(sum(self.sizes), dim))

    @property
    def contributions(self) -> tuple[Tensor, ...]:
        """What each chain adds to the log rate, (K_c, D)."""
        return self.table.split(self.sizes)

    @property
    def rate(self) -> Tensor:
        """Of each joint state, (K, D)."""
        return _joint(self.contributions).exp()

    def constants(self) -> tuple[Tensor, ...]:
        """The contributions."""
        return self.contributions

    def log_likelihood(
        self, y: Float[Tensor, "T B D"], u: Tree, observed: Tensor | None, constants: tuple[Tensor, ...]
    ) -> Float[Tensor, "T B K"]:
        """Log-probabilities under the joint states, over the coordinates that are there."""
        log, there = _joint(constants), _there(y, observed)
        return (y * there) @ log.T - there @ log.exp().T - (torch.lgamma(y + 1) * there).sum(-1, keepdim=True)

    def apart(self, z: Tensor) -> Distribution:
        """The distribution of y given one state of each chain."""
        rate = _added(self.contributions, z).exp()
        return Independent(PoissonDistribution(rate, validate_args=False), 1, validate_args=False)

    def forward(self, z: Tensor, u: Tree = None) -> Distribution:
        """The distribution of y given joint states z."""
        return self.apart(torch.stack(torch.unravel_index(z, self.sizes), -1))

    def evidence(self, y: Tensor, u: Tree, observed: Tensor | None, constants: tuple[Tensor, ...]) -> Rates:
        """The counts, and the chains' factors."""
        there = _there(y, observed)
        base = -(torch.lgamma(y + 1) * there).sum(-1)
        return Rates(y * there, there, base, constants, tuple(x.exp() for x in constants))

    def expected(self, chain: int, others: Sequence[Tensor], evidence: Rates) -> Tensor:
        """Y times the mean log-rate, less the mean rate: a product over independent chains."""
        log, rate = torch.zeros_like(evidence.y), evidence.there
        for c, (probs, logs, factors) in enumerate(zip(others, evidence.logs, evidence.factors, strict=True)):
            if c != chain:
                log, rate = log + probs @ logs, rate * (probs @ factors)
        known = evidence.base + (evidence.y * log).sum(-1)
        return known[..., None] + evidence.y @ evidence.logs[chain].T - rate @ evidence.factors[chain].T

    def fill(self, y: Tensor, u: Tree, observed: Tensor | None, weights: Tensor) -> Tensor:
        """The mean."""
        return weights @ self.rate

    def chain_fill(self, y: Tensor, u: Tree, observed: Tensor | None, chains: Sequence[Tensor]) -> Tensor:
        """The mean."""
        each = [probs @ table.exp() for probs, table in zip(chains, self.contributions, strict=True)]
        return torch.stack(each).prod(0)

    @torch.no_grad()
    def statistics(self, y: Tensor, u: Tree, weights: Tensor, observed: Tensor | None) -> "AdditivePoisson.Stats":
        """Expected sums under joint states."""
        which, w, there = _indicators(self.sizes).to(weights), weights.flatten(0, 1).T, _there(y, observed)
        flat, seen = there.flatten(0, 1), (y * there).flatten(0, 1)
        return self.Stats(which.T @ (w @ seen), which.T @ ((w @ flat) * self.rate))

    @torch.no_grad()
    def chain_statistics(
        self, y: Tensor, u: Tree, chains: Sequence[Tensor], weights: Tensor, observed: Tensor | None
    ) -> "AdditivePoisson.Stats":
        """Expected sums under independent chains."""
        there = _there(y, observed) * weights[..., None]
        factors = [table.exp() for table in self.contributions]
        seen, rates = [], []
        for c, probs in enumerate(chains):
            rate = there
            for d, (other, factor) in enumerate(zip(chains, factors, strict=True)):
                rate = rate if c == d else rate * (other @ factor)
            flat = probs.flatten(0, 1).T
            seen.append(flat @ (y * there).flatten(0, 1))
            rates.append((flat @ rate.flatten(0, 1)) * factors[c])
        return self.Stats(torch.cat(seen), torch.cat(rates))

    @torch.no_grad()
    def maximize(self, stats: "AdditivePoisson.Stats") -> None:
        """Each contribution moves by log(seen / expected) / C; one never visited stays."""
        there = stats.rates > 0
        ratio = torch.where(there, stats.seen, 1.0) / torch.where(there, stats.rates, 1.0)
        step = ratio.clamp_min(torch.finfo(ratio.dtype).tiny).log() / len(self.sizes)
        self.table.copy_((self.table + step).clamp_min(math.log(self.floor)))

    @torch.no_grad()
    def begin(self, y: Tensor, u: Tree, observed: Tensor | None) -> None:
        """A start for EM from the data: chance contributions about the logarithm of the mean count."""
        there, chains = _there(y, observed), len(self.sizes)
        mean = ((y * there).flatten(0, -2).sum(0) / there.flatten(0, -2).sum(0).clamp_min(1)).clamp_min(self.floor)
        self.table.copy_((mean.log() + chains**0.5 * torch.randn_like(self.table) / 2) / chains)


def _sizes(chains: Sequence[int] | None) -> tuple[tuple[int, ...], int | None]:
    """How many states each chain has, () where that is not known, and how many joint states that makes."""
    if chains is None:
        return (), None
    if not len(chains) or any(not isinstance(n, int) or n < 1 for n in chains):
        raise StatespanError(f"chains={chains!r}: give how many states each chain has, such as [2, 3]")
    return tuple(chains), math.prod(chains)


def _tables(contributions: Any, name: str) -> list[Tensor] | None:
    """Check a table (K_c, D) of each chain."""
    if contributions is None:
        return None
    each = [torch.as_tensor(table, dtype=torch.float64) for table in contributions]
    if not each or any(t.dim() != 2 or not len(t) or t.shape[1] != each[0].shape[-1] for t in each):
        raise StatespanError(
            f"{name}(contributions=): give a table (K_c, D) of each chain, all with the same D; these are "
            f"{', '.join(str(tuple(t.shape)) for t in each)}"
        )
    if not all(bool(t.isfinite().all()) for t in each):
        raise StatespanError(f"{name}(contributions=) holds a number that is not finite; give finite ones")
    return each


def _matrix(covariance: Any, dim: int) -> Tensor:
    """Check a covariance (D, D)."""
    matrix = torch.as_tensor(covariance, dtype=torch.float64)
    if matrix.shape != (dim, dim) or int(torch.linalg.cholesky_ex(matrix).info) > 0:
        raise StatespanError(
            f"AdditiveGaussian(covariance=) is {tuple(matrix.shape)}; give one of {', '.join(COVARIANCES)}, or a "
            f"positive definite matrix {(dim, dim)}"
        )
    return matrix


def _joint(tables: Sequence[Tensor]) -> Tensor:
    """Sums of one row of each table, (K_1 K_2 ..., D), the last table's row fastest."""
    joint = tables[0]
    for table in tables[1:]:
        joint = (joint[:, None] + table).flatten(0, 1)
    return joint


def _added(tables: Sequence[Tensor], z: Tensor) -> Tensor:
    """The sum of the row of each table that z (..., C) says."""
    return torch.stack([table[z[..., c]] for c, table in enumerate(tables)]).sum(0)


def _indicators(sizes: Sequence[int]) -> Tensor:
    """Which state of each chain a joint state is, (K, P) of zeros and ones, the chains' states side by side."""
    each = torch.unravel_index(torch.arange(math.prod(sizes)), tuple(sizes))
    return torch.cat([nn.functional.one_hot(z, n) for z, n in zip(each, sizes, strict=True)], -1)


def _there(y: Tensor, observed: Tensor | None) -> Tensor:
    """One where a coordinate is there, else zero, (..., D)."""
    if observed is None:
        return torch.ones_like(y)
    return (observed if observed.dim() == y.dim() else observed[..., None]).expand_as(y).to(y)
