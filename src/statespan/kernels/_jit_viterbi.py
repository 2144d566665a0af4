"""Numba loops of `max_product`; importing this module imports Numba.

No pointers are kept: the scores of every step are, and on the way back the argmax of the one state that the path is in
is found again, from the same sums. That is K comparisons a step where pointers cost K^2.
"""

import numpy as np

from ._jit_forward_backward import AHEAD, get, take
from ._simd import add, compiled, fill, larger, load, prefetch, splat, store, width


@compiled
def best_lanes(first, last, order, lengths, initial, panels, table, likelihood, score, path):
    """Groups first ... last - 1 of sequences across lanes; `table` (K, K) has a row for every state moved into."""
    steps, batch, K = likelihood.shape
    states = (K + 3) // 4 * 4
    lanes = width(likelihood)
    size = states * lanes
    lowest = likelihood.dtype.type(-np.inf)
    D = np.full(lengths[first * lanes] * size + size, lowest, likelihood.dtype)
    Y = np.full(size, lowest, likelihood.dtype)
    sources = np.zeros(lanes, np.int64)
    for group in range(first, last):
        base = group * lanes
        count = min(lanes, batch - base)
        longest = lengths[base]
        active = count
        for t in range(longest):
            while active > 0 and lengths[base + active - 1] <= t:
                active -= 1
            # Lanes past their end do what the first one does, unseen.
            for lane in range(lanes):
                b = order[base + lane] if lane < active else order[base]
                sources[lane] = (t * batch + b) * K
                if lane < active and t + AHEAD < longest:
                    near = sources[lane] + AHEAD * batch * K
                    for k in range(0, K, lanes):
                        prefetch(likelihood, near + k)
            take(likelihood, sources, lanes, K, Y)
            here = t * size
            if t == 0:
                for lane in range(lanes):
                    b = order[base + lane] if lane < active else order[base]
                    for k in range(K):
                        D[k * lanes + lane] = initial[b, k] + Y[k * lanes + lane]
            else:
                before = here - size
                for column in range(0, states, 4):
                    position = column * states
                    s = load(D, before)
                    a = add(splat(panels, position), s)
                    b4 = add(splat(panels, position + 1), s)
                    c = add(splat(panels, position + 2), s)
                    d = add(splat(panels, position + 3), s)
                    for k in range(1, K):
                        position += 4
                        s = load(D, before + k * lanes)
                        a = larger(add(splat(panels, position), s), a)
                        b4 = larger(add(splat(panels, position + 1), s), b4)
                        c = larger(add(splat(panels, position + 2), s), c)
                        d = larger(add(splat(panels, position + 3), s), d)
                    place = here + column * lanes
                    store(D, place, add(a, load(Y, column * lanes)))
                    store(D, place + lanes, add(b4, load(Y, (column + 1) * lanes)))
                    store(D, place + 2 * lanes, add(c, load(Y, (column + 2) * lanes)))
                    store(D, place + 3 * lanes, add(d, load(Y, (column + 3) * lanes)))
        for lane in range(count):
            b = order[base + lane]
            length = lengths[base + lane]
            for t in range(length, steps):
                path[t, b] = -1
            if length == 0:
                score[b] = 0
                continue
            state = 0
            at = (length - 1) * size + lane
            best = D[at]
            for k in range(1, K):
                if D[at + k * lanes] > best:
                    best = D[at + k * lanes]
                    state = k
            score[b] = best
            for t in range(length - 1, -1, -1):
                path[t, b] = state
                if t > 0:
                    at -= size
                    into = state
                    state = 0
                    best = D[at] + table[into, 0]
                    for k in range(1, K):
                        value = D[at + k * lanes] + table[into, k]
                        if value > best:
                            best = value
                            state = k


@compiled
def best_rows(sequence, length, initial, panels, table, likelihood, score, path):
    """One sequence, its states across the lanes; panels of two vectors of columns, (., K, 2 lanes)."""
    steps, batch, K = likelihood.shape
    lanes = width(likelihood)
    columns = 2 * lanes
    wide = (K + columns - 1) // columns * columns
    rows = (K + 3) // 4 * 4
    lowest = likelihood.dtype.type(-np.inf)
    D = np.full((length + 1) * wide, lowest, likelihood.dtype)
    for t in range(length, steps):
        path[t, sequence] = -1
    if length == 0:
        score[sequence] = 0
        return
    for k in range(K):
        D[k] = initial[sequence, k] + likelihood[0, sequence, k]
    for t in range(1, length):
        before = (t - 1) * wide
        place = (t * batch + sequence) * K
        position = 0
        for column in range(0, K, columns):
            a = fill(likelihood, lowest)
            b = a
            c = a
            d = a
            # Beyond K the scores are -inf, and so are the sums.
            for k in range(0, rows, 2):
                s = splat(D, before + k)
                a = larger(add(load(panels, position), s), a)
                b = larger(add(load(panels, position + lanes), s), b)
                s = splat(D, before + k + 1)
                c = larger(add(load(panels, position + columns), s), c)
                d = larger(add(load(panels, position + columns + lanes), s), d)
                position += 2 * columns
            here = t * wide + column
            store(D, here, add(larger(c, a), get(likelihood, place + column, min(lanes, K - column))))
            if column + lanes < K:
                rest = min(lanes, K - column - lanes)
                store(D, here + lanes, add(larger(d, b), get(likelihood, place + column + lanes, rest)))
    state = 0
    at = (length - 1) * wide
    best = D[at]
    for k in range(1, K):
        if D[at + k] > best:
            best = D[at + k]
            state = k
    score[sequence] = best
    for t in range(length - 1, -1, -1):
        path[t, sequence] = state
        if t > 0:
            at -= wide
            into = state
            state = 0
            best = D[at] + table[into, 0]
            for k in range(1, K):
                value = D[at + k] + table[into, k]
                if value > best:
                    best = value
                    state = k
