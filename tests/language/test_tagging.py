import math
from pathlib import Path

import pytest
import torch
from sklearn.metrics import homogeneity_completeness_v_measure
from sklearn.metrics.cluster import contingency_matrix

from statespan.errors import StatespanError
from statespan.language.corpora import Sentence, read, read_tagged
from statespan.language.tagging import (
    Tally,
    encode_tags,
    many_to_one,
    next_word_tag_accuracy,
    tag_given_state,
    tag_given_word,
    tagset,
    through_counts,
    universal,
    v_measure,
)
from statespan.language.vocabulary import Vocabulary, encode_corpus

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
N, V, K, G = 200, 12, 5, 4


def draw(high: int, seed: int, low: int = 0) -> torch.Tensor:
    return torch.randint(low, high, (N,), generator=torch.Generator().manual_seed(seed))


def test_universal(tmp_path):
    path = tmp_path / "a.map"
    path.write_text("NN\tNOUN\n\nVBZ VERB\nNN\tNOUN\n")
    assert universal(path) == {"NN": "NOUN", "VBZ": "VERB"}
    for line in ("NN", "NN NOUN X", "NN VERB"):
        path.write_text(f"NN\tNOUN\n{line}\n")
        with pytest.raises(StatespanError, match=f"line 2: '{line}' is not one tag"):
            universal(path)
    path.write_text("")
    with pytest.raises(StatespanError, match="holds no tags"):
        universal(path)


def test_tags_are_aligned_with_words():
    text = [Sentence(("time", "flies"), ("NN", "VBZ")), Sentence(("flies",), ("NNS",))]
    mapping = {"NN": "NOUN", "NNS": "NOUN", "VBZ": "VERB"}
    assert tagset(text) == ("NN", "NNS", "VBZ") and tagset(text, mapping) == ("NOUN", "VERB")
    assert [t.tolist() for t in encode_tags(text, ("NOUN", "VERB"), mapping)] == [[0, 1, -1], [0, -1]]
    assert [t.tolist() for t in encode_tags(text, ("NN", "VBZ"))] == [[0, 1, -1], [-1, -1]]
    words = encode_corpus(text, Vocabulary.build(text))
    assert [len(w) for w in words] == [len(t) for t in encode_tags(text, ("NN",))]
    with pytest.raises(StatespanError, match="sentence 1: tag 'VBZ' is not in the map"):
        tagset(text, {"NN": "NOUN"})
    with pytest.raises(StatespanError, match="sentence 2 has no tags"):
        encode_tags([text[0], Sentence(("a",))], ("NN",))


def test_tag_given_word_counts():
    words, tags = draw(V - 2, 0), draw(G, 1, low=-1)
    table = tag_given_word(words, tags, V, G)
    assert table.shape == (V, G) and torch.allclose(table.sum(1), torch.ones(V, dtype=torch.float64))
    for word in range(V):
        of_word = [int(t) for w, t in zip(words, tags, strict=True) if w == (word if word < V - 2 else 0) and t >= 0]
        wanted = [of_word.count(tag) / len(of_word) for tag in range(G)]
        assert table[word].tolist() == pytest.approx(wanted)


def test_an_unseen_word_without_unk_takes_the_tags_of_all():
    table = tag_given_word(torch.tensor([2, 2, 3, 3]), torch.tensor([0, 0, 0, 1]), 5, 2)
    assert table[[0, 1, 4]].tolist() == [[0.75, 0.25]] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_next_word_tag_accuracy(dtype):
    table = tag_given_word(draw(V, 0), draw(G, 1), V, G)
    logits = 3 * torch.randn(N, V, generator=torch.Generator().manual_seed(2), dtype=dtype)
    logits[:, Vocabulary.eos] += 200  # to be left out
    gold = draw(G, 3, low=-1)
    correct = 0
    for n in range(N):
        mass = [
            sum(math.exp(float(logits[n, w])) * float(table[w, t]) for w in range(V) if w != Vocabulary.eos)
            for t in range(G)
        ]
        correct += mass.index(max(mass)) == gold[n]
    whole = next_word_tag_accuracy(logits.log_softmax(1).requires_grad_(), table, gold)
    assert whole == (correct, int((gold >= 0).sum())) == next_word_tag_accuracy(logits, table, gold)
    parts = Tally(0, 0)
    for part, tags in zip(logits.split(64), gold.split(64), strict=True):
        parts = parts.plus(next_word_tag_accuracy(part, table, tags))
    assert parts == whole and parts.accuracy == correct / whole.counted
    assert next_word_tag_accuracy(logits[:2], table, torch.tensor([-1, -1])) == (0, 0)
    assert math.isnan(Tally(0, 0).accuracy)


def test_the_answer_leaves_its_input_alone():
    logits = torch.zeros(2, V)
    next_word_tag_accuracy(logits, torch.ones(V, G), torch.tensor([0, 1]))
    assert (logits == 0).all()


