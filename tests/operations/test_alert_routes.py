"""Who is told of an alert, when, and of which nobody is told: the shipped alertmanager.yml in the real program."""

from __future__ import annotations

import contextlib
import datetime as dt
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import requests

from tests.debian import program
from tests.operations.live_stack import ALERT_TOKEN, Pager, running, wait_for
from tests.operations.shipped import GRAFANA, alertmanager_at, alerts, load, milliseconds, write_alertmanager
from tests.server import free_port

CONFIG: Final = GRAFANA / "alertmanager.yml"
DAY_MS: Final = 86_400_000  # from one morning to the next
URGENT_MS: Final = 15 * 60_000  # P1 arrives within this time of the fault
FASTER: Final = 300  # a minute passes in 0.2 s
BEATS: Final = 20  # heartbeats, one a minute of that time: longer than any group waits


def amtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run amtool to its end."""
    return subprocess.run([program("amtool"), *arguments], capture_output=True, text=True, timeout=60, check=False)


def routes_of(priority: str) -> dict[str, Any]:
    """Return the route of a priority."""
    found: dict[str, Any] = next(
        route for route in load(CONFIG)["route"]["routes"] if route["matchers"] == [f'priority = "{priority}"']
    )
    return found


def test_amtool_takes_the_configuration() -> None:
    checked = amtool("check-config", str(CONFIG))

    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("receiver", "labels"),
    [
        ("page", ("alertname=CreditsServiceDown", "priority=P0", "severity=critical")),
        ("duty", ("alertname=CreditsHighErrorRate", "priority=P1", "severity=warning")),
        ("ticket", ("alertname=CreditsSlowCommits", "priority=P2", "severity=info")),
        ("heartbeat", ("alertname=Watchdog", "priority=P2", "severity=info")),
        ("ticket", ("alertname=SomebodyElses",)),
    ],
)
def test_amtool_finds_the_receiver_of_each_priority(receiver: str, labels: tuple[str, ...]) -> None:
    found = amtool("config", "routes", "test", f"--config.file={CONFIG}", f"--verify.receivers={receiver}", *labels)

    assert found.returncode == 0, found.stdout + found.stderr


def test_p0_waits_for_nothing() -> None:
    assert routes_of("P0")["group_wait"] == "0s"


def test_every_p1_arrives_within_a_quarter_of_an_hour_of_its_fault() -> None:
    """At worst a scrape and an evaluation were just over, and the group was told of another alert a moment ago."""
    settings = load(GRAFANA / "prometheus.yml")["global"]
    route = routes_of("P1")
    waits_ms = sum(milliseconds(settings[name]) for name in ("scrape_interval", "evaluation_interval"))
    waits_ms += max(milliseconds(route[name]) for name in ("group_wait", "group_interval"))

    late = {
        alert["alert"]: waits_ms + milliseconds(alert.get("for", "0s"))
        for alert in alerts()
        if alert["labels"]["priority"] == "P1" and waits_ms + milliseconds(alert.get("for", "0s")) > URGENT_MS
    }

    assert late == {}


def test_a_p2_is_looked_at_within_every_morning() -> None:
    (times,) = load(CONFIG)["time_intervals"][0]["time_intervals"][0]["times"]
    start, end = (dt.datetime.strptime(times[name], "%H:%M") for name in ("start_time", "end_time"))  # noqa: DTZ007
    route = routes_of("P2")

    assert milliseconds(route["group_interval"]) * 2 <= (end - start).total_seconds() * 1000
    assert (end - start).total_seconds() * 1000 < milliseconds(route["repeat_interval"]) < 86_400_000


def test_a_p2_that_ends_at_night_still_fires_in_the_morning() -> None:
    """Except what follows from an outage, which counts only while it lasts, and the alert that always fires."""
    held = {
        alert["alert"]: milliseconds(alert.get("keep_firing_for", "0s")) >= DAY_MS
        for alert in alerts()
        if alert["labels"]["priority"] == "P2"
    }
    lasting = {alert["alert"] for alert in alerts() if alert["labels"].get("symptom_of") == "outage"} | {"Watchdog"}

    assert {name for name, holds in held.items() if not holds} == held.keys() & lasting
    assert [alert["alert"] for alert in alerts() if "keep_firing_for" in alert and alert["alert"] not in held] == []


@contextlib.contextmanager
def alertmanager(directory: Path, hours: tuple[int, int]) -> Iterator[tuple[str, Pager]]:
    """An Alertmanager with the shipped configuration whose morning lies between two hours; its URL, and who is told."""
    pager = Pager()
    config = alertmanager_at(pager.url)
    start, end = (f"{hour:02d}:00" for hour in hours)
    config["time_intervals"][0]["time_intervals"][0]["times"] = [{"start_time": start, "end_time": end}]
    write_alertmanager(directory, config, ALERT_TOKEN, FASTER)
    address = f"127.0.0.1:{free_port()}"
    arguments = ("--config.file=alertmanager.yml", "--storage.path=data", "--cluster.listen-address=")
    with running("prometheus-alertmanager", address, directory, *arguments):
        yield f"http://{address}", pager
    pager.close()


def tell(url: str, *labels: dict[str, str]) -> None:
    """Tell Alertmanager of alerts that fire from now on."""
    until = (dt.datetime.now(dt.UTC) + dt.timedelta(minutes=10)).isoformat()
    body = [{"labels": one, "annotations": {}, "endsAt": until} for one in labels]
    requests.post(f"{url}/api/v2/alerts", json=body, timeout=10).raise_for_status()


def labels_of(name: str, **more: str) -> dict[str, str]:
    """Return the labels that an alert of ours has, and some of its instance."""
    alert = next(alert for alert in alerts() if alert["alert"] == name)
    return {"alertname": name, **alert["labels"], **more}


def test_each_receiver_gets_its_alerts_and_a_p2_waits_for_the_morning(tmp_path: Path) -> None:
    hour = (dt.datetime.now(dt.UTC).hour + 6) % 24

    with alertmanager(tmp_path / "night", (hour, hour + 1)) as (url, night):
        tell(url, *map(labels_of, ("Watchdog", "CreditsServiceDown", "LocatorPanic", "CreditsSlowCommits")))
        wait_for("the page", lambda: night.received("page", "CreditsServiceDown"))
        wait_for("the duty", lambda: night.received("duty", "LocatorPanic"))
        wait_for("heartbeats", lambda: [one for one in night.deliveries if one.receiver == "heartbeat"][BEATS:])
    with alertmanager(tmp_path / "morning", (0, 24)) as (url, morning):
        tell(url, labels_of("CreditsSlowCommits"))
        wait_for("the ticket", lambda: morning.received("ticket", "CreditsSlowCommits"))

    assert [one for one in night.deliveries if one.receiver == "ticket"] == []
    assert {one.authorization for one in night.deliveries + morning.deliveries} == {f"Bearer {ALERT_TOKEN}"}
    first = night.deliveries.index(wait_for("the page", lambda: night.received("page", "CreditsServiceDown")))
    assert "LocatorPanic" not in {name for one in night.deliveries[:first] for name in one.names()}


def test_an_outage_silences_its_symptoms_and_nothing_else(tmp_path: Path) -> None:
    symptoms = {alert["alert"] for alert in alerts() if alert["labels"].get("symptom_of") == "outage"}
    burns = {"CreditsErrorBudgetBurnMedium", "CreditsErrorBudgetBurnSlow", "CreditsHighErrorRate"}

    with alertmanager(tmp_path / "am", (0, 24)) as (url, _):
        everything = [labels_of(alert["alert"], job="credits", slo="availability") for alert in alerts()]
        tell(url, *everything)
        down = silenced(url)
    with alertmanager(tmp_path / "burn", (0, 24)) as (url, _):
        others = [one for one in everything if one["alertname"] not in {"CreditsServiceDown", "CreditsNotReady"}]
        tell(url, *others, labels_of("CreditsErrorBudgetBurnSlow", job="another"))
        burning = silenced(url)

    assert down == symptoms | {"CreditsNotReady"}
    assert {"CreditsHighErrorRate", "CreditsErrorBudgetBurnFast", "CreditsReplicaDown"} <= symptoms
    assert not symptoms & {
        "CreditsNegativeBalanceDetected", "CreditsAuditLogChainBroken", "ShadowUnsafeDeployment", "Watchdog",
    }  # fmt: skip
    assert burning == burns


def silenced(url: str) -> set[str]:
    """Return the alerts of job credits that are inhibited, once every alert has been judged."""

    def judged() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = requests.get(f"{url}/api/v2/alerts", timeout=10).json()
        done = [one for one in found if one["status"]["state"] != "unprocessed"]
        return done if len(done) == len(found) and found else []

    found = wait_for("a judgement of all alerts", judged)
    return {
        one["labels"]["alertname"]
        for one in found
        if one["status"]["inhibitedBy"] and one["labels"].get("job") == "credits"
    }  # fmt: skip
