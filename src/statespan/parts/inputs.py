"""Starts and moves that depend on inputs: softmax regression, tables chosen by an index, gaps in time."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Categorical as CategoricalDistribution

from statespan.errors import StatespanError
from statespan.part import FiniteInitial, FiniteTransition, Generative, Part, expected_log, not_movable, stationary
from statespan.parts.linear import inputs_of
from statespan.parts.priors import dirichlet, log_dirichlet
from statespan.parts.rows import alike, rearranged, shares
from statespan.shapes import Float
from statespan.tree import Shared, Tree


def column_of(u: Tree, column: int, part: nn.Module) -> Tensor:
    """One column of the inputs (..., U), if it is there: (...)."""
    if not isinstance(u, Tensor) or u.shape[-1] <= column:
        got = "none were given" if u is None else f"{u.shape[-1]} were given"
        raise StatespanError(
            f"{type(part).__name__} takes an input in column {column} and {got}; "
            "give inputs= with y, and future= with a forecast"
        )
    return u[..., column]


def gaps_of(u: Tree, column: int, part: nn.Module) -> Tensor:
    """The gap in time before each step, a column of the inputs: (...)."""
    gaps = column_of(u, column, part)
    if bool((gaps < 0).any()):
        raise StatespanError(f"{type(part).__name__}: a gap is {float(gaps.min()):g}; time must not run backwards")
    return gaps


class Bound(NamedTuple):
    """Expected sums for a softmax regression: the slope (..., K, 1 + U), and sums of n x x' (..., 1 + U, 1 + U)."""

    slope: Tensor
    second: Tensor


def with_one(u: Tensor) -> Tensor:
    """Inputs (..., U) behind a one."""
    return torch.cat([torch.ones_like(u[..., :1]), u], -1)


def rise(weight: Tensor, stats: Bound, precision: float) -> Tensor:
    """One step up: the maximiser of the quadratic that lies below the log-likelihood everywhere and touches it here.

    The Hessian of a softmax regression is never below -1/2 (I - 1 1'/K) times the sum of n x x', so a step with that
    in its place cannot overshoot.
    """
    states = weight.shape[-2]
    eye = torch.eye(states, dtype=weight.dtype, device=weight.device)
    centred = eye - 1 / states
    # Along the columns' common shift nothing changes but the prior, which draws it to zero: any curvature serves there.
    values, vectors = torch.linalg.eigh(0.5 * centred)
    values = torch.where(values > 0.25, values, 0.0)
    slope = stats.slope.clone()
    ridge = torch.full((weight.shape[-1],), precision, dtype=weight.dtype, device=weight.device)
    ridge[0] = 0  # the intercept is free
    slope = vectors.mT @ (slope - ridge * weight)
    curved = stats.second[..., None, :, :] * values[:, None, None] + torch.diag_embed(ridge)
    step = (torch.linalg.pinv(curved, hermitian=True) @ slope[..., None])[..., 0]
    return weight + vectors @ step


