"""Numba loops of `forward_backward`; importing this module imports Numba."""

import numpy as np
from numba import njit

from ._simd import (
    add,
    fill,
    fma,
    lift,
    load,
    mul,
    prefetch,
    put_tile,
    ratio,
    splat,
    store,
    sub,
    take_tile,
    total,
    where_positive,
    width,
    zero,
)

#: How many steps ahead the rows of a group are asked for: they lie a whole batch apart, which no hardware foresees.
AHEAD = 4
OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy", "boundscheck": False}
FAST = {**OPTIONS, "fastmath": {"reassoc", "contract", "nsz"}}


@njit(**OPTIONS)
def push(states, panels, source, target):
    """Target = source @ table for one group of lanes; table in panels of 4 columns, (K/4, K, 4)."""
    lanes = width(source)
    for column in range(0, states, 4):
        a = zero(source)
        b = zero(source)
        c = zero(source)
        d = zero(source)
        position = column * states
        for k in range(states):
            s = load(source, k * lanes)
            a = fma(splat(panels, position), s, a)
            b = fma(splat(panels, position + 1), s, b)
            c = fma(splat(panels, position + 2), s, c)
            d = fma(splat(panels, position + 3), s, d)
            position += 4
        store(target, column * lanes, a)
        store(target, (column + 1) * lanes, b)
        store(target, (column + 2) * lanes, c)
        store(target, (column + 3) * lanes, d)


@njit(**OPTIONS)
def outer(states, count, left, right, result):
    """Result += sum over `count` steps and all lanes of left_i right_j."""
    lanes = width(left)
    step = states * lanes
    for i in range(0, states, 2):
        for j in range(0, states, 2):
            a = zero(left)
            b = zero(left)
            c = zero(left)
            d = zero(left)
            p = i * lanes
            q = j * lanes
            for _ in range(count):
                l0 = load(left, p)
                l1 = load(left, p + lanes)
                r0 = load(right, q)
                r1 = load(right, q + lanes)
                a = fma(l0, r0, a)
                b = fma(l0, r1, b)
                c = fma(l1, r0, c)
                d = fma(l1, r1, d)
                p += step
                q += step
            result[i, j] += total(a)
            result[i, j + 1] += total(b)
            result[i + 1, j] += total(c)
            result[i + 1, j + 1] += total(d)


@njit(**OPTIONS)
def take(source, offsets, count, K, target):
    """target[k, lane] = source[offsets[lane] + k] for the first `count` lanes."""
    lanes = width(source)
    start = 0
    if count == lanes:
        start = K // 4 * 4
        for k in range(0, start, 4):
            take_tile(source, offsets, k, target, k * lanes)
    flat = source.reshape(-1)
    for k in range(start, K):
        for lane in range(count):
            target[k * lanes + lane] = flat[offsets[lane] + k]


@njit(**OPTIONS)
def put(source, offsets, count, K, target):
    """target[offsets[lane] + k] = source[k, lane] for the first `count` lanes."""
    lanes = width(source)
    start = 0
    if count == lanes:
        start = K // 4 * 4
        for k in range(0, start, 4):
            put_tile(target, offsets, k, source, k * lanes)
    flat = target.reshape(-1)
    for k in range(start, K):
        for lane in range(count):
            flat[offsets[lane] + k] = source[k * lanes + lane]


