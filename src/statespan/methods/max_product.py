"""Likeliest state paths."""

from typing import Any

import torch
from torch import Tensor

from statespan.belief import Best, with_fed
from statespan.errors import StatespanError
from statespan.kernels.lanes import kernels_alone
from statespan.method import Method, Prepared, Trace, prepare, run
from statespan.methods.finite import ACCEPTS, Constants, Moves, finite_constants, finite_moves, table_of
from statespan.methods.rows import Rows, prepare_rows
from statespan.part import best_ways
from statespan.sequences import Sequences
from statespan.tree import Tree


class MaxProduct(Method):
    r"""The Viterbi algorithm, and its k best paths: maxima in place of the forward algorithm's sums.

    score_t(j) = max over i of score_{t-1}(i) + log A[i, j], then + log p(y_t | j). Ties go to the lower state.

    Args:
        k: how many paths to keep into each state.

    Raises:
        StatespanError: k below 1.

    Source:
        Viterbi 1967; Rabiner 1989, section III.B; the k best: Seshadri and Sundberg 1994, the list Viterbi algorithm.

    Example:
        >>> import statespan as ss
        >>> model = ss.hmm(transition=[[0.9, 0.1], [0.2, 0.8]], emission=ss.Categorical(probs=[[0.8, 0.2], [0.1, 0.9]]))
        >>> y = ss.Sequences(y=torch.tensor([[0], [1], [1]]))
        >>> ss.run(model, ss.MaxProduct(k=2), y, keep=("paths",)).paths[0][:, 0].T.tolist()
        [[0, 1, 1], [1, 1, 1]]
    """

    accepts = ACCEPTS
    scores_from = frozenset({"filtered"})

    def __init__(self, k: int = 1):
        if k < 1:
            raise StatespanError(f"k={k}: ask for at least one path")
        self.k = k

    def exact(self, model: Any) -> bool:
        """Always."""
        return True

    @kernels_alone()
    def constants(self, model: Any) -> Constants:
        """Stochastic tables from logits."""
        return finite_constants(model)

    def prepare(self, model: Any, constants: Constants, data: Sequences) -> tuple[Moves, Rows]:
        """Tables, and the log-likelihood of every step: nothing vanishes that an exponential would lose."""
        return finite_moves(model, constants, data), prepare_rows(model, constants, data)

    def init(self, model: Any, move: Moves, batch: int) -> Best:
        """Log initial probabilities, in float64; ranks below the first are impossible."""
        initial: Any = move.initial
        score = initial.double().log().expand(batch, -1)
        rest = score.new_full((*score.shape, self.k - 1), -torch.inf)
        score = torch.cat([score[..., None], rest], -1)
        return Best(score, torch.zeros_like(score, dtype=torch.long))

    def predict(self, model: Any, belief: Any, move: Moves) -> Best:
        """The k best ways into each state."""
        score, fed = belief.state.score, belief.fed
        if fed is None or fed.observed is None or bool(fed.observed.all()):
            return Best(*model.transition.best(score, move.tables, None if fed is None else fed.value))
        return Best(*best_ways(score, table_of(model, fed, move)))

    def update(self, model: Any, belief: Best, likelihood: Rows) -> tuple[Any, Tensor | None]:
        """Add the log-likelihood."""
        best = belief.state
        return with_fed(Best(best.score + likelihood.logs[..., None], best.back), likelihood.fed), None

    def smooth(self, model: Any, prepared: Prepared, belief: Any, shape: tuple[int, int]) -> Any:
        """Refused: max-product finds paths; ask `decode`."""
        raise StatespanError("MaxProduct finds paths; call decode, or smooth without method=")

    def emit(self, model: Any, constants: Constants, belief: Any, u: Tree) -> Any:
        """Refused: max-product finds paths."""
        raise StatespanError("MaxProduct finds paths; call forecast without method=")

    def score(self, model: Any, prepared: Prepared, trace: Trace, data: Sequences) -> Tensor:
        """Refused: a path's score is not the probability of the data."""
        raise StatespanError("MaxProduct scores paths; call decode(k=...), or log_prob or forecast without method=")

    def fill(self, model: Any, constants: Any, data: Sequences) -> Tensor:
        """Refused: max-product finds paths."""
        raise StatespanError("MaxProduct finds paths; call impute without method=")

    @kernels_alone()
    def decode(self, model: Any, constants: Constants, data: Sequences, k: int) -> tuple[Tensor, Tensor]:
        """The k best paths of each sequence.

        Args:
            model: a finite state space.
            constants: what `constants` returned.
            data: the sequences.
            k: how many paths.

        Returns:
            Paths (T, B, k), -1 past each end, and their joint log-probabilities (B, k), best first.
        """
        prepared = prepare(model, self, data, constants)
        method = self if k == self.k else MaxProduct(k)
        paths = run(model, method, data, None, ("paths",), constants, prepared).paths
        assert paths is not None
        owners = model.transition.owners
        if owners is None:
            return paths
        return torch.where(paths[0] < 0, paths[0], owners[paths[0].clamp(min=0)]), paths[1]

    def paths(self, prepared: Prepared, trace: Trace) -> tuple[Tensor, Tensor]:
        """By the pointers back."""
        return trace_back(trace.filtered.state, prepared.lengths, self.k)


def trace_back(best: Best, lengths: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """Follow the back-pointers (T, B, K, k) from each sequence's own end."""
    length, batch = best.score.shape[:2]
    device = best.score.device
    ends = torch.full((batch,), length, device=device) if lengths is None else lengths
    flat = best.score[ends - 1, torch.arange(batch, device=device)].flatten(1)  # (B, K k)
    order = flat.sort(dim=1, descending=True, stable=True)
    score, at = order.values[:, :k], order.indices[:, :k]
    path = torch.full((length, batch, k), -1, device=device)
    for t in range(length - 1, -1, -1):
        inside = (t < ends)[:, None]
        path[t] = torch.where(inside, at // k, -1)
        if t > 0:
            at = torch.where(inside, best.back[t].flatten(1).gather(1, at), at)
    return path, score
