"""The error for bad input."""


class StatespanError(ValueError):
    """Bad input, told in one line that names the place and the fix.

    The command line prints that line alone and exits with 2.

    Examples:
        >>> raise StatespanError("prices.csv: there is no column 'close'; name open or low")
        Traceback (most recent call last):
        ...
        statespan.errors.StatespanError: prices.csv: there is no column 'close'; name open or low
    """
