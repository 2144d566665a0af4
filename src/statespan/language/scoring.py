"""How well a model predicts a text, with its state carried over or sentence by sentence.

A stream is a text laid out in B columns, (T, B) integers with -1 for padding.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from statespan.language.vocabulary import windows
from statespan.method import Method, Trace, run
from statespan.methods import method_for
from statespan.sequences import Sequences

LARGEST_EXPONENT = 700.0
"""A perplexity is cut off at exp of this, so that it stays a finite number."""


class Score(NamedTuple):
    """Sum of log-probabilities, and how many symbols were scored."""

    log_prob: float
    symbols: int

    @property
    def perplexity(self) -> float:
        """exp(-log p / n)."""
        return perplexity(-self.log_prob, self.symbols)


def perplexity(loss: float, count: int) -> float:
    """exp(loss / count), at most exp(700).

    Args:
        loss: the sum of -log p over the symbols.
        count: how many symbols; 0 gives NaN.
    """
    return math.exp(min(loss / count, LARGEST_EXPONENT)) if count else math.nan


def width_of(model: Any) -> int:
    """How many states a model of symbols has, or hidden units."""
    return getattr(model.transition, "states", None) or model.emission.table.width


def observe(words: Tensor, whole: bool | None = None) -> Sequences:
    """A window (L, B) of a stream as sequences; -1 lies past a column's end, and is no gap to be summed out.

    Args:
        words: the window.
        whole: whether there is no -1, where that is known; asking a GPU makes it wait.
    """
    there = words >= 0
    whole = bool(there.all()) if whole is None else whole
    return Sequences(y=words.clamp_min(0), lengths=None if whole else there.sum(0))


@torch.no_grad()
def score_stream(model: Any, words: Tensor, method: Method | None = None, length: int = 64) -> Score:
    """Score a stream with the state carried over.

    Each of the B columns starts cold once, and then carries its belief to its end.

    Args:
        model: a model of symbols.
        words: (T, B) integers, -1 padding.
        method: the method, or None for the model's own.
        length: steps at once; it bounds memory and changes nothing else.
    """
    method = method_for(model) if method is None else method
    constants, belief, total = method.constants(model), None, 0.0
    for _, window in windows(words, length):
        trace = run(model, method, observe(window), belief, ("log_prob", "last"), constants)
        assert trace.log_prob is not None
        total, belief = total + float(trace.log_prob.sum()), trace.last
    return Score(total, int((words >= 0).sum()))


@torch.no_grad()
def score_sentences(model: Any, sentences: Sequence[Tensor], method: Method | None = None, tokens: int = 4096) -> Score:
    """Score sentences each on its own, from the model's start.

    Args:
        model: a model of symbols.
        sentences: integers, each (T_n,).
        method: the method, or None for the model's own.
        tokens: about how many symbols at once; sentences of like length go together.
    """
    method = method_for(model) if method is None else method
    constants, total = method.constants(model), 0.0
    for group in batches(sentences, tokens):
        trace = run(model, method, group, None, ("log_prob",), constants)
        assert trace.log_prob is not None
        total += float(trace.log_prob.sum())
    return Score(total, sum(map(len, sentences)))


def walk(model: Any, words: Tensor, keep: tuple[str, ...], length: int) -> Iterator[tuple[slice, Trace]]:
    """Run a stream in chunks of `length` rows, its belief carried: each chunk's rows, and what was kept.

    Args:
        model: a model of symbols.
        words: (T, B) integers, -1 padding.
        keep: what to keep, as for `run`.
        length: rows a chunk.
    """
    method = method_for(model)
    constants, belief = method.constants(model), None
    for start, window in windows(words, length):
        trace = run(model, method, observe(window), belief, (*keep, "last"), constants)
        belief = trace.last
        yield slice(start, start + length), trace


def alike(sentences: Sequence[Tensor], tokens: int) -> list[list[int]]:
    """The numbers of the sentences in groups of like length, each at most `tokens` symbols once padded.

    A sentence that is longer than that is a group of its own.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(sentences)), key=lambda i: len(sentences[i])):
        if not groups or (len(groups[-1]) + 1) * len(sentences[i]) > tokens:
            groups.append([])
        groups[-1].append(i)
    return groups


def batches(sentences: Sequence[Tensor], tokens: int) -> list[Sequences]:
    """Sentences sorted by length and padded, at most `tokens` symbols a batch (or one sentence)."""
    made = []
    for group in alike(sentences, tokens):
        chosen = [sentences[i] for i in group]
        lengths = torch.tensor([len(s) for s in chosen], device=chosen[0].device)
        same = bool((lengths == lengths[0]).all())
        made.append(Sequences(y=nn.utils.rnn.pad_sequence(chosen), lengths=None if same else lengths))
    return made
