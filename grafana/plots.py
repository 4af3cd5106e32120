"""Each kind of panel, drawn: lines and areas, numbers, states over time, heat maps, tables."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from grafana.units import UNITS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from grafana.answers import Series, Window

GROUND, PANEL, INK, FAINT = "#111217", "#1d2127", "#ccccdc", "#2f343b"
NAMED: Final = {"green": "#73bf69", "yellow": "#fade2a", "red": "#f2495c", "blue": "#5794f2", "text": INK}
# One colour for each series in turn, as Grafana's classic palette begins.
PALETTE: Final = (
    "#7eb26d", "#eab839", "#6ed0e0", "#ef843c", "#e24d42", "#1f78c1", "#ba43a9", "#705da0", "#508642", "#cca300", "#447ebc",
    "#c15c17",
)  # fmt: skip
HEAT: Final = LinearSegmentedColormap.from_list("heat", [PANEL, "#7f3b08", "#e08214", "#fee0b6"])
SMALL: Final = 7  # points
LETTER: Final = 5.1  # pixels that a letter of the legend is wide, on average
LEGEND_LINES: Final = 3
SECONDS_SHOWN_S: Final = 600  # seconds; a shorter time is labelled to the second


class Box(NamedTuple):
    """The place of a panel on a picture, in pixels from the lower left corner, and the size of the picture."""

    left: float
    bottom: float
    width: float
    height: float
    picture_width: float
    picture_height: float

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return a point of the panel as parts of the picture."""
        return (self.left + x) / self.picture_width, (self.bottom + y) / self.picture_height

    def size(self, less_x: float = 0, less_y: float = 0) -> tuple[float, float]:
        """Return width and height, less some pixels, as parts of the picture."""
        return (self.width - less_x) / self.picture_width, (self.height - less_y) / self.picture_height


def plot(figure: Figure, box: Box, panel: dict[str, Any], series: list[Series], window: Window) -> None:
    """Draw what a panel shows into its box."""
    if not series:
        figure.text(*box.at(box.width / 2, box.height / 2), "No data", color=INK, fontsize=9, ha="center")
        return
    match panel["type"]:
        case "timeseries":
            _lines(figure, box, panel, series, window)
        case "stat":
            _number(figure, box, panel, series)
        case "state-timeline":
            _states(figure, box, panel, series, window)
        case "heatmap":
            _heat(figure, box, panel, series, window)
        case "table":
            _table(figure, box, panel, series)
        case kind:
            raise ValueError(f"panels of type {kind} cannot be drawn")


def _axes(figure: Figure, box: Box, *, left: float, below: float, window: Window) -> Axes:
    axes = figure.add_axes((*box.at(left, below), *box.size(left + 10, below + 28)), facecolor=PANEL)
    axes.tick_params(colors=INK, labelsize=SMALL, length=0, pad=3)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_xlim(window.start_s, window.end_s)
    form = "%H:%M:%S" if window.end_s - window.start_s < SECONDS_SHOWN_S else "%H:%M"
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: time.strftime(form, time.gmtime(at))))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    return axes


def _steps(panel: dict[str, Any]) -> list[tuple[float, str]]:
    steps = panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", [])
    return [(float("-inf") if step["value"] is None else step["value"], NAMED[step["color"]]) for step in steps]


def _written(panel: dict[str, Any]) -> FuncFormatter:
    unit = UNITS[panel["fieldConfig"]["defaults"]["unit"]]
    return FuncFormatter(lambda value, _: unit(value))


def _lines(figure: Figure, box: Box, panel: dict[str, Any], series: list[Series], window: Window) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    entries = [(one.name, PALETTE[number % len(PALETTE)]) for number, one in enumerate(series)]
    below = 22 + _legend(figure, box, entries)
    axes = _axes(figure, box, left=58, below=below, window=window)
    highest = 0.0
    if defaults["custom"]["stacking"]["mode"] == "normal":
        moments = sorted({at for one in series for at, _ in one.points})
        heights = np.array([[dict(one.points).get(at, 0.0) for at in moments] for one in series])
        axes.stackplot(moments, heights, colors=[colour for _, colour in entries], alpha=0.75, linewidth=0)
        highest = float(heights.sum(axis=0).max())
    else:
        for one, (_, colour) in zip(series, entries, strict=True):
            moments, values = _broken(one, window.step_s)
            axes.plot(moments, values, color=colour, linewidth=1.1)
            if np.isfinite(values).sum() == 1:
                axes.plot(moments, values, color=colour, marker=".", markersize=4)
            highest = max(highest, *(value for _, value in one.points))
    top = defaults.get("max", highest * 1.15 or 1.0)
    axes.set_ylim(0, top)
    for value, colour in _steps(panel):
        if 0 < value <= top:
            axes.axhline(value, color=colour, linewidth=0.8, linestyle=(0, (5, 4)))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(_written(panel))


def _broken(one: Series, step_s: float) -> tuple[list[float], list[float]]:
    """Return a line that is interrupted where points are missing."""
    moments: list[float] = []
    values: list[float] = []
    before = None
    for at, value in one.points:
        if before is not None and at - before > 1.5 * step_s:
            moments.append(before + step_s)
            values.append(float("nan"))
        moments.append(at)
        values.append(value)
        before = at
    return moments, values


