"""Rows of probabilities of which some entries are held and some are tied."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from statespan.errors import StatespanError


def held_entries(fixed: Any, shape: tuple[int, ...], name: str) -> Tensor:
    """Check what is held of some rows of probabilities; NaN where an entry is free, float64.

    Args:
        fixed: `shape`; a number is held, NaN or None is free.
        shape: of the probabilities; the last axis sums to one.
        name: what to call it in an error.

    Raises:
        StatespanError: another shape, a number outside [0, 1], or a row that cannot sum to one.
    """
    fixed = as_fixed(fixed)
    if tuple(fixed.shape) != shape:
        raise StatespanError(
            f"{name} is {tuple(fixed.shape)} where {shape} is expected; put NaN where an entry is free"
        )
    free = fixed.isnan()
    if bool(((fixed < 0) | (fixed > 1)).any()):
        raise StatespanError(f"{name} holds {_outside(fixed):g}; a probability lies in 0..1")
    total, some = fixed.nan_to_num(0.0).sum(-1), free.any(-1)
    wrong = torch.where(some, total > 1 - 1e-9, (total - 1).abs() > 1e-4)
    if bool(wrong.any()):
        row = int(wrong.reshape(-1).nonzero()[0])
        told = float(total.reshape(-1)[row])
        leaves = "which leaves nothing for its free entries" if bool(some.reshape(-1)[row]) else "and not to 1"
        raise StatespanError(f"{name}: what is held of row {row} sums to {told:.6g}, {leaves}")
    return torch.where(free.any(-1, keepdim=True), fixed, fixed / total[..., None].clamp_min(1e-300))


def as_fixed(x: Any) -> Tensor:
    """Numbers in float64, NaN where None stands."""
    if isinstance(x, (list, tuple)):
        x = _without_none(x)
    return torch.as_tensor(x, dtype=torch.float64)


def _without_none(x: Any) -> Any:
    if isinstance(x, (list, tuple)):
        return [_without_none(item) for item in x]
    return math.nan if x is None else x


def _outside(fixed: Tensor) -> float:
    return float(fixed[(fixed < 0) | (fixed > 1)][0])


def rearranged(table: Tensor, order: Tensor) -> Tensor:
    """A table (..., K, K) with its states in another order."""
    return table[..., order, :][..., order]


def alike(given: Iterable[Tensor | None], move: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> bool:
    """Whether all that is given of probabilities (priors, held entries) stays what it is when states change places."""
    every = [x.nan_to_num(-1.0).expand(shape) for x in given if x is not None]
    return all(torch.equal(x, move(x)) for x in every)


def shared_softmax(logits: Tensor, fixed: Tensor | None) -> Tensor:
    """Softmax over the free entries of each row, times what the held ones leave; the held ones as they are."""
    if fixed is None:
        return logits.softmax(-1)
    fixed = fixed.to(logits)
    held = ~fixed.isnan()
    values = fixed.nan_to_num(0.0)
    rest = torch.where(held.all(-1, keepdim=True), 0.0, 1 - values.sum(-1, keepdim=True))
    # A row without a free entry keeps its logits, so that no softmax is taken of nothing; `rest` is zero there.
    open_row = ~held.all(-1, keepdim=True)
    return logits.masked_fill(held & open_row, -torch.inf).softmax(-1) * rest + values


def shares(counts: Tensor, old: Tensor, fixed: Tensor | None) -> Tensor:
    """The rows that maximise sum of counts times log p; without counts a row stays, a zero stays, the held stay."""
    possible = old > 0
    rest: Any = 1.0
    if fixed is not None:
        fixed = fixed.to(old)
        possible = possible & fixed.isnan()
        rest = 1 - fixed.nan_to_num(0.0).sum(-1, keepdim=True)
    counts = torch.where(possible, counts, 0.0)
    total = counts.sum(-1, keepdim=True)
    new = torch.where(total > 0, counts / total.clamp_min(1e-300) * rest, old)
    return new if fixed is None else torch.where(fixed.isnan(), new, fixed)


class Ties:
    r"""Entries of a stochastic matrix that are equal: p = argmax of sum over c of w_c log p_c, rows summing to one.

    c runs over the different entries and w_c > 0 are free, so every stochastic matrix with these ties is reached. Where
    no tie joins two different rows this is a softmax; else w_c / p_c is a sum of one multiplier a row, and Newton's
    method finds those. It is its own M-step: expected counts are the w that maximise.

    Args:
        labels: (K,) integers, rows of one label are equal; or (K, K), entries of one label are equal, -1 for none.
        fixed: (K, K), what is held, NaN where free; or None.
        name: what to call it in an error.

    Raises:
        StatespanError: tied entries of which only some are held, or ties that no stochastic matrix has.

    Source:
        Boyd and Vandenberghe, Convex Optimization 2004, section 10.2 (the dual and Newton's method).
    """

    def __init__(self, labels: Any, states: int, fixed: Tensor | None, name: str):
        labels = torch.as_tensor(labels, dtype=torch.long)
        if tuple(labels.shape) not in ((states,), (states, states)):
            raise StatespanError(f"{name} is {tuple(labels.shape)}; give one label a row or one an entry")
        self.labels = labels
        each = torch.arange(states * states).view(states, states)
        if labels.dim() == 1:
            first = torch.tensor([int((labels == label).nonzero()[0]) for label in labels])
            each = each[first]
        else:
            each = torch.where(labels < 0, each, states * states + labels)
        held = torch.zeros_like(each, dtype=torch.bool) if fixed is None else ~fixed.isnan()
        values = torch.zeros(states, states, dtype=torch.float64) if fixed is None else fixed.nan_to_num(0.0)
        self.held, self.values = held, values
        names, which = torch.unique(each[~held], return_inverse=True)
        if bool(torch.isin(names, each[held]).any()):
            raise StatespanError(f"{name}: an entry that is held is tied to one that is free; hold both or none")
        self.size = len(names)
        self.which = torch.full_like(each, self.size)
        self.which[~held] = which
        inside = torch.nn.functional.one_hot(self.which, self.size + 1).sum(1)[:, :-1].double()
        rest = 1 - values.sum(-1)
        some = inside.any(-1)
        rows, index = torch.unique(inside[some], dim=0, return_inverse=True)
        self.inside, self.rest = rows, torch.zeros(len(rows), dtype=torch.float64).index_copy(0, index, rest[some])
        self.apart = bool((rows.bool().sum(0) <= 1).all())
        alike = (self.rest[index] - rest[some]).abs().max() < 1e-9 if len(rows) else True
        if not alike or (self.solve(torch.zeros(self.size).double()) @ rows.mT - self.rest).abs().max() > 1e-6:
            raise StatespanError(f"{name}: no matrix whose rows sum to one has these ties; check the labels")

    def solve(self, logits: Tensor) -> Tensor:
        """Each different entry, (C,), from log w."""
        w = (logits - logits.detach().amax()).exp() if len(logits) else logits
        inside, rest = self.inside.to(w), self.rest.to(w)
        if self.apart:
            total = inside.bool().to(w) @ w  # one row alone has entry c: p_c = rest w_c / (times of c in it x total)
            return (w / inside.sum(0)) * ((rest / total) @ inside.bool().to(w))
        return _balanced(w / w.detach().sum(), inside, rest)

    def probs(self, logits: Tensor) -> Tensor:
        """The whole matrix, (K, K)."""
        p = torch.cat([self.solve(logits), logits.new_zeros(1)])
        return torch.where(self.held.to(logits.device), self.values.to(logits), p[self.which.to(logits.device)])

    def sums(self, counts: Tensor) -> Tensor:
        """Counts (K, K) added up over the entries that are tied, (C,)."""
        which = self.which.to(counts.device).flatten()
        return counts.new_zeros(self.size + 1).index_add(0, which, counts.flatten())[:-1]

    def weights(self, counts: Tensor, old: Tensor) -> Tensor:
        """The log w that maximises sum of counts times log A, from log w `old`; a zero stays."""
        sums = torch.where(old.isneginf(), 0.0, self.sums(counts))
        p = self.solve(old)
        inside = self.inside.to(sums)
        lacking = (inside @ sums <= 0).to(sums) @ inside.bool().to(sums) if self.apart else torch.zeros_like(sums)
        # No entry without counts becomes an exact zero where others depend on it: it keeps a trace of what it was.
        trace = 0.0 if self.apart else 1e-13 * sums.sum() * p
        return torch.where(lacking > 0, old, torch.maximum(sums, torch.as_tensor(trace).to(sums)).log())


def _balanced(w: Tensor, inside: Tensor, rest: Tensor) -> Tensor:
    """Argmax of sum of w log p under inside p = rest, by Newton's method on one multiplier a row."""
    with torch.no_grad():
        many = inside.double()
        m = (w.double().sum() / rest.double().sum()) * torch.ones(len(rest), dtype=torch.float64, device=w.device)
        target, weight = rest.double(), w.double()
        inverse = torch.zeros(len(m), len(m), dtype=torch.float64, device=w.device)

        def value(a: Tensor) -> float:
            return float(target @ a - torch.where(weight > 0, weight, 0.0) @ (a @ many).clamp_min(1e-300).log())

        for _ in range(200):
            a = m @ many
            slope = target - many @ (weight / a)
            inverse = torch.linalg.pinv((many * (weight / a.square())) @ many.mT, hermitian=True)
            step = -inverse @ slope
            fall = -float(slope @ step)
            if fall < 1e-26:
                break
            t, now = 1.0, value(m)
            while t > 1e-12 and (
                bool((a + t * (step @ many) <= 0).any()) or value(m + t * step) > now - 0.1 * t * fall
            ):
                t /= 2
            m = m + t * step if t > 1e-12 else m
            if t <= 1e-12:
                break
    # One more step carries the gradient (implicit function theorem): the slope depends on w, its slope is held.
    m, inverse = m.to(w), inverse.to(w)
    a = m @ inside
    m = m - inverse @ (rest - inside @ (w / a))
    return w / (m @ inside)
