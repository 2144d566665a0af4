"""A method turns a belief about z_{t-1} into one about z_t; one scan runs them all, and kernels replace it."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from statespan.belief import select, with_fed
from statespan.errors import StatespanError
from statespan.sequences import Sequences
from statespan.shapes import Float
from statespan.tree import Tree, stack, tree_map, unstack

if TYPE_CHECKING:
    import statespan.model


class Step(NamedTuple):
    """One step: p(z_t | y_<t), p(z_t | y_<=t), and log p(y_t | y_<t) (B,), or None where it is scored in bulk."""

    predicted: Any
    filtered: Any
    log_prob: Tensor | None


class Prepared(NamedTuple):
    """All the work that needs no belief, for all t at once.

    Args:
        moves: what acts on the move into t; depends on the inputs u alone.
        likelihoods: what y_t says of z_t, and what y_t feeds to the next move.
        lengths: (B,) integers, or None where every sequence fills the whole window.
        weights: (B,) how many times each sequence counts in what is expected; None: once.
    """

    moves: Tree
    likelihoods: Tree
    lengths: Tensor | None
    weights: Tensor | None = None


class Trace(NamedTuple):
    """What a run kept: beliefs stacked (T, B, ...), the belief at each sequence's own end, log_prob (T, B), paths.

    `paths` is a pair, state paths (T, B, k) with -1 past each end and their log-probabilities (B, k), best first.
    `posterior` (T, B, K) and the expected `counts` of moves, a tree like the tables, are for kernels that have a
    shorter way to them than the gradient; the scan has none. So are `smoothed`, beliefs (T, B, ...), and `pairs`,
    the covariances of neighbouring states (T - 1, B, D, D); and, where steps share N observations, the posterior added
    up by them, `sums` (N, K), and that of the `first` states (B, K).
    """

    predicted: Any = None
    filtered: Any = None
    last: Any = None
    log_prob: Tensor | None = None
    paths: tuple[Tensor, Tensor] | None = None
    posterior: Tensor | None = None
    counts: Tree = None
    smoothed: Any = None
    pairs: Tensor | None = None
    sums: Tensor | None = None
    first: Tensor | None = None


class Hindsight(NamedTuple):
    """Smoothed beliefs (T, B, ...), log p(y_t | y_<t) (T, B), and the joint law of neighbours if it was asked for."""

    smoothed: Any
    log_prob: Tensor
    pairs: Tensor | None = None


class Statistics(NamedTuple):
    """Expected statistics of the three parts, in their own forms; None for a part whose M-step has no closed form."""

    initial: Tree
    transition: Tree
    emission: Tree


class Expected(NamedTuple):
    """What an E-step gives: log p(y_t | y_<t), (T, B), each sequence once, and sums over the batch by its weights."""

    log_prob: Tensor
    statistics: Statistics


def closed_parts(model: "statespan.model.StateSpace") -> tuple[bool, bool, bool]:
    """Which parts have a closed-form M-step: they know one, and share no parameter with another part.

    An initial may share the transition's if it does the M-step of both (`together`).
    """
    owned = [{id(p) for p in part.parameters()} for part in model.parts]
    together = getattr(model.initial, "together", False)
    users = Counter(p for group in ([owned[0] | owned[1], owned[2]] if together else owned) for p in group)
    knows = [hasattr(part, "maximize") for part in model.parts]
    knows[0] = knows[0] or together
    each = [k and all(users[p] == 1 for p in own) for k, own in zip(knows, owned, strict=True)]
    return each[0], each[1], each[2]


class Method(ABC):
    """An inference method. Final classes below `methods/` implement it; each acts, none is configuration.

    `accepts` names the interface it needs of each part: (initial, transition, emission).
    `scores_from` names the fields of `Trace` that `score` and `paths` read, `watches` those that `mend` does.
    `takes_labels` says whether there are states that `states=` can name, `takes_powers` whether single steps may have
    weights.

    `docs/design.md` shows a whole one.

    Source:
        Cappe, Moulines and Ryden, Inference in Hidden Markov Models 2005, chapter 3 (predict and update).

    Example:
        >>> import statespan as ss
        >>> [need.__name__ for need in ss.Kalman.accepts]
        ['GaussianInitial', 'LinearPart', 'LinearPart']
    """

    accepts: ClassVar[tuple[type, type, type]]
    scores_from: ClassVar[frozenset[str]] = frozenset()
    watches: ClassVar[frozenset[str]] = frozenset()
    takes_labels: ClassVar[bool] = True
    takes_powers: ClassVar[bool] = True

    @abstractmethod
    def constants(self, model: "statespan.model.StateSpace") -> Tree:
        """Work on parameters alone (the softmax of a table): once a stream, a sampler, an evaluation."""

    @abstractmethod
    def prepare(self, model: "statespan.model.StateSpace", constants: Tree, data: Sequences) -> tuple[Tree, Tree]:
        """`moves, likelihoods`: all work that needs no belief, for all t at once."""

    @abstractmethod
    def init(self, model: "statespan.model.StateSpace", move: Tree, batch: int) -> Any:
        """p(z_1 | u_1)."""

    @abstractmethod
    def predict(self, model: "statespan.model.StateSpace", belief: Any, move: Tree) -> Any:
        """p(z_t | y_<t) from p(z_{t-1} | y_<t)."""

    @abstractmethod
    def update(self, model: "statespan.model.StateSpace", belief: Any, likelihood: Tree) -> tuple[Any, Tensor | None]:
        """p(z_t | y_<=t) and log p(y_t | y_<t) (B,), or None when `score` gives it in bulk."""

    @abstractmethod
    def smooth(
        self, model: "statespan.model.StateSpace", prepared: Prepared, belief: Any, shape: tuple[int, int]
    ) -> Any:
        """p(z_t | y_1..y_T), stacked (T, B, ...)."""

    def hindsight(
        self,
        model: "statespan.model.StateSpace",
        prepared: Prepared,
        belief: Any,
        data: Sequences,
        pairs: bool = False,
    ) -> Hindsight:
        """`smooth` with log p, by filtering once more: many a method has both at once.

        With `pairs` also the joint p(z_t, z_{t+1} | y) of neighbours, (T - 1, B, ...); of normal states a covariance.

        Raises:
            StatespanError: pairs, where the method has none.
        """
        if pairs:
            raise StatespanError(f"{type(self).__name__} gives no joint law of neighbours; smooth without pairs")
        smoothed = self.smooth(model, prepared, belief, data.shape)
        log_prob = run(model, self, data, belief, prepared=prepared).log_prob
        assert log_prob is not None
        return Hindsight(smoothed, log_prob)

    @abstractmethod
    def emit(self, model: "statespan.model.StateSpace", constants: Tree, belief: Any, u: Tree) -> Any:
        """The distribution of y_t under a belief about z_t: exact if it can be had, else of a drawn state."""

    @abstractmethod
    def fill(self, model: "statespan.model.StateSpace", constants: Tree, data: Sequences) -> Tensor:
        """The posterior mean or mode of every observation, (T, B, ...)."""

    @abstractmethod
    def decode(
        self, model: "statespan.model.StateSpace", constants: Tree, data: Sequences, k: int
    ) -> tuple[Tensor, Tensor | None]:
        """The k likeliest paths (T, B, k, ...) and their joint log-probabilities (B, k), where the method has them."""

    @abstractmethod
    def exact(self, model: "statespan.model.StateSpace") -> bool:
        """Whether this method's answers are exact for this model, gaps included."""

    def exact_ahead(self, model: "statespan.model.StateSpace") -> bool:
        """Whether a forecast's distribution is exact too, however far ahead."""
        return self.exact(model)

    def foretells(self, model: "statespan.model.StateSpace") -> bool:
        """Whether a forecast's distribution is by formula, exact or nearly so; else it is that of sampled futures."""
        return self.exact_ahead(model)

    def resume(self, model: "statespan.model.StateSpace", data: Sequences, belief: Any) -> Sequences:
        """The data with what the belief carried in remembers of the observations before them."""
        return data

    def public(self, model: "statespan.model.StateSpace", belief: Any) -> Any:
        """The belief in the terms of the user's states."""
        return belief.state

    def breadth(self, model: "statespan.model.StateSpace", data: Sequences) -> int:
        """About how many numbers a step of one sequence takes, so that batches can be cut to fit a cache."""
        return 1

    def expect(self, model: "statespan.model.StateSpace", constants: Tree, data: Sequences) -> "Expected":
        """The E-step: log p, and the expected statistics of each part that has a closed-form M-step.

        Raises:
            StatespanError: the method has none.
        """
        raise StatespanError(f"{type(self).__name__} has no expectation step; fit by SGD")

    def step(self, model: "statespan.model.StateSpace", belief: Any, move: Tree, likelihood: Tree, batch: int) -> Step:
        """Predict, then update; a look-ahead method replaces the pair."""
        predicted = self.init(model, move, batch) if belief is None else self.predict(model, belief, move)
        return Step(predicted, *self.update(model, predicted, likelihood))

    def score(
        self, model: "statespan.model.StateSpace", prepared: Prepared, trace: Trace, data: Sequences
    ) -> Float[Tensor, "T B"]:
        """Log p(y_t | y_<t), (T, B) float64: what `update` gave, or in bulk where it gave None."""
        assert trace.log_prob is not None
        return trace.log_prob

    def mend(
        self, model: "statespan.model.StateSpace", prepared: Prepared, trace: Trace, belief: Any, kernel: bool
    ) -> Trace:
        """The trace with sequences made again that the fast way cannot do; as it is where there are none."""
        return trace

    def careful(
        self, model: "statespan.model.StateSpace", prepared: Prepared, belief: Any, log_prob: Tensor | None
    ) -> "tuple[Method, Prepared, Any]":
        """The method for these sequences, what it reads, the belief carried in: itself, where it can do them all."""
        return self, prepared, belief

    def paths(self, prepared: Prepared, trace: Trace) -> tuple[Tensor, Tensor]:
        """The best paths (T, B, k), -1 past each end, and their scores (B, k), where the method keeps pointers back.

        Raises:
            StatespanError: it keeps none.
        """
        raise StatespanError(f"{type(self).__name__} keeps no paths; call decode")

    def draw(self, belief: Any) -> Any:
        """A belief sure of one state, drawn from `belief`; a deterministic state is its own draw."""
        return belief.draw()

    def backward(self, model: "statespan.model.StateSpace", belief: Any, move: Tree, later: Any) -> Any:
        """From the filtered belief about z_t and any belief about z_{t+1} (smoothed, or one drawn state) to z_t's.

        Raises:
            StatespanError: the method cannot go back.
        """
        raise StatespanError(f"{type(self).__name__} has no backward pass; it draws no posterior paths")


