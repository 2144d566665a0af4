"""Answers to files: CSV, Parquet, NumPy or JSON."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from statespan.errors import StatespanError
from statespan.files import write_bytes
from statespan.tables.files import Frame


def text_of(frame: Frame) -> str:
    """CSV with every digit; an empty cell is missing."""
    return frame.to_csv(index=False, lineterminator="\n")


def json_of(frame: Frame) -> str:
    """A list of objects, one a row, times as ISO 8601, missing as null."""
    return frame.to_json(orient="records", date_format="iso", double_precision=15, force_ascii=False) + "\n"


def _parquet(frame: Frame) -> bytes:
    try:
        return frame.to_parquet(index=False)
    except ImportError:
        raise StatespanError("Parquet needs pyarrow; pip install 'statespan[parquet]', or write .csv") from None


def _npz(frame: Frame) -> bytes:
    """Columns by name; words as fixed-width strings, so that no code is needed to read them."""
    buffer = io.BytesIO()
    columns: dict[str, Any] = {str(name): frame[name].to_numpy() for name in frame.columns}
    np.savez_compressed(buffer, **{n: x.astype(np.str_) if x.dtype == object else x for n, x in columns.items()})
    return buffer.getvalue()


WRITERS: dict[str, Callable[[Frame], bytes]] = {
    ".csv": lambda frame: text_of(frame).encode(),
    ".tsv": lambda frame: frame.to_csv(index=False, sep="\t", lineterminator="\n").encode(),
    ".parquet": _parquet,
    ".pq": _parquet,
    ".npz": _npz,
    ".json": lambda frame: json_of(frame).encode(),
}


def writer(path: str | Path) -> Callable[[Frame], bytes]:
    """What writes a file of that ending.

    Raises:
        StatespanError: the ending is not known.
    """
    found = WRITERS.get(Path(path).suffix.lower())
    if found is None:
        raise StatespanError(f"{path}: an answer is written as {', '.join(WRITERS)}; end the name in one of them")
    return found


def write(frame: Frame, path: str | Path) -> None:
    r"""Write a frame in the format that the name's ending tells, at once or not at all.

    Raises:
        StatespanError: the ending is not known, or the file cannot be written.

    Example:
        >>> import pandas, pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "a.csv"
        >>> write(pandas.DataFrame({"step": [0, 1], "state": [1, 0]}), file)
        >>> file.read_text()
        'step,state\n0,1\n1,0\n'
    """
    write_bytes(path, writer(path)(frame))
