"""An answer for many chains seen together, whose joint states are too many: each chain as if the others were known."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from statespan.belief import Discrete
from statespan.errors import StatespanError
from statespan.method import (
    Expected,
    Method,
    Prepared,
    Statistics,
    Trace,
    closed_parts,
    fastest,
    register,
    run,
)
from statespan.methods.finite import LastTime, Likelihood, Moves, OneChain
from statespan.methods.forward import Forward, expectations
from statespan.methods.max_product import MaxProduct
from statespan.methods.rows import Rows
from statespan.part import AdditiveEmission
from statespan.parts.factorial import Factorial, FactorialStart
from statespan.sequences import Sequences, any_of
from statespan.shapes import Float, Int
from statespan.tree import Shared, Tree


class Apart(NamedTuple):
    """Independent distributions of several chains.

    Args:
        probs: of each chain (..., K_c), each sums to one.
    """

    probs: tuple[Tensor, ...]

    @property
    def state(self) -> "Apart":
        """Itself."""
        return self

    @property
    def fed(self) -> None:
        """Nothing."""
        return None

    def draw(self) -> "Apart":
        """Each chain sure of one state."""
        return Apart(tuple(Discrete(x).draw().probs for x in self.probs))

    def point(self) -> Int[Tensor, "... C"]:
        """The most probable state of each chain, (..., C) integers."""
        return torch.stack([x.argmax(-1) for x in self.probs], -1)

    def summary(self) -> dict[str, Tensor]:
        """`marginals` (..., C, K), K the most states a chain has; zero past a chain's own."""
        most = max(x.shape[-1] for x in self.probs)
        return {"marginals": torch.stack([torch.nn.functional.pad(x, (0, most - x.shape[-1])) for x in self.probs], -2)}


class Fields(NamedTuple):
    """What the observations say of each chain once the others have settled.

    Args:
        chains: exp(h_c(t, k)) of each chain, as a likelihood.
        rest: what the bound has beside the chains' own log-probabilities, (T, B) float64.
        smoothed: each chain's posterior, (T, B, K_c); None where nothing is observed.
    """

    chains: tuple[Likelihood, ...]
    rest: Tensor
    smoothed: tuple[Tensor, ...] | None


class _Constants(NamedTuple):
    starts: tuple[Tensor, ...]
    tables: tuple[Tensor, ...]
    emission: Tree


