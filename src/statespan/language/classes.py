"""Classes of words that keep the same company, from the pairs of a text."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from statespan.errors import StatespanError

ROUNDS = 5
"""Passes over the words; twenty gain a hundredth of the mutual information."""


class Classes(NamedTuple):
    """Words in classes.

    Args:
        owner: (V,) the class of each word.
        pairs: (C, C) how often a word of one class is followed by one of another.
    """

    owner: Tensor
    pairs: Tensor

    @property
    def shares(self) -> Tensor:
        """(C,) of the text, sums to one."""
        total = self.pairs.sum(0).double()
        return total / total.sum()


def classes_of(words: Tensor, owner: Tensor, classes: int) -> Classes:
    """Words in classes that are known, counted in a text.

    Args:
        words: (N,) the text, a ring of integers.
        owner: (V,) the class of each word.
        classes: C.

    Example:
        >>> classes_of(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]), 2).pairs
        tensor([[1, 1],
                [1, 0]])
    """
    first = owner[words]
    pairs = torch.bincount(first * classes + first.roll(-1), minlength=classes**2)
    return Classes(owner, pairs.view(classes, classes))


def word_classes(words: Tensor, symbols: int, classes: int, rounds: int = ROUNDS) -> Classes:
    """Put every symbol into one of C classes so that a class says much of the one after it.

    What is climbed is the mutual information of neighbouring classes, as by Brown clustering; here words are moved from
    class to class one by one, the frequent ones first, until none gains. The text is taken as a ring. Each class keeps
    a word at least.

    Args:
        words: (N,) the text, integers.
        symbols: V.
        classes: C.
        rounds: passes over the words, at most.

    Raises:
        StatespanError: more classes than symbols.

    Source:
        Kneser and Ney 1993, "Improved clustering techniques for class-based statistical language modelling"; Brown et
        al. 1992, "Class-based n-gram models of natural language", equation 17.

    Example:
        >>> word_classes(torch.tensor([0, 2, 1, 3, 0, 3, 1, 2] * 5), 4, 2).owner.tolist()
        [1, 1, 0, 0]
    """
    from statespan.language._jit_classes import exchange

    if not 1 <= classes <= symbols:
        raise StatespanError(f"classes={classes} must be 1 to {symbols}, the number of symbols")
    text = words.cpu().numpy()
    single = np.bincount(text, minlength=symbols)
    order = np.argsort(-single, kind="stable")
    codes, counts = np.unique(text * symbols + np.roll(text, -1), return_counts=True)
    first, second = codes // symbols, codes % symbols
    own = first == second
    selves = np.zeros(symbols, np.int64)
    selves[first[own]] = counts[own]
    a, b, n = (x[~own] for x in (first, second, counts))
    back = np.argsort(b, kind="stable")
    edges = np.stack([np.searchsorted(x, np.arange(symbols + 1)) for x in (a, b[back])])
    others, counted = np.stack([b, a[back]]), np.stack([n, n[back]])
    owner = np.empty(symbols, np.int64)
    owner[order] = np.arange(symbols) % classes
    pairs = np.zeros((classes, classes), np.int64)
    np.add.at(pairs, (owner[first], owner[second]), counts)
    both = np.stack([pairs, pairs.T])
    totals, sizes = pairs.sum(0), np.bincount(owner, minlength=classes)
    each = np.arange(len(text) + 1, dtype=np.float64)
    table = each * np.log(np.maximum(each, 1))
    for _ in range(rounds):
        if not exchange(order, edges, others, counted, selves, single, owner, sizes, both, totals, table):
            break
    return Classes(torch.from_numpy(owner).to(words.device), torch.from_numpy(both[0]).to(words.device))
