"""Exact answers for sequences whose posterior would not fit into memory: by segments, made again on the way back."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.utils.checkpoint import checkpoint

from statespan.belief import Discrete, with_fed
from statespan.errors import StatespanError
from statespan.method import Expected, Method, Prepared, Trace, register, run
from statespan.methods.finite import (
    ACCEPTS,
    Constants,
    Moves,
    finite_moves,
    look_back,
    refuse_gaps,
    refuse_runs,
    told_apart,
)
from statespan.methods.forward import Forward, statistics_of
from statespan.part import FiniteTransition
from statespan.sequences import Sequences
from statespan.shapes import Float
from statespan.tree import Shared, Tree, add, leaves, replace_leaves, tree_map

SEGMENT = 2**23
"""Numbers (steps times sequences times states) of a segment, where its length is not given."""


class Later(NamedTuple):
    """Likelihoods still to be made, a segment at a time."""

    constants: Shared
    data: Shared


class Segment(NamedTuple):
    """What the way back gives of one segment: its first step, its data, p(z_t | y) (S, B, K), expected moves, log p."""

    start: int
    data: Sequences
    posterior: Tensor
    counts: Tree
    log_prob: Tensor


class Checkpointed(Method):
    r"""The forward algorithm where T x K numbers are too many: only the belief before each segment is kept.

    Forwards each segment's likelihoods are made, used and dropped. On the way back a segment is run again from its kept
    belief, and back-propagation through it takes the gradient with respect to the belief after it, and gives that with
    respect to the belief before it. So the answers are those of `Forward`, for one more pass, and memory is that of one
    segment and one belief a segment. `segments` gives the posterior piece by piece, `smoothed` what is asked of it.

    Args:
        segment: steps a segment; None takes what makes about 8 million numbers of one.

    Raises:
        StatespanError: a segment below one step; moves that see past observations; posterior paths asked for.

    Source:
        Griewank and Walther, "Algorithm 799: revolve", 2000; for hidden Markov models: Grice, Hughey and Speck 1997.

    Example:
        >>> import statespan as ss
        >>> model = ss.hmm(states=3, emission=ss.Categorical(4), seed=0)
        >>> torch.allclose(model.log_prob([0, 1, 3], method=ss.Checkpointed(2)), model.log_prob([0, 1, 3]))
        True
    """

    accepts = ACCEPTS

    def __init__(self, segment: int | None = None):
        if segment is not None and segment < 1:
            raise StatespanError(f"Checkpointed(segment={segment}): use at least one step")
        self.segment, self.whole = segment, Forward()

    def steps(self, model: Any, batch: int) -> int:
        """How many steps a segment has."""
        return self.segment or max(1, SEGMENT // (batch * model.transition.states))

    def exact(self, model: Any) -> bool:
        """Always."""
        return True

    def exact_ahead(self, model: Any) -> bool:
        """Unless the emission looks back on what is not yet known."""
        return self.whole.exact_ahead(model)

    def resume(self, model: Any, data: Sequences, belief: Any) -> Sequences:
        """With what an emission that looks back sees there."""
        return self.whole.resume(model, data, belief)

    def constants(self, model: Any) -> Constants:
        """Stochastic tables from logits."""
        return self.whole.constants(model)

    def prepare(self, model: Any, constants: Constants, data: Sequences) -> tuple[Moves, Any]:
        """Tables; the likelihoods wait for their segment.

        Raises:
            StatespanError: a model whose moves see past observations.
        """
        _of_states(model)
        return finite_moves(model, constants, data), Later(Shared(constants), Shared(data))

    def init(self, model: Any, move: Moves, batch: int) -> Discrete:
        """The initial distribution."""
        return self.whole.init(model, move, batch)

    def predict(self, model: Any, belief: Any, move: Moves) -> Any:
        """P A."""
        return self.whole.predict(model, belief, move)

    def update(self, model: Any, belief: Any, likelihood: Any) -> tuple[Any, Tensor]:
        """Refused: it would keep every belief."""
        raise StatespanError("Checkpointed goes by segments, not by steps; sample paths with Forward, and futures")

    def backward(self, model: Any, belief: Any, move: Moves, later: Any) -> Any:
        """Refused: it would keep every belief."""
        raise StatespanError("Checkpointed keeps no beliefs to walk back through; sample paths with Forward")

    def public(self, model: Any, belief: Any) -> Discrete:
        """Probabilities of public states."""
        return self.whole.public(model, belief)

    def emit(self, model: Any, constants: Constants, belief: Any, u: Tree) -> Distribution:
        """The mixture of the states' emissions."""
        return self.whole.emit(model, constants, belief, u)

    def decode(self, model: Any, constants: Constants, data: Sequences, k: int) -> tuple[Tensor, Tensor]:
        """By max-product, which keeps T x K pointers."""
        return self.whole.decode(model, constants, data, k)

    def fill(self, model: Any, constants: Constants, data: Sequences) -> Tensor:
        """The emission's mean or mode under the smoothed states."""
        _of_states(model)
        refuse_runs(data, model.emission.lags)
        each = [
            model.emission.fill(s.data.y, look_back(model, s.data)[0], s.data.present, told_apart(model, s.posterior))
            for s in self._back(model, constants, data)
        ]
        return torch.cat(each[::-1])

    def breadth(self, model: Any, data: Sequences) -> int:
        """The number of states."""
        return model.transition.states

    def smooth(self, model: Any, prepared: Prepared, belief: Any, shape: tuple[int, int]) -> Discrete:
        """All of the posterior, which takes its memory: `smoothed` and `segments` do not."""
        later: Any = prepared.likelihoods
        back = self._back(model, later.constants.value, later.data.value, belief)
        return Discrete(torch.cat([s.posterior for s in back][::-1]))

    def expect(self, model: Any, constants: Constants, data: Sequences) -> Expected:
        """The same sums as `Forward`'s, added up over segments."""
        log_probs, total = [], None
        for s in self._back(model, constants, data, counting=True):
            first = s.posterior[0] if s.start == 0 else torch.zeros_like(s.posterior[0])
            new = statistics_of(model, s.data, first, s.posterior, s.counts)
            total = new if total is None else add(total, new)
            log_probs.append(s.log_prob)
        assert total is not None
        return Expected(torch.cat(log_probs[::-1]), total)

    def segments(self, model: Any, y: Any, lengths: Any = None, inputs: Any = None) -> Iterator[tuple[int, Tensor]]:
        """The posterior piece by piece, from the last segment to the first: its first step, and p(z_t | y) (S, B, K).

        Args:
            model: a finite state space.
            y: the sequences, as the model's verbs take them.
            lengths: (N,) lengths of a padded batch.
            inputs: inputs, the forms of y.
        """
        from statespan import verbs

        data, _ = verbs.ask(model, y, lengths, inputs)
        with torch.no_grad():
            constants = self.constants(model)
        for s in self._back(model, constants, data):
            yield s.start, self.public(model, Discrete(s.posterior)).probs

    def smoothed(self, model: Any, y: Any, of: Any, lengths: Any = None, inputs: Any = None) -> Any:
        """E[f(z_t) | y] at every step, (N, T, F), and never the T x K probabilities themselves.

        Args:
            model: a finite state space.
            y: the sequences, as the model's verbs take them.
            of: f, a table (K, F) of its values in each state.
            lengths: (N,) lengths of a padded batch.
            inputs: inputs, the forms of y.
        """
        from statespan import verbs

        data, layout = verbs.ask(model, y, lengths, inputs)
        with torch.no_grad():
            constants = self.constants(model)
        each = [
            self.public(model, Discrete(s.posterior)).probs @ torch.as_tensor(of).to(s.posterior)
            for s in self._back(model, constants, data)
        ]
        return layout.steps(torch.cat(each[::-1]))

    def _windows(self, model: Any, data: Sequences) -> list[tuple[int, Sequences, Tensor | None]]:
        """Each segment's first step, its data, and which sequences (B,) had ended before it."""
        length, batch = data.shape
        size, out, past = self.steps(model, batch), [], data.past
        refuse_gaps(data, model.emission.lags)  # a segment would not see one in the segment before it
        for start in range(0, length, size):
            stop = min(start + size, length)
            part = data.each(lambda x, axis, a=start, b=stop: x[a:b] if axis else x)._replace(past=past)
            recent = look_back(model, part)[2]
            past = None if recent is None else (recent[0][-1], recent[1][-1])
            ended = None
            if data.lengths is not None:
                left = data.lengths - start
                ended, part = left <= 0, part._replace(lengths=left.clamp(1, stop - start))
            out.append((start, part, ended))
        return out

    def _run(
        self,
        model: Any,
        constants: Constants,
        window: Sequences,
        belief: Any,
        ended: Tensor | None,
        prepared: Any = None,
    ) -> tuple[Float[Tensor, "T B"], Tensor, Any]:
        """One segment: log p of its steps, the probabilities after it and what is fed.

        The probabilities of a sequence that had ended stay as they were.
        """
        keep = ("log_prob", "last")
        trace = run(model, self.whole, window, belief, keep, constants, prepared)
        assert trace.log_prob is not None
        log_prob, last = trace.log_prob, trace.last.state.probs
        if ended is not None and belief is not None:
            log_prob = torch.where(ended, 0.0, log_prob)
            last = torch.where(ended[:, None], belief.state.probs, last)
        return log_prob, last, trace.last.fed

    def _back(
        self, model: Any, constants: Constants, data: Sequences, belief: Any = None, counting: bool = False
    ) -> Iterator[Segment]:
        """Segments from the last to the first; moves are counted only where they are asked for."""
        windows, beliefs = self._windows(model, data), [belief]
        with torch.no_grad():
            for _, window, ended in windows[:-1]:
                beliefs.append(Discrete(self._run(model, constants, window, beliefs[-1], ended)[1]))
        after: Tensor | None = None
        for (start, window, ended), before in zip(windows[::-1], beliefs[::-1], strict=True):
            with torch.no_grad():
                ready = Prepared(*self.whole.prepare(model, constants, window), window.lengths)
            value = ready.likelihoods.value.detach().requires_grad_()
            tables = leaves(ready.moves.tables)
            free = [x.detach().requires_grad_(counting and x.is_floating_point()) for x in tables]
            moves = ready.moves._replace(tables=replace_leaves(ready.moves.tables, free))
            again = Prepared(moves, ready.likelihoods._replace(value=value), window.lengths)
            with torch.enable_grad():
                known = None if before is None else Discrete(before.state.probs.detach().requires_grad_())
                log_prob, last, _ = self._run(model, constants, window, known, ended, again)
                possible = torch.where(log_prob.isfinite(), log_prob, 0.0)
                total = (possible if data.weights is None else possible * data.weights).sum()
                if after is not None:
                    total = total + (after * last).sum()
                wanted = [value, *(x for x in free if x.requires_grad)] + ([] if known is None else [known.probs])
                found = list(torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True))
            after = None if known is None else found.pop()
            posterior = value.detach() * found.pop(0)
            counts = [x.detach() * found.pop(0) if x.requires_grad else x for x in free]
            yield Segment(start, window, posterior, replace_leaves(ready.moves.tables, counts), log_prob.detach())


