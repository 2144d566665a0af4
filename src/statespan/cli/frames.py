"""Answers as frames, one row a step, beside the sequence and the time each step came from."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from statespan.answers import Forecast, Posterior
from statespan.errors import StatespanError
from statespan.tables import Data
from statespan.tables.files import Frame, pandas

MOST_SYMBOLS = 30
"""Of more symbols than this only the likeliest `FEW_SYMBOLS` are columns of a forecast."""
FEW_SYMBOLS = 10


def scores(data: Data, posterior: Posterior) -> Frame:
    """One row a sequence: its steps, how many are observed, its log-probability and that of a step."""
    present = ~np.isnan(data.values).all(1)
    observed = np.add.reduceat(present, data.starts)
    values = posterior.log_prob.numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where(observed > 0, values / observed, np.nan)
    columns = {
        data.columns.sequence or "sequence": data.labels,
        "steps": data.ends,
        "observed": observed,
        "log_prob": values,
        "log_prob_per_step": each,
    }
    return pandas().DataFrame(columns)


def surprises(data: Data, posterior: Posterior) -> Frame:
    """One row a step, with minus the log-probability of what was observed given all before it, in nats."""
    return data.beside({"surprise": 0.0 + np.concatenate([each.numpy() for each in posterior.surprise])})


def beliefs(data: Data, posterior: Posterior) -> Frame:
    """One row a step: the probability of each state, or mean and standard deviation of each coordinate."""
    values = {name: np.concatenate([x.detach().numpy() for x in each]) for name, each in posterior.values.items()}
    columns: dict[str, Any] = {}
    if "probs" in values:
        columns = {f"state_{k}": column for k, column in enumerate(values["probs"].T)}
    elif "mean" in values:
        deviation = np.sqrt(np.diagonal(values["covariance"], axis1=-2, axis2=-1).clip(min=0))
        for d in range(deviation.shape[1]):
            columns |= {f"mean_{d}": values["mean"][:, d], f"sd_{d}": deviation[:, d]}
    else:
        columns = {f"unit_{d}": column for d, column in enumerate(values["state"].T)}
    return data.beside(columns)


def paths(data: Data, decoded: Sequence[Any], log_prob: Any = None) -> Frame:
    """One row a step with its likeliest state; of several paths, one after another with their log-probability."""
    if log_prob is None:
        flat = np.concatenate([path.numpy() for path in decoded])
        return data.beside({"state": flat} if flat.ndim == 1 else {f"mean_{d}": x for d, x in enumerate(flat.T)})
    flat = np.concatenate([path.numpy() for path in decoded])  # (rows, k)
    each = [
        data.beside({"path": i, "state": flat[:, i], "log_prob": np.repeat(log_prob[:, i].numpy(), data.ends)})
        for i in range(flat.shape[1])
    ]
    return pandas().concat([frame[there] for frame, there in zip(each, flat.T >= 0, strict=True)], ignore_index=True)


def drawn_paths(data: Data, drawn: Sequence[Any]) -> Frame:
    """One row a step and a draw: state paths from the posterior."""
    flat = np.concatenate([each.numpy() for each in drawn], axis=1)  # (n, rows, ...)
    each = [data.beside({"draw": i, **_states(path)}) for i, path in enumerate(flat)]
    return pandas().concat(each, ignore_index=True)


def _states(path: Any) -> dict[str, Any]:
    """A state, or its coordinates."""
    return {"state": path} if path.ndim == 1 else {f"state_{d}": column for d, column in enumerate(path.T)}


def ahead(data: Data, steps: int) -> Frame:
    """The sequences and times of the steps that follow each sequence."""
    pd, each = pandas(), []
    for i, end in enumerate(data.ends):
        columns: dict[str, Any] = {}
        if len(data.keys) > 1:
            columns[data.keys[0]] = [data.labels[i]] * steps
        if data.times is not None and data.calendar is not None:
            columns[str(data.columns.time)] = data.calendar.after(data.times[i][-1], steps)
        else:
            columns["step"] = np.arange(end, end + steps)
        each.append(pd.DataFrame(columns))
    return pd.concat(each, ignore_index=True)


def forecasts(data: Data, forecast: Forecast, steps: int, quantiles: Sequence[float]) -> Frame:
    """One row a step ahead: each symbol's probability, or each column's mean and quantiles."""
    frame, names, words = ahead(data, steps), data.columns.names, data.columns.words
    if hasattr(forecast.distribution, "probs"):
        probs = forecast.probs.numpy().reshape(-1, forecast.probs.shape[-1])
        known = words.get(names[0]) or [str(v) for v in range(probs.shape[1])]
        shown = np.arange(probs.shape[1])
        if probs.shape[1] > MOST_SYMBOLS:
            shown = np.argsort(-probs.max(0), kind="stable")[:FEW_SYMBOLS]
        likeliest = [known[v] for v in probs.argmax(1)]
        return _right_of(frame, {names[0]: likeliest} | {f"p({known[v]})": probs[:, v] for v in shown})
    mean = forecast.mean.numpy().reshape(-1, len(names))
    draws = forecast.samples.numpy().reshape(len(forecast.samples), -1, len(names))
    levels = forecast.quantile(list(quantiles)).numpy().reshape(len(quantiles), -1, len(names))
    columns: dict[str, Any] = {}
    for c, name in enumerate(names):
        if name in words:  # beside other columns: how often each is drawn
            share = np.stack([(draws[..., c] == v).mean(0) for v in range(len(words[name]))], 1)
            columns[name] = [words[name][v] for v in share.argmax(1)]
            of = "" if len(words) == 1 else f"{name}="  # two columns may know the same word
            columns |= {f"p({of}{word})": share[:, v] for v, word in enumerate(words[name])}
            continue
        columns[name] = mean[:, c]
        columns |= {f"{name}_q{100 * q:g}": levels[i, :, c] for i, q in enumerate(quantiles)}
    return _right_of(frame, columns)


def _right_of(frame: Frame, columns: dict[str, Any]) -> Frame:
    return pandas().concat([frame, pandas().DataFrame(columns, index=frame.index)], axis=1)


def imputed(data: Data, filled: Sequence[Any]) -> Frame:
    """The data with their gaps filled, words as words, and which columns were filled in each row."""
    flat = np.concatenate([np.asarray(each) for each in filled]).reshape(len(data.values), -1)
    gaps = np.isnan(data.values)
    names = data.columns.names
    columns = {name: _spoken(data, name, flat[:, c]) for c, name in enumerate(names)}
    which = np.array([""] * len(gaps), dtype=object)
    for c, name in enumerate(names):
        which[gaps[:, c]] = which[gaps[:, c]] + f" {name}"
    whole = data._replace(frame=data.frame.assign(**columns))
    return whole.beside({"filled": [each.strip() for each in which]})


def sampled(data: Any, states: Any, y: Any, names: Sequence[str], words: dict[str, Any]) -> Frame:
    """Drawn sequences, one row a step."""
    n, length = y.shape[:2]
    flat = np.asarray(y).reshape(n * length, -1)
    columns: dict[str, Any] = {"sequence": np.repeat(np.arange(n), length)} if n > 1 else {}
    columns["step"] = np.tile(np.arange(length), n)
    path = np.asarray(states).reshape(n * length, *states.shape[2:])
    columns |= {f"model_{name}" if name in names else name: x for name, x in _states(path).items()}
    for c in range(flat.shape[1]):
        known = words.get(names[c])
        columns[names[c]] = flat[:, c] if known is None else [known[int(v)] for v in flat[:, c]]
    return pandas().DataFrame(columns)


def _spoken(data: Data, name: str, values: Any) -> Any:
    """Numbers, or the words they stand for."""
    known = data.columns.words.get(name)
    return values if known is None else [known[int(v)] for v in values]


def quantile_list(text: str) -> list[float]:
    """`0.05,0.5,0.95` as numbers.

    Raises:
        StatespanError: one is none, or not between 0 and 1.
    """
    try:
        found = [float(each) for each in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 <= q <= 1 for q in found):
        raise StatespanError(f"--quantiles {text}: give probabilities, as in 0.05,0.5,0.95")
    return found
