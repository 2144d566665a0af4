"""How annotations are checked under the tests: an int serves as a float, as in PEP 484."""

from collections.abc import Callable, Iterator
from inspect import isclass, isfunction
from typing import Any, get_args

import jaxtyping
from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=jaxtyping.TypeCheckError))
_with_shapes = jaxtyping.jaxtyped


def _inside(hint: Any) -> Iterator[Any]:
    yield hint
    for part in hint if isinstance(hint, list) else get_args(hint):
        yield from _inside(part)


def _plain(hint: Any) -> bool:
    """Whether a hint names no shape, and is not a string that may stand for one that does."""
    return not any(isinstance(h, str) or (isclass(h) and issubclass(h, jaxtyping.AbstractArray)) for h in _inside(hint))


def jaxtyped(function: Any = None, *, typechecker: Any) -> Any:
    """What jaxtyping's hook puts on every function: its own decorator only where some shape is named.

    It binds the arguments of each call, which takes ten to twenty times as long as to check them; where there is no
    shape to compare, beartype checks the same by itself.
    """

    def decorated(function: Callable[..., Any]) -> Any:
        if isfunction(function) and all(map(_plain, function.__annotations__.values())):
            return check(function)
        return _with_shapes(function, typechecker=typechecker)

    return decorated if function is None else decorated(function)
