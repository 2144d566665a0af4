"""What results.json says of each rung, read once into a shape that cannot surprise the report.

Every number may be missing, null or not finite; each becomes None. Nothing here knows of HTML.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATES = {
    "belief": ("exact belief", "the probability of each hidden state given the words so far, by Bayes' rule"),
    "distribution": ("other distribution", "sums to one, but is not what Bayes' rule says of any HMM"),
    "positive": ("between 0 and 1", "one number a unit, through a sigmoid; the sum is free"),
    "real": ("free numbers", "any real numbers, gated or not"),
    "none": ("no hidden state", "only the last word or words"),
}
"""What a rung's state is: a short label for the legend and a longer one."""

SECTIONS = {
    "hmm": "HMM side: the belief is exact",
    "between": "Between: Bayes’ rule kept, exactness given up",
    "elman": "Elman side",
    "cells": "Beyond Elman: other recurrent cells",
    "reference": "References without a hidden state",
}
"""The parts of the ladder, top to bottom."""

CHOICES = ("condition", "move", "feed", "score")

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Point:
    """One point of a learning curve."""

    epoch: float | None
    seconds: float | None
    train: float | None
    valid: float | None


@dataclass(frozen=True)
class Rung:
    """One model of the ladder and what became of it. `valid` and `test` carry the state across lines."""

    index: int
    name: str
    title: str
    group: str
    equations: str
    condition: str
    move: str
    feed: str
    score: str
    method: str
    exact: bool
    trainer: str
    own_width: bool
    width: float | None
    parameters: float | None
    learning_rate: float | None
    optimizer: str
    epochs: float | None
    valid: float | None
    test: float | None
    valid_alone: float | None
    test_alone: float | None
    paper: float | None
    speed: float | None
    seconds: float | None
    curve: tuple[Point, ...]
    samples: tuple[str, ...]
    words: tuple[tuple[float | None, tuple[str, ...]], ...]
    tags: Mapping[str, float | None] | None
    note: str
    state: str
    parent: str
    step: str

    @property
    def finished(self) -> bool:
        """Whether there is a test perplexity to show."""
        return self.test is not None

    @property
    def counts(self) -> bool:
        """Whether the rung is an n-gram model that only counts."""
        return self.method == "counts" or self.trainer == "counts"

    @property
    def by_em(self) -> bool:
        """Whether expectation-maximization had a part in the training."""
        return "EM" in self.trainer

    @property
    def section(self) -> str:
        """The part of the ladder it is drawn in: a key of `SECTIONS`, or its own group's name."""
        if self.group == "hmm":
            return "hmm" if self.exact else "between"
        if self.group == "reference":
            return "reference" if self.state == "none" else "cells"
        return self.group


def number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def perplexity(value: Any) -> float | None:
    """A perplexity: a finite number of at least one, or None."""
    value = number(value)
    return value if value is not None and value >= 1 else None


def text(value: Any) -> str:
    """A string without control characters or lone surrogates; null becomes the empty one."""
    return "" if value is None else _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", str(value))


def items(value: Any) -> list[Any]:
    """A list; anything else becomes the empty one."""
    return list(value) if isinstance(value, list | tuple) else []


def mapping(value: Any) -> Mapping[str, Any]:
    """A mapping; anything else becomes the empty one."""
    return value if isinstance(value, Mapping) else {}


def load(directory: str | Path) -> dict[str, Any]:
    """Read a run's results.json.

    Args:
        directory: The run's directory (or the results.json itself).

    Returns:
        The results, as `statespan ladder run` wrote them.

    Raises:
        ValueError: In one line that names the file and the fix, if it is not there or no results file.
    """
    path = Path(directory)
    path = path if path.suffix == ".json" else path / "results.json"
    again = f"run `statespan ladder run RECIPE.toml --out {path.parent}` again"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error}); {again}") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{path}: not JSON ({error.msg} at {where}), perhaps cut off; {again}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text; {again}") from None
    rungs = results.get("rungs") if isinstance(results, dict) else None
    if not isinstance(rungs, list) or not all(isinstance(r, dict) and isinstance(r.get("name"), str) for r in rungs):
        raise ValueError(f"{path}: has no list `rungs` of named rungs, so it is no ladder's results; {again}")
    return results


