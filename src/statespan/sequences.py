"""The door: data come in any form, inside they are padded tensors with time first, answers go back as they came."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from statespan.errors import StatespanError
from statespan.kernels.lanes import one_thread
from statespan.tree import Shared, Tree, leaves, tree_map


class Sequences(NamedTuple):
    """B sequences of up to T observations, padded, time first.

    Args:
        y: (T, B, ...) observations; anything where not observed (NaN becomes 0 at the door); None: nothing seen.
        u: (T, B, ...) inputs, or `Shared`; u_t acts on the move into t and on y_t.
        observed: (T, B) or (T, B, O) bool, True = there; None: everything is there.
        lengths: (B,) integers; None: all are T long. Kept apart from `observed`: a trailing gap is not the end.
        states: (T, B) integers, labelled states, -1 unknown, or (T, B, K) bool, the states that are possible; None: no
            state is labelled.
        weights: (B,) how many times each sequence counts in a fit; None: once.
        powers: (T, B) how many times each observation counts, as a power of its density; None: once.
        past: what came just before, for an emission that looks back P steps: values (B, P, D), the latest first, and
            whether each is known, (B, P) bool; None: nothing did.

    Example:
        >>> data, _ = read([[0, 2, 1], [1, None]], Event(0, symbols=3))
        >>> data.y.T.tolist(), data.lengths.tolist(), data.present.T.tolist()
        ([[0, 2, 1], [1, 0, 0]], [3, 2], [[True, True, True], [True, False, False]])
    """

    y: Tree = None
    u: Tree = None
    observed: Tensor | None = None
    lengths: Tensor | None = None
    states: Tensor | None = None
    weights: Tensor | None = None
    powers: Tensor | None = None
    past: tuple[Tensor, Tensor] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(T, B)."""
        for tree in (self.y, self.observed, self.states, self.u):
            if tree is not None and not isinstance(tree, Shared):
                length, batch = leaves(tree)[0].shape[:2]
                return length, batch
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
        seen = Sequences(cut(self.y), cut(self.u), cut(self.observed), None, cut(self.states), self.weights)
        return seen._replace(powers=cut(self.powers), past=self.past if start == 0 else None)

    def each(self, change: Any) -> "Sequences":
        """`change(x, axis)` of every tensor that has a batch, with the axis where its batch lies."""
        plain = {"lengths": self.lengths, "weights": self.weights, "past": self.past}
        timed = tree_map(lambda x: change(x, 1), self._replace(**dict.fromkeys(plain)))
        return timed._replace(**{name: tree_map(lambda x: change(x, 0), value) for name, value in plain.items()})


def any_of(there: Tensor) -> Tensor:
    """(T, B) where anything of an observation is there, from (T, B) or (T, B, O) bool."""
    return there if there.dim() == 2 else there.any(-1)


def all_of(there: Tensor) -> Tensor:
    """(T, B) where all of an observation is there, from (T, B) or (T, B, O) bool."""
    return there if there.dim() == 2 else there.all(-1)


class Support(NamedTuple):
    """The vectors that can be observed at all.

    Args:
        wrong: from rows (N, D), 0 where missing, and what of them is there, (N, D) bool, to what cannot be, the same.
        what: what they are, in words: "counts 0, 1, 2, ...".
    """

    wrong: Callable[[Tensor, Tensor], Tensor]
    what: str


class Event(NamedTuple):
    """What one observation is: symbols 0..V-1 (rank 0) or vectors of `dim` numbers (rank 1).

    Args:
        rank: 0 for a number or symbol, 1 for a vector.
        symbols: V, or None for real values.
        dim: the length of a vector, or None.
        support: which vectors there can be; None: all.
    """

    rank: int
    symbols: int | None = None
    dim: int | None = None
    support: Support | None = None


class Layout(NamedTuple):
    """How the question was put, so that the answer can follow: one sequence, a padded batch, or a list.

    Of pandas it keeps the index of each sequence (`labels`) and what the columns are called.
    """

    single: bool
    ragged: bool
    lengths: list[int]
    labels: tuple[Any, ...] = ()
    columns: tuple[str, ...] = ()

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
        ends = torch.tensor(self.lengths, device=x.device)
        inside = torch.arange(x.shape[0], device=x.device) < ends[:, None]
        return list(x.transpose(0, 1)[inside].split(self.lengths))  # a thousand short paths are cut at once


