"""How long a state lasts: laws of durations, and the semi-Markov chain that obeys them."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from statespan.errors import StatespanError
from statespan.part import FiniteTransition, Part, expected_log, stationary
from statespan.parts.climb import climb
from statespan.parts.finite import Dense
from statespan.parts.priors import dirichlet, log_dirichlet
from statespan.shapes import Float
from statespan.tree import Shared, Tree


class Hazard(NamedTuple):
    """Of a state that has lasted d steps the probability that it ends now, and that it goes on, both (D, K)."""

    leave: Tensor
    stay: Tensor


class DurationLaw(ABC):
    """p(d | k), d = 1..D steps in state k: only `log_weights` is to be written; it is normalised over 1..D."""

    states: Any
    longest: int

    @abstractmethod
    def log_weights(self) -> Tensor:
        """Log p(d | k) up to a constant a state, (K, D)."""

    def probs(self) -> Tensor:
        """p(d | k), (K, D)."""
        return self.log_weights().softmax(-1)

    def survival(self) -> Tensor:
        """p(duration >= d | k), (K, D)."""
        return self.probs().flip(-1).cumsum(-1).flip(-1)

    def hazard(self) -> Hazard:
        """p(d) / p(>= d) and p(> d) / p(>= d), by logarithms, so that tails keep their precision."""
        log = self.log_weights().log_softmax(-1)
        possible = log > -torch.inf
        bounded = log.clamp_min(-600 if log.dtype == torch.float64 else -80)
        rest = bounded.flip(-1).logcumsumexp(-1).flip(-1)
        later = nn.functional.pad(possible.flip(-1).cumsum(-1).flip(-1)[:, 1:] > 0, (0, 1), value=False)
        leave = torch.where(later, torch.where(possible, (bounded - rest).exp(), 0.0), 1.0)
        stay = nn.functional.pad((rest[:, 1:] - rest[:, :-1]).exp(), (0, 1))
        return Hazard(leave.T, torch.where(later, stay, 0.0).T)

    def expected_log(self, ended: Tensor, passed: Tensor) -> Tensor:
        """Expected log-likelihood of segments (D, K) that ended after d steps, and of those that went on."""
        leave, stay = self.hazard()
        return expected_log(ended, leave) + expected_log(passed, stay)


@torch.no_grad()
def climb_law(law: Any, ended: Tensor, passed: Tensor) -> None:
    """The M-step of a law without a closed form: numerical, and never down."""
    climb(law.parameters(), lambda: law.expected_log(ended, passed) + law.log_prior())


class FreeDurations(Part, DurationLaw):
    """Any law on 1..D, a table: p(d | k) = softmax(logits_k)_d.

    Args:
        states: K; None leaves it to `ss.semi_markov`.
        longest: D.
        concentration: alpha of a Dirichlet prior on each state's table, one number, (D,) or (K, D), 1 or more.

    Source:
        Ferguson 1980; Rabiner 1989, section IV.D.

    Example:
        >>> FreeDurations(2, longest=4).probs().shape
        torch.Size([2, 4])
    """

    def __init__(self, states: int | None = None, longest: int = 20, concentration: Any = 1.0):
        super().__init__()
        self.states, self.longest = states, longest
        self.extra = dirichlet(concentration, (states, longest), "FreeDurations(concentration=)") - 1
        if states is not None:
            self.logits = nn.Parameter(torch.randn(states, longest) * 0.1)

    def log_weights(self) -> Tensor:
        """The logits."""
        return self.logits

    def log_prior(self) -> Tensor:
        """The Dirichlet's sum of (alpha - 1) log p."""
        return log_dirichlet(self.probs(), self.extra)

    @torch.no_grad()
    def set_probs(self, probs: Tensor) -> None:
        """Make `probs` (K, D) the law."""
        self.logits.copy_(probs.log())

    @torch.no_grad()
    def maximize(self, ended: Tensor, passed: Tensor) -> None:
        """Closed form: of those that lasted d steps, the share that ended; where none did, what it was."""
        extra = self.extra.to(ended).expand(self.states, self.longest).T
        beyond = extra.flip(0).cumsum(0).flip(0) - extra
        ended, passed = ended + extra, passed + beyond
        old, total = self.hazard(), ended + passed
        some = total > 0
        leave = torch.where(some, ended / total.clamp_min(1e-300), old.leave)
        stay = torch.where(some, passed / total.clamp_min(1e-300), old.stay)
        leave[-1] = 1.0
        reached = nn.functional.pad(stay[:-1].cumprod(0), (0, 0, 1, 0), value=1.0)
        self.set_probs((reached * leave).T)


