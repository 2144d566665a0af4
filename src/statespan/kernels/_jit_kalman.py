"""Numba loops of the Kalman filter, its smoother and its gradient; importing this module imports Numba.

Every matrix comes as (steps, series, ...), either of them 1 where it does not change. Series of a *group* share their
matrices and so their covariances, which are computed once for all of them, a chunk of steps at a time; then the means
of a chunk: a single series with a vector's coordinates in the lanes, of many series each in a lane of its own.

Inside, a matrix is kept by columns, each of which takes whole vectors of lanes: entry (i, j) at j * stride + i, zeros
below. Covariances are lower echelon roots, made by Householder reflections from the right.
"""

import math

import numpy as np
from numba import njit

from ._simd import (
    OPTIONS,
    add,
    compiled,
    fill,
    fma,
    gather,
    gather_four,
    load,
    load_some,
    mul,
    peek,
    poke,
    scatter,
    scatter_four,
    splat,
    store,
    sub,
    total,
    width,
    zero,
)  # fmt: skip

INNER = {**OPTIONS, "_nrt": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}

#: Compiled into its callers, without the counting of references, which takes most of the time that compiling takes.
inner = njit(**INNER)

#: What is asked for.
FILTERED, PREDICTED, LAST, PAIRS = 1, 2, 4, 8


# ------------------------------------------------------------------------------------- matrices by columns


@inner
def padded(rows):
    """Rows rounded up to whole vectors."""
    return (rows + 7) // 8 * 8


@inner
def place(array, t, g):
    """Where the matrix of step t and group g begins."""
    steps, series = array.shape[0], array.shape[1]
    size = array.shape[2] * array.shape[3]
    return ((t if steps > 1 else 0) * series + (g if series > 1 else 0)) * size


@inner
def by_columns(array, begin, rows, columns, sign, out, at, stride):
    """A matrix that lies in rows, by columns."""
    for j in range(columns):
        for i in range(rows):
            poke(out, at + j * stride + i, sign * peek(array, begin + i * columns + j))


@inner
def by_rows(matrix, at, stride, rows, columns, out, begin):
    """The reverse."""
    for i in range(rows):
        for j in range(columns):
            poke(out, begin + i * columns + j, peek(matrix, at + j * stride + i))


@inner
def echelon(W, rows, height, columns, pivots, v, sizes, dot):
    """Turns W's columns so that row j < rows ends at its pivot; a row that others determine has none (-1)."""
    stride, lanes = W.shape[1], width(W)
    end = padded(height)
    tiny = 4e-16 * columns
    for at in range(0, padded(rows), lanes):
        square = zero(W)
        for k in range(columns):
            x = load(W, k * stride + at)
            square = fma(x, x, square)
        store(sizes, at, square)
    c = 0
    for j in range(rows):
        pivots[j] = -1
        begin = j // lanes * lanes
        first, second = zero(W), zero(W)
        even = c + (columns - c) // 2 * 2
        for k in range(c, columns):
            poke(v, k, peek(W, k * stride + j))
        for k in range(c, even, 2):
            first = fma(splat(v, k), load(W, k * stride + begin), first)
            second = fma(splat(v, k + 1), load(W, (k + 1) * stride + begin), second)
        if even < columns:
            first = fma(splat(v, even), load(W, even * stride + begin), first)
        dots = add(first, second)
        store(dot, 0, dots)
        square = peek(dot, j - begin)
        if square <= tiny * tiny * peek(sizes, j):
            for k in range(c, columns):
                poke(W, k * stride + j, 0.0)
            continue
        norm = math.sqrt(square)
        alpha = peek(v, c)
        beta = -norm if alpha > 0.0 else norm
        head = alpha - beta
        scale = fill(W, 1.0 / (beta * head))
        dots = fma(fill(W, -beta), load(W, c * stride + begin), dots)
        poke(v, c, head)
        for at in range(begin, end, lanes):
            if at > begin:
                first, second = zero(W), zero(W)
                for k in range(c, even, 2):
                    first = fma(splat(v, k), load(W, k * stride + at), first)
                    second = fma(splat(v, k + 1), load(W, (k + 1) * stride + at), second)
                if even < columns:
                    first = fma(splat(v, even), load(W, even * stride + at), first)
                dots = add(first, second)
            factor = mul(dots, scale)
            for k in range(c, columns):
                where = k * stride + at
                store(W, where, fma(factor, splat(v, k), load(W, where)))
            if beta < 0.0:
                where = c * stride + at
                store(W, where, sub(zero(W), load(W, where)))
        poke(W, c * stride + j, norm)
        for k in range(c + 1, columns):
            poke(W, k * stride + j, 0.0)
        pivots[j] = c
        c += 1


