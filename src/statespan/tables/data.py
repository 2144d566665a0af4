"""Sequences out of a file of columns or a text, and where each of their steps came from."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from statespan.errors import StatespanError
from statespan.sequences import Event
from statespan.tables.calendar import Calendar, Times, absent, frequency, parse, read_every, spell
from statespan.tables.files import Frame, Table, pandas, read_table

if TYPE_CHECKING:
    from statespan.language.vocabulary import Vocabulary

DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}")
PLACE = re.compile(r"sequence (\d+), step (\d+)(?:, column (\d+))?")
MANY_WORDS = 30
"""More words in a column than this may be numbers that could not be read, or names."""


class Columns(NamedTuple):
    """What a model's observations are called in the file they came from; it is kept with the model.

    Args:
        names: the columns that are observed, in the order of the model's coordinates.
        words: of a column that holds words, those words in the order of their numbers.
        sequence: the column that tells sequences apart.
        time: the column of times.
        every: the step between times, as `--every` said it.
        inputs: the columns that act on the model, in its order; none of them is observed.
        missing: numbers or words that stand for a missing cell.
    """

    names: tuple[str, ...]
    words: dict[str, tuple[str, ...]]
    sequence: str | None = None
    time: str | None = None
    every: str | None = None
    inputs: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return self._asdict()

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Columns":
        """What `to_json` gave."""
        words = {name: tuple(each) for name, each in value["words"].items()}
        more = {name: tuple(value.get(name, ())) for name in ("inputs", "missing")}
        return cls(tuple(value["names"]), words, value["sequence"], value["time"], value["every"], **more)


class Data(NamedTuple):
    """Sequences, one after another.

    Args:
        path: the file.
        row: what a place in it is called.
        columns: what is observed.
        values: (rows, C) numbers, words by their number; NaN is missing.
        ends: the length of each sequence.
        labels: what each sequence is called.
        frame: one row a step: sequence and time, where there are any, and the observed columns.
        keys: the first of these columns, those that are not observed.
        places: where each row stands in the file; -1 for a step that the file lacks.
        times: of each sequence, where there is a column of times.
        calendar: how the times go on.
        notes: what a user should know of how the file was read.
        given: inputs (rows, U); None without.
    """

    path: str
    row: str
    columns: Columns
    values: NDArray[np.float64]
    ends: list[int]
    labels: list[str]
    frame: Frame
    keys: list[str]
    places: NDArray[Any]
    times: list[Times] | None = None
    calendar: Calendar | None = None
    notes: tuple[str, ...] = ()
    given: NDArray[np.float64] | None = None

    @property
    def starts(self) -> NDArray[np.int64]:
        """The row at which each sequence begins."""
        return np.concatenate([[0], np.cumsum(self.ends)[:-1]]).astype(np.int64)

    def y(self, event: Event) -> list[NDArray[Any]]:
        """The sequences as a model with such observations wants them: (T_n,) symbols or (T_n, D) numbers.

        Raises:
            StatespanError: the model observes other columns.
        """
        width = self.values.shape[1]
        if width != (event.dim or 1):
            raise StatespanError(
                f"{self.path}: the model observes {event.dim or 1} column{'s' if (event.dim or 1) > 1 else ''}, "
                f"and {width} are given ({', '.join(self.columns.names)}); say which with --columns"
            )
        values: NDArray[Any] = self.values
        if event.rank == 0:
            values = values[:, 0]
        if event.symbols is not None:
            values = self._symbols(values, event.symbols)
        return np.split(values, np.cumsum(self.ends)[:-1])

    def u(self) -> list[NDArray[np.float64]] | None:
        """The inputs of each sequence, (T_n, U); None without."""
        return None if self.given is None else np.split(self.given, np.cumsum(self.ends)[:-1])

    def _symbols(self, values: NDArray[np.float64], symbols: int) -> NDArray[np.int64]:
        """Numbers of symbols, -1 missing."""
        with np.errstate(invalid="ignore"):
            wrong = (values % 1 != 0) & ~np.isnan(values) | (values < 0) | (values >= symbols)
        if wrong.any():
            at = int(wrong.argmax())
            raise StatespanError(
                f"{self.path}, {self.row} {self.places[at]}: {values[at]:g} is no symbol; the model knows 0 to "
                f"{symbols - 1}; leave the cell empty for missing"
            )
        return np.where(np.isnan(values), -1, values).astype(np.int64)

    def ordered(self, key: Callable[[str], Any]) -> "Data":
        """The same with its columns in another order, that of `key`; where it does not tell, as they stand."""
        names = self.columns.names
        order = sorted(range(len(names)), key=lambda c: key(names[c]))
        columns = self.columns._replace(names=tuple(names[c] for c in order))
        return self._replace(columns=columns, values=self.values[:, order])

    def beside(self, answer: Mapping[str, Any]) -> Frame:
        """The frame, and at its right the columns of an answer; one that the data have too is called `model_...`."""
        taken = set(self.frame.columns)
        named = {f"model_{name}" if name in taken else name: values for name, values in answer.items()}
        return pandas().concat([self.frame, pandas().DataFrame(named, index=self.frame.index)], axis=1)

    def which(self, label: str | None) -> int:
        """The number of the sequence of that name, or of that number; the first one for None.

        Raises:
            StatespanError: there is none.
        """
        if label is None:
            return 0
        if label in self.labels:
            return self.labels.index(label)
        if label.isdigit() and int(label) < len(self.labels):
            return int(label)
        some = ", ".join(self.labels[:6]) + (", ..." if len(self.labels) > 6 else "")
        raise StatespanError(f"{self.path}: there is no sequence {label}; there are {len(self.labels)}: {some}")

    def steps(self, sequence: int) -> slice:
        """The rows of one sequence."""
        start = int(self.starts[sequence])
        return slice(start, start + self.ends[sequence])

    def located(self, message: str) -> str:
        """An error of the library with the place in the file beside the sequence and the step."""
        found = PLACE.search(message)
        if not found:
            return message if message.startswith((self.path, "--")) else f"{self.path}: {message}"
        sequence, step, column = (None if text is None else int(text) for text in found.groups())
        assert sequence is not None and step is not None
        if sequence >= len(self.ends) or step >= self.ends[sequence]:
            return f"{self.path}: {message}"
        place = f"{self.path}, {self.row} {self.places[self.starts[sequence] + step]}"
        if column is not None and column < len(self.columns.names):
            place += f", column {self.columns.names[column]}"
        return message[: found.start()] + place + message[found.end() :]


def read(
    path: str | Path,
    columns: Sequence[str] = (),
    symbols: Sequence[str] = (),
    sequence: str | None = None,
    time: str | None = None,
    every: str | None = None,
    known: Columns | None = None,
    inputs: Sequence[str] = (),
    missing: Sequence[str] = (),
) -> Data:
    r"""Read sequences from a file of columns (see `read_table` for its formats).

    Args:
        path: the file.
        columns: what is observed, by name or number from 0; () is every column but those of sequence, time and inputs.
        symbols: which of them hold words, numbered by the words that occur; a column that holds no number is one too.
        sequence: the column that tells sequences apart; rows of a sequence need not stand together.
        time: a column of times; rows are put in its order.
        every: the step between times (D, h, W, MS; a number); steps that are absent are put in as missing.
        known: what a model observes; the file is then read the same way, where nothing else is said.
        inputs: columns of numbers that act on the model; none may be missing.
        missing: numbers or words that stand for a missing cell, such as "-999", beside an empty one, NA and the like.

    Raises:
        StatespanError: one line that names the file, the row, the column and the fix.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "a.csv"
        >>> _ = file.write_text("day,sky\n2024-05-01,sun\n2024-05-02,rain\n2024-05-04,sun\n")
        >>> data = read(file, time="day", every="D")
        >>> data.columns.words, data.values[:, 0].tolist()
        ({'sky': ('rain', 'sun')}, [1.0, 0.0, nan, 1.0])
    """
    table = read_table(path, missing or (known.missing if known else ()))
    sequence, time = _key(table, sequence, known and known.sequence), _key(table, time, known and known.time)
    sequence, every = sequence or table.sequence, every or (known.every if known else None)
    if every is not None and time is None:
        raise StatespanError(f"--every {every}: there are no times; name their column with --time")
    acting = tuple(table.name(each) for each in inputs) or (known.inputs if known else ())
    names = _observed(table, columns, {sequence, time, *acting}, known)
    coded, words = [], {}
    for position, name in enumerate(names):
        known_words = known.words.get(known.names[position]) if known else None
        if known_words is not None:
            codes = _code(table, name, known_words)
        elif known is None and (name in map(table.name, symbols) or table.wordy(name)):
            codes, words[name] = _vocabulary(table, name, asked=bool(columns or symbols))
        else:
            codes = table.numbers(name)
        coded.append(codes)
        words |= {name: known_words} if known_words is not None else {}
    table.notes.extend(
        f"column {name} holds {len(of):,} different words, such as {of[0]!r}"
        for name, of in words.items()
        if known is None and len(of) > MANY_WORDS
    )
    values = np.stack(coded, 1)
    if np.isnan(values).all():
        raise StatespanError(f"{path}: nothing is observed in {', '.join(names)}; every cell is empty")
    for name, numbers in zip(names, coded, strict=True):
        if name not in words:
            _suspect(table, name, numbers)
    given = np.stack([_input(table, name) for name in acting], 1) if acting else None
    return _arrange(table, Columns(tuple(names), words, sequence, time, every, acting, table.missing), values, given)


def _suspect(table: Table, name: str, numbers: NDArray[np.float64]) -> None:
    """Note a code such as -999 or 9999 that stands more than once, and apart from all other values by their range."""
    there = numbers[~np.isnan(numbers)]
    for code in {there.min(), there.max()} if len(there) else ():
        rest, count = there[there != code], int((there == code).sum())
        digits = f"{abs(code):.10g}".replace(".", "")
        if count < 2 or not len(rest) or len(digits) < 2 or digits.strip("9"):
            continue
        if min(abs(code - rest.min()), abs(code - rest.max())) > np.ptp(rest):
            table.notes.append(
                f"column {name}: {code:g} stands {count:,} times, far from every other value; if it is no number but a "
                f"gap, say --missing {code:g}"
            )


def _input(table: Table, name: str) -> NDArray[np.float64]:
    """A column of inputs: numbers, all of them there.

    Raises:
        StatespanError: words, or an empty cell.
    """
    if name not in table.frame.columns:
        raise StatespanError(f"{table.path}: the model has an input {name}, and there is no such column; add it")
    if table.wordy(name):
        raise StatespanError(
            f"{table.path}: column {name} holds words, and an input is a number; give a column of 0 and 1 for each word"
        )
    numbers = table.numbers(name)
    if np.isnan(numbers).any():
        at = table.at(table.frame.index[int(np.isnan(numbers).argmax())], name)
        raise StatespanError(f"{at}: the cell is empty, and an input cannot be missing; fill it first")
    return numbers


def read_inputs(path: str | Path, names: Sequence[str], steps: int) -> NDArray[np.float64]:
    r"""Inputs of steps that are still to come, one row a step, (steps, U).

    Args:
        path: the file; further columns do not matter.
        names: the columns.
        steps: how many rows are needed; later ones are left.

    Raises:
        StatespanError: too few rows, an absent column, an empty cell.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "a.csv"
        >>> _ = file.write_text("rain\n0\n2\n1\n")
        >>> read_inputs(file, ["rain"], 2).tolist()
        [[0.0], [2.0]]
    """
    table = read_table(path)
    return _first(np.stack([_input(table, name) for name in names], 1), steps, str(path))


def read_ahead(path: str | Path, data: Data, steps: int) -> NDArray[np.float64]:
    """Inputs of the steps that follow each sequence, (N, steps, U).

    Args:
        path: the file: the input columns, and of several sequences the one that tells them apart.
        data: what they follow.
        steps: how many rows each needs.

    Raises:
        StatespanError: as `read_inputs`; or there is nothing to tell sequences apart by.
    """
    if len(data.ends) == 1:
        return read_inputs(path, data.columns.inputs, steps)[None]
    table, column = read_table(path, data.columns.missing), data.columns.sequence
    if column is None or column not in table.frame.columns:
        raise StatespanError(
            f"{path}: there are {len(data.ends)} sequences; add the column {column or '--sequence'} that says whose "
            "each row is"
        )
    given = np.stack([_input(table, name) for name in data.columns.inputs], 1)
    whose = table.words(column)[0].to_numpy()
    return np.stack([_first(given[whose == label], steps, f"{path}, {column} {label}") for label in data.labels])


def _first(rows: NDArray[np.float64], steps: int, place: str) -> NDArray[np.float64]:
    if len(rows) < steps:
        raise StatespanError(f"{place}: {len(rows)} rows of inputs for {steps} steps; add the rest, or ask for fewer")
    return rows[:steps]


def _key(table: Table, asked: str | None, known: str | None) -> str | None:
    """A column that is no observation, as asked, or as the model's own file had it if this one has it too."""
    if asked is not None:
        return table.name(asked)
    return known if known in table.frame.columns else None