class SoftmaxStart(Part, FiniteInitial, Generative):
    r"""The first state by softmax regression: p(z_1 = k | u_1) = softmax(b + W u_1)_k.

    Args:
        states: K; None leaves it to `ss.hmm`.
        inputs: U.
        precision: of a normal prior on the coefficients W, 0 for none; b has no prior.

    Source:
        Bengio and Frasconi, "Input-output HMMs for sequence processing", 1996; the M-step: Boehning, "Multinomial
        logistic regression algorithm", 1992.

    Example:
        >>> SoftmaxStart(3, inputs=2).weight.shape
        torch.Size([3, 3])
    """

    def __init__(self, states: int | None = None, inputs: int = 1, precision: float = 0.0):
        super().__init__()
        self.states: Any = states
        self.inputs, self.precision = inputs, precision
        if states is not None:
            self.weight = nn.Parameter(torch.zeros(states, 1 + inputs))

    def probs(self) -> Tensor:
        """At inputs of zero, (K,)."""
        return self.weight[:, 0].softmax(-1)

    @property
    def log_odds(self) -> Tensor:
        """Of each state against the first, log p_k / p_1 = (b, W)_k (1, u), (K - 1, 1 + U): all that can be known."""
        return self.weight[1:] - self.weight[:1]

    def at(self, u: Tensor) -> Tensor:
        """p(z_1 | u), (..., U) to (..., K)."""
        return (with_one(inputs_of(u, self.inputs, self)) @ self.weight.mT).softmax(-1)

    def given(self, u: Tree, probs: Tensor) -> Shared:
        """Under the first step's inputs, (B, K)."""
        return Shared(self.at(inputs_of(u, self.inputs, self)[0]))

    def forward(self, shape: tuple[int, ...], u: Tree = None) -> CategoricalDistribution:
        """The distribution of z_1 for a batch of `shape`, given inputs (*shape, U)."""
        return CategoricalDistribution(probs=self.at(u).expand(*shape, -1), validate_args=False)

    def log_prior(self) -> Tensor:
        """The normal prior's log-density, up to a constant."""
        return -0.5 * self.precision * self.weight[:, 1:].square().sum()

    @torch.no_grad()
    def statistics(self, counts: Tensor, u: Tree) -> Bound:
        """What the M-step's bound needs, from expected first states (B, K)."""
        x = with_one(u[0])
        many = counts.sum(-1, keepdim=True)
        return Bound((counts - many * self.at(u[0])).mT @ x, x.mT @ (many * x))

    @torch.no_grad()
    def maximize(self, stats: Bound) -> None:
        """One step of a lower bound of the expected log-likelihood: it never falls."""
        self.weight.copy_(rise(self.weight, stats, self.precision))

    @torch.no_grad()
    def permute(self, order: Tensor) -> None:
        """State k becomes what `order[k]` was."""
        self.weight.copy_(self.weight[order])


class SoftmaxTransition(Part, FiniteTransition, Generative):
    r"""Moves by softmax regression: p(z_t = j | z_{t-1} = i, u_t) = softmax over j of (b_i + W_i u_t)_j.

    Args:
        states: K; None leaves it to `ss.hmm`.
        inputs: U.
        precision: of a normal prior on the coefficients W, 0 for none; b has no prior.

    Source:
        Bengio and Frasconi 1996; Visser and Speekenbrink, "depmixS4", 2010; the M-step: Boehning 1992.

    Example:
        >>> SoftmaxTransition(3, inputs=2).weight.shape
        torch.Size([3, 3, 3])
    """

    fed = False

    def __init__(self, states: int | None = None, inputs: int = 1, precision: float = 0.0):
        super().__init__()
        self.states: Any = states
        self.inputs, self.precision = inputs, precision
        if states is not None:
            start = torch.zeros(states, states, 1 + inputs)
            start[..., 0] = torch.randn(states, states)
            self.weight = nn.Parameter(start)

    @property
    def log_odds(self) -> Tensor:
        """Of a move against staying, log A_ij / A_ii = (b, W)_ij (1, u), (K, K, 1 + U): all that can be known."""
        stays = self.weight.diagonal().mT  # (K, 1 + U)
        return self.weight - stays[:, None]

    def at(self, u: Tensor) -> Tensor:
        """The table under inputs, (..., U) to (..., K, K)."""
        x = with_one(inputs_of(u, self.inputs, self))
        return (x @ self.weight.flatten(0, 1).mT).unflatten(-1, (self.states, self.states)).softmax(-1)

    def constants(self) -> None:
        """None: the tables depend on the inputs."""

    def tables(self, u: Tree, constants: Tree) -> Tensor:
        """(T, B, K, K)."""
        return self.at(inputs_of(u, self.inputs, self))

    def forward(self, z: Tensor, u: Tree = None) -> CategoricalDistribution:
        """The distribution of z_t given z_{t-1} = z and inputs."""
        table = self.at(inputs_of(u, self.inputs, self))
        index = z.reshape(*z.shape, *[1] * (table.dim() - z.dim())).expand(*z.shape, *table.shape[z.dim() :])
        return CategoricalDistribution(probs=table.gather(-2, index[..., :1, :])[..., 0, :], validate_args=False)

    def push(self, probs: Float[Tensor, "B K"], tables: Tensor, fed: Tree = None) -> Float[Tensor, "B K"]:
        """P A_t."""
        return (probs[:, None] @ tables)[:, 0]

    def pull(self, values: Float[Tensor, "B K"], tables: Tensor, fed: Tree = None) -> Float[Tensor, "B K"]:
        """A_t f."""
        return (tables @ values[..., None])[..., 0]

    def dense(self, tables: Tensor, fed: Tree = None) -> Tensor:
        """A_t, (B, K, K)."""
        return tables

    def log_prior(self) -> Tensor:
        """The normal prior's log-density, up to a constant."""
        return -0.5 * self.precision * self.weight[..., 1:].square().sum()

    @torch.no_grad()
    def statistics(self, counts: Tensor, u: Tree) -> Bound:
        """What the M-step's bound needs, from expected moves (T, B, K, K)."""
        x = with_one(u).flatten(0, 1)
        counts = counts.flatten(0, 1)
        many = counts.sum(-1)
        rest = counts - many[..., None] * self.at(u).flatten(0, 1)
        return Bound(torch.einsum("nij,nu->iju", rest, x), torch.einsum("ni,nu,nv->iuv", many, x, x))

    @torch.no_grad()
    def maximize(self, stats: Bound) -> None:
        """One step of a lower bound of the expected log-likelihood: it never falls."""
        self.weight.copy_(rise(self.weight, stats, self.precision))

    @torch.no_grad()
    def permute(self, order: Tensor) -> None:
        """State k becomes what `order[k]` was."""
        self.weight.copy_(self.weight[order][:, order])


