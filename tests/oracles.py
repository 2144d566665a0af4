"""Answers by brute force: every state path, every symbol in a gap, dense joint normals, the paper's equations in loops.

Nothing here uses the library's inference; it reads parameters, and writes each formula once more as it is printed.
"""

import itertools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from laws import laws

# ------------------------------------------------------------------------------------------ finite states


def all_rows(values: int, length: int) -> Tensor:
    """Every word of `length` letters 0..values-1: (values^length, length)."""
    rows = list(itertools.product(range(values), repeat=length))
    return torch.tensor(rows, dtype=torch.long).view(len(rows), length)


def emission_probs(model: Any) -> Tensor:
    """p(v | k) as (K, V): a softmax over the vocabulary for each state."""
    table, emission = model.emission.table, model.emission
    logits = table.weight if table.bias is None else table.weight + table.bias[:, None]
    if type(emission).__name__ == "EmbeddedCategorical":
        logits = table.weight @ emission.role(emission.vectors.weight).T + table.bias[:, None]
        classes = torch.arange(emission.states) * emission.classes // emission.states
        logits = logits.masked_fill(emission.owner[:, None] != classes, -torch.inf)
    return logits.softmax(0).T


def features(model: Any, feature: Any) -> Tensor:
    """What each symbol feeds, (V, m): the embedding, or the column of the HMM's emission (equations 14, 24)."""
    table = feature.table
    if type(feature).__name__ == "RawFeature":
        return table.weight
    logits = table.weight if table.bias is None else table.weight + table.bias[:, None]
    return logits.softmax(0)


def moved_rows(move: Any, e: Tensor) -> Tensor:
    """Equations 2, 22, 23 and 26, for features e (V, m): (V, K, K)."""
    kind = type(move).__name__
    if kind == "Dense":
        return move.logits.softmax(-1).expand(len(e), -1, -1)
    if kind == "RowsAddition":
        return (move.logits + (e @ move.input.weight.T + move.input.bias)[:, None]).softmax(-1)
    if kind == "RowsGate":
        return (move.logits * (e @ move.input.weight.T + move.input.bias).sigmoid()[:, None]).softmax(-1)
    states = len(move.logits)
    tensor = move.tensor.view(states, states, states)
    return (torch.einsum("lkj,vj->vlk", tensor, e) + move.logits).softmax(-1)


def written_out(transition: Any) -> Tensor:
    """A, (K, K), entry by entry from the parameters."""
    kind = type(transition).__name__
    if kind == "LowRank":
        return transition.into.softmax(-1) @ transition.out.softmax(-1)
    if kind == "EmbeddedMatrix":
        s = transition.vectors.weight
        return (transition.source(s) @ (s @ transition.target.weight.T).T + transition.bias).softmax(-1)
    if kind == "Sparse":
        rows = [[0.0 * transition.logits.sum()] * transition.states for _ in range(transition.states)]
        for i in range(transition.states):
            mine = [e for e, (a, _) in enumerate(transition.edges.tolist()) if a == i]
            total = transition.logits[mine].exp().sum()
            for e in mine:
                rows[i][int(transition.edges[e, 1])] = transition.logits[e].exp() / total
        return torch.stack([torch.stack(row) for row in rows])
    if transition.fixed is None:
        return transition.logits.softmax(-1)
    rows = []
    for logits, fixed in zip(transition.logits, transition.fixed.to(transition.logits), strict=True):
        free = fixed.isnan()
        weight = torch.where(free, logits.exp(), 0.0)
        left = 1 - fixed[~free].sum()
        rows.append(torch.where(free, weight / weight.sum().clamp_min(1e-300) * left, fixed))
    return torch.stack(rows)


def first_states(initial: Any, table: Tensor) -> Tensor:
    """p(z_1), (K,); of a stationary start by moving on until nothing changes."""
    if hasattr(initial, "logits"):
        return initial.logits.softmax(-1)
    return torch.linalg.matrix_power(table, 2**12)[0]


class Finite(NamedTuple):
    """A finite chain as plain tables.

    Args:
        initial: (K,).
        tables: (V, K, K), the move after each symbol; (1, K, K) where the symbol does not matter.
        log_emission: from y (T, ...) and what of it is there to (T, K).
        symbols: V, or None.
    """

    initial: Tensor
    tables: Tensor
    log_emission: Any
    symbols: int | None


def finite(model: Any) -> Finite:
    """The tables of a finite model, made from its parameters."""
    transition = model.transition
    if transition.autoregressive:
        tables = moved_rows(transition.move, features(model, transition.feature))
    else:
        tables = written_out(transition)[None]
    initial = first_states(model.initial, tables[0])
    if model.emission.event.symbols is not None:
        log_b = emission_probs(model).log()
        return Finite(initial, tables, lambda y, seen: log_b.T[y], log_b.shape[1])
    each = laws(model.emission)

    def log_density(y: Tensor, seen: Tensor) -> Tensor:
        seen = seen if seen.dim() == y.dim() else seen[..., None].expand_as(y)
        rows = zip(y.double().numpy(), seen.numpy(), strict=True)
        return torch.tensor([[law.log(*row) for law in each] for row in rows], dtype=torch.float64)

    return Finite(initial, tables, log_density, None)


