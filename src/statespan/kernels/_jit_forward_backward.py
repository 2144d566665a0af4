"""Numba loops of `forward_backward`; importing this module imports Numba."""

import numpy as np

from ._simd import (
    add,
    compiled,
    fill,
    fma,
    lift,
    load,
    load_half,
    load_some,
    log,
    mul,
    peek,
    poke,
    prefetch,
    put_tile,
    ratio,
    splat,
    store,
    store_some,
    sub,
    take_tile,
    total,
    where_positive,
    width,
    zero,
    zero_half,
)

#: How many steps ahead the rows of a group are asked for: they lie a whole batch apart, which no hardware foresees.
AHEAD = 4


@compiled
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


@compiled
def outer(states, count, stride, left, right, result):
    """Result += sum over `count` steps (`stride` apart) and all lanes of left_i right_j."""
    lanes = width(left)
    half = lanes // 2
    for i in range(0, states, 4):
        for j in range(0, states, 2):
            a0 = zero_half(left)
            a1 = zero_half(left)
            b0 = zero_half(left)
            b1 = zero_half(left)
            c0 = zero_half(left)
            c1 = zero_half(left)
            d0 = zero_half(left)
            d1 = zero_half(left)
            for part in range(0, lanes, half):
                p = i * lanes + part
                q = j * lanes + part
                for _ in range(count):
                    r0 = load_half(right, q)
                    r1 = load_half(right, q + lanes)
                    x = load_half(left, p)
                    a0 = fma(x, r0, a0)
                    a1 = fma(x, r1, a1)
                    x = load_half(left, p + lanes)
                    b0 = fma(x, r0, b0)
                    b1 = fma(x, r1, b1)
                    x = load_half(left, p + 2 * lanes)
                    c0 = fma(x, r0, c0)
                    c1 = fma(x, r1, c1)
                    x = load_half(left, p + 3 * lanes)
                    d0 = fma(x, r0, d0)
                    d1 = fma(x, r1, d1)
                    p += stride
                    q += stride
            result[i, j] += total(a0)
            result[i, j + 1] += total(a1)
            result[i + 1, j] += total(b0)
            result[i + 1, j + 1] += total(b1)
            result[i + 2, j] += total(c0)
            result[i + 2, j + 1] += total(c1)
            result[i + 3, j] += total(d0)
            result[i + 3, j + 1] += total(d1)


@compiled
def take(source, offsets, count, K, target):
    """target[k, lane] = source[offsets[lane] + k] for the first `count` lanes."""
    lanes = width(source)
    start = 0
    if count == lanes:
        start = K // 4 * 4
        for k in range(0, start, 4):
            take_tile(source, offsets, k, target, k * lanes)
    for k in range(start, K):
        for lane in range(count):
            target[k * lanes + lane] = peek(source, offsets[lane] + k)


@compiled
def put(source, offsets, count, K, target):
    """target[offsets[lane] + k] = source[k, lane] for the first `count` lanes."""
    lanes = width(source)
    start = 0
    if count == lanes:
        start = K // 4 * 4
        for k in range(0, start, 4):
            put_tile(target, offsets, k, source, k * lanes)
    for k in range(start, K):
        for lane in range(count):
            poke(target, offsets[lane] + k, source[k * lanes + lane])


@compiled
def forward_lanes(first, last, order, lengths, predicted, panels, likelihood, scale, scaled, normaliser, filtered):
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