class Chosen(NamedTuple):
    """Tables, the same at every step, and which of them acts at each, (T, B)."""

    every: Tree
    which: Tensor


class Regimes(Part, FiniteTransition, Generative):
    r"""Several tables, one of which acts at each step: p(z_t = j | z_{t-1} = i, u_t = r) = A_r[i, j].

    An input says which: the season, day or night, the step itself. So tables that are known for every step are
    `Regimes` with one a step, set by `set_probs` and held (`requires_grad_(False)`).

    Args:
        states: K; None leaves it to `ss.hmm`.
        regimes: R; the input is an integer 0..R-1.
        column: of the inputs, which one that is.
        concentration: alpha of a Dirichlet prior on each row, one number, (K, K) or (R, K, K), 1 or more.

    Source:
        Hughes, Guttorp and Charles, "A non-homogeneous hidden Markov model", 1999, with a factor as covariate.

    Example:
        >>> Regimes(3, regimes=2).probs.shape
        torch.Size([2, 3, 3])
    """

    fed = False

    def __init__(self, states: int | None = None, regimes: int = 1, column: int = 0, concentration: Any = 1.0):
        super().__init__()
        self.states: Any = states
        self.regimes, self.column = regimes, column
        self.extra = dirichlet(concentration, (regimes, states, states), "Regimes(concentration=)") - 1
        if states is not None:
            self.logits = nn.Parameter(torch.randn(regimes, states, states))

    @property
    def probs(self) -> Tensor:
        """(R, K, K)."""
        return self.logits.softmax(-1)

    @property
    def takes_inputs(self) -> bool:
        """Always."""
        return True

    def which(self, u: Tree) -> Tensor:
        """The regime of each step, (...) integers.

        Raises:
            StatespanError: an input that is no regime.
        """
        index = column_of(u, self.column, self)
        wrong = (index != index.round()) | (index < 0) | (index >= self.regimes)
        if bool(wrong.any()):
            raise StatespanError(
                f"Regimes: an input is {float(index[wrong][0]):g}; column {self.column} says which table acts, "
                f"an integer in 0..{self.regimes - 1}"
            )
        return index.long()

    def constants(self) -> Tensor:
        """(R, K, K)."""
        return self.probs

    def tables(self, u: Tree, constants: Tensor) -> Chosen:
        """All tables, and which acts when."""
        return Chosen(Shared(constants), self.which(u))

    def forward(self, z: Tensor, u: Tree = None) -> CategoricalDistribution:
        """The distribution of z_t given z_{t-1} = z and inputs."""
        index = self.which(u)
        index = index.reshape(*index.shape, *[1] * (z.dim() - index.dim()))
        return CategoricalDistribution(probs=self.probs[index, z], validate_args=False)

    def push(self, probs: Float[Tensor, "B K"], tables: Chosen, fed: Tree = None) -> Float[Tensor, "B K"]:
        """P A_t."""
        return (probs[:, None] @ self.dense(tables))[:, 0]

    def pull(self, values: Float[Tensor, "B K"], tables: Chosen, fed: Tree = None) -> Float[Tensor, "B K"]:
        """A_t f."""
        return (self.dense(tables) @ values[..., None])[..., 0]

    def dense(self, tables: Chosen, fed: Tree = None) -> Tensor:
        """A_t, (B, K, K)."""
        return tables.every[tables.which]

    def log_prior(self) -> Tensor:
        """The Dirichlet's sum of (alpha - 1) log A."""
        return log_dirichlet(self.probs, self.extra)

    def statistics(self, counts: Chosen, u: Tree) -> Tensor:
        """Expected moves by each table, (R, K, K)."""
        return counts.every.value

    def expected_log(self, stats: Tensor) -> Tensor:
        """Sum of expected counts times log A."""
        return expected_log(stats, self.probs)

    @torch.no_grad()
    def set_probs(self, probs: Tensor) -> None:
        """Make `probs` (R, K, K) the tables."""
        self.logits.copy_(probs.log())

    @torch.no_grad()
    def maximize(self, counts: Tensor) -> None:
        """Closed-form M-step; a state never left keeps its row, a zero stays."""
        self.set_probs(shares(counts + self.extra.to(counts), self.probs, None))

    @torch.no_grad()
    def permute(self, order: Tensor) -> None:
        """State k becomes what `order[k]` was, where no prior tells them apart."""
        if not alike((self.extra,), lambda x: rearranged(x, order), tuple(self.logits.shape)):
            raise not_movable(self)
        self.logits.copy_(rearranged(self.logits, order))


