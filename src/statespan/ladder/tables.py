"""Tables 1 and 2 and figures 2 and 3 of the paper, ours beside its, from the results files: Markdown and SVG."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from statespan.files import write_bytes
from statespan.ladder import drawings, ledger
from statespan.ladder.drawings import Mark, Point
from statespan.ladder.rungs import LADDER

TAGGING: Mapping[str, tuple[float, float]] = {
    "hmm": (52.36, 68.23),
    "hmm/tensor": (45.16, 61.66),
    "hmm/gated": (44.62, 59.64),
    "hmm/sigmoid": (31.82, 44.13),
    "hmm/sigmoid+late-emission": (42.09, 52.41),
    "elman/softmax+hmm-emission": (30.86, 45.85),
    "elman/softmax": (36.68, 48.54),
    "elman": (44.97, 54.59),
    "lstm": (45.75, 55.08),
}
"""Table 2 of the paper: accuracies of PTB and of universal tags, in percent."""

PAPER = "Penn Treebank"
"""The text that the paper's figures are of."""

TEN_MILLION = (9_000_000, 10_000_000)
"""Parameters of rows that may be set beside the paper's."""

Row = Mapping[str, str]


def write(folder: Path) -> list[Path]:
    """Draw everything that the results in a folder hold.

    Args:
        folder: where `ladder.csv` and, if there is one, `tagging.csv` are; the drawings go beside them.

    Returns:
        What was written, the tables first.

    Raises:
        StatespanError: a results file that is broken, or a folder that cannot be written.
    """
    rows, tagged = ledger.read(folder / ledger.LADDER), ledger.read(folder / ledger.TAGGING)
    pages = {
        "tables.md": _page(rows, tagged),
        "figure-2.svg": drawings.perplexities([_mark(row, best(rows)) for row in best(rows)]),
        "figure-3.svg": drawings.scatter(_points(tagged, rows)),
    }
    for name, page in pages.items():
        write_bytes(folder / name, page.encode())
    return [folder / name for name in pages]


def best(rows: Sequence[Row]) -> list[Row]:
    """The row of the lowest dev perplexity of each rung and text and size, in the ladder's order."""
    found: dict[tuple[str, ...], Row] = {}
    for row in rows:
        key = (row["corpus"], row["rung"], _size(row))
        other = found.get(key)
        if other is None or _number(row, "dev_perplexity") < _number(other, "dev_perplexity"):
            found[key] = row
    places = {name: i for i, name in enumerate(LADDER)}
    return sorted(found.values(), key=lambda r: (r["corpus"], _size(r), places.get(r["rung"], len(places)), r["rung"]))


def _size(row: Row) -> str:
    """What rows are compared within: the paper's budget, or the recipe they are of."""
    return "10M" if _paper_size(row) else row["recipe"].partition(":")[0]


def _paper_size(row: Row) -> bool:
    return TEN_MILLION[0] <= _number(row, "parameters") <= TEN_MILLION[1]


def _number(row: Row, column: str) -> float:
    value = ledger.number(row[column])
    return float("inf") if value is None else value


def _paper(row: Row) -> float | None:
    """The paper's dev perplexity, for rows of its text and size."""
    rung = LADDER.get(row["rung"])
    return rung.paper if rung is not None and row["corpus"] == PAPER and _paper_size(row) else None


def _seeds(row: Row, rows: Sequence[Row]) -> str:
    """Lowest and highest dev perplexity over the seeds of the same recipe."""
    same = [r for r in rows if all(r[k] == row[k] for k in ("corpus", "rung", "recipe", "width"))]
    values = sorted(_number(r, "dev_perplexity") for r in {r["seed"]: r for r in same}.values())
    return f"{values[0]:.2f} to {values[-1]:.2f} ({len(values)})" if len(values) > 1 else ""


def _cell(value: float | None, digits: int = 2) -> str:
    return "" if value is None or value == float("inf") else f"{value:.{digits}f}"


