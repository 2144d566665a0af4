"""The exchange of words between classes, compiled."""

import numba
import numpy as np

OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy", "boundscheck": False}


@numba.njit(**OPTIONS)
def _grown(before, more, table):
    """How n log n grows from one count to a larger one."""
    return table[before + more] - table[before]


@numba.njit(**OPTIONS)
def _take(pairs, c, by, near, found, own, sign):
    """Add a word's pairs to those of class c, or take them off."""
    for side in range(2):
        for i in range(found[side]):
            x = near[side, i]
            pairs[side, c, x] += sign * by[side, x]
            pairs[1 - side, x, c] += sign * by[side, x]
    pairs[0, c, c] += sign * own
    pairs[1, c, c] += sign * own


@numba.njit(**OPTIONS)
def exchange(
    words,
    edges,
    others,
    counts,
    selves,
    single,
    owner,
    sizes,
    pairs,
    totals,
    table,
):
    """Move each word to the class where the pairs of classes tell most; how many moved.

    Args:
        words: the order.
        edges: (2, V + 1) where a word's followers, and its leaders, begin.
        others: (2, P) who they are, itself left out.
        counts: (2, P) how often.
        selves: (V,) how often a word follows itself.
        single: (V,) how often it stands at all.
        owner: (V,) each word's class; changed.
        sizes: (C,) words of each class; changed.
        pairs: (2, C, C) how often one class follows another, [1, b, a] being [0, a, b]; changed.
        totals: (C,) how often a word of the class stands; changed.
        table: n log n.
    """
    classes = len(sizes)
    by = np.zeros((2, classes), np.int64)
    near = np.zeros((2, classes), np.int64)
    found = np.zeros(2, np.int64)
    gains = np.zeros(classes)
    moved = 0
    for w in words:
        old = owner[w]
        if sizes[old] == 1:
            continue
        for side in range(2):
            by[side] = 0
            found[side] = 0
            for at in range(edges[side, w], edges[side, w + 1]):
                c = owner[others[side, at]]
                if by[side, c] == 0:
                    near[side, found[side]] = c
                    found[side] += 1
                by[side, c] += counts[side, at]
        _take(pairs, old, by, near, found, selves[w], -1)
        totals[old] -= single[w]
        for c in range(classes):
            gains[c] = _grown(pairs[0, c, c], by[0, c] + by[1, c] + selves[w], table)
            gains[c] -= 2 * _grown(totals[c], single[w], table)
        for side in range(2):
            for i in range(found[side]):
                x = near[side, i]
                row, more = pairs[1 - side, x], by[side, x]
                kept = gains[x]
                for c in range(classes):
                    gains[c] += table[row[c] + more] - table[row[c]]
                gains[x] = kept  # a class with itself is counted above
        best = old
        for c in range(classes):
            if gains[c] > gains[best] + 1e-9:
                best = c
        _take(pairs, best, by, near, found, selves[w], 1)
        totals[best] += single[w]
        if best != old:
            owner[w] = best
            sizes[old] -= 1
            sizes[best] += 1
            moved += 1
    return moved