@inner
def columns_of(S, begin, stride, rows, X, D, W):
    """W's first D columns: S X, where X is lower triangular."""
    lanes, wide, high = width(W), padded(D), W.shape[1]
    for at in range(0, padded(rows), lanes):
        for k in range(D):
            x = zero(W)
            for d in range(k, D):
                x = fma(splat(X, k * wide + d), load(S, begin + d * stride + at), x)
            store(W, k * high + at, x)


@inner
def append(noise, begin, rows, columns, W, column):
    """After so many columns of W those of a noise's root that are not zero; how many there are then."""
    high = W.shape[1]
    for k in range(columns):
        empty = True
        for i in range(rows):
            empty &= peek(noise, begin + i * columns + k) == 0.0
        if not empty:
            for i in range(high):
                poke(W, column * high + i, 0.0)
            for i in range(rows):
                poke(W, column * high + i, peek(noise, begin + i * columns + k))
            column += 1
    return column


@inner
def ordered(pivots, rows, order):
    """`order[p]`: the row that ends at pivot p. How many there are."""
    count = 0
    for j in range(rows):
        if pivots[j] >= 0:
            order[count] = j
            count += 1
    return count


@inner
def divide(Y, begin, step, W, order, count, size, out, at, rows):
    """Out = Y L^-1, where row order[p] of L, in W, ends at pivot p; zero for the rows without."""
    lanes, high, stride = width(W), W.shape[1], padded(rows)
    if count < size:
        for i in range(size * stride):
            poke(out, at + i, 0.0)
    for p in range(count - 1, -1, -1):
        inverse = fill(W, 1.0 / peek(W, p * high + order[p]))
        for block in range(0, stride, lanes):
            x = load(Y, begin + p * step + block)
            for k in range(p + 1, count):
                x = sub(x, mul(splat(W, p * high + order[k]), load(out, at + order[k] * stride + block)))
            store(out, at + order[p] * stride + block, mul(x, inverse))


@inner
def take_root(W, first, column, columns, X, D):
    """X: rows from `first` on of W's columns from `column` on."""
    lanes, high, stride = width(W), W.shape[1], padded(D)
    for k in range(D):
        for at in range(0, stride, lanes):
            there = column + k < columns
            store(X, k * stride + at, load(W, (column + k) * high + first + at) if there else zero(W))


@inner
def copy(x, at, out, begin, size):
    """Out = x, without the checks that a whole-array assignment makes."""
    for i in range(size):
        poke(out, begin + i, peek(x, at + i))


@inner
def largest_change(a, b, size):
    """The largest difference of two matrices, as a share of the largest entry."""
    change, largest = 0.0, 0.0
    for i in range(size):
        change = max(change, abs(peek(a, i) - peek(b, i)))
        largest = max(largest, abs(peek(a, i)))
    return change / largest if largest > 0.0 else 0.0


# ---------------------------------------------------------------------------------------------- series in the lanes


