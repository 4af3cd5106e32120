"""The alerting rules: read by promtool, each shown silent and firing, and whole as a set."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.debian import program
from tests.operations.shipped import ALERTS, GRAFANA, RULE_FILES, TEST_FILES, alerts, load, milliseconds, rules
from tests.server import REPOSITORY

SEVERITIES = {"P0": {"critical"}, "P1": {"warning"}, "P2": {"warning", "info"}}
DEMANDED = {
    "CreditsNegativeBalanceDetected": "P0", "CreditsAuditLogChainBroken": "P0", "ShadowUnsafeDeployment": "P0",
    "CreditsServiceDown": "P0", "CreditsHighErrorRate": "P1", "CreditsSlowTransactions": "P1",
    "CreditsDatabasePoolExhausted": "P1", "ShadowTestInconclusive": "P1", "CreditsErrorBudgetBurnFast": "P0",
    "CreditsErrorBudgetBurnMedium": "P0", "CreditsErrorBudgetBurnSlow": "P2",
}  # fmt: skip
RUNBOOK = alerts()[0]["annotations"]["runbook_url"].partition("#")[0]  # one place for all, whichever it is
# Words of PromQL that a name of a series may not be taken for.
WORDS = frozenset(
    ["and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "offset", "bool", "inf", "nan"]
)
ALERT_TABLE = (REPOSITORY / "docs/alerts.md").read_text()
OTHERS = ("up", "prometheus_", "alertmanager_")  # series of Prometheus and Alertmanager themselves


def run(name: str, *arguments: str, cwd: Path = ALERTS) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return subprocess.run(
        [program(name), *arguments], cwd=cwd, capture_output=True, text=True, timeout=240, check=False
    )  # fmt: skip


def names_in(expr: str) -> set[str]:
    """Return the series that an expression reads."""
    bare = re.sub(r'\{[^}]*\}|\[[^]]*\]|"[^"]*"', " ", expr)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    found = re.findall(r"(?<![\w:.])([a-zA-Z_:][\w:]*)(?!\s*\()(?![\w:])", bare)
    return {name for name in found if name.lower() not in WORDS}


def recorded() -> set[str]:
    """Return the series that recording rules make."""
    return {rule["record"] for rule in rules() if "record" in rule}


def documented() -> set[str]:
    """Return every series of docs/metrics.md, and the three of each histogram."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", (REPOSITORY / "docs/metrics.md").read_text(), re.MULTILINE)
    endings = {"histogram": ("_bucket", "_count", "_sum")}
    return {name + ending for name, kind in rows for ending in endings.get(kind, ("",))}


def test_promtool_finds_nothing_to_say_of_the_rules() -> None:
    checked = run("promtool", "check", "rules", "--lint=all", "--lint-fatal", *(path.name for path in RULE_FILES))

    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "FAILED" not in checked.stdout + checked.stderr


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: path.stem)
def test_every_rule_is_silent_and_fires_when_promtool_plays_its_fault(path: Path) -> None:
    played = run("promtool", "test", "rules", path.name, cwd=path.parent)

    assert played.returncode == 0, (played.stdout + played.stderr)[-4000:]


def test_every_alert_is_shown_silent_and_firing() -> None:
    cases = [
        (case["alertname"], bool(case.get("exp_alerts")))
        for path in TEST_FILES
        for test in load(path)["tests"]
        for case in test["alert_rule_test"]
    ]

    assert {(alert["alert"], fires) for alert in alerts() for fires in (True, False)} == set(cases)


def test_the_alerts_that_were_asked_for_are_there_with_their_priority() -> None:
    found = {alert["alert"]: alert["labels"]["priority"] for alert in alerts()}

    assert len(found) >= 20
    assert {name: found.get(name) for name in DEMANDED} == DEMANDED
    assert [name for name, count in Counter(alert["alert"] for alert in alerts()).items() if count > 1] == []


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: str(alert["alert"]))
def test_every_alert_says_how_urgent_it_is_what_it_means_and_where_to_read_on(alert: dict[str, Any]) -> None:
    name, labels, notes = alert["alert"], alert["labels"], alert["annotations"]

    assert re.fullmatch(r"(Credits|Shadow|Locator|Shieldx|Alert)[A-Z]\w+|Watchdog", name)
    assert labels["severity"] in SEVERITIES[labels["priority"]]
    assert re.fullmatch(r"[A-Z][^{}]+\.", notes["summary"])
    assert notes["description"].endswith(".")
    assert notes["runbook_url"] == f"{RUNBOOK}#{name.lower()}"
    assert RUNBOOK.startswith("https://")
    assert not labels.keys() - {"severity", "priority", "symptom_of"}
    assert set(re.findall(r"\$labels\.(\w+)", notes["description"])) <= kept_labels(alert["expr"])


