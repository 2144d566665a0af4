"""Filtering and smoothing for finite states in logarithms: for the rare sequence that scaled probabilities lose."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from statespan.belief import Discrete, choose, with_fed
from statespan.method import Hindsight, Method, Prepared, Step, scan
from statespan.methods.finite import (
    ACCEPTS,
    Constants,
    Fed,
    Likelihood,
    Moves,
    finite_constants,
    finite_prepare,
    neighbours,
    table_of,
)
from statespan.sequences import Sequences
from statespan.tree import Shared, Tree, leaves, rebuild, replace_leaves, stack, tree_map, unstack

LOWEST = -1e290
"""Stands for log 0, so that differences and gradients stay numbers."""


class LogDiscrete(NamedTuple):
    """A distribution over K states by its logarithm.

    Args:
        log_probs: (..., K) float64, `LOWEST` or less where impossible.
    """

    log_probs: Tensor

    @property
    def probs(self) -> Tensor:
        """Probabilities (..., K); those below 1e-323 become zero."""
        return self.log_probs.exp()

    @property
    def state(self) -> "LogDiscrete":
        """Itself."""
        return self

    @property
    def fed(self) -> None:
        """Nothing."""
        return None

    def draw(self) -> "LogDiscrete":
        """Sure of one state, drawn by its probability."""
        index = choose(self.probs)[..., None]
        return LogDiscrete(torch.full_like(self.log_probs, LOWEST).scatter(-1, index, 0.0))

    def point(self) -> Tensor:
        """The most probable state, (...) integers."""
        return self.log_probs.argmax(-1)

    def summary(self) -> dict[str, Tensor]:
        """`probs`."""
        return {"probs": self.probs}


class LogLikelihood(NamedTuple):
    """Log p(y_t | z_t = k), (T, B, K) float64, and what y_t feeds."""

    logs: Tensor
    fed: Fed | None

    @property
    def leaf(self) -> Tensor:
        """What the posterior is a gradient by."""
        return self.logs

    def with_leaf(self, leaf: Tensor, fed: Fed | None) -> "LogLikelihood":
        """The same with another leaf."""
        return LogLikelihood(leaf, fed)

    def posterior(self, gradient: Tensor) -> Tensor:
        """p(z_t = k | y) = d log p / d log-likelihood."""
        return gradient


class LogForward(Method):
    r"""The forward algorithm by sums of logarithms: as exact as `Forward`, slower, and without its limit.

    log a_t(j) = log sum over i of exp(log s_{t-1}(i) + log A[i, j]) + log p(y_t | j). Scaled probabilities lose a state
    that is less likely than another by more than 1e-308, which matters where only it can be reached; `Forward` hands
    such sequences to this method.

    Args:
        whole: `Forward`, for what needs no logarithms.

    Source:
        Durbin, Eddy, Krogh and Mitchison, Biological Sequence Analysis 1998, section 3.6.
    """

    accepts = ACCEPTS

    def __init__(self, whole: Method):
        self.whole = whole

    def exact(self, model: Any) -> bool:
        """Always."""
        return True

    def exact_ahead(self, model: Any) -> bool:
        """Where that of scaled probabilities is."""
        return self.whole.exact_ahead(model)

    def resume(self, model: Any, data: Sequences, belief: Any) -> Sequences:
        """With what an emission that looks back sees there."""
        return self.whole.resume(model, data, belief)

    def public(self, model: Any, belief: Any) -> Any:
        """Probabilities of public states."""
        return self.whole.public(model, belief)

    def constants(self, model: Any) -> Constants:
        """Stochastic tables from logits."""
        return finite_constants(model)

    def prepare(self, model: Any, constants: Constants, data: Sequences) -> tuple[Moves, LogLikelihood]:
        """Tables, and the log-likelihood of every step."""
        moves, likelihood = finite_prepare(model, constants, data)
        return moves, logarithms(likelihood)

    def init(self, model: Any, move: Moves, batch: int) -> LogDiscrete:
        """The initial distribution."""
        probs: Any = move.initial
        return LogDiscrete(safe_log(probs).expand(batch, -1))

    def predict(self, model: Any, belief: Any, move: Moves) -> Any:
        """Log of P A; after a missing symbol by the averaged table."""
        before, fed = log_state(belief), belief.fed
        moved = LogDiscrete((before[:, :, None] + _log_table(model, fed, move)).logsumexp(1))
        return with_fed(moved, None if fed is None or fed.recent is None else Fed(None, None, fed.recent))

    def update(self, model: Any, belief: Any, likelihood: LogLikelihood) -> tuple[Any, Tensor]:
        """Bayes' rule; an impossible observation gives minus infinity."""
        joint = belief.state.log_probs + likelihood.logs
        total = joint.logsumexp(-1)
        possible = total > LOWEST / 2
        state = torch.where(possible[:, None], joint - total[:, None], LOWEST)
        return with_fed(LogDiscrete(state), likelihood.fed), torch.where(possible, total, -torch.inf)

    def backward(self, model: Any, belief: Any, move: Moves, later: Any) -> Any:
        """Log s_t plus log of A (later / predicted)."""
        predicted = self.predict(model, belief, move).state.log_probs
        ratio = torch.where(predicted > LOWEST / 2, log_state(later) - predicted, LOWEST)
        pulled = (_log_table(model, belief.fed, move) + ratio[:, None, :]).logsumexp(2)
        return with_fed(LogDiscrete((log_state(belief) + pulled).log_softmax(-1)), belief.fed)

    def smooth(self, model: Any, prepared: Prepared, belief: Any, shape: tuple[int, int]) -> LogDiscrete:
        """Backwards from the end, a step at a time."""
        return self._walk(model, prepared, belief, shape)[0]

    def hindsight(self, model: Any, prepared: Prepared, belief: Any, data: Sequences, pairs: bool = False) -> Hindsight:
        """Smoothed states, log p, and p(z_t = i, z_{t+1} = j | y): zero past each end."""
        smoothed, steps = self._walk(model, prepared, belief, data.shape)
        log_prob = torch.stack([step.log_prob for step in steps if step.log_prob is not None])
        log_prob = log_prob if data.lengths is None else torch.where(data.within, log_prob, 0.0)
        return Hindsight(smoothed, log_prob, self._pairs(model, prepared, smoothed, steps) if pairs else None)

    def _pairs(self, model: Any, prepared: Prepared, smoothed: LogDiscrete, steps: list[Step]) -> Tensor:
        def joint(now: Any, move: Moves, later: Tensor) -> Tensor:
            predicted = self.predict(model, now, move).state.log_probs
            ratio = torch.where(predicted > LOWEST / 2, later - predicted, LOWEST)
            return (log_state(now)[:, :, None] + _log_table(model, now.fed, move) + ratio[:, None]).exp()

        return neighbours(model, prepared, steps, smoothed.log_probs, joint)

    def _walk(
        self, model: Any, prepared: Prepared, belief: Any, shape: tuple[int, int]
    ) -> tuple[LogDiscrete, list[Step]]:
        """Smoothed beliefs, stacked, and the steps of the filter."""
        steps = list(scan(model, self, prepared, *shape, belief))
        filtered = [step.filtered for step in steps]
        moves, later = unstack(prepared.moves, shape[0]), filtered[-1].state
        smoothed = [later]
        for t in range(shape[0] - 2, -1, -1):
            earlier = self.backward(model, filtered[t], moves[t + 1], later).state.log_probs
            if prepared.lengths is not None:
                inside = (prepared.lengths - 1 > t)[:, None]
                earlier = torch.where(inside, earlier, log_state(filtered[t]))
            later = LogDiscrete(earlier)
            smoothed.append(later)
        return stack(smoothed[::-1]), steps

    def emit(self, model: Any, constants: Constants, belief: Any, u: Tree) -> Distribution:
        """The mixture of the states' emissions: exact."""
        return self.whole.emit(model, constants, belief, u)

    def breadth(self, model: Any, data: Sequences) -> int:
        """The size of a table."""
        return model.transition.states**2

    def decode(self, model: Any, constants: Constants, data: Sequences, k: int) -> tuple[Tensor, Tensor | None]:
        """By max-product."""
        return self.whole.decode(model, constants, data, k)

    def fill(self, model: Any, constants: Constants, data: Sequences) -> Tensor:
        """As the method of scaled probabilities, which hands over what it must."""
        return self.whole.fill(model, constants, data)


