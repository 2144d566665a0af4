"""The door: data come in any form, inside they are padded tensors with time first, answers go back as they came."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from statespan.errors import StatespanError
from statespan.tree import Shared, Tree, tree_map


class Sequences(NamedTuple):
    """B sequences of up to T observations, padded, time first.

    Args:
        y: (T, B, ...) observations; anything where not observed (NaN becomes 0 at the door); None: nothing seen.
        u: (T, B, ...) inputs, or `Shared`; u_t acts on the move into t and on y_t.
        observed: (T, B) or (T, B, O) bool, True = there; None: everything is there.
        lengths: (B,) integers; None: all are T long. Kept apart from `observed`: a trailing gap is not the end.
        states: (T, B) integers, labelled states, -1 unknown; None: none is labelled.
    """

    y: Tree = None
    u: Tree = None
    observed: Tensor | None = None
    lengths: Tensor | None = None
    states: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(T, B)."""
        for tree in (self.y, self.observed, self.states, self.u):
            if tree is not None and not isinstance(tree, Shared):
                leaf = tree
                while isinstance(leaf, tuple):
                    leaf = leaf[0]
                return leaf.shape[0], leaf.shape[1]
        raise StatespanError("a Sequences needs y, observed, states or u to know its length")

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        for tree in (self.y, self.observed, self.states):
            if isinstance(tree, Tensor):
                return tree.device
        return torch.device("cpu")

    @property
    def within(self) -> Tensor:
        """(T, B) bool: before the sequence's own end."""
        length, batch = self.shape
        if self.lengths is None:
            return torch.ones(length, batch, dtype=torch.bool, device=self.device)
        return torch.arange(length, device=self.device)[:, None] < self.lengths

    @property
    def present(self) -> Tensor | None:
        """(T, B) or (T, B, O) bool: observed and before the end; None where that is everything."""
        if self.lengths is None:
            return self.observed
        within = self.within
        if self.observed is None:
            return within
        return self.observed & (within if self.observed.dim() == 2 else within[..., None])

    def window(self, start: int, stop: int) -> "Sequences":
        """The steps start <= t < stop of sequences that all reach `stop`."""
        cut = lambda tree: tree_map(lambda x: x[start:stop], tree)  # noqa: E731
        return Sequences(cut(self.y), cut(self.u), cut(self.observed), None, cut(self.states))


class Event(NamedTuple):
    """What one observation is: symbols 0..V-1 (rank 0) or vectors of `dim` numbers (rank 1).

    Args:
        rank: 0 for a number or symbol, 1 for a vector.
        symbols: V, or None for real values.
        dim: the length of a vector, or None.
    """

    rank: int
    symbols: int | None = None
    dim: int | None = None


class Layout(NamedTuple):
    """How the question was put, so that the answer can follow: one sequence, a padded batch, or a list."""

    single: bool
    ragged: bool
    lengths: list[int]

    def steps(self, x: Tensor) -> Any:
        """(T, B, ...) back to the question's form: (T, ...), (N, T, ...) with zeros past each end, or a list."""
        if self.single:
            return x[:, 0]
        if self.ragged:
            return [x[:n, i] for i, n in enumerate(self.lengths)]
        x = x.transpose(0, 1)
        if min(self.lengths) == x.shape[1]:
            return x
        inside = torch.arange(x.shape[1]) < torch.tensor(self.lengths)[:, None]
        return torch.where(inside.to(x.device).view(*inside.shape, *[1] * (x.dim() - 2)), x, 0)

    def each(self, x: Tensor) -> Tensor:
        """(B, ...) back to the question's form: one value for one sequence, else (N, ...)."""
        return x[0] if self.single else x

    def paths(self, x: Tensor) -> Any:
        """(T, B) integers as a list of (T_n,) paths; one path for one sequence."""
        if self.single:
            return x[:, 0]
        return [x[:n, i] for i, n in enumerate(self.lengths)]


