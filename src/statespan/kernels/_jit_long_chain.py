"""Numba loops of `expected_moves` for few, long sequences; importing this module imports Numba.

States lie across the lanes. Messages of both directions start at once, from both ends, and are kept up to the middle.
From there on each meets what the other one kept, and what they give together takes its place: two threads do half of
the work each, and one array of messages is all that is kept.
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
def messages(
    sequence,
    first,
    last,
    backwards,
    joining,
    counting,
    weight,
    message,
    filtered,
    panels,
    rows,
    which,
    sharing,
    normaliser,
    kept,
    sums,
    begin,
    counts,
):
    """Messages along steps first ... last - 1 of one sequence: x_t = w_t y_t, c_t = sum x_t, w_next = x_t table / c_t.

    y_t is row t B + b of `rows`, or where steps are `sharing` rows which[t, b]. `message` is w of the step before them,
    at the end that of the step behind them; `filtered` x_t / c_t of the last step done, forwards.

    Where they are not `joining`, row t B + b of `kept` gets x_t / c_t and `normaliser` c_t, backwards `kept` gets w_t.
    Otherwise these are what the other direction left there, and together they give the posterior. It is written to row
    t B + b of `sums`, which may be `kept`, or where steps are `sharing` rows added to row which[t, b]; `begin` (B, K)
    gets that of the first step, and moves are added to `counts`. False where a number leaves those that can be divided
    by: a c_t, or what two messages have in common.
    """
    batch = normaliser.shape[1]
    K = rows.shape[1]
    lanes = width(rows)
    padded = (K + 3) // 4 * 4
    columns = (K + lanes - 1) // lanes * lanes
    block = 64
    left = np.zeros(block * padded, rows.dtype)
    right = np.zeros(block * columns, rows.dtype)
    X = np.zeros(message.size, rows.dtype)
    tiny = np.finfo(rows.dtype).tiny / np.finfo(rows.dtype).eps
    narrow = lanes >= K
    waiting = 0
    for n in range(last - first):
        t = last - 1 - n if backwards else first + n
        here = (t * batch + sequence) * K
        seen = which[t, sequence] * K if sharing else here
        s = zero(rows)
        g = zero(rows)
        for k in range(0, K, lanes):
            w = load(message, k)
            x = mul(w, get(rows, seen + k, K - k))
            store(X, k, x)
            s = add(s, x)
            if joining:
                # Forwards x_t meets the w_t of the way back; backwards w_t meets the x_t / c_t of the way there.
                g = fma(w if backwards else x, get(kept, here + k, K - k), g)
            elif backwards:
                keep(kept, here + k, w, K - k)
        c = total(s)
        if not c > tiny:
            return False
        inverse = 1 / c
        if joining:
            common = total(g)
            # What the moves into t sum to before they are divided by it.
            both = rows.dtype.type(normaliser[t, sequence]) * common if backwards else common
            if not (common > tiny and both > tiny):
                return False
            share = fill(rows, weight / common)
            moves = fill(rows, weight / both)
            for k in range(0, K, lanes):
                other = get(kept, here + k, K - k)
                if counting and t > 0:
                    if backwards:
                        store(right, waiting * columns + k, mul(load(X, k), moves))
                        a = get(kept, here - batch * K + k, K - k)
                    else:
                        store(right, waiting * columns + k, mul(mul(get(rows, seen + k, K - k), other), moves))
                        a = load(filtered, k)
                    keep(left, waiting * padded + k, a, padded - k)
                v = mul(mul(load(message, k) if backwards else load(X, k), other), share)
                if t == 0:
                    keep(begin, sequence * K + k, v, K - k)
                if sharing:
                    v = add(get(sums, seen + k, K - k), v)
                keep(sums, seen + k, v, K - k)
            waiting += counting and t > 0
            if waiting == block:
                rows_outer(K, columns, block, left, right, counts)
                waiting = 0
        if not backwards:
            normaliser[t, sequence] = c
            every = fill(rows, inverse)
            for k in range(0, K, lanes):
                a = mul(load(X, k), every)
                store(filtered, k, a)
                if not joining:
                    keep(kept, here + k, a, K - k)
        if narrow:
            product_narrow(K, panels, X, inverse, message)
        else:
            product(K, panels, X, inverse, message)
    if waiting > 0:
        rows_outer(K, columns, waiting, left, right, counts)
    return True
