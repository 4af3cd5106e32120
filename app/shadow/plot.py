"""The posteriors of an experiment as a picture: SVG without a library, so that it opens anywhere. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

import numpy as np

from app.shadow.beta_quadrature import relative_density
from app.shadow.posterior import analyse, posterior_parameters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.shadow.beta_quadrature import Floats

WIDTH: Final = 760  # pixels, as all lengths here
HEIGHT_MAX: Final = 800  # with 20 variants
_LEFT, _RIGHT, _TOP, _PLOT = 20, 20, 40, 260
_BARS_TOP: Final = _TOP + _PLOT + 28
_BAR: Final = 3  # pixels from one interval to the next: every variant has a line of its own
_ROW: Final = 18  # pixels of a line of the legend
_CURVE_POINTS: Final = 121
_NAME_MAX: Final = 40  # characters of a name that the legend shows
_TICKS: Final = 6
# Okabe and Ito's colours can be told apart by colour-blind readers; from the ninth variant on they return with dashes.
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C510A", "#444444")
_DASHES: Final = ("none", "6 3", "2 3")


def posterior_svg(names: Sequence[str], successes: Sequence[int], samples: Sequence[int]) -> str:
    """Return an SVG document: the density of each variant's rate, its 95 % interval, and the figures beside its name.

    names   one for each count
    faults  ValueError that names what is wrong with the counts
    """
    a, b = posterior_parameters(successes, samples)
    if len(names) != len(samples):
        raise ValueError("every variant needs a name")
    found = analyse(successes, samples, control=0)
    low, high = _shown(found.interval_low, found.interval_high)
    intervals = list(zip(found.interval_low, found.interval_high, strict=True))
    places = [_places(interval, (low, high)) for interval in intervals]
    curves = [_density(one, other, rates) for one, other, rates in zip(a.tolist(), b.tolist(), places, strict=True)]
    tallest = max(float(curve.max()) for curve in curves)
    legend_top = _BARS_TOP + _BAR * len(names) + 18
    height = legend_top + _ROW * len(names)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" fill="#222"',
        ' font-family="system-ui, sans-serif" font-size="12">',
        "<title>Posterior distribution of each variant's rate</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="24" font-size="14">Rate of each variant: posterior density and 95 % credible interval</text>',
        *_axis(low, high),
    ]
    for index, curve in enumerate(curves):
        parts += _curve(index, places[index], curve / tallest, intervals[index], (low, high))
    for index, name in enumerate(names):
        text = (
            f"{_printable(name)}: {successes[index]:,} of {samples[index]:,}, {rate_text(found.interval_low[index])} to "
            f"{rate_text(found.interval_high[index])}, P(best) {found.probability_best[index]:.1%}"
        )
        parts += _legend(index, legend_top + _ROW * index, text)
    return "\n".join([*parts, "</svg>", ""])


def rate_text(rate: float) -> str:
    """Return a rate in per cent with three digits that count."""
    percent = 100 * rate
    if percent <= 0:
        return "0 %"
    return f"{percent:.{max(0, 2 - math.floor(math.log10(percent)))}f} %"


def _printable(name: str) -> str:
    """Return the name as XML may hold it, cut to what fits: control characters have no place in XML 1.0 at all."""
    return escape("".join(letter if letter.isprintable() else "?" for letter in name[:_NAME_MAX]))


def _shown(lows: Sequence[float], highs: Sequence[float]) -> tuple[float, float]:
    """Return the range of rates to draw: all intervals and half as much on both sides, within 0 and 1."""
    margin = (max(highs) - min(lows)) / 2
    return max(0.0, min(lows) - margin), min(1.0, max(highs) + margin)


def _places(interval: tuple[float, float], shown: tuple[float, float]) -> Floats:
    """Return the rates at which a curve is drawn: evenly over the picture, and densely where the curve bends."""
    margin = interval[1] - interval[0]
    own = np.linspace(interval[0] - margin, interval[1] + margin, _CURVE_POINTS)
    return np.unique(np.concatenate([np.linspace(*shown, _CURVE_POINTS), np.clip(own, *shown)]))


def _density(a: float, b: float, rates: Floats) -> Floats:
    """Return the density of Beta(a, b) by rate. Its constant follows from the density on the log-odds scale at the peak."""
    inside = np.clip(rates, 1e-12, 1 - 1e-12)
    distance = np.log(inside) - np.log1p(-inside) - math.log(a / b)
    peak = a * math.log(a) + b * math.log(b) - (a + b) * math.log(a + b)
    constant = math.exp(peak - math.lgamma(a) - math.lgamma(b) + math.lgamma(a + b))
    density: Floats = constant * relative_density(np.array(a), np.array(b), distance) / (inside * (1 - inside))
    return density


def _x(rate: float, shown: tuple[float, float]) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * (rate - shown[0]) / (shown[1] - shown[0])


def _axis(low: float, high: float) -> list[str]:
    """Return the line of rates with ticks at round numbers."""
    step = 10 ** math.floor(math.log10((high - low) / _TICKS))
    step *= min((factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= _TICKS), default=10)
    ground = _TOP + _PLOT
    parts = [f'<line x1="{_LEFT}" y1="{ground}" x2="{WIDTH - _RIGHT}" y2="{ground}" stroke="#222"/>']
    digits = max(0, -math.floor(math.log10(step) + 1e-9) - 2)
    for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1):
        place = _x(number * step, (low, high))
        parts.append(f'<line x1="{place:.1f}" y1="{_TOP}" x2="{place:.1f}" y2="{ground + 5}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{place:.1f}" y="{ground + 20}" text-anchor="middle">{100 * number * step:.{digits}f} %</text>'
        )
    return parts


def _curve(index: int, rates: Floats, curve: Floats, interval: tuple[float, float], shown: tuple[float, float]) -> list[str]:
    """Return one density, 0 to 1 high, with its interval as a bar below the axis."""
    colour, dash = _COLOURS[index % len(_COLOURS)], _DASHES[index // len(_COLOURS) % len(_DASHES)]
    ground = _TOP + _PLOT
    points = " ".join(
        f"{_x(rate, shown):.1f},{ground - (_PLOT - 10) * value:.1f}"
        for rate, value in zip(rates.tolist(), curve.tolist(), strict=True)
    )
    start, end = (_x(rate, shown) for rate in interval)
    bar = _BARS_TOP + _BAR * index
    return [
        f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>',
        f'<line x1="{start:.1f}" y1="{bar}" x2="{end:.1f}" y2="{bar}" stroke="{colour}" stroke-width="2"/>',
    ]


def _legend(index: int, line: int, text: str) -> list[str]:
    colour, dash = _COLOURS[index % len(_COLOURS)], _DASHES[index // len(_COLOURS) % len(_DASHES)]
    return [
        f'<path d="M{_LEFT},{line - 4}h28" stroke="{colour}" stroke-width="3" stroke-dasharray="{dash}"/>',
        f'<text x="{_LEFT + 36}" y="{line}">{text}</text>',
    ]