def read(
    y: Any,
    event: Event,
    lengths: Any = None,
    inputs: Any = None,
    states: Any = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Sequences, Layout]:
    """Turn what a user has into `Sequences`.

    One sequence (T,) or (T, D); a list of them, of any lengths; a padded (N, T) or (N, T, D) with `lengths`;
    NumPy, torch, pandas. NaN, None, or -1 for symbols, is missing.

    Args:
        y: the observations.
        event: what one observation is; it decides what an array is.
        lengths: (N,) integers, for a padded batch.
        inputs: the same forms as y, vectors.
        states: labelled states, the same forms as y, integers, -1 unknown.
        device: where the answer lies.
        dtype: of real values.

    Raises:
        StatespanError: one line naming the sequence, the step and the fix.
    """
    rows, layout = _rows(y, event, lengths, "y")
    values, observed = [], []
    for i, row in enumerate(rows):
        value, seen = _symbols(row, i, event.symbols) if event.symbols is not None else _reals(row, i)
        values.append(value)
        observed.append(seen)
    batch = _pad(values)
    seen = _pad(observed)
    ends = torch.tensor(layout.lengths)
    ragged = bool((ends != batch.shape[0]).any())
    inside = torch.arange(batch.shape[0])[:, None] < ends
    every = seen.all() if not ragged else (seen | ~(inside if seen.dim() == 2 else inside[..., None])).all()
    if seen.dim() == 3 and bool((seen.all(-1) == seen.any(-1)).all()):
        seen = seen.all(-1)
    y_t = batch.to(device) if event.symbols is not None else batch.to(device=device, dtype=dtype)
    data = Sequences(
        y=y_t,
        u=_companion(inputs, Event(1), layout, "inputs", device, dtype),
        observed=None if bool(every) else seen.to(device),
        lengths=ends.to(device) if ragged else None,
        states=_companion(states, Event(0, 2**31), layout, "states", device, dtype),
    )
    return data, layout


def _companion(x: Any, event: Event, layout: Layout, name: str, device: Any, dtype: torch.dtype) -> Tensor | None:
    """Inputs or labels that go with y: the same form, the same lengths."""
    if x is None:
        return None
    rows, _ = _rows(x, event, None if layout.single or layout.ragged else layout.lengths, name)
    if [len(row) for row in rows] != layout.lengths:
        raise StatespanError(
            f"{name} has lengths {_short([len(r) for r in rows])} where y has {_short(layout.lengths)}; "
            "give one entry for every step of y"
        )
    if event.symbols is not None:
        return _pad([torch.as_tensor(_numbers(row, name, i)).long() for i, row in enumerate(rows)], -1).to(device)
    values = [torch.as_tensor(_numbers(row, name, i)) for i, row in enumerate(rows)]
    for i, value in enumerate(values):
        if bool(value.isnan().any()):
            raise StatespanError(f"{name}: sequence {i} has a NaN; an input cannot be missing, fill it first")
    return _pad([v[:, None] if v.dim() == 1 else v for v in values]).to(device=device, dtype=dtype)


def _rows(y: Any, event: Event, lengths: Any, name: str) -> tuple[list[Any], Layout]:
    """Split into one array a sequence, and say how the question was put."""
    if isinstance(y, (list, tuple)):
        if len(y) == 0:
            raise StatespanError(f"{name} is an empty list; give at least one sequence")
        ranks = {_rank(x) for x in y}
        if ranks <= {0} or (event.rank == 1 and ranks == {1} and all(len(x) == event.dim for x in y)):
            y = _numbers(y, name, 0)  # one sequence written as a list
        else:
            if lengths is not None:
                raise StatespanError(f"lengths= goes with a padded {name}; a list of sequences has its own")
            rows = [_numbers(x, name, i) for i, x in enumerate(y)]
            for i, row in enumerate(rows):
                _check_row(row, event, f"{name}: sequence {i}")
            return rows, Layout(False, True, [len(row) for row in rows])
    array = _numbers(y, name, 0)
    rank = array.ndim
    if event.rank == 1 and event.dim == 1 and rank == 1:
        array, rank = array[:, None], 2
    if rank == event.rank + 1:
        if lengths is not None:
            raise StatespanError(f"lengths= goes with a padded batch, and {name} is one sequence")
        _check_row(array, event, name)
        return [array], Layout(True, False, [len(array)])
    if rank != event.rank + 2:
        what = "symbols" if event.rank == 0 else "vectors"
        raise StatespanError(
            f"{name} has {rank} dimensions; this model's observations are {what}: "
            f"give {event.rank + 1} for one sequence or {event.rank + 2} for a padded batch"
        )
    if array.shape[0] == 0:
        raise StatespanError(f"{name} holds no sequence; give at least one")
    ends = [array.shape[1]] * array.shape[0] if lengths is None else [int(n) for n in lengths]
    if len(ends) != array.shape[0]:
        raise StatespanError(f"lengths has {len(ends)} entries for {array.shape[0]} sequences")
    for i, n in enumerate(ends):
        if not 0 < n <= array.shape[1]:
            raise StatespanError(f"lengths[{i}] is {n}; it must lie between 1 and {array.shape[1]}")
        _check_row(array[i, :n], event, f"{name}: sequence {i}")
    rows = [array[i, :n] for i, n in enumerate(ends)]
    layout = Layout(False, False, ends)
    return rows, layout


