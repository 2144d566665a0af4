"""Exact filtering and smoothing for finite states."""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from statespan.belief import Discrete, with_fed
from statespan.errors import StatespanError
from statespan.kernels.lanes import kernels_alone
from statespan.method import (
    Expected,
    Hindsight,
    Method,
    Prepared,
    Statistics,
    Trace,
    closed_parts,
    fastest,
    find_kernel,
    in_hindsight,
    run,
    scan,
)
from statespan.methods.by_symbol import by_symbol, expect_by_symbol
from statespan.methods.finite import (
    ACCEPTS,
    Constants,
    Fed,
    Likelihood,
    Moves,
    finite_constants,
    finite_prepare,
    look_back,
    neighbours,
    public,
    refuse_runs,
    table_of,
    told_apart,
)
from statespan.methods.logarithms import LogForward, in_logarithms, joined, lost, parted, plain
from statespan.methods.max_product import MaxProduct
from statespan.sequences import Sequences
from statespan.shapes import Float
from statespan.tree import Shared, Tree, leaves, replace_leaves, tree_map


class Forward(Method):
    r"""The forward algorithm with scaled probabilities; smoothing by its gradient.

    predict: c_t = A' s_{t-1};  update: s_t = e_t c_t / x_t with x_t = e_t' c_t = p(y_t | y_<t).
    The smoothed state is likelihood times gradient of log p, and expected counts are table times gradient: the
    backward pass is back-propagation (Eisner 2016).

    Source:
        Rabiner 1989, section V.A (scaling); Buys, Bisk and Choi, equations 10 to 13.

    Example:
        >>> import statespan as ss
        >>> model = ss.hmm(transition=[[0.9, 0.1], [0.2, 0.8]], emission=ss.Categorical(probs=[[0.8, 0.2], [0.1, 0.9]]))
        >>> [round(p, 4) for p in model.filter([0, 0, 1], method=ss.Forward()).probs[:, 0].tolist()]
        [0.8889, 0.9737, 0.6233]
    """

    accepts = ACCEPTS
    watches = frozenset({"log_prob"})

    def exact(self, model: Any) -> bool:
        """Always."""
        return True

    def exact_ahead(self, model: Any) -> bool:
        """Unless the emission looks back on what is not yet known."""
        return model.emission.lags == 0

    def resume(self, model: Any, data: Sequences, belief: Any) -> Sequences:
        """With what an emission that looks back sees there."""
        return data if belief.fed is None or belief.fed.recent is None else data._replace(past=belief.fed.recent)

    def public(self, model: Any, belief: Any) -> Discrete:
        """Probabilities of public states."""
        return Discrete(public(model.transition, belief.state.probs))

    def constants(self, model: Any) -> Constants:
        """Stochastic tables from logits."""
        return finite_constants(model)

    def prepare(self, model: Any, constants: Constants, data: Sequences) -> tuple[Moves, Likelihood]:
        """Tables, and the likelihood of every step."""
        return finite_prepare(model, constants, data)

    def init(self, model: Any, move: Moves, batch: int) -> Discrete:
        """The initial distribution."""
        probs: Any = move.initial
        return Discrete(probs.expand(batch, -1))

    def predict(self, model: Any, belief: Any, move: Moves) -> Any:
        """P A; after a missing symbol, p times the averaged table."""
        probs, fed = belief.state.probs, belief.fed
        if fed is None:
            return Discrete(model.transition.push(probs, move.tables, None))
        moved = model.transition.push(probs, move.tables, fed.value)
        if fed.observed is not None and not bool(fed.observed.all()):
            average: Any = move.average
            moved = torch.where(fed.observed[:, None], moved, probs @ average.value)
        return with_fed(Discrete(moved), None if fed.recent is None else Fed(None, None, fed.recent))

    def update(self, model: Any, belief: Any, likelihood: Likelihood) -> tuple[Any, Float[Tensor, " B"]]:
        """Bayes' rule; an impossible observation gives minus infinity and a belief of zeros, never a NaN."""
        joint = belief.state.probs * likelihood.value
        total = joint.sum(-1)
        possible = total > 0
        scale = torch.where(possible, total, 1.0)
        log_prob = torch.where(possible, scale.log().double(), -torch.inf) + likelihood.log_scale
        return with_fed(Discrete(joint / scale[:, None]), likelihood.fed), log_prob

    def mend(self, model: Any, prepared: Prepared, trace: Trace, belief: Any, kernel: bool) -> Trace:
        """Sequences whose scaled probabilities vanished, by logarithms."""
        assert trace.log_prob is not None
        which = lost(prepared.likelihoods, trace.log_prob, prepared.lengths)
        if which is None:
            return trace
        keep = frozenset(name for name in Trace._fields if getattr(trace, name) is not None)

        def again(method: Method, some: Prepared, before: Any, shape: tuple[int, int]) -> Trace:
            return fastest(model, method, some, which.device, shape, before, keep, keep, kernel)

        pieces, order = parted(self, prepared, belief, which, again)
        dtype = prepared.likelihoods.value.dtype
        ends = [plain(piece.last, dtype) for piece in pieces]
        steps = [Trace(plain(x.predicted, dtype), plain(x.filtered, dtype), log_prob=x.log_prob) for x in pieces]
        return joined(steps, order, 1)._replace(last=joined(ends, order, 0))

    def careful(
        self, model: Any, prepared: Prepared, belief: Any, log_prob: Tensor | None
    ) -> tuple[Method, Prepared, Any]:
        """By logarithms, if scaled probabilities cannot do some of the sequences."""
        if log_prob is None or lost(prepared.likelihoods, log_prob, prepared.lengths) is None:
            return self, prepared, belief
        every = torch.arange(log_prob.shape[1], device=log_prob.device)
        return LogForward(self), *in_logarithms(prepared, belief, every)

    def smooth(self, model: Any, prepared: Prepared, belief: Any, shape: tuple[int, int]) -> Discrete:
        """Likelihood times the gradient of log p: exact, through the scan or any kernel."""
        posterior, _, _ = expectations(model, self, prepared, belief, shape, counting=False)
        return Discrete(posterior)

    @kernels_alone()
    def hindsight(self, model: Any, prepared: Prepared, belief: Any, data: Sequences, pairs: bool = False) -> Hindsight:
        """The backward pass knows log p too."""
        if pairs:
            return self._with_pairs(model, prepared, belief, data)
        posterior, _, log_prob = expectations(model, self, prepared, belief, data.shape, counting=False)
        log_prob = log_prob if data.lengths is None else torch.where(data.within, log_prob, 0.0)
        return Hindsight(Discrete(posterior), log_prob)

    def _with_pairs(self, model: Any, prepared: Prepared, belief: Any, data: Sequences) -> Hindsight:
        """Smoothed states, and p(z_t = i, z_{t+1} = j | y): zero past each end.

        Source:
            Rabiner 1989, equation 37.
        """
        shape = data.shape
        kept = list(scan(model, self, prepared, *shape, belief))
        log_prob = torch.stack([step.log_prob for step in kept if step.log_prob is not None])
        method, careful, before = self.careful(model, prepared, belief, log_prob)
        if method is not self:
            found, dtype = method.hindsight(model, careful, before, data, pairs=True), prepared.likelihoods.value.dtype
            return Hindsight(plain(found.smoothed, dtype), found.log_prob, tree_map(lambda x: x.to(dtype), found.pairs))
        smoothed = self.smooth(model, prepared, belief, shape).probs

        def joint(now: Any, move: Moves, later: Tensor) -> Tensor:
            predicted = self.predict(model, now, move).state.probs
            ratio = torch.where(predicted > 0, later / predicted.clamp_min(1e-300), 0.0)
            return now.state.probs[:, :, None] * table_of(model, now.fed, move) * ratio[:, None]

        pairs = neighbours(model, prepared, kept, smoothed, joint)
        log_prob = log_prob if data.lengths is None else torch.where(data.within, log_prob, 0.0)
        return Hindsight(Discrete(smoothed), log_prob, pairs)

    def backward(self, model: Any, belief: Any, move: Moves, later: Any) -> Any:
        """s_t times A (later / predicted): smoothed, or p(z_t | z_{t+1}, y_<=t) when `later` is one-hot."""
        predicted = self.predict(model, belief, move).state.probs
        ratio = torch.where(predicted > 0, later.state.probs / predicted.clamp_min(1e-300), 0.0)
        fed = belief.fed
        pulled = model.transition.pull(ratio, move.tables, None if fed is None else fed.value)
        if fed is not None and fed.observed is not None:
            average: Any = move.average
            pulled = torch.where(fed.observed[:, None], pulled, ratio @ average.value.mT)
        probs = belief.state.probs * pulled
        total = probs.sum(-1, keepdim=True)
        return with_fed(Discrete(probs / torch.where(total > 0, total, 1.0)), fed)

    def emit(self, model: Any, constants: Constants, belief: Any, u: Tree) -> Distribution:
        """The mixture of the states' emissions: exact."""
        probs = told_apart(model, belief.state.probs)
        if model.emission.lags:
            fed, event = belief.fed, model.emission.event
            blank = probs.new_zeros(*probs.shape[:-1], model.emission.lags, event.dim or 1)
            recent = blank if fed is None else fed.recent[0]
            if bool(recent.isnan().any()):
                raise StatespanError(
                    "what comes next looks back on an observation that is missing; fill the gap at the end first "
                    "(model.impute), or end the sequence before it"
                )
            u = (u, recent)
        return model.emission.mixture(probs, u, constants.emission)

    def breadth(self, model: Any, data: Sequences) -> int:
        """The number of states, and a vector and its squares; one where only symbols have likelihoods of their own."""
        if by_symbol(model, self, data):
            return 1
        return model.transition.states + 2 * (model.emission.event.dim or 0)

    @kernels_alone()
    def expect(self, model: Any, constants: Constants, data: Sequences) -> Expected:
        """By one backward pass; a weight counts a sequence that many times, a power an observation."""

        def step_by_step(some: Sequences) -> Expected:
            with torch.no_grad():
                prepared = Prepared(*self.prepare(model, constants, some), some.lengths)
            posterior, counts, log_prob = expectations(model, self, prepared, None, some.shape, some.weights)
            return Expected(log_prob, statistics_of(model, some, posterior[0], posterior, counts))

        done = expect_by_symbol(model, self, constants, data, step_by_step)
        return step_by_step(data) if done is None else done

    def decode(self, model: Any, constants: Constants, data: Sequences, k: int) -> tuple[Tensor, Tensor]:
        """By max-product."""
        return MaxProduct(k).decode(model, constants, data, k)

    def fill(self, model: Any, constants: Constants, data: Sequences) -> Tensor:
        """The emission's mean or mode under the smoothed states; for an autoregressive move, the best symbol in place.

        There a symbol moves the state too, so each candidate is tried in the gap: p(y_t = v | rest) is proportional
        to p(rest, y_t = v), with the other gaps summed out.
        """
        if model.transition.autoregressive:
            return _fill_by_trial(model, self, constants, data)
        if model.emission.lags:
            refuse_runs(data, model.emission.lags)
        posterior = told_apart(model, in_hindsight(model, self, data, constants).probs)
        return model.emission.fill(data.y, look_back(model, data)[0], data.present, posterior)


