r"""What a language model knows of parts of speech, asked in four ways: Table 2 of the paper, with its reference lines.

Tags reach a model's words through p(tag | word), counted from a lexicon of tagged words; the model saw none. A
prediction is a score of every fine tag; summed into classes it predicts the coarse one. `<eos>` has no tag: what a
model gives to it is dropped, and it is not counted.

| protocol | asks | of |
|---|---|---|
| prefix | the distribution of the next word, unseen | every model |
| prefix-state | the likeliest state before the word is seen | states that are a distribution before the word |
| filtered | all states, once the word is seen | states that are a distribution after it |
| viterbi | the state on the best path over the line, or over the text where the state is carried | exact models |
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from statespan.errors import StatespanError
from statespan.families.hidden_markov import hmm
from statespan.language.corpora import Sentence
from statespan.language.scoring import alike, batches, walk, width_of
from statespan.language.tagging import Tally, encode_tags, tag_given_word, tagset
from statespan.language.vocabulary import Vocabulary, encode_corpus, stream
from statespan.method import Trace, run
from statespan.methods import method_for
from statespan.model import StateSpace
from statespan.parts.emissions import Categorical

PROTOCOLS = ("prefix", "prefix-state", "filtered", "viterbi")
"""The ways of asking, by name."""

COLUMNS = 10
"""Columns of the text where the state is carried; each starts cold once."""

CHUNK = 2**22
"""Numbers in the largest tensor of a chunk: 16 MB in float32."""

NUMBER = re.compile(r"^(?=.*\d)[\d.,:%\\/-]+$")


def treebank_word(word: str) -> str:
    r"""A word of the treebank as the language-model text has it, but for `<unk>`.

    `%` and what is made of digits and .,:%\/- becomes N; anything else becomes lower-case, a backslash kept.

    Args:
        word: The word of a word/TAG token.

    Source: Mikolov's preprocessing of the Penn Treebank, read off the text.

    Examples:
        >>> [treebank_word(word) for word in ("Vinken", "61", "1\\/2", "%", "mid-1990s", "-")]
        ['vinken', 'N', 'N', 'N', 'mid-1990s', '-']
    """
    return "N" if word == "%" or NUMBER.match(word) else word.lower()


class Gold(NamedTuple):
    """A text with gold tags, and what takes words to tags.

    Attributes:
        words: N tensors of integers, `<eos>` last.
        tags: As long, integers of fine tags, -1 at `<eos>`.
        names: The G fine tags.
        given_word: (V, G) p(tag | word), nothing at `<eos>`.
        classes: (G, C) ones where a fine tag belongs to a coarse one.
    """

    words: list[Tensor]
    tags: list[Tensor]
    names: tuple[str, ...]
    given_word: Tensor
    classes: Tensor

    def to(self, device: torch.device | str) -> "Gold":
        """The same on another device."""
        moved = lambda sentences: [x.to(device) for x in sentences]  # noqa: E731
        tables = self.given_word.to(device), self.classes.to(device)
        return Gold(moved(self.words), moved(self.tags), self.names, *tables)


def gold(
    words: Sequence[Sentence],
    tagged: Sequence[Sentence],
    lexicon: Sequence[Sentence],
    vocabulary: Vocabulary,
    mapping: Mapping[str, str] | None = None,
) -> Gold:
    """Lay gold tags beside a text, and count p(tag | word).

    Args:
        words: The text as language models read it.
        tagged: The same sentences, original words with tags.
        lexicon: Tagged sentences from which p(tag | word) is counted, words as in the treebank. A word of the
            vocabulary that was never tagged takes the tags of `<unk>`.
        vocabulary: Its V words.
        mapping: From fine to coarse tags, of `tagging.universal`; None keeps the fine ones.

    Raises:
        StatespanError: The two texts do not align (the first place is named), or a tag is not in the map.

    Source: Buys, Bisk & Choi 2018, "Bridging HMMs and RNNs through architectural transformations", section 6.

    Examples:
        >>> text, tagged = [Sentence(("N", "years"))], [Sentence(("61", "years"), ("CD", "NNS"))]
        >>> found = gold(text, tagged, tagged, Vocabulary(["N", "years"]))
        >>> found.names, found.tags[0].tolist(), found.given_word[2].tolist()
        (('CD', 'NNS'), [0, 1, -1], [1.0, 0.0])
    """
    if len(words) != len(tagged):
        raise StatespanError(f"{len(words)} sentences of words and {len(tagged)} of tags; give the same text")
    ids, theirs = encode_corpus(words, vocabulary), _encode(tagged, vocabulary)
    for number, (ours, other) in enumerate(zip(ids, theirs, strict=True), 1):
        if not torch.equal(ours, other):
            raise StatespanError(
                f"sentence {number}: the words {' '.join(words[number - 1].words)!r} are not those with the tags, "
                f"{' '.join(tagged[number - 1].words)!r}; give the same text"
            )
    known = tagset(lexicon)
    names = (*known, *(tag for tag in tagset(tagged) if tag not in known))
    table = tag_given_word(
        torch.cat(_encode(lexicon, vocabulary)), torch.cat(encode_tags(lexicon, names)), len(vocabulary), len(names)
    )
    table[Vocabulary.eos] = 0.0
    return Gold(ids, encode_tags(tagged, names), names, table, _classes(names, mapping))


def _encode(tagged: Sequence[Sentence], vocabulary: Vocabulary) -> list[Tensor]:
    """The numbers of a treebank's words, `<eos>` appended."""
    return encode_corpus([Sentence(tuple(map(treebank_word, s.words))) for s in tagged], vocabulary)


