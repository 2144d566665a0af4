import time

import pytest
import torch

from statespan.errors import StatespanError
from statespan.language.corpora import Sentence
from statespan.language.vocabulary import Vocabulary, encode_corpus, stream, windows

TEXT = [Sentence(tuple(line.split())) for line in ("b a c a", "<unk> b", "d <unk>", "a")]


def test_the_special_words_are_always_0_and_1():
    for words in ([], ["a"], ["a", "<unk>"], ["<eos>", "a", "<unk>"]):
        vocabulary = Vocabulary(words)
        assert vocabulary.words[:2] == ("<unk>", "<eos>") and (vocabulary.unk, vocabulary.eos) == (0, 1)
        assert vocabulary.encode(["<unk>", "<eos>"]).tolist() == [0, 1]
        assert len(vocabulary) == 2 + ("a" in words)


def test_build_counts_most_frequent_first_ties_alphabetical():
    assert Vocabulary.build(TEXT).words == ("<unk>", "<eos>", "a", "b", "c", "d")
    assert Vocabulary.build(TEXT, size=5).words == ("<unk>", "<eos>", "a", "b", "c")
    assert Vocabulary.build(TEXT, size=100) == Vocabulary.build(TEXT)
    assert Vocabulary.build(TEXT, minimum_count=2).words == ("<unk>", "<eos>", "a", "b")
    with pytest.raises(StatespanError, match="size is 2"):
        Vocabulary.build(TEXT, size=2)


def test_encode_and_decode():
    vocabulary = Vocabulary.build(TEXT)
    ids = vocabulary.encode(["a", "zebra", "d"])
    assert ids.dtype == torch.int64 and ids.tolist() == [2, 0, 5]
    assert vocabulary.encode([]).shape == (0,)
    assert vocabulary.decode(ids) == ["a", "<unk>", "d"]
    assert vocabulary.decode([]) == []
    for wrong in (-1, 6):
        with pytest.raises(StatespanError, match=f"position 1: {wrong} is no word; give 0 to 5"):
            vocabulary.decode([2, wrong])


def test_a_closed_vocabulary_names_the_word_and_its_place():
    closed = Vocabulary.build(TEXT[:1], unknown=False)
    assert closed.encode(["a", "<unk>"]).tolist() == [2, 0]
    with pytest.raises(StatespanError, match=r"^word 2: 'd' is not in the vocabulary; map it to <unk>$"):
        closed.encode(w for w in ("a", "d"))
    with pytest.raises(StatespanError, match=r"^sentence 3, word 1: 'd' is not"):
        encode_corpus(TEXT, closed)


def test_words_are_given_once():
    with pytest.raises(StatespanError, match="'b' is given twice"):
        Vocabulary(["a", "b", "b"])


@pytest.mark.parametrize("vocabulary", [Vocabulary(["é", '"', "a b"]), Vocabulary([], unknown=False)])
def test_json_round_trip(vocabulary):
    again = Vocabulary.from_json(vocabulary.to_json())
    assert again == vocabulary and again.unknown == vocabulary.unknown and hash(again) == hash(vocabulary)


@pytest.mark.parametrize("text", ["", "[1]", '{"words": ["a"]}', '{"words": 3, "unknown": true}'])
def test_bad_json_is_told(text):
    with pytest.raises(StatespanError, match="not what to_json writes"):
        Vocabulary.from_json(text)


def test_encode_corpus_appends_the_end():
    vocabulary = Vocabulary.build(TEXT)
    assert [s.tolist() for s in encode_corpus(TEXT, vocabulary)] == [
        [3, 2, 4, 2, 1],
        [0, 3, 1],
        [5, 0, 1],
        [2, 1],
    ]
    assert encode_corpus([], vocabulary) == []


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 6, 7, 12, 13, 20])
def test_a_stream_drops_nothing(batch):
    sentences = encode_corpus(TEXT, Vocabulary.build(TEXT))
    columns = stream(sentences, batch)
    words = torch.cat(sentences)
    assert columns.shape == (-(-len(words) // batch), batch) and columns.is_contiguous()
    flat = columns.T.reshape(-1)
    assert flat[: len(words)].equal(words) and (flat[len(words) :] == -1).all()


def test_windows_cover_a_stream():
    columns = torch.arange(14).view(7, 2)
    cut = list(windows(columns, 3))
    assert [(t0, len(window)) for t0, window in cut] == [(0, 3), (3, 3), (6, 1)]
    assert torch.cat([window for _, window in cut]).equal(columns)


def test_bad_sizes_are_told():
    with pytest.raises(StatespanError, match="batch is 0"):
        stream([torch.tensor([1])], 0)
    for nothing in ([], [torch.tensor([], dtype=torch.long)]):
        with pytest.raises(StatespanError, match="there are no words"):
            stream(nothing, 2)
    with pytest.raises(StatespanError, match="length is 0"):
        list(windows(torch.zeros(3, 1), 0))


def test_a_million_words_take_a_moment():
    text = [Sentence(tuple(str((i * i) % 9973) for i in range(n, n + 25))) for n in range(40_000)]
    start = time.process_time()
    vocabulary = Vocabulary.build(text)
    columns = stream(encode_corpus(text, vocabulary), 64)
    assert time.process_time() - start < 5  # 0.5 s on a quiet machine
    assert (columns >= 0).sum() == 1_040_000
