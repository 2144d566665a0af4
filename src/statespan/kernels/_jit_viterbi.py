"""Numba loops of `max_product`; importing this module imports Numba."""

import numpy as np

from ._simd import add, compiled, index_larger, larger, load, splat, store, store_index, width, zero_index


@compiled
def best_lanes(first, last, order, lengths, initial, panels, likelihood, pointers, score, path):
    """Groups first ... last - 1 of sequences across lanes; `pointers` (T, K, lanes) small integers to work in."""
    steps, batch, K = likelihood.shape
    states = (K + 3) // 4 * 4
    lanes = width(likelihood)
    size = states * lanes
    lowest = likelihood.dtype.type(-np.inf)
    D = np.full(size, lowest, likelihood.dtype)
    E = np.full(size, lowest, likelihood.dtype)
    for group in range(first, last):
        base = group * lanes
        count = min(lanes, batch - base)
        D[:] = lowest
        active = count
        for t in range(lengths[base]):
            while active > 0 and lengths[base + active - 1] <= t:
                active -= 1
            if t == 0:
                for lane in range(active):
                    b = order[base + lane]
                    for k in range(K):
                        D[k * lanes + lane] = initial[b, k] + likelihood[0, b, k]
            else:
                for column in range(0, states, 4):
                    position = column * states
                    s = load(D, 0)
                    a = add(splat(panels, position), s)
                    b4 = add(splat(panels, position + 1), s)
                    c = add(splat(panels, position + 2), s)
                    d = add(splat(panels, position + 3), s)
                    p = zero_index(D)
                    q = p
                    r = p
                    u = p
                    for k in range(1, K):
                        position += 4
                        s = load(D, k * lanes)
                        x = add(splat(panels, position), s)
                        p = index_larger(x, a, k, p)
                        a = larger(x, a)
                        x = add(splat(panels, position + 1), s)
                        q = index_larger(x, b4, k, q)
                        b4 = larger(x, b4)
                        x = add(splat(panels, position + 2), s)
                        r = index_larger(x, c, k, r)
                        c = larger(x, c)
                        x = add(splat(panels, position + 3), s)
                        u = index_larger(x, d, k, u)
                        d = larger(x, d)
                    store(E, column * lanes, a)
                    store(E, (column + 1) * lanes, b4)
                    store(E, (column + 2) * lanes, c)
                    store(E, (column + 3) * lanes, d)
                    place = t * size + column * lanes
                    store_index(pointers, place, p)
                    store_index(pointers, place + lanes, q)
                    store_index(pointers, place + 2 * lanes, r)
                    store_index(pointers, place + 3 * lanes, u)
                for lane in range(active):
                    b = order[base + lane]
                    for k in range(K):
                        D[k * lanes + lane] = E[k * lanes + lane] + likelihood[t, b, k]
        for lane in range(count):
            b = order[base + lane]
            length = lengths[base + lane]
            for t in range(length, steps):
                path[t, b] = -1
            state = 0
            best = D[lane]
            for k in range(1, K):
                if D[k * lanes + lane] > best:
                    best = D[k * lanes + lane]
                    state = k
            score[b] = best if length > 0 else likelihood.dtype.type(0)
            for t in range(length - 1, -1, -1):
                path[t, b] = state
                state = np.int64(pointers[t * size + state * lanes + lane])