def _rank(x: Any) -> int:
    """How many dimensions a value has, without reading it all."""
    if hasattr(x, "ndim"):
        return int(x.ndim)
    if isinstance(x, (list, tuple)):
        return 1 + (_rank(x[0]) if len(x) else 0)
    return 0


def _numbers(x: Any, name: str, i: int) -> np.ndarray | Tensor:
    """A numeric array; None becomes NaN."""
    if isinstance(x, (Tensor, np.ndarray)) and x.dtype != object:
        return x
    if hasattr(x, "to_numpy"):
        x = x.to_numpy()
    try:
        array = np.asarray(x)
        if array.dtype == object:
            array = array.astype(np.float64)
    except (TypeError, ValueError):
        array = np.asarray(["?"])
    if array.dtype.kind not in "iufb":
        raise StatespanError(
            f"{name}: sequence {i} does not hold numbers in a regular array; "
            "encode words with a Vocabulary, and give ragged data as a list of sequences"
        )
    return array


def _check_row(row: Any, event: Event, place: str) -> None:
    """One sequence has the rank and width the model expects, and at least one step."""
    if event.rank == 1 and event.dim == 1 and row.ndim == 1:
        return
    if row.ndim != event.rank + 1:
        raise StatespanError(f"{place} has {row.ndim} dimensions where {event.rank + 1} are expected")
    if len(row) == 0:
        raise StatespanError(f"{place} is empty; leave it out or give it at least one step")
    if event.dim is not None and row.shape[1] != event.dim:
        raise StatespanError(f"{place} has {row.shape[1]} columns where the model observes {event.dim}")


def _symbols(row: Any, i: int, symbols: int | None) -> tuple[Tensor, Tensor]:
    """Integers 0..V-1 and where they are there; -1 and NaN are missing."""
    x = torch.as_tensor(row)
    if x.is_floating_point():
        x = torch.where(x.isnan(), -1.0, x)
        if bool((x != x.round()).any()):
            t = int((x != x.round()).nonzero()[0, 0])
            raise StatespanError(f"sequence {i}, step {t}: {float(x[t])} is no symbol; symbols are whole numbers")
    x = x.long()
    bad = (x < -1) | (x >= (symbols or 0))
    if bool(bad.any()):
        t = int(bad.nonzero()[0, 0])
        raise StatespanError(
            f"sequence {i}, step {t}: symbol {int(x[t])} lies outside 0..{(symbols or 0) - 1}; "
            "map unseen symbols to one the model knows, or to -1 for missing"
        )
    return x.clamp(min=0), x >= 0


def _reals(row: Any, i: int) -> tuple[Tensor, Tensor]:
    """(T, D) reals with NaN made 0, and where they are there; infinities are refused."""
    x = torch.as_tensor(row)
    x = x if x.is_floating_point() else x.double()
    x = x[:, None] if x.dim() == 1 else x
    if bool(x.isinf().any()):
        t = int(x.isinf().nonzero()[0, 0])
        raise StatespanError(f"sequence {i}, step {t}: an infinite value; use NaN for a missing one")
    return x.nan_to_num(0.0), ~x.isnan()


def _pad(rows: Sequence[Tensor], value: int = 0) -> Tensor:
    """Ragged rows to (T, B, ...)."""
    if len({len(row) for row in rows}) == 1:
        return torch.stack(list(rows), 1)
    return torch.nn.utils.rnn.pad_sequence(list(rows), padding_value=value)


def _short(values: list[int]) -> str:
    """A list of numbers, cut to the first few."""
    return "[" + ", ".join(map(str, values[:4])) + (", ...]" if len(values) > 4 else "]")
