"""The walk from the HMM to the LSTM and the steps beside it: what each changes, and what that bought."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from . import charts
from .charts import chips, escape, mark
from .records import CHOICES, Rung, show_count, show_perplexity

WALK = {
    "hmm": "",
    "hmm/late-transition": "normalising after the move instead of before it",
    "hmm/sigmoid": "a sigmoid instead of a softmax in the state",
    "hmm/sigmoid+late-emission": "scoring by one softmax over E c instead of a mixture of emission rows",
    "elman/multiplicative-one-matrix": "a plain product with the word’s embedding instead of Bayes’ rule",
    "elman/multiplicative": "a matrix of its own for the word that is fed",
    "elman": "adding the word to the state instead of multiplying by it",
    "lstm": "gates and a memory cell",
}
"""The shortest way from the HMM to the LSTM, and what each rung changes of the one before it."""


SIDE_STEPS = {
    "hmm/tensor": ("hmm", "the word chooses the transition, through a tensor"),
    "hmm/tensor-raw": ("hmm/tensor", "feeding the raw embedding, not its softmax"),
    "hmm/addition": ("hmm", "the word adds to the transition’s logits"),
    "hmm/addition-raw": ("hmm/addition", "feeding the raw embedding, not its softmax"),
    "hmm/gated": ("hmm", "the word gates the transition’s logits"),
    "hmm/late-emission": ("hmm", "scoring by one softmax over E c instead of a mixture"),
    "hmm/late-both": ("hmm/late-transition", "scoring by one softmax over E c as well"),
    "elman/softmax": ("elman", "back to a softmax in the state"),
    "elman/normalise-before-emit": ("elman", "the state is normalised only where it is scored"),
    "elman/hmm-emission": ("elman", "back to scoring by a mixture of emission rows"),
    "elman/softmax+hmm-emission": ("elman/softmax", "back to scoring by a mixture of emission rows"),
    "jordan": ("elman", "the output is fed back instead of the state"),
    "gru": ("elman", "two gates"),
    "bigram": ("elman", "no state: only the last word is known"),
}
"""Every other rung of the table: the rung it departs from, and what it changes."""


_BESIDE = {
    "hmm": "Other exact HMMs",
    "between": "Others between",
    "elman": "From the Elman network back towards the HMM",
    "cells": "Other cells",
    "reference": "Without a hidden state",
}


@dataclass(frozen=True)
class Step:
    """Two neighbours in the ladder, and what changes between them."""

    before: Rung
    after: Rung
    words: str

    @property
    def ratio(self) -> float | None:
        """Perplexity after over perplexity before."""
        if self.before.test is None or self.after.test is None:
            return None
        return self.after.test / self.before.test


def walk(rungs: Sequence[Rung]) -> list[Step]:
    """The steps from the HMM to the LSTM, over the finished rungs of `WALK`; a rung left out joins two."""
    steps: list[Step] = []
    before, words = None, []
    for name, change in WALK.items():
        rung = named(rungs, name)
        words += [change] if change else []
        if rung is None or not rung.finished:
            continue
        if before is not None:
            steps.append(Step(before, rung, ", and ".join(words)))
        before, words = rung, []
    return steps


def side_steps(rungs: Sequence[Rung]) -> list[Step]:
    """Every rung beside the walk, with its neighbour.

    The neighbour is the rung's own `from` where the results name one, else that of `SIDE_STEPS`, else the
    first rung above it that differs in one thing: a choice, the trainer or the width.
    """
    on_walk = walked(rungs)
    steps = []
    for i, rung in enumerate(rungs):
        if rung.index in on_walk or rung.counts:
            continue
        parent, words = rung.parent, rung.step
        if not parent and rung == named(rungs, rung.name):
            parent, words = SIDE_STEPS.get(rung.name, ("", words))
        before = named(rungs, parent) if parent else None
        if before is None:
            above = [r for r in rungs[:i] if not r.counts and len(_differences(r, rung)) == 1]
            before = above[0] if above else None
            words = rung.step
        if before is not None and before.index != rung.index:
            steps.append(Step(before, rung, words or "; ".join(_differences(before, rung))))
    return steps


def walked(rungs: Sequence[Rung]) -> set[int]:
    """The places of the rungs on the walk."""
    return {rung.index for step in walk(rungs) for rung in (step.before, step.after)}


def named(rungs: Sequence[Rung], name: str) -> Rung | None:
    """The rung of this name; where several share it, the one at the common budget, by gradients."""
    found = [r for r in rungs if r.name == name]
    return min(found, key=lambda r: (r.own_width, r.by_em), default=None)


def _differences(before: Rung, after: Rung) -> list[str]:
    found = [
        f"{choice}: {getattr(after, choice) or 'none'} instead of {getattr(before, choice) or 'none'}"
        for choice in CHOICES
        if getattr(before, choice) != getattr(after, choice)
    ]
    if before.trainer != after.trainer:
        found.append(f"trained by {after.trainer} instead of {before.trainer}")
    if before.own_width != after.own_width:
        found.append(f"{show_count(after.width)} wide instead of {show_count(before.width)}")
    return found


def section(rungs: Sequence[Rung]) -> str:
    """The section of steps, as HTML; empty where no two neighbours are finished."""
    main, side = walk(rungs), side_steps(rungs)
    ratios = [s.ratio for s in [*main, *side] if s.ratio]
    if not ratios:
        return ""
    parts = []
    if main:
        first, last = main[0].before, main[-1].after
        parts.append(
            f"<h3>The walk from {escape(first.title)} to {escape(last.title)}</h3>"
            '<p class="note">Each row against the one above it. The share counts log-perplexity, so the '
            "shares "
            f"add up to 100 %.</p>{_walk_table(main)}"
        )
    if side:
        widest = max((abs(math.log(s.ratio)) for s in side if s.ratio), default=0.0)
        rows, section = [], ""
        for step in side:
            if step.after.section != section:
                section = step.after.section
                heading = escape(_BESIDE.get(section, section))
                rows.append(f'<tr class="section"><th colspan="4">{heading}</th></tr>')
            bar = f"{charts.effect(step.ratio, widest)}<span>{_change(step)}</span>"
            rows.append(_step_row(step, bar, step.before.title))
        parts.append(
            '<h3>Beside the walk</h3><p class="note">Every other rung against the one it departs from.</p>'
            + _step_table("lower ← → higher", "", rows)
        )
    parts.append(
        '<p class="note">Test perplexity, state carried. One seed each: a difference of a few per cent '
        "between "
        "two neighbours may be chance.</p>"
    )
    return "".join(parts)


def _walk_table(steps: Sequence[Step]) -> str:
    first, last = steps[0].before, steps[-1].after
    ends = [r.test for s in steps for r in (s.before, s.after) if r.test is not None]
    axis = charts.Axis(min(ends) * 0.999, max(ends) * 1.001)
    total = math.log((last.test or 1.0) / (first.test or 1.0))
    whole = [Step(first, last, "the whole way")] if len(steps) > 1 else []
    rows = []
    for i, step in enumerate([*steps, *whole]):
        end = step in whole
        share = 100 * math.log(step.ratio or 1.0) / total if total else 0.0
        bar = charts.stair(step.before.test or 1.0, step.after.test or 1.0, axis)
        bar += f"<span>{_change(step)}</span>"
        shown = f"{share:.0f} %".replace("-0 %", "0 %").replace("-", "−")
        source = step.before.title if end or i == 0 else ""
        rows.append(_step_row(step, bar, source, f'<td class="n share">{shown}</td>', "total" if end else ""))
    return _step_table("the step", '<th class="n">of the way</th>', rows)


def _step_table(bar: str, last: str, rows: Sequence[str]) -> str:
    return (
        '<table class="steps"><thead><tr><th>rung</th><th>what changes</th><th class="n">perplexity</th>'
        f'<th class="bar">{bar}</th>{last}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def _change(step: Step) -> str:
    if step.ratio is None:
        return '<span class="unfinished">not finished</span>'
    if abs(1 - step.ratio) < 0.005:
        return "no change"
    return f"{100 * abs(1 - step.ratio):.0f} % {'lower' if step.ratio < 1 else 'higher'}"


def _step_row(step: Step, bar: str, source: str, share: str = "", kind: str = "") -> str:
    after = show_perplexity(step.after.test)
    against = f'<span class="under">from {escape(source)}</span>' if source else ""
    changes = "" if kind == "total" else _changes(step)
    return (
        f'<tr class="{kind}"><th scope="row">{mark(step.after.state)}<span>{escape(step.after.title)}'
        f'{chips(step.after)}{against}</span></th><td class="what">'
        f"{escape(capital(step.words))}{changes}</td>"
        f'<td class="n ppl">{show_perplexity(step.before.test)} → <b>{after}</b></td>'
        f'<td class="bar">{bar}</td>{share}</tr>'
    )


def _changes(step: Step) -> str:
    """The choices that differ, as code."""
    rows = []
    for choice in CHOICES:
        old, new = getattr(step.before, choice), getattr(step.after, choice)
        if old != new:
            rows.append(
                f"<li>{choice}: <code>{escape(old or 'none')}</code> → <code>{escape(new or 'none')}</code></li>"
            )
    return f'<ul class="changes">{"".join(rows)}</ul>' if rows else ""


def capital(words: str) -> str:
    """The words with a capital first."""
    return words[:1].upper() + words[1:]
