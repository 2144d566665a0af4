"""Shapes and types of the core are checked at every call under the tests, and only here."""

import pytest
import torch

from jaxtyping import install_import_hook  # isort: skip

CHECKED = [
    f"statespan.{name}"
    for name in (
        *("tree", "belief", "method", "sequences", "part", "model", "verbs", "answers", "families", "files"),
        *("parts", "methods", "fit", "ladder.rungs"),
    )
]

# Before the first import of statespan. The kernels stay as they are: Numba compiles functions, not their wrappers.
install_import_hook(CHECKED, "typecheck.check")


@pytest.fixture(autouse=True)
def same_everywhere():
    """One thread, and the same random numbers in every test, whatever ran before it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