@torch.no_grad()
def statistics_of(model: Any, data: Sequences, first: Tensor, posterior: Tensor, counts: Tree) -> Statistics:
    """What the parts' M-steps need: from first states (B, K), states (T, B, K) and moves, a tree like the tables."""
    u, there, _ = look_back(model, data)
    weights = told_apart(model, posterior)
    if data.powers is not None:
        weights = weights * data.powers[..., None]
    if there is not None:
        weights = torch.where(there[..., None], weights, 0.0)
    initial, transition, emission = closed_parts(model)
    return Statistics(
        model.initial.statistics(first, data.u) if initial else None,
        model.transition.statistics(counts, data.u) if transition else None,
        model.emission.statistics(data.y, u, weights, data.present) if emission else None,
    )


def _fill_by_trial(model: Any, method: "Forward", constants: Constants, data: Sequences) -> Tensor:
    """Try every symbol in every gap, all of a gap's candidates as one batch."""
    assert data.observed is not None
    symbols = model.emission.event.symbols
    assert symbols is not None
    filled = data.y.clone()
    gaps = (~data.observed & data.within).nonzero()
    for t, b in gaps.tolist():
        y = data.y[:, b : b + 1].expand(-1, symbols).clone()
        y[t] = torch.arange(symbols, device=y.device)
        observed = data.observed[:, b : b + 1].expand(-1, symbols).clone()
        observed[t] = True
        lengths = None if data.lengths is None else data.lengths[b : b + 1].expand(symbols)
        u = tree_map(lambda x, b=b: x[:, b : b + 1].expand(-1, symbols, *x.shape[2:]), data.u)
        log_prob = run(model, method, Sequences(y, u, observed, lengths), None, constants=constants).log_prob
        assert log_prob is not None
        filled[t, b] = log_prob.sum(0).argmax()
    return filled


