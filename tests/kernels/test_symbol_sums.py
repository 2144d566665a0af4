import pytest
import torch

from statespan.kernels.symbol_sums import symbol_sums


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "columns", "symbols"), [(1, 1, 1), (50, 3, 7), (200, 40, 5)])
def test_equals_index_add(rows, columns, symbols, dtype):
    values, index = torch.randn(rows, columns, dtype=dtype), torch.randint(0, symbols, (rows,))
    plain = torch.zeros(symbols, columns, dtype=dtype).index_add_(0, index, values)
    torch.testing.assert_close(symbol_sums(values, index, symbols), plain)


def test_opcheck():
    torch.library.opcheck(torch.ops.statespan.symbol_sums, (torch.randn(6, 3), torch.randint(0, 4, (6,)), 4))
