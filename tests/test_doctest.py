"""Every example in a docstring runs."""

import doctest
import importlib
import pkgutil

import pytest

import statespan

SKIPPED = ("statespan.cli", "statespan.kernels._")
MODULES = [
    module.name
    for module in pkgutil.walk_packages(statespan.__path__, "statespan.")
    if not module.name.startswith(SKIPPED)
]


@pytest.mark.parametrize("name", ["statespan", *MODULES])
def test_examples(name: str):
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert found.failed == 0