@one_thread()
def read(
    y: Any,
    event: Event,
    lengths: Any = None,
    inputs: Any = None,
    states: Any = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float64,
    weights: Any = None,
) -> tuple[Sequences, Layout]:
    """Turn what a user has into `Sequences`.

    One sequence (T,) or (T, D); a list of them, of any lengths; a padded (N, T) or (N, T, D) with `lengths`;
    NumPy, torch, pandas. NaN, None, or -1 for symbols, is missing.

    Args:
        y: the observations.
        event: what one observation is; it decides what an array is.
        lengths: (N,) integers, for a padded batch.
        inputs: the same forms as y, vectors.
        states: labelled states, the same forms as y, integers, -1 unknown; or bool with a last axis of K, the states
            that are possible at each step.
        device: where the answer lies.
        dtype: of real values.
        weights: how many times each sequence counts, (N,), or each observation, the same forms as y; not negative.

    Raises:
        StatespanError: one line naming the sequence, the step and the fix.
    """
    rows, layout = _rows(y, event, lengths, "y")
    layout = _captioned(layout, y)
    ends = torch.tensor(layout.lengths)
    flat, place = _end_to_end(rows, event.rank), partial(_place, ends)
    value, there = _symbols(flat, place, event.symbols) if event.symbols is not None else _reals(flat, place, dtype)
    if event.support is not None:
        _check_support(value, there, event.support, place)
    batch = _lay_out(value, ends).to(device)
    observed = None
    if not bool(there.all()):
        whole = there.dim() == 2 and bool((there.all(-1) == there.any(-1)).all())
        observed = _lay_out(there.all(-1) if whole else there, ends).to(device)
    data = Sequences(
        y=batch if event.symbols is not None else batch.to(dtype),
        u=None if inputs is None else _inputs(inputs, layout).to(device=device, dtype=dtype),
        observed=observed,
        lengths=ends.to(device) if min(layout.lengths) < len(batch) else None,
        states=None if states is None else _labels(states, layout).to(device),
    )
    if weights is not None:
        whole, steps = _weights(weights, layout)
        data = data._replace(
            weights=None if whole is None else whole.to(device=device, dtype=dtype),
            powers=None if steps is None else steps.to(device=device, dtype=dtype),
        )
    return data, layout


def _captioned(layout: Layout, y: Any) -> Layout:
    """The layout with the index, and the names of the columns, of pandas' frames and series."""
    each = [y] if layout.single else y if layout.ragged else []
    framed = [x for x in each if hasattr(x, "to_numpy") and hasattr(x, "index")]
    if not framed or len(framed) < len(each):
        return layout
    first = framed[0]
    names = list(first.columns) if hasattr(first, "columns") else [getattr(first, "name", None)]
    columns = () if None in names else tuple(map(str, names))
    return layout._replace(labels=tuple(x.index for x in framed), columns=columns)


def _end_to_end(rows: list[Any], rank: int) -> Tensor:
    """All rows as one array, numbers as columns where a step is a vector: a thousand are converted and checked at once.

    Always a copy, so that what a user gave stays the user's.
    """
    rows = [row[:, None] if row.ndim == 1 else row for row in rows] if rank else rows
    if all(isinstance(row, np.ndarray) for row in rows):
        return torch.as_tensor(np.concatenate(rows))
    return torch.cat([torch.as_tensor(row) for row in rows])


def _companions(x: Any, layout: Layout, name: str) -> list[Any]:
    """Inputs or labels that go with y, one array a sequence: the same form, the same lengths."""
    if layout.single:
        rows = [_numbers(x, name, 0)]
    elif layout.ragged:
        rows = [_numbers(row, name, i) for i, row in enumerate(x)]
    else:
        array = _numbers(x, name, 0)
        rows = [row[:n] for row, n in zip(array, layout.lengths, strict=False)] if array.ndim > 1 else []
    found = [len(row) if row.ndim else 0 for row in rows]
    if found != layout.lengths:
        raise StatespanError(
            f"{name} has lengths {_short(found)} where y has {_short(layout.lengths)}; "
            "give one entry for every step of y"
        )
    return rows


def _inputs(x: Any, layout: Layout) -> Tensor:
    """(T, B, U) reals."""
    rows = _companions(x, layout, "inputs")
    widths = [1 if row.ndim == 1 else row.shape[1] if row.ndim == 2 else None for row in rows]
    if None in widths or len(set(widths)) > 1:
        i = next(i for i, width in enumerate(widths) if width is None or width != widths[0])
        raise StatespanError(
            f"inputs: sequence {i} is {tuple(rows[i].shape)} where sequence 0 is {tuple(rows[0].shape)}; "
            "give (T, U) with the same U for every sequence"
        )
    flat, ends = _end_to_end(rows, 1), torch.tensor(layout.lengths)
    if not bool(flat.isfinite().all()):
        at = int((~flat.isfinite()).nonzero()[0, 0])
        raise StatespanError(f"inputs: {_place(ends, at)} is not finite; an input cannot be missing, fill it first")
    return _lay_out(flat, ends)