@inner
def into(M, at, rows, columns, x, begin, out, to):
    """Out += M x for as many series as there are lanes; x and out are (coordinates, lanes)."""
    lanes, stride = width(x), padded(rows)
    whole = rows // 4 * 4
    for i in range(0, whole, 4):
        here = to + i * lanes
        a, b = load(out, here), load(out, here + lanes)
        c, d = load(out, here + 2 * lanes), load(out, here + 3 * lanes)
        for j in range(columns):
            v, place = load(x, begin + j * lanes), at + j * stride + i
            a = fma(splat(M, place), v, a)
            b = fma(splat(M, place + 1), v, b)
            c = fma(splat(M, place + 2), v, c)
            d = fma(splat(M, place + 3), v, d)
        store(out, here, a)
        store(out, here + lanes, b)
        store(out, here + 2 * lanes, c)
        store(out, here + 3 * lanes, d)
    for i in range(whole, rows):
        a = load(out, to + i * lanes)
        for j in range(columns):
            a = fma(splat(M, at + j * stride + i), load(x, begin + j * lanes), a)
        store(out, to + i * lanes, a)


@inner
def take(source, first, count, size, target):
    """Vectors that lie one after the other from `first` on: coordinate k of series i to target[k, i]."""
    lanes = width(target)
    if count < lanes:
        for k in range(size):
            for lane in range(count):
                poke(target, k * lanes + lane, peek(source, first + lane * size + k))
        return
    if size == 1:
        store(target, 0, load(source, first))
        return
    whole = size // 4 * 4
    for k in range(0, whole, 4):
        gather_four(source, first + k, size, target, k * lanes)
    for k in range(whole, size):
        store(target, k * lanes, gather(source, first + k, size))


@inner
def put(source, first, count, size, target):
    """The reverse, to `first` and on."""
    lanes = width(source)
    if count < lanes:
        for k in range(size):
            for lane in range(count):
                poke(target, first + lane * size + k, peek(source, k * lanes + lane))
        return
    if size == 1:
        store(target, first, load(source, 0))
        return
    whole = size // 4 * 4
    for k in range(0, whole, 4):
        scatter_four(target, first + k, size, source, k * lanes)
    for k in range(whole, size):
        scatter(target, first + k, size, load(source, k * lanes))


@inner
def take_offset(b, t, first, count, target):
    """The offset of the move into step t, for series from `first` on."""
    steps, series, size = b.shape
    lanes = width(target)
    begin = t * series * size if steps > 1 else 0
    if series > 1:
        take(b, begin + first * size, count, size, target)
        return
    for i in range(size):
        store(target, i * lanes, splat(b, begin + i))


@inner
def matvec(M, at, stride, columns, x, begin, start):
    """A vector of rows of M x, added to `start`."""
    other = zero(M)
    even = columns // 2 * 2
    for j in range(0, even, 2):
        start = fma(splat(x, begin + j), load(M, at + j * stride), start)
        other = fma(splat(x, begin + j + 1), load(M, at + (j + 1) * stride), other)
    if even < columns:
        start = fma(splat(x, begin + even), load(M, at + even * stride), start)
    return add(start, other)


@inner
def impossible(known, at, e, white, lanes, lane, y, row, log_prob):
    """Writes minus infinity where a coordinate that others determine is not what they say."""
    E = y.shape[2]
    for i in range(E):
        if known[at + i * (E + 1) + E] > 0.0:
            off = e[i * lanes + lane]
            size = abs(off) + abs(peek(y, row * E + i))
            for k in range(E):
                off -= known[at + i * (E + 1) + k] * white[k * lanes + lane]
            if abs(off) > 1e-9 * size + 1e-12:
                poke(log_prob, row, -np.inf)


# ---------------------------------------------------------------------------------------------------- the filter


