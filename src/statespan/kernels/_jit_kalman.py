"""Numba loops of the Kalman filter, its smoother and its gradient; importing this module imports Numba.

Every matrix comes as (steps, series, ...), either of them 1 where it does not change. Series of a *group* share their
matrices and so their covariances, which are computed once for all of them. Covariances are lower echelon roots, made
by Householder reflections from the right.
"""

import math

import numpy as np
from numba import njit

from ._jit_forward_backward import put, take
from ._simd import fill, fma, load, mul, splat, store, store_some, sub, width, zero

OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy", "boundscheck": False, "fastmath": {"contract"}}

#: A group of fewer series is done one by one: most lanes would be empty.
FEW = 4


@njit(**OPTIONS)
def echelon(W, rows, columns, pivots):
    """Turns W's columns so that row j ends at its pivot; a row that others determine has none (-1). How many have."""
    tiny = 4e-16 * columns
    c = 0
    for j in range(rows):
        pivots[j] = -1
        square, whole = 0.0, 0.0
        for k in range(c):
            whole += W[j, k] * W[j, k]
        for k in range(c, columns):
            square += W[j, k] * W[j, k]
        whole += square
        if square <= tiny * tiny * whole:
            for k in range(c, columns):
                W[j, k] = 0.0
            continue
        norm = math.sqrt(square)
        alpha = W[j, c]
        beta = -norm if alpha > 0.0 else norm
        head = alpha - beta
        half = -beta * head  # half of v'v
        W[j, c] = head
        for i in range(j + 1, rows):
            dot = 0.0
            for k in range(c, columns):
                dot += W[j, k] * W[i, k]
            dot /= half
            for k in range(c, columns):
                W[i, k] -= dot * W[j, k]
        W[j, c] = norm
        if beta < 0.0:
            for i in range(j + 1, rows):
                W[i, c] = -W[i, c]
        for k in range(c + 1, columns):
            W[j, k] = 0.0
        pivots[j] = c
        c += 1
    return c


@njit(**OPTIONS)
def inverse_columns(W, rows, pivots, out):
    """`out[j, p]`: what turns a row vector of residuals into white noise, where row j of W ends at pivot p."""
    out[:] = 0.0
    for j in range(rows):
        p = pivots[j]
        if p < 0:
            continue
        out[j, p] = 1.0
        for k in range(p):
            factor = W[j, k]
            if factor != 0.0:
                for i in range(rows):
                    out[i, p] -= factor * out[i, k]
        scale = 1.0 / W[j, p]
        for i in range(rows):
            out[i, p] *= scale


@njit(**OPTIONS)
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


@njit(**OPTIONS)
def add_transposed(a, b, sign, out):
    """Out += sign a b'."""
    for i in range(a.shape[0]):
        for j in range(b.shape[0]):
            total = 0.0
            for k in range(a.shape[1]):
                total += a[i, k] * b[j, k]
            out[i, j] += sign * total


@njit(**OPTIONS)
def largest_change(a, b):
    """The largest difference of two matrices, as a share of the largest entry."""
    change, size = 0.0, 0.0
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            change = max(change, abs(a[i, j] - b[i, j]))
            size = max(size, abs(a[i, j]))
    return change / size if size > 0.0 else 0.0


@njit(**OPTIONS)
def absorb(X, C, r, W, pivots, unwhiten, cross, after, known):
    """The update's covariance: from X to `after`; how to whiten, and `cross`[p] what a white residual adds to the mean.

    `known`[j] is what white residuals say of a coordinate j that the others determine; it has the mark 1 at its end.

    Returns the log of the innovation's root's determinant.
    """
    E, D = C.shape
    M = r.shape[1]
    for i in range(E):
        for k in range(D + M):
            W[i, k] = 0.0
        for d in range(D):
            x = C[i, d]
            if x != 0.0:
                for k in range(d + 1):
                    W[i, k] += x * X[d, k]
        for k in range(M):
            W[i, D + k] = r[i, k]
    for i in range(D):
        for k in range(D):
            W[E + i, k] = X[i, k]
        for k in range(M):
            W[E + i, D + k] = 0.0
    echelon(W[: E + D], E + D, D + M, pivots)
    inverse_columns(W, E, pivots, unwhiten)
    cross[:] = 0.0
    log, count = 0.0, 0
    for j in range(E):
        known[j, E] = 0.0
        if pivots[j] >= 0:
            log += math.log(W[j, pivots[j]])
            count += 1
        else:
            known[j, E] = 1.0
            for k in range(E):
                known[j, k] = W[j, k]
    for i in range(D):
        for k in range(count):
            cross[k, i] = W[E + i, k]
        for k in range(D):
            after[i, k] = W[E + i, count + k] if count + k < D + M else 0.0
    return log


