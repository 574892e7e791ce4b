"""The plots of the report as inline SVG, made of elements, so that nothing out of a cluster is ever read as markup.

A plot says nothing by colour alone: what is chosen or failed has another shape, a word in its label, and its number in the table. Each
has a title and a description that a screen reader reads instead. Sizes are those of a phone; a wide screen gets several beside each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from slipway.cli.report.model import ERROR, Candidate, Metric

WIDTH, HEIGHT = 360, 270
_LEFT, _RIGHT, _TOP, _BOTTOM, _ZERO = 58, 14, 14, 46, 26  # margins, and the band below the axis for an error of 0
_ROW, _BAR = 38, 9
_NEAR = 15  # a number closer than this to another is moved
_AROUND = ((0, -12), (13, 4), (-13, 4), (0, 20), (13, -10), (-13, -10), (22, 4), (-22, 4), (0, -24), (0, 32))
_ACROSS, _UP = 4, 6  # ticks at most; numbers beside each other take more room

Numbered = tuple[int, Candidate]


def element(tag: str, attributes: dict[str, object] | None = None, *children: Element | str) -> Element:
    """Return an element; strings become text."""
    made = Element(tag, {key: _plain(value) for key, value in (attributes or {}).items()})
    for child in children:
        if not isinstance(child, str):
            made.append(child)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + child
        else:
            made.text = (made.text or "") + child
    return made


def _plain(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def _figure(ident: str, title: str, description: str, height: float, parts: Sequence[Element]) -> Element:
    attributes: dict[str, object] = {"viewBox": f"0 0 {WIDTH} {height:g}", "role": "img", "aria-labelledby": f"{ident}-t {ident}-d"}
    words = (element("title", {"id": f"{ident}-t"}, title), element("desc", {"id": f"{ident}-d"}, description))
    return element("figure", {}, element("figcaption", {}, title), element("svg", attributes, *words, *parts))


def _text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> Element:
    return element("text", {"x": x, "y": y, "text-anchor": anchor, "class": kind or "t"}, words)


@dataclass(frozen=True, slots=True)
class _Scale:
    """A logarithmic axis from `low` to `high`, drawn from pixel `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, most: int) -> list[float]:
    """Return round numbers of a logarithmic axis: 1, 2, 5, 10 …, or powers of ten where these are more than `most`."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    found = [m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    if len(found) <= most:
        return found
    decades = [10.0**e for e in range(first, last + 1) if low <= 10.0**e <= high]
    if len(decades) < 2:
        return found[:: math.ceil(len(found) / most)]
    return decades[:: math.ceil(len(decades) / most)]


def scatter(ident: str, title: str, rows: Sequence[Numbered], x: Metric) -> Element | None:
    """Return the error of the candidates against another number, both on logarithmic axes; None when nothing has both numbers."""
    points = [(number, row, row.values[x.key], row.values[ERROR.key]) for number, row in rows if _has(row, x)]
    if not points:
        return None
    errors = [error for *_, error in points if error > 0] or [1e-6]
    bottom = HEIGHT - _BOTTOM - (_ZERO if any(error <= 0 for *_, error in points) else 0)
    across = _Scale(min(p[2] for p in points) / 2, max(p[2] for p in points) * 2, _LEFT, WIDTH - _RIGHT)
    up = _Scale(min(errors) / 3, max(errors) * 3, bottom, _TOP)
    zero = (HEIGHT - _BOTTOM + bottom) / 2
    spots = [(number, row, across.at(value), up.at(error) if error > 0 else zero) for number, row, value, error in points]
    parts = [*_axes(across, up, x, zero if bottom < HEIGHT - _BOTTOM else None), *_marks(spots, x)]
    said = "; ".join(
        f"{number} {row.title}{_word(row)}: {x.title} {row.text(x)}, max error {row.text(ERROR)}" for number, row, *_ in points
    )
    return _figure(ident, title, said, HEIGHT, parts)


def _has(row: Candidate, x: Metric) -> bool:
    return ERROR.key in row.values and row.values.get(x.key, 0) > 0


def _axes(across: _Scale, up: _Scale, x: Metric, zero: float | None) -> Iterator[Element]:
    floor = HEIGHT - _BOTTOM
    for value in ticks(across.low, across.high, _ACROSS):
        at = across.at(value)
        yield element("line", {"x1": at, "x2": at, "y1": _TOP, "y2": floor, "class": "grid"})
        yield _text(at, floor + 15, x.shown(value), "middle")
    for value in ticks(up.low, up.high, _UP):
        at = up.at(value)
        yield element("line", {"x1": _LEFT, "x2": WIDTH - _RIGHT, "y1": at, "y2": at, "class": "grid"})
        yield _text(_LEFT - 6, at + 4, f"{value:.0e}", "end")
    if zero is not None:
        yield element("line", {"x1": _LEFT, "x2": WIDTH - _RIGHT, "y1": zero, "y2": zero, "class": "grid zero"})
        yield _text(_LEFT - 6, zero + 4, "0", "end")
    yield element("path", {"d": f"M{_LEFT} {_TOP}V{floor}H{WIDTH - _RIGHT}", "class": "axis"})
    yield _text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 8, f"{x.title} (log scale, less is better)", "middle", "name")
    middle = (_TOP + floor) / 2
    name = _text(11, middle, "max error (log scale)", "middle", "name")
    name.set("transform", f"rotate(-90 11 {middle:g})")
    yield name


def _marks(spots: Sequence[tuple[int, Candidate, float, float]], x: Metric) -> Iterator[Element]:
    taken = [(px, py) for *_, px, py in spots]
    for number, row, px, py in spots:
        said = f"{number} {row.title}{_word(row)}: {x.title} {row.text(x)}, max error {row.text(ERROR)}"
        yield element("g", {}, element("title", {}, said), _mark(_kind(row), px, py))
        lx, ly = _free(px, py, taken)
        taken.append((lx, ly - 4))
        yield _text(lx, ly, f"{number}", "middle", "number chosen" if row.is_chosen else "number")


def _free(px: float, py: float, taken: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return a place beside a point for its number that no other point or number has."""
    others = [spot for spot in taken if spot != (px, py)]
    for dx, dy in _AROUND:
        lx, ly = px + dx, py + dy
        is_inside = _LEFT + 6 < lx < WIDTH - 6 and _TOP - 2 < ly < HEIGHT - _BOTTOM + 2
        if is_inside and all(math.hypot(lx - ox, ly - 4 - oy) >= _NEAR for ox, oy in others):
            return lx, ly
    return px, py - 12


def key() -> Element:
    """Return what the marks mean."""
    words = {"chosen": "chosen", "passed": "passed", "failed": "not passed"}
    marks = [element("svg", {"viewBox": "0 0 16 16", "aria-hidden": "true"}, _mark(kind, 8, 8)) for kind in words]
    parts = [part for mark, word in zip(marks, words.values(), strict=True) for part in (mark, f" {word}")]
    return element("p", {"class": "key"}, *parts, ". The numbers are those of the table.")


def _kind(row: Candidate) -> str:
    return "chosen" if row.is_chosen else "passed" if row.verdict == "Passed" else "failed"


def _mark(kind: str, x: float, y: float) -> Element:
    """Return a square for the chosen one, a circle for one that passed, a cross for one that did not."""
    if kind == "chosen":
        return element("rect", {"x": x - 6, "y": y - 6, "width": 12, "height": 12, "class": "mark chosen"})
    if kind == "passed":
        return element("circle", {"cx": x, "cy": y, "r": 5.5, "class": "mark passed"})
    return element("path", {"d": f"M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10", "class": "mark failed"})


def _word(row: Candidate) -> str:
    return " (chosen)" if row.is_chosen else "" if row.verdict == "Passed" else f" ({row.verdict.lower()})"


def bars(ident: str, title: str, rows: Sequence[Numbered], metric: Metric) -> Element | None:
    """Return one bar a candidate; None when nothing was measured."""
    most = max((row.value(metric) or 0 for _, row in rows), default=0)
    if not most:
        return None
    parts: list[Element] = []
    for place, (number, row) in enumerate(rows):
        parts += _bar(place * _ROW, f"{number} {row.title}{_word(row)}", row, metric, (WIDTH - 2) / most)
    said = "; ".join(f"{number} {row.title}{_word(row)}: {row.text(metric) or 'not measured'}" for number, row in rows)
    return _figure(ident, title, said, len(rows) * _ROW, parts)


def _bar(top: float, words: str, row: Candidate, metric: Metric, scale: float) -> Iterator[Element]:
    value = row.value(metric)
    kind = "chosen" if row.is_chosen else "passed"
    yield _text(1, top + 13, words, "start", f"t {kind}")
    yield _text(WIDTH - 1, top + 13, row.text(metric) or "–", "end", f"t value {kind}")
    y = top + 19
    yield element("line", {"x1": 1, "x2": WIDTH - 1, "y1": y + _BAR, "y2": y + _BAR, "class": "grid"})
    if value is not None:
        yield element("rect", {"x": 1, "y": y, "width": max(1.0, value * scale), "height": _BAR, "class": f"bar {kind}"})
