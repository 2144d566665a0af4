"""The report's charts: SVG by hand, without scripts.

Positions across are percentages and positions down are pixels, so a chart fits a phone without shrinking its
letters. A rung's state has one colour and one shape everywhere (the classes `k-...` of report.css, the shapes
`m-...` here).
"""

from __future__ import annotations

import html
import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

from .records import SECTIONS, STATES, Rung, show_count, show_duration, show_perplexity, show_share

_SHAPES = {
    "belief": '<circle r="5.5"/>',
    "distribution": '<path d="M0-6.8 6.8 0 0 6.8-6.8 0Z"/>',
    "positive": '<rect x="-4.9" y="-4.9" width="9.8" height="9.8" rx="1"/>',
    "real": '<path d="M0-6.2 6.6 5.2-6.6 5.2Z"/>',
    "none": '<rect x="-2" y="-6.5" width="4" height="13" rx="1"/>',
}
SHAPES = "".join(f'<g id="m-{key}">{shape}</g>' for key, shape in _SHAPES.items())
"""The marks, to be put once into the page's <defs>."""


def escape(value: object) -> str:
    """Text that is safe between tags and inside quotes."""
    return html.escape(str(value))


@dataclass(frozen=True)
class Axis:
    """A stretch of numbers laid out from 0 to 100 per cent."""

    low: float
    high: float
    log: bool = True

    @classmethod
    def around(cls, values: Iterable[float | None], log: bool = True, limit: float | None = None) -> Axis:
        """The axis that holds the values with a little room; `limit` cuts off what is far above the rest."""
        known = [v for v in values if v is not None] or [1.0]
        low, high = min(known), max(known)
        if limit is not None:
            high = max(min(high, limit), low)
        if log:
            room = max((high / low) ** 0.04, 1.03)
            return cls(low / room, high * room, True)
        room = max(0.06 * (high - low), 0.01 * abs(high), 1e-9)
        return cls(low - room, high + room, False)

    def at(self, value: float, hold: bool = True) -> float:
        """Where a value lies, in per cent; held to the axis unless told otherwise."""
        if self.log:
            share = math.log(max(value, 1e-12) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(100 * (min(max(share, 0.0), 1.0) if hold else share), 2)

    def ticks(self, wanted: int = 4) -> list[float]:
        """Round numbers inside the axis."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found: list[float] = []
            for steps in ((1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)):
                found = [s * 10.0**p for p in powers for s in steps if self.low <= s * 10.0**p <= self.high]
                if len(found) >= wanted:
                    return found
            if len(found) >= 2:
                return found
        raw = (self.high - self.low) / wanted
        unit = 10.0 ** math.floor(math.log10(raw))
        unit *= next(s for s in (1, 2, 2.5, 5, 10) if s * unit >= raw * 0.999)
        first = math.ceil(self.low / unit)
        return [round(unit * i, 10) for i in range(first, math.floor(self.high / unit) + 1)]


def describe(rung: Rung) -> str:
    """One rung in a line, for tooltips (not escaped)."""
    parts = [f"{rung.title} ({rung.name})" if rung.title != rung.name else rung.name]
    if rung.finished:
        alone = show_perplexity(rung.test_alone)
        parts.append(f"test perplexity {show_perplexity(rung.test)} carried, {alone} independent")
    else:
        parts.append("not finished" + (f": {rung.note}" if rung.note else ""))
    if rung.parameters is not None:
        width = f"{show_count(rung.width)} wide, " if rung.width is not None else ""
        parts.append(f"{width}{show_count(rung.parameters)} parameters")
    if rung.seconds is not None:
        parts.append(show_duration(rung.seconds))
    return "; ".join(parts)


def chips(rung: Rung) -> str:
    """The marks after a rung's name: trained by EM, at its own width."""
    found = []
    if rung.by_em:
        found.append(f' <abbr class="chip" title="trained by: {escape(rung.trainer)}">EM</abbr>')
    if rung.own_width and not rung.counts:
        found.append(' <abbr class="chip own" title="not at the common parameter budget">own width</abbr>')
    return "".join(found)


def mark(state: str) -> str:
    """A state's mark as a small picture in the text."""
    return (
        f'<svg class="mark" width="14" height="14" viewBox="-7.5 -7.5 15 15" aria-hidden="true">'
        f'<use href="#m-{state}" class="k-{state} fill"/></svg>'
    )


def legend(states: Iterable[str]) -> str:
    """The key to colours and shapes, for the states that occur."""
    present = set(states)
    rows = (
        f'<li title="{escape(long)}">{mark(key)} {escape(short)}</li>'
        for key, (short, long) in STATES.items()
        if key in present
    )
    return f'<ul class="legend">{"".join(rows)}</ul>'


def ladder(rungs: Sequence[Rung], walk: Container[int], paper: bool) -> str:
    """The perplexity ladder: one row a rung on a log axis, Kneser-Ney models as lines through all rows."""
    done = sorted(r.test for r in rungs if r.test is not None)
    if not done:
        return '<p class="empty">No rung has finished, so there is nothing to draw.</p>'
    seen = [v for r in rungs for v in (r.test, r.test_alone, r.paper if paper else None) if v is not None]
    axis = Axis.around(seen, limit=4 * done[len(done) // 2])
    lines = sorted((r for r in rungs if r.counts and r.finished and _is_kneser_ney(r)), key=lambda r: r.test or 0.0)
    lines = lines if len(lines) < 3 else [lines[0], lines[-1]]
    grid = "".join(f'<line class="grid" x1="{axis.at(t)}%" x2="{axis.at(t)}%" y1="0" y2="100%"/>' for t in axis.ticks())
    grid += "".join(
        f'<line class="guide" x1="{axis.at(r.test)}%" x2="{axis.at(r.test)}%" y1="0" y2="100%"/>'
        for r in lines
        if r.test is not None
    )
    rows = [_ladder_head(axis, lines, paper)]
    section = ""
    for rung in rungs:
        if rung.section != section:
            section = rung.section
            heading = SECTIONS.get(section, section)
            rows.append(f'<li class="section"><h3>{escape(heading)}</h3>{_track(grid)}</li>')
        rows.append(_ladder_row(rung, axis, grid, rung.index in walk, paper))
    return f'<ol class="ladder{" paper" if paper else ""}">{"".join(rows)}</ol>'


def _is_kneser_ney(rung: Rung) -> bool:
    name = f"{rung.name} {rung.title}".lower()
    return "kneser" in name or rung.name.lower().startswith("kn")


def _ladder_head(axis: Axis, lines: Sequence[Rung], paper: bool) -> str:
    marks = "".join(
        f'<text x="{axis.at(t)}%" y="56" text-anchor="middle">{escape(f"{t:g}")}</text>' for t in axis.ticks()
    )
    for i, rung in enumerate(lines):
        x = axis.at(rung.test or axis.low)
        anchor, shift = ("end", -5) if x > 60 else ("start", 5)
        y = 14 + 17 * i
        marks += (
            f'<line class="guide" x1="{x}%" x2="{x}%" y1="{y - 10}" y2="100%"/>'
            f'<text class="guide-name" x="{x}%" y="{y}" dx="{shift}" text-anchor="{anchor}">'
            f"{escape(rung.title)} {show_perplexity(rung.test)}</text>"
        )
    figure = '<span class="num paper-figure">paper</span>' if paper else ""
    return (
        '<li class="head"><span class="label">test perplexity, log scale '
        f'<span class="quiet">(lower is better)</span></span>{_track(marks)}<span class="num">carried</span>'
        f'<span class="num alone">indep.</span>{figure}</li>'
    )


def _ladder_row(rung: Rung, axis: Axis, grid: str, on_walk: bool, paper: bool) -> str:
    label = f'<span class="label"><a href="#rung-{rung.index}">{escape(rung.title)}</a>{chips(rung)}</span>'
    marks = ""
    if rung.test is not None:
        x = axis.at(rung.test)
        if rung.test_alone is not None:
            x2 = axis.at(rung.test_alone)
            marks += f'<line class="join" x1="{x}%" x2="{x2}%" y1="50%" y2="50%"/>'
            marks += f'<circle class="alone" cx="{x2}%" cy="50%" r="3.6"/>'
        if paper and rung.paper is not None:
            x3 = axis.at(rung.paper)
            marks += f'<svg class="cross" x="{x3}%" y="50%"><path d="M-4-4 4 4M-4 4 4-4"/></svg>'
        if rung.test > axis.high:
            marks += '<text class="beyond" x="100%" y="50%" dy="4" text-anchor="end">off the scale ▸</text>'
        else:
            marks += f'<use href="#m-{rung.state}" x="{x}%" y="50%" class="fill"/>'
        numbers = f'<span class="num">{show_perplexity(rung.test)}</span>'
        numbers += f'<span class="num alone">{show_perplexity(rung.test_alone)}</span>'
    else:
        numbers = f'<span class="num unfinished" title="{escape(rung.note)}">not finished</span>'
    if paper and rung.finished:
        numbers += f'<span class="num paper-figure">{show_perplexity(rung.paper)}</span>'
    own = (" own-width" if rung.own_width and not rung.counts else "") + (" on-walk" if on_walk else "")
    track = _track(f'<rect class="hit" width="100%" height="100%"/>{grid}{marks}', describe(rung))
    return f'<li class="row k-{rung.state}{own}">{label}{track}{numbers}</li>'


def _track(marks: str, tip: str = "") -> str:
    about = f' role="img"><title>{escape(tip)}</title>' if tip else ' aria-hidden="true">'
    return f'<span class="track"><svg{about}{marks}</svg></span>'


def _line(points: Sequence[tuple[float, float]], across: Axis, up: Axis) -> str:
    return " ".join(f"{across.at(x)},{round(100 - up.at(y, hold=False), 2)}" for x, y in points)


def _series(rung: Rung, over: str, what: str = "valid") -> list[tuple[float, float]]:
    found = ((getattr(p, over), getattr(p, what)) for p in rung.curve)
    return [(x, y) for x, y in found if x is not None and y is not None]


def _curve_axis(rungs: Sequence[Rung], over: str) -> Axis | None:
    series = [s for r in rungs if (s := _series(r, over))]
    if not series:
        return None
    ends = sorted(s[-1][1] for s in series)
    return Axis.around((y for s in series for _, y in s), limit=2.2 * ends[len(ends) // 2])


def race(rungs: Sequence[Rung], height: int = 340) -> str:
    """Validation perplexity against seconds of training for a few rungs, each named at its line's end."""
    series = {r.index: s for r in rungs if len(s := _series(r, "seconds")) > 1}
    shown = [r for r in rungs if r.index in series]
    up = _curve_axis(shown, "seconds")
    if up is None:
        return ""
    longest = max(s[-1][0] for s in series.values())
    across = Axis(0.0, longest or 1.0, log=False)
    parts = []
    for tick in up.ticks():
        y = round(height * (1 - up.at(tick) / 100), 1)
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="0" y="{y}" dx="-8" dy="4" text-anchor="end">{tick:g}</text>')
    for tick in across.ticks():
        anchor = "start" if tick == 0 else "middle"
        label = f"{tick:g} s" if longest < 300 else f"{tick / 60:.3g} min"
        parts.append(f'<text x="{across.at(tick)}%" y="{height}" dy="18" text-anchor="{anchor}">{label}</text>')
    ends = [height * (1 - up.at(series[r.index][-1][1]) / 100) for r in shown]
    keys = []
    for i, (rung, y, label_y) in enumerate(zip(shown, ends, spread(ends, 17, height), strict=True), start=1):
        keys.append(f"<li>{mark(rung.state)}{escape(rung.title)}</li>")
        points = series[rung.index]
        x = across.at(points[-1][0])
        title = f"<title>{escape(describe(rung))}</title>"
        parts.append(
            f'<g class="k-{rung.state}">{title}<svg class="plot" width="100%" height="{height}" '
            'viewBox="0 0 100 100" preserveAspectRatio="none"><polyline class="curve" '
            f'points="{_line(points, across, up)}"/></svg>'
            f'<line class="leader" x1="{x}%" x2="100.8%" y1="{y:.1f}" y2="{label_y:.1f}"/>'
            f'<use href="#m-{rung.state}" x="{x}%" y="{y:.1f}" class="fill small"/>'
            f'<text class="name" x="100%" y="{label_y:.1f}" dx="10" dy="4">'
            f'<tspan class="key">{i}</tspan><tspan class="full-name">{escape(rung.title)}</tspan> '
            f'<tspan class="value">{show_perplexity(points[-1][1])}</tspan></text></g>'
        )
    return (
        f'<div class="race"><svg class="chart" role="img" height="{height + 24}">{"".join(parts)}</svg></div>'
        f'<ol class="keys" aria-hidden="true">{"".join(keys)}</ol>'
    )


def small_multiples(rungs: Sequence[Rung], height: int = 84) -> str:
    """Validation perplexity against epochs: one panel a rung, all the others grey behind it."""
    series = {r.index: s for r in rungs if (s := _series(r, "epoch"))}
    shown = [r for r in rungs if r.index in series]
    up = _curve_axis(shown, "epoch")
    if up is None:
        return ""
    across = Axis(0.0, max(s[-1][0] for s in series.values()) or 1.0, log=False)
    ghosts = "".join(f'<polyline points="{_line(series[r.index], across, up)}"/>' for r in shown)
    frame = f'<svg class="plot" width="100%" height="{height}" viewBox="0 0 100 100" preserveAspectRatio="none">'
    ticks = up.ticks(2)
    ticks = [ticks[0], ticks[-1]] if len(ticks) > 3 else ticks
    scale = ""
    for tick in ticks:
        y = round(height * (1 - up.at(tick) / 100), 1)
        scale += f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>'
        scale += f'<text x="0" y="{y}" dy="-2">{tick:g}</text>'
    panels = []
    for rung in shown:
        points, train = series[rung.index], _series(rung, "epoch", "train")
        x, y = across.at(points[-1][0]), round(height * (1 - up.at(points[-1][1]) / 100), 1)
        dashed = f'<polyline class="curve train" points="{_line(train, across, up)}"/>' if train else ""
        on_scale = points[-1][1] <= up.high
        end_mark = f'<use href="#m-{rung.state}" x="{x}%" y="{y}" class="fill small"/>' if on_scale else ""
        end = show_perplexity(points[-1][1]) + ("" if rung.finished else ", not finished")
        panels.append(
            f'<figure class="k-{rung.state}"><figcaption>{escape(rung.title)}{chips(rung)} '
            f'<b>{end}</b></figcaption><svg class="chart" role="img" height="{height + 4}">'
            f"<title>{escape(describe(rung))}</title>{scale}{frame}"
            f'<use href="#ghosts" class="ghosts"/>{dashed}'
            f'<polyline class="curve" points="{_line(points, across, up)}"/></svg>'
            f"{end_mark}</svg></figure>"
        )
    shared = f'<svg class="defs" aria-hidden="true"><defs><g id="ghosts">{ghosts}</g></defs></svg>'
    return f'{shared}<div class="panels">{"".join(panels)}</div>'


def scatter(rungs: Sequence[Rung], first: Iterable[int], height: int = 380) -> str:
    """Accuracy of the next word's tag against test perplexity; the rungs in `first` are labelled first."""
    known = ((r, r.test, (r.tags or {}).get("next_word")) for r in rungs)
    points = [(r, x, y) for r, x, y in known if x is not None and y is not None]
    if len(points) < 2:
        return ""
    across = Axis.around(x for _, x, _ in points)
    up = Axis.around((y for *_, y in points), log=False)
    parts = []
    for tick in up.ticks():
        y = round(height * (1 - up.at(tick) / 100), 1)
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="0" y="{y}" dx="-8" dy="4" text-anchor="end">{100 * tick:g} %</text>')
    for tick in across.ticks():
        x = across.at(tick)
        parts.append(f'<line class="grid" x1="{x}%" x2="{x}%" y1="0" y2="{height}"/>')
        parts.append(f'<text x="{x}%" y="{height}" dy="18" text-anchor="middle">{tick:g}</text>')
    wide = 760.0  # labels are placed as if the chart were this wide; on a phone only the first ones are shown
    at = [(across.at(x) * wide / 100, height * (1 - up.at(y) / 100)) for _, x, y in points]
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in at]
    keys = list(first)
    order = sorted(range(len(points)), key=lambda i: (points[i][0].index not in keys, i))
    labels: dict[int, str] = {}
    for i in order:
        rung, (x, y) = points[i][0], at[i]
        length = 6.4 * len(rung.title)
        places = (
            (x + 10, y + 4, "start", 10, 4),
            (x - 10 - length, y + 4, "end", -10, 4),
            (x - length / 2, y - 11, "middle", 0, -11),
            (x - length / 2, y + 20, "middle", 0, 20),
        )
        for left, base, anchor, dx, dy in places:
            box = (left, base - 11, left + length, base + 4)
            inside = left > -4 and left + length < wide + 4 and box[1] > 0 and box[3] < height
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                key = "" if rung.index in keys else " minor"
                labels[i] = (
                    f'<text class="name{key}" x="{across.at(points[i][1])}%" y="{y:.1f}" dx="{dx}" dy="{dy}" '
                    f'text-anchor="{anchor}">{escape(rung.title)}</text>'
                )
                break
    for i, (rung, x, accuracy) in enumerate(points):
        y = at[i][1]
        tip = f"{rung.title} ({rung.name}): {show_share(accuracy)} at perplexity {show_perplexity(x)}"
        parts.append(
            f'<g class="k-{rung.state}"><title>{escape(tip)}</title>'
            f'<use href="#m-{rung.state}" x="{across.at(x)}%" y="{y:.1f}" class="fill"/>'
            f"{labels.get(i, '')}</g>"
        )
    parts.append(
        f'<text class="axis" x="100%" y="{height}" dy="36" text-anchor="end">test perplexity, carried →</text>'
    )
    parts.append('<text class="axis" x="0" y="-12" dx="-40">↑ tag of the next word guessed right</text>')
    drawn = "".join(parts)
    return f'<div class="scatter"><svg class="chart" role="img" height="{height + 42}">{drawn}</svg></div>'


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def spread(positions: Sequence[float], gap: float, high: float) -> list[float]:
    """The positions moved apart to at least `gap`, in their order and none beyond `high`."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    placed = [0.0] * len(positions)
    last = -math.inf
    for i in order:
        last = placed[i] = max(positions[i], last + gap)
    last = high + gap
    for i in reversed(order):
        last = placed[i] = min(placed[i], last - gap)
    return placed


def effect(ratio: float | None, widest: float) -> str:
    """A step's effect as a bar from the middle: to the left it lowered perplexity, to the right raised it."""
    if ratio is None:
        return ""
    share = max(min(math.log(ratio) / widest, 1.0), -1.0) * 46 if widest > 0 else 0.0
    left, width = (50 + share, -share) if share < 0 else (50.0, share)
    word = "lower" if ratio < 1 else "higher"
    return _bar("effect", word, (50, 0, 50, 100), left, width)


def stair(before: float, after: float, axis: Axis) -> str:
    """One step of the walk as a bar from the perplexity before to that after, all on the walk's own axis."""
    old, new = axis.at(before), axis.at(after)
    word = "lower" if new <= old else "higher"
    return _bar("stair", word, (0, 50, 100, 50), min(old, new), abs(old - new))


def _bar(kind: str, word: str, zero: tuple[int, int, int, int], left: float, width: float) -> str:
    x1, y1, x2, y2 = zero
    return (
        f'<svg class="{kind}" role="img" aria-label="{word}">'
        f'<line class="zero" x1="{x1}%" y1="{y1}%" x2="{x2}%" y2="{y2}%"/>'
        f'<rect class="{word}" x="{left:.2f}%" y="22%" width="{max(width, 0.6):.2f}%" height="56%"/></svg>'
    )
