"""Files of columns as they stand: CSV, Parquet and NumPy to a frame whose rows know their place in the file."""

import csv
import io
import re
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from statespan.errors import StatespanError
from statespan.language.corpora import utf8

MISSING = ("", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null", "<NA>")
"""Cells that stand for nothing."""

MARKS = ("?", "-", "--", ".", "*", "None", "none", "missing")
"""Cells that stand for nothing among numbers; elsewhere they may be words."""

SEPARATORS = ("\t", ";", ",")

NOT_READ = (
    ".xlsx",
    ".xls",
    ".ods",
    ".json",
    ".jsonl",
    ".feather",
    ".h5",
    ".mat",
    ".pkl",
    ".gz",
    ".zip",
    ".safetensors",
)
"""Endings of files that hold no text of columns."""

THOUSANDS = r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?"
DECIMAL_COMMA = r"[+-]?(\d{1,3}(\.\d{3})+|\d+|(?=,))(,\d+)?([eE][+-]?\d+)?"


Frame: TypeAlias = Any
Column: TypeAlias = Any
"""Of pandas, whose own types are too loose to check against."""


def pandas() -> Any:
    """pandas, imported when the first file is read."""
    import pandas

    return pandas


@dataclass(frozen=True)
class Table:
    """A file's columns.

    Args:
        path: the file.
        frame: the cells, strings where the file is text; the index is where each row stands in the file.
        row: what a row's place is called: a line (from 1) of a text, a row (from 0) of an array.
        sequence: the column that tells sequences apart, where the file itself says so.
        unnamed: the first column, where the header gives it no name: an index, as pandas writes it.
        notes: what a user should know of how cells were read; it grows as columns are.
        missing: further cells that stand for nothing, such as -999, in every column.
    """

    path: str
    frame: Frame
    row: str
    sequence: str | None = None
    unnamed: str | None = None
    notes: list[str] = field(default_factory=list)
    missing: tuple[str, ...] = ()

    def at(self, place: Any, column: str | None = None) -> str:
        """Where a cell stands, for an error."""
        where = f"{self.path}, {self.row} {place}"
        return where if column is None else f"{where}, column {column}"

    def names(self) -> str:
        """The columns, for an error."""
        names = list(self.frame.columns)
        return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")

    def name(self, asked: str) -> str:
        """The column of that name, or of that number from 0.

        Raises:
            StatespanError: there is none.
        """
        names = list(self.frame.columns)
        if asked in names:
            return asked
        if asked.isdigit() and int(asked) < len(names):
            return names[int(asked)]
        near = [name for name in names if name.strip().lower() == asked.strip().lower()]
        hint = f"did you mean {near[0]}?" if near else f"it has {self.names()}"
        raise StatespanError(f"{self.path}: there is no column {asked}; {hint}")

    def cells(self, column: str) -> tuple[Column, NDArray[np.bool_]]:
        """A column's cells, strings without the space around them, and which are there."""
        cells = self.frame[column]
        if cells.dtype.kind in "OUT" or cells.dtype.name in ("str", "string", "category"):
            cells = cells.astype("str").str.strip()
            gone = cells.isna() | cells.isin(MISSING) | cells.isin(self.missing)
        else:
            gone = cells.isna()
        numbers = [float(each) for each in self.missing if _is_number(each)]
        if numbers and cells.dtype.kind not in "Mmb":  # -999 is -999.0 too
            gone |= pandas().to_numeric(cells, errors="coerce").isin(numbers)
        return cells, ~np.asarray(gone, bool)

    def observed(self, keys: Collection[str | None]) -> list[str]:
        """The columns that are observed where none is named: all but `keys` and one without a name."""
        return [name for name in self.frame.columns if name not in keys and name != self.unnamed]

    def numbers(self, column: str) -> NDArray[np.float64]:
        """A column as numbers, NaN where missing; decimal commas and marks such as `?` are read, and noted.

        Raises:
            StatespanError: a cell is no number, or infinite; names it and the fix.
        """
        cells, there = self.cells(column)
        found = _as_numbers(cells, there)
        wrong = there & ~np.isfinite(found)
        if wrong.any() and np.isfinite(found).any():
            marks = wrong & _marks(cells)
            wrong &= ~marks
            self._note(column, cells[marks], "missing")
        if wrong.any():
            first = int(wrong.argmax())
            text = str(cells.iloc[first])
            comma = text.replace(",", ".")
            fix = f"write {comma}" if comma != text and _is_number(comma) else "mend it, or leave it empty for missing"
            if re.fullmatch(THOUSANDS, text):
                fix = f"write {text.replace(',', '')} or {comma}"
            if wrong.sum() == there.sum() and not _is_number(text):
                fix = f"say --symbols {column} if it holds words, --time {column} if it holds times"
            raise StatespanError(f"{self.at(self.frame.index[first], column)}: {text!r} is no finite number; {fix}")
        if cells.dtype.kind not in "iufMmb":
            commas = cells.str.contains(",", regex=False).to_numpy(bool)
            self._note(column, cells[commas], f"{found[commas.argmax()]:.12g}")
        return found

    def _note(self, column: str, cells: Column, as_what: str) -> None:
        if len(cells):
            more = f", and {len(cells) - 1:,} more like it" if len(cells) > 1 else ""
            said = f"column {column}: {cells.iloc[0]!r} is read as {as_what}{more}"
            if said not in self.notes:
                self.notes.append(said)

    def wordy(self, column: str) -> bool:
        """Whether a column holds words: something is there, and nothing of it is a number."""
        cells, there = self.cells(column)
        if not there.any() or not np.isnan(_as_numbers(cells, there)).all():
            return False
        return not bool(cells[there].astype("str").str.fullmatch(THOUSANDS).any())

    def words(self, column: str) -> tuple[Column, NDArray[np.bool_]]:
        """A column as words, and which are there; whole numbers are written without a point."""
        cells, there = self.cells(column)
        if cells.dtype.kind == "f" and bool((cells[there] % 1 == 0).all()):
            cells = cells.fillna(0).astype("int64")
        return cells.astype("str"), there


def read_table(path: str | Path, missing: Sequence[str] = ()) -> Table:
    r"""Read a file of columns, in the format that its name's ending tells.

    `.parquet` and `.pq` are Parquet; `.npy` one array, (T,), (T, D) or (N, T, D); `.npz` such an array or columns by
    name; anything else is text with a header: CSV, separated by commas, semicolons or tabs, or numbers by spaces. Where
    the first line holds numbers alone it is data, and the columns are called 0, 1, ...

    Args:
        path: the file.
        missing: numbers or words that stand for a missing cell, such as "-999", beside an empty one, NA and the like.

    Raises:
        StatespanError: the file is missing, empty, or not in its format.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "a.csv"
        >>> _ = file.write_text("day,rain\nMon,0.5\nTue,\n")
        >>> read_table(file).numbers("rain")
        array([0.5, nan])
    """
    path = Path(path)
    if not path.exists():
        raise StatespanError(f"{path}: there is no such file; check the name")
    if path.suffix.lower() in NOT_READ:
        raise StatespanError(f"{path}: a {path.suffix} is no file of columns; save it as .csv or .parquet")
    readers: dict[str, Callable[[Path], Table]] = {
        ".parquet": _parquet,
        ".pq": _parquet,
        ".npy": _array,
        ".npz": _arrays,
    }
    table = readers.get(path.suffix.lower(), _text)(path)
    if not len(table.frame) or not len(table.frame.columns):
        raise StatespanError(f"{path}: the file holds no rows; give at least one below the header")
    twice = table.frame.columns[table.frame.columns.duplicated()]
    if len(twice):
        raise StatespanError(f"{path}: the column {twice[0]} is there twice; name each column once")
    return replace(table, missing=tuple(missing))


def _text(path: Path) -> Table:
    pd = pandas()

    text = utf8(path)
    if "\0" in text[:4096]:
        raise StatespanError(f"{path}: not a text; name it .npy, .npz or .parquet if it is one of those")
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = max(SEPARATORS, key=first.count)
    by_spaces = separator not in first and spaced(text)
    cells = first.split() if by_spaces else next(csv.reader([first], delimiter=separator), [])
    header = [cell.strip() for cell in cells]
    named = not all(_is_number(cell) for cell in header)
    twice = next((cell for cell in header if header.count(cell) > 1), None) if named else None
    if twice is not None:
        raise StatespanError(f"{path}: the column {twice!r} is there twice; name each column once")
    lead = len(text) - len(text.lstrip("\r\n"))  # empty lines before the header
    above = text.count("\n", 0, lead)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(
                io.StringIO(text[lead:]),
                sep=r"\s+" if by_spaces else separator,
                header=0 if named else None,
                dtype=str,
                keep_default_na=False,
                skip_blank_lines=False,
                skipinitialspace=True,
                index_col=False,
            )
    except pd.errors.EmptyDataError:
        raise StatespanError(f"{path}: the file is empty; give a header and at least one row") from None
    except pd.errors.ParserWarning:
        raise StatespanError(f"{path}: the rows have more cells than the header has names; name every column") from None
    except (pd.errors.ParserError, ValueError) as error:
        reason = " ".join(str(error).removeprefix("Error tokenizing data. C error:").split())
        raise StatespanError(f"{path}: not a table ({reason}); every row needs as many cells as the header") from None
    frame.columns = [str(name).strip() for name in frame.columns]
    frame.index = frame.index + above + (2 if named else 1)
    blank = (frame.fillna("") == "").all(axis=1).to_numpy()
    # An empty line of a single column is a missing cell, but not at the end of the file.
    end = len(blank) - int(np.cumprod(blank[::-1]).sum())
    if end == 0 < len(blank):
        raise StatespanError(f"{path}: nothing is observed; every cell is empty")
    frame = frame[~blank] if len(frame.columns) > 1 else frame.iloc[:end]
    nameless = [name for name, cell in zip(frame.columns, header, strict=False) if named and not cell]
    empty = [name for name in nameless if (frame[name].fillna("") == "").all()]  # separators at the ends of lines
    frame = frame.drop(columns=empty)
    unnamed = frame.columns[0] if frame.columns[0] in nameless else None
    return Table(str(path), frame, "line", unnamed=unnamed)


def spaced(text: str) -> bool:
    """Whether a text is columns of numbers set apart by spaces, as `numpy.savetxt` writes them."""
    lines = [line.split() for line in text.lstrip().splitlines()[:3]]
    return len(lines) > 1 and {len(line) for line in lines} == {len(lines[0])} != {1} and all(map(_is_number, lines[1]))


def _parquet(path: Path) -> Table:
    pd = pandas()

    try:
        frame = pd.read_parquet(path)
    except ImportError:
        raise StatespanError(f"{path}: Parquet needs pyarrow; pip install 'statespan[parquet]'") from None
    except (OSError, ValueError) as error:
        raise StatespanError(f"{path}: not a Parquet file ({str(error).partition('.')[0]})") from None
    if not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index()
    frame.columns = [str(name) for name in frame.columns]
    return Table(str(path), frame.reset_index(drop=True), "row")


def _load(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        reason = str(error).partition(".")[0].partition("\n")[0]
        raise StatespanError(f"{path}: not a file of numbers that NumPy wrote ({reason})") from None


def _array(path: Path) -> Table:
    return _columns(path, {"": _load(path)})


def _arrays(path: Path) -> Table:
    with _load(path) as file:
        try:
            arrays = {name: file[name] for name in file.files}
        except ValueError as error:
            raise StatespanError(f"{path}: {str(error).partition('.')[0]}; save numbers") from None
    return _columns(path, arrays)


def _columns(path: Path, arrays: dict[str, Any]) -> Table:
    """One array, (T,), (T, D) or (N, T, D), or several columns (T,) by name."""
    pd = pandas()

    if not arrays:
        raise StatespanError(f"{path}: the file holds no array")
    if len(arrays) > 1:
        sizes = {name: array.shape for name, array in arrays.items()}
        if any(len(shape) != 1 for shape in sizes.values()) or len(set(sizes.values())) > 1:
            said = ", ".join(f"{name} {shape}" for name, shape in list(sizes.items())[:4])
            raise StatespanError(f"{path}: {said}; give one array, or columns (T,) of one length")
        return Table(str(path), pd.DataFrame(arrays), "row")
    array = next(iter(arrays.values()))
    if not 1 <= array.ndim <= 3:
        raise StatespanError(f"{path}: the array has {array.ndim} dimensions; give (T,), (T, D) or (N, T, D)")
    rows = array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array[:, None]
    frame = pd.DataFrame({str(d): rows[:, d] for d in range(rows.shape[1])})
    if array.ndim < 3:
        return Table(str(path), frame, "row")
    frame.insert(0, "sequence", np.arange(len(array)).repeat(array.shape[1]))
    return Table(str(path), frame, "row", "sequence")


def _as_numbers(cells: Column, there: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Numbers, NaN where a cell is missing or is none; dates and truth values are none."""
    pd = pandas()

    if cells.dtype.kind in "Mmb":
        return np.full(len(cells), np.nan)
    found = pd.to_numeric(cells.where(there), errors="coerce").to_numpy(np.float64, copy=True, na_value=np.nan)
    if np.isnan(found[there]).any():
        there = there & ~_marks(cells)
        pointed = _pointed(cells[there].astype("str"))
        if pointed is not None:
            found[there] = pd.to_numeric(pointed)
    return found


def _marks(cells: Column) -> NDArray[np.bool_]:
    return np.asarray(cells.isin(MARKS), bool)


def _pointed(cells: Column) -> Column | None:
    """Numbers written with commas, written with points; None where they are none, or 1,234 may be either."""
    commas = cells[cells.str.contains(",", regex=False)]
    if not len(commas):
        return None
    if commas.str.fullmatch(THOUSANDS).all():
        clear = commas.str.contains(".", regex=False).any() or (commas.str.count(",") > 1).any()
        whole = cells.str.replace(",", "", regex=False)
        return whole if clear and whole.map(_is_number).all() else None
    if not cells.str.fullmatch(DECIMAL_COMMA).all():
        return None
    return cells.str.replace(".", "", regex=False).str.replace(",", ".", regex=False)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text in MISSING
    return True