class PoissonDurations(Part, DurationLaw):
    r"""d - 1 is Poisson with a rate a state, cut at D: p(d | k) proportional to rate_k^(d-1) / (d-1)!.

    Args:
        states: K; None leaves it to `ss.semi_markov`.
        longest: D.

    Source:
        Russell and Moore 1985.

    Example:
        >>> PoissonDurations(2, longest=4).probs().shape
        torch.Size([2, 4])
    """

    def __init__(self, states: int | None = None, longest: int = 20):
        super().__init__()
        self.states, self.longest = states, longest
        if states is not None:
            self.log_rate = nn.Parameter(_spread(states, longest))

    def log_weights(self) -> Tensor:
        """(d - 1) log rate - log (d - 1)!."""
        n = _past(self)
        return n * self.log_rate[:, None] - torch.lgamma(n + 1)

    def maximize(self, ended: Tensor, passed: Tensor) -> None:
        """Numerical, and never down."""
        climb_law(self, ended, passed)


class NegativeBinomialDurations(Part, DurationLaw):
    r"""d - 1 is negative binomial, cut at D: p(d | k) proportional to Gamma(d - 1 + r) / (d - 1)! q^(d-1).

    Args:
        states: K; None leaves it to `ss.semi_markov`.
        longest: D.

    Source:
        Durbin, Eddy, Krogh and Mitchison, Biological Sequence Analysis 1998, section 3.4; Bulla and Bulla 2006.

    Example:
        >>> NegativeBinomialDurations(2, longest=4).probs().shape
        torch.Size([2, 4])
    """

    def __init__(self, states: int | None = None, longest: int = 20):
        super().__init__()
        self.states, self.longest = states, longest
        if states is not None:
            mean = _spread(states, longest).exp()
            self.log_size = nn.Parameter(torch.full((states,), 0.7))
            self.logit = nn.Parameter((mean / 2).log())

    def log_weights(self) -> Tensor:
        """Log Gamma(d - 1 + r) - log Gamma(r) - log (d - 1)! + (d - 1) log q."""
        n, size = _past(self), self.log_size.exp()[:, None]
        log_q = nn.functional.logsigmoid(self.logit)[:, None]
        return torch.lgamma(n + size) - torch.lgamma(size) - torch.lgamma(n + 1) + n * log_q

    def maximize(self, ended: Tensor, passed: Tensor) -> None:
        """Numerical, and never down."""
        climb_law(self, ended, passed)


class GeometricDurations(Part, DurationLaw):
    r"""An ordinary chain's law, cut at D: p(d | k) proportional to q_k^(d-1).

    Args:
        states: K; None leaves it to `ss.semi_markov`.
        longest: D.

    Source:
        Rabiner 1989, equation 5.

    Example:
        >>> GeometricDurations(2, longest=4).probs().shape
        torch.Size([2, 4])
    """

    def __init__(self, states: int | None = None, longest: int = 20):
        super().__init__()
        self.states, self.longest = states, longest
        if states is not None:
            self.logit = nn.Parameter(_spread(states, longest))

    def log_weights(self) -> Tensor:
        """(d - 1) log q."""
        return _past(self) * nn.functional.logsigmoid(self.logit)[:, None]

    def maximize(self, ended: Tensor, passed: Tensor) -> None:
        """Numerical, and never down."""
        climb_law(self, ended, passed)


