"""Alerts: what fires now and since when, what fired before, and who watches the watchers."""

from __future__ import annotations

from typing import Final

from grafana.board import Board, Row
from grafana.panels import GREEN, NONE_IS_GOOD, RED, SOME_IS_GOOD, YELLOW, explained_by_name, lines, number, rows, states
from grafana.promql import INTERVAL, Query, chosen, total
from grafana.rules import Runbook

# Alerts have the labels of what they are about, which is not always a target: they are not filtered by target. Nor are
# Prometheus and Alertmanager, which no variable names.
URGENCY: Final = {
    "P0": "wakes somebody now", "P1": "reaches the person on duty within 15 minutes", "P2": "waits for the next day"
}  # fmt: skip
OBJECTIVE_WINDOW: Final = "30d"  # the time that the objectives in alerts/slo.yaml are for
FIRING: Final = 'ALERTS{{alertstate="firing",alertname!="Watchdog",priority="{}"}}'
COLUMNS: Final = {
    "priority": "Priority", "alertname": "Alert", "severity": "Severity", "job": "Job", "instance": "Instance",
    "shard": "Shard",
}  # fmt: skip
ALERTS: Final = {
    "Rules": ("AlertRulesFailing",),
    "Notifications": ("AlertDeliveryFailing",),
    "Burn of the error budgets": (
        "CreditsErrorBudgetBurnFast",
        "CreditsErrorBudgetBurnMedium",
        "CreditsErrorBudgetBurnSlow",
    ),
}
"""The alerts on what panels show."""


def _now() -> Row:
    tiles = tuple(
        number(
            f"Firing {priority}",
            f"Alerts of priority {priority} that fire now. Such an alert {meaning}.",
            "none",
            Query(f"sum({FIRING.format(priority)}) or vector(0)"),
            steps=NONE_IS_GOOD,
        )
        for priority, meaning in URGENCY.items()
    )
    return Row(
        "Now",
        (
            *tiles,
            number(
                "Pending",
                "Alerts whose condition holds, but not for long enough yet.",
                "none",
                Query('sum(ALERTS{alertstate="pending"}) or vector(0)'),
                steps=((None, GREEN), (1, YELLOW)),
            ),
            number(
                "Targets that answer",
                "Scrapes that succeed, of all targets that are chosen.",
                "percentunit",
                Query(f"{total('up')} / count({chosen('up')})"),
                steps=((None, RED), (0.99, YELLOW), (1, GREEN)),
            ),
            number(
                "Watchdog",
                "An alert that always fires. When it does not, Prometheus evaluates no rules, and silence means nothing.",
                "none",
                Query('sum(ALERTS{alertname="Watchdog",alertstate="firing"}) or vector(0)'),
                words={0: ("silent", RED), 1: ("awake", GREEN)},
                steps=SOME_IS_GOOD,
            ),
        ),
    )


def _which(runbook: Runbook) -> Row:
    since = '(time() - ALERTS_FOR_STATE) and ignoring (alertstate) ALERTS{alertstate="firing"}'
    fired = states(
        "Alerts over time",
        "One bar for each alert: yellow while it was pending, red while it fired. Each links to its part of the runbook.",
        {1: ("pending", YELLOW), 2: ("firing", RED)},
        Query('max by (alertname) ((ALERTS{alertstate="firing"} * 2) or ALERTS{alertstate="pending"})', "{{alertname}}"),
        width=24,
        height=10,
    )
    return Row(
        "Which",
        (
            rows(
                "Firing now",
                "Every alert that fires, most urgent first, and for how long its condition has held. Watchdog always "
                "stands here: an empty table is a broken one.",
                "s",
                Query(f"max by ({', '.join(COLUMNS)}) ({since})"),
                COLUMNS,
                value="For",
                width=24,
                height=8,
            ),
            explained_by_name(fired, runbook),
        ),
    )


def _objectives() -> Row:
    burns = tuple(
        Query(f"max by (slo) (job_slo:error_budget_burn:rate{window})", f"{{{{slo}}}} over {window}")
        for window in ("5m", "1h", "6h", "3d")
    )
    failed, counted = (
        f"sum by (slo) (avg_over_time(job_slo:{name}:rate5m[{OBJECTIVE_WINDOW}]))" for name in ("errors", "requests")
    )
    left = f"1 - {failed} / {counted} / on (slo) slo:error_budget:ratio"
    return Row(
        "Objectives",
        (
            lines(
                "Burn of the error budgets",
                "How many times as fast as allowed the budget of each objective is used up, over several windows. At 1 it "
                "lasts exactly 30 days; 14.4 for an hour pages, so do 6 for six hours.",
                "none",
                *burns,
                steps=((None, GREEN), (1, YELLOW), (6, RED)),
                width=16,
            ),
            number(
                "Budget left",
                "Part of the error budget of the last 30 days that is left, of the objective where least is. Below 0 the "
                "objective is missed.",
                "percentunit",
                Query(f"min({left})"),
                steps=((None, RED), (0, YELLOW), (0.5, GREEN)),
                height=8,
            ),
            number(
                "Requests that count",
                "Requests per second that the objective of availability counts.",
                "reqps",
                Query('sum(job_slo:requests:rate5m{slo="availability"})'),
                height=8,
            ),
        ),
    )


def _watchers() -> Row:
    def per_second(counter: str) -> str:
        return f"sum(rate({counter}[{INTERVAL}]))"

    return Row(
        "Who watches",
        (
            lines(
                "Rules",
                "Evaluations of rules per second, and those that failed: the alerts of such a rule cannot fire.",
                "cps",
                Query(per_second("prometheus_rule_evaluations_total"), "evaluated"),
                Query(per_second("prometheus_rule_evaluation_failures_total"), "failed"),
            ),
            lines(
                "Notifications",
                "Messages per second that Alertmanager sent, and those that no receiver took: somebody is not being told.",
                "cps",
                Query(per_second("alertmanager_notifications_total"), "sent"),
                Query(per_second("alertmanager_notifications_failed_total"), "failed"),
            ),
            lines(
                "Scrapes",
                "How long the slowest scrape of each job took.",
                "s",
                Query("max by (job) (scrape_duration_seconds)", "{{job}}"),
            ),
        ),
    )


def alert_summary(runbook: Runbook) -> Board:
    """Return the dashboard of alerts. `runbook` explains each."""
    return Board(
        "shieldx-alerts",
        "shieldx / Alerts",
        "What fires, what fired, how fast the error budget burns, and whether Prometheus and Alertmanager do their work.",
        (_now(), _which(runbook), _objectives(), _watchers()),
        ALERTS,
        time_from="now-6h",
    )
