"""Numba loop of `symbol_sums`; importing this module imports Numba."""

from numba import njit

OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy", "boundscheck": False}


@njit(**OPTIONS)
def add_rows(first, last, values, index, result):
    """Columns first ... last - 1: result[index[n]] += values[n]."""
    for n in range(values.shape[0]):
        v = index[n]
        for k in range(first, last):
            result[v, k] += values[n, k]