@njit(**OPTIONS)
def move(X, A, q, W, pivots, after):
    """The covariance's root after the move: of [A X, q]."""
    D, M = A.shape[0], q.shape[1]
    for i in range(D):
        for k in range(D + M):
            W[i, k] = 0.0
        for d in range(A.shape[1]):
            x = A[i, d]
            if x != 0.0:
                for k in range(d + 1):
                    W[i, k] += x * X[d, k]
        for k in range(M):
            W[i, D + k] = q[i, k]
    echelon(W[:D], D, D + M, pivots)
    for i in range(D):
        for k in range(D):
            after[i, k] = W[i, k]


@njit(**OPTIONS)
def at(array, t, g):
    """The matrix of step t and group g."""
    return array[t if array.shape[0] > 1 else 0, g if array.shape[1] > 1 else 0]


@njit(**OPTIONS)
def into(matrix, x, out):
    """Out += matrix x for as many series as there are lanes; x and out are (coordinates, lanes)."""
    rows, columns = matrix.shape
    lanes = width(x)
    whole = rows // 4 * 4
    for i in range(0, whole, 4):
        place = i * lanes
        a, b = load(out, place), load(out, place + lanes)
        c, d = load(out, place + 2 * lanes), load(out, place + 3 * lanes)
        row = i * columns
        for j in range(columns):
            v = load(x, j * lanes)
            a = fma(splat(matrix, row + j), v, a)
            b = fma(splat(matrix, row + columns + j), v, b)
            c = fma(splat(matrix, row + 2 * columns + j), v, c)
            d = fma(splat(matrix, row + 3 * columns + j), v, d)
        store(out, place, a)
        store(out, place + lanes, b)
        store(out, place + 2 * lanes, c)
        store(out, place + 3 * lanes, d)
    for i in range(whole, rows):
        a = load(out, i * lanes)
        for j in range(columns):
            a = fma(splat(matrix, i * columns + j), load(x, j * lanes), a)
        store(out, i * lanes, a)


@njit(**OPTIONS)
def copy(x, out):
    """Out = x, without the checks that a whole-array assignment makes."""
    for i in range(len(x)):
        out[i] = x[i]


@njit(**OPTIONS)
def take_offset(b, t, members, count, rows, target):
    """The offset of the move into step t, series in the lanes."""
    steps, series, size = b.shape
    first = (t if steps > 1 else 0) * series * size
    if series == 1:
        lanes = width(target)
        for i in range(size):
            store(target, i * lanes, splat(b, first + i))
        return
    for lane in range(count):
        rows[lane] = first + members[lane] * size
    take(b, rows, count, size, target)


@njit(**OPTIONS)
def density(white, log, count, size, log_prob, position):
    """The log-density of white residuals of series in the lanes, from `position` on."""
    lanes = width(white)
    squares = zero(white)
    for i in range(size):
        x = load(white, i * lanes)
        squares = fma(x, x, squares)
    store_some(log_prob, position, sub(mul(fill(white, -0.5), squares), fill(white, log)), count)


@njit(**OPTIONS)
def impossible(known, e, white, y, lanes, low, count, log_prob):
    """Writes minus infinity where a coordinate that others determine is not what they say."""
    E = known.shape[0]
    for i in range(E):
        if known[i, E] > 0.0:
            for lane in range(count):
                off = e[i * lanes + lane]
                size = abs(off) + abs(y[low + lane, i])
                for k in range(E):
                    off -= known[i, k] * white[k * lanes + lane]
                if abs(off) > 1e-9 * size + 1e-12:
                    log_prob[low + lane] = -np.inf