def _page(rows: Sequence[Row], tagged: Sequence[Row]) -> str:
    """Both tables, in Markdown."""
    lines = [
        "# Results",
        "",
        "Made by `statespan ladder report` from `ladder.csv` and `tagging.csv`; the best dev perplexity of each rung. "
        "Perplexities are with the state carried over; `alone` is each sentence on its own.",
    ]
    for corpus, size in dict.fromkeys((row["corpus"], _size(row)) for row in best(rows)):
        chosen = [row for row in best(rows) if (row["corpus"], _size(row)) == (corpus, size)]
        head = ("rung", "width", "paper", "dev", "ours / paper", "test", "dev alone", "test alone", "seeds", "recipe")
        lines += ["", f"## Perplexity: {corpus}, {size}", "", _line(head), _line(["---"] * len(head))]
        for row in chosen:
            paper, dev = _paper(row), ledger.number(row["dev_perplexity"])
            ratio = _cell(dev / paper, 3) if paper and dev else ""
            others = ("test_perplexity", "dev_perplexity_independent", "test_perplexity_independent")
            cells = [row["rung"], row["width"], _cell(paper), _cell(dev), ratio]
            lines.append(
                _line([*cells, *(_cell(ledger.number(row[c])) for c in others), _seeds(row, rows), row["recipe"]])
            )
    for corpus, size in dict.fromkeys((row["corpus"], _size(row)) for row in tagged):
        head = ("rung", "protocol", "paper, PTB / universal", "dev", "dev alone", "test", "test alone", "recipe")
        lines += ["", f"## Tags, %: {corpus}, {size}", "", _line(head), _line(["---"] * len(head))]
        for row in (row for row in tagged if (row["corpus"], _size(row)) == (corpus, size)):
            paper = TAGGING.get(row["rung"]) if corpus == PAPER and _paper_size(row) else None
            # An RNN's figure is of the word to come; the HMM's 52.36 is of states that have seen the word.
            sees = row["protocol"] in ("filtered", "viterbi")
            beside = paper is not None and sees == (row["rung"] == "hmm")
            shown = [
                " / ".join(_cell(_percent(row[f"{part}_accuracy{kind}{end}"])) for kind in ("", "_universal"))
                for part, end in (("dev", ""), ("dev", "_independent"), ("test", ""), ("test", "_independent"))
            ]
            told = f"{paper[0]:.2f} / {paper[1]:.2f}" if beside and paper else ""
            lines.append(_line([row["rung"], row["protocol"], told, *shown, row["recipe"]]))
    return "\n".join(lines) + "\n"


def _percent(cell: str) -> float | None:
    value = ledger.number(cell)
    return None if value is None else 100 * value


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _mark(row: Row, rows: Sequence[Row]) -> Mark:
    """A line of figure 2."""
    return Mark(_name(row, rows), ledger.number(row["dev_perplexity"]), _paper(row))


def _name(row: Row, rows: Sequence[Row]) -> str:
    """The rung; its size too, where there are several."""
    several = len({(other["corpus"], _size(other)) for other in rows}) > 1
    return f"{row['rung']} ({_size(row)})" if several else row["rung"]


def _points(tagged: Sequence[Row], rows: Sequence[Row]) -> list[Point]:
    """The points of figure 3: tagging accuracy and dev perplexity of a rung asked in one way, the state carried."""
    where = {_same(row): ledger.number(row["dev_perplexity"]) for row in rows}
    points = []
    for row in tagged:
        across, up = where.get(_same(row)), _percent(row["dev_accuracy"])
        if across is not None and up is not None:
            seen = row["protocol"] in ("filtered", "viterbi")
            points.append(Point(f"{_name(row, rows)}, {row['protocol']}", across, up, seen))
    return points


def _same(row: Row) -> tuple[str, ...]:
    """What a row of both files is of."""
    return tuple(row[name] for name in ledger.BEGIN)