def test_through_counts_hard_and_soft():
    states, tags = draw(K - 1, 0, low=-1), draw(G, 1, low=-1)
    table = tag_given_state(states, tags, K, G)
    assert torch.allclose(table.sum(1), torch.ones(K, dtype=torch.float64))
    known = states >= 0
    beliefs = torch.nn.functional.one_hot(states[known], K).float()
    assert torch.allclose(tag_given_state(beliefs, tags[known], K, G), table)
    both = known & (tags >= 0)
    guess = table.argmax(1)[states[both]]
    wanted = (int((guess == tags[both]).sum()), int(both.sum()))
    assert through_counts(states, table, tags) == wanted == through_counts(beliefs, table, tags[known])
    mixed = torch.rand(N, K, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    soft = tag_given_state(mixed, tags, K, G)
    by_hand = torch.stack([mixed[tags == t].sum(0) for t in range(G)], 1)
    assert torch.allclose(soft, by_hand / by_hand.sum(1, keepdim=True))
    right = ((mixed @ soft).argmax(1) == tags).sum()
    assert through_counts(mixed, soft, tags) == (int(right), int((tags >= 0).sum()))


@pytest.mark.parametrize("seed", range(4))
def test_many_to_one_and_v_measure_against_sklearn(seed):
    states = draw(K, seed)
    gold = torch.where(draw(3, seed + 10) > 0, states % G, draw(G, seed + 20))
    table = contingency_matrix(states.numpy(), gold.numpy())
    assert many_to_one(states, gold, K, G) == pytest.approx(table.max(1).sum() / N)
    wanted = homogeneity_completeness_v_measure(gold.numpy(), states.numpy())
    assert tuple(v_measure(states, gold)) == pytest.approx(wanted, abs=1e-12)


def test_v_measure_at_the_corners():
    a, zero = draw(G, 0), torch.zeros(N, dtype=torch.long)
    for states, gold in ((a, a), (zero, zero), (a, zero), (zero, a), (torch.arange(N), a)):
        wanted = homogeneity_completeness_v_measure(gold.numpy(), states.numpy())
        assert tuple(v_measure(states, gold)) == pytest.approx(wanted, abs=1e-12)


def test_what_is_not_known_is_not_counted():
    states, gold = draw(K, 0), draw(G, 1, low=-1)
    known = gold >= 0
    assert many_to_one(states, gold, K, G) == many_to_one(states[known], gold[known], K, G)
    assert v_measure(states, gold) == v_measure(states[known], gold[known])


def test_bad_input_is_told():
    one = torch.tensor([1])
    with pytest.raises(StatespanError, match=r"many_to_one: .* do not fit; give one tag each"):
        many_to_one(torch.tensor([0, 1]), one, K, G)
    with pytest.raises(StatespanError, match="v_measure: there is no known tag"):
        v_measure(one, torch.tensor([-1]))
    with pytest.raises(StatespanError, match="tag_given_word: tag 4 is out of range; give 0 to 3"):
        tag_given_word(one, torch.tensor([G]), V, G)
    with pytest.raises(StatespanError, match="tag_given_state: number 5 is out of range; give 0 to 4"):
        tag_given_state(torch.tensor([K]), one, K, G)
    with pytest.raises(StatespanError, match="tag_given_state: beliefs have 3 columns; give 5"):
        tag_given_state(torch.ones(1, 3), one, K, G)
    with pytest.raises(StatespanError, match="through_counts: state 5 is out of range"):
        through_counts(torch.tensor([K]), torch.ones(K, G), one)
    with pytest.raises(StatespanError, match=r"next_word_tag_accuracy: shapes \(1, 3\), \(12, 4\) and \(1,\)"):
        next_word_tag_accuracy(torch.zeros(1, 3), torch.ones(V, G), one)


@pytest.mark.skipif(not DATA.is_dir(), reason="the experiment data, ../shared/data, is not here")
def test_penn_treebank():
    mapping = universal(DATA / "tagmaps" / "en-ptb.map")
    assert len(set(mapping.values())) == 12
    words, tagged = (
        read(DATA / "ptb" / "ptb.valid.txt"),
        read_tagged(DATA / "ptb-tagged" / "valid.aligned.txt"),
    )
    tags = tagset(tagged, mapping)
    vocabulary = Vocabulary.build(words)
    ids, gold = torch.cat(encode_corpus(words, vocabulary)), torch.cat(encode_tags(tagged, tags, mapping))
    assert len(tags) <= 12 and ((gold < 0) == (ids == Vocabulary.eos)).all()
    table = tag_given_word(ids, gold, len(vocabulary), len(tags))
    assert through_counts(ids, table, gold).accuracy == many_to_one(ids, gold, len(vocabulary), len(tags)) > 0.9
