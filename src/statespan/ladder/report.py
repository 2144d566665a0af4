"""The ladder's report: one HTML file without scripts, and a table for the terminal.

`load` reads a run's results.json, `write` makes the page, `table` the terminal's table. A number that is
missing is shown as missing: a run that was stopped half way still has a report.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import charts
from .charts import chips, escape, mark
from .records import (
    CHOICES,
    SECTIONS,
    Rung,
    load,
    mapping,
    number,
    read,
    show_clock,
    show_count,
    show_duration,
    show_perplexity,
    show_share,
    show_size,
    text,
)

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["load", "render", "table", "write"]

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

TAG_COLUMNS = {
    "next_word": ("next word’s tag", "the words before"),
    "states_prefix": ("state’s tag", "the words before"),
    "states_filtered": ("state’s tag", "the word itself too"),
    "states_viterbi": ("Viterbi state’s tag", "the whole sentence"),
    "many_to_one": ("many-to-one", "the whole sentence"),
    "v_measure": ("V-measure", "the whole sentence"),
}
"""Tagging figures: what is measured, and what the model had seen of the sentence when it was asked."""

MOST_STATES = 24
MOST_WORDS = 10
MOST_SAMPLES = 3
LONGEST_SAMPLE = 320


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


def write(results: Mapping[str, Any], path: str | Path) -> None:
    """Write the report as one self-contained HTML file.

    Args:
        results: What `load` returns.
        path: The file to write. Its folder is made if it is not there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(results), encoding="utf-8")


def render(results: Mapping[str, Any]) -> str:
    """The report as HTML text.

    Args:
        results: What `load` returns.

    Returns:
        A whole page: no scripts, nothing fetched from elsewhere.
    """
    rungs = read(results)
    paper = results.get("paper") is True
    title = f"{text(results.get('title')) or 'The ladder'}: from the HMM to the LSTM"
    sections = [
        ("ladder", "The ladder", _ladder(rungs, paper)),
        ("steps", "What each step bought", _steps(rungs)),
        ("curves", "Learning curves", _curves(rungs)),
        ("table", "Every rung in full", _full_table(rungs, paper)),
        ("tags", "Parts of speech", _tags(rungs, results)),
        ("states", "Words of the hidden states", _states(rungs)),
        ("samples", "Text from each rung", _samples(rungs)),
        ("run", "How it was run", _run(rungs, results)),
    ]
    sections = [s for s in sections if s[2]]
    links = " ".join(f'<a href="#{key}">{escape(name)}</a>' for key, name, _ in sections)
    body = "".join(f'<section id="{key}"><h2>{escape(name)}</h2>{content}</section>' for key, name, content in sections)
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src '
        "'unsafe-inline'; "
        'img-src data:"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title>'
        f'<link rel="icon" href="data:,"><style>\n{style}</style></head><body>\n'
        f'<svg class="defs" aria-hidden="true"><defs>{charts.SHAPES}</defs></svg>\n'
        f'<header><h1>{escape(title)}</h1><p class="byline">{_byline(results)}</p>'
        f'<p class="summary">{_summary(rungs, results)}</p><nav>{links}</nav></header>\n'
        f"<main>{body}</main>\n</body></html>\n"
    )


def walk(rungs: Sequence[Rung]) -> list[Step]:
    """The steps from the HMM to the LSTM, over the finished rungs of `WALK`; a rung left out joins two."""
    steps: list[Step] = []
    before, words = None, []
    for name, change in WALK.items():
        rung = _named(rungs, name)
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
    on_walk = _on_walk(rungs)
    steps = []
    for i, rung in enumerate(rungs):
        if rung.index in on_walk or rung.counts:
            continue
        parent, words = rung.parent, rung.step
        if not parent and rung == _named(rungs, rung.name):
            parent, words = SIDE_STEPS.get(rung.name, ("", words))
        before = _named(rungs, parent) if parent else None
        if before is None:
            above = [r for r in rungs[:i] if not r.counts and len(_differences(r, rung)) == 1]
            before = above[0] if above else None
            words = rung.step
        if before is not None and before.index != rung.index:
            steps.append(Step(before, rung, words or "; ".join(_differences(before, rung))))
    return steps


def _on_walk(rungs: Sequence[Rung]) -> set[int]:
    return {rung.index for step in walk(rungs) for rung in (step.before, step.after)}


def _named(rungs: Sequence[Rung], name: str) -> Rung | None:
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


def _strong(rung: Rung) -> str:
    return f"<strong>{escape(rung.title)}</strong>"


