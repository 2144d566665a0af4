"""The head of the report: when and what of, and one paragraph worked out from the numbers."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from .charts import escape
from .records import Rung, mapping, number, show_count, show_duration, show_perplexity, text
from .steps import capital, named, walk


def byline(results: Mapping[str, Any]) -> str:
    """Text, version, day and duration, in one line of HTML."""
    started = text(results.get("started"))
    try:
        day = datetime.fromisoformat(started)
        started = f"{day.day} {day:%B %Y}"
    except ValueError:
        pass
    version = text(results.get("version"))
    parts = [
        text(mapping(results.get("corpus")).get("name")),
        f"statespan {version}" if version else "statespan",
        started,
        show_duration(number(results.get("seconds")), ""),
    ]
    return " · ".join(escape(p) for p in parts if p)


def summary(rungs: Sequence[Rung], results: Mapping[str, Any]) -> str:
    """One paragraph, worked out from the numbers."""
    corpus = mapping(results.get("corpus"))
    models = [r for r in rungs if not r.counts]
    equal = [r for r in models if r.test is not None and not r.own_width]
    said = []
    words, budget = number(corpus.get("train_tokens")), number(results.get("budget"))
    name = text(corpus.get("name")) or "the text"
    sentence = f"{len(models)} rungs of the ladder between a hidden Markov model and an LSTM were trained on "
    sentence += f"{show_count(words)} words of {escape(name)}" if words is not None else escape(name)
    own = sum(r.own_width for r in models)
    if budget is not None:
        sentence += f", each with about {show_count(budget)} parameters"
        sentence += f" ({'one' if own == 1 else own} more at {'its' if own == 1 else 'their'} own width)" if own else ""
    said.append(
        sentence.replace(f"{len(models)} rungs", f"{len(models) - (own if budget is not None else 0)} rungs", 1)
    )
    unfinished = [r for r in rungs if not r.finished]
    if not equal:
        return ". ".join([*said, "No rung has finished yet."])
    best = min(equal, key=lambda r: r.test or math.inf)
    hmm, lstm = named(rungs, "hmm"), named(rungs, "lstm")
    top = f"<strong>{show_perplexity(best.test)}</strong>"
    sentence = f"The best is {_strong(best)}, with a test perplexity of {top}"
    if hmm is not None and hmm.test is not None and best.test is not None and hmm is not best:
        sentence += (
            f"; the {_strong(hmm)} stands at <strong>{show_perplexity(hmm.test)}</strong>, "
            f"{hmm.test / best.test:.2f} times as much"
        )
    said.append(sentence)
    said += _walk_in_words(rungs, hmm, lstm)
    exact = [r for r in equal if r.exact]
    if len(exact) > 1:
        top = min(exact, key=lambda r: r.test or math.inf)
        said.append(
            f"Of the {len(exact)} rungs that still keep an exact belief, {_strong(top)} is the best "
            f"at {show_perplexity(top.test)}"
        )
    counted = [r for r in rungs if r.counts and r.test is not None]
    if counted:
        top = min(counted, key=lambda r: r.test or math.inf)
        beaten = sum((r.test or math.inf) < (top.test or 0.0) for r in equal)
        who = f"{beaten} of the {len(equal)} trained rungs" if beaten else "none of the trained rungs"
        beat = "beats" if beaten == 1 else "beat"
        said.append(f"{_strong(top)}, which only counts, reaches {show_perplexity(top.test)}: {who} {beat} it")
    if unfinished:
        names = _join([escape(r.title) for r in unfinished]) if len(unfinished) < 4 else f"{len(unfinished)} rungs"
        said.append(f"{names} did not finish")
    return ". ".join(said) + "."


def _walk_in_words(rungs: Sequence[Rung], hmm: Rung | None, lstm: Rung | None) -> list[str]:
    """What the steps of the walk bought, biggest first."""
    steps = [s for s in walk(rungs) if s.ratio is not None]
    if hmm is None or lstm is None or not hmm.test or not lstm.test or len(steps) < 2:
        return []
    if hmm.test / lstm.test < 1.05:
        return [f"The {_strong(lstm)} did not get clearly below the HMM ({show_perplexity(lstm.test)})"]
    distance = math.log(hmm.test / lstm.test)
    gains = sorted(((-math.log(s.ratio or 1.0) / distance, s) for s in steps), key=lambda g: -g[0])
    most = [
        f"{escape(s.words)} ({100 * share:.0f} %, from {show_perplexity(s.before.test)} "
        f"to {show_perplexity(s.after.test)})"
        for share, s in gains[:3]
        if share >= 0.1
    ]
    lead = f"Of the way from HMM to {_strong(lstm)} ({show_perplexity(lstm.test)}), counted in log-perplexity, "
    said = [f"{lead}the biggest steps were {_join(most)}"] if most else []
    little = [escape(s.words) for share, s in gains if abs(share) < 0.05]
    costly = [f"{escape(s.words)} ({-100 * share:.0f} %)" for share, s in gains if share <= -0.05]
    if little:
        said.append(f"{capital(_join(little))} changed little")
    if costly:
        said.append(f"{capital(_join(costly))} lost some of it again")
    return said


def _strong(rung: Rung) -> str:
    return f"<strong>{escape(rung.title)}</strong>"


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{'; '.join(words[:-1])}; and {words[-1]}" if words else ""