def safe_log(x: Tensor) -> Tensor:
    """The logarithm in float64, `LOWEST` at zero, where its gradient is zero."""
    x, there = x.double(), x > 0
    return torch.where(there, torch.where(there, x, 1.0).log(), LOWEST)


def log_state(belief: Any) -> Tensor:
    """(..., K), of a belief in logarithms or of one carried in from `Forward`."""
    state = belief.state
    return state.log_probs if hasattr(state, "log_probs") else safe_log(state.probs)


def logarithms(likelihood: Likelihood) -> LogLikelihood:
    """The same, unscaled and in float64."""
    return LogLikelihood(likelihood.exactly().nan_to_num(neginf=LOWEST), likelihood.fed)


def _log_table(model: Any, fed: Any, move: Moves) -> Tensor:
    """Log A, (K, K) or (B, K, K)."""
    return safe_log(table_of(model, fed, move))


# ------------------------------------------------------------------------------------- what Forward hands over


def lost(likelihood: Likelihood, log_prob: Tensor, lengths: Tensor | None) -> Tensor | None:
    """(B,) which sequences scaled probabilities cannot do; None: they can do all.

    They are those where the scaled p(y_t | y_<t) is so small that it may have lost states, and a likelihood did vanish
    that is not zero.
    """
    value = likelihood.value
    if likelihood.log is None or value.device.type == "meta" or not log_prob.numel():
        return None
    with torch.no_grad():
        tiny = torch.finfo(value.dtype).tiny ** 0.5
        low = log_prob - likelihood.log_scale < torch.tensor(tiny, dtype=torch.float64).log()
        if not bool(low.any()):
            return None
        if lengths is not None:
            low = low & (torch.arange(len(low), device=low.device)[:, None] < lengths)
        low = vanished(likelihood, low.any(0), lengths)
    return low if bool(low.any()) else None


