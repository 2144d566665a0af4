"""The report's sections, each as HTML; an empty one has nothing to show."""

from collections.abc import Mapping, Sequence
from typing import Any

from . import charts
from .charts import chips, escape, mark
from .records import (
    CHOICES,
    SECTIONS,
    Rung,
    mapping,
    number,
    show_clock,
    show_count,
    show_duration,
    show_perplexity,
    show_share,
    text,
)
from .steps import walked

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


_PARTS = {"train": "training", "valid": "validation", "test": "test"}


def ladder(rungs: Sequence[Rung], paper: bool) -> str:
    """The chart of all rungs."""
    on_walk = walked(rungs)
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


def curves(rungs: Sequence[Rung]) -> str:
    """The learning curves."""
    on_walk = walked(rungs)
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


def full_table(rungs: Sequence[Rung], paper: bool) -> str:
    """Every rung with its choices, its model and its figures."""
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


def tags(rungs: Sequence[Rung], results: Mapping[str, Any]) -> str:
    """Tagging accuracies."""
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
    keys = walked(rungs)
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


def states(rungs: Sequence[Rung]) -> str:
    """The words of the most used states."""
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


def samples(rungs: Sequence[Rung]) -> str:
    """Text drawn from each rung."""
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


def run(rungs: Sequence[Rung], results: Mapping[str, Any]) -> str:
    """How it was run, and what the numbers mean."""
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
