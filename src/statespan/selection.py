"""Choosing among models: information criteria, cross-validation, a sweep over the number of states, states aligned."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from statespan.errors import StatespanError
from statespan.families.hidden_markov import hmm
from statespan.fit import Fitter, fit
from statespan.fit.em import observations, take
from statespan.method import lacks, run, total
from statespan.methods import MaxProduct, method_for
from statespan.parameters import free_parameters
from statespan.part import permute, seeded
from statespan.sequences import Sequences
from statespan.verbs import ask

CRITERIA = {"aic": -1, "bic": -1, "icl": -1, "cv": 1, "log_prob": 1}
"""What models are ranked by, and whether more is better."""


class Comparison(NamedTuple):
    """Models side by side; print it, or make a frame of it.

    The columns: `model`, `states`, `parameters` (free ones, `free_parameters`), `observations` (n of the BIC: the
    observed steps of all sequences), `log_prob`, `aic`, `bic`, `icl`, and `cv` where asked for; None where a model has
    no such number. Of the criteria less is better, of `cv` and `log_prob` more.

    Args:
        models: the fitted models, by name.
        columns: the table.
        criterion: what `best` goes by.
    """

    models: dict[Any, Any]
    columns: dict[str, list[Any]]
    criterion: str

    @property
    def best_name(self) -> Any:
        """The name of the best model (in a sweep its number of states)."""
        sign = CRITERIA[self.criterion]
        scores = [-math.inf if x is None else sign * x for x in self.columns[self.criterion]]
        return list(self.models)[max(range(len(scores)), key=scores.__getitem__)]

    @property
    def best(self) -> Any:
        """The best model."""
        return self.models[self.best_name]

    def frame(self) -> dict[str, list[Any]]:
        """Columns for a data frame, one row a model; `pandas.DataFrame(comparison.frame())` makes it one."""
        return dict(self.columns)

    def __str__(self) -> str:
        """A table; the best is starred."""
        rows = [list(self.columns)]
        for row in zip(*self.columns.values(), strict=True):
            rows.append(["-" if x is None else f"{x:.2f}" if isinstance(x, float) else str(x) for x in row])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        marks = [" ", *("*" if name == self.best_name else " " for name in self.models)]
        lines = [
            " ".join([m, *(c.rjust(w) for c, w in zip(row, widths, strict=True))])
            for m, row in zip(marks, rows, strict=True)
        ]
        return "\n".join(line.rstrip() for line in lines)

    def plot(self, axes: Any = None) -> Any:
        """Draw the criteria; returns the matplotlib axes.

        Args:
            axes: matplotlib axes to draw on; None makes new ones.
        """
        from statespan.plots import plot_criteria

        names = ("model", "states", "aic", "bic", "icl")
        rows = []
        for row in zip(*(self.columns[n] for n in names), strict=True):
            given = dict(zip(("model", "states", "AIC", "BIC", "ICL"), row, strict=True))
            rows.append({key: value for key, value in given.items() if value is not None})
        return plot_criteria(rows, axes)


def compare(
    models: Mapping[Any, Any] | Iterable[Any],
    y: Any,
    criterion: str = "bic",
    folds: int = 0,
    by: Fitter | None = None,
    restarts: int = 1,
    seed: int | None = 0,
    lengths: Any = None,
    inputs: Any = None,
    states: Any = None,
    weights: Any = None,
    parameters: Mapping[Any, int] | None = None,
) -> Comparison:
    r"""Compare fitted models of the same data.

    With L the log-likelihood, P the number of free parameters and n the number of observed steps,

        AIC = -2 L + 2 P,   BIC = -2 L + P log n,   ICL = -2 log p(y, z) + P log n,

    z the likeliest state path, so that ICL asks for states that can be told apart. `cv` is the cross-validated
    log-likelihood of an observed step: each fold is left out, the model is fitted again from where it stands to the
    rest, and the fold is scored. Folds are whole sequences, dealt out at random; of one series they are contiguous
    blocks, each left out as a gap: the state is carried through it, and what is scored is
    log p(block | rest) = log p(all) - log p(rest).

    Args:
        models: by name, or in a row, then named by their place.
        y: the sequences.
        criterion: what is best: "aic", "bic", "icl", "cv" or "log_prob".
        folds: of the cross-validation; 0 does without.
        by: how each fold is fitted; None as `fit` has it.
        restarts: of each fold's fit.
        seed: of the folds and their fits.
        lengths: (N,) lengths of a padded batch.
        inputs: inputs, the forms of y.
        states: labelled states.
        weights: weights of sequences or steps.
        parameters: how many parameters are free, by name; None counts them in the models as they are, where a
            probability that is exactly zero is structure.

    Returns:
        A `Comparison`: `print(it)`, `.best`, `.frame()`, `.plot()`.

    Raises:
        StatespanError: no such criterion, or more folds than there is to leave out.

    Source:
        Akaike 1974; Schwarz 1978; Biernacki, Celeux and Govaert 2000; Celeux and Durand, Selecting hidden Markov model
        state number with cross-validated likelihood, Computational Statistics 23, 2008.

    Example:
        >>> import statespan as ss
        >>> y = [[0, 1, 0, 1, 1], [1, 1, 0, 0, 1, 0]]
        >>> models = {k: ss.hmm(states=k, emission=ss.Categorical(2), seed=0).fit(y) for k in (1, 2)}
        >>> compare(models, y).best_name
        1
    """
    if criterion not in CRITERIA:
        raise StatespanError(f"criterion={criterion!r} is none of {', '.join(CRITERIA)}; choose one of them")
    if criterion == "cv" and folds < 2:
        raise StatespanError("criterion='cv' needs folds=, how often to leave data out: 5, or 10")
    named = dict(models) if isinstance(models, Mapping) else dict(enumerate(models))
    if not named:
        raise StatespanError("compare: give at least one model")
    rows = []
    for name, model in named.items():
        data, _ = ask(model, y, lengths, inputs, states, weights)
        row = {"model": name, **criteria(model, data, None if parameters is None else parameters[name])}
        if folds:
            row["cv"] = cross_validate(model, data, folds, by, restarts, seed)
        rows.append(row)
    return Comparison(named, {key: [row[key] for row in rows] for key in rows[0]}, criterion)


def select_states(
    y: Any,
    emission: Any = None,
    states: Iterable[int] = range(1, 7),
    make: Callable[[int], Any] | None = None,
    criterion: str = "bic",
    folds: int = 0,
    by: Fitter | None = None,
    restarts: int = 5,
    seed: int | None = 0,
    jobs: int = 1,
    lengths: Any = None,
    inputs: Any = None,
    labels: Any = None,
    weights: Any = None,
) -> Comparison:
    """Fit a hidden Markov model for each number of states, and compare them.

    The states of each model are aligned with those of the one before it (`align`).

    Args:
        y: the sequences.
        emission: an emission that does not know its number of states; each model gets a copy.
        states: the numbers to try.
        make: makes the model of K states, for more than an emission: `lambda k: ss.hmm(k, ..., transition=...)`.
        criterion: what is best (see `compare`).
        folds: of the cross-validation (see `compare`); 0 does without.
        by: how to fit.
        restarts: of each fit.
        seed: makes it repeatable.
        jobs: processes that share the restarts.
        lengths: (N,) lengths of a padded batch.
        inputs: inputs, the forms of y.
        labels: labelled states, -1 unknown.
        weights: weights of sequences or steps.

    Returns:
        A `Comparison`; its models are named by their number of states.

    Raises:
        StatespanError: an emission that knows its number of states already; no number to try; what `compare` refuses.

    Source:
        Celeux and Durand 2008; Biernacki, Celeux and Govaert 2000.

    Example:
        >>> import statespan as ss
        >>> found = select_states([0, 0, 1, 0, 1, 1, 0, 1, 0, 0], ss.Categorical(2), states=(1, 2), restarts=2)
        >>> found.best_name
        1
    """
    if make is None:
        if emission is None or getattr(emission, "states", None) is not None:
            raise StatespanError(
                "select_states needs an emission without states=, or make=, a function of their number"
            )
        make = lambda k: hmm(k, copy.deepcopy(emission))  # noqa: E731
    models: dict[int, Any] = {}
    counts: dict[int, int] = {}
    for k in states:
        with seeded(seed):
            model = make(k)
        counts[k] = free_parameters(model)  # before the fit: a zero that it finds was free
        model.fit(y, by, restarts, seed, lengths, inputs, labels, weights, jobs=jobs)
        if models:
            with suppress(StatespanError):  # where states cannot be compared they stay in their order
                align(model, list(models.values())[-1])
        models[k] = model
    if not models:
        raise StatespanError("select_states(states=): give at least one number")
    return compare(models, y, criterion, folds, by, restarts, seed, lengths, inputs, labels, weights, counts)


def criteria(model: Any, data: Sequences, parameters: int | None = None) -> dict[str, Any]:
    """The number of states, free parameters and observations, the log-likelihood, AIC, BIC and ICL."""
    method = method_for(model)
    with torch.no_grad():
        constants = method.constants(model)
        log_prob = run(model, method, data, constants=constants).log_prob
        assert log_prob is not None
        value = float(total(log_prob, None, data.weights))
        best = None
        if not lacks(MaxProduct, model):
            score = MaxProduct(1).decode(model, constants, data, 1)[1]
            best = float((score[:, 0] if data.weights is None else score[:, 0] * data.weights).sum())
    count, n = free_parameters(model) if parameters is None else parameters, observations(data)
    penalty = count * math.log(max(n, 1))
    transition: Any = model.transition
    return {
        "states": getattr(transition, "public_states", None),
        "parameters": count,
        "observations": n,
        "log_prob": value,
        "aic": 2 * count - 2 * value,
        "bic": penalty - 2 * value,
        "icl": None if best is None else penalty - 2 * best,
    }


def cross_validate(
    model: Any, data: Sequences, folds: int, by: Fitter | None = None, restarts: int = 1, seed: int | None = 0
) -> float:
    """The cross-validated log-likelihood of an observed step (see `compare`); the model stays as it is."""
    length, batch = data.shape
    if not 2 <= folds <= (batch if batch > 1 else length):
        raise StatespanError(
            f"folds={folds}: use at least 2 and at most {batch if batch > 1 else length}, as many as there are "
            f"{'sequences' if batch > 1 else 'steps'}"
        )
    splits = _by_sequence(data, folds, seed) if batch > 1 else _by_block(data, folds)
    score, count = 0.0, 0
    for train, test, given in splits:
        trial = copy.deepcopy(model)
        fit(trial, train, copy.copy(by), restarts, seed)
        with torch.no_grad():
            score += _log_prob(trial, test) - (0.0 if given is None else _log_prob(trial, given))
        count += observations(test) - (0 if given is None else observations(given))
    return score / max(count, 1)


def _log_prob(model: Any, data: Sequences) -> float:
    log_prob = run(model, method_for(model), data).log_prob
    assert log_prob is not None
    return float(total(log_prob, None, data.weights))


def _by_sequence(data: Sequences, folds: int, seed: int | None) -> Iterable[tuple[Sequences, Sequences, None]]:
    with seeded(seed):
        order = torch.randperm(data.shape[1])
    for part in np.array_split(order.numpy(), folds):
        out = torch.as_tensor(part)
        rest = order[~torch.isin(order, out)].sort().values
        yield take(data, rest), take(data, out.sort().values), None


def _by_block(data: Sequences, folds: int) -> Iterable[tuple[Sequences, Sequences, Sequences]]:
    observed = torch.ones_like(data.within) if data.observed is None else data.observed
    for block in np.array_split(np.arange(data.shape[0]), folds):
        there = observed.clone()
        there[torch.as_tensor(block)] = False
        rest = data._replace(observed=there)
        yield rest, data, rest


# ------------------------------------------------------------------------------------------------ alignment


def align(model: Any, reference: Any, samples: int = 500, seed: int | None = 0) -> Any:
    """Put a model's states in the order of those of a reference that emit most alike; in place, and returned.

    Alike is by the Kullback-Leibler divergence of the emissions, estimated from draws from the reference's states; the
    sum over pairs is the least there is (the Hungarian method). With more states than the reference the others follow.

    Args:
        model: a hidden Markov model.
        reference: another of the same observations.
        samples: draws from each state.
        seed: of the draws.

    Raises:
        StatespanError: an emission that needs inputs, or a part whose states cannot be told to change places.

    Source:
        Kuhn 1955; Jonker and Volgenant 1987.

    Example:
        >>> import statespan as ss
        >>> emission = ss.Categorical(probs=[[0.9, 0.1], [0.2, 0.8]])
        >>> a = ss.hmm(initial=[1, 0], transition=[[0.9, 0.1], [0.3, 0.7]], emission=emission)
        >>> emission = ss.Categorical(probs=[[0.3, 0.7], [0.8, 0.2]])
        >>> b = ss.hmm(initial=[0, 1], transition=[[0.6, 0.4], [0.2, 0.8]], emission=emission)
        >>> [round(p, 6) for p in align(b, a).initial.probs().tolist()]
        [1.0, 0.0]
    """
    order = matching(model, reference, samples, seed)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    try:
        for part in model.parts:
            permute(part, order)
    except StatespanError:
        model.load_state_dict(before)
        raise
    return model


@torch.no_grad()
def matching(model: Any, reference: Any, samples: int = 500, seed: int | None = 0) -> Tensor:
    """Which state of a model answers to each state of a reference, (K,): what `align` goes by."""
    for each in (model, reference):
        if not hasattr(each.emission, "log_likelihood") or each.emission.lags:
            raise StatespanError("align: these models have no states whose emissions can be compared")
    target = reference.emission
    sure = torch.eye(target.states, dtype=next(reference.parameters()).dtype)
    with seeded(seed):
        try:
            drawn = target.mixture(sure, None, target.constants()).sample((samples,))  # (S, K, ...)
        except (TypeError, AttributeError, ValueError) as error:
            raise StatespanError(f"align: the emission cannot be drawn from without inputs ({error})") from error
    own = target.log_likelihood(drawn, None, None, target.constants()).diagonal(dim1=1, dim2=2)  # (S, K)
    other = model.emission.log_likelihood(drawn, None, None, model.emission.constants())  # (S, K, L)
    cost = (own[..., None] - other).clamp(max=1e6).mean(0).nan_to_num(1e6)
    rows = assignment(cost.double().numpy())
    rest = [k for k in range(cost.shape[1]) if k not in rows.tolist()]
    return torch.tensor([k for k in rows.tolist() if k >= 0] + rest)


def assignment(cost: np.ndarray) -> np.ndarray:
    """The column of each row such that the sum is least, (N,); -1 for rows left over where there are more of them.

    Shortest augmenting paths, N^2 M work.

    Args:
        cost: (N, M), finite.

    Source:
        Jonker and Volgenant, Computing 38, 1987.
    """
    n, m = cost.shape
    if n > m:
        columns = assignment(cost.T)
        rows = np.full(n, -1)
        rows[columns] = np.arange(m)
        return rows
    high, low = np.zeros(n + 1), np.zeros(m + 1)
    owner, before = np.zeros(m + 1, dtype=int), np.zeros(m + 1, dtype=int)
    for i in range(1, n + 1):
        owner[0], j = i, 0
        least, done = np.full(m + 1, np.inf), np.zeros(m + 1, dtype=bool)
        while owner[j]:
            done[j] = True
            row = cost[owner[j] - 1] - high[owner[j]] - low[1:]
            nearer = ~done[1:] & (row < least[1:])
            least[1:][nearer], before[1:][nearer] = row[nearer], j
            open_ = np.where(done, np.inf, least)
            k = int(open_[1:].argmin()) + 1
            step = open_[k]
            high[owner[done]] += step
            low[done] -= step
            least[~done] -= step
            j = k
        while j:
            owner[j] = owner[before[j]]
            j = before[j]
    rows = np.full(n, -1)
    for j in range(1, m + 1):
        if owner[j]:
            rows[owner[j] - 1] = j - 1
    return rows
