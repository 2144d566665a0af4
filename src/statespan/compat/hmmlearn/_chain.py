"""Statespan's inference, asked about sequences that lie end to end in one array."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from statespan.compat.hmmlearn._parts import GivenMatrix, GivenStart
from statespan.errors import StatespanError
from statespan.fit.em import group
from statespan.kernels.lanes import each
from statespan.method import Statistics, prepare, run, total
from statespan.methods import Forward, MaxProduct
from statespan.methods.forward import expectations
from statespan.model import StateSpace
from statespan.sequences import Sequences

SMALLEST = float(np.log(1e-300))
"""log p(y_t | y_<t) below which `implementation="scaling"` refuses, as hmmlearn does."""


class Batch(NamedTuple):
    """Sequences of like length, padded.

    Args:
        data: the sequences.
        rows: (T, B) where each step lies in the array.
        names: (B,) which sequence each is.
    """

    data: Sequences
    rows: Tensor
    names: Tensor

    def put(self, values: Tensor, out: Tensor) -> None:
        """Write values (T, B, ...) to their rows of `out`."""
        within = self.data.within
        out[self.rows[within]] = values[within]


def batches(y: Tensor, observed: Tensor | None, lengths: Any, breadth: int) -> list[Batch]:
    """Cut the array (n, ...) where sequences end, and put those of like length together.

    Args:
        y: observations, one sequence after another.
        observed: (n,) or (n, D) bool, or None.
        lengths: of the sequences; None: there is one.
        breadth: K, or how many numbers a step takes, by which groups are kept small.

    Raises:
        StatespanError: the lengths are not those of `y`.
    """
    ends = torch.as_tensor(np.atleast_1d([len(y)] if lengths is None else lengths), dtype=torch.long)
    if int(ends.sum()) != len(y) or bool((ends < 0).any()):
        raise StatespanError(f"lengths array {lengths} doesn't sum to {len(y)} samples")
    starts, kept = ends.cumsum(0) - ends, ends.nonzero()[:, 0]
    starts, ends = starts[kept], ends[kept]
    shape, ragged = (int(ends.max()), len(ends)), bool((ends < ends.max()).any())
    _, names = group(Sequences(y=torch.zeros(1, 1).expand(shape), lengths=ends if ragged else None), breadth)
    return [_batch(y, observed, starts[index], ends[index], kept[index]) for index in names]


def _batch(y: Tensor, observed: Tensor | None, starts: Tensor, ends: Tensor, names: Tensor) -> Batch:
    steps = torch.arange(int(ends.max()))[:, None]
    within = steps < ends
    rows = torch.where(within, starts + steps, starts)
    data = Sequences(
        y=y[rows],
        observed=None if observed is None else observed[rows],
        lengths=None if bool(within.all()) else ends,
    )
    return Batch(data, rows, names)


class Chain:
    """A state space by its tables, which need not sum to one, and its emission.

    Args:
        initial: (K,).
        table: (K, K).
        emission: a part.
        implementation: "log", or "scaling": then an observation that hmmlearn's scaling cannot represent is refused.
    """

    def __init__(self, initial: Any, table: Any, emission: Any, implementation: str = "log"):
        if implementation not in ("log", "scaling"):
            raise StatespanError(f"implementation={implementation!r}; use 'log' or 'scaling'")
        self.scaling, self.states, self.method = implementation == "scaling", len(initial), Forward()
        initial, table = (torch.as_tensor(np.asarray(x, dtype=float)) for x in (initial, table))
        self.model = StateSpace(GivenStart(initial), GivenMatrix(table), emission)
        with torch.no_grad():
            self.constants = self.method.constants(self.model)

    def _refuse(self, log_prob: Tensor, batch: Batch) -> None:
        if not self.scaling or not bool((log_prob < SMALLEST).any()):
            return
        b, t = (log_prob.T < SMALLEST).nonzero()[0].tolist()
        raise StatespanError(
            f"sequence {int(batch.names[b])}, step {t}: the probability underflows; use implementation='log'"
        )

    def _log_prob(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            log_prob = run(self.model, self.method, batch.data, constants=self.constants).log_prob
        assert log_prob is not None
        self._refuse(log_prob, batch)
        return log_prob

    def log_prob(self, data: list[Batch]) -> float:
        """Log p of all sequences; minus infinity where one is impossible."""
        return sum(float(self._log_prob(batch).sum()) for batch in data)

    def smooth(self, data: list[Batch], rows: int) -> tuple[float, np.ndarray]:
        """Log p, and the posterior (rows, K)."""
        out, sums = torch.zeros(rows, self.states, dtype=torch.float64), 0.0
        for batch in data:
            sums += self._smooth(batch, out)
        out /= out.sum(-1, keepdim=True)  # to the last bit
        return sums, out.numpy()

    @torch.no_grad()
    def _smooth(self, batch: Batch, out: Tensor) -> float:
        prepared = prepare(self.model, self.method, batch.data, self.constants)
        posterior, _, log_prob = expectations(self.model, self.method, prepared, None, batch.data.shape)
        self._refuse(log_prob, batch)
        total(log_prob, batch.names)
        batch.put(posterior, out)
        return float(log_prob.sum())

    def expect(self, data: list[Batch]) -> Iterator[tuple[Batch, Statistics, float]]:
        """The E-step: expected statistics and log p, a batch or a part of one at a time."""
        sizes = [batch.rows.numel() for batch in data]
        for parts in each(lambda i: list(self._expect(data[i])), sizes):
            yield from parts

    def _expect(self, batch: Batch) -> Iterator[tuple[Batch, Statistics, float]]:
        log_prob, statistics = self.method.expect(self.model, self.constants, batch.data)
        self._refuse(log_prob, batch)
        yield batch, statistics, float(total(log_prob, batch.names))

    def filter(self, data: list[Batch], rows: int) -> np.ndarray:
        """p(z_t | y_1..y_t), (rows, K)."""
        out = torch.zeros(rows, self.states, dtype=torch.float64)
        for batch in data:
            with torch.no_grad():
                trace = run(
                    self.model, self.method, batch.data, keep=("filtered", "log_prob"), constants=self.constants
                )
            assert trace.log_prob is not None
            total(trace.log_prob, batch.names)
            batch.put(trace.filtered.probs, out)
        return out.numpy()

    def decode(self, data: list[Batch], rows: int) -> tuple[float, np.ndarray]:
        """The likeliest paths: their log p(z, y), summed, and the states (rows,)."""
        out, sums = torch.zeros(rows, dtype=torch.long), 0.0
        for batch in data:
            with torch.no_grad():
                path, score = MaxProduct().decode(self.model, self.constants, batch.data, 1)
            assert score is not None
            batch.put(path[..., 0], out)
            sums += float(score.sum())
        return sums, out.numpy()