def _observed(table: Table, asked: Sequence[str], keys: set[str | None], known: Columns | None) -> list[str]:
    """The columns that are observed; `keys` are those that are not."""
    names = [table.name(each) for each in asked]
    if known and not names:
        names = [table.name(each) for each in known.names]
    elif known and len(names) != len(known.names):
        raise StatespanError(
            f"--columns names {len(names)} where the model observes {len(known.names)} ({', '.join(known.names)})"
        )
    both = [name for name in names if name in keys]
    if both or len(set(names)) < len(names):
        twice = (both or [name for name in names if names.count(name) > 1])[0]
        raise StatespanError(f"--columns: {twice} is {'no observation' if both else 'named twice'}; leave it out")
    if not names and table.unnamed is not None and table.unnamed not in keys:
        table.notes.append(
            "the first column has no name and is not observed; --time 0 or --columns 0,... says otherwise"
        )
    names = names or table.observed(keys)
    if not names:
        raise StatespanError(f"{table.path}: no column is left to observe; it has {table.names()}")
    return names


def _vocabulary(table: Table, name: str, asked: bool) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """A column's words numbered: in the order of numbers where all are numbers, else of the alphabet."""
    pd = pandas()

    cells, there = table.words(name)
    codes, found = pd.factorize(cells.where(there))
    words = [str(word) for word in found]
    if not words:
        raise StatespanError(f"{table.path}: column {name} is empty; leave it out with --columns")
    if not asked and DATE.match(words[0]):
        raise StatespanError(
            f"{table.at(table.frame.index[0], name)}: {words[0]!r} is a date; say --time {name}, or which columns to "
            "observe with --columns"
        )
    if not asked and there.sum() > 2 and len(words) == there.sum():  # dates or names: no two are the same
        raise StatespanError(
            f"{table.at(table.frame.index[0], name)}: {words[0]!r} is no number, and no word is there twice; "
            f"say --time {name} if these are times, else which columns to observe with --columns"
        )
    try:
        order = np.argsort(np.array([float(word) for word in words]), kind="stable")
    except ValueError:
        order = np.argsort(np.array(words), kind="stable")
    rank = np.empty(len(words))
    rank[order] = np.arange(len(words))
    return np.where(there, rank[codes], np.nan), tuple(words[i] for i in order)


