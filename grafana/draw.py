"""`python -m grafana.draw HOST:PORT`: pictures of the dashboards from what a Prometheus answers.

Not a picture of Grafana, which is not needed here: every panel's own queries are asked over HTTP, and what they return is
drawn by matplotlib where the panel lies on the grid, in the panel's unit and with its thresholds.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from grafana.answers import Prometheus, Window
from grafana.board import GRID_WIDTH
from grafana.plots import FAINT, GROUND, INK, PANEL, Box, plot

DASHBOARDS: Final = Path(__file__).parent / "dashboards"
DOTS_PER_INCH: Final = 100
WIDTH: Final = 1_600  # pixels; a cell of the grid is 66 wide
CELL_HEIGHT: Final = 34  # pixels
HEADER_HEIGHT: Final = 44  # pixels, for title and time
GAP: Final = 6  # pixels between panels
COLOURS: Final = 96  # enough for lines and areas on one ground; a palette makes the file a third as large
POINTS: Final = 240  # steps over the time that is shown: as many as a panel has room for


def picture(dashboard: dict[str, Any], prometheus: Prometheus, window: Window) -> bytes:
    """Return a PNG of a dashboard.

    faults  those of `Prometheus.series`
    """
    height = HEADER_HEIGHT + CELL_HEIGHT * max(
        panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"]
    )
    figure = Figure(figsize=(WIDTH / DOTS_PER_INCH, height / DOTS_PER_INCH), dpi=DOTS_PER_INCH, facecolor=GROUND)
    FigureCanvasAgg(figure)
    spans = [time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at)) for at in (window.start_s, window.end_s)]
    figure.text(GAP / WIDTH, 1 - 24 / height, dashboard["title"], color=INK, fontsize=14, weight="bold")
    figure.text(1 - GAP / WIDTH, 1 - 24 / height, " to ".join(spans) + " UTC", color=INK, fontsize=9, ha="right")
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        bottom = height - HEADER_HEIGHT - (place["y"] + place["h"]) * CELL_HEIGHT
        box = Box(
            place["x"] * WIDTH / GRID_WIDTH + GAP / 2, bottom + GAP / 2,
            place["w"] * WIDTH / GRID_WIDTH - GAP, place["h"] * CELL_HEIGHT - GAP, WIDTH, height,
        )  # fmt: skip
        if panel["type"] == "row":
            figure.text(*box.at(4, 8), panel["title"], color=INK, fontsize=11, weight="bold")
            continue
        figure.add_artist(Rectangle(box.at(0, 0), *box.size(), facecolor=PANEL, edgecolor=FAINT, zorder=-1))
        figure.text(*box.at(8, box.height - 18), panel["title"], color=INK, fontsize=9)
        answers = [prometheus.series(target, window) for target in panel["targets"]]
        plot(figure, box, panel, [one for answer in answers for one in answer], window)
    drawn, written = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", facecolor=GROUND)
    Image.open(drawn).convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        written, "PNG", optimize=True
    )
    return written.getvalue()


def draw_all(prometheus: Prometheus, window: Window, directory: Path) -> list[Path]:
    """Draw every committed dashboard into `directory`; return the files.

    faults  those of `picture`
    """
    directory.mkdir(parents=True, exist_ok=True)
    drawn = []
    for source in sorted(DASHBOARDS.glob("*.json")):
        target = directory / f"{source.stem}.png"
        target.write_bytes(picture(json.loads(source.read_text()), prometheus, window))
        drawn.append(target)
    return drawn


def main() -> int:
    """Read the command line, draw, and name the files."""
    parser = argparse.ArgumentParser(description="Draw the dashboards from what a Prometheus answers.")
    parser.add_argument("prometheus", metavar="HOST:PORT")
    parser.add_argument("--minutes", type=float, default=60.0, help="how far back the pictures go (60)")
    parser.add_argument("--job", default="credits|shadow", help="regular expression of the jobs (credits|shadow)")
    parser.add_argument("--rate-interval", default="1m", help="what $__rate_interval stands for: four scrapes (1m)")
    parser.add_argument("--into", type=Path, default=Path("docs/dashboards"), help="directory of the pictures")
    options = parser.parse_args()
    end_s, span_s = time.time(), options.minutes * 60
    values = {"namespace": ".*", "job": options.job, "instance": ".*"}
    values |= {"__rate_interval": options.rate_interval, "__range": f"{span_s:.0f}s"}
    window = Window(end_s - span_s, end_s, max(span_s / POINTS, 1.0), values)
    for path in draw_all(Prometheus(options.prometheus), window, options.into):
        print(f"{path} {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
