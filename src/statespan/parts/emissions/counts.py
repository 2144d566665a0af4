"""Counts: Poisson, Bernoulli, multinomial, negative binomial."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli as BernoulliDistribution
from torch.distributions import Distribution, Independent
from torch.distributions import Multinomial as MultinomialDistribution
from torch.distributions import NegativeBinomial as NegativeBinomialDistribution
from torch.distributions import Poisson as PoissonDistribution

from statespan.errors import StatespanError
from statespan.part import FiniteEmission, Generative, Part, positive
from statespan.parts.emissions.common import first_weights, known, root, stochastic, table, tables
from statespan.parts.emissions.exponential import ExponentialFamily, Sums
from statespan.parts.priors import beta, dirichlet, gamma, log_beta, log_dirichlet, log_gamma
from statespan.sequences import Event, Support
from statespan.shapes import Float
from statespan.tree import Tree


def _no_count(x: Tensor, there: Tensor) -> Tensor:
    return there & ((x < 0) | (x != x.round()))


COUNTS = Support(_no_count, "counts 0, 1, 2, ...")
BITS = Support(lambda x, there: there & (x != 0) & (x != 1), "zeros and ones")


class Poisson(Part, ExponentialFamily, Generative):
    r"""Counts: p(y | z = k) = product over d of rate_kd^y_d exp(-rate_kd) / y_d!.

    Args:
        dim: D.
        states: K; None leaves it to `ss.hmm`.
        rate: (K, D), the expected counts; instead of the sizes.
        prior: a and b of a Gamma(a, b) prior on each rate, a 1 or more: a - 1 is added to the expected sums and b to
            the expected weights. (hmmlearn's PoissonHMM adds `lambdas_prior` to N times a state's mean and divides by
            `lambdas_weight` + N, with N the weight of all states together; with its zeros it has no prior.)
        floor: the least rate the M-step gives, so that a state that saw only zeros can still see something else.

    Raises:
        StatespanError: a rate not above 0, or a prior without a mode.

    Source:
        Zucchini, MacDonald and Langrock, Hidden Markov Models for Time Series 2016, section 1.3 and 4.2.

    Example:
        >>> Poisson(rate=[[1.0], [9.0]]).mean.detach().round().flatten().tolist()
        [1.0, 9.0]
    """

    rate = positive("log_rate", "The expected counts, (K, D).")

    def __init__(
        self,
        dim: int = 1,
        states: int | None = None,
        rate: Any = None,
        prior: Sequence[float] = (1.0, 0.0),
        floor: float = 1e-10,
    ):
        super().__init__()
        given = None if rate is None else table(rate, "Poisson(rate=)", 0.0)
        self.states, self.dim = (states, dim) if given is None else given.shape
        self.remember(dim=self.dim, states=self.states, rate=None)
        self.event, self.floor, self.prior = Event(1, None, self.dim, COUNTS), floor, gamma(prior, "Poisson(prior=)")
        if self.states is not None:
            self.log_rate = nn.Parameter(torch.randn(self.states, self.dim) if given is None else given.log())

    @property
    def mean(self) -> Tensor:
        """The rates, (K, D)."""
        return self.rate

    def features(self, y: Tensor) -> Tensor:
        """The counts."""
        return y[..., None, :]

    def base(self, y: Tensor) -> Tensor:
        """Minus log y!."""
        return -torch.lgamma(y + 1)

    def natural(self) -> tuple[Tensor, Tensor]:
        """Log rate, and the rate."""
        return self.log_rate[None], self.rate

    def forward(self, z: Tensor, u: Tree = None) -> Distribution:
        """The distribution of y given states z."""
        return Independent(PoissonDistribution(self.rate[z], validate_args=False), 1, validate_args=False)

    def log_prior(self) -> Tensor:
        """The Gamma's (a - 1) log rate - b rate."""
        return log_gamma(self.rate, self.prior)

    @torch.no_grad()
    def maximize(self, stats: Sums) -> None:
        """Closed-form M-step; a coordinate never seen keeps its rate."""
        rate = (stats.features[0] + self.prior[0] - 1) / (stats.weight + self.prior[1]).clamp_min(1e-300)
        self.log_rate.copy_(torch.where(stats.weight > 0, rate.clamp_min(self.floor).log(), self.log_rate))