@compiled
def forward_covariances(
    A, q, C, r, g, t0, most, steady, X, after, move, seen, unwhite, gain, log, known, certain, kept, base, wanted,
    roots, ahead_roots, marks, mark, last_roots
):  # fmt: skip
    """Covariances of at most so many steps from t0 on, where X is the predicted root; how many, whether they settled.

    Of each step: A, -C, U that makes residuals white, K, the log-determinant, what white residuals say of coordinates
    that they determine (with a mark at the end) and how many those are; the filtered root, `kept` from step `base` on.
    Roots asked for are written for group g, those of the steps before `marks` from place `mark` on.
    """
    D, E, M, N = A.shape[3], C.shape[2], r.shape[3], q.shape[3]
    wide, high, stack = padded(D), padded(E), padded(E + D)
    S, W = np.zeros(D * stack), np.zeros((D + max(M, N), stack + 8))
    before, turn, unit = np.zeros(D * wide), np.zeros(D * wide), np.zeros(E * high)
    pivots, order = np.zeros(E + D, np.int64), np.zeros(E + D, np.int64)
    v, sizes, dot = np.zeros(D + max(M, N)), np.zeros(stack), np.zeros(8)
    for i in range(E):
        unit[i * high + i] = 1.0
    for i in range(D):
        S[i * stack + E + i] = 1.0
    for n in range(most):
        t = t0 + n
        if n == 0 or A.shape[0] > 1:
            by_columns(A, place(A, t, g), D, D, 1.0, turn, 0, wide)
        if n == 0 or C.shape[0] > 1:
            by_columns(C, place(C, t, g), E, D, 1.0, S, 0, stack)
        if t > 0:
            columns_of(turn, 0, wide, D, after, D, W)
            columns = append(q, place(q, t, g), D, N, W, D)
            echelon(W, D, D, columns, pivots, v, sizes, dot)
            take_root(W, 0, 0, columns, X, D)
        copy(turn, 0, move, n * D * wide, D * wide)
        if wanted & PREDICTED:
            by_rows(X, 0, wide, D, D, ahead_roots, place(ahead_roots, t, g))
        for j in range(D):
            for i in range(high):
                poke(seen, (n * D + j) * high + i, -peek(S, j * stack + i) if i < E else 0.0)
        columns_of(S, 0, stack, E + D, X, D, W)
        columns = append(r, place(r, t, g), E, M, W, D)
        echelon(W, E + D, E + D, columns, pivots, v, sizes, dot)
        count = ordered(pivots, E, order)
        divide(unit, 0, high, W, order, count, E, unwhite, n * E * high, E)
        divide(W, E, W.shape[1], W, order, count, E, gain, n * E * wide, D)
        x = 0.0
        for p in range(count):
            x += math.log(W[p, order[p]])
        log[n] = x
        certain[n] = E - count
        if count < E:
            for j in range(E):
                here = (n * E + j) * (E + 1)
                for k in range(E):
                    known[here + k] = W[k, j]
                known[here + E] = 1.0 if pivots[j] < 0 else 0.0
        copy(after, 0, before, 0, D * wide)
        take_root(W, E, count, columns, after, D)
        copy(after, 0, kept, (t - base) * D * wide, D * wide)
        if wanted & FILTERED:
            by_rows(after, 0, wide, D, D, roots, place(roots, t, g))
        for k in range(len(marks)):
            if marks[k] == t + 1:
                by_rows(after, 0, wide, D, D, last_roots, (mark + k) * D * D)
        if steady > 0.0 and t > 0 and largest_change(after, before, D * wide) <= steady:
            return n + 1, True
    return most, False


