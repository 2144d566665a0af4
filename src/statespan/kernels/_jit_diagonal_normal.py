"""Numba loops of `diagonal_normal`: rows lie across the lanes; importing this module imports Numba."""

import numpy as np

from ._jit_forward_backward import put, take
from ._simd import add, compiled, exp, finite, fma, larger, load, mul, splat, store, sub, total, width, zero

#: Vectors of rows of which the sums are made while they are in the first-level cache.
VECTORS = 8


@compiled
def densities(first, last, y, there, masked, mean, bend, level, scaling, log_scale, result):
    """Rows first ... last - 1 of result (N, K): the sum over d of level_kd + bend_kd (y_nd - mean_kd)^2.

    Where they are `masked` by `there` (N, D), 1 or 0, the sum is over what is there. Where they are `scaling` it is
    exp of that less its maximum over the states, which goes to `log_scale`. Tables (K rounded up to 4, D), flat.
    """
    D = y.shape[1]
    K = result.shape[1]
    lanes = width(y)
    states = (K + 3) // 4 * 4
    X = np.zeros(D * lanes, y.dtype)
    M = np.zeros(D * lanes, y.dtype)
    V = np.zeros(states * lanes, y.dtype)
    S = np.zeros(lanes, y.dtype)
    whole = np.zeros(states, y.dtype)
    for k in range(states):
        for d in range(D):
            whole[k] += level[k * D + d]
    rows = np.zeros(lanes, np.int64)
    targets = np.zeros(lanes, np.int64)
    for n in range(first, last, lanes):
        count = min(lanes, last - n)
        for lane in range(lanes):
            # Lanes past the end do what the last one does, unseen.
            rows[lane] = (n + min(lane, count - 1)) * D
            targets[lane] = (n + lane) * K
        take(y, rows, lanes, D, X)
        if masked:
            take(there, rows, lanes, D, M)
        for k in range(0, states, 4):
            p = k * D
            if masked:
                a = zero(y)
                b = zero(y)
                c = zero(y)
                e = zero(y)
                for d in range(D):
                    x = load(X, d * lanes)
                    m = load(M, d * lanes)
                    u = sub(x, splat(mean, p))
                    a = fma(fma(mul(u, u), splat(bend, p), splat(level, p)), m, a)
                    u = sub(x, splat(mean, p + D))
                    b = fma(fma(mul(u, u), splat(bend, p + D), splat(level, p + D)), m, b)
                    u = sub(x, splat(mean, p + 2 * D))
                    c = fma(fma(mul(u, u), splat(bend, p + 2 * D), splat(level, p + 2 * D)), m, c)
                    u = sub(x, splat(mean, p + 3 * D))
                    e = fma(fma(mul(u, u), splat(bend, p + 3 * D), splat(level, p + 3 * D)), m, e)
                    p += 1
            else:
                a = splat(whole, k)
                b = splat(whole, k + 1)
                c = splat(whole, k + 2)
                e = splat(whole, k + 3)
                for d in range(D):
                    x = load(X, d * lanes)
                    u = sub(x, splat(mean, p))
                    a = fma(mul(u, u), splat(bend, p), a)
                    u = sub(x, splat(mean, p + D))
                    b = fma(mul(u, u), splat(bend, p + D), b)
                    u = sub(x, splat(mean, p + 2 * D))
                    c = fma(mul(u, u), splat(bend, p + 2 * D), c)
                    u = sub(x, splat(mean, p + 3 * D))
                    e = fma(mul(u, u), splat(bend, p + 3 * D), e)
                    p += 1
            store(V, k * lanes, a)
            store(V, (k + 1) * lanes, b)
            store(V, (k + 2) * lanes, c)
            store(V, (k + 3) * lanes, e)
        if scaling:
            top = load(V, 0)
            for k in range(1, K):
                top = larger(load(V, k * lanes), top)
            top = finite(top)
            for k in range(K):
                store(V, k * lanes, exp(sub(load(V, k * lanes), top)))
            store(S, 0, top)
            for lane in range(count):
                log_scale[n + lane] = S[lane]
        put(V, targets, count, K, result)


@compiled
def sums(first, last, y, there, masked, mean, weights, result):
    """Over rows first ... last - 1, for every state: result (K, 1 + 3 D) += w; w, w x and w x^2 of each coordinate.

    x = y_n - mean_k, and w = weights_nk; 0 for a coordinate that is `masked` by `there` (N, D).
    """
    D = y.shape[1]
    K = weights.shape[1]
    lanes = width(y)
    X = np.zeros(VECTORS * D * lanes, y.dtype)
    M = np.zeros(VECTORS * D * lanes, y.dtype)
    W = np.zeros(VECTORS * K * lanes, y.dtype)
    A = np.zeros(K * (1 + 3 * D) * lanes, y.dtype)
    rows = np.zeros(lanes, np.int64)
    sources = np.zeros(lanes, np.int64)
    for start in range(first, last, VECTORS * lanes):
        vectors = min(VECTORS, (last - start + lanes - 1) // lanes)
        for v in range(vectors):
            n = start + v * lanes
            count = min(lanes, last - n)
            for lane in range(lanes):
                rows[lane] = (n + min(lane, count - 1)) * D
                sources[lane] = (n + lane) * K
            if count < lanes:
                W[v * K * lanes : (v + 1) * K * lanes] = 0
            take(y, rows, lanes, D, X[v * D * lanes : (v + 1) * D * lanes])
            take(weights, sources, count, K, W[v * K * lanes : (v + 1) * K * lanes])
            if masked:
                take(there, rows, lanes, D, M[v * D * lanes : (v + 1) * D * lanes])
        for k in range(K):
            place = k * (1 + 3 * D) * lanes
            a = load(A, place)
            for v in range(vectors):
                a = add(load(W, (v * K + k) * lanes), a)
            store(A, place, a)
            for d in range(D):
                place += lanes
                m = splat(mean, k * D + d)
                c = load(A, place)
                f = load(A, place + D * lanes)
                s = load(A, place + 2 * D * lanes)
                for v in range(vectors):
                    w = load(W, (v * K + k) * lanes)
                    if masked:
                        w = mul(w, load(M, (v * D + d) * lanes))
                        c = add(c, w)
                    x = sub(load(X, (v * D + d) * lanes), m)
                    u = mul(w, x)
                    f = add(f, u)
                    s = fma(u, x, s)
                store(A, place, c)
                store(A, place + D * lanes, f)
                store(A, place + 2 * D * lanes, s)
    for k in range(K):
        for i in range(1 + 3 * D):
            from_weight = i > 0 and i <= D and not masked
            result[k, i] += total(load(A, (k * (1 + 3 * D) + (0 if from_weight else i)) * lanes))