@njit(**OPTIONS)
def filter_group(
    first,
    last,
    g,
    A,
    b,
    q,
    C,
    r,
    y,
    mean,
    root,
    ends,
    steady,
    log_prob,
    wanted,
    means,
    roots,
    ahead,
    ahead_roots,
    mT,
    XT,
):
    """Series first ... last - 1 of one group, from the predicted mean and root of step 0.

    `wanted`: bits for filtered (1), predicted (2) and the last belief (4). Roots are written for the first of the group
    and, past the step where they settle, not at all. Returns how many steps have roots of their own.
    """
    T, B, E = y.shape
    D = A.shape[3]
    M, N = r.shape[3], q.shape[3]
    W = np.zeros((E + D, D + max(M, N)))
    pivots = np.zeros(E + D, np.int64)
    X = np.zeros((D, D))
    before = np.zeros((D, D))
    X[:, :] = root[g if root.shape[0] > 1 else 0]
    after = np.zeros((D, D))
    unwhiten = np.zeros((E, E))
    cross = np.zeros((E, D))
    known = np.zeros((E, E + 1))
    lanes = width(W) if last - first >= FEW else 1
    vectors = (last - first + lanes - 1) // lanes
    m = np.zeros((vectors, D * lanes))  # coordinates one after the other, series in the lanes, as all below
    moved = np.zeros(D * lanes)
    e = np.zeros(E * lanes)
    white = np.zeros(E * lanes)
    members = np.zeros(lanes, np.int64)
    rows = np.zeros(lanes, np.int64)
    forward, turned = np.zeros((D, D)), np.zeros((D, D))
    minus, minus_turned = np.zeros((E, D)), np.zeros((D, E))
    whiten = np.zeros((E, E))
    gain = np.zeros((D, E))
    still = A.shape[0] == 1 and q.shape[0] == 1 and C.shape[0] == 1 and r.shape[0] == 1 and steady > 0.0
    settled, own, certain = False, T, 0
    log = 0.0
    for s in range(last - first):
        for i in range(D):
            m[s // lanes, i * lanes + s % lanes] = mean[first + s, i]
    for t in range(T):
        if t > 0:
            step = at(A, t, g)
            if not settled:
                move(after, step, at(q, t, g), W, pivots, X)
            if t == 1 or A.shape[0] > 1:
                forward[:, :] = step
                turned[:, :] = step.T
        if wanted & 2 and not settled and first == g:
            ahead_roots[t, g] = X
        shown = at(C, t, g)
        if t == 0 or C.shape[0] > 1:
            for i in range(E):
                for j in range(D):
                    minus[i, j] = -shown[i, j]
                    minus_turned[j, i] = -shown[i, j]
        if not settled:
            before[:, :] = after
            log = absorb(X, shown, at(r, t, g), W, pivots, unwhiten, cross, after, known)
            if still and t > 0 and largest_change(after, before) <= steady:
                settled, own = True, t + 1
            if wanted & 1 and first == g:
                roots[t, g] = after
            certain = 0
            for i in range(E):
                certain += known[i, E] > 0.0
                for j in range(E):
                    whiten[i, j] = unwhiten[j, i]
                for j in range(D):
                    gain[j, i] = cross[i, j]
        for s in range(last - first if lanes == 1 else 0):
            now = m[s]
            if t > 0:
                offset = at(b, t, first + s)
                for i in range(D):
                    moved[i] = offset[i]
                for j in range(D):
                    x = now[j]
                    for i in range(D):
                        moved[i] += turned[j, i] * x
                for i in range(D):
                    now[i] = moved[i]
            if wanted & 2:
                ahead[t, first + s] = now
            for i in range(E):
                e[i] = y[t, first + s, i]
                white[i] = 0.0
            for j in range(D):
                x = now[j]
                for i in range(E):
                    e[i] += minus_turned[j, i] * x
            for j in range(E):
                x = e[j]
                for i in range(E):
                    white[i] += unwhiten[j, i] * x
            squares = 0.0
            for i in range(E):
                x = white[i]
                squares += x * x
                for d in range(D):
                    now[d] += cross[i, d] * x
            log_prob[t, first + s] = -0.5 * squares - log
            if certain:
                impossible(known, e, white, y[t], 1, first + s, 1, log_prob[t])
            if wanted & 1:
                means[t, first + s] = now
        for v in range(vectors if lanes > 1 else 0):
            low = first + v * lanes
            count = min(lanes, last - low)
            now = m[v]
            if t > 0:
                for lane in range(count):
                    members[lane] = low + lane
                take_offset(b, t, members, count, rows, moved)
                into(forward, now, moved)
                copy(moved, now)
            for lane in range(count):
                rows[lane] = (t * B + low + lane) * E
            take(y, rows, count, E, e)
            for lane in range(count):
                rows[lane] = (t * B + low + lane) * D
            if wanted & 2:
                put(now, rows, count, D, ahead)
            into(minus, now, e)
            for i in range(E * lanes):
                white[i] = 0.0
            into(whiten, e, white)
            into(gain, white, now)
            density(white, log, count, E, log_prob, t * B + low)
            if certain:
                impossible(known, e, white, y[t], lanes, low, count, log_prob[t])
            if wanted & 1:
                put(now, rows, count, D, means)
        if wanted & 4:
            for s in range(last - first):
                if t == ends[first + s] - 1:
                    for i in range(D):
                        mT[first + s, i] = m[s // lanes, i * lanes + s % lanes]
                    XT[first + s] = after
    return own


@njit(**OPTIONS)
def filter_series(
    first, last, shared, A, b, q, C, r, y, mean, root, ends, steady, log_prob, wanted, means, roots, ahead, roots_ahead,
    mT, XT
):  # fmt: skip
    """Series first ... last - 1: one group, or each its own."""
    own = y.shape[0]
    for s in range(first, first + 1 if shared else last):
        own = filter_group(
            s, last if shared else s + 1, 0 if shared else s, A, b, q, C, r, y, mean, root, ends,
            steady if shared else 0.0, log_prob, wanted, means, roots, ahead, roots_ahead, mT, XT
        )  # fmt: skip
    return own


@njit(**OPTIONS)
def smooth_group(members, g, write, A, b, q, means, roots, own, length, steady, scales, wanted_pairs, pairs):
    """Rauch-Tung-Striebel for series of one group and one length, in place; their roots go to column `write`.

    A column below 0 keeps none.

    [A X, q; X, 0] turned to echelon form [L, 0; Y, Z]: the gain is Y L^-1, and Z what z_t keeps of its own.
    """
    D, N = A.shape[3], q.shape[3]
    W = np.zeros((2 * D, D + N))
    V = np.zeros((D, 2 * D + N))
    pivots = np.zeros(2 * D, np.int64)
    back = np.zeros((D, D))
    gain = np.zeros((D, D))
    keep = np.zeros((D, D + N))
    X = np.zeros((D, D))
    later = np.zeros((D, D))
    P = np.zeros((D, D))
    B = means.shape[1]
    lanes = width(W) if len(members) >= FEW else 1
    vectors = (len(members) + lanes - 1) // lanes
    hence = np.zeros((vectors, D * lanes))  # the later smoothed means, series in the lanes
    off = np.zeros(D * lanes)
    m = np.zeros(D * lanes)
    ahead = np.zeros(D * lanes)
    rows, places = np.zeros(lanes, np.int64), np.zeros(lanes, np.int64)
    step, turned, gain_turned = np.zeros((D, D)), np.zeros((D, D)), np.zeros((D, D))
    filled = own - 1
    later[:, :] = roots[min(length - 1, filled), g]
    if write >= 0:
        scales[length - 1, write] = later
    for s in range(len(members)):
        for i in range(D):
            hence[s // lanes, i * lanes + s % lanes] = means[length - 1, members[s], i]
    still = A.shape[0] == 1 and q.shape[0] == 1 and steady > 0.0
    fresh, settled = True, False
    for t in range(length - 2, -1, -1):
        if fresh or A.shape[0] > 1:
            step[:, :] = at(A, t + 1, g)
            turned[:, :] = step.T
        if fresh or t < filled or not still:
            fresh = False
            X[:, :] = roots[min(t, filled), g]
            noise = at(q, t + 1, g)
            W[:] = 0.0
            for i in range(D):
                for d in range(D):
                    x = step[i, d]
                    for k in range(d + 1):
                        W[i, k] += x * X[d, k]
                for k in range(N):
                    W[i, D + k] = noise[i, k]
                for k in range(D):
                    W[D + i, k] = X[i, k]
            echelon(W, 2 * D, D + N, pivots)
            inverse_columns(W, D, pivots, back)
            count = 0
            for j in range(D):
                if pivots[j] >= 0:
                    count += 1
            gain[:] = 0.0
            keep[:] = 0.0
            for i in range(D):
                for k in range(count):
                    x = W[D + i, k]
                    for j in range(D):
                        gain[i, j] += x * back[j, k]
                for k in range(count, D + N):
                    keep[i, k - count] = W[D + i, k]
            gain_turned[:, :] = gain.T
            settled = False
        if wanted_pairs and write >= 0:
            product(gain, later, X)
            P[:] = 0.0
            add_transposed(X, later, 1.0, P)
            pairs[t, write] = P
        if not settled:
            for i in range(D):
                for k in range(D + N):
                    V[i, k] = keep[i, k]
                for k in range(D):
                    V[i, D + N + k] = 0.0
                for d in range(D):
                    x = gain[i, d]
                    for k in range(d + 1):
                        V[i, D + N + k] += x * later[d, k]
            echelon(V, D, 2 * D + N, pivots)
            X[:, :] = V[:, :D]
            settled = still and t > filled and largest_change(X, later) <= steady
            later[:, :] = X
        if write >= 0:
            scales[t, write] = later
        for s in range(len(members) if lanes == 1 else 0):
            now, offset = means[t, members[s]], at(b, t + 1, members[s])
            for i in range(D):
                off[i] = hence[s, i] - offset[i]
                hence[s, i] = now[i]
            for j in range(D):
                x = now[j]
                for i in range(D):
                    off[i] -= turned[j, i] * x
            for j in range(D):
                x = off[j]
                for i in range(D):
                    hence[s, i] += gain_turned[j, i] * x
            for i in range(D):
                now[i] = hence[s, i]
        for v in range(vectors if lanes > 1 else 0):
            count = min(lanes, len(members) - v * lanes)
            now = hence[v]
            for lane in range(count):
                rows[lane] = members[v * lanes + lane]
            take_offset(b, t + 1, rows, count, places, ahead)
            for lane in range(count):
                rows[lane] = (t * B + rows[lane]) * D
            take(means, rows, count, D, m)
            into(step, m, ahead)
            for i in range(D * lanes):
                off[i] = now[i] - ahead[i]
            copy(m, now)
            into(gain, off, now)
            put(now, rows, count, D, means)


@njit(**OPTIONS)
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
    pivots = np.zeros(E, np.int64)
    white = np.zeros((E, E))
    W = np.zeros((E, D + r.shape[3]))
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
            product(shown, X, ED)
            for i in range(E):
                for k in range(D):
                    W[i, k] = ED[i, k]
                for k in range(r.shape[3]):
                    W[i, D + k] = noise[i, k]
            echelon(W, E, D + r.shape[3], pivots)
            inverse_columns(W, E, pivots, white)
            L[:] = 0.0  # the inverse of the innovation's covariance
            add_transposed(white, white, 1.0, L)
            product(B, L, K)
            F[:, :] = P
            add_transposed(K, B, -1.0, F)  # the filtered covariance
        if t < T - 1:  # back through the move into t + 1, whose gradients gm and hP hold
            step = at(A, t + 1, g)
            product(hP, step, DD)
            into = dA[t + 1 if dA.shape[0] > 1 else 0, 0]
            for i in range(D):
                for j in range(D):
                    total = 0.0
                    for k in range(D):
                        total += DD[i, k] * F[k, j]
                    into[i, j] += 2.0 * total
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
                total = 0.0
                for d in range(D):
                    total += K[d, i] * DE[d, j]
                gS[i, j] = total
        gC[:] = 0.0
        weight = 0.0
        for s in range(count):
            b_ = first + s
            now = ahead[t, b_]
            for i in range(E):
                total = y[t, b_, i]
                for d in range(D):
                    total -= shown[i, d] * now[d]
                e[i] = total
            for i in range(E):
                total = 0.0
                for j in range(E):
                    total += L[i, j] * e[j]
                v[i] = total
            for d in range(D):
                total = now[d]
                for j in range(E):
                    total += K[d, j] * e[j]
                m[s, d] = total
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
                    total = 0.0
                    for i in range(D):
                        total += step[i, j] * gm[s, i]
                    pg[j] = total
                for j in range(D):
                    gm[s, j] = pg[j]
            w = weights[t, b_]
            weight += w
            for i in range(E):  # the gradient of v, through m = m- + B v
                total = 0.0
                for d in range(D):
                    total += B[d, i] * gm[s, d]
                gv[i] = total
            for i in range(E):
                total = 0.0
                for j in range(E):
                    total += L[i, j] * gv[j]
                ge[i] = total
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
                total = gm[s, d]
                for i in range(E):
                    total -= shown[i, d] * ge[i]
                gm[s, d] = total
        for i in range(E):
            for j in range(E):
                gS[i, j] -= 0.5 * weight * L[i, j]
        # B = P C' and S = C B + R.
        into = dC[t if dC.shape[0] > 1 else 0, 0]
        for i in range(E):
            for d in range(D):
                total = gC[i, d]
                for j in range(E):
                    total += 2.0 * gS[i, j] * B[d, j]
                for k in range(D):
                    total += gB[k, i] * P[k, d]
                into[i, d] += total
        spread = dr[t if dr.shape[0] > 1 else 0, 0]
        for i in range(E):
            for k in range(E):
                x = 2.0 * gS[i, k]
                for j in range(noise.shape[1]):
                    spread[i, j] += x * noise[k, j]
        product(gS, shown, ED)
        for i in range(D):
            for j in range(D):
                total = gP[i, j]
                for k in range(E):
                    total += shown[k, i] * ED[k, j] + 0.5 * (gB[i, k] * shown[k, j] + shown[k, i] * gB[j, k])
                hP[i, j] = total
    for s in range(count):
        for d in range(D):
            dmean[first + s, d] += gm[s, d]
    X = ahead_roots[0, g]
    for i in range(D):
        for k in range(D):
            x = 2.0 * hP[i, k]
            for j in range(D):
                droot[i, j] += x * X[k, j]