def _classes(names: Sequence[str], mapping: Mapping[str, str] | None) -> Tensor:
    """(G, C), in the order of the coarse tags' names."""
    missing = [name for name in names if mapping is not None and name not in mapping]
    if missing:
        raise StatespanError(f"tag {missing[0]!r} is not in the map; add a line for it")
    coarse = [name if mapping is None else mapping[name] for name in names]
    places = {name: i for i, name in enumerate(sorted(set(coarse)))}
    return torch.nn.functional.one_hot(torch.tensor([places[name] for name in coarse]), len(places)).double()


class Accuracy(NamedTuple):
    """Right predictions of fine and of coarse tags."""

    fine: Tally
    coarse: Tally

    def plus(self, other: "Accuracy") -> "Accuracy":
        """Of both chunks."""
        return Accuracy(self.fine.plus(other.fine), self.coarse.plus(other.coarse))


NONE = Accuracy(Tally(0, 0), Tally(0, 0))


def score(scores: Tensor, tags: Tensor, classes: Tensor) -> Accuracy:
    """How often the best tag, and the best class, is the gold one.

    Args:
        scores: (N, G), any positive multiple of p(tag) in each row.
        tags: (N,) integers, -1 is not counted.
        classes: (G, C), as in `Gold`.

    Examples:
        >>> classes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> score(torch.tensor([[0.4, 0.3, 0.3]]), torch.tensor([1]), classes)
        Accuracy(fine=Tally(correct=0, counted=1), coarse=Tally(correct=1, counted=1))
    """
    known = tags >= 0
    scores, tags = scores[known].double(), tags[known]
    fine = Tally(int((scores.argmax(1) == tags).sum()), len(tags))
    coarse = (scores @ classes.double()).argmax(1) == classes.argmax(1)[tags]
    return Accuracy(fine, Tally(int(coarse.sum()), len(tags)))


