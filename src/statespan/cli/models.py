"""Models and emissions by name. The only place, beside the ladder's table, where a name stands for a class."""

import inspect
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import statespan as ss
from statespan.cli import pictures, series, summary
from statespan.cli.screen import chosen
from statespan.errors import StatespanError
from statespan.part import FiniteEmission
from statespan.tables import Data

LANGUAGE = "categorical"


class Wanted(NamedTuple):
    """What a user asked a model to be: the options of its sizes, its emission and its seed."""

    states: int | None
    state: int | None
    emission: str | None
    covariance: str | None
    components: int | None
    seed: int


def emissions() -> dict[str, type[Any]]:
    """Every public emission of one chain of states whose size is a number of symbols or of columns, by its name."""
    found = {}
    for public in ss.__all__:
        cls = getattr(ss, public)
        if inspect.isclass(cls) and issubclass(cls, FiniteEmission) and _sized(_parameters(cls)):
            found[re.sub("(?<=[a-z])(?=[A-Z])", "-", public).lower()] = cls
    return found


def _sized(takes: Any) -> bool:
    """Whether sizes are all that must be given."""
    needed = {name for name, p in takes.items() if p.default is p.empty} - {"self", "args", "kwargs"}
    return "states" in takes and bool({"symbols", "dim"} & set(takes)) and needed <= {"symbols", "dim"}


def of_symbols(name: str) -> bool:
    """Whether an emission is of symbols."""
    return "symbols" in _parameters(_emission(name))


def named_columns(emission: str | None) -> list[tuple[list[str], str]]:
    """`temp:gaussian,rain+wind:gaussian,sky:categorical` as columns and names; [] for a name that is for all."""
    if not emission or ":" not in emission:
        return []
    found = []
    for each in emission.split(","):
        columns, _, name = each.rpartition(":")
        if not columns:
            raise StatespanError(f"--emission {emission}: {each!r} says no column; write column:name for each")
        found.append((columns.split("+"), name))
    return found


class Kind(NamedTuple):
    """A kind of model.

    Args:
        make: a model for data, from what is wanted; refuses what does not go together.
        describe: a fitted one as columns and rows for a reader.
        draw: its picture.
        starts: how many to fit from.
    """

    make: Callable[[Data, Wanted], Any]
    describe: Callable[[Any, Data], tuple[list[str], list[list[Any]]]]
    draw: Callable[[Any, Data], Any]
    starts: int = 1


def kind(text: str, counts: bool = False) -> Kind:
    """What `--model` says; `counts` where an `--emission` stands over a structural series.

    Raises:
        StatespanError: it says nothing that is known.
    """
    if series.named(text):
        draw = pictures.of_posterior if counts else series.portrait
        return Kind(partial(series.structural, text), summary.parameters, draw)
    return KINDS[chosen("--model", text, [*KINDS, *series.COMPONENTS])]


def _hmm(data: Data, wanted: Wanted) -> Any:
    """A hidden Markov model."""
    if wanted.state is not None:
        raise StatespanError(f"--state {wanted.state}: an hmm has --states {wanted.state}; write that")
    states = 2 if wanted.states is None else wanted.states
    if states > len(data.values):
        raise StatespanError(f"--states {states}: more than the data have steps, {len(data.values)}; use fewer")
    columns, words = data.columns.names, data.columns.words
    groups = named_columns(wanted.emission)
    if not groups and wanted.emission is not None:
        groups = [(list(columns), wanted.emission)]
    elif not groups:  # the numbers together, then each column of words
        numbers = [column for column in columns if column not in words]
        groups = ([(numbers, "gaussian")] if numbers else []) + [([c], LANGUAGE) for c in columns if c in words]
    options = _options(wanted, [name for _, name in groups])
    parts = [_part(name, group, data, options) for group, name in groups]
    emission = parts[0] if len(parts) == 1 else ss.Product(*parts)
    moves = None
    if data.columns.inputs and not any(part.takes_inputs for part in parts):
        moves = ss.SoftmaxTransition(states, len(data.columns.inputs))
    return ss.hmm(states=states, emission=emission, transition=moves, seed=wanted.seed)