@compiled
def backward_covariances(
    A, q, g, t0, t1, own, steady, later, kept, move, gain, write, roots, wanted_pairs, pairs
):  # fmt: skip
    """Gains of the steps t1 - 1 ... t0, and the smoothed roots in column `write` (none below 0); `later`: that of t1.

    [A X, q; X, 0] turned to echelon form [L, 0; Y, Z]: the gain is Y L^-1, and Z what z_t keeps of its own.
    """
    D, N = A.shape[3], q.shape[3]
    wide, stack, filled = padded(D), padded(2 * D), own - 1
    S, W, V = np.zeros(D * stack), np.zeros((D + N, stack + 8)), np.zeros((2 * D + N, wide))
    pivots, order = np.zeros(D, np.int64), np.zeros(D, np.int64)
    v, sizes, dot = np.zeros(2 * D + N), np.zeros(stack), np.zeros(8)
    X, turn = np.zeros(D * wide), np.zeros(D * wide)
    square, joint = np.zeros(D * wide), np.zeros(D * wide)
    for i in range(D):
        S[i * stack + D + i] = 1.0
    lanes = width(W)
    settled, columns, count = False, 0, 0
    for t in range(t1 - 1, t0 - 1, -1):
        at = (min(t, filled) - t0) * D * wide
        if t == t1 - 1 or A.shape[0] > 1:
            by_columns(A, place(A, t + 1, g), D, D, 1.0, S, 0, stack)
            by_columns(A, place(A, t + 1, g), D, D, 1.0, turn, 0, wide)
        if t == t1 - 1 or t < filled:
            copy(kept, min(t, filled) * D * wide, X, 0, D * wide)
            columns_of(S, 0, stack, 2 * D, X, D, W)
            columns = append(q, place(q, t + 1, g), D, N, W, D)
            echelon(W, D, 2 * D, columns, pivots, v, sizes, dot)
            count = ordered(pivots, D, order)
            divide(W, D, W.shape[1], W, order, count, D, gain, at, D)
            copy(turn, 0, move, at, D * wide)
            settled = False
        if write < 0:
            continue
        if not settled:
            if wanted_pairs:
                for j in range(D):
                    for i in range(0, wide, lanes):
                        x = zero(W)
                        for k in range(j + 1):
                            x = fma(splat(later, k * wide + j), load(later, k * wide + i), x)
                        store(square, j * wide + i, x)
                for j in range(D):
                    for i in range(0, wide, lanes):
                        store(joint, j * wide + i, matvec(gain, at + i, wide, D, square, j * wide, zero(W)))
            columns_of(gain, at, wide, D, later, D, V)
            for k in range(columns - count):
                for i in range(0, wide, lanes):
                    store(V, (D + k) * wide + i, load(W, (count + k) * W.shape[1] + D + i))
            echelon(V, D, D, D + columns - count, pivots, v, sizes, dot)
            settled = steady > 0.0 and t > filled and largest_change(V, later, D * wide) <= steady
            copy(V, 0, later, 0, D * wide)
        if wanted_pairs:
            by_rows(joint, 0, wide, D, D, pairs, place(pairs, t, write))
        by_rows(later, 0, wide, D, D, roots, place(roots, t, write))


# ------------------------------------------------------------------------------------------------------- the means


@compiled
def one_series(
    s, t0, t1, end, filled, b, y, move, seen, unwhite, gain, log, known, certain, back_move, back_gain, now, wanted,
    log_prob, means, ahead
):  # fmt: skip
    """Means of a series, a vector's coordinates in the lanes: filtered from step t0 to t1, smoothed from `end` to t0.

    Either may be empty. `now`: the mean before t0, then that of t1 - 1; or the smoothed one of `end`, then of t0.
    """
    B, E, D = y.shape[1], y.shape[2], b.shape[2]
    wide, high, lanes = padded(D), padded(E), width(now)
    moved, e, white = np.zeros(wide), np.zeros(high), np.zeros(high)
    b_step, b_begin = (b.shape[1] * D if b.shape[0] > 1 else 0), (s * D if b.shape[1] > 1 else 0)
    for t in range(t0, t1):
        n = min(t, filled) - t0
        for i in range(0, wide, lanes):
            x = load(now, i)
            if t > 0:
                x = load_some(b, t * b_step + b_begin + i, D - i, 0.0)
                x = matvec(move, n * D * wide + i, wide, D, now, 0, x)
            store(moved, i, x)
        row = t * B + s
        for i in range(0, high, lanes):
            x = load_some(y, row * E + i, E - i, 0.0)
            store(e, i, matvec(seen, n * D * high + i, high, D, moved, 0, x))
        squares = zero(now)
        for i in range(0, high, lanes):
            x = matvec(unwhite, n * E * high + i, high, E, e, 0, zero(now))
            squares = fma(x, x, squares)
            store(white, i, x)
        for i in range(0, wide, lanes):
            store(now, i, matvec(gain, n * E * wide + i, wide, E, e, 0, load(moved, i)))
        poke(log_prob, row, -0.5 * total(squares) - log[n])
        if certain[n]:
            impossible(known, n * E * (E + 1), e, white, 1, 0, y, row, log_prob)
        if wanted & PREDICTED:
            copy(moved, 0, ahead, row * D, D)
        if wanted & FILTERED:
            copy(now, 0, means, row * D, D)
    for t in range(end - 1, t0 - 1, -1):
        at = (min(t, filled) - t0) * D * wide
        row = (t * B + s) * D
        for i in range(0, wide, lanes):
            x = load_some(b, (t + 1) * b_step + b_begin + i, D - i, 0.0)
            store(moved, i, sub(load(now, i), matvec(back_move, at + i, wide, D, means, row, x)))
        for i in range(0, wide, lanes):
            x = load_some(means, row + i, D - i, 0.0)
            store(now, i, matvec(back_gain, at + i, wide, D, moved, 0, x))
        copy(now, 0, means, row, D)