@torch.no_grad()
def accuracy(
    model: Any, text: Gold, protocol: str = "prefix", independent: bool = False, states: Tensor | None = None
) -> Accuracy:
    """How well a model knows the tags of a text, asked in one way.

    Args:
        model: A model of symbols.
        text: The gold text.
        protocol: One of `PROTOCOLS`; the model must have such a state.
        independent: Whether each line starts anew; otherwise the state is carried along `COLUMNS` columns.
        states: (K, G) scores of tags by state; None takes sum over w of p(w | state) p(tag | w), where a softmax scores
            p(w | state) that of a state that is certain.

    Raises:
        StatespanError: An unknown protocol.

    Source: Buys, Bisk & Choi 2018, "Bridging HMMs and RNNs through architectural transformations", section 6.

    Examples:
        >>> import statespan as ss
        >>> text, tagged = [Sentence(("N", "years"))], [Sentence(("61", "years"), ("CD", "NNS"))]
        >>> found = gold(text, tagged, tagged, Vocabulary(["N", "years"]))
        >>> accuracy(ss.ladder("hmm", vocabulary=4, width=2, seed=0), found, "viterbi").fine.counted
        2
    """
    if protocol not in PROTOCOLS:
        raise StatespanError(f"protocol = {protocol!r} must be one of {', '.join(PROTOCOLS)}")
    if protocol != "prefix" and states is None:
        states = _of_states(model) @ text.given_word
    method, total = method_for(model), NONE
    constants = method.constants(model)
    if protocol == "viterbi":
        assert states is not None
        for path, tags in _paths(model, text, independent):
            total = total.plus(score(states[path], tags, text.classes))
        return total
    kept = {"prefix": "predicted", "prefix-state": "predicted", "filtered": "filtered"}[protocol]
    for trace, tags in _traces(model, text, independent, kept):
        belief = getattr(trace, kept)
        if protocol == "prefix":
            shown: Any = method.emit(model, constants, belief, None)
            scores = shown.probs.flatten(0, 1) @ text.given_word.to(shown.probs)  # nothing of `<eos>`, by its row
        else:
            assert states is not None
            probs = belief.state.probs.flatten(0, 1).double()
            scores = states[probs.argmax(1)] if protocol == "prefix-state" else probs @ states
        total = total.plus(score(scores, tags.flatten(), text.classes))
    return total


def _of_states(model: Any) -> Tensor:
    """What each state emits, (K, V)."""
    constants = model.emission.constants()
    if constants is None:
        return model.emission(torch.eye(width_of(model), device=model.emission.table.weight.device)).probs.double()
    return constants.probs.value.double()


