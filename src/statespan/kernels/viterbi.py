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
    log_initial: Tensor, log_table: Tensor, log_likelihood: Tensor, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    steps, batch, K = log_likelihood.shape
    log_initial, log_table, log_likelihood = (x.detach().contiguous() for x in (log_initial, log_table, log_likelihood))
    score = log_likelihood.new_zeros(batch)
    path = torch.empty(steps, batch, dtype=torch.int64)
    if log_likelihood.numel() == 0:
        return score, path
    width = 64 // log_likelihood.element_size()
    jit = _jit()
    work = log_likelihood.numel() * K
    threads = torch.get_num_threads() if work > 200_000 else 1
    into = log_table.t().contiguous()
    outputs = [x.numpy() for x in (score, path)]
    if 2 * batch <= width:
        ends = [steps] * batch if lengths is None else lengths.clamp(0, steps).tolist()
        panels = shared.panels(log_table, -torch.inf, 2 * width)
        inputs = [x.numpy() for x in (log_initial, panels, into, log_likelihood)]
        shared.parallel(lambda b: jit.best_rows(b, ends[b], *inputs, *outputs), batch, threads)
        return score, path
    order, lengths = shared.longest_first(lengths, steps, batch)
    panels = shared.panels(log_table, -torch.inf)
    inputs = [x.numpy() for x in (order, lengths, log_initial, panels, into, log_likelihood)]
    ranges = shared.pieces((batch + width - 1) // width, 4 * threads if threads > 1 else 1)
    shared.parallel(lambda i: jit.best_lanes(*ranges[i], *inputs, *outputs), len(ranges), threads)
    return score, path


def _fake(
    log_initial: Tensor, log_table: Tensor, log_likelihood: Tensor, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    steps, batch, _ = log_likelihood.shape
    return log_likelihood.new_empty(batch), log_likelihood.new_empty(steps, batch, dtype=torch.int64)


shared.define(
    "max_product(Tensor log_initial, Tensor log_table, Tensor log_likelihood, Tensor? lengths) -> (Tensor, Tensor)",
    _max_product,
    _fake,
)


def max_product(
    log_initial: Tensor, log_table: Tensor, log_likelihood: Tensor, lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The most probable path of every sequence and its joint log-probability.

    max over z of log_initial(z_1) + sum_t log_likelihood_t(z_t) + sum_t log_table(z_{t-1}, z_t). Ties go to the lower
    state, from the last step backwards. No gradient.

    Args:
        log_initial: (B, K), float32 or float64; -inf is allowed here and below.
        log_table: (K, K), row i the log-probabilities of the next state after state i.
        log_likelihood: (T, B, K), log p(y_t | state).
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
        >>> likelihood = torch.tensor([[[0.1, 0.6]], [[0.1, 0.6]]]).log()
        >>> score, path = max_product(initial, table, likelihood)
        >>> path.T.tolist(), round(score.exp().item(), 3)
        ([[1, 1]], 0.144)
    """
    if log_likelihood.dim() != 3 or log_likelihood.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            "log_likelihood must be (T, B, K) float32 or float64,"
            f" not {tuple(log_likelihood.shape)} {log_likelihood.dtype}"
        )
    steps, batch, K = log_likelihood.shape
    expected = {
        "log_initial": (log_initial, (batch, K), log_likelihood.dtype),
        "log_table": (log_table, (K, K), log_likelihood.dtype),
        "lengths": (lengths, (batch,), torch.int64),
    }
    for name, (value, shape, kind) in expected.items():
        if value is not None and (tuple(value.shape) != shape or value.dtype != kind):
            raise ValueError(
                f"{name} must be {shape} {kind} with log_likelihood {(steps, batch, K)},"
                f" not {tuple(value.shape)} {value.dtype}"
            )
    with torch.no_grad():
        return torch.ops.statespan.max_product(log_initial, log_table, log_likelihood, lengths)