class Bernoulli(Part, ExponentialFamily, Generative):
    r"""Vectors of zeros and ones: p(y | z = k) = product over d of probs_kd^y_d (1 - probs_kd)^(1 - y_d).

    Args:
        dim: D.
        states: K; None leaves it to `ss.hmm`.
        probs: (K, D), probabilities of a one, strictly between 0 and 1; instead of the sizes.
        prior: a and b of a Beta(a, b) prior on each probability, 1 or more: a - 1 is added to the expected ones, b - 1
            to the expected zeros.
        floor: how near to 0 or 1 the M-step lets a probability come.

    Raises:
        StatespanError: a probability not strictly between 0 and 1, or a prior without a mode.

    Source:
        Bishop, Pattern Recognition and Machine Learning 2006, section 9.3.3.

    Example:
        >>> Bernoulli(probs=[[0.1, 0.5], [0.9, 0.5]]).probs.shape
        torch.Size([2, 2])
    """

    def __init__(
        self,
        dim: int = 1,
        states: int | None = None,
        probs: Any = None,
        prior: Sequence[float] = (1.0, 1.0),
        floor: float = 1e-10,
    ):
        super().__init__()
        given = None if probs is None else table(probs, "Bernoulli(probs=)", 0.0, 1.0)
        self.states, self.dim = (states, dim) if given is None else given.shape
        self.remember(dim=self.dim, states=self.states, probs=None)
        self.event, self.floor, self.prior = Event(1, None, self.dim, BITS), floor, beta(prior, "Bernoulli(prior=)")
        if self.states is not None:
            self.logits = nn.Parameter(torch.randn(self.states, self.dim) if given is None else given.logit())

    @property
    def probs(self) -> Tensor:
        """(K, D)."""
        return self.logits.sigmoid()

    @property
    def mean(self) -> Tensor:
        """The probabilities, (K, D)."""
        return self.probs

    def features(self, y: Tensor) -> Tensor:
        """The ones."""
        return y[..., None, :]

    def base(self, y: Tensor) -> None:
        """Zero."""

    def natural(self) -> tuple[Tensor, Tensor]:
        """The logits, and minus log(1 - probs)."""
        return self.logits[None], nn.functional.softplus(self.logits)

    def forward(self, z: Tensor, u: Tree = None) -> Distribution:
        """The distribution of y given states z."""
        each = BernoulliDistribution(logits=self.logits[z], validate_args=False)
        return Independent(each, 1, validate_args=False)

    def log_prior(self) -> Tensor:
        """The Beta's (a - 1) log p + (b - 1) log(1 - p)."""
        return log_beta(self.logits, self.prior)

    @torch.no_grad()
    def maximize(self, stats: Sums) -> None:
        """Closed-form M-step; a coordinate never seen keeps its probability."""
        a, b = self.prior
        probs = (stats.features[0] + a - 1) / (stats.weight + a + b - 2).clamp_min(1e-300)
        floor = max(self.floor, torch.finfo(probs.dtype).eps)
        self.logits.copy_(torch.where(stats.weight > 0, probs.clamp(floor, 1 - floor).logit(), self.logits))