def lacks(method: type[Method], model: "statespan.model.StateSpace") -> list[str]:
    """What the parts of `model` lack for `method`, in words; empty when it accepts them."""
    parts = zip(("initial", "transition", "emission"), method.accepts, strict=True)
    return [
        f"its {name} {type(getattr(model, name)).__name__} is no {need.__name__}"
        for name, need in parts
        if not isinstance(getattr(model, name), need)
    ]


# ---------------------------------------------------------------------------------------------- kernels


class Kernel(NamedTuple):
    """A whole-sequence replacement of the scan: its function, what of `Trace` it can keep, where it runs."""

    run: Callable[..., Trace | None]
    keeps: frozenset[str]
    devices: frozenset[str]


_KERNELS: dict[tuple[type, type], Kernel] = {}


def register(
    method: type[Method], operator: type, keeps: Collection[str], devices: Collection[str] = ("cpu",)
) -> Callable:
    """Register a kernel for a method and a transition's `operator` type; the most specific pair wins.

    The function gets (model, method, prepared, T, B, belief, keep) and returns a `Trace` of the same numbers and
    gradients as the scan, or None to decline a case it does not cover.

    Args:
        method: the method's class.
        operator: the class of `transition.operator` (a transition that has none is its own operator).
        keeps: the fields of `Trace` it can give; where more is asked for, the scan runs. With log_prob it gives
            what the method's `score` reads (`scores_from`), with paths itself the paths.
        devices: device types it runs on.

    Example:
        >>> import statespan as ss
        >>> class Ring: ...  # a transition
        >>> @ss.register(ss.Forward, Ring, keeps=("last", "log_prob"))
        ... def around(model, method, prepared, length, batch, belief, keep):
        ...     return None  # declined: the scan runs
        >>> (ss.Forward, Ring) in ss.registered()
        True
    """

    def add(function: Callable) -> Callable:
        _KERNELS[method, operator] = Kernel(function, frozenset(keeps), frozenset(devices))
        return function

    return add


