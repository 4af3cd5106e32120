"""Line charts as SVG text, without a library."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

WIDTH: Final = 900
_LEFT, _RIGHT, _TOP, _PLOT = 70, 260, 40, 360
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C510A", "#444444")


class Line(NamedTuple):
    """One line of a chart: what it is called, its points, its colour, and whether it is dashed."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: str
    dashed: bool = False


class Axis(NamedTuple):
    """An axis: what it says, from where to where, with ticks; logarithmic or not."""

    label: str
    low: float
    high: float
    ticks: Sequence[float]
    logarithmic: bool = False
    unit: str = ""

    def place(self, value: float) -> float:
        """Return where a value lies, 0 to 1, cut off at the ends."""
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.logarithmic:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return (at - low) / (high - low)


def chart(title: str, x: Axis, y: Axis, lines: Sequence[Line]) -> str:
    """Return an SVG document with the lines and a legend beside them."""
    height = _TOP + max(_PLOT + 60, 20 * len(lines) + 40)
    across, ground = WIDTH - _LEFT - _RIGHT, _TOP + _PLOT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="24" font-size="14">{escape(title)}</text>',
        f'<text x="{_LEFT + across / 2}" y="{ground + 42}" text-anchor="middle">{escape(x.label)}</text>',
        f'<text x="{-_TOP - _PLOT / 2}" y="16" transform="rotate(-90)" text-anchor="middle">{escape(y.label)}</text>',
    ]
    for tick in x.ticks:
        at = _LEFT + across * x.place(tick)
        parts.append(f'<path d="M{at:.1f},{_TOP}V{ground}" stroke="#ddd"/>')
        parts.append(f'<text x="{at:.1f}" y="{ground + 18}" text-anchor="middle">{tick:,g}{x.unit}</text>')
    for tick in y.ticks:
        at = ground - _PLOT * y.place(tick)
        parts.append(f'<path d="M{_LEFT},{at:.1f}h{across}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{tick:,g}{y.unit}</text>')
    for number, line in enumerate(lines):
        points = " ".join(f"{_LEFT + across * x.place(a):.1f},{ground - _PLOT * y.place(b):.1f}" for a, b in line.points)
        style = f'stroke="{line.colour}" stroke-width="2"' + (' stroke-dasharray="6 3"' if line.dashed else "")
        parts.append(f'<polyline points="{points}" fill="none" {style}/>')
        row = _TOP + 20 * number + 10
        parts.append(f'<path d="M{WIDTH - _RIGHT + 12},{row}h24" {style}/>')
        parts.append(f'<text x="{WIDTH - _RIGHT + 42}" y="{row + 4}">{escape(line.label)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def save(text: str, path: Path) -> Path:
    """Write a chart and return its file."""
    path.write_text(text)
    return path
