"""Numba loops of `gated`; importing this module imports Numba."""

import numpy as np
from numba import njit

from ._simd import add, exp, fill, fma, larger, largest, load, mul, splat, store, sub, total, width, zero

OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy", "boundscheck": False}


@njit(**OPTIONS)
def push(first, last, probs, logits, gate, moved, normaliser):
    """Sequences first ... last - 1: moved[b] = sum over l of probs[b, l] softmax(logits[l] gate[b]).

    Rows are padded to whole vectors of lanes: the logits with a number whose exponential is 0, the gate with ones.
    """
    states = probs.shape[1]
    padded = logits.shape[1]
    lanes = width(logits)
    row = np.empty(padded, logits.dtype)
    one = np.empty(1, logits.dtype)
    for l in range(states):
        for b in range(first, last):
            top = fill(logits, logits.dtype.type(-np.inf))
            for k in range(0, padded, lanes):
                z = mul(load(logits, l * padded + k), load(gate, b * padded + k))
                store(row, k, z)
                top = larger(z, top)
            one[0] = largest(top)
            base = splat(one, 0)
            s = zero(logits)
            for k in range(0, padded, lanes):
                e = exp(sub(load(row, k), base))
                store(row, k, e)
                s = add(s, e)
            summed = total(s)
            normaliser[b, l] = one[0] + np.log(summed)
            one[0] = probs[b, l] / summed
            share = splat(one, 0)
            for k in range(0, padded, lanes):
                store(moved, b * padded + k, fma(load(row, k), share, load(moved, b * padded + k)))


@njit(**OPTIONS)
def push_backward(first, last, probs, logits, gate, normaliser, gradient, g_probs, g_logits, g_gate):
    """Rows first ... last - 1 of the table: their share of every gradient; `g_gate` is this thread's own."""
    batch = probs.shape[0]
    padded = logits.shape[1]
    lanes = width(logits)
    row = np.empty(padded, logits.dtype)
    one = np.empty(1, logits.dtype)
    for l in range(first, last):
        for b in range(batch):
            one[0] = normaliser[b, l]
            base = splat(one, 0)
            s = zero(logits)
            for k in range(0, padded, lanes):
                e = exp(sub(mul(load(logits, l * padded + k), load(gate, b * padded + k)), base))
                store(row, k, e)
                s = fma(e, load(gradient, b * padded + k), s)
            pulled = total(s)
            g_probs[b, l] = pulled
            one[0] = pulled
            middle = splat(one, 0)
            one[0] = probs[b, l]
            weight = splat(one, 0)
            for k in range(0, padded, lanes):
                e = mul(mul(load(row, k), weight), sub(load(gradient, b * padded + k), middle))
                g = load(gate, b * padded + k)
                store(g_logits, l * padded + k, fma(e, g, load(g_logits, l * padded + k)))
                w = load(logits, l * padded + k)
                store(g_gate, b * padded + k, fma(e, w, load(g_gate, b * padded + k)))