def _traces(model: Any, text: Gold, independent: bool, kept: str) -> Iterator[tuple[Trace, Tensor]]:
    """What a model knew of a text, chunk by chunk, with the tags (T, B)."""
    wide = max(width_of(model), len(text.given_word) if kept == "predicted" else 0)
    if not independent:
        words, tags = stream(text.words, COLUMNS), stream(text.tags, COLUMNS)
        for rows, trace in walk(model, words, (kept,), max(1, CHUNK // (COLUMNS * wide))):
            yield trace, tags[rows]
        return
    method, size = method_for(model), max(1, CHUNK // wide)
    constants = method.constants(model)
    groups = zip(batches(text.words, size), alike(text.words, size), strict=True)
    for data, group in groups:
        tags = torch.nn.utils.rnn.pad_sequence([text.tags[i] for i in group], padding_value=-1)
        yield run(model, method, data, None, (kept,), constants), tags


def _paths(model: Any, text: Gold, independent: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Best paths and their tags, of lines or of the columns of the stream."""
    if independent:
        words, gold_tags = text.words, text.tags
    else:
        size = -(-sum(map(len, text.words)) // COLUMNS)
        words, gold_tags = (list(torch.cat(x).split(size)) for x in (text.words, text.tags))
    for group in alike(words, CHUNK // width_of(model)):
        paths = model.decode([words[i] for i in group])
        yield torch.cat(list(paths)), torch.cat([gold_tags[i] for i in group])


# ------------------------------------------------------------------------------------------- reference lines


def frequent_tag(text: Gold, lexicon: Tensor) -> Accuracy:
    """The most frequent tag of the lexicon, every time.

    Args:
        text: The gold text.
        lexicon: (G,) how often each tag stands in the lexicon.
    """
    tags = torch.cat(text.tags)
    return score(lexicon.expand(len(tags), -1), tags, text.classes)


def known_word(text: Gold) -> Accuracy:
    """The likeliest tag of the word itself: what knowing the word, and nothing else, is worth."""
    return score(text.given_word[torch.cat(text.words)], torch.cat(text.tags), text.classes)


def previous_word(text: Gold, table: Tensor) -> Accuracy:
    """The likeliest tag after the word before.

    Args:
        text: The gold text.
        table: (V, G) scores of the next tag by word, the row of `<eos>` for a line's first; `next_tags` makes one.
    """
    return score(table[_before(torch.cat(text.words))], torch.cat(text.tags), text.classes)


def _before(words: Tensor) -> Tensor:
    """The word before each word of a text whose lines end in `<eos>`, which stands before the first."""
    return torch.cat([words.new_tensor([Vocabulary.eos]), words[:-1]])


class Lines(NamedTuple):
    """The lines of a text that a tagged text has too.

    Attributes:
        words: Integers, `<eos>` last.
        tags: As long, -1 at `<eos>`.
    """

    words: list[Tensor]
    tags: list[Tensor]


def in_lines(words: Tensor, tags: Tensor, lines: Sequence[Tensor]) -> Lines:
    """Tags for the lines of a text, from a tagged text that does not say where its lines end.

    A line is looked for word by word after the one before it, L**3 words far if it has L words, since a short one may
    stand anywhere. One that is not found, as where the two texts were cut into words differently, is left out.

    Args:
        words: (N,) the words of the tagged text.
        tags: (N,) their tags.
        lines: Integers, `<eos>` last.

    Examples:
        >>> found = in_lines(torch.tensor([4, 5, 6, 7]), torch.arange(4), [torch.tensor([5, 6, 1])])
        >>> found.words, found.tags
        ([tensor([5, 6, 1])], [tensor([ 1,  2, -1])])
    """
    text, at, found = words.numpy().astype(np.int32).tobytes(), 0, Lines([], [])
    for line in lines:
        piece, length = line[:-1].numpy().astype(np.int32).tobytes(), len(line) - 1
        reach = 4 * (at + length + length**3)
        place = text.find(piece, 4 * at, reach)
        while place % 4 and place >= 0:  # across words
            place = text.find(piece, place + 1, reach)
        if place >= 0:
            at = place // 4 + length
            found.words.append(line)
            found.tags.append(torch.cat([tags[at - length : at], tags.new_tensor([-1])]))
    return found


def next_tags(lines: Lines, vocabulary: int, count: int) -> Tensor:
    """How often each tag follows each word within a line, its first tag following `<eos>`.

    A word that nothing follows takes the row of `<unk>`.

    Args:
        lines: A tagged text.
        vocabulary: V.
        count: G.

    Returns:
        (V, G) float64, rows sum to 1.
    """
    return tag_given_word(_before(torch.cat(lines.words)), torch.cat(lines.tags), vocabulary, count)


def supervised(
    words: Tensor, tags: Tensor, lines: Lines, vocabulary: int, count: int, prior: float = 0.01
) -> StateSpace:
    """A hidden Markov model whose states are the tags, fitted by counting a tagged text.

    Args:
        words: (N,) integers, without ends of lines: what the states emit.
        tags: (N,) integers, the states.
        lines: The same text in lines, as far as it is known: how the states start and move.
        vocabulary: V.
        count: G, the states.
        prior: Added to every count.

    Examples:
        >>> words, tags = torch.tensor([2, 3, 2, 3]), torch.tensor([0, 1, 0, 1])
        >>> model = supervised(words, tags, in_lines(words, tags, [torch.tensor([2, 3, 2, 3, 1])]), 4, 2)
        >>> model.decode([3, 2]).tolist()
        [1, 0]
    """
    line = torch.cat(lines.tags)
    moves, after = line[:-1], line[1:]
    inside = (moves >= 0) & (after >= 0)
    first = torch.cat([line[:1], after[moves < 0]])

    def shares(rows: Tensor, columns: Tensor, shape: tuple[int, int]) -> Tensor:
        counts = torch.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1]).view(shape) + prior
        return counts.double() / counts.double().sum(1, keepdim=True)

    return hmm(
        initial=shares(torch.zeros_like(first), first, (1, count))[0],
        transition=shares(moves[inside], after[inside], (count, count)),
        emission=Categorical(probs=shares(tags, words, (count, vocabulary))),
    )


def without_ends(text: Gold) -> Gold:
    """The same text without `<eos>`, for a model that never saw one."""
    return text._replace(words=[s[:-1] for s in text.words], tags=[s[:-1] for s in text.tags])