def _code(table: Table, name: str, words: Sequence[str]) -> NDArray[np.float64]:
    """A column's words by the numbers a model knows them by."""
    pd = pandas()

    cells, there = table.words(name)
    codes = pd.Index(words).get_indexer(cells).astype(np.float64)
    wrong = there & (codes < 0)
    if wrong.any():
        at = int(wrong.argmax())
        raise StatespanError(
            f"{table.at(table.frame.index[at], name)}: the model does not know {cells.iloc[at]!r}; it knows "
            f"{', '.join(words[:8])}{', ...' if len(words) > 8 else ''}; leave the cell empty for missing"
        )
    return np.where(there, codes, np.nan)


def _arrange(table: Table, columns: Columns, values: NDArray[np.float64], given: NDArray[np.float64] | None) -> Data:
    """Rows sequence by sequence, in the order of time, with absent steps put in."""
    pd = pandas()

    rows, notes = len(values), table.notes
    places = table.frame.index.to_numpy()
    codes, labels = np.zeros(rows, np.int64), ["0"]
    if columns.sequence is not None:
        cells, there = table.words(columns.sequence)
        if not there.all():
            raise StatespanError(f"{table.at(places[int((~there).argmax())], columns.sequence)}: no sequence is named")
        codes, found = pd.factorize(cells)
        labels = [str(label) for label in found]
    times = None if columns.time is None else parse(table, columns.time)
    if times is None:
        order = np.argsort(codes, kind="stable")
    else:
        rank = times.argsort()
        position = np.empty(rows, np.int64)
        position[rank] = np.arange(rows)
        order = np.lexsort((position, codes))
        times = times[order]
        same = (np.diff(codes[order]) == 0) & np.asarray(times[1:] == times[:-1])
        if same.any():
            at = order[int(same.argmax()) + 1]
            raise StatespanError(
                f"{table.at(places[at], columns.time)}: {spell(times[int(same.argmax()) + 1])} is there twice; "
                f"keep one row a time, or tell sequences apart with --sequence"
            )
        if (np.diff(order[np.argsort(codes[order], kind="stable")]) < 0).any() and columns.sequence is None:
            notes.append(f"the rows are put in the order of {columns.time}")
    codes, places, values = codes[order], places[order], values[order]
    given = None if given is None else given[order]
    ends = np.bincount(codes, minlength=len(labels)).tolist()
    frame = table.frame.iloc[order][list(columns.names)].reset_index(drop=True)
    for name, column in zip(columns.names, values.T, strict=True):
        if name not in columns.words:
            frame[name] = column
        else:
            frame[name] = frame[name].astype("str").where(~np.isnan(column))
    data = Data(table.path, table.row, columns, values, ends, labels, frame, [], places, notes=tuple(notes))
    data = data._replace(given=given)
    return _keyed(data if times is None else _timed(table, data, times))