def _byline(results: Mapping[str, Any]) -> str:
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


def _summary(rungs: Sequence[Rung], results: Mapping[str, Any]) -> str:
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
    hmm, lstm = _named(rungs, "hmm"), _named(rungs, "lstm")
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
        said.append(f"{_capital(_join(little))} changed little")
    if costly:
        said.append(f"{_capital(_join(costly))} lost some of it again")
    return said


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{'; '.join(words[:-1])}; and {words[-1]}" if words else ""


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _ladder(rungs: Sequence[Rung], paper: bool) -> str:
    on_walk = _on_walk(rungs)
    marks = ["<b>Bold</b>: the walk from the HMM to the LSTM."] if on_walk else []
    if any(r.test_alone is not None for r in rungs):
        marks.append(
            'Filled mark: the state is <em>carried</em> from line to line; <span class="ring"></span> '
            "ring: each "
            "sentence alone, <em>independent</em>."
        )
    if any(r.by_em for r in rungs):
        marks.append('<abbr class="chip">EM</abbr> trained by expectation-maximization.')
    if any(r.own_width and not r.counts for r in rungs):
        marks.append('<abbr class="chip own">own width</abbr> not at the common parameter budget: not to be compared.')
    if paper:
        marks.append("× the paper’s figure, on its validation text and at 10 million parameters.")
    return (
        '<p class="lead">What the hidden state is:</p>'
        + charts.legend(r.state for r in rungs)
        + charts.ladder(rungs, on_walk, paper)
        + f'<p class="note">{" ".join(marks)}</p>'
    )


def _steps(rungs: Sequence[Rung]) -> str:
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


_BESIDE = {
    "hmm": "Other exact HMMs",
    "between": "Others between",
    "elman": "From the Elman network back towards the HMM",
    "cells": "Other cells",
    "reference": "Without a hidden state",
}


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
        f"{escape(_capital(step.words))}{changes}</td>"
        f'<td class="n ppl">{show_perplexity(step.before.test)} → <b>{after}</b></td>'
        f'<td class="bar">{bar}</td>{share}</tr>'
    )


def _curves(rungs: Sequence[Rung]) -> str:
    on_walk = _on_walk(rungs)
    race = charts.race([r for r in rungs if r.index in on_walk])
    panels = charts.small_multiples(rungs)
    if not panels:
        return ""
    parts = []
    if race:
        parts.append(f"<h3>The walk, against time</h3>{race}")
    longest = max((p.epoch or 0.0 for r in rungs for p in r.curve), default=0.0)
    parts.append(
        f'<h3>Every rung, over {longest:g} epochs</h3><p class="note">Validation perplexity, state '
        "carried, log scale "
        f"and the same in every panel; dashed: training text; grey: all the other rungs.</p>{panels}"
    )
    return "".join(parts)


def _full_table(rungs: Sequence[Rung], paper: bool) -> str:
    best = {
        key: min((v for r in rungs if (v := getattr(r, key)) is not None and not r.own_width), default=None)
        for key in ("valid", "test", "valid_alone", "test_alone")
    }
    heads = "<th>condition</th><th>move</th><th>feed</th><th>score</th><th>inference</th><th>trained by</th>"
    heads += '<th class="n">width</th><th class="n">parameters</th>'
    heads += '<th class="n">valid.</th><th class="n">test</th><th class="n">valid.</th><th class="n">test</th>'
    figure = '<th class="n" rowspan="2">paper,<br>valid.</th>' if paper else ""
    rows = []
    section = ""
    columns = 16 + paper
    for rung in rungs:
        if rung.section != section:
            section = rung.section
            heading = escape(SECTIONS.get(section, section))
            rows.append(f'<tr class="section"><th colspan="{columns}"><span>{heading}</span></th></tr>')
        rows.append(_full_row(rung, best, paper))
    return (
        "<p>A rung is four choices. <b>Condition</b>: what is done with the state once the word is known. "
        "<b>Move</b>: how "
        "the state then changes. <b>Feed</b>: what of the word enters the move. <b>Score</b>: how the "
        "state gives the "
        "probabilities of the next word. Inference is <em>exact</em> where the state is the true posterior "
        "of an HMM’s "
        "hidden state.</p>"
        '<div class="scroll wide" tabindex="0" role="region" aria-label="Every rung in full"><table '
        'class="full"><thead>'
        f'<tr><th rowspan="2">rung</th><th rowspan="2">equations</th><th colspan="4">the four choices</th>'
        f'<th colspan="4">the model</th><th class="n" colspan="2">perplexity<br>carried</th>'
        f'<th class="n" colspan="2">perplexity<br>indep.</th>{figure}<th class="n" rowspan="2">words/s</th>'
        f'<th class="n" rowspan="2">time<br>min:s</th></tr><tr>{heads}</tr></thead><tbody>'
        f"{''.join(rows)}</tbody></table></div>"
    )