EXPECTED = frozenset({"log_prob", "posterior", "counts"})
"""What a kernel must keep to stand in for the backward pass."""


def expectations(
    model: Any,
    method: Forward,
    prepared: Prepared,
    belief: Any,
    shape: tuple[int, int],
    weights: Tensor | None = None,
    counting: bool = True,
) -> tuple[Float[Tensor, "T B K"], Tree, Float[Tensor, "T B"]]:
    r"""The E-step, by one backward pass: a kernel's where it has one, else back-propagation.

    Posterior p(z_t | y) = likelihood x d log p / d likelihood; expected counts of moves = table x d log p / d table.

    Args:
        model: a finite state space.
        method: Forward.
        prepared: what `prepare` returned.
        belief: the belief carried in, or None.
        shape: (T, B).
        weights: (B,) how many times each sequence counts in the posterior and the counts; None: once.
        counting: False where the counts are not asked for; they may then be anything.

    Returns:
        The posterior (T, B, K), zero past each sequence's end; the expected counts, a tree like the tables;
        log p (T, B).

    Source:
        Eisner, "Inside-outside and forward-backward algorithms are just backprop", 2016.
    """
    posterior, counts, log_prob = _by_gradient(
        model, method, prepared._replace(weights=weights), belief, shape, counting
    )
    which = lost(prepared.likelihoods, log_prob, prepared.lengths)
    if which is None:
        return posterior, counts, log_prob

    def again(by: Method, some: Prepared, before: Any, size: tuple[int, int]) -> tuple[Tensor, Tree, Tensor]:
        return _by_gradient(model, by, some, before, size, counting)

    pieces, order = parted(method, prepared._replace(weights=weights), belief, which, again)
    posteriors, each, log_probs = zip(*pieces, strict=True)
    posterior = joined([x.to(posterior) for x in posteriors], order, 1)
    return posterior, joined(each, order, 1) if counting else counts, joined(log_probs, order, 1)