def _of_states(model: Any) -> None:
    if model.transition.autoregressive:
        raise StatespanError("Checkpointed takes models whose moves see the past through the state alone; use Forward")


def _unless(ended: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """What was before, where a sequence had ended."""
    return torch.where(ended.view(-1, *[1] * (after.dim() - 1)), before, after)


@register(Checkpointed, FiniteTransition, keeps=("predicted", "filtered", "log_prob", "last"), devices=("cpu", "cuda"))
def by_segments(
    model: Any, method: Checkpointed, prepared: Prepared, length: int, batch: int, belief: Any, keep: frozenset[str]
) -> Trace:
    """A segment at a time; its graph is not kept but made again when the gradient comes back."""
    later: Any = prepared.likelihoods
    constants, data = later.constants.value, later.data.value
    if keep & {"predicted", "filtered"}:  # every belief is asked for: then there is nothing to save
        return run(model, method.whole, data, belief, keep, constants)
    log_probs, now, fed = [], belief, None
    for _, window, ended in method._windows(model, data):

        def piece(probs: Tensor | None, window: Sequences = window, ended: Any = ended) -> tuple[Tensor, Tensor, Any]:
            known = None if probs is None else Discrete(probs)
            return method._run(model, constants, window, known, ended)

        probs = None if now is None else now.state.probs
        if torch.is_grad_enabled():
            made: Any = checkpoint(piece, probs, use_reentrant=False, preserve_rng_state=False)
            log_prob, last, new = made
        else:
            log_prob, last, new = piece(probs)
        log_probs.append(log_prob)
        now, fed = Discrete(last), new if fed is None or ended is None else tree_map(partial(_unless, ended), fed, new)
    return Trace(last=with_fed(now, fed), log_prob=torch.cat(log_probs))