@compiled
def many_series(
    low, high, t0, t1, end, filled, b, y, move, seen, unwhite, gain, log, known, certain, back_move, back_gain, now,
    wanted, log_prob, means, ahead
):  # fmt: skip
    """As `one_series`, series low ... high - 1 each in a lane."""
    B, E, D, lanes = y.shape[1], y.shape[2], b.shape[2], width(now)
    wide, tall, size = padded(D), padded(E), D * lanes
    moved, m, e, white = np.zeros(size), np.zeros(size), np.zeros(E * lanes), np.zeros(E * lanes)
    for t in range(t0, t1):
        n = min(t, filled) - t0
        for s in range(low, high, lanes):
            at, count, row = (s - low) * D, min(lanes, high - s), t * B + s
            if t > 0:
                take_offset(b, t, s, count, moved)
                into(move, n * D * wide, D, D, now, at, moved, 0)
            else:
                copy(now, at, moved, 0, size)
            take(y, row * E, count, E, e)
            into(seen, n * D * tall, E, D, moved, 0, e, 0)
            for i in range(0, E * lanes, lanes):
                store(white, i, zero(white))
            into(unwhite, n * E * tall, E, E, e, 0, white, 0)
            if wanted & PREDICTED:
                put(moved, row * D, count, D, ahead)
            into(gain, n * E * wide, D, E, e, 0, moved, 0)
            for i in range(0, size, lanes):
                store(now, at + i, load(moved, i))
            if wanted & FILTERED:
                put(moved, row * D, count, D, means)
            squares = zero(white)
            for i in range(0, E * lanes, lanes):
                x = load(white, i)
                squares = fma(x, x, squares)
            store(m, 0, sub(mul(squares, fill(white, -0.5)), fill(white, log[n])))
            put(m, row, count, 1, log_prob)
            if certain[n]:
                for lane in range(count):
                    impossible(known, n * E * (E + 1), e, white, lanes, lane, y, row + lane, log_prob)
    for t in range(end - 1, t0 - 1, -1):
        matrix = (min(t, filled) - t0) * D * wide
        for s in range(low, high, lanes):
            at, count, row = (s - low) * D, min(lanes, high - s), (t * B + s) * D
            take_offset(b, t + 1, s, count, moved)
            take(means, row, count, D, m)
            into(back_move, matrix, D, D, m, 0, moved, 0)
            for i in range(0, size, lanes):
                store(moved, i, sub(load(now, at + i), load(moved, i)))
            into(back_gain, matrix, D, D, moved, 0, m, 0)
            for i in range(0, size, lanes):
                store(now, at + i, load(m, i))
            put(m, row, count, D, means)


# --------------------------------------------------------------------------------------------------- the gradient


@inner
def product(a, b, out):
    """Out = a b."""
    for i in range(a.shape[0]):
        for j in range(b.shape[1]):
            out[i, j] = 0.0
        for k in range(a.shape[1]):
            x = a[i, k]
            if x != 0.0:
                for j in range(b.shape[1]):
                    out[i, j] += x * b[k, j]


@inner
def add_transposed(a, b, sign, out):
    """Out += sign a b'."""
    for i in range(a.shape[0]):
        for j in range(b.shape[0]):
            x = 0.0
            for k in range(a.shape[1]):
                x += a[i, k] * b[j, k]
            out[i, j] += sign * x


