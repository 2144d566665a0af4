"""Where `statespan ladder search` looks: ranges of numbers and lists of values, by the setting they are of."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, get_type_hints

from statespan.errors import StatespanError
from statespan.ladder.fields import insist, known, make, table, typed
from statespan.ladder.rungs import legal


class Between(NamedTuple):
    """A number from `low` to `high`, whole where both are; `log` where factors count, not differences."""

    low: float
    high: float
    log: bool = False

    def suggest(self, name: str, trial: Any) -> Any:
        """What the trial tries; to four digits, so that what a results file says can be tried again."""
        if isinstance(self.low, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return float(f"{trial.suggest_float(name, self.low, self.high, log=self.log):.4g}")


class OneOf(NamedTuple):
    """One of some values."""

    values: tuple[Any, ...]

    def suggest(self, name: str, trial: Any) -> Any:
        """What the trial tries; lists go through the study as text."""
        chosen = trial.suggest_categorical(name, [json.dumps(value) for value in self.values])
        return next(value for value in self.values if json.dumps(value) == chosen)


@dataclass(frozen=True)
class Search:
    """A search of settings for each row.

    Args:
        space: by setting, where it is looked for.
        trials: how many for each row, by all searches of one study together.
        epochs: passes over the text of a trial that is not given up.

    Raises:
        StatespanError: a value that cannot be.
    """

    space: Mapping[str, Between | OneOf]
    trials: int = 50
    epochs: int = 10

    def __post_init__(self):
        insist(
            (bool(self.space), "space is missing; name a setting at least, such as learning_rate"),
            (self.trials >= 1, f"trials = {self.trials} must be at least 1"),
            (self.epochs >= 1, f"epochs = {self.epochs} must be at least 1"),
        )

    def point(self, trial: Any) -> dict[str, Any]:
        """The settings that a trial tries.

        Args:
            trial: of Optuna.
        """
        return {name: where.suggest(name, trial) for name, where in self.space.items()}


def searching(raw: dict[str, Any], kinds: Mapping[str, Any]) -> Search:
    """The table [search] of a recipe.

    Args:
        raw: the table: `trials`, `epochs` and `space`, where a setting has a table {low, high, log} or a list of
            values; a pattern such as "keep/*/raw/softmax" among the values of `rung` stands for every legal rung.
        kinds: the settings there are, and their types.

    Raises:
        StatespanError: an unknown setting, or a value that cannot be.
    """
    raw = dict(raw)
    space = {name: _where(name, given, kinds) for name, given in table("search.space", raw.pop("space", {})).items()}
    numbers = {name: kind for name, kind in get_type_hints(Search).items() if name != "space"}
    return make("[search]", Search, {"space": space} | typed("[search]", raw, numbers))


def _where(name: str, given: Any, kinds: Mapping[str, Any]) -> Between | OneOf:
    """Where a setting is looked for."""
    place = "[search.space]"
    known(place, [name], kinds)
    if isinstance(given, dict):
        insist((kinds[name] in (int, float), f"{place} {name} is no number; list the values to try"))
        made = typed(f"{place} {name}:", given, {"low": kinds[name], "high": kinds[name], "log": bool})
        insist(({"low", "high"} <= set(made), f"{place} {name} = {given!r} needs low and high"))
        insist(
            (made["low"] < made["high"], f"{place} {name} = {given!r}: low must be below high"),
            (made["low"] > 0 or not made.get("log"), f"{place} {name} = {given!r}: log needs a low above 0"),
        )
        return Between(**made)
    if not isinstance(given, list) or not given:
        raise StatespanError(f"{place} {name} = {given!r} must be a list of values, or {{low = ..., high = ...}}")
    values = [typed(place, {name: value}, kinds)[name] for value in given]
    if name == "rung":
        values = list(dict.fromkeys(rung for value in values for rung in legal(value)))
    return OneOf(tuple(values))
