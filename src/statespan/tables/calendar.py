"""Times of steps: parsed, checked, filled where steps are absent, and continued."""

import re
import warnings
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from statespan.errors import StatespanError
from statespan.tables.files import Table, pandas

Times: TypeAlias = Any
"""An index of pandas."""


def parse(table: Table, column: str) -> Times:
    """A column of times: numbers (years, seconds), or dates.

    The day comes first where the month cannot, where the steps are then more even, and where points set them apart.

    Raises:
        StatespanError: a cell is missing or is no time; names it.
    """
    pd = pandas()

    cells, there = table.cells(column)
    if cells.dtype.kind == "M":
        times = pd.Index(cells)
    elif cells.dtype.kind in "iuf" or not table.wordy(column):
        times = pd.Index(table.numbers(column))
        times = times.astype("int64") if there.all() and bool((times % 1 == 0).all()) else times
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a guessed order of day and month, which is checked here
            try:
                orders = (False,) if bool(cells[there].str.match(r"\d{4}").any()) else (False, True)
                orders = orders[::-1] if bool(cells[there].str.match(r"\d+\.").all()) else orders
                found = [pd.to_datetime(cells, errors="coerce", dayfirst=first) for first in orders]
            except (ValueError, TypeError):  # offsets from UTC that differ
                found = [pd.to_datetime(cells, errors="coerce", utc=True)]
        times = pd.Index(min(found, key=lambda each: (int(each.isna().sum()), len(each.sort_values().diff().unique()))))
    wrong = np.asarray(times.isna())
    if wrong.any():
        place = table.frame.index[int(wrong.argmax())]
        text = str(cells.iloc[int(wrong.argmax())]) if there[int(wrong.argmax())] else ""
        what = (
            f"{text!r} is no date or time; write it as 2024-05-31 or 2024-05-31 14:00" if text else "no time is given"
        )
        raise StatespanError(f"{table.at(place, column)}: {what}")
    return times


class Calendar(NamedTuple):
    """How times go on.

    Args:
        every: the step: a number, or a frequency as pandas writes it (D, h, MS, W-SUN).
        regular: whether every step of the data has this length.
    """

    every: Any
    regular: bool

    def after(self, last: Any, steps: int) -> Times:
        """The times of the steps that follow `last`."""
        pd = pandas()

        if isinstance(self.every, str):
            return pd.date_range(last, periods=steps + 1, freq=self.every)[1:]
        return pd.Index(last + self.every * np.arange(1, steps + 1))

    def between(self, first: Any, last: Any) -> Times:
        """The times from `first` to `last`."""
        pd = pandas()

        if isinstance(self.every, str):
            return pd.date_range(first, last, freq=self.every)
        return pd.Index(first + self.every * np.arange(round((last - first) / self.every) + 1))


def frequency(times: list[Times]) -> Calendar | None:
    """How the times of sequences go on: their common step, else the most frequent one; None for single steps."""
    pd = pandas()

    long = [each for each in times if len(each) > 1]
    if not long:
        return None
    if not isinstance(long[0], pd.DatetimeIndex):
        steps = np.concatenate([np.diff(each.to_numpy()) for each in long])
        values, counts = np.unique(steps.round(9), return_counts=True)
        every = values[counts.argmax()].item()
        return Calendar(int(every) if float(every).is_integer() else every, len(values) == 1)
    named = {_frequency_name(each) for each in long}
    known = named - {None}
    if len(named) == 1 and known:
        return Calendar(known.pop(), True)
    steps = np.concatenate([np.diff(each.to_numpy()) for each in long])
    values, counts = np.unique(steps, return_counts=True)
    if known and len(known) == 1:  # a short sequence tells no frequency
        return Calendar(known.pop(), len(values) == 1)
    every = pd.Timedelta(values[counts.argmax()])
    weekdays = all(bool((each.day_of_week < 5).all()) for each in long)
    enough = sum(map(len, long)) > 5
    if every == pd.Timedelta(days=1) and weekdays and enough:
        return Calendar("B", False)
    whole = every / pd.Timedelta(days=1)  # a day is D, not 24h: clocks that change keep the hour
    name = (
        ("D" if whole == 1 else f"{whole:.0f}D") if whole % 1 == 0 else pd.tseries.frequencies.to_offset(every).freqstr
    )
    return Calendar(name, len(values) == 1)


def _frequency_name(times: Times) -> str | None:
    """What pandas calls the frequency of three times or more, if they have one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what later versions return
        found = pandas().infer_freq(times) if len(times) > 2 else None
    return getattr(found, "freqstr", found)


def read_every(text: str, dates: bool) -> Calendar:
    """What --every says: a number where times are numbers, else a frequency such as D, h, 15min, W, MS.

    Raises:
        StatespanError: it is neither.
    """
    pd = pandas()

    try:
        if dates:
            return Calendar(pd.tseries.frequencies.to_offset(text).freqstr, True)
        step = float(text)
        if not step > 0:
            raise ValueError
    except (ValueError, AttributeError):
        what = "a frequency such as D, h, 15min, W or MS" if dates else "a number above 0, as the times are numbers"
        raise StatespanError(f"--every {text}: give {what}") from None
    return Calendar(int(step) if step.is_integer() else step, True)


def absent(calendar: Calendar, times: Times, place: Any) -> tuple[Times, NDArray[np.int64]]:
    """All the steps from the first time to the last, and where each given one stands among them.

    Args:
        calendar: the steps.
        times: increasing.
        place: says where the i-th time stands, for the error.

    Raises:
        StatespanError: a time falls between two steps.
    """
    whole = calendar.between(times[0], times[-1])
    where = whole.get_indexer(times)
    if (where < 0).any():
        wrong = int((where < 0).argmax())
        raise StatespanError(
            f"{place(wrong)}: {spell(times[wrong])} lies between two steps of --every {calendar.every}"
        )
    return whole, where


def spell(time: Any) -> str:
    """A time for a reader: no hours where it is midnight."""
    return re.sub("[T ]00:00:00$", "", str(time))
