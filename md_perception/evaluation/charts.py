"""Charts as inline SVG, for a page without scripts that follows the reader's light or dark colours.

Colours and sizes of letters are those of the page's style sheet (classes `s1`, `s2`, ...), so that a chart prints well
and can be read on a phone.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

COLOURS = 7
"""Series that have a colour of their own in the style sheet; further ones begin again with another dash."""

_WIDTH, _HEIGHT = 560, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 14, 12, 52
_TICK_LINE = 17
_LETTER = 7.6
"""Mean width of a letter of a tick."""


@dataclass(frozen=True)
class Axis:
    """title: with the unit. low, high: ends; log: both above 0. ticks: value and its text, lines divided by \\n."""

    title: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"axis {self.title!r} cannot go from {self.low} to {self.high}")

    def share(self, value: float) -> float:
        """Return where a value lies, 0 (low) to 1 (high), clipped."""
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(max(share, 0.0), 1.0)


@dataclass(frozen=True)
class Series:
    """style: classes, see style_of. points: (x, y) in the order of drawing. steps: y holds until the next x. dots:
    (x, y) that are marked. intervals: (x, lowest y, highest y).
    """

    style: str
    points: Sequence[tuple[float, float]]
    steps: bool = False
    dots: Sequence[tuple[float, float]] = ()
    intervals: Sequence[tuple[float, float, float]] = ()


def style_of(index: int) -> str:
    """Return the classes of a series: colour and dash."""
    return f"s{index % COLOURS + 1} d{index // COLOURS % 3 + 1}"


def line_chart(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> Markup:
    """Return an <svg>; its legend is the page's matter. title: read aloud by screen readers."""
    lines_below = max((text.count("\n") + 1 for _, text in x.ticks), default=1)
    height = _HEIGHT + (lines_below - 1) * _TICK_LINE
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def at(px: float, py: float) -> tuple[float, float]:
        return _LEFT + x.share(px) * (right - _LEFT), bottom - y.share(py) * (bottom - _TOP)

    parts = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img"><title>{}</title>').format(_WIDTH, height, title)
    ]
    for value, text in y.ticks:
        row = at(x.low, value)[1]
        parts.append(Markup('<path class="grid" d="M{},{:.1f} H{}"/>').format(_LEFT, row, right))
        parts.append(_text(_LEFT - 8, row + 5, "tick end", text))
    for value, text in x.ticks:
        column = at(value, y.low)[0]
        parts.append(Markup('<path class="grid" d="M{:.1f},{} V{}"/>').format(column, bottom, _TOP))
        for number, line in enumerate(text.split("\n")):
            half = _LETTER * len(line) / 2
            middle = min(column, _WIDTH - half)  # inside the picture
            parts.append(_text(middle, bottom + 20 + number * _TICK_LINE, "tick middle", line))
    parts.append(Markup('<path class="axis" d="M{},{} V{} H{}"/>').format(_LEFT, _TOP, bottom, right))
    parts.append(_text((_LEFT + right) / 2, height - 8, "name middle", x.title))
    parts.append(
        Markup('<text class="name middle" transform="translate(15,{}) rotate(-90)">{}</text>').format(
            (_TOP + bottom) / 2, y.title
        )
    )
    for one in series:
        parts.append(Markup('<g class="{}">').format(one.style))
        for px, low, high in one.intervals:
            parts.append(Markup('<path class="interval" d="{}"/>').format(_path([at(px, low), at(px, high)])))
        if one.points:
            corners = _stepped(one.points) if one.steps else one.points
            parts.append(Markup('<path class="line" d="{}"/>').format(_path([at(*corner) for corner in corners])))
        for dot in one.dots:
            parts.append(Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="4"/>').format(*at(*dot)))
        parts.append(Markup("</g>"))
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def _stepped(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the corners of a staircase: y holds until the next x."""
    corners = list(points[:1])
    for (_, before), (x, y) in itertools.pairwise(points):
        corners += [(x, before), (x, y)]
    return corners


def _path(places: Sequence[tuple[float, float]]) -> str:
    """Return an SVG path; what is nearer than half a unit to the last place is left out."""
    kept = [places[0]]
    for place in places[1:-1]:
        if max(abs(place[0] - kept[-1][0]), abs(place[1] - kept[-1][1])) >= 0.5:
            kept.append(place)
    return "M" + " L".join(f"{x:.1f},{y:.1f}" for x, y in [*kept, *places[1:][-1:]])


def percent_axis(title: str, low: float = 0.0, high: float = 1.0) -> Axis:
    """Return a linear axis of shares, written in percent, with about five round ticks."""
    low, high = max(0.0, low), min(1.0, high)
    step = next(s for s in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2) if (high - low) / s <= 6 or s == 0.2)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [(number * step, f"{100 * number * step:g}") for number in range(first, last + 1)]
    return Axis(title, first * step, max(last, first + 1) * step, ticks)


def _text(x: float, y: float, kind: str, text: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(kind, x, y, escape(text))
