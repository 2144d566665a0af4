import math
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from statespan.errors import StatespanError
from statespan.language.corpora import read
from statespan.language.ngrams import KneserNey
from statespan.language.vocabulary import Vocabulary, encode_corpus

PTB = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "ptb"
EOS, V = 1, 9


def text(seed: int, sentences: int = 30, top: int = V) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.distributions.Categorical(torch.arange(top, 0, -1.0)[2:])
    lengths = torch.randint(0, 7, (sentences,), generator=generator).tolist()
    words = [
        torch.multinomial(draw.probs, n, replacement=True, generator=generator) + 2 if n else None for n in lengths
    ]
    return [torch.tensor([EOS]) if w is None else torch.cat([w, torch.tensor([EOS])]) for w in words]


def grams(sentences: list[torch.Tensor], order: int, independent: bool) -> list[tuple[int, ...]]:
    """The n-grams of a text, word by word."""
    out, before = [], [EOS] * (order - 1)
    for sentence in sentences:
        if independent:
            before = [EOS] * (order - 1)
        for word in sentence.tolist():
            out.append((*before, word))
            before = [*before, word][1:]
    return out


class Reference:
    """Kneser-Ney in dictionaries, straight from the formula."""

    def __init__(self, sentences: list[torch.Tensor], order: int, discount: float | None, independent: bool):
        self.counts = {order: Counter(grams(sentences, order, independent))}
        for n in range(order - 1, 0, -1):
            self.counts[n] = Counter(gram[1:] for gram in self.counts[n + 1])  # of distinct words to the left
        self.discount = {}
        for n, counts in self.counts.items():
            n1, n2 = (sum(c == r for c in counts.values()) for r in (1, 2))
            self.discount[n] = discount or (n1 / (n1 + 2 * n2) if n1 else 0.75)

    def p(self, word: int, history: tuple[int, ...]) -> float:
        counts, d = self.counts[len(history) + 1], self.discount[len(history) + 1]
        after = {gram[-1]: c for gram, c in counts.items() if gram[:-1] == history}
        total = sum(after.values())
        if not history and len(after) == V:
            return after[word] / total
        lower = self.p(word, history[1:]) if history else 1 / V
        if not total:
            return lower
        freed = sum(min(c, d) for c in after.values())
        return (max(after.get(word, 0) - d, 0) + freed * lower) / total


@pytest.mark.parametrize("independent", [True, False])
@pytest.mark.parametrize("discount", [0.75, 0.3, 1.0, None])
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("top", [V, V - 2])  # where V - 2, two words of the vocabulary never occur
def test_against_the_formula(order, discount, independent, top):
    train, held_out = text(0, top=top), text(1)
    if top == V:
        train.append(torch.tensor([*range(V), EOS]))
    model = KneserNey(order, discount).fit(train, V, independent)
    reference = Reference(train, order, discount, independent)
    wanted = [reference.p(gram[-1], gram[:-1]) for gram in grams(held_out, order, independent)]
    got = model.log_prob(held_out, independent)
    torch.testing.assert_close(got.exp(), torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=0)
    assert model.perplexity(held_out, independent) == pytest.approx(math.exp(-got.mean()), rel=1e-12)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("history", [[], [2], [0], [1, 1], [3, 2], [0, 8], [8, 8], [5, 4, 3, 2]])
def test_the_next_word_sums_to_one_for_seen_and_unseen_histories(order, history):
    train = text(0)
    model = KneserNey(order).fit(train, V)
    probs = model.probs(history)
    assert probs.shape == (V,) and (probs > 0).all()
    assert float(probs.sum()) == pytest.approx(1, abs=1e-12)
    reference = Reference(train, order, 0.75, True)
    used = tuple(history[1 - order :])
    assert probs.tolist() == pytest.approx([reference.p(w, used) for w in range(V)], rel=1e-12)
    assert model.probs(torch.tensor(history, dtype=torch.long)).equal(probs)


def test_log_prob_agrees_with_probs_along_a_sentence():
    model = KneserNey(order=3).fit(text(0), V)
    [sentence] = text(5, sentences=1)
    before = [EOS, EOS, *sentence.tolist()]
    wanted = [float(model.probs(before[: n + 2])[word]) for n, word in enumerate(sentence.tolist())]
    assert model.log_prob([sentence]).exp().tolist() == pytest.approx(wanted)


def test_a_bigram_is_the_same_under_both_protocols():
    model, again = (
        KneserNey().fit(text(0), V, independent=True),
        KneserNey().fit(text(0), V, independent=False),
    )
    assert model.log_prob(text(1), True).equal(model.log_prob(text(1), False))
    assert model.log_prob(text(1)).equal(again.log_prob(text(1)))


def test_edge_cases():
    end = [torch.tensor([EOS])]
    assert float(KneserNey(order=3, discount=None).fit(end, 2).probs([1, 1]).sum()) == pytest.approx(1)
    assert KneserNey().fit(text(0), V).log_prob([torch.tensor([], dtype=torch.long), *end]).shape == (1,)
    large = KneserNey(order=3).fit([torch.tensor([1_999_999, 1_999_998, 1_999_999, 1])], 2_000_000)
    assert float(large.probs([1_999_999, 1_999_998])[1_999_999]) > 0.2


def test_bad_input_is_told():
    for wrong in ({"order": 4}, {"discount": 0.0}, {"discount": 1.5}):
        with pytest.raises(StatespanError, match=f"{next(iter(wrong))} is"):
            KneserNey(**wrong)
    with pytest.raises(StatespanError, match="not fitted"):
        KneserNey().probs([1])
    with pytest.raises(StatespanError, match="there are no words"):
        KneserNey().fit([], V)
    with pytest.raises(StatespanError, match="vocabulary_size is 0"):
        KneserNey().fit(text(0), 0)
    model = KneserNey().fit(text(0), V)
    for word in (-1, V):
        with pytest.raises(StatespanError, match=f"word {word} is not in the vocabulary; give 0 to 8"):
            model.perplexity([torch.tensor([word])])
        with pytest.raises(StatespanError, match=f"probs: word {word} is not"):
            model.probs([word])


@pytest.mark.skipif(not PTB.is_dir(), reason="the Penn Treebank, ../shared/data/ptb, is not here")
def test_penn_treebank():
    train, valid, test = (read(PTB / f"ptb.{part}.txt") for part in ("train", "valid", "test"))
    vocabulary = Vocabulary.build(train)
    assert len(vocabulary) == 10_000
    train, valid, test = (encode_corpus(part, vocabulary) for part in (train, valid, test))
    start = time.process_time()
    bigram = KneserNey(order=2, discount=0.75).fit(train, len(vocabulary))
    assert bigram.perplexity(valid) == pytest.approx(200.98, abs=0.005)
    assert bigram.perplexity(test) == pytest.approx(186.47, abs=0.005)
    trigram = KneserNey(order=3).fit(train, len(vocabulary))
    assert trigram.perplexity(valid) == pytest.approx(164.65, abs=0.005)
    assert time.process_time() - start < 10  # 0.6 s on a quiet machine
