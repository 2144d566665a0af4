"""Nested tuples of tensors: the one container that beliefs, tables and prepared work share."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

Tree = Any
"""A tensor, None, a `Shared`, or a tuple (plain or named) of trees."""


class Shared(NamedTuple):
    """A value that is the same at every time step: handed whole to each step, never expanded over time.

    Args:
        value: anything: a table, a tuple of tensors.

    Example:
        >>> unstack(Shared("table"), 3)
        ['table', 'table', 'table']
    """

    value: Any


def rebuild(like: tuple, children: Iterable) -> tuple:
    """A tuple of the same type as `like` that holds `children`."""
    return type(like)(*children) if hasattr(like, "_fields") else tuple(children)


def tree_map(function: Callable, tree: Tree, *rest: Tree) -> Tree:
    """Apply `function` to every tensor of `tree` (and its fellows in `rest`); None and `Shared` stay as they are."""
    if tree is None or isinstance(tree, Shared):
        return tree
    if isinstance(tree, tuple):
        return rebuild(tree, [tree_map(function, *xs) for xs in zip(tree, *rest, strict=True)])
    return function(tree, *rest)


def leaves(tree: Tree) -> list[Tensor]:
    """Every tensor of `tree`, left to right, those inside `Shared` too."""
    if isinstance(tree, Tensor):
        return [tree]
    return [leaf for child in tree for leaf in leaves(child)] if isinstance(tree, tuple) else []


def replace_leaves(tree: Tree, new: Iterable[Tensor]) -> Tree:
    """The same tree with its tensors (as `leaves` lists them) replaced by `new`."""
    return _replaced(tree, iter(new))


def add(a: Tree, b: Tree) -> Tree:
    """Add two trees of sums, tensor by tensor."""
    return replace_leaves(a, [x + y for x, y in zip(leaves(a), leaves(b), strict=True)])


def _replaced(tree: Tree, new: Iterator[Tensor]) -> Tree:
    if isinstance(tree, Tensor):
        return next(new)
    return rebuild(tree, [_replaced(child, new) for child in tree]) if isinstance(tree, tuple) else tree


def unstack(tree: Tree, length: int) -> list[Tree]:
    """Split time off the front: a list of `length` trees, one a step; a `Shared` gives its value to each."""
    if tree is None:
        return [None] * length
    if isinstance(tree, Shared):
        return [tree.value] * length
    if isinstance(tree, tuple):
        columns = [unstack(child, length) for child in tree]
        return [rebuild(tree, row) for row in zip(*columns, strict=True)] if columns else [tree] * length
    return list(tree.unbind(0))


def stack(trees: list[Tree]) -> Tree:
    """Put time back in front: the inverse of `unstack` for trees without `Shared`."""
    return tree_map(lambda *xs: torch.stack(xs), *trees)


def detach(tree: Tree) -> Tree:
    """Cut the gradient: what truncated back-propagation carries from one window to the next.

    Args:
        tree: a belief, or any tree of tensors.

    Example:
        >>> import torch
        >>> detach((torch.ones(2, requires_grad=True),))[0].requires_grad
        False
    """
    return tree_map(lambda x: x.detach(), tree)


class Lazy:
    """A value made when it is first asked for, then kept; for work that only a gap or a forecast needs."""

    def __init__(self, make: Callable[[], Any]):
        self._make: Callable[[], Any] | None = make
        self._value: Any = None

    @property
    def value(self) -> Any:
        """The value, made now if it never was."""
        make = self._make  # read once: two threads may ask at once, and then both make it
        if make is not None:
            self._value, self._make = make(), None
        return self._value


class Lazily(Mapping[str, Any]):
    """A dictionary that may hold `Lazy` values; who looks one up gets what it makes."""

    def __init__(self, values: Mapping[str, Any]):
        self._values = values

    def __getitem__(self, name: str) -> Any:
        """The value, made now if it never was."""
        value = self._values[name]
        return value.value if isinstance(value, Lazy) else value

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._values)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._values)
