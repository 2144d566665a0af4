"""Figures 2 and 3 of the paper as SVG: perplexities of the rungs, and tagging accuracy against them."""

from collections.abc import Sequence
from typing import NamedTuple

from statespan.ladder.charts import Axis, escape

LETTER = 7.4
"""Width of a letter at the size of the labels, about."""

WIDE, RIGHT = 460, 60
"""Of the field that points lie in, and beside it."""

ROW, LABEL = 22, 15
"""Heights of a line of figure 2 and of a label of figure 3."""

INK, PALE = "#1f5f99", "#d5d9de"


class Mark(NamedTuple):
    """A rung: its name, our dev perplexity, the paper's."""

    name: str
    ours: float | None
    paper: float | None = None


class Point(NamedTuple):
    """A rung asked in one way: perplexity, accuracy in percent, and whether the word was seen."""

    name: str
    perplexity: float
    accuracy: float
    seen: bool


def perplexities(marks: Sequence[Mark]) -> str:
    """Figure 2: the dev perplexity of each rung, a dot; the paper's, a ring.

    Args:
        marks: the rungs, from top to bottom.
    """
    left = 20 + LETTER * max((len(mark.name) for mark in marks), default=0)
    axis = Axis.around([value for mark in marks for value in mark[1:]], log=True)
    bottom = 16 + ROW * len(marks)
    drawn = [_grid(left + WIDE * axis.at(tick) / 100, 10, bottom, f"{tick:g}") for tick in axis.ticks()]
    for i, (name, ours, paper) in enumerate(marks):
        y = 24 + i * ROW
        drawn.append(_text(left - 10, y + 4, name, "end"))
        ring = None if paper is None else left + WIDE * axis.at(paper) / 100
        if ring is not None:
            drawn.append(_dot(ring, y, False))
        if ours is not None:
            x, word = left + WIDE * axis.at(ours) / 100, f"{ours:.1f}"
            meets = ring is not None and 0 <= ring - x < 20 + LETTER * len(word)
            drawn += [_dot(x, y, True), _text(x - 9 if meets else x + 9, y + 4, word, "end" if meets else "start")]
    words = "dev perplexity, state carried" + ("; rings: the paper" if any(m.paper for m in marks) else "")
    drawn.append(_text(left, bottom + 36, words, "start"))
    return _svg("Dev perplexity of the rungs", left + WIDE + RIGHT, bottom + 46, drawn)


def scatter(points: Sequence[Point]) -> str:
    """Figure 3: tagging accuracy against dev perplexity, each point named at the side.

    Args:
        points: in any order.
    """
    left, high = 60, max(380, LABEL * len(points) + 20)
    across, up = Axis.around([p.perplexity for p in points]), Axis.around([p.accuracy for p in points], log=False)
    drawn = [_grid(left + WIDE * across.at(tick) / 100, 10, high + 20, f"{tick:g}") for tick in across.ticks()]
    for tick in up.ticks():
        y = 20 + high * (1 - up.at(tick) / 100)
        drawn += [_line(left, y, left + WIDE, y), _text(left - 8, y + 4, f"{tick:g} %", "end")]
    placed = sorted(
        (20 + high * (1 - up.at(p.accuracy) / 100), left + WIDE * across.at(p.perplexity) / 100, p) for p in points
    )
    labels = spread([y for y, _, _ in placed], LABEL, 20, 20 + high)
    for (y, x, point), at in zip(placed, labels, strict=True):
        drawn.append(_line(x, y, left + WIDE + 12, at))
        drawn.append(_text(left + WIDE + 16, at + 4, point.name, "start"))
    drawn += [_dot(x, y, point.seen) for y, x, point in placed]
    words = "dev accuracy of fine tags against dev perplexity, state carried; dots have seen the word, rings have not"
    drawn.append(_text(left, high + 60, words, "start"))
    longest = LETTER * max((len(point.name) for point in points), default=0)
    return _svg("Tagging accuracy against perplexity", left + WIDE + max(longest + 30, 220), high + 74, drawn)


def spread(places: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """Rising places moved as little as a sweep down and one up need, so that neighbours lie apart.

    Args:
        places: where things would be, rising.
        apart: the least distance.
        low: the first place there is.
        high: the last, if they fit.

    Example:
        >>> spread([0.0, 1.0, 1.0, 50.0], 10.0, 0.0, 40.0)
        [0.0, 10.0, 20.0, 40.0]
    """
    found: list[float] = []
    for place in places:
        found.append(max(place, found[-1] + apart if found else low))
    last = max(high, low + apart * (len(found) - 1))
    for i in range(len(found) - 1, -1, -1):
        found[i] = last = min(found[i], last)
        last -= apart
    return found


def _grid(x: float, top: float, bottom: float, words: str) -> str:
    """A line up, its number below."""
    return _line(x, top, x, bottom) + _text(x, bottom + 16, words, "middle")


def _line(x: float, y: float, to_x: float, to_y: float) -> str:
    return f'<path d="M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}" stroke="{PALE}"/>'


def _dot(x: float, y: float, full: bool) -> str:
    fill = INK if full else "white"
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{fill}" stroke="{INK}" stroke-width="1.5"/>'


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _svg(title: str, wide: float, high: float, drawn: Sequence[str]) -> str:
    box = f"0 0 {wide:.0f} {high:.0f}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" font-family="sans-serif" font-size="12">'
    ground = '<rect width="100%" height="100%" fill="white"/>'
    return "\n".join([head, f"<title>{escape(title)}</title>", ground, *drawn, "</svg>", ""])
