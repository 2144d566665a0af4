"""Numba loops of `normalised_gather` and `linear_cross_entropy`; importing this module imports Numba."""

import numpy as np

from ._simd import (
    add,
    compiled,
    exp,
    fill,
    finite,
    larger,
    largest,
    load,
    load_some,
    mul,
    splat,
    store,
    store_some,
    sub,
    total,
    width,
    zero,
)

#: Rows of one block: their maximum is taken first, then the sum, while they are still in the cache.
BLOCK = 16


@compiled
def column_sums(first, last, weight, bias, biased, peak, sums):
    """Per column of rows first ... last - 1 the maximum and, in float64, the sum of exp(weight + bias - maximum)."""
    K = weight.shape[1]
    lanes = width(weight)
    size = (K + lanes - 1) // lanes * lanes
    high = np.full(size, -np.inf, weight.dtype)
    part = np.zeros(lanes, weight.dtype)
    result = np.zeros(size, np.float64)
    lowest = weight.dtype.type(-np.inf)
    for start in range(first, last, BLOCK):
        stop = min(last, start + BLOCK)
        for k in range(0, K, lanes):
            rest = min(lanes, K - k)
            before = load(high, k)
            top = before
            for v in range(start, stop):
                x = load(weight, v * K + k) if rest == lanes else load_some(weight, v * K + k, rest, lowest)
                if biased:
                    x = add(x, splat(bias, v))
                top = larger(x, top)
            base = finite(top)
            s = zero(weight)
            for v in range(start, stop):
                x = load(weight, v * K + k) if rest == lanes else load_some(weight, v * K + k, rest, lowest)
                if biased:
                    x = add(x, splat(bias, v))
                s = add(s, exp(sub(x, base)))
            store(high, k, top)
            store(part, 0, exp(sub(before, base)))
            for i in range(lanes):
                result[k + i] *= part[i]
            store(part, 0, s)
            for i in range(lanes):
                result[k + i] += part[i]
    for k in range(K):
        peak[k] = high[k]
        sums[k] = result[k]


@compiled
def gather(first, last, weight, bias, biased, normaliser, index, result):
    """Rows first ... last - 1 of the result: weight[index] + bias[index] - normaliser."""
    K = weight.shape[1]
    for n in range(first, last):
        v = index[n]
        b = bias[v] if biased else weight.dtype.type(0)
        for k in range(K):
            result[n, k] = weight[v, k] + (b - normaliser[k])


@compiled
def gather_backward(first, last, weight, bias, biased, normaliser, order, edges, gradient, sums, g_weight, g_bias):
    """Rows first ... last - 1 of the gradient; order[edges[v]:edges[v+1]] are the places where index is v."""
    K = weight.shape[1]
    lanes = width(weight)
    nothing = weight.dtype.type(0)
    for v in range(first, last):
        row = zero(weight)
        for k in range(0, K, lanes):
            rest = min(lanes, K - k)
            if rest == lanes:
                x = sub(load(weight, v * K + k), load(normaliser, k))
                s = load(sums, k)
            else:
                x = sub(load_some(weight, v * K + k, rest, nothing), load_some(normaliser, k, rest, nothing))
                s = load_some(sums, k, rest, nothing)
            if biased:
                x = add(x, splat(bias, v))
            g = sub(zero(weight), mul(exp(x), s))
            for i in range(edges[v], edges[v + 1]):
                place = order[i] * K + k
                if rest == lanes:
                    g = add(g, load(gradient, place))
                else:
                    g = add(g, load_some(gradient, place, rest, nothing))
            if rest == lanes:
                store(g_weight, v * K + k, g)
            else:
                store_some(g_weight, v * K + k, g, rest)
            row = add(row, g)
        if biased:
            g_bias[v] = total(row)


@compiled
def softmax_rows(first, last, scores, bias, biased, index, result, inverse):
    """In rows first ... last - 1: scores become exp(scores + bias - maximum), unnormalised.

    `result` is log softmax at the index, `inverse` 1 / the row's sum. Row n of the scores belongs to
    index[n], result[n], inverse[n].
    """
    V = scores.shape[1]
    lanes = width(scores)
    whole = V // lanes * lanes
    rest = V - whole
    lowest = scores.dtype.type(-np.inf)
    one = np.empty(1, scores.dtype)
    part = np.empty(lanes, scores.dtype)
    for n in range(first, last):
        start = n * V
        v = index[n]
        picked = scores[n, v] + bias[v] if biased else scores[n, v]
        top = fill(scores, lowest)
        second = top
        v = 0
        while v + 2 * lanes <= V:
            a = load(scores, start + v)
            b = load(scores, start + v + lanes)
            if biased:
                a = add(a, load(bias, v))
                b = add(b, load(bias, v + lanes))
            top = larger(a, top)
            second = larger(b, second)
            v += 2 * lanes
        while v < V:
            left = min(lanes, V - v)
            a = load_some(scores, start + v, left, lowest)
            if biased:
                a = add(a, load_some(bias, v, left, lowest))
            top = larger(a, top)
            v += lanes
        high = largest(larger(top, second))
        one[0] = high if np.isfinite(high) else 0
        base = splat(one, 0)
        # Partial sums of at most 64 terms a lane, then float64.
        summed = 0.0
        s = zero(scores)
        terms = 0
        for v in range(0, whole, lanes):
            a = load(scores, start + v)
            if biased:
                a = add(a, load(bias, v))
            a = exp(sub(a, base))
            store(scores, start + v, a)
            s = add(s, a)
            terms += 1
            if terms == 64:
                store(part, 0, s)
                for i in range(lanes):
                    summed += part[i]
                s = zero(scores)
                terms = 0
        if rest:
            a = load_some(scores, start + whole, rest, lowest)
            if biased:
                a = add(a, load_some(bias, whole, rest, lowest))
            a = exp(sub(a, base))
            store_some(scores, start + whole, a, rest)
            s = add(s, a)
        store(part, 0, s)
        for i in range(lanes):
            summed += part[i]
        result[n] = np.float64(picked) - np.float64(one[0]) - np.log(summed)
        inverse[n] = 1.0 / summed


@compiled
def scale_rows(rows, factors, result):
    """result[n] = factors[n] rows[n]."""
    for n in range(rows.shape[0]):
        for k in range(rows.shape[1]):
            result[n, k] = factors[n] * rows[n, k]


@compiled
def finish_hidden(first, last, shares, gradient, index, weight, result):
    """result[n] = shares[n] result[n] + gradient[n] weight[index[n]] for rows first ... last - 1."""
    for n in range(first, last):
        v = index[n]
        for k in range(weight.shape[1]):
            result[n, k] = shares[n] * result[n, k] + gradient[n] * weight[v, k]


@compiled
def finish_weight(first, last, gradient, index, hidden, result, g_bias, biased):
    """Adds gradient[n] hidden[n] to row index[n] of the result, where that is one of first ... last - 1."""
    for n in range(hidden.shape[0]):
        v = index[n]
        if first <= v < last:
            for k in range(hidden.shape[1]):
                result[v, k] += gradient[n] * hidden[n, k]
            if biased:
                g_bias[v] += gradient[n]
