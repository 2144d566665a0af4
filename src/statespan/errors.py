"""The error for bad input."""

from typing import Any


class StatespanError(ValueError):
    """Bad input, told in one line that names the place and the fix.

    The command line prints that line alone and exits with 2.

    Examples:
        >>> raise StatespanError("prices.csv: there is no column 'close'; name open or low")
        Traceback (most recent call last):
        ...
        statespan.errors.StatespanError: prices.csv: there is no column 'close'; name open or low
    """


def brief(value: Any) -> str:
    """A value as an error shows it: on one line, and cut where it is long.

    Args:
        value: anything that was given in place of what was asked for.

    Example:
        >>> brief(list(range(100)))
        '[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16...'
    """
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