class Enumerated(NamedTuple):
    """Every way it can have been: log p of each fill of the gaps (F, T) and each path (P, T), (F, P)."""

    fills: Tensor
    paths: Tensor
    log: Tensor

    @property
    def log_prob(self) -> Tensor:
        """Log p(y)."""
        return self.log.flatten().logsumexp(0)

    @property
    def weights(self) -> Tensor:
        """p(fill, path | y), (F, P)."""
        return (self.log - self.log_prob).exp()

    def smoothed(self, states: int) -> Tensor:
        """p(z_t | y), (T, K)."""
        w = self.weights.sum(0)
        return torch.stack([torch.zeros(states, dtype=w.dtype).index_add(0, z, w) for z in self.paths.T])

    def pairs(self, states: int) -> Tensor:
        """Sum over t of p(z_t, z_{t+1} | y), (K, K)."""
        w, total = self.weights.sum(0), torch.zeros(states * states, dtype=self.log.dtype)
        for a, b in itertools.pairwise(self.paths.T):
            total = total.index_add(0, a * states + b, w)
        return total.view(states, states)

    def symbols(self, count: int) -> Tensor:
        """p(y_t = v | the rest), (T, V)."""
        w = self.weights.sum(1)
        return torch.stack([torch.zeros(count, dtype=w.dtype).index_add(0, y, w) for y in self.fills.T])


def enumerate_finite(chain: Finite, y: Tensor, seen: Tensor, labels: Tensor | None = None) -> Enumerated:
    """All fills and paths of one sequence.

    Args:
        chain: the tables.
        y: (T,) symbols or (T, D).
        seen: (T,) or (T, D), what is there.
        labels: (T,) known states, -1 unknown.
    """
    length, states = len(y), len(chain.initial)
    paths = all_rows(states, length)
    if labels is not None:
        paths = paths[((labels < 0) | (paths == labels)).all(-1)]
    log_first, log_tables = chain.initial.log(), chain.tables.log()
    if chain.symbols is None:
        fills = y[None]
        emitted = chain.log_emission(y, seen)[None]
    else:
        gaps = (~seen).nonzero()[:, 0]
        fills = y.repeat(chain.symbols ** len(gaps), 1)
        fills[:, gaps] = all_rows(chain.symbols, len(gaps))
        emitted = chain.log_emission(fills, None)  # (F, T, K)
    log = log_first[paths[:, 0]][None] + emitted[:, 0][:, paths[:, 0]]
    for t in range(1, length):
        after = fills[:, t - 1] if len(log_tables) > 1 else torch.zeros(len(fills), dtype=torch.long)
        log = log + log_tables[after][:, paths[:, t - 1], paths[:, t]] + emitted[:, t][:, paths[:, t]]
    return Enumerated(fills, paths, log)


# --------------------------------------------------------------------------------------- linear Gaussian


class Joint(NamedTuple):
    """The normal distribution of all states and all observations of T steps, stacked: T D numbers, then T E."""

    mean: Tensor
    covariance: Tensor
    length: int
    state: int
    observed: int


def joint_normal(model: Any, length: int) -> Joint:
    """The dense joint of a linear Gaussian model, built by following every noise to everything it reaches."""
    a, b, q = model.transition.matrix, model.transition.offset, model.transition.covariance
    c, d, r = model.emission.matrix, model.emission.offset, model.emission.covariance
    start = model.initial.scale.tril()
    p = start @ start.T
    states, outputs = len(a), len(c)
    mean = [model.initial.mean]
    for _ in range(length - 1):
        mean.append(a @ mean[-1] + b)
    powers = [torch.eye(states, dtype=a.dtype)]
    for _ in range(length - 1):
        powers.append(a @ powers[-1])
    # z_t = sum over s <= t of A^(t-s) w_s, with w_0 ~ P and w_s ~ Q.
    reach = a.new_zeros(length * states, length * states)
    for t in range(length):
        for s in range(t + 1):
            reach[t * states : (t + 1) * states, s * states : (s + 1) * states] = powers[t - s]
    noise = torch.block_diag(p, *[q] * (length - 1))
    zz = reach @ noise @ reach.T
    big_c = torch.block_diag(*[c] * length)
    both = torch.cat([torch.eye(length * states, dtype=a.dtype), big_c])
    covariance = both @ zz @ both.T
    at = length * states
    covariance[at:, at:] += torch.block_diag(*[r] * length)
    z_mean = torch.cat(mean)
    means = torch.cat([z_mean, big_c @ z_mean + d.repeat(length)])
    return Joint(means, covariance, length, states, outputs)