def _labels(x: Any, layout: Layout) -> Tensor:
    """(T, B) integers, -1 unknown; or (T, B, K) bool."""
    rows, ends = _companions(x, layout, "states"), torch.tensor(layout.lengths)
    flat = _end_to_end(rows, 0) if len({tuple(row.shape[1:]) for row in rows}) == 1 else None
    if flat is not None and flat.dim() == 2 and flat.dtype == torch.bool:
        if not bool(flat.any(-1).all()):
            at = int((~flat.any(-1)).nonzero()[0, 0])
            raise StatespanError(f"states: {_place(ends, at)} allows no state; allow at least one")
        return _lay_out(flat, ends, 1)
    if flat is None or flat.dim() != 1:
        i = next(i for i, row in enumerate(rows) if row.ndim != 1)
        raise StatespanError(
            f"states: sequence {i} has {rows[i].ndim} dimensions of {rows[i].dtype}; give one label for every step, or "
            "True and False for every step and state"
        )
    return _lay_out(_whole(flat, lambda at: f"states: {_place(ends, at)}"), ends, -1)


def _weights(x: Any, layout: Layout) -> tuple[Tensor | None, Tensor | None]:
    """One number a sequence, (B,), or one a step, (T, B)."""
    ragged = isinstance(x, (list, tuple)) and any(_rank(row) for row in x)
    numbers = None if ragged or layout.single else _numbers(x, "weights", 0)
    whole = numbers is not None and numbers.ndim == 1 and len(numbers) == len(layout.lengths)
    rows: list[Any] = [numbers] if whole else _companions(x, layout, "weights")
    for i, row in enumerate(rows):
        if row.ndim != 1 or not bool((row >= 0).all() and (row < math.inf).all()):
            place = "weights" if whole else f"weights: sequence {i}"
            raise StatespanError(f"{place}: give one number, 0 or more, for every sequence or for every step")
    flat = _end_to_end(rows, 0)
    return (flat, None) if whole else (None, _lay_out(flat, torch.tensor(layout.lengths)))


def _rows(y: Any, event: Event, lengths: Any, name: str) -> tuple[list[Any], Layout]:
    """Split into one array a sequence, and say how the question was put."""
    if isinstance(y, (list, tuple)):
        if len(y) == 0:
            raise StatespanError(f"{name} is an empty list; give at least one sequence")
        ranks = {_rank(x) for x in y if x is not None}
        if event.rank == 1 and ranks == {1} and all(x is None or len(x) == event.dim for x in y):
            y = _row(y, event, name, 0)  # one sequence written as a list of vectors
        elif event.rank == 1 and event.dim != 1 and ranks == {1}:
            i = next(i for i, x in enumerate(y) if x is not None and len(x) != event.dim)
            raise StatespanError(f"{name}: row {i} holds {len(y[i])} numbers where the model observes {event.dim}")
        elif ranks <= {0}:
            y = _numbers(y, name, 0)  # one sequence written as a list of numbers
        else:
            if lengths is not None:
                raise StatespanError(f"lengths= goes with a padded {name}; a list of sequences has its own")
            rows = [_row(x, event, name, i) for i, x in enumerate(y)]
            _check_rows(rows, event, name)
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
    rows = [array[i, :n] for i, n in enumerate(ends)]
    _check_rows(rows, event, name)
    return rows, Layout(False, False, ends)


def _rank(x: Any) -> int:
    """How many dimensions a value has, without reading it all."""
    if hasattr(x, "ndim"):
        return int(x.ndim)
    if isinstance(x, (list, tuple)):
        return 1 + (_rank(x[0]) if len(x) else 0)
    return 0


def _row(x: Any, event: Event, name: str, i: int) -> np.ndarray | Tensor:
    """One sequence as a numeric array; in a list of vectors None is a missing one."""
    if isinstance(x, (list, tuple)) and event.dim is not None and {_rank(v) for v in x} - {0} == {1}:
        gone = [math.nan] * event.dim
        x = [gone if v is None else _numbers(v, name, i) for v in x]
    return _numbers(x, name, i)


def _numbers(x: Any, name: str, i: int) -> np.ndarray | Tensor:
    """A numeric array; None becomes NaN."""
    if isinstance(x, Tensor) or (isinstance(x, np.ndarray) and x.dtype.kind in "iufb"):
        return x
    convert, given = getattr(x, "to_numpy", None), x  # pandas and polars
    x = x if convert is None else convert()
    wordy = [c for c in getattr(given, "columns", ()) if getattr(given[c].dtype, "kind", "f") not in "iufb"]
    try:
        array = np.asarray(x)
        if array.dtype.kind == "O" and not wordy:
            array = array.astype(np.float64) if convert is None else convert(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError):
        array = np.asarray(["?"])
    if array.dtype.kind not in "iufb":
        if wordy:
            raise StatespanError(
                f"{name}: sequence {i}: column {wordy[0]} holds {given[wordy[0]].dtype}, no numbers; leave it out, "
                "make times the index, and words numbers (pandas.factorize)"
            )
        raise StatespanError(
            f"{name}: sequence {i} does not hold numbers in a regular array; "
            "encode words with a Vocabulary, and give ragged data as a list of sequences"
        )
    return array


