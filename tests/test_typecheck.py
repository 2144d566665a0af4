"""Annotations are checked at every call, with shapes and without."""

import jaxtyping
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

import typecheck
from statespan.tree import tree_map


def product(a: Float[Tensor, "I J"], b: Float[Tensor, "J K"] | None = None) -> Float[Tensor, "I K"]:
    return a if b is None else a @ b


def double(n: float, many: list[Tensor] | None = None) -> int:
    return 2 * n  # type: ignore[return-value]


def test_shapes_and_types_are_checked():
    shaped, typed = (typecheck.jaxtyped(typechecker=typecheck.check)(f) for f in (product, double))
    assert shaped(torch.ones(2, 3), torch.ones(3, 1)).shape == (2, 1)
    for wrong in ((torch.ones(2),), (torch.ones(2, 3), torch.ones(2, 3))):
        with pytest.raises(jaxtyping.TypeCheckError):
            shaped(*wrong)
    assert typed(2, [torch.ones(())]) == 4
    for wrong in (("2",), (0.5,), (2, [1]), (2, torch.ones(()))):
        with pytest.raises(jaxtyping.TypeCheckError):
            typed(*wrong)


def test_the_library_is_checked():
    with pytest.raises(jaxtyping.TypeCheckError):
        tree_map("not a function", torch.ones(()))  # type: ignore[arg-type]
