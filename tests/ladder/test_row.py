"""How a row's model begins: from classes of words that its text holds."""

import pytest
import torch
from torch.testing import assert_close

from statespan.errors import StatespanError
from statespan.ladder.material import Material
from statespan.ladder.recipe import Entry
from statespan.ladder.row import MIXED, RARE, build
from statespan.language.classes import word_classes
from statespan.language.scoring import score_sentences
from statespan.language.vocabulary import Vocabulary

EMBEDDED = "bayes/rows-embedded/none/mixture-embedded"


def toy() -> Material:
    """Lines of four words, of two kinds in turn, three words each."""
    drawn = torch.randint(3, (60, 4), generator=torch.Generator().manual_seed(0))
    lines = [torch.cat([row + torch.tensor([2, 5, 2, 5]), torch.tensor([Vocabulary.eos])]) for row in drawn]
    return Material("toy", Vocabulary(list("abcdef")), lines[:50], lines[50:55], lines[55:])


def test_states_begin_as_classes_of_words_and_predict_at_once():
    text = toy()
    start, random = (build(Entry("hmm", "hmm", width=4, begin=b), text, 0) for b in ("classes", "random"))
    frequencies, probs = text.frequencies(), start.emission.probs
    assert_close(probs.sum(-1), torch.ones(4))
    owner = word_classes(torch.cat(text.train), 8, 4).owner
    assert (probs.argmax(0) == owner).all()
    mixed = 1 - (1 - MIXED) * (1 - RARE / (frequencies * (text.tokens + 8) - 1 + RARE))
    elsewhere = (mixed * frequencies).expand(4, -1)
    other = owner != torch.arange(4)[:, None]
    assert_close((probs / probs[:, :1])[other & other[:, :1]], (elsewhere / elsewhere[:, :1])[other & other[:, :1]])
    rows = start.transition.probs
    assert_close(rows.sum(-1), torch.ones(4))
    assert rows[owner[2]].argmax() == owner[5]
    better, worse = (score_sentences(m, text.valid).perplexity for m in (start, random))
    assert better < 0.95 * worse


def test_an_embedded_rows_classes_are_those_of_the_text():
    text = toy()
    model = build(Entry("many", EMBEDDED, width=8, embedding=3, classes=4), text, 0)
    assert model.emission.owner.tolist() == word_classes(torch.cat(text.train), 8, 4).owner.tolist()
    assert model.emission.owner.tolist() != [0, 1, 2, 3] * 2


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"rung": "elman", "begin": "classes"}, "starts the free rows of an HMM"),
        ({"rung": "hmm", "begin": "classes", "trainer": "EM"}, "EM has its own"),
        ({"rung": "hmm", "begin": "words"}, "one of random, classes"),
        ({"rung": EMBEDDED, "trainer": "EM"}, "made of vectors"),
        ({"rung": EMBEDDED, "first": "columns"}, "full matrix"),
        ({"rung": EMBEDDED, "classes": 3}, "cannot be shared evenly"),
    ],
)
def test_what_cannot_begin_so_is_told(wrong, told):
    with pytest.raises(StatespanError, match=told):
        Entry(**{"name": "row", "width": 4} | wrong)