def _by_gradient(
    model: Any, method: Method, prepared: Prepared, belief: Any, shape: tuple[int, int], counting: bool
) -> tuple[Tensor, Tree, Tensor]:
    """`expectations` of sequences that one method can do."""
    likelihood, weights = prepared.likelihoods, prepared.weights
    wanted = EXPECTED if counting else EXPECTED - {"counts"}
    found = find_kernel(model, method)
    leaf = likelihood.leaf
    if found and wanted <= found.keeps and leaf.device.type in found.devices:
        with torch.no_grad():
            trace = found.run(model, method, prepared, *shape, belief, wanted)
        if trace is not None:
            assert trace.posterior is not None and trace.log_prob is not None
            return trace.posterior, trace.counts, trace.log_prob
    value = leaf.detach().requires_grad_()
    tables = leaves(prepared.moves.tables)
    free = [x.detach().requires_grad_(x.is_floating_point()) for x in tables]  # an index has no count
    moves = prepared.moves._replace(tables=replace_leaves(prepared.moves.tables, free))
    moves = moves._replace(initial=Shared(prepared.moves.initial.value.detach()))
    fed = tree_map(lambda x: x.detach(), likelihood.fed)
    again = Prepared(moves, likelihood.with_leaf(value, fed), prepared.lengths)
    data = Sequences(observed=torch.ones(shape, dtype=torch.bool, device=value.device), lengths=prepared.lengths)
    with torch.enable_grad():
        log_prob = run(model, method, data, belief, ("log_prob",), prepared=again).log_prob
        assert log_prob is not None
        possible = log_prob.isfinite()
        total = torch.where(possible, log_prob if weights is None else log_prob * weights, 0.0).sum()
        wrt = [value, *(x for x in free if x.requires_grad)]
        gradients = list(torch.autograd.grad(total, wrt, allow_unused=True, materialize_grads=True))
    posterior = likelihood.posterior(gradients.pop(0))
    counts = [x.detach() * gradients.pop(0) if x.requires_grad else x for x in free]
    return posterior, replace_leaves(prepared.moves.tables, counts), log_prob.detach()
