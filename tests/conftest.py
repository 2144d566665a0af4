"""Shapes and types of the core are checked at every call under the tests, and only here."""

import os

# NumPy and SciPy come with threads that spin while they wait for each other, on small matrices ten times as long as the
# work takes; this must be said before their first import.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import jaxtyping
import pytest
import torch

import typecheck

CHECKED = [
    f"statespan.{name}"
    for name in (
        *("tree", "belief", "method", "sequences", "part", "model", "verbs", "answers", "families", "files"),
        *("parts", "methods", "fit", "ladder.rungs"),
    )
]

# Before the first import of statespan. The kernels stay as they are: Numba compiles functions, not their wrappers.
jaxtyping.jaxtyped = typecheck.jaxtyped
jaxtyping.install_import_hook(CHECKED, "typecheck.check")

# As `statespan.part.seeded` does.
SEED = torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed


@pytest.fixture(autouse=True)
def same_everywhere():
    """One thread, and the same random numbers in every test, whatever ran before it."""
    torch.set_num_threads(1)
    SEED(0)
