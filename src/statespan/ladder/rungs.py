"""The rungs: how the state is conditioned on the symbol just seen, how it moves, what is fed, how it scores.

Equation numbers are those of Buys, Bisk and Choi, "Bridging HMMs and RNNs through Architectural Transformations". A
rung is four choices; a choice says what kind of state it needs and yields, so that any legal combination can be built
by name. Where condition, move and score are all exact the rung is a finite state space and runs the forward
algorithm; every other rung is a recurrent cell.
"""

import contextlib
import difflib
import fnmatch
import itertools
from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import nn

from statespan.errors import StatespanError
from statespan.families.hidden_markov import hmm
from statespan.model import StateSpace
from statespan.part import seeded
from statespan.parts.cells import (
    Bayes,
    Cell,
    Forget,
    Gated,
    Jordan,
    Keep,
    LateSigmoid,
    Multiplicative,
    Nonlinear,
    Product,
)
from statespan.parts.embedded import EmbeddedCategorical, EmbeddedMatrix, StateVectors
from statespan.parts.emissions import Categorical
from statespan.parts.finite import Dense, FedTransition, RowsAddition, RowsGate, RowsTensor
from statespan.parts.initial import ConstantStart
from statespan.parts.low_rank import LowRank
from statespan.parts.scores import Mixture, Softmax, Softmaxes
from statespan.parts.state_dropout import StateDropout
from statespan.parts.symbols import RawFeature, SoftmaxFeature, Table


class Kind(IntEnum):
    """What a state is; each kind serves where a lower one is needed."""

    PAIR = 0
    REAL = 1
    POSITIVE = 2
    DISTRIBUTION = 3


class Choice(NamedTuple):
    """One of the four choices of a rung.

    Args:
        name: how it is asked for.
        make: from the width and the table to the part.
        words: what it does, for reports.
        needs: the kind of state it takes.
        yields: the kind it gives; None gives back the kind it took.
        fed: whether it uses what is fed.
        exact: whether it is a step of exact inference in a finite state space.
        sizes: how many tensors of the width the state has.
        dropped: whether dropout may act on it: on its input, or on the states of a move of an exact rung.
        apart: whether the embedding may have another width than the state.
        embedded: whether its part is made of state vectors, and so takes them.
    """

    name: str
    make: Callable[..., Any]
    words: str
    needs: Kind = Kind.PAIR
    yields: Kind | None = None
    fed: bool = False
    exact: bool = False
    sizes: int = 1
    dropped: bool = False
    apart: bool = False
    embedded: bool = False


def _of_width(part: Callable[..., nn.Module], **options: Any) -> Callable[..., nn.Module]:
    """A part made from the width alone."""
    return lambda width, table: part(width, **options)


def _of_table(part: Callable[..., nn.Module], **options: Any) -> Callable[..., nn.Module]:
    """A part made from the table alone."""
    return lambda width, table, **more: part(table, **options, **more)


R, P, D = Kind.REAL, Kind.POSITIVE, Kind.DISTRIBUTION

BAYES = Choice("bayes", _of_table(Bayes), "Bayes", P, D, exact=True)
KEEP = Choice("keep", lambda width, table: Keep(), "none", apart=True)
PRODUCT = Choice("product", lambda width, table: Product(), "product with e", R, R, fed=True)
CONDITIONS = {c.name: c for c in (BAYES, KEEP, PRODUCT)}

