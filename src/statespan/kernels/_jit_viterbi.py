"""Numba loops of `max_product`; importing this module imports Numba.

No pointers are kept: the scores of every step are, and on the way back the argmax of the one state that the path is in
is found again, from the same sums. That is K comparisons a step where pointers cost K^2.
"""

import numpy as np

from ._jit_forward_backward import AHEAD, get, take
from ._simd import (
    add,
    compiled,
    fill,
    index_larger,
    larger,
    load,
    prefetch,
    splat,
    store,
    store_index,
    width,
    zero_index,
)


@compiled
def best_lanes(first, last, order, lengths, initial, panels, table, rows, index, D, score, path):
    """Groups first ... last - 1 of sequences across lanes; `table` (K, K) has a row for every state moved into.

    What a step says of the states is the row `index[b, t]` of `rows`. `D` has room for the scores of the longest.
    """
    batch, steps = index.shape
    K = rows.shape[1]
    states = (K + 3) // 4 * 4
    lanes = width(rows)
    size = states * lanes
    lowest = rows.dtype.type(-np.inf)
    Y = np.full(size, lowest, rows.dtype)
    sources = np.zeros(lanes, np.int64)
    into = np.zeros(lanes, np.int32)
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
                sources[lane] = index[b, t] * K
                if lane < active and t + AHEAD < lengths[base + lane]:
                    near = index[b, t + AHEAD] * K
                    for k in range(0, K, lanes):
                        prefetch(rows, near + k)
            take(rows, sources, lanes, K, Y)
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
        # Back, all lanes at once: each takes the row of the table into its own state.
        active = 0
        for t in range(longest - 1, -1, -1):
            here = t * size
            if active > 0:
                for lane in range(lanes):
                    sources[lane] = into[lane] * K
                take(table, sources, lanes, K, Y)
                best = add(load(D, here), load(Y, 0))
                at = zero_index(rows)
                for k in range(1, K):
                    value = add(load(D, here + k * lanes), load(Y, k * lanes))
                    at = index_larger(value, best, k, at)
                    best = larger(value, best)
                store_index(into, 0, at)
            while active < count and lengths[base + active] > t:
                top = D[here + active]
                state = 0
                for k in range(1, K):
                    if D[here + k * lanes + active] > top:
                        top = D[here + k * lanes + active]
                        state = k
                score[order[base + active]] = top
                into[active] = state
                active += 1
            for lane in range(active):
                path[order[base + lane], t] = into[lane]
        for lane in range(count):
            b = order[base + lane]
            for t in range(lengths[base + lane], steps):
                path[b, t] = -1
            if lengths[base + lane] == 0:
                score[b] = 0


@compiled
def best_rows(sequence, length, initial, panels, table, rows, index, D, score, path):
    """One sequence, its states across the lanes; panels of two vectors of columns, (., K, 2 lanes).

    `D` has room for the scores of all steps, each K wide rounded up to two vectors.
    """
    steps = index.shape[1]
    K = rows.shape[1]
    lanes = width(rows)
    columns = 2 * lanes
    wide = (K + columns - 1) // columns * columns
    padded = (K + 3) // 4 * 4
    lowest = rows.dtype.type(-np.inf)
    D[:wide] = lowest
    for t in range(length, steps):
        path[sequence, t] = -1
    if length == 0:
        score[sequence] = 0
        return
    for k in range(K):
        D[k] = initial[sequence, k] + rows[index[sequence, 0], k]
    for t in range(1, length):
        before = (t - 1) * wide
        place = index[sequence, t] * K
        position = 0
        for column in range(0, K, columns):
            a = fill(rows, lowest)
            b = a
            c = a
            d = a
            # Beyond K the scores are -inf, and so are the sums.
            for k in range(0, padded, 2):
                s = splat(D, before + k)
                a = larger(add(load(panels, position), s), a)
                b = larger(add(load(panels, position + lanes), s), b)
                s = splat(D, before + k + 1)
                c = larger(add(load(panels, position + columns), s), c)
                d = larger(add(load(panels, position + columns + lanes), s), d)
                position += 2 * columns
            here = t * wide + column
            store(D, here, add(larger(c, a), get(rows, place + column, min(lanes, K - column))))
            if column + lanes < K:
                rest = min(lanes, K - column - lanes)
                store(D, here + lanes, add(larger(d, b), get(rows, place + column + lanes, rest)))
    state = 0
    at = (length - 1) * wide
    best = D[at]
    for k in range(1, K):
        if D[at + k] > best:
            best = D[at + k]
            state = k
    score[sequence] = best
    for t in range(length - 1, -1, -1):
        path[sequence, t] = state
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