def _check_rows(rows: list[Any], event: Event, name: str) -> None:
    """Every one of many, each by itself only if one is not as it should be."""
    shape = (event.dim,) if event.rank else ()
    if not all(row.ndim and len(row) and row.shape[1:] == shape for row in rows):
        for i, row in enumerate(rows):
            _check_row(row, event, f"{name}: sequence {i}")


def _check_row(row: Any, event: Event, place: str) -> None:
    """One sequence has the rank and width the model expects, and at least one step."""
    if row.ndim and len(row) == 0:
        raise StatespanError(f"{place} is empty; leave it out or give it at least one step")
    if event.rank == 1 and event.dim == 1 and row.ndim == 1:
        return
    if row.ndim != event.rank + 1:
        raise StatespanError(f"{place} has {row.ndim} dimensions where {event.rank + 1} are expected")
    if event.dim is not None and row.shape[1] != event.dim:
        raise StatespanError(f"{place} has {row.shape[1]} columns where the model observes {event.dim}")


def _place(ends: Tensor, index: int) -> str:
    """The sequence and the step of one entry of rows laid end to end."""
    after = ends.cumsum(0)
    i = int((after <= index).sum())
    return f"sequence {i}, step {index - int(after[i] - ends[i])}"


def _whole(x: Tensor, place: Callable[[int], str]) -> Tensor:
    """Whole numbers from -1, with -1 for NaN."""
    if x.is_floating_point():
        x = torch.where(x.isnan(), -1.0, x)
        if bool((x != x.round()).any()):
            at = int((x != x.round()).nonzero()[0, 0])
            raise StatespanError(f"{place(at)}: {float(x[at])} is no whole number; give 0, 1, 2, ... or -1")
    x = x.long()
    if bool((x < -1).any()):
        at = int((x < -1).nonzero()[0, 0])
        raise StatespanError(f"{place(at)}: {int(x[at])} is below -1, which stands for missing")
    return x


def _symbols(row: Tensor, place: Callable[[int], str], symbols: int) -> tuple[Tensor, Tensor]:
    """Integers 0..V-1 and where they are there; -1 and NaN are missing."""
    x = _whole(row, place)
    if bool((x >= symbols).any()):
        at = int((x >= symbols).nonzero()[0, 0])
        raise StatespanError(
            f"{place(at)}: symbol {int(x[at])} lies outside 0..{symbols - 1}; "
            "map unseen symbols to one the model knows, or to -1 for missing"
        )
    return x.clamp(min=0), x >= 0


def _reals(x: Tensor, place: Callable[[int], str], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(N, D) reals with NaN made 0, and where they are there; what is infinite, or its square, is refused."""
    x = x if x.is_floating_point() else x.double()
    fine = x.abs() <= torch.finfo(dtype).max ** 0.5
    if bool(fine.all()):
        return x, fine
    there = ~x.isnan()
    if bool((there & ~fine).any()):
        at, column = (there & ~fine).nonzero()[0].tolist()
        value = float(x[at, column])
        what = "an infinite value; use NaN for a missing one"
        if abs(value) < float("inf"):
            what = f"{value:g} is too large, as its square is infinite in {dtype}; divide the data by a constant"
        raise StatespanError(f"{place(at)}, column {column}: {what}")
    return torch.where(there, x, 0.0), there


def _lay_out(flat: Tensor, ends: Tensor, value: int = 0) -> Tensor:
    """Rows laid end to end to (T, B, ...)."""
    longest, batch = int(ends.max()), len(ends)
    if len(flat) == longest * batch:
        return flat.view(batch, longest, *flat.shape[1:]).transpose(0, 1).contiguous()
    out = flat.new_full((longest * batch, *flat.shape[1:]), value)
    start = torch.arange(batch) - (ends.cumsum(0) - ends) * batch
    at = start.repeat_interleave(ends) + torch.arange(len(flat)) * batch  # step t of sequence b goes to row t B + b
    return out.index_copy_(0, at.to(flat.device), flat).view(longest, batch, *flat.shape[1:])


def _check_support(x: Tensor, there: Tensor, support: Support, place: Callable[[int], str]) -> None:
    wrong = support.wrong(x, there)
    if bool(wrong.any()):
        at, column = wrong.nonzero()[0].tolist()
        raise StatespanError(
            f"{place(at)}, column {column}: {float(x[at, column]):g} is impossible here; this emission is of "
            f"{support.what}: correct the value, or make it NaN for missing"
        )


def _short(values: list[int]) -> str:
    """A list of numbers, cut to the first few."""
    return "[" + ", ".join(map(str, values[:4])) + (", ...]" if len(values) > 4 else "]")
