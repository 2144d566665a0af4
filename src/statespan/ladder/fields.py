"""Tables of a TOML file as the fields of a dataclass; what does not fit is refused in one line that names it."""

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_origin

from statespan.errors import StatespanError


def table(name: str, value: Any) -> dict[str, Any]:
    """The value, if it is a table."""
    if not isinstance(value, dict):
        raise StatespanError(f"{name} = {value!r} must be a table, [{name}]")
    return value


def make(place: str, cls: type, values: Mapping[str, Any]) -> Any:
    """A dataclass; where it refuses a value, the place is told."""
    try:
        return cls(**values)
    except StatespanError as error:
        raise StatespanError(f"{place} {error}") from None


def typed(place: str, table: dict[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a table as the types of these keys; any other key is refused."""
    known(place, table, kinds)
    try:
        return {key: _fit(key, value, kinds[key]) for key, value in table.items()}
    except StatespanError as error:
        raise StatespanError(f"{place} {error}") from None


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: 'text in "quotes"'}


def _fit(key: str, value: Any, kind: Any) -> Any:
    """A value of a TOML file as the type of its field."""
    if get_origin(kind) is tuple:
        each = get_args(kind)
        count = None if each[-1] is ... else len(each)
        if not isinstance(value, list) or count not in (None, len(value)):
            raise StatespanError(f"{key} = {value!r} must be a list" + (f" of {count}" if count else ""))
        return tuple(_fit(f"each of {key}", item, each[0]) for item in value)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise StatespanError(f"{key} = {value!r} must be {_KINDS[kind]}")
    return value


def insist(*checks: tuple[bool, str]) -> None:
    """Raise the first line whose check failed."""
    for good, line in checks:
        if not good:
            raise StatespanError(line)


def known(place: str, table: Iterable[str], known: Iterable[str]) -> None:
    """Refuse an unknown key by name."""
    known = list(known)
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise StatespanError(f"{place} unknown key {key!r}; {hint}".lstrip())
