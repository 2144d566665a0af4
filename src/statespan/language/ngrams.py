"""N-gram language models, the baseline that a model with a state must beat."""

from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from statespan.errors import StatespanError
from statespan.language.vocabulary import Vocabulary


class _Table(NamedTuple):
    """The n-grams of one order, each a number in base V; counted, and summed over the last word."""

    grams: NDArray[np.int64]  # (M,) sorted
    discounted: NDArray[np.float64]  # (M,) max(c(h w) - D, 0)
    histories: NDArray[np.int64]  # (H,) sorted
    total: NDArray[np.float64]  # (H,) sum_w c(h w)
    left: NDArray[np.float64]  # (H,) what the discount took away, for the shorter history


@final
class KneserNey:
    """Interpolated Kneser-Ney: discounted counts, smoothed by how many histories a word follows.

    With D the discount, c(h w) the count of the word w after the history h, and h' the history without
    its first word,

        p(w | h) = max(c(h w) - D, 0) / c(h) + D N(h .) / c(h) p(w | h')

    where c(h) = sum_w c(h w) and N(h .) is the number of distinct words seen after h. Below the highest order
    c(h w) is the number of distinct words seen before h w. At the bottom p(w) = N(. w) / N(. .); if a
    word of the vocabulary was never seen, these too are discounted by D, and all V words share the rest
    evenly. A history never seen gives p(w | h'). The first word of a sentence has the history `<eos>`.

    Args:
        order: 2, one word of history, or 3, two.
        discount: D, above 0 and at most 1; None estimates n1 / (n1 + 2 n2) for each order, where n_r is
            the number of n-grams with count r (0.75 where n1 is 0).

    Raises:
        StatespanError: `order` or `discount` is none of these.

    Source: Kneser & Ney 1995, "Improved backing-off for m-gram language modeling"; interpolated as in Chen &
    Goodman 1999, "An empirical study of smoothing techniques for language modeling"; the estimated
    discount is that of Ney, Essen & Kneser 1994.

    Examples:
        >>> text = [torch.tensor([2, 3, 1]), torch.tensor([2, 2, 3, 1])]
        >>> bigram = KneserNey(order=2).fit(text, vocabulary_size=4)
        >>> round(bigram.perplexity(text), 3), round(float(bigram.probs([2]).sum()), 6)
        (1.686, 1.0)
    """

    def __init__(self, order: int = 2, discount: float | None = 0.75):
        if order not in (2, 3):
            raise StatespanError(f"KneserNey: order is {order}; give 2 or 3")
        if discount is not None and not 0 < discount <= 1:
            raise StatespanError(f"KneserNey: discount is {discount}; give one above 0 and at most 1, or None")
        self.order = order
        self.discount = discount
        self.size = 0
        self._base = np.empty(0)  # (V,) p(w)
        self._tables: list[_Table] = []  # of order 2, 3

    def fit(self, sentences: Sequence[Tensor], vocabulary_size: int, independent: bool = True) -> "KneserNey":
        """Count a text.

        Args:
            sentences: Tensors of integers from 0 to V - 1, (L_n,) each, `<eos>` at the end of each.
            vocabulary_size: V.
            independent: Whether a sentence starts afresh, its whole history `<eos>`; where False, a
                trigram also sees the last word of the sentence before. For a bigram both are the same.

        Returns:
            The model itself.

        Raises:
            StatespanError: There are no words, a word is not in 0 to V - 1, or V is above 2,000,000.

        Examples:
            >>> KneserNey(order=3).fit([torch.tensor([2, 1])], vocabulary_size=3).probs([1, 1])
            tensor([0.1406, 0.2109, 0.6484], dtype=torch.float64)
        """
        if not 1 <= vocabulary_size <= 2_000_000:
            raise StatespanError(f"KneserNey.fit: vocabulary_size is {vocabulary_size}; give 1 to 2000000")
        self.size = vocabulary_size
        histories, words = self._pairs(sentences, independent)
        grams, counts = np.unique(self._number(histories) * self.size + words, return_counts=True)
        self._tables = []
        for order in range(self.order, 1, -1):
            self._tables.insert(0, self._table(grams, counts))
            grams, counts = np.unique(grams % self.size ** (order - 1), return_counts=True)
        base = np.zeros(self.size)
        base[grams] = counts
        if base.min() == 0:
            discount = self._discount(counts)
            taken = np.minimum(base, discount)
            base = base - taken + taken.sum() / self.size
        self._base = base / base.sum()
        return self

    def log_prob(self, sentences: Sequence[Tensor], independent: bool = True) -> Tensor:
        """The log-probability of each word, given those before it.

        Args:
            sentences: As for `fit`, N words in all.
            independent: As for `fit`; give the same.

        Returns:
            (N,) float64, natural log; the sentences one after another, each `<eos>` counted.

        Raises:
            StatespanError: As `fit`, or the model is not fitted.

        Examples:
            >>> bigram = KneserNey(discount=1.0).fit([torch.tensor([2, 1])], vocabulary_size=3)
            >>> bigram.log_prob([torch.tensor([2, 1])]).exp()
            tensor([0.3333, 0.3333], dtype=torch.float64)
        """
        self._fitted()
        histories, words = self._pairs(sentences, independent)
        return torch.from_numpy(np.log(self._probs(histories, words)))

    def perplexity(self, sentences: Sequence[Tensor], independent: bool = True) -> float:
        """The perplexity exp(-mean log-probability of a word), each `<eos>` counted.

        Args:
            sentences: As for `fit`.
            independent: As for `fit`; give the same.

        Returns:
            The perplexity.

        Raises:
            StatespanError: As `log_prob`.

        Examples:
            >>> bigram = KneserNey(discount=1.0).fit([torch.tensor([2, 1])], vocabulary_size=3)
            >>> round(bigram.perplexity([torch.tensor([2, 1])]), 6)
            3.0
        """
        return float(self.log_prob(sentences, independent).mean().neg().exp())

    def probs(self, history: Tensor | Sequence[int]) -> Tensor:
        """The distribution of the next word.

        Args:
            history: The words before it, any number of integers from 0 to V - 1. The last order - 1 are
                used; with fewer, the model of the lower order answers. A sentence starts with order - 1
                times `<eos>`.

        Returns:
            (V,) float64, sums to 1.

        Raises:
            StatespanError: A word is not in 0 to V - 1, or the model is not fitted.

        Examples:
            >>> KneserNey().fit([torch.tensor([2, 1]), torch.tensor([1])], vocabulary_size=3).probs([1])
            tensor([0.1250, 0.5625, 0.3125], dtype=torch.float64)
        """
        self._fitted()
        last = torch.as_tensor(history, dtype=torch.int64).cpu().numpy().reshape(-1)[1 - self.order :]
        self._check(last, "KneserNey.probs")
        histories = np.broadcast_to(last, (self.size, len(last)))
        return torch.from_numpy(self._probs(histories, np.arange(self.size)))

    def _probs(self, histories: NDArray[np.int64], words: NDArray[np.int64]) -> NDArray[np.float64]:
        """p(w_n | h_n) for histories (N, up to order - 1) and words (N,)."""
        p = self._base[words]
        for used, table in zip(range(1, histories.shape[1] + 1), self._tables, strict=False):
            history = self._number(histories[:, histories.shape[1] - used :])
            row, seen = _find(table.histories, history)
            gram, counted = _find(table.grams, history * self.size + words)
            count = np.where(counted, table.discounted[gram], 0.0)
            p = np.where(seen, (count + table.left[row] * p) / table.total[row], p)
        return p

    def _pairs(self, sentences: Sequence[Tensor], independent: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The history (N, order - 1) of each word, and the word (N,)."""
        lengths = np.array([len(sentence) for sentence in sentences], dtype=np.int64)
        if lengths.sum() == 0:
            raise StatespanError("KneserNey: there are no words; give at least one sentence")
        words = torch.cat(list(sentences)).cpu().numpy().astype(np.int64)
        self._check(words, "KneserNey")
        start = np.concatenate([np.full(self.order - 1, Vocabulary.eos), words])
        histories = np.stack([start[lag : lag + len(words)] for lag in range(self.order - 1)], axis=1)
        position = np.arange(len(words)) - np.repeat(lengths.cumsum() - lengths, lengths)
        back = np.arange(self.order - 1, 0, -1)  # how far back each column of the history looks
        if independent:
            histories = np.where(position[:, None] < back, Vocabulary.eos, histories)
        histories[position == 0, -1] = Vocabulary.eos
        return histories, words

    def _number(self, histories: NDArray[np.int64]) -> NDArray[np.int64]:
        """Histories (N, n) as numbers in base V, (N,)."""
        return histories @ self.size ** np.arange(histories.shape[1] - 1, -1, -1)

    def _table(self, grams: NDArray[np.int64], counts: NDArray[np.int64]) -> _Table:
        discount = self._discount(counts)
        discounted = np.maximum(counts - discount, 0.0)
        histories, start = np.unique(grams // self.size, return_index=True)
        total = np.add.reduceat(counts.astype(np.float64), start)
        return _Table(grams, discounted, histories, total, total - np.add.reduceat(discounted, start))

    def _discount(self, counts: NDArray[np.int64]) -> float:
        if self.discount is not None:
            return self.discount
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        return once / (once + 2 * twice) if once else 0.75

    def _check(self, words: NDArray[np.int64], place: str) -> None:
        wrong = (words < 0) | (words >= self.size)
        if wrong.any():
            raise StatespanError(f"{place}: word {words[wrong][0]} is not in the vocabulary; give 0 to {self.size - 1}")

    def _fitted(self) -> None:
        if not self._tables:
            raise StatespanError("KneserNey: the model is not fitted; call fit first")


def _find(keys: NDArray[np.int64], wanted: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Where each wanted number stands among sorted keys, and whether it is there."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return place, keys[place] == wanted