def registered() -> dict[tuple[type, type], Kernel]:
    """Every registered kernel by (method, operator).

    Example:
        >>> import statespan as ss
        >>> sorted(name.__name__ for method, name in registered() if method is ss.Recurrent)
        ['GRUCell', 'LSTMCell', 'LinearMove']
    """
    return dict(_KERNELS)


def find_kernel(model: "statespan.model.StateSpace", method: Method) -> Kernel | None:
    """The most specific kernel registered for this method and this transition's operator, if any."""
    operator = type(getattr(model.transition, "operator", model.transition))
    for base in operator.__mro__:
        if (type(method), base) in _KERNELS:
            return _KERNELS[type(method), base]
    return None


# ------------------------------------------------------------------------------------------------- scan


def alias(belief: Any) -> Any:
    """A view of the state's tensors, so that a gradient at the seam between two steps has one meaning."""
    return with_fed(tree_map(_view, belief.state), belief.fed) if torch.is_grad_enabled() else belief


def _view(x: Tensor) -> Tensor:
    return x.view_as(x)


def scan(
    model: "statespan.model.StateSpace", method: Method, prepared: Prepared, length: int, batch: int, belief: Any = None
) -> Iterator[Step]:
    """Run the recursion, one `Step` at a time; the caller decides what is kept.

    Args:
        model: the state space.
        method: the method.
        prepared: what `method.prepare` returned.
        length: T.
        batch: B.
        belief: the belief carried in, about the step before the first; None starts from the initial part.

    Example:
        >>> import statespan as ss
        >>> model = ss.hmm(states=2, emission=ss.Categorical(3), seed=0)
        >>> data = ss.Sequences(y=torch.tensor([[0, 1], [2, 2], [1, 0]]))  # (T, B)
        >>> prepared = prepare(model, ss.Forward(), data)
        >>> [step.log_prob.shape for step in ss.scan(model, ss.Forward(), prepared, *data.shape)]
        [torch.Size([2]), torch.Size([2]), torch.Size([2])]
    """
    moves, likelihoods = unstack(prepared.moves, length), unstack(prepared.likelihoods, length)
    for move, likelihood in zip(moves, likelihoods, strict=True):
        step = method.step(model, belief, move, likelihood, batch)
        step = step._replace(filtered=alias(step.filtered))
        belief = step.filtered
        yield step


