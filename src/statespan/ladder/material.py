"""What a run of the ladder reads: a text, encoded, in three parts, with gold tags if it has any."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from statespan.errors import StatespanError
from statespan.files import write_bytes
from statespan.ladder.recipe import Text
from statespan.language import checkpoints, corpora, tagging
from statespan.language.classes import Classes, classes_of, word_classes
from statespan.language.corpora import Corpus, Sentence
from statespan.language.vocabulary import Vocabulary, encode_corpus
from statespan.version import __version__

READERS: dict[str, Callable[[Path], list[Sentence]]] = {
    "": corpora.read,
    "text": corpora.read_text,
    "tagged": corpora.read_tagged,
    "conllu": corpora.read_conllu,
}
"""How a file is read, by the `form` of a recipe; "" goes by the file's suffix."""

PARTS = ("train", "valid", "test")
TAGS = ("train_tags", "valid_tags", "test_tags")


class Material(NamedTuple):
    """A text ready to train on.

    Args:
        name: what the report calls it.
        vocabulary: its words.
        train, valid, test: the sentences of each part, `<eos>` last, integers.
        level: "words" or "characters".
        tags: the names of the tags; empty where the text has none.
        train_tags, valid_tags, test_tags: gold tags aligned with the sentences, -1 at `<eos>`.
        folder: where what takes long to find in the text is kept; None keeps it nowhere.
    """

    name: str
    vocabulary: Vocabulary
    train: list[Tensor]
    valid: list[Tensor]
    test: list[Tensor]
    level: str = "words"
    tags: tuple[str, ...] = ()
    train_tags: list[Tensor] | None = None
    valid_tags: list[Tensor] | None = None
    test_tags: list[Tensor] | None = None
    folder: Path | None = None

    @property
    def tokens(self) -> int:
        """Symbols to learn from, `<eos>` counted."""
        return sum(map(len, self.train))

    @property
    def device(self) -> torch.device:
        """Where the text lies."""
        return self.train[0].device

    @property
    def digest(self) -> str:
        """What identifies the text: the same one gives the same letters."""
        found = hashlib.sha256(self.vocabulary.to_json().encode())
        for part in PARTS:
            found.update(torch.cat(getattr(self, part)).cpu().numpy().tobytes())
        return found.hexdigest()[:16]

    def frequencies(self) -> Tensor:
        """How often each symbol stands in the training text, one added to each count: (V,), sums to one."""
        counts = torch.bincount(torch.cat(self.train), minlength=len(self.vocabulary)).float() + 1
        return counts / counts.sum()

    def classes(self, count: int) -> Classes:
        """Classes of words that keep the same company in the training text, found once for each number of them.

        Args:
            count: C.

        Raises:
            StatespanError: more classes than words, or the folder cannot be written.
        """
        words, symbols = torch.cat(self.train), len(self.vocabulary)
        if self.folder is None:
            return word_classes(words, symbols, count)
        mark = f"{__version__} {self.digest} {count}"
        path = self.folder / f"classes-{count}.safetensors"
        try:
            return classes_of(words, checkpoints.read(path, mark)[1]["owner"].to(words.device), count)
        except StatespanError:  # not there yet, or of another text
            found = word_classes(words, symbols, count)
            checkpoints.write(path, mark, {}, {"owner": found.owner})
            return found

    def to(self, device: str) -> "Material":
        """The same text on another device."""
        each = {part: sentences for part in (*PARTS, *TAGS) if (sentences := getattr(self, part)) is not None}
        moved = {k: list(torch.cat(x).to(device).split([len(s) for s in x])) for k, x in each.items()}
        return self._replace(**moved)


def read(text: Text, folder: Path) -> Material:
    """Read and encode a recipe's text.

    Args:
        text: the recipe's table.
        folder: where relative paths start.

    Raises:
        StatespanError: a file that cannot be read, or a text too small to split.
    """
    corpus = corpora.king_james() if text.source == "king-james" else _files(text, folder)
    parts = [corpus.train[: max(1, round(len(corpus.train) * text.share))], corpus.valid, corpus.test]
    if text.level == "characters":
        parts = [corpora.characters(part) for part in parts]
    vocabulary = Vocabulary.build(parts[0], size=text.vocabulary or None)
    train, valid, test = (encode_corpus(part, vocabulary) for part in parts)
    made = Material(text.name or corpus.name, vocabulary, train, valid, test, text.level)
    if not corpus.tagged or text.level == "characters":
        return made
    coarser = tagging.universal(_path(folder, text.universal)) if text.universal else None
    learnt = tagging.tagset(parts[0], coarser)
    unseen = [tag for part in parts[1:] for tag in tagging.tagset(part, coarser) if tag not in learnt]
    tags = (*learnt, *dict.fromkeys(unseen))
    gold = dict(zip(TAGS, (tagging.encode_tags(part, tags, coarser) for part in parts), strict=True))
    return made._replace(tags=tags, **gold)


def _files(text: Text, folder: Path) -> Corpus:
    """The text of three files, or of one that is split."""
    reader = READERS[text.form]
    name = text.name or Path(text.train).stem
    if text.valid:
        return Corpus(name, *(reader(_path(folder, getattr(text, part))) for part in PARTS))
    return corpora.split(reader(_path(folder, text.train)), name)


def _path(folder: Path, name: str) -> Path:
    given = Path(name).expanduser()
    path = folder / given
    if not path.exists() and not given.is_absolute():
        raise StatespanError(f"{path}: there is no such file; say where the text lies with --data, or mend [text]")
    return path


def store(material: Material, path: Path) -> None:
    """Write encoded text for the workers.

    Raises:
        StatespanError: the file cannot be written.
    """
    tensors = {}
    for part in (*PARTS, *TAGS):
        sentences = getattr(material, part)
        if sentences is not None:
            tensors[part] = torch.cat(sentences)
            tensors[f"{part}.lengths"] = torch.tensor([len(s) for s in sentences])
    header = {"name": material.name, "level": material.level, "vocabulary": material.vocabulary.to_json()}
    write_bytes(path, to_bytes(tensors, header | {"tags": json.dumps(material.tags)}))


def fetch(path: Path) -> Material:
    """Read what `store` wrote; what is found in the text is kept beside it."""
    with safe_open(str(path), framework="pt") as file:
        meta = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    parts = {
        part: list(tensors[part].split(tensors[f"{part}.lengths"].tolist()))
        for part in (*PARTS, *TAGS)
        if part in tensors
    }
    vocabulary, tags = Vocabulary.from_json(meta["vocabulary"]), tuple(json.loads(meta["tags"]))
    return Material(
        name=meta["name"], vocabulary=vocabulary, level=meta["level"], tags=tags, folder=path.parent, **parts
    )
