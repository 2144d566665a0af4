"""Vocabularies, and texts as streams of word numbers."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Final, final

import numpy as np
import torch
from torch import Tensor

from statespan.errors import StatespanError
from statespan.language.corpora import Sentence

UNK: Final = "<unk>"
EOS: Final = "<eos>"


@final
class Vocabulary:
    """The words a model knows, each with a number; `<unk>` is 0 and `<eos>` is 1, always.

    Args:
        words: The words in the order of their numbers, from 2 up; where they hold `<unk>` or `<eos>`, these
            stay 0 and 1.
        unknown: Whether a word that is not here is read as `<unk>`; where False, it is an error.

    Raises:
        StatespanError: A word is given twice.

    Examples:
        >>> vocabulary = Vocabulary(["time", "flies"])
        >>> vocabulary.encode(["time", "waits"]), vocabulary.decode([2, 3, 1])
        (tensor([2, 0]), ['time', 'flies', '<eos>'])
        >>> len(vocabulary), "flies" in vocabulary, vocabulary.unk, vocabulary.eos
        (4, True, 0, 1)
    """

    unk: Final = 0
    eos: Final = 1

    def __init__(self, words: Iterable[str], unknown: bool = True):
        self.words = (UNK, EOS, *(word for word in words if word not in (UNK, EOS)))
        self.unknown = unknown
        self._ids = {word: number for number, word in enumerate(self.words)}
        if len(self._ids) < len(self.words):
            twice = next(word for word, count in Counter(self.words).items() if count > 1)
            raise StatespanError(f"vocabulary: the word {twice!r} is given twice; give each word once")

    @classmethod
    def build(
        cls,
        sentences: Iterable[Sentence],
        size: int | None = None,
        minimum_count: int = 1,
        unknown: bool = True,
    ) -> "Vocabulary":
        """Take the words of a text, the most frequent first, ties in alphabetical order.

        Args:
            sentences: The text. `<unk>` or `<eos>` among its words are the special ones.
            size: How many to keep, the two special ones counted; None keeps all.
            minimum_count: Keep only words that occur so often.
            unknown: As in `Vocabulary`.

        Returns:
            The vocabulary.

        Raises:
            StatespanError: `size` leaves no place for a word.

        Examples:
            >>> text = [Sentence(("so", "it", "goes")), Sentence(("it", "was"))]
            >>> Vocabulary.build(text, size=4).words
            ('<unk>', '<eos>', 'it', 'goes')
        """
        if size is not None and size < 3:
            raise StatespanError(f"vocabulary: size is {size}; it counts <unk> and <eos>, so give at least 3")
        counts = Counter(chain.from_iterable(sentence.words for sentence in sentences))
        del counts[UNK], counts[EOS]
        kept = sorted((-count, word) for word, count in counts.items() if count >= minimum_count)
        return cls((word for _, word in kept[: None if size is None else size - 2]), unknown)

    def encode(self, words: Iterable[str], place: str = "") -> Tensor:
        """The numbers of words.

        Args:
            words: N words.
            place: Where they stand, for the error ("sentence 3").

        Returns:
            (N,) int64. A word that is not here is `<unk>`.

        Raises:
            StatespanError: A word is not here, and the vocabulary was made with `unknown=False`.

        Examples:
            >>> Vocabulary(["a", "b"], unknown=False).encode(["a", "c"], place="sentence 3")
            Traceback (most recent call last):
            ...
            statespan.errors.StatespanError: sentence 3, word 2: 'c' is not in the vocabulary; map it to <unk>
        """
        words = list(words)
        missing = self.unk if self.unknown else -1
        get = self._ids.get
        ids = np.fromiter((get(word, missing) for word in words), dtype=np.int64)
        if not self.unknown and (ids < 0).any():
            position = int((ids < 0).argmax())
            at = f"{place}, word {position + 1}" if place else f"word {position + 1}"
            raise StatespanError(f"{at}: {words[position]!r} is not in the vocabulary; map it to {UNK}")
        return torch.from_numpy(ids)

    def decode(self, ids: Tensor | Sequence[int]) -> list[str]:
        """The words of numbers.

        Args:
            ids: (N,) integers from 0 to len(vocabulary) - 1.

        Returns:
            N words.

        Raises:
            StatespanError: A number is not that of a word.

        Examples:
            >>> Vocabulary(["a", "b"]).decode(torch.tensor([3, 2, 0]))
            ['b', 'a', '<unk>']
        """
        numbers: list[int] = torch.as_tensor(ids).tolist()
        for position, number in enumerate(numbers):
            if not 0 <= number < len(self):
                raise StatespanError(f"decode, position {position}: {number} is no word; give 0 to {len(self) - 1}")
        return [self.words[number] for number in numbers]

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._ids

    def __eq__(self, other: object) -> bool:
        return type(other) is Vocabulary and (self.words, self.unknown) == (other.words, other.unknown)

    def __hash__(self) -> int:
        return hash((self.words, self.unknown))

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} words)"

    def to_json(self) -> str:
        """Write the vocabulary as JSON.

        Returns:
            An object with `words`, in the order of their numbers, and `unknown`.

        Examples:
            >>> Vocabulary(["a"]).to_json()
            '{"words": ["<unk>", "<eos>", "a"], "unknown": true}'
        """
        return json.dumps({"words": self.words, "unknown": self.unknown}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Vocabulary":
        """Read what `to_json` wrote.

        Args:
            text: The JSON.

        Returns:
            The vocabulary.

        Raises:
            StatespanError: The text is not what `to_json` writes.

        Examples:
            >>> Vocabulary.from_json(Vocabulary(["a"]).to_json()) == Vocabulary(["a"])
            True
        """
        try:
            fields = json.loads(text)
            return cls(fields["words"], fields["unknown"])
        except (ValueError, TypeError, KeyError) as error:
            raise StatespanError(f"vocabulary: not what to_json writes ({error}); write it again") from None


def encode_corpus(sentences: Sequence[Sentence], vocabulary: Vocabulary) -> list[Tensor]:
    """The numbers of every sentence's words, `<eos>` appended.

    Args:
        sentences: The text, N sentences.
        vocabulary: Its words.

    Returns:
        N tensors of int64, each one longer than its sentence; slices of one tensor.

    Raises:
        StatespanError: A word is not in a vocabulary made with `unknown=False`; names sentence and word.

    Examples:
        >>> encode_corpus([Sentence(("so", "it")), Sentence(("it",))], Vocabulary(["it", "so"]))
        [tensor([3, 2, 1]), tensor([2, 1])]
    """
    try:
        ids = vocabulary.encode(chain.from_iterable((*sentence.words, EOS) for sentence in sentences))
    except StatespanError:
        for number, sentence in enumerate(sentences, 1):
            vocabulary.encode(sentence.words, f"sentence {number}")  # raises at the one that is wrong
        raise
    return list(ids.split([len(sentence.words) + 1 for sentence in sentences]))


def stream(sentences: Sequence[Tensor], batch: int) -> Tensor:
    """Join sentences and cut the text into columns to be read side by side.

    All N words are kept: the columns have T = ceil(N / batch) rows, and what the last column (or, for a tiny
    text, the last ones) lacks at its end is -1, missing.

    Args:
        sentences: Tensors of int64, (L_n,) each.
        batch: How many columns.

    Returns:
        (T, batch) int64; column b holds the words b T to b T + T - 1 of the text.

    Raises:
        StatespanError: There are no words, or `batch` is less than 1.

    Examples:
        >>> stream([torch.tensor([2, 3, 1]), torch.tensor([4, 1])], batch=2)
        tensor([[ 2,  4],
                [ 3,  1],
                [ 1, -1]])
    """
    if batch < 1:
        raise StatespanError(f"stream: batch is {batch}; give at least 1")
    if sum(map(len, sentences)) == 0:
        raise StatespanError("stream: there are no words; give at least one sentence")
    words = torch.cat(list(sentences))
    rows = -(-len(words) // batch)
    padded = torch.nn.functional.pad(words, (0, rows * batch - len(words)), value=-1)
    return padded.view(batch, rows).T.contiguous()


def windows(words: Tensor, length: int) -> Iterator[tuple[int, Tensor]]:
    """Cut a stream into windows of consecutive rows; the last may be shorter.

    Args:
        words: (T, batch), from `stream`.
        length: Rows a window.

    Yields:
        The window's first row t0, and its words (L, batch), a view.

    Raises:
        StatespanError: `length` is less than 1.

    Examples:
        >>> [(t0, len(window)) for t0, window in windows(torch.zeros(5, 2, dtype=torch.long), 2)]
        [(0, 2), (2, 2), (4, 1)]
    """
    if length < 1:
        raise StatespanError(f"windows: length is {length}; give at least 1")
    for t0 in range(0, len(words), length):
        yield t0, words[t0 : t0 + length]