@torch.no_grad()
def vanished(likelihood: Likelihood, some: Tensor, lengths: Tensor | None) -> Tensor:
    """Which of `some` sequences (B,) have a likelihood that scaling made zero, or nearly, and that is not zero."""
    value = likelihood.value[:, some]
    gone = (value < torch.finfo(value.dtype).tiny ** 0.5) & (likelihood.exactly()[:, some] > -torch.inf)
    if lengths is not None:
        gone = gone & (torch.arange(len(value), device=value.device)[:, None] < lengths[some])[..., None]
    return some.masked_scatter(some, gone.any(-1).any(0))


def parted(method: Method, prepared: Prepared, belief: Any, which: Tensor, again: Callable) -> tuple[list[Any], Tensor]:
    """What `again(method, prepared, belief, shape)` gives of the sequences that `method` can do, and of the others.

    With it comes the order (B,) in which the two, one after the other, are as they were.
    """
    pieces, index = [], [(~which).nonzero()[:, 0], which.nonzero()[:, 0]]
    length = prepared.likelihoods.value.shape[0]
    if len(index[0]):
        pieces.append(again(method, *part_of(prepared, belief, index[0]), (length, len(index[0]))))
    pieces.append(again(LogForward(method), *in_logarithms(prepared, belief, index[1]), (length, len(index[1]))))
    return pieces, torch.cat(index).argsort()


def joined(pieces: Sequence[Tree], order: Tensor, axis: int) -> Tree:
    """Trees of some sequences each as one of all; what belongs to no sequence (`Shared`) is added up."""
    first = pieces[0]
    if first is None:
        return None
    if isinstance(first, Shared):
        return replace_leaves(first, [torch.stack(x).sum(0) for x in zip(*map(leaves, pieces), strict=True)])
    if isinstance(first, tuple):
        return rebuild(first, [joined(children, order, axis) for children in zip(*pieces, strict=True)])
    return torch.cat(list(pieces), axis).index_select(axis, order)


def plain(belief: Any, dtype: torch.dtype) -> Any:
    """A belief in probabilities of this type."""
    return None if belief is None else with_fed(Discrete(belief.state.probs.to(dtype)), belief.fed)


def part_of(prepared: Prepared, belief: Any, index: Tensor) -> tuple[Prepared, Any]:
    """Some of the sequences, (n,), and the belief carried into them."""
    moves, likelihood = prepared.moves, prepared.likelihoods
    first = moves.initial.value
    initial = Shared(first if first.dim() == 1 else first[index])
    moves = moves._replace(initial=initial, tables=tree_map(lambda x: x[:, index], moves.tables))
    seen = tree_map(lambda x: x[:, index], likelihood._replace(log=None))
    each = [None if x is None else x[index] for x in (prepared.lengths, prepared.weights)]
    return Prepared(moves, seen, *each), tree_map(lambda x: x[index], belief)


def in_logarithms(prepared: Prepared, belief: Any, index: Tensor) -> tuple[Prepared, Any]:
    """Some of the sequences, as `LogForward` wants them."""
    some, before = part_of(prepared, belief, index)
    logs = logarithms(prepared.likelihoods).logs[:, index]
    some = some._replace(likelihoods=LogLikelihood(logs, some.likelihoods.fed))
    return some, None if before is None else with_fed(LogDiscrete(log_state(before)), before.fed)
