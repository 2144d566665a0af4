"""Do states or predictions know the parts of speech? Tagging accuracy from a model that never saw a tag."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from statespan.errors import StatespanError
from statespan.language.corpora import Sentence, utf8
from statespan.language.vocabulary import Vocabulary


class Tally(NamedTuple):
    """How many predictions were right, of how many; tallies of chunks add up by `plus`.

    Attributes:
        correct: Predictions that were right.
        counted: Predictions that were counted.

    Examples:
        >>> Tally(3, 4).plus(Tally(0, 2)).accuracy
        0.5
    """

    correct: int
    counted: int

    @property
    def accuracy(self) -> float:
        """The share that was right, correct / counted; NaN where nothing was counted."""
        return self.correct / self.counted if self.counted else float("nan")

    def plus(self, other: "Tally") -> "Tally":
        """The tally of both."""
        return Tally(self.correct + other.correct, self.counted + other.counted)


class VMeasure(NamedTuple):
    """How well states and tags agree, each from 0 to 1.

    Attributes:
        homogeneity: 1 where each state holds words of one tag.
        completeness: 1 where each tag has one state.
        v: Their harmonic mean.

    Examples:
        >>> VMeasure(1.0, 0.5, 2 / 3).completeness
        0.5
    """

    homogeneity: float
    completeness: float
    v: float


def universal(path: str | Path) -> dict[str, str]:
    r"""Read a map from a treebank's tags to the universal ones.

    Args:
        path: The file: a line a tag, the treebank's, white space, the universal one.

    Returns:
        The universal tag of each tag.

    Raises:
        StatespanError: The file is missing, empty, a directory or not UTF-8, a line is not two tags, or
            two lines disagree.

    Source: Petrov, Das & McDonald 2012, "A universal part-of-speech tagset".

    Examples:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "small.map"
        >>> _ = file.write_text("NN\tNOUN\nVBZ\tVERB\n")
        >>> universal(file)
        {'NN': 'NOUN', 'VBZ': 'VERB'}
    """
    result: dict[str, str] = {}
    for number, line in enumerate(utf8(path).split("\n"), 1):
        pair = line.split()
        if pair and (len(pair) != 2 or result.setdefault(*pair) != pair[1]):
            raise StatespanError(f"{path}, line {number}: {line.strip()!r} is not one tag and its universal tag")
    if not result:
        raise StatespanError(f"{path}: the file holds no tags; give one a line with its universal tag")
    return result


def tagset(sentences: Iterable[Sentence], mapping: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The tags of a text in alphabetical order.

    Args:
        sentences: A tagged text.
        mapping: A map that is applied to each tag, from `universal`.

    Returns:
        G tags.

    Raises:
        StatespanError: A sentence has no tags, or a tag is not in the map.

    Examples:
        >>> tagset([Sentence(("time", "flies"), ("NOUN", "VERB"))])
        ('NOUN', 'VERB')
    """
    return tuple(sorted({tag for tags in _tags(sentences, mapping) for tag in tags}))


def encode_tags(
    sentences: Iterable[Sentence], tags: Sequence[str], mapping: Mapping[str, str] | None = None
) -> list[Tensor]:
    """The numbers of every sentence's tags, -1 appended for its `<eos>`: aligned with `encode_corpus`.

    Args:
        sentences: A tagged text, N sentences.
        tags: G tags; one that is not among them gives -1, not counted.
        mapping: A map that is applied to each tag, from `universal`.

    Returns:
        N tensors of int64, each one longer than its sentence.

    Raises:
        StatespanError: A sentence has no tags, or a tag is not in the map.

    Examples:
        >>> encode_tags([Sentence(("time", "flies"), ("NOUN", "VERB"))], ["NOUN", "VERB"])
        [tensor([ 0,  1, -1])]
    """
    ids = {tag: number for number, tag in enumerate(tags)}
    return [torch.tensor([*(ids.get(tag, -1) for tag in line), -1]) for line in _tags(sentences, mapping)]


def conditional(counts: Tensor) -> Tensor:
    """Counts as p(column | row), n(r, c) / n(r); a row that was never there takes the sum of all, p(column).

    Args:
        counts: (R, C), not negative.

    Examples:
        >>> conditional(torch.tensor([[1.0, 3.0], [0.0, 0.0]]))
        tensor([[0.2500, 0.7500],
                [0.2500, 0.7500]])
    """
    counts = torch.where(counts.sum(1, keepdim=True) > 0, counts, counts.sum(0))
    return counts / counts.sum(1, keepdim=True)