@njit(**OPTIONS)
def forward_lanes(
    first,
    last,
    order,
    lengths,
    predicted,
    panels,
    likelihood,
    scale,
    scaled,
    normaliser,
    filtered,
    saved,
    save,
):
    """Groups first ... last - 1 of sequences across lanes.

    A lane past its sequence's end keeps reading the last likelihood and has belief 0.
    """
    steps, batch, K = likelihood.shape
    states = (K + 3) // 4 * 4
    lanes = width(likelihood)
    size = states * lanes
    P = np.zeros(size, likelihood.dtype)
    S = np.zeros(size, likelihood.dtype)
    Y = np.zeros(size, likelihood.dtype)
    C = np.zeros(lanes, likelihood.dtype)
    sources = np.empty(lanes, np.int64)
    targets = np.empty(lanes, np.int64)
    one = fill(likelihood, 1)
    tiny = fill(likelihood, np.finfo(likelihood.dtype).tiny)
    for group in range(first, last):
        base = group * lanes
        count = min(lanes, batch - base)
        P[:] = 0
        S[:] = 0
        Y[:] = 0
        for lane in range(count):
            sources[lane] = order[base + lane] * K
        take(predicted, sources, count, K, P)
        active = count
        for t in range(lengths[base]):
            while active > 0 and lengths[base + active - 1] <= t:
                active -= 1
                for k in range(K):
                    P[k * lanes + active] = 0
            for lane in range(count):
                targets[lane] = (t * batch + order[base + lane]) * K
            for lane in range(active):
                sources[lane] = targets[lane]
                if t + AHEAD < lengths[base + lane]:
                    near = targets[lane] + AHEAD * batch * K
                    for k in range(0, K, lanes):
                        prefetch(likelihood, near + k)
                        prefetch(filtered, near + k)
            take(likelihood, sources, count, K, Y)
            c = zero(P)
            for k in range(K):
                c = fma(load(P, k * lanes), load(Y, k * lanes), c)
            if save:
                position = (group * steps + t) * (size + lanes)
                for k in range(states):
                    store(saved, position + k * lanes, load(P, k * lanes))
                store(saved, position + size, c)
            store(C, 0, c)
            up = lift(c, tiny)
            inverse = ratio(one, mul(c, up))
            for k in range(K):
                store(S, k * lanes, mul(mul(mul(load(P, k * lanes), up), load(Y, k * lanes)), inverse))
            for lane in range(active):
                normaliser[t, order[base + lane]] = C[lane]
            put(S, targets, count, K, filtered)
            if t + 1 < lengths[base]:
                if scaled:
                    for lane in range(active):
                        b = order[base + lane]
                        if lengths[base + lane] > t + 1:
                            for k in range(K):
                                S[k * lanes + lane] *= scale[t + 1, b, k]
                push(states, panels, S, P)
        for t in range(lengths[base], steps):
            for lane in range(count):
                filtered[t, order[base + lane]] = 0


@njit(**OPTIONS)
def backward_lanes(
    first,
    last,
    order,
    lengths,
    panels,
    likelihood,
    scale,
    scaled,
    saved,
    g_normaliser,
    g_filtered,
    filtering,
    of_table,
    g_predicted,
    g_table,
    g_likelihood,
    g_scale,
):
    """Gradients of `forward_lanes`; `panels` of the transposed table, `g_table` (states, states) is added to."""
    steps, batch, K = likelihood.shape
    states = (K + 3) // 4 * 4
    lanes = width(likelihood)
    size = states * lanes
    block = 32 if states <= 16 else 8
    V = np.zeros(size, likelihood.dtype)
    F = np.zeros(size, likelihood.dtype)
    U = np.zeros(size, likelihood.dtype)
    Y = np.zeros(size, likelihood.dtype)
    X = np.zeros(size, likelihood.dtype)
    G = np.zeros(size, likelihood.dtype)
    N = np.zeros(lanes, likelihood.dtype)
    left = np.zeros(size * block, likelihood.dtype)
    right = np.zeros(size * block, likelihood.dtype)
    sources = np.empty(lanes, np.int64)
    targets = np.empty(lanes, np.int64)
    one = fill(likelihood, 1)
    tiny = fill(likelihood, np.finfo(likelihood.dtype).tiny)
    for group in range(first, last):
        base = group * lanes
        count = min(lanes, batch - base)
        V[:] = 0
        Y[:] = 0
        X[:] = 1
        G[:] = 0
        N[:] = 0
        waiting = 0
        active = 0
        for lane in range(count):
            sources[lane] = (max(lengths[base + lane] - 1, 0) * batch + order[base + lane]) * K
        for t in range(lengths[base] - 1, -1, -1):
            going = active
            while active < count and lengths[base + active] > t:
                active += 1
            for lane in range(count):
                targets[lane] = (t * batch + order[base + lane]) * K
            for lane in range(active):
                sources[lane] = targets[lane]
                N[lane] = g_normaliser[t, order[base + lane]]
                if t >= AHEAD:
                    near = targets[lane] - AHEAD * batch * K
                    for k in range(0, K, lanes):
                        prefetch(likelihood, near + k)
                        prefetch(g_likelihood, near + k)
            take(likelihood, sources, count, K, Y)
            if filtering:
                take(g_filtered, sources, count, K, G)
            later = t + 1 < lengths[base]
            if scaled and later:
                for lane in range(going):
                    b = order[base + lane]
                    for k in range(K):
                        X[k * lanes + lane] = scale[t + 1, b, k]
            position = (group * steps + t) * (size + lanes)
            c = load(saved, position + size)
            up = lift(c, tiny)
            inverse = ratio(one, mul(c, up))
            mean = zero(V)
            place = waiting * size
            for k in range(K):
                y = mul(mul(load(Y, k * lanes), up), inverse)
                store(Y, k * lanes, y)
                f = mul(load(saved, position + k * lanes), y)
                x = load(X, k * lanes)
                u = load(G, k * lanes)
                if scaled:
                    store(F, k * lanes, f)
                    u = fma(load(V, k * lanes), x, u)
                    store(left, place + k * lanes, mul(f, x))
                else:
                    u = add(load(V, k * lanes), u)
                    store(left, place + k * lanes, f)
                store(U, k * lanes, u)
                mean = fma(u, f, mean)
            if later:
                if scaled:
                    for lane in range(going):
                        b = order[base + lane]
                        for k in range(K):
                            g_scale[t + 1, b, k] = F[k * lanes + lane] * V[k * lanes + lane]
                waiting += 1
                if waiting == block:
                    if of_table:
                        outer(states, block, left, right, g_table)
                    waiting = 0
            shift = sub(load(N, 0), mean)
            place = waiting * size
            for k in range(K):
                w = where_positive(add(load(U, k * lanes), shift), c)
                store(right, place + k * lanes, mul(w, load(Y, k * lanes)))
                p = load(saved, position + k * lanes)
                store(U, k * lanes, mul(w, mul(mul(p, up), inverse)))
            put(U, targets, count, K, g_likelihood)
            push(states, panels, right[place : place + size], V)
        if lengths[base] > 0:
            if waiting and of_table:
                outer(states, waiting, left, right, g_table)
            place = waiting * size
            for lane in range(count):
                b = order[base + lane]
                for k in range(K):
                    g_predicted[b, k] = right[place + k * lanes + lane]
        else:
            for lane in range(count):
                g_predicted[order[base + lane]] = 0
        for t in range(lengths[base], steps):
            for lane in range(count):
                g_likelihood[t, order[base + lane]] = 0
        if scaled:
            for lane in range(count):
                b = order[base + lane]
                g_scale[0, b] = 0
                for t in range(max(1, lengths[base + lane]), steps):
                    g_scale[t, b] = 0