class Multinomial(Part, FiniteEmission, Generative):
    r"""Counts of V categories in n trials: p(y | z = k) = n! product over v of probs_kv^y_v / y_v!.

    With `trials` the rows sum to that, and categories that are missing are marginalised: together they hold what is
    left. Without, each row is taken given its own sum, which a missing category would leave unknown.

    Args:
        dim: V.
        states: K; None leaves it to `ss.hmm`.
        trials: n; None: the sum of each row, taken as given. Sampling needs it.
        probs: (K, V), rows sum to one; instead of the sizes.
        concentration: alpha of a Dirichlet prior on each state's probabilities, one number, (V,) or (K, V), 1 or more:
            alpha - 1 is added to the expected counts.

    Raises:
        StatespanError: probs whose rows do not sum to one; a concentration below 1; drawing without trials.

    Source:
        Bishop, Pattern Recognition and Machine Learning 2006, section 2.2.

    Example:
        >>> Multinomial(trials=5, probs=[[0.5, 0.5], [0.9, 0.1]]).mean[1]
        tensor([4.5000, 0.5000], dtype=torch.float64, grad_fn=<SelectBackward0>)
    """

    def __init__(
        self,
        dim: int = 2,
        states: int | None = None,
        trials: int | None = None,
        probs: Any = None,
        concentration: Any = 1.0,
    ):
        super().__init__()
        given = None if probs is None else stochastic(probs, "Multinomial(probs=)", 2)
        self.states, self.dim = (states, dim) if given is None else given.shape
        self.remember(dim=self.dim, states=self.states, probs=None)
        self.trials = trials
        what = "counts 0, 1, 2, ... that sum to " + (
            "the number of trials, no category missing (or give trials=)" if trials is None else f"{trials} a row"
        )
        self.event = Event(1, None, self.dim, Support(self._wrong, what))
        alpha = dirichlet(concentration, (self.states, self.dim), "Multinomial(concentration=)")
        self.extra = alpha - 1
        """What the prior adds to the expected counts."""
        if self.states is not None:
            self.logits = nn.Parameter(torch.randn(self.states, self.dim) if given is None else given.log())

    def _wrong(self, x: Tensor, there: Tensor) -> Tensor:
        """No counts; or rows of another sum."""
        whole, some, total = there.all(-1), there.any(-1), x.sum(-1)
        beside = (whole & (total != self.trials)) | (total > (self.trials or 0))
        off = some & ~whole if self.trials is None else beside
        return _no_count(x, there) | (off[:, None] & there)

    @property
    def probs(self) -> Tensor:
        """(K, V)."""
        return self.logits.softmax(-1)

    @property
    def mean(self) -> Tensor:
        """The expected counts, (K, V)."""
        return self._trials() * self.probs

    def _trials(self) -> int:
        if self.trials is None:
            raise StatespanError("Multinomial does not know how many trials a row has; give trials= to draw or predict")
        return self.trials

    def constants(self) -> Tensor:
        """Log probabilities, (K, V)."""
        return self.logits.log_softmax(-1)

    def log_likelihood(
        self, y: Float[Tensor, "T B D"], u: Tree, observed: Tensor | None, constants: Tensor
    ) -> Float[Tensor, "T B K"]:
        """One matrix product; missing categories together hold what is left of the trials."""
        y, there = known(y, observed, 0.0)
        total, base = y.sum(-1, keepdim=True), torch.lgamma(y + 1).sum(-1, keepdim=True)
        possible = constants.isfinite()
        out = y @ torch.where(possible, constants, 0.0).T
        if not bool(possible.all()):  # zero times minus infinity: an impossible category that was not seen
            out = out.masked_fill(((y[..., None, :] > 0) & ~possible).any(-1), -torch.inf)
        if there is None:
            return out + torch.lgamma(total + 1) - base
        mask = there.to(y)
        rest = self._trials() - total * there.any(-1, keepdim=True)
        gone = ((1 - mask) @ constants.exp().T).clamp_min(torch.finfo(y.dtype).tiny).log()
        some = (~there).any(-1, keepdim=True)
        left = torch.where(some, rest * gone - torch.lgamma(rest + 1), 0.0)
        return out + left + torch.lgamma(y.new_tensor(self._trials() + 1.0)) - base

    def forward(self, z: Tensor, u: Tree = None) -> Distribution:
        """The distribution of y given states z."""
        return MultinomialDistribution(self._trials(), probs=self.probs[z], validate_args=False)

    def fill(self, y: Tensor, u: Tree, observed: Tensor | None, weights: Tensor) -> Tensor:
        """The mean, given the counts that are there."""
        y, there = known(y, observed, 0.0)
        if there is None:
            return weights @ self.mean
        return (weights[..., None] * self._completed(y, there)).sum(-2)

    def _completed(self, y: Tensor, there: Tensor) -> Tensor:
        """Counts with the expectation of those missing, in each state: (..., K, V)."""
        free = (~there).to(y)[..., None, :] * self.probs
        rest = (self._trials() - y.sum(-1))[..., None, None]
        return y[..., None, :] + rest * free / free.sum(-1, keepdim=True).clamp_min(torch.finfo(y.dtype).tiny)

    def log_prior(self) -> Tensor:
        """The Dirichlet's sum of (alpha - 1) log p."""
        return log_dirichlet(self.probs, self.extra)

    @torch.no_grad()
    def statistics(self, y: Tensor, u: Tree, weights: Tensor, observed: Tensor | None) -> Tensor:
        """Expected counts, (K, V)."""
        y, there = known(y, observed, 0.0)
        if there is None:
            return weights.flatten(0, -2).T @ y.flatten(0, -2)
        weights = torch.where(there.any(-1, keepdim=True), weights, 0.0)
        return torch.einsum("nk,nkv->kv", weights.flatten(0, -2), self._completed(y, there).flatten(0, -3))

    @torch.no_grad()
    def maximize(self, stats: Tensor) -> None:
        """Closed-form M-step; a state never visited keeps its distribution."""
        stats = torch.where(self.probs > 0, stats + self.extra.to(stats), 0.0)
        total = stats.sum(-1, keepdim=True)
        self.logits.copy_(torch.where(total > 0, (stats / total.clamp_min(1e-300)).log(), self.logits))

    @torch.no_grad()
    def begin(self, y: Tensor, u: Tree, observed: Tensor | None) -> None:
        """A start for EM from the data: the M-step for states at rows far apart (k-means++), a count added to each."""
        stats = self.statistics(y, u, first_weights(y, observed, len(self.logits)), observed)
        self.maximize(stats + 1)