def _full_row(rung: Rung, best: Mapping[str, float | None], paper: bool) -> str:
    own = '<abbr class="dagger" title="not at the common parameter budget">†</abbr>'
    numbers = []
    for key in ("valid", "test", "valid_alone", "test_alone"):
        value = getattr(rung, key)
        top = value is not None and value == best[key] and not rung.own_width
        shown = f"<b>{show_perplexity(value)}</b>" if top else show_perplexity(value)
        numbers.append(f'<td class="n">{shown}</td>')
    if not rung.finished:
        numbers = [f'<td class="unfinished" colspan="4" title="{escape(rung.note)}">not finished</td>']
        if rung.valid is not None:
            numbers = [
                f'<td class="n">{show_perplexity(rung.valid)}</td>'
                f'<td class="unfinished" colspan="3" title="{escape(rung.note)}">not finished</td>'
            ]
    exact = "exact" if rung.exact else "not exact"
    inference = "–" if rung.counts else f'{escape(rung.method) or "–"}<span class="under">{exact}</span>'
    rate = f"{rung.learning_rate:g}" if rung.learning_rate is not None else ""
    epochs = f"{rung.epochs:g} epoch{'' if rung.epochs == 1 else 's'}" if rung.epochs is not None else ""
    recipe = "<br>".join(p for p in (f"{escape(rung.optimizer)} {rate}".strip(), epochs) if p)
    trained = f'{escape(rung.trainer)}<span class="under">{recipe}</span>'
    cells = [escape(getattr(rung, choice)) or "–" for choice in CHOICES]
    cells = [f"<code>{cell}</code>" if "(" in cell else cell for cell in cells]
    choices = "".join(f'<td class="{choice}">{cell}</td>' for choice, cell in zip(CHOICES, cells, strict=True))
    if rung.counts:
        choices = '<td colspan="4">counts of word sequences</td>'
    name = f'<span class="under"><code>{escape(rung.name).replace("/", "/<wbr>")}</code></span>'
    note = f'<span class="under note">{escape(rung.note)}</span>' if rung.note else ""
    figure = f'<td class="n">{show_perplexity(rung.paper)}</td>' if paper else ""
    return (
        f'<tr id="rung-{rung.index}" class="{"" if rung.finished else "gone"}"><th scope="row">'
        f"{mark(rung.state)}"
        f"<span>{escape(rung.title)}{chips(rung)}{name}{note}</span></th><td>"
        f"{escape(rung.equations) or '–'}</td>{choices}"
        f'<td>{inference}</td><td>{trained}</td><td class="n">{show_count(rung.width)}'
        f"{own if rung.own_width and not rung.counts else ''}</td>"
        f'<td class="n">{show_count(rung.parameters)}</td>{"".join(numbers)}{figure}'
        f'<td class="n">{show_count(rung.speed)}</td><td class="n">{show_clock(rung.seconds)}</td></tr>'
    )


def _tags(rungs: Sequence[Rung], results: Mapping[str, Any]) -> str:
    tagged = [r for r in rungs if r.tags]
    columns = [key for key in TAG_COLUMNS if any((r.tags or {}).get(key) is not None for r in tagged)]
    if not columns:
        return ""
    best = {key: max(v for r in tagged if (v := (r.tags or {}).get(key)) is not None) for key in columns}
    heads = "".join(
        f'<th class="n">{TAG_COLUMNS[k][0]}<span class="under">saw {TAG_COLUMNS[k][1]}</span></th>' for k in columns
    )
    rows = []
    for rung in tagged:
        cells = ""
        for key in columns:
            value = (rung.tags or {}).get(key)
            shown = f"{value:.3f}" if key == "v_measure" and value is not None else show_share(value)
            shown = f"<b>{shown}</b>" if value is not None and value == best[key] else shown
            cells += f'<td class="n">{shown}</td>'
        rows.append(
            f'<tr><th scope="row">{mark(rung.state)}<span>{escape(rung.title)}{chips(rung)}</span></th>'
            f'<td class="n">{show_perplexity(rung.test)}</td>{cells}</tr>'
        )
    kinds = number(mapping(results.get("corpus")).get("tags"))
    many = f"{show_count(kinds)} tags. " if kinds is not None else ""
    keys = _on_walk(rungs)
    return (
        f"<p>{many}No rung was told of tags. The <em>next word’s tag</em> is the likeliest one once the "
        "next-word "
        "probabilities are summed over words of the same tag, before that word is seen. A <em>state’s "
        "tag</em> is the tag "
        "that goes most often with it. What a column had seen differs, so columns must not be compared "
        "with one another: "
        "a state that has seen the word, or the whole sentence, answers an easier question.</p>"
        f"{charts.scatter(tagged, keys)}"
        '<div class="scroll" tabindex="0" role="region" aria-label="Tagging"><table class="tagging"><thead>'
        "<tr>"
        f'<th>rung</th><th class="n">test perplexity<span class="under">carried</span></th>{heads}</tr>'
        "</thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="note">Many-to-one: each state is given its most frequent tag, and all words are '
        "counted. V-measure: "
        "agreement of states and tags as two groupings, from 0 to 1, whatever the number of states.</p>"
    )