def _timed(table: Table, data: Data, times: Times) -> Data:
    """The same with its times: steps that are absent put in, the calendar found."""
    pd = pandas()

    column, every = str(data.columns.time), data.columns.every
    bounds = [data.steps(i) for i in range(len(data.ends))]
    each = [times[rows] for rows in bounds]
    if every is None:
        calendar, notes = frequency(each), list(data.notes)
        if calendar is not None and not calendar.regular:
            notes.append(
                f"the steps of {column} differ, mostly {calendar.every}; rows are taken one after another "
                f"(--every {calendar.every} puts in what is absent as missing)"
            )
        return data._replace(times=each, calendar=calendar, notes=tuple(notes))
    calendar = read_every(every, isinstance(times, pd.DatetimeIndex))
    whole, where, start = [], [], 0
    for rows, mine in zip(bounds, each, strict=True):
        steps, found = absent(calendar, mine, lambda i, rows=rows: table.at(data.places[rows][i], column))
        whole.append(steps)
        where.append(found + start)
        start += len(steps)
    at = np.concatenate(where)
    values = np.full((start, data.values.shape[1]), np.nan)
    values[at] = data.values
    places = np.full(start, -1, dtype=data.places.dtype)
    places[at] = data.places
    more = start - len(data.values)
    if more and data.given is not None:
        raise StatespanError(
            f"{table.path}: {more} step(s) are absent from {column}, and an input cannot be missing; add these rows, "
            "with their inputs, or leave --every out"
        )
    given = data.given
    if given is not None:
        given = np.empty_like(given)
        given[at] = data.given
    notes = [*data.notes, f"{more} step(s) absent from {column} are put in as missing"] if more else data.notes
    frame = data.frame.set_axis(at).reindex(np.arange(start))
    return data._replace(
        values=values,
        ends=[len(steps) for steps in whole],
        frame=frame,
        places=places,
        times=whole,
        calendar=calendar,
        notes=tuple(notes),
        given=given,
    )