def kept_labels(expr: str) -> set[str]:
    """Return the labels that a template may use: those that the expression keeps, as far as its text tells."""
    if re.search(r"\b(sum|max|min|count)\s*(by\s*\(|\()", expr):
        return {label.strip() for group in re.findall(r"\bby\s*\(([^)]*)\)", expr) for label in group.split(",")}
    kept = {"job", "instance", "shard", "pool", "name"}
    return kept | {"slo"} if "job_slo:" in expr else kept


def test_every_series_that_a_rule_reads_is_documented_or_recorded() -> None:
    known = documented() | recorded()
    read = {name for rule in rules() for name in names_in(rule["expr"])}

    assert {name for name in read - known if not name.startswith(OTHERS) and name != "up"} == set()
    assert {"http_requests_total", "shieldx_log_refused", "job_slo:error_budget_burn:rate3d"} <= read


def test_nothing_is_recorded_that_no_rule_and_no_dashboard_reads() -> None:
    read = {name for rule in rules() for name in names_in(rule["expr"])}

    assert recorded() <= read


def test_absence_is_asked_of_series_and_not_of_comparisons() -> None:
    """`absent(up == 1)` is a trap: the comparison drops what the result should carry."""
    asked = [found for rule in rules() for found in re.findall(r"absent\(([^()]*)\)", rule["expr"])]

    assert len(asked) >= 3
    assert [one for one in asked if re.search(r"[<>]|==|!=", re.sub(r"\{[^}]*\}", "", one))] == []


def test_rules_mean_the_same_in_prometheus_2_and_3() -> None:
    """From 3.0 on a bucket's bound is a float, and a range leaves out the sample at its left end."""
    scrape_ms = milliseconds(load(GRAFANA / "prometheus.yml")["global"]["scrape_interval"])
    bounds = [bound for rule in rules() for bound in re.findall(r'\ble\s*=~?\s*"([^"]*)"', rule["expr"])]
    ranges = [found for rule in rules() for found in re.findall(r"\[(\w+)\]", rule["expr"])]

    assert bounds
    assert [bound for bound in bounds if not re.fullmatch(r"\d+\.\d+|\+Inf", bound)] == []
    assert [one for one in ranges if milliseconds(one) < 4 * scrape_ms] == []


def test_burn_rates_are_those_of_the_sre_workbook() -> None:
    found = {
        alert["alert"].removeprefix("CreditsErrorBudgetBurn"): re.findall(
            r"error_budget_burn:rate(\w+) > ([\d.]+)", alert["expr"]
        )
        for alert in alerts()
        if "ErrorBudgetBurn" in alert["alert"]
    }

    assert found == {
        "Fast": [("1h", "14.4"), ("5m", "14.4")],
        "Medium": [("6h", "6"), ("30m", "6")],
        "Slow": [("3d", "1"), ("6h", "1")],
    }


def test_promtool_takes_the_configuration_of_prometheus_as_it_is_shipped(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/metrics_key").write_text("a key")
    (tmp_path / "alerts").symlink_to(ALERTS)
    (tmp_path / "prometheus.yml").symlink_to(GRAFANA / "prometheus.yml")

    checked = run("promtool", "check", "config", "--lint=all", "--lint-fatal", "prometheus.yml", cwd=tmp_path)

    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(RULE_FILES)} rule files found" in checked.stdout


def test_the_table_of_alerts_names_each_with_the_fault_that_made_it_fire() -> None:
    rows = re.findall(r"^\| \[(\w+)\]\(runbook.md#(\w+)\) \| (\S+) \| (\S+) \| (.+) \|$", ALERT_TABLE, re.MULTILINE)
    found = {name: (anchor, priority, lasting, set(fault.split("; "))) for name, anchor, priority, lasting, fault in rows}
    faults: dict[str, set[str]] = {}
    for path in TEST_FILES:
        for test in load(path)["tests"]:
            if any(case.get("exp_alerts") for case in test["alert_rule_test"]):
                name, _, fault = test["name"].partition(": ")
                faults.setdefault(name, set()).update(fault.split("; "))

    assert set(found) == {alert["alert"] for alert in alerts()}
    for alert in alerts():
        anchor, priority, lasting, told = found[alert["alert"]]
        assert (anchor, priority) == (alert["alert"].lower(), alert["labels"]["priority"])
        assert lasting == alert.get("for", "-")
        assert {fault for fault in told if not fault.startswith("**")} == faults[alert["alert"]]
