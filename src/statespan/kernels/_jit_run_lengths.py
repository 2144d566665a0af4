"""Numba loops of run lengths; importing this module imports Numba.

A window is C steps (of B sequences), before which there were R rows. What each step says of the segments it may lie in
stands in `told` (C, B, C + R): first those that began in the window, by their age, then the rows from before.
"""

import math

import numpy as np

from ._simd import compiled


@compiled
def grow(first, last, told, log, age, leave, stay, keep, longest, begins, ahead, after, log_prob, lost):
    """Sequences first ... last - 1 through a window: every segment ends or goes on, is weighed, the likeliest are kept.

    `ahead` and `after`, what is known before and after y_t, are log-probabilities, ages and places in `told`, each
    (C, B, rows); `ahead` may be empty. Rows past those that there are have no probability.
    """
    steps, _, size = told.shape
    carried = size - steps
    ends = len(leave) - 1
    value, old, place = np.empty(size), np.empty(size, np.int64), np.empty(size, np.int64)  # the oldest first
    joint = np.empty(size)
    for b in range(first, last):
        count = carried
        for m in range(carried):
            r = carried - 1 - m
            value[m], old[m], place[m] = log[b, r], age[b, r], steps + r
        for t in range(steps):
            new = 0.0
            if t > 0 or not begins:
                top = -np.inf
                for m in range(count):
                    joint[m] = value[m] + leave[min(old[m], ends)]
                    top = max(top, joint[m])
                new = log_sum(joint, count, top)
            for m in range(count):
                value[m] += stay[min(old[m], ends)]
                old[m] += 1
                place[m] += place[m] < steps
            if count > 0 and old[0] >= longest:
                count = without(0, count, value, old, place)
            value[count], old[count], place[count] = new, 0, 0
            count += 1
            if len(ahead[0]):
                write(t, b, count, value, old, place, ahead)
            top = -np.inf
            for m in range(count):
                joint[m] = value[m] + told[t, b, place[m]]
                top = max(top, joint[m])
            share = log_sum(joint, count, top)
            if share > -np.inf:
                for m in range(count):
                    value[m] = joint[m] - share
            gone = 0.0
            while count > keep:
                least = 0
                for m in range(1, count - 1):
                    if value[m] < value[least]:
                        least = m
                gone += math.exp(value[least])
                count = without(least, count, value, old, place)
            if gone > 0:
                share += math.log1p(-gone)  # what is dropped is taken off the probability
                for m in range(count):
                    value[m] -= math.log1p(-gone)
            log_prob[t, b], lost[t, b] = share, gone
            write(t, b, count, value, old, place, after)


@compiled
def log_sum(values, count, top):
    """Log of the sum of exponentials; `top` is the largest."""
    if top == -np.inf:
        return top
    total = 0.0
    for m in range(count):
        total += math.exp(values[m] - top)
    return top + math.log(total)


@compiled
def without(gone, count, value, old, place):
    """The rows but one, and how many there are."""
    for m in range(gone, count - 1):
        value[m], old[m], place[m] = value[m + 1], old[m + 1], place[m + 1]
    return count - 1


@compiled
def write(t, b, count, value, old, place, into):
    """The youngest first, then rows of no probability, each a step older."""
    values, ages, places = into
    for r in range(values.shape[2]):
        m = count - 1 - r
        if m >= 0:
            values[t, b, r], ages[t, b, r], places[t, b, r] = value[m], old[m], place[m]
        else:
            values[t, b, r], ages[t, b, r], places[t, b, r] = -np.inf, old[0] - m, 0