def run(
    model: "statespan.model.StateSpace",
    method: Method,
    data: Sequences,
    belief: Any = None,
    keep: Collection[str] = ("log_prob",),
    constants: Tree = None,
    prepared: Prepared | None = None,
    kernel: bool = True,
) -> Trace:
    """Filter a window of sequences by the fastest way registered for it.

    Args:
        model: the state space.
        method: the method.
        data: the sequences.
        belief: the belief carried in; None starts from the initial part.
        keep: which fields of `Trace` to keep: predicted, filtered, last, log_prob, paths.
        constants: what `method.constants` returned, when it is used again and again.
        prepared: what `prepare` returned, when the caller needs its leaves (for gradients).
        kernel: False forces the scan.

    Returns:
        A `Trace` with the fields asked for; log_prob is (T, B) float64, zero past each sequence's end.

    Example:
        >>> import statespan as ss
        >>> model = ss.hmm(states=2, emission=ss.Categorical(3), seed=0)
        >>> data = ss.Sequences(y=torch.tensor([[0, 1], [2, 2], [1, 0]]))  # (T, B)
        >>> trace = ss.run(model, ss.Forward(), data, keep=("filtered", "log_prob"))
        >>> trace.filtered.probs.shape, trace.log_prob.shape
        (torch.Size([3, 2, 2]), torch.Size([3, 2]))
    """
    length, batch = data.shape
    if prepared is None:
        prepared = prepare(model, method, data, constants, belief)
    keep = frozenset(keep)
    need = keep | method.watches | (method.scores_from if keep & {"log_prob", "paths"} else frozenset())
    trace = fastest(model, method, prepared, data.device, (length, batch), belief, keep, need, kernel)
    trace = method.mend(model, prepared, trace, belief, kernel)
    if "log_prob" in keep:
        log_prob = method.score(model, prepared, trace, data)
        if data.lengths is not None:
            log_prob = torch.where(data.within, log_prob, 0.0)
        trace = trace._replace(log_prob=log_prob)
    if "paths" in keep and trace.paths is None:
        trace = trace._replace(paths=method.paths(prepared, trace))
    return Trace(**{name: getattr(trace, name) for name in keep})


def fastest(
    model: "statespan.model.StateSpace",
    method: Method,
    prepared: Prepared,
    device: torch.device,
    shape: tuple[int, int],
    belief: Any,
    keep: frozenset[str],
    need: frozenset[str],
    kernel: bool = True,
) -> Trace:
    """By the registered kernel that can keep what is asked for, else by the scan."""
    found = find_kernel(model, method) if kernel else None
    if found and keep <= found.keeps and device.type in found.devices:
        trace = found.run(model, method, prepared, *shape, belief, need)
        if trace is not None:
            return trace
    return _run_scan(model, method, prepared, *shape, belief, need)


def weighted(log_prob: Float[Tensor, "T B"], weights: Tensor | None) -> Float[Tensor, " B"]:
    """The log-probability of each sequence, as often as it counts; one that does not count at all may be impossible."""
    each = log_prob.sum(0)
    return each if weights is None else torch.where(weights > 0, each, 0.0) * weights