ROWS = Choice("rows", _of_width(Dense), "rows of a stochastic matrix", D, D, exact=True, dropped=True, apart=True)
ROWS_LOW_RANK = Choice(
    "rows-low-rank",
    lambda width, table: LowRank(width, rank=max(1, width // 8)),
    "rows of a stochastic matrix of rank m / 8",
    *(D, D),
    exact=True,
    apart=True,
)
ROWS_EMBEDDED = Choice(
    "rows-embedded",
    lambda width, table, **more: EmbeddedMatrix(**more),
    "rows of a stochastic matrix made of state vectors",
    *(D, D),
    exact=True,
    apart=True,
    embedded=True,
)
ROWS_TENSOR = Choice("rows-tensor", _of_width(RowsTensor), "rows, made by a tensor times e", D, D, True, True)
ROWS_ADD = Choice("rows-add", _of_width(RowsAddition), "rows, U e added to the logits", D, D, True, True)
ROWS_GATE = Choice("rows-gate", _of_width(RowsGate), "rows, logits times sigmoid(U e + b)", D, D, True, True)
SOFTMAX_MOVE = Choice("softmax", _of_width(Nonlinear, activation="softmax"), "softmax(W s)", R, D)
SOFTMAX_ADD = Choice(
    "softmax-add", _of_width(Nonlinear, fed=True, activation="softmax"), "softmax(W c + U e)", R, D, True
)
SIGMOID = Choice("sigmoid", _of_width(Nonlinear), "sigmoid(W s)", R, P)
SIGMOID_ADD = Choice(
    "sigmoid-add",
    lambda width, table: Nonlinear(width, fed=True, inputs=table.width),
    "sigmoid(W c + U e)",
    *(R, P, True),
    apart=True,
)
SIGMOID_TIMES = Choice("sigmoid-times", _of_width(Multiplicative), "sigmoid((W c)(U e))", R, P, True)
LATE_SIGMOID = Choice("late-sigmoid", _of_width(LateSigmoid), "W sigmoid(c) + U e", R, R, True)
JORDAN = Choice("jordan", _of_width(Jordan), "sigmoid(U (e + c))", R, P, True)
FORGET = Choice("forget", _of_width(Forget), "U e", R, R, True)
GRU = Choice("gru", lambda width, table: Gated(nn.GRUCell(table.width, width)), "GRU cell", R, R, True, apart=True)
LSTM = Choice(
    "lstm",
    lambda width, table: Gated(nn.LSTMCell(table.width, width)),
    "LSTM cell",
    Kind.PAIR,
    Kind.PAIR,
    True,
    sizes=2,
    apart=True,
)
MOVES = {
    c.name: c
    for c in (
        *(ROWS, ROWS_LOW_RANK, ROWS_EMBEDDED, ROWS_TENSOR, ROWS_ADD, ROWS_GATE, SOFTMAX_MOVE, SOFTMAX_ADD),
        *(SIGMOID, SIGMOID_ADD, SIGMOID_TIMES, LATE_SIGMOID, JORDAN, FORGET, GRU, LSTM),
    )
}

NOTHING = Choice("none", lambda width, table: None, "none", apart=True)
NORMALISED = Choice("softmax", _of_table(SoftmaxFeature), "softmax", fed=True, dropped=True)
RAW = Choice("raw", _of_table(RawFeature), "raw", fed=True, dropped=True, apart=True)
FEEDS = {c.name: c for c in (NOTHING, NORMALISED, RAW)}

MIXTURE = Choice("mixture", _of_table(Mixture), "mixture", D, exact=True)
MIXTURE_EMBEDDED = Choice(
    "mixture-embedded",
    lambda width, table, **more: EmbeddedCategorical(table, **more),
    "mixture of what state vectors emit",
    D,
    exact=True,
    apart=True,
    embedded=True,
)
MIXTURE_NORMALISED = Choice("mixture-normalised", _of_table(Mixture, normalise=True), "mixture over normalised c", P)
SOFTMAX = Choice(
    "softmax",
    lambda width, table, **more: Softmax(table, width=width, **more),
    "softmax(E c)",
    dropped=True,
    apart=True,
)
SOFTMAX_SOFTMAX = Choice(
    "softmax-softmax", _of_table(Softmax, normalise=True), "softmax(E softmax(c))", R, dropped=True
)
SOFTMAXES = Choice(
    "softmaxes",
    lambda width, table, **more: Softmaxes(table, width=width, **more),
    "four softmaxes(E tanh(P c)), mixed by softmax(Q c)",
    dropped=True,
    apart=True,
)
SCORES = {c.name: c for c in (MIXTURE, MIXTURE_EMBEDDED, MIXTURE_NORMALISED, SOFTMAX, SOFTMAX_SOFTMAX, SOFTMAXES)}


class Rung(NamedTuple):
    """Four choices, the paper's equations, and its dev perplexity on PTB at 10M parameters (Table 1)."""

    condition: Choice
    move: Choice
    feed: Choice
    score: Choice
    equations: str = ""
    paper: float | None = None

    @property
    def exact(self) -> bool:
        """Whether it is a finite state space, with exact inference."""
        return self.condition.exact and self.move.exact and self.score.exact

    @property
    def simplex(self) -> bool:
        """Whether the state, once the symbol is known, is a distribution."""
        return (self.condition.yields or self.move.yields) == Kind.DISTRIBUTION

    @property
    def method(self) -> str:
        """The name of the method that runs it."""
        return "Forward" if self.exact else "Recurrent"


LADDER: dict[str, Rung] = {
    "hmm": Rung(BAYES, ROWS, NOTHING, MIXTURE, "14-18", 284.59),
    "hmm/tensor": Rung(BAYES, ROWS_TENSOR, NORMALISED, MIXTURE, "22", 288.15),
    "hmm/tensor-raw": Rung(BAYES, ROWS_TENSOR, RAW, MIXTURE, "22 with 24"),
    "hmm/addition": Rung(BAYES, ROWS_ADD, NORMALISED, MIXTURE, "23", 288.62),
    "hmm/addition-raw": Rung(BAYES, ROWS_ADD, RAW, MIXTURE, "23 with 24"),
    "hmm/gated": Rung(BAYES, ROWS_GATE, RAW, MIXTURE, "24-26", 243.51),
    "hmm/late-transition": Rung(BAYES, SOFTMAX_MOVE, NOTHING, MIXTURE, "27", 284.59),
    "hmm/late-emission": Rung(BAYES, ROWS, NOTHING, SOFTMAX, "28", 287.00),
    "hmm/late-both": Rung(BAYES, SOFTMAX_MOVE, NOTHING, SOFTMAX, "27, 28", 293.72),
    "hmm/sigmoid": Rung(BAYES, SIGMOID, NOTHING, MIXTURE_NORMALISED, "29, 30", 240.91),
    "hmm/sigmoid+late-emission": Rung(BAYES, SIGMOID, NOTHING, SOFTMAX, "29, 28", 142.31),
    "elman/softmax+hmm-emission": Rung(KEEP, SOFTMAX_ADD, RAW, MIXTURE, "31, 32", 313.84),
    "elman/hmm-emission": Rung(KEEP, SIGMOID_ADD, RAW, MIXTURE_NORMALISED, "33, 34", 312.63),
    "elman/softmax": Rung(KEEP, SOFTMAX_ADD, RAW, SOFTMAX, "35", 207.95),
    "elman/normalise-before-emit": Rung(KEEP, LATE_SIGMOID, RAW, SOFTMAX_SOFTMAX, "36, 37", 225.36),
    "elman/multiplicative-one-matrix": Rung(PRODUCT, SIGMOID, RAW, SOFTMAX, "39", 107.45),
    "elman/multiplicative": Rung(KEEP, SIGMOID_TIMES, RAW, SOFTMAX, "38", 100.71),
    "elman": Rung(KEEP, SIGMOID_ADD, RAW, SOFTMAX, "19-21", 87.27),
    "bigram": Rung(KEEP, FORGET, RAW, SOFTMAX, "section 5.2", 177.0),
    "jordan": Rung(KEEP, JORDAN, RAW, SOFTMAX),
    "gru": Rung(KEEP, GRU, RAW, SOFTMAX),
    "lstm": Rung(KEEP, LSTM, RAW, SOFTMAX, "", 80.61),
}
"""Every rung by name: its four choices, its equations, the paper's figure."""


def find(name: str) -> Rung:
    """The rung of this name, or the one spelled out as `condition/move/feed/score`.

    Args:
        name: a key of `LADDER`, or four choices such as "bayes/sigmoid/none/softmax".

    Raises:
        StatespanError: an unknown name (the nearest is suggested), or choices that clash (the two are named).

    Example:
        >>> find("bayes/rows/none/mixture").exact
        True
    """
    if name in LADDER:
        return LADDER[name]
    pieces = name.split("/")
    if len(pieces) != 4:
        near = difflib.get_close_matches(name, LADDER, 1, 0.3)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise StatespanError(
            f"unknown rung {name!r}; {hint}Known: {', '.join(LADDER)}, or condition/move/feed/score spelled out"
        )
    tables = (("condition", CONDITIONS), ("move", MOVES), ("feed", FEEDS), ("score", SCORES))
    choices = []
    for piece, (what, table) in zip(pieces, tables, strict=True):
        if piece not in table:
            near = difflib.get_close_matches(piece, table, 1, 0.3)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise StatespanError(f"rung {name!r}: unknown {what} {piece!r}; {hint}Known: {', '.join(table)}")
        choices.append(table[piece])
    return check(name, Rung(*choices))


def legal(pattern: str) -> list[str]:
    """The rungs that a pattern names: one by its name, or every legal product of choices that matches.

    Args:
        pattern: as for `find`; `*` stands for any choice.

    Raises:
        StatespanError: as `find`; or nothing legal matches.

    Example:
        >>> legal("bayes/rows*/none/mixture")
        ['bayes/rows/none/mixture', 'bayes/rows-low-rank/none/mixture', 'bayes/rows-embedded/none/mixture']
    """
    if "*" not in pattern:
        find(pattern)
        return [pattern]
    found = []
    for choices in itertools.product(CONDITIONS, MOVES, FEEDS, SCORES):
        name = "/".join(choices)
        if fnmatch.fnmatchcase(name, pattern):
            with contextlib.suppress(StatespanError):
                find(name)
                found.append(name)
    if not found:
        raise StatespanError(f"no legal rung is like {pattern!r}; write condition/move/feed/score with * for any")
    return found


def check(name: str, rung: Rung) -> Rung:
    """The rung, if its choices go together."""
    condition, move, feed, score = rung[:4]

    def clash(what: str) -> StatespanError:
        return StatespanError(f"rung {name!r}: {what}")

    moved = move.yields if move.yields is not None else Kind.REAL
    if moved < condition.needs:
        raise clash(
            f"condition {condition.name} needs a {condition.needs.name.lower()} state, and move {move.name} "
            f"yields a {moved.name.lower()} one"
        )
    conditioned = moved if condition.yields is None else condition.yields
    if conditioned < move.needs:
        raise clash(
            f"move {move.name} needs a {move.needs.name.lower()} state, and condition {condition.name} "
            f"yields a {conditioned.name.lower()} one"
        )
    if moved < score.needs:
        raise clash(
            f"score {score.name} needs a {score.needs.name.lower()} state, and move {move.name} "
            f"yields a {moved.name.lower()} one"
        )
    if score.embedded and not rung.exact:
        inexact = next(f"{w} {c.name}" for w, c in (("condition", condition), ("move", move)) if not c.exact)
        raise clash(f"score {score.name} is of an exact chain, and {inexact} makes none")
    users = [f"{what} {c.name}" for what, c in (("condition", condition), ("move", move)) if c.fed]
    if users and not feed.fed:
        raise clash(f"{users[0]} uses what is fed, and feed none feeds nothing; choose raw or softmax")
    if feed.fed and not users:
        raise clash(f"feed {feed.name} is used by neither condition {condition.name} nor move {move.name}; choose none")
    return rung


def check_embedding(name: str, rung: Rung, width: int, embedding: int) -> None:
    """Refuse an embedding of another width than the state where a choice needs them equal.

    Raises:
        StatespanError: a choice that does; it is named.
    """
    if embedding < 0:
        raise StatespanError(f"embedding={embedding}: use 0 (the state's width) or more")
    tied = [
        f"{what} {c.name}"
        for what, c in zip(("condition", "move", "feed", "score"), rung[:4], strict=True)
        if not c.apart and not (rung.exact and c is rung.condition)
    ]
    if embedding not in (0, width) and tied:
        raise StatespanError(f"rung {name!r}: {tied[0]} needs an embedding as wide as the state; leave out embedding")


def build(
    rung: Rung,
    vocabulary: int,
    width: int,
    start: int = 0,
    tied: bool = True,
    dropout: tuple[float, float, float] = (0.0, 0.0, 0.0),
    spread: float = 0.1,
    uniform: float = 0.0,
    embedding: int = 0,
    variational: bool = False,
    classes: int = 1,
) -> StateSpace:
    """The model of a rung.

    Args:
        rung: the four choices.
        vocabulary: V.
        width: m, states or hidden units.
        start: the symbol fed before the first one.
        tied: one matrix in and out; otherwise the fed embedding is its own.
        dropout: probabilities at what is fed, in the state, and before the score.
        spread: standard deviation of the first embeddings.
        uniform: a, of U(-a, a) instead; 0 for normal ones.
        embedding: width of the embedding, 0 for that of the state.
        variational: whether dropout is the same over a window.
        classes: of words, each emitted by states of its own, where states are vectors.
    """
    columns = embedding or width
    table = Table(vocabulary, columns, bias=True, spread=spread, uniform=uniform)
    source = table if tied else Table(vocabulary, columns, spread=spread, uniform=uniform)
    kept = {"variational": True} if variational else {}
    at_input, in_state, at_output = dropout
    of_states: dict[str, Any] = {"classes": classes}
    if rung.move.embedded or rung.score.embedded:
        of_states["vectors"] = StateVectors(width, columns, spread)
    more = of_states | {"dropout": in_state if rung.exact else 0.0}
    move = rung.move.make(width, table, **(more if rung.move.embedded else {}))
    feature = rung.feed.make(width, source, **({"dropout": at_input, **kept} if rung.feed.dropped else {}))
    if rung.exact:
        if in_state and rung.move.dropped:
            move = StateDropout(move, in_state)
        transition = FedTransition(feature, move) if rung.feed.fed else move
        emission = rung.score.make(width, table, **of_states) if rung.score.embedded else Categorical(table=table)
        return hmm(emission=emission, transition=transition, dtype=torch.float32)
    moves_to_simplex = rung.move.yields == Kind.DISTRIBUTION
    condition = rung.condition.make(width, table)
    cell = Cell(condition, move, feature, vocabulary, rung.simplex, moves_to_simplex, in_state, **kept)
    uniform = rung.simplex or moves_to_simplex
    first = ConstantStart((width,) * rung.move.sizes, 1 / width if uniform else 0.0, start)
    score = rung.score.make(width, table, **({"dropout": at_output, **kept} if rung.score.dropped else {}))
    return StateSpace(first, cell, score)


def count(rung: Rung, vocabulary: int, width: int, tied: bool = True, embedding: int = 0) -> int:
    """How many parameters the rung has, a tied one counted once; nothing is allocated."""
    with torch.device("meta"):
        return sum(p.numel() for p in build(rung, vocabulary, width, tied=tied, embedding=embedding).parameters())


def check_classes(name: str, rung: Rung, width: int, classes: int) -> None:
    """Refuse classes of words where the score knows none, or that do not share the states evenly.

    Raises:
        StatespanError: so it is.
    """
    if classes < 1:
        raise StatespanError(f"classes={classes}: use 1 (every state emits every word) or more")
    if classes > 1 and not (rung.exact and rung.score.embedded):
        raise StatespanError(f"rung {name!r}: classes is for score {MIXTURE_EMBEDDED.name}; leave it out")
    if width % classes:
        raise StatespanError(f"rung {name!r}: {width} states cannot be shared evenly by {classes} classes of words")


def width_for(name: str, rung: Rung, vocabulary: int, parameters: int, tied: bool = True) -> int:
    """The largest width whose parameters stay within the budget.

    Raises:
        StatespanError: even width 1 needs more.
    """
    least = count(rung, vocabulary, 1, tied)
    if least > parameters:
        raise StatespanError(
            f"rung {name!r}: no width fits {parameters:,} parameters with {vocabulary:,} symbols; "
            f"width 1 has {least:,}: raise the budget or shrink the vocabulary"
        )
    low, high = 1, 2
    while count(rung, vocabulary, high, tied) <= parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(rung, vocabulary, middle, tied) <= parameters else (low, middle)
    return low


def ladder(
    name: str,
    vocabulary: int,
    width: int | None = None,
    parameters: int | None = None,
    start: int = 0,
    tied: bool = True,
    dropout: tuple[float, float, float] = (0.0, 0.0, 0.0),
    spread: float = 0.1,
    uniform: float = 0.0,
    embedding: int = 0,
    variational: bool = False,
    classes: int = 1,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    seed: int | None = None,
) -> StateSpace:
    r"""A rung of the ladder between the HMM and the LSTM.

    Biases: every symbol has one in the score (the d of the paper's equation 4, in an HMM's emission shared by all
    states), and every fed or non-linear move has one; the paper omits them "for clarity".

    Args:
        name: a key of `ss.LADDER`, or `condition/move/feed/score`.
        vocabulary: V, the number of symbols.
        width: m, the number of states or hidden units.
        parameters: instead of the width, a budget; the largest width within it is taken.
        start: the symbol fed before the first one; a language model's end of sentence.
        tied: whether one matrix embeds and scores.
        dropout: probabilities at what is fed, in the state, before the score; none acts on a probability, but where
            the state of an exact rung moves by one matrix, whole states are left out of a window.
        spread: standard deviation of the first embeddings.
        uniform: a, to draw the first embeddings from U(-a, a) instead; 0 draws normal ones.
        embedding: width of the embedding, where it is not that of the state: a tied softmax then scores a projection of
            the state. It goes with a width, and with moves that take the embedding through a matrix of their own.
        variational: whether dropout drops the same entries at every step of a window (Gal and Ghahramani 2016).
        classes: of words, each emitted by as many states of its own, where the score is mixture-embedded: a step then
            costs 1 / classes^2 of what it does. Which words they are, `model.emission.set_classes` says.
        dtype: float32 unless you say otherwise; log-probabilities are summed in float64.
        device: where the parameters lie.
        seed: makes the random start repeatable.

    Raises:
        StatespanError: an unknown or illegal name, a budget that no width meets.

    Source:
        Buys, Bisk and Choi; the equations of each rung stand in `ss.LADDER`.

    Example:
        >>> import statespan as ss
        >>> ss.ladder("hmm/sigmoid+late-emission", vocabulary=50, width=8).log_prob([3, 1, 4]).shape
        torch.Size([])
    """
    rung = find(name)
    if vocabulary < 1:
        raise StatespanError(f"vocabulary={vocabulary}: use at least one symbol")
    if not 0 <= start < vocabulary:
        raise StatespanError(f"start={start} is no symbol; choose one of 0..{vocabulary - 1}")
    if (width is None) == (parameters is None):
        raise StatespanError(f"rung {name!r} needs either width= or parameters=, not {'both' if width else 'neither'}")
    if width is None:
        width = width_for(name, rung, vocabulary, int(parameters or 0), tied)
    if width < 1:
        raise StatespanError(f"width={width}: use at least one")
    check_embedding(name, rung, width, embedding)
    check_classes(name, rung, width, classes)
    with seeded(seed):
        model = build(rung, vocabulary, width, start, tied, dropout, spread, uniform, embedding, variational, classes)
    return model.to(device=device, dtype=dtype or torch.float32)


def lstm(vocabulary: int, width: int | None = None, **options: Any) -> StateSpace:
    r"""An LSTM over symbols with a tied softmax; `ladder("lstm", ...)`.

    Args:
        vocabulary: V.
        width: m, hidden units and embedding width.
        **options: as for `ladder`.

    Source:
        Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000 (torch.nn.LSTMCell's equations).

    Example:
        >>> import statespan as ss
        >>> ss.lstm(vocabulary=20, width=8).log_prob([3, 1, 4]).shape
        torch.Size([])
    """
    return ladder("lstm", vocabulary, width, **options)


def gru(vocabulary: int, width: int | None = None, **options: Any) -> StateSpace:
    r"""A GRU over symbols with a tied softmax; `ladder("gru", ...)`.

    Args:
        vocabulary: V.
        width: m.
        **options: as for `ladder`.

    Source:
        Cho et al. 2014 (torch.nn.GRUCell's equations).

    Example:
        >>> import statespan as ss
        >>> ss.gru(vocabulary=20, width=8).log_prob([3, 1, 4]).shape
        torch.Size([])
    """
    return ladder("gru", vocabulary, width, **options)


def elman(vocabulary: int, width: int | None = None, **options: Any) -> StateSpace:
    r"""c_t = sigmoid(W c_{t-1} + U e_{t-1}), p = softmax(E c_t); `ladder("elman", ...)`.

    Args:
        vocabulary: V.
        width: m.
        **options: as for `ladder`.

    Source:
        Elman 1990; Buys, Bisk and Choi, equations 19 to 21.

    Example:
        >>> import statespan as ss
        >>> ss.elman(vocabulary=20, width=8).log_prob([3, 1, 4]).shape
        torch.Size([])
    """
    return ladder("elman", vocabulary, width, **options)


def jordan(vocabulary: int, width: int | None = None, **options: Any) -> StateSpace:
    r"""c_t = sigmoid(U (e_{t-1} + c_{t-1}) + b): the last output fed back; `ladder("jordan", ...)`.

    Args:
        vocabulary: V.
        width: m.
        **options: as for `ladder`.

    Source:
        Jordan 1986; see `statespan.parts.cells.Jordan` for the feedback.

    Example:
        >>> import statespan as ss
        >>> ss.jordan(vocabulary=20, width=8).log_prob([3, 1, 4]).shape
        torch.Size([])
    """
    return ladder("jordan", vocabulary, width, **options)