@compiled
def backward_lanes(
    first,
    last,
    order,
    lengths,
    predicted,
    panels,
    transposed,
    likelihood,
    scale,
    scaled,
    filtered,
    g_normaliser,
    g_filtered,
    filtering,
    of_table,
    g_predicted,
    g_table,
    g_likelihood,
    g_scale,
):
    """Gradients of `forward_lanes`: panels of the table and of its transpose; adds to `g_table` (states, states).

    The predicted beliefs come again from the filtered ones: a small product costs less than to keep and read them.
    """
    steps, batch, K = likelihood.shape
    states = (K + 3) // 4 * 4
    lanes = width(likelihood)
    size = states * lanes
    # Not a power of two: otherwise the steps of a block evict each other from the first-level cache.
    stride = size + lanes
    block = 32 if states <= 16 else 16
    P = np.zeros(size, likelihood.dtype)
    V = np.zeros(size, likelihood.dtype)
    F = np.zeros(size, likelihood.dtype)
    H = np.zeros(size, likelihood.dtype)
    U = np.zeros(size, likelihood.dtype)
    Y = np.zeros(size, likelihood.dtype)
    X = np.zeros(size, likelihood.dtype)
    G = np.zeros(size, likelihood.dtype)
    N = np.zeros(lanes, likelihood.dtype)
    M = np.zeros(lanes, likelihood.dtype)
    left = np.zeros(stride * block, likelihood.dtype)
    right = np.zeros(stride * block, likelihood.dtype)
    sources = np.empty(lanes, np.int64)
    targets = np.empty(lanes, np.int64)
    before = np.empty(lanes, np.int64)
    one = fill(likelihood, 1)
    tiny = fill(likelihood, np.finfo(likelihood.dtype).tiny)
    for group in range(first, last):
        base = group * lanes
        count = min(lanes, batch - base)
        P[:] = 0
        V[:] = 0
        F[:] = 0
        H[:] = 0
        Y[:] = 0
        X[:] = 1
        G[:] = 0
        N[:] = 0
        M[:] = 0
        waiting = 0
        active = 0
        if lengths[base] == 0:
            for lane in range(count):
                g_predicted[order[base + lane]] = 0
        for lane in range(count):
            sources[lane] = (max(lengths[base + lane] - 1, 0) * batch + order[base + lane]) * K
            before[lane] = ((lengths[base] - 1) * batch + order[base + lane]) * K
        if lengths[base] > 0:
            take(filtered, before, count, K, F)
        for t in range(lengths[base] - 1, -1, -1):
            while active < count and lengths[base + active] > t:
                M[active] = 1
                active += 1
            for lane in range(count):
                targets[lane] = before[lane]
                before[lane] -= batch * K
            for lane in range(active):
                sources[lane] = targets[lane]
                N[lane] = g_normaliser[t, order[base + lane]]
                if t > AHEAD:
                    near = targets[lane] - AHEAD * batch * K
                    for k in range(0, K, lanes):
                        prefetch(likelihood, near + k)
                        prefetch(g_likelihood, near + k)
                        prefetch(filtered, near - batch * K + k)
            take(likelihood, sources, count, K, Y)
            if filtering:
                take(g_filtered, sources, count, K, G)
            place = waiting * stride
            if t > 0:
                take(filtered, before, count, K, H)
                if scaled:
                    for lane in range(active):
                        b = order[base + lane]
                        for k in range(K):
                            X[k * lanes + lane] = scale[t, b, k]
                    for k in range(K):
                        store(left, place + k * lanes, mul(load(H, k * lanes), load(X, k * lanes)))
                else:
                    for k in range(K):
                        store(left, place + k * lanes, load(H, k * lanes))
                push(states, panels, left[place : place + size], P)
            else:
                for lane in range(count):
                    before[lane] = order[base + lane] * K
                take(predicted, before, count, K, P)
            c = zero(V)
            mean = zero(V)
            for k in range(K):
                c = fma(load(P, k * lanes), load(Y, k * lanes), c)
                u = add(load(V, k * lanes), load(G, k * lanes))
                store(U, k * lanes, u)
                mean = fma(u, load(F, k * lanes), mean)
            c = where_positive(c, load(M, 0))
            up = lift(c, tiny)
            inverse = ratio(one, mul(c, up))
            shift = sub(load(N, 0), mean)
            for k in range(K):
                w = where_positive(add(load(U, k * lanes), shift), c)
                store(right, place + k * lanes, mul(w, mul(mul(load(Y, k * lanes), up), inverse)))
                store(U, k * lanes, mul(w, mul(mul(load(P, k * lanes), up), inverse)))
            put(U, targets, count, K, g_likelihood)
            if t > 0:
                push(states, transposed, right[place : place + size], V)
                if scaled:
                    for lane in range(active):
                        b = order[base + lane]
                        for k in range(K):
                            g_scale[t, b, k] = H[k * lanes + lane] * V[k * lanes + lane]
                    for k in range(K):
                        store(V, k * lanes, mul(load(V, k * lanes), load(X, k * lanes)))
                F, H = H, F
                waiting += 1
                if waiting == block:
                    if of_table:
                        outer(states, block, stride, left, right, g_table)
                    waiting = 0
            else:
                put(right[place : place + size], before, count, K, g_predicted)
        if waiting > 0 and of_table:
            outer(states, waiting, stride, left, right, g_table)
        for t in range(lengths[base], steps):
            for lane in range(count):
                g_likelihood[t, order[base + lane]] = 0
        if scaled:
            for lane in range(count):
                b = order[base + lane]
                g_scale[0, b] = 0
                for t in range(max(1, lengths[base + lane]), steps):
                    g_scale[t, b] = 0