@compiled
def weigh(first, last, log, age, leave, stay, given, out, left, stayed):
    """The derivative of sum over t of given[t] log p(y_1..t) by what each step says of each row, (T, B, R).

    Of log p(y_1..T) alone it is the probability of each row given everything. `left` and `stayed` collect the
    derivatives by the log-hazards.
    """
    steps, _, rows = log.shape
    ends = len(leave) - 1
    ended = np.empty(rows)
    for b in range(first, last):
        for t in range(steps - 1, -1, -1):
            out[t, b] = 0.0
            if t + 1 < steps:
                begun, r = 0.0, 0
                for n in range(rows):
                    weight = out[t + 1, b, n]
                    if weight == 0.0:
                        continue
                    if age[t + 1, b, n] == 0:
                        begun = weight
                        continue
                    while age[t, b, r] < age[t + 1, b, n] - 1:
                        r += 1
                    out[t, b, r] = weight
                    stayed[min(age[t, b, r], ends)] += weight
                if begun != 0.0:
                    top = -np.inf
                    for r in range(rows):
                        ended[r] = log[t, b, r] + leave[min(age[t, b, r], ends)]
                        top = max(top, ended[r])
                    total = log_sum(ended, rows, top)
                    for r in range(rows):
                        if ended[r] > -np.inf:
                            weight = begun * math.exp(ended[r] - total)
                            out[t, b, r] += weight
                            left[min(age[t, b, r], ends)] += weight
            if given[t, b] != 0.0:
                for r in range(rows):
                    out[t, b, r] += given[t, b] * math.exp(log[t, b, r])


@compiled
def lengthen(first, last, told, rows, leave, stay, keep, longest, final, origin, best):
    """Sequences first ... last - 1 through a window: the k best segmentations up to each step, by their last segment.

    `rows`, scores (B, N, k), ages and places in `told` (B, N) and how many there are (B,), hold what goes on, the
    oldest first. `origin`, ages and ranks (C, B, k), says what ended where a segment begins, and `best`, scores, ages
    and ranks (B, k), which are the best at the step `final`, counted from the window's first.
    """
    scores, old, places, counts = rows
    steps = told.shape[0]
    paths = scores.shape[2]
    ends = len(leave) - 1
    values, ages, ranks = np.empty(paths), np.empty(paths, np.int64), np.empty(paths, np.int64)
    for b in range(first, last):
        score, age, place, count = scores[b], old[b], places[b], counts[b]
        for t in range(steps):
            values[:] = -np.inf
            if count == 0:
                values[0] = 0.0
            else:
                ages[:], ranks[:] = age[count - 1], 0
                for m in range(count - 1, -1, -1):  # of equals the younger
                    for i in range(paths):
                        if not insert(score[m, i] + leave[min(age[m], ends)], age[m], i, values, ages, ranks):
                            break
                origin[0][t, b], origin[1][t, b] = ages, ranks
            for m in range(count):
                score[m] += stay[min(age[m], ends)]
                age[m] += 1
                place[m] += place[m] < steps
            if count > 0 and age[0] >= longest:
                count = without(0, count, score, age, place)
            score[count], age[count], place[count] = values, 0, 0
            count += 1
            for m in range(count):
                score[m] += told[t, b, place[m]]
            while count > keep:
                least = 0
                for m in range(1, count - 1):
                    if score[m, 0] < score[least, 0]:
                        least = m
                count = without(least, count, score, age, place)
            if t == final[b]:
                values[:] = -np.inf
                ages[:], ranks[:] = age[count - 1], 0
                for m in range(count - 1, -1, -1):
                    for i in range(paths):
                        if not insert(score[m, i], age[m], i, values, ages, ranks):
                            break
                best[0][b], best[1][b], best[2][b] = values, ages, ranks
        counts[b] = count


@compiled
def insert(way, age, rank, values, ages, ranks):
    """Into the best so far, the largest first; whether it is among them."""
    at = len(values)
    while at > 0 and way > values[at - 1]:
        at -= 1
    for i in range(len(values) - 1, at, -1):
        values[i], ages[i], ranks[i] = values[i - 1], ages[i - 1], ranks[i - 1]
    if at < len(values):
        values[at], ages[at], ranks[at] = way, age, rank
        return True
    return False


@compiled
def trace_back(final, ages, ranks, before, place, path):
    """From the last steps' ages and ranks (B, k) the run lengths of every step, `path` (T, B, k)."""
    batch, paths = ages.shape
    for b in range(batch):
        for i in range(paths):
            age, rank = ages[b, i], ranks[b, i]
            for t in range(final[b], -1, -1):
                path[t, b, i] = age
                if age == 0:
                    age, rank = before[t, b, rank], place[t, b, rank]
                else:
                    age -= 1
