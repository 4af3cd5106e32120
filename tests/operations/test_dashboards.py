"""The committed dashboards: generated from the code beside them, whole by every rule, readable by Grafana's own types."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana.__main__ import DASHBOARDS, texts
from grafana.lint import faults, filled, panels, selectors
from grafana.rules import alerts
from grafana.units import UNITS
from tests.operations.shipped import GRAFANA, load
from tests.server import REPOSITORY

FILES = sorted(DASHBOARDS.glob("*.json"))
PICTURE_BYTES_MAX = 200 * 1024
Board = dict[str, Any]


def dashboard(name: str = "overview.json") -> Board:
    """Return a committed dashboard."""
    found: Board = json.loads((DASHBOARDS / name).read_text())
    return found


def test_generating_anew_gives_the_committed_bytes() -> None:
    committed = {path.name: path.read_text() for path in FILES}

    assert texts() == committed, "run `make dashboards`"


@pytest.mark.parametrize("name", [path.name for path in FILES])
def test_a_dashboard_breaks_no_rule(name: str) -> None:
    assert faults(dashboard(name)) == []


@pytest.mark.parametrize("name", [path.name for path in FILES])
def test_grafanas_types_know_every_field(name: str) -> None:
    register_default_plugins()

    read = Dashboard.from_json(dashboard(name))

    assert json.loads(json.dumps(read, cls=JSONEncoder)) == dashboard(name)


def test_addresses_and_titles_are_unlike() -> None:
    boards = [dashboard(path.name) for path in FILES]

    assert len({board["uid"] for board in boards}) == len({board["title"] for board in boards}) == len(boards) == 5


def first(board: Board, kind: str = "timeseries") -> dict[str, Any]:
    """Return the first panel of a kind."""
    return next(panel for panel in panels(board) if panel["type"] == kind)


def rewrite(board: Board, old: str, new: str) -> None:
    """Change the first panel's expression."""
    target = first(board)["targets"][0]
    assert old in target["expr"]
    target["expr"] = target["expr"].replace(old, new)


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda board: board.update(uid=""), "needs a uid"),
        (lambda board: board.update(title=""), "has no title"),
        (lambda board: board.update(schemaVersion=36), "schemaVersion"),
        (lambda board: board["templating"]["list"].pop(0), "no variable `datasource`"),
        (lambda board: board["templating"]["list"].pop(1), "variable $namespace is not defined"),
        (lambda board: first(board).update(id=1), "id 1 is taken"),
        (lambda board: first(board)["gridPos"].update(x=20), "wider than the grid"),
        (lambda board: first(board)["gridPos"].update(y=1), "lies upon Ready replicas"),
        (lambda board: first(board).update(description=""), "needs a description"),
        (lambda board: first(board)["fieldConfig"]["defaults"].pop("unit"), "needs a unit"),
        (lambda board: first(board)["fieldConfig"]["defaults"].update(unit="furlongs"), "needs a unit"),
        (
            lambda board: first(board).update(datasource={"type": "prometheus", "uid": "abc"}),
            "data source is not the variable",
        ),
        (lambda board: first(board).update(targets=[]), "needs queries"),
        (lambda board: first(board, "stat").update(title="Requests"), "needs a title that no other"),
        (lambda board: rewrite(board, "$__rate_interval", "5m"), "[5m] does not follow"),
        (lambda board: rewrite(board, "sum by", "sum bye"), "Requests by route A: "),
        (lambda board: rewrite(board, "rate(", "avg_over_time("), "is a counter and needs rate()"),
        (lambda board: rewrite(board, "http_requests_total", "shieldx_ready"), "is no counter for rate()"),
        (lambda board: rewrite(board, 'job=~"$job",', ""), "is not limited to the chosen"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_rule_sees_its_fault(spoil: Callable[[Board], None], fault: str) -> None:
    board = copy.deepcopy(dashboard())

    spoil(board)

    assert any(fault in found for found in faults(board)), faults(board)


def test_every_series_of_ours_is_in_the_table_of_metrics() -> None:
    documented = set(re.findall(r"`(\w+)", (REPOSITORY / "docs" / "metrics.md").read_text()))
    values = dict.fromkeys(("namespace", "job", "instance"), ".*") | {"__rate_interval": "5m", "__range": "1h"}
    shown = {
        selector.name or ""
        for path in FILES
        for panel in panels(dashboard(path.name))
        for target in panel["targets"]
        for selector, _ in selectors(filled(target["expr"], values))
    }

    unknown = {name for name in shown if name.startswith(("shieldx_", "credits_", "shadow_", "http_", "db_", "pg_"))} - {
        f"{name}{part}" for name in documented for part in ("", "_bucket", "_sum", "_count")
    }

    assert unknown == set()


def test_every_alert_is_linked_to_its_part_of_the_runbook() -> None:
    panel = first(dashboard("alerts.json"), "state-timeline")

    links = {
        override["matcher"]["options"]: override["properties"][0]["value"][0]["url"]
        for override in panel["fieldConfig"]["overrides"]
    }

    assert links == {alert.name: alert.runbook for alert in alerts()}


def test_a_dashboard_takes_its_time_interval_from_the_scrapes() -> None:
    source = load(GRAFANA / "provisioning" / "datasources" / "prometheus.yaml")["datasources"][0]

    assert source["jsonData"]["timeInterval"] == load(GRAFANA / "prometheus.yml")["global"]["scrape_interval"]
    assert source["type"] == first(dashboard())["datasource"]["type"]
    assert source["isDefault"]


def test_grafana_looks_for_dashboards_where_compose_puts_them() -> None:
    provider = load(GRAFANA / "provisioning" / "dashboards" / "shieldx.yaml")["providers"][0]
    mounts = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())["services"]["grafana"]["volumes"]

    inside = {mount.split(":")[0].removeprefix("./").rstrip("/"): mount.split(":")[1] for mount in mounts if ":" in mount}

    assert inside["grafana/dashboards"] == provider["options"]["path"]
    assert inside["grafana/provisioning"] == "/etc/grafana/provisioning"


def test_every_dashboard_has_a_small_picture_in_the_documentation() -> None:
    text = (REPOSITORY / "docs" / "dashboards.md").read_text()

    for path in FILES:
        picture = REPOSITORY / "docs" / "dashboards" / f"{path.stem}.png"
        assert f"](dashboards/{picture.name})" in text
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size < PICTURE_BYTES_MAX


@pytest.mark.parametrize(
    ("unit", "value", "written"),
    [
        ("s", 0.0123, "12.3 ms"), ("s", 7_200, "2 h"), ("s", 0, "0 s"), ("s", 0.0000004, "0.4 µs"), ("d", 45, "45 d"),
        ("bytes", 1536, "1.5 KiB"), ("bytes", 12, "12 B"), ("percentunit", 0.0512, "5.12%"), ("none", 12345, "12345"),
        ("reqps", 12345, "12.3 K req/s"), ("short", 2_500_000, "2.5 M"), ("cps", 0.5, "0.5 c/s"), ("ops", 3, "3 ops/s"),
    ],
)  # fmt: skip
def test_a_value_is_written_in_its_unit(unit: str, value: float, written: str) -> None:
    assert UNITS[unit](value) == written