class Generator(Part, FiniteTransition, Generative):
    r"""A chain in continuous time seen at irregular times: A_t = expm(Q dt_t), dt_t the time since the last step.

    Q[i, j] is the rate of jumps from i to j and each row of Q sums to zero. Every different gap is exponentiated once.
    The gaps are an input; that of a sequence's first step is not used.

    Args:
        states: K; None leaves it to `ss.hmm`.
        column: of the inputs, which one is the gap, in any unit; rates are per that unit.
        shape: of a gamma prior on each rate, 1 or more: shape - 1 is added to the expected jumps.
        rate: of that prior, 0 for none: added to the expected time spent.

    Raises:
        StatespanError: a negative gap, or none given.

    Source:
        Liu, Li, Li, Song and Rehg, "Efficient learning of continuous-time hidden Markov models", 2015; expected jumps
        and times as a gradient of the exponential: Hobolth and Jensen 2011, theorem 1.

    Example:
        >>> Generator(3).rates.sum(-1).abs().max() < 1e-6
        tensor(True)
    """

    fed = False

    def __init__(self, states: int | None = None, column: int = 0, shape: float = 1.0, rate: float = 0.0):
        super().__init__()
        if shape < 1 or rate < 0:
            raise StatespanError(
                f"Generator(shape={shape}, rate={rate}): use a shape of 1 or more, a rate of 0 or more"
            )
        self.states: Any = states
        self.column, self.shape, self.rate = column, shape, rate
        if states is not None:
            self.log_rates = nn.Parameter(torch.randn(states, states) - 1)

    @property
    def rates(self) -> Tensor:
        """Q, (K, K): rates of jumps off the diagonal, rows sum to zero."""
        off = self._off()
        return off - torch.diag_embed(off.sum(-1))

    def _off(self) -> Tensor:
        eye = torch.eye(self.states, dtype=torch.bool, device=self.log_rates.device)
        return self.log_rates.exp().masked_fill(eye, 0.0)

    @property
    def takes_inputs(self) -> bool:
        """Always."""
        return True

    def constants(self) -> Tensor:
        """Q."""
        return self.rates

    def tables(self, u: Tree, constants: Tensor) -> Chosen:
        """The exponential over each different gap, and which acts when."""
        gaps, index = torch.unique(gaps_of(u, self.column, self), return_inverse=True)
        return Chosen(Shared(torch.linalg.matrix_exp(constants * gaps[:, None, None])), index)

    def forward(self, z: Tensor, u: Tree = None) -> CategoricalDistribution:
        """The distribution of z_t given z_{t-1} = z and inputs."""
        every, index = self.tables(u, self.rates)
        index = index.reshape(*index.shape, *[1] * (z.dim() - index.dim()))
        return CategoricalDistribution(probs=every.value[index, z].clamp_min(0), validate_args=False)

    def push(self, probs: Float[Tensor, "B K"], tables: Chosen, fed: Tree = None) -> Float[Tensor, "B K"]:
        """P A_t."""
        return (probs[:, None] @ self.dense(tables))[:, 0]

    def pull(self, values: Float[Tensor, "B K"], tables: Chosen, fed: Tree = None) -> Float[Tensor, "B K"]:
        """A_t f."""
        return (self.dense(tables) @ values[..., None])[..., 0]

    def dense(self, tables: Chosen, fed: Tree = None) -> Tensor:
        """A_t, (B, K, K)."""
        return tables.every[tables.which]

    def stationary(self) -> Tensor:
        """The distribution with pi Q = 0, (K,)."""
        rates = self.rates
        unit = 0.5 / (-rates.diagonal()).amax().clamp_min(1e-300)
        return stationary(torch.eye(self.states, dtype=rates.dtype, device=rates.device) + rates * unit)

    @torch.no_grad()
    def statistics(self, counts: Chosen, u: Tree) -> Tensor:
        """Expected jumps (off the diagonal) and times spent (on it), (K, K).

        With L the log-likelihood, Q_ij dL/dQ_ij is the expected number of jumps and dL/dQ_ii the expected time.
        """
        gaps = torch.unique(gaps_of(u, self.column, self))
        with torch.enable_grad():
            rates = self.rates.detach().requires_grad_()
            tables = torch.linalg.matrix_exp(rates * gaps[:, None, None])
            slope = torch.where(counts.every.value > 0, counts.every.value / tables.detach().clamp_min(1e-300), 0.0)
            (gradient,) = torch.autograd.grad((slope * tables).sum(), rates)
        off = self._off()
        return off * gradient + torch.diag_embed(gradient.diagonal())

    def log_prior(self) -> Tensor:
        """The gamma prior's log-density of the rates, up to a constant."""
        off = self._off()
        logs = torch.where(off > 0, off, 1.0).log()
        return (self.shape - 1) * logs.sum() - self.rate * off.sum()

    def expected_log(self, stats: Tensor) -> Tensor:
        """Expected log-likelihood of all jumps and waits."""
        off = self._off()
        return expected_log(stats - torch.diag_embed(stats.diagonal()), off) - (stats.diagonal() * off.sum(-1)).sum()

    @torch.no_grad()
    def set_rates(self, rates: Tensor) -> None:
        """Make `rates` (K, K) those of Q; the diagonal follows from the rest."""
        self.log_rates.copy_(rates.clone().fill_diagonal_(1.0).log())

    @torch.no_grad()
    def maximize(self, stats: Tensor) -> None:
        """Closed form: jumps over time spent; a state never visited keeps its rates, a rate of zero stays."""
        off = self._off()
        time = stats.diagonal()[:, None] + self.rate
        jumps = torch.where(off > 0, stats + self.shape - 1, 0.0)
        # A rate whose jumps are not expected any more goes to zero only in the limit: zero would be structure.
        new = (jumps / time.clamp_min(1e-300)).clamp_min(1e-12)
        self.set_rates(torch.where((time > 0) & (off > 0), new, off))

    @torch.no_grad()
    def permute(self, order: Tensor) -> None:
        """State k becomes what `order[k]` was."""
        self.log_rates.copy_(rearranged(self.log_rates, order))