def condition(joint: Joint, y: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log p(y there), and the mean and covariance of everything given it.

    Args:
        joint: of T steps.
        y: (T, E).
        seen: (T, E).
    """
    at = joint.length * joint.state
    there = torch.cat([torch.zeros(at, dtype=torch.bool), seen.flatten()])
    value = y.flatten()[seen.flatten()]
    known = joint.covariance[there][:, there]
    off = value - joint.mean[there]
    log = -0.5 * (off @ torch.linalg.solve(known, off) + known.logdet() + len(off) * math.log(2 * math.pi))
    gain = torch.linalg.solve(known, joint.covariance[there]).T
    return log, joint.mean + gain @ off, joint.covariance - gain @ joint.covariance[there]


# ------------------------------------------------------------------------------------------- the ladder


def next_symbols(model: Any, name: str, y: Tensor) -> Tensor:
    """Log p(y_t = v | y_<t) of a rung, (T, V), step by step as the paper prints it; `y` is (T,)."""
    initial, cell, score = model.initial, model.transition, model.emission
    table = score.table
    e_raw = table.weight  # one row a symbol
    e_soft = (table.weight + table.bias[:, None]).softmax(0)  # p(v | k)
    move = cell.move
    fed_raw = None if cell.feature is None else cell.feature.table.weight

    def w(x: Tensor) -> Tensor:
        return move.weight.T @ x

    def u(v: int) -> Tensor:
        return move.input.weight @ fed_raw[v] + (0 if move.input.bias is None else move.input.bias)

    def bayes(c: Tensor, v: int) -> Tensor:
        s = e_soft[v] * c
        return s / s.sum()

    def softmax_out(c: Tensor) -> Tensor:
        return (e_raw @ c + table.bias).softmax(0)

    def mix(c: Tensor) -> Tensor:
        return e_soft @ c

    def mix_normalised(c: Tensor) -> Tensor:
        return e_soft @ (c / c.sum())

    def torch_cell(c: Any, v: int) -> Any:
        many = tuple(x[None] for x in c) if isinstance(c, tuple) else c[None]
        new = move.cell(fed_raw[v][None], many)
        return tuple(x[0] for x in new) if isinstance(c, tuple) else new[0]

    def jordan(c: Tensor, v: int) -> Tensor:
        return (move.input.weight @ (fed_raw[v] + c) + move.input.bias).sigmoid()

    steps = {
        "hmm/late-transition": (lambda c, v: (w(bayes(c, v)) + move.bias).softmax(0), mix),  # 27
        "hmm/late-emission": (lambda c, v: move.logits.softmax(-1).T @ bayes(c, v), softmax_out),  # 16, 28
        "hmm/late-both": (lambda c, v: (w(bayes(c, v)) + move.bias).softmax(0), softmax_out),  # 27, 28
        "hmm/sigmoid": (lambda c, v: (w(bayes(c, v)) + move.bias).sigmoid(), mix_normalised),  # 29, 30
        "hmm/sigmoid+late-emission": (lambda c, v: (w(bayes(c, v)) + move.bias).sigmoid(), softmax_out),  # 29, 28
        "elman/softmax+hmm-emission": (lambda c, v: (w(c) + u(v) + move.bias).softmax(0), mix),  # 31, 32
        "elman/hmm-emission": (lambda c, v: (w(c) + u(v) + move.bias).sigmoid(), mix_normalised),  # 33, 34
        "elman/softmax": (lambda c, v: (w(c) + u(v) + move.bias).softmax(0), softmax_out),  # 35
        "elman/normalise-before-emit": (
            lambda c, v: w(c.sigmoid()) + u(v),
            lambda c: softmax_out(c.softmax(0)),
        ),  # 36, 37
        "elman/multiplicative-one-matrix": (
            lambda c, v: (w(c * fed_raw[v]) + move.bias).sigmoid(),
            softmax_out,
        ),  # 39
        "elman/multiplicative": (lambda c, v: (w(c) * u(v)).sigmoid(), softmax_out),  # 38
        "elman": (lambda c, v: (w(c) + u(v) + move.bias).sigmoid(), softmax_out),  # 19-21
        "bigram": (lambda c, v: u(v), softmax_out),
        "jordan": (jordan, softmax_out),
        "gru": (torch_cell, softmax_out),
        "lstm": (torch_cell, lambda c: softmax_out(c[0])),
    }
    step, out = steps[name]
    state = initial.start(1)
    state = tuple(x[0] for x in state) if isinstance(state, tuple) else state[0]
    rows, before = [], initial.symbol
    for v in y.tolist():
        state = step(state, before)
        rows.append(out(state).log())
        before = v
    return torch.stack(rows)