def _states(rungs: Sequence[Rung]) -> str:
    shown = [r for r in rungs if r.words]
    if not shown:
        return ""
    parts = [
        "<p>The most used hidden states of each HMM and the words each is likeliest to emit. The bar is "
        "the share of all "
        "words that the state accounts for.</p>"
    ]
    for i, rung in enumerate(shown):
        most = max((use or 0.0 for use, _ in rung.words), default=0.0)
        cells = []
        for use, words in rung.words[:MOST_STATES]:
            bar = ""
            if use is not None:
                width = 100 * max(use, 0.0) / most if most > 0 else 0.0
                bar = f'<span class="use"><i style="width:{width:.1f}%"></i></span>'
                bar += f"<small>{show_share(use)}</small>"
            emitted = " ".join(f"<bdi>{escape(w)}</bdi>" for w in words[:MOST_WORDS])
            cells.append(f'<li><div class="usage">{bar}</div><p>{emitted}</p></li>')
        of = f" of {show_count(rung.width)}" if rung.width is not None and rung.width > len(cells) else ""
        parts.append(
            f"<details{' open' if i == 0 else ''}><summary>{mark(rung.state)}<b>{escape(rung.title)}</b>"
            f"{chips(rung)} "
            f'<span class="quiet">{len(cells)}{of} states, test perplexity '
            f"{show_perplexity(rung.test)}</span></summary>"
            f'<ul class="states">{"".join(cells)}</ul></details>'
        )
    return "".join(parts)


def _samples(rungs: Sequence[Rung]) -> str:
    shown = [r for r in rungs if r.samples]
    if not shown:
        return ""
    parts = []
    for rung in shown:
        lines = []
        for sample in rung.samples[:MOST_SAMPLES]:
            short = sample if len(sample) <= LONGEST_SAMPLE else sample[:LONGEST_SAMPLE].rsplit(" ", 1)[0] + " …"
            lines.append(f'<p dir="auto">{escape(short)}</p>')
        parts.append(
            f"<article><h3>{mark(rung.state)}{escape(rung.title)}{chips(rung)} "
            f"<b>{show_perplexity(rung.test, 'not finished')}</b></h3>{''.join(lines)}</article>"
        )
    lead = "<p>Drawn word by word from each model, in ladder order.</p>"
    return f'{lead}<div class="samples">{"".join(parts)}</div>'