@njit(**FAST)
def forward_rows(t, count, later, first, order, P, C, likelihood, scale, scaled, normaliser, filtered, S):
    """One step of sequences in rows: P (count, K) predicted, S (count, K) what the table is applied to next."""
    K = P.shape[1]
    for i in range(count):
        b = order[first + i]
        c = P.dtype.type(0)
        for k in range(K):
            joint = P[i, k] * likelihood[t, b, k]
            S[i, k] = joint
            c += joint
        normaliser[t, b] = c
        C[i] = c
        if c > 0:
            for k in range(K):
                S[i, k] /= c
        else:
            for k in range(K):
                S[i, k] = 0
        for k in range(K):
            filtered[t, b, k] = S[i, k]
        if scaled and i < later:
            for k in range(K):
                S[i, k] *= scale[t + 1, b, k]


@njit(**FAST)
def backward_rows(
    t,
    count,
    later,
    first,
    order,
    P,
    C,
    V,
    likelihood,
    scale,
    scaled,
    g_normaliser,
    g_filtered,
    filtering,
    S,
    R,
    g_likelihood,
    g_scale,
):
    """One step of the gradients; S (later, K) and R (count, K) are the two factors of the table's gradient."""
    K = P.shape[1]
    for i in range(count):
        b = order[first + i]
        c = C[i]
        if not c > 0:
            for k in range(K):
                g_likelihood[t, b, k] = 0
                R[i, k] = 0
            if i < later:
                for k in range(K):
                    S[i, k] = 0
                if scaled:
                    for k in range(K):
                        g_scale[t + 1, b, k] = 0
            continue
        mean = P.dtype.type(0)
        if i < later:
            if scaled:
                for k in range(K):
                    f = P[i, k] * likelihood[t, b, k] / c
                    S[i, k] = f * scale[t + 1, b, k]
                    g_scale[t + 1, b, k] = f * V[i, k]
                    mean += V[i, k] * S[i, k]
                    V[i, k] *= scale[t + 1, b, k]
            else:
                for k in range(K):
                    f = P[i, k] * likelihood[t, b, k] / c
                    S[i, k] = f
                    mean += V[i, k] * f
        else:
            for k in range(K):
                V[i, k] = 0
        if filtering:
            for k in range(K):
                mean += g_filtered[t, b, k] * (P[i, k] * likelihood[t, b, k] / c)
                V[i, k] += g_filtered[t, b, k]
        shift = P.dtype.type(g_normaliser[t, b]) - mean
        for k in range(K):
            w = V[i, k] + shift
            R[i, k] = w * (likelihood[t, b, k] / c)
            g_likelihood[t, b, k] = w * (P[i, k] / c)
