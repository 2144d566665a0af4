"""Numba loops of `expected_moves`; importing this module imports Numba."""

import numpy as np

from ._jit_forward_backward import AHEAD, put, take
from ._simd import (
    add,
    compiled,
    fill,
    fma,
    lift,
    load,
    load_half,
    mul,
    prefetch,
    ratio,
    splat,
    store,
    total,
    where_above,
    width,
    zero,
    zero_half,
)


@compiled
def push_groups(groups, states, panels, source, start, target):
    """Target = source @ table for some groups of lanes; panels of 4 columns stay in the cache over the groups."""
    lanes = width(source)
    size = states * lanes
    for column in range(0, states, 4):
        for group in range(groups):
            base = group * size
            read = start + base
            a = zero(source)
            b = zero(source)
            c = zero(source)
            d = zero(source)
            position = column * states
            for k in range(states):
                s = load(source, read + k * lanes)
                a = fma(splat(panels, position), s, a)
                b = fma(splat(panels, position + 1), s, b)
                c = fma(splat(panels, position + 2), s, c)
                d = fma(splat(panels, position + 3), s, d)
                position += 4
            place = base + column * lanes
            store(target, place, a)
            store(target, place + lanes, b)
            store(target, place + 2 * lanes, c)
            store(target, place + 3 * lanes, d)


