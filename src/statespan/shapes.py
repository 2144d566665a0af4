"""Shapes in annotations: jaxtyping's where it is loaded (under the tests, which check them), else plain tensors."""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or "jaxtyping" in sys.modules:
    from jaxtyping import Bool, Float, Int
else:

    class _Plain:
        """`Float[Tensor, "T B K"]` is `Tensor`."""

        def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
            return item[0]

    Bool = Float = Int = _Plain

__all__ = ["Bool", "Float", "Int"]