class StructuredMeanField(Method):
    r"""For a factorial chain: the posterior as a product over chains, each a hidden Markov chain of its own.

    q(z) = product over c of q_c(z_c), where q_c is the posterior of chain c under exp(h_c(t, k)) in place of a
    likelihood, h_c(t, k) = E log p(y_t | z_c = k, the others as q has them). Each in turn is made by forward-backward,
    until nothing moves. A sweep costs the sum of K_c^2, not the product of K_c.

    What it gives is approximate: log_prob is a lower bound of log p(y), E_q log p(y, z) - E_q log q, which EM with this
    method climbs; the two are equal where no more than one chain acts on what is seen. A posterior has `marginals`
    (N, T, C, K) in place of `probs`, states are one of each chain, (N, T, C). It looks at a whole series at once, so
    there is no filter, no belief to carry in and no stream; a forecast goes on from the end.

    Args:
        iterations: at most this many sweeps over the chains.
        tolerance: stop when no probability moves by more than this.

    Raises:
        StatespanError: labelled states, a belief carried in, k best paths, a filter.

    Source:
        Ghahramani and Jordan, "Factorial hidden Markov models", 1997, section 3.5 and appendix D.

    Example:
        >>> import statespan as ss
        >>> model = ss.factorial_hmm([2] * 30, ss.AdditiveGaussian(dim=3), seed=0)
        >>> posterior = model.smooth([[0.0, 1.0, 2.0]] * 4, method=ss.StructuredMeanField())
        >>> posterior.marginals.shape, posterior.exact
        (torch.Size([4, 30, 2]), False)
    """

    accepts = (FactorialStart, Factorial, AdditiveEmission)

    def __init__(self, iterations: int = 50, tolerance: float = 1e-6):
        if not isinstance(iterations, int) or iterations < 1:
            raise StatespanError(f"StructuredMeanField(iterations={iterations!r}): use a whole number, at least one")
        self.iterations, self.tolerance, self.whole = iterations, tolerance, Forward()
        self._settled = LastTime()

    def exact(self, model: Any) -> bool:
        """Never said to be."""
        return False

    def public(self, model: Any, belief: Any) -> Apart:
        """Itself."""
        return belief

    def breadth(self, model: Any, data: Sequences) -> int:
        """The states of all chains."""
        return sum(model.transition.sizes)

    def constants(self, model: Any) -> _Constants:
        """Stochastic tables from logits."""
        starts = tuple(start.probs() for start in model.initial.starts)
        return _Constants(starts, model.transition.constants(), model.emission.constants())

    def resume(self, model: Any, data: Sequences, belief: Any) -> Sequences:
        """Refused where there is something to see: the chains settle over a whole series."""
        if data.y is None:
            return data
        raise StatespanError(
            "StructuredMeanField looks at a whole series at once, so no belief can be carried into one; give the "
            "whole series, or use ss.Forward() on few chains"
        )

    def mend(self, model: Any, prepared: Prepared, trace: Trace, belief: Any, kernel: bool) -> Trace:
        """The trace; filtered beliefs are refused, as they would have seen what comes later."""
        if trace.filtered is not None:
            raise StatespanError(
                "StructuredMeanField looks at a whole series at once and has no filter; call smooth, or filter with "
                "ss.Forward() on few chains"
            )
        return trace

    def prepare(self, model: Any, constants: _Constants, data: Sequences) -> tuple[tuple[Moves, ...], Fields]:
        """Tables, and what the observations say of each chain once all have settled."""
        moves = self._moves(model, constants, data)
        if data.y is None:
            return moves, self._blank(constants, data)
        evidence = model.emission.evidence(data.y, data.u, data.present, constants.emission)
        with torch.no_grad():
            logs, smoothed = self._settle(model, moves, evidence, data, None)
        return moves, self._fields(model, evidence, data, logs, smoothed)

    def _moves(self, model: Any, constants: _Constants, data: Sequences) -> tuple[Moves, ...]:
        each = zip(model.initial.starts, constants.starts, constants.tables, strict=True)
        return tuple(Moves(start.given(data.u, probs), Shared(table), Shared(None)) for start, probs, table in each)

    def _blank(self, constants: _Constants, data: Sequences) -> Fields:
        """Nothing seen."""
        none = constants.tables[0].new_zeros(data.shape, dtype=torch.float64)
        ones = [table.new_ones(*data.shape, len(table)) for table in constants.tables]
        return Fields(tuple(Likelihood(x, none, None) for x in ones), none, None)

    def _log(self, model: Any, chain: int, others: list[Tensor], evidence: Tree, data: Sequences) -> Tensor:
        """h_c(t, k), (T, B, K_c); zero where nothing is seen."""
        log = model.emission.expected(chain, others, evidence)
        if data.powers is not None:
            log = log * data.powers[..., None]
        present = data.present
        if present is None:
            return log
        return torch.where(any_of(present)[..., None], log, 0.0)

    def _settle(
        self, model: Any, moves: tuple[Moves, ...], evidence: Tree, data: Sequences, first: list[Tensor] | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Sweep until nothing moves: the logs h_c that made each chain's posterior, and the posteriors."""
        if data.states is not None:
            raise StatespanError(
                "StructuredMeanField knows no labels, which are of joint states; leave states= out, or use "
                "ss.Forward() on few chains"
            )
        sizes = model.transition.sizes
        uniform = [data.y.new_full((*data.shape, n), 1 / n) for n in sizes]
        smoothed, logs = list(first or uniform), [torch.zeros_like(x) for x in uniform]
        for _ in range(self.iterations):
            moved = 0.0
            for c in range(len(sizes)):
                logs[c] = self._log(model, c, smoothed, evidence, data)
                prepared = Prepared(moves[c], Likelihood.of(logs[c]), data.lengths)
                new, _, _ = expectations(_chain(model, c), self.whole, prepared, None, data.shape, counting=False)
                moved = max(moved, float((new - smoothed[c]).abs().max()))
                smoothed[c] = new
            if moved < self.tolerance:
                break
        return logs, smoothed

    def _fields(
        self, model: Any, evidence: Tree, data: Sequences, logs: list[Tensor], smoothed: list[Tensor]
    ) -> Fields:
        """The chains as likelihoods, and E_q log p(y_t | z) less what they say of it.

        The posteriors are held: at their best the bound's slope by them is zero, and what is left is its gradient.
        """
        seen = (smoothed[-1] * self._log(model, len(logs) - 1, smoothed, evidence, data)).sum(-1)
        said = [(q * log).sum(-1) for q, log in zip(smoothed, logs, strict=True)]
        rest = seen.double() - torch.stack(said).double().sum(0)
        return Fields(tuple(Likelihood.of(log) for log in logs), rest, tuple(smoothed))

    def init(self, model: Any, move: tuple[Moves, ...], batch: int) -> Apart:
        """Each chain's start."""
        return Apart(tuple(self.whole.init(model, each, batch).probs for each in move))

    def predict(self, model: Any, belief: Any, move: tuple[Moves, ...]) -> Apart:
        """Each chain's move."""
        each = zip(model.transition.chains, belief.state.probs, move, strict=True)
        return Apart(tuple(chain.push(probs, m.tables, None) for chain, probs, m in each))

    def update(self, model: Any, belief: Any, likelihood: Fields) -> tuple[Apart, Float[Tensor, " B"]]:
        """Bayes' rule in each chain; what each says of y_t, and the rest, add up to a step's share of the bound."""
        pairs = zip(belief.state.probs, likelihood.chains, strict=True)
        each = [self.whole.update(model, Discrete(probs), seen) for probs, seen in pairs]
        return Apart(tuple(b.probs for b, _ in each)), torch.stack([x for _, x in each]).sum(0) + likelihood.rest

    def smooth(self, model: Any, prepared: Prepared, belief: Any, shape: tuple[int, int]) -> Apart:
        """Each chain as it settled."""
        smoothed = prepared.likelihoods.smoothed
        if smoothed is None:
            raise StatespanError("StructuredMeanField: there is nothing to smooth; give observations")
        return Apart(smoothed)

    def backward(self, model: Any, belief: Any, move: tuple[Moves, ...], later: Any) -> Apart:
        """Chain by chain."""
        each = zip(belief.state.probs, move, later.state.probs, strict=True)
        back = [
            self.whole.backward(_chain(model, c), Discrete(now), m, Discrete(then))
            for c, (now, m, then) in enumerate(each)
        ]
        return Apart(tuple(x.probs for x in back))

    def emit(self, model: Any, constants: _Constants, belief: Any, u: Tree) -> Distribution:
        """Of drawn states: the mixture has too many components."""
        return model.emission.apart(belief.draw().point())

    def fill(self, model: Any, constants: _Constants, data: Sequences) -> Tensor:
        """The emission's mean under independent chains."""
        smoothed = self.prepare(model, constants, data)[1].smoothed
        assert smoothed is not None
        return model.emission.chain_fill(data.y, data.u, data.present, smoothed)

    def decode(
        self, model: Any, constants: _Constants, data: Sequences, k: int
    ) -> tuple[Int[Tensor, "T B 1 C"], Tensor | None]:
        """The likeliest path of each chain under q.

        Raises:
            StatespanError: more than one path.
        """
        if k != 1:
            raise StatespanError("StructuredMeanField gives one path; leave k= out, or use ss.Forward() on few chains")
        moves, fields = self.prepare(model, constants, data)
        index = torch.arange(data.shape[0] * data.shape[1], device=data.device).view(data.shape)
        paths = []
        for c, (move, seen) in enumerate(zip(moves, fields.chains, strict=True)):
            prepared = Prepared(move, Rows(Shared(seen.exactly().flatten(0, 1)), index, None), data.lengths)
            found: Any = run(_chain(model, c), MaxProduct(1), data, None, ("paths",), constants, prepared).paths
            paths.append(found[0])
        return torch.stack(paths, -1), None

    def expect(self, model: Any, constants: _Constants, data: Sequences) -> Expected:
        """Sums under q, which goes on from where the last E-step on the same model and data left it."""
        before = self._settled.of(model)
        with torch.no_grad():
            moves = self._moves(model, constants, data)
            evidence = model.emission.evidence(data.y, data.u, data.present, constants.emission)
            logs, smoothed = self._settle(model, moves, evidence, data, before.get(data.y))
            before[data.y] = smoothed
            fields = self._fields(model, evidence, data, logs, smoothed)
        log_prob, first, counts = fields.rest, [], []
        for c, (move, seen) in enumerate(zip(moves, fields.chains, strict=True)):
            prepared = Prepared(move, seen, data.lengths)
            posterior, moved, each = expectations(
                _chain(model, c), self.whole, prepared, None, data.shape, data.weights
            )
            first.append(model.initial.starts[c].statistics(posterior[0], data.u))
            counts.append(model.transition.chains[c].statistics(moved, data.u))
            log_prob = log_prob + each
        return Expected(log_prob, self._statistics(model, data, smoothed, (tuple(first), tuple(counts))))

    def _statistics(self, model: Any, data: Sequences, smoothed: list[Tensor], moved: tuple) -> Statistics:
        """Sums for the parts that have a closed form."""
        weight = data.within.to(smoothed[0])
        if data.observed is not None:
            weight = weight * any_of(data.observed)
        weight = weight if data.weights is None else weight * data.weights
        weight = weight if data.powers is None else weight * data.powers
        initial, transition, emission = closed_parts(model)
        with torch.no_grad():
            return Statistics(
                moved[0] if initial else None,
                moved[1] if transition else None,
                model.emission.chain_statistics(data.y, data.u, smoothed, weight, data.present) if emission else None,
            )


def _chain(model: Any, c: int) -> Any:
    return OneChain(model.initial.starts[c], model.transition.chains[c])


@register(StructuredMeanField, Factorial, keeps=("last", "filtered", "predicted", "log_prob"), devices=("cpu", "cuda"))
def chain_by_chain(
    model: Any,
    method: StructuredMeanField,
    prepared: Prepared,
    length: int,
    batch: int,
    belief: Any,
    keep: frozenset[str],
) -> Trace:
    """Each chain by the fastest way there is for it."""
    fields, log_prob, kept = prepared.likelihoods, prepared.likelihoods.rest, []
    for c, (move, seen) in enumerate(zip(prepared.moves, fields.chains, strict=True)):
        chain, before = _chain(model, c), None if belief is None else Discrete(belief.state.probs[c])
        some, need = Prepared(move, seen, prepared.lengths), keep | {"log_prob"}
        trace = fastest(chain, method.whole, some, seen.value.device, (length, batch), before, need, need)
        kept.append(method.whole.mend(chain, some, trace, before, True))
        log_prob = log_prob + kept[-1].log_prob

    def together(name: str) -> Any:
        each = [getattr(trace, name) for trace in kept]
        return None if name not in keep else Apart(tuple(x.probs for x in each))

    return Trace(together("predicted"), together("filtered"), together("last"), log_prob)