def tag_given_word(words: Tensor, tags: Tensor, vocabulary_size: int, tags_count: int) -> Tensor:
    """How often each word has each tag: p(t | w) = n(w, t) / n(w).

    A word that was never seen takes the row of `<unk>`; if that was never seen either, the row of all
    words, p(t).

    Args:
        words: (N,) integers from 0 to V - 1.
        tags: (N,) integers from 0 to G - 1; -1 is not counted.
        vocabulary_size: V.
        tags_count: G.

    Returns:
        (V, G) float64, rows sum to 1.

    Raises:
        StatespanError: The shapes differ, a number is out of range, or no tag is known.

    Source: Buys, Bisk & Choi 2018, "Bridging HMMs and RNNs through architectural transformations",
    section 6.

    Examples:
        >>> tag_given_word(torch.tensor([2, 2, 3, 0]), torch.tensor([0, 1, 1, 0]), 5, 2)
        tensor([[1.0000, 0.0000],
                [1.0000, 0.0000],
                [0.5000, 0.5000],
                [0.0000, 1.0000],
                [1.0000, 0.0000]], dtype=torch.float64)
    """
    counts = _counts(words, tags, vocabulary_size, tags_count, "tag_given_word")
    seen = counts.sum(1, keepdim=True) > 0
    return conditional(torch.where(seen, counts, counts[Vocabulary.unk]))


def tag_given_state(states: Tensor, tags: Tensor, states_count: int, tags_count: int) -> Tensor:
    """How often each state goes with each tag: p(t | k) = sum_n p(k at n) [t_n = t] / sum_n p(k at n).

    A state that was never seen takes the row of all states, p(t).

    Args:
        states: (N,) integers from 0 to K - 1, where -1 is not counted, or beliefs (N, K).
        tags: (N,) integers from 0 to G - 1; -1 is not counted.
        states_count: K.
        tags_count: G.

    Returns:
        (K, G) float64, rows sum to 1.

    Raises:
        StatespanError: The shapes differ, a number is out of range, or no tag is known.

    Examples:
        >>> tag_given_state(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([0, 1]), 2, 2)
        tensor([[0.3333, 0.6667],
                [1.0000, 0.0000]], dtype=torch.float64)
    """
    return conditional(_counts(states, tags, states_count, tags_count, "tag_given_state"))


def next_word_tag_accuracy(word_log_probs: Tensor, table: Tensor, gold: Tensor) -> Tally:
    """How often the likeliest tag under the model's next-word distribution is the gold tag.

    The prediction is argmax_t sum_w p(w | y_<n) p(t | w), over the words w other than `<eos>`; the word
    at n is not seen. Call it chunk by chunk and add the tallies.

    Args:
        word_log_probs: (N, V) log p(w | y_<n); may lack a constant in each row (logits do).
        table: (V, G) p(t | w), from `tag_given_word`.
        gold: (N,) integers from 0 to G - 1; -1 is not counted.

    Returns:
        The tally of this chunk.

    Raises:
        StatespanError: The shapes do not fit.

    Source: Buys, Bisk & Choi 2018, "Bridging HMMs and RNNs through architectural transformations",
    section 6.

    Examples:
        >>> table = torch.eye(4)[:, 2:]
        >>> next_word_tag_accuracy(torch.tensor([[0.0, 0.4, 0.5, 0.1]]).log(), table, torch.tensor([0]))
        Tally(correct=1, counted=1)
    """
    _fit(word_log_probs, table, gold, "next_word_tag_accuracy")
    known = gold >= 0
    log_probs = word_log_probs.detach()[known]  # a copy
    log_probs[:, Vocabulary.eos] = -torch.inf
    return _tally((log_probs.softmax(1) @ table.to(log_probs)).argmax(1), gold[known])


def through_counts(states: Tensor, table: Tensor, gold: Tensor) -> Tally:
    """How often the likeliest tag of the state, by counts made on other text, is the gold tag.

    The prediction is argmax_t sum_k p(k at n) p(t | k).

    Args:
        states: (N,) integers from 0 to K - 1, where -1 is not counted, or beliefs (N, K).
        table: (K, G) p(t | k), from `tag_given_state` on training text or another half.
        gold: (N,) integers from 0 to G - 1; -1 is not counted.

    Returns:
        The tally of this chunk.

    Raises:
        StatespanError: The shapes do not fit.

    Examples:
        >>> through_counts(torch.tensor([0, 1]), torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 0]))
        Tally(correct=1, counted=2)
    """
    states, gold = _known(states, gold)
    if states.dim() == 1:
        _range(states, len(table), "through_counts: state")
        return _tally(table.argmax(1)[states], gold)
    _fit(states, table, gold, "through_counts")
    return _tally((states.detach() @ table.to(states)).argmax(1), gold)


