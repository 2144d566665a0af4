"""Numba loops of the Kalman filter, its smoother and its gradient; importing this module imports Numba.

Every matrix comes as (steps, series, ...), either of them 1 where it does not change. Series of a *group* share their
matrices and so their covariances, which are computed once for all of them, a chunk of steps at a time; then the means
of a chunk: a single series with a vector's coordinates in the lanes, of many series each in a lane of its own.

Inside, a matrix is kept by columns, each of which takes whole vectors of lanes: entry (i, j) at j * stride + i, zeros
below. Covariances are lower echelon roots, made by Householder reflections from the right.
"""

import math
from typing import Any

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
    store_pairs,
    sub,
    width,
    zero,
)  # fmt: skip

INNER: dict[str, Any] = {**OPTIONS, "_nrt": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}

#: Compiled into its callers, without the counting of references, which takes most of the time that compiling takes.
inner = njit(**INNER)

#: Fewer series than this are done one by one: most lanes would be empty.
FEW = 4

#: Shares of a row that are nothing: of a state's, and of an observation's, as its noise is given by a covariance.
ROUNDING, TOLD = 4e-16, 4e-15

#: A settled series is not cut into shorter runs than this.
RUN = 64

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)

#: Called only by other loops: what Python would need to call it is left out.
HELPER: dict[str, Any] = {**OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
helper = njit(**HELPER)

#: Called at one place: compiled there alone, as what is called is compiled by itself and then with the caller again.
INLINED: dict[str, Any] = {**OPTIONS, "inline": "always"}
inlined = njit(**INLINED)

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
def moving(b):
    """Whether the move's offset changes with the step or the series."""
    return b.shape[0] > 1 or b.shape[1] > 1


@inner
def offsets_of(b):
    """How many numbers the means take in for the move's offset: all of it, or 1 if it never changes."""
    return b.shape[2] if moving(b) else 1


@inner
def place_of(b, t, s):
    """Where the offset of the move into step t begins for series s."""
    steps, series = b.shape[0], b.shape[1]
    return ((t if steps > 1 else 0) * series + (s if series > 1 else 0)) * b.shape[2]


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
def projected(W, v, c, columns, at):
    """The sum over k from column c on of v[k] times column k of W, a vector of rows from `at` on."""
    stride = W.shape[1]
    first, second, third, fourth = zero(W), zero(W), zero(W), zero(W)
    whole = c + (columns - c) // 4 * 4
    for k in range(c, whole, 4):
        first = fma(splat(v, k), load(W, k * stride + at), first)
        second = fma(splat(v, k + 1), load(W, (k + 1) * stride + at), second)
        third = fma(splat(v, k + 2), load(W, (k + 2) * stride + at), third)
        fourth = fma(splat(v, k + 3), load(W, (k + 3) * stride + at), fourth)
    for k in range(whole, columns):
        first = fma(splat(v, k), load(W, k * stride + at), first)
    return add(add(first, second), add(third, fourth))


@inner
def echelon(W, start, rows, height, c, columns, share, pivots, v, sizes, dot):
    """Turns W's columns from c on so that each row from `start` to `rows` ends at its pivot; where the next would be.

    A row of which the others leave less than this share, times the columns, they determine: it has none (-1).
    """
    stride, lanes = W.shape[1], width(W)
    end = padded(height)
    tiny = share * columns
    if start == 0:
        for at in range(0, end, lanes):
            square = zero(W)
            for k in range(columns):
                x = load(W, k * stride + at)
                square = fma(x, x, square)
            store(sizes, at, square)
    for j in range(start, rows):
        pivots[j] = -1
        begin = j // lanes * lanes
        for k in range(c, columns):
            poke(v, k, peek(W, k * stride + j))
        dots = projected(W, v, c, columns, begin)
        store(dot, 0, dots)
        square = peek(dot, j - begin)
        # What has shrunk to 1e-140 is known exactly: squares below that lose their digits, and then divide by zero.
        if square <= tiny * tiny * peek(sizes, j) or square < 1e-280:
            for k in range(c, columns):
                poke(W, k * stride + j, 0.0)
            continue
        norm = math.sqrt(square)
        alpha = peek(v, c)
        beta = -norm if alpha > 0.0 else norm
        head = alpha - beta
        scale = fill(W, 1.0 / (beta * head))
        poke(v, c, head)
        for at in range(begin, end, lanes):
            if at > begin:
                dots = projected(W, v, c, columns, at)
            else:
                dots = fma(fill(W, -beta), load(W, c * stride + begin), dots)
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
    return c


@inner
def multiply(S, begin, step, rows, inside, X, at, wide, columns, low, out, to, stride):
    """Out = S X; with `low` X is lower triangular."""
    lanes = width(out)
    for k in range(columns):
        for i in range(0, padded(rows), lanes):
            x = zero(out)
            for d in range(k if low else 0, inside):
                x = fma(splat(X, at + k * wide + d), load(S, begin + d * step + i), x)
            store(out, to + k * stride + i, x)


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
def divide(Y, begin, step, W, order, count, size, out, at, stride, rows):
    """Out = Y L^-1, where row order[p] of L, in W, ends at pivot p; zero for the rows without."""
    lanes, high = width(W), W.shape[1]
    if count < size:
        for j in range(size):
            for i in range(padded(rows)):
                poke(out, at + j * stride + i, 0.0)
    for p in range(count - 1, -1, -1):
        inverse = fill(W, 1.0 / peek(W, p * high + order[p]))
        for block in range(0, padded(rows), lanes):
            x = load(Y, begin + p * step + block)
            for k in range(p + 1, count):
                x = sub(x, mul(splat(W, p * high + order[k]), load(out, at + order[k] * stride + block)))
            store(out, at + order[p] * stride + block, mul(x, inverse))


@inner
def take_root(W, first, column, columns, X, to, D):
    """X, from place `to` on: rows from `first` on of W's columns from `column` on."""
    lanes, high, stride = width(W), W.shape[1], padded(D)
    for k in range(D):
        for at in range(0, stride, lanes):
            there = column + k < columns
            x = load_some(W, (column + k) * high + first + at, D - at, 0.0) if there else zero(W)
            store(X, to + k * stride + at, x)


@inner
def below(X, stride, D, W, first):
    """X to rows from `first` on of W's first columns."""
    for k in range(D):
        for at in range(0, stride, width(W)):
            store(W, k * W.shape[1] + first + at, load(X, k * stride + at))


@inner
def complement(M, at, stride, columns):
    """The identity minus M, in its place."""
    for i in range(at, at + columns * stride, width(M)):
        store(M, i, sub(zero(M), load(M, i)))
    for j in range(columns):
        poke(M, at + j * stride + j, 1.0 + peek(M, at + j * stride + j))


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


# ---------------------------------------------------------------------------------------------------- the filter


@inlined
def forward_covariances(
    A, q, b, C, r, g, t0, most, length, steady, constant, X, after, step, log, certain, gains, rest, smooth, wanted,
    write, roots, ahead_roots, marks, first, final, last_roots
):  # fmt: skip
    """Covariances of at most so many steps from t0 on, where X is the predicted root; how many, whether they settled.

    Of each step the matrix that takes (y, offset, mean before) to (mean, predicted mean where it is asked for, what
    must be white); `log`, what log p has beside the squares of that, negated; and how many coordinates of y others
    determine, whose rows, the last, must be zero. The offset is the move's, or 1 where it never changes. With `smooth`
    also what z_t has of z_{t+1} and what it keeps of its own. Roots asked for are written for group g, and those of the
    steps before the marks of `first` ... `final` - 1.
    """
    D, E, M, N = A.shape[3], C.shape[2], r.shape[3], q.shape[3]
    wide, tall, high = padded(D), padded(E), padded(D + max(D, E)) + 8
    offsets, ahead = offsets_of(b), (D if wanted & PREDICTED else 0)
    rows = D + ahead + E
    size, before_y, inputs = padded(rows), rows - E, E + offsets + D
    full = write and (wanted & FILTERED or final > first)
    W, H, unwhite = np.zeros((D + max(M, N), high)), np.zeros(D * size), np.zeros(E * tall)
    before, turn, shown, unit = np.zeros(D * wide), np.zeros(D * wide), np.zeros(D * tall), np.zeros(E * tall)
    pivots, order = np.zeros(D + max(D, E), np.int64), np.zeros(D + E, np.int64)
    v, sizes, dot = np.zeros(D + max(M, N)), np.zeros(high), np.zeros(8)
    for i in range(E):
        unit[i * tall + i] = 1.0
    by_columns(A, place(A, t0, g), D, D, 1.0, turn, 0, wide)
    for n in range(most):
        t, at = t0 + n, n * inputs * size
        if n == 0 or C.shape[0] > 1:
            by_columns(C, place(C, t, g), E, D, 1.0, shown, 0, tall)
        if write and wanted & PREDICTED:
            by_rows(X, 0, wide, D, D, ahead_roots, place(ahead_roots, t, g))
        # [C X, r; X, 0] to [L, 0; K L, X].
        multiply(shown, 0, tall, E, D, X, 0, wide, D, True, W, 0, high)
        below(X, wide, D, W, E)
        columns = append(r, place(r, t, g), E, M, W, D)
        count = echelon(W, 0, E, E + D, 0, columns, TOLD, pivots, v, sizes, dot)
        if full or columns - count > D:
            echelon(W, E, E + D, E + D, count, columns, ROUNDING, pivots, v, sizes, dot)
        ordered(pivots, E, order)
        for i in range(E * size):
            poke(step, at + i, 0.0)
        divide(W, E, high, W, order, count, E, step, at, size, D)
        divide(unit, 0, tall, W, order, count, E, unwhite, 0, tall, E)
        x, p = 0.0, count
        for i in range(E):
            for k in range(count):
                poke(step, at + i * size + before_y + k, peek(unwhite, i * tall + k))
            if pivots[i] >= 0:
                x += math.log(peek(W, pivots[i] * high + i))
                continue
            for j in range(E):
                off = 1.0 if i == j else 0.0
                for k in range(count):
                    off -= peek(W, k * high + i) * peek(unwhite, j * tall + k)
                poke(step, at + j * size + before_y + p, off)
            p += 1
        poke(log, n, x - HALF_LOG_TWO_PI * (E - count) - constant)
        poke(certain, n, E - count)
        # What y - C x says is subtracted from x, the predicted mean; then x is what the move makes of the mean before.
        multiply(step, at, size, rows, E, shown, 0, tall, D, False, H, 0, size)
        complement(H, 0, size, D)
        if ahead:
            for i in range(D):
                poke(H, i * size + D + i, 1.0 + peek(H, i * size + D + i))
        here = at + E * size
        if t > 0:
            if moving(b):
                copy(H, 0, step, here, D * size)
            else:
                multiply(H, 0, size, rows, D, b, place_of(b, t, g), D, 1, False, step, here, size)
            multiply(H, 0, size, rows, D, turn, 0, wide, D, False, step, here + offsets * size, size)
        else:
            for i in range(offsets * size):
                poke(step, here + i, 0.0)
            copy(H, 0, step, here + offsets * size, D * size)
        take_root(W, E, count, columns, after, 0, D)
        if write and wanted & FILTERED:
            by_rows(after, 0, wide, D, D, roots, place(roots, t, g))
        for k in range(first, final):
            if marks[k] == t + 1:
                by_rows(after, 0, wide, D, D, last_roots, k * D * D)
        if t + 1 == length:
            return n + 1, False
        # [A X, q] to X; with [X, 0] below it, to the gain times X and what is left.
        if A.shape[0] > 1:
            by_columns(A, place(A, t + 1, g), D, D, 1.0, turn, 0, wide)
        copy(X, 0, before, 0, D * wide)
        multiply(turn, 0, wide, D, D, after, 0, wide, D, False, W, 0, high)
        if smooth:
            below(after, wide, D, W, D)
        columns = append(q, place(q, t + 1, g), D, N, W, D)
        count = echelon(W, 0, D, 2 * D if smooth else D, 0, columns, ROUNDING, pivots, v, sizes, dot)
        take_root(W, 0, 0, columns, X, 0, D)
        if smooth:
            ordered(pivots, D, order)
            divide(W, D, high, W, order, count, D, gains, t * D * wide, wide, D)
            if columns - count > D:
                echelon(W, D, 2 * D, 2 * D, count, columns, ROUNDING, pivots, v, sizes, dot)
            take_root(W, D, count, columns, rest, t * D * wide, D)
        if steady > 0.0 and t > 0 and largest_change(X, before, D * wide) <= steady:
            return n + 1, True
    return most, False


@inlined
def backward_covariances(
    A, b, g, t0, t1, own, begin, steady, later, gains, rest, back, write, spread, roots, wanted_pairs, pairs
):  # fmt: skip
    """The steps t1 - 1 ... t0: of each the matrix that takes (filtered mean, offset, smoothed mean after) to smoothed.

    The smoothed roots are written in column `write` (none below 0); `later` is that of t1, at the `begin` as filtered.
    Gives the step at which they had settled, whose root the steps before it down to own - 1 have too, else -1; it is
    written in all of them with `spread`.
    """
    D = A.shape[3]
    wide, filled, offsets = padded(D), own - 1, offsets_of(b)
    V, turn, square, joint = np.zeros((2 * D, wide)), np.zeros(D * wide), np.zeros(D * wide), np.zeros(D * wide)
    pivots, v, sizes, dot = np.zeros(D, np.int64), np.zeros(2 * D), np.zeros(wide), np.zeros(8)
    lanes = width(V)
    settled, late = False, -1
    if begin and write >= 0:
        copy(later, 0, V, 0, D * wide)
        echelon(V, 0, D, D, 0, D, ROUNDING, pivots, v, sizes, dot)
        copy(V, 0, later, 0, D * wide)
        by_rows(later, 0, wide, D, D, roots, place(roots, t1, write))
    for t in range(t1 - 1, t0 - 1, -1):
        known = min(t, filled)
        gain, at = known * D * wide, (known - t0) * (D + offsets + D) * wide
        if t == t1 - 1 or A.shape[0] > 1:
            by_columns(A, place(A, t + 1, g), D, D, 1.0, turn, 0, wide)
        if t == t1 - 1 or t < filled:
            multiply(gains, gain, wide, D, D, turn, 0, wide, D, False, back, at, wide)
            complement(back, at, wide, D)
            here = at + D * wide
            if moving(b):
                copy(gains, gain, back, here, D * wide)
            else:
                multiply(gains, gain, wide, D, D, b, place_of(b, t, g), D, 1, False, back, here, wide)
            for i in range(offsets * wide):
                poke(back, here + i, -peek(back, here + i))
            copy(gains, gain, back, here + offsets * wide, D * wide)
            settled = False
        if write < 0 or (settled and not spread):
            continue
        if not settled:
            if wanted_pairs:
                for j in range(D):
                    for i in range(0, wide, lanes):
                        x = zero(V)
                        for k in range(j + 1):
                            x = fma(splat(later, k * wide + j), load(later, k * wide + i), x)
                        store(square, j * wide + i, x)
                multiply(gains, gain, wide, D, D, square, 0, wide, D, False, joint, 0, wide)
            multiply(gains, gain, wide, D, D, later, 0, wide, D, True, V, 0, wide)
            copy(rest, gain, V, D * wide, D * wide)
            echelon(V, 0, D, D, 0, 2 * D, ROUNDING, pivots, v, sizes, dot)
            if steady > 0.0 and t > filled and largest_change(V, later, D * wide) <= steady:
                settled, late = True, t
            copy(V, 0, later, 0, D * wide)
        if wanted_pairs:
            by_rows(joint, 0, wide, D, D, pairs, place(pairs, t, write))
        by_rows(later, 0, wide, D, D, roots, place(roots, t, write))
    return late


# ------------------------------------------------------------------------------------------------------- the means


@inner
def doubtful(M, at, stride, columns, x, begin, lanes, off):
    """Whether what must be zero is more than the rounding of its terms."""
    size = 0.0
    for j in range(columns):
        size += abs(peek(M, at + j * stride) * peek(x, begin + j * lanes))
    return abs(off) > 1e-9 * size + 1e-12


@inner
def matvec(M, at, stride, columns, x, begin):
    """A vector of rows of M x."""
    first, second, third, fourth = zero(M), zero(M), zero(M), zero(M)
    whole = columns // 4 * 4
    for j in range(0, whole, 4):
        first = fma(splat(x, begin + j), load(M, at + j * stride), first)
        second = fma(splat(x, begin + j + 1), load(M, at + (j + 1) * stride), second)
        third = fma(splat(x, begin + j + 2), load(M, at + (j + 2) * stride), third)
        fourth = fma(splat(x, begin + j + 3), load(M, at + (j + 3) * stride), fourth)
    for j in range(whole, columns):
        first = fma(splat(x, begin + j), load(M, at + j * stride), first)
    return add(add(first, second), add(third, fourth))


@helper
def one_series(
    s, base, t0, t1, end, filled, b, y, step, log, certain, back, now, wanted, log_prob, means, ahead
):  # fmt: skip
    """Means of a series, a vector's coordinates in the lanes: filtered from step t0 to t1, smoothed from `end` to t0.

    Either may be empty. `now`: the mean before t0, then that of t1 - 1; or the smoothed one of `end`, then of t0.
    The matrices are those of the steps from `base` to `filled`, the last for those after it too.
    """
    B, E, D, offsets = y.shape[1], y.shape[2], b.shape[2], offsets_of(b)
    extra = D if wanted & PREDICTED else 0
    rows = D + extra + E
    size, wide, lanes, first = padded(rows), padded(D), width(now), E + offsets
    x = np.zeros(2 * (first + D + size))  # (y, offset, result of the step before), in two places by turns
    here, there = 0, first + D + size
    copy(now, 0, x, first, D)
    poke(x, E, 1.0)
    poke(x, there + E, 1.0)
    for t in range(t0, t1):
        n, row = min(t, filled) - base, t * B + s
        at, loose = n * (first + D) * size, rows - peek(certain, n)
        copy(y, row * E, x, here, E)
        if moving(b):
            copy(b, place_of(b, t, s), x, here + E, D)
        to = there + first
        for i in range(0, size, lanes):
            store(x, to + i, matvec(step, at + i, size, first + D, x, here))
        squares = 0.0
        for i in range(to + rows - E, to + loose):
            squares += peek(x, i) * peek(x, i)
        poke(log_prob, row, -0.5 * squares - peek(log, n))
        for i in range(loose, rows):
            if doubtful(step, at + i, size, first + D, x, here, 1, peek(x, to + i)):
                poke(log_prob, row, -np.inf)
        if extra:
            copy(x, to + D, ahead, row * D, D)
        if wanted & FILTERED:
            copy(x, to, means, row * D, D)
        here, there = there, here
    copy(x, here + first, now, 0, D)
    if end <= t0:
        return
    first = D + offsets
    x = np.zeros(2 * (first + wide))
    here, there = 0, first + wide
    copy(now, 0, x, first, D)
    poke(x, D, 1.0)
    poke(x, there + D, 1.0)
    for t in range(end - 1, t0 - 1, -1):
        at, row = (min(t, filled) - base) * (first + D) * wide, (t * B + s) * D
        copy(means, row, x, here, D)
        if moving(b):
            copy(b, place_of(b, t + 1, s), x, here + D, D)
        for i in range(0, wide, lanes):
            store(x, there + first + i, matvec(back, at + i, wide, first + D, x, here))
        copy(x, there + first, means, row, D)
        here, there = there, here
    copy(x, here + first, now, 0, D)


# ---------------------------------------------------------------------------------------------- series in the lanes


@inner
def times(M, at, stride, rows, columns, x, out):
    """Out = M x for as many series as there are lanes, rows rounded up to twos; x and out are (coordinates, lanes)."""
    lanes, fours = width(x), (rows + 1) // 4 * 4
    for i in range(0, fours, 4):
        a, b, c, d = zero(x), zero(x), zero(x), zero(x)
        for j in range(columns):
            v, place = load(x, j * lanes), at + j * stride + i
            a = fma(splat(M, place), v, a)
            b = fma(splat(M, place + 1), v, b)
            c = fma(splat(M, place + 2), v, c)
            d = fma(splat(M, place + 3), v, d)
        store(out, i * lanes, a)
        store(out, (i + 1) * lanes, b)
        store(out, (i + 2) * lanes, c)
        store(out, (i + 3) * lanes, d)
    if fours < rows:
        a, b = zero(x), zero(x)
        for j in range(columns):
            v, place = load(x, j * lanes), at + j * stride + fours
            a = fma(splat(M, place), v, a)
            b = fma(splat(M, place + 1), v, b)
        store(out, fours * lanes, a)
        store(out, (fours + 1) * lanes, b)


@inner
def take(source, begin, size, step, target, to):
    """Vectors that begin `step` apart, from `begin` on: coordinate k of the i-th to target[k, i]."""
    lanes = width(target)
    if step == 1:
        store(target, to, load(source, begin))
        return
    whole = size // 4 * 4
    for k in range(0, whole, 4):
        gather_four(source, begin + k, step, target, to + k * lanes)
    for k in range(whole, size):
        store(target, to + k * lanes, gather(source, begin + k, step))


@inner
def put(source, at, size, target, begin, step):
    """The reverse, to `begin` and on."""
    lanes = width(source)
    if step == 1:
        store(target, begin, load(source, at))
        return
    if size == 2 and step == 2:
        store_pairs(target, begin, load(source, at), load(source, at + lanes))
        return
    whole = size // 4 * 4
    for k in range(0, whole, 4):
        scatter_four(target, begin + k, step, source, at + k * lanes)
    for k in range(whole, size):
        scatter(target, begin + k, step, load(source, at + k * lanes))


@inner
def take_offset(b, t, s, skip, across, target, to):
    """The offsets of the moves into step t + skip i for series s + across i."""
    steps, series, D = b.shape[0], b.shape[1], b.shape[2]
    step = (skip * series if steps > 1 else 0) + (across if series > 1 else 0)
    if step > 0:
        take(b, place_of(b, t, s), D, step * D, target, to)
        return
    for i in range(D):
        store(target, to + i * width(target), splat(b, place_of(b, t, s) + i))


@helper
def many_series(
    low, high, skip, base, t0, t1, end, filled, last, b, y, step, log, certain, back, now, wanted, log_prob, means,
    ahead
):  # fmt: skip
    """As `one_series`, series low ... high - 1 each in a lane, or with `skip` step t + i skip of `low` in lane i.

    Of series, filtered means before step `last` lie by lanes; means are written only where they are wanted.
    """
    B, E, D, lanes, offsets = y.shape[1], y.shape[2], b.shape[2], width(now), offsets_of(b)
    across = 1 if skip == 0 else 0
    hop = skip * B + across
    extra = D if wanted & PREDICTED else 0
    rows, wide, block = D + extra + E, padded(D), D * lanes
    size, columns = padded(rows), E + offsets + D
    x, out = np.zeros((max(D, E) + offsets + D) * lanes), np.zeros(size * lanes)
    store(x, E * lanes, fill(x, 1.0))
    for t in range(t0, t1):
        n = min(t, filled) - base
        at, loose = n * columns * size, rows - peek(certain, n)
        for s in range(low, high, lanes):
            mean, row = (s - low) * D, t * B + s
            take(y, row * E, E, hop * E, x, 0)
            if moving(b):
                take_offset(b, t, s, skip, across, x, E * lanes)
            for i in range(0, block, lanes):
                store(x, (E + offsets) * lanes + i, load(now, mean + i))
            times(step, at, size, rows, columns, x, out)
            squares = zero(out)
            for i in range((rows - E) * lanes, loose * lanes, lanes):
                z = load(out, i)
                squares = fma(z, z, squares)
            squares = sub(mul(squares, fill(out, -0.5)), fill(out, peek(log, n)))
            if hop == 1:
                store(log_prob, row, squares)
            else:
                scatter(log_prob, row, hop, squares)
            for i in range(loose, rows):
                for lane in range(lanes):
                    if doubtful(step, at + i, size, columns, x, lane, lanes, peek(out, i * lanes + lane)):
                        poke(log_prob, row + lane * hop, -np.inf)
            for i in range(0, block, lanes):
                store(now, mean + i, load(out, i))
            if extra:
                put(out, block, D, ahead, row * D, hop * D)
            if wanted & FILTERED:
                if t < last:
                    for i in range(0, block, lanes):
                        store(means, row * D + i, load(out, i))
                else:
                    put(out, 0, D, means, row * D, hop * D)
    store(x, D * lanes, fill(x, 1.0))
    columns = D + offsets + D
    for t in range(end - 1, t0 - 1, -1):
        at = (min(t, filled) - base) * columns * wide
        for s in range(low, high, lanes):
            mean, row = (s - low) * D, (t * B + s) * D
            if t < last:
                for i in range(0, block, lanes):
                    store(x, i, load(means, row + i))
            else:
                take(means, row, D, hop * D, x, 0)
            if moving(b):
                take_offset(b, t + 1, s, skip, across, x, block)
            for i in range(0, block, lanes):
                store(x, block + offsets * lanes + i, load(now, mean + i))
            times(back, at, wide, D, columns, x, out)
            for i in range(0, block, lanes):
                store(now, mean + i, load(out, i))
            if wanted & FILTERED:
                put(out, 0, D, means, row, hop * D)


# ------------------------------------------------------------------------------ a settled series, cut into the lanes


@inner
def forgets(M, at, stride, D, most, power, square):
    """After how many steps, a power of two up to `most`, the start no longer counts: M^n < 1e-20; else 0."""
    for j in range(D):
        for i in range(D):
            poke(power, j * D + i, peek(M, at + j * stride + i))
    n = 1
    while n <= most:
        largest = 0.0
        for i in range(D * D):
            largest = max(largest, abs(peek(power, i)))
        if largest < 1e-20:
            return n
        for j in range(D):
            for i in range(D):
                x = 0.0
                for k in range(D):
                    x += peek(power, k * D + i) * peek(power, j * D + k)
                poke(square, j * D + i, x)
        copy(square, 0, power, 0, D * D)
        n *= 2
    return 0


# ------------------------------------------------------------------------------------------------------- all of it


@compiled
def run_jobs(
    jobs, begin, stop, A, b, q, C, r, y, mean, root, chunk, steady, constant, smooth, wanted, shared, marks, found,
    which, log_prob, means, roots, ahead, ahead_roots, last_roots, pairs
):  # fmt: skip
    """Filters the groups `begin` ... `stop` - 1, and with `smooth` smooths them, in the same room.

    A job is (low, high, group, length, write, first, final): series low ... high - 1, their steps, the column of roots
    they write (-1: none), and which marks are theirs; filtered roots of the steps before those are written too.
    Where all series share covariances, `found` is how many steps have roots of their own and from where back the
    smoothed ones have settled, and `which` the root of each step.

    The means of a single series, once its matrices have settled, are those of eight runs of it side by side, each from
    a start found by as many steps as it takes to forget one of zero.
    """
    D, E, lanes, offsets = A.shape[3], y.shape[2], width(mean), offsets_of(b)
    rows = D + E + (D if wanted & PREDICTED else 0)
    wide, size = padded(D), padded(rows)
    step, log, certain = np.empty(chunk * (E + offsets + D) * size), np.empty(chunk), np.empty(chunk, np.int64)
    longest = 0
    for i in range(begin, stop):
        longest = max(longest, jobs[i, 3])
    gains = np.empty(longest * D * wide if smooth else 0)
    rest = np.empty(longest * D * wide if smooth else 0)
    back = np.empty(chunk * (D + offsets + D) * wide if smooth else 0)
    X, after = np.zeros(D * wide), np.zeros(D * wide)
    power, square, ends = np.zeros(D * D), np.zeros(D * D), np.zeros(D * lanes)
    for i in range(begin, stop):
        low, high, g, length, write = jobs[i, 0], jobs[i, 1], jobs[i, 2], jobs[i, 3], jobs[i, 4]
        first, final = jobs[i, 5], jobs[i, 6]
        now = np.zeros((high - low) * D)
        together = high - low >= FEW
        if together:
            for s in range(low, high, lanes):
                take(mean, s * D, D, D, now, (s - low) * D)
        else:
            copy(mean, low * D, now, 0, (high - low) * D)
        for k in range(D * wide):
            poke(X, k, 0.0)
        by_columns(root, (g if root.shape[0] > 1 else 0) * D * D, D, D, 1.0, X, 0, wide)
        t0, newest, own, late, backwards = 0, 0, length, -1, False
        while t0 >= 0:
            if not backwards:
                steps, settled = forward_covariances(
                    A, q, b, C, r, g, t0, min(chunk, length - t0), length, steady, constant, X, after, step, log,
                    certain, gains, rest, smooth, wanted, write >= 0 and not smooth, roots, ahead_roots, marks, first,
                    final, last_roots,
                )  # fmt: skip
                t1 = t0 + steps
                if settled:
                    own, t1 = t1, length
            else:
                t1 = min(t0 + chunk if t0 < newest else length, length - 1)
                known = backward_covariances(
                    A, b, g, t0, t1, own, t0 == newest, steady, after, gains, rest, back, write, not shared, roots,
                    bool(wanted & PAIRS), pairs,
                )  # fmt: skip
                late = max(late, known)
            filled, last = own - 1, length - 1 if smooth and together else 0
            if together:
                many_series(
                    low, high, 0, t0, t0, t0 if backwards else t1, t1 if backwards else 0, filled, last, b, y, step,
                    log, certain, back, now, wanted, log_prob, means, ahead,
                )  # fmt: skip
            else:
                # Settled steps from `cut` on, of which each lane takes a run, and what is left over.
                cut = min(max(own - 1 if backwards else own, t0), t1)
                run = (t1 - cut) // lanes
                warm = 0
                if run >= RUN and backwards:
                    at = ((filled - t0) * (D + offsets + D) + D + offsets) * wide
                    warm = forgets(back, at, wide, D, run // 4, power, square)
                elif run >= RUN:
                    at = ((filled - t0) * (E + offsets + D) + E + offsets) * size
                    warm = forgets(step, at, size, D, run // 4, power, square)
                run = run if warm > 0 else 0
                over = cut + run * lanes
                for s in range(low, high):
                    before = now[(s - low) * D : (s - low + 1) * D]
                    for turn in range(2):
                        a, z = (over, t1) if backwards == (turn == 0) else (t0, cut)
                        one_series(
                            s, t0, a, a if backwards else z, z if backwards else 0, filled, b, y, step, log, certain,
                            back, before, wanted, log_prob, means, ahead,
                        )  # fmt: skip
                        if turn == 1 or run == 0:
                            continue
                        for k in range(D * lanes):
                            poke(ends, k, 0.0)
                        for real in range(2):
                            # What each run ends with, by its last steps alone; then all, from where those before end.
                            a = cut if real or backwards else cut + run - warm
                            z = cut + warm if backwards and not real else cut + run
                            asked = wanted if real else wanted & PREDICTED
                            many_series(
                                s, s + 1, run, t0, a, a if backwards else z, z if backwards else 0, filled, 0, b, y,
                                step, log, certain, back, ends, asked, log_prob, means, ahead,
                            )  # fmt: skip
                            for k in range(0, D * lanes, lanes):
                                if backwards:
                                    edge = peek(ends, k)
                                    for lane in range(lanes - 1):
                                        poke(ends, k + lane, peek(ends, k + lane + 1))
                                    poke(ends, k + lanes - 1, peek(before, k // lanes))
                                else:
                                    edge = peek(ends, k + lanes - 1)
                                    for lane in range(lanes - 1, 0, -1):
                                        poke(ends, k + lane, peek(ends, k + lane - 1))
                                    poke(ends, k, peek(before, k // lanes))
                                if real:
                                    poke(before, k // lanes, edge)
            if backwards:
                t0 = t0 - chunk
            elif t1 < length:
                t0 = t1
            else:
                newest, backwards = t0, True
                if not smooth:
                    t0 = -1
        if not smooth:
            for k in range(first, final):
                if marks[k] > own:
                    by_rows(after, 0, wide, D, D, last_roots, k * D * D)
            if not shared:
                for t in range(own, length):
                    if wanted & FILTERED:
                        copy(roots, place(roots, own - 1, write), roots, place(roots, t, write), D * D)
                    if wanted & PREDICTED:
                        here = place(ahead_roots, own - 1, write)
                        copy(ahead_roots, here, ahead_roots, place(ahead_roots, t, write), D * D)
        if write >= 0 and shared:
            found[0], found[1] = own, late
            again = late if late >= 0 else length
            for t in range(len(which)):
                which[t] = min(t, own - 1) + max(t - again, 0)


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
            multiply(S, 0, high, E, D, root, 0, wide, D, True, W, 0, W.shape[1])
            columns = append(r, place(r, t, g), E, r.shape[3], W, D)
            echelon(W, 0, E, E, 0, columns, TOLD, pivots, v_, sizes, dot)
            divide(unit, 0, high, W, order, ordered(pivots, E, order), E, white, 0, high, E)
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
        # Rounding leaves a part that is not symmetric, which this recursion would let grow.
        for i in range(D):
            for j in range(i):
                x = 0.5 * (hP[i, j] + hP[j, i])
                hP[i, j] = x
                hP[j, i] = x
    for s in range(count):
        for d in range(D):
            dmean[first + s, d] += gm[s, d]
    X = ahead_roots[0, g]
    for i in range(D):
        for k in range(D):
            x = 2.0 * hP[i, k]
            for j in range(D):
                droot[i, j] += x * X[k, j]