def _options(wanted: Wanted, names: Sequence[str]) -> dict[str, Any]:
    """What was asked of the emissions; each takes what it knows, and one of them must know it."""
    asked = {"covariance": wanted.covariance, "components": wanted.components}
    options = {option: value for option, value in asked.items() if value is not None}
    for option, value in options.items():
        if not any(option in _parameters(_emission(name)) for name in names):
            raise StatespanError(f"--{option} {value}: {' and '.join(names)} has no {option}; leave it out")
    return options


def _part(name: str, columns: Sequence[str], data: Data, options: dict[str, Any]) -> Any:
    """One emission for some columns."""
    cls, words = _emission(name), data.columns.words
    takes = _parameters(cls)
    if "symbols" in takes:
        if len(columns) > 1:
            raise StatespanError(
                f"--emission {name}: {len(columns)} columns are given ({', '.join(columns)}), and symbols are one; "
                "name the column with --columns, or an emission for each as column:name,column:name"
            )
        return cls(symbols=len(words[columns[0]]))
    wordy = [column for column in columns if column in words]
    if wordy:
        raise StatespanError(f"--emission {name}: column {wordy[0]} holds words; say {wordy[0]}:{LANGUAGE} for it")
    known: dict[str, Any] = {option: value for option, value in options.items() if option in takes}
    if "inputs" in takes:
        if not data.columns.inputs:
            raise StatespanError(f"--emission {name}: a regression is on inputs; name their columns with --inputs")
        known["inputs"] = len(data.columns.inputs)
    return cls(dim=len(columns), **known)


def _linear_gaussian(data: Data, wanted: Wanted) -> Any:
    """A linear Gaussian state space, whose level and noise start from the data."""
    import numpy as np

    if data.columns.words:
        column = next(iter(data.columns.words))
        raise StatespanError(f"--model linear-gaussian: column {column} holds words; name others with --columns")
    if wanted.states is not None:
        raise StatespanError(
            f"--states {wanted.states}: a linear-gaussian model has --state {wanted.states}; write that"
        )
    size = 1 if wanted.state is None else wanted.state
    if size < 1:
        raise StatespanError(f"--state {size}: use at least one")
    if any(x is not None for x in (wanted.emission, wanted.covariance, wanted.components)):
        raise StatespanError(
            "--model linear-gaussian: --emission, --covariance and --components are for hmm; leave them out"
        )
    acting = len(data.columns.inputs)
    values = data.values
    with np.errstate(over="ignore"):
        mean, variance = np.nanmean(values, 0), np.nanvar(values, 0)
    if not np.isfinite(variance).all():
        column = data.columns.names[int(np.isinf(variance).argmax())]
        raise StatespanError(f"column {column}: its values are so large that their variance is infinite; divide them")
    spread = np.sqrt(np.where(variance > 0, variance, 1.0))
    loadings = np.random.default_rng(wanted.seed).standard_normal((len(mean), size)) * spread[:, None]
    return ss.linear_gaussian(
        state_noise=0.2 * np.eye(size),
        observation=loadings / size**0.5,
        observation_noise=np.diag(0.5 * spread**2),
        observation_offset=mean,
        observation_inputs=np.zeros((len(mean), acting)) if acting else None,
    )


KINDS = {
    "hmm": Kind(_hmm, summary.states, pictures.of_states, starts=4),
    "linear-gaussian": Kind(_linear_gaussian, summary.coordinates, pictures.of_posterior),
}
"""By name; any other text is a sum of components. An hmm's likelihood has many peaks, and so it has several starts."""


def _emission(name: str) -> type[Any]:
    found = emissions()
    return found[chosen("--emission", name, found)]


def _parameters(cls: type[Any]) -> Any:
    return inspect.signature(cls.__init__).parameters
