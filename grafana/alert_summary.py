"""Alerts: what fires now and since when, what fired before, and who watches the watchers."""

from __future__ import annotations

from typing import Final

from grafana.board import Board, Row
from grafana.panels import GREEN, NONE_IS_GOOD, RED, SOME_IS_GOOD, YELLOW, lines, linked_by_name, number, rows, states
from grafana.promql import INTERVAL, Query, chosen, total
from grafana.rules import Alert

# Alerts have the labels of what they are about, which is not always a target: they are not filtered by target. Nor are
# Prometheus and Alertmanager, which no variable names.
URGENCY: Final = {
    "P0": "wakes somebody now", "P1": "reaches the person on duty within 15 minutes", "P2": "waits for the next day"
}  # fmt: skip
COLUMNS: Final = {
    "priority": "Priority", "alertname": "Alert", "severity": "Severity", "job": "Job", "instance": "Instance",
    "shard": "Shard",
}  # fmt: skip


def _now() -> Row:
    tiles = tuple(
        number(f"Firing {priority}", f"Alerts of priority {priority} that fire now. Such an alert {meaning}.", "none",
               Query(f'sum(ALERTS{{alertstate="firing",priority="{priority}"}}) or vector(0)'), steps=NONE_IS_GOOD)
        for priority, meaning in URGENCY.items()
    )  # fmt: skip
    return Row("Now", (
        *tiles,
        number("Pending", "Alerts whose condition holds, but not for long enough yet.", "none",
               Query('sum(ALERTS{alertstate="pending"}) or vector(0)'), steps=((None, GREEN), (1, YELLOW))),
        number("Targets that answer", "Scrapes that succeed, of all targets that are chosen.", "percentunit",
               Query(f"{total('up')} / count({chosen('up')})"), steps=((None, RED), (0.99, YELLOW), (1, GREEN))),
        number("Watchdog", "An alert that always fires. When it does not, Prometheus evaluates no rules, and silence means "
               "nothing.", "none", Query('sum(ALERTS{alertname="Watchdog",alertstate="firing"}) or vector(0)'),
               words={0: ("silent", RED), 1: ("awake", GREEN)}, steps=SOME_IS_GOOD),
    ))  # fmt: skip


def _which(known: list[Alert]) -> Row:
    since = '(time() - ALERTS_FOR_STATE) and ignoring (alertstate) ALERTS{alertstate="firing"}'
    fired = states(
        "Alerts over time", "One bar for each alert: yellow while it was pending, red while it fired. Each links to its "
        "part of the runbook.", {1: ("pending", YELLOW), 2: ("firing", RED)},
        Query('max by (alertname) ((ALERTS{alertstate="firing"} * 2) or ALERTS{alertstate="pending"})', "{{alertname}}"),
        width=24, height=10,
    )  # fmt: skip
    return Row("Which", (
        rows("Firing now", "Every alert that fires, most urgent first, and for how long its condition has held. Watchdog "
             "always stands here: an empty table is a broken "
             "one.", "s", Query(f"max by ({', '.join(COLUMNS)}) ({since})"), COLUMNS,
             value="For", width=24, height=8),
        linked_by_name(fired, {alert.name: (f"Runbook: {alert.name}", alert.runbook) for alert in known}),
    ))  # fmt: skip


def _watchers() -> Row:
    failing = f"rate(prometheus_rule_evaluation_failures_total[{INTERVAL}])"
    sent = f"rate(alertmanager_notifications_total[{INTERVAL}])"
    failed = f"rate(alertmanager_notifications_failed_total[{INTERVAL}])"
    return Row("Who watches", (
        lines("Rules that fail", "Evaluations per second that failed, by group of rules. Alerts of such a group cannot "
              "fire.",
              "cps", Query(f"sum by (rule_group) ({failing})", "{{rule_group}}"), steps=((None, GREEN), (0.001, RED))),
        lines("Notifications", "Messages per second that Alertmanager sent, by kind of receiver.", "cps",
              Query(f"sum by (integration) ({sent})", "{{integration}}")),
        lines("Notifications that failed", "Messages per second that no receiver took. Somebody is not being told.", "cps",
              Query(f"sum by (integration) ({failed})", "{{integration}}"), steps=((None, GREEN), (0.001, RED))),
    ))  # fmt: skip


def alert_summary(known: list[Alert]) -> Board:
    """Return the dashboard of alerts. `known` are the rules, whose parts of the runbook it links."""
    return Board(
        "shieldx-alerts", "shieldx / Alerts",
        "What fires, what fired, how fast the error budget burns, and whether Prometheus and Alertmanager do their work.",
        (_now(), _which(known), _watchers()), time_from="now-6h",
    )  # fmt: skip
