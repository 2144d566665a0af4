"""What the tests of kernels share."""

import pytest
import torch


@pytest.fixture
def two_threads():
    """Other tests use one thread; here several are part of what is tested."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
