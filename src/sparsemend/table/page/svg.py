"""Small charts as SVG text: no script, colours from the page's style sheet, so light and dark work.

A chart is drawn in a box 460 units wide, which a phone shows at nearly natural size.  Colours are
classes `k0` ... `k7`, beyond which they repeat; dashes tell apart what shares a colour.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 26, 40  # the name of the y axis stands above it
COLOURS = 8
DASHES = ("", "7 3", "2 3", "9 3 2 3")
TICKS = 4  # at least this many on an axis
DOT, RING = 3, 2  # units: radius of a dot, and what shows of one below another
DOTS = 30  # a line of more points has no dots
BAR, GAP = 18, 9  # units: height of a horizontal bar, and the gap between two bars
LABEL = 13  # units of a label's line


@dataclass(frozen=True)
class Series:
    """A named line: points in order of x, deviations where there are several seeds."""

    name: str
    points: Sequence[tuple[float, float]]
    deviations: Sequence[float] = ()
    colour: int = 0
    dash: int = 0

    @property
    def stroke(self) -> str:
        """Class and dash of the line, as SVG attributes."""
        pattern = DASHES[self.dash % len(DASHES)]
        dashed = f' stroke-dasharray="{pattern}"' if pattern else ""
        return f'class="s k{self.colour % COLOURS}"{dashed}'


@dataclass(frozen=True)
class Axis:
    """A range of data on a range of units, linear or logarithmic, and its ticks."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The position of a value, in units."""
        low, high, where = self.low, self.high, value
        if self.log:
            low, high, where = math.log(low), math.log(high), math.log(max(value, 1e-300))
        share = (where - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        """Round values inside the range."""
        return _decades(self.low, self.high) if self.log else _round(self.low, self.high)


def line_chart(
    series: Sequence[Series], *, x: str, y: str, log: bool = False, whole: bool = False
) -> str:
    """Lines with dots; log: a logarithmic y axis; whole: x are whole numbers (blocks, steps)."""
    values = [
        (a, b) for s in series for a, b in s.points if math.isfinite(b) and (b > 0 or not log)
    ]
    if not values:
        return ""
    across = Axis(*_span([a for a, _ in values], margin=0.02), LEFT, WIDTH - RIGHT)
    span = _span([b for _, b in values], margin=0.06, log=log)
    up = Axis(*span, HEIGHT - BOTTOM, TOP, log=log)
    parts = [_grid(across, up, x, y, whole=whole)]
    hiding = [_hiding_dots(series[index:], across, up) for index in range(len(series))]
    parts += [_line(line, across, up, later) for line, later in zip(series, hiding, strict=True)]
    return _svg("".join(parts), HEIGHT, f"{y} against {x}")


def bar_chart(
    rows: Sequence[tuple[str, Sequence[float]]], *, unit: str = "", parts: Sequence[str] = ("",)
) -> str:
    """Horizontal stacked bars, the label above each; parts: names of the stacked pieces."""
    total = max((sum(values) for _, values in rows), default=0.0)
    if total <= 0:
        return ""
    across = Axis(0.0, total, 2, WIDTH - 74)
    drawn, top = [], 4.0
    for label, values in rows:
        drawn.append(_bar(label, values, across, top, unit, parts))
        top += LABEL + BAR + GAP
    return _svg("".join(drawn), top, f"bars {unit}".rstrip())


def heat_map(names: Sequence[str], values: Sequence[Sequence[float]]) -> str:
    """A square of shares in [0, 1], numbered along both sides; tooltips show the names."""
    left = 26
    side = min(56.0, (WIDTH - left - 4) / len(names))
    cells = []
    for i, line in enumerate(values):
        cells.append(_text(left - 8, left + (i + 0.5) * side + 4, str(i + 1), "tick end"))
        cells.append(_text(left + (i + 0.5) * side, left - 8, str(i + 1), "tick mid"))
        for j, value in enumerate(line):
            tooltip = escape(f"{names[i]} and {names[j]}: {value:.3f}")
            at, size = (left + j * side, left + i * side), side - 2
            cells.append(
                f'<g><title>{tooltip}</title><rect class="cell" x="{at[0]:.1f}" y="{at[1]:.1f}" '
                f'width="{size:.1f}" height="{size:.1f}" rx="3" fill-opacity="{value:.3f}"/>'
            )
            if side >= 30:
                shade = "tick mid on" if value > 0.55 else "tick mid"
                cells.append(_text(at[0] + size / 2, at[1] + size / 2 + 4, f"{value:.2f}", shade))
            cells.append("</g>")
    return _svg("".join(cells), left + len(names) * side + 4, "overlap matrix")


def legend(series: Sequence[Series]) -> str:
    """Names with the strokes that the charts give them, as HTML."""
    items = "".join(
        '<li><svg viewBox="0 0 22 8" aria-hidden="true">'
        f'<line {line.stroke} x1="1" y1="4" x2="21" y2="4"/></svg>{escape(line.name)}</li>'
        for line in series
    )
    return f'<ul class="legend">{items}</ul>'


def short(value: float) -> str:
    """Three significant digits, with k, M and G from ten thousand."""
    for least, unit, suffix in ((999.5e6, 1e9, "G"), (999_500, 1e6, "M"), (9_999.5, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / unit:.3g}{suffix}"
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"


def _svg(inside: str, height: float, description: str) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(description)}">{inside}</svg>'
    )


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _segment(kind: str, start: tuple[float, float], end: tuple[float, float]) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _grid(across: Axis, up: Axis, x: str, y: str, *, whole: bool) -> str:
    parts = []
    for tick in up.ticks:
        at = up.at(tick)
        parts.append(_segment("grid", (LEFT, at), (WIDTH - RIGHT, at)))
        parts.append(_text(LEFT - 6, at + 4, short(tick), "tick end"))
    for tick in across.ticks:
        if whole and tick != round(tick):
            continue
        parts.append(_text(across.at(tick), HEIGHT - BOTTOM + 16, short(tick), "tick mid"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x, "axis mid"))
    parts.append(_text(2, 13, y, "axis"))
    return "".join(parts)