def total(
    log_prob: Float[Tensor, "T B"], sequences: Tensor | None = None, weights: Tensor | None = None
) -> Float[Tensor, ""]:
    """Sum a log-probability over everything, refusing minus infinity by name.

    Args:
        log_prob: (T, B).
        sequences: (B,) what each is called, where they are not the first B.
        weights: (B,) how many times each counts; None: once.
    """
    each = weighted(log_prob, weights)
    if bool(each.isneginf().any()):
        index = int(each.isneginf().nonzero()[0])
        step = int(log_prob[:, index].isneginf().nonzero()[0])
        name = index if sequences is None else int(sequences[index])
        raise StatespanError(
            f"sequence {name}, step {step}: the model gives this observation probability zero; "
            "remove it or start from parameters that allow it"
        )
    return each.sum()


def prepare(
    model: "statespan.model.StateSpace", method: Method, data: Sequences, constants: Tree = None, belief: Any = None
) -> Prepared:
    """`method.prepare` with the lengths beside it, and before the data what `belief` remembers.

    Raises:
        StatespanError: states are labelled, or single steps weighted, and the method knows no such thing.
    """
    if data.states is not None and not method.takes_labels:
        raise StatespanError(f"{type(method).__name__} takes no labelled states; leave states= out")
    if data.powers is not None and not method.takes_powers:
        raise StatespanError(f"{type(method).__name__} takes no weights of single steps; weight whole sequences")
    constants = method.constants(model) if constants is None else constants
    data = data if belief is None else method.resume(model, data, belief)
    return Prepared(*method.prepare(model, constants, data), data.lengths)


def in_hindsight(model: "statespan.model.StateSpace", method: Method, data: Sequences, constants: Tree = None) -> Any:
    """The smoothed beliefs of whole sequences, (T, B, ...)."""
    return method.smooth(model, prepare(model, method, data, constants), None, data.shape)


def _run_scan(
    model: "statespan.model.StateSpace",
    method: Method,
    prepared: Prepared,
    length: int,
    batch: int,
    belief: Any,
    need: frozenset[str],
) -> Trace:
    """The scan, keeping what was asked for."""
    predicted, filtered, log_prob = [], [], []
    ends_differ = prepared.lengths is not None and "last" in need
    for step in scan(model, method, prepared, length, batch, belief):
        belief = step.filtered
        if "predicted" in need:
            predicted.append(step.predicted)
        if "filtered" in need or ends_differ:
            filtered.append(step.filtered)
        if "log_prob" in need:
            log_prob.append(step.log_prob)
    kept = stack(filtered) if filtered else None
    last = belief if prepared.lengths is None or kept is None else select(kept, prepared.lengths - 1)
    return Trace(
        predicted=stack(predicted) if predicted else None,
        filtered=kept if "filtered" in need else None,
        last=last if "last" in need else None,
        log_prob=torch.stack(log_prob) if log_prob and log_prob[0] is not None else None,
    )


def smooth_backward(
    model: "statespan.model.StateSpace", method: Method, prepared: Prepared, belief: Any, shape: tuple[int, int]
) -> Any:
    """Smooth by `method.backward`: filter forwards, then one short loop backwards.

    At each sequence's own last step the smoothed belief is the filtered one.
    """
    return stack(list(walk_back(model, method, prepared, belief, shape, lambda later: later))[::-1])


def walk_back(
    model: "statespan.model.StateSpace",
    method: Method,
    prepared: Prepared,
    belief: Any,
    shape: tuple[int, int],
    choose: Callable[[Any], Any],
) -> Iterator[Any]:
    """Yield beliefs about z_T, ..., z_1 given everything; `choose` may replace each (by a draw, for sampled paths)."""
    length, batch = shape
    steps = list(scan(model, method, prepared, length, batch, belief))
    each = None if steps[0].log_prob is None else torch.stack([s.log_prob for s in steps if s.log_prob is not None])
    other, prepared, belief = method.careful(model, prepared, belief, each)
    if other is not method:
        method, steps = other, list(scan(model, other, prepared, length, batch, belief))
    filtered = [step.filtered for step in steps]
    moves = unstack(prepared.moves, length)
    later = choose(filtered[-1])
    yield later
    for t in range(length - 2, -1, -1):
        earlier = method.backward(model, filtered[t], moves[t + 1], later)
        if prepared.lengths is not None:
            inside = prepared.lengths - 1 > t
            earlier = tree_map(
                lambda a, b, inside=inside: torch.where(inside.view(-1, *[1] * (a.dim() - 1)), a, b),
                earlier,
                filtered[t],
            )
        later = choose(earlier)
        yield later