def read(results: Mapping[str, Any]) -> list[Rung]:
    """The rungs of the results in ladder order: by section, and within one as they were listed."""
    rungs = [_rung(raw, i) for i, raw in enumerate(items(results.get("rungs"))) if isinstance(raw, Mapping)]
    order = list(SECTIONS)
    order[-1:-1] = dict.fromkeys(r.section for r in rungs if r.section not in SECTIONS)
    return sorted(rungs, key=lambda r: order.index(r.section))


def _rung(raw: Mapping[str, Any], index: int) -> Rung:
    name = text(raw.get("name")) or f"rung {index + 1}"
    curve = (
        Point(
            number(p.get("epoch")),
            number(p.get("seconds")),
            perplexity(p.get("train_perplexity")),
            perplexity(p.get("valid_perplexity")),
        )
        for p in map(mapping, items(raw.get("curve")))
    )
    words = [tuple(text(w) for w in items(state)) for state in items(raw.get("state_words"))]
    usage = [number(u) for u in items(raw.get("state_usage"))][: len(words)]
    usage += [None] * (len(words) - len(usage))
    states = sorted(zip(usage, words, strict=True), key=lambda pair: -(pair[0] or 0.0))
    tags = raw.get("tags")
    return Rung(
        index=index,
        name=name,
        title=text(raw.get("title")) or name,
        group=text(raw.get("group")) or "other",
        equations=text(raw.get("equations")).replace("-", "–"),
        condition=text(raw.get("condition")),
        move=text(raw.get("move")),
        feed=text(raw.get("feed")),
        score=text(raw.get("score")),
        method=text(raw.get("method")),
        exact=raw.get("exact") is True,
        trainer=text(raw.get("trainer")),
        own_width=raw.get("own_width") is True,
        width=number(raw.get("width")),
        parameters=number(raw.get("parameters")),
        learning_rate=number(raw.get("learning_rate")),
        optimizer=text(raw.get("optimizer")),
        epochs=number(raw.get("epochs")),
        valid=perplexity(raw.get("valid_perplexity")),
        test=perplexity(raw.get("test_perplexity")),
        valid_alone=perplexity(raw.get("valid_perplexity_independent")),
        test_alone=perplexity(raw.get("test_perplexity_independent")),
        paper=perplexity(raw.get("paper_perplexity")),
        speed=number(raw.get("tokens_per_second")),
        seconds=number(raw.get("seconds")),
        curve=tuple(curve),
        samples=tuple(text(s) for s in items(raw.get("samples")) if text(s).strip()),
        words=tuple(pair for pair in states if pair[1]),
        tags={key: number(value) for key, value in tags.items()} if isinstance(tags, Mapping) else None,
        note=text(raw.get("note")),
        state=_state(raw),
        parent=text(raw.get("from")),
        step=text(raw.get("step")),
    )


def _state(raw: Mapping[str, Any]) -> str:
    """What the state is: as the results say under `state`, else read off the choices."""
    said = raw.get("state")
    if said in STATES:
        return str(said)
    move = text(raw.get("move")).lower()
    forgets = move in ("u e", "forget", "none", "") and raw.get("exact") is not True
    if raw.get("method") == "counts" or raw.get("trainer") == "counts" or forgets:
        return "none"
    if raw.get("exact") is True:
        return "belief"
    if move.startswith(("softmax", "rows")):
        return "distribution"
    if move.startswith(("sigmoid", "times")):
        return "positive"
    return "real"


# Words for numbers, the same on paper and in the terminal.


def show_perplexity(value: float | None, missing: str = "–") -> str:
    """121.4, or 1,214 from a thousand on."""
    if value is None:
        return missing
    return f"{value:,.1f}" if value < 1000 else f"{value:,.0f}" if value < 1e7 else f"{value:.0e}"


def show_count(value: float | None, missing: str = "–") -> str:
    """199,984."""
    return missing if value is None else f"{value:,.0f}"


def show_size(value: float | None, missing: str = "–") -> str:
    """199,984, but 2.94 M from a million on."""
    return show_count(value, missing) if value is None or value < 1e6 else f"{value / 1e6:.4g} M"


def show_share(value: float | None, missing: str = "–") -> str:
    """42.0 %."""
    return missing if value is None else f"{100 * value:.1f} %"


def show_duration(seconds: float | None, missing: str = "–") -> str:
    """41 s, 6 min 52 s, 2 h 05 min."""
    if seconds is None:
        return missing
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def show_clock(seconds: float | None, missing: str = "–") -> str:
    """1:45, or 1:02:11 from an hour on."""
    if seconds is None:
        return missing
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