def _hiding_dots(series: Sequence[Series], across: Axis, up: Axis) -> list[int]:
    """For every point of the first line, the number of later lines with a dot upon it."""
    first, *later = ([(across.at(a), up.at(b)) for a, b in line.points] for line in series)
    return [
        sum(any(math.dist(place, other) < DOT for other in places) for places in later)
        for place in first
    ]


def _line(series: Series, across: Axis, up: Axis, hiding: Sequence[int]) -> str:
    """A line with its dots; one that later lines cover is larger, so that a ring of it shows."""
    deviations = series.deviations or [0.0] * len(series.points)
    shown = [
        (a, b, deviation, above)
        for (a, b), deviation, above in zip(series.points, deviations, hiding, strict=True)
        if math.isfinite(b) and (b > 0 or not up.log)
    ]
    places = [(across.at(a), up.at(b)) for a, b, _, _ in shown]
    colour = f"k{series.colour % COLOURS}"
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<polyline {series.stroke} points="{path}"/>']
    for (x, y), (a, b, deviation, above) in zip(places, shown, strict=True):
        if deviation:
            low, high = up.at(max(b - deviation, up.low)), up.at(b + deviation)
            parts.append(_segment(f"s thin {colour}", (x, low), (x, high)))
        if len(places) <= DOTS:
            tooltip = escape(f"{series.name}: {short(a)}, {b:.4g}")
            radius = DOT + RING * min(above, COLOURS)
            circle = f'<circle class="d {colour}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}">'
            parts.append(f"{circle}<title>{tooltip}</title></circle>")
    return "".join(parts)


def _bar(
    label: str, values: Sequence[float], across: Axis, top: float, unit: str, names: Sequence[str]
) -> str:
    parts = [_text(2, top + LABEL - 3, label, "label")]
    x = across.start
    for index, value in enumerate(values):
        wide = across.at(value) - across.start
        tooltip = escape(f"{names[index]} {short(value)} {unit}".strip())
        parts.append(
            f'<rect class="f k{index % COLOURS}" x="{x:.1f}" y="{top + LABEL:.1f}" '
            f'width="{max(wide, 0.5):.1f}" height="{BAR}"><title>{tooltip}</title></rect>'
        )
        x += wide
    parts.append(
        _text(x + 5, top + LABEL + BAR - 5, f"{short(sum(values))} {unit}".rstrip(), "tick")
    )
    return "".join(parts)


def _span(values: Iterable[float], *, margin: float, log: bool = False) -> tuple[float, float]:
    """Lowest and highest value with a margin, never empty."""
    numbers = list(values)
    low, high = min(numbers), max(numbers)
    if log:
        wide = (high / low) ** margin if high > low else 1.3
        return low / wide, high * wide
    wide = (high - low) * margin if high > low else abs(high) * 0.05 or 1.0
    return low - wide, high + wide


def _round(low: float, high: float) -> list[float]:
    """Multiples of the largest of 1, 2, 5 times a power of ten that gives enough ticks."""
    power = 10.0 ** math.ceil(math.log10(high - low))
    for step in (f * power / d for d in (1, 10, 100) for f in (5, 2, 1)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 >= TICKS:
            return [round(i * step, 12) for i in range(first, last + 1)]
    return [low, high]


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten where three fit, else 1, 2, 5 times them, else round steps."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5)):
        ticks = [f * 10.0**d for d in decades for f in factors]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) >= 3:
            return inside
    return _round(low, high)