@compiled
def outer_sums(states, count, stride, left, right, result):
    """Result += sum over `count` numbers of left_i right_j; the numbers of a state lie one after the other."""
    half = width(left) // 2
    # So many columns of `right` stay in the second-level cache while all rows of `left` pass.
    chunk = max(2, 65536 // (count * left.itemsize) // 2 * 2)
    for first in range(0, states, chunk):
        for i in range(0, states, 4):
            p = i * stride
            for j in range(first, min(first + chunk, states), 2):
                q = j * stride
                a0 = zero_half(left)
                a1 = zero_half(left)
                b0 = zero_half(left)
                b1 = zero_half(left)
                c0 = zero_half(left)
                c1 = zero_half(left)
                d0 = zero_half(left)
                d1 = zero_half(left)
                for n in range(0, count, half):
                    r0 = load_half(right, q + n)
                    r1 = load_half(right, q + stride + n)
                    x = load_half(left, p + n)
                    a0 = fma(x, r0, a0)
                    a1 = fma(x, r1, a1)
                    x = load_half(left, p + stride + n)
                    b0 = fma(x, r0, b0)
                    b1 = fma(x, r1, b1)
                    x = load_half(left, p + 2 * stride + n)
                    c0 = fma(x, r0, c0)
                    c1 = fma(x, r1, c1)
                    x = load_half(left, p + 3 * stride + n)
                    d0 = fma(x, r0, d0)
                    d1 = fma(x, r1, d1)
                result[i, j] += total(a0)
                result[i, j + 1] += total(a1)
                result[i + 1, j] += total(b0)
                result[i + 1, j + 1] += total(b1)
                result[i + 2, j] += total(c0)
                result[i + 2, j + 1] += total(c1)
                result[i + 3, j] += total(d0)
                result[i + 3, j + 1] += total(d1)


@compiled
def add_rows(values, offsets, count, K, result):
    """Adds row n of `values` (count, K), K a multiple of half a vector, to the K numbers of `result` at offsets[n]."""
    half = width(values) // 2
    for n in range(count):
        place = offsets[n]
        for k in range(0, K, half):
            store(result, place + k, add(load_half(result, place + k), load_half(values, n * K + k)))


@compiled
def add_scale(lengths, which, scale, normaliser):
    """Adds to every step the `scale` of what it observes."""
    steps, batch = normaliser.shape
    sharing = which.size > 0
    for t in range(steps):
        for b in range(batch):
            if t < lengths[b]:
                normaliser[t, b] += scale[which[t, b] if sharing else t * batch + b]


@compiled
def expect_lanes(
    first,
    last,
    groups,
    order,
    lengths,
    predicted,
    panels,
    transposed,
    rows,
    which,
    sharing,
    weights,
    counting,
    normaliser,
    sums,
    begin,
    counts,
):
    """Blocks first ... last - 1, each of `groups` groups of sequences across lanes; adds to `counts` (states, states).

    What step t of sequence b sees is row t B + b of `rows`, whose posterior is written to that row of `sums` (flat);
    where steps are `sharing` rows, it is row which[t, b], to which the posterior is added, and K is a multiple of half
    a vector; `begin` (B, K) then gets that of every first step.

    A lane past its sequence's end, or without a sequence, has belief 0 and reads what the first one does.
    """
    steps, batch = normaliser.shape
    K = rows.shape[1]
    states = (K + 3) // 4 * 4
    lanes = width(rows)
    size = states * lanes
    wide = groups * lanes
    longest = lengths[first * wide]
    # The filtered beliefs, and the likelihoods divided by their normaliser, of every step.
    A = np.zeros((longest * groups + 1) * size, rows.dtype)
    E = np.zeros((longest * groups + 1) * size, rows.dtype)
    P = np.zeros(groups * size, rows.dtype)
    V = np.zeros(groups * size, rows.dtype)
    R = np.zeros(groups * size, rows.dtype)
    U = np.zeros(size, rows.dtype)
    W = np.zeros(size, rows.dtype)
    C = np.zeros(lanes, rows.dtype)
    # Both factors of the counts wait until there are enough. The stride is no power of two: otherwise the states
    # evict each other from the first-level cache.
    room = 32 * lanes
    stride = room + lanes
    left = np.zeros(stride * states, rows.dtype)
    right = np.zeros(stride * states, rows.dtype)
    waiting = 0
    sources = np.zeros(lanes, np.int64)
    apart = np.arange(lanes) * K
    ends = np.zeros(wide, np.int64)
    one = fill(rows, 1)
    tiny = fill(rows, np.finfo(rows.dtype).tiny)
    for block in range(first, last):
        base = block * wide
        count = min(wide, batch - base)
        longest = lengths[base]
        P[:] = 0
        ends[:] = 0
        live = (count + lanes - 1) // lanes
        for group in range(live):
            here = min(lanes, count - group * lanes)
            for lane in range(here):
                place = group * lanes + lane
                ends[place] = lengths[base + place]
                sources[lane] = order[base + place] * K
            take(predicted, sources, here, K, P[group * size : (group + 1) * size])
        for t in range(longest):
            while live > 0 and lengths[base + (live - 1) * lanes] <= t:
                live -= 1
            for group in range(live):
                here = min(lanes, count - group * lanes)
                start = group * size
                place = (t * groups + group) * size
                for lane in range(here):
                    b = base + group * lanes + lane
                    if lengths[b] <= t:
                        sources[lane] = sources[0]
                        if lengths[b] == t:
                            for k in range(K):
                                P[start + k * lanes + lane] = 0
                        continue
                    sources[lane] = (which[t, order[b]] if sharing else t * batch + order[b]) * K
                    if t + AHEAD < lengths[b]:
                        near = (which[t + AHEAD, order[b]] if sharing else (t + AHEAD) * batch + order[b]) * K
                        for k in range(0, K, lanes):
                            prefetch(rows, near + k)
                for lane in range(here, lanes):
                    sources[lane] = sources[0]
                take(rows, sources, lanes, K, E[place : place + size])
                c = zero(P)
                for k in range(K):
                    c = fma(load(P, start + k * lanes), load(E, place + k * lanes), c)
                store(C, 0, c)
                up = lift(c, tiny)
                inverse = ratio(one, mul(c, up))
                for k in range(K):
                    e = load(E, place + k * lanes)
                    store(A, place + k * lanes, mul(mul(mul(load(P, start + k * lanes), up), e), inverse))
                    store(E, place + k * lanes, mul(mul(e, up), inverse))
                for lane in range(here):
                    b = base + group * lanes + lane
                    if t < lengths[b]:
                        normaliser[t, order[b]] = C[lane]
                        # What follows an impossible observation is not explained, so it says nothing of what was.
                        if not C[lane] > 0:
                            ends[group * lanes + lane] = min(ends[group * lanes + lane], t)
            if t + 1 < longest:
                push_groups(live, states, panels, A, t * groups * size, P)
        V[:] = 0
        live = 0
        for t in range(longest - 1, -1, -1):
            while live * lanes < count and lengths[base + live * lanes] > t:
                live += 1
            for group in range(live):
                here = min(lanes, count - group * lanes)
                start = group * size
                place = (t * groups + group) * size
                before = place - groups * size
                active = 0
                for lane in range(here):
                    b = base + group * lanes + lane
                    if not sharing:
                        sources[lane] = (t * batch + order[b]) * K
                    elif lengths[b] > t:
                        sources[lane] = which[t, order[b]] * K
                        active += 1
                    if ends[group * lanes + lane] == t + 1:
                        for k in range(K):
                            V[start + k * lanes + lane] = weights[order[b]]
                # A state that cannot be has no say, however well it would explain what follows.
                if t > 0:
                    spot = waiting * lanes
                    for k in range(K):
                        a = load(A, place + k * lanes)
                        v = where_above(load(V, start + k * lanes), a, tiny)
                        store(U, k * lanes, mul(a, v))
                        r = mul(load(E, place + k * lanes), v)
                        store(R, start + k * lanes, r)
                    if counting:
                        for k in range(K):
                            store(right, k * stride + spot, load(R, start + k * lanes))
                            store(left, k * stride + spot, load(A, before + k * lanes))
                        waiting += 1
                    if waiting * lanes == room:
                        outer_sums(states, room, stride, left, right, counts)
                        waiting = 0
                else:
                    for k in range(K):
                        a = load(A, place + k * lanes)
                        store(U, k * lanes, mul(a, where_above(load(V, start + k * lanes), a, tiny)))
                if sharing:
                    put(U, apart, lanes, K, W)
                    add_rows(W, sources, active, K, sums)
                    if t == 0:
                        for lane in range(active):
                            for k in range(K):
                                begin[order[base + group * lanes + lane], k] = W[lane * K + k]
                else:
                    put(U, sources, here, K, sums)
            if t > 0:
                push_groups(live, states, transposed, R, 0, V)
        if not sharing:
            for place in range(count):
                b = order[base + place]
                for t in range(lengths[base + place // lanes * lanes], steps):
                    for k in range(K):
                        sums[(t * batch + b) * K + k] = 0
    if waiting > 0:
        outer_sums(states, waiting * lanes, stride, left, right, counts)