class NegativeBinomial(Part, FiniteEmission, Generative):
    r"""Counts that vary more than Poisson's: a Poisson whose rate is Gamma distributed.

    p(y | z = k) = product over d of C(y_d + r - 1, y_d) (1 - p)^r p^y_d with r = `total_count`_kd, p = `probs`_kd; the
    mean is r p / (1 - p), the variance mean + mean^2 / r.

    Args:
        dim: D.
        states: K; None leaves it to `ss.hmm`.
        total_count: r, (K, D), positive; with `probs`, instead of the sizes.
        probs: p, (K, D), strictly between 0 and 1.
        ceiling: the largest r the M-step gives; counts that vary no more than Poisson's would raise it for ever.

    Raises:
        StatespanError: one of total_count and probs is given without the other, or a value out of range.

    Source:
        M-step: the minorant of log(r + j) of Zhou and Lange, "MM algorithms for some discrete multivariate
        distributions", J. Comput. Graph. Stat. 2010, section 3; it never lowers the likelihood.

    Example:
        >>> NegativeBinomial(total_count=[[2.0]], probs=[[0.5]]).mean.item()
        2.0
    """

    class Stats(NamedTuple):
        """Weights, weighted counts, and weighted r (digamma(y + r) - digamma(r)); each (K, D)."""

        weight: Tensor
        counts: Tensor
        tables: Tensor

    total_count = positive("log_count", "The parameter r, (K, D).")

    def __init__(
        self,
        dim: int = 1,
        states: int | None = None,
        total_count: Any = None,
        probs: Any = None,
        ceiling: float = 1e6,
    ):
        super().__init__()
        r, p = tables("NegativeBinomial", total_count=(total_count, 0.0), probs=(probs, 0.0, 1.0))
        self.states, self.dim = (states, dim) if r is None else r.shape
        self.remember(dim=self.dim, states=self.states, total_count=None, probs=None)
        self.event, self.ceiling = Event(1, None, self.dim, COUNTS), ceiling
        if self.states is not None:
            shape = self.states, self.dim
            self.log_count = nn.Parameter(torch.randn(shape) if r is None else r.log())
            self.logits = nn.Parameter(torch.randn(shape) if p is None else p.logit())

    @property
    def probs(self) -> Tensor:
        """(K, D)."""
        return self.logits.sigmoid()

    @property
    def mean(self) -> Tensor:
        """(K, D)."""
        return (self.log_count + self.logits).exp()

    def constants(self) -> tuple[Tensor, Tensor, Tensor]:
        """r, (K, D), log p (D, K), and r log(1 - p) - log Gamma(r), (D, K)."""
        r = self.total_count
        rest = -r * nn.functional.softplus(self.logits) - torch.lgamma(r)
        return r, nn.functional.logsigmoid(self.logits).T, rest.T

    def log_likelihood(
        self, y: Float[Tensor, "T B D"], u: Tree, observed: Tensor | None, constants: tuple[Tensor, Tensor, Tensor]
    ) -> Float[Tensor, "T B K"]:
        """Log-densities, over the coordinates that are there."""
        r, log_p, rest = constants
        y, there = known(y, observed, 0.0)
        rising = torch.lgamma(y[..., None, :] + r)
        base = torch.lgamma(y + 1)
        if there is None:
            return y @ log_p + rest.sum(0) + rising.sum(-1) - base.sum(-1, keepdim=True)
        mask = there.to(y)
        rising = (rising * mask[..., None, :]).sum(-1)
        return y @ log_p + mask @ rest + rising - (base * mask).sum(-1, keepdim=True)

    def forward(self, z: Tensor, u: Tree = None) -> Distribution:
        """The distribution of y given states z."""
        each = NegativeBinomialDistribution(self.total_count[z], logits=self.logits[z], validate_args=False)
        return Independent(each, 1, validate_args=False)

    def fill(self, y: Tensor, u: Tree, observed: Tensor | None, weights: Tensor) -> Tensor:
        """The mean."""
        return weights @ self.mean

    @torch.no_grad()
    def statistics(self, y: Tensor, u: Tree, weights: Tensor, observed: Tensor | None) -> "NegativeBinomial.Stats":
        """Expected sums over what is there."""
        y, there = known(y, observed, 0.0)
        w, rows = weights.flatten(0, -2), y.flatten(0, -2)
        mask = torch.ones_like(rows) if there is None else there.flatten(0, -2).to(rows)
        r = self.total_count
        tables = r * (torch.digamma(rows[:, None] + r) - torch.digamma(r))
        return self.Stats(w.T @ mask, w.T @ (rows * mask), torch.einsum("nk,nkd,nd->kd", w, tables, mask))

    @torch.no_grad()
    def maximize(self, stats: "NegativeBinomial.Stats") -> None:
        """The largest minorant: p = Y / (Y + r W) with Y the counts and W the weights, and r the root of its slope."""
        seen = (stats.weight > 0) & (stats.counts > 0)
        mean = torch.where(seen, stats.counts / torch.where(seen, stats.weight, 1.0), 1.0).double()
        share = torch.where(seen, stats.tables / torch.where(seen, stats.counts, 1.0), 0.5).double()
        if self.log_count.requires_grad:
            # The slope is zero where x log(1 + 1 / x) = share with x = r / mean.
            r = mean * root(lambda x: x * torch.log1p(1 / x) - share, 1e-12, 1e12, share)
            r = r.clamp(1e-6, self.ceiling).to(self.log_count)
            self.log_count.copy_(torch.where(seen, r.log(), self.log_count))
        nothing = (stats.weight > 0) & (stats.counts == 0)
        logits = torch.where(seen, mean.to(self.logits).log() - self.log_count, self.logits)
        self.logits.copy_(torch.where(nothing, logits.new_tensor(-23.0), logits))

    @torch.no_grad()
    def begin(self, y: Tensor, u: Tree, observed: Tensor | None) -> None:
        """A start for EM from the data: moments of states at rows far apart (k-means++)."""
        weights = first_weights(y, observed, len(self.mean)).flatten(0, -2)
        y, there = known(y, observed, 0.0)
        rows = y.flatten(0, -2)
        mask = torch.ones_like(rows) if there is None else there.flatten(0, -2).to(rows)
        total = (weights.T @ mask).clamp_min(1e-12)
        mean = (weights.T @ (rows * mask) / total).clamp_min(1e-3)
        variance = weights.T @ (rows.square() * mask) / total - mean.square()
        r = (mean.square() / (variance - mean).clamp_min(1e-3)).clamp(0.1, 100.0)
        self.log_count.copy_(r.log())
        self.logits.copy_((mean / r).log())
