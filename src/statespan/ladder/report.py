"""The ladder's report: one HTML file without scripts.

`load` reads a run's results.json, `render` makes the page; `terminal.table` is the same for a terminal. A number that
is missing is shown as missing: a run that was stopped half way still has a report.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import charts, sections, steps, summary
from .charts import escape
from .records import load, read, text

__all__ = ["load", "render"]


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
    shown = [
        ("ladder", "The ladder", sections.ladder(rungs, paper)),
        ("steps", "What each step bought", steps.section(rungs)),
        ("curves", "Learning curves", sections.curves(rungs)),
        ("table", "Every rung in full", sections.full_table(rungs, paper)),
        ("tags", "Parts of speech", sections.tags(rungs, results)),
        ("states", "Words of the hidden states", sections.states(rungs)),
        ("samples", "Text from each rung", sections.samples(rungs)),
        ("run", "How it was run", sections.run(rungs, results)),
    ]
    shown = [s for s in shown if s[2]]
    links = " ".join(f'<a href="#{key}">{escape(name)}</a>' for key, name, _ in shown)
    body = "".join(f'<section id="{key}"><h2>{escape(name)}</h2>{content}</section>' for key, name, content in shown)
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src '
        "'unsafe-inline'; "
        'img-src data:"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title>'
        f'<link rel="icon" href="data:,"><style>\n{style}</style></head><body>\n'
        f'<svg class="defs" aria-hidden="true"><defs>{charts.SHAPES}</defs></svg>\n'
        f'<header><h1>{escape(title)}</h1><p class="byline">{summary.byline(results)}</p>'
        f'<p class="summary">{summary.summary(rungs, results)}</p><nav>{links}</nav></header>\n'
        f"<main>{body}</main>\n</body></html>\n"
    )
