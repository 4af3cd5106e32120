"""Every query of every dashboard, asked of the real Prometheus that scrapes the real server with traffic."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Iterator
from typing import Any

from PIL import Image

from grafana.__main__ import DASHBOARDS
from grafana.answers import LABEL, Prometheus, Series, Window
from grafana.draw import WIDTH, picture
from grafana.lint import expressions, filled, panels, selectors
from tests.operations.live_stack import LiveOperations, wait_for
from tests.operations.shipped import SPEED

BOARDS: dict[str, dict[str, Any]] = {path.name: json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))}
# Four scrapes, as Grafana has it, and the traffic was at any time in the last quarter of an hour.
VALUES = {
    "namespace": ".*",
    "job": "credits|shadow",
    "instance": ".*",
    "__rate_interval": f"{4 * 15 // SPEED}s",
    "__range": "15m",
}
SPAN_S, STEP_S = 900.0, 2.0


def window() -> Window:
    """Return the time in which everything happened."""
    now_s = time.time()
    return Window(now_s - SPAN_S, now_s, STEP_S, VALUES)


def prometheus(live: LiveOperations) -> Prometheus:
    """Return the API of the live Prometheus."""
    return Prometheus(live.prometheus.removeprefix("http://"))


def answers(live: LiveOperations) -> Iterator[tuple[str, dict[str, Any], list[Series]]]:
    """Yield where each query stands, the query, and its answer."""
    for name, board in BOARDS.items():
        for panel in panels(board):
            for target in panel["targets"]:
                yield f"{name} {panel['title']} {target['refId']}", target, prometheus(live).series(target, window())


def test_every_query_returns_data_with_the_labels_of_its_legend(live: LiveOperations) -> None:
    empty = ["not asked yet"]

    def all_answered() -> bool:
        empty[:] = [where for where, _, series in answers(live) if not series]
        return not empty

    try:
        wait_for("data for every query", all_answered)
    except AssertionError as late:
        raise AssertionError(f"{late}: {empty}") from late

    for where, target, series in answers(live):
        for label in LABEL.findall(target["legendFormat"]):
            assert all(label in one.labels for one in series), f"{where}: no label {label} in {series[0].labels}"


def test_every_series_that_is_asked_for_exists(live: LiveOperations) -> None:
    asked = {
        selector.name or ""
        for board in BOARDS.values()
        for _, expression in expressions(board)
        for selector, _ in selectors(filled(expression, VALUES))
    }

    assert asked - prometheus(live).names() == set()


def test_the_choice_of_targets_has_values(live: LiveOperations) -> None:
    variables = {one["name"]: one for one in BOARDS["overview.json"]["templating"]["list"]}

    for name in ("job", "instance"):
        asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variables[name]["query"]["query"])

        assert asked is not None
        assert asked[2] == name
        assert all(name in one["metric"] for one in live.query(filled(asked[1], VALUES))), asked[1]


def test_a_panel_of_each_kind_is_drawn_from_live_data(live: LiveOperations) -> None:
    kinds = {panel["type"]: panel for board in BOARDS.values() for panel in panels(board)}
    board = BOARDS["overview.json"] | {"panels": list(kinds.values())}
    assert set(kinds) == {"timeseries", "stat", "state-timeline", "heatmap", "table"}

    drawn = Image.open(io.BytesIO(picture(board, prometheus(live), window())))

    assert drawn.format == "PNG"
    assert drawn.width == WIDTH
    colours = drawn.convert("RGB").getcolors(drawn.width * drawn.height) or []
    assert any(max(colour) - min(colour) > 100 for _, colour in colours), "nothing was drawn but grounds and letters"
