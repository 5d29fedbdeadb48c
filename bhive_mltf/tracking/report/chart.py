"""Line charts as SVG text, to stand inside an HTML page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]

# Okabe and Ito's colours, which colour-blind readers tell apart; dashes as well, for print without colour
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#a06000", "#000000", "#7a7a00")
DASHES = ("", "6 3", "2 2", "8 3 2 3")
WIDTH, HEIGHT = 360, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 8, 8, 34
_MOST_POINTS = 200
_LABEL = 24  # half of the width of a long label, in the units of WIDTH


def chart(title: str, lines: Mapping[str, Points], x_label: str) -> str:
    """A chart of one or several lines, with its legend; empty when no line has a finite point.

    A line of many points is the mean of each stretch of it, in front of a band from the lowest to the highest value.
    """
    finite = {
        name: [p for p in points if math.isfinite(p[0]) and math.isfinite(p[1])] for name, points in lines.items()
    }
    drawn = {name: points for name, points in finite.items() if points}
    if not drawn:
        return ""
    x_low, x_high = _range([x for points in drawn.values() for x, _ in points])
    y_low, y_high = _range([y for points in drawn.values() for _, y in points])
    wide, high = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
    across, up = wide / (x_high - x_low), high / (y_high - y_low)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(_words(title, drawn))}">',
        f'<rect x="{_LEFT}" y="{_TOP}" width="{wide}" height="{high}" class="frame"/>',
    ]
    for value in _ticks(y_low, y_high):
        y = HEIGHT - _BOTTOM - (value - y_low) * up
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>')
    whole = all(x == round(x) for points in drawn.values() for x, _ in points)
    for value in _ticks(x_low, x_high, 1.0 if whole else 0.0):
        x = _LEFT + (value - x_low) * across
        x, anchor = (x, "middle") if x < WIDTH - _LABEL else (WIDTH - 2.0, "end")
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - _BOTTOM + 15}" text-anchor="{anchor}">{number(value)}</text>')
    parts.append(f'<text x="{WIDTH - _RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{escape(x_label)}</text>')
    places = [
        [(_LEFT + (x - x_low) * across, HEIGHT - _BOTTOM - (y - y_low) * up) for x, y in points]
        for points in drawn.values()
    ]
    # no line behind the band of another
    opacity = 0.15 if len(places) <= 4 else 0.05
    parts += [_band(place, index, opacity) for index, place in enumerate(places) if len(place) > _MOST_POINTS]
    parts += [_line(_means(place), index) for index, place in enumerate(places)]
    parts.append("</svg>")
    return f"<figure><figcaption>{escape(title)}{_legend(drawn)}</figcaption>{''.join(parts)}</figure>"


def number(value: float) -> str:
    """A number in few characters."""
    if not math.isfinite(value):
        return str(value)
    text = f"{value:.4g}"
    return (
        f"{value:,.0f}" if 1e4 <= abs(value) < 1e7 else text.replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")
    )


def _line(place: Points, index: int) -> str:
    colour, dash = _look(index)
    if len(place) == 1:
        return f'<circle cx="{place[0][0]:.1f}" cy="{place[0][1]:.1f}" r="3" fill="{colour}"/>'
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in place)
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5" stroke-dasharray="{dash}"/>'


def _band(place: Points, index: int, opacity: float) -> str:
    """From the lowest to the highest value of each stretch."""
    low, high = ([choose(stretch, key=lambda p: p[1]) for stretch in _stretches(place)] for choose in (min, max))
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in (*low, *reversed(high)))
    return f'<path d="{path}Z" fill="{_look(index)[0]}" fill-opacity="{opacity}"/>'


def _look(index: int) -> tuple[str, str]:
    """Colour and dashes of a line."""
    return COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)]


def _legend(drawn: Mapping[str, Points]) -> str:
    if len(drawn) == 1:
        return ""
    marks = (
        f'<span><svg viewBox="0 0 22 6" aria-hidden="true">{_line(((0, 3), (22, 3)), i)}</svg>{escape(name)}</span>'
        for i, name in enumerate(drawn)
    )
    return f'<span class="legend">{"".join(marks)}</span>'


def _words(title: str, drawn: Mapping[str, Points]) -> str:
    """The chart for those who do not see it: last values."""
    return f"{title}: " + ", ".join(f"{name} ends at {number(points[-1][1])}" for name, points in drawn.items())


def _stretches(points: Points) -> list[Points]:
    """The points in at most 200 stretches of equally many."""
    size = math.ceil(len(points) / _MOST_POINTS)
    return [points[start : start + size] for start in range(0, len(points), size)]


def _means(points: Points) -> Points:
    """At most 200 points, each the mean of a stretch."""
    stretches = _stretches(points)
    return [(sum(x for x, _ in each) / len(each), sum(y for _, y in each) / len(each)) for each in stretches]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def _ticks(low: float, high: float, smallest: float = 0.0) -> list[float]:
    """At most seven round numbers between two values, at least `smallest` apart."""
    rough = max((high - low) / 6, smallest)
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * scale for factor in (1, 2, 5, 10) if factor * scale >= rough)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step) + 1)]