@compiled
def get(array, position, rest):
    """The lanes at a flat position, zeros past the first `rest`."""
    if rest >= width(array):
        return load(array, position)
    return load_some(array, position, rest, array.dtype.type(0))


@compiled
def keep(array, position, value, rest):
    """Writes lanes at a flat position, the first `rest` of them."""
    if rest >= width(array):
        store(array, position, value)
    else:
        store_some(array, position, value, rest)


@compiled
def forward_rows(t, count, later, first, order, P, C, likelihood, scale, scaled, normaliser, filtered, S):
    """One step of sequences in rows: P (count, K) predicted, S (later, K) what the table is applied to next."""
    _, batch, K = likelihood.shape
    lanes = width(likelihood)
    one = fill(likelihood, 1)
    tiny = fill(likelihood, np.finfo(likelihood.dtype).tiny)
    for i in range(count):
        b = order[first + i]
        here = (t * batch + b) * K
        s = zero(likelihood)
        for k in range(0, K, lanes):
            s = fma(get(P, i * K + k, K - k), get(likelihood, here + k, K - k), s)
        c = total(s)
        normaliser[t, b] = c
        C[i] = c
        every = splat(C, i)
        up = lift(every, tiny)
        inverse = ratio(one, mul(every, up))
        for k in range(0, K, lanes):
            f = mul(mul(mul(get(P, i * K + k, K - k), up), get(likelihood, here + k, K - k)), inverse)
            keep(filtered, here + k, f, K - k)
            if i < later:
                if scaled:
                    f = mul(f, get(scale, here + batch * K + k, K - k))
                keep(S, i * K + k, f, K - k)


@compiled
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
    _, batch, K = likelihood.shape
    lanes = width(likelihood)
    one = fill(likelihood, 1)
    tiny = fill(likelihood, np.finfo(likelihood.dtype).tiny)
    number = np.empty(1, likelihood.dtype)
    for i in range(count):
        b = order[first + i]
        here = (t * batch + b) * K
        c = splat(C, i)
        up = lift(c, tiny)
        inverse = ratio(one, mul(c, up))
        s = zero(likelihood)
        for k in range(0, K, lanes):
            rest = K - k
            # f = p y / c, u its gradient; u waits in R.
            y = mul(mul(get(likelihood, here + k, rest), up), inverse)
            f = mul(get(P, i * K + k, rest), y)
            u = zero(likelihood)
            if i < later:
                u = get(V, i * K + k, rest)
                if scaled:
                    x = get(scale, here + batch * K + k, rest)
                    keep(g_scale, here + batch * K + k, mul(f, u), rest)
                    keep(S, i * K + k, mul(f, x), rest)
                    u = mul(u, x)
                else:
                    keep(S, i * K + k, f, rest)
            if filtering:
                u = add(u, get(g_filtered, here + k, rest))
            keep(R, i * K + k, u, rest)
            s = fma(u, f, s)
        number[0] = g_normaliser[t, b] - total(s)
        shift = splat(number, 0)
        for k in range(0, K, lanes):
            rest = K - k
            w = where_positive(add(get(R, i * K + k, rest), shift), c)
            y = mul(mul(get(likelihood, here + k, rest), up), inverse)
            p = mul(mul(get(P, i * K + k, rest), up), inverse)
            keep(R, i * K + k, mul(w, y), rest)
            keep(g_likelihood, here + k, mul(w, p), rest)


@compiled
def logarithms(first, last, values):
    """The logarithms of values first ... last - 1, in place."""
    lanes = width(values)
    for i in range(first, last, lanes):
        keep(values, i, log(get(values, i, last - i)), last - i)