def _keyed(data: Data) -> Data:
    """The same with its keys, sequence and time or step, in front."""
    frame, keys = data.frame, []
    time = data.columns.time or "step"
    if data.times is not None:
        column = data.times[0].append(data.times[1:])
    else:
        column = np.arange(len(frame)) - np.repeat(data.starts, data.ends)
    if time not in frame.columns:
        frame.insert(0, time, column)
        keys = [time]
    name = data.columns.sequence or "sequence"
    if (data.columns.sequence is not None or len(data.ends) > 1) and name not in frame.columns:
        frame.insert(0, name, np.repeat(data.labels, data.ends))
        keys = [name, *keys]
    return data._replace(frame=frame, keys=keys)


def read_words(
    path: str | Path,
    vocabulary: "Vocabulary | None" = None,
    level: str = "words",
    at_least: int = 2,
) -> "tuple[Data, Vocabulary]":
    r"""Read a text (plain, word/TAG or CoNLL-U): a sequence a sentence, ended by `<eos>`.

    Args:
        path: the file; see `statespan.language.corpora.read`.
        vocabulary: the words a model knows; None makes one of this text.
        level: "words" or "characters".
        at_least: a word that occurs less often is read as `<unk>`, so that a model knows what to think of new words.

    Raises:
        StatespanError: the text cannot be read.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "a.txt"
        >>> _ = file.write_text("so it goes\nso it was\n")
        >>> data, vocabulary = read_words(file)
        >>> data.ends, vocabulary.decode(data.values[:4, 0].astype(int))
        ([4, 4], ['so', 'it', '<unk>', '<eos>'])
    """
    pd = pandas()

    from statespan.language import corpora
    from statespan.language.vocabulary import Vocabulary, encode_corpus

    sentences = corpora.read(path)
    if level == "characters":
        sentences = corpora.characters(sentences)
    vocabulary = vocabulary or Vocabulary.build(sentences, minimum_count=at_least)
    numbers = [sentence.numpy() for sentence in encode_corpus(sentences, vocabulary)]
    flat, ends = np.concatenate(numbers), [len(sentence) for sentence in numbers]
    what = "word" if level == "words" else "character"
    words = np.array(vocabulary.words, dtype=object)[flat]
    frame = pd.DataFrame({what: words})
    columns = Columns((what,), {what: vocabulary.words}, "sentence", None)
    labels = [str(i) for i in range(1, len(ends) + 1)]
    places = np.repeat(np.arange(1, len(ends) + 1), ends)
    unknown = int((flat == vocabulary.unk).sum())
    notes = (f"{unknown:,} of {len(flat) - len(ends):,} {what}s are read as <unk>",) if unknown else ()
    data = Data(str(path), "sentence", columns, flat[:, None].astype(np.float64), ends, labels, frame, [], places)
    return _keyed(data._replace(notes=notes)), vocabulary
