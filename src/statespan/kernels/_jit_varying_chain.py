"""Numba loops of `varying_chain`: a sequence at a time, states across the lanes; importing it imports Numba."""

import numpy as np

from ._jit_forward_backward import get, keep
from ._simd import add, compiled, fill, fma, lift, load, mul, ratio, splat, store, total, where_positive, width, zero


@compiled
def pushed(source, place, tables, table, K, target):
    """Target = the K numbers of `source` from `place` on @ the matrix of `tables` from `table` on."""
    lanes = width(tables)
    for j in range(0, K, lanes):
        s = zero(tables)
        for i in range(K):
            s = fma(splat(source, place + i), get(tables, table + i * K + j, K - j), s)
        store(target, j, s)


@compiled
def forward(b, length, predicted, tables, which, likelihood, normaliser, filtered):
    """Sequence b; the move into step t is by matrix which[t, b], or t B + b where `which` is empty."""
    steps, batch, K = likelihood.shape
    lanes = width(likelihood)
    P = np.zeros(K + lanes, likelihood.dtype)
    P[:K] = predicted[b]
    one = fill(likelihood, 1)
    tiny = fill(likelihood, np.finfo(likelihood.dtype).tiny)
    for t in range(length):
        here = (t * batch + b) * K
        if t > 0:
            m = which[t, b] if which.size else t * batch + b
            pushed(filtered, here - batch * K, tables, m * K * K, K, P)
        s = zero(likelihood)
        for k in range(0, K, lanes):
            s = fma(load(P, k), get(likelihood, here + k, K - k), s)
        c = total(s)
        normaliser[t, b] = c
        every = fill(likelihood, c)
        up = lift(every, tiny)
        inverse = ratio(one, mul(every, up))
        for k in range(0, K, lanes):
            keep(filtered, here + k, mul(mul(mul(load(P, k), up), get(likelihood, here + k, K - k)), inverse), K - k)
    for t in range(length, steps):
        filtered[t, b] = 0


@compiled
def backward(
    b,
    length,
    predicted,
    tables,
    which,
    likelihood,
    filtered,
    g_normaliser,
    g_filtered,
    filtering,
    of_tables,
    g_predicted,
    g_tables,
    g_likelihood,
):
    """Gradients of `forward`; adds to `g_tables`. Predicted beliefs come again from the filtered ones."""
    steps, batch, K = likelihood.shape
    lanes = width(likelihood)
    P = np.zeros(K + lanes, likelihood.dtype)
    V = np.zeros(K + lanes, likelihood.dtype)
    U = np.zeros(K + lanes, likelihood.dtype)
    R = np.zeros(K + lanes, likelihood.dtype)
    one = fill(likelihood, 1)
    tiny = fill(likelihood, np.finfo(likelihood.dtype).tiny)
    for t in range(length - 1, -1, -1):
        here = (t * batch + b) * K
        before = here - batch * K
        table = (which[t, b] if which.size else t * batch + b) * K * K
        if t > 0:
            pushed(filtered, before, tables, table, K, P)
        else:
            P[:K] = predicted[b]
        s = zero(likelihood)
        g = zero(likelihood)
        for k in range(0, K, lanes):
            u = load(V, k)
            if filtering:
                u = add(u, get(g_filtered, here + k, K - k))
            store(U, k, u)
            s = fma(load(P, k), get(likelihood, here + k, K - k), s)
            g = fma(u, get(filtered, here + k, K - k), g)
        c = fill(likelihood, total(s))
        up = lift(c, tiny)
        inverse = ratio(one, mul(c, up))
        shift = fill(likelihood, likelihood.dtype.type(g_normaliser[t, b]) - total(g))
        for k in range(0, K, lanes):
            w = where_positive(add(load(U, k), shift), c)
            store(R, k, mul(w, mul(mul(get(likelihood, here + k, K - k), up), inverse)))
            keep(g_likelihood, here + k, mul(w, mul(mul(load(P, k), up), inverse)), K - k)
        if t == 0:
            g_predicted[b] = R[:K]
            break
        for i in range(K):
            s = zero(likelihood)
            row = table + i * K
            for j in range(0, K, lanes):
                r = load(R, j)
                s = fma(get(tables, row + j, K - j), r, s)
                if of_tables:
                    keep(g_tables, row + j, fma(splat(filtered, before + i), r, get(g_tables, row + j, K - j)), K - j)
            V[i] = total(s)
    for t in range(length, steps):
        g_likelihood[t, b] = 0