def _legend(figure: Figure, box: Box, entries: list[tuple[str, str]]) -> float:
    """Write what the colours mean, at the bottom of the panel; return the height in pixels that it takes."""
    lines: list[list[tuple[str, str, float]]] = [[]]
    x = 10.0
    for name, colour in entries:
        text = name if len(name) < 60 else f"{name[:58]}.."
        wide = 26 + LETTER * len(text)
        if x + wide > box.width and lines[-1]:
            lines.append([])
            x = 10.0
        lines[-1].append((text, colour, x))
        x += wide
    if len(lines) > LEGEND_LINES:
        left = sum(len(line) for line in lines[LEGEND_LINES - 1 :])
        lines = [*lines[: LEGEND_LINES - 1], [(f"and {left} more", INK, 10.0)]]
    for number, line in enumerate(reversed(lines)):
        for text, colour, x in line:
            (left_x, y), (right_x, _) = box.at(x, 10 + 13 * number), box.at(x + 12, 0)
            figure.add_artist(Line2D([left_x, right_x], [y, y], color=colour, linewidth=2))
            figure.text(*box.at(x + 16, 7 + 13 * number), text, color=INK, fontsize=SMALL)
    return 13.0 * len(lines)


def _number(figure: Figure, box: Box, panel: dict[str, Any], series: list[Series]) -> None:
    options, defaults = panel["options"], panel["fieldConfig"]["defaults"]
    last = series[0].points[-1][1]
    colour = next((colour for value, colour in reversed(_steps(panel)) if last >= value), INK)
    text = UNITS[defaults["unit"]](last)
    for mapping in defaults.get("mappings", []):
        word = mapping["options"].get(f"{last:g}")
        if word is not None:
            text, colour = word["text"], NAMED[word["color"]]
    if options["textMode"] == "name":
        text = ", ".join(one.name for one in series)
    points = series[0].points
    if options["graphMode"] == "area" and len(points) > 1:
        axes = figure.add_axes((*box.at(1, 1), *box.size(2, box.height * 0.62)), facecolor=PANEL)
        axes.set_axis_off()
        moments, values = [at for at, _ in points], [value for _, value in points]
        axes.fill_between(moments, values, color=colour, alpha=0.2, linewidth=0)
        axes.plot(moments, values, color=colour, linewidth=1)
        axes.set_xlim(moments[0], moments[-1])
        axes.set_ylim(min(0.0, *values), max(values) * 1.1 or 1.0)
    size = min(22.0, 1.25 * box.width / max(len(text), 1))
    figure.text(*box.at(box.width / 2, box.height * 0.46), text, color=colour, fontsize=size, weight="bold", ha="center")


def _states(figure: Figure, box: Box, panel: dict[str, Any], series: list[Series], window: Window) -> None:
    words = {
        key: word for mapping in panel["fieldConfig"]["defaults"]["mappings"] for key, word in mapping["options"].items()
    }
    entries = [(word["text"], NAMED[word["color"]]) for word in words.values()]
    longest = max(len(one.name) for one in series)
    left = min(20 + 1.1 * LETTER * longest, box.width * 0.45)
    axes = _axes(figure, box, left=left, below=22 + _legend(figure, box, entries), window=window)
    for row, one in enumerate(series):
        found = [words.get(f"{value:g}") for _, value in one.points]
        colours = [FAINT if word is None else NAMED[word["color"]] for word in found]
        axes.broken_barh([(at, window.step_s) for at, _ in one.points], (row - 0.4, 0.8), facecolors=colours, linewidth=0)
    axes.grid(visible=False)
    axes.set_yticks(range(len(series)), [one.name for one in series])
    axes.set_ylim(len(series) - 0.5, -0.5)


def _heat(figure: Figure, box: Box, panel: dict[str, Any], series: list[Series], window: Window) -> None:
    buckets = sorted(series, key=lambda one: float(one.labels["le"]))
    moments = sorted({at for one in buckets for at, _ in one.points})
    upto = np.array([[dict(one.points).get(at, 0.0) for at in moments] for one in buckets])
    each = np.clip(np.diff(upto, axis=0, prepend=0.0), 0.0, None)
    axes = _axes(figure, box, left=58, below=22, window=window)
    edges = [*moments, moments[-1] + window.step_s]
    axes.pcolormesh(edges, np.arange(len(buckets) + 1), np.sqrt(each), cmap=HEAT, shading="flat")
    unit = UNITS[panel["fieldConfig"]["defaults"]["unit"]]
    names = ["more" if one.labels["le"] == "+Inf" else unit(float(one.labels["le"])) for one in buckets]
    axes.grid(visible=False)
    axes.set_yticks(np.arange(1, len(buckets) + 1, 2), names[::2])


def _table(figure: Figure, box: Box, panel: dict[str, Any], series: list[Series]) -> None:
    organize = panel["transformations"][1]["options"]
    names = sorted(organize["renameByName"], key=lambda name: organize["indexByName"][name])
    unit = UNITS[panel["fieldConfig"]["overrides"][0]["properties"][0]["value"]]
    width = (box.width - 20) / len(names)
    lines = sorted([one.labels.get(name, "") for name in names[:-1]] + [unit(one.points[-1][1])] for one in series)
    room = int((box.height - 48) // 17)
    for column, name in enumerate(names):
        figure.text(*box.at(12 + column * width, box.height - 38), organize["renameByName"][name], color=NAMED["blue"],
                    fontsize=8, weight="bold")  # fmt: skip
        for row, line in enumerate(lines[:room]):
            figure.text(*box.at(12 + column * width, box.height - 56 - 17 * row), line[column], color=INK, fontsize=8)
