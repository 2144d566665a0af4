"""Numba loops of `expected_moves` for few, long sequences; importing this module imports Numba.

States lie across the lanes. Forward and backward messages know nothing of each other, so that two threads make them at
once; a third pass, which any number of threads can share, joins them.
"""

import numpy as np

from ._jit_forward_backward import get, keep
from ._simd import add, compiled, fill, fma, load, mul, splat, store, total, width, zero


@compiled
def product(K, panels, source, inverse, target):
    """Target = inverse source @ table; table in panels of two vectors of columns, (., K, 2 lanes)."""
    lanes = width(source)
    columns = 2 * lanes
    every = fill(source, inverse)
    position = 0
    rows = (K + 3) // 4 * 4
    for column in range(0, target.size, columns):
        a = zero(source)
        b = zero(source)
        c = zero(source)
        d = zero(source)
        for k in range(0, rows, 2):
            s = splat(source, k)
            a = fma(load(panels, position), s, a)
            b = fma(load(panels, position + lanes), s, b)
            s = splat(source, k + 1)
            c = fma(load(panels, position + columns), s, c)
            d = fma(load(panels, position + columns + lanes), s, d)
            position += 2 * columns
        store(target, column, mul(add(a, c), every))
        store(target, column + lanes, mul(add(b, d), every))


@compiled
def product_narrow(K, panels, source, inverse, target):
    """The same where all columns lie in one vector: four sums at once, as each waits for itself."""
    lanes = width(source)
    columns = 2 * lanes
    a = zero(source)
    b = zero(source)
    c = zero(source)
    d = zero(source)
    for k in range(0, K, 4):
        a = fma(load(panels, k * columns), splat(source, k), a)
        b = fma(load(panels, (k + 1) * columns), splat(source, k + 1), b)
        c = fma(load(panels, (k + 2) * columns), splat(source, k + 2), c)
        d = fma(load(panels, (k + 3) * columns), splat(source, k + 3), d)
    store(target, 0, mul(add(add(a, b), add(c, d)), fill(source, inverse)))


@compiled
def messages(sequence, length, backwards, start, panels, rows, which, sharing, normaliser, result):
    """Messages along one sequence: w_1 = start, x_t = w_t y_t, c_t = sum x_t, w_{t+1} = x_t table / c_t.

    y_t is row t B + b of `rows`, or where steps are `sharing` rows which[t, b].

    Forwards `result` (T, B, K) gets x_t / c_t and `normaliser` c_t, backwards `result` gets w_t; False where a c_t
    leaves the numbers that can be divided by.
    """
    batch = normaliser.shape[1]
    K = rows.shape[1]
    lanes = width(rows)
    columns = (K + 2 * lanes - 1) // (2 * lanes) * 2 * lanes
    W = np.zeros(columns, rows.dtype)
    X = np.zeros(columns, rows.dtype)
    W[:K] = start
    tiny = np.finfo(rows.dtype).tiny / np.finfo(rows.dtype).eps
    narrow = lanes >= K
    for n in range(length):
        t = length - 1 - n if backwards else n
        here = (t * batch + sequence) * K
        seen = which[t, sequence] * K if sharing else here
        s = zero(rows)
        for k in range(0, K, lanes):
            w = load(W, k)
            x = mul(w, get(rows, seen + k, K - k))
            store(X, k, x)
            s = add(s, x)
            if backwards:
                keep(result, here + k, w, K - k)
        c = total(s)
        if not c > tiny:
            return False
        inverse = 1 / c
        if narrow:
            product_narrow(K, panels, X, inverse, W)
        else:
            product(K, panels, X, inverse, W)
        if not backwards:
            normaliser[t, sequence] = c
            every = fill(rows, inverse)
            for k in range(0, K, lanes):
                keep(result, here + k, mul(load(X, k), every), K - k)
    return True


@compiled
def rows_outer(K, columns, count, left, right, result):
    """Result (K rounded up to 4, columns) += left' right over `count` rows; left (., K rounded up to 4) in rows."""
    lanes = width(left)
    rows = (K + 3) // 4 * 4
    for column in range(0, columns, lanes):
        for i in range(0, rows, 4):
            place = i * columns + column
            a = load(result, place)
            b = load(result, place + columns)
            c = load(result, place + 2 * columns)
            d = load(result, place + 3 * columns)
            p = i
            q = column
            for _ in range(count):
                r = load(right, q)
                a = fma(splat(left, p), r, a)
                b = fma(splat(left, p + 1), r, b)
                c = fma(splat(left, p + 2), r, c)
                d = fma(splat(left, p + 3), r, d)
                p += rows
                q += columns
            store(result, place, a)
            store(result, place + columns, b)
            store(result, place + 2 * columns, c)
            store(result, place + 3 * columns, d)


@compiled
def join(
    sequence, first, last, weight, counting, rows, which, sharing, normaliser, filtered, later, sums, begin, counts
):
    """Steps first ... last - 1: the posterior, from the messages of both directions; adds to `counts`.

    It is written to row t B + b of `sums`, which may be `later` itself, or where steps are `sharing` rows added to row
    which[t, b]; `begin` (B, K) gets that of the first step. False where the two messages have too little in common to
    be multiplied.
    """
    batch = normaliser.shape[1]
    K = rows.shape[1]
    lanes = width(rows)
    padded = (K + 3) // 4 * 4
    columns = (K + lanes - 1) // lanes * lanes
    block = 64
    left = np.zeros(block * padded, rows.dtype)
    right = np.zeros(block * columns, rows.dtype)
    tiny = np.finfo(rows.dtype).tiny / np.finfo(rows.dtype).eps
    waiting = 0
    for t in range(first, last):
        here = (t * batch + sequence) * K
        seen = which[t, sequence] * K if sharing else here
        g = zero(rows)
        for k in range(0, K, lanes):
            g = fma(get(filtered, here + k, K - k), get(later, here + k, K - k), g)
        common = total(g)
        if not common > tiny:
            return False
        if counting and t > 0:
            # alpha_t = p_t y_t / c_t, so c_t g_t is what the moves into t sum to before they are divided by it.
            scale = fill(rows, weight / (rows.dtype.type(normaliser[t, sequence]) * common))
            before = here - batch * K
            for k in range(0, K, lanes):
                v = mul(get(rows, seen + k, K - k), get(later, here + k, K - k))
                store(right, waiting * columns + k, mul(v, scale))
                keep(left, waiting * padded + k, get(filtered, before + k, K - k), padded - k)
            waiting += 1
            if waiting == block:
                rows_outer(K, columns, block, left, right, counts)
                waiting = 0
        scale = fill(rows, weight / common)
        for k in range(0, K, lanes):
            v = mul(mul(get(filtered, here + k, K - k), get(later, here + k, K - k)), scale)
            if t == 0:
                keep(begin, sequence * K + k, v, K - k)
            if sharing:
                v = add(get(sums, seen + k, K - k), v)
            keep(sums, seen + k, v, K - k)
    if waiting > 0:
        rows_outer(K, columns, waiting, left, right, counts)
    return True
