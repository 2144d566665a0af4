"""Tagging by the four protocols, against loops over words and all paths; the reference lines on the Penn Treebank."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

import statespan as ss
from statespan.language import protocols
from statespan.language.corpora import Sentence, read_tagged, read_text
from statespan.language.ngrams import KneserNey
from statespan.language.protocols import Accuracy, accuracy, gold
from statespan.language.tagging import universal
from statespan.language.vocabulary import Vocabulary, encode_corpus, stream

DATA = Path(__file__).parents[3] / "shared" / "data"
MAPPING = {"DT": "D", "NN": "N", "NNS": "N", "VBZ": "V"}
LEXICON = [Sentence(("The", "dog", "runs", "7", "runs", "%"), ("DT", "NN", "VBZ", "NNS", "NNS", "NN"))]
TAGGED = [
    Sentence(("The", "dog", "runs"), ("DT", "NN", "VBZ")),
    Sentence(("Zebra", "runs"), ("NN", "NNS")),
    Sentence(("1,000", "runs", "the", "the"), ("NNS", "VBZ", "DT", "DT")),
]
WORDS = [Sentence(words) for words in (("the", "dog", "runs"), ("<unk>", "runs"), ("N", "runs", "the", "the"))]
VOCABULARY = Vocabulary(["the", "dog", "runs", "N", "never"])


@pytest.fixture(scope="module")
def text() -> protocols.Gold:
    return gold(WORDS, TAGGED, LEXICON, VOCABULARY, MAPPING)


def test_treebank_words():
    pairs = {"%": "N", "10": "N", "1\\/2": "N", "10:30": "N", "-7.5": "N", "--": "--", "'30s": "'30s", "S&P": "s&p"}
    assert {word: protocols.treebank_word(word) for word in pairs} == pairs


def test_gold_counts_and_classes(text):
    assert text.names == ("DT", "NN", "NNS", "VBZ")
    rows = {word: text.given_word[VOCABULARY.encode([word])[0]].tolist() for word in VOCABULARY.words}
    assert rows["runs"] == [0, 0, 0.5, 0.5] and rows["N"] == [0, 0.5, 0.5, 0] and rows["<eos>"] == [0, 0, 0, 0]
    assert rows["never"] == rows["<unk>"], "never tagged: as <unk>, itself as all words where it was never seen"
    assert text.classes.tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]]
    with pytest.raises(ss.StatespanError, match="sentence 1: the words 'the dog' are not those with the tags"):
        gold([Sentence(("the", "dog"))], TAGGED[:1], LEXICON, VOCABULARY)
    with pytest.raises(ss.StatespanError, match="3 sentences of words and 1 of tags"):
        gold(WORDS, TAGGED[:1], LEXICON, VOCABULARY)
    with pytest.raises(ss.StatespanError, match="tag 'VBZ' is not in the map"):
        gold(WORDS, TAGGED, LEXICON, VOCABULARY, {"DT": "D", "NN": "N", "NNS": "N"})


def made(rung: str):
    model = ss.ladder(rung, vocabulary=len(VOCABULARY), width=3, start=VOCABULARY.eos, seed=2, spread=2.0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)))
    return model


def count(text: protocols.Gold, scores: list[Tensor], tags: list[int]) -> Accuracy:
    """Word by word, in Python."""
    fine = coarse = counted = 0
    of = [row.index(1) for row in text.classes.tolist()]
    for row, tag in zip(scores, tags, strict=True):
        if tag < 0:
            continue
        values = row.tolist()
        fine += values.index(max(values)) == tag
        sums = [sum(v for v, c in zip(values, of, strict=True) if c == j) for j in range(3)]
        coarse += sums.index(max(sums)) == of[tag]
        counted += 1
    return Accuracy(protocols.Tally(fine, counted), protocols.Tally(coarse, counted))


def rows(text: protocols.Gold, independent: bool) -> list[tuple[list[int], list[int]]]:
    """What is read from one cold start to the end, words and tags."""
    if independent:
        return [(w.tolist(), t.tolist()) for w, t in zip(text.words, text.tags, strict=True)]
    words, tags = stream(text.words, 3), stream(text.tags, 3)
    return [(w[w >= 0].tolist(), t[w >= 0].tolist()) for w, t in zip(words.T, tags.T, strict=True)]


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("rung", ["hmm", "hmm/addition-raw", "elman", "lstm"])
def test_prefix_by_brute_force(rung, independent, text, monkeypatch):
    monkeypatch.setattr(protocols, "COLUMNS", 3)
    monkeypatch.setattr(protocols, "CHUNK", 2 * 3 * len(VOCABULARY))
    model, scores, gold_tags = made(rung), [], []
    for words, tags in rows(text, independent):
        for t in range(len(words)):
            with torch.no_grad():
                each = model.log_prob([[*words[:t], w] for w in range(len(VOCABULARY))]).double().softmax(0)
            scores.append(each @ text.given_word)
        gold_tags += tags
    assert accuracy(model, text, "prefix", independent) == count(text, scores, gold_tags)


@pytest.mark.parametrize("independent", [False, True])
def test_states_by_the_textbooks_recursion(independent, text, monkeypatch):
    monkeypatch.setattr(protocols, "COLUMNS", 3)
    model = made("hmm")
    first, move = (x.logits.softmax(-1).double().detach() for x in (model.initial, model.transition))
    emit = model.emission.table.log_probs().exp().double().detach()
    table = emit.T @ text.given_word
    found: dict[str, list[Tensor]] = {"prefix-state": [], "filtered": [], "viterbi": []}
    gold_tags: list[int] = []
    for words, tags in rows(text, independent):
        state = first
        for t, word in enumerate(words):
            state = state @ move if t else state
            found["prefix-state"].append(table[int(state.argmax())])
            state = state * emit[word] / (state * emit[word]).sum()
            found["filtered"].append(state @ table)

        def joint(path: tuple[int, ...], words=words) -> float:
            p = first[path[0]] * torch.stack([emit[w, k] for w, k in zip(words, path, strict=True)]).prod()
            return float(p * torch.stack([torch.ones(()), *(move[a, b] for a, b in itertools.pairwise(path))]).prod())

        best = max(itertools.product(range(3), repeat=len(words)), key=joint)
        found["viterbi"] += [table[k] for k in best]
        gold_tags += tags
    for protocol, scores in found.items():
        assert accuracy(model, text, protocol, independent) == count(text, scores, gold_tags), protocol


@pytest.mark.parametrize(("rung", "protocol"), [("hmm/late-emission", "filtered"), ("elman/softmax", "prefix-state")])
def test_a_state_under_a_softmax_has_the_words_of_one_that_is_certain(rung, protocol, text):
    model = made(rung)
    table = model.emission.table
    words = (table.weight + table.bias[:, None]).softmax(0).detach().T.double()
    assert accuracy(model, text, protocol) == accuracy(model, text, protocol, states=words @ text.given_word)


def test_an_unknown_protocol_is_refused(text):
    with pytest.raises(ss.StatespanError, match="must be one of prefix, prefix-state, filtered, viterbi"):
        accuracy(made("hmm"), text, "suffix")


def test_the_supervised_model_counts():
    words, tags = torch.tensor([2, 3, 2, 2, 4]), torch.tensor([0, 1, 0, 0, 1])
    lines = protocols.in_lines(words, tags, [torch.tensor(line) for line in ([2, 3, 1], [2, 4, 1], [3, 4, 1])])
    assert [line.tolist() for line in lines.tags] == [[0, 1, -1], [0, 1, -1]], (
        "the second 2 3 2 is no line; 3 4 is none"
    )
    model = protocols.supervised(words, tags, lines, 5, 2)
    table = torch.tensor([0.01, 0.01, 3.01, 0.01, 0.01]).double()
    torch.testing.assert_close(model.emission.probs[0].detach(), table / 3.05)
    torch.testing.assert_close(model.transition.probs[0].detach(), torch.tensor([0.01, 2.01]).double() / 2.02)
    assert model.initial.probs().tolist() == pytest.approx([2.01 / 2.02, 0.01 / 2.02])
    after = protocols.next_tags(lines, 5, 2)
    assert after[[1, 2, 3]].tolist() == [[1, 0], [0, 1], [0.5, 0.5]], "after 3 nothing is known, nor after <unk>: all"


# ---------------------------------------------------------------------------------------- the Penn Treebank

here = pytest.mark.skipif(not DATA.is_dir(), reason="the experiment data, ../shared/data, is not here")


@pytest.fixture(scope="module")
def treebank():
    """Training words, the tagged lexicon as numbers, and the validation text with its tags."""
    train = read_text(DATA / "ptb" / "ptb.train.txt")
    vocabulary = Vocabulary.build(train)
    lexicon = read_tagged(DATA / "ptb-tagged" / "train.tagged")
    valid, tagged = read_text(DATA / "ptb" / "ptb.valid.txt"), read_tagged(DATA / "ptb-tagged" / "valid.aligned.txt")
    text = gold(valid, tagged, lexicon, vocabulary, universal(DATA / "tagmaps" / "en-ptb.map"))
    words = vocabulary.encode(protocols.treebank_word(word) for word in lexicon[0].words)
    places = {tag: i for i, tag in enumerate(text.names)}
    tags, encoded = torch.tensor([places[t] for t in lexicon[0].tags or ()]), encode_corpus(train, vocabulary)
    return encoded, words, tags, text, protocols.in_lines(words, tags, encoded)


def percent(found: Accuracy) -> tuple[float, float]:
    return round(100 * found.fine.accuracy, 2), round(100 * found.coarse.accuracy, 2)


@here
@pytest.mark.parametrize("part", ["valid", "test"])
def test_treebank_words_are_those_of_the_text(part):
    vocabulary = Vocabulary.build(read_text(DATA / "ptb" / "ptb.train.txt"))
    tagged = read_tagged(DATA / "ptb-tagged" / f"{part}.aligned.txt")
    ours = [
        tuple(w if w in vocabulary else "<unk>" for w in map(protocols.treebank_word, sentence.words))
        for sentence in tagged
    ]
    assert ours == [sentence.words for sentence in read_text(DATA / "ptb" / f"ptb.{part}.txt")]


@here
def test_the_reference_lines(treebank):
    train, _, tags, text, lines = treebank
    vocabulary, count = text.given_word.shape
    frequencies = torch.bincount(tags, minlength=count)
    assert percent(protocols.frequent_tag(text, frequencies)) == (16.01, 34.16)
    assert percent(protocols.known_word(text)) == (87.42, 92.61)
    kneser_ney = KneserNey(2, 0.75).fit(train, vocabulary)
    table = torch.zeros_like(text.given_word)
    for word in torch.cat(text.words).unique().tolist():
        table[word] = kneser_ney.probs([word]) @ text.given_word
    assert percent(protocols.previous_word(text, table)) == (37.26, 48.91)
    # Neighbours within the lines of the training text, a first word after <eos>: across lines it is 37.86 / 49.91.
    assert percent(protocols.previous_word(text, protocols.next_tags(lines, vocabulary, count))) == (37.83, 49.88)


@here
def test_the_supervised_hmm(treebank):
    _, words, tags, text, lines = treebank
    assert len(lines.words) == 41976, "of 42,068: the others were cut into words differently"
    vocabulary, count = text.given_word.shape
    model, plain = protocols.supervised(words, tags, lines, vocabulary, count), protocols.without_ends(text)
    names = torch.eye(count, dtype=torch.float64)
    assert percent(accuracy(model, plain, "filtered", True, names)) == (89.53, 93.50)
    assert percent(accuracy(model, plain, "viterbi", True, names)) == (91.22, 94.68)