@njit(**OPTIONS)
def at(array, t, g):
    """The matrix of step t and group g."""
    return array[t if array.shape[0] > 1 else 0, g if array.shape[1] > 1 else 0]


@compiled
def gradient_group(
    first, last, g, A, q, C, r, y, ahead, ahead_roots, own, weights, dA, db, dq, dC, dr, dy, dmean, droot
):
    """Adds the gradient of sum of weights x log_prob to dA ... droot, which lie as their originals do (steps, 1, ...).

    Reverse differentiation of the recursion on covariances; nothing in it is inverted but the innovations.
    """
    T, E, D = y.shape[0], y.shape[2], A.shape[3]
    count = last - first
    P = np.zeros((D, D))
    B = np.zeros((D, E))
    L = np.zeros((E, E))
    K = np.zeros((D, E))
    pivots, order = np.zeros(E, np.int64), np.zeros(E, np.int64)
    wide, high = padded(D), padded(E)
    white = np.zeros((E, high))  # by columns
    unit = np.zeros((E, high))
    W = np.zeros((D + r.shape[3], high + 8))
    root, S = np.zeros(D * wide), np.zeros(D * high)
    v_, sizes, dot = np.zeros(D + r.shape[3]), np.zeros(high), np.zeros(8)
    for i in range(E):
        unit[i, i] = 1.0
    gm = np.zeros((count, D))
    gP = np.zeros((D, D))
    hP = np.zeros((D, D))
    gB = np.zeros((D, E))
    gS = np.zeros((E, E))
    gC = np.zeros((E, D))
    DE = np.zeros((D, E))
    ED = np.zeros((E, D))
    DD = np.zeros((D, D))
    F = np.zeros((D, D))
    e = np.zeros(E)
    v = np.zeros(E)
    gv = np.zeros(E)
    ge = np.zeros(E)
    pg = np.zeros(D)
    m = np.zeros((count, D))
    fresh = True
    filled = own - 1
    for t in range(T - 1, -1, -1):
        shown, noise = at(C, t, g), at(r, t, g)
        still = C.shape[0] == 1 and r.shape[0] == 1
        if fresh or t < filled or not still:
            fresh = False
            X = ahead_roots[min(t, filled), g]
            P[:] = 0.0
            add_transposed(X, X, 1.0, P)
            B[:] = 0.0
            add_transposed(P, shown, 1.0, B)
            by_columns(C, place(C, t, g), E, D, 1.0, S, 0, high)
            by_columns(ahead_roots, place(ahead_roots, min(t, filled), g), D, D, 1.0, root, 0, wide)
            columns_of(S, 0, high, E, root, D, W)
            columns = append(r, place(r, t, g), E, r.shape[3], W, D)
            echelon(W, E, E, columns, pivots, v_, sizes, dot)
            divide(unit, 0, high, W, order, ordered(pivots, E, order), E, white, 0, E)
            for i in range(E):  # the inverse of the innovation's covariance
                for j in range(E):
                    x = 0.0
                    for k in range(E):
                        x += white[i, k] * white[j, k]
                    L[i, j] = x
            product(B, L, K)
            F[:, :] = P
            add_transposed(K, B, -1.0, F)  # the filtered covariance
        if t < T - 1:  # back through the move into t + 1, whose gradients gm and hP hold
            step = at(A, t + 1, g)
            product(hP, step, DD)
            into = dA[t + 1 if dA.shape[0] > 1 else 0, 0]
            for i in range(D):
                for j in range(D):
                    sum_ = 0.0
                    for k in range(D):
                        sum_ += DD[i, k] * F[k, j]
                    into[i, j] += 2.0 * sum_
            moved = at(q, t + 1, g)
            spread = dq[t + 1 if dq.shape[0] > 1 else 0, 0]
            for i in range(D):
                for k in range(D):
                    x = 2.0 * hP[i, k]
                    for j in range(moved.shape[1]):
                        spread[i, j] += x * moved[k, j]
            gP[:] = 0.0
            for k in range(D):
                for i in range(D):
                    x = step[k, i]
                    if x != 0.0:
                        for j in range(D):
                            gP[i, j] += x * DD[k, j]
        # Back through the update: shared parts first.
        product(gP, K, DE)
        for i in range(D):
            for k in range(E):
                gB[i, k] = -2.0 * DE[i, k]
        for i in range(E):
            for j in range(E):
                sum_ = 0.0
                for d in range(D):
                    sum_ += K[d, i] * DE[d, j]
                gS[i, j] = sum_
        gC[:] = 0.0
        weight = 0.0
        for s in range(count):
            b_ = first + s
            now = ahead[t, b_]
            for i in range(E):
                sum_ = y[t, b_, i]
                for d in range(D):
                    sum_ -= shown[i, d] * now[d]
                e[i] = sum_
            for i in range(E):
                sum_ = 0.0
                for j in range(E):
                    sum_ += L[i, j] * e[j]
                v[i] = sum_
            for d in range(D):
                sum_ = now[d]
                for j in range(E):
                    sum_ += K[d, j] * e[j]
                m[s, d] = sum_
            if t < T - 1:
                step = at(A, t + 1, g)
                into = dA[t + 1 if dA.shape[0] > 1 else 0, 0]
                offset = db[t + 1 if db.shape[0] > 1 else 0, b_ if db.shape[1] > 1 else 0]
                for i in range(D):
                    x = gm[s, i]
                    offset[i] += x
                    for j in range(D):
                        into[i, j] += x * m[s, j]
                for j in range(D):
                    sum_ = 0.0
                    for i in range(D):
                        sum_ += step[i, j] * gm[s, i]
                    pg[j] = sum_
                for j in range(D):
                    gm[s, j] = pg[j]
            w = weights[t, b_]
            weight += w
            for i in range(E):  # the gradient of v, through m = m- + B v
                sum_ = 0.0
                for d in range(D):
                    sum_ += B[d, i] * gm[s, d]
                gv[i] = sum_
            for i in range(E):
                sum_ = 0.0
                for j in range(E):
                    sum_ += L[i, j] * gv[j]
                ge[i] = sum_
            for i in range(E):
                for j in range(E):
                    gS[i, j] += 0.5 * w * v[i] * v[j] - 0.5 * (ge[i] * v[j] + v[i] * ge[j])
                for d in range(D):
                    gB[d, i] += gm[s, d] * v[i]
            for i in range(E):
                ge[i] -= w * v[i]
                dy[t, b_, i] += ge[i]
                for d in range(D):
                    gC[i, d] -= ge[i] * now[d]
            for d in range(D):
                sum_ = gm[s, d]
                for i in range(E):
                    sum_ -= shown[i, d] * ge[i]
                gm[s, d] = sum_
        for i in range(E):
            for j in range(E):
                gS[i, j] -= 0.5 * weight * L[i, j]
        # B = P C' and S = C B + R.
        into = dC[t if dC.shape[0] > 1 else 0, 0]
        for i in range(E):
            for d in range(D):
                sum_ = gC[i, d]
                for j in range(E):
                    sum_ += 2.0 * gS[i, j] * B[d, j]
                for k in range(D):
                    sum_ += gB[k, i] * P[k, d]
                into[i, d] += sum_
        spread = dr[t if dr.shape[0] > 1 else 0, 0]
        for i in range(E):
            for k in range(E):
                x = 2.0 * gS[i, k]
                for j in range(noise.shape[1]):
                    spread[i, j] += x * noise[k, j]
        product(gS, shown, ED)
        for i in range(D):
            for j in range(D):
                sum_ = gP[i, j]
                for k in range(E):
                    sum_ += shown[k, i] * ED[k, j] + 0.5 * (gB[i, k] * shown[k, j] + shown[k, i] * gB[j, k])
                hP[i, j] = sum_
    for s in range(count):
        for d in range(D):
            dmean[first + s, d] += gm[s, d]
    X = ahead_roots[0, g]
    for i in range(D):
        for k in range(D):
            x = 2.0 * hP[i, k]
            for j in range(D):
                droot[i, j] += x * X[k, j]
