"""The results that stay: rows of `ladder.csv` and `tagging.csv`, appended by every run that reaches its end."""

import csv
import fcntl
import io
import math
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from statespan.errors import StatespanError
from statespan.version import __version__

LADDER = "ladder.csv"
TAGGING = "tagging.csv"

BEGIN = ("rung", "corpus", "parameters", "width", "recipe", "seed")
END = ("device", "minutes", "commit")
PERPLEXITIES = (
    "dev_perplexity",
    "test_perplexity",
    "dev_perplexity_independent",
    "test_perplexity_independent",
)
ACCURACIES = tuple(
    f"{part}_accuracy{kind}{ending}"
    for ending in ("", "_independent")
    for part in ("dev", "test")
    for kind in ("", "_universal")
)
COLUMNS = {LADDER: (*BEGIN, *PERPLEXITIES, *END), TAGGING: (*BEGIN, "protocol", *ACCURACIES, *END)}
"""The columns of each file. Where nothing else is said the state is carried over; accuracies are shares, 0 to 1."""

WHAT = {LADDER: (*BEGIN, *PERPLEXITIES), TAGGING: (*BEGIN, "protocol", *ACCURACIES)}
"""What makes two rows the same: all but where and when they were made."""


def append(path: Path, rows: Sequence[Mapping[str, Any]]) -> int:
    """Add rows to a results file, each written whole or not at all, whoever else writes; one already there stays one.

    Args:
        path: the file, made with its header where it is not there; its name says which columns it has.
        rows: by column.

    Returns:
        How many were new.

    Raises:
        StatespanError: the file has other columns, or cannot be written, or a row lacks a column.

    Example:
        >>> import pathlib, tempfile
        >>> file, row = pathlib.Path(tempfile.mkdtemp()) / "ladder.csv", dict.fromkeys(COLUMNS["ladder.csv"], 1)
        >>> append(file, [row]), append(file, [row])
        (1, 0)
    """
    columns = COLUMNS[path.name]
    for row in rows:
        if set(row) != set(columns):
            odd = sorted(set(row) ^ set(columns))
            raise StatespanError(f"{path}: a row must have exactly the file's columns; see {', '.join(odd)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+", encoding="utf-8", newline="") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            there = _parse(path, file.read())
            known = {_key(path.name, row) for row in there}
            new = [row for row in rows if _key(path.name, row) not in known]
            written = io.StringIO()
            lines = csv.writer(written, lineterminator="\n")
            if file.tell() == 0:
                lines.writerow(columns)
            lines.writerows([_plain(row[name]) for name in columns] for row in new)
            file.write(written.getvalue())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StatespanError(f"{path}: cannot be written: {error.strerror}; give another folder") from None
    return len(new)


def holds(path: Path, row: Mapping[str, Any]) -> bool:
    """Whether a results file has a row of this rung, text, size, recipe and seed.

    Args:
        path: the file.
        row: by column.
    """
    wanted = [_plain(row[column]) for column in BEGIN]
    return any([there[column] for column in BEGIN] == wanted for there in read(path))


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a results file; none where it is not there.

    Raises:
        StatespanError: the file has other columns, or a line is cut short.
    """
    try:
        return _parse(path, path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise StatespanError(f"{path}: cannot be read ({error}); restore it") from None


def _parse(path: Path, text: str) -> list[dict[str, str]]:
    columns = COLUMNS[path.name]
    if not text:
        return []
    header, *lines = csv.reader(io.StringIO(text))
    if tuple(header) != columns:
        raise StatespanError(f"{path}: its columns are {', '.join(header)}; this version writes {', '.join(columns)}")
    for number, line in enumerate(lines, 2):
        if len(line) != len(columns) or (number == len(lines) + 1 and not text.endswith("\n")):
            raise StatespanError(f"{path}, line {number}: not a whole row; mend or delete it")
    return [dict(zip(columns, line, strict=True)) for line in lines]


def _plain(value: Any) -> str:
    """A value as a cell: numbers to five digits, nothing where there is none."""
    if isinstance(value, float):
        return f"{value:.5g}" if math.isfinite(value) else ""
    return "" if value is None else str(value)


def _key(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(_plain(row[column]) for column in WHAT[name])


def number(cell: str) -> float | None:
    """A cell as a number, if it is one."""
    try:
        return float(cell) if cell else None
    except ValueError:
        return None


def commit() -> str:
    """The commit that runs, `+` where files differ from it; the version where there is no repository."""
    try:
        git = ("git", "-C", str(Path(__file__).parent))
        name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return __version__
    return name.stdout.strip() + ("+" if changed.stdout.strip() else "")


def of_record(record: Mapping[str, Any], rung: str, corpus: str, recipe: str, seed: int, device: str) -> dict[str, Any]:
    """The row of `ladder.csv` that a trained row's record makes.

    Args:
        record: what `row.train` returned.
        rung: what the table calls it.
        corpus: the text's name.
        recipe: the recipe and the settings that it was trained by.
        seed: of the run.
        device: what it was trained on.
    """
    perplexities = {f"dev{k[5:]}" if k.startswith("valid") else k: v for k, v in record.items() if "_perplexity" in k}
    return {
        **{"rung": rung, "corpus": corpus, "parameters": record["parameters"], "width": record["width"]},
        **{"recipe": recipe, "seed": seed},
        **{name: perplexities[name] for name in PERPLEXITIES},
        **{"device": device, "minutes": record["seconds"] / 60, "commit": commit()},
    }