def _run(rungs: Sequence[Rung], results: Mapping[str, Any]) -> str:
    corpus = mapping(results.get("corpus"))
    sizes = [(label, number(corpus.get(f"{key}_tokens"))) for key, label in _PARTS.items()]
    words = ", ".join(f"{show_count(size)} {label}" for label, size in sizes if size is not None)
    vocabulary, unknown = number(corpus.get("vocabulary")), number(corpus.get("unknown_rate"))
    known = f"{show_count(vocabulary)} words" if vocabulary is not None else ""
    known += f"; {show_share(unknown)} of the text is outside it" if known and unknown is not None else ""
    budget = number(results.get("budget"))
    command, version = text(results.get("command")), text(results.get("version"))
    facts = {
        "Command": f"<code>{escape(command)}</code>" if command else "",
        "Text": escape(text(corpus.get("name")) + (f": {words} words" if words else "")),
        "Vocabulary": escape(known),
        "Budget": f"{show_count(budget)} parameters a rung; widths follow from it" if budget is not None else "",
        "Machine": escape(text(results.get("machine"))),
        "Version": escape(f"statespan {version}" if version else ""),
        "Seed": escape(text(results.get("seed"))),
        "Started": escape(text(results.get("started")).replace("T", " ")),
        "Took": show_duration(number(results.get("seconds")), ""),
    }
    rows = "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in facts.items() if value)
    notes = "".join(f"<li><b>{escape(r.title)}</b>: {escape(r.note)}</li>" for r in rungs if r.note)
    notes = f"<h3>Notes</h3><ul>{notes}</ul>" if notes else ""
    again = ""
    if command:
        install = f"pip install statespan=={version}" if version else "pip install statespan"
        again = (
            f"<h3>To run it again</h3><pre>{escape(install)}\n{escape(command)}</pre>"
            "<p>The seed fixes every random draw; another machine or another number of cores may still round "
            "differently, which moves perplexities in the last digits.</p>"
        )
    return (
        f"<dl>{rows}</dl><h3>What the numbers mean</h3>"
        "<p><b>Perplexity</b> is the exponential of the average negative log-probability of a word of the "
        "text, given "
        "those before it: the number of equally likely words that would be as hard to guess. The end of a "
        "line counts as "
        "a word. Perplexities are comparable only with the same vocabulary.</p>"
        "<p><b>Carried</b>: the state goes on from line to line, so a sentence is predicted with all the "
        "text before it. "
        "<b>Independent</b>: every sentence starts anew from the model’s own first state. These are two "
        "experiments; "
        "published figures use either. The chart, the steps and the summary use the test text, carried.</p>"
        "<p><b>Width</b> is the number of hidden states or units that fits the parameter budget; rungs "
        "marked "
        f"<em>own width</em> do not keep to it.</p>{notes}{again}"
    )


_PARTS = {"train": "training", "valid": "validation", "test": "test"}


# The terminal.

_COLOURS = {
    "belief": "blue",
    "distribution": "cyan",
    "positive": "yellow",
    "real": "magenta",
    "none": "bright_black",
}


def table(results: Mapping[str, Any]) -> Table:
    """The ladder as a table for the terminal, 100 columns wide at most.

    Args:
        results: What `load` returns.

    Returns:
        A `rich.table.Table`, in ladder order.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rungs = read(results)
    budget = number(results.get("budget"))
    each = f", {show_count(budget)} parameters a rung" if budget is not None else ""
    made = Table(
        box=box.SIMPLE_HEAD,
        title=Text(f"{text(results.get('title')) or 'The ladder'}: test perplexity, state carried{each}"),
    )
    made.add_column("rung", no_wrap=True, max_width=33, overflow="ellipsis")
    made.add_column("perplexity", justify="right", no_wrap=True, min_width=12)
    made.add_column("", no_wrap=True, min_width=12, max_width=12)
    for heading in ("width", "params", "words/s", "min"):
        made.add_column(heading, justify="right", no_wrap=True)
    equal = [r.test for r in rungs if r.test is not None]
    ordered = sorted(equal)
    high = min(max(equal), 4 * ordered[len(ordered) // 2]) if equal else 1.0
    axis = charts.Axis(min(equal, default=1.0) / 1.25, high * 1.0001)
    best = min((r.test for r in rungs if r.test is not None and not r.own_width), default=None)
    marks = set()
    section = ""
    for rung in rungs:
        if section and rung.section != section:
            made.add_section()
        section = rung.section
        label = Text(rung.name)
        if rung.by_em:
            label.append(" *")
            marks.add("* trained by EM")
        if rung.own_width and not rung.counts:
            label.append(" †")
            marks.add("† at its own width, not at the budget")
        if rung.test is None:
            shown, bar = Text("not finished", style="red"), Text("")
        else:
            shown = Text(show_perplexity(rung.test), style="bold" if rung.test == best else "")
            bar = Text(_bar(axis.at(rung.test) / 100, 12), style=_COLOURS[rung.state])
        made.add_row(
            label,
            shown,
            bar,
            show_count(rung.width),
            show_size(rung.parameters),
            show_size(rung.speed),
            "–" if rung.seconds is None else f"{rung.seconds / 60:.1f}",
        )
    if marks:
        made.caption = Text("   ".join(sorted(marks)))
    return made


def _bar(share: float, width: int) -> str:
    eighths = round(share * width * 8)
    return "█" * (eighths // 8) + ("▏▎▍▌▋▊▉"[eighths % 8 - 1] if eighths % 8 else "")