def _past(law: Any) -> Tensor:
    """0..D-1, like the law's parameters."""
    like = next(law.parameters())
    return torch.arange(law.longest, dtype=like.dtype, device=like.device)


def _spread(states: int, longest: int) -> Tensor:
    """Logarithms of mean durations between one step and half the longest, at random."""
    return torch.rand(states) * torch.log(torch.tensor(max(longest / 2, 2.0)))


class SemiMarkov(Part, FiniteTransition):
    r"""States that last: a state is entered, lasts d steps with probability p(d | k), and then another one is.

    An internal state is (how long it has lasted, which): with a hazard h_k(d) = p(d) / p(>= d) it ends, else it lasts
    one step more. So a step costs K D + K^2, linear in the longest duration, and a path of states is one path of these:
    filtering, smoothing, Viterbi and EM are exact. A segment still going on at the end counts by p(>= d).

    Args:
        states: K; None leaves it to `ss.semi_markov`.
        durations: the law of durations, which knows the longest one.
        jumps: where to, once a state ends; None is a free matrix that never stays.

    Raises:
        StatespanError: fewer than two states.

    Source:
        Rabiner 1989, section IV.D; Guedon, "Estimating hidden semi-Markov chains from discrete sequences", 2003 (right
        censoring); the hazard: Langrock and Zucchini, "Hidden Markov models with arbitrary state dwell-time
        distributions", 2011.

    Example:
        >>> SemiMarkov(3, FreeDurations(longest=5)).states
        15
    """

    fed = False
    durations: Any
    jumps: Any

    def __init__(self, states: int | None = None, durations: Any = None, jumps: Any = None):
        super().__init__()
        law = FreeDurations() if durations is None else durations
        self.count = states
        if states is None:
            self.durations, self.jumps, self.states = law, jumps, None
            return
        if states < 2:
            raise StatespanError(f"SemiMarkov(states={states}): use at least two, so that a state can be followed")
        self.durations = law.sized(states)
        if jumps is None:
            elsewhere = torch.full((states, states), torch.nan).fill_diagonal_(0.0)
            jumps = Dense(states, fixed=elsewhere)
        self.jumps = jumps.sized(states)
        for name, part in (("durations", self.durations), ("jumps", self.jumps)):
            if part.states != states:
                raise StatespanError(f"SemiMarkov: {name} have {part.states} states where {states} are expected")
        self.longest = self.durations.longest
        self.states: Any = states * self.longest

    @property
    def owners(self) -> Tensor | None:
        """Which state lasts, (S,)."""
        if self.count is None:
            return None
        return torch.arange(self.states, device=next(self.parameters()).device) % self.count

    def constants(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where to (K, K); the hazards of ending and of going on, (D, K)."""
        return self.jumps.probs, *self.durations.hazard()

    def tables(self, u: Tree, constants: tuple[Tensor, Tensor, Tensor]) -> Shared:
        """The same at every step."""
        return Shared(constants)

    def push(self, probs: Float[Tensor, "B S"], tables: tuple, fed: Tree = None) -> Float[Tensor, "B S"]:
        """P A: what ends enters another state, what does not grows older."""
        jumps, leave, stay = tables
        old = probs.unflatten(-1, leave.shape)
        entered = (old * leave).sum(1) @ jumps
        return torch.cat([entered, (old[:, :-1] * stay[:-1]).flatten(1)], 1)

    def pull(self, values: Float[Tensor, "B S"], tables: tuple, fed: Tree = None) -> Float[Tensor, "B S"]:
        """A f."""
        jumps, leave, stay = tables
        new = values.unflatten(-1, leave.shape)
        older = nn.functional.pad(new[:, 1:] * stay[:-1], (0, 0, 0, 1))
        return (older + leave * (new[:, 0] @ jumps.mT)[:, None]).flatten(1)

    def dense(self, tables: tuple, fed: Tree = None) -> Float[Tensor, "S S"]:
        """A itself, (K D, K D): only for those who ask."""
        return self.push(torch.eye(self.states, dtype=tables[0].dtype, device=tables[0].device), tables)

    def best(self, score: Tensor, tables: tuple, fed: Tree = None) -> tuple[Tensor, Tensor]:
        """The k best ways into each state: on in the same one, or from the best ends of each into the first step."""
        jumps, leave, stay = (x.to(score).log() for x in tables)
        batch, k = len(score), score.shape[-1]
        old = score.unflatten(1, leave.shape)  # (B, D, K, k)
        origin = torch.arange(self.states * k, device=score.device).view(*leave.shape, k)
        older, where = old[:, :-1] + stay[:-1, :, None], origin[:-1].expand(batch, -1, -1, -1)
        ends = (old + leave[..., None]).permute(0, 2, 1, 3).flatten(2)  # (B, K, D k)
        ends, at = ends.sort(dim=-1, descending=True, stable=True)
        source = origin.permute(1, 0, 2).flatten(1).expand(batch, -1, -1).gather(-1, at)[..., :k]
        ways = (ends[..., :k, None] + jumps[:, None]).flatten(1, 2)  # (B, K k, K)
        ways, at = ways.sort(dim=1, descending=True, stable=True)
        entered, origins = ways[:, :k].mT, source.flatten(1)[:, :, None].expand_as(at).gather(1, at)[:, :k].mT
        return torch.cat([entered, older.flatten(1, 2)], 1), torch.cat([origins, where.flatten(1, 2)], 1)

    def stationary(self) -> Tensor:
        """That of a chain that has always run: proportional to nu_k p(duration >= d | k), nu that of the jumps."""
        weight = stationary(self.jumps.probs)[:, None] * self.durations.survival()
        return (weight / weight.sum()).T.flatten()

    def log_prior(self) -> Any:
        """That of the jumps and of the law."""
        return self.jumps.log_prior() + self.durations.log_prior()

    def statistics(self, counts: Shared, u: Tree) -> tuple[Tensor, Tensor, Tensor]:
        """Expected jumps (K, K), and segments that ended after d steps and that went on, (D, K)."""
        return counts.value

    def expected_log(self, stats: tuple) -> Tensor:
        """Expected log-likelihood of jumps and durations."""
        return self.jumps.expected_log(stats[0]) + self.durations.expected_log(*stats[1:])

    def maximize(self, stats: tuple) -> None:
        """The M-step of the jumps, and that of the law."""
        self.jumps.maximize(stats[0])
        self.durations.maximize(*stats[1:])


def ages(model: Any, y: Any, lengths: Any = None, inputs: Any = None) -> Any:
    """How long the state has lasted: p(z_t = k, it began d steps ago | y) of a semi-Markov model, (N, T, K, D).

    `ages[t, k, d] - ages[t + 1, k, d + 1]` is the probability that a segment of state k ended at t after exactly d
    steps; `ages[-1]` is how long the one still going on has lasted.

    Args:
        model: a state space whose transition is `SemiMarkov`.
        y: the sequences, as the model's verbs take them.
        lengths: (N,) lengths of a padded batch.
        inputs: inputs, the forms of y.

    Raises:
        StatespanError: another transition.

    Source:
        Guedon 2003, section 3.

    Example:
        >>> import statespan as ss
        >>> model = ss.semi_markov(states=2, longest=4, emission=ss.Categorical(3), seed=0)
        >>> ss.ages(model, [0, 1, 1]).shape
        torch.Size([3, 2, 4])
    """
    from statespan import verbs
    from statespan.method import in_hindsight
    from statespan.methods import Forward, check

    transition = model.transition
    if not isinstance(transition, SemiMarkov):
        raise StatespanError(f"ages: {type(transition).__name__} does not keep how long a state has lasted")
    data, layout = verbs.ask(model, y, lengths, inputs)
    method = check(Forward(), model)
    with torch.no_grad():
        probs = in_hindsight(model, method, data).probs
    return layout.steps(probs.unflatten(-1, (transition.longest, -1)).mT)
