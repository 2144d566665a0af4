"""The most probable path of a finite state chain.

best_1(k) = log_initial(k) + log y_1(k);  best_t(j) = max_k (best_{t-1}(k) + log table(k, j)) + log y_t(j). The scores
are kept; from the best last state the path is followed back by the argmax into the one state it is in. Sequences lie
across the lanes of the vector registers, in groups sorted by length, the groups spread over torch's number of threads;
of few sequences each is taken by itself, its states across the lanes.
"""

from types import ModuleType

import torch
from torch import Tensor

from . import lanes as shared


def _jit() -> ModuleType:
    from . import _jit_viterbi

    return _jit_viterbi


def _max_product(
    log_initial: Tensor, log_table: Tensor, rows: Tensor, index: Tensor, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    (steps, batch), K = index.shape, rows.shape[1]
    log_initial, log_table, rows = (x.detach().contiguous() for x in (log_initial, log_table, rows))
    score = rows.new_zeros(batch)
    path = torch.empty(batch, steps, dtype=torch.int64)  # sequence by sequence, as is the index
    if index.numel() == 0 or K == 0:
        return score, path.T
    index = index.T.contiguous()
    width = 64 // rows.element_size()
    jit = _jit()
    work = index.numel() * K * K
    threads = shared.available() if work > 200_000 else 1
    into = log_table.t().contiguous()
    outputs = [x.numpy() for x in (score, path)]
    if 2 * batch <= width:
        ends = [steps] * batch if lengths is None else lengths.clamp(0, steps).tolist()
        panels = shared.panels(log_table, -torch.inf, 2 * width)
        inputs = [x.numpy() for x in (log_initial, panels, into, rows, index)]

        def one(b: int) -> None:
            scores = shared.empty((ends[b] + 1) * -(-K // (2 * width)) * 2 * width, like=rows)
            jit.best_rows(b, ends[b], *inputs, scores.numpy(), *outputs)

        shared.parallel(one, batch, threads)
        return score, path.T
    order, lengths = shared.longest_first(lengths, steps, batch)
    panels = shared.panels(log_table, -torch.inf)
    inputs = [x.numpy() for x in (order, lengths, log_initial, panels, into, rows, index)]
    ranges = shared.pieces((batch + width - 1) // width, 4 * threads if threads > 1 else 1)

    def some(i: int) -> None:
        first, last = ranges[i]
        scores = shared.empty(int(inputs[1][first * width]) * shared.padded(K) * width, like=rows)
        jit.best_lanes(first, last, *inputs, scores.numpy(), *outputs)

    shared.parallel(some, len(ranges), threads)
    return score, path.T


def _fake(
    log_initial: Tensor, log_table: Tensor, rows: Tensor, index: Tensor, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    steps, batch = index.shape
    return rows.new_empty(batch), index.new_empty(batch, steps).T


shared.define(
    "max_product(Tensor log_initial, Tensor log_table, Tensor rows, Tensor index, Tensor? lengths) -> (Tensor, Tensor)",
    _max_product,
    _fake,
)


def max_product(
    log_initial: Tensor, log_table: Tensor, rows: Tensor, index: Tensor, lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The most probable path of every sequence and its joint log-probability.

    max over z of log_initial(z_1) + sum_t rows[index_t](z_t) + sum_t log_table(z_{t-1}, z_t). Ties go to the lower
    state, from the last step backwards. No gradient.

    Args:
        log_initial: (B, K), float32 or float64; -inf is allowed here and below.
        log_table: (K, K), row i the log-probabilities of the next state after state i.
        rows: (N, K), log p(y | state) of N observations: of every step, or of every symbol there is.
        index: (T, B) int64, which of the rows each step observes; within a sequence's length from 0 to N - 1.
        lengths: (B,) int64, own length of every sequence; T where not given.

    Returns:
        score: (B,), of the same dtype; -inf where no path is possible.
        path: (T, B) int64, -1 past a sequence's own length; states (of no meaning) where no path is possible.

    Raises:
        ValueError: shapes or dtypes do not fit.

    Source:
        Viterbi (1967); Jurafsky and Martin, Speech and Language Processing (3rd ed.), appendix A.4; Murphy,
        Probabilistic Machine Learning: Advanced Topics (2023), 9.2.6.

    Example:
        >>> initial = torch.tensor([[0.5, 0.5]]).log()
        >>> table = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log()
        >>> symbol = torch.tensor([[0.1, 0.6]]).log()
        >>> score, path = max_product(initial, table, symbol, torch.tensor([[0], [0]]))
        >>> path.T.tolist(), round(score.exp().item(), 3)
        ([[1, 1]], 0.144)
    """
    if rows.dim() != 2 or rows.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"rows must be (N, K) float32 or float64, not {tuple(rows.shape)} {rows.dtype}")
    if index.dim() != 2 or index.dtype != torch.int64:
        raise ValueError(f"index must be (T, B) int64, not {tuple(index.shape)} {index.dtype}")
    batch, K = index.shape[1], rows.shape[1]
    expected = {
        "log_initial": (log_initial, (batch, K), rows.dtype),
        "log_table": (log_table, (K, K), rows.dtype),
        "lengths": (lengths, (batch,), torch.int64),
    }
    for name, (value, shape, kind) in expected.items():
        if value is not None and (tuple(value.shape) != shape or value.dtype != kind):
            raise ValueError(
                f"{name} must be {shape} {kind} with index {tuple(index.shape)} and rows {tuple(rows.shape)},"
                f" not {tuple(value.shape)} {value.dtype}"
            )
    with torch.no_grad():
        return torch.ops.statespan.max_product(log_initial, log_table, rows, index, lengths)
