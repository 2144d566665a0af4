"""Classes of words: planted ones are found, and no single move would gain, by the objective itself."""

import pytest
import torch

from statespan.errors import StatespanError
from statespan.language.classes import word_classes


def information(owner: torch.Tensor, words: torch.Tensor, classes: int) -> float:
    """Mutual information of neighbouring classes, from its definition."""
    c = owner[words]
    joint = torch.zeros(classes, classes).double().index_put((c, c.roll(-1)), torch.tensor(1.0).double(), True)
    joint = joint / joint.sum()
    alone = joint.sum(0)
    there = joint > 0
    return float((joint * (joint / (alone[:, None] * alone)).clamp_min(1e-300).log())[there].sum())


def test_what_was_planted_is_found():
    draw = torch.Generator().manual_seed(0)
    kinds = torch.arange(3000) % 3  # three kinds in turn, four words each
    words = kinds * 4 + torch.randint(4, (3000,), generator=draw)
    owner = word_classes(words, 12, 3).owner
    assert [len(set(owner[i : i + 4].tolist())) for i in (0, 4, 8)] == [1, 1, 1]
    assert len(set(owner.tolist())) == 3


def test_no_single_move_gains_and_the_counts_are_those_of_the_classes():
    words = torch.multinomial(torch.rand(9, generator=torch.Generator().manual_seed(1)), 300, True)
    words[::3] = words.roll(1)[::3] // 2
    owner, pairs = word_classes(words, 10, 3, rounds=50)  # the tenth word never stands
    c = owner[words]
    assert pairs.tolist() == torch.zeros(3, 3).index_put((c, c.roll(-1)), torch.tensor(1.0), True).tolist()
    best = information(owner, words, 3)
    for w in range(10):
        for k in range(3):
            other = owner.clone()
            other[w] = k
            if len(set(other.tolist())) == 3:
                assert information(other, words, 3) <= best + 1e-9
    assert word_classes(words, 10, 10).owner.sort().values.tolist() == list(range(10))


def test_more_classes_than_words_are_refused():
    with pytest.raises(StatespanError, match="1 to 4"):
        word_classes(torch.tensor([0, 1]), 4, 5)