def many_to_one(states: Tensor, gold: Tensor, states_count: int, tags_count: int) -> float:
    """The accuracy when each state is named after its most frequent tag: sum_k max_t n(k, t) / N.

    It grows with the number of states: compare it only at equal numbers.

    Args:
        states: (N,) integers from 0 to K - 1; -1 is not counted.
        gold: (N,) integers from 0 to G - 1; -1 is not counted.
        states_count: K.
        tags_count: G.

    Returns:
        The accuracy, from 0 to 1.

    Raises:
        StatespanError: The shapes differ, a number is out of range, or no tag is known.

    Source: Johnson 2007, "Why doesn't EM find good HMM POS-taggers?".

    Examples:
        >>> many_to_one(torch.tensor([0, 0, 0, 1]), torch.tensor([1, 1, 0, 1]), 2, 2)
        0.75
    """
    counts = _counts(states, gold, states_count, tags_count, "many_to_one")
    return float(counts.amax(1).sum() / counts.sum())


def v_measure(states: Tensor, gold: Tensor) -> VMeasure:
    """The harmonic mean of homogeneity and completeness, which many states cannot cheat.

    With H the entropies of the counts n(k, t),

        homogeneity = 1 - H(tag | state) / H(tag)      completeness = 1 - H(state | tag) / H(state)

    each 1 where its divisor is 0, and v = 2 h c / (h + c), 0 where both are 0.

    Args:
        states: (N,) integers from 0 up; -1 is not counted.
        gold: (N,) integers from 0 up; -1 is not counted.

    Returns:
        The three.

    Raises:
        StatespanError: The shapes differ, or no tag is known.

    Source: Rosenberg & Hirschberg 2007, "V-measure: a conditional entropy-based external cluster evaluation
    measure".

    Examples:
        >>> round(v_measure(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 0, 1, 1])).v, 6)
        0.8
    """
    top_state, top_tag = (int(x.max()) + 1 if x.numel() else 0 for x in (states, gold))
    joint = _counts(states, gold, top_state, top_tag, "v_measure")
    joint = joint / joint.sum()
    both, of_state, of_tag = (_entropy(p) for p in (joint, joint.sum(1), joint.sum(0)))
    shared = max(of_state + of_tag - both, 0.0)
    homogeneity = min(shared / of_tag, 1.0) if of_tag else 1.0
    completeness = min(shared / of_state, 1.0) if of_state else 1.0
    total = homogeneity + completeness
    return VMeasure(homogeneity, completeness, 2 * homogeneity * completeness / total if total else 0.0)


def _tags(sentences: Iterable[Sentence], mapping: Mapping[str, str] | None) -> Iterable[list[str]]:
    for number, sentence in enumerate(sentences, 1):
        if sentence.tags is None:
            raise StatespanError(f"sentence {number} has no tags; give a tagged text")
        tags = list(sentence.tags)
        if mapping is not None:
            for tag in tags:
                if tag not in mapping:
                    raise StatespanError(f"sentence {number}: tag {tag!r} is not in the map; add a line for it")
            tags = [mapping[tag] for tag in tags]
        yield tags


def _counts(rows: Tensor, tags: Tensor, rows_count: int, tags_count: int, place: str) -> Tensor:
    """n(row, tag), (R, G) float64; rows (N,) numbers, or (N, R) weights."""
    if len(rows) != len(tags) or tags.dim() != 1:
        raise StatespanError(f"{place}: {tuple(rows.shape)} and {tuple(tags.shape)} do not fit; give one tag each")
    rows, tags = _known(rows, tags)
    if len(tags) == 0:
        raise StatespanError(f"{place}: there is no known tag; give at least one that is not -1")
    _range(tags, tags_count, f"{place}: tag")
    if rows.dim() == 2:
        if rows.shape[1] != rows_count:
            raise StatespanError(f"{place}: beliefs have {rows.shape[1]} columns; give {rows_count}")
        counts = torch.zeros(tags_count, rows_count, dtype=torch.float64, device=rows.device)
        return counts.index_add(0, tags, rows.detach().double()).T
    _range(rows, rows_count, f"{place}: number")
    counts = torch.bincount(rows * tags_count + tags, minlength=rows_count * tags_count)
    return counts.view(rows_count, tags_count).double()


def _known(rows: Tensor, tags: Tensor) -> tuple[Tensor, Tensor]:
    known = (tags >= 0) & (rows >= 0) if rows.dim() == 1 else tags >= 0
    return rows[known], tags[known]


def _range(numbers: Tensor, count: int, place: str) -> None:
    if numbers.numel() and int(numbers.max()) >= count:
        raise StatespanError(f"{place} {int(numbers.max())} is out of range; give 0 to {count - 1}")


def _fit(left: Tensor, table: Tensor, gold: Tensor, place: str) -> None:
    if left.dim() != 2 or left.shape != (len(gold), len(table)):
        raise StatespanError(
            f"{place}: shapes {tuple(left.shape)}, {tuple(table.shape)} and {tuple(gold.shape)} do not fit; "
            f"give (N, rows of the table), the table and (N,)"
        )


def _tally(predicted: Tensor, gold: Tensor) -> Tally:
    return Tally(int((predicted == gold).sum()), len(gold))


def _entropy(p: Tensor) -> float:
    return float(-torch.xlogy(p, p).sum()) if int((p > 0).sum()) > 1 else 0.0
